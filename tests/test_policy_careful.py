"""Soft scale-in, registration gate, ratio maintenance and degradation."""

from fractions import Fraction

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

from heteroplace.plan import PlacedInstance, PlacedPod
from heteroplace.policy import (
    FleetState,
    Reading,
    RoleObserved,
    ServiceState,
    Snapshot,
    Withdrawn,
    decide,
    withdraw,
)
from heteroplace.policy.registration import held

EVEN = {"prefill": 10, "decode": 10}
LAYERED = {"primary": THROUGHPUT, "latency": [{"signal": "ttft", "slo": 1}]}


def even(count):
    return {"prefill": count, "decode": count}


# Soft scale-in

SOFT = fleet(service(policy=LAYERED, soft_scale_in={"window": "2m"}))


def placed(role, number):
    return PlacedInstance(
        name=f"{role}-{number}", role=role, shape="x4", pods=(PlacedPod(node="n", gpus=4),)
    )


def withdrawn(seconds_ago, count=2, window=120):
    """A state in which so many of each role went under observation some time ago."""
    state = state_of(even(8), at=NOW - 10, last_in=NOW - seconds_ago)
    gone = [("g", placed(role, number)) for role in EVEN for number in range(count)]
    return withdraw(state, "chat", gone, NOW - seconds_ago, window)


def test_withdrawn_instances_are_remembered_once():
    state = withdrawn(10)
    under = state.services["chat"].withdrawn
    assert [each.name for each in under] == ["prefill-0", "prefill-1", "decode-0", "decode-1"]
    assert under[0] == Withdrawn(
        service="chat",
        group="g",
        name="prefill-0",
        role="prefill",
        shape="x4",
        nodes=("n",),
        since=NOW - 10,
        until=NOW + 110,
    )
    again = withdraw(state, "chat", [("g", placed("prefill", 1))], NOW, 120)
    assert again == state
    assert withdraw(state, "chat", [], NOW, 120) is state
    assert FleetState.from_json(state.to_json()) == state


def test_nothing_more_is_lowered_during_the_window():
    values = {"decode_tps": 300, "ttft": 0.5}
    decision, state = step(SOFT, even(8), values, state=withdrawn(60))
    assert decision.action == "hold"
    assert "4 instances are under observation, for 60 s more" in decision.reason
    assert decision.terminate == decision.restore == ()
    assert len(state.services["chat"].withdrawn) == 4
    assert decision.window == 120


def test_instances_end_when_the_objectives_held():
    values = {"decode_tps": 800, "ttft": 0.5}
    decision, state = step(SOFT, even(8), values, state=withdrawn(120))
    assert len(decision.terminate) == 4
    assert state.services["chat"].withdrawn == ()
    assert "the objectives held, so 4 instances under observation can end" in decision.reason


def test_instances_come_back_at_once_when_an_objective_breaks():
    values = {"decode_tps": 800, "ttft": 1.01}
    decision, state = step(SOFT, even(8), values, state=withdrawn(5))
    assert (decision.action, decision.driver, decision.counts) == ("out", "observation", EVEN)
    assert len(decision.restore) == 4
    assert decision.terminate == ()
    assert state.services["chat"].withdrawn == ()
    assert state.services["chat"].last_out == NOW
    assert "TTFT of 1.01 s is above its limit of 1 s, so 4 instances come back" in decision.reason


def taken_back(returns, seconds_ago):
    """A state in which so many scale-ins in a row were taken back, the last some time ago."""
    state = state_of(EVEN, at=NOW - 10, last_out=NOW - seconds_ago)
    chat = state.services["chat"].model_copy(
        update={"returns": returns, "last_return": NOW - seconds_ago}
    )
    return state.model_copy(update={"services": {"chat": chat}})


BACKED_OFF = fleet(
    service(
        policy=LAYERED,
        soft_scale_in={"window": "2m", "backoff": "10m", "max_backoff": "30m"},
        stability={"cooldown_in": 60},
    )
)
LOW = {"decode_tps": 500, "ttft": 0.5}


@pytest.mark.parametrize(
    ("returns", "wait"), [(1, 600), (2, 1200), (3, 1800), (4, 1800), (1000, 1800)]
)
def test_a_scale_in_that_was_taken_back_is_not_tried_again_at_once(returns, wait):
    decision, state = step(BACKED_OFF, EVEN, LOW, state=taken_back(returns, wait - 1))
    assert (decision.action, decision.counts) == ("hold", EVEN)
    assert "broke an objective, so the next one waits for 1 s more" in decision.reason
    assert state.services["chat"].returns == returns
    decision, _ = step(BACKED_OFF, EVEN, LOW, state=taken_back(returns, wait))
    assert decision.action == "in"


def test_returns_are_counted_until_a_scale_in_holds():
    broken = {"decode_tps": 800, "ttft": 1.01}
    _, state = step(SOFT, even(8), broken, state=withdrawn(5))
    assert (state.services["chat"].returns, state.services["chat"].last_return) == (1, NOW)
    before = withdrawn(120)
    chat = before.services["chat"].model_copy(update={"returns": 3, "last_return": NOW - 9000})
    before = before.model_copy(update={"services": {"chat": chat}})
    _, state = step(SOFT, even(8), broken, state=before)
    assert state.services["chat"].returns == 4
    _, state = step(SOFT, even(8), {"decode_tps": 800, "ttft": 0.5}, state=before)
    assert state.services["chat"].returns == 0


def test_a_back_off_survives_a_clock_that_is_set_back():
    state = taken_back(1, 99).model_copy(update={"at": NOW + 500})  # 599 s had passed
    decision, state = step(BACKED_OFF, EVEN, LOW, state=state)
    assert decision.action == "hold"
    assert state.services["chat"].last_return == NOW - 599


def test_a_reading_from_before_the_withdrawal_breaks_nothing():
    values = {"decode_tps": 800, "ttft": Reading(1.05, NOW - 10)}
    decision, _ = step(SOFT, even(8), values, state=withdrawn(5))
    assert decision.restore == ()


@pytest.mark.parametrize(
    "values",
    [
        {"decode_tps": 800},
        {"ttft": 0.5},
        {},
        {"decode_tps": 800, "ttft": Reading(0.5, NOW - 89)},
        {"decode_tps": 800, "ttft": Reading(0.5, NOW + 3600)},
    ],
)
def test_nothing_ends_without_readings_from_the_window(values):
    decision, state = step(SOFT, even(8), values, state=withdrawn(80, window=60))
    assert decision.terminate == ()
    assert len(state.services["chat"].withdrawn) == 4
    assert "stay under observation until readings show" in decision.reason


def test_without_load_the_objectives_hold():
    decision, _ = step(SOFT, even(8), {"decode_tps": 0}, state=withdrawn(120))
    assert len(decision.terminate) == 4


def test_own_limits_take_the_place_of_the_slos():
    limits = {"decode_gpu_util": 0.9}
    made = fleet(service(policy=LAYERED, soft_scale_in={"window": 60, "limits": limits}))
    good = {"decode_tps": 800, "ttft": 1.05}
    decision, _ = step(made, even(8), {**good, "decode_gpu_util": 0.8}, state=withdrawn(5))
    assert decision.restore == ()
    decision, _ = step(made, even(8), {**good, "decode_gpu_util": 0.95}, state=withdrawn(5))
    assert len(decision.restore) == 4


def test_a_scale_out_brings_instances_back_first():
    values = {"decode_tps": 890, "ttft": 0.5}
    decision, _ = step(SOFT, even(8), values, state=withdrawn(60))
    assert (decision.action, decision.counts) == ("out", EVEN)
    assert len(decision.restore) == 4
    assert "4 instances come back from observation" in decision.reason
    values = {"decode_tps": 1500, "ttft": 0.5}
    assert step(SOFT, even(8), values, state=withdrawn(60))[0].counts == even(15)


def test_a_layer_that_raises_in_the_window_counts_as_a_broken_objective():
    limits = {"decode_gpu_util": 0.9}
    made = fleet(service(policy=LAYERED, soft_scale_in={"window": 120, "limits": limits}))
    values = {"decode_tps": 800, "ttft": 1.3, "decode_gpu_util": 0.5}
    decision, state = step(made, even(8), values, state=withdrawn(60))
    assert (decision.driver, len(decision.restore)) == ("ttft", 4)
    assert (state.services["chat"].returns, state.services["chat"].last_return) == (1, NOW)
    # More load is no broken objective.
    values = {"decode_tps": 1200, "ttft": 0.5, "decode_gpu_util": 0.5}
    decision, state = step(made, even(8), values, state=withdrawn(60))
    assert (decision.driver, len(decision.restore)) == ("decode_tps", 4)
    assert state.services["chat"].returns == 0


def test_a_bottleneck_in_the_other_role_is_relieved_and_stays_so():
    """Prefill carries less than the ratio says: throughput alone would shrink the service."""
    per_prefill, demand, needed = 60, 2000, 34
    steady = {"cooldown_in": 300, "max_step_in": {"instances": 4}}
    policies = {"alone": {"primary": THROUGHPUT}, "layered": LAYERED}
    lows = {}
    for name, policy in policies.items():
        roles = {role: {"min": 1, "max": 80, "shapes": [SHAPE]} for role in EVEN}
        soft = {"window": 60, "backoff": "10m"}
        made = fleet(service(roles=roles, policy=policy, stability=steady, soft_scale_in=soft))
        state, counts, backlog, seen, returns = state_of(EVEN), EVEN, 0.0, [], 0
        for number in range(480):
            now = NOW + 30 * number
            served = min(counts["prefill"] * per_prefill, demand + backlog / 30)
            backlog = max(0.0, backlog + (demand - served) * 30)
            values = {"decode_tps": served, "ttft": 0.3 + backlog / served}
            decision, state = step(made, counts, values, now=now, state=state)
            gone = [
                ("g", placed(role, f"{number}-{each}"))
                for role in counts
                for each in range(counts[role] - decision.counts[role])
            ]
            state = withdraw(state, "chat", gone, now, 60)
            counts = decision.counts
            returns += bool(decision.restore)
            seen.append(counts["prefill"])
        lows[name] = min(seen[240:]), max(seen[240:]), returns
    assert lows["alone"][1] <= 2
    low, high, returns = lows["layered"]
    assert needed - 4 <= low <= high <= needed + 8
    assert 1 <= returns <= 8  # without the back-off, one every six minutes: 40


def test_a_clock_that_is_set_back_keeps_the_rest_of_the_window():
    values = {"decode_tps": 800, "ttft": 0.5}
    state = withdrawn(100)  # 90 s had passed at the last step
    decision, state = step(SOFT, even(8), values, now=NOW - 7200, state=state)
    (until,) = {each.until for each in state.services["chat"].withdrawn}
    assert until - (NOW - 7200) == pytest.approx(30)
    assert decision.terminate == ()
    decision, state = step(SOFT, even(8), values, now=NOW - 7200 + 30, state=state)
    assert len(decision.terminate) == 4


def test_instances_of_other_shapes_come_back_as_their_share():
    shapes = [
        {"name": "big", "pods": [{"gpu_type": "H20", "gpus": 8}], "capacity": 100},
        {"name": "small", "pods": [{"gpu_type": "H20", "gpus": 4}], "capacity": 40},
    ]
    roles = {"serve": {"min": 1, "max": 40, "shapes": shapes}}
    made = fleet(service(roles=roles, ratios=[], policy=LAYERED, soft_scale_in={"window": 60}))
    gone = [
        ("g", placed("serve", number).model_copy(update={"shape": "small"})) for number in range(3)
    ]
    state = withdraw(state_of({"serve": 8}), "chat", gone, NOW - 5, 60)
    decision, _ = step(made, {"serve": 8}, {"decode_tps": 800, "ttft": 1.5}, state=state)
    assert decision.counts == {"serve": 10}  # three of 0.4


# Registration gate


def running(ready, registered):
    return {
        role: RoleObserved(ready=Fraction(ready[role]), registered=Fraction(registered[role]))
        for role in ready
    }


GATED = fleet(service(registration={"tolerance": 0})).compiled[0]  # band 1/2 to 2


@pytest.mark.parametrize(
    ("ready", "registered", "expected"),
    [
        ((10, 4), (4, 4), {"prefill": 2}),
        ((10, 5), (5, 5), {}),
        ((10, 0), (0, 0), {"prefill": 10}),
        ((3, 8), (3, 3), {"decode": 2}),
        ((10, 2), (10, 2), {}),  # what serves stays
        ((10, 2), (8, 2), {"prefill": 2}),
        ((1, 1), (0, 0), {}),
    ],
)
def test_new_instances_of_the_surplus_role_wait(ready, registered, expected):
    observed = running(
        dict(zip(EVEN, ready, strict=True)), dict(zip(EVEN, registered, strict=True))
    )
    assert held(GATED, observed) == expected


def test_the_gate_is_in_the_decision_and_can_be_switched_off():
    observed = running({"prefill": 10, "decode": 2}, {"prefill": 2, "decode": 2})
    values = {"decode_tps": 1000}
    decision, state = step(fleet(), EVEN, values, running=observed)
    assert decision.held == {"prefill": 6}  # band to 2, tolerance 10 %: 4.4 of 10 serve
    assert state.services["chat"].held == {"prefill": 6}
    off = fleet(service(registration={"gate": False}))
    assert step(off, EVEN, values, running=observed)[0].held == {}


def test_the_gate_opens_when_the_other_role_does_not_catch_up():
    made = fleet(service(registration={"max_wait": "10m"}))
    observed = running({"prefill": 10, "decode": 2}, {"prefill": 2, "decode": 2})
    state, held_at = None, []
    for number in range(22):
        now = NOW + 30 * number
        values = {"decode_tps": 1000}
        decision, state = step(made, EVEN, values, now=now, state=state, running=observed)
        held_at.append(decision.held)
        if number == 0:
            assert "6 prefill instances wait to register until the ratio allows" in decision.reason
    assert held_at == [{"prefill": 6}] * 20 + [{}] * 2
    assert "6 prefill instances may register although" in decision.reason
    assert "for 10 min" in decision.reason
    back, _ = step(made, EVEN, values, now=NOW - 9000, state=state, running=observed)
    assert back.held == {}  # a clock set back closes it no more than it opens it
    _, state = step(made, EVEN, values, now=now + 30, state=state)  # all have registered
    assert state.services["chat"].held_since is None
    decision, _ = step(made, EVEN, values, now=now + 60, state=state, running=observed)
    assert decision.held == {"prefill": 6}


@given(st.tuples(*[st.integers(0, 20)] * 2), st.tuples(*[st.integers(0, 20)] * 2))
def test_the_gate_lets_in_as_many_as_the_band_allows(ready, registered):
    registered = tuple(min(pair) for pair in zip(ready, registered, strict=True))
    observed = running(
        dict(zip(EVEN, ready, strict=True)), dict(zip(EVEN, registered, strict=True))
    )
    waiting = held(GATED, observed)
    serve = {role: each.ready - waiting.get(role, 0) for role, each in observed.items()}
    for role, each in observed.items():
        assert serve[role] >= each.registered
        if waiting.get(role):
            other = "decode" if role == "prefill" else "prefill"
            # One more would break the band, or nothing of the other role is there.
            assert (serve[role] + 1) > 2 * serve[other]
            assert serve[role] <= max(each.registered, 2 * serve[other])
    assert len(waiting) < 2


def test_a_narrow_band_does_not_keep_a_service_from_starting():
    narrow = [{"target": "5/4", "min": "1.2", "max": "1.3"}]
    gated = fleet(service(ratios=narrow)).compiled[0]
    assert held(gated, running({"prefill": 1, "decode": 1}, {"prefill": 0, "decode": 0})) == {}


# Ratio maintenance


def test_counts_out_of_the_band_return_step_by_step():
    counts, state, seen = {"prefill": 20, "decode": 6}, None, []
    made = fleet()
    for number in range(8):
        now = NOW + 30 * number
        decision, state = step(made, counts, {"decode_tps": 600}, now=now, state=state)
        counts = decision.counts
        seen.append((decision.action, counts["prefill"], counts["decode"]))
    assert seen[:7] == [("rebalance", left, 6) for left in (18, 16, 14, 12, 10, 8, 6)]
    assert seen[7] == ("hold", 6, 6)


def test_drift_inside_the_band_returns_beyond_the_threshold_only():
    for drift, action in ((0.5, "hold"), (0.2, "rebalance")):
        made = fleet(service(maintenance={"drift": drift}))
        decision, _ = step(made, {"prefill": 14, "decode": 10}, {"decode_tps": 1000})
        assert decision.action == action
    assert decision.counts == {"prefill": 12, "decode": 10}
    assert decision.driver == "ratio"
    assert "14 prefill and 10 decode are 40 % off the ratio 1:1" in decision.reason


def test_whole_numbers_that_cannot_be_nearer_are_left_alone():
    made = fleet(service(ratios=[{"target": "9/7", "min": 1, "max": 2}]))
    decision, _ = step(made, even(1), {"decode_tps": 100})
    assert decision.action == "hold"


def test_maintenance_lowers_nothing_on_missing_data_or_in_a_cooldown():
    made = fleet(service(policy=LAYERED, stability={**PLAIN, "cooldown_in": 300}))
    counts = {"prefill": 20, "decode": 6}
    assert step(made, counts, {"decode_tps": 600})[0].action == "hold"
    values = {"decode_tps": 600, "ttft": 0.5}
    assert step(made, counts, values, last_out=NOW - 10)[0].action == "hold"
    assert step(made, counts, values)[0].action == "rebalance"


def test_counts_above_a_new_limit_come_down():
    roles = {role: {"min": 1, "max": 8, "shapes": [SHAPE]} for role in EVEN}
    made, counts, state = fleet(service(roles=roles)), EVEN, None
    for number in range(6):
        now = NOW + 30 * number
        decision, state = step(made, counts, {"decode_tps": 1000}, now=now, state=state)
        counts = decision.counts
    assert counts == even(8)


# Degradation


def two(low=0, high=5, **changes):
    services = [service("low", priority=low), service("high", priority=high)]
    return fleet(*services, **changes)


def both(made, counts, values, free, state=None, now=NOW, running=None):
    """One step of two services; counts and values are (low, high)."""
    names = "low", "high"
    if state is None:
        state = FleetState(
            at=NOW - 30,
            services={
                name: ServiceState(counts=even(count))
                for name, count in zip(names, counts, strict=True)
            },
        )
    observed = {
        name: serving(even(count)) for name, count in zip(names, running or counts, strict=True)
    }
    snapshot = Snapshot(
        now,
        {
            name: readings({"decode_tps": value}, now)
            for name, value in zip(names, values, strict=True)
        },
    )
    done = decide(made, state, snapshot, observed, {"H20": free})
    return {each.service: each for each in done.decisions}, done.state


def test_with_enough_gpus_nothing_shrinks():
    found, _ = both(two(), (6, 6), (600, 1000), free=32)
    assert found["high"].counts == even(10)
    assert found["low"].action == "hold"


def test_low_priority_shrinks_by_what_is_missing():
    # high needs 4 more pairs of 8 GPUs = 32; 8 are free, so low gives 3 pairs.
    found, state = both(two(), (6, 6), (600, 1000), free=8)
    assert found["high"].counts == even(10)
    low = found["low"]
    assert (low.action, low.driver, low.counts, low.window) == ("in", "degradation", even(3), 0)
    assert "high has priority 5 over 0 and lacks 24 H20 GPUs" in low.reason
    assert state.services["low"].last_in == NOW


def test_never_below_the_minimum():
    found, _ = both(two(), (2, 6), (200, 1000), free=0)
    assert found["low"].counts == even(1)
    assert found["high"].counts == even(10)


@pytest.mark.parametrize("load", [300, 600])
@pytest.mark.parametrize("leaving", ["running", "draining"])
def test_what_is_being_freed_is_not_asked_for_again(load, leaving):
    made = two()
    _, state = both(made, (6, 6), (600, 1000), free=8)
    observed = {"low": serving(even(6)), "high": serving(even(6))}
    if leaving == "draining":
        three = Fraction(3)
        drains = RoleObserved(ready=three, registered=three, draining=three)
        observed["low"] = dict.fromkeys(EVEN, drains)
    for number in range(1, 4):
        # The three pairs that low gives up have not left their GPUs yet.
        now = NOW + 30 * number
        snapshot = Snapshot(
            now,
            {
                "low": readings({"decode_tps": load}, now),
                "high": readings({"decode_tps": 1000}, now),
            },
        )
        done = decide(made, state, snapshot, observed, {"H20": 8})
        low, high = done.decisions
        assert (low.action, low.counts) == ("hold", even(3))
        assert high.counts == even(10)
        state = done.state


def test_what_leaves_a_degraded_service_in_later_cycles_is_not_observed_either():
    made = fleet(
        service("low", soft_scale_in={"window": 300}),
        service("high", priority=5, soft_scale_in={"window": 300}),
    )
    found, state = both(made, (6, 6), (600, 1000), free=8)
    assert (found["low"].counts, found["low"].window) == (even(3), 0)
    assert found["high"].window == 300

    def later(count, load, number):
        now = NOW + 30 * number
        return both(made, None, (load, 1000), 0, state=state, now=now, running=(count, 10))

    for number, count in enumerate((6, 5, 4), 1):
        found, state = later(count, 300, number)
        assert (found["low"].action, found["low"].window) == ("hold", 0)
    found, after = later(3, 300, 4)  # all have left
    assert found["low"].window == 300
    assert not after.services["low"].degraded
    found, _ = later(4, 100, 4)  # its own signals lower it
    assert (found["low"].action, found["low"].window) == ("in", 300)


def test_several_give_in_turn_until_it_is_enough_of_every_type():
    l20 = {"name": "l20", "pods": [{"gpu_type": "L20", "gpus": 4}]}
    mixed = {
        "prefill": {"min": 1, "max": 40, "shapes": [l20]},
        "decode": {"min": 1, "max": 40, "shapes": [SHAPE]},
    }
    only = {role: {"min": 1, "max": 40, "shapes": [l20]} for role in EVEN}
    made = fleet(
        service("mixed", roles=mixed),
        service("plain", priority=1),
        service("l20", priority=2, roles=only),
        service("top", priority=9, roles=mixed),
    )
    counts = {"mixed": 3, "plain": 3, "l20": 3, "top": 3}
    state = FleetState(
        services={name: ServiceState(counts=even(count)) for name, count in counts.items()}
    )
    observed = {name: serving(even(count)) for name, count in counts.items()}
    values = {"mixed": 300, "plain": 300, "l20": 300, "top": 700}
    snapshot = Snapshot(
        NOW, {name: readings({"decode_tps": value}) for name, value in values.items()}
    )
    done = decide(made, state, snapshot, observed, {"H20": 0, "L20": 0})
    found = {each.service: each.counts for each in done.decisions}
    # top lacks 4 of each type; mixed gives 2 of each, and plain and l20 each 2 of theirs.
    assert found == {"mixed": even(1), "plain": even(2), "l20": even(2), "top": even(7)}


def test_a_scale_out_of_low_priority_waits_for_those_before_it():
    made = two()
    found, _ = both(made, (6, 6), (1000, 1000), free=32)
    assert found["high"].counts == even(10)
    assert (found["low"].action, found["low"].driver) == ("hold", "degradation")
    assert "services of higher priority need the free GPUs" in found["low"].reason
    # Without a rival the target stands, so that what is unmet is seen.
    found, _ = both(made, (6, 6), (1000, 600), free=0)
    assert found["low"].counts == even(10)


def test_equal_priorities_do_not_shrink_each_other():
    found, _ = both(two(3, 3), (6, 6), (600, 1000), free=0)
    assert found["low"].action == "hold"
    assert found["high"].counts == even(10)


def test_degradation_can_be_switched_off_and_needs_the_free_gpus():
    found, _ = both(two(degradation={"enabled": False}), (6, 6), (600, 1000), free=0)
    assert found["low"].action == "hold"


def test_services_on_other_gpus_are_left_alone():
    other = {"name": "l20", "pods": [{"gpu_type": "L20", "gpus": 4}]}
    roles = {role: {"min": 1, "max": 40, "shapes": [other]} for role in EVEN}
    made = fleet(service("low", roles=roles), service("high", priority=5))
    found, _ = both(made, (6, 6), (600, 1000), free=0)
    assert found["low"].action == "hold"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(0, 2000)),
        min_size=2,
        max_size=5,
    ),
    st.integers(0, 60),
)
def test_degradation_keeps_band_minimum_and_order(scene, free):
    made = fleet(*(service(f"s{index}", priority=each[0]) for index, each in enumerate(scene)))
    state = FleetState(
        services={
            f"s{index}": ServiceState(counts=even(count))
            for index, (_, count, _) in enumerate(scene)
        }
    )
    observed = {name: serving(each.counts) for name, each in state.services.items()}
    snapshot = Snapshot(
        NOW,
        {f"s{index}": readings({"decode_tps": each[2]}) for index, each in enumerate(scene)},
    )
    alone = decide(made, state, snapshot, observed).decisions
    found = decide(made, state, snapshot, observed, {"H20": free}).decisions
    shrunk = [each for each in found if each.driver == "degradation" and each.action == "in"]
    priority = {each.name: each.priority for each in made.services}
    for each, plain, service_ in zip(found, alone, made.compiled, strict=True):
        assert service_.ratios.holds(each.counts)
        if each.driver != "degradation":
            assert each == plain
    for each in shrunk:
        assert all(count >= 1 for count in each.counts.values())
        assert any(
            other.action == "out" and priority[other.service] > priority[each.service]
            for other in found
        )
