"""The page: sections put together from findings, figures, pictures and the record of the run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from pydantic import JsonValue

from heteroplace.compare.record import Run
from heteroplace.page import embedded, template
from heteroplace.report.charts import draw, fill_swatch, swatch
from heteroplace.report.effort import time_figure
from heteroplace.report.figure import Figure, Legend
from heteroplace.report.findings import Finding, basis, headline
from heteroplace.report.listing import listing
from heteroplace.report.placements import Pictures, packed
from heteroplace.report.progress import anytime_figure, gap_figure
from heteroplace.report.quality import difference_figure, unmet_figure, waste_figure
from heteroplace.report.study import Pair, Study
from heteroplace.report.table import Table
from heteroplace.report.words import brief, counted, escape, listed, number, percent, ranges

MOST_FAILED = 200
MOST_LINES = 1000
LONG = 12


@dataclass(frozen=True)
class Commands:
    """What makes the page and its data, as a shell would run it.

    Parameters
    ----------
    results
        The folder of results, as it was given.
    options
        Further options of the command, as they were given.
    """

    results: str
    options: tuple[str, ...] = ()

    @property
    def report(self) -> str:
        """The command that makes the page."""
        return shlex.join(("heteroplace", "report", self.results, *self.options))

    def table(self, figure: str) -> str:
        """The command that prints the data of a figure as CSV."""
        return f"{self.report} --table {figure}"


def figures(study: Study) -> list[Figure]:
    """Every figure for which the results hold data, in the order of the page."""
    found = [unmet_figure(study), waste_figure(study)]
    if not study.single:
        found.append(difference_figure(study))
    found.append(gap_figure(study))
    anytime = anytime_figure(study)
    if anytime is not None:
        found.append(anytime)
    return [*found, time_figure(study)]


def document(
    study: Study,
    found: Sequence[Finding],
    drawn: Sequence[Figure],
    pictures: Pictures,
    chosen: Sequence[Pair],
    commands: Commands,
) -> str:
    """Put the page together.

    Parameters
    ----------
    study
        What is compared.
    found, drawn
        Its findings and figures.
    pictures, chosen
        Its pictures, and the instances that were meant to have one.
    commands
        What makes it.

    Returns
    -------
    str
        HTML that loads nothing and sends nothing.
    """
    name = study.manifest.name
    body = "\n".join(
        (
            '<a class="skip" href="#findings">Skip to the findings</a>',
            "<main>",
            _header(study, drawn),
            _findings(study, found),
            *(_figure(study, each, commands) for each in drawn),
            _placements(study, pictures, chosen, commands),
            _words(),
            _record(study, commands),
            "</main>",
        )
    )
    parts = {"TITLE": escape(f"{name}: report"), "BODY": body}
    parts["STYLE"], parts["SCRIPT"] = _file("report.css"), _file("report.js")
    text = _file("report.html")
    made = []
    for part in ("TITLE", "STYLE", "BODY", "SCRIPT"):
        # What was put in is not looked at again: names may hold anything.
        before, _, text = text.partition(f"@{part}@")
        made += [before, parts[part]]
    return "".join([*made, text])


def _file(name: str) -> str:
    return resources.files("heteroplace.report").joinpath(name).read_text(encoding="utf-8")


def _header(study: Study, drawn: Iterable[Figure]) -> str:
    manifest = study.manifest
    failed = len(study.failed)
    facts = [
        ("instances", f"{len({row['instance'] for row in study.rows}):,}"),
        ("profiles", listed(study.profiles)),
        ("solves", f"{len(study.rows):,}" + (f", {failed:,} failed" if failed else "")),
        ("proven optima", f"{study.proven:,} of {len(study.pairs):,}"),
        ("families", listed(sorted({str(row["family"]) for row in study.rows}))),
        ("GPUs per fleet", _span([row["gpus"] for row in study.rows])),
        ("seeds", _seeds(study, 60)),
        ("run", _when(manifest.runs)),
    ]
    unfinished = (
        ""
        if manifest.complete
        else f'<p class="bad">The run is not finished: {len(study.rows):,} of {manifest.rows:,} '
        "rows are there. Numbers will change.</p>"
    )
    contents = [("findings", "Findings"), *((each.name, each.title) for each in drawn)]
    contents += [
        ("placements", "Two placements"),
        ("words", "Terms"),
        ("record", "How it was made"),
    ]
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in contents)
    return (
        f'<header class="card"><h1>{escape(manifest.name)}</h1>'
        f'<p>{escape(brief(manifest.description, 2000))}</p><p class="soft">'
        "Placement of language-model services with separate prefill and decode instances on "
        "clusters of several GPU types: each instance is one cluster with its demand, solved by "
        f"every profile.</p>{unfinished}{_facts(facts)}"
        f'<nav aria-label="Sections"><ul class="contents">{links}</ul></nav></header>'
    )


def _facts(facts: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    return f'<dl class="{kind}">{items}</dl>'


def _span(values: Iterable[int | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = min(known), max(known)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _seeds(study: Study, most: int = 10**6) -> str:
    seeds = {seed for entry in study.manifest.seeds.values() for seed in entry}
    return brief(ranges(sorted(seeds)), most)


def _when(runs: Sequence[Run]) -> str:
    if not runs:
        return "–"
    first, last = runs[0].began[:10], (runs[-1].ended or runs[-1].began)[:10]
    return first if first == last else f"{first} to {last}"


def _findings(study: Study, found: Sequence[Finding]) -> str:
    items = "".join(f'<li data-finding="{each.name}">{escape(each.text)}</li>' for each in found)
    tiles = "".join(
        f"<div><dd>{escape(value)}</dd><dt>{escape(what)}</dt></div>"
        for value, what in headline(study, found)
    )
    return (
        '<section class="card" id="findings" aria-labelledby="h-findings">'
        f'<h2 id="h-findings">Findings</h2><dl class="tiles">{tiles}</dl>'
        f"<p>{escape(basis(study))}</p>"
        f'<ul class="findings">{items}</ul>'
        '<p class="soft small">Every interval is at 95 %, from resampling the seeds (bootstrap), '
        "with all instances of a family, size and seed together. "
        "It speaks of instances like these, "
        "not of every fleet.</p>"
        "</section>"
    )


def _figure(study: Study, figure: Figure, commands: Commands) -> str:
    panels = "".join(
        f"<div><h3>{escape(panel.title)}</h3>{draw(panel, f'{figure.name}-{place}')}</div>"
        for place, panel in enumerate(figure.panels)
    )
    legend = "".join(f"<li>{_sample(each)}{escape(each.name)}</li>" for each in figure.legend)
    return (
        f'<section class="card" id="{figure.name}" aria-labelledby="h-{figure.name}"><figure>'
        f'<figcaption><h2 id="h-{figure.name}">{escape(figure.title)}</h2>'
        f"<p>{escape(figure.lead)}</p></figcaption>"
        + (f'<ul class="legend">{legend}</ul>' if legend and panels else "")
        + f'<div class="panels">{panels}</div></figure>'
        f"<details><summary>How to read it</summary><p>{escape(figure.reading)}</p></details>"
        + _data(figure.table, figure.name, figure.title, commands.table(figure.name), study)
        + "</section>"
    )


def _sample(legend: Legend) -> str:
    if legend.kind == "part":
        return fill_swatch(legend.style)
    return swatch(legend.style, curve=legend.kind == "curve")


def _data(table: Table, name: str, title: str, command: str, study: Study) -> str:
    return (
        f"<details><summary>Data: {counted(len(table.rows), 'row')}, and the commands that made "
        f"them</summary>{table.html(title)}{table.link(name)}"
        f"<pre>{escape(study.manifest.command)}\n{escape(command)}</pre></details>"
    )


# --------------------------------------------------------------------------------------------
# Two placements
# --------------------------------------------------------------------------------------------


def _placements(
    study: Study, pictures: Pictures, chosen: Sequence[Pair], commands: Commands
) -> str:
    left = "before" if study.single else study.left
    again = " --solve" if pictures.without_plan else ""
    listed_ = listing(study, chosen, commands.report + again)
    sorts: tuple[tuple[str, str], ...] = (
        ("unmet", f"how much more {left} leaves unmet"),
        ("waste", f"how much more {left} wastes of high tiers"),
        ("cost", f"how much more {left} costs"),
        ("seconds", f"time of {study.right}"),
        ("gpus", "size"),
        ("none", "the experiment's order"),
    )
    keeps: tuple[tuple[str, str], ...] = (
        ("all", "all instances"),
        ("pictured", "those with pictures"),
        ("unmet", f"{left} leaves more unmet"),
        ("waste", f"{left} wastes more high tiers"),
        ("equal", "no difference in unmet, waste and cost"),
        ("unproven", "not proven"),
    )
    if study.single:
        sorts, keeps = sorts[3:], (*keeps[:2], keeps[-1])
    head, middle, tail = template()
    return (
        '<section class="card" id="placements" aria-labelledby="h-placements">'
        '<h2 id="h-placements">Two placements of one instance</h2>'
        f"<p>{escape(_picture_words(study, pictures, len(listed_['pairs'])))}</p>"
        "<noscript><p>Picking an instance needs JavaScript; allow it for this file.</p></noscript>"
        '<div class="tools"><label>Filter by family, seed, load or knob'
        '<input id="find" type="search" autocomplete="off" placeholder="as in: load 1.1 seed 3">'
        f'</label><label>Order<select id="sort">{_options(sorts)}</select></label>'
        f'<label>Show<select id="keep">{_options(keeps)}</select></label></div>'
        '<p id="found" class="soft small" role="status"></p>'
        '<ul id="list" role="listbox" tabindex="0" '
        'aria-label="Instances; arrow keys pick one"></ul>'
        '<button id="more" type="button" hidden>Show more</button>'
        '<div id="chosen" aria-live="polite"></div>'
        '<div id="nopicture" hidden><p>This instance has no pictures in this page. To make a page '
        'that has them:</p><pre id="command"></pre></div>'
        '<div id="pair" hidden><p class="soft small">Both pictures show the same fleet; what you '
        "point at, zoom into or filter in one, you see in the other. Outlined boxes are new.</p>"
        '<div class="tools"><label>Find a service, domain or node in both'
        '<input id="spot" type="search" autocomplete="off" '
        'placeholder="Enter goes to a domain or node"></label></div>'
        '<div class="flip" role="group" aria-label="Which placement to show">'
        f'<button type="button" id="flip-left" aria-pressed="true">{escape(left)}</button>'
        f'<button type="button" id="flip-right" aria-pressed="false">{escape(study.right)}'
        '</button></div><div class="pair" data-side="left">'
        f'<section aria-labelledby="h-left"><h3 id="h-left">{escape(left)}</h3>'
        f'<iframe id="left" title="Placement: {escape(left)}"></iframe></section>'
        f'<section aria-labelledby="h-right"><h3 id="h-right">{escape(study.right)}</h3>'
        f'<iframe id="right" title="Placement: {escape(study.right)}"></iframe></section>'
        "</div></div>"
        f'<script type="text/plain" id="listed">{packed(listed_)}</script>'
        f'<script type="application/json" id="drawings">{embedded(pictures.packed)}</script>'
        f'<script type="text/plain" id="template">'
        f"{packed('@TITLE@'.join((head, middle)) + '@DATA@' + tail)}</script>"
        "</section>"
    )


def _options(choices: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<option value="{value}">{escape(words)}</option>' for value, words in choices)


def _picture_words(study: Study, pictures: Pictures, listed_count: int) -> str:
    total, drawn = len(study.pairs), len(pictures.packed)
    words = []
    if drawn == total:
        words.append(f"All {counted(total, 'instance')} can be picked, with pictures.")
    elif drawn:
        words.append(
            f"{drawn:,} of {counted(total, 'instance')} have pictures in this page: those that "
            "differ most, and others from all over the experiment. --placements N takes more, "
            "--instance KEY a certain one."
        )
    if listed_count < total:
        words.append(f"The list holds {listed_count:,} of {total:,}.")
    if pictures.without_plan:
        words.append(
            f"Of {counted(len(pictures.without_plan), 'instance')} a plan was not kept: "
            "run heteroplace compare with --keep plans, or make this page with --solve, which "
            "solves the pictured ones again."
        )
    if pictures.without_instance:
        words.append(
            f"{counted(len(pictures.without_instance), 'instance')} could not be generated again "
            "as they were, with this version of heteroplace; keep instances too."
        )
    if pictures.damaged:
        words.append(
            f"Of {counted(len(pictures.damaged), 'instance')} a file is damaged or does not fit; "
            "see the log with --verbose."
        )
    if pictures.full:
        words.append(
            f"{counted(len(pictures.full), 'instance')} more found no room in the page; "
            "--instance KEY puts one first."
        )
    if pictures.solved:
        words.append(
            f"{counted(len(pictures.solved), 'instance')} were solved again for the pictures"
            + (
                f"; {len(pictures.otherwise)} of them came out with other values than in the "
                "figures, since a time limit cut in."
                if pictures.otherwise
                else ", with the same values."
            )
        )
    return " ".join(words) or "No pictures were asked for."


# --------------------------------------------------------------------------------------------
# Terms and record
# --------------------------------------------------------------------------------------------

TERMS = (
    (
        "instance",
        "One placement problem: a fleet of nodes in a tree of network switches (S2 domains made "
        "of S1 domains), what runs on it, and what its services need. Here: a family of generated "
        "instances, its knobs and a seed.",
    ),
    (
        "profile",
        "A way to solve. greedy is the baseline of the HeteroScale paper (arXiv 2508.19559, "
        "Algorithm 4); the others search for the optimum and prove a bound.",
    ),
    (
        "unmet",
        "What a service asked for and does not get, in GPUs of its preferred shape. It is "
        "minimised first, one priority class after the other.",
    ),
    (
        "bound, proven optimum",
        "A bound is a value that no plan can beat, given the steps before. Where a plan equals "
        "its bound in every step it is proven best.",
    ),
    (
        "high tier",
        "GPUs in an S1 domain with several GPU types. Only there can prefill and decode on "
        "different types be close to each other, so they are precious.",
    ),
    (
        "wasted",
        "Such GPUs that deliver for a service which does not need them: some domain of the level "
        "it requires has, outside the high tier, nodes that can hold all its roles.",
    ),
    (
        "cost",
        "What is minimised last: a weighted sum of GPUs on precious tiers, second-choice shapes, "
        "GPUs away from the preferred domain, new groups, broken nodes and moves.",
    ),
    (
        "load, heterogeneity, affinity, priority",
        "Load: GPUs asked for by the services that grow / free GPUs. Heterogeneity: share of the "
        "S1 domains with several GPU types. Affinity: the level inside one domain of which a "
        "service must lie (s1 is the narrowest). Priority: higher classes are served first.",
    ),
)


def _words() -> str:
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in TERMS)
    return (
        '<section class="card" id="words" aria-labelledby="h-words"><h2 id="h-words">Terms</h2>'
        f'<dl class="words">{items}</dl></section>'
    )


def _record(study: Study, commands: Commands) -> str:
    manifest = study.manifest
    runs = "".join(_run(place, run) for place, run in enumerate(manifest.runs, start=1))
    seeds = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(ranges(values))}</dd>"
        for name, values in manifest.seeds.items()
    )
    experiment = json.dumps(_shortened(manifest.experiment), indent=1, ensure_ascii=False)
    return (
        '<section class="card" id="record" aria-labelledby="h-record">'
        '<h2 id="h-record">How it was made</h2>'
        f"<pre>{escape(manifest.command)}\n{escape(commands.report)}</pre>{runs}"
        f'<h3>Seeds by entry</h3><dl class="words">{seeds}</dl>'
        "<details><summary>The experiment, with every profile in full</summary>"
        f'<div class="scroll" tabindex="0"><pre>{_lines(experiment)}</pre></div>'
        f'<p class="small soft">digest {escape(manifest.digest)}</p></details>'
        f"{_failed(study)}</section>"
    )


def _shortened(value: JsonValue) -> JsonValue:
    """The same with long lists of whole numbers, such as seeds, written as ranges."""
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    whole = [each for each in value if isinstance(each, int) and not isinstance(each, bool)]
    if len(value) > LONG and len(whole) == len(value):
        return ranges(whole)
    return [_shortened(each) for each in value]


def _lines(text: str) -> str:
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"… {len(lines) - MOST_LINES:,} more lines in manifest.json"]
    return "\n".join(escape(line) for line in lines)


def _run(place: int, run: Run) -> str:
    machine = run.environment
    facts = [
        ("began", run.began),
        ("ended", run.ended or "was stopped or has not ended"),
        ("workers", f"{run.workers}, {run.executor}"),
        ("load average at the start", "–" if run.load is None else number(run.load)),
        ("commit", machine.commit or "–"),
        ("machine", f"{machine.cpu or 'unknown processor'}, {machine.cores} cores"),
        ("memory", "–" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB"),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in machine.versions.items())),
    ]
    return f"<h3>Run {place}</h3>{_facts(facts, 'facts roomy')}"


def _failed(study: Study) -> str:
    if not study.failed:
        return ""
    table = Table(
        ("key", "profile", "error"),
        tuple(
            (str(row["key"]), str(row["profile"]), str(row["error"]))
            for row in study.failed[:MOST_FAILED]
        ),
    )
    share = percent(len(study.failed) / len(study.rows))
    return (
        f'<h3 id="failed">Failed: {len(study.failed):,} of {len(study.rows):,} rows ({share})</h3>'
        f"<details><summary>Which, and why</summary>{table.html('Failed rows')}"
        f"{table.link('failed')}</details>"
    )
