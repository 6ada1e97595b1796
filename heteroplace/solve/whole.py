"""A better bound than the relaxation's, from services that are placed in whole instances.

Given the prices of the rows that services share, each service may be placed as is best for it
alone, and Lagrange's argument adds up what they cost at least. The relaxation lets parts of a
service be mixed, say half of a running group's growth and a new group; here it may not be. The
services that a plan places at a cost far above the relaxation's are worth the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from heteroplace.formulation.program import Arrays, Floats, Ints, ranges, starts_of
from heteroplace.solve.floating import ROUNDING

# Blocks of a service that are looked at; of the others only the cheapest is known.
FEW_BLOCKS = 70
# A regret, in the step's own numbers, that is not worth the work.
LITTLE = 0.01
# Services one after the other that gain less than a part of what they regret, before it is over.
PATIENCE = 15
SOME = 0.02
# What an engine's bound may be off, relative to 1 and itself.
OFF = 1e-6


@dataclass(frozen=True)
class Prices:
    """What a relaxation's bound is made of.

    Parameters
    ----------
    bound
        The bound.
    rows
        Price of every row; 0 for those of blocks.
    values
        What the price of a row is worth: price times end.
    reduced
        Reduced cost of every column.
    upper
        Upper end of every column.
    worth
        Least reduced cost of opening each block.
    """

    bound: float
    rows: Floats
    values: Floats
    reduced: Floats
    upper: Ints
    worth: Floats


@dataclass(frozen=True)
class Part:
    """The program of one service alone: integer columns with costs that are rounded down."""

    cost: Floats
    arrays: Arrays


Minimum = Callable[[Part, float | None], float | None]


class Services:
    """Which columns and rows of a program belong to one service alone.

    Parameters
    ----------
    arrays
        The program.
    block
        Number of the block of every column; -1 for none.
    block_owner
        Service of every block.
    """

    def __init__(self, arrays: Arrays, block: Ints, block_owner: Ints) -> None:
        self._arrays = arrays
        self._block, self._block_owner = block, block_owner
        row, column = arrays.row_of_entry, arrays.columns
        owner = arrays.owner.copy()
        # A column that nobody owns is a service's if no row of it has columns of anyone else.
        low = _of_rows(np.minimum, arrays, np.where(owner < 0, _NOBODY, owner)[column])
        high = _of_rows(np.maximum, arrays, owner[column])
        only = np.where(low == high, low, -1)
        shared = np.flatnonzero(owner[column] < 0)
        least = np.full(len(owner), _NOBODY, np.int64)
        most = np.full(len(owner), -1, np.int64)
        np.minimum.at(least, column[shared], only[row[shared]])
        np.maximum.at(most, column[shared], only[row[shared]])
        owner = np.where((owner < 0) & (least == most), least, owner)
        low = _of_rows(np.minimum, arrays, owner[column])
        high = _of_rows(np.maximum, arrays, owner[column])
        self._owner = owner
        self._row_owner = np.where(low == high, low, -1)
        self._of_column = np.argsort(owner, kind="stable")
        self._of_row = np.argsort(self._row_owner, kind="stable")
        self._services = int(owner.max(initial=-1)) + 1
        numbers = np.arange(self._services + 1)
        self._column_starts = np.searchsorted(owner[self._of_column], numbers)
        self._row_starts = np.searchsorted(self._row_owner[self._of_row], numbers)

    def bound(
        self,
        prices: Prices,
        x: Ints,
        minimum: Minimum,
        deadline: float | None,
        workers: int = 1,
    ) -> float:
        """Raise the bound of a relaxation.

        Parameters
        ----------
        prices
            The relaxation's.
        x
            A solution of the program: services that it places at a cost near to that in the bound
            are left out.
        minimum
            A lower bound of the cost of a part in some seconds, if it finds any.
        deadline
            ``time.monotonic()`` at which to stop; null for none.
        workers
            Services at a time.

        Returns
        -------
        float
            Never below that of the relaxation.
        """
        arrays, row = self._arrays, self._arrays.row_of_entry
        mine = self._row_owner[row] >= 0
        back = arrays.coefficients * np.where(mine, prices.rows[row], 0.0)
        size = np.bincount(arrays.columns, np.abs(back), len(arrays.upper))
        cost = prices.reduced + np.bincount(arrays.columns, back, len(arrays.upper))
        cost -= ROUNDING * size
        known = self._known(prices)
        counted = np.flatnonzero(self._owner >= 0)
        paid = np.bincount(self._owner[counted], (cost * x)[counted], self._services)
        regret = paid - known
        order = [each for each in np.argsort(-regret).tolist() if regret[each] > LITTLE]
        total = prices.bound
        idle = 0
        pool = ThreadPoolExecutor(workers, "heteroplace-whole")
        running: dict[Future[float | None], tuple[int, float]] = {}
        try:
            while order or running:
                seconds = None if deadline is None else deadline - time.monotonic()
                if seconds is not None and seconds <= 0:
                    break
                while order and len(running) < workers:
                    service = order.pop(0)
                    part, dropped = self._part(service, cost, prices, x)
                    running[pool.submit(minimum, part, seconds)] = (service, dropped)
                done = wait(running, seconds, return_when=FIRST_COMPLETED).done
                for future in done:
                    service, dropped = running.pop(future)
                    found = future.result()
                    gain = 0.0
                    # Above what a known solution pays it is wrong.
                    lies = found is not None and found > paid[service] + slack(paid[service])
                    if found is not None and not lies:
                        least = min(found - slack(found), known[service] + dropped)
                        gain = max(0.0, least - known[service])
                    total += gain
                    idle = 0 if gain > SOME * regret[service] else idle + 1
                    if idle >= PATIENCE:
                        order.clear()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return total

    def _known(self, prices: Prices) -> Floats:
        """What the bound counts for every service."""
        rows = np.flatnonzero(self._row_owner >= 0)
        free = np.flatnonzero((self._owner >= 0) & (self._block < 0))
        owners = (self._row_owner[rows], self._owner[free], self._block_owner)
        gains = (
            prices.values[rows],
            np.minimum(0.0, prices.reduced[free] * prices.upper[free]),
            np.minimum(0.0, prices.worth),
        )
        known = np.bincount(np.concatenate(owners), np.concatenate(gains), self._services)
        return np.asarray(known, float)

    def _part(self, service: int, cost: Floats, prices: Prices, x: Ints) -> tuple[Part, float]:
        """The program of a service, and the worth of the best block that is not in it."""
        arrays = self._arrays
        first, last = self._column_starts[service : service + 2]
        columns = self._of_column[first:last]
        block = self._block[columns]
        blocks = np.unique(block[block >= 0])
        dropped = np.inf
        if len(blocks) > FEW_BLOCKS:
            worth = prices.worth[blocks].copy()
            worth[np.isin(blocks, block[(block >= 0) & (x[columns] > 0)])] = -np.inf
            order = np.argsort(worth, kind="stable")
            dropped = max(0.0, float(worth[order[FEW_BLOCKS]]))
            kept = blocks[order[:FEW_BLOCKS]]
            columns = columns[(block < 0) | np.isin(block, kept)]
        place = np.full(len(arrays.upper), -1, np.int64)
        place[columns] = np.arange(len(columns))
        first, last = self._row_starts[service : service + 2]
        rows = self._of_row[first:last]
        entries = ranges(arrays.starts, rows)
        inside = place[arrays.columns[entries]] >= 0
        number = np.repeat(np.arange(len(rows)), np.diff(arrays.starts)[rows])[inside]
        entries = entries[inside]
        lengths = np.bincount(number, minlength=len(rows))
        filled = lengths > 0
        part = Arrays(
            arrays.lower[columns],
            prices.upper[columns],
            arrays.row_lower[rows][filled],
            arrays.row_upper[rows][filled],
            starts_of(lengths[filled]),
            place[arrays.columns[entries]],
            arrays.coefficients[entries],
        )
        return Part(cost[columns], part), dropped


def slack(value: float) -> float:
    """What an engine may be off at a value."""
    return OFF * (1.0 + abs(value))


_NOBODY = np.iinfo(np.int64).max


def _of_rows(best: np.ufunc, arrays: Arrays, values: Ints) -> Ints:
    """Least or greatest value of the entries of every row; -1 where there are none."""
    found = np.full(len(arrays.row_lower), -1, np.int64)
    filled = np.flatnonzero(np.diff(arrays.starts))
    if len(filled):
        found[filled] = best.reduceat(values, arrays.starts[filled])
    return found
