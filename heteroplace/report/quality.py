"""Figures about the plans: what stays unmet, what of the high tiers is wasted, how often."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from heteroplace.compare.record import Row
from heteroplace.compare.statistics import Interval
from heteroplace.report.charts import Axis, Mark, Panel, Series
from heteroplace.report.figure import Figure, Legend, certainty, ends, in_points, share
from heteroplace.report.study import MOST_GROUPS, Grouping, Pair, Study, grouped, steps, unmet_bound
from heteroplace.report.table import Table
from heteroplace.report.words import counted, percent

LEFT, RIGHT, BOUND, DIFFERENCE = 0, 1, 2, 3
DIMENSIONS = (
    ("load", "load: GPUs asked for / free GPUs", "load"),
    ("mixed_s1", "share of mixed S1 domains", "heterogeneity"),
    ("gpu_types", "GPU types in the fleet", "GPU types"),
    ("affinity", "affinity of the services", "affinity"),
    ("gpus", "GPUs in the fleet", "size"),
)
# Amount and total of one instance, null where it does not count.
Measure = Callable[[Row], tuple[float, float] | None]
# Amounts and totals inside one instance by the name of a class.
ByClass = Callable[[Row], dict[str, tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class _Line:
    """A series to be: of which side of a pair it tells."""

    name: str
    style: int
    side: Literal["left", "right", "bound", "difference", "to the bound"]


@dataclass(frozen=True, slots=True)
class _Point:
    """A series in a group."""

    line: _Line
    group: str
    place: int
    instances: int
    interval: Interval


@dataclass(frozen=True, slots=True)
class _Split:
    """One way to look at a measure: its groups, and the points of every line in them."""

    title: str
    label: str
    names: tuple[str, ...]
    points: tuple[_Point, ...]


def unmet(row: Row) -> tuple[float, float] | None:
    """Unmet and asked GPUs of an instance."""
    if row["unmet_gpus"] is None or not row["target_gpus"]:
        return None
    return float(row["unmet_gpus"]), float(row["target_gpus"])


def waste(row: Row) -> tuple[float, float] | None:
    """High-tier GPUs in the hands of services that do not need them, and all high-tier GPUs."""
    if row["high_tier_waste_gpus"] is None or not row["high_tier_gpus_total"]:
        return None
    return float(row["high_tier_waste_gpus"]), float(row["high_tier_gpus_total"])


def avoidable(row: Row) -> tuple[float, float] | None:
    """Of the waste, what was avoidable, and all high-tier GPUs."""
    if row["high_tier_avoidable_gpus"] is None or not row["high_tier_gpus_total"]:
        return None
    return float(row["high_tier_avoidable_gpus"]), float(row["high_tier_gpus_total"])


def measured(
    pairs: Iterable[Pair], measure: Measure, of: str
) -> tuple[list[float], list[float], list[Hashable]]:
    """Amounts, totals and clusters of one side of the pairs on which both sides have them."""
    amounts, totals, clusters = [], [], []
    for pair in pairs:
        left, right = measure(pair.left), measure(pair.right)
        if left is None or right is None:
            continue
        chosen = {"left": left[0], "right": right[0], "difference": left[0] - right[0]}[of]
        amounts.append(chosen)
        totals.append(left[1])
        clusters.append(pair.cluster)
    return amounts, totals, clusters


_BOUND_WORDS = (
    " The best bound is shown since not every plan is proven: no plan that does as well in the "
    "higher classes leaves less in a class."
)


def unmet_figure(study: Study) -> Figure:
    """What each side leaves unmet, by load, heterogeneity, affinity, priority and size."""
    lines = _lines(study, bound=True)
    splits = [
        _by_instance(title, grouping, lines, _alone(unmet), _unmet_bound)
        for title, grouping in _groupings(study.pairs, skip={"affinity"})
    ]
    for title, label, of, bounds in (
        ("priority", "priority class, most important first", _by_priority, _priority_bounds),
        ("affinity", "affinity that the services require", _by_affinity, None),
    ):
        splits.append(_by_class(study.pairs, title, label, lines, of, bounds))
    return Figure(
        name="unmet",
        title="What stays unmet",
        lead=_lead(study, study.pairs, unmet, "of the GPUs asked for", "leaves", "unmet"),
        reading=(
            "Unmet capacity in GPUs of each role's preferred shape, as a share of all GPUs asked "
            "for in the group; lower is better. The differences are paired: both profiles on the "
            "same instance, with 95 % intervals from resampling the seeds (bootstrap). Above "
            f"zero, {study.left} leaves more unmet. Classes of higher priority come first in the "
            "objective, so the optimum may leave more unmet in a lower class."
            + (_BOUND_WORDS if any(line.side == "bound" for line in lines) else "")
        ),
        panels=_panels(splits, "unmet", "unmet, % of the GPUs asked for"),
        legend=tuple(Legend(line.name, line.style) for line in _named(lines)),
        table=_table(splits),
    )


def waste_figure(study: Study) -> Figure:
    """What each side wastes of the high tiers."""
    lines = _lines(study, bound=False)
    having = [pair for pair in study.pairs if waste(pair.left) and waste(pair.right)]
    splits = [
        _by_instance(title, grouping, lines, _alone(waste), None)
        for title, grouping in (_groupings(having) if having else ())
    ]
    for unit, label in (
        ("priority", "priority class of the service, highest first"),
        ("affinity", "affinity that the service requires"),
    ):
        split = _by_class(having, unit, label, lines, _waste_by(unit), None)
        if split.points:
            splits = [each for each in splits if each.title != unit]
            splits.append(split)
    lead = "No fleet in these results has a high tier, so none can be wasted."
    if having:
        gives = ("of the high-tier GPUs", "gives", "to services that do not need them")
        lead = _lead(study, having, waste, *gives)
        alike_ = [pair for pair in having if pair.served_alike]
        if alike_ and not study.single and len(alike_) < len(having):
            lead += f" Where both serve the same ({counted(len(alike_), 'instance')}): "
            lead += _lead(study, alike_, waste, "", "gives", "to them")
    return Figure(
        name="waste",
        title="What is wasted of the high tiers",
        lead=lead,
        reading=(
            "High tier: GPUs in an S1 domain with several GPU types, the only place where prefill "
            "and decode on different types can be close. Wasted: such GPUs in the hands of "
            "services that could run elsewhere in a domain of the level they require, as a share "
            "of the fleet's high-tier GPUs. A plan that leaves less unmet may need more of them, "
            "so read this with the figure before: a fair look is at the instances on which both "
            "serve the same."
        ),
        panels=_panels(splits, "wasted", "wasted, % of the high-tier GPUs"),
        legend=tuple(Legend(line.name, line.style) for line in _named(lines)) if having else (),
        table=_table(splits),
    )


_CLASSES = ("less", "equal", "≤ 1 %", "≤ 3 %", "≤ 10 %", "> 10 %")
_ENDS = (0.01, 0.03, 0.1)


def difference_figure(study: Study) -> Figure:
    """How often the baseline does how much worse."""
    panels, rows = [], []
    for title, measure, of in (
        ("unmet", unmet, "of the GPUs asked for"),
        ("wasted", waste, "of the high-tier GPUs"),
    ):
        amounts, totals, _ = measured(study.pairs, measure, "difference")
        counts = [0] * len(_CLASSES)
        for amount, total in zip(amounts, totals, strict=True):
            counts[_class(amount / total)] += 1
        if not amounts:
            continue
        marks = tuple(
            Mark(
                place,
                count / len(amounts),
                note=f"{_CLASSES[place]}: {counted(count, 'instance')}, "
                f"{percent(count / len(amounts))}",
            )
            for place, count in enumerate(counts)
        )
        described = ", ".join(mark.note for mark in marks)
        panels.append(
            Panel(
                title=f"More {title} with {study.left}",
                description=f"Share of the instances by how much more is {title}: {described}.",
                kind="bars",
                x=Axis(f"more {title}, {of}", names=_CLASSES),
                y=Axis("share of the instances", percent=True, least=0.0),
                series=(Series(study.left, LEFT, marks),),
            )
        )
        rows += [
            (title, name, count, count / len(amounts))
            for name, count in zip(_CLASSES, counts, strict=True)
        ]
    return Figure(
        name="differences",
        title=f"How often {study.left} does worse, and by how much",
        lead=_difference_lead(study),
        reading=(
            f"Every instance is solved by both; a bar counts those on which {study.left} exceeds "
            f"{study.right} by so much. Less: {study.left} is below, which the order of the "
            "objective allows in a lower class or where a higher one is served better."
        ),
        panels=tuple(panels),
        legend=(),
        table=Table(("measure", "more than " + study.right, "instances", "share"), tuple(rows)),
    )


def _class(share_more: float) -> int:
    if abs(share_more) < 1e-9:
        return 1
    if share_more < 0:
        return 0
    return 2 + sum(share_more > end + 1e-12 for end in _ENDS)


def _difference_lead(study: Study) -> str:
    amounts, totals, _ = measured(study.pairs, unmet, "difference")
    more = sum(amount / total > 1e-9 for amount, total in zip(amounts, totals, strict=True))
    worst = max((a / t for a, t in zip(amounts, totals, strict=True)), default=0.0)
    if not more:
        return f"On no instance does {study.left} leave more unmet than {study.right}."
    return (
        f"On {percent(more / len(amounts))} of the instances {study.left} leaves more unmet than "
        f"{study.right}; at worst {percent(worst)} of the GPUs asked for."
    )


# --------------------------------------------------------------------------------------------
# Series by group
# --------------------------------------------------------------------------------------------

_CLASSES_OF = {"priority": "priorities", "affinity": "affinities"}
_COLUMNS = ("by", "group", "series", "instances", "share (0 to 1)", "95 % from", "95 % to")


def _lines(study: Study, *, bound: bool) -> list[_Line]:
    right = f"{study.right}, proven optimum" if study.all_proven else study.right
    bound = bound and not study.all_proven and study.bounded
    lines = [_Line(right, RIGHT, "right")]
    if bound:
        lines.append(_Line("best bound", BOUND, "bound"))
    if not study.single:
        lines.insert(0, _Line(study.left, LEFT, "left"))
        lines.append(_Line(f"{study.left} − {study.right}", DIFFERENCE, "difference"))
        if bound:
            lines.append(_Line(f"{study.left} − best bound", BOUND, "to the bound"))
    return lines


def _named(lines: Iterable[_Line]) -> list[_Line]:
    """The lines of the legend; a difference to the bound looks like the bound."""
    return [line for line in lines if line.side != "to the bound"]


def _alone(measure: Measure) -> ByClass:
    def of(row: Row) -> dict[str, tuple[float, float]]:
        found = measure(row)
        return {} if found is None else {"": found}

    return of


def _unmet_bound(row: Row) -> dict[str, tuple[float, float]]:
    bound, found = unmet_bound(row), unmet(row)
    return {} if bound is None or found is None else {"": (bound, found[1])}


def _by_priority(row: Row) -> dict[str, tuple[float, float]]:
    return _listed(row, "priority")


def _by_affinity(row: Row) -> dict[str, tuple[float, float]]:
    return _listed(row, "affinity")


def _listed(row: Row, unit: str) -> dict[str, tuple[float, float]]:
    columns = (_CLASSES_OF[unit], f"unmet_gpus_by_{unit}", f"target_gpus_by_{unit}")
    return {
        str(name): (float(amount), float(total))
        for name, amount, total in zip(*(row[column] or () for column in columns), strict=True)
        if amount is not None and total
    }


def _waste_by(unit: str) -> ByClass:
    def of(row: Row) -> dict[str, tuple[float, float]]:
        names, amounts = row[_CLASSES_OF[unit]], row[f"high_tier_waste_gpus_by_{unit}"]
        total = row["high_tier_gpus_total"]
        if not (names and amounts and total):  # Tables of earlier versions lack the column.
            return {}
        return {
            str(name): (float(amount), float(total))
            for name, amount in zip(names, amounts, strict=True)
        }

    return of


def _priority_bounds(row: Row) -> dict[str, tuple[float, float]]:
    asked = _by_priority(row)
    found = {}
    for step in steps(row):
        name = step.name.removeprefix("unmet[").removesuffix("]")
        if step.bound is not None and step.name.startswith("unmet[") and name in asked:
            found[name] = (step.bound, asked[name][1])
    return found


def _told(
    line: _Line, pair: Pair, of: ByClass, bounds: ByClass | None
) -> dict[str, tuple[float, float]]:
    """What a line says of a pair, by class; only of classes that both sides know."""
    left, right = of(pair.left), of(pair.right)
    least = bounds(pair.right) if bounds is not None else {}
    both = [name for name in left if name in right]
    if line.side == "left":
        return {name: left[name] for name in both}
    if line.side == "right":
        return {name: right[name] for name in both}
    if line.side == "bound":
        return {name: least[name] for name in both if name in least}
    other = right if line.side == "difference" else least
    return {name: (left[name][0] - other[name][0], left[name][1]) for name in both if name in other}


def _groupings(pairs: Sequence[Pair], skip: Iterable[str] = ()) -> list[tuple[str, Grouping]]:
    """The dimensions that vary; load alone when none does."""
    found = [
        (title, grouped(pairs, column, label))
        for column, label, title in DIMENSIONS
        if title not in skip
    ]
    return [each for each in found if each[1].varies] or found[:1]


def _by_instance(
    title: str, grouping: Grouping, lines: Iterable[_Line], of: ByClass, bounds: ByClass | None
) -> _Split:
    points: list[_Point] = []
    for line in lines:
        for place, (name, members) in enumerate(zip(grouping.names, grouping.members, strict=True)):
            told = [(_told(line, pair, of, bounds), pair.cluster) for pair in members]
            found = [(*each[""], cluster) for each, cluster in told if each]
            _append(points, line, name, place, found)
    return _Split(title, grouping.label, grouping.names, tuple(points))


def _by_class(
    pairs: Iterable[Pair],
    title: str,
    label: str,
    lines: Sequence[_Line],
    of: ByClass,
    bounds: ByClass | None,
) -> _Split:
    """Points by class of the services inside each instance."""
    found: dict[str, dict[_Line, list[tuple[float, float, Hashable]]]] = {}
    for pair in pairs:
        for line in lines:
            for name, value in _told(line, pair, of, bounds).items():
                found.setdefault(name, {}).setdefault(line, []).append((*value, pair.cluster))
    names = tuple(sorted(found, key=_rank))[:MOST_GROUPS]
    points: list[_Point] = []
    for line in lines:
        for place, name in enumerate(names):
            _append(points, line, name, place, found[name].get(line, []))
    return _Split(title, label, names, tuple(points))


def _append(
    points: list[_Point],
    line: _Line,
    group: str,
    place: int,
    found: Sequence[tuple[float, float, Hashable]],
) -> None:
    interval = share(
        [amount for amount, _, _ in found],
        [total for _, total, _ in found],
        [cluster for _, _, cluster in found],
    )
    if interval is not None:
        points.append(_Point(line, group, place, len(found), interval))


_AFFINITY_ORDER = ("none", "s2", "s2+s1", "s1")


def _rank(name: str) -> tuple[float, str]:
    """Priorities from high to low, affinities from wide to narrow."""
    if name in _AFFINITY_ORDER:
        return _AFFINITY_ORDER.index(name), name
    try:
        return -float(name), name
    except ValueError:
        return len(_AFFINITY_ORDER), name


def _panels(splits: Iterable[_Split], word: str, unit: str) -> tuple[Panel, ...]:
    """Two charts for each way to look: both sides, and their paired difference."""
    panels = []
    for split in splits:
        sides = [point for point in split.points if point.line.side in ("left", "right", "bound")]
        differences = [point for point in split.points if point not in sides]
        if sides:
            title = f"{word.capitalize()} by {split.title}"
            alone = not differences
            panels.append(_panel(title, split, sides, unit, intervals=alone))
        if differences:
            more = "difference, % points, with 95 % interval"
            panels.append(_panel(f"Difference by {split.title}", split, differences, more))
    return tuple(panels)


def _panel(
    title: str, split: _Split, points: Sequence[_Point], unit: str, intervals: bool = True
) -> Panel:
    series = []
    for line in dict.fromkeys(point.line for point in points):
        marks = tuple(
            Mark(
                point.place,
                point.interval.estimate,
                *(ends(point.interval) if intervals else (None, None)),
                note=_note(point),
            )
            for point in points
            if point.line is line
        )
        series.append(Series(line.name, line.style, marks))
    described = "; ".join(
        f"{each.name}: "
        + ", ".join(f"{split.names[round(mark.x)]} {percent(mark.y)}" for mark in each.marks)
        for each in series
    )
    return Panel(
        title=title,
        description=f"{unit}, by {split.label}. {described}.",
        kind="dots",
        x=Axis(split.label, names=split.names),
        y=Axis(unit, percent=True, zero=True),
        series=tuple(series),
    )


def _note(point: _Point) -> str:
    return (
        f"{point.line.name}, {point.group}: {percent(point.interval.estimate)} "
        f"{certainty(point.interval, 100, ' %')}, {counted(point.instances, 'instance')}"
    )


def _table(splits: Iterable[_Split]) -> Table:
    return Table(
        _COLUMNS,
        tuple(
            (
                split.title,
                point.group,
                point.line.name,
                point.instances,
                point.interval.estimate,
                *ends(point.interval),
            )
            for split in splits
            for point in split.points
        ),
    )


def _lead(
    study: Study, pairs: Sequence[Pair], measure: Measure, of: str, verb: str, what: str
) -> str:
    right = share(*measured(pairs, measure, "right"))
    left = share(*measured(pairs, measure, "left"))
    difference = share(*measured(pairs, measure, "difference"))
    if left is None or right is None or difference is None:
        return f"No instance has a number for this {of}."
    of = f" {of}" if of else ""
    if study.single:
        return f"{study.right} {verb} {percent(right.estimate)}{of} {what}."
    other = f"the optimum ({study.right})" if study.all_proven else study.right
    return (
        f"{study.left} {verb} {percent(left.estimate)}{of} {what}, {other} "
        f"{percent(right.estimate)}: {in_points(difference)}."
    )
