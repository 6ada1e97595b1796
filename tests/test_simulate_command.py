"""``heteroplace simulate`` as a user runs it."""

import json
import re
import sys

import pytest
from simulate_fleets import cluster, fleet, service

from heteroplace.cli import main

TRACE = (
    "t_s,requests_per_s,prompt_tokens_per_s,output_tokens_per_s\n"
    "0,20,20000,2800\n600,50,50000,7000\n1200,20,20000,2800\n"
)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "fleet.json").write_text(fleet().to_json(), encoding="utf-8")
    both = fleet(service("chat"), service("code"))
    (tmp_path / "two.json").write_text(both.to_json(), encoding="utf-8")
    (tmp_path / "cluster.json").write_text(cluster().to_json(), encoding="utf-8")
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    rows = [line.split(",", 1) for line in TRACE.splitlines()]
    many = [f"{rows[0][0]},service,{rows[0][1]}"]
    many += [f"{time},{name},{rest}" for name in ("chat", "code") for time, rest in rows[1:]]
    (tmp_path / "many.csv").write_text("\n".join(many) + "\n", encoding="utf-8")
    return tmp_path


def run(files, *options, fleet="fleet.json"):
    return main(
        [
            *("simulate", "--fleet", str(files / fleet)),
            *("--cluster", str(files / "cluster.json"), *options),
        ]
    )


def test_it_prints_a_table(files, capsys):
    assert run(files, "--trace", str(files / "trace.csv")) == 0
    shown = capsys.readouterr().out
    for label in ("requests within it", "GPU-hours", "scale-outs, scale-ins", "correlation"):
        assert label in shown


def test_json_is_the_summary(files, capsys):
    assert run(files, "--trace", str(files / "trace.csv"), "--json", "--policy", "decode_tps") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["policy"] == "decode_tps"
    assert data["hours"] == 0.5
    only = data["services"][0]
    assert only["service"] == "chat"
    assert only["requests"] == pytest.approx(1800 * 30, rel=0.1)


def test_traces_are_given_to_services(files, capsys):
    one, two = f"{files / 'trace.csv'}:chat", f"{files / 'trace.csv'}:code"
    options = ("--trace", one, "--trace", two, "--peak", "code:5", "--json")
    assert run(files, *options, fleet="two.json") == 0
    chat, code = json.loads(capsys.readouterr().out)["services"]
    assert code["requests"] == pytest.approx(chat["requests"] / 10)
    assert run(files, "--trace", str(files / "many.csv"), "--json", fleet="two.json") == 0
    assert all(each["requests"] for each in json.loads(capsys.readouterr().out)["services"])
    assert run(files, "--trace", f"{files / 'many.csv'}:code", "--json", fleet="two.json") == 0
    chat, code = json.loads(capsys.readouterr().out)["services"]
    assert (chat["requests"], code["requests"] > 0) == (0, True)


def test_repeating_and_skipping(files, capsys):
    trace = ("--trace", str(files / "trace.csv"), "--json")
    assert run(files, *trace, "--hours", "1", "--repeat", "--interpolation", "step") == 0
    whole = json.loads(capsys.readouterr().out)["services"][0]["requests"]
    assert whole == pytest.approx(2 * 600 * 90)
    assert run(files, *trace, "--skip", "0.25", "--interpolation", "step") == 0
    assert json.loads(capsys.readouterr().out)["hours"] == 0.25
    assert run(files, *trace, "--hit-rate", "0.5", "--tick", "30s", "--interval", "1m") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--trace: is missing"),
        (("--trace", "nowhere.csv"), "nowhere.csv: cannot be read"),
        (("--trace", "TRACE:nobody"), "'nobody' is no service of the fleet"),
        (("--trace", "TRACE", "--trace", "TRACE"), "gives 'chat' a demand twice"),
        (("--trace", "paper-day"), "--peak: is missing"),
        (("--trace", "TRACE", "--peak", "x"), "--peak: must be a number above 0"),
        (("--trace", "TRACE", "--peak", "3", "--peak", "4"), "--peak: is given twice"),
        (("--trace", "TRACE", "--peak", "nobody:3"), "'nobody' is no service"),
        (("--trace", "TRACE", "--prompt-tokens", "5"), "--prompt-tokens: goes with paper-day"),
        (("--trace", "TRACE", "--hours", "3"), "lasts 0.5 h"),
        (("--trace", "TRACE", "--skip", "3"), "--skip: .* lasts 0.5 h only"),
        (("--trace", "TRACE", "--hours", "nan"), "must be a number above 0"),
        (("--trace", "TRACE", "--hit-rate", "1"), "must be from 0 to below 1"),
        (("--trace", "TRACE", "--seed", "-1"), "must be from 0 to"),
        (("--trace", "TRACE", "--tick", "-5"), "must be seconds or a text"),
        (("--trace", "TRACE", "--tick", "7"), "must divide the interval"),
        (("--trace", "TRACE", "--skip", "3", "--repeat"), "give --repeat with --hours"),
        (("--trace", "TRACE", "--dispersion", "1e8"), "noise: dispersion: must be at most"),
        (("--trace", "TRACE", "--wander", "11"), "noise: wander: must be at most 10"),
        (("--trace", "TRACE", "--start", "9999-12-31"), "start: must be in the years 1970"),
        (("--trace", "TRACE", "--out", ""), "--out: is empty"),
        (("--trace", "TRACE", "--start", "noon"), "must be a date and time"),
        (("--trace", "TRACE", "--policy", "magic"), "'magic' is none of fleet"),
        (("--trace", "TRACE", "--pools", "nowhere.toml"), "nowhere.toml: cannot be read"),
        (("--trace", "TRACE", "--solver", "magic"), "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(files, capsys, options, message):
    given = [each.replace("TRACE", str(files / "trace.csv")) for each in options]
    assert run(files, *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err


def test_a_trace_for_one_of_several_services_must_say_which(files, capsys):
    assert run(files, "--trace", str(files / "trace.csv"), fleet="two.json") == 2
    assert "for which service?" in capsys.readouterr().err


def test_a_folder_is_written(files, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    out = files / "result"
    options = ("--trace", str(files / "trace.csv"), "--out", str(out), "--plots", "none")
    assert run(files, *options) == 0
    assert {each.name for each in out.iterdir()} == {
        *("series.parquet", "series.csv", "events.csv", "summary.json"),
    }
    assert f"written to {out}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("package", ["pyarrow", "matplotlib"])
def test_a_missing_package_is_named_before_anything_runs(files, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    options = ("--trace", str(files / "trace.csv"), "--out", str(files / "result"))
    assert run(files, *options) == 2
    error = capsys.readouterr().err
    assert f"needs {package}" in error
    assert "pip install" in error
    assert not (files / "result").exists()
    assert run(files, "--trace", str(files / "trace.csv")) == 0


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(files, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    options = ("--trace", str(files / "trace.csv"), "--plots", "none")
    assert run(files, *options, "--out", str(files / "trace.csv" / "below")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_start_decides_what_the_clock_says(files, capsys):
    schedule = {
        "mode": "floor",
        "entries": [
            {"cron": "0 8 * * *", "counts": {"decode": 12}},
            {"cron": "0 9 * * *", "release": True},
        ],
    }
    made = fleet(service(policy={"primary": {"kind": "throughput"}, "schedules": [schedule]}))
    (files / "clock.json").write_text(made.to_json(), encoding="utf-8")
    peaks = []
    for start in ("2026-01-05T07:50", "2026-01-05T12:00"):
        trace = ("--trace", str(files / "trace.csv"), "--json", "--start", start)
        assert run(files, *trace, fleet="clock.json") == 0
        peaks.append(json.loads(capsys.readouterr().out)["services"][0]["peak_gpus"])
    assert peaks[0] > peaks[1]
