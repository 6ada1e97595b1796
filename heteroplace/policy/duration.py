"""Durations in configuration: seconds, or text such as ``"90s"``, ``"5m"``, ``"1h30m"``."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

LONGEST = 10.0 * 366 * 86400
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)"
_TEXT = re.compile(rf"(?:{_PART})+")


def parse_duration(value: Any) -> float:
    """Read a duration in seconds.

    Raises
    ------
    ValueError
        If it is neither a number of seconds nor such a text, is negative or over ten years.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError('must be a number of seconds or a text such as "90s", "5m" or "1h30m"')
    if isinstance(value, str):
        if len(value) > 64 or not _TEXT.fullmatch(value):
            raise ValueError(
                f'must be seconds or a text such as "90s", "5m" or "1h30m", not {value[:40]!r}'
            )
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, value))
    elif isinstance(value, int) and abs(value) > LONGEST:
        seconds = LONGEST + 1
    else:
        seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"must be a finite number of seconds, not {seconds}")
    if seconds < 0:
        raise ValueError(f"must not be negative, got {seconds:g} seconds")
    if seconds > LONGEST:
        raise ValueError("must be at most ten years")
    return seconds


def _positive(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise ValueError("must be greater than 0 seconds")
    return seconds


_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            {"type": "number", "minimum": 0},
            {"type": "string", "pattern": rf"^(?:{_PART})+$"},
        ]
    }
)

Duration = Annotated[float, BeforeValidator(parse_duration), _SCHEMA]
PositiveDuration = Annotated[float, BeforeValidator(_positive), _SCHEMA]


def spoken(seconds: float) -> str:
    """Write a duration for people: ``45 s``, ``5 min``, ``2 h 10 min``."""
    if seconds < 10 and seconds != round(seconds):
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{round(hours / 24)} days"
