"""How careful a service's policies are: stability, age of data, soft scale-in, registration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from heteroplace.instance import Name, Noun, PositiveCount
from heteroplace.policy.duration import Duration, PositiveDuration

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)]
Tolerance = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
Growth = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False, strict=True)]


class StepLimit(Noun):
    """Most that the driving role moves in one step; the tighter of the two holds.

    One instance is always allowed.

    Parameters
    ----------
    instances
        In instances; null for no such limit.
    share
        As a share of the instances that the targets ask for now; null for no such limit.
    """

    instances: PositiveCount | None = None
    share: Growth | None = None

    def most(self, count: int) -> int | None:
        """Most instances that one step may add to or take from ``count``; null for no limit."""
        limits = []
        if self.instances is not None:
            limits.append(self.instances)
        if self.share is not None:
            limits.append(max(1, int(self.share * count + 1e-9)))
        return min(limits) if limits else None


class Stability(Noun):
    """What keeps the targets from flapping.

    Parameters
    ----------
    cooldown_out
        Least time from one scale-out to the next.
    cooldown_in
        Least time from any scale action to a scale-in.
    theta_out, theta_in
        Hysteresis of the proportional policies: out when need / now > 1 + ``theta_out``, in when
        need / now < 1 - ``theta_in``.
    damping
        Share of the way from now to the need that one step of a proportional policy goes.
    max_step_out, max_step_in
        Most that one step adds or takes.
    """

    cooldown_out: Duration = 60.0
    cooldown_in: Duration = 300.0
    theta_out: Tolerance = 0.1
    theta_in: Tolerance = 0.1
    damping: Share = 0.8
    max_step_out: StepLimit = StepLimit(share=1.0)
    max_step_in: StepLimit = StepLimit(share=0.25)


class Age(Noun):
    """Which readings are too old or too new to be used.

    Parameters
    ----------
    max_age
        Oldest reading that is used.
    max_ahead
        How far the clock of a reading may be ahead of the step's.
    """

    max_age: PositiveDuration = 90.0
    max_ahead: Duration = 5.0


class SoftScaleIn(Noun):
    """How a scale-in is tried out before it is final.

    Parameters
    ----------
    window
        How long instances that left service discovery keep running; 0 ends them at once.
    limits
        Latency or utilization signal -> highest value at which the objective holds. Default: the
        SLOs of the service's feedback policies.
    backoff
        After instances came back because an objective broke: how long signals lower nothing.
        Doubled for each further time in a row.
    max_backoff
        Longest that the doubling makes it.
    """

    window: Duration = 300.0
    limits: dict[Name, Positive] = Field(default_factory=dict)
    backoff: Duration = 600.0
    max_backoff: Duration = 7200.0


class Registration(Noun):
    """When newly ready instances of a role wait for the other role.

    Parameters
    ----------
    gate
        Whether they wait at all.
    tolerance
        How far beyond its band, as a share, the ratio of serving instances may be.
    max_wait
        Longest that the gate holds instances back while the other role does not catch up.
    """

    gate: bool = True
    tolerance: Tolerance = 0.1
    max_wait: Duration = 1800.0


class Maintenance(Noun):
    """How counts return to their ratio when no policy moves them.

    Parameters
    ----------
    drift
        Return when the ratio is out of its band, or further than this share from its target.
    max_step
        Most that a role moves in one step.
    """

    drift: Tolerance = 0.15
    max_step: StepLimit = StepLimit(instances=2)


class Degradation(Noun):
    """What happens when the cluster has too few GPUs.

    Parameters
    ----------
    enabled
        Whether services of low priority shrink, never below their ``min``, for those of higher
        priority.
    """

    enabled: bool = True
