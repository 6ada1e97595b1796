"""Worker processes that die, hang and are replaced; runs that are killed and interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heteroplace import Profile
from heteroplace.compare.experiment import Experiment
from heteroplace.compare.local import LocalExecutor
from heteroplace.compare.measure import Finished, Order, asked, failed, measure
from heteroplace.compare.record import COLUMNS, read_results
from heteroplace.compare.runner import run_experiment

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
FIXED = [column.name for column in COLUMNS if not column.measured]
KILLS = 3
ROWS = 48
TEXT = """
name = "batch"
seeds = 24
sizes = [0.125]
profiles = ["greedy", {name = "exact", solver = "auto", time_limit = 60.0}]
keep = ["plans", "instances"]
[[entries]]
family = "small"
"""


def orders(count: int, profiles: tuple[str, ...] = ("one", "two"), **given: Any) -> list[Order]:
    text = TEXT.replace("seeds = 24", f"seeds = {count}")
    named = dict.fromkeys(profiles, Profile(solver="greedy", time_limit=0.5))
    return [
        Order(experiment="e", task=task, profiles=named, **given)
        for task in Experiment.from_toml(text).tasks()
    ]


def everything(executor: LocalExecutor, given: list[Order]) -> dict[tuple[int, str], Any]:
    rows = [each.row for batch in executor.run(given) for each in batch]
    found = {(row["seed"], row["profile"]): row for row in rows}
    assert len(found) == len(rows) == sum(len(order.profiles) for order in given)
    return found


def done(order: Order, name: str) -> Finished:
    return Finished(failed(asked(order), name, order.profiles[name], f"by {os.getpid()}"))


def told(order: Order, finished: Callable[[Finished], None], facts: Any) -> None:
    for name in order.profiles:
        finished(done(order, name))


def dies_once(order: Order, finished: Callable[[Finished], None], facts: Any) -> None:
    if order.task.seed == 1 and order.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    told(order, finished, facts)


def dies_always(order: Order, finished: Callable[[Finished], None], facts: Any) -> None:
    facts({**asked(order), "gpus": 64})
    for name in order.profiles:
        if (order.task.seed, name) == (1, "two"):
            os._exit(3) if order.attempt == 1 else os.kill(os.getpid(), signal.SIGSEGV)
        finished(done(order, name))


def hangs(order: Order, finished: Callable[[Finished], None], facts: Any) -> None:
    for name in order.profiles:
        if (order.task.seed, name) == (0, "one"):
            time.sleep(600)
        finished(done(order, name))


def test_every_row_comes_once():
    found = everything(LocalExecutor(2, function=told), orders(7))
    assert len(found) == 14
    assert len({row["error"] for row in found.values()}) <= 2


def test_workers_are_replaced():
    found = everything(LocalExecutor(1, recycle=3, function=told), orders(7))
    by = [found[seed, "one"]["error"] for seed in range(7)]
    assert by[0] == by[1] == by[2]
    assert by[3] == by[4] == by[5]
    assert len({by[0], by[3], by[6]}) == 3


def test_a_worker_that_is_killed_is_replaced_and_its_row_made():
    found = everything(LocalExecutor(2, function=dies_once), orders(5))
    assert all(row["error"].startswith("by ") for row in found.values())
    assert {key: row["attempts"] for key, row in found.items() if row["attempts"] > 1} == {
        (1, "one"): 2,
        (1, "two"): 2,
    }


def test_a_row_that_kills_every_worker_is_recorded():
    found = everything(LocalExecutor(2, function=dies_always), orders(4, ("one", "two", "three")))
    bad = found.pop((1, "two"))
    assert bad["error"] == "the worker process was killed by signal 11, 2 times"
    assert bad["attempts"] == 2
    assert bad["gpus"] == 64
    assert all(row["error"].startswith("by ") for row in found.values())
    assert found[1, "three"]["error"] != found[1, "one"]["error"]


def test_a_worker_that_hangs_is_stopped():
    found = everything(LocalExecutor(2, function=hangs), orders(3, patience=0.5))
    assert found[0, "one"]["error"].startswith("no answer within 1 s")
    assert found[0, "two"]["error"].startswith("by ")


def test_what_is_not_taken_is_not_solved():
    batches = LocalExecutor(1, function=told).run(iter(orders(50)))
    first = next(batches)
    batches.close()
    assert 1 <= len(first) <= 4


def test_orders_are_taken_one_by_one():
    taken = 0

    def counted() -> Any:
        nonlocal taken
        for order in orders(20):
            taken += 1
            yield order

    batches = LocalExecutor(2, function=told).run(counted())
    next(batches)
    assert taken <= 4
    batches.close()


# --------------------------------------------------------------------------------------------
# Whole runs
# --------------------------------------------------------------------------------------------


def start(file: Path, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "heteroplace", "compare", str(file), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def fixed(out: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in FIXED} for row in read_results(out).rows()]


def kept(out: Path) -> dict[str, tuple[int, str]]:
    """The rows that are there, with the run and the moment they come from."""
    if not (out / "manifest.json").exists():
        return {}
    return {row["key"]: (row["run"], row["finished"]) for row in read_results(out).rows()}


def descendants(pid: int) -> set[int]:
    """Processes below one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if true():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run_experiment(Experiment.from_toml(TEXT), out, LocalExecutor(2))
    return out


@linux
def test_killed_again_and_again(tmp_path, uninterrupted):
    file, out = tmp_path / "batch.toml", tmp_path / "out"
    file.write_text(TEXT)
    draw = random.Random(1)
    before: dict[str, tuple[int, str]] = {}
    for _ in range(KILLS):
        process = start(file, out)
        reached(process, out, written(out) + draw.randint(1, 9))
        time.sleep(draw.random() * 0.05)
        below = descendants(process.pid)
        assert process.poll() is None
        process.kill()
        process.communicate()
        # Nobody is left who solves for no one.
        assert gone(below)
        now = kept(out)
        # What was there is there, and is the same: it was not solved again.
        assert {key: now[key] for key in before} == before
        before = now
    assert KILLS <= len(before) < ROWS
    run_experiment(Experiment.from_toml(TEXT), out, LocalExecutor(2))
    after = kept(out)
    assert {key: after[key] for key in before} == before
    assert {run for run, _ in after.values()} == set(range(KILLS + 1))
    assert fixed(out) == fixed(uninterrupted)
    for kind in ("plans", "instances"):
        mine, other = out / kind, uninterrupted / kind
        assert sorted(path.name for path in mine.iterdir()) == sorted(
            path.name for path in other.iterdir()
        )
        assert all((other / path.name).read_bytes() == path.read_bytes() for path in mine.iterdir())
    assert not list(out.rglob("*.tmp"))


def written(out: Path) -> int:
    """Rows in the journal."""
    path = out / "rows.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def reached(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Wait until there are so many rows."""
    assert wait_until(lambda: process.poll() is not None or written(out) >= count)


def gone(pids: set[int]) -> bool:
    """Wait until these processes have ended."""
    return wait_until(lambda: not any(alive(each) for each in pids), 30)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@linux
def test_an_interrupt_keeps_what_is_done(tmp_path, uninterrupted):
    file, out = tmp_path / "batch.toml", tmp_path / "out"
    file.write_text(TEXT)
    process = start(file, out, start_new_session=True)
    reached(process, out, 5)
    below = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # As the keyboard does: to all of them.
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"heteroplace: interrupted\n"
    assert b"unfinished" in printed
    assert gone(below)
    results = read_results(out)
    assert not results.manifest.complete
    assert results.manifest.runs[0].ended is not None
    before = kept(out)
    assert 5 <= len(before) < ROWS
    run_experiment(Experiment.from_toml(TEXT), out, LocalExecutor(2))
    after = kept(out)
    assert {key: after[key] for key in before} == before
    assert fixed(out) == fixed(uninterrupted)


@linux
def test_the_kernel_kills_workers(tmp_path, uninterrupted):
    """As the out-of-memory killer does, in the middle of a real run."""
    out = tmp_path / "out"
    killed = 0

    class Killing(LocalExecutor):
        def run(self, given: Any) -> Any:
            nonlocal killed
            for number, batch in enumerate(super().run(given)):
                if number % 8 == 5:
                    for pid in workers():
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                        break
                yield batch

    run_experiment(Experiment.from_toml(TEXT), out, Killing(2))
    assert killed >= 3
    assert fixed(out) == fixed(uninterrupted)
    assert all(row["error"] is None for row in read_results(out).rows())


def workers() -> list[int]:
    """Worker processes of this one: below its fork server."""
    return sorted(
        each for child in descendants(os.getpid()) for each in descendants(child) if alive(each)
    )


@linux
def test_memory_does_not_grow(tmp_path):
    """Within one worker that is never replaced: as much at the end as soon after the beginning."""
    text = TEXT.replace("seeds = 24", "seeds = 150").replace("keep =", "#")
    run_experiment(Experiment.from_toml(text), tmp_path, LocalExecutor(1, recycle=10**6))
    used = [row["worker_rss"] for row in read_results(tmp_path).rows()]
    assert len(used) == 300
    assert max(used[200:]) <= 1.08 * max(used[60:100])


def test_measure_is_what_a_worker_does_by_default():
    found = everything(LocalExecutor(1), orders(2))
    rows: list[Finished] = []
    measure(orders(1)[0], rows.append)
    for name in ("one", "two"):
        mine = next(each.row for each in rows if each.row["profile"] == name)
        assert {key: found[0, name][key] for key in FIXED} == {key: mine[key] for key in FIXED}
