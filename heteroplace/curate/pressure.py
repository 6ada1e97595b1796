"""The pressure test: how much load every split of a number of instances bears."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from heteroplace.errors import InputError
from heteroplace.instance import Noun
from heteroplace.simulate.measure import Supply
from heteroplace.simulate.queueing import Floats
from heteroplace.simulate.services import PooledService
from heteroplace.simulate.sizing import (
    HEADROOM,
    TEST_TOTAL,
    expected,
    gpus_of,
    stationary,
    supply_of,
)
from heteroplace.simulate.steady import Mix, Steady

# Just above the sustained load something gives way; by how much is looked at.
_ABOVE = 1 + 1e-6
MOST_TOTAL = 10_000


class Split(Noun):
    """One split under its sustained load, the largest within the objectives.

    Parameters
    ----------
    prefill, decode
        Instances.
    gpus
        GPUs of them all, preferred shapes.
    ratio
        Prefill over decode; null for a service of one role.
    sustained
        Requests per second.
    prefill_tps, decode_tps
        Prompt tokens computed and tokens generated per second, of the whole service.
    ttft, tbt
        Seconds at the percentile.
    prefill_gpu_util, decode_gpu_util, prefill_sm, decode_sm
        Means over the instances.
    limit
        What gives way above: ``prefill capacity``, ``KV cache of decode``, ``TTFT`` or ``TBT``.
    """

    prefill: int
    decode: int
    gpus: int
    ratio: float | None
    sustained: float
    prefill_tps: float
    decode_tps: float
    ttft: float | None
    tbt: float | None
    prefill_gpu_util: float
    decode_gpu_util: float
    prefill_sm: float
    decode_sm: float
    limit: str


class Pressure(Noun):
    """A pressure test.

    Parameters
    ----------
    service
        By name.
    total
        Instances that were split.
    missed_tokens, prompt_tokens, output_tokens
        The mean request: prompt tokens that miss the KV cache, prompt tokens, tokens to generate.
    ttft_slo, tbt_slo, percentile
        The objectives, and where they are judged.
    splits
        All of them, from few to many prefill instances.
    best
        Place of the best one: the most load, then the fewest prefill instances.
    ratio
        Its ratio as a fraction, prefill : decode; null for a service of one role.
    headroom
        Share of the sustained load that is the operating point.
    expected
        Signal -> expected metric at the operating point of the best split: throughputs per
        instance, utilisations, latencies.
    """

    service: str
    total: int
    missed_tokens: float
    prompt_tokens: float
    output_tokens: float
    ttft_slo: float
    tbt_slo: float
    percentile: float
    splits: tuple[Split, ...]
    best: int
    ratio: str | None
    headroom: float
    expected: dict[str, float]

    @property
    def best_split(self) -> Split:
        """The best split."""
        return self.splits[self.best]


def pressure_test(
    service: PooledService, mix: Mix, total: int = TEST_TOTAL, headroom: float = HEADROOM
) -> Pressure:
    """Find the load that every split bears, by bisection on the stationary pool model.

    Parameters
    ----------
    service
        The service; its limits on counts are left aside.
    mix
        Its mean request.
    total
        Instances of both roles together.
    headroom
        Share of the sustained load at which the expected metrics are read.

    Raises
    ------
    InputError
        If the service has more than two roles, the total is too small, or no split bears any load
        within the objectives.
    """
    least = 1 if service.aggregated else 2
    if not least <= total <= MOST_TOTAL:
        raise InputError("--total", f"must be from {least} to {MOST_TOTAL}, got {total}")
    if len(service.roles) > 2:
        raise InputError(
            f"services.{service.name}",
            f"has the roles {', '.join(service.roles)}; a total is split over two only",
        )
    if not 0 < headroom <= 1:
        raise InputError("--headroom", f"must be above 0 and at most 1, got {headroom:g}")
    counts = _splits(service, total)
    supply = supply_of(service, counts)
    state = stationary(service, mix)
    sustained = state.sustained(supply)
    best = int(sustained.argmax())
    if sustained[best] <= 0:
        raise InputError(
            f"services.{service.name}",
            f"no split of {total} instances keeps TTFT within {service.ttft:g} s and TBT within "
            f"{service.tbt:g} s at any load; relax them or use faster shapes",
        )
    there = state.steady(sustained, supply)
    beyond = state.steady(sustained * _ABOVE, supply)
    point = expected(service, mix, counts[best], headroom)
    assert point is not None
    upper, lower = service.prefill[0], service.decode[0]
    ratio = None if service.aggregated else str(Fraction(counts[best][upper], counts[best][lower]))
    return Pressure(
        service=service.name,
        total=total,
        missed_tokens=mix.missed,
        prompt_tokens=mix.prompt,
        output_tokens=mix.output,
        ttft_slo=service.ttft,
        tbt_slo=service.tbt,
        percentile=service.percentile,
        splits=tuple(
            _split(
                service, mix, supply, sustained, there, beyond, case, gpus_of(service, counts[case])
            )
            for case in range(len(counts))
        ),
        best=best,
        ratio=ratio,
        headroom=headroom,
        expected=point.signals,
    )


def _splits(service: PooledService, total: int) -> list[dict[str, int]]:
    if service.aggregated:
        return [{service.prefill[0]: total}]
    upper, lower = service.prefill[0], service.decode[0]
    return [{upper: count, lower: total - count} for count in range(1, total)]


def _split(
    service: PooledService,
    mix: Mix,
    supply: Supply,
    sustained: Floats,
    there: Steady,
    beyond: Steady,
    case: int,
    gpus: int,
) -> Split:
    load = float(sustained[case])
    prefill, decode = (
        int(each[case]) for each in (supply.prefill_instances, supply.decode_instances)
    )
    seen = there.seen
    return Split(
        prefill=prefill,
        decode=decode,
        gpus=gpus,
        ratio=None if service.aggregated else prefill / decode,
        sustained=load,
        prefill_tps=load * mix.missed,
        decode_tps=load * mix.output,
        ttft=float(seen.ttft[case]) if load else None,
        tbt=float(seen.tbt[case]) if load else None,
        prefill_gpu_util=float(seen.prefill_gpu_util[case]),
        decode_gpu_util=float(seen.decode_gpu_util[case]),
        prefill_sm=float(seen.prefill_sm[case]),
        decode_sm=float(seen.decode_sm[case]),
        limit=_limit(service, beyond, case),
    )


def _limit(service: PooledService, beyond: Steady, case: int) -> str:
    if beyond.load[case] > 1:
        return "prefill capacity"
    if not np.isfinite(beyond.batch[case]):
        return "KV cache of decode"
    return "TTFT" if beyond.seen.ttft[case] > service.ttft else "TBT"
