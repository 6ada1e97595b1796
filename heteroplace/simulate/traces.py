"""Readers of demand traces, and the paper's daily curve.

Which kind a CSV file is shows in its header. What each source measured, and what it did not, is in
docs/simulate.md.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from heteroplace.errors import InputError
from heteroplace.files import MAX_BYTES
from heteroplace.models import read_rows
from heteroplace.simulate.demand import LARGEST_RATE, Demand, Interpolation

# HeteroScale (arXiv 2508.19559), Fig. 5, digitised: hour of the day and TPS in percent of the peak.
DAILY_CURVE = (
    *((0, 37), (1, 22), (2, 13), (3, 7), (4, 3), (5, 1), (6, 2), (7, 7), (8, 17), (9, 44)),
    *((10, 74), (11, 86), (12, 57), (12.5, 51), (13, 54), (14, 72), (15, 91), (16, 98), (17, 93)),
    *((18, 68), (19, 55), (20, 56), (21, 61), (21.5, 63), (22, 62), (23, 51), (24, 37)),
)

# Windows at least this long are read as points of a line: a step every ten minutes is no demand.
LINEAR_FROM = 300.0

_GENERIC = ("t_s", "requests_per_s", "prompt_tokens_per_s", "output_tokens_per_s")
_SERVEGEN = (
    "t_s",
    "requests_per_s",
    "rate_fraction_with_token_data",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
)
_BINS = ("t_s", "requests", "prompt_tokens", "output_tokens")


def paper_day(
    peak: float = 1.0,
    prompt_tokens: float = 2000.0,
    output_tokens: float = 280.0,
    hit_rate: float = 0.0,
) -> Demand:
    """Make the daily curve of the paper's dialogue service (Fig. 5).

    Parameters
    ----------
    peak
        Requests per second at the peak, 100 % of the curve's scale.
    prompt_tokens, output_tokens
        Per request. The paper gives no lengths; their default ratio, 7.1, is that of service A in
        its Fig. 4.
    hit_rate
        Share of the prompt tokens found in the KV cache.

    Returns
    -------
    Demand
        24 hours from midnight, linear between the hours.
    """
    for name, value in (
        ("peak", peak),
        ("prompt tokens", prompt_tokens),
        ("output tokens", output_tokens),
    ):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"paper-day: {name}", f"must be greater than 0, got {value:g}")
    hours, percent = np.array(DAILY_CURVE, dtype=float).T
    requests = peak * percent / 100
    return Demand(
        name="daily curve of arXiv 2508.19559, Fig. 5 (digitised)",
        times=hours * 3600,
        requests=requests,
        prompt=requests * prompt_tokens,
        cached=np.zeros_like(requests),
        output=requests * output_tokens,
        end=24 * 3600.0,
        interpolation="linear",
    ).with_hit_rate(hit_rate)


def read_trace(
    path: str | os.PathLike[str],
    interpolation: Interpolation | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str | None, Demand]:
    """Read a trace.

    Parameters
    ----------
    path
        CSV file of one of the kinds in docs/simulate.md.
    interpolation
        See :class:`Demand`; default ``linear`` for windows of 300 s and more, else ``step``.
        Lines go through the middle of the windows.
    max_bytes
        Largest file that is read.

    Returns
    -------
    dict
        By the name in the column ``service``; by None for a file without one.

    Raises
    ------
    InputError
        If the file cannot be read, is of no known kind or holds a wrong number; names the line.
    """
    series: dict[str | None, list[tuple[float, ...]]] = defaultdict(list)
    lines: dict[str | None, list[int]] = defaultdict(list)
    kind = ""
    for line, row in read_rows(path, max_bytes):
        where = f"{path}, line {line}"
        kind = kind or _kind(row, where)
        service = row["service"] if kind == "generic" and "service" in row else None
        if service == "":
            raise InputError(f"{where}, column service", "is empty; name the service")
        series[service].append(_READ[kind](row, where))
        lines[service].append(line)
    if not series:
        raise InputError(str(path), "holds no rows below its header")
    return {
        service: _demand(path, rows, lines[service], kind, interpolation)
        for service, rows in series.items()
    }


def _kind(row: Mapping[str, str], where: str) -> str:
    for kind, columns in (("servegen", _SERVEGEN), ("generic", _GENERIC), ("bins", _BINS)):
        if set(columns) <= set(row):
            return kind
    raise InputError(
        where, f"is no known kind of trace; give the columns {', '.join(_GENERIC)} (all per second)"
    )


def _demand(
    path: str | os.PathLike[str],
    rows: list[tuple[float, ...]],
    lines: list[int],
    kind: str,
    interpolation: Interpolation | None,
) -> Demand:
    table = np.array(rows)
    times = table[:, 0]
    widths = np.diff(times)
    if (widths <= 0).any():
        line = lines[int((widths <= 0).argmax()) + 1]
        raise InputError(f"{path}, line {line}, column t_s", "must be later than the row before")
    if len(times) < 2:
        raise InputError(str(path), "needs at least two rows: their distance is the window")
    width = float(np.median(widths))
    how: Interpolation = interpolation or ("linear" if width >= LINEAR_FROM else "step")
    windows = np.append(widths, width)
    rates = table[:, 1:5] / windows[:, None] if kind == "bins" else table[:, 1:5]
    start = times[0]
    moved = times - start + (windows / 2 if how == "linear" else 0.0)
    return Demand(
        name=str(path),
        times=moved,
        requests=rates[:, 0],
        prompt=rates[:, 1],
        cached=rates[:, 2],
        output=rates[:, 3],
        measured=table[:, 5],
        end=float(times[-1] - start + width),
        interpolation=how,
    )


def _number(row: Mapping[str, str], column: str, where: str) -> float:
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LARGEST_RATE:
        raise InputError(
            f"{where}, column {column}",
            f"must be a number from 0 to {LARGEST_RATE:g}, got {text[:40]!r}",
        )
    return value


def _read_servegen(row: Mapping[str, str], where: str) -> tuple[float, ...]:
    time, requests, measured, prompt, output = (_number(row, column, where) for column in _SERVEGEN)
    if requests == 0:
        # A window without any request is a hole in the source, not a quiet time.
        return (time, math.nan, math.nan, math.nan, math.nan, 0.0)
    return (time, requests, prompt, 0.0, output, measured)


def _read_bins(row: Mapping[str, str], where: str) -> tuple[float, ...]:
    time, requests, prompt, output = (_number(row, column, where) for column in _BINS)
    hits = "prefix_cached_tokens"
    cached = _number(row, hits, where) if hits in row else 0.0
    if cached > prompt:
        raise InputError(f"{where}, column {hits}", "exceeds the prompt tokens")
    return (time, requests, prompt, cached, output, 1.0)


def _read_generic(row: Mapping[str, str], where: str) -> tuple[float, ...]:
    time = _number(row, "t_s", where)
    cells = (*_GENERIC[1:], "cached_tokens_per_s") if "cached_tokens_per_s" in row else _GENERIC[1:]
    empty = [row[column] == "" for column in cells]
    if all(empty):
        return (time, math.nan, math.nan, math.nan, math.nan, 0.0)
    requests, prompt, output, *hits = (_number(row, column, where) for column in cells)
    cached = hits[0] if hits else 0.0
    if cached > prompt:
        raise InputError(f"{where}, column cached_tokens_per_s", "exceeds the prompt tokens")
    if requests == 0 and (prompt > 0 or output > 0):
        raise InputError(f"{where}, column requests_per_s", "is 0, but there are tokens")
    return (time, requests, prompt, cached, output, 1.0)


_READ = {"servegen": _read_servegen, "bins": _read_bins, "generic": _read_generic}
