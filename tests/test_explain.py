"""Why capacity is unmet: one small instance per reason, and whatever comes on random ones."""

from __future__ import annotations

import importlib
import random
import time
from typing import Any

import pytest
from strategies import random_instance

from heteroplace import Instance, Plan, Profile, check, evaluate, solve
from heteroplace.decision import Decision
from heteroplace.explain import Explanation, explain
from heteroplace.solve.greedy import greedy
from heteroplace.topology import TreeView

Data = dict[str, Any]

# The package's attribute of that name is the function.
explain_module = importlib.import_module("heteroplace.explain")

EXACT = Profile(solver="highs")
CONSTRAINTS = {
    *("search", "priority", "no_reuse", "capacity", "colocation"),
    *("ratio", "limits", "integrity"),
}


def node(name: str, domain: str, gpus: int = 8, gpu_type: str = "H20", **more: Any) -> Data:
    domains = {"cluster": "c", "s2": domain[0], "s1": domain}
    return {"name": name, "gpu_type": gpu_type, "gpus": gpus, "domains": domains, **more}


def role(target: float, *pods: tuple[int, int], gpu_type: str = "H20", **more: Any) -> Data:
    """A role with one shape of pods (GPUs, count)."""
    shape = {"pods": [{"gpu_type": gpu_type, "gpus": gpus, "count": n} for gpus, n in pods]}
    return {"target": target, "shapes": [{**shape, **more}]}


def service(name: str = "a", priority: int = 0, **roles: Any) -> Data:
    extra = {key: roles.pop(key) for key in ("affinity", "ratios", "limits") if key in roles}
    return {"name": name, "priority": priority, "roles": roles, **extra}


def group(name: str, served: str, *instances: tuple[str, str]) -> Data:
    """A running group of (role, node) pairs."""
    found = [{"role": each, "shape": "shape0", "nodes": [on]} for each, on in instances]
    return {"name": name, "service": served, "instances": found}


def instance(nodes: list[Data], services: list[Data], **more: Any) -> Instance:
    return Instance.from_dict({"schema": 1, "nodes": nodes, "services": services, **more})


BAND = {"numerator": "prefill", "denominator": "decode", "min": 1, "max": 1}
TWO = [node("n0", "p0"), node("n1", "q0")]
EMBED = service("embed", serve=role(0, (8, 1)))

# name: (instance, constraint, words of the reason)
CASES: dict[str, tuple[Instance, str, str]] = {
    "priority": (
        instance(
            [node("n0", "p0")],
            [service(serve=role(1, (8, 1))), service("first", 5, serve=role(1, (8, 1)))],
        ),
        "priority",
        "went to others: first (8 GPUs, priority 5); its own priority is 0.",
    ),
    "no_reuse": (
        instance(
            [node("n0", "p0")],
            [service(serve=role(1, (8, 1))), EMBED],
            running=[group("old", "embed", ("serve", "n0"))],
        ),
        "no_reuse",
        "from the next cycle on",
    ),
    "room that a moved instance leaves": (
        instance(
            [node("n0", "p0"), node("n1", "p1", 4)],
            [
                service("old", 9, affinity={"required": "s1"}, serve=role(1, (4, 1))),
                service(serve=role(1, (4, 2), level="node")),
            ],
            running=[{**group("old", "old", ("serve", "n0")), "domain": "p1"}],
            cycle={"max_migrations": 1},
        ),
        "integrity",
        "the shape's level",
    ),
    "cordoned": (
        instance(
            [node("n0", "p0", schedulable=False), node("n1", "p0", 4)],
            [service(serve=role(1, (8, 1)))],
        ),
        "capacity",
        "cordoned nodes or reserved",
    ),
    "reserved": (
        instance([node("n0", "p0", reserved=1)], [service(serve=role(1, (8, 1)))]),
        "capacity",
        "cordoned nodes or reserved",
    ),
    "colocation": (
        instance(
            TWO,
            [
                service(
                    affinity={"required": "s2"},
                    ratios=[BAND],
                    prefill=role(1, (8, 1)),
                    decode=role(1, (8, 1)),
                )
            ],
        ),
        "colocation",
        "No single domain of its affinity level",
    ),
    "ratio band": (
        instance(
            [*TWO, node("n2", "q0", gpu_type="L20")],
            [
                service(
                    ratios=[BAND],
                    prefill=role(2, (8, 1)),
                    decode=role(2, (8, 1), gpu_type="L20"),
                )
            ],
        ),
        "ratio",
        "outside the ratio band",
    ),
    "ratio without a role": (
        instance(
            [*TWO, node("n2", "q0", 4, gpu_type="L20")],
            [service(prefill=role(2, (8, 1)), decode=role(1, (8, 1), gpu_type="L20"))],
        ),
        "ratio",
        "without one of the roles",
    ),
    "limit of groups": (
        instance(
            TWO,
            [service(affinity={"required": "s2"}, limits={"max_groups": 1}, serve=role(2, (8, 1)))],
        ),
        "colocation",
        "over several domains",
    ),
    "limit of instances": (
        instance(
            TWO,
            [
                service(
                    limits={"max_groups": 1, "max_instances_per_group": 1}, serve=role(2, (8, 1))
                )
            ],
        ),
        "limits",
        "limits on groups or instances per group",
    ),
    "integrity": (
        instance(TWO, [service(serve=role(1, (8, 2), level="s1"))]),
        "integrity",
        "the shape's level",
    ),
    "fragmentation": (
        instance(
            [node("n0", "p0"), node("n1", "p0")],
            [service(serve=role(1, (8, 1))), service("b", serve=role(2, (4, 1)))],
            running=[group("g", "b", ("serve", "n0"), ("serve", "n1"))],
        ),
        "capacity",
        "in pieces smaller than its pods",
    ),
    "fragmentation of a running service": (
        instance(
            [node("n0", "p0"), node("n1", "p0"), node("n2", "p0")],
            [service(serve=role(2, (8, 1))), service("b", serve=role(2, (4, 1)))],
            running=[
                group("g", "b", ("serve", "n0"), ("serve", "n1")),
                group("h", "a", ("serve", "n2")),
            ],
        ),
        "capacity",
        "in pieces smaller than its pods",
    ),
    "scarcity": (
        instance([node("n0", "p0", 4)], [service(serve=role(1, (8, 1)))]),
        "capacity",
        "too few free GPUs of its types: 4 H20",
    ),
    "several": (
        instance(
            [node("n0", "p0"), node("n1", "q0", schedulable=False)],
            [service(serve=role(1, (8, 2), level="s1"))],
        ),
        "integrity",
        "only without all of these: cordoned nodes and reserved GPUs, the level of its shapes.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_reason(name: str) -> None:
    given, constraint, words = CASES[name]
    result = solve(given, EXACT)
    assert result.status == "optimal"
    found = explain(given, result.plan)
    assert found
    for each in found:
        if each.service == "a":
            assert (each.constraint, words in each.reason) == (constraint, True), each
    assert well_formed(given, result.plan, found)


def test_search() -> None:
    given = instance(TWO, [service(serve=role(2, (8, 1)))])
    (found,) = explain(given, Plan())
    assert (found.constraint, found.unmet_gpus) == ("search", 16.0)
    result = solve(given, EXACT)
    assert explain(given, result.plan) == []


def test_what_is_freed_is_no_room_unless_it_may_be_used() -> None:
    """A plan that only removes leaves room for more exactly when freed GPUs may be reused."""
    for reuse, expected in ((False, "no_reuse"), (True, "search")):
        given = instance(
            [node("n0", "p0")],
            [service(serve=role(1, (8, 1))), EMBED],
            running=[group("old", "embed", ("serve", "n0"))],
            cycle={"reuse_freed": reuse},
        )
        data = {
            "name": "old",
            "service": "embed",
            "removed": [
                {
                    "name": "serve-0",
                    "role": "serve",
                    "shape": "shape0",
                    "pods": [{"node": "n0", "gpus": 8}],
                }
            ],
        }
        plan = Plan.model_validate({"groups": [data]})
        assert check(given, plan) == []
        (found,) = explain(given, plan)
        assert found.constraint == expected


def test_its_own_minimum_is_no_rival() -> None:
    """More in total would be possible, but a role of the service itself would get too little."""
    given = instance(
        [node("n0", "p0", 17)],
        [service(route=role(3, (4, 1)), serve={**role(2, (5, 1)), "min": 2})],
        running=[group("g", "a", ("route", "n0"), ("serve", "n0"))],
    )
    (found,) = explain(given, solve(given, EXACT).plan)
    assert (found.role, found.constraint) == ("route", "priority")
    assert found.reason == "More could only be placed if a role fell short of its minimum."


def test_rivals_are_those_who_took_gpus_of_its_types() -> None:
    given = instance(
        [node("n0", "p0"), node("n1", "p0", gpu_type="L20")],
        [
            service(serve=role(1, (8, 1))),
            service("first", 5, serve=role(1, (8, 1))),
            service("lonely", 9, serve=role(1, (8, 1), gpu_type="L20")),
        ],
    )
    (found,) = explain(given, solve(given, EXACT).plan)
    assert "first (8 GPUs" in found.reason
    assert "lonely" not in found.reason


def test_huge_pods_are_explained_without_being_made() -> None:
    given = instance([node("n0", "p0")], [service(serve=role(1, (10**6, 4096), level="cluster"))])
    (found,) = explain(given, Plan())
    assert (found.constraint, "too few" in found.reason) == ("capacity", True)


def test_only_the_shortest_services() -> None:
    services = [service(f"s{number}", serve=role(number, (8, 1))) for number in range(1, 6)]
    given = instance([node("n0", "p0", 1)], services)
    everything = explain(given, Plan())
    assert [each.service for each in everything] == ["s5", "s4", "s3", "s2", "s1"]
    assert explain(given, Plan(), 2) == everything[:2]
    assert explain(given, Plan(), 0) == []


def test_names_with_any_character_are_different_services() -> None:
    """A service is itself, not a part of one whose name its own begins with."""
    for short, long in (("a", "a\0b"), ("a", "a\0serve"), ("", "\0")):
        plain, odd = (
            instance(
                [node("n0", "p0"), node("n1", "p0", gpu_type="L20")],
                [
                    service(f"x{first}", serve=role(1, (16, 1))),
                    service(
                        f"x{second}",
                        ratios=[BAND],
                        prefill=role(9, (2, 1), gpu_type="L20"),
                        decode=role(1, (4, 1), gpu_type="L20"),
                    ),
                ],
            )
            for first, second in (("y", "z"), (short, long))
        )
        found, wanted = (explain(each, solve(each, EXACT).plan) for each in (odd, plain))
        assert [each.constraint for each in found] == [each.constraint for each in wanted]
        assert [each.reason for each in found] == [each.reason for each in wanted]
        assert {each.service for each in found} == {f"x{short}", f"x{long}"}


class Clock:
    """Time that passes when somebody looks."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return float(self.looks)


def test_the_time_is_kept_within_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """More time explains more services, always whole ones, and nothing goes on afterwards."""
    services = [
        service(f"s{number}", prefill=role(number, (8, 2), level="s1"), decode=role(1, (8, 1)))
        for number in range(1, 4)
    ]
    given = instance([node("n0", "p0", 4), node("n1", "q0", schedulable=False)], services)
    everything = explain(given, Plan())
    begun: list[int] = []

    def experiment(tree: TreeView, deadline: float | None) -> Decision:
        begun.append(clock.looks)
        return greedy(tree, deadline)

    monkeypatch.setattr(explain_module, "greedy", experiment)
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    assert explain(given, Plan(), seconds=1e9) == everything
    assert len(begun) > 2 * len(services)
    amounts = []
    for seconds in range(clock.looks + 1):
        begun.clear()
        clock = Clock()
        monkeypatch.setattr(time, "monotonic", clock)
        found = explain(given, Plan(), seconds=float(seconds))
        assert all(looks < 1 + seconds for looks in begun)
        names = {each.service for each in found}
        assert found == [each for each in everything if each.service in names]
        amounts.append(len(found))
    assert amounts == sorted(amounts)
    assert set(amounts) == {0, 2, 4, 6}


def test_what_is_unmet_may_be_given() -> None:
    for given, _, _ in CASES.values():
        result = solve(given, EXACT)
        assert explain(given, result.plan, unmet=result.unmet) == explain(given, result.plan)
    assert explain(given, result.plan, unmet=()) == []


def test_what_others_free_counts_where_it_may_be_used() -> None:
    """The room of a service that scales in is there exactly with ``reuse_freed``, or without it."""
    services = [
        service(serve=role(2, (8, 1))),
        service("old", serve=role(1, (4, 1))),
        service("new", 5, serve=role(1, (8, 1))),
    ]
    for reuse, words in ((False, "from the next cycle on"), (True, "new (8 GPUs, priority 5)")):
        given = instance(
            [node("n0", "p0"), node("n1", "p0")],
            services,
            running=[group("o", "old", ("serve", "n0"), ("serve", "n0"), ("serve", "n1"))],
            cycle={"reuse_freed": reuse},
        )
        found = {each.service: each.reason for each in explain(given, solve(given, EXACT).plan)}
        assert words in found["a"], found


def well_formed(given: Instance, plan: Plan, found: list[Explanation]) -> bool:
    short = {
        (each.service, each.role): float(each.unmet_gpus)
        for each in evaluate(given, plan).roles
        if each.unmet
    }
    assert {(each.service, each.role): each.unmet_gpus for each in found} == short
    assert len(found) == len(short)
    amounts = [each.unmet_gpus for each in found]
    assert amounts == sorted(amounts, reverse=True)
    for each in found:
        assert each.constraint in CONSTRAINTS
        assert each.reason.isprintable()
        assert each.reason.endswith(".")
        assert "others: ;" not in each.reason
        assert not [
            word for word in ("shape0", "fleet", "None", "_", "Fraction") if word in each.reason
        ]
    return True


@pytest.mark.parametrize("block", range(6))
def test_random_instances_are_explained(block: int) -> None:
    for seed in range(3000 + 30 * block, 3030 + 30 * block):
        given = random_instance(random.Random(seed), "small" if seed % 2 else "tiny")
        before = given.model_dump_json()
        for plan in (
            Plan(),
            *(solve(given, Profile(solver=each)).plan for each in ("greedy", "highs")),
        ):
            assert well_formed(given, plan, explain(given, plan)), seed
        assert given.model_dump_json() == before


def test_a_proven_plan_of_one_service_leaves_no_room() -> None:
    """Where nothing else counts, ``search`` contradicts a proof."""
    proven = 0
    for seed in range(3200, 3320):
        given = random_instance(random.Random(seed), "small")
        result = solve(given, EXACT)
        if result.status == "optimal" and len(given.services) == 1:
            proven += 1
            assert "search" not in {each.constraint for each in explain(given, result.plan)}, seed
    assert proven >= 20
