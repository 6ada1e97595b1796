"""An experiment on a Ray cluster of several nodes, one of which is lost in the middle."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"

ray = pytest.importorskip("ray", reason="Ray is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

from heteroplace.cli import main  # noqa: E402
from heteroplace.compare import cluster as module  # noqa: E402
from heteroplace.compare.cluster import Answer, RayExecutor, work  # noqa: E402
from heteroplace.compare.experiment import Experiment  # noqa: E402
from heteroplace.compare.local import LocalExecutor  # noqa: E402
from heteroplace.compare.measure import Order  # noqa: E402
from heteroplace.compare.record import COLUMNS, read_results  # noqa: E402
from heteroplace.compare.runner import run_experiment  # noqa: E402

FIXED = [column.name for column in COLUMNS if not column.measured]
MEMORY = 80 * 2**20
TEXT = """
name = "spread"
seeds = 24
sizes = [0.125]
profiles = ["greedy", {name = "exact", solver = "auto", time_limit = 60.0}]
keep = ["plans", "instances"]
[[entries]]
family = "small"
"""


# Ray takes 127.0.0.1 for "this machine" and puts its outer address in its place.
NODE = {"node_ip_address": "127.0.0.2", "object_store_memory": MEMORY, "include_dashboard": False}
DEATH_IS_NOTICED_SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 15}

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs 127.0.0.2 as a loopback address"
)


def add(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, **NODE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that works on nothing and a node, on the loopback interface."""
    # Its nodes do not find this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "_system_config": DEATH_IS_NOTICED_SOON, **NODE},
    )
    try:
        add(made)
        yield made
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        ray.shutdown()
        made.shutdown()


def fixed(out: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in FIXED} for row in read_results(out).rows()]


# Hex id of the node that is to be lost; what it gets after a while, it does not finish.
doomed = ""


def slow_work(order: Order) -> Answer:
    time.sleep(0.2)  # So that there is a middle in which to lose a node.
    if ray.get_runtime_context().get_node_id() == doomed and order.task.seed >= 2:
        time.sleep(600)
    return work(order)


def deadly_work(order: Order) -> Answer:
    if order.task.seed == 1 and "exact" in order.profiles:
        os._exit(1)
    return work(order)


def failing_work(order: Order) -> Answer:
    raise ImportError("no such engine")


def other_work(order: Order) -> Answer:
    return "0.0.0", []


def test_a_node_is_lost_in_the_middle(cluster, tmp_path, monkeypatch):
    lost, nodes = add(cluster), []
    monkeypatch.setattr(sys.modules[__name__], "doomed", lost.node_id)
    experiment = Experiment.from_toml(TEXT)

    class Losing(RayExecutor):
        """Loses a node once some rows are there."""

        def run(self, orders: Any) -> Any:
            rows = 0
            for batch in super().run(orders):
                rows += len(batch)
                if rows >= 10 and not nodes:
                    nodes.append(self._cores())
                    cluster.remove_node(lost, allow_graceful=False)
                yield batch

    with Losing(cluster.address, slow_work) as executor:
        assert executor.workers == 2
        progress = run_experiment(experiment, tmp_path / "ray", executor)
    assert nodes == [2]
    assert progress.failed == 0
    assert progress.done == 48
    run_experiment(experiment, tmp_path / "local", LocalExecutor(1))
    assert fixed(tmp_path / "ray") == fixed(tmp_path / "local")
    results = read_results(tmp_path / "ray")
    assert results.manifest.complete
    assert results.manifest.runs[0].executor == "ray"
    # What the lost node was at was tried again.
    assert max(row["attempts"] for row in results.rows()) == 2
    for kind in ("plans", "instances"):
        for path in (tmp_path / "local" / kind).iterdir():
            assert (tmp_path / "ray" / kind / path.name).read_bytes() == path.read_bytes()


def test_the_command_continues_on_a_cluster_what_began_here(cluster, tmp_path, capsys):
    file, out = tmp_path / "spread.toml", tmp_path / "out"
    file.write_text(TEXT)
    arguments = ["compare", str(file), "--out", str(out)]
    assert main([*arguments, "--seeds", "2", "--workers", "1"]) == 0
    assert main([*arguments, "--seeds", "5", "--ray", cluster.address]) == 0
    assert "on 5 instances" in capsys.readouterr().out
    results = read_results(out)
    assert [run.executor for run in results.manifest.runs] == ["local", "ray"]
    assert [row["run"] for row in results.rows()] == [0] * 4 + [1] * 6


def test_a_row_that_kills_its_worker_is_recorded(cluster, tmp_path):
    text = TEXT.replace("seeds = 24", "seeds = 3")
    with RayExecutor(cluster.address, deadly_work) as executor:
        progress = run_experiment(Experiment.from_toml(text), tmp_path, executor)
    assert progress.failed == 1
    rows = {(row["seed"], row["profile"]): row for row in read_results(tmp_path).rows()}
    assert len(rows) == 6
    bad = rows.pop((1, "exact"))
    assert "WorkerCrashedError" in bad["error"]
    assert bad["error"].endswith("(3 times)")
    assert all(row["error"] is None for row in rows.values())


def test_a_row_that_hangs_is_stopped(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    text = TEXT.replace("seeds = 24", "seeds = 1\npatience = 0.5").replace("60.0", "0.5")
    text = text.replace('"greedy", ', "")
    with RayExecutor(cluster.address, hanging_work) as executor:
        run_experiment(Experiment.from_toml(text), tmp_path, executor)
    (row,) = read_results(tmp_path).rows()
    assert "WorkerCrashedError" in row["error"]


def hanging_work(order: Order) -> Answer:
    with module._watched(order):
        time.sleep(600)
    raise AssertionError("it was not stopped")


def test_a_node_that_cannot_run_it_is_refused(cluster, tmp_path):
    with (
        RayExecutor(cluster.address, failing_work) as executor,
        pytest.raises(module.InputError, match=r"a node cannot run heteroplace.*no such engine"),
    ):
        run_experiment(Experiment.from_toml(TEXT), tmp_path, executor)


def test_nodes_with_another_version_are_refused(cluster, tmp_path):
    with (
        RayExecutor(cluster.address, other_work) as executor,
        pytest.raises(module.InputError, match=r"a node has heteroplace 0\.0\.0"),
    ):
        run_experiment(Experiment.from_toml(TEXT), tmp_path, executor)


@pytest.mark.parametrize("address", ["no address", "127.0.0.2:1", "127.0.0.2:x", "ray://[::1]:1"])
def test_no_cluster_at_the_address(tmp_path, capsys, address):
    file, out = tmp_path / "spread.toml", tmp_path / "out"
    file.write_text(TEXT)
    assert main(["compare", str(file), "--out", str(out), "--ray", address]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith(f"heteroplace: --ray: no cluster at {address!r}")
    assert len(errors.splitlines()) == 1
    assert not out.exists()


def test_ray_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    file = tmp_path / "spread.toml"
    file.write_text(TEXT)
    assert main(["compare", str(file), "--out", str(tmp_path / "o"), "--ray", "auto"]) == 2
    assert "pip install 'heteroplace[ray]'" in capsys.readouterr().err
