"""A real inventory over days: policies and placement, the greedy against the solver.

Nodes of two published inventories, demand of ServeGen's services, the fleet's policies and the
queueing model of heteroplace.simulate. Both arms see the same demand and have the same policies;
only the placement differs.

    python experiments/inventory.py [--seeds N] [--days N] [--data FOLDER] [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import study
from study import Row, Study

from heteroplace import InputError, Profile
from heteroplace.models import ServedModel, load_models, read_rows, same_gpu

if TYPE_CHECKING:
    from heteroplace.policy import Fleet
    from heteroplace.simulate import Demand, Outcome

DERIVED = "derived/nodes_alibaba2026_s0s1s2.csv"
PUBLISHED = "alibaba-gpu-v2023/openb_node_list_gpu_node.csv"
TRACES = ("m-small", "m-mid", "deepseek-r1")
DAY = 86_400.0
INTERVAL = 300.0
TICK = 60.0
# Share of an instance's capacity that the policies aim at; and the most instances of a service over
# those that its peak needs then. Without a limit, latency feedback would ask for ever more where
# GPUs are short.
POLICY_LOAD = 0.7
ROOM = 1.5
ARMS = ("greedy", "solver")
# The 2026 list has big pods of one type each; "mixed" deals the same mini pods out anew.
INVENTORIES = ("alibaba-2026", "alibaba-2026 mixed", "alibaba-2023")

# What the 2023 list calls G2 and G3 is not disclosed; these stand in for them. No capacities are
# known for its other types (T4, P100, V100), nor for GPU-series-1 and -2 of the 2026 list.
STAND_INS = {"G2": "A10", "G3": "A100-SXM4-80GB"}
# Nodes of fewer GPUs are left out: a single A10 decodes a tenth of what a pair of them does.
LEAST_GPUS = 2
# The rule of the derived list: within a type, in the order of the names.
NODES_PER_S1, S1_PER_S2 = 32, 4


@dataclass(frozen=True)
class Tenant:
    """A service of the study.

    Parameters
    ----------
    name
        Of the service.
    trace
        ServeGen's service that it is asked like.
    days
        How many days later than the first its demand begins.
    model
        Served model, by its name in models/.
    priority
        Higher is served first.
    share
        Share of the fleet's GPUs that its peak takes.
    """

    name: str
    trace: str
    days: int
    model: str
    priority: int
    share: float


_TENANTS_2026 = (
    Tenant("chat-mid", "m-mid", 0, "Qwen3-32B", 2, 0.25),
    Tenant("reason", "deepseek-r1", 0, "Llama-3.1-70B", 2, 0.15),
    Tenant("chat-small", "m-small", 0, "Llama-3.1-8B", 1, 0.15),
    Tenant("code-mid", "m-mid", 3, "Llama-3.1-70B", 1, 0.20),
    Tenant("batch-mid", "m-mid", 5, "Qwen3-32B", 0, 0.15),
    Tenant("batch-small", "m-small", 4, "Llama-3.1-8B", 0, 0.10),
)
TENANTS = {
    "alibaba-2026": _TENANTS_2026,
    "alibaba-2026 mixed": _TENANTS_2026,
    "alibaba-2023": (
        Tenant("chat-mid", "m-mid", 0, "Llama-3.1-8B", 2, 0.40),
        Tenant("reason", "deepseek-r1", 0, "Qwen3-32B", 2, 0.04),
        Tenant("chat-small", "m-small", 0, "Llama-3.1-8B", 1, 0.30),
        Tenant("batch-mid", "m-mid", 5, "Llama-3.1-8B", 0, 0.26),
    ),
}


def read_nodes(name: str, data: Path, types: Sequence[str], scale: float) -> list[Row]:
    """Nodes of an inventory whose type has capacities, with the domains of the rule.

    Parameters
    ----------
    name
        Of the inventory.
    data
        Folder of the data.
    types
        GPU types with capacities.
    scale
        Share of the mini pods of every type that is kept, the first ones, at least one.
    """
    if name != "alibaba-2023":
        listed = [
            (row["node"], row["gpu_model"], _gpus(row["gpus"], where), row["s1"], row["s2"])
            for where, row in _rows(data / DERIVED, ("node", "gpu_model", "gpus", "s1", "s2"))
        ]
    else:
        listed = _ruled(_rows(data / PUBLISHED, ("sn", "gpu", "model")))
    minis: dict[tuple[str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for node, gpu_type, gpus, s1, s2 in listed:
        if gpus >= LEAST_GPUS and any(same_gpu(gpu_type, each) for each in types):
            domains = {"cluster": "cluster", "s2": s2, "s1": s1}
            minis[gpu_type, gpus][s1].append(
                {"name": node, "gpu_type": gpu_type, "gpus": gpus, "domains": domains}
            )
    nodes: list[Row] = []
    for domains_of_type in minis.values():
        kept = sorted(domains_of_type)[: max(1, round(scale * len(domains_of_type)))]
        nodes.extend(node for s1 in kept for node in domains_of_type[s1])
    return mixed(nodes) if name.endswith("mixed") else nodes


def _ruled(rows: Sequence[tuple[str, Mapping[str, str]]]) -> list[tuple[str, str, int, str, str]]:
    """Nodes of the 2023 list with domains by the rule of the derived one."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for where, row in rows:
        gpu_type = STAND_INS.get(row["model"], row["model"])
        found[gpu_type, _gpus(row["gpu"], where)].append(row["sn"])
    listed = []
    for (gpu_type, gpus), names in found.items():
        kind = f"{gpu_type}x{gpus}"
        for index, node in enumerate(sorted(names)):
            s1 = index // NODES_PER_S1
            s2 = f"{kind}/s2-{s1 // S1_PER_S2:02d}"
            listed.append((node, gpu_type, gpus, f"{kind}/s1-{s1:03d}", s2))
    return listed


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    return [(f"{path}, line {line}", row) for line, row in read_rows(path, 2**26, columns)]


def _gpus(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= 64:
        raise InputError(where, f"must have a whole number of GPUs up to 64, got {text[:40]!r}")
    return int(text)


def mixed(nodes: Sequence[Row]) -> list[Row]:
    """The nodes with the domains dealt out anew in turn, so that big pods have several types."""
    domains: dict[str, list[Row]] = defaultdict(list)
    for node in nodes:
        domains[node["domains"]["s1"]].append(node)
    by_type: dict[str, list[list[Row]]] = defaultdict(list)
    for members in domains.values():
        by_type[members[0]["gpu_type"]].append(members)
    # Spread every type evenly over the list of all S1 domains, then cut that list into S2 domains.
    placed = sorted(
        ((number + 0.5) / len(minis), name, number)
        for name, minis in by_type.items()
        for number in range(len(minis))
    )
    made = []
    for place, (_, name, number) in enumerate(placed):
        s2 = f"s2-{place // S1_PER_S2:02d}"
        for node in by_type[name][number]:
            made.append({**node, "domains": {**node["domains"], "s2": s2}})
    return made


def ways_of(model: ServedModel, sizes: Mapping[str, int]) -> dict[str, dict[str, Fraction]]:
    """GPU type of the fleet -> role -> best capacity per GPU."""
    found: dict[str, dict[str, Fraction]] = {}
    for name, gpus in sizes.items():
        best = {}
        for role, ways in model.roles.items():
            able = [
                way.per_gpu for way in ways if same_gpu(way.gpu_type, name) and way.gpus <= gpus
            ]
            if able:
                best[role] = max(able)
        if len(best) == len(model.roles):
            found[name] = best
    return found


def build(
    name: str,
    nodes: Sequence[Row],
    models: Mapping[str, ServedModel],
    demand: Mapping[str, Demand],
    load: float,
) -> tuple[Fleet, dict[str, Demand]]:
    """The fleet, and its demand scaled to the inventory.

    Parameters
    ----------
    name
        Of the inventory.
    nodes
        Its nodes.
    models
        Served models by name.
    demand
        Tenant -> demand, unscaled.
    load
        GPUs that all peaks together need, at the load that the policies keep, over the GPUs there
        are.

    Returns
    -------
    tuple
        Fleet; tenant -> scaled demand.
    """
    sizes: dict[str, int] = {}
    gpus: dict[str, int] = defaultdict(int)
    for node in nodes:
        sizes[node["gpu_type"]] = max(node["gpus"], sizes.get(node["gpu_type"], 0))
        gpus[node["gpu_type"]] += node["gpus"]
    from heteroplace.policy import Fleet

    room = {each: float(number) for each, number in gpus.items()}
    services: list[Row] = []
    scaled: dict[str, Demand] = {}
    for tenant in TENANTS[name]:
        ways = ways_of(models[tenant.model], sizes)
        if not ways:
            raise InputError(tenant.name, f"no GPU type of {name} can serve {tenant.model}")
        want = tenant.share * sum(gpus.values())
        # The type with most room left is preferred; the others follow by their room.
        order = sorted(ways, key=lambda each: (-room[each], each))
        room[order[0]] -= want
        home = ways[order[0]]
        mine = demand[tenant.name]
        peak = float(
            np.max(mine.prompt / float(home["prefill"]) + mine.output / float(home["decode"]))
        )
        scaled[tenant.name] = mine.scaled(load * want * POLICY_LOAD / peak)
        services.append(_service(tenant, order, models[tenant.model], sizes, scaled[tenant.name]))
    return (
        Fleet.from_dict(
            {
                "schema": 1,
                "name": name,
                "interval": INTERVAL,
                "served": [
                    models[each].model_dump(mode="json")
                    for each in sorted({tenant.model for tenant in TENANTS[name]})
                ],
                "defaults": {
                    "age": {"max_age": 2 * INTERVAL},
                    "stability": {"cooldown_out": INTERVAL, "cooldown_in": 2 * INTERVAL},
                    "soft_scale_in": {"window": INTERVAL},
                },
                "services": services,
            }
        ),
        scaled,
    )


def _service(
    tenant: Tenant, order: Sequence[str], model: ServedModel, sizes: Mapping[str, int], mine: Demand
) -> Row:
    best = {
        role: model.shapes(role, {order[0]: sizes[order[0]]}, per_type=1)[0] for role in model.roles
    }
    ratio = (
        Fraction(float(mine.prompt.mean() / mine.output.mean())).limit_denominator(1000)
        * best["decode"].capacity
        / best["prefill"].capacity
    )
    target = ratio.limit_denominator(8) or Fraction(1, 8)
    peaks = {"prefill": float(mine.prompt.max()), "decode": float(mine.output.max())}
    most = {
        role: max(4, math.ceil(ROOM * peaks[role] / POLICY_LOAD / float(best[role].capacity)))
        for role in model.roles
    }
    return {
        "name": tenant.name,
        "priority": tenant.priority,
        "model": tenant.model,
        "affinity": {"required": "s2"},
        "roles": {
            role: {"min": 1, "max": most[role], "use": [{"gpu_type": each} for each in order]}
            for role in model.roles
        },
        "ratios": [{"target": str(target), "min": str(target * 2 / 3), "max": str(target * 3 / 2)}],
        "policy": {
            "primary": {"kind": "throughput", "signal": "decode_tps", "load": POLICY_LOAD},
            "latency": [{"signal": "ttft", "slo": "1s"}, {"signal": "tbt", "slo": "50ms"}],
        },
    }


def read_demand(name: str, data: Path, first: int, days: int) -> dict[str, Demand]:
    """Tenant -> demand of some days from day ``first`` of its trace on; round and round."""
    from heteroplace.simulate import read_trace

    read = {each: read_trace(data / f"servegen/{each}_600s.csv")[None] for each in TRACES}
    found = {}
    for tenant in TENANTS[name]:
        whole = read[tenant.trace].without_gaps()
        skip = (tenant.days + first) * DAY % whole.end
        length = days * DAY
        found[tenant.name] = whole.repeated(skip + length).part(skip, length)
    return found


# -- running ---------------------------------------------------------------------------------------


def simulated(
    name: str, arm: str, seed: int, days: int, scale: float, load: float, limit: float, data: Path
) -> list[Row]:
    """One row per tenant and day of one arm."""
    from heteroplace.policy import Cluster
    from heteroplace.simulate import Noise, simulate

    models = {each.name: each for each in load_models(study.ROOT / "models")}
    nodes = read_nodes(name, data, known_types(models), scale)
    demand = read_demand(name, data, seed * days, days)
    fleet, scaled = build(name, nodes, models, demand, load)
    solver = "greedy" if arm == "greedy" else "auto"
    found = simulate(
        fleet,
        Cluster.model_validate({"schema": 1, "nodes": nodes}),
        scaled,
        hours=24.0 * days,
        tick=TICK,
        profile=Profile(solver=solver, time_limit=limit, threads=1),
        noise=Noise(dispersion=1.0),
        seed=seed,
    )
    gpus = sum(node["gpus"] for node in nodes)
    return [
        {
            "inventory": name,
            "arm": arm,
            "seed": seed,
            "day": seed * days + day,
            **measured(found, tenant, day),
            "fleet_nodes": len(nodes),
            "fleet_gpus": gpus,
        }
        for tenant in TENANTS[name]
        for day in range(days)
    ]


def known_types(models: Mapping[str, ServedModel]) -> list[str]:
    """GPU types that can serve a model."""
    return sorted(
        {way.gpu_type for each in models.values() for ways in each.roles.values() for way in ways}
    )


def measured(found: Outcome, tenant: Tenant, day: int) -> Row:
    """What a tenant got on a day."""
    ticks = round(DAY / found.tick)
    rows = slice(day * ticks, (day + 1) * ticks)
    own = {series: values[rows] for series, values in found.of(tenant.name).items()}
    hours = found.tick / 3600
    events = [
        event
        for event in found.events
        if event.service == tenant.name and day * DAY <= event.at < (day + 1) * DAY
    ]
    began = float(own["started"].sum())
    tokens = float(own["tokens"].sum())
    return {
        "service": tenant.name,
        "model": tenant.model,
        "priority": tenant.priority,
        "requests": float(own["requests"].sum()) * found.tick,
        "started": began,
        "waiting": float(own["queued_requests"][-1]),
        "ttft_within": float(own["ttft_within"].sum()),
        "tokens": tokens,
        "tbt_within": float(own["tbt_within"].sum()),
        "gpu_hours": float(own["gpus"].sum()) * hours,
        "unmet_gpu_hours": float(own["unmet_gpus"].sum()) * hours,
        "scale_out": sum(event.action == "out" for event in events),
        "scale_in": sum(event.action == "in" for event in events),
        "rebalance": sum(event.action == "rebalance" for event in events),
        "added": sum(event.added for event in events),
        "removed": sum(event.removed for event in events),
        "restored": sum(event.restored for event in events),
        "crossing": float(own["crossing"].mean()),
        "filled": float(own["filled"].mean()),
    }


def run(options: argparse.Namespace) -> Study:
    """All inventories and arms."""
    study.needed(
        options.data, DERIVED, PUBLISHED, *(f"servegen/{each}_600s.csv" for each in TRACES)
    )
    knobs = (options.days, options.scale, options.load, options.time_limit, options.data)
    calls = [
        (name, arm, seed, *knobs)
        for name in INVENTORIES
        for seed in range(options.seeds)
        for arm in ARMS
    ]
    found = Study("inventory")
    rows = [row for some in study.each("days", simulated, calls, options.workers) for row in some]
    found.tables["days"] = rows
    found.settings = {
        "seeds": list(range(options.seeds)),
        "days": options.days,
        "scale": options.scale,
        "load": options.load,
        "time_limit": options.time_limit,
        "interval": INTERVAL,
        "tick": TICK,
        "stand_ins": STAND_INS,
        "tenants": {name: [vars(each) for each in mine] for name, mine in TENANTS.items()},
    }
    found.shown = [*show_totals(rows), *show_services(rows)]
    found.notes = [
        "Token lengths of 57 % of the requests of ServeGen's m-small and 29 % of m-mid's are "
        "imputed; demand is scaled to the fleet.",
        "G2 and G3 of the 2023 list are not disclosed: A10 and A100 stand in for them.",
        "GPU-hours count GPUs of all types alike; an arm that uses faster ones needs fewer.",
        "Intervals take services and days as independent, which they are not quite.",
    ]
    return found


def show_totals(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Each inventory and arm, and the paired differences over services and days."""
    arms_shown, pairs = [], []
    for (name,), group in study.by(rows, "inventory").items():
        arms = {arm: mine for (arm,), mine in study.by(group, "arm").items()}
        for arm, mine in arms.items():
            total = {key: sum(row[key] for row in mine) for key in SUMMED}
            arms_shown.append(
                {
                    "inventory": name,
                    "GPUs": f"{mine[0]['fleet_gpus']}",
                    "arm": arm,
                    "GPU-hours": f"{total['gpu_hours']:,.0f}",
                    "of fleet": f"{total['gpu_hours'] / _fleet_hours(mine):.1%}",
                    "unmet GPU-h": f"{total['unmet_gpu_hours']:,.1f}",
                    "TTFT kept": f"{_mean_share(mine, 'ttft_within', 'started'):.2%}",
                    "TBT kept": f"{_mean_share(mine, 'tbt_within', 'tokens'):.2%}",
                    "out/in/reb.": f"{total['scale_out']}/{total['scale_in']}/{total['rebalance']}",
                    "+/−/back": f"{total['added']}/{total['removed']}/{total['restored']}",
                }
            )
        solver, greedy = arms["solver"], arms["greedy"]
        pairs.append(
            {
                "inventory": name,
                "pairs": f"{len(solver)}",
                "GPU-hours": _difference(solver, greedy, lambda row: row["gpu_hours"], 1),
                "unmet GPU-h": _difference(solver, greedy, lambda row: row["unmet_gpu_hours"], 2),
                "TTFT kept, pp": _difference(
                    solver, greedy, lambda row: 100 * _share(row, "ttft_within", "started"), 2
                ),
                "TBT kept, pp": _difference(
                    solver, greedy, lambda row: 100 * _share(row, "tbt_within", "tokens"), 3
                ),
                "added": _difference(solver, greedy, lambda row: row["added"], 1),
            }
        )
    return [
        ("Sums over services and days; shares are means over services and days", arms_shown),
        ("Solver minus greedy per service and day [95 % interval]", pairs),
    ]


SUMMED = (
    *("gpu_hours", "unmet_gpu_hours", "scale_out", "scale_in", "rebalance"),
    *("added", "removed", "restored"),
)


def _fleet_hours(rows: Sequence[Row]) -> float:
    days = {(row["seed"], row["day"]) for row in rows}
    return len(days) * 24.0 * float(rows[0]["fleet_gpus"])


def _share(row: Row, part: str, whole: str) -> float:
    """A share of what began; what still waits for prefill has not kept it."""
    total = float(row[whole]) + (float(row["waiting"]) if whole == "started" else 0.0)
    return float(row[part]) / total if total > 0 else 1.0


def _mean_share(rows: Sequence[Row], part: str, whole: str) -> float:
    return statistics.mean(_share(row, part, whole) for row in rows)


def _difference(
    first: Sequence[Row], second: Sequence[Row], value: Callable[[Row], float], places: int
) -> str:
    found = study.compared([value(row) for row in first], [value(row) for row in second])
    counts = found.counts
    return f"{study.plain(found.difference, places)}, {counts.wins}<{counts.ties}={counts.losses}>"


def show_services(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Every service, both arms beside each other."""
    shown = []
    for (name, service), group in study.by(rows, "inventory", "service").items():
        row: Row = {
            "inventory": name,
            "service": service,
            "priority": f"{group[0]['priority']}",
        }
        for arm in ARMS:
            mine = [each for each in group if each["arm"] == arm]
            row[f"{arm}: GPU-h"] = f"{sum(each['gpu_hours'] for each in mine):,.0f}"
            row[f"{arm}: unmet"] = f"{sum(each['unmet_gpu_hours'] for each in mine):,.1f}"
            row[f"{arm}: TTFT"] = f"{_mean_share(mine, 'ttft_within', 'started'):.2%}"
        shown.append(row)
    return [("By service", shown)]


def share(text: str) -> float:
    """Read a number above 0 and up to 4."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 4:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 4, got {text[:40]!r}")
    return value


def options() -> argparse.ArgumentParser:
    """The study's options."""
    made = study.parser("inventory", str(__doc__).split("\n\n")[0], seeds=1)
    study.data_option(made)
    made.add_argument(
        "--days", type=study.count, default=4, metavar="N", help="days in a row; default 4"
    )
    made.add_argument(
        "--scale",
        type=share,
        default=0.25,
        metavar="X",
        help="share of the mini pods of every type that is kept; default 0.25, 1 for all",
    )
    made.add_argument(
        "--load",
        type=share,
        default=1.0,
        metavar="X",
        help="GPUs that the peaks of all services together need over GPUs; default 1",
    )
    made.add_argument(
        "--time-limit", type=study.seconds, default=1.0, metavar="S", help="of a solve, default 1"
    )
    return made


if __name__ == "__main__":
    sys.exit(study.main(options(), run))
