"""What a deployment group of two roles may become, and the convex hull of that.

The hull of the pairs of counts that keep the band and fit the domain leaves a linear relaxation no
fractional group that whole instances cannot come near; the rows of the band alone do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd

Point = tuple[int, int]
Side = tuple[int, int, int, bool]
Band = tuple[bool, int, tuple[int, ...]]


@dataclass(frozen=True)
class Change:
    """How far what a role delivers in a group may change.

    Parameters
    ----------
    terms
        Columns that change it, with the units of one instance.
    low, high
        Least and most change in units; from at most 0 to at least 0.
    grains
        Capacity of one unit, which divides that of every instance.
    now
        Units that are delivered now.
    """

    terms: list[tuple[int, int]]
    low: int
    high: int
    grains: int
    now: int

    @property
    def key(self) -> tuple[int, ...]:
        """All but the columns."""
        return self.low, self.high, self.grains, self.now

    @property
    def span(self) -> int:
        """Number of possible changes."""
        return self.high - self.low + 1


def reachable(
    first: Change,
    second: Change | None,
    bands: Sequence[Band],
    shared: tuple[int, int, int] | None,
) -> set[Point]:
    """Pairs of changes whose convex hull is that of all that a group may become.

    Parameters
    ----------
    first, second
        The two roles; null if there is but one.
    bands
        ``(flipped, unit, ends)``: ``ends[0] * D <= unit * N <= ends[1] * D`` in grains, without
        the second part where there is no upper end. N is the first role, the second if flipped.
    shared
        ``(a, b, c)``: a times the first change plus b times the second is at most c, where they
        are positive.

    Returns
    -------
    set of (int, int)
        Among them (0, 0), and where the group may lose all instances that pair.
    """
    points = {(0, 0)}
    if second is None:
        least = max(first.low, 1 - first.now)
        return points | ({(least, 0), (first.high, 0)} if least <= first.high else set())
    if not (first.now + first.low or second.now + second.low):
        points.add((first.low, second.low))
    for change in range(max(first.low, 1 - first.now), first.high + 1):
        have = (first.now + change) * first.grains
        low, high = max(second.low, 1 - second.now), second.high
        for flipped, unit, ends in bands:
            if flipped:
                low = max(low, _least(ends[0] * have, unit, second))
                if len(ends) > 1:
                    high = min(high, _most(ends[1] * have, unit, second))
            else:
                if ends[0]:
                    high = min(high, _most(unit * have, ends[0], second))
                if len(ends) > 1:
                    low = max(low, _least(unit * have, ends[1], second))
        if shared is not None:
            a, b, c = shared
            if change > 0 and a * change > c:
                continue
            high = min(high, max(0, (c - a * max(0, change)) // b))
        if low <= high:
            # The ends of the second role's interval are enough.
            points |= {(change, low), (change, high)}
    return points


def _least(value: int, factor: int, change: Change) -> int:
    """Least change with ``factor * grains >= value``."""
    return -((factor * change.now * change.grains - value) // (factor * change.grains))


def _most(value: int, factor: int, change: Change) -> int:
    """Most change with ``factor * grains <= value``."""
    return (value - factor * change.now * change.grains) // (factor * change.grains)


@dataclass(frozen=True)
class Hull:
    """The convex hull of integer points.

    Parameters
    ----------
    corners
        Counter-clockwise; at least one.
    """

    corners: tuple[Point, ...]

    @classmethod
    def of(cls, points: Iterable[Point]) -> Hull:
        """The hull of points; of (0, 0) if there are none."""
        return cls(tuple(_corners(sorted(set(points))) or [(0, 0)]))

    @cached_property
    def sides(self) -> list[Side]:
        """``(a, b, c, equal)``: ``a * x + b * y <= c``, or ``== c`` where the hull is flat."""
        return _sides(list(self.corners))


def _sides(corners: list[Point]) -> list[Side]:
    if len(corners) == 1:
        ((x, y),) = corners
        return [(1, 0, x, True), (0, 1, y, True)]
    if len(corners) == 2:
        start, end = corners
        along = (end[0] - start[0], end[1] - start[1])
        a, b, c = _line(start, end)
        ends = [_normal(-along[0], -along[1], start), _normal(along[0], along[1], end)]
        return [(a, b, c, True), *((*each, False) for each in ends)]
    return [
        (*_line(start, end), False)
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True)
    ]


def _line(start: Point, end: Point) -> tuple[int, int, int]:
    """The half-plane to the left of an edge."""
    return _normal(end[1] - start[1], start[0] - end[0], start)


def _normal(a: int, b: int, at: Point) -> tuple[int, int, int]:
    divisor = gcd(a, b)
    a, b = a // divisor, b // divisor
    return a, b, a * at[0] + b * at[1]


def _corners(points: list[Point]) -> list[Point]:
    """Corners of the hull, counter-clockwise (Andrew's monotone chain)."""
    if len(points) <= 2:
        return points
    # Of those one above the other only the ends can be corners.
    lowest = [point for before, point in pairwise(points) if point[0] != before[0]]
    highest = [point for point, after in pairwise(points) if point[0] != after[0]]
    lower, upper = _chain([points[0], *lowest]), _chain([points[-1], *reversed(highest)])
    if upper[0] == lower[-1]:
        upper = upper[1:]
    if upper and upper[-1] == lower[0]:
        upper.pop()
    return lower + upper


def _chain(points: list[Point]) -> list[Point]:
    chain: list[Point] = []
    for point in points:
        x, y = point
        while len(chain) >= 2:
            (ax, ay), (bx, by) = chain[-2], chain[-1]
            if (bx - ax) * (y - ay) > (by - ay) * (x - ax):
                break
            chain.pop()
        chain.append(point)
    return chain
