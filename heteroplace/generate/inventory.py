"""Instances on a real inventory: nodes from a table, services from served models."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import fsum

from heteroplace.errors import InputError
from heteroplace.faults import SCHEMA
from heteroplace.files import MAX_BYTES
from heteroplace.generate.draft import ROLES, Draft, Recipe, band, in_ratio
from heteroplace.generate.draw import draw, skewed, spread
from heteroplace.generate.family import AFFINITIES, AffinityKind
from heteroplace.generate.fleet import Fleet
from heteroplace.generate.running import drain, run
from heteroplace.generate.targets import retarget
from heteroplace.instance import Affinity, Instance, Node, Shape
from heteroplace.models import (
    MAX_CELL,
    ServedModel,
    filled,
    load_models,
    models_from_csv,
    read_rows,
)

_NAME_COLUMNS = ("node", "name", "sn", "node_name")
_TYPE_COLUMNS = ("gpu_type", "gpu_model", "model")
_GPU_COLUMNS = ("gpus", "gpu", "gpu_capacity_num")
_LEVELS = ("s2", "s1", "s0")
_OUTPUT_TOKENS = (256, 512, 1024)
_HALF_BAND = Fraction(3, 10)
_AFFINITY: dict[AffinityKind, float] = {"none": 3, "s2": 4, "s1": 1.5, "s2+s1": 1.5}


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
    if not 1 <= isl <= 10**7:
        raise InputError("isl", f"must be from 1 to 10000000, got {isl}")
    rng = random.Random(f"heteroplace {seed}")
    fleet = Fleet(*_read_nodes(nodes_csv, max_bytes))
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
    run(fleet, drafts, running * usable, rng)
    drain(drafts, draining, rng)
    free = {name: fleet.free()[name] for name in catalogue.homes}
    part = (load - running) * usable / max(1, sum(free.values()))
    wanted = {name: part * gpus for name, gpus in free.items()}
    retarget(fleet, drafts, change, scale_in, wanted, rng)
    return Instance(
        schema_=SCHEMA,
        name=f"inventory-{seed}",
        description=f"{len(fleet.nodes)} nodes, {len(drafts)} services at a load of {load:g}, "
        f"seed {seed}; capacities in tokens/s, prompts of {isl} tokens.",
        levels=fleet.levels,
        nodes=fleet.nodes,
        services=tuple(draft.service() for draft in drafts),
        running=tuple(group for draft in drafts for group in draft.running()),
    )


class _Catalogue:
    """The models that can be served on a fleet, and how.

    ``shapes`` holds by model and role what the services list; ``best`` by model and GPU type the
    best shape of each role, for the types that serve both; ``homes`` by GPU type those models.
    """

    def __init__(self, fleet: Fleet, served: Sequence[ServedModel], isl: int) -> None:
        self.fleet, self.isl = fleet, isl
        self.shapes: dict[str, dict[str, tuple[Shape, ...]]] = {}
        self.best: dict[str, dict[str, dict[str, Shape]]] = {}
        homes: dict[str, list[str]] = defaultdict(list)
        for model in served:
            shapes = {role: model.shapes(role, fleet.node_gpus, per_type=2) for role in ROLES}
            best: dict[str, dict[str, Shape]] = {name: {} for name in sorted(fleet.node_gpus)}
            for role, ways in shapes.items():
                for shape in ways:
                    best[shape.pods[0].gpu_type].setdefault(role, shape)
            self.shapes[model.name] = shapes
            self.best[model.name] = {
                name: roles for name, roles in best.items() if len(roles) == len(ROLES)
            }
            for name in self.best[model.name]:
                homes[name].append(model.name)
        self.homes = dict(sorted(homes.items()))

    def drafts(self, count: int, load: float, rng: random.Random) -> list[Draft]:
        """Draw services whose GPU types get their shares of the demand."""
        weights = [skewed(rng) for _ in range(count)]
        room = {name: load * self.fleet.gpus[name] for name in self.homes}
        each = fsum(room.values()) / fsum(weights)
        kinds = spread(rng, _AFFINITY, count)
        priorities = spread(rng, {0: 1.0, 1: 1.0, 2: 1.0}, count)
        drafts = []
        for index in range(count):
            home = draw(rng, room)
            room[home] -= weights[index] * each
            model = rng.choice(self.homes[home])
            ratio = Fraction(self.isl, rng.choice(_OUTPUT_TOKENS))
            best = self.best[model]
            recipes = tuple(
                _recipe(best[name], ratio) for name in sorted(best, key=lambda name: name != home)
            )
            short = model.rsplit("/", 1)[-1].lower()[:MAX_CELL]
            drafts.append(
                Draft(
                    name=f"{short}-{index:03d}",
                    priority=priorities[index],
                    affinity=self._affinity(kinds[index], recipes[0]),
                    shapes=self.shapes[model],
                    ratios=(band(ratio, _HALF_BAND),),
                    recipes=recipes,
                    weight=weights[index],
                )
            )
        return drafts

    def _affinity(self, kind: AffinityKind, recipe: Recipe) -> Affinity:
        """Return the affinity at the levels there are; wider where a unit does not fit."""
        wanted, levels = AFFINITIES[kind], self.fleet.levels[1:]
        required = wanted.required
        if required is not None and required not in levels:
            required = next(iter(levels), None)
        if not self.fleet.fits(recipe, required):
            required = None
        finer = wanted.preferred in levels and wanted.preferred != required
        return Affinity(required=required, preferred=wanted.preferred if finer else None)


def _recipe(shapes: dict[str, Shape], ratio: Fraction) -> Recipe:
    """Recipe of a unit that adds whole tokens per second in the very ratio to the targets."""
    recipe = in_ratio(shapes, ratio, _HALF_BAND)
    tokens = min(recipe.capacity["prefill"], ratio * recipe.capacity["decode"])
    step = {"prefill": Fraction(int(tokens)), "decode": Fraction(int(tokens / ratio))}
    return replace(recipe, step=step)


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
            return column, filled(row[column], where, column, meaning)
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
