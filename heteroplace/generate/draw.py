"""Draws that meet shares and weights."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import fsum
from typing import TypeVar

T = TypeVar("T")


def flags(rng: random.Random, share: float, count: int) -> list[bool]:
    """Exactly the share of true values, in random order."""
    true = round(share * count)
    drawn = [True] * true + [False] * (count - true)
    rng.shuffle(drawn)
    return drawn


def spread(rng: random.Random, weights: Mapping[T, float], count: int) -> list[T]:
    """Values in the proportion of their weights, as exactly as whole numbers can, shuffled."""
    total = fsum(weights.values())
    exact = {value: weight * count / total for value, weight in weights.items()}
    counts = {value: int(number) for value, number in exact.items()}
    missing = count - sum(counts.values())
    for value in sorted(exact, key=lambda value: counts[value] - exact[value])[:missing]:
        counts[value] += 1
    drawn = [value for value, times in counts.items() for _ in range(times)]
    rng.shuffle(drawn)
    return drawn


def draw(rng: random.Random, weights: Mapping[T, float]) -> T:
    """One value by weight; an even draw when no weight is above 0."""
    values, positive = list(weights), [max(0.0, weight) for weight in weights.values()]
    return rng.choices(values, positive)[0] if any(positive) else rng.choice(values)


def skewed(rng: random.Random) -> float:
    """Weight of a service: few are large, many small."""
    return 1 / (0.2 + rng.random())
