"""A session equals the instance rebuilt from plain data, whatever happened to it on the way."""

from __future__ import annotations

import copy
import inspect
import json
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heteroplace import InputError, Instance, Plan, Profile, Session, check, evaluate, solve
from heteroplace.decision import Decision, Naming
from heteroplace.plan import MovedInstance, PlacedInstance, PlacedPod, PlanGroup
from heteroplace.quantity import format_number, parse_number
from heteroplace.session import Delta, _start
from heteroplace.topology import TreeView
from tests.strategies import random_instance

ROOT = Path(__file__).parents[1]
GREEDY = Profile(solver="greedy", time_limit=None)
EXACT = Profile(solver="highs", time_limit=None, threads=1)
Data = dict[str, Any]


# --------------------------------------------------------------------------------------------
# The same changes on plain data, without any of the session's code
# --------------------------------------------------------------------------------------------


def plain(instance: Instance) -> Data:
    return json.loads(instance.model_dump_json(by_alias=True))


def named(items: list[Data], name: str) -> Data:
    return next(item for item in items if item["name"] == name)


def pin(data: Data, group: Data) -> None:
    """Bind a group to its domain before what runs of it changes."""
    instance = Instance.from_dict(data)
    tree = TreeView(instance)
    running = next(each for each in instance.running if each.name == group["name"])
    number = tree.group_domain(running)
    group["domain"] = tree.domains[number].name if number else None


def changed(before: Data, delta: Data) -> Data:
    data = copy.deepcopy(before)
    for group, names in delta.get("finished", {}).items():
        found = named(data["running"], group)
        pin(before, found)
        found["instances"] = [each for each in found["instances"] if each["name"] not in names]
    data["running"] = [group for group in data["running"] if group["instances"]]
    for state in ("draining", "ready"):
        for group, names in delta.get(state, {}).items():
            found = named(data["running"], group)
            for name in names:
                each = named(found["instances"], name)
                if each["state"] != state:
                    pin(before, found)
                each["state"] = state
    busy = {
        node for group in data["running"] for each in group["instances"] for node in each["nodes"]
    }
    busy |= {group["service"] for group in data["running"]}
    for part in ("services", "nodes"):
        gone = delta.get(f"remove_{part}", [])
        if not busy.isdisjoint(gone):
            raise InputError(f"remove_{part}", "something runs there")
        data[part] = [item for item in data[part] if item["name"] not in gone]
        data[part] += delta.get(f"add_{part}", [])
    for key, value in (("cordon", False), ("uncordon", True)):
        for name in delta.get(key, []):
            named(data["nodes"], name)["schedulable"] = value
    for name, gpus in delta.get("reserved", {}).items():
        named(data["nodes"], name)["reserved"] = gpus
    for key, role_field in (("targets", "target"), ("minimums", "min")):
        for service, roles in delta.get(key, {}).items():
            for role, number in roles.items():
                named(data["services"], service)["roles"][role][role_field] = number
    return data


def carried_out(before: Data, plan: Plan) -> Data:
    data = copy.deepcopy(before)
    for group in plan.groups:
        if not (group.added or group.removed or group.moved):
            continue
        if group.new:
            found = {"name": group.name, "service": group.service, "domain": group.domain}
            found["instances"] = []
            data["running"].append(found)
        else:
            found = named(data["running"], group.name)
            pin(before, found)
        gone = {each.name for each in group.removed}
        found["instances"] = [each for each in found["instances"] if each["name"] not in gone]
        for moved in group.moved:
            named(found["instances"], moved.name)["nodes"] = [pod.node for pod in moved.pods]
        for added in group.added:
            number = sum(each["role"] == added.role for each in found["instances"])
            taken = {each["name"] for each in found["instances"]}
            while f"{added.role}-{number}" in taken:
                number += 1
            found["instances"].append(
                {
                    "name": f"{added.role}-{number}",
                    "role": added.role,
                    "shape": added.shape,
                    "nodes": [pod.node for pod in added.pods],
                    "state": "ready",
                }
            )
    data["running"] = [group for group in data["running"] if group["instances"]]
    return data


# --------------------------------------------------------------------------------------------
# Random changes, good and bad
# --------------------------------------------------------------------------------------------


class Chance:
    """Draws one change of every kind for what an instance holds now."""

    def __init__(self, rng: random.Random, data: Data, serial: int) -> None:
        self.rng, self.data, self.serial = rng, data, serial

    def node_names(self) -> list[str]:
        names = [node["name"] for node in self.data["nodes"]]
        return self.rng.sample(names, min(len(names), self.rng.randint(1, 2)))

    def capacities(self, key: str, low: int) -> Data:
        found: Data = {}
        for service in self.data["services"]:
            for name, role in service["roles"].items():
                if self.rng.random() < 0.5:
                    step = parse_number(role["shapes"][0]["capacity"])
                    step *= self.rng.choice((1, 1, 2, Fraction(1, 2)))
                    number = parse_number(role[key]) + step * self.rng.randint(low, 2)
                    found.setdefault(service["name"], {})[name] = format_number(
                        max(0 * step, number)
                    )
        return found

    def targets(self) -> Data:
        return {"targets": self.capacities("target", -2)}

    def minimums(self) -> Data:
        return {"targets": self.capacities("target", 0), "minimums": self.capacities("min", -2)}

    def add_nodes(self) -> Data:
        nodes = []
        for place in range(self.rng.randint(1, 2)):
            node = copy.deepcopy(self.rng.choice(self.data["nodes"]))
            node["name"] = f"new-{self.serial}-{place}"
            node["gpu_type"] = self.rng.choice((node["gpu_type"], "gpu-a", "gpu-new"))
            if self.rng.random() < 0.4:
                level = self.rng.choice(self.data["levels"])  # a fault where finer ones keep theirs
                node["domains"][level] = f"new-{self.serial}"
            node["reserved"] = self.rng.choice((0, 0, 0, 1, node["gpus"]))
            nodes.append(node)
        return {"add_nodes": nodes}

    def remove_nodes(self) -> Data:
        return {"remove_nodes": self.node_names()}

    def replace_nodes(self) -> Data:
        name = self.node_names()[0]
        node = {**named(self.data["nodes"], name), "gpus": self.rng.choice((0, 4, 8))}
        node["reserved"] = 0
        return {"remove_nodes": [name], "add_nodes": [node]}

    def cordon(self) -> Data:
        first, *more = self.node_names()
        return {"cordon": [first], "uncordon": more}

    def reserved(self) -> Data:
        return {"reserved": {name: self.rng.randint(0, 8) for name in self.node_names()}}

    def add_services(self) -> Data:
        service = copy.deepcopy(self.rng.choice(self.data["services"]))
        service["name"] = f"service-new-{self.serial}"
        service["priority"] = self.rng.choice((0, 5, 7))
        return {"add_services": [service]}

    def remove_services(self) -> Data:
        return {"remove_services": [self.rng.choice(self.data["services"])["name"]]}

    def instances(self) -> Data:
        if not self.data["running"]:
            return {}
        group = self.rng.choice(self.data["running"])
        names = [each["name"] for each in group["instances"]]
        return {group["name"]: self.rng.sample(names, self.rng.randint(1, len(names)))}

    def finished(self) -> Data:
        return {"finished": self.instances()}

    def states(self) -> Data:
        return {self.rng.choice(("draining", "ready")): self.instances()}

    def evacuate(self) -> Data:
        """End all that runs on a node, and take the node out at once."""
        name = self.node_names()[0]
        finished: Data = {}
        for group in self.data["running"]:
            for each in group["instances"]:
                if name in each["nodes"]:
                    finished.setdefault(group["name"], []).append(each["name"])
        return {"finished": finished, "remove_nodes": [name]}

    def everything(self) -> Data:
        kinds = (self.targets, self.add_nodes, self.cordon, self.finished, self.add_services)
        return {key: value for kind in kinds for key, value in kind().items()}


KINDS = (
    "targets",
    "targets",
    "minimums",
    "add_nodes",
    "add_nodes",
    "remove_nodes",
    "replace_nodes",
    "cordon",
    "reserved",
    "add_services",
    "remove_services",
    "finished",
    "states",
    "evacuate",
    "everything",
)


def part_of(plan: Plan, rng: random.Random) -> Plan:
    """What is carried out of a plan: all of it, or only some groups."""
    if rng.random() < 0.6:
        return plan
    groups = tuple(group for group in plan.groups if rng.random() < 0.6)
    return plan.model_copy(update={"groups": groups})


class SessionMachine(RuleBasedStateMachine):
    """Deltas and plans in any order; after each of them the session is what it should be."""

    size = "small"
    exact = False

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.session = Session(random_instance(random.Random(seed), self.size), EXACT)
        self.data = plain(self.session.instance)
        self.serial = 0

    @rule(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
    def change(self, kind: str, seed: int) -> None:
        self.serial += 1
        delta = getattr(Chance(random.Random(seed), self.data, self.serial), kind)()
        before = self.session.instance
        try:
            wanted = changed(self.data, delta)
            Instance.from_dict(wanted)
        except InputError:
            with pytest.raises(InputError) as error:
                self.session.update(**delta)
            assert re.match(r"(\w+)", error.value.path).group() in Delta.model_fields
            assert self.session.instance is before
        else:
            self.session.update(**delta)
            self.data = wanted

    @rule(exact=st.booleans(), seed=st.integers(0, 2**32))
    def carry_out(self, exact: bool, seed: int) -> None:
        rng = random.Random(seed)
        plan = part_of(self.session.solve(EXACT if exact and self.exact else GREEDY).plan, rng)
        wanted, before = carried_out(self.data, plan), self.session.instance
        try:
            Instance.from_dict(wanted)
        except InputError:
            # A part of a plan may need the GPUs that another part frees.
            with pytest.raises(InputError, match="what runs there needs"):
                self.session.apply(plan)
            assert self.session.instance is before
        else:
            self.session.apply(plan)
            self.data = wanted

    @rule()
    def solve_again(self) -> None:
        self.session.solve(GREEDY)

    @invariant()
    def instance_is_as_rebuilt(self) -> None:
        instance = self.session.instance
        rebuilt = Instance.from_dict(self.data)
        assert instance == rebuilt
        assert instance.to_json() == rebuilt.to_json()
        assert instance == Instance.from_json(instance.to_json())
        for name in ("node_index", "service_index", "priorities", "rdma_levels"):
            assert getattr(instance, name) == getattr(rebuilt, name)

    @invariant()
    def view_is_as_read_anew(self) -> None:
        known = vars(self.session._state.tree)
        fresh = TreeView(self.session.instance)
        lazy = ("_domain_tiers", "cells_below", "_inside", "_level_inside")
        for name, value in vars(fresh).items():
            if name not in lazy:
                assert known[name] == value, name
        tree = self.session._state.tree
        assert tree._domain_tiers == fresh._domain_tiers
        assert tree.cells_below == fresh.cells_below
        for level in self.session.instance.levels:
            assert tree.at_level(level) == fresh.at_level(level)

    @invariant()
    def solves_as_from_scratch(self) -> None:
        instance = Instance.from_dict(self.data)
        found, scratch = self.session.solve(GREEDY), solve(instance, GREEDY)
        assert found.plan == scratch.plan
        assert found.instance_digest == scratch.instance_digest == instance.digest
        assert (found.steps, found.costs, found.repairs) == (
            scratch.steps,
            scratch.costs,
            scratch.repairs,
        )
        assert found.unmet == scratch.unmet
        checker = self.session._checker
        nothing = Naming(TreeView(instance)).plan(Decision())
        for plan in (found.plan, nothing, Plan()):
            assert checker.check(plan) == check(instance, plan) == []
            assert checker.evaluate(plan) == evaluate(instance, plan)
        if self.exact:
            # Now the plan of the greedy is what an exact solve starts from.
            found, scratch = self.session.solve(), solve(instance, EXACT)
            assert found.status == scratch.status == "optimal"
            assert check(instance, found.plan) == []
            assert evaluate(instance, found.plan).values == evaluate(instance, scratch.plan).values
            assert found.profile == scratch.profile


class ExactSessionMachine(SessionMachine):
    """As above with an exact solver, so on smaller instances."""

    size = "tiny"
    exact = True


TestSession = SessionMachine.TestCase
# The steps draw from seeds, so a failure does not get simpler by shrinking them.
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
TestSession.settings = settings(max_examples=150, stateful_step_count=12, phases=UNSHRUNK)
TestExactSession = ExactSessionMachine.TestCase
TestExactSession.settings = settings(max_examples=100, stateful_step_count=8, phases=UNSHRUNK)


@pytest.mark.parametrize("seed", range(12))
def test_a_large_instance_over_many_cycles(seed):
    rng = random.Random(seed)
    session = Session(random_instance(rng, "large"), GREEDY)
    data = plain(session.instance)
    for cycle in range(10):
        for kind in rng.sample(KINDS, 4):
            delta = getattr(Chance(rng, data, 10 * cycle + len(kind)), kind)()
            try:
                wanted = changed(data, delta)
                Instance.from_dict(wanted)
            except InputError:
                with pytest.raises(InputError):
                    session.update(**delta)
            else:
                session.update(**delta)
                data = wanted
        result = session.solve()
        scratch = solve(Instance.from_dict(data), GREEDY)
        assert result.plan == scratch.plan
        assert result.steps == scratch.steps
        data = carried_out(data, result.plan)
        session.apply(result.plan)


# --------------------------------------------------------------------------------------------
# One cluster by hand
# --------------------------------------------------------------------------------------------


def node(name: str, s1: str = "a", gpu_type: str = "L20", **more: Any) -> Data:
    return {"name": name, "gpu_type": gpu_type, "gpus": 8, "domains": {"s1": s1}, **more}


def service(name: str, **more: Any) -> Data:
    role = {"target": 2, "min": 1, "shapes": [{"pods": [{"gpu_type": "L20", "gpus": 4}]}]}
    return {"name": name, "roles": {"serve": role}, **more}


def example() -> Instance:
    return Instance.from_dict(
        {
            "schema": 1,
            "levels": ["s1"],
            "nodes": [node("n0"), node("n1"), node("n2", "b", "H20"), node("n3", "c")],
            "services": [service("chat", affinity={"required": "s1"}), service("code")],
            "running": [
                {
                    "name": "chat-0",
                    "service": "chat",
                    "instances": [{"role": "serve", "shape": "shape0", "nodes": ["n0"]}],
                }
            ],
        }
    )


BAD: dict[str, tuple[Data, str, str]] = {
    "unknown service": ({"targets": {"chit": {"serve": 1}}}, "targets.chit", "unknown service"),
    "unknown role": ({"targets": {"chat": {"x y": 1}}}, "targets.chat['x y']", "unknown role"),
    "negative": ({"targets": {"chat": {"serve": -1}}}, "targets.chat.serve", "negative"),
    "target below min": ({"targets": {"chat": {"serve": 0}}}, "targets.chat.serve", "min"),
    "min above target": ({"minimums": {"chat": {"serve": 3}}}, "minimums.chat.serve", "min"),
    "not a list": ({"cordon": "n0"}, "cordon", "must be a list"),
    "node unknown": ({"cordon": ["n9"]}, "cordon[0]", "unknown node"),
    "both": ({"cordon": ["n0"], "uncordon": ["n0"]}, "uncordon[0]", "as well"),
    "reserved": ({"reserved": {"n0": 9}}, "reserved.n0", "more than"),
    "reserved, unknown": ({"reserved": {"n-9": 1}}, "reserved['n-9']", "unknown node"),
    "busy": ({"remove_nodes": ["n0"]}, "remove_nodes[0]", "group 'chat-0' still runs"),
    "gone twice": ({"remove_nodes": ["n1", "n1"]}, "remove_nodes[1]", "unknown node"),
    "name taken": ({"add_nodes": [node("n1")]}, "add_nodes[0].name", "already"),
    "new twice": ({"add_nodes": [node("m"), node("m")]}, "add_nodes[1].name", "already"),
    "field missing": ({"add_nodes": [{"name": "m"}]}, "add_nodes[0].gpu_type", "is missing"),
    "level missing": (
        {"add_nodes": [{**node("m"), "domains": {}}]},
        "add_nodes[0].domains",
        "lacks the level",
    ),
    "level unknown": (
        {"add_nodes": [{**node("m"), "domains": {"s1": "a", "s0": "x"}}]},
        "add_nodes[0].domains",
        "unknown level",
    ),
    "too much reserved": (
        {"add_nodes": [node("m", reserved=9)]},
        "add_nodes[0].reserved",
        "more than",
    ),
    "service taken": ({"add_services": [service("chat")]}, "add_services[0].name", "already"),
    "service at fault": (
        {"add_services": [service("new", affinity={"required": "s7"})]},
        "add_services[0].affinity.required",
        "unknown level",
    ),
    "service runs": ({"remove_services": ["chat"]}, "remove_services[0]", "still runs"),
    "service unknown": ({"remove_services": ["x"]}, "remove_services[0]", "unknown service"),
    "no service": (
        {"finished": {"chat-0": ["serve-0"]}, "remove_services": ["chat", "code"]},
        "remove_services",
        "no service would be left",
    ),
    "no node": (
        {
            "finished": {"chat-0": ["serve-0"]},
            "remove_nodes": ["n0", "n1", "n2", "n3"],
            "add_nodes": [],
        },
        "remove_nodes",
        "no node would be left",
    ),
    "no GPU of a type": (
        {"finished": {"chat-0": ["serve-0"]}, "remove_nodes": ["n0", "n1", "n3"]},
        "remove_nodes",
        "no L20 node would be left",
    ),
    "group unknown": ({"finished": {"x": ["serve-0"]}}, "finished.x", "no group 'x' runs"),
    "instance unknown": (
        {"draining": {"chat-0": ["serve-7"]}},
        "draining['chat-0'][0]",
        "no such instance",
    ),
    "instance twice": (
        {"finished": {"chat-0": ["serve-0", "serve-0"]}},
        "finished['chat-0'][1]",
        "named twice",
    ),
    "ended, then drains": (
        {"finished": {"chat-0": ["serve-0"]}, "draining": {"chat-0": ["serve-0"]}},
        "draining['chat-0']",
        "no group",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_deltas_name_the_field_and_change_nothing(case):
    delta, path, message = BAD[case]
    session = Session(example())
    before, view = session.instance, session._state.tree
    # What is good about the delta is not taken either.
    delta = {"reserved": {"n3": 1}, "add_nodes": [node("good", gpu_type="H20")], **delta}
    with pytest.raises(InputError, match=re.escape(message)) as error:
        session.update(**delta)
    assert error.value.path == path
    assert session.instance is before
    assert session._state.tree is view
    assert session.solve(GREEDY).plan == solve(example(), GREEDY).plan


def test_a_domain_keeps_its_parent():
    data = plain(example())
    data["levels"] = ["s2", "s1"]
    for each in data["nodes"]:
        each["domains"]["s2"] = "pod"
    session = Session(Instance.from_dict(data))
    stray = {**node("m"), "domains": {"s2": "other", "s1": "a"}}
    with pytest.raises(InputError, match="under 'other' here but under 'pod'") as error:
        session.update(add_nodes=[stray])
    assert error.value.path == "add_nodes[0].domains.s1"
    # Once all its nodes are out, the domain may come back elsewhere, in the same change.
    stray["domains"]["s1"] = "c"
    session.update(remove_nodes=["n3"], add_nodes=[stray])
    assert session.instance.nodes[-1].domains == {"s2": "other", "s1": "c"}


def test_a_group_keeps_its_domain():
    session = Session(example())
    assert session.instance.running[0].domain is None
    session.apply(plan_of("chat-0", "chat", added=[entry(None, "n1")]))
    assert session.instance.running[0].domain == "a"
    session.update(finished={"chat-0": ["serve-1"]})
    session.apply(plan_of("chat-0", "chat", moved=[entry("serve-0", "n3", kind=MovedInstance)]))
    with pytest.raises(InputError, match="no node would be left in the s1 'a'"):
        session.update(remove_nodes=["n0", "n1"])


# --------------------------------------------------------------------------------------------
# Plans
# --------------------------------------------------------------------------------------------


def entry(
    name: str | None, at: str, gpus: int = 4, kind: type = PlacedInstance, **more: Any
) -> Any:
    fields = {"role": "serve", "shape": "shape0", **more}
    return kind(name=name, pods=(PlacedPod(node=at, gpus=gpus),), **fields)


def plan_of(name: str, of: str, **more: Any) -> Plan:
    return Plan(groups=(PlanGroup(name=name, service=of, **more),))


def test_a_plan_is_carried_out():
    session = Session(example())
    session.apply(
        Plan(
            groups=(
                PlanGroup(
                    name="chat-0",
                    service="chat",
                    moved=(entry("serve-0", "n1", kind=MovedInstance),),
                    added=(entry(None, "n0"), entry("mine", "n0"), entry(None, "n1")),
                ),
                PlanGroup(name="code", service="code", new=True, added=(entry(None, "n3"),)),
                PlanGroup(name="empty", service="code", new=True),
            )
        )
    )
    chat, code = session.instance.running
    assert [(each.name, each.nodes) for each in chat.instances] == [
        ("serve-0", ("n1",)),
        ("serve-1", ("n0",)),
        ("mine", ("n0",)),
        ("serve-3", ("n1",)),
    ]
    assert (chat.domain, code.name, code.domain) == ("a", "code", None)
    session.apply(plan_of("chat-0", "chat", removed=[entry("serve-0", "n1")]))
    session.apply(plan_of("chat-0", "chat", added=[entry(None, "n1")]))
    # The count of the role's instances is taken by one of them.
    assert session.instance.running[0].instances[-1].name == "serve-4"
    session.apply(plan_of("code", "code", removed=[entry("serve-0", "n3")]))
    assert [group.name for group in session.instance.running] == ["chat-0"]
    assert session.instance == Instance.from_json(session.instance.to_json())


BAD_PLANS: dict[str, tuple[Plan, str]] = {
    "group unknown": (plan_of("x", "chat", added=[entry(None, "n1")]), "groups[0].name"),
    "group runs": (
        plan_of("chat-0", "chat", new=True, added=[entry(None, "n1")]),
        "groups[0].name",
    ),
    "service unknown": (
        plan_of("x", "x", new=True, added=[entry(None, "n1")]),
        "groups[0].service",
    ),
    "service of another": (
        plan_of("chat-0", "code", added=[entry(None, "n1")]),
        "groups[0].service",
    ),
    "domain unknown": (
        plan_of("x", "chat", new=True, domain="z", added=[entry(None, "n1")]),
        "groups[0].domain",
    ),
    "domain of the fleet": (
        plan_of("x", "code", new=True, domain="a", added=[entry(None, "n1")]),
        "groups[0].domain",
    ),
    "new, removed": (plan_of("x", "code", new=True, removed=[entry("y", "n1")]), "groups[0]"),
    "role": (
        plan_of("chat-0", "chat", added=[entry(None, "n1", role="x")]),
        "groups[0].added[0].role",
    ),
    "shape": (
        plan_of("chat-0", "chat", added=[entry(None, "n1", shape="x")]),
        "groups[0].added[0].shape",
    ),
    "node": (
        plan_of("chat-0", "chat", added=[entry(None, "n9")]),
        "groups[0].added[0].pods[0].node",
    ),
    "type": (
        plan_of("chat-0", "chat", added=[entry(None, "n2")]),
        "groups[0].added[0].pods[0].node",
    ),
    "gpus": (
        plan_of("chat-0", "chat", added=[entry(None, "n1", 5)]),
        "groups[0].added[0].pods[0].gpus",
    ),
    "full": (
        plan_of("chat-0", "chat", added=[entry(None, "n1")] * 3),
        "groups[0].added[2].pods[0].node",
    ),
    "pods": (
        plan_of("chat-0", "chat", added=[PlacedInstance(role="serve", shape="shape0", pods=())]),
        "groups[0].added[0].pods",
    ),
    "name taken": (
        plan_of("chat-0", "chat", added=[entry("serve-0", "n1")]),
        "groups[0].added[0].name",
    ),
    "not there": (
        plan_of("chat-0", "chat", removed=[entry("serve-9", "n0")]),
        "groups[0].removed[0]",
    ),
    "runs otherwise": (
        plan_of("chat-0", "chat", removed=[entry("serve-0", "n0", shape="x")]),
        "groups[0].removed[0]",
    ),
    "removed and moved": (
        plan_of(
            "chat-0",
            "chat",
            removed=[entry("serve-0", "n0")],
            moved=[entry("serve-0", "n1", kind=MovedInstance)],
        ),
        "groups[0].moved[0].name",
    ),
    "named twice": (
        Plan(groups=plan_of("chat-0", "chat", added=[entry(None, "n1")]).groups * 2),
        "groups[1].name",
    ),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_bad_plans_name_the_field_and_change_nothing(case):
    plan, path = BAD_PLANS[case]
    session = Session(example())
    before = session.instance
    good = PlanGroup(name="good", service="code", new=True, added=(entry(None, "n3"),))
    with pytest.raises(InputError) as error:
        session.apply(plan.model_copy(update={"groups": (*plan.groups, good)}))
    assert error.value.path == path
    assert session.instance is before


# --------------------------------------------------------------------------------------------
# Solving
# --------------------------------------------------------------------------------------------


def test_what_does_not_change_is_the_same_object():
    session = Session(example())
    before = session.instance
    session.update(
        targets={"chat": {"serve": 2}},
        uncordon=["n0"],
        reserved={"n1": 0},
        ready={"chat-0": ["serve-0"]},
    )
    session.apply(Plan())
    assert session.instance is before
    session.update(targets={"chat": {"serve": "5/2"}})
    assert session.instance.services[0].roles["serve"].target == Fraction(5, 2)
    assert session.instance.services[1] is before.services[1]
    assert session.instance.nodes is before.nodes
    assert before == example()


def test_a_proven_result_is_returned_until_something_changes():
    session = Session(example(), EXACT)
    result = session.solve()
    assert session.solve() is result
    assert session.solve(Profile(solver="cpsat")) is not result
    assert session.solve(GREEDY) is not session.solve(GREEDY)
    result = session.solve()
    session.update(cordon=["n3"])
    assert session.solve() is not result


def additions(plan: Plan) -> set[tuple[Any, ...]]:
    return {
        (group.name, each.role, each.shape, each.pods)
        for group in plan.groups
        for each in group.added
    }


def test_the_last_plan_is_where_the_next_solve_starts():
    rng = random.Random(5)
    tried = valid = kept = 0
    for _ in range(60):
        session = Session(random_instance(rng, "large"), GREEDY)
        plan = session.solve().plan
        chance = Chance(rng, plain(session.instance), 0)
        try:
            session.update(targets=dict(list(chance.targets()["targets"].items())[:2]))
            session.update(**chance.cordon())
        except InputError:
            continue
        prepared = session._prepared(0.0, GREEDY)
        start = _start(plan, prepared, None)
        if start is None:
            continue
        named_start = prepared.naming.plan(start)
        tried += 1
        valid += not prepared.checker.check(named_start)
        kept += len(additions(plan) & additions(named_start)) > len(additions(plan)) / 2
    assert tried > 20
    assert valid > 0.9 * tried
    assert kept > 0.7 * tried


@pytest.mark.parametrize("name", ["greedy", "greedy-pods", "highs", "cpsat", "auto"])
def test_every_solver_works_on_a_session(name):
    profile = Profile(solver=name, time_limit=20.0)
    session = Session(random_instance(random.Random(3), "tiny"), profile)
    for serial in range(3):
        found, scratch = session.solve(), solve(session.instance, profile)
        assert found.status == scratch.status
        assert [step.value for step in found.steps] == [step.value for step in scratch.steps]
        assert found.profile == profile.model_dump()
        session.apply(found.plan)
        session.update(**Chance(random.Random(serial), plain(session.instance), serial).add_nodes())


def test_a_solve_without_time_still_gives_a_plan():
    session = Session(example(), Profile(time_limit=1e-6))
    for target in (3, 4):
        session.update(targets={"chat": {"serve": target}})
        result = session.solve()
        assert result.status in ("feasible", "optimal")
        assert check(session.instance, result.plan) == []
        assert result.profile["time_limit"] == 1e-6


def test_the_delta_has_the_parameters_of_update():
    parameters = inspect.signature(Session.update).parameters
    assert set(Delta.model_fields) == set(parameters) - {"self"}


def test_the_example_of_the_page_runs_and_prints_what_it_says(capsys):
    page = (ROOT / "docs/session.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S).group(1)
    exec(compile(code, "docs/session.md", "exec"), {})
    printed = re.search(r"It prints:\n\n```text\n(.*?)```", page, re.S).group(1)
    assert capsys.readouterr().out == printed
