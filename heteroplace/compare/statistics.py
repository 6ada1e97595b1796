"""Statistics of paired results: differences, bootstrap intervals, performance profiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Method = Literal["percentile", "bca"]

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Values drawn at once, so that memory stays bounded whatever the sample's size.
_BLOCK = 2**21
_MOST_LEFT_OUT = 1000
_LEAST_DENOMINATOR = 1e-9


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Parameters
    ----------
    estimate
        The statistic of the sample.
    low, high
        Ends of the interval; equal to the estimate when all observations are equal, and for a
        single one, or a single cluster, NaN: it says nothing of its spread.
    confidence
        Its level, from 0 to 1.
    observations
        Size of the sample.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    observations: int


@dataclass(frozen=True)
class Counts:
    """On how many pairs the first is better, as good and worse; smaller is better.

    Parameters
    ----------
    wins, ties, losses
        Of the first against the second.
    """

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Paired:
    """Two profiles on the same instances.

    Parameters
    ----------
    difference
        Mean of first − second with its interval.
    median
        Median of first − second with its interval.
    counts
        Wins, ties and losses of the first; smaller is better.
    sign_test
        Two-sided probability of counts at least this uneven if wins and losses were equally
        likely; ties are left out. 1 when there are only ties.
    """

    difference: Interval
    median: Interval
    counts: Counts
    sign_test: float


@dataclass(frozen=True)
class PerformanceProfile:
    """Share of the instances on which a profile is within a factor of the best (Dolan and Moré).

    Parameters
    ----------
    ratios
        Where the curve steps up, ascending, from 1 on; shape (n,).
    shares
        Share of the instances with at most that ratio, from 0 to 1; shape (n,).
    """

    ratios: NDArray[np.float64]
    shares: NDArray[np.float64]

    def at(self, ratio: float) -> float:
        """Share of the instances within ``ratio`` times the best."""
        place = int(np.searchsorted(self.ratios, ratio, side="right"))
        return float(self.shares[place - 1]) if place else 0.0


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis."""
    result: NDArray[np.float64] = np.mean(values, axis=-1)
    return result


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over the last axis."""
    result: NDArray[np.float64] = np.median(values, axis=-1)
    return result


def bootstrap(
    values: Sequence[float] | NDArray[np.float64],
    statistic: Statistic = mean,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bca",
) -> Interval:
    """Confidence interval of a statistic by the bootstrap.

    Parameters
    ----------
    values
        Independent observations, finite.
    statistic
        Maps an array to its statistic over the last axis, as :func:`mean` does.
    confidence
        Level of the interval, between 0 and 1.
    resamples
        Samples drawn with replacement.
    seed
        Same seed, same interval.
    method
        ``percentile``, or ``bca``: bias-corrected and accelerated (Efron 1987).

    Raises
    ------
    ValueError
        If there is no observation, one is not finite, or a parameter is out of its range.
    """
    sample = _sample(values)
    _check(confidence, resamples)
    estimate = float(statistic(sample))
    if len(sample) == 1:
        return Interval(estimate, math.nan, math.nan, confidence, 1)
    if np.all(sample == sample[0]):
        return Interval(estimate, estimate, estimate, confidence, len(sample))
    drawn = _resampled(sample, statistic, resamples, seed)
    tail = (1 - confidence) / 2
    ends = (tail, 1 - tail)
    if method == "bca":
        ends = _corrected(sample, statistic, estimate, drawn, ends)
    low, high = np.quantile(drawn, ends)
    return Interval(estimate, float(low), float(high), confidence, len(sample))


def ratio_of_means(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of Σ numerators / Σ denominators, pairs drawn together (percentile bootstrap).

    With all denominators 1 it is the mean of the numerators.

    Parameters
    ----------
    numerators, denominators
        Paired observations, finite; the denominators at least 0 and not all 0.
    clusters
        A label for each pair; pairs of one label are drawn all together, for they are not
        independent, as the same fleet at several loads. Default: each pair on its own. A single
        cluster says nothing of the spread, and the ends are NaN.
    confidence, resamples, seed
        As in :func:`bootstrap`.

    Raises
    ------
    ValueError
        If the observations do not fit together or a parameter is out of its range.
    """
    above, below = _sample(numerators), _sample(denominators)
    _check(confidence, resamples)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators but {len(below)} denominators")
    if np.any(below < 0) or not np.any(below > 0):
        raise ValueError("the denominators must be at least 0 and not all 0")
    observations = len(above)
    if clusters is not None:
        if len(clusters) != observations:
            raise ValueError(f"{observations} pairs but {len(clusters)} labels of clusters")
        numbers: dict[Hashable, int] = {}
        member = [numbers.setdefault(label, len(numbers)) for label in clusters]
        above, below = (np.bincount(member, each).astype(float) for each in (above, below))
    estimate = float(above.sum() / below.sum())
    if len(above) == 1:
        return Interval(estimate, math.nan, math.nan, confidence, observations)
    places = np.arange(len(above))
    drawn = _resampled(
        places,
        lambda block: _ratio(above[block].sum(axis=-1), below[block].sum(axis=-1)),
        resamples,
        seed,
    )
    drawn = drawn[np.isfinite(drawn)]  # Only a sample of nothing but zeros below is not.
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Interval(estimate, float(low), float(high), confidence, observations)


def paired(
    first: Sequence[float],
    second: Sequence[float],
    *,
    tolerance: float = 1e-9,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Compare two profiles on the same instances; smaller is better.

    Parameters
    ----------
    first, second
        One value per instance, in the same order.
    tolerance
        Values no further apart than this times the larger magnitude, or this itself, are a tie.
    confidence, resamples, seed
        As in :func:`bootstrap`.

    Raises
    ------
    ValueError
        If the lengths differ, there is no pair or a value is not finite.
    """
    one, other = _sample(first), _sample(second)
    if len(one) != len(other):
        raise ValueError(f"{len(one)} values but {len(other)}; they must be pairs")
    signs = _signs(one, other, tolerance)
    # A tie is a difference of nothing: what is left of it is rounding.
    differences = np.where(signs == 0, 0.0, one - other)
    counts = _counted(signs)
    return Paired(
        difference=bootstrap(
            differences, mean, confidence=confidence, resamples=resamples, seed=seed
        ),
        # The jackknife says nothing of a median, so there is nothing to accelerate by.
        median=bootstrap(
            differences,
            median,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            method="percentile",
        ),
        counts=counts,
        sign_test=sign_test(counts),
    )


def sign_test(counts: Counts) -> float:
    """Two-sided exact binomial probability of wins and losses at least this uneven, ties left out.

    Parameters
    ----------
    counts
        Of a comparison.
    """
    trials = counts.wins + counts.losses
    term = below = 1  # Each binomial coefficient comes from the one before: anew it takes minutes.
    for number in range(min(counts.wins, counts.losses)):
        term = term * (trials - number) // (number + 1)
        below += term
    return min(1.0, float(Fraction(2 * below, 2**trials)))


def lexicographic_counts(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], tolerance: float = 1e-6
) -> Counts:
    """Wins, ties and losses by the steps of the objective in their order.

    Parameters
    ----------
    first, second
        Values of the steps, one sequence per instance.
    tolerance
        As in :func:`paired`; by default the gap up to which a step counts as proven.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} plans but {len(second)}; they must be pairs")
    signs = []
    for one, other in zip(first, second, strict=True):
        steps = _signs(np.asarray(one, float), np.asarray(other, float), tolerance)
        different = np.flatnonzero(steps)
        signs.append(int(steps[different[0]]) if len(different) else 0)
    return _counted(np.array(signs, np.int64))


def performance_profiles(
    costs: Mapping[str, Sequence[float | None]], *, shift: float = 0.0
) -> dict[str, PerformanceProfile]:
    """Performance profiles in the style of Dolan and Moré (2002).

    Parameters
    ----------
    costs
        By profile, one cost per instance in the same order, at least 0; null (or NaN, infinite):
        it failed there. Seconds, or unmet GPUs, or the like.
    shift
        Added to every cost: with costs that may be 0, such as unmet GPUs, a shift above 0 keeps
        ratios finite.

    Returns
    -------
    dict of PerformanceProfile
        By profile. The ratio is cost / least cost of all profiles on that instance; where the
        least is 0, it is 1 for those at 0 and infinite for the others. Instances on which all
        failed count as solved by none.

    Raises
    ------
    ValueError
        If the lengths differ, there is no instance or a cost is negative.
    """
    names = list(costs)
    lengths = {len(values) for values in costs.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError("every profile needs one cost for each instance, and there must be one")
    table = np.array(
        [[math.inf if each is None else each for each in costs[name]] for name in names], float
    )
    table[np.isnan(table)] = math.inf
    if np.any(table < 0) or not shift >= 0:
        raise ValueError("costs and shift must be at least 0")
    table = table + shift
    best = table.min(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = table / best
    ratios[np.isnan(ratios)] = 1.0  # 0 / 0: both are best.
    ratios[np.isinf(table)] = math.inf
    return {
        name: _stepped(found, table.shape[1]) for name, found in zip(names, ratios, strict=True)
    }


def gap_profile(gaps: Sequence[float | None]) -> PerformanceProfile:
    """Share of the instances within a gap to the bound: ``ratios`` are 1 + gap.

    Parameters
    ----------
    gaps
        (value − bound) / bound, at least 0; null: unknown.

    Raises
    ------
    ValueError
        If there is no instance or a gap is negative.
    """
    if not gaps:
        raise ValueError("there is no instance")
    if any(gap is not None and gap < 0 for gap in gaps):
        raise ValueError("gaps must be at least 0")
    ratios = np.array([math.inf if gap is None else 1.0 + gap for gap in gaps], float)
    ratios[np.isnan(ratios)] = math.inf
    return _stepped(ratios, len(gaps))


def _sample(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    sample = np.asarray(values, float)
    if sample.ndim != 1 or not len(sample):
        raise ValueError("there must be at least one observation, in one row")
    if not np.all(np.isfinite(sample)):
        raise ValueError("every observation must be a finite number; leave out the others")
    return sample


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence:g}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")


def _resampled(
    sample: NDArray[Any],
    statistic: Callable[[NDArray[Any]], NDArray[np.float64]],
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """The statistic of samples drawn with replacement; shape (resamples,)."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(sample))
    found = []
    for begin in range(0, resamples, block):
        count = min(block, resamples - begin)
        places = generator.integers(0, len(sample), size=(count, len(sample)))
        found.append(statistic(sample[places]))
    return np.concatenate(found)


def _corrected(
    sample: NDArray[np.float64],
    statistic: Statistic,
    estimate: float,
    drawn: NDArray[np.float64],
    ends: tuple[float, float],
) -> tuple[float, float]:
    """The quantiles that stand for these ends after correction for bias and skew (Efron 1987)."""
    normal = NormalDist()
    # Of a statistic with few values, half of those that equal the estimate count as below it.
    below = float(np.mean(drawn < estimate) + np.mean(drawn == estimate) / 2)
    edge = 0.5 / len(drawn)
    bias = normal.inv_cdf(min(max(below, edge), 1 - edge))
    away = _left_out(sample, statistic)
    away = away.mean() - away
    spread = float(np.sum(away**2)) ** 1.5
    skew = float(np.sum(away**3)) / (6 * spread) if spread > 0 else 0.0
    skew *= math.sqrt(len(away) / len(sample))

    def moved(end: float) -> float:
        z = bias + normal.inv_cdf(end)
        return normal.cdf(bias + z / max(_LEAST_DENOMINATOR, 1 - skew * z))

    return moved(ends[0]), moved(ends[1])


def _left_out(sample: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    """The statistic of the sample without each of its observations; shape (n,)."""
    count = len(sample)
    if statistic is mean:
        result: NDArray[np.float64] = (sample.sum() - sample) / (count - 1)
        return result
    # Each is a sample of its own: of a large one, evenly spaced observations stand for all.
    places = np.unique(np.linspace(0, count - 1, min(count, _MOST_LEFT_OUT)).astype(int))
    return np.array([float(statistic(np.delete(sample, place))) for place in places])


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        result: NDArray[np.float64] = above / below
    return result


def _signs(
    first: NDArray[np.float64], second: NDArray[np.float64], tolerance: float
) -> NDArray[np.int64]:
    """-1 where the first is smaller, 1 where it is larger, 0 for a tie."""
    if first.shape != second.shape:
        raise ValueError("the two must have the same steps")
    slack = tolerance * np.maximum(1.0, np.maximum(np.abs(first), np.abs(second)))
    difference = first - second
    result: NDArray[np.int64] = np.where(
        np.abs(difference) <= slack, 0, np.sign(difference)
    ).astype(np.int64)
    return result


def _counted(signs: NDArray[np.int64]) -> Counts:
    return Counts(
        wins=int(np.sum(signs < 0)), ties=int(np.sum(signs == 0)), losses=int(np.sum(signs > 0))
    )


def _stepped(ratios: NDArray[np.float64], instances: int) -> PerformanceProfile:
    """The empirical distribution of the finite ratios among all instances."""
    finite = np.sort(ratios[np.isfinite(ratios)])
    steps, counts = np.unique(finite, return_counts=True)
    return PerformanceProfile(steps, np.cumsum(counts) / instances)
