"""The paper's greedy (Algorithm 4) in whole P/D units, and its listing to the letter.

One cycle: requests by priority; for a scale-out the existing groups and a new group in every
compatible domain are candidates, the cheapest sufficient RDMA tier first, and what is placed leaves
the view at once; for a scale-in the groups on high tiers give first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from heteroplace.decision import Added, Decision
from heteroplace.footprint import Block, Footprint, footprint, pod_nodes
from heteroplace.instance import RatioBand, Service, Shape
from heteroplace.topology import TIERS, TreeView

ZERO = Fraction(0)
HIGHEST = len(TIERS) - 1


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
    return _Greedy(tree, deadline, pace).run()


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


@dataclass(slots=True)
class _Member:
    """A delivering instance of a group: running (``number``) or added (``number`` null)."""

    role: str
    shape: int
    nodes: tuple[int, ...]
    number: int | None


@dataclass(slots=True)
class _Group:
    """A deployment group as it grows and shrinks."""

    index: int
    service: Service
    domain: int
    homes: tuple[int, ...]
    members: list[_Member] = field(default_factory=list)
    delivered: dict[str, Fraction] = field(default_factory=dict)
    allowed_bands: list[Fraction] = field(default_factory=list)
    allowed_missing: frozenset[str] = frozenset()
    occupied: bool = False

    def add(self, member: _Member, capacity: Fraction) -> None:
        self.members.append(member)
        self.delivered[member.role] = self.delivered.get(member.role, ZERO) + capacity

    def drop(self, member: _Member, capacity: Fraction) -> None:
        # A unit that is undone was added last.
        place = next(i for i in reversed(range(len(self.members))) if self.members[i] is member)
        del self.members[place]
        self.delivered[member.role] -= capacity

    def remember(self) -> None:
        """Take the present faults as allowed: no worse than now."""
        self.allowed_bands = [
            max(*_band_sides(band, self.delivered)) for band in self.service.ratios
        ]
        self.allowed_missing = frozenset(self.missing())

    def missing(self) -> list[str]:
        if not any(self.delivered.values()):
            return []
        return [role for role in self.service.roles if not self.delivered.get(role)]

    def lacking(self) -> str | None:
        """A role that the group needs more of, null when it is in its bands."""
        for role in self.missing():
            if role not in self.allowed_missing:
                return role
        for band, allowed in zip(self.service.ratios, self.allowed_bands, strict=True):
            low, high = _band_sides(band, self.delivered)
            if low > allowed:
                return band.numerator
            if high > allowed:
                return band.denominator
        return None

    def plentiful(self) -> str | None:
        """A role that the group has too much of, null when it is in its bands."""
        absent = [role for role in self.missing() if role not in self.allowed_missing]
        if absent:
            return next(role for role in self.service.roles if self.delivered.get(role))
        for band, allowed in zip(self.service.ratios, self.allowed_bands, strict=True):
            low, high = _band_sides(band, self.delivered)
            if low > allowed:
                return band.denominator
            if high > allowed:
                return band.numerator
        return None


def _band_sides(band: RatioBand, delivered: dict[str, Fraction]) -> tuple[Fraction, Fraction]:
    """How far a ratio is below and above its band, in capacity of the numerator; 0 inside."""
    numerator = delivered.get(band.numerator, ZERO)
    denominator = delivered.get(band.denominator, ZERO)
    low = max(ZERO, band.min * denominator - numerator)
    high = ZERO if band.max is None else max(ZERO, numerator - band.max * denominator)
    return low, high


@dataclass(slots=True)
class _Demand:
    """What is left of a role's request."""

    target: Fraction
    now: Fraction
    added: Fraction = ZERO
    removed: Fraction = ZERO
    shapes: dict[int, int] = field(default_factory=dict)

    def may_add(self, shapes: tuple[Shape, ...], shape: int) -> bool:
        """Whether one more instance leaves no added one superfluous."""
        if self.now >= self.target:
            return False
        smallest = min(
            (shapes[each].capacity for each, count in self.shapes.items() if count),
            default=shapes[shape].capacity,
        )
        smallest = min(smallest, shapes[shape].capacity)
        return self.now + self.added + shapes[shape].capacity - smallest < self.target

    def may_remove(self, capacity: Fraction) -> bool:
        return self.now - self.removed - capacity >= self.target


class _Base:
    """The ledger both greedies work on: free GPUs, groups and demands of one cycle."""

    def __init__(self, tree: TreeView, deadline: float | None, pace: float) -> None:
        self.tree = tree
        self.pace = pace
        self.placed = 0
        self.instance = tree.instance
        self.deadline = deadline
        self.decision = Decision()
        self.free = list(tree.free)
        # Per cell: the nodes by their free GPUs, the largest and the total of those.
        self.rooms: list[dict[int, dict[int, None]]] = []
        for cell in tree.cells:
            rooms: dict[int, dict[int, None]] = {}
            for node in cell.nodes:
                rooms.setdefault(self.free[node], {})[node] = None
            self.rooms.append(rooms)
        self.cell_free = [max(rooms) for rooms in self.rooms]
        self.cell_total = [sum(self.free[node] for node in cell.nodes) for cell in tree.cells]
        self.levels = len(self.instance.levels)
        self.cells_of: dict[tuple[int, str], list[int]] = {}
        self.groups: list[_Group] = []
        self.of_service: dict[str, list[_Group]] = {
            service.name: [] for service in self.instance.services
        }
        self.prints: dict[tuple[str, str], list[Footprint]] = {
            (service.name, name): [footprint(tree, shape) for shape in role.shapes]
            for service in self.instance.services
            for name, role in service.roles.items()
        }
        self.demands: dict[tuple[str, str], _Demand] = {}
        self._read_running()

    def _read_running(self) -> None:
        now: dict[tuple[str, str], Fraction] = {}
        index_of = self.instance.node_index
        for index, running in enumerate(self.instance.running):
            service = self.instance.services[self.instance.service_index[running.service]]
            group = _Group(
                index,
                service,
                domain := self.tree.group_domain(running),
                tuple(home for home in self.tree.homes(running) if self.tree.within(home, domain)),
                occupied=any(each.state == "draining" for each in running.instances),
            )
            for number, each in enumerate(running.instances):
                if each.state == "ready":
                    shape = service.roles[each.role].shape_index[each.shape]
                    capacity = service.roles[each.role].shapes[shape].capacity
                    nodes = tuple(index_of[name] for name in each.nodes)
                    group.add(_Member(each.role, shape, nodes, number), capacity)
                    key = (service.name, each.role)
                    now[key] = now.get(key, ZERO) + capacity
            group.remember()
            self.groups.append(group)
            self.of_service[service.name].append(group)
        for service in self.instance.services:
            for name, role in service.roles.items():
                key = (service.name, name)
                self.demands[key] = _Demand(role.target, now.get(key, ZERO))

    def late(self) -> bool:
        if self.deadline is None:
            return False
        return time.monotonic() + self.pace * self.placed >= self.deadline

    def by_priority(self) -> list[Service]:
        return sorted(self.instance.services, key=lambda service: -service.priority)

    def shape(self, service: Service, member: _Member) -> Shape:
        return service.roles[member.role].shapes[member.shape]

    # -- GPUs ------------------------------------------------------------------------------

    def take(self, node: int, gpus: int) -> None:
        """Virtual allocation; a negative number gives GPUs back."""
        cell = self.tree.node_cell[node]
        rooms = self.rooms[cell]
        room = self.free[node]
        del rooms[room][node]
        if not rooms[room]:
            del rooms[room]
        self.free[node] = room - gpus
        rooms.setdefault(room - gpus, {})[node] = None
        self.cell_free[cell] = max(rooms)
        self.cell_total[cell] -= gpus

    def cells(self, domain: int, gpu_type: str) -> list[int]:
        """Cells of a type in a domain, low tiers first."""
        key = (domain, gpu_type)
        found = self.cells_of.get(key)
        if found is None:
            found = [
                cell
                for cell in self.tree.cells_below[domain]
                if self.tree.cells[cell].gpu_type == gpu_type
            ]
            found.sort(key=lambda cell: self.tree.cells[cell].tier)
            self.cells_of[key] = found
        return found

    def fitting_node(self, domain: int, block: Block, tier: int) -> int | None:
        """The fullest node with room in the lowest tier; null when there is none."""
        for cell in self.cells(domain, block.gpu_type):
            if self.tree.cells[cell].tier > tier:
                break
            if self.cell_free[cell] >= block.gpus:
                rooms = self.rooms[cell]
                return next(iter(rooms[min(room for room in rooms if room >= block.gpus)]))
        return None

    def allocate(self, domain: int, wanted: Footprint, tier: int) -> dict[Block, list[int]] | None:
        """Take the blocks of one instance inside one domain of its level; null when none fits."""
        if wanted.single:
            block = wanted.blocks[0][0]
            node = self.fitting_node(domain, block, tier)
            if node is None:
                return None
            self.take(node, block.gpus)
            return {block: [node]}
        for place in self.places(domain, wanted.rank):
            taken = self._allocate_in(place, wanted, tier)
            if taken is not None:
                return taken
        return None

    def places(self, domain: int, rank: int) -> list[int]:
        """Domains of a rank inside a domain, low tiers first; the domain itself if it is finer."""
        if self.tree.domains[domain].rank >= rank:
            return [domain]
        inside = [each for each in self.tree.below(domain) if self.tree.domains[each].rank == rank]
        return sorted(inside, key=self.tree.domain_tier)

    def _allocate_in(
        self, domain: int, wanted: Footprint, tier: int
    ) -> dict[Block, list[int]] | None:
        taken: dict[Block, list[int]] = {}
        for block, count in sorted(wanted.blocks, key=lambda pair: -pair[0].gpus):
            for _ in range(count):
                node = self.fitting_node(domain, block, tier)
                if node is None:
                    self.give_back(taken)
                    return None
                self.take(node, block.gpus)
                taken.setdefault(block, []).append(node)
        return taken

    def give_back(self, taken: dict[Block, list[int]]) -> None:
        for block, nodes in taken.items():
            for node in nodes:
                self.take(node, -block.gpus)

    def release(self, service: Service, member: _Member) -> None:
        """Return the GPUs of a removed instance to the view, as ``reuse_freed`` asks."""
        for node, (_, gpus) in zip(member.nodes, self.shape(service, member).pod_list, strict=True):
            self.freed[node] = self.freed.get(node, 0) + gpus
        for node in set(member.nodes):
            machine = self.instance.nodes[node]
            if machine.schedulable:
                before = max(0, machine.gpus - machine.reserved - self.tree.used[node])
                used = self.tree.used[node] - self.freed[node]
                after = max(0, machine.gpus - machine.reserved - used)
                gain = after - before - self.regained.get(node, 0)
                self.regained[node] = after - before
                self.take(node, -gain)

    def new_group(self, service: Service, domain: int) -> _Group:
        homes: tuple[int, ...] = ()
        group = _Group(len(self.groups), service, domain, homes)
        group.remember()
        self.groups.append(group)
        self.of_service[service.name].append(group)
        self.decision.new_groups.append((self.instance.service_index[service.name], domain))
        return group

    def may_open(self, service: Service) -> bool:
        most = service.limits.max_groups
        groups = self.of_service[service.name]
        return most is None or sum(1 for each in groups if each.members or each.occupied) < most

    def finish(self) -> Decision:
        for group in self.groups:
            for member in group.members:
                if member.number is None:
                    self.decision.added.append(
                        Added(group.index, member.role, member.shape, member.nodes)
                    )
        return self.decision

    def removal_order(self, group: _Group) -> tuple[int, int]:
        """Groups on high tiers first, small ones before large ones."""
        tiers = [self.tree.node_tier[node] for each in group.members for node in each.nodes]
        return (-max(tiers, default=0), len(group.members))

    freed: dict[int, int]
    regained: dict[int, int]

    def run(self) -> Decision:
        """Serve every request in order of priority."""
        self.freed, self.regained = {}, {}
        passes: tuple[Callable[[Service], None], ...] = (self.scale_out, self.scale_in)
        if self.instance.cycle.reuse_freed:
            passes = (self.scale_in, self.scale_out)
        for serve in passes:
            for service in self.by_priority():
                if self.late():
                    return self.finish()
                serve(service)
        return self.finish()

    def scale_out(self, service: Service) -> None:
        raise NotImplementedError

    def scale_in(self, service: Service) -> None:
        raise NotImplementedError


class _Greedy(_Base):
    """Whole P/D units."""

    def scale_out(self, service: Service) -> None:
        """Grow existing groups and open new ones, the cheapest sufficient tier first."""
        if not any(self.wanting(service)):
            return
        for tier in range(HIGHEST + 1):
            for group in list(self.of_service[service.name]):
                self.grow(group, tier)
            self.open_groups(service, tier)
            if not any(self.wanting(service)):
                return

    def wanting(self, service: Service) -> Iterable[str]:
        """Roles with unmet target."""
        for name in service.roles:
            demand = self.demands[service.name, name]
            if demand.now + demand.added < demand.target:
                yield name

    def open_groups(self, service: Service, tier: int) -> None:
        if len(list(self.wanting(service))) < len(service.roles):
            return
        for domain in self.new_domains(service, tier):
            while self.may_open(service):
                group = self.new_group(service, domain)
                if not self.grow(group, tier):
                    self.groups.pop()
                    self.of_service[service.name].pop()
                    self.decision.new_groups.pop()
                    break
                if len(list(self.wanting(service))) < len(service.roles):
                    return
            if self.late():
                return

    def new_domains(self, service: Service, tier: int) -> list[int]:
        """Domains where every role finds a free place, the emptiest first."""
        found = []
        for domain in self.tree.at_level(service.affinity.required):
            room = 0
            for name in service.roles:
                best = max(
                    self.room(domain, wanted, tier) for wanted in self.prints[service.name, name]
                )
                if not best:
                    break
                room += best
            else:
                found.append((-room, domain))
        return [domain for _, domain in sorted(found)]

    def room(self, domain: int, wanted: Footprint, tier: int) -> int:
        """Free GPUs of the footprint's types in usable cells; 0 when a block fits nowhere."""
        total = 0
        for block, _ in wanted.blocks:
            free = 0
            for cell in self.cells(domain, block.gpu_type):
                if self.tree.cells[cell].tier > tier:
                    break
                if self.cell_free[cell] >= block.gpus:
                    free += self.cell_total[cell]
            if not free:
                return 0
            total += free
        return total

    def grow(self, group: _Group, tier: int) -> bool:
        """Add P/D units to a group as long as one fits; whether any did."""
        grown = False
        while not self.late() and any(
            self.add_unit(group, role, tier) for role in self.most_behind(group.service)
        ):
            grown = True
        return grown

    def most_behind(self, service: Service) -> list[str]:
        """Wanting roles, the one furthest from its target first."""
        return sorted(
            self.wanting(service),
            key=lambda name: (
                ((demand := self.demands[service.name, name]).now + demand.added) / demand.target
            ),
        )

    def add_unit(self, group: _Group, role: str, tier: int) -> bool:
        """Add one instance and whatever brings the group back into its bands, or nothing."""
        unit: list[tuple[_Member, dict[Block, list[int]]]] = []
        most = group.service.limits.max_instances_per_group
        lacking: str | None = role
        while lacking is not None:
            room = (most is None or len(group.members) < most) and not self.late()
            if not (room and self.add_instance(group, lacking, tier, unit)):
                for member, taken in reversed(unit):
                    self.give_back(taken)
                    self._count(group, member, -1)
                    group.drop(member, self.shape(group.service, member).capacity)
                return False
            lacking = group.lacking()
        return True

    def add_instance(
        self,
        group: _Group,
        role: str,
        tier: int,
        unit: list[tuple[_Member, dict[Block, list[int]]]],
    ) -> bool:
        demand = self.demands[group.service.name, role]
        shapes = group.service.roles[role].shapes
        for index, wanted in enumerate(self.prints[group.service.name, role]):
            if not demand.may_add(shapes, index):
                continue
            taken = None
            for domain in (*self.homes(group), group.domain):
                taken = self.allocate(domain, wanted, tier)
                if taken is not None:
                    break
            if taken is not None:
                member = _Member(role, index, pod_nodes(shapes[index], taken), None)
                unit.append((member, taken))
                group.add(member, shapes[index].capacity)
                self._count(group, member, 1)
                return True
        return False

    def homes(self, group: _Group) -> tuple[int, ...]:
        """Domains to try first: the group's home at the preferred level."""
        level = group.service.affinity.preferred
        if level is None or group.homes:
            return group.homes
        inside = self.tree.at_level(level, group.domain)
        for member in group.members:
            for home in inside:
                if self.tree.contains(home, member.nodes[0]):
                    return (home,)
        prints = [
            wanted
            for name in group.service.roles
            for wanted in self.prints[group.service.name, name]
        ]
        return (max(inside, key=lambda each: sum(self.room(each, w, HIGHEST) for w in prints)),)

    def _count(self, group: _Group, member: _Member, sign: int) -> None:
        demand = self.demands[group.service.name, member.role]
        self.placed += sign
        demand.added += sign * self.shape(group.service, member).capacity
        demand.shapes[member.shape] = demand.shapes.get(member.shape, 0) + sign

    def scale_in(self, service: Service) -> None:
        """Remove P/D units, from groups on high tiers first."""
        surplus = [
            name
            for name in service.roles
            if self.demands[service.name, name].now > self.demands[service.name, name].target
        ]
        if not surplus:
            return
        for group in sorted(self.of_service[service.name], key=self.removal_order):
            while any(self.remove_unit(group, role) for role in surplus):
                if self.late():
                    return

    def remove_unit(self, group: _Group, role: str) -> bool:
        """Remove one instance and whatever brings the group back into its bands, or nothing."""
        unit: list[_Member] = []
        plentiful: str | None = role
        while plentiful is not None:
            member = self.removable(group, plentiful)
            if member is None:
                for each in reversed(unit):
                    capacity = self.shape(group.service, each).capacity
                    group.add(each, capacity)
                    self.demands[group.service.name, each.role].removed -= capacity
                return False
            capacity = self.shape(group.service, member).capacity
            group.drop(member, capacity)
            self.demands[group.service.name, member.role].removed += capacity
            unit.append(member)
            plentiful = group.plentiful()
        for member in unit:
            assert member.number is not None
            self.decision.removed.add((group.index, member.number))
            if self.instance.cycle.reuse_freed:
                self.release(group.service, member)
        return True

    def removable(self, group: _Group, role: str) -> _Member | None:
        """The instance of a role on the highest tier that may leave."""
        demand = self.demands[group.service.name, role]
        candidates = [
            member
            for member in group.members
            if member.number is not None
            and member.role == role
            and demand.may_remove(self.shape(group.service, member).capacity)
        ]
        return max(
            candidates,
            key=lambda member: (
                max(self.tree.node_tier[node] for node in member.nodes),
                not any(self.tree.contains(home, member.nodes[0]) for home in group.homes),
                member.number or 0,
            ),
            default=None,
        )


class _GreedyPods(_Base):
    """Algorithm 4 to the letter: one pod at a time, every role a request of its own."""

    def scale_out(self, service: Service) -> None:
        for name in service.roles:
            self.place_role(service, name)

    def place_role(self, service: Service, role: str) -> None:
        domains = self.tree.at_level(service.affinity.required)
        for domain in sorted(domains, key=self.tree.domain_tier):
            while not self.late() and self.place_instance(service, role, domain):
                pass

    def place_instance(self, service: Service, role: str, domain: int) -> bool:
        """Place pod by pod, whether or not all pods of the instance find a node."""
        demand = self.demands[service.name, role]
        shapes = service.roles[role].shapes
        for shape in range(len(shapes)):
            if demand.may_add(shapes, shape):
                group = self.group_in(service, domain)
                if group is None:
                    return False
                nodes = self.place_pods(service, role, shape, domain)
                if nodes:
                    self.settle(group, role, shape, nodes)
                    return len(nodes) == len(shapes[shape].pod_list)
        return False

    def place_pods(self, service: Service, role: str, shape: int, domain: int) -> tuple[int, ...]:
        nodes: list[int] = []
        for gpu_type, gpus in service.roles[role].shapes[shape].pod_list:
            node = self.fitting_node(domain, Block(gpu_type, gpus), HIGHEST)
            if node is None:
                break
            self.take(node, gpus)
            nodes.append(node)
        return tuple(nodes)

    def settle(self, group: _Group, role: str, shape: int, nodes: tuple[int, ...]) -> None:
        capacity = group.service.roles[role].shapes[shape].capacity
        self.placed += 1
        group.add(_Member(role, shape, nodes, None), capacity)
        demand = self.demands[group.service.name, role]
        demand.added += capacity
        demand.shapes[shape] = demand.shapes.get(shape, 0) + 1

    def group_in(self, service: Service, domain: int) -> _Group | None:
        """A group of the domain with room under its limits; null when none may be opened."""
        most = service.limits.max_instances_per_group
        for group in self.of_service[service.name]:
            counted = bool(group.members) or group.occupied or self.may_open(service)
            room = most is None or len(group.members) < most
            if group.domain == domain and counted and room:
                return group
        return self.new_group(service, domain) if self.may_open(service) else None

    def scale_in(self, service: Service) -> None:
        for group in sorted(self.of_service[service.name], key=self.removal_order):
            for member in list(group.members):
                demand = self.demands[service.name, member.role]
                capacity = self.shape(service, member).capacity
                if member.number is not None and demand.may_remove(capacity):
                    demand.removed += capacity
                    group.drop(member, capacity)
                    self.decision.removed.add((group.index, member.number))
                    if self.instance.cycle.reuse_freed:
                        self.release(service, member)
