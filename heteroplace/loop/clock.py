"""The two clocks of the loop: wall time for decisions, monotonic time for pacing."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the loop asks about time."""

    def wall(self) -> float:
        """Unix seconds; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Let seconds pass, or fewer if ``stop`` is set; returns whether it is set."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Sleep until ``stop`` is set, at most so long."""
        return stop.wait(max(0.0, seconds))


class ShiftedClock(SystemClock):
    """The machine's clocks, the wall clock set to another time.

    Parameters
    ----------
    now
        What it is taken to be at this moment, in unix seconds.
    """

    def __init__(self, now: float) -> None:
        self._shift = now - time.monotonic()

    def wall(self) -> float:
        """Unix seconds since the time it was set to."""
        return time.monotonic() + self._shift


class Pace:
    """When the next cycle is due: every ``interval`` seconds of monotonic time.

    A cycle that takes longer than the interval makes the loop skip what it missed, not catch up
    in a burst.

    Parameters
    ----------
    clock
        Asked for monotonic time.
    interval
        Seconds between the starts of two cycles.
    """

    def __init__(self, clock: Clock, interval: float) -> None:
        self._clock = clock
        self._interval = interval
        self._due = clock.monotonic()

    def wait(self, stop: threading.Event) -> bool:
        """Wait for the next cycle; returns whether the loop should stop instead."""
        now = self._clock.monotonic()
        missed = max(0, int((now - self._due) // self._interval))
        self._due += (missed + 1) * self._interval
        return self._clock.wait(self._due - now, stop)
