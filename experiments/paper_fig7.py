"""A day with and without autoscaling (the paper's Figs. 7 and 2) beside the simulator's.

The daily curve from its hour 8 on, as in Fig. 7. *Before* always has the fewest instances that keep
the objectives at the peak. *After* follows decode throughput, the paper's primary signal, with
latency layers for TTFT and TBT over it, at the ratio and with the target of the pressure test.

    python experiments/paper_fig7.py [--seeds N] [--service A] [--window T] [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paper_study
from paper_published import AFTER, BEFORE, DIGITISED, LOW_OF_PEAK, MEAN_OF_PEAK, SOURCE
from paper_study import BLUE, GREY, ORANGE, SERVICE, Setting, claim, mean, spread, verdict
from study import Row, Study, by

from heteroplace.policy import Fleet
from heteroplace.simulate import Demand, Noise, Outcome, simulate
from heteroplace.simulate.command import percent, progress

NAME = "paper_fig7"
HOURS = 24.0
HARDWARE = {
    "prefill_gpu_util": "prefill GPU utilisation",
    "decode_gpu_util": "decode GPU utilisation",
    "prefill_sm": "prefill SM",
    "decode_sm": "decode SM",
}
DRAW_EVERY = 600.0


def run(options: argparse.Namespace) -> Study:
    """Simulate both with all seeds."""
    paper_study.require_drawing()
    changes = {} if options.window is None else {"soft_scale_in": {"window": options.window}}
    setting = Setting(options.service, options.ratio, options.headroom, changes)
    found = Study(NAME)
    found.settings = {
        "source": SOURCE,
        "hours": HOURS,
        "dispersion": options.dispersion,
        "window": options.window,
        "seeds": list(range(options.seeds)),
        **setting.described(),
    }
    fleets = {"before": before(setting), "after": after(setting, changes)}
    demand = setting.demand(HOURS)
    rows, first = simulated(setting, fleets, demand, options.seeds, options.dispersion)
    runs = by(rows, "fleet")
    found.tables["runs"] = rows
    found.tables["series"] = series(first["after"])
    found.tables["hardware"] = hardware(runs)
    found.tables["claims"] = claims(runs, demand)
    title = f"Means over 24 h, percent: service {setting.service} at {setting.ratio}"
    found.shown.append((f"{title}, {options.seeds} seeds", found.tables["hardware"]))
    found.shown.append(("GPUs, actions and objectives", [_kept(runs, name) for name in fleets]))
    found.shown.append(("Claims", found.tables["claims"]))
    found.notes = [
        "Nothing of the pools or policies was fitted to Fig. 7. Of Fig. 2, two values were used: "
        "the mean decode utilisation and the least prefill utilisation. The decode utilisation "
        "before is therefore no independent check.",
        "The paper's GPUs are over their own peak; what it had before autoscaling is not given. "
        "Ours are also compared with the fewest instances that keep the objectives at the peak.",
        "Ours are means over the seeds (least–most).",
    ]
    draw(found.tables["series"], found.tables["hardware"], Path(options.out) / f"{NAME}.svg")
    return found


def before(setting: Setting) -> Fleet:
    """Peak provisioning: the counts never change."""
    return paper_study.fleet_of(setting.service, setting.ratio, counts=setting.static)


def after(setting: Setting, changes: Mapping[str, Any]) -> Fleet:
    """Decode throughput with latency layers."""
    target = setting.point.signals["decode_tps"]
    policy = {
        "primary": {"kind": "throughput", "signal": "decode_tps", "target": target},
        "latency": [
            {"signal": "ttft", "slo": setting.pooled.ttft},
            {"signal": "tbt", "slo": setting.pooled.tbt},
        ],
    }
    return paper_study.fleet_of(
        setting.service, setting.ratio, changes={**changes, "policy": policy}
    )


def simulated(
    setting: Setting, fleets: Mapping[str, Fleet], demand: Demand, seeds: int, dispersion: float
) -> tuple[list[Row], dict[str, Outcome]]:
    """A row per fleet and seed, and the outcomes of the first seed."""
    rows: list[Row] = []
    first: dict[str, Outcome] = {}
    cluster = setting.cluster()
    with progress(NAME) as tell:
        for name, fleet in fleets.items():
            for seed in range(seeds):
                noise = Noise(dispersion=dispersion)
                outcome = simulate(fleet, cluster, {SERVICE: demand}, noise=noise, seed=seed)
                first.setdefault(name, outcome)
                rows.append({"fleet": name, "seed": seed, **measured(setting, outcome)})
                tell(len(rows), len(fleets) * seeds)
    return rows, first


def measured(setting: Setting, outcome: Outcome) -> Row:
    """One run in the paper's terms."""
    summary, gpus = outcome.summary(SERVICE), outcome.of(SERVICE)["gpus"]
    static = sum(setting.static.values()) * paper_study.NODE_GPUS * HOURS
    return {
        **{name: 100 * getattr(summary, name) for name in HARDWARE},
        "prefill_gpu_util_most": 100 * float(np.nanmax(outcome.of(SERVICE)["prefill_gpu_util"])),
        "mean_of_peak": summary.mean_of_peak,
        "low_of_peak": float(gpus.min() / gpus.max()),
        "peak_gpus": summary.peak_gpus,
        "gpu_hours": summary.gpu_hours,
        "of_static": summary.gpu_hours / static,
        "scale_out": summary.scale_out,
        "scale_in": summary.scale_in,
        "added": summary.added,
        "removed": summary.removed,
        "restored": summary.restored,
        "best_correlation": summary.best_correlation,
        "lag": summary.best_lag_hours,
        "ttft_attained": summary.ttft_attained,
        "tbt_attained": summary.tbt_attained,
        "unmet_gpu_hours": summary.unmet_gpu_hours,
    }


def load_of_peak(demand: Demand, least: float = 0.0) -> float:
    """Mean of the demand over its peak, where it never counts less than a share of the peak."""
    edges = np.linspace(0, demand.end, 1441)
    share = demand.rates(edges)[:, 0] / demand.peak
    return float(np.maximum(share, least).mean())


def hardware(runs: Mapping[tuple[Any, ...], Sequence[Row]]) -> list[Row]:
    """The paper's table of means, ours beside it."""
    found = []
    for name, label in HARDWARE.items():
        ours = [[row[name] for row in runs[(when,)]] for when in ("before", "after")]
        risen = [b - a for a, b in zip(*ours, strict=True)]
        found.append(
            {
                "mean of": label,
                "paper before": f"{BEFORE[name]:.1f}",
                "ours before": spread(ours[0], 1),
                "paper after": f"{AFTER[name]:.1f}",
                "ours after": spread(ours[1], 1),
                "paper change": f"{AFTER[name] - BEFORE[name]:+.1f}",
                "ours change": f"{np.mean(risen):+.1f}",
            }
        )
    return found


def claims(runs: Mapping[tuple[Any, ...], Sequence[Row]], demand: Demand) -> list[Row]:
    """What the paper shows, checked on ours; all seeds have to agree."""
    own, old = runs[("after",)], runs[("before",)]

    def over(key: str, places: int = 2) -> str:
        return spread([row[key] for row in own], places)

    near = [MEAN_OF_PEAK[0] <= row["mean_of_peak"] <= MEAN_OF_PEAK[1] for row in own]
    where = "for some seeds inside" if any(near) else "below" if _below(own) else "outside"
    where = "inside" if all(near) else where
    rises = [
        new["prefill_gpu_util"] - was["prefill_gpu_util"] for was, new in zip(old, own, strict=True)
    ]
    falls = [
        new["decode_gpu_util"] - was["decode_gpu_util"] for was, new in zip(old, own, strict=True)
    ]
    fell = "the same sign" if max(falls) < 0 else "the other sign"
    paper_rise = AFTER["prefill_gpu_util"] - BEFORE["prefill_gpu_util"]
    return [
        claim(
            "mean GPUs over their own peak",
            f"{MEAN_OF_PEAK[0]:.2f}–{MEAN_OF_PEAK[1]:.2f}",
            over("mean_of_peak"),
            f"{where} the paper's range",
        ),
        claim("least GPUs over their peak", f"{LOW_OF_PEAK:.2f}", over("low_of_peak"), "–"),
        claim(
            "mean load over its peak; counting at least the paper's least GPUs",
            f"{load_of_peak(demand):.2f}; {load_of_peak(demand, LOW_OF_PEAK):.2f}",
            "the same curve",
            "–",
        ),
        claim(
            "GPU-hours over those of static provisioning for the peak",
            "not given",
            over("of_static"),
            "–",
        ),
        claim(
            "prefill utilisation rises, points",
            f"{paper_rise:+.1f}",
            spread(rises, 1),
            f"{verdict(min(rises) > 0)}, {np.mean(rises) / paper_rise:.0%} of the paper's",
        ),
        claim(
            "decode utilisation changes, points",
            f"{AFTER['decode_gpu_util'] - BEFORE['decode_gpu_util']:+.1f}",
            spread(falls, 1),
            fell,
        ),
        claim("GPUs follow the load, hours late", "0.5–1 (scale-in)", over("lag"), "–"),
    ]


def _below(own: Sequence[Row]) -> bool:
    return all(row["mean_of_peak"] < MEAN_OF_PEAK[0] for row in own)


def _kept(runs: Mapping[tuple[Any, ...], Sequence[Row]], name: str) -> Row:
    own = runs[(name,)]

    def over(key: str, places: int = 0) -> str:
        return spread([row[key] for row in own], places)

    return {
        "": name,
        "GPU-hours": over("gpu_hours"),
        "peak GPUs": over("peak_gpus"),
        "scale-outs": over("scale_out", 1),
        "scale-ins": over("scale_in", 1),
        "restored": over("restored", 1),
        "TTFT kept": percent(mean([row["ttft_attained"] for row in own]), 3),
        "TBT kept": percent(mean([row["tbt_attained"] for row in own]), 3),
        "P util. at most": over("prefill_gpu_util_most", 1),
    }


def series(outcome: Outcome) -> list[Row]:
    """Load and GPUs over their peaks, and hardware, thinned out."""
    own, stride = outcome.of(SERVICE), max(1, round(DRAW_EVERY / outcome.tick))
    return [
        {
            "hour": float(outcome.hours[index]),
            "load": float(own["requests"][index] / own["requests"].max()),
            "gpus": float(own["gpus"][index] / own["gpus"].max()),
            **{name: float(own[name][index]) for name in HARDWARE},
            "ttft": float(own["ttft"][index]),
            "tbt": float(own["tbt"][index]),
        }
        for index in range(0, outcome.ticks, stride)
    ]


def draw(thinned: Sequence[Row], means: Sequence[Row], path: Path) -> None:
    """Load and GPUs over the day, and the means before and after."""
    drawn = paper_study.figure(9.0, 6.4)
    upper, lower = drawn.subplots(2, 1)
    hours = [row["hour"] for row in thinned]
    upper.plot(hours, [row["load"] for row in thinned], color=BLUE, label="load", linewidth=1)
    gpus = [row["gpus"] for row in thinned]
    upper.plot(hours, gpus, color=ORANGE, drawstyle="steps-post", label="GPUs, ours", linewidth=1)
    upper.axhline(float(np.mean(gpus)), color=ORANGE, linestyle="--", label="their mean")
    upper.axhspan(*MEAN_OF_PEAK, color=GREY, alpha=0.5, label="mean of the paper's GPUs")
    upper.plot([21], [LOW_OF_PEAK], "o", color=GREY, label="least of the paper's")
    upper.set_xlabel("hours (0 is hour 8 of Fig. 5)")
    upper.set_ylabel("share of the peak")
    upper.legend(fontsize="small", frameon=False, loc="lower left")
    places = np.arange(len(means))
    for offset, who, when, colour, alpha in (
        (-0.3, "paper", "before", GREY, 0.5),
        (-0.1, "ours", "before", ORANGE, 0.5),
        (0.1, "paper", "after", GREY, 1.0),
        (0.3, "ours", "after", ORANGE, 1.0),
    ):
        values = [float(row[f"{who} {when}"].split()[0]) for row in means]
        lower.bar(places + offset, values, 0.2, color=colour, alpha=alpha, label=f"{who}, {when}")
    lower.set_xticks(places, [row["mean of"] for row in means])
    lower.set_ylabel("mean over 24 h, %")
    lower.set_ylim(0, 110)
    lower.legend(fontsize="small", frameon=False, ncols=4)
    drawn.suptitle(f"Figs. 2 and 7 of {DIGITISED}, and the simulator (seed 0)", fontsize="medium")
    paper_study.write_svg(drawn, path)


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = paper_study.parser(
        NAME, "A day with autoscaling (Fig. 7) and without (Fig. 2).", seeds=5
    )
    paper_study.add_setting_options(made)
    made.add_argument(
        "--window",
        type=paper_study.duration,
        metavar="T",
        help="observation window of soft scale-in, such as 30m; default that of the policies",
    )
    return made


if __name__ == "__main__":
    sys.exit(paper_study.main(options(), run))
