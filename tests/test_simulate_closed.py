"""The closed loop: decisions, placement, timers, and what is written."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from simulate_fleets import OUTPUT, PROMPT, cluster, flat, fleet, service, steps

from heteroplace import InputError, Profile
from heteroplace.policy import Cluster
from heteroplace.policy.cluster import ClusterGroup, ClusterInstance
from heteroplace.simulate import (
    POLICIES,
    UNITS,
    Noise,
    PoolModel,
    PoolModels,
    paper_day,
    simulate,
    write_outcome,
)
from heteroplace.simulate.live import Live
from heteroplace.simulate.outcome import correlation, lagged_correlation
from heteroplace.simulate.services import pooled_services
from heteroplace.simulate.sizing import expected, required, stationary, supply_of
from heteroplace.simulate.steady import Mix

ROOT = Path(__file__).parents[1]
MIX = Mix(PROMPT, PROMPT, OUTPUT)


def series(outcome, name, service="chat"):
    return outcome.of(service)[name]


def test_a_steady_load_gets_what_the_target_says():
    outcome = simulate(fleet(), cluster(), {"chat": flat(40, 3600)})
    # 40 * 140 = 5600 tokens/s at 0.8 * 1000 each.
    assert series(outcome, "decode_instances")[-1] == 7
    assert series(outcome, "prefill_instances")[-1] == 7
    summary = outcome.summary("chat")
    assert summary.queued == 0
    assert summary.unmet_gpu_hours == 0


def test_every_event_says_why():
    outcome = simulate(fleet(), cluster(), {"chat": steps([20, 80, 20], 5400)})
    actions = [each.action for each in outcome.events]
    assert "out" in actions
    assert "in" in actions
    assert all(each.reason and each.driver for each in outcome.events)
    assert [each.at for each in outcome.events] == sorted(each.at for each in outcome.events)


def test_requests_are_conserved_in_the_loop():
    demand = steps([20, 90, 10, 60], 4 * 1200)
    outcome = simulate(
        fleet(), cluster(), {"chat": demand}, noise=Noise(dispersion=20, wander=0.2), seed=7
    )
    own = outcome.of("chat")
    arrived = own["requests"].sum() * outcome.tick
    there = own["queued_requests"][-1] + own["sequences"][-1]
    assert own["finished"].sum() + there == pytest.approx(arrived, rel=1e-9)


@pytest.mark.parametrize("policy", ["fleet", "ttft"])
def test_the_same_seed_gives_the_same_outcome(policy):
    def once(seed):
        return simulate(
            fleet(),
            cluster(),
            {"chat": steps([20, 60], 1800)},
            policy=policy,
            noise=Noise(dispersion=5),
            seed=seed,
        )

    first, again, other = once(1), once(1), once(2)
    assert first.events == again.events
    for name in UNITS:
        assert np.array_equal(first.series[name], again.series[name], equal_nan=True), name
    assert not np.array_equal(first.series["requests"], other.series["requests"])


def test_new_instances_serve_after_their_start_up_and_not_before():
    pools = PoolModels(defaults=PoolModel(startup_seconds=300))
    outcome = simulate(fleet(), cluster(), {"chat": steps([10, 60], 3600)}, pools=pools)
    first = next(each for each in outcome.events if each.action == "out")
    hours = outcome.hours * 3600
    serving = series(outcome, "decode_instances")
    before = serving[hours < first.at + 300]
    assert len(set(before)) == 1
    # The registration gate opens at the next step of the policies at the latest.
    after = serving[hours >= first.at + 300 + outcome.interval]
    assert after[0] > before[0]
    assert (series(outcome, "starting")[(hours >= first.at) & (hours < first.at + 300)] > 0).all()


def test_instances_under_observation_keep_their_gpus_and_then_end():
    outcome = simulate(fleet(), cluster(), {"chat": steps([60, 10], 3600)})
    first = next(each for each in outcome.events if each.action == "in")
    hours = outcome.hours * 3600
    gpus, leaving = series(outcome, "gpus"), series(outcome, "leaving")
    at = int(np.flatnonzero(hours == first.at)[0])
    assert first.removed > 0
    assert leaving[at] == first.removed
    assert gpus[at] == gpus[at - 1]
    ended = next(each for each in outcome.events if each.terminated)
    assert ended.at >= first.at + 60
    later = int(np.flatnonzero(hours == ended.at)[0])
    assert gpus[later] < gpus[at]


def test_a_broken_objective_brings_withdrawn_instances_back_without_start_up():
    # A target far too high: every scale-in overloads decode.
    tight = service(
        policy={
            "primary": {"kind": "throughput", "signal": "decode_tps", "target": 4000},
            "latency": [{"signal": "ttft", "slo": 0.6}, {"signal": "tbt", "slo": 0.06}],
        },
        soft_scale_in={"window": 300},
    )
    pools = PoolModels(defaults=PoolModel(startup_seconds=600, restore_seconds=15))
    running = (group(count=8),)
    outcome = simulate(
        fleet(tight), cluster(running=running), {"chat": flat(50, 3600)}, pools=pools
    )
    summary = outcome.summary("chat")
    assert summary.restored > 0
    back = next(each for each in outcome.events if each.restored)
    hours = outcome.hours * 3600
    serving = series(outcome, "decode_instances")
    before = serving[hours < back.at][-1]
    assert serving[hours >= back.at + 15][0] > before


def group(name="chat-0", count=2, state="ready", registered=True, pod=0):
    return ClusterGroup(
        name=name,
        service="chat",
        domain=f"pod-{pod}",
        instances=tuple(
            ClusterInstance(
                role=role,
                shape=shape,
                nodes=(f"{pod}-{kind}-{index * size // 8}",),
                state=state,
                registered=registered,
            )
            for role, shape, kind, size in (("prefill", "p", "A", 2), ("decode", "d", "B", 1))
            for index in range(count)
        ),
    )


def live(place, *services, pools=None):
    made = fleet(*services)
    pooled = pooled_services(made, pools or PoolModels(), {"chat"})
    gated = [each.name for each in made.services if each.registration.gate]
    return Live(place, pooled, gated)


def test_what_runs_at_the_start_serves():
    supply = live(cluster(running=(group(),))).supply()
    assert (supply.prefill[0], supply.decode[0]) == (16_000, 2000)
    assert (supply.prefill_instances[0], supply.decode_instances[0]) == (2, 2)


def test_a_registration_that_is_held_does_not_serve():
    there = live(cluster(running=(group(registered=False),)))
    assert there.supply().decode_instances[0] == 0
    there.register("chat", {"decode": 1, "prefill": 2})
    assert there.supply().decode_instances[0] == 1
    assert there.supply().prefill_instances[0] == 0
    assert there.occupied()["held"][0] == 3
    there.register("chat", {})
    assert there.supply().prefill_instances[0] == 2


def test_without_a_gate_ready_instances_serve_at_once():
    for gate, serving in ((True, 0), (False, 2)):
        place = cluster(running=(group(state="starting"),))
        there = live(place, service(registration={"gate": gate}))
        there.advance(179)
        assert there.occupied()["starting"][0] == 4
        there.advance(180)
        assert there.supply().decode_instances[0] == serving


def test_of_roles_that_decode_together_a_pair_that_leaves_counts_once():
    shape = {"pods": [{"gpu_type": "A", "gpus": 1}], "capacity": 1000}
    roles = {
        name: {"max": 9, "shapes": [{"name": name, **shape}]} for name in ("prefill", "attn", "ffn")
    }
    ratios = [
        {"numerator": "attn", "denominator": "ffn", "target": 1},
        {"numerator": "prefill", "denominator": "attn", "target": 1},
    ]
    running = ClusterGroup(
        name="chat-0",
        service="chat",
        domain="pod-0",
        instances=tuple(
            ClusterInstance(role=role, shape=role, nodes=(f"0-A-{index}",))
            for index, role in enumerate(("prefill", "attn", "attn", "ffn", "ffn"))
        ),
    )
    primary = {"kind": "throughput", "role": "attn"}
    made = service(roles=roles, ratios=ratios, policy={"primary": primary})
    models = PoolModels(defaults=PoolModel(decode_roles=("attn", "ffn")))
    there = live(cluster(running=(running,)), made, pools=models)
    assert there.supply().decode[0] == 2000
    for role in ("attn", "ffn"):
        there._leave(there._groups["chat-0"].instances[f"{role}-0"], 60.0)
    assert there.left_decode()[0] == 1000
    assert there.left_decode()[0] == 0


def test_crossing_is_measured_on_the_real_placement():
    # Prefill is on type A and decode on type B, each under its own S1: all transfers cross.
    assert live(cluster(running=(group(),))).supply().crossing[0] == 1
    wide = PoolModels(defaults=PoolModel(switch_level="s2"))
    assert live(cluster(running=(group(),)), pools=wide).supply().crossing[0] == 0
    with pytest.raises(InputError, match="is no level of the cluster"):
        live(
            cluster(running=(group(),)),
            pools=PoolModels(defaults=PoolModel(switch_level="rack")),
        )


def test_crossing_counts_pairs_by_capacity():
    place = cluster(running=(group("a", 2, pod=0), group("b", 2, pod=1)))
    mixed = Cluster.model_validate(
        place.model_dump(by_alias=True)
        | {
            "nodes": [
                node.model_dump() | {"domains": node.domains | {"s1": f"mini-{index % 2}"}}
                for index, node in enumerate(place.nodes)
            ]
        }
    )
    there = live(mixed)
    switches = {node.name: node.domains["s1"] for node in mixed.nodes}
    pairs = same = 0
    for name in "ab":
        mine = [each for each in there.instances("chat") if each.group == name]
        for prefill in (each for each in mine if each.role == "prefill"):
            for decode in (each for each in mine if each.role == "decode"):
                pairs += 1
                same += switches[prefill.nodes[0]] == switches[decode.nodes[0]]
    assert there.supply().crossing[0] == pytest.approx(1 - same / pairs)


def test_too_small_a_cluster_shows_as_unmet():
    outcome = simulate(fleet(), cluster(pods=1, nodes=1), {"chat": steps([10, 200], 3600)})
    summary = outcome.summary("chat")
    assert summary.unmet_gpu_hours > 0
    assert series(outcome, "gpus").max() <= 16
    assert summary.queued > 0
    assert summary.ttft_attained < 0.9


def test_no_node_is_ever_over_its_gpus(monkeypatch):
    fullest = 0

    def watched(self, now):
        nonlocal fullest
        used = Counter()
        for group in self._groups.values():
            for each in group.instances.values():
                # Every shape here is one pod.
                used[each.nodes[0]] += each.gpus
        fullest = max(fullest, *used.values())
        advance(self, now)

    advance = Live.advance
    monkeypatch.setattr(Live, "advance", watched)
    place = cluster(pods=1, nodes=3)
    made = fleet(service("chat"), service("code", priority=1))
    demand = {"chat": steps([10, 80, 20], 5400), "code": steps([30, 5, 50], 5400)}
    outcome = simulate(made, place, demand, profile=Profile(solver="greedy"))
    assert fullest == max(node.gpus for node in place.nodes)
    assert outcome.summary("code").unmet_gpu_hours <= outcome.summary("chat").unmet_gpu_hours


def test_every_plan_of_the_loop_is_checked(monkeypatch):
    from heteroplace.plan import Violation
    from heteroplace.simulate import closed

    def broken(instance, profile):
        result = solve(instance, profile)
        wrong = Violation(constraint="capacity", subject="n", message="too full")
        return result.model_copy(update={"violations": (wrong,)})

    solve = closed.solve
    monkeypatch.setattr(closed, "solve", broken)
    with pytest.raises(InputError, match="breaks capacity"):
        simulate(fleet(), cluster(), {"chat": flat(40, 600)})


@pytest.mark.parametrize("policy", POLICIES)
def test_every_single_signal_policy_runs(policy):
    demand = {"chat": steps([15, 60, 15], 3 * 2400)}
    outcome = simulate(fleet(), cluster(), demand, policy=policy)
    summary = outcome.summary("chat")
    assert outcome.policy == policy
    assert summary.gpu_hours > 0
    assert {each.driver for each in outcome.events} <= {policy, "limits", "ratio", "observation"}
    if policy == "decode_gpu_util":
        # The paper's finding: high at any load, so it never scales in.
        assert summary.scale_in == 0
    if policy == "decode_tps":
        assert summary.scale_out > 0
        assert summary.scale_in > 0


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="none of fleet, prefill_tps"):
        simulate(fleet(), cluster(), {"chat": flat(1, 600)}, policy="magic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tick": 7}, "must divide the interval"),
        ({"tick": 60}, "at most the interval"),
        ({"interval": 0}, "must be greater than 0"),
        ({"hours": 0}, "must be greater than 0"),
        ({"hours": float("nan")}, "must be greater than 0"),
        ({"hours": 100}, "ask for less, or repeat"),
        ({"start": -1.0}, "start: must be in the years 1970 to 2999"),
        ({"start": 1e11}, "start: must be in the years 1970 to 2999"),
        ({"start": float("nan")}, "start: must be in the years 1970 to 2999"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        simulate(fleet(), cluster(), {"chat": flat(1, 600)}, **options)


def test_a_demand_for_no_service_of_the_fleet_is_refused():
    with pytest.raises(InputError, match="is no service of the fleet; it has chat"):
        simulate(fleet(), cluster(), {"chats": flat(1, 600)})


def test_capacities_that_count_instances_are_refused():
    roles = {
        name: {"shapes": [{"pods": [{"gpu_type": "A", "gpus": 1}]}]}
        for name in ("prefill", "decode")
    }
    policy = {"primary": {"kind": "utilization", "signal": "prefill_sm", "target": 0.5}}
    made = fleet(service(roles=roles, policy=policy))
    with pytest.raises(InputError, match="count instances, not tokens per second"):
        simulate(made, cluster(), {"chat": flat(1, 600)})
    rates = PoolModels(defaults=PoolModel(prefill_tokens=8000, decode_tokens=1500))
    assert simulate(made, cluster(), {"chat": flat(1, 600)}, pools=rates).ticks == 40


def test_roles_that_are_neither_are_refused_until_they_are_named():
    roles = {
        name: {"max": 9, "shapes": [{"pods": [{"gpu_type": "A", "gpus": 1}], "capacity": 5000}]}
        for name in ("attn", "ffn", "decode")
    }
    made = fleet(
        service(
            roles=roles,
            ratios=[
                {"numerator": "attn", "denominator": "ffn", "target": 1},
                {"numerator": "attn", "denominator": "decode", "target": 1},
            ],
        )
    )
    with pytest.raises(InputError, match="prefill_roles"):
        simulate(made, cluster(), {"chat": flat(5, 600)})
    pools = PoolModels(defaults=PoolModel(prefill_roles=("attn", "ffn")))
    outcome = simulate(made, cluster(nodes=8), {"chat": flat(5, 900)}, pools=pools)
    own = outcome.of("chat")
    # Attention and FFN together make one prefill instance: the lesser of the two counts.
    assert own["prefill_capacity"][-1] == own["prefill_instances"][-1] * 5000
    assert own["gpus"][-1] == own["prefill_instances"][-1] * 2 + own["decode_instances"][-1]


def test_a_service_of_one_role_does_both():
    roles = {
        "serve": {
            "max": 20,
            "shapes": [{"name": "s", "pods": [{"gpu_type": "A", "gpus": 1}], "capacity": 8000}],
        }
    }
    one = service(
        roles=roles, ratios=[], policy={"primary": {"kind": "throughput", "signal": "prefill_tps"}}
    )
    outcome = simulate(fleet(one), cluster(), {"chat": flat(20, 1800)})
    assert series(outcome, "prefill_instances")[-1] == series(outcome, "decode_instances")[-1] == 4
    assert outcome.summary("chat").crossing == 0


def test_a_cold_start_begins_with_nothing():
    warm = simulate(fleet(), cluster(), {"chat": flat(40, 1200)})
    cold = simulate(fleet(), cluster(), {"chat": flat(40, 1200)}, warm=False)
    assert series(warm, "decode_instances")[0] > 0
    assert series(cold, "decode_instances")[0] == 0
    assert cold.summary("chat").ttft_attained < warm.summary("chat").ttft_attained


def test_a_demand_without_requests_is_no_division_by_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = simulate(fleet(), cluster(), {"chat": flat(0, 600)}).summary("chat")
    assert (summary.requests, summary.imputed, summary.ttft_attained) == (0, 0, None)


def test_services_without_a_trace_are_asked_for_nothing():
    made = fleet(service("chat"), service("other"))
    outcome = simulate(made, cluster(), {"chat": flat(20, 1200)})
    assert outcome.summary("other").requests == 0
    assert outcome.summary("other").ttft_attained is None
    assert any("other has no trace" in note for note in outcome.notes)


def test_the_input_is_not_changed():
    made, place, demand = fleet(), cluster(running=(group(),)), {"chat": steps([10, 60], 1800)}
    before = made.to_json(), place.to_json(), demand["chat"].requests.copy()
    simulate(made, place, demand, policy="ttft")
    assert (made.to_json(), place.to_json()) == before[:2]
    assert np.array_equal(demand["chat"].requests, before[2])


# -- numbers -------------------------------------------------------------------------------------


def test_required_is_the_least_that_keeps_the_objectives():
    pooled = pooled_services(fleet(), PoolModels(), {"chat"})[0]
    for requests in (1.0, 20.0, 55.0):
        counts = required(pooled, MIX, requests)
        state = stationary(pooled, MIX)
        assert state.steady(np.array([requests]), supply_of(pooled, [counts])).within[0]
        fewer = {role: count - 1 for role, count in counts.items()}
        if min(fewer.values()) > 0:
            less = supply_of(pooled, [fewer])
            assert not state.steady(np.array([requests]), less).within[0]
    assert required(pooled, MIX, 1e6) is None


def test_the_operating_point_is_a_share_of_the_sustained_load():
    pooled = pooled_services(fleet(), PoolModels(), {"chat"})[0]
    point = expected(pooled, MIX, {"prefill": 4, "decode": 4}, 0.5)
    assert point.signals["decode_tps"] == pytest.approx(0.5 * point.sustained * OUTPUT / 4)
    assert point.signals["prefill_tps"] == pytest.approx(0.5 * point.sustained * PROMPT / 4)
    assert 0.08 < point.signals["prefill_gpu_util"] < 0.95


def test_correlation_and_lag_are_found():
    load = np.sin(np.arange(960) / 120 * np.pi) + 2
    own = {"missed": load, "output": load * 0, "gpus": np.roll(load, 24)}
    best, lag = lagged_correlation(own, 30.0, 60.0)
    assert lag == 24 * 30
    assert best > 0.99
    assert correlation(load, load) == pytest.approx(1)
    assert correlation(load, np.ones(960)) is None


def test_gpu_hours_are_the_integral_of_the_gpus():
    outcome = simulate(fleet(), cluster(), {"chat": steps([20, 60], 3600)})
    summary = outcome.summary("chat")
    assert summary.gpu_hours == pytest.approx(series(outcome, "gpus").sum() * 15 / 3600)
    static = summary.static_counts
    assert summary.static_gpu_hours == (2 * static["prefill"] + static["decode"])
    assert summary.saved == pytest.approx(1 - summary.gpu_hours / summary.static_gpu_hours)


# -- files ---------------------------------------------------------------------------------------


def test_the_folder_holds_what_the_outcome_holds(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    made = fleet(service("a/b"), service("a_b"))
    demand = {"a/b": steps([10, 40], 900), "a_b": flat(5, 900)}
    outcome = simulate(made, cluster(), demand)
    files = write_outcome(outcome, tmp_path / "out")
    assert sorted(each.name for each in files) == sorted(os.listdir(tmp_path / "out"))
    table = parquet.read_table(tmp_path / "out/series.parquet")
    assert table.column_names == ["service", "t_s", *UNITS]
    assert table.num_rows == 2 * outcome.ticks
    assert table.schema.field("ttft").metadata[b"unit"] == UNITS["ttft"].encode()
    rows = list(csv.DictReader((tmp_path / "out/series.csv").open(encoding="utf-8")))
    assert [each["service"] for each in rows] == ["a/b"] * outcome.ticks + ["a_b"] * outcome.ticks
    for name in UNITS:
        flat_values = outcome.series[name].T.ravel()
        read = [float(each[name]) if each[name] else np.nan for each in rows]
        assert np.array_equal(read, flat_values, equal_nan=True), name
        assert np.array_equal(
            table[name].to_numpy(zero_copy_only=False), flat_values, equal_nan=True
        )
    summary = json.loads((tmp_path / "out/summary.json").read_text("utf-8"))
    assert [each["service"] for each in summary["services"]] == ["a/b", "a_b"]
    events = list(csv.DictReader((tmp_path / "out/events.csv").open(encoding="utf-8")))
    assert len(events) == len(outcome.events) == summary["events"]
    for picture in (tmp_path / "out").glob("*.svg"):
        assert "<svg" in picture.read_text("utf-8")[:2000]
    assert len(list((tmp_path / "out").glob("*.svg"))) == 2
    assert all(each.read_bytes()[:4] == b"\x89PNG" for each in (tmp_path / "out").glob("*.png"))


def test_equal_outcomes_give_equal_pictures():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from heteroplace.simulate.plots import draw

    first, again = (simulate(fleet(), cluster(), {"chat": steps([10, 40], 900)}) for _ in range(2))
    for kind in ("svg", "png"):
        assert draw(first, "chat", kind) == draw(again, "chat", kind), kind
    other = dataclasses.replace(first, policy="another")
    assert draw(other, "chat") != draw(first, "chat")


def test_every_service_has_files_of_its_own():
    from heteroplace.simulate.folder import _file_names

    names = _file_names(["a/b", "a_b-1", "a_b", "a:b"])
    assert names[:2] == ["a_b", "a_b-1"]
    assert len(set(names)) == 4


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    outcome = simulate(fleet(), cluster(), {"chat": flat(5, 300)})
    with pytest.raises(InputError, match="cannot be written"):
        write_outcome(outcome, tmp_path / "file", ())


def test_a_killed_run_leaves_no_half_file(tmp_path):
    """Killed at several moments: what is there is whole, and a summary means all of it is."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    (tmp_path / "fleet.json").write_text(fleet().to_json(), encoding="utf-8")
    (tmp_path / "cluster.json").write_text(cluster().to_json(), encoding="utf-8")
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "heteroplace", "simulate", "--out", str(out), "--hours", "0.25"),
        *("--fleet", str(tmp_path / "fleet.json"), "--cluster", str(tmp_path / "cluster.json")),
        *("--trace", "paper-day", "--peak", "40", "--plots", "svg"),
    ]
    files = {"series.parquet", "series.csv", "events.csv", "chat.svg", "summary.json"}
    for kills in range(3):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        appeared = ("series.parquet", "events.csv", "summary.json")[kills]
        while process.poll() is None and not (out / appeared).exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = {each.name for each in out.iterdir() if not each.name.startswith(".")}
        assert there <= files
        if "summary.json" in there:
            assert there == files
            json.loads((out / "summary.json").read_text("utf-8"))
        if "series.parquet" in there:
            assert parquet.read_table(out / "series.parquet").num_rows == 60
        if "series.csv" in there:
            assert (out / "series.csv").read_text("utf-8").count("\n") == 61
        for each in out.iterdir():
            each.unlink()


def test_the_paper_day_runs_with_placement():
    outcome = simulate(fleet(), cluster(nodes=8), {"chat": paper_day(60, 1000, 140)}, tick=30)
    summary = outcome.summary("chat")
    assert outcome.ticks == 2880
    assert summary.ttft_attained > 0.95
    assert 0.2 < summary.mean_of_peak < 0.9
    assert summary.correlation > 0.9
