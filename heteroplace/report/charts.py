"""Charts as SVG text that follow the page's colours and stay readable at a phone's width.

A chart is drawn once, :data:`WIDTH` units wide, with letters that are large enough when the chart
is as narrow as a phone. Colours are classes, so light, dark and print are the style sheet's
business. Series differ in colour, marker and dashes, never in colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from heteroplace.report.words import brief, escape, number

WIDTH, HEIGHT = 340, 240
STYLES = 6
_LETTER = 6.4
_TOP, _RIGHT, _BOTTOM, _ROW = 30, 14, 42, 14
_MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross")


@dataclass(frozen=True, slots=True)
class Mark:
    """One value of a series.

    Parameters
    ----------
    x
        Place on the horizontal axis; of categories, their number.
    y
        The value.
    low, high
        Ends of its interval; null without one.
    note
        What a pointer shows on it.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Values that belong together.

    Parameters
    ----------
    name
        In the legend.
    style
        Number of its colour, marker and dashes; see :data:`STYLES`.
    marks
        In the order of the horizontal axis.
    """

    name: str
    style: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis.

    Parameters
    ----------
    label
        What it shows, with its unit.
    names
        Categories; empty for numbers.
    log
        Whether equal factors are equally far apart.
    least, most
        Ends that are kept whatever the values are.
    percent
        Whether the values are shares, written in per cent.
    zero
        Whether zero is always in sight.
    """

    label: str
    names: tuple[str, ...] = ()
    log: bool = False
    least: float | None = None
    most: float | None = None
    percent: bool = False
    zero: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart.

    Parameters
    ----------
    title, description
        For everyone, and for those who cannot see it.
    kind
        ``dots``: values with intervals by category; ``steps``: curves that rise in steps;
        ``lines``: curves with a band; ``bars``: parts of a whole by category.
    x, y
        The axes.
    series
        What is drawn.
    """

    title: str
    description: str
    kind: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places, with its ticks."""

    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...] = field(default=())


def draw(panel: Panel, identifier: str) -> str:
    """Draw a chart.

    Parameters
    ----------
    panel
        The chart.
    identifier
        Unique in the page; made of letters, digits and hyphens.

    Returns
    -------
    str
        An ``svg`` element with a title and a description.
    """
    low, high = _extent(panel)
    rows = _rows(panel.x.names)
    base = HEIGHT - _BOTTOM - (rows - 1) * _ROW
    y = _numbers(panel.y, low, high, base, _TOP, 5)
    left = 12 + max(24.0, _LETTER * max((len(text) for _, text in y.ticks), default=0))
    x = _horizontal(panel, left, WIDTH - _RIGHT, rows)
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'aria-labelledby="{identifier}-t {identifier}-d">',
        f'<title id="{identifier}-t">{escape(panel.title)}</title>',
        f'<desc id="{identifier}-d">{escape(panel.description)}</desc>',
    ]
    parts += _grid(y, left)
    parts += _feet(x, panel.x, left, base, rows)
    parts.append(_text(4, 14, panel.y.label, "label"))
    parts.append(
        _text((left + WIDTH - _RIGHT) / 2, HEIGHT - 5, panel.x.label, "label", anchor="middle")
    )
    parts += _MAKERS[panel.kind](panel, x, y)
    parts.append("</svg>")
    return "\n".join(parts)


def marker(style: int, x: float, y: float, note: str = "", size: float = 4.5) -> str:
    """Draw the marker of a series; the note is what a pointer shows."""
    shape = _MARKERS[style % STYLES]
    title = f"<title>{escape(note)}</title>" if note else ""
    if shape == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{title}</circle>'
    s = size
    outline = {
        "square": f"M{-s},{-s}H{s}V{s}H{-s}Z",
        "triangle": f"M0,{-s * 1.2:.1f}L{s * 1.2:.1f},{s}H{-s * 1.2:.1f}Z",
        "diamond": f"M0,{-s * 1.3:.1f}L{s * 1.3:.1f},0L0,{s * 1.3:.1f}L{-s * 1.3:.1f},0Z",
        "down": f"M0,{s * 1.2:.1f}L{s * 1.2:.1f},{-s}H{-s * 1.2:.1f}Z",
        "cross": f"M{-s},{-s / 3:.1f}H{-s / 3:.1f}V{-s}H{s / 3:.1f}V{-s / 3:.1f}H{s}V{s / 3:.1f}"
        f"H{s / 3:.1f}V{s}H{-s / 3:.1f}V{s / 3:.1f}H{-s}Z",
    }[shape]
    return f'<path class="mark" transform="translate({x:.1f},{y:.1f})" d="{outline}">{title}</path>'


def swatch(style: int, *, curve: bool) -> str:
    """Draw the sample of a series in the legend."""
    line = '<path class="curve" d="M1,8H29"/>' if curve else ""
    return (
        f'<svg class="swatch s{style % STYLES}" viewBox="0 0 30 16" aria-hidden="true">'
        f"{line}{marker(style, 15, 8)}</svg>"
    )


def fill_swatch(style: int) -> str:
    """Draw the sample of a part of a bar in the legend."""
    return (
        f'<svg class="swatch s{style % STYLES}" viewBox="0 0 30 16" aria-hidden="true">'
        '<rect class="part" x="6" y="1" width="18" height="14"/></svg>'
    )


# --------------------------------------------------------------------------------------------
# Axes
# --------------------------------------------------------------------------------------------


def _extent(panel: Panel) -> tuple[float, float]:
    """Least and most of the vertical axis; a chart without values gets 0 to 1."""
    if panel.kind == "bars":
        tops: dict[float, float] = {}
        for series in panel.series:
            for mark in series.marks:
                tops[mark.x] = tops.get(mark.x, 0.0) + mark.y
        values = list(tops.values())
    else:
        values = [
            value
            for series in panel.series
            for mark in series.marks
            for value in (mark.y, mark.low, mark.high)
            if value is not None and math.isfinite(value)
        ]
    values += [end for end in (panel.y.least, panel.y.most) if end is not None]
    values += [0.0] if panel.y.zero else []
    return (min(values), max(values)) if values else (0.0, 1.0)


def _rows(names: Sequence[str]) -> int:
    """Rows that the names of the categories take: two when they are wide, one above the other."""
    widest = max(map(len, names), default=0)
    return 2 if len(names) > 1 and (widest + 1) * len(names) * _LETTER > WIDTH - 70 else 1


def _horizontal(panel: Panel, left: float, right: float, rows: int) -> _Scale:
    names = panel.x.names
    if names:
        width = (right - left) / len(names)
        most = max(3, int(rows * width / _LETTER) - (1 if len(names) > 1 else 0))
        ticks = tuple((float(place), brief(name, most)) for place, name in enumerate(names))
        return _Scale(lambda at: left + width * (at + 0.5), ticks)
    values = [mark.x for series in panel.series for mark in series.marks]
    values += [end for end in (panel.x.least, panel.x.most) if end is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return _numbers(panel.x, low, high, left, right, 6)


def _numbers(axis: Axis, low: float, high: float, start: float, end: float, most: int) -> _Scale:
    if axis.log:
        low = max(low, 1e-9)
        high = max(high, low * 1.05)
        first, last = math.log(low), math.log(high)
        ticks = _decades(low, high, most)
        return _Scale(
            lambda at: start + (end - start) * (math.log(max(at, low)) - first) / (last - first),
            tuple((tick, number(tick)) for tick in ticks),
        )
    if high - low <= 1e-12 * max(abs(high), abs(low), 1.0):
        high = low + 1
    step = _step((high - low) / most)
    bottom = math.floor(low / step + 1e-9) * step if axis.least is None else low
    top = math.ceil(high / step - 1e-9) * step if axis.most is None else high
    ticks = [
        step * count
        for count in range(math.ceil(bottom / step - 1e-9), math.floor(top / step + 1e-9) + 1)
    ]
    return _Scale(
        lambda at: start + (end - start) * (min(max(at, bottom), top) - bottom) / (top - bottom),
        tuple(
            (tick, f"{number(100 * tick)} %" if axis.percent else number(tick)) for tick in ticks
        ),
    )


def _step(rough: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least as large."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough * (1 - 1e-9))


def _decades(low: float, high: float, most: int) -> list[float]:
    """Ticks of a logarithmic axis: as many round numbers as there is room for."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.1, 1.2, 1.5, 2, 3, 5), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in decades for digit in digits]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            break
    every = math.ceil(len(ticks) / most)
    return ticks[::every] or [low, high]


def _grid(y: _Scale, left: float) -> list[str]:
    parts = []
    for value, text in y.ticks:
        at = y.place(value)
        kind = "zero" if value == 0 else "grid"
        parts.append(
            f'<path class="{kind}" d="M{left:.1f},{at:.1f}H{WIDTH - _RIGHT}"/>'
            + _text(left - 6, at + 4, text, "tick", anchor="end")
        )
    return parts


def _feet(x: _Scale, axis: Axis, left: float, base: float, rows: int) -> list[str]:
    parts = [f'<path class="grid" d="M{left:.1f},{base}H{WIDTH - _RIGHT}"/>']
    full = axis.names
    for count, (value, text) in enumerate(x.ticks):
        at, row = x.place(value), count % rows
        name = full[round(value)] if full else text
        title = f"<title>{escape(name)}</title>" if name != text else ""
        near = at + _LETTER * len(text) / 2 > WIDTH
        parts.append(
            f'<path class="axis" d="M{at:.1f},{base}v{4 + row * (_ROW - 4)}"/>'
            f'<text class="tick" x="{min(at, WIDTH - 2) if near else at:.1f}" '
            f'y="{base + 17 + row * _ROW}" '
            f'text-anchor="{"end" if near else "middle"}">{title}{escape(text)}</text>'
        )
    return parts


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


# --------------------------------------------------------------------------------------------
# Marks
# --------------------------------------------------------------------------------------------


def _dots(panel: Panel, x: _Scale, y: _Scale) -> list[str]:
    count, parts = len(panel.series), []
    room = (x.place(1) - x.place(0)) / (count + 1)
    spread = min(13.0, room)
    for place, series in enumerate(panel.series):
        shift = spread * (place - (count - 1) / 2)
        parts.append(f'<g class="s{series.style % STYLES}">')
        for mark in series.marks:
            at = x.place(mark.x) + shift
            if mark.low is not None and mark.high is not None:
                low, high = y.place(mark.low), y.place(mark.high)
                parts.append(
                    f'<path class="whisker" d="M{at:.1f},{low:.1f}V{high:.1f}'
                    f'M{at - 3:.1f},{low:.1f}h6M{at - 3:.1f},{high:.1f}h6"/>'
                )
            parts.append(marker(series.style, at, y.place(mark.y), mark.note))
        parts.append("</g>")
    return parts


def _curves(panel: Panel, x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for series in panel.series:
        points = [(x.place(mark.x), y.place(mark.y)) for mark in series.marks]
        if not points:
            continue
        parts.append(f'<g class="s{series.style % STYLES}">')
        band = [mark for mark in series.marks if mark.low is not None and mark.high is not None]
        if band and panel.kind == "lines":
            there = [(x.place(mark.x), y.place(mark.high or 0.0)) for mark in band]
            back = [(x.place(mark.x), y.place(mark.low or 0.0)) for mark in reversed(band)]
            parts.append(f'<path class="band" d="M{_joined([*there, *back])}Z"/>')
        if panel.kind == "steps":
            d = f"M{points[0][0]:.1f},{points[0][1]:.1f}" + "".join(
                f"H{at:.1f}V{up:.1f}" for at, up in points[1:]
            )
        else:
            d = f"M{_joined(points)}"
        parts.append(f'<path class="curve" d="{d}"><title>{escape(series.name)}</title></path>')
        every = 1 if panel.kind == "lines" else max(1, len(points) // 5)
        chosen = range(0, len(points), every)
        parts += [
            marker(series.style, *points[index], series.marks[index].note, 3.8)
            for index in (chosen if len(points) <= 40 or panel.kind == "steps" else ())
        ]
        parts.append("</g>")
    return parts


def _joined(points: Iterable[tuple[float, float]]) -> str:
    return "L".join(f"{at:.1f},{up:.1f}" for at, up in points)


def _bars(panel: Panel, x: _Scale, y: _Scale) -> list[str]:
    width = min(38.0, 0.7 * (x.place(1) - x.place(0)))
    below: dict[float, float] = {}
    parts = []
    for series in panel.series:
        parts.append(f'<g class="s{series.style % STYLES}">')
        for mark in series.marks:
            start = below.get(mark.x, 0.0)
            below[mark.x] = start + mark.y
            top, height = y.place(start + mark.y), y.place(start) - y.place(start + mark.y)
            if height <= 0:
                continue
            parts.append(
                f'<rect class="part" x="{x.place(mark.x) - width / 2:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{height:.2f}">'
                f"<title>{escape(mark.note)}</title></rect>"
            )
        parts.append("</g>")
    return parts


_MAKERS: dict[str, Callable[[Panel, _Scale, _Scale], list[str]]] = {
    "dots": _dots,
    "steps": _curves,
    "lines": _curves,
    "bars": _bars,
}
