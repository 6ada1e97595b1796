"""What runs on the simulated cluster: instances, their timers and what they supply.

Changes take effect at the first tick that starts when their time has come.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from heteroplace.errors import InputError
from heteroplace.instance import Shape
from heteroplace.plan import PlacedInstance, Plan, PlanGroup
from heteroplace.policy.cluster import Cluster, ClusterGroup, ClusterInstance
from heteroplace.policy.state import Withdrawn
from heteroplace.simulate.measure import Supply
from heteroplace.simulate.queueing import Floats
from heteroplace.simulate.services import PooledService

State = Literal["starting", "ready", "draining"]

_OCCUPIED = ("gpus", "starting", "held", "leaving")


@dataclass(slots=True)
class LiveInstance:
    """An instance and what happens to it next.

    Parameters
    ----------
    service, group, name, role, shape, nodes
        Which one it is.
    gpus
        That it occupies.
    tokens
        Per second, for prefill and for decode.
    switches
        Share of its GPUs under each switch.
    state
        As in a cluster file.
    registered
        Whether it is in service discovery.
    until
        Seconds: when a starting one is ready, a returning one registers, a draining one is gone.
    """

    service: str
    group: str
    name: str
    role: str
    shape: str
    nodes: tuple[str, ...]
    gpus: int
    tokens: tuple[float, float]
    switches: dict[str, float]
    state: State
    registered: bool
    until: float = math.inf
    returning: bool = False

    @property
    def serves(self) -> bool:
        """Whether requests go to it."""
        return self.state == "ready" and self.registered


@dataclass(slots=True)
class _Group:
    service: str
    domain: str | None
    instances: dict[str, LiveInstance] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)

    def fresh_name(self, role: str) -> str:
        """A name that no instance of the group has ever had."""
        while (name := f"{role}-{self.numbers[role]}") in self.instances:
            self.numbers[role] += 1
        self.numbers[role] += 1
        return name


class Live:
    """Everything that runs.

    Parameters
    ----------
    cluster
        Nodes and what runs at the start; not changed. Instances of services that the fleet lacks
        keep their GPUs for ever.
    services
        Of the fleet.
    gated
        Services whose ready instances register only when the policies let them.
    """

    def __init__(
        self, cluster: Cluster, services: Sequence[PooledService], gated: Iterable[str]
    ) -> None:
        self._base = cluster
        self._services = {each.name: each for each in services}
        self._order = [each.name for each in services]
        self._gated = frozenset(gated)
        self._nodes = {node.name: node for node in cluster.nodes}
        self._groups: dict[str, _Group] = {}
        self._foreign = tuple(
            group for group in cluster.running if group.service not in self._services
        )
        self._cluster: Cluster | None = None
        self._dirty = set(self._services)
        self._rows: dict[str, tuple[float, ...]] = {}
        self._supply: Supply | None = None
        self._occupied: dict[str, Floats] | None = None
        self._left: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._due = math.inf
        self.version = 0
        for group in cluster.running:
            if group.service in self._services:
                self._take_in(group)

    def _take_in(self, group: ClusterGroup) -> None:
        kept = self._groups[group.name] = _Group(group.service, group.domain)
        service = self._services[group.service]
        for each in group.instances:
            timers: dict[State, float] = {
                "starting": service.model.startup_seconds,
                "ready": math.inf,
                "draining": service.model.drain_seconds,
            }
            self._put(
                kept,
                group.name,
                str(each.name),
                each.role,
                each.shape,
                each.nodes,
                state=each.state,
                registered=each.registered and each.state == "ready",
                until=timers[each.state],
            )

    def _put(
        self,
        group: _Group,
        group_name: str,
        name: str | None,
        role: str,
        shape_name: str,
        nodes: tuple[str, ...],
        *,
        state: State,
        registered: bool,
        until: float,
    ) -> LiveInstance:
        service = self._services[group.service]
        shape = self._shape(service, role, shape_name, group_name)
        if name is None:
            name = group.fresh_name(role)
        instance = LiveInstance(
            service=group.service,
            group=group_name,
            name=name,
            role=role,
            shape=shape_name,
            nodes=nodes,
            gpus=shape.gpus,
            tokens=service.tokens(role, shape_name),
            switches=self._switches(service, shape, nodes),
            state=state,
            registered=registered,
            until=until,
        )
        group.instances[name] = instance
        self._due = min(self._due, until)
        self._changed(group.service)
        return instance

    def _shape(self, service: PooledService, role: str, name: str, group: str) -> Shape:
        if role not in service.shapes:
            raise InputError(
                f"cluster: {group}", f"runs the role {role!r}, which {service.name} lacks"
            )
        for shape in service.shapes[role]:
            if shape.name == name:
                return shape
        known = ", ".join(str(each.name) for each in service.shapes[role])
        raise InputError(
            f"cluster: {group}", f"runs the shape {name!r}; {service.name} {role} has {known}"
        )

    def _switches(
        self, service: PooledService, shape: Shape, nodes: tuple[str, ...]
    ) -> dict[str, float]:
        level = service.model.switch_level or _lower_level(self._base)
        shares: defaultdict[str, float] = defaultdict(float)
        for node, (_, gpus) in zip(nodes, shape.pod_list, strict=True):
            domains = self._nodes[node].domains
            if level not in domains:
                raise InputError(
                    f"{service.name}: switch_level", f"{level!r} is no level of the cluster"
                )
            shares[domains[level]] += gpus / shape.gpus
        return dict(shares)

    def _changed(self, service: str, *, occupancy: bool = True) -> None:
        self._dirty.add(service)
        self._cluster = self._supply = self._occupied = None
        if occupancy:
            self.version += 1

    # -- time ------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let the timers run that are due at ``now``."""
        if now < self._due:
            return
        for name, group in list(self._groups.items()):
            for each in list(group.instances.values()):
                if each.until > now:
                    continue
                if each.state == "draining":
                    self._drop(name, each.name)
                    continue
                each.until = math.inf
                if each.state == "starting":
                    each.state = "ready"
                    each.registered = group.service not in self._gated
                elif each.returning:
                    each.returning, each.registered = False, True
                self._changed(group.service, occupancy=False)
        self._due = min(
            (each.until for group in self._groups.values() for each in group.instances.values()),
            default=math.inf,
        )

    def _drop(self, group_name: str, name: str) -> None:
        group = self._groups[group_name]
        del group.instances[name]
        if not group.instances:
            del self._groups[group_name]
        self._changed(group.service)

    # -- what the policies and the plan do ---------------------------------------------------------

    def register(self, service: str, held: Mapping[str, int]) -> None:
        """Register ready instances, but for ``held`` ones of each role."""
        waiting: defaultdict[str, list[LiveInstance]] = defaultdict(list)
        for each in self.instances(service):
            if each.state == "ready" and not each.registered and not each.returning:
                waiting[each.role].append(each)
        for role, instances in waiting.items():
            for each in instances[: max(0, len(instances) - held.get(role, 0))]:
                each.registered = True
                self._changed(service, occupancy=False)

    def carry_out(
        self, plan: Plan, now: float, windows: Mapping[str, float], *, at_once: bool = False
    ) -> dict[str, list[tuple[str, PlacedInstance]]]:
        """Do what a plan says.

        Parameters
        ----------
        plan
            The plan.
        now
            Seconds.
        windows
            Service -> seconds that removed instances stay under observation.
        at_once
            Whether added instances are ready now (what ran before the simulation began).

        Returns
        -------
        dict
            Service -> (group, instance) of those that go under observation.
        """
        observed: dict[str, list[tuple[str, PlacedInstance]]] = defaultdict(list)
        for planned in plan.groups:
            for each in planned.removed:
                group = self._groups[planned.name]
                instance = group.instances[str(each.name)]
                if instance.state == "starting":
                    self._drop(planned.name, instance.name)
                    continue
                window = windows.get(planned.service, 0.0)
                drain = self._services[planned.service].model.drain_seconds
                self._leave(instance, math.inf if window > 0 else now + drain)
                if window > 0:
                    observed[planned.service].append((planned.name, each))
            for each in planned.moved:
                self._move(planned, each, now)
            for each in planned.added:
                group = self._groups.setdefault(
                    planned.name, _Group(planned.service, planned.domain)
                )
                startup = self._services[planned.service].model.startup_seconds
                self._put(
                    group,
                    planned.name,
                    each.name,
                    each.role,
                    each.shape,
                    tuple(pod.node for pod in each.pods),
                    state="ready" if at_once else "starting",
                    registered=at_once,
                    until=math.inf if at_once else now + startup,
                )
        return observed

    def _move(self, planned: PlanGroup, moved: PlacedInstance, now: float) -> None:
        """A moved instance drains where it was and starts anew where it goes."""
        group = self._groups[planned.name]
        model = self._services[planned.service].model
        old = group.instances[str(moved.name)]
        self._leave(old, now + model.drain_seconds)
        self._put(
            group,
            planned.name,
            None,
            moved.role,
            moved.shape,
            tuple(pod.node for pod in moved.pods),
            state="starting",
            registered=False,
            until=now + model.startup_seconds,
        )

    def _leave(self, instance: LiveInstance, until: float) -> None:
        if instance.serves and instance.role in self._services[instance.service].decode:
            self._left[instance.service, instance.role] += instance.tokens[1]
        instance.state, instance.registered, instance.until = "draining", False, until
        self._due = min(self._due, until)
        self._changed(instance.service)

    def restore(self, withdrawn: Withdrawn, now: float) -> None:
        """Let an instance under observation serve again."""
        instance = self._find(withdrawn)
        if instance is not None:
            seconds = self._services[instance.service].model.restore_seconds
            instance.state, instance.returning = "ready", seconds > 0
            instance.registered = seconds == 0
            instance.until = now + seconds if seconds > 0 else math.inf
            self._due = min(self._due, instance.until)
            self._changed(instance.service)

    def terminate(self, withdrawn: Withdrawn) -> None:
        """End an instance under observation; it had its window to finish its sequences."""
        if self._find(withdrawn) is not None:
            self._drop(withdrawn.group, withdrawn.name)

    def _find(self, withdrawn: Withdrawn) -> LiveInstance | None:
        group = self._groups.get(withdrawn.group)
        return None if group is None else group.instances.get(withdrawn.name)

    # -- views -----------------------------------------------------------------------------------

    def instances(self, service: str) -> list[LiveInstance]:
        """Instances of a service, oldest group first."""
        return [
            each
            for group in self._groups.values()
            if group.service == service
            for each in group.instances.values()
        ]

    def cluster(self) -> Cluster:
        """The cluster as a snapshot of it would show it."""
        if self._cluster is None:
            running = [
                ClusterGroup(
                    name=name,
                    service=group.service,
                    domain=group.domain,
                    instances=tuple(
                        ClusterInstance(
                            name=each.name,
                            role=each.role,
                            shape=each.shape,
                            nodes=each.nodes,
                            state=each.state,
                            registered=each.registered,
                        )
                        for each in group.instances.values()
                    ),
                )
                for name, group in self._groups.items()
            ]
            self._cluster = self._base.model_copy(
                update={"running": (*running, *self._foreign), "at": None}
            )
        return self._cluster

    def supply(self) -> Supply:
        """What serves now, of every service in order."""
        if self._supply is None:
            for name in self._dirty:
                self._rows[name] = self._supply_of(self._services[name])
            self._dirty.clear()
            rows = np.array([self._rows[name] for name in self._order], dtype=float)
            self._supply = Supply(*rows.T)
        return self._supply

    def left_decode(self) -> Floats:
        """Tokens per second of the decode instances that left service since the last call.

        Roles that work together leave together: the one that lost most counts.
        """
        found: Floats = np.array(
            [
                max(self._left[name, role] for role in self._services[name].decode)
                for name in self._order
            ]
        )
        self._left.clear()
        return found

    def occupied(self) -> dict[str, Floats]:
        """GPUs, and instances that start, wait to register or leave, of every service in order."""
        if self._occupied is None:
            counts = {name: np.zeros(len(self._order)) for name in _OCCUPIED}
            place = {name: index for index, name in enumerate(self._order)}
            for group in self._groups.values():
                column = place[group.service]
                for each in group.instances.values():
                    counts["gpus"][column] += each.gpus
                    if each.state != "ready":
                        kind = "starting" if each.state == "starting" else "leaving"
                        counts[kind][column] += 1
                    elif not each.registered:
                        counts["starting" if each.returning else "held"][column] += 1
            self._occupied = counts
        return self._occupied

    def _supply_of(self, service: PooledService) -> tuple[float, ...]:
        serving = [each for each in self.instances(service.name) if each.serves]
        prefill = _pool(serving, service.prefill, 0)
        decode = _pool(serving, service.decode, 1)
        crossing = 0.0 if service.aggregated else _crossing(serving, service)
        return (prefill[0], decode[0], prefill[1], decode[1], crossing)


def _lower_level(cluster: Cluster) -> str:
    """The lower of the two levels that define the tiers of RDMA subgroups."""
    if cluster.rdma is not None:
        return cluster.rdma.lower
    levels = cluster.levels
    both = {"s1", "s2"} <= set(levels) and levels.index("s2") < levels.index("s1")
    return "s1" if both else levels[-1]


def _pool(serving: Sequence[LiveInstance], roles: Sequence[str], kind: int) -> tuple[float, float]:
    """Tokens per second and instances of a pool; the role that can do least decides."""
    able = []
    for role in roles:
        mine = [each.tokens[kind] for each in serving if each.role == role]
        able.append((sum(mine), float(len(mine))))
    return min(able)


def _crossing(serving: Sequence[LiveInstance], service: PooledService) -> float:
    """Share of the KV transfers between different switches.

    Requests go to groups by their prefill capacity, and inside a group to a prefill and a decode
    instance at random by capacity. A group without decode sends to the others: all of it crosses.
    """
    sides: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for each in serving:
        for side, roles in enumerate((service.prefill, service.decode)):
            if each.role in roles:
                there = sides.setdefault(each.group, ({}, {}))[side]
                for switch, share in each.switches.items():
                    there[switch] = there.get(switch, 0.0) + share * each.tokens[side]
    total = same = 0.0
    for prefill, decode in sides.values():
        amount, capacity = sum(prefill.values()), sum(decode.values())
        total += amount
        if capacity > 0:
            same += sum(
                tokens * decode.get(switch, 0.0) / capacity for switch, tokens in prefill.items()
            )
    return 1 - same / total if total > 0 else 0.0
