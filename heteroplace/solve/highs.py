"""HiGHS through its own interface: arrays in, bound and solution out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from heteroplace.cores import usable_cores
from heteroplace.formulation.program import INFINITE, Arrays, Floats, Ints, ProgramStep
from heteroplace.profile import Profile
from heteroplace.solve.engine import (
    LARGE,
    MERGED_SCALE,
    PROVEN_GAP,
    Answer,
    Caps,
    EngineMissingError,
    Relaxation,
    Steps,
    better,
    merged,
    rounded,
    within,
)
from heteroplace.solve.floating import (
    cap_row,
    cost_scale,
    lagrangian_bound,
    refuse_wide,
    row_factors,
    whole_bound,
)
from heteroplace.solve.lazy import LazyRelaxation, Relaxed
from heteroplace.solve.polish import Drawing, Regrets, polish
from heteroplace.solve.restrict import Restricted
from heteroplace.solve.whole import Part, Services

log = logging.getLogger("heteroplace")

MOST_NODES = 200
CLOSE_ENOUGH = 1e-4
# Relaxation and plan agree on a count that differs by no more.
AGREED = 1e-6
MOST_WORKERS = 4
# Up to HiGHS 1.15 presolve now and then cuts off the best solutions; small programs need none.
PRESOLVED = 300
MARGIN_SHARE = 0.1
LONGEST_MARGIN = 0.3
# For one service's bound: at least that, or a share of what is left.
PART_SECONDS = 0.1
PART_SHARE = 0.02


def _highspy() -> Any:
    try:
        import highspy
    except ImportError:
        raise EngineMissingError("highspy is not installed; pip install highspy") from None
    return highspy


class HighsEngine:
    """Engine ``highs``."""

    name = "HiGHS"
    polishes = True

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds."""
        _highspy()
        refuse_wide(arrays)
        self._arrays = arrays
        self._profile = profile
        self._lazy: LazyRelaxation | None = None
        self._regrets: Regrets | None = None
        self._relaxed: ProgramStep | None = None
        self._services: Services | None = None
        self._drawing = Drawing(profile.seed)

    def improve(
        self, steps: Steps, caps: Caps, start: Ints | None, seconds: float | None
    ) -> list[Ints]:
        """Place a few services anew again and again, those that pay most above the relaxation."""
        if start is None or self._regrets is None:
            return []
        deadline = None if seconds is None else time.monotonic() + seconds
        found: list[Ints] = []
        workers = self._workers(seconds)
        within(seconds, lambda: self._polish(found, steps, caps, start, deadline, workers))
        return list(found)

    def _polish(
        self,
        found: list[Ints],
        steps: Steps,
        caps: Caps,
        start: Ints,
        deadline: float | None,
        workers: int,
        stop: threading.Event | None = None,
    ) -> None:
        """Search neighbourhoods, and add every better solution to those found."""
        step = merged(steps, self._arrays)
        assert self._regrets is not None
        # As with relaxations, a thread that is left behind keeps what it uses.
        drawing, self._drawing = self._drawing, Drawing(self._profile.seed)
        for each in polish(
            self._arrays,
            steps,
            caps,
            start,
            self._regrets.raised(step, steps[:-1]),
            lambda part, held, limit: self._restricted(part, step, steps[-1], held, limit),
            deadline,
            drawing,
            workers,
            stop,
        ):
            found.append(each)
        self._drawing = drawing

    @property
    def polishes_on(self) -> bool:
        """Whether a core is left for neighbourhoods while another does branch and bound."""
        return self._cores > 1

    @contextmanager
    def _polishing(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Iterator[list[Ints]]:
        """Search neighbourhoods on the cores that branch and bound leaves; what they find."""
        found: list[Ints] = []
        # Regrets are of the step that was relaxed last.
        if start is None or seconds is None or not self.polishes_on or self._relaxed is not step:
            yield found
            return
        deadline, stop = time.monotonic() + seconds, threading.Event()

        def work() -> None:
            try:
                self._polish(found, [step], caps, start, deadline, self._cores - 1, stop)
            except Exception:
                if not stop.is_set():
                    log.exception("neighbourhoods beside branch and bound failed")

        # Not waited for: it ends with the neighbourhoods that it is at.
        thread = threading.Thread(target=work, name="heteroplace-polish")
        try:
            thread.start()
            yield found
        finally:
            stop.set()

    def _workers(self, seconds: float | None) -> int:
        """Neighbourhoods at a time; one where the same is to be found every time."""
        return 1 if seconds is None else self._cores

    @property
    def _cores(self) -> int:
        """Cores for neighbourhoods within a time."""
        if self._profile.deterministic:
            return 1
        return self._profile.threads or min(MOST_WORKERS, usable_cores())

    def _restricted(
        self,
        part: Restricted,
        step: ProgramStep,
        last: ProgramStep,
        caps: Caps,
        seconds: float | None,
    ) -> tuple[Ints | None, bool]:
        began = time.monotonic()
        step = part.step(step)
        solver, scale = make_model(part.arrays, caps, step, self._profile, seconds, relaxed=True)
        highspy = _highspy()
        solver.run()
        optimal = highspy.HighsModelStatus.kOptimal
        if solver.getModelStatus() != optimal:
            return None, False
        start = part.start.astype(float)
        pays = float(step.coefficients @ part.start[step.columns])
        if solver.getInfo().objective_function_value > (pays - 0.999) * scale:
            return None, True
        relaxed = np.asarray(solver.getSolution().col_value)
        # Where both agree, the best is likely the same (relaxation induced neighbourhood search).
        agreed = np.flatnonzero(np.abs(relaxed - start) <= AGREED).astype(np.int32)
        solver.changeColsBounds(len(agreed), agreed, start[agreed], start[agreed])
        whole = [highspy.HighsVarType.kInteger] * len(start)
        solver.changeColsIntegrality(len(start), np.arange(len(start), dtype=np.int32), whole)
        # Of the last step alone: what is unmet weighs so much more that costs would be lost in it.
        last_cost = part.step(last)
        moving = float((last_cost.value(part.start) - last_cost.constant) * last_cost.unit)
        enough = CLOSE_ENOUGH * abs(moving) * MERGED_SCALE
        solver.setOptionValue("mip_abs_gap", max(0.999, enough) * scale)
        solver.setOptionValue("mip_max_nodes", MOST_NODES)
        solver.setOptionValue("mip_heuristic_run_feasibility_jump", False)
        if seconds is not None:
            left = seconds - (time.monotonic() - began)
            solver.setOptionValue("time_limit", solver.getRunTime() + max(0.0, left))
        found = self._run(solver, part.start)
        return found, solver.getModelStatus() == optimal

    def relax(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Relaxation | None:
        """Solve the linear relaxation of a step, lazily where groups may be opened."""
        if not self._arrays.blocks or len(self._arrays.lower) < LARGE:
            return relaxation(self._arrays, caps, step, self._profile, seconds)
        deadline = None if seconds is None else time.monotonic() + seconds
        # A thread that is left behind keeps what it uses: nothing is shared until it has ended.
        lazy, self._lazy = self._lazy, None
        done = within(seconds, lambda: self._relax(lazy, step, caps, start, deadline))
        if done is None:
            return None
        self._lazy, found = done
        if found is None:
            return None
        self._relaxed = step
        blocks = self._lazy.blocks
        self._regrets = Regrets(
            self._arrays.owner,
            blocks.of_column,
            blocks.owner,
            found.reduced,
            found.worth,
            found.x,
        )
        bound = whole_bound(found.bound, step)
        return None if bound is None else Relaxation(bound, found.x, found.complete)

    def _relax(
        self,
        lazy: LazyRelaxation | None,
        step: ProgramStep,
        caps: Caps,
        start: Ints | None,
        deadline: float | None,
    ) -> tuple[LazyRelaxation, Relaxed | None]:
        if lazy is None:
            lazy = LazyRelaxation(self._arrays, make_solver(self._profile))
        if start is not None:
            lazy.enter_solution(start)
        return lazy, lazy.solve(step, caps, deadline)

    def sharpen(self, step: ProgramStep, x: Ints, seconds: float | None) -> int | None:
        """Raise the bound of the last relaxation by placing single services in whole instances."""
        lazy = self._lazy
        if lazy is None or lazy.prices is None:
            return None
        prices = lazy.prices
        deadline = None if seconds is None else time.monotonic() + seconds

        def work() -> float:
            if self._services is None:
                blocks = lazy.blocks
                self._services = Services(self._arrays, blocks.of_column, blocks.owner)
            workers = self._workers(seconds)
            return self._services.bound(prices, x, self._least, deadline, workers)

        found = within(seconds, work)
        return None if found is None else whole_bound(found, step)

    def _least(self, part: Part, seconds: float | None) -> float | None:
        """A lower bound of what a service costs alone."""
        solver = make_solver(self._profile)
        scale = cost_scale(part.cost)
        if not pass_program(solver, part.cost * scale, part.arrays):
            return None
        if len(part.cost) < PRESOLVED:
            solver.setOptionValue("presolve", "off")
        if seconds is not None:
            limit = min(seconds, max(PART_SECONDS, PART_SHARE * seconds))
            solver.setOptionValue("time_limit", limit)
        solver.setOptionValue("mip_max_nodes", MOST_NODES)
        solver.run()
        statuses = _highspy().HighsModelStatus
        limits = (statuses.kTimeLimit, statuses.kSolutionLimit)
        if solver.getModelStatus() not in (statuses.kOptimal, *limits):
            return None
        bound = float(solver.getInfo().mip_dual_bound) / scale
        return bound if np.isfinite(bound) else None

    def minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        """Minimise a step by branch and bound, and search neighbourhoods meanwhile."""
        with self._polishing(step, caps, start, seconds) as polished:
            answer = within(seconds, lambda: self._minimise(step, caps, start, seconds))
            answer = answer or Answer(None, None)
            if not polished:
                return answer
            # What polishing finds keeps all rows and caps; an engine's solution may not.
            best = better(self._arrays, step, caps, polished[-1], answer.solution)
            return Answer(best, answer.bound)

    def _minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        began = time.monotonic()
        answer = self._solved(step, caps, start, seconds)
        if start is None or answer.bound is None:
            return answer
        value = step.value(start)
        if answer.bound - value <= abs(value) * PROVEN_GAP:
            return answer
        log.info("HiGHS gave a bound above a value; it is asked again without presolve")
        left = None if seconds is None else seconds - (time.monotonic() - began)
        if left is not None and left <= 0:
            return Answer(answer.solution, None)
        return self._solved(step, caps, start, left, presolve=False)

    def _solved(
        self,
        step: ProgramStep,
        caps: Caps,
        start: Ints | None,
        seconds: float | None,
        *,
        presolve: bool = True,
    ) -> Answer:
        solver, scale = make_model(self._arrays, caps, step, self._profile, seconds)
        if not presolve or len(self._arrays.upper) < PRESOLVED:
            solver.setOptionValue("presolve", "off")
        # A start that was polished leaves HiGHS little to find, and it proves more slowly from one.
        found = self._run(solver, start if self._regrets is None else None)
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


def relaxation(
    arrays: Arrays,
    caps: Caps,
    step: ProgramStep,
    profile: Profile,
    seconds: float | None,
) -> Relaxation | None:
    """The linear relaxation of a step; null when there was no time."""

    def solve() -> Relaxation | None:
        highspy = _highspy()
        solver, scale = make_model(arrays, caps, step, profile, seconds, relaxed=True)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = solver.getSolution()
        # Not the objective's value: that is only as good as the engine's tolerances.
        whole = with_caps(arrays, caps)
        factors = row_factors(whole.starts, whole.coefficients)
        price = np.asarray(solution.row_dual) * factors / scale
        cost = np.zeros(len(arrays.upper))
        cost[step.columns] = step.coefficients
        bound = whole_bound(lagrangian_bound(cost, whole, price), step)
        return None if bound is None else Relaxation(bound, np.asarray(solution.col_value, float))

    return within(seconds, solve)


def make_solver(profile: Profile) -> Any:
    """An empty HiGHS model that keeps quiet."""
    solver = _highspy().Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", profile.threads or 1)
    solver.setOptionValue("random_seed", profile.seed)
    return solver


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
    solver = make_solver(profile)
    if seconds is not None:
        # It looks at the clock between long operations only; what comes late is lost.
        margin = min(LONGEST_MARGIN, MARGIN_SHARE * seconds)
        solver.setOptionValue("time_limit", max(0.0, seconds - margin))
    cost = np.zeros(len(arrays.lower))
    cost[step.columns] = step.coefficients
    scale = cost_scale(step.coefficients)
    solver.setOptionValue("mip_rel_gap", 1e-7)
    solver.setOptionValue("mip_abs_gap", 0.999 * scale)
    if not pass_program(solver, cost * scale, with_caps(arrays, caps), relaxed=relaxed):
        raise RuntimeError("HiGHS refuses the program")
    return solver, scale


def pass_program(solver: Any, cost: Floats, arrays: Arrays, *, relaxed: bool = False) -> bool:
    """Give HiGHS a program with costs that are scaled already; whether it takes it."""
    highspy = _highspy()
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(arrays.lower), len(arrays.row_lower)
    lp.col_cost_ = cost
    lp.col_lower_ = arrays.lower.astype(float)
    lp.col_upper_ = arrays.upper.astype(float)
    factor = row_factors(arrays.starts, arrays.coefficients)
    low, high, infinite = arrays.row_lower, arrays.row_upper, highspy.kHighsInf
    lp.row_lower_ = np.where(low <= -INFINITE, -infinite, low * factor)
    lp.row_upper_ = np.where(high >= INFINITE, infinite, high * factor)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = arrays.starts
    lp.a_matrix_.index_ = arrays.columns
    lp.a_matrix_.value_ = arrays.coefficients * np.repeat(factor, np.diff(arrays.starts))
    if not relaxed:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * len(cost)
    taken: bool = solver.passModel(lp) != highspy.HighsStatus.kError
    return taken


def with_caps(arrays: Arrays, caps: Caps) -> Arrays:
    """A program with one more row per capped step, without blocks."""
    rows = [cap_row(step, value) for step, value in caps]
    lengths = [len(columns) for columns, _, _ in rows]
    starts = np.concatenate([arrays.starts, arrays.starts[-1] + np.cumsum(lengths, dtype=np.int64)])
    columns = np.concatenate([arrays.columns, *(columns for columns, _, _ in rows)])
    values = np.concatenate([arrays.coefficients, *(values for _, values, _ in rows)])
    low = np.concatenate([arrays.row_lower, np.full(len(rows), -INFINITE, np.int64)])
    high = np.concatenate([arrays.row_upper, np.array([top for _, _, top in rows], np.int64)])
    return Arrays(arrays.lower, arrays.upper, low, high, starts, columns, values)
