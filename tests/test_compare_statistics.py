"""Paired statistics against closed forms and known values."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroplace.compare.statistics import (
    Counts,
    bootstrap,
    gap_profile,
    lexicographic_counts,
    mean,
    median,
    paired,
    performance_profiles,
    ratio_of_means,
    sign_test,
)

# Efron & Tibshirani, An Introduction to the Bootstrap, table 2.1: the treated mice.
MICE = [94.0, 197.0, 16.0, 38.0, 99.0, 141.0, 23.0]


def test_the_mean_has_the_interval_of_the_normal_law():
    sample = np.random.default_rng(1).normal(10.0, 2.0, 400)
    found = bootstrap(sample, method="percentile")
    half = 1.96 * sample.std() / math.sqrt(400)
    assert found.estimate == pytest.approx(sample.mean())
    assert found.low == pytest.approx(sample.mean() - half, abs=0.015)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.015)
    corrected = bootstrap(sample)
    assert corrected.low == pytest.approx(found.low, abs=0.02)
    assert corrected.high == pytest.approx(found.high, abs=0.02)


def test_the_standard_error_of_a_textbook_sample():
    """Table 2.2 there: the mean's standard error is 23.36 in the limit of many resamples."""
    wide = bootstrap(MICE, confidence=0.6826895, resamples=200_000, method="percentile")
    assert wide.estimate == pytest.approx(86.857, abs=1e-3)
    assert (wide.high - wide.low) / 2 == pytest.approx(23.36, abs=0.6)


def test_every_sample_of_two_is_known():
    """Of two observations, the mean of a resample is 0, 1/2 or 1 with weights 1, 2, 1."""
    found = bootstrap([0.0, 1.0], confidence=0.4, method="percentile")
    assert (found.low, found.high) == (0.5, 0.5)
    found = bootstrap([0.0, 1.0], confidence=0.6, method="percentile")
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_skewed_sample_moves_the_corrected_interval_to_its_long_side():
    sample = np.random.default_rng(2).exponential(1.0, 60)
    plain, corrected = bootstrap(sample, method="percentile"), bootstrap(sample)
    assert corrected.low > plain.low
    assert corrected.high > plain.high
    mirrored = bootstrap(-sample)
    assert mirrored.low < -plain.high
    assert mirrored.high < -plain.low


def test_the_acceleration_is_the_closed_form_of_the_mean():
    """For the mean it is Σ(x − x̄)³ / (6 (Σ(x − x̄)²)^1.5), whichever way it is come by."""
    sample = np.random.default_rng(3).exponential(1.0, 500)
    slow = bootstrap(sample, lambda values: np.mean(values, axis=-1))
    fast = bootstrap(sample)
    assert slow.low == pytest.approx(fast.low, rel=1e-9)
    assert slow.high == pytest.approx(fast.high, rel=1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(4)
    covered = 0
    for number in range(300):
        sample = generator.exponential(1.0, 40)
        found = bootstrap(sample, resamples=600, seed=number, confidence=0.9)
        covered += found.low <= 1.0 <= found.high
    assert 0.83 <= covered / 300 <= 0.95


def test_same_seed_same_interval():
    sample = np.random.default_rng(5).normal(size=50)
    assert bootstrap(sample, seed=7) == bootstrap(sample, seed=7)
    assert bootstrap(sample, seed=7) != bootstrap(sample, seed=8)


def test_large_samples_are_drawn_in_blocks():
    sample = np.random.default_rng(6).normal(3.0, 1.0, 5000)
    found = bootstrap(sample, median, resamples=1500)
    assert found.low < found.estimate < found.high
    # The median of a normal law has the standard error sqrt(pi / 2 / n).
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * math.sqrt(math.pi / 2 / 5000), rel=0.25
    )


def test_samples_without_a_spread():
    equal = bootstrap([2.0, 2.0, 2.0])
    assert (equal.estimate, equal.low, equal.high) == (2.0, 2.0, 2.0)
    single = bootstrap([2.0])
    assert single.estimate == 2.0
    assert math.isnan(single.low)
    assert math.isnan(single.high)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [[1.0], [2.0]]])
def test_what_is_no_sample_is_refused(values):
    with pytest.raises(ValueError, match="observation"):
        bootstrap(values)


def test_parameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="confidence"):
        bootstrap([1.0, 2.0], confidence=1.0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap([1.0, 2.0], resamples=0)
    with pytest.raises(ValueError, match="denominators"):
        ratio_of_means([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="denominators"):
        ratio_of_means([1.0], [1.0, 2.0])


def test_a_constant_ratio_has_no_spread():
    found = ratio_of_means([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert (found.estimate, found.low, found.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_a_ratio_is_the_delta_methods():
    generator = np.random.default_rng(7)
    below = generator.uniform(5, 15, 500)
    above = 0.3 * below + generator.normal(0, 1, 500)
    found = ratio_of_means(above, below)
    ratio = above.sum() / below.sum()
    error = np.std(above - ratio * below) / below.mean() / math.sqrt(500)
    assert found.estimate == pytest.approx(ratio)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_members_of_a_cluster_are_drawn_together():
    """Ten copies of a sample say no more than the sample itself."""
    generator = np.random.default_rng(8)
    values, weights = generator.normal(5.0, 1.0, 40), generator.uniform(1.0, 2.0, 40)
    once = ratio_of_means(values, weights)
    copies = ratio_of_means(
        np.tile(values, 10), np.tile(weights, 10), clusters=[("seed", n % 40) for n in range(400)]
    )
    assert copies.estimate == pytest.approx(once.estimate)
    assert copies.low == pytest.approx(once.low)
    assert copies.high == pytest.approx(once.high)
    assert copies.observations == 400
    naive = ratio_of_means(np.tile(values, 10), np.tile(weights, 10))
    assert naive.high - naive.low < 0.5 * (copies.high - copies.low)
    # Clusters of one are no clusters.
    assert ratio_of_means(values, weights, clusters=range(40)) == once


def test_intervals_of_clusters_cover_the_truth_and_naive_ones_do_not():
    generator = np.random.default_rng(9)
    covered = {True: 0, False: 0}
    labels = np.repeat(np.arange(30), 8)
    for number in range(200):
        fleet = np.repeat(generator.normal(0.0, 1.0, 30), 8)
        sample = fleet + generator.normal(0.0, 0.3, 240)
        for together in covered:
            found = ratio_of_means(
                sample,
                np.ones(240),
                clusters=list(labels) if together else None,
                resamples=400,
                seed=number,
                confidence=0.9,
            )
            covered[together] += found.low <= 0.0 <= found.high
    assert 0.82 <= covered[True] / 200 <= 0.95
    assert covered[False] / 200 < 0.6


def test_a_single_cluster_has_no_spread():
    found = ratio_of_means([1.0, 2.0], [1.0, 1.0], clusters=["a", "a"])
    assert (found.estimate, found.observations) == (1.5, 2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    with pytest.raises(ValueError, match="labels"):
        ratio_of_means([1.0, 2.0], [1.0, 1.0], clusters=["a"])


def test_pairs():
    found = paired([3.0, 5.0, 1.0, 4.0], [1.0, 5.0 + 1e-12, 2.0, 2.0])
    assert found.counts == Counts(wins=1, ties=1, losses=2)
    assert found.difference.estimate == pytest.approx(0.75)
    assert found.median.estimate == pytest.approx(1.0)
    assert found.sign_test == 1.0
    with pytest.raises(ValueError, match="pairs"):
        paired([1.0], [1.0, 2.0])


def test_pairs_that_differ_by_rounding_only_have_no_spread():
    found = paired([0.1 + 0.2, 1.0], [0.3, 1.0])
    assert found.counts == Counts(0, 2, 0)
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("counts", "probability"),
    [
        (Counts(0, 5, 0), 1.0),
        (Counts(1, 9, 0), 1.0),
        (Counts(5, 0, 0), 2 / 32),
        (Counts(1, 3, 7), 2 * (1 + 8) / 256),
        (Counts(4, 0, 4), 1.0),
        (Counts(0, 0, 3000), 0.0),
    ],
)
def test_the_sign_test_is_the_binomial(counts, probability):
    assert sign_test(counts) == pytest.approx(probability)


def test_the_sign_test_of_many_pairs_is_the_normal_laws():
    expected = 2 * NormalDist().cdf((4900.5 - 5000) / math.sqrt(10_000 / 4))
    assert sign_test(Counts(4900, 0, 5100)) == pytest.approx(expected, rel=1e-3)


def test_steps_count_in_their_order():
    first = [[1.0, 9.0], [1.0, 2.0], [2.0, 0.0]]
    second = [[2.0, 0.0], [1.0, 2.0], [2.0, -1.0]]
    assert lexicographic_counts(first, second) == Counts(wins=1, ties=1, losses=1)
    with pytest.raises(ValueError, match="same steps"):
        lexicographic_counts([[1.0]], [[1.0, 2.0]])


def test_a_worked_performance_profile():
    """Three solvers on four problems; every step of the curves by hand."""
    found = performance_profiles(
        {"a": [1.0, 2.0, 3.0, None], "b": [2.0, 2.0, 1.0, 5.0], "c": [4.0, 8.0, None, 10.0]}
    )
    a, b, c = (found[name] for name in "abc")
    assert list(a.ratios) == [1.0, 3.0]
    assert list(a.shares) == [0.5, 0.75]
    assert list(b.ratios) == [1.0, 2.0]
    assert list(b.shares) == [0.75, 1.0]
    assert list(c.ratios) == [2.0, 4.0]
    assert list(c.shares) == [0.25, 0.75]
    assert [a.at(0.99), a.at(1.0), a.at(2.99), a.at(3.0), a.at(math.inf)] == [
        0.0,
        0.5,
        0.5,
        0.75,
        0.75,
    ]


def test_costs_of_zero():
    found = performance_profiles({"a": [0.0, 0.0], "b": [0.0, 4.0]})
    assert list(found["a"].ratios) == [1.0]
    assert found["b"].at(1e300) == 0.5
    shifted = performance_profiles({"a": [0.0, 0.0], "b": [0.0, 4.0]}, shift=1.0)
    assert list(shifted["b"].ratios) == [1.0, 5.0]


def test_what_nobody_solved_counts_against_all():
    found = performance_profiles({"a": [None, 1.0], "b": [math.nan, math.inf]})
    assert found["a"].at(math.inf) == 0.5
    assert found["b"].at(math.inf) == 0.0


@given(st.lists(st.tuples(*[st.floats(0.01, 100.0) | st.none()] * 3), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_properties_of_profiles(rows):
    costs = {str(number): [row[number] for row in rows] for number in range(3)}
    found = performance_profiles(costs)
    for name, profile in found.items():
        solved = sum(cost is not None for cost in costs[name])
        assert np.all(np.diff(profile.ratios) > 0)
        assert np.all(np.diff(profile.shares) > 0)
        assert profile.at(math.inf) == pytest.approx(solved / len(rows))
    best = sum(any(cost is not None for cost in row) for row in rows) / len(rows)
    assert sum(profile.at(1.0) for profile in found.values()) >= best - 1e-9
    scaled = performance_profiles(
        {name: [None if x is None else 8 * x for x in values] for name, values in costs.items()}
    )
    for name, profile in found.items():
        assert np.array_equal(profile.ratios, scaled[name].ratios)


def test_gaps():
    found = gap_profile([0.0, 0.0, 0.1, None])
    assert found.at(1.0) == 0.5
    assert found.at(1.11) == 0.75
    assert found.at(math.inf) == 0.75
    with pytest.raises(ValueError, match="gaps"):
        gap_profile([-0.1])
    with pytest.raises(ValueError, match="instance"):
        gap_profile([])


def test_profiles_need_matching_costs():
    for costs in ({}, {"a": []}, {"a": [1.0], "b": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="one cost"):
            performance_profiles(costs)
    with pytest.raises(ValueError, match="at least 0"):
        performance_profiles({"a": [-1.0]})


def test_the_statistics_keep_their_axis():
    table = np.arange(12.0).reshape(3, 4)
    assert list(mean(table)) == [1.5, 5.5, 9.5]
    assert list(median(table)) == [1.5, 5.5, 9.5]
