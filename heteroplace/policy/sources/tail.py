"""A text file read line by line as it grows."""

from __future__ import annotations

import codecs
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

from heteroplace.errors import InputError

MAX_LINE = 2**20
_CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file.

    Parameters
    ----------
    number
        From 1.
    text
        Without its end.
    """

    number: int
    text: str


class LineFile:
    """The lines of a file, each given once.

    Parameters
    ----------
    path
        A regular file.
    follow
        Whether the file is still written: then a last line without an end waits until it has
        one, and a file that was replaced or cut short is read from its start.

    Raises
    ------
    InputError
        If it cannot be opened or is not a regular file.
    """

    def __init__(self, path: str | os.PathLike[str], follow: bool = False) -> None:
        self._path = str(path)
        self._follow = follow
        self._file = self._open()
        self._start()

    def _start(self) -> None:
        self._number = 0
        self._whole: deque[bytes] = deque()
        self._rest = b""
        self._skipping = False

    def _open(self) -> BufferedReader:
        try:
            # A named pipe would hold up whoever opens it.
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise InputError(self._path, "is not a regular file; name one")
            return open(self._path, "rb")
        except (OSError, ValueError) as error:
            raise _unreadable(self._path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def rewind(self) -> None:
        """Begin again with the first line."""
        opened = self._open()  # Before the old one is closed, or a failure would leave none.
        self._file.close()
        self._file = opened
        self._start()

    def lines(self) -> Iterator[Line]:
        """Give the lines that have not been given yet, up to the end that the file has now.

        Raises
        ------
        InputError
            If the file cannot be read, or a line is not UTF-8 text or longer than 1 MiB. The
            lines after it can still be read.
        """
        yield from self._available()
        if self._follow and self._replaced():
            self.rewind()
            yield from self._available()
        elif not self._follow and self._rest:
            last, self._rest = self._rest, b""
            yield self._line(last)

    def _replaced(self) -> bool:
        try:
            now = os.stat(self._path)
            mine = os.fstat(self._file.fileno())
        except OSError:
            return False  # Between the removal of the old file and the creation of the new one.
        return not os.path.samestat(now, mine) or mine.st_size < self._file.tell()

    def _available(self) -> Iterator[Line]:
        while True:
            # Whoever reads may stop anywhere; what was split off waits here.
            while self._whole:
                yield self._line(self._whole.popleft())
            try:
                chunk = self._file.read(_CHUNK)
            except OSError as error:
                raise _unreadable(self._path, error) from None
            if not chunk:
                return
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            self._whole.extend(whole)
            if len(self._rest) > MAX_LINE:
                self._rest = b""
                self._skipping = True

    def _line(self, raw: bytes) -> Line:
        self._number += 1
        skipped, self._skipping = self._skipping, False
        if skipped or len(raw) > MAX_LINE:
            raise InputError(
                f"{self._path}, line {self._number}", f"is longer than {MAX_LINE} bytes"
            )
        if self._number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            return Line(self._number, raw.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError:
            raise InputError(f"{self._path}, line {self._number}", "is not UTF-8 text") from None


def _unreadable(path: str, error: OSError | ValueError) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
