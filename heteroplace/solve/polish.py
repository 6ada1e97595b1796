"""Large-neighbourhood search: a few services are placed anew, all others stay where they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from heteroplace.formulation.program import Arrays, Flags, Floats, Ints, ProgramStep
from heteroplace.solve.engine import MERGED_SCALE, Steps
from heteroplace.solve.lazy import best_of_owners
from heteroplace.solve.restrict import Restricted

FIRST_SIZE = 12
SMALLEST_SIZE = 3
GROWTH = 1.25
FEW_BLOCKS = 16
LONGEST = 1.0
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
    """

    owner: Ints
    block: Ints
    block_owner: Ints
    reduced: Floats
    worth: Floats

    def of_services(self, x: Ints) -> Floats:
        """What every service pays above the relaxation in a solution."""
        services = int(self.owner.max(initial=-1)) + 1
        regret = np.zeros(services)
        used = np.flatnonzero((x > 0) & (self.owner >= 0))
        free = used[self.block[used] < 0]
        np.add.at(regret, self.owner[free], np.maximum(0.0, self.reduced[free]) * x[free])
        opened = np.unique(self.block[used[self.block[used] >= 0]])
        np.add.at(regret, self.block_owner[opened], np.maximum(0.0, self.worth[opened]))
        return regret

    def raised(self, step: ProgramStep, early: Steps) -> Regrets:
        """The same, where columns of early steps cost what they do in the weighted sum of all."""
        cost = np.zeros(len(self.owner))
        cost[step.columns] = step.coefficients / MERGED_SCALE
        reduced = self.reduced.copy()
        for each in early:
            reduced[each.columns] = cost[each.columns]
        return replace(self, reduced=reduced)

    def promising(self, x: Ints) -> Flags:
        """Columns outside blocks, and those of each service's few best blocks or in use."""
        kept = np.zeros(len(self.worth) + 1, bool)
        kept[best_of_owners(self.block_owner, self.worth, FEW_BLOCKS)] = True
        kept[self.block[(x > 0) & (self.block >= 0)]] = True
        kept[-1] = True
        return np.asarray(kept[self.block])


def polish(
    arrays: Arrays,
    step: ProgramStep,
    start: Ints,
    regrets: Regrets,
    minimise: Callable[[Restricted, float | None], tuple[Ints | None, bool]],
    deadline: float | None,
    seed: int,
) -> Iterator[Ints]:
    """Look for better solutions of a step, neighbourhood after neighbourhood.

    Parameters
    ----------
    arrays, step
        The program and what is minimised.
    start
        A feasible solution.
    regrets
        Where to look.
    minimise
        Minimises the step over a restricted program in some seconds: a solution of it, if any,
        and whether that is its best.
    deadline
        ``time.monotonic()`` at which to stop; null for a number of rounds.
    seed
        Of the draw of services.

    Yields
    ------
    numpy.ndarray
        Every better solution of the whole program.
    """
    rng = np.random.default_rng(seed)
    neighbourhood = _Neighbourhood(arrays, regrets.owner)
    best, size, idle = start, float(FIRST_SIZE), 0
    for _ in range(ROUNDS if deadline is None else 10**9):
        seconds = None if deadline is None else min(LONGEST, deadline - time.monotonic())
        if (seconds is not None and seconds <= 0) or (deadline is None and idle >= PATIENCE):
            return
        chosen = _draw(rng, regrets.of_services(best), round(size))
        free = neighbourhood.of(chosen[regrets.owner] & regrets.promising(best))
        part = Restricted.of(arrays, free, best)
        found, exhausted = minimise(part, seconds)
        idle += 1
        if found is not None:
            x = part.whole(found)
            if step.value(x) < step.value(best) and arrays.feasible(x):
                best, idle = x, 0
                yield best
        if exhausted:
            if size >= len(chosen) - 1:
                return
            size = min(len(chosen) - 1.0, size * GROWTH)
        else:
            size = max(float(SMALLEST_SIZE), size / GROWTH)


class _Neighbourhood:
    """What has to move so that some columns can."""

    def __init__(self, arrays: Arrays, owner: Ints) -> None:
        self._arrays = arrays
        self._shared = owner < 0

    def of(self, wanted: Flags) -> Flags:
        """Columns of services, and the shared ones two rows away from them at most."""
        columns, row_of_entry = self._arrays.columns, self._arrays.row_of_entry
        free = wanted & ~self._shared
        for _ in range(2):
            rows = np.zeros(len(self._arrays.row_lower), bool)
            rows[row_of_entry[free[columns]]] = True
            near = np.zeros(len(free), bool)
            near[columns[rows[row_of_entry]]] = True
            free |= near & self._shared
        return free


def _draw(rng: np.random.Generator, regret: Floats, size: int) -> Flags:
    """Draw services, those with much regret more often; shared columns (-1) are always in."""
    chosen = np.zeros(len(regret) + 1, bool)
    chosen[-1] = True
    weight = regret + 0.1 * regret.mean() + 1e-9
    with np.errstate(divide="ignore"):
        keys = np.log(rng.random(len(regret))) / weight
    chosen[np.argsort(-keys, kind="stable")[:size]] = True
    return chosen
