"""Which readings of a service can be used, and what is wrong with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from heteroplace.policy.compiled import HIGHEST, CompiledService
from heteroplace.policy.duration import spoken
from heteroplace.policy.readings import Reading
from heteroplace.policy.signals import Signal
from heteroplace.policy.words import number, percent

BUSY = 0.5
"""A utilization from here on contradicts a throughput of 0 of the same role (not in the paper)."""

NO_FAULTS: Mapping[str, str] = MappingProxyType({})
Explain = Callable[[str, str], str]


@dataclass(slots=True)
class Judged:
    """The readings of a service that can be used.

    Parameters
    ----------
    good
        By signal.
    faults
        Signal -> what is wrong with its reading, as the end of a sentence.
    calm
        Whether every reading is good and so low that no layer or objective has a say.
    idle
        Whether nothing is asked of the service, so that there are no latencies.
    oldest
        Time of the oldest good reading, in Unix seconds; null when there is none.
    """

    good: Mapping[str, Reading]
    faults: Mapping[str, str]
    calm: bool = False
    idle: bool = False
    oldest: float | None = None


def judge(
    service: CompiledService,
    readings: Mapping[str, Reading],
    now: float,
    serving: float,
    explain: Explain,
) -> Judged:
    """Judge the readings that a service's policies need.

    Parameters
    ----------
    service
        The service.
    readings
        Its newest readings by signal.
    now
        Time of the step, in Unix seconds.
    serving
        Instances of the driving role that serve.
    explain
        Gives what a source says about (service, signal) without a reading, or nothing.
    """
    oldest, calm = _oldest(service, readings, now)
    if oldest is None:
        judged = _sorted_out(service, readings, now, explain)
    else:
        judged = Judged(readings, NO_FAULTS, calm=calm, oldest=oldest if service.watched else None)
    _contradicted(service, judged, readings, now, serving)
    return judged


def _oldest(
    service: CompiledService, readings: Mapping[str, Reading], now: float
) -> tuple[float | None, bool]:
    """Time of the oldest reading, null when one is not good; and whether all are calm."""
    from_, until = now - service.max_age, now + service.max_ahead
    oldest, calm = until, True
    for name, quiet, highest in service.watched:
        reading = readings.get(name)
        if reading is None:
            return None, False
        value, at = reading.value, reading.at
        # Not a number fails every comparison.
        if not (0.0 <= value <= highest and from_ <= at <= until):
            return None, False
        if value > quiet:
            calm = False
        if at < oldest:
            oldest = at
    return oldest, calm


def fault(
    signal: Signal, reading: Reading | None, now: float, max_age: float, max_ahead: float
) -> str | None:
    """What is wrong with a reading, as the end of a sentence; null when it is good."""
    if reading is None:
        return "has no reading"
    value, at = reading.value, reading.at
    if not math.isfinite(value):
        return f"reads {value}, which is not a number"
    if value < 0:
        return f"reads {number(value)}, less than 0"
    if signal.kind == "utilization" and value > 1:
        hint = "; it must be a share, not a percentage" if value <= 100 else ""
        return f"reads {number(value)}, more than 1 is not possible{hint}"
    if value > HIGHEST:
        return f"reads {value:.3g}, more than is possible"
    if not math.isfinite(at):
        return "has a reading without a time"
    if at > now + max_ahead:
        return f"has a reading from {spoken(at - now)} in the future"
    if at < now - max_age:
        return f"has its last reading {spoken(now - at)} ago, the limit is {spoken(max_age)}"
    return None


def _sorted_out(
    service: CompiledService, readings: Mapping[str, Reading], now: float, explain: Explain
) -> Judged:
    age = service.config.age
    good: dict[str, Reading] = {}
    faults: dict[str, str] = {}
    for name, signal in service.signals.items():
        reading = readings.get(name)
        wrong = fault(signal, reading, now, age.max_age, age.max_ahead)
        if wrong is None:
            assert reading is not None
            good[name] = reading
        else:
            said = explain(service.name, name) if reading is None else ""
            faults[name] = f"{signal.label} {wrong}{f' ({said})' if said else ''}"
    judged = Judged(good, faults)
    judged.oldest = min((each.at for each in good.values()), default=None)
    if any(service.signals[name].kind == "latency" for name in faults):
        judged.idle = _idle(service, readings, now)
        if judged.idle:
            for name in [*faults]:
                reading = readings.get(name)
                no_value = reading is None or math.isnan(reading.value)
                if service.signals[name].kind == "latency" and no_value:
                    del faults[name]
    return judged


def _idle(service: CompiledService, readings: Mapping[str, Reading], now: float) -> bool:
    """Whether a good reading says that the throughput is 0, and none says otherwise."""
    age = service.config.age
    zero = False
    for name in service.idle:
        reading = readings.get(name)
        if reading is not None and (
            reading.value >= 0 and now - age.max_age <= reading.at <= now + age.max_ahead
        ):
            if reading.value > 0:
                return False
            zero = True
    return zero


def _contradicted(
    service: CompiledService,
    judged: Judged,
    readings: Mapping[str, Reading],
    now: float,
    serving: float,
) -> None:
    """Move readings that cannot all be true from good to faults."""
    primary = service.primary
    if primary is None or service.kind != "throughput":
        return
    reading = judged.good.get(primary.name)
    if reading is None or (reading.value > 0 and serving > 0):
        return
    wrong = None
    if reading.value > 0:
        wrong = (
            f"{primary.label} reads {number(reading.value)} {primary.unit} while no "
            f"{service.driver} instance serves"
        )
    else:
        age = service.config.age
        for throughput, other in service.contradictions:
            if throughput is not primary and throughput.name != primary.name:
                continue
            busy = readings.get(other.name)
            if (
                busy is not None
                and fault(other, busy, now, age.max_age, age.max_ahead) is None
                and busy.value >= BUSY
            ):
                wrong = (
                    f"{primary.label} reads 0 while {other.label} reads {percent(busy.value)}, "
                    "which contradict each other"
                )
                break
    if wrong is not None:
        judged.good = {name: each for name, each in judged.good.items() if name != primary.name}
        judged.faults = {**judged.faults, primary.name: wrong}
