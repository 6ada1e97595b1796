"""Exact packing of counted blocks onto the nodes of one cell.

When the sizes form a chain (each divides the next), a count vector packs exactly when for every
size s the blocks of at least that size, measured in s, fit the nodes' free GPUs measured in s.
Other sizes are packed by an arc-flow: a unit of flow is a node, an arc from i to i + s is a block
of size s, and a node with f free GPUs ends its path at f.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

from heteroplace.formulation.program import Program

UNIT = "capacity"


@dataclass
class Pool:
    """Nodes of a cell that are told apart only by their free GPUs.

    Parameters
    ----------
    free
        Free GPUs of each node, by node number; wholly free nodes that may be broken excluded.
    whole
        Wholly free nodes by their number of GPUs.
    counts
        Column that counts the blocks of each size.
    filled, broken
        Columns by node size: wholly free nodes that one block of that size fills, and those that
        get smaller blocks.
    arcs
        Column of each arc (start, length) of the arc-flow; length 0 is loss to the next position.
    positions
        Positions of the arc-flow; empty when the sizes form a chain.
    """

    free: dict[int, int]
    whole: dict[int, list[int]]
    counts: dict[int, int]
    filled: dict[int, int] = field(default_factory=dict)
    broken: dict[int, int] = field(default_factory=dict)
    arcs: dict[tuple[int, int], int] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)

    def add(self, program: Program) -> None:
        """Add the columns and rows of the packing."""
        for gpus, nodes in self.whole.items():
            self.broken[gpus] = program.column(len(nodes))
            if gpus in self.counts:
                self.filled[gpus] = program.column(len(nodes))
                program.row(
                    UNIT, [(self.filled[gpus], 1), (self.broken[gpus], 1)], upper=len(nodes)
                )
                program.row(UNIT, [(self.filled[gpus], 1), (self.counts[gpus], -1)], upper=0)
        if is_chain(self.counts):
            self._add_chain(program)
        elif len(self.free) == 1 and not self.whole:
            terms = [(column, size) for size, column in self.counts.items()]
            program.row(UNIT, terms, upper=next(iter(self.free.values())))
        else:
            self._add_arcs(program)

    def _add_chain(self, program: Program) -> None:
        nodes = Counter(self.free.values())
        for size in self.counts:
            terms = []
            for larger, column in self.counts.items():
                if larger >= size:
                    terms.append((column, larger // size))
                    if larger in self.filled:
                        terms.append((self.filled[larger], -(larger // size)))
            terms.extend((column, -(gpus // size)) for gpus, column in self.broken.items())
            program.row(
                UNIT, terms, upper=sum(count * (free // size) for free, count in nodes.items())
            )

    def _add_arcs(self, program: Program) -> None:
        ends = Counter(self.free.values())
        largest = max((*ends, *self.broken))
        sizes = sorted(self.counts)
        reachable = {0}
        for position in range(largest + 1):
            if position in reachable:
                reachable.update(position + size for size in sizes if position + size <= largest)
        self.positions = sorted(reachable | set(ends) | set(self.broken))
        nodes = len(self.free) + sum(len(found) for found in self.whole.values())
        for size in sizes:
            for start in sorted(reachable):
                if start + size <= largest:
                    self.arcs[start, size] = program.column(nodes)
        follows = dict(pairwise(self.positions))
        for start in follows:
            self.arcs[start, 0] = program.column(nodes)
        balance: dict[int, list[tuple[int, int]]] = {each: [] for each in self.positions}
        for (start, size), column in self.arcs.items():
            balance[start].append((column, -1))
            balance[start + size if size else follows[start]].append((column, 1))
        for position, terms in balance.items():
            if position:
                fixed = ends.get(position, 0)
                if position in self.broken:
                    terms.append((self.broken[position], -1))
                program.row(UNIT, terms, lower=fixed, upper=fixed)
            else:
                opened = [(column, 1) for column in self.broken.values()]
                total = sum(ends.values())
                program.row(UNIT, [*terms, *opened], lower=-total, upper=-total)
        for size, column in self.counts.items():
            terms = [(arc, 1) for (_, length), arc in self.arcs.items() if length == size]
            terms.append((column, -1))
            if size in self.filled:
                terms.append((self.filled[size], 1))
            program.row(UNIT, terms, lower=0, upper=0)

    def hint(self, arrivals: dict[int, list[int]], x: list[int]) -> None:
        """Set the packing's own columns from the sizes that arrive on each node."""
        for gpus, nodes in self.whole.items():
            for node in nodes:
                sizes = arrivals.get(node)
                if sizes == [gpus] and gpus in self.filled:
                    x[self.filled[gpus]] += 1
                elif sizes:
                    x[self.broken[gpus]] += 1
                    self._hint_path(gpus, sizes, x)
        for node, free in self.free.items():
            self._hint_path(free, arrivals.get(node, []), x)

    def _hint_path(self, free: int, sizes: list[int], x: list[int]) -> None:
        if not self.positions:
            return
        position = 0
        for size in sorted(sizes, reverse=True):
            x[self.arcs[position, size]] += 1
            position += size
        follows = dict(pairwise(self.positions))
        while position < free:
            x[self.arcs[position, 0]] += 1
            position = follows[position]

    def assign(self, x: list[int]) -> list[tuple[int, int]]:
        """Name the node of every block of a solution.

        Returns
        -------
        list of tuple
            (size, node) of each block.
        """
        placed: list[tuple[int, int]] = []
        left = {size: x[column] for size, column in self.counts.items()}
        opened: dict[int, list[int]] = {}
        for gpus, nodes in self.whole.items():
            filled = x[self.filled[gpus]] if gpus in self.filled else 0
            placed.extend((gpus, node) for node in nodes[:filled])
            if filled:
                left[gpus] -= filled
            opened[gpus] = nodes[filled : filled + x[self.broken[gpus]]]
        if self.positions:
            return placed + self._assign_paths(opened, x)
        by_room: dict[int, list[int]] = defaultdict(list)
        for node, room in reversed(self.free.items()):
            by_room[room].append(node)
        for gpus, nodes in opened.items():
            by_room[gpus].extend(reversed(nodes))
        for size in sorted(left, reverse=True):
            for _ in range(left[size]):
                room = min(each for each, nodes in by_room.items() if nodes and each >= size)
                node = by_room[room].pop()
                by_room[room - size].append(node)
                placed.append((size, node))
        return placed

    def _assign_paths(self, opened: dict[int, list[int]], x: list[int]) -> list[tuple[int, int]]:
        """Take the arc-flow apart into one path per node."""
        flow = {arc: x[column] for arc, column in self.arcs.items() if x[column]}
        follows = dict(pairwise(self.positions))
        ends: dict[int, list[int]] = {}
        for node, free in self.free.items():
            ends.setdefault(free, []).append(node)
        for gpus, nodes in opened.items():
            ends.setdefault(gpus, []).extend(nodes)
        placed: list[tuple[int, int]] = []
        for _ in range(sum(len(nodes) for nodes in ends.values())):
            position, sizes = 0, []
            while True:
                arc = next(
                    (
                        (position, size)
                        for size in (*sorted(self.counts, reverse=True), 0)
                        if flow.get((position, size))
                    ),
                    None,
                )
                if arc is None:
                    break
                flow[arc] -= 1
                if arc[1]:
                    sizes.append(arc[1])
                position = position + arc[1] if arc[1] else follows[position]
            node = ends[position].pop()
            placed.extend((size, node) for size in sizes)
        return placed


def is_chain(sizes: dict[int, int]) -> bool:
    """Whether every size divides the next larger one."""
    return all(larger % smaller == 0 for smaller, larger in pairwise(sorted(sizes)))
