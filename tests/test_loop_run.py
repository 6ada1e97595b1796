"""The loop: what it keeps, hands over and survives; and its two commands."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from heteroplace.cli import main
from heteroplace.errors import InputError
from heteroplace.instance import Instance
from heteroplace.loop import cycle as cycle_module
from heteroplace.loop.action import Action
from heteroplace.loop.cluster import ClusterCommand, ClusterFile
from heteroplace.loop.cycle import Thinker
from heteroplace.loop.exporter import Metrics
from heteroplace.loop.handover import HandoverError, Retrying, delivery_lock
from heteroplace.loop.run import Loop, Settings
from heteroplace.loop.store import Store, read_fleet_state
from heteroplace.policy.cluster import Cluster
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.readings import Problem, Reading, Snapshot
from heteroplace.policy.state import FleetState, ServiceState
from heteroplace.profile import Profile
from heteroplace.solve import solve

T0 = 1_790_000_000.0

FLEET = {
    "schema": 1,
    "defaults": {
        "stability": {
            "cooldown_out": 0,
            "cooldown_in": 0,
            "damping": 1.0,
            "max_step_out": {"instances": 9},
            "max_step_in": {"instances": 9},
        },
        "registration": {"gate": False},
    },
    "services": [
        {
            "name": "chat",
            "roles": {
                "serve": {
                    "min": 1,
                    "max": 9,
                    "shapes": [{"name": "g1", "pods": [{"gpu_type": "G", "gpus": 1}]}],
                }
            },
            "policy": {"primary": {"kind": "throughput", "signal": "decode_tps", "target": 100}},
            "soft_scale_in": {"window": 60},
        }
    ],
}


def cluster_of(*names, **more):
    return {
        "schema": 1,
        "nodes": [
            {
                "name": f"n{n}",
                "gpu_type": "G",
                "gpus": 8,
                "domains": {"cluster": "c", "s2": "p", "s1": "m"},
            }
            for n in range(2)
        ],
        "running": [
            {
                "name": "chat-0",
                "service": "chat",
                "instances": [
                    {"name": name, "role": "serve", "shape": "g1", "nodes": ["n0"]}
                    for name in names
                ],
            }
        ],
        **more,
    }


class FakeClock:
    """Two clocks that the test sets."""

    def __init__(self) -> None:
        self.now, self.steady = T0, 0.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.steady

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        self.pass_by(max(0.0, seconds))
        return stop.is_set()

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.steady += seconds


class Demand:
    """A source that always has a fresh reading."""

    def __init__(self) -> None:
        self.value, self.problems = 100.0, ()

    def read(self, fleet: Fleet, now: float) -> Snapshot:
        if self.problems:
            return Snapshot(now, {}, self.problems)
        return Snapshot(now, {"chat": {"decode_tps": Reading(self.value, now)}})


class Taking:
    """A receiver that fails, refuses or takes, as the test says."""

    def __init__(self) -> None:
        self.taken: list[Action] = []
        self.tried: list[str] = []
        self.mood = "take"

    def deliver(self, action):
        self.tried.append(action.id)
        if self.mood == "fail":
            raise HandoverError("away")
        if self.mood == "refuse":
            return "refused"
        self.taken.append(Action.from_json(action.document))
        return "delivered"

    def tidy(self, open_actions):
        pass


class Rig:
    """A loop of which the test holds every part."""

    def __init__(self, folder: Path, metrics: Metrics | None = None, **settings) -> None:
        self.file = folder / "cluster.json"
        self.show("a")
        self.clock, self.demand, self.taking = FakeClock(), Demand(), Taking()
        self.stop = threading.Event()
        self.store = Store(folder / "state.db")
        self.fleet, self.metrics, self.settings = Fleet.from_dict(FLEET), metrics, settings
        self.patience = 900.0
        self.cycles: list[object] = []
        self.make()

    def make(self) -> None:
        """Make the loop, as after a restart."""
        self.loop = Loop(
            Thinker(
                self.fleet,
                ClusterFile(self.file),
                self.demand,
                Profile(solver="greedy"),
                self.patience,
                600.0,
            ),
            self.store,
            Retrying(self.taking, self.clock, attempts=2),
            Settings(**{"interval": 30.0, **self.settings}),
            self.clock,
            self.metrics,
            self.cycles.append,
            self.stop,
        )

    def show(self, *names, **more) -> None:
        self.file.write_text(json.dumps(cluster_of(*names, **more)))

    def cycle(self, beat: float = 30.0) -> bool:
        self.clock.pass_by(beat)
        return self.loop.cycle()

    def added(self) -> list[str]:
        return [
            each.name
            for action in self.taking.taken
            for group in action.plan.groups
            for each in group.added
        ]


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.store.close()


# --------------------------------------------------------------------------------------------
# Actions
# --------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_twice_while_the_cluster_is_behind(rig):
    rig.demand.value = 300.0
    for _ in range(5):
        assert rig.cycle()
    assert rig.added() == ["serve-a1-0", "serve-a1-1"]
    assert rig.store.counts() == {"outbox": 0, "pending": 1, "delivered": 1}
    # More is asked for on top of what is on its way.
    rig.demand.value = 400.0
    assert rig.cycle()
    assert rig.added() == ["serve-a1-0", "serve-a1-1", "serve-a2-0"]
    rig.show("a", "serve-a1-0", "serve-a1-1", "serve-a2-0")
    assert rig.cycle()
    assert rig.store.counts()["pending"] == 0
    assert len(rig.taking.taken) == 2


def test_a_restart_goes_on_with_what_is_on_its_way(rig):
    rig.demand.value = 300.0
    assert rig.cycle()
    rig.make()
    assert rig.cycle()
    assert len(rig.taking.taken) == 1


def test_after_its_patience_the_loop_asks_again(rig):
    rig.demand.value = 300.0
    rig.patience = 100.0
    rig.make()
    for _ in range(4):
        assert rig.cycle()
    assert len(rig.taking.taken) == 1
    assert rig.cycle()
    assert [each.sequence for each in rig.taking.taken] == [1, 2]
    assert rig.added()[2:] == ["serve-a2-0", "serve-a2-1"]


def test_patience_survives_a_restart_before_which_at_most_one_interval_counts(rig):
    rig.demand.value = 300.0
    rig.patience = 100.0
    rig.make()
    for _ in range(2):
        assert rig.cycle()
    assert rig.store.pending()[0].waited == 30.0
    for beat, waited in ((10_000.0, 60.0), (12.0, 72.0), (-500.0, 72.0)):
        rig.make()
        rig.clock.now += beat
        assert rig.cycle(beat=0.0)
        assert rig.store.pending()[0].waited == waited
    assert len(rig.taking.taken) == 1


def test_patience_ends_where_each_cycle_is_a_process_of_its_own(rig):
    rig.demand.value = 300.0
    rig.patience = 100.0
    for _ in range(7):
        rig.make()
        assert rig.cycle()
    assert [each.sequence for each in rig.taking.taken] == [1, 2]


def test_a_node_that_goes_away_does_not_stop_the_loop(rig):
    rig.demand.value = 900.0
    assert rig.cycle()
    (group,) = rig.taking.taken[0].plan.groups
    lost = [each.name for each in group.added if each.pods[0].node == "n1"]
    assert lost
    rig.show("a", nodes=cluster_of()["nodes"][:1])
    assert rig.cycle()
    # The others are still on their way.
    assert rig.store.counts()["pending"] == 1
    assert len(rig.taking.taken) == 1


def test_a_soft_scale_in_withdraws_and_ends_later(rig):
    rig.show("a", "b", "c")
    rig.demand.value = 300.0
    assert rig.cycle()
    assert rig.taking.taken == []
    rig.demand.value = 200.0
    assert rig.cycle()
    (first,) = rig.taking.taken
    (leaving,) = first.withdraw
    assert [each.name for each in first.plan.groups[0].removed] == [leaving.name]
    assert first.terminate == ()
    for _ in range(4):
        assert rig.cycle()
    assert [[each.name for each in action.terminate] for action in rig.taking.taken[1:]] == [
        [leaving.name]
    ]
    # It is still there, on its way out, and is neither ended again nor missed.
    for _ in range(3):
        assert rig.cycle()
    assert len(rig.taking.taken) == 2
    rig.show(*({"a", "b", "c"} - {leaving.name}))
    assert rig.cycle()
    assert rig.store.counts()["pending"] == 0
    assert len(rig.taking.taken) == 2


def test_while_an_action_is_not_handed_over_nothing_new_is_decided(rig, caplog):
    rig.taking.mood = "fail"
    rig.demand.value = 300.0
    assert not rig.cycle()
    (waiting,) = rig.store.outbox()
    state = rig.store.fleet_state
    rig.demand.value = 500.0
    assert not rig.cycle()
    assert rig.store.fleet_state == state
    assert [each.id for each in rig.store.outbox()] == [waiting.id]
    assert rig.store.outbox()[0].attempts == 4
    rig.taking.mood = "take"
    assert rig.cycle()
    assert [each.sequence for each in rig.taking.taken] == [1, 2]
    assert rig.taking.taken[0].id == waiting.id
    assert "away" in caplog.text


def test_what_was_refused_is_decided_anew(rig):
    rig.show("a", "b", "c")
    rig.demand.value = 100.0
    assert rig.cycle()
    (leaving,) = rig.taking.taken
    for value in (100.0, 900.0):
        # At the end of the window the observed ones end; later more are needed.
        rig.demand.value = value
        before = rig.store.fleet_state
        rig.clock.pass_by(60.0)
        rig.taking.mood = "refuse"
        assert rig.cycle()
        assert rig.store.outbox() == []
        assert rig.store.fleet_state == before
        rig.taking.mood = "take"
        assert rig.cycle()
    assert [each.sequence for each in rig.taking.taken] == [1, 3, 5]
    assert rig.taking.taken[1].terminate == leaving.withdraw
    assert len(rig.taking.taken[2].plan.groups[0].added) == 8


def test_what_may_register_is_said_again_after_a_refusal(tmp_path):
    rig = Rig(tmp_path)
    rig.store.commit(
        T0,
        FleetState(
            at=T0, services={"chat": ServiceState(counts={"serve": 1}, held={"serve": 1})}
        ).to_json(),
    )
    rig.make()
    rig.taking.mood = "refuse"
    assert rig.cycle()
    assert len(rig.taking.tried) == 1
    rig.taking.mood = "take"
    assert rig.cycle()
    assert [each.held for each in rig.taking.taken] == [{}]
    assert rig.cycle()
    assert len(rig.taking.taken) == 1
    rig.store.close()


def test_a_state_without_fields_that_came_later_is_read(rig):
    rig.store.commit(
        T0,
        json.dumps(
            {
                "schema": 1,
                "at": T0,
                "services": {
                    "chat": {
                        "counts": {"serve": 2},
                        "last_out": T0 - 50.0,
                        "withdrawn": [
                            {
                                **{"service": "chat", "group": "chat-0", "name": "b"},
                                **{"role": "serve", "shape": "g1", "nodes": ["n0"]},
                                **{"since": T0 - 40.0, "until": T0 + 20.0},
                            }
                        ],
                    }
                },
            }
        ),
    )
    rig.show("a", "b", "c")
    rig.demand.value = 200.0
    rig.make()
    assert rig.cycle()
    (action,) = rig.taking.taken
    assert [each.name for each in action.terminate] == ["b"]
    assert action.plan.groups == ()


def test_an_action_names_its_reasons_and_what_it_reaches(rig):
    rig.demand.value = 5000.0
    assert rig.cycle()
    (action,) = rig.taking.taken
    assert [each.service for each in action.decisions] == ["chat"]
    assert "tokens/s" in action.decisions[0].reason
    assert action.time.startswith("2026-09-21T")
    assert action.at == T0 + 30.0
    assert action.outlook.status == "feasible"
    assert action.outlook.steps[0].name == "unmet[0]"
    assert action.plan.groups[0].new is False


# --------------------------------------------------------------------------------------------
# Faults
# --------------------------------------------------------------------------------------------


def test_a_cluster_that_cannot_be_read_for_a_while(rig, caplog):
    rig.demand.value = 300.0
    rig.file.write_text('{"schema": 1, "nodes": [')
    assert not rig.cycle()
    rig.file.unlink()
    assert not rig.cycle()
    rig.show("a", at=T0 - 10_000.0)
    assert not rig.cycle()
    assert "more than 600 s" in caplog.text
    assert rig.store.fleet_state is None
    rig.show("a", at=rig.clock.now)
    assert rig.cycle()
    assert len(rig.taking.taken) == 1


def test_a_solver_that_fails(rig, monkeypatch, caplog):
    def broken(*_):
        raise MemoryError("no memory left")

    rig.demand.value = 300.0
    with monkeypatch.context() as patch:
        patch.setattr(cycle_module, "solve", broken)
        assert not rig.cycle()
    assert "no memory left" in caplog.text
    assert rig.store.fleet_state is None
    assert rig.cycle()
    assert len(rig.taking.taken) == 1


def test_a_plan_that_breaks_a_constraint_is_not_handed_over(rig, monkeypatch, caplog):
    def on_larger_nodes(instance, profile):
        nodes = tuple(node.model_copy(update={"gpus": 64}) for node in instance.nodes)
        return solve(instance.model_copy(update={"nodes": nodes}), profile)

    monkeypatch.setattr(cycle_module, "solve", on_larger_nodes)
    rig.demand.value = 900.0
    other = {"name": "x", "role": "r", "shape": "s", "nodes": ["n1"], "gpus": [8]}
    rig.file.write_text(
        json.dumps(
            {
                **cluster_of("a"),
                "running": [
                    *cluster_of("a")["running"],
                    {"name": "others", "service": "others", "instances": [other]},
                ],
            }
        )
    )
    assert not rig.cycle()
    assert "is not handed over (capacity" in caplog.text
    assert rig.taking.tried == []
    assert rig.store.outbox() == []


def test_metrics_that_are_away_hold_and_say_so_once(rig, caplog):
    caplog.set_level(logging.INFO, "heteroplace.loop")
    rig.show("a", "b", "c")
    rig.demand.value = 300.0
    assert rig.cycle()
    rig.demand.problems = (Problem("", "", "Prometheus does not answer"),)
    caplog.clear()
    for _ in range(3):
        assert rig.cycle()
    assert rig.taking.taken == []
    assert caplog.text.count("metrics: Prometheus does not answer") == 1
    assert caplog.text.count("chat: hold") == 1
    rig.demand.problems = ()
    assert rig.cycle()
    assert caplog.text.count("chat: hold") == 2


def test_failed_cycles_are_counted(tmp_path):
    pytest.importorskip("prometheus_client", reason="needs heteroplace[policy]")
    rig = Rig(tmp_path, Metrics())
    value = rig.metrics.registry.get_sample_value
    rig.file.unlink()
    rig.cycle()
    rig.show("a")
    rig.demand.value = 300.0
    rig.taking.mood = "fail"
    rig.cycle()
    assert value("heteroplace_errors_total", {"phase": "cluster"}) == 1
    assert value("heteroplace_errors_total", {"phase": "handover"}) == 1
    assert value("heteroplace_actions_undelivered") == 1
    rig.taking.mood = "take"
    rig.cycle()
    assert value("heteroplace_actions_undelivered") == 0
    assert value("heteroplace_actions_pending") == 1
    assert value("heteroplace_actions_delivered_total") == 1
    assert value("heteroplace_cycles_total", {"outcome": "failed"}) == 2
    assert value("heteroplace_cycles_total", {"outcome": "done"}) == 1
    assert value("heteroplace_target_capacity", {"service": "chat", "role": "serve"}) == 3
    assert value("heteroplace_last_cycle_timestamp_seconds") == rig.clock.now
    for phase in ("cluster", "metrics", "decide", "assemble", "solve", "check", "commit"):
        assert value("heteroplace_phase_seconds_count", {"phase": phase}) >= 1, phase
    rig.store.close()


@pytest.mark.parametrize("jump", [-7200.0, -0.5, 86_400.0 * 400])
def test_a_jump_of_the_clock_neither_repeats_nor_blocks(rig, jump, caplog):
    rig.demand.value = 300.0
    rig.patience = 100.0
    rig.make()
    assert rig.cycle()
    rig.clock.now += jump
    # What is on its way stays there: patience is not measured with the clock that jumped.
    for _ in range(2):
        assert rig.cycle()
    assert len(rig.taking.taken) == 1
    assert ("the clock went back" in caplog.text) == (jump < -30.0)
    # And the loop can still act.
    rig.demand.value = 400.0
    assert rig.cycle()
    assert [each.sequence for each in rig.taking.taken] == [1, 2]
    # The history outlives a jump.
    assert len(rig.store.history(10)) == 2


def test_a_state_whose_content_is_spoilt_is_refused(rig):
    rig.cycle()
    rig.store._connection.execute('UPDATE store SET fleet_state = \'{"schema": 1, "at": [}\'')
    with pytest.raises(InputError) as refused:
        rig.make()
    assert rig.store.path in str(refused.value)


def test_the_loop_ends_after_its_cycles_and_reports_each(tmp_path):
    rig = Rig(tmp_path, cycles=3)
    assert rig.loop.run() == 0
    assert len(rig.cycles) == 3
    assert rig.clock.steady == 60.0
    rig.store.close()


def test_a_request_to_stop_does_not_wait_for_what_is_computed(rig):
    never = threading.Event()

    class Hanging:
        def read(self, fleet, now):
            rig.stop.set()
            never.wait(60.0)
            return Snapshot(now, {})

    rig.demand = Hanging()
    rig.make()
    assert rig.loop.run() == 0
    assert not never.is_set()
    never.set()
    assert rig.cycles == []
    assert rig.store.fleet_state is None


# --------------------------------------------------------------------------------------------
# Reading the cluster from a command
# --------------------------------------------------------------------------------------------


def command(tmp_path: Path, body: str) -> list[str]:
    file = tmp_path / "print.py"
    file.write_text("import sys, time\n" + body)
    return [sys.executable, "-I", "-S", str(file)]


def test_a_command_prints_the_cluster(tmp_path):
    text = json.dumps(cluster_of("a"))
    reader = ClusterCommand(command(tmp_path, f"print({text!r})"))
    assert reader.read() == Cluster.from_json(text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('no such context')", "exit code 1: no such context"),
        ("print('{')", "output of"),
        ("time.sleep(60)", r"took longer than 0\.3 s"),
        ("print('x' * 5000)", "more than 1000 bytes"),
    ],
)
def test_a_command_that_prints_no_cluster_is_named(tmp_path, body, message):
    slow = "sleep" in body
    reader = ClusterCommand(command(tmp_path, body), 0.3 if slow else 60.0, max_bytes=1000)
    with pytest.raises(InputError, match=message):
        reader.read()


# --------------------------------------------------------------------------------------------
# The commands
# --------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Options that name a fleet, a cluster and metrics at T0, when 3 instances are needed."""
    (tmp_path / "fleet.json").write_text(json.dumps(FLEET))
    (tmp_path / "cluster.json").write_text(json.dumps(cluster_of("a")))
    (tmp_path / "metrics.csv").write_text(f"at,service,signal,value\n{T0},chat,decode_tps,300\n")
    (tmp_path / "to").mkdir()
    return [
        *("--fleet", str(tmp_path / "fleet.json"), "--cluster", str(tmp_path / "cluster.json")),
        *("--metrics", str(tmp_path / "metrics.csv"), "--now", f"{T0}"),
    ]


def applying(tmp_path: Path, *more: str) -> list[str]:
    return [
        *("--state", str(tmp_path / "state.db"), "--apply", "--to", str(tmp_path / "to")),
        *("--interval", "0.05", "--solver", "greedy", *more),
    ]


def test_targets_decides_once_and_writes_what_solve_reads(tmp_path, files, capsys):
    out = str(tmp_path / "instance.json")
    assert main(["targets", *files, "--json", "--out", out]) == 0
    found = json.loads(capsys.readouterr().out)
    (decision,) = found["decisions"]
    assert (decision["action"], decision["counts"]) == ("out", {"serve": 3})
    assert found["now"] == pytest.approx(T0, abs=60)
    assert found["problems"] == []
    assert Instance.from_file(out).services[0].roles["serve"].target == 3
    assert main(["solve", out, "--solver", "greedy"]) == 0
    assert main(["targets", *files]) == 0
    text = capsys.readouterr().out
    assert "serve 1 → 3" in text
    assert "300" in text


def test_targets_goes_on_from_a_state_and_leaves_it(tmp_path, files, capsys):
    state = tmp_path / "state.db"
    assert main(["run", *files, *applying(tmp_path, "--cycles", "1")]) == 0
    before = state.read_bytes()
    capsys.readouterr()
    assert main(["targets", *files, "--state", str(state), "--json"]) == 0
    (decision,) = json.loads(capsys.readouterr().out)["decisions"]
    # What is on its way counts.
    assert (decision["action"], decision["before"]) == ("hold", {"serve": 3})
    assert state.read_bytes() == before


def test_times_may_be_written_with_their_zone(files, capsys):
    index = files.index("--now") + 1
    for text in ("2026-09-21T14:13:20Z", "2026-09-21T22:13:20+08:00"):
        assert main(["targets", *files[:index], text, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["now"] == pytest.approx(T0, abs=60)


def test_a_dry_run_shows_what_it_would_hand_over_and_changes_nothing(tmp_path, files, capsys):
    before = {each.name for each in tmp_path.rglob("*")}
    options = ["--cycles", "3", "--interval", "0.01", "--solver", "greedy"]
    assert main(["run", *files, *options, "--to", str(tmp_path / "to")]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("would hand over") == 1
    assert captured.out.count("the same as before") == 2
    assert "2 × serve" in captured.out
    assert "chat: out:" in captured.err
    assert {each.name for each in tmp_path.rglob("*")} == before
    assert main(["run", *files, *options, "--json"]) == 0
    actions = [Action.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(each.plan.groups[0].added) for each in actions] == [2, 2, 2]


def test_a_dry_run_begins_with_the_state_and_leaves_it(tmp_path, files, capsys):
    assert main(["run", *files, *applying(tmp_path, "--cycles", "1")]) == 0
    state = tmp_path / "state.db"
    before = state.read_bytes()
    capsys.readouterr()
    dry = ["--state", str(state), "--cycles", "2", "--interval", "0.01", "--solver", "greedy"]
    assert main(["run", *files, *dry]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert state.read_bytes() == before


def test_the_history_lists_decisions_with_their_reasons(tmp_path, files, capsys):
    assert main(["run", *files, *applying(tmp_path, "--cycles", "2")]) == 0
    capsys.readouterr()
    state = ["--state", str(tmp_path / "state.db")]
    assert main(["targets", "--history", "5", *state, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    (file,) = (tmp_path / "to").glob("*.json")
    assert row["action_id"] == file.stem
    assert row["service"] == "chat"
    assert "tokens/s" in row["reason"]
    assert main(["targets", "--history", *state]) == 0
    assert "chat" in capsys.readouterr().out
    assert main(["targets", "--history", *state, "--service", "other"]) == 0
    assert "No decisions yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--apply", "--to", "TO"], "--apply: needs --state"),
        (["--apply", "--state", "S"], "--apply: needs --to"),
        (["--to", "TO", "--to-command", "cat"], "--to: give either"),
        (["--ask", "cat"], "--ask: goes with --to-command"),
        (["--apply", "--state", "S", "--to", "NOWHERE"], "NOWHERE: is not a folder"),
        (["--apply", "--state", "S", "--to-command", "no-such-program x"], "no program"),
        (["--apply", "--state", "S", "--to-command", "'"], "cannot be split"),
        (["--apply", "--state", "S", "--to-command", " "], "is empty"),
        (["--cluster-command", "cat x"], "--cluster: give either"),
        (["--cluster", "NOWHERE"], "NOWHERE: is not a file"),
        (["--metrics", "NOWHERE"], "NOWHERE"),
        (["--fleet", "NOWHERE"], "NOWHERE: cannot be read"),
        (["--apply", "--state", "S", "--to", ""], "--to: is not a folder"),
        (["--interval", "0"], "greater than 0"),
        (["--interval", "-5"], "must not be negative"),
        (["--interval", "nan"], "finite"),
        (["--interval", "soon"], "90s"),
        (["--patience", "1e99"], "ten years"),
        (["--cycles", "0"], "from 1 to"),
        (["--cycles", "two"], "from 1 to"),
        (["--cycles", "0" * 11 + "9" * 20], "from 1 to"),
        (["--drop", "x"], "--state: is missing"),
        (["--drop", "x", "--state", "S"], "--fleet: does not go with --drop"),
        (["--now", "yesterday"], "unix seconds"),
        (["--now", "2026-01-31T08:00:00"], "with its zone"),
        (["--now", "nan"], "unix seconds"),
        (["--listen", "9464"], "HOST:PORT"),
        (["--time-limit", "-1"], "--time-limit"),
        (["--state", "FOLDER/none/state.db", "--apply", "--to", "TO"], "cannot be written"),
    ],
)
def test_bad_options_are_named(tmp_path, files, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    given = [each.replace("TO", str(tmp_path / "to")) if each == "TO" else each for each in options]
    assert main(["run", *files, "--cycles", "1", *given]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--fleet: is missing"),
        (["--history"], "--state: is missing"),
        (["--history", "0", "--state", "S"], "from 1 to"),
        (["--history", "--state", "S"], "S: holds no state"),
        (["--history", "--state", "S", "--fleet", "F"], "does not go with --history"),
        (["--service", "chat"], "--service: goes with --history"),
    ],
)
def test_bad_options_of_targets_are_named(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["targets", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_targets_names_a_fault_of_the_cluster(tmp_path, files, capsys):
    broken = cluster_of("a")
    broken["running"][0]["instances"][0]["shape"] = "g9"
    (tmp_path / "cluster.json").write_text(json.dumps(broken))
    assert main(["targets", *files]) == 2
    assert "'g9'" in capsys.readouterr().err


def test_a_spoilt_state_ends_the_start_and_is_kept(tmp_path, files, capsys):
    state = tmp_path / "state.db"
    state.write_bytes(b"SQLite format 3\0" + b"\x07" * 5000)
    before = state.read_bytes()
    assert main(["run", *files, *applying(tmp_path, "--cycles", "1")]) == 2
    error = capsys.readouterr().err
    assert str(state) in error
    assert "is kept as it is" in error
    assert state.read_bytes() == before


def test_a_second_run_on_the_same_state_is_refused(tmp_path, files, capsys):
    with Store(tmp_path / "state.db"):
        assert main(["run", *files, *applying(tmp_path, "--cycles", "1")]) == 2
    assert "is in use by another run" in capsys.readouterr().err


def test_an_action_that_nobody_takes_can_be_dropped(tmp_path, files, capsys):
    taken = tmp_path / "taken"
    state = ["--state", str(tmp_path / "state.db")]
    run = ["run", *files, *state, "--apply", "--solver", "greedy", "--cycles", "1"]
    never = [*run, "--attempts", "1", "--to-command", "sh -c 'echo never >&2; exit 1'"]
    for _ in range(2):
        assert main(never) == 1
    error = capsys.readouterr().err
    (name,) = set(re.findall(r"action (\S+): sh: exit code 1: never", error))
    drop = ["run", *state, "--drop"]
    for wrong, message in ((name[:-1], f"only {name}"), ("", f"only {name}")):
        assert main([*drop, wrong]) == 2
        assert message in capsys.readouterr().err
    receipts = tmp_path / "state.db.receipts"
    with delivery_lock(receipts, 0.0):
        assert main([*drop, name]) == 2
    assert "still runs; try again later" in capsys.readouterr().err
    (receipts / f"{name}.receipt").touch()
    assert main([*drop, name]) == 2
    assert "was accepted, as a receipt says" in capsys.readouterr().err
    (receipts / f"{name}.receipt").unlink()
    with Store(tmp_path / "state.db"):
        assert main([*drop, name]) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert main([*drop, name]) == 0
    assert capsys.readouterr().out == f"action {name} is forgotten; the next run decides anew\n"
    assert main([*drop, name]) == 2
    assert "none" in capsys.readouterr().err
    assert main([*run, "--to-command", f"sh -c 'cat > {taken}'"]) == 0
    action = Action.from_json(taken.read_text())
    assert (action.sequence, len(action.plan.groups[0].added)) == (2, 2)


def test_dropping_makes_no_state(tmp_path, capsys):
    assert main(["run", "--state", str(tmp_path / "state.db"), "--drop", "x"]) == 2
    assert "holds no state" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_cycle_of_a_few_is_told_by_the_exit_code(tmp_path, files, capsys):
    (tmp_path / "cluster.json").write_text("{")
    assert main(["run", *files, *applying(tmp_path, "--cycles", "2")]) == 1
    assert capsys.readouterr().err.count("cycle failed in phase cluster") == 2


@pytest.mark.parametrize(
    ("interval", "options", "limit"),
    [
        ("20", [], 10.0),
        ("0.05", [], 1.0),
        ("1h", [], 30.0),
        ("20", ["--time-limit", "15"], 15.0),
        ("20", ["--profile", "profile.toml"], 25.0),
    ],
)
def test_a_solve_leaves_half_of_the_cycle(
    tmp_path, files, monkeypatch, capsys, interval, options, limit
):
    limits = []

    def noting(instance, profile):
        limits.append(profile.time_limit)
        return solve(instance, profile)

    (tmp_path / "profile.toml").write_text("time_limit = 25.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cycle_module, "solve", noting)
    given = ["--interval", interval, "--cycles", "1", "--solver", "greedy", *options]
    assert main(["run", *files, *given]) == 0
    assert limits == [limit]


def test_the_log_of_a_library_user_is_left_alone(tmp_path, files):
    logger = logging.getLogger("heteroplace")
    before = (logger.level, logger.propagate, list(logger.handlers))
    main(["run", *files, "--cycles", "1", "--solver", "greedy"])
    assert (logger.level, logger.propagate) == before[:2]
    assert [h for h in logger.handlers if not isinstance(h, logging.NullHandler)] == [
        h for h in before[2] if not isinstance(h, logging.NullHandler)
    ]


# --------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------


class Process:
    """``heteroplace run`` as a process, with its log at hand."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.log = tmp_path / "log.jsonl"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "heteroplace", "run", "--log-json", *options],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def lines(self) -> list[dict[str, object]]:
        # The last one may be half written.
        return [json.loads(line) for line in self.log.read_text().split("\n")[:-1]]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_after_the_handover_that_is_going_on(tmp_path, files, number):
    log, gate = tmp_path / "taken", tmp_path / "gate"
    take = (
        f"cat > /dev/null; echo begun >> {log}; "
        f"while ! test -e {gate}; do sleep 0.02; done; echo ended >> {log}"
    )
    (tmp_path / "take.sh").write_text(take)
    options = ["--apply", "--state", str(tmp_path / "state.db"), "--interval", "0.05"]
    loop = Process(
        tmp_path, *files, *options, "--solver", "greedy", "--to-command", f"sh {tmp_path}/take.sh"
    )
    until(lambda: log.exists() and "begun" in log.read_text())
    loop.process.send_signal(number)
    time.sleep(0.2)
    assert loop.process.poll() is None
    gate.touch()
    assert loop.process.wait(timeout=60) == 0
    assert log.read_text().split() == ["begun", "ended"]
    with Store(tmp_path / "state.db") as store:
        assert store.counts() == {"outbox": 0, "pending": 1, "delivered": 1}
    assert not list(tmp_path.glob("state.db-*"))
    assert not list((tmp_path / "state.db.receipts").glob("*.receipt"))


def test_a_signal_ends_the_loop_while_it_reads_the_cluster(tmp_path, files):
    begun = tmp_path / "begun"
    (tmp_path / "hang.sh").write_text(f"echo $$ > {begun}; sleep 300")
    given = [*files[:2], *files[4:], "--cluster-command", f"sh {tmp_path}/hang.sh"]
    loop = Process(tmp_path, *given, *applying(tmp_path))
    until(lambda: begun.exists() and begun.read_text().strip())
    assert loop.end(signal.SIGTERM) == 0
    assert read_fleet_state(tmp_path / "state.db") is None
    # Nothing is left running.
    until(lambda: not Path(f"/proc/{begun.read_text().strip()}").exists(), 10.0)


IMPATIENT = """
import os, signal, sys, threading
from heteroplace.cli import main
from heteroplace.loop import command, store

class Store(store.Store):
    def __init__(self, path):
        super().__init__(path)
        os.kill(os.getpid(), signal.SIGTERM)

store.Store = Store
code = main(sys.argv[1:])
stop = threading.Event()
with command._signals(stop), stop._cond:  # As while the main thread begins to wait.
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(code if stop.wait(60) else 5)
"""


def test_a_signal_ends_it_at_any_moment_since_the_state_is_in_use(tmp_path, files):
    ended = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "run", *files, *applying(tmp_path)],
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0
    assert read_fleet_state(tmp_path / "state.db") is None


def test_metrics_and_logs_of_a_process(tmp_path, files):
    pytest.importorskip("prometheus_client", reason="needs heteroplace[policy]")
    loop = Process(tmp_path, *files, *applying(tmp_path, "--listen", "127.0.0.1:0"))
    try:
        until(lambda: any(each.get("event") == "listening" for each in loop.lines()))
        (port,) = [each["port"] for each in loop.lines() if each.get("event") == "listening"]

        def scrape() -> dict[str, float]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                lines = answer.read().decode().splitlines()
            pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            return {name: float(value) for name, value in pairs}

        until(lambda: scrape()['heteroplace_cycles_total{outcome="done"}'] >= 3)
        found = scrape()
    finally:
        code = loop.end(signal.SIGTERM)
    assert code == 0
    assert found['heteroplace_decisions_total{action="out"}'] == 1
    assert found['heteroplace_decisions_total{action="hold"}'] >= 2
    assert found['heteroplace_target_capacity{role="serve",service="chat"}'] == 3
    assert found['heteroplace_unmet_capacity{role="serve",service="chat"}'] == 0
    assert found["heteroplace_actions_delivered_total"] == 1
    assert found["heteroplace_actions_pending"] == 1
    assert found['heteroplace_data_age_seconds{service="chat"}'] >= 0
    assert found['heteroplace_phase_seconds_count{phase="solve"}'] >= 3
    assert found["heteroplace_last_cycle_timestamp_seconds"] == pytest.approx(T0, abs=300)
    (decision,) = [each for each in loop.lines() if each.get("event") == "decision"]
    assert (decision["service"], decision["action"]) == ("chat", "out")
    assert decision["counts"] == {"serve": 3}
    assert [each["event"] for each in loop.lines() if "action_id" in each] == [
        "decision",
        "action_delivered",
    ]


def test_prometheus_that_is_down_does_not_end_the_loop(tmp_path, files):
    pytest.importorskip("httpx", reason="needs heteroplace[policy]")
    given = [*files[:4], "--metrics", "http://127.0.0.1:9", *applying(tmp_path)]
    loop = Process(tmp_path, *given)
    try:
        until(lambda: any(each.get("event") == "problem" for each in loop.lines()))
        until(lambda: read_state_text(tmp_path) is not None)
    finally:
        code = loop.end(signal.SIGTERM)
    assert code == 0
    assert list((tmp_path / "to").iterdir()) == []
    assert not any(each.get("event") == "cycle_failed" for each in loop.lines())


def read_state_text(tmp_path: Path) -> str | None:
    path = tmp_path / "state.db"
    return read_fleet_state(path) if path.exists() and os.path.getsize(path) else None
