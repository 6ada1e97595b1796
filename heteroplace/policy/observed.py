"""What runs now of every role, as the policies see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

ZERO = Fraction(0)


@dataclass(frozen=True, slots=True)
class RoleObserved:
    """Instances of one role of a service, in equivalents of its preferred shape.

    An instance of another shape counts as its capacity over the preferred shape's.

    Parameters
    ----------
    ready
        Ready instances, registered or not.
    starting
        Instances on their way.
    draining
        Instances that occupy GPUs and deliver nothing, those under observation included.
    registered
        Ready instances in service discovery: those that serve.
    """

    ready: Fraction = ZERO
    starting: Fraction = ZERO
    draining: Fraction = ZERO
    registered: Fraction = ZERO


Observed = Mapping[str, Mapping[str, RoleObserved]]
"""Service -> role -> what runs; a service that is not there runs nothing."""
