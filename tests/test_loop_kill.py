"""kill -9 at any moment neither repeats nor loses an action.

Three ways to kill a loop, from the narrow to the wide:

- at every statement between the decision and the note that it was handed over;
- at random moments, with the time of each cycle fixed, so that what is handed over can be compared
  to the letter with a run that nobody killed;
- ``heteroplace run`` itself, as a process of its own on the real clock, with a receiver beside it.

Most loops are forks of one process that has everything imported: starting Python takes longer than
a cycle. Run as a program, this file is that process. Nothing waits for a time to pass in which
something should have happened, so that a busy machine changes how long this takes, not how it ends.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

T0 = 1_790_000_000.0
BEAT = 30.0
# By the parity of its number: every other action shows at once, the rest a cycle later.
LAGS = (15.0, 45.0)
STEPS = 24
KILLS_WITH_A_FOLDER = 120
KILLS_WITH_A_COMMAND = 20
KILLS_OF_FORKS = 50
KILLS_OF_PROCESSES = 3
# Seconds after which something is taken to hang.
LONGEST = 600.0

FLEET = {
    "schema": 1,
    "defaults": {
        "stability": {"cooldown_out": 0, "cooldown_in": 0, "damping": 1.0},
        "age": {"max_age": 3600},
        "registration": {"gate": False},
    },
    "services": [
        {
            "name": "chat",
            "roles": {
                role: {
                    "min": 1,
                    "max": 12,
                    "shapes": [{"name": "g1", "pods": [{"gpu_type": "G", "gpus": 1}]}],
                }
                for role in ("prefill", "decode")
            },
            "ratios": [{"target": 1, "min": "1/2", "max": 2}],
            "policy": {"primary": {"kind": "throughput", "signal": "decode_tps", "target": 100}},
            "soft_scale_in": {"window": 50},
        },
        {
            "name": "embed",
            "roles": {
                "serve": {
                    "min": 1,
                    "max": 9,
                    "shapes": [{"name": "g2", "pods": [{"gpu_type": "G", "gpus": 2}]}],
                }
            },
            "policy": {"primary": {"kind": "throughput", "signal": "decode_tps", "target": 100}},
            "soft_scale_in": {"window": 0},
        },
    ],
}

CLUSTER = {
    "schema": 1,
    "nodes": [
        {
            "name": f"n{number}",
            "gpu_type": "G",
            "gpus": 8,
            "domains": {"cluster": "c", "s2": f"p{number // 4}", "s1": f"m{number // 2}"},
        }
        for number in range(8)
    ],
    "running": [
        {
            "name": "chat-0",
            "service": "chat",
            "instances": [
                {"name": role, "role": role, "shape": "g1", "nodes": ["n0"]}
                for role in ("prefill", "decode")
            ],
        },
        {
            "name": "embed-0",
            "service": "embed",
            "instances": [{"name": "serve", "role": "serve", "shape": "g2", "nodes": ["n7"]}],
        },
    ],
}


def applied(cluster: dict[str, Any], actions: list[dict[str, Any]]) -> dict[str, Any]:
    """What a cluster becomes when actions are carried out, to the letter and without a pause.

    Raises if an action cannot be: adding what runs already, ending or naming what does not run.
    """
    groups = {
        group["name"]: {**group, "instances": {each["name"]: each for each in group["instances"]}}
        for group in cluster["running"]
    }
    for action in actions:
        for group in action["plan"]["groups"]:
            if group["new"]:
                assert group["name"] not in groups
                groups[group["name"]] = {
                    "name": group["name"],
                    "service": group["service"],
                    "domain": group["domain"],
                    "instances": {},
                }
            running = groups[group["name"]]["instances"]
            for each in group["added"]:
                assert each["name"] not in running
                running[each["name"]] = {
                    "name": each["name"],
                    "role": each["role"],
                    "shape": each["shape"],
                    "nodes": [pod["node"] for pod in each["pods"]],
                }
            assert not group["moved"]
            for each in group["removed"]:
                assert each["name"] in running
        for each in action["withdraw"]:
            running = groups[each["group"]]["instances"]
            running[each["name"]] = {**running[each["name"]], "registered": False}
        for each in action["restore"]:
            del groups[each["group"]]["instances"][each["name"]]["registered"]
        for each in action["terminate"]:
            del groups[each["group"]]["instances"][each["name"]]
    return {
        **cluster,
        "running": [
            {**group, "instances": list(group["instances"].values())}
            for group in groups.values()
            if group["instances"]
        ],
    }


def running(cluster: dict[str, Any]) -> dict[str, int]:
    """Registered instances by service and role."""
    counts: dict[str, int] = {}
    for group in cluster["running"]:
        for each in group["instances"]:
            if each.get("registered", True):
                key = f"{group['service']} {each['role']}"
                counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))


def without_id(action: dict[str, Any]) -> dict[str, Any]:
    """An action but for the part of its id that differs from state to state."""
    return {**action, "id": action["id"].rpartition("-")[2]}


def in_order(actions: list[dict[str, Any]]) -> None:
    """Every action once, in order, none missing, all of one state."""
    assert [each["sequence"] for each in actions] == list(range(1, len(actions) + 1))
    assert len({each["id"].rpartition("-")[0] for each in actions}) <= 1
    assert [each["id"] for each in actions] == sorted({each["id"] for each in actions})


# --------------------------------------------------------------------------------------------
# Loops with the time of each cycle fixed
# --------------------------------------------------------------------------------------------


class World:
    """A folder with a fleet, a cluster and recorded metrics, and the loop on them."""

    def __init__(self, folder: Path, way: str) -> None:
        self.folder, self.way = folder, way
        self.state, self.log = folder / "state.db", folder / "log"
        self.to, self.done = folder / "to", folder / "to" / "done"

    @classmethod
    def made(cls, folder: Path, way: str) -> World:
        folder.mkdir(parents=True)
        world = cls(folder, way)
        world.to.mkdir()
        draw = random.Random(7)
        lines = ["at,service,signal,value"]
        for step in range(STEPS + 1):
            for service in ("chat", "embed"):
                value = draw.choice((90, 250, 420, 610, 800))
                lines.append(f"{T0 + BEAT * step},{service},decode_tps,{value}")
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        return world

    def delivered(self) -> list[dict[str, Any]]:
        """What the receiver has, in the order in which it came."""
        if self.way == "command":
            text = self.log.read_text() if self.log.exists() else ""
            return [json.loads(line) for line in text.splitlines()]
        files = [*self.to.glob("*.json"), *self.done.glob("*.json")]
        return [json.loads(file.read_text()) for file in sorted(files, key=lambda each: each.name)]

    def take(self) -> None:
        """As a receiver does that clears its folder."""
        self.done.mkdir(exist_ok=True)
        for file in self.to.glob("*.json"):
            file.rename(self.done / file.name)

    @contextlib.contextmanager
    def loop(self) -> Iterator[tuple[Any, int]]:
        """A loop, and how many cycles are left of the script."""
        from heteroplace.loop.cycle import Thinker
        from heteroplace.loop.handover import CommandHandover, FolderHandover, Retrying
        from heteroplace.loop.run import Loop, Settings, read_state
        from heteroplace.loop.store import Store
        from heteroplace.policy.cluster import Cluster
        from heteroplace.policy.fleet import Fleet
        from heteroplace.policy.sources import Metrics, ReplayMetrics, source_from
        from heteroplace.profile import Profile

        world = self

        class Clock:
            """Each cycle begins one beat after the last one that was kept."""

            now = T0

            def wall(self) -> float:
                at = read_state(store).at
                self.now = T0 if at is None else at + BEAT
                return self.now

            def monotonic(self) -> float:
                return time.monotonic()

            def wait(self, seconds: float, stop: threading.Event) -> bool:
                return stop.is_set()

        class Reader:
            """The cluster shows an action some time after it was decided."""

            def read(self) -> Cluster:
                shown = [
                    each
                    for each in world.delivered()
                    if each["at"] + LAGS[each["sequence"] % 2] <= clock.now
                ]
                return Cluster.model_validate(applied(CLUSTER, shown))

            def close(self) -> None:
                pass

        fleet = Fleet.from_dict(FLEET)
        source = source_from(
            fleet.model_copy(
                update={
                    "metrics": Metrics(replay=ReplayMetrics(path=str(self.folder / "metrics.csv")))
                }
            )
        )
        handover: Any
        if self.way == "command":
            # Not idempotent: a second call would be seen.
            take = f"cat >> {self.log}; echo >> {self.log}"
            handover = CommandHandover(["sh", "-c", take], f"{self.state}.receipts", 60.0)
        else:
            handover = FolderHandover(self.to)
        clock = Clock()
        with Store(self.state) as store:
            at = read_state(store).at
            left = STEPS if at is None else STEPS - round((at - T0) / BEAT) - 1
            yield (
                Loop(
                    Thinker(fleet, Reader(), source, Profile(solver="greedy")),
                    store,
                    Retrying(handover, clock, attempts=1),
                    Settings(interval=1e-6, cycles=max(left, 1)),
                    clock,
                ),
                left,
            )

    def go(self, end: int = STEPS) -> None:
        """Run the script, or what is left of it, up to some step."""
        with self.loop() as (loop, left):
            left -= STEPS - end
            if left <= 0:
                loop._deliver()
            elif end == STEPS:
                assert loop.run() == 0
            else:
                for _ in range(left):
                    assert loop.cycle()
        # A process with threads must not be forked.
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join()

    def facts(self) -> dict[str, Any]:
        """What must not depend on whether somebody killed the loop."""
        from heteroplace.loop.store import Store

        actions = self.delivered()
        in_order(actions)
        with Store(self.state) as store:
            assert store.outbox() == []
            state = store.fleet_state
            history = [
                (each.at, each.service, each.action, each.reason) for each in store.history(10**6)
            ]
        assert state is not None
        return {
            "actions": [without_id(each) for each in actions],
            "state": json.loads(state),
            "history": history,
            "cluster": running(applied(CLUSTER, actions)),
        }


def forked(work: Callable[[], None], timer: int | None = None, seconds: float = 0.0) -> bool:
    """Run something in a process of its own; whether it was killed.

    With a timer the kernel ends the process with a signal that nobody handles: like kill -9,
    wherever it is, without a chance to clean up.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if timer is not None:
                signal.setitimer(timer, max(seconds, 1e-6))
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL, -signal.SIGPROF, -signal.SIGALRM), code
    return code != 0


# With a folder by the processor time it has had, which a busy machine does not change. A loop that
# waits for a command has none, so there by the clock.
TIMERS: dict[str, tuple[int, Callable[[], float]]] = {
    "folder": (signal.ITIMER_PROF, time.process_time),
    "command": (signal.ITIMER_REAL, time.monotonic),
}


def killed_at_random(folder: Path, way: str, kills: int) -> dict[str, Any]:
    """Kill loops at random moments until so many died, letting the script end in between."""
    draw = random.Random(f"{way} {kills}")
    timer, clock = TIMERS[way]
    World.made(folder / "first", way).go(1)  # Imports what is not yet.
    calm = World.made(folder / "calm", way)
    began = clock()
    calm.go()
    longest = (clock() - began) / 5
    expected = calm.facts()
    died, rounds, places = 0, 0, set()
    while died < kills:
        world = World.made(folder / f"killed{rounds}", way)
        killed = True
        while killed and died < kills:
            killed = forked(world.go, timer, draw.uniform(0.0, longest))
            died += killed
            if draw.random() < 0.5:
                world.take()
            places.add((rounds, len(world.delivered())))
        world.go()
        facts = world.facts()
        for name, value in expected.items():
            assert facts[name] == value, name
        rounds += 1
    return {"killed": died, "rounds": rounds, "places": len(places), **summary(expected)}


def summary(facts: dict[str, Any]) -> dict[str, Any]:
    actions = facts["actions"]
    return {
        "actions": len(actions),
        "terminate": sum(len(each["terminate"]) for each in actions),
        "withdraw": sum(len(each["withdraw"]) for each in actions),
        "restored": sum(len(each["restore"]) for each in actions),
        "added": sum(len(g["added"]) for each in actions for g in each["plan"]["groups"]),
    }


def killed_at_every_statement(
    folder: Path, way: str, files: tuple[str, ...], further: int
) -> dict[str, Any]:
    """Kill a cycle before its first statement in some files, before its second, and so on.

    After each the script goes on, to the end of that cycle or some ``further`` ones.
    """
    whole = World.made(folder / "whole", "folder")
    whole.go()
    # A cycle in the midst of the script that ends something, which is what hurts if repeated.
    steps = next(
        round((each["at"] - T0) / BEAT) for each in whole.delivered()[3:] if each["terminate"]
    )
    start = World.made(folder / "start", way)
    start.go(steps)
    before = len(start.delivered())

    def copy(name: str) -> World:
        shutil.copytree(start.folder, folder / name)
        return World(folder / name, way)

    end = steps + 1 + further
    calm = copy("calm")
    calm.go(steps + 1)
    assert len(calm.delivered()) == before + 1
    calm.go(end)
    expected = calm.facts()
    died = 0
    while True:
        world = copy(f"at{died}")
        if not forked(lambda: traced(world, died + 1, files)):  # noqa: B023
            break
        died += 1
        world.take()
        # The script goes on where it was: with that cycle, or the next one if it was kept.
        world.go(end)
        facts = world.facts()
        for name, value in expected.items():
            assert facts[name] == value, (died, name)
        shutil.rmtree(world.folder)
    return {"killed": died, "before": before, "actions": len(expected["actions"])}


# What only reads, or only speaks.
HARMLESS = {
    *("_aside", "work", "_say", "_is_notable", "_inputs", "inputs_of", "_entry", "_count_actions"),
    *("faults", "_actions", "_value", "outbox", "pending", "counts", "next_action", "_elapsed"),
    *("fleet_state", "read_state", "<listcomp>", "<dictcomp>", "<genexpr>"),
}


def traced(world: World, place: int, files: tuple[str, ...]) -> None:
    """Run one cycle and die at the given statement of the parts that write and hand over."""
    passed = 0

    def on_line(frame: Any, event: str, _argument: object) -> Any:
        nonlocal passed
        if event == "line":
            passed += 1
            if passed == place:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame: Any, _event: str, _argument: object) -> Any:
        code = frame.f_code
        path = Path(code.co_filename)
        critical = path.parent.name == "loop" and path.name in files
        return on_line if critical and code.co_name not in HARMLESS else None

    with world.loop() as (loop, _):
        sys.settrace(on_call)
        assert loop.cycle()
        sys.settrace(None)


# --------------------------------------------------------------------------------------------
# heteroplace run itself, on the real clock
# --------------------------------------------------------------------------------------------


class Receiver:
    """Takes the files of actions as they come, carries them out and writes the cluster file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.to, self.done = folder / "to", folder / "to" / "done"
        self.done.mkdir(parents=True)
        self.taken: list[dict[str, Any]] = []
        self.cluster = CLUSTER
        self._write()

    def look(self) -> None:
        """Take what is there."""
        for file in sorted(self.to.glob("*.json")):
            action = json.loads(file.read_text())
            assert action["id"] == file.stem
            self.taken.append(action)
            in_order(self.taken)
            self.cluster = applied(self.cluster, [action])
            # What is begun is finished, whether it is moved away before or after.
            file.rename(self.done / file.name)
            self._write()

    def _write(self) -> None:
        temporary = self.folder / "cluster.tmp"
        temporary.write_text(json.dumps(self.cluster))
        temporary.rename(self.folder / "cluster.json")


class Demand:
    """A file of metrics that grows as time passes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.file = folder / "metrics.csv"
        self.file.write_text("at,service,signal,value\n")
        self.draw = random.Random(seed)
        self.next, self.steady = 0.0, False

    def settle(self) -> None:
        """From now on it stays the same."""
        self.next, self.steady = 0.0, True
        self.look()

    def look(self) -> None:
        """Add a sample when it is time."""
        now = time.time()
        if now < self.next:
            return
        self.next = now + 0.15
        # Beyond the hysteresis of every other count, so that 6 instances are where it ends.
        value = 560.0 if self.steady else self.draw.choice((90.0, 250.0, 420.0, 800.0))
        with open(self.file, "a", encoding="utf-8") as file:
            for service in ("chat", "embed"):
                file.write(f"{now:.3f},{service},decode_tps,{value}\n")


def live_arguments(folder: Path) -> list[str]:
    fleet = json.loads(json.dumps(FLEET))
    fleet["services"][0]["soft_scale_in"]["window"] = 0.3
    (folder / "fleet.json").write_text(json.dumps(fleet))
    return [
        "run",
        *("--fleet", str(folder / "fleet.json"), "--cluster", str(folder / "cluster.json")),
        *("--metrics", str(folder / "metrics.csv"), "--state", str(folder / "state.db")),
        *("--apply", "--to", str(folder / "to"), "--interval", "0.05", "--solver", "greedy"),
    ]


def killed_live(folder: Path, kills: int, start: Callable[[list[str]], Any]) -> dict[str, Any]:
    """Kill ``heteroplace run`` again and again beside a receiver; then let it settle."""
    receiver, draw = Receiver(folder), random.Random(kills)
    demand = Demand(folder, kills)
    arguments = live_arguments(folder)

    def watch(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            demand.look()
            receiver.look()
            time.sleep(0.008)

    def until(done: Callable[[], bool]) -> None:
        end = time.monotonic() + LONGEST
        while not done():
            assert time.monotonic() < end, "waited in vain"
            watch(0.008)

    died = least = 0
    while died < kills:
        loop = start(arguments)
        if draw.random() < 0.8:
            until(functools.partial(has_begun, folder, loop.pid))
            # Some die before they have done anything, some after an action or two.
            actions = draw.choice((0, 1, 1, 2))
            least += actions
            enough = len(receiver.taken) + actions
            until(lambda: len(receiver.taken) >= enough)  # noqa: B023
        watch(draw.uniform(0.0, 0.1))
        died += stop(loop, signal.SIGKILL) == -signal.SIGKILL
    assert len(receiver.taken) >= least
    demand.settle()
    loop = start(arguments)
    until(Rest(folder, receiver).reached)
    assert stop(loop, signal.SIGTERM) == 0
    receiver.look()
    assert running(receiver.cluster) == SETTLED
    return {"killed": died, "actions": len(receiver.taken)}


SETTLED = {"chat decode": 6, "chat prefill": 6, "embed serve": 6}


class Rest:
    """Whether the cluster is what the demand needs, and the loop has long had nothing to say."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.state, self.receiver = folder / "state.db", receiver
        self.taken = -1
        self.cycles: set[float] = set()

    def reached(self) -> bool:
        """Look again; true after some cycles in a row without an action."""
        from heteroplace.loop.store import read_fleet_state

        cluster, taken = self.receiver.cluster, len(self.receiver.taken)
        if taken != self.taken or running(cluster) != SETTLED or observed(cluster):
            self.taken, self.cycles = taken, set()
            return False
        state = read_fleet_state(self.state)
        assert state is not None
        self.cycles.add(json.loads(state)["at"])
        return len(self.cycles) > 10


def has_begun(folder: Path, pid: int) -> bool:
    """Whether a process has taken the state."""
    lock = folder / "state.db.lock"
    return lock.exists() and lock.read_text() == f"{pid}\n"


def observed(cluster: dict[str, Any]) -> bool:
    """Whether something is out of service discovery."""
    return any(
        not each.get("registered", True) for g in cluster["running"] for each in g["instances"]
    )


def stop(process: Any, number: int) -> int:
    os.kill(process.pid, number)
    code = process.wait()
    assert code in (0, -signal.SIGKILL), code
    return int(code)


class Fork:
    """``heteroplace`` with arguments, in a fork of this process."""

    def __init__(self, arguments: list[str]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            from heteroplace.cli import main

            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 2)
            code = 3
            try:
                code = main(arguments)
            finally:
                os._exit(code)

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    """``heteroplace`` with arguments, as a process from scratch."""
    return subprocess.Popen(
        [sys.executable, "-m", "heteroplace", *arguments], stderr=subprocess.DEVNULL
    )


# --------------------------------------------------------------------------------------------
# The tests
# --------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Path], Any]] = {
    "statements-folder": lambda folder: killed_at_every_statement(
        folder, "folder", ("run.py", "store.py", "handover.py"), 1
    ),
    "statements-command": lambda folder: killed_at_every_statement(
        folder, "command", ("handover.py",), 0
    ),
    "random-folder": lambda folder: killed_at_random(folder, "folder", KILLS_WITH_A_FOLDER),
    "random-command": lambda folder: killed_at_random(folder, "command", KILLS_WITH_A_COMMAND),
    "forks": lambda folder: killed_live(folder, KILLS_OF_FORKS, Fork),
}


def in_its_own_process(folder: Path, way: str) -> dict[str, Any]:
    """Run one of the ways in a process without threads, which may be forked."""
    command = [sys.executable, __file__, str(folder), way]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert ended.returncode == 0, ended.stderr[-6000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.fixture
def folder(tmp_path):
    """In memory where there is such a place: what is killed is the process, not the disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_killed_at_every_statement_with_a_folder(folder):
    assert in_its_own_process(folder, "statements-folder")["killed"] > 60


def test_killed_at_every_statement_with_a_command(folder):
    assert in_its_own_process(folder, "statements-command")["killed"] > 25


def test_killed_at_random_with_a_folder(folder):
    found = in_its_own_process(folder, "random-folder")
    assert found["killed"] == KILLS_WITH_A_FOLDER
    # The script asks for everything that an action can hold, but for moves.
    assert min(found["added"], found["withdraw"], found["terminate"], found["actions"]) > 5
    # The kills fell between different actions.
    assert found["places"] > 10


def test_killed_at_random_with_a_command_that_is_not_idempotent(folder):
    assert in_its_own_process(folder, "random-command")["killed"] == KILLS_WITH_A_COMMAND


def test_heteroplace_run_killed_beside_its_receiver(folder):
    found = in_its_own_process(folder, "forks")
    assert found["killed"] == KILLS_OF_FORKS
    assert found["actions"] > 20


def test_processes_of_heteroplace_run_killed_beside_their_receiver(folder):
    found = killed_live(folder, KILLS_OF_PROCESSES, started)
    assert found["killed"] == KILLS_OF_PROCESSES


if __name__ == "__main__":
    # Imported once, so that forks begin at once.
    import heteroplace.cli
    import heteroplace.loop.run
    import heteroplace.policy.sources  # noqa: F401

    gc.freeze()
    print(json.dumps(WAYS[sys.argv[2]](Path(sys.argv[1]))))  # noqa: T201
