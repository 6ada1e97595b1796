"""The checker and the evaluator: what docs/problem.md says, recomputed from the plan alone.

Nothing here is shared with the formulation or the greedy, so that a mistake there is seen here.
What runs is read once for an instance (:class:`_Now`); a plan is then read as its difference from
that (:class:`_After`), so it costs what it changes. Capacities are counted in whole units of
1/scale of their service; they become fractions again where they leave this file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm

from heteroplace.errors import InputError
from heteroplace.faults import NODE_LEVEL
from heteroplace.instance import (
    Instance,
    RatioBand,
    Role,
    RunningGroup,
    RunningInstance,
    Service,
    Shape,
)
from heteroplace.plan import (
    Evaluation,
    MovedInstance,
    PlacedInstance,
    PlacedPod,
    Plan,
    PlanGroup,
    RoleOutcome,
    Step,
    Violation,
    assembled,
)

ZERO = Fraction(0)
_OUTCOME = set(RoleOutcome.model_fields)
TIERS = ("low", "medium", "high")


def check(instance: Instance, plan: Plan) -> list[Violation]:
    """List every constraint that a plan breaks; an empty list is a valid plan.

    Parameters
    ----------
    instance
        The problem.
    plan
        A plan from any tool.

    Returns
    -------
    list of Violation
        In the order of docs/problem.md.

    Raises
    ------
    InputError
        If the plan names a node, service, group, role, shape or running instance that the
        instance does not have.
    """
    return Checker(instance).check(plan)


def evaluate(instance: Instance, plan: Plan) -> Evaluation:
    """Recompute the objective of a plan.

    Parameters
    ----------
    instance
        The problem.
    plan
        A plan; it need not be valid.

    Returns
    -------
    Evaluation
        Steps, named costs, repairs and what every role gets, exactly.

    Raises
    ------
    InputError
        As :func:`check`.
    """
    return Checker(instance).evaluate(plan)


def check_and_evaluate(instance: Instance, plan: Plan) -> tuple[list[Violation], Evaluation]:
    """:func:`check` and :func:`evaluate` in one pass over the plan."""
    return Checker(instance).check_and_evaluate(plan)


class Checker:
    """Checks and evaluates plans of one instance, whose running state it reads only once.

    For several plans of an instance; :func:`check`, :func:`evaluate` and
    :func:`check_and_evaluate` make one for a single plan.

    Parameters
    ----------
    instance
        The problem; not changed.

    Notes
    -----
    May be shared between threads. No plan is trusted: between plans it remembers only immutable
    lists of kept instances that it has itself compared with what runs, and takes them again only
    as the same objects.
    """

    def __init__(self, instance: Instance) -> None:
        self._now = _Now(instance)

    def updated(self, instance: Instance) -> Checker:
        """The checker of an instance that shares parts with this one's.

        A service that is the same object in both, with the same objects running, is not read
        again.

        Parameters
        ----------
        instance
            The new problem; not changed.

        Returns
        -------
        Checker
            Shares parts with this one, which stays as it is.
        """
        made = object.__new__(Checker)
        made._now = _Now(instance, self._now)
        return made

    def check(self, plan: Plan) -> list[Violation]:
        """Do :func:`check` on the checker's instance."""
        return _violations(_After(self._now, plan))

    def evaluate(self, plan: Plan) -> Evaluation:
        """Do :func:`evaluate` on the checker's instance."""
        return _evaluation(_After(self._now, plan))

    def check_and_evaluate(self, plan: Plan) -> tuple[list[Violation], Evaluation]:
        """Do :func:`check_and_evaluate` on the checker's instance."""
        after = _After(self._now, plan)
        return _violations(after), _evaluation(after)


def _violations(after: _After) -> list[Violation]:
    return [violation for rule in _RULES for violation in rule(after)]


def _evaluation(after: _After) -> Evaluation:
    now = after.now
    delivered = after.delivered
    outcomes = {
        role: role.outcome(delivered.get(role, role.now))
        for service in now.services.values()
        for role in service.roles.values()
    }
    steps = []
    for priority, roles in now.classes.items():
        if any(role.now < role.min for role in roles):
            short = _sum(
                (max(0, role.min - delivered.get(role, role.now)), role.gpus_per_unit)
                for role in roles
            )
            steps.append(Step(name=f"minimum[{priority}]", value=short))
        unmet = _sum((1, outcomes[role].unmet_gpus) for role in roles)
        steps.append(Step(name=f"unmet[{priority}]", value=unmet))
    repairs = _repairs(after)
    steps.append(Step(name="repair", value=sum(repairs.values(), ZERO)))
    costs = _costs(after)
    weights = now.instance.objective.weights
    total = sum((getattr(weights, name) * amount for name, amount in costs.items()), ZERO)
    steps.append(Step(name="cost", value=total))
    return Evaluation(
        steps=tuple(steps), costs=costs, repairs=repairs, roles=tuple(outcomes.values())
    )


def _sum(terms: Iterable[tuple[int, Fraction]]) -> Fraction:
    """Sum of times × number, exactly; numerators of one denominator are added as integers."""
    by_denominator: dict[int, int] = {}
    for times, number in terms:
        if times and number:
            denominator = number.denominator
            by_denominator[denominator] = (
                by_denominator.get(denominator, 0) + times * number.numerator
            )
    return sum((Fraction(over, under) for under, over in by_denominator.items()), ZERO)


# --------------------------------------------------------------------------------------------
# The running state
# --------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Role:
    """A role of a service; capacities in units of 1/scale."""

    service: str
    name: str
    given: Role
    scale: int
    target: int
    min: int
    now: int = 0
    grain: int = 0
    """Greatest common divisor of the capacities of the instances that deliver now."""
    last: tuple[int, RoleOutcome] | None = None

    @property
    def gpus_per_unit(self) -> Fraction:
        return self.given.gpus_per_capacity / self.scale

    def outcome(self, delivered: int) -> RoleOutcome:
        last = self.last
        if last is not None and last[0] == delivered:
            return last[1]
        unmet = Fraction(self.target - delivered, self.scale) if delivered < self.target else ZERO
        outcome = assembled(
            RoleOutcome,
            {
                "service": self.service,
                "role": self.name,
                "target": self.given.target,
                "delivered": Fraction(delivered, self.scale),
                "unmet": unmet,
                "unmet_gpus": unmet * self.given.gpus_per_capacity if unmet else ZERO,
            },
            _OUTCOME,
        )
        self.last = (delivered, outcome)
        return outcome

    def excess(self, delivered: int) -> int:
        """Capacity that a role which scales in could still lose."""
        if self.now <= self.target:
            return 0
        return max(0, delivered - self.target) // self.grain * self.grain


Delivered = dict[_Role, int]


@dataclass(slots=True, eq=False)
class _Kind:
    """A shape of a role."""

    role: _Role
    shape: Shape
    pods: tuple[tuple[str, int], ...]
    gpus: int
    units: int
    level: str
    """All pods lie within one domain of it."""
    cost: Fraction


@dataclass(slots=True, eq=False)
class _Band:
    """A ratio band; amounts are in 1/``parts`` of a unit of its service."""

    given: RatioBand
    above: _Role
    below: _Role
    parts: int
    low: int
    high: int | None
    now: int = 0
    """Sum of the amounts over the running groups."""

    def amount(self, delivered: Mapping[_Role, int]) -> int:
        """How far the band is broken, in capacity of its numerator."""
        above, below = delivered.get(self.above, 0), delivered.get(self.below, 0)
        amount = max(0, self.low * below - self.parts * above)
        if self.high is not None:
            amount = max(amount, self.parts * above - self.high * below)
        return amount


class _Kinds(dict[tuple[str, str], _Kind]):
    """The shapes of a service's roles by (role, shape), each made when it is first met."""

    def __init__(self, service: _Service) -> None:
        self.service = service

    def __missing__(self, key: tuple[str, str]) -> _Kind:
        role = self.service.roles[key[0]]
        index = role.given.shape_index[key[1]]
        given = role.given.shapes[index]
        pods, units = given.pod_list, self.service.units(given.capacity)
        level = NODE_LEVEL if len(pods) == 1 else given.level or self.service.finest
        return self.setdefault(
            key, _Kind(role, given, pods, given.gpus, units, level, role.given.shape_cost(index))
        )


class _Service:
    """A service and what runs of it."""

    def __init__(self, given: Service, finest: str) -> None:
        self.given = given
        self.finest = finest
        self.required = given.affinity.required
        self.preferred = given.affinity.preferred
        self.scale = lcm(
            *(
                number.denominator
                for role in given.roles.values()
                for number in (role.target, role.min, *(each.capacity for each in role.shapes))
            )
        )
        self.roles = {
            name: _Role(
                given.name, name, role, self.scale, self.units(role.target), self.units(role.min)
            )
            for name, role in given.roles.items()
        }
        self.bands = [self._band(band) for band in given.ratios]
        self.kinds = _Kinds(self)
        self.groups: list[_Running] = []
        self.running: list[RunningGroup] = []
        self.counts: dict[_Kind, int] = {}
        """Delivering instances."""
        self.spill = 0
        self.outside = 0
        """GPUs of ready instances outside their group's domain."""
        self.split = 0
        """GPUs of ready instances that are split over domains."""
        self.lacking = 0
        """GPUs of the preferred shapes of the roles that groups lack."""
        self.oversize = 0
        """Instances over the size limit of their group."""

    def units(self, capacity: Fraction) -> int:
        return capacity.numerator * (self.scale // capacity.denominator)

    def _band(self, given: RatioBand) -> _Band:
        low, high = given.min, given.max
        parts = lcm(low.denominator, 1 if high is None else high.denominator)
        return _Band(
            given,
            self.roles[given.numerator],
            self.roles[given.denominator],
            parts,
            low.numerator * (parts // low.denominator),
            None if high is None else high.numerator * (parts // high.denominator),
        )

    def missing(self, delivered: Mapping[_Role, int]) -> set[str]:
        """Roles that a group which delivers anything lacks."""
        if not any(delivered.values()):
            return set()
        return {name for name, role in self.roles.items() if not delivered.get(role)}


@dataclass(slots=True, eq=False)
class _Placed:
    """An instance with the numbers of its pods' nodes."""

    kind: _Kind
    nodes: Sequence[int]
    gpus: Sequence[int]
    times: int = 1
    """How often a plan's group lists the same object."""

    @property
    def whole(self) -> bool:
        """Whether all pods are placed; a part of an instance delivers nothing."""
        return len(self.nodes) == len(self.kind.pods)


@dataclass(slots=True, eq=False)
class _Running:
    """A deployment group that runs."""

    given: RunningGroup
    service: _Service
    domain: str | None
    kinds: list[_Kind] = field(default_factory=list)
    ready: int = 0
    now: Delivered = field(default_factory=dict)
    homes: set[str] = field(default_factory=set)
    numbers: dict[str, int] | None = None
    compared: tuple[PlacedInstance, ...] | None = None

    @property
    def name(self) -> str:
        return self.given.name

    @property
    def instances(self) -> tuple[RunningInstance, ...]:
        return self.given.instances

    @property
    def draining(self) -> int:
        return len(self.instances) - self.ready

    def numbered(self) -> dict[str, int]:
        if self.numbers is None:
            self.numbers = {str(each.name): place for place, each in enumerate(self.instances)}
        return self.numbers

    def is_ready(self, number: int) -> bool:
        return self.instances[number].state == "ready"

    def stays(self, kept: Sequence[PlacedInstance]) -> bool:
        """Whether a list names nothing, or all that runs and just as it runs."""
        if not kept or kept is self.compared:
            return True
        if len(kept) != len(self.instances):
            return False
        immutable = type(kept) is tuple
        for entry, running, kind in zip(kept, self.instances, self.kinds, strict=True):
            if (
                entry.name != running.name
                or entry.role != running.role
                or entry.shape != running.shape
            ):
                return False
            pods = entry.pods
            immutable = immutable and type(entry) is PlacedInstance and type(pods) is tuple
            if pods:
                if len(pods) != len(kind.pods):
                    return False
                for pod, node, (_, gpus) in zip(pods, running.nodes, kind.pods, strict=True):
                    if pod.node != node or pod.gpus != gpus:
                        return False
                    immutable = immutable and type(pod) is PlacedPod
        if immutable:
            self.compared = tuple(kept)
        return True


class _Now:
    """The running state and what it is worth.

    Every number is the sum of what the services have, so the services that a second instance
    shares with ``before`` are taken over as they are.
    """

    limit: list[int]
    """GPUs that may be used, by node."""
    tier: list[int]

    def __init__(self, instance: Instance, before: _Now | None = None) -> None:
        self.instance = instance
        self.nodes = instance.nodes
        self.index = instance.node_index
        self.used = [0] * len(instance.nodes)
        """GPUs of what runs, by node."""
        self.delivering = [0] * len(instance.nodes)
        """GPUs of what runs and is ready, by node."""
        self._places: dict[str, list[str]] = {}
        self._domains: dict[str, set[str]] = {}
        if before is not None and not self._resembles(before):
            before = None
        self._read_fleet(before)
        self._read_services(before)
        services = self.services.values()
        self.classes: dict[int, list[_Role]] = {priority: [] for priority in instance.priorities}
        for service in services:
            self.classes[service.given.priority].extend(service.roles.values())
        self.on_tier = [0, 0, 0]
        for tier, gpus in zip(self.tier, self.delivering, strict=True):
            self.on_tier[tier] += gpus
        self.over = sum(
            used - limit for used, limit in zip(self.used, self.limit, strict=True) if used > limit
        )
        self.spill = sum(service.spill for service in services)
        self.outside = sum(service.outside for service in services)
        self.split = sum(service.split for service in services)
        self.lacking = sum(service.lacking for service in services)
        self.oversize = sum(service.oversize for service in services)
        self.shape_cost = _sum(
            (count, kind.cost) for service in services for kind, count in service.counts.items()
        )

    def _resembles(self, before: _Now) -> bool:
        """Whether what runs on a node of both instances is read as it was before."""
        old, new = before.instance, self.instance
        if old.levels != new.levels or old.rdma_levels != new.rdma_levels:
            return False
        if self.nodes is before.nodes:
            return True
        known = set(map(id, before.nodes))
        for node in [node for node in self.nodes if id(node) not in known]:
            if node.name in before.index:
                was = before.nodes[before.index[node.name]]
                if (
                    was.gpu_type != node.gpu_type
                    or was.gpus != node.gpus
                    or was.domains != node.domains
                ):
                    return False
        return True

    def _read_fleet(self, before: _Now | None) -> None:
        nodes = self.nodes
        if before is not None and nodes is before.nodes:
            self.limit = before.limit
        else:
            self.limit = [node.gpus - node.reserved for node in nodes]
        if before is None:
            self.tier = self._tiers()
            return
        if before.index is self.index:
            # The same machines in the same order: at most what may be used of them differs.
            self._places, self._domains = before._places, before._domains
            self.tier = before.tier
            self.used, self.delivering = list(before.used), list(before.delivering)
            return
        self.tier = self._tiers()
        for number, node in enumerate(nodes):
            old = before.index.get(node.name)
            if old is not None:
                self.used[number] = before.used[old]
                self.delivering[number] = before.delivering[old]

    def _read_services(self, before: _Now | None) -> None:
        """Read the services and what runs, unless they are known from before."""
        self.services: dict[str, _Service] = {}
        running: dict[str, list[RunningGroup]] = {
            service.name: [] for service in self.instance.services
        }
        for group in self.instance.running:
            running[group.service].append(group)
        known = {} if before is None else dict(before.services)
        for given in self.instance.services:
            groups = running[given.name]
            service = known.get(given.name)
            if service is not None and service.given is given and service.running == groups:
                del known[given.name]
            else:
                service = _Service(given, self.instance.levels[-1])
                service.running = groups
                for each in groups:
                    self._read(_Running(each, service, each.domain))
            self.services[given.name] = service
        for service in known.values():
            self._forget(service)
        by_name = {each.name: each for service in self.services.values() for each in service.groups}
        self.groups = {group.name: by_name[group.name] for group in self.instance.running}
        self.place = {name: number for number, name in enumerate(self.groups)}

    def _forget(self, service: _Service) -> None:
        """Take what ran of a service off its nodes."""
        index = self.index
        for group in service.groups:
            for each, kind in zip(group.instances, group.kinds, strict=True):
                ready = each.state == "ready"
                for name, (_, gpus) in zip(each.nodes, kind.pods, strict=True):
                    node = index.get(name)
                    if node is not None:
                        self.used[node] -= gpus
                        if ready:
                            self.delivering[node] -= gpus

    def places(self, level: str) -> list[str]:
        """Domain of every node at a level."""
        found = self._places.get(level)
        if found is None:
            found = [node.domains[level] for node in self.nodes]
            self._places[level] = found
        return found

    def domains(self, level: str) -> set[str]:
        """All domains of a level."""
        found = self._domains.get(level)
        if found is None:
            found = set(self.places(level))
            self._domains[level] = found
        return found

    def _tiers(self) -> list[int]:
        """RDMA tier of every node."""
        levels = self.instance.rdma_levels
        tier = [0] * len(self.nodes)
        for level, rank in ((levels.upper, 1), (levels.lower, 2)):
            if level is None:
                continue
            places = self.places(level)
            types: dict[str, str] = {}
            mixed: set[str] = set()
            for place, node in zip(places, self.nodes, strict=True):
                if node.gpus and types.setdefault(place, node.gpu_type) != node.gpu_type:
                    mixed.add(place)
            if mixed:
                tier = [
                    rank if place in mixed else old for place, old in zip(places, tier, strict=True)
                ]
        return tier

    def _read(self, group: _Running) -> None:
        service, index, used = group.service, self.index, self.used
        if group.domain is None and service.required is not None:
            group.domain = self._main_domain(group, service.required)
        domain, delivering, of_kind = group.domain, self.delivering, service.kinds
        required = None if service.required is None else self.places(service.required)
        preferred = None if service.preferred is None else self.places(service.preferred)
        measured: dict[str | None, int] = {}
        at_home: dict[str | None, int] = {}
        counts: dict[_Kind, int] = {}
        home: str | None
        for each in group.instances:
            kind = of_kind[each.role, each.shape]
            group.kinds.append(kind)
            ready = each.state == "ready"
            if ready:
                counts[kind] = counts.get(kind, 0) + 1
            if len(each.nodes) == 1:
                node, gpus = index[each.nodes[0]], kind.gpus
                used[node] += gpus
                if ready:
                    delivering[node] += gpus
                    if required is not None and required[node] != domain:
                        service.outside += gpus
                if preferred is None:
                    continue
                home = preferred[node]
            else:
                nodes = [index[name] for name in each.nodes]
                for node, (_, gpus) in zip(nodes, kind.pods, strict=True):
                    used[node] += gpus
                    if ready:
                        delivering[node] += gpus
                if ready and not self.inside(nodes, service.required, domain):
                    service.outside += kind.gpus
                if ready and not self.in_one_domain(nodes, kind.level):
                    service.split += kind.gpus
                if service.preferred is None:
                    continue
                home = self.domain(nodes, service.preferred)
            measured[home] = measured.get(home, 0) + kind.gpus
            if ready:
                at_home[home] = at_home.get(home, 0) + kind.gpus
        if measured:
            group.homes = _most(measured)
            service.spill += sum(gpus for at, gpus in at_home.items() if at not in group.homes)
        self._count(group, counts)

    def _count(self, group: _Running, counts: dict[_Kind, int]) -> None:
        service, now = group.service, group.now
        for kind, count in counts.items():
            service.counts[kind] = service.counts.get(kind, 0) + count
            role = kind.role
            units = count * kind.units
            now[role] = now.get(role, 0) + units
            role.now += units
            role.grain = gcd(role.grain, kind.units)
            group.ready += count
        for band in service.bands:
            band.now += band.amount(now)
        if len(now) < len(service.roles):
            for name in service.missing(now):
                service.lacking += service.given.roles[name].shapes[0].gpus
        service.groups.append(group)
        most = service.given.limits.max_instances_per_group
        if most is not None:
            service.oversize += max(0, group.ready - most)

    def _main_domain(self, group: _Running, level: str) -> str:
        """The domain that holds most of a running group's GPUs; of equal ones the first name."""
        places = self.places(level)
        gpus: dict[str, int] = defaultdict(int)
        for each in group.instances:
            pods = group.service.kinds[each.role, each.shape].pods
            for name, (_, count) in zip(each.nodes, pods, strict=True):
                gpus[places[self.index[name]]] += count
        return max(sorted(gpus), key=lambda domain: gpus[domain])

    def placed(self, group: _Running, each: RunningInstance, kind: _Kind) -> _Placed:
        """A running instance."""
        return _Placed(
            kind, [self.index[name] for name in each.nodes], [gpus for _, gpus in kind.pods]
        )

    def inside(self, nodes: Sequence[int], level: str | None, domain: str | None) -> bool:
        if level is None:
            return True
        places = self.places(level)
        return all(places[node] == domain for node in nodes)

    def in_one_domain(self, nodes: Sequence[int], level: str) -> bool:
        if len(nodes) <= 1:
            return True
        if level == NODE_LEVEL:
            return len(set(nodes)) <= 1
        return self.domain(nodes, level) is not None

    def domain(self, nodes: Sequence[int], level: str) -> str | None:
        """The one domain of a level that holds all nodes, if there is one."""
        if not nodes:
            return None
        places = self.places(level)
        first = places[nodes[0]]
        if len(nodes) > 1 and any(places[node] != first for node in nodes):
            return None
        return first


def _most(gpus: dict[str | None, int]) -> set[str]:
    """The domains that hold most."""
    held = {domain: count for domain, count in gpus.items() if domain is not None}
    most = max(held.values(), default=0)
    return {domain for domain, count in held.items() if count == most}


# --------------------------------------------------------------------------------------------
# The state after the plan
# --------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Group:
    """A deployment group that the plan opens, changes, or describes otherwise than it runs."""

    name: str
    service: _Service
    domain: str | None
    running: _Running | None
    given: PlanGroup
    added: Sequence[_Placed] = ()
    moved: Sequence[_Placed] = ()
    distinct: Sequence[_Placed] = ()
    """The added and moved ones, each object once."""
    removed: Sequence[int] = ()
    """Numbers of running instances, as in the next four."""
    left: Sequence[int] = ()
    """Those that are moved."""
    gone: Sequence[int] = ()
    """Ready ones that are no longer where they ran."""
    listed: Mapping[int, int] = field(default_factory=dict)
    """How often the plan lists each."""
    entries: Mapping[int, PlacedInstance] = field(default_factory=dict)
    """The last entry of each."""
    now: Mapping[_Role, int] = field(default_factory=dict)
    after: Mapping[_Role, int] = field(default_factory=dict)
    size: int = 0
    """Delivering instances."""

    @property
    def new(self) -> bool:
        return self.running is None

    @property
    def ready(self) -> int:
        """Instances that deliver now."""
        return 0 if self.running is None else self.running.ready

    @property
    def holds_instances(self) -> bool:
        return self.size > 0 or (self.running is not None and self.running.draining > 0)


class _After:
    """The state after a plan, as its difference from the running state."""

    def __init__(self, now: _Now, plan: Plan) -> None:
        self.now = now
        changed: list[_Group] = []
        opened: list[_Group] = []
        seen: set[str] = set()
        for index, given in enumerate(plan.groups):
            name = given.name
            if name in seen:
                raise InputError(
                    f"groups[{index}].name", f"{name!r} is named twice; merge the entries"
                )
            seen.add(name)
            running = now.groups.get(name)
            if not (
                running is not None
                and not (given.new or given.added or given.removed or given.moved)
                and given.service == running.service.given.name
                and (given.domain is None or given.domain == running.domain)
                and running.stays(given.kept)
            ):
                group = self._read(f"groups[{index}]", given, running)
                (opened if group.running is None else changed).append(group)
        changed.sort(key=lambda group: now.place[group.name])
        self.groups = [*changed, *opened]
        self.arrivals = [(group, placed) for group in self.groups for placed in group.distinct]
        """Every added or moved instance with its group, each object once."""
        self.arriving: dict[int, int] = {}
        """GPUs of what arrives, by node."""
        for _, placed in self.arrivals:
            for node, gpus in zip(placed.nodes, placed.gpus, strict=True):
                self.arriving[node] = self.arriving.get(node, 0) + placed.times * gpus
        self.freed: dict[int, int] = {}
        """GPUs of what leaves, by node."""
        self.departures: list[tuple[_Group, _Placed]] = []
        self.delivered: Delivered = {}
        """Of the roles that the plan's groups change."""
        of_service: dict[_Service, list[_Group]] = defaultdict(list)
        for group in self.groups:
            of_service[group.service].append(group)
            self._settle(group)
        number = now.instance.service_index
        self.of_service = dict(
            sorted(of_service.items(), key=lambda item: number[item[0].given.name])
        )
        """Groups of the services that the plan changes."""

    def _read(self, path: str, given: PlanGroup, running: _Running | None) -> _Group:
        service = self.now.services.get(given.service)
        if service is None:
            raise InputError(f"{path}.service", f"unknown service {given.service!r}")
        if given.new:
            if running is not None:
                raise InputError(
                    f"{path}.name", f"{given.name!r} runs already; a new group needs a new name"
                )
            if given.kept or given.removed or given.moved:
                raise InputError(path, "a new group has only added instances")
            group = _Group(given.name, service, given.domain, None, given)
        else:
            if running is None:
                raise InputError(
                    f"{path}.name", f"no running group {given.name!r}; set new to true to open it"
                )
            if running.service is not service:
                raise InputError(
                    f"{path}.service", f"{given.name!r} belongs to {running.service.given.name!r}"
                )
            group = _Group(given.name, service, running.domain, running, given)
        group.added, group.distinct = self._resolved(f"{path}.added", service, given.added)
        if running is not None and (given.removed or given.moved or not running.stays(given.kept)):
            self._read_running(path, group, running)
        return group

    def _read_running(self, path: str, group: _Group, running: _Running) -> None:
        numbers, given = running.numbered(), group.given
        moved: list[_Placed] = []
        removed: list[int] = []
        left: list[int] = []
        listed: dict[int, int] = {}
        last: dict[int, PlacedInstance] = {}
        for kind in ("kept", "removed", "moved"):
            entries: tuple[PlacedInstance | MovedInstance, ...] = getattr(given, kind)
            for place, entry in enumerate(entries):
                number = numbers.get(entry.name or "")
                if number is None:
                    raise InputError(
                        f"{path}.{kind}[{place}].name",
                        f"no running instance {entry.name!r} in {given.name!r}",
                    )
                each = running.instances[number]
                if entry.role != each.role or entry.shape != each.shape:
                    raise InputError(
                        f"{path}.{kind}[{place}]",
                        f"{entry.name!r} runs as {each.role}/{each.shape}",
                    )
                listed[number] = listed.get(number, 0) + 1
                last[number] = entry
                if kind == "removed":
                    removed.append(number)
                elif kind == "moved":
                    at = f"{path}.moved[{place}]"
                    moved.append(self._placed(at, running.kinds[number], entry))
                    left.append(number)
        group.moved, group.removed, group.left = moved, removed, left
        group.listed, group.entries = listed, last
        group.distinct = [*group.distinct, *moved]
        group.gone = sorted(number for number in {*removed, *left} if running.is_ready(number))

    def _resolved(
        self, path: str, service: _Service, entries: Sequence[PlacedInstance]
    ) -> tuple[list[_Placed], list[_Placed]]:
        """Added instances, all and each object once."""
        kinds, index = service.kinds, self.now.index
        found: list[_Placed] = []
        # A plan of this package shares equal instances; what is the same object is read once.
        known: dict[int, _Placed] = {}
        for place, given in enumerate(entries):
            placed = known.get(id(given))
            if placed is not None:
                placed.times += 1
                found.append(placed)
                continue
            kind = kinds.get((given.role, given.shape))
            if kind is None:
                kind = self._kind(f"{path}[{place}]", service, given)
            pods = given.pods
            node = index.get(pods[0].node) if len(pods) == 1 else None
            if node is None:
                placed = self._placed(f"{path}[{place}]", kind, given)
            else:
                placed = _Placed(kind, (node,), (pods[0].gpus,))
            known[id(given)] = placed
            found.append(placed)
        return found, list(known.values())

    def _kind(self, path: str, service: _Service, given: PlacedInstance) -> _Kind:
        role = service.given.roles.get(given.role)
        if role is None:
            raise InputError(
                f"{path}.role", f"unknown role {given.role!r} of {service.given.name!r}"
            )
        if given.shape not in role.shape_index:
            raise InputError(f"{path}.shape", f"unknown shape {given.shape!r} of {given.role!r}")
        return service.kinds[given.role, given.shape]

    def _placed(self, path: str, kind: _Kind, given: PlacedInstance) -> _Placed:
        nodes = []
        for place, pod in enumerate(given.pods):
            node = self.now.index.get(pod.node)
            if node is None:
                raise InputError(f"{path}.pods[{place}].node", f"unknown node {pod.node!r}")
            nodes.append(node)
        return _Placed(kind, nodes, [pod.gpus for pod in given.pods])

    def _settle(self, group: _Group) -> None:
        """Work out what a group delivers, and what it frees."""
        running = group.running
        change: Delivered = {}
        if running is not None:
            group.now = running.now
            group.size = running.ready - len(group.gone)
            for number in group.gone:
                kind = running.kinds[number]
                placed = self.now.placed(running, running.instances[number], kind)
                self.departures.append((group, placed))
                change[kind.role] = change.get(kind.role, 0) - kind.units
                for node, gpus in zip(placed.nodes, placed.gpus, strict=True):
                    self.freed[node] = self.freed.get(node, 0) + gpus
        for placed in group.distinct:
            kind = placed.kind
            if len(placed.nodes) == len(kind.pods):
                change[kind.role] = change.get(kind.role, 0) + placed.times * kind.units
                group.size += placed.times
        after = dict(group.now)
        group.after = after
        for role, units in change.items():
            after[role] = after.get(role, 0) + units
            self.delivered[role] = self.delivered.get(role, role.now) + units

    def staying(self, node: int) -> int:
        """GPUs of what stays on a node."""
        return self.now.used[node] - self.freed.get(node, 0)

    def group_count(self, service: _Service) -> int:
        """Groups of a service that hold an instance."""
        count = len(service.groups)
        for group in self.of_service.get(service, ()):
            count += group.holds_instances - (group.running is not None)
        return count


# --------------------------------------------------------------------------------------------
# Constraints: what a plan leaves as it is breaks none
# --------------------------------------------------------------------------------------------


def _in_order(
    groups: Iterable[_Group], found: dict[_Placed, list[Violation]]
) -> Iterator[Violation]:
    """What was found of each instance, in the order and as often as the plan lists it."""
    if found:
        for group in groups:
            for placed in (*group.added, *group.moved):
                yield from found.get(placed, ())


def _capacity(after: _After) -> Iterator[Violation]:
    """What is placed on a node fits its free GPUs of its type."""
    nodes = after.now.nodes
    found: dict[_Placed, list[Violation]] = {}
    for group, placed in after.arrivals:
        kind = placed.kind
        for number, gpus, (gpu_type, needed) in zip(
            placed.nodes, placed.gpus, kind.pods, strict=False
        ):
            node = nodes[number]
            if node.gpu_type != gpu_type:
                message = (
                    f"{group.name}: a {kind.role.name} pod needs {gpu_type}, "
                    f"the node has {node.gpu_type}"
                )
                found.setdefault(placed, []).append(
                    Violation(constraint="capacity", subject=node.name, message=message)
                )
            if gpus != needed:
                message = (
                    f"{group.name}: a {kind.role.name} pod of shape {kind.shape.name} "
                    f"takes {needed} GPUs, the plan says {gpus}"
                )
                found.setdefault(placed, []).append(
                    Violation(constraint="capacity", subject=node.name, message=message)
                )
    yield from _in_order(after.groups, found)
    for number, gpus in after.arriving.items():
        node = nodes[number]
        if not node.schedulable:
            yield Violation(
                constraint="capacity", subject=node.name, message="the node is cordoned"
            )
        total, limit = after.staying(number) + gpus, after.now.limit[number]
        if total > limit:
            yield Violation(
                constraint="capacity",
                subject=node.name,
                message=f"{total} GPUs in use, {limit} of {node.gpus} can be used",
            )


def _colocation(after: _After) -> Iterator[Violation]:
    """Every instance of a group lies in the group's domain."""
    now = after.now
    for group in after.groups:
        level, domain = group.service.required, group.domain
        stated = group.given.domain
        if group.new:
            if (level is None) != (domain is None) or (
                level is not None and domain not in now.domains(level)
            ):
                yield Violation(
                    constraint="colocation",
                    subject=group.name,
                    message=f"its domain {domain!r} is not a domain of the required level "
                    f"{level!r}",
                )
                continue
        elif stated is not None and stated != domain:
            yield Violation(
                constraint="colocation",
                subject=group.name,
                message=f"the group is bound to {domain!r}, the plan says {stated!r}",
            )
        if level is None:
            continue
        places = now.places(level)
        found: dict[_Placed, list[Violation]] = {}
        for placed in group.distinct:
            for node in placed.nodes:
                if places[node] != domain:
                    message = f"a {placed.kind.role.name} instance lies outside {level} {domain!r}"
                    found[placed] = [
                        Violation(constraint="colocation", subject=group.name, message=message)
                    ]
        yield from _in_order([group], found)


def _integrity(after: _After) -> Iterator[Violation]:
    """The pods of one instance lie in one domain of the shape's level, all or none."""
    found: dict[_Placed, list[Violation]] = {}
    for group, placed in after.arrivals:
        kind, nodes = placed.kind, placed.nodes
        wanted = len(kind.pods)
        if len(nodes) != wanted:
            message = f"a {kind.role.name} instance has {len(nodes)} of {wanted} pods"
        elif wanted > 1 and not after.now.in_one_domain(nodes, kind.level):
            message = (
                f"a {kind.role.name} instance is split over several domains of level {kind.level}"
            )
        else:
            continue
        found[placed] = [Violation(constraint="integrity", subject=group.name, message=message)]
    yield from _in_order(after.groups, found)


def _ratio(after: _After) -> Iterator[Violation]:
    """Every group's delivered capacities are inside the band."""
    for group in after.groups:
        service = group.service
        if group.after == group.now:
            continue
        for role in sorted(service.missing(group.after) - service.missing(group.now)):
            yield Violation(
                constraint="ratio",
                subject=group.name,
                message=f"the group delivers, but has no {role}",
            )
        for band in service.bands:
            if band.amount(group.after) > band.amount(group.now):
                above, below = (
                    Fraction(group.after.get(role, 0), service.scale)
                    for role in (band.above, band.below)
                )
                low, high = band.given.min, band.given.max
                top = "" if high is None else f" to {float(high):g}"
                yield Violation(
                    constraint="ratio",
                    subject=group.name,
                    message=f"{band.given.numerator} : {band.given.denominator} is "
                    f"{float(above):g} : {float(below):g}, the band is {float(low):g}{top}",
                )


def _target(after: _After) -> Iterator[Violation]:
    """A role delivers no more than its target needs."""
    for groups in after.of_service.values():
        added: Delivered = {}
        least: Delivered = {}
        for group in groups:
            for placed in group.distinct[: len(group.distinct) - len(group.moved)]:
                role, units = placed.kind.role, placed.kind.units
                added[role] = added.get(role, 0) + placed.times * units
                least[role] = min(least.get(role, units), units)
        for role, units in added.items():
            delivered = role.now + units
            if delivered - least[role] >= role.target:
                yield Violation(
                    constraint="target",
                    subject=f"{role.service}/{role.name}",
                    message="an added instance is superfluous: "
                    f"{float(Fraction(delivered, role.scale)):g} delivered, "
                    f"target {float(role.given.target):g}",
                )


def _running(after: _After) -> Iterator[Violation]:
    """What runs stays, unless its role scales in or a migration is allowed."""
    removed: Delivered = {}
    moves = 0
    for group in after.groups:
        moves += len(group.moved)
        running = group.running
        if running is None or not group.listed:
            continue
        for number, times in group.listed.items():
            if times > 1:
                yield Violation(
                    constraint="running",
                    subject=group.name,
                    message=f"instance {running.instances[number].name} is listed {times} times",
                )
        for number in (*group.removed, *group.left):
            if not running.is_ready(number):
                yield Violation(
                    constraint="running",
                    subject=group.name,
                    message=f"instance {running.instances[number].name} is draining and cannot "
                    "be touched",
                )
        for number in group.removed:
            if running.is_ready(number):
                kind = running.kinds[number]
                removed[kind.role] = removed.get(kind.role, 0) + kind.units
        for each in _misplaced(group, running):
            yield Violation(
                constraint="running",
                subject=group.name,
                message=f"instance {each.name} is kept but on other nodes",
            )
    for role, units in removed.items():
        surplus = max(0, role.now - role.target)
        if units > surplus:
            yield Violation(
                constraint="running",
                subject=f"{role.service}/{role.name}",
                message=f"{float(Fraction(units, role.scale)):g} capacity removed, only "
                f"{float(Fraction(surplus, role.scale)):g} is above the target",
            )
    limit = after.now.instance.cycle.max_migrations
    if moves > limit:
        yield Violation(
            constraint="running", subject="cycle", message=f"{moves} migrations, {limit} allowed"
        )


def _misplaced(group: _Group, running: _Running) -> Iterator[RunningInstance]:
    """Instances that stay but are listed on other nodes, the ready ones first."""
    away = {*group.removed, *group.gone}
    for number in sorted(group.entries, key=lambda each: (not running.is_ready(each), each)):
        pods = group.entries[number].pods
        if pods and number not in away:
            each = running.instances[number]
            runs = [
                (node, gpus)
                for node, (_, gpus) in zip(each.nodes, running.kinds[number].pods, strict=True)
            ]
            if [(pod.node, pod.gpus) for pod in pods] != runs:
                yield each


def _no_reuse(after: _After) -> Iterator[Violation]:
    """GPUs freed in a cycle are not used in the same cycle."""
    now = after.now
    if now.instance.cycle.reuse_freed or not after.freed:
        return
    for node, gpus in after.arriving.items():
        limit = now.limit[node]
        if after.staying(node) + gpus <= limit < now.used[node] + gpus:
            again = min(gpus, now.used[node] + gpus - limit)
            yield Violation(
                constraint="no_reuse",
                subject=now.nodes[node].name,
                message=f"{again} GPUs freed in this cycle are used again",
            )


def _limits(after: _After) -> Iterator[Violation]:
    """Group count and size limits; role minimum."""
    for service, groups in after.of_service.items():
        limits = service.given.limits
        most = limits.max_groups
        if most is not None:
            count = after.group_count(service)
            if count > max(most, len(service.groups)):
                yield Violation(
                    constraint="limits",
                    subject=service.given.name,
                    message=f"{count} groups, at most {most}",
                )
        most = limits.max_instances_per_group
        if most is not None:
            for group in groups:
                if group.size > max(most, group.ready):
                    yield Violation(
                        constraint="limits",
                        subject=group.name,
                        message=f"{group.size} instances in the group, at most {most}",
                    )
        for role in service.roles.values():
            delivered = after.delivered.get(role, role.now)
            if delivered < min(role.min, role.now):
                yield Violation(
                    constraint="limits",
                    subject=f"{role.service}/{role.name}",
                    message=f"delivers {float(Fraction(delivered, role.scale)):g}, "
                    f"minimum {float(role.given.min):g}",
                )


_RULES = (
    _capacity,
    _colocation,
    _integrity,
    _ratio,
    _target,
    _running,
    _no_reuse,
    _limits,
)


# --------------------------------------------------------------------------------------------
# Objective
# --------------------------------------------------------------------------------------------


def _repairs(after: _After) -> dict[str, Fraction]:
    """What stays broken, in GPUs, by constraint."""
    now = after.now
    over, outside, split = now.over, now.outside, now.split
    for node in after.freed.keys() | after.arriving.keys():
        limit = now.limit[node]
        used = after.staying(node) + after.arriving.get(node, 0)
        over += max(0, used - limit) - max(0, now.used[node] - limit)
    for group, placed in after.departures:
        if not now.inside(placed.nodes, group.service.required, group.domain):
            outside -= placed.kind.gpus
        if not now.in_one_domain(placed.nodes, placed.kind.level):
            split -= placed.kind.gpus
    bands = {
        band: band.now for service in now.services.values() for band in service.bands if band.now
    }
    lacking, limits = now.lacking, now.oversize
    for group in after.groups:
        service = group.service
        for band in service.bands:
            change = band.amount(group.after) - band.amount(group.now)
            if change:
                bands[band] = bands.get(band, 0) + change
        roles = service.given.roles
        lacking += sum(roles[name].shapes[0].gpus for name in service.missing(group.after))
        lacking -= sum(roles[name].shapes[0].gpus for name in service.missing(group.now))
        most = service.given.limits.max_instances_per_group
        if most is not None:
            limits += max(0, group.size - most) - max(0, group.ready - most)
    for service in now.services.values():
        most = service.given.limits.max_groups
        if most is not None:
            limits += max(0, after.group_count(service) - most)
    return {
        "capacity": Fraction(over),
        "colocation": Fraction(outside),
        "integrity": Fraction(split),
        "ratio": lacking
        + _sum((amount, band.above.gpus_per_unit / band.parts) for band, amount in bands.items()),
        "target": _sum(
            (role.excess(after.delivered.get(role, role.now)), role.gpus_per_unit)
            for service in now.services.values()
            for role in service.roles.values()
            if role.now > role.target
        ),
        "limits": Fraction(limits),
    }


def _costs(after: _After) -> dict[str, Fraction]:
    """Amount of each named cost."""
    now = after.now
    tier, on_tier, spill = now.tier, list(now.on_tier), now.spill
    counts: dict[_Kind, int] = {}
    for group, placed in after.departures:
        counts[placed.kind] = counts.get(placed.kind, 0) - 1
        for node, gpus in zip(placed.nodes, placed.gpus, strict=True):
            on_tier[tier[node]] -= gpus
        spill -= _spill(now, group.service.preferred, _homes(now, group), placed)
    for group in after.groups:
        level = group.service.preferred
        homes = _homes(now, group)
        for placed in group.distinct:
            kind, times = placed.kind, placed.times
            if len(placed.nodes) != len(kind.pods):
                continue
            counts[kind] = counts.get(kind, 0) + times
            for node, gpus in zip(placed.nodes, placed.gpus, strict=True):
                on_tier[tier[node]] += times * gpus
            if level is not None:
                spill += times * _spill(now, level, homes, placed)
    prices = now.instance.objective.tier_prices
    return {
        "rdma": _sum(
            (gpus, getattr(prices, name)) for name, gpus in zip(TIERS, on_tier, strict=True)
        ),
        "shape": now.shape_cost + _sum((count, kind.cost) for kind, count in counts.items()),
        "spill": Fraction(spill),
        "new_group": Fraction(sum(group.new and bool(group.added) for group in after.groups)),
        "fragmentation": Fraction(len(_broken_nodes(after))),
        "migration": Fraction(sum(len(group.moved) for group in after.groups)),
    }


def _spill(now: _Now, level: str | None, homes: set[str], placed: _Placed) -> int:
    """GPUs of an instance that is not wholly inside a home domain."""
    if level is None or now.domain(placed.nodes, level) in homes:
        return 0
    return sum(placed.gpus)


def _homes(now: _Now, group: _Group) -> set[str]:
    """Home domains of a group at the preferred level."""
    level = group.service.preferred
    if group.running is not None:
        return group.running.homes
    if level is None:
        return set()
    gpus: dict[str | None, int] = {}
    for placed in group.distinct:
        home = now.domain(placed.nodes, level)
        gpus[home] = gpus.get(home, 0) + placed.times * sum(placed.gpus)
    best = _most(gpus)
    return {min(best)} if best else best


def _broken_nodes(after: _After) -> set[int]:
    """Wholly free nodes that get a pod smaller than the node.

    The pods of a shape of level ``node`` are taken together.
    """
    used, nodes = after.now.used, after.now.nodes
    found = set()
    for _, placed in after.arrivals:
        together = sum(placed.gpus) if placed.kind.shape.level == NODE_LEVEL else None
        for number, gpus in zip(placed.nodes, placed.gpus, strict=True):
            if used[number] == 0:
                node = nodes[number]
                if (gpus if together is None else together) < node.gpus and node.reserved == 0:
                    found.add(number)
    return found
