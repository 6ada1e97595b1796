"""What a figure is: charts, a sentence to read first, and the data behind it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from heteroplace.compare.statistics import Interval, ratio_of_means
from heteroplace.report.charts import Panel
from heteroplace.report.table import Table
from heteroplace.report.words import number

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Legend:
    """One entry of a legend: the name and style of a series, and how it is drawn."""

    name: str
    style: int
    kind: Literal["marker", "curve", "part"] = "marker"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the page.

    Parameters
    ----------
    name
        Unique; names its data on the command line.
    title
        What it is about.
    lead
        What to see in it, one or two sentences.
    reading
        How to read it.
    panels
        The charts; none when there is nothing to draw, and then the lead says why.
    legend
        The series.
    table
        The data.
    """

    name: str
    title: str
    lead: str
    reading: str
    panels: tuple[Panel, ...]
    legend: tuple[Legend, ...]
    table: Table


def share(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable]
) -> Interval | None:
    """Ratio of two sums over instances with its interval; null when the second is 0.

    Instances of one cluster are drawn together.
    """
    if not numerators or sum(denominators) <= 0:
        return None
    return ratio_of_means(numerators, denominators, clusters=clusters, resamples=RESAMPLES)


def average(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval | None:
    """Mean over instances with its interval; null when there is none."""
    return share(values, [1.0] * len(values), clusters)


def ends(interval: Interval) -> tuple[float | None, float | None]:
    """Both ends of an interval; null where a single seed says nothing of the spread."""
    low, high = interval.low, interval.high
    return (low if math.isfinite(low) else None, high if math.isfinite(high) else None)


def certainty(interval: Interval, scale: float = 1.0, unit: str = "") -> str:
    """Write the interval as words in brackets; nothing when there is none."""
    low, high = ends(interval)
    if low is None or high is None:
        return "(one seed, no interval)"
    level = number(100 * interval.confidence)
    return f"({level} % interval {number(scale * low)} to {number(scale * high)}{unit})"


def in_points(difference: Interval) -> str:
    """Write a difference of shares in percentage points, with its direction and interval."""
    sign, side = (1, "more") if difference.estimate >= 0 else (-1, "less")
    turned = (
        difference
        if sign > 0
        else replace(
            difference,
            estimate=-difference.estimate,
            low=-difference.high,
            high=-difference.low,
        )
    )
    return f"{number(100 * turned.estimate)} percentage points {side} {certainty(turned, 100)}"


def excludes_zero(interval: Interval) -> bool:
    """Whether the interval says on which side of zero the value is."""
    low, high = ends(interval)
    return low is not None and high is not None and (low > 0 or high < 0)
