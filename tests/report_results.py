"""Folders of results to make reports of: solved ones, and ones made up row by row."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heteroplace.bench.record import Environment
from heteroplace.compare.experiment import Experiment
from heteroplace.compare.measure import Finished, Order, measure
from heteroplace.compare.record import (
    Manifest,
    Row,
    Run,
    arrow_schema,
    blank_row,
    read_results,
    row_key,
)

QUICK = """
name = "quick"
description = "Greedy against the optimum on small fleets."
profiles = ["greedy", {name = "auto", solver = "auto", time_limit = 20.0}]
anytime = [0.02, 0.1]
sizes = [0.15, 0.25]
seeds = 3
keep = ["plans"]

[[entries]]
name = "loads"
family = "small"
[entries.grid]
load = [0.5, 0.9, 1.2]
hetero_s1 = [0.0, 0.5]
"""
MACHINE = Environment(
    commit="0123456789",
    cores=2,
    cpu="a processor",
    memory=2**34,
    system="Linux x86_64",
    python="3.11.0",
    versions={"heteroplace": "0.1.0", "highspy": "1.12.0"},
)


def write(
    folder: Path,
    rows: Iterable[Row],
    made: Experiment | None = None,
    /,
    **changes: Any,
) -> Path:
    """Write rows as a finished run."""
    rows = list(rows)
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=arrow_schema())
    pq.write_table(table, folder / "results.parquet")
    made = made or Experiment.from_toml(QUICK)
    fields: dict[str, Any] = {
        "name": made.name,
        "description": made.description,
        "digest": made.digest,
        "experiment": json.loads(made.model_dump_json()),
        "profiles": tuple(dict.fromkeys(str(row["profile"]) for row in rows)),
        "seeds": {entry.label: entry.seeds or made.seeds for entry in made.entries},
        "command": "heteroplace compare experiments/quick.toml",
        "rows": len(rows),
        "complete": True,
        "runs": (
            Run(
                began="2026-05-01T10:00:00Z",
                ended="2026-05-01T10:05:00Z",
                executor="local",
                workers=2,
                load=0.25,
                environment=MACHINE,
            ),
        ),
    }
    manifest = Manifest(**{**fields, **changes})
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def solved(folder: Path, text: str = QUICK) -> Path:
    """Solve a whole experiment in this process."""
    experiment = Experiment.from_toml(text)
    rows: list[Row] = []
    (folder / "plans").mkdir(parents=True)
    # Garbage is collected before every solve: do not look at what the tests have imported.
    gc.freeze()
    for task in experiment.tasks():

        def finished(done: Finished) -> None:
            rows.append({**done.row, "run": 0})
            if done.plan is not None:
                path = folder / "plans" / f"{done.row['key']}.json"
                path.write_text(done.plan, encoding="utf-8")

        order = Order(
            experiment.name,
            task,
            experiment.used_profiles(),
            experiment.anytime,
            plans="plans" in experiment.keep,
        )
        measure(order, finished)
    gc.unfreeze()
    return write(folder, rows, experiment)


def changed(
    source: Path,
    folder: Path,
    change: Callable[[Row], Row | None] = lambda row: row,
    *,
    plans: bool = True,
    **manifest: Any,
) -> Path:
    """A copy in which each row, or the manifest, is another; null leaves a row out."""
    rows = [change(dict(row)) for row in pq.read_table(source / "results.parquet").to_pylist()]
    known = Manifest.from_file(source / "manifest.json")
    kept = [row for row in rows if row is not None]
    write(folder, kept, **{**dict(known), "rows": len(kept), **manifest})
    if plans:
        shutil.copytree(source / "plans", folder / "plans")
    return folder


def made_up(
    instance: str,
    profile: str,
    *,
    unmet: tuple[float, ...] = (0.0, 0.0),
    cost: float = 10.0,
    bounds: tuple[float | None, ...] | None = None,
    proven: bool = False,
    **more: Any,
) -> Row:
    """A row with two priority classes of 50 GPUs each, and a cost."""
    values = [*unmet, 0.0, cost]
    known = list(bounds) if bounds is not None else (values if proven else [None] * 4)
    row = blank_row()
    row.update(
        key=row_key(instance, profile),
        instance=instance,
        experiment="made-up",
        entry="small",
        family="small",
        knobs='{"load": 1.0}',
        size=1.0,
        seed=0,
        profile=profile,
        solver="greedy" if profile == "greedy" else "auto",
        load=1.0,
        gpu_types=2,
        mixed_s1=0.25,
        affinity="s2",
        nodes=16,
        gpus=128,
        free_gpus=100,
        services=4,
        running_instances=0,
        target_gpus=100.0,
        status="optimal" if proven else "feasible",
        stop="proven" if proven else "heuristic",
        plan_valid=True,
        notes=[],
        variables=0,
        constraints=0,
        step_names=["unmet[1]", "unmet[0]", "repair", "cost"],
        step_values=values,
        step_bounds=known,
        step_gaps=[None] * 4,
        step_proven=[proven] * 4,
        unmet_gpus=sum(unmet),
        priorities=[1, 0],
        unmet_gpus_by_priority=list(unmet),
        target_gpus_by_priority=[50.0, 50.0],
        affinities=["s2"],
        unmet_gpus_by_affinity=[sum(unmet)],
        target_gpus_by_affinity=[100.0],
        high_tier_waste_gpus=0,
        high_tier_avoidable_gpus=0,
        high_tier_gpus_total=32,
        cost=cost,
        seconds_read=0.01,
        seconds_build=0.001,
        seconds_solve=0.002,
        seconds_assign=0.001,
        seconds_total=0.004,
        seconds_cpu=0.004,
        run=0,
        attempts=1,
        finished="2026-05-01T10:01:00.000Z",
    )
    row.update(more)
    return row


def quick_results(factory: pytest.TempPathFactory) -> Path:
    """36 instances, each solved by the greedy and to the optimum, with plans and curves.

    Solved once for all tests of a session, whatever process they run in.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "results-quick"
    with open(base / "results-quick.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            solved(base / "unfinished")
            (base / "unfinished").rename(folder)
    return folder


HOSTILE = "</script><b>x</b><img src=x onerror=alert(1)>'\"`${1}@BODY@\u202e\x1b[31m"


def hostile(quick: Path, folder: Path) -> Path:
    """Every text in the table and the manifest is hostile, and so are names in an instance."""
    texts = ("experiment", "entry", "affinity", "engine", "stop", "error")

    def change(row: Row) -> Row:
        for name in texts[:-1]:
            row[name] = HOSTILE
        row["knobs"] = json.dumps({"load": 1, HOSTILE: [HOSTILE, 2]})
        row["affinities"] = [f"{HOSTILE}{place}" for place, _ in enumerate(row["affinities"])]
        row["family"] = HOSTILE
        row["error"] = HOSTILE if row["seed"] == 2 else None
        row["instance_digest"] = None
        return row

    run = read_results(quick).manifest.runs[0]
    machine = run.environment.model_copy(
        update={"cpu": HOSTILE, "commit": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    )
    made = changed(
        quick,
        folder,
        change,
        description=HOSTILE,
        name=HOSTILE,
        command=HOSTILE,
        seeds={HOSTILE: (1, 2, 5)},
        experiment={HOSTILE: [HOSTILE]},
        runs=(run.model_copy(update={"environment": machine, "began": HOSTILE}),),
    )
    (made / "instances").mkdir()
    results = read_results(quick)
    for row in results.rows():
        if row["profile"] != "auto":
            continue
        instance = results.instance(row)
        assert instance is not None
        service, node = instance.services[0].name, instance.nodes[0].name
        path = made / "instances" / f"{row['instance']}.json"
        path.write_text(renamed(instance.to_json(), service, node), encoding="utf-8")
        for profile in ("auto", "greedy"):
            plan = made / "plans" / f"{row['instance']}.{profile}.json"
            plan.write_text(renamed(plan.read_text(encoding="utf-8"), service, node), "utf-8")
    return made


def renamed(text: str, *names: str) -> str:
    for name in names:
        text = text.replace(json.dumps(name), json.dumps(name + HOSTILE))
    return text
