"""A service's configuration in the form that a step works with, made once per fleet."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from heteroplace.policy.control import Entry, Feedback, Periodic, Throughput, Utilization
from heteroplace.policy.fleet_faults import (
    driving_role,
    entry_counts,
    service_ratios,
    throughput_target,
)
from heteroplace.policy.ratio import Ratios
from heteroplace.policy.schedule import Timetable, time_zone
from heteroplace.policy.signals import Signal
from heteroplace.policy.words import number, percent, ratio

if TYPE_CHECKING:
    from heteroplace.policy.fleet import Fleet, FleetService

# Above any throughput or latency that is measured, far below what breaks arithmetic.
HIGHEST = 1e15


@dataclass(frozen=True, slots=True)
class Layer:
    """A feedback over one latency signal.

    Parameters
    ----------
    signal
        The latency.
    slo
        In seconds.
    raises, lowers
        (Latency in seconds, change) of the tiers above the SLO, highest first, and below it,
        lowest first.
    no_scale_in_above
        Latency in seconds above which nothing is lowered.
    """

    signal: Signal
    slo: float
    raises: tuple[tuple[float, float], ...]
    lowers: tuple[tuple[float, float], ...]
    no_scale_in_above: float


@dataclass(frozen=True, slots=True)
class Period:
    """What a schedule's entry asks for.

    Parameters
    ----------
    counts
        Role -> instances; null when it asks for none.
    ratios
        The service's ratios with the entry's target; null when it has none of its own.
    words
        How a sentence names the entry.
    """

    counts: dict[str, int] | None
    ratios: Ratios | None
    words: str


@dataclass(frozen=True, slots=True)
class Clockwork:
    """A schedule.

    Parameters
    ----------
    fixed
        Whether its counts are exact, not a floor.
    timetable
        Which entry is in force.
    periods
        The entries, in the timetable's order.
    """

    fixed: bool
    timetable: Timetable
    periods: tuple[Period, ...]


@dataclass(slots=True)
class CompiledService:
    """What a step needs of a service.

    Parameters
    ----------
    config, name
        The service and its name.
    roles
        Its roles' names, in order.
    driver
        The driving role.
    ratios
        Bands and limits.
    least
        Fewest instances of the driving role.
    max_age, max_ahead, window
        Ages of readings and the observation window, in seconds.
    capacity
        Role -> capacity of its preferred shape.
    equivalents
        Role -> shape -> its capacity over the preferred shape's.
    gpus
        Role -> GPU type -> GPUs of one instance of the preferred shape.
    signals
        The signals that must be good for a scale-in, by name.
    watched
        (Name, highest value at which no layer and no objective has a say, highest possible value)
        of each of them.
    primary
        The signal of the primary policy; null when it is periodic.
    kind
        Kind of the primary policy.
    target
        Target of a proportional policy.
    feedback
        The primary policy when it is a feedback.
    layers
        Feedback over the primary policy.
    clockwork
        Schedules; a periodic primary policy is the first.
    slos
        (Signal, highest value) that tell whether a soft scale-in holds.
    idle
        Names of the throughput signals; where one is 0, latencies have no reading.
    contradictions
        Throughput -> utilization of the same role that cannot be high when it is 0.
    target_text, ratio_text, within_out, within_in
        Parts of the decisions' sentences: target, ratio, and that the hysteresis holds.
    """

    config: FleetService
    name: str
    roles: tuple[str, ...]
    driver: str
    ratios: Ratios
    least: int
    max_age: float
    max_ahead: float
    window: float
    capacity: dict[str, Fraction]
    equivalents: dict[str, dict[str, Fraction]]
    gpus: dict[str, dict[str, int]]
    signals: dict[str, Signal]
    watched: tuple[tuple[str, float, float], ...]
    primary: Signal | None
    kind: str
    target: float
    feedback: Layer | None
    layers: tuple[Layer, ...]
    clockwork: tuple[Clockwork, ...]
    slos: tuple[tuple[Signal, float], ...]
    idle: tuple[str, ...]
    contradictions: tuple[tuple[Signal, Signal], ...]
    target_text: str
    ratio_text: str
    within_out: str
    within_in: str
    _targets: dict[tuple[int, ...], dict[str, Fraction]] = field(default_factory=dict)
    _settled: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def settled(self, ratios: Ratios, counts: dict[str, int]) -> bool:
        """Whether counts are inside limits and band, and as near to the target as is asked for."""
        if ratios is not self.ratios:
            return self._near(ratios, counts)
        key = tuple(counts.values())
        found = self._settled.get(key)
        if found is None:
            found = self._settled[key] = self._near(ratios, counts)
        return found

    def _near(self, ratios: Ratios, counts: dict[str, int]) -> bool:
        return ratios.holds(counts) and ratios.drift(counts) <= self.config.maintenance.drift

    def targets(self, counts: dict[str, int]) -> dict[str, Fraction]:
        """Role -> capacity of its count of instances."""
        key = tuple(counts.values())
        known = self._targets.get(key)
        if known is None:
            known = {role: self.capacity[role] * count for role, count in counts.items()}
            self._targets[key] = known
        return dict(known)


def compile_service(fleet: Fleet, service: FleetService) -> CompiledService:
    """Work out what a step needs of a service of the fleet."""
    policy, primary = service.policy, service.policy.primary
    ratios = service_ratios(service)
    roles = tuple(service.roles)
    shapes = fleet.shapes[service.name]
    signal: Signal | None = None
    driver, target = roles[-1], 0.0
    if not isinstance(primary, Periodic):
        signal = fleet.signal[primary.signal]
        driver = driving_role(fleet, service, primary)
        if isinstance(primary, Throughput):
            target = throughput_target(fleet, service, primary, driver)
        elif isinstance(primary, Utilization):
            target = primary.target
    feedback = _layer(fleet, primary) if isinstance(primary, Feedback) else None
    layers = tuple(_layer(fleet, each) for each in policy.latency)
    slos = _slos(fleet, service, (*((feedback,) if feedback else ()), *layers))
    needed = [signal] if signal else []
    needed += [each.signal for each in layers] + [each for each, _ in slos]
    signals = {each.name: each for each in needed}
    highest = {each.name: 1.0 if each.kind == "utilization" else HIGHEST for each in needed}
    calm = dict(highest)
    for each in layers:
        calm[each.signal.name] = min(
            calm[each.signal.name], each.raises[-1][0] * (1 - 1e-9), each.no_scale_in_above
        )
    for objective, limit in slos:
        calm[objective.name] = min(calm[objective.name], limit)
    tie = ratios.ties[0] if ratios.ties else None
    return CompiledService(
        config=service,
        name=service.name,
        roles=roles,
        driver=driver,
        ratios=ratios,
        least=service.roles[driver].min,
        max_age=service.age.max_age,
        max_ahead=service.age.max_ahead,
        window=service.soft_scale_in.window,
        capacity={role: shapes[role][0].capacity for role in roles},
        equivalents={
            role: {
                str(shape.name): shape.capacity / shapes[role][0].capacity for shape in shapes[role]
            }
            for role in roles
        },
        gpus={role: _gpus(shapes[role][0].pod_list) for role in roles},
        signals=signals,
        watched=tuple((name, calm[name], most) for name, most in highest.items()),
        primary=signal,
        kind=primary.kind,
        target=target,
        feedback=feedback,
        layers=layers,
        clockwork=_clockwork(service, ratios),
        slos=slos,
        idle=tuple(each.name for each in fleet.signal.values() if each.kind == "throughput"),
        contradictions=_contradictions(fleet),
        target_text=number(target),
        within_out=f"; within {percent(service.stability.theta_out)} nothing changes",
        within_in=f"; within {percent(service.stability.theta_in)} nothing changes",
        ratio_text="" if tie is None else f"ratio {ratio(tie.target)}",
    )


def _layer(fleet: Fleet, feedback: Feedback) -> Layer:
    tiers = [(each.at * feedback.slo, each.change) for each in feedback.tiers]
    return Layer(
        signal=fleet.signal[feedback.signal],
        slo=feedback.slo,
        raises=tuple((at, change) for at, change in reversed(tiers) if change > 0),
        lowers=tuple((at, change) for at, change in tiers if change < 0),
        no_scale_in_above=feedback.no_scale_in_above * feedback.slo,
    )


def _slos(
    fleet: Fleet, service: FleetService, layers: tuple[Layer, ...]
) -> tuple[tuple[Signal, float], ...]:
    if service.soft_scale_in.window == 0:
        return ()
    limits = service.soft_scale_in.limits
    if limits:
        return tuple((fleet.signal[name], limit) for name, limit in limits.items())
    return tuple((each.signal, each.slo) for each in layers)


def _gpus(pods: tuple[tuple[str, int], ...]) -> dict[str, int]:
    total: dict[str, int] = {}
    for gpu_type, gpus in pods:
        total[gpu_type] = total.get(gpu_type, 0) + gpus
    return total


def _clockwork(service: FleetService, ratios: Ratios) -> tuple[Clockwork, ...]:
    primary = service.policy.primary
    found = []
    if isinstance(primary, Periodic):
        found.append(_schedule(True, primary.time_zone, primary.entries, ratios))
    for each in service.policy.schedules:
        found.append(_schedule(each.mode == "fixed", each.time_zone, each.entries, ratios))
    return tuple(found)


def _schedule(fixed: bool, zone: str, entries: tuple[Entry, ...], ratios: Ratios) -> Clockwork:
    return Clockwork(
        fixed=fixed,
        timetable=Timetable([each.cron for each in entries], time_zone(zone)),
        periods=tuple(
            Period(
                counts=entry_counts(ratios, each),
                ratios=None if each.ratio is None else ratios.with_target(each.ratio),
                words=f"the schedule {each.cron!r} ({zone})",
            )
            for each in entries
        ),
    )


def _contradictions(fleet: Fleet) -> tuple[tuple[Signal, Signal], ...]:
    signals = fleet.signal.values()
    return tuple(
        (throughput, other)
        for throughput in signals
        if throughput.kind == "throughput" and throughput.role is not None
        for other in signals
        if other.kind == "utilization" and other.role == throughput.role
    )
