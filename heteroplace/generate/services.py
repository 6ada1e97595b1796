"""The services of a family: what they serve, on which GPU types and in which shapes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import fsum

from heteroplace.errors import InputError
from heteroplace.faults import NODE_LEVEL
from heteroplace.generate.draft import ROLES, Draft, Recipe, band, in_ratio
from heteroplace.generate.draw import draw, flags, skewed, spread
from heteroplace.generate.family import AFFINITIES, AffinityKind, Family
from heteroplace.generate.fleet import Fleet
from heteroplace.instance import Pod, Shape

Types = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Traits:
    """What is drawn for a service before its shapes; the fields are named after the knobs."""

    weight: float
    priority: int
    affinity: AffinityKind
    aggregated: bool
    cross_type: bool
    moe: bool
    multi_pod: bool
    alternatives: bool


class Author:
    """Draws the services of a family; ``room`` is the demand each GPU type has yet to get."""

    def __init__(self, family: Family, fleet: Fleet, rng: random.Random) -> None:
        self.family, self.fleet, self.rng = family, fleet, rng
        self.half = Fraction(family.band).limit_denominator(1000)
        self.sizes = {size: weight for size, weight in sorted(family.sizes.items()) if weight}
        demand = family.running + family.load * (1 - family.running)
        self.room = {
            name: demand * fleet.gpus[name]
            for name, gpus in fleet.node_gpus.items()
            if gpus >= min(self.sizes)
        }
        if not self.room:
            raise InputError(
                f"family {family.name}",
                "no node drawn fits a pod; add smaller sizes or larger nodes",
            )

    def drafts(self) -> list[Draft]:
        """Draw all services, the GPU types so that each gets its share of the demand."""
        traits = self._traits()
        each = fsum(self.room.values()) / fsum(trait.weight for trait in traits)
        drafts = []
        for index, trait in enumerate(traits):
            draft = self._draft(f"service-{index:04d}", trait)
            recipe = draft.recipes[0]
            for name, gpus in recipe.by_type.items():
                self.room[name] -= trait.weight * each * gpus / recipe.gpus
            drafts.append(draft)
        return drafts

    def _traits(self) -> list[Traits]:
        family, rng, count = self.family, self.rng, self.family.total_services
        aggregated = flags(rng, family.aggregated, count)
        columns = zip(
            [skewed(rng) for _ in range(count)],
            spread(rng, dict.fromkeys(family.priorities, 1.0), count),
            spread(rng, family.affinity, count),
            aggregated,
            self._among(aggregated, family.cross_type),
            self._among(aggregated, family.moe if self._mixed("s1") else 0.0),
            flags(rng, family.multi_pod, count),
            flags(rng, family.alternatives, count),
            strict=True,
        )
        return [Traits(*row) for row in columns]

    def _among(self, excluded: list[bool], share: float) -> list[bool]:
        """Flag the share of all services, but no excluded one."""
        free = [index for index, no in enumerate(excluded) if not no]
        self.rng.shuffle(free)
        chosen = set(free[: round(share * len(excluded))])
        return [index in chosen for index in range(len(excluded))]

    def _mixed(self, level: str | None) -> list[list[str]]:
        """GPU types of every domain of the level that holds several which fit a pod."""
        found = (
            [name for name in self.room if name in domain.types]
            for domain in self.fleet.domains[level].values()
        )
        return [types for types in found if len(types) > 1]

    def _draft(self, name: str, trait: Traits) -> Draft:
        affinity = AFFINITIES["s2" if trait.moe else trait.affinity]
        pair = None
        if trait.moe or trait.cross_type:
            pair = self._pair("s1" if trait.moe else affinity.required)
        ratio = Fraction(1) if trait.aggregated else self.rng.choice(self.family.ratios)
        types = pair or (draw(self.rng, self.room),) * 2
        recipes = [self._preferred(types, trait, ratio, affinity.required)]
        if trait.alternatives and not trait.moe:
            for number in range(self.rng.randint(1, 2)):
                shapes = self._further(recipes[0].shapes, types, f"other{number}")
                if shapes is not None:
                    recipes.append(in_ratio(shapes, ratio, self.half))
        return Draft(
            name=name,
            priority=trait.priority,
            affinity=affinity,
            shapes={
                role: tuple(recipe.shapes[role] for recipe in recipes) for role in recipes[0].shapes
            },
            ratios=() if trait.aggregated else (band(ratio, self.half),),
            recipes=tuple(recipes),
            weight=trait.weight,
        )

    def _pair(self, level: str | None) -> Types | None:
        """Two GPU types that share a domain of the level; null if none do."""
        mixed = self._mixed(level)
        if not mixed:
            return None
        room = {name: self.room[name] for name in self.rng.choice(mixed)}
        first = draw(self.rng, room)
        del room[first]
        return first, draw(self.rng, room)

    def _preferred(self, types: Types, trait: Traits, ratio: Fraction, level: str | None) -> Recipe:
        """Draw shapes until a unit fits a domain of the level; the smallest after ten tries."""
        for attempt in range(11):
            shapes = self._shapes(types, trait, smallest=attempt == 10)
            recipe = in_ratio(shapes, ratio, self.half)
            if self.fleet.fits(recipe, level):
                break
        return recipe

    def _shapes(self, types: Types, trait: Traits, smallest: bool) -> dict[str, Shape]:
        if trait.moe:
            return {role: self._moe(types, smallest) for role in ROLES}
        roles = ("serve",) if trait.aggregated else ROLES
        return {
            role: self._plain(
                gpu_type, trait.multi_pod and role != "prefill" and not smallest, smallest
            )
            for role, gpu_type in zip(roles, types, strict=False)
        }

    def _plain(self, gpu_type: str, several: bool, smallest: bool) -> Shape:
        """One pod, or two or three; those on one node half of the time, if it is large enough."""
        size = self._size(gpu_type, smallest)
        count = self.rng.randint(2, 3) if several else 1
        one_node = (
            several and self.rng.random() < 0.5 and size * count <= self.fleet.node_gpus[gpu_type]
        )
        return Shape(
            name="preferred",
            pods=(Pod(gpu_type=gpu_type, gpus=size, count=count),),
            level=NODE_LEVEL if one_node else None,
        )

    def _moe(self, types: Types, smallest: bool) -> Shape:
        """One attention pod and one or two expert pods of another GPU type in one S1."""
        attention, experts = types
        pods = (
            Pod(gpu_type=attention, gpus=self._size(attention, smallest)),
            Pod(
                gpu_type=experts,
                gpus=self._size(experts, smallest),
                count=1 if smallest else self.rng.randint(1, 2),
            ),
        )
        return Shape(name="preferred", pods=pods, level="s1")

    def _size(self, gpu_type: str, smallest: bool) -> int:
        largest = self.fleet.node_gpus[gpu_type]
        fitting = {size: weight for size, weight in self.sizes.items() if size <= largest}
        return min(fitting) if smallest else draw(self.rng, fitting)

    def _further(
        self, shapes: Mapping[str, Shape], types: Types, name: str
    ) -> dict[str, Shape] | None:
        """Draw a shape for every role on another GPU type, or of another size if there is none."""
        others = [each for each in self.room if each not in types]
        gpu_type = self.rng.choice(others) if others else types[-1]
        largest = self.fleet.node_gpus[gpu_type]
        found = {}
        for role, shape in shapes.items():
            pod = shape.pods[0]
            size = pod.gpus if others else self._size(gpu_type, False)
            if size > largest or (not others and size == pod.gpus):
                return None
            worth = self.rng.choice(
                (Fraction(1, 2), Fraction(3, 4), Fraction(4, 5), Fraction(5, 4))
            )
            found[role] = Shape(
                name=name,
                pods=(Pod(gpu_type=gpu_type, gpus=size, count=pod.count),),
                level=shape.level if size * pod.count <= largest else None,
                capacity=worth * Fraction(size, pod.gpus),
            )
        return found
