"""Readings from the HTTP API of a Prometheus server."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from heteroplace.errors import InputError
from heteroplace.policy.duration import spoken
from heteroplace.policy.readings import Problem, Reading, Snapshot
from heteroplace.policy.sources.answer import Answer, BadAnswerError, read_answer
from heteroplace.policy.sources.client import Client, Fetched
from heteroplace.policy.sources.config import PrometheusMetrics
from heteroplace.policy.sources.queries import (
    AT,
    DEFAULTS,
    LOST,
    TARGETS,
    VALUE,
    Query,
    build_queries,
)
from heteroplace.policy.sources.wanted import helpful_signals, wanted_signals

if TYPE_CHECKING:
    from heteroplace.policy.fleet import Fleet

logger = logging.getLogger(__name__)


class PrometheusSource:
    """Reads every signal that a fleet's policies use, one query for each over all services.

    Not for use by several threads at once: it remembers the newest reading of each series, so
    that a replica that lags behind cannot bring an older one back.

    Parameters
    ----------
    settings
        The server and the queries.
    fleet
        Its services and signals decide what is asked; a fleet with others may be given later.
    clock
        This machine's clock, Unix seconds; it is compared with the server's.

    Raises
    ------
    InputError
        If a setting cannot be used, httpx is missing or a signal has no query.
    """

    def __init__(
        self,
        settings: PrometheusMetrics,
        fleet: Fleet,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._client = Client(settings, clock)
        self._newest: dict[tuple[str, str], Reading] = {}
        self._prepare(fleet)

    def _prepare(self, fleet: Fleet) -> None:
        settings = self._settings
        self._wanted = wanted_signals(fleet)
        for name in settings.services:
            if name not in self._wanted:
                raise InputError(
                    f"metrics.prometheus.services.{name}",
                    "is not a service of the fleet; remove it or correct its name",
                )
        by_label: dict[str, str] = {}
        for service in self._wanted:
            label = settings.services.get(service, service)
            if label in by_label:
                raise InputError(
                    f"metrics.prometheus.services.{service}",
                    f"{label!r} is already the label of {by_label[label]!r}; give each its own",
                )
            by_label[label] = service
        helpful = {
            service: tuple(name for name in names if name in DEFAULTS or name in settings.queries)
            for service, names in helpful_signals(fleet).items()
        }
        self._asked = {name: {*self._wanted[name], *helpful[name]} for name in self._wanted}
        both = (*self._wanted.values(), *helpful.values())
        signals = dict.fromkeys(name for names in both for name in names)
        self._queries = build_queries(settings, tuple(signals), fleet.latency_percentile)
        self._fleet = fleet

    def read(self, fleet: Fleet, now: float) -> Snapshot:
        """Ask for the newest reading of every signal at ``now``.

        Parameters
        ----------
        fleet
            The services and signals.
        now
            Unix seconds; the queries are evaluated at this moment.

        Returns
        -------
        Snapshot
            A reading's time is that of the newest sample behind it. A signal that a policy needs
            and that cannot be read is a problem with a sentence, whatever the network or the
            server does.

        Raises
        ------
        InputError
            Only if ``fleet`` is another one than before and does not fit the settings.
        """
        if fleet is not self._fleet:
            self._prepare(fleet)
        settings = self._settings
        fetched = self._client.fetch([query.text for query in self._queries], now)
        readings: dict[str, dict[str, Reading]] = {service: {} for service in self._wanted}
        problems: list[Problem] = []
        failures: set[str] = set()
        for query, each in zip(self._queries, fetched, strict=True):
            services = [name for name, asked in self._asked.items() if query.signal in asked]
            needing = [name for name in services if query.signal in self._wanted[name]]
            try:
                answer = self._checked(each, query)
            except BadAnswerError as error:
                failures.add(str(error))
                message = f"Prometheus gave no {query.signal}: {error}."
                problems += (Problem(name, query.signal, message) for name in needing)
                continue
            for name in services:
                found = self._one(answer, query, name, now)
                if isinstance(found, Reading):
                    readings[name][query.signal] = found
                elif query.signal in self._wanted[name]:
                    problems.append(Problem(name, query.signal, found))
        for failure in sorted(failures):
            logger.warning("Prometheus at %s: %s", settings.url, failure)
        return Snapshot(now, readings, tuple(problems))

    def _checked(self, fetched: Fetched, query: Query) -> Answer:
        if fetched.body is None:
            raise BadAnswerError(fetched.error)
        skew, most = fetched.skew, self._settings.max_clock_skew
        if skew is not None and abs(skew) > most:
            side = "ahead of" if skew > 0 else "behind"
            raise BadAnswerError(
                f"the server's clock is {spoken(abs(skew))} {side} this machine's, more than "
                f"{spoken(most)}; set the clocks right"
            )
        return read_answer(fetched.body, query)

    def _one(self, answer: Answer, query: Query, service: str, now: float) -> Reading | str:
        """The reading of one service, or the sentence that says why there is none."""
        label = self._settings.services.get(service, service)
        value = answer.parts.get(VALUE, {}).get(label)
        at = answer.parts.get(AT, {}).get(label)
        if any(label in names for names in answer.twice.values()):
            what = "was given more than once; the query must sum up"
        elif value is None or at is None:
            what = self._absent(value, at)
        elif math.isnan(value):
            what = f"is NaN: nothing was measured in the last {spoken(self._settings.window)}"
        elif not math.isfinite(value) or not math.isfinite(at):
            what = f"is {value}, with its newest sample at {at}"
        elif (short := self._shortfall(answer, label)) is not None:
            what = "is incomplete: {:.0f} of {:.0f} scrape targets stopped answering".format(*short)
        else:
            return self._kept(service, query.signal, Reading(value, at), now)
        return f"{query.signal} of {service!r} {what}."

    def _absent(self, value: float | None, at: float | None) -> str:
        window = spoken(self._settings.window)
        if at is not None:
            return f"has too few samples in the last {window}"
        if value is not None:
            return "has no sample that tells its age; correct the samples of its query"
        return f"has no series in the last {window}"

    def _shortfall(self, answer: Answer, label: str) -> tuple[float, float] | None:
        lost = answer.parts.get(LOST, {}).get(label, 0.0)
        seen = answer.parts.get(TARGETS, {}).get(label, 0.0)
        if lost > 0 and seen - lost < self._settings.min_coverage * seen:
            return lost, seen
        return None

    def _kept(self, service: str, signal: str, reading: Reading, now: float) -> Reading:
        """The newer of this and the last reading, unless a clock set back is behind the last."""
        last = self._newest.get((service, signal))
        if last is not None and reading.at < last.at <= now:
            return last
        self._newest[service, signal] = reading
        return reading
