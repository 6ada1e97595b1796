"""Reading and writing files, and one clear error for what is wrong in them."""

from __future__ import annotations

import codecs
import json
import os
import secrets
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from heteroplace.errors import InputError

T = TypeVar("T")

MAX_BYTES = 128 * 2**20


def read_bytes(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file of at most ``max_bytes`` bytes; :class:`InputError` names what is wrong."""
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(str(path), f"cannot be read: {reason}") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    if len(data) > max_bytes:
        raise InputError(
            str(path),
            f"is larger than the limit of {max_bytes} bytes; raise it with --max-bytes",
        )
    return data


def refuse_duplicate_keys(text: str | bytes, source: str) -> None:
    """Refuse JSON in which an object names a field twice: one of the two would be lost."""

    def pairs(items: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in items}) < len(items):
            twice = next(
                key for key, count in Counter(key for key, _ in items).items() if count > 1
            )
            raise InputError(source, f"{twice!r} is named twice in one object; keep one of them")

    # Numbers are not looked at here, so that one of any length parses.
    json.loads(text, object_pairs_hook=pairs, parse_int=len)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in UTF-8 so that it is there whole or not at all.

    A link stays a link: what it points to is written. A device or a named pipe is written to, not
    replaced.

    Parameters
    ----------
    path
        Where to write; the folder must be there.
    text
        What to write.

    Raises
    ------
    InputError
        If it cannot be written; names the path and the reason.
    """
    _write(path, lambda: text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file of bytes; all else is as in :func:`write_text`."""
    _write(path, lambda: data)


def _write(path: str | os.PathLike[str], encoded: Callable[[], bytes]) -> None:
    if not Path(path).name:
        raise InputError(str(path) or "''", "cannot be written: this is not the name of a file")
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(encoded())
        else:
            _replace(target, encoded())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(str(path), f"cannot be written: {reason}") from None


def _replace(target: Path, data: bytes) -> None:
    """Write beside the file, then put it in its place in one step."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def parse_toml(text: str | bytes, source: str) -> dict[str, Any]:
    """Parse TOML; :class:`InputError` names the source and what is wrong."""
    try:
        return tomllib.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(source, f"is not TOML ({error})") from None


def validated(build: Callable[[], T], source: str = "") -> T:
    """Run a pydantic validation; turn its errors into one :class:`InputError`."""
    try:
        return build()
    except ValidationError as error:
        raise input_error(error, source) from None
    except RecursionError:
        raise InputError(source, "is nested too deeply") from None


_PLAIN = {
    "missing": "is missing; add it",
    "extra_forbidden": "unknown field; remove it or correct its name",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_type": "must be a string",
    "string_unicode": "must be a string of valid Unicode",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt:.12g}",
    "greater_than_equal": "must be at least {ge:.12g}",
    "less_than": "must be less than {lt:.12g}",
    "less_than_equal": "must be at most {le:.12g}",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "invalid_key": "must have a string as its name",
    "json_type": "must be JSON text",
    "json_invalid": "is not complete, valid JSON ({error})",
}
_SELF_EVIDENT = {"missing", "extra_forbidden", "json_invalid", "value_error"}


def input_error(error: ValidationError, source: str = "") -> InputError:
    """Turn the first fault of a pydantic error into an :class:`InputError` with its field."""
    # A list of which every element is at fault is also reported as too short.
    found = error.errors(include_url=False)
    faults = [each for each in found if each["type"] != "too_short" or not each["input"]] or found
    first = faults[0]
    kind, context = first["type"], first.get("ctx", {})
    original = context.get("error")
    if isinstance(original, InputError):
        path, message = original.path, original.message
    else:
        path = "" if kind == "json_invalid" else _join(first["loc"])
        if kind in _PLAIN:
            message = _PLAIN[kind].format(**context)
        else:
            message = first["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
        if kind not in _SELF_EVIDENT:
            message += f"; got {_shown(first['input'])}"
    if len(faults) > 1:
        message += f" (and {len(faults) - 1} more)"
    prefix = ": ".join(part for part in (source, path) if part)
    return InputError(prefix, message)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _join(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        if part == "[key]":
            continue
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            path += f".{part}" if path else part
        else:
            path += f"[{part!r}]"
    return path
