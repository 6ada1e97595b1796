"""The one error a user sees for bad input."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: it names the field and the fix.

    Parameters
    ----------
    path
        Where the fault is, as in ``nodes[3].gpus``; the file's name when it is not one field.
    message
        What is wrong and what to do about it.
    """

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{path}: {message}" if path else message)
