"""What a Prometheus source makes of servers and networks that misbehave."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from metrics_fleet import fleet_of, service

from heteroplace.errors import InputError
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.readings import Reading, Snapshot
from heteroplace.policy.sources import source_from
from heteroplace.policy.sources.config import PrometheusMetrics
from heteroplace.policy.sources.prometheus import PrometheusSource
from heteroplace.policy.sources.queries import PART

NOW = 1_700_000_000.0
FLEET = fleet_of("chat", "code")

NOTHING = {"resultType": "vector", "result": []}

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's ``answer`` says."""

    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        self.query = form["query"]
        if "DCGM" in self.query:  # They only help to judge the others.
            self.server.others.append(self.query)
            self.send(json.dumps({"status": "success", "data": NOTHING}))
            return
        self.server.seen.append({"path": self.path, "form": form, "headers": dict(self.headers)})
        with contextlib.suppress(OSError):  # Who asked did not wait.
            self.server.answer(self)

    def send(self, body: bytes | str, status: int = 200, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response_only(status)
        self.send_header("Date", formatdate(self.server.date(), usegmt=True))
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server on a free port of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: Answer = lambda handler: handler.send(vector())
        self.seen: list[dict[str, Any]] = []
        self.others: list[str] = []
        self.date = time.time
        self.release = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gives(self, body: bytes | str, status: int = 200, **headers: str) -> None:
        self.answer = lambda handler: handler.send(body, status, **headers)

    def handle_error(self, *_: Any) -> None:
        pass  # A connection that breaks off is what some tests are about.


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.release.set()
        made.shutdown()


def series(service: str, part: str, value: Any, **labels: str) -> dict[str, Any]:
    return {"metric": {"service": service, PART: part, **labels}, "value": [NOW, value]}


def vector(*found: dict[str, Any], **more: Any) -> str:
    """A successful answer; by default both services have a reading."""
    if not found:
        found = tuple(
            series(name, part, value)
            for name in ("chat", "code")
            for part, value in (("value", "5"), ("at", str(NOW - 2)))
        )
    data = {"resultType": "vector", "result": list(found)}
    return json.dumps({"status": "success", "data": data, **more})


def source(
    url: str, fleet: Fleet = FLEET, clock: Any = time.time, **settings: Any
) -> PrometheusSource:
    return PrometheusSource(
        PrometheusMetrics.model_validate({"url": url, **settings}), fleet, clock
    )


def read(server: Server, **settings: Any) -> Snapshot:
    return source(server.url, **settings).read(FLEET, NOW)


def told(snapshot: Snapshot, service: str = "chat") -> str:
    return "".join(each.message for each in snapshot.problems if each.service == service)


# --------------------------------------------------------------------------------------------
# Requests
# --------------------------------------------------------------------------------------------


def test_a_query_is_posted_with_its_moment_and_time_limit(server):
    snapshot = read(server, headers={"X-Scope-OrgID": "team"})
    assert snapshot.readings["chat"] == {"decode_tps": Reading(5, NOW - 2)}
    assert snapshot.problems == ()
    (seen,) = server.seen
    assert seen["path"] == "/api/v1/query"
    assert seen["form"]["time"] == f"{NOW:.3f}"
    assert 0 < int(seen["form"]["timeout"].removesuffix("ms")) <= 5000
    assert "vllm:generation_tokens_total" in seen["form"]["query"]
    assert seen["headers"]["X-Scope-OrgID"] == "team"
    assert "Authorization" not in seen["headers"]


def test_a_url_may_have_a_path(server):
    source(server.url + "/prometheus/").read(FLEET, NOW)
    assert server.seen[0]["path"] == "/prometheus/api/v1/query"


def test_a_thousand_services_take_one_query_for_each_signal(server):
    names = [f"service-{number}" for number in range(1000)]
    fleet = fleet_of(*names)
    parts = [
        (name, part, value) for name in names for part, value in (("value", "5"), ("at", str(NOW)))
    ]
    server.gives(vector(*(series(*each) for each in parts)))
    snapshot = source(server.url, fleet).read(fleet, NOW)
    assert len(server.seen) == 1
    assert len(server.others) == 2
    assert all(snapshot.readings[name] == {"decode_tps": Reading(5, NOW)} for name in names)


def test_tokens(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_TOKEN", " s3cret\n")
    read(server, token_env="PROMETHEUS_TOKEN")
    assert server.seen[-1]["headers"]["Authorization"] == "Bearer s3cret"
    file = tmp_path / "token"
    file.write_text("first\n")
    asked = source(server.url, token_file=str(file), username="me")
    asked.read(FLEET, NOW)
    file.write_text("second\n")
    asked.read(FLEET, NOW)
    sent = [seen["headers"]["Authorization"].removeprefix("Basic ") for seen in server.seen[-2:]]
    assert [base64.b64decode(each).decode() for each in sent] == ["me:first", "me:second"]
    file.unlink()
    snapshot = asked.read(FLEET, NOW)
    assert f"the token of {file}: cannot be read" in told(snapshot)
    assert "second" not in told(snapshot)


@pytest.mark.parametrize("content", ["", "  \n", "one\ntwo", "schlüssel"])
def test_a_token_that_cannot_be_used_is_refused_at_once(tmp_path, monkeypatch, content):
    monkeypatch.setenv("PROMETHEUS_TOKEN", content)
    with pytest.raises(InputError, match=r"\$PROMETHEUS_TOKEN"):
        source("http://127.0.0.1:9", token_env="PROMETHEUS_TOKEN")
    monkeypatch.delenv("PROMETHEUS_TOKEN")
    with pytest.raises(InputError, match="not set"):
        source("http://127.0.0.1:9", token_env="PROMETHEUS_TOKEN")
    with pytest.raises(InputError, match="cannot be read"):
        source("http://127.0.0.1:9", token_file=str(tmp_path / "missing"))


def test_tls_trusts_the_named_authority_only(server, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    assert "connection failed" in told(source(url, retries=0).read(FLEET, NOW))
    for settings in ({"ca_file": str(certificate)}, {"verify": False}):
        snapshot = source(url, **settings).read(FLEET, NOW)
        assert snapshot.readings["chat"] == {"decode_tps": Reading(5, NOW - 2)}, settings
    with pytest.raises(InputError, match="ca_file"):
        source(url, ca_file=str(tmp_path / "missing.pem"))
    with pytest.raises(InputError, match="cert_file"):
        source(url, cert_file=str(certificate))


def make_certificate(certificate: Path, key: Path) -> None:
    """Make a certificate of 127.0.0.1 that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names, *files], capture_output=True, check=True)


def test_it_can_be_used_where_an_event_loop_runs(server):
    import asyncio

    async def within() -> Snapshot:
        return read(server)

    assert asyncio.run(within()).problems == ()


# --------------------------------------------------------------------------------------------
# Answers that cannot be used
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("<html>", "is not JSON"),
        (b"\xff", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[]", "not of the form"),
        ("null", "not of the form"),
        ('{"status": "success"}', "not of the form"),
        (
            '{"status": "error", "errorType": "execution", "error": "too much"}',
            "execution: too much",
        ),
        ('{"status": "success", "data": {"resultType": "scalar", "result": [1, "2"]}}', "a scalar"),
        ('{"status": "success", "data": {"resultType": "vector", "result": {}}}', "a vector"),
        (
            '{"status": "success", "data": {"resultType": "vector", "result": [1]}}',
            "not of the form",
        ),
        (
            '{"status": "success", "data": {"resultType": "vector", "result": [{"metric": 1}]}}',
            "not of the form",
        ),
        (vector({"metric": {"service": "chat", PART: "value"}, "value": [1]}), "a value is not"),
        (vector({"metric": {"service": "chat", PART: "value"}, "value": [1, 2]}), "a value is not"),
        (vector({"metric": {"service": "chat", PART: "value"}}), "a value is not"),
        (vector(series("chat", "value", "five")), "a value is not"),
        (
            vector({"metric": {"service": "chat", PART: "value"}, "histogram": [1, {}]}),
            "a histogram",
        ),
        (
            vector(warnings=["remote read failed"]),
            "may be incomplete, the server warns: remote read",
        ),
    ],
)
def test_an_answer_of_another_form(server, body, says):
    server.gives(body)
    snapshot = read(server)
    assert snapshot.readings == {"chat": {}, "code": {}}
    for name in ("chat", "code"):
        assert says in told(snapshot, name)
        assert told(snapshot, name).startswith("Prometheus gave no decode_tps: ")
        assert told(snapshot, name).endswith(".")
    assert len(server.seen) == 1, "another attempt would not help"


def test_notes_of_the_server_and_other_services_are_no_problem(server):
    mine = [series("chat", "value", "5"), series("chat", "at", str(NOW))]
    others = [series("other", "value", "1"), {"metric": {}, "value": [NOW, "1"]}]
    server.gives(vector(*mine, *others, infos=["metric might not be a counter"]))
    snapshot = read(server)
    assert snapshot.readings == {"chat": {"decode_tps": Reading(5, NOW)}, "code": {}}
    assert told(snapshot) == ""
    assert "decode_tps of 'code' has no series" in told(snapshot, "code")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([series("chat", "value", "NaN"), series("chat", "at", "1")], "is NaN"),
        ([series("chat", "value", "+Inf"), series("chat", "at", "1")], "is inf"),
        ([series("chat", "value", "1"), series("chat", "at", "NaN")], "newest sample at nan"),
        ([series("chat", "value", "1")], "no sample that tells its age"),
        ([series("chat", "at", "1")], "too few samples"),
        (
            [
                series("chat", "value", "1"),
                series("chat", "value", "1", pod="b"),
                series("chat", "at", "1"),
            ],
            "more than once",
        ),
        (
            [
                series("chat", "value", "1"),
                series("chat", "at", "1"),
                series("chat", "at", "2", pod="b"),
            ],
            "more than once",
        ),
    ],
)
def test_one_service_without_a_usable_number_does_not_harm_the_others(server, found, says):
    good = [series("code", "value", "7"), series("code", "at", str(NOW))]
    server.gives(vector(*found, *good))
    snapshot = read(server)
    assert snapshot.readings == {"chat": {}, "code": {"decode_tps": Reading(7, NOW)}}
    assert says in told(snapshot)
    assert told(snapshot, "code") == ""


@pytest.mark.parametrize(
    ("lost", "usable"), [("0", True), ("1", True), ("2", False), ("20", False)]
)
def test_the_share_of_targets_that_must_answer(server, lost, usable):
    base = [series("chat", "value", "5"), series("chat", "at", str(NOW))]
    server.gives(vector(*base, series("chat", "targets", "10"), series("chat", "lost", lost)))
    snapshot = read(server)
    assert ("decode_tps" in snapshot.readings["chat"]) == usable
    assert ("incomplete" in told(snapshot)) != usable


@pytest.mark.parametrize(
    ("status", "attempts", "says"),
    [
        (301, 1, "redirects to http://elsewhere/; name that URL"),
        (400, 1, "answered 400, bad_data: parse error"),
        (401, 1, "token_env or token_file"),
        (403, 1, "token_env or token_file"),
        (404, 1, "is metrics.prometheus.url that of a Prometheus?"),
        (422, 1, "answered 422, bad_data: parse error"),
        (429, 3, "answered 429"),
        (500, 3, "answered 500"),
        (503, 3, "answered 503, bad_data: parse error (3 attempts)"),
    ],
)
def test_refusals(server, status, attempts, says):
    body = '{"status": "error", "errorType": "bad_data", "error": "parse error"}'
    server.gives(body, status, Location="http://elsewhere/")
    snapshot = read(server)
    assert says in told(snapshot)
    assert len(server.seen) == attempts


def test_an_attempt_after_a_passing_fault_succeeds(server):
    def answer(handler: Handler) -> None:
        if len(server.seen) == 1:
            handler.send("busy", 503)
        elif len(server.seen) == 2:
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            handler.send(vector())

    server.answer = answer
    assert read(server).problems == ()
    assert len(server.seen) == 3


def test_an_answer_that_is_too_large(server):
    server.gives("x" * 5000)
    assert "more than 2048 bytes" in told(read(server, max_bytes=2048))
    bomb = gzip.compress(b" " * 50_000_000)
    server.gives(bomb, Content_Encoding="gzip")
    assert "more than 100000 bytes" in told(read(server, max_bytes=100_000))
    server.gives(b"not gzip", Content_Encoding="gzip")
    assert "connection failed" in told(read(server))


def test_an_answer_that_breaks_off(server):
    def answer(handler: Handler) -> None:
        handler.send_response_only(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"status"')
        handler.close_connection = True

    server.answer = answer
    assert "connection failed" in told(read(server, retries=1))
    assert len(server.seen) == 2


def test_a_server_that_drips_is_given_up_at_the_deadline(server):
    """Every byte comes soon enough for a time limit between bytes."""

    def answer(handler: Handler) -> None:
        handler.send_response_only(200)
        for number in range(10_000):
            handler.wfile.write(f"X-{number}: 1\r\n".encode())
            handler.wfile.flush()
            if server.release.wait(0.05):
                return

    server.answer = answer
    snapshot = read(server, timeout=0.5)
    assert not server.release.is_set(), "it would have gone on"
    assert "heteroplace-prometheus" not in {each.name for each in threading.enumerate()}
    assert "no answer within 0.5 s" in told(snapshot)


def test_some_queries_answered_and_some_not(server):
    fleet = fleet_of(service("chat", more=("tbt",)))

    def answer(handler: Handler) -> None:
        if "generation_tokens" in handler.query:
            server.release.wait(30)
        handler.send(vector())

    server.answer = answer
    snapshot = source(server.url, fleet, timeout=1).read(fleet, NOW)
    assert not server.release.is_set()
    assert set(snapshot.readings["chat"]) == {"tbt", "prefill_tps"}
    assert [each.signal for each in snapshot.problems] == ["decode_tps"]
    snapshot = source(server.url, fleet, timeout=1, concurrency=1).read(fleet, NOW)
    assert snapshot.readings == {"chat": {}}, "the other one waited for its turn in vain"
    assert {each.signal for each in snapshot.problems} == {"decode_tps", "tbt"}


def test_nobody_listens():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        snapshot = source(f"http://127.0.0.1:{port}").read(FLEET, NOW)
    assert "the connection failed" in told(snapshot)
    assert "(3 attempts)" in told(snapshot)


def test_one_line_in_the_log_for_one_failure(server, caplog):
    server.gives("no", 400)
    with caplog.at_level(logging.WARNING):
        read(server)
    assert [record.getMessage() for record in caplog.records] == [
        f"Prometheus at {server.url}: the server answered 400"
    ]


# --------------------------------------------------------------------------------------------
# Clocks, duplicates and late samples
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_a_clock_that_jumped_is_told_from_the_servers(server, ahead):
    asked = source(server.url, clock=lambda: time.time() + ahead)
    snapshot = asked.read(FLEET, NOW)
    assert snapshot.readings == {"chat": {}, "code": {}}
    side = "behind" if ahead > 0 else "ahead of"
    assert f"the server's clock is 60 min {side} this machine's" in told(snapshot)
    server.date = lambda: time.time() + ahead
    assert asked.read(FLEET, NOW).problems == ()


def test_small_differences_and_servers_without_a_clock_are_fine(server):
    assert source(server.url, clock=lambda: time.time() + 20).read(FLEET, NOW).problems == ()
    server.gives(vector(), Date="yesterday")
    assert read(server).problems == ()


def at(server: Server, value: str, when: float) -> None:
    server.gives(vector(series("chat", "value", value), series("chat", "at", str(when))))


def test_a_replica_that_lags_does_not_bring_old_samples_back(server):
    asked = source(server.url)

    def reading(now: float) -> Reading:
        return asked.read(FLEET, now).readings["chat"]["decode_tps"]

    at(server, "5", NOW)
    assert reading(NOW + 1) == Reading(5, NOW)
    at(server, "4", NOW - 10)
    assert reading(NOW + 2) == Reading(5, NOW), "late: not taken"
    at(server, "6", NOW)
    assert reading(NOW + 3) == Reading(6, NOW), "the same sample, a later window"
    at(server, "7", NOW + 4)
    assert reading(NOW + 5) == Reading(7, NOW + 4)
    at(server, "3", NOW - 100)
    assert reading(NOW - 99) == Reading(3, NOW - 100), "the clock was set back"


def test_another_fleet_is_asked_for_its_own_services(server):
    asked = source(server.url)
    asked.read(FLEET, NOW)
    other = fleet_of("code")
    assert set(asked.read(other, NOW).readings) == {"code"}


def test_a_fleet_names_the_server_and_an_override_another(server):
    fleet = fleet_of(
        "chat",
        "code",
        metrics={"prometheus": {"url": "http://127.0.0.1:9", "headers": {"X-A": "b"}}},
    )
    assert source_from(fleet, server.url).read(fleet, NOW).problems == ()
    assert server.seen[0]["headers"]["X-A"] == "b"
    fleet = fleet_of("chat", "code", metrics={"prometheus": {"url": server.url}})
    assert source_from(fleet).read(fleet, NOW).problems == ()


def test_a_fleet_that_follows_the_clock_asks_nothing(server):
    primary = {"kind": "periodic", "entries": [{"cron": "0 0 * * *", "total": 2}]}
    fleet = fleet_of({**service("chat"), "policy": {"primary": primary}})
    assert source(server.url, fleet).read(fleet, NOW) == Snapshot(NOW, {"chat": {}})
    assert server.seen == []
