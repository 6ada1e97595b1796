"""``heteroplace report``: its options, and what it makes of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from heteroplace.errors import InputError
from heteroplace.files import write_text

PAGE = "report.html"
PLACEMENTS = 60
MOST_PLACEMENTS = 1000


@dataclass(frozen=True)
class Shown:
    """What the command prints.

    Parameters
    ----------
    text
        On standard output.
    written
        The page's file; null when none was asked for.
    bytes
        Its size.
    """

    text: str = ""
    written: str | None = None
    bytes: int = 0


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the options."""
    command.add_argument("results", metavar="RESULTS", help="folder that heteroplace compare wrote")
    command.add_argument(
        "--out", metavar="FILE.html", help=f"where to write the page, default RESULTS/{PAGE}"
    )
    command.add_argument(
        "--baseline", metavar="PROFILE", help="default the first profile of solver greedy"
    )
    command.add_argument(
        "--against",
        metavar="PROFILE",
        help="what the baseline is held against, default the one with the most proofs",
    )
    command.add_argument(
        "--placements",
        type=_count,
        default=PLACEMENTS,
        metavar="N",
        help=f"instances with pictures of both plans, default {PLACEMENTS}",
    )
    command.add_argument(
        "--instance",
        action="append",
        default=[],
        metavar="KEY",
        help="a certain instance with pictures; may be repeated",
    )
    command.add_argument(
        "--solve",
        action="store_true",
        help="solve the pictured instances again of which plans were not kept",
    )
    command.add_argument(
        "--table", metavar="FIGURE", help="print the data of a figure as CSV, write no page"
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text[:9]) > MOST_PLACEMENTS or len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be from 0 to {MOST_PLACEMENTS}, got {text[:40]!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> Shown:
    """Make the page, or print the data of one of its figures.

    Parameters
    ----------
    arguments
        As parsed with :func:`add_options`.

    Raises
    ------
    InputError
        If the results cannot be read or hold nothing, an option does not fit, or the page cannot
        be written.
    """
    # Reading results needs what only this command and compare need.
    from heteroplace.compare.record import read_results
    from heteroplace.report.document import Commands, document, figures
    from heteroplace.report.findings import basis, findings
    from heteroplace.report.placements import chosen, pictures
    from heteroplace.report.study import Study

    if arguments.table is not None:
        for option, given in (("--json", arguments.json), ("--out", arguments.out is not None)):
            if given:
                raise InputError(option, "does not go with --table; drop one of them")
    study = Study.of(read_results(arguments.results), arguments.baseline, arguments.against)
    drawn = figures(study)
    if arguments.table is not None:
        tables = {figure.name: figure.table for figure in drawn}
        if arguments.table not in tables:
            raise InputError("--table", f"knows {', '.join(tables)}, not {arguments.table!r}")
        return Shown(tables[arguments.table].csv())
    pairs = chosen(study, arguments.placements, arguments.instance)
    with _progress(len(pairs)) as told:
        made = pictures(study, pairs, again=arguments.solve, told=told)
    found = findings(study)
    commands = Commands(arguments.results, _options(arguments))
    text = document(study, found, drawn, made, pairs, commands)
    out = arguments.out or str(study.results.folder / PAGE)
    write_text(out, text)
    size = len(text.encode())
    shown = ""
    if arguments.json:
        shown = json.dumps(
            {
                "experiment": study.manifest.name,
                "baseline": study.left,
                "against": study.right,
                "basis": basis(study),
                "instances": len(study.pairs),
                "proven": study.proven,
                "failed": len(study.failed),
                "findings": [
                    {"name": each.name, "text": each.text, "values": each.values} for each in found
                ],
                "figures": [figure.name for figure in drawn],
                "pictures": list(made.packed),
                "page": str(Path(out)),
                "bytes": size,
            },
            indent=1,
        )
    else:
        shown = "\n".join([basis(study), *(f"- {each.text}" for each in found)])
    return Shown(shown + "\n", out, size)


def _options(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The options as given, but for where the page goes and what it shows of instances."""
    given = []
    for option in ("baseline", "against"):
        if getattr(arguments, option) is not None:
            given += [f"--{option}", getattr(arguments, option)]
    return tuple(given)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; called with what is done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    off = sys.stderr is None or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        job = bar.add_task("placements", total=total)
        yield lambda done: bar.update(job, completed=done)
