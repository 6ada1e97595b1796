"""The linear relaxation with groups that enter when they pay, and bounds that certify themselves.

Most groups that may be opened stay closed. The relaxation starts without them; the prices of the
shared rows then tell which group would lower it, and only those enter (column generation over
whole groups). Any prices give a valid bound by Lagrange's argument, so nothing here trusts the
engine: the bound is recomputed from its prices and the data.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heteroplace.formulation.program import INFINITE, Arrays, Ints, ProgramStep
from heteroplace.solve.engine import Caps
from heteroplace.solve.floating import cap_row, cost_scale, row_factors

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

PAYS = 1e-7
NEW_PER_OWNER = 4
DUAL, PRIMAL = 1, 4


@dataclass(frozen=True)
class Relaxed:
    """A relaxation.

    Parameters
    ----------
    bound
        Certified lower bound of ``coefficients @ x``.
    x
        A solution of the relaxation.
    reduced
        Reduced cost of every column that belongs to no block.
    worth
        By how much opening each block raises the bound at least; negative if it lowers it.
    complete
        Whether no group that has not entered would lower it.
    """

    bound: float
    x: Floats
    reduced: Floats
    worth: Floats
    complete: bool


class Blocks:
    """A program's blocks as arrays."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        blocks = arrays.blocks
        self.count = len(blocks)
        columns, rows = len(arrays.upper), len(arrays.row_lower)
        self.of_column = np.full(columns, -1, np.int64)
        self.of_row = np.full(rows, -1, np.int64)
        self.owner = np.array([block.owner for block in blocks], np.int64)
        self.switch = np.array([block.switch for block in blocks], np.int64)
        # Columns of the first role of every block, then of the second; their starts.
        self.members: list[Ints] = []
        self.weights: list[Ints] = []
        self.starts: list[Ints] = []
        for role in (0, 1):
            sides = [block.sides[role] if len(block.sides) > role else () for block in blocks]
            lengths = [len(side) for side in sides]
            flat = np.array([pair for side in sides for pair in side], np.int64).reshape(-1, 2)
            self.members.append(flat[:, 0])
            self.weights.append(flat[:, 1])
            self.starts.append(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
            self.of_column[self.members[role]] = np.repeat(np.arange(self.count), lengths)
        self.of_column[self.switch] = np.arange(self.count)
        for number, block in enumerate(blocks):
            self.of_row[block.rows.start : block.rows.stop] = number
        corners = [corner for block in blocks for corner in block.corners]
        self.corners = np.array(corners, np.float64).reshape(-1, 2)
        lengths = [len(block.corners) for block in blocks]
        self.corner_block = np.repeat(np.arange(self.count), lengths)
        self.corner_starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        self.row_of_entry = np.repeat(np.arange(rows), np.diff(arrays.starts))
        self.shared_entry = self.of_row[self.row_of_entry] < 0

    def used(self, x: Ints | Floats) -> Flags:
        """Blocks that a solution opens."""
        return np.asarray(x[self.switch] > PAYS)

    def worth(self, reduced: Floats) -> Floats:
        """Least reduced cost of opening each block, over the corners of its hull."""
        if not self.count:
            return np.zeros(0)
        cheapest = [self._least(reduced, role) for role in (0, 1)]
        block = self.corner_block
        with np.errstate(invalid="ignore"):
            at_corner = sum(
                np.where(self.corners[:, role] > 0, cheapest[role][block], 0.0)
                * self.corners[:, role]
                for role in (0, 1)
            )
        least: Floats = np.minimum.reduceat(at_corner, self.corner_starts)
        return least + reduced[self.switch]

    def _least(self, reduced: Floats, role: int) -> Floats:
        """Least reduced cost of one unit of a role in each block; inf where it has none."""
        starts, members = self.starts[role], self.members[role]
        least = np.full(self.count, np.inf)
        filled = np.flatnonzero(np.diff(starts))
        if len(filled):
            least[filled] = np.minimum.reduceat(
                reduced[members] / self.weights[role], starts[filled]
            )
        return least


@dataclass(frozen=True)
class _CapRow:
    """A step that is capped by a row of the model; no column of a block is in it."""

    row: int
    columns: Ints
    values: Ints
    factor: float
    top: int


class LazyRelaxation:
    """The relaxation of one program, step after step; what has entered stays.

    Parameters
    ----------
    arrays
        The program.
    model
        An empty HiGHS model with its options set.
    """

    def __init__(self, arrays: Arrays, model: Any) -> None:
        self.arrays = arrays
        self.blocks = Blocks(arrays)
        self.entered = np.zeros(self.blocks.count, bool)
        self._factors = row_factors(arrays.starts, arrays.coefficients)
        self._model = model
        self._scale = 1.0
        self._order = np.argsort(arrays.columns, kind="stable")
        counts = np.bincount(arrays.columns, minlength=len(arrays.upper))
        self._column_starts = np.concatenate([[0], np.cumsum(counts)])
        self._place = np.full(len(arrays.upper), -1, np.int64)
        self._row_place = np.full(len(arrays.row_lower), -1, np.int64)
        self._columns: list[Ints] = []
        self._closed = np.zeros(len(arrays.upper), bool)
        self._cap_rows: dict[str, tuple[int, Ints, Ints, float]] = {}
        self._rows = 0
        self._add_rows(np.flatnonzero(self.blocks.of_row < 0), with_columns=False)
        self._add_columns(np.flatnonzero(self.blocks.of_column < 0))

    # -- the model -------------------------------------------------------------------------

    def enter(self, wanted: Flags) -> None:
        """Let blocks take part."""
        new = np.flatnonzero(wanted & ~self.entered)
        if not len(new):
            return
        self.entered[new] = True
        member = np.zeros(self.blocks.count + 1, bool)
        member[new] = True
        self._add_columns(np.flatnonzero(member[self.blocks.of_column]))
        self._add_rows(np.flatnonzero(member[self.blocks.of_row]), with_columns=True)

    def _add_columns(self, columns: Ints) -> None:
        """Add columns with their entries in the rows that the model has."""
        arrays = self.arrays
        entries = _ranges(self._column_starts, columns)
        entries = self._order[entries]
        rows = self._row_place[self.blocks.row_of_entry[entries]]
        kept = rows >= 0
        lengths = np.diff(self._column_starts)[columns]
        owner = np.repeat(np.arange(len(columns)), lengths)[kept]
        starts = np.searchsorted(owner, np.arange(len(columns)))
        entries = entries[kept]
        values = arrays.coefficients[entries] * self._factors[self.blocks.row_of_entry[entries]]
        self._place[columns] = np.arange(len(columns)) + sum(map(len, self._columns))
        self._columns.append(columns)
        self._model.addCols(
            len(columns),
            np.zeros(len(columns)),
            np.zeros(len(columns)),
            np.where(self._closed[columns], 0.0, arrays.upper[columns]),
            len(entries),
            starts,
            rows[kept],
            values,
        )

    def _add_rows(self, rows: Ints, *, with_columns: bool) -> None:
        arrays, factors = self.arrays, self._factors[rows]
        low = np.where(arrays.row_lower[rows] <= -INFINITE, -np.inf, arrays.row_lower[rows])
        high = np.where(arrays.row_upper[rows] >= INFINITE, np.inf, arrays.row_upper[rows])
        self._row_place[rows] = np.arange(len(rows)) + self._rows
        self._rows += len(rows)
        lengths = np.diff(arrays.starts)[rows] if with_columns else np.zeros(len(rows), np.int64)
        entries = _ranges(arrays.starts, rows) if with_columns else np.zeros(0, np.int64)
        self._model.addRows(
            len(rows),
            low * factors,
            high * factors,
            len(entries),
            np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
            self._place[arrays.columns[entries]],
            arrays.coefficients[entries] * np.repeat(factors, lengths),
        )

    def _aim(self, step: ProgramStep) -> None:
        """Take a step as the objective."""
        self._scale = cost_scale(step)
        cost = np.zeros(len(self.arrays.upper))
        cost[step.columns] = step.coefficients * self._scale
        columns = np.concatenate(self._columns)
        self._model.changeColsCost(len(columns), np.arange(len(columns)), cost[columns])

    def _cap(self, caps: Caps) -> list[_CapRow]:
        """Cap steps and no others; the rows of those that no column bound expresses."""
        closed = np.zeros(len(self.arrays.upper), bool)
        rows: list[_CapRow] = []
        for step, value in caps:
            if step.top(value) == 0 and not (step.coefficients < 0).any():
                closed[step.columns[step.coefficients > 0]] = True
                continue
            columns, values, top = cap_row(step, value)
            if step.name not in self._cap_rows:
                factor = min(1.0, 1e6 / max(1, int(np.abs(values).max(initial=0))))
                self._cap_rows[step.name] = (self._rows, columns, values, factor)
                self._rows += 1
                kept = self._place[columns] >= 0
                self._model.addRow(
                    -np.inf,
                    np.inf,
                    int(kept.sum()),
                    self._place[columns[kept]],
                    values[kept] * factor,
                )
            rows.append(_CapRow(*self._cap_rows[step.name], top))
        tops = {each.row: each.top * each.factor for each in rows}
        for row, _, _, _ in self._cap_rows.values():
            self._model.changeRowBounds(row, -np.inf, tops.get(row, np.inf))
        changed = np.flatnonzero((closed != self._closed) & (self._place >= 0))
        self._closed = closed
        if len(changed):
            upper = np.where(closed[changed], 0.0, self.arrays.upper[changed])
            self._model.changeColsBounds(
                len(changed), self._place[changed], np.zeros(len(changed)), upper
            )
        return rows

    # -- solving ---------------------------------------------------------------------------

    def solve(
        self, step: ProgramStep, caps: Caps, deadline: float | None, enough: float = np.inf
    ) -> Relaxed | None:
        """Solve the relaxation of a step; null when the time runs out before there are prices.

        Parameters
        ----------
        step
            What is minimised.
        caps
            Steps that stay at or below a value in units.
        deadline
            ``time.monotonic()`` at which the last round ends.
        enough
            Stop as soon as the bound of ``coefficients @ x`` reaches this.
        """
        rows = self._cap(caps)
        best: Relaxed | None = None
        # A new objective leaves the dual simplex less to do, new columns the primal one.
        self._model.setOptionValue("simplex_strategy", DUAL)
        while True:
            self._aim(step)
            found = self._run(deadline)
            if found is None:
                return best
            relaxed = self._priced(step, rows, *found)
            pays = (relaxed.worth < -PAYS * max(1.0, abs(relaxed.bound))) & ~self.entered
            bound = relaxed.bound if best is None else max(best.bound, relaxed.bound)
            best = replace(relaxed, bound=bound, complete=not pays.any())
            if best.complete or best.bound >= enough:
                return best
            self.enter(self._chosen(pays, relaxed.worth))
            self._model.setOptionValue("simplex_strategy", PRIMAL)

    def _run(self, deadline: float | None) -> tuple[Floats, Floats, Floats] | None:
        """Solution, prices of the shared rows and of the model's rows; null if not in time."""
        import highspy

        model = self._model
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            model.setOptionValue("time_limit", model.getRunTime() + left)
        model.run()
        if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = model.getSolution()
        x = np.zeros(len(self.arrays.upper))
        x[np.concatenate(self._columns)] = solution.col_value
        dual = np.asarray(solution.row_dual) / self._scale
        prices = np.zeros(len(self.arrays.row_lower))
        shared = np.flatnonzero(self.blocks.of_row < 0)
        prices[shared] = dual[self._row_place[shared]] * self._factors[shared]
        return x, prices, dual

    def _chosen(self, pays: Flags, worth: Floats) -> Flags:
        """Of the blocks that pay, the best few of every owner."""
        numbers = np.flatnonzero(pays)
        owners = self.blocks.owner[numbers]
        order = np.lexsort((worth[numbers], owners))
        owners, numbers = owners[order], numbers[order]
        starts = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]]))
        rank = np.arange(len(numbers)) - np.repeat(starts, np.diff([*starts, len(numbers)]))
        chosen = np.zeros(len(pays), bool)
        chosen[numbers[rank < NEW_PER_OWNER]] = True
        return chosen

    def _priced(
        self,
        step: ProgramStep,
        rows: list[_CapRow],
        x: Floats,
        prices: Floats,
        dual: Floats,
    ) -> Relaxed:
        """Bound, reduced costs and worth of blocks from the prices of the shared rows."""
        arrays, blocks = self.arrays, self.blocks
        low, high = arrays.row_lower, arrays.row_upper
        wrong = ((low <= -INFINITE) & (prices > 0)) | ((high >= INFINITE) & (prices < 0))
        prices = np.where(wrong, 0.0, prices)
        reduced = np.zeros(len(arrays.upper))
        reduced[step.columns] = step.coefficients
        weights = arrays.coefficients * prices[blocks.row_of_entry]
        reduced -= np.bincount(arrays.columns, weights, len(reduced))
        active = np.flatnonzero(prices)
        ends = np.where(prices > 0, low, high)[active].astype(float)
        bound = float(prices[active] @ ends)
        for cap in rows:
            price = min(0.0, float(dual[cap.row]) * cap.factor)
            reduced[cap.columns] -= cap.values * price
            bound += price * cap.top
        upper = np.where(self._closed, 0.0, arrays.upper)
        free = blocks.of_column < 0
        bound += float(np.minimum(0.0, reduced * upper)[free].sum())
        worth = blocks.worth(reduced)
        bound += float(np.minimum(0.0, worth).sum())
        return Relaxed(bound, x, np.where(free, reduced, 0.0), worth, complete=False)


def _ranges(starts: Ints, chosen: Ints) -> Ints:
    """Numbers of the entries in ``starts[i]:starts[i + 1]`` for every chosen i, in that order."""
    first = starts[chosen]
    lengths = starts[chosen + 1] - first
    if not len(chosen) or not lengths.sum():
        return np.zeros(0, np.int64)
    ends = np.cumsum(lengths)
    numbers: Ints = np.arange(ends[-1]) + np.repeat(first - (ends - lengths), lengths)
    return numbers
