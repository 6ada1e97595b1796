"""Tables of a run: for the terminal, and the ones of docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from heteroplace.bench.record import (
    Environment,
    InstanceRecord,
    Ratio,
    RatioSpread,
    ReferenceRecord,
    Report,
    Spread,
    StepRecord,
    Summary,
)
from heteroplace.bench.steps import close, open_step
from heteroplace.bench.suite import ReferenceName
from heteroplace.errors import InputError
from heteroplace.files import read_bytes
from heteroplace.show import clean

REFERENCE_NAMES: dict[ReferenceName, str] = {
    "greedy": "greedy",
    "highs": "HiGHS",
    "cpsat": "CP-SAT",
}
PHASES = ("read", "build", "solve", "assign")
PLACE = "<!-- bench: newest first -->"
MEBIBYTE = 2**20
UNKNOWN = "–"


def time_table(report: Report) -> Table:
    """Size, seconds by phase and peak memory of every instance."""
    headers = ("GPUs", "services", "columns", *PHASES, "total", "MiB")
    table = narrow_table("Seconds, from the instance in memory to the checked plan", headers)
    for record in report.instances:
        if record.solver is None or record.size is None:
            table.add_row(*_labels(record), *[UNKNOWN] * len(headers))
            continue
        solver, size = record.solver, record.size
        phases = (getattr(solver.phases, phase) for phase in PHASES)
        table.add_row(
            *_labels(record),
            *(str(count) for count in (size.gpus, size.services, solver.size.columns)),
            *(seconds(value) for value in phases),
            seconds(solver.seconds),
            mebibytes(solver.peak_memory),
        )
    return table


def quality_table(report: Report) -> Table:
    """The step that decides, its proof, and the ratio to each reference, of every instance."""
    names = references_of(report)
    headers = ("step", "value", "bound", "gap", *(f"x {REFERENCE_NAMES[name]}" for name in names))
    table = narrow_table(
        "First step without a proof, or else the last; references / solver", headers
    )
    for record in report.instances:
        if record.solver is None:
            table.add_row(*_labels(record), Text(clean(record.error or "failed")))
            continue
        steps = record.solver.steps
        step = open_step(steps) or steps[-1]
        by_name = {each.name: each for each in record.references}
        table.add_row(
            *_labels(record),
            Text(clean(step.name)),
            number(step.value),
            number(step.bound),
            "proven" if open_step(steps) is None else gap(step.gap),
            *(reference_cell(by_name.get(name)) for name in names),
        )
    return table


def summary_table(report: Report) -> Table:
    """Median and worst of every entry."""
    names = references_of(report)
    headers = ("seeds", "seconds", "proven", "gap", "MiB", "best")
    table = narrow_table(
        "Median (worst) of each entry",
        (*headers, *(f"x {REFERENCE_NAMES[name]}" for name in names)),
        labels=("entry",),
    )
    for summary in report.summaries:
        table.add_row(Text(clean(summary.entry)), *_summary_cells(summary, names, headers))
    return table


def _summary_cells(
    summary: Summary, names: Sequence[ReferenceName], headers: Sequence[str]
) -> list[str]:
    solved = summary.instances - summary.failed
    cells = {
        "seeds": str(summary.instances) + (f", {summary.failed} failed" if summary.failed else ""),
        "GPUs": number(summary.gpus),
        "services": number(summary.services),
        "columns": number(summary.columns),
        "seconds": _spread(summary.seconds, seconds),
        "proven": f"{summary.proven}/{solved}",
        "gap": _spread(summary.gap, gap),
        "MiB": _spread(summary.peak_memory, mebibytes),
        "best": f"{summary.at_best}/{solved}",
    }
    for phase in PHASES:
        cells[phase] = seconds(None if summary.phases is None else getattr(summary.phases, phase))
    ratios = [ratio_spread(summary.references.get(name)) for name in names]
    return [*(cells[header] for header in headers), *ratios]


def references_of(report: Report) -> list[ReferenceName]:
    """References that a run has, in the order in which they are documented."""
    found = {each.name for record in report.instances for each in record.references}
    return [name for name in REFERENCE_NAMES if name in found]


# --------------------------------------------------------------------------------------------
# Cells
# --------------------------------------------------------------------------------------------


def seconds(value: float | None) -> str:
    """Seconds with three significant digits, milliseconds at the finest."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def mebibytes(value: float | None) -> str:
    """Bytes in MiB."""
    return UNKNOWN if value is None else f"{value / MEBIBYTE:.0f}"


def number(value: float | None) -> str:
    """A value of the objective."""
    return UNKNOWN if value is None else f"{value:.10g}"


def gap(value: float | None) -> str:
    """A gap in percent."""
    return "unknown" if value is None else f"{100 * value:.2g} %"


def ratio(value: Ratio | None) -> str:
    """A ratio with its relation, as in ``>= 5.2``."""
    if value is None:
        return UNKNOWN
    digits = f"{value.value:.0f}" if value.value >= 100 else f"{value.value:.2g}"
    return digits if value.relation == "=" else f"{value.relation} {digits}"


def ratio_spread(value: RatioSpread | None) -> str:
    """Median and worst of a ratio."""
    if value is None or not value.instances:
        return UNKNOWN
    return f"{ratio(value.median)} ({ratio(value.worst)})"


def reference_cell(reference: ReferenceRecord | None) -> str:
    """Ratio of a reference, and where its plan differs."""
    if reference is None:
        return UNKNOWN
    if reference.ratio is None:
        return reference.outcome
    text = ratio(reference.ratio)
    return text if reference.quality in (None, "equal") else f"{text} {reference.quality}"


def _spread(value: Spread, form: Callable[[float | None], str]) -> str:
    return f"{form(value.median)} ({form(value.worst)})"


def _labels(record: InstanceRecord) -> tuple[Text, str]:
    return Text(clean(record.entry)), str(record.seed)


def narrow_table(
    title: str, headers: Sequence[str], labels: Sequence[str] = ("entry", "seed")
) -> Table:
    """Begin a table with numbers in all columns but the labels', as narrow as can be."""
    table = Table(title=title, title_justify="left", padding=(0, 0), collapse_padding=True)
    for label in labels:
        table.add_column(label, overflow="fold")
    for header in headers:
        table.add_column(header, justify="right")
    return table


# --------------------------------------------------------------------------------------------
# Markdown
# --------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """Write a run as a section of a page: where it ran, its entries, its best-known values."""
    names = references_of(report)
    results = ("seconds", "proven", "gap", "MiB", "best")
    headers = ("seeds", "GPUs", "services", "columns", *PHASES, *results)
    columns = ["entry", *headers, *(f"× {REFERENCE_NAMES[name]}" for name in names)]
    rows = [
        [_code(summary.entry), *_summary_cells(summary, names, headers)]
        for summary in report.summaries
    ]
    lines = [f"### {_title(report)}", "", _where(report), "", *_rows(columns, rows), ""]
    for record in report.instances:
        label = f"{_code(record.entry)} seed {record.seed}"
        if record.error is not None:
            lines += [f"{label} failed: {_cell(record.error)}", ""]
        for note in record.notes:
            lines += [f"{label}: {_cell(note)}", ""]
    best = [
        [_code(record.entry), str(record.seed), *best_cells(record)]
        for record in report.instances
        if record.best is not None
    ]
    if best:
        head = ["entry", "seed", "best-known values", "bounds below them", "reached"]
        lines += ["<details><summary>Best-known values and bounds</summary>", ""]
        lines += [*_rows(head, best), "", "</details>", ""]
    return "\n".join(lines)


def best_cells(record: InstanceRecord) -> tuple[str, str, str]:
    """Best-known values that are not 0, bounds that are below them, whether they are reached."""
    assert record.best is not None
    steps = record.best.steps
    shown = [step for step in steps if step.value] or [steps[-1]]
    values = ", ".join(f"{step.name} {number(step.value)}" for step in shown)
    below = ", ".join(f"{step.name} {number(step.bound)}" for step in steps if not _tight(step))
    return values, below or "none: proven", "yes" if record.best.solver else "no"


def _tight(step: StepRecord) -> bool:
    if step.value is None or step.bound is None:
        return False
    return step.proven or close(step.value, step.bound)


def _title(report: Report) -> str:
    release = report.environment.versions.get("heteroplace", "unknown")
    part = "" if report.complete else ", unfinished"
    return f"{_cell(report.suite)}, version {release}{part}"


def _where(report: Report) -> str:
    where: Environment = report.environment
    memory = "" if where.memory is None else f", {where.memory / 2**30:.0f} GiB"
    engines = ", ".join(
        f"{name} {version}" for name, version in where.versions.items() if name != "heteroplace"
    )
    how = "each measurement in a process of its own" if report.isolated else "one process"
    load = "" if report.load is None else f", load average {report.load:.1f} before"
    commit = f"commit `{where.commit}`" if where.commit else "commit unknown"
    return (
        f"Solver `{report.solver}`, {commit}, {report.began[:10]}, {how}, on {where.cores} cores "
        f"({_cell(where.cpu or 'CPU unknown')}{memory}, {where.system}){load}; "
        f"Python {where.python}, {engines}."
    )


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    left = {"entry", "best-known values", "bounds below them", "reached"}
    rule = ["---" if column in left else "---:" for column in columns]
    return ["| " + " | ".join(row) + " |" for row in (columns, rule, *rows)]


def _cell(text: str) -> str:
    return clean(text).replace("\n", " ").replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def updated_page(path: str, report: Report) -> str:
    """Put a run's section into a page and return the page's new text.

    The section of the same suite and version is replaced. Otherwise the new one comes first, below
    the line ``<!-- bench: newest first -->``.

    Parameters
    ----------
    path
        The page; a new one is begun when there is none.
    report
        The run.

    Raises
    ------
    InputError
        If the page has no such line, or cannot be read.
    """
    release = report.environment.versions.get("heteroplace", "unknown")
    suite = re.sub(r"[^\w.]+", "-", report.suite)
    name = f"{suite} {release}"
    opening, closing = f"<!-- bench: {name} -->", f"<!-- bench: end of {name} -->"
    section = f"{opening}\n{markdown(report)}\n{closing}"
    if not Path(path).exists():
        return f"# Benchmarks\n\n{PLACE}\n\n{section}\n"
    try:
        page = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(path, "is not UTF-8 text; name a Markdown page") from None
    if opening in page and closing in page:
        before, _, rest = page.partition(opening)
        return before + section + rest.partition(closing)[2]
    # A page may also speak of that line within its text.
    place = re.search(rf"^{re.escape(PLACE)}$", page, re.MULTILINE)
    if place is None:
        raise InputError(path, f"has no line {PLACE}; add it where the tables are to go")
    return f"{page[: place.end()]}\n\n{section}{page[place.end() :]}"
