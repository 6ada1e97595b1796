"""Best-known values and bounds of named instances, kept from run to run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from heteroplace.bench.record import BestComparison, StepRecord
from heteroplace.bench.steps import close, contradiction, difference
from heteroplace.files import MAX_BYTES, read_bytes, refuse_duplicate_keys, validated
from heteroplace.instance import Noun
from heteroplace.solve.engine import PROVEN_GAP


class BestStep(Noun):
    """A step of the objective: best-known value and bound.

    Parameters
    ----------
    name, value, bound
        As in :class:`heteroplace.plan.ProvenStep`.
    """

    name: str
    value: Annotated[float, Field(allow_inf_nan=False)]
    bound: Annotated[float, Field(allow_inf_nan=False)] | None = None


class BestKnown(Noun):
    """What is known of one instance.

    Parameters
    ----------
    digest
        :attr:`heteroplace.Instance.digest`: values of another instance are of no use.
    steps
        The best plan's values, and the best bounds that hold together with them.
    found_by
        Solver or reference that found the plan.
    commit
        With which; null when not known.
    """

    digest: str
    steps: tuple[BestStep, ...]
    found_by: str
    commit: str | None = None

    def fits(self, digest: str, steps: Sequence[StepRecord]) -> bool:
        """Whether it speaks of an instance and of its objective as it is defined now."""
        names = [step.name for step in self.steps]
        return self.digest == digest and names == [step.name for step in steps]


class BestFile(Noun):
    """Best-known values by instance.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    instances
        By family, knobs and seed, as in ``"replan load=1.3 seed=0"``.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    instances: dict[str, BestKnown] = Field(default={})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> BestFile:
        """Read a file of best-known values; one that does not exist knows nothing.

        Raises
        ------
        InputError
            If the file cannot be read or is not such a file.
        """
        if not Path(path).exists():
            return cls()
        text = read_bytes(path, MAX_BYTES)
        found = validated(lambda: cls.model_validate_json(text), str(path))
        refuse_duplicate_keys(text, str(path))
        return found

    def to_json(self) -> str:
        """Write it as JSON, sorted by instance."""
        ordered = self.model_copy(update={"instances": dict(sorted(self.instances.items()))})
        return ordered.model_dump_json(by_alias=True, indent=1)


def merged(
    known: BestKnown | None,
    digest: str,
    steps: Sequence[StepRecord],
    found_by: str,
    commit: str | None,
) -> BestKnown | None:
    """Add a plan and its bounds to what is known; never makes it worse.

    A bound of a step holds among all plans with the same values in the steps before. So up to the
    first step in which two plans differ the higher bound is kept, and after it the better plan's.

    Parameters
    ----------
    known
        Null when nothing is.
    digest, steps
        Of the instance; what a solver reached on it.
    found_by, commit
        Who, with what.

    Returns
    -------
    BestKnown or None
        ``known`` itself when there is nothing new; null when there is no plan at all.
    """
    if known is not None and not known.fits(digest, steps):
        known = None
    if any(step.value is None for step in steps) or not steps:
        return known
    fresh = BestKnown(
        digest=digest,
        steps=tuple(
            BestStep(name=step.name, value=step.value, bound=step.bound)
            for step in steps
            if step.value is not None
        ),
        found_by=found_by,
        commit=commit,
    )
    if known is None:
        return fresh
    before = as_records(known)
    if contradiction(before, steps) is not None:
        return known
    last, sign = difference(steps, before)
    base = fresh if sign < 0 else known
    joined = tuple(
        step if index > last else _bounded(step, known.steps[index], fresh.steps[index])
        for index, step in enumerate(base.steps)
    )
    if joined == known.steps:
        return known
    return base.model_copy(update={"steps": joined})


def _bounded(step: BestStep, first: BestStep, second: BestStep) -> BestStep:
    bounds = [each.bound for each in (first, second) if each.bound is not None]
    if not bounds:
        return step
    return step.model_copy(update={"bound": min(step.value, max(bounds))})


def as_records(known: BestKnown) -> tuple[StepRecord, ...]:
    """Best-known steps with gap and proof."""
    return tuple(_record(step) for step in known.steps)


def _record(step: BestStep) -> StepRecord:
    value, bound = step.value, step.bound
    if bound is None:
        return StepRecord(name=step.name, value=value)
    equal = close(value, bound)
    return StepRecord(
        name=step.name,
        value=value,
        bound=bound,
        gap=0.0 if equal else (value - bound) / abs(bound) if bound else None,
        proven=equal or value - bound <= abs(value) * float(PROVEN_GAP),
    )


def comparison(
    best: BestKnown, before: BestKnown | None, solver: Sequence[StepRecord]
) -> BestComparison:
    """Compare the solver's plan with the best one known.

    Parameters
    ----------
    best
        What is known after the run.
    before
        What was known before it; null when nothing was.
    solver
        Its steps.
    """
    steps = as_records(best)
    return BestComparison(
        steps=steps,
        solver=difference(solver, steps)[1] <= 0,
        improved=before is None or best != before,
    )
