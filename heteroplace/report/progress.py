"""Figures about the way to the optimum: gap profiles, and quality against the time given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from heteroplace.compare.record import Row, cluster
from heteroplace.compare.statistics import (
    Interval,
    PerformanceProfile,
    gap_profile,
    performance_profiles,
)
from heteroplace.report.charts import STYLES, Axis, Mark, Panel, Series
from heteroplace.report.figure import Figure, Legend, average, ends, share
from heteroplace.report.study import Step, Study, alike, steps
from heteroplace.report.table import Cell, Table
from heteroplace.report.words import counted, listed, number, percent, seconds

MOST_POINTS = 160
LARGEST_RATIO = 1e6


def gap_figure(study: Study) -> Figure:
    """Performance profiles in the style of Dolan and Moré: distance to the optimum, and time."""
    profiles = study.profiles[:STYLES]
    styles = styles_of(study)
    by_instance = _by_instance(study, profiles)
    best = [_best(rows.values()) for rows in by_instance]
    first = {name: _profile(by_instance, best, name, _first_gap) for name in profiles}
    cost = {name: _profile(by_instance, best, name, _cost_gap) for name in profiles}
    times = performance_profiles(
        {name: [_seconds(rows.get(name)) for rows in by_instance] for name in profiles}
    )
    panels = (
        _gap_panel(
            "Unmet: distance in the first class that differs",
            "distance, % of the GPUs asked for",
            first,
            styles,
        ),
        _gap_panel("Cost: distance where nothing more is unmet", "distance, %", cost, styles),
        _time_panel(times, styles),
    )
    rows = [
        row
        for title, curves in (("unmet", first), ("cost", cost), ("seconds", times))
        for row in _curve_rows(title, curves)
    ]
    unproven = sum(not _proven(row) for row in best)
    basis = (
        f"On {counted(unproven, 'instance')} not every step is proven; there the distance is to "
        "the best bound, so the true one may be smaller."
        if unproven
        else "Every distance is to a proven optimum."
    )
    return Figure(
        name="gaps",
        title="How far from the optimum",
        lead=" ".join([*_gap_leads(first, cost), basis]),
        reading=(
            "Performance profiles in the style of Dolan and Moré: a curve shows on which share of "
            "all instances a profile is at most so far from the best; higher and further left is "
            "better. The unmet panel takes the most important priority class in which a plan "
            "differs from the best plan. The cost panel counts a plan only where it equals the "
            "best one in everything before cost, so its curve may end below 100 %. The time panel "
            "shows how many times as long as the fastest profile. A plan that breaks a constraint, "
            "and a solve that failed, never count."
        ),
        panels=panels,
        legend=tuple(Legend(name, styles[name], "curve") for name in profiles),
        table=Table(("measure", "profile", "at most", "share of the instances"), tuple(rows)),
    )


def styles_of(study: Study) -> dict[str, int]:
    """Colours by profile: the baseline and the one it is held against keep theirs everywhere."""
    styles = {study.left: 0, study.right: 1}
    for name in study.profiles:
        styles.setdefault(name, len(set(styles)) if not study.single else len(styles) + 1)
    return styles


def _by_instance(study: Study, profiles: Sequence[str]) -> list[dict[str, Row]]:
    """Rows of every instance that some profile solved; what failed is missing."""
    found: dict[str, dict[str, Row]] = {}
    for row in study.rows:
        rows = found.setdefault(str(row["instance"]), {})
        if row["error"] is None and row["profile"] in profiles:
            rows[str(row["profile"])] = row
    return [rows for rows in found.values() if rows]


def _best(rows: Iterable[Row]) -> Row:
    """The best valid plan known: least in the order of the objective; proofs break ties."""
    valid = [row for row in rows if row["plan_valid"] is not False] or list(rows)
    best = valid[0]
    for row in valid[1:]:
        side = compared(steps(row), steps(best))
        if side < 0 or (side == 0 and _proven(row) and not _proven(best)):
            best = row
    return best


def _proven(row: Row) -> bool:
    return bool(row["status"] == "optimal")


def compared(first: Sequence[Step], second: Sequence[Step]) -> int:
    """Below 0 when the first is better in the order of the objective, 0 when they are equal."""
    for one, other in zip(first, second, strict=False):
        if not alike(one.value, other.value):
            return -1 if one.value < other.value else 1
    return 0


def _profile(
    instances: Sequence[dict[str, Row]],
    best: Sequence[Row],
    name: str,
    gap: Callable[[Row, Row], float | None],
) -> PerformanceProfile:
    return gap_profile(
        [
            gap(rows[name], reference) if name in rows else None
            for rows, reference in zip(instances, best, strict=True)
        ]
    )


def _first_gap(row: Row, best: Row) -> float | None:
    """Distance at the first step about capacity that differs or is not proven; null: invalid."""
    if row["plan_valid"] is False:
        return None
    target = float(row["target_gpus"] or 0.0)
    for mine, its in zip(steps(row), steps(best), strict=False):
        if not its.name.startswith(("minimum", "unmet")):
            break
        least = its.value if its.proven or its.bound is None else min(its.bound, its.value)
        if not alike(mine.value, least):
            return max(0.0, mine.value - least) / target if target else None
    return 0.0


def _cost_gap(row: Row, best: Row) -> float | None:
    """Distance of the cost where everything before it is equal; null where it is not."""
    if row["plan_valid"] is False:
        return None
    for mine, its in zip(steps(row), steps(best), strict=False):
        if its.name == "cost":
            least = its.value if its.proven or its.bound is None else min(its.bound, its.value)
            if alike(mine.value, least):
                return 0.0
            return max(0.0, mine.value - least) / least if least > 0 else None
        if not alike(mine.value, its.value):
            return None
    return None


def _seconds(row: Row | None) -> float | None:
    if row is None or row["seconds_total"] is None or row["plan_valid"] is False:
        return None
    return max(float(row["seconds_total"]), 1e-6)


def _gap_leads(
    first: dict[str, PerformanceProfile], cost: dict[str, PerformanceProfile]
) -> list[str]:
    served = [f"{name} on {percent(curve.at(1 + 1e-9))}" for name, curve in first.items()]
    close = [f"{name} on {percent(curve.at(1.01 + 1e-9))}" for name, curve in cost.items()]
    return [
        f"At the optimum in all that is unmet: {listed(served)} of the instances;",
        f"there also within 1 % in cost: {listed(close)}.",
    ]


def _gap_panel(
    title: str, label: str, curves: dict[str, PerformanceProfile], styles: dict[str, int]
) -> Panel:
    finite = [curve.ratios[np.isfinite(curve.ratios)] for curve in curves.values()]
    most = max((float(ratios[-1]) - 1 for ratios in finite if len(ratios)), default=0.0)
    most = 100 * max(most, 0.01)
    series = []
    for name, curve in curves.items():
        points = [(100 * (ratio - 1), up) for ratio, up in _points(curve) if ratio > 1 + 1e-9]
        series.append(_steps(name, styles[name], [(0.0, curve.at(1 + 1e-9)), *points], most, " %"))
    return _steps_panel(title, Axis(label, least=0.0, most=most), series, "%")


def _time_panel(curves: dict[str, PerformanceProfile], styles: dict[str, int]) -> Panel:
    finite = [curve.ratios[np.isfinite(curve.ratios)] for curve in curves.values()]
    most = max((float(ratios[-1]) for ratios in finite if len(ratios)), default=2.0)
    most = min(LARGEST_RATIO, max(2.0, most))
    series = [
        _steps(
            name,
            styles[name],
            [(1.0, curve.at(1 + 1e-9)), *(each for each in _points(curve) if each[0] > 1 + 1e-9)],
            most,
            " times",
        )
        for name, curve in curves.items()
    ]
    return _steps_panel(
        "Time: factor over the fastest",
        Axis("times the fastest profile", log=True, least=1.0, most=most),
        series,
        "times",
    )


def _steps_panel(title: str, x: Axis, series: Sequence[Series], unit: str) -> Panel:
    described = "; ".join(
        f"{each.name} from {percent(each.marks[0].y)} to {percent(each.marks[-1].y)}"
        for each in series
    )
    return Panel(
        title=title,
        description=f"Share of the instances within a distance, in {unit}: {described}.",
        kind="steps",
        x=x,
        y=Axis("share of the instances", percent=True, least=0.0, most=1.0),
        series=tuple(series),
    )


def _points(curve: PerformanceProfile) -> list[tuple[float, float]]:
    """Steps of a curve, thinned to what a chart can show."""
    finite = np.isfinite(curve.ratios)
    ratios, shares = curve.ratios[finite], curve.shares[finite]
    if len(ratios) > MOST_POINTS:
        chosen = np.unique(np.linspace(0, len(ratios) - 1, MOST_POINTS).round().astype(int))
        ratios, shares = ratios[chosen], shares[chosen]
    return [(float(ratio), float(up)) for ratio, up in zip(ratios, shares, strict=True)]


def _steps(
    name: str, style: int, points: Sequence[tuple[float, float]], most: float, unit: str
) -> Series:
    kept = [(at, up) for at, up in points if at <= most]
    kept.append((most, kept[-1][1]))
    marks = tuple(
        Mark(at, up, note=f"{name}: {percent(up)} within {number(at)}{unit}") for at, up in kept
    )
    return Series(name, style, marks)


def _curve_rows(title: str, curves: dict[str, PerformanceProfile]) -> list[tuple[Cell, ...]]:
    return [
        (title, name, ratio if title == "seconds" else ratio - 1, up)
        for name, curve in curves.items()
        for ratio, up in _points(curve)
    ]


# --------------------------------------------------------------------------------------------
# Anytime
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Moment:
    """All solves of one profile under one deadline."""

    profile: str
    deadline: float
    instances: int
    unmet: Interval | None
    at_best: Interval | None
    proven: Interval | None


def anytime_figure(study: Study) -> Figure | None:
    """Quality against the time given; null when no curve was recorded."""
    recorded = [
        row for row in study.rows if row["error"] is None and row["anytime_deadlines"] is not None
    ]
    if not recorded:
        return None
    best = {
        str(next(iter(rows.values()))["instance"]): _best(rows.values())
        for rows in _by_instance(study, study.profiles)
    }
    moments = [
        _moment(name, deadline, rows, best)
        for name in study.profiles[:STYLES]
        for deadline, rows in _by_deadline(recorded, name).items()
    ]
    styles = styles_of(study)
    names = list(dict.fromkeys(moment.profile for moment in moments))
    panels = tuple(
        _anytime_panel(title, label, moments, styles, of)
        for title, label, of in (
            ("Unmet", "unmet, % of asked", lambda moment: moment.unmet),
            ("At the best known plan", "share of the instances", lambda moment: moment.at_best),
            ("Proven in every step", "share of the instances", lambda moment: moment.proven),
        )
    )
    rows = [
        (
            moment.profile,
            moment.deadline,
            moment.instances,
            *(
                value
                for interval in (moment.unmet, moment.at_best, moment.proven)
                for value in ((interval.estimate, *ends(interval)) if interval else (None,) * 3)
            ),
        )
        for moment in moments
    ]
    columns = [
        f"{what}{suffix}"
        for what in ("unmet share", "at the best known", "proven")
        for suffix in ("", ", 95 % from", ", 95 % to")
    ]
    return Figure(
        name="anytime",
        title="What more time buys",
        lead=_anytime_lead(moments),
        reading=(
            "Each instance is solved from scratch under each time limit. Best known: the best plan "
            "of any profile on that instance. Bands are 95 % intervals (bootstrap)."
        ),
        panels=panels,
        legend=tuple(Legend(name, styles[name], "curve") for name in names),
        table=Table(("profile", "time limit, s", "instances", *columns), tuple(rows)),
    )


def _by_deadline(rows: Iterable[Row], profile: str) -> dict[float, list[tuple[Row, int]]]:
    found: dict[float, list[tuple[Row, int]]] = {}
    for row in rows:
        if row["profile"] == profile:
            for place, deadline in enumerate(row["anytime_deadlines"]):
                found.setdefault(float(deadline), []).append((row, place))
    return dict(sorted(found.items()))


def _moment(
    profile: str, deadline: float, rows: Sequence[tuple[Row, int]], best: dict[str, Row]
) -> _Moment:
    amounts, totals, asking = [], [], []
    at_best, proven, clusters = [], [], []
    for row, place in rows:
        names = row["step_names"] or ()
        values = (row["anytime_values"] or [])[place : place + 1]
        bounds = (row["anytime_bounds"] or [])[place : place + 1]
        if not values or values[0] is None or len(values[0]) != len(names) or None in values[0]:
            continue
        if row["target_gpus"]:
            amounts.append(
                sum(v for n, v in zip(names, values[0], strict=True) if n.startswith("unmet"))
            )
            totals.append(float(row["target_gpus"]))
            asking.append(cluster(row))
        reference = steps(best[str(row["instance"])])
        equal = all(alike(v, step.value) for v, step in zip(values[0], reference, strict=False))
        at_best.append(float(equal))
        known = bounds[0] if bounds and bounds[0] is not None else [None] * len(names)
        closed = all(b is not None and alike(v, b) for v, b in zip(values[0], known, strict=False))
        proven.append(float(closed))
        clusters.append(cluster(row))
    return _Moment(
        profile,
        deadline,
        len(at_best),
        share(amounts, totals, asking),
        average(at_best, clusters),
        average(proven, clusters),
    )


def _anytime_panel(
    title: str,
    label: str,
    moments: Sequence[_Moment],
    styles: dict[str, int],
    of: Callable[[_Moment], Interval | None],
) -> Panel:
    series = []
    for name in dict.fromkeys(moment.profile for moment in moments):
        marks = []
        for moment in moments:
            interval = of(moment) if moment.profile == name else None
            if interval is not None:
                note = f"{name}, {number(moment.deadline)} s: {percent(interval.estimate)}"
                marks.append(Mark(moment.deadline, interval.estimate, *ends(interval), note=note))
        series.append(Series(name, styles[name], tuple(marks)))
    described = "; ".join(
        f"{each.name} from {percent(each.marks[0].y)} at {number(each.marks[0].x)} s to "
        f"{percent(each.marks[-1].y)} at {number(each.marks[-1].x)} s"
        for each in series
        if each.marks
    )
    whole = 1.0 if label.startswith("share") else None
    return Panel(
        title=title,
        description=f"{label} against the time limit: {described}.",
        kind="lines",
        x=Axis("time limit, seconds", log=True),
        y=Axis(label, percent=True, least=0.0, most=whole),
        series=tuple(series),
    )


def _anytime_lead(moments: Sequence[_Moment]) -> str:
    parts = []
    for name in dict.fromkeys(moment.profile for moment in moments):
        mine = [each for each in moments if each.profile == name and each.at_best is not None]
        for each in mine[:1] + mine[1:][-1:]:
            if each.at_best is not None:
                reached = percent(each.at_best.estimate)
                parts.append(f"{name} on {reached} within {seconds(each.deadline)}")
    if not parts:
        return "No curve holds a value."
    return f"The best known plan is reached by {listed(parts, 8)} of the instances."
