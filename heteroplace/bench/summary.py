"""Medians and worst per entry."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import median

from heteroplace.bench.ratio import least_ratio, median_ratio
from heteroplace.bench.record import (
    InstanceRecord,
    RatioSpread,
    ReferenceRecord,
    SolverRecord,
    Spread,
    Summary,
)
from heteroplace.bench.steps import open_step
from heteroplace.bench.suite import ReferenceName
from heteroplace.plan import Seconds


def summaries(records: Sequence[InstanceRecord]) -> tuple[Summary, ...]:
    """Summarise the entries in the order in which they first appear."""
    by_entry: dict[str, list[InstanceRecord]] = {}
    for record in records:
        by_entry.setdefault(record.entry, []).append(record)
    return tuple(_summary(entry, found) for entry, found in by_entry.items())


def spread(values: Sequence[float | None]) -> Spread:
    """Median and worst of numbers of which larger is worse and null the worst.

    Parameters
    ----------
    values
        Null is unknown.
    """
    known = sorted(inf if value is None else value for value in values)
    if not known:
        return Spread(median=None, worst=None)
    middle = median(known)
    return Spread(
        median=None if middle == inf else middle, worst=None if known[-1] == inf else known[-1]
    )


def gap_of(solver: SolverRecord) -> float | None:
    """Gap of the first step that is not proven: 0 when all are, null when it is unknown."""
    step = open_step(solver.steps)
    return 0.0 if step is None else step.gap


def _summary(entry: str, records: list[InstanceRecord]) -> Summary:
    solved = [record.solver for record in records if record.solver is not None]
    sizes = [record.size for record in records if record.size is not None]
    names = {each.name: None for record in records for each in record.references}
    return Summary(
        entry=entry,
        family=records[0].family,
        instances=len(records),
        failed=sum(record.error is not None for record in records),
        gpus=_median([size.gpus for size in sizes]),
        services=_median([size.services for size in sizes]),
        columns=_median([solver.size.columns for solver in solved]),
        phases=_phases(solved),
        seconds=spread([solver.seconds for solver in solved]),
        overrun=spread([solver.overrun for solver in solved]),
        peak_memory=spread([solver.peak_memory for solver in solved]),
        proven=sum(solver.status == "optimal" for solver in solved),
        gap=spread([gap_of(solver) for solver in solved]),
        at_best=sum(record.best is not None and record.best.solver for record in records),
        references={name: _ratios(name, records) for name in names},
    )


def _median(values: Sequence[float]) -> float | None:
    return float(median(values)) if values else None


def _phases(solved: list[SolverRecord]) -> Seconds | None:
    if not solved:
        return None
    return Seconds(
        read=median(solver.phases.read or 0.0 for solver in solved),
        build=median(solver.phases.build for solver in solved),
        solve=median(solver.phases.solve for solver in solved),
        assign=median(solver.phases.assign for solver in solved),
    )


def _ratios(name: ReferenceName, records: list[InstanceRecord]) -> RatioSpread:
    found: list[ReferenceRecord] = [
        each for record in records for each in record.references if each.name == name
    ]
    ratios = [each.ratio for each in found if each.ratio is not None]
    qualities = [each.quality for each in found]
    return RatioSpread(
        median=median_ratio(ratios),
        worst=least_ratio(ratios),
        instances=len(ratios),
        equal=qualities.count("equal"),
        better=qualities.count("better"),
        worse=qualities.count("worse"),
    )
