"""The prefill and decode pools of all services, tick by tick.

A fluid model: prompts queue first in, first out for the prefill pool and are carried from tick to
tick; what it has computed goes to the decode pool, where sequences share the steps. Nothing is
lost: what arrived is in a queue, in decoding or done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from heteroplace.simulate.demand import Load
from heteroplace.simulate.measure import (
    LEAST_DECODE_SHARE,
    POINTS,
    Flow,
    Objectives,
    Supply,
    measure,
)
from heteroplace.simulate.model import PoolModel
from heteroplace.simulate.queueing import Decoding, Floats, Parameters


@dataclass(frozen=True, eq=False)
class Tick:
    """What happened in one tick; every array has shape (services,).

    Parameters
    ----------
    prefill_tps, decode_tps
        Prompt tokens computed (KV-cache misses) and tokens generated, per second.
    started, finished
        Requests that left prefill, and that left decode.
    queued_requests, queued_tokens
        Requests, and prompt tokens to compute, that wait for prefill at the end.
    sequences, waiting_sequences
        Sequences in decode at the end, and those of them that wait for KV cache.
    kv_fill
        KV cache of the decode pool in use, 0 to 1.
    prefill_load
        Share of the prefill capacity that was used.
    prefill_gpu_util, decode_gpu_util, prefill_sm, decode_sm
        Mean over the serving instances; nan without any.
    ttft, tbt
        Seconds at the percentile; nan when nothing was started or generated.
    ttft_mean, tbt_mean
        Seconds, mean.
    ttft_within, tbt_within
        Requests started within the TTFT objective, tokens generated within the TBT objective.
    tokens
        Tokens generated.
    """

    prefill_tps: Floats
    decode_tps: Floats
    started: Floats
    finished: Floats
    queued_requests: Floats
    queued_tokens: Floats
    sequences: Floats
    waiting_sequences: Floats
    kv_fill: Floats
    prefill_load: Floats
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
    tokens: Floats


TICK_FIELDS = tuple(field.name for field in fields(Tick))


class Pools:
    """The pools of all services and what is in them.

    Parameters
    ----------
    load
        What arrives.
    models
        Of the services, in the order of the load's columns.
    objectives
        Of the services.
    aggregated
        Which services run prefill and decode on the same instances; default none.
    """

    def __init__(
        self,
        load: Load,
        models: Sequence[PoolModel],
        objectives: Objectives,
        aggregated: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self._parameters = Parameters.of(models)
        self._objectives = objectives
        count = len(load.services)
        self._aggregated = np.zeros(count, bool) if aggregated is None else aggregated
        self._seconds = load.tick
        self._columns = np.arange(count)
        # Work, requests, prompt and output tokens that have arrived up to each edge of a tick.
        rates = np.stack([load.missed, load.requests, load.prompt, load.output])
        self._arrived = np.zeros((4, load.ticks + 2, count))
        np.cumsum(rates * load.tick, axis=1, out=self._arrived[:, 1:-1])
        self._arrived[:, -1] = self._arrived[:, -2]
        self._tick = 0
        self._head = np.zeros(count, int)
        self._served = np.zeros((4, count))
        # Sequences, their prompt tokens and the tokens they have yet to generate.
        self._decoding = np.zeros((3, count))
        self._leaving = np.zeros((3, count))
        # The share of those sequences that is in a batch; the others wait for KV cache.
        self._admitted = np.ones(count)
        self._step = self._parameters["tbt_base"].copy()

    def leave(self, share: Floats) -> None:
        """Take decode instances out of service discovery.

        The sequences in their batches finish where they are, at the pace of now, and take no room
        in the pool. Those that wait for KV cache are on no instance: they go on waiting.

        Parameters
        ----------
        share
            Of the decode capacity that leaves, shape (services,).
        """
        going = self._decoding * (np.clip(share, 0.0, 1.0) * self._admitted)
        self._decoding = self._decoding - going
        self._leaving = self._leaving + going

    def tick(self, supply: Supply) -> Tick:
        """Go on by one tick.

        Parameters
        ----------
        supply
            What serves in it.
        """
        prefill = self._prefill(supply)
        decode = self._decode(supply, prefill)
        self._tick += 1
        return self._outcome(supply, prefill, decode)

    # -- prefill ---------------------------------------------------------------------------------

    def _prefill(self, supply: Supply) -> _Prefill:
        now = self._tick * self._seconds
        capacity = supply.prefill
        arrived = self._arrived[:, self._tick + 1]
        queue = arrived[0] - self._served[0]
        able = capacity * self._seconds
        everything = queue <= able
        work = np.where(everything, queue, able)
        before = self._served
        if everything.all() and (before[0] >= self._arrived[0, self._tick]).all():
            # Nobody waited for anybody: the usual case.
            self._head[:] = self._tick + 1
            waits = np.zeros((len(POINTS), len(work)))
            after = arrived.copy()
        else:
            waits = np.empty((len(POINTS), len(work)))
            pace = _ratio(work, capacity)
            for row, point in zip(waits, POINTS, strict=True):
                part = self._advance(np.minimum(before[0] + point * work, arrived[0]))
                row[:] = np.maximum(now + point * pace - (self._head + part) * self._seconds, 0.0)
            after = self._at(self._advance(np.where(everything, arrived[0], before[0] + work)))
            after = np.where(everything, arrived, after)
        self._served = after
        return _Prefill(
            served=after - before,
            queued_tokens=arrived[0] - after[0],
            queued_requests=arrived[1] - after[1],
            waits=waits,
            load=_ratio(work, able),
        )

    def _advance(self, target: Floats) -> Floats:
        """Move each head to where so much work had arrived; return how far into its tick."""
        arrived, columns = self._arrived[0], self._columns
        while True:
            behind = (self._head <= self._tick) & (arrived[self._head + 1, columns] <= target)
            if not behind.any():
                break
            self._head = self._head + behind
        start, end = arrived[self._head, columns], arrived[self._head + 1, columns]
        return np.clip(_ratio(target - start, end - start), 0.0, 1.0)

    def _at(self, part: Floats) -> Floats:
        """What had arrived at the heads and ``part`` of their ticks."""
        start = self._arrived[:, self._head, self._columns]
        end = self._arrived[:, self._head + 1, self._columns]
        found: Floats = start + part * (end - start)
        return found

    # -- decode ----------------------------------------------------------------------------------

    def _decode(self, supply: Supply, prefill: _Prefill) -> _Decode:
        share = np.where(self._aggregated, np.maximum(1 - prefill.load, LEAST_DECODE_SHARE), 1.0)
        state = self._decoding + prefill.served[1:]
        sequences, prompts, tokens = state
        some = sequences > 0
        safe = np.where(some, sequences, 1.0)
        length = np.where(some, tokens / safe, 0.0)
        pool = Decoding.of(
            self._parameters,
            supply.decode,
            np.where(some, (prompts + tokens / 2) / safe, 0.0),
            share,
        )
        left = pool.after(sequences, length, self._seconds)
        self._decoding = state * np.where(some, left / safe, 0.0)
        batch = np.minimum(left, pool.most)
        self._admitted = np.where(left > 0, batch / np.where(left > 0, left, 1.0), 1.0)
        step = np.where(supply.decode > 0, pool.step(batch), self._step)

        leaving = self._leaving
        some_leave = leaving[0] > 0
        their_length = np.where(some_leave, leaving[2] / np.where(some_leave, leaving[0], 1.0), 0.0)
        kept = their_length / (their_length + self._seconds / self._step)
        self._leaving = np.where(some_leave, leaving * kept, 0.0)
        self._step = step
        gone = leaving - self._leaving
        departed = state - self._decoding
        return _Decode(
            pool=pool,
            batch=batch,
            step=step,
            finished=departed[0] + gone[0],
            generated=departed[2] + gone[2],
            leave_rate=departed[0] / self._seconds,
        )

    # -- what is measured ------------------------------------------------------------------------

    def _outcome(self, supply: Supply, prefill: _Prefill, decode: _Decode) -> Tick:
        work, started, prompts, _ = prefill.served
        waiting = np.maximum(self._decoding[0] - decode.pool.most, 0.0)
        admission = np.where(waiting > 0, waiting / np.maximum(decode.leave_rate, 1e-9), 0.0)
        seen = measure(
            self._parameters,
            self._objectives,
            self._aggregated,
            supply,
            Flow(work / self._seconds, started / self._seconds, prompts / self._seconds),
            prefill.load,
            prefill.waits,
            decode.pool,
            decode.batch,
            admission,
        )
        served, generated = started > 0, decode.generated > 0
        kv_fill = _ratio(np.minimum(self._decoding[0], decode.pool.most), decode.pool.most)
        generating = generated & (supply.decode_instances > 0)
        return Tick(
            prefill_tps=work / self._seconds,
            decode_tps=decode.generated / self._seconds,
            started=started,
            finished=decode.finished,
            queued_requests=prefill.queued_requests,
            queued_tokens=prefill.queued_tokens,
            sequences=self._decoding[0] + self._leaving[0],
            waiting_sequences=waiting,
            kv_fill=kv_fill,
            prefill_load=prefill.load,
            prefill_gpu_util=seen.prefill_gpu_util,
            decode_gpu_util=seen.decode_gpu_util,
            prefill_sm=seen.prefill_sm,
            decode_sm=seen.decode_sm,
            ttft=np.where(served, seen.ttft, np.nan),
            tbt=np.where(generating, seen.tbt, np.nan),
            ttft_mean=np.where(served, seen.ttft_mean, np.nan),
            tbt_mean=np.where(generating, seen.tbt_mean, np.nan),
            ttft_within=started * seen.ttft_within,
            tbt_within=decode.generated * seen.tbt_within,
            tokens=decode.generated,
        )


@dataclass(frozen=True, eq=False)
class _Prefill:
    served: Floats
    queued_tokens: Floats
    queued_requests: Floats
    waits: Floats
    load: Floats


@dataclass(frozen=True, eq=False)
class _Decode:
    pool: Decoding
    batch: Floats
    step: Floats
    finished: Floats
    generated: Floats
    leave_rate: Floats


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient where the denominator is positive, else 0."""
    positive = denominator > 0
    found: Floats = np.where(positive, numerator / np.where(positive, denominator, 1.0), 0.0)
    return found
