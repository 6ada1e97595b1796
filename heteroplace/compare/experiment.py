"""Experiments: which families with which knobs, sizes and seeds, solved by which profiles."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from heteroplace.compare.facts import affinity_knob
from heteroplace.compare.rewrite import Rewrite
from heteroplace.errors import InputError
from heteroplace.files import parse_toml, read_bytes, validated
from heteroplace.generate import FAMILIES, Family, family_from
from heteroplace.instance import Name, Noun, Text
from heteroplace.profile import Profile, SolverName

MOST_SEEDS = 10**6
MOST_STEPS = 10**4
MOST_ROWS = 10**7
SOLVERS = "solvers"
HEURISTICS = ("greedy", "greedy-pods")

Keep = Literal["plans", "instances"]


class Range(Noun):
    """Evenly spaced numbers, as in ``{from = 0.5, to = 1.3, step = 0.1}``.

    Parameters
    ----------
    from_
        The first, ``from`` in TOML.
    to
        None is above it; it is one of them when the steps lead there.
    step
        Above 0.
    """

    from_: Annotated[float, Field(alias="from", allow_inf_nan=False, strict=True)]
    to: Annotated[float, Field(allow_inf_nan=False, strict=True)]
    step: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 1.0

    @property
    def values(self) -> list[int | float]:
        """The numbers, exact in decimals: whole ones as integers if all of it is whole."""
        first, last, step = (Decimal(repr(each)) for each in (self.from_, self.to, self.step))
        if last < first:
            raise ValueError(f"to {self.to:g} is below from {self.from_:g}; swap them")
        count = int((last - first) / step) + 1
        if count > MOST_SEEDS:
            raise ValueError(f"has more than {MOST_SEEDS} values; take a larger step")
        numbers = [first + step * place for place in range(count)]
        whole = all(each == each.to_integral_value() for each in (first, step))
        return [int(each) if whole else float(each) for each in numbers]


def _unfolded(value: object) -> object:
    """A table with from, to and step stands for its list."""
    if isinstance(value, Mapping) and "from" in value:
        return tuple(Range.model_validate(value).values)
    return value


def _seed_list(value: object) -> object:
    """A number of seeds stands for 0, 1, ... up to it."""
    value = _unfolded(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if not 1 <= value <= MOST_SEEDS:
        raise ValueError(f"must be from 1 to {MOST_SEEDS} seeds, a list or a range of them")
    return tuple(range(value))


Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Seeds = Annotated[
    tuple[Seed, ...], Field(min_length=1, max_length=MOST_SEEDS), BeforeValidator(_seed_list)
]
Sizes = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False, strict=True)], ...],
    Field(min_length=1, max_length=MOST_STEPS),
    BeforeValidator(_unfolded),
]
Steps = Annotated[
    tuple[JsonValue, ...],
    Field(min_length=1, max_length=MOST_STEPS),
    BeforeValidator(_unfolded),
]
Seconds = Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False, strict=True)]
SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", strict=True)]


class NamedProfile(Noun):
    """A solver profile and its name in the table.

    Parameters
    ----------
    name
        Letters, digits, ``_`` and ``-``.
    profile
        How to solve.
    """

    name: SafeName
    profile: Profile


class Entry(Noun):
    """A family with its knobs; what it leaves out is as in the experiment.

    Parameters
    ----------
    name
        Unique in the experiment; default the family.
    family
        A key of :data:`heteroplace.generate.FAMILIES`.
    knobs
        Knobs of the family that differ, by name; and the fields of
        :class:`heteroplace.compare.rewrite.Rewrite`.
    grid
        Knobs that take several values, each a list or a range; every combination is run.
    sizes
        Scales of the family, a list or a range.
    seeds
        A number of seeds from 0 on, a list or a range of them.
    """

    name: Name | None = None
    family: Name
    knobs: dict[Name, JsonValue] = Field(default={})
    grid: dict[Name, Steps] = Field(default={})
    sizes: Sizes | None = None
    seeds: Seeds | None = None

    @property
    def label(self) -> str:
        """Its name, or else its family's."""
        return self.name or self.family

    def points(self) -> Iterator[dict[str, JsonValue]]:
        """Every combination of the knobs."""
        for values in product(*self.grid.values()):
            yield {**self.knobs, **dict(zip(self.grid, values, strict=True))}


class Experiment(Noun):
    """A batch of instances and the profiles that solve each of them; loads from TOML.

    Parameters
    ----------
    name
        Letters, digits, ``_`` and ``-``; names the folder of results.
    description
        What it is for.
    seeds, sizes
        For every entry that has none of its own.
    profiles
        In TOML the name of a file in ``solvers/``, a path that ends in ``.toml``, the name of a
        solver, or a table with a ``name`` and the fields of a profile.
    threads
        Threads of the engine where a profile does not say: 1, since every core has its worker.
    patience
        Seconds beyond the time limit after which a worker that does not answer is stopped.
    anytime
        Further time limits; each profile with an engine solves anew under each, for its anytime
        curve.
    keep
        ``plans``, ``instances``: files to write beside the table.
    entries
        What to run, in this order.
    """

    name: SafeName
    description: Text = ""
    seeds: Seeds = tuple(range(10))
    sizes: Sizes = (1.0,)
    profiles: Annotated[tuple[NamedProfile, ...], Field(min_length=1, max_length=100)]
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    patience: Seconds = 60.0
    anytime: Annotated[tuple[Seconds, ...], Field(max_length=100)] = ()
    keep: tuple[Keep, ...] = ()
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_twice(self.seeds, "seeds")
        _refuse_twice(self.sizes, "sizes")
        _refuse_twice(self.anytime, "anytime")
        _refuse_twice(self.keep, "keep")
        _refuse_twice([each.name.lower() for each in self.profiles], "profiles", ".name")
        # First of all, for each of them is looked at below.
        if self.rows > MOST_ROWS:
            raise InputError("entries", f"ask for {self.rows} rows, at most {MOST_ROWS}")
        seen: set[str] = set()
        for index, entry in enumerate(self.entries):
            where = f"entries[{index}]"
            _check_entry(entry, entry.sizes or self.sizes, where)
            if entry.label in seen:
                raise InputError(
                    f"{where}.name", f"{entry.label!r} is taken; give the entry a name of its own"
                )
            seen.add(entry.label)
        return self

    @classmethod
    def from_toml(
        cls, text: str | bytes, source: str = "experiment", folder: str | os.PathLike[str] = "."
    ) -> Experiment:
        """Parse an experiment from TOML text.

        Parameters
        ----------
        text
            The experiment.
        source
            Names it in errors.
        folder
            Paths of profiles are relative to it; ``solvers`` is looked for in it and above.

        Raises
        ------
        InputError
            If the text is not TOML or not an experiment, or a profile is not found.
        """
        data = parse_toml(text, source)
        if isinstance(data.get("profiles"), list):
            data["profiles"] = [
                _named_profile(each, f"{source}: profiles[{index}]", Path(folder))
                for index, each in enumerate(data["profiles"])
            ]
        return validated(lambda: cls.model_validate(data), source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Experiment:
        """Read an experiment from a TOML file.

        Raises
        ------
        InputError
            If the file cannot be read, is not TOML or not an experiment.
        """
        return cls.from_toml(read_bytes(path, 2**20), str(path), Path(path).parent)

    def narrowed(
        self,
        *,
        entries: Collection[str] = (),
        seeds: int | None = None,
        keep: Collection[str] | None = None,
    ) -> Experiment:
        """Return the experiment with fewer entries or seeds, or with other files to keep.

        Parameters
        ----------
        entries
            Names of the entries to keep; all when empty.
        seeds
            Run only the first so many seeds of each entry.
        keep
            As in :class:`Experiment`.

        Raises
        ------
        InputError
            If an entry is not known or a value does not fit; names the option.
        """
        known = [entry.label for entry in self.entries]
        for name in entries:
            if name not in known:
                raise InputError("--entry", f"unknown entry {name!r}; known: {', '.join(known)}")
        chosen = tuple(
            entry.model_copy(update={"seeds": (entry.seeds or self.seeds)[:seeds]})
            if seeds is not None
            else entry
            for entry in self.entries
            if not entries or entry.label in entries
        )
        changes: dict[str, Any] = {"entries": chosen}
        if keep is not None:
            for name in keep:
                if name not in get_args(Keep):
                    raise InputError("--keep", f"knows plans and instances, not {name!r}")
            changes["keep"] = tuple(dict.fromkeys(keep))
        return self.model_copy(update=changes)

    @property
    def instances(self) -> int:
        """Number of instances."""
        total = 0
        for entry in self.entries:
            count = len(entry.sizes or self.sizes) * len(entry.seeds or self.seeds)
            for values in entry.grid.values():
                count *= len(values)
            total += count
        return total

    @property
    def rows(self) -> int:
        """Number of rows: one per instance and profile."""
        return self.instances * len(self.profiles)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides a row, in hexadecimal."""
        text = self.model_dump_json(exclude={"description", "patience"})
        return hashlib.sha256(text.encode()).hexdigest()

    def used_profiles(self) -> dict[str, Profile]:
        """The profiles by name, with their threads."""
        return {
            each.name: each.profile
            if each.profile.threads is not None
            else each.profile.model_copy(update={"threads": self.threads})
            for each in self.profiles
        }

    def tasks(self) -> Iterator[Task]:
        """Every instance, in order."""
        for entry in self.entries:
            for knobs in entry.points():
                text = json.dumps(knobs, sort_keys=True)
                for size in entry.sizes or self.sizes:
                    for seed in entry.seeds or self.seeds:
                        yield Task(entry.label, entry.family, text, size, seed)


@dataclass(frozen=True, slots=True)
class Task:
    """One instance to solve.

    Parameters
    ----------
    entry
        Name of the entry.
    family, knobs, size, seed
        What to generate; the knobs as JSON, names sorted, without the size.
    """

    entry: str
    family: str
    knobs: str
    size: float
    seed: int

    @property
    def made(self) -> Family:
        """The family with its knobs turned."""
        return made_family(self.family, self.knobs, self.size)

    @property
    def rewrite(self) -> Rewrite:
        """The rules that are put in when it is generated."""
        return rewrite_of(self.knobs)

    @property
    def affinity(self) -> str:
        """The affinity of the services in one word or as weights, as in ``none=3,s1=2``."""
        return self.rewrite.every_affinity or affinity_knob(self.made)

    @property
    def key(self) -> str:
        """Names the instance: readable, safe as a file name, unique in the experiment."""
        content = json.dumps([self.entry, self.family, self.knobs, self.size, self.seed])
        short = hashlib.sha256(content.encode()).hexdigest()[:12]
        return f"{re.sub(r'[^A-Za-z0-9_-]', '_', self.entry)[:40]}-{self.seed}-{short}"


def made_family(name: str, knobs: str, size: float) -> Family:
    """The family of a row.

    Parameters
    ----------
    name, knobs, size
        As in the row.
    """
    _, own = Rewrite.split(json.loads(knobs))
    return family_from(name, {**own, "scale": size})


def rewrite_of(knobs: str) -> Rewrite:
    """The rules of a row that are put in when its instance is generated.

    Parameters
    ----------
    knobs
        As in the row.
    """
    return Rewrite.split(json.loads(knobs))[0]


def _check_entry(entry: Entry, sizes: Collection[float], where: str) -> None:
    if entry.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"{where}.family", f"unknown family {entry.family!r}; known: {known}")
    for field in ("knobs", "grid"):
        given = getattr(entry, field)
        if "scale" in given:
            raise InputError(f"{where}.{field}.scale", "is named by sizes; move it there")
        for name in given:
            if name in ("name", "description"):
                raise InputError(f"{where}.{field}.{name}", "is not a knob; remove it")
    for name in entry.grid:
        if name in entry.knobs:
            raise InputError(f"{where}.grid.{name}", "is in knobs too; keep one of them")
        _refuse_twice(entry.grid[name], f"{where}.grid.{name}")
    _refuse_twice(entry.seeds or (), f"{where}.seeds")
    _refuse_twice(entry.sizes or (), f"{where}.sizes")
    for knobs in entry.points():
        for size in (min(sizes), max(sizes)):
            try:
                rewrite, own = Rewrite.split(knobs)
                rewrite.refuse_narrower(family_from(entry.family, {**own, "scale": size}))
            except InputError as error:
                fault = error.path.removeprefix(f"family {entry.family}").removeprefix(": ")
                knob = re.split(r"[.\[]", fault, maxsplit=1)[0]
                if knob == "scale":
                    path = f"{where}.sizes"
                elif knob:
                    path = f"{where}.{'grid' if knob in entry.grid else 'knobs'}.{fault}"
                else:
                    path = f"{where}.knobs"
                raise InputError(path, error.message) from None


def _named_profile(value: object, where: str, folder: Path) -> object:
    """What stands in the list of profiles, as name and profile."""
    if isinstance(value, str):
        path = _profile_file(value, folder)
        if path is not None:
            return {"name": path.stem, "profile": Profile.from_file(path)}
        if value in get_args(SolverName):
            return {"name": value, "profile": {"solver": value}}
        known = sorted({file.stem for place in _places(folder) for file in place.glob("*.toml")})
        raise InputError(
            where,
            f"no profile {value!r} in {SOLVERS}/ ({', '.join(known) or 'none found'}) and no "
            f"solver of that name ({', '.join(get_args(SolverName))})",
        )
    if isinstance(value, Mapping):
        fields = dict(value)
        name = fields.pop("name", fields.get("solver", "auto"))
        try:
            return {"name": name, "profile": validated(lambda: Profile.model_validate(fields))}
        except InputError as error:
            raise InputError(f"{where}.{error.path}", error.message) from None
    raise InputError(where, "must be the name of a profile or a table with its fields")


def _places(folder: Path) -> tuple[Path, ...]:
    return folder / SOLVERS, folder / ".." / SOLVERS, Path(SOLVERS)


def _profile_file(value: str, folder: Path) -> Path | None:
    if value.endswith(".toml"):
        return folder / value
    if re.fullmatch(r"[A-Za-z0-9_-]+", value):
        for place in _places(folder):
            path = place / f"{value}.toml"
            if path.is_file():
                return path
    return None


def _refuse_twice(values: Collection[object], path: str, field: str = "") -> None:
    seen: set[object] = set()
    for index, value in enumerate(values):
        # 1 and 1.0 are the same number; what is no number may be a table or a list.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        known = value if number else json.dumps(value, sort_keys=True, default=str)
        if known in seen:
            raise InputError(
                f"{path}[{index}]{field}", f"{value!r} is named twice; keep one of them"
            )
        seen.add(known)
