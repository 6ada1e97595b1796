"""Closed-loop simulation of a fleet's policies on demand traces, placement included.

``simulate(fleet, cluster, demand)`` gives an :class:`Outcome`; docs/simulate.md has the queueing
model. The names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heteroplace.simulate.closed import simulate
    from heteroplace.simulate.demand import Demand, Load, Noise, load
    from heteroplace.simulate.folder import write_outcome
    from heteroplace.simulate.model import PoolModel, PoolModels
    from heteroplace.simulate.outcome import UNITS, Event, Outcome, ServiceSummary
    from heteroplace.simulate.policies import FROM_FLEET, POLICIES
    from heteroplace.simulate.pools import Pools, Tick
    from heteroplace.simulate.traces import paper_day, read_trace

_HOME = {
    "simulate": "closed",
    **dict.fromkeys(("Demand", "Load", "Noise", "load"), "demand"),
    "write_outcome": "folder",
    **dict.fromkeys(("PoolModel", "PoolModels"), "model"),
    **dict.fromkeys(("UNITS", "Event", "Outcome", "ServiceSummary"), "outcome"),
    **dict.fromkeys(("FROM_FLEET", "POLICIES"), "policies"),
    **dict.fromkeys(("Pools", "Tick"), "pools"),
    **dict.fromkeys(("paper_day", "read_trace"), "traces"),
}

__all__ = [
    "FROM_FLEET",
    "POLICIES",
    "UNITS",
    "Demand",
    "Event",
    "Load",
    "Noise",
    "Outcome",
    "PoolModel",
    "PoolModels",
    "Pools",
    "ServiceSummary",
    "Tick",
    "load",
    "paper_day",
    "read_trace",
    "simulate",
    "write_outcome",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
