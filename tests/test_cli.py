"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import heteroplace
from heteroplace import Instance, Plan, Result, check, cli, evaluate
from heteroplace.cli import main
from heteroplace.explain import Explanation
from heteroplace.generate import FAMILIES, from_inventory

Data = dict[str, Any]
Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "instances" / "quickstart.json")
OTHER = str(ROOT / "instances" / "moe.json")
GREEDY = ("--solver", "greedy")
INSTANCE: Data = json.loads(Path(QUICKSTART).read_text(encoding="utf-8"))
PROFILES = sorted((ROOT / "solvers").glob("*.toml"))


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    capsys.readouterr()
    code = main([str(each) for each in arguments])
    return code, *capsys.readouterr()


def refused(capsys: Capture, *arguments: object) -> str:
    """The one line of a call that must be refused."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    return one_line(err)


def one_line(err: str) -> str:
    assert err.startswith("heteroplace: ")
    assert err.endswith("\n")
    line = err[:-1]
    assert line.isprintable()
    assert "Traceback" not in line
    return line


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "heteroplace", *map(str, arguments)]
    given = {"capture_output": True, "cwd": ROOT, "timeout": 120, **options}
    return subprocess.run(command, check=False, **given)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid plan for the quickstart with unmet capacity."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    instance = Instance.from_file(QUICKSTART)
    plan = heteroplace.solve(instance, heteroplace.Profile(solver="highs")).plan
    path.write_text(plan.to_json(), encoding="utf-8")
    return path


@pytest.fixture
def plan_data(plan_file: Path) -> Data:
    data: Data = json.loads(plan_file.read_text(encoding="utf-8"))
    return data


def written(folder: Path, data: object, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------
# solve
# --------------------------------------------------------------------------------------------


def test_solve_prints_everything_a_person_needs(capsys: Capture) -> None:
    code, out, err = run(capsys, "solve", QUICKSTART)
    assert (code, err) == (0, "")
    for words in ("chat · priority 0", "prefill 2 of 3, unmet 1 (4 GPUs)", "mini-b1-h20-2"):
        assert words in out
    # Services, domains, changes.
    assert re.search(r"group chat-0 in s2 pod-b, running", out)
    assert re.search(r"\+ added +2 × prefill l20-tp4 +8 GPUs +mini-a1: mini-a1-l20-2", out)
    assert re.search(r"- removed +2 × serve", out)
    # Unmet capacity with its reason, a value, bound and gap of every step, seconds by phase.
    assert "GPUs that this cycle frees" in out
    for step in ("unmet[0]", "repair", "cost"):
        assert re.search(rf"{re.escape(step)} +│ +\d+ │ +\d+ │ +0 % │ proven", out)
    assert re.search(r"optimal, proven; solver auto \(.+\); seconds:", out)
    for phase in ("read", "build", "solve", "assign"):
        assert re.search(rf"{phase}\s\d+\.\d{{3}}", out)


@pytest.mark.parametrize("solver", ["greedy", "highs", "cpsat", "milp", "auto"])
def test_out_is_a_plan_that_check_accepts(capsys: Capture, tmp_path: Path, solver: str) -> None:
    target = tmp_path / "plan.json"
    code, out, _ = run(capsys, "solve", QUICKSTART, "--solver", solver, "--out", target)
    assert code == 0
    assert f"plan written to {target}" in out.replace("\n", "")
    assert os.listdir(tmp_path) == ["plan.json"]
    code, out, err = run(capsys, "check", QUICKSTART, target)
    assert (code, err) == (0, "")
    assert out.startswith("valid; objective: unmet[0] 4, ")
    assert Plan.from_file(target).instance_digest == Instance.from_file(QUICKSTART).digest


@pytest.mark.parametrize("solver", ["greedy", "greedy-pods", "highs", "cpsat", "milp", "auto"])
def test_json_is_one_result_and_nothing_else(capfd: Capture, solver: str) -> None:
    code = main(["solve", QUICKSTART, "--solver", solver, "--json", "--seed", "3"])
    out, err = capfd.readouterr()
    result = Result.model_validate_json(out)
    assert json.loads(out)["schema"] == 1
    assert err == ""
    assert code == (1 if result.violations else 0)
    assert (result.solver, result.seed, result.seconds.read is not None) == (solver, 3, True)
    instance = Instance.from_file(QUICKSTART)
    assert [step.value for step in result.steps] == [
        float(step.value) for step in evaluate(instance, result.plan).steps
    ]
    if not result.violations:
        assert result.unmet
        assert all(each.reason for each in result.unmet)


def test_options_override_the_profile(capsys: Capture, tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text('solver = "milp"\nengine = "CBC"\nseed = 5\ntime_limit = 9.0\n', "utf-8")
    _, out, _ = run(
        *(capsys, "solve", QUICKSTART, "--json", "--profile", profile, "--seed", 6),
        *("--engine", "HiGHS", "--threads", 1, "--deterministic"),
    )
    used = json.loads(out)["profile"]
    assert used == {
        "solver": "milp",
        "engine": "HiGHS",
        "time_limit": 9.0,
        "threads": 1,
        "seed": 6,
        "deterministic": True,
    }
    assert "--engine: is for solver milp, not highs" in refused(
        capsys, "solve", QUICKSTART, "--profile", profile, "--solver", "highs"
    )


@pytest.mark.parametrize("seconds", ["inf", "1e300", "1e10"])
def test_a_time_limit_beyond_reason_is_none(capsys: Capture, seconds: str) -> None:
    code, out, _ = run(capsys, "solve", QUICKSTART, "--json", "--time-limit", seconds)
    assert code == 0
    assert json.loads(out)["status"] == "optimal"


@pytest.mark.parametrize(
    ("limit", "least", "most"),
    [("inf", 2.0, 2.0), ("1000", 2.0, 2.0), ("1.5", 0.1, 1.5), ("1e-9", 0.1, 0.1)],
)
def test_explanations_get_what_the_solve_leaves_of_the_time_limit(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, limit: str, least: float, most: float
) -> None:
    given: list[float] = []

    def nothing(*arguments: Any, unmet: Any) -> list[Explanation]:
        given.append(arguments[3])
        return []

    monkeypatch.setattr(cli, "explain", nothing)
    solve = ("solve", QUICKSTART, *GREEDY, "--time-limit", limit)
    code, out, _ = run(capsys, *solve, "--json")
    result = Result.model_validate_json(out)
    assert (code, {each.reason for each in result.unmet}) == (0, {None})
    code, out, _ = run(capsys, *solve)
    assert (code, out.count("see heteroplace explain")) == (0, len(result.unmet))
    assert len(given) == 2
    assert all(least <= seconds <= most for seconds in given)


BAD_OPTIONS = [
    *(("--time-limit", value) for value in ("0", "-1", "nan", "soon", "-inf", "")),
    *(("--seed", value) for value in ("-1", "1.5", "x", str(2**31), "9" * 5000)),
    *(("--threads", value) for value in ("0", "-2", "many", "5000")),
    *(("--max-bytes", value) for value in ("0", "-5", "1e3", "9" * 30)),
    ("--solver", "simplex"),
    ("--solver", ""),
    ("--engine", ""),
    ("--engine", "x" * 300),
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS, ids=lambda each: each[:12])
def test_bad_values_name_the_option(capsys: Capture, option: str, value: str) -> None:
    assert option in refused(capsys, "solve", QUICKSTART, f"{option}={value}")


def test_a_file_above_the_limit(capsys: Capture) -> None:
    assert QUICKSTART in refused(capsys, "solve", QUICKSTART, "--max-bytes", 100)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("solver = 'simplex'", "solver: must be"),
        ("time_limit = 0", "time_limit: must be greater than 0"),
        ("time_limit = nan", "time_limit: must be a finite number"),
        ("time_limit = 'soon'", "time_limit: must be a number"),
        ("seed = -1", "seed: must be at least 0"),
        ("seed = 1.5", "seed: must be a whole number"),
        ("threads = 0", "threads: must be at least 1"),
        ("deterministic = 'perhaps'", "deterministic: must be true or false"),
        ("engine = 7", "engine: must be a string"),
        ("speed = 3", "speed: unknown field"),
        ("solver = ", "is not TOML"),
        ("seed = 1\nseed = 2", "is not TOML"),
        (b"\xff\xfe\x00", "is not TOML"),
        (None, "cannot be read"),
        ("folder", "cannot be read"),
    ],
    ids=str,
)
def test_bad_profiles(capsys: Capture, tmp_path: Path, text: Any, words: str) -> None:
    path = tmp_path / "p.toml"
    if text == "folder":
        path.mkdir()
    elif text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(capsys, "solve", QUICKSTART, "--profile", path)
    assert f"{path}: {words}" in line


def test_profiles_of_the_project_are_read(capsys: Capture) -> None:
    assert PROFILES
    for path in PROFILES:
        code, out, _ = run(capsys, "solve", QUICKSTART, "--json", "--profile", path)
        result = Result.model_validate_json(out)
        assert code == (1 if result.violations else 0), path
        if result.stop_reason == "engine_missing":
            assert "not installed" in result.notes[0], path
        assert (result.status == "invalid") <= (result.solver == "greedy-pods"), path


# --------------------------------------------------------------------------------------------
# Files that are written
# --------------------------------------------------------------------------------------------

WRITERS: dict[str, tuple[str, ...]] = {
    "solve": ("solve", QUICKSTART, *GREEDY, "--out"),
    "show": ("show", QUICKSTART, "--html"),
    "generate": ("generate", "small", "--out"),
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return WRITERS[request.param]


def test_a_failing_write_leaves_the_old_file(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: tuple[str, ...]
) -> None:
    target = tmp_path / "file"
    target.write_text("old", encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert f"{target}: cannot be written: No space left" in refused(capsys, *writer, target)
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file"]
    monkeypatch.undo()
    assert run(capsys, *writer, target)[0] == 0
    assert target.read_text(encoding="utf-8") != "old"


@pytest.mark.parametrize("name", ["", ".", "..", "/", "none/f", "dir", "f/g", "x" * 300, "a\0b"])
def test_places_that_cannot_be_written(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: tuple[str, ...],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "f").touch()
    line = refused(capsys, *writer, name)
    assert "cannot be written" in line
    assert name[:40].replace("\0", "\\x00") in line
    assert sorted(os.listdir(tmp_path)) == ["dir", "f"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(
    capsys: Capture, tmp_path: Path, writer: tuple[str, ...]
) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(capsys, *writer, tmp_path / "file")


def test_a_device_is_written_to_and_not_replaced(
    capsys: Capture, tmp_path: Path, writer: tuple[str, ...]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    assert run(capsys, *writer, pipe)[0] == 0
    reader.join()
    assert found[0]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


# --------------------------------------------------------------------------------------------
# check, explain, show
# --------------------------------------------------------------------------------------------


def broken(data: Data) -> Data:
    """Two more instances on a node that is full."""
    data = copy.deepcopy(data)
    group = next(each for each in data["groups"] if each["service"] == "chat")
    group["added"] += [group["added"][0]] * 2
    return data


def test_check_answers_yes_and_no(
    capsys: Capture, tmp_path: Path, plan_file: Path, plan_data: Data
) -> None:
    code, out, err = run(capsys, "check", QUICKSTART, plan_file)
    assert (code, err) == (0, "")
    assert out == "valid; objective: unmet[0] 4, repair 0, cost 108\n"
    code, out, err = run(capsys, "check", QUICKSTART, written(tmp_path, broken(plan_data)))
    assert (code, err) == (1, "")
    *violations, verdict = out.splitlines()
    assert any(line.startswith("capacity: ") for line in violations)
    assert re.match(r"\d+ violations; objective: ", verdict)


def test_check_json(capsys: Capture, tmp_path: Path, plan_file: Path, plan_data: Data) -> None:
    instance = Instance.from_file(QUICKSTART)
    bad = written(tmp_path, broken(plan_data))
    for path, expected in ((plan_file, 0), (bad, 1)):
        code, out, err = run(capsys, "check", QUICKSTART, path, "--json")
        assert (code, err) == (expected, "")
        report = json.loads(out)
        plan = Plan.from_file(path)
        assert report["valid"] == (expected == 0)
        assert report["violations"] == [each.model_dump() for each in check(instance, plan)]
        assert report["objective"] == evaluate(instance, plan).model_dump(mode="json")


def test_check_says_when_the_plan_is_for_another_instance(
    capsys: Capture, tmp_path: Path, plan_data: Data
) -> None:
    plan_data["instance_digest"] = "0" * 64
    _, out, _ = run(capsys, "check", QUICKSTART, written(tmp_path, plan_data))
    assert "made for another instance" in out


def test_explain(capsys: Capture, tmp_path: Path, plan_file: Path, plan_data: Data) -> None:
    code, out, err = run(capsys, "explain", QUICKSTART, plan_file)
    assert (code, err) == (0, "")
    assert out.startswith("code prefill: 4 GPUs unmet (no_reuse): GPUs that this cycle frees")
    code, out, err = run(capsys, "explain", QUICKSTART, plan_file, "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    assert Explanation.model_validate(found).constraint == "no_reuse"
    bad = written(tmp_path, broken(plan_data))
    assert f"{bad}: is not valid (capacity: " in refused(capsys, "explain", QUICKSTART, bad)


def test_explain_when_all_is_met(capsys: Capture, tmp_path: Path) -> None:
    data = copy.deepcopy(INSTANCE)
    data["services"] = data["services"][:1]
    data["running"] = data["running"][:1]
    instance, plan = written(tmp_path, data), tmp_path / "plan.json"
    assert run(capsys, "solve", instance, "--out", plan)[0] == 0
    assert run(capsys, "explain", instance, plan) == (0, "Every target is met.\n", "")
    assert run(capsys, "explain", instance, plan, "--json") == (0, "[]\n", "")


def test_show(capsys: Capture, tmp_path: Path, plan_file: Path) -> None:
    code, out, err = run(capsys, "show", QUICKSTART)
    assert (code, err) == (0, "")
    assert "pod-a" in out
    code, planned, err = run(capsys, "show", QUICKSTART, plan_file)
    assert (code, err) == (0, "")
    assert planned != out
    page = tmp_path / "page.html"
    code, out, err = run(capsys, "show", QUICKSTART, plan_file, "--html", page)
    assert (code, out) == (0, "")
    assert err == f"page written to {page}\n"
    assert page.read_text(encoding="utf-8").startswith("<!")


# --------------------------------------------------------------------------------------------
# generate
# --------------------------------------------------------------------------------------------


def test_generate(capsys: Capture, tmp_path: Path) -> None:
    for family in FAMILIES:
        target = tmp_path / f"{family}.json"
        code, out, err = run(
            *(capsys, "generate", family, "--set", "scale=0.05", "--seed", 4, "--out", target)
        )
        instance = Instance.from_file(target)
        assert (code, out) == (0, ""), family
        nodes, services = len(instance.nodes), len(instance.services)
        assert err == f"{family}.json: {nodes} nodes, {services} services\n"
    code, out, err = run(capsys, "generate", family, "--set", "scale=0.05", "--seed", 4)
    assert (code, err) == (0, "")
    assert out == target.read_text(encoding="utf-8")


def test_generate_on_an_inventory(capsys: Capture, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.csv"
    rows = [f"n{i},H20,8,c,p{i // 4},m{i // 2}" for i in range(8)]
    nodes.write_text("\n".join(["name,gpu_type,gpus,cluster,s2,s1", *rows]), encoding="utf-8")
    code, out, err = run(
        *(capsys, "generate", "--nodes", nodes, "--services", 3),
        *("--models", ROOT / "models", "--running", 0),
    )
    assert (code, err) == (0, "")
    assert len(Instance.from_json(out).nodes) == 8
    inventory = ("generate", "--nodes", nodes, "--models", ROOT / "models", "--services", 3)
    more = ("--change", 1, "--scale-in", 0.5, "--draining", 0.2, "--isl", 1024, "--load", 0.9)
    code, out, err = run(capsys, *inventory, *more)
    assert (code, err) == (0, "")
    assert Instance.from_json(out) == from_inventory(
        *(nodes, None),
        models_dir=ROOT / "models",
        services=3,
        change=1.0,
        scale_in=0.5,
        draining=0.2,
        isl=1024,
        load=0.9,
    )
    for option, value in (
        *(("--load", -1), ("--load", "nan"), ("--running", 2), ("--services", 0), ("--isl", 0)),
        *(("--change", 1.5), ("--scale-in", -1), ("--draining", "inf"), ("--isl", 2.5)),
        *(("--services", 1000), ("--max-bytes", 0)),
    ):
        assert f"{option}: " in refused(capsys, *inventory, f"{option}={value}")
    assert f"{nodes}: is larger" in refused(capsys, *inventory, "--max-bytes", 9)
    nodes.write_text("name,gpu_type\n", encoding="utf-8")
    assert str(nodes) in refused(capsys, "generate", "--nodes", nodes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a family"),
        (("no-such",), "unknown family 'no-such'"),
        (("small", "--nodes", "x.csv"), "not both"),
        (("--nodes", "x.csv", "--set", "load=1"), "--set"),
        (("--nodes", "no/such.csv"), "no/such.csv: cannot be read"),
        (("--nodes", str(ROOT)), "cannot be read"),
        (("--nodes", QUICKSTART), "quickstart.json"),
        (("small", "--set", "load"), "--set: 'load' is not KNOB=VALUE"),
        (("small", "--set", "speed=1"), "unknown knob 'speed'"),
        (("small", "--set", "load=nan"), "load"),
        (("small", "--set", "load=fast"), "load: must be a number"),
        (("small", "--set", "scale=1e9"), "scale: must be at most"),
        (("small", "--set", "services=-1"), "services: must be at least"),
        (("small", "--seed", "x"), "--seed"),
        (("small", "--services", "x"), "--services"),
        (("small", "--load", "x"), "--load"),
        (("small", "--services", "9"), "--services: goes with --nodes; for a family use --set"),
        (("small", "--load", "0.8"), "use --set load=0.8"),
        (("small", "--running", "0"), "use --set running=0"),
        (("small", "--scale-in", "0.5"), "--scale-in: goes with --nodes; for a family use --set"),
        (("small", "--change", "1"), "use --set change=1"),
        (("small", "--draining", "1"), "use --set draining=1"),
        (("small", "--capacity", "x.csv"), "--capacity: goes with --nodes"),
        (("small", "--models", "models"), "--models: goes with --nodes"),
        (("small", "--isl", "9"), "--isl: goes with --nodes; for a family leave it out"),
        (("--nodes", ""), "cannot be read"),
    ],
    ids=str,
)
def test_bad_requests_to_generate(capsys: Capture, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(capsys, "generate", *arguments)


# --------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------


def edited(*path: Any, value: Any) -> bytes:
    """The quickstart with one field replaced."""
    data = place = copy.deepcopy(INSTANCE)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data).encode()


TEXT = json.dumps(INSTANCE).encode()
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ""),
    "blank": (b" \n", ""),
    "binary": (bytes(range(256)), ""),
    "truncated": (TEXT[: len(TEXT) // 2], ""),
    "twice": (TEXT + TEXT, ""),
    "list": (b"[]", ""),
    "number": (b"7", ""),
    "null": (b"null", ""),
    "utf16": (json.dumps(INSTANCE).encode("utf-16"), ""),
    "nested": (b"[" * 100_000, ""),
    "duplicate": (TEXT[:-1] + b', "schema": 1}', "'schema'"),
    "no nodes": (edited("nodes", value=[]), "nodes: must not be empty"),
    "schema": (edited("schema", value=9), "schema: version 9"),
    "unknown field": (edited("colour", value=1), "colour: unknown field"),
    "negative": (edited("nodes", 3, "gpus", value=-1), "nodes[3].gpus"),
    "newline": (edited("nodes", 3, "colour\nred\x1b[0m", value=1), "nodes[3]['colour\\nred"),
    "target": (
        edited("services", 0, "roles", "decode", "target", value="two"),
        "services[0].roles.decode.target",
    ),
    "huge number": (
        TEXT.replace(b'"target": 3', b'"target": ' + b"9" * 10_000, 1),
        "",
    ),
    "running": (edited("running", 0, "service", value="no\x1b"), "running[0].service"),
    "type": (
        edited("services", 0, "roles", "decode", "shapes", 0, "pods", 0, "gpu_type", value="B9"),
        "services[0].roles.decode.shapes[0].pods[0].gpu_type",
    ),
}
COMMANDS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "solve": lambda instance, plan: ("solve", instance),
    "check": lambda instance, plan: ("check", instance, plan),
    "explain": lambda instance, plan: ("explain", instance, plan),
    "show": lambda instance, plan: ("show", instance, plan),
    "page": lambda instance, plan: ("show", instance, plan, "--html", "/dev/null"),
}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> Callable[[Path, Path], tuple[object, ...]]:
    return COMMANDS[request.param]


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_instances(
    capsys: Capture, tmp_path: Path, plan_file: Path, command: Any, kind: str
) -> None:
    content, field = BAD_FILES[kind]
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    line = refused(capsys, *command(path, plan_file))
    assert f"{path}: {field}" in line
    assert len(line) < 500 + len(str(path))


BAD_PLANS: dict[str, tuple[Callable[[Data], object], str]] = {
    "node": (
        lambda plan: plan["groups"][0]["added"][0]["pods"][0].update(node="no\x1b[31m"),
        "groups[0].added[0].pods[0].node: unknown node",
    ),
    "service": (lambda plan: plan["groups"][0].update(service="no"), "groups[0]"),
    "role": (
        lambda plan: plan["groups"][0]["added"][0].update(role="no"),
        "groups[0].added[0].role: unknown role",
    ),
    "shape": (
        lambda plan: plan["groups"][0]["added"][0].update(shape="no"),
        "groups[0].added[0].shape: unknown shape",
    ),
    "instance": (lambda plan: plan["groups"][0]["kept"][0].update(name="no"), "groups[0].kept[0]"),
    "group": (lambda plan: plan["groups"][0].update(name="no"), "groups[0]"),
    "twice": (lambda plan: plan["groups"].append(plan["groups"][0]), "groups["),
    "schema": (lambda plan: plan.update(schema=2), "schema"),
    "field": (lambda plan: plan["groups"][1].update(colour=1), "groups[1].colour: unknown"),
    "gpus": (
        lambda plan: plan["groups"][0]["added"][0]["pods"][0].update(gpus=-1),
        "groups[0].added[0].pods[0].gpus",
    ),
    "groups": (lambda plan: plan.update(groups={}), "groups: must be a list"),
}


@pytest.mark.parametrize("name", [each for each in COMMANDS if each != "solve"])
@pytest.mark.parametrize("kind", BAD_PLANS)
def test_bad_plans(capsys: Capture, tmp_path: Path, plan_data: Data, name: str, kind: str) -> None:
    change, field = BAD_PLANS[kind]
    change(plan_data)
    path = written(tmp_path, plan_data)
    assert f"{path}: {field}" in refused(capsys, *COMMANDS[name](Path(QUICKSTART), path))


@pytest.mark.parametrize("name", [each for each in COMMANDS if each != "solve"])
def test_a_plan_for_another_instance(capsys: Capture, plan_file: Path, name: str) -> None:
    line = refused(capsys, *COMMANDS[name](Path(OTHER), plan_file))
    assert f"{plan_file}: groups[0].service: unknown service 'chat'" in line


def test_files_that_are_none(
    capsys: Capture, tmp_path: Path, plan_file: Path, command: Any
) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("x" * 300), Path("new\nline\x1b[31m")):
        shown = str(path).encode("unicode_escape").decode()
        assert f"{shown}: cannot be read" in refused(capsys, *command(path, plan_file))
        if command is not COMMANDS["solve"]:
            assert f"{shown}: cannot be read" in refused(capsys, *command(Path(QUICKSTART), path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("dance",), "invalid choice: 'dance'"),
        (("solve",), "INSTANCE"),
        (("check", QUICKSTART), "PLAN"),
        (("solve", QUICKSTART, "--no-such"), "--no-such"),
        (("solve", QUICKSTART, "one\nmore"), "one\\nmore"),
        (("solve", QUICKSTART, "--out"), "--out"),
        (("--colour", "red"), "invalid choice: 'red'"),
    ],
    ids=str,
)
def test_bad_calls(capsys: Capture, arguments: tuple[str, ...], words: str) -> None:
    line = refused(capsys, *arguments)
    assert words in line
    assert "--help" in line


@pytest.mark.parametrize("command", ["", "solve", "check", "explain", "show", "generate"])
def test_help(capsys: Capture, command: str) -> None:
    code, out, err = run(capsys, *command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: heteroplace {command}".strip())
    if not command:
        for each in ("solve", "check", "explain", "show", "generate"):
            assert each in out


def test_version(capsys: Capture) -> None:
    assert run(capsys, "--version") == (0, f"{heteroplace.__version__}\n", "")


# --------------------------------------------------------------------------------------------
# Hostile names
# --------------------------------------------------------------------------------------------

HOSTILE = {
    "markup": "[red]x[/red]",
    "closing": "[/]",
    "unclosed": "[link=http://x.y]",
    "escape": "a\x1b[31m\x1b]0;title\x07b",
    "lines": "a\nb\r\tc\x00d",
    "long": "x" * 200,
    "emoji": "👩‍🚀:rocket:",
    "rtl": "\u202eabc\u202c עברית",
    "format": "{0} %s \\u001b",
    "wide": "日本語" * 20,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_only_text(capsys: Capture, tmp_path: Path, kind: str) -> None:
    name = HOSTILE[kind]
    text = json.dumps(INSTANCE)
    for old in ("code", "prefill", "l20-tp4", "mini-a1", "embed-0", "mini-a1-l20-2", "H20"):
        text = text.replace(json.dumps(old), json.dumps(f"{old} {name}"))
    # A rival of higher priority, so that a reason names it too.
    data = json.loads(text)
    rival = copy.deepcopy(data["services"][1])
    data["services"].append({**rival, "name": f"rival {name}", "priority": 9})
    instance, plan = written(tmp_path, data), tmp_path / "plan.json"
    code, solved, err = run(capsys, "solve", instance, "--out", plan)
    assert (code, err) == (0, "")
    printed = [solved]
    bad = written(tmp_path, broken(json.loads(plan.read_text(encoding="utf-8"))), "bad.json")
    for arguments, expected in (
        (("check", instance, bad), 1),
        (("explain", instance, plan), 0),
        (("show", instance), 0),
        (("show", instance, plan), 0),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, err) == (expected, "")
        printed.append(out)
    for out in printed:
        assert [char for char in out if not char.isprintable() and char != "\n"] == []
    shown = {"markup": "[red]x[/red]", "emoji": ":rocket:", "escape": "\\x1b[31m"}.get(kind, "")
    assert shown in solved
    assert shown in printed[2]
    assert "went to others" in printed[2].replace("\n", " ").replace("  ", " ")
    # In an error, too.
    data["running"][1]["instances"][0]["nodes"] = [name]
    assert "running[1].instances[0].nodes[0]" in refused(
        capsys, "solve", written(tmp_path, data, "worse.json")
    )


# --------------------------------------------------------------------------------------------
# As a process
# --------------------------------------------------------------------------------------------


def test_as_a_process(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    done = process("solve", QUICKSTART, "--json", "--out", plan)
    assert (done.returncode, done.stderr) == (0, b"")
    assert Result.model_validate_json(done.stdout).status == "optimal"
    done = process("check", QUICKSTART, plan)
    assert (done.returncode, done.stderr) == (0, b"")
    done = process("check", OTHER, plan)
    assert done.returncode == 2
    assert "groups[0].service" in one_line(done.stderr.decode())
    done = process()
    assert (done.returncode, done.stdout) == (2, b"")
    assert "COMMAND" in one_line(done.stderr.decode())


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve", QUICKSTART, *GREEDY),
        ("solve", QUICKSTART, *GREEDY, "--json"),
        ("show", QUICKSTART),
        ("generate", "small"),
        ("--help",),
    ],
    ids=lambda each: "-".join(each[::2])[:20],
)
def test_a_reader_that_has_gone(arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = process(*arguments, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("more", [(), ("--json",)], ids=str)
def test_a_full_disk(more: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = process(
            *("solve", QUICKSTART, *GREEDY, *more),
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 2
    assert "standard output: cannot be written" in one_line(done.stderr.decode())


def test_an_output_without_unicode(tmp_path: Path) -> None:
    data = copy.deepcopy(INSTANCE)
    data["services"][1]["name"] = "código 🚀"
    instance = written(tmp_path, data)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = process("solve", instance, *GREEDY, "--json", env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert {each["service"] for each in json.loads(done.stdout)["unmet"]} == {"código 🚀"}
    done = process("solve", instance, *GREEDY, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"c\\u00f3digo" in done.stdout


def test_a_closed_output(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    code = (
        "import sys; sys.stdout = None; from heteroplace.cli import main; "
        f"sys.exit(main(['solve', {QUICKSTART!r}, '--solver', 'greedy', '--out', {str(plan)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert plan.exists()


def test_an_interrupt_ends_with_130(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "solve", interrupted)
    assert run(capsys, "solve", QUICKSTART) == (130, "", "heteroplace: interrupted\n")


@pytest.mark.parametrize("solver", ["highs", "cpsat"])
def test_an_interrupt_while_an_engine_works(tmp_path: Path, solver: str) -> None:
    # The signal comes from inside, when the engine's thread has begun.
    code = f"""
import importlib, os, signal, sys, threading
from heteroplace import cli
plain = importlib.import_module("heteroplace.solve.engine").within
def within(seconds, work):
    def begun():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        threading.Event().wait(1.0)
        return work()
    return plain(seconds, begun)
importlib.import_module("heteroplace.solve.{solver}").within = within
sys.exit(cli.main(["solve", {QUICKSTART!r}, "--solver", {solver!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert one_line(done.stderr.decode()) == "heteroplace: interrupted"
    assert done.stdout == b""
