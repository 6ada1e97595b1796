"""Ratio maintenance: counts that have drifted return to their ratio step by step."""

from __future__ import annotations

from heteroplace.policy.words import counts as counted
from heteroplace.policy.words import percent, ratio
from heteroplace.policy.work import Work


def maintain(work: Work) -> None:
    """Move the counts of a service that holds a step towards its ratio and limits.

    The driving role keeps its count, as near as the band allows; the others move by the
    configured step at most, so a return takes several steps.
    """
    ratios, before = work.ratios, work.before
    if work.fixed or work.judged.faults or work.service.settled(ratios, before):
        return
    config = work.service.config.maintenance
    inside = ratios.holds(before)
    drift = ratios.drift(before)
    driver = work.service.driver
    aim = ratios.nearest(driver, before[driver])
    goal = None if aim is None else ratios.counts(driver, aim, at_least=work.floor)
    if goal is None or goal == before or (inside and ratios.drift(goal) >= drift):
        return
    grow = work.wait_out() <= 0
    shrink = max(work.wait_in(), work.wait_back()) <= 0 and not work.why_no_scale_in()
    moved = {}
    for role, count in before.items():
        most = config.max_step.most(count)
        step = goal[role] - count
        if most is not None:
            step = max(-most, min(most, step))
        moved[role] = count + (step if (grow if step > 0 else shrink) else 0)
    if moved == before:
        return
    if inside and not ratios.holds(moved):
        if not (grow and shrink):
            return
        moved = goal
    if any(bool(count) != any(moved.values()) for count in moved.values()):
        return
    if not ratios.in_band(before):
        off = "out of the band of the ratio"
    elif not inside:
        off = "outside the limits with the ratio"
    else:
        off = f"{percent(drift)} off the ratio"
    target = f" {ratio(ratios.ties[0].target)}" if ratios.ties else ""
    work.action, work.driver, work.counts = "rebalance", "ratio", moved
    work.words.append(f"{counted(before)} are {off}{target}; the next step is {counted(moved)}")
