"""Bad input is refused with the path of the field and plain words; good input survives a trip."""

import copy
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heteroplace import InputError, Instance, Plan, Profile, check, evaluate
from heteroplace.files import write_text
from heteroplace.instance import RdmaLevels
from heteroplace.quantity import format_number, parse_number


def _node(name, gpu_type="H20", s1="m1", **more):
    domains = {"cluster": "c", "s2": "p", "s1": s1}
    return {"name": name, "gpu_type": gpu_type, "gpus": 8, "domains": domains, **more}


def _role(target, **more):
    pods = [{"gpu_type": "H20", "gpus": 4, "count": 1}]
    return {"target": target, "shapes": [{"name": "tp4", "pods": pods, "capacity": 1}], **more}


GOOD = {
    "schema": 1,
    "name": "good",
    "levels": ["cluster", "s2", "s1"],
    "rdma": {"lower": "s1", "upper": "s2"},
    "nodes": [_node("n0"), _node("n1", s1="m2", reserved=2), _node("n2", "L20", "m2")],
    "services": [
        {
            "name": "chat",
            "priority": 0,
            "affinity": {"required": "s2", "preferred": "s1"},
            "roles": {"prefill": _role(2), "decode": _role(3, min=1)},
            "ratios": [{"numerator": "prefill", "denominator": "decode", "min": 0.5, "max": 1}],
            "limits": {"max_groups": 2, "max_instances_per_group": 8},
        },
        {"name": "embed", "roles": {"serve": _role(1)}},
    ],
    "running": [
        {
            "name": "chat-0",
            "service": "chat",
            "domain": "p",
            "instances": [
                {"role": "prefill", "shape": "tp4", "nodes": ["n0"]},
                {"role": "decode", "shape": "tp4", "nodes": ["n0"], "state": "draining"},
            ],
        }
    ],
    "objective": {"weights": {"rdma": 1}, "tier_prices": {"high": 4}},
    "cycle": {"reuse_freed": False, "max_migrations": 1},
}
DELETE = object()


def _keys(path):
    return [int(key) if key.isdigit() else key for key in path.split("/")]


def changed(path, value):
    """Return GOOD with one field, given as a/b/0/c, replaced or deleted."""
    data = copy.deepcopy(GOOD)
    place = data
    *parents, last = _keys(path)
    for key in parents:
        place = place[key]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    return data


def text_with(path, token):
    """Return GOOD as JSON with one field written as the given token."""
    return json.dumps(changed(path, "@@")).replace('"@@"', token)


JARGON = ("pydantic", "Traceback", "tuple", "dict", "instance of", "validat", "NoneType", "type=")


def refused(build, path):
    """Return the message of the InputError that ``build`` must raise, after looking it over."""
    with pytest.raises(InputError) as caught:
        build()
    text = str(caught.value)
    assert path in text
    assert "\n" not in text
    assert len(text) < 400
    assert not [word for word in JARGON if word in text]
    return text


def test_good_is_good():
    assert Instance.from_dict(GOOD).name == "good"


ROLE, SHAPE = "services/0/roles/decode", "services/0/roles/decode/shapes/0"
ROLE_PATH, SHAPE_PATH = "services[0].roles.decode", "services[0].roles.decode.shapes[0]"

BAD = [
    # What no field can tell alone.
    ("nodes/1/name", "n0", "nodes[1].name", "already the name of nodes[0]"),
    ("nodes/1/domains/s1", DELETE, "nodes[1].domains", "lacks the level 's1'"),
    ("nodes/1/domains/rack", "r1", "nodes[1].domains", "unknown level 'rack'"),
    ("nodes/2/domains/s2", "other", "nodes[2].domains.s1", "one parent"),
    ("nodes/0/reserved", 9, "nodes[0].reserved", "more than the node's 8"),
    ("levels", ["s1", "s1"], "levels", "named once"),
    ("levels", ["s2", "node"], "levels", "single machine"),
    ("rdma/lower", "s9", "rdma.lower", "unknown level 's9'"),
    ("rdma/upper", "s1", "rdma.upper", "coarser"),
    ("services/1/name", "chat", "services[1].name", "already the name of services[0]"),
    ("services/0/affinity/required", "s9", "services[0].affinity.required", "unknown level"),
    ("services/0/affinity/preferred", "s2", "services[0].affinity.preferred", "finer"),
    (f"{SHAPE}/pods/0/gpu_type", "H99", f"{SHAPE_PATH}.pods[0].gpu_type", "known: H20, L20"),
    (f"{SHAPE}/level", "s9", f"{SHAPE_PATH}.level", "unknown level"),
    (f"{ROLE}/min", 4, f"{ROLE_PATH}.min", "above the target"),
    ("services/0/ratios/0/min", 2, "services[0].ratios[0].min", "no ratio is in the band"),
    ("services/0/ratios/0/numerator", "x", "services[0].ratios[0].numerator", "unknown role"),
    ("services/0/ratios/0/denominator", "prefill", "services[0].ratios[0].denominator", "another"),
    ("services/0/ratios", GOOD["services"][0]["ratios"] * 2, "services[0].ratios[1]", "second"),
    ("running/0/service", "x", "running[0].service", "unknown service 'x'"),
    ("running/0/domain", "m1", "running[0].domain", "unknown s2 domain 'm1'; known: p"),
    ("running/0/instances/0/role", "x", "running[0].instances[0].role", "unknown role"),
    ("running/0/instances/0/shape", "x", "running[0].instances[0].shape", "unknown shape"),
    ("running/0/instances/0/nodes", ["x"], "running[0].instances[0].nodes[0]", "unknown node"),
    ("running/0/instances/0/nodes", ["n2"], "running[0].instances[0].nodes[0]", "has L20 GPUs"),
    ("running/0/instances/0/nodes", ["n0", "n1"], "running[0].instances[0].nodes", "one node per"),
    ("nodes/0/gpus", 7, "running[0].instances[1].nodes[0]", "what runs there needs 8"),
    ("running", GOOD["running"] * 2, "running[1].name", "already the name of running[0]"),
    ("schema", 2, "schema", "version 2 is not known; this release reads 1"),
    # Single fields.
    ("schema", DELETE, "schema", "missing"),
    ("schema", "1", "schema", "whole number"),
    ("nodes", DELETE, "nodes", "missing"),
    ("nodes", [], "nodes", "empty"),
    ("services", [], "services", "empty"),
    ("levels", [], "levels", "empty"),
    ("running/0/instances", [], "running[0].instances", "empty"),
    ("running/0/instances/0/nodes", [], "running[0].instances[0].nodes", "empty"),
    ("running/0/instances/0/state", "dead", "running[0].instances[0].state", "'ready'"),
    ("services/0/roles", {}, "services[0].roles", "empty"),
    ("services/0/roles", {"": _role(1)}, "services[0].roles['']", "empty"),
    (f"{ROLE}/shapes", [], f"{ROLE_PATH}.shapes", "empty"),
    (f"{SHAPE}/pods", [], f"{SHAPE_PATH}.pods", "empty"),
    (f"{SHAPE}/pods/0/gpus", 0, f"{SHAPE_PATH}.pods[0].gpus", "at least 1"),
    (f"{SHAPE}/pods/0/count", 5000, f"{SHAPE_PATH}.pods", "at most 4096"),
    (f"{SHAPE}/capacity", 0, f"{SHAPE_PATH}.capacity", "greater than 0"),
    (f"{SHAPE}/cost", -1, f"{SHAPE_PATH}.cost", "negative"),
    ("nodes/0/gpus", -1, "nodes[0].gpus", "at least 0"),
    ("nodes/0/gpus", 7.5, "nodes[0].gpus", "whole number"),
    ("nodes/0/gpus", "8", "nodes[0].gpus", "whole number"),
    ("nodes/0/gpus", True, "nodes[0].gpus", "whole number"),
    ("nodes/0/gpus", 10**7, "nodes[0].gpus", "at most 1000000"),
    ("nodes/0/name", "", "nodes[0].name", "empty"),
    ("nodes/0/name", "n" * 257, "nodes[0].name", "256"),
    ("nodes/0/name", 7, "nodes[0].name", "string"),
    ("nodes/0/schedulable", "often", "nodes[0].schedulable", "true or false"),
    ("services/0/priority", 1.5, "services[0].priority", "whole number"),
    ("services/0/priority", 10**9, "services[0].priority", "at most"),
    ("services/0/limits/max_groups", 0, "services[0].limits.max_groups", "at least 1"),
    ("services/0/ratios/0/max", 0, "services[0].ratios[0].max", "greater than 0"),
    ("cycle/max_migrations", -1, "cycle.max_migrations", "at least 0"),
    ("cycle/reuse_freed", 3, "cycle.reuse_freed", "true or false"),
    ("objective/weights/rdma", -1, "objective.weights.rdma", "negative"),
    # Unknown fields, at every depth.
    ("nodez", [], "nodez", "unknown field"),
    ("nodes/0/gpu", 8, "nodes[0].gpu", "unknown field"),
    (f"{SHAPE}/price", 8, f"{SHAPE_PATH}.price", "unknown field"),
    ("objective/weights/speed", 1, "objective.weights.speed", "unknown field"),
    # Wrong types.
    ("nodes", {}, "nodes", "list"),
    ("nodes", None, "nodes", "list"),
    ("nodes/0", "n0", "nodes[0]", "object"),
    ("nodes/0/domains", ["c"], "nodes[0].domains", "object"),
    ("nodes/0/domains/s1", None, "nodes[0].domains.s1", "string"),
    ("services", "chat", "services", "list"),
    ("services/0/roles", [], "services[0].roles", "object"),
    ("running/0/instances/0/nodes", "n0", "running[0].instances[0].nodes", "list"),
    (f"{ROLE}/target", None, f"{ROLE_PATH}.target", "must be a number, not null"),
    (f"{ROLE}/target", [3], f"{ROLE_PATH}.target", "must be a number, not a list"),
    (f"{ROLE}/target", {}, f"{ROLE_PATH}.target", "must be a number, not an object"),
    (f"{ROLE}/target", True, f"{ROLE_PATH}.target", "must be a number, not true"),
    # Numbers.
    (f"{ROLE}/target", -3, f"{ROLE_PATH}.target", "negative"),
    (f"{ROLE}/target", "three", f"{ROLE_PATH}.target", "'three'"),
    (f"{ROLE}/target", "1/0", f"{ROLE_PATH}.target", "'1/0'"),
    (f"{ROLE}/target", "", f"{ROLE_PATH}.target", "number"),
    (f"{ROLE}/target", "nan", f"{ROLE_PATH}.target", "'nan'"),
    (f"{ROLE}/target", "1e999999999", f"{ROLE_PATH}.target", "number"),
    (f"{ROLE}/target", "1e-999999999", f"{ROLE_PATH}.target", "number"),
    (f"{ROLE}/target", "9" * 10**5, f"{ROLE_PATH}.target", "number"),
    (f"{ROLE}/target", "1/" + "9" * 60, f"{ROLE_PATH}.target", "denominator"),
    (f"{ROLE}/target", 10**13, f"{ROLE_PATH}.target", "at most"),
    (f"{ROLE}/target", 10**4000, f"{ROLE_PATH}.target", "at most"),
    (f"{ROLE}/target", 1e300, f"{ROLE_PATH}.target", "at most"),
    (f"{ROLE}/target", 1e-300, f"{ROLE_PATH}.target", "denominator"),
]


@pytest.mark.parametrize(("where", "value", "path", "words"), BAD)
def test_bad_field(where, value, path, words):
    data = changed(where, value)
    assert words in refused(lambda: Instance.from_dict(data), f"{path}: ")
    text = refused(lambda: Instance.from_json(json.dumps(data), "x.json"), f"x.json: {path}: ")
    assert words in text


def test_running_domain_of_a_service_without_affinity():
    data = changed("services/0/affinity", {})
    assert "no required affinity" in refused(
        lambda: Instance.from_dict(data), "running[0].domain: "
    )


def test_running_names_within_a_group_are_unique():
    twice = [{**each, "name": "same"} for each in GOOD["running"][0]["instances"]]
    data = changed("running/0/instances", twice)
    refused(lambda: Instance.from_dict(data), "running[0].instances[1].name: ")


def test_pods_of_several_types_on_one_node():
    pods = [{"gpu_type": "H20", "gpus": 1}, {"gpu_type": "L20", "gpus": 1}]
    data = changed(SHAPE, {"name": "tp4", "pods": pods, "level": "node"})
    data["running"] = []
    refused(lambda: Instance.from_dict(data), f"{SHAPE_PATH}.level: ")


def test_a_billion_pods_are_counted_not_made():
    pods = [{"gpu_type": "H20", "gpus": 1, "count": 10**6}] * 1000
    data = changed(f"{SHAPE}/pods", pods)
    assert "1000000000 pods" in refused(lambda: Instance.from_dict(data), f"{SHAPE_PATH}.pods: ")


def test_the_first_fault_is_named_and_the_others_are_counted():
    data = changed("nodes/0/gpus", -1)
    data["nodes"][1]["gpus"] = -1
    data["cycle"] = 3
    text = refused(lambda: Instance.from_dict(data), "nodes[0].gpus: ")
    assert text.endswith("(and 2 more)")
    one = changed("nodes/0/gpus", -1)
    assert "more)" not in refused(lambda: Instance.from_dict(one), "nodes[0].gpus: ")


# Text and files --------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("where", "path"),
    [(f"{ROLE}/target", f"{ROLE_PATH}.target"), ("nodes/0/gpus", "nodes[0].gpus")],
)
def test_tokens_that_are_no_numbers(token, where, path):
    text = text_with(where, token)
    refused(lambda: Instance.from_json(text), f"instance: {path}: ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(json.dumps(GOOD)[:-1], id="truncated"),
        pytest.param(json.dumps(GOOD)[:100], id="truncated-early"),
        pytest.param(json.dumps(GOOD) + "]", id="trailing"),
        pytest.param("[" * 100_000, id="deep-lists"),
        pytest.param('{"a":' * 100_000, id="deep-objects"),
        pytest.param(b"\x89PNG\r\n\x1a\n\x00\x00", id="binary"),
        pytest.param(b"\xff\xfe{\x00}\x00", id="utf-16"),
        pytest.param(b'{"schema": 1, "name": "\xff"}', id="not-utf-8"),
        pytest.param(bytes(1000), id="zeros"),
        pytest.param('{"schema": 1, "name": "\\ud800"}', id="half-a-surrogate"),
        pytest.param(text_with("nodes/0/gpus", "9" * 10_000), id="ten-thousand-digits"),
        pytest.param("{'schema': 1}", id="python"),
    ],
)
@pytest.mark.parametrize("parse", [Instance.from_json, Plan.from_json])
def test_not_json(parse, text):
    assert "valid JSON" in refused(lambda: parse(text, "x.json"), "x.json: ")


@pytest.mark.parametrize("text", ["[]", "null", "3", '"instance"', "true"])
def test_json_but_no_object(text):
    assert "object" in refused(lambda: Instance.from_json(text), "instance: ")


def test_text_with_half_a_surrogate():
    refused(lambda: Instance.from_json('{"name": "\ud800"}'), "instance: ")


def test_a_field_named_twice_is_refused():
    text = json.dumps(GOOD).replace('"name": "good"', '"name": "first", "name": "second"')
    message = refused(lambda: Instance.from_json(text, "file.json"), "file.json: 'name'")
    assert "twice" in message


def _deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def _circular():
    value = {}
    value["self"] = value
    return value


@pytest.mark.parametrize("where", ["nodes", "nodes/0", "nodes/0/gpus", "services/0/roles", "name"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(_deep(), id="deep"),
        pytest.param(_circular(), id="circular"),
        pytest.param({("a", 1): 2}, id="key-of-another-type"),
        pytest.param({b"a": 2}, id="bytes-key"),
        pytest.param({1, 2}, id="set"),
        pytest.param(object(), id="object"),
        pytest.param(10**5000, id="five-thousand-digits"),
        pytest.param("\ud800", id="half-a-surrogate"),
    ],
)
def test_what_only_python_can_hold(where, value):
    data = changed("name", "good")
    place = data
    *parents, last = _keys(where)
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises(InputError) as caught:
        Instance.from_dict(data)
    assert where.split("/")[0] in caught.value.path


@pytest.mark.parametrize("read", [Instance.from_file, Plan.from_file, Profile.from_file])
class TestFiles:
    def test_two_hundred_megabytes(self, read, tmp_path):
        path = tmp_path / "large.json"
        with open(path, "wb") as file:
            os.truncate(file.fileno(), 200 * 2**20)
        assert "larger than the limit" in refused(lambda: read(path), f"{path}: ")

    def test_missing(self, read, tmp_path):
        path = tmp_path / "missing.json"
        assert "cannot be read" in refused(lambda: read(path), f"{path}: ")

    def test_folder(self, read, tmp_path):
        assert "cannot be read" in refused(lambda: read(tmp_path), f"{tmp_path}: ")

    def test_impossible_name(self, read):
        assert "cannot be read" in refused(lambda: read("a\0b"), "a\0b: ")

    def test_binary(self, read, tmp_path):
        path = tmp_path / "binary"
        path.write_bytes(bytes(range(256)))
        refused(lambda: read(path), f"{path}: ")


def test_the_limit_can_be_set(tmp_path):
    path = tmp_path / "good.json"
    path.write_text(json.dumps(GOOD))
    size = path.stat().st_size
    assert Instance.from_file(path, max_bytes=size).name == "good"
    refused(lambda: Instance.from_file(path, max_bytes=size - 1), f"{path}: ")


def test_a_fault_in_a_file_names_file_and_field(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(changed("nodes/0/gpus", -1)))
    refused(lambda: Instance.from_file(path), f"{path}: nodes[0].gpus: ")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[]", "plan: "),
        ('{"schema": 2}', "plan: schema: "),
        ('{"group": []}', "plan: group: "),
        ('{"groups": [{"name": "g"}]}', "plan: groups[0].service: "),
        ('{"groups": [{"name": "g", "service": "s", "added": [{}]}]}', "plan: groups[0].added[0]."),
        (
            '{"groups": [{"name": "g", "service": "s", "added": [{"role": "r", "shape": "x",'
            ' "pods": [{"node": "n", "gpus": -1}]}]}]}',
            "plan: groups[0].added[0].pods[0].gpus: ",
        ),
    ],
)
def test_bad_plan(text, path):
    refused(lambda: Plan.from_json(text), path)


@pytest.mark.parametrize(
    ("levels", "lower", "upper"),
    [
        (["cluster", "s2", "s1"], "s1", "s2"),
        (["cluster", "s2", "s1", "rack"], "s1", "s2"),
        (["s2", "pod", "s1"], "s1", "s2"),
        # Named the other way round they say nothing: the two finest, as for any other names.
        (["s1", "s2"], "s2", "s1"),
        (["s1", "s2", "rack"], "rack", "s2"),
        (["s1", "rack"], "rack", "s1"),
        (["zone"], "zone", None),
    ],
)
def test_levels_of_the_tiers(levels, lower, upper):
    data = changed("levels", levels)
    del data["rdma"], data["running"]
    del data["services"][0]["affinity"]
    for node in data["nodes"]:
        node["domains"] = dict.fromkeys(levels, "all")
    instance = Instance.from_dict(data)
    assert instance.rdma_levels == RdmaLevels(lower=lower, upper=upper)
    assert Instance.from_dict({**data, "rdma": {"lower": lower, "upper": upper}}) is not None
    if upper is not None:
        wrong = {**data, "rdma": {"lower": upper, "upper": lower}}
        assert "coarser" in refused(lambda: Instance.from_dict(wrong), "rdma.upper: ")


# Writing ---------------------------------------------------------------------------------------


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("first", "second"):
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text(encoding="utf-8") == text
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    write_text(pipe, "text")
    reader.join()
    assert found == ["text"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["", ".", "/", "none/file", "a\0b", "x" * 300])
def test_what_is_no_file_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_text(name, "text")
    assert caught.value.path
    assert os.listdir(tmp_path) == []


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("x" * 255)
    write_text(path, "text")
    assert path.read_text(encoding="utf-8") == "text"


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    texts = [str(number) * 10**5 for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(lambda text: write_text(path, text), texts))
    assert path.read_text(encoding="utf-8") in texts
    assert os.listdir(tmp_path) == ["file"]


# There and back --------------------------------------------------------------------------------


def test_roundtrip():
    instance = Instance.from_dict(GOOD)
    again = Instance.from_json(instance.to_json())
    assert again == instance
    assert again.digest == instance.digest
    assert Instance.from_json(instance.to_json(indent=None)) == instance


def test_roundtrip_after_use():
    instance = Instance.from_dict(GOOD)
    assert instance.digest
    assert instance.node_index["n2"] == 2
    assert Instance.from_json(instance.to_json()) == instance


def test_the_digest_tells_content_not_form():
    instance = Instance.from_dict(GOOD)
    spelled = changed("services/0/ratios/0/min", "1/2")
    assert Instance.from_dict(spelled).digest == instance.digest
    other = changed("services/0/ratios/0/min", "1/3")
    assert Instance.from_dict(other).digest != instance.digest


def test_the_input_is_not_changed():
    data = copy.deepcopy(GOOD)
    del data["services"][0]["roles"]["decode"]["shapes"][0]["name"]
    data["running"] = []
    before = copy.deepcopy(data)
    instance = Instance.from_dict(data)
    assert data == before
    assert instance.services[0].roles["decode"].shapes[0].name == "shape0"


def test_default_names():
    data = copy.deepcopy(GOOD)
    instances = Instance.from_dict(data).running[0].instances
    assert [each.name for each in instances] == ["prefill-0", "decode-0"]
    plan = Plan.from_json('{"groups": [{"name": "g", "service": "s"}]}')
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (0.1, Fraction(1, 10)),
        (0.3333333333, Fraction(333333333, 10**9)),
        (1e-9, Fraction(1, 10**9)),
        (123456.789, Fraction(123456789, 1000)),
        ("2/3", Fraction(2, 3)),
        ("0.1", Fraction(1, 10)),
        ("1e3", Fraction(1000)),
        (10**12, Fraction(10**12)),
    ],
)
def test_numbers_are_exact(written, value):
    instance = Instance.from_json(json.dumps(changed("objective/weights/rdma", written)))
    assert instance.objective.weights.rdma == value
    assert Instance.from_json(instance.to_json()) == instance


@given(st.fractions(min_value=0, max_value=10**12, max_denominator=10**9))
def test_every_number_survives(number):
    written = json.loads(json.dumps(format_number(number)))
    assert parse_number(written) == number


@given(st.floats(min_value=1e-3, max_value=1e12))
def test_floats_are_read_once_and_for_all(number):
    try:
        read = parse_number(number)
    except ValueError:
        return
    assert parse_number(format_number(read)) == read
    assert float(read) == pytest.approx(number, rel=1e-8)


@given(st.one_of(st.text(max_size=80), st.from_regex(r"\A-?\d{1,40}[./e]?-?\d{0,40}\Z")))
def test_number_texts(text):
    try:
        number = parse_number(text)
    except ValueError as error:
        assert str(error).startswith("must ")  # noqa: PT017
        return
    assert abs(number) <= 10**12
    assert number.denominator <= 10**9


# Anything ---------------------------------------------------------------------------------------

FOLDER = Path(__file__).parent.parent / "instances"
EXAMPLES = [path.read_text() for path in sorted(FOLDER.glob("*.json"))]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.sampled_from([10**7, 10**13, 10**400, -(10**400), 1e308, 0.1, 2 / 3, float("nan")]),
    st.sampled_from(["", "n0", "s1", "s2", "chat", "prefill", "tp4", "2/3", "1e999999999", "node"]),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _places(value, path=()):
    """Yield the path of every place in nested lists and objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*path, key))


@st.composite
def mutated(draw):
    data = copy.deepcopy(draw(st.sampled_from([GOOD, *map(json.loads, EXAMPLES)])))
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(data))
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        place = data
        for key in parents:
            place = place[key]
        action = draw(st.sampled_from(["replace", "replace", "delete", "copy", "add", "swap"]))
        if action == "replace":
            place[last] = draw(VALUES)
        elif action == "delete":
            del place[last]
        elif action == "add" and isinstance(place, dict):
            place[draw(st.text(max_size=6))] = draw(VALUES)
        elif action == "copy" and isinstance(place, list):
            place.append(copy.deepcopy(place[last]))
        else:
            other = draw(st.sampled_from(places))
            source = data
            for key in other:
                source = source[key]
            place[last] = copy.deepcopy(source)
    return data


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _instance_or_error(build):
    try:
        instance = build()
    except InputError as error:
        text = str(error)
    else:
        assert isinstance(instance, Instance)
        assert Instance.from_json(instance.to_json()) == instance
        assert check(instance, Plan()) == []
        assert min(evaluate(instance, Plan()).values) >= 0
        return instance
    assert text
    assert not [word for word in ("pydantic", "Traceback") if word in text]
    return None


@FUZZ
@given(mutated())
def test_mutated_instances(data):
    _instance_or_error(lambda: Instance.from_dict(data))


@FUZZ
@given(mutated())
def test_mutated_instances_as_text(data):
    text = json.dumps(data)
    _instance_or_error(lambda: Instance.from_json(text))


@FUZZ
@given(st.data())
def test_damaged_text(data):
    text = data.draw(st.sampled_from([json.dumps(GOOD), *EXAMPLES])).encode()
    place = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 4))
    damaged = text[:place] + data.draw(st.binary(max_size=4)) + text[place + length :]
    _instance_or_error(lambda: Instance.from_json(damaged))


@FUZZ
@given(VALUES)
def test_anything_at_all(value):
    assert _instance_or_error(lambda: Instance.from_dict(value)) is None
