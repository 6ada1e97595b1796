"""Readings from a file of recorded metrics, in the order of their times."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from heteroplace.errors import InputError
from heteroplace.policy.readings import Problem, Reading, Snapshot
from heteroplace.policy.sources.config import ReplayMetrics
from heteroplace.policy.sources.samples import (
    BadLineError,
    LineParser,
    Sample,
    csv_parser,
    parse_json_line,
)
from heteroplace.policy.sources.tail import Line, LineFile
from heteroplace.policy.sources.wanted import wanted_signals

if TYPE_CHECKING:
    from heteroplace.policy.fleet import Fleet

logger = logging.getLogger(__name__)

_MOST_WARNINGS = 100


@dataclass(slots=True)
class _Newest:
    """The newest sample of one series, and the value that contradicts it, if there is one."""

    reading: Reading
    other: float | None = None


class ReplaySource:
    """Gives, at any time, the newest recorded sample that is not after it.

    The order of the lines is the order in which samples arrive. It reads on only as far as it
    has to, so a large file is read once, piece by piece; when the time goes back, it begins
    again. Not for use by several threads at once.

    Parameters
    ----------
    settings
        The file and its format.

    Raises
    ------
    InputError
        If the file cannot be opened, or is CSV and its header is wrong.
    """

    def __init__(self, settings: ReplayMetrics) -> None:
        self._settings = settings
        self._csv = (settings.format or _format(settings.path)) == "csv"
        self._file = LineFile(settings.path, settings.follow)
        self._warned: set[tuple[str, str]] = set()
        self._forget()
        if self._csv:
            self._check_header()

    def _forget(self) -> None:
        self._parser: LineParser | None = None if self._csv else parse_json_line
        self._now = -math.inf
        self._newest: dict[tuple[str, str], _Newest] = {}
        # Samples after the present, the earliest first; the count keeps the order of arrival.
        self._ahead: list[tuple[float, int, Sample]] = []
        self._count = 0

    def _check_header(self) -> None:
        """Refuse a wrong header before anything depends on the file."""
        try:
            line = next(self._file.lines(), None)
            if line is not None:
                self._parse(line)
            elif not self._settings.follow:
                raise InputError(self._settings.path, "is empty; it needs a header")
        except InputError:
            self._file.close()
            raise
        self._file.rewind()
        self._forget()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, fleet: Fleet, now: float) -> Snapshot:
        """Give the newest sample of every signal of the fleet's services at ``now``.

        Parameters
        ----------
        fleet
            The services and signals; others in the file are named in a warning.
        now
            Unix seconds.

        Returns
        -------
        Snapshot
            With a problem for each signal that a policy needs and that has no reading.

        Raises
        ------
        InputError
            If a line is not a sample; names the line. The next call goes on after it.
        """
        if now < self._now:
            logger.warning(
                "the clock went back by %.3f s; %s is read again from its start",
                self._now - now,
                self._settings.path,
            )
            self._file.rewind()
            self._forget()
        self._now = now
        while self._ahead and self._ahead[0][0] <= now:
            self._arrive(heappop(self._ahead)[2])
        lines = self._file.lines()
        while len(self._ahead) < self._settings.lookahead:
            line = next(lines, None)
            if line is None:
                break
            for sample in self._parse(line):
                if sample.service not in fleet.service or sample.signal not in fleet.signal:
                    self._warn(fleet, sample)
                elif sample.at <= now:
                    self._arrive(sample)
                else:
                    self._count += 1
                    heappush(self._ahead, (sample.at, self._count, sample))
        return self._snapshot(fleet, now)

    def _parse(self, line: Line) -> tuple[Sample, ...]:
        try:
            # A file that was replaced begins with a header again.
            if self._csv and line.number == 1:
                self._parser = csv_parser(line.text)
                return ()
            if not line.text.strip():
                return ()
            if self._parser is None:
                raise BadLineError("comes after a header that is wrong; correct line 1")
            return tuple(self._parser(line.text))
        except BadLineError as error:
            raise InputError(f"{self._settings.path}, line {line.number}", str(error)) from None

    def _arrive(self, sample: Sample) -> None:
        """Take a sample in; a late one does not replace a newer one."""
        key = (sample.service, sample.signal)
        known = self._newest.get(key)
        if known is None or sample.at > known.reading.at:
            self._newest[key] = _Newest(Reading(sample.value, sample.at))
        elif sample.at == known.reading.at and not _same(sample.value, known.reading.value):
            known.other = sample.value

    def _snapshot(self, fleet: Fleet, now: float) -> Snapshot:
        readings: dict[str, dict[str, Reading]] = {name: {} for name in fleet.service}
        problems: dict[tuple[str, str], str] = {}
        for (service, signal), newest in self._newest.items():
            if service not in readings:
                continue
            message = _fault(service, signal, newest)
            if message is None:
                readings[service][signal] = newest.reading
            else:
                problems[service, signal] = message
        path, until = self._settings.path, _moment(now)
        for service, signals in wanted_signals(fleet).items():
            for signal in signals:
                if signal not in readings[service] and (service, signal) not in problems:
                    message = f"{path} has no {signal} of {service!r} up to {until}."
                    problems[service, signal] = message
        found = (Problem(*key, message) for key, message in problems.items())
        return Snapshot(now, readings, tuple(found))

    def _warn(self, fleet: Fleet, sample: Sample) -> None:
        if sample.service not in fleet.service:
            unknown = ("service", sample.service)
        else:
            unknown = ("signal", sample.signal)
        if unknown in self._warned or len(self._warned) >= _MOST_WARNINGS:
            return
        self._warned.add(unknown)
        logger.warning("%s: %s %r is not in the fleet", self._settings.path, *unknown)
        if len(self._warned) == _MOST_WARNINGS:
            logger.warning("%s: further unknown names are not reported", self._settings.path)


def _format(path: str) -> str:
    return "csv" if path.lower().endswith(".csv") else "jsonl"


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


def _fault(service: str, signal: str, newest: _Newest) -> str | None:
    reading = newest.reading
    when = _moment(reading.at)
    if newest.other is not None:
        return (
            f"{signal} of {service!r} contradicts itself: both {reading.value:g} and "
            f"{newest.other:g} at {when}."
        )
    if not math.isfinite(reading.value):
        return f"{signal} of {service!r} is {reading.value} at {when}: it was not measured."
    return None


def _moment(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return f"{at:g} s"
