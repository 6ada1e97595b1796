"""``heteroplace simulate``: its options, and what it runs, writes and shows."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

from heteroplace.profile import Profile, SolverName
from heteroplace.simulate.inputs import (
    add_noise_options,
    add_trace_options,
    noise_of,
    read_demand,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from heteroplace.simulate.outcome import Outcome, ServiceSummary

PICTURES = {"svg": ("svg",), "png": ("png",), "both": ("svg", "png"), "none": ()}


@dataclass
class Shown:
    """What the command prints.

    Parameters
    ----------
    json
        The summary.
    parts
        Tables and lines for people.
    """

    json: str = ""
    parts: list[RenderableType] = field(default_factory=list)


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the options."""
    command.add_argument("--fleet", required=True, metavar="FILE", help="fleet (TOML or JSON)")
    command.add_argument("--cluster", required=True, metavar="FILE", help="cluster (JSON)")
    add_trace_options(command)
    command.add_argument(
        "--policy",
        default="fleet",
        metavar="NAME",
        help="fleet (default), or one signal that drives alone: decode_tps, prefill_tps, "
        "prefill_gpu_util, decode_gpu_util, prefill_sm, decode_sm, ttft, tbt",
    )
    command.add_argument("--pools", metavar="FILE", help="pool models (TOML), docs/simulate.md")
    command.add_argument(
        "--interval", type=duration, metavar="T", help="from step to step, default the fleet's"
    )
    command.add_argument(
        "--tick", type=duration, metavar="T", help="of the pools, default at most 15 s"
    )
    add_noise_options(command)
    command.add_argument(
        "--start", type=moment, metavar="TIME", help="date and time of the first tick (ISO 8601)"
    )
    command.add_argument(
        "--cold", action="store_true", help="services that do not run yet start with nothing"
    )
    command.add_argument("--profile", metavar="FILE", help="solver profile (TOML), see solvers/")
    command.add_argument("--solver", choices=get_args(SolverName), help="default greedy")
    command.add_argument("--out", metavar="FOLDER", help="write time series, events and plots")
    command.add_argument(
        "--plots", choices=tuple(PICTURES), default="both", help="formats of the plots in --out"
    )
    command.add_argument("--json", action="store_true", help="print the summary as JSON")


def duration(text: str) -> float:
    """Read seconds, or a text such as ``90s`` or ``5m``."""
    from heteroplace.policy.duration import parse_duration

    try:
        try:
            value = parse_duration(float(text))
        except ValueError:
            value = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if value <= 0:
        raise argparse.ArgumentTypeError("must be greater than 0")
    return value


def moment(text: str) -> float:
    """Read a date and time; UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a date and time such as 2026-01-05T08:00, got {text[:40]!r}"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def profile_of(arguments: argparse.Namespace) -> Profile:
    """Profile of the options: a file, the named solver, else the greedy one."""
    if arguments.profile is None:
        return Profile(solver=arguments.solver or "greedy")
    profile = Profile.from_file(arguments.profile)
    if arguments.solver is not None:
        profile = profile.model_copy(update={"solver": arguments.solver})
    return profile


def run(arguments: argparse.Namespace) -> Shown:
    """Simulate what the options ask for.

    Parameters
    ----------
    arguments
        As parsed with :func:`add_options`.

    Raises
    ------
    InputError
        If a file cannot be read or written, or what is asked for does not fit together.
    """
    from heteroplace.policy.cluster import Cluster
    from heteroplace.policy.fleet import Fleet
    from heteroplace.simulate.closed import MONDAY, simulate
    from heteroplace.simulate.folder import (
        make_folder,
        require_writing,
        summary_json,
        write_outcome,
    )
    from heteroplace.simulate.model import PoolModels

    pictures = PICTURES[arguments.plots]
    if arguments.out is not None:
        require_writing(pictures)
    fleet = Fleet.from_file(arguments.fleet)
    cluster = Cluster.from_file(arguments.cluster)
    pools = None if arguments.pools is None else PoolModels.from_file(arguments.pools)
    demand = read_demand(arguments, fleet)
    if arguments.out is not None:
        make_folder(arguments.out)
    with progress("simulate") as tell:
        outcome = simulate(
            fleet,
            cluster,
            demand,
            hours=arguments.hours,
            policy=arguments.policy,
            pools=pools,
            profile=profile_of(arguments),
            interval=arguments.interval,
            tick=arguments.tick,
            noise=noise_of(arguments),
            gaps=arguments.gaps,
            seed=arguments.seed,
            start=MONDAY if arguments.start is None else arguments.start,
            warm=not arguments.cold,
            progress=tell,
        )
    shown = Shown(json=summary_json(outcome), parts=_parts(outcome))
    if arguments.out is not None:
        write_outcome(outcome, arguments.out, pictures)
        shown.parts.append(f"written to {arguments.out}")
    return shown


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    terminal = sys.stderr is not None and sys.stderr.isatty()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _parts(outcome: Outcome) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from heteroplace.show import clean

    hours = outcome.ticks * outcome.tick / 3600
    table = Table(
        title=f"Policy {outcome.policy}, {hours:g} h, steps of {outcome.interval:g} s",
        title_justify="left",
    )
    table.add_column("")
    for service in outcome.services:
        table.add_column(Text(clean(service)), justify="right")
    for label, cell in _ROWS:
        table.add_row(label, *(Text(cell(each)) for each in outcome.summaries))
    return [table, *(f"note: {note}" for note in outcome.notes)]


def percent(value: float | None, digits: int = 2) -> str:
    """Write a share, not rounded up to 100 %."""
    if value is None:
        return "–"
    scale = 10**digits
    exact = 100 * value * scale
    shown = math.floor(exact + 1e-9) if 0.99 < value < 1 else round(exact)
    return f"{shown / scale:.{digits}f} %"


def number(value: float | None, digits: int = 1) -> str:
    """Write a number."""
    return "–" if value is None else f"{value:,.{digits}f}"


def _static(summary: ServiceSummary) -> str:
    if summary.static_counts is None:
        return "limits too low" if summary.requests else "–"
    counts = " + ".join(f"{count} {role}" for role, count in summary.static_counts.items())
    return f"{number(summary.static_gpu_hours)} ({counts})"


def _best(summary: ServiceSummary) -> str:
    if summary.best_correlation is None:
        return "–"
    return f"{summary.best_correlation:.2f} @ {summary.best_lag_hours:.2f} h"


_ROWS: tuple[tuple[str, Callable[[ServiceSummary], str]], ...] = (
    ("requests", lambda each: number(each.requests, 0)),
    ("waiting at the end", lambda each: number(each.queued, 0)),
    ("TTFT objective", lambda each: f"{each.ttft_slo:g} s"),
    ("requests within it", lambda each: percent(each.ttft_attained)),
    ("TBT objective", lambda each: f"{each.tbt_slo:g} s"),
    ("tokens within it", lambda each: percent(each.tbt_attained)),
    ("GPU-hours", lambda each: number(each.gpu_hours)),
    ("GPU-hours, static for the peak", _static),
    ("saved against it", lambda each: percent(each.saved, 1)),
    ("mean GPUs over their peak", lambda each: percent(each.mean_of_peak, 1)),
    ("scale-outs, scale-ins", lambda each: f"{each.scale_out}, {each.scale_in}"),
    ("ratio restored", lambda each: str(each.rebalance)),
    (
        "instances added, removed, restored",
        lambda each: f"{each.added}, {each.removed}, {each.restored}",
    ),
    ("correlation of GPUs with load", lambda each: number(each.correlation, 2)),
    ("best, at a lag", _best),
    ("GPU-hours unmet", lambda each: number(each.unmet_gpu_hours)),
    ("prefill GPU utilisation", lambda each: percent(each.prefill_gpu_util, 1)),
    ("decode GPU utilisation", lambda each: percent(each.decode_gpu_util, 1)),
    ("prefill SM activity", lambda each: percent(each.prefill_sm, 1)),
    ("decode SM activity", lambda each: percent(each.decode_sm, 1)),
    ("KV transfers between switches", lambda each: percent(each.crossing, 1)),
)
