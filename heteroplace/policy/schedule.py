"""Cron schedules in IANA time zones: which entry is in force, and until when."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from heteroplace.errors import InputError

# Around a change of the clocks cronsim works on wall time, of which an hour comes twice or never:
# start its search this far away and walk.
_MARGIN = timedelta(hours=3)
_DAY = timedelta(days=1)
NEVER = float("inf")


@functools.cache
def _cronsim() -> ModuleType:
    try:
        import cronsim
    except ImportError:
        raise InputError(
            "cron", "needs the package cronsim; install it with: pip install heteroplace[policy]"
        ) from None
    return cronsim


@functools.cache
def time_zone(name: str) -> tzinfo:
    """Give the time zone of an IANA name.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            "",
            f"unknown time zone {name[:60]!r}; use an IANA name such as Europe/Berlin "
            "(without a database of them: pip install heteroplace[policy])",
        ) from None


def check_time_zone(name: str) -> str:
    """Refuse a name that is no time zone."""
    try:
        time_zone(name)
    except InputError as error:
        raise ValueError(error.message) from None
    return name


@functools.lru_cache(maxsize=4096)
def check_cron(expression: str) -> str:
    """Refuse an expression that is not cron, or never fires."""
    cronsim = _cronsim()
    try:
        next(cronsim.CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
    except cronsim.CronSimError as error:
        raise ValueError(
            f"is not a cron expression ({str(error).lower()}); write minute, hour, day of month, "
            "month and day of week"
        ) from None
    except StopIteration:
        raise ValueError("never fires; correct the day or the month") from None
    return expression


def last_fire(expression: str, zone: tzinfo, now: float) -> float:
    """When a cron expression fired last, at ``now`` at the latest, in Unix seconds.

    Minus infinity if that is more than fifty years ago.
    """
    start = datetime.fromtimestamp(int(now) + 1, zone)
    if _clock_changes(start):
        start = (start.astimezone(UTC) + _MARGIN).astimezone(zone)
    times: Any = _cronsim().CronSim(expression, start, reverse=True)
    return next((at for each in times if (at := each.timestamp()) <= now), -NEVER)


def next_fire(expression: str, zone: tzinfo, now: float) -> float:
    """When a cron expression fires next, after ``now``, in Unix seconds.

    Infinity if that is more than fifty years ahead.
    """
    start = datetime.fromtimestamp(int(now), zone)
    if _clock_changes(start):
        start = (start.astimezone(UTC) - _MARGIN).astimezone(zone)
    times: Any = _cronsim().CronSim(expression, start)
    return next((at for each in times if (at := each.timestamp()) > now), NEVER)


def _clock_changes(moment: datetime) -> bool:
    return (moment - _DAY).utcoffset() != (moment + _DAY).utcoffset()


@dataclass(slots=True)
class Timetable:
    """Several cron expressions of which the one that fired last is in force.

    Parameters
    ----------
    expressions
        When two fire at the same moment, the later one in the list counts.
    zone
        Time zone of all of them.
    """

    expressions: Sequence[str]
    zone: tzinfo
    _since: float = field(default=NEVER, init=False)
    _until: float = field(default=-NEVER, init=False)
    _index: int = field(default=-1, init=False)

    def at(self, now: float) -> int | None:
        """Index of the expression in force, or null if none has ever fired.

        What was found is kept until the next one fires, for that is dear; the answer depends on
        ``now`` alone.
        """
        if not self._since <= now < self._until:
            fired = [last_fire(each, self.zone, now) for each in self.expressions]
            self._since = max(fired)
            self._index = max((at, index) for index, at in enumerate(fired))[1]
            self._until = min(next_fire(each, self.zone, now) for each in self.expressions)
        return None if self._since == -NEVER else self._index

    @property
    def since(self) -> float:
        """When the expression in force fired, as of the last question."""
        return self._since
