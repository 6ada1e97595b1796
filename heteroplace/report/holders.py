"""Who holds the high-tier GPUs that are wasted: by priority and by affinity, from kept plans.

The table says how much each plan wastes, not on whom. Where plans were kept this is read from them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from heteroplace.compare.facts import HIGH, InstanceFacts, affinity_kind
from heteroplace.compare.record import Results, Row
from heteroplace.errors import InputError
from heteroplace.instance import Instance
from heteroplace.plan import Plan
from heteroplace.report.study import Pair
from heteroplace.show import DELIVERS, Picture

log = logging.getLogger("heteroplace")

MOST_READ = 300
Amounts = dict[str, tuple[float, float]]


@dataclass
class Holders:
    """Wasted GPUs and all high-tier GPUs by key of the row and by class of the services.

    Parameters
    ----------
    by_priority, by_affinity
        Every class of the instance is there, also where it wastes nothing.
    """

    by_priority: dict[str, Amounts] = field(default_factory=dict)
    by_affinity: dict[str, Amounts] = field(default_factory=dict)


def holders(results: Results, pairs: Sequence[Pair]) -> Holders:
    """Read who holds what, for pairs of which both plans were kept.

    Parameters
    ----------
    results
        The folder.
    pairs
        Of many, :data:`MOST_READ` from all over are read.
    """
    if len(pairs) > MOST_READ:
        pairs = [pairs[place * len(pairs) // MOST_READ] for place in range(MOST_READ)]
    found = Holders()
    for pair in pairs:
        try:
            plans = [results.plan(row) for row in (pair.left, pair.right)]
            instance = results.instance(pair.left) if None not in plans else None
            if instance is None:
                continue
            facts = InstanceFacts(instance)
            for row, plan in zip((pair.left, pair.right), plans, strict=True):
                if plan is not None:
                    _read(found, row, instance, plan, facts)
        except InputError as error:
            log.warning("%s: cannot be read again: %s", pair.key, error)
    return found


def _read(found: Holders, row: Row, instance: Instance, plan: Plan, facts: InstanceFacts) -> None:
    total = float(row["high_tier_gpus_total"] or 0)
    if not total:
        return
    held: Counter[str] = Counter()
    picture = Picture(instance, plan)
    for placed in picture.placements():
        if placed.mark in DELIVERS and not facts.needs_high[placed.service]:
            for node, gpus in placed.pods:
                held[placed.service] += gpus if picture.view.node_tier[node] == HIGH else 0
    priorities: Counter[str] = Counter()
    affinities: Counter[str] = Counter()
    for service in instance.services:
        priorities[str(service.priority)] += held[service.name]
        affinities[affinity_kind(service.affinity)] += held[service.name]
    key = str(row["key"])
    found.by_priority[key] = {name: (amount, total) for name, amount in priorities.items()}
    found.by_affinity[key] = {name: (amount, total) for name, amount in affinities.items()}
