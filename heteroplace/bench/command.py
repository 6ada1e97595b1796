"""``heteroplace bench``: its options, and what it runs, writes and shows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from heteroplace.bench.anytime import (
    DEADLINES,
    AnytimeReport,
    draw,
    require_drawing,
    run_anytime,
)
from heteroplace.bench.best import BestFile
from heteroplace.bench.record import Report
from heteroplace.bench.runner import run_suite
from heteroplace.bench.scaling import QUANTITIES, SCALED, SCALES, ScalingReport, run_scaling
from heteroplace.bench.suite import ReferenceName, Suite
from heteroplace.bench.tables import (
    gap,
    mebibytes,
    narrow_table,
    number,
    quality_table,
    seconds,
    summary_table,
    time_table,
    updated_page,
)
from heteroplace.errors import InputError
from heteroplace.files import MAX_BYTES, validated, write_text
from heteroplace.generate import FAMILIES, family_from, generate
from heteroplace.instance import Instance
from heteroplace.profile import Profile, SolverName
from heteroplace.show import clean

Starting = Callable[[str], None]
Curve = TypeVar("Curve", AnytimeReport, ScalingReport)

DEFAULT_SUITE = "benchmarks/quick.toml"
BEST = "best.json"
MOST_SEEDS = 10_000

# Which options go with which of the three things the command does.
COMMON = {"solver", "isolate", "out", "json"}
OPTIONS: dict[str, set[str]] = {
    "a suite": COMMON
    | {
        "entry",
        "seeds",
        "time_limit",
        "reference_time_limit",
        "references",
        "resume",
        "markdown",
        "best",
        "update_best",
    },
    "--anytime": COMMON - {"isolate"} | {"deadlines", "svg", "set", "seed"},
    "--scaling": COMMON | {"scales", "set", "seeds", "time_limit"},
}


@dataclass
class Shown:
    """What the command prints.

    Parameters
    ----------
    json
        The whole outcome.
    parts
        Tables and lines for people.
    failed
        Whether something could not be measured.
    interrupted
        Whether it was stopped by the keyboard.
    """

    json: str = ""
    parts: list[RenderableType] = field(default_factory=list)
    failed: bool = False
    interrupted: bool = False


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the options."""
    command.add_argument(
        "suite", nargs="?", metavar="SUITE", help=f"suite (TOML), default {DEFAULT_SUITE}"
    )
    command.add_argument(
        "--anytime",
        nargs="?",
        const="replan",
        metavar="FAMILY|INSTANCE",
        help="quality against the deadline on one instance, default replan",
    )
    command.add_argument(
        "--scaling",
        nargs="*",
        metavar="FAMILY",
        help=f"time against size, default {' and '.join(SCALED)}",
    )
    command.add_argument("--solver", choices=get_args(SolverName), help="solver under test")
    command.add_argument("--entry", action="append", metavar="NAME", help="only this entry")
    command.add_argument("--seeds", type=_count, metavar="N", help="seeds from 0 on")
    command.add_argument("--time-limit", type=float, metavar="SECONDS", help="of the solver")
    command.add_argument(
        "--reference-time-limit", type=float, metavar="SECONDS", help="of each reference"
    )
    command.add_argument(
        "--references",
        type=_names,
        metavar="NAMES",
        help=f"some of {','.join(get_args(ReferenceName))}, or none",
    )
    command.add_argument(
        "--isolate",
        action="store_true",
        default=None,
        help="a process of its own for each measurement",
    )
    command.add_argument("--out", metavar="FILE", help="write the results after each instance")
    command.add_argument(
        "--resume", action="store_true", default=None, help="continue the run in --out"
    )
    command.add_argument("--json", action="store_true", default=None, help="print them as JSON")
    command.add_argument("--markdown", metavar="FILE", help="put the table into a page")
    command.add_argument(
        "--best", metavar="FILE", help=f"best-known values, default {BEST} beside the suite"
    )
    command.add_argument(
        "--update-best", action="store_true", default=None, help="keep better ones in that file"
    )
    command.add_argument(
        "--deadlines", type=_numbers, metavar="S,S,...", help="seconds, for --anytime"
    )
    command.add_argument("--svg", metavar="FILE", help="draw the curve of --anytime")
    command.add_argument("--scales", type=_numbers, metavar="X,X,...", help="for --scaling")
    command.add_argument("--seed", type=int, help="of the family of --anytime, default 0")
    command.add_argument(
        "--set", action="append", metavar="KNOB=VALUE", help="a knob of --anytime or --scaling"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MOST_SEEDS}, got {text[:40]!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < value < 1e6 for value in found):
        raise argparse.ArgumentTypeError(f"must be numbers above 0 with commas, got {text[:40]!r}")
    return found


def run(arguments: argparse.Namespace, knobs: Mapping[str, str | float]) -> Shown:
    """Run what the options ask for.

    Parameters
    ----------
    arguments
        As parsed with :func:`add_options`.
    knobs
        What ``--set`` turns.

    Raises
    ------
    InputError
        If an option does not go with the others, or a file cannot be read or written.
    """
    modes = {
        "a suite": arguments.suite,
        "--anytime": arguments.anytime,
        "--scaling": arguments.scaling,
    }
    chosen = [mode for mode, value in modes.items() if value is not None] or ["a suite"]
    if len(chosen) > 1:
        raise InputError("bench", f"give either {' or '.join(chosen)}, not both")
    mode = chosen[0]
    for name in sorted(set().union(*OPTIONS.values()) - OPTIONS[mode]):
        if getattr(arguments, name) is not None:
            fitting = " or ".join(each for each, names in OPTIONS.items() if name in names)
            option = f"--{name.replace('_', '-')}"
            raise InputError(option, f"goes with {fitting}, not with {mode}; drop one of them")
    if mode == "--anytime":
        return _anytime(arguments, knobs)
    if mode == "--scaling":
        return _scaling(arguments, knobs)
    return _suite(arguments)


@contextmanager
def _progress(total: int) -> Iterator[Starting]:
    """A bar on standard error, where that is a terminal; called with what comes next."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    off = sys.stderr is None or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        job = bar.add_task("", total=total)
        begun = 0

        def starting(label: str) -> None:
            nonlocal begun
            bar.update(job, description=clean(label), completed=begun)
            begun += 1

        yield starting


def _save(path: str | None, text: str) -> None:
    if path is not None:
        write_text(path, text + "\n")


# --------------------------------------------------------------------------------------------
# A suite
# --------------------------------------------------------------------------------------------


def _suite(arguments: argparse.Namespace) -> Shown:
    path = arguments.suite or DEFAULT_SUITE
    suite = Suite.from_file(path).narrowed(
        solver=arguments.solver,
        entries=arguments.entry or (),
        seeds=arguments.seeds,
        time_limit=arguments.time_limit,
        reference_time_limit=arguments.reference_time_limit,
        references=arguments.references,
    )
    resumed = None
    if arguments.resume:
        if arguments.out is None:
            raise InputError("--resume", "needs --out FILE, the results to continue")
        if Path(arguments.out).exists():
            resumed = Report.from_file(arguments.out)
    best_path = arguments.best or str(Path(path).with_name(BEST))
    kept: list[Report] = []

    def done(report: Report, best: BestFile) -> None:
        if not kept and arguments.markdown is not None:
            updated_page(arguments.markdown, report)  # A fault shows before hours are spent.
        kept[:] = [report]
        _save(arguments.out, report.to_json())
        if arguments.update_best:
            _save(best_path, best.to_json())

    shown = Shown()
    total = sum(1 + len(task.references) for task in suite.tasks())
    try:
        with _progress(total) as starting:
            run_suite(
                suite,
                isolate=bool(arguments.isolate),
                best=BestFile.from_file(best_path),
                resumed=resumed,
                starting=starting,
                done=done,
            )
    except InputError as error:
        if error.path == "--resume":
            raise InputError(arguments.out, error.message) from None
        raise
    except KeyboardInterrupt:
        if not kept:
            raise
        shown.interrupted = True
    report = kept[0]
    shown.json = report.to_json()
    shown.failed = bool(report.failed)
    shown.parts = _suite_parts(report, arguments)
    if arguments.markdown is not None and not shown.interrupted:
        write_text(arguments.markdown, updated_page(arguments.markdown, report))
        shown.parts.append(_line(f"table written to {arguments.markdown}"))
    return shown


def _suite_parts(report: Report, arguments: argparse.Namespace) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if report.instances:
        parts += [time_table(report), quality_table(report), summary_table(report)]
    for record in report.instances:
        label = f"{record.entry} seed {record.seed}"
        if record.error is not None:
            parts.append(_line(f"{label} failed: {record.error}"))
        parts += [_line(f"{label}: {note}") for note in record.notes]
        parts += [
            _line(f"{label}: {each.name} {each.outcome}: {each.message}")
            for each in record.references
            if each.message is not None
        ]
    improved = sum(record.best is not None and record.best.improved for record in report.instances)
    if improved:
        kept = "kept" if arguments.update_best else "--update-best keeps them"
        parts.append(_line(f"better than known on {improved} instances ({kept})"))
    if not report.complete:
        again = "continue with --resume" if arguments.out else "use --out and --resume to continue"
        parts.append(_line(f"unfinished; {again}"))
    if arguments.out is not None:
        parts.append(_line(f"results written to {arguments.out}"))
    return parts


def _line(text: str) -> Text:
    return Text(clean(text))


# --------------------------------------------------------------------------------------------
# Anytime and scaling
# --------------------------------------------------------------------------------------------


def _anytime(arguments: argparse.Namespace, knobs: Mapping[str, str | float]) -> Shown:
    if arguments.svg is not None:
        require_drawing()
    what = arguments.anytime
    if what in FAMILIES:
        seed = arguments.seed or 0
        instance = generate(family_from(what, knobs), seed)
        label = ", ".join([what, *(f"{name} {value}" for name, value in knobs.items())])
        label += f", seed {seed}"
    elif arguments.set or arguments.seed is not None:
        known = ", ".join(FAMILIES)
        raise InputError("--anytime", f"--set and --seed need a family, one of {known}")
    else:
        instance, label = Instance.from_file(what, MAX_BYTES), Path(what).name
    deadlines = arguments.deadlines or DEADLINES
    shown = Shown()

    def run(starting: Starting, done: Callable[[AnytimeReport], None]) -> None:
        run_anytime(
            instance.to_json(None),
            Profile(solver=arguments.solver or "auto"),
            deadlines,
            name=label,
            starting=starting,
            done=done,
        )

    report = _kept(arguments.out, len(set(deadlines)), shown, run)
    shown.parts = _anytime_parts(report)
    if arguments.svg is not None:
        write_text(arguments.svg, draw(report))
        shown.parts.append(_line(f"curve written to {arguments.svg}"))
    return shown


def _kept(
    out: str | None,
    total: int,
    shown: Shown,
    run: Callable[[Starting, Callable[[Curve], None]], None],
) -> Curve:
    """Run with a progress bar and save every report; after an interrupt, the last one."""
    kept: list[Curve] = []

    def done(report: Curve) -> None:
        kept[:] = [report]
        _save(out, report.to_json())

    try:
        with _progress(total) as starting:
            run(starting, done)
    except KeyboardInterrupt:
        if not kept:
            raise
        shown.interrupted = True
    report = kept[0]
    shown.json = report.to_json()
    shown.failed = any(point.error is not None for point in report.points)
    return report


def _anytime_parts(report: AnytimeReport) -> list[RenderableType]:
    table = Table(title=f"Anytime: {clean(report.instance)}", title_justify="left")
    for column in ("deadline", "used", "status", "step", "value", "bound", "gap"):
        table.add_column(column, justify="left" if column in ("status", "step") else "right")
    for point in report.points:
        labels = (f"{point.deadline:g}", seconds(point.seconds))
        if point.error is not None:
            table.add_row(*labels, _line(point.error))
            continue
        steps = [step for step in point.steps[:-1] if step.value]
        for index, step in enumerate([*steps, point.steps[-1]]):
            table.add_row(
                *(labels if index == 0 else ("", "")),
                str(point.status) if index == 0 else "",
                Text(clean(step.name)),
                number(step.value),
                number(step.bound),
                "proven" if step.proven else gap(step.gap),
            )
    lines = [
        f"quality fell at {fall.deadline:g} s: {fall.step} {number(fall.value)}, but "
        f"{number(fall.best)} at {fall.earlier:g} s"
        for fall in report.falls
    ]
    lines = lines or ["quality never fell"]
    if report.worst_overrun_at is None:
        lines.append("every deadline was kept")
    else:
        lines.append(
            f"worst overrun: {report.worst_overrun:.3f} s at the deadline "
            f"{report.worst_overrun_at:g} s"
        )
    return [table, *map(_line, lines)]


def _scaling(arguments: argparse.Namespace, knobs: Mapping[str, str | float]) -> Shown:
    given = {"solver": arguments.solver, "time_limit": arguments.time_limit}
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        profile = validated(lambda: Profile.model_validate(changes))
    except InputError as error:
        raise InputError(f"--{error.path.replace('_', '-')}", error.message) from None
    families = tuple(dict.fromkeys(arguments.scaling or SCALED))
    scales, seeds = arguments.scales or SCALES, arguments.seeds or 1
    shown = Shown()

    def run(starting: Starting, done: Callable[[ScalingReport], None]) -> None:
        run_scaling(
            families,
            scales,
            knobs=dict(knobs),
            seeds=seeds,
            profile=profile,
            isolate=bool(arguments.isolate),
            starting=starting,
            done=done,
        )

    report = _kept(arguments.out, len(families) * len(set(scales)) * seeds, shown, run)
    shown.parts = _scaling_parts(report)
    return shown


def _scaling_parts(report: ScalingReport) -> list[RenderableType]:
    headers = ("scale", "seed", "GPUs", "services", "columns", *QUANTITIES, "MiB")
    table = narrow_table("Seconds against size", headers, labels=("family",))
    for point in report.points:
        labels = (Text(clean(point.family)), f"{point.scale:g}", str(point.seed))
        if point.error is not None or point.phases is None:
            table.add_row(*labels, _line(point.error or "failed"))
            continue
        cut = point.stop_reason == "time_limit"
        table.add_row(
            *labels,
            *(str(count) for count in (point.gpus, point.services, point.columns)),
            seconds(point.phases.read),
            seconds(point.phases.build),
            seconds(point.greedy),
            seconds(point.phases.solve) + ("*" if cut else ""),
            seconds(point.phases.assign),
            seconds(point.seconds) + ("*" if cut else ""),
            mebibytes(point.peak_memory),
        )
    if any(point.stop_reason == "time_limit" for point in report.points):
        table.caption = "* stopped by the time limit, not in the fit"
    title = "Exponent p in seconds ~ (n log n)^p, n GPUs"
    exponents = narrow_table(title, QUANTITIES, labels=("family",))
    for family in dict.fromkeys(fit.family for fit in report.fits):
        by_name = {fit.quantity: fit.exponent for fit in report.fits if fit.family == family}
        cells = (by_name.get(name) for name in QUANTITIES)
        exponents.add_row(
            Text(clean(family)), *("–" if cell is None else f"{cell:.2f}" for cell in cells)
        )
    return [table, exponents]
