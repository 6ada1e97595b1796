"""Why capacity is unmet: drop one constraint at a time and see whether more could be placed.

Each explanation is an experiment: the service's request is placed greedily, first on what the plan
leaves, then alone on the cluster as the plan found it, then with one constraint of docs/problem.md
relaxed. The relaxation that lets most of the missing capacity be placed names the reason; where
none does, several together may.

An experiment knows one service only. What the others hold is worked out once and counts as
reserved, so that the cost of an explanation does not grow with the number of services.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel

from heteroplace.check import evaluate
from heteroplace.decision import Decision
from heteroplace.instance import (
    Affinity,
    Cycle,
    Instance,
    Limits,
    Node,
    Noun,
    Pod,
    Role,
    RunningGroup,
    RunningInstance,
    Service,
    Shape,
)
from heteroplace.plan import Plan, PlanGroup, Unmet
from heteroplace.solve.greedy import greedy
from heteroplace.topology import TreeView

ZERO = Fraction(0)
MOST_CRUMBS = 1024

_BETTER = "The plan leaves room for more; solve with more time or another solver."
_FLOOR = "More could only be placed if a role fell short of its minimum."


class Explanation(Noun):
    """Why one role gets less than its target.

    Parameters
    ----------
    service, role
        By name.
    unmet_gpus
        Unmet capacity in GPUs of the preferred shape.
    constraint
        Name of the constraint that is in the way, ``priority`` where others were served first,
        ``search`` where the plan could be better.
    reason
        One sentence.
    """

    service: str
    role: str
    unmet_gpus: float
    constraint: str
    reason: str


def explain(
    instance: Instance,
    plan: Plan,
    most: int | None = None,
    seconds: float | None = None,
    *,
    unmet: Iterable[Unmet] | None = None,
) -> list[Explanation]:
    """Say why each role with unmet capacity is short.

    Parameters
    ----------
    instance
        The problem.
    plan
        A valid plan.
    most
        Explain only that many services, those with most unmet GPUs first; null for all.
    seconds
        Stop after that time, in the middle of a service if need be: it and those after it are left
        out. Null for no limit.
    unmet
        What the plan leaves unmet, from the plan's :class:`Result`; null works it out, whatever
        time that takes.

    Returns
    -------
    list of Explanation
        By unmet GPUs, largest first.

    Raises
    ------
    InputError
        If the plan names what the instance does not have.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    short: dict[str, dict[str, float]] = defaultdict(dict)
    for each in evaluate(instance, plan).roles if unmet is None else unmet:
        if each.unmet:
            short[each.service][each.role] = float(each.unmet_gpus)
    ordered = sorted(short, key=lambda name: -sum(short[name].values()))[:most]
    found: list[Explanation] = []
    if not ordered:
        return found
    try:
        laboratory = _Laboratory(instance, plan, deadline)
        for name in ordered:
            constraint, reason = _reason(laboratory, name)
            found.extend(
                Explanation(
                    service=name, role=role, unmet_gpus=gpus, constraint=constraint, reason=reason
                )
                for role, gpus in short[name].items()
            )
    except _LateError:
        pass  # What is not explained is left out.
    return sorted(found, key=lambda each: -each.unmet_gpus)


def _reason(laboratory: _Laboratory, name: str) -> tuple[str, str]:
    continued = laboratory.continued(name)
    missing = _unmet(continued, Decision())
    if laboratory.best(continued) < missing:
        return "search", _BETTER
    alone = laboratory.alone(name)
    if laboratory.unmet(alone) < missing:
        rivals = laboratory.rivals(name)
        if rivals is not None:
            return "priority", rivals
        if any(role.min for role in alone.service.roles.values()):
            return "priority", _FLOOR
        return "search", _BETTER
    best: tuple[Fraction, _Relaxation] | None = None
    for relaxation in _RELAXATIONS:
        relaxed = relaxation.relax(laboratory.instance, alone)
        if relaxed is None:
            continue
        left = laboratory.unmet(relaxed)
        if left < missing and (best is None or left < best[0]):
            best = (left, relaxation)
    if best is not None:
        return best[1].constraint, best[1].sentence
    several = _several(laboratory, alone, missing)
    if several:
        names = ", ".join(each.what for each in several)
        return several[-1].constraint, f"More could be placed only without all of these: {names}."
    return "capacity", laboratory.scarcity(name)


def _several(laboratory: _Laboratory, alone: _Trial, missing: Fraction) -> list[_Relaxation]:
    """Relaxations that help only together, none of them superfluous; empty when none do."""
    chosen: list[_Relaxation] = []
    for relaxation in _RELAXATIONS:
        if relaxation.relax(laboratory.instance, alone) is not None:
            chosen.append(relaxation)
            if len(chosen) > 1 and _helps(laboratory, chosen, alone, missing):
                break
    else:
        return []
    for relaxation in chosen[:-1]:
        fewer = [each for each in chosen if each is not relaxation]
        if _helps(laboratory, fewer, alone, missing):
            chosen = fewer
    return chosen


def _helps(
    laboratory: _Laboratory, chosen: list[_Relaxation], alone: _Trial, missing: Fraction
) -> bool:
    relaxed = alone
    for relaxation in chosen:
        relaxed = relaxation.relax(laboratory.instance, relaxed) or relaxed
    return laboratory.unmet(relaxed) < missing


# --------------------------------------------------------------------------------------------
# Experiments
# --------------------------------------------------------------------------------------------


class _LateError(Exception):
    """The time for explanations is up."""


@dataclass(frozen=True)
class _Trial:
    """One service alone on the cluster as the plan found it.

    Parameters
    ----------
    name
        The service's name in the instance.
    services
        The service; several parts of it where a relaxation takes it apart.
    running
        Its groups.
    reuse_freed
        As in the cycle's rules.
    uncordoned
        Whether cordoned nodes and reserved GPUs may be used.
    """

    name: str
    services: tuple[Service, ...]
    running: tuple[RunningGroup, ...]
    reuse_freed: bool
    uncordoned: bool = False

    @property
    def service(self) -> Service:
        """The service, as long as it is whole."""
        (service,) = self.services
        return service


@dataclass(frozen=True)
class _Held:
    """GPUs that services hold on nodes: by service, and the nodes with all of it reserved."""

    by_service: dict[str, Counter[int]]
    total: Counter[int]
    nodes: tuple[Node, ...]
    uncordoned: bool

    @classmethod
    def of(
        cls, by_service: dict[str, Counter[int]], nodes: tuple[Node, ...], uncordoned: bool
    ) -> _Held:
        total: Counter[int] = Counter()
        for held in by_service.values():
            total.update(held)
        reserved = tuple(
            _reserving(node, total[index], uncordoned) for index, node in enumerate(nodes)
        )
        return cls(by_service, total, reserved, uncordoned)

    def without(self, name: str, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """The nodes with what all services but one hold reserved."""
        mine = self.by_service.get(name)
        if not mine:
            return self.nodes
        found = list(self.nodes)
        for index, gpus in mine.items():
            found[index] = _reserving(nodes[index], self.total[index] - gpus, self.uncordoned)
        return tuple(found)


def _reserving(node: Node, gpus: int, uncordoned: bool) -> Node:
    """The node with so many GPUs reserved on top of its own, which ``uncordoned`` forgets."""
    if uncordoned:
        return _copy(node, schedulable=True, reserved=gpus)
    return _copy(node, reserved=node.reserved + gpus) if gpus else node


class _Laboratory:
    """Experiments on one instance and plan, with what they share.

    Parameters
    ----------
    instance
        The problem.
    plan
        A valid plan.
    deadline
        ``time.monotonic()`` from which every experiment raises :class:`_LateError`; null for none.
    """

    def __init__(self, instance: Instance, plan: Plan, deadline: float | None) -> None:
        self.instance = instance
        self.deadline = deadline
        self.in_time()
        self.tree = TreeView(instance)
        self.running: dict[str, list[RunningGroup]] = defaultdict(list)
        for group in instance.running:
            self.running[group.service].append(group)
        self.planned: dict[str, list[PlanGroup]] = defaultdict(list)
        for planned in plan.groups:
            self.planned[planned.service].append(planned)
        self._fleets: dict[tuple[str, bool], _Held] = {}

    def in_time(self) -> None:
        """Raise when the time is up."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise _LateError

    # -- What others hold ------------------------------------------------------------------

    @cached_property
    def now(self) -> dict[str, Counter[int]]:
        """GPUs by service and node that running instances hold."""
        return {name: self._held_by(groups) for name, groups in self.running.items()}

    @cached_property
    def kept(self) -> dict[str, Counter[int]]:
        """The same less what is freed where a service scales in."""
        delivered = _delivered(self.instance, Decision())
        shrinking = {}
        for service in self.instance.services:
            now = {role: delivered[service.name, role] for role in service.roles}
            if any(now[name] > role.target for name, role in service.roles.items()):
                roles = {
                    name: _copy(role, target=min(role.target, now[name]), min=ZERO)
                    for name, role in service.roles.items()
                }
                shrinking[service.name] = _copy(service, roles=roles)
        if not shrinking:
            return self.now
        running = tuple(group for name in shrinking for group in self.running[name])
        smaller = _copy(self.instance, services=tuple(shrinking.values()), running=running)
        gone = greedy(TreeView(smaller), self.deadline).removed
        self.in_time()
        stay: dict[str, list[RunningGroup]] = defaultdict(list)
        for index, group in enumerate(running):
            instances = [
                each for number, each in enumerate(group.instances) if (index, number) not in gone
            ]
            stay[group.service].append(_copy(group, instances=tuple(instances)))
        return {**self.now, **{name: self._held_by(stay[name]) for name in shrinking}}

    @cached_property
    def after(self) -> dict[str, Counter[int]]:
        """GPUs by service and node that are held after the plan."""
        held = dict(self.now)
        reuse, index_of = self.instance.cycle.reuse_freed, self.instance.node_index
        for name, groups in self.planned.items():
            if reuse and any(group.removed or group.moved for group in groups):
                held[name] = self._held_by(self._groups_after(name))
                continue
            self.in_time()
            count = held[name] = Counter(held.get(name))
            for group in groups:
                for placed in (*group.moved, *group.added):
                    for pod in placed.pods:
                        count[index_of[pod.node]] += pod.gpus
        return held

    def _held_by(self, groups: Iterable[RunningGroup]) -> Counter[int]:
        """GPUs that the instances of some groups hold on each node."""
        self.in_time()
        held: Counter[int] = Counter()
        for group in groups:
            for each in group.instances:
                pods = self.tree.shape_of(group, each).pod_list
                for name, (_, gpus) in zip(each.nodes, pods, strict=True):
                    held[self.instance.node_index[name]] += gpus
        return held

    def _nodes(self, when: str, name: str, uncordoned: bool = False) -> tuple[Node, ...]:
        """The nodes with what others hold reserved; ``when`` is ``now``, ``kept`` or ``after``."""
        key = (when, uncordoned)
        self.in_time()
        if key not in self._fleets:
            self._fleets[key] = _Held.of(getattr(self, when), self.instance.nodes, uncordoned)
        return self._fleets[key].without(name, self.instance.nodes)

    # -- Experiments -----------------------------------------------------------------------

    def continued(self, name: str) -> Instance:
        """One service on what the plan leaves, with what the plan adds to it as running."""
        return _copy(
            self.instance,
            nodes=self._nodes("after", name),
            services=(self._service(name),),
            running=tuple(self._groups_after(name)),
            cycle=Cycle(),
        )

    def alone(self, name: str) -> _Trial:
        """One service on the cluster as the plan found it."""
        return _Trial(
            name,
            (self._service(name),),
            tuple(self.running[name]),
            self.instance.cycle.reuse_freed,
        )

    def unmet(self, trial: _Trial) -> Fraction:
        """Unmet GPUs of a trial's service when it is placed greedily."""
        when = "kept" if trial.reuse_freed else "now"
        return self.best(
            _copy(
                self.instance,
                nodes=self._nodes(when, trial.name, trial.uncordoned),
                services=trial.services,
                running=trial.running,
                cycle=Cycle(reuse_freed=trial.reuse_freed),
            )
        )

    def best(self, instance: Instance) -> Fraction:
        """Unmet GPUs of all services of an instance when they are placed greedily."""
        self.in_time()
        decision = greedy(TreeView(instance), self.deadline)
        self.in_time()
        return _unmet(instance, decision)

    def _service(self, name: str) -> Service:
        return self.instance.services[self.instance.service_index[name]]

    def _groups_after(self, name: str) -> list[RunningGroup]:
        """A service's groups after the plan."""
        groups = {group.name: group for group in self.running[name]}
        for planned in self.planned[name]:
            base = groups.get(planned.name)
            gone = {each.name for each in (*planned.removed, *planned.moved)}
            instances = [each for each in base.instances if each.name not in gone] if base else []
            if base and not self.instance.cycle.reuse_freed:
                # What is removed or moved away holds its GPUs for the rest of the cycle.
                instances.extend(
                    _copy(each, state="draining") for each in base.instances if each.name in gone
                )
            instances.extend(
                RunningInstance.model_construct(
                    name=None,
                    role=placed.role,
                    shape=placed.shape,
                    nodes=tuple(pod.node for pod in placed.pods),
                    state="ready",
                )
                for placed in (*planned.moved, *planned.added)
            )
            if not instances:
                groups.pop(planned.name, None)
                continue
            groups[planned.name] = RunningGroup.model_construct(
                name=planned.name,
                service=name,
                domain=base.domain if base else planned.domain,
                instances=tuple(instances),
            )
        return list(groups.values())

    # -- Sentences -------------------------------------------------------------------------

    @cached_property
    def arrived(self) -> dict[str, Counter[str]]:
        """GPUs by service and GPU type that the plan gives to added and moved instances."""
        found: dict[str, Counter[str]] = {}
        nodes, index_of = self.instance.nodes, self.instance.node_index
        for name, groups in self.planned.items():
            count: Counter[str] = Counter()
            for group in groups:
                for each in (*group.added, *group.moved):
                    for pod in each.pods:
                        count[nodes[index_of[pod.node]].gpu_type] += pod.gpus
            found[name] = count
        return found

    def rivals(self, name: str) -> str | None:
        """Who got GPUs of the types it needs; null when nobody else got any."""
        types = _types(self._service(name))
        gpus = {
            other: sum(count[gpu_type] for gpu_type in types)
            for other, count in self.arrived.items()
            if other != name and any(count[gpu_type] for gpu_type in types)
        }
        if not gpus:
            return None
        priority = {each: self._service(each).priority for each in (name, *gpus)}
        listed = sorted(gpus, key=lambda each: (-priority[each], -gpus[each]))
        shown = ", ".join(
            f"{each} ({gpus[each]} GPUs, priority {priority[each]})" for each in listed[:3]
        )
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        return (
            f"Alone it would get more, but the GPUs it needs went to others: {shown}{more}; "
            f"its own priority is {priority[name]}."
        )

    def scarcity(self, name: str) -> str:
        """How few GPUs of its types are free."""
        free = dict.fromkeys(sorted(_types(self._service(name))), 0)
        for node, room in zip(self.instance.nodes, self.tree.free, strict=True):
            if node.gpu_type in free:
                free[node.gpu_type] += room
        shown = ", ".join(f"{count} {gpu_type}" for gpu_type, count in free.items())
        return f"The cluster has too few free GPUs of its types: {shown}."


def _delivered(instance: Instance, decision: Decision) -> dict[tuple[str, str], Fraction]:
    """Capacity that every (service, role) delivers after a decision."""
    services = [
        instance.services[instance.service_index[each.service]] for each in instance.running
    ]
    count: Counter[tuple[str, str, int]] = Counter()
    for index, (group, service) in enumerate(zip(instance.running, services, strict=True)):
        for number, running in enumerate(group.instances):
            if running.state == "ready" and (index, number) not in decision.removed:
                shape = service.roles[running.role].shape_index[running.shape]
                count[service.name, running.role, shape] += 1
    services.extend(instance.services[index] for index, _ in decision.new_groups)
    for added in decision.added:
        count[services[added.group].name, added.role, added.shape] += 1
    return {
        (service.name, name): sum(
            (
                count[service.name, name, index] * shape.capacity
                for index, shape in enumerate(role.shapes)
            ),
            ZERO,
        )
        for service in instance.services
        for name, role in service.roles.items()
    }


def _unmet(instance: Instance, decision: Decision) -> Fraction:
    """Unmet GPUs of all services after a decision."""
    delivered = _delivered(instance, decision)
    return sum(
        (
            max(ZERO, role.target - delivered[service.name, name]) * role.gpus_per_capacity
            for service in instance.services
            for name, role in service.roles.items()
        ),
        ZERO,
    )


def _types(service: Service) -> set[str]:
    """GPU types that a service can use."""
    return {
        pod.gpu_type
        for role in service.roles.values()
        for shape in role.shapes
        for pod in shape.pods
    }


N = TypeVar("N", bound=BaseModel)


def _copy(noun: N, **changes: Any) -> N:
    """Change fields of a noun; what was derived from the old ones is forgotten."""
    fields = {name: getattr(noun, name) for name in type(noun).model_fields}
    return type(noun).model_construct(**{**fields, **changes})


# --------------------------------------------------------------------------------------------
# Relaxations
# --------------------------------------------------------------------------------------------

Relax = Callable[[Instance, _Trial], _Trial | None]


def _with_service(trial: _Trial, **changes: Any) -> _Trial:
    return replace(trial, services=(_copy(trial.service, **changes),))


def _reuse(instance: Instance, trial: _Trial) -> _Trial | None:
    return None if trial.reuse_freed else replace(trial, reuse_freed=True)


def _uncordon(instance: Instance, trial: _Trial) -> _Trial | None:
    if all(node.schedulable and not node.reserved for node in instance.nodes):
        return None
    return replace(trial, uncordoned=True)


def _anywhere(instance: Instance, trial: _Trial) -> _Trial | None:
    if trial.service.affinity.required is None:
        return None
    running = tuple(_copy(group, domain=None) for group in trial.running)
    return replace(_with_service(trial, affinity=Affinity()), running=running)


def _apart(instance: Instance, trial: _Trial) -> _Trial | None:
    """Every role a service of its own, so that no band and no partner binds it."""
    roles = trial.service.roles
    if len(roles) == 1:
        return None
    # No other service is in the experiment, so a role's name is enough.
    services = tuple(
        _copy(trial.service, name=name, roles={name: role}, ratios=())
        for name, role in roles.items()
    )
    running = []
    for group in trial.running:
        for role in roles:
            instances = tuple(each for each in group.instances if each.role == role)
            if instances:
                running.append(_copy(group, service=role, instances=instances))
    return replace(trial, services=services, running=tuple(running))


def _unlimited(instance: Instance, trial: _Trial) -> _Trial | None:
    if trial.service.limits == Limits():
        return None
    return _with_service(trial, limits=Limits())


def _scattered(instance: Instance, trial: _Trial) -> _Trial | None:
    roles = trial.service.roles.values()
    if not any(len(shape.pod_list) > 1 for role in roles for shape in role.shapes):
        return None

    def change(shape: Shape) -> Shape:
        return _copy(shape, level=instance.levels[0]) if len(shape.pod_list) > 1 else shape

    return _with_shapes(trial, change)


def _crumbled(instance: Instance, trial: _Trial) -> _Trial | None:
    """Pods of one GPU, to see whether only the pieces are too small."""

    def change(shape: Shape) -> Shape:
        if shape.gpus > MOST_CRUMBS:
            return shape
        pods = tuple(
            Pod.model_construct(gpu_type=pod.gpu_type, gpus=1, count=pod.gpus * pod.count)
            for pod in shape.pods
        )
        level = shape.level if len(shape.pod_list) > 1 else None
        keep = level if level in instance.levels else instance.levels[-1]
        return _copy(shape, pods=pods, level=keep)

    roles = trial.service.roles

    def scatter(each: RunningInstance) -> RunningInstance:
        role = roles[each.role]
        shape = role.shapes[role.shape_index[each.shape]]
        if shape.gpus > MOST_CRUMBS:
            return each
        pairs = zip(each.nodes, shape.pod_list, strict=True)
        return _copy(each, nodes=tuple(node for node, (_, gpus) in pairs for _ in range(gpus)))

    running = tuple(
        _copy(group, instances=tuple(scatter(each) for each in group.instances))
        for group in trial.running
    )
    return replace(_with_shapes(trial, change), running=running)


def _with_shapes(trial: _Trial, change: Callable[[Shape], Shape]) -> _Trial:
    roles: dict[str, Role] = {
        name: _copy(role, shapes=tuple(change(shape) for shape in role.shapes))
        for name, role in trial.service.roles.items()
    }
    return _with_service(trial, roles=roles)


@dataclass(frozen=True)
class _Relaxation:
    """One constraint dropped.

    Parameters
    ----------
    constraint
        Its name in docs/problem.md.
    relax
        Makes the instance without it; null where it binds nothing.
    sentence
        The reason when it is the only one in the way.
    what
        What it is called in a list of several.
    """

    constraint: str
    relax: Relax
    sentence: str
    what: str


# The band comes last: without it the service is several, which no other relaxation knows.
_RELAXATIONS = (
    _Relaxation(
        "no_reuse",
        _reuse,
        "GPUs that this cycle frees would be enough, but they are used from the next cycle on.",
        "the wait for GPUs that this cycle frees",
    ),
    _Relaxation(
        "capacity",
        _uncordon,
        "GPUs that it needs are on cordoned nodes or reserved.",
        "cordoned nodes and reserved GPUs",
    ),
    _Relaxation(
        "colocation",
        _anywhere,
        "No single domain of its affinity level has the GPUs; over several domains there are some.",
        "its affinity level",
    ),
    _Relaxation(
        "limits",
        _unlimited,
        "Its limits on groups or instances per group are reached.",
        "its limits on groups or instances per group",
    ),
    _Relaxation(
        "integrity",
        _scattered,
        "No domain of the shape's level can hold all pods of one more instance.",
        "the level of its shapes",
    ),
    _Relaxation(
        "capacity",
        _crumbled,
        "Enough GPUs are free, but in pieces smaller than its pods.",
        "the size of its pods",
    ),
    _Relaxation(
        "ratio",
        _apart,
        "More could only be placed outside the ratio band or without one of the roles.",
        "its ratio band and the roles that go together",
    ),
)
