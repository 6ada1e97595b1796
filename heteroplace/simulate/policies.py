"""The eight single-signal policies of the paper's comparison (Fig. 6), with default targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heteroplace.errors import InputError
from heteroplace.files import validated
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.signals import STANDARD
from heteroplace.simulate.services import PooledService
from heteroplace.simulate.sizing import Expected

FROM_FLEET = "fleet"
POLICIES = tuple(STANDARD)
"""Names of the policies: those of their signals."""


def single_signal(
    fleet: Fleet,
    services: Mapping[str, PooledService],
    signal: str,
    operating: Mapping[str, Expected],
    also: Mapping[str, Any] | None = None,
) -> Fleet:
    """Let services follow one signal alone: no latency layers, no schedules.

    The target of a throughput or utilisation is its value at the operating point, that of a
    latency the service's objective.

    Parameters
    ----------
    fleet
        The fleet; not changed.
    services
        By name.
    signal
        One of :data:`POLICIES`.
    operating
        Operating point of each service to change; the others keep their policies.
    also
        Further fields of these services, as in a fleet file.

    Raises
    ------
    InputError
        If there is no such policy, or the fleet is not valid with it.
    """
    if signal not in STANDARD:
        raise InputError("policy", f"{signal!r} is none of {', '.join((FROM_FLEET, *POLICIES))}")
    changed = {
        name: {**(also or {}), "policy": {"primary": _primary(services[name], signal, there)}}
        for name, there in operating.items()
    }
    return with_changes(fleet, changed)


def _primary(service: PooledService, signal: str, there: Expected) -> dict[str, Any]:
    side = service.prefill if STANDARD[signal].role == "prefill" else service.decode
    primary: dict[str, Any] = {"signal": signal, "role": side[0]}
    kind = STANDARD[signal].kind
    if kind == "latency":
        slo = service.ttft if signal == "ttft" else service.tbt
        return {"kind": "feedback", "slo": slo, **primary}
    return {"kind": kind, "target": there.signals[signal], **primary}


def with_changes(fleet: Fleet, changes: Mapping[str, Mapping[str, Any]]) -> Fleet:
    """Make a fleet with some fields of some services replaced, validated anew.

    Parameters
    ----------
    fleet
        The fleet; not changed.
    changes
        Service -> field -> its new value, as in a fleet file.

    Raises
    ------
    InputError
        If the result is not a valid fleet.
    """
    data = fleet.model_dump(by_alias=True)
    data["services"] = [
        {**service, **changes.get(service["name"], {})} for service in data["services"]
    ]
    return validated(lambda: Fleet.model_validate(data), "the changed fleet")
