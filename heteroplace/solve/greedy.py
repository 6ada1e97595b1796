"""The paper's greedy (Algorithm 4) in whole P/D units, and its listing to the letter.

One cycle: requests by priority; for a scale-out the existing groups and a new group in every
compatible domain are candidates, the cheapest sufficient RDMA tier first, and what is placed leaves
the view at once; for a scale-in the groups on high tiers give first.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np

from heteroplace.decision import Added, Decision
from heteroplace.footprint import footprint, pod_places
from heteroplace.formulation.program import Ints
from heteroplace.instance import Role, RunningGroup, Service, Shape
from heteroplace.quantity import common_denominator, whole
from heteroplace.topology import ROOT, TIERS, TreeView

HIGHEST = len(TIERS) - 1
NOTHING = -1
# A unit of that many instances is looked at before it goes on; the look takes so many steps.
LONG_UNIT = 64
LONG_LOOK = 20_000
LOOK_EVERY = 32


def greedy(tree: TreeView, deadline: float | None = None, pace: float = 0.0) -> Decision:
    """Place one cycle greedily, P and D together.

    Parameters
    ----------
    tree
        The view; not changed.
    deadline
        ``time.monotonic()`` at which it stops with what it has; null for none.
    pace
        Seconds that naming and checking will take for each instance that it places.

    Returns
    -------
    Decision
        Always valid.
    """
    return GreedyCycle(tree, deadline, pace).run()


def greedy_pods(tree: TreeView, deadline: float | None = None, pace: float = 0.0) -> Decision:
    """Place one cycle by the listing of Algorithm 4: pod by pod, roles apart.

    Parameters
    ----------
    tree
        The view; not changed.
    deadline, pace
        As in :func:`greedy`.

    Returns
    -------
    Decision
        May break ``ratio`` and ``integrity``.
    """
    return _GreedyPods(tree, deadline, pace).run()


class _Pool:
    """Cells of one GPU type in one domain, low tiers first.

    ``ends`` counts the cells up to each tier. No cell before ``start[gpus]`` has a node with that
    many free GPUs.
    """

    __slots__ = ("cells", "ends", "start")

    def __init__(self, cells: list[int], tiers: list[int]) -> None:
        self.cells = cells
        self.ends = [sum(1 for each in tiers if each <= tier) for tier in range(HIGHEST + 1)]
        self.start: dict[int, int] = {}


class _Pools(dict[int, _Pool]):
    """The pools of one GPU type by domain, made when they are first asked for."""

    def __init__(self, room: _Room, gpu_type: str) -> None:
        self.room = room
        self.gpu_type = gpu_type

    def __missing__(self, domain: int) -> _Pool:
        cells = self.room.tree.cells
        found = [
            cell
            for cell in self.room.tree.cells_below[domain]
            if cells[cell].gpu_type == self.gpu_type
        ]
        found.sort(key=lambda cell: cells[cell].tier)
        pool = _Pool(found, [cells[cell].tier for cell in found])
        for place, cell in enumerate(found):
            self.room.watch[cell].append((pool, place))
        self[domain] = pool
        return pool


class _Table:
    """Cells of one GPU type by the domains of a level, for the room of all of them at once."""

    def __init__(self, tree: TreeView, level: str, gpu_type: str) -> None:
        rank = tree.instance.levels.index(level)
        places = {domain: place for place, domain in enumerate(tree.at_level(level))}
        pairs = sorted(
            (places[tree.ancestor(cell.domain, rank)], cell.index)
            for cell in tree.cells
            if cell.gpu_type == gpu_type
        )
        self.cells: Ints = np.array([cell for _, cell in pairs], dtype=np.int64)
        self.tiers: Ints = np.array([tree.cells[cell].tier for _, cell in pairs], dtype=np.int64)
        owners: Ints = np.array([place for place, _ in pairs], dtype=np.int64)
        self.present, self.starts = np.unique(owners, return_index=True)


class _Room:
    """Free GPUs of one cycle as they are taken and given back.

    Within a cell the nodes with equal free GPUs stand in line: who came to that number first is
    taken first.
    """

    def __init__(self, tree: TreeView) -> None:
        self.tree = tree
        self.free = list(tree.free)
        self.lines: list[dict[int, dict[int, None]]] = []
        self.sizes: list[list[int]] = []
        self.largest: list[int] = []
        self.total: list[int] = []
        for cell in tree.cells:
            lines: dict[int, dict[int, None]] = {}
            total = 0
            for node in cell.nodes:
                free = self.free[node]
                total += free
                line = lines.get(free)
                if line is None:
                    lines[free] = {node: None}
                else:
                    line[node] = None
            self.lines.append(lines)
            self.sizes.append(sorted(lines))
            self.largest.append(self.sizes[-1][-1])
            self.total.append(total)
        self.watch: list[list[tuple[_Pool, int]]] = [[] for _ in tree.cells]
        self.of_type: dict[str, _Pools] = {}
        self.inside: dict[tuple[int, int], list[int]] = {}
        self.of_level: dict[str, Ints] = {}
        self.tables: dict[tuple[str, str], _Table] = {}
        self.changed: set[int] = set()

    def pools(self, gpu_type: str) -> _Pools:
        pools = self.of_type.get(gpu_type)
        if pools is None:
            pools = self.of_type[gpu_type] = _Pools(self, gpu_type)
        return pools

    def take(self, node: int, gpus: int) -> None:
        """Virtual allocation; a negative number gives GPUs back."""
        cell = self.tree.node_cell[node]
        lines, sizes = self.lines[cell], self.sizes[cell]
        free = self.free[node]
        line = lines[free]
        del line[node]
        if not line:
            del sizes[bisect_left(sizes, free)]
        free -= gpus
        self.free[node] = free
        target = lines.get(free)
        if target is None:
            lines[free] = {node: None}
            insort(sizes, free)
        else:
            if not target:
                insort(sizes, free)
            target[node] = None
        before, largest = self.largest[cell], sizes[-1]
        if largest != before:
            self.largest[cell] = largest
            if largest > before:
                for pool, place in self.watch[cell]:
                    for size, start in pool.start.items():
                        if start > place and before < size <= largest:
                            pool.start[size] = place
        self.total[cell] -= gpus
        self.changed.add(cell)

    def fitting_node(self, pool: _Pool, gpus: int, tier: int) -> int:
        """The fullest node with room in the lowest tier; :data:`NOTHING` when there is none."""
        cells, end, largest = pool.cells, pool.ends[tier], self.largest
        at = start = pool.start.get(gpus, 0)
        while at < end and largest[cells[at]] < gpus:
            at += 1
        if at != start:
            pool.start[gpus] = at
        if at >= end:
            return NOTHING
        return self.fullest(cells[at], gpus)

    def fullest(self, cell: int, gpus: int) -> int:
        """The fullest node of a cell with room."""
        sizes = self.sizes[cell]
        return next(iter(self.lines[cell][sizes[bisect_left(sizes, gpus)]]))

    def allocate(self, domain: int, option: Option, tier: int, taken: list[int]) -> bool:
        """Take the blocks of one instance inside one domain of its level, all or none.

        The nodes are appended to ``taken``, largest blocks first.
        """
        if option.single:
            block = option.blocks[0]
            node = self.fitting_node(block.pools[domain], block.gpus, tier)
            if node == NOTHING:
                return False
            self.take(node, block.gpus)
            taken.append(node)
            return True
        return any(
            self._allocate_in(place, option, tier, taken)
            for place in self.places(domain, option.rank)
        )

    def _allocate_in(self, domain: int, option: Option, tier: int, taken: list[int]) -> bool:
        before = len(taken)
        for block in option.blocks:
            pool = block.pools[domain]
            for _ in range(block.number):
                node = self.fitting_node(pool, block.gpus, tier)
                if node == NOTHING:
                    self.give_back(option, taken, before)
                    return False
                self.take(node, block.gpus)
                taken.append(node)
        return True

    def give_back(self, option: Option, taken: list[int], start: int) -> None:
        """Give back what an instance took, the nodes from ``start`` on."""
        for node, gpus in zip(taken[start:], option.gpus, strict=False):
            self.take(node, -gpus)
        del taken[start:]

    def places(self, domain: int, rank: int) -> list[int]:
        """Domains of a rank inside a domain, low tiers first; the domain itself if it is finer."""
        found = self.inside.get((domain, rank))
        if found is None:
            domains = self.tree.domains
            if domains[domain].rank >= rank:
                found = [domain]
            else:
                found = [each for each in self.tree.below(domain) if domains[each].rank == rank]
                found.sort(key=self.tree.domain_tier)
            self.inside[domain, rank] = found
        return found

    def has_room(self, domain: int, option: Option, tier: int) -> bool:
        """Whether every block, taken alone, fits a node of the domain."""
        return all(
            self.fitting_node(block.pools[domain], block.gpus, tier) != NOTHING
            for block in option.blocks
        )

    def gpus(self, domain: int, option: Option, tier: int) -> int:
        """Free GPUs of the option's types in usable cells; 0 when a block fits nowhere."""
        total = 0
        for block in option.blocks:
            pool, gpus, free = block.pools[domain], block.gpus, 0
            for cell in pool.cells[: pool.ends[tier]]:
                if self.largest[cell] >= gpus:
                    free += self.total[cell]
            if not free:
                return 0
            total += free
        return total

    def most(self, domain: int, option: Option, tier: int) -> int:
        """No more instances than this fit the free GPUs of usable cells."""
        return min(
            sum(self.total[cell] for cell in pool.cells[: pool.ends[tier]])
            // (block.gpus * block.number)
            for block in option.blocks
            for pool in (block.pools[domain],)
        )

    def domains(self, level: str) -> Ints:
        """Domains of a level in the order of :meth:`TreeView.at_level`."""
        found = self.of_level.get(level)
        if found is None:
            found = self.of_level[level] = np.array(self.tree.at_level(level), dtype=np.int64)
        return found

    def gpus_by_domain(self, level: str, option: Option, tier: int) -> Ints:
        """:meth:`gpus` of every one of the :meth:`domains` of a level."""
        domains = self.domains(level)
        total = np.zeros(len(domains), dtype=np.int64)
        none = np.zeros(len(domains), dtype=bool)
        largest, free = self._arrays
        if self.changed:
            cells = list(self.changed)
            largest[cells] = [self.largest[cell] for cell in cells]
            free[cells] = [self.total[cell] for cell in cells]
            self.changed.clear()
        for block in option.blocks:
            key = (level, block.gpu_type)
            table = self.tables.get(key)
            if table is None:
                table = self.tables[key] = _Table(self.tree, level, block.gpu_type)
            usable = (largest[table.cells] >= block.gpus) & (table.tiers <= tier)
            found = np.zeros(len(domains), dtype=np.int64)
            found[table.present] = np.add.reduceat(free[table.cells] * usable, table.starts)
            total += found
            none |= found == 0
        total[none] = 0
        return total

    @cached_property
    def _arrays(self) -> tuple[Ints, Ints]:
        """Per cell, the largest free node and the free GPUs, as of the last look."""
        self.changed.clear()
        return np.array(self.largest, dtype=np.int64), np.array(self.total, dtype=np.int64)


class _Block(NamedTuple):
    """Blocks of one size that an instance needs."""

    gpu_type: str
    gpus: int
    number: int
    pools: _Pools


class Option:
    """A shape in the form the greedy counts; capacity in the grain of its service."""

    __slots__ = (
        "blocks",
        "capacity",
        "gpus",
        "number",
        "places",
        "rank",
        "role",
        "shape",
        "single",
    )

    def __init__(self, room: _Room, shape: Shape, role: int, number: int, capacity: int) -> None:
        wanted = footprint(room.tree, shape)
        self.role = role
        self.number = number
        ordered = sorted(wanted.blocks, key=lambda pair: -pair[0].gpus)
        self.shape = shape
        self.capacity = capacity
        self.rank = wanted.rank
        self.single = wanted.single
        self.blocks = [
            _Block(block.gpu_type, block.gpus, count, room.pools(block.gpu_type))
            for block, count in ordered
        ]
        # Of the nodes in the order in which they are taken: GPUs on each, and the one of each pod.
        self.gpus = [block.gpus for block in self.blocks for _ in range(block.number)]
        self.places = pod_places(shape, [block for block, count in ordered for _ in range(count)])

    def pod_nodes(self, taken: list[int], start: int) -> tuple[int, ...]:
        """Node of every pod, in the shape's order, from what an instance took at ``start``."""
        if len(self.places) == 1:
            return (taken[start],)
        return tuple([taken[start + place] for place in self.places])


_Amounts = tuple[int, int]


class _Band(NamedTuple):
    """A ratio band on whole numbers: low · D ≤ scale · P ≤ high · D."""

    numerator: int
    denominator: int
    scale: int
    low: int
    high: int | None

    def least(
        self, start: _Amounts, steps: _Amounts, reach: _Amounts, allowed: int
    ) -> _Amounts | None:
        """The least amounts of the two roles, from the present ones on, inside the band.

        Parameters
        ----------
        start, steps, reach
            Of numerator and denominator: what is delivered, what that grows by multiples of, and
            the most it can become.
        allowed
            Scaled amount by which the band may be broken.

        Returns
        -------
        tuple of int, optional
            Null when they are out of reach; where the look takes too long, lower bounds of them.
        """
        numerator, denominator = start
        # Either side of the band only asks for more of one role, so this climbs to the least
        # amounts inside.
        for _ in range(LONG_LOOK):
            if self.high is not None:
                over = self.scale * numerator - self.high * denominator - allowed
                denominator += max(0, -(-over // (self.high * steps[1]))) * steps[1]
            lacks = self.low * denominator - self.scale * numerator - allowed
            numerator += max(0, -(-lacks // (self.scale * steps[0]))) * steps[0]
            if numerator > reach[0] or denominator > reach[1]:
                return None
            if lacks <= 0:
                break
        return numerator, denominator


class Request:
    """What a service asks for in this cycle; capacities in whole grains of one size."""

    def __init__(
        self, room: _Room, service: Service, number: int, now: dict[str, int | Fraction]
    ) -> None:
        roles: list[Role] = list(service.roles.values())
        capacities = [shape.capacity for role in roles for shape in role.shapes]
        grain = common_denominator([*capacities, *(role.target for role in roles)])
        self.service = service
        self.number = number
        self.names = list(service.roles)
        self.place = {name: place for place, name in enumerate(self.names)}
        self.options = [
            [
                Option(room, shape, place, index, whole(shape.capacity, grain))
                for index, shape in enumerate(role.shapes)
            ]
            for place, role in enumerate(roles)
        ]
        self.steps = [math.gcd(*(each.capacity for each in options)) for options in self.options]
        self.largest = [max(each.capacity for each in options) for options in self.options]
        self.target = [whole(role.target, grain) for role in roles]
        now_whole = [whole(Fraction(now.get(name, 0)), grain) for name in self.names]
        # Capacity that each role is short of its target, and that it may lose above it.
        self.short = [
            target - amount for target, amount in zip(self.target, now_whole, strict=True)
        ]
        self.spare = [-short for short in self.short]
        # Of each role, how many instances of each shape this cycle adds.
        self.counts = [[0] * len(role.shapes) for role in roles]
        common = math.lcm(*(target for target in self.target if target))
        self.share = [common // target if target else 0 for target in self.target]
        self.bands = []
        for band in service.ratios:
            scale = common_denominator([band.min] if band.max is None else [band.min, band.max])
            self.bands.append(
                _Band(
                    self.place[band.numerator],
                    self.place[band.denominator],
                    scale,
                    whole(band.min, scale),
                    None if band.max is None else whole(band.max, scale),
                )
            )
        self.most_groups = service.limits.max_groups
        self.most_instances = service.limits.max_instances_per_group
        self.groups: list[Group] = []
        # Answers of the bands; groups that start alike ask alike.
        self.least: dict[tuple[_Band, _Amounts, _Amounts, int], _Amounts | None] = {}

    def wanting(self) -> list[int]:
        """Roles with unmet target."""
        return [role for role, short in enumerate(self.short) if short > 0]

    def most_behind(self) -> list[int]:
        """Wanting roles, the one furthest from its target first."""
        short, share = self.short, self.share
        if len(short) == 2 and short[0] > 0 and short[1] > 0:
            return [1, 0] if short[1] * share[1] > short[0] * share[0] else [0, 1]
        wanting = self.wanting()
        if len(wanting) > 1:
            wanting.sort(key=lambda role: -short[role] * share[role])
        return wanting

    def all_wanting(self) -> bool:
        return min(self.short) > 0

    def surplus(self) -> list[int]:
        """Roles that deliver more than their target."""
        return [role for role, spare in enumerate(self.spare) if spare > 0]

    def may_add(self, option: Option) -> bool:
        """Whether one more instance leaves no added one superfluous."""
        short = self.short[option.role]
        options = self.options[option.role]
        if short <= 0 or len(options) == 1:
            return short > 0
        smallest = option.capacity
        for each, count in zip(options, self.counts[option.role], strict=True):
            if count and each.capacity < smallest:
                smallest = each.capacity
        return option.capacity - smallest < short

    def count(self, option: Option, sign: int) -> None:
        """Count an added instance, or one that is taken back."""
        self.short[option.role] -= sign * option.capacity
        self.counts[option.role][option.number] += sign


class _Member:
    """A running instance that delivers."""

    __slots__ = ("nodes", "number", "role", "shape")

    def __init__(self, role: int, shape: int, nodes: tuple[int, ...], number: int) -> None:
        self.role = role
        self.shape = shape
        self.nodes = nodes
        self.number = number


class Group:
    """A deployment group as it grows and shrinks."""

    __slots__ = (
        "added",
        "allowed_bands",
        "allowed_missing",
        "delivered",
        "domain",
        "domains",
        "homes",
        "index",
        "occupied",
        "request",
        "running",
        "size",
        "source",
        "taken",
    )

    def __init__(self, index: int, request: Request, domain: int) -> None:
        self.index = index
        self.request = request
        self.domain = domain
        self.homes: tuple[int, ...] = ()
        # Where new instances are tried, in order; empty while that depends on what is placed.
        self.domains: tuple[int, ...] = ()
        if request.service.affinity.preferred is None:
            self.domains = (domain,)
        self.occupied = False
        self.source: RunningGroup | None = None
        self.running: dict[_Member, None] | None = None
        # Per new instance its option, and one after the other the nodes that they took.
        self.added: list[Option] = []
        self.taken: list[int] = []
        self.size = 0
        self.delivered = [0] * len(request.names)
        # The present faults are allowed: no worse than now.
        self.allowed_bands = [0] * len(request.bands)
        self.allowed_missing: frozenset[int] = frozenset()

    def read(self, ready: dict[tuple[str, str], int]) -> None:
        """Take what it delivers now and the faults that it has now."""
        request = self.request
        for (name, shape_name), count in ready.items():
            role = request.place[name]
            shape = request.service.roles[name].shape_index[shape_name]
            self.size += count
            self.delivered[role] += count * request.options[role][shape].capacity
        self.allowed_missing = frozenset(self.missing())
        self.allowed_bands = [max(0, *self.sides(band)) for band in request.bands]

    def sides(self, band: _Band) -> tuple[int, int]:
        """How far the ratio is below and above a band, scaled; negative inside."""
        numerator = self.delivered[band.numerator] * band.scale
        denominator = self.delivered[band.denominator]
        high = -1 if band.high is None else numerator - band.high * denominator
        return band.low * denominator - numerator, high

    def missing(self) -> list[int]:
        delivered = self.delivered
        if 0 not in delivered or not any(delivered):
            return []
        return [role for role, amount in enumerate(delivered) if not amount]

    def lacking(self) -> int:
        """A role that the group needs more of, :data:`NOTHING` when it is in its bands."""
        delivered = self.delivered
        if 0 in delivered:
            for role in self.missing():
                if role not in self.allowed_missing:
                    return role
        for band, allowed in zip(self.request.bands, self.allowed_bands, strict=True):
            numerator, denominator, scale, low, high = band
            scaled = delivered[numerator] * scale
            if low * delivered[denominator] - scaled > allowed:
                return numerator
            if high is not None and scaled - high * delivered[denominator] > allowed:
                return denominator
        return NOTHING

    def plentiful(self) -> int:
        """A role that the group has too much of, :data:`NOTHING` when it is in its bands."""
        if any(role not in self.allowed_missing for role in self.missing()):
            return next(role for role, amount in enumerate(self.delivered) if amount)
        for band, allowed in zip(self.request.bands, self.allowed_bands, strict=True):
            low, high = self.sides(band)
            if low > allowed:
                return band.denominator
            if high > allowed:
                return band.numerator
        return NOTHING

    def members(self, node_index: dict[str, int]) -> dict[_Member, None]:
        """Its running instances that deliver and were not removed, read when first needed."""
        if self.running is None:
            request = self.request
            roles = request.service.roles
            self.running = {}
            for number, each in enumerate(self.source.instances if self.source else ()):
                if each.state == "ready":
                    shape = roles[each.role].shape_index[each.shape]
                    nodes = tuple([node_index[name] for name in each.nodes])
                    self.running[_Member(request.place[each.role], shape, nodes, number)] = None
        return self.running


class _Base:
    """The ledger both greedies work on: free GPUs, groups and demands of one cycle."""

    def __init__(self, tree: TreeView, deadline: float | None, pace: float) -> None:
        self.tree = tree
        self.pace = pace
        self.placed = 0
        self.instance = tree.instance
        self.deadline = deadline
        self.decision = Decision()
        self.room = _Room(tree)
        self.freed: dict[int, int] = {}
        self.regained: dict[int, int] = {}
        self.requests = self._read_requests()
        self.groups: list[Group] = []
        self._read_groups()

    def _read_requests(self) -> dict[str, Request]:
        """The services with a role that scales out or in; the others keep what they have."""
        ready: dict[str, dict[tuple[str, str], int]] = {}
        for running, counts in zip(self.instance.running, self.tree.ready, strict=True):
            total = ready.setdefault(running.service, {})
            for kind, count in counts.items():
                total[kind] = total.get(kind, 0) + count
        requests = {}
        for number, service in enumerate(self.instance.services):
            if not number % LOOK_EVERY and self.late():
                break
            now: dict[str, int | Fraction] = {}
            for (name, shape_name), count in ready.get(service.name, {}).items():
                role = service.roles[name]
                capacity = role.shapes[role.shape_index[shape_name]].capacity
                if capacity.denominator == 1:
                    now[name] = now.get(name, 0) + count * capacity.numerator
                else:
                    now[name] = now.get(name, 0) + count * capacity
            if any(role.target != now.get(name, 0) for name, role in service.roles.items()):
                requests[service.name] = Request(self.room, service, number, now)
        return requests

    def _read_groups(self) -> None:
        tree = self.tree
        for index, running in enumerate(self.instance.running):
            request = self.requests.get(running.service)
            if request is None:
                continue
            if not len(self.groups) % LOOK_EVERY and self.late():
                self.requests.clear()
                break
            group = Group(index, request, tree.group_domain(running))
            if request.service.affinity.preferred is not None:
                group.homes = tuple(
                    home for home in tree.homes(running) if tree.within(home, group.domain)
                )
                group.domains = (*group.homes, group.domain) if group.homes else ()
            group.occupied = tree.draining[index]
            group.source = running
            group.read(tree.ready[index])
            self.groups.append(group)
            request.groups.append(group)

    def late(self) -> bool:
        if self.deadline is None:
            return False
        return time.monotonic() + self.pace * self.placed >= self.deadline

    def release(self, member: _Member, shape: Shape) -> None:
        """Return the GPUs of a removed instance to the view, as ``reuse_freed`` asks."""
        for node, (_, gpus) in zip(member.nodes, shape.pod_list, strict=True):
            self.freed[node] = self.freed.get(node, 0) + gpus
        for node in set(member.nodes):
            machine = self.instance.nodes[node]
            if machine.schedulable:
                before = max(0, machine.gpus - machine.reserved - self.tree.used[node])
                used = self.tree.used[node] - self.freed[node]
                after = max(0, machine.gpus - machine.reserved - used)
                gain = after - before - self.regained.get(node, 0)
                self.regained[node] = after - before
                self.room.take(node, -gain)

    def new_group(self, request: Request, domain: int) -> Group:
        index = len(self.instance.running) + len(self.decision.new_groups)
        group = Group(index, request, domain)
        self.groups.append(group)
        request.groups.append(group)
        self.decision.new_groups.append((request.number, domain))
        return group

    def may_open(self, request: Request) -> bool:
        most = request.most_groups
        if most is None:
            return True
        return sum(1 for each in request.groups if each.size or each.occupied) < most

    def finish(self) -> Decision:
        for group in self.groups:
            names = group.request.names
            for option, nodes in self.new_instances(group):
                self.decision.added.append(
                    Added(group.index, names[option.role], option.number, nodes)
                )
        return self.decision

    def new_instances(self, group: Group) -> Iterable[tuple[Option, tuple[int, ...]]]:
        """Option and the nodes of every pod of what was added to a group."""
        raise NotImplementedError

    def removal_order(self, group: Group) -> tuple[int, int]:
        """Groups on high tiers first, small ones before large ones."""
        members = group.members(self.instance.node_index)
        tiers = [self.tree.node_tier[node] for each in members for node in each.nodes]
        tiers += [self.tree.node_tier[node] for node in group.taken]
        return (-max(tiers, default=0), group.size)

    def run(self) -> Decision:
        """Serve every request in order of priority."""
        passes: tuple[Callable[[Request], None], ...] = (self.scale_out, self.scale_in)
        if self.instance.cycle.reuse_freed:
            passes = (self.scale_in, self.scale_out)
        ordered = sorted(self.requests.values(), key=lambda each: -each.service.priority)
        for serve in passes:
            for request in ordered:
                if self.late():
                    return self.finish()
                serve(request)
        return self.finish()

    def scale_out(self, request: Request) -> None:
        raise NotImplementedError

    def scale_in(self, request: Request) -> None:
        raise NotImplementedError


class GreedyCycle(_Base):
    """Whole P/D units."""

    def scale_out(self, request: Request) -> None:
        """Grow existing groups and open new ones, the cheapest sufficient tier first."""
        if not request.wanting():
            return
        for tier in range(HIGHEST + 1):
            for group in list(request.groups):
                self.grow(group, tier)
            self.open_groups(request, tier)
            if not request.wanting():
                return

    def open_groups(self, request: Request, tier: int) -> None:
        if not request.all_wanting():
            return
        for domain in self.new_domains(request, tier):
            while self.may_open(request):
                group = self.new_group(request, domain)
                if not self.grow(group, tier):
                    self.groups.pop()
                    request.groups.pop()
                    self.decision.new_groups.pop()
                    break
                if not request.all_wanting():
                    return
            if self.late():
                return

    def new_domains(self, request: Request, tier: int) -> list[int]:
        """Domains where every role finds a free place, the emptiest first."""
        level = request.service.affinity.required
        if level is None:
            usable = all(
                any(self.room.has_room(ROOT, option, tier) for option in options)
                for options in request.options
            )
            return [ROOT] if usable else []
        domains = self.room.domains(level)
        total = np.zeros(len(domains), dtype=np.int64)
        complete = np.ones(len(domains), dtype=bool)
        for options in request.options:
            best = self.room.gpus_by_domain(level, options[0], tier)
            for option in options[1:]:
                best = np.maximum(best, self.room.gpus_by_domain(level, option, tier))
            complete &= best > 0
            total += best
        domains, total = domains[complete], total[complete]
        found: list[int] = domains[np.lexsort((domains, -total))].tolist()
        return found

    def grow(self, group: Group, tier: int) -> bool:
        """Add P/D units to a group as long as one fits; whether any did."""
        grown = False
        while not self.late():
            for role in group.request.most_behind():
                if self.add_unit(group, role, tier):
                    grown = True
                    break
            else:
                break
        return grown

    def add_unit(self, group: Group, role: int, tier: int) -> bool:
        """Add one instance and whatever brings the group back into its bands, or nothing."""
        before = len(group.added)
        most = group.request.most_instances
        lacking = role
        while lacking != NOTHING:
            room = (most is None or group.size < most) and not self.late()
            if not (room and self.add_instance(group, lacking, tier)):
                self.undo(group, before)
                return False
            lacking = group.lacking()
            long = len(group.added) - before == LONG_UNIT
            if long and lacking != NOTHING and not self.completable(group, tier):
                self.undo(group, before)
                return False
        return True

    def completable(self, group: Group, tier: int) -> bool:
        """Whether further instances may bring a group into its bands; false is certain."""
        request, delivered = group.request, group.delivered
        reach = [self.reach(group, role, tier) for role in range(len(delivered))]
        for band, allowed in zip(request.bands, group.allowed_bands, strict=True):
            p, d = band.numerator, band.denominator
            question = (band, (delivered[p], delivered[d]), (reach[p], reach[d]), allowed)
            if question not in request.least:
                steps = (request.steps[p], request.steps[d])
                request.least[question] = band.least(question[1], steps, question[2], allowed)
            least = request.least[question]
            if least is None:
                return False
            if request.most_instances is not None:
                more = -((delivered[p] - least[0]) // request.largest[p])
                more -= (delivered[d] - least[1]) // request.largest[d]
                if group.size + more > request.most_instances:
                    return False
        return True

    def reach(self, group: Group, role: int, tier: int) -> int:
        """Most that a role of a group can come to deliver, by its demand and the free GPUs."""
        request = group.request
        short = request.short[role]
        if short <= 0:
            return group.delivered[role]
        fitting = sum(
            self.room.most(group.domain, option, tier) * option.capacity
            for option in request.options[role]
        )
        return group.delivered[role] + min(short - 1 + request.largest[role], fitting)

    def undo(self, group: Group, before: int) -> None:
        """Take back what was added last, all but the first ``before`` instances."""
        while len(group.added) > before:
            option = group.added.pop()
            self.room.give_back(option, group.taken, len(group.taken) - len(option.gpus))
            group.size -= 1
            group.delivered[option.role] -= option.capacity
            group.request.count(option, -1)
            self.placed -= 1

    def add_instance(self, group: Group, role: int, tier: int) -> bool:
        request = group.request
        domains = group.domains
        for option in request.options[role]:
            if not request.may_add(option):
                continue
            if not domains:
                domains = (self.home(group), group.domain)
            for domain in domains:
                if self.room.allocate(domain, option, tier, group.taken):
                    self.add(group, option)
                    return True
        return False

    def add(self, group: Group, option: Option) -> None:
        """Count an instance whose nodes are taken."""
        group.added.append(option)
        group.size += 1
        group.delivered[option.role] += option.capacity
        group.request.count(option, 1)
        self.placed += 1

    def new_instances(self, group: Group) -> Iterable[tuple[Option, tuple[int, ...]]]:
        start = 0
        for option in group.added:
            yield option, option.pod_nodes(group.taken, start)
            start += len(option.gpus)

    def home(self, group: Group) -> int:
        """The domain at the preferred level to try first, of a group that had none."""
        level = group.request.service.affinity.preferred
        assert level is not None
        rank = self.instance.levels.index(level)
        for member in group.members(self.instance.node_index):
            if self.tree.contains(group.domain, member.nodes[0]):
                return self.tree.node_path[member.nodes[0]][rank]
        if group.added:
            first = group.added[0].pod_nodes(group.taken, 0)[0]
            return self.tree.node_path[first][rank]
        options = [option for options in group.request.options for option in options]
        gpus = self.room.gpus
        return max(
            self.tree.at_level(level, group.domain),
            key=lambda each: sum(gpus(each, option, HIGHEST) for option in options),
        )

    def scale_in(self, request: Request) -> None:
        """Remove P/D units, from groups on high tiers first."""
        surplus = request.surplus()
        if not surplus:
            return
        for group in sorted(request.groups, key=self.removal_order):
            leaving = self.leaving(group)
            while any(self.remove_unit(group, role, leaving) for role in surplus):
                if self.late():
                    return

    def leaving(self, group: Group) -> list[list[_Leaving]]:
        """Per role, the running instances of a group in the order in which they may leave."""
        found: list[list[_Leaving]] = [[] for _ in group.request.names]
        for member in group.members(self.instance.node_index):
            tier = max(self.tree.node_tier[node] for node in member.nodes)
            path = self.tree.node_path[member.nodes[0]]
            at_home = any(home in path for home in group.homes)
            found[member.role].append(_Leaving(-tier, at_home, -member.number, member))
        for each in found:
            each.sort()
        return found

    def remove_unit(self, group: Group, role: int, leaving: list[list[_Leaving]]) -> bool:
        """Remove one instance and whatever brings the group back into its bands, or nothing."""
        request = group.request
        members = group.members(self.instance.node_index)
        unit: list[_Leaving] = []
        plentiful = role
        while plentiful != NOTHING:
            options = request.options[plentiful]
            spare = request.spare[plentiful]
            may_leave = (
                each for each in leaving[plentiful] if options[each.member.shape].capacity <= spare
            )
            each = None if self.late() else next(may_leave, None)
            if each is None:
                for each in reversed(unit):
                    option = request.options[each.member.role][each.member.shape]
                    insort(leaving[option.role], each)
                    members[each.member] = None
                    group.size += 1
                    group.delivered[option.role] += option.capacity
                    request.spare[option.role] += option.capacity
                return False
            option = options[each.member.shape]
            leaving[plentiful].remove(each)
            del members[each.member]
            group.size -= 1
            group.delivered[plentiful] -= option.capacity
            request.spare[plentiful] -= option.capacity
            unit.append(each)
            plentiful = group.plentiful()
        for each in unit:
            self.decision.removed.add((group.index, each.member.number))
            if self.instance.cycle.reuse_freed:
                option = request.options[each.member.role][each.member.shape]
                self.release(each.member, option.shape)
        return True


class _Leaving(NamedTuple):
    """A running instance by the order in which instances leave: high tier, not at home, young."""

    tier: int
    at_home: bool
    number: int
    member: _Member


class _GreedyPods(_Base):
    """Algorithm 4 to the letter: one pod at a time, every role a request of its own."""

    def __init__(self, tree: TreeView, deadline: float | None, pace: float) -> None:
        super().__init__(tree, deadline, pace)
        # By group: an instance may lack its last pods.
        self.settled: dict[int, list[tuple[Option, tuple[int, ...]]]] = {}

    def new_instances(self, group: Group) -> Iterable[tuple[Option, tuple[int, ...]]]:
        return self.settled.get(group.index, ())

    def scale_out(self, request: Request) -> None:
        for role in request.wanting():
            self.place_role(request, role)

    def place_role(self, request: Request, role: int) -> None:
        domains = self.tree.at_level(request.service.affinity.required)
        for domain in sorted(domains, key=self.tree.domain_tier):
            while not self.late() and self.place_instance(request, role, domain):
                pass

    def place_instance(self, request: Request, role: int, domain: int) -> bool:
        """Place pod by pod, whether or not all pods of the instance find a node."""
        for option in request.options[role]:
            if request.may_add(option):
                group = self.group_in(request, domain)
                if group is None:
                    return False
                nodes = self.place_pods(option.shape, domain)
                if nodes:
                    self.settle(group, option, nodes)
                    return len(nodes) == len(option.shape.pod_list)
        return False

    def place_pods(self, shape: Shape, domain: int) -> tuple[int, ...]:
        nodes: list[int] = []
        for gpu_type, gpus in shape.pod_list:
            pool = self.room.pools(gpu_type)[domain]
            node = self.room.fitting_node(pool, gpus, HIGHEST)
            if node == NOTHING:
                break
            self.room.take(node, gpus)
            nodes.append(node)
        return tuple(nodes)

    def settle(self, group: Group, option: Option, nodes: tuple[int, ...]) -> None:
        self.placed += 1
        self.settled.setdefault(group.index, []).append((option, nodes))
        group.taken.extend(nodes)
        group.size += 1
        group.request.count(option, 1)

    def group_in(self, request: Request, domain: int) -> Group | None:
        """A group of the domain with room under its limits; null when none may be opened."""
        most = request.most_instances
        for group in request.groups:
            if (
                group.domain == domain
                and (most is None or group.size < most)
                and (group.size or group.occupied or self.may_open(request))
            ):
                return group
        return self.new_group(request, domain) if self.may_open(request) else None

    def scale_in(self, request: Request) -> None:
        for group in sorted(request.groups, key=self.removal_order):
            members = group.members(self.instance.node_index)
            for member in list(members):
                option = request.options[member.role][member.shape]
                if option.capacity <= request.spare[member.role]:
                    request.spare[member.role] -= option.capacity
                    del members[member]
                    group.size -= 1
                    self.decision.removed.add((group.index, member.number))
                    if self.instance.cycle.reuse_freed:
                        self.release(member, option.shape)
