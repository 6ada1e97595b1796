"""What it takes to reach a target with whole instances.

Capacities seldom divide a target, so some of it is overshot. A relaxation that may place a part
of an instance does not see that; the inequalities here, mixed-integer rounding of the target
itself, leave it little of the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd


@dataclass(frozen=True)
class Cover:
    """``sum(weights * counts) + lacking * unmet >= least``.

    Parameters
    ----------
    weights
        Of an instance of each capacity.
    lacking
        Of a grain that stays unmet.
    least
        Right-hand side.
    """

    weights: tuple[int, ...]
    lacking: int
    least: int

    def implies(self, other: Cover) -> bool:
        """Whether whatever keeps this keeps the other one as well."""
        mine, others = (*self.weights, self.lacking), (*other.weights, other.lacking)
        pairs = zip(mine, others, strict=True)
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
        The plain sum first, then those that it does not imply.

    Notes
    -----
    With ``r = missing % d``, a capacity c weighs ``c // d * r + min(c % d, r)`` for each divisor d,
    and the right-hand side is ``r`` times the quotient rounded up. The capacities themselves as
    divisors give nearly the convex hull.
    """
    found = [Cover(capacities, 1, missing)]
    for divisor in sorted(set(capacities)):
        rest = missing % divisor
        if rest:
            weights = [value // divisor * rest + min(value % divisor, rest) for value in capacities]
            found.append(_reduced(weights, 1, rest * -(-missing // divisor)))
    kept: list[Cover] = []
    for number, each in enumerate(found):
        others = found[:number] + found[number + 1 :]
        if number and any(
            other.implies(each) and not (each.implies(other) and found.index(other) > number)
            for other in others
        ):
            continue
        kept.append(each)
    return tuple(kept)


def _reduced(weights: Sequence[int], lacking: int, least: int) -> Cover:
    divisor = gcd(*weights, lacking, least)
    return Cover(tuple(value // divisor for value in weights), lacking // divisor, least // divisor)
