"""``auto``: HiGHS first, CP-SAT with the rest of the time where HiGHS proves nothing."""

from __future__ import annotations

import time

from heteroplace.formulation.program import Arrays, Ints, ProgramStep
from heteroplace.profile import Profile
from heteroplace.solve.cpsat import CpSatEngine
from heteroplace.solve.engine import Answer
from heteroplace.solve.highs import HighsEngine

FIRST_SHARE = 0.7


class Portfolio:
    """Engine ``auto``."""

    name = "HiGHS, then CP-SAT"

    def __init__(self) -> None:
        self._first = HighsEngine()
        self._second = CpSatEngine()

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds."""
        self._arrays = arrays
        self._first.load(arrays, profile)
        self._second.load(arrays, profile)

    def cap(self, step: ProgramStep, value: int) -> None:
        """Keep a step at or below a value."""
        self._first.cap(step, value)
        self._second.cap(step, value)

    def minimise(self, step: ProgramStep, start: Ints | None, seconds: float | None) -> Answer:
        """Minimise a step."""
        began = time.monotonic()
        first = self._first.minimise(
            step, start, None if seconds is None else seconds * FIRST_SHARE
        )
        found = first.solution
        if found is not None and not self._arrays.feasible(found):
            found = None
        best = start
        if found is not None and (best is None or step.value(found) < step.value(best)):
            best = found
        if best is not None and first.bound is not None and step.value(best) <= first.bound:
            return Answer(best, first.bound)
        left = None if seconds is None else seconds - (time.monotonic() - began)
        if left is not None and left <= 0:
            return Answer(best, first.bound)
        second = self._second.minimise(step, best, left)
        known = [each for each in (first.bound, second.bound) if each is not None]
        if second.solution is not None and (
            best is None or step.value(second.solution) < step.value(best)
        ):
            best = second.solution
        return Answer(best, max(known, default=None))
