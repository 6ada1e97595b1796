"""The list of instances from which a reader picks one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from heteroplace.compare.record import Row
from heteroplace.report.study import Pair, Study, steps
from heteroplace.report.words import brief, number
from heteroplace.show import clean

MOST_LISTED = 10_000
COLUMNS = (
    "gpus",
    "proven",
    "status_left",
    "status_right",
    "unmet_left",
    "unmet_right",
    "waste_left",
    "waste_right",
    "cost_left",
    "cost_right",
    "seconds_left",
    "seconds_right",
)


def listing(study: Study, first: Sequence[Pair], command: str) -> dict[str, Any]:
    """Collect the list, and what is shown of an instance when it is picked.

    Parameters
    ----------
    study
        What is compared.
    first
        Pairs that are in the list however long it is.
    command
        What makes this page.

    Returns
    -------
    dict
        Of at most :data:`MOST_LISTED` pairs a row: key, name, what it is like, the values of
        :data:`COLUMNS`, and for each step name, left value, right value and bound.
    """
    pairs = study.pairs
    if len(pairs) > MOST_LISTED:
        keys = {pair.key for pair in first}
        rest = [pair for pair in pairs if pair.key not in keys]
        wanted = MOST_LISTED - len(keys)
        kept = {rest[place * len(rest) // wanted].key for place in range(max(0, wanted))}
        pairs = tuple(pair for pair in pairs if pair.key in keys or pair.key in kept)
    statuses = sorted({str(_status(row)) for pair in pairs for row in (pair.left, pair.right)})
    numbers = {status: place for place, status in enumerate(statuses)}
    entries = {pair.left["entry"] for pair in study.pairs}
    return {
        "left": "before" if study.single else clean(study.left),
        "right": clean(study.right),
        "command": clean(command),
        "statuses": statuses,
        "columns": COLUMNS,
        "pairs": [_row(pair, study.single, numbers, len(entries) > 1) for pair in pairs],
    }


def _row(pair: Pair, single: bool, statuses: dict[str, int], several: bool) -> list[Any]:
    left, right = pair.left, pair.right
    values: list[Any] = [right["gpus"], pair.proven, None if single else statuses[_status(left)]]
    values.append(statuses[_status(right)])
    for column in ("unmet_gpus", "high_tier_waste_gpus", "cost", "seconds_total"):
        values += [None if single else _short(left[column]), _short(right[column])]
    mine = {} if single else {step.name: step.value for step in steps(left)}
    return [
        clean(pair.key),
        clean(_name(right, several)),
        clean(_sizes(right)),
        values,
        [
            [clean(step.name), _short(mine.get(step.name)), _short(step.value), _short(step.bound)]
            for step in steps(right)
        ],
    ]


def _status(row: Row) -> str:
    return (
        f"{clean(str(row['status']))}, {clean(str(row['stop'] or 'no reason')).replace('_', ' ')}"
    )


def _short(value: float | None) -> float | None:
    known = value is not None and math.isfinite(value)
    return float(f"{value:.6g}") if known else None


def _name(row: Row, several: bool) -> str:
    entry = f"{row['entry']} · " if several or row["entry"] != row["family"] else ""
    return f"{entry}{row['family']} · seed {row['seed']}"


def _sizes(row: Row) -> str:
    parts = [f"{number(row['gpus'])} GPUs", f"{number(row['services'])} services"]
    parts.append(f"load {number(row['load'])}")
    for name, value in json.loads(row["knobs"] or "{}").items():
        if name != "load":
            parts.append(
                f"{name} {brief(value if isinstance(value, str) else json.dumps(value), 60)}"
            )
    return ", ".join(parts)
