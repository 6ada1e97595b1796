"""Placement instances made to measure: synthetic families, and services on a real inventory.

Everything is drawn from one seeded generator in a fixed order, so a seed gives the same instance
on every machine. A running group is placed in whole *units*: the fewest instances of every role
whose delivered capacities are inside the ratio band. Targets move by whole units as well, because
a group that is out of band can neither run nor be opened.
"""

from __future__ import annotations

import json
import os
import random
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from math import fsum
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from heteroplace.errors import InputError
from heteroplace.instance import (
    MAX_BYTES,
    NODE_LEVEL,
    SCHEMA,
    Affinity,
    Cycle,
    Instance,
    Name,
    Node,
    Noun,
    Objective,
    Pod,
    RatioBand,
    Role,
    RunningGroup,
    RunningInstance,
    Service,
    Shape,
    input_error,
)
from heteroplace.models import ServedModel, load_models, models_from_csv, read_rows
from heteroplace.quantity import Positive

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=10**6)]
Size = Annotated[int, Field(ge=1, le=10**5)]
AffinityKind = Literal["none", "s2", "s1", "s2+s1"]
T = TypeVar("T")

AFFINITIES: dict[AffinityKind, Affinity] = {
    "none": Affinity(),
    "s2": Affinity(required="s2"),
    "s1": Affinity(required="s1"),
    "s2+s1": Affinity(required="s2", preferred="s1"),
}


# --------------------------------------------------------------------------------------------
# Families
# --------------------------------------------------------------------------------------------


class Family(Noun):
    """A kind of synthetic instance; every field is a knob.

    Shares are fractions from 0 to 1. Shares of services and nodes are met exactly, up to rounding.

    Parameters
    ----------
    name
        Name of the family.
    description
        What it is for, in one sentence.
    scale
        Factor on the number of GPUs and of services; the shape of the tree shrinks with it from
        the top.
    s2
        S2 domains.
    s1_per_s2
        S1 domains in each S2.
    nodes_per_s1
        Nodes in each S1.
    gpus_per_node
        GPUs of a node; each S1 draws one of the values.
    gpu_types
        GPU types with their shares of the GPUs, as weights.
    hetero_s1
        Share of the S1 that hold two GPU types (tier *high*); at most ``hetero_s2``.
    hetero_s2
        Share of the S2 that hold several GPU types (tiers *medium* and *high*).
    cordoned
        Share of the nodes that are not schedulable.
    reserved
        Share of the nodes that hold back up to half of their GPUs.
    services
        Number of services.
    priorities
        Priority classes; services are spread evenly over them.
    affinity
        Weights of the affinities ``none``, ``s2`` and ``s1`` (required) and ``s2+s1`` (S2
        required, S1 preferred).
    cross_type
        Share of the services that prefer prefill and decode on different GPU types, wherever a
        domain of their affinity holds two.
    alternatives
        Share of the services with further shapes on other GPU types or of other sizes.
    aggregated
        Share of the services with a single role.
    ratios
        Prefill : decode ratios, drawn evenly.
    band
        Half-width of the ratio band, as a fraction of the ratio.
    sizes
        Weights of the pod sizes in GPUs.
    multi_pod
        Share of the services whose decode runs on two or three pods at once.
    moe
        Share of the services whose instances are attention and expert pods of two GPU types inside
        one S1, with prefill and decode in one S2; needs S1 of two types.
    minimum
        Share of the services with a floor of half their target.
    load
        GPUs asked for by the services that scale out, as a fraction of the free GPUs.
    running
        Fraction of the GPUs on which groups run.
    change
        Share of the services that change their target. A service that does not run always scales
        out, even beyond this share.
    scale_in
        Share of the changing services that scale in; the others scale out.
    draining
        Share of the running units that drain.
    cycle
        Rules of the cycle.
    objective
        Weights and prices.
    """

    name: Name
    description: str = ""
    scale: Annotated[float, Field(gt=0, le=1000)] = 1.0
    s2: Size = 2
    s1_per_s2: Size = 4
    nodes_per_s1: Size = 8
    gpus_per_node: Annotated[tuple[Size, ...], Field(min_length=1)] = (8,)
    gpu_types: dict[Name, Weight] = Field(default={"H800": 3, "A800": 3, "H20": 2, "L20": 2})
    hetero_s1: Share = 0.2
    hetero_s2: Share = 0.5
    cordoned: Share = 0.01
    reserved: Share = 0.03
    services: Size = 20
    priorities: Annotated[
        tuple[Annotated[int, Field(ge=-(10**6), le=10**6)], ...], Field(min_length=1)
    ] = (0, 1, 2)
    affinity: dict[AffinityKind, Weight] = Field(default={"none": 3, "s2": 3, "s1": 2, "s2+s1": 2})
    cross_type: Share = 0.4
    alternatives: Share = 0.3
    aggregated: Share = 0.1
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        Fraction(1),
        Fraction(1, 2),
        Fraction(1, 3),
        Fraction(2, 3),
        Fraction(2),
    )
    band: Share = 0.25
    sizes: dict[Size, Weight] = Field(default={1: 3, 2: 3, 4: 2, 8: 2})
    multi_pod: Share = 0.0
    moe: Share = 0.0
    minimum: Share = 0.1
    load: Annotated[float, Field(ge=0, le=100)] = 0.8
    running: Share = 0.3
    change: Share = 0.5
    scale_in: Share = 0.25
    draining: Share = 0.02
    cycle: Cycle = Cycle()
    objective: Objective = Objective()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for knob in ("gpu_types", "affinity", "sizes"):
            if not any(getattr(self, knob).values()):
                raise InputError(knob, "has no weight above 0; give at least one")
        if self.hetero_s1 > self.hetero_s2:
            raise InputError(
                "hetero_s1",
                f"{self.hetero_s1:g} is above hetero_s2 {self.hetero_s2:g}, but an S2 with such an "
                "S1 holds several types itself; raise hetero_s2",
            )
        if self.hetero_s2 and sum(1 for weight in self.gpu_types.values() if weight) < 2:
            raise InputError("gpu_types", "names one type, but hetero_s2 asks for several")
        if min(size for size, weight in self.sizes.items() if weight) > max(self.gpus_per_node):
            raise InputError("sizes", "no pod fits a node; add a size of at most gpus_per_node")
        if self.total_nodes > 10**6:
            raise InputError("scale", f"asks for {self.total_nodes} nodes, at most 1000000")
        return self

    @cached_property
    def tree(self) -> tuple[int, int, int]:
        """S2, S1 per S2 and nodes per S1 at the family's scale."""
        s1 = self.s2 * self.s1_per_s2 * self.scale
        nodes = s1 * self.nodes_per_s1
        s2 = max(min(2, self.s2), round(self.s2 * self.scale))
        s1_per_s2 = max(min(2, self.s1_per_s2), round(s1 / s2))
        return s2, s1_per_s2, max(min(2, self.nodes_per_s1), round(nodes / (s2 * s1_per_s2)))

    @property
    def total_nodes(self) -> int:
        """Number of nodes at the family's scale."""
        s2, s1_per_s2, nodes_per_s1 = self.tree
        return s2 * s1_per_s2 * nodes_per_s1

    @property
    def total_services(self) -> int:
        """Number of services at the family's scale."""
        return max(1, round(self.services * self.scale))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="small",
            description="About 500 GPUs and 20 services with a bit of everything.",
            s2=4,
            s1_per_s2=2,
            gpu_types={"H800": 3, "A800": 2, "L20": 2},
            load=0.7,
            change=0.6,
        ),
        Family(
            name="cycle",
            description="One cycle of 20,000 GPUs: 300 services run, every tenth changes.",
            s2=10,
            s1_per_s2=10,
            nodes_per_s1=25,
            services=300,
            running=0.75,
            change=0.1,
            scale_in=0.3,
            load=0.2,
        ),
        Family(
            name="replan",
            description="300 services scale out at once on 14,000 free GPUs.",
            s2=10,
            s1_per_s2=8,
            nodes_per_s1=25,
            services=300,
            running=0.1,
            change=1.0,
            scale_in=0.0,
            load=0.8,
        ),
        Family(
            name="large",
            description="1,000 services scale out at once on 70,000 free GPUs.",
            s2=20,
            s1_per_s2=16,
            nodes_per_s1=30,
            services=1000,
            running=0.07,
            change=1.0,
            scale_in=0.0,
            load=0.9,
        ),
        Family(
            name="region",
            description="A region of 100,000 GPUs in 12,500 nodes with 2,000 services.",
            s2=25,
            s1_per_s2=20,
            nodes_per_s1=25,
            services=2000,
            running=0.1,
            change=1.0,
            scale_in=0.05,
            load=0.9,
        ),
        Family(
            name="odd",
            description="Pod sizes that do not divide each other, instances of several pods.",
            s2=4,
            s1_per_s2=3,
            nodes_per_s1=12,
            gpu_types={"H800": 1, "L20": 1},
            services=24,
            sizes={1: 1, 3: 3, 5: 2, 6: 2},
            multi_pod=0.4,
            change=0.8,
            load=0.7,
        ),
        Family(
            name="moe",
            description="Attention and expert pods of two GPU types inside one S1.",
            s2=4,
            gpu_types={"H800": 1, "H20": 1},
            hetero_s1=0.5,
            hetero_s2=1.0,
            services=16,
            ratios=(Fraction(1), Fraction(1, 2), Fraction(2)),
            moe=0.6,
            change=0.8,
            load=0.6,
        ),
    )
}


def family_from(name: str, overrides: Mapping[str, object] | None = None) -> Family:
    """Return a named family with some of its knobs turned.

    Parameters
    ----------
    name
        A key of :data:`FAMILIES`.
    overrides
        New values by knob. Text is read as JSON, as ``key=value`` pairs or as a list with commas:
        ``0.5``, ``1=2,8=1`` and ``1/2,1/3`` are all understood.

    Returns
    -------
    Family
        The named one itself when nothing is overridden.

    Raises
    ------
    InputError
        If the family or a knob is not known, or a value does not fit.
    """
    if name not in FAMILIES:
        raise InputError("family", f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    base = FAMILIES[name]
    if not overrides:
        return base
    values: dict[str, object] = {knob: getattr(base, knob) for knob in Family.model_fields}
    for knob, value in overrides.items():
        if knob not in values:
            known = ", ".join(sorted(values))
            raise InputError(f"family {name}", f"unknown knob {knob!r}; known: {known}")
        values[knob] = _parsed(knob, value)
    try:
        return Family.model_validate(values)
    except ValidationError as error:
        raise input_error(error, f"family {name}") from None


def _parsed(knob: str, value: object) -> object:
    """Value of a knob given as text on a command line."""
    if not isinstance(value, str) or knob in ("name", "description"):
        return value
    text = value.strip()
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        if "=" in text:
            pairs = (part.partition("=") for part in text.split(","))
            return {key.strip(): _parsed(knob, rest) for key, _, rest in pairs}
        parsed = [part.strip() for part in text.split(",")] if "," in text else text
    listed = knob in ("gpus_per_node", "priorities", "ratios")
    return [parsed] if listed and not isinstance(parsed, list | dict) else parsed


def generate(family: Family, seed: int = 0) -> Instance:
    """Make an instance of a family.

    Parameters
    ----------
    family
        The knobs.
    seed
        The same family and seed give the same instance everywhere.

    Returns
    -------
    Instance
        Valid, with running groups in band on real free GPUs.
    """
    rng = random.Random(f"heteroplace {seed}")
    fleet = _Fleet(tuple(_synthetic_nodes(family, rng)), ("cluster", "s2", "s1"))
    drafts = _Author(family, fleet, rng).drafts()
    _run(fleet, drafts, family.running * fleet.total, rng)
    _drain(drafts, family.draining, rng)
    wanted = {name: family.load * gpus for name, gpus in fleet.free().items()}
    _retarget(fleet, drafts, family.change, family.scale_in, wanted, rng)
    floors = _flags(rng, family.minimum, len(drafts))
    return Instance(
        schema_=SCHEMA,
        name=f"{family.name}-{seed}",
        description=f"Family {family.name} at scale {family.scale:g}, seed {seed}. "
        + family.description,
        levels=fleet.levels,
        nodes=fleet.nodes,
        services=tuple(draft.service(floor) for draft, floor in zip(drafts, floors, strict=True)),
        running=tuple(group.running() for draft in drafts for group in draft.groups),
        cycle=family.cycle,
        objective=family.objective,
    )


# --------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------


def _flags(rng: random.Random, share: float, count: int) -> list[bool]:
    """Exactly the share of true values, in random order."""
    true = round(share * count)
    flags = [True] * true + [False] * (count - true)
    rng.shuffle(flags)
    return flags


def _spread(rng: random.Random, weights: Mapping[T, float], count: int) -> list[T]:
    """Values in the proportion of their weights, as exactly as whole numbers can, shuffled."""
    total = fsum(weights.values())
    values = list(weights)
    exact = [weights[value] * count / total for value in values]
    counts = [int(number) for number in exact]
    order = sorted(range(len(values)), key=lambda i: (counts[i] - exact[i], i))
    for index in order[: count - sum(counts)]:
        counts[index] += 1
    drawn = [value for value, times in zip(values, counts, strict=True) for _ in range(times)]
    rng.shuffle(drawn)
    return drawn


def _draw(rng: random.Random, weights: Mapping[T, float]) -> T:
    """One value by weight; an even draw when no weight is above 0."""
    values = list(weights)
    bounds = list(accumulate(max(0.0, weights[value]) for value in values))
    if bounds[-1] <= 0:
        return values[rng.randrange(len(values))]
    return values[min(bisect(bounds, rng.random() * bounds[-1]), len(values) - 1)]


def _skewed(rng: random.Random) -> float:
    """Weight of a service: few are large, many small."""
    return 1 / (0.2 + rng.random())


# --------------------------------------------------------------------------------------------
# The fleet
# --------------------------------------------------------------------------------------------


def _synthetic_nodes(family: Family, rng: random.Random) -> Iterator[Node]:
    s2, s1_per_s2, nodes_per_s1 = family.tree
    total = family.total_nodes
    cordoned = _flags(rng, family.cordoned, total)
    reserved = _flags(rng, family.reserved, total)
    index = 0
    for i, row in enumerate(_types_of_s1(family, s2, s1_per_s2, rng)):
        for j, types in enumerate(row):
            gpus = rng.choice(family.gpus_per_node)
            for k in range(nodes_per_s1):
                yield Node(
                    name=f"n{i:02d}-{j:02d}-{k:03d}",
                    gpu_type=types[k % len(types)],
                    gpus=gpus,
                    domains={"cluster": "c0", "s2": f"s2-{i:02d}", "s1": f"s1-{i:02d}-{j:02d}"},
                    schedulable=not cordoned[index],
                    reserved=rng.randint(1, max(1, gpus // 2)) if reserved[index] else 0,
                )
                index += 1


class _Quota:
    """What is still missing of each GPU type, in S1."""

    def __init__(self, weights: Mapping[str, float], total: int) -> None:
        whole = fsum(weights.values())
        self.missing = {
            name: weight * total / whole for name, weight in weights.items() if weight > 0
        }

    def most_wanted(self, count: int, among: Iterable[str] | None = None) -> list[str]:
        names = list(self.missing if among is None else among)
        return sorted(names, key=lambda name: -self.missing[name])[:count]

    def take(self, name: str, amount: float) -> None:
        self.missing[name] -= amount


def _types_of_s1(
    family: Family, s2: int, s1_per_s2: int, rng: random.Random
) -> list[list[tuple[str, ...]]]:
    """GPU types of every S1 of every S2; the pure S2 first, as the mixed ones fill the rest."""
    hetero = round(family.hetero_s1 * s2 * s1_per_s2) if family.tree[2] > 1 else 0
    mixed = max(round(family.hetero_s2 * s2), -(-hetero // s1_per_s2))
    if s1_per_s2 < 2:
        mixed = hetero
    quota = _Quota(family.gpu_types, s2 * s1_per_s2)
    rows: list[list[tuple[str, ...]]] = []
    for _ in range(s2 - mixed):
        name = quota.most_wanted(1)[0]
        quota.take(name, s1_per_s2)
        rows.append([(name,)] * s1_per_s2)
    for number in range(mixed):
        share = hetero * (number + 1) // mixed - hetero * number // mixed
        rows.append(_mixed_s2(quota, s1_per_s2, share, rng))
    rng.shuffle(rows)
    return rows


def _mixed_s2(
    quota: _Quota, s1_per_s2: int, hetero: int, rng: random.Random
) -> list[tuple[str, ...]]:
    """S1 of an S2 of two or three types, ``hetero`` of them of two types themselves."""
    types = quota.most_wanted(3 if rng.random() < 0.3 else 2)
    row: list[tuple[str, ...]] = []
    for number in range(s1_per_s2):
        if number < hetero:
            pair = quota.most_wanted(2, types)
            row.append(tuple(pair))
        elif hetero == 0 and number < 2:
            row.append((types[number],))
        else:
            row.append(tuple(quota.most_wanted(1, types)))
        for name in row[-1]:
            quota.take(name, 1 / len(row[-1]))
    rng.shuffle(row)
    return row


class _Fleet:
    """Nodes and their free GPUs, by domain of the finest level (*leaf*)."""

    def __init__(self, nodes: tuple[Node, ...], levels: tuple[str, ...]) -> None:
        self.nodes, self.levels = nodes, levels
        self.room = [node.gpus - node.reserved for node in nodes]
        self.leaves: list[dict[str, list[int]]] = []
        self.left: list[Counter[str]] = []
        self.kept: list[dict[str, float]] = []
        self.domains: dict[str | None, dict[str | None, list[int]]] = {None: {None: []}}
        self.domains.update({level: {} for level in levels})
        self._with: dict[tuple[str | None, tuple[str, ...]], list[str | None]] = {}
        number: dict[str, int] = {}
        for index, node in enumerate(nodes):
            leaf = number.get(node.domains[levels[-1]])
            if leaf is None:
                leaf = number[node.domains[levels[-1]]] = self._new_leaf(node)
            self.leaves[leaf].setdefault(node.gpu_type, []).append(index)
            self.left[leaf][node.gpu_type] += self.room[index]

    def keep(self, share: float) -> None:
        """Keep a share of what every leaf has left now of each type out of :meth:`place`."""
        self.kept = [{name: share * gpus for name, gpus in left.items()} for left in self.left]

    def _new_leaf(self, node: Node) -> int:
        leaf = len(self.leaves)
        self.leaves.append({})
        self.left.append(Counter())
        self.kept.append({})
        self.domains[None][None].append(leaf)
        for level in self.levels:
            self.domains[level].setdefault(node.domains[level], []).append(leaf)
        return leaf

    @cached_property
    def total(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @cached_property
    def node_gpus(self) -> dict[str, int]:
        """GPUs of the largest node of each type."""
        largest: dict[str, int] = {}
        for node in self.nodes:
            largest[node.gpu_type] = max(largest.get(node.gpu_type, 0), node.gpus)
        return {name: gpus for name, gpus in largest.items() if gpus}

    @cached_property
    def gpus(self) -> Counter[str]:
        """GPUs of each type."""
        count: Counter[str] = Counter()
        for node in self.nodes:
            count[node.gpu_type] += node.gpus
        return count

    def free(self) -> Counter[str]:
        """GPUs of each type that this cycle may use."""
        count: Counter[str] = Counter()
        for node, room in zip(self.nodes, self.room, strict=True):
            count[node.gpu_type] += room if node.schedulable else 0
        return count

    def domains_with(self, level: str | None, types: Iterable[str]) -> list[str | None]:
        """Domains of a level that hold all of some GPU types, in order of appearance."""
        key = (level, tuple(sorted(types)))
        if key not in self._with:
            self._with[key] = [
                domain
                for domain, leaves in self.domains[level].items()
                if set(key[1]) <= {name for leaf in leaves for name in self.leaves[leaf]}
            ]
        return self._with[key]

    def size(self, level: str | None, domain: str | None, gpu_type: str) -> int:
        """GPUs of a type in a domain, those that are held back excluded."""
        return sum(
            self.nodes[index].gpus - self.nodes[index].reserved
            for leaf in self.domains[level][domain]
            for index in self.leaves[leaf].get(gpu_type, ())
        )

    def place(self, recipe: _Recipe, leaves: Sequence[int]) -> _Unit | None:
        """Place every instance of a unit, each within one of the leaves, or nothing."""
        placed: list[tuple[_Part, tuple[int, ...]]] = []
        for part in recipe.parts:
            for _ in range(part.count):
                nodes = self._place_instance(part.shape, leaves)
                if nodes is None:
                    for done, where in placed:
                        self._release(done.shape, where)
                    return None
                placed.append((part, nodes))
        return _Unit(recipe, placed)

    def _place_instance(self, shape: Shape, leaves: Sequence[int]) -> tuple[int, ...] | None:
        for leaf in leaves:
            nodes = self._place_pods(shape, leaf)
            if nodes is not None:
                return nodes
        return None

    def _place_pods(self, shape: Shape, leaf: int) -> tuple[int, ...] | None:
        """First fit of all pods within a leaf; of a ``node`` shape, on one node."""
        pods = shape.pod_list
        if shape.level == NODE_LEVEL:
            index = self._first(leaf, pods[0][0], shape.gpus)
            nodes = [] if index is None else [index] * len(pods)
            if nodes:
                self._take(shape, nodes, leaf)
            return tuple(nodes) or None
        chosen: list[int] = []
        for gpu_type, gpus in pods:
            index = self._first(leaf, gpu_type, gpus)
            if index is None:
                for taken, (_, count) in zip(chosen, pods, strict=False):
                    self.room[taken] += count
                return None
            self.room[index] -= gpus
            chosen.append(index)
        for gpu_type, gpus in pods:
            self.left[leaf][gpu_type] -= gpus
        return tuple(chosen)

    def _first(self, leaf: int, gpu_type: str, gpus: int) -> int | None:
        if self.left[leaf][gpu_type] - gpus < self.kept[leaf].get(gpu_type, 0):
            return None
        for index in self.leaves[leaf].get(gpu_type, ()):
            if self.room[index] >= gpus:
                return index
        return None

    def _take(self, shape: Shape, nodes: Sequence[int], leaf: int) -> None:
        for index, (gpu_type, gpus) in zip(nodes, shape.pod_list, strict=True):
            self.room[index] -= gpus
            self.left[leaf][gpu_type] -= gpus

    def _release(self, shape: Shape, nodes: Sequence[int]) -> None:
        leaf = self._leaf_of[nodes[0]]
        for index, (gpu_type, gpus) in zip(nodes, shape.pod_list, strict=True):
            self.room[index] += gpus
            self.left[leaf][gpu_type] += gpus

    @cached_property
    def _leaf_of(self) -> list[int]:
        found = [0] * len(self.nodes)
        for leaf, types in enumerate(self.leaves):
            for members in types.values():
                for index in members:
                    found[index] = leaf
        return found


# --------------------------------------------------------------------------------------------
# Services
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """Instances of one role and shape in a unit."""

    role: str
    shape: Shape
    count: int


@dataclass(frozen=True)
class _Recipe:
    """How to run one unit of a service; ``step`` is what a unit adds to the targets."""

    parts: tuple[_Part, ...]
    step: Mapping[str, Fraction]

    @cached_property
    def capacity(self) -> dict[str, Fraction]:
        return {part.role: part.count * part.shape.capacity for part in self.parts}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return {part.role: part.shape for part in self.parts}

    @cached_property
    def by_type(self) -> dict[str, int]:
        """GPUs of each type, in the order of the pods."""
        gpus: dict[str, int] = {}
        for part in self.parts:
            for gpu_type, count in part.shape.pod_list:
                gpus[gpu_type] = gpus.get(gpu_type, 0) + part.count * count
        return gpus

    @cached_property
    def gpus(self) -> int:
        return sum(self.by_type.values())


@dataclass(slots=True)
class _Unit:
    """A unit on its nodes."""

    recipe: _Recipe
    placed: list[tuple[_Part, tuple[int, ...]]]
    draining: bool = False


@dataclass(slots=True)
class _Group:
    """A running group."""

    draft: _Draft
    name: str
    domain: str | None
    nodes: tuple[Node, ...]
    units: list[_Unit] = field(default_factory=list)

    def running(self) -> RunningGroup:
        return RunningGroup(
            name=self.name,
            service=self.draft.name,
            domain=self.domain,
            instances=tuple(self._instances()),
        )

    def _instances(self) -> Iterator[RunningInstance]:
        number: Counter[str] = Counter()
        for unit in self.units:
            for part, nodes in unit.placed:
                yield RunningInstance(
                    name=f"{part.role}-{number[part.role]}",
                    role=part.role,
                    shape=str(part.shape.name),
                    nodes=tuple(self.nodes[index].name for index in nodes),
                    state="draining" if unit.draining else "ready",
                )
                number[part.role] += 1


@dataclass(slots=True)
class _Draft:
    """A service in the making; the first recipe is the one its demand is counted in."""

    name: str
    priority: int
    affinity: Affinity
    shapes: dict[str, tuple[Shape, ...]]
    ratios: tuple[RatioBand, ...]
    recipes: tuple[_Recipe, ...]
    weight: float
    groups: list[_Group] = field(default_factory=list)
    targets: dict[str, Fraction] = field(default_factory=dict)

    def ready(self) -> list[_Unit]:
        return [unit for group in self.groups for unit in group.units if not unit.draining]

    def service(self, floor: bool) -> Service:
        return Service(
            name=self.name,
            priority=self.priority,
            affinity=self.affinity,
            roles={
                role: Role(
                    target=self.targets[role],
                    min=self.targets[role] / 2 if floor else Fraction(0),
                    shapes=shapes,
                )
                for role, shapes in self.shapes.items()
            },
            ratios=self.ratios,
        )


def _band(ratio: Fraction, width: float) -> RatioBand:
    half = Fraction(width).limit_denominator(1000) * ratio
    return RatioBand(numerator="prefill", denominator="decode", min=ratio - half, max=ratio + half)


def _counts(prefill: Shape, decode: Shape, ratio: Fraction, width: float) -> tuple[int, int]:
    """Small numbers of instances whose delivered ratio is in the band, near its middle if it can.

    Exact numbers exist whatever the band, since capacities are rational.
    """
    one = ratio * decode.capacity / prefill.capacity
    half = Fraction(width).limit_denominator(1000)
    for tolerance, most in ((half / 2, 8), (half, 64)):
        for count in range(1, most + 1):
            other = max(1, round(one * count))
            if abs(other - one * count) <= tolerance * one * count:
                return other, count
    return one.numerator, one.denominator


@dataclass(frozen=True, slots=True)
class _Traits:
    """What is drawn for a service before its shapes; the fields are named after the knobs."""

    weight: float
    priority: int
    affinity: AffinityKind
    single: bool
    cross_type: bool
    moe: bool
    multi_pod: bool
    alternatives: bool


class _Author:
    """Draws the services of a family."""

    def __init__(self, family: Family, fleet: _Fleet, rng: random.Random) -> None:
        self.family, self.fleet, self.rng = family, fleet, rng
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

    def drafts(self) -> list[_Draft]:
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

    def _traits(self) -> list[_Traits]:
        family, rng, count = self.family, self.rng, self.family.total_services
        single = _flags(rng, family.aggregated, count)
        columns = zip(
            [_skewed(rng) for _ in range(count)],
            _spread(rng, dict.fromkeys(family.priorities, 1.0), count),
            _spread(rng, family.affinity, count),
            single,
            self._among(single, family.cross_type),
            self._among(single, family.moe),
            _flags(rng, family.multi_pod, count),
            _flags(rng, family.alternatives, count),
            strict=True,
        )
        return [_Traits(*row) for row in columns]

    def _among(self, excluded: list[bool], share: float) -> list[bool]:
        """Flag the share of all services, but no excluded one."""
        free = [index for index, no in enumerate(excluded) if not no]
        self.rng.shuffle(free)
        chosen = set(free[: round(share * len(excluded))])
        return [index in chosen for index in range(len(excluded))]

    def _draft(self, name: str, trait: _Traits) -> _Draft:
        affinity = AFFINITIES[trait.affinity]
        pair = self._pair("s1") if trait.moe else None
        moe = pair is not None
        if moe:
            affinity = AFFINITIES["s2"]
        elif trait.cross_type:
            pair = self._pair(affinity.required)
        ratio = Fraction(1) if trait.single else self.rng.choice(self.family.ratios)
        types = pair or (_draw(self.rng, self.room),) * 2
        recipes = [self._preferred(types, trait, moe, ratio, affinity.required)]
        if trait.alternatives and not moe:
            for number in range(self.rng.randint(1, 2)):
                shapes = self._further(recipes[0].shapes, types, number)
                if shapes is not None:
                    recipes.append(self._recipe(shapes, ratio))
        return _Draft(
            name=name,
            priority=trait.priority,
            affinity=affinity,
            shapes={
                role: tuple(recipe.shapes[role] for recipe in recipes) for role in recipes[0].shapes
            },
            ratios=() if trait.single else (_band(ratio, self.family.band),),
            recipes=tuple(recipes),
            weight=trait.weight,
        )

    def _preferred(
        self,
        types: tuple[str, str],
        trait: _Traits,
        moe: bool,
        ratio: Fraction,
        level: str | None,
    ) -> _Recipe:
        """Draw shapes until a unit fits a domain of the level; small ones after ten tries."""
        for attempt in range(20):
            easy = attempt >= 10
            if moe:
                shapes = {role: self._moe(types, easy) for role in ("prefill", "decode")}
            else:
                shapes = self._plain(types, trait, easy)
            recipe = self._recipe(shapes, ratio)
            if _fits(self.fleet, recipe, level):
                break
        return recipe

    def _pair(self, level: str | None) -> tuple[str, str] | None:
        """Two GPU types that share a domain of the level; null if none do."""
        fleet, rng = self.fleet, self.rng
        domains = [
            domain
            for domain, leaves in fleet.domains[level].items()
            if len(self._known(leaves)) > 1
        ]
        if not domains:
            return None
        known = self._known(fleet.domains[level][domains[rng.randrange(len(domains))]])
        first = _draw(rng, {name: self.room[name] for name in known})
        second = _draw(rng, {name: self.room[name] for name in known if name != first})
        return first, second

    def _known(self, leaves: list[int]) -> list[str]:
        found = {name for leaf in leaves for name in self.fleet.leaves[leaf]}
        return [name for name in self.room if name in found]

    def _size(self, gpu_type: str, easy: bool) -> int:
        fitting = {
            size: weight
            for size, weight in self.sizes.items()
            if size <= self.fleet.node_gpus[gpu_type]
        }
        return min(fitting) if easy else _draw(self.rng, fitting)

    def _plain(self, types: tuple[str, str], trait: _Traits, easy: bool) -> dict[str, Shape]:
        roles = ("serve",) if trait.single else ("prefill", "decode")
        shapes = {}
        for role, gpu_type in zip(roles, types, strict=False):
            size, count, level = self._size(gpu_type, easy), 1, None
            if trait.multi_pod and role != "prefill" and not easy:
                count = self.rng.randint(2, 3)
                if self.rng.random() < 0.5 and size * count <= self.fleet.node_gpus[gpu_type]:
                    level = NODE_LEVEL
            pods = (Pod(gpu_type=gpu_type, gpus=size, count=count),)
            shapes[role] = Shape(name="preferred", pods=pods, level=level)
        return shapes

    def _moe(self, types: tuple[str, str], easy: bool) -> Shape:
        """One attention pod and one or two expert pods of another GPU type in one S1."""
        attention, experts = types
        return Shape(
            name="preferred",
            pods=(
                Pod(gpu_type=attention, gpus=self._size(attention, easy)),
                Pod(
                    gpu_type=experts,
                    gpus=self._size(experts, easy),
                    count=1 if easy else self.rng.randint(1, 2),
                ),
            ),
            level="s1",
        )

    def _further(
        self, shapes: dict[str, Shape], types: tuple[str, str], number: int
    ) -> dict[str, Shape] | None:
        """Draw a shape for every role on another GPU type, or of another size if there is none."""
        others = [name for name in self.room if name not in types]
        gpu_type = others[self.rng.randrange(len(others))] if others else types[-1]
        found = {}
        for role, shape in shapes.items():
            pod = shape.pods[0]
            size = pod.gpus if others else self._size(gpu_type, False)
            if size > self.fleet.node_gpus[gpu_type] or (not others and size == pod.gpus):
                return None
            worth = self.rng.choice(
                (Fraction(1, 2), Fraction(3, 4), Fraction(4, 5), Fraction(5, 4))
            )
            found[role] = Shape(
                name=f"other{number}",
                pods=(Pod(gpu_type=gpu_type, gpus=size, count=pod.count),),
                level=shape.level if size * pod.count <= self.fleet.node_gpus[gpu_type] else None,
                capacity=worth * Fraction(size, pod.gpus),
            )
        return found

    def _recipe(self, shapes: dict[str, Shape], ratio: Fraction) -> _Recipe:
        counts = (
            _counts(shapes["prefill"], shapes["decode"], ratio, self.family.band)
            if len(shapes) > 1
            else (1,)
        )
        parts = tuple(
            _Part(role, shape, count)
            for (role, shape), count in zip(shapes.items(), counts, strict=True)
        )
        return _Recipe(parts, {part.role: part.count * part.shape.capacity for part in parts})


def _fits(fleet: _Fleet, recipe: _Recipe, level: str | None) -> bool:
    """Whether some domain of the level is large enough for a unit and a half."""
    return any(
        all(
            2 * fleet.size(level, domain, name) >= 3 * gpus for name, gpus in recipe.by_type.items()
        )
        for domain in fleet.domains_with(level, recipe.by_type)
    )


# --------------------------------------------------------------------------------------------
# Running state and targets
# --------------------------------------------------------------------------------------------


def _run(fleet: _Fleet, drafts: list[_Draft], budget: float, rng: random.Random) -> None:
    """Place running groups on about ``budget`` GPUs; every service runs if that is enough.

    Every part of the fleet keeps some free GPUs, so that services which fit few places can grow.
    """
    room = sum(sum(counter.values()) for counter in fleet.left)
    fleet.keep(max(0.0, 1 - budget / max(1, room)) / 2)
    left = budget
    order = list(drafts)
    rng.shuffle(order)
    for draft in order:
        left -= _grow(fleet, draft, left, rng)
    misses = 0
    bounds = list(accumulate(draft.weight for draft in drafts))
    while left >= 1 and misses < 50:
        draft = drafts[min(bisect(bounds, rng.random() * bounds[-1]), len(drafts) - 1)]
        grown = _grow(fleet, draft, left, rng)
        misses = 0 if grown else misses + 1
        left -= grown


def _grow(fleet: _Fleet, draft: _Draft, most: float, rng: random.Random) -> int:
    """Add a unit to a group of the service or to a new one; return its GPUs, 0 for no room."""
    recipe = draft.recipes[0]
    if len(draft.recipes) > 1 and rng.random() < 0.25:
        scarcest = {
            index: min(fleet.gpus[name] for name in other.by_type)
            for index, other in enumerate(draft.recipes)
        }
        recipe = draft.recipes[_draw(rng, scarcest)]
    if recipe.gpus > most:
        return 0
    level = draft.affinity.required
    if draft.groups and rng.random() < 0.7:
        group = draft.groups[rng.randrange(len(draft.groups))]
        unit = _place(fleet, recipe, level, group.domain, rng)
        if unit is not None:
            group.units.append(unit)
            return recipe.gpus
    domains = fleet.domains_with(level, recipe.by_type)
    for _ in range(min(8, len(domains))):
        domain = domains[rng.randrange(len(domains))]
        unit = _place(fleet, recipe, level, domain, rng)
        if unit is not None:
            name = f"{draft.name}-g{len(draft.groups)}"
            draft.groups.append(_Group(draft, name, domain, fleet.nodes, [unit]))
            return recipe.gpus
    return 0


def _place(
    fleet: _Fleet, recipe: _Recipe, level: str | None, domain: str | None, rng: random.Random
) -> _Unit | None:
    """Place a unit in a domain, from a random leaf on."""
    leaves = fleet.domains[level][domain]
    start = rng.randrange(len(leaves))
    return fleet.place(recipe, leaves[start:] + leaves[:start])


def _drain(drafts: list[_Draft], share: float, rng: random.Random) -> None:
    """Let a share of the running units drain, never all of a service."""
    units = [(draft, unit) for draft in drafts for group in draft.groups for unit in group.units]
    left = round(share * len(units))
    rng.shuffle(units)
    for draft, unit in units:
        if not left:
            return
        if len(draft.ready()) > 1:
            unit.draining = True
            left -= 1


def _retarget(
    fleet: _Fleet,
    drafts: list[_Draft],
    change: float,
    scale_in: float,
    wanted: Mapping[str, float],
    rng: random.Random,
) -> None:
    """Set the targets: ``wanted`` are the GPUs of each type to ask for."""
    for draft in drafts:
        now: dict[str, Fraction] = dict.fromkeys(draft.shapes, Fraction(0))
        for unit in draft.ready():
            for role, capacity in unit.recipe.capacity.items():
                now[role] += capacity
        draft.targets = now
    order = list(drafts)
    rng.shuffle(order)
    order.sort(key=lambda draft: bool(draft.ready()))
    idle = sum(1 for draft in drafts if not draft.ready())
    changing = max(idle, round(change * len(drafts)))
    shrinking = min(round(scale_in * changing), changing - idle)
    for draft in order[changing - shrinking : changing]:
        _shrink(draft, rng)
    if fsum(wanted.values()) > 0:
        _extend(fleet, order[: changing - shrinking], wanted)


def _shrink(draft: _Draft, rng: random.Random) -> None:
    """Lower the targets by some of the running units."""
    units = draft.ready()
    rng.shuffle(units)
    for unit in units[: rng.randint(1, max(1, len(units) // 2))]:
        for role, capacity in unit.recipe.capacity.items():
            draft.targets[role] -= capacity


def _extend(fleet: _Fleet, drafts: list[_Draft], wanted: Mapping[str, float]) -> None:
    """Raise the targets by whole units, one at least, to the GPUs that are wanted.

    What rounding leaves over is carried on to the services on the same GPU type; those with small
    units come last and even it out.
    """
    carry: dict[str, float] = defaultdict(float)
    shares = list(zip(drafts, _shares(fleet, drafts, wanted), strict=True))
    for draft, gpus in sorted(shares, key=lambda each: -each[0].recipes[0].gpus):
        recipe = draft.recipes[0]
        gpu_type = next(iter(recipe.by_type))
        asked = gpus + carry[gpu_type]
        units = max(1, round(asked / recipe.gpus))
        carry[gpu_type] = asked - units * recipe.gpus
        for role, step in recipe.step.items():
            draft.targets[role] += units * step


def _shares(fleet: _Fleet, drafts: list[_Draft], wanted: Mapping[str, float]) -> list[float]:
    """GPUs each service may ask for: the wanted ones of every type, and where they can be had.

    Services that need two GPU types in one domain ask for no more than most of what the domains
    of that kind have; the others make up for it.
    """
    gpus = [draft.weight for draft in drafts]
    mixes = [
        {name: count / draft.recipes[0].gpus for name, count in draft.recipes[0].by_type.items()}
        for draft in drafts
    ]
    scopes = [_scope(fleet, draft) for draft in drafts]
    limits = _limits(fleet, scopes, wanted)
    for _ in range(8):
        asked = _asked(gpus, mixes)
        gpus = [
            amount * fsum(mix[name] * wanted[name] / asked[name] for name in mix if asked[name])
            for amount, mix in zip(gpus, mixes, strict=True)
        ]
        for members, limit in limits:
            asked = _asked([gpus[i] for i in members], [mixes[i] for i in members])
            factor = min([1.0, *(limit[name] / asked[name] for name in asked if asked[name])])
            for index in members:
                gpus[index] *= factor
    free = [index for index, scope in enumerate(scopes) if scope is None]
    rest = fsum(wanted.values()) - fsum(gpus) + fsum(gpus[index] for index in free)
    total = fsum(gpus[index] for index in free)
    for index in free:
        gpus[index] *= max(0.0, rest) / total if total else 0.0
    return gpus


def _asked(gpus: Sequence[float], mixes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """GPUs of each type."""
    asked: dict[str, float] = defaultdict(float)
    for amount, mix in zip(gpus, mixes, strict=True):
        for name, part in mix.items():
            asked[name] += amount * part
    return asked


def _scope(fleet: _Fleet, draft: _Draft) -> tuple[int, ...] | None:
    """Leaves where a service that needs several types in one domain can run; null for others."""
    recipe, level = draft.recipes[0], draft.affinity.required
    needs = [{gpu_type for gpu_type, _ in part.shape.pod_list} for part in recipe.parts]
    if len(recipe.by_type) < 2 or (level is None and all(len(need) < 2 for need in needs)):
        return None
    return tuple(
        leaf
        for domain in fleet.domains_with(level, recipe.by_type)
        for leaf in fleet.domains[level][domain]
        if any(need <= fleet.leaves[leaf].keys() for need in needs)
    )


def _limits(
    fleet: _Fleet, scopes: Sequence[tuple[int, ...] | None], wanted: Mapping[str, float]
) -> list[tuple[list[int], dict[str, float]]]:
    """For each scope, the services confined to it and the GPUs they may ask for together."""
    free = fleet.free()
    limits = []
    for scope in dict.fromkeys(scope for scope in scopes if scope is not None):
        inside = set(scope)
        members = [
            index for index, own in enumerate(scopes) if own is not None and inside >= set(own)
        ]
        left: Counter[str] = Counter()
        for leaf in scope:
            left.update(fleet.left[leaf])
        limit = {name: 0.7 * left[name] * wanted[name] / max(1, free[name]) for name in wanted}
        limits.append((members, limit))
    return limits


# --------------------------------------------------------------------------------------------
# Real inventory
# --------------------------------------------------------------------------------------------

_NAME_COLUMNS = ("node", "name", "sn", "node_name")
_TYPE_COLUMNS = ("gpu_type", "gpu_model", "model")
_GPU_COLUMNS = ("gpus", "gpu", "gpu_capacity_num")
_LEVELS = ("s2", "s1", "s0")
_OUTPUT_TOKENS = (256, 512, 1024)
_INVENTORY_BAND = 0.3
_INVENTORY_AFFINITY: dict[AffinityKind, float] = {"none": 3, "s2": 4, "s1": 1.5, "s2+s1": 1.5}


def from_inventory(
    nodes_csv: str | os.PathLike[str],
    capacity_csv: str | os.PathLike[str] | None = None,
    *,
    models_dir: str | os.PathLike[str] = "models",
    services: int = 60,
    load: float = 0.8,
    running: float = 0.3,
    change: float = 0.6,
    scale_in: float = 0.1,
    draining: float = 0.01,
    seed: int = 0,
    isl: int = 2048,
    max_bytes: int = MAX_BYTES,
) -> Instance:
    """Make an instance from a list of real nodes and the capacities of served models.

    Each service serves one of the models for prompts of ``isl`` tokens and one of a few output
    lengths, which fix its prefill : decode ratio. Its demand is what a number of GPUs of one type
    delivers; the types take part by their free GPUs.

    Parameters
    ----------
    nodes_csv
        One node per row: a name (``node``, ``name``, ``sn`` or ``node_name``), a GPU type
        (``gpu_type``, ``gpu_model`` or ``model``), its GPUs (``gpus``, ``gpu`` or
        ``gpu_capacity_num``) and its domains (any of ``s2``, ``s1`` and ``s0``).
    capacity_csv
        Table for :func:`heteroplace.models.models_from_csv`; null reads ``models_dir``.
    models_dir
        Folder of served models.
    services
        Number of services.
    load
        GPUs for all targets together, as a fraction of the usable GPUs: those of the types that
        can serve both roles of a model.
    running
        Fraction of the usable GPUs on which groups run already.
    change
        Share of the services that change their target; services that do not run scale out anyway.
    scale_in
        Share of the changing services that scale in.
    draining
        Share of the running units that drain.
    seed
        The same files and seed give the same instance.
    isl
        Prompt length: the rows of ``capacity_csv`` that are read, and the prefill part of the
        ratio.
    max_bytes
        Largest file that is read.

    Returns
    -------
    Instance
        Valid, with running groups in band on real free GPUs.

    Raises
    ------
    InputError
        If a file or a value cannot be used; names the file, the line and the column.
    """
    shares = {"running": running, "change": change, "scale_in": scale_in, "draining": draining}
    for knob, value in shares.items():
        if not 0 <= value <= 1:
            raise InputError(knob, f"must be from 0 to 1, got {value:g}")
    if not running <= load <= 100:
        raise InputError("load", f"must be from running ({running:g}) to 100, got {load:g}")
    if not 1 <= services <= 10**5:
        raise InputError("services", f"must be from 1 to 100000, got {services}")
    rng = random.Random(f"heteroplace {seed}")
    fleet = _Fleet(*_read_nodes(nodes_csv, max_bytes))
    if capacity_csv is None:
        served = load_models(models_dir)
    else:
        served = models_from_csv(capacity_csv, isl, max_bytes)
    catalogue = _Catalogue(fleet, served, isl)
    if not catalogue.homes:
        known = ", ".join(sorted(fleet.gpus))
        raise InputError(
            str(nodes_csv), f"has no GPU type that can serve a model ({known}); add its capacities"
        )
    drafts = catalogue.drafts(services, load, rng)
    usable = sum(fleet.gpus[name] for name in catalogue.homes)
    least = sum(draft.recipes[0].gpus for draft in drafts)
    if least > usable:
        raise InputError(
            "services",
            f"{services} services need {least} GPUs to run at all, {usable} of the inventory can "
            "serve a model; ask for fewer or add capacities of more GPU types",
        )
    _run(fleet, drafts, running * usable, rng)
    _drain(drafts, draining, rng)
    free = {name: fleet.free()[name] for name in catalogue.homes}
    part = (load - running) * usable / max(1, sum(free.values()))
    wanted = {name: part * gpus for name, gpus in free.items()}
    _retarget(fleet, drafts, change, scale_in, wanted, rng)
    return Instance(
        schema_=SCHEMA,
        name=f"inventory-{seed}",
        description=f"{len(fleet.nodes)} nodes, {len(drafts)} services at a load of {load:g}, "
        f"seed {seed}; capacities in tokens/s for prompts of {isl} tokens.",
        levels=fleet.levels,
        nodes=fleet.nodes,
        services=tuple(draft.service(floor=False) for draft in drafts),
        running=tuple(group.running() for draft in drafts for group in draft.groups),
    )


class _Catalogue:
    """The models that can be served on a fleet, and how."""

    def __init__(self, fleet: _Fleet, served: Sequence[ServedModel], isl: int) -> None:
        self.fleet, self.isl = fleet, isl
        self.shapes: dict[str, dict[str, tuple[Shape, ...]]] = {}
        self.homes: dict[str, list[str]] = {}
        for model in served:
            shapes = {
                role: model.shapes(role, fleet.node_gpus, per_type=2)
                for role in ("prefill", "decode")
            }
            both = [name for name in fleet.node_gpus if all(_first(shapes, name).values())]
            if both:
                self.shapes[model.name] = shapes
                for name in both:
                    self.homes.setdefault(name, []).append(model.name)
        self.homes = {name: self.homes[name] for name in sorted(self.homes)}

    def drafts(self, count: int, load: float, rng: random.Random) -> list[_Draft]:
        """Draw services whose GPU types get their shares of the demand."""
        weights = [_skewed(rng) for _ in range(count)]
        room = {name: load * self.fleet.gpus[name] for name in self.homes}
        each = fsum(room.values()) / fsum(weights)
        kinds = _spread(rng, _INVENTORY_AFFINITY, count)
        priorities = _spread(rng, {0: 1.0, 1: 1.0, 2: 1.0}, count)
        drafts = []
        for index in range(count):
            home = _draw(rng, room)
            room[home] -= weights[index] * each
            model = self.homes[home][rng.randrange(len(self.homes[home]))]
            ratio = Fraction(self.isl, _OUTPUT_TOKENS[rng.randrange(len(_OUTPUT_TOKENS))])
            recipes = self._recipes(model, home, ratio)
            short = model.rsplit("/", 1)[-1].lower()
            drafts.append(
                _Draft(
                    name=f"{short}-{index:03d}",
                    priority=priorities[index],
                    affinity=self._affinity(kinds[index], recipes[0]),
                    shapes=self.shapes[model],
                    ratios=(_band(ratio, _INVENTORY_BAND),),
                    recipes=recipes,
                    weight=weights[index],
                )
            )
        return drafts

    def _affinity(self, kind: AffinityKind, recipe: _Recipe) -> Affinity:
        """Return the affinity at the levels there are; wider where a unit does not fit."""
        wanted = AFFINITIES[kind]
        levels = [level for level in _LEVELS if level in self.fleet.levels]
        required = wanted.required
        if required is not None and required not in levels:
            required = levels[0] if levels else None
        if required is not None and not _fits(self.fleet, recipe, required):
            required = None
        preferred = wanted.preferred
        if preferred not in levels or preferred == required:
            preferred = None
        return Affinity(required=required, preferred=preferred)

    def _recipes(self, model: str, home: str, ratio: Fraction) -> tuple[_Recipe, ...]:
        """One recipe on each GPU type that serves both roles, the home type first."""
        types = [name for name in self.homes if model in self.homes[name] and name != home]
        return tuple(
            self._recipe(_first(self.shapes[model], name), ratio) for name in (home, *types)
        )

    def _recipe(self, shapes: dict[str, Shape | None], ratio: Fraction) -> _Recipe:
        prefill, decode = shapes["prefill"], shapes["decode"]
        assert prefill is not None
        assert decode is not None
        above, below = _counts(prefill, decode, ratio, _INVENTORY_BAND)
        tokens = min(above * prefill.capacity, ratio * below * decode.capacity)
        return _Recipe(
            (_Part("prefill", prefill, above), _Part("decode", decode, below)),
            {"prefill": Fraction(int(tokens)), "decode": Fraction(int(tokens / ratio))},
        )


def _first(shapes: Mapping[str, tuple[Shape, ...]], gpu_type: str) -> dict[str, Shape | None]:
    """First shape of each role on a GPU type; null where there is none."""
    return {
        role: next((shape for shape in ways if shape.pods[0].gpu_type == gpu_type), None)
        for role, ways in shapes.items()
    }


def _read_nodes(
    path: str | os.PathLike[str], max_bytes: int
) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """Nodes and levels of an inventory."""
    nodes: list[Node] = []
    lines: dict[str, int] = {}
    parents: dict[tuple[str, str], tuple[str, int]] = {}
    levels: tuple[str, ...] = ()
    for line, row in read_rows(path, max_bytes):
        where = f"{path}, line {line}"
        if not nodes:
            levels = ("cluster", *(level for level in _LEVELS if level in row))
        name = _cell(row, where, "the node's name", _NAME_COLUMNS)[1]
        if name in lines:
            raise InputError(
                where, f"node {name!r} is on line {lines[name]} already; remove or rename one"
            )
        lines[name] = line
        domains = {"cluster": "cluster"}
        for upper, level in pairwise(levels):
            domain = _cell(row, where, "the domain", (level,))[1]
            parent = parents.setdefault((level, domain), (domains[upper], line))
            if parent[0] != domains[upper]:
                raise InputError(
                    f"{where}, column {level}",
                    f"{domain!r} is under {domains[upper]!r} here but under {parent[0]!r} on line "
                    f"{parent[1]}; a domain has one parent, rename one of them",
                )
            domains[level] = domain
        nodes.append(
            Node(
                name=name,
                gpu_type=_cell(row, where, "the GPU type", _TYPE_COLUMNS)[1],
                gpus=_whole(where, *_cell(row, where, "the number of GPUs", _GPU_COLUMNS)),
                domains=domains,
            )
        )
    if not nodes:
        raise InputError(str(path), "holds no node; add one row per node below the header")
    return tuple(nodes), levels


def _cell(
    row: dict[str, str], where: str, meaning: str, columns: tuple[str, ...]
) -> tuple[str, str]:
    """(column, text) of the first of the columns that the table has."""
    for column in columns:
        if column in row:
            text = row[column]
            if not text:
                raise InputError(f"{where}, column {column}", f"{meaning} is empty; fill it in")
            if len(text) > 256:
                raise InputError(f"{where}, column {column}", "has more than 256 characters")
            return column, text
    raise InputError(
        where,
        f"no column for {meaning}; name one {' or '.join(columns)} (found: {', '.join(row)})",
    )


def _whole(where: str, column: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise InputError(
            f"{where}, column {column}", f"must be a whole number up to 999999, got {text!r}"
        )
    return int(text)
