"""What a service reports about itself: the standard signals and those that a fleet declares."""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from heteroplace.instance import Name, Noun

SignalKind = Literal["throughput", "utilization", "latency"]
Words = Annotated[str, Field(max_length=256, strict=True)]


class Signal(Noun):
    """A measured quantity of a service.

    Parameters
    ----------
    name
        Unique name.
    kind
        ``throughput``: tokens/s of the whole service, grows with the load. ``utilization``: 0 to 1,
        the mean over the instances of the role. ``latency``: seconds, grows when there are too few
        instances.
    role
        The role it measures; null for the whole service. In a service of one role it is that role.
    unit
        Unit of the value, for people.
    title
        How a sentence calls it; default the name with spaces.
    """

    name: Name
    kind: SignalKind
    role: Name | None = None
    unit: Words = ""
    title: Words = ""

    @cached_property
    def label(self) -> str:
        """How a sentence calls it."""
        return self.title or self.name.replace("_", " ")


def _standard() -> dict[str, Signal]:
    per_role: tuple[tuple[str, SignalKind, str, str], ...] = (
        ("tps", "throughput", "tokens/s", "throughput"),
        ("gpu_util", "utilization", "", "GPU utilization"),
        ("sm", "utilization", "", "SM activity"),
    )
    signals = [
        Signal(name=f"{role}_{end}", kind=kind, role=role, unit=unit, title=f"{role} {title}")
        for end, kind, unit, title in per_role
        for role in ("prefill", "decode")
    ]
    signals.append(Signal(name="ttft", kind="latency", role="prefill", unit="s", title="TTFT"))
    signals.append(Signal(name="tbt", kind="latency", role="decode", unit="s", title="TBT"))
    return {signal.name: signal for signal in signals}


STANDARD = MappingProxyType(_standard())
"""The eight signals of a service (paper section 3.2), by name.

``prefill_tps``: prompt tokens/s that missed the KV cache; ``decode_tps``: generated tokens/s;
``prefill_gpu_util``, ``decode_gpu_util``, ``prefill_sm``, ``decode_sm``: GPU utilization and SM
activity of each role; ``ttft``, ``tbt``: time to the first token and between tokens, at the
fleet's ``latency_percentile``.
"""
