"""The loop's own metrics, for Prometheus to scrape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from heteroplace.errors import InputError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Gauge

ACTIONS = ("out", "in", "rebalance", "hold")
PHASES = ("cluster", "metrics", "decide", "assemble", "solve", "check", "commit", "handover")
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass
class Observation:
    """What one cycle has to tell.

    Parameters
    ----------
    decisions
        Number of decisions by action.
    targets
        Target capacity by service and role.
    unmet
        Unmet capacity by service and role.
    gaps
        (value - bound) / bound of each step of the objective; unknown ones are left out.
    ages
        Age of the oldest reading a service's decision used, in seconds; unknown ones are left out.
    seconds
        Time spent by phase.
    """

    decisions: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[tuple[str, str], float] = field(default_factory=dict)
    unmet: Mapping[tuple[str, str], float] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)
    ages: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class Metrics:
    """Counters and gauges of one loop, in a registry of their own.

    Raises
    ------
    InputError
        If prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError:
            raise InputError(
                "--listen", "needs prometheus-client; install it with heteroplace[policy]"
            ) from None
        registry = CollectorRegistry()
        self.registry: CollectorRegistry = registry
        self._decisions = Counter(
            "heteroplace_decisions", "Decisions by action.", ["action"], registry=registry
        )
        targets = Gauge(
            "heteroplace_target_capacity",
            "Capacity that a role should deliver, in the unit of its shapes.",
            ["service", "role"],
            registry=registry,
        )
        unmet = Gauge(
            "heteroplace_unmet_capacity",
            "Target capacity that the last plan leaves unmet.",
            ["service", "role"],
            registry=registry,
        )
        gap = Gauge(
            "heteroplace_gap_ratio",
            "(value - bound) / bound of each step of the last plan's objective, where known.",
            ["step"],
            registry=registry,
        )
        self._seconds = Histogram(
            "heteroplace_phase_seconds",
            "Time that a cycle spends in each phase.",
            ["phase"],
            buckets=BUCKETS,
            registry=registry,
        )
        age = Gauge(
            "heteroplace_data_age_seconds",
            "Age of the oldest reading that a service's last decision used.",
            ["service"],
            registry=registry,
        )
        self._cycles = Counter(
            "heteroplace_cycles", "Cycles by outcome.", ["outcome"], registry=registry
        )
        self._errors = Counter(
            "heteroplace_errors", "Failed cycles by phase.", ["phase"], registry=registry
        )
        self._delivered = Counter(
            "heteroplace_actions_delivered", "Actions handed over.", registry=registry
        )
        self._refused = Counter(
            "heteroplace_actions_refused", "Actions that the receiver refused.", registry=registry
        )
        self._outbox = Gauge(
            "heteroplace_actions_undelivered", "Actions to be handed over.", registry=registry
        )
        self._pending = Gauge(
            "heteroplace_actions_pending",
            "Actions handed over that the cluster does not show yet.",
            registry=registry,
        )
        self._last = Gauge(
            "heteroplace_last_cycle_timestamp_seconds",
            "When the last cycle succeeded, in unix seconds.",
            registry=registry,
        )
        self._targets, self._unmet = _Series(targets), _Series(unmet)
        self._gap, self._age = _Series(gap), _Series(age)
        for action in ACTIONS:
            self._decisions.labels(action)
        for phase in PHASES:
            self._errors.labels(phase)
        for outcome in ("done", "failed"):
            self._cycles.labels(outcome)

    def succeeded(self, now: float, seen: Observation) -> None:
        """Count a cycle that ended well, at ``now`` in unix seconds."""
        self._cycles.labels("done").inc()
        self._last.set(now)
        for action, number in seen.decisions.items():
            self._decisions.labels(action).inc(number)
        self._targets.replace(dict(seen.targets.items()))
        self._unmet.replace({each: seen.unmet.get(each, 0.0) for each in seen.targets})
        self._gap.replace({(step,): gap for step, gap in seen.gaps.items()})
        self._age.replace({(service,): age for service, age in seen.ages.items()})
        self.spent(seen.seconds)

    def failed(self, phase: str) -> None:
        """Count a cycle that failed in a phase."""
        self._cycles.labels("failed").inc()
        self._errors.labels(phase).inc()

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Add the time of some phases."""
        for phase, each in seconds.items():
            self._seconds.labels(phase).observe(each)

    def handed_over(self, outcome: str) -> None:
        """Count an action that was ``delivered`` or ``refused``."""
        (self._delivered if outcome == "delivered" else self._refused).inc()

    def waiting(self, undelivered: int, pending: int) -> None:
        """Set the number of actions that wait for their handover, and for the cluster."""
        self._outbox.set(undelivered)
        self._pending.set(pending)


class _Series:
    """A gauge of which each cycle names all series anew."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._named: set[tuple[str, ...]] = set()

    def replace(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Set the values; series that are no longer named disappear."""
        for labels in self._named - set(values):
            self._gauge.remove(*labels)
        self._named = set(values)
        for labels, value in values.items():
            self._gauge.labels(*labels).set(value)


class Exporter:
    """Serves the metrics over HTTP.

    Parameters
    ----------
    metrics
        What is served.
    address
        ``HOST:PORT``; port 0 takes a free one.

    Raises
    ------
    InputError
        If the address cannot be used.
    """

    def __init__(self, metrics: Metrics, address: str) -> None:
        from prometheus_client import start_http_server

        host, port = parse_address(address)
        try:
            self._server, self._thread = start_http_server(port, host, metrics.registry)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                "--listen", f"{address} cannot be used: {reason}; name another"
            ) from None
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def parse_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, the host of IPv6 in brackets.

    Raises
    ------
    InputError
        If it is not one.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if (
        not colon
        or not host
        or not port.isascii()
        or not port.isdigit()
        or len(port) > 5
        or int(port) > 65535
    ):
        raise InputError("--listen", f"must be HOST:PORT as in 127.0.0.1:9464, got {text[:60]!r}")
    return host, int(port)
