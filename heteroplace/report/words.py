"""Words and numbers of the page, safe wherever they are put."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from heteroplace.show import clean

_UNIT = re.compile(r"(?<=\d) (?=%|ms\b|s\b)")


def escape(text: object) -> str:
    """Write text for HTML or SVG, inside an element or an attribute, whatever is in it."""
    # A number and its unit stay on one line.
    return _UNIT.sub("&#160;", html.escape(clean(str(text))))


def brief(text: str, most: int) -> str:
    """Shorten text to at most ``most`` characters."""
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for people: whole numbers to the last digit, others to a few digits."""
    if value is None or not math.isfinite(value):
        return "–"
    value = round(value, 9) + 0.0
    if abs(value - round(value)) < 1e-9 or abs(value) >= 10**digits:
        return f"{round(value):,}".replace("-", "−")
    text = f"{value:.{digits}g}"
    if "e" in text:
        text = f"{value:.9f}".rstrip("0")
    elif "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


def percent(share: float | None) -> str:
    """Write a share in per cent."""
    return "–" if share is None else f"{number(100 * share)} %"


def seconds(value: float) -> str:
    """Write a duration."""
    return f"{number(1000 * value)} ms" if abs(value) < 0.1 else f"{number(value)} s"


def counted(amount: int, word: str, plural: str | None = None) -> str:
    """Write how many there are of something."""
    return f"{amount:,} {word if amount == 1 else plural or word + 's'}"


def listed(words: Sequence[str], most: int = 6) -> str:
    """Write a list in a sentence."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def ranges(values: Sequence[int]) -> str:
    """Write whole numbers with runs put together, as in ``0–9, 12``."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in runs)
