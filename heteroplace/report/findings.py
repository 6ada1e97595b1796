"""The headline findings: sentences made from the numbers, each with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from heteroplace.compare.statistics import Interval, lexicographic_counts
from heteroplace.report.figure import average, certainty, ends, excludes_zero, in_points, share
from heteroplace.report.quality import Measure, avoidable, measured, unmet, waste
from heteroplace.report.study import MOST_GROUPS, Pair, Study, grouped, steps, unmet_bound
from heteroplace.report.words import counted, listed, number, percent, seconds

Values = dict[str, float | int | str | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence and the numbers in it.

    Parameters
    ----------
    name
        What it is about.
    text
        One or two sentences.
    values
        The numbers, by name; shares are fractions of 1.
    """

    name: str
    text: str
    values: Values


def findings(study: Study) -> list[Finding]:
    """What the numbers say, most important first."""
    makers: tuple[Callable[[Study], Iterator[Finding]], ...] = (
        _unmet,
        _priority,
        _order,
        _where,
        _waste,
        _cost,
        _proofs,
        _time,
        _failures,
    )
    return [each for maker in makers for each in maker(study)]


def headline(study: Study, found: Sequence[Finding]) -> list[tuple[str, str]]:
    """The few numbers to see first, each with what it is."""
    by_name = {each.name: each.values for each in found}
    shown: list[tuple[str, str]] = []
    unmet_, order, taken = (by_name.get(name, {}) for name in ("unmet", "order", "time"))
    names = [study.right] if study.single else [study.left, study.right]
    sides = " → ".join(names)
    if unmet_:
        values = [unmet_["right"]] if study.single else [unmet_["left"], unmet_["right"]]
        shares = " → ".join(percent(float(value)) for value in values if value is not None)
        shown.append((shares, f"of the GPUs asked for stay unmet ({sides})"))
    if order:
        counts = [int(order[name] or 0) for name in ("worse", "equal", "better")]
        total = f"{counts[0]:,} of {sum(counts):,}"
        shown.append((total, f"instances on which {study.left} is worse than {study.right}"))
    shown.append(
        (f"{study.proven:,} of {len(study.pairs):,}", f"plans of {study.right} are proven best")
    )
    medians = [taken.get(name) for name in names]
    if all(isinstance(each, float) for each in medians):
        times = " → ".join(seconds(float(each or 0.0)) for each in medians)
        shown.append((times, f"median time of a solve ({sides})"))
    return shown


def basis(study: Study) -> str:
    """What the comparison is against, in a sentence."""
    total = counted(len(study.pairs), "instance")
    if study.single:
        known = (
            "its own best bound: no plan that does as well in the steps before can beat it"
            if study.bounded
            else "nothing, since it proves no bound"
        )
        return f"There is one profile, {study.right}. On {total} it is held against {known}."
    if study.all_proven:
        return (
            f"{study.left} is held against the proven optimum, which {study.right} found on all of "
            f"the {total}."
        )
    if study.proven:
        return (
            f"{study.left} is held against {study.right}, whose plan is the proven optimum on "
            f"{study.proven:,} of {total} ({percent(study.proven / len(study.pairs))}). On the "
            "others the optimum may be better still, in the order of the objective; the figures "
            "show the best bound."
        )
    if study.bounded:
        return (
            f"Nothing is proven. {study.left} is held against {study.right} and against the best "
            f"bound on {total}: the optimum is at least as good as the one and no better than the "
            "other, in the order of the objective."
        )
    return (
        f"Nothing is proven and no bound is known: {study.left} is held against the plans of "
        f"{study.right} on {total}, not against the optimum."
    )


def _interval(name: str, interval: Interval) -> Values:
    low, high = ends(interval)
    return {name: interval.estimate, f"{name}_low": low, f"{name}_high": high}


def _shares(
    study: Study, pairs: tuple[Pair, ...], measure: Measure
) -> tuple[Interval, Interval, Interval] | None:
    left, right, more = (
        share(*measured(pairs, measure, of)) for of in ("left", "right", "difference")
    )
    return None if left is None or right is None or more is None else (left, right, more)


def _right(study: Study) -> str:
    return f"the optimum ({study.right})" if study.all_proven else study.right


_LESS = (
    " Less in all classes together is not better: the objective serves the classes one after the "
    "other; the finding by class says which gains and which loses."
)


def _unmet(study: Study) -> Iterator[Finding]:
    found = _shares(study, study.pairs, unmet)
    if found is None:
        return
    left, right, more = found
    amounts, _, clusters = measured(study.pairs, unmet, "difference")
    per_instance = average(amounts, clusters)
    bound = _bound(study)
    beyond = (
        ""
        if bound is None
        else (f" No plan that serves the higher classes as well leaves less than {percent(bound)}.")
    )
    values: Values = {
        **_interval("left", left),
        **_interval("right", right),
        **_interval("difference", more),
        "bound": bound,
        "instances": more.observations,
    }
    if study.single:
        text = (
            f"{study.right} leaves {percent(right.estimate)} of the GPUs asked for unmet "
            f"{certainty(right, 100, ' %')}.{beyond}"
        )
        yield Finding("unmet", text, values)
        return
    gpus = f"; {number(per_instance.estimate)} GPUs per instance" if per_instance else ""
    if not any(amounts):
        text = (
            f"{study.left} leaves as much unmet as {_right(study)} on every instance: "
            f"{percent(left.estimate)} of the GPUs asked for.{beyond}"
        )
    else:
        text = (
            f"{study.left} leaves {percent(left.estimate)} of the GPUs asked for unmet, "
            f"{_right(study)} {percent(right.estimate)}: {in_points(more)}"
            f"{gpus}{_doubt(more)}.{beyond}" + (_LESS if more.estimate < 0 else "")
        )
    yield Finding("unmet", text, values)
    proven = tuple(pair for pair in study.pairs if pair.proven)
    if proven and not study.all_proven:
        some = _shares(study, proven, unmet)
        if some is not None:
            yield Finding(
                "unmet_where_proven",
                f"On the {counted(len(proven), 'instance')} with a proven optimum alone, "
                f"{study.left} leaves {percent(some[0].estimate)} unmet and the optimum "
                f"{percent(some[1].estimate)}: {in_points(some[2])}. These are the easier ones.",
                {**_interval("difference", some[2]), "instances": len(proven)},
            )


def _doubt(interval: Interval) -> str:
    if excludes_zero(interval) or not np.isfinite(interval.low):
        return ""
    return ", which these data cannot tell from zero"


def _bound(study: Study) -> float | None:
    if study.all_proven or not study.bounded:
        return None
    totals = [float(pair.right["target_gpus"] or 0.0) for pair in study.pairs]
    bounds = [unmet_bound(pair.right) or 0.0 for pair in study.pairs]
    return sum(bounds) / sum(totals) if sum(totals) else None


def _where(study: Study) -> Iterator[Finding]:
    if study.single:
        return
    for column, what in (("load", "load"), ("mixed_s1", "share of mixed S1 domains")):
        grouping = grouped(study.pairs, column, what)
        parts = [
            (name, share(*measured(members, unmet, "difference")), len(members))
            for name, members in zip(grouping.names, grouping.members, strict=True)
        ]
        known = [(name, each, size) for name, each, size in parts if each is not None]
        if len(known) < 2 or not any(each.estimate > 0 for _, each, _ in known):
            continue
        most = max(known, key=lambda part: part[1].estimate)
        least = min(known, key=lambda part: part[1].estimate)
        yield Finding(
            f"unmet_by_{column}",
            f"By {what}, the difference is largest at {most[0]}: "
            f"{number(100 * most[1].estimate)} percentage points {certainty(most[1], 100)} on "
            f"{counted(most[2], 'instance')}; smallest at {least[0]}: "
            f"{number(100 * least[1].estimate)}.",
            {"most_at": most[0], **_interval("difference", most[1]), "least_at": least[0]},
        )


def _priority(study: Study) -> Iterator[Finding]:
    if study.single:
        return
    more: list[float] = []
    asked_for: list[float] = []
    clusters: list[Hashable] = []
    classes: dict[int, tuple[float, float]] = {}
    for pair in study.pairs:
        mine, its = (row["unmet_gpus_by_priority"] or [] for row in (pair.left, pair.right))
        asked, levels = pair.left["target_gpus_by_priority"] or [], pair.left["priorities"] or []
        if len(levels) < 2:
            continue
        more.append(mine[0] - its[0])
        asked_for.append(asked[0])
        clusters.append(pair.cluster)
        for place, level in enumerate(levels):
            amount, total = classes.get(level, (0.0, 0.0))
            classes[level] = amount + mine[place] - its[place], total + asked[place]
    first = share(more, asked_for, clusters)
    if first is None:
        return
    if any(more):
        text = (
            f"In the most important priority class of each instance {study.left} leaves "
            f"{in_points(first)} unmet than {_right(study)}{_doubt(first)}."
        )
    else:
        text = (
            f"In the most important priority class of each instance {study.left} leaves exactly as "
            f"much unmet as {_right(study)}."
        )
    values = _interval("difference", first)
    parts = []
    for level, (amount, total) in sorted(classes.items(), reverse=True)[:MOST_GROUPS]:
        if total:
            values[f"difference_in_class_{level}"] = difference = amount / total
            parts.append(f"{number(100 * difference)} in class {level}")
    text += f" By class, in points: {listed(parts, MOST_GROUPS)}."
    yield Finding("unmet_by_priority", text, values)


def _order(study: Study) -> Iterator[Finding]:
    if study.single:
        return
    pairs = study.pairs
    counts = lexicographic_counts(
        [[step.value for step in steps(pair.left)] for pair in pairs],
        [[step.value for step in steps(pair.right)] for pair in pairs],
    )
    yield Finding(
        "order",
        f"In the order of the objective (unmet by priority, then repair, then cost) {study.left} "
        f"is worse than {_right(study)} on {counted(counts.losses, 'instance')}, equal on "
        f"{counts.ties:,} and better on {counts.wins:,}.",
        {"worse": counts.losses, "equal": counts.ties, "better": counts.wins},
    )


def _waste(study: Study) -> Iterator[Finding]:
    found = _shares(study, study.pairs, waste)
    if found is None:
        return
    left, right, more = found
    if study.single:
        text = (
            f"{study.right} gives {percent(right.estimate)} of the high-tier GPUs to services that "
            "do not need them."
        )
    else:
        spared = _shares(study, study.pairs, avoidable)
        room = (
            ""
            if spared is None
            else f" Room for it elsewhere was left for {percent(spared[0].estimate)} of the "
            f"high-tier GPUs by {study.left}, for {percent(spared[1].estimate)} by {study.right}."
        )
        text = (
            f"Of the high-tier GPUs {study.left} gives {percent(left.estimate)} to services that "
            f"do not need them, {_right(study)} {percent(right.estimate)}: "
            f"{in_points(more)}"
            f"{_doubt(more)}.{room}"
        )
    values = {**_interval("left", left), **_interval("right", right)}
    yield Finding("waste", text, {**values, **_interval("difference", more)})
    alike = tuple(pair for pair in study.pairs if pair.served_alike)
    fair = None if study.single else _shares(study, alike, waste)
    if fair is not None and len(alike) < len(study.pairs):
        on = f"On the {counted(len(alike), 'instance')} where both leave the same unmet, "
        if any(measured(alike, waste, "difference")[0]):
            on += (
                f"{study.left} wastes {percent(fair[0].estimate)} of the high-tier GPUs and "
                f"{_right(study)} {percent(fair[1].estimate)}: {in_points(fair[2])}"
                f"{_doubt(fair[2])}."
            )
        else:
            on += f"both waste the same: {percent(fair[0].estimate)} of the high-tier GPUs."
        values = {**_interval("difference", fair[2]), "instances": len(alike)}
        yield Finding("waste_where_served_alike", on, values)


def _cost(study: Study) -> Iterator[Finding]:
    if study.single:
        return
    equal = [
        pair
        for pair in study.pairs
        if pair.served_alike and None not in (pair.left["cost"], pair.right["cost"])
    ]
    more = share(
        [float(pair.left["cost"] - pair.right["cost"]) for pair in equal],
        [float(pair.right["cost"]) for pair in equal],
        [pair.cluster for pair in equal],
    )
    if more is None:
        return
    yield Finding(
        "cost",
        f"On the {counted(len(equal), 'instance')} where {study.left} equals {_right(study)} in "
        f"everything before cost, its cost is {percent(more.estimate)} higher "
        f"{certainty(more, 100, ' %')}.",
        {**_interval("more", more), "instances": len(equal)},
    )


def _proofs(study: Study) -> Iterator[Finding]:
    parts: list[str] = []
    values: Values = {}
    for name in study.profiles:
        rows = [row for row in study.rows if row["profile"] == name and row["error"] is None]
        proven = sum(row["status"] == "optimal" for row in rows)
        if proven:
            values[name] = proven / len(rows)
            parts.append(
                f"{name} proves {proven:,} of {len(rows):,} ({percent(proven / len(rows))})"
            )
    if parts:
        yield Finding("proofs", f"Proven best in every step: {listed(parts)}.", values)


def _time(study: Study) -> Iterator[Finding]:
    parts: list[str] = []
    values: Values = {}
    for name in study.profiles:
        taken = [
            float(row["seconds_total"])
            for row in study.rows
            if row["profile"] == name and row["error"] is None
            if row["seconds_total"] is not None
        ]
        if taken:
            values[name] = float(np.median(taken))
            parts.append(f"{name} {seconds(float(np.median(taken)))}")
    if parts:
        yield Finding("time", f"Median time of a solve: {listed(parts)}.", values)


def _failures(study: Study) -> Iterator[Finding]:
    invalid = [row for row in study.rows if row["error"] is None and row["plan_valid"] is False]
    if invalid:
        names = listed(sorted({str(row["profile"]) for row in invalid}))
        verb = "breaks" if len(invalid) == 1 else "break"
        yield Finding(
            "invalid",
            f"{counted(len(invalid), 'plan')} of {names} {verb} a constraint and could not be "
            "carried out as made.",
            {"invalid": len(invalid)},
        )
    if study.failed:
        verb = "is" if len(study.failed) == 1 else "are"
        yield Finding(
            "failed",
            f"{counted(len(study.failed), 'solve')} failed and {verb} left out; see the end "
            "of this page.",
            {"failed": len(study.failed)},
        )
