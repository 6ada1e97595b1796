"""Many queries to one HTTP server at once, all within one deadline."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from heteroplace.errors import InputError
from heteroplace.policy.sources.answer import server_error
from heteroplace.policy.sources.config import PrometheusMetrics

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_GRACE = 0.5
_RETRIED = frozenset({429, 500, 502, 503, 504})
_MAX_TOKEN = 64 * 1024


@dataclass(frozen=True)
class Fetched:
    """One query's way over the network.

    Parameters
    ----------
    body
        Of a successful answer; None if there is none.
    error
        Why there is none: a clause that a sentence can end with.
    skew
        Seconds that the server's clock is ahead of this machine's beyond doubt, negative if it is
        behind; None if the server did not tell its time.
    """

    body: bytes | None = None
    error: str | None = None
    skew: float | None = None


class _FailedAttemptError(Exception):
    """An attempt that failed; ``again`` tells whether another one may help."""

    def __init__(self, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class Client:
    """Sends instant queries to a Prometheus server.

    Parameters
    ----------
    settings
        The server, how to reach it and the limits.
    clock
        This machine's clock, Unix seconds.

    Raises
    ------
    InputError
        If httpx is missing, or a certificate or the token cannot be read.
    """

    def __init__(self, settings: PrometheusMetrics, clock: Callable[[], float] = time.time) -> None:
        try:
            import httpx  # noqa: F401
        except ImportError:
            raise InputError(
                "metrics.prometheus",
                "needs httpx; install it with: pip install 'heteroplace[policy]'",
            ) from None
        self._settings = settings
        self._clock = clock
        self._url = settings.url.rstrip("/") + "/api/v1/query"
        self._tls = _tls(settings)
        _authorization(settings)

    def fetch(self, queries: Sequence[str], at: float) -> list[Fetched]:
        """Evaluate queries at one moment, all of them within the timeout.

        It never raises for what the network or the server does. The work is done in a thread of
        its own, so that it may be called where an event loop runs, and so that a name that does
        not resolve cannot hold the caller up.

        Parameters
        ----------
        queries
            PromQL.
        at
            When they are evaluated, in Unix seconds.

        Returns
        -------
        list of Fetched
            One for each query, in their order.
        """
        timeout = self._settings.timeout
        late = f"there was no answer within {timeout:g} s"
        results: list[Fetched] = [Fetched(error=late)] * len(queries)
        try:
            authorization = _authorization(self._settings)
        except InputError as error:
            return [Fetched(error=f"the token of {error}")] * len(queries)
        if not queries:
            return []

        def work() -> None:
            try:
                asyncio.run(self._fetch_all(queries, at, authorization, results))
            except Exception as error:  # A reading never fails, whatever goes wrong down there.
                logger.exception("the queries failed")
                results[:] = [Fetched(error=f"the queries failed ({error!r})")] * len(queries)

        thread = threading.Thread(target=work, name="heteroplace-prometheus", daemon=True)
        thread.start()
        thread.join(timeout + _GRACE)
        return list(results)

    async def _fetch_all(
        self,
        queries: Sequence[str],
        at: float,
        authorization: dict[str, str],
        results: list[Fetched],
    ) -> None:
        import httpx

        settings = self._settings
        deadline = time.monotonic() + settings.timeout
        limits = httpx.Limits(max_connections=settings.concurrency)

        async def one(client: httpx.AsyncClient, index: int) -> None:
            results[index] = await self._with_retries(client, queries[index], at, deadline)

        try:
            async with asyncio.timeout(settings.timeout):
                async with httpx.AsyncClient(
                    verify=self._tls,
                    headers={**settings.headers, **authorization},
                    limits=limits,
                    timeout=settings.timeout,
                ) as client:
                    await asyncio.gather(*(one(client, index) for index in range(len(queries))))
        except TimeoutError:
            logger.debug("some queries were not answered within %g s", settings.timeout)

    async def _with_retries(
        self, client: httpx.AsyncClient, query: str, at: float, deadline: float
    ) -> Fetched:
        pause = _FIRST_PAUSE
        for attempt in range(self._settings.retries + 1):
            try:
                return await self._attempt(client, query, at, deadline)
            except _FailedAttemptError as failure:
                last = attempt == self._settings.retries
                if last or not failure.again or time.monotonic() + pause >= deadline:
                    tried = f" ({attempt + 1} attempts)" if attempt else ""
                    return Fetched(error=f"{failure}{tried}")
                logger.debug("attempt %d failed, trying again: %s", attempt + 1, failure)
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns")

    async def _attempt(
        self, client: httpx.AsyncClient, query: str, at: float, deadline: float
    ) -> Fetched:
        import httpx

        left = max(0.001, deadline - time.monotonic())
        form = {"query": query, "time": f"{at:.3f}", "timeout": f"{max(1, int(left * 1000))}ms"}
        sent = self._clock()
        try:
            async with client.stream("POST", self._url, data=form) as response:
                received = self._clock()
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > self._settings.max_bytes:
                        raise _FailedAttemptError(
                            f"the answer has more than {self._settings.max_bytes} bytes; "
                            "raise metrics.prometheus.max_bytes"
                        )
        except httpx.TimeoutException:
            raise _FailedAttemptError(
                f"there was no answer within {self._settings.timeout:g} s"
            ) from None
        except httpx.HTTPError as error:
            raise _FailedAttemptError(
                f"the connection failed ({_reason(error)})", again=True
            ) from None
        except (httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError) as error:
            raise _FailedAttemptError(f"the request failed ({_reason(error)})") from None
        if response.status_code != 200:
            raise _refused(response.status_code, response.headers.get("location"), bytes(body))
        return Fetched(bytes(body), skew=_skew(response.headers.get("date"), sent, received))


def _authorization(settings: PrometheusMetrics) -> dict[str, str]:
    """The header that carries the token, read anew: a file's content may have been renewed."""
    token = _token(settings)
    if token is None:
        return {}
    if settings.username is None:
        return {"Authorization": f"Bearer {token}"}
    pair = base64.b64encode(f"{settings.username}:{token}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def _token(settings: PrometheusMetrics) -> str | None:
    if settings.token_env is not None:
        where, text = f"${settings.token_env}", os.environ.get(settings.token_env, "")
    elif settings.token_file is not None:
        where, text = settings.token_file, _token_from(settings.token_file)
    else:
        return None
    token = text.strip()
    if not token:
        raise InputError(where, "is empty or not set; it must hold the token")
    if not token.isascii() or not token.isprintable():
        raise InputError(where, "must hold one line of printable ASCII, the token")
    return token


def _token_from(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(_MAX_TOKEN)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(path, f"cannot be read: {reason}") from None


def _tls(settings: PrometheusMetrics) -> ssl.SSLContext:
    import httpx

    where = "metrics.prometheus"
    try:
        where = f"metrics.prometheus.ca_file {settings.ca_file}"
        if settings.ca_file is not None:
            context = ssl.create_default_context(cafile=settings.ca_file)
        else:
            context = httpx.create_ssl_context()
        if not settings.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if settings.cert_file is not None:
            where = f"metrics.prometheus.cert_file {settings.cert_file}"
            context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(where, f"cannot be used: {reason}; name a PEM file") from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password, which is not supported")


def _reason(error: Exception) -> str:
    # Some errors of the network have no text of their own, only a cause.
    text = str(error) or str(error.__cause__ or "")
    return (text or type(error).__name__)[:200]


def _refused(status: int, location: str | None, body: bytes) -> _FailedAttemptError:
    if 300 <= status < 400:
        return _FailedAttemptError(
            f"the server redirects to {str(location)[:200]}; name that URL instead"
        )
    told = server_error(body)
    text = f"the server answered {status}" + (f", {told}" if told else "")
    if status in (401, 403):
        text += "; set token_env or token_file to a valid token"
    elif status == 404:
        text += "; is metrics.prometheus.url that of a Prometheus?"
    return _FailedAttemptError(text, again=status in _RETRIED)


def _skew(date: str | None, sent: float, received: float) -> float | None:
    """Seconds by which a server's ``Date`` lies outside of the time the request took."""
    if date is None:
        return None
    try:
        told = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
    # The header has whole seconds, cut off.
    if told > received:
        return told - received
    if told + 1 < sent:
        return told + 1 - sent
    return 0.0
