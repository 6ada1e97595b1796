"""A solver-neutral sparse integer program with a lexicographic objective.

All coefficients are integers, so a solution can be verified exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

INFINITE = 2**62
FINEST_SCALE = 10**9
CHECK_EVERY = 1000

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ProgramStep:
    """One step of the objective: ``unit * (constant + coefficients @ x)``, minimised.

    Parameters
    ----------
    name
        As in :class:`heteroplace.plan.Step`.
    columns, coefficients
        Sparse integer objective.
    constant
        Integer part that no column changes.
    unit
        Value of 1.
    exact
        Whether the integer coefficients are the rational ones without rounding.
    exact_at_zero
        Whether a value of 0 is the least one and means the same before and after rounding.
    """

    name: str
    columns: Ints
    coefficients: Ints
    constant: int
    unit: Fraction
    exact: bool
    exact_at_zero: bool = False

    def value(self, x: Ints) -> int:
        """Value of a solution in units, constant included."""
        return self.constant + int(
            np.dot(self.coefficients.astype(object), x[self.columns].astype(object))
        )


class LateError(Exception):
    """The deadline came while the program was being built."""


@dataclass
class Program:
    """Columns with bounds, rows ``lower <= A x <= upper`` and steps, built unit by unit.

    Parameters
    ----------
    deadline
        ``time.monotonic()`` at which building stops with :class:`LateError`; null for none.
    """

    deadline: float | None = None
    lower: list[int] = field(default_factory=list)
    upper: list[int] = field(default_factory=list)
    row_lower: list[int] = field(default_factory=list)
    row_upper: list[int] = field(default_factory=list)
    row_unit: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    coefficients: list[int] = field(default_factory=list)
    steps: list[ProgramStep] = field(default_factory=list)

    def column(self, upper: int, lower: int = 0) -> int:
        """Add an integer column and return its number."""
        self.lower.append(lower)
        self.upper.append(upper)
        if not len(self.lower) % CHECK_EVERY:
            self._check_time()
        return len(self.lower) - 1

    def row(
        self,
        unit: str,
        terms: Mapping[int, int] | Iterable[tuple[int, int]],
        lower: int = -INFINITE,
        upper: int = INFINITE,
    ) -> None:
        """Add ``lower <= sum(coefficient * column) <= upper`` on behalf of a named unit."""
        merged: dict[int, int] = {}
        for column, coefficient in terms.items() if isinstance(terms, Mapping) else terms:
            merged[column] = merged.get(column, 0) + coefficient
        merged = {column: value for column, value in merged.items() if value}
        divisor = gcd(*merged.values()) if merged else 1
        if divisor > 1:
            merged = {column: value // divisor for column, value in merged.items()}
            lower = lower if lower == -INFINITE else -(-lower // divisor)
            upper = upper if upper == INFINITE else upper // divisor
        self.columns.extend(merged)
        self.coefficients.extend(merged.values())
        self.starts.append(len(self.columns))
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        self.row_unit.append(unit)
        if not len(self.row_lower) % CHECK_EVERY:
            self._check_time()

    def _check_time(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise LateError

    def step(self, name: str, terms: Mapping[int, Fraction | int], constant: Fraction) -> None:
        """Add an objective step with rational coefficients."""
        values = {column: value for column, value in terms.items() if value}
        distinct = set(values.values())
        scale = lcm(constant.denominator, *(value.denominator for value in distinct))
        exact = self._fits(values, constant, scale)
        if not exact:
            scale = FINEST_SCALE
        scaled = {value: round(value * scale) for value in distinct}
        whole = {column: scaled[value] for column, value in values.items()}
        offset = round(constant * scale)
        divisor = gcd(offset, *whole.values()) or 1
        self.steps.append(
            ProgramStep(
                name=name,
                columns=np.fromiter(whole, np.int64, len(whole)),
                coefficients=np.fromiter(
                    (value // divisor for value in whole.values()), np.int64, len(whole)
                ),
                constant=offset // divisor,
                unit=Fraction(divisor, scale),
                exact=exact,
                exact_at_zero=not constant
                and all(value > 0 for value in distinct)
                and all(value > 0 for value in scaled.values())
                and all(self.lower[column] >= 0 for column in values),
            )
        )

    def _fits(self, values: Mapping[int, Fraction | int], constant: Fraction, scale: int) -> bool:
        """Whether the step stays below 62 bits at every solution when multiplied by a scale."""
        reach = abs(constant)
        for column, value in values.items():
            reach += abs(Fraction(value)) * max(abs(self.lower[column]), abs(self.upper[column]))
            if reach * scale >= INFINITE:
                return False
        return True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, nonzeros."""
        return len(self.lower), len(self.row_lower), len(self.columns)

    def arrays(self) -> Arrays:
        """The rows and bounds as arrays.

        Raises
        ------
        OverflowError
            If a coefficient or the value of a row may not fit 63 bits.
        """
        arrays = self._arrays()
        reach = np.maximum(np.abs(arrays.lower), np.abs(arrays.upper)).astype(float)
        terms = np.abs(arrays.coefficients) * reach[arrays.columns]
        if np.any(np.bincount(self._rows(arrays), terms, len(self.row_lower)) >= INFINITE):
            raise OverflowError("the value of a row may not fit 63 bits")
        return arrays

    @staticmethod
    def _rows(arrays: Arrays) -> Ints:
        """Row of every coefficient."""
        lengths = np.diff(arrays.starts)
        rows: Ints = np.repeat(np.arange(len(lengths)), lengths)
        return rows

    def _arrays(self) -> Arrays:
        return Arrays(
            np.array(self.lower, np.int64),
            np.array(self.upper, np.int64),
            np.array(self.row_lower, np.int64),
            np.array(self.row_upper, np.int64),
            np.array(self.starts, np.int64),
            np.array(self.columns, np.int64),
            np.array(self.coefficients, np.int64),
        )


@dataclass(frozen=True)
class Arrays:
    """A program's rows (CSR) and bounds, all int64; ``±INFINITE`` is no bound."""

    lower: Ints
    upper: Ints
    row_lower: Ints
    row_upper: Ints
    starts: Ints
    columns: Ints
    coefficients: Ints

    def activity(self, x: Ints) -> Ints:
        """Value of every row at a solution."""
        terms = self.coefficients * x[self.columns]
        sums = np.concatenate(([0], np.cumsum(terms)))
        activity: Ints = sums[self.starts[1:]] - sums[self.starts[:-1]]
        return activity

    def broken_rows(self, x: Ints) -> Ints:
        """Numbers of the rows that a solution breaks, exactly."""
        activity = self.activity(x)
        broken: Ints = np.flatnonzero((activity < self.row_lower) | (activity > self.row_upper))
        return broken

    def feasible(self, x: Ints) -> bool:
        """Whether a solution keeps every bound and row, exactly."""
        inside = bool(np.all((x >= self.lower) & (x <= self.upper)))
        return inside and not len(self.broken_rows(x))
