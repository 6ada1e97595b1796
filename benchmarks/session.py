"""How much sooner a session solves again: `python benchmarks/session.py --help`.

A first solve and its plan, then in every cycle a few changes, the second solve of the session, and
`heteroplace.solve` on an equal instance that is new: in memory, and from its JSON. Values must be
equal with the greedy and where both prove them; at a time limit they may differ, and the last line
says how often which is better. Times are minima over the repeats of one cycle.
"""

from __future__ import annotations

import argparse
import copy
import gc
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from heteroplace import Instance, Profile, Result, Session, solve
from heteroplace.generate import FAMILIES, generate

T = TypeVar("T")
PHASES = ("update", "build", "solve", "assign", "other", "total")
KINDS = ("session", "scratch", "json")
Row = dict[str, dict[str, float]]


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, and what it returns."""
    gc.collect()
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def targets(instance: Instance, rng: random.Random, share: float) -> dict[str, Any]:
    """New targets for a share of the services, up or down by one instance."""
    services = rng.sample(instance.services, max(1, round(share * len(instance.services))))
    step = {service.name: rng.choice((-1, 1, 1)) for service in services}
    return {
        service.name: {
            name: max(role.min, role.target + step[service.name] * role.shapes[0].capacity)
            for name, role in service.roles.items()
        }
        for service in services
    }


def delta(session: Session, rng: random.Random, share: float, nodes: bool) -> dict[str, Any]:
    """One cycle's changes."""
    instance = session.instance
    group = rng.choice(instance.running)
    found: dict[str, Any] = {
        "targets": targets(instance, rng, share),
        "finished": {group.name: [group.instances[0].name]},
    }
    if not nodes:
        return {**found, "cordon": [rng.choice(instance.nodes).name]}
    busy = {node for group in instance.running for each in group.instances for node in each.nodes}
    out = rng.sample([node for node in instance.nodes if node.name not in busy], 2)
    found["remove_nodes"] = [node.name for node in out]
    found["add_nodes"] = [
        node.model_copy(update={"name": f"{node.name}-again", "schedulable": True}) for node in out
    ]
    return found


def phases(seconds: float, result: Result, update: float = 0.0) -> dict[str, float]:
    """Seconds by phase; what no phase counts is `other`."""
    known = {name: getattr(result.seconds, name) for name in ("build", "solve", "assign")}
    other = max(0.0, seconds - sum(known.values()))
    return {"update": update, **known, "other": other, "total": update + seconds}


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """The run with the least total."""
    return min(runs, key=lambda run: run["total"])


def cycle(
    session: Session, changes: dict[str, Any], profile: Profile, repeats: int
) -> tuple[Session, Row, str]:
    """Solve again after some changes, and from scratch.

    Returns the session after it, the phases of each kind of solve, and how the session's values
    compare with those from scratch.
    """
    again, scratch, read = [], [], []
    for _ in range(repeats):
        # The parts of a session are replaced, not changed, so a shallow copy is a session.
        trial = copy.copy(session)
        update, _ = timed(lambda trial=trial: trial.update(**changes))  # type: ignore[misc]
        seconds, found = timed(trial.solve)
        again.append(phases(seconds, found, update))
    text = trial.instance.to_json()
    for _ in range(repeats):
        parse, instance = timed(lambda: Instance.from_json(text))
        seconds, other = timed(lambda instance=instance: solve(instance, profile))  # type: ignore[misc]
        scratch.append(phases(seconds, other))
        read.append(phases(seconds, other, parse))
    assert found.instance_digest == other.instance_digest
    values, others = ([step.value for step in each.steps] for each in (found, other))
    outcome = "equal" if values == others else "better" if values < others else "worse"
    row = dict(zip(KINDS, (least(again), least(scratch), least(read)), strict=True))
    return trial, row, outcome


def table(rows: list[Row], outcomes: Counter[str]) -> list[str]:
    """Medians in milliseconds, ratios and outcomes."""
    lines = [f"{'ms':9}" + "".join(f"{name:>9}" for name in PHASES)]
    for kind in KINDS:
        median = [statistics.median(row[kind][phase] for row in rows) for phase in PHASES]
        lines.append(f"{kind:9}" + "".join(f"{1000 * value:9.2f}" for value in median))
    for kind in KINDS[1:]:
        ratios = [row[kind]["total"] / row["session"]["total"] for row in rows]
        lines.append(
            f"ratio to {kind}: median {statistics.median(ratios):.2f}, worst {min(ratios):.2f}"
        )
    counts = ", ".join(f"{outcomes[name]} {name}" for name in ("equal", "better", "worse"))
    return [*lines, f"the session's objective values: {counts}"]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="cycle", choices=sorted(FAMILIES))
    parser.add_argument("--solver", default="greedy")
    parser.add_argument("--time-limit", type=float)
    parser.add_argument(
        "--scratch-time-limit", type=float, help="for the solves from scratch; default the same"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05, help="of services with new targets")
    parser.add_argument("--nodes", action="store_true", help="two nodes go and two come")
    parser.add_argument("--keep-plan", action="store_true", help="carry no plan out")
    given = parser.parse_args()
    profile = Profile(solver=given.solver, time_limit=given.time_limit)
    limit = given.scratch_time_limit or given.time_limit
    rng = random.Random(given.seed)
    session = Session(generate(FAMILIES[given.family], given.seed), profile)
    plan = session.solve().plan
    rows: list[Row] = []
    outcomes: Counter[str] = Counter()
    for _ in range(given.cycles):
        if not given.keep_plan:
            session.apply(plan)
        changes = delta(session, rng, given.share, given.nodes)
        scratch = profile.model_copy(update={"time_limit": limit})
        session, row, outcome = cycle(session, changes, scratch, given.repeats)
        plan = session.solve().plan
        rows.append(row)
        outcomes[outcome] += 1
    what = f"{given.family} {given.seed}, {given.solver}, limits {given.time_limit} and {limit} s"
    lines = [f"{what}: medians of {len(rows)} cycles", *table(rows, outcomes)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
