"""Services in the making: how they can run, what runs and what they ask for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from heteroplace.instance import (
    Affinity,
    RatioBand,
    Role,
    RunningGroup,
    RunningInstance,
    Service,
    Shape,
)

ROLES = ("prefill", "decode")


@dataclass(frozen=True)
class Recipe:
    """How to run one unit of a service: the shape and the number of instances of each role.

    ``step`` is what a unit adds to the targets; null for its capacity.
    """

    shapes: Mapping[str, Shape]
    counts: Mapping[str, int]
    step: Mapping[str, Fraction] | None = None

    @cached_property
    def capacity(self) -> dict[str, Fraction]:
        """What a unit delivers in each role."""
        return {role: self.counts[role] * shape.capacity for role, shape in self.shapes.items()}

    @cached_property
    def by_type(self) -> dict[str, int]:
        """GPUs of each type, in the order of the pods."""
        gpus: dict[str, int] = {}
        for role, shape in self.shapes.items():
            for pod in shape.pods:
                more = self.counts[role] * pod.count * pod.gpus
                gpus[pod.gpu_type] = gpus.get(pod.gpu_type, 0) + more
        return gpus

    @cached_property
    def gpus(self) -> int:
        """GPUs of a unit."""
        return sum(self.by_type.values())


def in_ratio(shapes: Mapping[str, Shape], ratio: Fraction, half: Fraction) -> Recipe:
    """Recipe of the smallest unit of these shapes that is in the band around a ratio."""
    counts = dict.fromkeys(shapes, 1)
    if len(shapes) > 1:
        prefill, decode = (shapes[role].capacity for role in ROLES)
        counts = dict(zip(ROLES, _counts(ratio * decode / prefill, half), strict=True))
    return Recipe(shapes, counts)


def _counts(ratio: Fraction, half: Fraction) -> tuple[int, int]:
    """Small numbers whose ratio is in the band, near its middle if it can; else the exact ones."""
    for tolerance, most in ((half / 2, 8), (half, 64)):
        for below in range(1, most + 1):
            above = max(1, round(ratio * below))
            if abs(above - ratio * below) <= tolerance * ratio * below:
                return above, below
    return ratio.numerator, ratio.denominator


def band(ratio: Fraction, half: Fraction) -> RatioBand:
    """Band around a prefill : decode ratio; ``half`` is its half-width over the ratio."""
    return RatioBand(
        numerator="prefill",
        denominator="decode",
        min=ratio - half * ratio,
        max=ratio + half * ratio,
    )


@dataclass(slots=True)
class Unit:
    """A running unit: (role, names of its pods' nodes) of every instance."""

    recipe: Recipe
    placed: list[tuple[str, tuple[str, ...]]]
    draining: bool = False


@dataclass(slots=True)
class Group:
    """A running group and the domain it lies in."""

    domain: str | None
    units: list[Unit] = field(default_factory=list)

    def instances(self) -> Iterator[RunningInstance]:
        """What runs, as the instance lists it."""
        number: Counter[str] = Counter()
        for unit in self.units:
            for role, nodes in unit.placed:
                yield RunningInstance(
                    name=f"{role}-{number[role]}",
                    role=role,
                    shape=str(unit.recipe.shapes[role].name),
                    nodes=nodes,
                    state="draining" if unit.draining else "ready",
                )
                number[role] += 1


@dataclass(slots=True)
class Draft:
    """A service in the making; the first recipe is the one its demand is counted in."""

    name: str
    priority: int
    affinity: Affinity
    shapes: Mapping[str, tuple[Shape, ...]]
    ratios: tuple[RatioBand, ...]
    recipes: tuple[Recipe, ...]
    weight: float
    groups: list[Group] = field(default_factory=list)
    targets: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))

    @property
    def ready(self) -> list[Unit]:
        """Units that deliver."""
        return [unit for group in self.groups for unit in group.units if not unit.draining]

    def ask(self, amounts: Mapping[str, Fraction], times: int = 1) -> None:
        """Raise the targets by some amounts; a negative number of times lowers them."""
        for role, amount in amounts.items():
            self.targets[role] += times * amount

    def service(self, floor: bool = False) -> Service:
        """The service; with a floor of half its targets if asked for."""
        share = Fraction(1, 2) if floor else Fraction(0)
        roles = {
            role: Role(target=self.targets[role], min=share * self.targets[role], shapes=shapes)
            for role, shapes in self.shapes.items()
        }
        return Service(
            name=self.name,
            priority=self.priority,
            affinity=self.affinity,
            roles=roles,
            ratios=self.ratios,
        )

    def running(self) -> Iterator[RunningGroup]:
        """The running groups."""
        for number, group in enumerate(self.groups):
            yield RunningGroup(
                name=f"{self.name}-g{number}",
                service=self.name,
                domain=group.domain,
                instances=tuple(group.instances()),
            )
