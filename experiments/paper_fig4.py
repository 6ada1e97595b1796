"""The P/D-ratio pressure test of the paper's Fig. 4 beside that of the pool model.

16 instances in all, split from 7 prefill and 9 decode to 12 and 4, for services A and B. Three
parts. *Splits*: the paper's services, whose instances can do what the figure shows them doing at
most. *Lengths*: where the maximum lies for other prompt lengths and TTFT objectives, which the
paper does not give. *Served models*: the same with the capacities of models/, which have nothing of
the paper. The test is stationary and has no randomness.

    python experiments/paper_fig4.py [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import paper_study
from paper_published import FIG4, PREFILL, SOURCE, TOTAL, Fig4
from paper_study import (
    BLUE,
    GREY,
    ORANGE,
    PROMPT_TOKENS,
    SERVICE,
    capacities,
    mix_of,
    output_tokens,
    pooled,
    pressure_of,
    verdict,
)
from study import ROOT, Row, Study

from heteroplace.curate.pressure import Pressure, Split, pressure_test
from heteroplace.errors import InputError
from heteroplace.models import ServedModel
from heteroplace.policy import Fleet
from heteroplace.simulate import PoolModel

NAME = "paper_fig4"
LENGTHS = (500.0, 1000.0, 2000.0, 4000.0)
TTFT = (0.5, 1.0, 2.0, 5.0)
HARDWARE = ("prefill_gpu_util", "decode_gpu_util", "prefill_sm", "decode_sm")
# A utilisation is high from here on, and flat if it varies no more than the paper's does, but for
# the error of digitising both ends.
HIGH_PERCENT, DIGITISING_POINTS = 85.0, 1.0


def run(options: argparse.Namespace) -> Study:
    """Test both services."""
    paper_study.require_drawing()
    tests = {service: pressure_of(service) for service in FIG4}
    found = Study(NAME)
    found.settings = {
        "source": SOURCE,
        "total": TOTAL,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": {service: output_tokens(service) for service in FIG4},
        "capacities": {service: capacities(service) for service in FIG4},
        "ttft_slo": tests["A"].ttft_slo,
        "tbt_slo": tests["A"].tbt_slo,
        "percentile": tests["A"].percentile,
        "seeds": "none: the test is stationary",
    }
    for service, test in tests.items():
        rows = splits(service, test)
        found.tables[f"splits-{service}"] = rows
        title = f"Service {service}: paper / ours, thousands of tokens/s and percent"
        found.shown.append((title, [_shown(row) for row in rows]))
    claims = [each for service, test in tests.items() for each in claims_of(service, test)]
    found.tables["claims"] = claims
    found.shown.append(("Claims", claims))
    found.tables["lengths"] = lengths()
    found.shown.append(
        ("Best split by prompt tokens and TTFT objective", _by_length(found.tables["lengths"]))
    )
    found.tables["models"] = served_models()
    found.shown.append(("Best split with the capacities of models/", found.tables["models"]))
    found.notes = [
        "The utilisation and SM curves of the pools are fitted to this figure: those columns are "
        "no independent check of the model.",
        "The most tokens/s per instance of each role are taken from the figure, two numbers per "
        "service, and its tokens per prompt token; splits, losses and maxima are the model's. "
        "Plain: the same numbers, each pool doing all it can, no objectives.",
    ]
    draw(tests, Path(options.out) / f"{NAME}.svg")
    return found


def splits(service: str, test: Pressure) -> list[Row]:
    """The paper's splits, its numbers beside ours."""
    seen, rows = FIG4[service], []
    for place, prefill in enumerate(PREFILL):
        ours = _split(test, prefill)
        row: Row = {"split": f"{prefill}P{TOTAL - prefill}D", "prefill": prefill}
        for name in ("prefill_tps", "decode_tps"):
            row[f"{name}_paper"] = getattr(seen, name)[place]
            row[f"{name}_ours"] = getattr(ours, name) / 1000
        for name in HARDWARE:
            row[f"{name}_paper"] = float(getattr(seen, name)[place])
            row[f"{name}_ours"] = 100 * getattr(ours, name)
        rows.append(row | {"limit": ours.limit})
    return rows


def _split(test: Pressure, prefill: int) -> Split:
    return next(each for each in test.splits if each.prefill == prefill)


def _shown(row: Row) -> Row:
    cells: Row = {"split": row["split"]}
    for name, label in (("prefill_tps", "prefill"), ("decode_tps", "decode")):
        cells[label] = f"{row[f'{name}_paper']:.1f} / {row[f'{name}_ours']:.1f}"
    for name in HARDWARE:
        label = name.replace("prefill_", "P ").replace("decode_", "D ").replace("gpu_util", "GPU")
        cells[label.replace("sm", "SM")] = f"{row[f'{name}_paper']:.0f} / {row[f'{name}_ours']:.0f}"
    return cells | {"limit": row["limit"]}


def peak_of(values: list[float]) -> int:
    """Place of the largest value."""
    return values.index(max(values))


def one_peak(values: list[float]) -> bool:
    """Whether the largest lies inside, and both sides fall away from it step by step."""
    top = peak_of(values)
    rising = all(a < b for a, b in pairwise(values[: top + 1]))
    falling = all(a > b for a, b in pairwise(values[top:]))
    return 0 < top < len(values) - 1 and rising and falling


def plain(service: str) -> list[float]:
    """Decode tokens/s of the splits if each pool simply did all it can, without objectives."""
    able, per_prompt = capacities(service), output_tokens(service) / PROMPT_TOKENS
    return [
        min(prefill * able["prefill"] * per_prompt, (TOTAL - prefill) * able["decode"]) / 1000
        for prefill in PREFILL
    ]


def claims_of(service: str, test: Pressure) -> list[Row]:
    """What the paper concludes from the figure, checked on the model.

    ``plain`` is what the four numbers taken from the figure give without any model of queues.
    """
    theirs = list(FIG4[service].decode_tps)
    ours = [_split(test, prefill).decode_tps / 1000 for prefill in PREFILL]
    simple = plain(service)
    busy = [100 * _split(test, prefill).decode_gpu_util for prefill in PREFILL]
    seen = list(FIG4[service].decode_gpu_util)
    flat = _range(busy) <= _range(seen) + DIGITISING_POINTS
    high = "high" if min(busy) >= HIGH_PERCENT else "not high"
    best = [PREFILL[peak_of(each)] for each in (theirs, ours)]
    lines: list[tuple[str, ...]] = [
        (
            "decode tokens/s have one maximum, inside, and fall off on both sides",
            *(verdict(one_peak(each)) for each in (theirs, ours, simple)),
            verdict(one_peak(ours)),
        ),
        ("the maximum", *(_best_name(each) for each in (theirs, ours, simple)), _moved(*best)),
        ("lost at 7P9D and at 12P4D", *(_losses(each) for each in (theirs, ours, simple)), "–"),
        (
            "mean distance of decode tokens/s, of the paper's best",
            "–",
            *(_distance(theirs, each) for each in (ours, simple)),
            "–",
        ),
        (
            "decode utilisation flat and high",
            f"{min(seen):.0f} to {max(seen):.0f} %",
            f"{min(busy):.0f} to {max(busy):.0f} %",
            "–",
            f"{high}, {'flat' if flat else 'less flat'} (fitted)",
        ),
    ]
    return [
        {"claim": f"{service}: {text}", "paper": a, "ours": b, "plain": c, "verdict": d}
        for text, a, b, c, d in lines
    ]


def _range(values: list[float]) -> float:
    return max(values) - min(values)


def _best_name(values: list[float]) -> str:
    prefill = PREFILL[peak_of(values)]
    return f"{prefill}P{TOTAL - prefill}D"


def _losses(values: list[float]) -> str:
    return " and ".join(f"{1 - values[end] / max(values):.0%}" for end in (0, -1))


def _distance(theirs: list[float], ours: list[float]) -> str:
    off = [abs(a - b) / max(theirs) for a, b in zip(theirs, ours, strict=True)]
    return f"{sum(off) / len(off):.1%}"


def _moved(theirs: int, ours: int) -> str:
    if ours == theirs:
        return "same"
    instances = abs(ours - theirs)
    return f"{instances} more {'prefill' if ours > theirs else 'decode'}"


def lengths() -> list[Row]:
    """The best split for lengths and objectives that the paper does not give."""
    rows = []
    for service in FIG4:
        for prompt in LENGTHS:
            for ttft in TTFT:
                best = _best(
                    lambda s=service, p=prompt, t=ttft: pressure_of(s, p, PoolModel(ttft_slo=t))
                )
                rows.append({"service": service, "prompt": prompt, "ttft": ttft, "best": best})
    return rows


def _by_length(rows: list[Row]) -> list[Row]:
    shown: dict[tuple[str, float], Row] = {}
    for row in rows:
        key = (row["service"], row["prompt"])
        line = shown.setdefault(key, {"service": key[0], "prompt tokens": f"{key[1]:.0f}"})
        line[f"TTFT {row['ttft']:g} s"] = row["best"]
    return list(shown.values())


def _best(test: Any) -> str:
    try:
        best = test().best_split
    except InputError:
        return "no load"
    return f"{best.prefill}P{best.decode}D"


def served_models() -> list[Row]:
    """The best split of every served model on L20 and H20, with the token ratios of A and B."""
    rows = []
    for path in sorted((ROOT / "models").glob("*.json")):
        model = ServedModel.from_file(path).name
        for prefill in ("L20", "H20"):
            for decode in ("H20", "L20"):
                try:
                    service = pooled(_served(model, prefill, decode))
                except InputError:
                    continue  # It does not run on this type.
                row: Row = {"model": model, "prefill on": _on(service, "prefill")}
                row["decode on"] = _on(service, "decode")
                for name in FIG4:
                    mix = mix_of(name)
                    row[f"{name}: best"] = _best(
                        lambda s=service, m=mix: pressure_test(s, m, TOTAL)
                    )
                    row[f"{name}: lost at 7P, 12P"] = _lost(service, name)
                rows.append(row)
    return rows


def _served(model: str, prefill: str, decode: str) -> Fleet:
    use = {
        role: {"use": [{"gpu_type": gpu}]}
        for role, gpu in (("prefill", prefill), ("decode", decode))
    }
    service = {
        "name": SERVICE,
        "model": model,
        "roles": use,
        "ratios": [{"target": 1}],
        "policy": {"primary": {"kind": "throughput"}},
    }
    return Fleet.from_dict({"schema": 1, "models": str(ROOT / "models"), "services": [service]})


def _on(service: Any, role: str) -> str:
    shape = service.shapes[role][0]
    return f"{shape.gpus} {shape.pod_list[0][0]}, {float(shape.capacity):,.0f}/s"


def _lost(service: Any, name: str) -> str:
    try:
        test = pressure_test(service, mix_of(name), TOTAL)
    except InputError:
        return "–"
    most = test.best_split.sustained
    ends = (_split(test, PREFILL[0]), _split(test, PREFILL[-1]))
    return " ".join(f"{1 - each.sustained / most:.0%}" for each in ends)


def draw(tests: dict[str, Pressure], path: Path) -> None:
    """The paper's points and our lines."""
    drawn = paper_study.figure(9.0, 6.6)
    axes = drawn.subplots(3, 2, sharex=True)
    for column, (service, test) in enumerate(tests.items()):
        seen, ours = FIG4[service], [_split(test, prefill) for prefill in PREFILL]
        axes[0][column].set_title(f"service {service}", fontsize="medium")
        _throughput(axes[0][column], seen, ours)
        for row, kind, label in ((1, "gpu_util", "GPU utilisation, %"), (2, "sm", "SM, %")):
            for role, colour in (("prefill", BLUE), ("decode", ORANGE)):
                name = f"{role}_{kind}"
                lines = [100 * getattr(each, name) for each in ours]
                axes[row][column].plot(PREFILL, lines, color=colour, label=f"{role}, ours")
                axes[row][column].plot(
                    PREFILL, getattr(seen, name), "o", color=colour, label=f"{role}, paper"
                )
            axes[row][column].set_ylim(0, 105)
            axes[row][column].set_ylabel(label)
        axes[1][column].legend(fontsize="x-small", frameon=False, ncols=2)
        axes[2][column].set_xticks(PREFILL, [f"{each}P{TOTAL - each}D" for each in PREFILL])
    for axis in axes.flat:
        axis.grid(axis="y", alpha=0.3)
        axis.locator_params(axis="y", nbins=4)
    drawn.suptitle(
        f"Fig. 4 of {SOURCE} (points; percent digitised) and the pool model (lines)",
        fontsize="medium",
    )
    paper_study.write_svg(drawn, path)


def _throughput(axis: Any, seen: Fig4, ours: list[Split]) -> None:
    axis.plot(PREFILL, [each.prefill_tps / 1000 for each in ours], color=BLUE)
    axis.plot(PREFILL, seen.prefill_tps, "o", color=BLUE)
    axis.set_ylabel("prefill, 1000 tokens/s", color=BLUE)
    axis.set_ylim(0, 1.15 * max(seen.prefill_tps))
    other = axis.twinx()
    other.plot(PREFILL, [each.decode_tps / 1000 for each in ours], color=ORANGE)
    other.plot(PREFILL, seen.decode_tps, "o", color=ORANGE)
    other.set_ylabel("decode, 1000 tokens/s", color=ORANGE)
    other.set_ylim(0, 1.15 * max(seen.decode_tps))
    other.locator_params(axis="y", nbins=4)
    axis.axvline(PREFILL[peak_of(list(seen.decode_tps))], color=GREY, linestyle=":")


def options() -> argparse.ArgumentParser:
    """The command's options."""
    return paper_study.parser(NAME, "The paper's pressure test (Fig. 4) and ours.")


if __name__ == "__main__":
    sys.exit(paper_study.main(options(), run))
