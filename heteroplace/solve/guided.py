"""A greedy that follows a solution of the linear relaxation.

The relaxation says where the groups of every service go and which cells their blocks take, in
fractions. Served by priority, every service first fills the groups that the relaxation opens most,
on the cells it chose, in whole P/D units; what is left is placed as Algorithm 4 would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from heteroplace.decision import Decision
from heteroplace.formulation.program import Floats
from heteroplace.formulation.variables import Flow, Model
from heteroplace.solve.greedy import HIGHEST, NOTHING, GreedyCycle, Group, Option, Request

ENOUGH = 0.5
# How often a class of priority is placed that lacks at most that part of what it wants.
ATTEMPTS = 4
LITTLE = 0.05
NONE = 1e-6


def guided(model: Model, x: Floats, deadline: float | None, pace: float) -> Decision:
    """Place one cycle by a solution of the relaxation.

    Parameters
    ----------
    model
        The formulation.
    x
        A value of every column, in general fractional.
    deadline, pace
        As in :func:`heteroplace.solve.greedy.greedy`.

    Returns
    -------
    Decision
        Always valid.
    """
    return _Guided(model, x, deadline, pace).run()


@dataclass
class _Wish:
    """What the relaxation puts into one group.

    Parameters
    ----------
    running
        Number of the running group; null for a new one.
    domain
        Domain of the group.
    share
        How far the group is opened; 1 for a running one.
    counts
        Instances by (role, shape, domain where they enter).
    """

    running: int | None
    domain: int
    share: float = 1.0
    counts: dict[tuple[str, int, int], float] = field(default_factory=dict)


_Holdings = list[tuple[Group, list[Option], list[int]]]


def lacking_gpus(request: Request) -> float:
    """GPUs of the preferred shapes that a service is short of."""
    roles = request.service.roles.values()
    return sum(
        short / target * float(role.target * role.gpus_per_capacity)
        for role, short, target in zip(roles, request.short, request.target, strict=True)
        if short > 0
    )


class _Ways:
    """Blocks of one size that the relaxation sends into domains and cells, less those placed."""

    def __init__(self, flow: Flow, values: list[float]) -> None:
        self.domains: dict[int, dict[int, float]] = defaultdict(dict)
        self.cells: dict[int, dict[int, float]] = defaultdict(dict)
        for domain, column in flow.passed.items():
            if values[column] >= ENOUGH:
                self.domains[flow.over[domain]][domain] = values[column]
        for cell, column in flow.cells.items():
            if values[column] >= ENOUGH:
                self.cells[flow.over_cell[cell]][cell] = values[column]

    def copy(self) -> _Ways:
        """The same, to be used up apart."""
        same = copy(self)
        same.domains = defaultdict(dict, {key: dict(each) for key, each in self.domains.items()})
        same.cells = defaultdict(dict, {key: dict(each) for key, each in self.cells.items()})
        return same

    def take(self, domain: int, fits: Callable[[int], bool]) -> int:
        """Send one more block from where it enters to a cell; :data:`NOTHING` if there is none."""
        cells = self.cells.get(domain, {})
        best = NOTHING
        for cell, value in cells.items():
            if value >= ENOUGH and (best == NOTHING or value > cells[best]) and fits(cell):
                best = cell
        if best != NOTHING:
            cells[best] -= 1.0
            return best
        below = self.domains.get(domain, {})
        for each in sorted(below, key=lambda each: -below[each]):
            if below[each] >= ENOUGH:
                best = self.take(each, fits)
                if best != NOTHING:
                    below[each] -= 1.0
                    return best
        return NOTHING


class _Guided(GreedyCycle):
    def __init__(self, model: Model, x: Floats, deadline: float | None, pace: float) -> None:
        super().__init__(model.tree, deadline, pace)
        self.wishes: dict[int, list[_Wish]] = defaultdict(list)
        by_candidate: dict[int, _Wish] = {}
        values: list[float] = x.tolist()
        for placement in model.placements_at(np.flatnonzero(x > NONE)):
            value = values[placement.column]
            wish = by_candidate.get(placement.candidate)
            if wish is None:
                candidate = model.candidate(placement.candidate)
                wish = _Wish(candidate.running, candidate.domain)
                switch = model.switch(candidate.index)
                if candidate.running is None and switch is not None:
                    wish.share = min(1.0, max(NONE, values[switch]))
                by_candidate[placement.candidate] = wish
                self.wishes[candidate.service].append(wish)
            wish.counts[placement.role, placement.shape, placement.domain] = value
        self.ways = {
            (model.blocks[number].gpu_type, model.blocks[number].gpus): _Ways(flow, values)
            for number, flow in model.flows.items()
        }

    def run(self) -> Decision:
        """Serve every class of priority: first what the relaxation wishes, then the rest."""
        ordered = sorted(self.requests.values(), key=lambda each: -each.service.priority)
        if self.instance.cycle.reuse_freed:
            for request in ordered:
                self.scale_in(request)
        for _, members in groupby(ordered, lambda each: each.service.priority):
            self.serve(list(members))
        if not self.instance.cycle.reuse_freed:
            for request in ordered:
                if not self.late():
                    self.scale_in(request)
        return self.finish()

    def serve(self, requests: list[Request]) -> None:
        """Place a class of services; where little is short, again with those first that were."""
        kept: list[tuple[Request, _Holdings]] = []
        left = self.ways
        wanted = sum(map(lacking_gpus, requests))
        least = float("inf")
        for attempt in range(ATTEMPTS):
            ways = {size: way.copy() for size, way in self.ways.items()}
            self.place(requests)
            lacking = {request.number: lacking_gpus(request) for request in requests}
            now = sum(lacking.values())
            if not now or now > LITTLE * wanted or attempt + 1 == ATTEMPTS or self.late():
                break
            if now < least:
                kept, least = [(request, self.holdings(request)) for request in requests], now
                left = self.ways
            for request in requests:
                self.take_back(request)
            self.ways = ways
            requests = sorted(requests, key=lambda each: -lacking[each.number])
        if now > least:
            for request in requests:
                self.take_back(request)
            for request, placed in kept:
                self.put_back(request, placed)
            self.ways = left

    def place(self, requests: list[Request]) -> None:
        """Place services as the relaxation wishes, then what is left as Algorithm 4 would."""
        for request in requests:
            self.fulfil(request)
        for request in requests:
            if not self.late():
                self.scale_out(request)
        for request in requests:
            if request.wanting() and not self.late():
                self.start_over(request)

    def start_over(self, request: Request) -> None:
        """Place a service anew as Algorithm 4 would, if that leaves it less unmet."""
        missing = self.missing(request)
        for tiers in (range(HIGHEST + 1), (HIGHEST,)):
            before = self.holdings(request)
            self.take_back(request)
            for tier in tiers:
                for group in list(request.groups):
                    self.grow(group, tier)
                self.open_groups(request, tier)
            now = self.missing(request)
            if now < missing:
                missing = now
            else:
                self.take_back(request)
                self.put_back(request, before)
            if not missing:
                return

    def holdings(self, request: Request) -> _Holdings:
        """What a service got in this cycle."""
        return [(group, list(group.added), list(group.taken)) for group in request.groups]

    def take_back(self, request: Request) -> None:
        """Take back all that a service got in this cycle."""
        for group in request.groups:
            self.undo(group, 0)
        request.groups = [group for group in request.groups if group.source is not None]

    def put_back(self, request: Request, placed: _Holdings) -> None:
        """Give a service that has nothing what it once got."""
        request.groups = [group for group, _, _ in placed]
        for group, added, taken in placed:
            self.redo(group, added, taken)

    def missing(self, request: Request) -> int:
        """What a service lacks, every role as a part of its target."""
        pairs = zip(request.short, request.share, strict=True)
        return sum(max(0, short) * share for short, share in pairs)

    def redo(self, group: Group, added: list[Option], taken: list[int]) -> None:
        """Put instances back to where they were."""
        start = 0
        for option in added:
            for gpus in option.gpus:
                self.room.take(taken[start], gpus)
                start += 1
            self.add(group, option)
        group.taken.extend(taken)

    def fulfil(self, request: Request) -> None:
        """Fill the groups that the relaxation wishes, the ones opened most first."""
        wishes = sorted(
            self.wishes.get(request.number, ()),
            key=lambda each: (each.running is None, -each.share),
        )
        running = {group.index: group for group in request.groups}
        for wish in wishes:
            if self.late() or not request.wanting():
                return
            if wish.running is not None:
                group = running[wish.running]
            elif request.all_wanting() and self.may_open(request):
                group = self.new_group(request, wish.domain)
            else:
                continue
            self.fill(group, wish)
            if not group.size and wish.running is None:
                self.groups.pop()
                request.groups.pop()
                self.decision.new_groups.pop()

    def fill(self, group: Group, wish: _Wish) -> None:
        """Add P/D units as far as the wish goes, if its group were opened wholly."""
        request = group.request
        self.left = [
            {
                (shape, domain): count / wish.share
                for (name, shape, domain), count in wish.counts.items()
                if name == role
            }
            for role in request.names
        ]
        while not self.late():
            roles = [
                role
                for role in request.most_behind()
                if any(count >= ENOUGH for count in self.left[role].values())
            ]
            if not any(self.add_wished(group, role) for role in roles):
                return

    def add_wished(self, group: Group, role: int) -> bool:
        """Add a unit of which every instance is as wished; or nothing."""
        self.wished = True
        before = [dict(each) for each in self.left]
        done = self.add_unit(group, role, HIGHEST)
        self.wished = False
        if not done:
            self.left = before
        return done

    wished = False
    left: list[dict[tuple[int, int], float]]

    def add_instance(self, group: Group, role: int, tier: int) -> bool:
        """As the relaxation wishes while it is followed; else like Algorithm 4."""
        if not self.wished:
            return super().add_instance(group, role, tier)
        request, left = group.request, self.left[role]
        for shape, domain in sorted(left, key=lambda key: -left[key]):
            option = request.options[role][shape]
            if not request.may_add(option) or not self.take_wished(group, option, domain):
                continue
            left[shape, domain] -= 1.0
            self.add(group, option)
            return True
        return False

    def take_wished(self, group: Group, option: Option, domain: int) -> bool:
        """Take the nodes of one instance that enters at a domain, on the cells of its flow."""
        if option.single:
            block = option.blocks[0]
            ways, largest = self.ways[block.gpu_type, block.gpus], self.room.largest
            cell = ways.take(domain, lambda cell: largest[cell] >= block.gpus)
            if cell != NOTHING:
                node = self.room.fullest(cell, block.gpus)
                self.room.take(node, block.gpus)
                group.taken.append(node)
                return True
        return self.room.allocate(domain, option, HIGHEST, group.taken)
