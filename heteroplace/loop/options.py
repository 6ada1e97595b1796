"""The options of ``heteroplace targets`` and ``heteroplace run``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from datetime import datetime

from heteroplace.files import MAX_BYTES

LATEST = 1e12
MOST_CYCLES = 10**9
MOST_HISTORY = 10**6
LAST = 20


def add_targets_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of ``targets``."""
    _add_inputs(command)
    command.add_argument("--state", metavar="FILE", help="state of a run to begin with; only read")
    command.add_argument(
        "--out", metavar="INSTANCE", help="write the placement instance that solve reads"
    )
    command.add_argument("--json", action="store_true", help="print the decisions as JSON")
    command.add_argument(
        "--history",
        nargs="?",
        type=_whole("decisions", MOST_HISTORY),
        const=LAST,
        metavar="N",
        help=f"instead: list the last N decisions that --state keeps, default {LAST}",
    )
    command.add_argument("--service", metavar="NAME", help="only this service in --history")


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of ``run``, but for those of the solver."""
    _add_inputs(command)
    command.add_argument(
        "--state", metavar="FILE", help="what survives a restart (SQLite); needed with --apply"
    )
    command.add_argument(
        "--interval", type=_duration, metavar="TIME", help="between cycles; default the fleet's"
    )
    command.add_argument(
        "--cycles",
        type=_whole("cycles", MOST_CYCLES),
        metavar="N",
        help="end after so many; exit code 1 if one of them failed",
    )
    command.add_argument("--json", action="store_true", help="print each action as a line of JSON")
    command.add_argument("--log-json", action="store_true", help="log lines of JSON")
    command.add_argument(
        "--listen", metavar="HOST:PORT", help="serve metrics of its own to Prometheus"
    )
    command.add_argument(
        "--keep",
        type=_whole("decisions", MOST_HISTORY),
        default=100_000,
        metavar="N",
        help="decisions that the history keeps, default 100000",
    )
    handover = command.add_argument_group("handing over")
    handover.add_argument(
        "--apply", action="store_true", help="hand actions over; without it they are only shown"
    )
    handover.add_argument("--to", metavar="FOLDER", help="a file for each action")
    handover.add_argument(
        "--to-command", metavar="COMMAND", help="a command that gets each action as its input"
    )
    handover.add_argument(
        "--ask",
        metavar="COMMAND",
        help="ask before the command gets an action again: exit code 0 if it is known, else 1",
    )
    handover.add_argument(
        "--handover-timeout",
        type=_duration,
        default=60.0,
        metavar="TIME",
        help="for one attempt of the command, default 60s",
    )
    handover.add_argument(
        "--attempts",
        type=_whole("attempts", 100),
        default=3,
        metavar="N",
        help="to hand an action over in one cycle, default 3",
    )
    handover.add_argument(
        "--backoff",
        type=_duration,
        default=1.0,
        metavar="TIME",
        help="before the second attempt, doubled for each further one, default 1s",
    )
    handover.add_argument(
        "--patience",
        type=_duration,
        default=900.0,
        metavar="TIME",
        help="an action may take to show on the cluster, default 15m",
    )
    handover.add_argument(
        "--drop",
        metavar="ID",
        help="instead: forget an action that waits in --state and that no receiver will take",
    )


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--fleet", metavar="FILE", help="services and policies (TOML or JSON)")
    command.add_argument("--cluster", metavar="FILE", help="nodes and what runs on them (JSON)")
    command.add_argument(
        "--cluster-command", metavar="COMMAND", help="a command that prints the cluster instead"
    )
    command.add_argument(
        "--max-cluster-age",
        type=_duration,
        default=600.0,
        metavar="TIME",
        help="oldest cluster that is used, if it says its time; default 10m",
    )
    command.add_argument(
        "--metrics", metavar="FILE|URL", help="metrics to replay, or Prometheus; else the fleet's"
    )
    command.add_argument(
        "--now",
        type=_moment,
        metavar="TIME",
        help="take it to be this time: unix seconds or 2026-01-31T08:00:00Z",
    )
    command.add_argument(
        "--max-bytes",
        type=_whole("bytes", 2**32),
        default=MAX_BYTES,
        metavar="N",
        help=f"largest file read, default {MAX_BYTES}",
    )


def _whole(what: str, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) <= 12
        if not plain or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be from 1 to {most} {what}, got {text[:40]!r}")
        return int(text)

    return parse


def _duration(text: str) -> float:
    from heteroplace.policy.duration import parse_duration

    try:
        seconds = parse_duration(float(text) if _is_number(text) else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0 seconds, got {text[:40]!r}")
    return seconds


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _moment(text: str) -> float:
    wrong = argparse.ArgumentTypeError(
        f"must be unix seconds or a time with its zone as in 2026-01-31T08:00:00Z, "
        f"got {text[:40]!r}"
    )
    if _is_number(text):
        at = float(text)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise wrong from None
        if moment.tzinfo is None:
            raise wrong
        at = moment.timestamp()
    if not math.isfinite(at) or not 0 <= at <= LATEST:
        raise wrong
    return at
