"""The scripted studies: pools, tiers and inventory."""

from __future__ import annotations

import importlib
import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from heteroplace import Instance, Plan, Profile, Session, check, solve
from heteroplace.models import InstanceCapacity, ServedModel, load_models

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SCRIPTS = ("pools", "tiers", "inventory")

pytest.importorskip("pyarrow", reason="the studies write Parquet; install heteroplace[study]")


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if not (DATA / name).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"shared/data lacks {', '.join(missing)}")


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module(name)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("pools", monkeypatch)


@pytest.fixture
def tiers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("tiers", monkeypatch)


@pytest.fixture
def inventory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("inventory", monkeypatch)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("study", monkeypatch)


def command(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *options],
        capture_output=True,
        text=True,
        timeout=600,
    )


# -- as commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pools", "inventory"])
def test_missing_data_is_named_and_nothing_is_written(name, tmp_path):
    done = command(name, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "none" in done.stderr
    assert "missing" in done.stderr
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("options", [("--seeds", "0"), ("--seeds", "x"), ("--time-limit", "nan")])
def test_bad_options_are_refused(name, options, tmp_path):
    done = command(name, "--out", str(tmp_path / "out"), *options)
    assert done.returncode == 2
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = command("tiers", "--seeds", "1", "--out", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_tiers_as_a_command(tmp_path):
    import pyarrow.parquet

    out = tmp_path / "out"
    done = command("tiers", "--seeds", "1", "--loads", "0.5", "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    kept = json.loads((out / "study.json").read_text())
    assert printed == kept
    assert kept["settings"]["seeds"] == [0]
    assert kept["environment"]["versions"]["heteroplace"]
    assert "--loads 0.5" in kept["command"]
    days = pyarrow.parquet.read_table(out / "days.parquet").to_pylist()
    cycles = pyarrow.parquet.read_table(out / "cycles.parquet").to_pylist()
    assert kept["tables"] == {"days": len(days), "cycles": len(cycles)}
    assert len((out / "days.csv").read_text().splitlines()) == len(days) + 1
    by_arm = {row["arm"]: row for row in days}
    # The same day for all: what is asked for, not what is placed.
    assert len({row["asked_gpu_hours"] for row in days}) == 1
    assert len({row["tight_arrived"] for row in days}) == 1
    assert by_arm["greedy"]["cycles_invalid"] == by_arm["solver"]["cycles_invalid"] == 0
    assert len(cycles) == len(days) * kept["settings"]["cycles"]


@needs("aiconfigurator/capacity_by_gpu_role.csv", "gpu-prices/gpu_prices.csv")
def test_pools_as_a_command(tmp_path):
    import pyarrow.parquet

    out = tmp_path / "out"
    done = command("pools", "--seeds", "1", "--time-limit", "0.3", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "price" in done.stdout
    prices = pyarrow.parquet.read_table(out / "prices.parquet").to_pylist()
    assert all(row["penalty"] >= -1e-12 for row in prices)
    assert all(row["mixed_usd"] <= row["one_type_usd"] * (1 + 1e-12) for row in prices)
    assert {row["estimates"] for row in prices} == {True, False}
    assert not any(row["uses_estimate"] for row in prices if not row["estimates"])
    # More types to choose from never cost more.
    tables = {
        (row["model"], row["prompt_tokens"], row["prompt_per_output"]): row["mixed_usd"]
        for row in prices
        if not row["estimates"]
    }
    for row in prices:
        key = (row["model"], row["prompt_tokens"], row["prompt_per_output"])
        assert row["mixed_usd"] <= tables[key] * (1 + 1e-12)
    fleet = pyarrow.parquet.read_table(out / "fleet.parquet").to_pylist()
    assert Counter(row["arm"] for row in fleet) == dict.fromkeys(
        ("one type", "mixed", "mixed, greedy"), 6
    )
    assert all(0 < row["served"] <= 1 for row in fleet)


@needs(
    "derived/nodes_alibaba2026_s0s1s2.csv",
    "alibaba-gpu-v2023/openb_node_list_gpu_node.csv",
    *(f"servegen/{name}_600s.csv" for name in ("m-small", "m-mid", "deepseek-r1")),
)
class TestInventory:
    def test_nodes_are_the_listed_ones(self, inventory):
        types = ["a100_sxm", "a800_sxm", "h800_sxm", "a10"]
        whole = inventory.read_nodes("alibaba-2026", DATA, types, 1.0)
        assert Counter(node["gpu_type"] for node in whole) == {
            "A100-SXM4-80GB": 432,
            "H800": 219,
            "A800-SXM4-80GB": 22,
        }
        other = inventory.read_nodes("alibaba-2023", DATA, types, 1.0)
        assert Counter(node["gpu_type"] for node in other) == {"A10": 549, "A100-SXM4-80GB": 39}
        part = inventory.read_nodes("alibaba-2026", DATA, types, 0.125)
        assert {node["name"] for node in part} < {node["name"] for node in whole}
        assert {node["gpu_type"] for node in part} == {node["gpu_type"] for node in whole}

    def test_mixed_pods_keep_nodes_and_mini_pods(self, inventory):
        types = ["a100_sxm", "a800_sxm", "h800_sxm"]
        plain = inventory.read_nodes("alibaba-2026", DATA, types, 1.0)
        mixed = inventory.read_nodes("alibaba-2026 mixed", DATA, types, 1.0)
        key = "domains"
        assert sorted((n["name"], n["gpu_type"], n[key]["s1"]) for n in plain) == sorted(
            (n["name"], n["gpu_type"], n[key]["s1"]) for n in mixed
        )
        kinds: dict[str, set[str]] = {}
        for node in mixed:
            kinds.setdefault(node[key]["s2"], set()).add(node["gpu_type"])
        assert any(len(types) > 1 for types in kinds.values())
        parents: dict[str, set[str]] = {}
        for node in mixed:
            parents.setdefault(node[key]["s1"], set()).add(node[key]["s2"])
        assert all(len(each) == 1 for each in parents.values())

    def test_the_demand_is_scaled_to_the_fleet(self, inventory):
        models = {each.name: each for each in load_models(ROOT / "models")}
        name = "alibaba-2026"
        nodes = inventory.read_nodes(name, DATA, inventory.known_types(models), 0.125)
        demand = inventory.read_demand(name, DATA, 0, 1)
        sums = []
        for share in (0.5, 1.0):
            fleet, scaled = inventory.build(name, nodes, models, demand, share)
            assert [each.name for each in fleet.services] == list(scaled)
            sums.append(sum(each.peak for each in scaled.values()))
        assert sums[1] == pytest.approx(2 * sums[0])

    def test_days_follow_one_another(self, inventory):
        two = inventory.read_demand("alibaba-2026", DATA, 0, 2)["chat-mid"]
        second = inventory.read_demand("alibaba-2026", DATA, 1, 1)["chat-mid"]
        edges = np.arange(0.0, 86_401.0, 600.0)
        assert np.allclose(two.rates(edges + 86_400.0), second.rates(edges))

    def test_a_day_is_simulated(self, inventory, monkeypatch):
        short = {"alibaba-2023": inventory.TENANTS["alibaba-2023"][:2]}
        monkeypatch.setattr(inventory, "TENANTS", short)
        monkeypatch.setattr(inventory, "INTERVAL", 3600.0)
        monkeypatch.setattr(inventory, "TICK", 600.0)
        rows = inventory.simulated("alibaba-2023", "greedy", 0, 1, 0.05, 0.3, 1.0, DATA)
        assert [row["service"] for row in rows] == ["chat-mid", "reason"]
        for row in rows:
            assert row["gpu_hours"] > 0
            assert 0 <= row["ttft_within"] <= row["started"] + row["waiting"] + 1e-6
            assert row["started"] + row["waiting"] == pytest.approx(row["requests"], rel=1e-3)
        shown = inventory.show_totals([*rows, *({**row, "arm": "solver"} for row in rows)])
        assert shown[1][1][0]["GPU-hours"].startswith("0.0 [0.0, 0.0], 0<2=0>")


# -- pools -----------------------------------------------------------------------------------------


def model_of(**capacities: tuple[float, float]) -> ServedModel:
    return ServedModel(
        name="m",
        source="a test",
        roles={
            role: tuple(
                InstanceCapacity(gpu_type=name, gpus=1, capacity=Fraction(each[place]))
                for name, each in capacities.items()
            )
            for place, role in enumerate(("prefill", "decode"))
        },
    )


def test_prices_by_hand(pools):
    ways = pools.best_ways(model_of(a=(1000, 100), b=(500, 200)))
    found = pools.choices(ways, {"a": 3.6, "b": 3.6}, ratio=10.0)
    # USD per million generated tokens: a 10 + 10, b 20 + 5; prefill on a and decode on b 10 + 5.
    assert (found["one_type"], found["prefill_on"], found["decode_on"]) == ("a", "a", "b")
    assert found["one_type_usd"] == pytest.approx(20)
    assert found["mixed_usd"] == pytest.approx(15)
    assert found["penalty"] == pytest.approx(1 / 3)


def test_a_type_without_a_price_is_not_chosen(pools):
    ways = pools.best_ways(model_of(a=(1000, 100), b=(10**6, 10**6)))
    assert pools.choices(ways, {"a": 1.0}, ratio=1.0)["types"] == 1


def test_a_pair_agrees_with_a_scan_of_price_ratios(pools):
    ways = pools.best_ways(model_of(a=(1000, 100), b=(1500, 400)))
    row = pools.pair_row(ways["a"], ways["b"], 7.0)
    assert row is not None
    best, pays = 0.0, []
    for step in range(1, 4000):
        ratio = step / 500
        cost = {
            name: pools.token_cost(ways[name], price, 7.0)
            for name, price in (("a", 1.0), ("b", ratio))
        }
        mixed = cost["a"][0] + cost["b"][1]
        gain = min(sum(cost["a"]), sum(cost["b"])) / mixed - 1
        if gain > 1e-9:
            pays.append(ratio)
        best = max(best, gain)
    assert row["largest_penalty"] == pytest.approx(best, abs=2e-3)
    assert pays[0] == pytest.approx(row["pays_from_price_ratio"], abs=0.01)
    assert pays[-1] == pytest.approx(row["pays_to_price_ratio"], abs=0.01)
    assert pools.pair_row(ways["b"], ways["a"], 7.0) is None


def test_one_type_keeps_both_roles_of_a_group_on_a_type(pools):
    model = model_of(a100_sxm=(1000, 100), h100_sxm=(1500, 400))
    fleet = {"a100_sxm": 2, "h100_sxm": 2}
    prices = {"a100_sxm": 1.0, "h100_sxm": 2.0}
    services = pools.draw_services([model], fleet, prices, 0.5, seed=3)
    worth = {each["name"]: each["usd"] for each in services}
    one, mixed = (pools.fleet_instance(fleet, services, level) for level in ("pool", "cluster"))
    profile = Profile(time_limit=5.0, threads=1)
    plans = [solve(each, profile) for each in (one, mixed)]
    for group in plans[0].plan.groups:
        types = {
            one.nodes[one.node_index[pod.node]].gpu_type
            for each in group.added
            for pod in each.pods
        }
        assert len(types) == 1
    # What one type allows, mixed pools allow too.
    as_mixed = {
        **json.loads(plans[0].plan.to_json()),
        "instance_digest": None,
    }
    for group in as_mixed["groups"]:
        group["domain"] = "c"
    assert check(mixed, Plan.from_json(json.dumps(as_mixed))) == []
    found = [
        pools.outcome(instance, result, worth)
        for instance, result in zip((one, mixed), plans, strict=True)
    ]
    for each, result in zip(found, plans, strict=True):
        steps = {step.name: step.value for step in result.steps}
        assert each["usd_per_hour"] == pytest.approx(steps["cost"])
        assert each["unmet_gpus"] == pytest.approx(steps["unmet[0]"])
    assert not math.isnan(found[1]["cost_index"])
    if all(result.status == "optimal" for result in plans):
        assert found[1]["unmet_gpus"] <= found[0]["unmet_gpus"] + 1e-9


# -- tiers -----------------------------------------------------------------------------------------


def test_the_day_is_the_same_for_a_seed_and_asks_for_the_load(tiers):
    assert tiers.day(0.7, 3) == tiers.day(0.7, 3)
    assert tiers.day(0.7, 3) != tiers.day(0.7, 4)
    shares = []
    for seed in range(60):
        unit: dict[str, int] = {}
        alive: dict[str, int] = {}
        total = 0
        for events in tiers.day(0.7, seed):
            for event in events:
                if event.made is not None:
                    unit[event.service] = tiers.size_of(event.made)
                if event.kind == "out":
                    del alive[event.service]
                else:
                    alive[event.service] = event.units * unit[event.service]
            total += sum(alive.values())
        shares.append(total / tiers.CYCLES / tiers.GPUS)
    assert sum(shares) / len(shares) == pytest.approx(0.7, rel=0.1)


def test_places_are_what_the_solver_can_place(tiers):
    session = Session(tiers.start("greedy"), Profile(solver="greedy"))
    for events in tiers.day(0.9, 1)[:6]:
        tiers.take_in(session, events)
        session.apply(session.solve().plan)
    instance = session.instance
    best, every = max(tiers.places(instance)), sum(tiers.places(instance))
    rng = np.random.default_rng(0)
    for units, limits in ((best, {"max_groups": 1}), (best + 1, {"max_groups": 1}), (every, {})):
        probe = {**tiers.service("probe", "tight", units, rng), "limits": limits, "priority": 9}
        asked = Session(instance)
        asked.update(add_services=[probe])
        result = asked.solve(Profile(time_limit=10.0))
        unmet = [each for each in result.unmet if each.service == "probe"]
        assert bool(unmet) == (units > best and bool(limits))


def test_served_counts_pairs_in_one_group(tiers):
    instance = tiers.start("greedy")
    made = tiers.service("tight-0", "tight", 2, np.random.default_rng(0))
    session = Session(instance)
    session.update(add_services=[made])
    session.apply(session.solve(Profile(solver="greedy")).plan)
    assert tiers.served(session.instance)["tight-0"] == 2
    group = next(each for each in session.instance.running if each.service == "tight-0")
    prefill = next(str(each.name) for each in group.instances if each.role == "prefill")
    session.update(finished={group.name: [prefill]})
    assert tiers.served(session.instance)["tight-0"] == 1
    assert tiers.high_gpus(session.instance) == (0, 12)


def test_arms_differ_in_what_they_say(tiers):
    blind, moves = tiers.start("solver, blind"), tiers.start("solver, moves")
    assert blind.objective.weights.rdma == 0
    assert moves.cycle.max_migrations == tiers.MOVES
    assert isinstance(blind, Instance)
    assert sum(node.gpus for node in blind.nodes) == tiers.GPUS


# -- what they share -------------------------------------------------------------------------------


def test_a_table_is_written_whole_and_the_summary_last(study, tmp_path):
    (tmp_path / "study.json").write_text("old")
    folder = study.writable(str(tmp_path))
    assert not (tmp_path / "study.json").exists()
    made = study.Study("x", tables={"t": [{"a": 1, "b": "p,q"}, {"a": 2, "b": None}]})
    facts = study.keep(made, folder, 0.0)
    assert (tmp_path / "t.csv").read_text() == 'a,b\n1,"p,q"\n2,\n'
    assert json.loads((tmp_path / "study.json").read_text()) == json.loads(
        json.dumps(facts, default=str)
    )


def test_intervals_as_text(study):
    one, some = study.mean_of([0.5]), study.mean_of([0.5, 0.5])
    assert study.percent(one) == "50.0 %"
    assert study.percent(some) == "50.0 % [50.0, 50.0]"
    assert study.points(some, 0) == "+50 [50, 50]"
    assert study.plain(one, 1) == "0.5"
    assert study.growth(study.mean_of([math.log(1.1)])) == "+10.0 %"


def test_an_interrupt_ends_it_at_once(tmp_path):
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "tiers.py"), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not out.exists():
            assert running.poll() is None
            time.sleep(0.05)
        time.sleep(1.0)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert said == "interrupted; nothing was written\n"
    assert list(out.iterdir()) == []


def test_a_failing_call_is_not_lost(study):
    with pytest.raises(RuntimeError, match="ValueError"):
        study.each("x", math.sqrt, [(4.0,), (-1.0,), (16.0,)], 1)


def test_calls_keep_their_order(study):
    assert study.each("x", math.sqrt, [(4.0,), (9.0,), (16.0,)], 2) == [2.0, 3.0, 4.0]
