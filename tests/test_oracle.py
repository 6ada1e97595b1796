"""The oracle and the instances it judges solvers on, tested without any solver."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations_with_replacement, product
from math import ceil, comb, prod
from typing import Any

import pytest
from hypothesis import given, settings
from oracle import TooLarge, brute_force
from strategies import instances, random_instance, tiny_instances

from heteroplace import Instance, Plan, check, evaluate
from heteroplace.plan import MovedInstance, PlacedInstance, PlacedPod, PlanGroup
from heteroplace.topology import TreeView

Data = dict[str, Any]


def node(
    name: str, s1: str = "a", s2: str = "x", gpus: int = 8, kind: str = "h", **more: Any
) -> Data:
    domains = {"cluster": "c", "s2": s2, "s1": s1}
    return {"name": name, "gpu_type": kind, "gpus": gpus, "domains": domains, **more}


def role(target: Any, gpus: int = 4, kind: str = "h", **more: Any) -> Data:
    shape = {"pods": [{"gpu_type": kind, "gpus": gpus}]}
    return {"target": target, "shapes": [shape], **more}


def service(name: str = "m", ratios: Any = (), **more: Any) -> Data:
    more.setdefault("roles", {"prefill": role(1), "decode": role(1)})
    bands = [{"numerator": "prefill", "denominator": "decode", **band} for band in ratios]
    return {"name": name, "ratios": bands, **more}


def runs(role: str, *nodes: str, shape: str = "shape0", **more: Any) -> Data:
    return {"role": role, "shape": shape, "nodes": nodes, **more}


def solved(nodes: list[Data], *services: Data, **more: Any) -> Solved:
    instance = Instance.from_dict({"schema": 1, "nodes": nodes, "services": services, **more})
    evaluation, plan = brute_force(instance)
    assert check(instance, plan) == []
    assert evaluate(instance, plan) == evaluation
    return Solved(evaluation, plan)


class Solved:
    def __init__(self, evaluation: Any, plan: Plan) -> None:
        self.steps = {step.name: step.value for step in evaluation.steps}
        self.costs = evaluation.costs
        self.repairs = evaluation.repairs
        self.delivered = {(each.service, each.role): each.delivered for each in evaluation.roles}
        self.groups = plan.groups

    def names(self, kind: str) -> list[str | None]:
        return [each.name for group in self.groups for each in getattr(group, kind)]

    def added_on(self) -> list[str]:
        return sorted(
            pod.node for group in self.groups for each in group.added for pod in each.pods
        )


# Seeds whose instances have few enough plans to build them all.
MICRO = (
    *(9, 12, 14, 15, 28, 32, 35, 38, 42, 43, 45, 50, 51, 57, 60, 64, 74, 102, 116, 146, 149),
    *(165, 241, 303, 406, 531, 562, 763, 765, 989, 1051, 1342, 1498, 2175, 2746, 3283, 3406),
    *(3427, 3592, 4369, 4403, 4604, 4744),
)

ONE = {"roles": {"serve": role(1)}}


# --------------------------------------------------------------------------------------------
# Constraints
# --------------------------------------------------------------------------------------------


def test_capacity_of_a_node() -> None:
    nodes = [node("n0", gpus=7), node("n1", gpus=3), node("n2", kind="l")]
    found = solved(nodes, service(roles={"serve": role(3)}))
    assert found.delivered["m", "serve"] == 1
    assert found.steps == {"unmet[0]": 8, "repair": 0, "cost": 2 * 0 + 4 * 4 + 1 + 1}
    assert found.added_on() == ["n0"]


def test_capacity_of_cordoned_and_reserved_nodes() -> None:
    nodes = [node("n0", schedulable=False), node("n1", reserved=5), node("n2", gpus=4)]
    found = solved(nodes, service(roles={"serve": role(3)}))
    assert found.added_on() == ["n2"]


def test_capacity_of_a_node_over_its_limit() -> None:
    nodes = [node("n0", reserved=6)]
    running = [{"name": "g", "service": "m", "instances": [runs("serve", "n0")]}]
    one = {"roles": {"serve": role(2, gpus=4, shapes=[SHAPE4, SHAPE1])}}
    found = solved(nodes, service(**one), running=running)
    assert found.groups == ()
    assert found.repairs["capacity"] == 2


SHAPE4 = {"pods": [{"gpu_type": "h", "gpus": 4}]}
SHAPE1 = {"pods": [{"gpu_type": "h", "gpus": 1}]}


def test_colocation_keeps_a_group_in_its_domain() -> None:
    nodes = [node("n0", "a", gpus=4), node("n1", "b", gpus=4)]
    apart = solved(nodes, service(affinity={"required": "s1"}))
    together = solved(nodes, service(affinity={"required": "s2"}))
    assert apart.groups == ()
    assert together.steps["unmet[0]"] == 0
    assert together.groups[0].domain == "x"


def test_colocation_binds_a_running_group_to_its_declared_domain() -> None:
    nodes = [node("n0", "a"), node("n1", "b")]
    group = {"name": "g", "service": "m", "domain": "b", "instances": [runs("serve", "n0")]}
    wants = service(roles={"serve": role(2)}, affinity={"required": "s1"})
    wants["limits"] = {"max_groups": 1}
    found = solved(nodes, wants, running=[group])
    assert found.added_on() == ["n1"]
    assert found.repairs["colocation"] == 4


def test_integrity_of_several_pods() -> None:
    nodes = [node("n0", "a"), node("n1", "b")]

    def wide(level: str | None, gpus: int) -> Data:
        shape = {"pods": [{"gpu_type": "h", "gpus": gpus, "count": 2}], "level": level}
        return service(roles={"serve": {"target": 1, "shapes": [shape]}})

    assert solved(nodes, wide(None, 5)).groups == ()
    assert solved(nodes, wide("s2", 5)).added_on() == ["n0", "n1"]
    assert solved(nodes, wide("node", 5)).groups == ()
    assert len(set(solved(nodes, wide("node", 4)).added_on())) == 1


def test_ratio_leaves_a_target_unmet() -> None:
    nodes = [node("n0")]
    roles = {"prefill": role(4, gpus=1), "decode": role(1, gpus=1)}
    found = solved(nodes, service(ratios=[{"min": 1, "max": 2}], roles=roles))
    assert found.delivered == {("m", "prefill"): 2, ("m", "decode"): 1}
    assert found.steps["unmet[0]"] == 2


def test_ratio_wants_every_role() -> None:
    nodes = [node("n0", gpus=4)]
    assert solved(nodes, service()).groups == ()


def test_ratio_already_broken_may_not_grow() -> None:
    nodes = [node("n0"), node("n1", gpus=4)]
    group = {"name": "g", "service": "m", "instances": [runs("prefill", "n0")] * 2}
    roles = {"prefill": role(3), "decode": role(1, gpus=8)}
    found = solved(nodes, service(ratios=[{"max": 1}], roles=roles), running=[group])
    assert found.groups == ()
    assert found.repairs["ratio"] == 2 * 4 + 8


def test_target_forbids_superfluous_instances() -> None:
    shapes = [{**SHAPE4, "capacity": 2}, {**SHAPE1, "capacity": 3}]
    found = solved([node("n0")], service(roles={"serve": {"target": 4, "shapes": shapes}}))
    # 2 + 2 and 2 + 3 are the two ways; 3 + 3 is another, all of them fully met.
    assert found.steps["unmet[0]"] == 0
    assert found.costs["shape"] == 0
    assert found.delivered["m", "serve"] == 4


def test_running_scale_in_stops_at_the_target() -> None:
    group = {"name": "g", "service": "m", "instances": [runs("serve", "n0")] * 2}
    found = solved([node("n0")], service(roles={"serve": role("3/2")}), running=[group])
    assert found.groups == ()
    assert found.repairs["target"] == 0
    found = solved([node("n0")], service(roles={"serve": role(1)}), running=[group])
    assert len(found.names("removed")) == 1


def test_running_moves_repair_and_cost() -> None:
    nodes = [node("n0", "a"), node("n1", "b")]
    group = {"name": "g", "service": "m", "domain": "b", "instances": [runs("serve", "n0")]}
    wants = service(affinity={"required": "s1"}, **ONE)
    assert solved(nodes, wants, running=[group]).repairs["colocation"] == 4
    found = solved(nodes, wants, running=[group], cycle={"max_migrations": 1})
    assert found.names("moved") == ["serve-0"]
    assert found.repairs["colocation"] == 0
    assert found.costs["migration"] == 1
    group["instances"] = [{**group["instances"][0], "state": "draining"}]
    found = solved(nodes, service(roles={"serve": role(0)}), running=[{**group, "domain": None}])
    assert found.groups == ()


def test_no_reuse_of_freed_gpus() -> None:
    roles = {"serve": role(0)}
    running = [{"name": "g", "service": "old", "instances": [runs("serve", "n0")] * 2}]
    both = (service("old", roles=roles), service("m", **ONE))
    found = solved([node("n0")], *both, running=running)
    assert found.steps["unmet[0]"] == 4
    assert len(found.names("removed")) == 2
    found = solved([node("n0")], *both, running=running, cycle={"reuse_freed": True})
    assert found.steps["unmet[0]"] == 0


def test_limits_of_groups_and_their_size() -> None:
    roles = {"prefill": role(2, gpus=1), "decode": role(2, gpus=1)}
    nodes = [node("n0")]
    free = solved(nodes, service(roles=roles, limits={"max_instances_per_group": 2}))
    assert free.costs["new_group"] == 2
    tight = {"max_instances_per_group": 3, "max_groups": 1}
    found = solved(nodes, service(roles=roles, limits=tight, ratios=[{"min": 0, "max": 2}]))
    assert found.steps["unmet[0]"] == 1
    assert found.costs["new_group"] == 1


def test_limits_already_broken_are_repaired_by_scale_in() -> None:
    groups = [
        {"name": name, "service": "m", "instances": [runs("serve", "n0", name="i")]}
        for name in ("g", "h")
    ]
    limited = service(roles={"serve": role(1)}, limits={"max_groups": 1})
    assert solved([node("n0")], limited, running=groups).repairs["limits"] == 0
    limited = service(roles={"serve": role(2)}, limits={"max_groups": 1})
    assert solved([node("n0")], limited, running=groups).repairs["limits"] == 1


# --------------------------------------------------------------------------------------------
# Objective
# --------------------------------------------------------------------------------------------


def test_priority_then_minimum() -> None:
    nodes = [node("n0", gpus=4)]
    high = service("high", priority=1, **ONE)
    low = service("low", roles={"serve": role(1, min=1)})
    found = solved(nodes, low, high)
    assert list(found.steps.items())[:3] == [("unmet[1]", 0), ("minimum[0]", 4), ("unmet[0]", 4)]
    same = service("same", roles={"serve": role(2, gpus=2)})
    found = solved(nodes, same, low)
    assert list(found.steps.items())[:2] == [("minimum[0]", 0), ("unmet[0]", 4)]


def test_unmet_counts_gpus_of_the_preferred_shape() -> None:
    shapes = [{**SHAPE4, "capacity": "2/3"}]
    found = solved([node("n0", gpus=4)], service(roles={"serve": {"target": 1, "shapes": shapes}}))
    assert found.steps["unmet[0]"] == Fraction(1, 3) * 4 / Fraction(2, 3)


@pytest.mark.parametrize(
    ("kinds", "where", "price"),
    [("hh", ("a", "a"), 0), ("hl", ("a", "b"), 1), ("hl", ("a", "a"), 4)],
)
def test_cost_of_rdma_tiers(kinds: str, where: tuple[str, str], price: int) -> None:
    nodes = [node(f"n{at}", where[at], kind=kinds[at]) for at in (0, 1)]
    assert solved(nodes, service(**ONE)).costs["rdma"] == 4 * price


def test_cost_prefers_the_cheapest_tier_and_the_first_shape() -> None:
    nodes = [
        node("n0", "a"),
        node("n1", "a", kind="l"),
        node("n2", "b"),
        node("n3", "c", "y", gpus=4),
    ]
    assert solved(nodes, service(**ONE)).added_on() == ["n3"]
    shapes = [{**SHAPE4, "cost": 40}, SHAPE1]
    found = solved(nodes, service(roles={"serve": {"target": 1, "shapes": shapes}}))
    assert found.groups[0].added[0].shape == "shape1"
    assert found.costs["shape"] == 1


def test_cost_of_spill_and_several_groups_in_one_domain() -> None:
    nodes = [node("n0", "a", gpus=2), node("n1", "b", gpus=2)]
    roles = {"prefill": role(2, gpus=1), "decode": role(2, gpus=1)}
    wants = service(roles=roles, affinity={"required": "s2", "preferred": "s1"})
    split = solved(nodes, wants)
    assert (split.costs["spill"], split.costs["new_group"]) == (0, 2)
    dear = {"weights": {"new_group": 3}}
    joint = solved(nodes, wants, objective=dear)
    assert (joint.costs["spill"], joint.costs["new_group"]) == (2, 1)


def test_cost_of_spill_is_measured_on_what_runs() -> None:
    nodes = [node("n0", "a", gpus=4), node("n1", "b")]
    group = {"name": "g", "service": "m", "instances": [runs("serve", "n0")]}
    wants = service(roles={"serve": role(3)}, affinity={"required": "s2", "preferred": "s1"})
    found = solved(nodes, wants, running=[group], objective={"weights": {"new_group": 100}})
    assert found.costs["spill"] == 8


def test_cost_of_fragmentation() -> None:
    nodes = [node("n0"), node("n1", gpus=4)]
    assert solved(nodes, service(**ONE)).added_on() == ["n1"]
    nodes[1]["reserved"] = 1
    assert solved(nodes, service(**ONE)).costs["fragmentation"] == 1
    for level, broken in (("node", 0), ("s1", 1)):
        shape = {"pods": [{"gpu_type": "h", "gpus": 4, "count": 2}], "level": level}
        found = solved(nodes[:1], service(roles={"serve": {"target": 1, "shapes": [shape]}}))
        assert found.costs["fragmentation"] == broken


def test_repair_of_a_scale_in_uses_the_grain() -> None:
    shapes = [{**SHAPE4, "capacity": 2}, {**SHAPE1, "capacity": 3}]
    group = {
        "name": "g",
        "service": "m",
        "instances": [runs("serve", "n0"), runs("serve", "n0", shape="shape1")],
    }
    found = solved(
        [node("n0")],
        service(roles={"serve": {"target": "7/2", "shapes": shapes}}),
        running=[group],
    )
    assert found.groups == ()
    assert found.repairs["target"] == 1 * 4 / Fraction(2)


def test_too_large_is_said() -> None:
    instance = Instance.from_dict(
        {
            "schema": 1,
            "nodes": [node(f"n{at}") for at in range(8)],
            "services": [service(roles={"serve": role(16, gpus=1)})],
        }
    )
    with pytest.raises(TooLarge):
        brute_force(instance, limit=1000)


# --------------------------------------------------------------------------------------------
# Against a search that skips nothing
# --------------------------------------------------------------------------------------------


def most_added(instance: Instance) -> int:
    now = {(each.service, each.role): each.delivered for each in evaluate(instance, Plan()).roles}
    return sum(
        max(0, ceil((role.target - now[each.name, name]) / min(s.capacity for s in role.shapes)))
        for each in instance.services
        for name, role in each.roles.items()
    )


def every_plan(instance: Instance, most: int) -> tuple[int, Iterator[Plan]]:
    """Build all plans, valid or not, that add at most ``most`` instances, and count them."""
    nodes = [each.name for each in instance.nodes]

    def placed(role: str, shape: Any, **more: Any) -> list[Data]:
        return [
            {
                "role": role,
                "shape": shape.name,
                "pods": tuple(
                    PlacedPod(node=name, gpus=gpus)
                    for name, (_, gpus) in zip(names, shape.pod_list, strict=True)
                ),
                **more,
            }
            for names in product(nodes, repeat=len(shape.pod_list))
        ]

    groups: list[Data] = []
    states = []  # per running instance, (group, kind, placement) of what can happen to it
    for at, group in enumerate(instance.running):
        groups.append({"name": group.name, "service": group.service})
        roles = instance.services[instance.service_index[group.service]].roles
        for each in group.instances:
            role = roles[each.role]
            shape = role.shapes[role.shape_index[each.shape]]
            if each.state == "ready":
                gone = {"name": each.name, "role": each.role, "shape": each.shape, "pods": ()}
                moves = placed(each.role, shape, name=each.name)
                states.append(
                    [(at, "kept", None), (at, "removed", PlacedInstance(**gone))]
                    + [(at, "moved", MovedInstance(**move)) for move in moves]
                )
    for each in instance.services:
        level = each.affinity.required
        domains = sorted({node.domains[level] for node in instance.nodes}) if level else [None]
        for domain, copy in product(domains, range(most)):
            name = f"{each.name} {domain} {copy}"
            groups.append({"name": name, "service": each.name, "domain": domain, "new": True})
    added = [
        (at, "added", PlacedInstance(**each))
        for at, group in enumerate(groups)
        for name, role in instance.services[instance.service_index[group["service"]]].roles.items()
        for shape in role.shapes
        for each in placed(name, shape)
    ]
    size = prod(map(len, states)) * sum(
        comb(max(1, len(added)) + k - 1, k) for k in range(most + 1)
    )

    def build() -> Iterator[Plan]:
        for state in product(*states):
            for count in range(most + 1):
                for chosen in combinations_with_replacement(added, count):
                    lists: list[dict[str, Any]] = [{} for _ in groups]
                    for at, kind, each in (*state, *chosen):
                        if each is not None:
                            lists[at].setdefault(kind, []).append(each)
                    entries = tuple(
                        PlanGroup(**group, **{kind: tuple(each) for kind, each in more.items()})
                        for group, more in zip(groups, lists, strict=True)
                        if more
                    )
                    yield Plan(groups=entries)

    return size, build()


@pytest.mark.parametrize("seed", MICRO)
def test_oracle_equals_a_search_that_skips_nothing(seed: int) -> None:
    instance = random_instance(random.Random(seed), "micro")
    size, plans = every_plan(instance, most_added(instance))
    assert size < 6000
    best = min(evaluate(instance, plan).values for plan in plans if not check(instance, plan))
    assert brute_force(instance)[0].values == best


# --------------------------------------------------------------------------------------------
# The instances
# --------------------------------------------------------------------------------------------


@given(instances())
@settings(max_examples=100)
def test_drawn_instances_are_valid_and_doing_nothing_is_feasible(instance: Instance) -> None:
    assert check(instance, Plan()) == []
    again = Instance.from_json(instance.to_json())
    assert again == instance
    assert again.digest == instance.digest


@given(tiny_instances())
def test_oracle_is_no_worse_than_doing_nothing(instance: Instance) -> None:
    try:
        found, plan = brute_force(instance, limit=20_000)
    except TooLarge:
        return
    assert check(instance, plan) == []
    assert found.values <= evaluate(instance, Plan()).values


def features(instance: Instance) -> set[str]:
    """Name what an instance has that another may not."""
    view = TreeView(instance)
    found = {
        f"levels {len(instance.levels)}",
        f"migrations {instance.cycle.max_migrations}",
        f"reuse {instance.cycle.reuse_freed}",
        f"services {len(instance.services)}",
        f"priorities {len(instance.priorities)}",
    }
    found |= {f"tier {tier}" for tier in view.node_tier}
    found |= {f"node of {node.gpus}" for node in instance.nodes}
    flags = {
        "cordoned": any(not node.schedulable for node in instance.nodes),
        "reserved": any(node.reserved for node in instance.nodes),
        "rdma declared": instance.rdma is not None,
        "same name at two levels": len(instance.levels) > 1
        and bool(
            {*instance.nodes[0].domains.values()}
            & {node.domains[instance.levels[-1]] for node in instance.nodes}
        ),
        "weight 0": any(value == 0 for _, value in instance.objective.weights),
        "weight fraction": any(v.denominator > 1 for _, v in instance.objective.weights),
        "price fraction": any(v.denominator > 1 for _, v in instance.objective.tier_prices),
    }
    before = evaluate(instance, Plan())
    flags |= {f"repair {name}": amount > 0 for name, amount in before.repairs.items()}
    flags["minimum step"] = any(step.name.startswith("minimum") for step in before.steps)
    delivered = {(each.service, each.role): each for each in before.roles}
    for service in instance.services:
        found |= {f"roles {len(service.roles)}"}
        required, preferred = service.affinity.required, service.affinity.preferred
        flags["no affinity"] = flags.get("no affinity", False) or not (required or preferred)
        for name, yes in {
            "required": required,
            "preferred alone": preferred and not required,
            "required and preferred": preferred and required,
            "max_groups": service.limits.max_groups,
            "max_instances_per_group": service.limits.max_instances_per_group,
            "no band": not service.ratios,
            "several bands": len(service.ratios) > 1,
            "types differ by role": len(
                {frozenset(p.gpu_type for p in r.shapes[0].pods) for r in service.roles.values()}
            )
            > 1,
        }.items():
            flags[name] = flags.get(name, False) or bool(yes)
        for band in service.ratios:
            found |= {
                name
                for name, yes in {
                    "band min 0": band.min == 0,
                    "band without max": band.max is None,
                    "band exact": band.min == band.max,
                    "band of thirds": band.min.denominator == 3,
                }.items()
                if yes
            }
        for name, role in service.roles.items():
            now = delivered[service.name, name].delivered
            found |= {"scales out"} if now < role.target else set()
            found |= {"scales in"} if now > role.target else set()
            found |= {"on target"} if now == role.target > 0 else set()
            found |= {"target 0"} if role.target == 0 else set()
            found |= {"min"} if role.min else set()
            found |= {"fractional target"} if role.target.denominator > 1 else set()
            found |= {f"shapes {len(role.shapes)}"}
            if len({shape.capacity for shape in role.shapes}) > 1:
                found.add("capacities differ by shape")
            for shape in role.shapes:
                found |= {f"pod of {pod.gpus}" for pod in shape.pods}
                found |= {
                    name
                    for name, yes in {
                        "cost": shape.cost is not None,
                        "fractional cost": shape.cost and shape.cost.denominator > 1,
                        "fractional capacity": shape.capacity.denominator > 1,
                        "several pods": len(shape.pod_list) > 1,
                        "pods of two types": len({pod.gpu_type for pod in shape.pods}) > 1,
                        "several pods on a node": len(shape.pod_list) > 1 and shape.level == "node",
                        "several pods above the finest level": len(shape.pod_list) > 1
                        and shape.level in instance.levels[:-1],
                    }.items()
                    if yes
                }
    for group in instance.running:
        found.add("domain declared" if group.domain is not None else "domain not declared")
        if group.domain is not None and not any(
            view.contains(view.group_domain(group), instance.node_index[name])
            for each in group.instances
            for name in each.nodes
        ):
            found.add("nothing in the declared domain")
        for each in group.instances:
            found.add(each.state)
            if any(not instance.nodes[instance.node_index[n]].schedulable for n in each.nodes):
                found.add("runs on a cordoned node")
        if all(each.state == "draining" for each in group.instances):
            found.add("group that only drains")
    if instance.running and not any(
        before.repairs[name] for name in ("ratio", "colocation", "integrity")
    ):
        found.add("runs in band")
    return found | {name for name, yes in flags.items() if yes}


EVERYWHERE = {
    *(f"levels {count}" for count in (1, 2, 3, 4)),
    *(f"migrations {count}" for count in (0, 1, 2)),
    *(f"reuse {yes}" for yes in (True, False)),
    *(f"roles {count}" for count in (1, 2, 3)),
    *(f"shapes {count}" for count in (1, 2)),
    *(f"tier {tier}" for tier in (0, 1, 2)),
    *(f"node of {gpus}" for gpus in range(9)),
    *(f"pod of {gpus}" for gpus in (1, 2, 3, 4, 5, 6, 8)),
    *(
        f"repair {name}"
        for name in ("capacity", "colocation", "integrity", "ratio", "target", "limits")
    ),
    *("services 1", "services 2", "priorities 1", "priorities 2"),
    *("cordoned", "reserved", "rdma declared", "same name at two levels"),
    *("weight 0", "weight fraction", "price fraction", "minimum step"),
    *("no affinity", "required", "preferred alone", "required and preferred"),
    *("max_groups", "max_instances_per_group"),
    *("no band", "several bands", "band min 0", "band without max", "band exact"),
    *("band of thirds", "types differ by role", "capacities differ by shape"),
    *("scales out", "scales in", "on target", "target 0", "min", "fractional target"),
    *("cost", "fractional cost", "fractional capacity", "several pods", "pods of two types"),
    *("several pods on a node", "several pods above the finest level"),
    *("domain declared", "domain not declared", "nothing in the declared domain"),
    *("ready", "draining", "group that only drains", "runs on a cordoned node", "runs in band"),
}


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_random_instances_have_every_feature(size: Any) -> None:
    wanted = EVERYWHERE | ({"services 3", "priorities 3", "shapes 3"} if size == "small" else set())
    seen: set[str] = set()
    for seed in range(300):
        seen |= features(random_instance(random.Random(seed), size))
    assert wanted - seen == set()


def test_random_instances_depend_on_the_seed_alone() -> None:
    first, again, other = (random_instance(random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_large_instances_are_valid() -> None:
    instance = random_instance(random.Random(0), "large")
    assert check(instance, Plan()) == []
