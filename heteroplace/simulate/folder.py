"""An outcome as a folder of files, each there whole or not at all.

``summary.json`` is taken away first and written last: where it is, the folder is complete.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heteroplace.errors import InputError
from heteroplace.files import write_bytes, write_text
from heteroplace.simulate.outcome import UNITS, Outcome

if TYPE_CHECKING:
    import pyarrow

SUMMARY = "summary.json"
INSTALL = "needs {}; install it with: pip install 'heteroplace[study]'"


def write_outcome(
    outcome: Outcome, folder: str | os.PathLike[str], pictures: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write time series, events, summary and plots.

    Parameters
    ----------
    outcome
        What to write.
    folder
        Where; made if it is not there. Files of an earlier outcome are replaced.
    pictures
        Formats of the plots, of ``svg`` and ``png``; none for no plots.

    Returns
    -------
    list of Path
        The files, in the order in which they were written.

    Raises
    ------
    InputError
        If something cannot be written, or pyarrow or matplotlib is not installed.
    """
    require_writing(pictures)
    import pyarrow.csv
    import pyarrow.parquet

    target = make_folder(folder)
    try:
        (target / SUMMARY).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(str(folder), f"cannot be written: {error.strerror}") from None
    table = as_table(outcome)
    written = []
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_bytes(target / "series.parquet", buffer.getvalue())
    written.append(target / "series.parquet")
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    write_bytes(target / "series.csv", buffer.getvalue())
    written.append(target / "series.csv")
    write_text(target / "events.csv", events_csv(outcome))
    written.append(target / "events.csv")
    if pictures:
        from heteroplace.simulate.plots import draw

        for service, name in zip(outcome.services, _file_names(outcome.services), strict=True):
            for kind in pictures:
                write_bytes(target / f"{name}.{kind}", draw(outcome, service, kind))
                written.append(target / f"{name}.{kind}")
    write_text(target / SUMMARY, summary_json(outcome) + "\n")
    return [*written, target / SUMMARY]


def _file_names(services: Sequence[str]) -> list[str]:
    """A name for the files of each service: its own as far as a file can have it, each once."""
    found: list[str] = []
    for service in services:
        plain = name = re.sub(r"[^\w.-]", "_", service)[:80]
        number = 0
        while name in found:
            number += 1
            name = f"{plain}-{number}"
        found.append(name)
    return found


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder if it is not there; :class:`heteroplace.InputError` if that fails."""
    target = Path(folder)
    if not os.fspath(folder):
        raise InputError("--out", "is empty; name a folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(str(folder), f"cannot be written: {reason}") from None
    return target


def require_writing(pictures: Sequence[str] = ()) -> None:
    """Raise :class:`heteroplace.InputError` when what a folder needs is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError("--out", INSTALL.format("pyarrow")) from None
    if pictures:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise InputError("plots", INSTALL.format("matplotlib")) from None


def as_table(outcome: Outcome) -> pyarrow.Table:
    """All series as one table: a row for each service and tick, units in the fields' metadata."""
    import pyarrow

    services, ticks = len(outcome.services), outcome.ticks
    fields: list[Any] = [
        pyarrow.field("service", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
        pyarrow.field("t_s", pyarrow.float64(), metadata={"unit": "s from the start"}),
    ]
    columns: list[Any] = [
        pyarrow.DictionaryArray.from_arrays(
            np.repeat(np.arange(services, dtype=np.int32), ticks), list(outcome.services)
        ),
        pyarrow.array(np.tile(np.arange(ticks) * outcome.tick, services)),
    ]
    for name, unit in UNITS.items():
        fields.append(pyarrow.field(name, pyarrow.float64(), metadata={"unit": unit}))
        # What is not known (nan) is null.
        columns.append(pyarrow.array(outcome.series[name].T.ravel(), from_pandas=True))
    return pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields))


def events_csv(outcome: Outcome) -> str:
    """All events, one line each."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    columns = (
        *("at", "service", "action", "driver", "reason", "before", "counts"),
        *("added", "removed", "restored", "terminated", "unmet_gpus"),
    )
    writer.writerow(columns)
    for event in outcome.events:
        cells = [getattr(event, name) for name in columns]
        writer.writerow(
            json.dumps(each, sort_keys=True) if isinstance(each, dict) else each for each in cells
        )
    return buffer.getvalue()


def summary_json(outcome: Outcome) -> str:
    """The summary as JSON."""
    data = {
        "schema": 1,
        "policy": outcome.policy,
        "seed": outcome.seed,
        "start": outcome.start,
        "hours": outcome.ticks * outcome.tick / 3600,
        "tick_seconds": outcome.tick,
        "interval_seconds": outcome.interval,
        "services": [each.model_dump(mode="json") for each in outcome.summaries],
        "events": len(outcome.events),
        "notes": list(outcome.notes),
    }
    return json.dumps(data, indent=1, allow_nan=False)
