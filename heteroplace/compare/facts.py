"""What a row says of its instance, and of a plan for it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from heteroplace.generate import Family
from heteroplace.instance import Affinity, Instance, Service, Shape
from heteroplace.plan import PlacedInstance, Plan, PlanGroup, Result
from heteroplace.topology import ROOT, TreeView

HIGH = 2


def affinity_kind(affinity: Affinity) -> str:
    """Short name of an affinity, as in ``none``, ``s2`` and ``s2+s1`` (required + preferred)."""
    required = affinity.required or "none"
    return required if affinity.preferred is None else f"{required}+{affinity.preferred}"


def affinity_knob(family: Family) -> str:
    """The affinity knob in one word or as weights, as in ``none=3,s1=2``."""
    weights = {kind: weight for kind, weight in family.affinity.items() if weight}
    if len(weights) == 1:
        return next(iter(weights))
    return ",".join(f"{kind}={weight:g}" for kind, weight in weights.items())


class InstanceFacts:
    """Counts of an instance, and what measures plans for it; made once for all profiles.

    Parameters
    ----------
    instance
        The problem.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.tree = TreeView(instance)
        self.draining = {
            (group.name, running.name)
            for group in instance.running
            for running in group.instances
            if running.state == "draining"
        }
        self._target: dict[str, float] = {
            service.name: float(
                sum(role.target * role.gpus_per_capacity for role in service.roles.values())
            )
            for service in instance.services
        }

    def columns(self) -> dict[str, Any]:
        """The columns that describe the instance."""
        instance = self.instance
        lower = instance.rdma_levels.lower
        types: dict[str, set[str]] = defaultdict(set)
        for node in instance.nodes:
            if node.gpus:
                types[node.domains[lower]].add(node.gpu_type)
        return {
            "gpu_types": len({node.gpu_type for node in instance.nodes if node.gpus}),
            "mixed_s1": sum(len(each) > 1 for each in types.values()) / max(1, len(types)),
            "instance_digest": instance.digest,
            "nodes": len(instance.nodes),
            "gpus": sum(node.gpus for node in instance.nodes),
            "free_gpus": sum(self.tree.free),
            "services": len(instance.services),
            "running_instances": instance.running_instances,
            "target_gpus": sum(self._target.values()),
            "high_tier_gpus_total": sum(
                node.gpus
                for node, tier in zip(instance.nodes, self.tree.node_tier, strict=True)
                if node.schedulable and tier == HIGH
            ),
        }

    def plan_columns(self, result: Result) -> dict[str, Any]:
        """The columns that describe a plan and its proof."""
        steps = result.steps
        return {
            "status": result.status,
            "stop": result.stop_reason,
            "engine": result.engine,
            "plan_valid": not result.violations,
            "notes": list(result.notes),
            "variables": result.size.columns,
            "constraints": result.size.rows,
            "step_names": [step.name for step in steps],
            "step_values": [step.value for step in steps],
            "step_bounds": [step.bound for step in steps],
            "step_gaps": [step.gap for step in steps],
            "step_proven": [step.proven for step in steps],
            "cost": steps[-1].value,
            **{f"cost_{name}": amount for name, amount in result.costs.items()},
            **self._unmet(result),
            **self._placement(result.plan),
        }

    def _unmet(self, result: Result) -> dict[str, Any]:
        """Unmet and target GPUs, in total, by priority class and by affinity."""
        unmet: dict[str, float] = defaultdict(float)
        for each in result.unmet:
            unmet[each.service] += each.unmet_gpus
        return {
            "unmet_gpus": float(sum(unmet.values())),
            "priorities": list(self._by_priority),
            "affinities": list(self._by_affinity),
            **self._by_class("unmet_gpus", unmet),
            **self._by_class("target_gpus", self._target),
        }

    def _by_class(self, name: str, amounts: Mapping[str, float]) -> dict[str, list[float]]:
        """Amounts of services, summed up by priority class and by affinity."""
        return {
            f"{name}_by_{label}": [sum(amounts[each] for each in services) for services in classes]
            for label, classes in (
                ("priority", self._by_priority.values()),
                ("affinity", self._by_affinity.values()),
            )
        }

    @cached_property
    def _by_priority(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {each: [] for each in self.instance.priorities}
        for service in self.instance.services:
            found[service.priority].append(service.name)
        return found

    @cached_property
    def _by_affinity(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for service in self.instance.services:
            found[affinity_kind(service.affinity)].append(service.name)
        return dict(sorted(found.items()))

    def _placement(self, plan: Plan) -> dict[str, Any]:
        """Where the delivering instances are."""
        number, tiers = self.instance.node_index, self.tree.node_tier
        by_tier = [0, 0, 0]
        waste: Counter[str] = Counter()
        delivering_groups: set[str] = set()
        for group in plan.groups:
            spare = not self.needs_high[group.service]
            for placed in self._delivering(group):
                delivering_groups.add(group.name)
                for pod in placed.pods:
                    tier = tiers[number[pod.node]]
                    by_tier[tier] += pod.gpus
                    if spare and tier == HIGH:
                        waste[group.service] += pod.gpus
        return {
            "delivered_gpus": sum(by_tier),
            "added_gpus": _gpus(each for group in plan.groups for each in group.added),
            "removed_gpus": _gpus(each for group in plan.groups for each in group.removed),
            "groups": len(delivering_groups),
            "new_groups": sum(group.new for group in plan.groups),
            "low_tier_gpus": by_tier[0],
            "medium_tier_gpus": by_tier[1],
            "high_tier_gpus": by_tier[HIGH],
            "high_tier_waste_gpus": waste.total(),
            **self._by_class("high_tier_waste_gpus", waste),
            "high_tier_avoidable_gpus": self._avoidable(plan),
        }

    def _delivering(self, group: PlanGroup) -> Iterator[PlacedInstance]:
        yield from group.added
        yield from group.moved
        for placed in group.kept:
            if (group.name, placed.name) not in self.draining:
                yield placed

    @cached_property
    def needs_high(self) -> dict[str, bool]:
        """Whether a service can run on tier high only, by its name.

        It does not need that tier if some domain of its required level has, outside the tier,
        nodes that can hold a shape of every one of its roles, whatever runs there now.
        """
        return {service.name: not self._fits_below(service) for service in self.instance.services}

    def _fits_below(self, service: Service) -> bool:
        return any(
            all(
                any(self._holds(domain, shape) for shape in role.shapes)
                for role in service.roles.values()
            )
            for domain in self.tree.at_level(service.affinity.required)
        )

    def _holds(self, domain: int, shape: Shape) -> bool:
        """Whether nodes of a domain outside tier high can hold an instance of the shape."""
        rank = self.tree.shape_rank(shape)
        if rank == len(self.instance.levels):
            gpu_type = shape.pod_list[0][0]
            return all(other == gpu_type for other, _ in shape.pod_list) and any(
                size >= shape.gpus for size in self._sizes[domain].get(gpu_type, ())
            )
        wanted = Counter(shape.pod_list)
        if rank <= self.tree.domains[domain].rank:
            inside = [domain]
        else:
            inside = [each for each in self.tree.below(domain) if self._rank(each) == rank]
        return any(
            all(
                sum(size // gpus for size in self._sizes[each].get(gpu_type, ())) >= count
                for (gpu_type, gpus), count in wanted.items()
            )
            for each in inside
        )

    def _rank(self, domain: int) -> int:
        return self.tree.domains[domain].rank

    @cached_property
    def _sizes(self) -> list[dict[str, list[int]]]:
        """Per domain, the GPUs of its schedulable nodes outside tier high, by GPU type."""
        found: list[dict[str, list[int]]] = [defaultdict(list) for _ in self.tree.domains]
        for index, node in enumerate(self.instance.nodes):
            if node.schedulable and self.tree.node_tier[index] != HIGH:
                for domain in (ROOT, *self.tree.node_path[index]):
                    found[domain][node.gpu_type].append(node.gpus - node.reserved)
        return found

    def _avoidable(self, plan: Plan) -> int:
        """GPUs of added one-pod instances that fit on what stays free outside tier high."""
        number, tree = self.instance.node_index, self.tree
        free = list(tree.free)
        movable: list[tuple[int, str, int]] = []
        for group in plan.groups:
            spare = not self.needs_high[group.service]
            domain = self._domain(group)
            for placed in (*group.added, *group.moved):
                for pod in placed.pods:
                    free[number[pod.node]] -= pod.gpus
            for placed in group.added:
                place = number[placed.pods[0].node]
                if spare and len(placed.pods) == 1 and tree.node_tier[place] == HIGH:
                    gpu_type = self.instance.nodes[place].gpu_type
                    movable.append((placed.pods[0].gpus, gpu_type, domain))
        if not movable:
            return 0
        # Per GPU type (free, node), ascending: the tightest node that fits comes first.
        left: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for index, node in enumerate(self.instance.nodes):
            if tree.node_tier[index] != HIGH and free[index] > 0:
                insort(left[node.gpu_type], (free[index], index))
        moved = 0
        for gpus, gpu_type, domain in sorted(movable, key=lambda each: -each[0]):
            nodes = left[gpu_type]
            for place in range(bisect_left(nodes, (gpus, -1)), len(nodes)):
                room, index = nodes[place]
                if tree.contains(domain, index):
                    del nodes[place]
                    if room > gpus:
                        insort(nodes, (room - gpus, index))
                    moved += gpus
                    break
        return moved

    def _domain(self, group: PlanGroup) -> int:
        service = self.instance.services[self.instance.service_index[group.service]]
        level = service.affinity.required
        if level is None or group.domain is None:
            return ROOT
        return self.tree.domain_number(level, group.domain)


def _gpus(placed: Iterator[PlacedInstance]) -> int:
    return sum(pod.gpus for each in placed for pod in each.pods)
