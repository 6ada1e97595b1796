"""What is being worked out for one service in a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from heteroplace.policy.compiled import CompiledService
from heteroplace.policy.decision import Action
from heteroplace.policy.duration import spoken
from heteroplace.policy.judge import Judged
from heteroplace.policy.ratio import Ratios
from heteroplace.policy.state import Withdrawn

MOST_DOUBLINGS = 60


@dataclass(slots=True)
class Work:
    """One service in one step, from what is known to what is decided.

    Parameters
    ----------
    service
        Its configuration.
    now
        Time of the step, in Unix seconds.
    judged
        Its readings.
    before, counts
        Role -> instances that the targets asked for, and ask for so far.
    running
        Role -> ready and starting instances, in equivalents.
    serving
        Instances of the driving role that serve, in equivalents.
    last_out, last_in
        Time of the last scale-out and scale-in.
    returns, last_return
        How often in a row a broken objective brought instances back, and the last such time.
    ratios
        The ratios in force; a schedule may have set another target.
    action, driver
        As in a decision.
    words
        Parts of its reason.
    withdrawn
        Instances that stay under observation.
    terminate, restore
        Those that end or come back.
    fixed
        Whether a schedule sets the counts.
    floor
        Role -> least instances by a schedule; null when there is no such.
    degraded
        Whether what leaves makes room for services of higher priority.
    held
        Role -> instances whose registration waits.
    held_since
        When the registration gate began to hold instances back.
    """

    service: CompiledService
    now: float
    judged: Judged
    before: dict[str, int]
    counts: dict[str, int]
    running: dict[str, float]
    serving: float
    last_out: float | None
    last_in: float | None
    ratios: Ratios
    returns: int = 0
    last_return: float | None = None
    fixed: bool = False
    floor: dict[str, int] | None = None
    withdrawn: tuple[Withdrawn, ...] = ()
    action: Action = "hold"
    driver: str = ""
    words: list[str] = field(default_factory=list)
    terminate: tuple[Withdrawn, ...] = ()
    restore: tuple[Withdrawn, ...] = ()
    degraded: bool = False
    held: dict[str, int] = field(default_factory=dict)
    held_since: float | None = None

    @property
    def last_action(self) -> float:
        """Time of the last scale action; minus infinity when there was none."""
        out, in_ = self.last_out, self.last_in
        if out is None:
            return float("-inf") if in_ is None else in_
        return out if in_ is None or in_ < out else in_

    def wait_out(self) -> float:
        """Seconds until the cooldown of a scale-out is over; 0 or less when it is."""
        if self.last_out is None:
            return 0.0
        return self.last_out + self.service.config.stability.cooldown_out - self.now

    def wait_in(self) -> float:
        """Seconds until the cooldown of a scale-in is over; 0 or less when it is."""
        return self.last_action + self.service.config.stability.cooldown_in - self.now

    def wait_back(self) -> float:
        """Seconds until a scale-in may be tried again after one was taken back."""
        if self.last_return is None or not self.returns:
            return 0.0
        soft = self.service.config.soft_scale_in
        doubled = soft.backoff * 2.0 ** min(self.returns - 1, MOST_DOUBLINGS)
        return self.last_return + min(doubled, soft.max_backoff) - self.now

    def why_no_scale_in(self) -> str:
        """What forbids to lower anything now, as the end of a sentence; empty when nothing does."""
        if self.judged.faults:
            return "nothing is lowered on missing data"
        if self.withdrawn:
            left = max(each.until for each in self.withdrawn) - self.now
            count = len(self.withdrawn)
            what = "1 instance is" if count == 1 else f"{count} instances are"
            rest = f", for {spoken(left)} more" if left > 0 else ""
            return f"nothing more is lowered while {what} under observation{rest}"
        if self.judged.calm:
            return ""
        for layer in self.service.layers:
            reading = self.judged.good.get(layer.signal.name)
            if reading is not None and reading.value > layer.no_scale_in_above:
                return (
                    f"nothing is lowered while {layer.signal.label} is "
                    f"{reading.value / layer.slo:.2f} times its SLO"
                )
        return ""
