"""What the exact solvers ask of an engine, and the walk through the objective's steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

import numpy as np

from heteroplace.formulation.program import Arrays, Floats, Ints, ProgramStep
from heteroplace.profile import Profile
from heteroplace.solve.stages import stage

log = logging.getLogger("heteroplace")

T = TypeVar("T")

Rounding = Callable[[Floats], Ints | None]

PROVEN_GAP = Fraction(1, 10**6)
GRACE = 0.05
LONGEST = 10.0**8
STOPPING = 10.0
LARGE = 2000
MERGED_SHARE = 0.4
# Where branch and bound would not come far, most of the time is better spent on the plan.
PROOF_PACE = 4e-4
HASTY_SHARE = 0.6
UNMET_SHARE = 0.8
# Part of that which is polished before branch and bound where much more time is left.
HEAD_START = 0.2
# Where the whole program is minimised in haste, branch and bound keeps a little.
WHOLE_SHARE = 0.8
SHARPENING_SHARE = 0.2
HASTY_SHARPENING_SHARE = 0.7
RELAXATION_SHARE = 0.3
LAST_SHARE = 0.6
STEP_SHARE = 0.5
ENDED_BY_TIME = 0.85
ROUNDING_PATIENCE = 3.0
# Part of a step that the greedy may lack where a relaxation is likely to meet all of it; what a
# relaxation may lack of any column.
OFTEN_MET = 0.1
MET = 1e-6
DOMINANCE = 300.0
MERGED_SCALE = 10**4


class EngineMissingError(RuntimeError):
    """An engine that is not installed; the message says how to install it."""


class UnsuitedError(RuntimeError):
    """A program whose numbers an engine cannot represent."""


@dataclass(frozen=True)
class Answer:
    """What an engine found for one step.

    Parameters
    ----------
    solution
        Its best solution, rounded to integers; null when it found none.
    bound
        A lower bound of the step in units, constant included; null when it has none.
    """

    solution: Ints | None
    bound: int | None


Caps = Sequence[tuple[ProgramStep, int]]
Steps = Sequence[ProgramStep]


@dataclass(frozen=True)
class Relaxation:
    """What the linear relaxation says of a step.

    Parameters
    ----------
    bound
        Lower bound in units, constant included.
    x
        A solution of the relaxation.
    complete
        Whether it is solved to its end; if not, its solution may be far from the best.
    """

    bound: int
    x: Floats
    complete: bool = True


class Engine(Protocol):
    """A solver of integer programs.

    An engine is loaded once and then asked about one step after the other. ``caps`` are the steps
    that are to stay at or below a value in units.
    """

    name: str

    @property
    def polishes(self) -> bool:
        """Whether :meth:`improve` searches neighbourhoods of a plan, not the whole program."""

    @property
    def polishes_on(self) -> bool:
        """Whether :meth:`minimise` searches neighbourhoods of the start beside its proof.

        That is of the step relaxed last, within a time.
        """

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds; raises :class:`EngineMissingError`."""

    def minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        """Minimise a step within a time, from a start if there is one."""

    def improve(
        self, steps: Steps, caps: Caps, start: Ints | None, seconds: float | None
    ) -> list[Ints]:
        """Look for solutions that are good in some steps in order, without proof."""

    def relax(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Relaxation | None:
        """Solve the linear relaxation of a step; null when there is no time or no such thing."""

    def sharpen(self, step: ProgramStep, x: Ints, seconds: float | None) -> int | None:
        """A bound of the step relaxed last, with its caps, that may be better than that.

        Null when there is none; ``x`` is a solution of the program that keeps the caps.
        """


@dataclass
class StepOutcome:
    """A step after the walk: value in units of the best solution and its bound, if known."""

    value: int | None
    bound: int | None

    @property
    def proven(self) -> bool:
        """Whether the value is within the proving gap of the bound."""
        if self.value is None or self.bound is None:
            return False
        return self.value - self.bound <= abs(self.value) * PROVEN_GAP


@dataclass
class Walk:
    """The outcome of all steps.

    Parameters
    ----------
    solution
        Best solution; null when there is none.
    steps
        Outcome of each step, in order.
    late
        Whether the time ran out, for a step or for all.
    """

    solution: Ints | None
    steps: list[StepOutcome]
    late: bool


def walk_steps(
    engine: Engine,
    arrays: Arrays,
    steps: list[ProgramStep],
    start: Ints | None,
    deadline: float | None,
    rounding: Rounding | None = None,
) -> Walk:
    """Minimise the steps in order, each without worsening the ones before.

    A large program is first relaxed step by step, what the relaxations say is rounded, and all open
    steps are improved at once, weighted. Then every step gets the bound of its relaxation or a
    better one, so that the result has one even when the time runs out early; then the steps are
    minimised one by one. Where branch and bound would not come far in the time that is left, the
    steps are improved at once to the end instead.

    Parameters
    ----------
    engine
        A loaded engine.
    arrays
        The rows; every solution is verified against them exactly.
    steps
        In the order of the objective.
    start
        A feasible solution, if there is one.
    deadline
        ``time.monotonic()`` at which to stop; null for none.
    rounding
        Makes a solution of the program from one of its relaxation, if it can.
    """
    walker = _Walker(engine, arrays, steps, start, deadline)
    if rounding is not None:
        walker.guide(rounding)
    walker.improve_all_at_once()
    if any(index + 1 < len(steps) for index in walker.open_steps()):
        # What is unmet comes before what the cost is at least.
        walker.improve_in_haste(UNMET_SHARE)
    walker.bound_all()
    walker.improve_in_haste(1.0)
    walker.minimise_in_order()
    return Walk(walker.best, walker.outcomes, walker.late or walker.cut_short)


class _Walker:
    def __init__(
        self,
        engine: Engine,
        arrays: Arrays,
        steps: list[ProgramStep],
        start: Ints | None,
        deadline: float | None,
    ) -> None:
        self.engine = engine
        self.arrays = arrays
        self.steps = steps
        self.deadline = deadline
        self.late = False
        self.cut_short = False
        self.best: Ints | None = None
        self.rounded: Ints | None = None
        # Of each step the relaxations that were solved: values the steps before were capped at,
        # and the bound.
        self.relaxed: list[list[tuple[list[int], int]]] = [[] for _ in steps]
        # The step that was relaxed last, and the values that those before were capped at.
        self.priced: tuple[ProgramStep, list[int]] | None = None
        self.outcomes = [StepOutcome(None, _floor(step, arrays)) for step in steps]
        self.offer(start)

    def seconds(self, share: float) -> float | None:
        """A share of the time that is left; 0 and ``late`` when there is none."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        self.late = left <= 0
        return max(0.0, left) * share

    def offer(self, found: Ints | None) -> None:
        """Take a solution if it keeps all rows and is better in the order of the steps."""
        if found is None:
            return
        if not self.arrays.feasible(found):
            broken = len(self.arrays.broken_rows(found))
            log.info("an engine's solution breaks %d rows after rounding", broken)
            return
        values = [step.value(found) for step in self.steps]
        if self.best is None or values < [step.value(self.best) for step in self.steps]:
            self.best = found
            looser = False
            for step, outcome, value in zip(self.steps, self.outcomes, values, strict=True):
                if looser:
                    # Its bound was found with a step before it capped at less than it has now.
                    outcome.bound = _floor(step, self.arrays)
                looser = looser or (outcome.value is not None and value > outcome.value)
                outcome.value = value

    def open_steps(self) -> list[int]:
        """Steps that are not proven."""
        return [index for index, outcome in enumerate(self.outcomes) if not outcome.proven]

    def improve_all_at_once(self) -> None:
        """Minimise one weighted sum of the open steps; what it finds is a start, not a proof."""
        unproven = self.open_steps()
        if len(self.arrays.lower) < LARGE or not unproven:
            return
        first = min(unproven)
        start = self.best
        if self.rounded is not None:
            start, self.rounded = self.rounded, None
            # It may be worse in a step that is proven for the best solution.
            worse = [
                index
                for index, (step, outcome) in enumerate(zip(self.steps, self.outcomes, strict=True))
                if outcome.value is None or step.value(start) > outcome.value
            ]
            first = min([first, *worse])
        seconds = self.seconds(1.0)
        if seconds is not None:
            seconds = self.before_proof(first, seconds)
        self.improve(first, start, seconds)

    def before_proof(self, first: int, seconds: float) -> float:
        """How much of some seconds to spend on all steps from one on, before the proofs."""
        if self.hasty(seconds):
            return seconds * (HASTY_SHARE if self.engine.polishes else WHOLE_SHARE)
        # No less than where a little less time would have made haste, all phases together.
        least = WHOLE_SHARE * self.proof_seconds
        share = max(MERGED_SHARE * seconds, least)
        if not self.engine.polishes_on:
            return share
        if first + 1 < len(self.steps):
            return min(share, 2 * self.proof_seconds)
        # What is not polished before is polished beside branch and bound.
        return min(least, max(HEAD_START * least, 2 * self.proof_seconds - seconds))

    def improve(self, first: int, start: Ints | None, seconds: float | None) -> None:
        """Minimise one weighted sum of the steps from one on."""
        if not self.late:
            with stage("neighbourhoods"):
                found = self.engine.improve(self.steps[first:], self.caps(first), start, seconds)
            for each in found:
                self.offer(each)

    @property
    def proof_seconds(self) -> float:
        """In less time branch and bound would not come far."""
        columns = len(self.arrays.lower)
        return PROOF_PACE * columns if columns >= LARGE else 0.0

    def hasty(self, seconds: float) -> bool:
        """Whether branch and bound would not come far in some seconds."""
        return seconds < self.proof_seconds

    def improve_in_haste(self, share: float) -> None:
        """Minimise the weighted sum on, where the time is too short for branch and bound."""
        unproven, seconds = self.open_steps(), self.seconds(1.0)
        if not (unproven and self.engine.polishes) or self.best is None or seconds is None:
            return
        if self.hasty(seconds):
            self.improve(min(unproven), self.best, seconds * share)
            self.seconds(1.0)

    def guide(self, rounding: Rounding) -> None:
        """Relax the steps in order, each with those before at their bounds, and round the last.

        Where the last one did not come to its end, those before are rounded as well.
        """
        if len(self.arrays.lower) < LARGE or self.best is None:
            return
        caps: list[tuple[ProgramStep, int]] = []
        met, together = self.met_in_full()
        solved: list[Relaxation] = [] if together is None else [together]
        last = -1
        for index, (step, outcome) in enumerate(zip(self.steps, self.outcomes, strict=True)):
            reached = outcome.bound
            if index in met:
                assert reached is not None
                self.relaxed[index].append(([value for _, value in caps], reached))
            elif not outcome.proven:
                seconds = self.seconds(
                    RELAXATION_SHARE if index + 1 < len(self.steps) else LAST_SHARE
                )
                found = None if self.late else self.relax(step, caps, seconds)
                if found is None:
                    break
                solved.append(found)
                last = index
                self.relaxed[index].append(([value for _, value in caps], found.bound))
                reached = found.bound if reached is None else max(reached, found.bound)
            if reached is None:
                break
            if len(step.columns):
                caps.append((step, reached))
        if not solved:
            return
        whole = solved[-1].complete and last + 1 == len(self.steps)
        began = time.monotonic()
        rounded = self.round(solved.pop(), rounding)
        taken = time.monotonic() - began
        while (
            solved and not whole and any(step + 1 < len(self.steps) for step in self.open_steps())
        ):
            left = self.seconds(1.0)
            if left is not None and left < ROUNDING_PATIENCE * taken:
                break
            self.round(solved.pop(), rounding)
        if rounded is not None and rounded is not self.best and self.arrays.feasible(rounded):
            # Worse in an early step, but perhaps near to something better in all.
            self.rounded = rounded

    def met_in_full(self) -> tuple[set[int], Relaxation | None]:
        """First open steps that one relaxation brings to 0 together, so that none needs its own.

        Tried where the best solution lacks little of them. Steps between that are proven stay.
        """
        assert self.best is not None
        early: list[int] = []
        total = np.zeros(len(self.arrays.lower), np.int64)
        for index, (step, outcome) in enumerate(zip(self.steps[:-1], self.outcomes, strict=False)):
            if outcome.proven and not early:
                continue
            at_best = step.coefficients * self.best[step.columns]
            most = float(step.coefficients @ self.arrays.upper[step.columns])
            little = 0.0 if outcome.proven else OFTEN_MET * most
            if not _is_sum(step, outcome) or float(at_best.sum()) > little:
                break
            total[step.columns] += 1
            if not outcome.proven:
                early.append(index)
        if len(early) < 2:
            return set(), None
        columns = np.flatnonzero(total)
        step = ProgramStep("early", columns, tuple(total[columns].tolist()), 0, Fraction(1))
        seconds = self.seconds(RELAXATION_SHARE)
        if self.late:
            return set(), None
        found = self.relax(step, self.caps(early[0]), seconds)
        if found is None or found.x[columns].max(initial=0.0) > MET:
            return set(), found
        return set(early), found

    def round(self, relaxation: Relaxation, rounding: Rounding) -> Ints | None:
        """Round a relaxation and take the solution if it is better."""
        with stage("guided greedy"):
            rounded = rounding(relaxation.x)
        self.offer(rounded)
        return rounded

    def relax(self, step: ProgramStep, caps: Caps, seconds: float | None) -> Relaxation | None:
        """Relax a step."""
        with stage("relaxations"):
            found = self.engine.relax(step, caps, self.best, seconds)
        self.priced = None if found is None else (step, [value for _, value in caps])
        return found

    def bound_all(self) -> None:
        """Give every open step the bound of its linear relaxation, and some a better one."""
        if self.best is None:
            return
        opened = self.open_steps()
        for index in opened:
            caps = self.caps(index)
            values = [value for _, value in caps]
            known = self.recall(index, values)
            sharp = index in (opened[0], len(self.steps) - 1)
            if known and (self.outcomes[index].proven or not sharp):
                continue
            if not (known and self.is_priced(index, values)):
                seconds = self.seconds(RELAXATION_SHARE if index + 1 < len(self.steps) else 1.0)
                if self.late:
                    return
                found = self.relax(self.steps[index], caps, seconds)
                if found is not None:
                    self.relaxed[index].append((values, found.bound))
                    self.raise_bound(index, found.bound)
            if sharp and self.is_priced(index, values):
                self.sharpen(index)

    def is_priced(self, index: int, values: list[int]) -> bool:
        """Whether a step was relaxed last, with no tighter caps than some values."""
        if self.priced is None or self.priced[0] is not self.steps[index]:
            return False
        return all(new <= old for old, new in zip(self.priced[1], values, strict=True))

    def sharpen(self, index: int) -> None:
        """Give the step that was relaxed last a better bound."""
        if self.outcomes[index].proven or self.best is None:
            return
        seconds = self.seconds(1.0)
        if seconds is not None:
            seconds *= HASTY_SHARPENING_SHARE if self.hasty(seconds) else SHARPENING_SHARE
        if not self.late:
            with stage("bounds of services"):
                bound = self.engine.sharpen(self.steps[index], self.best, seconds)
            self.raise_bound(index, bound)

    def recall(self, index: int, values: list[int]) -> bool:
        """Whether a relaxation that was solved before says all that one with these caps would."""
        for capped, bound in self.relaxed[index]:
            if capped == values:
                self.raise_bound(index, bound)
                return True
            tighter = all(old <= new for old, new in zip(capped, values, strict=True))
            known = self.outcomes[index].bound
            if tighter and known is not None and bound <= known:
                return True
        return False

    def caps(self, index: int) -> Caps:
        """The steps before one, with the values they have reached."""
        return [
            (step, outcome.value)
            for step, outcome in zip(self.steps[:index], self.outcomes, strict=False)
            if outcome.value is not None and len(step.columns)
        ]

    def raise_bound(self, index: int, bound: int | None) -> None:
        outcome = self.outcomes[index]
        value = outcome.value
        if bound is not None and value is not None and bound - value > abs(value) * PROVEN_GAP:
            # The value is reached, so the engine is wrong; nothing it says here is a proof.
            log.warning("an engine's bound %d is above the value %d", bound, value)
            return
        if bound is not None and (outcome.bound is None or bound > outcome.bound):
            outcome.bound = bound

    def minimise_in_order(self) -> None:
        for index, (step, outcome) in enumerate(zip(self.steps, self.outcomes, strict=True)):
            before = self.best
            if not outcome.proven:
                later = any(place > index for place in self.open_steps())
                seconds = self.seconds(STEP_SHARE if later else 1.0)
                if not self.late:
                    began = time.monotonic()
                    with stage("branch and bound"):
                        answer = self.engine.minimise(step, self.caps(index), self.best, seconds)
                    self.offer(answer.solution)
                    self.raise_bound(index, answer.bound)
                    if seconds is not None and not outcome.proven:
                        spent = time.monotonic() - began
                        self.cut_short = self.cut_short or spent >= ENDED_BY_TIME * seconds
                    self.seconds(1.0)
            if outcome.value is None:
                for unknown in self.outcomes[index + 1 :]:
                    unknown.bound = None
                return
            if self.best is not before:
                # What is best for this step may be arbitrarily bad for the ones after it.
                self.improve_all_at_once()


def merged(steps: Steps, arrays: Arrays) -> ProgramStep:
    """One step whose minimum is close to the lexicographic one.

    A step counts twice as much as the next one, and ``DOMINANCE`` times as much as the last:
    larger factors would be truer to the order but leave an engine without precision.
    """
    total = np.zeros(len(arrays.lower))
    for place, step in enumerate(reversed(steps)):
        weight = DOMINANCE ** min(place, 1) * 2.0 ** max(0, place - 1)
        total[step.columns] += step.coefficients * float(step.quantum * step.unit) * weight
    whole = np.rint(total * MERGED_SCALE).astype(np.int64)
    columns = np.flatnonzero(whole)
    return ProgramStep("all", columns, tuple(whole[columns].tolist()), 0, Fraction(1))


def better(
    arrays: Arrays, step: ProgramStep, caps: Caps, best: Ints | None, found: Ints | None
) -> Ints | None:
    """The better of two solutions; one found that breaks a row or a cap does not count."""
    if found is None or not arrays.feasible(found):
        return best
    if any(capped.value(found) > value for capped, value in caps):
        return best
    if best is None or step.value(found) < step.value(best):
        return found
    return best


def _is_sum(step: ProgramStep, outcome: StepOutcome) -> bool:
    """Whether a step is at its bound just where all its columns are 0."""
    return step.constant == outcome.bound and not (step.coefficients < 0).any()


def _floor(step: ProgramStep, arrays: Arrays) -> int:
    """Least value of a step by the columns' bounds alone."""
    upper: list[int] = arrays.upper[step.columns].tolist()
    most = zip(step.exact, upper, strict=True)
    least = step.constant + sum(value * limit for value, limit in most if value < 0)
    return max(0, least) if step.nonnegative else least


def rounded(values: object) -> Ints:
    """An engine's floating values as integers."""
    integers: Ints = np.rint(np.asarray(values, dtype=float)).astype(np.int64)
    return integers


def within(
    seconds: float | None, work: Callable[[], T], stop: Callable[[], None] | None = None
) -> T | None:
    """Run work in a thread of its own and wait for it; null when it does not end in time.

    Engines keep per-thread state and may overrun their limit inside a long operation; late work
    is left behind and its outcome dropped.

    Parameters
    ----------
    seconds
        How long to wait; null for as long as it takes.
    work
        What to run; what it raises is raised here.
    stop
        Called when an interrupt comes, to end the work early.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    # Not join(): before Python 3.13 an interrupt makes it take the thread for ended.
    ended = threading.Event()

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    # Not a daemon: one that is cut off inside an engine when Python ends takes the process down.
    thread = threading.Thread(target=run, name="heteroplace-engine")
    try:
        thread.start()
        ended.wait(None if seconds is None else min(seconds + GRACE, LONGEST))
    except BaseException:
        if stop is not None:
            stop()
            if thread.ident is not None:
                ended.wait(STOPPING)
        raise
    if failure:
        raise failure[0]
    return outcome[0] if outcome else None
