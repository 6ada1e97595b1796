"""A program with most of its columns held fast."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from heteroplace.formulation.program import INFINITE, Arrays, Flags, Ints, ProgramStep, starts_of
from heteroplace.solve.engine import Caps


@dataclass(frozen=True)
class Restricted:
    """The part of a program that is left when columns keep the values of a solution.

    Parameters
    ----------
    arrays
        The rest, without blocks.
    columns
        Number of each of its columns in the whole program.
    solution
        The solution of the whole program that it was made from.
    """

    arrays: Arrays
    columns: Ints
    solution: Ints

    @classmethod
    def of(cls, arrays: Arrays, free: Flags, solution: Ints) -> Restricted:
        """Hold every column that is not free at its value in a feasible solution."""
        columns = np.flatnonzero(free)
        rows = arrays.row_of_entry
        moving = free[arrays.columns]
        held = arrays.coefficients * np.where(moving, 0, solution[arrays.columns])
        # Exact: no row's value leaves 63 bits.
        done = np.zeros(len(arrays.row_lower), np.int64)
        np.add.at(done, rows[~moving & (held != 0)], held[~moving & (held != 0)])
        lengths = np.bincount(rows[moving], minlength=len(arrays.row_lower))
        kept = np.flatnonzero(lengths)
        place = np.full(len(free), -1, np.int64)
        place[columns] = np.arange(len(columns))
        low, high = arrays.row_lower[kept], arrays.row_upper[kept]
        rest = Arrays(
            arrays.lower[columns],
            arrays.upper[columns],
            np.where(low <= -INFINITE, low, low - done[kept]),
            np.where(high >= INFINITE, high, high - done[kept]),
            starts_of(lengths[kept]),
            place[arrays.columns[moving]],
            arrays.coefficients[moving],
        )
        return cls(rest, columns, solution)

    @property
    def start(self) -> Ints:
        """The solution in the columns of the rest."""
        return self.solution[self.columns]

    def whole(self, found: Ints) -> Ints:
        """A solution of the rest as one of the whole program."""
        x = self.solution.copy()
        x[self.columns] = found
        return x

    def step(self, step: ProgramStep) -> ProgramStep:
        """The part of a step that is not held."""
        place = np.full(len(self.solution), -1, np.int64)
        place[self.columns] = np.arange(len(self.columns))
        at = place[step.columns]
        moving = at >= 0
        held = np.flatnonzero(~moving & (self.solution[step.columns] != 0))
        constant = step.constant + sum(
            step.exact[number] * int(self.solution[step.columns[number]])
            for number in held.tolist()
        )
        exact = tuple(step.exact[number] for number in np.flatnonzero(moving).tolist())
        return replace(step, columns=at[moving], exact=exact, constant=constant)

    def caps(self, caps: Caps) -> Caps:
        """Caps on what is not held."""
        parts = [(self.step(step), value) for step, value in caps]
        return [(step, value) for step, value in parts if len(step.columns)]
