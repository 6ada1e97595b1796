"""The decisions that the units of the formulation share.

Nothing here names a node. A :class:`Placement` counts the instances of a group, role and shape
that enter the network at a domain; :class:`Leaver` counts equal running instances that are removed
or moved away. Both are created here; every other column belongs to the unit that needs it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import ceil, gcd, lcm

import numpy as np

from heteroplace.footprint import Block, Footprint, footprint
from heteroplace.formulation.hull import Hull
from heteroplace.formulation.packing import Pool
from heteroplace.formulation.program import Flags, Ints, Program, starts_of
from heteroplace.formulation.state import RunningState, read_running
from heteroplace.instance import Instance, Role, Service, Shape
from heteroplace.topology import ROOT, TreeView

ZERO = Fraction(0)

Terms = list[tuple[int, int]]


@dataclass(eq=False, slots=True)
class Derived:
    """A column whose least value follows from others.

    Parameters
    ----------
    column
        The column.
    terms, constant
        It is at least ``constant + sum(coefficient * column)``.
    switch
        It is 1 when that is above 0, and 0 otherwise.
    """

    column: int
    terms: tuple[tuple[int, int], ...]
    constant: int
    switch: bool


@dataclass(eq=False, slots=True)
class Candidate:
    """A deployment group that may get instances.

    Parameters
    ----------
    index
        Its number.
    service
        Number of the service.
    running
        Number of the running group; null for one that the plan may open.
    domain
        Domain it is bound to.
    homes
        Home domains at the preferred level; empty when the service has no such level.
    copy
        Tells equal new groups of one domain apart.
    """

    index: int
    service: int
    running: int | None
    domain: int
    homes: tuple[int, ...]
    copy: int = 0


@dataclass(eq=False, slots=True)
class Placement:
    """How many instances of a group, role and shape enter at a domain.

    Parameters
    ----------
    candidate, role, shape
        What is placed.
    domain
        Every pod lies in it.
    spill
        Whether it is outside the group's home domains.
    column
        The count.
    """

    candidate: int
    role: str
    shape: int
    domain: int
    spill: bool
    column: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What new groups of a service may get, and where.

    Parameters
    ----------
    role, shape
        What is placed.
    home
        Whether in the home domain; else in the domain of the group.
    spill
        Whether that is outside the home domains.
    """

    role: str
    shape: int
    home: bool
    spill: bool


@dataclass(eq=False)
class NewGroups:
    """The groups of a service that the plan may open, as arrays: there are many.

    Parameters
    ----------
    service
        Number of the service.
    first
        Number of the first of them among all candidates.
    domains, homes, copies
        As for :class:`Candidate`; home -1 for none.
    kinds
        What they may get; those of one shape stand together, and those of one role.
    columns
        Column of every group and kind (groups x kinds); -1 for none. They count up along the rows.
    switches
        Columns that open them; null where no hulls describe them.
    placed
        All columns of ``columns``.
    """

    service: int
    first: int
    domains: Ints
    homes: Ints
    copies: Ints
    kinds: tuple[Kind, ...]
    columns: Ints
    switches: range | None = None
    placed: range = field(default=range(0), init=False)

    def __post_init__(self) -> None:
        flat = self.columns.ravel()
        # Where the columns are, in their order.
        self._cells = np.flatnonzero(flat >= 0)
        if len(self._cells):
            start = int(flat[self._cells[0]])
            self.placed = range(start, start + len(self._cells))
        self._made: dict[tuple[int, str], list[Placement]] = {}

    def __len__(self) -> int:
        return len(self.domains)

    @property
    def numbers(self) -> range:
        """Their numbers among all candidates."""
        return range(self.first, self.first + len(self))

    @property
    def shapes(self) -> dict[tuple[str, int], slice]:
        """Which of the kinds are of a role and shape."""
        first: dict[tuple[str, int], int] = {}
        for at, kind in enumerate(self.kinds):
            first.setdefault((kind.role, kind.shape), at)
        ends = [*list(first.values())[1:], len(self.kinds)]
        return {key: slice(at, end) for (key, at), end in zip(first.items(), ends, strict=True)}

    def candidate(self, number: int) -> Candidate:
        """One of them, by its number among all candidates."""
        at = number - self.first
        home = int(self.homes[at])
        homes = (home,) if home >= 0 else ()
        domain, copy = int(self.domains[at]), int(self.copies[at])
        return Candidate(number, self.service, None, domain, homes, copy)

    def switch(self, number: int) -> int | None:
        """Column that opens a group, if there is one."""
        return None if self.switches is None else self.switches[number - self.first]

    def placement(self, column: int) -> Placement:
        """What a column counts."""
        group, kind = divmod(int(self._cells[column - self.placed.start]), len(self.kinds))
        return self._placement(group, self.kinds[kind], column)

    def placements(self, number: int, role: str) -> list[Placement]:
        """What a group may get of a role."""
        made = self._made.get((number, role))
        if made is None:
            at = number - self.first
            made = [
                self._placement(at, kind, column)
                for kind, column in zip(self.kinds, self.columns[at].tolist(), strict=True)
                if kind.role == role and column >= 0
            ]
            self._made[number, role] = made
        return made

    def _placement(self, group: int, kind: Kind, column: int) -> Placement:
        place = int((self.homes if kind.home else self.domains)[group])
        return Placement(self.first + group, kind.role, kind.shape, place, kind.spill, column)


@dataclass(eq=False, slots=True)
class Leaver:
    """Equal ready instances of a running group, of which some may leave their place.

    Parameters
    ----------
    group
        Number of the running group.
    role, shape
        What they are.
    members
        Their numbers in the group.
    nodes
        Nodes of one of them (all are alike in what matters).
    removed, moved
        Columns of the counts; null where it is not allowed.
    outside, split, away
        Whether they lie outside the group's domain, over several domains of the shape's level,
        outside the group's homes.
    """

    group: int
    role: str
    shape: int
    members: tuple[int, ...]
    nodes: tuple[int, ...]
    removed: int | None
    moved: int | None
    outside: bool
    split: bool
    away: bool

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns that make one of them leave its nodes."""
        return tuple(column for column in (self.removed, self.moved) if column is not None)


@dataclass(slots=True)
class Demand:
    """A role's request in whole numbers of a capacity grain.

    Parameters
    ----------
    grain
        Capacity of 1.
    target, minimum, now
        In grains.
    shapes
        Capacity of one instance of each shape, in grains.
    """

    grain: Fraction
    target: int
    minimum: int
    now: int
    shapes: tuple[int, ...]

    @property
    def missing(self) -> int:
        """Grains to the target."""
        return max(0, self.target - self.now)

    @property
    def surplus(self) -> int:
        """Grains above the target."""
        return max(0, self.now - self.target)


@dataclass(eq=False, slots=True)
class Flow:
    """How the blocks of one size come from where they enter to their cells.

    Parameters
    ----------
    cells
        Column of each cell: how many arrive there.
    passed
        Column of each domain: how many it gets from above.
    over_cell, over
        The domain that a cell or a domain gets them from: the next one above in which some enter.
    """

    cells: dict[int, int] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)
    over_cell: dict[int, int] = field(default_factory=dict)
    over: dict[int, int] = field(default_factory=dict)

    def way(self, domain: int, cell: int) -> list[int] | None:
        """Columns that count a block from where it enters to a cell; null if it cannot go there."""
        if cell not in self.cells:
            return None
        way = [self.cells[cell]]
        at = self.over_cell[cell]
        while at != domain:
            if at not in self.passed:
                return None
            way.append(self.passed[at])
            at = self.over[at]
        return way


@dataclass(frozen=True, eq=False)
class Wanted(Footprint):
    """A footprint as a model knows it: one object each, so that looking it up costs no hashing.

    Parameters
    ----------
    parts
        Its blocks by number, with their counts.
    """

    parts: tuple[tuple[int, int], ...]

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass
class Model:
    """An instance as an integer program.

    Parameters
    ----------
    tree
        The view it was made from.
    program
        Columns, rows and steps.
    state
        What runs now.
    """

    tree: TreeView
    program: Program
    state: RunningState
    # Running groups by number and what they may get, by column; new groups by service.
    running: dict[int, Candidate] = field(default_factory=dict)
    placements: dict[int, Placement] = field(default_factory=dict)
    new_groups: dict[int, NewGroups] = field(default_factory=dict)
    leavers: list[Leaver] = field(default_factory=list)
    demands: dict[tuple[int, str], Demand] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    prints: dict[tuple[int, str, int], Wanted] = field(default_factory=dict)
    leavers_of: dict[tuple[int, str], list[Leaver]] = field(
        default_factory=lambda: defaultdict(list)
    )
    running_of: dict[int, list[Candidate]] = field(default_factory=lambda: defaultdict(list))
    # Columns by what they place: units price and limit equal ones together.
    placed: dict[tuple[int, str], dict[int, list[int]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    moved: dict[tuple[int, str], dict[int, list[int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    spilling: dict[tuple[int, str, int], list[int]] = field(
        default_factory=lambda: defaultdict(list)
    )
    entered: list[tuple[Wanted, int, list[int]]] = field(default_factory=list)
    potential: list[int] = field(default_factory=list)
    largest: dict[str, list[int]] = field(default_factory=dict)
    # What the units leave for each other and for naming: docs/formulation.md.
    freed: dict[int, Terms] = field(default_factory=lambda: defaultdict(list))
    entering: dict[tuple[int, int], tuple[list[int], list[int]]] = field(
        default_factory=lambda: defaultdict(lambda: ([], []))
    )
    spread: dict[tuple[Wanted, int], dict[int, int]] = field(default_factory=dict)
    flows: dict[int, Flow] = field(default_factory=dict)
    arriving: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    pools: dict[int, Pool] = field(default_factory=dict)
    singles: dict[int, dict[int, int]] = field(default_factory=dict)
    switches: dict[int, int] = field(default_factory=dict)
    alive: dict[int, int] = field(default_factory=dict)
    unmet: dict[tuple[int, str], int] = field(default_factory=dict)
    counts: dict[tuple[int, str, int], int] = field(default_factory=dict)
    derived: list[Derived] = field(default_factory=list)
    # Columns that are sums: of which, and with which signs.
    sums: list[tuple[int, list[int], list[int]]] = field(default_factory=list)
    absences: list[tuple[int, int, Terms, int]] = field(default_factory=list)
    repair_terms: dict[int, Fraction] = field(default_factory=dict)
    repair_constant: Fraction = ZERO
    band_units: dict[tuple[int, str, str], tuple[int, int, tuple[int, ...]]] = field(
        default_factory=dict
    )
    hulls: dict[tuple[object, ...], Hull] = field(default_factory=dict)
    _candidates: int = 0
    _by_number: dict[int, Candidate] = field(default_factory=dict)
    _placements_of: dict[tuple[int, str], list[Placement]] = field(default_factory=dict)
    _new: tuple[list[NewGroups], list[int], list[int]] = field(default_factory=lambda: ([], [], []))
    # Places and columns of what enters, in chunks.
    _entering: dict[Wanted, list[tuple[Ints, Ints]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _numbers: dict[Block, int] = field(default_factory=dict)
    _wanted: dict[tuple[object, ...], Wanted] = field(default_factory=dict)
    _fits: dict[Wanted, list[bool]] = field(default_factory=dict)
    _cell_potential: list[dict[int, int]] = field(default_factory=list)
    _rooms: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    _units: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    _room_of: dict[tuple[Wanted, int], int] = field(default_factory=dict)
    _at_level: dict[tuple[str | None, int], list[int]] = field(default_factory=dict)
    _fitting: dict[Wanted, Flags] = field(default_factory=dict)
    _unit_rooms: dict[tuple[str, int], Ints] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.instance: Instance = self.tree.instance
        self.services = self.instance.services

    @property
    def ready_of(self) -> dict[tuple[int, str], list[tuple[int, int]]]:
        """How many ready instances of which shape, by running group and role."""
        return self.state.ready

    def derive(self, column: int, terms: Terms, constant: int = 0, *, switch: bool = False) -> None:
        """Record that a column is at least ``constant + terms`` (or 1 when that is above 0)."""
        self.derived.append(Derived(column, tuple(terms), constant, switch))

    def summed(self, x: Ints) -> list[tuple[int, int]]:
        """The columns of ``sums`` and what they are where the others are as in a solution."""
        if not self.sums:
            return []
        columns, signs, starts = self._summands
        totals = np.add.reduceat(signs * x[columns], starts[:-1]).tolist()
        return list(zip([column for column, _, _ in self.sums], totals, strict=True))

    @cached_property
    def _summands(self) -> tuple[Ints, Ints, Ints]:
        _, columns, signs = zip(*self.sums, strict=True)
        return (
            np.array([each for part in columns for each in part], np.int64),
            np.array([each for part in signs for each in part], np.int64),
            starts_of(np.array([len(part) for part in columns], np.int64)),
        )

    def repair(self, column: int, weight: Fraction) -> None:
        """Add a term to the ``repair`` step."""
        self.repair_terms[column] = self.repair_terms.get(column, ZERO) + weight

    def wanted(self, service: int, role: str, shape: int) -> Wanted:
        """Footprint of an instance of a shape."""
        key = (service, role, shape)
        known = self.prints.get(key)
        if known is None:
            served = self.shape(service, role, shape)
            same = (served.pod_list, served.level)
            known = self._wanted.get(same)
            if known is None:
                known = self._wanted[same] = self._numbered(footprint(self.tree, served))
            self.prints[key] = known
        return known

    def _numbered(self, wanted: Footprint) -> Wanted:
        for known in self._wanted.values():
            if (known.rank, known.blocks) == (wanted.rank, wanted.blocks):
                return known
        parts = []
        for block, count in wanted.blocks:
            if block not in self._numbers:
                self._numbers[block] = len(self.blocks)
                self.blocks.append(block)
            parts.append((self._numbers[block], count))
        return Wanted(wanted.rank, wanted.blocks, tuple(parts))

    def print_of(self, placement: Placement) -> Wanted:
        """Footprint of what is placed."""
        service = self.service_of(placement.candidate)
        return self.prints[service, placement.role, placement.shape]

    def add_running(self, service: int, group: int, placements: dict[str, list[Placement]]) -> None:
        """Add a running group with what it may get of every role."""
        state = self.state
        candidate = Candidate(
            self._candidates, service, group, state.domains[group], state.homes[group]
        )
        self._candidates += 1
        self.running[group] = candidate
        self.running_of[service].append(candidate)
        self._by_number[candidate.index] = candidate
        for role, added in placements.items():
            self._placements_of[candidate.index, role] = added
            self.placements.update((each.column, each) for each in added)

    def add_new(self, groups: NewGroups) -> None:
        """Add the new groups of a service."""
        self._candidates += len(groups)
        self.new_groups[groups.service] = groups
        found, firsts, columns = self._new
        found.append(groups)
        firsts.append(groups.first)
        columns.append(groups.placed.start)

    @property
    def next_candidate(self) -> int:
        """Number of the candidate that is added next."""
        return self._candidates

    def candidate(self, number: int) -> Candidate:
        """A candidate by number."""
        known = self._by_number.get(number)
        return self._group_of(number).candidate(number) if known is None else known

    def service_of(self, candidate: int) -> int:
        """Number of the service of a candidate."""
        known = self._by_number.get(candidate)
        return self._group_of(candidate).service if known is None else known.service

    def candidates_of(self, service: int) -> list[Candidate]:
        """All candidates of a service, the running ones first."""
        groups = self.new_groups.get(service)
        new = [] if groups is None else map(groups.candidate, groups.numbers)
        return [*self.running_of[service], *new]

    def _group_of(self, number: int) -> NewGroups:
        found, firsts, _ = self._new
        return found[bisect_right(firsts, number) - 1]

    def placements_of(self, candidate: int, role: str) -> list[Placement]:
        """What a candidate may get of a role."""
        if candidate in self._by_number:
            return self._placements_of.get((candidate, role), [])
        return self._group_of(candidate).placements(candidate, role)

    def placements_at(self, columns: Ints) -> list[Placement]:
        """What some columns place, those that place something."""
        found, _, starts = self._new
        at = np.searchsorted(np.array(starts, np.int64), columns, side="right") - 1
        stops = np.array([each.placed.stop for each in found] + [0], np.int64)
        new = columns < stops[at]
        placements = []
        for column, group, inside in zip(columns.tolist(), at.tolist(), new.tolist(), strict=True):
            if inside:
                placements.append(found[group].placement(column))
            elif column in self.placements:
                placements.append(self.placements[column])
        return placements

    def switch(self, candidate: int) -> int | None:
        """Column that is 1 when a candidate delivers anything, if there is one."""
        known = self.alive.get(candidate)
        if known is None and candidate not in self._by_number:
            return self._group_of(candidate).switch(candidate)
        return known

    def enter(self, wanted: Wanted, places: Ints, columns: Ints) -> None:
        """Say where the instances of a footprint that some columns count enter the tree."""
        self._entering[wanted].append((places, columns))

    def gather(self) -> None:
        """Join what enters at the same place."""
        for wanted, chunks in self._entering.items():
            places, columns = (np.concatenate(each) for each in zip(*chunks, strict=True))
            order = np.argsort(places, kind="stable")
            found, starts = np.unique(places[order], return_index=True)
            ends = [*starts[1:].tolist(), len(order)]
            ordered = columns[order].tolist()
            for place, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
                self.entered.append((wanted, place, ordered[start:end]))

    def block_number(self, gpu_type: str, gpus: int) -> int:
        """Number of a block that some footprint has."""
        return self._numbers[Block(gpu_type, gpus)]

    def cell_rooms(self, gpu_type: str, gpus: int) -> list[int]:
        """Most blocks of a size that each cell can hold; 0 in cells of another type."""
        rooms = self._rooms.get((gpu_type, gpus))
        if rooms is None:
            rooms = [
                sum(count * (free // gpus) for free, count in potential.items())
                if cell.gpu_type == gpu_type
                else 0
                for cell, potential in zip(self.tree.cells, self._cell_potential, strict=True)
            ]
            self._rooms[gpu_type, gpus] = rooms
        return rooms

    def room(self, wanted: Wanted, domain: int) -> int:
        """No fewer instances of a footprint than a domain can hold."""
        if wanted.single:
            block = wanted.blocks[0][0]
            return self.units(block.gpu_type, block.gpus, domain)
        key = (wanted, domain)
        known = self._room_of.get(key)
        if known is None:
            known = sum(
                min(
                    self.units(block.gpu_type, block.gpus, place) // count
                    for block, count in wanted.blocks
                )
                for place in self.places(wanted, domain)
            )
            self._room_of[key] = known
        return known

    def units(self, gpu_type: str, gpus: int, domain: int) -> int:
        """Most blocks of a size that the nodes of a type in a domain can hold."""
        found = self._units.get((gpu_type, gpus))
        if found is None:
            found = [0] * len(self.tree.domains)
            for cell, room in zip(self.tree.cells, self.cell_rooms(gpu_type, gpus), strict=True):
                found[cell.domain] += room
            for below in reversed(self.tree.domains[1:]):
                found[below.parent] += found[below.index]
            self._units[gpu_type, gpus] = found
        return found[domain]

    def rooms(self, wanted: Wanted, domains: Ints) -> Ints:
        """:meth:`room` in each of some domains."""
        if wanted.single:
            block = wanted.blocks[0][0]
            return self.unit_rooms(block.gpu_type, block.gpus)[domains]
        return np.array([self.room(wanted, domain) for domain in domains.tolist()], np.int64)

    def unit_rooms(self, gpu_type: str, gpus: int) -> Ints:
        """:meth:`units` in every domain."""
        found = self._unit_rooms.get((gpu_type, gpus))
        if found is None:
            self.units(gpu_type, gpus, ROOT)
            found = np.array(self._units[gpu_type, gpus], np.int64)
            self._unit_rooms[gpu_type, gpus] = found
        return found

    def fitting(self, wanted: Wanted) -> Flags:
        """:meth:`fits` as an array."""
        found = self._fitting.get(wanted)
        if found is None:
            found = self._fitting[wanted] = np.array(self.fits(wanted), bool)
        return found

    def at_level(self, level: str | None, under: int = ROOT) -> list[int]:
        """Domains of a level in a domain, as :meth:`TreeView.at_level`."""
        found = self._at_level.get((level, under))
        if found is None:
            found = self._at_level[level, under] = self.tree.at_level(level, under)
        return found

    def service(self, index: int) -> Service:
        """A service by number."""
        return self.services[index]

    def role(self, service: int, name: str) -> Role:
        """A role by service number and name."""
        return self.services[service].roles[name]

    def shape(self, service: int, role: str, shape: int) -> Shape:
        """A shape by service number, role and place."""
        return self.services[service].roles[role].shapes[shape]

    def service_of_group(self, group: int) -> int:
        """Service number of a running group."""
        return self.state.services[group]

    def fits(self, wanted: Wanted) -> list[bool]:
        """Per domain, whether it has a place where every block of a footprint fits a node."""
        found = self._fits.get(wanted)
        if found is None:
            rank, domains = self._place_rank(wanted), self.tree.domains
            found = [domain.rank >= rank for domain in domains]
            for block, _ in wanted.blocks:
                largest = self.largest.get(block.gpu_type, [0] * len(domains))
                found = [
                    fits and most >= block.gpus for fits, most in zip(found, largest, strict=True)
                ]
            # Parents come before their children.
            for domain in reversed(domains[1:]):
                if found[domain.index] and domain.rank <= rank:
                    found[domain.parent] = True
            self._fits[wanted] = found
        return found

    def places(self, wanted: Wanted, domain: int) -> list[int]:
        """Domains that can hold all blocks of one instance bound to a domain."""
        rank, domains, fits = self._place_rank(wanted), self.tree.domains, self.fits(wanted)
        if domains[domain].rank >= rank:
            return [domain] if fits[domain] else []
        return [each for each in self.at_level(self.instance.levels[rank], domain) if fits[each]]

    def _place_rank(self, wanted: Footprint) -> int:
        return min(wanted.rank, len(self.instance.levels) - 1)


def build_variables(tree: TreeView, program: Program) -> Model:
    """Create the shared decisions of an instance.

    Parameters
    ----------
    tree
        The view.
    program
        Where the columns go.

    Returns
    -------
    Model
        With candidates, placements and leavers; no rows yet.
    """
    model = Model(tree, program, read_running(tree))
    _read_demands(model)
    _add_leavers(model)
    _find_potential(model)
    _add_candidates(model)
    return model


def _read_demands(model: Model) -> None:
    for index, service in enumerate(model.services):
        for name, role in service.roles.items():
            values = (role.target, role.min, *(shape.capacity for shape in role.shapes))
            scale = lcm(*(value.denominator for value in values))
            target, minimum, *shapes = (
                value.numerator * (scale // value.denominator) for value in values
            )
            ready = model.state.served.get((index, name), {})
            now = sum(count * shapes[shape] for shape, count in ready.items())
            grain = gcd(target, minimum, now, *shapes)
            model.demands[index, name] = Demand(
                Fraction(grain, scale),
                target // grain,
                minimum // grain,
                now // grain,
                tuple(capacity // grain for capacity in shapes),
            )


def _find_potential(model: Model) -> None:
    """GPUs each node may offer to newcomers, and the largest such number below every domain."""
    tree, instance = model.tree, model.instance
    model.potential = list(tree.free)
    if instance.cycle.reuse_freed:
        for leaver in model.leavers:
            shape = model.shape(model.service_of_group(leaver.group), leaver.role, leaver.shape)
            for node, (_, gpus) in zip(leaver.nodes, shape.pod_list, strict=True):
                machine = instance.nodes[node]
                if machine.schedulable:
                    most = machine.gpus - machine.reserved
                    more = model.potential[node] + gpus * len(leaver.members)
                    model.potential[node] = min(most, more)
    for cell in tree.cells:
        potential = Counter([model.potential[node] for node in cell.nodes])
        model._cell_potential.append(potential)
        largest = max(potential)
        found = model.largest.setdefault(cell.gpu_type, [0] * len(tree.domains))
        domain = cell.domain
        while domain != -1:
            found[domain] = max(found[domain], largest)
            domain = tree.domains[domain].parent


def _add_leavers(model: Model) -> None:
    """Class the ready instances that may leave; equal ones share a pair of columns."""
    instance = model.instance
    migrations = instance.cycle.max_migrations
    shrinking = {service for (service, _), demand in model.demands.items() if demand.surplus}
    for group, running in enumerate(instance.running):
        service = model.service_of_group(group)
        if not migrations and service not in shrinking:
            continue
        domain, homes = model.state.domains[group], model.state.homes[group]
        classes: dict[tuple[object, ...], list[int]] = defaultdict(list)
        nodes_of: dict[int, tuple[int, ...]] = {}
        for number, each in enumerate(running.instances):
            if each.state == "ready" and (migrations or model.demands[service, each.role].surplus):
                nodes_of[number] = tuple(instance.node_index[name] for name in each.nodes)
                key = _leaver_key(
                    model, service, each.role, each.shape, nodes_of[number], domain, homes
                )
                classes[key].append(number)
        for (role, shape, outside, split, away, *_), members in classes.items():
            assert isinstance(role, str)
            assert isinstance(shape, int)
            demand = model.demands[service, role]
            most = min(len(members), demand.surplus // demand.shapes[shape])
            leaver = Leaver(
                group,
                role,
                shape,
                tuple(members),
                nodes_of[members[0]],
                model.program.column(most) if most else None,
                model.program.column(min(len(members), migrations)) if migrations else None,
                bool(outside),
                bool(split),
                bool(away),
            )
            if leaver.columns:
                model.leavers.append(leaver)
                model.leavers_of[group, role].append(leaver)


def _leaver_key(
    model: Model,
    service: int,
    role: str,
    shape_name: str,
    nodes: tuple[int, ...],
    domain: int,
    homes: tuple[int, ...],
) -> tuple[object, ...]:
    """What must agree for two running instances to be interchangeable."""
    tree, instance = model.tree, model.instance
    shape = model.role(service, role).shape_index[shape_name]
    named = instance.cycle.reuse_freed or any(
        tree.used[node] > instance.nodes[node].gpus - instance.nodes[node].reserved
        for node in nodes
    )
    outside = not all(tree.contains(domain, node) for node in nodes)
    split = not tree.in_one_domain(nodes, tree.shape_rank(model.shape(service, role, shape)))
    preferred = model.service(service).affinity.preferred is not None
    away = preferred and not any(all(tree.contains(home, node) for node in nodes) for home in homes)
    pods = model.shape(service, role, shape).pod_list
    tiers = tuple(
        sorted((tree.node_tier[node], gpus) for node, (_, gpus) in zip(nodes, pods, strict=True))
    )
    return (role, shape, outside, split, away, tiers, nodes if named else ())


def _add_candidates(model: Model) -> None:
    groups_of: dict[int, list[int]] = defaultdict(list)
    for group, number in enumerate(model.state.services):
        groups_of[number].append(group)
    for index, service in enumerate(model.services):
        options = _options(model, index)
        if index in groups_of:
            adder = _Adder(model, index, options)
            for group in groups_of[index]:
                adder.add(group)
            adder.finish()
        if all(model.demands[index, name].missing for name in service.roles):
            _add_new_groups(model, index, options)
    model.gather()


def _add_new_groups(model: Model, service: int, options: list[_Option]) -> None:
    domains, homes, copies = _new_groups(model, service, options)
    if not len(domains):
        return
    preferred = model.service(service).affinity.preferred is not None
    kinds: list[Kind] = []
    fits: list[Flags] = []
    uppers: list[int] = []
    for option in options:
        fitting = model.fitting(option.wanted)
        if preferred:
            kinds.append(Kind(option.role, option.shape, home=True, spill=False))
            fits.append(fitting[homes] & (homes != domains))
            uppers.append(option.missing)
        kinds.append(Kind(option.role, option.shape, home=False, spill=preferred))
        fits.append(fitting[domains])
        uppers.append(option.missing)
    mask = np.stack(fits, axis=1)
    start = len(model.program.upper)
    columns = np.full(mask.shape, -1, np.int64)
    columns[mask] = np.arange(start, start + int(mask.sum()))
    most = np.broadcast_to(np.array(uppers, np.int64), mask.shape)[mask]
    model.program.add_columns(most.tolist())
    groups = NewGroups(service, model.next_candidate, domains, homes, copies, tuple(kinds), columns)
    model.add_new(groups)
    parts = groups.shapes
    for option in options:
        part = parts[option.role, option.shape]
        counted = columns[:, part][mask[:, part]].tolist()
        if counted:
            model.placed[service, option.role].setdefault(option.shape, []).extend(counted)
        for at in range(part.start, part.stop):
            chosen = mask[:, at]
            found = columns[chosen, at]
            if not len(found):
                continue
            if kinds[at].spill:
                model.spilling[service, option.role, option.shape].extend(found.tolist())
            places = homes if kinds[at].home else domains
            model.enter(option.wanted, places[chosen], found)


def _new_groups(model: Model, service: int, options: list[_Option]) -> tuple[Ints, Ints, Ints]:
    """Domain, home and copy of new groups: one per home, more where a group's size is limited."""
    served = model.service(service)
    preferred = served.affinity.preferred
    any_of: dict[str, Flags] = {}
    for option in options:
        fitting = model.fitting(option.wanted)
        any_of[option.role] = any_of[option.role] | fitting if option.role in any_of else fitting
    every = np.logical_and.reduce(list(any_of.values()))
    some = np.logical_or.reduce(list(any_of.values()))
    level = np.array(model.at_level(served.affinity.required), np.int64)
    domains = level[every[level]]
    homes = np.full(len(domains), -1, np.int64)
    if preferred is not None:
        inside: list[Ints] = []
        for domain in domains.tolist():
            found = np.array(model.at_level(preferred, domain), np.int64)
            found = found[some[found]]
            inside.append(found if len(found) else np.array([domain]))
        domains = np.repeat(domains, [len(each) for each in inside])
        homes = np.concatenate([homes[:0], *inside])
    copies = np.zeros(len(domains), np.int64)
    if served.limits.max_instances_per_group is not None:
        most = {domain: _copies(model, service, domain) for domain in set(domains.tolist())}
        number = np.array([most[domain] for domain in domains.tolist()], np.int64)
        domains, homes = np.repeat(domains, number), np.repeat(homes, number)
        copies = np.concatenate([copies[:0], *(np.arange(each) for each in number.tolist())])
    return domains, homes, copies


def _copies(model: Model, service: int, domain: int) -> int:
    """How many new groups one domain may need: one, unless the size of a group is limited."""
    served = model.service(service)
    size = served.limits.max_instances_per_group
    if size is None:
        return 1
    total = 0
    for name in served.roles:
        demand = model.demands[service, name]
        total += ceil(demand.missing / min(demand.shapes))
    most = -(-total // size) if len(served.roles) == 1 else total // len(served.roles)
    if served.limits.max_groups is not None:
        most = min(most, served.limits.max_groups)
    gpus = sum(model.units(gpu_type, 1, domain) for gpu_type in model.largest)
    smallest = sum(min(shape.gpus for shape in role.shapes) for role in served.roles.values())
    return max(1, min(most, gpus // smallest))


@dataclass(slots=True)
class _Option:
    """A shape that instances of a service may be added in, and how many at most."""

    role: str
    shape: int
    missing: int
    wanted: Wanted


def _options(model: Model, service: int) -> list[_Option]:
    options = []
    for name, role in model.service(service).roles.items():
        demand = model.demands[service, name]
        if demand.missing or model.instance.cycle.max_migrations:
            for shape in range(len(role.shapes)):
                missing = -(-demand.missing // demand.shapes[shape])
                wanted = model.wanted(service, name, shape)
                options.append(_Option(name, shape, missing, wanted))
    return options


class _Adder:
    """Adds the running groups of one service with what they may get."""

    def __init__(self, model: Model, service: int, options: list[_Option]) -> None:
        self._model = model
        self._service = service
        self._preferred = model.service(service).affinity.preferred is not None
        self._first = len(model.program.upper)
        self._uppers: list[int] = []
        self._options = options
        self._entering: dict[Wanted, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))

    def add(self, group: int) -> None:
        """Add a running group."""
        model, service = self._model, self._service
        domain, homes = model.state.domains[group], model.state.homes[group]
        within = model.tree.within
        places = [(home, False) for home in homes if home != domain and within(home, domain)]
        places.append((domain, self._preferred))
        placements: dict[str, list[Placement]] = defaultdict(list)
        for option in self._options:
            moving = model.leavers_of.get((group, option.role), ())
            most = option.missing
            if moving:
                most += _movable(model, moving, option.shape)
            if most:
                self._place(placements[option.role], option, places, most)
        for name in {option.role: None for option in self._options}:
            for leaver in model.leavers_of.get((group, name), ()):
                if leaver.moved is not None:
                    model.placed[service, name].setdefault(leaver.shape, [])
                    model.moved[service, name][leaver.shape].append(leaver.moved)
        model.add_running(service, group, placements)

    def _place(
        self, added: list[Placement], option: _Option, places: list[tuple[int, bool]], most: int
    ) -> None:
        model, service, fits = self._model, self._service, self._model.fits(option.wanted)
        for place, spill in places:
            if not fits[place]:
                continue
            column = self._first + len(self._uppers)
            self._uppers.append(most)
            number = model.next_candidate
            added.append(Placement(number, option.role, option.shape, place, spill, column))
            model.placed[service, option.role].setdefault(option.shape, []).append(column)
            if spill:
                model.spilling[service, option.role, option.shape].append(column)
            where, columns = self._entering[option.wanted]
            where.append(place)
            columns.append(column)

    def finish(self) -> None:
        """Add the columns of the placements to the program."""
        self._model.program.add_columns(self._uppers)
        for wanted, (places, columns) in self._entering.items():
            self._model.enter(wanted, np.array(places, np.int64), np.array(columns, np.int64))


def _movable(model: Model, leavers: list[Leaver] | tuple[Leaver, ...], shape: int) -> int:
    """Most instances of a shape among the leavers of a group and role that may move."""
    members = sum(
        len(leaver.members)
        for leaver in leavers
        if leaver.shape == shape and leaver.moved is not None
    )
    return min(model.instance.cycle.max_migrations, members)
