"""What it takes to reach a target with whole instances.

Capacities seldom divide a target, so some of it is overshot. A relaxation that may place a part
of an instance does not see that; the inequalities here, mixed-integer rounding of the target
itself, leave it little of the difference. Nor is any instance superfluous: what is added has a
ceiling, and whole instances a lower one than their parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

# Counts that are looked at one by one; where there are more, rounding hardly matters.
MOST_POINTS = 5_000


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


@dataclass(frozen=True)
class Ceiling:
    """``sum(weights * counts) <= most``.

    Parameters
    ----------
    weights
        Of an instance of each capacity.
    most
        Right-hand side.
    """

    weights: tuple[int, ...]
    most: int


@lru_cache(maxsize=4096)
def ceilings(capacities: tuple[int, ...], missing: int) -> tuple[Ceiling, ...]:
    """What instances of which none is superfluous never exceed.

    An instance is superfluous when the others alone add what is missing.

    Parameters
    ----------
    capacities
        Of one instance of each kind, in grains; at least 1, no two alike.
    missing
        Grains that are to be reached; at least 1.

    Returns
    -------
    tuple of Ceiling
        For one or two capacities their convex hull, for more a part of it; none where it takes too
        many instances. A whole count inside the hull may still have a superfluous instance.

    Notes
    -----
    Each two capacities have a polygon; its sides are lifted to the other capacities one by one,
    in exact arithmetic (sequential lifting).
    """
    kinds = len(capacities)
    if kinds == 1:
        return (Ceiling((1,), -(-missing // capacities[0])),)
    counts = [-(-missing // each) + 1 for each in capacities]
    if (prod(counts) if kinds > 2 else max(counts)) > MOST_POINTS:
        return ()
    points = None if kinds == 2 else _tight(capacities, missing)
    found: dict[Ceiling, None] = {}
    for pair in combinations(range(kinds), 2):
        for *sides, most in _polygon([capacities[each] for each in pair], missing):
            weights = dict(zip(pair, sides, strict=True))
            for other in range(kinds):
                if other not in weights:
                    assert points is not None
                    weights[other] = _lifted(points, weights, most, other)
            found[Ceiling(tuple(weights[each] for each in range(kinds)), most)] = None
    return tuple(found)


def _tight(capacities: tuple[int, ...], missing: int) -> NDArray[np.int64]:
    """All counts of which none is superfluous, a row each."""
    ranges = [np.arange(-(-missing // each) + 1) for each in capacities]
    counts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(capacities))
    sizes = np.array(capacities, np.int64)
    smallest = np.where(counts > 0, sizes, np.iinfo(np.int64).max).min(axis=1)
    tight: NDArray[np.int64] = counts[counts @ sizes - smallest < missing]
    return tight


def _lifted(points: NDArray[np.int64], weights: dict[int, int], most: int, other: int) -> int:
    """Largest weight of one more capacity with which no point exceeds a ceiling."""
    outside = [each for each in range(points.shape[1]) if each not in weights and each != other]
    kept = points[(points[:, other] > 0) & (points[:, outside] == 0).all(axis=1)]
    value = sum(weight * kept[:, each] for each, weight in weights.items())
    return int(((most - value) // kept[:, other]).min())


def _polygon(capacities: list[int], missing: int) -> list[tuple[int, int, int]]:
    """Sides ``a * n + b * m <= c`` of the hull of counts of two capacities, none superfluous."""
    one, two = capacities
    first = -(-missing // one)
    points = [(0, -(-missing // two))]
    for count in range(1, first + 1):
        # With some of the second kind the smaller one must be needed.
        most = (missing + min(one, two) - 1 - one * count) // two
        points.append((count, max(0, most)))
    corners: list[tuple[int, int]] = []
    for x, y in points:
        while len(corners) >= 2:
            (ax, ay), (bx, by) = corners[-2:]
            if (bx - ax) * (y - ay) < (by - ay) * (x - ax):
                break
            corners.pop()
        corners.append((x, y))
    sides = []
    for (ax, ay), (bx, by) in pairwise([*corners, (first, -1)]):
        a, b = ay - by, bx - ax
        divisor = gcd(a, b)
        a, b = a // divisor, b // divisor
        sides.append((a, b, a * ax + b * ay))
    return [(0, 1, points[0][1]), *(side for side in sides if side[0] > 0 or side[1] > 0)]
