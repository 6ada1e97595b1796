"""Curation: pressure test, candidates, choice, and the command."""

import json
import tomllib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from simulate_fleets import OUTPUT, PROMPT, cluster, flat, fleet, service, steps

from heteroplace import InputError
from heteroplace.cli import main
from heteroplace.curate import curate, pressure_test
from heteroplace.curate.fragment import fragment
from heteroplace.policy import Fleet
from heteroplace.simulate import POLICIES, PoolModels, Pools, load, paper_day
from heteroplace.simulate.measure import Objectives
from heteroplace.simulate.services import pooled_services
from heteroplace.simulate.sizing import supply_of
from heteroplace.simulate.steady import Mix

ROOT = Path(__file__).parents[1]
MIX = Mix(PROMPT, PROMPT, OUTPUT)


def pooled(*services):
    return pooled_services(fleet(*services), PoolModels(), {"chat"})[0]


def test_every_split_of_the_total_is_tested():
    test = pressure_test(pooled(), MIX, 16)
    assert [(each.prefill, each.decode) for each in test.splits] == [
        (count, 16 - count) for count in range(1, 16)
    ]
    assert test.total == 16


def test_the_best_split_is_inside_and_the_load_falls_off_on_both_sides():
    loads = [each.sustained for each in pressure_test(pooled(), MIX, 16).splits]
    best = int(np.argmax(loads))
    assert 0 < best < len(loads) - 1
    assert (np.diff(loads[: best + 1]) > 0).all()
    assert (np.diff(loads[best:]) < 0).all()
    assert loads[0] < 0.5 * loads[best]
    assert loads[-1] < 0.5 * loads[best]


def test_the_sustained_load_is_what_the_pools_bear():
    """Pushed just below, the pools keep the objectives; just above, they do not."""
    own = pooled()
    test = pressure_test(own, MIX, 12)
    goals = Objectives(*(np.array([each]) for each in (own.ttft, own.tbt, own.percentile)))
    for split in test.splits[2::4]:
        supply = supply_of(own, [{"prefill": split.prefill, "decode": split.decode}])
        kept = []
        for factor in (0.999, 1.001):
            arriving = load({"chat": flat(split.sustained * factor, 3000)}, 3000, 15)
            pools = Pools(arriving, [own.model], goals)
            ticks = [pools.tick(supply) for _ in range(arriving.ticks)]
            kept.append(bool(ticks[-1].ttft[0] <= own.ttft and ticks[-1].tbt[0] <= own.tbt))
        assert kept == [True, False]


def test_more_decode_work_moves_the_best_split_to_decode():
    short = pressure_test(pooled(), Mix(1000, 1000, 100), 16).best_split
    long = pressure_test(pooled(), Mix(1000, 1000, 500), 16).best_split
    assert long.decode > short.decode


def test_the_expected_metrics_are_those_of_the_operating_point():
    test = pressure_test(pooled(), MIX, 16, headroom=0.5)
    best = test.best_split
    assert test.expected["decode_tps"] == pytest.approx(0.5 * best.decode_tps / best.decode)
    assert test.expected["prefill_tps"] == pytest.approx(0.5 * best.prefill_tps / best.prefill)
    assert Fraction(test.ratio) == Fraction(best.prefill, best.decode)
    assert set(test.expected) == set(POLICIES)


def test_impossible_objectives_are_an_error_that_names_them():
    slow = service(policy={"primary": {"kind": "feedback", "signal": "ttft", "slo": 0.01}})
    with pytest.raises(InputError, match=r"TTFT within 0\.01 s"):
        pressure_test(pooled(slow), MIX, 16)


@pytest.mark.parametrize("total", [0, 1, 10**6])
def test_a_total_that_cannot_be_split_is_refused(total):
    with pytest.raises(InputError, match="--total"):
        pressure_test(pooled(), MIX, total)


def test_a_service_of_one_role_has_no_ratio():
    roles = {
        "serve": {
            "max": 20,
            "shapes": [{"name": "s", "pods": [{"gpu_type": "A", "gpus": 1}], "capacity": 8000}],
        }
    }
    one = service(
        roles=roles, ratios=[], policy={"primary": {"kind": "throughput", "signal": "prefill_tps"}}
    )
    test = pressure_test(pooled(one), MIX, 4)
    assert len(test.splits) == 1
    assert test.ratio is None
    found, chosen = curate(
        fleet(one), "chat", steps([5, 12], 3600), policies=("prefill_tps", "prefill_sm"), tick=30
    )
    assert found.chosen is not None
    assert chosen.services[0].ratios == ()


CHOICE = ("decode_tps", "prefill_tps", "decode_gpu_util")


@pytest.fixture(scope="module")
def curated():
    return curate(
        fleet(), "chat", paper_day(60, PROMPT, OUTPUT), policies=CHOICE, tick=30, hours=14
    )


def test_all_candidates_are_compared_and_the_best_within_is_chosen(curated):
    found, _ = curated
    assert {each.policy for each in found.candidates} == set(CHOICE)
    assert [each.rank for each in found.candidates] == [1, 2, 3]
    within = [each for each in found.candidates if each.within]
    assert found.chosen == min(within, key=lambda each: each.score).policy
    for each in within:
        assert each.summary.ttft_attained >= found.attain
        assert each.summary.tbt_attained >= found.attain
        assert each.score == each.summary.gpu_hours
    assert found.chosen in found.reason
    assert f"{within[0].score:,.1f}" in found.reason


def test_the_targets_are_the_expected_metrics(curated):
    found, _ = curated
    for each in found.candidates:
        assert each.target == found.pressure.expected[each.policy]


def test_the_fleet_that_comes_back_has_the_choice(curated):
    found, chosen = curated
    own = chosen.services[0]
    assert own.ratios[0].target == Fraction(found.pressure.ratio)
    assert own.policy.primary.signal == found.chosen
    assert own.policy.primary.target == found.pressure.expected[found.chosen]


def test_the_fragment_is_toml_that_makes_the_same_service(curated):
    found, chosen = curated
    piece = tomllib.loads(fragment(found, chosen))["services"]
    assert [each["name"] for each in piece] == ["chat"]
    data = json.loads(fleet().to_json())
    data["services"][0] |= piece[0]
    merged = Fleet.from_dict(data).services[0]
    assert merged.ratios[0].target == chosen.services[0].ratios[0].target
    assert merged.policy.primary.signal == found.chosen
    assert merged.policy.primary.target == pytest.approx(
        chosen.services[0].policy.primary.target, rel=1e-5
    )


def test_throughput_is_another_score():
    found, _ = curate(fleet(), "chat", flat(35, 1800), policies=CHOICE, tick=30, score="throughput")
    within = [each.score for each in found.candidates if each.within]
    assert within == sorted(within, reverse=True)
    assert within[0] <= 35 * OUTPUT * 1.01


def test_a_cluster_that_is_given_is_used():
    found, _ = curate(
        fleet(),
        "chat",
        steps([10, 90], 3600),
        cluster=cluster(pods=1, nodes=1),
        policies=("decode_tps",),
        tick=30,
    )
    assert found.candidates[0].summary.peak_gpus <= 16
    assert found.chosen is None
    assert "No candidate" in found.reason


def test_a_band_that_holds_the_best_ratio_stays():
    wide = service(ratios=[{"target": 1, "min": "1/4", "max": 8}])
    _, chosen = curate(
        fleet(wide), "chat", steps([10, 20], 1800), policies=("decode_tps",), tick=30
    )
    assert chosen.services[0].ratios[0].band == (Fraction(1, 4), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ("magic",)}, "'magic' is no policy"),
        ({"policies": ()}, "names no policy"),
        ({"service": "nobody"}, "'nobody' is no service"),
        ({"headroom": 0}, "--headroom"),
    ],
)
def test_what_cannot_be_curated_is_refused(options, message):
    given = {"service": "chat", "demand": flat(5, 600), **options}
    with pytest.raises(InputError, match=message):
        curate(fleet(), given.pop("service"), given.pop("demand"), **given)


# -- the command ---------------------------------------------------------------------------------


def run(*options):
    return main(["curate", *options])


@pytest.fixture
def fleet_file(tmp_path):
    path = tmp_path / "fleet.json"
    path.write_text(fleet().to_json(), encoding="utf-8")
    return path


SHORT = ("--trace", "paper-day", "--hours", "2", "--skip", "8", "--tick", "30")


def test_the_command_shows_both_tables_and_writes_the_choice(fleet_file, tmp_path, capsys):
    out = tmp_path / "piece.toml"
    options = (*SHORT, "--policies", "decode_tps,prefill_tps", "--out", str(out))
    assert run("--fleet", str(fleet_file), *options, "--attain", "0.5") == 0
    shown = capsys.readouterr().out
    for words in ("Pressure test of chat", "best", "Candidates at a peak", "chosen", "fewest"):
        assert words in shown
    assert tomllib.loads(out.read_text("utf-8"))["services"][0]["name"] == "chat"


def test_json_and_a_whole_fleet(fleet_file, tmp_path, capsys):
    out = tmp_path / "whole.json"
    options = (*SHORT, "--policies", "prefill_tps", "--out", str(out), "--attain", "0.5")
    assert run("--fleet", str(fleet_file), *options, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["chosen"] == "prefill_tps"
    assert len(data["pressure"]["splits"]) == 15
    written = Fleet.from_file(out).services[0]
    assert str(written.ratios[0].target) == data["pressure"]["ratio"]


def test_no_candidate_within_is_exit_code_1_and_nothing_is_written(fleet_file, tmp_path, capsys):
    out = tmp_path / "piece.toml"
    options = ("--policies", "tbt", "--attain", "0.999999", "--peak", "60", "--out", str(out))
    assert run("--fleet", str(fleet_file), *SHORT, *options) == 1
    assert "No candidate" in capsys.readouterr().out
    assert not out.exists()


def test_a_served_model_is_enough(capsys):
    options = ("--model", str(ROOT / "models/llama-3.1-8b.json"), "--prefill-gpu", "H20:1")
    assert run(*options, "--decode-gpu", "H20:1", *SHORT, "--policies", "tbt", "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert data["chosen"] is None
    assert data["service"] == "Llama-3.1-8B"
    assert data["pressure"]["splits"][data["pressure"]["best"]]["sustained"] > 0


def test_only_the_daily_curve_itself_is_sized(fleet_file, tmp_path, capsys):
    path = tmp_path / "paper-day-of-ours.csv"
    path.write_text(
        "t_s,requests,prompt_tokens,output_tokens\n0,600,600000,84000\n60,600,600000,84000\n",
        encoding="utf-8",
    )
    options = ("--policies", "prefill_tps", "--attain", "0.1", "--json")
    for given in (str(path), f"{path}:chat"):
        assert run("--fleet", str(fleet_file), "--trace", given, *options) == 0
        assert json.loads(capsys.readouterr().out)["peak"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trace", "paper-day"), "give either --fleet or --model"),
        (("--fleet", "FLEET"), "--trace: is missing"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--total", "x"), "must be a whole number"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--tick", "1h"), "at most the interval"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--wander", "11"), "must be at most 10"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--attain", "1"), "below 1"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--total", "1"), "must be from 2 to"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--policies", "x"), "'x' is no policy"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--headroom", "2"), "at most 1"),
        (("--fleet", "FLEET", "--trace", "paper-day", "--decode-gpu", "H20"), "goes with --model"),
        (("--model", "MODEL", "--trace", "paper-day"), "--prefill-gpu: is missing"),
        (
            ("--model", "MODEL", "--trace", "paper-day", "--prefill-gpu", "H20:x"),
            "must be TYPE or TYPE:GPUS",
        ),
        (
            *[
                (
                    "--model",
                    "MODEL",
                    "--trace",
                    "paper-day",
                    "--prefill-gpu",
                    "Z",
                    "--decode-gpu",
                    "Z",
                )
            ],
            "has no prefill on Z",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(fleet_file, capsys, options, message):
    model = str(ROOT / "models/llama-3.1-8b.json")
    given = [each.replace("FLEET", str(fleet_file)).replace("MODEL", model) for each in options]
    assert run(*given) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
