"""The oracle: the best plan of a tiny instance, found by looking at every plan.

It knows docs/problem.md and shares nothing with a solver. What it finds is filtered by
:func:`heteroplace.check` and ranked by :func:`heteroplace.evaluate`; the rules it applies itself
only skip plans that cannot pass or cannot win, and each says why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, product

from heteroplace.check import check, evaluate
from heteroplace.instance import Instance, RunningGroup, RunningInstance, Service, Shape
from heteroplace.plan import (
    Evaluation,
    MovedInstance,
    PlacedInstance,
    PlacedPod,
    Plan,
    PlanGroup,
)

ZERO = Fraction(0)
Sums = tuple[Fraction, ...]


class TooLarge(Exception):  # noqa: N818 - it is not a fault of the instance
    """The instance has more plans than the limit."""


@dataclass(frozen=True)
class Spot:
    """An instance of one role on named nodes, as it would be added or moved."""

    role: int
    capacity: Fraction
    placed: PlacedInstance
    use: tuple[tuple[int, int], ...]  # (node, GPUs) of every pod


@dataclass(frozen=True)
class Part:
    """What happens to one group; without a running group it is opened."""

    domain: str | None
    running: RunningGroup | None = None
    added: tuple[Spot, ...] = ()
    removed: tuple[RunningInstance, ...] = ()
    moved: tuple[tuple[RunningInstance, Spot], ...] = ()


@dataclass(frozen=True)
class Option:
    """One thing that can happen to some groups of a service, with what it does to others."""

    parts: tuple[Part, ...]
    arriving: tuple[tuple[int, int], ...] = ()  # (node, GPUs) of every added or moved pod
    freed: tuple[tuple[int, int], ...] = ()  # (node, GPUs) of every removed or moved pod
    added: tuple[tuple[int, Fraction], ...] = ()  # (role, capacity)
    removed: tuple[tuple[int, Fraction], ...] = ()
    moves: int = 0

    def __add__(self, other: Option) -> Option:
        return Option(
            self.parts + other.parts,
            self.arriving + other.arriving,
            self.freed + other.freed,
            self.added + other.added,
            self.removed + other.removed,
            self.moves + other.moves,
        )


NOTHING = Option(())


def brute_force(instance: Instance, limit: int = 200_000) -> tuple[Evaluation, Plan]:
    """Find the best plan of a tiny instance.

    Raises
    ------
    TooLarge
        If more than ``limit`` plans, or parts of plans, would have to be looked at.
    """
    return _Oracle(instance, limit).best()


class _Oracle:
    def __init__(self, instance: Instance, limit: int) -> None:
        self.instance = instance
        self.left = limit
        self.number = instance.node_index
        self.running: dict[str, list[RunningGroup]] = {
            service.name: [each for each in instance.running if each.service == service.name]
            for service in instance.services
        }
        self.now = {service.name: self._now(service) for service in instance.services}
        # What may arrive on a node: nothing on a cordoned one, else what is not reserved, less
        # what this cycle cannot or may not use again.
        self.room = [
            node.gpus - node.reserved if node.schedulable else 0 for node in instance.nodes
        ]
        for group in instance.running:
            for each in group.instances:
                if not (instance.cycle.reuse_freed and self._may_go(group, each)):
                    for node, gpus in self._use(group, each):
                        self.room[node] -= gpus

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooLarge("more plans than the limit")

    # ---------------------------------------------------------------------------------------
    # What runs
    # ---------------------------------------------------------------------------------------

    def _service(self, group: RunningGroup) -> Service:
        return self.instance.services[self.instance.service_index[group.service]]

    def _shape(self, group: RunningGroup, each: RunningInstance) -> Shape:
        role = self._service(group).roles[each.role]
        return role.shapes[role.shape_index[each.shape]]

    def _use(self, group: RunningGroup, each: RunningInstance) -> tuple[tuple[int, int], ...]:
        pods = self._shape(group, each).pod_list
        return tuple(
            (self.number[name], gpus) for name, (_, gpus) in zip(each.nodes, pods, strict=True)
        )

    def _yield(self, group: RunningGroup, each: RunningInstance) -> tuple[int, Fraction]:
        """Role number and capacity."""
        roles = list(self._service(group).roles)
        return roles.index(each.role), self._shape(group, each).capacity

    def _now(self, service: Service) -> Sums:
        """Delivered capacity of each role before the plan."""
        total = [ZERO] * len(service.roles)
        for group in self.running[service.name]:
            for each in group.instances:
                if each.state == "ready":
                    role, capacity = self._yield(group, each)
                    total[role] += capacity
        return tuple(total)

    def _may_lose(self, group: RunningGroup, each: RunningInstance) -> bool:
        """Whether the running rule lets the instance go: ready, in a role that scales in."""
        service = self._service(group)
        role, _ = self._yield(group, each)
        return each.state == "ready" and (
            self.now[service.name][role] > service.roles[each.role].target
        )

    def _may_go(self, group: RunningGroup, each: RunningInstance) -> bool:
        """Whether the instance can be removed or moved."""
        movable = self.instance.cycle.max_migrations > 0 and each.state == "ready"
        return movable or self._may_lose(group, each)

    # ---------------------------------------------------------------------------------------
    # All services together
    # ---------------------------------------------------------------------------------------

    def best(self) -> tuple[Evaluation, Plan]:
        """Look at plans by what they deliver, the best first.

        The minimum and unmet steps depend on the delivered capacities alone, so the first
        delivered capacities that a valid plan reaches decide them.
        """
        classes = [self._by_delivered(service) for service in self.instance.services]
        ranked: dict[Sums, list[tuple[Sums, ...]]] = defaultdict(list)
        for delivered in product(*classes):
            self._spend()
            ranked[self._need_steps(delivered)].append(delivered)
        distinct: dict[tuple[int, Sums], list[Option]] = {}
        for key in sorted(ranked):
            best: tuple[Evaluation, Plan] | None = None
            for delivered in ranked[key]:
                choices = []
                for index, sums in enumerate(delivered):
                    if (index, sums) not in distinct:
                        distinct[index, sums] = self._distinct(index, classes[index][sums])
                    choices.append(distinct[index, sums])
                for plan in self._combined(choices):
                    if not check(self.instance, plan):
                        found = evaluate(self.instance, plan)
                        if best is None or found.values < best[0].values:
                            best = found, plan
            if best is not None:
                assert best[0].values[: len(key)] == key
                return best
        raise AssertionError("doing nothing is always feasible")

    def _need_steps(self, delivered: tuple[Sums, ...]) -> Sums:
        """Values of the minimum and unmet steps."""
        steps = []
        for priority in self.instance.priorities:
            short = unmet = ZERO
            below = False
            for service, after in zip(self.instance.services, delivered, strict=True):
                if service.priority == priority:
                    now = self.now[service.name]
                    for role, had, has in zip(service.roles.values(), now, after, strict=True):
                        below |= had < role.min
                        short += max(ZERO, role.min - has) * role.gpus_per_capacity
                        unmet += max(ZERO, role.target - has) * role.gpus_per_capacity
            steps += [short, unmet] if below else [unmet]
        return tuple(steps)

    def _distinct(self, index: int, options: list[Option]) -> list[Option]:
        """Drop invalid options of one service and, of those alike on every node, all but one.

        Services meet only on nodes and in the number of moves. So of options that put the same
        pods on the same nodes, free the same GPUs and move as many, the one is best that is best
        alone, whatever the other services do.
        """
        alike: dict[tuple[object, ...], tuple[Sums, Option]] = {}
        for option in options:
            self._spend()
            plan = Plan(groups=self._groups(index, option))
            broken = {violation.constraint for violation in check(self.instance, plan)}
            if self.instance.cycle.reuse_freed:
                broken.discard("capacity")  # another service may make room
            if not broken:
                values = evaluate(self.instance, plan).values
                key = (tuple(sorted(option.arriving)), tuple(sorted(option.freed)), option.moves)
                if key not in alike or values < alike[key][0]:
                    alike[key] = values, option
        return [option for _, option in alike.values()]

    def _combined(self, choices: list[list[Option]]) -> Iterator[Plan]:
        """All choices of one option per service that can fit the nodes."""

        def extend(index: int, chosen: Option, groups: tuple[PlanGroup, ...]) -> Iterator[Plan]:
            if index == len(choices):
                self._spend()
                yield Plan(groups=groups)
                return
            for option, more in prepared[index]:
                both = chosen + option
                if self._fits(both):
                    yield from extend(index + 1, both, groups + more)

        prepared = [
            [(option, self._groups(index, option)) for option in options]
            for index, options in enumerate(choices)
        ]
        yield from extend(0, NOTHING, ())

    def _fits(self, option: Option) -> bool:
        """Whether what arrives can fit and moves are allowed; more never fits if less does not."""
        left = list(self.room)
        for node, gpus in option.arriving:
            left[node] -= gpus
            if left[node] < 0:
                return False
        return option.moves <= self.instance.cycle.max_migrations

    def _groups(self, index: int, option: Option) -> tuple[PlanGroup, ...]:
        """Write the option as a plan does; groups to which nothing happens are left out."""
        service = self.instance.services[index]
        groups = []
        for number, part in enumerate(option.parts):
            if part.added or part.removed or part.moved:
                new = part.running is None
                groups.append(
                    PlanGroup(
                        name=f"new {service.name} {number}" if new else part.running.name,
                        service=service.name,
                        domain=part.domain,
                        new=new,
                        added=tuple(spot.placed for spot in part.added),
                        removed=tuple(
                            PlacedInstance(
                                name=each.name,
                                role=each.role,
                                shape=each.shape,
                                pods=tuple(
                                    PlacedPod(node=self.instance.nodes[node].name, gpus=gpus)
                                    for node, gpus in self._use(part.running, each)
                                ),
                            )
                            for each in part.removed
                        ),
                        moved=tuple(
                            MovedInstance(
                                name=each.name,
                                role=each.role,
                                shape=each.shape,
                                pods=spot.placed.pods,
                            )
                            for each, spot in part.moved
                        ),
                    )
                )
        return tuple(groups)

    # ---------------------------------------------------------------------------------------
    # One service
    # ---------------------------------------------------------------------------------------

    def _by_delivered(self, service: Service) -> dict[Sums, list[Option]]:
        found: dict[Sums, list[Option]] = defaultdict(list)
        for option in self._service_options(service):
            delivered = list(self.now[service.name])
            for role, capacity in option.added:
                delivered[role] += capacity
            for role, capacity in option.removed:
                delivered[role] -= capacity
            found[tuple(delivered)].append(option)
        return found

    def _service_options(self, service: Service) -> Iterator[Option]:
        """One option for every running group and every group that could be opened."""
        slots: list[tuple[list[Option], bool]] = []  # (options, twin of the slot before)
        for group in self.running[service.name]:
            slots.append((list(self._running_options(service, group)), False))
        for domain in self._domains(service):
            options = list(self._new_options(service, domain))
            for twin in range(self._new_groups(service, domain)):
                slots.append((options, twin > 0))

        def extend(index: int, first: int, chosen: Option) -> Iterator[Option]:
            if index == len(slots):
                yield chosen
                return
            options, twin = slots[index]
            # Groups that the plan opens in one domain are alike: take their options in order.
            for number in range(first if twin else 0, len(options)):
                self._spend()
                both = chosen + options[number]
                if self._fits(both) and self._needed(service, both):
                    yield from extend(index + 1, number, both)

        yield from extend(0, 0, NOTHING)

    def _domains(self, service: Service) -> list[str | None]:
        level = service.affinity.required
        if level is None:
            return [None]
        return sorted({node.domains[level] for node in self.instance.nodes})

    def _new_groups(self, service: Service, domain: str | None) -> int:
        """How many groups of one domain it can pay to open.

        A group needs an instance of every role. Two groups of one domain can always be one, since
        bands hold for sums too, and one group costs no more, unless it is too large or the two
        have different homes.
        """
        added = sum(self._most_added(service, role) for role in range(len(service.roles)))
        most = added // len(service.roles)
        if service.limits.max_instances_per_group is None:
            homes = 1
            if service.affinity.preferred is not None:
                homes = len(
                    {
                        node.domains[service.affinity.preferred]
                        for node in self.instance.nodes
                        if domain is None or node.domains[service.affinity.required] == domain
                    }
                )
            most = min(most, homes)
        return most

    def _most_added(self, service: Service, index: int) -> int:
        """Most added instances of a role: all but one must fall short of what is needed."""
        role = list(service.roles.values())[index]
        need = max(ZERO, role.target - self.now[service.name][index])
        return -(-need // min(shape.capacity for shape in role.shapes))

    def _needed(self, service: Service, option: Option) -> bool:
        """Apply the target and running rules; more never keeps them if less does not."""
        now = self.now[service.name]
        for index, role in enumerate(service.roles.values()):
            added = [capacity for at, capacity in option.added if at == index]
            if added and now[index] + sum(added) - min(added) >= role.target:
                return False
            removed = [capacity for at, capacity in option.removed if at == index]
            if removed and now[index] - sum(removed) < role.target:
                return False
        return True

    # ---------------------------------------------------------------------------------------
    # One group
    # ---------------------------------------------------------------------------------------

    def _new_options(self, service: Service, domain: str | None) -> Iterator[Option]:
        """List what a group opened in a domain can hold; first nothing."""
        spots = self._spots(service, domain)
        for added in self._added(service, spots, NOTHING):
            if self._in_band(service, [], added):
                yield replace(added, parts=(Part(domain, added=_spots_of(added)),))

    def _running_options(self, service: Service, group: RunningGroup) -> Iterator[Option]:
        """List what can happen to a running group."""
        domain = self._group_domain(service, group)
        spots = self._spots(service, domain)
        ready = [each for each in group.instances if each.state == "ready"]
        before = [self._yield(group, each) for each in ready]
        can_go = [index for index, each in enumerate(ready) if self._may_lose(group, each)]
        for removed in _subsets(can_go, len(can_go)):
            stay = [index for index in range(len(ready)) if index not in removed]
            for moving in _subsets(stay, self.instance.cycle.max_migrations):
                destinations = [
                    [
                        spot
                        for spot in spots
                        if (spot.placed.role, spot.placed.shape)
                        == (ready[index].role, ready[index].shape)
                    ]
                    for index in moving
                ]
                for moved in product(*destinations):
                    change = Option(
                        parts=(),
                        arriving=tuple(pod for spot in moved for pod in spot.use),
                        freed=tuple(
                            pod
                            for index in (*removed, *moving)
                            for pod in self._use(group, ready[index])
                        ),
                        removed=tuple(before[index] for index in removed),
                        moves=len(moved),
                    )
                    if not (self._fits(change) and self._needed(service, change)):
                        continue
                    for option in self._added(service, spots, change):
                        if self._in_band(service, before, option):
                            part = Part(
                                domain,
                                group,
                                _spots_of(option),
                                tuple(ready[index] for index in removed),
                                tuple(
                                    (ready[index], spot)
                                    for index, spot in zip(moving, moved, strict=True)
                                ),
                            )
                            yield replace(option, parts=(part,))

    def _group_domain(self, service: Service, group: RunningGroup) -> str | None:
        level = service.affinity.required
        if level is None or group.domain is not None:
            return group.domain
        gpus: Counter[str] = Counter()
        for each in group.instances:
            for node, count in self._use(group, each):
                gpus[self.instance.nodes[node].domains[level]] += count
        return min(gpus, key=lambda domain: (-gpus[domain], domain))

    def _spots(self, service: Service, domain: str | None) -> list[Spot]:
        """Every role, shape and nodes in a domain that an arriving instance could have.

        Equal pods of one instance are alike, so their nodes are taken in order.
        """
        spots = []
        level = service.affinity.required
        for index, (name, role) in enumerate(service.roles.items()):
            for shape in role.shapes:
                pods = shape.pod_list
                within = shape.level or self.instance.levels[-1]
                places = [
                    [
                        number
                        for number, node in enumerate(self.instance.nodes)
                        if node.gpu_type == gpu_type
                        and gpus <= self.room[number]
                        and (level is None or node.domains[level] == domain)
                    ]
                    for gpu_type, gpus in pods
                ]
                for nodes in product(*places):
                    self._spend()
                    if any(
                        pods[at] == pods[other] and nodes[at] > nodes[other]
                        for at, other in combinations(range(len(pods)), 2)
                    ):
                        continue
                    # The domains that hold the pods; a single pod always lies in one.
                    held = {
                        at if within == "node" else self.instance.nodes[at].domains[within]
                        for at in nodes
                    }
                    if len(held) == 1:
                        placed = PlacedInstance(
                            role=name,
                            shape=str(shape.name),
                            pods=tuple(
                                PlacedPod(node=self.instance.nodes[at].name, gpus=gpus)
                                for at, (_, gpus) in zip(nodes, pods, strict=True)
                            ),
                        )
                        if within == "node":  # the pods count as one
                            use = ((nodes[0], shape.gpus),)
                        else:
                            use = tuple(
                                (at, gpus) for at, (_, gpus) in zip(nodes, pods, strict=True)
                            )
                        spots.append(Spot(index, shape.capacity, placed, use))
        return spots

    def _added(self, service: Service, spots: list[Spot], change: Option) -> Iterator[Option]:
        """Extend the change by every multiset of added instances that can fit and is needed."""

        def extend(first: int, option: Option) -> Iterator[Option]:
            yield option
            for number in range(first, len(spots)):
                self._spend()
                spot = spots[number]
                part = Part(None, added=(spot,))
                more = option + Option((part,), spot.use, added=((spot.role, spot.capacity),))
                if self._fits(more) and self._needed(service, more):
                    yield from extend(number, more)

        yield from extend(0, change)

    def _in_band(
        self, service: Service, before: list[tuple[int, Fraction]], option: Option
    ) -> bool:
        """Apply the ratio rule to one group."""
        roles = list(service.roles)
        now = _sums(len(roles), before)
        plus, minus = _sums(len(roles), option.added), _sums(len(roles), option.removed)
        after = [had + more - less for had, more, less in zip(now, plus, minus, strict=True)]
        for had, has in zip(now, after, strict=True):
            lacked = any(now) and not had
            if any(after) and not has and not lacked:
                return False
        for band in service.ratios:
            above, below = roles.index(band.numerator), roles.index(band.denominator)
            amounts = []
            for sums in (now, after):
                out = max(ZERO, band.min * sums[below] - sums[above])
                if band.max is not None:
                    out = max(out, sums[above] - band.max * sums[below])
                amounts.append(out)
            if amounts[1] > amounts[0]:
                return False
        return True


def _subsets(items: list[int], most: int) -> Iterator[tuple[int, ...]]:
    for size in range(min(most, len(items)) + 1):
        yield from combinations(items, size)


def _spots_of(option: Option) -> tuple[Spot, ...]:
    return tuple(spot for part in option.parts for spot in part.added)


def _sums(roles: int, pairs: Iterable[tuple[int, Fraction]]) -> list[Fraction]:
    total = [ZERO] * roles
    for role, capacity in pairs:
        total[role] += capacity
    return total
