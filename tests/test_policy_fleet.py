"""The fleet file: what is read, what is refused and how."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_fleets import SHAPE, THROUGHPUT, fleet, service

from heteroplace import InputError
from heteroplace.policy import Cluster, Fleet, FleetState
from heteroplace.policy.duration import parse_duration, spoken
from heteroplace.policy.fleet import Defaults
from heteroplace.policy.settings import Age

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "fleets/demo.toml"


def test_the_demo_is_read_and_written_back():
    demo = Fleet.from_file(DEMO)
    assert [each.name for each in demo.services] == ["chat", "code", "embed"]
    assert Fleet.from_json(demo.to_json()) == demo
    assert Fleet.from_json(demo.to_json()).digest == demo.digest
    cluster = Cluster.from_file(ROOT / "fleets/demo-cluster.json")
    assert Cluster.from_json(cluster.to_json()) == cluster


def test_capacity_comes_from_the_served_model():
    demo = Fleet.from_file(DEMO)
    prefill = demo.shapes["chat"]["prefill"]
    assert [(each.name, each.capacity) for each in prefill] == [
        ("L20 x2", Fraction("7785.2")),
        ("H20 x1", Fraction("7501.2")),
    ]


def test_a_size_that_is_not_named_is_the_one_with_most_per_gpu():
    data = json.loads(Fleet.from_file(DEMO).to_json())
    data["services"][0]["roles"]["decode"]["use"] = [{"gpu_type": "NVIDIA-H20"}]
    shape = Fleet.from_dict(data).shapes["chat"]["decode"][0]
    assert (shape.name, shape.capacity) == ("NVIDIA-H20 x1", 4571)


def test_a_target_may_follow_from_the_capacity():
    data = json.loads(Fleet.from_file(DEMO).to_json())
    data["services"][0]["policy"]["primary"] = {"kind": "throughput", "load": 0.5}
    assert Fleet.from_dict(data).compiled[0].target == pytest.approx(4571 / 2)


def test_defaults_hold_field_by_field():
    made = fleet(
        service(stability={"damping": 0.5}),
        service("other", stability={}),
        defaults={"stability": {"damping": 0.9, "cooldown_in": "10m"}},
    )
    one, other = (each.stability for each in made.services)
    assert (one.damping, one.cooldown_in) == (0.5, 600)
    assert (other.damping, other.cooldown_in) == (0.9, 600)
    assert other.cooldown_out == 60


def test_a_setting_that_equals_the_projects_default_is_written_and_read_back():
    made = fleet(service(age={"max_age": Age().max_age}), defaults={"age": {"max_age": 10}})
    assert made.services[0].age.max_age == Age().max_age
    assert Fleet.from_json(made.to_json()) == made


def test_defaults_hold_in_a_fleet_made_of_objects():
    plain = fleet().services[0]
    own = plain.model_copy(update={"name": "own", "age": Age(max_age=7.0)})
    made = Fleet(schema=1, defaults=Defaults(age=Age(max_age=5.0)), services=(plain, own))
    assert [each.age.max_age for each in made.services] == [5, 7]
    assert made.services[0].policy == plain.policy


def test_a_band_has_a_default():
    (ratio,) = fleet(service(ratios=[{"target": "3/2"}])).services[0].ratios
    assert ratio.band == (Fraction(6, 5), Fraction(15, 8))


def changed(path, value):
    """The data of a plain fleet with one field set to a value."""
    data = {"schema": 1, "services": [service()]}
    data = json.loads(json.dumps(data))
    at = data
    *way, last = path
    for key in way:
        at = at[key] if isinstance(at, list) else at.setdefault(key, {})
    at[last] = value
    return data


ROLES = ("services", 0, "roles")
POLICY = ("services", 0, "policy")
PRIMARY = (*POLICY, "primary")
FEEDBACK = {"kind": "feedback", "signal": "tbt", "slo": 1}


def periodic(**entry):
    return {"kind": "periodic", "entries": [{"cron": "0 8 * * *", **entry}]}


@pytest.mark.parametrize(
    ("path", "value", "where", "said"),
    [
        (("schema",), 2, "schema", "version 2"),
        (("schema",), "1", "schema", "whole number"),
        (("interval",), 0, "interval", "greater than 0"),
        (("interval",), "soon", "interval", "seconds or a text"),
        (("interval",), float("nan"), "interval", "finite"),
        (("interval",), 10**400, "interval", "ten years"),
        (("interval",), -1, "interval", "negative"),
        (("interval",), True, "interval", "number of seconds"),
        (("latency_percentile",), 99, "latency_percentile", "less than 1"),
        (("services",), [], "services", "empty"),
        (("servces",), [], "servces", "unknown field"),
        (("services",), [service(), service()], "services[1].name", "already the name"),
        (("signals",), [{"name": "ttft", "kind": "latency"}], "signals[0].name", "standard"),
        (("signals",), [{"name": "x", "kind": "heat"}], "signals[0].kind", "latency"),
        (("defaults",), {"stability": {"damping": 2}}, "defaults.stability.damping", "at most 1"),
        (("defaults",), {"stabilty": {}}, "defaults.stabilty", "unknown field"),
        ((*ROLES, "prefill", "min"), 41, "services[0].roles.prefill.min", "above max"),
        ((*ROLES, "prefill", "min"), -1, "services[0].roles.prefill.min", "at least 0"),
        ((*ROLES, "prefill", "max"), 1.5, "services[0].roles.prefill.max", "whole number"),
        ((*ROLES, "prefill", "shapes"), [], "services[0].roles.prefill.shapes", "is missing"),
        ((*ROLES, "prefill", "use"), [{"gpu_type": "H20"}], ".prefill.use", "served model"),
        (("services", 0, "model"), "GPT", "services[0].roles.prefill.shapes", "together"),
        (("services", 0, "ratios"), [], "services[0].ratios", "need 1"),
        (
            ("services", 0, "ratios", 0, "target"),
            3,
            "services[0].ratios[0].max",
            "below the target",
        ),
        (("services", 0, "ratios", 0, "target"), 0, "ratios[0].target", "greater than 0"),
        (("services", 0, "ratios", 0, "target"), "1/0", "ratios[0].target", "fraction"),
        (("services", 0, "ratios", 0, "numerator"), "fill", "ratios[0].numerator", "unknown role"),
        (("services", 0, "ratios", 0, "denominator"), "prefill", "denominator", "another role"),
        (
            ("services", 0, "ratios"),
            [{"target": "41/43", "min": "41/43", "max": "41/43"}],
            "services[0].ratios",
            "widen the band",
        ),
        ((*PRIMARY, "kind"), "magic", "services[0].policy.primary", "magic"),
        ((*PRIMARY, "signal"), "tokens", "policy.primary.signal", "unknown signal"),
        ((*PRIMARY, "signal"), "ttft", "policy.primary.signal", "kind latency"),
        ((*PRIMARY, "target"), 0, "primary", "greater than 0"),
        ((*PRIMARY, "target"), float("inf"), "primary", "finite"),
        (PRIMARY, {"kind": "throughput"}, "policy.primary.target", "is missing"),
        ((*PRIMARY, "role"), "serve", "policy.primary.role", "unknown role"),
        (PRIMARY, {"kind": "utilization", "target": 60}, "primary", "at most 1"),
        (
            PRIMARY,
            {**FEEDBACK, "tiers": [{"at": 1.1, "change": -0.1}]},
            "tiers[0]",
            "must grow",
        ),
        (
            PRIMARY,
            {**FEEDBACK, "tiers": [{"at": 1.2, "change": 0.1}, {"at": 1.1, "change": 0.2}]},
            "tiers[1]",
            "above the tier before it",
        ),
        (PRIMARY, {**FEEDBACK, "tiers": [{"at": 1.2, "change": 0.1}]}, "tiers", "never lowers"),
        ((*POLICY, "latency"), [FEEDBACK, FEEDBACK], "latency[1].signal", "merge"),
        ((*POLICY, "latency"), [{**FEEDBACK, "role": "decode"}], "latency[0].role", "remove"),
        ((*POLICY, "latency"), [{**FEEDBACK, "signal": "decode_tps"}], "latency[0]", "throughput"),
        (PRIMARY, periodic(), "policy.primary.entries[0]", "says nothing"),
        (PRIMARY, periodic(counts={"decode": 5}, total=9), "entries[0].total", "together"),
        (PRIMARY, periodic(counts={"serve": 5}), "entries[0].counts", "unknown role"),
        (PRIMARY, periodic(counts={"decode": 50}), "entries[0].counts", "outside"),
        (PRIMARY, periodic(counts={"decode": 2, "prefill": 9}), "entries[0].counts", "outside"),
        (PRIMARY, periodic(total=5, ratio=9), "entries[0].ratio", "outside the band"),
        (PRIMARY, periodic(release=True), "entries[0].release", "nothing to hold"),
        (PRIMARY, {**periodic(total=4), "time_zone": "Mars"}, "time_zone", "IANA"),
        (PRIMARY, periodic(total=4) | {"entries": []}, "entries", "empty"),
        (
            PRIMARY,
            {"kind": "periodic", "entries": [{"cron": "0 25 * * *", "total": 4}]},
            "cron",
            "not a cron expression",
        ),
        (
            ("services", 0, "soft_scale_in", "limits"),
            {"decode_tps": 5},
            "soft_scale_in.limits",
            "throughput",
        ),
        (
            ("services", 0, "soft_scale_in", "limits"),
            {"decode_gpu_util": 95},
            "soft_scale_in.limits",
            "divide percentages by 100",
        ),
        (
            ("services", 0, "soft_scale_in", "backoff"),
            "3h",
            "soft_scale_in.max_backoff",
            "2 h is less than backoff 3 h; raise it",
        ),
        (("services", 0, "soft_scale_in", "window"), "1 h", "soft_scale_in.window", "seconds"),
        (
            ROLES,
            {role: {"min": 0, "shapes": [SHAPE]} for role in ("prefill", "decode")},
            "policy.primary",
            "gone to zero",
        ),
    ],
)
def test_a_wrong_fleet_names_the_field_and_the_fix(path, value, where, said):
    with pytest.raises(InputError) as caught:
        Fleet.from_dict(changed(path, value))
    assert where in caught.value.path
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 1\nschema = 1", "is not TOML"),
        ("schema = ", "is not TOML"),
        ("schema = 1", "services: is missing"),
        (b"\xff", "is not TOML"),
        ("schema = 1\ninterval = nan\nservices = []", "interval: must be a finite number"),
    ],
)
def test_wrong_toml_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        Fleet.from_toml(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 1, "schema": 1}', "named twice"),
        ("{", "valid JSON"),
        ('{"schema": NaN}', "not a number of JSON"),
        ("[" * 10000, "valid JSON"),
        ("[]", "object"),
    ],
)
def test_wrong_json_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        Fleet.from_json(text)


def test_a_missing_file_model_or_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Fleet.from_file(tmp_path / "none.toml")
    text = DEMO.read_text(encoding="utf-8")
    file = tmp_path / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"models: .*no served model"):
        Fleet.from_file(file)
    file.write_text(text.replace('"../models"', f'"{ROOT / "models"}"'), encoding="utf-8")
    assert Fleet.from_file(file).shapes["chat"]
    file.write_text(
        file.read_text(encoding="utf-8").replace("Llama-3.1-8B", "Llama-9"), encoding="utf-8"
    )
    with pytest.raises(InputError, match="unknown model 'Llama-9'"):
        Fleet.from_file(file)


@pytest.mark.parametrize("folder", ["a" * 5000, "nowhere", "\0"])
def test_a_folder_of_models_that_cannot_be_read_is_named(folder):
    data = {"schema": 1, "models": folder, "services": [service() | {"model": "some"}]}
    with pytest.raises(InputError) as caught:
        Fleet.from_dict(data)
    assert caught.value.path == "models"


def test_the_input_is_not_changed():
    data = changed(("defaults",), {"stability": {"damping": 0.9}})
    kept = json.loads(json.dumps(data))
    Fleet.from_dict(data)
    assert data == kept


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": 2}',
        '{"at": NaN}',
        '{"at": 1e300}',
        '{"services": {"chat": {}}}',
        '{"services": {"chat": {"counts": {"decode": -1}}}}',
        '{"services": {"chat": {"counts": {"decode": 1}, "more": 1}}}',
        '{"services": {}, "services": {}}',
        "",
        "\0",
    ],
)
def test_a_corrupt_state_is_refused(text):
    with pytest.raises(InputError):
        FleetState.from_json(text, "state.db")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        ("250ms", 0.25),
    ],
)
def test_durations(value, seconds):
    assert parse_duration(value) == pytest.approx(seconds)


@given(st.text(max_size=20) | st.floats() | st.integers() | st.none() | st.booleans())
def test_a_duration_is_a_number_of_seconds_or_refused(value):
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert 0 <= seconds <= 10 * 366 * 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (45, "45 s"), (300, "5 min"), (7800, "2 h 10 min"), (864000, "10 days")],
)
def test_durations_are_spoken(seconds, text):
    assert spoken(seconds) == text


def test_the_schema_of_the_file_can_be_generated():
    schema = Fleet.model_json_schema(by_alias=True)
    assert {"schema", "services"} <= set(schema["required"])


def test_fleets_of_one_signal_are_told_apart():
    own = [{"name": "queue", "kind": "latency", "unit": "s", "title": "queueing time"}]
    layers = [{"signal": "queue", "slo": 2}]
    made = fleet(service(policy={"primary": THROUGHPUT, "latency": layers}), signals=own)
    assert made.compiled[0].layers[0].signal.label == "queueing time"
