"""How time grows with the size of an instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field

from heteroplace.bench.environment import environment
from heteroplace.bench.measure import measure_reference, measure_solver
from heteroplace.bench.record import Environment
from heteroplace.errors import InputError
from heteroplace.generate import family_from, generate
from heteroplace.instance import Noun
from heteroplace.plan import Seconds, StopReason
from heteroplace.profile import Profile

SCALES = (0.1, 0.2, 0.4, 0.7, 1.0)
SCALED = ("region", "cycle")
QUANTITIES = ("read", "build", "greedy", "solve", "assign", "total")


class ScalingPoint(Noun):
    """One instance of a family at a scale.

    Parameters
    ----------
    family, scale, seed
        What was generated.
    gpus, services, columns
        Its size; null when it failed.
    phases, seconds
        Seconds by phase and in total, from the instance in memory to the checked plan.
    greedy
        Seconds of the greedy alone, to its checked plan.
    stop_reason
        As in :class:`heteroplace.Result`.
    peak_memory
        Bytes.
    error
        What failed; null when nothing did.
    """

    family: str
    scale: float
    seed: int
    gpus: int | None = None
    services: int | None = None
    columns: int | None = None
    phases: Seconds | None = None
    seconds: float | None = None
    greedy: float | None = None
    stop_reason: StopReason | None = None
    peak_memory: int | None = None
    error: str | None = None

    def of(self, quantity: str) -> float | None:
        """Seconds of one of :data:`QUANTITIES`; null when the time limit cut it short."""
        if quantity == "greedy":
            return self.greedy
        if quantity in ("solve", "total") and self.stop_reason == "time_limit":
            return None
        if quantity == "total":
            return self.seconds
        found: float | None = None if self.phases is None else getattr(self.phases, quantity)
        return found


class Fit(Noun):
    """An exponent p in seconds ~ (n log n)^p, with n the number of GPUs.

    Parameters
    ----------
    family, quantity
        What was fitted.
    exponent
        1 is as n log n; null when there are fewer than two sizes.
    points
        Number of measurements in the fit: without failed ones, and without those that the time
        limit cut short.
    """

    family: str
    quantity: str
    exponent: float | None
    points: int


class ScalingReport(Noun):
    """Time against size.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    kind
        ``scaling``.
    solver, time_limit
        With what, in how many seconds at most.
    isolated
        Whether each measurement had a process of its own.
    environment
        Where.
    points
        By family and scale.
    fits
        By family and quantity.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    kind: Literal["scaling"] = "scaling"
    solver: str
    time_limit: float
    isolated: bool
    environment: Environment
    points: tuple[ScalingPoint, ...] = ()
    fits: tuple[Fit, ...] = ()

    def to_json(self, indent: int | None = 1) -> str:
        """Write the measurements as JSON."""
        return self.model_dump_json(by_alias=True, indent=indent)


def fit_exponent(sizes: Sequence[float], times: Sequence[float]) -> float | None:
    """Fit p in ``times ~ c * (n log n)^p`` by least squares of the logarithms.

    Parameters
    ----------
    sizes
        n of each measurement, above 1.
    times
        Seconds of each measurement; those that are 0 say nothing and are left out.

    Returns
    -------
    float or None
        Null when fewer than two different sizes are left.
    """
    pairs = [(size, time) for size, time in zip(sizes, times, strict=True) if time > 0 and size > 1]
    if len({size for size, _ in pairs}) < 2:
        return None
    x = np.log([size * log(size) for size, _ in pairs])
    y = np.log([time for _, time in pairs])
    return float(np.polyfit(x, y, 1)[0])


def fits(points: Sequence[ScalingPoint]) -> tuple[Fit, ...]:
    """Fit every quantity of every family."""
    found = []
    for family in dict.fromkeys(point.family for point in points):
        for quantity in QUANTITIES:
            pairs = [
                (float(point.gpus), seconds)
                for point in points
                if point.family == family
                and point.gpus is not None
                and (seconds := point.of(quantity)) is not None
            ]
            exponent = fit_exponent([size for size, _ in pairs], [each for _, each in pairs])
            found.append(
                Fit(family=family, quantity=quantity, exponent=exponent, points=len(pairs))
            )
    return tuple(found)


def run_scaling(
    families: Sequence[str] = SCALED,
    scales: Sequence[float] = SCALES,
    *,
    knobs: Mapping[str, object] | None = None,
    seeds: int = 1,
    profile: Profile | None = None,
    isolate: bool = False,
    starting: Callable[[str], None] = lambda label: None,
    done: Callable[[ScalingReport], None] = lambda report: None,
) -> ScalingReport:
    """Measure families at several scales.

    Parameters
    ----------
    families
        Names of families.
    scales
        Values of the knob ``scale``.
    knobs
        Other knobs that differ.
    seeds
        Number of seeds from 0 on.
    profile
        How to solve; default the default profile.
    isolate
        Whether each measurement gets a process of its own.
    starting, done
        Called before each measurement with what it is, and after it, and once at the
        beginning, with everything so far.

    Raises
    ------
    InputError
        If a family or a knob is not known, or ``scale`` is one of the knobs.
    """
    profile = profile or Profile()
    if "scale" in (knobs or {}):
        raise InputError("--set", "cannot turn scale here; name the scales with --scales")
    plan = [
        (family_from(name, {**(knobs or {}), "scale": scale}), name, scale, seed)
        for name in families
        for scale in sorted(set(scales))
        for seed in range(seeds)
    ]
    report = ScalingReport(
        solver=profile.solver,
        time_limit=profile.time_limit or 0.0,
        isolated=isolate,
        environment=environment(),
    )
    done(report)
    points: list[ScalingPoint] = []
    for family, name, scale, seed in plan:
        starting(f"{name} at scale {scale:g}, seed {seed}")
        point = ScalingPoint(family=name, scale=scale, seed=seed)
        try:
            text = generate(family, seed).to_json(None)
            points.append(_measured(point, text, profile, isolate))
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            points.append(point.model_copy(update={"error": message}))
        report = report.model_copy(update={"points": tuple(points), "fits": fits(points)})
        done(report)
    return report


def _measured(point: ScalingPoint, text: str, profile: Profile, isolate: bool) -> ScalingPoint:
    _, size, solver = measure_solver(text, profile, isolate)
    greedy = measure_reference(text, "greedy", profile.time_limit or 1e6, isolate)
    return point.model_copy(
        update={
            "gpus": size.gpus,
            "services": size.services,
            "columns": solver.size.columns,
            "phases": solver.phases,
            "seconds": solver.seconds,
            "greedy": greedy.seconds,
            "stop_reason": solver.stop_reason,
            "peak_memory": solver.peak_memory,
        }
    )
