"""Between policies and placement: what runs as counts, targets as an instance."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from policy_fleets import NOW, fleet, service

from heteroplace import InputError, Profile, check, solve
from heteroplace.plan import PlacedInstance, PlacedPod
from heteroplace.policy import (
    Cluster,
    Fleet,
    FleetState,
    Reading,
    Snapshot,
    assemble,
    decide,
    free_gpus,
    observe,
    withdraw,
)

ROOT = Path(__file__).parents[1]
BIG = {"name": "big", "pods": [{"gpu_type": "H20", "gpus": 8}], "capacity": 100}
SMALL = {"name": "small", "pods": [{"gpu_type": "H20", "gpus": 2}], "capacity": 25}
SHAPES = [BIG, SMALL]


def cluster(*instances, nodes=4, groups=None, **changes):
    """H20 nodes of 8 GPUs under one S1, with one group of chat."""
    domains = {"cluster": "c", "s2": "p", "s1": "m"}
    group = {"name": "g", "service": "chat", "instances": list(instances)}
    running = ([group] if instances else []) + (groups or [])
    data = {
        "schema": 1,
        "nodes": [
            {"name": f"n{index}", "gpu_type": "H20", "gpus": 8, "domains": domains}
            for index in range(nodes)
        ],
        "running": running,
    }
    return Cluster.from_json(json.dumps(data | changes))


def on(role, shape, node, **changes):
    return {"role": role, "shape": shape, "nodes": [node], **changes}


def two_shapes(**changes):
    roles = {role: {"min": 1, "max": 40, "shapes": SHAPES} for role in ("prefill", "decode")}
    return fleet(service(roles=roles, **changes))


def decided(made, running, value=400.0):
    snapshot = Snapshot(NOW, {"chat": {"decode_tps": Reading(value, NOW)}})
    return decide(made, FleetState(), snapshot, observe(made, running))


def test_what_runs_counts_in_equivalents_of_the_preferred_shape():
    running = cluster(
        on("prefill", "big", "n0"),
        on("decode", "small", "n1"),
        on("decode", "small", "n1", registered=False),
        on("decode", "small", "n1", state="starting"),
        on("decode", "small", "n1", state="draining"),
    )
    found = observe(two_shapes(), running)["chat"]
    assert found["prefill"].ready == found["prefill"].registered == 1
    decode = found["decode"]
    assert (decode.ready, decode.registered) == (Fraction(1, 2), Fraction(1, 4))
    assert (decode.starting, decode.draining) == (Fraction(1, 4), Fraction(1, 4))


def test_a_service_that_does_not_run_is_not_observed():
    assert observe(fleet(), cluster()) == {}


def test_instances_under_observation_drain_and_come_back():
    running = cluster(*(on(role, "x4", "n0") for role in ("prefill", "decode")))
    made = fleet()
    step = decided(made, running, 100)
    gone = PlacedInstance(
        name="decode-0", role="decode", shape="x4", pods=(PlacedPod(node="n0", gpus=4),)
    )
    state = withdraw(step.state, "chat", [("g", gone)], NOW, 60)
    assert observe(made, running, state)["chat"]["decode"].draining == 1
    assert observe(made, running, state)["chat"]["decode"].ready == 0
    instance = assemble(made, running, step.decisions, state)
    assert [each.state for each in instance.running[0].instances] == ["ready", "draining"]
    (under,) = state.services["chat"].withdrawn
    back = [step.decisions[0].model_copy(update={"restore": (under,)})]
    instance = assemble(made, running, back, step.state)
    assert [each.state for each in instance.running[0].instances] == ["ready", "ready"]
    ends = [step.decisions[0].model_copy(update={"terminate": (under,)})]
    instance = assemble(made, running, ends, step.state)
    assert [each.state for each in instance.running[0].instances] == ["ready", "draining"]


def test_targets_and_bands_are_in_capacity():
    roles = {
        "prefill": {"min": 2, "max": 40, "shapes": [{**BIG, "capacity": 300}]},
        "decode": {"min": 1, "max": 40, "shapes": SHAPES},
    }
    made = fleet(service(roles=roles, priority=7, affinity={"required": "s2"}))
    step = decided(made, cluster(), 400)
    (placed,) = assemble(made, cluster(), step.decisions).services
    counts = step.decisions[0].counts
    assert placed.roles["prefill"].target == counts["prefill"] * 300
    assert placed.roles["prefill"].min == 600
    assert placed.roles["decode"].target == counts["decode"] * 100
    (band,) = placed.ratios
    assert (band.min, band.max) == (Fraction(3, 2), 6)
    assert (placed.priority, placed.affinity.required) == (7, "s2")


def test_a_band_that_needs_rounding_gets_wider():
    roles = {
        "prefill": {"max": 40, "shapes": [{**BIG, "capacity": "1000000007/999999937"}]},
        "decode": {"max": 40, "shapes": [{**BIG, "capacity": "1000000009/999999929"}]},
    }
    made = fleet(service(roles=roles))
    (placed,) = assemble(made, cluster(), decided(made, cluster()).decisions).services
    scale = Fraction("1000000007/999999937") / Fraction("1000000009/999999929")
    assert placed.ratios[0].min <= scale / 2
    assert placed.ratios[0].max >= scale * 2
    assert float(placed.ratios[0].max) == pytest.approx(float(scale * 2))


def test_other_tenants_only_reserve_their_gpus():
    other = {
        "name": "o",
        "service": "batch",
        "instances": [on("any", "any", "n0", gpus=[5]), on("any", "any", "n1", gpus=[8])],
    }
    running = cluster(on("decode", "x4", "n2"), groups=[other])
    made = fleet()
    instance = assemble(made, running, decided(made, running).decisions)
    assert [node.reserved for node in instance.nodes] == [5, 8, 0, 0]
    assert [group.service for group in instance.running] == ["chat"]
    assert free_gpus(made, running) == {"H20": 3 + 0 + 4 + 8}


def test_cordoned_and_reserved_gpus_are_not_free():
    data = json.loads(cluster().to_json())
    data["nodes"][0]["schedulable"] = False
    data["nodes"][1]["reserved"] = 6
    assert free_gpus(fleet(), Cluster.from_json(json.dumps(data))) == {"H20": 2 + 8 + 8}


@pytest.mark.parametrize(
    ("instance", "where", "said"),
    [
        (on("serve", "x4", "n0"), "running[0].instances[0].role", "has no role"),
        (on("decode", "x9", "n0"), "running[0].instances[0].shape", "has no shape"),
        (on("decode", "x4", "n9"), "running[0].instances[0].nodes[0]", "unknown node"),
    ],
)
def test_a_cluster_that_does_not_fit_the_fleet_is_refused(instance, where, said):
    made, running = fleet(), cluster(instance)
    decisions = decided(made, cluster()).decisions
    with pytest.raises(InputError, match=said) as caught:
        assemble(made, running, decisions)
    assert where in str(caught.value)


def test_other_tenants_without_gpus_and_services_without_a_decision_are_refused():
    other = {"name": "o", "service": "batch", "instances": [on("any", "any", "n0")]}
    with pytest.raises(InputError, match="give the GPUs"):
        free_gpus(fleet(), cluster(groups=[other]))
    with pytest.raises(ValueError, match="no decision"):
        assemble(fleet(), cluster(), [])


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2, "nodes": []}', '{"schema": 1}'])
def test_a_wrong_cluster_is_refused(text):
    with pytest.raises(InputError):
        Cluster.from_json(text)


def test_the_demo_goes_from_metrics_to_a_checked_plan():
    made = Fleet.from_file(ROOT / "fleets/demo.toml")
    running = Cluster.from_file(ROOT / "fleets/demo-cluster.json")
    values = {
        "chat": {"decode_tps": 26000, "ttft": 0.8, "tbt": 0.03},
        "code": {"prefill_gpu_util": 0.9, "ttft": 1.0},
    }
    snapshot = Snapshot(
        NOW,
        {
            name: {signal: Reading(float(value), NOW) for signal, value in each.items()}
            for name, each in values.items()
        },
    )
    step = decide(made, FleetState(), snapshot, observe(made, running), free_gpus(made, running))
    instance = assemble(made, running, step.decisions, step.state)
    result = solve(instance, Profile(solver="greedy"))
    assert check(instance, result.plan) == []
    assert result.unmet == ()
    for each in step.decisions:
        for role, capacity in each.targets.items():
            preferred = made.shapes[each.service][role][0]
            assert capacity == each.counts[role] * preferred.capacity
