"""``auto``: HiGHS first, CP-SAT with the rest of the time where HiGHS proves nothing."""

from __future__ import annotations

import logging
import time

from heteroplace.formulation.program import Arrays, Ints, ProgramStep
from heteroplace.profile import Profile
from heteroplace.solve.cpsat import CpSatEngine
from heteroplace.solve.engine import (
    PROVEN_GAP,
    Answer,
    Caps,
    EngineMissingError,
    Relaxation,
    Steps,
    UnsuitedError,
    better,
)
from heteroplace.solve.highs import HighsEngine

log = logging.getLogger("heteroplace")

FIRST_SHARE = 0.7
LOADING = 1e-5


class Portfolio:
    """Engine ``auto``: either engine may be missing, not both."""

    name = "HiGHS, then CP-SAT"

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds; CP-SAT is loaded when it is first needed."""
        self._arrays = arrays
        self._profile = profile
        # CP-SAT's model is built in Python; to begin without the time to end only costs time.
        self._loading = LOADING * len(arrays.coefficients)
        self._second: CpSatEngine | None = None
        self._first: HighsEngine | None = HighsEngine()
        try:
            self._first.load(arrays, profile)
        except (EngineMissingError, UnsuitedError) as error:
            log.warning("%s", error)
            self._first = None
            self._load_second()

    @property
    def polishes(self) -> bool:
        """Whether HiGHS is there, which searches neighbourhoods."""
        return self._first is not None

    @property
    def polishes_on(self) -> bool:
        """Whether HiGHS does so beside its proof."""
        return self._first is not None and self._first.polishes_on

    def _load_second(self) -> CpSatEngine:
        if self._second is None:
            engine = CpSatEngine()
            engine.load(self._arrays, self._profile)
            self._second = engine
        return self._second

    def improve(
        self, steps: Steps, caps: Caps, start: Ints | None, seconds: float | None
    ) -> list[Ints]:
        """Improve several steps at once without proof."""
        engine = self._first or self._load_second()
        return engine.improve(steps, caps, start, seconds)

    def relax(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Relaxation | None:
        """Lower bound of a step by the linear relaxation."""
        return None if self._first is None else self._first.relax(step, caps, start, seconds)

    def sharpen(self, step: ProgramStep, x: Ints, seconds: float | None) -> int | None:
        """A better bound of the step relaxed last."""
        return None if self._first is None else self._first.sharpen(step, x, seconds)

    def minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        """Minimise a step."""
        began = time.monotonic()
        first = Answer(None, None)
        if self._first is not None:
            share = seconds
            if seconds is not None and seconds * (1 - FIRST_SHARE) > self._loading:
                share = seconds * FIRST_SHARE
            first = self._first.minimise(step, caps, start, share)
        best = better(self._arrays, step, caps, start, first.solution)
        if best is not None and first.bound is not None:
            gap = step.value(best) - first.bound
            if abs(gap) <= abs(step.value(best)) * PROVEN_GAP:
                return Answer(best, first.bound)
            if gap < 0:
                log.warning("HiGHS gave the bound %d, %d above a value", first.bound, -gap)
                first = Answer(best, None)
        left = None if seconds is None else seconds - (time.monotonic() - began)
        if left is not None and left <= self._loading:
            return Answer(best, first.bound)
        try:
            second = self._load_second().minimise(step, caps, best, left)
        except EngineMissingError as error:
            if self._first is None:
                raise
            log.warning("%s", error)
            return Answer(best, first.bound)
        known = [each for each in (first.bound, second.bound) if each is not None]
        return Answer(
            better(self._arrays, step, caps, best, second.solution), max(known, default=None)
        )
