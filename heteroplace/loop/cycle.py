"""One cycle up to its action: cluster → metrics → decide → assemble → solve → check.

Nothing here is written or handed over, so a cycle can be given up at any moment.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from heteroplace.check import check
from heteroplace.errors import InputError
from heteroplace.instance import Instance
from heteroplace.loop.action import Action, iso, named, outlook, removals
from heteroplace.loop.cluster import ClusterReader
from heteroplace.loop.exporter import Observation
from heteroplace.loop.pending import Overlaid, overlay
from heteroplace.plan import Result
from heteroplace.policy.assemble import assemble, free_gpus, observe
from heteroplace.policy.cluster import Cluster
from heteroplace.policy.decide import decide
from heteroplace.policy.decision import Decision
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.readings import Problem, Source
from heteroplace.policy.state import FleetState
from heteroplace.profile import Profile
from heteroplace.solve import solve

log = logging.getLogger("heteroplace.loop")


class CycleError(RuntimeError):
    """A cycle that came to nothing.

    Parameters
    ----------
    phase
        Where it failed.
    message
        Why.
    """

    def __init__(self, phase: str, message: str) -> None:
        self.phase = phase
        super().__init__(message)


class Phases:
    """Seconds by phase; what fails in a phase carries its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Measure a phase."""
        began = time.monotonic()
        try:
            yield
        except CycleError:
            raise
        except InputError as error:
            raise CycleError(phase, str(error)) from error
        except Exception as error:
            log.exception("phase %s failed", phase)
            raise CycleError(phase, f"{type(error).__name__}: {error}") from error
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class Inputs:
    """What a cycle begins with.

    Parameters
    ----------
    state
        Of the policies.
    now
        Wall time in unix seconds.
    sequence, action
        Number and id for the action, if there is one.
    pending
        Actions that the cluster may not show yet, and the seconds each has waited.
    """

    state: FleetState
    now: float
    sequence: int
    action: str
    pending: Sequence[tuple[Action, float]] = ()


@dataclass(frozen=True)
class Cycle:
    """What a cycle came to.

    Parameters
    ----------
    now
        Wall time in unix seconds.
    decisions
        One for each service.
    state
        Of the policies, to be kept together with the action.
    action
        What to hand over; null if nothing changes.
    instance
        The placement instance that was solved.
    result
        What the solver said.
    overlaid
        The snapshot that was used.
    problems
        What the metrics source could not read.
    seconds
        By phase.
    """

    now: float
    decisions: tuple[Decision, ...]
    state: FleetState
    action: Action | None
    instance: Instance
    result: Result
    overlaid: Overlaid
    problems: tuple[Problem, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Decided:
    """Targets, and the placement instance made of them.

    Parameters
    ----------
    decisions
        One for each service.
    state
        Of the policies, after them.
    instance
        For ``heteroplace solve``.
    problems
        What the metrics source could not read.
    """

    decisions: tuple[Decision, ...]
    state: FleetState
    instance: Instance
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Thinker:
    """Computes cycles; changes nothing.

    Parameters
    ----------
    fleet
        The services and their policies.
    cluster, metrics
        Where the two are read from.
    profile
        How to solve.
    patience
        Seconds an action may take to show before the cluster is believed against it.
    max_age
        Oldest snapshot of a cluster, in seconds, that is used where it says when it was taken.
    """

    fleet: Fleet
    cluster: ClusterReader
    metrics: Source
    profile: Profile = field(default_factory=Profile)
    patience: float = 900.0
    max_age: float = math.inf

    def snapshot(self, inputs: Inputs) -> Overlaid:
        """Read the cluster and complete it with what it does not show yet.

        Parameters
        ----------
        inputs
            What the cycle begins with.

        Raises
        ------
        InputError
            If the cluster cannot be read, or is too old.
        """
        snapshot = self.cluster.read()
        self._refuse_old(snapshot, inputs.now)
        return overlay(snapshot, inputs.pending, self.patience)

    def decide(self, inputs: Inputs, cluster: Cluster, phases: Phases) -> Decided:
        """Metrics → targets → placement instance.

        Parameters
        ----------
        inputs
            What the cycle begins with.
        cluster
            The snapshot, completed.
        phases
            Measures.

        Raises
        ------
        CycleError
            If the targets cannot be decided on.
        """
        with phases("metrics"):
            snapshot = self.metrics.read(self.fleet, inputs.now)
        with phases("decide"):
            observed = observe(self.fleet, cluster, inputs.state)
            free = free_gpus(self.fleet, cluster)
            step = decide(self.fleet, inputs.state, snapshot, observed, free)
        with phases("assemble"):
            instance = assemble(self.fleet, cluster, step.decisions, step.state)
        return Decided(step.decisions, step.state, instance, snapshot.problems)

    def run(self, inputs: Inputs) -> Cycle:
        """Compute a cycle.

        Parameters
        ----------
        inputs
            What it begins with.

        Raises
        ------
        CycleError
            If it comes to nothing; there is then nothing to undo.
        """
        phases = Phases()
        with phases("cluster"):
            overlaid = self.snapshot(inputs)
        decided = self.decide(inputs, overlaid.cluster, phases)
        with phases("solve"):
            result = solve(decided.instance, self.profile)
        with phases("check"):
            self._check(decided.instance, result)
            state, action = self._action(inputs, decided, result)
        return Cycle(
            now=inputs.now,
            decisions=decided.decisions,
            state=state,
            action=action,
            instance=decided.instance,
            result=result,
            overlaid=overlaid,
            problems=decided.problems,
            seconds=phases.seconds,
        )

    def _refuse_old(self, cluster: Cluster, now: float) -> None:
        if cluster.at is not None and now - cluster.at > self.max_age:
            raise InputError(
                "cluster",
                f"was read {now - cluster.at:.0f} s ago, more than {self.max_age:g} s; "
                "find out why nobody writes it, or raise --max-cluster-age",
            )

    def _check(self, instance: Instance, result: Result) -> None:
        """Refuse a plan that breaks a constraint."""
        violations = check(instance, result.plan)
        if violations:
            first = violations[0]
            raise CycleError(
                "check",
                f"the plan of {result.solver} breaks {len(violations)} constraints and is not "
                f"handed over ({first.constraint}: {first.message})",
            )

    def _action(
        self, inputs: Inputs, decided: Decided, result: Result
    ) -> tuple[FleetState, Action | None]:
        """The action, if anything changes, and the state that goes with it."""
        plan = named(result.plan, decided.instance, inputs.sequence)
        windows = {each.service: each.window for each in decided.decisions}
        state, withdrawn, ended = removals(plan, decided.state, windows, inputs.now)
        held = _some({each.service: each.held for each in decided.decisions})
        terminate = tuple(gone for each in decided.decisions for gone in each.terminate) + ended
        restore = tuple(back for each in decided.decisions for back in each.restore)
        if not (plan.groups or terminate or restore or held != _held(inputs.state)):
            return state, None
        concerned = {group.service for group in plan.groups}
        concerned |= {each.service for each in (*terminate, *restore)}
        concerned |= {*held, *_held(inputs.state)}
        decisions = tuple(
            each for each in decided.decisions if each.action != "hold" or each.service in concerned
        )
        return state, Action(
            id=inputs.action,
            sequence=inputs.sequence,
            at=inputs.now,
            time=iso(inputs.now),
            decisions=decisions,
            plan=plan,
            withdraw=withdrawn,
            terminate=terminate,
            restore=restore,
            held=held,
            outlook=outlook(result),
        )


def _held(state: FleetState) -> dict[str, dict[str, int]]:
    """What the last step held back, by service and role."""
    return _some({name: each.held for name, each in state.services.items()})


def _some(held: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Only what is held back, without zeros."""
    roles = {
        name: {role: count for role, count in each.items() if count} for name, each in held.items()
    }
    return {name: each for name, each in roles.items() if each}


def observation(cycle: Cycle) -> Observation:
    """What a cycle has to tell to those who watch it.

    Parameters
    ----------
    cycle
        What it came to.
    """
    return Observation(
        decisions=Counter(each.action for each in cycle.decisions),
        targets={
            (each.service, role): float(target)
            for each in cycle.decisions
            for role, target in each.targets.items()
        },
        unmet={(each.service, each.role): each.unmet for each in cycle.result.unmet},
        gaps={step.name: step.gap for step in cycle.result.steps if step.gap is not None},
        ages={each.service: each.age for each in cycle.decisions if each.age is not None},
        seconds=cycle.seconds,
    )
