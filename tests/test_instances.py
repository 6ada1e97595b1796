"""Every instance in ``instances/`` with the facts of its best plan, derived by hand."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest

from heteroplace import Instance, Plan, Profile, check, evaluate, solve
from heteroplace.plan import PlacedInstance

FOLDER = Path(__file__).parent.parent / "instances"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


class Seen:
    """A plan as the checks below look at it."""

    def __init__(self, instance: Instance, plan: Plan) -> None:
        self.plan = plan
        self.nodes = {node.name: node for node in instance.nodes}

    def added(self, service: str, role: str | None = None) -> list[PlacedInstance]:
        return [
            each
            for group in self.plan.groups
            for each in group.added
            if group.service == service and role in (None, each.role)
        ]

    def moved(self, service: str) -> int:
        return sum(len(group.moved) for group in self.plan.groups if group.service == service)

    def removed(self, service: str) -> set[str]:
        groups = [group for group in self.plan.groups if group.service == service]
        return {str(each.name) for group in groups for each in group.removed}

    def opened(self, service: str) -> list[int]:
        """Sizes of the service's new groups."""
        groups = [group for group in self.plan.groups if group.service == service and group.new]
        return sorted(len(group.added) for group in groups if group.added)

    def on(self, service: str, role: str | None = None) -> list[str]:
        """Node of every added pod."""
        return sorted(pod.node for each in self.added(service, role) for pod in each.pods)

    def at(self, level: str, service: str, role: str | None = None) -> dict[str, int]:
        """Count added pods per domain of a level."""
        return Counter(self.nodes[name].domains[level] for name in self.on(service, role))

    def whole(self, level: str, service: str) -> bool:
        """Whether the pods of each added instance share a domain."""
        return all(
            len({self.nodes[pod.node].domains[level] for pod in each.pods}) == 1
            for each in self.added(service)
        )

    def filled(self) -> set[int]:
        """GPUs that arrive on a node, over the nodes that get any."""
        total: Counter[str] = Counter()
        for group in self.plan.groups:
            for each in (*group.added, *group.moved):
                for pod in each.pods:
                    total[pod.node] += pod.gpus
        return set(total.values())


def _yes(seen: Seen) -> bool:
    return True


@dataclass(frozen=True)
class Expect:
    """All steps of the objective; the named costs and repairs that are not 0; a feature."""

    steps: dict[str, int | Fraction]
    costs: dict[str, int | Fraction] = field(default_factory=dict)
    repairs: dict[str, int] = field(default_factory=dict)
    check: Callable[[Seen], bool] = _yes


def _steps(unmet: int, cost: int | Fraction, repair: int = 0) -> dict[str, int | Fraction]:
    return {"unmet[0]": unmet, "repair": repair, "cost": cost}


EXPECTED = {
    # code lacks one prefill of 4 GPUs. rdma: code 24 GPUs high, embed 8 medium; three free nodes
    # get 4-GPU pods: two for chat, one for code.
    "quickstart": Expect(
        _steps(4, 24 * 4 + 8 + 1 + 3),
        {"rdma": 104, "new_group": 1, "fragmentation": 3},
        check=lambda seen: (
            seen.at("s1", "chat") == {"mini-b1": 3}
            and not seen.opened("chat")
            and seen.at("s1", "code") == {"mini-a1": 4}
            and seen.removed("embed") == {"serve-0", "serve-1"}
        ),
    ),
    "many-levels": Expect(
        _steps(0, 3),
        {"new_group": 3},
        check=lambda seen: (
            seen.at("cluster", "batch") == {"eu-1-a": 5}
            and seen.at("s0", "rack-tight") == {"rack-6": 2}
            and seen.on("global") == ["rack-4-1", "rack-5-1"]
        ),
    ),
    # tight 16 GPUs high, loose 8 medium; loose breaks two free nodes.
    "rdma-tiers": Expect(
        _steps(0, 16 * 4 + 8 + 2 + 2),
        {"rdma": 72, "new_group": 2, "fragmentation": 2},
        check=lambda seen: seen.at("s1", "loose") == {"mini-a2": 2, "mini-b1": 2},
    ),
    "affinity": Expect(
        _steps(4, 4 + 3 + 3),
        {"spill": 4, "new_group": 3, "fragmentation": 3},
        check=lambda seen: (
            sorted(seen.at("s1", "preferring").values()) == [1, 2]
            and len(seen.at("s2", "preferring")) == 1
            and sorted(seen.at("s1", "requiring").values()) == [2]
        ),
    ),
    # Two of four prefill and two of four decode instances of 8 GPUs are unmet.
    "ratio-bands": Expect(
        _steps(32, 32 * 4 + 2 + 2),
        {"rdma": 128, "new_group": 2, "fragmentation": 2},
        check=lambda seen: (
            len(seen.added("chat", "prefill")) == len(seen.added("chat", "decode")) == 2
            and len(seen.added("exact", "prefill")) == len(seen.added("exact", "decode")) == 2
        ),
    ),
    # Two l20-tp4 at rank 1 and one h20-tp8 at 0.5.
    "shapes": Expect(
        _steps(0, 16 * 4 + Fraction(5, 2) + 1 + 1),
        {"rdma": 64, "shape": Fraction(5, 2), "new_group": 1, "fragmentation": 1},
        check=lambda seen: (
            sorted(each.shape for each in seen.added("chat")) == ["h20-tp8", "l20-tp4", "l20-tp4"]
        ),
    ),
    "hetero-s1": Expect(
        _steps(0, 32 * 4 + 8 + 2),
        {"rdma": 136, "new_group": 2},
        check=lambda seen: seen.on("plain") == ["mini-a2-h20-1"],
    ),
    "hetero-s2": Expect(
        _steps(0, 32 + 1),
        {"rdma": 32, "new_group": 1},
        check=lambda seen: (
            seen.at("s1", "chat", "prefill") == {"mini-a1": 2}
            and seen.at("s1", "chat", "decode") == {"mini-a2": 2}
        ),
    ),
    "multi-node": Expect(
        _steps(16, 2),
        {"new_group": 2},
        check=lambda seen: (
            seen.at("s1", "large") == {"mini-a1": 2, "mini-a2": 2}
            and seen.whole("s1", "large")
            and seen.at("s1", "small") == {"mini-a1": 1, "mini-a2": 1}
        ),
    ),
    # 12 GPUs of prefill and 16 of decode are unmet; 12 + 2 * 16 run on high.
    "moe": Expect(
        _steps(28, 44 * 4 + 1 + 3),
        {"rdma": 176, "new_group": 1, "fragmentation": 3},
        check=lambda seen: (
            len(seen.added("moe", "prefill")) == 1
            and len(seen.added("moe", "decode")) == 2
            and seen.whole("s1", "moe")
            and set(seen.at("s2", "moe")) == {"pod-a"}
        ),
    ),
    "aggregated": Expect(
        _steps(0, 1),
        {"new_group": 1},
        check=lambda seen: (
            seen.on("embed") == ["mini-a1-l20-1", "mini-a1-l20-1", "mini-a1-l20-2"]
            and not seen.opened("embed")
        ),
    ),
    "grow-or-open": Expect(
        _steps(0, 1 + 4),
        {"new_group": 1, "fragmentation": 4},
        check=lambda seen: (
            seen.at("s1", "chat") == {"mini-a1": 2, "mini-a2": 4}
            and seen.opened("chat") == [4]
            and seen.on("code") == ["mini-a3-h20-2"] * 2
        ),
    ),
    # What is left: prefill 4 GPUs high, decode 4 medium, loose 4 medium and 8 low.
    "scale-in": Expect(
        _steps(0, 16 + 4 + 4),
        {"rdma": 24},
        check=lambda seen: (
            len(seen.removed("loose")) == 3
            and {"serve-0", "serve-1"} < seen.removed("loose") < {f"serve-{n}" for n in range(4)}
            and sorted(name[:-2] for name in seen.removed("pair")) == ["decode", "prefill"]
        ),
    ),
    "draining": Expect(
        _steps(8, 0),
        check=lambda seen: seen.on("chat") == ["mini-a1-h20-3"] and not seen.removed("chat"),
    ),
    "no-reuse": Expect(
        _steps(8, 0),
        check=lambda seen: len(seen.removed("old")) == 1 and not seen.added("young"),
    ),
    "reuse-freed": Expect(
        _steps(0, 1),
        {"new_group": 1},
        check=lambda seen: len(seen.removed("old")) == len(seen.added("young")) == 1,
    ),
    # tiny's 2 GPUs stay on high.
    "migration": Expect(
        _steps(0, 2 * 4 + 2 * 10 + 1),
        {"rdma": 8, "migration": 2, "new_group": 1},
        check=lambda seen: [seen.moved(name) for name in ("half", "costly", "tiny")] == [1, 1, 0],
    ),
    # Four instances of 4 GPUs on high; one free node gets pods of 4.
    "cordoned": Expect(
        _steps(4, 4 * 4 * 4 + 1),
        {"rdma": 64, "fragmentation": 1},
        check=lambda seen: seen.on("chat") == ["mini-a1-h20-1", "mini-a1-h20-1", "mini-a1-h20-3"],
    ),
    "broken-now": Expect(
        _steps(0, 1, repair=4),
        {"fragmentation": 1},
        {"colocation": 4},
        check=lambda seen: (
            len(seen.removed("chat")) == 1
            and seen.removed("chat") < {"prefill-0", "prefill-1"}
            and seen.at("s1", "chat", "decode") == {"mini-a1": 2}
        ),
    ),
    "odd-sizes": Expect(
        _steps(6, 2 + 3),
        {"new_group": 2, "fragmentation": 3},
        check=lambda seen: seen.filled() == {6},
    ),
    # single lacks 8 GPUs, floor and rival together 16.
    "limits": Expect(
        {"minimum[0]": 0, **_steps(24, 4 + 2)},
        {"new_group": 4, "fragmentation": 2},
        check=lambda seen: (
            seen.opened("single") == [2]
            and seen.opened("paired") == [2, 2]
            and len(seen.added("floor")) >= 1
        ),
    ),
    "priorities": Expect(
        {"unmet[10]": 5, "unmet[0]": 8, "unmet[-5]": 0, "repair": 0, "cost": 1 + 1},
        {"new_group": 1, "fragmentation": 1},
        check=lambda seen: (
            len(seen.added("vip")) == 1 and not seen.added("bulk") and not seen.removed("batch")
        ),
    ),
}


def _load(name: str) -> Instance:
    return Instance.from_file(FOLDER / f"{name}.json")


@pytest.fixture(params=["cpsat", "milp", "highs", "auto"])
def solver(request):
    return request.param


def test_every_instance_has_its_expected_facts():
    assert set(EXPECTED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_small_and_says_what_it_shows(name):
    instance = _load(name)
    assert instance.name == name
    assert len(instance.nodes) <= 24
    assert instance.description.count(". ") >= 1


@pytest.mark.parametrize("name", NAMES)
def test_doing_nothing_is_feasible(name):
    assert check(_load(name), Plan()) == []


@pytest.mark.parametrize("name", NAMES)
def test_roundtrip(name):
    instance = _load(name)
    again = Instance.from_json(instance.to_json())
    assert again == instance
    assert again.digest == instance.digest


@pytest.mark.parametrize("name", NAMES)
def test_optimum(name, solver):
    instance, expect = _load(name), EXPECTED[name]
    result = solve(instance, Profile(solver=solver, time_limit=60))
    assert result.status == "optimal"
    assert check(instance, result.plan) == []
    evaluation = evaluate(instance, result.plan)
    assert {step.name: step.value for step in evaluation.steps} == expect.steps
    assert {name: amount for name, amount in evaluation.costs.items() if amount} == expect.costs
    assert {name: amount for name, amount in evaluation.repairs.items() if amount} == expect.repairs
    assert {step.name: step.value for step in result.steps} == pytest.approx(expect.steps)
    assert all(step.proven for step in result.steps)
    assert expect.check(Seen(instance, result.plan))
