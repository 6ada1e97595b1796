"""The loop's memory: what was decided, what was handed over, and what still has to be.

A state change and the action that belongs to it are written in one transaction, before anything
is handed over. So a process that dies at any moment leaves either both or neither, and the next one
finds in the outbox what it has to deliver first.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from heteroplace.loop.statefile import (
    APPLICATION,
    SCHEMA,
    connect,
    examine,
    faults,
    has_content,
    locked,
    read_only,
    require,
)

MOST_ENTRIES = 1_000_000
KEPT_ACTIONS = 100

_TABLES = """
CREATE TABLE store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    fleet_state TEXT
);
CREATE TABLE action (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at REAL NOT NULL,
    document TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    outcome TEXT CHECK (outcome IN ('delivered', 'refused')),
    finished_at REAL,
    waited REAL NOT NULL DEFAULT 0,
    settled TEXT CHECK (settled IN ('shown', 'reflected', 'expired', 'refused')),
    before TEXT
);
CREATE INDEX open_action ON action (sequence) WHERE settled IS NULL;
CREATE TABLE history (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    service TEXT NOT NULL,
    action TEXT NOT NULL,
    reason TEXT NOT NULL,
    decision TEXT NOT NULL,
    action_id TEXT
);
CREATE INDEX history_of_service ON history (service, number);
"""
# From schema 1, which did not keep the state before an action.
_UPGRADE = """
ALTER TABLE action ADD COLUMN before TEXT;
UPDATE action SET before = (SELECT fleet_state FROM store) WHERE outcome IS NULL;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A decision as the history keeps it.

    Parameters
    ----------
    at
        When it was made, in unix seconds.
    service, action, reason
        Of the decision.
    decision
        The whole decision as JSON.
    action_id
        The action it became a part of; null if there was nothing to hand over.
    """

    at: float
    service: str
    action: str
    reason: str
    decision: str
    action_id: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """An action as the store keeps it.

    Parameters
    ----------
    sequence
        Its number, from 1 on.
    id
        What a receiver knows it by.
    at
        When it was decided, in unix seconds.
    document
        The exact text that is handed over.
    attempts
        How often its handover was begun.
    outcome
        ``delivered`` or ``refused``; null while it is in the outbox.
    waited
        Seconds the loop has run since it was delivered, without the cluster showing it.
    """

    sequence: int
    id: str
    at: float
    document: str
    attempts: int
    outcome: str | None
    waited: float


class Store:
    """The state file; one process at a time writes it.

    Parameters
    ----------
    path
        The SQLite file; made if it is not there. The folder must be.

    Raises
    ------
    InputError
        If it is in use, damaged, of another program or release, or cannot be written. The file is
        then left as it was, byte for byte.

    Notes
    -----
    SQLite in WAL mode with ``synchronous=FULL``: what is committed survives kill -9 and a power
    failure. Use as a context manager, in one thread.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self._lock: int | None = locked(self.path)
        try:
            examine(self.path)
            with faults(self.path):
                self._connection = connect(self.path)
                self._prepare()
        except BaseException:
            self._unlock()
            raise

    @classmethod
    def in_memory(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """Make a store that writes no file, beginning with what a file holds.

        Parameters
        ----------
        path
            A state file, which is only read; null or a name that is not there begin with nothing.

        Raises
        ------
        InputError
            If there is a file, but it cannot be used.
        """
        made = cls.__new__(cls)
        made.path, made._lock = ":memory:" if path is None else str(path), None
        made._connection = sqlite3.connect(":memory:", isolation_level=None)
        if path is not None and has_content(str(path)):
            examine(str(path))
            with faults(made.path), closing(read_only(str(path))) as source:
                source.backup(made._connection)
        with faults(made.path):
            made._prepare()
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others use it."""
        try:
            self._connection.close()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self) -> None:
        """Make the tables of a new file, or what an older one lacks."""
        schema = self._value("PRAGMA user_version")
        if schema == SCHEMA:
            return
        run = self._connection.execute
        with self._transaction():
            for statement in (_UPGRADE if schema else _TABLES).split(";\n"):
                run(statement)
            if not schema:
                run("INSERT INTO store (one, id) VALUES (1, ?)", (secrets.token_hex(6),))
                run(f"PRAGMA application_id = {APPLICATION}")
            run(f"PRAGMA user_version = {SCHEMA}")

    def _value(self, query: str, values: Sequence[object] = ()) -> object:
        row = self._connection.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        with faults(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    # ----------------------------------------------------------------------------------------
    # Decisions
    # ----------------------------------------------------------------------------------------

    @property
    def fleet_state(self) -> str | None:
        """The state of the fleet's policies as JSON; null before the first cycle."""
        with faults(self.path):
            text = self._value("SELECT fleet_state FROM store")
        return None if text is None else str(text)

    def next_action(self) -> tuple[int, str]:
        """Number and id that the next action will have."""
        with faults(self.path):
            last = self._value("SELECT max(sequence) FROM action")
            store = self._value("SELECT id FROM store")
        sequence = int(str(last or 0)) + 1
        return sequence, f"{store}-{sequence:08d}"

    def commit(
        self,
        at: float,
        fleet_state: str,
        entries: Iterable[Entry] = (),
        document: str | None = None,
        waited: Mapping[str, float] | None = None,
        settled: Mapping[str, str] | None = None,
        keep: int | None = None,
    ) -> Recorded | None:
        """Write what a cycle decided, all of it or nothing.

        Parameters
        ----------
        at
            When it was decided, in unix seconds.
        fleet_state
            The new state of the policies, as JSON.
        entries
            For the history.
        document
            The action to hand over, with the id that :meth:`next_action` gave; null if none.
        waited
            Seconds that each pending action has waited in all, by id.
        settled
            Pending actions that need no more attention, by id: how that was seen.
        keep
            How many decisions of the history are kept, the last ones; null for all. By number and
            not by age, so that a clock that jumps cannot wipe it out.

        Returns
        -------
        Recorded or None
            The action, which is now in the outbox.
        """
        sequence, action = self.next_action()
        with self._transaction():
            run = self._connection.execute
            if document is not None:
                run(
                    "INSERT INTO action (sequence, id, at, document, before) "
                    "SELECT ?, ?, ?, ?, fleet_state FROM store",
                    (sequence, action, at, document),
                )
            run("UPDATE store SET fleet_state = ?", (fleet_state,))
            for each, seconds in (waited or {}).items():
                run("UPDATE action SET waited = ? WHERE id = ?", (seconds, each))
            for each, how in (settled or {}).items():
                run("UPDATE action SET settled = ? WHERE id = ?", (how, each))
            self._connection.executemany(
                "INSERT INTO history (at, service, action, reason, decision, action_id) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (each.at, each.service, each.action, each.reason, each.decision, each.action_id)
                    for each in entries
                ],
            )
            if keep is not None:
                run(
                    "DELETE FROM history WHERE number <= (SELECT max(number) FROM history) - ?",
                    (keep,),
                )
            # The numbers count on from the last one, so that one always stays.
            run(
                "DELETE FROM action WHERE settled IS NOT NULL "
                "AND sequence <= (SELECT max(sequence) FROM action) - ?",
                (KEPT_ACTIONS,),
            )
        return None if document is None else Recorded(sequence, action, at, document, 0, None, 0.0)

    # ----------------------------------------------------------------------------------------
    # Actions
    # ----------------------------------------------------------------------------------------

    def outbox(self) -> list[Recorded]:
        """Actions that were decided and are not handed over yet, in order."""
        return self._actions("outcome IS NULL")

    def pending(self) -> list[Recorded]:
        """Actions that were handed over and that the cluster does not show yet, in order."""
        return self._actions("outcome = 'delivered' AND settled IS NULL")

    def _actions(self, which: str) -> list[Recorded]:
        with faults(self.path):
            rows = self._connection.execute(
                "SELECT sequence, id, at, document, attempts, outcome, waited "
                f"FROM action WHERE {which} ORDER BY sequence"
            ).fetchall()
        return [Recorded(*row) for row in rows]

    def begin_attempt(self, action: str) -> None:
        """Note that an action is about to be handed over."""
        with self._transaction():
            self._connection.execute(
                "UPDATE action SET attempts = attempts + 1 WHERE id = ?", (action,)
            )

    def delivered(self, action: str, at: float) -> None:
        """Note that the receiver has an action, since ``at`` in unix seconds."""
        with self._transaction():
            self._connection.execute(
                "UPDATE action SET outcome = 'delivered', finished_at = ?, before = NULL "
                "WHERE id = ?",
                (at, action),
            )

    def refused(self, action: str, at: float) -> None:
        """Note that the receiver will never take an action, and go back to the state before it.

        Parameters
        ----------
        action
            Its id; the only one in the outbox, so that nothing was decided since.
        at
            When it was refused, in unix seconds.
        """
        with self._transaction():
            self._connection.execute(
                "UPDATE store SET fleet_state = (SELECT before FROM action WHERE id = ?)", (action,)
            )
            self._connection.execute(
                "UPDATE action SET outcome = 'refused', settled = 'refused', finished_at = ?, "
                "before = NULL WHERE id = ?",
                (at, action),
            )

    def counts(self) -> dict[str, int]:
        """Number of actions: ``outbox``, ``pending`` and ``delivered`` in all."""
        with faults(self.path):
            row = self._connection.execute(
                "SELECT count(*) FILTER (WHERE outcome IS NULL), "
                "count(*) FILTER (WHERE outcome = 'delivered' AND settled IS NULL), "
                "count(*) FILTER (WHERE outcome = 'delivered') FROM action"
            ).fetchone()
        return dict(zip(("outbox", "pending", "delivered"), row, strict=True))

    def history(self, last: int, service: str | None = None) -> list[Entry]:
        """The last decisions, of all services or of one, the oldest of them first."""
        with faults(self.path):
            return _history(self._connection, last, service)


def read_history(
    path: str | os.PathLike[str], last: int, service: str | None = None
) -> list[Entry]:
    """Read the last decisions from a state file, which may be in use.

    Parameters
    ----------
    path
        The state file.
    last
        How many.
    service
        Only of this one; null for all.

    Returns
    -------
    list of Entry
        The oldest comes first.

    Raises
    ------
    InputError
        If there is no such file or it cannot be used.
    """
    require(str(path))
    with faults(str(path)), closing(read_only(str(path))) as connection:
        return _history(connection, last, service)


def read_fleet_state(path: str | os.PathLike[str]) -> str | None:
    """Read the state of the policies, as JSON, from a state file that may be in use.

    Returns
    -------
    str or None
        Null if no cycle has ended yet.

    Raises
    ------
    InputError
        If there is no such file or it cannot be used.
    """
    require(str(path))
    with faults(str(path)), closing(read_only(str(path))) as connection:
        row = connection.execute("SELECT fleet_state FROM store").fetchone()
    return None if row is None else row[0]


def _history(connection: sqlite3.Connection, last: int, service: str | None) -> list[Entry]:
    where, values = ("", ()) if service is None else ("WHERE service = ? ", (service,))
    rows = connection.execute(
        "SELECT at, service, action, reason, decision, action_id FROM history "
        f"{where}ORDER BY number DESC LIMIT ?",
        (*values, min(last, MOST_ENTRIES)),
    ).fetchall()
    return [Entry(*row) for row in reversed(rows)]
