"""What a pool's state looks like from outside: latencies, hardware counters, objectives kept.

The same for the pools of a tick and for the stationary state, so that a pressure test and a
simulation agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heteroplace.simulate.queueing import (
    Decoding,
    Floats,
    Parameters,
    batch_attained,
    batch_percentile,
    decode_hardware,
    prefill_hardware,
    transfer,
    wait_attained,
    wait_percentile,
    waiting,
)

# Where, among the prompts served in a tick, their wait is looked at, and how much each counts.
POINTS = np.linspace(0.0, 1.0, 5)
_WEIGHTS = np.array([0.125, 0.25, 0.25, 0.25, 0.125])

# Of the time of instances that do both, what decode always gets (chunked prefill).
LEAST_DECODE_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Objectives:
    """What the services promise.

    Parameters
    ----------
    ttft, tbt
        Seconds, infinite for no promise, shape (services,).
    percentile
        Share of the requests (of the steps for TBT) of which the readings are taken.
    """

    ttft: Floats
    tbt: Floats
    percentile: Floats


@dataclass(frozen=True, eq=False)
class Supply:
    """What serves in one tick, mean over the tick; every array has shape (services,).

    Parameters
    ----------
    prefill, decode
        Tokens per second that the serving instances of each role can do.
    prefill_instances, decode_instances
        How many they are.
    crossing
        Share of the KV transfers that go between different switches.
    """

    prefill: Floats
    decode: Floats
    prefill_instances: Floats
    decode_instances: Floats
    crossing: Floats


@dataclass(frozen=True, eq=False)
class Flow:
    """What goes from prefill to decode; every array has shape (services,).

    Parameters
    ----------
    missed, requests, prompt
        Prompt tokens computed, requests and prompt tokens with those from the KV cache, per second.
    """

    missed: Floats
    requests: Floats
    prompt: Floats


@dataclass(frozen=True, eq=False)
class Seen:
    """What is measured; every array has shape (services,).

    Parameters
    ----------
    prefill_gpu_util, decode_gpu_util, prefill_sm, decode_sm
        Mean over the serving instances; nan without any.
    ttft, tbt
        Seconds at the percentile.
    ttft_mean, tbt_mean
        Seconds, mean.
    ttft_within, tbt_within
        Share of the requests, and of the generated tokens, within the objective.
    """

    prefill_gpu_util: Floats
    decode_gpu_util: Floats
    prefill_sm: Floats
    decode_sm: Floats
    ttft: Floats
    tbt: Floats
    ttft_mean: Floats
    tbt_mean: Floats
    ttft_within: Floats
    tbt_within: Floats


def measure(
    parameters: Parameters,
    objectives: Objectives,
    aggregated: npt.NDArray[np.bool_],
    supply: Supply,
    flow: Flow,
    load: Floats,
    waits: Floats,
    pool: Decoding,
    batch: Floats,
    admission: Floats,
) -> Seen:
    """Measure pools.

    Parameters
    ----------
    parameters, objectives, aggregated
        Of the services, see :class:`Pools`.
    supply, flow
        What serves and what it serves.
    load
        Of the prefill pools.
    waits
        Seconds that prompts waited behind the carried queue, at :data:`POINTS` of those served,
        shape (points, services).
    pool, batch
        The decode pools and the sequences in their steps.
    admission
        Seconds until a sequence that leaves prefill has room in the KV cache of decode.
    """
    started = flow.requests > 0
    requests = np.where(started, flow.requests, 1.0)
    per_request, prompt = flow.missed / requests, flow.prompt / requests
    able = supply.prefill > 0
    service = np.where(
        able & started,
        per_request * supply.prefill_instances / np.where(able, supply.prefill, 1.0),
        0.0,
    )
    sent = transfer(
        parameters,
        np.where(started, prompt, 0.0),
        flow.prompt,
        supply.prefill_instances,
        supply.decode_instances,
        supply.crossing,
    )
    sure = parameters["prefill_overhead"] + service + np.where(aggregated, 0.0, sent) + admission
    chance, mean_wait = waiting(parameters, load, supply.prefill_instances, service)
    low, high = waits.min(axis=0), waits.max(axis=0)
    wait = low + objectives.percentile * (high - low)
    ttft = sure + wait + wait_percentile(chance, mean_wait, objectives.percentile)
    slack = objectives.ttft - sure - waits
    ttft_within = _WEIGHTS @ wait_attained(chance, mean_wait, slack)

    instances = np.maximum(supply.decode_instances, 1e-9)
    slope, mean_batch, most = pool.slope * instances, batch / instances, pool.most / instances
    high_batch = batch_percentile(parameters, mean_batch, most, objectives.percentile)
    grows = slope > 0
    limit = np.where(grows, (objectives.tbt - pool.base) / np.where(grows, slope, 1.0), np.inf)
    limit = np.where(objectives.tbt < pool.base, -np.inf, limit)
    # A batch that cannot grow beyond the limit never breaks the objective.
    tbt_within = np.where(
        most <= limit,
        1.0,
        np.where(limit < 0, 0.0, batch_attained(parameters, mean_batch, limit)),
    )
    utils, activities = zip(
        prefill_hardware(parameters, load),
        decode_hardware(parameters, batch, pool.full, supply.decode_instances),
        strict=True,
    )
    # One GPU that does both is busy when either is.
    util = [np.where(aggregated, np.maximum(*utils), each) for each in utils]
    activity = [np.where(aggregated, np.maximum(*activities), each) for each in activities]
    has_prefill, has_decode = supply.prefill_instances > 0, supply.decode_instances > 0
    return Seen(
        prefill_gpu_util=np.where(has_prefill, util[0], np.nan),
        decode_gpu_util=np.where(has_decode, util[1], np.nan),
        prefill_sm=np.where(has_prefill, activity[0], np.nan),
        decode_sm=np.where(has_decode, activity[1], np.nan),
        ttft=ttft,
        tbt=pool.base + slope * high_batch,
        ttft_mean=sure + _WEIGHTS @ waits + chance * mean_wait,
        tbt_mean=pool.step(batch),
        ttft_within=ttft_within,
        tbt_within=tbt_within,
    )
