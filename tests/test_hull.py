"""The hull of what a group may become has exactly the integer points that it should have."""

from __future__ import annotations

import random
from collections.abc import Iterable
from fractions import Fraction
from itertools import product

import pytest

from heteroplace.formulation.hull import Change, Hull, Point, Side, reachable


def hull_sides(points: Iterable[Point]) -> list[Side]:
    return Hull.of(points).sides


def inside(sides: list[Side], x: int, y: int) -> bool:
    return all(a * x + b * y == c if equal else a * x + b * y <= c for a, b, c, equal in sides)


@pytest.mark.parametrize("seed", range(60))
def test_sides_touch_the_points_and_cut_none_off(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.randint(-6, 6), rng.randint(-6, 6)) for _ in range(rng.randint(1, 12))]
    sides = hull_sides(points)
    assert all(inside(sides, x, y) for x, y in points)
    for a, b, c, _ in sides:
        assert max(a * x + b * y for x, y in points) == c
    flat = len(set(points)) == 1 or len({equal for *_, equal in sides}) > 1
    for a, b, c, equal in sides:
        touching = {point for point in points if a * point[0] + b * point[1] == c}
        assert equal or flat or len(touching) > 1


def test_degenerate_hulls() -> None:
    assert hull_sides([]) == hull_sides([(0, 0)]) == [(1, 0, 0, True), (0, 1, 0, True)]
    line = hull_sides([(1, 1), (2, 3), (3, 5)])
    found = [(x, y) for x, y in product(range(7), repeat=2) if inside(line, x, y)]
    assert found == [(1, 1), (2, 3), (3, 5)]


@pytest.mark.parametrize("seed", range(300))
def test_the_hull_of_a_group_has_its_integer_points(seed: int) -> None:
    """Against the definition: all roles or none, every band in exact fractions, ranges, room."""
    rng = random.Random(seed)
    now = (0, 0) if seed % 3 else (rng.randint(1, 5), rng.randint(1, 5))
    grains = (rng.randint(1, 4), rng.randint(1, 4))
    unit, ends = rng.randint(1, 3), sorted(rng.sample(range(1, 9), 2))[: rng.randint(1, 2)]
    ends[0] *= rng.randint(0, 1)
    flipped = rng.random() < 0.5
    shared = None
    if rng.random() < 0.4:
        shared = (rng.randint(1, 3), rng.randint(1, 3), rng.randint(0, 12))

    def delivers(x: int, y: int) -> tuple[int, int]:
        return (now[0] + x) * grains[0], (now[1] + y) * grains[1]

    def kept(x: int, y: int) -> bool:
        n, d = delivers(x, y)[::-1] if flipped else delivers(x, y)
        low = Fraction(ends[0] * d, unit) <= n
        return low and (len(ends) == 1 or n <= Fraction(ends[1] * d, unit))

    if not kept(0, 0):
        now = (0, 0)
    lows = tuple(-rng.randint(0, count) for count in now)
    highs = tuple(rng.randint(0, 9) for _ in now)
    first, second = (
        Change([], low, high, grain, count)
        for low, high, grain, count in zip(lows, highs, grains, now, strict=True)
    )

    def allowed(x: int, y: int) -> bool:
        n, d = delivers(x, y)
        if (x, y) == (0, 0) or (n == d == 0):
            return True
        a, b, c = shared or (0, 0, 0)
        return bool(n and d) and kept(x, y) and a * max(0, x) + b * max(0, y) <= c

    grid = list(product(range(lows[0], highs[0] + 1), range(lows[1], highs[1] + 1)))
    expected = {point for point in grid if allowed(*point)}
    points = reachable(first, second, [(flipped, unit, tuple(ends))], shared)
    assert points <= expected
    sides = hull_sides(points)
    assert {point for point in grid if inside(sides, *point)} == expected
    # Opened groups leave the empty one out.
    if now == (0, 0):
        sides = hull_sides(points - {(0, 0)})
        found = {point for point in grid if inside(sides, *point)}
        assert found - {(0, 0)} == expected - {(0, 0)}
