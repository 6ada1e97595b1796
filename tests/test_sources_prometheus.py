"""Readings from a real Prometheus server that scrapes a small exporter."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from metrics_fleet import UTILIZATIONS, fleet_of, service

from heteroplace.policy.fleet import Fleet
from heteroplace.policy.readings import Snapshot
from heteroplace.policy.signals import STANDARD
from heteroplace.policy.sources.config import PrometheusMetrics
from heteroplace.policy.sources.prometheus import PrometheusSource

BINARY = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(
    BINARY is None, reason="needs a Prometheus server (Debian package prometheus)"
)

WINDOW = 4.0
PATIENCE = 30.0
LATENCIES = ("ttft", "tbt")
SERVICES = ("new", "old", "live", "late")


# --------------------------------------------------------------------------------------------
# The exporter
# --------------------------------------------------------------------------------------------


def histogram(name: str, labels: str, per_bucket: dict[str, float]) -> dict[str, float]:
    """Rates of a histogram's series; ``per_bucket``: observations/s that fall into each bucket."""
    rates, total = {}, 0.0
    for bound, rate in per_bucket.items():
        total += rate
        rates[f'{name}_bucket{{{labels},le="{bound}"}}'] = total
    rates[f"{name}_count{{{labels}}}"] = total
    return rates


# 0.99 of the observations of ``SLOW`` are at most 0.6 s, of ``FAST`` at most 0.06 s.
SLOW = {"0.2": 50.0, "0.6": 49.0, "2.0": 1.0, "+Inf": 0.0}
FAST = {"0.02": 50.0, "0.06": 49.0, "0.2": 1.0, "+Inf": 0.0}


def vllm(role: str, sources: bool) -> dict[str, float]:
    """An instance of vLLM: current (``sources``) or before prompt tokens were split by source."""
    labels = 'model_name="m",engine="0"'
    prefill = role == "prefill"
    latency = "inter_token_latency" if sources else "time_per_output_token"
    rates = {
        f"vllm:prompt_tokens_total{{{labels}}}": 1000.0,
        f"vllm:generation_tokens_total{{{labels}}}": 10.0 if prefill else 400.0,
        # Requests that wait are counted again in current versions, so this is not to be used there.
        f"vllm:prefix_cache_hits_total{{{labels}}}": 5000.0 if sources else 250.0,
        **histogram("vllm:time_to_first_token_seconds", labels, SLOW if prefill else FAST),
        **histogram(f"vllm:{latency}_seconds", labels, SLOW if prefill else FAST),
    }
    if sources:
        by_source = {"local_compute": 700.0, "local_cache_hit": 300.0, "external_kv_transfer": 0.0}
        for source, rate in by_source.items():
            rates[f'vllm:prompt_tokens_by_source_total{{{labels},source="{source}"}}'] = rate
    else:
        rates[f"vllm:external_prefix_cache_hits_total{{{labels}}}"] = 100.0
    return rates


def sglang(role: str, realtime: bool) -> dict[str, float]:
    """An instance of SGLang on two tensor-parallel ranks and two data-parallel ones."""
    labels = f'model_name="m",engine_type="{role}"'
    prefill = role == "prefill"
    rates = {
        f'sglang:prompt_tokens_total{{{labels},is_streaming="true"}}': 900.0,
        f'sglang:generation_tokens_total{{{labels},is_streaming="true"}}': 10.0
        if prefill
        else 200.0,
        f'sglang:generation_tokens_total{{{labels},is_streaming="false"}}': 0.0
        if prefill
        else 100.0,
        f'sglang:cached_tokens_total{{{labels},cache_source="device"}}': 200.0,
        f'sglang:cached_tokens_total{{{labels},cache_source="host"}}': 100.0,
        **histogram("sglang:time_to_first_token_seconds", labels, FAST if prefill else SLOW),
        **histogram("sglang:inter_token_latency_seconds", labels, SLOW if prefill else FAST),
    }
    if realtime:
        for data in "01":
            for tensor in "01":
                ranks = f'{labels},dp_rank="{data}",tp_rank="{tensor}"'
                for mode, rate in (
                    ("prefill_compute", 275.0),
                    ("prefill_cache", 60.0),
                    ("decode", 160.0),
                ):
                    rates[f'sglang:realtime_tokens_total{{{ranks},mode="{mode}"}}'] = rate
    return rates


ENGINES: dict[str, Callable[[str], dict[str, float]]] = {
    "new": lambda role: vllm(role, sources=True),
    "old": lambda role: vllm(role, sources=False),
    "live": lambda role: sglang(role, realtime=True),
    "late": lambda role: sglang(role, realtime=False),
}
# Instances of each service and role; what one of them does is multiplied by these.
INSTANCES = {"prefill": 1, "decode": 3}
EXPECTED = {
    ("new", "prefill_tps"): 700.0,
    ("old", "prefill_tps"): 650.0,
    ("live", "prefill_tps"): 550.0,
    ("late", "prefill_tps"): 600.0,
    ("new", "decode_tps"): 1200.0,
    ("old", "decode_tps"): 1200.0,
    ("live", "decode_tps"): 960.0,
    ("late", "decode_tps"): 900.0,
    **{(name, "ttft"): 0.6 for name in SERVICES},
    **{(name, "tbt"): 0.06 for name in SERVICES},
    **{(name, "prefill_gpu_util"): 0.5 for name in SERVICES},
    **{(name, "decode_gpu_util"): 0.95 for name in SERVICES},
    **{(name, "prefill_sm"): 0.4 for name in SERVICES},
    **{(name, "decode_sm"): 0.2 for name in SERVICES},
}


def gpus() -> str:
    """What DCGM exports of a machine, in percent and as a share."""
    lines = []
    for name in SERVICES:
        for role, percent, share in (("prefill", (40, 60), 0.4), ("decode", (90, 100), 0.2)):
            for gpu, used in enumerate(percent):
                labels = f'gpu="{gpu}",pod="{name}-{role}",pod_service="{name}",pod_role="{role}"'
                lines.append(f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} {used}")
                lines.append(f"DCGM_FI_PROF_SM_ACTIVE{{{labels}}} {share}")
    return "\n".join(lines) + "\n"


class Exporter(ThreadingHTTPServer):
    """Exports every instance under a path of its own: ``/service/role/number`` and ``/gpus``."""

    daemon_threads = True

    def __init__(self) -> None:
        self.begin = time.time()
        self.down: set[str] = set()
        super().__init__(("127.0.0.1", 0), ExporterHandler)

    def text(self, path: str) -> str:
        if path == "/gpus":
            return gpus()
        _, name, role, _ = path.split("/")
        seconds = time.time() - self.begin
        return "".join(f"{key} {rate * seconds!r}\n" for key, rate in ENGINES[name](role).items())


class ExporterHandler(BaseHTTPRequestHandler):
    """Answers a scrape; a target that is down answers 503."""

    server: Exporter

    def do_GET(self) -> None:
        down = any(self.path.startswith(prefix) for prefix in self.server.down)
        body = b"" if down else self.server.text(self.path).encode()
        self.send_response(503 if down else 200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


# --------------------------------------------------------------------------------------------
# The server and a proxy before it
# --------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A Prometheus server of its own data folder."""

    def __init__(self, folder: Path, exporter: Exporter) -> None:
        self.folder, self.port = folder, free_port()
        target = f"127.0.0.1:{exporter.server_address[1]}"
        jobs = [
            {"job_name": "gpus", "metrics_path": "/gpus", "static_configs": [{"targets": [target]}]}
        ]
        for name in SERVICES:
            for role, count in INSTANCES.items():
                for number in range(count):
                    labels = {"service": name, "role": role, "instance": f"{name}-{role}-{number}"}
                    jobs.append(
                        {
                            "job_name": f"{name}-{role}-{number}",
                            "metrics_path": f"/{name}/{role}/{number}",
                            "static_configs": [{"targets": [target], "labels": labels}],
                        }
                    )
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML.
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert BINARY is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    BINARY,
                    f"--config.file={self.folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )
        until(self.ready, "the server is ready")

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Proxy(ThreadingHTTPServer):
    """Passes queries on, counts them and, while ``gate`` is not set, holds them back."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.port, self.count, self.gate = port, 0, threading.Event()
        self.gate.set()
        super().__init__(("127.0.0.1", 0), ProxyHandler)


class ProxyHandler(BaseHTTPRequestHandler):
    """Passes one query on."""

    server: Proxy

    def do_POST(self) -> None:
        self.server.count += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.gate.wait(PATIENCE)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        connection.request("POST", self.path, body, {"Content-Type": self.headers["Content-Type"]})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        with contextlib.suppress(OSError):  # Who asked did not wait.
            self.send_response(response.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with Exporter() as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, exporter: Exporter) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("prometheus"), exporter)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.gate.set()
        made.shutdown()


@pytest.fixture(autouse=True)
def everything_up(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "exporter" in request.fixturenames:
        request.getfixturevalue("exporter").down.clear()


# --------------------------------------------------------------------------------------------
# Asking
# --------------------------------------------------------------------------------------------


def until(true: Callable[[], Any], what: str) -> Any:
    """Ask again and again until the answer is true; give it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {PATIENCE:g} s in vain until {what}")


def source(port: int, fleet: Fleet, **settings: Any) -> PrometheusSource:
    labels = {"gpu_service": "pod_service", "gpu_role": "pod_role"}
    fields = {"url": f"http://127.0.0.1:{port}", "window": WINDOW, "labels": labels, **settings}
    return PrometheusSource(PrometheusMetrics.model_validate(fields), fleet)


def problem(snapshot: Snapshot, name: str, signal: str) -> str:
    return "".join(
        each.message for each in snapshot.problems if (each.service, each.signal) == (name, signal)
    )


def test_every_signal_of_every_engine_has_its_value_and_time(server, proxy):
    more = (*LATENCIES, *UTILIZATIONS)
    fleet = fleet_of(*(service(name, more=more) for name in SERVICES))
    asked = source(proxy.server_address[1], fleet)

    def settled() -> Snapshot | None:
        """A snapshot that lies wholly within what was scraped steadily."""
        snapshot = asked.read(fleet, time.time())
        rates = (each.get("prefill_tps") for each in snapshot.readings.values())
        steady = all(rate is not None and rate.value > 500 for rate in rates)
        return snapshot if steady and not snapshot.problems else None

    snapshot = until(settled, "every signal has a reading")
    before = proxy.count
    snapshot = asked.read(fleet, time.time())
    assert proxy.count - before == 8, "one query for each signal, whatever the number of services"
    assert snapshot.problems == ()
    checked = 0
    for name in SERVICES:
        assert set(snapshot.readings[name]) == set(STANDARD)
        for signal, reading in snapshot.readings[name].items():
            assert reading.value == pytest.approx(EXPECTED[name, signal], rel=0.1), (name, signal)
            assert 0 <= snapshot.now - reading.at < WINDOW, (name, signal)
            checked += 1
    assert checked == 32


def test_a_reading_carries_the_time_of_its_sample_not_of_the_query(server, exporter):
    fleet = fleet_of("old", "new")
    asked = source(server.port, fleet)
    until(
        lambda: "decode_tps" in asked.read(fleet, time.time()).readings["old"], "there is a reading"
    )
    exporter.down = {"/old/"}
    ages: list[float] = []

    def gone() -> bool:
        snapshot = source(server.port, fleet, min_coverage=0.0).read(fleet, time.time())
        reading = snapshot.readings["old"].get("decode_tps")
        if reading is not None:
            ages.append(snapshot.now - reading.at)
        return reading is None and bool(ages)

    until(gone, "the rate of the stopped exporter ends")
    assert max(ages) > 1.5, "the age grows while the rate still has a value"
    assert max(ages) <= WINDOW
    snapshot = asked.read(fleet, time.time())
    assert problem(snapshot, "old", "decode_tps")
    assert snapshot.now - snapshot.readings["new"]["decode_tps"].at < WINDOW, "others go on"


def test_a_sum_over_targets_of_which_one_is_lost_is_not_used(server, exporter):
    fleet = fleet_of("live")
    strict, lax = source(server.port, fleet), source(server.port, fleet, min_coverage=0.6)
    until(
        lambda: strict.read(fleet, time.time()).readings["live"].get("decode_tps"),
        "there is a reading",
    )
    exporter.down = {"/live/decode/1"}

    def told() -> str:
        return problem(strict.read(fleet, time.time()), "live", "decode_tps")

    assert until(told, "the loss is seen") == (
        "decode_tps of 'live' is incomplete: 1 of 3 scrape targets stopped answering."
    )
    assert "decode_tps" in lax.read(fleet, time.time()).readings["live"]


def test_a_slow_server_is_a_problem_within_the_deadline(server, proxy):
    fleet = fleet_of("new")
    asked = source(proxy.server_address[1], fleet, timeout=0.5)
    until(
        lambda: asked.read(fleet, time.time()).readings["new"].get("decode_tps"),
        "there is a reading",
    )
    proxy.gate.clear()
    snapshot = asked.read(fleet, time.time())
    assert not proxy.gate.is_set(), "the answer is still held back"
    proxy.gate.set()
    assert snapshot.readings["new"] == {}
    assert problem(snapshot, "new", "decode_tps") == (
        "Prometheus gave no decode_tps: there was no answer within 0.5 s."
    )
    assert asked.read(fleet, time.time()).readings["new"].get("decode_tps"), "and it is asked again"


def test_other_queries_and_label_values(server):
    query = {
        "value": "sum by (service) (rate(vllm:prompt_tokens_total{{{decode}}}[{{window}}])) # all",
        "samples": ["vllm:prompt_tokens_total{{{decode}}}"],
        "targets": "{{decode}}",
    }
    fleet = fleet_of("chat")
    asked = source(server.port, fleet, queries={"decode_tps": query}, services={"chat": "old"})

    def steady() -> Snapshot | None:
        snapshot = asked.read(fleet, time.time())
        reading = snapshot.readings["chat"].get("decode_tps")
        return snapshot if reading and reading.value > 2700 else None

    reading = until(steady, "the query has a reading").readings["chat"]["decode_tps"]
    assert reading.value == pytest.approx(3000, rel=0.1)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("sum by (service) (rate(vllm:prompt_tokens_total[4s])", "parse error"),
        ("1", "expected type instant vector"),
        ("sum by (service, instance) (vllm:prompt_tokens_total)", "more than once"),
        ("sum by (service) (vllm:none)", "too few samples"),
        ("sum by (service) (vllm:prompt_tokens_total) * NaN", "is NaN"),
        ("sum by (service) (vllm:prompt_tokens_total) / 0", "is inf"),
        ("sum(vllm:prompt_tokens_total)", "too few samples"),
    ],
)
def test_a_query_that_does_not_give_one_number_for_each_service(server, value, says):
    query = {"value": value, "samples": ["vllm:prompt_tokens_total"]}
    fleet = fleet_of("old")
    asked = source(server.port, fleet, queries={"decode_tps": query})
    found = until(
        lambda: says in problem(asked.read(fleet, time.time()), "old", "decode_tps"), says
    )
    assert found
    assert "decode_tps" not in asked.read(fleet, time.time()).readings["old"]


def test_a_moment_long_ago_has_no_series(server):
    fleet = fleet_of("new")
    snapshot = source(server.port, fleet).read(fleet, time.time() - 86400)
    assert snapshot.readings == {"new": {}}
    assert problem(snapshot, "new", "decode_tps") == (
        "decode_tps of 'new' has no series in the last 4 s."
    )


def test_a_server_that_is_killed_and_comes_back(server):
    fleet = fleet_of("new")
    asked = source(server.port, fleet)
    until(
        lambda: asked.read(fleet, time.time()).readings["new"].get("decode_tps"),
        "there is a reading",
    )
    server.kill()
    snapshot = asked.read(fleet, time.time())
    assert snapshot.readings == {"new": {}}
    assert "the connection failed" in problem(snapshot, "new", "decode_tps")
    server.start()
    until(
        lambda: asked.read(fleet, time.time()).readings["new"].get("decode_tps"),
        "there is a reading again",
    )
