"""The studies against the paper: their statistics, their rules, their commands."""

import csv
import json
import sys
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
published, shared, fig4, fig6, fig7 = (
    import_module(name)
    for name in ("paper_published", "paper_study", "paper_fig4", "paper_fig6", "paper_fig7")
)
sys.path.remove(str(ROOT / "experiments"))


# -- statistics ------------------------------------------------------------------------------------


def test_spearman_of_known_values():
    assert shared.spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.820783, abs=1e-6)
    assert shared.spearman([1, 2, 3], [1, 4, 9]) == pytest.approx(1)
    assert shared.spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    assert shared.spearman([1, 2, 3], [4, 4, 4]) is None


@given(st.permutations(range(8)))
def test_spearman_without_ties_is_the_textbook_formula(order):
    distance = sum((a - b) ** 2 for a, b in enumerate(order))
    assert shared.spearman(range(8), order) == pytest.approx(1 - 6 * distance / (8 * 63))


def test_equal_values_share_a_rank():
    assert shared.ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]


def test_the_chance_of_an_order_counts_all_orders():
    assert shared.chance_of([1, 2, 3], [1, 2, 3]) == pytest.approx(1 / 6)
    assert shared.chance_of([1, 2, 3], [3, 2, 1]) == pytest.approx(1)
    assert shared.chance_of([1, 2, 3], [5, 5, 5]) is None


def test_a_spread_shows_mean_least_and_most():
    assert shared.spread([0.5, 0.7, 0.6]) == "0.60 (0.50–0.70)"
    assert shared.spread([0.5, 0.5]) == "0.50"
    assert shared.spread([0.5, None]) == "–"
    assert shared.spread([]) == "–"


# -- what is put in --------------------------------------------------------------------------------


def test_capacities_are_the_most_that_the_figure_shows():
    assert shared.capacities("A") == pytest.approx({"prefill": 177e3 / 8, "decode": 26.3e3 / 5})
    assert shared.capacities("B") == pytest.approx({"prefill": 176e3 / 9, "decode": 14.9e3 / 4})
    assert shared.PROMPT_TOKENS / shared.output_tokens("A") == pytest.approx(1018 / 146.2)


def test_the_day_begins_at_hour_8_and_peaks_at_the_given_load():
    setting = shared.Setting("A")
    day = setting.demand(24)
    assert day.peak == pytest.approx(setting.peak)
    rates = dict(zip(day.times / 3600, day.requests / day.peak, strict=True))
    assert rates[0] == pytest.approx(17 / 98)
    assert rates[4.5] == pytest.approx(51 / 98)
    assert rates[21] == pytest.approx(1 / 98)
    assert day.end == 24 * 3600


def test_size_of_the_load_is_the_same_for_every_ratio_and_headroom():
    usual, other = shared.Setting("A"), shared.Setting("A", Fraction(2), headroom=0.9)
    assert other.peak == usual.peak
    assert other.ratio == 2
    assert other.point.signals["decode_tps"] != usual.point.signals["decode_tps"]


def test_decode_is_fed_by_what_prefill_can_do():
    for service, expected in (("A", 1.007), ("B", 0.830)):
        setting = shared.Setting(service)
        assert setting.ratio == Fraction(5, 3)
        assert setting.fed() == pytest.approx(expected, abs=0.001)
    assert shared.Setting("A", Fraction(2)).fed() == pytest.approx(1.208, abs=0.001)


def test_provisioning_before_never_changes():
    setting = shared.Setting("A")
    fleet = fig7.before(setting)
    limits = {role: (each.min, each.max) for role, each in fleet.services[0].roles.items()}
    assert limits == {role: (count, count) for role, count in setting.static.items()}


# -- rules that can fail ---------------------------------------------------------------------------


def test_one_peak_is_inside_and_falls_off_on_both_sides():
    assert fig4.one_peak([1, 2, 3, 2])
    assert not fig4.one_peak([1, 2, 3])
    assert not fig4.one_peak([3, 2, 1])
    assert not fig4.one_peak([1, 3, 2, 2.5, 1])
    assert not fig4.one_peak([1, 3, 3, 1])


def test_turns_count_changes_of_direction():
    assert fig6.turns(["out", "hold", "out", "in", "rebalance", "in", "out"]) == 2
    assert fig6.turns([]) == 0


def test_gpus_that_never_change_have_no_normalised_number():
    assert fig6.normalised(np.array([4.0, 4.0])) is None
    assert list(fig6.normalised(np.array([2.0, 4.0, 3.0]))) == [0.0, 1.0, 0.5]


def runs(**changes):
    """One run of every policy, as the paper has it, but for changes of single policies."""
    rows = []
    for name, seen in published.FIG6.items():
        row = {"policy": name, "seed": 0, "scale_out": 5, "scale_in": 5, "turns": 2}
        row |= {key: getattr(seen, key) for key in ("mean_gpus", "correlation", "dip")}
        row["best_correlation"] = seen.best_correlation
        row |= {"turns": 20} if name == "ttft" else {}
        row |= {"scale_in": 0} if name == "decode_gpu_util" else {}
        rows.append(row | changes.get(name, {}))
    return rows


def verdicts(**changes):
    return [row["verdict"] for row in fig6.claims(runs(**changes), load_turns=2)]


def test_every_claim_of_fig_6_holds_for_the_paper_and_fails_for_its_opposite():
    assert verdicts() == ["holds"] * 5
    assert verdicts(prefill_sm={"correlation": 0.6})[0] == "does not hold"
    assert verdicts(decode_gpu_util={"scale_in": 1})[1] == "does not hold"
    assert verdicts(decode_gpu_util={"scale_out": 0})[1].startswith("trivially")
    assert verdicts(decode_sm={"dip": 0.4})[2] == "does not hold"
    assert verdicts(ttft={"turns": 2})[3] == "does not hold"
    assert verdicts(tbt={"correlation": None})[4] == "does not hold"


def test_the_paper_ranks_as_itself_and_what_never_changes_is_left_out():
    for row in fig6.ranking(runs()):
        assert row["spearman"] == "1.00", row
    still = {"correlation": None, "mean_gpus": None, "dip": None}
    first, counted, *_ = fig6.ranking(runs(decode_gpu_util=still))
    assert (first["signals"], counted["signals"]) == ("7", "8")
    assert "Dgpu" not in first["ours"]
    assert counted["ours"].endswith("Dgpu")


def day(prefill, decode, share):
    return {"prefill_gpu_util": prefill, "decode_gpu_util": decode, "mean_of_peak": share} | {
        "low_of_peak": 0.1,
        "of_static": 0.6,
        "lag": 0.5,
    }


def test_claims_of_fig_7_say_where_ours_lies():
    demand = shared.Setting("A").demand(24)

    def said(share, prefill, decode):
        rows = {("before",): [day(47.0, 85.7, 1.0)], ("after",): [day(prefill, decode, share)]}
        found = fig7.claims(rows, demand)
        return [found[place]["verdict"] for place in (0, 4, 5)]

    inside, rises, sign = said(0.59, 76.2, 82.3)
    assert (inside, sign) == ("inside the paper's range", "the same sign")
    assert rises == "holds, 100% of the paper's"
    below, falls, sign = said(0.5, 40.0, 90.0)
    assert (below, sign) == ("below the paper's range", "the other sign")
    assert falls.startswith("does not hold")
    assert said(0.7, 76.2, 82.3)[0] == "outside the paper's range"

    rows = {("before",): [day(47.0, 85.7, 1.0)] * 2}
    rows["after",] = [day(76.2, 82.3, share) for share in (0.55, 0.59)]
    mixed = fig7.claims(rows, demand)[0]
    assert mixed["verdict"] == "for some seeds inside the paper's range"


# -- the commands ----------------------------------------------------------------------------------


def test_fig_4_writes_table_figure_and_data(tmp_path, capsys):
    assert shared.main(fig4.options(), fig4.run, ["--out", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["total"] == 16
    for service, seen in published.FIG4.items():
        rows = list(csv.DictReader((tmp_path / f"splits-{service}.csv").open(encoding="utf-8")))
        assert [float(row["decode_tps_paper"]) for row in rows] == list(seen.decode_tps)
        ours = [float(row["decode_tps_ours"]) for row in rows]
        able = shared.capacities(service)
        for row, tps in zip(rows, ours, strict=True):
            assert 0 < 1000 * tps <= able["decode"] * (16 - int(row["prefill"]))
            assert float(row["prefill_tps_ours"]) * 1000 <= able["prefill"] * int(row["prefill"])
    svg = (tmp_path / "paper_fig4.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert published.SOURCE in svg


def test_fig_6_and_7_run_on_one_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fig7, "HOURS", 1.0)
    arguments = ["--seeds", "1", "--out", str(tmp_path), "--json"]
    assert shared.main(fig7.options(), fig7.run, arguments) == 0
    before, after = list(csv.DictReader((tmp_path / "runs.csv").open(encoding="utf-8")))
    assert (before["scale_out"], before["scale_in"]) == ("0", "0")
    assert float(before["of_static"]) == pytest.approx(1)
    assert float(after["gpu_hours"]) < float(before["gpu_hours"])
    assert int(after["scale_out"]) > 0
    assert json.loads(capsys.readouterr().out)["settings"]["seeds"] == [0]
    assert "Figs. 2 and 7" in (tmp_path / "paper_fig7.svg").read_text(encoding="utf-8")

    setting = shared.Setting("A")
    monkeypatch.setattr(fig6, "POLICIES", ("prefill_tps",))
    rows, first = fig6.simulated(setting, 1, 0.0)
    (row,) = rows
    gpus, hours = first["prefill_tps"].of("dialogue")["gpus"], first["prefill_tps"].hours
    dip = gpus[(hours >= 4) & (hours < 6)].min()
    assert row["dip"] == pytest.approx((dip - gpus.min()) / (gpus.max() - gpus.min()))
    assert fig6.turns_of_load(first) == 2
    assert gpus.max() > 2 * gpus.min()


@pytest.mark.parametrize(
    ("study", "arguments"),
    [
        (fig4, ["--seeds", "3"]),
        (fig6, ["--ratio", "0"]),
        (fig6, ["--ratio", "1/0"]),
        (fig6, ["--seeds", "0"]),
        (fig6, ["--service", "C"]),
        (fig6, ["--headroom", "nan"]),
        (fig6, ["--dispersion", "-1"]),
        (fig7, ["--window", "-5"]),
        (fig7, ["--window", "soon"]),
        (fig7, ["--window", "2000h"]),
    ],
)
def test_bad_options_are_one_line_and_exit_2(study, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        shared.main(study.options(), study.run, arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert arguments[0] in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_is_refused_before_anything_runs(tmp_path, capsys):
    taken = tmp_path / "file"
    taken.write_text("")
    assert shared.main(fig4.options(), fig4.run, ["--out", str(taken)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_has_the_numbers_of_the_pressure_test():
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    for service in published.FIG4:
        for row in fig4.splits(service, shared.pressure_of(service)):
            shown = fig4._shown(row)
            line = "| " + " | ".join(str(cell) for cell in shown.values()) + " |"
            assert line in page, line
