"""What the page compares: two profiles on the same instances, and what is known of the optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from heteroplace.compare.record import Manifest, Results, Row, cluster
from heteroplace.errors import InputError
from heteroplace.report.words import number

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Pair:
    """One instance as two profiles solved it.

    Parameters
    ----------
    left
        Row of the baseline.
    right
        Row of the profile it is held against; the same row when there is only one profile.
    """

    left: Row
    right: Row

    @property
    def key(self) -> str:
        """Name of the instance."""
        return str(self.left["instance"])

    @property
    def cluster(self) -> Hashable:
        """What it shares with the instances that it is not independent of."""
        return cluster(self.left)

    @property
    def proven(self) -> bool:
        """Whether the right plan is proven best in every step."""
        return bool(self.right["status"] == "optimal")

    @property
    def bounds_known(self) -> bool:
        """Whether every step about unmet capacity has a bound."""
        return all(
            step.bound is not None for step in steps(self.right) if step.name.startswith("unmet")
        )

    @property
    def served_alike(self) -> bool:
        """Whether both plans are equal in every step before cost."""
        return all(
            alike(left.value, right.value)
            for left, right in zip(steps(self.left), steps(self.right), strict=False)
            if left.name != "cost"
        )


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the objective, as in :class:`heteroplace.plan.ProvenStep`."""

    name: str
    value: float
    bound: float | None
    proven: bool


def steps(row: Row) -> tuple[Step, ...]:
    """The steps of a row's objective, in order."""
    return tuple(
        Step(str(name), float(value), bound, bool(proven))
        for name, value, bound, proven in zip(
            row["step_names"] or (),
            row["step_values"] or (),
            row["step_bounds"] or (),
            row["step_proven"] or (),
            strict=True,
        )
        if value is not None
    )


def alike(first: float, second: float) -> bool:
    """Whether two values of a step count as equal."""
    return abs(first - second) <= TOLERANCE * max(1.0, abs(first), abs(second))


def unmet_bound(row: Row) -> float | None:
    """Sum of the bounds of all steps about unmet capacity; null when one is unknown.

    A class's bound holds among the plans that do as well in the classes above.
    """
    bounds = [step.bound for step in steps(row) if step.name.startswith("unmet")]
    known = [bound for bound in bounds if bound is not None]
    return sum(known) if bounds and len(known) == len(bounds) else None


@dataclass(frozen=True)
class Study:
    """An experiment's results, ready to be compared.

    Parameters
    ----------
    results
        The folder.
    rows
        All of its rows.
    left, right
        Names of the baseline and of the profile it is held against; equal when there is only one.
    pairs
        Every instance that both solved without an error, in the order of the table.
    failed
        Rows with an error.
    """

    results: Results
    rows: tuple[Row, ...]
    left: str
    right: str
    pairs: tuple[Pair, ...]
    failed: tuple[Row, ...]

    @property
    def manifest(self) -> Manifest:
        """What was run."""
        return self.results.manifest

    @property
    def single(self) -> bool:
        """Whether there is only one profile."""
        return self.left == self.right

    @cached_property
    def profiles(self) -> tuple[str, ...]:
        """Profiles with results, in the experiment's order."""
        present = {row["profile"] for row in self.rows if row["error"] is None}
        return tuple(name for name in self.manifest.profiles if name in present)

    @cached_property
    def proven(self) -> int:
        """Number of pairs of which the right plan is proven best."""
        return sum(pair.proven for pair in self.pairs)

    @property
    def all_proven(self) -> bool:
        """Whether every right plan is proven best."""
        return self.proven == len(self.pairs)

    @cached_property
    def bounded(self) -> bool:
        """Whether the bounds of unmet capacity are known for every pair."""
        return all(pair.bounds_known for pair in self.pairs)

    @cached_property
    def against(self) -> str:
        """What the baseline is held against, as a noun."""
        if self.single:
            return "the best bound" if self.bounded else "nothing"
        if self.all_proven:
            return f"the proven optimum ({self.right})"
        return self.right

    @classmethod
    def of(cls, results: Results, left: str | None = None, right: str | None = None) -> Study:
        """Choose what to compare.

        Parameters
        ----------
        results
            The experiment's folder.
        left
            Name of the baseline; default the first profile of solver ``greedy``, else the first.
        right
            Name of the profile to hold it against; default the other one with the most proofs.

        Raises
        ------
        InputError
            If a name is not known or there is nothing to compare.
        """
        rows = tuple(results.rows())
        where = str(results.folder)
        if not rows:
            raise InputError(where, "holds no results yet; let heteroplace compare run first")
        failed = tuple(row for row in rows if row["error"] is not None)
        good = [row for row in rows if row["error"] is None]
        if not good:
            first = str(failed[0]["error"])
            raise InputError(where, f"holds no solved instance, {len(failed)} failed: {first}")
        names = list(dict.fromkeys(str(row["profile"]) for row in good))
        names.sort(key=_place(results.manifest.profiles))
        for option, name in (("--baseline", left), ("--against", right)):
            if name is not None and name not in names:
                known = ", ".join(names)
                raise InputError(option, f"no results of a profile {name!r}; there are: {known}")
        if right is None and left is not None and len(names) > 1:
            right = _most_proven(good, [name for name in names if name != left])
        elif right is None and len(names) > 1:
            left = _greedy(good, names, None)
            right = _most_proven(good, [name for name in names if name != left])
        elif right is not None and left is None:
            left = _greedy(good, names, right)
        left = left or names[0]
        right = right or left
        if left == right and len(names) > 1:
            raise InputError("--against", f"is the baseline {left!r} itself; name another profile")
        pairs = tuple(Pair(first, second) for first, second in _pairs(good, left, right))
        if not pairs:
            raise InputError(where, f"has no instance that both {left!r} and {right!r} solved")
        return cls(results, rows, left, right, pairs, failed)


def _place(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    places = {name: place for place, name in enumerate(order)}
    return lambda name: (places.get(name, len(places)), name)


def _greedy(rows: Iterable[Row], names: Sequence[str], other: str | None) -> str:
    """The first profile of solver greedy, else the first; never the other one if it can be."""
    solver = {str(row["profile"]): row["solver"] for row in rows}
    free = [name for name in names if name != other] or list(names)
    return next((name for name in free if solver[name] == "greedy"), free[0])


def _most_proven(rows: Iterable[Row], names: Sequence[str]) -> str:
    proofs = dict.fromkeys(names, 0)
    for row in rows:
        if row["profile"] in proofs and row["status"] == "optimal":
            proofs[str(row["profile"])] += 1
    return max(names, key=lambda name: (proofs[name], -names.index(name)))


def _pairs(rows: Iterable[Row], left: str, right: str) -> Iterable[tuple[Row, Row]]:
    seconds = {row["instance"]: row for row in rows if row["profile"] == right}
    for row in rows:
        if row["profile"] == left and row["instance"] in seconds:
            yield row, seconds[row["instance"]]


# --------------------------------------------------------------------------------------------
# Groups of instances
# --------------------------------------------------------------------------------------------

MOST_GROUPS = 9


@dataclass(frozen=True)
class Grouping:
    """Pairs put into groups by one property of their instances.

    Parameters
    ----------
    label
        The property, with its unit.
    names
        Names of the groups in order.
    members
        The pairs of each.
    """

    label: str
    names: tuple[str, ...]
    members: tuple[tuple[Pair, ...], ...]

    @property
    def varies(self) -> bool:
        """Whether there is more than one group."""
        return len(self.names) > 1


def grouped(pairs: Sequence[Pair], column: str, label: str) -> Grouping:
    """Group pairs by a column of the table.

    Numbers with more than :data:`MOST_GROUPS` different values are put into as many ranges of
    about equally many instances; of so many texts the most frequent are named.
    """
    values = [pair.left[column] for pair in pairs]
    if any(isinstance(value, str) for value in values):
        return _by_text(pairs, [str(value or "unknown") for value in values], label)
    known = sorted({float(value) for value in values if value is not None})
    if len(known) <= MOST_GROUPS:
        names = {value: number(value) for value in known}
        if len(set(names.values())) < len(names):
            names = {value: f"{value:.12g}" for value in known}
        keys = [None if value is None else float(value) for value in values]
        groups = [
            (
                names[value],
                tuple(pair for pair, key in zip(pairs, keys, strict=True) if key == value),
            )
            for value in known
        ]
    else:
        groups = _ranges(pairs, values)
    if any(value is None for value in values):
        rest = tuple(pair for pair, value in zip(pairs, values, strict=True) if value is None)
        groups.append(("unknown", rest))
    return Grouping(label, tuple(name for name, _ in groups), tuple(each for _, each in groups))


def _by_text(pairs: Sequence[Pair], values: Sequence[str], label: str) -> Grouping:
    counts: dict[str, list[Pair]] = {}
    for pair, value in zip(pairs, values, strict=True):
        counts.setdefault(value, []).append(pair)
    ranked = sorted(counts, key=lambda value: -len(counts[value]))
    named = ranked if len(ranked) <= MOST_GROUPS else ranked[: MOST_GROUPS - 1]
    groups = [(value, tuple(counts[value])) for value in counts if value in named]
    others = [pair for value in ranked if value not in named for pair in counts[value]]
    if others:
        groups.append(("others", tuple(others)))
    return Grouping(label, tuple(name for name, _ in groups), tuple(each for _, each in groups))


def _ranges(pairs: Sequence[Pair], values: Sequence[Any]) -> list[tuple[str, tuple[Pair, ...]]]:
    """Ranges between round numbers, about equally many instances in each."""
    known = sorted(float(value) for value in values if value is not None)
    parts = 6
    ends = sorted({_round(known[len(known) * part // parts]) for part in range(1, parts)})
    edges = [-math.inf, *ends, math.inf]
    groups = []
    for low, high in pairwise(edges):
        inside = tuple(
            pair
            for pair, value in zip(pairs, values, strict=True)
            if value is not None and low <= float(value) < high
        )
        if inside:
            name = f"<{high:g}" if low == -math.inf else f"≥{low:g}"
            groups.append((name if math.inf in (-low, high) else f"{low:g}–{high:g}", inside))
    return groups


def _round(value: float) -> float:
    return float(f"{value:.2g}")
