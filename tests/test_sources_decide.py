"""From a source to the targets: what cannot be read holds them, and never lowers them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from metrics_fleet import fleet_of, service

from heteroplace.policy import FleetState, RoleObserved, Snapshot, decide
from heteroplace.policy.decision import Decision
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.sources import source_from

START = 1_700_000_000.0
RUNNING = RoleObserved(ready=Fraction(10), registered=Fraction(10))
OBSERVED = {name: {"prefill": RUNNING, "decode": RUNNING} for name in ("chat", "code")}
FLEET = fleet_of("chat", "code")


def decided(fleet: Fleet, snapshot: Snapshot, state: FleetState | None = None) -> Decision:
    """The decision on ``chat``."""
    step = decide(fleet, FleetState() if state is None else state, snapshot, OBSERVED)
    return next(each for each in step.decisions if each.service == "chat")


def recorded(path: Path, *samples: tuple[float, Any], signal: str = "decode_tps") -> str:
    lines = (
        json.dumps({"at": START + after, "service": "chat", "signal": signal, "value": value})
        for after, value in samples
    )
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_a_good_low_reading_lowers_the_targets(tmp_path):
    """Without this one, the others would prove nothing."""
    source = source_from(FLEET, recorded(tmp_path / "m.jsonl", (0, 100)))
    decision = decided(FLEET, source.read(FLEET, START + 1))
    assert decision.action == "in"
    assert decision.counts["decode"] < 10


@pytest.mark.parametrize(
    ("samples", "after", "says"),
    [
        ([], 1, "has no decode_tps of 'chat'"),
        ([(0, 100)], 500, "8 min ago"),
        ([(0, 100), (1, float("nan"))], 2, "was not measured"),
        ([(0, 100), (1, None)], 2, "was not measured"),
        ([(0, 100), (0, 200)], 1, "contradicts itself: both 100 and 200"),
        ([(0, -5)], 1, "less than 0"),
        ([(0, 1e18)], 1, "more than is possible"),
    ],
)
def test_a_reading_that_cannot_be_used_holds_the_targets(tmp_path, samples, after, says):
    source = source_from(FLEET, recorded(tmp_path / "m.jsonl", *samples))
    decision = decided(FLEET, source.read(FLEET, START + after))
    assert decision.action == "hold"
    assert decision.counts == decision.before == {"prefill": 10, "decode": 10}
    assert says in decision.reason


def test_a_prometheus_that_is_down_holds_the_targets():
    metrics = {"prometheus": {"url": "http://127.0.0.1:9", "timeout": "500ms"}}
    fleet = fleet_of("chat", "code", metrics=metrics)
    decision = decided(fleet, source_from(fleet).read(fleet, START))
    assert decision.action == "hold"
    assert decision.counts == {"prefill": 10, "decode": 10}
    assert "the connection failed" in decision.reason


def test_a_latency_without_requests_does_not_hold_an_idle_service(tmp_path):
    fleet = fleet_of(service("chat", more=("ttft",)), "code")
    path = Path(recorded(tmp_path / "m.jsonl", (0, 0)))
    with path.open("a") as file:
        sample = {"at": START, "service": "chat", "signal": "ttft", "value": None}
        file.write(json.dumps(sample) + "\n")
    decision = decided(fleet, source_from(fleet, str(path)).read(fleet, START + 1))
    assert decision.action == "in"


def test_a_clock_set_back_gives_what_was_known_then(tmp_path):
    source = source_from(FLEET, recorded(tmp_path / "m.jsonl", (0, 1000), (100, 100)))
    assert source.read(FLEET, START + 100).readings["chat"]["decode_tps"].value == 100
    decision = decided(FLEET, source.read(FLEET, START + 50))
    assert (decision.action, decision.age) == ("out", 50)
