"""Paired numbers of a study: `python experiments/findings.py --help`.

`heteroplace report` compares two profiles on the same instance. This also compares the values of a
knob that rewrites rules (`every_affinity`, `every_band`): the same fleet and demand under each. It
prints Markdown tables, from which docs/studies.md is written.

A difference is Σ first − second over Σ of what it is a share of. Its 95 % interval is a bootstrap
that draws seeds, with all instances of a seed together, since the fleets of a seed are alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heteroplace.compare.experiment import made_family
from heteroplace.compare.record import COLUMNS, Results, Row, read_results
from heteroplace.compare.statistics import Interval, lexicographic_counts, ratio_of_means
from heteroplace.errors import InputError
from heteroplace.report.study import Study, unmet_bound

ONE = "instances"
SAME = ("target_gpus", "free_gpus", "gpus", "services", "running_instances")


@dataclass(frozen=True)
class Measure:
    """What is compared: a column, as a share of another one or per instance.

    Parameters
    ----------
    column
        Of the table, numbers.
    of
        A column, or ``instances``.
    """

    column: str
    of: str

    @property
    def scale(self) -> float:
        """100 where it is a share, in per cent."""
        return 1.0 if self.of == ONE else 100.0

    @property
    def label(self) -> str:
        """For the head of a table."""
        return self.column if self.of == ONE else f"{self.column}, % of {self.of}"

    def share(self, rows: Sequence[Row], others: Sequence[Row] | None = None) -> Interval | None:
        """Mean of the rows, or of their differences to others; null when it cannot be said."""
        by_seed: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for place, row in enumerate(rows):
            other = None if others is None else others[place]
            values = [row[self.column], 0.0 if other is None else other[self.column]]
            whole = 1.0 if self.of == ONE else row[self.of]
            if None in (*values, whole):
                continue
            by_seed[row["seed"]][0] += float(values[0]) - float(values[1])
            by_seed[row["seed"]][1] += float(whole)
        above, below = zip(*by_seed.values(), strict=True) if by_seed else ((), ())
        if not sum(below):
            return None
        return ratio_of_means(above, below)


@dataclass(frozen=True)
class Line:
    """Both profiles under one value of the knob.

    Parameters
    ----------
    value
        Of the knob.
    instances, proven, unmet_proven
        Instances; of these proven in every step; proven in every step about unmet capacity.
    left, right, difference
        Of the measure, and left − right.
    bound
        Of unmet capacity as a share of the targets; null for other measures or where unknown.
    better, equal, worse
        The left by the order of the objective.
    """

    value: str
    instances: int
    proven: int
    unmet_proven: int
    left: Interval | None
    right: Interval | None
    difference: Interval | None
    bound: float | None
    better: int
    equal: int
    worse: int


@dataclass(frozen=True)
class Step:
    """One profile under a value of the knob against the same under the reference.

    Parameters
    ----------
    profile, value
        Of which it tells.
    pairs, proven
        Instances, and how many are proven under both.
    difference
        Value − reference of the measure.
    counts
        Lower, equal and higher under the value.
    """

    profile: str
    value: str
    pairs: int
    proven: int
    difference: Interval | None
    counts: tuple[int, int, int]


def knob(row: Row, name: str) -> str:
    """Value of a knob or column of a row; of the family's where the entry does not turn it."""
    if name in ("entry", "size", "family"):
        return f"{row[name]:g}" if name == "size" else str(row[name])
    turned = json.loads(row["knobs"])
    if name in turned:
        value = turned[name]
    else:
        family = made_family(row["family"], row["knobs"], row["size"])
        if not hasattr(family, name):
            raise InputError("--by", f"no knob {name!r} in these results; turned: {list(turned)}")
        value = getattr(family, name)
    return f"{value:g}" if isinstance(value, float) else str(value)


def lines(study: Study, by: str, measure: Measure) -> Iterator[Line]:
    """Both profiles under every value of the knob, in the order of the experiment."""
    groups: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    for pair in study.pairs:
        groups[knob(pair.right, by)].append((pair.left, pair.right))
    for value, pairs in groups.items():
        lefts, rights = [left for left, _ in pairs], [right for _, right in pairs]
        counts = lexicographic_counts(
            [row["step_values"] for row in lefts], [row["step_values"] for row in rights], 1e-6
        )
        yield Line(
            value=value,
            instances=len(pairs),
            proven=sum(row["status"] == "optimal" for row in rights),
            unmet_proven=sum(map(unmet_proven, rights)),
            left=measure.share(lefts),
            right=measure.share(rights),
            difference=measure.share(lefts, rights),
            bound=_bound(rights) if measure.column == "unmet_gpus" else None,
            better=counts.wins,
            equal=counts.ties,
            worse=counts.losses,
        )


def unmet_proven(row: Row) -> bool:
    """Whether every step about unmet capacity is proven."""
    return all(
        proven
        for name, proven in zip(row["step_names"], row["step_proven"], strict=True)
        if name.startswith("unmet")
    )


def _bound(rows: Iterable[Row]) -> float | None:
    known, totals = 0.0, 0.0
    for row in rows:
        bound = unmet_bound(row)
        if bound is None:
            return None
        known, totals = known + bound, totals + row["target_gpus"]
    return known / totals if totals else None


def steps(study: Study, by: str, measure: Measure, reference: str | None) -> Iterator[Step]:
    """Every profile under every value against the reference, on the same fleet and demand.

    Raises
    ------
    InputError
        If the reference is not known, or the instances differ in more than the rules.
    """
    for profile in (study.left, study.right):
        groups: dict[str, dict[tuple[Any, ...], Row]] = defaultdict(dict)
        for row in (pair.left if profile == study.left else pair.right for pair in study.pairs):
            rest = {name: each for name, each in json.loads(row["knobs"]).items() if name != by}
            key = (row["entry"], row["size"], row["seed"], json.dumps(rest, sort_keys=True))
            groups[knob(row, by)][key] = row
        first = next(iter(groups)) if reference is None else reference
        if first not in groups:
            raise InputError("--reference", f"no value {first!r}; there are: {', '.join(groups)}")
        for value, rows in groups.items():
            keys = [key for key in rows if key in groups[first]]
            if value == first or not keys:
                continue
            mine, its = [rows[key] for key in keys], [groups[first][key] for key in keys]
            for one, other in zip(mine, its, strict=True):
                _refuse_unlike(one, other, by)
            amounts = lexicographic_counts(
                [[row[measure.column]] for row in mine],
                [[row[measure.column]] for row in its],
                1e-6,
            )
            proven = [
                row["status"] == other["status"] == "optimal"
                for row, other in zip(mine, its, strict=True)
            ]
            yield Step(
                profile=profile,
                value=f"{value} − {first}",
                pairs=len(keys),
                proven=sum(proven),
                difference=measure.share(mine, its),
                counts=(amounts.wins, amounts.ties, amounts.losses),
            )
        if study.single:
            return


def _refuse_unlike(one: Row, other: Row, by: str) -> None:
    for column in SAME:
        if one[column] != other[column]:
            raise InputError(
                "--pair",
                f"{one['instance']} and {other['instance']} differ in {column}, not only in "
                f"{by}; leave --pair out",
            )


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", help="folder that heteroplace compare wrote")
    parser.add_argument("--by", required=True, metavar="KNOB", help="a line for each of its values")
    parser.add_argument(
        "--pair", action="store_true", help="also compare its values on the same fleet and demand"
    )
    parser.add_argument("--reference", metavar="VALUE", help="of --pair, default the first")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KNOB=VALUE", help="only these instances"
    )
    parser.add_argument(
        "--column", default="unmet_gpus", help="what to compare, default unmet_gpus"
    )
    parser.add_argument(
        "--of", metavar="COLUMN", help=f"as a share of it, default target_gpus or {ONE}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(words)
    try:
        sys.stdout.write(_text(options))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _text(options: argparse.Namespace) -> str:
    of = options.of or ("target_gpus" if options.column == "unmet_gpus" else ONE)
    numeric = {each.name for each in COLUMNS if each.kind in ("integer", "number")}
    for option, name in (("--column", options.column), ("--of", of)):
        if name not in numeric and not (option == "--of" and name == ONE):
            raise InputError(option, f"no column of numbers is called {name!r}")
    measure = Measure(options.column, of)
    results = read_results(options.results)
    study = _narrowed(Study.of(results), options.where)
    found = list(lines(study, options.by, measure))
    paired = list(steps(study, options.by, measure, options.reference)) if options.pair else []
    if options.json:
        record = {
            **_record(results),
            "by": options.by,
            "measure": measure.label,
            "lines": [asdict(each) for each in found],
            "pairs": [asdict(each) for each in paired],
        }
        return json.dumps(record, indent=1) + "\n"
    return _markdown(study, measure, options.by, found, paired)


def _narrowed(study: Study, conditions: Iterable[str]) -> Study:
    pairs = study.pairs
    for condition in conditions:
        name, sign, value = condition.partition("=")
        if not sign:
            raise InputError("--where", f"must be KNOB=VALUE, got {condition!r}")
        pairs = tuple(pair for pair in pairs if knob(pair.right, name) == value)
        if not pairs:
            raise InputError("--where", f"no instance has {condition}")
    return Study(study.results, study.rows, study.left, study.right, pairs, study.failed)


def _record(results: Results) -> dict[str, Any]:
    run = results.manifest.runs[-1] if results.manifest.runs else None
    return {
        "experiment": results.manifest.name,
        "command": results.manifest.command,
        "complete": results.manifest.complete,
        "seeds": {name: list(seeds) for name, seeds in results.manifest.seeds.items()},
        "environment": None if run is None else run.environment.model_dump(mode="json"),
    }


def _markdown(
    study: Study, measure: Measure, by: str, found: Iterable[Line], paired: Sequence[Step]
) -> str:
    left, right = study.left, study.right
    heads = [by, "instances", "proven", "unmet proven", left, right, f"{left} − {right}"]
    heads += ["bound", f"{left} better / equal / worse"]
    seeds = study.results.manifest.seeds
    text = [
        f"{name}: {len(each)} seeds, {min(each)} to {max(each)}" for name, each in seeds.items()
    ]
    if not study.results.manifest.complete:
        text.append("The run is not finished.")
    if study.failed:
        text.append(f"{len(study.failed)} rows failed and are left out.")
    text += ["", f"{measure.label}, 95 % intervals in brackets", "", *_head(heads)]
    for line in found:
        cells = [line.value, line.instances, line.proven, line.unmet_proven]
        cells += [_number(each, measure.scale) for each in (line.left, line.right, line.difference)]
        cells.append("–" if line.bound is None else f"{100 * line.bound:.2f}")
        text.append(_cells([*cells, f"{line.better} / {line.equal} / {line.worse}"]))
    if paired:
        heads = [f"{by}, paired", "profile", "pairs", "both proven", "difference"]
        text += ["", *_head([*heads, "lower / equal / higher"])]
        for step in paired:
            cells = [step.value, step.profile, step.pairs, step.proven]
            cells += [_number(step.difference, measure.scale)]
            text.append(_cells([*cells, " / ".join(map(str, step.counts))]))
    return "\n".join(text) + "\n"


def _head(names: Sequence[str]) -> list[str]:
    return [_cells(names), _cells(["---", *["---:"] * (len(names) - 1)])]


def _cells(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _number(interval: Interval | None, scale: float) -> str:
    if interval is None:
        return "–"
    ends = (scale * each for each in (interval.low, interval.high))
    low, high = (f"{end:.2f}".replace("-", "−") for end in ends)
    return f"{scale * interval.estimate:.2f} [{low}, {high}]".replace("-", "−")


if __name__ == "__main__":
    sys.exit(main())
