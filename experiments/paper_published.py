"""What HeteroScale (arXiv 2508.19559v1) shows in its Figs. 2, 4, 6 and 7, as numbers.

The tokens per second of Fig. 4 are its printed labels. Everything else was digitised from the
figures by pixel: bars to about 0.5 percentage points, normalised curves to about 0.02.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "HeteroScale, arXiv 2508.19559v1"
DIGITISED = f"{SOURCE}, digitised"

# Fig. 4: splits of 16 instances into prefill and decode.
TOTAL = 16
PREFILL = (7, 8, 9, 10, 11, 12)


@dataclass(frozen=True)
class Fig4:
    """One service of Fig. 4, a value for each split of :data:`PREFILL`.

    Parameters
    ----------
    prefill_tps, decode_tps
        Thousands of tokens per second of the whole service.
    prefill_gpu_util, decode_gpu_util, prefill_sm, decode_sm
        Percent.
    """

    prefill_tps: tuple[float, ...]
    decode_tps: tuple[float, ...]
    prefill_gpu_util: tuple[float, ...]
    decode_gpu_util: tuple[float, ...]
    prefill_sm: tuple[float, ...]
    decode_sm: tuple[float, ...]


FIG4 = {
    "A": Fig4(
        prefill_tps=(137.0, 177.0, 197.0, 182.0, 189.0, 136.0),
        decode_tps=(21.0, 25.5, 26.7, 26.4, 26.3, 20.3),
        prefill_gpu_util=(87, 94, 92, 87, 78, 64),
        decode_gpu_util=(93, 95, 94, 94, 93, 94),
        prefill_sm=(66, 74, 71, 65, 64, 48),
        decode_sm=(60, 63, 64, 67, 68, 69),
    ),
    "B": Fig4(
        prefill_tps=(120.0, 146.0, 176.0, 194.0, 186.0, 150.0),
        decode_tps=(11.2, 13.8, 16.1, 18.2, 18.0, 14.9),
        prefill_gpu_util=(78, 81, 85, 84, 79, 60),
        decode_gpu_util=(93, 94, 94, 95, 96, 96),
        prefill_sm=(64, 59, 61, 63, 56, 42),
        decode_sm=(51, 57, 62, 65, 67, 68),
    ),
}


@dataclass(frozen=True)
class Fig6:
    """One panel of Fig. 6: a policy on one signal over 8 h, hours 8 to 16 of Fig. 5.

    Parameters
    ----------
    mean_gpus
        Mean of the number of GPUs over hours 1 to 8, normalised from its least to its most.
    correlation
        Of GPUs and tokens per second.
    best_correlation, lag
        Highest one with the GPUs some hours behind; null where none was read off.
    dip
        Least normalised GPUs in hours 4 to 6, where the load falls to about 0.5.
    """

    mean_gpus: float
    correlation: float
    best_correlation: float | None
    lag: float | None
    dip: float


FIG6 = {
    "prefill_tps": Fig6(0.71, 0.90, 0.95, 0.15, 0.40),
    "decode_tps": Fig6(0.65, 0.78, 0.85, 0.20, 0.23),
    "prefill_gpu_util": Fig6(0.79, 0.85, 0.94, 0.20, 0.48),
    "decode_gpu_util": Fig6(0.91, 0.27, None, None, 0.91),
    "prefill_sm": Fig6(0.60, 0.88, 0.94, 0.15, 0.34),
    "decode_sm": Fig6(0.76, 0.44, None, None, 0.78),
    "ttft": Fig6(0.87, 0.66, 0.81, 0.25, 0.56),
    "tbt": Fig6(0.73, 0.71, 0.85, 0.35, 0.37),
}

# Means over 24 h of Fig. 2 (no autoscaling) and Fig. 7 (HeteroScale), percent.
BEFORE = {"prefill_gpu_util": 47.0, "decode_gpu_util": 85.7, "prefill_sm": 36.7, "decode_sm": 53.1}
AFTER = {"prefill_gpu_util": 76.2, "decode_gpu_util": 82.3, "prefill_sm": 62.5, "decode_sm": 61.5}

# Fig. 7a: mean GPUs of the two roles over their peak, and the least, at hour 21.
MEAN_OF_PEAK = (0.58, 0.60)
LOW_OF_PEAK = 0.11
