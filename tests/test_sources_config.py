"""The configuration of the metrics sources and the queries that are made of it."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
from typing import Any

import pytest
from metrics_fleet import fleet_of, service

from heteroplace.errors import InputError
from heteroplace.files import validated
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.signals import STANDARD
from heteroplace.policy.sources import source_from
from heteroplace.policy.sources.config import PrometheusMetrics
from heteroplace.policy.sources.prometheus import PrometheusSource
from heteroplace.policy.sources.queries import (
    DEFAULTS,
    PLACEHOLDERS,
    build_queries,
    duration,
    quoted,
)
from heteroplace.policy.sources.wanted import wanted_signals

URL = "http://127.0.0.1:9"


def settings(**fields: Any) -> PrometheusMetrics:
    return validated(lambda: PrometheusMetrics.model_validate({"url": URL, **fields}))


def query(signal: str, **fields: Any) -> str:
    (made,) = build_queries(settings(**fields), (signal,), 0.95)
    return made.text


# --------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "field", "says"),
    [
        ({}, "metrics", "name one source"),
        ({"prometheus": {"url": URL}, "replay": {"path": "m"}}, "metrics", "name one source"),
        ({"prometheus": {}}, "metrics.prometheus.url", "missing"),
        ({"prometheus": {"url": "prometheus:9090"}}, "metrics.prometheus.url", "must be a URL"),
        ({"prometheus": {"url": "ftp://host"}}, "metrics.prometheus.url", "must be a URL"),
        ({"prometheus": {"url": "http://"}}, "metrics.prometheus.url", "must be a URL"),
        ({"prometheus": {"url": "http://host:99999"}}, "metrics.prometheus.url", "must be a URL"),
        ({"prometheus": {"url": "http://ho st"}}, "metrics.prometheus.url", "must be a URL"),
        ({"prometheus": {"url": "http://me:secret@host"}}, "metrics.prometheus.url", "token_file"),
        ({"prometheus": {"url": "http://host?x=1"}}, "metrics.prometheus.url", "after ? or #"),
        ({"prometheus": {"url": URL, "window": 0}}, "metrics.prometheus.window", "greater than 0"),
        ({"prometheus": {"url": URL, "window": "soon"}}, "metrics.prometheus.window", "90s"),
        (
            {"prometheus": {"url": URL, "timeout": float("nan")}},
            "metrics.prometheus.timeout",
            "finite",
        ),
        ({"prometheus": {"url": URL, "timeout": -1}}, "metrics.prometheus.timeout", "negative"),
        ({"prometheus": {"url": URL, "retries": -1}}, "metrics.prometheus.retries", "at least 0"),
        (
            {"prometheus": {"url": URL, "retries": 1.5}},
            "metrics.prometheus.retries",
            "whole number",
        ),
        (
            {"prometheus": {"url": URL, "min_coverage": 2}},
            "metrics.prometheus.min_coverage",
            "at most 1",
        ),
        (
            {"prometheus": {"url": URL, "engines": []}},
            "metrics.prometheus.engines",
            "must not be empty",
        ),
        ({"prometheus": {"url": URL, "engines": ["tgi"]}}, "metrics.prometheus.engines[0]", "vllm"),
        (
            {"prometheus": {"url": URL, "engines": ["vllm", "vllm"]}},
            "metrics.prometheus.engines",
            "twice",
        ),
        (
            {"prometheus": {"url": URL, "labels": {"service": "a-b"}}},
            "metrics.prometheus.labels.service",
            "pattern",
        ),
        (
            {"prometheus": {"url": URL, "labels": {"prefill": []}}},
            "metrics.prometheus.labels.prefill",
            "empty",
        ),
        (
            {"prometheus": {"url": URL, "token_env": "A", "token_file": "b"}},
            "metrics.prometheus.token_file",
            "one of",
        ),
        ({"prometheus": {"url": URL, "username": "me"}}, "metrics.prometheus.username", "password"),
        (
            {"prometheus": {"url": URL, "username": "a:b", "token_env": "A"}},
            "metrics.prometheus.username",
            "colon",
        ),
        (
            {"prometheus": {"url": URL, "headers": {"Authorization": "x"}}},
            "metrics.prometheus.headers.Authorization",
            "token_file",
        ),
        (
            {"prometheus": {"url": URL, "headers": {"X": "a\r\nB: c"}}},
            "metrics.prometheus.headers.X",
            "pattern",
        ),
        ({"prometheus": {"url": URL, "key_file": "k"}}, "metrics.prometheus.key_file", "cert_file"),
        (
            {"prometheus": {"url": URL, "verify": "no"}},
            "metrics.prometheus.verify",
            "true or false",
        ),
        ({"prometheus": {"url": URL, "urls": 1}}, "metrics.prometheus.urls", "unknown field"),
        (
            {"prometheus": {"url": URL, "queries": {"ttft": {"value": "x"}}}},
            "metrics.prometheus.queries.ttft.samples",
            "missing",
        ),
        ({"replay": {"path": ""}}, "metrics.replay.path", "empty"),
        ({"replay": {"path": "m", "format": "xml"}}, "metrics.replay.format", "jsonl"),
        ({"replay": {"path": "m", "lookahead": 0}}, "metrics.replay.lookahead", "at least 1"),
    ],
)
def test_a_wrong_field_is_named(metrics, field, says):
    with pytest.raises(InputError) as error:
        fleet_of("chat", metrics=metrics)
    assert error.value.path == field
    assert says in error.value.message
    assert "secret" not in str(error.value)


def test_a_fleet_in_toml():
    text = """
    schema = 1
    [metrics.prometheus]
    url = "https://prometheus:9090"
    engines = ["vllm"]
    window = "2m"
    labels = { service = "app", prefill = ["prefill", "serve"] }
    [metrics.prometheus.queries.ttft]
    value = 'histogram_quantile({{quantile}}, sum by (app, le) (rate(ttft_bucket[{{window}}])))'
    samples = ["ttft_count"]
    [[services]]
    name = "chat"
    roles.serve.shapes = [{ pods = [{ gpu_type = "H20", gpus = 4 }] }]
    policy.primary = { kind = "throughput", role = "serve", target = 500 }
    """
    fleet = Fleet.from_toml(text)
    assert fleet.metrics is not None
    found = fleet.metrics.prometheus
    assert found is not None
    assert (found.window, found.labels.service, found.engines) == (120.0, "app", ("vllm",))
    again = Fleet.from_json(fleet.to_json())
    assert again == fleet


@pytest.mark.parametrize(
    ("fields", "where", "says"),
    [
        ({"services": {"chta": "x"}}, "metrics.prometheus.services.chta", "not a service"),
        (
            {"services": {"chat": "code"}},
            "metrics.prometheus.services.code",
            "already the label of 'chat'",
        ),
        (
            {"queries": {"decode_tps": {"value": "{{windows}}", "samples": ["x"]}}},
            "metrics.prometheus.queries.decode_tps.value",
            "{{window}}",
        ),
        (
            {"queries": {"decode_tps": {"value": "x", "samples": ["{{}}"]}}},
            "metrics.prometheus.queries.decode_tps.samples",
            "{{window}}",
        ),
    ],
)
def test_what_does_not_fit_the_fleet_is_refused_at_once(fields, where, says):
    with pytest.raises(InputError) as error:
        PrometheusSource(settings(**fields), fleet_of("chat", "code"))
    assert error.value.path == where
    assert says in error.value.message


def test_a_signal_of_the_fleet_needs_a_query():
    queue = {"name": "queue", "kind": "latency", "role": "decode"}
    limits = {"soft_scale_in": {"limits": {"queue": 3}}}
    fleet = fleet_of({**service("chat"), **limits}, signals=[queue])
    with pytest.raises(InputError, match=r"queries\.queue: is missing"):
        PrometheusSource(settings(), fleet)
    own = {"queue": {"value": "sum by (service) (q)", "samples": ["q"]}}
    PrometheusSource(settings(queries=own), fleet)


def test_without_httpx_it_says_how_to_install_it(monkeypatch):
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "httpx":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'heteroplace\[policy\]'"):
        PrometheusSource(settings(), fleet_of("chat"))


@pytest.mark.parametrize(("override", "field"), [("http://a b", "url"), ("", "path")])
def test_an_override_that_cannot_be_used_is_named(override, field):
    with pytest.raises(InputError, match=rf"--metrics: .*{field}"):
        source_from(fleet_of("chat"), override)


# --------------------------------------------------------------------------------------------
# Queries
# --------------------------------------------------------------------------------------------


def test_every_standard_signal_has_a_default():
    assert set(DEFAULTS) == set(STANDARD)


def test_the_signals_that_policies_need():
    fleet = fleet_of(service("chat", "prefill_tps", ("ttft", "decode_sm")), "code")
    assert wanted_signals(fleet) == {
        "chat": ("prefill_tps", "ttft", "decode_sm"),
        "code": ("decode_tps",),
    }


@pytest.mark.parametrize("signal", DEFAULTS)
def test_labels_windows_and_matchers_go_everywhere(signal):
    text = query(
        signal,
        window="90s",
        matchers='cluster="eu"',
        labels={"service": "app", "role": "part", "prefill": ["p.1", 'q"'], "decode": ["d"]},
    )
    assert "service" not in text
    assert "by (app" in text
    # Seen by PromQL as the regular expression p\.1|q".
    assert 'part=~"p\\\\.1|q\\""' in text or 'part=~"d"' in text
    selectors = text.count("[90s]") + text.count("timestamp(")
    assert text.count('cluster="eu"') >= selectors > 0
    assert "[60s]" not in text


def test_engines_that_are_not_named_are_not_asked():
    for signal in ("prefill_tps", "decode_tps", "ttft", "tbt"):
        assert "sglang:" not in query(signal, engines=["vllm"])
        assert "vllm:" not in query(signal, engines=["sglang"])
        assert "vllm:" in query(signal)
        assert "sglang:" in query(signal)


def test_labels_of_the_gpus_may_be_others():
    labels = {"gpu_service": "pod_service", "gpu_role": "pod_role"}
    assert 'pod_role=~"decode"' in query("decode_sm", labels=labels)
    assert "by (pod_service)" in query("decode_sm", labels=labels)
    assert "pod_" not in query("decode_tps", labels=labels)


def test_without_roles_every_instance_counts():
    assert "role" not in query("decode_tps", labels={"role": None})


def test_the_check_of_lost_targets_can_be_turned_off():
    assert "up{" in query("decode_tps")
    assert "up{" not in query("decode_tps", min_coverage=0.0)
    assert "up{" not in query("ttft")


def test_a_query_in_place_of_the_default():
    fields = {"value": "f({{ window }}, {{quantile}})", "samples": ["a{ {{decode}} }", "b"]}
    text = query("tbt", queries={"tbt": {**fields, "service": "app"}})
    assert "f(60s, 0.95)" in text
    assert 'timestamp(a{ role=~"decode" }) or timestamp(b)' in text
    assert "max by (app)" in text
    assert "vllm" not in text
    assert PLACEHOLDERS.count("window") == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(60, "60s"), (1.5, "1500ms"), (0.1, "100ms"), (0.0001, "1ms")]
)
def test_durations_of_promql(seconds, text):
    assert duration(seconds) == text


def test_strings_of_promql():
    assert quoted('a"b\\c\n') == '"a\\"b\\\\c\\n"'


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")
@pytest.mark.parametrize("engines", [["vllm"], ["sglang"], ["vllm", "sglang"]])
def test_prometheus_parses_every_default_query(tmp_path, engines):
    """As a rule file, so that no server has to run."""
    fields = {
        "engines": engines,
        "matchers": 'cluster="eu"',
        "labels": {"prefill": ["a b-c.d", "e"]},
    }
    made = build_queries(settings(**fields), tuple(DEFAULTS), 0.99)
    rules = [{"record": each.signal, "expr": each.text} for each in made]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    found = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(DEFAULTS)} rules found" in found.stdout
