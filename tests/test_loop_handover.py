"""Handing actions over: once, whole, in spite of killed processes and slow receivers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from heteroplace.errors import InputError
from heteroplace.loop import handover as handover_module
from heteroplace.loop.clock import Pace, SystemClock
from heteroplace.loop.handover import (
    CommandHandover,
    FolderHandover,
    HandoverError,
    Retrying,
)
from heteroplace.loop.store import Recorded


def action(number: int = 1, attempts: int = 0, text: str | None = None) -> Recorded:
    name = f"abc-{number:08d}"
    document = text if text is not None else json.dumps({"id": name, "text": "ß" * 100_000})
    return Recorded(number, name, 1.0, document, attempts, None, 0.0)


# --------------------------------------------------------------------------------------------
# A folder
# --------------------------------------------------------------------------------------------


def test_a_file_holds_the_action_and_is_written_once(tmp_path):
    handover = FolderHandover(tmp_path)
    assert handover.deliver(action()) == "delivered"
    (file,) = tmp_path.iterdir()
    assert file.name == "abc-00000001.json"
    assert file.read_bytes() == action().document.encode()
    before = file.stat()
    assert handover.deliver(action()) == "delivered"
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ino == before.st_ino


def test_a_file_that_the_receiver_moved_to_done_does_not_come_back(tmp_path):
    handover = FolderHandover(tmp_path)
    handover.deliver(action())
    (tmp_path / "done").mkdir()
    (tmp_path / "abc-00000001.json").rename(tmp_path / "done" / "abc-00000001.json")
    assert handover.deliver(action()) == "delivered"
    assert [each.name for each in tmp_path.iterdir()] == ["done"]


def test_a_file_of_another_action_is_not_overwritten(tmp_path):
    (tmp_path / "abc-00000001.json").write_text("mine")
    with pytest.raises(HandoverError, match="other content"):
        FolderHandover(tmp_path).deliver(action())
    assert (tmp_path / "abc-00000001.json").read_text() == "mine"


def test_what_a_killed_writer_left_is_replaced(tmp_path):
    (tmp_path / ".abc-00000001.json.tmp").write_text('{"half')
    FolderHandover(tmp_path).deliver(action())
    assert [each.name for each in tmp_path.iterdir()] == ["abc-00000001.json"]


def test_a_folder_must_be_there_and_a_lost_one_is_tried_again(tmp_path):
    for none in (tmp_path / "none", ""):
        with pytest.raises(InputError, match="is not a folder"):
            FolderHandover(none)
    folder = tmp_path / "folder"
    folder.mkdir()
    handover = FolderHandover(folder)
    folder.rmdir()
    with pytest.raises(HandoverError, match="cannot be written"):
        handover.deliver(action())
    folder.mkdir()
    assert handover.deliver(action()) == "delivered"


# --------------------------------------------------------------------------------------------
# A command
# --------------------------------------------------------------------------------------------


def script(tmp_path: Path, name: str, body: str) -> list[str]:
    file = tmp_path / name
    file.write_text("import json, os, sys, time, pathlib\n" + body)
    return [sys.executable, "-I", "-S", str(file)]


@pytest.fixture
def calls(tmp_path):
    return tmp_path / "calls.txt"


def taking(tmp_path: Path, calls: Path, end: str = "") -> list[str]:
    """A receiver that notes the ids it gets."""
    return script(
        tmp_path,
        "take.py",
        f"document = json.load(sys.stdin)\n"
        f"assert document['id'] == os.environ['HETEROPLACE_ACTION_ID']\n"
        f"with open({str(calls)!r}, 'a') as file:\n"
        f"    file.write(document['id'] + '\\n')\n{end}\n",
    )


def noted(calls: Path) -> list[str]:
    return calls.read_text().split() if calls.exists() else []


def test_a_command_gets_the_action_and_leaves_a_receipt(tmp_path, calls):
    handover = CommandHandover(taking(tmp_path, calls), tmp_path / "receipts")
    assert handover.deliver(action()) == "delivered"
    assert noted(calls) == ["abc-00000001"]
    # As after a crash before the store knew of it.
    again = CommandHandover(taking(tmp_path, calls), tmp_path / "receipts")
    assert again.deliver(action(attempts=1)) == "delivered"
    assert noted(calls) == ["abc-00000001"]
    again.tidy([action().id])
    assert (tmp_path / "receipts" / "abc-00000001.receipt").exists()
    again.tidy([])
    assert not (tmp_path / "receipts" / "abc-00000001.receipt").exists()


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("sys.exit('the API server is away')", "exit code 1: the API server is away"),
        ("os.kill(os.getpid(), 9)", "exit code 137"),
    ],
)
def test_a_failing_command_is_tried_again(tmp_path, calls, end, message):
    handover = CommandHandover(taking(tmp_path, calls, end), tmp_path / "receipts")
    for _ in range(2):
        with pytest.raises(HandoverError, match=message):
            handover.deliver(action())
    assert noted(calls) == ["abc-00000001"] * 2


def test_a_command_can_refuse_for_good(tmp_path, calls, caplog):
    refusing = taking(tmp_path, calls, "sys.stderr.write('no such service'); sys.exit(65)")
    assert CommandHandover(refusing, tmp_path / "receipts").deliver(action()) == "refused"
    assert "no such service" in caplog.text


def test_a_slow_command_is_ended(tmp_path, calls):
    file = tmp_path / "pid"
    slow = script(
        tmp_path, "slow.py", f"open({str(file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    with pytest.raises(HandoverError, match=r"exit code 124: took longer than 0\.5 s"):
        CommandHandover(slow, tmp_path / "receipts", timeout=0.5).deliver(action())
    # It may have been too slow to say who it is.
    number = file.read_text() if file.exists() else ""
    assert not number or not Path(f"/proc/{number}").exists()
    assert [each.name for each in (tmp_path / "receipts").iterdir()] == ["lock"]


@pytest.mark.parametrize("code", [124, 125, 127])
def test_codes_of_a_command_are_not_taken_for_the_couriers(tmp_path, calls, code):
    ending = taking(tmp_path, calls, f"sys.exit({code})")
    with pytest.raises(HandoverError, match=rf"exit code {code}$"):
        CommandHandover(ending, tmp_path / "receipts").deliver(action())


def test_a_receipt_that_cannot_be_written_is_found_out_before_the_command_runs(tmp_path, calls):
    handover = CommandHandover(taking(tmp_path, calls), tmp_path / "receipts")
    (tmp_path / "receipts" / "abc-00000001.receipt.tmp").mkdir()
    with pytest.raises(HandoverError, match=r"was not run: .*receipt\.tmp cannot be written"):
        handover.deliver(action())
    assert noted(calls) == []


def test_receipts_that_went_away_are_a_failure_to_try_again(tmp_path, calls):
    handover = CommandHandover(taking(tmp_path, calls), tmp_path / "receipts")
    (tmp_path / "receipts").rmdir()
    with pytest.raises(HandoverError, match="receipts/lock cannot be used: No such file"):
        handover.deliver(action())
    (tmp_path / "receipts").mkdir()
    assert handover.deliver(action()) == "delivered"


def test_a_courier_that_does_not_end_is_left_alone_and_nothing_runs_beside_it(
    tmp_path, calls, monkeypatch
):
    monkeypatch.setattr(handover_module, "GRACE", 0.0)
    gate, ended = tmp_path / "gate", tmp_path / "ended"
    # As if the courier came too late for its own timeout.
    slow = tmp_path / "courier.py"
    slow.write_text(
        "import os, sys, time\n"
        f"open({str(calls)!r}, 'a').write('x ')\n"
        f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        f"open({str(ended)!r}, 'w').close()\n"
    )
    monkeypatch.setattr(handover_module.courier, "__file__", str(slow))
    handover = CommandHandover(["true"], tmp_path / "receipts", timeout=0.2)
    for _ in range(2):
        with pytest.raises(HandoverError, match="still runs"):
            handover.deliver(action())
    gate.touch()
    until = time.monotonic() + 60
    while not ended.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert noted(calls) == ["x"]


def test_a_program_that_is_not_there_is_refused_at_once(tmp_path):
    for words in (["no-such-program"], [str(tmp_path)], []):
        with pytest.raises(InputError, match="no program") as refused:
            CommandHandover(words, tmp_path / "receipts")
        assert refused.value.path == "--to-command"
    with pytest.raises(InputError, match="no program") as refused:
        CommandHandover(["true"], tmp_path / "receipts", ask=["no-such-program"])
    assert refused.value.path == "--ask"


def test_a_program_that_goes_away_later_is_a_failure_to_try_again(tmp_path):
    program = tmp_path / "take"
    program.write_text("#!/bin/sh\ncat > /dev/null\n")
    program.chmod(0o755)
    handover = CommandHandover([str(program)], tmp_path / "receipts")
    assert handover.deliver(action(1)) == "delivered"
    program.unlink()
    with pytest.raises(HandoverError, match="could not be started"):
        handover.deliver(action(2))


@pytest.mark.parametrize(
    ("code", "outcome"), [("0", "known"), ("1", "new"), ("3", "neither 0 .* nor 1")]
)
def test_the_receiver_is_asked_before_a_second_attempt(tmp_path, calls, code, outcome):
    ask = script(
        tmp_path,
        "ask.py",
        f"assert os.environ['HETEROPLACE_ACTION_ID'] == 'abc-00000001'\nsys.exit({code})",
    )
    handover = CommandHandover(taking(tmp_path, calls), tmp_path / "receipts", ask=ask)
    if outcome == "known":
        assert handover.deliver(action(attempts=1)) == "delivered"
        assert noted(calls) == []
    elif outcome == "new":
        assert handover.deliver(action(attempts=1)) == "delivered"
        assert noted(calls) == ["abc-00000001"]
    else:
        with pytest.raises(HandoverError, match=outcome):
            handover.deliver(action(attempts=1))
        assert noted(calls) == []


def test_nobody_is_asked_before_the_first_attempt(tmp_path, calls):
    ask = script(tmp_path, "ask.py", "sys.exit(0)")
    handover = CommandHandover(taking(tmp_path, calls), tmp_path / "receipts", ask=ask)
    handover.deliver(action(attempts=0))
    assert noted(calls) == ["abc-00000001"]


DELIVERING = """
import json, sys
from heteroplace.loop.handover import CommandHandover
from heteroplace.loop.store import Recorded
command, receipts, document = json.loads(sys.argv[1])
name = json.loads(document)["id"]
CommandHandover(command, receipts).deliver(Recorded(1, name, 1.0, document, 0, None, 0.0))
"""


def test_a_command_outlives_a_killed_loop_and_is_not_run_again(tmp_path, calls):
    gate = tmp_path / "gate"
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    command, receipts = taking(tmp_path, calls, wait), tmp_path / "receipts"
    document = json.dumps({"id": action().id})
    given = json.dumps([command, str(receipts), document])
    loop = subprocess.Popen([sys.executable, "-c", DELIVERING, given])
    until = time.monotonic() + 60
    while not noted(calls):
        assert time.monotonic() < until
        time.sleep(0.01)
    loop.send_signal(signal.SIGKILL)
    loop.wait()
    # The next loop waits for the command that still runs, and takes its receipt.
    outcome: list[str] = []
    handover = CommandHandover(command, receipts)
    thread = threading.Thread(
        target=lambda: outcome.append(handover.deliver(action(attempts=1, text=document)))
    )
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert outcome == []
    gate.touch()
    thread.join(60)
    assert outcome == ["delivered"]
    assert noted(calls) == ["abc-00000001"]


# --------------------------------------------------------------------------------------------
# Attempts and pace
# --------------------------------------------------------------------------------------------


class FakeClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        self.waits.append(seconds)
        self.now += max(0.0, seconds)
        return stop.is_set()


class Flaky:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.seen: list[int] = []

    def deliver(self, action: Recorded) -> str:
        self.seen.append(action.attempts)
        if len(self.seen) <= self.failures:
            raise HandoverError("not now")
        return "delivered"

    def tidy(self, open_actions) -> None:
        pass


def test_attempts_wait_longer_and_longer():
    clock, flaky, begun = FakeClock(), Flaky(3), []
    retrying = Retrying(flaky, clock, attempts=5, backoff=1.0, longest=3.0)
    assert retrying.deliver(action(), threading.Event(), begun.append) == "delivered"
    assert flaky.seen == [0, 1, 2, 3]
    assert begun == [action().id] * 4
    for wait, nominal in zip(clock.waits, (1.0, 2.0, 3.0), strict=True):
        assert 0.75 * nominal <= wait <= 1.25 * nominal


def test_attempts_end():
    flaky = Flaky(10)
    with pytest.raises(HandoverError):
        Retrying(flaky, FakeClock(), attempts=3).deliver(action(), threading.Event(), str)
    assert len(flaky.seen) == 3


def test_no_attempt_follows_a_request_to_stop():
    flaky, stop = Flaky(10), threading.Event()
    stop.set()
    with pytest.raises(HandoverError):
        Retrying(flaky, FakeClock(), attempts=3).deliver(action(), stop, str)
    assert len(flaky.seen) == 1


def test_cycles_keep_their_beat_and_skip_what_they_missed():
    clock = FakeClock()
    pace, stop = Pace(clock, 10.0), threading.Event()
    starts = []
    for work in (1.0, 4.0, 25.0, 2.0, 10.0, 0.0):
        starts.append(clock.now - 1000.0)
        clock.now += work
        assert not pace.wait(stop)
    assert starts == [0.0, 10.0, 20.0, 50.0, 60.0, 80.0]
    stop.set()
    assert pace.wait(stop)


def test_the_system_clock_stops_waiting_when_asked():
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    assert SystemClock().wait(60.0, stop)
    assert not SystemClock().wait(-1.0, threading.Event())
