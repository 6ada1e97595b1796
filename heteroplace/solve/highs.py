"""HiGHS through its own interface: arrays in, bound and solution out."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from heteroplace.formulation.program import INFINITE, Arrays, Ints, ProgramStep
from heteroplace.profile import Profile
from heteroplace.solve.engine import (
    Answer,
    Caps,
    EngineMissingError,
    rounded,
    within,
)
from heteroplace.solve.floating import (
    cap_row,
    cost_scale,
    refuse_wide,
    row_factors,
    whole_bound,
)

ROUGH_GAP = 1e-3
MARGIN_SHARE = 0.1
LONGEST_MARGIN = 0.3


def _highspy() -> Any:
    try:
        import highspy
    except ImportError:
        raise EngineMissingError("highspy is not installed; pip install highspy") from None
    return highspy


class HighsEngine:
    """Engine ``highs``."""

    name = "HiGHS"

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds."""
        _highspy()
        refuse_wide(arrays)
        self._arrays = arrays
        self._profile = profile

    def improve(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Ints | None:
        """Minimise over the columns that the linear relaxation or the start uses."""
        return within(seconds, lambda: self._improve(step, caps, start, seconds))

    def _improve(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Ints | None:
        began = time.monotonic()
        solver, _ = make_model(self._arrays, caps, step, self._profile, seconds, relaxed=True)
        solver.run()
        if solver.getModelStatus() != _highspy().HighsModelStatus.kOptimal:
            return None
        used = np.asarray(solver.getSolution().col_value) > 1e-9
        if start is not None:
            used |= start > 0
        upper = np.where(used, self._arrays.upper, np.maximum(self._arrays.lower, 0))
        restricted = dataclasses.replace(self._arrays, upper=upper)
        left = None if seconds is None else seconds - (time.monotonic() - began)
        solver, _ = make_model(restricted, caps, step, self._profile, left)
        solver.setOptionValue("mip_rel_gap", ROUGH_GAP)
        return self._run(solver, start)

    def relax(self, step: ProgramStep, caps: Caps, seconds: float | None) -> int | None:
        """Lower bound of a step by the linear relaxation."""
        return relaxation_bound(self._arrays, caps, step, self._profile, seconds)

    def minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        """Minimise a step."""
        answer = within(seconds, lambda: self._minimise(step, caps, start, seconds))
        return answer or Answer(None, None)

    def _minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        solver, scale = make_model(self._arrays, caps, step, self._profile, seconds)
        found = self._run(solver, start)
        statuses = _highspy().HighsModelStatus
        if solver.getModelStatus() not in (statuses.kOptimal, statuses.kTimeLimit):
            return Answer(found, None)
        return Answer(found, whole_bound(solver.getInfo().mip_dual_bound / scale, step))

    def _run(self, solver: Any, start: Ints | None) -> Ints | None:
        """Run from a start; the solution, null when there is none."""
        highspy = _highspy()
        if start is not None:
            solution = highspy.HighsSolution()
            solution.col_value = start.astype(float)
            solver.setSolution(solution)
        solver.run()
        status = solver.getInfo().primal_solution_status
        if status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return None
        return rounded(solver.getSolution().col_value)


def relaxation_bound(
    arrays: Arrays,
    caps: Caps,
    step: ProgramStep,
    profile: Profile,
    seconds: float | None,
) -> int | None:
    """Lower bound of a step by its linear relaxation, in units; null when there was no time."""

    def solve() -> int | None:
        highspy = _highspy()
        solver, scale = make_model(arrays, caps, step, profile, seconds, relaxed=True)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return whole_bound(solver.getInfo().objective_function_value / scale, step)

    return within(seconds, solve)


def make_model(
    arrays: Arrays,
    caps: Caps,
    step: ProgramStep,
    profile: Profile,
    seconds: float | None,
    *,
    relaxed: bool = False,
) -> tuple[Any, float]:
    """A HiGHS model of one step, and the factor by which its costs were scaled."""
    highspy = _highspy()
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", profile.threads or 1)
    solver.setOptionValue("random_seed", profile.seed)
    if seconds is not None:
        # It looks at the clock between long operations only; what comes late is lost.
        margin = min(LONGEST_MARGIN, MARGIN_SHARE * seconds)
        solver.setOptionValue("time_limit", max(0.0, seconds - margin))
    columns = len(arrays.lower)
    cost = np.zeros(columns)
    cost[step.columns] = step.coefficients
    scale = cost_scale(step)
    solver.setOptionValue("mip_rel_gap", 1e-7)
    solver.setOptionValue("mip_abs_gap", 0.999 * scale)
    lp = highspy.HighsLp()
    lp.num_col_ = columns
    lp.col_cost_ = cost * scale
    lp.col_lower_ = arrays.lower.astype(float)
    lp.col_upper_ = arrays.upper.astype(float)
    starts, index, values, low, high = with_caps(arrays, caps)
    lp.num_row_ = len(low)
    factor = row_factors(starts, values)
    lp.row_lower_ = np.where(low <= -INFINITE, -highspy.kHighsInf, low * factor)
    lp.row_upper_ = np.where(high >= INFINITE, highspy.kHighsInf, high * factor)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = starts
    lp.a_matrix_.index_ = index
    lp.a_matrix_.value_ = values * np.repeat(factor, np.diff(starts))
    if not relaxed:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * columns
    if solver.passModel(lp) == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS refuses the program")
    return solver, scale


def with_caps(arrays: Arrays, caps: Caps) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Rows in CSR with one more row per capped step: starts, columns, values, lower, upper."""
    rows = [cap_row(step, value) for step, value in caps]
    lengths = [len(columns) for columns, _, _ in rows]
    starts = np.concatenate([arrays.starts, arrays.starts[-1] + np.cumsum(lengths, dtype=np.int64)])
    columns = np.concatenate([arrays.columns, *(columns for columns, _, _ in rows)])
    values = np.concatenate([arrays.coefficients, *(values for _, values, _ in rows)])
    low = np.concatenate([arrays.row_lower, np.full(len(rows), -INFINITE, np.int64)])
    high = np.concatenate([arrays.row_upper, np.array([top for _, _, top in rows], np.int64)])
    return starts, columns, values, low, high
