"""How many instances of the driving role the signals ask for (paper, Algorithms 2 and 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from heteroplace.policy.compiled import HIGHEST, Layer
from heteroplace.policy.readings import Reading
from heteroplace.policy.words import number, percent
from heteroplace.policy.work import Work

# Counts that differ by less are the same: the rest is rounding of floats.
SLACK = 1e-9


@dataclass(slots=True)
class Ask:
    """What is asked of the driving role.

    Parameters
    ----------
    count
        Instances.
    driver
        The signal's name, or ``data`` when its reading is not good.
    why
        The reason, as part of a sentence.
    least
        The need itself, below which no rounding goes.
    """

    count: int
    driver: str
    why: str
    least: int


def primary_ask(work: Work) -> Ask:
    """Ask of the primary policy; the present count when it has no good reading."""
    service, now_count = work.service, work.before[work.service.driver]
    signal = service.primary
    assert signal is not None
    reading = work.judged.good.get(signal.name)
    if reading is None and not (service.feedback and work.judged.idle):
        return Ask(now_count, "data", "", now_count)
    if service.feedback is not None:
        return feedback_ask(work, service.feedback, reading)
    assert reading is not None
    return _proportional(work, reading)


def _proportional(work: Work, reading: Reading) -> Ask:
    """Algorithm 2: I* = M / M_target, or I U / U_target, with hysteresis and damping."""
    service = work.service
    signal, role, stability = service.primary, service.driver, service.config.stability
    assert signal is not None
    now_count, serving = work.before[role], work.serving
    if service.kind == "throughput":
        need = min(reading.value / service.target, HIGHEST)
        whole = math.ceil(need - SLACK)
        why = f"{signal.label} of {number(reading.value)} {signal.unit} needs "
        end = f" at {service.target_text} each; "
    else:
        need = min(serving * reading.value / service.target, HIGHEST)
        whole = math.ceil(need - SLACK)
        why = f"{signal.label} of {percent(reading.value)} on {number(serving)} serving needs "
        end = f" for {percent(service.target)}; "
    why += f"1 {role} instance" if whole == 1 else f"{whole} {role} instances"
    if abs(serving - now_count) < SLACK:
        why += f"{end}1 runs" if now_count == 1 else f"{end}{now_count} run"
    else:
        why += f"{end}the targets stand at {now_count}, {number(serving)} serve"
    if need > now_count * (1 + stability.theta_out) + SLACK:
        damped = now_count + stability.damping * (need - now_count)
        # A need above what there is asks for one instance at least, however damped.
        count = max(math.ceil(damped - SLACK), now_count + 1)
        return Ask(count, signal.name, why + _damped(count, whole), whole)
    if need < now_count * (1 - stability.theta_in) - SLACK:
        if need >= work.serving * (1 - stability.theta_in) - SLACK:
            # What serves is as loaded as it should be: less load than the targets stand for may
            # only mean that the rest has not started yet.
            return Ask(now_count, signal.name, f"{why}; what serves has no room to spare", whole)
        damped = now_count - stability.damping * (now_count - need)
        count = max(whole, min(math.ceil(damped - SLACK), now_count - 1))
        return Ask(count, signal.name, why + _damped(count, whole), whole)
    within = service.within_out if need > now_count else service.within_in
    return Ask(now_count, signal.name, why + within, whole)


def _damped(count: int, whole: int) -> str:
    return "" if count == whole else f"; damping asks for {count} now"


def feedback_ask(work: Work, layer: Layer, reading: Reading | None) -> Ask:
    """Algorithm 3 as the primary policy: a fixed step out or in by the tier of the latency.

    Parameters
    ----------
    work
        The service.
    layer
        The feedback.
    reading
        The latency; null when the service is idle, which is as good as a low one.
    """
    name, now_count = layer.signal.name, work.before[work.service.driver]
    if reading is None:
        if not layer.lowers:
            return Ask(now_count, name, f"{layer.signal.label} has no value while idle", now_count)
        count, step = _lowered(now_count, layer.lowers[0][1])
        return Ask(count, name, f"no load, so no {layer.signal.label}, {step}", count)
    why = latency_words(layer, reading)
    change = raising(layer, reading.value)
    if change:
        if reading.at <= work.last_action:
            why = f"{why}, a reading after the last action is awaited"
            return Ask(now_count, name, why, now_count)
        count, effect = _raised_from_what_runs(work, change)
        return Ask(count, name, f"{why}, {effect}", count)
    lower = next((tier for tier in layer.lowers if reading.value <= tier[0]), None)
    if lower is None or reading.at <= work.last_action:
        return Ask(now_count, name, why, now_count)
    count, step = _lowered(now_count, lower[1])
    return Ask(count, name, f"{why}, {step}", count)


def latency_words(layer: Layer, reading: Reading) -> str:
    """Write how a latency stands to its SLO."""
    return (
        f"{layer.signal.label} of {number(reading.value)} s is "
        f"{reading.value / layer.slo:.2f} times its SLO of {number(layer.slo)} s"
    )


def raising(layer: Layer, latency: float) -> float:
    """Change of the highest tier above the SLO that a latency has reached; 0 when there is none."""
    for at, change in layer.raises:
        if latency >= at:
            return change
    return 0.0


def raised(count: int, change: float) -> int:
    """Count after a tier's step out: at least one more."""
    return max(count + 1, math.ceil(count * (1 + change) - SLACK))


def _raised_from_what_runs(work: Work, change: float) -> tuple[int, str]:
    """Count after a tier's step out, and its effect in words.

    Instances that the targets ask for and that nothing runs yet, starting ones aside, are not
    added to: where GPUs are short, a latency that stays high would raise the targets without end.
    """
    role = work.service.driver
    now_count, runs = work.before[role], math.ceil(work.running[role] - SLACK)
    count = max(now_count, raised(min(now_count, runs), change))
    if count > now_count:
        return count, f"which adds {percent(change)}"
    return now_count, f"but only {runs} of {now_count} {role} have a place so far"


def _lowered(count: int, change: float) -> tuple[int, str]:
    step = max(1, int(-change * count + SLACK))
    return max(0, count - step), f"which takes {percent(-change)} off"


def with_layers(work: Work, ask: Ask) -> Ask:
    """Raise what the primary policy asks by the latency layers; they never lower it."""
    if work.judged.calm:
        return ask
    now_count = work.before[work.service.driver]
    good, last_action = work.judged.good, work.last_action
    top: tuple[float, Layer, Reading] | None = None
    awaited: tuple[Layer, Reading] | None = None
    for layer in work.service.layers:
        reading = good.get(layer.signal.name)
        if reading is None or reading.value < layer.raises[-1][0]:
            continue
        change = raising(layer, reading.value)
        if reading.at <= last_action:
            awaited = awaited or (layer, reading)
        elif top is None or change > top[0]:
            top = change, layer, reading
    lead = f"{ask.why}; " if ask.why else ""
    if top is not None:
        change, layer, reading = top
        count, effect = _raised_from_what_runs(work, change)
        if count > ask.count or (count == ask.count == now_count):
            why = f"{lead}{latency_words(layer, reading)}, {effect}"
            return Ask(count, layer.signal.name, why, count)
    if awaited is not None and ask.count <= now_count:
        why = f"{lead}{latency_words(*awaited)}, a reading after the last action is awaited"
        return Ask(now_count, ask.driver, why, now_count)
    return ask
