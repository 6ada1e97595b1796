"""The state file: what is committed, and what happens when the file cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from heteroplace.errors import InputError
from heteroplace.loop.statefile import APPLICATION, SCHEMA
from heteroplace.loop.store import (
    KEPT_ACTIONS,
    Entry,
    Store,
    read_fleet_state,
    read_history,
)


def entry(number: int, action_id: str | None = None) -> Entry:
    return Entry(
        at=float(number),
        service=f"s{number}",
        action="out",
        reason=f"reason {number}",
        decision="{}",
        action_id=action_id,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "state.db"
    with Store(path) as store:
        for number in range(50):
            _, name = store.next_action()
            store.commit(float(number), f'{{"n": {number}}}', [entry(number, name)], f"doc {name}")
            if number % 2:
                store.delivered(name, float(number))
    return path


@pytest.fixture
def filled(path, template):
    shutil.copyfile(template, path)
    return path


def contents(path: Path) -> dict[str, bytes]:
    """The file and what SQLite keeps beside it, but for its shared memory and our lock."""
    return {
        each.name: each.read_bytes()
        for each in path.parent.iterdir()
        if each.is_file() and not each.name.endswith(("-shm", ".lock"))
    }


def test_state_action_and_history_are_one_transaction(path):
    with Store(path) as store:
        assert store.fleet_state is None
        sequence, name = store.next_action()
        with pytest.raises(InputError, match=r"cannot be used|damaged"):
            # The last of the statements fails: an entry without a service.
            store.commit(1.0, "{}", [Entry(1.0, None, "out", "r", "{}")], "doc")  # type: ignore[arg-type]
        assert store.fleet_state is None
        assert store.outbox() == []
        assert store.next_action() == (sequence, name)
        made = store.commit(1.0, '{"a": 1}', [entry(1, name)], "doc")
        assert made is not None
        assert (made.sequence, made.id, made.document) == (sequence, name, "doc")
        assert [each.id for each in store.outbox()] == [name]


def test_actions_keep_their_order_and_ids_over_a_restart(path):
    names = []
    with Store(path) as store:
        for number in range(12):
            _, name = store.next_action()
            store.commit(float(number), "{}", [], f"doc {number}")
            names.append(name)
        store.begin_attempt(names[0])
        store.delivered(names[0], 20.0)
    with Store(path) as store:
        assert [each.id for each in store.outbox()] == names[1:] == sorted(names)[1:]
        assert [each.document for each in store.outbox()] == [f"doc {n}" for n in range(1, 12)]
        assert [(each.id, each.attempts) for each in store.pending()] == [(names[0], 1)]
        assert store.next_action()[0] == 13
        assert store.counts() == {"outbox": 11, "pending": 1, "delivered": 1}


def test_two_states_never_share_ids(tmp_path):
    with Store(tmp_path / "a") as first, Store(tmp_path / "b") as second:
        assert first.next_action()[1] != second.next_action()[1]


def test_pending_actions_wait_until_they_are_settled(path):
    with Store(path) as store:
        _, name = store.next_action()
        store.commit(1.0, "{}", [], "doc")
        assert store.pending() == []
        store.delivered(name, 2.0)
        store.commit(3.0, "{}", waited={name: 7.5})
        assert store.pending()[0].waited == 7.5
        store.commit(4.0, "{}", settled={name: "shown"})
        assert store.pending() == []
        assert store.counts()["delivered"] == 1


def test_refused_actions_leave_the_outbox_with_the_state_in_one_step(path):
    with Store(path) as store:
        _, name = store.next_action()
        store.commit(1.0, '{"with": 1}', [], "doc")
        store.refused(name, 2.0)
        assert store.outbox() == store.pending() == []
        assert store.fleet_state is None
        store.commit(3.0, '{"before": 1}')
        sequence, name = store.next_action()
        assert sequence == 2
        store.commit(4.0, '{"with": 2}', [], "doc")
        store.refused(name, 5.0)
        assert store.fleet_state == '{"before": 1}'


def to_schema_1(path: Path) -> None:
    """What the release before wrote."""
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE action DROP COLUMN before")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_a_state_of_schema_1_is_read_as_it_is_and_brought_up_to_date(path):
    with Store(path) as store:
        store.commit(1.0, '{"n": 1}', [entry(1)], "doc")
        (waiting,) = store.outbox()
    to_schema_1(path)
    before = contents(path)
    assert read_history(path, 5) == [entry(1)]
    assert read_fleet_state(path) == '{"n": 1}'
    dry = Store.in_memory(path)
    assert dry.outbox() == [waiting]
    dry.close()
    assert contents(path) == before
    with Store(path) as store:
        assert store._value("PRAGMA user_version") == SCHEMA
        assert store.outbox() == [waiting]
        # The state before it was not kept then, so that the one there stays.
        store.refused(waiting.id, 2.0)
        assert store.fleet_state == '{"n": 1}'
    with Store(path) as store:
        assert store.outbox() == []


def test_the_history_keeps_the_last_decisions_and_numbers_count_on(path):
    with Store(path) as store:
        for number in range(KEPT_ACTIONS + 20):
            _, name = store.next_action()
            store.commit(float(number), "{}", [entry(number, name)], "doc", keep=7)
            store.delivered(name, float(number))
            store.commit(float(number), "{}", settled={name: "shown"}, keep=7)
        assert [each.at for each in store.history(100)] == [float(113 + n) for n in range(7)]
        assert [each.at for each in store.history(100, "s115")] == [115.0]
        assert store.counts()["delivered"] == KEPT_ACTIONS
        assert store.next_action()[0] == KEPT_ACTIONS + 21


def test_history_gives_the_last_ones_in_order_while_the_loop_writes(filled):
    with Store(filled) as store:
        store.commit(99.0, "{}", [entry(99)])
        found = read_history(filled, 3)
        assert [each.service for each in found] == ["s48", "s49", "s99"]
        assert found[0].action_id is not None
        assert found[-1].action_id is None
        assert read_fleet_state(filled) == "{}"


def test_a_second_writer_is_refused_and_may_come_later(path):
    with Store(path), pytest.raises(InputError, match=rf"in use.*process {os.getpid()}") as refused:
        Store(path)
    assert refused.value.path == str(path)
    with Store(path):
        pass


def test_the_lock_of_a_killed_process_is_free(filled):
    program = (
        "import os, signal, sys\n"
        "from heteroplace.loop.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "store.commit(1.0, 'from the dead')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(filled)], check=False)
    assert ended.returncode == -9
    with Store(filled) as store:
        assert store.fleet_state == "from the dead"


def flip(path: Path, start: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)


def no_database(path: Path) -> None:
    path.write_text("my notes, not a state\n")


def damaged_header(path: Path) -> None:
    flip(path, 16, b"\xff" * 60)


def damaged_pages(path: Path) -> None:
    flip(path, 4096, b"\x5a" * (path.stat().st_size - 4096))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def damaged_index(path: Path) -> None:
    """An index that lost an entry: only the integrity check sees it."""
    with sqlite3.connect(path) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'history_of_service'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    # The number of cells in the page's header, two bytes at offset 3.
    flip(path, (page - 1) * size + 3, (3).to_bytes(2, "big"))


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_database, "is not a state file"),
        (damaged_header, "is damaged|cannot be used"),
        (damaged_pages, "is damaged"),
        (cut_off, "is damaged"),
        (damaged_index, "is damaged"),
        (newer, f"has schema {SCHEMA + 1}, this release reads 1 to {SCHEMA}"),
        (foreign, "another program"),
    ],
)
@pytest.mark.parametrize(
    "use", [Store, Store.in_memory, lambda path: read_history(path, 5), read_fleet_state]
)
def test_a_file_that_cannot_be_used_is_named_and_kept(filled, spoil, message, use):
    spoil(filled)
    before = contents(filled)
    with pytest.raises(InputError, match=message) as refused:
        use(filled)
    assert refused.value.path == str(filled)
    assert contents(filled) == before


def test_a_file_that_is_damaged_while_it_is_in_use_is_a_clear_error(filled):
    with Store(filled) as store:
        damaged_pages(filled)
        store._connection.execute("PRAGMA shrink_memory")
        with pytest.raises(InputError, match=r"damaged|cannot be used"):
            store.history(1000)


@pytest.mark.parametrize("use", [lambda path: read_history(path, 5), read_fleet_state])
def test_reading_a_state_that_is_not_there_makes_no_file(path, use):
    with pytest.raises(InputError, match="holds no state"):
        use(path)
    assert list(path.parent.iterdir()) == []


def test_places_that_cannot_be_written_are_named(tmp_path):
    for place in (tmp_path, tmp_path / "no" / "folder" / "state.db"):
        with pytest.raises(InputError, match="--state") as refused:
            Store(place)
        assert refused.value.path == str(place)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError):
        Store(file / "state.db")
    with pytest.raises(InputError):
        Store("")


@pytest.mark.skipif(os.geteuid() == 0, reason="rights do not bind the superuser")
def test_a_folder_without_rights_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        Store(tmp_path / "state.db")


def test_a_dry_store_begins_with_the_file_and_leaves_it(filled):
    before = contents(filled)
    store = Store.in_memory(filled)
    assert store.fleet_state == '{"n": 49}'
    assert store.next_action()[0] == 51
    store.commit(1.0, "changed", [entry(1)], "doc")
    assert store.fleet_state == "changed"
    store.close()
    assert contents(filled) == before
    assert read_fleet_state(filled) == '{"n": 49}'


def test_a_dry_store_may_begin_with_nothing(path):
    for where in (None, path):
        store = Store.in_memory(where)
        assert store.fleet_state is None
        assert store.next_action()[0] == 1
        store.close()
    assert list(path.parent.iterdir()) == []


def test_the_file_says_whose_it_is_and_survives_a_power_failure(path):
    with Store(path) as store:
        value = store._value
        assert value("PRAGMA application_id") == APPLICATION
        assert value("PRAGMA journal_mode") == "wal"
        assert value("PRAGMA synchronous") == 2


def test_a_file_without_its_first_transaction_is_as_good_as_new(path):
    path.touch()
    with Store(path) as store:
        assert store.fleet_state is None
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert path.stat().st_size > 0
    with Store(path) as store:
        assert store.next_action()[0] == 1
