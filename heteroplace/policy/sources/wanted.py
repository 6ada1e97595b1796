"""Which signals a fleet's policies look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heteroplace.policy.compiled import CompiledService
    from heteroplace.policy.fleet import Fleet


def wanted_signals(fleet: Fleet) -> Mapping[str, tuple[str, ...]]:
    """Give the signals without which a service's targets are held, by service.

    A service that follows the clock alone needs none.
    """
    return {service.name: tuple(service.signals) for service in fleet.compiled}


def helpful_signals(fleet: Fleet) -> Mapping[str, tuple[str, ...]]:
    """Give the further signals that tell more about the needed ones, by service.

    A throughput of 0 explains why latencies were not measured; a high utilization contradicts a
    throughput of 0.
    """
    return {service.name: _helpful(service) for service in fleet.compiled}


def _helpful(service: CompiledService) -> tuple[str, ...]:
    found: list[str] = []
    if any(signal.kind == "latency" for signal in service.signals.values()):
        found += service.idle
    if service.primary is not None:
        name = service.primary.name
        found += (other.name for signal, other in service.contradictions if signal.name == name)
    return tuple(name for name in dict.fromkeys(found) if name not in service.signals)
