"""What a Prometheus server answered to one query, checked part by part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heteroplace.policy.sources.queries import PART, Query


class BadAnswerError(Exception):
    """An answer that cannot be used; its text is a clause that a sentence can end with."""


@dataclass(frozen=True)
class Answer:
    """The parts of one query's answer.

    Parameters
    ----------
    parts
        Part -> value of the service label -> number; NaN and infinities as they came.
    twice
        Part -> the services that it named more than once.
    """

    parts: Mapping[str, Mapping[str, float]]
    twice: Mapping[str, frozenset[str]]


def read_answer(body: bytes, query: Query) -> Answer:
    """Parse the body of a successful answer.

    Raises
    ------
    BadAnswerError
        If it is not an instant vector of numbers, or incomplete.
    """
    data = _object(_parsed(body), "the answer")
    if data.get("status") != "success":
        raise BadAnswerError(f"the server answered {_error(data)}")
    warnings = data.get("warnings")
    if warnings:
        shown = "; ".join(map(str, warnings)) if isinstance(warnings, list) else str(warnings)
        raise BadAnswerError(f"the answer may be incomplete, the server warns: {shown[:300]}")
    result = _object(data.get("data"), "data")
    if result.get("resultType") != "vector" or not isinstance(result.get("result"), list):
        raise BadAnswerError(
            f"the answer is a {str(result.get('resultType'))[:40]}, not one number for each service"
        )
    parts: dict[str, dict[str, float]] = {}
    twice: dict[str, set[str]] = {}
    for series in result["result"]:
        labels = _object(_object(series, "a series").get("metric"), "metric")
        service, part = labels.get(query.service), labels.get(PART)
        if not isinstance(part, str) or not isinstance(service, str) or not service:
            continue
        found = parts.setdefault(part, {})
        if service in found:
            twice.setdefault(part, set()).add(service)
        found[service] = _number(series)
    return Answer(parts, {part: frozenset(names) for part, names in twice.items()})


def server_error(body: bytes) -> str | None:
    """Give the error that the body of a failed answer tells of; None if it tells of none."""
    try:
        data = _parsed(body)
    except BadAnswerError:
        return None
    return _error(data) if isinstance(data, dict) and data.get("error") else None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswerError("the answer is not JSON; is this the URL of a Prometheus?") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswerError(f"{what} is not of the form that Prometheus answers in")
    return value


def _error(data: Mapping[str, Any]) -> str:
    kind, text = str(data.get("errorType", "error")), str(data.get("error", "without a reason"))
    return f"{kind[:40]}: {text[:300]}"


def _number(series: Mapping[str, Any]) -> float:
    value = series.get("value")
    if "histogram" in series and value is None:
        raise BadAnswerError("the answer is a histogram; ask for a quantile of it")
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
        try:
            return float(value[1])
        except ValueError:
            pass
    raise BadAnswerError("a value is not of the form that Prometheus answers in")
