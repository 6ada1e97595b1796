"""What an experiment leaves behind: the columns of its table, its manifest and its folder.

::

    FOLDER/manifest.json            what was run, with which versions, on which machine
    FOLDER/results.parquet          the table, one row per instance and profile
    FOLDER/rows.jsonl               rows that are not in the table yet (a run that is not finished)
    FOLDER/instances/INSTANCE.json  on request; INSTANCE is the column ``instance``
    FOLDER/plans/INSTANCE.PROFILE.json  on request

A row is there whole or not at all. Read a folder, finished or not, with :func:`read_results`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from heteroplace.bench.record import Environment
from heteroplace.errors import InputError
from heteroplace.files import MAX_BYTES, read_bytes, validated
from heteroplace.instance import Instance, Noun
from heteroplace.plan import Plan

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
Kind = Literal[
    "text", "integer", "number", "truth", "texts", "integers", "numbers", "truths", "tables"
]

MANIFEST, TABLE, JOURNAL = "manifest.json", "results.parquet", "rows.jsonl"
INSTANCES, PLANS = "instances", "plans"
INSTALL = "needs pyarrow; install it with: pip install 'heteroplace[study]'"


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Parameters
    ----------
    name
        Its name.
    kind
        ``text``, ``integer`` (64 bits), ``number`` (double), ``truth``, a list of one of them
        (plural), or ``tables``: a list of lists of numbers. Any cell, and any number in a list,
        may be null: unknown.
    meaning
        What it says, with its unit.
    measured
        Whether it depends on the machine and the moment. All other columns are the same in every
        run, as long as no time limit cuts in.
    added
        Whether tables of earlier versions lack it; there it is null.
    """

    name: str
    kind: Kind
    meaning: str
    measured: bool = False
    added: bool = False


COLUMNS: tuple[Column, ...] = (
    # What was asked.
    Column("key", "text", "names the row: the instance, a dot and the profile"),
    Column("instance", "text", "names the instance: equal in all rows that solve the same one"),
    Column("experiment", "text", "name of the experiment"),
    Column("entry", "text", "name of the experiment's entry"),
    Column("family", "text", "family of generated instances"),
    Column("knobs", "text", "the knobs that differ from the family's, JSON, names sorted"),
    Column("size", "number", "scale of the family"),
    Column("seed", "integer", "seed of the instance"),
    Column("profile", "text", "name of the profile"),
    Column("solver", "text", "solver of the profile"),
    # The instance.
    Column("load", "number", "the knob: GPUs asked for by what scales out / free GPUs"),
    Column("gpu_types", "integer", "number of GPU types in the fleet"),
    Column("mixed_s1", "number", "share of the domains of the finest level with several GPU types"),
    Column("affinity", "text", "one kind, or the knob's weights as in none=3,s1=2"),
    Column("instance_digest", "text", "SHA-256 of the instance"),
    Column("nodes", "integer", "nodes"),
    Column("gpus", "integer", "GPUs in the fleet"),
    Column("free_gpus", "integer", "GPUs that the cycle may use"),
    Column("services", "integer", "services"),
    Column("running_instances", "integer", "instances that run before the plan"),
    Column("target_gpus", "number", "all targets, in GPUs of the preferred shapes"),
    # How it ended.
    Column("status", "text", "optimal, feasible or invalid; null when it failed"),
    Column("stop", "text", "stop reason, as in a result"),
    Column("engine", "text", "engine that solved it"),
    Column("plan_valid", "truth", "whether the checker found no violation"),
    Column("error", "text", "what failed, in one line; null when nothing did"),
    Column("notes", "texts", "what a person should know, as in a result"),
    Column("variables", "integer", "columns of the integer program; 0 when none was built"),
    Column("constraints", "integer", "rows of the integer program"),
    # How good it is.
    Column("step_names", "texts", "steps of the objective in their order"),
    Column("step_values", "numbers", "value of each step"),
    Column("step_bounds", "numbers", "bound of each step; null when unknown"),
    Column("step_gaps", "numbers", "(value − bound) / bound of each step; null when unknown"),
    Column("step_proven", "truths", "whether each step is proven best, given those before"),
    Column("unmet_gpus", "number", "unmet capacity in GPUs of the preferred shapes"),
    Column("priorities", "integers", "priority classes, highest first"),
    Column("unmet_gpus_by_priority", "numbers", "unmet GPUs of each class"),
    Column("target_gpus_by_priority", "numbers", "target of each class in GPUs"),
    Column("affinities", "texts", "affinities of the services: none, s2, s1, s2+s1"),
    Column("unmet_gpus_by_affinity", "numbers", "unmet GPUs of the services of each affinity"),
    Column("target_gpus_by_affinity", "numbers", "target of the services of each in GPUs"),
    Column("delivered_gpus", "integer", "GPUs of the instances that deliver after the plan"),
    Column("added_gpus", "integer", "GPUs of added instances"),
    Column("removed_gpus", "integer", "GPUs of removed instances"),
    Column("groups", "integer", "deployment groups that deliver"),
    Column("new_groups", "integer", "groups that the plan opens"),
    Column("low_tier_gpus", "integer", "delivering GPUs on RDMA subgroups of tier low"),
    Column("medium_tier_gpus", "integer", "the same of tier medium"),
    Column("high_tier_gpus", "integer", "the same of tier high"),
    Column(
        "high_tier_waste_gpus",
        "integer",
        "delivering GPUs on tier high of services that do "
        "not need it: some domain of their required level has, outside tier high, nodes that "
        "can hold a shape of every one of their roles",
    ),
    Column(
        "high_tier_waste_gpus_by_priority",
        "integers",
        "the same of the services of each class",
        added=True,
    ),
    Column(
        "high_tier_waste_gpus_by_affinity",
        "integers",
        "the same of the services of each affinity",
        added=True,
    ),
    Column(
        "high_tier_avoidable_gpus",
        "integer",
        "of the waste, GPUs of added instances of one pod that fit as they are on what the plan "
        "leaves free outside tier high in their group's domain, largest first",
    ),
    Column("high_tier_gpus_total", "integer", "GPUs of the fleet's schedulable nodes of tier high"),
    Column("cost", "number", "value of the step cost: the weighted sum of the amounts below"),
    Column("cost_rdma", "number", "amount: delivering GPUs × price of their tier"),
    Column("cost_shape", "number", "amount: cost or preference rank of the shapes"),
    Column("cost_spill", "number", "amount: GPUs outside the preferred domain"),
    Column("cost_new_group", "number", "amount: groups opened"),
    Column("cost_fragmentation", "number", "amount: whole free nodes broken"),
    Column("cost_migration", "number", "amount: instances moved"),
    # What it took.
    Column(
        "seconds_read",
        "number",
        "wall seconds: generating and validating the instance, once for all profiles",
        measured=True,
    ),
    Column("seconds_build", "number", "wall seconds: tree view and program", measured=True),
    Column("seconds_solve", "number", "wall seconds: greedy and engine", measured=True),
    Column(
        "seconds_assign",
        "number",
        "wall seconds: naming nodes, checking, evaluating",
        measured=True,
    ),
    Column(
        "seconds_total",
        "number",
        "wall seconds from the instance in memory to the checked plan",
        measured=True,
    ),
    Column("seconds_cpu", "number", "CPU seconds of the same", measured=True),
    Column(
        "peak_rss", "integer", "largest resident set of the worker meanwhile, bytes", measured=True
    ),
    Column("worker_rss", "integer", "resident set of the worker afterwards, bytes", measured=True),
    # Anytime curve, when asked for.
    Column(
        "anytime_deadlines",
        "numbers",
        "time limits of solves from scratch, seconds; null when not asked for",
    ),
    Column("anytime_seconds", "numbers", "wall seconds each of them took", measured=True),
    Column("anytime_values", "tables", "values of the steps under each", measured=True),
    Column("anytime_bounds", "tables", "bounds of the steps under each", measured=True),
    # Where it came from.
    Column("run", "integer", "place in the manifest's runs", measured=True),
    Column("attempts", "integer", "1, or 2 when its worker died the first time", measured=True),
    Column("finished", "text", "date and time, UTC, ISO 8601", measured=True),
)
NAMES = tuple(column.name for column in COLUMNS)
COSTS = ("rdma", "shape", "spill", "new_group", "fragmentation", "migration")


class Run(Noun):
    """One start of the command on a folder; a run that continues another is one of its own.

    Parameters
    ----------
    began, ended
        Date and time, UTC, ISO 8601; ``ended`` null when it was killed or has not ended.
    executor
        ``local`` or ``ray``.
    workers
        Number of worker processes at its start.
    load
        Load average when it began; null when the system does not tell.
    environment
        Commit, machine and versions.
    """

    began: str
    ended: str | None = None
    executor: Literal["local", "ray"]
    workers: int
    load: float | None = None
    environment: Environment


class Manifest(Noun):
    """What was run.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    kind
        ``experiment``.
    name, description
        Of the experiment.
    digest
        SHA-256 of everything in the experiment that decides a row.
    experiment
        The experiment as it was read, defaults and profiles resolved.
    profiles
        Names of the profiles, in the experiment's order.
    seeds
        All seeds, by name of the entry.
    command
        The command that makes these results.
    rows
        Number of rows when it is complete.
    complete
        Whether all of them are in the table.
    runs
        Every start of the command, in order.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    kind: Literal["experiment"] = "experiment"
    name: str
    description: str = ""
    digest: str
    experiment: dict[str, JsonValue]
    profiles: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]
    command: str
    rows: int
    complete: bool = False
    runs: tuple[Run, ...] = ()

    @classmethod
    def from_file(cls, path: str | Path) -> Manifest:
        """Read a manifest.

        Raises
        ------
        InputError
            If the file cannot be read or is not a manifest.
        """
        text = read_bytes(path, MAX_BYTES)
        return validated(lambda: cls.model_validate_json(text), str(path))

    def to_json(self) -> str:
        """Write the manifest as JSON."""
        return self.model_dump_json(by_alias=True, indent=1)


@dataclass(frozen=True)
class Results:
    """An experiment's folder, finished or not.

    Parameters
    ----------
    folder
        Where it is.
    manifest
        What was run.
    table
        One row per instance and profile with the columns :data:`COLUMNS`, in the order of the
        experiment where it is complete.
    """

    folder: Path
    manifest: Manifest
    table: pyarrow.Table

    def rows(self) -> list[Row]:
        """All rows as plain dicts."""
        found: list[Row] = self.table.to_pylist()
        return found

    def pairs(self, first: str, second: str) -> Iterator[tuple[Row, Row]]:
        """Rows of two profiles on the same instances, both without an error.

        Parameters
        ----------
        first, second
            Names of profiles.
        """
        by_profile: dict[str, dict[str, Row]] = {first: {}, second: {}}
        for row in self.rows():
            if row["profile"] in by_profile and row["error"] is None:
                by_profile[row["profile"]][row["instance"]] = row
        for instance, row in by_profile[first].items():
            other = by_profile[second].get(instance)
            if other is not None:
                yield row, other

    def instance(self, row: Mapping[str, Any]) -> Instance | None:
        """The instance of a row, from its file or else generated again; null when neither can be.

        Parameters
        ----------
        row
            With ``instance``, ``family``, ``knobs``, ``seed`` and ``instance_digest``.

        Raises
        ------
        InputError
            If the file is there but is not an instance.
        """
        path = self.folder / INSTANCES / f"{row['instance']}.json"
        if path.exists():
            return Instance.from_file(path)
        from heteroplace.compare.measure import generated_again

        return generated_again(row)

    def plan(self, row: Mapping[str, Any]) -> Plan | None:
        """The plan of a row; null when it was not kept.

        Parameters
        ----------
        row
            With ``instance`` and ``profile``.

        Raises
        ------
        InputError
            If the file is there but is not a plan.
        """
        path = self.folder / PLANS / f"{row_key(row['instance'], row['profile'])}.json"
        return Plan.from_file(path) if path.exists() else None


def cluster(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What instances that are not independent share: drawn alike, at several loads for one.

    Parameters
    ----------
    row
        With ``family``, ``size`` and ``seed``.
    """
    return row["family"], row["size"], row["seed"]


def row_key(instance: str, profile: str) -> str:
    """Name of a row, and of its plan's file."""
    return f"{instance}.{re.sub(r'[^A-Za-z0-9_-]', '_', profile)}"


def blank_row() -> Row:
    """A row of nulls."""
    return dict.fromkeys(NAMES)


def require_pyarrow() -> None:
    """Say how to install pyarrow where it is missing.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InputError("compare", INSTALL) from None


def arrow_schema() -> pyarrow.Schema:
    """The table's schema."""
    import pyarrow as pa

    text, integer, number, truth = pa.string(), pa.int64(), pa.float64(), pa.bool_()
    kinds: dict[Kind, pyarrow.DataType] = {
        "text": text,
        "integer": integer,
        "number": number,
        "truth": truth,
        "texts": pa.list_(text),
        "integers": pa.list_(integer),
        "numbers": pa.list_(number),
        "truths": pa.list_(truth),
        "tables": pa.list_(pa.list_(number)),
    }
    return pa.schema([pa.field(column.name, kinds[column.kind]) for column in COLUMNS])


def read_results(folder: str | Path) -> Results:
    """Read an experiment's folder, finished or not.

    Parameters
    ----------
    folder
        As ``heteroplace compare`` wrote it; its ``manifest.json`` or ``results.parquet`` will do.

    Raises
    ------
    InputError
        If it is not such a folder, a file in it cannot be read, or pyarrow is missing.
    """
    require_pyarrow()
    path = Path(folder)
    if path.name in (MANIFEST, TABLE):
        path = path.parent
    if not (path / MANIFEST).is_file():
        raise InputError(
            str(folder), f"holds no {MANIFEST}; name a folder that heteroplace compare wrote"
        )
    from heteroplace.compare.store import read_table

    return Results(path, Manifest.from_file(path / MANIFEST), read_table(path))
