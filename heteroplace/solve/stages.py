"""What the seconds of a solve go into, told to whoever listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("heteroplace.stages")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Log how long a part of a solve takes, at level ``DEBUG`` to ``heteroplace.stages``.

    The record's ``stage`` is its name and ``seconds`` how long it took; stages may be nested.

    Parameters
    ----------
    name
        Name of the stage.
    """
    if not log.isEnabledFor(logging.DEBUG):
        yield
        return
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        extra = {"stage": name, "seconds": seconds}
        log.debug("%s took %.4f s", name, seconds, extra=extra)
