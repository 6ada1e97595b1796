"""What the studies against the paper share: its services as fleets, demand, options, statistics.

A service of the paper's Fig. 4 is known by its tokens per second only. An instance of a role is
taken to be able to do the most that the figure shows one doing, at any split. What is not said here
is a default of the pools or of the policies.
"""

from __future__ import annotations

import argparse
import io
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import study
from paper_published import FIG4, PREFILL, TOTAL
from study import Row

from heteroplace.curate.pressure import Pressure, pressure_test
from heteroplace.errors import InputError
from heteroplace.files import write_text
from heteroplace.instance import Node
from heteroplace.policy import Cluster, Fleet
from heteroplace.policy.duration import parse_duration
from heteroplace.simulate import Demand, PoolModel, PoolModels, paper_day
from heteroplace.simulate.services import PooledService, pooled_services
from heteroplace.simulate.sizing import HEADROOM, Expected, expected, required, trial_counts
from heteroplace.simulate.steady import Mix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERVICE = "dialogue"
PROMPT_TOKENS = 2000.0
GPU_TYPES = {"prefill": "L20", "decode": "H20"}
NODE_GPUS = 8

# The simulated service is so many times as large as that of the pressure test, and its cluster has
# room for several times what the peak needs: policies overshoot.
SCALE = 4
ROOM = 3

# Fig. 7 begins at 8 h of Fig. 5: in it the peak is at 8 h and the least load at 21 h.
DAY_BEGINS = 8 * 3600.0

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#7f7f7f"


def output_tokens(service: str, prompt_tokens: float = PROMPT_TOKENS) -> float:
    """Tokens to generate of a request: as Fig. 4 has them per prompt token, over all splits."""
    seen = FIG4[service]
    return prompt_tokens * sum(seen.decode_tps) / sum(seen.prefill_tps)


def capacities(service: str) -> dict[str, float]:
    """Tokens per second of an instance of each role: the most that Fig. 4 shows."""
    seen = FIG4[service]
    prefill = max(tps / count for tps, count in zip(seen.prefill_tps, PREFILL, strict=True))
    decode = max(tps / (TOTAL - count) for tps, count in zip(seen.decode_tps, PREFILL, strict=True))
    return {"prefill": 1000 * prefill, "decode": 1000 * decode}


def fleet_of(
    service: str,
    ratio: Fraction,
    counts: Mapping[str, int] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Fleet:
    """A fleet of one of the paper's services.

    Parameters
    ----------
    service
        A or B.
    ratio
        Prefill over decode instances.
    counts
        Role -> instances that it always has; default what its policy says.
    changes
        Fields of the service, as in a fleet file.
    """
    roles: dict[str, Any] = {}
    for role, capacity in capacities(service).items():
        pods = [{"gpu_type": GPU_TYPES[role], "gpus": NODE_GPUS}]
        shape = {"name": role, "pods": pods, "capacity": round(capacity, 1)}
        roles[role] = {"shapes": [shape]}
        if counts is not None:
            roles[role] |= {"min": counts[role], "max": counts[role]}
    made = {
        "name": SERVICE,
        "affinity": {"required": "s2"},
        "roles": roles,
        "ratios": [{"target": str(ratio)}],
        "policy": {"primary": {"kind": "throughput"}},
    }
    return Fleet.from_dict({"schema": 1, "services": [made | dict(changes or {})]})


def pooled(fleet: Fleet, model: PoolModel | None = None) -> PooledService:
    """The one service of a fleet with its pools; default parameters."""
    pools = PoolModels() if model is None else PoolModels(schema_=1, defaults=model)
    return pooled_services(fleet, pools, {SERVICE})[0]


def mix_of(service: str, prompt_tokens: float = PROMPT_TOKENS) -> Mix:
    """The mean request; nothing of it is in the KV cache, as Fig. 4 counts tokens computed."""
    return Mix(prompt_tokens, prompt_tokens, output_tokens(service, prompt_tokens))


def pressure_of(
    service: str, prompt_tokens: float = PROMPT_TOKENS, model: PoolModel | None = None
) -> Pressure:
    """The pressure test of one of the paper's services."""
    fleet = fleet_of(service, Fraction(1))
    return pressure_test(pooled(fleet, model), mix_of(service, prompt_tokens), TOTAL)


class Setting:
    """A service under its daily load, at one ratio: what the simulations of a study start from.

    Parameters
    ----------
    service
        A or B.
    ratio
        Prefill over decode instances; default that of the best split.
    headroom
        Share of the sustained load that is the policies' operating point.
    changes
        Fields of the service, as in a fleet file.
    """

    def __init__(
        self,
        service: str,
        ratio: Fraction | None = None,
        headroom: float = HEADROOM,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        found = pressure_of(service)
        self.service = service
        self.ratio = ratio or Fraction(str(found.ratio))
        self.fleet = fleet_of(service, self.ratio, changes=changes)
        self.pooled = pooled(self.fleet)
        # The size of the load is the same for every ratio and headroom, so that they compare.
        self.peak = SCALE * HEADROOM * found.best_split.sustained
        self.point = self._operating(headroom)
        self.static = self._static()

    def _operating(self, headroom: float) -> Expected:
        counts = trial_counts(self.pooled)
        point = counts and expected(self.pooled, mix_of(self.service), counts, headroom)
        if not point:
            raise InputError("--ratio", f"{self.ratio} keeps the objectives at no load")
        return point

    def _static(self) -> dict[str, int]:
        counts = required(self.pooled, mix_of(self.service), self.peak)
        if counts is None:
            raise InputError(
                "--ratio", f"no counts at {self.ratio} keep the objectives at the peak"
            )
        return counts

    def demand(self, hours: float) -> Demand:
        """The daily curve of Fig. 5 from its hour 8 on."""
        day = paper_day(1.0, PROMPT_TOKENS, output_tokens(self.service))
        # The curve's own peak is 98 % of its scale.
        return day.scaled_to_peak(self.peak).repeated(2 * day.end).part(DAY_BEGINS, hours * 3600)

    def cluster(self) -> Cluster:
        """Nodes under one switch, one instance on each."""
        return Cluster(
            schema_=1,
            nodes=tuple(
                Node(
                    name=f"{role}-{number}",
                    gpu_type=GPU_TYPES[role],
                    gpus=NODE_GPUS,
                    domains={"cluster": "one", "s2": "one", "s1": "one"},
                )
                for role, count in self.static.items()
                for number in range(ROOM * count + 4)
            ),
        )

    def described(self) -> Row:
        """What fixes the result, for the record."""
        return {
            "service": self.service,
            "ratio": str(self.ratio),
            "capacities": capacities(self.service),
            "prompt_tokens": PROMPT_TOKENS,
            "output_tokens": output_tokens(self.service),
            "peak_requests_per_s": self.peak,
            "headroom": self.point.headroom,
            "targets": self.point.signals,
            "static_counts": self.static,
            "decode_load_at_full_prefill": self.fed(),
        }

    def fed(self) -> float:
        """Share of the decode capacity that a full prefill pool hands on."""
        able = capacities(self.service)
        handed = able["prefill"] * float(self.ratio) * output_tokens(self.service) / PROMPT_TOKENS
        return handed / able["decode"]


class Parser(argparse.ArgumentParser):
    """Options whose fault is told in one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser(name: str, description: str, seeds: int | None = None) -> argparse.ArgumentParser:
    """The options of every study.

    Parameters
    ----------
    name, description
        Of the study.
    seeds
        Default number of seeds; null for a study without randomness, which has no such option.
    """
    made = Parser(prog=f"experiments/{name}.py", description=description)
    if seeds is not None:
        made.add_argument(
            "--seeds", type=count, default=seeds, metavar="N", help=f"0 to N - 1; default {seeds}"
        )
    made.add_argument("--out", default=f"out/{name}", metavar="FOLDER", help=f"default out/{name}")
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    return made


def count(text: str) -> int:
    """Read a number of seeds."""
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:7]) <= 1000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000, got {text[:40]!r}")
    return int(text)


def add_setting_options(made: argparse.ArgumentParser) -> None:
    """The options of studies that simulate."""
    made.add_argument("--service", choices=sorted(FIG4), default="A", help="of Fig. 4; default A")
    made.add_argument(
        "--ratio", type=ratio, metavar="P/D", help="default that of the best split of the test"
    )
    made.add_argument(
        "--headroom",
        type=share,
        default=HEADROOM,
        metavar="X",
        help=f"operating point as a share of the sustained load; default {HEADROOM:g}",
    )
    made.add_argument(
        "--dispersion",
        type=dispersion,
        default=1.0,
        metavar="X",
        help="variance over mean of the requests of a tick; default 1, Poisson as in the pools",
    )


def ratio(text: str) -> Fraction:
    """Read a P/D ratio."""
    try:
        found = Fraction(text) if len(text) <= 20 else Fraction(0)
    except (ValueError, ZeroDivisionError):
        found = Fraction(0)
    if not Fraction(1, 15) <= found <= 15 or found.denominator > 1000:
        raise argparse.ArgumentTypeError(
            f"must be a ratio from 1/15 to 15 such as 9/7, got {text[:40]!r}"
        )
    return found


def share(text: str) -> float:
    """Read a share above 0."""
    value = _float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text[:40]!r}")
    return value


def dispersion(text: str) -> float:
    """Read a variance over a mean."""
    value = _float(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1000000, got {text[:40]!r}")
    return value


def duration(text: str) -> float:
    """Read a duration of up to a day."""
    try:
        number = _float(text)
        value: float = parse_duration(text if math.isnan(number) else number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if value > 86_400:
        raise argparse.ArgumentTypeError(f"must be at most a day, got {text[:40]!r}")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# -- statistics ------------------------------------------------------------------------------------


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from 1 on, the smallest first; equal ones share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one of the two does not vary."""
    one, other = np.array(ranks(first)), np.array(ranks(second))
    if one.std() == 0 or other.std() == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def chance_of(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Probability of a rank correlation at least as high if every order were equally likely.

    Exact, by all orders; at most 9 values.
    """
    if spearman(first, second) is None:
        return None
    one, other = np.array(ranks(first)), np.array(ranks(second))
    orders = np.array(list(permutations(range(len(other)))))
    products = other[orders] @ one
    return float(np.mean(products >= other @ one - 1e-9))


def spread(values: Sequence[float | None], places: int = 2) -> str:
    """Mean with the least and the most, as in ``0.98 (0.97–0.99)``; – where one is not known."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    mean, low, high = (f"{each:.{places}f}" for each in (np.mean(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low}–{high})"


def mean(values: Sequence[float | None]) -> float | None:
    """Mean; None where one value is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


# -- output ----------------------------------------------------------------------------------------


def require_drawing() -> None:
    """Raise :class:`heteroplace.InputError` when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "--out", "needs matplotlib; install it with: pip install 'heteroplace[study]'"
        ) from None


def figure(width: float, height: float) -> Figure:
    """An empty figure, drawn without a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# Attributes that are coordinates, and what of them can go; text keeps its digits.
_PLACES = re.compile(r'\b(?:d|x|y|points|transform)="[^"]*"')
_DIGITS = re.compile(r"(\d\.\d\d)\d+")


def write_svg(drawn: Figure, path: Path) -> None:
    """Write a figure; the same one gives the same bytes."""
    import matplotlib

    # Two decimals of a point are finer than any screen, and make it smaller.
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "heteroplace", "svg.fonttype": "none"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = _PLACES.sub(lambda found: _DIGITS.sub(r"\1", found[0]), buffer.getvalue())
    write_text(path, "\n".join(line.strip() for line in text.splitlines()) + "\n")


def claim(text: str, paper: str, ours: str, verdict: str) -> Row:
    """A row of the table of claims."""
    return {"claim": text, "paper": paper, "ours": ours, "verdict": verdict}


def verdict(holds: bool) -> str:
    """Whether a claim holds in the model."""
    return "holds" if holds else "does not hold"


main = study.main
