"""What the scripted studies share: their options, the data they need, and how results are kept.

A study writes each of its tables as Parquet and CSV into a folder. ``study.json`` there holds what
was run and found; it is taken away first and written last, so a folder that has one is complete.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import multiprocessing
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from heteroplace.bench.environment import environment, load_average
from heteroplace.bench.isolation import isolated
from heteroplace.compare.statistics import Interval, Paired, bootstrap, paired
from heteroplace.errors import InputError
from heteroplace.files import write_text

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
DONE = "study.json"
Row = dict[str, Any]
T = TypeVar("T")


@dataclass
class Study:
    """What a study found.

    Parameters
    ----------
    name
        Of the study.
    tables
        Data by name: rows with the same columns.
    shown
        (title, rows) of the tables for people.
    notes
        What a reader must know, one sentence each.
    settings
        Everything that fixes the result, seeds included.
    """

    name: str
    tables: dict[str, list[Row]] = field(default_factory=dict)
    shown: list[tuple[str, list[Row]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: Row = field(default_factory=dict)


def parser(name: str, description: str, seeds: int) -> argparse.ArgumentParser:
    """The options that every study has."""
    made = argparse.ArgumentParser(prog=f"experiments/{name}.py", description=description)
    made.add_argument(
        "--seeds", type=count, default=seeds, metavar="N", help=f"seeds 0 to N - 1; default {seeds}"
    )
    made.add_argument("--out", default=f"out/{name}", metavar="FOLDER", help=f"default out/{name}")
    made.add_argument(
        "--workers",
        type=count,
        default=cores(),
        metavar="N",
        help="processes at a time; default the cores this process may use",
    )
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    return made


def data_option(made: argparse.ArgumentParser) -> None:
    """The option that says where the data is."""
    made.add_argument(
        "--data",
        type=Path,
        default=DATA,
        metavar="FOLDER",
        help="folder of the data; default shared/data beside the project",
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def count(text: str) -> int:
    """Read a number of at least 1."""
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:7]) <= 100_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 100000, got {text[:40]!r}")
    return int(text)


def seconds(text: str) -> float:
    """Read a time limit."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 3600 s, got {text[:40]!r}")
    return value


def needed(folder: Path, *names: str) -> list[Path]:
    """The files of these names in a folder of data; :class:`InputError` names all that are missing.

    Parameters
    ----------
    folder
        Folder of the data.
    names
        Relative to it.
    """
    found = [folder / name for name in names]
    missing = [str(each) for each in found if not each.is_file()]
    if missing:
        raise InputError(
            "--data",
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; the data is not "
            "part of the project: name the folder that holds it with --data",
        )
    return found


def writable(out: str) -> Path:
    """Make the folder of results before anything is computed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(
            "--out", "needs pyarrow; install it with: pip install 'heteroplace[study]'"
        ) from None
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DONE).unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(out, f"cannot be written: {reason}") from None
    return folder


def keep(study: Study, folder: Path, began: float) -> Row:
    """Write all tables and what was run; gives what ``--json`` prints.

    Parameters
    ----------
    study
        What was found.
    folder
        From :func:`writable`.
    began
        :func:`time.time` at the start.
    """
    import pyarrow
    import pyarrow.parquet

    for name, rows in study.tables.items():
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        _write(folder / f"{name}.parquet", buffer.getvalue())
        write_text(folder / f"{name}.csv", as_csv(rows))
    facts = {
        "schema": 1,
        "study": study.name,
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - began, 1),
        "load_average": load_average(),
        "environment": environment().model_dump(mode="json"),
        "settings": study.settings,
        "findings": [{"title": title, "rows": rows} for title, rows in study.shown],
        "notes": study.notes,
        "tables": {name: len(rows) for name, rows in study.tables.items()},
    }
    write_text(folder / DONE, json.dumps(facts, indent=1, default=str) + "\n")
    return facts


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header; all have the columns of the first."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write beside the file, then put it in its place in one step."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror}") from None


def show(study: Study, folder: Path) -> None:
    """Print the tables for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 118)
    for title, rows in study.shown:
        table = Table(title=title, title_justify="left")
        for column in rows[0] if rows else []:
            texts = all(isinstance(row[column], str) and _is_text(row[column]) for row in rows)
            table.add_column(column, justify="left" if texts else "right")
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
        console.print(table)
    for note in study.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(f"written to {folder}", markup=False, highlight=False)


def _is_text(text: str) -> bool:
    return not text[:1].isdigit() and text[:1] not in "+−-–"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def percent(interval: Interval, places: int = 1) -> str:
    """An interval of a share in percent, as in ``4.1 % [3.0, 5.2]``."""
    return f"{100 * interval.estimate:.{places}f} %" + _ends(interval, 100, places)


def points(interval: Interval, places: int = 1) -> str:
    """An interval of a difference of shares in percentage points, as in ``+4.1 [3.0, 5.2]``."""
    return f"{100 * interval.estimate:+.{places}f}" + _ends(interval, 100, places)


def plain(interval: Interval, places: int = 2) -> str:
    """An interval, as in ``4.12 [3.02, 5.20]``."""
    return f"{interval.estimate:.{places}f}" + _ends(interval, 1, places)


def growth(interval: Interval, places: int = 1) -> str:
    """An interval of a difference of logarithms as a change, as in ``+4.1 % [+3.0, +5.2]``."""
    made = [math.expm1(end) for end in (interval.estimate, interval.low, interval.high)]
    shown = [f"{100 * end:+.{places}f}" for end in made]
    ends = "" if math.isnan(interval.low) else f" [{shown[1]}, {shown[2]}]"
    return f"{shown[0]} %{ends}"


def _ends(interval: Interval, factor: float, places: int) -> str:
    """The ends; nothing for a single observation, which has none."""
    if math.isnan(interval.low):
        return ""
    low, high = factor * interval.low, factor * interval.high
    return f" [{low:.{places}f}, {high:.{places}f}]"


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of independent values with its bootstrap interval."""
    return bootstrap(list(values))


def compared(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Two arms on the same seeds: first − second."""
    return paired(list(first), list(second))


def by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows grouped by columns, in the order in which they come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def each(
    what: str,
    function: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
) -> list[T]:
    """Call a function with each of the argument lists, each call in a process of its own.

    So an engine that does not end, which a time limit leaves behind, ends with its process.

    Parameters
    ----------
    what
        Title of the progress bar, which is on standard error when that is a terminal.
    function
        Of a module.
    calls
        Arguments of each call.
    workers
        Processes at a time.

    Returns
    -------
    list
        In the order of the calls.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    pool = ThreadPoolExecutor(workers)
    waiting = [pool.submit(isolated, function, *arguments) for arguments in calls]
    ended = track(
        as_completed(waiting), what, len(calls), console=console, disable=not console.is_terminal
    )
    try:
        for done in ended:
            done.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        # They do not hear an interrupt, and the threads of the pool wait for them.
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown()
    return [done.result() for done in waiting]


def settle(patience: float = 2.0) -> None:
    """Wait for engine threads that overran their time: they would slow the next solve down."""
    for thread in threading.enumerate():
        if thread.name == "heteroplace-engine":
            thread.join(patience)


def main(
    made: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], Study],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a study as a command: 0 done, 2 bad input.

    Parameters
    ----------
    made
        Its options.
    run
        What computes it.
    arguments
        Default those of the command line.
    """
    began = time.time()
    options = made.parse_args(arguments)
    try:
        folder = writable(options.out)
        study = run(options)
        facts: Mapping[str, Any] = keep(study, folder, began)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130
    if options.json:
        sys.stdout.write(json.dumps(facts, indent=1, default=str) + "\n")
    else:
        show(study, folder)
    return 0
