"""Any engine that PuLP knows; HiGHS by default.

PuLP's status strings are not proofs: "Optimal" may mean a time limit, and CBC may leave fractional
values. Only ``sol_status`` counts here, every solution is verified, and where an engine reports no
bound the linear relaxation gives one.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heteroplace.formulation.program import INFINITE, Arrays, Ints, ProgramStep
from heteroplace.profile import Profile
from heteroplace.solve.engine import (
    Answer,
    Caps,
    EngineMissingError,
    Relaxation,
    Steps,
    merged,
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
from heteroplace.solve.highs import PRESOLVED, relaxation

log = logging.getLogger("heteroplace")

DEFAULT = "HiGHS"
SHORT = {"CBC": "COIN_CMD"}


def _pulp() -> Any:
    try:
        import pulp
    except ImportError:
        raise EngineMissingError("PuLP is not installed; pip install 'pulp<4'") from None
    return pulp


class MilpEngine:
    """Engine ``milp``."""

    polishes = False
    polishes_on = False

    def __init__(self, engine: str | None) -> None:
        self._engine = SHORT.get(engine or DEFAULT, engine or DEFAULT)
        self.name = f"PuLP {self._engine}"

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds; the PuLP problem is built at the first step that needs it."""
        self._arrays = arrays
        self._profile = profile
        self._caps: list[tuple[ProgramStep, int]] = []
        self._problem: Any = None
        self._columns: list[Any] = []
        self._overhead = 0.0
        self._answered = False
        refuse_wide(arrays)
        pulp = _pulp()
        if self._engine not in pulp.listSolvers():
            known = ", ".join(pulp.listSolvers(onlyAvailable=True))
            raise EngineMissingError(
                f"PuLP knows no engine {self._engine!r}; installed here: {known}"
            )
        if not self._solver(None).available():
            known = ", ".join(pulp.listSolvers(onlyAvailable=True))
            raise EngineMissingError(
                f"PuLP's engine {self._engine} is not installed; install it or use one of {known}"
            )

    def improve(
        self, steps: Steps, caps: Caps, start: Ints | None, seconds: float | None
    ) -> list[Ints]:
        """Minimise a weighted sum of steps without proof."""
        found = self.minimise(merged(steps, self._arrays), caps, start, seconds).solution
        return [] if found is None else [found]

    def relax(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Relaxation | None:
        """Lower bound of a step by the linear relaxation, which HiGHS solves for every engine."""
        return relaxation(self._arrays, caps, step, self._profile, seconds)

    def sharpen(self, step: ProgramStep, x: Ints, seconds: float | None) -> int | None:
        """No better bound than the relaxation's."""
        return None

    def minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        """Minimise a step."""
        answer = within(seconds, lambda: self._minimise(step, caps, start, seconds))
        if answer is None:
            self._problem = None
        return answer or Answer(None, None)

    def _minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        pulp = _pulp()
        began = time.monotonic()
        problem = self._built(caps)
        self._overhead = max(self._overhead, time.monotonic() - began)
        scale = cost_scale(step.coefficients)
        costs = (step.coefficients * scale).astype(np.float64) if scale < 1 else step.coefficients
        problem.setObjective(self._expression(step.columns, costs))
        if start is not None:
            for column, value in zip(self._columns, start.tolist(), strict=True):
                column.setInitialValue(value)
        if seconds is not None:
            # A command-line engine writes the model to a file first, about as slow as building it.
            seconds -= time.monotonic() - began + self._overhead
            if seconds <= 0:
                return Answer(None, None)
        solver = self._solver(seconds, start, scale)
        try:
            problem.solve(solver)
        except pulp.PulpSolverError as error:
            # CBC now and then falls over its time limit; after an answer that costs one step only.
            if not self._answered:
                raise
            log.info("%s ended without an answer: %s", self.name, error)
            return Answer(None, None)
        self._answered = True
        found = bound = None
        if problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            found = rounded([column.varValue or 0 for column in self._columns])
        if self._engine == DEFAULT:
            bound = whole_bound(problem.solverModel.getInfo().mip_dual_bound / scale, step)
        elif (
            problem.sol_status == pulp.LpSolutionOptimal
            and found is not None
            and self._arrays.feasible(found)
        ):
            bound = step.lower(int(step.coefficients @ found[step.columns]))
        return Answer(found, bound)

    def _built(self, caps: Caps) -> Any:
        pulp = _pulp()
        arrays = self._arrays
        known = len(self._caps)
        if self._problem is None or list(caps[:known]) != self._caps:
            self._caps, known = [], 0
            self._problem = pulp.LpProblem("heteroplace", pulp.LpMinimize)
            # PuLP 3.3 and later make variables through the problem; the old way warns there.
            make = getattr(self._problem, "add_variable", pulp.LpVariable)
            self._columns = [
                make(f"x{number}", low, high, pulp.LpInteger)
                for number, (low, high) in enumerate(
                    zip(arrays.lower.tolist(), arrays.upper.tolist(), strict=True)
                )
            ]
            starts = arrays.starts.tolist()
            for row, (low, high) in enumerate(
                zip(arrays.row_lower.tolist(), arrays.row_upper.tolist(), strict=True)
            ):
                part = slice(starts[row], starts[row + 1])
                if starts[row] < starts[row + 1]:
                    self._add_row(arrays.columns[part], arrays.coefficients[part], low, high)
        for step, value in caps[known:]:
            columns, values, top = cap_row(step, value)
            self._add_row(columns, values, -INFINITE, top)
            self._caps.append((step, value))
        return self._problem

    def _add_row(self, index: Ints, values: Ints, low: int, high: int) -> None:
        starts = np.array([0, len(values)], np.int64)
        factor = float(row_factors(starts, values)[0]) if self._engine == DEFAULT else 1.0
        scaled = (values * factor).astype(np.float64) if factor < 1 else values
        expression = self._expression(index, scaled)
        if low == high:
            self._problem += expression == low * factor
            return
        if low > -INFINITE:
            self._problem += expression >= low * factor
        if high < INFINITE:
            self._problem += expression <= high * factor

    def _expression(self, index: Ints, values: Ints | NDArray[np.float64]) -> Any:
        return _pulp().LpAffineExpression(
            [
                (self._columns[column], value)
                for column, value in zip(index.tolist(), values.tolist(), strict=True)
            ]
        )

    def _solver(self, seconds: float | None, start: Ints | None = None, scale: float = 1.0) -> Any:
        pulp = _pulp()
        limit = None if seconds is None else max(0.01, seconds)
        if self._engine == DEFAULT:
            return _highs(pulp)(
                start,
                msg=False,
                timeLimit=limit,
                threads=self._profile.threads or 1,
                gapRel=1e-7,
                gapAbs=0.999 * scale,
                random_seed=self._profile.seed,
                presolve="off" if len(self._arrays.upper) < PRESOLVED else "choose",
            )
        options: dict[str, Any] = {"msg": False, "timeLimit": limit}
        if self._engine == "COIN_CMD" and not pulp.COIN_CMD().available():
            options["path"] = _bundled_cbc()
        if self._engine in ("PULP_CBC_CMD", "COIN_CMD"):
            options |= {
                "gapRel": 0,
                "threads": self._profile.threads,
                "warmStart": start is not None,
                "options": [f"randomCbcSeed {self._profile.seed}"],
            }
        return pulp.getSolver(self._engine, **options)


def _bundled_cbc() -> str | None:
    """Path of the CBC that PuLP 3 ships; null when it ships none."""
    from pulp.apis import coin_api

    return getattr(coin_api, "pulp_cbc_path", None)


def _highs(pulp: Any) -> Any:
    """PuLP's HiGHS with the start that PuLP does not pass on."""

    class StartedHighs(pulp.HiGHS):  # type: ignore[misc]
        def __init__(self, start: Ints | None, **options: Any) -> None:
            super().__init__(**options)
            self._start = start

        def callSolver(self, lp: Any) -> None:  # noqa: N802
            if self._start is not None:
                import highspy

                solution = highspy.HighsSolution()
                order = [0.0] * len(self._start)
                for variable in lp.variables():
                    order[variable.index] = float(self._start[int(variable.name[1:])])
                solution.col_value = order
                lp.solverModel.setSolution(solution)
            super().callSolver(lp)

    return StartedHighs
