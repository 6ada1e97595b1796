"""``heteroplace compare``: its options, and what it runs, writes and shows."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from heteroplace.cores import usable_cores
from heteroplace.errors import InputError
from heteroplace.show import clean

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from heteroplace.compare.record import Results, Row
    from heteroplace.compare.runner import Executor, Progress

MOST_WORKERS = 1024
MOST_SEEDS = 10**6
MOST_FAULTS = 5


@dataclass
class Shown:
    """What the command prints.

    Parameters
    ----------
    parts
        For people.
    json
        For machines.
    failed
        Whether a row has an error.
    interrupted
        Whether it was interrupted; what was done until then is kept.
    """

    parts: list[RenderableType] = field(default_factory=list)
    json: str = ""
    failed: bool = False
    interrupted: bool = False


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``heteroplace compare``."""
    command.add_argument("experiment", metavar="EXPERIMENT", help="TOML, see experiments/")
    command.add_argument("--out", metavar="FOLDER", help="results, default out/NAME; continued")
    command.add_argument(
        "--workers", type=_count(MOST_WORKERS), metavar="N", help="processes, default the cores"
    )
    command.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster, as in HOST:6379")
    command.add_argument(
        "--keep", type=_names, metavar="WHAT", help="plans,instances: write them as files"
    )
    command.add_argument("--entry", action="append", metavar="NAME", help="only this entry")
    command.add_argument(
        "--seeds", type=_count(MOST_SEEDS), metavar="N", help="only the first N seeds of each entry"
    )
    command.add_argument("--retry-failed", action="store_true", help="make rows with an error anew")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")


def _count(most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= most:
            raise argparse.ArgumentTypeError(f"must be from 1 to {most}, got {text[:40]!r}")
        return int(text)

    return count


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def run(arguments: argparse.Namespace) -> Shown:
    """Run what is left of an experiment.

    Parameters
    ----------
    arguments
        As parsed with :func:`add_options`.

    Raises
    ------
    InputError
        If an option or the experiment is wrong, or the folder cannot be used.
    """
    # Only this command needs them.
    from heteroplace.compare.experiment import Experiment
    from heteroplace.compare.record import MANIFEST, read_results
    from heteroplace.compare.runner import run_experiment

    if arguments.ray is not None and arguments.workers is not None:
        raise InputError("--workers", "is for this machine; a Ray cluster uses all its cores")
    experiment = Experiment.from_file(arguments.experiment).narrowed(
        entries=arguments.entry or (), seeds=arguments.seeds, keep=arguments.keep
    )
    folder = Path(arguments.out or Path("out") / experiment.name)
    try:
        with _executor(arguments) as executor, _progress(experiment.name) as told:
            run_experiment(
                experiment,
                folder,
                executor,
                command=_command(arguments),
                retry_failed=arguments.retry_failed,
                told=told,
            )
    except KeyboardInterrupt:
        if not (folder / MANIFEST).exists():
            raise
        shown = _shown(read_results(folder), folder)
        shown.interrupted = True
        return shown
    return _shown(read_results(folder), folder)


def _executor(arguments: argparse.Namespace) -> AbstractContextManager[Executor]:
    if arguments.ray is not None:
        from heteroplace.compare.cluster import RayExecutor

        return RayExecutor(arguments.ray)
    from heteroplace.compare.local import LocalExecutor

    return nullcontext(LocalExecutor(arguments.workers or usable_cores()))


def _command(arguments: argparse.Namespace) -> str:
    """What makes the same rows, without what only says where and how."""
    words = ["heteroplace", "compare", arguments.experiment]
    for name in arguments.entry or ():
        words += ["--entry", name]
    if arguments.seeds is not None:
        words += ["--seeds", str(arguments.seeds)]
    if arguments.keep is not None:
        words += ["--keep", ",".join(arguments.keep) or "none"]
    return shlex.join(words)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar with the time that remains on standard error, where that is a terminal."""
    from rich import progress as bars

    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[faults]}", markup=False),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(elapsed_when_finished=True),
    )
    off = sys.stderr is None or not console.is_terminal
    with bars.Progress(*columns, console=console, transient=True, disable=off) as bar:
        job = bar.add_task(clean(name), total=None, faults="")
        begun = False

        def told(progress: Progress) -> None:
            nonlocal begun
            if not begun:
                # What was there before says nothing of the speed.
                bar.reset(job, total=progress.total, completed=progress.before)
                begun = True
            faults = f"{progress.failed} failed" if progress.failed else ""
            bar.update(job, completed=progress.before + progress.done, faults=faults)

        yield told


# --------------------------------------------------------------------------------------------
# The summary
# --------------------------------------------------------------------------------------------


def _shown(results: Results, folder: Path) -> Shown:
    rows = results.rows()
    profiles = [_summary(name, rows) for name in results.manifest.profiles]
    first, *others = results.manifest.profiles
    compared = ((first, other, list(results.pairs(first, other))) for other in others)
    differences = [_difference(*each) for each in compared if each[-1]]
    faults = [row for row in rows if row["error"] is not None]
    summary = {
        "experiment": results.manifest.name,
        "folder": str(folder),
        "rows": len(rows),
        "failed": len(faults),
        "profiles": profiles,
        "differences": differences,
    }
    parts: list[RenderableType] = [_table(profiles)]
    parts += [_sentence(each) for each in differences]
    parts += [_line(f"{row['key']} failed: {row['error']}") for row in faults[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        parts.append(_line(f"and {len(faults) - MOST_FAULTS} more; --retry-failed runs them anew"))
    if not results.manifest.complete:
        made = f"{len(rows)} of {results.manifest.rows} rows"
        parts.append(_line(f"unfinished, {made}; the same command continues"))
    parts.append(_line(f"results in {folder}; show them with: heteroplace report {folder}"))
    return Shown(parts, json.dumps(summary, indent=1), bool(faults))


def _difference(first: str, second: str, pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """Two profiles on the same instances: by the objective, and what they leave unmet."""
    from heteroplace.compare.record import cluster
    from heteroplace.compare.statistics import lexicographic_counts, ratio_of_means

    counts = lexicographic_counts(
        [row["step_values"] for row, _ in pairs], [row["step_values"] for _, row in pairs]
    )
    found: dict[str, Any] = {
        "first": first,
        "second": second,
        "pairs": len(pairs),
        "first_better": counts.wins,
        "equal": counts.ties,
        "second_better": counts.losses,
    }
    measures: dict[str, Callable[[Row], float]] = {
        "unmet_gpus": lambda row: row["unmet_gpus"],
        "unmet_gpus_of_highest_priority": lambda row: row["unmet_gpus_by_priority"][0],
    }
    for name, measure in measures.items():
        difference = ratio_of_means(
            [measure(one) - measure(other) for one, other in pairs],
            [1.0] * len(pairs),
            clusters=[cluster(row) for row, _ in pairs],
        )
        found[name] = {
            "first_minus_second": difference.estimate,
            "low": _known(difference.low),
            "high": _known(difference.high),
            "confidence": difference.confidence,
        }
    return found


def _known(value: float) -> float | None:
    return value if value == value else None


def _summary(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    mine = [row for row in rows if row["profile"] == name]
    good = [row for row in mine if row["error"] is None]
    return {
        "profile": name,
        "rows": len(mine),
        "failed": len(mine) - len(good),
        "proven": sum(row["status"] == "optimal" for row in good),
        "mean_unmet_gpus": fmean(row["unmet_gpus"] for row in good) if good else None,
        "mean_cost": fmean(row["cost"] for row in good) if good else None,
        "median_seconds": median(row["seconds_total"] for row in good) if good else None,
        "cpu_seconds": sum(row["seconds_cpu"] for row in good),
    }


def _table(profiles: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Profiles", title_justify="left")
    table.add_column("profile")
    for header in ("rows", "failed", "proven", "unmet GPUs", "cost", "median s", "CPU s"):
        table.add_column(header, justify="right")
    for each in profiles:
        table.add_row(
            Text(clean(each["profile"])),
            *(str(each[name]) for name in ("rows", "failed", "proven")),
            _number(each["mean_unmet_gpus"], ".2f"),
            _number(each["mean_cost"], ".1f"),
            _number(each["median_seconds"], ".3f"),
            _number(each["cpu_seconds"], ".1f"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _sentence(each: dict[str, Any]) -> Text:
    highest = _spread(each["unmet_gpus_of_highest_priority"])
    return _line(
        f"{each['first']} against {each['second']} on {each['pairs']} instances, by the "
        f"objective: better on {each['first_better']}, equal on {each['equal']}, worse on "
        f"{each['second_better']}. Mean difference of unmet GPUs: {highest} in the highest "
        f"priority class, {_spread(each['unmet_gpus'])} in all classes."
    )


def _spread(difference: dict[str, Any]) -> str:
    mean = f"{difference['first_minus_second']:+.2f}"
    if difference["low"] is None:
        return mean
    level = f"{100 * difference['confidence']:g} %"
    return f"{mean} ({level} interval {difference['low']:+.2f} to {difference['high']:+.2f})"


def _line(text: str) -> Text:
    return Text(clean(text))
