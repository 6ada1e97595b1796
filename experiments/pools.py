"""What heterogeneous pools save: prefill and decode each on its best GPU type, or both on one.

Three parts. *Prices*: the cost of a generated token for every served model, prompt length and
ratio of prompt to generated tokens, with GPUs of every type for sale. *Pairs*: for two GPU types,
at which ratio of their prices a mixed pool pays and how much at most; this needs no price at all.
*Fleet*: the same choice where each type is scarce, placed by the solver on a small fleet.

    python experiments/pools.py [--seeds N] [--data FOLDER] [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import study
from study import Row, Study

from heteroplace import Instance, Profile, Result, solve
from heteroplace.errors import InputError
from heteroplace.models import ServedModel, models_from_csv, positive, read_rows
from heteroplace.plan import ProvenStep

CAPACITIES = "aiconfigurator/capacity_by_gpu_role.csv"
PRICES = "gpu-prices/gpu_prices.csv"
LENGTHS = (2048, 8192)
# Prompt tokens per generated token; 7.1 and 10.5 are services A and B of the paper's Fig. 4.
RATIOS = (1.0, 2.0, 4.0, 7.1, 10.5, 16.0, 32.0)
PAPER_RATIO = 7.1
PAPER_PENALTY = 0.41
DRAWS = 2000

# Names in the price list that stand for a GPU type. Those marked False are another variant of it.
LISTED = {
    "a10": {"A10": True},
    "a100_sxm": {"A100-80GB": False, "A100-80GB-PCIe": False, "A100-80GB-PCIe-NVLink": False},
    "a800_sxm": {"A800-PCIe": False},
    "b200_sxm": {"B200": True},
    "h100_sxm": {"H100-SXM": True},
    "h200_sxm": {"H200-SXM": True},
    "l4": {"L4": True},
    "l40s": {"L40S": True},
    "rtx_pro_6000_server": {"RTX PRO 6000 96GB": True},
}

# Nodes of 8 GPUs by type. The second has the proportions of the inventory in derived/ (432 nodes of
# A100, 219 of H800, 22 of A800).
FLEETS = {
    "quarters": {"a100_sxm": 8, "h100_sxm": 8, "h200_sxm": 8, "l40s": 8},
    "inventory": {"a100_sxm": 20, "h800_sxm": 10, "a800_sxm": 2},
}
# No price is listed for an H800; where one is needed, an H100's stands in.
STAND_IN = {"h800_sxm": "h100_sxm"}
NODE_GPUS = 8
SERVICES = 6
LOADS = (0.5, 0.8, 1.1)
SERVICE_RATIOS = (4.0, 7.1, 10.5, 16.0)
# A shape that costs more than so many times the cheapest one per token is not offered.
DEAREST = 4.0
MODELS = ("Meta-Llama-3.1-8B", "Qwen3-30B-A3B", "Qwen3-32B", "Meta-Llama-3.1-70B")
ARMS = ("one type", "mixed", "mixed, greedy")


@dataclass(frozen=True)
class Best:
    """The best way of a GPU type to run a role.

    Parameters
    ----------
    per_gpu
        Tokens per second of one GPU.
    gpus
        GPUs of the instance.
    estimated
        Whether the capacity was scaled from another GPU type.
    """

    per_gpu: float
    gpus: int
    estimated: bool


def short(model: str) -> str:
    """A model's name without its publisher."""
    return model.rsplit("/", 1)[-1]


def best_ways(model: ServedModel) -> dict[str, dict[str, Best]]:
    """GPU type -> role -> best capacity per GPU, for the types that can do both."""
    found: dict[str, dict[str, Best]] = defaultdict(dict)
    for role, ways in model.roles.items():
        for way in ways:
            mine = Best(float(way.per_gpu), way.gpus, way.estimated)
            known = found[way.gpu_type].get(role)
            if known is None or mine.per_gpu > known.per_gpu:
                found[way.gpu_type][role] = mine
    return {name: roles for name, roles in sorted(found.items()) if len(roles) == 2}


def read_quotes(path: Path) -> dict[str, list[float]]:
    """GPU type -> listed prices in USD per GPU-hour."""
    quotes: dict[str, list[float]] = defaultdict(list)
    for line, row in read_rows(path, 2**20, ("gpu", "usd_per_gpu_hour")):
        where = f"{path}, line {line}"
        price = float(positive(row["usd_per_gpu_hour"], where, "usd_per_gpu_hour"))
        for system, names in LISTED.items():
            if row["gpu"] in names:
                quotes[system].append(price)
    if not quotes:
        raise InputError(str(path), "holds no price of a GPU type that is known here")
    return dict(quotes)


# -- GPUs of every type for sale -------------------------------------------------------------------


def token_cost(ways: Mapping[str, Best], price: float, ratio: float) -> tuple[float, float]:
    """USD per million generated tokens for prefill and for decode on one GPU type."""
    return (
        ratio * price / 3600 / ways["prefill"].per_gpu * 1e6,
        price / 3600 / ways["decode"].per_gpu * 1e6,
    )


def choices(
    ways: Mapping[str, Mapping[str, Best]], prices: Mapping[str, float], ratio: float
) -> Row:
    """The cheapest single type and the cheapest pair, with their costs."""
    costs = {
        name: token_cost(roles, prices[name], ratio)
        for name, roles in ways.items()
        if name in prices
    }
    single = min(costs, key=lambda name: sum(costs[name]))
    prefill = min(costs, key=lambda name: costs[name][0])
    decode = min(costs, key=lambda name: costs[name][1])
    mixed = costs[prefill][0] + costs[decode][1]
    others = sorted(sum(each) / mixed - 1 for each in costs.values())
    return {
        "one_type": single,
        "one_type_usd": sum(costs[single]),
        "prefill_on": prefill,
        "decode_on": decode,
        "mixed_usd": mixed,
        "penalty": sum(costs[single]) / mixed - 1,
        "penalty_median_type": statistics.median(others),
        "types": len(costs),
        "types_within_paper": sum(each <= PAPER_PENALTY for each in others),
    }


def priced(
    models: Mapping[int, Sequence[ServedModel]], quotes: Mapping[str, Sequence[float]]
) -> list[Row]:
    """One row per model, prompt length, ratio and set of capacities."""
    rows = []
    middle = {name: statistics.median_low(listed) for name, listed in quotes.items()}
    rng = np.random.default_rng(0)
    drawn = [
        {name: float(rng.choice(listed)) for name, listed in quotes.items()} for _ in range(DRAWS)
    ]
    for length, served in models.items():
        for model in served:
            every = best_ways(model)
            for measured in (True, False):
                ways = {
                    name: roles
                    for name, roles in every.items()
                    if not (measured and any(each.estimated for each in roles.values()))
                }
                if not set(ways) & set(quotes):
                    continue
                for ratio in RATIOS:
                    found = choices(ways, middle, ratio)
                    spread = np.quantile(penalties(ways, drawn, ratio), (0.0, 1.0))
                    used = (found["one_type"], found["prefill_on"], found["decode_on"])
                    rows.append(
                        {
                            "model": short(model.name),
                            "prompt_tokens": length,
                            "prompt_per_output": ratio,
                            "estimates": not measured,
                            **found,
                            "penalty_least": float(spread[0]),
                            "penalty_most": float(spread[1]),
                            "uses_estimate": any(
                                each.estimated for name in used for each in ways[name].values()
                            ),
                            "uses_variant_price": any(
                                not all(LISTED[name].values()) for name in used
                            ),
                        }
                    )
    return rows


def penalties(
    ways: Mapping[str, Mapping[str, Best]], drawn: Sequence[Mapping[str, float]], ratio: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Penalty of the cheapest single type under each draw of prices, shape (draws,)."""
    names = [name for name in ways if name in drawn[0]]
    prices = np.array([[each[name] for name in names] for each in drawn])
    unit = np.array([token_cost(ways[name], 1.0, ratio) for name in names])
    prefill, decode = prices * unit[:, 0], prices * unit[:, 1]
    found: np.ndarray[Any, np.dtype[np.float64]] = (prefill + decode).min(axis=1) / (
        prefill.min(axis=1) + decode.min(axis=1)
    ) - 1
    return found


# -- two types, whatever they cost -----------------------------------------------------------------


def pair_row(first: Mapping[str, Best], second: Mapping[str, Best], ratio: float) -> Row | None:
    """Prefill on the first type, decode on the second: where and how much it saves at most.

    With q the price of the second over that of the first, a generated token costs, in GPU-seconds
    of the first: a + q·d mixed, a + b on the first alone, q·(c + d) on the second alone. Mixing
    pays for a/c < q < b/d; the penalty of the better single type is largest where both cost the
    same.

    Parameters
    ----------
    first, second
        Role -> best capacity.
    ratio
        Prompt tokens per generated token.

    Returns
    -------
    dict or None
        None if mixing this way pays at no price.
    """
    a, b = ratio / first["prefill"].per_gpu, 1 / first["decode"].per_gpu
    c, d = ratio / second["prefill"].per_gpu, 1 / second["decode"].per_gpu
    if not a / c < b / d:
        return None
    equal = (a + b) / (c + d)
    return {
        "pays_from_price_ratio": a / c,
        "pays_to_price_ratio": b / d,
        "largest_penalty": (a + b) / (a + equal * d) - 1,
        "at_price_ratio": equal,
    }


def pairs(models: Sequence[ServedModel], length: int) -> list[Row]:
    """One row per model, ratio and ordered pair of types for which mixing can pay."""
    rows = []
    for model in models:
        ways = best_ways(model)
        for ratio in RATIOS:
            for first in ways:
                for second in ways:
                    found = None if first == second else pair_row(ways[first], ways[second], ratio)
                    if found is not None:
                        both = (*ways[first].values(), *ways[second].values())
                        rows.append(
                            {
                                "model": short(model.name),
                                "prompt_tokens": length,
                                "prompt_per_output": ratio,
                                "prefill_on": first,
                                "decode_on": second,
                                **found,
                                "estimated": any(each.estimated for each in both),
                            }
                        )
    return rows


# -- a fleet on which every type is scarce ---------------------------------------------------------


def fleet_prices(
    fleet: Mapping[str, int], quotes: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """USD per GPU-hour of each type of a fleet: the (lower) median of what is listed."""
    found = {}
    for name in fleet:
        listed = quotes.get(name) or quotes.get(STAND_IN.get(name, ""))
        if not listed:
            raise InputError(PRICES, f"lists no price of {name}; add one")
        found[name] = statistics.median_low(listed)
    return found


def shapes_of(
    model: ServedModel, role: str, fleet: Mapping[str, int], prices: Mapping[str, float]
) -> list[Row]:
    """The best shape of each type, prices per hour as costs, the cheapest per token first."""
    made = []
    for shape in model.shapes(role, dict.fromkeys(fleet, NODE_GPUS), per_type=1):
        usd = shape.gpus * Fraction(str(round(prices[shape.pods[0].gpu_type], 2)))
        made.append((usd / shape.capacity, shape, usd))
    made.sort(key=lambda each: (each[0], str(each[1].name)))
    return [
        {
            "name": shape.name,
            "pods": [pod.model_dump(mode="json") for pod in shape.pods],
            "capacity": str(shape.capacity),
            "cost": str(usd),
        }
        for per_token, shape, usd in made
        if per_token <= DEAREST * made[0][0]
    ]


def draw_services(
    models: Sequence[ServedModel],
    fleet: Mapping[str, int],
    prices: Mapping[str, float],
    load: float,
    seed: int,
) -> list[Row]:
    """The services of a seed; their targets take ``load`` of the fleet if no type is preferred."""
    rng = np.random.default_rng([seed, len(fleet)])
    weights = rng.lognormal(0.0, 0.5, SERVICES)
    weights /= weights.sum()
    services = []
    for index in range(SERVICES):
        model = models[int(rng.integers(len(models)))]
        ratio = float(rng.choice(SERVICE_RATIOS))
        ways = best_ways(model)
        whole = {
            role: sum(
                nodes * NODE_GPUS * ways[name][role].per_gpu
                for name, nodes in fleet.items()
                if name in ways
            )
            for role in ("prefill", "decode")
        }
        output = round(weights[index] * load / (ratio / whole["prefill"] + 1 / whole["decode"]))
        targets = {"prefill": round(output * ratio), "decode": output}
        services.append(
            {
                "name": f"{short(model.name).lower()}-{index}",
                "usd": cheapest(model, fleet, prices, ratio) * output * 3600 / 1e6,
                "roles": {
                    role: {"target": targets[role], "shapes": shapes_of(model, role, fleet, prices)}
                    for role in targets
                },
                "ratios": [
                    {
                        "numerator": "prefill",
                        "denominator": "decode",
                        "min": str(Fraction(str(ratio)) * 4 / 5),
                        "max": str(Fraction(str(ratio)) * 5 / 4),
                    }
                ],
            }
        )
    return services


def cheapest(
    model: ServedModel, fleet: Mapping[str, int], prices: Mapping[str, float], ratio: float
) -> float:
    """USD per million generated tokens with mixed pools if no type were scarce."""
    costs = [
        token_cost(roles, prices[name], ratio)
        for name, roles in best_ways(model).items()
        if name in fleet
    ]
    return min(each[0] for each in costs) + min(each[1] for each in costs)


def fleet_instance(fleet: Mapping[str, int], services: Sequence[Row], level: str) -> Instance:
    """The placement problem; groups lie in one domain of ``level``.

    A ``pool`` is the nodes of one type, the ``cluster`` has all. So with ``pool`` prefill and
    decode of a group are on one type, though a service may have groups on several, and all else is
    equal.
    """
    nodes = []
    for name, number in fleet.items():
        for index in range(number):
            nodes.append(
                {
                    "name": f"{name}-{index}",
                    "gpu_type": name,
                    "gpus": NODE_GPUS,
                    "domains": {"cluster": "c", "pool": name},
                }
            )
    nothing = ("rdma", "spill", "new_group", "fragmentation")
    return Instance.from_dict(
        {
            "schema": 1,
            "levels": ["cluster", "pool"],
            "nodes": nodes,
            "services": [
                {
                    **{key: value for key, value in each.items() if key != "usd"},
                    "affinity": {"required": level},
                }
                for each in services
            ],
            "objective": {"weights": {"shape": 1, **dict.fromkeys(nothing, 0)}},
        }
    )


def outcome(instance: Instance, result: Result, worth: Mapping[str, float]) -> Row:
    """What a plan costs and serves.

    Tokens of different models are not alike: each service counts with what its tokens would cost
    with mixed pools if no type were scarce.

    Parameters
    ----------
    instance, result
        The problem and its result.
    worth
        Service -> USD per hour of its whole demand by that measure.
    """
    usd = 0.0
    gpus = 0
    delivered: dict[tuple[str, str], float] = defaultdict(float)
    for group in result.plan.groups:
        service = instance.services[instance.service_index[group.service]]
        for each in group.added:
            role = service.roles[each.role]
            index = role.shape_index[each.shape]
            usd += float(role.shape_cost(index))
            gpus += role.shapes[index].gpus
            delivered[group.service, each.role] += float(role.shapes[index].capacity)
    served = sum(
        worth[service.name]
        * min(
            1.0,
            *(
                delivered[service.name, name] / float(role.target)
                for name, role in service.roles.items()
            ),
        )
        for service in instance.services
    )
    steps = {step.name: step for step in result.steps}
    cost = steps["cost"]
    return {
        "usd_per_hour": usd,
        "gpus_used": gpus,
        "served": served / sum(worth.values()),
        "cost_index": usd / served if served else math.nan,
        "unmet_gpus": sum(each.unmet_gpus for each in result.unmet),
        "unmet_gap_gpus": _gap(steps["unmet[0]"]),
        "cost_gap": None if cost.bound is None or not usd else _gap(cost) / usd,
        "status": result.status,
        "instance_digest": result.instance_digest,
    }


def _gap(step: ProvenStep) -> float:
    return math.nan if step.bound is None else max(0.0, step.value - step.bound)


def placed_once(
    models: Sequence[ServedModel],
    name: str,
    prices: Mapping[str, float],
    seed: int,
    limit: float,
) -> list[Row]:
    """One row per load and arm; all arms of a load have the same services."""
    rows = []
    fleet = FLEETS[name]
    for load in LOADS:
        services = draw_services(models, fleet, prices, load, seed)
        for arm in ARMS:
            level = "pool" if arm == "one type" else "cluster"
            solver = "greedy" if arm.endswith("greedy") else "auto"
            instance = fleet_instance(fleet, services, level)
            result = solve(instance, Profile(solver=solver, time_limit=limit, threads=1))
            rows.append(
                {
                    "fleet": name,
                    "load": load,
                    "seed": seed,
                    "arm": arm,
                    **outcome(instance, result, {each["name"]: each["usd"] for each in services}),
                }
            )
            study.settle()
    return rows


def placed(
    models: Sequence[ServedModel],
    quotes: Mapping[str, Sequence[float]],
    options: argparse.Namespace,
) -> list[Row]:
    """One row per fleet, load, seed and arm."""
    can = [each for each in models if short(each.name) in MODELS]
    calls = [
        (can, name, fleet_prices(fleet, quotes), seed, options.time_limit)
        for name, fleet in FLEETS.items()
        for seed in range(options.seeds)
    ]
    found = study.each("placing", placed_once, calls, options.workers)
    rows = [row for some in found for row in some]
    return sorted(rows, key=lambda row: (list(FLEETS).index(row["fleet"]), row["load"]))


# -- the study -------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> Study:
    """All three parts."""
    capacities, prices = study.needed(options.data, CAPACITIES, PRICES)
    models = {length: models_from_csv(capacities, length) for length in LENGTHS}
    quotes = read_quotes(prices)
    found = Study("pools")
    found.tables["prices"] = priced(models, quotes)
    found.tables["pairs"] = [
        row for length, served in models.items() for row in pairs(served, length)
    ]
    found.tables["fleet"] = placed(models[LENGTHS[0]], quotes, options)
    found.settings = {
        "seeds": list(range(options.seeds)),
        "time_limit": options.time_limit,
        "quotes_usd_per_gpu_hour": quotes,
        "price_draws": DRAWS,
        "fleets_nodes_of_8_gpus": FLEETS,
        "loads": LOADS,
        "services": SERVICES,
        "service_ratios": SERVICE_RATIOS,
        "dearest_shape": DEAREST,
    }
    found.shown = [
        *show_prices(found.tables["prices"]),
        *show_pairs(found.tables["pairs"]),
        *show_fleet(found.tables["fleet"]),
    ]
    found.notes = [
        "* rests on capacities estimated from another GPU type; ° on the price of another variant "
        "of the GPU or, for H800, on an H100's.",
        "A cost index of 1 is what the served tokens would cost with mixed pools if no type were "
        "scarce and instances came in any size; gap: mean distance to the bound.",
        "No price is listed for H20, L20 and H800; H20 and L20 are in the pairs only.",
    ]
    return found


def marks(row: Row) -> str:
    """Marks of what a row rests on."""
    return ("*" if row["uses_estimate"] else "") + ("°" if row["uses_variant_price"] else "")


def show_prices(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The prices at the paper's ratio, and how the penalty goes with the ratio."""
    shown = []
    for length in LENGTHS:
        shown.append(
            (
                f"USD per million generated tokens, {length} prompt tokens, {PAPER_RATIO} prompt "
                "tokens per generated one",
                [
                    {
                        "model": row["model"],
                        "capacities": "with estimates" if row["estimates"] else "tables",
                        "one type": f"{row['one_type']} {row['one_type_usd']:.3f}",
                        "mixed": f"{row['prefill_on']} → {row['decode_on']} {row['mixed_usd']:.3f}"
                        f" {marks(row)}",
                        "one type costs": f"+{row['penalty']:.1%}",
                        "least … most of price draws": f"{row['penalty_least']:.1%} … "
                        f"{row['penalty_most']:.1%}",
                        "median type": f"+{row['penalty_median_type']:.0%}",
                    }
                    for row in rows
                    if row["prompt_per_output"] == PAPER_RATIO and row["prompt_tokens"] == length
                ],
            )
        )
    across = []
    for (model, length, estimates), group in study.by(
        rows, "model", "prompt_tokens", "estimates"
    ).items():
        across.append(
            {
                "model": model,
                "prompt": f"{length}",
                "capacities": "with estimates" if estimates else "tables",
                **{
                    f"{row['prompt_per_output']:g}": f"+{row['penalty']:.1%}{marks(row)}"
                    for row in group
                },
            }
        )
    title = "What the cheapest single type costs more, by prompt tokens per generated token"
    return [*shown, (title, across)]


def show_pairs(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """H20 and L20, the paper's types; and the largest penalties of all pairs."""
    here = [row for row in rows if row["prompt_per_output"] == PAPER_RATIO]

    def line(row: Row) -> Row:
        return {
            "model": row["model"],
            "prompt": f"{row['prompt_tokens']}",
            "prefill": row["prefill_on"],
            "decode": row["decode_on"] + (" *" if row["estimated"] else ""),
            "pays at price ratios": f"{row['pays_from_price_ratio']:.2f} … "
            f"{row['pays_to_price_ratio']:.2f}",
            "at most": f"+{row['largest_penalty']:.0%}",
            "at": f"{row['at_price_ratio']:.2f}",
        }

    paper = [row for row in here if {row["prefill_on"], row["decode_on"]} == {"h20_sxm", "l20"}]
    tables = [row for row in here if not row["estimated"] and row["prompt_tokens"] == LENGTHS[0]]
    best: list[Row] = []
    for _, group in study.by(tables, "model").items():
        top = sorted(group, key=lambda row: -row["largest_penalty"])[:2]
        best.extend(line(row) for row in top)
    title = f"{PAPER_RATIO} prompt tokens per generated one; price of decode / price of prefill"
    return [
        (f"H20 and L20 (estimates). {title}", [line(row) for row in paper]),
        (f"Two pairs with most to save per model (tables only). {title}", best),
    ]


def show_fleet(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Each arm, and its paired difference from mixed pools."""
    shown = []
    for (fleet, load), group in study.by(rows, "fleet", "load").items():
        arms = {arm: mine for (arm,), mine in study.by(group, "arm").items()}
        mixed = arms["mixed"]
        for arm, mine in arms.items():
            row: Row = {
                "fleet": fleet,
                "load": f"{load:g}",
                "arm": arm,
                "served": study.percent(study.mean_of([each["served"] for each in mine])),
                "cost index": study.plain(study.mean_of([each["cost_index"] for each in mine])),
                "served, minus mixed": "–",
                "cost, over mixed": "–",
                "gap GPUs": "–",
                "gap cost": "–",
            }
            if arm != "mixed":
                cost = study.compared(
                    [math.log(each["cost_index"]) for each in mine],
                    [math.log(each["cost_index"]) for each in mixed],
                ).difference
                served = study.compared(
                    [each["served"] for each in mine], [each["served"] for each in mixed]
                ).difference
                row["served, minus mixed"] = study.points(served)
                row["cost, over mixed"] = study.growth(cost)
            if not arm.endswith("greedy"):
                gaps = [each["unmet_gap_gpus"] for each in mine]
                costs = [each["cost_gap"] for each in mine if each["cost_gap"] is not None]
                row["gap GPUs"] = f"{statistics.mean(gaps):.2f}"
                row["gap cost"] = f"{statistics.mean(costs):.1%}" if costs else "–"
            shown.append(row)
    title = "On a fleet of 256 GPUs: means of the seeds and paired differences [95 % interval]"
    return [(title, shown)]


def options() -> argparse.ArgumentParser:
    """The study's options."""
    made = study.parser("pools", str(__doc__).split("\n\n")[0], seeds=8)
    study.data_option(made)
    made.add_argument(
        "--time-limit", type=study.seconds, default=10.0, metavar="S", help="of a solve, default 10"
    )
    return made


if __name__ == "__main__":
    sys.exit(study.main(options(), run))
