"""Why capacity is unmet: drop one constraint at a time and see whether more could be placed.

Each explanation is an experiment: the service's request is placed greedily on the cluster as the
plan found it, first alone, then with one constraint of docs/problem.md relaxed. The relaxation
that lets most of the missing capacity be placed names the reason; where none does, several
together may.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from pydantic import BaseModel

from heteroplace.check import evaluate
from heteroplace.instance import (
    Affinity,
    Cycle,
    Instance,
    Limits,
    Noun,
    Pod,
    Role,
    RunningGroup,
    RunningInstance,
    Service,
    Shape,
)
from heteroplace.plan import Evaluation, Plan, RoleOutcome
from heteroplace.solve.greedy import greedy
from heteroplace.topology import TreeView

ZERO = Fraction(0)
MOST_CRUMBS = 1024

_BETTER = "The plan leaves room for more; solve with more time or another solver."


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
    instance: Instance, plan: Plan, most: int | None = None, seconds: float | None = None
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
        Begin no further service after that time; null for no limit.

    Returns
    -------
    list of Explanation
        By unmet GPUs, largest first.

    Raises
    ------
    InputError
        If the plan names what the instance does not have.
    """
    evaluation = evaluate(instance, plan)
    short: dict[str, list[RoleOutcome]] = {}
    for outcome in evaluation.roles:
        if outcome.unmet:
            short.setdefault(outcome.service, []).append(outcome)
    ordered = sorted(short, key=lambda name: -sum(each.unmet_gpus for each in short[name]))
    found: list[Explanation] = []
    began = time.monotonic()
    for name in ordered[:most]:
        if seconds is not None and time.monotonic() - began > seconds:
            break
        constraint, reason = _reason(instance, plan, evaluation, name)
        found.extend(
            Explanation(
                service=name,
                role=outcome.role,
                unmet_gpus=float(outcome.unmet_gpus),
                constraint=constraint,
                reason=reason,
            )
            for outcome in short[name]
        )
    return sorted(found, key=lambda each: -each.unmet_gpus)


def _reason(instance: Instance, plan: Plan, evaluation: Evaluation, name: str) -> tuple[str, str]:
    missing = _unmet(evaluation, name)
    if _unmet_after(_continued(instance, plan), name) < missing:
        return "search", _BETTER
    alone = _alone(instance, name)
    reachable = _unmet_after(alone, name)
    if reachable < missing:
        rivals = _rivals(instance, plan, name)
        if rivals is not None:
            return "priority", rivals
        if any(role.min for role in instance.services[instance.service_index[name]].roles.values()):
            return "priority", "More could only be placed if a role fell short of its minimum."
        return "search", _BETTER
    best: tuple[Fraction, _Relaxation] | None = None
    for relaxation in _RELAXATIONS:
        relaxed = relaxation.relax(alone, name)
        if relaxed is None:
            continue
        left = _unmet_after(relaxed, name)
        if left < missing and (best is None or left < best[0]):
            best = (left, relaxation)
    if best is not None:
        return best[1].constraint, best[1].sentence
    several = _several(alone, name, missing)
    if several:
        names = ", ".join(each.what for each in several)
        return several[-1].constraint, f"More could be placed only without all of these: {names}."
    return "capacity", _scarcity(instance, name)


def _several(alone: Instance, name: str, missing: Fraction) -> list[_Relaxation]:
    """Relaxations that help only together, none of them superfluous; empty when none do."""
    chosen: list[_Relaxation] = []
    for relaxation in _RELAXATIONS:
        if relaxation.relax(alone, name) is not None:
            chosen.append(relaxation)
            if len(chosen) > 1 and _helps(chosen, alone, name, missing):
                break
    else:
        return []
    for relaxation in chosen[:-1]:
        fewer = [each for each in chosen if each is not relaxation]
        if _helps(fewer, alone, name, missing):
            chosen = fewer
    return chosen


def _helps(chosen: list[_Relaxation], alone: Instance, name: str, missing: Fraction) -> bool:
    relaxed = alone
    for relaxation in chosen:
        relaxed = relaxation.relax(relaxed, name) or relaxed
    return _unmet_after(relaxed, name) < missing


def _unmet(evaluation: Evaluation, name: str) -> Fraction:
    """Unmet GPUs of a service; parts of it made by a relaxation count as it."""
    return sum(
        (
            each.unmet_gpus
            for each in evaluation.roles
            if each.service == name or each.service.startswith(f"{name}\0")
        ),
        ZERO,
    )


def _unmet_after(instance: Instance, name: str) -> Fraction:
    tree = TreeView(instance)
    return _unmet(evaluate(instance, greedy(tree).plan(tree)), name)


N = TypeVar("N", bound=BaseModel)


def _copy(noun: N, **changes: Any) -> N:
    """Change fields of a noun; what was derived from the old ones is forgotten."""
    fields = {name: getattr(noun, name) for name in type(noun).model_fields}
    return type(noun).model_construct(**{**fields, **changes})


def _continued(instance: Instance, plan: Plan) -> Instance:
    """The instance with the plan's additions as running, to see whether more can be added."""
    groups: dict[str, RunningGroup] = {group.name: group for group in instance.running}
    taken: dict[str, int] = {}
    for planned in plan.groups:
        base = groups.get(planned.name)
        gone = {each.name for each in (*planned.removed, *planned.moved)}
        instances = [each for each in base.instances if each.name not in gone] if base else []
        if base and not instance.cycle.reuse_freed:
            # What is removed or moved away holds its GPUs for the rest of the cycle.
            instances.extend(
                _copy(each, state="draining") for each in base.instances if each.name in gone
            )
        for placed in (*planned.moved, *planned.added):
            number = taken[planned.name] = taken.get(planned.name, 0) + 1
            instances.append(
                RunningInstance.model_construct(
                    name=f"\0{number}",
                    role=placed.role,
                    shape=placed.shape,
                    nodes=tuple(pod.node for pod in placed.pods),
                    state="ready",
                )
            )
        if not instances:
            groups.pop(planned.name, None)
            continue
        groups[planned.name] = RunningGroup.model_construct(
            name=planned.name,
            service=planned.service,
            domain=base.domain if base else planned.domain,
            instances=tuple(instances),
        )
    return _copy(instance, running=tuple(groups.values()), cycle=Cycle())


def _delivered_now(instance: Instance) -> dict[tuple[str, str], Fraction]:
    outcome = evaluate(instance, Plan())
    return {(each.service, each.role): each.delivered for each in outcome.roles}


def _alone(instance: Instance, name: str) -> Instance:
    """The instance in which only one service asks for more."""
    now = _delivered_now(instance)
    services = []
    for service in instance.services:
        if service.name != name:
            roles = {
                key: _copy(role, target=min(role.target, now[service.name, key]), min=ZERO)
                for key, role in service.roles.items()
            }
            service = _copy(service, roles=roles)
        services.append(service)
    return _copy(instance, services=tuple(services))


def _rivals(instance: Instance, plan: Plan, name: str) -> str | None:
    """Who got GPUs of the types it needs; null when nobody else got any."""
    mine = instance.services[instance.service_index[name]]
    types = _types(mine)
    gpus: dict[str, int] = {}
    for group in plan.groups:
        if group.service == name:
            continue
        for each in (*group.added, *group.moved):
            for pod in each.pods:
                if instance.nodes[instance.node_index[pod.node]].gpu_type in types:
                    gpus[group.service] = gpus.get(group.service, 0) + pod.gpus
    if not gpus:
        return None
    priority = {service.name: service.priority for service in instance.services}
    listed = sorted(gpus, key=lambda each: (-priority[each], -gpus[each]))
    shown = ", ".join(
        f"{each} ({gpus[each]} GPUs, priority {priority[each]})" for each in listed[:3]
    )
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (
        f"Alone it would get more, but the GPUs it needs went to others: {shown}{more}; "
        f"its own priority is {mine.priority}."
    )


def _types(service: Service) -> set[str]:
    """GPU types that a service can use."""
    return {
        pod.gpu_type
        for role in service.roles.values()
        for shape in role.shapes
        for pod in shape.pods
    }


def _scarcity(instance: Instance, name: str) -> str:
    tree = TreeView(instance)
    service = instance.services[instance.service_index[name]]
    free = dict.fromkeys(sorted(_types(service)), 0)
    for node, room in zip(instance.nodes, tree.free, strict=True):
        if node.gpu_type in free:
            free[node.gpu_type] += room
    shown = ", ".join(f"{count} {gpu_type}" for gpu_type, count in free.items())
    return f"The cluster has too few free GPUs of its types: {shown}."


# --------------------------------------------------------------------------------------------
# Relaxations
# --------------------------------------------------------------------------------------------

Relax = Callable[[Instance, str], Instance | None]


def _with_service(instance: Instance, name: str, change: Callable[[Service], Service]) -> Instance:
    services = tuple(
        change(service) if service.name == name else service for service in instance.services
    )
    return _copy(instance, services=services)


def _reuse(instance: Instance, name: str) -> Instance | None:
    if instance.cycle.reuse_freed:
        return None
    return _copy(instance, cycle=_copy(instance.cycle, reuse_freed=True))


def _uncordon(instance: Instance, name: str) -> Instance | None:
    if all(node.schedulable and not node.reserved for node in instance.nodes):
        return None
    nodes = tuple(_copy(node, schedulable=True, reserved=0) for node in instance.nodes)
    return _copy(instance, nodes=nodes)


def _anywhere(instance: Instance, name: str) -> Instance | None:
    service = instance.services[instance.service_index[name]]
    if service.affinity.required is None:
        return None
    running = tuple(
        _copy(group, domain=None) if group.service == name else group for group in instance.running
    )
    relaxed = _with_service(instance, name, lambda each: _copy(each, affinity=Affinity()))
    return _copy(relaxed, running=running)


def _apart(instance: Instance, name: str) -> Instance | None:
    """Every role a service of its own, so that no band and no partner binds it."""
    service = instance.services[instance.service_index[name]]
    if len(service.roles) == 1:
        return None
    services: list[Service] = []
    for each in instance.services:
        if each.name != name:
            services.append(each)
            continue
        services.extend(
            _copy(each, name=f"{name}\0{role}", roles={role: served}, ratios=())
            for role, served in service.roles.items()
        )
    running: list[RunningGroup] = []
    for group in instance.running:
        if group.service != name:
            running.append(group)
            continue
        for role in service.roles:
            instances = tuple(one for one in group.instances if one.role == role)
            if instances:
                running.append(
                    _copy(
                        group,
                        name=f"{group.name}\0{role}",
                        service=f"{name}\0{role}",
                        instances=instances,
                    )
                )
    return _copy(instance, services=tuple(services), running=tuple(running))


def _unlimited(instance: Instance, name: str) -> Instance | None:
    service = instance.services[instance.service_index[name]]
    if service.limits == Limits():
        return None
    return _with_service(instance, name, lambda each: _copy(each, limits=Limits()))


def _scattered(instance: Instance, name: str) -> Instance | None:
    service = instance.services[instance.service_index[name]]
    if not any(len(s.pod_list) > 1 for role in service.roles.values() for s in role.shapes):
        return None

    def change(shape: Shape) -> Shape:
        return _copy(shape, level=instance.levels[0]) if len(shape.pod_list) > 1 else shape

    return _with_shapes(instance, name, change)


def _crumbled(instance: Instance, name: str) -> Instance | None:
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

    service = instance.services[instance.service_index[name]]

    def scatter(each: RunningInstance) -> RunningInstance:
        role = service.roles[each.role]
        shape = role.shapes[role.shape_index[each.shape]]
        if shape.gpus > MOST_CRUMBS:
            return each
        pairs = zip(each.nodes, shape.pod_list, strict=True)
        return _copy(each, nodes=tuple(node for node, (_, gpus) in pairs for _ in range(gpus)))

    running = tuple(
        _copy(group, instances=tuple(scatter(each) for each in group.instances))
        if group.service == name
        else group
        for group in instance.running
    )
    return _copy(_with_shapes(instance, name, change), running=running)


def _with_shapes(instance: Instance, name: str, change: Callable[[Shape], Shape]) -> Instance:
    def roles(service: Service) -> Service:
        changed: dict[str, Role] = {
            key: _copy(role, shapes=tuple(change(shape) for shape in role.shapes))
            for key, role in service.roles.items()
        }
        return _copy(service, roles=changed)

    return _with_service(instance, name, roles)


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
