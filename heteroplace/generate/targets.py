"""The targets: which services change, and to how much."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum

from heteroplace.generate.draft import Draft
from heteroplace.generate.fleet import Fleet


def retarget(
    fleet: Fleet,
    drafts: list[Draft],
    change: float,
    scale_in: float,
    wanted: Mapping[str, float],
    rng: random.Random,
) -> None:
    """Set the targets: ``wanted`` are the GPUs of each type to ask for."""
    for draft in drafts:
        for unit in draft.ready:
            draft.ask(unit.recipe.capacity)
    order = list(drafts)
    rng.shuffle(order)
    order.sort(key=lambda draft: bool(draft.ready))
    idle = sum(1 for draft in drafts if not draft.ready)
    changing = max(idle, round(change * len(drafts)))
    shrinking = min(round(scale_in * changing), changing - idle)
    for draft in order[changing - shrinking : changing]:
        _shrink(draft, rng)
    if fsum(wanted.values()) > 0:
        _grow(fleet, order[: changing - shrinking], wanted)


def _shrink(draft: Draft, rng: random.Random) -> None:
    """Lower the targets by some of the running units."""
    units = draft.ready
    rng.shuffle(units)
    for unit in units[: rng.randint(1, max(1, len(units) // 2))]:
        draft.ask(unit.recipe.capacity, -1)


def _grow(fleet: Fleet, drafts: list[Draft], wanted: Mapping[str, float]) -> None:
    """Raise the targets by whole units, one at least, to the GPUs that are wanted.

    What rounding leaves over is carried on to the services on the same GPU type; those with small
    units come last and even it out.
    """
    carry: dict[str, float] = defaultdict(float)
    shares = zip(drafts, _shares(fleet, drafts, wanted), strict=True)
    for draft, gpus in sorted(shares, key=lambda each: -each[0].recipes[0].gpus):
        recipe = draft.recipes[0]
        gpu_type = next(iter(recipe.by_type))
        asked = gpus + carry[gpu_type]
        units = max(1, round(asked / recipe.gpus))
        carry[gpu_type] = asked - units * recipe.gpus
        draft.ask(recipe.step or recipe.capacity, units)


def _shares(fleet: Fleet, drafts: list[Draft], wanted: Mapping[str, float]) -> list[float]:
    """GPUs each service may ask for: the wanted ones of every type, and where they can be had.

    Services that need two GPU types in one domain ask for no more than most of what the domains
    of that kind have; the others make up for it.
    """
    gpus = [draft.weight for draft in drafts]
    mixes = [
        {name: count / draft.recipes[0].gpus for name, count in draft.recipes[0].by_type.items()}
        for draft in drafts
    ]
    scopes = [_scope(fleet, draft) for draft in drafts]
    limits = _limits(fleet, scopes, wanted)

    def asked(members: Iterable[int]) -> dict[str, float]:
        """GPUs of each type that some of the services ask for."""
        total: dict[str, float] = defaultdict(float)
        for index in members:
            for name, part in mixes[index].items():
                total[name] += gpus[index] * part
        return {name: amount for name, amount in total.items() if amount}

    for _ in range(8):
        now = asked(range(len(drafts)))
        for index, mix in enumerate(mixes):
            gpus[index] *= fsum(mix[name] * wanted[name] / now[name] for name in mix if name in now)
        for members, limit in limits:
            factor = min([1.0, *(limit[name] / amount for name, amount in asked(members).items())])
            for index in members:
                gpus[index] *= factor
    free = [index for index, scope in enumerate(scopes) if scope is None]
    total = fsum(gpus[index] for index in free)
    rest = fsum(wanted.values()) - fsum(gpus) + total
    for index in free:
        gpus[index] *= max(0.0, rest) / total if total else 0.0
    return gpus


def _scope(fleet: Fleet, draft: Draft) -> frozenset[int] | None:
    """Leaves where a service that needs several types in one domain can run; null for others."""
    recipe, level = draft.recipes[0], draft.affinity.required
    needs = [{pod.gpu_type for pod in shape.pods} for shape in recipe.shapes.values()]
    if len(recipe.by_type) < 2 or (level is None and all(len(need) < 2 for need in needs)):
        return None
    return frozenset(
        leaf
        for domain in fleet.domains_with(level, recipe.by_type)
        for leaf in domain.leaves
        if any(need <= fleet.leaves[leaf].keys() for need in needs)
    )


def _limits(
    fleet: Fleet, scopes: Sequence[frozenset[int] | None], wanted: Mapping[str, float]
) -> list[tuple[list[int], dict[str, float]]]:
    """For each scope, the services confined to it and the GPUs they may ask for together."""
    free = fleet.free()
    limits = []
    for scope in dict.fromkeys(scope for scope in scopes if scope is not None):
        members = [index for index, own in enumerate(scopes) if own is not None and own <= scope]
        left = fleet.left(scope)
        limit = {name: 0.7 * left[name] * wanted[name] / max(1, free[name]) for name in wanted}
        limits.append((members, limit))
    return limits
