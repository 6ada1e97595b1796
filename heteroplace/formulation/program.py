"""A solver-neutral sparse integer program with a lexicographic objective.

All coefficients are integers, so a solution can be verified exactly.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from operator import mul

import numpy as np
from numpy.typing import NDArray

from heteroplace.formulation.hull import Hull

INFINITE = 2**62
LARGEST_REACH = 2**60
CHECK_EVERY = 1000

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Share = tuple[Fraction | int, Sequence[int]]


@dataclass(frozen=True)
class ProgramStep:
    """One step of the objective: ``unit * (constant + exact @ x)``, minimised.

    Parameters
    ----------
    name
        As in :class:`heteroplace.plan.Step`.
    columns
        Columns with a coefficient.
    exact
        Their integer coefficients, of any size.
    constant
        Integer part that no column changes.
    unit
        Value of 1.
    quantum
        What engines count in: the smallest integer that brings the step below 62 bits.
    nonnegative
        Whether no solution has a value below 0, though the coefficients alone do not say so.
    """

    name: str
    columns: Ints
    exact: tuple[int, ...]
    constant: int
    unit: Fraction
    quantum: int = 1
    nonnegative: bool = False

    @cached_property
    def coefficients(self) -> Ints:
        """What engines minimise, in quanta, rounded down.

        No column is negative, so this never exceeds the true value: a bound of it is a bound of
        the step, and a solution that keeps the step below a value keeps this below it too.
        """
        if self.quantum == 1:
            return np.array(self.exact, np.int64)
        return np.array([value // self.quantum for value in self.exact], np.int64)

    def value(self, x: Ints) -> int:
        """Value of a solution in units, constant included, exactly."""
        if self.quantum == 1:
            return self.constant + int(np.dot(self.coefficients, x[self.columns]))
        counts: list[int] = x[self.columns].tolist()
        total: int = sum(map(mul, self.exact, counts))
        return self.constant + total

    def lower(self, bound: int) -> int:
        """Lower bound in units, constant included, from one of ``coefficients @ x``."""
        return self.constant + self.quantum * bound

    def top(self, value: int) -> int:
        """Most that ``coefficients @ x`` may be where the step is at most a value in units."""
        return (value - self.constant) // self.quantum


@dataclass(frozen=True)
class GroupBlocks:
    """Groups that may be opened, of which most stay unused: their columns and rows.

    Parameters
    ----------
    owner
        Number of the service of each.
    switch
        Column of each that is 1 when the group is opened.
    hulls, hull
        Hulls of the pairs of what the roles deliver in an opened group; the place of each one's.
    starts, columns, weights
        For the first role, then for the second if there is one: where the columns of each begin,
        and the end of the last; the columns; what one instance of them delivers.
    rows
        Where the rows of each begin, and the end of the last; no other column occurs in them.
    """

    owner: Ints
    switch: Ints
    hulls: tuple[Hull, ...]
    hull: Ints
    starts: tuple[Ints, Ints]
    columns: tuple[Ints, Ints]
    weights: tuple[Ints, Ints]
    rows: Ints

    def __len__(self) -> int:
        return len(self.owner)

    def opened(self, x: Ints) -> Ints:
        """Switches of the groups in which a solution has instances."""
        used = np.zeros(len(self), bool)
        for columns, starts in zip(self.columns, self.starts, strict=True):
            block = np.repeat(np.arange(len(self)), np.diff(starts))
            used[block[x[columns] > 0]] = True
        return self.switch[used]


@dataclass
class BlockList:
    """:class:`GroupBlocks` as they are added."""

    hulls: list[Hull] = field(default_factory=list)
    number: int = 0
    owners: list[Ints] = field(default_factory=list)
    switches: list[Ints] = field(default_factory=list)
    hull: list[Ints] = field(default_factory=list)
    sides: list[list[tuple[Ints, Ints, Ints]]] = field(default_factory=lambda: [[], []])

    def __len__(self) -> int:
        return self.number

    def add(
        self,
        owner: int,
        switches: Ints,
        sides: Sequence[tuple[Ints, Ints, Ints]],
        hulls: Sequence[Hull],
        hull: Ints,
    ) -> None:
        """Add those of one service.

        Parameters
        ----------
        owner, switches
            The service; their switches.
        sides
            For one or two roles: how many columns each has; the columns, and their weights.
        hulls, hull
            Hulls, and which of them is each one's.
        """
        self.owners.append(np.full(len(switches), owner, np.int64))
        self.switches.append(switches)
        self.hull.append(hull + len(self.hulls))
        self.hulls.extend(hulls)
        nothing = np.zeros(0, np.int64)
        empty = (np.zeros(len(switches), np.int64), nothing, nothing)
        for place, side in enumerate([*sides, empty][:2]):
            self.sides[place].append(side)
        self.number += len(switches)

    def rows(self, first: int) -> tuple[GroupBlocks, Rows]:
        """All of them, and the sides of their hulls as rows from a number on."""

        def joined(parts: Iterable[Ints]) -> Ints:
            found: Ints = np.concatenate([np.zeros(0, np.int64), *parts])
            return found

        hull, switch = joined(self.hull), joined(self.switches)
        starts, columns, weights = (
            [starts_of(joined(lengths for lengths, _, _ in side)) for side in self.sides],
            [joined(columns for _, columns, _ in side) for side in self.sides],
            [joined(weights for _, _, weights in side) for side in self.sides],
        )
        sides = [each.sides for each in self.hulls]
        counts = np.array([len(each) for each in sides], np.int64)
        flat = np.array([side for each in sides for side in each], np.int64).reshape(-1, 4)
        lengths = counts[hull]
        of_row = np.repeat(np.arange(len(self)), lengths)
        a, b, c, equal = flat[ranges(starts_of(counts), hull)].T
        # A row has its switch first, then the columns of either role, none of them with a 0.
        widths = [np.where(c != 0, 1, 0)]
        for role, factor in enumerate((a, b)):
            widths.append(np.where(factor != 0, np.diff(starts[role])[of_row], 0))
        stops = np.cumsum(sum(widths))
        column = np.zeros(int(stops[-1]) if len(stops) else 0, np.int64)
        value = np.zeros(len(column), np.int64)
        place = stops - sum(widths)
        chosen = np.flatnonzero(c)
        column[place[chosen]], value[place[chosen]] = switch[of_row[chosen]], -c[chosen]
        for role, factor in enumerate((a, b)):
            place = place + widths[role]
            row = np.flatnonzero(widths[role + 1])
            at = ranges(starts[role], of_row[row])
            width = widths[role + 1][row]
            inside = np.repeat(place[row] - starts[role][of_row[row]], width) + at
            column[inside] = columns[role][at]
            value[inside] = weights[role][at] * np.repeat(factor[row], width)
        blocks = GroupBlocks(
            joined(self.owners),
            switch,
            tuple(self.hulls),
            hull,
            (starts[0], starts[1]),
            (columns[0], columns[1]),
            (weights[0], weights[1]),
            first + starts_of(lengths),
        )
        rows = Rows(
            stops,
            column,
            value,
            np.where(equal, 0, -INFINITE),
            np.zeros(len(of_row), np.int64),
        )
        return blocks, rows


@dataclass(frozen=True)
class Rows:
    """Rows in CSR: the end of each, columns, coefficients, lower and upper limits."""

    stops: Ints
    columns: Ints
    coefficients: Ints
    lower: Ints
    upper: Ints


class LateError(Exception):
    """The deadline came while the program was being built."""


@dataclass
class Program:
    """Columns with bounds, rows ``lower <= A x <= upper`` and steps, built unit by unit.

    The rows of ``blocks`` are not among those listed here; :meth:`arrays` adds them at the end.

    Parameters
    ----------
    deadline
        ``time.monotonic()`` at which building stops with :class:`LateError`; null for none.
    owners, owned
        Service of columns that belong to one; of ranges of columns.
    """

    deadline: float | None = None
    upper: list[int] = field(default_factory=list)
    row_lower: list[int] = field(default_factory=list)
    row_upper: list[int] = field(default_factory=list)
    row_unit: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    coefficients: list[int] = field(default_factory=list)
    steps: list[ProgramStep] = field(default_factory=list)
    blocks: BlockList = field(default_factory=BlockList)
    owners: dict[int, int] = field(default_factory=dict)
    owned: list[tuple[range, int]] = field(default_factory=list)
    _made: tuple[tuple[int, int], tuple[GroupBlocks, Rows]] | None = None

    @property
    def lower(self) -> list[int]:
        """Lower bounds of the columns: no count is negative."""
        return [0] * len(self.upper)

    def column(self, upper: int) -> int:
        """Add an integer column from 0 to a limit and return its number."""
        number = len(self.upper)
        self.upper.append(upper)
        if not (number + 1) % CHECK_EVERY:
            self.check_time()
        return number

    def add_columns(self, uppers: Sequence[int]) -> range:
        """Add integer columns from 0 to each of some limits and return their numbers."""
        first = len(self.upper)
        self.upper.extend(uppers)
        last = len(self.upper)
        if first // CHECK_EVERY != last // CHECK_EVERY:
            self.check_time()
        return range(first, last)

    def row(
        self,
        unit: str,
        terms: Mapping[int, int] | Iterable[tuple[int, int]],
        lower: int = -INFINITE,
        upper: int = INFINITE,
    ) -> None:
        """Add ``lower <= sum(coefficient * column) <= upper`` on behalf of a named unit."""
        pairs = terms if isinstance(terms, list) else list(_pairs(terms))
        merged = dict(pairs)
        if len(merged) < len(pairs):
            merged = dict.fromkeys(merged, 0)
            for column, coefficient in pairs:
                merged[column] += coefficient
        values = merged.values()
        if 0 in values:
            merged = {column: value for column, value in merged.items() if value}
            values = merged.values()
        self.distinct_row(unit, merged, values, lower, upper)

    def distinct_row(
        self,
        unit: str,
        columns: Collection[int],
        coefficients: Collection[int],
        lower: int = -INFINITE,
        upper: int = INFINITE,
    ) -> None:
        """Add a row as :meth:`row` does, of columns that all differ.

        Parameters
        ----------
        unit
            Who adds it.
        columns, coefficients
            Of equal length; no column twice, no coefficient 0.
        lower, upper
            Limits of the sum.
        """
        divisor = gcd(*coefficients)
        if divisor > 1:  # 0 where there are none
            coefficients = [value // divisor for value in coefficients]
            lower = lower if lower == -INFINITE else -(-lower // divisor)
            upper = upper if upper == INFINITE else upper // divisor
        self.columns.extend(columns)
        self.coefficients.extend(coefficients)
        self.starts.append(len(self.columns))
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        self.row_unit.append(unit)
        if not len(self.row_lower) % CHECK_EVERY:
            self.check_time()

    def check_time(self) -> None:
        """Raise :class:`LateError` when the deadline has come."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise LateError

    def step(
        self,
        name: str,
        terms: Mapping[int, Fraction | int] | Iterable[Share],
        constant: Fraction,
        *,
        nonnegative: bool = False,
    ) -> None:
        """Add an objective step with rational coefficients.

        Parameters
        ----------
        name
            As in :class:`heteroplace.plan.Step`.
        terms
            Coefficient of each column, or coefficients with the columns that share them; those of
            a column add up.
        constant
            What no column changes.
        nonnegative
            As in :class:`ProgramStep`.
        """
        shares: list[Share] = (
            [(value, (column,)) for column, value in terms.items()]
            if isinstance(terms, Mapping)
            else list(terms)
        )
        shares = [(value, columns) for value, columns in shares if value and len(columns)]
        scale = lcm(constant.denominator, *{value.denominator for value, _ in shares})
        # Few coefficients occur, in many columns: rational arithmetic is for those few only.
        numbers: dict[int, int] = {}
        of_share = [
            numbers.setdefault(value.numerator * (scale // value.denominator), len(numbers))
            for value, _ in shares
        ]
        wholes = list(numbers)
        parts = [np.array(columns, np.int64) for _, columns in shares]
        flat = np.concatenate([np.zeros(0, np.int64), *parts])
        share = np.repeat(np.array(of_share, np.int64), [len(part) for part in parts])
        order = np.argsort(flat, kind="stable")
        share = share[order]
        columns, first, times = np.unique(flat[order], return_index=True, return_counts=True)
        # Each column's coefficient by its place among the few that occur.
        values, place = list(wholes), share[first]
        for nth in range(1, int(times.max(initial=1))):
            again = np.flatnonzero(times > nth)
            pair = place[again] * len(wholes) + share[first[again] + nth]
            pairs, which = np.unique(pair, return_inverse=True)
            place[again] = len(values) + which
            values += [
                values[each // len(wholes)] + wholes[each % len(wholes)] for each in pairs.tolist()
            ]
        kept = np.array([value != 0 for value in values], bool)[place]
        columns, place = columns[kept], place[kept]
        used = np.unique(place).tolist()
        offset = constant.numerator * (scale // constant.denominator)
        divisor = gcd(offset, *(values[each] for each in used)) or scale
        values = [value // divisor for value in values]
        exact = tuple(map(values.__getitem__, place.tolist()))
        upper = map(self.upper.__getitem__, columns.tolist())
        reach = sum(map(mul, map(abs, exact), upper))
        self.steps.append(
            ProgramStep(
                name=name,
                columns=columns,
                exact=exact,
                constant=offset // divisor,
                unit=Fraction(divisor, scale),
                quantum=reach // LARGEST_REACH + 1,
                nonnegative=nonnegative,
            )
        )

    @property
    def _block_rows(self) -> tuple[GroupBlocks, Rows]:
        made = (len(self.row_lower), len(self.blocks))
        if self._made is None or self._made[0] != made:
            self._made = (made, self.blocks.rows(len(self.row_lower)))
        return self._made[1]

    @property
    def group_blocks(self) -> GroupBlocks:
        """The blocks that were added, as arrays."""
        return self._block_rows[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, nonzeros."""
        rows = self._block_rows[1]
        return (
            len(self.upper),
            len(self.row_lower) + len(rows.stops),
            len(self.columns) + len(rows.columns),
        )

    @property
    def units(self) -> list[str]:
        """Who added each row; those of blocks, the sides of hulls, come last."""
        return self.row_unit + ["ratio"] * len(self._block_rows[1].stops)

    def _owner(self) -> Ints:
        owner = np.full(len(self.upper), -1, np.int64)
        for columns, each in self.owned:
            owner[columns.start : columns.stop] = each
        owner[list(self.owners)] = list(self.owners.values())
        return owner

    def arrays(self) -> Arrays:
        """The rows and bounds as arrays.

        Raises
        ------
        OverflowError
            If a coefficient or the value of a row may not fit 63 bits.
        """
        blocks, rows = self._block_rows

        def joined(first: list[int], then: Ints) -> Ints:
            return np.concatenate([np.array(first, np.int64), then])

        arrays = Arrays(
            np.zeros(len(self.upper), np.int64),
            np.array(self.upper, np.int64),
            joined(self.row_lower, rows.lower),
            joined(self.row_upper, rows.upper),
            joined(self.starts, self.starts[-1] + rows.stops),
            joined(self.columns, rows.columns),
            joined(self.coefficients, rows.coefficients),
            blocks,
            self._owner(),
        )
        lengths = np.diff(arrays.starts)
        size = np.abs(arrays.coefficients.astype(float))
        widest = float(lengths.max(initial=0)) * float(arrays.upper.max(initial=0))
        if widest * size.max(initial=0) >= INFINITE:
            # No row is as long, as steep and as high at once: look at each.
            terms = size * arrays.upper[arrays.columns]
            if np.any(np.bincount(arrays.row_of_entry, terms, len(lengths)) >= INFINITE):
                raise OverflowError("the value of a row may not fit 63 bits")
        return arrays


def starts_of(lengths: Ints) -> Ints:
    """Where runs of some lengths begin, one after the other, and the end of the last."""
    starts: Ints = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return starts


def ranges(starts: Ints, chosen: Ints) -> Ints:
    """Numbers of the entries in ``starts[i]:starts[i + 1]`` for every chosen i, in that order."""
    first = starts[chosen]
    lengths = starts[chosen + 1] - first
    ends = np.cumsum(lengths)
    shifts: Ints = np.repeat(first - (ends - lengths), lengths)
    return np.arange(len(shifts)) + shifts


def _pairs(terms: Mapping[int, int] | Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    return terms.items() if isinstance(terms, Mapping) else terms


@dataclass(frozen=True)
class Arrays:
    """A program's rows (CSR) and bounds, all int64; ``±INFINITE`` is no bound.

    ``blocks`` are the parts of it that a relaxation need not look at until they pay, null in a
    part of a program; ``owner`` is the number of the service that a column belongs to, -1 for those
    that services share.
    """

    lower: Ints
    upper: Ints
    row_lower: Ints
    row_upper: Ints
    starts: Ints
    columns: Ints
    coefficients: Ints
    blocks: GroupBlocks | None = None
    owner: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def row_of_entry(self) -> Ints:
        """Row of every coefficient."""
        rows: Ints = np.repeat(np.arange(len(self.row_lower)), np.diff(self.starts))
        return rows

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
