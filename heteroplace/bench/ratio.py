"""Ratios of a reference to the solver under test, and medians of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from statistics import median

from heteroplace.bench.record import Ratio, ReferenceRecord, Relation, SolverRecord
from heteroplace.bench.steps import difference


def compared(reference: ReferenceRecord, solver: SolverRecord) -> ReferenceRecord:
    """Return a reference's record with its ratio and its quality against the solver's.

    The ratio asks how many times as long the reference takes *for what the solver has*: its proof
    when it has one, otherwise its plan. So it is a lower bound when the reference was stopped
    before it had that much, and an upper bound when it has at least that much without the solver
    having a proof.

    Parameters
    ----------
    reference, solver
        On the same instance.
    """
    if reference.seconds is None:
        return reference
    index, sign = 0, 1  # A reference that got nowhere has no steps.
    if reference.steps:
        index, sign = difference(reference.steps, solver.steps)
    relation: Relation = "="
    if reference.outcome != "heuristic":
        if solver.status == "optimal":
            relation = "=" if reference.outcome == "proven" else ">="
        else:
            relation = "<=" if sign <= 0 else ">="
    return reference.model_copy(
        update={
            "ratio": Ratio(value=reference.seconds / max(solver.seconds, 1e-9), relation=relation),
            "quality": {-1: "better", 0: "equal", 1: "worse"}[sign],
            "differs_at": solver.steps[index].name if sign else None,
        }
    )


def median_ratio(ratios: Sequence[Ratio]) -> Ratio | None:
    """Median of ratios of which some are bounds: a true bound of the true median.

    Parameters
    ----------
    ratios
        Of any relation.

    Returns
    -------
    Ratio or None
        Null when there is none, or when the bounds leave nothing to say.
    """
    return _spread(ratios, median)


def least_ratio(ratios: Sequence[Ratio]) -> Ratio | None:
    """Least of ratios of which some are bounds: exact, or a true bound of the true least."""
    return _spread(ratios, min)


def _spread(ratios: Sequence[Ratio], statistic: Callable[[Sequence[float]], float]) -> Ratio | None:
    if not ratios:
        return None
    # Both statistics grow with every ratio, so lower ends give a lower end and upper an upper one.
    low = statistic([0.0 if each.relation == "<=" else each.value for each in ratios])
    high = statistic([inf if each.relation == ">=" else each.value for each in ratios])
    if low == high:
        return Ratio(value=low)
    if low > 0:
        return Ratio(value=low, relation=">=")
    if high < inf:
        return Ratio(value=high, relation="<=")
    return None
