"""The constraints of docs/problem.md, one unit each, in the order they are added.

A unit adds its columns and rows to the model. Columns that follow from the shared decisions are
also recorded there (``Model.derived``, ``Model.sums``): from them a plan is turned into a complete
solution.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from operator import mul

import numpy as np

from heteroplace.formulation.cover import ceilings, covers
from heteroplace.formulation.hull import Band, Change, Hull, reachable
from heteroplace.formulation.packing import Pool
from heteroplace.formulation.program import INFINITE, Ints
from heteroplace.formulation.variables import (
    Candidate,
    Demand,
    Flow,
    Leaver,
    Model,
    NewGroups,
    Terms,
    Wanted,
)
from heteroplace.instance import RatioBand

MOST_CHANGES = 5000


def running(model: Model) -> None:
    """What runs stays, unless its role scales in or a migration is allowed."""
    program = model.program
    for leaver in model.leavers:
        if len(leaver.columns) == 2:
            terms = [(column, 1) for column in leaver.columns]
            program.row("running", terms, upper=len(leaver.members))
    losing: dict[tuple[int, str], Terms] = defaultdict(list)
    for leaver in model.leavers:
        if leaver.removed is not None:
            role = (model.service_of_group(leaver.group), leaver.role)
            losing[role].append((leaver.removed, model.demands[role].shapes[leaver.shape]))
    for role, terms in losing.items():
        program.row("running", terms, upper=model.demands[role].surplus)
    moves = [(leaver.moved, 1) for leaver in model.leavers if leaver.moved is not None]
    if moves:
        program.row("running", moves, upper=model.instance.cycle.max_migrations)
        _match_moves(model)


def _match_moves(model: Model) -> None:
    """A moved instance is placed again, in its group and shape."""
    for candidate in model.running.values():
        for role in model.service(candidate.service).roles:
            moved: dict[int, Terms] = defaultdict(list)
            for leaver in leavers_of(model, candidate, role):
                if leaver.moved is not None:
                    moved[leaver.shape].append((leaver.moved, -1))
            if not moved:
                continue
            placed: dict[int, Terms] = defaultdict(list)
            for placement in model.placements_of(candidate.index, role):
                placed[placement.shape].append((placement.column, 1))
            scales_out = model.demands[candidate.service, role].missing > 0
            for shape in sorted(moved):
                terms = placed[shape] + moved[shape]
                if scales_out:
                    model.program.row("running", terms, lower=0)
                else:
                    model.program.row("running", terms, lower=0, upper=0)


def no_reuse(model: Model) -> None:
    """GPUs freed in a cycle are not used in it; with ``reuse_freed`` they join their node's."""
    if not model.instance.cycle.reuse_freed:
        return
    for leaver in model.leavers:
        shape = model.shape(model.service_of_group(leaver.group), leaver.role, leaver.shape)
        for node, (_, gpus) in zip(leaver.nodes, shape.pod_list, strict=True):
            if model.instance.nodes[node].schedulable:
                model.freed[node].extend((column, gpus) for column in leaver.columns)


def integrity(model: Model) -> None:
    """All pods of an instance lie in one domain of its shape's level.

    Instances of one footprint that enter at one domain are interchangeable; ``spread`` counts how
    many of them each domain of the level holds.
    """
    spreading = []
    for wanted, domain, columns in model.entered:
        if wanted.single:
            _enter(model, wanted.parts[0][0], domain, columns, 1)
        else:
            spreading.append((wanted, domain, columns))
    for wanted, domain, columns in spreading:
        most = sum(model.program.upper[column] for column in columns)
        places = model.places(wanted, domain)
        spread = dict(zip(places, model.program.add_columns([most] * len(places)), strict=True))
        model.spread[wanted, domain] = spread
        _balance(model, "integrity", columns, [1] * len(columns), spread.values())
        for place, column in spread.items():
            for block, count in wanted.parts:
                _enter(model, block, place, [column], count)


def _enter(model: Model, block: int, domain: int, columns: list[int], count: int) -> None:
    """Each of the columns brings that many blocks into a domain."""
    entering, counts = model.entering[block, domain]
    entering.extend(columns)
    counts.extend([count] * len(columns))


def _balance(
    model: Model, unit: str, columns: list[int], counts: list[int], below: Collection[int]
) -> None:
    """What enters a domain is what its parts get; no column is on both sides."""
    model.program.distinct_row(
        unit, [*columns, *below], counts + [-1] * len(below), lower=0, upper=0
    )


def colocation(model: Model) -> None:
    """Every instance lies in its group's domain.

    Blocks of one size are interchangeable where they meet: each domain in which some enter hands
    them, and what it gets from above, on to the next such domains below and to its own cells.
    """
    domains: dict[int, list[int]] = defaultdict(list)
    for number, domain in model.entering:
        domains[number].append(domain)
    for number, entered in domains.items():
        _add_flow(model, number, sorted(entered))


def _add_flow(model: Model, number: int, entered: list[int]) -> None:
    """Count the blocks of one size that each domain passes on, and those that arrive in each cell.

    What is tree-shaped needs one balance per domain: the blocks that enter in a domain have room
    below it when no domain inside it gets less than enter there (Hall's condition on a tree).
    """
    program, tree, block = model.program, model.tree, model.blocks[number]
    room = model.cell_rooms(block.gpu_type, block.gpus)
    flow = model.flows[number] = Flow()
    inside = set(entered)

    def nearest(domain: int) -> int:
        while domain != -1 and domain not in inside:
            domain = tree.domains[domain].parent
        return domain

    below: dict[int, list[int]] = {domain: [] for domain in entered}
    most: dict[int, int] = {}
    # Parents come before their children.
    for domain in entered:
        columns, counts = model.entering[number, domain]
        most[domain] = sum(map(mul, counts, map(program.upper.__getitem__, columns)))
        over = nearest(tree.domains[domain].parent)
        if over != -1:
            fitting = min(most[over], model.units(block.gpu_type, block.gpus, domain))
            most[domain] += most[over]
            if fitting:
                flow.over[domain] = over
                flow.passed[domain] = program.column(fitting)
                below[over].append(flow.passed[domain])
    for cell, fitting in enumerate(room):
        over = nearest(tree.cells[cell].domain) if fitting else -1
        if over != -1:
            column = program.column(min(fitting, most[over]))
            flow.over_cell[cell] = over
            flow.cells[cell] = model.arriving[cell][block.gpus] = column
            below[over].append(column)
    for domain in entered:
        columns, counts = model.entering[number, domain]
        if domain in flow.passed:
            columns, counts = [*columns, flow.passed[domain]], [*counts, 1]
        _balance(model, "colocation", columns, counts, below[domain])


def capacity(model: Model) -> None:
    """What is placed on a node fits its free GPUs of its type."""
    for cell, counts in model.arriving.items():
        smallest = min(counts)
        nodes = [node for node in model.tree.cells[cell].nodes if model.potential[node] >= smallest]
        named = [node for node in nodes if node in model.freed] if model.freed else []
        pooled = [node for node in nodes if node not in model.freed] if named else nodes
        if named:
            counts = _add_named(model, cell, named, counts, bool(pooled))
        if pooled:
            pool = _make_pool(model, pooled, counts)
            pool.add(model.program)
            model.pools[cell] = pool
    _repair_capacity(model)


def _make_pool(model: Model, nodes: list[int], counts: dict[int, int]) -> Pool:
    weighs = model.instance.objective.weights.fragmentation > 0
    smallest, used = min(counts), model.tree.used
    free: dict[int, int] = {}
    whole: dict[int, list[int]] = defaultdict(list)
    for node in nodes:
        room = model.potential[node]
        breakable = weighs and smallest < room and not used[node]
        if breakable and room == model.instance.nodes[node].gpus:
            whole[room].append(node)
        else:
            free[node] = room
    return Pool(free, dict(whole), counts)


def _add_named(
    model: Model, cell: int, nodes: list[int], counts: dict[int, int], pooled: bool
) -> dict[int, int]:
    """Count blocks node by node where GPUs may be freed; return the counts left for the rest."""
    program = model.program
    parts: dict[int, list[int]] = {size: [] for size in counts}
    for node in nodes:
        machine = model.instance.nodes[node]
        room = machine.gpus - machine.reserved - model.tree.used[node]
        columns = {
            size: program.column(model.potential[node] // size)
            for size in counts
            if size <= model.potential[node]
        }
        model.singles[node] = columns
        terms = [(column, size) for size, column in columns.items()]
        terms += [(column, -gpus) for column, gpus in model.freed[node]]
        if room < 0:
            switch = program.column(1)
            model.switches[node] = switch
            program.row("no_reuse", [*terms, (switch, -room)], upper=0)
            for size, column in columns.items():
                most = model.potential[node] // size
                program.row("no_reuse", [(column, 1), (switch, -most)], upper=0)
        else:
            program.row("no_reuse", terms, upper=room)
        for size, column in columns.items():
            parts[size].append(column)
    left = {}
    for size, total in counts.items():
        terms = [(total, 1)] + [(column, -1) for column in parts[size]]
        if pooled:
            left[size] = program.column(program.upper[total])
            program.row("capacity", [*terms, (left[size], -1)], lower=0, upper=0)
            model.derive(left[size], terms)
        else:
            program.row("capacity", terms, lower=0, upper=0)
    return left


def _repair_capacity(model: Model) -> None:
    """A node over its limit may stay so, but never more than now; what is over is repaired."""
    leaving: dict[int, Terms] = defaultdict(list)
    for leaver in model.leavers:
        shape = model.shape(model.service_of_group(leaver.group), leaver.role, leaver.shape)
        for node, (_, gpus) in zip(leaver.nodes, shape.pod_list, strict=True):
            leaving[node].extend((column, gpus) for column in leaver.columns)
    for node, used in enumerate(model.tree.used):
        if not used:
            continue
        machine = model.instance.nodes[node]
        over = used - (machine.gpus - machine.reserved)
        if over <= 0:
            continue
        if node in leaving:
            rest = model.program.column(over)
            model.program.row("capacity", [(rest, 1), *leaving[node]], lower=over)
            model.repair(rest, Fraction(1))
            model.derive(rest, [(column, -gpus) for column, gpus in leaving[node]], over)
        else:
            model.repair_constant += over


def delivered(model: Model, candidate: Candidate, role: str) -> tuple[Terms, int]:
    """Delivered capacity of a role in a group, in grains: columns and what stays for sure."""
    shapes = model.demands[candidate.service, role].shapes
    terms = [
        (placement.column, shapes[placement.shape])
        for placement in model.placements_of(candidate.index, role)
    ]
    if candidate.running is None:
        return terms, 0
    for leaver in model.leavers_of.get((candidate.running, role), ()):
        terms.extend((column, -shapes[leaver.shape]) for column in leaver.columns)
    ready = model.ready_of.get((candidate.running, role), ())
    return terms, sum([count * shapes[shape] for count, shape in ready])


def counted(model: Model, candidate: Candidate, role: str) -> tuple[Terms, int]:
    """Delivering instances of a role in a group: columns and constant."""
    terms = [(placement.column, 1) for placement in model.placements_of(candidate.index, role)]
    if candidate.running is None:
        return terms, 0
    for leaver in model.leavers_of.get((candidate.running, role), ()):
        terms.extend((column, -1) for column in leaver.columns)
    ready = model.ready_of.get((candidate.running, role), ())
    return terms, sum([count for count, _ in ready])


def leavers_of(model: Model, candidate: Candidate, role: str) -> list[Leaver]:
    """Leavers of a role in a group."""
    if candidate.running is None:
        return []
    return model.leavers_of.get((candidate.running, role), [])


def ratio(model: Model) -> None:
    """Every group's delivered capacities are inside the band, and no role is lacking."""
    for number in range(len(model.instance.services)):
        _open_by_hulls(model, number)
    new = [each for each in model.new_groups.values() if each.switches is None]
    opened = [each.candidate(number) for each in new for number in each.numbers]
    for candidate in [*model.running.values(), *opened]:
        service = model.service(candidate.service)
        if not any(
            model.placements_of(candidate.index, role) or leavers_of(model, candidate, role)
            for role in service.roles
        ):
            _ratio_of_fixed(model, candidate)
            continue
        if _add_hull(model, candidate):
            continue
        for band in service.ratios:
            _add_band(model, candidate, band)
        if len(service.roles) > 1:
            _add_completeness(model, candidate)


def _ratio_of_fixed(model: Model, candidate: Candidate) -> None:
    """A group that nothing can change keeps what is broken."""
    for band in model.service(candidate.service).ratios:
        _, _, now, scale = _band_rows(model, candidate, band)
        weight = model.role(candidate.service, band.numerator).gpus_per_capacity
        model.repair_constant += Fraction(now, scale) * weight
    for role in missing_now(model, candidate):
        model.repair_constant += model.role(candidate.service, role).shapes[0].gpus


def _band_rows(
    model: Model, candidate: Candidate, band: RatioBand
) -> tuple[tuple[Terms, int], tuple[Terms, int] | None, int, int]:
    """The band's two sides as integer expressions that are above 0 when broken.

    Returns
    -------
    tuple
        (low side, high side or null, how far it is broken now, what 1 capacity is).
    """
    numerator, n_constant = delivered(model, candidate, band.numerator)
    denominator, d_constant = delivered(model, candidate, band.denominator)
    scale, n_unit, ends = _band_units(model, candidate.service, band)

    def side(d_unit: int, sign: int) -> tuple[Terms, int]:
        terms = [(column, sign * n_unit * count) for column, count in numerator]
        terms += [(column, -sign * d_unit * count) for column, count in denominator]
        return terms, sign * (n_unit * n_constant - d_unit * d_constant)

    low = side(ends[0], -1)
    high = side(ends[1], 1) if len(ends) > 1 else None
    now = max(0, low[1], 0 if high is None else high[1])
    return low, high, now, scale


def _band_units(model: Model, service: int, band: RatioBand) -> tuple[int, int, tuple[int, ...]]:
    """What a capacity of 1, a grain of the numerator and one of the denominator are in integers.

    The last is given for each end of the band, multiplied by it.
    """
    key = (service, band.numerator, band.denominator)
    units = model.band_units.get(key)
    if units is None:
        n_grain = model.demands[service, band.numerator].grain
        d_grain = model.demands[service, band.denominator].grain
        ends = [end * d_grain for end in (band.min, band.max) if end is not None]
        scale = lcm(n_grain.denominator, *(end.denominator for end in ends))
        units = (scale, int(n_grain * scale), tuple(int(end * scale) for end in ends))
        model.band_units[key] = units
    return units


def _add_band(model: Model, candidate: Candidate, band: RatioBand) -> None:
    low, high, now, scale = _band_rows(model, candidate, band)
    slack: int | None = None
    if now:
        slack = model.program.column(now)
        weight = model.role(candidate.service, band.numerator).gpus_per_capacity
        model.repair(slack, weight / scale)
    sides = [side for side in (low, high) if side is not None and any(c for _, c in side[0])]
    for terms, constant in sides:
        row = terms if slack is None else [*terms, (slack, -1)]
        model.program.row("ratio", row, upper=-constant)
        if slack is not None:
            model.derive(slack, terms, constant)
    if slack is not None:
        for fixed in (low, high):
            if fixed is not None and fixed not in sides and fixed[1] > 0:
                model.program.row("ratio", [(slack, 1)], lower=fixed[1])
                model.derive(slack, [], fixed[1])


def missing_now(model: Model, candidate: Candidate) -> list[str]:
    """Roles that a running group lacks now."""
    if candidate.running is None:
        return []
    roles = model.service(candidate.service).roles
    present = {role for role in roles if model.ready_of.get((candidate.running, role))}
    return [role for role in roles if role not in present] if present else []


def _bands_complete(model: Model, candidate: Candidate) -> bool:
    """Whether the bands alone make a group have all roles or none."""
    service = model.service(candidate.service)
    linked = {next(iter(service.roles))}
    links = [
        {band.numerator, band.denominator}
        for band in service.ratios
        if band.min > 0 and band.max is not None
    ]
    for _ in links:
        for link in links:
            if link & linked:
                linked |= link
    return (
        len(linked) == len(service.roles)
        and not missing_now(model, candidate)
        and not any(_band_rows(model, candidate, band)[2] for band in service.ratios)
    )


def _add_completeness(model: Model, candidate: Candidate) -> None:
    if _bands_complete(model, candidate):
        return
    lacking = missing_now(model, candidate)
    alive = alive_column(model, candidate)
    for role in model.service(candidate.service).roles:
        terms, constant = counted(model, candidate, role)
        row = [*terms, (alive, -1)]
        if role in lacking:
            absent = model.program.column(1)
            row.append((absent, 1))
            model.repair(absent, Fraction(model.role(candidate.service, role).shapes[0].gpus))
            model.absences.append((absent, alive, terms, constant))
        model.program.row("ratio", row, lower=-constant)


def _add_hull(model: Model, candidate: Candidate) -> bool:
    """Describe a running group of two roles by the hull of what it may become, if possible.

    The integer solutions are those of the bands and their completeness, but the relaxation is
    tight: what does not fit the domain in whole P/D units is cut off there too.
    """
    service = model.service(candidate.service)
    names = tuple(service.roles)
    if candidate.running is None or len(names) != 2 or missing_now(model, candidate):
        return False
    first, second = (_change(model, candidate, name) for name in names)
    if first.span > MOST_CHANGES:
        return False
    if any(_band_rows(model, candidate, band)[2] for band in service.ratios):
        return False
    shared = _shared_room(model, candidate, names, first, second)
    hull = Hull.of(reachable(first, second, _bands(model, candidate.service), shared))
    for a, b, c, equal in hull.sides:
        terms = [(column, a * weight) for column, weight in first.terms]
        terms += [(column, b * weight) for column, weight in second.terms]
        model.program.row("ratio", terms, lower=c if equal else -INFINITE, upper=c)
    return True


def _bands(model: Model, service: int) -> list[Band]:
    """The bands of a service of two roles, as :func:`reachable` takes them."""
    served = model.service(service)
    first = next(iter(served.roles))
    return [
        (band.numerator != first, *_band_units(model, service, band)[1:]) for band in served.ratios
    ]


def _open_by_hulls(model: Model, number: int) -> None:
    """Describe the new groups of a service of one or two roles by their hulls.

    Their rows come last: :meth:`Program.arrays`.
    """
    names = tuple(model.service(number).roles)
    groups = model.new_groups.get(number)
    if len(names) > 2 or groups is None:
        return
    if _opening(model, number, names[0]).high > MOST_CHANGES:
        return
    program = model.program
    switches = program.add_columns([1] * len(groups))
    groups.switches = switches
    finder = _Hulls(model, groups)
    hull = np.zeros(len(groups), np.int64)
    placed = groups.columns >= 0
    weights = np.zeros(placed.shape, np.int64)
    parts = groups.shapes
    has = [np.array(placed[:, part].any(axis=1), np.int64) for part in parts.values()]
    patterns, pattern = _distinct(has, len(groups))
    for at, there in enumerate(patterns):
        mine = np.flatnonzero(pattern == at)
        present = [each for each, some in zip(parts, there, strict=True) if some]
        openings = [
            finder.opening(name, tuple(shape for role, shape in present if role == name))
            for name in names
        ]
        for (role, shape), part in parts.items():
            weight = openings[names.index(role)].weights.get(shape, 0)
            weights[mine, part] = weight
        hull[mine] = finder.hulls_of(openings, groups.domains[mine])
    sides = []
    for name in names:
        own = [part for (role, _), part in parts.items() if role == name]
        inside = slice(own[0].start, own[-1].stop)
        chosen = placed[:, inside]
        columns, weight_of = groups.columns[:, inside][chosen], weights[:, inside][chosen]
        sides.append((chosen.sum(axis=1), columns, weight_of))
    program.blocks.add(number, np.array(switches, np.int64), sides, finder.hulls, hull)


class _Hulls:
    """Hulls of the new groups of one service, each made once."""

    def __init__(self, model: Model, groups: NewGroups) -> None:
        self._model = model
        self._service = groups.service
        self._bands = _bands(model, groups.service)
        self._most = model.service(groups.service).limits.max_instances_per_group
        self._openings: dict[tuple[str, tuple[int, ...]], _Opening] = {}
        self._place: dict[object, int] = {}
        self.hulls: list[Hull] = []

    def opening(self, role: str, shapes: tuple[int, ...]) -> _Opening:
        """What a role may bring with some shapes."""
        known = self._openings.get((role, shapes))
        if known is None:
            known = _opening(self._model, self._service, role, shapes)
            self._openings[role, shapes] = known
        return known

    def hulls_of(self, openings: list[_Opening], domains: Ints) -> Ints:
        """Place in ``hulls`` of the hull of a group in each of some domains."""
        model = self._model
        known = [opening.reach(model, domains) for opening in openings]
        both = _room_of_both(model, openings, self._most)
        if both is not None:
            room = both.room(model, domains)
            # Where both roles at their most have room, the hull is the same as without the row.
            short = both.one * known[0] + both.other * known[1] > room
            known.append(np.where(short, room + 1, 0))
        distinct, inverse = _distinct(known, len(domains))
        found = []
        for row in distinct:
            shared = None
            if both is not None and row[-1]:
                shared = (both.one, both.other, row[-1] - 1)
            found.append(self._hull(openings, row[: len(openings)], shared))
        return np.array(found, np.int64)[inverse]

    def _hull(
        self, openings: list[_Opening], reach: list[int], shared: tuple[int, int, int] | None
    ) -> int:
        key = (*zip(openings, reach, strict=True), shared)
        place = self._place.get(key)
        if place is None:
            changes = [
                Change([], 0, high, opening.unit, 0)
                for opening, high in zip(openings, reach, strict=True)
            ]
            place = self._place[key] = len(self.hulls)
            self.hulls.append(self._hull_of_new(changes, shared))
        return place

    def _hull_of_new(self, changes: list[Change], shared: tuple[int, int, int] | None) -> Hull:
        """The hull of a new group; many services share theirs."""
        known = self._model.hulls
        key = (tuple(self._bands), *(each.key for each in changes), shared)
        hull = known.get(key)
        if hull is None:
            self._model.program.check_time()
            second = changes[1] if len(changes) > 1 else None
            points = reachable(changes[0], second, self._bands, shared)
            hull = known[key] = Hull.of(points - {(0, 0)})
        return hull


def _distinct(columns: list[Ints], number: int) -> tuple[list[list[int]], Ints]:
    """The rows that occur in some columns of counts, and which of them each row is."""
    code = np.zeros(number, np.int64)
    codes = 1
    for column in columns:
        most = int(column.max()) + 1
        if most == int(column.min()) + 1:
            continue
        if codes * most > INFINITE:
            values, code = np.unique(code, return_inverse=True)
            kinds, column = np.unique(column, return_inverse=True)
            codes, most = len(values), len(kinds)
        code = code * most + column
        codes *= most
    if codes == 1:
        return [[int(column[0]) for column in columns]], code
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    rows: list[list[int]] = np.stack(columns, axis=1)[first].tolist()
    return rows, place


@dataclass(frozen=True, eq=False)
class _Opening:
    """What a role may bring to a new group with some of its shapes.

    Parameters
    ----------
    unit
        Greatest common divisor of the capacities, in grains.
    weights
        Units of one instance of each shape.
    prints
        Footprints of the shapes, with their capacity in grains.
    most
        Most grains that may be added.
    """

    unit: int
    weights: dict[int, int]
    prints: tuple[tuple[Wanted, int], ...]
    most: int

    @property
    def high(self) -> int:
        """Most units that may be added."""
        return self.most // self.unit

    def reach(self, model: Model, domains: Ints) -> Ints:
        """Most units that each of some domains has room for."""
        room = np.zeros(len(domains), np.int64)
        for wanted, grains in self.prints:
            weight = grains // self.unit
            # More instances than that many are too many anyway.
            room += np.minimum(model.rooms(wanted, domains), self.high // weight + 1) * weight
            room = np.minimum(room, self.high)
        return room


def _opening(
    model: Model, service: int, role: str, shapes: tuple[int, ...] | None = None
) -> _Opening:
    demand = model.demands[service, role]
    if shapes is None:
        shapes = tuple(range(len(demand.shapes)))
    capacities = {shape: demand.shapes[shape] for shape in shapes}
    unit = gcd(*capacities.values()) or 1
    return _Opening(
        unit,
        {shape: grains // unit for shape, grains in capacities.items()},
        tuple((model.wanted(service, role, shape), grains) for shape, grains in capacities.items()),
        _most_added(demand.missing, set(capacities.values())) if capacities else 0,
    )


@dataclass(frozen=True)
class _Both:
    """One role's instances times ``one`` and the other's times ``other`` are at most a number.

    That is ``most`` or, where there is a block, how many of it a domain has room for.
    """

    one: int
    other: int
    most: int
    block: tuple[str, int] | None

    def room(self, model: Model, domains: Ints) -> Ints:
        """That number in each of some domains."""
        if self.block is None:
            return np.full(len(domains), self.most, np.int64)
        return model.unit_rooms(*self.block)[domains]


def _room_of_both(model: Model, openings: list[_Opening], most: int | None) -> _Both | None:
    """As :func:`_shared_room`, for a new group."""
    if len(openings) < 2 or any(list(each.weights.values()) != [1] for each in openings):
        return None
    if most is not None:
        return _Both(1, 1, most, None)
    (left, _), (right, _) = (each.prints[0] for each in openings)
    shared = _block_of_both(left, right)
    return None if shared is None else _Both(shared[0], shared[1], 0, shared[2])


def _block_of_both(left: Wanted, right: Wanted) -> tuple[int, int, tuple[str, int]] | None:
    """How many of a block either footprint takes, and that block; null if they share none."""
    if not (left.single and right.single):
        return None
    (one, _), (other, _) = left.blocks[0], right.blocks[0]
    if one.gpu_type != other.gpu_type:
        return None
    unit = gcd(one.gpus, other.gpus)
    return one.gpus // unit, other.gpus // unit, (one.gpu_type, unit)


def _change(model: Model, candidate: Candidate, role: str) -> Change:
    """How far a role in a group may change, in the largest unit of its instances' capacities."""
    demand = model.demands[candidate.service, role]
    terms, present = delivered(model, candidate, role)
    placed = {each.shape for each in model.placements_of(candidate.index, role)}
    leaving = leavers_of(model, candidate, role)
    capacities = {demand.shapes[shape] for shape in placed}
    capacities |= {demand.shapes[leaver.shape] for leaver in leaving}
    unit = gcd(present, *capacities) or 1
    upper = model.program.upper
    low = -sum(
        upper[leaver.removed] * demand.shapes[leaver.shape]
        for leaver in leaving
        if leaver.removed is not None
    )
    low = max(low, -demand.surplus)
    high = 0
    if demand.missing and placed:
        high = sum(
            model.room(model.prints[candidate.service, role, shape], candidate.domain)
            * demand.shapes[shape]
            for shape in placed
        )
        high = min(high, _most_added(demand.missing, {demand.shapes[shape] for shape in placed}))
    scaled = [(column, value // unit) for column, value in terms]
    return Change(scaled, -(-low // unit), high // unit, unit, present // unit)


def _most_added(missing: int, capacities: set[int]) -> int:
    """Most that may be added: what is missing and less than the smallest instance among them."""
    most = max(-(-missing // capacity) * capacity for capacity in capacities)
    mixed = sorted(capacities)[-2:-1]
    return max([most, *(missing + capacity - 1 for capacity in mixed)])


def _shared_room(
    model: Model,
    candidate: Candidate,
    names: tuple[str, ...],
    first: Change,
    second: Change,
) -> tuple[int, int, int] | None:
    """``(a, b, c)``: a times one change plus b times the other is at most c; null if unlimited.

    That is where both roles take blocks of one GPU type, or where a group's size is limited.
    """
    if any(abs(value) != 1 for _, value in (*first.terms, *second.terms)):
        return None
    most = model.service(candidate.service).limits.max_instances_per_group
    if most is not None:
        now = sum(counted(model, candidate, name)[1] for name in names)
        # What one role loses leaves room for the other.
        return 1, 1, max(most, now) - now - first.low - second.low
    shapes = [{each.shape for each in model.placements_of(candidate.index, name)} for name in names]
    if [len(each) for each in shapes] != [1, 1]:
        return None
    left, right = (
        model.prints[candidate.service, name, next(iter(found))]
        for name, found in zip(names, shapes, strict=True)
    )
    shared = _block_of_both(left, right)
    if shared is None:
        return None
    one, other, block = shared
    return one, other, model.units(*block, candidate.domain)


def alive_column(model: Model, candidate: Candidate) -> int:
    """Column that is 1 when the group delivers anything; made when first asked for."""
    known = model.switch(candidate.index)
    if known is not None:
        return known
    column = model.program.column(1)
    model.alive[candidate.index] = column
    for role in model.service(candidate.service).roles:
        terms, constant = counted(model, candidate, role)
        positive = [(c, a) for c, a in terms if a > 0]
        demand = model.demands[candidate.service, role]
        most = constant + sum(model.program.upper[c] for c, _ in positive)
        if candidate.running is None:
            most = min(most, -(-demand.missing // min(demand.shapes)))
        if terms or constant:
            model.program.row("ratio", [*terms, (column, -most)], upper=-constant)
            model.derive(column, terms, constant, switch=True)
    return column


def target(model: Model) -> None:
    """A role delivers no more than its target needs."""
    for (service, role), demand in model.demands.items():
        if demand.missing:
            _add_target(model, service, role, demand)
        elif demand.surplus:
            _repair_target(model, service, role, demand)


def _add_target(model: Model, service: int, role: str, demand: Demand) -> None:
    program = model.program
    unmet = program.column(demand.missing)
    model.unmet[service, role] = unmet
    added = _added(model, service, role, demand)
    if not added:
        program.row("target", [(unmet, 1)], lower=demand.missing)
        model.derive(unmet, [], demand.missing)
        return
    columns = list(added.values())
    capacities = tuple(demand.shapes[shape] for shape in added)
    for cover in covers(capacities, demand.missing):
        program.distinct_row("target", [*columns, unmet], [*cover.weights, 1], lower=cover.least)
    model.derive(
        unmet,
        [(column, -value) for column, value in zip(columns, capacities, strict=True)],
        demand.missing,
    )
    _add_ceilings(model, columns, capacities, demand.missing)
    largest = max(capacities)
    top = demand.missing + largest - 1
    program.distinct_row("target", columns, capacities, upper=top)
    for column, capacity_ in zip(columns, capacities, strict=True):
        if capacity_ < largest:
            used = program.column(1)
            most = -(-demand.missing // capacity_)
            program.row("target", [(column, 1), (used, -most)], upper=0)
            program.distinct_row(
                "target", [*columns, used], [*capacities, largest - capacity_], upper=top
            )
            model.derive(used, [(column, 1)], switch=True)


def _add_ceilings(
    model: Model, columns: list[int], capacities: tuple[int, ...], missing: int
) -> None:
    """Cut off sums that whole instances, none of them superfluous, cannot reach."""
    program = model.program
    kinds = tuple(dict.fromkeys(capacities))
    place = [kinds.index(each) for each in capacities]
    for ceiling in ceilings(kinds, missing):
        weights = [ceiling.weights[each] for each in place]
        row = {column: weight for column, weight in zip(columns, weights, strict=True) if weight}
        if len(row) > 1:
            program.distinct_row("target", row, row.values(), upper=ceiling.most)
            continue
        ((column, weight),) = row.items()
        program.upper[column] = min(program.upper[column], ceiling.most // weight)


def _added(model: Model, service: int, role: str, demand: Demand) -> dict[int, int]:
    """A column for each shape that may be added: how many instances of it are."""
    program = model.program
    # Instances that are moved are placed again, but not added.
    moved = model.moved.get((service, role), {})
    added: dict[int, int] = {}
    for shape, entering in model.placed.get((service, role), {}).items():
        leaving = moved.get(shape, [])
        if len(entering) == 1 and not leaving:
            added[shape] = entering[0]
        elif entering:
            added[shape] = count = program.column(-(-demand.missing // demand.shapes[shape]))
            columns = [*entering, *leaving]
            signs = [1] * len(entering) + [-1] * len(leaving)
            program.distinct_row("target", [*columns, count], [*signs, -1], lower=0, upper=0)
            model.counts[service, role, shape] = count
            model.sums.append((count, columns, signs))
    return added


def _repair_target(model: Model, service: int, role: str, demand: Demand) -> None:
    """A role that scales in is asked to lose what it has above its target."""
    grain = gcd(*(demand.shapes[shape] for shape in model.state.served[service, role]))
    weight = model.role(service, role).gpus_per_capacity * demand.grain
    model.repair_constant += demand.surplus // grain * grain * weight
    worth = [-weight * capacity for capacity in demand.shapes]
    for candidate in model.running_of[service]:
        for leaver in leavers_of(model, candidate, role):
            if leaver.removed is not None:
                model.repair(leaver.removed, worth[leaver.shape])


def limits(model: Model) -> None:
    """Group count and size limits; role minimum.

    The role minimum needs no row: ``running`` removes nothing below the target, and the minimum is
    at most that.
    """
    for service, served in enumerate(model.instance.services):
        if served.limits.max_groups is not None:
            _limit_groups(model, service, served.limits.max_groups)
        if served.limits.max_instances_per_group is not None:
            for candidate in model.candidates_of(service):
                _limit_size(model, candidate, served.limits.max_instances_per_group)


def _limit_groups(model: Model, service: int, most: int) -> None:
    terms: Terms = []
    fixed = now = 0
    for candidate in model.candidates_of(service):
        if candidate.running is None:
            terms.append((alive_column(model, candidate), 1))
            continue
        now += 1
        instances = model.instance.running[candidate.running].instances
        can_empty = not any(each.state == "draining" for each in instances) and any(
            leaver.removed is not None
            for role in model.service(service).roles
            for leaver in leavers_of(model, candidate, role)
        )
        if can_empty:
            terms.append((alive_column(model, candidate), 1))
        else:
            fixed += 1
    if not terms:
        model.repair_constant += max(0, fixed - most)
        return
    model.program.row("limits", terms, upper=max(most, now) - fixed)
    if now > most:
        over = model.program.column(now - most)
        model.program.row("limits", [*terms, (over, -1)], upper=most - fixed)
        model.repair(over, Fraction(1))
        model.derive(over, terms, fixed - most)


def _limit_size(model: Model, candidate: Candidate, most: int) -> None:
    terms: Terms = []
    now = 0
    for role in model.service(candidate.service).roles:
        columns, constant = counted(model, candidate, role)
        terms += columns
        now += constant
    if any(a > 0 for _, a in terms):
        model.program.row("limits", terms, upper=max(most, now) - now)
    if now > most:
        if not terms:
            model.repair_constant += now - most
            return
        over = model.program.column(now - most)
        model.program.row("limits", [*terms, (over, -1)], upper=most - now)
        model.repair(over, Fraction(1))
        model.derive(over, terms, now - most)


CONSTRAINTS: tuple[Callable[[Model], None], ...] = (
    running,
    no_reuse,
    integrity,
    colocation,
    capacity,
    ratio,
    target,
    limits,
)
