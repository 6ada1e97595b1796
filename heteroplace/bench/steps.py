"""Comparing what two solvers reached, step by step in the order of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isclose, isinf

from heteroplace.bench.record import StepRecord
from heteroplace.plan import ProvenStep
from heteroplace.solve.engine import PROVEN_GAP

TOLERANCE = 1e-9

Steps = Sequence[StepRecord]


def step_record(name: str, value: Fraction | None, bound: Fraction | None) -> StepRecord:
    """Make a record with gap and proof from exact numbers."""
    if value is None or bound is None:
        return StepRecord(
            name=name,
            value=None if value is None else float(value),
            bound=None if bound is None else float(bound),
        )
    gap = 0.0 if value == bound else float((value - bound) / abs(bound)) if bound else None
    return StepRecord(
        name=name,
        value=float(value),
        bound=float(bound),
        gap=gap,
        proven=value - bound <= abs(value) * PROVEN_GAP,
    )


def recorded(steps: Sequence[ProvenStep]) -> tuple[StepRecord, ...]:
    """Record the steps of a result."""
    return tuple(StepRecord.model_validate(step.model_dump()) for step in steps)


def close(first: float, second: float) -> bool:
    """Whether two values are the same but for being floating-point numbers."""
    return isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def difference(first: Steps, second: Steps) -> tuple[int, int]:
    """Compare two plans in the order of the objective.

    Parameters
    ----------
    first, second
        The same steps; a value of null is worse than any number.

    Returns
    -------
    index : int
        Of the first step that differs; the number of steps when none does.
    sign : int
        -1 when the first plan is better there, 1 when it is worse, 0 when they are equal.
    """
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        a = float("inf") if one.value is None else one.value
        b = float("inf") if other.value is None else other.value
        if isinf(a) and isinf(b):
            continue
        if isinf(a) or isinf(b) or not close(a, b):
            return index, -1 if a < b else 1
    return len(first), 0


def contradiction(first: Steps, second: Steps) -> str | None:
    """Name a step with a bound above a value; null when the two agree.

    A bound holds among the plans with the same values in the steps before, so only the steps up
    to the first difference are comparable.
    """
    last, _ = difference(first, second)
    for one, other in list(zip(first, second, strict=True))[: last + 1]:
        for bound, value in ((one.bound, other.value), (other.bound, one.value)):
            if bound is None or value is None:
                continue
            if bound - value > abs(value) * float(PROVEN_GAP) + TOLERANCE:
                return one.name
    return None


def open_step(steps: Steps) -> StepRecord | None:
    """Return the first step that is not proven; null when all are."""
    return next((step for step in steps if not step.proven), None)
