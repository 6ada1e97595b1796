"""Large-neighbourhood search: a few services are placed anew, all others stay where they are."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from heteroplace.formulation.program import Arrays, Flags, Floats, Ints, ProgramStep
from heteroplace.solve.engine import MERGED_SCALE, Caps, Steps
from heteroplace.solve.lazy import best_of_owners
from heteroplace.solve.restrict import Restricted

# How far around the chosen services shared columns may move, in rows; neighbourhoods take turns.
REACHES = (4, 2)
# Most rows from what arrives in a cell to the instances.
MOST_ROWS = 4
FIRST_SIZE = 8
SMALLEST_SIZE = 3
# Added to what a service regrets, in typical regrets: always, and where the relaxation differs.
EVERYWHERE = 0.1
ELSEWHERE = 0.4
DIFFERENCE = 0.01
GROWTH = 1.4
FEW_BLOCKS = 16
LONGEST = 0.5
ROUNDS = 60
PATIENCE = 20


@dataclass(frozen=True)
class Regrets:
    """What the relaxation says of columns and blocks.

    Parameters
    ----------
    owner
        Number of the service that a column belongs to; -1 for shared ones.
    block
        Number of the block that a column belongs to; -1 for none.
    block_owner
        Number of the service of every block.
    reduced
        Reduced cost of columns outside blocks.
    worth
        Least reduced cost of opening each block.
    relaxed
        The solution of the relaxation.
    early
        Columns of early steps: of them only what is above the relaxation is regretted.
    """

    owner: Ints
    block: Ints
    block_owner: Ints
    reduced: Floats
    worth: Floats
    relaxed: Floats
    early: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def services(self) -> int:
        """Number of services."""
        return int(self.owner.max(initial=-1)) + 1

    def of_services(self, arrays: Arrays, x: Ints) -> Floats:
        """What every service pays above the relaxation in a solution.

        What shared columns pay counts, roughly, for the services whose instances flow through them.
        """
        regret = self._of_shared(arrays, x)
        used = np.flatnonzero((x > 0) & (self.owner >= 0))
        free = used[self.block[used] < 0]
        above = x.astype(float)
        above[self.early] = np.maximum(0.0, above[self.early] - self.relaxed[self.early])
        np.add.at(regret, self.owner[free], np.maximum(0.0, self.reduced[free]) * above[free])
        opened = np.unique(self.block[used[self.block[used] >= 0]])
        np.add.at(regret, self.block_owner[opened], np.maximum(0.0, self.worth[opened]))
        return regret

    def _of_shared(self, arrays: Arrays, x: Ints) -> Floats:
        regret = np.zeros(self.services)
        paid = np.where(self.owner < 0, np.maximum(0.0, self.reduced * x), 0.0)
        used = np.flatnonzero(x[arrays.columns] > 0)
        row, column = arrays.row_of_entry[used], arrays.columns[used]
        weight = np.abs(arrays.coefficients[used]).astype(float) * x[column]
        # From what arrives in a cell up the tree to where it entered, and on to the instances.
        for _ in range(MOST_ROWS):
            if not paid.any():
                break
            paid_in_row = np.bincount(row, paid[column], len(arrays.row_lower))
            at = np.flatnonzero(paid_in_row[row] > 0)
            total = np.bincount(row[at], weight[at], len(arrays.row_lower))
            part = paid_in_row[row[at]] * weight[at] / total[row[at]]
            paid = np.bincount(column[at], part, len(x))
            mine = np.flatnonzero((paid > 0) & (self.owner >= 0))
            np.add.at(regret, self.owner[mine], paid[mine])
            paid[self.owner >= 0] = 0.0
        return regret

    def elsewhere(self, x: Ints) -> Flags:
        """Services that the relaxation does not place as a solution does."""
        found = np.zeros(self.services, bool)
        differs = np.abs(self.relaxed - x) > DIFFERENCE
        found[self.owner[differs & (self.owner >= 0)]] = True
        return found

    def raised(self, step: ProgramStep, early: Steps) -> Regrets:
        """The same, where columns of early steps cost what they do in the weighted sum of all."""
        cost = np.zeros(len(self.owner))
        cost[step.columns] = step.coefficients / MERGED_SCALE
        reduced = self.reduced.copy()
        for each in early:
            reduced[each.columns] = cost[each.columns]
        columns = np.unique(np.concatenate([self.early, *(each.columns for each in early)]))
        return replace(self, reduced=reduced, early=columns)

    def promising(self, x: Ints) -> Flags:
        """Columns outside blocks, and those of each service's few best blocks or in use."""
        kept = np.zeros(len(self.worth) + 1, bool)
        kept[best_of_owners(self.block_owner, self.worth, FEW_BLOCKS)] = True
        kept[self.block[(x > 0) & (self.block >= 0)]] = True
        kept[-1] = True
        return np.asarray(kept[self.block])


Minimise = Callable[[Restricted, Caps, float | None], tuple[Ints | None, bool]]


class Drawing:
    """How neighbourhoods are drawn: kept from one search of a program to the next.

    Parameters
    ----------
    seed
        Of the draw of services.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = dict.fromkeys(REACHES, float(FIRST_SIZE))
        self.rounds = 0


def polish(
    arrays: Arrays,
    steps: Steps,
    caps: Caps,
    start: Ints,
    regrets: Regrets,
    minimise: Minimise,
    deadline: float | None,
    drawing: Drawing,
    workers: int = 1,
    stop: threading.Event | None = None,
) -> Iterator[Ints]:
    """Look for solutions that are better in some steps in order, neighbourhood by neighbourhood.

    Parameters
    ----------
    arrays, steps
        The program and what is minimised, in order.
    caps
        Steps that stay at or below a value.
    start
        A feasible solution.
    regrets
        Where to look.
    minimise
        Minimises the steps over a restricted program, with steps that stay at or below a value, in
        some seconds: a solution of it, if any, and whether the search came to its end.
    deadline
        ``time.monotonic()`` at which to stop; null for a number of rounds.
    drawing
        How neighbourhoods are drawn.
    workers
        Neighbourhoods searched at a time, of different services. They are taken in the order in
        which they began: what is found does not depend on which ends first, as long as none is cut
        off.
    stop
        Set to end the search before its deadline.

    Yields
    ------
    numpy.ndarray
        Every better solution of the whole program.
    """
    search = _Search(arrays, steps, caps, start, regrets, drawing)

    def look(attempt: _Try) -> tuple[Ints | None, bool]:
        seconds = None if deadline is None else min(LONGEST, deadline - time.monotonic())
        if seconds is not None and seconds <= 0:
            return None, False
        return minimise(attempt.part, attempt.caps, seconds)

    def stopped() -> bool:
        return stop is not None and stop.is_set()

    pool = ThreadPoolExecutor(workers, "heteroplace-polish")
    running: deque[tuple[_Try, Future[tuple[Ints | None, bool]]]] = deque()
    try:
        while True:
            while len(running) < workers and not stopped() and not search.ended(deadline):
                attempt = search.next([each.chosen for each, _ in running])
                if attempt is None:
                    break
                running.append((attempt, pool.submit(look, attempt)))
            if stopped() or not running:
                return
            attempt, future = running.popleft()
            found, exhausted = future.result()
            if deadline is None or exhausted or time.monotonic() < deadline:
                # How far one came that the end cut off says nothing of its size.
                search.resize(attempt, exhausted)
            if search.take(attempt, found, exhausted):
                yield search.best
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Try:
    """A neighbourhood: the services chosen, its reach, the program that is left and its caps."""

    chosen: Flags
    reach: int
    part: Restricted
    caps: Caps


class _Search:
    """The best solution, and where to look next."""

    weight: Floats
    promising: Flags

    def __init__(
        self,
        arrays: Arrays,
        steps: Steps,
        caps: Caps,
        start: Ints,
        regrets: Regrets,
        drawing: Drawing,
    ) -> None:
        self.arrays = arrays
        self.steps = steps
        self.caps = caps
        self.best = start
        self.values = [step.value(start) for step in steps]
        self.regrets = regrets
        self.drawing = drawing
        self.neighbourhood = _Neighbourhood(arrays, regrets.owner)
        self.looked_at: Ints | None = None
        self.rounds = 0
        self.idle = 0
        self.done = False

    def ended(self, deadline: float | None) -> bool:
        """Whether to start no more neighbourhoods."""
        if deadline is not None:
            return self.done or time.monotonic() >= deadline
        return self.done or self.rounds >= ROUNDS or self.idle >= PATIENCE

    def next(self, busy: list[Flags]) -> _Try | None:
        """A neighbourhood of services of which none is busy; null when there are none left."""
        taken = np.zeros(self.regrets.services + 1, bool)
        for each in busy:
            taken |= each
        taken[-1] = False
        if taken[:-1].all():
            return None
        self.look()
        drawing = self.drawing
        reach = REACHES[drawing.rounds % len(REACHES)]
        self.rounds += 1
        drawing.rounds += 1
        chosen = _draw(drawing.rng, self.weight, round(drawing.size[reach]), taken[:-1])
        wanted = chosen[self.regrets.owner] & self.promising
        free = self.neighbourhood.of(wanted, reach)
        part = Restricted.of(self.arrays, free, self.best)
        # Whatever makes the first of several steps worse would be refused.
        first = [(self.steps[0], self.values[0])] if len(self.steps) > 1 else []
        return _Try(chosen, reach, part, part.caps([*self.caps, *first]))

    def look(self) -> None:
        """Find how often to draw every service, and which columns promise something."""
        if self.looked_at is self.best:
            return
        self.looked_at = self.best
        regret = self.regrets.of_services(self.arrays, self.best)
        typical = float(regret.mean()) + 1e-9
        self.weight = regret + EVERYWHERE * typical
        self.weight[self.regrets.elsewhere(self.best)] += ELSEWHERE * typical
        self.promising = self.regrets.promising(self.best)

    def resize(self, attempt: _Try, exhausted: bool) -> None:
        """Draw more services the next time, or fewer if the search did not come to its end."""
        sizes, reach, services = self.drawing.size, attempt.reach, float(self.regrets.services)
        if exhausted:
            sizes[reach] = min(services, sizes[reach] * GROWTH)
        else:
            sizes[reach] = max(float(SMALLEST_SIZE), sizes[reach] / GROWTH)

    def take(self, attempt: _Try, found: Ints | None, exhausted: bool) -> bool:
        """Take what a neighbourhood has; whether there is a better solution now."""
        self.idle += 1
        if found is not None and self.better(attempt, found):
            return True
        if exhausted and attempt.part.solution is self.best:
            widest = attempt.reach == max(REACHES) and bool(attempt.chosen[:-1].all())
            self.done = self.done or widest
        return False

    def better(self, attempt: _Try, found: Ints) -> bool:
        """Take a solution of a neighbourhood if it is better."""
        x = attempt.part.whole(found)
        if attempt.part.solution is not self.best:
            # Another neighbourhood was faster; rows are linear, so both changes often go together.
            x = self.best + (x - attempt.part.solution)
        values = [step.value(x) for step in self.steps]
        if values >= self.values or any(step.value(x) > value for step, value in self.caps):
            return False
        if not self.arrays.feasible(x):
            return False
        self.best, self.values, self.idle = x, values, 0
        return True


class _Neighbourhood:
    """What has to move so that some columns can."""

    def __init__(self, arrays: Arrays, owner: Ints) -> None:
        self._arrays = arrays
        self._shared = owner < 0

    def of(self, wanted: Flags, reach: int) -> Flags:
        """Columns of services, and the shared ones at most that many rows away from them."""
        columns, row_of_entry = self._arrays.columns, self._arrays.row_of_entry
        free = wanted & ~self._shared
        for _ in range(reach):
            rows = np.zeros(len(self._arrays.row_lower), bool)
            rows[row_of_entry[free[columns]]] = True
            near = np.zeros(len(free), bool)
            near[columns[rows[row_of_entry]]] = True
            free |= near & self._shared
        return free


def _draw(rng: np.random.Generator, weight: Floats, size: int, taken: Flags) -> Flags:
    """Draw services that are not taken, those with much weight more often.

    Shared columns (-1) are always in.
    """
    chosen = np.zeros(len(weight) + 1, bool)
    chosen[-1] = True
    with np.errstate(divide="ignore"):
        keys = np.log(rng.random(len(weight))) / weight
    keys[taken] = -np.inf
    order = np.argsort(-keys, kind="stable")[: min(size, len(keys) - int(taken.sum()))]
    chosen[order] = True
    return chosen
