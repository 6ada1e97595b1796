"""What the exact solvers ask of an engine, and the walk through the objective's steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

import numpy as np

from heteroplace.formulation.program import Arrays, Ints, ProgramStep
from heteroplace.profile import Profile

log = logging.getLogger("heteroplace")

T = TypeVar("T")

PROVEN_GAP = Fraction(1, 10**6)
GRACE = 0.05


class EngineMissingError(RuntimeError):
    """An engine that is not installed; the message says how to install it."""


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


class Engine(Protocol):
    """A solver of integer programs.

    An engine is loaded once; then every step is minimised in turn and capped at its best value.
    """

    name: str

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds; raises :class:`EngineMissingError`."""

    def minimise(self, step: ProgramStep, start: Ints | None, seconds: float | None) -> Answer:
        """Minimise a step within a time, from a start if there is one."""

    def cap(self, step: ProgramStep, value: int) -> None:
        """From now on keep a step at or below a value in units."""


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
        Whether the time ran out.
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
) -> Walk:
    """Minimise the steps in order, each without worsening the ones before.

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
    """
    best = start
    outcomes: list[StepOutcome] = []
    late = False
    caps: list[tuple[ProgramStep, int]] = []
    for step in steps:
        floor = _floor(step, arrays)
        value = None if best is None else step.value(best)
        outcome = StepOutcome(value, floor)
        if not outcome.proven and not late:
            seconds = None if deadline is None else deadline - time.monotonic()
            if seconds is not None and seconds <= 0:
                late = True
            else:
                answer = engine.minimise(step, best, seconds)
                if answer.bound is not None:
                    outcome.bound = max(floor, answer.bound)
                found = answer.solution
                if (
                    found is not None
                    and _acceptable(found, arrays, caps)
                    and (value is None or step.value(found) < value)
                ):
                    best, outcome.value = found, step.value(found)
                late = deadline is not None and time.monotonic() >= deadline
        outcomes.append(outcome)
        if outcome.value is None:
            outcomes.extend(StepOutcome(None, None) for _ in steps[len(outcomes) :])
            break
        caps.append((step, outcome.value))
        engine.cap(step, outcome.value)
    return Walk(best, outcomes, late)


def _floor(step: ProgramStep, arrays: Arrays) -> int:
    """Least value of a step by the columns' bounds alone."""
    low = arrays.lower[step.columns].astype(object) * step.coefficients
    high = arrays.upper[step.columns].astype(object) * step.coefficients
    return step.constant + int(np.minimum(low, high).sum())


def _acceptable(found: Ints, arrays: Arrays, caps: list[tuple[ProgramStep, int]]) -> bool:
    if not arrays.feasible(found):
        log.info(
            "an engine's solution breaks %d rows after rounding", len(arrays.broken_rows(found))
        )
        return False
    return all(step.value(found) <= value for step, value in caps)


def rounded(values: object) -> Ints:
    """An engine's floating values as integers."""
    integers: Ints = np.rint(np.asarray(values, dtype=float)).astype(np.int64)
    return integers


def within(seconds: float | None, work: Callable[[], T]) -> T | None:
    """Run work in a thread of its own and wait for it; null when it does not end in time.

    Engines keep per-thread state and may overrun their limit inside a long operation; late work
    is left behind and its outcome dropped.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="heteroplace-engine", daemon=True)
    thread.start()
    thread.join(None if seconds is None else seconds + GRACE)
    if failure:
        raise failure[0]
    return outcome[0] if outcome else None
