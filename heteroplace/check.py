"""The checker and the evaluator: what docs/problem.md says, recomputed from the plan alone.

Nothing here is shared with the formulation or the greedy, so that a mistake there is seen here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm

from heteroplace.errors import InputError
from heteroplace.faults import NODE_LEVEL
from heteroplace.instance import Instance, Node, Role, Service, Shape
from heteroplace.plan import (
    Evaluation,
    MovedInstance,
    PlacedInstance,
    Plan,
    PlanGroup,
    RoleOutcome,
    Step,
    Violation,
)

ZERO = Fraction(0)


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
    return _violations(_State(instance, plan))


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
    return _evaluation(_State(instance, plan))


def check_and_evaluate(instance: Instance, plan: Plan) -> tuple[list[Violation], Evaluation]:
    """:func:`check` and :func:`evaluate` in one pass over the plan."""
    state = _State(instance, plan)
    return _violations(state), _evaluation(state)


def _violations(state: _State) -> list[Violation]:
    return [violation for rule in _RULES for violation in rule(state)]


def _evaluation(state: _State) -> Evaluation:
    instance = state.instance
    roles = [
        _outcome(state, service, name) for service in instance.services for name in service.roles
    ]
    by_service: dict[str, list[RoleOutcome]] = defaultdict(list)
    for outcome in roles:
        by_service[outcome.service].append(outcome)
    steps = []
    for priority in instance.priorities:
        members = [each for each in instance.services if each.priority == priority]
        pairs = [
            (outcome, service.roles[outcome.role], state.now[service.name, outcome.role])
            for service in members
            for outcome in by_service[service.name]
        ]
        if any(now < role.min for _, role, now in pairs):
            short = sum(
                (
                    max(ZERO, role.min - got.delivered) * role.gpus_per_capacity
                    for got, role, _ in pairs
                ),
                ZERO,
            )
            steps.append(Step(name=f"minimum[{priority}]", value=short))
        unmet = sum((outcome.unmet_gpus for outcome, _, _ in pairs), ZERO)
        steps.append(Step(name=f"unmet[{priority}]", value=unmet))
    repairs = _repairs(state)
    steps.append(Step(name="repair", value=sum(repairs.values(), ZERO)))
    costs = _costs(state)
    weights = instance.objective.weights
    total = sum((getattr(weights, name) * amount for name, amount in costs.items()), ZERO)
    steps.append(Step(name="cost", value=total))
    return Evaluation(steps=tuple(steps), costs=costs, repairs=repairs, roles=tuple(roles))


# --------------------------------------------------------------------------------------------
# The state after the plan
# --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Placed:
    """An instance with its pods' nodes, after name resolution."""

    name: str
    role: str
    shape: Shape
    nodes: tuple[Node, ...]
    gpus: tuple[int, ...]
    given: PlacedInstance | None = None

    @property
    def total(self) -> int:
        return sum(self.gpus)

    @property
    def whole(self) -> bool:
        """Whether all pods are placed; a part of an instance delivers nothing."""
        return len(self.nodes) == len(self.shape.pod_list)


@dataclass(slots=True)
class _Group:
    """A deployment group before and after."""

    name: str
    service: Service
    domain: str | None
    new: bool
    ready: list[_Placed] = field(default_factory=list)
    draining: list[_Placed] = field(default_factory=list)
    added: list[_Placed] = field(default_factory=list)
    kept: list[_Placed] = field(default_factory=list)
    removed: list[_Placed] = field(default_factory=list)
    moved: list[_Placed] = field(default_factory=list)
    listed: Counter[str] = field(default_factory=Counter)
    given: PlanGroup | None = None
    now: dict[str, Fraction] = field(default_factory=dict)
    after: dict[str, Fraction] = field(default_factory=dict)

    def delivering(self) -> Iterator[_Placed]:
        yield from self.kept
        for each in (*self.moved, *self.added):
            if each.whole:
                yield each


class _State:
    def __init__(self, instance: Instance, plan: Plan) -> None:
        self.instance = instance
        self.nodes = {node.name: node for node in instance.nodes}
        self.services = {service.name: service for service in instance.services}
        self.groups: dict[str, _Group] = {}
        for running in instance.running:
            service = self.services[running.service]
            group = _Group(running.name, service, running.domain, new=False)
            for each in running.instances:
                role = service.roles[each.role]
                shape = role.shapes[role.shape_index[each.shape]]
                placed = _Placed(
                    str(each.name),
                    each.role,
                    shape,
                    tuple(self.nodes[name] for name in each.nodes),
                    tuple(gpus for _, gpus in shape.pod_list),
                )
                (group.ready if each.state == "ready" else group.draining).append(placed)
            if group.domain is None and service.affinity.required is not None:
                group.domain = _main_domain(group, service.affinity.required)
            self.groups[running.name] = group
        self.now: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
        for group in self.groups.values():
            group.now = _delivered(group.ready)
            for name, capacity in group.now.items():
                self.now[group.service.name, name] += capacity
        seen: set[str] = set()
        for index, given in enumerate(plan.groups):
            path = f"groups[{index}]"
            if given.name in seen:
                raise InputError(
                    f"{path}.name", f"{given.name!r} is named twice; merge the entries"
                )
            seen.add(given.name)
            self._read_group(path, given)
        for group in self.groups.values():
            gone = {each.name for each in (*group.removed, *group.moved)}
            group.kept = [each for each in group.ready if each.name not in gone]
        self.after: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
        self._by_service: dict[str, list[_Group]] = defaultdict(list)
        for group in self.groups.values():
            self._by_service[group.service.name].append(group)
            unchanged = len(group.kept) == len(group.ready) and not (group.added or group.moved)
            group.after = group.now if unchanged else _delivered(group.delivering())
            for name, capacity in group.after.items():
                self.after[group.service.name, name] += capacity
        self.tiers = _tiers(instance)

    def _read_group(self, path: str, given: PlanGroup) -> None:
        service = self.services.get(given.service)
        if service is None:
            raise InputError(f"{path}.service", f"unknown service {given.service!r}")
        if given.new:
            if given.name in self.groups:
                raise InputError(
                    f"{path}.name", f"{given.name!r} runs already; a new group needs a new name"
                )
            if given.kept or given.removed or given.moved:
                raise InputError(path, "a new group has only added instances")
            group = _Group(given.name, service, given.domain, new=True)
            self.groups[given.name] = group
        else:
            known = self.groups.get(given.name)
            if known is None or known.new:
                raise InputError(
                    f"{path}.name", f"no running group {given.name!r}; set new to true to open it"
                )
            group = known
            if group.service is not service:
                raise InputError(
                    f"{path}.service", f"{given.name!r} belongs to {group.service.name!r}"
                )
        group.given = given
        for index, added in enumerate(given.added):
            group.added.append(self._resolve(f"{path}.added[{index}]", service, added))
        ready = {placed.name: placed for placed in group.ready}
        draining = {placed.name: placed for placed in group.draining}
        for kind in ("kept", "removed", "moved"):
            entries: tuple[PlacedInstance | MovedInstance, ...] = getattr(given, kind)
            for index, entry in enumerate(entries):
                name = entry.name or ""
                running = ready.get(name) or draining.get(name)
                if running is None:
                    raise InputError(
                        f"{path}.{kind}[{index}].name",
                        f"no running instance {entry.name!r} in {given.name!r}",
                    )
                if (running.role, running.shape.name) != (entry.role, entry.shape):
                    raise InputError(
                        f"{path}.{kind}[{index}]",
                        f"{entry.name!r} runs as {running.role}/{running.shape.name}",
                    )
                group.listed[name] += 1
                running.given = entry
                if kind == "removed":
                    group.removed.append(running)
                elif kind == "moved":
                    group.moved.append(self._resolve(f"{path}.moved[{index}]", service, entry))

    def _resolve(self, path: str, service: Service, given: PlacedInstance) -> _Placed:
        role = service.roles.get(given.role)
        if role is None:
            raise InputError(f"{path}.role", f"unknown role {given.role!r} of {service.name!r}")
        if given.shape not in role.shape_index:
            raise InputError(f"{path}.shape", f"unknown shape {given.shape!r} of {given.role!r}")
        nodes = []
        for index, pod in enumerate(given.pods):
            if pod.node not in self.nodes:
                raise InputError(f"{path}.pods[{index}].node", f"unknown node {pod.node!r}")
            nodes.append(self.nodes[pod.node])
        return _Placed(
            given.name or "",
            given.role,
            role.shapes[role.shape_index[given.shape]],
            tuple(nodes),
            tuple(pod.gpus for pod in given.pods),
            given,
        )

    def placed_now(self) -> Iterator[tuple[_Group, _Placed]]:
        """Every added or moved instance with its group."""
        for group in self.groups.values():
            for placed in (*group.added, *group.moved):
                yield group, placed

    def of_service(self, service: Service) -> list[_Group]:
        return self._by_service[service.name]

    @cached_property
    def before(self) -> Counter[str]:
        """GPUs per node of what runs now."""
        return self._used("ready", "draining")

    @cached_property
    def staying(self) -> Counter[str]:
        """GPUs per node of what stays."""
        return self._used("kept", "draining")

    @cached_property
    def arriving(self) -> Counter[str]:
        """GPUs per node of what arrives."""
        return self._used("added", "moved")

    def _used(self, *kinds: str) -> Counter[str]:
        used: dict[str, int] = defaultdict(int)
        for group in self.groups.values():
            for kind in kinds:
                placed: _Placed
                for placed in getattr(group, kind):
                    for node, gpus in zip(placed.nodes, placed.gpus, strict=True):
                        used[node.name] += gpus
        return Counter(used)


def _main_domain(group: _Group, level: str) -> str:
    """The domain that holds most of a running group's GPUs; the first such in the file."""
    gpus: Counter[str] = Counter()
    for placed in (*group.ready, *group.draining):
        for node, count in zip(placed.nodes, placed.gpus, strict=True):
            gpus[node.domains[level]] += count
    return max(sorted(gpus), key=lambda domain: gpus[domain])


def _tiers(instance: Instance) -> dict[str, str]:
    """RDMA tier of every node by name."""
    levels = instance.rdma_levels
    types: dict[tuple[str, str], set[str]] = defaultdict(set)
    for node in instance.nodes:
        if node.gpus:
            for level in (levels.lower, levels.upper):
                if level is not None:
                    types[level, node.domains[level]].add(node.gpu_type)
    tiers = {}
    for node in instance.nodes:
        if len(types[levels.lower, node.domains[levels.lower]]) > 1:
            tiers[node.name] = "high"
        elif levels.upper is not None and len(types[levels.upper, node.domains[levels.upper]]) > 1:
            tiers[node.name] = "medium"
        else:
            tiers[node.name] = "low"
    return tiers


def _in_one_domain(nodes: Sequence[Node], level: str) -> bool:
    if len(nodes) <= 1:
        return True
    if level == NODE_LEVEL:
        return len({node.name for node in nodes}) <= 1
    return len({node.domains[level] for node in nodes}) <= 1


def _shape_level(shape: Shape, instance: Instance) -> str:
    if len(shape.pod_list) == 1:
        return NODE_LEVEL
    return shape.level or instance.levels[-1]


def _inside(placed: _Placed, level: str | None, domain: str | None) -> bool:
    return level is None or all(node.domains[level] == domain for node in placed.nodes)


# --------------------------------------------------------------------------------------------
# Constraints
# --------------------------------------------------------------------------------------------


def _capacity(state: _State) -> Iterator[Violation]:
    """What is placed on a node fits its free GPUs of its type."""
    arriving: Counter[str] = Counter()
    for group, placed in state.placed_now():
        wanted = placed.shape.pod_list
        for index, (node, gpus) in enumerate(zip(placed.nodes, placed.gpus, strict=True)):
            arriving[node.name] += gpus
            if index >= len(wanted):
                continue
            gpu_type, needed = wanted[index]
            if node.gpu_type != gpu_type:
                yield Violation(
                    constraint="capacity",
                    subject=node.name,
                    message=f"{group.name}: a {placed.role} pod needs {gpu_type}, "
                    f"the node has {node.gpu_type}",
                )
            if gpus != needed:
                yield Violation(
                    constraint="capacity",
                    subject=node.name,
                    message=f"{group.name}: a {placed.role} pod of shape {placed.shape.name} "
                    f"takes {needed} GPUs, the plan says {gpus}",
                )
    staying = state.staying
    for name in arriving:
        node = state.nodes[name]
        if not node.schedulable:
            yield Violation(constraint="capacity", subject=name, message="the node is cordoned")
        total, limit = staying[name] + arriving[name], node.gpus - node.reserved
        if total > limit:
            yield Violation(
                constraint="capacity",
                subject=name,
                message=f"{total} GPUs in use, {limit} of {node.gpus} can be used",
            )


def _colocation(state: _State) -> Iterator[Violation]:
    """Every instance of a group lies in the group's domain."""
    known = {
        (level, domain) for node in state.instance.nodes for level, domain in node.domains.items()
    }
    for group in state.groups.values():
        level = group.service.affinity.required
        given = group.given
        if group.new:
            if (level is None) != (group.domain is None) or (
                level is not None and (level, group.domain) not in known
            ):
                yield Violation(
                    constraint="colocation",
                    subject=group.name,
                    message=f"its domain {group.domain!r} is not a domain of the required level "
                    f"{level!r}",
                )
                continue
        elif given is not None and given.domain is not None and given.domain != group.domain:
            yield Violation(
                constraint="colocation",
                subject=group.name,
                message=f"the group is bound to {group.domain!r}, the plan says {given.domain!r}",
            )
        for placed in (*group.added, *group.moved):
            if not _inside(placed, level, group.domain):
                yield Violation(
                    constraint="colocation",
                    subject=group.name,
                    message=f"a {placed.role} instance lies outside {level} {group.domain!r}",
                )


def _integrity(state: _State) -> Iterator[Violation]:
    """The pods of one instance lie in one domain of the shape's level, all or none."""
    for group, placed in state.placed_now():
        wanted = placed.shape.pod_list
        level = _shape_level(placed.shape, state.instance)
        if len(placed.nodes) != len(wanted):
            message = f"a {placed.role} instance has {len(placed.nodes)} of {len(wanted)} pods"
        elif not _in_one_domain(placed.nodes, level):
            message = f"a {placed.role} instance is split over several domains of level {level}"
        else:
            continue
        yield Violation(constraint="integrity", subject=group.name, message=message)


def _delivered(placed: Iterable[_Placed]) -> dict[str, Fraction]:
    # Equal instances are counted first: exact fractions are slow to add one by one.
    counts: Counter[tuple[str, int]] = Counter()
    shapes: dict[tuple[str, int], Shape] = {}
    for each in placed:
        key = (each.role, id(each.shape))
        counts[key] += 1
        shapes[key] = each.shape
    total: dict[str, Fraction] = defaultdict(Fraction)
    for key, count in counts.items():
        total[key[0]] += count * shapes[key].capacity
    return total


def _band_amounts(service: Service, delivered: dict[str, Fraction]) -> list[Fraction]:
    """How far each band is broken, in capacity of its numerator."""
    amounts = []
    for band in service.ratios:
        above, below = delivered.get(band.numerator, ZERO), delivered.get(band.denominator, ZERO)
        amount = max(ZERO, band.min * below - above)
        if band.max is not None:
            amount = max(amount, above - band.max * below)
        amounts.append(amount)
    return amounts


def _missing(service: Service, delivered: dict[str, Fraction]) -> set[str]:
    if not any(delivered.values()):
        return set()
    return {role for role in service.roles if not delivered.get(role)}


def _ratio(state: _State) -> Iterator[Violation]:
    """Every group's delivered capacities are inside the band."""
    for group in state.groups.values():
        now, after = group.now, group.after
        if now is after:
            continue
        for role in sorted(_missing(group.service, after) - _missing(group.service, now)):
            yield Violation(
                constraint="ratio",
                subject=group.name,
                message=f"the group delivers, but has no {role}",
            )
        before = _band_amounts(group.service, now)
        for band, old, new in zip(
            group.service.ratios, before, _band_amounts(group.service, after), strict=True
        ):
            if new > old:
                top = "" if band.max is None else f" to {float(band.max):g}"
                yield Violation(
                    constraint="ratio",
                    subject=group.name,
                    message=f"{band.numerator} : {band.denominator} is "
                    f"{float(after.get(band.numerator, ZERO)):g} : "
                    f"{float(after.get(band.denominator, ZERO)):g}, "
                    f"the band is {float(band.min):g}{top}",
                )


def _target(state: _State) -> Iterator[Violation]:
    """A role delivers no more than its target needs."""
    for service in state.instance.services:
        added: dict[str, list[Fraction]] = defaultdict(list)
        for group in state.of_service(service):
            for placed in group.added:
                added[placed.role].append(placed.shape.capacity)
        for role, capacities in added.items():
            target = service.roles[role].target
            delivered = state.now[service.name, role] + sum(capacities, ZERO)
            if delivered - min(capacities) >= target:
                yield Violation(
                    constraint="target",
                    subject=f"{service.name}/{role}",
                    message=f"an added instance is superfluous: {float(delivered):g} delivered, "
                    f"target {float(target):g}",
                )


def _running(state: _State) -> Iterator[Violation]:
    """What runs stays, unless its role scales in or a migration is allowed."""
    removed: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    moves = 0
    for group in state.groups.values():
        draining = {placed.name for placed in group.draining}
        for name, times in group.listed.items():
            if times > 1:
                yield Violation(
                    constraint="running",
                    subject=group.name,
                    message=f"instance {name} is listed {times} times",
                )
        moves += len(group.moved)
        for placed in (*group.removed, *group.moved):
            if placed.name in draining:
                yield Violation(
                    constraint="running",
                    subject=group.name,
                    message=f"instance {placed.name} is draining and cannot be touched",
                )
        for placed in group.removed:
            if placed.name not in draining:
                removed[group.service.name, placed.role] += placed.shape.capacity
        gone = {each.name for each in group.removed}
        for placed in (*group.kept, *group.draining):
            given = placed.given
            if given is not None and given.pods and placed.name not in gone:
                where = tuple((pod.node, pod.gpus) for pod in given.pods)
                runs = tuple(
                    (node.name, gpus) for node, gpus in zip(placed.nodes, placed.gpus, strict=True)
                )
                if where != runs:
                    yield Violation(
                        constraint="running",
                        subject=group.name,
                        message=f"instance {placed.name} is kept but on other nodes",
                    )
    for (service, role), capacity in removed.items():
        surplus = max(ZERO, state.now[service, role] - state.services[service].roles[role].target)
        if capacity > surplus:
            yield Violation(
                constraint="running",
                subject=f"{service}/{role}",
                message=f"{float(capacity):g} capacity removed, only {float(surplus):g} is above "
                "the target",
            )
    limit = state.instance.cycle.max_migrations
    if moves > limit:
        yield Violation(
            constraint="running", subject="cycle", message=f"{moves} migrations, {limit} allowed"
        )


def _no_reuse(state: _State) -> Iterator[Violation]:
    """GPUs freed in a cycle are not used in the same cycle."""
    if state.instance.cycle.reuse_freed:
        return
    before, staying = state.before, state.staying
    for name, gpus in state.arriving.items():
        node = state.nodes[name]
        limit = node.gpus - node.reserved
        if staying[name] + gpus <= limit < before[name] + gpus:
            again = min(gpus, before[name] + gpus - limit)
            yield Violation(
                constraint="no_reuse",
                subject=name,
                message=f"{again} GPUs freed in this cycle are used again",
            )


def _limits(state: _State) -> Iterator[Violation]:
    """Group count and size limits; role minimum."""
    for service in state.instance.services:
        groups = state.of_service(service)
        most = service.limits.max_groups
        if most is not None:
            before, after = _group_counts(groups)
            if after > max(most, before):
                yield Violation(
                    constraint="limits",
                    subject=service.name,
                    message=f"{after} groups, at most {most}",
                )
        most = service.limits.max_instances_per_group
        for group in groups:
            size = sum(1 for _ in group.delivering())
            if most is not None and size > max(most, len(group.ready)):
                yield Violation(
                    constraint="limits",
                    subject=group.name,
                    message=f"{size} instances in the group, at most {most}",
                )
        for name, role in service.roles.items():
            floor = min(role.min, state.now[service.name, name])
            if state.after[service.name, name] < floor:
                yield Violation(
                    constraint="limits",
                    subject=f"{service.name}/{name}",
                    message=f"delivers {float(state.after[service.name, name]):g}, "
                    f"minimum {float(role.min):g}",
                )


def _group_counts(groups: list[_Group]) -> tuple[int, int]:
    before = sum(1 for group in groups if group.ready or group.draining)
    after = sum(1 for group in groups if group.draining or any(True for _ in group.delivering()))
    return before, after


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


def _outcome(state: _State, service: Service, name: str) -> RoleOutcome:
    role = service.roles[name]
    delivered = state.after[service.name, name]
    unmet = max(ZERO, role.target - delivered)
    return RoleOutcome(
        service=service.name,
        role=name,
        target=role.target,
        delivered=delivered,
        unmet=unmet,
        unmet_gpus=unmet * role.gpus_per_capacity,
    )


def _repairs(state: _State) -> dict[str, Fraction]:
    """What stays broken, in GPUs, by constraint."""
    amount = dict.fromkeys(
        ("capacity", "colocation", "integrity", "ratio", "target", "limits"), ZERO
    )
    for name, used in (state.staying + state.arriving).items():
        node = state.nodes[name]
        amount["capacity"] += max(0, used - (node.gpus - node.reserved))
    for group in state.groups.values():
        service = group.service
        level = service.affinity.required
        for placed in group.kept:
            if not _inside(placed, level, group.domain):
                amount["colocation"] += placed.total
            if len(placed.nodes) > 1 and not _in_one_domain(
                placed.nodes, _shape_level(placed.shape, state.instance)
            ):
                amount["integrity"] += placed.total
        after = group.after
        for band, out in zip(service.ratios, _band_amounts(service, after), strict=True):
            amount["ratio"] += out * service.roles[band.numerator].gpus_per_capacity
        for role in _missing(service, after):
            amount["ratio"] += service.roles[role].shapes[0].gpus
        most = service.limits.max_instances_per_group
        if most is not None:
            amount["limits"] += max(0, sum(1 for _ in group.delivering()) - most)
    for service in state.instance.services:
        if service.limits.max_groups is not None:
            _, count = _group_counts(state.of_service(service))
            amount["limits"] += max(0, count - service.limits.max_groups)
        for name, served in service.roles.items():
            amount["target"] += _excess(state, service, name, served) * served.gpus_per_capacity
    return amount


def _excess(state: _State, service: Service, name: str, role: Role) -> Fraction:
    """Capacity that a role which scales in could still lose."""
    if state.now[service.name, name] <= role.target:
        return ZERO
    grain = _common_divisor(
        placed.shape.capacity
        for group in state.of_service(service)
        for placed in group.ready
        if placed.role == name
    )
    over = max(ZERO, state.after[service.name, name] - role.target)
    return over // grain * grain


def _common_divisor(numbers: Iterable[Fraction]) -> Fraction:
    """Greatest rational that divides all of them."""
    values = list(numbers)
    scale = lcm(*(value.denominator for value in values))
    return Fraction(gcd(*(int(value * scale) for value in values)), scale)


def _homes(group: _Group, level: str) -> set[str]:
    """Home domains of a group at the preferred level."""
    measured = group.added if group.new else (*group.ready, *group.draining)
    gpus: Counter[str] = Counter()
    for placed in measured:
        if placed.nodes and _in_one_domain(placed.nodes, level):
            gpus[placed.nodes[0].domains[level]] += placed.total
    if not gpus:
        return set()
    most = max(gpus.values())
    best = {domain for domain, count in gpus.items() if count == most}
    return {min(best)} if group.new else best


def _costs(state: _State) -> dict[str, Fraction]:
    """Amount of each named cost."""
    prices = state.instance.objective.tier_prices
    amount = dict.fromkeys(
        ("rdma", "shape", "spill", "new_group", "fragmentation", "migration"), ZERO
    )
    on_tier: Counter[str] = Counter()
    in_shape: Counter[tuple[str, str, int]] = Counter()
    for group in state.groups.values():
        level = group.service.affinity.preferred
        homes = _homes(group, level) if level is not None else set()
        for placed in group.delivering():
            for node, gpus in zip(placed.nodes, placed.gpus, strict=True):
                on_tier[state.tiers[node.name]] += gpus
            index = group.service.roles[placed.role].shape_index[str(placed.shape.name)]
            in_shape[group.service.name, placed.role, index] += 1
            if level is not None and not (
                _in_one_domain(placed.nodes, level)
                and placed.nodes
                and placed.nodes[0].domains[level] in homes
            ):
                amount["spill"] += placed.total
        if group.new and group.added:
            amount["new_group"] += 1
        amount["migration"] += len(group.moved)
    for tier, gpus in on_tier.items():
        amount["rdma"] += gpus * getattr(prices, tier)
    for (name, role, index), count in in_shape.items():
        amount["shape"] += count * state.services[name].roles[role].shape_cost(index)
    before = state.before
    broken = {
        node.name
        for _, placed in state.placed_now()
        for node, gpus in _blocks(placed)
        if gpus < node.gpus and node.reserved == 0 and before[node.name] == 0
    }
    amount["fragmentation"] += len(broken)
    return amount


def _blocks(placed: _Placed) -> Iterator[tuple[Node, int]]:
    """GPUs that are taken together on a node: a pod's, or all of a shape of level ``node``."""
    if placed.shape.level == NODE_LEVEL:
        yield from ((node, placed.total) for node in placed.nodes)
    else:
        yield from zip(placed.nodes, placed.gpus, strict=True)
