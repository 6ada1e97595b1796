"""The benchmark command: what it measures, records, compares and keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import heteroplace.bench.references as references_module
import heteroplace.bench.runner as runner
from heteroplace import Instance, Profile, solve
from heteroplace.bench import Suite, run_suite
from heteroplace.bench.anytime import AnytimePoint, AnytimeReport, draw, falls
from heteroplace.bench.best import BestFile, BestKnown, BestStep, merged
from heteroplace.bench.isolation import isolated
from heteroplace.bench.measure import measure_reference, measure_solver
from heteroplace.bench.memory import PeakMemory
from heteroplace.bench.ratio import compared, least_ratio, median_ratio
from heteroplace.bench.record import (
    InstanceRecord,
    Ratio,
    ReferenceRecord,
    Report,
    SolverRecord,
    StepRecord,
)
from heteroplace.bench.references import REFERENCES, run_reference
from heteroplace.bench.scaling import ScalingPoint, ScalingReport, fit_exponent, fits
from heteroplace.bench.steps import contradiction, difference
from heteroplace.bench.suite import ReferenceName
from heteroplace.bench.summary import spread
from heteroplace.bench.tables import PLACE, markdown, ratio, updated_page
from heteroplace.cli import main
from heteroplace.generate import FAMILIES, family_from, generate
from heteroplace.plan import Seconds, Size
from heteroplace.solve.engine import within

Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[1]
HAND_MADE = sorted((ROOT / "instances").glob("*.json"))

TINY = """
name = "tiny"
seeds = 2
time_limit = 20.0
reference_time_limit = 20.0

[[entries]]
family = "small"
knobs = { scale = 0.25 }

[[entries]]
name = "odd-loose"
family = "odd"
knobs = { scale = 0.1, load = 0.4 }
seeds = [3]
references = ["greedy", "highs"]
"""


ENVIRONMENT = runner.environment()


@pytest.fixture(autouse=True)
def same_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs can be continued even when somebody edits the project in between."""
    monkeypatch.setattr(runner, "environment", lambda: ENVIRONMENT)


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``heteroplace bench``."""
    capsys.readouterr()
    code = main(["bench", *map(str, arguments)])
    return code, *capsys.readouterr()


def refused(capsys: Capture, *arguments: object) -> str:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("heteroplace: ")
    assert err.count("\n") == 1
    return err[len("heteroplace: ") : -1]


def steps(*values: float | None, bounds: tuple[float | None, ...] = ()) -> tuple[StepRecord, ...]:
    """Steps with values, and with bounds from the first on."""
    filled = (*bounds, *[None] * (len(values) - len(bounds)))
    return tuple(
        StepRecord(
            name=f"step{index}",
            value=value,
            bound=bound,
            proven=value is not None and value == bound,
        )
        for index, (value, bound) in enumerate(zip(values, filled, strict=True))
    )


def solver_record(
    found: tuple[StepRecord, ...], status: str = "optimal", seconds: float = 2.0
) -> SolverRecord:
    return SolverRecord.model_validate(
        {
            "status": status,
            "stop_reason": "proven" if status == "optimal" else "time_limit",
            "engine": "HiGHS",
            "time_limit": 10.0,
            "seconds": seconds,
            "overrun": 0.0,
            "phases": Seconds(read=0.1, build=0.2, solve=0.3, assign=0.4),
            "size": Size(columns=7, rows=5, nonzeros=9),
            "steps": found,
            "peak_memory": 64 * 2**20,
            "isolated": False,
        }
    )


def reference_record(
    found: tuple[StepRecord, ...], outcome: str, seconds: float | None = 10.0
) -> ReferenceRecord:
    return ReferenceRecord.model_validate(
        {
            "name": "greedy" if outcome == "heuristic" else "highs",
            "outcome": outcome,
            "time_limit": 10.0,
            "seconds": seconds,
            "steps": found,
        }
    )


# --------------------------------------------------------------------------------------------
# A suite from end to end
# --------------------------------------------------------------------------------------------


def test_a_suite_from_end_to_end(capsys: Capture, tmp_path: Path, suite_file: Path) -> None:
    results, page, best = (tmp_path / name for name in ("out.json", "page.md", "best.json"))
    arguments = ("--out", results, "--markdown", page, "--best", best, "--update-best")
    code, out, err = run(capsys, suite_file, *arguments)
    assert (code, err) == (0, "")
    report = Report.from_file(results)
    assert report.complete
    assert [(each.entry, each.seed) for each in report.instances] == [
        ("small", 0),
        ("small", 1),
        ("odd-loose", 3),
    ]
    for record in report.instances:
        instance = generate(family_from(record.family, record.knobs), record.seed)
        assert record.error is None
        assert record.notes == ()
        assert record.size is not None
        assert record.solver is not None
        assert record.digest == instance.digest
        assert record.size.gpus == sum(node.gpus for node in instance.nodes)
        assert record.size.services == len(instance.services)
        assert record.solver.size.columns > 0
        assert record.solver.status == "optimal"
        assert record.solver.phases.read is not None
        parts = record.solver.phases
        assert parts.build + parts.solve + parts.assign <= record.solver.seconds
        for each in record.references:
            assert each.ratio is not None
            assert each.seconds is not None
            assert each.ratio.value == pytest.approx(each.seconds / record.solver.seconds)
            if each.name == "greedy":
                assert each.outcome == "heuristic"
                assert each.quality in ("equal", "worse")
            else:
                assert (each.outcome, each.quality) == ("proven", "equal")
        assert record.best is not None
        assert record.best.solver
        assert record.best.improved
    names = [[each.name for each in record.references] for record in report.instances]
    assert names == [["greedy", "highs", "cpsat"]] * 2 + [["greedy", "highs"]]
    assert [summary.proven for summary in report.summaries] == [2, 1]
    known = BestFile.from_file(best).instances
    assert sorted(known) == [
        "odd load=0.4 scale=0.1 seed=3",
        "small scale=0.25 seed=0",
        "small scale=0.25 seed=1",
    ]
    text = page.read_text(encoding="utf-8")
    assert text.count("| `small` | 2 |") == 1
    assert str(report.environment.python) in text
    for words in ("odd-loose", "proven", "better than known on 3 instances (kept)"):
        assert words in out
    # A second run finds nothing better and leaves the file as it is.
    before = best.read_text(encoding="utf-8")
    code, out, _ = run(capsys, suite_file, "--best", best, "--update-best", "--references", "none")
    assert code == 0
    assert "better than known" not in out
    assert best.read_text(encoding="utf-8") == before


def test_json_has_every_documented_field_and_nothing_else(
    capsys: Capture, suite_file: Path
) -> None:
    code, out, _ = run(capsys, suite_file, "--json", "--seeds", 1, "--entry", "small")
    assert code == 0
    data = json.loads(out)
    assert Report.from_json(out).to_json() + "\n" == out
    assert set(data) == {
        "schema",
        "kind",
        "suite",
        "suite_digest",
        "solver",
        "began",
        "load",
        "isolated",
        "environment",
        "complete",
        "instances",
        "summaries",
    }
    assert (data["schema"], data["kind"], data["suite"]) == (1, "suite", "tiny")
    (instance,) = data["instances"]
    assert set(instance["solver"]["phases"]) == {"read", "build", "solve", "assign"}
    for step in instance["solver"]["steps"]:
        assert set(step) == {"name", "value", "bound", "gap", "proven"}
    assert [each["name"] for each in instance["references"]] == ["greedy", "highs", "cpsat"]
    for each in instance["references"]:
        assert set(each["ratio"]) == {"value", "relation"}
    (summary,) = data["summaries"]
    assert summary["seconds"]["median"] == instance["solver"]["seconds"]
    assert {"cores", "cpu", "python", "versions", "commit"} <= set(data["environment"])
    assert {"heteroplace", "highspy", "ortools"} <= set(data["environment"]["versions"])
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for model in (Report, InstanceRecord, SolverRecord, ReferenceRecord):
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in page, name


def interrupt_after(monkeypatch: pytest.MonkeyPatch, measured: int) -> list[str]:
    """Interrupt the run when that many instances are measured; returns what is measured."""
    calls: list[str] = []

    def measure(text: str, *rest: Any) -> Any:
        if len(calls) == measured:
            raise KeyboardInterrupt
        calls.append(json.loads(text)["name"])
        return measure_solver(text, *rest)

    monkeypatch.setattr(runner, "measure_solver", measure)
    return calls


def test_an_interrupted_run_keeps_what_is_done_and_resumes(
    capsys: Capture, tmp_path: Path, suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "out.json"
    arguments = (suite_file, "--references", "greedy", "--out", results)
    interrupt_after(monkeypatch, 1)
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (130, "heteroplace: interrupted\n")
    assert "unfinished; continue with --resume" in out
    first = Report.from_file(results)
    assert not first.complete
    assert [(each.entry, each.seed) for each in first.instances] == [("small", 0)]
    calls = interrupt_after(monkeypatch, 99)
    code, out, _ = run(capsys, *arguments, "--resume")
    assert code == 0
    assert calls == ["small-1", "odd-3"]
    second = Report.from_file(results)
    assert second.complete
    assert len(second.instances) == 3
    assert second.instances[0].solver == first.instances[0].solver
    assert second.began == first.began
    # Everything is there: nothing is measured again.
    calls = interrupt_after(monkeypatch, 0)
    assert run(capsys, *arguments, "--resume")[0] == 0
    assert calls == []


def test_a_failing_instance_is_recorded_and_tried_again(
    capsys: Capture, tmp_path: Path, suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "out.json"
    arguments = (suite_file, "--references", "greedy", "--out", results)

    def measure(text: str, *rest: Any) -> Any:
        if json.loads(text)["name"] == "small-0":
            raise RuntimeError("out of luck | twice")
        return measure_solver(text, *rest)

    monkeypatch.setattr(runner, "measure_solver", measure)
    code, out, _ = run(capsys, *arguments)
    assert code == 1
    assert "small seed 0 failed: RuntimeError: out of luck" in out
    report = Report.from_file(results)
    assert report.complete
    assert report.failed == 1
    assert report.instances[0].error == "RuntimeError: out of luck | twice"
    assert report.summaries[0].failed == 1
    assert all(record.solver is not None for record in report.instances[1:])
    assert "out of luck \\| twice" in markdown(report)
    calls = interrupt_after(monkeypatch, 99)
    assert run(capsys, *arguments, "--resume")[0] == 0
    assert calls == ["small-0"]
    assert [each.error for each in Report.from_file(results).instances] == [None] * 3


def test_a_run_continues_only_what_is_the_same(
    capsys: Capture, tmp_path: Path, suite_file: Path
) -> None:
    results = tmp_path / "out.json"
    arguments = (suite_file, "--references", "none", "--entry", "small", "--out", results)
    assert run(capsys, *arguments, "--seeds", 1)[0] == 0
    other = refused(capsys, *arguments, "--seeds", 2, "--resume")
    assert other.startswith(f"{results}: suite_digest is ")
    isolated_run = refused(capsys, *arguments, "--seeds", 1, "--isolate", "--resume")
    assert isolated_run.startswith(f"{results}: isolated is True now but was False")
    data = json.loads(results.read_text(encoding="utf-8"))
    data["environment"]["cores"] = 1000
    results.write_text(json.dumps(data), encoding="utf-8")
    machine = refused(capsys, *arguments, "--seeds", 1, "--resume")
    assert machine.startswith(f"{results}: environment.cores is ")
    results.write_text('{"schema": 1}', encoding="utf-8")
    assert refused(capsys, *arguments, "--seeds", 1, "--resume").startswith(f"{results}: ")
    assert refused(capsys, suite_file, "--resume").startswith("--resume: needs --out FILE")


def test_measurements_in_processes_of_their_own() -> None:
    suite = Suite.from_toml(TINY).narrowed(entries=["odd-loose"])
    report, _ = run_suite(suite, isolate=True)
    (record,) = report.instances
    assert report.isolated
    assert record.error is None
    assert record.solver is not None
    assert record.solver.isolated
    assert record.solver.peak_memory is not None
    assert [each.outcome for each in record.references] == ["heuristic", "proven"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((9,), "exit code 9"), ((-signal.SIGKILL,), "killed by signal 9"), ((0,), "ValueError: zero")],
)
def test_a_dying_process_is_a_failure_of_its_measurement(
    arguments: tuple[int], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        isolated(die, *arguments)


def die(code: int) -> None:
    if code == 0:
        raise ValueError("zero")
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def test_peak_memory_is_that_of_one_measurement() -> None:
    block = 2**28

    def held(size: int) -> int | None:
        memory = PeakMemory()
        np.ones(size, np.uint8)
        return memory.bytes()

    large, small = held(block), held(1)
    if large is None or small is None:
        assert not Path("/proc/self/clear_refs").exists()
    else:
        assert large - small > block / 2


# --------------------------------------------------------------------------------------------
# References
# --------------------------------------------------------------------------------------------


def small_instances() -> list[Any]:
    made = [
        pytest.param(generate(family_from(name, knobs), seed), id=f"{name}-{seed}")
        for name, knobs in (
            ("small", {"scale": 0.25, "load": 1.3}),
            ("odd", {"scale": 0.1}),
            ("moe", {"scale": 0.25}),
            ("cycle", {"scale": 0.05}),
        )
        for seed in range(2)
    ]
    return made + [pytest.param(Instance.from_file(path), id=path.stem) for path in HAND_MADE]


@pytest.mark.parametrize("name", ["highs", "cpsat"])
@pytest.mark.parametrize("instance", small_instances())
def test_references_prove_the_values_that_solve_proves(
    instance: Instance, name: ReferenceName
) -> None:
    result = solve(instance, Profile(time_limit=60.0))
    assert result.status == "optimal"
    reference = run_reference(name, instance, 60.0)
    assert (reference.outcome, reference.message) == ("proven", None)
    assert [step.name for step in reference.steps] == [step.name for step in result.steps]
    for step, other in zip(reference.steps, result.steps, strict=True):
        assert step.proven
        assert step.value == pytest.approx(other.value, rel=1e-6, abs=1e-9)
        assert step.bound == pytest.approx(other.value, rel=2e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["highs", "cpsat"])
def test_a_reference_that_is_stopped_claims_no_more_than_it_has(name: ReferenceName) -> None:
    instance = generate(family_from("replan", {"scale": 0.1}), 0)
    reference = run_reference(name, instance, 0.05)
    assert reference.outcome == "time_limit"
    assert not all(step.proven for step in reference.steps)
    best = solve(instance, Profile(time_limit=5.0))
    for step in reference.steps[:1]:
        if step.bound is not None:
            assert step.bound <= best.steps[0].value + 1e-6


def test_a_reference_that_fails_or_is_missing_is_recorded(
    capsys: Capture, suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        name: ReferenceName = "highs"

        def run(self, instance: Instance, time_limit: float) -> ReferenceRecord:
            raise RuntimeError("no luck")

    monkeypatch.setitem(REFERENCES, "highs", Broken())
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    instance = generate(family_from("small", {"scale": 0.25}), 0)
    missing = run_reference("cpsat", instance, 5.0)
    assert missing.outcome == "missing"
    assert missing.message == "OR-tools is not installed; pip install ortools"
    code, out, _ = run(capsys, suite_file, "--entry", "odd-loose", "--solver", "greedy", "--json")
    assert code == 0
    record = Report.from_json(out).instances[0]
    assert record.error is None
    assert [each.outcome for each in record.references] == ["heuristic", "failed"]
    assert record.references[1].message == "RuntimeError: no luck"
    assert record.references[1].ratio is None


@pytest.mark.parametrize("fault", ["row", "cap", "bound"])
def test_a_reference_is_not_trusted(fault: str) -> None:
    class Liar(references_module.Highs):
        asked = 0

        def minimise(self, step: Any, caps: Any, seconds: float) -> Any:
            self.asked += 1
            found, bound = super().minimise(step, caps, seconds)
            assert found is not None
            assert bound is not None
            if fault == "row":
                return found + 1000, bound
            if fault == "bound":
                return found, step.value(found) + abs(step.value(found)) + 1000
            # Doing nothing keeps every row, but not what was reached before.
            return (found if self.asked == 1 else np.zeros_like(found)), None

    # As much unmet as there is to gain: doing nothing is then feasible and worse.
    instance = generate(family_from("small", {"scale": 0.25, "running": 0.0, "minimum": 0.0}), 0)
    reference = references_module.OutOfTheBox("highs", Liar)
    expected = {
        "row": "breaks .* rows when rounded",
        "cap": "breaks .* rows|is worse in",
        "bound": "is above the value of its own solution",
    }
    with pytest.raises(RuntimeError, match=expected[fault]):
        reference.run(instance, 30.0)


def test_an_interrupt_stops_a_reference() -> None:
    stopped = threading.Event()
    ended: list[bool] = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(stopped.wait(30.0))

    with pytest.raises(KeyboardInterrupt):
        within(None, work, stopped.set)
    assert ended == [True]


def test_a_reference_measured_alone_survives_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    record = measure_reference("not an instance", "greedy", 1.0, isolate=True)
    assert record.outcome == "failed"
    assert record.message is not None
    assert "InputError" in record.message


# --------------------------------------------------------------------------------------------
# Ratios, medians, comparisons
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome", "found", "relation", "quality"),
    [
        ("optimal", "proven", steps(1, 5), "=", "equal"),
        ("optimal", "time_limit", steps(1, 6), ">=", "worse"),
        ("optimal", "time_limit", steps(1, 5), ">=", "equal"),
        ("optimal", "time_limit", (), ">=", "worse"),
        ("feasible", "proven", steps(1, 4), "<=", "better"),
        ("feasible", "time_limit", steps(1, 5), "<=", "equal"),
        ("feasible", "time_limit", steps(2, 0), ">=", "worse"),
        ("feasible", "time_limit", steps(None, None), ">=", "worse"),
        ("optimal", "heuristic", steps(3, 3), "=", "worse"),
    ],
)
def test_the_ratio_is_to_what_the_solver_has(
    status: str, outcome: str, found: tuple[StepRecord, ...], relation: str, quality: str
) -> None:
    record = compared(reference_record(found, outcome), solver_record(steps(1, 5), status))
    assert record.ratio == Ratio.model_validate({"value": 5.0, "relation": relation})
    assert record.quality == quality
    assert (record.differs_at is None) == (quality == "equal")


def test_a_failed_reference_has_no_ratio() -> None:
    record = compared(reference_record((), "failed", None), solver_record(steps(1, 5)))
    assert (record.ratio, record.quality) == (None, None)


def exactly(value: float) -> Ratio:
    return Ratio(value=value)


def at_least(value: float) -> Ratio:
    return Ratio(value=value, relation=">=")


def at_most(value: float) -> Ratio:
    return Ratio(value=value, relation="<=")


@pytest.mark.parametrize(
    ("ratios", "median", "least"),
    [
        ([], None, None),
        ([exactly(3), exactly(1), exactly(2)], exactly(2), exactly(1)),
        ([exactly(3), exactly(1)], exactly(2), exactly(1)),
        # The bounds lie on one side of the median, which is then exact.
        ([exactly(2), exactly(3), at_least(9)], exactly(3), exactly(2)),
        ([at_most(1), exactly(2), exactly(3)], exactly(2), at_most(1)),
        ([at_least(2), at_least(5), exactly(7)], at_least(5), at_least(2)),
        ([at_least(2), exactly(5)], at_least(3.5), at_least(2)),
        ([at_most(4)], at_most(4), at_most(4)),
        ([at_most(4), at_least(2)], at_least(1), at_most(4)),
        ([at_most(4), at_most(5), at_least(2)], at_most(5), at_most(4)),
    ],
)
def test_median_and_least_ratio_are_true_bounds(
    ratios: list[Ratio], median: Ratio | None, least: Ratio | None
) -> None:
    assert median_ratio(ratios) == median
    assert least_ratio(ratios) == least


@pytest.mark.parametrize(
    ("value", "text"),
    [(at_least(5.2), ">= 5.2"), (exactly(0.0312), "0.031"), (at_most(123.4), "<= 123")],
)
def test_ratios_are_shown_with_their_relation(value: Ratio, text: str) -> None:
    assert ratio(value) == text


def test_unknown_is_worse_than_any_number() -> None:
    assert spread([3.0, None, 1.0]).model_dump() == {"median": 3.0, "worst": None}
    assert spread([None, None, 1.0]).model_dump() == {"median": None, "worst": None}
    assert spread([2.0, 4.0]).model_dump() == {"median": 3.0, "worst": 4.0}
    assert spread([]).model_dump() == {"median": None, "worst": None}


def test_plans_are_compared_in_the_order_of_the_objective() -> None:
    assert difference(steps(1, 9), steps(2, 0)) == (0, -1)
    assert difference(steps(1, 9), steps(1, 3)) == (1, 1)
    assert difference(steps(1 / 3, 9), steps(0.1 + 0.7 / 3, 9)) == (2, 0)
    assert difference(steps(1, None), steps(1, 3)) == (1, 1)
    assert difference(steps(None, None), steps(None, None)) == (2, 0)


def test_a_bound_above_a_value_is_noticed_where_it_is_comparable() -> None:
    assert contradiction(steps(3, 9, bounds=(3, 9)), steps(2, 9)) == "step0"
    assert contradiction(steps(3, 9, bounds=(3, 9)), steps(3, 8)) == "step1"
    # The second bound holds only for plans with 3 in the first step.
    assert contradiction(steps(3, 9, bounds=(3, 9)), steps(4, 1)) is None


# --------------------------------------------------------------------------------------------
# Best-known values
# --------------------------------------------------------------------------------------------


def known(*values: float, bounds: tuple[float | None, ...]) -> BestKnown:
    return BestKnown(
        digest="d",
        steps=tuple(
            BestStep(name=f"step{index}", value=value, bound=bound)
            for index, (value, bound) in enumerate(zip(values, bounds, strict=True))
        ),
        found_by="first",
    )


def numbers(best: BestKnown | None) -> list[tuple[float, float | None]]:
    assert best is not None
    return [(step.value, step.bound) for step in best.steps]


@pytest.mark.parametrize(
    ("values", "bounds", "expected", "found_by"),
    [
        # Better: its bounds count from there on, older ones only up to there.
        ((5, 8, 3), (4, 2, 3), [(5, 4), (8, 6), (3, 3)], "second"),
        ((4, 9, 9), (1, 2, 3), [(4, 3), (9, 2), (9, 3)], "second"),
        # Equal: the higher bounds.
        ((5, 9, 9), (4, 7, None), [(5, 4), (9, 7), (9, 8)], "first"),
        # Worse: bounds up to where it differs, nothing else.
        ((5, 9.5, 0), (5, 9, 0), [(5, 5), (9, 9), (9, 8)], "first"),
        ((6, 0, 0), (4, 0, 0), [(5, 4), (9, 6), (9, 8)], "first"),
    ],
)
def test_best_known_values_never_get_worse(
    values: tuple[float, ...],
    bounds: tuple[float | None, ...],
    expected: list[tuple[float, float | None]],
    found_by: str,
) -> None:
    before = known(5, 9, 9, bounds=(3, 6, 8))
    after = merged(before, "d", steps(*values, bounds=bounds), "second", "c")
    assert after is not None
    assert numbers(after) == expected
    assert after.found_by == found_by


def test_nothing_new_leaves_what_is_known() -> None:
    before = known(5, 9, bounds=(3, 6))
    assert merged(before, "d", steps(6, 0), "second", None) is before
    assert merged(before, "d", steps(None, None), "second", None) is before
    assert merged(before, "d", steps(5, 9, bounds=(7, 6)), "second", None) is before
    assert merged(None, "d", (), "second", None) is None


def test_values_of_another_instance_or_objective_are_replaced() -> None:
    before = known(5, 9, bounds=(3, 6))
    assert numbers(merged(before, "other", steps(6, 7), "second", None)) == [(6, None), (7, None)]
    assert numbers(merged(before, "d", steps(6), "second", None)) == [(6, None)]


def test_a_contradiction_is_noted_and_not_kept(tmp_path: Path) -> None:
    suite = Suite.from_toml(TINY).narrowed(entries=["odd-loose"], references=[])
    report, best = run_suite(suite)
    (key,) = best.instances
    found = best.instances[key]
    lying = found.model_copy(
        update={
            "steps": tuple(
                step.model_copy(update={"value": step.value + 50, "bound": step.value + 50})
                for step in found.steps
            )
        }
    )
    report, after = run_suite(suite, best=BestFile(instances={key: lying}))
    assert after.instances[key] == lying
    (note,) = report.instances[0].notes
    assert re.fullmatch(r"auto: value or bound of \S+ contradicts what is known", note)


def test_a_file_of_best_known_values_must_be_one(
    capsys: Capture, tmp_path: Path, suite_file: Path
) -> None:
    path = tmp_path / "best.json"
    path.write_text('{"schema": 1, "instances": {"a": {"digest": 3}}}', encoding="utf-8")
    assert refused(capsys, suite_file).startswith(f"{path}: instances.a.digest: must be a string")
    path.write_text('{"instances": {}, "instances": {}}', encoding="utf-8")
    assert "named twice" in refused(capsys, suite_file, "--best", path)


# --------------------------------------------------------------------------------------------
# Suites and options
# --------------------------------------------------------------------------------------------

ENTRY = '[[entries]]\nfamily = "small"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ('name = "s"', "entries: is missing; add it"),
        ('name = "s"\nentries = []', "entries: must not be empty"),
        ('name = "s"\nspeed = 1\n' + ENTRY, "speed: unknown field"),
        ('name = "s"\n[[entries]]\nfamily = "tiny"', "entries[0].family: unknown family 'tiny'"),
        ('name = "s"\n' + ENTRY + "knobs = {lod = 1}", "entries[0].knobs: unknown knob 'lod'"),
        (
            'name = "s"\n' + ENTRY + "[[entries]]\nfamily = 'odd'\nknobs = {load = -1}",
            "entries[1].knobs.load: must be at least 0",
        ),
        ('name = "s"\n' + ENTRY + ENTRY, "entries[1].name: 'small' is taken"),
        ('name = "s"\nseeds = 0\n' + ENTRY, "seeds: must be from 1 to 10000 seeds"),
        ('name = "s"\nseeds = []\n' + ENTRY, "seeds: must not be empty"),
        ('name = "s"\nseeds = [1, -1]\n' + ENTRY, "seeds[1]: must be at least 0"),
        ('name = "s"\n' + ENTRY + "seeds = [1, 1]", "entries[0].seeds[1]: 1 is named twice"),
        ('name = "s"\ntime_limit = inf\n' + ENTRY, "time_limit: must be"),
        ('name = "s"\n' + ENTRY + "time_limit = 0", "entries[0].time_limit: must be greater"),
        (
            'name = "s"\n' + ENTRY + 'references = ["cbc"]',
            "entries[0].references[0]: must be 'greedy', 'highs' or 'cpsat'",
        ),
        (
            'name = "s"\nreferences = ["highs", "highs"]\n' + ENTRY,
            "references[1]: 'highs' is named twice",
        ),
        ('name = "s"\nsolver = "fast"\n' + ENTRY, "solver: must be"),
        ('name = "s"\nthreads = 0\n' + ENTRY, "threads: must be at least 1"),
    ],
)
def test_a_bad_suite_is_one_clear_error(
    capsys: Capture, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(text, encoding="utf-8")
    assert refused(capsys, path).startswith(f"{path}: {message}")


def test_shipped_suites_are_valid_and_cover_every_family() -> None:
    suites = {path.stem: Suite.from_file(path) for path in (ROOT / "benchmarks").glob("*.toml")}
    assert {"quick", "release"} <= set(suites)
    release = suites["release"]
    assert {entry.family for entry in release.entries} == set(FAMILIES) - {"small"}
    loads = {entry.knobs.get("load") for entry in release.entries if entry.family == "replan"}
    assert loads == {0.5, 0.8, 1.0, 1.3}
    assert all(len(entry.seeds or release.seeds) == 10 for entry in release.entries)


def test_options_win_over_the_suite() -> None:
    suite = Suite.from_toml(TINY)
    tasks = suite.narrowed(
        seeds=3, time_limit=1.5, reference_time_limit=2.5, references=["cpsat"], solver="highs"
    ).tasks()
    assert [(task.entry, task.seed) for task in tasks] == [
        (entry, seed) for entry in ("small", "odd-loose") for seed in range(3)
    ]
    for task in tasks:
        assert (task.time_limit, task.reference_time_limit) == (1.5, 2.5)
        assert (task.references, task.solver) == (("cpsat",), "highs")
    assert [task.entry for task in suite.narrowed(entries=["odd-loose"]).tasks()] == ["odd-loose"]
    assert suite.narrowed() == suite
    assert suite.digest != suite.narrowed(seeds=1).digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--entry", "big"), "--entry: unknown entry 'big'; known: small, odd-loose"),
        (("--time-limit", "-1"), "--time-limit: must be greater than 0"),
        (("--references", "cbc"), "--references[0]: must be"),
        (("--seeds", "0"), "bench: argument --seeds: must be from 1"),
        (("--svg", "a.svg"), "--svg: goes with --anytime, not with a suite; drop one"),
        (("--scales", "0.1"), "--scales: goes with --scaling, not with a suite"),
        (("--set", "load=1"), "--set: goes with --anytime or --scaling, not with a suite"),
        (("--anytime",), "bench: give either a suite or --anytime, not both"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    capsys: Capture, suite_file: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert refused(capsys, suite_file, *arguments).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such.toml",), "no-such.toml: cannot be read"),
        (("--anytime", "no-such.json"), "no-such.json: cannot be read"),
        (("--anytime", "small", "--set", "lod=1"), "family small: unknown knob 'lod'"),
        (("--anytime", "a.json", "--seed", "1"), "--anytime: --set and --seed need a family"),
        (("--anytime", "small", "--deadlines", "1,0"), "bench: argument --deadlines: must be"),
        (("--anytime", "small", "--markdown", "a.md"), "--markdown: goes with a suite"),
        (("--scaling", "tiny"), "family: unknown family 'tiny'"),
        (("--scaling", "small", "--set", "scale=1"), "--set: cannot turn scale here"),
        (("--scaling", "small", "--time-limit", "0"), "--time-limit: must be greater than 0"),
        (("--scaling", "small", "--resume"), "--resume: goes with a suite, not with --scaling"),
    ],
)
def test_bad_options_are_one_clear_error(
    capsys: Capture, arguments: tuple[str, ...], message: str
) -> None:
    assert refused(capsys, *arguments).startswith(message)


# --------------------------------------------------------------------------------------------
# Markdown
# --------------------------------------------------------------------------------------------


def made_report(seconds: float = 2.0, **changes: Any) -> Report:
    """A run of one entry with one seed, by hand."""
    report, _ = run_suite(Suite.from_toml(TINY).narrowed(entries=["odd-loose"], references=[]))
    (record,) = report.instances
    solver = solver_record(steps(0, 20, bounds=(0, 10)), "feasible", seconds)
    solver = solver.model_copy(
        update={"steps": (*solver.steps[:1], solver.steps[1].model_copy(update={"gap": 1.0}))}
    )
    record = record.model_copy(
        update={
            "solver": solver,
            "references": (compared(reference_record(steps(1, 0), "time_limit"), solver),),
            "best": record.best
            and record.best.model_copy(
                update={"steps": steps(0, 19, bounds=(0, 12)), "solver": False}
            ),
        }
    )
    summary = runner.summaries([record])
    return report.model_copy(update={"instances": (record,), "summaries": summary, **changes})


def table_row(text: str, first: str) -> list[str]:
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_says_what_was_measured() -> None:
    report = made_report()
    text = markdown(report)
    size = report.instances[0].size
    assert size is not None
    (header,) = (line for line in text.splitlines() if line.startswith("| entry | seeds"))
    names = [cell.strip() for cell in header.strip("|").split("|")]
    section = text.split("<details>")[0]
    cells = dict(zip(names, table_row(section, "`odd-loose`"), strict=True))
    assert cells == {
        "entry": "`odd-loose`",
        "seeds": "1",
        "GPUs": str(size.gpus),
        "services": str(size.services),
        "columns": "7",
        "read": "0.100",
        "build": "0.200",
        "solve": "0.300",
        "assign": "0.400",
        "seconds": "2 (2)",
        "proven": "0/1",
        "gap": "1e+02 % (1e+02 %)",
        "MiB": "64 (64)",
        "best": "0/1",
        "× HiGHS": ">= 5 (>= 5)",
    }
    best = table_row(text.split("<details>")[1], "`odd-loose`")
    assert best == ["`odd-loose`", "3", "step1 19", "step1 12", "no"]
    where = report.environment
    for words in (f"{where.cores} cores", f"Python {where.python}", "`auto`", "one process"):
        assert words in text
    if where.commit:
        assert f"commit `{where.commit}`" in text


def test_a_page_keeps_one_section_per_suite_and_version(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    start = f"# Mine\n\nBelow `{PLACE}`:\n\n{PLACE}\n\n"
    page.write_text(f"{start}The end.\n", encoding="utf-8")

    def put(report: Report) -> str:
        page.write_text(updated_page(str(page), report), encoding="utf-8")
        return page.read_text(encoding="utf-8")

    first = put(made_report(2.0))
    assert first.startswith(f"{start}<!-- bench: tiny ")
    assert first.endswith("\n\nThe end.\n")
    again = put(made_report(3.0))
    assert "3 (3)" in again
    assert "2 (2)" not in again
    assert again.count("### tiny") == 1
    other = put(made_report(4.0, suite="full size"))
    assert other.index("### full size") < other.index("### tiny")
    assert other.count("<!-- bench: end of") == 2
    assert other.endswith("\n\nThe end.\n")


def test_a_page_without_a_place_for_tables_is_refused_before_the_run(
    capsys: Capture, tmp_path: Path, suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Mine\n", encoding="utf-8")
    calls = interrupt_after(monkeypatch, 99)
    message = refused(capsys, suite_file, "--markdown", page)
    assert message.startswith(f"{page}: has no line {PLACE}")
    assert calls == []
    assert page.read_text(encoding="utf-8") == "# Mine\n"


# --------------------------------------------------------------------------------------------
# Anytime and scaling
# --------------------------------------------------------------------------------------------


def point(deadline: float, *values: float) -> AnytimePoint:
    return AnytimePoint(
        deadline=deadline, seconds=deadline, overrun=0.0, status="feasible", steps=steps(*values)
    )


def test_a_fall_in_quality_is_found() -> None:
    assert falls([point(1, 3, 9), point(2, 3, 8), point(3, 2, 20)]) == []
    (fall,) = falls([point(1, 3, 9), point(2, 3, 10), point(3, 3, 9)])
    assert (fall.deadline, fall.earlier, fall.step) == (2, 1, "step1")
    assert (fall.value, fall.best) == (10, 9)
    failed = AnytimePoint(deadline=2, seconds=0, overrun=0, error="RuntimeError: no luck")
    assert [each.deadline for each in falls([point(1, 1), failed, point(3, 2)])] == [3]


def test_an_anytime_curve_from_end_to_end(capsys: Capture, tmp_path: Path) -> None:
    results, picture = tmp_path / "curve.json", tmp_path / "curve.svg"
    code, out, err = run(
        capsys,
        *("--anytime", "small", "--set", "scale=0.25", "--seed", 1),
        *("--deadlines", "5,0.05", "--out", results, "--svg", picture),
    )
    assert (code, err) == (0, "")
    report = AnytimeReport.model_validate_json(results.read_text(encoding="utf-8"))
    assert [each.deadline for each in report.points] == [0.05, 5]
    assert report.points[1].status == "optimal"
    assert report.instance == "small, scale 0.25, seed 1"
    instance = generate(family_from("small", {"scale": 0.25}), 1)
    assert report.digest == instance.digest
    optimum = [step.value for step in solve(instance).steps]
    assert [step.value for step in report.points[1].steps] == optimum
    worst = max(each.overrun for each in report.points)
    assert report.worst_overrun == worst
    assert ("every deadline was kept" in out) == (worst == 0)
    assert "quality never fell" in out
    svg = picture.read_text(encoding="utf-8")
    assert svg.startswith("<?xml")
    for words in ("cost", "bound", "deadline, seconds", "small, scale 0.25, seed 1"):
        assert words in svg
    assert draw(report) == svg


def test_an_anytime_curve_of_a_file(capsys: Capture) -> None:
    path = ROOT / "instances" / "quickstart.json"
    code, out, _ = run(capsys, "--anytime", path, "--deadlines", "5", "--json")
    assert code == 0
    report = AnytimeReport.model_validate_json(out)
    assert report.instance == "quickstart.json"
    assert report.digest == Instance.from_file(path).digest
    assert [step.value for step in report.points[0].steps] == [4, 0, 108]


def test_without_matplotlib_one_error_says_how_to_install_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = refused(capsys, "--anytime", "small", "--svg", "a.svg")
    assert message == "--svg: matplotlib is not installed; pip install 'heteroplace[bench]'"


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_the_exponent_of_synthetic_times(exponent: float) -> None:
    sizes = [100.0, 1000.0, 5000.0, 20000.0]
    times = [3e-6 * (size * np.log(size)) ** exponent for size in sizes]
    assert fit_exponent(sizes, times) == pytest.approx(exponent, abs=1e-9)
    noisy = [time * factor for time, factor in zip(times, (1.1, 0.9, 0.9, 1.1), strict=True)]
    assert fit_exponent(sizes, noisy) == pytest.approx(exponent, abs=0.1)


def test_an_exponent_needs_two_sizes() -> None:
    assert fit_exponent([], []) is None
    assert fit_exponent([100, 100], [1, 2]) is None
    assert fit_exponent([100, 200], [1, 0]) is None


def test_what_the_time_limit_cut_short_is_not_fitted() -> None:
    def at(gpus: int, stop: str) -> ScalingPoint:
        work = 1e-6 * gpus * float(np.log(gpus))
        return ScalingPoint.model_validate(
            {
                "family": "cycle",
                "scale": gpus / 1000,
                "seed": 0,
                "gpus": gpus,
                "phases": {"read": work, "build": work, "solve": work**2, "assign": work},
                "seconds": work**2,
                "greedy": work,
                "stop_reason": stop,
            }
        )

    failed = ScalingPoint(family="cycle", scale=9, seed=0, error="RuntimeError: no luck")
    points = [at(1000, "proven"), at(4000, "proven"), at(9000, "time_limit"), failed]
    found = {fit.quantity: fit for fit in fits(points)}
    assert found["build"].exponent == pytest.approx(1.0)
    assert found["total"].exponent == pytest.approx(2.0)
    assert (found["build"].points, found["greedy"].points, found["solve"].points) == (3, 3, 2)


def test_scaling_from_end_to_end(capsys: Capture, tmp_path: Path) -> None:
    results = tmp_path / "scaling.json"
    code, out, err = run(
        capsys,
        *("--scaling", "cycle", "--scales", "0.1,0.02", "--seeds", 2, "--set", "load=0.1"),
        *("--time-limit", "20", "--out", results),
    )
    assert (code, err) == (0, "")
    report = ScalingReport.model_validate_json(results.read_text(encoding="utf-8"))
    assert [(each.scale, each.seed) for each in report.points] == [
        (0.02, 0),
        (0.02, 1),
        (0.1, 0),
        (0.1, 1),
    ]
    for each in report.points:
        family = family_from("cycle", {"scale": each.scale, "load": 0.1})
        assert each.gpus == 8 * family.total_nodes
        assert each.error is None
        assert each.greedy is not None
    assert {fit.quantity for fit in report.fits} == {
        "read",
        "build",
        "greedy",
        "solve",
        "assign",
        "total",
    }
    assert all(fit.exponent is not None for fit in report.fits if fit.quantity == "read")
    assert "Exponent p" in out


def test_an_interrupted_curve_keeps_its_points(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import heteroplace.bench.anytime as module

    plain: Callable[..., Any] = module.timed_solve
    calls: list[float] = []

    def timed(instance: Instance, profile: Profile) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(profile.time_limit or 0)
        return plain(instance, profile)

    monkeypatch.setattr(module, "timed_solve", timed)
    results = tmp_path / "curve.json"
    arguments = ("--anytime", "small", "--set", "scale=0.25", "--deadlines", "3,4")
    code, _, err = run(capsys, *arguments, "--out", results)
    assert (code, err) == (130, "heteroplace: interrupted\n")
    report = AnytimeReport.model_validate_json(results.read_text(encoding="utf-8"))
    assert [each.deadline for each in report.points] == [3]
