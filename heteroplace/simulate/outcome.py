"""What came out of a simulation: time series, events and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heteroplace.instance import Noun
from heteroplace.simulate.demand import Load, imputed
from heteroplace.simulate.queueing import Floats
from heteroplace.simulate.services import PooledService
from heteroplace.simulate.sizing import gpus_of, required_for_peak

HOUR = 3600.0
LONGEST_LAG = 2 * HOUR


class Event(Noun):
    """Something that the policies or a plan did.

    Parameters
    ----------
    at
        Seconds from the start.
    service
        By name.
    action, driver, reason, before, counts
        Of the decision.
    added, removed
        Instances that the plan of this step starts and takes out.
    restored, terminated
        Instances under observation that came back, and that ended.
    unmet_gpus
        Capacity that the plan leaves unmet, in GPUs of the preferred shapes.
    """

    at: float
    service: str
    action: str
    driver: str
    reason: str
    before: dict[str, int]
    counts: dict[str, int]
    added: int = 0
    removed: int = 0
    restored: int = 0
    terminated: int = 0
    unmet_gpus: float = 0.0


class ServiceSummary(Noun):
    """A service's outcome in numbers; what cannot be told is null.

    Parameters
    ----------
    service
        By name.
    requests, finished, queued
        Requests that arrived, finished, and wait for prefill or decode at the end.
    ttft_slo, tbt_slo
        Objectives in seconds.
    ttft_attained
        Share of the requests, those waiting for prefill at the end included, that began within
        the TTFT objective.
    tbt_attained
        Share of the generated tokens within the TBT objective.
    gpu_hours
        GPUs occupied over time, starting and draining ones included.
    static_counts
        Fewest instances at the target ratio that keep the objectives at the peak; null if the
        service's limits are not enough.
    static_gpu_hours
        GPU-hours of these counts for the whole time.
    saved
        1 - gpu_hours / static_gpu_hours.
    mean_of_peak
        Mean over highest number of GPUs.
    peak_gpus
        Highest number of GPUs.
    scale_out, scale_in, rebalance
        Decisions of each kind.
    added, removed, restored
        Instances started, taken out of service, and brought back from observation.
    correlation
        Pearson correlation of the number of GPUs with the load (prompt tokens to compute plus
        tokens to generate), means over the control interval.
    best_correlation, best_lag_hours
        Highest one with the GPUs a lag of 0 to 2 h behind the load, and that lag.
    unmet_gpu_hours
        Capacity asked for and not placed.
    prefill_gpu_util, decode_gpu_util, prefill_sm, decode_sm
        Means over time, each tick counting alike.
    crossing
        Mean share of the KV transfers between different switches.
    filled
        Share of the time in gaps of the trace that were filled.
    imputed
        Share of the requests whose token lengths were imputed in the trace.
    """

    service: str
    requests: float
    finished: float
    queued: float
    ttft_slo: float
    tbt_slo: float
    ttft_attained: float | None
    tbt_attained: float | None
    gpu_hours: float
    static_counts: dict[str, int] | None
    static_gpu_hours: float | None
    saved: float | None
    mean_of_peak: float | None
    peak_gpus: float
    scale_out: int
    scale_in: int
    rebalance: int
    added: int
    removed: int
    restored: int
    correlation: float | None
    best_correlation: float | None
    best_lag_hours: float | None
    unmet_gpu_hours: float
    prefill_gpu_util: float | None
    decode_gpu_util: float | None
    prefill_sm: float | None
    decode_sm: float | None
    crossing: float
    filled: float
    imputed: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """A simulation's outcome.

    Parameters
    ----------
    services
        Names, in the order of the columns.
    tick, interval
        Seconds of a tick, and from one step of the policies to the next.
    start
        Unix seconds of the first tick.
    policy
        Name of the policy that was simulated.
    seed
        Of the noise.
    series
        Name -> array of shape (ticks, services); :data:`UNITS` says what each is.
    events
        In order of time.
    summaries
        One per service.
    notes
        What a reader should know, one sentence each.
    """

    services: tuple[str, ...]
    tick: float
    interval: float
    start: float
    policy: str
    seed: int
    series: dict[str, Floats]
    events: tuple[Event, ...]
    summaries: tuple[ServiceSummary, ...]
    notes: tuple[str, ...]

    @property
    def ticks(self) -> int:
        """Number of ticks."""
        return len(self.series["gpus"])

    @property
    def hours(self) -> Floats:
        """Hours from the start at which the ticks begin, shape (ticks,)."""
        found: Floats = np.arange(self.ticks, dtype=np.float64) * self.tick / HOUR
        return found

    def of(self, service: str) -> dict[str, Floats]:
        """Series of one service, each of shape (ticks,)."""
        column = self.services.index(service)
        return {name: values[:, column] for name, values in self.series.items()}

    def summary(self, service: str) -> ServiceSummary:
        """Summary of one service."""
        return self.summaries[self.services.index(service)]


UNITS = {
    "requests": "requests/s that arrive",
    "prompt": "prompt tokens/s that arrive",
    "missed": "prompt tokens/s that arrive and miss the KV cache",
    "output": "tokens/s to generate that arrive",
    "filled": "1 in a gap of the trace that was filled",
    "prefill_instances": "prefill instances that serve",
    "decode_instances": "decode instances that serve",
    "prefill_capacity": "tokens/s that they can do",
    "decode_capacity": "tokens/s that they can do",
    "prefill_target": "prefill instances that the targets ask for",
    "decode_target": "decode instances that the targets ask for",
    "starting": "instances that start",
    "held": "ready instances whose registration waits",
    "leaving": "instances under observation or draining",
    "gpus": "GPUs occupied by the service",
    "unmet_gpus": "GPUs asked for and not placed",
    "crossing": "share of KV transfers between switches",
    "prefill_tps": "prompt tokens/s computed",
    "decode_tps": "tokens/s generated",
    "started": "requests that left prefill in the tick",
    "finished": "requests that left decode in the tick",
    "queued_requests": "requests that wait for prefill",
    "queued_tokens": "prompt tokens that wait for prefill",
    "sequences": "sequences in decode",
    "waiting_sequences": "sequences that wait for KV cache",
    "kv_fill": "KV cache in use, 0 to 1",
    "prefill_load": "prefill capacity in use, 0 to 1",
    "prefill_gpu_util": "0 to 1",
    "decode_gpu_util": "0 to 1",
    "prefill_sm": "0 to 1",
    "decode_sm": "0 to 1",
    "ttft": "s, at the percentile",
    "tbt": "s, at the percentile",
    "ttft_mean": "s",
    "tbt_mean": "s",
    "ttft_within": "requests started within the objective in the tick",
    "tbt_within": "tokens generated within the objective in the tick",
    "tokens": "tokens generated in the tick",
}
"""Every series and its unit."""


def summarise(
    services: Sequence[PooledService],
    load: Load,
    series: dict[str, Floats],
    events: Sequence[Event],
    interval: float,
) -> tuple[ServiceSummary, ...]:
    """Summarise the series of every service.

    Parameters
    ----------
    services
        In the order of the columns.
    load
        What arrived.
    series
        As in an outcome.
    events
        What happened.
    interval
        Seconds of a control interval.
    """
    return tuple(
        _summary(
            service,
            load,
            {name: each[:, index] for name, each in series.items()},
            [event for event in events if event.service == service.name],
            interval,
        )
        for index, service in enumerate(services)
    )


def _summary(
    service: PooledService,
    load: Load,
    own: dict[str, Floats],
    events: Sequence[Event],
    interval: float,
) -> ServiceSummary:
    tick, column = load.tick, load.of(service.name)
    hours = load.ticks * tick / HOUR
    gpu_hours = float(own["gpus"].sum()) * tick / HOUR
    requests = float(load.requests[:, column].sum()) * tick
    static = required_for_peak(service, load, interval) if requests > 0 else None
    static_hours = None if static is None else gpus_of(service, static) * hours
    began = float(own["started"].sum()) + float(own["queued_requests"][-1])
    best, lag = lagged_correlation(own, tick, interval)
    peak = float(own["gpus"].max())
    return ServiceSummary(
        service=service.name,
        requests=requests,
        finished=float(own["finished"].sum()),
        queued=float(own["queued_requests"][-1] + own["waiting_sequences"][-1]),
        ttft_slo=service.ttft,
        tbt_slo=service.tbt,
        ttft_attained=_share(float(own["ttft_within"].sum()), began),
        tbt_attained=_share(float(own["tbt_within"].sum()), float(own["tokens"].sum())),
        gpu_hours=gpu_hours,
        static_counts=static,
        static_gpu_hours=static_hours,
        saved=None if not static_hours else 1 - gpu_hours / static_hours,
        mean_of_peak=_share(float(own["gpus"].mean()), peak),
        peak_gpus=peak,
        scale_out=sum(event.action == "out" for event in events),
        scale_in=sum(event.action == "in" for event in events),
        rebalance=sum(event.action == "rebalance" for event in events),
        added=sum(event.added for event in events),
        removed=sum(event.removed for event in events),
        restored=sum(event.restored for event in events),
        correlation=correlation(*_by_interval(own, tick, interval)),
        best_correlation=best,
        best_lag_hours=None if lag is None else lag / HOUR,
        unmet_gpu_hours=float(own["unmet_gpus"].sum()) * tick / HOUR,
        prefill_gpu_util=_mean(own["prefill_gpu_util"]),
        decode_gpu_util=_mean(own["decode_gpu_util"]),
        prefill_sm=_mean(own["prefill_sm"]),
        decode_sm=_mean(own["decode_sm"]),
        crossing=float(own["crossing"].mean()),
        filled=float(load.filled[:, column].mean()),
        imputed=imputed(load, column),
    )


def correlation(first: Floats, second: Floats) -> float | None:
    """Pearson correlation; None when one of the two does not change."""
    if len(first) < 2 or first.std() <= 1e-12 * abs(first).max() or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def lagged_correlation(
    own: dict[str, Floats], tick: float, interval: float
) -> tuple[float | None, float | None]:
    """Highest correlation of the GPUs with the load some time before, and that time in seconds.

    Parameters
    ----------
    own
        Series of one service.
    tick, interval
        Seconds; lags are multiples of the interval, up to two hours and half the series.
    """
    load, gpus = _by_interval(own, tick, interval)
    best: tuple[float | None, float | None] = (None, None)
    most = min(int(LONGEST_LAG / interval), len(load) // 2)
    for lag in range(most + 1):
        found = correlation(load[: len(load) - lag], gpus[lag:])
        if found is not None and (best[0] is None or found > best[0]):
            best = (found, lag * interval)
    return best


def _by_interval(own: dict[str, Floats], tick: float, interval: float) -> tuple[Floats, Floats]:
    """Load and GPUs, means over the control intervals."""
    ticks = max(1, round(interval / tick))
    count = len(own["gpus"]) // ticks
    load = own["missed"] + own["output"]
    shaped = [
        each[: count * ticks].reshape(count, ticks).mean(axis=1) for each in (load, own["gpus"])
    ]
    return shaped[0], shaped[1]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
