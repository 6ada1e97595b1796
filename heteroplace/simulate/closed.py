"""The closed loop: pools -> signals -> decisions -> placement -> instances -> pools."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from heteroplace.errors import InputError
from heteroplace.plan import Result
from heteroplace.policy.assemble import assemble, free_gpus, observe
from heteroplace.policy.cluster import Cluster
from heteroplace.policy.decide import decide
from heteroplace.policy.decision import Decision
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.observed import Observed
from heteroplace.policy.readings import Reading, Snapshot
from heteroplace.policy.signals import STANDARD
from heteroplace.policy.state import FleetState, ServiceState, withdraw
from heteroplace.profile import Profile
from heteroplace.simulate.demand import Demand, Gaps, Load, Noise, imputed, load
from heteroplace.simulate.live import Live
from heteroplace.simulate.measure import Objectives, Supply
from heteroplace.simulate.model import PoolModels
from heteroplace.simulate.outcome import UNITS, Event, Outcome, summarise
from heteroplace.simulate.policies import FROM_FLEET, single_signal
from heteroplace.simulate.pools import TICK_FIELDS, Pools, Tick
from heteroplace.simulate.queueing import Floats
from heteroplace.simulate.services import PooledService, pooled_services
from heteroplace.simulate.sizing import (
    Expected,
    expected,
    mean_mix,
    required,
    trial_counts,
)
from heteroplace.solve import solve

# A Monday, midnight UTC: schedules by the clock start with a week.
MONDAY = 1_767_571_200.0
YEAR_3000 = 32_503_680_000.0
LONGEST_TICK = 15.0

# A latency over several ticks is a mean by what it is of.
_WEIGHTS = {"ttft": "started", "tbt": "tokens"}

# By (kind, belongs to prefill) for signals that a fleet declares itself.
_LIKE = {
    ("throughput", True): "prefill_tps",
    ("throughput", False): "decode_tps",
    ("utilization", True): "prefill_gpu_util",
    ("utilization", False): "decode_gpu_util",
    ("latency", True): "ttft",
    ("latency", False): "tbt",
}


def simulate(
    fleet: Fleet,
    cluster: Cluster,
    demand: Mapping[str, Demand],
    *,
    hours: float | None = None,
    policy: str = FROM_FLEET,
    pools: PoolModels | None = None,
    profile: Profile | None = None,
    interval: float | None = None,
    tick: float | None = None,
    noise: Noise | None = None,
    gaps: Gaps = "daily",
    seed: int = 0,
    start: float = MONDAY,
    warm: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Simulate a fleet on a cluster under a demand.

    Parameters
    ----------
    fleet
        The services and their policies.
    cluster
        Nodes and what runs at the start.
    demand
        By service; the others are asked for nothing.
    hours
        How long; default as long as the shortest demand.
    policy
        ``fleet`` for the fleet's own policies, or the name of a signal that alone drives every
        service with a demand, see :func:`single_signal`.
    pools
        The pool models; default :class:`PoolModels`.
    profile
        How to place; default the greedy solver.
    interval
        Seconds from one step of the policies to the next; default the fleet's.
    tick
        Seconds of a step of the pools, a whole part of the interval; default the largest such of
        at most 15 s.
    noise
        Randomness on top of the demand.
    gaps
        How gaps of a demand are filled.
    seed
        Of the randomness.
    start
        Unix seconds of the first tick, in the years 1970 to 2999.
    warm
        Whether a service with a demand of which nothing runs starts with what its first demand
        needs, ready at once.
    progress
        Called with (ticks done, ticks in all) once per control interval.

    Raises
    ------
    InputError
        If fleet, cluster, demand and options do not fit together.
    """
    pools = pools or PoolModels()
    if not 0 <= start < YEAR_3000:
        raise InputError("start", "must be in the years 1970 to 2999")
    interval = fleet.interval if interval is None else interval
    tick = tick_of(interval, tick)
    services = pooled_services(fleet, pools, set(demand))
    if hours is None:
        if not demand:
            raise InputError("demand", "name at least one service with its demand")
        hours = min(each.end for each in demand.values()) / 3600
    if not (math.isfinite(hours) and hours > 0):
        raise InputError("hours", f"must be greater than 0, got {hours:g}")
    seconds = hours * 3600
    whole = {
        service.name: demand.get(service.name) or _nothing(service.name, seconds)
        for service in services
    }
    arriving = load(whole, seconds, tick, noise=noise, seed=seed, gaps=gaps)
    notes = list(_notes(arriving, services, demand))
    if policy != FROM_FLEET:
        points = _operating(services, arriving, set(demand))
        fleet = single_signal(fleet, {each.name: each for each in services}, policy, points)
    run = _Run(
        fleet, cluster, services, arriving, profile or Profile(solver="greedy"), interval, start
    )
    if warm:
        run.warm_up(set(demand))
    return run.to_the_end(policy, seed, notes, progress)


def tick_of(interval: float, tick: float | None) -> float:
    """Seconds of a step of the pools: as given if it divides the interval, else the default."""
    if not (math.isfinite(interval) and interval > 0):
        raise InputError("interval", f"must be greater than 0 s, got {interval:g}")
    if tick is None:
        return interval / math.ceil(interval / LONGEST_TICK)
    if not (math.isfinite(tick) and 0 < tick <= interval):
        raise InputError("tick", f"must be above 0 and at most the interval, got {tick:g} s")
    if abs(interval / tick - round(interval / tick)) > 1e-9:
        raise InputError("tick", f"{tick:g} s must divide the interval of {interval:g} s")
    return tick


def _nothing(name: str, seconds: float) -> Demand:
    zero = np.zeros(1)
    return Demand(name, zero, zero, zero, zero, zero, end=seconds)


def _notes(
    arriving: Load, services: tuple[PooledService, ...], demand: Mapping[str, Demand]
) -> list[str]:
    notes = []
    for column, service in enumerate(services):
        if service.name not in demand:
            notes.append(f"{service.name} has no trace: it is asked for nothing.")
            continue
        filled = float(arriving.filled[:, column].mean())
        if filled > 0:
            notes.append(f"{service.name}: {filled:.1%} of the time lies in gaps of the trace.")
        unknown = imputed(arriving, column)
        if unknown > 0.001:
            notes.append(
                f"{service.name}: token lengths of {unknown:.1%} of the requests are imputed."
            )
    return notes


def _operating(
    services: tuple[PooledService, ...], arriving: Load, asked: set[str]
) -> dict[str, Expected]:
    """Operating point of every service with a demand."""
    points = {}
    for column, service in enumerate(services):
        if service.name not in asked:
            continue
        counts = trial_counts(service)
        there = counts and expected(service, mean_mix(arriving, column), counts)
        if not there:
            raise InputError(
                f"services.{service.name}",
                f"keeps its objectives (TTFT {service.ttft:g} s, TBT {service.tbt:g} s) at no "
                "load, so there are no default targets; relax them in the pools file or change "
                "the shapes",
            )
        points[service.name] = there
    return points


class _Run:
    """One simulation under way."""

    def __init__(
        self,
        fleet: Fleet,
        cluster: Cluster,
        services: tuple[PooledService, ...],
        arriving: Load,
        profile: Profile,
        interval: float,
        start: float,
    ) -> None:
        self._fleet, self._services, self._load = fleet, services, arriving
        self._profile, self._interval, self._start = profile, interval, start
        gated = {each.name for each in fleet.services if each.registration.gate}
        self._live = Live(cluster, services, gated)
        self._state = FleetState()
        self._pools = Pools(
            arriving,
            [each.model for each in services],
            Objectives(
                np.array([each.ttft for each in services]),
                np.array([each.tbt for each in services]),
                np.array([each.percentile for each in services]),
            ),
            np.array([each.aggregated for each in services]),
        )
        self._series = {name: np.zeros((arriving.ticks, len(services))) for name in UNITS}
        self._events: list[Event] = []
        self._seen: tuple[Cluster | None, Observed, dict[str, int]] = (None, {}, {})
        self._solved: tuple[object, ...] | None = None
        self._unmet: dict[str, float] = {}
        self._targets: dict[str, dict[str, int]] = {}

    def warm_up(self, asked: set[str]) -> None:
        """Start services of which nothing runs with what their first demand needs."""
        decisions = []
        ticks = max(1, round(self._interval / self._load.tick))
        counts: dict[str, dict[str, int]] = {}
        for column, service in enumerate(self._services):
            running = bool(self._live.instances(service.name))
            if running or service.name not in asked:
                continue
            requests = float(self._load.requests[:ticks, column].mean())
            mix = mean_mix(self._load, column, slice(0, ticks))
            limits = service.ratios.limits
            needed = required(service, mix, requests) if requests > 0 else None
            if needed is None:
                driver = service.decode[0]
                least, most = limits[driver]
                nearest = service.ratios.nearest(driver, most if requests > 0 else max(least, 1))
                needed = None if nearest is None else service.ratios.counts(driver, nearest)
            if needed is not None:
                counts[service.name] = needed
        if not counts:
            return
        observed = observe(self._fleet, self._live.cluster())
        for each in self._fleet.services:
            capacity = {
                role: self._fleet.shapes[each.name][role][0].capacity for role in each.roles
            }
            now = {
                role: (seen.ready + seen.starting)
                for role, seen in observed.get(each.name, {}).items()
            }
            mine = counts.get(each.name)
            decisions.append(
                Decision(
                    service=each.name,
                    action="hold" if mine is None else "out",
                    before={},
                    counts=mine or {role: int(now.get(role, 0)) for role in each.roles},
                    targets={
                        role: (mine[role] if mine else now.get(role, 0)) * capacity[role]
                        for role in each.roles
                    },
                    driver="start",
                    reason="What the first demand needs.",
                )
            )
        result = self._solve(decisions)
        self._live.carry_out(result.plan, 0.0, {}, at_once=True)
        self._state = FleetState(
            services={name: ServiceState(counts=mine) for name, mine in counts.items()}
        )

    def to_the_end(
        self,
        policy: str,
        seed: int,
        notes: list[str],
        progress: Callable[[int, int], None] | None,
    ) -> Outcome:
        """Run all ticks."""
        arriving, series = self._load, self._series
        for name in ("requests", "prompt", "missed", "output", "filled"):
            series[name][:] = getattr(arriving, name)
        ticks = max(1, round(self._interval / arriving.tick))
        serving = self._live.supply()
        for index in range(arriving.ticks):
            now = index * arriving.tick
            self._live.advance(now)
            if index % ticks == 0:
                self._control(now, slice(max(0, index - ticks), index))
                if progress is not None:
                    progress(index, arriving.ticks)
            supply = self._live.supply()
            self._pools.leave(self._leaving(serving, supply))
            seen = self._pools.tick(supply)
            serving = supply
            self._record(index, supply, seen)
        if progress is not None:
            progress(arriving.ticks, arriving.ticks)
        return Outcome(
            services=arriving.services,
            tick=arriving.tick,
            interval=self._interval,
            start=self._start,
            policy=policy,
            seed=seed,
            series=series,
            events=tuple(self._events),
            summaries=summarise(self._services, arriving, series, self._events, self._interval),
            notes=tuple(notes),
        )

    # -- one step of the policies ------------------------------------------------------------------

    def _control(self, now: float, rows: slice) -> None:
        """Read, decide, place and act."""
        clock = self._start + now
        cluster = self._live.cluster()
        if cluster is not self._seen[0]:
            self._seen = cluster, observe(self._fleet, cluster), free_gpus(self._fleet, cluster)
        _, observed, free = self._seen
        snapshot = Snapshot(now=clock, readings=self._readings(clock, rows))
        step = decide(self._fleet, self._state, snapshot, observed, free)
        self._state = step.state
        for decision in step.decisions:
            for each in decision.terminate:
                self._live.terminate(each)
            for each in decision.restore:
                self._live.restore(each, now)
            self._live.register(decision.service, decision.held)
            self._targets[decision.service] = dict(decision.counts)
        added, removed = self._place(now, step.decisions)
        for decision in step.decisions:
            name = decision.service
            counts = (added[name], removed[name], len(decision.restore), len(decision.terminate))
            if decision.action != "hold" or any(counts):
                self._events.append(
                    Event(
                        at=now,
                        service=name,
                        action=decision.action,
                        driver=decision.driver,
                        reason=decision.reason,
                        before=dict(decision.before),
                        counts=dict(decision.counts),
                        added=counts[0],
                        removed=counts[1],
                        restored=counts[2],
                        terminated=counts[3],
                        unmet_gpus=self._unmet.get(name, 0.0),
                    )
                )

    def _readings(self, clock: float, rows: slice) -> dict[str, dict[str, Reading]]:
        """Signals over the last interval; a signal that was not seen has no reading."""
        if rows.start == rows.stop:
            return {}
        values = {name: self._over(name, rows) for name in STANDARD}
        found: dict[str, dict[str, Reading]] = {}
        for column, service in enumerate(self._services):
            seen = {name: float(each[column]) for name, each in values.items()}
            for signal in self._fleet.signals:
                role = signal.role if signal.role is not None else service.decode[0]
                seen[signal.name] = seen[_LIKE[signal.kind, role in service.prefill]]
            found[service.name] = {
                name: Reading(value, clock) for name, value in seen.items() if value == value
            }
        return found

    def _over(self, name: str, rows: slice) -> Floats:
        """Mean over ticks; latencies count by the requests and tokens that they are of."""
        values = self._series[name][rows]
        known = values == values
        weights = known if name not in _WEIGHTS else self._series[_WEIGHTS[name]][rows] * known
        total = weights.sum(axis=0)
        safe = np.where(total > 0, total, 1)
        mean = (np.where(known, values, 0.0) * weights).sum(axis=0) / safe
        return np.where(total > 0, mean, np.nan)

    def _place(
        self, now: float, decisions: Sequence[Decision]
    ) -> tuple[Counter[str], Counter[str]]:
        """Solve and carry out; nothing is solved twice when nothing has changed."""
        added: Counter[str] = Counter()
        removed: Counter[str] = Counter()
        targets = [sorted(each.targets.items()) for each in decisions]
        question = (self._live.version, targets)
        if question == self._solved:
            return added, removed
        result = self._solve(decisions)
        windows = {each.service: each.window for each in decisions}
        for group in result.plan.groups:
            added[group.service] += len(group.added)
            removed[group.service] += len(group.removed)
        clock = self._start + now
        for name, instances in self._live.carry_out(result.plan, now, windows).items():
            self._state = withdraw(self._state, name, instances, clock, windows[name])
        changed = any(each.added or each.removed or each.moved for each in result.plan.groups)
        self._solved = None if changed else question
        return added, removed

    def _solve(self, decisions: Sequence[Decision]) -> Result:
        instance = assemble(self._fleet, self._live.cluster(), decisions)
        result = solve(instance, self._profile)
        if result.violations:
            first = result.violations[0]
            raise InputError(
                "solver",
                f"{result.solver} gave a plan that breaks {first.constraint} ({first.message}); "
                "use another",
            )
        self._unmet = {}
        for each in result.unmet:
            self._unmet[each.service] = self._unmet.get(each.service, 0.0) + each.unmet_gpus
        return result

    # -- the series --------------------------------------------------------------------------------

    def _leaving(self, before: Supply, after: Supply) -> Floats:
        """Share of the decode capacity that left since the last tick, instances that came aside."""
        gone = self._live.left_decode()
        return np.where(before.decode > 0, np.minimum(gone / np.maximum(before.decode, 1e-9), 1), 0)

    def _record(self, index: int, supply: Supply, seen: Tick) -> None:
        series = self._series
        for name in TICK_FIELDS:
            series[name][index] = getattr(seen, name)
        series["prefill_capacity"][index] = supply.prefill
        series["decode_capacity"][index] = supply.decode
        series["prefill_instances"][index] = supply.prefill_instances
        series["decode_instances"][index] = supply.decode_instances
        series["crossing"][index] = supply.crossing
        for name, values in self._live.occupied().items():
            series[name][index] = values
        series["unmet_gpus"][index] = [self._unmet.get(each.name, 0.0) for each in self._services]
        for name, side in (("prefill_target", "prefill"), ("decode_target", "decode")):
            series[name][index] = [
                min(self._targets.get(each.name, {}).get(role, 0) for role in getattr(each, side))
                for each in self._services
            ]
