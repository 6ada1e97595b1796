"""Solve an instance: the greedy first, then an exact engine that can only improve on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np

from heteroplace.check import Checker
from heteroplace.decision import Decision, Naming
from heteroplace.formulation import Model, build, extract, hint
from heteroplace.formulation.program import Floats, Ints, LateError
from heteroplace.garbage import uncollected
from heteroplace.instance import Instance
from heteroplace.plan import (
    Evaluation,
    Plan,
    ProvenStep,
    Result,
    Seconds,
    Size,
    StopReason,
    Unmet,
    Violation,
)
from heteroplace.profile import Profile
from heteroplace.solve.cpsat import CpSatEngine
from heteroplace.solve.engine import (
    PROVEN_GAP,
    Engine,
    EngineMissingError,
    StepOutcome,
    UnsuitedError,
    walk_steps,
)
from heteroplace.solve.greedy import greedy, greedy_pods
from heteroplace.solve.guided import guided
from heteroplace.solve.highs import HighsEngine
from heteroplace.solve.milp import MilpEngine
from heteroplace.solve.portfolio import Portfolio
from heteroplace.solve.stages import stage
from heteroplace.topology import TreeView

log = logging.getLogger("heteroplace")

NAMING_EFFORT = 8
SLOWEST_NAMING = 1.5e-5
TOLERANCE = 0.08
LAST_EFFORT = 1.7
KNOWN_EFFORT = 0.1
LEAST_EFFORT = 0.25
LAST_MARGIN = 0.02

ENGINES: dict[str, Callable[[Profile], Engine]] = {
    "auto": lambda profile: Portfolio(),
    "highs": lambda profile: HighsEngine(),
    "cpsat": lambda profile: CpSatEngine(),
    "milp": lambda profile: MilpEngine(profile.engine),
}


def solve(instance: Instance, profile: Profile | None = None) -> Result:
    """Decide where every instance goes.

    Parameters
    ----------
    instance
        The problem; not changed.
    profile
        How to solve; default :class:`Profile`.

    Returns
    -------
    Result
        A checked plan, never worse than the greedy's, with value, bound and gap of every step.

    Notes
    -----
    Safe to call from several threads. Prints nothing; logs to ``heteroplace``. The objective and
    the cycle's rules follow §3.3 of the HeteroScale paper, made exact in docs/problem.md.
    """
    return _Run(instance, profile or Profile()).run()


@dataclass(frozen=True)
class Prepared:
    """What is known of an instance before it is solved.

    Parameters
    ----------
    tree, naming, checker
        Made from the instance.
    start
        A decision to improve on, if there is one; it need not be valid.
    """

    tree: TreeView
    naming: Naming
    checker: Checker
    start: Decision | None = None


def solve_prepared(instance: Instance, profile: Profile, prepared: Prepared) -> Result:
    """:func:`solve` for those who keep what they know of an instance, as a session does."""
    return _Run(instance, profile, prepared).run()


@dataclass
class _Candidate:
    """A plan with what the checker and the evaluator say of it."""

    plan: Plan
    evaluation: Evaluation
    violations: list[Violation] = field(default_factory=list)


class _Run:
    """One call of :func:`solve`."""

    def __init__(
        self, instance: Instance, profile: Profile, prepared: Prepared | None = None
    ) -> None:
        self.instance = instance
        self.prepared = prepared
        self.profile = profile
        self.began = time.monotonic()
        limit = profile.time_limit
        self.deadline = None if limit is None else self.began + limit
        self.seconds = {"build": 0.0, "solve": 0.0, "assign": 0.0}
        self.notes: list[str] = []
        self.stop: StopReason = "heuristic"
        self.outcomes: list[StepOutcome] = []
        self.units: list[Fraction] = []
        self.size = Size()
        self.engine: str | None = None

    def timed(self, phase: str, began: float) -> None:
        self.seconds[phase] += time.monotonic() - began

    def run(self) -> Result:
        self.prepare()
        if self.profile.solver == "greedy-pods":
            return self.result(self.judged(self.heuristic(greedy_pods)))
        decision = self.heuristic(greedy)
        began = time.monotonic()
        best = self.judged(decision)
        self.reserve = self.last_work(decision, time.monotonic() - began)
        if best.violations:
            self.notes.append("the greedy's plan was refused by the checker; nothing is changed")
            log.error("greedy plan refused: %s", best.violations)
            decision = Decision()
            best = self.judged(decision)
        if self.profile.solver != "greedy":
            if self.prepared is not None and self.prepared.start is not None:
                known = self.judged(self.prepared.start)
                if not known.violations and known.evaluation.values < best.evaluation.values:
                    decision, best = self.prepared.start, known
            best = self.improved(decision, best)
        return self.result(best)

    def prepare(self) -> None:
        """Make the view, and what names and checks plans, unless they are given."""
        began = time.monotonic()
        given = self.prepared
        with stage("tree view"):
            self.tree = TreeView(self.instance) if given is None else given.tree
        self.timed("build", began)
        # Naming and checking an instance takes about that many times as long as reading a node.
        # One hiccup while reading must not make it look endless.
        measured = NAMING_EFFORT * self.seconds["build"] / len(self.instance.nodes)
        self.pace = min(measured, SLOWEST_NAMING)
        began = time.monotonic()
        with uncollected(), stage("naming and checking"):
            self.naming = Naming(self.tree) if given is None else given.naming
            self.checker = Checker(self.instance) if given is None else given.checker
        self.timed("assign", began)

    def heuristic(self, method: Callable[[TreeView, float | None, float], Decision]) -> Decision:
        began = time.monotonic()
        deadline = self.deadline
        if deadline is not None:
            # A part of the tolerance is for the greedy: cut off, it leaves capacity unmet.
            deadline += TOLERANCE
            deadline -= self.pace * self.instance.running_instances
        late = deadline is not None and began >= deadline
        with uncollected(), stage("greedy"):
            decision = Decision() if late else method(self.tree, deadline, self.pace)
        self.timed("solve", began)
        return decision

    def last_work(self, decision: Decision, seconds: float) -> float:
        """Seconds to keep for the final plan, by those that the greedy's took.

        It is named and checked as well, and its solution taken apart before; but what runs has
        been named and read then. A session knows it from the start.
        """
        share = 1.0
        if self.prepared is None:
            added, running = len(decision.added) + 1, self.instance.running_instances
            share = max(LEAST_EFFORT, (added + KNOWN_EFFORT * running) / (added + running))
        return LAST_EFFORT * share * seconds + LAST_MARGIN

    def judged(self, decision: Decision) -> _Candidate:
        """Name a decision's nodes, check and evaluate it."""
        began = time.monotonic()
        with uncollected(), stage("naming and checking"):
            plan = self.naming.plan(decision)
            violations, evaluation = self.checker.check_and_evaluate(plan)
        candidate = _Candidate(plan, evaluation, violations)
        self.timed("assign", began)
        return candidate

    def improved(self, start: Decision, best: _Candidate) -> _Candidate:
        """Run the exact engine from the greedy's plan; whatever goes wrong, that plan stays."""
        deadline = None if self.deadline is None else self.deadline - self.reserve
        try:
            engine = ENGINES[self.profile.solver](self.profile)
            self.engine = engine.name
            began = time.monotonic()
            try:
                with uncollected(), stage("program"):
                    model = build(self.tree, deadline)
            finally:
                self.timed("build", began)
            found = self.engine_decision(engine, model, start, deadline)
        except LateError:
            self.stop = "time_limit"
            self.notes.append("the time limit came while the program was built")
            return best
        except EngineMissingError as error:
            return self.failed("engine_missing", str(error), best)
        except UnsuitedError as error:
            return self.failed("engine_failed", str(error), best)
        except OverflowError:
            return self.failed(
                "engine_failed",
                "The numbers are too large or too fine for exact arithmetic in 63 bits; round "
                "capacities, targets and ratios to fewer digits",
                best,
            )
        except Exception as error:
            log.exception("engine failed")
            return self.failed("engine_failed", f"{type(error).__name__}: {error}", best)
        return self.better(found, best)

    def failed(self, stop: StopReason, message: str, best: _Candidate) -> _Candidate:
        self.stop = stop
        self.outcomes, self.units = [], []
        self.notes.append(f"{message}. This is the greedy's plan.")
        return best

    def engine_decision(
        self, engine: Engine, model: Model, start: Decision, deadline: float | None
    ) -> Decision | None:
        began = time.monotonic()
        with uncollected(), stage("program"):
            arrays = model.program.arrays()
            x = hint(model, start)
        columns, rows, nonzeros = model.program.shape
        self.size = Size(columns=columns, rows=rows, nonzeros=nonzeros)
        if x is None or not arrays.feasible(x):
            log.warning("the greedy's plan is no solution of the program")
            x = None
        self.timed("build", began)

        def rounding(relaxed: Floats) -> Ints | None:
            with uncollected():
                return hint(model, guided(model, relaxed, deadline, self.pace))

        began = time.monotonic()
        try:
            with stage("engine loaded"):
                engine.load(arrays, self.profile)
            walk = walk_steps(engine, arrays, model.program.steps, x, deadline, rounding)
        finally:
            self.timed("solve", began)
        self.outcomes = walk.steps
        self.units = [step.unit for step in model.program.steps]
        if all(step.proven for step in self.outcomes):
            self.stop = "proven"
        else:
            self.stop = "time_limit" if walk.late else "not_proven"
        if walk.solution is None:
            return None
        if x is not None and np.array_equal(walk.solution, x):
            return None
        began = time.monotonic()
        with uncollected(), stage("naming and checking"):
            decision = extract(model, walk.solution)
        self.timed("assign", began)
        return decision

    def better(self, found: Decision | None, best: _Candidate) -> _Candidate:
        if found is None:
            return best
        candidate = self.judged(found)
        if candidate.violations:
            log.error("plan of %s refused: %s", self.engine, candidate.violations)
            first = candidate.violations[0]
            return self.failed(
                "engine_failed",
                f"the checker refused the plan of {self.engine} ({first.constraint}: "
                f"{first.message})",
                best,
            )
        return candidate if candidate.evaluation.values <= best.evaluation.values else best

    def result(self, best: _Candidate) -> Result:
        steps = tuple(self.proven_steps(best.evaluation))
        status: Literal["optimal", "feasible", "invalid"]
        if best.violations:
            status = "invalid"
        elif self.stop == "proven" and all(step.proven for step in steps):
            status = "optimal"
        else:
            status = "feasible"
            if self.stop == "proven":
                self.stop = "not_proven"
        profile = self.profile.model_dump()
        return Result(
            status=status,
            stop_reason=self.stop,
            plan=best.plan,
            steps=steps,
            costs={name: float(amount) for name, amount in best.evaluation.costs.items()},
            repairs={name: float(amount) for name, amount in best.evaluation.repairs.items()},
            unmet=tuple(
                Unmet(
                    service=role.service,
                    role=role.role,
                    target=float(role.target),
                    delivered=float(role.delivered),
                    unmet=float(role.unmet),
                    unmet_gpus=float(role.unmet_gpus),
                )
                for role in best.evaluation.roles
                if role.unmet
            ),
            violations=tuple(best.violations),
            notes=tuple(self.notes),
            seconds=Seconds(**self.seconds),
            size=self.size,
            solver=self.profile.solver,
            engine=self.engine,
            profile=profile,
            seed=self.profile.seed,
            versions=versions(),
            instance_digest=self.instance.digest,
        )

    def proven_steps(self, evaluation: Evaluation) -> list[ProvenStep]:
        steps = []
        for index, step in enumerate(evaluation.steps):
            bound = None
            whole = self.outcomes[index].bound if index < len(self.outcomes) else None
            if whole is not None:
                bound = whole * self.units[index]
                if bound - step.value > abs(step.value) * PROVEN_GAP:
                    log.error("bound of %s above its value; it is dropped", step.name)
                    bound = None
                else:
                    bound = min(bound, step.value)
            steps.append(_proven_step(step.name, step.value, bound))
        return steps


def _proven_step(name: str, value: Fraction, bound: Fraction | None) -> ProvenStep:
    if bound is None:
        return ProvenStep(name=name, value=float(value))
    proven = value - bound <= abs(value) * PROVEN_GAP
    gap: float | None = None
    if value == bound:
        gap = 0.0
    elif bound:
        gap = float((value - bound) / abs(bound))
    return ProvenStep(name=name, value=float(value), bound=float(bound), gap=gap, proven=proven)


def versions() -> dict[str, str]:
    """Versions of the package and of the engines that are installed."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in ("heteroplace", "ortools", "highspy", "pulp"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


__all__ = ["Prepared", "solve", "solve_prepared", "versions"]
