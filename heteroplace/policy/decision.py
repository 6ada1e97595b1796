"""What a step decides for a service, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from heteroplace.instance import Count, Name, Noun
from heteroplace.policy.state import FleetState, Withdrawn
from heteroplace.quantity import NonNegative

Action = Literal["out", "in", "hold", "rebalance"]


class Decision(Noun):
    """The decision for one service.

    Parameters
    ----------
    service
        By name.
    action
        ``out``, ``in``, ``hold``, or ``rebalance`` when only the ratio is restored.
    before, counts
        Role -> instances that the targets asked for before, and ask for now.
    targets
        Role -> capacity to deliver: its count times the capacity of its preferred shape.
    driver
        What decided: the signal's name, ``schedule``, ``limits``, ``ratio``, ``degradation``,
        ``observation``, or ``data`` when readings are not good.
    reason
        One sentence with the numbers that decided.
    held
        Role -> ready instances whose registration in service discovery waits.
    window
        Seconds that removed instances stay under observation; 0: they end at once.
    terminate, restore
        Instances under observation that end, and that come back at once.
    age
        Seconds since the oldest reading that was used; null when none was.
    """

    service: Name
    action: Action
    before: dict[Name, Count]
    counts: dict[Name, Count]
    targets: dict[Name, NonNegative]
    driver: str
    reason: str
    held: dict[Name, Count] = Field(default_factory=dict)
    window: float = 0.0
    terminate: tuple[Withdrawn, ...] = ()
    restore: tuple[Withdrawn, ...] = ()
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """All decisions of a step and the state to keep before acting on them.

    Parameters
    ----------
    decisions
        One per service, in the fleet's order.
    state
        What to give to the next step.
    """

    decisions: tuple[Decision, ...]
    state: FleetState
