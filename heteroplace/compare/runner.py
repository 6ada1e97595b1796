"""Running an experiment: what is left to do, who does it, and where the rows go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from heteroplace.bench.environment import environment, load_average
from heteroplace.compare.experiment import Experiment
from heteroplace.compare.measure import Finished, Order
from heteroplace.compare.record import (
    INSTANCES,
    PLANS,
    Manifest,
    Run,
    require_pyarrow,
    row_key,
)
from heteroplace.compare.store import Store
from heteroplace.errors import InputError

log = logging.getLogger("heteroplace")

OTHER = "name another folder with --out, or remove this one"
DECIDING = ("heteroplace", "ortools", "highspy", "pulp")


class Executor(Protocol):
    """Who does the work."""

    @property
    def name(self) -> Literal["local", "ray"]:
        """Where it runs."""

    @property
    def workers(self) -> int:
        """Number of worker processes."""

    def run(self, orders: Iterable[Order]) -> Generator[list[Finished], None, None]:
        """Yield rows as they come, in batches; every profile of every order has one in the end."""


@dataclass
class Progress:
    """How far a run is.

    Parameters
    ----------
    total
        Rows of the experiment.
    before
        Rows that were there when it began.
    done
        Rows made by this run.
    failed
        Rows of this run with an error.
    """

    total: int
    before: int = 0
    done: int = 0
    failed: int = 0


def run_experiment(
    experiment: Experiment,
    folder: Path,
    executor: Executor,
    *,
    command: str = "",
    retry_failed: bool = False,
    told: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run what is not in the folder yet, and put all rows into one table at the end.

    May be stopped and killed at any time: the next call continues. A folder of another experiment
    is refused, unless this one only adds to it.

    Parameters
    ----------
    experiment
        What to run.
    folder
        Where the results are or will be.
    executor
        Who does the work.
    command
        What a user types to do the same, for the manifest.
    retry_failed
        Whether rows with an error are made anew.
    told
        Called at the beginning and with every batch of rows.

    Raises
    ------
    InputError
        If the folder holds another experiment, is in use or cannot be written to, or pyarrow is
        missing.
    """
    require_pyarrow()
    with Store(folder) as store:
        manifest = _manifest(experiment, store, executor, command)
        known = store.outcomes()
        if retry_failed:
            again = [key for key, good in known.items() if not good]
            store.forget(again)
            for key in again:
                del known[key]
        progress = Progress(experiment.rows, len(known))
        told(progress)
        if len(known) == experiment.rows and manifest.complete:
            return progress
        number = len(manifest.runs) - 1
        store.write_manifest(manifest)
        try:
            with closing(executor.run(_orders(experiment, known))) as batches:
                for batch in batches:
                    _save(store, batch, number)
                    progress.done += len(batch)
                    progress.failed += sum(each.row["error"] is not None for each in batch)
                    told(progress)
            store.compact(_keys(experiment))
            manifest = manifest.model_copy(update={"complete": True})
        finally:
            ended = manifest.runs[-1].model_copy(update={"ended": _now()})
            runs = (*manifest.runs[:-1], ended)
            store.write_manifest(manifest.model_copy(update={"runs": runs}))
    return progress


def _save(store: Store, batch: list[Finished], run: int) -> None:
    # Files first: a row that is there has its files.
    for each in batch:
        row = each.row
        row["run"] = run
        if each.instance is not None:
            store.add_file(INSTANCES, row["instance"], each.instance)
        if each.plan is not None:
            store.add_file(PLANS, row["key"], each.plan)
    store.append([each.row for each in batch])


def _orders(experiment: Experiment, known: dict[str, bool]) -> Iterator[Order]:
    profiles = experiment.used_profiles()
    for task in experiment.tasks():
        instance = task.key
        left = {
            name: profile
            for name, profile in profiles.items()
            if row_key(instance, name) not in known
        }
        if left:
            yield Order(
                experiment=experiment.name,
                task=task,
                profiles=left,
                anytime=experiment.anytime,
                plans="plans" in experiment.keep,
                instances="instances" in experiment.keep,
                patience=experiment.patience,
            )


def _keys(experiment: Experiment) -> Iterator[str]:
    for task in experiment.tasks():
        instance = task.key
        for each in experiment.profiles:
            yield row_key(instance, each.name)


def _manifest(experiment: Experiment, store: Store, executor: Executor, command: str) -> Manifest:
    """The folder's manifest with this run added; refuses a folder of another experiment."""
    run = Run(
        began=_now(),
        executor=executor.name,
        workers=executor.workers,
        load=load_average(),
        environment=environment(),
    )
    manifest = Manifest(
        name=experiment.name,
        description=experiment.description,
        digest=experiment.digest,
        experiment=experiment.model_dump(mode="json", by_alias=True),
        profiles=tuple(each.name for each in experiment.profiles),
        seeds={each.label: each.seeds or experiment.seeds for each in experiment.entries},
        command=command,
        rows=experiment.rows,
        runs=(run,),
    )
    old = store.manifest
    if old is None:
        if store.outcomes():
            raise InputError(str(store.folder), f"holds results without a manifest; {OTHER}")
        return manifest
    if old.digest != experiment.digest:
        _refuse_changes(old, experiment, store.folder)
    before = old.runs[-1].environment.versions if old.runs else {}
    for name in DECIDING:
        now = run.environment.versions.get(name)
        if before and before.get(name) != now:
            log.warning(
                "%s: %s was %s before and is %s now; both are in the manifest",
                store.folder,
                name,
                before.get(name),
                now,
            )
    complete = old.complete and old.digest == experiment.digest
    return manifest.model_copy(update={"runs": (*old.runs, run), "complete": complete})


def _refuse_changes(old: Manifest, experiment: Experiment, folder: Path) -> None:
    """Allow an experiment that only adds to the one in the folder; refuse any other change."""
    try:
        before = Experiment.model_validate(old.experiment)
    except (ValidationError, InputError):
        raise InputError(
            str(folder), f"holds an experiment that this version does not know; {OTHER}"
        ) from None
    changes: dict[str, tuple[Any, Any]] = {
        "name": (before.name, experiment.name),
        "anytime": (before.anytime, experiment.anytime),
        "keep": (before.keep, experiment.keep),
    }
    for field, (was, now) in changes.items():
        if was != now:
            raise InputError(
                str(folder), f"holds results with {field} {was!r}, not {now!r}; {OTHER}"
            )
    profiles = experiment.used_profiles()
    for name, profile in before.used_profiles().items():
        if profiles.get(name) != profile:
            how = "another profile" if name in profiles else "the profile"
            raise InputError(str(folder), f"holds results of {how} {name!r}; {OTHER}")
    tasks = {task.key for task in experiment.tasks()}
    for task in before.tasks():
        if task.key not in tasks:
            raise InputError(
                str(folder),
                f"holds results that the experiment no longer asks for (entry {task.entry!r}, "
                f"knobs {task.knobs}, size {task.size:g}, seed {task.seed}); {OTHER}",
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
