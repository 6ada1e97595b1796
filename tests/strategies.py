"""Random instances: one builder, driven by hypothesis or by a seeded random generator.

Instances are built so that they are valid: what runs fits its nodes, targets hold the minimum,
names exist. Everything that docs/problem.md allows can occur, the odd and the broken included.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, TypeVar

from hypothesis import strategies as st

from heteroplace.instance import Instance

T = TypeVar("T")
Data = dict[str, Any]


class Choose(Protocol):
    """The only source of chance; hypothesis shrinks towards the first and the lowest."""

    def between(self, low: int, high: int) -> int: ...


@dataclass(frozen=True)
class Size:
    """How large an instance gets."""

    nodes: tuple[int, int]
    gpus: tuple[int, ...]
    gpu_types: int
    services: tuple[int, int]
    roles: int
    shapes: int
    pods: int
    wide: int  # children of a domain
    running: int  # groups
    instances: int  # in a running group
    more: int  # instances that a target asks beyond what runs


SIZES = {
    "micro": Size(
        nodes=(1, 3),
        gpus=(8, 4, 2, 6, 3, 0),
        gpu_types=2,
        services=(1, 2),
        roles=2,
        shapes=2,
        pods=2,
        wide=2,
        running=2,
        instances=2,
        more=1,
    ),
    "tiny": Size(
        nodes=(1, 4),
        gpus=(8, 8, 4, 8, 4, 2, 6, 3, 1, 5, 7, 0),
        gpu_types=2,
        services=(1, 2),
        roles=3,
        shapes=2,
        pods=2,
        wide=2,
        running=2,
        instances=3,
        more=2,
    ),
    "small": Size(
        nodes=(1, 10),
        gpus=(8, 8, 4, 8, 8, 4, 8, 2, 1, 3, 5, 6, 7, 0),
        gpu_types=3,
        services=(1, 3),
        roles=3,
        shapes=3,
        pods=3,
        wide=3,
        running=3,
        instances=5,
        more=4,
    ),
    "large": Size(
        nodes=(80, 120),
        gpus=(8, 8, 8, 4),
        gpu_types=3,
        services=(10, 14),
        roles=2,
        shapes=3,
        pods=3,
        wide=4,
        running=20,
        instances=6,
        more=12,
    ),
}


def random_instance(
    rng: random.Random, size: Literal["micro", "tiny", "small", "large"] = "small"
) -> Instance:
    """Draw one instance from a seeded generator."""
    return _Builder(rng.randint, SIZES[size]).instance()


@st.composite
def _drawn(draw: st.DrawFn, size: str) -> Instance:
    return _Builder(lambda low, high: draw(st.integers(low, high)), SIZES[size]).instance()


def tiny_instances() -> st.SearchStrategy[Instance]:
    """Instances that the oracle can mostly solve."""
    return _drawn("tiny")


def instances() -> st.SearchStrategy[Instance]:
    """Instances of the whole feature space."""
    return _drawn("small")


LEVELS = (
    ("cluster", "s2", "s1"),
    ("s1",),
    ("s2", "s1"),
    ("zone", "rack"),
    ("region", "s2", "s1", "s0"),
)
CAPACITIES = (1, 1, 1, 2, 3, "1/2", "2/3", 1.5, 0.1, 4)
TOKENS = (1375.5, 2048, 917.25, 688.125, 5120)
BANDS: tuple[Data, ...] = (
    {"min": "1/2", "max": 2},
    {"min": 1, "max": 1},
    {"min": "1/3", "max": 4},
    {"min": 0, "max": 2},
    {"min": 1, "max": None},
    {"min": "1/3", "max": "2/3"},
    {"min": 0.5, "max": 1.5},
    {"min": 2, "max": 2},
    {"min": 0, "max": None},
    {"min": "2/3", "max": 3},
)
WEIGHTS = (1, 0, 2, "1/3", 0.25, 10)
PRICES = (1, 0, 4, "2/3", 0.5)
ROLES = (
    ("prefill", "decode", "encode"),
    ("serve", "route", "cache"),
    ("decode", "prefill", "draft model"),
)


class _Builder:
    def __init__(self, between: Callable[[int, int], int], size: Size) -> None:
        self.between = between
        self.size = size

    def pick(self, items: Sequence[T]) -> T:
        return items[self.between(0, len(items) - 1)]

    def chance(self, percent: int) -> bool:
        return self.between(0, 99) >= 100 - percent

    def instance(self) -> Instance:
        self.levels = self.pick(LEVELS)
        self.ample = self.chance(60)  # large nodes and small pods
        nodes = self._nodes()
        self.nodes: dict[str, Data] = {node["name"]: node for node in nodes}
        self.free = {node["name"]: node["gpus"] for node in nodes}
        self.types = sorted({node["gpu_type"] for node in nodes})
        services = [self._service(number) for number in range(self.between(*self.size.services))]
        running = self._running(services)
        for service in services:
            self._targets(service, running)
        data: Data = {
            "schema": 1,
            "levels": self.levels,
            "nodes": nodes,
            "services": services,
            "running": running,
        }
        if self.chance(15):
            data["rdma"] = self._rdma()
        if self.chance(70):
            data["objective"] = {
                "weights": {
                    name: self.pick(WEIGHTS)
                    for name in (
                        "rdma",
                        "shape",
                        "spill",
                        "new_group",
                        "fragmentation",
                        "migration",
                    )
                },
                "tier_prices": {name: self.pick(PRICES) for name in ("low", "medium", "high")},
            }
        data["cycle"] = {
            "reuse_freed": self.chance(40),
            "max_migrations": self.pick((0, 1, 2)) if running else 0,
        }
        return Instance.from_dict(data)

    def _rdma(self) -> Data:
        lower = self.between(0, len(self.levels) - 1)
        upper = self.levels[self.between(0, lower - 1)] if lower and self.chance(70) else None
        return {"lower": self.levels[lower], "upper": upper}

    def _nodes(self) -> list[Data]:
        types = [f"gpu-{letter}" for letter in "abc"[: self.pick((1, 2, self.size.gpu_types))]]
        names: list[dict[tuple[str, int], str]] = [{} for _ in self.levels]
        nodes = []
        count = max(self.between(*self.size.nodes), self.between(*self.size.nodes))
        for number in range(count):
            # A domain's name says nothing of its parent and may occur at several levels.
            domains, parent = {}, ""
            for level, known in zip(self.levels, names, strict=True):
                key = (parent, self.between(0, self.size.wide - 1) if self.chance(60) else 0)
                parent = domains[level] = known.setdefault(key, f"d{len(known)}")
            gpus = 8 if self.ample and self.chance(70) else self.pick(self.size.gpus)
            node = {
                "name": f"n{number}",
                "gpu_type": self.pick(types),
                "gpus": gpus,
                "domains": domains,
            }
            if self.chance(12):
                node["schedulable"] = False
            if gpus and self.chance(15):
                node["reserved"] = self.between(1, gpus)
            nodes.append(node)
        return nodes

    # ---------------------------------------------------------------------------------------

    def _service(self, number: int) -> Data:
        names = self.pick(ROLES)[: self.pick((2, 2, 2, 1, 3))][: self.size.roles]
        self.capacities = self.pick(((1,), (1,), CAPACITIES, CAPACITIES, TOKENS))
        service: Data = {
            "name": f"service-{number}",
            "priority": self.pick((0, 0, 5, -1)),
            "roles": {name: {"shapes": self._shapes()} for name in names},
            "ratios": [],
        }
        pairs = [(a, b) for at, a in enumerate(names) for b in names[at + 1 :]]
        for numerator, denominator in pairs:
            if self.chance(80 if len(names) == 2 else 40):
                service["ratios"].append(
                    {"numerator": numerator, "denominator": denominator, **self.pick(BANDS)}
                )
        affinity: Data = {}
        finer = 0
        if self.chance(65):
            finer = self.between(0, len(self.levels) - 1)
            affinity["required"] = self.levels[finer]
            finer += 1
        if finer < len(self.levels) and self.chance(50):
            affinity["preferred"] = self.levels[self.between(finer, len(self.levels) - 1)]
        service["affinity"] = affinity
        if self.chance(25):
            limits: Data = {}
            if self.chance(60):
                limits["max_groups"] = self.between(1, 2)
            if self.chance(60):
                limits["max_instances_per_group"] = self.between(len(names), len(names) + 2)
            service["limits"] = limits
        return service

    def _shapes(self) -> list[Data]:
        return [self._shape() for _ in range(self.between(1, self.size.shapes))]

    def _shape(self) -> Data:
        largest = max(self.free.values(), default=1) or 1
        sizes = [gpus for gpus in (1, 2, 4, 1, 2, 4, 8, 3, 5, 6) if gpus <= largest]
        if self.ample and self.chance(80):
            sizes = [gpus for gpus in sizes if gpus <= 3]
        shape: Data = {"pods": [{"gpu_type": self.pick(self.types), "gpus": self.pick(sizes)}]}
        kind = self.pick(("one", "one", "one", "many", "mixed"))
        if kind == "many" and self.size.pods > 1:
            shape["pods"][0]["count"] = self.between(2, self.size.pods)
        elif kind == "mixed" and self.size.pods > 1:
            shape["pods"].append(
                {"gpu_type": self.pick(self.types), "gpus": self.pick(sizes), "count": 1}
            )
        if self.chance(40 if kind == "one" else 60):
            one_type = len({pod["gpu_type"] for pod in shape["pods"]}) == 1
            shape["level"] = self.pick((*self.levels, "node") if one_type else self.levels)
        if self.capacities != (1,) and self.chance(70 if 1 in self.capacities else 100):
            shape["capacity"] = self.pick(self.capacities)
        if self.chance(30):
            shape["cost"] = self.pick((0, 1, 3, "1/2", 0.75))
        return shape

    # ---------------------------------------------------------------------------------------

    def _running(self, services: list[Data]) -> list[Data]:
        groups = []
        for number in range(self.between(0, self.size.running)):
            service = self.pick(services)
            tidy = not self.chance(35)
            required = service["affinity"].get("required")
            home = self.pick(sorted({self._domain(each, required) for each in self.nodes}))
            found = []
            roles = sorted(service["roles"])
            for turn in range(self.between(1, self.size.instances)):
                # Tidy groups take their roles in turn, so that bands often hold.
                role = roles[turn % len(roles)] if tidy else self.pick(roles)
                shapes = service["roles"][role]["shapes"]
                index = self.between(0, len(shapes) - 1)
                nodes = self._place(shapes[index], required, home if tidy else None, tidy)
                if nodes is not None:
                    each = {"role": role, "shape": f"shape{index}", "nodes": nodes}
                    if self.chance(15):
                        each["state"] = "draining"
                    if self.chance(20):
                        each["name"] = f"i {turn}"
                    found.append(each)
            if found:
                group = {"name": f"group-{number}", "service": service["name"], "instances": found}
                if required is not None and self.chance(50):
                    group["domain"] = home
                groups.append(group)
        return groups

    def _domain(self, node: str, level: str | None) -> str:
        if level == "node":
            return node
        return "" if level is None else str(self.nodes[node]["domains"][level])

    def _place(
        self, shape: Data, required: str | None, home: str | None, tidy: bool
    ) -> list[str] | None:
        """Nodes with room for the pods; a tidy instance keeps the rules."""
        pods = [
            (pod["gpu_type"], pod["gpus"])
            for pod in shape["pods"]
            for _ in range(pod.get("count", 1))
        ]
        level = shape.get("level", self.levels[-1])
        start = self.between(0, len(self.nodes) - 1)
        order = [*self.nodes][start:] + [*self.nodes][:start]
        withins = sorted({self._domain(node, level) for node in self.nodes}) if tidy else [None]
        turn = self.between(0, len(withins) - 1)
        for within in withins[turn:] + withins[:turn]:
            taken: Counter[str] = Counter()
            nodes = []
            for gpu_type, gpus in pods:
                for node in order:
                    if (
                        self.nodes[node]["gpu_type"] == gpu_type
                        and taken[node] + gpus <= self.free[node]
                        and (home is None or self._domain(node, required) == home)
                        and (within is None or self._domain(node, level) == within)
                    ):
                        taken[node] += gpus
                        nodes.append(node)
                        break
            if len(nodes) == len(pods):
                for node, gpus in taken.items():
                    self.free[node] -= gpus
                return nodes
            if len(pods) == 1 and within is not None and len(withins) > 8:
                return None
        return None

    def _targets(self, service: Data, running: list[Data]) -> None:
        now: dict[str, Fraction] = defaultdict(Fraction)
        for group in running:
            if group["service"] == service["name"]:
                for each in group["instances"]:
                    if each.get("state") != "draining":
                        shapes = service["roles"][each["role"]]["shapes"]
                        now[each["role"]] += _capacity(shapes[int(each["shape"][5:])])
        common = self.pick(("out", "out", "out", "in", "same", "each"))
        for name, role in service["roles"].items():
            way = self.pick(("out", "in", "same")) if common == "each" else common
            step = _capacity(self.pick(role["shapes"]))
            target = now[name]
            if way == "out":
                target += step * self.between(1, self.size.more)
            elif way == "in":
                target = max(Fraction(0), target - step * self.between(1, 2))
            if way != "same" and self.chance(15):
                target += step * self.pick((Fraction(1, 3), Fraction(1, 2)))
            role["target"] = target
            if self.chance(35):
                role["min"] = target * self.pick((1, Fraction(1, 2), Fraction(1, 3)))


def _capacity(shape: Data) -> Fraction:
    return Fraction(str(shape.get("capacity", 1)))
