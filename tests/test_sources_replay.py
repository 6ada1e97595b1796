"""Replay of recorded metrics: formats, order, duplicates, growth of the file."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_fleet import fleet_of

from heteroplace.errors import InputError
from heteroplace.policy.readings import Reading, Snapshot
from heteroplace.policy.sources import source_from
from heteroplace.policy.sources.config import ReplayMetrics
from heteroplace.policy.sources.replay import ReplaySource
from heteroplace.policy.sources.samples import BadLineError, parse_json_line

FLEET = fleet_of("chat", "code")


def line(at: Any, value: Any, service: str = "chat", signal: str = "decode_tps") -> str:
    return json.dumps({"at": at, "service": service, "signal": signal, "value": value})


def write(path: Path, lines: Iterable[str], end: str = "\n") -> str:
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return str(path)


def replay(path: str, **settings: Any) -> ReplaySource:
    return ReplaySource(ReplayMetrics(path=path, **settings))


def reading(snapshot: Snapshot, service: str = "chat", signal: str = "decode_tps") -> Any:
    found = snapshot.readings[service].get(signal)
    return None if found is None else (found.at, found.value)


def problem(snapshot: Snapshot, service: str = "chat", signal: str = "decode_tps") -> str | None:
    found = [
        each.message
        for each in snapshot.problems
        if (each.service, each.signal) == (service, signal)
    ]
    assert len(found) <= 1
    return found[0] if found else None


# --------------------------------------------------------------------------------------------
# Formats
# --------------------------------------------------------------------------------------------


def test_json_lines_in_both_forms_with_both_kinds_of_time(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        [
            line(100, 5),
            line("1970-01-01T00:01:50Z", 6.5),
            "",
            json.dumps(
                {
                    "at": "1970-01-01T01:02:00+01:00",
                    "service": "code",
                    "signals": {"decode_tps": 7, "ttft": 0.25},
                }
            ),
        ],
    )
    snapshot = replay(path).read(FLEET, 1000)
    assert reading(snapshot) == (110, 6.5)
    assert reading(snapshot, "code") == (120, 7)
    assert reading(snapshot, "code", "ttft") == (120, 0.25)
    assert snapshot.now == 1000
    assert snapshot.problems == ()


def test_csv_with_columns_in_any_order_and_quotes(tmp_path):
    path = write(
        tmp_path / "m.csv",
        [
            "\ufeffservice,value,at,signal",
            '"chat",5,100,decode_tps',
            "code,1e3,1970-01-01T00:01:41Z,decode_tps\r",
        ],
    )
    snapshot = replay(path).read(FLEET, 1000)
    assert reading(snapshot) == (100, 5)
    assert reading(snapshot, "code") == (101, 1000)


def test_a_name_with_a_comma_in_csv(tmp_path):
    path = write(tmp_path / "m.csv", ["at,service,signal,value", '1,"a, b",decode_tps,2'])
    assert reading(replay(path).read(fleet_of("a, b"), 5), "a, b") == (1, 2)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "JSON"),
        ("[1]", "JSON object"),
        ('{"at": 1, "service": "chat", "signal": "decode_tps"}', '"value": is missing'),
        ('{"service": "chat", "signal": "decode_tps", "value": 1}', '"at": is missing'),
        ('{"at": 1, "at": 2, "service": "chat", "signal": "ttft", "value": 1}', "'at' twice"),
        ('{"at": 1, "service": "chat", "signals": {"ttft": 1, "ttft": 2}}', "'ttft' twice"),
        ('{"at": 1, "service": "chat", "signal": "ttft", "value": 1, "x": 1}', "'x': unknown"),
        ('{"at": 1, "service": "chat", "signals": {}, "value": 1}', "one of the two forms"),
        ('{"at": 1, "service": "chat", "signals": [1]}', "object of numbers"),
        ('{"at": 1, "service": "", "signal": "ttft", "value": 1}', '"service": must be a name'),
        ('{"at": 1, "service": 7, "signal": "ttft", "value": 1}', '"service": must be a name'),
        (
            '{"at": 1, "service": "chat", "signal": "ttft", "value": "1"}',
            '"value": must be a number',
        ),
        (
            '{"at": 1, "service": "chat", "signal": "ttft", "value": true}',
            '"value": must be a number',
        ),
        ('{"at": true, "service": "chat", "signal": "ttft", "value": 1}', '"at"'),
        ('{"at": NaN, "service": "chat", "signal": "ttft", "value": 1}', '"at"'),
        ('{"at": -1, "service": "chat", "signal": "ttft", "value": 1}', '"at"'),
        ('{"at": 1740000000000, "service": "chat", "signal": "ttft", "value": 1}', "milliseconds"),
        ('{"at": "2025-01-01T00:00:00", "service": "chat", "signal": "ttft", "value": 1}', "zone"),
        ('{"at": "yesterday", "service": "chat", "signal": "ttft", "value": 1}', '"at"'),
        ('{"at": 1, "service": "chat", "signal": "ttft", "value": ' + "9" * 5000 + "}", "digits"),
        ("[" * 100_000, "nested"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, says):
    path = write(tmp_path / "m.jsonl", [line(1, 1), bad, line(2, 2)])
    source = replay(path)
    with pytest.raises(InputError) as error:
        source.read(FLEET, 10)
    assert error.value.path == f"{path}, line 2"
    assert says in error.value.message
    assert reading(source.read(FLEET, 10)) == (2, 2), "the next call goes on after the line"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("1,chat,decode_tps", "3 cells"),
        ("x,chat,decode_tps,1", '"at"'),
        ("1,chat,decode_tps,1_0", '"value"'),
        ("1,chat,decode_tps,many", '"value"'),
        ('1,chat,"decode_tps,1', "CSV"),
        ("1,,decode_tps,1", '"service"'),
        ("inf,chat,decode_tps,1", '"at"'),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path, bad, says):
    path = write(tmp_path / "m.csv", ["at,service,signal,value", "1,chat,decode_tps,1", bad])
    with pytest.raises(InputError) as error:
        replay(path).read(FLEET, 10)
    assert error.value.path == f"{path}, line 3"
    assert says in error.value.message


@pytest.mark.parametrize(
    "header", ["at,service,value", "at,service,signal,value,more", "1,chat,ttft,2", ""]
)
def test_a_wrong_csv_header_is_refused_at_once(tmp_path, header):
    path = write(tmp_path / "m.csv", [header, "1,chat,decode_tps,1"])
    with pytest.raises(InputError, match=r"line 1.*at,service,signal,value"):
        replay(path)


def test_files_that_cannot_be_read_are_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        replay(str(tmp_path / "missing.jsonl"))
    with pytest.raises(InputError, match="regular file"):
        replay(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        replay(str(tmp_path / "pipe"))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match="is empty"):
        replay(str(tmp_path / "empty.csv"))


def test_text_that_is_not_utf8_and_lines_without_end(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        line(1, 1).encode() + b"\n\xff\xfe\n" + b"x" * (3 * 2**20) + b"\n" + line(2, 2).encode()
    )
    source = replay(str(path))
    with pytest.raises(InputError, match="line 2: is not UTF-8"):
        source.read(FLEET, 10)
    with pytest.raises(InputError, match="line 3: is longer than"):
        source.read(FLEET, 10)
    assert reading(source.read(FLEET, 10)) == (2, 2)


def test_the_format_can_be_named(tmp_path):
    path = write(tmp_path / "metrics.log", ["at,service,signal,value", "1,chat,decode_tps,1"])
    assert reading(replay(path, format="csv").read(FLEET, 10)) == (1, 1)
    with pytest.raises(InputError, match="line 1"):
        replay(path).read(FLEET, 10)


# --------------------------------------------------------------------------------------------
# Time, order and contradictions
# --------------------------------------------------------------------------------------------


def test_the_newest_sample_that_is_not_after_now(tmp_path):
    source = replay(write(tmp_path / "m.jsonl", [line(at, at) for at in (10, 20, 30)]))
    found = [reading(source.read(FLEET, now)) for now in (5, 10, 19.9, 20, 25, 30, 1e6)]
    assert found == [None, *((at, at) for at in (10, 10, 20, 20, 30, 30))]


def test_no_sample_yet_is_a_problem_of_the_signals_that_are_needed(tmp_path):
    source = replay(write(tmp_path / "m.jsonl", [line(10, 1)]))
    snapshot = source.read(FLEET, 5)
    assert "no decode_tps of 'chat' up to 1970-01-01T00:00:05Z" in problem(snapshot)
    assert len(snapshot.problems) == 2
    snapshot = source.read(FLEET, 10)
    assert problem(snapshot) is None
    assert problem(snapshot, "code") is not None


def test_late_samples_do_not_replace_newer_ones(tmp_path):
    source = replay(
        write(tmp_path / "m.jsonl", [line(20, 2), line(10, 1), line(30, 3), line(25, 9)])
    )
    assert reading(source.read(FLEET, 22)) == (20, 2)
    assert reading(source.read(FLEET, 27)) == (25, 9), "out of order within the lookahead"
    assert reading(source.read(FLEET, 40)) == (30, 3)


def test_the_same_sample_twice_is_one_and_another_value_is_a_contradiction(tmp_path):
    source = replay(
        write(
            tmp_path / "m.jsonl",
            [line(10, 1), line(10, 1.0), line(20, 2), line(20, 3), line(30, 4), line(20, 5)],
        )
    )
    assert reading(source.read(FLEET, 15)) == (10, 1)
    snapshot = source.read(FLEET, 25)
    assert reading(snapshot) is None
    assert problem(snapshot) == (
        "decode_tps of 'chat' contradicts itself: both 2 and 5 at 1970-01-01T00:00:20Z."
    )
    snapshot = source.read(FLEET, 30)
    assert reading(snapshot) == (30, 4), "a newer sample settles it"
    assert problem(snapshot) is None


@pytest.mark.parametrize("missing", ["NaN", "null", "Infinity", "-Infinity"])
def test_a_newest_sample_without_a_number_is_a_problem(tmp_path, missing):
    text = f'{{"at": 20, "service": "chat", "signal": "decode_tps", "value": {missing}}}'
    source = replay(write(tmp_path / "m.jsonl", [line(10, 1), text, line(30, 3)]))
    assert reading(source.read(FLEET, 15)) == (10, 1)
    snapshot = source.read(FLEET, 25)
    assert reading(snapshot) is None
    assert "was not measured" in problem(snapshot)
    assert reading(source.read(FLEET, 30)) == (30, 3)


def test_an_empty_csv_value_is_a_missing_one(tmp_path):
    source = replay(write(tmp_path / "m.csv", ["at,service,signal,value", "1,chat,decode_tps,"]))
    assert "was not measured" in problem(source.read(FLEET, 5))


def test_a_clock_that_goes_back_gives_what_was_known_then(tmp_path, caplog):
    source = replay(write(tmp_path / "m.jsonl", [line(at, at) for at in range(10, 100, 10)]))
    assert reading(source.read(FLEET, 85)) == (80, 80)
    with caplog.at_level(logging.WARNING):
        assert reading(source.read(FLEET, 25)) == (20, 20)
    assert "the clock went back by 60.000 s" in caplog.text
    assert reading(source.read(FLEET, 85)) == (80, 80)


def test_a_file_that_is_gone_when_it_is_read_again_is_named_until_it_is_back(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [line(at, at) for at in range(10, 100, 10)]
    source = replay(write(path, lines))
    assert reading(source.read(FLEET, 85)) == (80, 80)
    path.unlink()
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be read"):
            source.read(FLEET, 25)
    assert reading(source.read(FLEET, 95)) == (90, 90)
    write(path, lines)
    assert reading(source.read(FLEET, 25)) == (20, 20)


def test_one_line_far_ahead_does_not_hold_up_the_others(tmp_path):
    source = replay(
        write(tmp_path / "m.jsonl", [line(10, 1), line(1e10, 0), line(20, 2), line(30, 3)])
    )
    assert reading(source.read(FLEET, 20)) == (20, 2)
    assert reading(source.read(FLEET, 30)) == (30, 3)


def test_unknown_names_are_told_once_and_not_fatal(tmp_path, caplog):
    path = write(
        tmp_path / "m.jsonl",
        [line(1, 1, "old"), line(2, 1, "old"), line(3, 1, "chat", "mood"), line(4, 2)],
    )
    with caplog.at_level(logging.WARNING):
        assert reading(replay(path).read(FLEET, 10)) == (4, 2)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{path}: service 'old' is not in the fleet",
        f"{path}: signal 'mood' is not in the fleet",
    ]


def test_a_signal_of_the_fleet_is_read(tmp_path):
    fleet = fleet_of("chat", signals=[{"name": "queue", "kind": "latency"}])
    path = write(tmp_path / "m.jsonl", [line(1, 8, "chat", "queue")])
    assert reading(replay(path).read(fleet, 5), "chat", "queue") == (1, 8)


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 2), st.sampled_from(["chat", "code"])),
        max_size=40,
    ),
    st.lists(st.integers(0, 22), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_order_within_the_lookahead_gives_what_sorting_would(
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[tuple[int, int, str]],
    times: list[int],
    random: random.Random,
) -> None:
    shuffled = random.sample(samples, len(samples))
    path = tmp_path_factory.mktemp("replay") / "m.jsonl"
    source = replay(write(path, [line(at, value, name) for at, value, name in shuffled]))
    for now in sorted(times):
        snapshot = source.read(FLEET, now)
        for name in ("chat", "code"):
            mine = [(at, value) for at, value, of in samples if of == name and at <= now]
            newest = max((at for at, _ in mine), default=None)
            values = {value for at, value in mine if at == newest}
            expected = (newest, *values) if len(values) == 1 else None
            assert reading(snapshot, name) == expected
            assert (problem(snapshot, name) is None) == (expected is not None)


# --------------------------------------------------------------------------------------------
# Large and growing files
# --------------------------------------------------------------------------------------------


class CountingFile:
    """Counts the bytes that are read of a file."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.bytes = inner, 0

    def read(self, size: int) -> bytes:
        chunk: bytes = self.inner.read(size)
        self.bytes += len(chunk)
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_large_file_is_read_once_and_only_as_far_as_needed(tmp_path):
    path = write(tmp_path / "m.jsonl", [line(at, at) for at in range(60_000)])
    size = os.path.getsize(path)
    source = replay(path, lookahead=10)
    counted = source._file._file = CountingFile(source._file._file)
    assert reading(source.read(FLEET, 100)) == (100, 100)
    assert counted.bytes < size / 20
    for now in range(200, 60_100, 100):
        source.read(FLEET, now)
    assert counted.bytes == size
    assert reading(source.read(FLEET, 1e6)) == (59_999, 59_999)
    assert len(source._ahead) == 0


def test_memory_stays_bounded_where_all_lines_are_ahead(tmp_path):
    source = replay(
        write(tmp_path / "m.jsonl", [line(10 + at, at) for at in range(5000)]), lookahead=50
    )
    for now in range(5):
        assert reading(source.read(FLEET, now)) is None
        assert len(source._ahead) == 50


def test_following_waits_for_the_end_of_the_last_line(tmp_path):
    path = tmp_path / "m.jsonl"
    whole = line(20, 2)
    write(path, [line(10, 1), whole[:25]], end="")
    source = replay(str(path), follow=True)
    assert reading(source.read(FLEET, 100)) == (10, 1)
    with path.open("a") as file:
        file.write(whole[25:])
    assert reading(source.read(FLEET, 100)) == (10, 1)
    with path.open("a") as file:
        file.write("\n" + line(30, 3) + "\n")
    assert reading(source.read(FLEET, 100)) == (30, 3)


def test_without_following_the_last_line_needs_no_end(tmp_path):
    path = tmp_path / "m.jsonl"
    assert reading(replay(write(path, [line(10, 1), line(20, 2)], end="")).read(FLEET, 100)) == (
        20,
        2,
    )
    write(path, [line(10, 1), line(20, 2)[:25]], end="")
    with pytest.raises(InputError, match="line 2"):
        replay(str(path)).read(FLEET, 100)


def test_following_copes_with_a_bad_line_that_is_complete(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [line(10, 1), "oops"])
    source = replay(str(path), follow=True)
    with pytest.raises(InputError, match="line 2"):
        source.read(FLEET, 100)
    with path.open("a") as file:
        file.write(line(20, 2) + "\n")
    assert reading(source.read(FLEET, 100)) == (20, 2)


@pytest.mark.parametrize("how", ["renamed", "cut"])
def test_following_a_file_that_is_replaced(tmp_path, how):
    path = tmp_path / "m.csv"
    header = "at,service,signal,value"
    write(path, [header, "10,chat,decode_tps,1", "20,chat,decode_tps,2"])
    source = replay(str(path), follow=True)
    assert reading(source.read(FLEET, 100)) == (20, 2)
    if how == "renamed":
        with path.open("a") as file:
            file.write("30,chat,decode_tps,3\n")
        path.rename(tmp_path / "m.csv.1")
        assert reading(source.read(FLEET, 100)) == (30, 3), "the rest of the old file counts"
    write(path, [header, "40,code,decode_tps,4"])
    snapshot = source.read(FLEET, 100)
    assert reading(snapshot, "code") == (40, 4)
    assert reading(snapshot) == ((30, 3) if how == "renamed" else (20, 2))


def test_following_an_empty_file_until_it_has_a_header(tmp_path):
    path = tmp_path / "m.csv"
    path.touch()
    source = replay(str(path), follow=True)
    assert reading(source.read(FLEET, 100)) is None
    write(path, ["at,service,signal,value", "40,chat,decode_tps,4"])
    assert reading(source.read(FLEET, 100)) == (40, 4)


def test_readings_are_copies(tmp_path):
    path = write(tmp_path / "m.jsonl", [line(10, 1), line(20, 2)])
    source = replay(path)
    first = source.read(FLEET, 10)
    source.read(FLEET, 20)
    assert first.readings["chat"]["decode_tps"] == Reading(1, 10)


# --------------------------------------------------------------------------------------------
# From a fleet
# --------------------------------------------------------------------------------------------


def test_a_fleet_names_the_file_and_an_override_wins(tmp_path):
    first = write(tmp_path / "a.jsonl", [line(10, 1)])
    second = write(tmp_path / "b.jsonl", [line(10, 2)])
    fleet = fleet_of("chat", metrics={"replay": {"path": first}})
    assert reading(source_from(fleet).read(fleet, 20)) == (10, 1)
    assert reading(source_from(fleet, second).read(fleet, 20)) == (10, 2)
    with pytest.raises(InputError, match="no source"):
        source_from(FLEET)


def test_a_line_parses_to_all_its_samples_or_none():
    assert len(parse_json_line('{"at": 1, "service": "a", "signals": {"x": 1, "y": 2}}')) == 2
    with pytest.raises(BadLineError):
        parse_json_line('{"at": 1, "service": "a", "signals": {"x": 1, "y": "2"}}')
