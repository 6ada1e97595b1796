"""``heteroplace report``: the page as text, its numbers, and what it does with odd results."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytest.importorskip("pyarrow", reason="reports need pyarrow")

import pyarrow.parquet as pq
from report_results import QUICK, changed, hostile, made_up, quick_results, write

from heteroplace.cli import main
from heteroplace.compare.experiment import Experiment
from heteroplace.compare.record import Row, read_results
from heteroplace.errors import InputError
from heteroplace.report.charts import HEIGHT, WIDTH, Axis, Mark, Panel, Series, draw
from heteroplace.report.document import Commands, document, figures
from heteroplace.report.findings import basis, findings
from heteroplace.report.placements import chosen, pictures
from heteroplace.report.progress import gap_figure
from heteroplace.report.quality import unmet_figure, waste_figure
from heteroplace.report.study import Pair, Study, grouped
from heteroplace.report.table import Table
from heteroplace.report.words import brief, listed, number, percent, ranges, seconds


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_results(tmp_path_factory)


class Outline(HTMLParser):
    """What a browser would make of a page: elements, ids, links and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    VOID = frozenset(("meta", "link", "input", "br", "img"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
                self.links.append(str(value))
            if name.startswith("on"):
                self.handlers.append(f"{tag} {name}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"unexpected </{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\xa0", " ").split())


def page_of(study: Study, most: int = 0) -> str:
    pairs = chosen(study, most, ())
    made = pictures(study, pairs)
    return document(study, findings(study), figures(study), made, pairs, Commands("results"))


def study_of(folder: Path, **names: Any) -> Study:
    return Study.of(read_results(folder), **names)


def rows_of(folder: Path) -> list[Row]:
    found: list[Row] = pq.read_table(folder / "results.parquet").to_pylist()
    return found


# --------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_loads_nothing(quick: Path):
    text = page_of(study_of(quick), 3)
    outline = Outline(text)
    assert outline.faults == []
    assert outline.open == []
    assert max(Counter(outline.ids).values()) == 1
    assert outline.handlers == []
    for link in outline.links:
        assert link.startswith(("#", "data:")), link
        if link.startswith("#"):
            assert link[1:] in outline.ids
    assert "@import" not in text
    assert "url(" not in text
    assert re.search(r"default-src 'none'", text)
    assert outline.tags["main"] == outline.tags["h1"] == 1


def test_the_page_says_what_was_run(quick: Path):
    words = Outline(page_of(study_of(quick))).text
    for said in (
        "Greedy against the optimum on small fleets.",
        "36 instances",
        "greedy and auto",
        "0–2",
        "highspy 1.12.0",
        "a processor, 2 cores",
        "0123456789",
        "heteroplace compare experiments/quick.toml",
        "heteroplace report results",
        "2026-05-01",
    ):
        assert said in words, said


def test_the_same_results_make_the_same_page(quick: Path):
    assert page_of(study_of(quick), 4) == page_of(study_of(quick), 4)


def test_every_figure_has_charts_a_table_a_file_and_its_commands(quick: Path):
    study = study_of(quick)
    names = [figure.name for figure in figures(study)]
    assert names == ["unmet", "waste", "differences", "gaps", "anytime", "time"]
    text = page_of(study)
    for name in names:
        section = re.search(rf'<section class="card" id="{name}".*?</section>', text, re.S)
        assert section is not None
        outline = Outline(section[0])
        assert outline.tags["svg"] >= 2
        assert outline.tags["table"] == 1
        assert any(link.startswith("data:text/csv") for link in outline.links)
        assert f"heteroplace report results --table {name}" in outline.text
        assert "heteroplace compare experiments/quick.toml" in outline.text


def test_charts_are_well_formed_named_and_inside_their_frame(quick: Path):
    drawn = [
        (figure, place, panel)
        for figure in figures(study_of(quick))
        for place, panel in enumerate(figure.panels)
    ]
    assert len(drawn) >= 15
    for figure, place, panel in drawn:
        svg = ElementTree.fromstring(draw(panel, f"{figure.name}-{place}"))
        title, desc = svg.find("title"), svg.find("desc")
        assert title is not None
        assert title.text
        assert desc is not None
        assert len(desc.text or "") > 20
        assert svg.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        marks = [
            each for each in svg.iter() if each.get("class") in ("mark", "part", "curve", "whisker")
        ]
        assert marks, f"{figure.name}: {panel.title}"
        for each in svg.iter("circle"):
            assert 0 <= float(each.get("cx", "-1")) <= WIDTH
            assert 0 <= float(each.get("cy", "-1")) <= HEIGHT
        labels = [(each.text or "").replace("\xa0", " ") for each in svg.iter("text")]
        assert panel.x.label in labels
        assert panel.y.label in labels


# --------------------------------------------------------------------------------------------
# The numbers
# --------------------------------------------------------------------------------------------


def test_findings_are_what_the_rows_say(quick: Path):
    study = study_of(quick)
    left, right = (
        {row["instance"]: row for row in rows_of(quick) if row["profile"] == name}
        for name in ("greedy", "auto")
    )
    asked = sum(row["target_gpus"] for row in left.values())
    by_name = {each.name: each for each in findings(study)}
    unmet = by_name["unmet"]
    for side, rows in (("left", left), ("right", right)):
        share = sum(row["unmet_gpus"] for row in rows.values()) / asked
        assert unmet.values[side] == pytest.approx(share)
        assert percent(share) in unmet.text
    more = float(unmet.values["difference"] or 0)
    assert more == pytest.approx(
        float(unmet.values["left"] or 0) - float(unmet.values["right"] or 0)
    )
    assert float(unmet.values["difference_low"] or 0) <= more
    assert float(unmet.values["difference_high"] or 0) >= more
    worse = sum(tuple(left[key]["step_values"]) > tuple(right[key]["step_values"]) for key in left)
    assert worse > 0
    assert by_name["order"].values["worse"] == worse
    assert by_name["order"].values["better"] == 0
    waste = by_name["waste"]
    total = sum(row["high_tier_gpus_total"] for row in left.values())
    assert waste.values["left"] == pytest.approx(
        sum(row["high_tier_waste_gpus"] for row in left.values() if row["high_tier_gpus_total"])
        / total
    )
    assert by_name["proofs"].values == {"auto": 1.0}
    assert "proven optimum" in basis(study)


def test_the_unmet_table_adds_up(quick: Path):
    study = study_of(quick)
    table = unmet_figure(study).table
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for by in ("load", "heterogeneity", "size", "priority", "affinity"):
        assert {row["series"] for row in rows if row["by"] == by} == {
            "greedy",
            "auto, proven optimum",
            "greedy − auto",
        }
    at = {(row["by"], row["group"], row["series"]): row for row in rows}
    light = [pair for pair in study.pairs if pair.left["load"] == 0.5]
    greedy = at["load", "0.5", "greedy"]
    assert greedy["instances"] == len(light)
    asked = sum(pair.left["target_gpus"] for pair in light)
    assert greedy["share (0 to 1)"] == pytest.approx(
        sum(pair.left["unmet_gpus"] for pair in light) / asked
    )
    difference = at["load", "0.5", "greedy − auto"]
    optimum = at["load", "0.5", "auto, proven optimum"]
    assert difference["share (0 to 1)"] == pytest.approx(
        greedy["share (0 to 1)"] - optimum["share (0 to 1)"]
    )


def test_waste_by_class_adds_up(quick: Path):
    study = study_of(quick)
    having = [pair for pair in study.pairs if pair.left["high_tier_gpus_total"]]
    table = waste_figure(study).table
    total = sum(pair.left["high_tier_gpus_total"] for pair in having)
    for name, side in (("greedy", "left"), ("auto, proven optimum", "right")):
        waste = sum(getattr(pair, side)["high_tier_waste_gpus"] for pair in having)
        # Every instance has the same priority classes, so their shares add up.
        shares = [row[4] for row in table.rows if (row[0], row[2]) == ("priority", name)]
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(waste / total) != 0
    by_affinity = [row for row in table.rows if row[0] == "affinity" and row[2] == "greedy"]
    assert [row[1] for row in by_affinity] == ["none", "s2", "s2+s1", "s1"]
    pairs = [pair for pair in having if "s2+s1" in pair.left["affinities"]]
    place = [pair.left["affinities"].index("s2+s1") for pair in pairs]
    held = [
        pair.left["high_tier_waste_gpus_by_affinity"][at]
        for pair, at in zip(pairs, place, strict=True)
    ]
    asked = sum(pair.left["high_tier_gpus_total"] for pair in pairs)
    assert by_affinity[2][3:5] == (len(pairs), pytest.approx(sum(held) / asked))


def test_a_table_without_waste_by_class_is_shown_without(quick: Path, tmp_path: Path):
    names = ("high_tier_waste_gpus_by_priority", "high_tier_waste_gpus_by_affinity")
    earlier = changed(quick, tmp_path / "r", lambda row: {**row, **dict.fromkeys(names)})
    titles = [panel.title for panel in waste_figure(study_of(earlier)).panels]
    assert "Wasted by load" in titles
    assert "Wasted by priority" not in titles


def gaps_of(rows: list[Row], tmp_path: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    table = gap_figure(study_of(write(tmp_path / "gaps", rows))).table
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for measure, profile, most, share in table.rows:
        found.setdefault((str(measure), str(profile)), []).append(
            (float(most or 0), float(share or 0))
        )
    return found


def test_gap_profiles_of_known_rows(tmp_path: Path):
    rows = [
        # Equal in everything; 5 of 100 GPUs worse in the first class; 20 % dearer.
        made_up("a", "greedy"),
        made_up("a", "auto", proven=True),
        made_up("b", "greedy", unmet=(5.0, 0.0), cost=3.0),
        made_up("b", "auto", unmet=(0.0, 7.0), proven=True),
        made_up("c", "greedy", cost=12.0),
        made_up("c", "auto", proven=True),
        # A plan that breaks a constraint never counts.
        made_up("d", "greedy", plan_valid=False, status="invalid"),
        made_up("d", "auto", proven=True),
    ]
    found = gaps_of(rows, tmp_path)
    assert found["unmet", "auto"] == [(0.0, 1.0)]
    assert found["unmet", "greedy"] == [
        (pytest.approx(0.0), 0.5),
        (pytest.approx(0.05), 0.75),
    ]
    assert found["cost", "greedy"] == [
        (pytest.approx(0.0), 0.25),
        (pytest.approx(0.2), 0.5),
    ]


def test_without_a_proof_the_gap_is_to_the_bound(tmp_path: Path):
    rows = [
        made_up("a", "greedy", unmet=(8.0, 0.0)),
        made_up("a", "auto", unmet=(6.0, 0.0), bounds=(2.0, 0.0, 0.0, 5.0)),
    ]
    found = gaps_of(rows, tmp_path)
    assert found["unmet", "auto"] == [(pytest.approx(0.04), 1.0)]
    assert found["unmet", "greedy"] == [(pytest.approx(0.06), 1.0)]


def test_anytime_curves_of_known_rows(tmp_path: Path):
    known = {
        "anytime_deadlines": [0.1, 1.0],
        "anytime_seconds": [0.1, 0.4],
        "anytime_values": [[10.0, 0.0, 0.0, 10.0], [0.0, 0.0, 0.0, 10.0]],
        "anytime_bounds": [[0.0, 0.0, 0.0, None], [0.0, 0.0, 0.0, 10.0]],
    }
    late = {**known, "anytime_values": [known["anytime_values"][0]] * 2}
    late["anytime_bounds"] = [known["anytime_bounds"][0]] * 2
    rows = [made_up("a", "greedy"), made_up("a", "auto", proven=True, **known)]
    rows += [made_up("b", "greedy"), made_up("b", "auto", proven=True, **late)]
    drawn = {figure.name: figure for figure in figures(study_of(write(tmp_path / "r", rows)))}
    table = drawn["anytime"].table
    first, second = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (first["time limit, s"], second["time limit, s"]) == (0.1, 1.0)
    assert (first["unmet share"], second["unmet share"]) == (
        pytest.approx(0.1),
        pytest.approx(0.05),
    )
    assert (first["at the best known"], second["at the best known"]) == (0.0, 0.5)
    assert (first["proven"], second["proven"]) == (0.0, 0.5)


def test_there_is_no_anytime_figure_without_curves(tmp_path: Path):
    rows = [made_up("a", "greedy"), made_up("a", "auto", proven=True)]
    names = [figure.name for figure in figures(study_of(write(tmp_path / "r", rows)))]
    assert "anytime" not in names


# --------------------------------------------------------------------------------------------
# What is compared
# --------------------------------------------------------------------------------------------


def test_the_baseline_is_the_greedy_and_the_other_has_most_proofs(tmp_path: Path):
    rows = []
    for name in ("a", "b"):
        rows += [
            made_up(name, "first", solver="highs"),
            made_up(name, "greedy"),
            made_up(name, "best", proven=True),
        ]
    folder = write(tmp_path / "r", rows)
    study = study_of(folder)
    assert (study.left, study.right) == ("greedy", "best")
    study = study_of(folder, left="best", right="first")
    assert (study.left, study.right) == ("best", "first")
    assert study_of(folder, right="greedy").left == "first"
    for names in ({"left": "nobody"}, {"right": "nobody"}, {"left": "best", "right": "best"}):
        with pytest.raises(InputError, match=r"--baseline|--against"):
            study_of(folder, **names)


def test_one_profile_is_held_against_its_bound(quick: Path, tmp_path: Path):
    folder = changed(quick, tmp_path / "one", lambda row: row if row["profile"] == "auto" else None)
    study = study_of(folder)
    assert study.single
    assert "one profile, auto" in basis(study)
    assert "its own best bound" in basis(study)
    text = page_of(study, 2)
    outline = Outline(text)
    assert outline.faults == []
    assert "greedy leaves" not in outline.text
    assert len(pictures(study, chosen(study, 2, ())).packed) == 2
    greedy = changed(
        quick, tmp_path / "other", lambda row: row if row["profile"] == "greedy" else None
    )
    assert "against nothing, since it proves no bound" in basis(study_of(greedy))
    assert Outline(page_of(study_of(greedy), 1)).faults == []


def unproven(row: Row) -> Row:
    if row["profile"] == "auto":
        row["status"], row["stop"] = "feasible", "time_limit"
        row["step_proven"] = [False] * len(row["step_proven"])
        row["step_bounds"] = [value * 0.5 for value in row["step_values"]]
    return row


def test_with_nothing_proven_the_best_bound_is_shown(quick: Path, tmp_path: Path):
    study = study_of(changed(quick, tmp_path / "open", unproven, plans=False))
    assert "Nothing is proven" in basis(study)
    assert "best bound" in basis(study)
    table = unmet_figure(study).table
    series = {row[2] for row in table.rows}
    assert "best bound" in series
    values = {(row[0], row[1], row[2]): row[4] for row in table.rows}
    bound, plan = (values["load", "0.9", name] for name in ("best bound", "auto"))
    assert bound == pytest.approx(0.5 * float(plan or 0))
    finding = next(each for each in findings(study) if each.name == "unmet")
    assert finding.values["bound"] == pytest.approx(0.5 * float(finding.values["right"] or 0))
    words = Outline(page_of(study)).text
    assert "0 of 36" in words
    assert "proven optimum" not in words.split("Terms")[1].split("instance One")[0]


def test_without_any_bound_it_is_plan_against_plan(quick: Path, tmp_path: Path):
    def boundless(row: Row) -> Row:
        row = unproven(row)
        row["step_bounds"] = [None] * len(row["step_bounds"])
        return row

    study = study_of(changed(quick, tmp_path / "none", boundless, plans=False))
    assert "no bound is known" in basis(study)
    assert "best bound" not in {row[2] for row in unmet_figure(study).table.rows}
    assert Outline(page_of(study)).faults == []


def test_some_proofs_are_told_apart(quick: Path, tmp_path: Path):
    def some(row: Row) -> Row:
        return unproven(row) if row["seed"] == 0 else row

    study = study_of(changed(quick, tmp_path / "some", some, plans=False))
    assert "24 of 36 instances (66.7 %)" in basis(study)
    proven = next(each for each in findings(study) if each.name == "unmet_where_proven")
    assert proven.values["instances"] == 24


def test_loads_of_one_seed_are_no_independent_instances(tmp_path: Path):
    def study(seeds: int) -> Study:
        rows = []
        for place in range(12):
            more = {"seed": place % seeds, "load": 0.5 + place / 10}
            unmet = (float(place % 4), 0.0)
            rows.append(made_up(f"i{place}", "greedy", unmet=unmet, **more))
            rows.append(made_up(f"i{place}", "auto", proven=True, **more))
        return study_of(write(tmp_path / str(seeds), rows))

    def width(found: Study) -> float | None:
        values = next(each for each in findings(found) if each.name == "unmet").values
        low, high = values["difference_low"], values["difference_high"]
        assert values["instances"] == 12
        return None if low is None or high is None else float(high) - float(low)

    alone, together = width(study(12)), width(study(4))
    assert alone is not None
    assert together is not None
    assert together > 1.4 * alone
    single = study(1)
    assert width(single) is None
    assert "(one seed, no interval)" in Outline(page_of(single)).text


def test_less_unmet_in_lower_classes_is_explained(tmp_path: Path):
    rows = []
    for place in range(3):
        rows.append(made_up(f"i{place}", "greedy", unmet=(5.0, 0.0)))
        rows.append(made_up(f"i{place}", "auto", unmet=(0.0, 20.0), proven=True))
    found = {each.name: each for each in findings(study_of(write(tmp_path / "r", rows)))}
    assert found["unmet"].values["difference"] == pytest.approx(-0.15)
    assert "15 percentage points less" in found["unmet"].text
    assert "Less in all classes together is not better" in found["unmet"].text
    assert found["unmet_by_priority"].values["difference"] == pytest.approx(0.1)
    assert "10 in class 1 and −40 in class 0" in found["unmet_by_priority"].text
    assert found["order"].values == {"worse": 3, "equal": 0, "better": 0}


def test_failed_rows_are_listed_and_left_out(quick: Path, tmp_path: Path):
    def fail(row: Row) -> Row:
        if row["seed"] == 1 and row["profile"] == "auto":
            row["error"] = "the worker died"
            for name in ("status", "step_names", "step_values", "unmet_gpus", "plan_valid"):
                row[name] = None
        return row

    study = study_of(changed(quick, tmp_path / "failed", fail))
    assert len(study.failed) == 12
    assert len(study.pairs) == 24
    outline = Outline(page_of(study))
    assert "12 solves failed and are left out" in outline.text
    assert "Failed: 12 of 72 rows" in outline.text
    assert outline.text.count("the worker died") == 12


def test_a_run_that_is_not_finished_says_so(quick: Path, tmp_path: Path):
    folder = changed(quick, tmp_path / "half", complete=False, rows=100, plans=False)
    assert "not finished: 72 of 100 rows" in Outline(page_of(study_of(folder))).text


def test_plans_that_were_not_kept(quick: Path, tmp_path: Path):
    study = study_of(changed(quick, tmp_path / "bare", plans=False))
    pairs = chosen(study, 2, ())
    made = pictures(study, pairs)
    assert made.packed == {}
    assert made.without_plan == [pair.key for pair in pairs]
    assert "--keep plans" in Outline(page_of(study, 2)).text
    again = pictures(study, pairs, again=True)
    assert again.solved == list(again.packed) == [pair.key for pair in pairs]
    assert again.otherwise == []
    kept = pictures(study_of(quick), pairs)
    assert again.packed.keys() == kept.packed.keys()


def test_a_damaged_plan_costs_its_picture_only(quick: Path, tmp_path: Path):
    folder = changed(quick, tmp_path / "damaged")
    study = study_of(folder)
    pairs = chosen(study, 3, ())
    (folder / "plans" / f"{pairs[0].left['key']}.json").write_text("{", encoding="utf-8")
    made = pictures(study, pairs)
    assert made.damaged == [pairs[0].key]
    assert len(made.packed) == 2
    assert "a file is damaged" in Outline(page_of(study, 3)).text


def test_an_instance_that_comes_out_otherwise_has_no_picture(quick: Path, tmp_path: Path):
    def other(row: Row) -> Row:
        return {**row, "instance_digest": "0" * 64}

    study = study_of(changed(quick, tmp_path / "other", other))
    made = pictures(study, chosen(study, 2, ()))
    assert len(made.without_instance) == 2
    assert "could not be generated again" in Outline(page_of(study, 2)).text


def test_pictures_are_chosen_by_name_difference_and_spread(quick: Path):
    study = study_of(quick)
    named = study.pairs[-1].key
    pairs = chosen(study, 6, [named])
    keys = [pair.key for pair in pairs]
    assert keys[0] == named
    assert len(keys) == len(set(keys)) == 7
    most = max(
        study.pairs, key=lambda pair: float(pair.left["unmet_gpus"] - pair.right["unmet_gpus"])
    )
    assert most.key in keys
    with pytest.raises(InputError, match="--instance"):
        chosen(study, 6, ["nobody"])


def test_pictures_keep_to_their_room(quick: Path):
    study = study_of(quick)
    pairs = chosen(study, 6, ())
    one = len(next(iter(pictures(study, pairs[:1]).packed.values())))
    made = pictures(study, pairs, most_bytes=2 * one + 200)
    assert 1 <= len(made.packed) < 6
    assert len(made.packed) + len(made.full) == 6
    assert sum(map(len, made.packed.values())) <= 2 * one + 200


def test_thousands_of_rows_make_a_small_page(tmp_path: Path):
    rows = []
    for place in range(1500):
        load = 0.5 + (place % 400) / 500
        more = {"load": load, "gpus": 100 + place % 900, "seed": place, "mixed_s1": place % 37 / 40}
        unmet = (0.0, float(place % 7))
        rows.append(made_up(f"i{place}", "greedy", unmet=unmet, cost=12.0, **more))
        rows.append(made_up(f"i{place}", "auto", proven=True, **more))
    study = study_of(write(tmp_path / "many", rows))
    text = page_of(study)
    assert len(text.encode()) < 3 * 2**20
    outline = Outline(text)
    assert outline.faults == []
    assert outline.tags["td"] < 5000
    assert outline.tags["circle"] + outline.tags["path"] < 5000


# --------------------------------------------------------------------------------------------
# Hostile names
# --------------------------------------------------------------------------------------------


def test_hostile_names_stay_text(quick: Path, tmp_path: Path):
    study = study_of(hostile(quick, tmp_path / "hostile"))
    text, plain = page_of(study, 3), page_of(study_of(quick), 3)
    assert len(pictures(study, chosen(study, 3, ())).packed) == 3
    outline = Outline(text)
    assert outline.faults == []
    assert outline.tags["img"] == outline.tags["b"] == 0
    assert outline.tags["script"] == Outline(plain).tags["script"]
    assert outline.handlers == []
    assert "onerror=alert(1)" in outline.text
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_hostile_names_do_no_harm_in_a_spreadsheet():
    table = Table(("name", "value"), (('=HYPERLINK("x")', -1.5), ("+1\r\n", 2), ('a,"b', None)))
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows[1] == ['\'=HYPERLINK("x")', "-1.5"]
    assert rows[2][0].startswith("'+1")
    assert rows[3] == ['a,"b', ""]


# --------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_a_page_and_says_what_it_found(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "page.html"
    code, text, err = run(capsys, quick, "--out", out, "--placements", 2)
    assert code == 0
    assert "proven optimum" in text
    assert str(out) in err
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_lies_beside_the_results(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = changed(quick, tmp_path / "r", plans=False)
    assert run(capsys, folder / "manifest.json", "--placements", 0)[0] == 0
    assert (folder / "report.html").is_file()


def test_json_holds_the_findings(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "page.html"
    code, text, _ = run(capsys, quick, "--out", out, "--placements", 1, "--json")
    found = json.loads(text)
    assert code == 0
    assert (found["baseline"], found["against"]) == ("greedy", "auto")
    assert found["instances"] == found["proven"] == 36
    assert found["bytes"] == out.stat().st_size
    assert len(found["pictures"]) == 1
    assert {each["name"] for each in found["findings"]} >= {"unmet", "waste", "order", "time"}


def test_the_command_of_a_figure_prints_its_file(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "page.html"
    run(capsys, quick, "--out", out, "--placements", 0, "--baseline", "greedy")
    page = out.read_text(encoding="utf-8")
    for name in ("unmet", "waste", "differences", "gaps", "anytime", "time"):
        link = re.search(rf'download="{name}.csv" href="data:[^,]*,([^"]*)"', page)
        assert link is not None
        command = re.search(rf"^(heteroplace report .* --table {name})</pre>", page, re.M)
        assert command is not None
        arguments = shlex.split(command[1])
        assert arguments[:2] == ["heteroplace", "report"]
        assert main(arguments[1:]) == 0
        assert capsys.readouterr().out.replace("\r\n", "\n") == unquote(link[1]).replace(
            "\r\n", "\n"
        )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--table", "nothing"], "--table"),
        (["--table", "unmet", "--json"], "--json"),
        (["--table", "unmet", "--out", "x.html"], "--out"),
        (["--baseline", "nobody"], "--baseline"),
        (["--against", "greedy", "--baseline", "greedy"], "--against"),
        (["--instance", "nobody"], "--instance"),
        (["--placements", "-1"], "report"),
        (["--placements", "9" * 30], "report"),
        (["--out", "no/such/folder/x.html"], "no/such/folder/x.html"),
    ],
)
def test_bad_options_are_one_clear_line(
    quick: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
):
    code, out, err = run(capsys, quick, *options)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert f"heteroplace: {named}" in err


def test_bad_results_are_one_clear_line(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    empty = write(tmp_path / "empty", [], Experiment.from_toml(QUICK))
    failed = write(
        tmp_path / "failed",
        [made_up("a", "greedy", error="no memory"), made_up("a", "auto", error="no memory")],
    )
    apart = write(tmp_path / "apart", [made_up("a", "greedy"), made_up("b", "auto")])
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(quick, broken)
    (broken / "results.parquet").write_bytes(b"not a table")
    for folder, message in (
        (empty, "holds no results yet"),
        (failed, "2 failed: no memory"),
        (apart, "no instance that both"),
        (nothing, "manifest.json"),
        (tmp_path / "nowhere", "manifest.json"),
        (broken, "results.parquet"),
    ):
        code, out, err = run(capsys, folder)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
        assert not (folder / "report.html").exists()


# --------------------------------------------------------------------------------------------
# Charts, groups and words
# --------------------------------------------------------------------------------------------


def circles(panel: Panel) -> list[tuple[float, float]]:
    svg = ElementTree.fromstring(draw(panel, "x"))
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in svg.iter("circle")]


def panel(kind: str, marks: list[Mark], x: Axis, y: Axis) -> Panel:
    return Panel("t", "d", kind, x, y, (Series("s", 0, tuple(marks)),))


def test_marks_are_where_their_values_are():
    names = Axis("category", names=("a", "b", "c"))
    marks = [Mark(0, 0.0), Mark(1, 0.25), Mark(2, 0.5)]
    (x0, y0), (x1, y1), (x2, y2) = circles(
        panel("dots", marks, names, Axis("share", percent=True, least=0.0))
    )
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) != 0
    assert y0 > y2
    log = Axis("seconds", log=True)
    marks = [Mark(0.01, 0.0), Mark(0.1, 0.5), Mark(1.0, 1.0)]
    (x0, y0), (x1, _), (x2, y2) = circles(panel("lines", marks, log, Axis("share", zero=True)))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert x2 > x0
    assert y2 < y0


def test_wide_names_of_categories_do_not_overlap():
    names = tuple(f"0.{n}3–0.{n}7 long" for n in range(6))
    marks = [Mark(place, 1.0) for place in range(6)]
    svg = ElementTree.fromstring(draw(panel("dots", marks, Axis("x", names=names), Axis("y")), "x"))
    rows: dict[str, list[tuple[float, float]]] = {}
    for text in svg.iter("text"):
        if text.get("text-anchor") == "middle" and text.get("class") == "tick":
            half = 3.2 * len("".join(text.itertext()).removeprefix(text.findtext("title") or ""))
            at = float(text.get("x", ""))
            rows.setdefault(text.get("y", ""), []).append((at - half, at + half))
    assert len(rows) == 2
    for spans in rows.values():
        for (_, end), (start, _) in pairwise(spans):
            assert end < start


def test_bars_are_as_tall_as_their_values_and_stack():
    x, y = Axis("size", names=("a", "b")), Axis("seconds", least=0.0)
    series = (
        Series("one", 0, (Mark(0, 1.0), Mark(1, 2.0))),
        Series("two", 1, (Mark(0, 3.0), Mark(1, 0.0))),
    )
    svg = ElementTree.fromstring(draw(Panel("t", "d", "bars", x, y, series), "x"))
    bars = [(float(r.get("y", "")), float(r.get("height", ""))) for r in svg.iter("rect")]
    assert len(bars) == 3
    (y0, h0), (_, h1), (y2, h2) = bars
    assert h1 == pytest.approx(2 * h0, rel=0.01)
    assert h2 == pytest.approx(3 * h0, rel=0.01)
    assert y2 + h2 == pytest.approx(y0, abs=0.2)


@pytest.mark.parametrize("kind", ["dots", "steps", "lines", "bars"])
@pytest.mark.parametrize("values", [[], [0.0], [0.0, 0.0], [1e9, 1e-9], [5.0, 5.0]])
def test_any_values_make_a_chart(kind: str, values: list[float]):
    names = ("a", "b") if kind in ("dots", "bars") else ()
    marks = [Mark(place, value) for place, value in enumerate(values)]
    svg = ElementTree.fromstring(draw(panel(kind, marks, Axis("x", names=names), Axis("y")), "x"))
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode").lower()


def pairs_with(column: str, values: list[Any]) -> list[Pair]:
    rows = [made_up(f"i{place}", "greedy", **{column: v}) for place, v in enumerate(values)]
    return [Pair(row, row) for row in rows]


def test_few_values_are_groups_and_many_are_ranges():
    few = grouped(pairs_with("load", [0.5, 1.3, 0.5, None]), "load", "load")
    assert few.names == ("0.5", "1.3", "unknown")
    assert grouped(pairs_with("mixed_s1", [3 / 14, 0.25]), "mixed_s1", "").names == (
        "0.214",
        "0.25",
    )
    close = grouped(pairs_with("load", [1.00001, 1.00002]), "load", "load")
    assert close.names == ("1.00001", "1.00002")
    assert [len(each) for each in few.members] == [2, 1, 1]
    many = grouped(pairs_with("gpus", list(range(100, 1100))), "gpus", "GPUs")
    assert 3 <= len(many.names) <= 9
    assert sum(len(each) for each in many.members) == 1000
    for low, high in pairwise(many.members):
        assert max(p.left["gpus"] for p in low) < min(p.left["gpus"] for p in high)
    texts = grouped(pairs_with("affinity", [f"a{n % 20}" for n in range(100)]), "affinity", "")
    assert texts.names[-1] == "others"
    assert sum(len(each) for each in texts.members) == 100


def test_words():
    assert [number(each) for each in (0, 1234.5, 0.12345, 1e-9, 2.50, -3.25, 10)] == [
        "0",
        "1,234",
        "0.123",
        "0.000000001",
        "2.5",
        "−3.25",
        "10",
    ]
    assert number(None) == number(float("nan")) == "–"
    assert percent(0.1234) == "12.3 %"
    assert seconds(0.0123) == "12.3 ms"
    assert seconds(1.5) == "1.5 s"
    assert ranges((0, 1, 2, 5, 7, 8)) == "0–2, 5, 7–8"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([str(n) for n in range(9)], 3) == "0, 1 and 7 more"
    assert brief("abcdef", 4) == "abc…"
