"""Pictures of an outcome, drawn without a display."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from heteroplace.simulate.outcome import Outcome

# Okabe and Ito: told apart with any colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7f7f7f"
_MOST_POINTS = 3000


def draw(outcome: Outcome, service: str, kind: str = "svg") -> bytes:
    """Draw the load, GPUs, instances, latencies and hardware counters of one service.

    Parameters
    ----------
    outcome
        The outcome.
    service
        Name of the service.
    kind
        ``svg`` or ``png``.

    Returns
    -------
    bytes
        The picture; the same outcome gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    own = {name: values[:: _stride(outcome)] for name, values in outcome.of(service).items()}
    hours = outcome.hours[:: _stride(outcome)]
    summary = outcome.summary(service)
    with matplotlib.rc_context({"svg.hashsalt": "heteroplace", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.0, 11.0), layout="constrained", dpi=110)
        axes = figure.subplots(5, 1, sharex=True)
        _load(axes[0], hours, own)
        _instances(axes[1], hours, own)
        _latency(axes[2], hours, own, "ttft", summary.ttft_slo)
        _latency(axes[3], hours, own, "tbt", summary.tbt_slo)
        _hardware(axes[4], hours, own)
        axes[-1].set_xlabel("hours from the start")
        axes[-1].set_xlim(hours[0], hours[-1] if len(hours) > 1 else hours[0] + 1)
        for axis in axes:
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        # A name is no mathematics.
        figure.suptitle(f"{service}, policy {outcome.policy}", parse_math=False)
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _stride(outcome: Outcome) -> int:
    return max(1, -(-outcome.ticks // _MOST_POINTS))


def _load(axis: Any, hours: Any, own: dict[str, Any]) -> None:
    tokens = (own["missed"] + own["output"]) / 1000
    axis.plot(hours, tokens, color=BLUE, label="load")
    axis.set_ylabel("load, 1000 tokens/s", color=BLUE)
    axis.set_ylim(bottom=0)
    other = axis.twinx()
    other.step(hours, own["gpus"], color=ORANGE, where="post", label="GPUs")
    other.set_ylabel("GPUs occupied", color=ORANGE)
    other.set_ylim(bottom=0)
    other.spines[["top"]].set_visible(False)


def _instances(axis: Any, hours: Any, own: dict[str, Any]) -> None:
    for role, colour in (("prefill", BLUE), ("decode", ORANGE)):
        axis.step(
            hours, own[f"{role}_instances"], where="post", color=colour, label=f"{role} serving"
        )
        axis.step(
            *(hours, own[f"{role}_target"]),
            **{"where": "post", "color": colour, "linestyle": ":", "label": f"{role} target"},
        )
    axis.set_ylabel("instances")
    axis.set_ylim(bottom=0)
    axis.legend(ncols=4, fontsize="small", frameon=False)


def _latency(axis: Any, hours: Any, own: dict[str, Any], signal: str, slo: float) -> None:
    axis.plot(hours, own[signal], color=RED, label="at the percentile")
    axis.plot(hours, own[f"{signal}_mean"], color=BLUE, label="mean")
    axis.axhline(slo, color=GREY, linestyle="--", label=f"objective {slo:g} s")
    axis.set_ylabel(f"{signal.upper()}, s")
    known = own[signal][~np.isnan(own[signal])]
    if len(known) and known.max() > 20 * slo:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.legend(ncols=3, fontsize="small", frameon=False)


def _hardware(axis: Any, hours: Any, own: dict[str, Any]) -> None:
    for name, colour, style in (
        ("prefill_gpu_util", BLUE, "-"),
        ("decode_gpu_util", ORANGE, "-"),
        ("prefill_sm", BLUE, ":"),
        ("decode_sm", ORANGE, ":"),
    ):
        label = name.replace("_gpu_util", " GPU utilisation").replace("_sm", " SM activity")
        axis.plot(hours, 100 * own[name], color=colour, linestyle=style, label=label)
    axis.set_ylabel("percent")
    axis.set_ylim(0, 105)
    axis.legend(ncols=2, fontsize="small", frameon=False)
