"""What the commands ``simulate`` and ``curate`` read: fleet, cluster, pools and traces."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heteroplace.errors import InputError
from heteroplace.files import validated

if TYPE_CHECKING:
    from heteroplace.policy.fleet import Fleet
    from heteroplace.simulate.demand import Demand, Noise

PAPER_DAY = "paper-day"
LARGEST = 1e9


def add_trace_options(command: argparse.ArgumentParser) -> None:
    """Declare the options that say what is asked of the services."""
    command.add_argument(
        "--trace",
        action="append",
        default=[],
        metavar="FILE[:SERVICE]",
        help=f"demand (CSV), or {PAPER_DAY} for the paper's daily curve; once per service",
    )
    command.add_argument(
        "--peak",
        action="append",
        default=[],
        metavar="[SERVICE:]X",
        help="scale the traces to a peak of so many requests per second",
    )
    command.add_argument(
        "--prompt-tokens", type=positive, metavar="N", help=f"of a request of {PAPER_DAY}"
    )
    command.add_argument(
        "--output-tokens", type=positive, metavar="N", help=f"of a request of {PAPER_DAY}"
    )
    command.add_argument(
        "--hit-rate",
        type=share,
        metavar="X",
        help="share of the prompt tokens in the KV cache, for traces that do not say",
    )
    command.add_argument(
        "--skip", type=non_negative, default=0.0, metavar="HOURS", help="begin so late in them"
    )
    command.add_argument(
        "--hours", type=positive, metavar="H", help="how long; default the shortest trace"
    )
    command.add_argument(
        "--repeat", action="store_true", help="repeat traces that are shorter than --hours"
    )
    command.add_argument(
        "--gaps",
        choices=("daily", "linear"),
        default="daily",
        help="fill gaps of a trace with the same time of other days (default) or with lines",
    )
    command.add_argument(
        "--interpolation",
        choices=("step", "linear"),
        help="between the windows of a trace; default linear from 300 s on, else step",
    )


def add_noise_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of the randomness."""
    command.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    command.add_argument(
        "--dispersion",
        type=non_negative,
        default=0.0,
        metavar="X",
        help="variance over mean of the requests of a tick: 1 Poisson, more is burstier; default 0",
    )
    command.add_argument(
        "--wander",
        type=non_negative,
        default=0.0,
        metavar="X",
        help="coefficient of variation of a slow random factor, default 0",
    )


def noise_of(arguments: argparse.Namespace) -> Noise:
    """Randomness that the options of :func:`add_noise_options` ask for."""
    from heteroplace.simulate.demand import Noise

    return validated(
        lambda: Noise(dispersion=arguments.dispersion, wander=arguments.wander), "noise"
    )


def positive(text: str) -> float:
    """Read a number above 0."""
    value = _number(text)
    if not 0 < value <= LARGEST:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text[:40]!r}")
    return value


def non_negative(text: str) -> float:
    """Read a number that is not below 0."""
    value = _number(text)
    if not 0 <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text[:40]!r}")
    return value


def share(text: str) -> float:
    """Read a number from 0 to below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to below 1, got {text[:40]!r}")
    return value


def seed(text: str) -> int:
    """Read a seed."""
    if not text.isdecimal() or not text.isascii() or int(text[:12]) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be from 0 to {2**31 - 1}, got {text[:40]!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_demand(
    arguments: argparse.Namespace, fleet: Fleet, unsized: float | None = None
) -> dict[str, Demand]:
    """Read the traces, each for its service, as the options of :func:`add_trace_options` say.

    Parameters
    ----------
    arguments
        As parsed.
    fleet
        Whose services they are for.
    unsized
        Peak of the daily curve where no option gives one; null to refuse that.

    Raises
    ------
    InputError
        If a trace cannot be read, its service cannot be told, or the options do not fit.
    """
    if not arguments.trace:
        raise InputError("--trace", f"is missing; give a CSV file or {PAPER_DAY}")
    peaks = _peaks(arguments.peak, fleet)
    found: dict[str, Demand] = {}
    for given in arguments.trace:
        for service, demand in _trace(given, arguments, fleet, peaks, unsized).items():
            if service in found:
                raise InputError("--trace", f"gives {service!r} a demand twice; keep one")
            found[service] = demand
    for scaled in peaks:
        if scaled is not None and scaled not in found:
            raise InputError("--peak", f"names {scaled!r}, which has no trace")
    return {name: _cut(demand, arguments) for name, demand in found.items()}


def _trace(
    given: str,
    arguments: argparse.Namespace,
    fleet: Fleet,
    peaks: dict[str | None, float],
    unsized: float | None,
) -> dict[str, Demand]:
    from heteroplace.simulate.traces import paper_day, read_trace

    path, service = _split(given, fleet)
    if path == PAPER_DAY:
        name = service or _only_service(fleet, given)
        lengths = {
            "prompt_tokens": arguments.prompt_tokens,
            "output_tokens": arguments.output_tokens,
        }
        if peaks.get(name, peaks.get(None)) is None and unsized is None:
            raise InputError("--peak", f"is missing: {PAPER_DAY} has a shape, but no size")
        given_lengths = {key: value for key, value in lengths.items() if value is not None}
        curve = paper_day(unsized or 1.0, **given_lengths)
        return {name: _sized(curve, name, arguments, peaks)}
    for option in ("prompt_tokens", "output_tokens"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option.replace('_', '-')}", f"goes with {PAPER_DAY} only")
    read = read_trace(path, arguments.interpolation)
    if set(read) == {None}:
        name = service or _only_service(fleet, given)
        return {name: _sized(read[None], name, arguments, peaks)}
    if service is not None and service not in read:
        raise InputError(path, f"has no rows of the service {service!r}")
    return {
        str(name): _sized(demand, str(name), arguments, peaks)
        for name, demand in read.items()
        if service is None or name == service
    }


def is_paper_day(given: str, fleet: Fleet) -> bool:
    """Whether a ``--trace`` is the paper's daily curve, which has no size of its own."""
    return _split(given, fleet)[0] == PAPER_DAY


def _split(given: str, fleet: Fleet) -> tuple[str, str | None]:
    """Split FILE:SERVICE; a file whose own name has a colon is found as it is."""
    path, colon, service = given.rpartition(":")
    if not colon or (Path(given).exists() and service not in fleet.service):
        return given, None
    if service not in fleet.service:
        known = ", ".join(list(fleet.service)[:8])
        raise InputError("--trace", f"{service!r} is no service of the fleet; it has {known}")
    return path, service


def _only_service(fleet: Fleet, given: str) -> str:
    if len(fleet.services) > 1:
        raise InputError(
            "--trace",
            f"{given}: for which service? Write {given}:SERVICE, with one of "
            f"{', '.join(list(fleet.service)[:8])}",
        )
    return fleet.services[0].name


def _sized(
    demand: Demand, name: str, arguments: argparse.Namespace, peaks: dict[str | None, float]
) -> Demand:
    peak = peaks.get(name, peaks.get(None))
    if peak is not None:
        demand = demand.scaled_to_peak(peak)
    if arguments.hit_rate is not None:
        if (demand.cached > 0).any():
            raise InputError("--hit-rate", f"{demand.name} says itself what the KV cache holds")
        demand = demand.with_hit_rate(arguments.hit_rate)
    return demand


def _cut(demand: Demand, arguments: argparse.Namespace) -> Demand:
    """Leave out the beginning, repeat if asked to; gaps are filled first, from the whole trace."""
    whole = demand.without_gaps(arguments.gaps)
    skip = arguments.skip * 3600
    repeat = arguments.repeat and arguments.hours is not None
    if skip >= whole.end and not repeat:
        raise InputError(
            "--skip",
            f"{demand.name} lasts {whole.end / 3600:.6g} h only; skip less, or give --repeat with "
            "--hours",
        )
    if repeat:
        whole = whole.repeated(skip + arguments.hours * 3600)
    return whole.part(skip, whole.end - skip) if skip else whole


def _peaks(given: Sequence[str], fleet: Fleet) -> dict[str | None, float]:
    peaks: dict[str | None, float] = {}
    for text in given:
        name, colon, number = text.rpartition(":")
        service = name if colon else None
        if service is not None and service not in fleet.service:
            raise InputError("--peak", f"{service!r} is no service of the fleet")
        if service in peaks:
            raise InputError("--peak", f"is given twice for {service or 'all services'}; keep one")
        try:
            peaks[service] = positive(number)
        except argparse.ArgumentTypeError as error:
            raise InputError("--peak", str(error)) from None
    return peaks
