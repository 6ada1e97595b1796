"""Fleets whose services need given signals, for the tests of the metrics sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heteroplace.policy.fleet import Fleet

SHAPES = [{"pods": [{"gpu_type": "H20", "gpus": 4}], "capacity": 100}]
UTILIZATIONS = ("prefill_gpu_util", "decode_gpu_util", "prefill_sm", "decode_sm")


def service(name: str, primary: str = "decode_tps", more: Sequence[str] = ()) -> dict[str, Any]:
    """A service of prefill and decode whose policies need the given signals."""
    return {
        "name": name,
        "roles": {role: {"shapes": SHAPES} for role in ("prefill", "decode")},
        "ratios": [{"target": 1}],
        "policy": {
            "primary": {"kind": "throughput", "signal": primary},
            "latency": [{"signal": each, "slo": 1} for each in more if each in ("ttft", "tbt")],
        },
        "soft_scale_in": {"limits": {each: 0.9 for each in more if each in UTILIZATIONS}},
    }


def fleet_of(*services: Mapping[str, Any] | str, **fields: Any) -> Fleet:
    """A fleet of these services; a name stands for one that needs ``decode_tps`` alone."""
    made = [service(each) if isinstance(each, str) else each for each in services]
    return Fleet.from_dict({"schema": 1, "services": made, **fields})
