"""The figure about time: seconds by phase, size of the instance and profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heteroplace.compare.record import Row
from heteroplace.report.charts import STYLES, Axis, Mark, Panel, Series
from heteroplace.report.figure import Figure, Legend
from heteroplace.report.study import Pair, Study, grouped
from heteroplace.report.table import Cell, Table
from heteroplace.report.words import counted, listed, seconds

# Phase, what it does, style.
PHASES = (
    ("build", "build: tree view and program", 4),
    ("solve", "solve: greedy and engine", 1),
    ("assign", "assign: name nodes, check, evaluate", 2),
)


def time_figure(study: Study) -> Figure:
    """Mean seconds by phase against the size of the instance, one chart for each profile."""
    panels, rows, medians = [], [], []
    for name in study.profiles[:STYLES]:
        mine = [row for row in study.rows if row["profile"] == name and _timed(row)]
        if not mine:
            continue
        grouping = grouped([Pair(row, row) for row in mine], "gpus", "GPUs in the fleet")
        groups = [[pair.left for pair in members] for members in grouping.members]
        series = tuple(
            Series(
                words,
                style,
                tuple(
                    Mark(place, _mean(group, phase), note=_note(phase, size, group))
                    for place, (size, group) in enumerate(zip(grouping.names, groups, strict=True))
                ),
            )
            for phase, words, style in PHASES
        )
        totals = [float(row["seconds_total"]) for row in mine]
        medians.append(
            f"{name} {seconds(float(np.median(totals)))} "
            f"(95 % within {seconds(float(np.quantile(totals, 0.95)))})"
        )
        panels.append(_panel(name, grouping.label, grouping.names, series))
        rows += [
            _row(name, size, group) for size, group in zip(grouping.names, groups, strict=True)
        ]
    return Figure(
        name="time",
        title="How long it takes",
        lead=f"Median per instance: {listed(medians)}.",
        reading=(
            "Mean wall time of a solve by phase. The scale differs from chart to chart. Times "
            "depend on the machine and on what else ran on it. Generating and reading the instance "
            "is not in it: it is done once for all profiles."
        ),
        panels=tuple(panels),
        legend=tuple(Legend(words, style, "part") for _, words, style in PHASES),
        table=Table(
            (
                "profile",
                "GPUs",
                "instances",
                *(f"{phase}, mean s" for phase, _, _ in PHASES),
                "total, median s",
                "total, 95th percentile s",
                "CPU, mean s",
                "generate and read, mean s",
            ),
            tuple(rows),
        ),
    )


def _timed(row: Row) -> bool:
    return row["error"] is None and row["seconds_total"] is not None


def _values(rows: Sequence[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column] is not None]


def _mean(rows: Sequence[Row], phase: str) -> float:
    values = _values(rows, f"seconds_{phase}")
    return float(np.mean(values)) if values else 0.0


def _note(phase: str, size: str, rows: Sequence[Row]) -> str:
    return (
        f"{phase}, {size} GPUs: {seconds(_mean(rows, phase))} in the mean of "
        f"{counted(len(rows), 'instance')}"
    )


def _panel(name: str, label: str, sizes: tuple[str, ...], series: tuple[Series, ...]) -> Panel:
    described = "; ".join(
        f"{size} GPUs: "
        + ", ".join(f"{seconds(each.marks[place].y)} {each.name.split(':')[0]}" for each in series)
        for place, size in enumerate(sizes)
    )
    return Panel(
        title=name,
        description=f"Mean seconds of {name} by phase. {described}.",
        kind="bars",
        x=Axis(label, names=sizes),
        y=Axis("seconds, mean", least=0.0),
        series=series,
    )


def _row(name: str, size: str, rows: Sequence[Row]) -> tuple[Cell, ...]:
    totals, cpu, read = (_values(rows, f"seconds_{column}") for column in ("total", "cpu", "read"))
    return (
        name,
        size,
        len(rows),
        *(_mean(rows, phase) for phase, _, _ in PHASES),
        float(np.median(totals)),
        float(np.quantile(totals, 0.95)),
        float(np.mean(cpu)) if cpu else None,
        float(np.mean(read)) if read else None,
    )
