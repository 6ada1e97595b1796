"""A plan under construction, in numbers instead of names."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from heteroplace.instance import Shape
from heteroplace.plan import (
    MovedInstance,
    PlacedInstance,
    PlacedPod,
    Plan,
    PlanGroup,
    assembled,
)
from heteroplace.topology import ROOT, TreeView, same_groups

_POD = set(PlacedPod.model_fields)
_PLACED = set(PlacedInstance.model_fields)
_MOVED = set(MovedInstance.model_fields)
_GROUP = set(PlanGroup.model_fields)


@dataclass(frozen=True, slots=True)
class Added:
    """A new instance.

    Parameters
    ----------
    group
        Number of the running group; new groups count on from there.
    role, shape
        Role name and place of the shape.
    nodes
        Node of each pod.
    """

    group: int
    role: str
    shape: int
    nodes: tuple[int, ...]


@dataclass
class Decision:
    """What is done to the running state.

    Parameters
    ----------
    new_groups
        (service, domain) of each opened group.
    added
        New instances.
    removed
        (group, instance) of running instances.
    moved
        New nodes of the pods of running instances.
    """

    new_groups: list[tuple[int, int]] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    removed: set[tuple[int, int]] = field(default_factory=set)
    moved: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)

    def plan(self, tree: TreeView) -> Plan:
        """Name everything.

        Parameters
        ----------
        tree
            The view the decision was made on.
        """
        return Naming(tree).plan(self)


class Naming:
    """Names decisions made on one tree; what they leave as it runs is named once for all of them.

    Parameters
    ----------
    tree
        The view the decisions are made on; not changed.

    Notes
    -----
    May be shared between threads. The plans share their parts, which are immutable.
    """

    def __init__(self, tree: TreeView) -> None:
        self.tree = tree
        self._unchanged: list[PlanGroup | None] = [None] * len(tree.instance.running)
        self._gpus: dict[str, dict[tuple[str, str], tuple[int, ...]]] = defaultdict(dict)
        self._pods: dict[tuple[tuple[str, ...], tuple[int, ...]], tuple[PlacedPod, ...]] = {}
        self._known: dict[tuple[int, str, int, tuple[int, ...]], PlacedInstance] = {}

    def updated(self, tree: TreeView) -> Naming:
        """What names decisions on another tree; groups that both instances share stay named.

        Parameters
        ----------
        tree
            The new view.

        Returns
        -------
        Naming
            Shares parts with this one, which stays as it is.
        """
        made = Naming(tree)
        made._unchanged = [
            None if number is None else self._unchanged[number]
            for number in same_groups(self.tree.instance, tree.instance)
        ]
        return made

    def plan(self, decision: Decision) -> Plan:
        """Name everything.

        Parameters
        ----------
        decision
            A decision made on the tree.
        """
        instance = self.tree.instance
        added = self._added(decision)
        gone: dict[int, set[int]] = defaultdict(set)
        for group, number in (*decision.removed, *decision.moved):
            gone[group].add(number)
        groups = []
        for index in range(len(instance.running)):
            named = self._unchanged[index] or self._running_group(index)
            if index in gone or index in added:
                named = self._changed(
                    named, index, added.get(index, ()), gone.get(index, set()), decision
                )
            groups.append(named)
        taken = {group.name for group in instance.running}
        for index, (service, domain) in enumerate(decision.new_groups, len(instance.running)):
            if index in added:
                groups.append(
                    PlanGroup.model_construct(
                        name=_fresh_name(self.tree, instance.services[service].name, domain, taken),
                        service=instance.services[service].name,
                        domain=self._domain_name(domain),
                        new=True,
                        added=added[index],
                        kept=(),
                        removed=(),
                        moved=(),
                    )
                )
        return Plan(instance_digest=instance.digest, groups=tuple(groups))

    def _added(self, decision: Decision) -> dict[int, tuple[PlacedInstance, ...]]:
        """Added instances by number of their group; equal ones are one object."""
        instance, known = self.tree.instance, self._known
        service_of = [instance.service_index[group.service] for group in instance.running]
        service_of += [service for service, _ in decision.new_groups]
        keys = [
            (service_of[each.group], each.role, each.shape, each.nodes) for each in decision.added
        ]
        for key in dict.fromkeys(keys):
            if key not in known:
                service, role, index, nodes = key
                shape = instance.services[service].roles[role].shapes[index]
                known[key] = assembled(
                    PlacedInstance,
                    {
                        "name": None,
                        "role": role,
                        "shape": shape.name,
                        "pods": self._numbered_pods(shape, nodes),
                    },
                    _PLACED,
                )
        added: dict[int, list[PlacedInstance]] = defaultdict(list)
        for each, key in zip(decision.added, keys, strict=True):
            added[each.group].append(known[key])
        return {group: tuple(placed) for group, placed in added.items()}

    def _domain_name(self, domain: int) -> str | None:
        return None if domain == ROOT else self.tree.domains[domain].name

    def _running_group(self, index: int) -> PlanGroup:
        """A running group of which everything is kept."""
        group = self.tree.instance.running[index]
        instance = self.tree.instance
        roles = instance.services[instance.service_index[group.service]].roles
        known, pods, kept = self._gpus[group.service], self._pods, []
        for running in group.instances:
            role, shape, nodes = running.role, running.shape, running.nodes
            gpus = known.get((role, shape))
            if gpus is None:
                gpus = _gpus(roles[role].shapes[roles[role].shape_index[shape]])
                known[role, shape] = gpus
            placed = pods.get((nodes, gpus)) or self._placed_pods(nodes, gpus)
            kept.append(
                assembled(
                    PlacedInstance,
                    {"name": running.name, "role": role, "shape": shape, "pods": placed},
                    _PLACED,
                )
            )
        named = assembled(
            PlanGroup,
            {
                "name": group.name,
                "service": group.service,
                "domain": self._domain_name(self.tree.group_domain(group)),
                "new": False,
                "added": (),
                "kept": tuple(kept),
                "removed": (),
                "moved": (),
            },
            _GROUP,
        )
        self._unchanged[index] = named
        return named

    def _changed(
        self,
        named: PlanGroup,
        index: int,
        added: tuple[PlacedInstance, ...],
        gone: set[int],
        decision: Decision,
    ) -> PlanGroup:
        group = self.tree.instance.running[index]
        kept, removed, moved = named.kept, [], []
        for number in sorted(gone):
            placed = named.kept[number]
            nodes = decision.moved.get((index, number))
            if nodes is None:
                removed.append(placed)
                continue
            shape = self.tree.shape_of(group, group.instances[number])
            moved.append(
                assembled(
                    MovedInstance,
                    {
                        "name": placed.name,
                        "role": placed.role,
                        "shape": placed.shape,
                        "pods": self._numbered_pods(shape, nodes),
                        "origin": placed.pods,
                    },
                    _MOVED,
                )
            )
        if removed or moved:
            kept = tuple(each for number, each in enumerate(kept) if number not in gone)
        return PlanGroup.model_construct(
            name=named.name,
            service=named.service,
            domain=named.domain,
            new=False,
            added=added,
            kept=kept,
            removed=tuple(removed),
            moved=tuple(moved),
        )

    def _numbered_pods(self, shape: Shape, nodes: tuple[int, ...]) -> tuple[PlacedPod, ...]:
        every = self.tree.instance.nodes
        return self._placed_pods(tuple([every[node].name for node in nodes]), _gpus(shape))

    def _placed_pods(self, nodes: tuple[str, ...], gpus: tuple[int, ...]) -> tuple[PlacedPod, ...]:
        pods = self._pods.get((nodes, gpus))
        if pods is None:
            pods = tuple(
                [
                    assembled(PlacedPod, {"node": node, "gpus": count}, _POD)
                    for node, count in zip(nodes, gpus, strict=False)
                ]
            )
            self._pods[nodes, gpus] = pods
        return pods


def _gpus(shape: Shape) -> tuple[int, ...]:
    """GPUs of each pod."""
    return tuple([gpus for _, gpus in shape.pod_list])


def _fresh_name(tree: TreeView, service: str, domain: int, taken: set[str]) -> str:
    """A name of a new group that no other group has."""
    base = (service if domain == ROOT else f"{service}@{tree.domains[domain].name}")[:240]
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name
