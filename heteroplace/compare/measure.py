"""One instance, generated once and solved by each profile: what a worker does."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heteroplace.bench.memory import PeakMemory
from heteroplace.compare.experiment import HEURISTICS, Task, made_family, rewrite_of
from heteroplace.compare.facts import InstanceFacts
from heteroplace.compare.record import Row, blank_row, row_key
from heteroplace.errors import InputError
from heteroplace.generate import generate
from heteroplace.instance import Instance
from heteroplace.plan import Result
from heteroplace.profile import Profile
from heteroplace.solve import solve

log = logging.getLogger("heteroplace")

ENGINES = ("highspy", "ortools.sat.python.cp_model", "pulp")
LEFT_BEHIND = "heteroplace-engine"
PATIENCE = 60.0
LONGEST_ERROR = 500


@dataclass(frozen=True)
class Order:
    """An instance and what is to be done with it; small, for it travels to workers.

    Parameters
    ----------
    experiment
        Name of the experiment.
    task
        The instance.
    profiles
        The profiles that are still to solve it, by name.
    anytime
        Further time limits, seconds.
    plans, instances
        Whether to hand back plans and instances as JSON.
    patience
        Seconds beyond its time limit after which a solve counts as hung.
    attempt
        1, or one more for each worker that died over it.
    """

    experiment: str
    task: Task
    profiles: dict[str, Profile]
    anytime: tuple[float, ...] = ()
    plans: bool = False
    instances: bool = False
    patience: float = PATIENCE
    attempt: int = 1

    def without(self, profile: str, attempt: int) -> Order:
        """The order without a profile that is done."""
        left = {name: each for name, each in self.profiles.items() if name != profile}
        return replace(self, profiles=left, attempt=attempt)

    def seconds(self, profile: str) -> float | None:
        """Longest time a profile's row may take; null for no limit."""
        limit = self.profiles[profile].time_limit
        return None if limit is None else limit + sum(self.anytime) + self.patience


@dataclass(frozen=True)
class Finished:
    """A row and the files that go with it.

    Parameters
    ----------
    row
        All columns but ``run``.
    plan, instance
        As JSON; null when they are not asked for.
    """

    row: Row
    plan: str | None = None
    instance: str | None = None


Told = Callable[[Row], None]


def prepare_worker() -> None:
    """Import what solving needs, so that no measurement includes it."""
    logging.getLogger("heteroplace").addHandler(logging.NullHandler())
    for name in ENGINES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def measure(
    order: Order,
    finished: Callable[[Finished], None],
    facts_known: Told = lambda row: None,
) -> None:
    """Generate an instance and solve it by each profile; whatever goes wrong is in its row.

    Parameters
    ----------
    order
        What to do.
    finished
        Called with each row when it is done.
    facts_known
        Called with what every row of the instance says, before the first is begun.
    """
    blank = asked(order)
    instance_text: str | None = None
    try:
        began = time.monotonic()
        family = order.task.made
        instance = order.task.rewrite.apply(generate(family, order.task.seed))
        blank["seconds_read"] = time.monotonic() - began
        facts = InstanceFacts(instance)
        blank.update(load=family.load, affinity=order.task.affinity, **facts.columns())
        if order.instances:
            instance_text = instance.to_json(None) + "\n"
    except Exception as error:
        log.exception("instance failed")
        for name, profile in order.profiles.items():
            finished(Finished(failed(blank, name, profile, f"not generated: {_line(error)}")))
        return
    facts_known(blank)
    for name, profile in order.profiles.items():
        row = {**blank, **_of_profile(blank, name, profile)}
        plan: str | None = None
        try:
            row, result = _solved(row, facts, profile, order.anytime)
            if order.plans and row["error"] is None:
                plan = result.plan.to_json(None) + "\n"
        except Exception as error:
            log.exception("profile %s failed", name)
            row["error"] = _line(error)
        row["finished"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        finished(Finished(row, plan, instance_text))


def asked(order: Order) -> Row:
    """The columns that say what was asked, without the profile's."""
    task = order.task
    row = blank_row()
    row.update(
        instance=task.key,
        experiment=order.experiment,
        entry=task.entry,
        family=task.family,
        knobs=task.knobs,
        size=task.size,
        seed=task.seed,
        attempts=order.attempt,
    )
    return row


def failed(row: Row, name: str, profile: Profile, error: str) -> Row:
    """A row without a plan.

    Parameters
    ----------
    row
        What is known of the instance.
    name, profile
        The profile that failed.
    error
        What happened, in one line.
    """
    return {
        **row,
        **_of_profile(row, name, profile),
        "error": error,
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def generated_again(row: Mapping[str, Any]) -> Instance | None:
    """The instance of a row, made from its family and seed; null when it comes out otherwise.

    Parameters
    ----------
    row
        With ``family``, ``knobs``, ``size``, ``seed`` and ``instance_digest``.
    """
    try:
        family = made_family(row["family"], row["knobs"], row["size"])
        instance = rewrite_of(row["knobs"]).apply(generate(family, row["seed"]))
    except InputError:
        return None
    known = row.get("instance_digest")
    return instance if known in (None, instance.digest) else None


def _of_profile(row: Row, name: str, profile: Profile) -> Row:
    return {"key": row_key(row["instance"], name), "profile": name, "solver": profile.solver}


def _solved(
    row: Row, facts: InstanceFacts, profile: Profile, anytime: tuple[float, ...]
) -> tuple[Row, Result]:
    memory = PeakMemory()
    cpu, began = time.process_time(), time.monotonic()
    result = solve(facts.instance, profile)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    row |= facts.plan_columns(result)
    row.update(
        seconds_build=result.seconds.build,
        seconds_solve=result.seconds.solve,
        seconds_assign=result.seconds.assign,
        seconds_total=seconds,
        seconds_cpu=cpu,
        peak_rss=memory.bytes(),
    )
    if result.stop_reason in ("engine_missing", "engine_failed"):
        # The plan is the greedy's; it must not pass for the engine's.
        row["error"] = _one_line(f"{result.stop_reason}: {' '.join(result.notes)}")
    _wait_for_engines()
    if anytime and profile.solver not in HEURISTICS:
        _add_curve(row, facts.instance, profile, anytime)
    row["worker_rss"] = resident()
    return row, result


def _add_curve(row: Row, instance: Instance, profile: Profile, anytime: tuple[float, ...]) -> None:
    row.update(
        anytime_deadlines=list(anytime), anytime_seconds=[], anytime_values=[], anytime_bounds=[]
    )
    for deadline in anytime:
        began = time.monotonic()
        result = solve(instance, profile.model_copy(update={"time_limit": deadline}))
        row["anytime_seconds"].append(time.monotonic() - began)
        row["anytime_values"].append([step.value for step in result.steps])
        row["anytime_bounds"].append([step.bound for step in result.steps])
        _wait_for_engines()


def _wait_for_engines() -> None:
    """Let engine threads that overran their time end, so that they neither pile up nor count."""
    for thread in threading.enumerate():
        if thread.name == LEFT_BEHIND:
            thread.join(PATIENCE)


def resident() -> int | None:
    """Resident set of this process in bytes; null when the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def _line(error: Exception) -> str:
    return _one_line(f"{type(error).__name__}: {error}").removesuffix(":")


def _one_line(text: str) -> str:
    # An odd file name in a message may hold what UTF-8 cannot.
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= LONGEST_ERROR else text[: LONGEST_ERROR - 3] + "..."
