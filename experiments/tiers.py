"""RDMA tiers: whether a tight service finds a high-tier place after a day of comings and goings.

A day of cycles on a fleet with all three tiers. Loose services (any network, or one big pod), and
tight ones whose prefill on L20 and decode on H20 must share a mini pod, arrive, change their size
and leave. Every arm sees the same day. Only the mini pods of two GPU types (tier high) can hold a
tight service, and there are few; a probe, which changes nothing, asks each hour what would find a
place there.

    python experiments/tiers.py [--seeds N] [--loads X,Y] [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import study
from study import Row, Study

from heteroplace import Instance, Profile, Session
from heteroplace.topology import TIERS, TreeView

LEFT, RIGHT = "L20", "H20"
NODES_PER_S1 = 4
NODE_GPUS = 8
# GPU types of the nodes of each mini pod, by big pod: two of tier high, six medium, eight low.
FLEET = {
    "mixed": ((LEFT, LEFT, RIGHT, RIGHT),) * 2 + ((LEFT,) * 4, (RIGHT,) * 4),
    "hetero": ((LEFT,) * 4, (LEFT,) * 4, (RIGHT,) * 4, (RIGHT,) * 4),
    "left": ((LEFT,) * 4,) * 4,
    "right": ((RIGHT,) * 4,) * 4,
}
GPUS = NODES_PER_S1 * NODE_GPUS * sum(map(len, FLEET.values()))
CYCLES = 48
HOURS_PER_CYCLE = 0.5
MEAN_LIFE = 8.0
RESIZE = 0.03
# Share of the arrivals, and units of prefill and decode that they ask for at most.
KINDS = {"loose": (0.75, 8), "cross": (0.17, 4), "tight": (0.08, 3)}
POD = 4
PROBES = (1, 2, 4)
Arm = Literal["greedy", "greedy-pods", "solver", "solver, moves", "solver, blind"]
ARMS: tuple[Arm, ...] = ("greedy", "greedy-pods", "solver", "solver, moves", "solver, blind")
MOVES = 4


@dataclass(frozen=True)
class Event:
    """What happens before a cycle.

    Parameters
    ----------
    kind
        ``in`` a service arrives, ``size`` its target changes, ``out`` it leaves.
    service
        Its name.
    units
        Units of prefill and decode that it asks for from now on.
    made
        The service, when it arrives.
    """

    kind: Literal["in", "size", "out"]
    service: str
    units: int = 0
    made: Row | None = None


def nodes() -> list[Row]:
    """The fleet's nodes."""
    made = []
    for s2, minis in FLEET.items():
        for number, types in enumerate(minis):
            for index, gpu_type in enumerate(types):
                s1 = f"{s2}-{number}"
                made.append(
                    {
                        "name": f"{s1}-{index}",
                        "gpu_type": gpu_type,
                        "gpus": NODE_GPUS,
                        "domains": {"cluster": "c", "s2": s2, "s1": s1},
                    }
                )
    return made


def service(name: str, kind: str, units: int, rng: np.random.Generator) -> Row:
    """A service; one unit is one prefill and one decode instance."""
    if kind == "loose":
        size = int(rng.choice((1, 2, 4)))
        first = LEFT if rng.random() < 0.5 else RIGHT
        order = (first, RIGHT if first == LEFT else LEFT)
        types: dict[str, Sequence[str]] = {"prefill": order, "decode": order}
        required = None if rng.random() < 0.5 else "s2"
    else:
        size, types = POD, {"prefill": (LEFT,), "decode": (RIGHT,)}
        required = "s1" if kind == "tight" else "s2"
    return {
        "name": name,
        "priority": 0,
        "affinity": {"required": required},
        "roles": {
            role: {
                "target": units,
                "shapes": [
                    {"name": each, "pods": [{"gpu_type": each, "gpus": size}]} for each in ways
                ],
            }
            for role, ways in types.items()
        },
        "ratios": [{"numerator": "prefill", "denominator": "decode", "min": 1, "max": 1}],
    }


def size_of(made: Row) -> int:
    """GPUs of one unit of a service."""
    return sum(role["shapes"][0]["pods"][0]["gpus"] for role in made["roles"].values())


def mean_gpus() -> float:
    """GPUs that an arriving service asks for on average."""
    pods = {"loose": statistics.mean((1, 2, 4)), "cross": POD, "tight": POD}
    return sum(share * (most + 1) / 2 * 2 * pods[kind] for kind, (share, most) in KINDS.items())


def day(load: float, seed: int) -> list[list[Event]]:
    """The events before each cycle; by Little's law ``load`` of the fleet is asked for on average.

    The first cycle holds a stationary population, so there is no time in which the fleet fills.
    """
    rng = np.random.default_rng([seed, round(load * 1000)])
    alive = load * GPUS / mean_gpus()
    rate = alive / MEAN_LIFE * HOURS_PER_CYCLE
    events: list[list[Event]] = [[] for _ in range(CYCLES)]
    number = 0
    for cycle in range(CYCLES):
        for _ in range(int(rng.poisson(alive if cycle == 0 else rate))):
            kind = str(rng.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))
            most = KINDS[kind][1]
            units = int(rng.integers(1, most + 1))
            made = service(f"{kind}-{number}", kind, units, rng)
            number += 1
            events[cycle].append(Event("in", made["name"], units, made))
            gone = cycle + 1 + int(rng.exponential(MEAN_LIFE) / HOURS_PER_CYCLE)
            for later in range(cycle + 1, min(gone, CYCLES)):
                if rng.random() < RESIZE:
                    units = int(rng.integers(1, most + 1))
                    events[later].append(Event("size", made["name"], units))
            if gone < CYCLES:
                events[gone].append(Event("out", made["name"]))
    return events


def start(arm: Arm) -> Instance:
    """The empty fleet with one service that asks for nothing, for an instance needs one."""
    weights = {"rdma": 0} if arm == "solver, blind" else {}
    return Instance.from_dict(
        {
            "schema": 1,
            "nodes": nodes(),
            "services": [service("none", "loose", 0, np.random.default_rng(0))],
            "objective": {"weights": weights},
            "cycle": {"max_migrations": MOVES if arm == "solver, moves" else 0},
        }
    )


def profile_of(arm: Arm, limit: float) -> Profile:
    """How an arm solves."""
    if arm == "greedy" or arm == "greedy-pods":
        return Profile(solver=arm)
    return Profile(solver="auto", time_limit=limit, threads=1)


def take_in(session: Session, events: Sequence[Event]) -> None:
    """Tell the session what happened; a service that leaves frees its GPUs at once."""
    gone = {event.service for event in events if event.kind == "out"}
    session.update(
        finished={
            group.name: [str(each.name) for each in group.instances]
            for group in session.instance.running
            if group.service in gone
        },
        remove_services=gone,
        add_services=[event.made for event in events if event.made is not None],
        targets={
            event.service: {"prefill": event.units, "decode": event.units}
            for event in events
            if event.kind == "size"
        },
    )


def served(instance: Instance) -> dict[str, int]:
    """Whole units of each service: prefill and decode in one group, for they work together."""
    found: dict[str, int] = defaultdict(int)
    for group in instance.running:
        roles = [each.role for each in group.instances if each.state == "ready"]
        found[group.service] += min(roles.count("prefill"), roles.count("decode"))
    return found


def places(instance: Instance) -> list[int]:
    """Units of a tight service that each mini pod of tier high could take now."""
    tree = TreeView(instance)
    rooms: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for cell in tree.cells:
        if TIERS[cell.tier] == "high":
            rooms[cell.domain][cell.gpu_type] += sum(tree.free[node] // POD for node in cell.nodes)
    return [min(room[LEFT], room[RIGHT]) for room in rooms.values()]


def high_gpus(instance: Instance) -> tuple[int, int]:
    """GPUs of tier high that services take which are not tight, and that tight ones take."""
    tree = TreeView(instance)
    taken = {"loose": 0, "tight": 0}
    for group in instance.running:
        kind = "tight" if group.service.startswith("tight") else "loose"
        made = instance.services[instance.service_index[group.service]]
        for each in group.instances:
            role = made.roles[each.role]
            shape = role.shapes[role.shape_index[each.shape]]
            for node, (_, gpus) in zip(each.nodes, shape.pod_list, strict=True):
                if TIERS[tree.node_tier[instance.node_index[node]]] == "high":
                    taken[kind] += gpus
    return taken["loose"], taken["tight"]


def run_day(arm: Arm, load: float, seed: int, limit: float) -> tuple[Row, list[Row]]:
    """One day of one arm: its summary and a row per cycle."""
    session = Session(start(arm), profile_of(arm, limit))
    asked: dict[str, int] = {}
    unit: dict[str, int] = {}
    cycles: list[Row] = []
    arrived = at_once = moved = proven = invalid = 0
    for cycle, events in enumerate(day(load, seed)):
        take_in(session, events)
        for event in events:
            if event.kind == "out":
                del asked[event.service]
            else:
                asked[event.service] = event.units
            if event.made is not None:
                unit[event.service] = size_of(event.made)
        result = session.solve()
        session.apply(result.plan)
        study.settle()
        proven += result.status == "optimal"
        invalid += result.status == "invalid"
        moved += sum(len(group.moved) for group in result.plan.groups)
        has = served(session.instance)
        if cycle:
            news = [
                each for each in events if each.kind == "in" and each.service.startswith("tight")
            ]
            arrived += len(news)
            at_once += sum(has.get(each.service, 0) >= asked[each.service] for each in news)
        missing = {
            kind: sum(
                max(0, units - has.get(name, 0)) * unit[name]
                for name, units in asked.items()
                if name.startswith(kind)
            )
            for kind in KINDS
        }
        loose, tight = high_gpus(session.instance)
        room = places(session.instance)
        cycles.append(
            {
                "arm": arm,
                "load": load,
                "seed": seed,
                "cycle": cycle,
                "asked_gpus": sum(units * unit[name] for name, units in asked.items()),
                **{f"unmet_gpus_{kind}": gpus for kind, gpus in missing.items()},
                "high_gpus_not_tight": loose,
                "high_gpus_tight": tight,
                "places_best_mini_pod": max(room),
                "places": sum(room),
                "status": result.status,
                "seconds": sum(
                    getattr(result.seconds, phase) for phase in ("build", "solve", "assign")
                ),
            }
        )
    last = cycles[-1]
    hourly = cycles[1::2]
    summary = {
        "arm": arm,
        "load": load,
        "seed": seed,
        **{f"finds_{units}": int(last["places_best_mini_pod"] >= units) for units in PROBES},
        **{
            f"finds_{units}_hourly": statistics.mean(
                row["places_best_mini_pod"] >= units for row in hourly
            )
            for units in PROBES
        },
        "places": last["places"],
        "tight_arrived": arrived,
        "tight_served_at_once": at_once,
        **{
            f"unmet_gpu_hours_{kind}": HOURS_PER_CYCLE
            * sum(row[f"unmet_gpus_{kind}"] for row in cycles)
            for kind in KINDS
        },
        "asked_gpu_hours": HOURS_PER_CYCLE * sum(row["asked_gpus"] for row in cycles),
        "high_gpus_not_tight": statistics.mean(row["high_gpus_not_tight"] for row in cycles),
        "high_gpus_tight": statistics.mean(row["high_gpus_tight"] for row in cycles),
        "moved": moved,
        "cycles_proven": proven,
        "cycles_invalid": invalid,
        "seconds": sum(row["seconds"] for row in cycles),
    }
    return summary, cycles


def run_days(load: float, seed: int, limit: float) -> list[tuple[Row, list[Row]]]:
    """The same day in every arm."""
    return [run_day(arm, load, seed, limit) for arm in ARMS]


# -- the study -------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> Study:
    """All days of all arms."""
    calls = [
        (load, seed, options.time_limit) for load in options.loads for seed in range(options.seeds)
    ]
    found = [one for some in study.each("days", run_days, calls, options.workers) for one in some]
    made = Study("tiers")
    made.tables = {
        "days": [summary for summary, _ in found],
        "cycles": [row for _, cycles in found for row in cycles],
    }
    made.settings = {
        "seeds": list(range(options.seeds)),
        "loads": options.loads,
        "time_limit": options.time_limit,
        "fleet": FLEET,
        "gpus": GPUS,
        "cycles": CYCLES,
        "hours_per_cycle": HOURS_PER_CYCLE,
        "mean_life_hours": MEAN_LIFE,
        "resize_per_cycle": RESIZE,
        "kinds_share_and_most_units": KINDS,
        "max_migrations": MOVES,
    }
    made.shown = [*show_places(made.tables["days"]), *show_service(made.tables["days"])]
    made.notes = [
        "n units: n prefill instances of four L20 and n decode instances of four H20 in one mini "
        f"pod; an empty one of tier high takes {NODES_PER_S1 // 2 * NODE_GPUS // POD}.",
        "greedy-pods counts what it placed as served only where prefill and decode are in one "
        "group.",
    ]
    return made


def _arms(rows: Sequence[Row]) -> Mapping[Any, list[Row]]:
    return {arm: mine for (arm,), mine in study.by(rows, "arm").items()}


def show_places(days: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Probes: at the end of the day, and each hour."""
    shown = []
    for (load,), group in study.by(days, "load").items():
        arms = _arms(group)
        rows = []
        for arm, mine in arms.items():
            row: Row = {"arm": arm}
            for units in PROBES:
                ended = study.mean_of([each[f"finds_{units}"] for each in mine])
                row[f"{units} at 24 h"] = study.percent(ended, 0)
            for units in PROBES:
                hourly = study.mean_of([each[f"finds_{units}_hourly"] for each in mine])
                row[f"{units} hourly"] = study.percent(hourly, 0)
            rows.append(row)
        shown.append((f"Load {load:g}: share of probes of n units that find a place", rows))
        rows = []
        for arm, mine in arms.items():
            if arm == "solver":
                continue
            row = {"solver minus": arm}
            for name in ("", "_hourly"):
                for units in PROBES:
                    key = f"finds_{units}{name}"
                    pair = study.compared(
                        [each[key] for each in arms["solver"]], [each[key] for each in mine]
                    )
                    where = "hourly" if name else "at 24 h"
                    row[f"{units} {where}"] = study.points(pair.difference, 0)
            rows.append(row)
        shown.append((f"Load {load:g}: difference in percentage points, paired by seed", rows))
    return shown


def show_service(days: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """What the day's own services got."""
    shown = []
    for (load,), group in study.by(days, "load").items():
        rows = []
        for arm, mine in _arms(group).items():
            at_once = sum(each["tight_served_at_once"] for each in mine)
            arrived = sum(each["tight_arrived"] for each in mine)
            row: Row = {"arm": arm, "tight at once": f"{at_once}/{arrived}"}
            for kind in KINDS:
                unmet = study.mean_of([each[f"unmet_gpu_hours_{kind}"] for each in mine])
                row[f"unmet {kind}"] = study.plain(unmet, 0)
            row["high, not tight"] = (
                f"{statistics.mean(e['high_gpus_not_tight'] for e in mine):.1f}"
            )
            row["high, tight"] = f"{statistics.mean(e['high_gpus_tight'] for e in mine):.1f}"
            row["moves"] = f"{statistics.mean(e['moved'] for e in mine):.0f}"
            proven = sum(e["cycles_proven"] for e in mine) / CYCLES / len(mine)
            row["proven"] = "–" if str(arm).startswith("greedy") else f"{proven:.0%}"
            row["s/cycle"] = f"{sum(e['seconds'] for e in mine) / CYCLES / len(mine):.3f}"
            rows.append(row)
        shown.append(
            (f"Load {load:g}: GPU-hours unmet in a day, mean GPUs on tier high, moves a day", rows)
        )
    return shown


def loads(text: str) -> list[float]:
    """Read loads."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < each <= 2 for each in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"must be different numbers up to 2, got {text[:40]!r}")
    return found


def options() -> argparse.ArgumentParser:
    """The study's options."""
    made = study.parser("tiers", str(__doc__).split("\n\n")[0], seeds=24)
    made.add_argument(
        "--loads",
        type=loads,
        default=[0.7, 0.85, 1.0],
        metavar="X,Y",
        help="GPUs asked for over GPUs, on average; default 0.7,0.85,1",
    )
    made.add_argument(
        "--time-limit", type=study.seconds, default=1.0, metavar="S", help="of a solve, default 1"
    )
    return made


if __name__ == "__main__":
    sys.exit(study.main(options(), run))
