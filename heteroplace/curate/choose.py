"""Simulate every candidate policy at the best ratio with the expected metrics, and choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from heteroplace.curate.pressure import Pressure, pressure_test
from heteroplace.errors import InputError
from heteroplace.instance import Node, Noun
from heteroplace.policy.cluster import Cluster
from heteroplace.policy.fleet import Fleet
from heteroplace.profile import Profile
from heteroplace.simulate.closed import simulate, tick_of
from heteroplace.simulate.demand import Demand, Load, Noise, load
from heteroplace.simulate.model import PoolModel, PoolModels
from heteroplace.simulate.outcome import Outcome, ServiceSummary
from heteroplace.simulate.policies import FROM_FLEET, POLICIES, single_signal, with_changes
from heteroplace.simulate.services import PooledService, pooled_services
from heteroplace.simulate.sizing import (
    HEADROOM,
    TEST_TOTAL,
    Expected,
    allowed_counts,
    mean_mix,
    required_for_peak,
)

Score = Literal["gpu-hours", "throughput"]
NODE_GPUS = 8
MOST_NODES = 2000
# A made-up cluster holds so many times what the peak needs: policies overshoot.
_ROOM = 3


class Candidate(Noun):
    """A policy and what came out of its simulation.

    Parameters
    ----------
    policy
        Its name.
    target
        Its target: per instance, a utilisation or seconds; null for the fleet's own policy.
    within
        Whether it kept both objectives.
    score
        GPU-hours (less is better) or tokens per second within the objectives (more is better).
    rank
        1 for the chosen one.
    summary
        The outcome in numbers.
    """

    policy: str
    target: float | None
    within: bool
    score: float
    rank: int
    summary: ServiceSummary


class Curation(Noun):
    """What Algorithm 1 returns, with everything it compared.

    Parameters
    ----------
    service
        By name.
    pressure
        The pressure test.
    score
        What the candidates were compared by, among those within the objectives.
    attain
        Least share of requests and of tokens within their objective.
    candidates
        Best first.
    chosen
        Name of the best one; null if none kept the objectives.
    reason
        Why, in one sentence.
    peak
        Requests per second at the peak of the workload.
    notes
        What a reader should know, one sentence each.
    """

    service: str
    pressure: Pressure
    score: Score
    attain: float
    candidates: tuple[Candidate, ...]
    chosen: str | None
    reason: str
    peak: float
    notes: tuple[str, ...] = ()


def curate(
    fleet: Fleet,
    service: str,
    demand: Demand,
    *,
    cluster: Cluster | None = None,
    pools: PoolModels | None = None,
    policies: Sequence[str] = POLICIES,
    total: int = TEST_TOTAL,
    headroom: float = HEADROOM,
    score: Score = "gpu-hours",
    attain: float | None = None,
    peak: float | None = None,
    hours: float | None = None,
    interval: float | None = None,
    tick: float | None = None,
    noise: Noise | None = None,
    seed: int = 0,
    profile: Profile | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Curation, Fleet]:
    """Curate the policy of one service on one workload.

    Parameters
    ----------
    fleet
        Where the service is; its other services are left out.
    service
        By name.
    demand
        The workload.
    cluster
        Its nodes; what runs there is left out. Default: one S1 with enough nodes of each type.
    pools
        The pool models.
    policies
        Candidates: names of signals, and ``fleet`` for the service's own policy.
    total, headroom
        Of the pressure test.
    score
        How to compare candidates that keep the objectives.
    attain
        Least share of requests and of tokens within their objective; default the fleet's
        ``latency_percentile``.
    peak
        Scale the workload to a peak of so many requests per second; default as it is. 0: to the
        operating point of the best split.
    hours, interval, tick, noise, seed, profile
        Of the simulations.
    progress
        Called with (ticks done, ticks in all) over all candidates.

    Returns
    -------
    Curation and Fleet
        What was found, and the fleet of this one service: with the best ratio and chosen policy,
        or as it was when no candidate kept the objectives.

    Raises
    ------
    InputError
        If the service or a policy is not known, or nothing keeps the objectives at any load.
    """
    names = list(dict.fromkeys(policies))
    for name in names:
        if name not in (FROM_FLEET, *POLICIES):
            known = ", ".join((FROM_FLEET, *POLICIES))
            raise InputError("--policies", f"{name!r} is no policy; known: {known}")
    if not names:
        raise InputError("--policies", "names no policy")
    if service not in fleet.service:
        raise InputError("service", f"{service!r} is no service of the fleet")
    attain = fleet.latency_percentile if attain is None else attain
    alone = _only(fleet, service)
    models = _pinned(alone, pools or PoolModels(), service)
    pooled = pooled_services(alone, models, {service})[0]
    seconds = demand.end if hours is None else hours * 3600
    interval = alone.interval if interval is None else interval
    step = tick_of(interval, tick)
    arriving = load({service: demand}, seconds, step)
    pressure = pressure_test(pooled, mean_mix(arriving, 0), total, headroom)
    if peak == 0:
        peak = headroom * pressure.best_split.sustained
    if peak is not None:
        demand = demand.scaled_to_peak(peak)
        arriving = load({service: demand}, seconds, step)
    changes = _best_ratio(alone, pooled, pressure)
    point = Expected({}, pressure.best_split.sustained, headroom, pressure.expected)
    fleets = {
        name: _own_policy(alone, service, changes)
        if name == FROM_FLEET
        else single_signal(alone, {service: pooled}, name, {service: point}, changes)
        for name in names
    }
    pooled = pooled_services(fleets[names[0]], models, {service})[0]
    place = _emptied(cluster, fleet) if cluster else _made_up(pooled, arriving, interval)
    outcomes: dict[str, Outcome] = {}
    for number, (name, candidate) in enumerate(fleets.items()):
        outcomes[name] = simulate(
            candidate,
            place,
            {service: demand},
            hours=seconds / 3600,
            pools=models,
            profile=profile,
            interval=interval,
            tick=tick,
            noise=noise,
            seed=seed,
            progress=_part(progress, number, len(fleets)),
        )
    candidates = _ranked(outcomes, fleets, service, score, attain)
    best = candidates[0]
    curation = Curation(
        service=service,
        pressure=pressure,
        score=score,
        attain=attain,
        candidates=tuple(candidates),
        chosen=best.policy if best.within else None,
        reason=_reason(candidates, score, attain),
        peak=demand.peak,
        notes=tuple(_notes(pooled)),
    )
    return curation, fleets[best.policy] if best.within else alone


def _notes(service: PooledService) -> list[str]:
    """Whether the limits leave room at the best ratio."""
    cases = allowed_counts(service)
    if not cases or service.aggregated:
        return []
    least, most = (
        " and ".join(f"{count} {role}" for role, count in case.items())
        for case in (cases[0], cases[-1])
    )
    return [f"At this ratio the limits allow from {least} to {most}."]


def _only(fleet: Fleet, service: str) -> Fleet:
    data = fleet.model_dump(by_alias=True)
    data["services"] = [each for each in data["services"] if each["name"] == service]
    return Fleet.model_validate(data)


def _pinned(fleet: Fleet, pools: PoolModels, service: str) -> PoolModels:
    """Fix the objectives of the service: candidates change the policies they come from."""
    others = {name: each for name, each in pools.services.items() if name == service}
    alone = pools.model_copy(update={"services": others})
    found = pooled_services(fleet, alone, {service})[0]
    model: PoolModel = found.model.model_copy(update={"ttft_slo": found.ttft, "tbt_slo": found.tbt})
    return PoolModels(schema_=1, services={service: model})


def _best_ratio(fleet: Fleet, pooled: PooledService, pressure: Pressure) -> dict[str, Any]:
    """The best ratio as a change to the service; its band stays where it holds that ratio."""
    if pressure.ratio is None:
        return {}
    upper, lower = pooled.prefill[0], pooled.decode[0]
    best = Fraction(pressure.ratio)
    ratio: dict[str, Any] = {"numerator": upper, "denominator": lower, "target": best}
    for each in fleet.services[0].ratios:
        low, high = each.band
        same = (each.numerator, each.denominator) == (upper, lower)
        if same and low <= best <= high:
            ratio |= {"min": each.min, "max": each.max}
    return {"ratios": [ratio]}


def _own_policy(fleet: Fleet, service: str, changes: dict[str, Any]) -> Fleet:
    try:
        return with_changes(fleet, {service: changes})
    except InputError as error:
        raise InputError(
            "--policies",
            f"the service's own policy does not go with the best ratio ({error}); change it or "
            "leave fleet out",
        ) from None


def _emptied(cluster: Cluster, fleet: Fleet) -> Cluster:
    """The cluster without what the fleet runs there."""
    running = tuple(each for each in cluster.running if each.service not in fleet.service)
    return cluster.model_copy(update={"running": running})


def _made_up(service: PooledService, arriving: Load, interval: float) -> Cluster:
    """One S1 with room for several times what the peak needs."""
    counts = required_for_peak(service, arriving, interval)
    if counts is None:
        limits = ", ".join(f"{role} {high}" for role, (_, high) in service.ratios.limits.items())
        raise InputError(
            f"services.{service.name}",
            f"cannot carry the peak of the workload within its limits (max {limits}); raise them "
            "or give a lower --peak",
        )
    needed: dict[str, int] = {}
    largest: dict[str, int] = {}
    for role, count in counts.items():
        # A few instances more, so that a small service has room to overshoot too.
        most = min(_ROOM * count + 4, service.ratios.limits[role][1])
        for gpu_type, gpus in service.shapes[role][0].pod_list:
            needed[gpu_type] = needed.get(gpu_type, 0) + most * gpus
            largest[gpu_type] = max(largest.get(gpu_type, NODE_GPUS), gpus)
    nodes = []
    for gpu_type, gpus in needed.items():
        size = largest[gpu_type]
        for number in range(math.ceil(gpus / size) + 1):
            nodes.append(
                Node(
                    name=f"{gpu_type}-{number}",
                    gpu_type=gpu_type,
                    gpus=size,
                    domains={"cluster": "made-up", "s2": "s2", "s1": "s1"},
                )
            )
    if len(nodes) > MOST_NODES:
        raise InputError("--cluster", f"would be made up with {len(nodes)} nodes; give one")
    return Cluster(schema_=1, nodes=tuple(nodes))


def _part(
    progress: Callable[[int, int], None] | None, number: int, count: int
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)


def _ranked(
    outcomes: Mapping[str, Outcome],
    fleets: Mapping[str, Fleet],
    service: str,
    score: Score,
    attain: float,
) -> list[Candidate]:
    found = []
    for name, outcome in outcomes.items():
        summary = outcome.summary(service)
        within = min(_attained(summary)) >= attain
        primary = fleets[name].service[service].policy.primary
        target = getattr(primary, "target", None) or getattr(primary, "slo", None)
        seconds = outcome.ticks * outcome.tick
        found.append(
            Candidate(
                policy=name,
                target=None if name == FROM_FLEET else target,
                within=within,
                score=_score(summary, outcome, service, score, seconds),
                rank=1,
                summary=summary,
            )
        )
    sign = 1 if score == "gpu-hours" else -1
    found.sort(
        key=lambda each: (
            not each.within,
            0.0 if each.within else -min(_attained(each.summary)),
            sign * each.score,
            each.summary.gpu_hours,
        )
    )
    return [each.model_copy(update={"rank": rank}) for rank, each in enumerate(found, 1)]


def _attained(summary: ServiceSummary) -> tuple[float, float]:
    """Shares within the objectives; where there was nothing to judge, all of it."""
    ttft, tbt = summary.ttft_attained, summary.tbt_attained
    return (1.0 if ttft is None else ttft, 1.0 if tbt is None else tbt)


def _score(
    summary: ServiceSummary, outcome: Outcome, service: str, score: Score, seconds: float
) -> float:
    if score == "gpu-hours":
        return summary.gpu_hours
    tokens = float(outcome.of(service)["tbt_within"].sum())
    return tokens * _attained(summary)[0] / seconds


def _reason(candidates: Sequence[Candidate], score: Score, attain: float) -> str:
    best = candidates[0]
    ttft, tbt = _attained(best.summary)
    kept = sum(each.within for each in candidates)
    if not best.within:
        return (
            f"No candidate keeps {attain:.4g} of the requests and of the tokens within their "
            f"objectives; the nearest is {best.policy} with {ttft:.4f} and {tbt:.4f}."
        )
    what = (
        f"the fewest GPU-hours, {best.score:,.1f},"
        if score == "gpu-hours"
        else f"the most tokens/s within the objectives, {best.score:,.0f},"
    )
    return (
        f"{best.policy} has {what} of the {kept} of {len(candidates)} candidates that keep "
        f"{attain:.4g} of the requests and of the tokens within their objectives."
    )
