"""The references: the greedy, and engines out of the box on the same integer program.

Nothing of the solver under test is in them but the program itself: they pass it to the engine as
it is, give no hint, leave every option at its default, and minimise the steps one after the other,
each capped at what it reached. Only what "proven" means is the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Literal, Protocol

import numpy as np

from heteroplace.bench.record import ReferenceRecord
from heteroplace.bench.steps import recorded, step_record
from heteroplace.bench.suite import ReferenceName
from heteroplace.formulation import build
from heteroplace.formulation.program import INFINITE, Arrays, Ints, LateError, Program, ProgramStep
from heteroplace.instance import Instance
from heteroplace.profile import Profile
from heteroplace.solve import solve
from heteroplace.solve.engine import PROVEN_GAP, Caps, within
from heteroplace.topology import TreeView

ABSOLUTE_GAP = 0.999
# A hair below, so that what an engine takes for proven still is after rounding its bound.
RELATIVE_GAP = 0.99 * float(PROVEN_GAP)
TOLERANCE = 1e-6
RELATIVE_TOLERANCE = 1e-9


class Reference(Protocol):
    """Something to compare with."""

    name: ReferenceName

    def run(self, instance: Instance, time_limit: float) -> ReferenceRecord:
        """Solve an instance within seconds.

        Raises
        ------
        ImportError
            If its engine is not installed.
        """


class Engine(Protocol):
    """An engine out of the box: one program, one step after the other."""

    def load(self, arrays: Arrays) -> None:
        """Take the rows and bounds; raises :class:`ImportError` when it is not installed."""

    def minimise(
        self, step: ProgramStep, caps: Caps, seconds: float
    ) -> tuple[Ints | None, int | None]:
        """Solution and lower bound, in units, of one step; null for what it does not have."""

    def stop(self) -> None:
        """End what runs as soon as possible; called from another thread."""


def run_reference(name: ReferenceName, instance: Instance, time_limit: float) -> ReferenceRecord:
    """Run a reference; one that fails or is missing is recorded, never raised.

    Parameters
    ----------
    name
        Which one.
    instance
        Not changed.
    time_limit
        Seconds in total.
    """
    try:
        return REFERENCES[name].run(instance, time_limit)
    except ImportError as error:
        return ReferenceRecord(
            name=name, outcome="missing", message=str(error), time_limit=time_limit
        )
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return ReferenceRecord(name=name, outcome="failed", message=message, time_limit=time_limit)


class Greedy:
    """The greedy from the instance in memory to the checked plan."""

    name: ReferenceName = "greedy"

    def run(self, instance: Instance, time_limit: float) -> ReferenceRecord:
        """Solve an instance within seconds."""
        began = time.monotonic()
        result = solve(instance, Profile(solver="greedy", time_limit=time_limit))
        return ReferenceRecord(
            name=self.name,
            outcome="heuristic",
            time_limit=time_limit,
            seconds=time.monotonic() - began,
            build=result.seconds.build,
            solve=result.seconds.solve,
            steps=recorded(result.steps),
        )


@dataclass
class OutOfTheBox:
    """An engine on the same program, lexicographically.

    Parameters
    ----------
    name
        Of the reference.
    engine
        Makes the engine.
    """

    name: ReferenceName
    engine: Callable[[], Engine]

    def run(self, instance: Instance, time_limit: float) -> ReferenceRecord:
        """Solve an instance within seconds."""
        engine = self.engine()
        # An engine keeps state per thread, which is how one run gets its defaults anew.
        record = within(None, lambda: self._run(engine, instance, time_limit), engine.stop)
        assert record is not None
        return record

    def _run(self, engine: Engine, instance: Instance, time_limit: float) -> ReferenceRecord:
        began = time.monotonic()
        deadline = began + time_limit
        try:
            program = build(TreeView(instance), deadline).program
        except LateError:
            spent = time.monotonic() - began
            return ReferenceRecord(
                name=self.name,
                outcome="time_limit",
                time_limit=time_limit,
                seconds=spent,
                build=spent,
                solve=0.0,
            )
        arrays = program.arrays()
        built = time.monotonic()
        engine.load(arrays)
        walk = lexicographic(engine, program, arrays, deadline)
        ended = time.monotonic()
        steps = tuple(
            step_record(step.name, _worth(step, value), _worth(step, bound))
            for step, (value, bound) in zip(program.steps, walk.steps, strict=True)
        )
        outcome: Literal["proven", "time_limit", "not_proven"] = "not_proven"
        if all(step.proven for step in steps):
            outcome = "proven"
        elif walk.late:
            outcome = "time_limit"
        return ReferenceRecord(
            name=self.name,
            outcome=outcome,
            time_limit=time_limit,
            seconds=ended - began,
            build=built - began,
            solve=ended - built,
            steps=steps,
        )


def _worth(step: ProgramStep, units: int | None) -> Fraction | None:
    return None if units is None else units * step.unit


@dataclass
class Walk:
    """The outcome of minimise-and-cap.

    Parameters
    ----------
    steps
        Value and bound of each step in units; null is unknown.
    late
        Whether the deadline came first.
    """

    steps: list[tuple[int | None, int | None]]
    late: bool


def lexicographic(engine: Engine, program: Program, arrays: Arrays, deadline: float) -> Walk:
    """Minimise the steps in order, each capped at what it reached before the next one.

    Parameters
    ----------
    engine
        A loaded engine.
    program, arrays
        The program and its rows; every solution is verified against them exactly.
    deadline
        ``time.monotonic()`` at which to stop.

    Raises
    ------
    RuntimeError
        If a solution breaks a row, or a bound is above the value of a solution.
    """
    bounds: list[int | None] = [None] * len(program.steps)
    caps: list[tuple[ProgramStep, int]] = []
    best: Ints | None = None
    late = False
    for index, step in enumerate(program.steps):
        if not len(step.columns):
            bounds[index] = step.constant
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            late = True
            break
        found, bound = engine.minimise(step, caps, left)
        if found is not None:
            _verify(found, arrays, caps)
            best = found
        if best is None:
            # Every program has a solution: the engine was stopped, be it a little early.
            bounds[index] = bound
            late = True
            break
        value = step.value(best)
        if bound is not None and bound - value > abs(value) * PROVEN_GAP:
            raise RuntimeError(f"its bound of {step.name} is above the value of its own solution")
        bounds[index] = None if bound is None else min(bound, value)
        caps.append((step, value))
        late = time.monotonic() >= deadline
        if late:
            break
    values = [
        step.value(best) if best is not None else None if len(step.columns) else step.constant
        for step in program.steps
    ]
    return Walk(list(zip(values, bounds, strict=True)), late)


def _verify(found: Ints, arrays: Arrays, caps: Caps) -> None:
    if not arrays.feasible(found):
        broken = len(arrays.broken_rows(found))
        raise RuntimeError(f"its solution breaks {broken} rows when rounded to integers")
    for step, value in caps:
        if int(step.coefficients @ found[step.columns]) > step.top(value):
            raise RuntimeError(f"its solution is worse in {step.name}, which was capped")


class Highs:
    """HiGHS with its default options."""

    def __init__(self) -> None:
        self._solver: Any = None
        self._stopped = False

    def load(self, arrays: Arrays) -> None:
        """Take the rows and bounds."""
        try:
            import highspy
        except ImportError:
            raise ImportError("highspy is not installed; pip install highspy") from None
        self._highspy: Any = highspy
        self._arrays = arrays

    def minimise(
        self, step: ProgramStep, caps: Caps, seconds: float
    ) -> tuple[Ints | None, int | None]:
        """Minimise a step."""
        began = time.monotonic()
        highspy = self._highspy
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("mip_abs_gap", ABSOLUTE_GAP)
        solver.setOptionValue("mip_rel_gap", RELATIVE_GAP)
        if solver.passModel(self._model(step, caps)) == highspy.HighsStatus.kError:
            raise RuntimeError("HiGHS refuses the program")
        left = max(0.0, seconds - (time.monotonic() - began))
        solver.setOptionValue("time_limit", left)
        self._solver = solver
        if not self._stopped:
            solver.run()
        status, statuses = solver.getModelStatus(), highspy.HighsModelStatus
        if status not in (statuses.kOptimal, statuses.kTimeLimit):
            raise RuntimeError(f"HiGHS ends with {solver.modelStatusToString(status)}")
        info = solver.getInfo()
        found = None
        if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            found = np.rint(np.asarray(solver.getSolution().col_value)).astype(np.int64)
        bound = info.mip_dual_bound
        if not np.isfinite(bound):
            return found, None
        whole = ceil(bound - max(TOLERANCE, RELATIVE_TOLERANCE * abs(bound)))
        return found, step.lower(whole)

    def _model(self, step: ProgramStep, caps: Caps) -> Any:
        highspy, arrays = self._highspy, self._arrays
        lengths = [len(capped.columns) for capped, _ in caps]
        low = np.concatenate([arrays.row_lower, np.full(len(caps), -INFINITE, np.int64)])
        tops = np.array([capped.top(value) for capped, value in caps], np.int64)
        high = np.concatenate([arrays.row_upper, tops])
        model = highspy.HighsLp()
        model.num_col_ = len(arrays.lower)
        model.num_row_ = len(low)
        cost = np.zeros(len(arrays.lower))
        cost[step.columns] = step.coefficients
        model.col_cost_ = cost
        model.col_lower_ = arrays.lower.astype(float)
        model.col_upper_ = arrays.upper.astype(float)
        model.row_lower_ = np.where(low <= -INFINITE, -highspy.kHighsInf, low.astype(float))
        model.row_upper_ = np.where(high >= INFINITE, highspy.kHighsInf, high.astype(float))
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.concatenate(
            [arrays.starts, arrays.starts[-1] + np.cumsum(lengths, dtype=np.int64)]
        )
        model.a_matrix_.index_ = np.concatenate(
            [arrays.columns, *(capped.columns for capped, _ in caps)]
        )
        model.a_matrix_.value_ = np.concatenate(
            [arrays.coefficients, *(capped.coefficients for capped, _ in caps)]
        ).astype(float)
        model.integrality_ = [highspy.HighsVarType.kInteger] * len(arrays.lower)
        return model

    def stop(self) -> None:
        """Take the rest of its time away; a callback, HiGHS' own way, would slow every run down."""
        self._stopped = True
        if self._solver is not None:
            self._solver.setOptionValue("time_limit", 0.0)


class CpSat:
    """CP-SAT with its default parameters."""

    def __init__(self) -> None:
        self._solver: Any = None
        self._stopped = False

    def load(self, arrays: Arrays) -> None:
        """Build the rows."""
        try:
            from ortools.sat.python import cp_model
        except ImportError:
            raise ImportError("OR-tools is not installed; pip install ortools") from None
        self._cp_model: Any = cp_model
        self._capped = 0
        self._model = cp_model.CpModel()
        self._columns = [
            self._model.new_int_var(low, high, "")
            for low, high in zip(arrays.lower.tolist(), arrays.upper.tolist(), strict=True)
        ]
        starts = arrays.starts.tolist()
        limits = zip(arrays.row_lower.tolist(), arrays.row_upper.tolist(), strict=True)
        for row, (low, high) in enumerate(limits):
            part = slice(starts[row], starts[row + 1])
            terms = self._sum(arrays.columns[part], arrays.coefficients[part])
            self._model.add_linear_constraint(terms, low, high)

    def _sum(self, columns: Ints, values: Ints) -> Any:
        return self._cp_model.LinearExpr.weighted_sum(
            [self._columns[column] for column in columns.tolist()], values.tolist()
        )

    def minimise(
        self, step: ProgramStep, caps: Caps, seconds: float
    ) -> tuple[Ints | None, int | None]:
        """Minimise a step."""
        began = time.monotonic()
        cp_model = self._cp_model
        for capped, value in caps[self._capped :]:
            terms = self._sum(capped.columns, capped.coefficients)
            self._model.add_linear_constraint(terms, -INFINITE, capped.top(value))
        self._capped = len(caps)
        self._model.minimize(self._sum(step.columns, step.coefficients))
        solver = cp_model.CpSolver()
        solver.parameters.absolute_gap_limit = ABSOLUTE_GAP
        solver.parameters.relative_gap_limit = RELATIVE_GAP
        solver.parameters.catch_sigint_signal = False  # Ctrl-C belongs to the caller
        left = seconds - (time.monotonic() - began)
        if left <= 0 or self._stopped:
            return None, None
        solver.parameters.max_time_in_seconds = left
        self._solver = solver
        status = solver.solve(self._model)
        if status == cp_model.UNKNOWN:
            return None, None
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            raise RuntimeError(f"CP-SAT ends with {solver.status_name(status)}")
        found = np.array(solver.response_proto.solution, np.int64)
        bound = solver.best_objective_bound
        whole = ceil(bound - max(TOLERANCE, RELATIVE_TOLERANCE * abs(bound)))
        return found, step.lower(whole)

    def stop(self) -> None:
        """End the search."""
        self._stopped = True
        if self._solver is not None:
            self._solver.stop_search()


REFERENCES: dict[ReferenceName, Reference] = {
    "greedy": Greedy(),
    "highs": OutOfTheBox("highs", Highs),
    "cpsat": OutOfTheBox("cpsat", CpSat),
}
