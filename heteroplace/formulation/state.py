"""What runs now, counted once for all units.

Constants of the objective are sums over every running instance, of which there are many more than
a cycle changes. Here they are counted in whole GPUs and instances; the units price them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from heteroplace.instance import Service
from heteroplace.topology import ROOT, TIERS, TreeView


@dataclass(slots=True)
class RunningState:
    """The running groups and what their ready instances occupy.

    Parameters
    ----------
    services, domains, homes
        Per group: the number of its service, the domain it is bound to, its home domains.
    ready
        Number and shape of ready instances by (group, role); only roles that have some.
    served
        Ready instances of each shape by (service, role), over all groups.
    tier_gpus
        GPUs of ready instances on each RDMA tier.
    away_gpus
        GPUs of ready instances outside their group's homes.
    misplaced_gpus
        GPUs of ready instances outside their group's domain, plus those of split instances.
    """

    services: list[int] = field(default_factory=list)
    domains: list[int] = field(default_factory=list)
    homes: list[tuple[int, ...]] = field(default_factory=list)
    ready: dict[tuple[int, str], list[tuple[int, int]]] = field(default_factory=dict)
    served: dict[tuple[int, str], dict[int, int]] = field(default_factory=dict)
    tier_gpus: list[int] = field(default_factory=lambda: [0] * len(TIERS))
    away_gpus: int = 0
    misplaced_gpus: int = 0


@dataclass(frozen=True, slots=True)
class _Kind:
    """A role's shape as far as counting needs it."""

    shape: int
    pods: tuple[int, ...]
    gpus: int
    rank: int


def read_running(tree: TreeView) -> RunningState:
    """Count the running groups of an instance.

    Parameters
    ----------
    tree
        The view.
    """
    state, instance = RunningState(), tree.instance
    kinds_of: dict[int, dict[tuple[str, str], _Kind]] = {}
    for group, running in enumerate(instance.running):
        service = instance.service_index[running.service]
        served = instance.services[service]
        state.services.append(service)
        bound = served.affinity.required is not None
        state.domains.append(tree.group_domain(running) if bound else ROOT)
        drawn = served.affinity.preferred is not None
        state.homes.append(tree.homes(running) if drawn else ())
        kinds = kinds_of.get(service)
        if kinds is None:
            kinds = kinds_of[service] = _kinds(tree, served)
        _count(tree, state, group, kinds)
    return state


def _kinds(tree: TreeView, service: Service) -> dict[tuple[str, str], _Kind]:
    return {
        (name, str(shape.name)): _Kind(
            place,
            tuple(gpus for _, gpus in shape.pod_list),
            shape.gpus,
            tree.shape_rank(shape),
        )
        for name, role in service.roles.items()
        for place, shape in enumerate(role.shapes)
    }


def _count(
    tree: TreeView, state: RunningState, group: int, kinds: dict[tuple[str, str], _Kind]
) -> None:
    instance, paths, tiers = tree.instance, tree.node_path, tree.node_tier
    levels, index_of, tier_gpus = instance.levels, instance.node_index, state.tier_gpus
    domain, homes = state.domains[group], state.homes[group]
    affinity = instance.services[state.services[group]].affinity
    required = None if affinity.required is None else levels.index(affinity.required)
    preferred = None if affinity.preferred is None else levels.index(affinity.preferred)
    members: dict[str, list[tuple[int, int]]] = {}
    for number, each in enumerate(instance.running[group].instances):
        if each.state != "ready":
            continue
        kind = kinds[each.role, each.shape]
        if each.role in members:
            members[each.role].append((number, kind.shape))
        else:
            members[each.role] = [(number, kind.shape)]
        if len(kind.pods) == 1:
            node, gpus = index_of[each.nodes[0]], kind.gpus
            tier_gpus[tiers[node]] += gpus
            path = paths[node]
            if required is not None and path[required] != domain:
                state.misplaced_gpus += gpus
            if preferred is not None and path[preferred] not in homes:
                state.away_gpus += gpus
            continue
        nodes = [index_of[name] for name in each.nodes]
        for node, gpus in zip(nodes, kind.pods, strict=True):
            tier_gpus[tiers[node]] += gpus
        if required is not None and any(paths[node][required] != domain for node in nodes):
            state.misplaced_gpus += kind.gpus
        if not tree.in_one_domain(nodes, kind.rank):
            state.misplaced_gpus += kind.gpus
        if preferred is not None:
            found = {paths[node][preferred] for node in nodes}
            if len(found) > 1 or found.isdisjoint(homes):
                state.away_gpus += kind.gpus
    for role, ready in members.items():
        state.ready[group, role] = ready
        served = state.served.setdefault((state.services[group], role), {})
        for shape, count in Counter([shape for _, shape in ready]).items():
            served[shape] = served.get(shape, 0) + count
