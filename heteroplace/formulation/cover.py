"""What it takes to reach a target with whole instances.

Capacities seldom divide a target, so some of it is overshot. A relaxation that may place a part
of an instance does not see that; the inequalities here, mixed-integer rounding of the target
itself, leave it little of the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Cover:
    """``sum(weights * counts) + unmet >= least``.

    Parameters
    ----------
    weights
        Of an instance of each capacity.
    least
        Right-hand side.
    """

    weights: tuple[int, ...]
    least: int

    def implies(self, other: Cover) -> bool:
        """Whether whatever keeps this keeps the other one as well."""
        pairs = zip((*self.weights, 1), (*other.weights, 1), strict=True)
        return all(one * other.least <= two * self.least for one, two in pairs)


@lru_cache(maxsize=4096)
def covers(capacities: tuple[int, ...], missing: int) -> tuple[Cover, ...]:
    """Inequalities of ``sum(capacities * counts) + unmet >= missing`` with whole counts.

    Parameters
    ----------
    capacities
        Of one instance of each kind, in grains; at least 1.
    missing
        Grains that are to be reached; at least 1.

    Returns
    -------
    tuple of Cover
        The plain sum first, then those that no other implies.

    Notes
    -----
    With ``r = missing % d``, a capacity c weighs ``c // d * r + min(c % d, r)`` for each divisor d,
    and the right-hand side is ``r`` times the quotient rounded up. The capacities themselves as
    divisors give nearly the convex hull.
    """
    plain = Cover(capacities, missing)
    found = [plain]
    for divisor in sorted(set(capacities)):
        rest = missing % divisor
        if rest:
            weights = [value // divisor * rest + min(value % divisor, rest) for value in capacities]
            found.append(Cover(tuple(weights), rest * -(-missing // divisor)))
    kept = [
        each
        for each in found[1:]
        if not any(other.implies(each) for other in found if other is not each)
    ]
    return plain, *kept
