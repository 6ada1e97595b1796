"""Between the policies and the placement: what runs, as counts; the targets, as an instance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from heteroplace.errors import InputError
from heteroplace.files import validated
from heteroplace.instance import (
    Instance,
    RatioBand,
    Role,
    RunningGroup,
    RunningInstance,
    Service,
    Shape,
)
from heteroplace.policy.cluster import Cluster, ClusterGroup, ClusterInstance
from heteroplace.policy.decision import Decision
from heteroplace.policy.fleet import Fleet, FleetService
from heteroplace.policy.observed import Observed, RoleObserved
from heteroplace.policy.state import FleetState
from heteroplace.quantity import FINEST

Key = tuple[str, str]


def observe(fleet: Fleet, cluster: Cluster, state: FleetState | None = None) -> Observed:
    """Count what runs of every role, in equivalents of its preferred shape.

    Parameters
    ----------
    fleet
        The configuration.
    cluster
        What runs.
    state
        When given, instances under observation count as draining.

    Raises
    ------
    InputError
        If the cluster runs a role or shape that the fleet does not know.
    """
    under = _under_observation(state)
    sums: dict[str, dict[str, dict[str, Fraction]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(Fraction))
    )
    for path, group, each in _instances(cluster):
        if group.service not in fleet.service:
            continue
        shape = _shape(fleet, path, group, each)
        preferred = fleet.shapes[group.service][each.role][0]
        worth = shape.capacity / preferred.capacity
        role = sums[group.service][each.role]
        draining = each.state == "draining" or (group.name, str(each.name)) in under
        role["draining" if draining else each.state] += worth
        if each.registered and each.state == "ready" and not draining:
            role["registered"] += worth
    return {
        service: {role: RoleObserved(**found) for role, found in roles.items()}
        for service, roles in sums.items()
    }


def free_gpus(fleet: Fleet, cluster: Cluster) -> dict[str, int]:
    """GPU type -> GPUs of schedulable nodes that are neither reserved nor occupied.

    Raises
    ------
    InputError
        If the cluster runs something whose GPUs are not known.
    """
    used = _used(fleet, cluster)
    free: dict[str, int] = {}
    for node in cluster.nodes:
        if node.schedulable:
            left = max(0, node.gpus - node.reserved - used.get(node.name, 0))
            free[node.gpu_type] = free.get(node.gpu_type, 0) + left
    return free


def assemble(
    fleet: Fleet,
    cluster: Cluster,
    decisions: Iterable[Decision],
    state: FleetState | None = None,
) -> Instance:
    """Make the placement instance of a cycle.

    Targets are in capacity and ratio bands become bands of capacities. Instances of services that
    the fleet does not have only reserve their GPUs. Starting instances count as ready, for they
    are on their way; instances under observation, or that end, as draining; those that come back
    as ready.

    Parameters
    ----------
    fleet
        The configuration.
    cluster
        The nodes and what runs.
    decisions
        One for every service of the fleet.
    state
        The state of the same step, for what is under observation.

    Raises
    ------
    InputError
        If the cluster does not fit the fleet or is not consistent.
    ValueError
        If a service has no decision.
    """
    made = {each.service: each for each in decisions}
    for service in fleet.services:
        if service.name not in made:
            raise ValueError(f"no decision for the service {service.name!r}")
    draining = _under_observation(state)
    draining |= {(one.group, one.name) for each in made.values() for one in each.terminate}
    back = {(one.group, one.name) for each in made.values() for one in each.restore}
    others = _used(fleet, cluster, own=False)
    nodes = [
        node.model_copy(update={"reserved": min(node.gpus, node.reserved + others[node.name])})
        if node.name in others
        else node
        for node in cluster.nodes
    ]
    for path, group, each in _instances(cluster):
        if group.service in fleet.service:
            _shape(fleet, path, group, each)
    return validated(
        lambda: Instance(
            schema_=1,
            name=fleet.name,
            levels=cluster.levels,
            rdma=cluster.rdma,
            nodes=tuple(nodes),
            services=tuple(_service(fleet, each, made[each.name]) for each in fleet.services),
            running=tuple(
                _running(group, draining, back)
                for group in cluster.running
                if group.service in fleet.service
            ),
            objective=fleet.objective,
            cycle=fleet.cycle,
        ),
        "cluster",
    )


def _under_observation(state: FleetState | None) -> set[Key]:
    if state is None:
        return set()
    return {
        (each.group, each.name) for service in state.services.values() for each in service.withdrawn
    }


def _instances(cluster: Cluster) -> Iterator[tuple[str, ClusterGroup, ClusterInstance]]:
    for index, group in enumerate(cluster.running):
        for number, each in enumerate(group.instances):
            yield f"running[{index}].instances[{number}]", group, each


def _shape(fleet: Fleet, path: str, group: ClusterGroup, each: ClusterInstance) -> Shape:
    roles = fleet.shapes[group.service]
    if each.role not in roles:
        known = ", ".join(roles)
        raise InputError(
            f"{path}.role", f"{group.service!r} has no role {each.role!r}; known: {known}"
        )
    for shape in roles[each.role]:
        if shape.name == each.shape:
            return shape
    known = ", ".join(str(shape.name) for shape in roles[each.role])
    raise InputError(
        f"{path}.shape",
        f"{each.role} of {group.service!r} has no shape {each.shape!r}; known: {known}",
    )


def _used(fleet: Fleet, cluster: Cluster, own: bool = True) -> dict[str, int]:
    """Node -> GPUs that are occupied; without ``own`` only by services the fleet does not have."""
    used: dict[str, int] = {}
    for path, group, each in _instances(cluster):
        if group.service in fleet.service:
            if not own:
                continue
            gpus: Sequence[int] = [size for _, size in _shape(fleet, path, group, each).pod_list]
        elif each.gpus is not None:
            gpus = each.gpus
        else:
            raise InputError(
                f"{path}.gpus",
                f"is missing; the fleet does not have the service {group.service!r}, so give the "
                "GPUs of each pod",
            )
        if len(gpus) != len(each.nodes):
            raise InputError(
                f"{path}.nodes", f"names {len(each.nodes)} nodes for {len(gpus)} pods; one per pod"
            )
        for node, size in zip(each.nodes, gpus, strict=True):
            used[node] = used.get(node, 0) + size
    return used


def _service(fleet: Fleet, service: FleetService, decision: Decision) -> Service:
    shapes = fleet.shapes[service.name]
    roles = {}
    for name, role in service.roles.items():
        capacity = shapes[name][0].capacity
        roles[name] = Role(
            target=decision.targets[name],
            min=min(role.min, decision.counts[name]) * capacity,
            shapes=shapes[name],
        )
    bands = []
    for ratio in service.ratios:
        low, high = ratio.band
        scale = shapes[ratio.numerator][0].capacity / shapes[ratio.denominator][0].capacity
        bands.append(
            RatioBand(
                numerator=ratio.numerator,
                denominator=ratio.denominator,
                min=_outwards(low * scale, up=False),
                max=_outwards(high * scale, up=True),
            )
        )
    return Service(
        name=service.name,
        priority=service.priority,
        affinity=service.affinity,
        roles=roles,
        ratios=tuple(bands),
        limits=service.limits,
    )


def _outwards(number: Fraction, up: bool) -> Fraction:
    """A number that an instance can hold; where that needs rounding, the band gets wider."""
    if number.denominator <= FINEST:
        return number
    scaled = number * FINEST
    return Fraction(
        -(-scaled.numerator // scaled.denominator)
        if up
        else scaled.numerator // scaled.denominator,
        FINEST,
    )


def _running(group: ClusterGroup, draining: set[Key], back: set[Key]) -> RunningGroup:
    instances = []
    for each in group.instances:
        key = group.name, str(each.name)
        stays = key in back or (each.state != "draining" and key not in draining)
        instances.append(
            RunningInstance(
                name=each.name,
                role=each.role,
                shape=each.shape,
                nodes=each.nodes,
                state="ready" if stays else "draining",
            )
        )
    return RunningGroup(
        name=group.name, service=group.service, domain=group.domain, instances=tuple(instances)
    )
