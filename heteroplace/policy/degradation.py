"""Degradation: when GPUs are short, services of low priority shrink for the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from heteroplace.policy.need import SLACK
from heteroplace.policy.observed import RoleObserved
from heteroplace.policy.words import counts as counted
from heteroplace.policy.words import joined
from heteroplace.policy.work import Work

Gpus = dict[str, int]
Donors = dict[str, list[Work]]
"""GPU type -> services that may give some up, the lowest priority last."""


def degrade(
    works: Sequence[Work],
    observed: Mapping[str, Mapping[str, RoleObserved]],
    free_gpus: Mapping[str, int],
) -> None:
    """Let services shrink, and hold back those that would take what is meant for others.

    GPUs are counted by type, in the preferred shapes; whether they lie on the right nodes is for
    the placement to see. What is being freed already counts as free, or a shortage would be
    answered again in every step until it is over.

    Parameters
    ----------
    works
        All services of the step; changed in place.
    observed
        What runs of them.
    free_gpus
        GPU type -> GPUs that nothing occupies.
    """
    wanted: Gpus = {}
    for work in works:
        if _asks(work):
            for gpu_type, gpus in _need(work).items():
                wanted[gpu_type] = wanted.get(gpu_type, 0) + gpus
    if not _short(wanted, free_gpus):
        return
    pool: Gpus = dict(free_gpus)
    for work in works:
        running = observed.get(work.service.name, {})
        for role, count in work.counts.items():
            leaving = work.running[role] - count
            freed = math.floor(leaving + SLACK) if leaving > 0 else 0
            if role in running and running[role].draining:
                freed += math.floor(running[role].draining)
            if freed:
                _add(pool, work.service.gpus[role], freed)
    order = sorted(works, key=lambda work: -work.service.config.priority)
    donors: Donors = {}
    for work in order:
        for gpu_type in {each for gpus in work.service.gpus.values() for each in gpus}:
            donors.setdefault(gpu_type, []).append(work)
    claimed: dict[str, int] = {}
    for work in order:
        if not _asks(work):
            continue
        need = _need(work)
        priority = work.service.config.priority
        short = _short(need, pool)
        for gpu_type in short:
            missing = _short(need, pool).get(gpu_type, 0)
            _shrink_others(work, gpu_type, missing, donors, pool)
        short = _short(need, pool)
        if short and any(claimed.get(gpu_type, priority) > priority for gpu_type in short):
            _hold_back(work, short)
            need = _need(work)
        for gpu_type, gpus in need.items():
            pool[gpu_type] = pool.get(gpu_type, 0) - gpus
            claimed.setdefault(gpu_type, priority)


def _asks(work: Work) -> bool:
    running = work.running
    for role, count in work.counts.items():  # noqa: SIM110
        if count > running[role] + SLACK:
            return True
    return False


def _need(work: Work) -> Gpus:
    """GPUs by type that a service still has to get."""
    need: Gpus = {}
    for role, count in work.counts.items():
        missing = math.ceil(count - work.running[role] - SLACK)
        if missing > 0:
            _add(need, work.service.gpus[role], missing)
    return need


def _short(need: Gpus, pool: Mapping[str, int]) -> Gpus:
    return {
        gpu_type: gpus - max(0, pool.get(gpu_type, 0))
        for gpu_type, gpus in need.items()
        if gpus > max(0, pool.get(gpu_type, 0))
    }


def _add(total: Gpus, gpus: Mapping[str, int], times: int) -> None:
    for gpu_type, each in gpus.items():
        total[gpu_type] = total.get(gpu_type, 0) + each * times


def _shrink_others(work: Work, gpu_type: str, missing: int, donors: Donors, pool: Gpus) -> None:
    """Shrink services of lower priority, the lowest first, until enough GPUs of a type are free.

    A service that cannot give enough has nothing of the type left, so it is asked no more in this
    step.
    """
    others, priority = donors.get(gpu_type, []), work.service.config.priority
    while missing > 0 and others and others[-1].service.config.priority < priority:
        other = others[-1]
        counts, freed = _shrunk(other, gpu_type, missing)
        if freed:
            other.words.append(
                f"{work.service.name} has priority {priority} over "
                f"{other.service.config.priority} and lacks {missing} {gpu_type} GPUs, so "
                f"{counted(counts)} stay"
            )
            _take(other, counts)
            for each, gpus in freed.items():
                pool[each] = pool.get(each, 0) + gpus
            missing -= freed.get(gpu_type, 0)
        if missing > 0:
            others.pop()


def _take(work: Work, counts: dict[str, int]) -> None:
    """Set the counts that a degradation leaves."""
    work.counts, work.driver = counts, "degradation"
    if counts == work.before:
        work.action = "hold"
    elif any(each < work.before[role] for role, each in counts.items()):
        work.action, work.degraded = "in", True
    work.withdrawn, work.restore = (*work.withdrawn, *work.restore), ()


def _shrunk(work: Work, gpu_type: str, missing: int) -> tuple[dict[str, int], Gpus]:
    """The largest counts that free enough, or as much as the minimum lets; and what that frees."""
    driver, ratios = work.service.driver, work.ratios
    best: tuple[dict[str, int], Gpus] = (work.counts, {})
    start = {
        role: min(count, math.ceil(work.running[role] - SLACK))
        for role, count in work.counts.items()
    }
    for count in range(start[driver], work.service.config.roles[driver].min - 1, -1):
        counts = ratios.counts(driver, count, at_most=start)
        if counts is None or any(each > work.counts[role] for role, each in counts.items()):
            continue
        freed: Gpus = {}
        for role, each in counts.items():
            gone = start[role] - each
            if gone > 0:
                _add(freed, work.service.gpus[role], gone)
        if freed.get(gpu_type, 0) > best[1].get(gpu_type, 0):
            best = counts, freed
        if freed.get(gpu_type, 0) >= missing:
            break
    return best


def _hold_back(work: Work, short: Gpus) -> None:
    """Take back a scale-out whose GPUs are meant for services of higher priority."""
    if work.action not in ("out", "rebalance") or work.restore:
        return
    missing = joined(f"{gpus} {gpu_type}" for gpu_type, gpus in short.items())
    work.counts, work.action, work.driver = work.before, "hold", "degradation"
    work.words.append(
        f"services of higher priority need the free GPUs and {missing} are missing, so "
        f"{counted(work.before)} stay"
    )
