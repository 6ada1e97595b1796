"""The studies that ship: their experiments, the pairs they compare, and the numbers they print."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from heteroplace import Instance, Profile, check, solve
from heteroplace.cli import main
from heteroplace.compare.experiment import Experiment, Task
from heteroplace.compare.measure import Order, generated_again, measure
from heteroplace.compare.record import read_results
from heteroplace.compare.rewrite import Rewrite
from heteroplace.errors import InputError
from heteroplace.generate import family_from, generate
from heteroplace.report.study import Study

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
PAGE = ROOT / "docs/studies.md"
STUDIES = ("load", "topology", "ratio-bands")
ENTRIES = [
    (name, entry.label)
    for name in ("topology", "ratio-bands")
    for entry in Experiment.from_file(FOLDER / f"{name}.toml").entries
]
EXACT = Profile(threads=1, time_limit=60.0)


def script():
    spec = importlib.util.spec_from_file_location("findings", FOLDER / "findings.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["findings"] = module
    spec.loader.exec_module(module)
    return module


findings = script()


def made(task: Task) -> Instance:
    return task.rewrite.apply(generate(task.made, task.seed))


def stripped(instance: Instance) -> dict:
    """All but the rules: affinities, groups' domains and bands."""
    data = json.loads(instance.to_json())
    for service in data["services"]:
        service.pop("affinity", None)
        service.pop("ratios", None)
    for group in data.get("running", ()):
        group.pop("domain", None)
    return data


def tasks(study: str, entry: str, size: float, seeds: int) -> list[Task]:
    """The tasks of an entry at another size, with its first seeds."""
    experiment = Experiment.from_file(FOLDER / f"{study}.toml").narrowed(
        entries=[entry], seeds=seeds
    )
    chosen = experiment.entries[0].model_copy(update={"sizes": (size,)})
    return list(experiment.model_copy(update={"entries": (chosen,)}).tasks())


def by_pair(every: list[Task]) -> list[list[Task]]:
    """Tasks that differ in the rewritten rule only, in the order of its values."""
    pairs: dict[tuple, list[Task]] = {}
    for task in every:
        own = Rewrite.split(json.loads(task.knobs))[1]
        pairs.setdefault((json.dumps(own), task.size, task.seed), []).append(task)
    return list(pairs.values())


# ------------------------------------------------------------------------------------- rewriting


@pytest.mark.parametrize(("study", "entry"), ENTRIES)
def test_pairs_differ_in_nothing_but_the_rule(study, entry):
    pairs = by_pair(tasks(study, entry, 0.5, 3))
    assert all(len(pair) in (3, 5) for pair in pairs)
    for pair in pairs:
        instances = [made(task) for task in pair]
        assert len({each.digest for each in instances}) == len(pair)
        first = stripped(instances[0])
        assert all(stripped(each) == first for each in instances[1:])


def test_a_knob_of_the_family_would_not_make_pairs():
    """Why the rules are rewritten: drawn with another affinity or band, all comes out otherwise."""
    for knob, values in (("affinity", ({"s1": 1}, {"none": 1})), ("band", (0, 1))):
        one, other = (generate(family_from("small", {knob: value}), 0) for value in values)
        assert stripped(one) != stripped(other), knob


@pytest.mark.parametrize(
    ("kind", "required", "preferred"),
    [("none", None, None), ("s2", "s2", None), ("s1", "s1", None), ("s2+s1", "s2", "s1")],
)
def test_every_service_and_group_gets_the_affinity(kind, required, preferred):
    drawn = generate(family_from("small", {"affinity": {"s1": 1}}), 1)
    instance = Rewrite(every_affinity=kind).apply(drawn)
    assert {(each.affinity.required, each.affinity.preferred) for each in instance.services} == {
        (required, preferred)
    }
    assert instance.running
    domains = {node.name: node.domains for node in instance.nodes}
    for group in instance.running:
        lies = {domains[name].get(required) for each in group.instances for name in each.nodes}
        assert lies == {group.domain}


def test_every_band_gets_the_half_width_about_its_ratio():
    drawn = generate(family_from("small", {"band": 0.1}), 2)
    instance = Rewrite(every_band=0.3).apply(drawn)
    pairs = [
        (one.ratios[0], other.ratios[0])
        for one, other in zip(drawn.services, instance.services, strict=True)
        if one.ratios
    ]
    assert pairs
    for one, other in pairs:
        middle = (one.min + one.max) / 2
        assert (other.min, other.max) == (middle * Fraction(7, 10), middle * Fraction(13, 10))


def test_without_rules_the_instance_is_itself():
    drawn = generate(family_from("small", {"scale": 0.25}), 0)
    assert Rewrite().apply(drawn) is drawn
    assert Rewrite(every_affinity="s1").apply(generate(family_from("small", {"running": 0}), 0))


def test_what_runs_is_as_it_should_be_under_every_rule():
    for pair in by_pair(tasks("topology", "fits-s1", 0.5, 2)) + by_pair(
        tasks("ratio-bands", "small", 0.5, 2)
    ):
        for task in pair:
            instance = made(task)
            result = solve(instance, Profile(solver="greedy"))
            assert check(instance, result.plan) == []
            repair = [step.value for step in result.steps if step.name == "repair"]
            # Nothing is broken but surplus that a role still has to give back.
            assert all(
                amount == 0 for name, amount in result.repairs.items() if name != "target"
            ), (repair, result.repairs)


def test_a_group_that_does_not_fit_the_affinity_is_refused():
    drawn = generate(family_from("small", {"affinity": {"none": 1}}), 0)
    with pytest.raises(InputError, match=r"every_affinity.*running = 0"):
        Rewrite(every_affinity="s1").apply(drawn)


@pytest.mark.parametrize(
    ("knobs", "path", "message"),
    [
        ("every_affinity = 's3'", "entries[0].knobs.every_affinity", "'none'"),
        ("every_affinity = 1", "entries[0].knobs.every_affinity", "'none'"),
        ("every_band = 1.5", "entries[0].knobs.every_band", "less than or equal to 1|at most 1"),
        ("every_band = -0.5", "entries[0].knobs.every_band", "0"),
        ("every_band = nan", "entries[0].knobs.every_band", "number|finite|0"),
        ("every_band = 0.1", "entries[0].knobs.every_band", "below the knob band 0.25"),
    ],
)
def test_rules_that_do_not_fit_are_refused(knobs, path, message):
    text = (
        'name = "bad"\nprofiles = ["greedy"]\n[[entries]]\nfamily = "small"\n'
        f"[entries.knobs]\n{knobs}\n"
    )
    with pytest.raises(InputError) as caught:
        Experiment.from_toml(text)
    assert path in str(caught.value)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_grid_names_the_rule_at_fault():
    text = (
        'name = "bad"\nprofiles = ["greedy"]\n[[entries]]\nfamily = "small"\n'
        "grid.every_band = [0.5, 0.1]\n"
    )
    with pytest.raises(InputError, match=r"entries\[0\]\.grid\.every_band"):
        Experiment.from_toml(text)


def test_the_table_says_the_affinity_and_makes_the_instance_again():
    experiment = Experiment.from_file(FOLDER / "topology.toml").narrowed(entries=["any"], seeds=1)
    greedy = {"greedy": experiment.used_profiles()["greedy"]}
    seen = set()
    for task in list(experiment.tasks())[:3]:
        finished = []
        measure(Order("topology", task, greedy), finished.append)
        row = finished[0].row
        assert row["error"] is None
        assert generated_again(row).digest == row["instance_digest"]
        seen.add(row["affinity"])
    assert seen == {"none", "s2", "s1"}


# --------------------------------------------------------------------------------- the optimum


@pytest.mark.parametrize(("study", "entry"), ENTRIES)
def test_the_optimum_never_loses_by_a_looser_rule(study, entry):
    """Any plan under the tighter rule, its groups joined, is one under the looser."""
    unmet = []
    for pair in by_pair([task for task in tasks(study, entry, 0.25, 3) if "0.9" in task.knobs]):
        values = []
        for task in pair:
            result = solve(made(task), EXACT)
            assert result.status == "optimal"
            assert result.steps[0].name == "unmet[0]"
            values.append(result.steps[0].value)
        tightest_last = values if study == "topology" else values[::-1]
        assert tightest_last == sorted(tightest_last)
        unmet.append(tightest_last)
    assert any(values[0] < values[-1] for values in unmet), "no rule made a difference"


# ------------------------------------------------------------------------------------ the script


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two small studies that were really run: paired bands, and loads."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "x.toml").write_text(
        """
name = "x"
seeds = 3
sizes = [0.25]
profiles = ["greedy", {name = "exact", solver = "auto", time_limit = 60.0}]
[[entries]]
family = "small"
knobs = {band = 0, priorities = [0], minimum = 0}
grid.load = [0.8, 1.1]
grid.every_band = [0, 0.5]
""",
        encoding="utf-8",
    )
    assert main(["compare", str(folder / "x.toml"), "--out", str(folder / "x")]) == 0
    return folder / "x"


def printed(capsys, *words: str) -> dict:
    assert findings.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_lines_are_the_sums_of_the_table(results, capsys):
    found = printed(capsys, str(results), "--by", "every_band")
    rows = read_results(results).rows()
    assert [line["value"] for line in found["lines"]] == ["0", "0.5"]
    for line in found["lines"]:
        mine = [
            row for row in rows if json.loads(row["knobs"])["every_band"] == float(line["value"])
        ]
        for side, profile in (("left", "greedy"), ("right", "exact")):
            chosen = [row for row in mine if row["profile"] == profile]
            share = sum(row["unmet_gpus"] for row in chosen) / sum(
                row["target_gpus"] for row in chosen
            )
            assert line[side]["estimate"] == pytest.approx(share)
        assert line["instances"] == 6
        assert line["proven"] == line["unmet_proven"] == 6
        assert line["bound"] == pytest.approx(line["right"]["estimate"])
        assert line["better"] == 0
        assert line["better"] + line["equal"] + line["worse"] == 6
        difference = line["difference"]
        assert difference["estimate"] == pytest.approx(
            line["left"]["estimate"] - line["right"]["estimate"]
        )
        assert difference["low"] <= difference["estimate"] <= difference["high"]


def test_intervals_draw_seeds_not_instances(results, capsys):
    """Two loads of a seed are drawn together: three observations, not six."""
    found = printed(capsys, str(results), "--by", "every_band", "--pair")
    every = [line["difference"] for line in found["lines"]] + [
        pair["difference"] for pair in found["pairs"]
    ]
    assert {each["observations"] for each in every} == {3}
    rows = [row for row in read_results(results).rows() if row["profile"] == "exact"]
    by_seed = {seed: [0.0, 0.0] for seed in range(3)}
    for row in rows:
        sign = {0: -1, 0.5: 1}[json.loads(row["knobs"])["every_band"]]
        by_seed[row["seed"]][0] += sign * row["unmet_gpus"]
        by_seed[row["seed"]][1] += row["target_gpus"] if sign == 1 else 0
    above, below = np.array(list(by_seed.values())).T
    exact = next(pair for pair in found["pairs"] if pair["profile"] == "exact")
    assert exact["value"] == "0.5 − 0"
    assert exact["pairs"] == exact["proven"] == 6
    assert exact["difference"]["estimate"] == pytest.approx(above.sum() / below.sum())
    # With three seeds the ends are the most extreme seeds themselves.
    ratios = sorted(above / below)
    assert exact["difference"]["low"] == pytest.approx(ratios[0])
    assert exact["difference"]["high"] == pytest.approx(ratios[-1])


def test_a_knob_that_takes_part_in_the_draws_is_no_pair(results, capsys):
    assert findings.main([str(results), "--by", "load", "--pair"]) == 2
    assert "not only in load" in capsys.readouterr().err


def test_where_and_other_columns(results, capsys):
    found = printed(
        capsys, str(results), "--by", "load", "--where", "every_band=0.5", "--column", "groups"
    )
    assert [line["value"] for line in found["lines"]] == ["0.8", "1.1"]
    assert [line["instances"] for line in found["lines"]] == [3, 3]
    assert found["measure"] == "groups"
    assert all(line["bound"] is None for line in found["lines"])


def test_the_tables_are_markdown_with_seeds_and_intervals(results, capsys):
    assert findings.main([str(results), "--by", "every_band", "--pair"]) == 0
    text = capsys.readouterr().out
    assert "small: 3 seeds, 0 to 2" in text
    assert re.search(r"^\| 0\.5 − 0 \| exact \| 6 \| 6 \| −?\d+\.\d\d \[", text, re.M)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--by", "nothing"), "no knob 'nothing'"),
        (("--by", "load", "--column", "error"), "no column of numbers"),
        (("--by", "load", "--of", "status"), "no column of numbers"),
        (("--by", "every_band", "--pair", "--reference", "7"), "no value '7'"),
        (("--by", "load", "--where", "load"), "KNOB=VALUE"),
        (("--by", "load", "--where", "load=9"), "no instance has load=9"),
    ],
)
def test_bad_options_are_named(results, capsys, words, fault):
    assert findings.main([str(results), *words]) == 2
    assert fault in capsys.readouterr().err


def test_no_results(tmp_path, capsys):
    assert findings.main([str(tmp_path), "--by", "load"]) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_the_report_shows_pairs_by_affinity(tmp_path):
    text = (FOLDER / "topology.toml").read_text(encoding="utf-8")
    small = re.sub(r"sizes = \[.*\]", "sizes = [0.25]", text).replace("[0.7, 0.9, 1.1]", "[0.9]")
    (tmp_path / "t.toml").write_text(small, encoding="utf-8")
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "t.toml"), "--seeds", "1", "--out", str(out)]) == 0
    study = Study.of(read_results(out))
    assert {pair.right["affinity"] for pair in study.pairs} == {"none", "s2", "s1"}
    assert main(["report", str(out), "--placements", "2"]) == 0
    assert (out / "report.html").stat().st_size > 10_000


# ------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_on_the_page_with_its_commands(name):
    page = PAGE.read_text(encoding="utf-8")
    experiment = Experiment.from_file(FOLDER / f"{name}.toml")
    assert experiment.name == name
    assert f"heteroplace compare experiments/{name}.toml" in page
    assert f"heteroplace report out/{name}" in page
    assert experiment.instances == int(
        re.search(rf"^\| `{name}` \|[^|]*\| ([\d,]+) \|", page, re.M).group(1).replace(",", "")
    )
    assert experiment.seeds == tuple(range(20))
    assert {each.name for each in experiment.profiles} == {"greedy", "exact"}


def test_the_snippet_prints_what_the_page_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    exec(compile(re.search(r"```python\n(.*?)```", page, re.S).group(1), "studies.md", "exec"), {})
    assert f"It prints `{capsys.readouterr().out.strip()}`" in page
