"""Instances of a family: its nodes, services, running state and targets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from math import fsum

from heteroplace.faults import SCHEMA
from heteroplace.generate.draw import flags
from heteroplace.generate.family import Family
from heteroplace.generate.fleet import Fleet
from heteroplace.generate.running import drain, run
from heteroplace.generate.services import Author
from heteroplace.generate.targets import retarget
from heteroplace.instance import Instance, Node


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
    fleet = Fleet(tuple(_nodes(family, rng)), ("cluster", "s2", "s1"))
    drafts = Author(family, fleet, rng).drafts()
    run(fleet, drafts, family.running * fleet.gpus.total(), rng)
    drain(drafts, family.draining, rng)
    wanted = {name: family.load * gpus for name, gpus in fleet.free().items()}
    retarget(fleet, drafts, family.change, family.scale_in, wanted, rng)
    floors = flags(rng, family.minimum, len(drafts))
    return Instance(
        schema_=SCHEMA,
        name=f"{family.name}-{seed}",
        description=f"Family {family.name} at scale {family.scale:g}, seed {seed}. "
        + family.description,
        levels=fleet.levels,
        nodes=fleet.nodes,
        services=tuple(draft.service(floor) for draft, floor in zip(drafts, floors, strict=True)),
        running=tuple(group for draft in drafts for group in draft.running()),
        cycle=family.cycle,
        objective=family.objective,
    )


def _nodes(family: Family, rng: random.Random) -> Iterator[Node]:
    cordoned = iter(flags(rng, family.cordoned, family.total_nodes))
    reserved = iter(flags(rng, family.reserved, family.total_nodes))
    for i, row in enumerate(_types_of_s1(family, rng)):
        for j, types in enumerate(row):
            gpus = rng.choice(family.gpus_per_node)
            for k in range(family.tree[2]):
                yield Node(
                    name=f"n{i:02d}-{j:02d}-{k:03d}",
                    gpu_type=types[k % len(types)],
                    gpus=gpus,
                    domains={"cluster": "c0", "s2": f"s2-{i:02d}", "s1": f"s1-{i:02d}-{j:02d}"},
                    schedulable=not next(cordoned),
                    reserved=rng.randint(1, max(1, gpus // 2)) if next(reserved) else 0,
                )


def _types_of_s1(family: Family, rng: random.Random) -> list[list[list[str]]]:
    """GPU types of every S1 of every S2; the pure S2 first, as the mixed ones fill the rest."""
    s2, s1_per_s2, nodes_per_s1 = family.tree
    hetero = round(family.hetero_s1 * s2 * s1_per_s2) if nodes_per_s1 > 1 else 0
    mixed = max(round(family.hetero_s2 * s2), -(-hetero // s1_per_s2))
    if s1_per_s2 < 2:
        mixed = hetero
    weights = {name: weight for name, weight in family.gpu_types.items() if weight}
    whole = fsum(weights.values())
    missing = {name: weight * s2 * s1_per_s2 / whole for name, weight in weights.items()}
    rows = []
    for _ in range(s2 - mixed):
        (name,) = _scarcest(1, missing, missing)
        missing[name] -= s1_per_s2
        rows.append([[name]] * s1_per_s2)
    for number in range(mixed):
        share = hetero * (number + 1) // mixed - hetero * number // mixed
        rows.append(_mixed_s2(missing, s1_per_s2, share, rng))
    rng.shuffle(rows)
    return rows


def _mixed_s2(
    missing: dict[str, float], s1_per_s2: int, hetero: int, rng: random.Random
) -> list[list[str]]:
    """S1 of an S2 of two or three types, ``hetero`` of them of two types themselves."""
    among = _scarcest(3 if rng.random() < 0.3 else 2, missing, missing)
    row = []
    for number in range(s1_per_s2):
        if hetero == 0 and number < 2:
            types = [among[number]]
        else:
            types = _scarcest(2 if number < hetero else 1, missing, among)
        for name in types:
            missing[name] -= 1 / len(types)
        row.append(types)
    rng.shuffle(row)
    return row


def _scarcest(count: int, missing: dict[str, float], among: Iterable[str]) -> list[str]:
    """The GPU types of which most S1 are still missing."""
    return sorted(among, key=lambda name: -missing[name])[:count]
