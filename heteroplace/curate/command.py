"""``heteroplace curate``: its options, and what it runs, writes and shows."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from heteroplace.errors import InputError
from heteroplace.profile import SolverName
from heteroplace.simulate.command import duration, number, percent, profile_of, progress
from heteroplace.simulate.inputs import (
    add_noise_options,
    add_trace_options,
    is_paper_day,
    noise_of,
    positive,
    read_demand,
    share,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from heteroplace.curate.choose import Candidate, Curation
    from heteroplace.policy.fleet import Fleet


@dataclass
class Shown:
    """What the command prints.

    Parameters
    ----------
    json
        The whole outcome.
    parts
        Tables and lines for people.
    failed
        Whether no candidate kept the objectives.
    """

    json: str = ""
    parts: list[RenderableType] = field(default_factory=list)
    failed: bool = False


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the options."""
    command.add_argument("--fleet", metavar="FILE", help="fleet (TOML or JSON) with the service")
    command.add_argument(
        "--model", metavar="FILE", help="instead of a fleet: a served model (JSON), see models/"
    )
    command.add_argument(
        "--prefill-gpu", metavar="TYPE[:N]", help="with --model: GPU type, and GPUs per instance"
    )
    command.add_argument(
        "--decode-gpu", metavar="TYPE[:N]", help="with --model: GPU type, and GPUs per instance"
    )
    command.add_argument("--cluster", metavar="FILE", help="cluster (JSON); default one made up")
    add_trace_options(command)
    command.add_argument(
        "--policies",
        type=_names,
        metavar="NAMES",
        help="candidates with commas: signals, or fleet for its own policy; default all signals",
    )
    command.add_argument(
        "--total", type=_total, default=16, metavar="N", help="instances to split, default 16"
    )
    command.add_argument(
        "--headroom",
        type=positive,
        default=0.8,
        metavar="X",
        help="share of the sustained load at which targets are read, default 0.8",
    )
    command.add_argument(
        "--score",
        choices=("gpu-hours", "throughput"),
        default="gpu-hours",
        help="by what to choose among candidates within the objectives, default gpu-hours",
    )
    command.add_argument(
        "--attain",
        type=share,
        metavar="X",
        help="least share within the objectives; default the fleet's latency_percentile",
    )
    command.add_argument("--pools", metavar="FILE", help="pool models (TOML), docs/simulate.md")
    command.add_argument(
        "--interval", type=duration, metavar="T", help="from step to step, default the fleet's"
    )
    command.add_argument(
        "--tick", type=duration, metavar="T", help="of the pools, default at most 15 s"
    )
    add_noise_options(command)
    command.add_argument("--profile", metavar="FILE", help="solver profile (TOML), see solvers/")
    command.add_argument("--solver", choices=get_args(SolverName), help="default greedy")
    command.add_argument(
        "--out",
        metavar="FILE",
        help="write the choice: a whole fleet if it ends with .json, else a piece of one (TOML)",
    )
    command.add_argument("--json", action="store_true", help="print the whole outcome as JSON")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _total(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text[:40]!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> Shown:
    """Curate what the options ask for.

    Parameters
    ----------
    arguments
        As parsed with :func:`add_options`.

    Raises
    ------
    InputError
        If a file cannot be read or written, or what is asked for does not fit together.
    """
    from heteroplace.curate.choose import curate
    from heteroplace.curate.fragment import fragment
    from heteroplace.files import write_text
    from heteroplace.policy.cluster import Cluster
    from heteroplace.simulate.model import PoolModels
    from heteroplace.simulate.policies import POLICIES

    fleet = _fleet(arguments)
    cluster = None if arguments.cluster is None else Cluster.from_file(arguments.cluster)
    pools = None if arguments.pools is None else PoolModels.from_file(arguments.pools)
    demands = read_demand(arguments, fleet, unsized=1.0)
    if len(demands) > 1:
        raise InputError("--trace", f"gives {len(demands)} services a demand; curate one at a time")
    service, demand = next(iter(demands.items()))
    sized = bool(arguments.peak) or not is_paper_day(arguments.trace[0], fleet)
    with progress("curate") as tell:
        curation, chosen = curate(
            fleet,
            service,
            demand,
            cluster=cluster,
            pools=pools,
            policies=POLICIES if arguments.policies is None else arguments.policies,
            total=arguments.total,
            headroom=arguments.headroom,
            score=arguments.score,
            attain=arguments.attain,
            peak=None if sized else 0.0,
            hours=arguments.hours,
            interval=arguments.interval,
            tick=arguments.tick,
            noise=noise_of(arguments),
            seed=arguments.seed,
            profile=profile_of(arguments),
            progress=tell,
        )
    shown = Shown(json=curation.model_dump_json(indent=1), failed=curation.chosen is None)
    shown.parts = [pressure_table(curation), candidate_table(curation), curation.reason]
    shown.parts += [f"note: {note}" for note in curation.notes]
    if arguments.out is not None and curation.chosen is None:
        shown.parts.append(f"{arguments.out} not written: there is nothing to choose")
    elif arguments.out is not None:
        whole = arguments.out.lower().endswith(".json")
        write_text(arguments.out, chosen.to_json() + "\n" if whole else fragment(curation, chosen))
        shown.parts.append(f"choice written to {arguments.out}")
    return shown


def _fleet(arguments: argparse.Namespace) -> Fleet:
    from heteroplace.policy.fleet import Fleet

    options = {"--prefill-gpu": arguments.prefill_gpu, "--decode-gpu": arguments.decode_gpu}
    if (arguments.fleet is None) == (arguments.model is None):
        raise InputError("", "give either --fleet or --model")
    if arguments.fleet is not None:
        for option, value in options.items():
            if value is not None:
                raise InputError(option, "goes with --model; a fleet says it itself")
        return Fleet.from_file(arguments.fleet)
    from heteroplace.models import ServedModel

    model = ServedModel.from_file(arguments.model)
    roles = {}
    for option, value in options.items():
        if value is None:
            role = option.removeprefix("--").removesuffix("-gpu")
            types = sorted({way.gpu_type for way in model.roles.get(role, ())})
            raise InputError(option, f"is missing; {model.name} knows {', '.join(types)}")
        gpu_type, colon, gpus = value.partition(":")
        if colon and not (gpus.isdecimal() and gpus.isascii()):
            raise InputError(option, f"must be TYPE or TYPE:GPUS, got {value[:40]!r}")
        way = {"gpu_type": gpu_type, **({"gpus": int(gpus[:9])} if colon else {})}
        roles[option.removeprefix("--").removesuffix("-gpu")] = {"max": 1000, "use": [way]}
    return Fleet.from_dict(
        {
            "schema": 1,
            "name": model.name,
            "served": [model.model_dump()],
            "services": [
                {
                    "name": model.name,
                    "model": model.name,
                    "roles": roles,
                    "ratios": [{"target": 1}],
                    "policy": {"primary": {"kind": "throughput"}},
                }
            ],
        }
    )


def pressure_table(curation: Curation) -> Table:
    """The pressure test as a table."""
    from rich.table import Table
    from rich.text import Text

    from heteroplace.show import clean

    test = curation.pressure
    table = Table(
        title=f"Pressure test of {clean(test.service)}\n{test.missed_tokens:.0f} prompt tokens to "
        f"compute, {test.output_tokens:.0f} to generate; TTFT {test.ttft_slo:g} s, TBT "
        f"{test.tbt_slo:g} s at {test.percentile:g}",
        title_justify="left",
        padding=(0, 0),
        collapse_padding=True,
    )
    headers = (
        "P",
        "D",
        "P:D",
        "req/s",
        "per GPU",
        "prefill/s",
        "decode/s",
        "GPU P/D %",
        "SM P/D %",
    )
    for header in headers:
        table.add_column(header, justify="right")
    table.add_column("limit")
    table.add_column("")
    for index, split in enumerate(test.splits):
        utils = (split.prefill_gpu_util, split.decode_gpu_util)
        activities = (split.prefill_sm, split.decode_sm)
        table.add_row(
            str(split.prefill),
            str(split.decode),
            "–" if split.ratio is None else f"{split.ratio:.2f}",
            number(split.sustained),
            number(split.sustained / split.gpus, 2),
            number(split.prefill_tps, 0),
            number(split.decode_tps, 0),
            "/".join(f"{100 * each:.0f}" for each in utils),
            "/".join(f"{100 * each:.0f}" for each in activities),
            Text(split.limit),
            "best" if index == test.best else "",
        )
    return table


def candidate_table(curation: Curation) -> Table:
    """The candidates as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"Candidates at a peak of {curation.peak:.4g} requests/s, by {curation.score}",
        title_justify="left",
        padding=(0, 0),
        collapse_padding=True,
    )
    table.add_column("policy", no_wrap=True)
    scored = ("tokens/s kept",) if curation.score == "throughput" else ()
    headers = ("target", "TTFT kept", "TBT kept", "GPU-hours", *scored)
    for header in (*headers, "out", "in", "corr.", "best", "lag h"):
        table.add_column(header, justify="right")
    table.add_column("", no_wrap=True)
    for each in curation.candidates:
        summary = each.summary
        table.add_row(
            Text(each.policy),
            "–" if each.target is None else f"{each.target:.4g}",
            percent(summary.ttft_attained),
            percent(summary.tbt_attained),
            number(summary.gpu_hours),
            *(number(each.score, 0) for _ in scored),
            str(summary.scale_out),
            str(summary.scale_in),
            number(summary.correlation, 2),
            number(summary.best_correlation, 2),
            number(summary.best_lag_hours, 2),
            _verdict(each, curation),
        )
    return table


def _verdict(candidate: Candidate, curation: Curation) -> str:
    if candidate.policy == curation.chosen:
        return "chosen"
    return "" if candidate.within else "breaks SLO"
