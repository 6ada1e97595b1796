"""The file a store is kept in: opened, locked and examined, without harm to a damaged one."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from heteroplace.errors import InputError

SCHEMA = 2
FIRST_SCHEMA = 1
APPLICATION = 0x68706C63  # "hplc"
MAGIC = b"SQLite format 3\0"
BUSY_SECONDS = 5.0


def examine(path: str) -> None:
    """Refuse a file that is not a sound state of this release; it is only read.

    Raises
    ------
    InputError
        Names the file, what is wrong and what to do.
    """
    if not has_content(path):
        return
    with faults(path):
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise InputError(
                    path, "is not a state file (no SQLite database); name another file for --state"
                )
        with closing(read_only(path)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (schema,) = connection.execute("PRAGMA user_version").fetchone()
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not application and not schema and not tables:
                return  # Killed before its first transaction: as good as new.
            if application != APPLICATION:
                raise InputError(
                    path, "is the database of another program; name another file for --state"
                )
            if not FIRST_SCHEMA <= schema <= SCHEMA:
                raise InputError(
                    path,
                    f"has schema {schema}, this release reads {FIRST_SCHEMA} to {SCHEMA}; use the "
                    "release that wrote it or name another file for --state",
                )
            rows = connection.execute("PRAGMA integrity_check(1)").fetchall()
            if rows != [("ok",)]:
                raise InputError(path, _damaged(str(rows[0][0])))


def _damaged(reason: str) -> str:
    return (
        f"is damaged ({reason.splitlines()[-1].strip()}) and is kept as it is; restore a copy, or "
        "move it away to begin with an empty state (timers and undelivered actions are then lost)"
    )


def require(path: str) -> None:
    """Refuse a file that holds no sound state."""
    if not has_content(path):
        raise InputError(path, "holds no state; name the file that `heteroplace run` writes")
    examine(path)


def has_content(path: str) -> bool:
    """Whether there is a file that is not empty."""
    try:
        return Path(path).stat().st_size > 0
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(path, f"cannot be read: {reason}") from None


def connect(path: str) -> sqlite3.Connection:
    """Open a file to be written; what is committed survives a power failure."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def read_only(path: str) -> sqlite3.Connection:
    """Open a file to be read."""
    # A file that was closed well has no write-ahead log. Nobody has it open then, and it can be
    # read without SQLite making a log and shared memory beside it.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    # as_uri needs an absolute path; it also escapes what would end the name.
    return sqlite3.connect(
        f"{Path(os.path.abspath(path)).as_uri()}?{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
    )


def locked(path: str) -> int:
    """Take the lock of a state file; the system frees it when the process ends in any way."""
    name = f"{path}.lock"
    if not Path(path).name or Path(path).is_dir():
        raise InputError(path or "''", "is not the name of a file; name a file for --state")
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            path,
            f"cannot be written: {reason} ({name}); for --state name a file in a folder that is "
            "there and may be written",
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise InputError(
            path,
            f"is in use by another run{f' (process {owner})' if owner else ''}; stop that one or "
            "name another file for --state",
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    return lock


@contextmanager
def faults(path: str) -> Iterator[None]:
    """Turn what SQLite and the system say into one clear error."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # A fault of the program, not of the file.
    except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
        raise InputError(path, f"cannot be used: {error}; the file is kept as it is") from None
    except sqlite3.DatabaseError as error:
        raise InputError(path, _damaged(str(error))) from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(path, f"cannot be used: {reason}") from None
