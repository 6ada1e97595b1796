"""The data of a figure: a table to read and a CSV file to take away."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from urllib.parse import quote

from heteroplace.report.words import escape, number
from heteroplace.show import clean

Cell = str | int | float | None

SHOWN = 60
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows behind a figure.

    Parameters
    ----------
    columns
        Headings, with the unit where there is one.
    rows
        One cell per column; null is unknown.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> str:
        """Write the rows as CSV with a heading.

        Text that a spreadsheet would run as a formula gets an apostrophe in front.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\r\n")
        writer.writerow([_safe(column) for column in self.columns])
        for row in self.rows:
            writer.writerow([_safe(cell) for cell in row])
        return buffer.getvalue()

    def link(self, file: str) -> str:
        """Write an ``a`` element that saves the rows as CSV without asking anybody."""
        data = "data:text/csv;charset=utf-8," + quote(self.csv(), safe="")
        return (
            f'<a class="save" download="{escape(file)}.csv" href="{data}">'
            f"Save as CSV<span class=hide> ({escape(file)}.csv)</span></a>"
        )

    def html(self, caption: str) -> str:
        """Write the rows as a ``table`` element; of many rows the first :data:`SHOWN`."""
        numeric = [
            all(not isinstance(row[place], str) for row in self.rows)
            for place in range(len(self.columns))
        ]
        kinds = [' class="n"' if each else "" for each in numeric]
        head = "".join(
            f'<th scope="col"{kind}>{escape(column)}</th>'
            for column, kind in zip(self.columns, kinds, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{kind}>{_shown(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)
            )
            + "</tr>"
            for row in self.rows[:SHOWN]
        )
        rest = len(self.rows) - SHOWN
        more = f'<p class="soft">and {rest:,} more rows in the CSV file</p>' if rest > 0 else ""
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
            f'<table><caption class="hide">{escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
        )


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    return escape(cell) if isinstance(cell, str) else escape(number(cell, 4))


def _safe(cell: Cell) -> Cell:
    if isinstance(cell, float):
        return repr(round(cell, 9)) if math.isfinite(cell) else None
    if isinstance(cell, str):
        text = clean(cell)
        return "'" + text if text.startswith(_FORMULA) else text
    return cell
