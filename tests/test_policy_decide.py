"""What a step decides: the policies, their combination, stability, faults."""

import copy
import json
import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_fleets import (
    NOW,
    PLAIN,
    SHAPE,
    THROUGHPUT,
    fleet,
    readings,
    service,
    serving,
    state_of,
    step,
)

from heteroplace.policy import (
    Decision,
    FleetState,
    Problem,
    Reading,
    RoleObserved,
    Snapshot,
    decide,
)

EVEN = {"prefill": 10, "decode": 10}


def even(count):
    return {"prefill": count, "decode": count}


# The proportional policy (Algorithm 2)


@pytest.mark.parametrize(
    ("value", "action", "count"),
    [
        (1000, "hold", 10),
        (1099, "hold", 10),
        (1101, "out", 12),
        (2450, "out", 25),
        (901, "hold", 10),
        (899, "in", 9),
        (250, "in", 3),
        (0, "in", 1),
    ],
)
def test_throughput_over_its_target_per_instance_is_the_need(value, action, count):
    decision, state = step(fleet(), EVEN, {"decode_tps": value})
    assert (decision.action, decision.counts) == (action, even(count))
    assert decision.driver == "decode_tps"
    assert decision.before == EVEN
    assert state.services["chat"].counts == even(count)


@pytest.mark.parametrize(
    ("value", "action", "count"),
    [(0.6, "hold", 10), (0.9, "out", 15), (0.3, "in", 5), (0.65, "hold", 10)],
)
def test_utilization_scales_the_instances_that_serve(value, action, count):
    policy = {"primary": {"kind": "utilization", "signal": "prefill_gpu_util", "target": 0.6}}
    decision, _ = step(fleet(service(policy=policy)), EVEN, {"prefill_gpu_util": value})
    assert (decision.action, decision.counts) == (action, even(count))


def test_utilization_counts_registered_instances_only():
    policy = {"primary": {"kind": "utilization", "signal": "prefill_gpu_util", "target": 0.5}}
    running = serving(EVEN, registered={"prefill": 8, "decode": 8})
    made = fleet(service(policy=policy))
    decision, _ = step(made, EVEN, {"prefill_gpu_util": 0.75}, running=running)
    assert decision.counts == even(12)


def test_the_reason_is_the_sentence_of_the_documentation():
    made = fleet(
        service(
            ratios=[{"target": "9/7", "min": 1, "max": "5/3"}],
            policy={"primary": {**THROUGHPUT, "target": 3800}},
        )
    )
    decision, _ = step(made, {"prefill": 12, "decode": 9}, {"decode_tps": 41200})
    assert decision.counts == {"prefill": 14, "decode": 11}
    assert decision.reason == (
        "decode throughput of 41,200 tokens/s needs 11 decode instances at 3,800 each; 9 run; "
        "ratio 9:7 gives 14 prefill and 11 decode"
    )


@pytest.mark.parametrize(
    ("primary", "values"),
    [
        ({**THROUGHPUT, "target": 1e-300}, {"decode_tps": 1e14}),
        ({"kind": "utilization", "target": 5e-324}, {"prefill_gpu_util": 0.5}),
    ],
)
def test_a_target_next_to_nothing_asks_for_all_that_the_limits_allow(primary, values):
    decision, _ = step(fleet(service(policy={"primary": primary})), EVEN, values)
    assert decision.counts == even(40)


def test_the_other_role_may_drive():
    primary = {"kind": "throughput", "signal": "prefill_tps", "target": 1000}
    made = fleet(service(policy={"primary": primary}, ratios=[{"target": 2, "min": 1, "max": 3}]))
    decision, _ = step(made, {"prefill": 4, "decode": 2}, {"prefill_tps": 9500})
    assert decision.counts == {"prefill": 10, "decode": 5}


def test_damping_goes_part_of_the_way_and_never_rounds_a_step_to_nothing():
    made = fleet(service(stability={**PLAIN, "damping": 0.5, "theta_out": 0.05}))
    assert step(made, EVEN, {"decode_tps": 2000})[0].counts == even(15)
    assert step(made, EVEN, {"decode_tps": 500})[0].counts == even(8)
    damped = fleet(service(stability={**PLAIN, "damping": 0.01, "theta_out": 0, "theta_in": 0}))
    for count in range(1, 40):
        counts = even(count)
        up, _ = step(damped, counts, {"decode_tps": count * 100 + 1})
        assert up.counts == even(count + 1)
        down, _ = step(damped, counts, {"decode_tps": (count - 1) * 100})
        assert down.counts == even(max(count - 1, 1))


@given(st.integers(1, 40), st.floats(0, 6000), st.floats(0.05, 1), st.floats(0, 0.5))
def test_one_step_never_goes_beyond_the_need(count, value, damping, theta):
    made = fleet(
        service(stability={**PLAIN, "damping": damping, "theta_out": theta, "theta_in": theta})
    )
    decision, _ = step(made, even(count), {"decode_tps": value})
    need = min(max(math.ceil(value / 100 - 1e-9), 1), 40)
    found = decision.counts["decode"]
    assert min(count, need) <= found <= max(count, need)
    if need > count and value / 100 > count * (1 + theta) + 1e-6:
        assert found > count


def test_what_serves_below_the_targets_is_not_taken_for_low_load():
    # 5 of 10 run and are full: the throughput they can carry says nothing about the demand.
    decision, _ = step(fleet(), EVEN, {"decode_tps": 480}, running=serving(even(5)))
    assert decision.action == "hold"
    assert "no room to spare" in decision.reason
    decision, _ = step(fleet(), EVEN, {"decode_tps": 300}, running=serving(even(5)))
    assert decision.counts == even(3)


# Negative feedback (Algorithm 3)


def feedback(**changes):
    return service(policy={"primary": {"kind": "feedback", "signal": "tbt", "slo": 0.1}}, **changes)


@pytest.mark.parametrize(
    ("latency", "count"),
    [(0.125, 24), (0.12, 24), (0.115, 22), (0.1095, 20), (0.095, 20), (0.09, 19), (0.01, 19)],
)
def test_feedback_alone_moves_by_tiers_in_both_directions(latency, count):
    decision, _ = step(fleet(feedback()), even(20), {"tbt": latency})
    assert decision.counts == even(count)


def test_a_small_service_moves_by_one_instance_at_least():
    assert step(fleet(feedback()), even(2), {"tbt": 0.111})[0].counts == even(3)
    assert step(fleet(feedback()), even(2), {"tbt": 0.01})[0].counts == even(1)


@pytest.mark.parametrize("latency", [0.13, 0.01])
def test_feedback_alone_acts_once_on_a_reading(latency):
    values = {"tbt": Reading(latency, NOW - 10)}
    made = fleet(feedback())
    assert step(made, even(20), values, last_out=NOW - 5)[0].action == "hold"
    assert step(made, even(20), values, last_in=NOW - 10)[0].action == "hold"
    assert step(made, even(20), values, last_out=NOW - 11)[0].action != "hold"


def test_feedback_alone_lowers_without_load():
    decision, _ = step(fleet(feedback()), even(20), {"decode_tps": 0})
    assert decision.counts == even(19)
    assert "no load, so no TBT" in decision.reason
    assert step(fleet(feedback()), even(20), {"decode_tps": 5})[0].action == "hold"


def test_tiers_are_configurable():
    primary = {"kind": "feedback", "signal": "tbt", "slo": 0.1}
    tiers = [{"at": 0.5, "change": -0.5}, {"at": 2, "change": 1}, {"at": 3, "change": 2}]
    made = fleet(service(policy={"primary": {**primary, "tiers": tiers}}))
    for latency, count in ((0.31, 30), (0.2, 20), (0.15, 10), (0.06, 10), (0.05, 5)):
        assert step(made, EVEN, {"tbt": latency})[0].counts == even(count)


def layered(**changes):
    return service(policy={"primary": THROUGHPUT, "latency": [{"signal": "ttft", "slo": 1}]}) | (
        changes
    )


@pytest.mark.parametrize(
    ("value", "latency", "count"),
    [
        (1000, 1.15, 11),
        (1000, 1.3, 12),
        (1000, 0.2, 10),  # a layer does not lower
        (2000, 1.3, 20),  # the primary asks for more than the layer
        (1150, 1.3, 12),
        (500, 0.5, 5),
        (500, 1.05, 10),  # too hot to lower
        (500, 1.3, 12),
    ],
)
def test_a_latency_layer_only_raises(value, latency, count):
    made = fleet(layered())
    decision, _ = step(made, EVEN, {"decode_tps": value, "ttft": latency})
    assert decision.counts == even(count)


@given(st.floats(0, 4000), st.floats(0, 5))
def test_a_layer_never_leads_below_its_primary(value, latency):
    alone, _ = step(fleet(), EVEN, {"decode_tps": value})
    with_layer, _ = step(fleet(layered()), EVEN, {"decode_tps": value, "ttft": latency})
    assert with_layer.counts["decode"] >= alone.counts["decode"]


def test_a_layer_waits_for_a_reading_after_the_last_action():
    made = fleet(layered())
    values = {"decode_tps": 1000, "ttft": Reading(1.5, NOW - 10)}
    decision, _ = step(made, EVEN, values, last_out=NOW - 5)
    assert decision.action == "hold"
    assert "awaited" in decision.reason
    assert step(made, EVEN, values, last_out=NOW - 15)[0].counts == even(12)


def test_of_several_layers_the_one_that_asks_most_decides_and_is_named():
    layers = [{"signal": "ttft", "slo": 1}, {"signal": "tbt", "slo": 0.1}]
    made = fleet(service(policy={"primary": THROUGHPUT, "latency": layers}))
    decision, _ = step(made, EVEN, {"decode_tps": 1000, "ttft": 1.15, "tbt": 0.13})
    assert decision.driver == "tbt"
    assert decision.counts == even(12)
    assert decision.reason == (
        "decode throughput of 1,000 tokens/s needs 10 decode instances at 100 each; 10 run; within "
        "10 % nothing changes; TBT of 0.13 s is 1.30 times its SLO of 0.1 s, which adds 20 %; "
        "ratio 1:1 gives 12 prefill and 12 decode"
    )


# Stability


def test_cooldowns_are_separate():
    stability = {**PLAIN, "cooldown_out": 60, "cooldown_in": 300}
    made = fleet(service(stability=stability))

    def after(value, **last):
        return step(made, EVEN, {"decode_tps": value}, **last)[0].action

    assert after(2000, last_out=NOW - 59) == "hold"
    assert after(2000, last_out=NOW - 60) == "out"
    assert after(2000, last_in=NOW - 1) == "out"
    assert after(500, last_in=NOW - 299) == "hold"
    assert after(500, last_in=NOW - 300) == "in"
    assert after(500, last_out=NOW - 299) == "hold"
    assert after(500, last_out=NOW - 300) == "in"


def test_a_held_cooldown_is_said_with_the_time_that_is_left():
    made = fleet(service(stability={**PLAIN, "cooldown_in": 300}))
    decision, _ = step(made, EVEN, {"decode_tps": 500}, last_out=NOW - 100)
    assert "the cooldown of scale-ins runs for 3 min more" in decision.reason


@pytest.mark.parametrize(
    ("limits", "value", "count"),
    [
        ({"max_step_out": {"instances": 3}}, 3000, 13),
        ({"max_step_out": {"share": 0.5}}, 3000, 15),
        ({"max_step_out": {"instances": 3, "share": 0.5}}, 3000, 13),
        ({"max_step_out": {"share": 0.01}}, 3000, 11),
        ({"max_step_in": {"instances": 2}}, 100, 8),
        ({"max_step_in": {"share": 0.3}}, 100, 7),
        ({"max_step_in": {"share": 0.01}}, 100, 9),
    ],
)
def test_step_limits(limits, value, count):
    made = fleet(service(stability={**PLAIN, **limits}))
    assert step(made, EVEN, {"decode_tps": value})[0].counts == even(count)


def test_minimum_and_maximum():
    roles = {role: {"min": 3, "max": 12, "shapes": [SHAPE]} for role in EVEN}
    made = fleet(service(roles=roles))
    decision, _ = step(made, EVEN, {"decode_tps": 10**6})
    assert decision.counts == even(12)
    decision, _ = step(made, even(12), {"decode_tps": 10**6})
    assert decision.action == "hold"
    assert "12 is the most" in decision.reason
    assert step(made, EVEN, {"decode_tps": 0})[0].counts == even(3)
    decision, _ = step(made, even(2), {})
    assert (decision.action, decision.driver, decision.counts) == ("out", "limits", even(3))


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_signal_around_the_target_does_not_flap(seed):
    """Inside the hysteresis: no action. Outside: as many as the cooldown of scale-ins explains."""
    rng = random.Random(seed)
    stability = {"cooldown_out": 60, "cooldown_in": 300, "theta_out": 0.1, "theta_in": 0.1}
    made = fleet(service(stability=stability))
    for noise, most_out, most_in in ((0.08, 0, 0), (0.25, 13, 12)):
        state, counts, actions = state_of(EVEN), EVEN, []
        for number in range(120):
            now = NOW + 30 * number
            value = 1000 * rng.uniform(1 - noise, 1 + noise)
            snapshot = Snapshot(now, {"chat": readings({"decode_tps": value}, now)})
            done = decide(made, state, snapshot, {"chat": serving(counts)})
            state, counts = done.state, done.decisions[0].counts
            if done.decisions[0].action != "hold":
                actions.append((now, done.decisions[0].action))
            assert 8 <= counts["decode"] <= 13
        assert sum(action == "out" for _, action in actions) <= most_out
        assert sum(action == "in" for _, action in actions) <= most_in
        for (one, _), (other, action) in pairwise(actions):
            assert other - one >= (300 if action == "in" else 30)


def test_a_step_in_load_settles_without_overshoot_or_oscillation():
    made = fleet(service(stability={"cooldown_out": 30, "cooldown_in": 60}))
    state, counts, seen = state_of(EVEN), EVEN, []
    for number in range(60):
        now = NOW + 30 * number
        snapshot = Snapshot(now, {"chat": readings({"decode_tps": 2500}, now)})
        done = decide(made, state, snapshot, {"chat": serving(counts)})
        state, counts = done.state, done.decisions[0].counts
        seen.append(counts["decode"])
    assert seen == sorted(seen)
    assert seen[-1] <= 25 <= seen[-1] * 1.1
    assert len(set(seen)) <= 5


# Missing, stale, impossible and contradicting readings


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (None, "no reading"),
        (Reading(math.nan, NOW), "not a number"),
        (Reading(math.inf, NOW), "not a number"),
        (Reading(-5.0, NOW), "less than 0"),
        (Reading(1e300, NOW), "more than is possible"),
        (Reading(10.0, NOW - 91), "ago"),
        (Reading(10.0, NOW + 60), "in the future"),
        (Reading(10.0, math.nan), "without a time"),
        (Reading(5000.0, NOW - 91), "ago"),
    ],
)
def test_a_bad_reading_holds_the_last_target_and_says_so(reading, said):
    values = {} if reading is None else {"decode_tps": reading}
    decision, state = step(fleet(), EVEN, values)
    assert (decision.action, decision.driver, decision.counts) == ("hold", "data", EVEN)
    assert said in decision.reason
    assert "the last targets of 10 prefill and 10 decode are held" in decision.reason
    assert decision.age is None
    assert state.services["chat"].last_good is None


@pytest.mark.parametrize("value", [1.2, 87.0])
def test_a_utilization_over_one_is_refused(value):
    policy = {"primary": {"kind": "utilization", "signal": "prefill_gpu_util", "target": 0.6}}
    decision, _ = step(fleet(service(policy=policy)), EVEN, {"prefill_gpu_util": value})
    assert decision.action == "hold"
    assert "not a percentage" in decision.reason


def test_readings_that_contradict_each_other_are_refused():
    decision, _ = step(fleet(), EVEN, {"decode_tps": 0, "decode_gpu_util": 0.9})
    assert decision.action == "hold"
    assert "contradict" in decision.reason
    assert step(fleet(), EVEN, {"decode_tps": 0, "decode_gpu_util": 0.02})[0].action == "in"
    assert step(fleet(), EVEN, {"decode_tps": 0, "prefill_gpu_util": 0.9})[0].action == "in"
    decision, _ = step(fleet(), EVEN, {"decode_tps": 5000}, running={})
    assert decision.action == "hold"
    assert "no decode instance serves" in decision.reason


def test_nothing_is_lowered_while_any_reading_is_missing_but_raising_goes_on():
    made = fleet(layered())
    decision, _ = step(made, EVEN, {"decode_tps": 100})
    assert (decision.action, decision.driver) == ("hold", "data")
    assert "TTFT has no reading; nothing is lowered on missing data" in decision.reason
    assert step(made, EVEN, {"decode_tps": 2000})[0].counts == even(20)
    assert step(made, EVEN, {"ttft": 1.5})[0].counts == even(12)


def test_latencies_are_not_missed_while_there_is_no_load():
    made = fleet(layered())
    for values in ({"decode_tps": 0}, {"decode_tps": 0, "ttft": math.nan}):
        assert step(made, EVEN, values)[0].counts == even(1)
    assert step(made, EVEN, {"decode_tps": 0, "ttft": Reading(0.1, NOW - 900)})[0].action == "hold"
    values = {"decode_tps": 0, "prefill_tps": 50}
    assert step(made, EVEN, values)[0].action == "hold"


def test_what_the_source_says_is_in_the_reason():
    problems = (Problem("", "decode_tps", "Prometheus did not answer within 5 s."),)
    done = decide(fleet(), state_of(EVEN), Snapshot(NOW, {}, problems), {"chat": serving(EVEN)})
    assert "(Prometheus did not answer within 5 s)" in done.decisions[0].reason


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["decode_tps", "ttft", "tbt", "decode_gpu_util"]),
        st.builds(
            Reading,
            st.floats() | st.floats(0, 3000),
            st.floats() | st.floats(NOW - 200, NOW + 10),
        ),
    ),
    st.integers(1, 40),
)
def test_a_scale_in_needs_good_readings_of_every_signal(values, count):
    layers = [{"signal": "ttft", "slo": 1}, {"signal": "tbt", "slo": 0.1}]
    made = fleet(service(policy={"primary": THROUGHPUT, "latency": layers}))
    decision, state = step(made, even(count), values)

    def good(name):
        each = values.get(name)
        return each is not None and 0 <= each.value < math.inf and NOW - 90 <= each.at <= NOW + 5

    if decision.action == "in":
        assert good("decode_tps")
        idle = values["decode_tps"].value == 0
        for name in ("ttft", "tbt"):
            assert good(name) or (idle and (name not in values or math.isnan(values[name].value)))
    json.loads(decision.model_dump_json())
    assert FleetState.from_json(state.to_json()) == state


# Clocks


def test_a_clock_that_is_set_back_neither_opens_a_cooldown_nor_keeps_it_shut():
    made = fleet(service(stability={**PLAIN, "cooldown_out": 100}))
    state = state_of(EVEN, at=NOW, last_out=NOW - 40)
    actions = []
    for number in range(4):
        now = NOW - 3600 + 30 * number
        decision, state = step(made, EVEN, {"decode_tps": 2000}, now=now, state=state)
        actions.append(decision.action)
        if number == 0:
            assert "the clock went back by 60 min" in decision.reason
    # 40 s had passed of 100, the jump adds none: 40, 70, 100.
    assert actions[:3] == ["hold", "hold", "out"]


def test_readings_from_before_a_jump_back_are_in_the_future_and_refused():
    state = state_of(EVEN, at=NOW)
    values = {"decode_tps": Reading(100.0, NOW)}
    decision, _ = step(fleet(), EVEN, values, now=NOW - 3600, state=state)
    assert decision.action == "hold"
    assert "in the future" in decision.reason


def test_a_jump_forward_makes_readings_old():
    values = {"decode_tps": Reading(100.0, NOW)}
    decision, _ = step(fleet(), EVEN, values, now=NOW + 86400)
    assert decision.action == "hold"
    assert "24 h ago" in decision.reason


# The clock as a policy (8:00 and 20:00 UTC)

DAY = NOW - NOW % 86400
PLAN = [
    {"cron": "0 8 * * *", "counts": {"decode": 12}},
    {"cron": "0 20 * * *", "counts": {"prefill": 2, "decode": 3}},
]


def at(hour, days=0):
    return DAY + 86400 * days + 3600 * hour


def test_periodic_counts_hold_from_their_time_until_the_next_entry():
    made = fleet(service(policy={"primary": {"kind": "periodic", "entries": PLAN}}))
    assert step(made, EVEN, {}, now=at(8))[0].counts == even(12)
    assert step(made, even(12), {}, now=at(19.99))[0].action == "hold"
    decision, _ = step(made, even(12), {}, now=at(20))
    assert (decision.action, decision.driver) == ("in", "schedule")
    assert decision.counts == {"prefill": 2, "decode": 3}
    # A new state, as after a restart: the entry of yesterday evening is in force.
    done = decide(made, FleetState(), Snapshot(at(7), {}), {"chat": serving(EVEN)})
    assert done.decisions[0].counts == {"prefill": 2, "decode": 3}


def test_an_entry_may_set_a_total_and_a_ratio():
    entries = [{"cron": "0 0 * * *", "total": 16, "ratio": "5/3"}]
    made = fleet(service(policy={"primary": {"kind": "periodic", "entries": entries}}))
    decision, _ = step(made, EVEN, {})
    assert decision.counts == {"prefill": 10, "decode": 6}
    entries = [{"cron": "0 0 * * *", "ratio": 2}]
    made = fleet(service(policy={"primary": THROUGHPUT, "schedules": [{"entries": entries}]}))
    decision, _ = step(made, EVEN, {"decode_tps": 1500})
    assert decision.counts == {"prefill": 30, "decode": 15}
    assert "ratio 2:1 gives" in decision.reason


def test_a_planned_change_waits_for_no_cooldown_but_a_return_to_the_plan_does():
    policy = {
        "primary": {"kind": "periodic", "entries": PLAN},
        "latency": [{"signal": "ttft", "slo": 1}],
    }
    stability = {**PLAIN, "cooldown_in": 600, "cooldown_out": 600}
    made = fleet(service(policy=policy, stability=stability))
    cool = {"ttft": 0.5}
    decision, _ = step(made, even(12), cool, now=at(20), last_out=at(20) - 1)
    assert decision.action == "in"
    decision, _ = step(made, even(12), {"ttft": 1.3}, now=at(9), last_out=at(8))
    assert decision.counts == even(15)
    decision, _ = step(made, even(15), cool, now=at(9) + 60, last_out=at(9))
    assert decision.action == "hold"
    assert "cooldown" in decision.reason
    decision, _ = step(made, even(15), cool, now=at(9) + 600, last_out=at(9))
    assert decision.counts == even(12)


def test_a_floor_raises_and_a_fixed_schedule_decides():
    release = {"cron": "0 20 * * *", "release": True}
    entries = [{"cron": "0 8 * * *", "counts": {"prefill": 6, "decode": 12}}, release]
    for mode, value, counts in (
        ("floor", 1000, even(12)),
        ("floor", 2000, even(20)),
        ("fixed", 2000, {"prefill": 6, "decode": 12}),
    ):
        schedules = [{"mode": mode, "entries": entries}]
        made = fleet(service(policy={"primary": THROUGHPUT, "schedules": schedules}))
        decision, _ = step(made, EVEN, {"decode_tps": value}, now=at(9))
        assert decision.counts == counts
        assert step(made, EVEN, {"decode_tps": value}, now=at(21))[0].counts == even(value // 100)


def test_a_floor_holds_a_scale_in_and_does_not_wait_for_metrics():
    entries = [{"cron": "0 8 * * *", "counts": {"decode": 12}}]
    schedules = [{"entries": entries}]
    made = fleet(service(policy={"primary": THROUGHPUT, "schedules": schedules}))
    decision, _ = step(made, even(20), {"decode_tps": 100})
    assert decision.counts == even(12)
    decision, _ = step(made, even(12), {"decode_tps": 100})
    assert decision.action == "hold"
    assert "asks for at least 12 decode instances" in decision.reason
    decision, _ = step(made, EVEN, {})
    assert decision.counts == even(12)


def test_a_floor_holds_for_every_role_and_against_the_ratio():
    entries = [{"cron": "0 8 * * *", "counts": {"prefill": 12, "decode": 8}}]
    made = fleet(service(policy={"primary": THROUGHPUT, "schedules": [{"entries": entries}]}))
    decision, state = step(made, even(4), {"decode_tps": 400})
    assert decision.counts == {"prefill": 12, "decode": 8}
    for number in range(1, 4):
        now = NOW + 30 * number
        decision, state = step(made, decision.counts, {"decode_tps": 400}, now=now, state=state)
        assert decision.action == "hold"
    assert step(made, even(16), {"decode_tps": 100})[0].counts == {"prefill": 12, "decode": 8}


def test_a_fixed_plan_is_not_pulled_to_the_ratio():
    entries = [{"cron": "0 8 * * *", "counts": {"prefill": 6, "decode": 12}}]
    made = fleet(service(policy={"primary": {"kind": "periodic", "entries": entries}}))
    decision, _ = step(made, {"prefill": 6, "decode": 12}, {})
    assert decision.action == "hold"


# Start, changes of the configuration


def test_the_first_step_starts_from_what_runs_or_from_the_minimum():
    snapshot = Snapshot(NOW, {})
    done = decide(fleet(), FleetState(), snapshot, {"chat": serving({"prefill": 5, "decode": 6})})
    assert done.decisions[0].counts == {"prefill": 5, "decode": 6}
    done = decide(fleet(), FleetState(), snapshot, {})
    assert (done.decisions[0].action, done.decisions[0].counts) == ("out", even(1))
    assert "at least 1 decode instance" in done.decisions[0].reason


def test_a_role_that_is_new_in_the_configuration_starts_from_what_runs():
    state = state_of({"decode": 10})
    decision, _ = step(fleet(), EVEN, {"decode_tps": 1000}, state=state)
    assert decision.counts == EVEN


def test_roles_in_another_order_than_in_the_last_step_keep_their_counts():
    roles = {
        role: {"min": 1, "max": 40, "shapes": [{**SHAPE, "capacity": capacity}]}
        for role, capacity in (("decode", 7), ("prefill", 1))
    }
    made = fleet(service(roles=roles, maintenance={"drift": 0.9}))
    for counts in ({"prefill": 5, "decode": 3}, {"decode": 5, "prefill": 3}):
        decision, _ = step(made, counts, {"decode_tps": 100 * counts["decode"]})
        assert (decision.action, decision.counts) == ("hold", counts)
        assert decision.targets == {"decode": 7 * counts["decode"], "prefill": counts["prefill"]}


def test_services_that_left_the_fleet_are_forgotten():
    state = state_of(EVEN, name="gone")
    _, state = step(fleet(), EVEN, {"decode_tps": 1000}, state=state)
    assert set(state.services) == {"chat"}


# One role; three roles


def test_an_aggregated_service_has_one_role():
    made = fleet(
        service(
            roles={"serve": {"min": 1, "max": 9, "shapes": [SHAPE]}},
            ratios=[],
            policy={"primary": THROUGHPUT, "latency": [{"signal": "ttft", "slo": 1}]},
        )
    )
    decision, _ = step(made, {"serve": 4}, {"decode_tps": 700, "ttft": 0.5})
    assert decision.counts == {"serve": 7}
    assert "4 serve become 7" in decision.reason


def test_three_roles_move_together():
    roles = {name: {"min": 1, "max": 40, "shapes": [SHAPE]} for name in ("attn", "ffn", "decode")}
    made = fleet(
        service(
            roles=roles,
            ratios=[
                {"numerator": "attn", "denominator": "ffn", "target": 2, "min": 2, "max": 2},
                {"numerator": "ffn", "denominator": "decode", "target": 1, "min": "1/2", "max": 2},
            ],
        )
    )
    decision, _ = step(made, {"attn": 8, "ffn": 4, "decode": 4}, {"decode_tps": 700})
    assert decision.counts == {"attn": 14, "ffn": 7, "decode": 7}


# All of it, at random


@st.composite
def scenes(draw):
    """A service with any settings, its state, readings and what runs."""
    target = draw(st.sampled_from(["1/2", "1", "9/7", "5/3", "3"]))
    number = {"1/2": 0.5, "1": 1, "9/7": 9 / 7, "5/3": 5 / 3, "3": 3}[target]
    band = {"target": target}
    if draw(st.booleans()):
        band |= {"min": round(number * 0.95, 3), "max": round(number * 1.05, 3)}
    limits = {
        role: {"min": draw(st.integers(1, 3)), "max": draw(st.integers(9, 40)), "shapes": [SHAPE]}
        for role in ("prefill", "decode")
    }
    policy = {"primary": THROUGHPUT, "latency": [{"signal": "ttft", "slo": 1}]}
    if draw(st.booleans()):
        policy["schedules"] = [
            {
                "mode": draw(st.sampled_from(["floor", "fixed"])),
                "entries": [{"cron": "0 8 * * *", "counts": {"decode": 6}}],
            }
        ]
    changes = {
        "damping": draw(st.floats(0.1, 1)),
        "theta_out": draw(st.floats(0, 0.3)),
        "theta_in": draw(st.floats(0, 0.3)),
        "max_step_out": {"share": draw(st.floats(0.05, 1))},
        "max_step_in": {"instances": draw(st.integers(1, 5))},
        "cooldown_out": draw(st.sampled_from([0, 60])),
        "cooldown_in": draw(st.sampled_from([0, 60])),
    }
    data = service(roles=limits, ratios=[band], policy=policy, stability=changes)
    counts = {role: draw(st.integers(1, 30)) for role in limits}
    values = {"decode_tps": draw(st.floats(0, 5000)), "ttft": draw(st.floats(0, 2))}
    last = draw(st.sampled_from([None, NOW - 30.0, NOW - 90.0]))
    return data, counts, values, last


@settings(max_examples=400, deadline=None)
@given(scenes())
def test_every_scale_action_ends_inside_the_band_and_the_limits(scene):
    data, counts, values, last = scene
    try:
        made = fleet(data)
    except ValueError:
        return  # a band without any pair, or a schedule outside the band
    ratios = made.compiled[0].ratios
    state = state_of(counts, last_out=last)
    kept = copy.deepcopy(state)
    decision, new = step(made, counts, values, state=state)
    assert state == kept
    if decision.action in ("out", "in"):
        assert ratios.holds(decision.counts)
    if decision.action == "hold":
        assert decision.counts == counts
    if decision.action == "rebalance":
        assert not ratios.holds(counts) or ratios.drift(decision.counts) < ratios.drift(counts)
        if ratios.holds(counts):
            assert ratios.holds(decision.counts)
    if decision.action == "in" and ratios.holds(counts):
        assert all(decision.counts[role] <= count for role, count in counts.items())
    if decision.action == "out" and ratios.holds(counts):
        assert all(decision.counts[role] >= count for role, count in counts.items())
    assert all(decision.counts.values())
    assert decision.reason
    assert "\n" not in decision.reason
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
    assert FleetState.from_json(new.to_json()) == new
    again, _ = step(made, counts, values, state=state)
    assert again == decision


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_a_steady_load_settles(scene):
    data, counts, values, _ = scene
    try:
        made = fleet(data)
    except ValueError:
        return
    values["ttft"] = 0.5
    state, changes = state_of(counts), 0
    for number in range(150):
        now = NOW + 30 * number
        decision, state = step(made, counts, values, now=now, state=state)
        counts = decision.counts
        changes = number if decision.action != "hold" else changes
    assert changes < 120


def test_a_decision_validates_as_its_own_model():
    decision, _ = step(fleet(), EVEN, {"decode_tps": 2000})
    assert Decision.model_validate(decision.model_dump()) == decision
    assert isinstance(decision.targets["decode"], type(RoleObserved().ready))


# Where GPUs are short

RISING = {"primary": THROUGHPUT, "latency": [{"signal": "ttft", "slo": 1}]}


@pytest.mark.parametrize(
    ("policy", "values"),
    [
        (RISING, {"decode_tps": 1000, "ttft": 1.3}),
        ({"primary": {"kind": "feedback", "signal": "ttft", "slo": 1}}, {"ttft": 1.3}),
    ],
    ids=["layer", "primary"],
)
def test_a_latency_does_not_raise_targets_that_have_no_place(policy, values):
    made = fleet(service(policy=policy))
    wanted = {"prefill": 10, "decode": 10}
    decision, _ = step(made, wanted, values, running=serving({"prefill": 5, "decode": 5}))
    assert (decision.action, decision.counts) == ("hold", wanted)
    assert "but only 5 of 10" in decision.reason
    assert "have a place so far" in decision.reason
    starting = {
        role: RoleObserved(ready=Fraction(5), registered=Fraction(5), starting=Fraction(5))
        for role in wanted
    }
    decision, _ = step(made, wanted, values, running=starting)
    assert (decision.action, decision.counts["decode"]) == ("out", 12)


def test_a_latency_that_stays_high_on_a_full_fleet_raises_the_targets_once():
    made = fleet(service(policy=RISING))
    full = serving({"prefill": 10, "decode": 10})
    state, counts = None, {"prefill": 10, "decode": 10}
    for number in range(50):
        decision, state = step(
            made,
            counts,
            {"decode_tps": 1000, "ttft": 3},
            now=NOW + 60 * number,
            running=full,
            state=state,
        )
    assert decision.counts == {"prefill": 12, "decode": 12}
