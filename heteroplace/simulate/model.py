"""The parameters of the queueing model of one service's pools, each with its unit and source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from heteroplace.errors import InputError
from heteroplace.files import parse_toml, read_bytes, refuse_duplicate_keys, validated
from heteroplace.instance import Name, Noun
from heteroplace.policy.duration import Duration, PositiveDuration

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Squared = Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)]


class PoolModel(Noun):
    """How the pools of a service behave.

    The formulas are in docs/simulate.md. "Fig. n" is a figure of HeteroScale (arXiv 2508.19559);
    "measured" is Splitwise's table of Llama-2-70B and BLOOM-176B on A100 and H100. Seconds may
    also be texts such as ``"3m"``.

    Parameters
    ----------
    prefill_roles, decode_roles
        Roles whose instances make the pool; of several roles that work together (attention and
        FFN) the one that can do least decides. Default ``prefill`` and ``decode``; a service of
        one role does both with it.
    ttft_slo, tbt_slo
        Objectives that an outcome is judged by; null for those of the service's policies (its
        latency layers, its feedback, its soft scale-in), else 1 s and 0.05 s, the limits for
        which the capacities in models/ hold.
    prefill_tokens, decode_tokens
        Tokens per second of one unit of the fleet's capacity, prompt tokens that miss the KV cache
        for prefill, generated ones for decode. 1: the fleet counts capacity in tokens per second.
    arrival_scv, prompt_scv
        Squared coefficient of variation of the gaps between requests and of a prompt's work.
        1 is Poisson and exponential, the usual assumption of queueing theory.
    wait_load
        Load of the prefill pool up to which the stationary waiting time is used; above it the
        queue that is carried from tick to tick takes over. Assumption.
    prefill_overhead
        Seconds of a request outside of its tokens: the shortest prompts measured, 128 tokens, take
        0.05 to 0.08 s.
    prefill_util_idle, prefill_util_full
        GPU utilisation of a prefill instance without load and at its capacity, linear between
        them: at most 94 % in Fig. 4, at least 8 % in Fig. 2 (at 1 % of the peak load).
    prefill_sm_idle, prefill_sm_full
        SM activity likewise: 0.75 times the utilisation, the mean over Fig. 4.
    tbt_base
        Seconds of a decode step with an empty batch: 0.03 to 0.06 measured, 0.01 to 0.05 in NVIDIA
        aiconfigurator's tables.
    tbt_at_capacity
        Seconds of a decode step at the instance's capacity: the capacities in models/ hold for a
        time per output token of at most 0.05 s.
    batch_spread
        Standard deviation of an instance's batch over the square root of its mean: 1 is the
        Poisson law of a pool in which no sequence waits.
    kv_sequence_tokens
        Tokens of a sequence for which the KV cache of an instance just holds the batch at its
        capacity: 2048 of the prompt and half of 256 generated ones, the lengths of models/.
        Longer sequences make the KV cache the limit.
    kv_headroom
        KV cache over that size. Assumption: 1.25.
    decode_util_low, decode_util_high
        GPU utilisation of decode while it has a batch, from a small one to the one at capacity:
        0.93 to 0.96 in Fig. 4 at every load, 0.86 over the day of Fig. 2.
    decode_sm_full, decode_sm_exponent
        SM activity of decode at capacity, and the power of the batch with which it falls below
        it: 0.69 at most, and 0.17 and 0.25 fitted to services A and B of Fig. 4.
    kv_bytes
        Bytes of KV cache per prompt token that are sent from prefill to decode: 327,680 for 80
        layers, 8 KV heads of 128 and two bytes (Llama-3.1-70B).
    kv_bandwidth
        Bytes per second into one decode instance or out of one prefill instance under one switch:
        200 Gb/s. Assumption.
    cross_switch_penalty
        Share of that bandwidth lost between prefill and decode under different switches: about
        20 % in the paper.
    switch_level
        Level whose domains are "one switch"; default the lower level of the cluster's tiers (S1).
    startup_seconds
        From the decision to a ready instance: loading 140 GB of weights at 1 to 2 GB/s and engine
        warm-up. Assumption.
    restore_seconds
        From the decision to a withdrawn instance serving again: one discovery interval. The paper:
        at once.
    drain_seconds
        How long an instance that is removed without an observation window keeps its GPUs to finish
        its sequences. Assumption.
    """

    prefill_roles: Annotated[tuple[Name, ...], Field(min_length=1)] = ("prefill",)
    decode_roles: Annotated[tuple[Name, ...], Field(min_length=1)] = ("decode",)
    ttft_slo: PositiveDuration | None = None
    tbt_slo: PositiveDuration | None = None
    prefill_tokens: Factor = 1.0
    decode_tokens: Factor = 1.0
    arrival_scv: Squared = 1.0
    prompt_scv: Squared = 1.0
    wait_load: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.98
    prefill_overhead: Duration = 0.05
    prefill_util_idle: Share = 0.08
    prefill_util_full: Share = 0.95
    prefill_sm_idle: Share = 0.06
    prefill_sm_full: Share = 0.71
    tbt_base: PositiveDuration = 0.02
    tbt_at_capacity: PositiveDuration = 0.05
    batch_spread: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    kv_sequence_tokens: Factor = 2176.0
    kv_headroom: Factor = 1.25
    decode_util_low: Share = 0.85
    decode_util_high: Share = 0.95
    decode_sm_full: Share = 0.69
    decode_sm_exponent: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.2
    kv_bytes: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 327_680.0
    kv_bandwidth: Factor = 25e9
    cross_switch_penalty: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.2
    switch_level: Name | None = None
    startup_seconds: Duration = 180.0
    restore_seconds: Duration = 5.0
    drain_seconds: Duration = 60.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in (
            ("prefill_util_idle", "prefill_util_full"),
            ("prefill_sm_idle", "prefill_sm_full"),
            ("tbt_base", "tbt_at_capacity"),
            ("decode_util_low", "decode_util_high"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise InputError(low, f"must not exceed {high}, {getattr(self, high):g}")
        return self


class PoolModels(Noun):
    """The pool models of a fleet's services; loads from TOML or JSON.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in the file: 1.
    defaults
        Of services that are not named.
    services
        By name; fields left out are those of ``defaults``.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    defaults: PoolModel = PoolModel()
    services: dict[Name, PoolModel] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        defaults, services = data.get("defaults"), data.get("services")
        if not isinstance(defaults, Mapping) or not isinstance(services, Mapping):
            return data
        merged = {
            name: {**defaults, **each} if isinstance(each, Mapping) else each
            for name, each in services.items()
        }
        return {**data, "services": merged}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> PoolModels:
        """Read from a file, JSON if its name ends with ``.json``, else TOML.

        Raises
        ------
        InputError
            If the file cannot be read, cannot be parsed or is not one of pool models.
        """
        text = read_bytes(path, 2**24)
        if str(path).lower().endswith(".json"):
            found: PoolModels = validated(lambda: cls.model_validate_json(text), str(path))
            refuse_duplicate_keys(text, str(path))
            return found
        data = parse_toml(text, str(path))
        return validated(lambda: cls.model_validate(data), str(path))

    def of(self, service: str) -> PoolModel:
        """Model of a service."""
        return self.services.get(service, self.defaults)
