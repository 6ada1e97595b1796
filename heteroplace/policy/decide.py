"""One step of the policies: from readings and the last step's state to targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from heteroplace.garbage import uncollected
from heteroplace.plan import assembled
from heteroplace.policy.compiled import CompiledService
from heteroplace.policy.decision import Decision, Step
from heteroplace.policy.degradation import degrade
from heteroplace.policy.duration import spoken
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.judge import judge
from heteroplace.policy.maintenance import maintain
from heteroplace.policy.move import move
from heteroplace.policy.need import SLACK
from heteroplace.policy.observation import observe_withdrawn
from heteroplace.policy.observed import Observed, RoleObserved
from heteroplace.policy.readings import Problem, Snapshot
from heteroplace.policy.registration import gate
from heteroplace.policy.state import FleetState, ServiceState
from heteroplace.policy.timers import rebased
from heteroplace.policy.words import counts as counted
from heteroplace.policy.work import Work

_NOTHING = RoleObserved()
_DECISION = set(Decision.model_fields)
_STATE = set(ServiceState.model_fields)


def decide(
    fleet: Fleet,
    state: FleetState,
    snapshot: Snapshot,
    observed: Observed,
    free_gpus: Mapping[str, int] | None = None,
) -> Step:
    """Decide the targets of every service for this step.

    The order in which a service is thought through: readings are judged; instances under
    observation come back or end; the primary policy asks; the latency layers raise; cooldowns,
    step limits and the bans on lowering apply; schedules and limits apply; the ratio gives the
    counts; a service that holds may return to its ratio. Then, over all services, degradation.

    Parameters
    ----------
    fleet
        The configuration.
    state
        What the last step returned, with what was put under observation since; an empty
        :class:`FleetState` at first.
    snapshot
        The readings and the time of the step.
    observed
        What runs.
    free_gpus
        GPU type -> GPUs that nothing occupies, for the degradation; null when not known, so that
        nothing degrades.

    Returns
    -------
    Step
        Nothing is done yet: keep its state, then act on its decisions.
    """
    with uncollected():
        return _step(fleet, state, snapshot, observed, free_gpus)


def _step(
    fleet: Fleet,
    state: FleetState,
    snapshot: Snapshot,
    observed: Observed,
    free_gpus: Mapping[str, int] | None,
) -> Step:
    now = snapshot.now
    state, back = rebased(state, now)
    explain = _explainer(snapshot.problems)
    works = [
        _work(
            service,
            state.services.get(service.name),
            snapshot,
            observed.get(service.name, {}),
            explain,
        )
        for service in fleet.compiled
    ]
    if free_gpus is not None and fleet.degradation.enabled:
        degrade(works, observed, free_gpus)
    note = f"; the clock went back by {spoken(back)}, timers keep what had passed" if back else ""
    decisions, services = [], {}
    for work in works:
        last = state.services.get(work.service.name)
        if last is not None and last.degraded and not work.degraded:
            work.degraded = _still_leaving(work)
        decisions.append(_decision(work, note))
        services[work.service.name] = _remembered(work, last)
    return Step(tuple(decisions), FleetState(at=now).model_copy(update={"services": services}))


def _explainer(problems: tuple[Problem, ...]) -> Callable[[str, str], str]:
    said: dict[tuple[str, str], str] = {}
    for each in problems:
        said.setdefault((each.service, each.signal), each.message.rstrip("."))

    def explain(service: str, signal: str) -> str:
        for key in ((service, signal), ("", signal), (service, ""), ("", "")):
            if key in said:
                return said[key]
        return ""

    return explain


def _work(
    service: CompiledService,
    remembered: ServiceState | None,
    snapshot: Snapshot,
    running: Mapping[str, RoleObserved],
    explain: Callable[[str, str], str],
) -> Work:
    """Think one service through, all but the degradation."""
    present, serving, waiting = {}, 0.0, False
    for role in service.roles:
        each = running.get(role, _NOTHING)
        ready = each.ready.numerator / each.ready.denominator
        registered = each.registered.numerator / each.registered.denominator
        starting = each.starting
        present[role] = ready + starting.numerator / starting.denominator if starting else ready
        if role == service.driver:
            serving = registered
        waiting = waiting or registered < ready
    before = _before(service, remembered, present)
    work = Work(
        service=service,
        now=snapshot.now,
        judged=judge(
            service,
            snapshot.readings.get(service.name, {}),
            snapshot.now,
            serving,
            explain,
        ),
        before=before,
        counts=before,
        running=present,
        serving=serving,
        last_out=None if remembered is None else remembered.last_out,
        last_in=None if remembered is None else remembered.last_in,
        ratios=service.ratios,
        withdrawn=() if remembered is None else remembered.withdrawn,
        returns=0 if remembered is None else remembered.returns,
        last_return=None if remembered is None else remembered.last_return,
    )
    if work.withdrawn:
        observe_withdrawn(work)
    if not work.restore:
        move(work)
        if work.action == "hold":
            maintain(work)
    if waiting:
        gate(work, running, None if remembered is None else remembered.held_since)
    return work


def _before(
    service: CompiledService, remembered: ServiceState | None, present: dict[str, float]
) -> dict[str, int]:
    """Counts that the targets asked for; what runs, where nothing is remembered."""
    counts = {} if remembered is None else remembered.counts
    if tuple(counts) == service.roles:
        return counts
    return {role: counts.get(role, math.ceil(present[role] - 1e-9)) for role in service.roles}


def _still_leaving(work: Work) -> bool:
    """Whether instances run that a degradation took from the counts, and nothing else moved them.

    The placement may take several cycles to let them go.
    """
    return work.counts == work.before and any(
        work.running[role] > count + SLACK for role, count in work.counts.items()
    )


def _decision(work: Work, note: str) -> Decision:
    words = work.words
    if work.action == "hold" and work.driver == "data":
        words.append(f"the last targets of {counted(work.before)} are held")
    age = None if work.judged.oldest is None else max(0.0, work.now - work.judged.oldest)
    return assembled(
        Decision,
        {
            "service": work.service.name,
            "action": work.action,
            "before": work.before,
            "counts": work.counts,
            "targets": work.service.targets(work.counts),
            "driver": work.driver,
            "reason": "; ".join(words) + note,
            "held": work.held,
            "window": 0.0 if work.degraded else work.service.window,
            "terminate": work.terminate,
            "restore": work.restore,
            "age": age,
        },
        _DECISION,
    )


def _remembered(work: Work, last: ServiceState | None) -> ServiceState:
    good = work.now if not work.judged.faults else None if last is None else last.last_good
    return assembled(
        ServiceState,
        {
            "counts": work.counts,
            "last_out": work.now if work.action == "out" else work.last_out,
            "last_in": work.now if work.action == "in" else work.last_in,
            "last_good": good,
            "withdrawn": work.withdrawn,
            "returns": work.returns,
            "last_return": work.last_return,
            "degraded": work.degraded,
            "held": work.held,
            "held_since": work.held_since,
        },
        _STATE,
    )
