"""Lines of recorded metrics: JSON lines and CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MAX_NAME = 256
_LATEST = 1e11
_COLUMNS = ("at", "service", "signal", "value")


class BadLineError(ValueError):
    """A line that is not a sample: what is wrong and what it must look like."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One recorded value.

    Parameters
    ----------
    at
        Unix seconds.
    service, signal
        By name.
    value
        In the signal's unit; NaN where the record says that there was none.
    """

    at: float
    service: str
    signal: str
    value: float


LineParser = Callable[[str], Sequence[Sample]]


def parse_json_line(text: str) -> Sequence[Sample]:
    """Read a JSON object: ``at``, ``service`` and either ``signal`` and ``value`` or ``signals``.

    Raises
    ------
    BadLineError
        If it is anything else.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise BadLineError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadLineError(f"is not one complete JSON object ({error.msg})") from None
    except BadLineError:
        raise
    except ValueError:  # Python refuses to read integers of thousands of digits.
        raise BadLineError("holds a number of too many digits") from None
    if not isinstance(data, dict):
        raise BadLineError("must be a JSON object")
    known = {"at", "service", "signal", "value", "signals"}
    for name in data:
        if name not in known:
            raise BadLineError(f"field {name[:40]!r}: unknown; remove it or correct its name")
    at = _time(_needed(data, "at"))
    service = _name(_needed(data, "service"), "service")
    if "signals" not in data:
        value = _value(_needed(data, "value"))
        return (Sample(at, service, _name(_needed(data, "signal"), "signal"), value),)
    if "signal" in data or "value" in data:
        raise BadLineError("has signals as well as signal or value; keep one of the two forms")
    if not isinstance(data["signals"], dict):
        raise BadLineError('field "signals": must be an object of numbers')
    return tuple(
        Sample(at, service, _name(name, "signals"), _value(value))
        for name, value in data["signals"].items()
    )


def csv_parser(header: str) -> LineParser:
    """Make the parser of a CSV file's lines from its header, the columns in any order.

    Raises
    ------
    BadLineError
        If the header lacks a column or has others.
    """
    columns = _cells(header)
    if sorted(columns) != sorted(_COLUMNS):
        raise BadLineError(
            f"the header must name the columns {','.join(_COLUMNS)}, got {','.join(columns)[:100]}"
        )
    places = [columns.index(name) for name in _COLUMNS]

    def parse(text: str) -> Sequence[Sample]:
        cells = _cells(text)
        if len(cells) != len(_COLUMNS):
            raise BadLineError(f"has {len(cells)} cells, must have {len(_COLUMNS)}")
        at, service, signal, value = (cells[place] for place in places)
        return (
            Sample(
                _time(_number_or_text(at)),
                _name(service, "service"),
                _name(signal, "signal"),
                _value(_number_or_text(value) if value else None),
            ),
        )

    return parse


def _cells(text: str) -> list[str]:
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise BadLineError(f"is not CSV ({error})") from None
    return [cell.strip() for cell in rows[0]] if rows else []


def _number_or_text(cell: str) -> float | str:
    try:
        # Underscores are Python's, not a number's.
        return cell if "_" in cell else float(cell)
    except ValueError:
        return cell


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadLineError(f"names {twice[:40]!r} twice; keep one of them")
    return found


def _needed(data: dict[str, Any], field: str) -> Any:
    if field not in data:
        raise BadLineError(f'field "{field}": is missing; add it')
    return data[field]


def _name(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value or len(value) > MAX_NAME:
        raise BadLineError(f'field "{field}": must be a name of 1 to {MAX_NAME} characters')
    return value


def _time(value: Any) -> float:
    wrong = (
        'field "at": must be Unix seconds, or a date and time with its zone such as '
        f'"2025-03-01T12:00:00Z", got {str(value)[:60]!r}'
    )
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise BadLineError(f"{wrong}; the zone is missing")
            seconds = moment.timestamp()
        except (ValueError, OverflowError) as error:
            if isinstance(error, BadLineError):
                raise
            raise BadLineError(wrong) from None
    else:
        seconds = _finite(value)
        if not math.isfinite(seconds):
            raise BadLineError(wrong)
    if not 0 <= seconds <= _LATEST:
        raise BadLineError(f"{wrong}; is it in milliseconds?" if seconds > 0 else wrong)
    return seconds


def _value(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLineError(f'field "value": must be a number, got {str(value)[:60]!r}')
    return _finite(value) if isinstance(value, int) else value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
