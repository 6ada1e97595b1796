"""The decisions that the units of the formulation share.

Nothing here names a node. A :class:`Placement` counts the instances of a group, role and shape
that enter the network at a domain; :class:`Leaver` counts equal running instances that are removed
or moved away. Both are created here; every other column belongs to the unit that needs it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, gcd, lcm

from heteroplace.footprint import Block, Footprint, footprint
from heteroplace.formulation.packing import Pool
from heteroplace.formulation.program import Program
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
    candidates: list[Candidate] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    leavers: list[Leaver] = field(default_factory=list)
    demands: dict[tuple[int, str], Demand] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    prints: dict[tuple[int, str, int], Wanted] = field(default_factory=dict)
    placements_of: dict[tuple[int, str], list[Placement]] = field(
        default_factory=lambda: defaultdict(list)
    )
    leavers_of: dict[tuple[int, str], list[Leaver]] = field(
        default_factory=lambda: defaultdict(list)
    )
    of_service: dict[int, list[Candidate]] = field(default_factory=lambda: defaultdict(list))
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
    entered_in: dict[Wanted, dict[int, list[int]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
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
    absences: list[tuple[int, int, Terms, int]] = field(default_factory=list)
    repair_terms: dict[int, Fraction] = field(default_factory=dict)
    repair_constant: Fraction = ZERO
    band_units: dict[tuple[int, str, str], tuple[int, int, tuple[int, ...]]] = field(
        default_factory=dict
    )
    _numbers: dict[Block, int] = field(default_factory=dict)
    _wanted: dict[tuple[object, ...], Wanted] = field(default_factory=dict)
    _fits: dict[Wanted, list[bool]] = field(default_factory=dict)
    _cell_potential: list[dict[int, int]] = field(default_factory=list)
    _rooms: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    _units: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    _room_of: dict[tuple[Wanted, int], int] = field(default_factory=dict)
    _at_level: dict[tuple[str | None, int], list[int]] = field(default_factory=dict)

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
        service = self.candidates[placement.candidate].service
        return self.prints[service, placement.role, placement.shape]

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
        adder = _Adder(model, index)
        for group in groups_of.get(index, ()):
            adder.add(group, model.state.domains[group], model.state.homes[group], 0)
        if all(model.demands[index, name].missing for name in service.roles):
            for domain, home, copy in _new_groups(model, index):
                adder.add(None, domain, home, copy)
        adder.finish()


def _new_groups(model: Model, service: int) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Domain, homes and copy of new groups: one per home, more where a group's size is limited."""
    served = model.service(service)
    preferred = served.affinity.preferred
    fits = [
        [model.fits(model.wanted(service, name, shape)) for shape in range(len(role.shapes))]
        for name, role in served.roles.items()
    ]
    for domain in model.at_level(served.affinity.required):
        if not all(any(fit[domain] for fit in shapes) for shapes in fits):
            continue
        homes: list[tuple[int, ...]] = [()]
        if preferred is not None:
            homes = [
                (home,)
                for home in model.at_level(preferred, domain)
                if any(fit[home] for shapes in fits for fit in shapes)
            ] or [(domain,)]
        copies = range(_copies(model, service, domain))
        for home in homes:
            for copy in copies:
                yield domain, home, copy


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
    """A shape that instances of a service may be added in, and the columns that count them."""

    shape: int
    fits: list[bool]
    missing: int
    columns: list[int]
    spilling: list[int]
    entered: dict[int, list[int]]
    wanted: Wanted


class _Adder:
    """Adds the candidates of one service with their placements."""

    def __init__(self, model: Model, service: int) -> None:
        self._model = model
        self._service = service
        self._preferred = model.service(service).affinity.preferred is not None
        self._first = len(model.program.upper)
        self._uppers: list[int] = []
        self._options: list[tuple[str, list[_Option]]] = []
        for name, role in model.service(service).roles.items():
            demand = model.demands[service, name]
            if demand.missing or model.instance.cycle.max_migrations:
                shapes = range(len(role.shapes))
                self._options.append((name, [self._option(name, shape) for shape in shapes]))

    def _option(self, name: str, shape: int) -> _Option:
        model, service = self._model, self._service
        wanted = model.wanted(service, name, shape)
        demand = model.demands[service, name]
        return _Option(
            shape=shape,
            fits=model.fits(wanted),
            missing=-(-demand.missing // demand.shapes[shape]),
            columns=[],
            spilling=model.spilling[service, name, shape],
            entered=model.entered_in[wanted],
            wanted=wanted,
        )

    def add(self, running: int | None, domain: int, homes: tuple[int, ...], copy: int) -> None:
        """Add a candidate with its placements."""
        model, service = self._model, self._service
        index = len(model.candidates)
        candidate = Candidate(index, service, running, domain, homes, copy)
        model.candidates.append(candidate)
        model.of_service[service].append(candidate)
        if not self._options:
            return
        within = model.tree.within
        places = [(home, False) for home in homes if home != domain and within(home, domain)]
        places.append((domain, self._preferred))
        for name, options in self._options:
            added: list[Placement] = []
            moving = () if running is None else model.leavers_of.get((running, name), ())
            for option in options:
                most = option.missing
                if moving:
                    most += _movable(model, moving, option.shape)
                if most:
                    self._place(added, index, name, option, places, most)
            if added:
                model.placements.extend(added)
                model.placements_of[index, name] = added
            for leaver in moving:
                if leaver.moved is not None:
                    columns = options[leaver.shape].columns
                    model.placed[service, name].setdefault(leaver.shape, columns)
                    model.moved[service, name][leaver.shape].append(leaver.moved)

    def _place(
        self,
        added: list[Placement],
        index: int,
        name: str,
        option: _Option,
        places: list[tuple[int, bool]],
        most: int,
    ) -> None:
        uppers, columns, shape, fits = self._uppers, option.columns, option.shape, option.fits
        entered = option.entered
        for place, spill in places:
            if not fits[place]:
                continue
            column = self._first + len(uppers)
            uppers.append(most)
            added.append(Placement(index, name, shape, place, spill, column))
            if not columns:
                self._model.placed[self._service, name].setdefault(shape, columns)
            columns.append(column)
            if spill:
                option.spilling.append(column)
            if place in entered:
                entered[place].append(column)
            else:
                entered[place] = [column]
                self._model.entered.append((option.wanted, place, entered[place]))

    def finish(self) -> None:
        """Add the columns of the placements to the program."""
        self._model.program.add_columns(self._uppers)


def _movable(model: Model, leavers: list[Leaver] | tuple[Leaver, ...], shape: int) -> int:
    """Most instances of a shape among the leavers of a group and role that may move."""
    members = sum(
        len(leaver.members)
        for leaver in leavers
        if leaver.shape == shape and leaver.moved is not None
    )
    return min(model.instance.cycle.max_migrations, members)
