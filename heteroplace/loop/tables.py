"""Decisions and history, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from heteroplace.loop.action import iso
from heteroplace.loop.store import Entry
from heteroplace.policy.decision import Decision
from heteroplace.policy.duration import spoken
from heteroplace.show import clean


def decision_table(decisions: Iterable[Decision]) -> Table:
    """A row for each decision: what changes, what drove it and why."""
    table = Table(title="Targets", title_justify="left")
    for column in ("service", "action", "instances", "driver"):
        table.add_column(column)
    table.add_column("age", justify="right")
    table.add_column("reason")
    for each in decisions:
        table.add_row(
            _text(each.service),
            each.action,
            _text(_counts(each.before, each.counts)),
            _text(each.driver),
            "" if each.age is None else spoken(each.age),
            _text(each.reason),
        )
    return table


def history_table(entries: Iterable[Entry]) -> Table:
    """A row for each decision that was kept."""
    table = Table(title="Decisions", title_justify="left")
    table.add_column("time", no_wrap=True)
    for column in ("service", "action", "reason", "action id"):
        table.add_column(column)
    for each in entries:
        table.add_row(
            iso(each.at, "seconds"),
            _text(each.service),
            each.action,
            _text(each.reason),
            _text(each.action_id or ""),
        )
    return table


def _counts(before: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """``prefill 4 → 6, decode 2``."""
    parts = []
    for role, count in counts.items():
        was = before.get(role, 0)
        parts.append(f"{role} {count}" if was == count else f"{role} {was} → {count}")
    return ", ".join(parts)


def _text(text: str) -> Text:
    return Text(clean(text))
