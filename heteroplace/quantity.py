"""Exact numbers: capacities, targets, ratios, prices and weights.

Sums and ratios of capacities decide whether a plan is valid, so they are rational numbers, never
floats. A float from JSON is read with nine significant digits, once, at the door; every part of
the package then sees the same exact value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

LARGEST = 10**12
FINEST = 10**9


def parse_number(value: Any) -> Fraction:
    """Read an int, a float (nine significant digits), a Decimal or a string such as ``"3/2"``.

    Raises
    ------
    ValueError
        If the value is not a finite number of at most 10**12 with a denominator of at most 10**9.
    """
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value}")
        number = Fraction(Decimal(f"{value:.9g}"))
    elif isinstance(value, int | Fraction):
        number = Fraction(value)
    elif isinstance(value, Decimal | str):
        number = _parse_text(str(value))
    else:
        kinds = {type(None): "null", list: "a list", dict: "an object"}
        raise ValueError(f"must be a number, not {kinds.get(type(value), type(value).__name__)}")
    if abs(number) > LARGEST:
        raise ValueError(f"must be at most {LARGEST}, use a larger unit")
    if number.denominator > FINEST:
        raise ValueError(f"must have a denominator of at most {FINEST}, use a smaller unit")
    return number


def _parse_text(text: str) -> Fraction:
    wrong = ValueError(f'must be a number or a fraction such as "3/2", not {text[:40]!r}')
    if len(text) > 64:
        raise wrong
    try:
        if "/" in text:
            return Fraction(text)
        decimal = Decimal(text)
        if not decimal.is_finite() or abs(decimal.adjusted()) > 30:
            raise wrong
        return Fraction(decimal)
    except (ArithmeticError, ValueError):
        raise wrong from None


def format_number(number: Fraction) -> int | float | str:
    """Write a number so that :func:`parse_number` reads the same value back."""
    if number.denominator == 1:
        return number.numerator
    as_float = float(number)
    if Fraction(Decimal(f"{as_float:.9g}")) == number:
        return as_float
    return f"{number.numerator}/{number.denominator}"


def common_denominator(numbers: Iterable[Fraction]) -> int:
    """Least number that makes every given one whole when multiplied by it; 1 for none."""
    return math.lcm(*(number.denominator for number in numbers))


def whole(number: Fraction, denominator: int) -> int:
    """A number in units of ``1 / denominator``, a multiple of its own denominator."""
    return number.numerator * (denominator // number.denominator)


def _non_negative(value: Any) -> Fraction:
    number = parse_number(value)
    if number < 0:
        raise ValueError(f"must not be negative, got {format_number(number)}")
    return number


def _positive(value: Any) -> Fraction:
    number = parse_number(value)
    if number <= 0:
        raise ValueError(f"must be greater than 0, got {format_number(number)}")
    return number


_WRITE = PlainSerializer(format_number, when_used="json")
_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\d+(\.\d+)?(/\d+)?$"}]}
)

NonNegative = Annotated[Fraction, BeforeValidator(_non_negative), _WRITE, _SCHEMA]
Positive = Annotated[Fraction, BeforeValidator(_positive), _WRITE, _SCHEMA]
