"""Batch experiments: the file, the rows, the folder, the command."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heteroplace import Instance, Plan, Profile, check, evaluate, solve
from heteroplace.cli import main
from heteroplace.compare import runner
from heteroplace.compare.experiment import Experiment
from heteroplace.compare.facts import InstanceFacts
from heteroplace.compare.local import LocalExecutor
from heteroplace.compare.measure import Finished, Order, measure
from heteroplace.compare.record import (
    COLUMNS,
    NAMES,
    Manifest,
    Results,
    arrow_schema,
    read_results,
)
from heteroplace.compare.runner import Progress, run_experiment
from heteroplace.compare.store import Store
from heteroplace.errors import InputError
from heteroplace.generate import FAMILIES, family_from, generate

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "experiments").glob("*.toml"))
FIXED = [column.name for column in COLUMNS if not column.measured]
TINY = """
name = "tiny"
seeds = 3
sizes = [0.125]
profiles = ["greedy", {name = "exact", solver = "auto", time_limit = 30.0}]
[[entries]]
family = "small"
"""


@pytest.fixture(scope="module", autouse=True)
def like_a_worker() -> Iterator[None]:
    """Garbage is collected before every solve: do not look at what the tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


class Here:
    """Solves in this process, so that a test sees what it does."""

    name = "local"
    workers = 1

    def __init__(self, stop_after: int | None = None) -> None:
        self.solved: list[str] = []
        self._stop_after = stop_after

    def run(self, orders):
        for order in orders:
            rows: list[Finished] = []
            measure(order, rows.append)
            for row in rows:
                if self._stop_after is not None and len(self.solved) >= self._stop_after:
                    raise KeyboardInterrupt
                self.solved.append(row.row["key"])
                yield [row]


def ran(tmp_path: Path, text: str = TINY, **options: Any) -> Results:
    run_experiment(Experiment.from_toml(text), tmp_path / "out", Here(), **options)
    return read_results(tmp_path / "out")


def fixed(results: Results) -> list[dict[str, Any]]:
    return [{name: row[name] for name in FIXED} for row in results.rows()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of a run that nothing disturbed, without what is measured."""
    return fixed(ran(tmp_path_factory.mktemp("whole")))


# --------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------


def test_everything_unfolds_in_order():
    experiment = Experiment.from_toml("""
        name = "all"
        seeds = {from = 5, to = 6}
        sizes = [0.25, 0.5]
        profiles = ["greedy", "solvers/prove.toml", "auto", {solver = "highs", threads = 2}]
        [[entries]]
        family = "small"
        knobs.running = 0.1
        [entries.grid]
        load = {from = 0.5, to = 0.8, step = 0.1}
        affinity = [{s1 = 1}, {none = 1}]
        [[entries]]
        name = "other"
        family = "moe"
        seeds = [9]
        sizes = {from = 1, to = 1}
        """)
    tasks = list(experiment.tasks())
    assert len(tasks) == experiment.instances == 2 * 2 * 4 * 2 + 1
    assert experiment.rows == 4 * len(tasks)
    assert len({task.key for task in tasks}) == len(tasks)
    loads = [json.loads(task.knobs).get("load") for task in tasks]
    assert list(dict.fromkeys(loads)) == [0.5, 0.6, 0.7, 0.8, None]
    assert tasks[0].made == family_from(
        "small", {"running": 0.1, "load": 0.5, "affinity": {"s1": 1}, "scale": 0.25}
    )
    assert [(task.size, task.seed) for task in tasks[:4]] == [
        (0.25, 5),
        (0.25, 6),
        (0.5, 5),
        (0.5, 6),
    ]
    assert (tasks[-1].entry, tasks[-1].seed, tasks[-1].size) == ("other", 9, 1.0)
    profiles = experiment.used_profiles()
    assert {name: each.threads for name, each in profiles.items()} == {
        "greedy": 1,
        "prove": 1,
        "auto": 1,
        "highs": 2,
    }
    assert profiles["prove"].time_limit is None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path):
    experiment = Experiment.from_file(path)
    assert experiment.name == path.stem
    assert experiment.description


def test_ten_thousand_are_small():
    experiment = Experiment.from_file(ROOT / "experiments/ten-thousand.toml")
    assert experiment.instances == 10_000
    families = [task.made for task in experiment.tasks() if task.seed == 0]
    assert len(families) == 3 * 3 + 3 + 2
    for family in families:
        assert family.total_nodes * max(family.gpus_per_node) <= 1000


def change(old: str, new: str) -> str:
    assert old in TINY
    return TINY.replace(old, new)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("name = ", "t", "is not TOML"),
        (TINY + "name = 'again'\nname = 'x'", "t", "is not TOML"),
        (change('name = "tiny"', 'name = "../x"'), "name", "pattern"),
        (change('name = "tiny"', ""), "name", "missing"),
        (TINY + 'famly = "x"', "entries[0].famly", "unknown field"),
        (change('"small"', '"smal"'), "entries[0].family", "known: small"),
        (change("seeds = 3", "seeds = 0"), "seeds", "from 1 to"),
        (change("seeds = 3", "seeds = -1"), "seeds", "from 1 to"),
        (change("seeds = 3", "seeds = [1, 1]"), "seeds[1]", "twice"),
        (change("seeds = 3", "seeds = [1.5]"), "seeds[0]", "whole number"),
        (change("seeds = 3", "seeds = {from = 3, to = 1}"), "seeds", "below"),
        (change("seeds = 3", "seeds = {from = 0, to = 1e9}"), "seeds", "larger step"),
        (change("seeds = 3", "seeds = true"), "seeds", "list"),
        (change("sizes = [0.125]", "sizes = [nan]"), "sizes[0]", "must be"),
        (change("sizes = [0.125]", "sizes = [inf]"), "sizes[0]", "must be"),
        (change("sizes = [0.125]", "sizes = []"), "sizes", "empty"),
        (change("sizes = [0.125]", "sizes = {from = 1, to = nan}"), "sizes", "finite"),
        (change("sizes = [0.125]", "sizes = [-1]"), "sizes[0]", "greater than 0"),
        (change("sizes = [0.125]", "sizes = [true]"), "sizes[0]", "must be a number"),
        (change("sizes = [0.125]", "sizes = ['1']"), "sizes[0]", "must be a number"),
        (change("sizes = [0.125]", "sizes = {from = true, to = 2}"), "from", "must be a number"),
        (change("seeds = 3", "seeds = {from = 0, to = 1, step = 1e-300}"), "seeds", "larger step"),
        (change("sizes = [0.125]", "sizes = [1]\nthreads = 0"), "threads", "at least 1"),
        (change("sizes = [0.125]", "patience = -1"), "patience", "greater than 0"),
        (change("sizes = [0.125]", "anytime = [0]"), "anytime[0]", "greater than 0"),
        (change("sizes = [0.125]", "keep = ['plan']"), "keep[0]", "'plans' or 'instances'"),
        (TINY + "knobs.load = -1", "entries[0].knobs.load", "at least 0"),
        (TINY + "knobs.lod = 1", "entries[0].knobs", "unknown knob 'lod'"),
        (TINY + "knobs.scale = 2", "entries[0].knobs.scale", "sizes"),
        (TINY + "knobs.name = 'x'", "entries[0].knobs.name", "not a knob"),
        (TINY + "grid.load = [0.5, -1]", "entries[0].grid.load", "at least 0"),
        (TINY + "grid.load = 1", "entries[0].grid.load", "must be a list"),
        (TINY + "grid.load = []", "entries[0].grid.load", "empty"),
        (TINY + "grid.load = [1, 1]", "entries[0].grid.load[1]", "twice"),
        (TINY + "grid.load = [1, 1.0]", "entries[0].grid.load[1]", "twice"),
        (TINY + f"grid.load = [{10**400}]", "entries[0].grid.load", "must be a number"),
        # Refused at once: not after a look at each of the million points.
        (
            TINY + "grid = {load = {from = 1, to = 2, step = 1e-3}, change = {from = 0, to = 1, "
            "step = 1e-3}, band = {from = 0, to = 1, step = 1e-2}}",
            "entries",
            "rows, at most",
        ),
        (TINY + "knobs.load = 1\ngrid.load = [1]", "entries[0].grid.load", "keep one"),
        (TINY + '[[entries]]\nfamily = "small"', "entries[1].name", "name of its own"),
        (change('"greedy", {', '"gredy", {'), "profiles[0]", "no profile 'gredy'"),
        (change('"greedy", {', "7, {"), "profiles[0]", "name of a profile"),
        (change('"greedy", {', '"exact.toml", {'), "exact.toml", "cannot be read"),
        (change('"greedy", {', '{name = "exact"}, {'), "profiles[1].name", "twice"),
        (change('name = "exact"', 'name = "a/b"'), "profiles[1].name", "pattern"),
        (change("time_limit = 30.0", "time_limit = nan"), "profiles[1].time_limit", "must"),
        (change("time_limit = 30.0", "tim_limit = 1"), "profiles[1].tim_limit", "unknown"),
        (change("time_limit = 30.0", "engine = 'x'"), "profiles[1].engine", "milp"),
    ],
)
def test_faults_name_the_field_and_the_fix(text, path, message):
    with pytest.raises(InputError) as caught:
        Experiment.from_toml(text, "t")
    assert path in caught.value.path
    assert message in caught.value.message


def test_profiles_are_looked_for_beside_the_experiment(tmp_path):
    (tmp_path / "solvers").mkdir()
    (tmp_path / "solvers" / "mine.toml").write_text('solver = "highs"\n')
    (tmp_path / "x.toml").write_text(TINY.replace('"greedy"', '"mine"'))
    found = Experiment.from_file(tmp_path / "x.toml").used_profiles()
    assert found["mine"].solver == "highs"


# --------------------------------------------------------------------------------------------
# The rows
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["small", "odd", "moe", "cycle"])
@pytest.mark.parametrize("solver", ["greedy", "highs"])
def test_a_row_agrees_with_the_evaluation(family, solver):
    made = family_from(family, {"scale": 128 / 8 / FAMILIES[family].total_nodes, "draining": 0.2})
    instance = generate(made, 3)
    facts = InstanceFacts(instance)
    result = solve(instance, Profile(solver=solver, time_limit=5.0))
    columns = facts.columns() | facts.plan_columns(result)
    evaluation = evaluate(instance, result.plan)
    roles = evaluation.roles
    priority = {service.name: service.priority for service in instance.services}
    assert columns["step_values"] == [float(value) for value in evaluation.values]
    assert columns["unmet_gpus"] == pytest.approx(float(sum(role.unmet_gpus for role in roles)))
    for name in ("unmet_gpus", "target_gpus"):
        assert sum(columns[f"{name}_by_priority"]) == pytest.approx(columns[name])
        assert sum(columns[f"{name}_by_affinity"]) == pytest.approx(columns[name])
    for classes, label in (("priorities", "priority"), ("affinities", "affinity")):
        wasted = columns[f"high_tier_waste_gpus_by_{label}"]
        assert sum(wasted) == columns["high_tier_waste_gpus"]
        assert len(wasted) == len(columns[classes])
    for number, unmet in zip(columns["priorities"], columns["unmet_gpus_by_priority"], strict=True):
        mine = (role.unmet_gpus for role in roles if priority[role.service] == number)
        assert unmet == pytest.approx(float(sum(mine)))
    # The default prices are 0, 1 and 4 per GPU; draining instances cost nothing.
    rdma = columns["medium_tier_gpus"] + 4 * columns["high_tier_gpus"]
    assert rdma == columns["cost_rdma"] == float(evaluation.costs["rdma"])
    tiers = sum(columns[f"{tier}_tier_gpus"] for tier in ("low", "medium", "high"))
    assert columns["delivered_gpus"] == tiers
    assert columns["new_groups"] == columns["cost_new_group"]
    waste = columns["high_tier_waste_gpus"]
    assert 0 <= columns["high_tier_avoidable_gpus"] <= waste <= columns["high_tier_gpus"]
    assert columns["instance_digest"] == instance.digest
    assert set(columns) <= set(NAMES)


def fleet(*services: dict[str, Any], running: tuple[dict[str, Any], ...] = ()) -> Instance:
    """S1 ``a`` (types A and B, tier high) and ``b`` (A, medium) under P; ``c`` (A, low) under Q."""
    nodes = [
        ("a1", "A", "P", "a"),
        ("a2", "B", "P", "a"),
        ("b1", "A", "P", "b"),
        ("c1", "A", "Q", "c"),
    ]
    return Instance.from_dict(
        {
            "schema": 1,
            "nodes": [
                {"name": n, "gpu_type": t, "gpus": 8, "domains": {"cluster": "x", "s2": p, "s1": s}}
                for n, t, p, s in nodes
            ],
            "services": list(services),
            "running": list(running),
        }
    )


def service(name: str, level: str | None = None, **roles: list[list[tuple[str, int, int]]]) -> Any:
    return {
        "name": name,
        "affinity": {"required": level},
        "roles": {
            role: {
                "target": 9,
                "shapes": [
                    {"pods": [{"gpu_type": t, "gpus": g, "count": c} for t, g, c in shape]}
                    for shape in shapes
                ],
            }
            for role, shapes in roles.items()
        },
    }


@pytest.mark.parametrize(
    ("needs", "wanted"),
    [
        (False, service("s", serve=[[("A", 4, 1)]])),
        (True, service("s", serve=[[("B", 4, 1)]])),
        (False, service("s", serve=[[("B", 4, 1)], [("A", 4, 1)]])),
        (True, service("s", prefill=[[("A", 4, 1)]], decode=[[("B", 4, 1)]])),
        (True, service("s", "s1", prefill=[[("A", 4, 1)]], decode=[[("B", 4, 1)]])),
        (False, service("s", "s1", prefill=[[("A", 4, 1)]], decode=[[("A", 8, 1)]])),
        (True, service("s", serve=[[("A", 4, 1), ("B", 4, 1)]])),
        # Outside tier high, an S1 holds one node of A only.
        (True, service("s", serve=[[("A", 8, 2)]])),
        (False, service("s", serve=[[("A", 4, 2)]])),
    ],
)
def test_who_needs_the_high_tier(needs, wanted):
    assert InstanceFacts(fleet(wanted)).needs_high == {"s": needs}


def test_a_shape_of_one_node_or_of_a_coarse_level():
    wanted = service("s", serve=[[("A", 4, 2)]])
    wanted["roles"]["serve"]["shapes"][0]["level"] = "node"
    assert InstanceFacts(fleet(wanted)).needs_high == {"s": False}
    wanted["roles"]["serve"]["shapes"][0]["pods"][0]["count"] = 3
    # No node has 12 GPUs at all.
    assert InstanceFacts(fleet(wanted)).needs_high == {"s": True}
    wide = service("s", serve=[[("A", 8, 2)]])
    wide["roles"]["serve"]["shapes"][0]["level"] = "cluster"
    assert InstanceFacts(fleet(wide)).needs_high == {"s": False}


def placed(group: str, owner: str, *pods: tuple[str, int], domain: str | None = None) -> Any:
    return {
        "name": group,
        "service": owner,
        "domain": domain,
        "new": True,
        "added": [
            {"role": "serve", "shape": "shape0", "pods": [{"node": node, "gpus": gpus}]}
            for node, gpus in pods
        ],
    }


def test_waste_and_what_of_it_could_be_avoided():
    bound = service("bound", "s1", serve=[[("A", 4, 1)]])
    loose = service("loose", serve=[[("A", 4, 1)]])
    only = service("only", serve=[[("B", 4, 1)]])
    instance = fleet(bound, loose, only)
    facts = InstanceFacts(instance)
    result = solve(instance, Profile(solver="greedy"))

    def columns(*groups: Any) -> tuple[int, int, int]:
        plan = Plan.model_validate({"groups": groups})
        found = facts.plan_columns(result.model_copy(update={"plan": plan}))
        return tuple(
            found[f"high_tier_{name}"] for name in ("gpus", "waste_gpus", "avoidable_gpus")
        )

    # What needs the tier wastes nothing.
    assert columns(placed("o", "only", ("a2", 4))) == (4, 0, 0)
    # Loose could be on b1 or c1, which are free.
    assert columns(placed("l", "loose", ("a1", 4))) == (4, 4, 4)
    assert columns(placed("l", "loose", ("b1", 4))) == (0, 0, 0)
    # With b1 and c1 full it is waste, but could not be avoided.
    full = [("b1", 4), ("b1", 4), ("c1", 4), ("c1", 4)]
    assert columns(placed("l", "loose", ("a1", 4), *full)) == (4, 4, 0)
    assert columns(placed("l", "loose", ("a1", 4), ("a1", 4), *full[1:])) == (8, 8, 4)
    # A group bound to S1 a cannot leave it, though the service could be elsewhere.
    assert columns(placed("g", "bound", ("a1", 4), domain="a")) == (4, 4, 0)


def test_waste_belongs_to_the_classes_of_its_services():
    bound = service("bound", "s1", serve=[[("A", 4, 1)]]) | {"priority": 7}
    loose = service("loose", serve=[[("A", 4, 1)]])
    only = service("only", serve=[[("B", 4, 1)]])
    instance = fleet(bound, loose, only)
    result = solve(instance, Profile(solver="greedy"))
    groups = [
        placed("g", "bound", ("a1", 4), domain="a"),
        placed("l", "loose", ("a1", 4), ("b1", 4)),
        placed("o", "only", ("a2", 8)),
    ]
    plan = Plan.model_validate({"groups": groups})
    found = InstanceFacts(instance).plan_columns(result.model_copy(update={"plan": plan}))
    assert found["high_tier_waste_gpus"] == 8
    assert (found["priorities"], found["affinities"]) == ([7, 0], ["none", "s1"])
    assert found["high_tier_waste_gpus_by_priority"] == [4, 4]
    assert found["high_tier_waste_gpus_by_affinity"] == [4, 4]
    groups[1]["added"].pop(0)
    plan = Plan.model_validate({"groups": groups})
    found = InstanceFacts(instance).plan_columns(result.model_copy(update={"plan": plan}))
    assert found["high_tier_waste_gpus_by_priority"] == [4, 0]
    assert found["high_tier_waste_gpus_by_affinity"] == [0, 4]


def test_draining_instances_do_not_deliver():
    instances = [
        {"role": "serve", "shape": "shape0", "nodes": ["a1"], "state": state}
        for state in ("ready", "draining")
    ]
    instance = fleet(
        service("s", serve=[[("A", 4, 1)]]),
        running=({"name": "g", "service": "s", "instances": instances},),
    )
    facts = InstanceFacts(instance)
    result = solve(instance, Profile(solver="greedy"))
    keep = placed("g", "s")
    keep["new"] = False
    keep["kept"] = [
        {
            "name": f"serve-{n}",
            "role": "serve",
            "shape": "shape0",
            "pods": [{"node": "a1", "gpus": 4}],
        }
        for n in (0, 1)
    ]
    plan = Plan.model_validate({"groups": [keep]})
    found = facts.plan_columns(result.model_copy(update={"plan": plan}))
    assert (found["delivered_gpus"], found["high_tier_waste_gpus"], found["groups"]) == (4, 4, 1)
    # Only what the plan adds could have been avoided.
    assert found["high_tier_avoidable_gpus"] == 0


def order(text: str = TINY, **changes: Any) -> Order:
    experiment = Experiment.from_toml(text)
    given = {"experiment": "e", "profiles": experiment.used_profiles(), **changes}
    return Order(task=next(experiment.tasks()), **given)


def rows_of(wanted: Order) -> list[Finished]:
    rows: list[Finished] = []
    measure(wanted, rows.append)
    return rows


def test_an_engine_that_is_missing_is_an_error():
    missing = {"g": Profile(solver="milp", engine="GUROBI"), "h": Profile(solver="highs")}
    first, second = rows_of(order(profiles=missing))
    assert first.row["error"].startswith("engine_missing: ")
    assert "\n" not in first.row["error"]
    assert second.row["error"] is None


def test_a_solver_that_raises_spoils_its_own_row_only(monkeypatch):
    def broken(instance: Instance, profile: Profile) -> Any:
        if profile.solver == "auto":
            raise RuntimeError("the engine\n broke")
        return solve(instance, profile)

    monkeypatch.setattr("heteroplace.compare.measure.solve", broken)
    first, second = rows_of(order())
    assert first.row["error"] is None
    assert second.row["error"] == "RuntimeError: the engine broke"
    assert second.row["gpus"] == first.row["gpus"]
    assert second.row["step_values"] is None


def test_an_instance_that_cannot_be_made_is_an_error_of_all_its_rows(monkeypatch):
    def broken(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("heteroplace.compare.measure.generate", broken)
    rows = rows_of(order())
    assert [each.row["profile"] for each in rows] == ["greedy", "exact"]
    assert all(each.row["error"] == "not generated: MemoryError" for each in rows)


def test_the_anytime_curve():
    curve = order(anytime=(0.5, 2.0))
    greedy, exact = (each.row for each in rows_of(curve))
    assert greedy["anytime_deadlines"] is None
    assert exact["anytime_deadlines"] == [0.5, 2.0]
    assert len(exact["anytime_seconds"]) == 2
    assert exact["anytime_values"][1] == exact["step_values"]
    assert exact["anytime_bounds"][1] == exact["step_bounds"]


# --------------------------------------------------------------------------------------------
# The folder
# --------------------------------------------------------------------------------------------


def test_a_finished_folder(tmp_path):
    results = ran(tmp_path, TINY.replace("seeds = 3", 'seeds = 3\nkeep = ["plans", "instances"]'))
    assert results.manifest.complete
    assert results.manifest.rows == 6
    assert results.manifest.runs[0].ended is not None
    assert results.manifest.seeds == {"small": (0, 1, 2)}
    rows = results.rows()
    assert [(row["seed"], row["profile"]) for row in rows] == [
        (seed, name) for seed in range(3) for name in ("greedy", "exact")
    ]
    assert results.table.schema == arrow_schema()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "instances",
        "manifest.json",
        "plans",
        "results.parquet",
    ]
    for row in rows:
        instance, plan = results.instance(row), results.plan(row)
        assert instance is not None
        assert plan is not None
        assert instance.digest == row["instance_digest"]
        assert check(instance, plan) == []
        assert [float(value) for value in evaluate(instance, plan).values] == row["step_values"]
    pairs = list(results.pairs("greedy", "exact"))
    assert [(one["seed"], two["seed"]) for one, two in pairs] == [(0, 0), (1, 1), (2, 2)]
    assert all(two["step_values"] <= one["step_values"] for one, two in pairs)


def test_instances_come_back_from_their_seeds(tmp_path):
    results = ran(tmp_path)
    row = results.rows()[0]
    assert not (tmp_path / "out/instances").exists()
    assert results.plan(row) is None
    found = results.instance(row)
    assert found is not None
    assert found.digest == row["instance_digest"]
    assert results.instance({**row, "instance_digest": "0"}) is None
    assert results.instance({**row, "family": "gone"}) is None


@pytest.mark.parametrize("stop_after", range(7))
def test_a_run_continues_where_it_was(tmp_path, stop_after, whole):
    experiment, folder = Experiment.from_toml(TINY), tmp_path / "out"
    first, second = Here(stop_after), Here()
    if stop_after < 6:
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, folder, first)
    else:
        run_experiment(experiment, folder, first)
    between = read_results(folder)
    assert between.manifest.complete is (stop_after == 6)
    assert len(between.rows()) == stop_after
    told: list[tuple[int, int]] = []
    run_experiment(experiment, folder, second, told=lambda p: told.append((p.before, p.done)))
    assert told[0] == (stop_after, 0)
    assert sorted(first.solved + second.solved) == sorted(
        f"{task.key}.{name}" for task in experiment.tasks() for name in ("greedy", "exact")
    )
    after = read_results(folder)
    assert fixed(after) == whole
    assert [row for row in after.rows() if row["run"] == 0] == sorted(
        between.rows(), key=lambda row: [each["key"] for each in after.rows()].index(row["key"])
    )


def test_killed_between_the_table_and_the_end_of_the_journal(tmp_path, monkeypatch):
    experiment, folder = Experiment.from_toml(TINY), tmp_path / "out"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("heteroplace.compare.store.os.truncate", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, folder, Here())
    assert (folder / "results.parquet").exists()
    assert len((folder / "rows.jsonl").read_bytes().splitlines()) == 6
    assert len(read_results(folder).rows()) == 6
    again = Here()
    run_experiment(experiment, folder, again)
    assert again.solved == []
    assert not (folder / "rows.jsonl").exists()
    assert read_results(folder).manifest.complete


def interrupted(folder: Path, rows: int) -> list[bytes]:
    """The journal of a run that was stopped after some rows."""
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Experiment.from_toml(TINY), folder, Here(rows))
    lines = (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == rows
    return lines


@pytest.mark.parametrize("bytes_left", [1, 100, -1])
def test_a_line_that_was_not_finished_is_made_anew(tmp_path, bytes_left, whole):
    folder = tmp_path / "out"
    lines = interrupted(folder, 3)
    (folder / "rows.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:bytes_left])
    assert len(read_results(folder).rows()) == 2
    again = Here()
    run_experiment(Experiment.from_toml(TINY), folder, again)
    assert json.loads(lines[2])["key"] in again.solved
    assert len(again.solved) == 4
    assert fixed(read_results(folder)) == whole


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"{\n", b"\xff\n", b"\n"])
def test_a_damaged_line_is_made_anew(tmp_path, damage, caplog):
    folder = tmp_path / "out"
    lines = interrupted(folder, 3)
    (folder / "rows.jsonl").write_bytes(lines[0] + damage + lines[2])
    assert len(read_results(folder).rows()) == 2
    assert "1 damaged line" in caplog.text
    again = Here()
    run_experiment(Experiment.from_toml(TINY), folder, again)
    assert json.loads(lines[1])["key"] in again.solved
    assert len(again.solved) == 4


def test_a_damaged_table_is_set_aside_and_made_anew(tmp_path):
    ran(tmp_path)
    table = tmp_path / "out/results.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(InputError, match="makes its rows anew"):
        read_results(tmp_path / "out")
    again = Here()
    run_experiment(Experiment.from_toml(TINY), tmp_path / "out", again)
    assert len(again.solved) == 6
    assert table.with_name("results.parquet.damaged").exists()
    assert read_results(tmp_path / "out").manifest.complete


def test_a_table_of_another_version_is_refused(tmp_path):
    ran(tmp_path)
    path = tmp_path / "out/results.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["cost"]), path)
    for read in (read_results, lambda folder: ran(folder.parent)):
        with pytest.raises(InputError, match="lacks the column 'cost'"):
            read(tmp_path / "out")


def test_columns_that_came_later_are_null_in_an_earlier_table(tmp_path):
    added = [column.name for column in COLUMNS if column.added]
    assert added
    before = ran(tmp_path).rows()
    path = tmp_path / "out/results.parquet"
    pq.write_table(pq.read_table(path).drop_columns(added), path)
    expected = [{**row, **dict.fromkeys(added)} for row in before]
    assert read_results(tmp_path / "out").rows() == expected
    more = ran(tmp_path, change("seeds = 3", "seeds = 4"))
    assert more.table.schema == arrow_schema()
    assert more.rows()[:6] == expected
    assert all(row[name] is not None for row in more.rows()[6:] for name in added)


def test_an_extended_experiment_adds_rows(tmp_path):
    before = ran(tmp_path)
    more = TINY.replace("seeds = 3", "seeds = 5").replace(
        "]\n[[entries]]", ', {name = "third", solver = "highs"}]\n[[entries]]'
    )
    executor = Here()
    run_experiment(Experiment.from_toml(more), tmp_path / "out", executor)
    after = read_results(tmp_path / "out")
    assert len(after.rows()) == 15
    assert len(executor.solved) == 9
    assert after.manifest.complete
    assert after.manifest.profiles == ("greedy", "exact", "third")
    old = {row["key"]: row for row in before.rows()}
    assert {row["key"]: row for row in after.rows() if row["key"] in old} == old


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = 3", "seeds = 2", "seed 2"),
        ("sizes = [0.125]", "sizes = [0.25]", "size 0.125"),
        ("time_limit = 30.0", "time_limit = 20.0", "another profile 'exact'"),
        ('"greedy", {', "{", "the profile 'greedy'"),
        ("seeds = 3", "seeds = 3\nthreads = 2", "another profile 'greedy'"),
        ("seeds = 3", "seeds = 3\nanytime = [1]", "anytime"),
        ("seeds = 3", "seeds = 3\nkeep = ['plans']", "keep"),
        ('name = "tiny"', 'name = "other"', "name 'tiny'"),
        ('family = "small"', 'family = "small"\nknobs.load = 1', "knobs {}"),
    ],
)
def test_a_changed_experiment_is_refused_and_nothing_is_lost(tmp_path, old, new, message):
    before = ran(tmp_path)
    with pytest.raises(InputError, match="--out") as caught:
        ran(tmp_path, change(old, new))
    assert message in caught.value.message
    after = read_results(tmp_path / "out")
    assert after.rows() == before.rows()
    assert after.manifest == before.manifest


def test_words_and_patience_may_change(tmp_path):
    ran(tmp_path)
    new = "seeds = 3\ndescription = 'said better'\npatience = 5.0"
    assert ran(tmp_path, change("seeds = 3", new)).manifest.complete


def test_failed_rows_are_made_anew_when_asked(tmp_path, monkeypatch, whole):
    def broken(*_: Any) -> Any:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr("heteroplace.compare.measure.solve", broken)
        progress: list[Progress] = []
        failed = ran(tmp_path, told=progress.append)
        assert progress[-1].failed == 6
    assert all(row["error"] for row in failed.rows())
    assert all(row["error"] for row in ran(tmp_path).rows())
    good = ran(tmp_path, retry_failed=True)
    assert all(row["error"] is None for row in good.rows())
    assert fixed(good) == whole


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with Store(tmp_path / "out"), pytest.raises(InputError, match="another run"):
        ran(tmp_path)
    assert ran(tmp_path).manifest.complete


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    half = [out / ".0123456789abcdef.tmp", out / "plans" / ".0123456789abcdef.tmp"]
    others = [out / ".mine.tmp", out / "deep" / ".0123456789abcdef.tmp"]
    for path in half + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    ran(tmp_path)
    assert not any(path.exists() for path in half)
    assert all(path.exists() for path in others)


def test_the_plan_of_a_row_is_that_of_its_last_try(tmp_path, monkeypatch):
    text = TINY.replace("seeds = 3", 'seeds = 1\nkeep = ["plans"]')

    def without_engine(instance: Instance, profile: Profile) -> Any:
        result = solve(instance, Profile(solver="greedy"))
        stop = "engine_missing" if profile.solver == "auto" else result.stop_reason
        return result.model_copy(update={"stop_reason": stop})

    with monkeypatch.context() as patch:
        patch.setattr("heteroplace.compare.measure.solve", without_engine)
        greedy, exact = (results := ran(tmp_path, text)).rows()
    assert results.plan(greedy) is not None
    # The greedy's plan must not pass for the engine's.
    assert results.plan(exact) is None
    # As if killed after the file was written and before the row was.
    left = tmp_path / "out" / "plans" / f"{exact['key']}.json"
    left.parent.mkdir(exist_ok=True)
    left.write_text("stale")
    results = ran(tmp_path, text, retry_failed=True)
    for row in results.rows():
        instance, plan = results.instance(row), results.plan(row)
        assert instance is not None
        assert plan is not None
        assert [float(value) for value in evaluate(instance, plan).values] == row["step_values"]


def test_other_versions_are_told_and_recorded(tmp_path, monkeypatch, caplog):
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Experiment.from_toml(TINY), tmp_path / "out", Here(2))
    now = runner.environment()
    other = now.model_copy(update={"versions": {**now.versions, "highspy": "0.0.1"}})
    monkeypatch.setattr(runner, "environment", lambda: other)
    results = ran(tmp_path)
    assert "highspy was" in caplog.text
    found = [run.environment.versions["highspy"] for run in results.manifest.runs]
    assert found == [now.versions["highspy"], "0.0.1"]
    assert {row["run"] for row in results.rows()} == {0, 1}


@pytest.mark.parametrize("name", ["", "out/nothing", "out/results.parquet"])
def test_what_is_no_folder_of_results_is_refused(tmp_path, name):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_results(tmp_path / name)
    (tmp_path / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(InputError):
        read_results(tmp_path)


def test_results_without_a_manifest_are_not_written_over(tmp_path):
    ran(tmp_path)
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(InputError, match="without a manifest"):
        ran(tmp_path)
    assert (tmp_path / "out/results.parquet").exists()


# --------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_the_command(tiny, tmp_path, capsys, whole):
    out = tmp_path / "out"
    arguments = ["compare", str(tiny), "--out", str(out), "--workers", "2", "--keep", "plans"]
    assert main(arguments) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert "on 3 instances" in printed
    assert "results in" in printed
    results = read_results(out)
    assert results.manifest.command == f"heteroplace compare {tiny} --keep plans"
    assert results.manifest.runs[0].workers == 2
    assert fixed(results) == whole
    assert all(results.plan(row) is not None for row in results.rows())
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["failed"]) == (6, 0)
    assert [each["profile"] for each in summary["profiles"]] == ["greedy", "exact"]
    assert summary["profiles"][1]["proven"] == 3
    (difference,) = summary["differences"]
    assert difference["first_better"] == 0
    assert difference["equal"] + difference["second_better"] == 3
    for name in ("unmet_gpus", "unmet_gpus_of_highest_priority"):
        spread = difference[name]
        assert spread["low"] <= spread["first_minus_second"] <= spread["high"]
    assert results.table == read_results(out).table


def test_loads_of_one_seed_have_no_interval(tmp_path, capsys):
    text = TINY.replace("seeds = 3", "seeds = 1") + "grid.load = [0.6, 1.2]"
    file = tmp_path / "x.toml"
    file.write_text(text)
    ran(tmp_path, text)
    assert main(["compare", str(file), "--out", str(tmp_path / "out"), "--json"]) == 0
    (difference,) = json.loads(capsys.readouterr().out)["differences"]
    assert difference["pairs"] == 2
    assert difference["unmet_gpus"]["low"] is difference["unmet_gpus"]["high"] is None


def test_failed_rows_are_the_answer_no(tmp_path, capsys):
    path = tmp_path / "x.toml"
    path.write_text(TINY.replace('solver = "auto"', 'solver = "milp", engine = "GUROBI"'))
    assert main(["compare", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    assert "exact failed: engine_missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], "none.toml: cannot be read"),
        (["TINY", "--workers", "0"], "--workers: must be from 1"),
        (["TINY", "--seeds", "x"], "--seeds: must be from 1"),
        (["TINY", "--entry", "x"], "--entry: unknown entry 'x'; known: small"),
        (["TINY", "--keep", "plan"], "--keep: knows plans and instances"),
        (["TINY", "--ray", "x", "--workers", "2"], "--workers: is for this machine"),
        (["TINY", "--out", "TINY"], "cannot be written to"),
    ],
)
def test_wrong_options_are_refused(tiny, capsys, arguments, message):
    given = [str(tiny) if each == "TINY" else each for each in arguments]
    assert main(["compare", *given]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert message in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1


def test_the_documented_columns_are_the_columns():
    page = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    table = page.split("## Columns")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \| ([\w ]+?) \| (.*?) \|$", table, re.M)
    meaning = {column.name: column.meaning for column in COLUMNS}
    kinds = {column.name: column.kind for column in COLUMNS}
    assert [name for name, _, _ in documented] == list(NAMES)
    for name, kind, text in documented:
        assert text.removesuffix(" †") == meaning[name].replace("|", "\\|")
        assert kind == kinds[name]
        measured = next(column.measured for column in COLUMNS if column.name == name)
        assert text.endswith(" †") is measured, name


def test_a_manifest_reads_back(tmp_path):
    manifest = ran(tmp_path).manifest
    assert Manifest.model_validate_json(manifest.to_json()) == manifest
    again = Experiment.model_validate(manifest.experiment)
    assert again.digest == manifest.digest
    assert isinstance(read_results(tmp_path / "out").table, pa.Table)


def test_one_worker_is_enough(tmp_path, whole):
    run_experiment(Experiment.from_toml(TINY), tmp_path / "out", LocalExecutor(1))
    assert fixed(read_results(tmp_path / "out")) == whole
