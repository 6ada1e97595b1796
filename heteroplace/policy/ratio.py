"""Counts of a service's roles that keep every ratio inside its band, in whole instances.

The roles are tied in a tree: one band fewer than there are roles. Given the count of one role, the
driving one, every other follows: nearest to the target ratio among the counts that are inside the
band and the limits. All roles are zero or none is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Tie:
    """Target ratio and band of two roles' counts.

    Parameters
    ----------
    numerator, denominator
        Role names.
    target
        The ratio to aim at.
    low, high
        The band.
    """

    numerator: str
    denominator: str
    target: Fraction
    low: Fraction
    high: Fraction

    def holds(self, counts: Mapping[str, int]) -> bool:
        """Whether the two counts are inside the band; both zero are."""
        upper, lower = counts[self.numerator], counts[self.denominator]
        if not upper or not lower:
            return upper == lower
        low, high = self.low, self.high
        return (
            low.numerator * lower <= upper * low.denominator
            and upper * high.denominator <= high.numerator * lower
        )


@dataclass(frozen=True, slots=True)
class _Link:
    """How a role follows another: count = other * target, inside [other * low, other * high]."""

    role: str
    target: tuple[int, int]
    low: tuple[int, int]
    high: tuple[int, int] | None
    links: tuple[_Link, ...]


class Ratios:
    """The pairs (or larger groups) of counts that a service's bands and limits allow.

    Parameters
    ----------
    limits
        Role -> fewest and most instances.
    ties
        The bands; they tie all roles together in a tree.

    Raises
    ------
    ValueError
        If they do not.
    """

    def __init__(self, limits: Mapping[str, tuple[int, int]], ties: Sequence[Tie]) -> None:
        self.limits = dict(limits)
        self.ties = tuple(ties)
        self._links: dict[str, tuple[_Link, ...]] = {}
        self._known: dict[tuple[str, int], dict[str, int] | None] = {}
        if len(self.ties) != len(self.limits) - 1:
            raise ValueError("there must be one ratio fewer than roles")
        for role in self.limits:
            seen = {role}
            self._links[role] = self._links_from(role, seen)
            if len(seen) < len(self.limits):
                raise ValueError("the ratios must tie all roles together")

    def _links_from(self, role: str, seen: set[str]) -> tuple[_Link, ...]:
        links = []
        for tie in self.ties:
            if tie.denominator == role and tie.numerator not in seen:
                other, target, low = tie.numerator, tie.target, tie.low
                high: Fraction | None = tie.high
            elif tie.numerator == role and tie.denominator not in seen:
                other, target, low = tie.denominator, 1 / tie.target, 1 / tie.high
                high = 1 / tie.low if tie.low else None
            else:
                continue
            seen.add(other)
            links.append(
                _Link(
                    other,
                    (target.numerator, target.denominator),
                    (low.numerator, low.denominator),
                    None if high is None else (high.numerator, high.denominator),
                    self._links_from(other, seen),
                )
            )
        return tuple(links)

    def with_target(self, target: Fraction) -> Ratios:
        """Give the same bands and limits, with another target of the first ratio."""
        first = self.ties[0]
        tie = Tie(first.numerator, first.denominator, target, first.low, first.high)
        return Ratios(self.limits, (tie, *self.ties[1:]))

    def holds(self, counts: Mapping[str, int]) -> bool:
        """Whether counts are inside every band and limit."""
        return all(
            low <= counts[role] <= high for role, (low, high) in self.limits.items()
        ) and self.in_band(counts)

    def in_band(self, counts: Mapping[str, int]) -> bool:
        """Whether counts are inside every band, limits aside."""
        return all(tie.holds(counts) for tie in self.ties)

    def drift(self, counts: Mapping[str, int]) -> float:
        """Largest distance of a ratio from its target, as a share of the target.

        A ratio below its target is measured by its inverse, so that 1:2 and 2:1 are equally far
        from 1:1. Infinity when one role of a pair is zero.
        """
        worst = 0.0
        for tie in self.ties:
            upper, lower = counts[tie.numerator], counts[tie.denominator]
            if not upper and not lower:
                continue
            if not upper or not lower:
                return float("inf")
            target = tie.target
            off = upper * target.denominator / (lower * target.numerator)
            worst = max(worst, off - 1, 1 / off - 1)
        return worst

    def counts(
        self,
        role: str,
        count: int,
        at_least: Mapping[str, int] | None = None,
        at_most: Mapping[str, int] | None = None,
    ) -> dict[str, int] | None:
        """Counts of all roles when ``role`` has exactly ``count``; null if no band allows it.

        Parameters
        ----------
        role, count
            The driving role and its instances.
        at_least, at_most
            Preferred, not required: the others do not fall below, or rise above these.
        """
        if at_least is not None or at_most is not None:
            return self._counts(role, count, at_least, at_most)
        key = role, count
        if key not in self._known:
            self._known[key] = self._counts(role, count, None, None)
        known = self._known[key]
        return None if known is None else dict(known)

    def _counts(
        self,
        role: str,
        count: int,
        at_least: Mapping[str, int] | None,
        at_most: Mapping[str, int] | None,
    ) -> dict[str, int] | None:
        low, high = self.limits[role]
        if not low <= count <= high:
            return None
        found = {role: count}
        if self._follow(self._links[role], count, found, at_least, at_most):
            return found if len(found) == 1 else {name: found[name] for name in self.limits}
        return None

    def _follow(
        self,
        links: tuple[_Link, ...],
        count: int,
        found: dict[str, int],
        at_least: Mapping[str, int] | None,
        at_most: Mapping[str, int] | None,
    ) -> bool:
        for link in links:
            low, high = self.limits[link.role]
            if count == 0:
                aim, high = 0, min(high, 0)
            else:
                top, bottom = link.low
                low = max(low, 1, -(-count * top // bottom))
                if link.high is not None:
                    top, bottom = link.high
                    high = min(high, count * top // bottom)
                top, bottom = link.target
                aim = (2 * count * top + bottom) // (2 * bottom)
            if low > high:
                return False
            aim = min(max(aim, low), high)
            if at_least is not None and at_least[link.role] > aim:
                aim = min(at_least[link.role], high)
            if at_most is not None and at_most[link.role] < aim:
                aim = max(at_most[link.role], low)
            if not link.links:
                found[link.role] = aim
            elif not self._choose(link, aim, low, high, found, at_least, at_most):
                return False
        return True

    def _choose(
        self,
        link: _Link,
        aim: int,
        low: int,
        high: int,
        found: dict[str, int],
        at_least: Mapping[str, int] | None,
        at_most: Mapping[str, int] | None,
    ) -> bool:
        """Take the count nearest to ``aim`` with which the roles behind this one can follow."""
        for away in range(max(aim - low, high - aim) + 1):
            for count in (aim + away, aim - away)[: 2 if away else 1]:
                if low <= count <= high and self._follow(
                    link.links, count, found, at_least, at_most
                ):
                    found[link.role] = count
                    return True
        return False

    def up_from(self, role: str, count: int, most: int | None = None) -> int | None:
        """Least count of ``role`` from ``count`` up to ``most`` with which all bands hold."""
        low, high = self.limits[role]
        for each in range(max(count, low), min(high, high if most is None else most) + 1):
            if self.counts(role, each) is not None:
                return each
        return None

    def down_from(self, role: str, count: int, least: int | None = None) -> int | None:
        """Largest count of ``role`` from ``count`` down to ``least`` with which all bands hold."""
        low, high = self.limits[role]
        for each in range(min(count, high), max(low, low if least is None else least) - 1, -1):
            if self.counts(role, each) is not None:
                return each
        return None

    def nearest(self, role: str, count: int) -> int | None:
        """Count of ``role`` with which all bands hold: the least from ``count`` up, else below."""
        above = self.up_from(role, count)
        return self.down_from(role, count) if above is None else above

    def split(self, total: int) -> dict[str, int] | None:
        """Split a total over two roles, nearest to the target ratio; null if no split is allowed.

        Raises
        ------
        ValueError
            If the service has more than two roles.
        """
        if len(self.limits) == 1:
            role = next(iter(self.limits))
            return self.counts(role, total)
        if len(self.limits) > 2:
            raise ValueError("a total is split over two roles only")
        tie = self.ties[0]
        least, most = self.limits[tie.numerator]
        low, high = self.limits[tie.denominator]
        if total == 0:
            return self.counts(tie.numerator, 0)
        # numerator = n: low <= n / (total - n) <= high, so n between total * r / (1 + r) of both.
        least = max(least, 1, total - high, _ceil(total * tie.low / (1 + tie.low)))
        most = min(most, total - 1, total - low, int(total * tie.high / (1 + tie.high)))
        if least > most:
            return None
        aim = round(total * tie.target / (1 + tie.target))
        upper = min(max(aim, least), most)
        found = {tie.numerator: upper, tie.denominator: total - upper}
        return {name: found[name] for name in self.limits}


def _ceil(number: Fraction) -> int:
    return -(-number.numerator // number.denominator)
