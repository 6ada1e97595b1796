"""The tree view of a cluster: domains, RDMA tiers, free GPUs and the cells that pool them.

A *cell* is the set of nodes of one GPU type inside one domain of the finest level: GPUs in a cell
are interchangeable, so solvers count in cells and name nodes afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

import networkx as nx

from heteroplace.faults import NODE_LEVEL
from heteroplace.instance import (
    Instance,
    Node,
    RunningGroup,
    RunningInstance,
    Service,
    Shape,
)

TIERS = ("low", "medium", "high")
ROOT = 0


@dataclass(frozen=True, slots=True)
class Domain:
    """A switch domain; number 0 is the whole fleet.

    Parameters
    ----------
    index
        Its number; parents come before children.
    rank
        Place of its level in :attr:`Instance.levels`; -1 for the fleet.
    name
        Its name at that level.
    parent
        Number of the domain above; -1 for the fleet.
    """

    index: int
    rank: int
    name: str
    parent: int


@dataclass(frozen=True, slots=True)
class Cell:
    """Nodes of one GPU type in one domain of the finest level.

    Parameters
    ----------
    index, domain
        Its number and its domain's.
    gpu_type
        The type of its GPUs.
    tier
        0 low, 1 medium, 2 high.
    nodes
        Numbers of its nodes.
    """

    index: int
    domain: int
    gpu_type: str
    tier: int
    nodes: tuple[int, ...]


class TreeView:
    """The paper's topological resource tree with the GPUs that are free in this cycle.

    Parameters
    ----------
    instance
        The problem; not changed.

    Attributes
    ----------
    domains
        All domains, the fleet first, parents before children.
    cells
        All cells.
    node_path
        Per node, the domain number at each level.
    node_cell, node_tier
        Per node, the number of its cell and its tier.
    used
        Per node, GPUs of running instances, draining included.
    free
        Per node, GPUs that this cycle may use; 0 on cordoned nodes.
    ready
        Per running group, the number of its ready instances by (role, shape name).
    draining
        Per running group, whether an instance of it drains.
    """

    used: list[int]
    ready: list[dict[tuple[str, str], int]]
    draining: list[bool]

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._read_fleet()
        self._read_running()
        self.free = list(map(_free, instance.nodes, self.used))

    def updated(self, instance: Instance) -> TreeView:
        """The view of an instance that shares parts with this view's.

        What is the same object in both is not read again, so it costs what differs. Equal to
        ``TreeView(instance)``.

        Parameters
        ----------
        instance
            The new problem.

        Returns
        -------
        TreeView
            Shares parts with this one, which stays as it is.
        """
        old = self.instance
        if instance.levels != old.levels or instance.rdma_levels != old.rdma_levels:
            return TreeView(instance)
        made = copy(self)
        made.instance = instance
        if instance.nodes is old.nodes or _same_fleet(old.nodes, instance.nodes):
            made._update_running(self, list(self.used))
            if instance.nodes is not old.nodes or made.used != self.used:
                made.free = list(self.free)
                for number, (node, was, used, before) in enumerate(
                    zip(instance.nodes, old.nodes, made.used, self.used, strict=True)
                ):
                    if node is not was or used != before:
                        made.free[number] = _free(node, used)
            return made
        made.__dict__ = {"instance": instance}
        made._read_fleet()
        place, known = old.node_index, self.used
        made._update_running(
            self, [known[place[node.name]] if node.name in place else 0 for node in instance.nodes]
        )
        made.free = list(map(_free, instance.nodes, made.used))
        return made

    def _update_running(self, before: TreeView, used: list[int]) -> None:
        """Take what runs from another view, and count anew what is another object there."""
        instance, old = self.instance, before.instance
        kept = same_groups(old, instance)
        self.ready, self.draining, self.used = [], [], used
        for number, group in zip(kept, instance.running, strict=True):
            if number is None:
                ready, draining = self._read_group(group, {})
            else:
                ready, draining = before.ready[number], before.draining[number]
            self.ready.append(ready)
            self.draining.append(draining)
        if len(old.running) > len(instance.running) - kept.count(None):
            stay = set(kept)
            for number, group in enumerate(old.running):
                if number not in stay:
                    self._forget_group(before, group)

    def _forget_group(self, before: TreeView, group: RunningGroup) -> None:
        number, used = self.instance.node_index, self.used
        for running in group.instances:
            pods = before.shape_of(group, running).pod_list
            for name, (_, gpus) in zip(running.nodes, pods, strict=True):
                if name in number:
                    used[number[name]] -= gpus

    def _read_fleet(self) -> None:
        """Number the domains and cells, find the tiers."""
        self.domains: list[Domain] = [Domain(ROOT, -1, "fleet", -1)]
        self._number: dict[tuple[int, str], int] = {}
        self._inside: dict[int, list[int]] = {}
        self._level_inside: dict[tuple[str, int], list[int]] = {}
        self.node_path: list[tuple[int, ...]] = []
        members = self._read_nodes()
        self._order_domains()
        self._types = self._types_by_domain(members)
        self._name_cells(members)

    def _read_nodes(self) -> dict[tuple[int, str], list[int]]:
        """Number the domains; the nodes of each cell by its domain and GPU type."""
        levels = self.instance.levels
        names_of = itemgetter(*levels)
        paths: dict[str | tuple[str, ...], tuple[int, ...]] = {}
        members: dict[tuple[int, str], list[int]] = {}
        for index, node in enumerate(self.instance.nodes):
            names = names_of(node.domains)
            path = paths.get(names)
            if path is None:
                path = self._path(names if len(levels) > 1 else (names,))
                paths[names] = path
            self.node_path.append(path)
            key = (path[-1], node.gpu_type)
            nodes = members.get(key)
            if nodes is None:
                members[key] = [index]
            else:
                nodes.append(index)
        return members

    def _path(self, names: tuple[str, ...]) -> tuple[int, ...]:
        parent, path = ROOT, []
        for rank, name in enumerate(names):
            number = self._number.get((rank, name))
            if number is None:
                number = len(self.domains)
                self._number[rank, name] = number
                self.domains.append(Domain(number, rank, name, parent))
            path.append(number)
            parent = number
        return tuple(path)

    def _order_domains(self) -> None:
        self.children: list[list[int]] = [[] for _ in self.domains]
        for domain in self.domains[1:]:
            self.children[domain.parent].append(domain.index)

    def _read_running(self) -> None:
        """Count what runs, once for all: GPUs by node, ready instances by group."""
        self.used = [0] * len(self.instance.nodes)
        self.ready, self.draining = [], []
        gpus_of: dict[str, dict[tuple[str, str], list[int]]] = {}
        for group in self.instance.running:
            known = gpus_of.setdefault(group.service, {})
            ready, draining = self._read_group(group, known)
            self.ready.append(ready)
            self.draining.append(draining)

    def _read_group(
        self, group: RunningGroup, known: dict[tuple[str, str], list[int]]
    ) -> tuple[dict[tuple[str, str], int], bool]:
        """Add a group's GPUs to its nodes; its ready instances, and whether one drains.

        ``known`` holds the GPUs of each pod of the service's shapes that were met before.
        """
        number, used = self.instance.node_index, self.used
        ready: dict[tuple[str, str], int] = {}
        draining = False
        for running in group.instances:
            kind = (running.role, running.shape)
            if running.state == "ready":
                ready[kind] = ready.get(kind, 0) + 1
            else:
                draining = True
            pods = known.get(kind)
            if pods is None:
                pods = [gpus for _, gpus in self.shape_of(group, running).pod_list]
                known[kind] = pods
            if len(pods) == 1:
                used[number[running.nodes[0]]] += pods[0]
            else:
                for name, gpus in zip(running.nodes, pods, strict=True):
                    used[number[name]] += gpus
        return ready, draining

    def _types_by_domain(self, members: dict[tuple[int, str], list[int]]) -> list[set[str]]:
        types: list[set[str]] = [set() for _ in self.domains]
        for (_, gpu_type), nodes in members.items():
            if any(self.instance.nodes[node].gpus for node in nodes):
                for domain in self.node_path[nodes[0]]:
                    types[domain].add(gpu_type)
        return types

    def _name_cells(self, members: dict[tuple[int, str], list[int]]) -> None:
        self.cells: list[Cell] = []
        self.node_cell = [0] * len(self.node_path)
        self.node_tier = [0] * len(self.node_path)
        for (domain, gpu_type), nodes in members.items():
            tier = self._tier(self.node_path[nodes[0]])
            cell = len(self.cells)
            self.cells.append(Cell(cell, domain, gpu_type, tier, tuple(nodes)))
            for index in nodes:
                self.node_cell[index] = cell
                self.node_tier[index] = tier

    def _tier(self, path: tuple[int, ...]) -> int:
        levels, names = self.instance.levels, self.instance.rdma_levels
        if len(self._types[path[levels.index(names.lower)]]) > 1:
            return 2
        if names.upper is not None and len(self._types[path[levels.index(names.upper)]]) > 1:
            return 1
        return 0

    def shape_of(self, group: RunningGroup, running: RunningInstance) -> Shape:
        """Shape of a running instance."""
        service = self.instance.services[self.instance.service_index[group.service]]
        role = service.roles[running.role]
        return role.shapes[role.shape_index[running.shape]]

    def domain_number(self, level: str, name: str) -> int:
        """Number of the domain ``name`` at ``level``."""
        return self._number[self.instance.levels.index(level), name]

    def find_domain(self, level: str, name: str | None) -> int | None:
        """Number of the domain ``name`` at ``level``, if there is one."""
        return None if name is None else self._number.get((self.instance.levels.index(level), name))

    def at_level(self, level: str | None, under: int = ROOT) -> list[int]:
        """Domains of a level below (or at) the domain ``under``; the fleet for no level."""
        if level is None:
            return [ROOT]
        found = self._level_inside.get((level, under))
        if found is None:
            rank = self.instance.levels.index(level)
            found = [index for index in self.below(under) if self.domains[index].rank == rank]
            self._level_inside[level, under] = found
        return list(found)

    def below(self, domain: int) -> list[int]:
        """The domain itself and everything below it, parents first."""
        found = self._inside.get(domain)
        if found is None:
            found = [domain]
            for index in found:
                found.extend(self.children[index])
            self._inside[domain] = found
        return list(found)

    def ancestor(self, domain: int, rank: int) -> int:
        """The domain at ``rank`` that contains ``domain``; ``domain`` itself if it is not finer."""
        while self.domains[domain].rank > rank:
            domain = self.domains[domain].parent
        return domain

    def within(self, inner: int, outer: int) -> bool:
        """Whether a domain is another one or lies in it."""
        return self.ancestor(inner, self.domains[outer].rank) == outer

    def contains(self, domain: int, node: int) -> bool:
        """Whether a node lies in a domain."""
        return domain == ROOT or domain in self.node_path[node]

    def domain_tier(self, domain: int) -> int:
        """Highest tier of a cell in the domain."""
        return self._domain_tiers[domain]

    @cached_property
    def _domain_tiers(self) -> list[int]:
        tiers = [0] * len(self.domains)
        for cell in self.cells:
            tiers[cell.domain] = max(tiers[cell.domain], cell.tier)
        # Children have higher numbers than their parents.
        for domain in reversed(self.domains[1:]):
            tiers[domain.parent] = max(tiers[domain.parent], tiers[domain.index])
        return tiers

    @cached_property
    def cells_below(self) -> list[list[int]]:
        """Per domain, the cells in it."""
        found: list[list[int]] = [[] for _ in self.domains]
        for cell in self.cells:
            domain = cell.domain
            while domain != -1:
                found[domain].append(cell.index)
                domain = self.domains[domain].parent
        return found

    def shape_rank(self, shape: Shape) -> int:
        """Rank of the level whose one domain holds the pods; ``len(levels)`` for one node."""
        if len(shape.pod_list) == 1 or shape.level == NODE_LEVEL:
            return len(self.instance.levels)
        return self.instance.levels.index(shape.level or self.instance.levels[-1])

    def group_domain(self, group: RunningGroup) -> int:
        """Domain a running group is bound to."""
        service = self.instance.services[self.instance.service_index[group.service]]
        level = service.affinity.required
        if level is None:
            return ROOT
        if group.domain is not None:
            return self.domain_number(level, group.domain)
        rank = self.instance.levels.index(level)
        gpus: dict[int, int] = defaultdict(int)
        for running in group.instances:
            for name, (_, count) in zip(
                running.nodes, self.shape_of(group, running).pod_list, strict=True
            ):
                gpus[self.node_path[self.instance.node_index[name]][rank]] += count
        ordered = sorted(gpus, key=lambda index: self.domains[index].name)
        return max(ordered, key=lambda index: gpus[index])

    def homes(self, group: RunningGroup) -> tuple[int, ...]:
        """Home domains of a running group at its service's preferred level."""
        service = self.instance.services[self.instance.service_index[group.service]]
        level = service.affinity.preferred
        if level is None:
            return ()
        rank = self.instance.levels.index(level)
        gpus: dict[int, int] = defaultdict(int)
        for running in group.instances:
            found = {self.node_path[self.instance.node_index[name]][rank] for name in running.nodes}
            if len(found) == 1:
                gpus[found.pop()] += self.shape_of(group, running).gpus
        most = max(gpus.values(), default=0)
        return tuple(sorted(index for index, count in gpus.items() if count == most))

    def in_one_domain(self, nodes: Iterable[int], rank: int) -> bool:
        """Whether nodes share a domain at ``rank`` (``len(levels)``: are one node)."""
        if rank == len(self.instance.levels):
            return len(set(nodes)) <= 1
        return len({self.node_path[node][rank] for node in nodes}) <= 1

    def graph(self) -> nx.DiGraph:
        """The tree of domains as a directed graph from coarse to fine.

        Returns
        -------
        networkx.DiGraph
            Nodes are domain numbers with ``name``, ``level`` (null for the fleet), ``tier`` (name),
            ``gpu_types``, ``gpus``, ``free`` (GPUs); edges run from parent to child.
        """
        graph = nx.DiGraph()
        gpus, free = [0] * len(self.domains), [0] * len(self.domains)
        for index, (node, path) in enumerate(zip(self.instance.nodes, self.node_path, strict=True)):
            for domain in (ROOT, *path):
                gpus[domain] += node.gpus
                free[domain] += self.free[index]
        for each in self.domains:
            graph.add_node(
                each.index,
                name=each.name,
                level=self.instance.levels[each.rank] if each.rank >= 0 else None,
                tier=TIERS[self.domain_tier(each.index)],
                gpu_types=sorted(self._types[each.index]) if each.index else [],
                gpus=gpus[each.index],
                free=free[each.index],
            )
            if each.parent >= 0:
                graph.add_edge(each.parent, each.index)
        return graph


def _free(node: Node, used: int) -> int:
    return max(0, node.gpus - node.reserved - used) if node.schedulable else 0


def _same_fleet(before: Sequence[Node], after: Sequence[Node]) -> bool:
    """Whether nodes differ at most in what may be used of them."""
    return len(before) == len(after) and all(
        new is old or (new.name == old.name and _same_machine(old, new))
        for old, new in zip(before, after, strict=True)
    )


def _others(before: Sequence[Node], after: Sequence[Node]) -> list[Node]:
    """Nodes that were not there as the same object."""
    found = list(after)
    if len(before) == len(after):
        found = [new for old, new in zip(before, after, strict=True) if new is not old]
    if len(found) > 1:
        known = set(map(id, before))
        found = [node for node in found if id(node) not in known]
    return found


def _same_machine(before: Node, after: Node) -> bool:
    return (
        before.gpu_type == after.gpu_type
        and before.gpus == after.gpus
        and before.domains == after.domains
    )


def same_groups(before: Instance, after: Instance) -> list[int | None]:
    """Which running groups two instances share.

    Parameters
    ----------
    before, after
        Two instances.

    Returns
    -------
    list of int or None
        Per running group of ``after``, its number in ``before`` if it is the same object there and
        its service and its nodes are what they were as far as what runs is concerned.
    """
    if before.nodes is not after.nodes:
        place = before.node_index
        for node in _others(before.nodes, after.nodes):
            if node.name in place and not _same_machine(before.nodes[place[node.name]], node):
                return [None] * len(after.running)
    number = {id(group): place for place, group in enumerate(before.running)}
    if before.services is not after.services:
        old = {service.name: service for service in before.services}
        other = {
            service.name
            for service in after.services
            if old.get(service.name) is not service and not _runs_alike(old, service)
        }
        if other:
            return [
                None if group.service in other else number.get(id(group)) for group in after.running
            ]
    return [number.get(id(group)) for group in after.running]


def _runs_alike(known: Mapping[str, Service], service: Service) -> bool:
    """Whether what runs of a service reads as it did before."""
    before = known.get(service.name)
    return (
        before is not None
        and before.affinity == service.affinity
        and before.roles.keys() == service.roles.keys()
        and all(before.roles[name].shapes == role.shapes for name, role in service.roles.items())
    )
