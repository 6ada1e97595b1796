"""A plan under construction, in numbers instead of names."""

from __future__ import annotations

from dataclasses import dataclass, field

from heteroplace.instance import Instance, Shape
from heteroplace.plan import MovedInstance, PlacedInstance, PlacedPod, Plan, PlanGroup
from heteroplace.topology import ROOT, TreeView


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
        instance = tree.instance
        added: list[list[PlacedInstance]] = [
            [] for _ in range(len(instance.running) + len(self.new_groups))
        ]
        for each in self.added:
            service = self._service(instance, each.group)
            shape = instance.services[service].roles[each.role].shapes[each.shape]
            added[each.group].append(
                PlacedInstance.model_construct(
                    name=None,
                    role=each.role,
                    shape=str(shape.name),
                    pods=_pods(instance, shape, each.nodes),
                )
            )
        groups = [
            self._running_group(tree, index, tuple(added[index]))
            for index in range(len(instance.running))
        ]
        taken = {group.name for group in instance.running}
        for index, (service, domain) in enumerate(self.new_groups, len(instance.running)):
            if added[index]:
                name = _fresh_name(tree, instance.services[service].name, domain, taken)
                groups.append(
                    PlanGroup.model_construct(
                        name=name,
                        service=instance.services[service].name,
                        domain=None if domain == ROOT else tree.domains[domain].name,
                        new=True,
                        added=tuple(added[index]),
                        kept=(),
                        removed=(),
                        moved=(),
                    )
                )
        return Plan(instance_digest=instance.digest, groups=tuple(groups))

    def _service(self, instance: Instance, group: int) -> int:
        if group < len(instance.running):
            return instance.service_index[instance.running[group].service]
        return self.new_groups[group - len(instance.running)][0]

    def _running_group(
        self, tree: TreeView, index: int, added: tuple[PlacedInstance, ...]
    ) -> PlanGroup:
        instance = tree.instance
        group = instance.running[index]
        domain = tree.group_domain(group)
        kept: list[PlacedInstance] = []
        removed: list[PlacedInstance] = []
        moved: list[MovedInstance] = []
        for number, running in enumerate(group.instances):
            shape = tree.shape_of(group, running)
            pods = tuple(
                PlacedPod.model_construct(node=name, gpus=gpus)
                for name, (_, gpus) in zip(running.nodes, shape.pod_list, strict=True)
            )
            name, role, shape_name = running.name, running.role, running.shape
            if (index, number) in self.moved:
                moved.append(
                    MovedInstance.model_construct(
                        name=name,
                        role=role,
                        shape=shape_name,
                        pods=_pods(instance, shape, self.moved[index, number]),
                        origin=pods,
                    )
                )
                continue
            placed = PlacedInstance.model_construct(
                name=name, role=role, shape=shape_name, pods=pods
            )
            (removed if (index, number) in self.removed else kept).append(placed)
        return PlanGroup.model_construct(
            name=group.name,
            service=group.service,
            domain=None if domain == ROOT else tree.domains[domain].name,
            new=False,
            added=added,
            kept=tuple(kept),
            removed=tuple(removed),
            moved=tuple(moved),
        )


def _pods(instance: Instance, shape: Shape, nodes: tuple[int, ...]) -> tuple[PlacedPod, ...]:
    return tuple(
        PlacedPod.model_construct(node=instance.nodes[node].name, gpus=gpus)
        for node, (_, gpus) in zip(nodes, shape.pod_list, strict=False)
    )


def _fresh_name(tree: TreeView, service: str, domain: int, taken: set[str]) -> str:
    """A name of a new group that no other group has."""
    base = (service if domain == ROOT else f"{service}@{tree.domains[domain].name}")[:240]
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name
