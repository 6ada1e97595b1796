"""The decisions that the units of the formulation share.

Nothing here names a node. A :class:`Placement` counts the instances of a group, role and shape
that enter the network at a domain; :class:`Leaver` counts equal running instances that are removed
or moved away. Both are created here; every other column belongs to the unit that needs it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, gcd, lcm

from heteroplace.footprint import Block, Footprint, footprint
from heteroplace.formulation.hull import Hull
from heteroplace.formulation.packing import Pool
from heteroplace.formulation.program import Program
from heteroplace.instance import Instance, Role, Service, Shape
from heteroplace.topology import TreeView

ZERO = Fraction(0)

Terms = list[tuple[int, int]]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass
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


@dataclass
class Model:
    """An instance as an integer program.

    Parameters
    ----------
    tree
        The view it was made from.
    program
        Columns, rows and steps.
    """

    tree: TreeView
    program: Program
    candidates: list[Candidate] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    leavers: list[Leaver] = field(default_factory=list)
    demands: dict[tuple[int, str], Demand] = field(default_factory=dict)
    prints: dict[tuple[int, str, int], Footprint] = field(default_factory=dict)
    placements_of: dict[tuple[int, str], list[Placement]] = field(
        default_factory=lambda: defaultdict(list)
    )
    leavers_of: dict[tuple[int, str], list[Leaver]] = field(
        default_factory=lambda: defaultdict(list)
    )
    of_service: dict[int, list[Candidate]] = field(default_factory=lambda: defaultdict(list))
    ready_of: dict[tuple[int, str], list[tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    potential: list[int] = field(default_factory=list)
    largest: dict[str, list[int]] = field(default_factory=dict)
    # What the units leave for each other and for naming: docs/formulation.md.
    freed: dict[int, Terms] = field(default_factory=lambda: defaultdict(list))
    entering: dict[tuple[Block, int], Terms] = field(default_factory=lambda: defaultdict(list))
    spread: dict[tuple[Footprint, int], dict[int, int]] = field(default_factory=dict)
    flow: dict[tuple[Block, int], dict[int, int]] = field(default_factory=dict)
    arriving: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    pools: dict[int, Pool] = field(default_factory=dict)
    singles: dict[int, dict[int, int]] = field(default_factory=dict)
    switches: dict[int, int] = field(default_factory=dict)
    alive: dict[int, int] = field(default_factory=dict)
    unmet: dict[tuple[int, str], int] = field(default_factory=dict)
    derived: list[Derived] = field(default_factory=list)
    absences: list[tuple[int, int, Terms, int]] = field(default_factory=list)
    repair_terms: dict[int, Fraction] = field(default_factory=dict)
    repair_constant: Fraction = ZERO
    band_units: dict[tuple[int, str, str], tuple[int, int, tuple[int, ...]]] = field(
        default_factory=dict
    )
    hulls: dict[tuple[object, ...], Hull] = field(default_factory=dict)
    _fits: dict[tuple[Footprint, int], bool] = field(default_factory=dict)
    _rooms: dict[tuple[int, int], int] = field(default_factory=dict)
    _room_of: dict[tuple[Footprint, int], int] = field(default_factory=dict)

    def derive(self, column: int, terms: Terms, constant: int = 0, *, switch: bool = False) -> None:
        """Record that a column is at least ``constant + terms`` (or 1 when that is above 0)."""
        self.derived.append(Derived(column, tuple(terms), constant, switch))

    def repair(self, column: int, weight: Fraction) -> None:
        """Add a term to the ``repair`` step."""
        self.repair_terms[column] = self.repair_terms.get(column, ZERO) + weight

    def print_of(self, placement: Placement) -> Footprint:
        """Footprint of what is placed."""
        service = self.candidates[placement.candidate].service
        return self.prints[service, placement.role, placement.shape]

    def cell_room(self, cell: int, gpus: int) -> int:
        """Most blocks of a size that a cell can hold."""
        key = (cell, gpus)
        room = self._rooms.get(key)
        if room is None:
            room = sum(self.potential[node] // gpus for node in self.tree.cells[cell].nodes)
            self._rooms[key] = room
        return room

    def room(self, wanted: Footprint, domain: int) -> int:
        """No fewer instances of a footprint than a domain can hold."""
        key = (wanted, domain)
        known = self._room_of.get(key)
        if known is None:
            known = sum(
                min(self._blocks(block, place) // count for block, count in wanted.blocks)
                for place in (self.places(wanted, domain) if not wanted.single else (domain,))
            )
            self._room_of[key] = known
        return known

    def _blocks(self, block: Block, domain: int) -> int:
        return self.units(block.gpu_type, block.gpus, domain)

    def units(self, gpu_type: str, gpus: int, domain: int) -> int:
        """Most blocks of a size that the nodes of a type in a domain can hold."""
        return sum(
            self.cell_room(cell, gpus)
            for cell in self.tree.cells_below[domain]
            if self.tree.cells[cell].gpu_type == gpu_type
        )

    @property
    def instance(self) -> Instance:
        """The problem."""
        return self.tree.instance

    def service(self, index: int) -> Service:
        """A service by number."""
        return self.instance.services[index]

    def role(self, service: int, name: str) -> Role:
        """A role by service number and name."""
        return self.instance.services[service].roles[name]

    def shape(self, service: int, role: str, shape: int) -> Shape:
        """A shape by service number, role and place."""
        return self.instance.services[service].roles[role].shapes[shape]

    def service_of_group(self, group: int) -> int:
        """Service number of a running group."""
        return self.instance.service_index[self.instance.running[group].service]

    def fits(self, wanted: Footprint, domain: int) -> bool:
        """Whether the domain has a place where every block fits a node."""
        key = (wanted, domain)
        known = self._fits.get(key)
        if known is None:
            known = any(
                all(
                    self.largest_free(block.gpu_type, place) >= block.gpus
                    for block, _ in wanted.blocks
                )
                for place in self.places(wanted, domain)
            )
            self._fits[key] = known
        return known

    def places(self, wanted: Footprint, domain: int) -> list[int]:
        """Domains that may hold all blocks of one instance bound to a domain."""
        rank = min(wanted.rank, len(self.instance.levels) - 1)
        if self.tree.domains[domain].rank >= rank:
            return [domain]
        return [each for each in self.tree.below(domain) if self.tree.domains[each].rank == rank]

    def largest_free(self, gpu_type: str, domain: int) -> int:
        """Most GPUs of a type that one node of a domain may offer."""
        found = self.largest.get(gpu_type)
        return found[domain] if found else 0


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
    model = Model(tree, program)
    _read_demands(model)
    _add_leavers(model)
    _find_potential(model)
    _add_candidates(model)
    return model


def _read_demands(model: Model) -> None:
    instance = model.instance
    now: dict[tuple[int, str], Fraction] = defaultdict(Fraction)
    for group, running in enumerate(instance.running):
        number_of = instance.service_index[running.service]
        for number, each in enumerate(running.instances):
            if each.state == "ready":
                role = model.role(number_of, each.role)
                shape = role.shape_index[each.shape]
                now[number_of, each.role] += role.shapes[shape].capacity
                model.ready_of[group, each.role].append((number, shape))
    for index, service in enumerate(instance.services):
        for name, role in service.roles.items():
            capacities = [shape.capacity for shape in role.shapes]
            values = (role.target, role.min, now[index, name], *capacities)
            scale = lcm(*(value.denominator for value in values))
            divisor = gcd(*(int(value * scale) for value in values))
            grain = Fraction(divisor, scale)
            target, minimum, present, *shapes = (int(value / grain) for value in values)
            model.demands[index, name] = Demand(grain, target, minimum, present, tuple(shapes))
            for place, served in enumerate(role.shapes):
                model.prints[index, name, place] = footprint(model.tree, served)


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
        largest = max(model.potential[node] for node in cell.nodes)
        found = model.largest.setdefault(cell.gpu_type, [0] * len(tree.domains))
        domain = cell.domain
        while domain != -1:
            found[domain] = max(found[domain], largest)
            domain = tree.domains[domain].parent


def _add_leavers(model: Model) -> None:
    """Class the ready instances that may leave; equal ones share a pair of columns."""
    tree, instance = model.tree, model.instance
    migrations = instance.cycle.max_migrations
    for group, running in enumerate(instance.running):
        service = model.service_of_group(group)
        domain, homes = tree.group_domain(running), tree.homes(running)
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
    instance, tree = model.instance, model.tree
    running_of: dict[int, list[int]] = defaultdict(list)
    for group in range(len(instance.running)):
        running_of[model.service_of_group(group)].append(group)
    for index, service in enumerate(instance.services):
        wanting = [name for name in service.roles if model.demands[index, name].missing]
        for group in running_of[index]:
            running = instance.running[group]
            _add_candidate(model, index, group, tree.group_domain(running), tree.homes(running), 0)
        if len(wanting) == len(service.roles):
            for domain in tree.at_level(service.affinity.required):
                _add_new_candidates(model, index, domain)


def _add_new_candidates(model: Model, service: int, domain: int) -> None:
    """New groups of a service in a domain: one per home, more where a group's size is limited."""
    served = model.service(service)
    for name, role in served.roles.items():
        if not any(
            model.fits(model.prints[service, name, shape], domain)
            for shape in range(len(role.shapes))
        ):
            return
    homes: list[tuple[int, ...]] = [()]
    if served.affinity.preferred is not None:
        homes = [
            (home,)
            for home in model.tree.at_level(served.affinity.preferred, domain)
            if any(
                model.fits(model.prints[service, name, shape], home)
                for name, role in served.roles.items()
                for shape in range(len(role.shapes))
            )
        ] or [(domain,)]
    copies = _copies(model, service, domain)
    for home in homes:
        for copy in range(copies):
            _add_candidate(model, service, None, domain, home, copy)


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
    gpus = sum(
        model.potential[node]
        for cell in model.tree.cells_below[domain]
        for node in model.tree.cells[cell].nodes
    )
    smallest = sum(min(shape.gpus for shape in role.shapes) for role in served.roles.values())
    return max(1, min(most, gpus // smallest))


def _add_candidate(
    model: Model,
    service: int,
    running: int | None,
    domain: int,
    homes: tuple[int, ...],
    copy: int,
) -> None:
    candidate = Candidate(len(model.candidates), service, running, domain, homes, copy)
    preferred = model.service(service).affinity.preferred
    inside = [home for home in homes if home != domain and model.tree.within(home, domain)]
    model.candidates.append(candidate)
    model.of_service[service].append(candidate)
    for name, role in model.service(service).roles.items():
        demand = model.demands[service, name]
        for shape in range(len(role.shapes)):
            most = -(-demand.missing // demand.shapes[shape])
            if running is not None:
                most += _movable(model, running, name, shape)
            if not most:
                continue
            wanted = model.prints[service, name, shape]
            for place, spill in (
                *((home, False) for home in inside),
                (domain, bool(preferred is not None)),
            ):
                if model.fits(wanted, place):
                    placement = Placement(
                        candidate.index, name, shape, place, spill, model.program.column(most)
                    )
                    model.placements.append(placement)
                    model.placements_of[candidate.index, name].append(placement)


def _movable(model: Model, group: int, role: str, shape: int) -> int:
    """Most instances of a running group, role and shape that may move."""
    members = sum(
        len(leaver.members)
        for leaver in model.leavers_of.get((group, role), ())
        if leaver.shape == shape and leaver.moved is not None
    )
    return min(model.instance.cycle.max_migrations, members)
