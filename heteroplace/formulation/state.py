"""What runs now, counted once for all units.

Constants of the objective are sums over every running instance, of which there are many more than
a cycle changes. Here they are counted in whole GPUs and instances; the units price them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heteroplace.instance import RunningGroup
from heteroplace.topology import ROOT, TIERS, TreeView


@dataclass(slots=True)
class RunningState:
    """The running groups and what their ready instances occupy.

    Parameters
    ----------
    services, domains, homes
        Per group: the number of its service, the domain it is bound to, its home domains.
    ready
        How many ready instances of which shape, by (group, role); only roles that have some.
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
    # All that runs; what drains is taken off as it is met.
    for tier, used in zip(tree.node_tier, tree.used, strict=True):
        state.tier_gpus[tier] += used
    readers: dict[str, _Reader] = {}
    for group, running in enumerate(instance.running):
        reader = readers.get(running.service)
        if reader is None:
            reader = readers[running.service] = _Reader(tree, state, running.service)
        reader.read(group, running)
    return state


class _Reader:
    """Counts the groups of one service."""

    def __init__(self, tree: TreeView, state: RunningState, name: str) -> None:
        self._tree = tree
        self._state = state
        self._number = tree.instance.service_index[name]
        self._service = tree.instance.services[self._number]
        levels, affinity = tree.instance.levels, self._service.affinity
        self._required = None if affinity.required is None else levels.index(affinity.required)
        self._preferred = None if affinity.preferred is None else levels.index(affinity.preferred)
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def read(self, group: int, running: RunningGroup) -> None:
        """Count one group."""
        tree, state = self._tree, self._state
        domain = ROOT if self._required is None else tree.group_domain(running)
        homes = () if self._preferred is None else tree.homes(running)
        state.services.append(self._number)
        state.domains.append(domain)
        state.homes.append(homes)
        located = self._required is not None or self._preferred is not None
        for (role, name), count in tree.ready[group].items():
            kind = self._kind(role, name)
            located = located or len(kind.pods) > 1
            state.ready.setdefault((group, role), []).append((count, kind.shape))
            served = state.served.setdefault((self._number, role), {})
            served[kind.shape] = served.get(kind.shape, 0) + count
        if tree.draining[group]:
            self._leave_out_draining(running)
        if located:
            self._locate(running, domain, homes)

    def _kind(self, role: str, name: str) -> _Kind:
        kind = self._kinds.get((role, name))
        if kind is None:
            served = self._service.roles[role]
            place = served.shape_index[name]
            shape = served.shapes[place]
            pods = tuple(gpus for _, gpus in shape.pod_list)
            kind = _Kind(place, pods, shape.gpus, self._tree.shape_rank(shape))
            self._kinds[role, name] = kind
        return kind

    def _leave_out_draining(self, running: RunningGroup) -> None:
        for each in running.instances:
            if each.state != "ready":
                pods = self._kind(each.role, each.shape).pods
                for name, gpus in zip(each.nodes, pods, strict=True):
                    node = self._tree.instance.node_index[name]
                    self._state.tier_gpus[self._tree.node_tier[node]] -= gpus

    def _locate(self, running: RunningGroup, domain: int, homes: tuple[int, ...]) -> None:
        """Count the GPUs of ready instances that are not where they should be."""
        tree, state = self._tree, self._state
        paths, index_of = tree.node_path, tree.instance.node_index
        required, preferred = self._required, self._preferred
        for each in running.instances:
            if len(each.nodes) == 1:
                path = paths[index_of[each.nodes[0]]]
                outside = required is not None and path[required] != domain
                away = preferred is not None and path[preferred] not in homes
                split = False
            else:
                nodes = [index_of[name] for name in each.nodes]
                rank = self._kind(each.role, each.shape).rank
                outside = not all(tree.contains(domain, node) for node in nodes)
                away = preferred is not None and not any(
                    all(tree.contains(home, node) for node in nodes) for home in homes
                )
                split = not tree.in_one_domain(nodes, rank)
            if (outside or away or split) and each.state == "ready":
                gpus = self._kind(each.role, each.shape).gpus
                state.misplaced_gpus += gpus * (outside + split)
                state.away_gpus += gpus * away
