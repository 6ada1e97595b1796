"""What the seconds of a solve go into: `python benchmarks/stages.py --help`.

Solves seeded instances once each and adds up the stages that the solver tells of on the logger
`heteroplace.stages`; the median over the seeds of each, in seconds and as a share of the total.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import time
from collections import defaultdict

from heteroplace import Profile, solve
from heteroplace.generate import FAMILIES, generate

LOG = logging.getLogger("heteroplace.stages")


class Stages(logging.Handler):
    """Adds up the seconds of every stage."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)

    def emit(self, record: logging.LogRecord) -> None:
        self.seconds[record.__dict__["stage"]] += record.__dict__["seconds"]


def profile(family: str, load: float | None, seed: int, limit: float) -> dict[str, float]:
    """Seconds of each stage of one solve, and the total."""
    knobs = FAMILIES[family] if load is None else FAMILIES[family].model_copy(update={"load": load})
    instance = generate(knobs, seed)
    stages = Stages()
    LOG.addHandler(stages)
    gc.collect()
    began = time.perf_counter()
    try:
        result = solve(instance, Profile(time_limit=limit))
    finally:
        LOG.removeHandler(stages)
    total = time.perf_counter() - began
    open_step = next((step for step in result.steps if not step.proven), None)
    reached = "optimal"
    if open_step is not None:
        reached = f"{open_step.name} {open_step.value:g}, bound {open_step.bound}"
    sys.stderr.write(f"{family} seed {seed}: {total:.3f} s, {reached}\n")
    return {**stages.seconds, "other": total - sum(stages.seconds.values()), "total": total}


def main() -> None:
    """Print a table in Markdown, a row for each stage and a column for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        default=["cycle:0.4", "replan:1", "large:10", "region:30"],
        metavar="FAMILY[@LOAD]:SECONDS",
        help="default cycle:0.4 replan:1 large:10 region:30",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds from 0 on, default 3")
    arguments = parser.parse_args()
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False
    solve(generate(FAMILIES["moe"], 0), Profile(time_limit=1.0))  # engines are imported
    columns: list[dict[str, float]] = []
    for case in arguments.cases:
        name, _, limit = case.partition(":")
        family, _, load = name.partition("@")
        if family not in FAMILIES or not limit:
            parser.error(f"{case!r} is not FAMILY[@LOAD]:SECONDS; families: {', '.join(FAMILIES)}")
        runs = [
            profile(family, float(load) if load else None, seed, float(limit))
            for seed in range(arguments.seeds)
        ]
        stages = dict.fromkeys(stage for run in runs for stage in run)
        columns.append(
            {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in stages}
        )
    rows = dict.fromkeys(stage for column in columns for stage in column if stage != "total")
    lines = [f"| stage | {' | '.join(f'`{case}`' for case in arguments.cases)} |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for stage in (*rows, "total"):
        cells = [
            f"{column.get(stage, 0.0):.3f} ({column.get(stage, 0.0) / column['total']:.0%})"
            for column in columns
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
