"""The running state: which groups run where, and what drains."""

from __future__ import annotations

import random
from itertools import accumulate

from heteroplace.generate.draft import Draft, Group, Recipe
from heteroplace.generate.fleet import Fleet


def run(fleet: Fleet, drafts: list[Draft], budget: float, rng: random.Random) -> None:
    """Place running groups on about ``budget`` GPUs; every service runs if that is enough.

    Every part of the fleet keeps some free GPUs, so that services which fit few places can grow.
    """
    fleet.keep(max(0.0, 1 - budget / max(1, sum(fleet.room))) / 2)
    order = list(drafts)
    rng.shuffle(order)
    for draft in order:
        budget -= _grow(fleet, draft, budget, rng)
    weights = list(accumulate(draft.weight for draft in drafts))
    misses = 0
    while budget >= 1 and misses < 50:
        grown = _grow(fleet, rng.choices(drafts, cum_weights=weights)[0], budget, rng)
        misses = 0 if grown else misses + 1
        budget -= grown


def _grow(fleet: Fleet, draft: Draft, most: float, rng: random.Random) -> int:
    """Add a unit to a group of the service or to a new one; return its GPUs, 0 for no room."""
    recipe = draft.recipes[0]
    if len(draft.recipes) > 1 and rng.random() < 0.25:
        scarcest = [min(fleet.gpus[name] for name in each.by_type) for each in draft.recipes]
        recipe = rng.choices(draft.recipes, scarcest)[0]
    if recipe.gpus > most:
        return 0
    level = draft.affinity.required
    if (
        draft.groups
        and rng.random() < 0.7
        and _extend(fleet, rng.choice(draft.groups), recipe, level, rng)
    ):
        return recipe.gpus
    domains = fleet.domains_with(level, recipe.by_type)
    for _ in range(min(8, len(domains))):
        group = Group(rng.choice(domains).name)
        if _extend(fleet, group, recipe, level, rng):
            draft.groups.append(group)
            return recipe.gpus
    return 0


def _extend(
    fleet: Fleet, group: Group, recipe: Recipe, level: str | None, rng: random.Random
) -> bool:
    """Place a unit in the domain of a group, from a random leaf on; false if there is no room."""
    leaves = fleet.domains[level][group.domain].leaves
    start = rng.randrange(len(leaves))
    unit = fleet.place(recipe, leaves[start:] + leaves[:start])
    if unit is not None:
        group.units.append(unit)
    return unit is not None


def drain(drafts: list[Draft], share: float, rng: random.Random) -> None:
    """Let a share of the running units drain, never all of a service."""
    units = [(draft, unit) for draft in drafts for group in draft.groups for unit in group.units]
    left = round(share * len(units))
    rng.shuffle(units)
    for draft, unit in units:
        if left and len(draft.ready) > 1:
            unit.draining = True
            left -= 1
