"""What engines that calculate in floating point need: scales, tolerances and refusals."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from heteroplace.formulation.program import Arrays, Ints, ProgramStep
from heteroplace.solve.engine import UnsuitedError

LARGEST_COST = 1e6
LARGEST_COEFFICIENT = 1e6
WIDEST = 1e9
LARGEST_COUNT = 10**9
TOLERANCE = 1e-6
RELATIVE_TOLERANCE = 2e-7


def whole_bound(value: float, step: ProgramStep) -> int | None:
    """Bound of a step in units from a floating one of its coefficients, within the tolerance."""
    if not np.isfinite(value):
        return None
    return step.lower(ceil(value - max(TOLERANCE, RELATIVE_TOLERANCE * abs(value))))


def cost_scale(step: ProgramStep) -> float:
    """Factor that brings the coefficients of a step to at most ``LARGEST_COST``."""
    return min(1.0, LARGEST_COST / max(1.0, float(np.abs(step.coefficients).max(initial=0))))


def refuse_wide(arrays: Arrays) -> None:
    """Refuse a program that floating-point arithmetic cannot hold.

    Raises
    ------
    UnsuitedError
        If a count may be so large that a tolerance hides whole units, or as :func:`row_factors`.
    """
    if arrays.upper.max(initial=0) > LARGEST_COUNT:
        raise UnsuitedError(
            "capacities have too many digits for floating-point arithmetic; use cpsat, or round "
            "capacities and targets"
        )
    row_factors(arrays.starts, arrays.coefficients)


def row_factors(starts: Ints, values: Ints) -> NDArray[np.float64]:
    """Factors that bring the coefficients of every row to at most ``LARGEST_COEFFICIENT``.

    Raises
    ------
    UnsuitedError
        If one row has coefficients so far apart that floating-point arithmetic loses the small.
    """
    size = np.abs(values).astype(float)
    lengths = np.diff(starts)
    factor = np.ones(len(lengths))
    filled = np.flatnonzero(lengths)
    if len(filled):
        largest = np.maximum.reduceat(size, starts[filled])
        smallest = np.minimum.reduceat(size, starts[filled])
        if np.any(largest > WIDEST * smallest):
            raise UnsuitedError(
                "coefficients of one row lie too far apart for floating-point arithmetic; "
                "use cpsat, or capacities and ratios with fewer digits"
            )
        factor[filled] = np.minimum(1.0, LARGEST_COEFFICIENT / largest)
    return factor


def cap_row(step: ProgramStep, value: int) -> tuple[Ints, Ints, int]:
    """Columns, values and upper end of the row that caps a step, fit for floating-point arithmetic.

    Values too far apart are rounded down, which cuts no solution off that keeps the cap.
    """
    size = np.abs(step.coefficients)
    filled = size[size > 0]
    coarse = 1
    if len(filled) and filled.max() > WIDEST * filled.min():
        coarse = int(filled.max() / WIDEST) + 1
    values = step.coefficients // coarse
    kept = values != 0
    return step.columns[kept], values[kept], step.top(value) // coarse
