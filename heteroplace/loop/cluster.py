"""Where the loop reads the cluster from: a file, or a command that prints one."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from heteroplace.errors import InputError
from heteroplace.files import MAX_BYTES
from heteroplace.loop.handover import require_program
from heteroplace.policy.cluster import Cluster

MOST_SHOWN = 500


class ClusterReader(Protocol):
    """Gives the cluster as it is now."""

    def read(self) -> Cluster:
        """Read it.

        Raises
        ------
        InputError
            If it cannot be read or is not a cluster.
        """
        ...

    def close(self) -> None:
        """Give up a reading that is going on in another thread."""
        ...


class ClusterFile:
    """A cluster file that somebody keeps up to date.

    Parameters
    ----------
    path
        JSON; it should be replaced whole, not written in place.
    max_bytes
        Largest file that is read.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def read(self) -> Cluster:
        """Read the file."""
        return Cluster.from_file(self.path, self._max_bytes)

    def close(self) -> None:
        """Nothing to give up."""


class ClusterCommand:
    """A command that prints the cluster as JSON.

    Parameters
    ----------
    command
        Program and arguments.
    timeout
        Seconds after which it is ended.
    max_bytes
        Most that is read of what it prints.

    Raises
    ------
    InputError
        If there is no such program.
    """

    def __init__(
        self, command: Sequence[str], timeout: float = 30.0, max_bytes: int = MAX_BYTES
    ) -> None:
        require_program("--cluster-command", command)
        self.command = tuple(command)
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the command if it runs."""
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):  # It may end by itself in the meantime.
                os.killpg(process.pid, signal.SIGKILL)

    def read(self) -> Cluster:
        """Run the command."""
        name = self.command[0]
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
            try:
                process = self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=said,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(name, f"cannot be started: {reason}") from None
            try:
                code = process.wait(timeout=self._timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise InputError(name, f"took longer than {self._timeout:g} s") from None
            if code:
                size = said.seek(0, os.SEEK_END)
                said.seek(max(0, size - MOST_SHOWN))
                words = " ".join(said.read().decode("utf-8", "replace").split())
                raise InputError(name, f"exit code {code}{f': {words}' if words else ''}")
            printed.seek(0)
            text = printed.read(self._max_bytes + 1)
        if len(text) > self._max_bytes:
            raise InputError(
                name, f"printed more than {self._max_bytes} bytes; raise it with --max-bytes"
            )
        return Cluster.from_json(text, f"output of {name}")
