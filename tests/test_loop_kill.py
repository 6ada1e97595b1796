"""kill -9 at any moment neither repeats nor loses an action.

Three ways to kill a loop, from the narrow to the wide:

- at every statement between the decision and the note that it was handed over;
- at random moments, with the time of each cycle fixed, so that what is handed over can be compared
  to the letter with a run that nobody killed;
- ``heteroplace run`` itself, as a process of its own on the real clock, with a receiver beside it.

Most loops are forks of one process that has everything imported: starting Python takes longer than
a cycle. Run as a program, this file is that process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

T0 = 1_790_000_000.0
BEAT = 30.0
LAG = 45.0
STEPS = 24
KILLS_PER_WAY = 120
KILLS_OF_THE_COMMAND = 30
KILLS_OF_PROCESSES = 8
LONGEST = 240.0

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
        self.state, self.to, self.log = folder / "state.db", folder / "to", folder / "log"

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
        return [json.loads(file.read_text()) for file in sorted(self.to.glob("*.json"))]

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
                shown = [each for each in world.delivered() if each["at"] + LAG <= clock.now]
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
            take = f"tr -d '\\n' >> {self.log}; echo >> {self.log}"
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


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run something in a process of its own, perhaps killed after some seconds; 0 if it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code


def killed_at_random(folder: Path, way: str, kills: int) -> dict[str, Any]:
    """Kill loops at random moments until so many died, then let the script end."""
    draw = random.Random(f"{way} {kills}")
    calm = World.made(folder / "calm", way)
    began = time.monotonic()
    forked(calm.go)
    expected = calm.facts()
    # About as long as it takes to begin and to run some cycles.
    longest = (time.monotonic() - began) / 3
    died, rounds, places = 0, 0, set()
    until = time.monotonic() + LONGEST
    while died < kills:
        world = World.made(folder / f"killed{rounds}", way)
        ended = False
        while not ended and died < kills:
            assert time.monotonic() < until, f"only {died} kills"
            ended = forked(world.go, draw.uniform(0.0, longest)) == 0
            died += not ended
            places.add((rounds, len(world.delivered())))
        assert forked(world.go) == 0
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


def killed_at_every_statement(folder: Path, way: str, files: tuple[str, ...]) -> dict[str, Any]:
    """Kill a cycle before its first statement in some files, before its second, and so on."""
    whole = World.made(folder / "whole", way)
    forked(whole.go)
    # A cycle in the midst of the script that ends something, which is what hurts if repeated.
    steps = next(
        round((each["at"] - T0) / BEAT) for each in whole.delivered()[3:] if each["terminate"]
    )
    start = World.made(folder / "start", way)
    forked(lambda: start.go(steps))
    before = len(start.delivered())

    def copy(name: str) -> World:
        shutil.copytree(start.folder, folder / name)
        return World(folder / name, way)

    calm = copy("calm")
    forked(lambda: calm.go(steps + 1))
    assert len(calm.delivered()) == before + 1
    forked(lambda: calm.go(steps + 2))
    expected = calm.facts()
    died = 0
    while True:
        world = copy(f"at{died}")
        if forked(lambda: traced(world, died + 1, files)) == 0:  # noqa: B023
            break
        died += 1
        # The script goes on where it was: with that cycle, or the next one if it was kept.
        assert forked(lambda: world.go(steps + 2)) == 0  # noqa: B023
        facts = world.facts()
        for name, value in expected.items():
            assert facts[name] == value, (died, name)
        shutil.rmtree(world.folder)
    return {"killed": died, "before": before, "actions": len(expected["actions"])}


# What only reads, or only speaks.
HARMLESS = {
    *("_aside", "work", "_say", "_is_notable", "_inputs", "inputs_of", "_entry", "_count_actions"),
    *("faults", "_actions", "_value", "outbox", "pending", "counts", "next_action", "_elapsed"),
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
        self.next, self.value, self.steady = 0.0, 90.0, False

    def look(self) -> None:
        """Add a sample when it is time."""
        now = time.time()
        if now < self.next:
            return
        self.next = now + 0.15
        # Beyond the hysteresis of every other count, so that 6 instances are where it ends.
        self.value = 560.0 if self.steady else self.draw.choice((90.0, 250.0, 420.0, 800.0))
        with open(self.file, "a", encoding="utf-8") as file:
            for service in ("chat", "embed"):
                file.write(f"{now:.3f},{service},decode_tps,{self.value}\n")


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
    until = time.monotonic() + LONGEST

    def watch(seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not done():
            assert time.monotonic() < until
            demand.look()
            receiver.look()
            time.sleep(0.004)

    died = 0
    while died < kills:
        loop = start(arguments)
        if draw.random() < 0.8:
            watch(60.0, functools.partial(has_begun, folder, loop.pid))
        watch(draw.uniform(0.0, 0.25))
        died += stop(loop, signal.SIGKILL) == -signal.SIGKILL
    demand.steady = True
    wanted = {"chat decode": 6, "chat prefill": 6, "embed serve": 6}
    loop = start(arguments)
    watch(60.0, lambda: running(receiver.cluster) == wanted and not observed(receiver.cluster))
    settled = len(receiver.taken)
    watch(1.0)
    assert stop(loop, signal.SIGTERM) == 0
    receiver.look()
    assert running(receiver.cluster) == wanted, running(receiver.cluster)
    # At rest nothing is asked for any more.
    assert len(receiver.taken) == settled
    return {"killed": died, "actions": settled}


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
        folder, "folder", ("run.py", "store.py", "handover.py")
    ),
    "statements-command": lambda folder: killed_at_every_statement(
        folder, "command", ("handover.py",)
    ),
    "random-folder": lambda folder: killed_at_random(folder, "folder", KILLS_PER_WAY),
    "random-command": lambda folder: killed_at_random(folder, "command", KILLS_OF_THE_COMMAND),
    "live-forks": lambda folder: killed_live(folder, KILLS_PER_WAY, Fork),
    "live-processes": lambda folder: killed_live(folder, KILLS_OF_PROCESSES, started),
}


def in_its_own_process(folder: Path, way: str) -> dict[str, Any]:
    """Run one of the ways in a process without threads, which may be forked."""
    command = [sys.executable, __file__, str(folder), way]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-6000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_killed_at_every_statement_with_a_folder(tmp_path):
    assert in_its_own_process(tmp_path, "statements-folder")["killed"] > 60


def test_killed_at_every_statement_with_a_command(tmp_path):
    assert in_its_own_process(tmp_path, "statements-command")["killed"] > 25


def test_killed_at_random_with_a_folder(tmp_path):
    found = in_its_own_process(tmp_path, "random-folder")
    assert found["killed"] == KILLS_PER_WAY
    # The script asks for everything that an action can hold, but for moves.
    assert min(found["added"], found["withdraw"], found["terminate"], found["actions"]) > 5
    # The kills fell between different actions.
    assert found["places"] > 10


def test_killed_at_random_with_a_command_that_is_not_idempotent(tmp_path):
    assert in_its_own_process(tmp_path, "random-command")["killed"] == KILLS_OF_THE_COMMAND


def test_heteroplace_run_killed_beside_its_receiver(tmp_path):
    found = in_its_own_process(tmp_path, "live-forks")
    assert found["killed"] == KILLS_PER_WAY
    assert found["actions"] > 20


def test_processes_of_heteroplace_run_killed_beside_their_receiver(tmp_path):
    found = in_its_own_process(tmp_path, "live-processes")
    assert found["killed"] == KILLS_OF_PROCESSES
    assert found["actions"] > 5


if __name__ == "__main__":
    # Imported once, so that forks begin at once.
    import heteroplace.cli
    import heteroplace.loop.run  # noqa: F401

    print(json.dumps(WAYS[sys.argv[2]](Path(sys.argv[1]))))  # noqa: T201
