"""Benchmark suites: which families with which seeds, how long, against which references."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from heteroplace.errors import InputError
from heteroplace.files import parse_toml, read_bytes, validated
from heteroplace.generate import FAMILIES, Family, family_from
from heteroplace.instance import Name, Noun, Text
from heteroplace.profile import SolverName

ReferenceName = Literal["greedy", "highs", "cpsat"]

MOST_SEEDS = 10_000


def _seed_list(value: object) -> object:
    """A number of seeds stands for 0, 1, ... up to it."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if not 1 <= value <= MOST_SEEDS:
        raise ValueError(f"must be from 1 to {MOST_SEEDS} seeds, or a list of them")
    return tuple(range(value))


Limit = Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Seeds = Annotated[
    tuple[Seed, ...], Field(min_length=1, max_length=MOST_SEEDS), BeforeValidator(_seed_list)
]
References = tuple[ReferenceName, ...]


class Entry(Noun):
    """A family with its knobs; what it leaves out is as in the suite.

    Parameters
    ----------
    name
        Unique in the suite; default the family.
    family
        A key of :data:`heteroplace.generate.FAMILIES`.
    knobs
        Knobs of the family that differ, by name.
    seeds
        A number of seeds from 0 on, or a list of them.
    time_limit, reference_time_limit
        Seconds for the solver under test, and for each reference.
    references
        Which references to run.
    """

    name: Name | None = None
    family: Name
    knobs: dict[Name, JsonValue] = Field(default={})
    seeds: Seeds | None = None
    time_limit: Limit | None = None
    reference_time_limit: Limit | None = None
    references: References | None = None

    @property
    def label(self) -> str:
        """Its name, or else its family's."""
        return self.name or self.family


class Suite(Noun):
    """A named list of entries; loads from TOML.

    Parameters
    ----------
    name, description
        Name of the suite; what it is for.
    solver, threads
        The solver under test and the threads of its engine, as in :class:`heteroplace.Profile`.
    seeds, time_limit, reference_time_limit, references
        For every entry that has none of its own.
    entries
        What to run, in this order.
    """

    name: Name
    description: Text = ""
    solver: SolverName = "auto"
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] | None = None
    seeds: Seeds = tuple(range(10))
    time_limit: Limit = 30.0
    reference_time_limit: Limit = 60.0
    references: References = ("greedy", "highs", "cpsat")
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_twice(self.references, "references")
        seen: set[str] = set()
        for index, entry in enumerate(self.entries):
            where = f"entries[{index}]"
            if entry.family not in FAMILIES:
                known = ", ".join(FAMILIES)
                raise InputError(
                    f"{where}.family", f"unknown family {entry.family!r}; known: {known}"
                )
            try:
                family_from(entry.family, entry.knobs)
            except InputError as error:
                fault = error.path.removeprefix(f"family {entry.family}").removeprefix(": ")
                path = f"{where}.knobs.{fault}" if fault else f"{where}.knobs"
                raise InputError(path, error.message) from None
            if entry.label in seen:
                raise InputError(
                    f"{where}.name", f"{entry.label!r} is taken; give the entry a name of its own"
                )
            seen.add(entry.label)
            _refuse_twice(entry.references or (), f"{where}.references")
            _refuse_twice(entry.seeds or (), f"{where}.seeds")
        _refuse_twice(self.seeds, "seeds")
        return self

    @classmethod
    def from_toml(cls, text: str | bytes, source: str = "suite") -> Suite:
        """Parse a suite from TOML text.

        Raises
        ------
        InputError
            If the text is not TOML or not a suite; names the field.
        """
        data = parse_toml(text, source)
        return validated(lambda: cls.model_validate(data), source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Suite:
        """Read a suite from a TOML file.

        Raises
        ------
        InputError
            If the file cannot be read, is not TOML or not a suite.
        """
        return cls.from_toml(read_bytes(path, 2**20), str(path))

    def narrowed(
        self,
        *,
        solver: str | None = None,
        entries: Collection[str] = (),
        seeds: int | None = None,
        time_limit: float | None = None,
        reference_time_limit: float | None = None,
        references: Collection[str] | None = None,
    ) -> Suite:
        """Return the suite with other values for all of its entries.

        Parameters
        ----------
        solver
            The solver under test.
        entries
            Names of the entries to keep; all when empty.
        seeds
            Number of seeds from 0 on.
        time_limit, reference_time_limit, references
            As in :class:`Entry`.

        Raises
        ------
        InputError
            If an entry is not known or a value does not fit; names the option.
        """
        known = [entry.label for entry in self.entries]
        for name in entries:
            if name not in known:
                raise InputError("--entry", f"unknown entry {name!r}; known: {', '.join(known)}")
        given = {
            "solver": solver,
            "seeds": seeds,
            "time_limit": time_limit,
            "reference_time_limit": reference_time_limit,
            "references": None if references is None else tuple(references),
        }
        changes = {name: value for name, value in given.items() if value is not None}
        data = self.model_dump()
        data["entries"] = [
            {name: value for name, value in entry.items() if name not in changes}
            for entry, label in zip(data["entries"], known, strict=True)
            if not entries or label in entries
        ]
        try:
            return validated(lambda: Suite.model_validate({**data, **changes}))
        except InputError as error:
            raise InputError(f"--{error.path.replace('_', '-')}", error.message) from None

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what is run, in hexadecimal."""
        text = self.model_dump_json(exclude={"description"})
        return hashlib.sha256(text.encode()).hexdigest()

    def tasks(self) -> list[Task]:
        """One task for each entry and seed, in order."""
        return [
            Task(
                entry=entry.label,
                family=entry.family,
                knobs=dict(entry.knobs),
                seed=seed,
                solver=self.solver,
                threads=self.threads,
                time_limit=entry.time_limit or self.time_limit,
                reference_time_limit=entry.reference_time_limit or self.reference_time_limit,
                references=self.references if entry.references is None else entry.references,
            )
            for entry in self.entries
            for seed in entry.seeds or self.seeds
        ]


@dataclass(frozen=True)
class Task:
    """One instance to measure, with everything about it resolved.

    Parameters
    ----------
    entry
        Name of the entry.
    family, knobs, seed
        What to generate.
    solver, threads, time_limit
        The solver under test; seconds.
    references, reference_time_limit
        What to run on the same instance; seconds for each.
    """

    entry: str
    family: str
    knobs: dict[str, JsonValue]
    seed: int
    solver: SolverName
    threads: int | None
    time_limit: float
    reference_time_limit: float
    references: tuple[ReferenceName, ...]

    @property
    def made(self) -> Family:
        """The family with its knobs turned."""
        return family_from(self.family, self.knobs)

    @property
    def key(self) -> str:
        """Names the instance in a file of best-known values, whatever the suite."""
        knobs = (f"{name}={value}" for name, value in sorted(self.knobs.items()))
        return " ".join([self.family, *knobs, f"seed={self.seed}"])


def _refuse_twice(values: Collection[object], path: str) -> None:
    listed = list(values)
    for index, value in enumerate(listed):
        if value in listed[:index]:
            raise InputError(f"{path}[{index}]", f"{value!r} is named twice; keep one of them")
