"""What is wrong with a fleet that no single field can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from heteroplace.errors import InputError
from heteroplace.instance import Pod, Shape
from heteroplace.models import same_gpu
from heteroplace.policy.control import Entry, Feedback, Periodic, Throughput, Utilization
from heteroplace.policy.duration import spoken
from heteroplace.policy.ratio import Ratios, Tie
from heteroplace.policy.signals import STANDARD, SignalKind

if TYPE_CHECKING:
    from heteroplace.models import ServedModel
    from heteroplace.policy.fleet import Fleet, FleetService

SCHEMA = 1
Fault = tuple[str, str]


def fleet_faults(fleet: Fleet) -> Iterator[Fault]:
    """Yield (path, message) for everything that no single field can tell."""
    if fleet.schema_ != SCHEMA:
        yield "schema", f"version {fleet.schema_} is not known; this release reads {SCHEMA}"
    yield from _duplicates("services", [each.name for each in fleet.services])
    yield from _duplicates("served", [each.name for each in fleet.served])
    yield from _duplicates("signals", [each.name for each in fleet.signals])
    for index, signal in enumerate(fleet.signals):
        if signal.name in STANDARD:
            yield f"signals[{index}].name", f"{signal.name!r} is a standard signal; rename yours"
    for index, service in enumerate(fleet.services):
        yield from _service_faults(f"services[{index}]", fleet, service)


def _service_faults(path: str, fleet: Fleet, service: FleetService) -> Iterator[Fault]:
    for name, role in service.roles.items():
        where = f"{path}.roles.{name}" if name.isidentifier() else f"{path}.roles[{name!r}]"
        if role.min > role.max:
            yield f"{where}.min", f"{role.min} is above max {role.max}; lower min or raise max"
        try:
            shapes = role_shapes(fleet, service, name)
        except InputError as error:
            yield f"{where}.{error.path}", error.message
            return
        yield from _duplicates(f"{where}.shapes", [str(each.name) for each in shapes])
    yield from _ratio_faults(path, service)
    try:
        ratios = service_ratios(service)
    except ValueError as error:
        yield (
            f"{path}.ratios",
            f"{error}; {len(service.roles)} roles ({', '.join(service.roles)}) need "
            f"{len(service.roles) - 1}",
        )
        return
    first = next(iter(service.roles))
    if ratios.nearest(first, service.roles[first].min) is None:
        yield (
            f"{path}.ratios",
            "no whole numbers of instances within the limits are inside the band; widen the band "
            "or the limits",
        )
        return
    yield from _policy_faults(f"{path}.policy", fleet, service, ratios)
    for name, limit in service.soft_scale_in.limits.items():
        signal = fleet.signal.get(name)
        where = f"{path}.soft_scale_in.limits"
        if signal is None:
            yield where, _unknown("signal", name, fleet.signal)
        elif signal.kind == "throughput":
            yield where, f"{name!r} is a throughput; name a latency or a utilization"
        elif signal.kind == "utilization" and limit > 1:
            yield where, f"{name!r} is a share of 0 to 1, not {limit:g}; divide percentages by 100"
    soft = service.soft_scale_in
    if soft.max_backoff < soft.backoff:
        yield (
            f"{path}.soft_scale_in.max_backoff",
            f"{spoken(soft.max_backoff)} is less than backoff {spoken(soft.backoff)}; raise it",
        )


def _ratio_faults(path: str, service: FleetService) -> Iterator[Fault]:
    for index, ratio in enumerate(service.ratios):
        where = f"{path}.ratios[{index}]"
        for field in ("numerator", "denominator"):
            role = getattr(ratio, field)
            if role not in service.roles:
                yield f"{where}.{field}", _unknown("role", role, service.roles)
        if ratio.numerator == ratio.denominator:
            yield f"{where}.denominator", "must be another role than the numerator"
        low, high = ratio.band
        if low > ratio.target:
            yield f"{where}.min", f"{float(low):g} is above the target {float(ratio.target):g}"
        if high < ratio.target:
            yield f"{where}.max", f"{float(high):g} is below the target {float(ratio.target):g}"


def _policy_faults(
    path: str, fleet: Fleet, service: FleetService, ratios: Ratios
) -> Iterator[Fault]:
    primary = service.policy.primary
    if isinstance(primary, Periodic):
        yield from _entry_faults(f"{path}.primary", service, ratios, primary.entries, True)
        if service.policy.schedules:
            yield (
                f"{path}.schedules",
                "the primary policy is periodic already; put the entries into one of the two",
            )
    else:
        kind: SignalKind = (
            "latency"
            if isinstance(primary, Feedback)
            else "utilization"
            if isinstance(primary, Utilization)
            else "throughput"
        )
        yield from _signal_faults(f"{path}.primary", fleet, primary.signal, kind)
        try:
            role = driving_role(fleet, service, primary)
        except InputError as error:
            yield f"{path}.primary.{error.path}", error.message
            return
        if isinstance(primary, Throughput):
            try:
                throughput_target(fleet, service, primary, role)
            except InputError as error:
                yield f"{path}.primary.{error.path}", error.message
        woken = any(each.mode == "floor" for each in service.policy.schedules)
        if not woken and all(each.min == 0 for each in service.roles.values()):
            yield (
                f"{path}.primary",
                "cannot start a service that has gone to zero instances, for nothing is measured "
                "then; set a role's min to 1 or add a floor schedule",
            )
    seen = set()
    for index, layer in enumerate(service.policy.latency):
        where = f"{path}.latency[{index}]"
        yield from _signal_faults(where, fleet, layer.signal, "latency")
        if layer.role is not None:
            yield f"{where}.role", "a layer moves what the primary policy drives; remove it"
        if all(tier.change < 0 for tier in layer.tiers):
            yield f"{where}.tiers", "a layer only raises; give it a tier above 1"
        if layer.signal in seen:
            yield f"{where}.signal", f"{layer.signal!r} has a layer already; merge their tiers"
        seen.add(layer.signal)
    if isinstance(primary, Feedback):
        if primary.signal in seen:
            yield f"{path}.latency", f"{primary.signal!r} is the primary policy's; drop the layer"
        if service.policy.latency == () and all(tier.change > 0 for tier in primary.tiers):
            yield f"{path}.primary.tiers", "never lowers; give it a tier below 1"
    for index, schedule in enumerate(service.policy.schedules):
        where = f"{path}.schedules[{index}]"
        yield from _entry_faults(where, service, ratios, schedule.entries, False)


def _signal_faults(path: str, fleet: Fleet, name: str, kind: SignalKind) -> Iterator[Fault]:
    signal = fleet.signal.get(name)
    if signal is None:
        yield f"{path}.signal", _unknown("signal", name, fleet.signal)
    elif signal.kind != kind:
        yield f"{path}.signal", f"{name!r} is of kind {signal.kind}; name a {kind} signal"


def _entry_faults(
    path: str,
    service: FleetService,
    ratios: Ratios,
    entries: tuple[Entry, ...],
    primary: bool,
) -> Iterator[Fault]:
    for index, entry in enumerate(entries):
        where = f"{path}.entries[{index}]"
        given = [
            name
            for name, value in (
                ("counts", entry.counts),
                ("total", entry.total),
                ("release", entry.release or None),
            )
            if value is not None
        ]
        if len(given) > 1:
            yield f"{where}.{given[1]}", f"goes not together with {given[0]}; keep one of them"
        elif not given and (primary or entry.ratio is None):
            what = "counts or total" if primary else "counts, total, ratio or release"
            yield where, f"says nothing; give it {what}"
        elif primary and entry.release:
            yield f"{where}.release", "leaves nothing to hold; give it counts or total"
        elif entry.release and entry.ratio is not None:
            yield f"{where}.ratio", "goes not together with release; keep one of them"
        elif entry.ratio is not None and not ratios.ties:
            yield f"{where}.ratio", "the service has no ratio; remove it"
        elif entry.ratio is not None and not (
            ratios.ties[0].low <= entry.ratio <= ratios.ties[0].high
        ):
            yield f"{where}.ratio", "is outside the band of the service's first ratio"
        else:
            for role in entry.counts or {}:
                if role not in service.roles:
                    yield f"{where}.counts", _unknown("role", role, service.roles)
                    return
            try:
                counts = entry_counts(ratios, entry)
            except ValueError as error:
                yield f"{where}.total", f"{error}; use counts"
                continue
            if given and not entry.release and counts is None:
                yield (
                    f"{where}.{given[0]}",
                    "are outside the limits or the ratio's band; change the counts, the band or "
                    "the limits",
                )


def entry_counts(ratios: Ratios, entry: Entry) -> dict[str, int] | None:
    """Counts that a schedule's entry asks for; null if it asks for none that are allowed.

    Raises
    ------
    ValueError
        If it gives a total for more than two roles.
    """
    if entry.ratio is not None:
        ratios = ratios.with_target(entry.ratio)
    if entry.total is not None:
        return ratios.split(entry.total)
    if entry.counts is None:
        return None
    named = entry.counts
    role, count = next(iter(named.items()))
    counts = ratios.counts(
        role,
        count,
        {name: named.get(name, 0) for name in ratios.limits},
        {name: named.get(name, high) for name, (_, high) in ratios.limits.items()},
    )
    if counts is None or any(counts[name] != asked for name, asked in named.items()):
        return None
    return counts


def role_shapes(fleet: Fleet, service: FleetService, name: str) -> tuple[Shape, ...]:
    """Shapes of a role in order of preference, capacities from the served model if there is one.

    Raises
    ------
    InputError
        If they cannot be told; the path is relative to the role.
    """
    role = service.roles[name]
    if service.model is None:
        if role.use:
            raise InputError("use", "needs a served model; name it in model or give shapes")
        if not role.shapes:
            raise InputError("shapes", "is missing; add shapes, or a model and use")
        return tuple(
            each if each.name is not None else each.model_copy(update={"name": f"shape{index}"})
            for index, each in enumerate(role.shapes)
        )
    if role.shapes:
        raise InputError("shapes", "goes not together with a model; name its ways in use")
    model = fleet.model.get(service.model)
    if model is None:
        raise InputError("use", _unknown("model", service.model, fleet.model))
    if name not in model.roles:
        raise InputError("use", f"the model {model.name!r} has no role {name!r}")
    if not role.use:
        known = sorted({each.gpu_type for each in model.roles[name]})
        raise InputError(
            "use", f"is missing; name GPU types in order of preference, of {', '.join(known)}"
        )
    return tuple(
        _way_shape(model, name, index, way.gpu_type, way.gpus) for index, way in enumerate(role.use)
    )


def _way_shape(model: ServedModel, role: str, index: int, gpu_type: str, gpus: int | None) -> Shape:
    fitting = [
        way
        for way in model.roles[role]
        if same_gpu(way.gpu_type, gpu_type) and gpus in (None, way.gpus)
    ]
    if not fitting:
        known = sorted({f"{each.gpu_type} x{each.gpus}" for each in model.roles[role]})
        raise InputError(
            f"use[{index}]",
            f"{model.name!r} has no {role} on {gpu_type}{f' x{gpus}' if gpus else ''}; "
            f"known: {', '.join(known)}",
        )
    best = max(fitting, key=lambda way: (way.per_gpu, -way.gpus))
    return Shape(
        name=f"{gpu_type} x{best.gpus}",
        pods=(Pod(gpu_type=gpu_type, gpus=best.gpus),),
        capacity=best.capacity,
    )


def driving_role(
    fleet: Fleet, service: FleetService, primary: Throughput | Utilization | Feedback
) -> str:
    """Role that a policy drives: its own, else its signal's, else the service's only one.

    Raises
    ------
    InputError
        If the service has no such role.
    """
    if primary.role is not None:
        if primary.role not in service.roles:
            raise InputError("role", _unknown("role", primary.role, service.roles))
        return primary.role
    if len(service.roles) == 1:
        return next(iter(service.roles))
    role = fleet.signal[primary.signal].role
    if role is None or role not in service.roles:
        raise InputError(
            "role",
            f"is missing: {primary.signal!r} measures no role of the service; name one of "
            f"{', '.join(service.roles)}",
        )
    return role


def throughput_target(fleet: Fleet, service: FleetService, primary: Throughput, role: str) -> float:
    """What one instance of the driving role's preferred shape should carry.

    Raises
    ------
    InputError
        If the configuration does not tell.
    """
    if primary.target is not None:
        return primary.target
    preferred = role_shapes(fleet, service, role)[0]
    if service.model is None and "capacity" not in preferred.model_fields_set:
        raise InputError(
            "target", "is missing; give it, or the capacity of the preferred shape, or a model"
        )
    return primary.load * float(preferred.capacity)


def service_ratios(service: FleetService) -> Ratios:
    """Bands and limits of a service's counts.

    Raises
    ------
    ValueError
        If the ratios do not tie all roles together.
    """
    limits = {name: (role.min, role.max) for name, role in service.roles.items()}
    ties = []
    for ratio in service.ratios:
        low, high = ratio.band
        ties.append(Tie(ratio.numerator, ratio.denominator, ratio.target, low, high))
    return Ratios(limits, ties)


def _duplicates(path: str, names: list[str]) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            yield f"{path}[{index}].name", f"{name!r} is already the name of {path}[{seen[name]}]"
        seen[name] = index


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"unknown {kind} {name!r}; known: {shown or 'none'}"
