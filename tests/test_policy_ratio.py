"""Counts inside the band, against brute force."""

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroplace.policy.ratio import Ratios, Tie

MOST = 14


def tie(target, low, high, numerator="prefill", denominator="decode"):
    return Tie(numerator, denominator, Fraction(target), Fraction(low), Fraction(high))


@st.composite
def pairs(draw):
    """Two roles with limits and a band, narrow ones included."""
    target = Fraction(draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    below = draw(st.sampled_from([0, Fraction(1, 100), Fraction(1, 5), Fraction(1, 2), 1]))
    above = draw(st.sampled_from([0, Fraction(1, 100), Fraction(1, 4), 1, 5]))
    limits = {}
    for role in ("prefill", "decode"):
        low = draw(st.integers(0, 4))
        limits[role] = low, draw(st.integers(max(low, 1), MOST))
    return Ratios(limits, [tie(target, target * (1 - below), target * (1 + above))])


def allowed(ratios):
    """Every pair inside limits and band, by the definition alone."""
    (band,) = ratios.ties
    found = []
    for prefill, decode in product(range(MOST + 1), repeat=2):
        inside = (
            prefill == decode
            if not prefill or not decode
            else band.low <= Fraction(prefill, decode) <= band.high
        )
        low, high = zip(*(ratios.limits[role] for role in ("prefill", "decode")), strict=True)
        if inside and low[0] <= prefill <= high[0] and low[1] <= decode <= high[1]:
            found.append({"prefill": prefill, "decode": decode})
    return found


@settings(max_examples=400, deadline=None)
@given(pairs(), st.sampled_from(["prefill", "decode"]))
def test_a_driving_count_gives_a_pair_in_the_band_whenever_there_is_one(ratios, role):
    other = "decode" if role == "prefill" else "prefill"
    target = ratios.ties[0].target if other == "prefill" else 1 / ratios.ties[0].target
    every = allowed(ratios)
    for count in range(MOST + 2):
        found = ratios.counts(role, count)
        options = [each for each in every if each[role] == count]
        if not options:
            assert found is None
            continue
        assert found in options
        away = [abs(each[other] - count * target) for each in options]
        assert abs(found[other] - count * target) == min(away)


@settings(max_examples=400, deadline=None)
@given(pairs())
def test_a_total_is_split_in_the_band_whenever_it_can_be(ratios):
    every = allowed(ratios)
    target = ratios.ties[0].target
    for total in range(2 * MOST + 2):
        found = ratios.split(total)
        options = [each for each in every if sum(each.values()) == total]
        if not options:
            assert found is None
            continue
        assert found in options
        aim = total * target / (1 + target)
        away = [abs(each["prefill"] - aim) for each in options]
        assert abs(found["prefill"] - aim) == min(away)


@settings(max_examples=200, deadline=None)
@given(pairs(), st.sampled_from(["prefill", "decode"]), st.integers(0, MOST + 3))
def test_the_nearest_driving_count_is_the_least_above_else_the_largest_below(ratios, role, count):
    possible = sorted({each[role] for each in allowed(ratios)})
    above = [each for each in possible if each >= count]
    expected = above[0] if above else possible[-1] if possible else None
    assert ratios.nearest(role, count) == expected


@settings(max_examples=200, deadline=None)
@given(pairs(), st.integers(0, MOST), st.integers(0, MOST), st.integers(0, MOST))
def test_bounds_are_kept_where_the_band_lets_them(ratios, count, floor, ceiling):
    options = [each["prefill"] for each in allowed(ratios) if each["decode"] == count]
    up = ratios.counts("decode", count, at_least={"prefill": floor, "decode": 0})
    down = ratios.counts("decode", count, at_most={"prefill": ceiling, "decode": count})
    if not options:
        assert up is None
        assert down is None
        return
    assert up["prefill"] in options
    assert (up["prefill"] >= floor) == (max(options) >= floor)
    assert down["prefill"] in options
    assert (down["prefill"] <= ceiling) == (min(options) <= ceiling)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_three_roles_follow_each_other(data):
    ratio = st.fractions(Fraction(1, 3), 3, max_denominator=4)
    wide = st.sampled_from([Fraction(0), Fraction(1, 5), Fraction(1, 2)])
    ties = []
    for numerator, denominator in (("attn", "ffn"), ("ffn", "decode")):
        target, off = data.draw(ratio), data.draw(wide)
        ties.append(tie(target, target * (1 - off), target * (1 + off), numerator, denominator))
    roles = ("attn", "ffn", "decode")
    limits = {role: (data.draw(st.integers(0, 2)), data.draw(st.integers(2, 7))) for role in roles}
    ratios = Ratios(limits, ties)
    every = [
        dict(zip(roles, each, strict=True))
        for each in product(range(8), repeat=3)
        if (all(each) or not any(each))
        and all(
            low <= count <= high for count, (low, high) in zip(each, limits.values(), strict=True)
        )
        and (
            not any(each)
            or (
                ties[0].low <= Fraction(each[0], each[1]) <= ties[0].high
                and ties[1].low <= Fraction(each[1], each[2]) <= ties[1].high
            )
        )
    ]
    role = data.draw(st.sampled_from(roles))
    for count in range(9):
        found = ratios.counts(role, count)
        options = [each for each in every if each[role] == count]
        assert found in options if options else found is None
        if found is not None:
            assert ratios.holds(found)


def test_the_example_of_the_documentation():
    ratios = Ratios({"prefill": (1, 99), "decode": (1, 99)}, [tie("9/7", 1, "5/3")])
    assert ratios.counts("decode", 11) == {"prefill": 14, "decode": 11}
    assert ratios.split(16) == {"prefill": 9, "decode": 7}


def test_drift_is_the_same_in_both_directions():
    ratios = Ratios({"prefill": (0, 99), "decode": (0, 99)}, [tie(1, 0, 9)])
    assert ratios.drift({"prefill": 4, "decode": 2}) == pytest.approx(1)
    assert ratios.drift({"prefill": 2, "decode": 4}) == pytest.approx(1)
    assert ratios.drift({"prefill": 3, "decode": 3}) == 0
    assert ratios.drift({"prefill": 0, "decode": 0}) == 0
    assert ratios.drift({"prefill": 0, "decode": 1}) == float("inf")


def test_what_is_returned_is_the_callers_own():
    ratios = Ratios({"prefill": (1, 9), "decode": (1, 9)}, [tie(1, 1, 1)])
    ratios.counts("decode", 3)["prefill"] = 0
    assert ratios.counts("decode", 3) == {"prefill": 3, "decode": 3}


@pytest.mark.parametrize(
    "ties",
    [
        [],
        [tie(1, 1, 1), tie(1, 1, 1)],
        [tie(1, 1, 1), tie(1, 1, 1, "decode", "prefill")],
    ],
)
def test_roles_that_are_not_tied_in_a_tree_are_refused(ties):
    limits = dict.fromkeys(("prefill", "decode", "other"), (0, 9))
    with pytest.raises(ValueError, match="ratio"):
        Ratios(limits, ties)
