"""What a benchmark run records: the nouns of its JSON."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from heteroplace.bench.suite import ReferenceName
from heteroplace.files import MAX_BYTES, read_bytes, validated
from heteroplace.instance import Noun
from heteroplace.plan import Seconds, Size, StopReason

Relation = Literal["=", ">=", "<="]


class StepRecord(Noun):
    """A step of the objective; null is unknown.

    Parameters
    ----------
    name, value, bound, gap, proven
        As in :class:`heteroplace.plan.ProvenStep`; the value is null when there is no plan.
    """

    name: str
    value: float | None
    bound: float | None = None
    gap: float | None = None
    proven: bool = False


class Ratio(Noun):
    """How many times as long a reference takes as the solver under test.

    Parameters
    ----------
    value
        Seconds of the reference / seconds of the solver.
    relation
        ``=``: it is this; ``>=``: it is at least this, since the reference was stopped before it
        had what the solver has; ``<=``: it is at most this, since the reference proved or found
        more than the solver.
    """

    value: float
    relation: Relation = "="


class ReferenceRecord(Noun):
    """One reference on one instance.

    Parameters
    ----------
    name
        ``greedy``, ``highs`` or ``cpsat``.
    outcome
        ``proven``: every step; ``time_limit``; ``not_proven``: it ended early without a proof;
        ``heuristic``: it proves nothing; ``missing``: not installed; ``failed``.
    message
        What failed or what to install; null otherwise.
    time_limit
        Seconds it was given in total.
    seconds, build, solve
        Wall time: in total, building the program and solving it; null when it failed.
    steps
        Value, bound and gap of each step; empty when it failed.
    ratio
        To the solver under test; null when that or this failed.
    quality
        Whether its plan is better, equal or worse in the order of the objective.
    differs_at
        The first step with another value; null when there is none.
    """

    name: ReferenceName
    outcome: Literal["proven", "time_limit", "not_proven", "heuristic", "missing", "failed"]
    message: str | None = None
    time_limit: float
    seconds: float | None = None
    build: float | None = None
    solve: float | None = None
    steps: tuple[StepRecord, ...] = ()
    ratio: Ratio | None = None
    quality: Literal["better", "equal", "worse"] | None = None
    differs_at: str | None = None


class InstanceSize(Noun):
    """How large an instance is.

    Parameters
    ----------
    nodes, gpus, services
        Of the instance.
    free_gpus
        GPUs that the cycle may use.
    running_groups, running_instances
        Of the running state.
    """

    nodes: int
    gpus: int
    free_gpus: int
    services: int
    running_groups: int
    running_instances: int


class SolverRecord(Noun):
    """The solver under test on one instance.

    Parameters
    ----------
    status, stop_reason, engine, notes
        As in :class:`heteroplace.Result`.
    time_limit
        Seconds it was given.
    seconds
        From the instance in memory to the checked plan.
    overrun
        Seconds beyond the time limit; 0 when it was kept.
    phases
        Seconds for reading the instance's JSON, building, solving and assigning.
    size
        Of the integer program.
    steps
        Value, bound and gap of each step.
    peak_memory
        Bytes: the largest resident set of the process while it read and solved; null when the
        system does not tell.
    isolated
        Whether the process did nothing else.
    """

    status: Literal["optimal", "feasible", "invalid"]
    stop_reason: StopReason
    engine: str | None
    notes: tuple[str, ...] = ()
    time_limit: float
    seconds: float
    overrun: float
    phases: Seconds
    size: Size
    steps: tuple[StepRecord, ...]
    peak_memory: int | None
    isolated: bool


class BestComparison(Noun):
    """The best plan of this run against the best one known before it.

    Parameters
    ----------
    steps
        Best-known value and bound of each step, those of this run included.
    solver
        Whether the solver's plan reaches those values.
    improved
        Whether this run has a better plan or bound than was known before; true also where nothing
        was known.
    """

    steps: tuple[StepRecord, ...]
    solver: bool
    improved: bool


class InstanceRecord(Noun):
    """Everything measured on one instance.

    Parameters
    ----------
    entry, family, knobs, seed
        What was generated.
    digest
        :attr:`heteroplace.Instance.digest`; null when there is no instance.
    size
        Of the instance; null when there is none.
    solver
        The solver under test; null when it failed.
    references
        In the order they ran.
    best
        Comparison to the best-known values; null when there is no plan.
    notes
        Anything that does not add up, as a value below a bound.
    error
        What failed; null when nothing did.
    """

    entry: str
    family: str
    knobs: dict[str, JsonValue]
    seed: int
    digest: str | None = None
    size: InstanceSize | None = None
    solver: SolverRecord | None = None
    references: tuple[ReferenceRecord, ...] = ()
    best: BestComparison | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


class Spread(Noun):
    """Median and worst of a number; null is unknown, which is worse than any number."""

    median: float | None
    worst: float | None


class RatioSpread(Noun):
    """Median and least of a ratio, over the instances that have one.

    Parameters
    ----------
    median, worst
        True bounds where some of the ratios are bounds themselves.
    instances
        Number of instances.
    equal, better, worse
        On how many the reference's plan is as good as, better or worse than the solver's.
    """

    median: Ratio | None
    worst: Ratio | None
    instances: int
    equal: int
    better: int
    worse: int


class Summary(Noun):
    """One entry over all its seeds.

    Parameters
    ----------
    entry, family, instances, failed
        Instances run, and how many of them failed.
    gpus, services, columns
        Medians.
    phases
        Medians of the seconds by phase.
    seconds, overrun, peak_memory
        Medians and worst; seconds and bytes.
    proven
        Instances with every step proven.
    gap
        Of the first step that is not proven; 0 where all are.
    at_best
        Instances on which the solver reaches the best-known values.
    references
        Ratios by reference.
    """

    entry: str
    family: str
    instances: int
    failed: int
    gpus: float | None
    services: float | None
    columns: float | None
    phases: Seconds | None
    seconds: Spread
    overrun: Spread
    peak_memory: Spread
    proven: int
    gap: Spread
    at_best: int
    references: dict[ReferenceName, RatioSpread]


class Environment(Noun):
    """Where and with what a run was made.

    Parameters
    ----------
    commit
        Of the project, with ``-dirty`` when files were changed since; null outside a repository.
    cores
        That the process may use.
    cpu
        Model; null when the system does not tell.
    memory
        Bytes in the machine; null when the system does not tell.
    system
        Operating system and architecture.
    python
        Version.
    versions
        Of the package and of what it solves with.
    """

    commit: str | None
    cores: int
    cpu: str | None
    memory: int | None
    system: str
    python: str
    versions: dict[str, str]


class Report(Noun):
    """A benchmark run.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    kind
        ``suite``.
    suite, suite_digest, solver
        Name and content of the suite; the solver under test.
    began
        Date and time, UTC, ISO 8601.
    load
        Load average of the last minute when it began: how busy the machine was with other work;
        null when the system does not tell.
    isolated
        Whether each measurement had a process of its own.
    environment
        Where it ran.
    complete
        Whether every instance of the suite is in it.
    instances
        In the order of the suite.
    summaries
        One for each entry.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    kind: Literal["suite"] = "suite"
    suite: str
    suite_digest: str
    solver: str
    began: str
    load: float | None = None
    isolated: bool
    environment: Environment
    complete: bool = False
    instances: tuple[InstanceRecord, ...] = ()
    summaries: tuple[Summary, ...] = ()

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "results") -> Report:
        """Parse a run from JSON text.

        Raises
        ------
        InputError
            If the text is not JSON or not a benchmark run.
        """
        return validated(lambda: cls.model_validate_json(text), source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Report:
        """Read a run from a JSON file of at most ``max_bytes`` bytes.

        Raises
        ------
        InputError
            If the file cannot be read, is too large, is not JSON or not a benchmark run.
        """
        return cls.from_json(read_bytes(path, max_bytes), str(path))

    def to_json(self, indent: int | None = 1) -> str:
        """Write the run as JSON."""
        return self.model_dump_json(by_alias=True, indent=indent)

    @property
    def failed(self) -> int:
        """Number of instances that failed."""
        return sum(record.error is not None for record in self.instances)
