"""The eight signals of the paper's Fig. 6, one policy each, beside the simulator's.

Eight hours of the daily curve, from hour 8 on: load rises, dips in hours 4 to 6 and rises to its
peak. Every policy follows one signal alone, at the P/D ratio and with the targets of the pressure
test, as curation (Algorithm 1) does it.

    python experiments/paper_fig6.py [--seeds N] [--service A] [--ratio P/D] [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import paper_study
from paper_published import DIGITISED, FIG6, SOURCE
from paper_study import (
    BLUE,
    GREY,
    ORANGE,
    SERVICE,
    Setting,
    chance_of,
    claim,
    mean,
    spearman,
    spread,
    verdict,
)
from study import Row, Study, by

from heteroplace.simulate import POLICIES, Noise, Outcome, simulate
from heteroplace.simulate.command import percent, progress
from heteroplace.simulate.policies import single_signal

NAME = "paper_fig6"
HOURS = 8.0
# The paper's numbers leave out the first hour, and its dip lies in hours 4 to 6.
FROM_HOUR, DIP = 1.0, (4.0, 6.0)
TRACKING = ("prefill_tps", "decode_tps", "prefill_gpu_util", "prefill_sm")
OTHERS = tuple(name for name in POLICIES if name not in TRACKING)
DRAW_EVERY = 360.0


def run(options: argparse.Namespace) -> Study:
    """Simulate all policies with all seeds."""
    paper_study.require_drawing()
    setting = Setting(options.service, options.ratio, options.headroom)
    found = Study(NAME)
    found.settings = {
        "source": SOURCE,
        "hours": HOURS,
        "dispersion": options.dispersion,
        "seeds": list(range(options.seeds)),
        **setting.described(),
    }
    rows, first = simulated(setting, options.seeds, options.dispersion)
    found.tables["runs"] = rows
    found.tables["series"] = series(first)
    found.tables["ranks"] = ranking(rows)
    title = f"Service {setting.service} at {setting.ratio}, {options.seeds} seeds: paper / ours"
    policies = by(rows, "policy")
    found.shown.append((title, [_shown(name, policies[(name,)]) for name in POLICIES]))
    found.shown.append(("What each policy costs and keeps", [_kept(policies, n) for n in POLICIES]))
    found.shown.append(("Order of the eight signals, paper against ours", found.tables["ranks"]))
    found.tables["claims"] = claims(rows, turns_of_load(first))
    found.shown.append(("Claims", found.tables["claims"]))
    found.notes = [
        "Nothing of the pools or policies was fitted to Fig. 6.",
        "Ours are means over the seeds (least–most); GPUs are normalised from the least to the "
        "most of each run, as in the figure; a policy whose GPUs never change has no such "
        "number (–).",
        "GPU utilisation and SM of prefill are nearly the same line of the load in the model, so "
        "these two policies do nearly the same.",
    ]
    draw(found.tables["series"], rows, Path(options.out) / f"{NAME}.svg")
    return found


def simulated(
    setting: Setting, seeds: int, dispersion: float
) -> tuple[list[Row], dict[str, Outcome]]:
    """A row per policy and seed, and the outcomes of the first seed."""
    rows: list[Row] = []
    first: dict[str, Outcome] = {}
    cluster, demand = setting.cluster(), setting.demand(HOURS)
    with progress(NAME) as tell:
        for name in POLICIES:
            fleet = single_signal(
                setting.fleet, {SERVICE: setting.pooled}, name, {SERVICE: setting.point}
            )
            for seed in range(seeds):
                noise = Noise(dispersion=dispersion)
                outcome = simulate(fleet, cluster, {SERVICE: demand}, noise=noise, seed=seed)
                first.setdefault(name, outcome)
                rows.append({"policy": name, "seed": seed, **measured(outcome)})
                tell(len(rows), len(POLICIES) * seeds)
    return rows, first


def measured(outcome: Outcome) -> Row:
    """One run in the paper's terms; None where the number of GPUs never changes."""
    summary, hours = outcome.summary(SERVICE), outcome.hours
    share = normalised(outcome.of(SERVICE)["gpus"])
    dip = (hours >= DIP[0]) & (hours < DIP[1])
    return {
        "mean_gpus": None if share is None else float(share[hours >= FROM_HOUR].mean()),
        "correlation": summary.correlation,
        "best_correlation": summary.best_correlation,
        "lag": summary.best_lag_hours,
        "dip": None if share is None else float(share[dip].min()),
        "gpu_hours": summary.gpu_hours,
        "peak_gpus": summary.peak_gpus,
        "scale_out": summary.scale_out,
        "scale_in": summary.scale_in,
        "turns": turns([each.action for each in outcome.events]),
        "restored": summary.restored,
        "unmet_gpu_hours": summary.unmet_gpu_hours,
        "ttft_attained": summary.ttft_attained,
        "tbt_attained": summary.tbt_attained,
    }


def normalised(values: Any) -> Any:
    """Values from 0 (their least) to 1 (their most); None if they are all the same."""
    low, high = values.min(), values.max()
    return None if low == high else (values - low) / (high - low)


def turns(actions: Sequence[str]) -> int:
    """How often scaling changes its direction."""
    moves = [each for each in actions if each in ("out", "in")]
    return sum(a != b for a, b in pairwise(moves))


def turns_of_load(outcomes: Mapping[str, Outcome]) -> int:
    """How often the load itself changes its direction, by the hour: noise is no change."""
    load = next(iter(outcomes.values())).of(SERVICE)["requests"]
    hourly = load[: len(load) // 16 * 16].reshape(16, -1).mean(axis=1)
    return turns(["out" if step > 0 else "in" for step in np.diff(hourly)])


def series(outcomes: Mapping[str, Outcome]) -> list[Row]:
    """Load over its peak, normalised GPUs and latencies of the first seed, thinned out."""
    rows = []
    for name, outcome in outcomes.items():
        own = outcome.of(SERVICE)
        share = normalised(own["gpus"])
        stride = max(1, round(DRAW_EVERY / outcome.tick))
        for index in range(0, outcome.ticks, stride):
            rows.append(
                {
                    "policy": name,
                    "hour": float(outcome.hours[index]),
                    "load": float(own["requests"][index] / own["requests"].max()),
                    "gpus": float(own["gpus"][index]),
                    "gpus_normalised": None if share is None else float(share[index]),
                    "decode_load": float(own["decode_tps"][index] / own["decode_capacity"][index]),
                    "ttft": float(own["ttft"][index]),
                    "tbt": float(own["tbt"][index]),
                }
            )
    return rows


# -- the order of the signals ----------------------------------------------------------------------


def ranking(rows: Sequence[Row]) -> list[Row]:
    """Rank correlation of our order of the signals with the paper's, by each of its numbers.

    A signal without a number, because its GPUs never change, is left out. For the correlation there
    is a row more that counts it as 0, which is as low as the paper has it.
    """
    still = "correlation, GPUs that never change counting as 0"
    return [
        _ranked(rows, "correlation", "correlation of GPUs and load"),
        _ranked(rows, "correlation", still, unknown=0.0),
        _ranked(rows, "best_correlation", "correlation at the best lag"),
        _ranked(rows, "mean_gpus", "mean normalised GPUs"),
        _ranked(rows, "dip", "low in the dip"),
    ]


def _ranked(rows: Sequence[Row], number: str, label: str, unknown: float | None = None) -> Row:
    runs = by(rows, "policy")
    ours: dict[str, list[float]] = {}
    for name in POLICIES:
        seen = [unknown if row[number] is None else row[number] for row in runs[(name,)]]
        known = [float(value) for value in seen if value is not None]
        if getattr(FIG6[name], number) is not None and len(known) == len(seen):
            ours[name] = known
    names = list(ours)
    theirs = [getattr(FIG6[name], number) for name in names]
    mine = [float(np.mean(ours[name])) for name in names]
    by_seed = [spearman(theirs, each) for each in zip(*ours.values(), strict=True)]
    chance = chance_of(theirs, mine)
    return {
        "by": label,
        "signals": str(len(names)),
        "spearman": spread([spearman(theirs, mine)]),
        "single seeds": spread(by_seed),
        "as high by chance": "–" if chance is None else f"{chance:.1%}",
        "paper": " ".join(_ordered(names, theirs)),
        "ours": " ".join(_ordered(names, mine)),
    }


_SHORT = {
    "prefill_tps": "Ptps",
    "decode_tps": "Dtps",
    "prefill_gpu_util": "Pgpu",
    "decode_gpu_util": "Dgpu",
    "prefill_sm": "Psm",
    "decode_sm": "Dsm",
    "ttft": "TTFT",
    "tbt": "TBT",
}


def _ordered(names: Sequence[str], values: Sequence[float]) -> list[str]:
    """Short names, the largest value first."""
    order = sorted(range(len(names)), key=lambda index: -values[index])
    return [_SHORT[names[index]] for index in order]


# -- what the paper says ---------------------------------------------------------------------------


def claims(rows: Sequence[Row], load_turns: int) -> list[Row]:
    """The paper's reading of the figure, each by a rule, over all seeds."""
    runs = by(rows, "policy")

    def average(name: str, key: str) -> float:
        return float(np.mean([row[key] or 0.0 for row in runs[(name,)]]))

    tracks = {name: average(name, "correlation") for name in POLICIES}
    least, most = min(tracks[n] for n in TRACKING), max(tracks[n] for n in OTHERS)
    theirs = {name: FIG6[name].correlation for name in POLICIES}
    busy = runs[("decode_gpu_util",)]
    never_in = all(row["scale_in"] == 0 for row in busy)
    never_out = all(row["scale_out"] == 0 for row in busy)
    saw = min(row["turns"] for row in runs[("ttft",)])
    smooth = max(row["turns"] for name in TRACKING for row in runs[(name,)])
    slow = ("decode_gpu_util", "decode_sm")
    late = tracks["tbt"] > max(tracks[name] for name in slow)
    never = f"{'no' if never_in else 'a'} scale-in, {'no' if never_out else 'some'} scale-out"
    return [
        claim(
            "throughput and prefill hardware track the load: each better than any other signal",
            f"{min(theirs[n] for n in TRACKING):.2f} > {max(theirs[n] for n in OTHERS):.2f}",
            f"{least:.2f} {'>' if least > most else '<='} {most:.2f}",
            verdict(least > most),
        ),
        claim(
            "decode GPU utilisation never scales in",
            "scales out, then stays",
            never,
            "trivially: it never scales at all" if never_in and never_out else verdict(never_in),
        ),
        claim(
            "decode SM is sluggish: stays high in the dip, above the tracking four",
            f"{FIG6['decode_sm'].dip:.2f}, at most {max(FIG6[n].dip for n in TRACKING):.2f}",
            f"{average('decode_sm', 'dip'):.2f}, at most "
            f"{max(average(n, 'dip') for n in TRACKING):.2f}",
            verdict(average("decode_sm", "dip") > max(average(n, "dip") for n in TRACKING)),
        ),
        claim(
            "TTFT saw-tooths: more turns than the load and the tracking four",
            "saw-tooth",
            f"at least {saw} turns; load {load_turns}, tracking at most {smooth}",
            verdict(saw > max(load_turns, smooth)),
        ),
        claim(
            "TBT is workable: tracks better than decode GPU utilisation and SM",
            f"{theirs['tbt']:.2f} > {max(theirs[n] for n in slow):.2f}",
            f"{tracks['tbt']:.2f} {'>' if late else '<='} {max(tracks[n] for n in slow):.2f}",
            verdict(late),
        ),
    ]


def _shown(name: str, runs: Sequence[Row]) -> Row:
    paper = FIG6[name]

    def pair(key: str) -> str:
        value = getattr(paper, key)
        theirs = "–" if value is None else f"{value:.2f}"
        return f"{theirs} / {spread([row[key] for row in runs])}"

    return {
        "signal": name,
        "mean GPUs": pair("mean_gpus"),
        "correlation": pair("correlation"),
        "at best lag": pair("best_correlation"),
        "lag, h": pair("lag"),
        "dip": pair("dip"),
    }


def _kept(policies: Mapping[tuple[Any, ...], Sequence[Row]], name: str) -> Row:
    runs = policies[(name,)]

    def over(key: str, places: int = 0) -> str:
        return spread([row[key] for row in runs], places)

    return {
        "signal": name,
        "GPU-hours": over("gpu_hours"),
        "scale-outs": over("scale_out", 1),
        "scale-ins": over("scale_in", 1),
        "turns": over("turns", 1),
        "restored": over("restored", 1),
        "TTFT kept": percent(mean([row["ttft_attained"] for row in runs])),
        "TBT kept": percent(mean([row["tbt_attained"] for row in runs])),
    }


def draw(thinned: Sequence[Row], rows: Sequence[Row], path: Path) -> None:
    """A panel per signal, and the correlations beside the paper's."""
    drawn = paper_study.figure(10.0, 7.5)
    axes = drawn.subplots(3, 4)
    panels, runs = by(thinned, "policy"), by(rows, "policy")
    for axis, name in zip(axes.flat, POLICIES, strict=False):
        own = panels[(name,)]
        hours = [row["hour"] for row in own]
        axis.plot(hours, [row["load"] for row in own], color=BLUE, linewidth=1)
        gpus = [row["gpus_normalised"] for row in own]
        if gpus[0] is not None:
            axis.plot(hours, gpus, color=ORANGE, drawstyle="steps-post", linewidth=1)
        axis.hlines(FIG6[name].dip, *DIP, color=GREY, linestyle="--")
        axis.set_title(name + ("" if gpus[0] is not None else " (never scales)"), fontsize=9)
        axis.set_ylim(-0.05, 1.05)
        axis.set_xticks((0, 4, 8))
        axis.set_yticks((0, 0.5, 1))
    axes[0][0].legend(["load", "GPUs", "paper's low in the dip"], fontsize="x-small", frameon=False)
    grid = axes[2][0].get_gridspec()
    for axis in axes[2]:
        axis.remove()
    places = np.arange(len(POLICIES))
    for column, number, title in (
        (slice(0, 2), "correlation", "correlation of GPUs and load"),
        (slice(2, 4), "dip", "low in the dip"),
    ):
        axis = drawn.add_subplot(grid[2, column])
        theirs = [getattr(FIG6[name], number) for name in POLICIES]
        means = [mean([row[number] for row in runs[(name,)]]) for name in POLICIES]
        mine = [np.nan if each is None else each for each in means]
        axis.bar(places - 0.2, theirs, 0.4, color=GREY, label="paper")
        axis.bar(places + 0.2, mine, 0.4, color=ORANGE, label="ours")
        axis.set_xticks(places, [_SHORT[name] for name in POLICIES], fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize="x-small", frameon=False)
    drawn.suptitle(f"Fig. 6 of {DIGITISED}, and the simulator (seed 0; bars: mean)", fontsize=10)
    paper_study.write_svg(drawn, path)


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = paper_study.parser(NAME, "The paper's eight signals (Fig. 6) and ours.", seeds=5)
    paper_study.add_setting_options(made)
    return made


if __name__ == "__main__":
    sys.exit(paper_study.main(options(), run))
