"""Where a fleet's metrics come from: the ``metrics`` field of a fleet file."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from heteroplace.errors import InputError
from heteroplace.instance import Name, Noun, PositiveCount
from heteroplace.policy.duration import PositiveDuration

Engine = Literal["vllm", "sglang"]

LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=256, strict=True)]
Expression = Annotated[str, Field(min_length=1, max_length=10_000, strict=True)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$", max_length=256, strict=True)]
HeaderValue = Annotated[str, Field(pattern=r"^[\x20-\x7e]*$", max_length=4096, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
LabelValue = Annotated[str, Field(min_length=1, max_length=1024, strict=True)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096, strict=True)]


class Labels(Noun):
    """The Prometheus labels that say which service and role a series belongs to.

    Parameters
    ----------
    service
        Label of the engines' series with the service.
    role
        Label of the engines' series with the role; null where instances have no roles, so that
        every instance of a service counts for both.
    gpu_service, gpu_role
        The same on the series of the GPUs (DCGM); default as on the engines' series.
    prefill, decode
        Values of the role label that count as prefill and as decode; an aggregated service's one
        role is named in both.
    """

    service: LabelName = "service"
    role: LabelName | None = "role"
    gpu_service: LabelName | None = None
    gpu_role: LabelName | None = None
    prefill: Annotated[tuple[LabelValue, ...], Field(min_length=1)] = ("prefill",)
    decode: Annotated[tuple[LabelValue, ...], Field(min_length=1)] = ("decode",)


class QueryOverride(Noun):
    """A query of one signal in place of the default.

    Parameters
    ----------
    value
        PromQL that gives one number for each service, in the signal's unit. Placeholders such as
        ``{{window}}`` are filled in (docs/metrics.md).
    samples
        Series selectors; the newest sample of theirs is the time of the reading. A rate carries
        the time of the query, so the age of its data has to be looked up.
    targets
        Label matchers that select, on ``up``, the scrape targets a sum is made of; when too many
        of them were lost lately, the sum is not used. Null: not checked.
    service
        Label of the result with the service; default :attr:`Labels.service`.
    """

    value: Expression
    samples: Annotated[tuple[Expression, ...], Field(min_length=1, max_length=16)]
    targets: Expression | None = None
    service: LabelName | None = None


class PrometheusMetrics(Noun):
    """Metrics from a Prometheus server, or one that speaks its HTTP API.

    Parameters
    ----------
    url
        Of the server, as in ``https://prometheus:9090``; without ``/api/v1``.
    engines
        Serving engines whose metrics the default queries look at.
    labels
        Which labels name the service and the role.
    services
        Value of the service label where it is not the service's name, by service.
    matchers
        Further PromQL label matchers of the default queries, as in ``cluster="eu"``.
    window
        Length of time that rates and means are over; at least four scrape intervals.
    queries
        Queries in place of the defaults, by signal; one for each further signal of the fleet.
    timeout
        Time that one reading may take in all, retries included.
    retries
        Further attempts after a connection error, 429 or a server error.
    concurrency
        Queries that run at the same time.
    max_bytes
        Largest answer to one query.
    max_clock_skew
        Largest difference between this machine's clock and the server's.
    min_coverage
        Least share of the lately seen scrape targets that must still answer for a sum over them
        to be used; 0 turns the check off.
    lost_window
        How long a target that stopped answering counts as lost, not as gone.
    token_env, token_file
        Bearer token: name of an environment variable, or a file that is read at each reading.
    username
        With it, the token is the password of HTTP basic authentication.
    headers
        Further HTTP headers, as in ``X-Scope-OrgID``.
    ca_file, cert_file, key_file
        PEM files: authorities to trust in place of the usual ones; the client's certificate and
        its key.
    verify
        False accepts any certificate of the server.
    """

    url: Annotated[str, Field(min_length=1, max_length=2048, strict=True)]
    engines: Annotated[tuple[Engine, ...], Field(min_length=1)] = ("vllm", "sglang")
    labels: Labels = Labels()
    services: dict[Name, LabelValue] = Field(default_factory=dict)
    matchers: Expression | None = None
    window: PositiveDuration = 60.0
    queries: dict[Name, QueryOverride] = Field(default_factory=dict)
    timeout: PositiveDuration = 5.0
    retries: Annotated[int, Field(ge=0, le=10, strict=True)] = 2
    concurrency: Annotated[int, Field(ge=1, le=64, strict=True)] = 8
    max_bytes: Annotated[int, Field(ge=1024, le=2**30, strict=True)] = 32 * 2**20
    max_clock_skew: PositiveDuration = 30.0
    min_coverage: Share = 0.9
    lost_window: PositiveDuration = 300.0
    token_env: Annotated[str, Field(min_length=1, max_length=256, strict=True)] | None = None
    token_file: FilePath | None = None
    username: HeaderValue | None = None
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    verify: Annotated[bool, Field(strict=True)] = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_url(self.url)
        if len(set(self.engines)) < len(self.engines):
            raise InputError(
                "metrics.prometheus.engines", "names an engine twice; keep one of them"
            )
        if self.token_env is not None and self.token_file is not None:
            raise InputError(
                "metrics.prometheus.token_file", "goes without token_env; keep one of them"
            )
        if self.username is not None:
            if ":" in self.username:
                raise InputError("metrics.prometheus.username", "must not contain a colon")
            if self.token_env is None and self.token_file is None:
                raise InputError(
                    "metrics.prometheus.username", "needs its password: add token_env or token_file"
                )
        for name in self.headers:
            if name.lower() == "authorization":
                raise InputError(
                    f"metrics.prometheus.headers.{name}",
                    "does not belong into a file; use token_env or token_file",
                )
        if self.key_file is not None and self.cert_file is None:
            raise InputError(
                "metrics.prometheus.key_file", "needs cert_file, the certificate it belongs to"
            )
        return self


def _check_url(url: str) -> None:
    wanted = 'must be a URL such as "https://prometheus:9090"'
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError("metrics.prometheus.url", f"{wanted} ({error})") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\x00-\x20\x7f]", url):
        raise InputError("metrics.prometheus.url", f"{wanted}; got {url[:100]!r}")
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "metrics.prometheus.url",
            "must not hold a user or password; use username, and token_env or token_file",
        )
    if parts.query or parts.fragment:
        raise InputError("metrics.prometheus.url", f"{wanted}, without anything after ? or #")


class ReplayMetrics(Noun):
    """Recorded metrics from a file.

    Parameters
    ----------
    path
        JSON lines or CSV (docs/metrics.md); relative to the working directory.
    format
        ``jsonl`` or ``csv``; default by the ending of the path, where ``.csv`` is CSV.
    follow
        True for a file that is being appended to: an unfinished last line waits, and a file that
        was replaced or cut is read again from its start.
    lookahead
        Samples that lie after the asked time and are read ahead, so that samples out of order by
        no more than these are found in time.
    """

    path: FilePath
    format: Literal["jsonl", "csv"] | None = None
    follow: Annotated[bool, Field(strict=True)] = False
    lookahead: PositiveCount = 20_000


class Metrics(Noun):
    """Where the metrics come from; exactly one of the two.

    Parameters
    ----------
    prometheus
        A Prometheus server.
    replay
        A file with recorded metrics.
    """

    prometheus: PrometheusMetrics | None = None
    replay: ReplayMetrics | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prometheus is None) == (self.replay is None):
            raise InputError("metrics", "name one source: either prometheus or replay")
        return self
