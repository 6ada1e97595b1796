"""The loop itself: deliver what is due, compute a cycle, keep it, deliver it, wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from heteroplace.errors import InputError
from heteroplace.loop.action import Action
from heteroplace.loop.clock import Clock, Pace
from heteroplace.loop.cycle import Cycle, CycleError, Inputs, Phases, Thinker, observation
from heteroplace.loop.exporter import Metrics
from heteroplace.loop.handover import HandoverError, Retrying
from heteroplace.loop.logs import about
from heteroplace.loop.store import Entry, Recorded, Store
from heteroplace.policy.decision import Decision
from heteroplace.policy.readings import Problem
from heteroplace.policy.state import FleetState

log = logging.getLogger("heteroplace.loop")

T = TypeVar("T")

POLL = 0.2


@dataclass(frozen=True)
class Settings:
    """How the loop runs.

    Parameters
    ----------
    interval
        Seconds between the starts of two cycles.
    cycles
        How many cycles to run; null for no end.
    keep
        Decisions that the history keeps.
    """

    interval: float
    cycles: int | None = None
    keep: int = 100_000


class _StoppedError(Exception):
    """The loop is asked to end; nothing of this cycle was kept."""


class Loop:
    """Cycles on one state, until it is asked to stop.

    Parameters
    ----------
    thinker
        Computes the cycles.
    store
        Keeps them.
    handover
        Hands the actions over; null for a dry run, which keeps decisions but hands nothing over.
    settings
        How it runs.
    clock
        Tells the time.
    metrics
        Counts for Prometheus; null for none.
    report
        Called with each cycle that ended well.
    stop
        Set by another thread when the loop should end; null for never.

    Notes
    -----
    What is computed runs in a thread of its own, so that a request to stop need not wait for a
    solver; what is kept and handed over runs here, and is finished.
    """

    def __init__(
        self,
        thinker: Thinker,
        store: Store,
        handover: Retrying | None,
        settings: Settings,
        clock: Clock,
        metrics: Metrics | None = None,
        report: Callable[[Cycle], None] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._thinker = thinker
        self._store = store
        self._handover = handover
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._stop = threading.Event() if stop is None else stop
        self._state = read_state(store)
        self._problems: frozenset[Problem] = frozenset()
        self._drivers: dict[str, str] = {}
        self._looked_at: float | None = None

    def run(self) -> int:
        """Run until asked to stop, or for as many cycles as the settings say.

        Returns
        -------
        int
            Number of cycles that failed.
        """
        pace = Pace(self._clock, self._settings.interval)
        done = failed = 0
        if self._handover is not None:
            waiting = self._store.outbox()
            self._handover.handover.tidy([each.id for each in waiting])
            if waiting:
                log.info("%d actions of an earlier run are handed over first", len(waiting))
        while not self._stop.is_set():
            try:
                failed += not self.cycle()
            except _StoppedError:
                break
            done += 1
            if done == self._settings.cycles or pace.wait(self._stop):
                break
        return failed

    def cycle(self) -> bool:
        """Run one cycle; whatever fails in it is logged and counted, and leaves nothing half done.

        Returns
        -------
        bool
            Whether it ended well.
        """
        try:
            self._deliver()
            cycle = self._aside(self._thinker.run, self._inputs())
            self._keep(cycle)
            self._deliver()
        except CycleError as error:
            log.error(
                "cycle failed in phase %s: %s",
                error.phase,
                error,
                extra=about(event="cycle_failed", phase=error.phase),
            )
            if self._metrics is not None:
                self._metrics.failed(error.phase)
            return False
        finally:
            self._count_actions()
        if self._metrics is not None:
            self._metrics.succeeded(cycle.now, observation(cycle))
        return True

    def _count_actions(self) -> None:
        if self._metrics is None:
            return
        try:
            counts = self._store.counts()
        except InputError as error:
            log.error("%s", error)
            return
        self._metrics.waiting(counts["outbox"], counts["pending"])

    # ----------------------------------------------------------------------------------------
    # Computing
    # ----------------------------------------------------------------------------------------

    def _inputs(self) -> Inputs:
        """What the cycle begins with."""
        now = self._clock.wall()
        if self._state.at is not None and now < self._state.at:
            log.warning(
                "the clock went back by %.3f s since the last cycle",
                self._state.at - now,
                extra=about(event="clock_back"),
            )
        try:
            return inputs_of(self._store, self._state, now, self._elapsed())
        except InputError as error:
            raise CycleError("commit", str(error)) from None

    def _elapsed(self) -> float:
        """Seconds since the last cycle that was kept.

        Monotonic, so that a jump of the wall clock does not use an action's patience up. Of the
        time before this process at most one interval counts: enough where each cycle is a process.
        """
        steady = self._clock.monotonic()
        if self._looked_at is None:
            last = self._state.at
            before = 0.0 if last is None else self._clock.wall() - last
            self._looked_at = steady - min(max(before, 0.0), self._settings.interval)
        return steady - self._looked_at

    def _aside(self, call: Callable[[Inputs], T], inputs: Inputs) -> T:
        """Run something that can be given up, until it ends or the loop is asked to stop."""
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                results.append(call(inputs))
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=work, name="heteroplace-cycle", daemon=True).start()
        while not done.wait(POLL):
            if self._stop.is_set():
                raise _StoppedError
        if errors:
            raise errors[0]
        if self._stop.is_set():
            raise _StoppedError
        return results[0]

    # ----------------------------------------------------------------------------------------
    # Keeping
    # ----------------------------------------------------------------------------------------

    def _keep(self, cycle: Cycle) -> None:
        """Write the cycle down, then say what it decided."""
        phases = Phases()
        dry = self._handover is None
        notable = [each for each in cycle.decisions if self._is_notable(each)]
        action = None if dry else cycle.action
        elapsed = self._elapsed()
        looked_at = self._clock.monotonic()
        with phases("commit"):
            waited = {
                each.id: each.waited + elapsed
                for each in self._store.pending()
                if each.id not in cycle.overlaid.settled
            }
            self._store.commit(
                cycle.now,
                cycle.state.to_json(),
                [_entry(each, cycle.now, action) for each in notable],
                None if action is None else action.to_json(),
                waited=waited,
                settled=cycle.overlaid.settled,
                keep=self._settings.keep,
            )
        self._state, self._looked_at = cycle.state, looked_at
        self._drivers = {each.service: each.driver for each in cycle.decisions}
        self._say(cycle, notable, action)
        if self._metrics is not None:
            self._metrics.spent(phases.seconds)
        if self._report is not None:
            self._report(cycle)

    def _is_notable(self, decision: Decision) -> bool:
        """Whether a decision is more than a plain hold, or the hold has another cause than before.

        A service that holds for want of data says so once, not every cycle.
        """
        before = self._state.services.get(decision.service)
        held = {} if before is None else dict(before.held)
        if decision.action != "hold" or decision.terminate or decision.restore:
            return True
        if dict(decision.held) != held:
            return True
        known = self._drivers.get(decision.service)
        return decision.driver != known and "data" in (decision.driver, known)

    def _say(self, cycle: Cycle, notable: Iterable[Decision], action: Action | None) -> None:
        for name, how in cycle.overlaid.settled.items():
            if how == "expired":
                log.warning(
                    "action %s does not show on the cluster after %g s; the cluster is believed",
                    name,
                    self._thinker.patience,
                    extra=about(event="action_expired", action_id=name),
                )
        problems = frozenset(cycle.problems)
        for problem in sorted(
            problems - self._problems, key=lambda each: (each.service, each.signal, each.message)
        ):
            log.warning(
                "metrics: %s",
                " ".join(filter(None, (problem.service, problem.signal, problem.message))),
                extra=about(event="problem", service=problem.service, signal=problem.signal),
            )
        self._problems = problems
        action_id = None if action is None else action.id
        for each in notable:
            log.info(
                "%s: %s: %s",
                each.service,
                each.action,
                each.reason,
                extra=about(
                    event="decision",
                    service=each.service,
                    action=each.action,
                    reason=each.reason,
                    driver=each.driver,
                    before=dict(each.before),
                    counts=dict(each.counts),
                    age=each.age,
                    action_id=action_id,
                ),
            )

    # ----------------------------------------------------------------------------------------
    # Handing over
    # ----------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand over what is in the outbox, in order; stops at the first that cannot be."""
        if self._handover is None:
            return
        phases = Phases()
        with phases("commit"):
            outbox = self._store.outbox()
        for recorded in outbox:
            with phases("handover"):
                self._hand_over(recorded)
        if outbox and self._metrics is not None:
            self._metrics.spent({"handover": phases.seconds["handover"]})

    def _hand_over(self, recorded: Recorded) -> None:
        assert self._handover is not None
        try:
            outcome = self._handover.deliver(recorded, self._stop, self._store.begin_attempt)
        except HandoverError as error:
            raise CycleError("handover", f"action {recorded.id}: {error}") from None
        if outcome == "delivered":
            self._store.delivered(recorded.id, self._clock.wall())
        else:
            self._store.refused(recorded.id, self._clock.wall())
            self._state = read_state(self._store)
        self._handover.handover.tidy([each.id for each in self._store.outbox()])
        log.info(
            "action %s was %s",
            recorded.id,
            outcome,
            extra=about(event=f"action_{outcome}", action_id=recorded.id),
        )
        if self._metrics is not None:
            self._metrics.handed_over(outcome)


def read_state(store: Store) -> FleetState:
    """The policies' state that a store keeps, or a new one.

    Raises
    ------
    InputError
        If it is not a state.
    """
    text = store.fleet_state
    return FleetState() if text is None else FleetState.from_json(text, store.path)


def inputs_of(store: Store, state: FleetState, now: float, elapsed: float = 0.0) -> Inputs:
    """What a cycle begins with.

    Parameters
    ----------
    store
        Where actions are looked up.
    state
        Of the policies.
    now
        Wall time in unix seconds.
    elapsed
        Seconds that the pending actions have waited beyond what the store knows.

    Raises
    ------
    InputError
        If the store cannot be read.
    """
    sequence, name = store.next_action()
    return Inputs(
        state=state,
        now=now,
        sequence=sequence,
        action=name,
        pending=[
            (Action.from_json(each.document, store.path), each.waited + elapsed)
            for each in (*store.pending(), *store.outbox())
        ],
    )


def _entry(decision: Decision, at: float, action: Action | None) -> Entry:
    concerned = action is not None and any(
        each.service == decision.service for each in action.decisions
    )
    return Entry(
        at=at,
        service=decision.service,
        action=decision.action,
        reason=decision.reason,
        decision=decision.model_dump_json(),
        action_id=action.id if action is not None and concerned else None,
    )
