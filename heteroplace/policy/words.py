"""Numbers and counts as a decision's sentence writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction


def number(value: float) -> str:
    """Write a number that is not negative for people: ``41,200``, ``12.5``, ``0.034``."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def percent(share: float) -> str:
    """Write a share as a percentage: ``10 %``, ``2.5 %``."""
    return f"{share * 100:.3g} %"


def ratio(value: Fraction) -> str:
    """Write a ratio: ``9:7``, or ``1.286`` where the numbers are large."""
    if value.numerator <= 999 and value.denominator <= 999:
        return f"{value.numerator}:{value.denominator}"
    return f"{float(value):.4g}"


def counts(values: Mapping[str, int]) -> str:
    """Write counts by role: ``14 prefill and 11 decode``."""
    return joined([f"{count} {role}" for role, count in values.items()])


def joined(parts: Iterable[str]) -> str:
    """Join parts with commas and ``and``."""
    parts = list(parts)
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def instances(count: int, role: str) -> str:
    """Write a number of instances of a role: ``1 decode instance``."""
    return f"{count} {role} instance" if count == 1 else f"{count} {role} instances"
