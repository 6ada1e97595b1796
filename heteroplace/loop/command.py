"""``heteroplace targets`` and ``heteroplace run``: what they run and show."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
import signal
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from heteroplace.errors import InputError
from heteroplace.files import validated, write_text
from heteroplace.loop.options import add_run_options, add_targets_options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from heteroplace.loop.action import Action
    from heteroplace.loop.clock import Clock
    from heteroplace.loop.cluster import ClusterReader
    from heteroplace.loop.cycle import Cycle, Thinker
    from heteroplace.loop.handover import Retrying
    from heteroplace.policy.fleet import Fleet
    from heteroplace.policy.readings import Source
    from heteroplace.profile import Profile


SHORTEST = 1.0
INPUTS = ("fleet", "cluster", "cluster_command", "metrics", "now")


@dataclass
class Shown:
    """What a command prints.

    Parameters
    ----------
    json
        The whole outcome.
    parts
        Tables and lines for people.
    """

    json: str = ""
    parts: list[RenderableType] = field(default_factory=list)


def _words(option: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(option, f"cannot be split into words: {error}") from None
    if not words:
        raise InputError(option, "is empty; give a program and its arguments")
    return words


# --------------------------------------------------------------------------------------------
# What both read
# --------------------------------------------------------------------------------------------


def _needed(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) is None:
            raise InputError(f"--{name}", "is missing; give it")


def _alone(arguments: argparse.Namespace, mode: str, *names: str) -> None:
    """Refuse options that do not go with one that asks for something else."""
    for name in names:
        if getattr(arguments, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise InputError(option, f"does not go with {mode}; leave one of them out")


def _fleet(arguments: argparse.Namespace) -> Fleet:
    from heteroplace.policy.fleet import Fleet

    _needed(arguments, "fleet")
    return Fleet.from_file(arguments.fleet, arguments.max_bytes)


def _cluster(arguments: argparse.Namespace) -> ClusterReader:
    from heteroplace.loop.cluster import ClusterCommand, ClusterFile

    if (arguments.cluster is None) == (arguments.cluster_command is None):
        raise InputError("--cluster", "give either --cluster FILE or --cluster-command COMMAND")
    if arguments.cluster is None:
        words = _words("--cluster-command", arguments.cluster_command)
        return ClusterCommand(words, max_bytes=arguments.max_bytes)
    if not Path(arguments.cluster).is_file():
        raise InputError(arguments.cluster, "is not a file; correct --cluster")
    return ClusterFile(arguments.cluster, arguments.max_bytes)


def _metrics(arguments: argparse.Namespace, fleet: Fleet, *, follow: bool) -> Source:
    """The source; a file that is replayed while it is written is followed."""
    from heteroplace.policy.sources import Metrics, ReplayMetrics, source_from

    override = arguments.metrics
    if follow and override is not None and "://" not in override:
        replay = validated(
            lambda: ReplayMetrics.model_validate({"path": override, "follow": True}), "--metrics"
        )
        fleet = fleet.model_copy(update={"metrics": Metrics(replay=replay)})
        override = None
    return source_from(fleet, override)


def _thinker(arguments: argparse.Namespace, profile: Profile | None, *, follow: bool) -> Thinker:
    from heteroplace.loop.cycle import Thinker
    from heteroplace.profile import Profile

    fleet = _fleet(arguments)
    return Thinker(
        fleet=fleet,
        cluster=_cluster(arguments),
        metrics=_metrics(arguments, fleet, follow=follow),
        profile=profile or Profile(),
        patience=getattr(arguments, "patience", math.inf),
        max_age=arguments.max_cluster_age,
    )


def _clock(arguments: argparse.Namespace) -> Clock:
    from heteroplace.loop.clock import ShiftedClock, SystemClock

    return SystemClock() if arguments.now is None else ShiftedClock(arguments.now)


# --------------------------------------------------------------------------------------------
# targets
# --------------------------------------------------------------------------------------------


def targets(arguments: argparse.Namespace) -> Shown:
    """Decide once and change nothing, or list what was decided.

    Parameters
    ----------
    arguments
        As parsed with :func:`add_targets_options`.

    Raises
    ------
    InputError
        If an option or a file cannot be used.
    """
    if arguments.history is not None:
        return _history(arguments)
    if arguments.service is not None:
        raise InputError("--service", "goes with --history; leave it out")
    from heteroplace.loop.cycle import CycleError, Phases
    from heteroplace.loop.run import inputs_of, read_state
    from heteroplace.loop.store import Store
    from heteroplace.loop.tables import decision_table

    thinker = _thinker(arguments, None, follow=False)
    if arguments.state is not None and not Path(arguments.state).is_file():
        raise InputError(arguments.state, "is not a file; correct --state or leave it out")
    store = Store.in_memory(arguments.state)
    try:
        inputs = inputs_of(store, read_state(store), _clock(arguments).wall())
        cluster = thinker.snapshot(inputs)
        decided = thinker.decide(inputs, cluster.cluster, Phases())
    except CycleError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    finally:
        store.close()
    if arguments.out is not None:
        write_text(arguments.out, decided.instance.to_json() + "\n")
    shown = Shown(
        json=json.dumps(
            {
                "schema": 1,
                "now": inputs.now,
                "decisions": [each.model_dump(mode="json") for each in decided.decisions],
                "problems": [
                    {"service": each.service, "signal": each.signal, "message": each.message}
                    for each in decided.problems
                ],
            },
            indent=1,
        )
    )
    shown.parts.append(decision_table(decided.decisions))
    shown.parts += [f"metrics: {problem.message}" for problem in decided.problems]
    if arguments.out is not None:
        shown.parts.append(f"placement instance written to {arguments.out}")
    return shown


def _history(arguments: argparse.Namespace) -> Shown:
    from heteroplace.loop.action import iso
    from heteroplace.loop.store import read_history
    from heteroplace.loop.tables import history_table

    _needed(arguments, "state")
    _alone(arguments, "--history", *INPUTS, "out")
    entries = read_history(arguments.state, arguments.history, arguments.service)
    rows = [
        {
            "at": each.at,
            "time": iso(each.at),
            "action_id": each.action_id,
            **json.loads(each.decision),
        }
        for each in entries
    ]
    parts: list[RenderableType] = [history_table(entries)] if entries else ["No decisions yet."]
    return Shown(json=json.dumps(rows, indent=1), parts=parts)


# --------------------------------------------------------------------------------------------
# run
# --------------------------------------------------------------------------------------------


def run(
    arguments: argparse.Namespace,
    profile: Profile,
    emit: Callable[[str], None],
    show: Callable[[RenderableType], None],
) -> bool:
    """Run the loop until it is asked to stop, or for ``--cycles``.

    Parameters
    ----------
    arguments
        As parsed with :func:`add_run_options`.
    profile
        How to solve.
    emit
        Writes a line to standard output.
    show
        Writes tables and text to standard output.

    Returns
    -------
    bool
        Whether ``--cycles`` were asked for and one of them failed.

    Raises
    ------
    InputError
        If an option or a file cannot be used.
    """
    from heteroplace.loop.exporter import Exporter, Metrics
    from heteroplace.loop.logs import about
    from heteroplace.loop.run import Loop, Settings
    from heteroplace.loop.store import Store

    if arguments.drop is not None:
        show(_drop(arguments))
        return False
    _check_handover(arguments)
    thinker = _thinker(arguments, profile, follow=True)
    interval = arguments.interval or thinker.fleet.interval
    if arguments.time_limit is None and arguments.profile is None:
        thinker = replace(thinker, profile=_in_time(profile, interval))
    clock, stop = _clock(arguments), threading.Event()
    with ExitStack() as stack:
        stack.enter_context(_signals(stop))
        stack.enter_context(_logging(arguments.log_json, arguments.verbose))
        stack.callback(thinker.cluster.close)
        if arguments.apply:
            store = stack.enter_context(Store(arguments.state))
        else:
            store = stack.enter_context(Store.in_memory(arguments.state))
        handover = _handover(arguments, clock) if arguments.apply else None
        metrics = None
        if arguments.listen is not None:
            metrics = Metrics()
            exporter = Exporter(metrics, arguments.listen)
            stack.callback(exporter.close)
            logging.getLogger("heteroplace.loop").info(
                "metrics are served on port %d",
                exporter.port,
                extra=about(event="listening", port=exporter.port),
            )
        loop = Loop(
            thinker,
            store,
            handover,
            Settings(
                interval=interval,
                cycles=arguments.cycles,
                keep=arguments.keep,
            ),
            clock,
            metrics,
            _reporter(arguments, emit, show),
            stop,
        )
        failed = loop.run()
    return bool(failed and arguments.cycles)


def _drop(arguments: argparse.Namespace) -> str:
    """Forget an action of the outbox, as if its receiver had refused it."""
    from heteroplace.loop.handover import HandoverError, delivery_lock, receipt_of
    from heteroplace.loop.statefile import require
    from heteroplace.loop.store import Store

    _needed(arguments, "state")
    _alone(arguments, "--drop", *INPUTS, "apply", "to", "to_command", "ask", "listen", "cycles")
    require(arguments.state)
    receipts = Path(_receipts(arguments))
    with Store(arguments.state) as store, ExitStack() as stack:
        waiting = [each.id for each in store.outbox()]
        if arguments.drop not in waiting:
            found = f"only {', '.join(waiting)}" if waiting else "none"
            raise InputError(
                "--drop", f"{arguments.drop!r} does not wait to be handed over; {found}"
            )
        if receipts.is_dir():
            try:
                stack.enter_context(delivery_lock(receipts, 0.0))
            except (HandoverError, OSError) as error:
                raise InputError(str(receipts), f"{error}; try again later") from None
            if receipt_of(receipts, arguments.drop).exists():
                raise InputError(
                    "--drop", "was accepted, as a receipt says; start the run again instead"
                )
        store.refused(arguments.drop, time.time())
    return f"action {arguments.drop} is forgotten; the next run decides anew"


def _receipts(arguments: argparse.Namespace) -> str:
    return f"{arguments.state}.receipts"


def _in_time(profile: Profile, interval: float) -> Profile:
    """A profile whose time limit leaves half of each cycle for the rest."""
    limit = max(SHORTEST, interval / 2)
    if profile.time_limit is not None:
        limit = min(limit, profile.time_limit)
    return profile.model_copy(update={"time_limit": limit})


def _check_handover(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if arguments.to is not None and arguments.to_command is not None:
        raise InputError("--to", "give either --to FOLDER or --to-command COMMAND")
    if arguments.ask is not None and arguments.to_command is None:
        raise InputError("--ask", "goes with --to-command; leave it out")
    if arguments.apply:
        if arguments.to is None and arguments.to_command is None:
            raise InputError("--apply", "needs --to FOLDER or --to-command COMMAND")
        if arguments.state is None:
            raise InputError(
                "--apply", "needs --state FILE, so that a restart neither repeats nor loses actions"
            )


def _handover(arguments: argparse.Namespace, clock: Clock) -> Retrying:
    from heteroplace.loop.handover import CommandHandover, FolderHandover, Handover, Retrying

    handover: Handover
    if arguments.to is not None:
        handover = FolderHandover(arguments.to)
    else:
        handover = CommandHandover(
            _words("--to-command", arguments.to_command),
            _receipts(arguments),
            arguments.handover_timeout,
            None if arguments.ask is None else _words("--ask", arguments.ask),
        )
    return Retrying(handover, clock, arguments.attempts, arguments.backoff)


def _reporter(
    arguments: argparse.Namespace,
    emit: Callable[[str], None],
    show: Callable[[RenderableType], None],
) -> Callable[[Cycle], None] | None:
    """What shows an action on standard output; a run that applies shows them only if asked to."""
    shown: list[object] = []

    def as_json(cycle: Cycle) -> None:
        if cycle.action is not None:
            emit(cycle.action.to_json() + "\n")

    def as_text(cycle: Cycle) -> None:
        from heteroplace.loop.action import iso
        from heteroplace.loop.tables import decision_table
        from heteroplace.show import plan_tables

        asked = None if cycle.action is None else _content(cycle.action)
        again = asked is not None and asked in shown
        shown[:] = [asked]
        if cycle.action is None or again:
            show(f"{iso(cycle.now)}: {'the same as before' if again else 'nothing to do'}")
            return
        show(f"{iso(cycle.now)}: would hand over")
        show(decision_table(cycle.action.decisions))
        if cycle.action.plan.groups:
            show(plan_tables(cycle.instance, cycle.action.plan))

    if arguments.json:
        return as_json
    return None if arguments.apply else as_text


def _content(action: Action) -> object:
    """What an action asks for, to see whether two ask for the same."""
    return (action.plan.groups, action.withdraw, action.terminate, action.restore, action.held)


@contextmanager
def _logging(as_json: bool, verbose: bool) -> Iterator[None]:
    """Write the loop's log to standard error."""
    from heteroplace.loop.logs import JsonLines, PlainLines

    logger, loop = logging.getLogger("heteroplace"), logging.getLogger("heteroplace.loop")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    before = (logger.level, logger.propagate, loop.level)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logger.propagate = False
    loop.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before[:2]
        loop.setLevel(before[2])


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` on SIGTERM and SIGINT; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        # Not here: this runs in the midst of what the main thread does, which may be holding the
        # event's own lock.
        start_new_thread(stop.set, ())

    for each in before:
        signal.signal(each, ask)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


__all__ = ["Shown", "add_run_options", "add_targets_options", "run", "targets"]
