"""Pictures of the two plans of an instance, packed for the page."""

from __future__ import annotations

import base64
import gzip
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from heteroplace.compare.experiment import Experiment
from heteroplace.compare.record import Row
from heteroplace.errors import InputError
from heteroplace.instance import Instance
from heteroplace.page import drawing
from heteroplace.plan import Plan
from heteroplace.profile import Profile
from heteroplace.report.study import Pair, Study
from heteroplace.show import OCCUPIES, Picture
from heteroplace.solve import solve

log = logging.getLogger("heteroplace")

MOST_BYTES = 3 * 2**20
_OF_THE_PLAN = ("planned", "groups", "roles", "steps", "costs", "repairs")


@dataclass
class Pictures:
    """The pictures in the page.

    Parameters
    ----------
    packed
        By key of the instance: common data, left data and right data as JSON, compressed, base64.
    without_plan
        Chosen instances of which a plan was not kept.
    without_instance
        Chosen instances that could not be made again as they were.
    damaged
        Chosen instances of which a file is damaged or does not fit.
    full
        Chosen instances that the page has no room for.
    solved
        Instances that were solved again.
    otherwise
        Of these, the ones that came out with other values than in the table.
    """

    packed: dict[str, str] = field(default_factory=dict)
    without_plan: list[str] = field(default_factory=list)
    without_instance: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    full: list[str] = field(default_factory=list)
    solved: list[str] = field(default_factory=list)
    otherwise: list[str] = field(default_factory=list)


def packed(data: Any) -> str:
    """Compress JSON or text for the page; the same data gives the same text."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii")


def chosen(study: Study, most: int, named: Collection[str]) -> list[Pair]:
    """Choose instances to picture: the named ones, the most different, and some from all over.

    Parameters
    ----------
    study
        What is compared.
    most
        How many, beside the named ones.
    named
        Keys of instances.

    Raises
    ------
    InputError
        If a named instance is not in the results.
    """
    by_key = {pair.key: pair for pair in study.pairs}
    for key in named:
        if key not in by_key:
            raise InputError("--instance", f"no instance {key!r} that both profiles solved")
    found = {key: by_key[key] for key in named}
    rest = [pair for pair in study.pairs if pair.key not in found]
    if len(rest) > most:
        ranked = sorted(rest, key=_difference, reverse=True)[: most // 2]
        taken = {pair.key for pair in ranked}
        others = [pair for pair in rest if pair.key not in taken]
        wanted = most - len(ranked)
        rest = ranked + [others[place * len(others) // wanted] for place in range(wanted)]
    return [*found.values(), *rest]


def _difference(pair: Pair) -> tuple[float, float, float]:
    return tuple(
        (pair.left[column] or 0.0) - (pair.right[column] or 0.0)
        for column in ("unmet_gpus", "high_tier_waste_gpus", "cost")
    )  # type: ignore[return-value]


def pictures(
    study: Study,
    pairs: Sequence[Pair],
    *,
    again: bool = False,
    most_bytes: int = MOST_BYTES,
    told: Callable[[int], None] = lambda done: None,
) -> Pictures:
    """Draw the chosen instances.

    Parameters
    ----------
    study
        What is compared.
    pairs
        The instances.
    again
        Whether to solve those again of which a plan was not kept.
    most_bytes
        Room in the page.
    told
        Called with the number of instances done.
    """
    found, room = Pictures(), most_bytes
    solver = _Again(study) if again else None
    for done, pair in enumerate(pairs):
        told(done)
        try:
            instance = study.results.instance(pair.left)
            if instance is None:
                found.without_instance.append(pair.key)
                continue
            plans = _plans(study, pair, instance, solver, found)
            if plans is None:
                found.without_plan.append(pair.key)
                continue
            text = packed(_drawn(instance, plans))
        except InputError as error:
            log.warning("%s: no picture: %s", pair.key, error)
            found.damaged.append(pair.key)
            continue
        if len(text) > room:
            found.full.append(pair.key)
            continue
        room -= len(text)
        found.packed[pair.key] = text
    told(len(pairs))
    return found


def _plans(
    study: Study, pair: Pair, instance: Instance, again: _Again | None, found: Pictures
) -> tuple[Plan | None, Plan] | None:
    """Both plans; the left one is null where there is one profile: then it is the state before."""
    plans = []
    for row in [pair.right] if study.single else [pair.left, pair.right]:
        plan = study.results.plan(row)
        if plan is None and again is not None:
            plan, equal = again.solved(instance, row)
            if pair.key not in found.solved:
                found.solved.append(pair.key)
            if not equal and pair.key not in found.otherwise:
                found.otherwise.append(pair.key)
        if plan is None:
            return None
        plans.append(plan)
    return (None, plans[0]) if study.single else (plans[0], plans[1])


class _Again:
    """Solves again what was not kept, as the experiment did."""

    def __init__(self, study: Study) -> None:
        self._study = study

    @cached_property
    def _profiles(self) -> dict[str, Profile]:
        return Experiment.model_validate(self._study.manifest.experiment).used_profiles()

    def solved(self, instance: Instance, row: Row) -> tuple[Plan, bool]:
        """The plan, and whether its values are those in the table."""
        result = solve(instance, self._profiles[row["profile"]])
        values = [step.value for step in result.steps]
        return result.plan, values == list(row["step_values"] or ())


def _drawn(instance: Instance, plans: tuple[Plan | None, Plan]) -> list[dict[str, Any]]:
    """What both pictures share, then what is of the left and of the right plan.

    Both get the same weights, so that a service has the same colour and place in both.
    """
    drawn = [Picture(instance, plan) for plan in plans]
    weights = [0] * len(instance.services)
    for picture in drawn:
        for each in picture.placements():
            if each.mark in OCCUPIES:
                weights[instance.service_index[each.service]] += each.gpus
    data = [drawing(picture) for picture in drawn]
    common = {name: value for name, value in data[0].items() if name not in _OF_THE_PLAN}
    sides = [{name: each[name] for name in _OF_THE_PLAN} for each in data]
    return [{**common, "weights": weights}, *sides]
