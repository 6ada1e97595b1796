"""How many instances a load needs, and what they show when they carry it.

Crossing of switches is left out: every transfer is taken as one under one switch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from heteroplace.policy.signals import STANDARD
from heteroplace.simulate.demand import Load
from heteroplace.simulate.measure import Supply
from heteroplace.simulate.queueing import Floats
from heteroplace.simulate.services import PooledService
from heteroplace.simulate.steady import Mix, Service

Counts = dict[str, int]

# Share of the sustained load that is the operating point: the ``load`` of a fleet's policies.
HEADROOM = 0.8

# Instances of both roles in the paper's pressure test (Fig. 4).
TEST_TOTAL = 16


def mean_mix(load: Load, column: int, rows: slice = slice(None)) -> Mix:
    """Mean request of a service over some ticks; one token of each if there is none."""
    requests = float(load.requests[rows, column].sum())
    if requests <= 0:
        return Mix(1.0, 1.0, 1.0)
    totals = [
        float(rates[rows, column].sum()) / requests
        for rates in (load.missed, load.prompt, load.output)
    ]
    return Mix(*totals)


def stationary(service: PooledService, mix: Mix) -> Service:
    """The stationary state of a service for one kind of request."""
    return Service(
        service.model, mix, service.ttft, service.tbt, service.percentile, service.aggregated
    )


def supply_of(service: PooledService, counts: Sequence[Mapping[str, int]]) -> Supply:
    """What counts of the preferred shapes supply, one case for each."""
    rows = []
    for case in counts:
        pools = []
        for kind, roles in enumerate((service.prefill, service.decode)):
            able = [(case[role] * service.tokens(role)[kind], float(case[role])) for role in roles]
            pools.append(min(able))
        rows.append((pools[0][0], pools[1][0], pools[0][1], pools[1][1], 0.0))
    return Supply(*np.array(rows, dtype=float).T)


def allowed_counts(service: PooledService, most: int = 1000) -> list[Counts]:
    """The counts at the target ratio, rising, that bands and limits allow."""
    driver = service.decode[0]
    low, high = service.ratios.limits[driver]
    found: list[Counts] = []
    for count in range(max(low, 1), min(high, most) + 1):
        counts = service.ratios.counts(driver, count)
        if counts is not None:
            found.append(counts)
    return found


def required(service: PooledService, mix: Mix, requests: float) -> Counts | None:
    """Fewest instances at the target ratio that keep the objectives in the stationary state.

    Parameters
    ----------
    service
        The service.
    mix
        Its mean request.
    requests
        Per second.

    Returns
    -------
    dict or None
        Role -> instances of the preferred shape; None if the service's limits are not enough.
    """
    cases = allowed_counts(service)
    if not cases:
        return None
    state = stationary(service, mix).steady(
        np.full(len(cases), requests), supply_of(service, cases)
    )
    good = np.flatnonzero(state.within)
    return cases[int(good[0])] if len(good) else None


def required_for_peak(service: PooledService, load: Load, window: float) -> Counts | None:
    """Fewest instances at the target ratio that keep the objectives at the peak of a demand.

    The peaks are the windows with the most prompt tokens to compute and the most tokens to
    generate, each with its own mean request; the larger answer counts.

    Parameters
    ----------
    service
        The service.
    load
        Its demand.
    window
        Seconds over which the demand is averaged.
    """
    column = load.of(service.name)
    ticks = max(1, min(round(window / load.tick), load.ticks))
    found: list[Counts] = []
    for rates in (load.missed[:, column], load.output[:, column]):
        sums = np.convolve(rates, np.ones(ticks), "valid")
        at = int(sums.argmax())
        rows = slice(at, at + ticks)
        requests = float(load.requests[rows, column].mean())
        if requests <= 0:
            return {role: service.ratios.limits[role][0] for role in service.roles}
        counts = required(service, mean_mix(load, column, rows), requests)
        if counts is None:
            return None
        found.append(counts)
    return max(found, key=lambda counts: sum(counts.values()))


def gpus_of(service: PooledService, counts: Mapping[str, int]) -> int:
    """GPUs of so many instances of the preferred shapes."""
    return sum(count * service.shapes[role][0].gpus for role, count in counts.items())


@dataclass(frozen=True)
class Expected:
    """What a service shows at its operating point (the paper's expected metric).

    Parameters
    ----------
    counts
        Role -> instances it was worked out for.
    sustained
        Requests per second that they bear within the objectives.
    headroom
        Share of it that is the operating point.
    signals
        Signal -> value there: throughputs per instance of the signal's role, utilisations,
        latencies at the percentile.
    """

    counts: Counts
    sustained: float
    headroom: float
    signals: dict[str, float]


def expected(
    service: PooledService, mix: Mix, counts: Counts, headroom: float = HEADROOM
) -> Expected | None:
    """Work out the operating point of given counts; None if they bear no load at all.

    Parameters
    ----------
    service
        The service.
    mix
        Its mean request.
    counts
        Role -> instances of the preferred shape.
    headroom
        Share of the sustained load.
    """
    supply = supply_of(service, [counts])
    state = stationary(service, mix)
    sustained = float(state.sustained(supply)[0])
    if sustained <= 0:
        return None
    there = state.steady(np.array([headroom * sustained]), supply).seen
    requests = headroom * sustained
    signals: dict[str, float] = {
        "prefill_tps": requests * mix.missed / float(supply.prefill_instances[0]),
        "decode_tps": requests * mix.output / float(supply.decode_instances[0]),
    }
    for name in STANDARD:
        if name not in signals:
            value: Floats = getattr(there, name)
            signals[name] = float(value[0])
    return Expected(dict(counts), sustained, headroom, signals)


def trial_counts(service: PooledService, total: int = TEST_TOTAL) -> Counts | None:
    """Counts at the target ratio whose sum is nearest to ``total``, the larger of two."""
    cases = allowed_counts(service)
    return min(
        cases,
        key=lambda counts: (abs(sum(counts.values()) - total), -sum(counts.values())),
        default=None,
    )
