"""The formulas of the queueing model, for arrays with one element per service.

Every function is pure; docs/simulate.md derives them. Loads, utilisations and shares are from 0 to
1, times are in seconds, token rates in tokens per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from heteroplace.simulate.model import PoolModel

Floats = npt.NDArray[np.float64]

_NORMAL = NormalDist()
_COLUMNS = tuple(
    name for name, field in PoolModel.model_fields.items() if field.annotation is float
)


@dataclass(frozen=True, eq=False)
class Parameters:
    """The numbers of several pool models side by side.

    Parameters
    ----------
    values
        By the name of the field of :class:`PoolModel`, each of shape (services,).
    """

    values: dict[str, Floats]

    @classmethod
    def of(cls, models: Sequence[PoolModel]) -> Parameters:
        """Stack the models of several services."""
        return cls(
            {name: np.array([getattr(model, name) for model in models]) for name in _COLUMNS}
        )

    def __getitem__(self, name: str) -> Floats:
        return self.values[name]


def waiting(
    parameters: Parameters, load: Floats, instances: Floats, service: Floats
) -> tuple[Floats, Floats]:
    """Describe the stationary wait of a prompt for one of several prefill instances.

    Sakasegawa's approximation of the M/M/n queue with the Allen-Cunneen correction for general
    arrivals and work. A prompt waits with some probability, and then exponentially long.

    Parameters
    ----------
    parameters
        Of the services.
    load
        Load of the pool; above ``wait_load`` it counts as that.
    instances
        Instances of the pool; less than one counts as one.
    service
        Seconds in which one instance computes a mean prompt.

    Returns
    -------
    chance, mean
        Probability of a wait, and its mean in seconds given that there is one.
    """
    load = np.minimum(load, parameters["wait_load"])
    servers = np.maximum(instances, 1.0)
    chance = load ** (np.sqrt(2 * (servers + 1)) - 1)
    scale = (parameters["arrival_scv"] + parameters["prompt_scv"]) / 2
    return chance, scale * service / (servers * (1 - load))


def wait_percentile(chance: Floats, mean: Floats, percentile: Floats) -> Floats:
    """Wait that a share ``percentile`` of the prompts do not exceed."""
    ratio = np.maximum(chance / (1 - percentile), 1.0)
    found: Floats = mean * np.log(ratio)
    return found


def wait_attained(chance: Floats, mean: Floats, slack: Floats) -> Floats:
    """Share of the prompts whose wait is at most ``slack`` (0 for a negative one)."""
    scale = np.where(mean > 0, mean, 1.0)
    late = np.where(mean > 0, chance * np.exp(-np.maximum(slack, 0.0) / scale), 0.0)
    return np.where(slack < 0, 0.0, 1 - late)


def transfer(
    parameters: Parameters,
    tokens: Floats,
    rate: Floats,
    senders: Floats,
    receivers: Floats,
    crossing: Floats,
) -> Floats:
    """Return the seconds in which the KV cache of a mean prompt goes from prefill to decode.

    Parameters
    ----------
    parameters
        Of the services.
    tokens
        Prompt tokens of a request.
    rate
        Prompt tokens per second of the whole service: transfers share the links (M/G/1, processor
        sharing), at most to a load of 0.95.
    senders, receivers
        Prefill and decode instances.
    crossing
        Share of the transfers between different switches.
    """
    per_token = parameters["kv_bytes"] / parameters["kv_bandwidth"]
    per_token = per_token * (1 - crossing + crossing / (1 - parameters["cross_switch_penalty"]))
    links = np.maximum(np.minimum(senders, receivers), 1.0)
    busy = np.minimum(rate * per_token / links, 0.95)
    seconds: Floats = tokens * per_token / (1 - busy)
    return seconds


@dataclass(frozen=True, eq=False)
class Decoding:
    """A decode pool of a given capacity, all its instances filled alike.

    Parameters
    ----------
    base
        Seconds of a step with an empty batch.
    slope
        Seconds that each sequence of the pool adds to a step.
    full
        Sequences of the pool at its capacity.
    most
        Sequences that its KV cache holds.
    """

    base: Floats
    slope: Floats
    full: Floats
    most: Floats

    @classmethod
    def of(
        cls, parameters: Parameters, capacity: Floats, tokens: Floats, share: Floats | float = 1.0
    ) -> Decoding:
        """Describe a pool.

        Parameters
        ----------
        parameters
            Of the services.
        capacity
            Tokens per second of the pool with every step at ``tbt_at_capacity``.
        tokens
            KV cache of a mean sequence while it is decoded, in tokens.
        share
            Of the time, that decode has; less than 1 when prefill runs on the same instances.
        """
        full = capacity * parameters["tbt_at_capacity"]
        some = full > 0
        growth = parameters["tbt_at_capacity"] - parameters["tbt_base"]
        slope = np.where(some, growth / np.where(some, full, 1.0), 0.0)
        held = full * parameters["kv_sequence_tokens"] * parameters["kv_headroom"]
        most = held / np.maximum(tokens, 1.0)
        return cls(parameters["tbt_base"] / share, slope / share, full, most)

    def step(self, sequences: Floats) -> Floats:
        """Seconds of a decode step with so many sequences in the pool, the time between tokens."""
        return self.base + self.slope * sequences

    def rate(self, sequences: Floats) -> Floats:
        """Tokens per second with so many sequences; those that do not fit wait."""
        batch = np.minimum(sequences, self.most)
        return batch / self.step(batch)

    @property
    def most_rate(self) -> Floats:
        """Tokens per second that the pool cannot exceed."""
        return self.rate(self.most)

    def stationary(self, rate: Floats) -> Floats:
        """Sequences at ``rate`` generated tokens per second (Little's law); infinite if too many.

        N = rate x (base + slope x N), so N = rate x base / (1 - rate x slope).
        """
        room = 1 - rate * self.slope
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(room > 0, rate * self.base / room, np.inf)
        # Without this, rounding could refuse the very rate that the pool can just hold.
        fits = (found <= self.most * (1 + 1e-9)) | (rate == 0)
        return np.where(fits, np.where(rate == 0, 0.0, found), np.inf)

    def after(self, sequences: Floats, length: Floats, seconds: Floats | float) -> Floats:
        """Sequences left ``seconds`` later, by the implicit Euler rule.

        Solves N' = N - seconds x rate(N') / length, so that what has left is exactly
        seconds x rate(N') / length; its fixed point is the stationary state at any step length.

        Parameters
        ----------
        sequences
            Sequences now, those that arrived in the step included.
        length
            Tokens that a sequence has yet to generate, on average.
        seconds
            Length of the step.
        """
        pull = seconds / np.maximum(length, 1e-9)
        full = sequences - pull * self.most_rate
        linear = self.base + pull - self.slope * sequences
        root = np.sqrt(linear**2 + 4 * self.slope * sequences * self.base)
        # The same root twice, each where it does not cancel.
        steep = (linear <= 0) & (self.slope > 0)
        free = np.where(
            steep,
            (root - linear) / np.where(steep, 2 * self.slope, 1.0),
            2 * sequences * self.base / np.where(steep, 1.0, linear + root),
        )
        left = np.where(full >= self.most, full, np.minimum(free, sequences))
        return np.where(self.full > 0, np.maximum(left, 0.0), sequences)


def batch_percentile(
    parameters: Parameters, batch: Floats, most: Floats, percentile: Floats
) -> Floats:
    """Sequences on one instance that a share ``percentile`` of the time do not exceed.

    Parameters
    ----------
    parameters
        Of the services.
    batch, most
        Mean sequences of an instance, and how many it can hold.
    percentile
        The share.
    """
    z = np.array([_NORMAL.inv_cdf(each) for each in np.atleast_1d(percentile)])
    spread = parameters["batch_spread"] * np.sqrt(np.maximum(batch, 0.0))
    return np.clip(batch + z * spread, 0.0, np.maximum(most, batch))


def batch_attained(parameters: Parameters, batch: Floats, limit: Floats) -> Floats:
    """Share of the time in which one instance has at most ``limit`` sequences."""
    spread = parameters["batch_spread"] * np.sqrt(np.maximum(batch, 0.0))
    away = (limit - batch) / np.where(spread > 0, spread, 1.0)
    z = np.where(spread > 0, away, np.where(limit >= batch, 40.0, -40.0))
    return np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])


def prefill_hardware(parameters: Parameters, load: Floats) -> tuple[Floats, Floats]:
    """GPU utilisation and SM activity of prefill instances: both rise linearly with the load."""
    return (
        _between(parameters["prefill_util_idle"], parameters["prefill_util_full"], load),
        _between(parameters["prefill_sm_idle"], parameters["prefill_sm_full"], load),
    )


def decode_hardware(
    parameters: Parameters, sequences: Floats, full: Floats, instances: Floats
) -> tuple[Floats, Floats]:
    """GPU utilisation and SM activity of decode instances.

    A decode step occupies the GPU whatever its batch, so the utilisation is high as soon as there
    is one: an instance has none with probability exp(-mean batch). SM activity grows with a power
    below 1 of the batch.
    """
    some = full > 0
    fill = np.where(some, np.minimum(sequences / np.where(some, full, 1.0), 1.0), 0.0)
    batch = np.where(instances > 0, sequences / np.maximum(instances, 1e-9), 0.0)
    busy = -np.expm1(-batch)
    util = busy * _between(parameters["decode_util_low"], parameters["decode_util_high"], fill)
    return util, parameters["decode_sm_full"] * fill ** parameters["decode_sm_exponent"]


def _between(low: Floats, high: Floats, share: Floats) -> Floats:
    found: Floats = low + (high - low) * share
    return found
