"""What an instance of a shape occupies, in the form that solvers count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from heteroplace.instance import Shape
from heteroplace.topology import TreeView


@dataclass(frozen=True, order=True)
class Block:
    """GPUs of one type that must be free on one node.

    Parameters
    ----------
    gpu_type
        GPU type.
    gpus
        GPUs on that node.
    """

    gpu_type: str
    gpus: int


@dataclass(frozen=True)
class Footprint:
    """The blocks of one instance and the rank of the level whose one domain holds them.

    Parameters
    ----------
    rank
        ``len(levels)`` for a single node.
    blocks
        Sorted (block, count) pairs.
    """

    rank: int
    blocks: tuple[tuple[Block, int], ...]

    @cached_property
    def single(self) -> bool:
        """Whether it is one block on one node."""
        return len(self.blocks) == 1 and self.blocks[0][1] == 1


def footprint(tree: TreeView, shape: Shape) -> Footprint:
    """Footprint of one instance of a shape; pods that share a node by rule are one block."""
    rank = tree.shape_rank(shape)
    if rank == len(tree.instance.levels):
        return Footprint(rank, ((Block(shape.pods[0].gpu_type, shape.gpus), 1),))
    counts = Counter(Block(gpu_type, gpus) for gpu_type, gpus in shape.pod_list)
    return Footprint(rank, tuple(sorted(counts.items())))


def pod_nodes(shape: Shape, placed: dict[Block, list[int]]) -> tuple[int, ...]:
    """Node of every pod, in the order of the shape's pods, from the nodes of its blocks."""
    if sum(map(len, placed.values())) == 1:
        (nodes,) = placed.values()
        return tuple(nodes) * len(shape.pod_list)
    left = {block: iter(nodes) for block, nodes in placed.items()}
    return tuple(next(left[Block(gpu_type, gpus)]) for gpu_type, gpus in shape.pod_list)


def pod_places(shape: Shape, blocks: Sequence[Block]) -> tuple[int, ...]:
    """Place of every pod's block among the blocks of one instance, as :func:`pod_nodes` pairs them.

    Parameters
    ----------
    shape
        The shape.
    blocks
        Its blocks, one by one and equal ones together.
    """
    if len(blocks) == 1:
        return (0,) * len(shape.pod_list)
    left: dict[Block, list[int]] = {}
    for place in reversed(range(len(blocks))):
        left.setdefault(blocks[place], []).append(place)
    return tuple(left[Block(gpu_type, gpus)].pop() for gpu_type, gpus in shape.pod_list)
