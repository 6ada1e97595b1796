"""What engines that calculate in floating point need: scales, tolerances and refusals."""

from __future__ import annotations

from math import ceil

import numpy as np

from heteroplace.formulation.program import INFINITE, Arrays, Floats, Ints, ProgramStep
from heteroplace.solve.engine import UnsuitedError

LARGEST_COST = 1e6
LARGEST_COEFFICIENT = 1e6
WIDEST = 1e9
LARGEST_COUNT = 10**9
TOLERANCE = 1e-6
RELATIVE_TOLERANCE = 2e-7
ROUNDING = 1e-14


def whole_bound(value: float, step: ProgramStep) -> int | None:
    """Bound of a step in units from a floating one of its coefficients, within the tolerance."""
    if not np.isfinite(value):
        return None
    return step.lower(ceil(value - max(TOLERANCE, RELATIVE_TOLERANCE * abs(value))))


def lagrangian_bound(cost: Floats, arrays: Arrays, price: Floats) -> float:
    """Lower bound of ``cost @ x`` over the rows and bounds of a program, from any prices.

    Parameters
    ----------
    cost
        Of every column.
    arrays
        The program; no lower bound of a column is below 0.
    price
        Of every row; what would price an end that a row does not have counts as 0.
    """
    paid, value = paid_by_rows(arrays.row_lower, arrays.row_upper, price)
    entries = arrays.coefficients * paid[arrays.row_of_entry]
    reduced = reduced_costs(cost, arrays.columns, entries)
    ends = np.where(reduced > 0, arrays.lower, arrays.upper)
    return rounded_down(np.concatenate([value, reduced * ends]))


def paid_by_rows(low: Ints, high: Ints, price: Floats) -> tuple[Floats, Floats]:
    """Prices without those of ends that rows do not have, and what they are worth."""
    wrong = ((low <= -INFINITE) & (price > 0)) | ((high >= INFINITE) & (price < 0))
    paid = np.where(wrong, 0.0, price)
    ends = np.where(paid > 0, low, high)
    return paid, np.where(paid == 0, 0.0, paid * ends)


def reduced_costs(cost: Floats, columns: Ints, paid: Floats) -> Floats:
    """Costs less what the entries of each column pay, no higher than they are exactly."""
    size = np.abs(cost) + np.bincount(columns, np.abs(paid), len(cost))
    reduced: Floats = cost - np.bincount(columns, paid, len(cost)) - ROUNDING * size
    return reduced


def rounded_down(terms: Floats) -> float:
    """A sum, no higher than it is exactly."""
    return float(terms.sum() - ROUNDING * np.abs(terms).sum())


def cost_scale(costs: Floats | Ints) -> float:
    """Factor that brings costs to at most ``LARGEST_COST``."""
    return min(1.0, LARGEST_COST / max(1.0, float(np.abs(costs).max(initial=0))))


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


def row_factors(starts: Ints, values: Ints) -> Floats:
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
