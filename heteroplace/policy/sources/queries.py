"""The PromQL of each signal: defaults for vLLM, SGLang and DCGM, and what replaces them.

One query answers for all services at once. It has up to four parts, told apart by the label
:data:`PART`: the value, the time of the newest sample behind it, and the scrape targets that
were lately there and lost. They travel together so that they are evaluated at one moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from heteroplace.errors import InputError
from heteroplace.policy.sources.config import PrometheusMetrics, QueryOverride

PART = "heteroplace_part"
VALUE, AT, TARGETS, LOST = "value", "at", "targets", "lost"

PLACEHOLDERS = (
    "service",
    "gpu_service",
    "prefill",
    "decode",
    "gpu_prefill",
    "gpu_decode",
    "window",
    "quantile",
)

_AGE_STEPS = 12


@dataclass(frozen=True, slots=True)
class Query:
    """One signal's query over all services.

    Parameters
    ----------
    signal
        What it measures.
    service
        Label of the answer with the service.
    text
        PromQL.
    """

    signal: str
    service: str
    text: str


@dataclass(frozen=True)
class _Scope:
    """What the placeholders stand for."""

    service: str
    gpu_service: str
    prefill: str
    decode: str
    gpu_prefill: str
    gpu_decode: str
    window: str
    step: str
    quantile: str
    engines: tuple[str, ...]

    def placeholders(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in PLACEHOLDERS}


@dataclass(frozen=True)
class _Parts:
    """A default query before its parts are joined."""

    service: str
    value: str
    samples: tuple[str, ...]
    targets: str | None = None


def build_queries(
    settings: PrometheusMetrics, signals: Sequence[str], quantile: float
) -> tuple[Query, ...]:
    """Write the query of each signal.

    Parameters
    ----------
    settings
        The server and what replaces the defaults.
    signals
        The signals that are wanted.
    quantile
        Of the latencies, between 0 and 1.

    Raises
    ------
    InputError
        If a signal has neither a default nor a query, or a query an unknown placeholder.
    """
    scope = _scope(settings, quantile)
    queries = []
    for signal in signals:
        override = settings.queries.get(signal)
        if override is not None:
            parts = _replaced(f"metrics.prometheus.queries.{signal}", override, scope)
        elif signal in DEFAULTS:
            parts = DEFAULTS[signal](scope)
        else:
            known = ", ".join(DEFAULTS)
            raise InputError(
                f"metrics.prometheus.queries.{signal}",
                f"is missing; only {known} have default queries",
            )
        queries.append(Query(signal, parts.service, _joined(parts, scope, settings)))
    return tuple(queries)


def _scope(settings: PrometheusMetrics, quantile: float) -> _Scope:
    labels = settings.labels
    gpu_role = labels.gpu_role if labels.gpu_role is not None else labels.role
    more = settings.matchers

    def matchers(role: str | None, values: tuple[str, ...]) -> str:
        found = [] if role is None else [f"{role}=~{quoted('|'.join(map(re.escape, values)))}"]
        return ", ".join([*found, *([more] if more else [])])

    return _Scope(
        service=labels.service,
        gpu_service=labels.gpu_service or labels.service,
        prefill=matchers(labels.role, labels.prefill),
        decode=matchers(labels.role, labels.decode),
        gpu_prefill=matchers(gpu_role, labels.prefill),
        gpu_decode=matchers(gpu_role, labels.decode),
        window=duration(settings.window),
        step=duration(max(0.1, settings.window / _AGE_STEPS)),
        quantile=f"{quantile:.12g}",
        engines=settings.engines,
    )


def quoted(text: str) -> str:
    """Write a PromQL string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def duration(seconds: float) -> str:
    """Write a PromQL duration, whole milliseconds."""
    milliseconds = max(1, round(seconds * 1000))
    whole, rest = divmod(milliseconds, 1000)
    return f"{milliseconds}ms" if rest else f"{whole}s"


def _replaced(where: str, override: QueryOverride, scope: _Scope) -> _Parts:
    known = scope.placeholders()

    def filled(field: str, text: str) -> str:
        def one(match: re.Match[str]) -> str:
            name = match[1].strip()
            if name not in known:
                options = ", ".join(f"{{{{{each}}}}}" for each in known)
                raise InputError(f"{where}.{field}", f"{match[0]} is not one of {options}")
            return known[name]

        return re.sub(r"\{\{([^{}]*)\}\}", one, text)

    return _Parts(
        service=override.service or scope.service,
        value=filled("value", override.value),
        samples=tuple(filled("samples", text) for text in override.samples),
        targets=None if override.targets is None else filled("targets", override.targets),
    )


def _joined(parts: _Parts, scope: _Scope, settings: PrometheusMetrics) -> str:
    by = f"by ({parts.service})"
    now = " or ".join(f"timestamp({each})" for each in parts.samples)
    # timestamp() loses sight of a series as soon as a scrape fails; the subquery still finds it.
    lately = f"max_over_time(({now})[{scope.window}:{scope.step}])"
    found = {VALUE: parts.value, AT: f"max {by} ({now} or {lately})"}
    if parts.targets is not None and settings.min_coverage > 0:
        up = f"up{{{parts.targets}}}"
        seen = f"max_over_time({up}[{duration(settings.lost_window)}]) == 1"
        found[TARGETS] = f"count {by} ({seen})"
        found[LOST] = f"count {by} (({up} == 0) and ({seen}))"
    # The line break ends a comment of the expression, if it ends with one.
    return " or ".join(
        f'label_replace({text}\n, "{PART}", "{part}", "", "")' for part, text in found.items()
    )


def _series(metric: str, *matchers: str) -> str:
    """Write a selector; empty matchers are left out."""
    return f"{metric}{{{', '.join(each for each in matchers if each)}}}"


def _first(by: str, choices: Sequence[str]) -> str:
    """The first of the choices that has a series of these labels."""
    return f" or on ({by}) ".join(f"({choice})" for choice in choices)


def _per_instance(scope: _Scope, series: str) -> str:
    return f"sum by ({scope.service}, instance) (rate({series}[{scope.window}]))"


def _less(scope: _Scope, total: str, *parts: str) -> str:
    """The rate of a total less those of its parts; a part without series is 0."""
    by, whole = f"{scope.service}, instance", _per_instance(scope, total)
    less = " - ".join(
        f"(({_per_instance(scope, part)}) or on ({by}) 0 * ({whole}))" for part in parts
    )
    return f"clamp_min(({whole}) - {less}, 0)"


def _sglang_realtime(scope: _Scope, series: str) -> str:
    # Each tensor- and pipeline-parallel rank may count the same tokens; data-parallel ones do not.
    service, rate = scope.service, f"rate({series}[{scope.window}])"
    return f"sum by ({service}, instance) (max by ({service}, instance, dp_rank) ({rate}))"


def _decode_tps(scope: _Scope) -> _Parts:
    decode = scope.decode
    choices: list[str] = []
    samples: list[str] = []
    if "vllm" in scope.engines:
        generated = _series("vllm:generation_tokens_total", decode)
        choices.append(_per_instance(scope, generated))
        samples.append(generated)
    if "sglang" in scope.engines:
        realtime = _series("sglang:realtime_tokens_total", 'mode="decode"', decode)
        finished = _series("sglang:generation_tokens_total", decode)
        choices += [_sglang_realtime(scope, realtime), _per_instance(scope, finished)]
        samples += [realtime, finished]
    return _throughput(scope, choices, samples, decode)


def _prefill_tps(scope: _Scope) -> _Parts:
    prefill = scope.prefill
    choices: list[str] = []
    samples: list[str] = []
    if "vllm" in scope.engines:
        computed = _series("vllm:prompt_tokens_by_source_total", 'source="local_compute"', prefill)
        prompt = _series("vllm:prompt_tokens_total", prefill)
        hits = _series("vllm:prefix_cache_hits_total", prefill)
        external = _series("vllm:external_prefix_cache_hits_total", prefill)
        choices += [_per_instance(scope, computed), _less(scope, prompt, hits, external)]
        samples.append(prompt)
    if "sglang" in scope.engines:
        realtime = _series("sglang:realtime_tokens_total", 'mode="prefill_compute"', prefill)
        prompt = _series("sglang:prompt_tokens_total", prefill)
        cached = _series("sglang:cached_tokens_total", prefill)
        choices += [_sglang_realtime(scope, realtime), _less(scope, prompt, cached)]
        samples += [realtime, prompt]
    return _throughput(scope, choices, samples, prefill)


def _throughput(
    scope: _Scope, choices: Sequence[str], samples: Sequence[str], targets: str
) -> _Parts:
    by = f"{scope.service}, instance"
    value = f"sum by ({scope.service}) ({_first(by, choices)})"
    return _Parts(scope.service, value, tuple(samples), targets)


def _ttft(scope: _Scope) -> _Parts:
    # vLLM's decode instances are asked when prefill is over; SGLang's from the start.
    histograms = {
        "vllm": (("vllm:time_to_first_token_seconds",), scope.prefill),
        "sglang": (("sglang:time_to_first_token_seconds",), scope.decode),
    }
    return _latency(scope, histograms)


def _tbt(scope: _Scope) -> _Parts:
    vllm = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
    histograms = {
        "vllm": (vllm, scope.decode),
        "sglang": (("sglang:inter_token_latency_seconds",), scope.decode),
    }
    return _latency(scope, histograms)


def _latency(scope: _Scope, histograms: Mapping[str, tuple[tuple[str, ...], str]]) -> _Parts:
    choices: list[str] = []
    samples: list[str] = []
    for engine in scope.engines:
        names, matchers = histograms[engine]
        buckets_of = (_series(f"{name}_bucket", matchers) for name in names)
        rates = " or ".join(f"rate({series}[{scope.window}])" for series in buckets_of)
        buckets = f"sum by ({scope.service}, le) ({rates})"
        choices.append(f"histogram_quantile({scope.quantile}, {buckets})")
        samples += (_series(f"{name}_count", matchers) for name in names)
    return _Parts(scope.service, _first(scope.service, choices), tuple(samples))


def _gpu(scope: _Scope, metric: str, matchers: str, percent: bool) -> _Parts:
    series = _series(metric, matchers)
    value = f"avg by ({scope.gpu_service}) (avg_over_time({series}[{scope.window}]))"
    return _Parts(scope.gpu_service, f"{value} / 100" if percent else value, (series,))


_UTILIZATION, _SM_ACTIVITY = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_SM_ACTIVE"

DEFAULTS: Mapping[str, Callable[[_Scope], _Parts]] = {
    "prefill_tps": _prefill_tps,
    "decode_tps": _decode_tps,
    "prefill_gpu_util": lambda scope: _gpu(scope, _UTILIZATION, scope.gpu_prefill, True),
    "decode_gpu_util": lambda scope: _gpu(scope, _UTILIZATION, scope.gpu_decode, True),
    "prefill_sm": lambda scope: _gpu(scope, _SM_ACTIVITY, scope.gpu_prefill, False),
    "decode_sm": lambda scope: _gpu(scope, _SM_ACTIVITY, scope.gpu_decode, False),
    "ttft": _ttft,
    "tbt": _tbt,
}
