"""Peak memory of one measurement.

``getrusage`` knows only the peak of a process's whole life, and a new process inherits the one of
its parent until it has replaced its memory. The kernel's ``VmHWM`` belongs to the memory itself
and can be set back to the present size, so that it says what one measurement needed.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


class PeakMemory:
    """Measures from its construction on.

    Parameters
    ----------
    fresh
        Whether the process does nothing else, so that its whole life may be counted where the
        system cannot do better.
    """

    def __init__(self, fresh: bool = False) -> None:
        gc.collect()
        self._fresh = fresh
        try:
            CLEAR.write_text(RESET_PEAK, encoding="ascii")
            self._reset = True
        except OSError:
            self._reset = False

    def bytes(self) -> int | None:
        """Largest resident set since then, in bytes; null when the system does not tell."""
        if self._reset or self._fresh:
            found = _high_water()
            if found is not None:
                return found
        if self._fresh and resource is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024
        return None


def _high_water() -> int | None:
    try:
        text = STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return None
