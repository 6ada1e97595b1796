"""OR-tools CP-SAT."""

from __future__ import annotations

import time
from math import ceil, ulp
from typing import Any

import numpy as np

from heteroplace.formulation.program import INFINITE, Arrays, Ints, ProgramStep
from heteroplace.profile import Profile
from heteroplace.solve.engine import (
    Answer,
    Caps,
    EngineMissingError,
    Relaxation,
    Steps,
    merged,
    within,
)

WORKERS = 8


def _cp_model() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise EngineMissingError("OR-tools is not installed; pip install ortools") from None
    return cp_model


class CpSatEngine:
    """Engine ``cpsat``: integer arithmetic, so what it proves holds exactly."""

    polishes = False
    polishes_on = False
    name = "CP-SAT"

    def load(self, arrays: Arrays, profile: Profile) -> None:
        """Take the rows and bounds; the model is built at the first step that needs it."""
        self._arrays = arrays
        self._profile = profile
        self._caps: list[tuple[ProgramStep, int]] = []
        self._model: Any = None
        _cp_model()

    def improve(
        self, steps: Steps, caps: Caps, start: Ints | None, seconds: float | None
    ) -> list[Ints]:
        """Minimise a weighted sum of steps without proof."""
        found = self.minimise(merged(steps, self._arrays), caps, start, seconds).solution
        return [] if found is None else [found]

    def relax(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Relaxation | None:
        """No bound of its own: CP-SAT's proofs stay independent of floating-point solvers."""
        return None

    def sharpen(self, step: ProgramStep, x: Ints, seconds: float | None) -> int | None:
        """No bound of its own."""
        return None

    def minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        """Minimise a step."""
        answer = within(seconds, lambda: self._minimise(step, caps, start, seconds))
        if answer is None:
            self._model = None  # The thread that was left behind may still use it.
        return answer or Answer(None, None)

    def _minimise(
        self, step: ProgramStep, caps: Caps, start: Ints | None, seconds: float | None
    ) -> Answer:
        began = time.monotonic()
        cp_model = _cp_model()
        model, columns = self._built(caps)
        model.minimize(_expression(cp_model, columns, step.columns, step.coefficients))
        model.clear_hints()
        if start is not None:
            for column, value in zip(columns, start.tolist(), strict=True):
                model.add_hint(column, value)
        solver = cp_model.CpSolver()
        if seconds is not None:
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                return Answer(None, None)
            solver.parameters.max_time_in_seconds = left
        solver.parameters.random_seed = self._profile.seed
        solver.parameters.num_workers = self._profile.threads or WORKERS
        solver.parameters.interleave_search = self._profile.deterministic
        solver.parameters.catch_sigint_signal = False  # Ctrl-C belongs to the caller
        status = solver.solve(model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            # Stopped before it had a solution, CP-SAT reports 0, which is no bound.
            return Answer(None, None)
        found = np.array(solver.response_proto.solution, np.int64)
        if status == cp_model.OPTIMAL:
            return Answer(found, step.lower(int(step.coefficients @ found[step.columns])))
        return Answer(found, step.lower(_whole(solver.best_objective_bound)))

    def _built(self, caps: Caps) -> tuple[Any, list[Any]]:
        cp_model = _cp_model()
        known = len(self._caps)
        if self._model is None or list(caps[:known]) != self._caps:
            self._caps, known = [], 0
            arrays = self._arrays
            model = cp_model.CpModel()
            columns = [
                model.new_int_var(low, high, "")
                for low, high in zip(arrays.lower.tolist(), arrays.upper.tolist(), strict=True)
            ]
            starts = arrays.starts.tolist()
            for row, (low, high) in enumerate(
                zip(arrays.row_lower.tolist(), arrays.row_upper.tolist(), strict=True)
            ):
                part = slice(starts[row], starts[row + 1])
                self._add(
                    model, columns, arrays.columns[part], arrays.coefficients[part], low, high
                )
            self._model = (model, columns)
        model, columns = self._model
        for step, value in caps[known:]:
            top = step.top(value)
            self._add(model, columns, step.columns, step.coefficients, -INFINITE, top)
            self._caps.append((step, value))
        return model, columns

    def _add(
        self, model: Any, columns: list[Any], index: Ints, values: Ints, low: int, high: int
    ) -> None:
        expression = _expression(_cp_model(), columns, index, values)
        model.add_linear_constraint(expression, low, high)


def _whole(bound: float) -> int:
    """The integer bound behind a floating-point one, which above 2**53 may have been rounded up."""
    return ceil(bound - max(1e-6, 2 * ulp(bound)))


def _expression(cp_model: Any, columns: list[Any], index: Ints, values: Ints) -> Any:
    return cp_model.LinearExpr.weighted_sum(
        [columns[column] for column in index.tolist()], values.tolist()
    )
