"""What a metrics source hands over: the newest reading of every signal of every service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from heteroplace.policy.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample of a signal.

    Parameters
    ----------
    value
        In the signal's unit.
    at
        When the sample was taken, in Unix seconds.
    """

    value: float
    at: float


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a source has no reading of a signal.

    Parameters
    ----------
    service, signal
        By name; empty when it concerns all of them.
    message
        One sentence.
    """

    service: str
    signal: str
    message: str


@dataclass(frozen=True)
class Snapshot:
    """What is known of all services at one moment.

    Parameters
    ----------
    now
        The moment, in Unix seconds.
    readings
        Service -> signal -> its newest reading.
    problems
        What the source could not read.
    """

    now: float
    readings: Mapping[str, Mapping[str, Reading]]
    problems: tuple[Problem, ...] = ()


class Source(Protocol):
    """Where readings come from.

    A source drops duplicates and samples that are older than what it has already given; it never
    raises for a metric that cannot be read, it adds a :class:`Problem`.
    """

    def read(self, fleet: Fleet, now: float) -> Snapshot:
        """Give the newest reading of every signal of the fleet's services at ``now``."""
        ...
