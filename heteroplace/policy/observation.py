"""Soft scale-in: what happens to the instances under observation."""

from __future__ import annotations

from heteroplace.policy.move import with_restored
from heteroplace.policy.need import SLACK
from heteroplace.policy.words import counts as counted
from heteroplace.policy.words import number
from heteroplace.policy.work import Work


def observe_withdrawn(work: Work) -> None:
    """Bring instances back when an objective breaks; end those whose window is over.

    Without a good reading since they left, nothing says that the objectives hold, so the window
    stays open.
    """
    first = min(each.since for each in work.withdrawn)
    for signal, limit in work.service.slos:
        reading = work.judged.good.get(signal.name)
        if reading is not None and reading.at >= first and reading.value > limit + SLACK:
            unit = f" {signal.unit}" if signal.unit else ""
            _restore(
                work,
                f"{signal.label} of {number(reading.value)}{unit} is above its limit of "
                f"{number(limit)}{unit}",
            )
            return
    over = tuple(each for each in work.withdrawn if each.until <= work.now)
    if not over:
        return
    what = "1 instance" if len(over) == 1 else f"{len(over)} instances"
    if _shown_to_hold(work, max(each.since for each in over)):
        work.terminate, work.returns = over, 0
        work.withdrawn = tuple(each for each in work.withdrawn if each.until > work.now)
        work.words.append(f"the objectives held, so {what} under observation can end")
    else:
        work.words.append(
            f"{what} stay under observation until readings show that the objectives hold"
        )


def _shown_to_hold(work: Work, since: float) -> bool:
    """Whether good readings after a moment, or no load at all, show that the objectives hold."""
    if work.judged.faults:
        return False
    for signal, _ in work.service.slos:
        reading = work.judged.good.get(signal.name)
        if reading is None:
            if not work.judged.idle:
                return False
        elif reading.at < since:
            return False
    return True


def _restore(work: Work, why: str) -> None:
    count = len(work.withdrawn)
    counts = with_restored(work, work.before)
    ratios, role = work.ratios, work.service.driver
    if not ratios.in_band(counts):
        found = ratios.up_from(role, counts[role])
        if found is None:
            found = ratios.down_from(role, counts[role])
        counts = (
            ratios.counts(role, found, at_least=counts) if found is not None else None
        ) or work.before
    high = {name: top for name, (_, top) in ratios.limits.items()}
    counts = {
        name: max(min(value, high[name]), work.before[name]) for name, value in counts.items()
    }
    work.restore, work.withdrawn = work.withdrawn, ()
    work.returns, work.last_return = work.returns + 1, work.now
    work.action, work.driver, work.counts = "out", "observation", counts
    what = "1 instance comes" if count == 1 else f"{count} instances come"
    work.words.append(f"{why}, so {what} back from observation, which gives {counted(counts)}")
