"""The linear relaxation with groups that enter when they pay, and bounds that certify themselves.

Most groups that may be opened stay closed, and each may become but the corners of a small hull. The
relaxation therefore starts without them (Dantzig-Wolfe decomposition): the prices of the shared
rows tell which corner of which group would lower it, and only those enter as columns. Any prices
give a valid bound by Lagrange's argument, so nothing here trusts the engine: the bound is
recomputed from the prices and the data.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from heteroplace.formulation.program import (
    INFINITE,
    Arrays,
    Floats,
    Ints,
    ProgramStep,
    ranges,
    starts_of,
)
from heteroplace.solve.engine import Caps
from heteroplace.solve.floating import (
    cap_row,
    cost_scale,
    paid_by_rows,
    reduced_costs,
    rounded_down,
    row_factors,
)
from heteroplace.solve.whole import Prices

PAYS = 1e-7
NEW_PER_OWNER = 3
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
        Reduced cost of every column that belongs to no block; 0 elsewhere.
    worth
        Least reduced cost of opening each block: what a solution that opens it costs at least
        above the bound, where positive.
    complete
        Whether nothing that has not entered would lower it.
    """

    bound: float
    x: Floats
    reduced: Floats
    worth: Floats
    complete: bool


class Blocks:
    """A program's blocks as arrays."""

    def __init__(self, arrays: Arrays) -> None:
        blocks = arrays.blocks
        assert blocks is not None
        self.count = len(blocks)
        self.of_column = np.full(len(arrays.upper), -1, np.int64)
        self.owner, self.switch = blocks.owner, blocks.switch
        self.of_column[self.switch] = np.arange(self.count)
        # Columns and weights of the first role of every block, then of the second; their starts.
        self.members, self.weights, self.starts = blocks.columns, blocks.weights, blocks.starts
        self._member_block = [np.repeat(np.arange(self.count), np.diff(at)) for at in self.starts]
        for members, block in zip(self.members, self._member_block, strict=True):
            self.of_column[members] = block
        self.first_row = int(blocks.rows[0])
        corners = [hull.corners for hull in blocks.hulls]
        counts = np.array([len(each) for each in corners], np.int64)
        flat = np.array([each for hull in corners for each in hull], np.int64).reshape(-1, 2)
        self.corners = flat[ranges(starts_of(counts), blocks.hull)]
        lengths = counts[blocks.hull]
        self.corner_block = np.repeat(np.arange(self.count), lengths)
        self.corner_starts = starts_of(lengths)

    def cheapest(self, reduced: Floats, role: int) -> tuple[Floats, Ints]:
        """Least reduced cost of a unit of a role in each block, and its place in ``members``."""
        starts, members = self.starts[role], self.members[role]
        least = np.full(self.count, np.inf)
        place = np.full(self.count, -1, np.int64)
        filled = np.flatnonzero(np.diff(starts))
        if len(filled):
            cost = reduced[members] / self.weights[role]
            least[filled] = np.minimum.reduceat(cost, starts[filled])
            block = self._member_block[role]
            at = np.flatnonzero(cost == least[block])
            place[block[at][::-1]] = at[::-1]
        return least, place

    def best_corners(self, reduced: Floats) -> tuple[Floats, Ints, tuple[Ints, Ints]]:
        """Of each block the least reduced cost, its corner and the members that reach it."""
        least, places = zip(*(self.cheapest(reduced, role) for role in (0, 1)), strict=True)
        value = np.zeros(len(self.corners))
        for role in (0, 1):
            units = self.corners[:, role]
            used = units > 0
            value[used] += units[used] * least[role][self.corner_block[used]]
        worth = np.minimum.reduceat(value, self.corner_starts[:-1])
        at = np.flatnonzero(value == worth[self.corner_block])
        corner = np.full(self.count, -1, np.int64)
        corner[self.corner_block[at][::-1]] = at[::-1]
        return worth + reduced[self.switch], corner, (places[0], places[1])


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
        self._model = model
        self._scale = 1.0
        self._factors = row_factors(arrays.starts, arrays.coefficients)
        # Rows of blocks come last; their entries are not looked at.
        self._entries = int(arrays.starts[self.blocks.first_row])
        columns = arrays.columns[: self._entries]
        self._by_column = np.argsort(columns, kind="stable")
        self._column_starts = starts_of(np.bincount(columns, minlength=len(arrays.upper)))
        self._closed = np.zeros(len(arrays.upper), bool)
        self._shared = slice(self.blocks.first_row)
        self._free = np.flatnonzero(self.blocks.of_column < 0)
        self._free_place = np.full(len(arrays.upper), -1, np.int64)
        self._free_place[self._free] = np.arange(len(self._free))
        # Rows of the model: the shared ones, then as they come those of caps and of blocks.
        self._rows = self.blocks.first_row
        self._cap_rows: dict[str, tuple[int, Ints, Ints, float]] = {}
        self._block_row = np.full(self.blocks.count, -1, np.int64)
        # Columns of the model: the free ones, then patterns of blocks (block, column, count).
        self._patterns = 0
        self._pattern_parts: list[tuple[Ints, Ints, Floats]] = []
        self._known: set[tuple[object, ...]] = set()
        self._last: Ints | None = None
        #: What the last bound is made of.
        self.prices: Prices | None = None
        self._add_shared()

    # -- the model -------------------------------------------------------------------------

    def _add_shared(self) -> None:
        arrays, rows, columns = self.arrays, self._shared, self._free
        low, high = arrays.row_lower[rows], arrays.row_upper[rows]
        factors = self._factors[rows]
        nothing = np.zeros(0, np.int64)
        self._model.addRows(
            self._rows,
            np.where(low <= -INFINITE, -np.inf, low * factors),
            np.where(high >= INFINITE, np.inf, high * factors),
            0,
            np.zeros(self._rows, np.int64),
            nothing,
            nothing.astype(float),
        )
        ones = np.ones(len(columns))
        self._add_columns(columns, ones, np.arange(len(columns)), arrays.upper[columns])

    def _add_columns(self, columns: Ints, counts: Floats, owner: Ints, upper: Ints) -> None:
        """Add one column to the model for each owner: the sum of its counts of columns.

        Parameters
        ----------
        columns, counts, owner
            Parts, sorted by owner.
        upper
            Upper end of each new column.
        """
        entries = self._by_column[ranges(self._column_starts, columns)]
        part = np.repeat(np.arange(len(columns)), np.diff(self._column_starts)[columns])
        row = self.arrays.row_of_entry[entries]
        value = self.arrays.coefficients[entries] * counts[part] * self._factors[row]
        owner_of = owner[part]
        # Two parts of one owner may meet in a row.
        order = np.lexsort((row, owner_of))
        row, value, owner_of = row[order], value[order], owner_of[order]
        first = np.ones(len(row), bool)
        first[1:] = (row[1:] != row[:-1]) | (owner_of[1:] != owner_of[:-1])
        at = np.flatnonzero(first)
        if len(at):
            value = np.add.reduceat(value, at)
        self._model.addCols(
            len(upper),
            np.zeros(len(upper)),
            np.zeros(len(upper)),
            upper.astype(float),
            len(at),
            np.searchsorted(owner_of[at], np.arange(len(upper))),
            row[at],
            value,
        )

    def enter_solution(self, x: Ints) -> None:
        """Let what a solution opens take part, just as it is there."""
        if x is self._last:
            return
        self._last = x
        block = self.blocks.of_column
        columns = np.flatnonzero((x > 0) & (block >= 0))
        self._enter(block[columns], columns, x[columns].astype(float))

    def _enter(self, block: Ints, column: Ints, count: Floats) -> None:
        """Add one pattern for every block that occurs."""
        if not len(block):
            return
        order = np.argsort(block, kind="stable")
        block, column, count = block[order], column[order], count[order]
        blocks, pattern = np.unique(block, return_inverse=True)
        self._add_columns(column, count, pattern, np.ones(len(blocks), np.int64))
        first = len(self._free) + self._patterns
        places = np.arange(first, first + len(blocks))
        new = self._block_row[blocks] < 0
        self._model.addRows(
            int(new.sum()),
            np.full(int(new.sum()), -np.inf),
            np.ones(int(new.sum())),
            int(new.sum()),
            np.arange(int(new.sum())),
            places[new],
            np.ones(int(new.sum())),
        )
        for place, row in zip(
            places[~new].tolist(), self._block_row[blocks[~new]].tolist(), strict=True
        ):
            self._model.changeCoeff(row, place, 1.0)
        self._block_row[blocks[new]] = self._rows + np.arange(int(new.sum()))
        self._rows += int(new.sum())
        self._pattern_parts.append((pattern + self._patterns, column, count))
        self._patterns += len(blocks)

    def _enter_corners(self, blocks: Ints, corner: Ints, places: tuple[Ints, Ints]) -> bool:
        """Let corners of blocks take part unless they do already; whether any is new."""
        of_block: list[int] = []
        columns: list[int] = []
        counts: list[float] = []
        switches, corners = self.blocks.switch, self.blocks.corners
        for block in blocks.tolist():
            chosen = []
            for role, units in enumerate(corners[corner[block]].tolist()):
                if units:
                    place = int(places[role][block])
                    weight = int(self.blocks.weights[role][place])
                    chosen.append((int(self.blocks.members[role][place]), units / weight))
            key = (block, *chosen)
            if key in self._known:
                continue
            self._known.add(key)
            of_block.extend([block] * (len(chosen) + 1))
            columns.extend([int(switches[block]), *(column for column, _ in chosen)])
            counts.extend([1.0, *(count for _, count in chosen)])
        self._enter(np.array(of_block, np.int64), np.array(columns, np.int64), np.array(counts))
        return bool(of_block)

    def _aim(self, step: ProgramStep) -> None:
        """Take a step as the objective."""
        self._scale = cost_scale(step.coefficients)
        cost = np.zeros(len(self.arrays.upper))
        cost[step.columns] = step.coefficients * self._scale
        pattern, column, count = self._parts()
        own = np.bincount(pattern, cost[column] * count, self._patterns)
        costs = np.concatenate([cost[self._free], own])
        self._model.changeColsCost(len(costs), np.arange(len(costs)), costs)

    def _parts(self) -> tuple[Ints, Ints, Floats]:
        """Pattern, column and count of the parts of all patterns."""
        if not self._pattern_parts:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, np.zeros(0)
        pattern, column, count = zip(*self._pattern_parts, strict=True)
        return np.concatenate(pattern), np.concatenate(column), np.concatenate(count)

    def _cap(self, caps: Caps) -> list[_CapRow]:
        """Cap steps and no others; the rows of those that no column bound expresses."""
        closed = np.zeros(len(self.arrays.upper), bool)
        place_of = self._free_place
        rows: list[_CapRow] = []
        for step, value in caps:
            if step.top(value) == 0 and not (step.coefficients < 0).any():
                closed[step.columns[step.coefficients > 0]] = True
                continue
            columns, values, top = cap_row(step, value)
            if step.name not in self._cap_rows:
                factor = float(row_factors(np.array([0, len(values)]), values)[0])
                self._cap_rows[step.name] = (self._rows, columns, values, factor)
                self._rows += 1
                # Steps that are followed by others have no column of a block.
                places = place_of[columns]
                self._model.addRow(-np.inf, np.inf, len(places), places, values * factor)
            rows.append(_CapRow(*self._cap_rows[step.name], top))
        tops = {each.row: each.top * each.factor for each in rows}
        for row, _, _, _ in self._cap_rows.values():
            self._model.changeRowBounds(row, -np.inf, tops.get(row, np.inf))
        changed = np.flatnonzero((closed != self._closed) & (place_of >= 0))
        self._closed = closed
        if len(changed):
            upper = np.where(closed[changed], 0.0, self.arrays.upper[changed])
            nothing = np.zeros(len(changed))
            self._model.changeColsBounds(len(changed), place_of[changed], nothing, upper)
        return rows

    # -- solving ---------------------------------------------------------------------------

    def solve(self, step: ProgramStep, caps: Caps, deadline: float | None) -> Relaxed | None:
        """Solve the relaxation of a step; null when the time runs out before there are prices.

        Parameters
        ----------
        step
            What is minimised.
        caps
            Steps that stay at or below a value in units; none of them has a column of a block.
        deadline
            ``time.monotonic()`` at which the last round ends.
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
            x, dual = found
            relaxed, corner, places = self._priced(step, rows, x, dual)
            bound = relaxed.bound if best is None else max(best.bound, relaxed.bound)
            price = np.where(self._block_row >= 0, dual[self._block_row], 0.0)
            pays = relaxed.worth - np.minimum(price, 0.0) < -PAYS * max(1.0, abs(bound))
            paying = np.flatnonzero(pays)
            best_few = best_of_owners(
                self.blocks.owner[paying], relaxed.worth[paying], NEW_PER_OWNER
            )
            chosen = paying[best_few]
            best = replace(relaxed, bound=bound, complete=not len(chosen))
            if best.complete:
                return best
            if not self._enter_corners(chosen, corner, places):
                return replace(best, complete=True)
            self._model.setOptionValue("simplex_strategy", PRIMAL)

    def _run(self, deadline: float | None) -> tuple[Floats, Floats] | None:
        """Solution and prices of the model's rows; null when there are none in time."""
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
        value = np.asarray(solution.col_value)
        x = np.zeros(len(self.arrays.upper))
        x[self._free] = value[: len(self._free)]
        if self._pattern_parts:
            pattern, column, count = self._parts()
            x += np.bincount(column, count * value[len(self._free) + pattern], len(x))
        return x, np.asarray(solution.row_dual) / self._scale

    def _priced(
        self, step: ProgramStep, rows: list[_CapRow], x: Floats, dual: Floats
    ) -> tuple[Relaxed, Ints, tuple[Ints, Ints]]:
        """Bound, reduced costs and worth of blocks from the prices of the shared rows."""
        arrays, blocks, shared = self.arrays, self.blocks, self._shared
        low, high = arrays.row_lower[shared], arrays.row_upper[shared]
        prices = np.zeros(len(arrays.row_lower))
        values = np.zeros(len(arrays.row_lower))
        price = dual[shared] * self._factors[shared]
        prices[shared], value = paid_by_rows(low, high, price)
        values[shared] = value
        cost = np.zeros(len(arrays.upper))
        cost[step.columns] = step.coefficients
        shown = slice(self._entries)
        columns = [arrays.columns[shown], *(cap.columns for cap in rows)]
        paid: list[Floats] = [arrays.coefficients[shown] * prices[arrays.row_of_entry[shown]]]
        capped = []
        for cap in rows:
            top = min(0.0, float(dual[cap.row]) * cap.factor)
            paid.append(cap.values.astype(float) * top)
            capped.append(top * cap.top)
        reduced = reduced_costs(cost, np.concatenate(columns), np.concatenate(paid))
        free = self._free
        upper = np.where(self._closed, 0, arrays.upper)
        worth, corner, places = blocks.best_corners(reduced)
        gains = np.concatenate([reduced[free] * upper[free], worth])
        bound = rounded_down(np.concatenate([value, capped, np.minimum(0.0, gains)]))
        self.prices = Prices(bound, prices, values, reduced, upper, worth)
        kept = np.where(blocks.of_column < 0, reduced, 0.0)
        return Relaxed(bound, x, kept, worth, complete=False), corner, places


@dataclass(frozen=True)
class _CapRow:
    """A step that is capped by a row of the model."""

    row: int
    columns: Ints
    values: Ints
    factor: float
    top: int


def best_of_owners(owners: Ints, worth: Floats, most: int) -> Ints:
    """Places of the least few of every owner."""
    order = np.lexsort((worth, owners))
    ordered = owners[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    best: Ints = order[rank < most]
    return best
