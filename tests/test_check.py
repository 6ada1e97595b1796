"""The checker and the evaluator against plans and numbers made by hand."""

import copy
import pickle
import random
import re
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from strategies import random_instance

from heteroplace import InputError, Instance, Plan, check, evaluate
from heteroplace.check import Checker, check_and_evaluate
from heteroplace.decision import Added, Decision, Naming
from heteroplace.plan import PlacedInstance, PlacedPod, PlanGroup
from heteroplace.solve.greedy import greedy, greedy_pods
from heteroplace.topology import TreeView

# A small world and a short hand for plans ------------------------------------------------------

WORLD = {  # s2 > s1 > nodes
    "p1": {
        "m1": {"h1": "H20", "h2": "H20", "h3": "H20", "h4": "H20", "l1": "L20"},
        "m2": {"h5": "H20", "cordoned": "H20", "reserved": "H20"},
    },
    "p2": {"m3": {"h6": "H20", "h7": "H20"}},
}


def _node(name, gpu_type, s2, s1):
    extra = {"cordoned": {"schedulable": False}, "reserved": {"reserved": 6}}.get(name, {})
    domains = {"cluster": "c", "s2": s2, "s1": s1}
    return {"name": name, "gpu_type": gpu_type, "gpus": 8, "domains": domains, **extra}


NODES = [
    _node(name, gpu_type, s2, s1)
    for s2, minis in WORLD.items()
    for s1, nodes in minis.items()
    for name, gpu_type in nodes.items()
]


def _shape(name, gpus, count=1, **more):
    return {"name": name, "pods": [{"gpu_type": "H20", "gpus": gpus, "count": count}], **more}


def _runs(text):
    """``prefill-0=prefill/p4@h1`` runs on h1; a leading ``~`` is draining."""
    name, role, shape, where = re.fullmatch(r"~?(\S+)=(\w+)/(\w+)@(\S+)", text).groups()
    state = "draining" if text.startswith("~") else "ready"
    return {"name": name, "role": role, "shape": shape, "nodes": where.split(","), "state": state}


# chat runs 1 prefill and 1 decode on h1 and drains a decode on h2; it wants 4 and 4, and keeps
# prefill : decode in [1/2, 2]. solo runs 4 on h6 and wants 2.
BASE = {
    "schema": 1,
    "nodes": NODES,
    "services": [
        {
            "name": "chat",
            "affinity": {"required": "s2", "preferred": "s1"},
            "roles": {
                "prefill": {"target": 4, "shapes": [_shape("p4", 4)]},
                "decode": {
                    "target": 4,
                    "shapes": [
                        _shape("d4", 4),
                        _shape("wide", 8, 2),
                        _shape("near", 2, 2, level="node"),
                    ],
                },
            },
            "ratios": [{"numerator": "prefill", "denominator": "decode", "min": 0.5, "max": 2}],
        },
        {"name": "solo", "roles": {"serve": {"target": 2, "shapes": [_shape("s2", 2)]}}},
    ],
    "running": [
        {
            "name": "chat-0",
            "service": "chat",
            "domain": "p1",
            "instances": [
                _runs("prefill-0=prefill/p4@h1"),
                _runs("decode-0=decode/d4@h1"),
                _runs("~decode-1=decode/d4@h2"),
            ],
        },
        {
            "name": "solo-0",
            "service": "solo",
            "instances": [_runs(f"serve-{number}=serve/s2@h6") for number in range(4)],
        },
    ],
}
CHAT, SOLO = "services.0", "services.1"
PREFILL, DECODE = f"{CHAT}.roles.prefill", f"{CHAT}.roles.decode"


def make(changes=None):
    """Build BASE with fields replaced by dotted path."""
    data = copy.deepcopy(BASE)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = data
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place[int(last) if isinstance(place, list) else last] = value
    return Instance.from_dict(data)


def _placed(text):
    """``prefill/p4@h3:4`` is added there; ``decode-0=decode/d4@h3:4`` is a running instance."""
    name, role, shape, where = re.fullmatch(r"(?:(\S+)=)?(\w+)/(\w+)@(\S*)", text).groups()
    pods = [pod.split(":") for pod in where.split(",") if pod]
    pods = [{"node": node, "gpus": int(gpus)} for node, gpus in pods]
    return {"name": name, "role": role, "shape": shape, "pods": pods}


def group(name, service="chat", domain=None, new=False, **lists):
    return {
        "name": name,
        "service": service,
        "domain": domain,
        "new": new,
        **{kind: [_placed(text) for text in texts.split()] for kind, texts in lists.items()},
    }


def chat(**lists):
    return group("chat-0", **lists)


def solo(**lists):
    return group("solo-0", "solo", **lists)


def opened(added, service="chat", domain="p1", name="new"):
    return group(name, service, domain, new=True, added=added)


def plan(*groups):
    return Plan.model_validate({"groups": groups})


def broken(instance, *groups):
    return {violation.constraint for violation in check(instance, plan(*groups))}


# One constraint at a time ----------------------------------------------------------------------


@dataclass
class Case:
    """A plan that breaks one constraint, and a plan or a world next to it that breaks none."""

    constraint: str
    what: str
    bad: list
    world: dict = field(default_factory=dict)
    good: list | None = None
    good_world: dict | None = None


MOVE = {"cycle": {"max_migrations": 1}}
MOVE_REUSE = {"cycle": {"max_migrations": 1, "reuse_freed": True}}
REUSE = {"cycle": {"reuse_freed": True}}
FREED = solo(removed="serve-0=serve/s2@h6:2 serve-1=serve/s2@h6:2")
ON_FREED = opened("prefill/p4@h6:4 decode/d4@h7:4", domain="p2")
PAIR = "prefill/p4@h3:4 decode/d4@h3:4"
ONE_MORE = [chat(added="prefill/p4@h3:4")]
ONLY_DRAINING = {"running.0.instances": [_runs("~decode-1=decode/d4@h2")]}

CASES = [
    Case("capacity", "wrong type", [chat(added="prefill/p4@l1:4")], good=ONE_MORE),
    Case("capacity", "too few GPUs in a pod", [chat(added="prefill/p4@h3:2")], good=ONE_MORE),
    Case("capacity", "too many GPUs in a pod", [chat(added="prefill/p4@h3:8")], good=ONE_MORE),
    Case(
        "capacity",
        "cordoned",
        [chat(added="prefill/p4@cordoned:4")],
        good_world={"nodes.6.schedulable": True},
    ),
    Case(
        "capacity",
        "reserved",
        [chat(added="prefill/p4@reserved:4")],
        good_world={"nodes.7.reserved": 4},
    ),
    Case(
        "capacity",
        "full of what runs",
        [chat(added="prefill/p4@h1:4")],
        good_world={"nodes.0.gpus": 12},
    ),
    Case(
        "capacity",
        "draining occupies",
        [chat(added="prefill/p4@h2:4 decode/d4@h2:4")],
        good=[chat(added="prefill/p4@h2:4 decode/d4@h3:4")],
    ),
    Case(
        "capacity",
        "two groups on one node",
        [chat(added="prefill/p4@h3:4"), opened("prefill/p4@h3:4 decode/d4@h3:4")],
        good=[chat(added="prefill/p4@h2:4"), opened("prefill/p4@h3:4 decode/d4@h3:4")],
    ),
    Case(
        "capacity",
        "moved onto a full node",
        [chat(moved="decode-0=decode/d4@h3:4", added="prefill/p4@h3:4 decode/d4@h3:4")],
        MOVE,
        good=[chat(moved="decode-0=decode/d4@h2:4", added="prefill/p4@h3:4 decode/d4@h3:4")],
    ),
    Case("colocation", "added outside", [chat(added="prefill/p4@h7:4")], good=ONE_MORE),
    Case(
        "colocation",
        "moved outside",
        [chat(moved="prefill-0=prefill/p4@h7:4")],
        MOVE,
        good=[chat(moved="prefill-0=prefill/p4@h5:4")],
    ),
    Case(
        "colocation",
        "new group split",
        [opened("prefill/p4@h3:4 decode/d4@h7:4")],
        good=[opened("prefill/p4@h3:4 decode/d4@h5:4")],
    ),
    Case("colocation", "unknown domain", [opened(PAIR, domain="x")], good=[opened(PAIR)]),
    Case(
        "colocation",
        "domain of another level",
        [opened(PAIR, domain="m1")],
        good_world={f"{CHAT}.affinity": {"required": "s1"}, "running.0.domain": "m1"},
    ),
    Case("colocation", "no domain", [opened(PAIR, domain=None)], good=[opened(PAIR)]),
    Case(
        "colocation",
        "domain without a level",
        [opened("serve/s2@h7:2", "solo", "p2")],
        {f"{SOLO}.roles.serve.target": 5},
        good=[opened("serve/s2@h7:2", "solo", None)],
    ),
    Case(
        "colocation",
        "a running group's domain",
        [group("chat-0", domain="p2")],
        good=[group("chat-0", domain="p1")],
    ),
    Case(
        "integrity",
        "a pod is missing",
        [chat(added="decode/wide@h3:8")],
        good=[chat(added="decode/wide@h3:8,h4:8")],
    ),
    Case("integrity", "no pod", [chat(added="prefill/p4@")], good=ONE_MORE),
    Case("integrity", "a pod too many", [chat(added="prefill/p4@h3:4,h4:4")], good=ONE_MORE),
    Case(
        "integrity",
        "split over S1",
        [chat(added="decode/wide@h3:8,h5:8")],
        good_world={f"{DECODE}.shapes.1.level": "s2"},
    ),
    Case(
        "integrity",
        "split over nodes",
        [chat(added="decode/near@h3:2,h4:2")],
        good=[chat(added="decode/near@h3:2,h3:2")],
    ),
    Case("ratio", "a role is lacking", [opened("prefill/p4@h3:4")], good=[opened(PAIR)]),
    Case(
        "ratio",
        "a role is lacking, no band",
        [opened("decode/d4@h3:4")],
        {f"{CHAT}.ratios": []},
        good=[opened(PAIR)],
    ),
    Case(
        "ratio",
        "above the band",
        [chat(added="prefill/p4@h3:4 prefill/p4@h3:4")],
        good=ONE_MORE,
    ),
    Case(
        "ratio",
        "no upper end",
        [chat(added="prefill/p4@h3:4 prefill/p4@h3:4")],
        good_world={f"{CHAT}.ratios.0.max": None},
    ),
    Case(
        "ratio",
        "below the band",
        [chat(added="decode/d4@h3:4 decode/d4@h3:4")],
        good=[chat(added="decode/d4@h3:4")],
    ),
    Case(
        "ratio",
        "by a hair",
        ONE_MORE,
        {f"{CHAT}.ratios.0.max": "1999999999/1000000000"},
        good_world={f"{CHAT}.ratios.0.max": "2"},
    ),
    Case(
        "ratio",
        "each group on its own",
        [
            chat(added="prefill/p4@h2:4"),
            opened(f"{PAIR} decode/d4@h4:4 decode/d4@h4:4"),
        ],
        good=[chat(added="prefill/p4@h2:4"), opened(f"{PAIR} decode/d4@h4:4")],
    ),
    Case(
        "ratio",
        "one of a pair removed",
        [chat(removed="prefill-0=prefill/p4@h1:4")],
        {f"{PREFILL}.target": 0, f"{DECODE}.target": 0},
        good=[chat(removed="prefill-0=prefill/p4@h1:4 decode-0=decode/d4@h1:4")],
    ),
    Case(
        "target",
        "nothing is wanted",
        ONE_MORE,
        {f"{PREFILL}.target": 1},
        good_world={f"{PREFILL}.target": "1000000001/1000000000"},
    ),
    Case(
        "target",
        "the role scales in",
        [solo(added="serve/s2@h7:2")],
        good_world={f"{SOLO}.roles.serve.target": 5},
    ),
    Case(
        "target",
        "superfluous beside a large one",
        [chat(added="prefill/p4@h2:4 prefill/p4@h5:4 decode/wide@h3:8,h4:8 decode/d4@h5:4")],
        {f"{DECODE}.shapes.1.capacity": 3},
        good=[chat(added="prefill/p4@h2:4 prefill/p4@h5:4 decode/wide@h3:8,h4:8")],
    ),
    Case(
        "target",
        "over several groups",
        [chat(added="prefill/p4@h2:4"), opened(PAIR)],
        {f"{PREFILL}.target": 2},
        good_world={f"{PREFILL}.target": 3},
    ),
    Case(
        "running",
        "the role does not scale in",
        [solo(removed="serve-0=serve/s2@h6:2")],
        {f"{SOLO}.roles.serve.target": 4},
        good_world={f"{SOLO}.roles.serve.target": 3},
    ),
    Case(
        "running",
        "removed too much",
        [solo(removed=" ".join(f"serve-{number}=serve/s2@h6:2" for number in range(3)))],
        good=[FREED],
    ),
    Case(
        "running",
        "removed too much by a hair",
        [FREED],
        {f"{SOLO}.roles.serve.target": "2000000001/1000000000"},
        good_world={},
    ),
    Case(
        "running",
        "draining removed",
        [chat(removed="decode-1=decode/d4@h2:4")],
        good=[chat(kept="decode-1=decode/d4@h2:4")],
    ),
    Case(
        "running",
        "draining moved",
        [chat(moved="decode-1=decode/d4@h3:4")],
        MOVE,
        good=[chat(moved="decode-0=decode/d4@h3:4")],
    ),
    Case(
        "running",
        "kept on another node",
        [chat(kept="prefill-0=prefill/p4@h3:4")],
        good=[chat(kept="prefill-0=prefill/p4@h1:4")],
    ),
    Case(
        "running",
        "kept with other GPUs",
        [chat(kept="prefill-0=prefill/p4@h1:2")],
        good=[chat(kept="prefill-0=prefill/p4@")],
    ),
    Case(
        "running",
        "draining, kept on another node",
        [chat(kept="decode-1=decode/d4@h3:4")],
        good=[chat(kept="decode-1=decode/d4@h2:4")],
    ),
    Case(
        "running",
        "kept and removed",
        [solo(kept="serve-0=serve/s2@h6:2", removed="serve-0=serve/s2@h6:2")],
        good=[solo(kept="serve-1=serve/s2@h6:2", removed="serve-0=serve/s2@h6:2")],
    ),
    Case(
        "running",
        "removed twice",
        [solo(removed="serve-0=serve/s2@h6:2 serve-0=serve/s2@h6:2")],
        good=[FREED],
    ),
    Case(
        "running",
        "no migration allowed",
        [chat(moved="prefill-0=prefill/p4@h3:4")],
        good_world=MOVE,
    ),
    Case(
        "running",
        "too many migrations",
        [chat(moved="prefill-0=prefill/p4@h3:4"), solo(moved="serve-0=serve/s2@h7:2")],
        MOVE,
        good_world={"cycle": {"max_migrations": 2}},
    ),
    Case("no_reuse", "of removed instances", [FREED, ON_FREED], good_world=REUSE),
    Case(
        "no_reuse",
        "in part",
        [FREED, ON_FREED],
        {"nodes.8.gpus": 11},
        good_world={"nodes.8.gpus": 12},
    ),
    Case(
        "no_reuse",
        "beside reserved GPUs",
        [FREED, ON_FREED],
        {"nodes.8.gpus": 12, "nodes.8.reserved": 4},
        good_world={"nodes.8.gpus": 12},
    ),
    Case(
        "no_reuse",
        "of a moved instance",
        [chat(moved="prefill-0=prefill/p4@h3:4", added="prefill/p4@h1:4")],
        MOVE,
        good_world=MOVE_REUSE,
    ),
    Case(
        "no_reuse",
        "by a moved instance",
        [
            solo(removed="serve-0=serve/s2@h6:2 serve-1=serve/s2@h6:2"),
            chat(moved="prefill-0=prefill/p4@h6:4"),
        ],
        {f"{CHAT}.affinity": {}, "running.0.domain": None, **MOVE},
        good_world={f"{CHAT}.affinity": {}, "running.0.domain": None, **MOVE_REUSE},
    ),
    Case(
        "limits",
        "group count",
        [opened(PAIR)],
        {f"{CHAT}.limits": {"max_groups": 1}},
        good_world={f"{CHAT}.limits": {"max_groups": 2}},
    ),
    Case(
        "limits",
        "a group that only drains counts",
        [opened(PAIR)],
        {f"{CHAT}.limits": {"max_groups": 1}, **ONLY_DRAINING},
        good=[chat(added=PAIR)],
    ),
    Case(
        "limits",
        "a group without instances does not count",
        [opened(PAIR)],
        {f"{CHAT}.limits": {"max_groups": 1}},
        good=[opened("")],
    ),
    Case(
        "limits",
        "size of a running group",
        ONE_MORE,
        {f"{CHAT}.limits": {"max_instances_per_group": 2}},
        good_world={f"{CHAT}.limits": {"max_instances_per_group": 3}},
    ),
    Case(
        "limits",
        "size of a new group",
        [opened(f"{PAIR} decode/d4@h4:4")],
        {f"{CHAT}.limits": {"max_instances_per_group": 2}},
        good=[opened(PAIR)],
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.constraint}-{case.what}")
def case(request):
    return request.param


def test_doing_nothing_breaks_nothing(case):
    assert broken(make(case.world)) == set()


def test_breaks_only_its_constraint(case):
    assert broken(make(case.world), *case.bad) == {case.constraint}


def test_the_plan_beside_it_breaks_nothing(case):
    world = case.world if case.good_world is None else case.good_world
    assert broken(make(world), *(case.bad if case.good is None else case.good)) == set()


def test_every_constraint_is_broken_by_some_plan():
    names = [
        "capacity",
        "colocation",
        "integrity",
        "ratio",
        "target",
        "running",
        "no_reuse",
        "limits",
    ]
    assert list(dict.fromkeys(case.constraint for case in CASES)) == names


def test_dropping_below_the_minimum():
    """A minimum is at most the target, so this removes too much as well."""
    world = {f"{SOLO}.roles.serve.min": 2}
    three = " ".join(f"serve-{number}=serve/s2@h6:2" for number in range(3))
    assert broken(make(world), solo(removed=three)) == {"running", "limits"}
    assert broken(make(world), FREED) == set()


def test_every_violation_is_listed_with_its_subject():
    instance = make({f"{CHAT}.limits": {"max_instances_per_group": 2}})
    found = check(
        instance,
        plan(
            chat(added="prefill/p4@l1:2 prefill/p4@h7:4"),
            solo(added="serve/s2@cordoned:2", removed="serve-0=serve/s2@h6:2"),
        ),
    )
    assert [(each.constraint, each.subject) for each in found] == [
        ("capacity", "l1"),
        ("capacity", "l1"),
        ("capacity", "cordoned"),
        ("colocation", "chat-0"),
        ("ratio", "chat-0"),
        ("target", "solo/serve"),
        ("limits", "chat-0"),
    ]
    assert all(each.message and not each.message.endswith(".") for each in found)


def test_no_reuse_counts_the_gpus_that_are_used_again():
    """The node is over its limit now, so more is freed than arrives."""
    instance = make({f"{SOLO}.roles.serve.target": 0, "nodes.8.reserved": 4})
    everything = solo(removed=" ".join(f"serve-{number}=serve/s2@h6:2" for number in range(4)))
    (violation,) = check(instance, plan(everything, ON_FREED))
    assert (violation.constraint, violation.subject) == ("no_reuse", "h6")
    assert violation.message.startswith("4 GPUs")


# No worse than now -----------------------------------------------------------------------------

THREE_TO_ONE = {
    f"{PREFILL}.target": 6,
    "running.0.instances": [
        _runs("prefill-0=prefill/p4@h1"),
        _runs("prefill-1=prefill/p4@h1"),
        _runs("prefill-2=prefill/p4@h2"),
        _runs("decode-0=decode/d4@h2"),
    ],
}
NO_DECODE = {"running.0.instances": [_runs("prefill-0=prefill/p4@h1")]}
OVER_RESERVED = {"nodes.8.reserved": 4}
OUTSIDE = {
    "running.0.instances": [_runs("prefill-0=prefill/p4@h7"), _runs("decode-0=decode/d4@h1")]
}
SPLIT = {
    "running.0.instances": [_runs("prefill-0=prefill/p4@h1"), _runs("decode-0=decode/wide@h3,h5")]
}
TWO_GROUPS = {
    f"{SOLO}.limits": {"max_groups": 1},
    "running.0": {
        "name": "solo-1",
        "service": "solo",
        "instances": [_runs("serve-0=serve/s2@h7")],
    },
}
ONE_GROUP_DRAINS = {
    **TWO_GROUPS,
    "running.0": {**TWO_GROUPS["running.0"], "instances": [_runs("~serve-0=serve/s2@h7")]},
}
TOO_LARGE = {f"{SOLO}.limits": {"max_instances_per_group": 3}}
BELOW_MINIMUM = {f"{PREFILL}.min": 3}


@pytest.mark.parametrize(
    ("world", "groups", "expected"),
    [
        pytest.param(THREE_TO_ONE, [], set(), id="ratio-stays"),
        pytest.param(THREE_TO_ONE, [chat(added="prefill/p4@h3:4")], {"ratio"}, id="ratio-worse"),
        pytest.param(THREE_TO_ONE, [chat(added=PAIR)], set(), id="ratio-smaller"),
        pytest.param(
            THREE_TO_ONE,
            [chat(added=f"{PAIR} prefill/p4@h4:4 prefill/p4@h4:4")],
            {"ratio"},
            id="ratio-nearer-but-amount-grows",
        ),
        pytest.param(
            THREE_TO_ONE, [chat(added=f"{PAIR} prefill/p4@h4:4")], set(), id="ratio-same-amount"
        ),
        pytest.param(NO_DECODE, [], set(), id="role-stays-lacking"),
        pytest.param(NO_DECODE, [chat(added="prefill/p4@h3:4")], {"ratio"}, id="band-worse"),
        pytest.param(NO_DECODE, [chat(added="decode/d4@h3:4")], set(), id="role-repaired"),
        pytest.param(
            {**NO_DECODE, f"{CHAT}.ratios": []},
            [chat(added="prefill/p4@h3:4")],
            set(),
            id="role-stays-lacking-without-band",
        ),
        pytest.param(OVER_RESERVED, [], set(), id="reserved-stays"),
        pytest.param(
            {**OVER_RESERVED, **REUSE}, [FREED, ON_FREED], {"capacity"}, id="reserved-worse"
        ),
        pytest.param(
            {**OVER_RESERVED, f"{SOLO}.roles.serve.target": 5},
            [solo(added="serve/s2@h6:2")],
            {"capacity"},
            id="nothing-arrives-over-the-limit",
        ),
        pytest.param(OVER_RESERVED, [FREED], set(), id="reserved-repaired"),
        pytest.param(OUTSIDE, [], set(), id="outside-stays"),
        pytest.param(OUTSIDE, [chat(added="prefill/p4@h3:4")], set(), id="outside-no-worse"),
        pytest.param(OUTSIDE, [chat(added="prefill/p4@h7:4")], {"colocation"}, id="outside-worse"),
        pytest.param(
            {**OUTSIDE, **MOVE},
            [chat(moved="prefill-0=prefill/p4@h3:4")],
            set(),
            id="outside-repaired",
        ),
        pytest.param(SPLIT, [], set(), id="split-stays"),
        pytest.param(
            {**SPLIT, **MOVE_REUSE},
            [chat(moved="decode-0=decode/wide@h4:8,h5:8")],
            {"integrity"},
            id="split-moved",
        ),
        pytest.param(
            {**SPLIT, **MOVE},
            [chat(moved="decode-0=decode/wide@h2:8,h4:8")],
            set(),
            id="split-repaired",
        ),
        pytest.param(TWO_GROUPS, [], set(), id="group-count-stays"),
        pytest.param(
            {**TWO_GROUPS, f"{SOLO}.roles.serve.target": 7},
            [opened("serve/s2@h7:2", "solo", None)],
            {"limits"},
            id="group-count-worse",
        ),
        pytest.param(
            TWO_GROUPS,
            [group("solo-1", "solo", removed="serve-0=serve/s2@h7:2")],
            set(),
            id="group-count-repaired",
        ),
        pytest.param(ONE_GROUP_DRAINS, [], set(), id="group-count-with-draining-stays"),
        pytest.param(TOO_LARGE, [], set(), id="size-stays"),
        pytest.param(
            {**TOO_LARGE, f"{SOLO}.roles.serve.target": 5},
            [solo(added="serve/s2@h7:2")],
            {"limits"},
            id="size-worse",
        ),
        pytest.param(TOO_LARGE, [solo(removed="serve-0=serve/s2@h6:2")], set(), id="size-repaired"),
        pytest.param(BELOW_MINIMUM, [], set(), id="minimum-stays"),
        pytest.param(BELOW_MINIMUM, ONE_MORE, set(), id="minimum-nearer"),
        pytest.param({f"{SOLO}.roles.serve.target": 0}, [], set(), id="surplus-stays"),
    ],
)
def test_no_worse_than_now(world, groups, expected):
    assert broken(make(world), *groups) == expected


def test_a_running_group_without_domain_is_bound_to_where_most_of_it_runs():
    world = {
        "nodes.9.gpus": 16,
        "running.0.domain": None,
        "running.0.instances": [
            _runs("prefill-0=prefill/p4@h1"),
            _runs("decode-0=decode/d4@h7"),
            _runs("~decode-1=decode/d4@h7"),
        ],
    }
    assert broken(make(world), chat(added="prefill/p4@h7:4")) == set()
    assert broken(make(world), chat(added="prefill/p4@h3:4")) == {"colocation"}


# Plans from other tools ------------------------------------------------------------------------


def test_a_plan_may_name_only_its_changes():
    text = """{"groups": [{"name": "solo-0", "service": "solo", "removed": [
        {"name": "serve-0", "role": "serve", "shape": "s2", "pods": []}]}]}"""
    changes = Plan.from_json(text)
    instance = make()
    assert check(instance, changes) == []
    delivered = {
        (each.service, each.role): each.delivered for each in evaluate(instance, changes).roles
    }
    assert delivered == {("chat", "prefill"): 1, ("chat", "decode"): 1, ("solo", "serve"): 3}


def test_a_plan_that_names_everything_means_the_same():
    instance = make()
    everything = plan(
        chat(kept="prefill-0=prefill/p4@h1:4 decode-0=decode/d4@h1:4 decode-1=decode/d4@h2:4"),
        solo(
            kept="serve-2=serve/s2@h6:2 serve-3=serve/s2@h6:2",
            removed="serve-0=serve/s2@h6:2 serve-1=serve/s2@h6:2",
        ),
    )
    assert check(instance, everything) == []
    assert evaluate(instance, everything) == evaluate(instance, plan(FREED))


@pytest.mark.parametrize(
    ("groups", "path"),
    [
        pytest.param([opened(PAIR, "nobody")], "groups[0].service", id="service"),
        pytest.param([group("chat-7")], "groups[0].name", id="group"),
        pytest.param([FREED, group("chat-0", "solo")], "groups[1].service", id="other-service"),
        pytest.param([opened(PAIR, name="chat-0")], "groups[0].name", id="new-group-runs"),
        pytest.param([chat(), solo(), chat()], "groups[2].name", id="group-twice"),
        pytest.param([opened(PAIR), opened(PAIR)], "groups[1].name", id="new-group-twice"),
        pytest.param(
            [opened(PAIR), group("new", added=PAIR)], "groups[1].name", id="new-group-grows"
        ),
        pytest.param(
            [group("new", new=True, kept="prefill-0=prefill/p4@h1:4")],
            "groups[0]",
            id="new-group-keeps",
        ),
        pytest.param([chat(added="cache/p4@h3:4")], "groups[0].added[0].role", id="role"),
        pytest.param([chat(added="prefill/d4@h3:4")], "groups[0].added[0].shape", id="shape"),
        pytest.param(
            [chat(added=f"{PAIR} decode/wide@h3:8,h99:8")],
            "groups[0].added[2].pods[1].node",
            id="node",
        ),
        pytest.param(
            [solo(removed="serve-0=serve/s2@h6:2 serve-9=serve/s2@h6:2")],
            "groups[0].removed[1].name",
            id="running-instance",
        ),
        pytest.param([chat(kept="prefill/p4@h1:4")], "groups[0].kept[0].name", id="no-name"),
        pytest.param(
            [chat(moved="prefill-0=decode/d4@h3:4")], "groups[0].moved[0]", id="another-role"
        ),
        pytest.param(
            [chat(moved="decode-0=decode/near@h3:2,h3:2")], "groups[0].moved[0]", id="another-shape"
        ),
    ],
)
@pytest.mark.parametrize("function", [check, evaluate])
def test_unknown_names(function, groups, path):
    with pytest.raises(InputError) as caught:
        function(make(), plan(*groups))
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")


# The evaluator ---------------------------------------------------------------------------------
# m1 holds H20 and L20 and so is high, m2 is medium, m3 is low. Now 8 GPUs of chat run on high and
# 8 of solo on low.


def steps(world, *groups):
    return {step.name: step.value for step in evaluate(make(world), plan(*groups)).steps}


def cost(name, world, *groups):
    return evaluate(make(world), plan(*groups)).costs[name]


def repair(name, world, *groups):
    return evaluate(make(world), plan(*groups)).repairs[name]


def test_steps_in_their_order():
    world = {f"{SOLO}.priority": 5, f"{PREFILL}.min": 2}
    assert list(steps(world)) == ["unmet[5]", "minimum[0]", "unmet[0]", "repair", "cost"]
    assert list(steps({f"{SOLO}.priority": -5})) == ["unmet[0]", "unmet[-5]", "repair", "cost"]


def test_unmet_by_role():
    outcomes = evaluate(make(), plan(chat(added="prefill/p4@h3:4"))).roles
    assert [(each.service, each.role, each.target) for each in outcomes] == [
        ("chat", "prefill", 4),
        ("chat", "decode", 4),
        ("solo", "serve", 2),
    ]
    assert [(each.delivered, each.unmet, each.unmet_gpus) for each in outcomes] == [
        (2, 2, 8),
        (1, 3, 12),
        (4, 0, 0),
    ]


@pytest.mark.parametrize(
    ("world", "groups", "unmet"),
    [
        pytest.param({}, [], 12 + 12, id="nothing-done"),
        pytest.param({}, ONE_MORE, 8 + 12, id="one-added"),
        pytest.param({}, [chat(moved="prefill-0=prefill/p4@h3:4")], 24, id="moved-delivers"),
        pytest.param({f"{PREFILL}.target": "3/2"}, [], 2 + 12, id="fraction"),
        pytest.param({f"{PREFILL}.target": "3/2"}, ONE_MORE, 12, id="no-credit-for-overshoot"),
        pytest.param({f"{PREFILL}.shapes.0.capacity": 3}, [], Fraction(4, 3) + 12, id="capacity"),
        pytest.param(
            {f"{DECODE}.shapes.1.capacity": 2},
            [chat(added="decode/wide@h3:8,h4:8")],
            12 + 4,
            id="in-gpus-of-the-preferred-shape",
        ),
        pytest.param(
            {f"{PREFILL}.target": 0.3, f"{PREFILL}.shapes.0.capacity": 0.1},
            [chat(added="prefill/p4@h3:4 prefill/p4@h3:4")],
            12,
            id="exact",
        ),
        pytest.param({f"{SOLO}.roles.serve.target": 5}, [FREED], 24 + 6, id="removed"),
    ],
)
def test_unmet(world, groups, unmet):
    assert steps(world, *groups)["unmet[0]"] == unmet


@pytest.mark.parametrize(
    ("minimum", "groups", "short"),
    [
        ({f"{PREFILL}.min": 3}, [], 8),
        ({f"{PREFILL}.min": 3}, ONE_MORE, 4),
        ({f"{PREFILL}.min": 2}, ONE_MORE, 0),
        ({f"{PREFILL}.min": 2, f"{DECODE}.min": "3/2"}, [], 4 + 2),
        ({f"{PREFILL}.min": 1, f"{SOLO}.roles.serve.min": 2}, [], None),
        ({f"{PREFILL}.min": 2, f"{SOLO}.priority": 1}, [], 4),
    ],
)
def test_minimum_is_a_step_only_while_something_is_below_it(minimum, groups, short):
    assert steps(minimum, *groups).get("minimum[0]") == short


@pytest.mark.parametrize(
    ("world", "groups", "expected"),
    [
        pytest.param({}, [], 8 * 4, id="high-and-low"),
        pytest.param({}, [chat(added="prefill/p4@h5:4")], 32 + 4, id="medium"),
        pytest.param({}, [chat(moved="prefill-0=prefill/p4@h5:4")], 16 + 4, id="moved"),
        pytest.param(
            {"objective.tier_prices": {"low": 1, "medium": "1/2", "high": 3}},
            [FREED, chat(added="prefill/p4@h5:4")],
            4 * 1 + 2 + 8 * 3,
            id="prices",
        ),
        pytest.param(ONLY_DRAINING, [], 0, id="draining-is-free"),
        pytest.param({"nodes.4.schedulable": False}, [], 32, id="cordoned-nodes-count"),
        pytest.param({"nodes.4.gpus": 0}, [], 0, id="nodes-without-gpus-do-not"),
        pytest.param(
            {"rdma": {"lower": "s2"}}, [chat(added="prefill/p4@h5:4")], 12 * 4, id="other-lower"
        ),
        pytest.param({"rdma": {"lower": "s1", "upper": "cluster"}}, [], 32 + 8, id="other-upper"),
    ],
)
def test_rdma(world, groups, expected):
    assert cost("rdma", world, *groups) == expected


@pytest.mark.parametrize(
    ("world", "groups", "expected"),
    [
        ({}, [], 0),
        ({}, [chat(added="decode/wide@h3:8,h4:8 decode/near@h5:2,h5:2")], 1 + 2),
        ({f"{DECODE}.shapes.2.cost": 0.25}, [chat(added="decode/near@h5:2,h5:2")], Fraction(1, 4)),
        ({f"{PREFILL}.shapes.0.cost": 3}, [], 3),
        ({f"{SOLO}.roles.serve.shapes.0.cost": 1}, [FREED], 2),
    ],
)
def test_shape(world, groups, expected):
    assert cost("shape", world, *groups) == expected


TIED = {"running.0.instances": [_runs("prefill-0=prefill/p4@h1"), _runs("decode-0=decode/d4@h5")]}
DRAINING_DECIDES = {
    "running.0.instances": [*TIED["running.0.instances"], _runs("~decode-1=decode/d4@h2")]
}
WIDE_IN_S2 = {f"{DECODE}.shapes.1.level": "s2"}


@pytest.mark.parametrize(
    ("world", "groups", "expected"),
    [
        pytest.param({}, ONE_MORE, 0, id="at-home"),
        pytest.param({}, [chat(added="prefill/p4@h5:4")], 4, id="away"),
        pytest.param({}, [chat(moved="prefill-0=prefill/p4@h5:4")], 4, id="moved-away"),
        pytest.param({f"{CHAT}.affinity.preferred": None}, [chat(added="prefill/p4@h5:4")], 0),
        pytest.param(TIED, [], 0, id="both-tie"),
        pytest.param(TIED, [chat(added="prefill/p4@h3:4 decode/d4@h5:4")], 0, id="home-is-now"),
        pytest.param(
            {
                **TIED,
                "running.0.instances": [*TIED["running.0.instances"], _runs("~x=decode/d4@h2")],
            },
            [],
            4,
            id="draining-counts-for-home",
        ),
        pytest.param({}, [opened(f"{PAIR} decode/d4@h5:4")], 4, id="new-group"),
        pytest.param({}, [opened("prefill/p4@h3:4 decode/d4@h5:4")], 4, id="new-group-tie"),
        pytest.param(
            WIDE_IN_S2,
            [opened("prefill/p4@h4:4 decode/wide@h3:8,h5:8")],
            16,
            id="not-wholly-inside",
        ),
        pytest.param(
            {**WIDE_IN_S2, "running.0.instances": [_runs("decode-0=decode/wide@h3,h5")]},
            [chat(added="prefill/p4@h4:4")],
            20,
            id="no-home",
        ),
    ],
)
def test_spill(world, groups, expected):
    assert cost("spill", world, *groups) == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], 0),
        (ONE_MORE, 0),
        ([opened(PAIR)], 1),
        ([opened(PAIR), opened(PAIR, name="other")], 2),
        ([opened("")], 0),
    ],
)
def test_new_group(groups, expected):
    assert cost("new_group", {}, *groups) == expected


@pytest.mark.parametrize(
    ("world", "groups", "expected"),
    [
        pytest.param({}, [], 0, id="what-runs-breaks-nothing"),
        pytest.param({}, ONE_MORE, 1, id="one"),
        pytest.param({}, [chat(added=PAIR)], 1, id="per-node"),
        pytest.param({}, [chat(added="prefill/p4@h3:4 decode/d4@h4:4")], 2, id="two"),
        pytest.param({}, [chat(added="decode/wide@h3:8,h4:8")], 0, id="whole-nodes"),
        pytest.param({}, [chat(added="decode/near@h3:2,h3:2")], 1, id="pods-of-a-node-shape"),
        pytest.param(
            {f"{DECODE}.shapes.2": _shape("near", 4, 2, level="node")},
            [chat(added="decode/near@h3:4,h3:4")],
            0,
            id="pods-of-a-node-shape-fill-it",
        ),
        pytest.param(
            {f"{DECODE}.shapes.1": _shape("wide", 4, 2)},
            [chat(added="decode/wide@h3:4,h3:4")],
            1,
            id="pods-that-need-not-share-a-node",
        ),
        pytest.param({}, [chat(added="prefill/p4@h2:4")], 0, id="draining-there"),
        pytest.param({"nodes.2.reserved": 1}, ONE_MORE, 0, id="partly-reserved"),
        pytest.param({}, [chat(moved="prefill-0=prefill/p4@h3:4")], 1, id="moved"),
        pytest.param(REUSE, [FREED, ON_FREED], 1, id="freed-is-not-wholly-free"),
    ],
)
def test_fragmentation(world, groups, expected):
    assert cost("fragmentation", world, *groups) == expected


def test_migration():
    moves = [
        chat(moved="prefill-0=prefill/p4@h3:4 decode-0=decode/d4@h3:4"),
        solo(moved="serve-0=serve/s2@h7:2"),
    ]
    assert cost("migration", {}, *moves) == 3
    assert cost("migration", {}, *ONE_MORE) == 0


def test_cost_is_the_weighted_sum():
    weights = {
        "rdma": "1/3",
        "shape": 10,
        "spill": 100,
        "new_group": 1000,
        "fragmentation": 10_000,
        "migration": 100_000,
    }
    groups = [
        chat(moved="prefill-0=prefill/p4@h5:4", added="decode/near@h2:2,h2:2"),
        opened(PAIR),
        opened(PAIR.replace("h3", "h4"), name="other"),
    ]
    evaluation = evaluate(make({"objective": {"weights": weights}}), plan(*groups))
    assert evaluation.costs == {
        "rdma": 6 * 4 * 4 + 4,
        "shape": 2,
        "spill": 4,
        "new_group": 2,
        "fragmentation": 3,
        "migration": 1,
    }
    total = Fraction(100, 3) + 20 + 400 + 2000 + 30_000 + 100_000
    assert evaluation.values[-1] == total


# What stays broken -----------------------------------------------------------------------------


def _serving(*capacities):
    """One instance of solo per capacity, each in a shape of its own."""
    shapes = [_shape(f"x{place}", 2, capacity=each) for place, each in enumerate(capacities)]
    running = [_runs(f"serve-{place}=serve/x{place}@h6") for place in range(len(capacities))]
    return {f"{SOLO}.roles.serve.shapes": shapes, "running.1.instances": running}


PART_OUTSIDE = {
    f"{DECODE}.shapes.1.level": "cluster",
    "running.0.instances": [_runs("prefill-0=prefill/p4@h1"), _runs("decode-0=decode/wide@h3,h7")],
}
ONE_TO_THREE = {
    "running.0.instances": [
        _runs("prefill-0=prefill/p4@h1"),
        *(_runs(f"decode-{number}=decode/d4@h{number}") for number in (2, 3, 4)),
    ]
}
DRAINING_OUTSIDE = {
    "running.0.instances": [
        *BASE["running"][0]["instances"][:2],
        _runs("~decode-1=decode/d4@h7"),
    ]
}
OVER_TARGET = f"{SOLO}.roles.serve.target"


@pytest.mark.parametrize(
    ("name", "world", "groups", "expected"),
    [
        ("capacity", OVER_RESERVED, [], 4),
        ("capacity", OVER_RESERVED, [solo(removed="serve-0=serve/s2@h6:2")], 2),
        ("capacity", OVER_RESERVED, [FREED], 0),
        ("capacity", {"nodes.1.reserved": 8}, [], 4),  # draining is on the node too
        ("capacity", {"nodes.8.schedulable": False}, [], 0),
        ("colocation", OUTSIDE, [], 4),
        ("colocation", OUTSIDE, [chat(moved="prefill-0=prefill/p4@h3:4")], 0),
        ("colocation", PART_OUTSIDE, [], 16),
        ("colocation", DRAINING_OUTSIDE, [], 0),
        ("integrity", SPLIT, [], 16),
        ("integrity", SPLIT, [chat(moved="decode-0=decode/wide@h2:8,h4:8")], 0),
        ("ratio", {}, [], 0),
        ("ratio", THREE_TO_ONE, [], 4),
        ("ratio", THREE_TO_ONE, [chat(added="decode/d4@h3:4")], 0),
        ("ratio", {**THREE_TO_ONE, f"{PREFILL}.shapes.0.capacity": 2}, [], 8),
        ("ratio", ONE_TO_THREE, [], 2),
        ("ratio", ONE_TO_THREE, [chat(added="prefill/p4@h5:4")], 0),
        ("ratio", NO_DECODE, [], 4 + 4),
        ("ratio", {**NO_DECODE, f"{DECODE}.shapes.0": _shape("d4", 6)}, [], 4 + 6),
        ("ratio", {**NO_DECODE, f"{CHAT}.ratios": []}, [], 4),
        ("ratio", NO_DECODE, [chat(removed="prefill-0=prefill/p4@h1:4")], 0),
        ("ratio", ONLY_DRAINING, [], 0),
        ("target", {}, [], 4),
        ("target", {}, [solo(removed="serve-0=serve/s2@h6:2")], 2),
        ("target", {}, [FREED], 0),
        ("target", {OVER_TARGET: 4}, [], 0),
        ("target", {OVER_TARGET: 5}, [], 0),
        ("target", {OVER_TARGET: "5/2"}, [], 2),  # 3/2 over: one instance
        ("target", {**_serving(4, 6), OVER_TARGET: 7}, [], 1),  # 3 over: 2 of 4 per 2 GPUs
        ("target", {**_serving("1/2", "1/3"), OVER_TARGET: "1/3"}, [], 2),
        ("target", {**_serving("1/2", "1/3"), OVER_TARGET: "3/8"}, [], Fraction(4, 3)),
        ("limits", TOO_LARGE, [], 1),
        ("limits", TOO_LARGE, [solo(removed="serve-0=serve/s2@h6:2")], 0),
        ("limits", TWO_GROUPS, [], 1),
        ("limits", TWO_GROUPS, [group("solo-1", "solo", removed="serve-0=serve/s2@h7:2")], 0),
        ("limits", {**ONLY_DRAINING, f"{CHAT}.limits": {"max_groups": 1}}, [opened(PAIR)], 1),
    ],
)
def test_repair(name, world, groups, expected):
    assert repair(name, world, *groups) == expected


def test_repair_is_the_sum():
    world = {**OUTSIDE, **OVER_RESERVED, f"{SOLO}.limits": {"max_instances_per_group": 1}}
    evaluation = evaluate(make(world), Plan())
    assert {name: amount for name, amount in evaluation.repairs.items() if amount} == {
        "capacity": 4,
        "colocation": 4,
        "target": 4,
        "limits": 3,
    }
    assert {step.name: step.value for step in evaluation.steps}["repair"] == 15


def test_smaller_values_are_better():
    instance = make()
    nothing, one, best = (
        evaluate(instance, plan(*groups)).values
        for groups in ([], ONE_MORE, [chat(added="prefill/p4@h5:4"), FREED])
    )
    assert one < nothing
    assert best < one


# One checker for many plans --------------------------------------------------------------------

KEPT_CHAT = "prefill-0=prefill/p4@h1:4 decode-0=decode/d4@h1:4 decode-1=decode/d4@h2:4"


def judged(judge, *args):
    """What a judgement says, or how it refuses the plan."""
    try:
        return judge(*args)
    except InputError as error:
        return error.path, str(error)


def disturbed(rng, instance, plan):
    """The plan with one thing changed, whether that makes sense or not."""
    data = plan.model_dump(mode="json")
    groups = data["groups"]
    nodes = [node.name for node in instance.nodes]
    kinds = ("added", "kept", "removed", "moved")
    lists = [group[kind] for group in groups for kind in kinds if group[kind]]
    if not lists:
        return plan
    entries = rng.choice(lists)
    entry = rng.choice(entries)
    what = rng.choice(("drop", "repeat", "node", "gpus", "pod", "group", "again", "kind", "domain"))
    if what == "drop":
        entries.remove(entry)
    elif what == "repeat":
        entries.append(copy.deepcopy(entry))
    elif what == "node" and entry["pods"]:
        rng.choice(entry["pods"])["node"] = rng.choice(nodes)
    elif what == "gpus" and entry["pods"]:
        rng.choice(entry["pods"])["gpus"] += rng.choice((-1, 1))
    elif what == "pod" and entry["pods"]:
        entry["pods"].pop()
    elif what == "group":
        groups.remove(rng.choice(groups))
    elif what == "again":
        groups.append(copy.deepcopy(rng.choice(groups)))
    elif what == "kind":
        entry.pop("origin", None)
        rng.choice(groups)[rng.choice(kinds)].append(copy.deepcopy(entry))
    elif what == "domain":
        level = rng.choice(instance.levels)
        rng.choice(groups)["domain"] = rng.choice(instance.nodes).domains[level]
    return Plan.model_validate(data)


@pytest.mark.parametrize("seed", range(60))
def test_a_checker_judges_every_plan_as_a_new_one_does(seed):
    rng = random.Random(seed)
    instance = random_instance(rng, rng.choice(("tiny", "small", "small")))
    tree = TreeView(instance)
    naming, checker = Naming(tree), Checker(instance)
    plans = [naming.plan(decide(tree)) for decide in (greedy, greedy_pods)]
    plans += [naming.plan(Decision()), Plan()]
    plans += [disturbed(rng, instance, rng.choice(plans)) for _ in range(20)]
    rng.shuffle(plans)
    for each in (*plans, *plans):
        assert judged(checker.check_and_evaluate, each) == judged(
            check_and_evaluate, instance, each
        )
        assert judged(checker.check, each) == judged(check, instance, each)
        assert judged(checker.evaluate, each) == judged(evaluate, instance, each)


@pytest.mark.parametrize("seed", range(30))
def test_shared_parts_are_judged_as_separate_ones(seed):
    instance = random_instance(random.Random(seed), "small")
    tree = TreeView(instance)
    for decide in (greedy, greedy_pods):
        shared = decide(tree).plan(tree)
        separate = Plan.from_json(shared.to_json())
        assert check_and_evaluate(instance, shared) == check_and_evaluate(instance, separate)


def test_a_list_that_was_compared_is_compared_again_when_it_changes():
    instance = make()
    checker = Checker(instance)
    entries = list(plan(chat(kept=KEPT_CHAT)).groups[0].kept)
    given = PlanGroup.model_construct(
        name="chat-0", service="chat", domain="p1", new=False, kept=entries
    )
    unchecked = Plan.model_construct(groups=(given,))
    assert checker.check(unchecked) == []
    entries[0] = PlacedInstance(
        name="prefill-0", role="prefill", shape="p4", pods=(PlacedPod(node="h3", gpus=4),)
    )
    assert [each.message for each in checker.check(unchecked)] == [
        "instance prefill-0 is kept but on other nodes"
    ]


def test_pods_that_were_compared_are_compared_again_when_they_change():
    checker = Checker(make())
    pods = [PlacedPod(node="h1", gpus=4)]
    first = PlacedInstance.model_construct(name="prefill-0", role="prefill", shape="p4", pods=pods)
    rest = plan(chat(kept=KEPT_CHAT)).groups[0].kept[1:]
    given = PlanGroup.model_construct(name="chat-0", service="chat", kept=(first, *rest))
    unchecked = Plan.model_construct(groups=(given,))
    assert checker.check(unchecked) == []
    pods[0] = PlacedPod(node="h3", gpus=4)
    assert [each.constraint for each in checker.check(unchecked)] == ["running"]


def test_a_list_that_was_compared_is_compared_again_in_another_group():
    checker = Checker(make())
    given = plan(chat(kept=KEPT_CHAT)).groups[0]
    assert checker.check(Plan(groups=(given,))) == []
    other = given.model_copy(update={"name": "solo-0", "service": "solo", "domain": None})
    with pytest.raises(InputError, match=re.escape("groups[0].kept[0].name: no running instance")):
        checker.check(Plan(groups=(other,)))


def test_the_other_lists_are_read_beside_one_that_was_compared():
    checker = Checker(make({"cycle": {"max_migrations": 1}}))
    given = plan(chat(kept=KEPT_CHAT)).groups[0]
    assert checker.check(Plan(groups=(given,))) == []
    moved = plan(chat(moved="prefill-0=prefill/p4@h3:4")).groups[0].moved
    both = given.model_copy(update={"moved": moved})
    assert [each.message for each in checker.check(Plan(groups=(both,)))] == [
        "instance prefill-0 is listed 2 times"
    ]


def test_an_instance_listed_twice_as_one_object_counts_twice():
    instance = make()
    outside, inside = plan(chat(added="prefill/p4@h7:4 prefill/p4@h3:4")).groups[0].added
    given = plan(chat()).groups[0].model_copy(update={"added": (outside, inside, outside)})
    shared = Plan(groups=(given,))
    separate = Plan.from_json(shared.to_json())
    found, evaluation = check_and_evaluate(instance, shared)
    assert (found, evaluation) == check_and_evaluate(instance, separate)
    assert [each.constraint for each in found] == ["colocation", "colocation", "ratio"]
    assert evaluation.roles[0].delivered == 4


# Naming ----------------------------------------------------------------------------------------


def test_named_plans_are_what_validation_makes_of_them():
    instance = make({"cycle": {"max_migrations": 1}})
    tree = TreeView(instance)
    h3, h7 = (instance.node_index[name] for name in ("h3", "h7"))
    decision = Decision(
        new_groups=[(1, 0)],
        added=[
            Added(0, "decode", 1, (h3, h3)),
            Added(2, "serve", 0, (h7,)),
            Added(2, "serve", 0, (h7,)),
        ],
        removed={(1, 3), (1, 0)},
        moved={(0, 1): (h3,)},
    )
    named = decision.plan(tree)
    expected = plan(
        group(
            "chat-0",
            domain="p1",
            added="decode/wide@h3:8,h3:8",
            kept="prefill-0=prefill/p4@h1:4 decode-1=decode/d4@h2:4",
            moved="decode-0=decode/d4@h3:4",
        ),
        solo(
            kept="serve-1=serve/s2@h6:2 serve-2=serve/s2@h6:2",
            removed="serve-0=serve/s2@h6:2 serve-3=serve/s2@h6:2",
        ),
        opened("serve/s2@h7:2 serve/s2@h7:2", "solo", None, name="solo"),
    )
    origin = (PlacedPod(node="h1", gpus=4),)
    moved = expected.groups[0].moved[0].model_copy(update={"origin": origin})
    first = expected.groups[0].model_copy(update={"moved": (moved,)})
    assert named.groups == (first, *expected.groups[1:])
    assert named.instance_digest == instance.digest
    assert Plan.from_json(named.to_json()) == named
    assert pickle.loads(pickle.dumps(named)) == copy.deepcopy(named) == named
    for part in (named.groups[1], named.groups[1].kept[0], named.groups[1].kept[0].pods[0]):
        again = type(part).model_validate(part.model_dump())
        assert (again, repr(again), again.model_fields_set) == (
            part,
            repr(part),
            part.model_fields_set,
        )


@pytest.mark.parametrize("seed", range(20))
def test_naming_again_gives_what_naming_once_gives(seed):
    tree = TreeView(random_instance(random.Random(seed), "small"))
    naming = Naming(tree)
    decisions = [greedy(tree), Decision(), greedy_pods(tree)]
    for decision in (*decisions, *decisions):
        assert naming.plan(decision) == decision.plan(tree)
