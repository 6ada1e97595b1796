"""The loop's own metrics over HTTP, and its log lines."""

from __future__ import annotations

import io
import json
import logging
import urllib.request

import pytest

from heteroplace.errors import InputError
from heteroplace.loop.exporter import Exporter, Metrics, Observation, parse_address
from heteroplace.loop.logs import JsonLines, about

pytest.importorskip("prometheus_client", reason="needs heteroplace[policy]")


def scraped(port: int) -> dict[str, float]:
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def port(metrics):
    exporter = Exporter(metrics, "127.0.0.1:0")
    yield exporter.port
    exporter.close()


def test_what_a_cycle_tells_can_be_scraped(metrics, port):
    before = scraped(port)
    assert before["heteroplace_decisions_total{action=out}"] == 0
    assert before["heteroplace_cycles_total{outcome=failed}"] == 0
    metrics.succeeded(
        1000.0,
        Observation(
            decisions={"out": 2, "hold": 3},
            targets={("chat", "prefill"): 4.0, ("chat", "decode"): 6.0},
            unmet={("chat", "decode"): 1.5},
            gaps={"unmet[0]": 0.25},
            ages={"chat": 12.0},
            seconds={"solve": 0.2},
        ),
    )
    metrics.failed("metrics")
    metrics.handed_over("delivered")
    metrics.handed_over("refused")
    metrics.waiting(undelivered=1, pending=2)
    now = scraped(port)
    assert now["heteroplace_decisions_total{action=out}"] == 2
    assert now["heteroplace_decisions_total{action=hold}"] == 3
    assert now["heteroplace_target_capacity{role=decode,service=chat}"] == 6
    assert now["heteroplace_unmet_capacity{role=decode,service=chat}"] == 1.5
    assert now["heteroplace_unmet_capacity{role=prefill,service=chat}"] == 0
    assert now["heteroplace_gap_ratio{step=unmet[0]}"] == 0.25
    assert now["heteroplace_data_age_seconds{service=chat}"] == 12
    assert now["heteroplace_phase_seconds_count{phase=solve}"] == 1
    assert now["heteroplace_cycles_total{outcome=done}"] == 1
    assert now["heteroplace_cycles_total{outcome=failed}"] == 1
    assert now["heteroplace_errors_total{phase=metrics}"] == 1
    assert now["heteroplace_actions_delivered_total{}"] == 1
    assert now["heteroplace_actions_refused_total{}"] == 1
    assert now["heteroplace_actions_undelivered{}"] == 1
    assert now["heteroplace_actions_pending{}"] == 2
    assert now["heteroplace_last_cycle_timestamp_seconds{}"] == 1000


def test_what_is_no_longer_named_disappears(metrics, port):
    metrics.succeeded(1.0, Observation(targets={("a", "serve"): 1.0}, ages={"a": 1.0}))
    metrics.succeeded(2.0, Observation(targets={("b", "serve"): 2.0}))
    now = scraped(port)
    assert "heteroplace_target_capacity{role=serve,service=a}" not in now
    assert "heteroplace_data_age_seconds{service=a}" not in now
    assert now["heteroplace_target_capacity{role=serve,service=b}"] == 2


def test_two_loops_have_metrics_of_their_own(metrics):
    metrics.handed_over("delivered")
    assert Metrics().registry.get_sample_value("heteroplace_actions_delivered_total") == 0


@pytest.mark.parametrize("host", ["\u2603..", "h" * 300])
def test_a_host_that_is_no_name_is_named(metrics, host):
    with pytest.raises(InputError, match="cannot be used"):
        Exporter(metrics, f"{host}:0")


def test_an_address_that_is_taken_is_named(metrics, port):
    with pytest.raises(InputError, match="cannot be used") as refused:
        Exporter(metrics, f"127.0.0.1:{port}")
    assert refused.value.path == "--listen"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:0", ("::1", 0)), ("host:1", ("host", 1))],
)
def test_addresses(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "9464", ":9464", "host:", "host:x", "host:65536", "h:-1", "h:0100000000"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match="HOST:PORT"):
        parse_address(text)


def test_log_lines_as_json_carry_their_fields():
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("heteroplace.loop")
    logger.addHandler(handler)
    logger.warning("a\nb %d", 3, extra=about(event="decision", service="chat"))
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first["message"] == "a\nb 3"
    assert (first["level"], first["event"], first["service"]) == ("warning", "decision", "chat")
    assert "ValueError: x" in second["trace"]
