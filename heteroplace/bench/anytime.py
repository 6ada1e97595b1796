"""What a plan is worth against the time it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from heteroplace.bench.environment import environment
from heteroplace.bench.measure import instance_size, settle, timed_solve
from heteroplace.bench.record import Environment, InstanceSize, StepRecord
from heteroplace.bench.steps import difference, recorded
from heteroplace.errors import InputError
from heteroplace.instance import Instance, Noun
from heteroplace.plan import StopReason
from heteroplace.profile import Profile

DEADLINES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
INSTALL = "matplotlib is not installed; pip install 'heteroplace[bench]'"


class AnytimePoint(Noun):
    """One solve with a deadline.

    Parameters
    ----------
    deadline
        Seconds it was given.
    seconds, overrun
        Seconds it took; beyond the deadline, 0 when it was kept.
    status, stop_reason
        As in :class:`heteroplace.Result`; null when it failed.
    steps
        Value, bound and gap of each step.
    error
        What failed; null when nothing did.
    """

    deadline: float
    seconds: float
    overrun: float
    status: Literal["optimal", "feasible", "invalid"] | None = None
    stop_reason: StopReason | None = None
    steps: tuple[StepRecord, ...] = ()
    error: str | None = None


class Fall(Noun):
    """A plan that is worse than one made in less time.

    Parameters
    ----------
    deadline, earlier
        Of the worse plan, and of the better one before it; seconds.
    step
        The first step in which they differ.
    value, best
        The values there.
    """

    deadline: float
    earlier: float
    step: str
    value: float | None
    best: float | None


class AnytimeReport(Noun):
    """An anytime curve.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    kind
        ``anytime``.
    instance, digest, size
        What was solved.
    solver
        With what.
    environment
        Where.
    points
        By deadline.
    falls
        Where quality fell; empty when it never did.
    worst_overrun, worst_overrun_at
        Most seconds beyond a deadline, and that deadline.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    kind: Literal["anytime"] = "anytime"
    instance: str
    digest: str
    size: InstanceSize
    solver: str
    environment: Environment
    points: tuple[AnytimePoint, ...]
    falls: tuple[Fall, ...]
    worst_overrun: float
    worst_overrun_at: float | None

    def to_json(self, indent: int | None = 1) -> str:
        """Write the curve as JSON."""
        return self.model_dump_json(by_alias=True, indent=indent)


def run_anytime(
    text: str,
    profile: Profile | None = None,
    deadlines: Sequence[float] = DEADLINES,
    *,
    name: str = "instance",
    starting: Callable[[str], None] = lambda label: None,
    done: Callable[[AnytimeReport], None] = lambda report: None,
) -> AnytimeReport:
    """Solve an instance once for each deadline.

    Parameters
    ----------
    text
        The instance as JSON: it is read anew each time, so that no solve profits from another.
    profile
        How to solve, but for the time limit.
    deadlines
        Seconds, above 0.
    name
        Of the instance.
    starting, done
        Called before each solve with what it is, and after it, and once at the
        beginning, with the curve so far.

    Raises
    ------
    InputError
        If the text is not an instance, or there is no deadline.
    """
    if not deadlines:
        raise InputError("deadlines", "must not be empty; name at least one")
    base = profile or Profile()
    instance = Instance.from_json(text, name)
    report = AnytimeReport(
        instance=name,
        digest=instance.digest,
        size=instance_size(instance),
        solver=base.solver,
        environment=environment(),
        points=(),
        falls=(),
        worst_overrun=0.0,
        worst_overrun_at=None,
    )
    done(report)
    points: list[AnytimePoint] = []
    for deadline in sorted(set(deadlines)):
        starting(f"{name}: {deadline:g} s")
        settle()
        points.append(_point(text, name, base, deadline))
        worst = max(points, key=lambda point: point.overrun)
        report = report.model_copy(
            update={
                "points": tuple(points),
                "falls": tuple(falls(points)),
                "worst_overrun": worst.overrun,
                "worst_overrun_at": worst.deadline if worst.overrun else None,
            }
        )
        done(report)
    return report


def _point(text: str, name: str, base: Profile, deadline: float) -> AnytimePoint:
    profile = base.model_copy(update={"time_limit": deadline})
    try:
        result, seconds = timed_solve(Instance.from_json(text, name), profile)
    except Exception as error:
        return AnytimePoint(
            deadline=deadline,
            seconds=0.0,
            overrun=0.0,
            error=f"{type(error).__name__}: {error}",
        )
    return AnytimePoint(
        deadline=deadline,
        seconds=seconds,
        overrun=max(0.0, seconds - deadline),
        status=result.status,
        stop_reason=result.stop_reason,
        steps=recorded(result.steps),
    )


def falls(points: Sequence[AnytimePoint]) -> list[Fall]:
    """Find plans that are worse than one with an earlier deadline.

    Parameters
    ----------
    points
        By deadline.
    """
    found: list[Fall] = []
    best: AnytimePoint | None = None
    for point in points:
        if not point.steps:
            continue
        index, sign = (0, -1) if best is None else difference(point.steps, best.steps)
        if best is None or sign < 0:
            best = point
        elif sign > 0:
            step = point.steps[index]
            found.append(
                Fall(
                    deadline=point.deadline,
                    earlier=best.deadline,
                    step=step.name,
                    value=step.value,
                    best=best.steps[index].value,
                )
            )
    return found


def require_drawing() -> None:
    """Raise :class:`heteroplace.InputError` when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--svg", INSTALL) from None


def draw(report: AnytimeReport) -> str:
    """Draw a curve: value and bound of each step that changes, and seconds used.

    Parameters
    ----------
    report
        The curve.

    Returns
    -------
    str
        An SVG picture.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    require_drawing()
    import io

    import matplotlib
    from matplotlib.figure import Figure

    points = [point for point in report.points if point.steps]
    shown = _moving(points)
    with matplotlib.rc_context({"svg.hashsalt": "heteroplace", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.0, 2.2 * (len(shown) + 1)), layout="constrained")
        axes = figure.subplots(len(shown) + 1, 1, sharex=True, squeeze=False)[:, 0]
        times = [point.deadline for point in points]
        for axis, index in zip(axes, shown, strict=False):
            _draw_step(axis, points, index)
        last = axes[-1]
        last.loglog(times, times, color="0.6", linestyle="--", label="deadline")
        last.loglog(times, [point.seconds for point in points], marker="o", label="used")
        last.set_ylabel("seconds")
        last.set_xlabel("deadline, seconds")
        last.legend()
        # What is not text of ours is not parsed as mathematics either.
        figure.suptitle(
            f"{report.instance}, {report.size.gpus} GPUs, solver {report.solver}",
            parse_math=False,
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _moving(points: Sequence[AnytimePoint]) -> list[int]:
    """Steps of which several values or bounds are known, the last one in any case."""
    if not points:
        return []
    last = len(points[0].steps) - 1

    def moves(index: int) -> bool:
        steps = [point.steps[index] for point in points]
        bounds = {step.bound for step in steps if step.bound is not None}
        return len({step.value for step in steps}) > 1 or len(bounds) > 1

    return [index for index in range(last + 1) if index == last or moves(index)]


def _draw_step(axis: Any, points: Sequence[AnytimePoint], index: int) -> None:
    times = [point.deadline for point in points]
    steps = [point.steps[index] for point in points]
    unknown = float("nan")
    values = [unknown if step.value is None else step.value for step in steps]
    bounds = [unknown if step.bound is None else step.bound for step in steps]
    axis.semilogx(times, values, marker="o", label="value")
    axis.semilogx(times, bounds, marker=".", linestyle=":", label="bound")
    axis.set_ylabel(steps[0].name)
    axis.legend()
