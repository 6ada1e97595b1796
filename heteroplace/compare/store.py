"""The folder of results: rows are appended as small whole files and put into one table at the end.

A part is written beside its place and renamed, so that it is there whole or not at all, whenever
the process is killed. When parts pile up they are written once more as one, and only then removed:
a row may be there twice for a moment, and is read once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from heteroplace.compare.record import (
    INSTANCES,
    MANIFEST,
    NAMES,
    PARTS,
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
MOST_PARTS = 256
SUFFIX = ".parquet"


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
        self._fresh: list[Row] = []
        self._parts: list[Path] = []
        self._number = 0

    def __enter__(self) -> Store:
        try:
            for name in (PARTS, INSTANCES, PLANS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "w", encoding="utf-8")
        except OSError as error:
            raise InputError(
                str(self.folder), f"cannot be written to: {error.strerror}; choose another --out"
            ) from None
        if not _locked(self._lock):
            self._lock.close()
            raise InputError(
                str(self.folder),
                "is written to by another run; wait for it or choose another --out",
            )
        for left in [*self.folder.rglob(".*.tmp")]:
            left.unlink(missing_ok=True)
        numbers = [int(path.stem) for path in self._part_files() if path.stem.isdecimal()]
        self._number = max(numbers, default=-1) + 1
        return self

    def __exit__(self, *_: object) -> None:
        for name in (PARTS, INSTANCES, PLANS):
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

        A part that cannot be read, as after a power failure, is set aside: its rows are made anew.
        """
        found: dict[str, bool] = {}
        for path in (self.folder / TABLE, *self._part_files()):
            if not path.exists():
                continue
            try:
                columns = _read(path, ["key", "error"]).to_pydict()
            except DamagedError as error:
                log.warning("%s: it is set aside and its rows are made anew", error)
                path.rename(path.with_name(path.name + ".damaged"))
                continue
            for key, fault in zip(columns["key"], columns["error"], strict=True):
                found[key] = fault is None
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
        """Add rows; they are there when this returns, whatever happens next."""
        import pyarrow as pa

        path = self._next_part()
        _write(pa.Table.from_pylist(list(rows), schema=arrow_schema()), path)
        self._parts.append(path)
        self._fresh.extend(rows)
        if len(self._parts) >= MOST_PARTS:
            _write(pa.Table.from_pylist(self._fresh, schema=arrow_schema()), self._next_part())
            for path in self._parts:
                path.unlink()
            self._parts, self._fresh = [], []

    def add_file(self, kind: str, name: str, text: str) -> None:
        """Write an instance or a plan, unless it is there.

        Parameters
        ----------
        kind
            ``instances`` or ``plans``.
        name
            Of the file, without ``.json``.
        text
            The JSON.
        """
        path = self.folder / kind / f"{name}.json"
        if not path.exists():
            write_text(path, text)

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
        old = self._part_files()
        _write(table, self.folder / TABLE, compression="zstd")
        for path in old:
            path.unlink()
        self._parts, self._fresh = [], []

    def _next_part(self) -> Path:
        path = self.folder / PARTS / f"{self._number:08d}{SUFFIX}"
        self._number += 1
        return path

    def _part_files(self) -> list[Path]:
        return sorted((self.folder / PARTS).glob(f"*{SUFFIX}"))


def read_table(folder: Path) -> pyarrow.Table:
    """All rows of a folder, each once; the last written of equal keys.

    Parameters
    ----------
    folder
        With a table, parts or both.

    Raises
    ------
    InputError
        If a file cannot be read or lacks a column.
    """
    import pyarrow as pa

    schema = arrow_schema()
    paths = [folder / TABLE, *sorted((folder / PARTS).glob(f"*{SUFFIX}"))]
    tables = [
        _read(path, list(NAMES)).select(NAMES).cast(schema) for path in paths if path.exists()
    ]
    table = pa.concat_tables([schema.empty_table(), *tables])
    keys = table.column("key").to_pylist()
    last = {key: number for number, key in enumerate(keys)}
    if len(last) < len(keys):
        table = table.take(pa.array(sorted(last.values())))
    return table


def _read(path: Path, columns: list[str]) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        lacking = [name for name in NAMES if name not in file.schema_arrow.names]
        if not lacking:
            return file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(
            str(path), f"cannot be read ({reason}); heteroplace compare makes its rows anew"
        ) from None
    raise InputError(
        str(path),
        f"lacks the column {lacking[0]!r}, as written by another version; run the experiment "
        "into another folder",
    )


def _write(table: pyarrow.Table, path: Path, compression: str = "none") -> None:
    """Write a Parquet file that is there whole or not at all."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    options: dict[str, Any] = {"compression": compression}
    if compression == "none":
        options |= {"use_dictionary": False, "write_statistics": False}
    try:
        with open(temporary, "xb") as file:
            pq.write_table(table, file, **options)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


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
