"""Metrics sources: where the readings of a fleet's signals come from (docs/metrics.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heteroplace.errors import InputError
from heteroplace.files import validated
from heteroplace.policy.sources.config import Metrics, PrometheusMetrics, ReplayMetrics

if TYPE_CHECKING:
    from heteroplace.policy.fleet import Fleet
    from heteroplace.policy.readings import Source

__all__ = ["Metrics", "PrometheusMetrics", "ReplayMetrics", "source_from"]


def source_from(fleet: Fleet, override: str | None = None) -> Source:
    """Open the source of a fleet's metrics.

    Parameters
    ----------
    fleet
        Its ``metrics`` name the source.
    override
        What is read instead: the path of a file to replay, or the ``http://`` or ``https://`` URL
        of a Prometheus server, which keeps the other settings that the fleet has for one.

    Returns
    -------
    Source
        Ready to read.

    Raises
    ------
    InputError
        If there is no source, or it cannot be used as configured.
    """
    metrics = fleet.metrics
    if override is not None:
        metrics = _overridden(metrics, override)
    if metrics is None:
        raise InputError(
            "metrics",
            "the fleet names no source; add [metrics.prometheus] or [metrics.replay] to it, or "
            "use --metrics FILE or --metrics URL",
        )
    if metrics.prometheus is not None:
        from heteroplace.policy.sources.prometheus import PrometheusSource

        return PrometheusSource(metrics.prometheus, fleet)
    from heteroplace.policy.sources.replay import ReplaySource

    assert metrics.replay is not None
    return ReplaySource(metrics.replay)


def _overridden(metrics: Metrics | None, override: str) -> Metrics:
    if override.lower().startswith(("http://", "https://")):
        known = metrics.prometheus if metrics is not None else None
        fields = {} if known is None else known.model_dump(exclude_unset=True)
        settings = validated(
            lambda: PrometheusMetrics.model_validate({**fields, "url": override}), "--metrics"
        )
        return Metrics(prometheus=settings)
    known_replay = metrics.replay if metrics is not None else None
    if known_replay is not None and known_replay.path == override:
        return Metrics(replay=known_replay)
    replay = validated(lambda: ReplayMetrics.model_validate({"path": override}), "--metrics")
    return Metrics(replay=replay)
