"""Handing an action over: to a folder of files, or to a command."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal, Protocol

from heteroplace.errors import InputError
from heteroplace.loop import courier
from heteroplace.loop.clock import Clock
from heteroplace.loop.store import Recorded

log = logging.getLogger("heteroplace.loop")

Outcome = Literal["delivered", "refused"]

DONE_FOLDER = "done"
ACTION_ID = "HETEROPLACE_ACTION_ID"
REFUSED = os.EX_DATAERR
RECEIPT = ".receipt"
STILL_RUNS = "a command that was started earlier still runs"
ASK_YES, ASK_NO = 0, 1
GRACE = 5.0
MOST_SHOWN = 2000
POLL = 0.02


class HandoverError(RuntimeError):
    """An action could not be handed over now; it stays in the outbox."""


class Handover(Protocol):
    """One way to hand an action over."""

    def deliver(self, action: Recorded) -> Outcome:
        """Hand an action over, once.

        Raises
        ------
        HandoverError
            If that is not known to have happened.
        """
        ...

    def tidy(self, open_actions: Collection[str]) -> None:
        """Drop what was kept to know that an action was handed over, but for the open ones."""
        ...


class FolderHandover:
    """One file for each action, ``<id>.json``; it appears whole, once, and is never changed.

    Parameters
    ----------
    folder
        Where the files go; it must be there. A receiver that wants the folder cleared moves a
        file into the folder ``done`` beside it, under the same name.

    Raises
    ------
    InputError
        If the folder is not there or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not os.fspath(folder) or not self.folder.is_dir():
            raise InputError(
                str(folder) or "--to", "is not a folder; make it or name another for --to"
            )
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(str(folder), "cannot be written; change its rights or name another")

    def deliver(self, action: Recorded) -> Outcome:
        """Write the file, unless it is there or in ``done``."""
        name, data = f"{action.id}.json", action.document.encode()
        try:
            # A receiver moves from here to there, so looking in this order finds it on its way.
            for place in (self.folder / name, self.folder / DONE_FOLDER / name):
                if place.exists():
                    if place.read_bytes() != data:
                        raise HandoverError(
                            f"{place} is there with other content; move it away, it is not this "
                            "action's"
                        )
                    self._sync(place.parent)
                    return "delivered"
            self._write(name, data)
        except OSError as error:
            reason = error.strerror or error
            raise HandoverError(f"{self.folder / name} cannot be written: {reason}") from None
        return "delivered"

    def tidy(self, open_actions: Collection[str]) -> None:
        """Nothing is kept beside the files themselves."""

    def _write(self, name: str, data: bytes) -> None:
        # The same name each time, so that a killed process leaves nothing that piles up.
        temporary = self.folder / f".{name}.tmp"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)
        self._sync(self.folder)

    @staticmethod
    def _sync(folder: Path) -> None:
        """Make the folder's list of names survive a power failure."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class CommandHandover:
    """A command that gets the action as JSON on its standard input.

    Exit code 0 means accepted, 65 (``EX_DATAERR``) refused for good, any other one try again.

    Parameters
    ----------
    command
        Program and arguments. It finds the action's id in ``HETEROPLACE_ACTION_ID``.
    receipts
        A folder for receipts and the lock; made if it is not there.
    timeout
        Seconds after which the command is ended.
    ask
        A command that is asked before an action is handed over again: exit code 0 if the receiver
        has the action of that id, 1 if it has not.

    Raises
    ------
    InputError
        If there is no such program, or the folder cannot be made.

    Notes
    -----
    A courier (:mod:`heteroplace.loop.courier`) runs the command, and goes on if the loop is killed.
    It leaves a receipt, and keeps the delivery lock as long as the command runs. So the next loop
    waits for a command that is still running, sees its receipt, and does not run it again.
    """

    def __init__(
        self,
        command: Sequence[str],
        receipts: str | os.PathLike[str],
        timeout: float = 60.0,
        ask: Sequence[str] | None = None,
    ) -> None:
        self.command = tuple(command)
        self.receipts = Path(os.path.abspath(receipts))
        self.timeout = timeout
        self.ask = None if ask is None else tuple(ask)
        for option, words in (("--to-command", self.command), ("--ask", self.ask)):
            if words is not None:
                require_program(option, words)
        try:
            self.receipts.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(str(receipts), f"cannot be made: {error.strerror}") from None

    def deliver(self, action: Recorded) -> Outcome:
        """Run the command, unless a receipt or the receiver says that it has the action."""
        try:
            with delivery_lock(self.receipts, self.timeout + GRACE) as lock:
                if receipt_of(self.receipts, action.id).exists():
                    log.info("action %s: a receipt says that it was accepted", action.id)
                    return "delivered"
                if action.attempts and self.ask is not None and self._has(action.id):
                    log.info("action %s: the receiver says that it has it", action.id)
                    return "delivered"
                code, words = self._run(action, lock)
        except OSError as error:
            where = error.filename or self.receipts
            raise HandoverError(f"{where} cannot be used: {error.strerror or error}") from None
        if code == 0:
            return "delivered"
        if code == REFUSED:
            log.error("action %s was refused: %s", action.id, words or "no reason given")
            return "refused"
        raise HandoverError(f"{self.command[0]}: exit code {code}{f': {words}' if words else ''}")

    def tidy(self, open_actions: Collection[str]) -> None:
        """Drop the receipts of actions that are not open."""
        for receipt in self.receipts.glob(f"*{RECEIPT}*"):
            if receipt.name.partition(RECEIPT)[0] not in open_actions:
                with suppress(OSError):  # One that stays does no harm.
                    receipt.unlink()

    def _run(self, action: Recorded, lock: int) -> tuple[int, str]:
        """Exit code of the command and the end of what it said on standard error."""
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as document:
            # A file, not a pipe: a loop that is killed must not leave half an action in it.
            document.write(action.document.encode())
            document.seek(0)
            process = _started(
                [
                    *(sys.executable, "-I", "-S", courier.__file__),
                    *(str(receipt_of(self.receipts, action.id)), str(self.timeout)),
                    *self.command,
                ],
                document,
                said,
                _environment(action.id),
                lock,
            )
            try:
                code = process.wait(timeout=self.timeout + GRACE)
            except subprocess.TimeoutExpired:
                # Not ended: the command would live on, and the next one run beside it.
                raise HandoverError(f"{self.command[0]}: {STILL_RUNS}") from None
            size = said.seek(0, os.SEEK_END)
            said.seek(max(0, size - MOST_SHOWN))
            return code, " ".join(said.read().decode("utf-8", "replace").split())

    def _has(self, action: str) -> bool:
        """Ask the receiver whether it has an action."""
        assert self.ask is not None
        try:
            code = subprocess.run(
                self.ask,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(action),
                timeout=self.timeout,
                check=False,
                start_new_session=True,
            ).returncode
        except subprocess.TimeoutExpired:
            raise HandoverError(f"{self.ask[0]}: took longer than {self.timeout:g} s") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HandoverError(f"{self.ask[0]}: cannot be started: {reason}") from None
        if code not in (ASK_YES, ASK_NO):
            raise HandoverError(
                f"{self.ask[0]}: exit code {code}, neither {ASK_YES} (it has the action) nor "
                f"{ASK_NO} (it has not)"
            )
        return code == ASK_YES


def receipt_of(receipts: Path, action: str) -> Path:
    """The file that says that a command accepted an action."""
    return receipts / f"{action}{RECEIPT}"


@contextmanager
def delivery_lock(receipts: Path, seconds: float) -> Iterator[int]:
    """Hold the lock that a courier holds while its command runs.

    Parameters
    ----------
    receipts
        The folder of the receipts; it must be there.
    seconds
        How long to wait for a command that an earlier loop has left running.

    Raises
    ------
    HandoverError
        If it still runs then.
    OSError
        If the lock cannot be opened.
    """
    lock = os.open(receipts / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise HandoverError(STILL_RUNS) from None
                time.sleep(POLL)
        yield lock
    finally:
        os.close(lock)


def _started(
    command: Sequence[str],
    document: IO[bytes],
    said: IO[bytes],
    environment: Mapping[str, str],
    lock: int,
) -> subprocess.Popen[bytes]:
    """Start a command that lives on without this process and holds the lock."""
    try:
        return subprocess.Popen(
            command,
            stdin=document,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,
        )
    except OSError as error:
        raise HandoverError(f"no process can be started: {error.strerror}") from None


def require_program(option: str, command: Sequence[str]) -> None:
    """Refuse a command whose program is not there.

    Parameters
    ----------
    option
        Where it was given.
    command
        Program and arguments.

    Raises
    ------
    InputError
        Names the option and the fix.
    """
    if not command or shutil.which(command[0]) is None:
        named = repr(command[0]) if command else "''"
        raise InputError(
            option, f"there is no program {named} that can be run; correct its path or its rights"
        )


def _environment(action: str) -> Mapping[str, str]:
    return {**os.environ, ACTION_ID: action}


class Retrying:
    """Tries a handover again, with longer and longer waits between.

    Parameters
    ----------
    handover
        What is tried.
    clock
        Lets the time pass.
    attempts
        How often it is tried in one cycle.
    backoff
        Seconds before the second attempt; doubled for each further one, up to ``longest``, and
        varied by a quarter so that several loops do not knock in step.
    longest
        Longest wait in seconds.
    """

    def __init__(
        self,
        handover: Handover,
        clock: Clock,
        attempts: int = 3,
        backoff: float = 1.0,
        longest: float = 30.0,
    ) -> None:
        self.handover = handover
        self._clock = clock
        self._attempts = attempts
        self._backoff = backoff
        self._longest = longest
        self._random = random.Random()

    def deliver(
        self, action: Recorded, stop: threading.Event, begin: Callable[[str], None]
    ) -> Outcome:
        """Hand an action over; stop trying when asked to.

        Parameters
        ----------
        action
            What to hand over.
        stop
            Set when no further attempt should be made.
        begin
            Called with the action's id before each attempt.

        Raises
        ------
        HandoverError
            After the last attempt, or when ``stop`` is set between two.
        """
        wait = self._backoff
        for attempt in range(1, self._attempts + 1):
            begin(action.id)
            try:
                return self.handover.deliver(action)
            except HandoverError as error:
                if attempt == self._attempts:
                    raise
                log.warning(
                    "action %s, attempt %d of %d: %s", action.id, attempt, self._attempts, error
                )
                pause = min(wait, self._longest) * self._random.uniform(0.75, 1.25)
                if self._clock.wait(pause, stop):
                    raise
            wait *= 2
            action = replace(action, attempts=action.attempts + 1)
        raise AssertionError("unreachable")
