"""The policies of a service as its configuration states them (paper section 3.2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from heteroplace.errors import InputError
from heteroplace.instance import Count, Name, Noun, PositiveCount, Text
from heteroplace.policy.duration import PositiveDuration
from heteroplace.policy.schedule import check_cron, check_time_zone
from heteroplace.policy.settings import Positive, Share
from heteroplace.quantity import Positive as PositiveRatio


class Throughput(Noun):
    """Proportional control of a throughput: need = value / target.

    Parameters
    ----------
    kind
        ``"throughput"``.
    signal
        A throughput signal.
    role
        The driving role; default the signal's role.
    target
        What one instance of the driving role's preferred shape should carry, in the signal's unit.
        Default: ``load`` times the capacity of that shape.
    load
        Share of the preferred shape's capacity that is the target when ``target`` is not given.
    """

    kind: Literal["throughput"]
    signal: Name = "decode_tps"
    role: Name | None = None
    target: Positive | None = None
    load: Share = 0.8


class Utilization(Noun):
    """Proportional control of a utilization: need = serving instances * value / target.

    Parameters
    ----------
    kind
        ``"utilization"``.
    signal
        A utilization signal.
    role
        The driving role; default the signal's role.
    target
        The utilization to keep, 0 to 1.
    """

    kind: Literal["utilization"]
    signal: Name = "prefill_gpu_util"
    role: Name | None = None
    target: Share


class Tier(Noun):
    """One threshold of the negative feedback.

    Parameters
    ----------
    at
        Share of the SLO, not 1. Above 1 the tier holds from this latency on, below 1 up to it.
    change
        Share by which the driving role grows; negative where ``at`` is below 1.
    """

    at: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False, strict=True)]
    change: Annotated[float, Field(gt=-1, le=10, allow_inf_nan=False, strict=True)]


TIERS = (Tier(at=0.9, change=-0.05), Tier(at=1.1, change=0.1), Tier(at=1.2, change=0.2))


def _check_tiers(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    for index, tier in enumerate(tiers):
        if tier.at == 1 or (tier.at > 1) != (tier.change > 0) or tier.change == 0:
            raise InputError(
                f"tiers[{index}]",
                "must grow (change > 0) above the SLO (at > 1) and shrink (change < 0) below it "
                f"(at < 1); got at {tier.at:g}, change {tier.change:g}",
            )
        if index and (tier.at <= tiers[index - 1].at or tier.change <= tiers[index - 1].change):
            raise InputError(
                f"tiers[{index}]", "must be above the tier before it, in at and in change"
            )
    return tiers


class Feedback(Noun):
    """Negative feedback of a latency in tiers.

    As the only policy it raises and lowers; as a layer over another one it only raises.

    Parameters
    ----------
    kind
        ``"feedback"``.
    signal
        A latency signal.
    role
        The driving role when it is the primary policy; default the signal's role.
    slo
        The latency to keep.
    tiers
        In rising order of ``at``; default 0.9 -> -5 %, 1.1 -> +10 %, 1.2 -> +20 %.
    no_scale_in_above
        As a layer: share of the SLO above which the primary policy may not lower.
    """

    kind: Literal["feedback"] = "feedback"
    signal: Name
    role: Name | None = None
    slo: PositiveDuration
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1), AfterValidator(_check_tiers)] = TIERS
    no_scale_in_above: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False, strict=True)] = 1.0


class Entry(Noun):
    """What holds from a time of the day, week or year on, until the next entry fires.

    Exactly one of ``counts``, ``total``, ``release``, or ``ratio`` alone.

    Parameters
    ----------
    cron
        Five fields (minute, hour, day of month, month, day of week), or six with seconds first.
    counts
        Role -> instances; roles left out follow by the ratio.
    total
        Instances of both roles together, split at the ratio.
    ratio
        Target ratio of the service's first pair of roles while the entry holds.
    release
        True: nothing holds any more.
    """

    cron: Annotated[Text, AfterValidator(check_cron)]
    counts: Annotated[dict[Name, Count], Field(min_length=1)] | None = None
    total: PositiveCount | None = None
    ratio: PositiveRatio | None = None
    release: bool = False


Entries = Annotated[tuple[Entry, ...], Field(min_length=1)]
TimeZone = Annotated[Text, AfterValidator(check_time_zone)]


class Periodic(Noun):
    """Counts by the clock alone.

    Parameters
    ----------
    kind
        ``"periodic"``.
    time_zone
        IANA name, as in ``Asia/Shanghai``.
    entries
        With counts or a total each.
    """

    kind: Literal["periodic"]
    time_zone: TimeZone = "UTC"
    entries: Entries


class Schedule(Noun):
    """Counts by the clock over what the other policies ask.

    Parameters
    ----------
    mode
        ``floor``: at least these counts. ``fixed``: exactly these, whatever the others ask.
    time_zone
        IANA name, as in ``Asia/Shanghai``.
    entries
        What holds and from when.
    """

    mode: Literal["floor", "fixed"] = "floor"
    time_zone: TimeZone = "UTC"
    entries: Entries


Primary = Annotated[Throughput | Utilization | Feedback | Periodic, Field(discriminator="kind")]


class Policy(Noun):
    """How the targets of a service follow its signals and the clock.

    Parameters
    ----------
    primary
        The policy that drives.
    latency
        Layers over the primary that only raise.
    schedules
        Floors and fixed counts by the clock.
    """

    primary: Primary
    latency: tuple[Feedback, ...] = ()
    schedules: tuple[Schedule, ...] = ()
