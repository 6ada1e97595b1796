"""The command line: parse, call, render."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

import heteroplace
from heteroplace.bench import command as bench
from heteroplace.check import check, check_and_evaluate
from heteroplace.compare import command as compare
from heteroplace.curate import command as curate_command
from heteroplace.errors import InputError
from heteroplace.explain import Explanation, explain
from heteroplace.files import MAX_BYTES, input_error, write_text
from heteroplace.generate import FAMILIES, Family, family_from, from_inventory, generate
from heteroplace.instance import Instance
from heteroplace.loop import command as loop
from heteroplace.page import page
from heteroplace.plan import Plan, Result, Unmet
from heteroplace.profile import Profile, SolverName
from heteroplace.report import command as report_command
from heteroplace.show import clean, plan_tables, render
from heteroplace.simulate import command as simulate_command
from heteroplace.solve import solve

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

DONE, NO, BAD_INPUT = 0, 1, 2
INTERRUPTED = 130
MOST_EXPLAINED = 20
EXPLAIN_SECONDS = (0.1, 2.0)
MOST_BYTES = 2**32
OPTIONS = ("solver", "engine", "time_limit", "threads", "seed", "deterministic")

# The options of --nodes with the parameter of from_inventory, the placeholder and the meaning.
INVENTORY = {
    "--capacity": ("capacity_csv", "FILE.csv", "capacities from a table, not the models folder"),
    "--models": ("models_dir", "FOLDER", "served models"),
    "--isl": ("isl", "N", "prompt length in tokens"),
    "--services": ("services", "N", "number of services"),
    "--load": ("load", "X", "GPUs for all targets together, of the usable ones"),
    "--running": ("running", "X", "of the usable GPUs, where groups run already"),
    "--change": ("change", "X", "of the services, those that change their target"),
    "--scale-in": ("scale_in", "X", "of the changing services, those that scale in"),
    "--draining": ("draining", "X", "of the running units, those that drain"),
    "--max-bytes": ("max_bytes", "N", "largest file read"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("heteroplace").strip()
        raise InputError(command, f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: object = None) -> None:
        if message:
            _emit(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 the answer is no, 2 bad input."""
    try:
        parsed = _parser().parse_args(arguments)
        if parsed.verbose:
            logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        else:
            logging.getLogger("heteroplace").addHandler(logging.NullHandler())
        code: int = parsed.run(parsed)
        return code
    except SystemExit:  # --help and --version
        return DONE
    except InputError as error:
        print(f"heteroplace: {clean(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        return DONE  # Whoever read our output has seen enough.
    except KeyboardInterrupt:
        print("heteroplace: interrupted", file=sys.stderr)
        return INTERRUPTED


def console() -> NoReturn:
    """Run the command line as a program of its own."""
    code = main()
    if threading.active_count() > 1:
        # An engine that overran its time has nothing to say any more; do not wait for it.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.flush()
        os._exit(code)
    sys.exit(code)


def _emit(text: str) -> None:
    """Write to standard output; what its encoding lacks is escaped as in JSON."""
    if sys.stdout is None:
        return
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Keep the interpreter from writing the rest once more when it ends.
        sys.stdout = None
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError("standard output", f"cannot be written: {error.strerror}") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="heteroplace", description=heteroplace.__doc__)
    parser.add_argument("--version", action="version", version=heteroplace.__version__)
    parser.add_argument("--verbose", action="store_true", help="log to standard error")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_Parser
    )
    _add_solve(commands)
    _add_check(commands)
    _add_explain(commands)
    _add_show(commands)
    _add_generate(commands)
    _add_bench(commands)
    _add_targets(commands)
    _add_run(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_simulate(commands)
    _add_curate(commands)
    return parser


def _add_solve(commands: Commands) -> None:
    command = commands.add_parser("solve", help="decide where every instance goes")
    _add_instance(command)
    command.add_argument("--out", metavar="FILE", help="write the plan as JSON")
    command.add_argument("--json", action="store_true", help="print the whole result as JSON")
    _add_solver(command)
    command.set_defaults(run=_solve)


def _add_solver(command: argparse.ArgumentParser) -> None:
    command.add_argument("--profile", metavar="FILE", help="solver profile (TOML), see solvers/")
    command.add_argument("--solver", choices=get_args(SolverName), help="default auto")
    command.add_argument("--engine", help="engine of milp: HiGHS, CBC or any name PuLP knows")
    command.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="for the solve and its explanations, default 30",
    )
    command.add_argument("--threads", type=int, help="threads of the engine")
    command.add_argument("--seed", type=int, help="seed of the engine, default 0")
    command.add_argument(
        "--deterministic", action="store_true", default=None, help="same seed, same plan"
    )


def _add_check(commands: Commands) -> None:
    command = commands.add_parser("check", help="verify a plan from any tool")
    _add_instance(command)
    command.add_argument("plan", metavar="PLAN", help="plan (JSON)")
    command.add_argument("--json", action="store_true", help="print violations and objective")
    command.set_defaults(run=_check)


def _add_explain(commands: Commands) -> None:
    command = commands.add_parser("explain", help="say why capacity is unmet")
    _add_instance(command)
    command.add_argument("plan", metavar="PLAN", help="plan (JSON)")
    command.add_argument("--json", action="store_true", help="print the explanations as JSON")
    command.set_defaults(run=_explain)


def _add_show(commands: Commands) -> None:
    command = commands.add_parser("show", help="draw the topology and the placement")
    _add_instance(command)
    command.add_argument("plan", nargs="?", metavar="PLAN", help="plan (JSON)")
    command.add_argument("--html", metavar="FILE", help="write a self-contained page instead")
    command.set_defaults(run=_show)


def _add_generate(commands: Commands) -> None:
    command = commands.add_parser("generate", help="write a seeded instance")
    command.add_argument(
        "family", nargs="?", metavar="FAMILY", help=f"one of {', '.join(FAMILIES)}"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KNOB=VALUE",
        help="change a knob of the family, as in --set load=1.2 (docs/generate.md)",
    )
    command.add_argument(
        "--nodes", metavar="FILE.csv", help="build on a real inventory instead of a family"
    )
    inventory = command.add_argument_group("options of --nodes")
    parameters = inspect.signature(from_inventory).parameters
    for option, (name, placeholder, meaning) in INVENTORY.items():
        default = parameters[name].default
        kind = str if default is None else type(default)
        inventory.add_argument(
            option,
            dest=name,
            type=_size if name == "max_bytes" else kind,
            metavar=placeholder,
            help=meaning if default is None else f"{meaning}; default {default}",
        )
    command.add_argument("--out", metavar="FILE", help="default standard output")
    command.set_defaults(run=_generate)


def _add_bench(commands: Commands) -> None:
    command = commands.add_parser("bench", help="measure on seeded families, against references")
    bench.add_options(command)
    command.set_defaults(run=_bench)


def _add_report(commands: Commands) -> None:
    command = commands.add_parser("report", help="results of an experiment as one offline page")
    report_command.add_options(command)
    command.set_defaults(run=_report)


def _add_compare(commands: Commands) -> None:
    command = commands.add_parser("compare", help="run a batch experiment: solver against greedy")
    compare.add_options(command)
    command.set_defaults(run=_compare)


def _add_targets(commands: Commands) -> None:
    command = commands.add_parser("targets", help="decide on targets once, from live metrics")
    loop.add_targets_options(command)
    command.set_defaults(run=_targets)


def _add_run(commands: Commands) -> None:
    command = commands.add_parser("run", help="decide, solve and hand over, cycle after cycle")
    loop.add_run_options(command)
    _add_solver(command)
    command.set_defaults(run=_run)


def _add_simulate(commands: Commands) -> None:
    command = commands.add_parser("simulate", help="a fleet's policies on traces of demand")
    simulate_command.add_options(command)
    command.set_defaults(run=_simulate)


def _add_curate(commands: Commands) -> None:
    command = commands.add_parser("curate", help="the best ratio and policy for a workload")
    curate_command.add_options(command)
    command.set_defaults(run=_curate)


def _add_instance(command: argparse.ArgumentParser) -> None:
    command.add_argument("instance", metavar="INSTANCE", help="placement instance (JSON)")
    command.add_argument(
        "--max-bytes", type=_size, default=MAX_BYTES, help=f"largest file read, default {MAX_BYTES}"
    )


def _size(text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not 1 <= size <= MOST_BYTES:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MOST_BYTES}, got {text[:40]!r}")
    return size


def _read(arguments: argparse.Namespace) -> Instance:
    return Instance.from_file(arguments.instance, arguments.max_bytes)


def _read_plan(arguments: argparse.Namespace) -> Plan:
    return Plan.from_file(arguments.plan, arguments.max_bytes)


@contextlib.contextmanager
def _at_fault(path: str) -> Iterator[None]:
    """Name the file of a fault that the library found in what was read from it."""
    try:
        yield
    except InputError as error:
        where = f"{path}: {error.path}" if error.path else path
        raise InputError(where, error.message) from None


def _profile(arguments: argparse.Namespace) -> Profile:
    base = Profile() if arguments.profile is None else Profile.from_file(arguments.profile)
    given = {name: getattr(arguments, name) for name in OPTIONS}
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        return Profile.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        fault = input_error(error)
        raise InputError(f"--{fault.path.replace('_', '-')}", fault.message) from None


class _Console:
    """What rich makes of text and tables, on standard output."""

    def __init__(self) -> None:
        # Without a terminal there is no width to obey: a file or a pipe gets lines of a fixed one.
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self._buffer = _Buffer()
        self._console = Console(
            file=self._buffer,
            force_terminal=terminal or None,
            width=None if terminal else 100,
            highlight=False,
            emoji=False,
        )

    def print(self, what: RenderableType) -> None:
        """Print a table, or text to the letter."""
        self._console.print(Text(clean(what)) if isinstance(what, str) else what)
        _emit(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()


class _Buffer(io.StringIO):
    """Text on its way to standard output; rich draws what the encoding there can hold."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def _solve(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    profile = _profile(arguments)
    instance = _read(arguments)
    read = time.monotonic() - began
    began += read
    result = solve(instance, profile)
    seconds = result.seconds.model_copy(update={"read": read})
    least, most = EXPLAIN_SECONDS
    if profile.time_limit is not None:
        most = max(least, min(most, began + profile.time_limit - time.monotonic()))
    reasons = (
        explain(instance, result.plan, MOST_EXPLAINED, most, unmet=result.unmet)
        if not result.violations
        else []
    )
    result = result.model_copy(update={"seconds": seconds, "unmet": _with_reasons(result, reasons)})
    if arguments.out is not None:
        write_text(arguments.out, result.plan.to_json() + "\n")
    if arguments.json:
        _emit(result.to_json() + "\n")
    else:
        _print_result(instance, result, arguments.out)
    return NO if result.violations else DONE


def _with_reasons(result: Result, reasons: list[Explanation]) -> tuple[Unmet, ...]:
    known = {(each.service, each.role): each.reason for each in reasons}
    return tuple(
        each.model_copy(update={"reason": known.get((each.service, each.role))})
        for each in result.unmet
    )


def _print_result(instance: Instance, result: Result, out: str | None) -> None:
    console = _Console()
    console.print(plan_tables(instance, result.plan))
    if result.unmet:
        console.print(_unmet_table(result))
    console.print(_steps_table(result))
    costs = ", ".join(f"{name} {amount:g}" for name, amount in result.costs.items())
    console.print(f"cost amounts: {costs}")
    if any(result.repairs.values()):
        broken = ", ".join(f"{name} {value:g}" for name, value in result.repairs.items() if value)
        console.print(f"still broken, in GPUs: {broken}")
    phases = result.seconds.model_dump()
    spent = ", ".join(f"{name} {value:.3f}" for name, value in phases.items() if value is not None)
    engine = f" ({result.engine})" if result.engine else ""
    console.print(
        f"{result.status}, {result.stop_reason.replace('_', ' ')}; "
        f"solver {result.solver}{engine}; seconds: {spent}"
    )
    for note in result.notes:
        console.print(f"note: {note}")
    for violation in result.violations:
        console.print(
            f"violation: {violation.constraint}: {violation.subject}: {violation.message}"
        )
    if out is not None:
        console.print(f"plan written to {out}")


def _unmet_table(result: Result) -> Table:
    table = Table(title="Unmet", title_justify="left")
    for column in ("service", "role"):
        table.add_column(column)
    for column in ("target", "delivered", "unmet", "GPUs"):
        table.add_column(column, justify="right")
    table.add_column("why")
    shown = sorted(result.unmet, key=lambda each: -each.unmet_gpus)[:MOST_EXPLAINED]
    for each in shown:
        numbers = (each.target, each.delivered, each.unmet, each.unmet_gpus)
        table.add_row(
            Text(clean(each.service)),
            Text(clean(each.role)),
            *(f"{number:g}" for number in numbers),
            Text(clean(each.reason or "see heteroplace explain")),
        )
    if len(shown) < len(result.unmet):
        table.caption = f"and {len(result.unmet) - len(shown)} more roles, see --json"
    return table


def _steps_table(result: Result) -> Table:
    table = Table(title="Objective, in order", title_justify="left")
    table.add_column("step")
    for column in ("value", "bound", "gap"):
        table.add_column(column, justify="right")
    table.add_column("")
    for step in result.steps:
        bound = "unknown" if step.bound is None else f"{step.bound:g}"
        gap = "unknown" if step.gap is None else f"{100 * step.gap:.3g} %"
        table.add_row(
            Text(step.name), f"{step.value:g}", bound, gap, "proven" if step.proven else ""
        )
    return table


def _check(arguments: argparse.Namespace) -> int:
    instance, plan = _read(arguments), _read_plan(arguments)
    with _at_fault(arguments.plan):
        violations, evaluation = check_and_evaluate(instance, plan)
    if arguments.json:
        report = {
            "valid": not violations,
            "violations": [each.model_dump() for each in violations],
            "objective": evaluation.model_dump(mode="json"),
        }
        _emit(json.dumps(report, indent=1) + "\n")
    else:
        console = _Console()
        for each in violations:
            console.print(f"{each.constraint}: {each.subject}: {each.message}")
        steps = ", ".join(f"{step.name} {float(step.value):g}" for step in evaluation.steps)
        verdict = f"{len(violations)} violations" if violations else "valid"
        console.print(f"{verdict}; objective: {steps}")
        if plan.instance_digest not in (None, instance.digest):
            console.print("note: the plan was made for another instance")
    return NO if violations else DONE


def _explain(arguments: argparse.Namespace) -> int:
    instance, plan = _read(arguments), _read_plan(arguments)
    with _at_fault(arguments.plan):
        violations = check(instance, plan)
    if violations:
        first = violations[0]
        raise InputError(
            arguments.plan,
            f"is not valid ({first.constraint}: {first.message}); see heteroplace check",
        )
    reasons = explain(instance, plan)
    if arguments.json:
        _emit(json.dumps([each.model_dump() for each in reasons], indent=1) + "\n")
        return DONE
    console = _Console()
    if not reasons:
        console.print("Every target is met.")
    for each in reasons:
        console.print(
            f"{each.service} {each.role}: {each.unmet_gpus:g} GPUs unmet "
            f"({each.constraint}): {each.reason}"
        )
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    instance = _read(arguments)
    plan = None if arguments.plan is None else _read_plan(arguments)
    with _at_fault(arguments.plan) if plan else contextlib.nullcontext():
        if arguments.html is None:
            picture = render(instance, plan)
        else:
            text = page(instance, plan)
    if arguments.html is None:
        _Console().print(picture)
    else:
        write_text(arguments.html, text)
        print(f"page written to {clean(arguments.html)}", file=sys.stderr)
    return DONE


def _generate(arguments: argparse.Namespace) -> int:
    options = {name: option for option, (name, _, _) in INVENTORY.items()}
    given = {name: getattr(arguments, name) for name in options}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.nodes is not None:
        if arguments.family:
            raise InputError("", "give either a family or --nodes, not both")
        if arguments.set:
            raise InputError("--set", "changes a family; with --nodes use --services, --load, ...")
        try:
            instance = from_inventory(arguments.nodes, seed=arguments.seed, **given)
        except InputError as error:
            # A parameter's name, unless a file is called like one.
            files = (arguments.nodes, given.get("capacity_csv"), given.get("models_dir"))
            named = error.path if error.path in files else options.get(error.path, error.path)
            raise InputError(named, error.message) from None
    else:
        if not arguments.family:
            raise InputError("", f"name a family ({', '.join(FAMILIES)}) or give --nodes FILE.csv")
        for name, value in given.items():
            fix = f"use --set {name}={value}" if name in Family.model_fields else "leave it out"
            raise InputError(options[name], f"goes with --nodes; for a family {fix}")
        instance = generate(family_from(arguments.family, _knobs(arguments.set)), arguments.seed)
    text = instance.to_json() + "\n"
    if arguments.out is not None:
        write_text(arguments.out, text)
        print(
            f"{clean(Path(arguments.out).name)}: {len(instance.nodes)} nodes, "
            f"{len(instance.services)} services",
            file=sys.stderr,
        )
    else:
        _emit(text)
    return DONE


def _bench(arguments: argparse.Namespace) -> int:
    shown = bench.run(arguments, _knobs(arguments.set or []))
    if arguments.json:
        _emit(shown.json + "\n")
    else:
        console = _Console()
        for part in shown.parts:
            console.print(part)
    if shown.interrupted:
        raise KeyboardInterrupt
    return NO if shown.failed else DONE


def _report(arguments: argparse.Namespace) -> int:
    shown = report_command.run(arguments)
    _emit(shown.text)
    if shown.written is not None:
        size = f"{shown.bytes / 2**20:.1f} MiB"
        print(f"page written to {clean(shown.written)} ({size})", file=sys.stderr)
    return DONE


def _compare(arguments: argparse.Namespace) -> int:
    shown = compare.run(arguments)
    if arguments.json:
        _emit(shown.json + "\n")
    else:
        console = _Console()
        for part in shown.parts:
            console.print(part)
    if shown.interrupted:
        raise KeyboardInterrupt
    return NO if shown.failed else DONE


def _targets(arguments: argparse.Namespace) -> int:
    shown = loop.targets(arguments)
    if arguments.json:
        _emit(shown.json + "\n")
    else:
        console = _Console()
        for part in shown.parts:
            console.print(part)
    return DONE


def _run(arguments: argparse.Namespace) -> int:
    failed = loop.run(arguments, _profile(arguments), _emit, _Console().print)
    return NO if failed else DONE


def _simulate(arguments: argparse.Namespace) -> int:
    shown = simulate_command.run(arguments)
    if arguments.json:
        _emit(shown.json + "\n")
    else:
        console = _Console()
        for part in shown.parts:
            console.print(part)
    return DONE


def _curate(arguments: argparse.Namespace) -> int:
    shown = curate_command.run(arguments)
    if arguments.json:
        _emit(shown.json + "\n")
    else:
        console = _Console()
        for part in shown.parts:
            console.print(part)
    return NO if shown.failed else DONE


def _knobs(pairs: list[str]) -> dict[str, str | float]:
    knobs: dict[str, str | float] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise InputError("--set", f"{pair!r} is not KNOB=VALUE")
        knobs[name] = value
    return knobs


if __name__ == "__main__":
    console()
