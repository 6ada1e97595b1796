"""The pools in a stationary state: what a load does to a given supply, and how much it can bear.

Used by the pressure test, by static provisioning and for default targets. Every array has one
element per case; a case is a load on a supply.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heteroplace.simulate.measure import (
    LEAST_DECODE_SHARE,
    POINTS,
    Flow,
    Objectives,
    Seen,
    Supply,
    measure,
)
from heteroplace.simulate.model import PoolModel
from heteroplace.simulate.queueing import Decoding, Floats, Parameters

_HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Mix:
    """What the mean request of a service looks like.

    Parameters
    ----------
    missed, prompt, output
        Prompt tokens that miss the KV cache, prompt tokens in all, and tokens to generate.
    """

    missed: float
    prompt: float
    output: float


@dataclass(frozen=True, eq=False)
class Steady:
    """The stationary state of each case.

    Parameters
    ----------
    stable
        Whether there is one: neither pool is asked for more than it can do.
    within
        Whether it is stable and TTFT and TBT at the percentile are within their objectives.
    load
        Of the prefill pool.
    batch
        Sequences in the decode pool.
    seen
        What is measured; means nothing where it is not stable.
    """

    stable: npt.NDArray[np.bool_]
    within: npt.NDArray[np.bool_]
    load: Floats
    batch: Floats
    seen: Seen


class Service:
    """One service, asked about many cases.

    Parameters
    ----------
    model
        Its pools.
    mix
        Its requests.
    ttft, tbt
        Objectives in seconds.
    percentile
        At which they are judged.
    aggregated
        Whether prefill and decode share the instances.
    """

    def __init__(
        self,
        model: PoolModel,
        mix: Mix,
        ttft: float,
        tbt: float,
        percentile: float,
        aggregated: bool = False,
    ) -> None:
        self.model, self.mix = model, mix
        self._given = (ttft, tbt, percentile)
        self._aggregated = aggregated

    def steady(self, requests: Floats, supply: Supply) -> Steady:
        """Describe the stationary state.

        Parameters
        ----------
        requests
            Per second, shape (cases,).
        supply
            Of each case.
        """
        cases = len(requests)
        parameters = Parameters.of([self.model] * cases)
        objectives = Objectives(*(np.full(cases, each) for each in self._given))
        aggregated = np.full(cases, self._aggregated)
        mix = self.mix
        able = supply.prefill > 0
        load = np.where(able, requests * mix.missed / np.where(able, supply.prefill, 1.0), np.inf)
        load = np.where(requests > 0, load, 0.0)
        share = np.where(aggregated, np.maximum(1 - load, LEAST_DECODE_SHARE), 1.0)
        pool = Decoding.of(
            parameters, supply.decode, np.full(cases, mix.prompt + mix.output / 2), share
        )
        batch = pool.stationary(requests * mix.output)
        stable = (load <= 1) & np.isfinite(batch)
        seen = measure(
            parameters,
            objectives,
            aggregated,
            supply,
            Flow(requests * mix.missed, requests, requests * mix.prompt),
            np.minimum(load, 1.0),
            np.zeros((len(POINTS), cases)),
            pool,
            np.where(stable, batch, 0.0),
            np.zeros(cases),
        )
        within = stable & (seen.ttft <= objectives.ttft) & (seen.tbt <= objectives.tbt)
        return Steady(stable, within, load, batch, seen)

    def sustained(self, supply: Supply) -> Floats:
        """Largest load that each case bears within the objectives, in requests per second.

        By bisection: TTFT and TBT never fall when the load rises. 0 where no load is within.
        """
        low = np.zeros(len(supply.prefill))
        # Beyond this a pool is asked for more than it can do whatever its batch.
        high = np.minimum(
            supply.prefill / self.mix.missed,
            supply.decode
            * self.model.tbt_at_capacity
            / max(self.model.tbt_at_capacity - self.model.tbt_base, 1e-9)
            / self.mix.output,
        )
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            good = self.steady(middle, supply).within
            low, high = np.where(good, middle, low), np.where(good, high, middle)
        return low
