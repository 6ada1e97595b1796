"""Inequalities of a target that whole instances reach."""

from __future__ import annotations

from itertools import product

import highspy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heteroplace.formulation.cover import Ceiling, Cover, ceilings, covers

CAPACITIES = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True).map(tuple)


def reaching(capacities: tuple[int, ...], missing: int) -> list[tuple[int, ...]]:
    """All counts, none above what the target alone takes, with what they leave unmet."""
    ranges = [range(-(-missing // each) + 1) for each in capacities]
    found = []
    for counts in product(*ranges):
        delivered = sum(c * n for c, n in zip(capacities, counts, strict=True))
        found.append((*counts, max(0, missing - delivered)))
    return found


@given(CAPACITIES, st.integers(1, 40))
def test_whole_counts_keep_every_cover(capacities: tuple[int, ...], missing: int) -> None:
    for *counts, unmet in reaching(capacities, missing):
        for cover in covers(capacities, missing):
            weighed = sum(w * n for w, n in zip(cover.weights, counts, strict=True))
            assert weighed + unmet >= cover.least


@given(CAPACITIES, st.integers(1, 40))
def test_the_plain_sum_comes_first_and_no_cover_implies_another(
    capacities: tuple[int, ...], missing: int
) -> None:
    found = covers(capacities, missing)
    assert found[0] == Cover(capacities, missing)
    for one, other in product(found[1:], found):
        assert one is other or not other.implies(one)


@given(CAPACITIES, st.integers(1, 40))
def test_no_cover_has_larger_numbers_than_the_plain_sum(
    capacities: tuple[int, ...], missing: int
) -> None:
    for cover in covers(capacities, missing):
        assert all(0 < w <= c for w, c in zip(cover.weights, capacities, strict=True))
        assert cover.least <= missing


def test_one_capacity_is_described_exactly() -> None:
    # 3 of 7 grains each reach 20; with 6 or more of 20 unmet, 2 do.
    assert covers((7,), 20) == (Cover((7,), 20), Cover((6,), 18))


def test_capacities_that_divide_the_target_need_the_plain_sum_only() -> None:
    assert covers((2, 4), 12) == (Cover((2, 4), 12),)


def least_cost(cost: list[float], rows: list[tuple[tuple[int, ...], int]]) -> float:
    """Value of a linear program with nonnegative columns."""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    places = np.arange(len(cost))
    for _ in cost:
        solver.addVar(0, 1e9)
    solver.changeColsCost(len(cost), places, np.array(cost))
    for weights, least in rows:
        solver.addRow(least, highspy.kHighsInf, len(cost), places, np.array(weights, float))
    solver.run()
    return float(solver.getInfo().objective_function_value)


@pytest.mark.parametrize("capacities", [(4, 5), (3, 4), (2, 5), (3, 4, 5), (16, 20, 25)])
def test_a_relaxation_with_covers_misses_little(capacities: tuple[int, ...]) -> None:
    gap = closed = 0.0
    rng = np.random.default_rng(7)
    for missing in (8, 12, 16, 20, 28, 36, 45, 60):
        cost = [value * rng.uniform(0.85, 1.15) for value in capacities] + [1000.0]
        whole = min(float(np.dot(cost, each)) for each in reaching(capacities, missing))
        found = covers(capacities, missing)
        rows = [((*each.weights, 1), each.least) for each in found]
        plain, covered = least_cost(cost, rows[:1]), least_cost(cost, rows)
        assert covered <= whole + 1e-6
        gap += whole - plain
        closed += covered - plain
    assert closed >= 0.6 * gap > 0


def tight(capacities: tuple[int, ...], missing: int) -> list[tuple[int, ...]]:
    """All counts without an instance that could be left out."""
    ranges = [range(-(-missing // each) + 1) for each in capacities]
    found = []
    for counts in product(*ranges):
        added = sum(c * n for c, n in zip(capacities, counts, strict=True))
        if all(added - c < missing for c, n in zip(capacities, counts, strict=True) if n):
            found.append(counts)
    return found


@given(CAPACITIES, st.integers(1, 40))
def test_counts_without_a_superfluous_instance_keep_every_ceiling_and_reach_it(
    capacities: tuple[int, ...], missing: int
) -> None:
    counts = tight(capacities, missing)
    for ceiling in ceilings(capacities, missing):
        assert all(weight >= 0 for weight in ceiling.weights)
        values = [sum(w * n for w, n in zip(ceiling.weights, each, strict=True)) for each in counts]
        assert max(values) == ceiling.most


@given(CAPACITIES.filter(lambda each: len(each) == 2), st.integers(1, 40), st.integers(0, 2**32))
def test_two_capacities_are_described_by_their_hull(
    capacities: tuple[int, ...], missing: int, seed: int
) -> None:
    cost = list(-np.random.default_rng(seed).random(2))
    rows = [
        (tuple(-weight for weight in each.weights), -each.most)
        for each in ceilings(capacities, missing)
    ]
    whole = min(float(np.dot(cost, each)) for each in tight(capacities, missing))
    assert least_cost(cost, rows) == pytest.approx(whole, abs=1e-6)


def test_ceilings_of_a_few_cases() -> None:
    # 8 grains by 4s and 3s: (2, 0), (1, 2) and (0, 3) reach it.
    assert set(ceilings((4, 3), 8)) == {
        Ceiling((0, 1), 3),
        Ceiling((1, 1), 3),
        Ceiling((2, 1), 4),
        Ceiling((1, 0), 2),
    }
    assert ceilings((7,), 20) == (Ceiling((1,), 3),)
    assert (
        ceilings((1, 2, 3), 100_000) == ceilings((1, 2), 10**12) == ceilings((2, 1), 10**12) == ()
    )
