"""The folder of results: rows go to a journal as they come, and into one table at the end.

A line of the journal is there whole or it does not count, whenever the process is killed. Once the
table is written the journal is emptied: a row may be in both for a moment, and is read once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from heteroplace.compare.record import (
    COLUMNS,
    INSTANCES,
    JOURNAL,
    MANIFEST,
    NAMES,
    PLANS,
    TABLE,
    Manifest,
    Row,
    arrow_schema,
)
from heteroplace.errors import InputError
from heteroplace.files import write_text

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger("heteroplace")

LOCK = ".lock"
REQUIRED = tuple(column.name for column in COLUMNS if not column.added)
# How often the journal is brought to the disk: what a power failure may cost, in seconds.
SYNC = 1.0
BLOCK = 10_000
LEFT_OVER = re.compile(r"\.[0-9a-f]{16}\.tmp")


class DamagedError(InputError):
    """A file that is there but cannot be read."""


class Store:
    """A folder that one run writes to; a context manager.

    Parameters
    ----------
    folder
        Where the results are or will be; its parents are made.

    Raises
    ------
    InputError
        On entering, if the folder cannot be made or another run writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: IO[str] | None = None
        self._journal: IO[bytes] | None = None
        self._synced = 0.0

    def __enter__(self) -> Store:
        try:
            for name in (INSTANCES, PLANS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "w", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        if not _locked(self._lock):
            self._lock.close()
            raise InputError(
                str(self.folder),
                "is written to by another run; wait for it or choose another --out",
            )
        try:
            for folder in (self.folder, self.folder / INSTANCES, self.folder / PLANS):
                for path in folder.iterdir():
                    if LEFT_OVER.fullmatch(path.name):
                        path.unlink(missing_ok=True)
            self._journal = open(self.folder / JOURNAL, "a+b")
            # Cut off what a killed run left of a line.
            self._journal.seek(0)
            self._journal.truncate(self._journal.read().rfind(b"\n") + 1)
        except OSError as error:
            self.__exit__()
            raise _unwritable(self.folder, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()
            path = self.folder / JOURNAL
            if path.exists() and not path.stat().st_size:
                path.unlink()
        for name in (INSTANCES, PLANS):
            with contextlib.suppress(OSError):
                (self.folder / name).rmdir()  # Only when it is empty.
        if self._lock is not None:
            self._lock.close()

    @property
    def manifest(self) -> Manifest | None:
        """What the folder holds; null when it is new."""
        path = self.folder / MANIFEST
        return Manifest.from_file(path) if path.exists() else None

    def write_manifest(self, manifest: Manifest) -> None:
        """Write what the folder holds."""
        write_text(self.folder / MANIFEST, manifest.to_json() + "\n")

    def outcomes(self) -> dict[str, bool]:
        """Keys of all rows that are there, and whether each is without an error.

        A table that cannot be read, as after a power failure, is set aside: its rows are made anew.
        """
        found: dict[str, bool] = {}
        path = self.folder / TABLE
        try:
            if path.exists():
                columns = _read(path, ["key", "error"]).to_pydict()
                for key, fault in zip(columns["key"], columns["error"], strict=True):
                    found[key] = fault is None
        except DamagedError as error:
            log.warning("%s: it is set aside and its rows are made anew", error)
            path.rename(path.with_name(path.name + ".damaged"))
        for row in _journalled(self.folder / JOURNAL):
            found[row["key"]] = row["error"] is None
        return found

    def forget(self, keys: Iterable[str]) -> None:
        """Take rows out, so that they can be made anew."""
        gone = set(keys)
        if not gone:
            return
        table = read_table(self.folder)
        kept = [key not in gone for key in table.column("key").to_pylist()]
        self._replace(table.filter(kept))

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; they are there when this returns, even if the process is killed then."""
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        if self._journal is None:
            raise RuntimeError("the folder is not open")
        try:
            self._journal.write(text.encode("ascii"))
            self._journal.flush()
            now = time.monotonic()
            if now - self._synced >= SYNC:
                os.fsync(self._journal.fileno())
                self._synced = now
        except OSError as error:
            raise _unwritable(self.folder / JOURNAL, error) from None

    def add_file(self, kind: str, name: str, text: str) -> None:
        """Write an instance or a plan; what an earlier try left is replaced.

        Parameters
        ----------
        kind
            ``instances`` or ``plans``.
        name
            Of the file, without ``.json``.
        text
            The JSON.
        """
        write_text(self.folder / kind / f"{name}.json", text)

    def compact(self, order: Iterable[str]) -> None:
        """Put all rows into one table.

        Parameters
        ----------
        order
            Keys in the order of the table.
        """
        import pyarrow as pa

        table = read_table(self.folder)
        place = {key: number for number, key in enumerate(table.column("key").to_pylist())}
        self._replace(table.take(pa.array([place[key] for key in order if key in place])))

    def _replace(self, table: pyarrow.Table) -> None:
        _write(table, self.folder / TABLE)
        os.truncate(self.folder / JOURNAL, 0)


def read_table(folder: Path) -> pyarrow.Table:
    """All rows of a folder, each once; the last written of equal keys.

    Parameters
    ----------
    folder
        With a table, a journal or both.

    Raises
    ------
    InputError
        If a file cannot be read or lacks a column.
    """
    import pyarrow as pa

    schema = arrow_schema()
    # The journal first: if it is emptied meanwhile, its rows are in the table by then.
    rows = _journalled(folder / JOURNAL)
    tables = []
    while block := list(islice(rows, BLOCK)):
        tables.append(pa.Table.from_pylist(block, schema=schema))
    path = folder / TABLE
    if path.exists():
        tables.insert(0, _read(path, list(NAMES)))
    table = pa.concat_tables([schema.empty_table(), *tables])
    keys = table.column("key").to_pylist()
    last = {key: number for number, key in enumerate(keys)}
    if len(last) < len(keys):
        table = table.take(pa.array(sorted(last.values())))
    return table


def _journalled(path: Path) -> Iterator[Row]:
    """The rows of a journal; lines that are damaged, as after a power failure, are left out."""
    damaged = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # It is being written.
                try:
                    row = json.loads(line)
                except ValueError:
                    damaged += 1
                    continue
                _refuse_lacking(path, row)
                yield row
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    if damaged:
        log.warning("%s: %d damaged line(s); heteroplace compare makes them anew", path, damaged)


def _read(path: Path, columns: list[str]) -> pyarrow.Table:
    """Columns of a table file; null where an earlier version did not have one yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            _refuse_lacking(path, there)
            table = file.read(columns=[name for name in columns if name in there])
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(
            str(path), f"cannot be read ({reason}); heteroplace compare makes its rows anew"
        ) from None
    schema = pa.schema([arrow_schema().field(name) for name in columns])
    for name in columns:
        if name not in there:
            nulls = pa.nulls(table.num_rows, schema.field(name).type)
            table = table.append_column(schema.field(name), nulls)
    return table.select(columns).cast(schema)


def _refuse_lacking(path: Path, there: Container[str]) -> None:
    lacking = next((name for name in REQUIRED if name not in there), None)
    if lacking is not None:
        raise InputError(
            str(path),
            f"lacks the column {lacking!r}, as written by another version; run the experiment "
            "into another folder",
        )


def _write(table: pyarrow.Table, path: Path) -> None:
    """Write a Parquet file that is there whole or not at all."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(str(path), f"cannot be written to: {error.strerror}; choose another --out")


def _locked(file: IO[str]) -> bool:
    """Take the lock, which ends with the process, however that ends; False when another has it."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two runs apart.
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
