"""Nodes and their free GPUs, by switch domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from heteroplace.faults import NODE_LEVEL
from heteroplace.generate.draft import Recipe, Unit
from heteroplace.instance import Node, Shape


@dataclass(slots=True)
class Cell:
    """Nodes of one GPU type in a leaf, the GPUs left on them and how many of those to keep."""

    nodes: list[int] = field(default_factory=list)
    left: int = 0
    kept: float = 0.0


@dataclass(slots=True)
class Domain:
    """A switch domain: its leaves and the GPU types in it; the whole fleet has no name."""

    name: str | None
    leaves: list[int] = field(default_factory=list)
    types: set[str] = field(default_factory=set)


class Fleet:
    """Nodes and their free GPUs; a *leaf* is a domain of the finest level.

    Parameters
    ----------
    nodes
        The nodes, each with a domain at every level.
    levels
        Coarse to fine.
    """

    def __init__(self, nodes: tuple[Node, ...], levels: tuple[str, ...]) -> None:
        self.nodes, self.levels = nodes, levels
        self.room = [node.gpus - node.reserved for node in nodes]
        self.leaves: list[dict[str, Cell]] = []
        self.domains: dict[str | None, dict[str | None, Domain]] = {
            level: {} for level in (None, *levels)
        }
        self._cells = [self._join(index, node) for index, node in enumerate(nodes)]

    def _join(self, index: int, node: Node) -> Cell:
        """Enter a node into its domains and its cell."""
        names = [(None, None), *((level, node.domains[level]) for level in self.levels)]
        path = [self.domains[level].setdefault(name, Domain(name)) for level, name in names]
        if not path[-1].leaves:
            for domain in path:
                domain.leaves.append(len(self.leaves))
            self.leaves.append({})
        for domain in path:
            domain.types.add(node.gpu_type)
        cell = self.leaves[path[-1].leaves[0]].setdefault(node.gpu_type, Cell())
        cell.nodes.append(index)
        cell.left += self.room[index]
        return cell

    @cached_property
    def gpus(self) -> Counter[str]:
        """GPUs of each type."""
        count: Counter[str] = Counter()
        for node in self.nodes:
            count[node.gpu_type] += node.gpus
        return count

    @cached_property
    def node_gpus(self) -> dict[str, int]:
        """GPUs of the largest node of each type."""
        largest: Counter[str] = Counter()
        for node in self.nodes:
            largest[node.gpu_type] = max(largest[node.gpu_type], node.gpus)
        return {name: gpus for name, gpus in largest.items() if gpus}

    def free(self) -> Counter[str]:
        """GPUs of each type that this cycle may use."""
        count: Counter[str] = Counter()
        for node, room in zip(self.nodes, self.room, strict=True):
            count[node.gpu_type] += room if node.schedulable else 0
        return count

    def left(self, leaves: Iterable[int]) -> Counter[str]:
        """GPUs of each type that are not taken in some leaves, cordoned ones included."""
        count: Counter[str] = Counter()
        for leaf in leaves:
            for gpu_type, cell in self.leaves[leaf].items():
                count[gpu_type] += cell.left
        return count

    def keep(self, share: float) -> None:
        """Keep a share of what every cell has left now out of :meth:`place`."""
        for cell in self._cells:
            cell.kept = share * cell.left

    def domains_with(self, level: str | None, types: Iterable[str]) -> list[Domain]:
        """Domains of a level that hold all of some GPU types, in order of appearance."""
        return [domain for domain in self.domains[level].values() if domain.types.issuperset(types)]

    def fits(self, recipe: Recipe, level: str | None) -> bool:
        """Whether some domain of the level has room for a unit and a half."""
        domains = self.domains_with(level, recipe.by_type)
        return any(
            all(2 * left[name] >= 3 * gpus for name, gpus in recipe.by_type.items())
            for left in (self.left(domain.leaves) for domain in domains)
        )

    def place(self, recipe: Recipe, leaves: Sequence[int]) -> Unit | None:
        """Place every instance of a unit, each within one of the leaves, or nothing."""
        placed: list[tuple[str, list[int]]] = []
        for role, shape in recipe.shapes.items():
            for _ in range(recipe.counts[role]):
                nodes = next(filter(None, (self._find(shape, leaf) for leaf in leaves)), None)
                if nodes is None:
                    for done, where in placed:
                        self._take(recipe.shapes[done], where, -1)
                    return None
                self._take(shape, nodes)
                placed.append((role, nodes))
        return Unit(
            recipe,
            [(role, tuple(self.nodes[index].name for index in nodes)) for role, nodes in placed],
        )

    def _find(self, shape: Shape, leaf: int) -> list[int] | None:
        """Nodes for all pods by first fit within a leaf; one node for a ``node`` shape."""
        one_node = shape.level == NODE_LEVEL
        pods = [(shape.pods[0].gpu_type, shape.gpus)] if one_node else shape.pod_list
        taken: dict[int, int] = {}
        nodes: list[int] = []
        for gpu_type, gpus in pods:
            cell = self.leaves[leaf].get(gpu_type)
            if cell is None or cell.left - gpus < cell.kept:
                return None
            for index in cell.nodes:
                if self.room[index] - taken.get(index, 0) >= gpus:
                    break
            else:
                return None
            taken[index] = taken.get(index, 0) + gpus
            nodes.append(index)
        return nodes * len(shape.pod_list) if one_node else nodes

    def _take(self, shape: Shape, nodes: Sequence[int], times: int = 1) -> None:
        """Take the GPUs of an instance; -1 times gives them back."""
        for index, (_, gpus) in zip(nodes, shape.pod_list, strict=True):
            self.room[index] -= times * gpus
            self._cells[index].left -= times * gpus
