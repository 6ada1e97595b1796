"""From what is asked to counts: cooldowns, step limits, ratio, limits and the clock."""

from __future__ import annotations

from heteroplace.policy.compiled import Clockwork, Period
from heteroplace.policy.duration import spoken
from heteroplace.policy.need import Ask, primary_ask, with_layers
from heteroplace.policy.ratio import Ratios
from heteroplace.policy.words import counts as counted
from heteroplace.policy.words import instances, joined
from heteroplace.policy.words import ratio as ratio_words
from heteroplace.policy.work import Work


def move(work: Work) -> None:
    """Decide the counts of a service: primary policy, layers, stability, schedules, limits."""
    fixed = floor = None
    for clockwork in work.service.clockwork:
        period = _in_force(work, clockwork)
        if period is None:
            continue
        if period.ratios is not None:
            work.ratios = period.ratios
        if period.counts is None:
            continue
        if clockwork.fixed:
            fixed = (clockwork, period)
        elif floor is None or _driven(work, period) > _driven(work, floor):
            floor = period
    work.fixed = fixed is not None
    if work.service.primary is None:
        _by_clock(work, fixed)
    elif fixed is not None:
        _faults_said(work)
        _fixed(work, *fixed)
    else:
        _by_signals(work, floor)


def _in_force(work: Work, clockwork: Clockwork) -> Period | None:
    index = clockwork.timetable.at(work.now)
    return None if index is None else clockwork.periods[index]


def _driven(work: Work, period: Period) -> int:
    assert period.counts is not None
    return period.counts[work.service.driver]


def _by_signals(work: Work, floor: Period | None) -> None:
    role = work.service.driver
    now_count = work.before[role]
    ask = with_layers(work, primary_ask(work))
    work.driver = ask.driver
    if ask.why:
        work.words.append(ask.why)
    _faults_said(work)
    least, least_why = work.service.least, "the limits ask"
    if floor is not None and _driven(work, floor) >= least:
        least, least_why = _driven(work, floor), f"{floor.words} asks"
        work.floor = floor.counts
    if now_count < least:
        # What the clock or the limits ask for is planned: no cooldown, damping or step limit.
        work.driver = "limits" if work.floor is None else "schedule"
        work.words.append(f"{least_why} for at least {instances(least, role)}")
        _out(work, max(least, min(ask.count, _allowed_out(work, now_count))), None)
    elif ask.count > now_count:
        wait = work.wait_out()
        if wait > 0:
            work.words.append(f"the cooldown of scale-outs runs for {spoken(wait)} more")
        else:
            _out(work, ask.count, work.service.config.stability.max_step_out.most(now_count))
    elif ask.count < now_count and max(ask.count, least) < now_count:
        _in(work, ask, least)
    elif ask.count < now_count:
        work.words.append(f"{least_why} for at least {instances(least, role)}")


def _allowed_out(work: Work, now_count: int) -> int:
    """Most that the cooldown and the step limit let the signals ask for."""
    if work.wait_out() > 0:
        return now_count
    most = work.service.config.stability.max_step_out.most(now_count)
    return work.service.config.roles[work.service.driver].max if most is None else now_count + most


def _out(work: Work, count: int, most: int | None) -> None:
    """Move up to the least count that the ratio and the limits allow, within the step limit."""
    role, ratios = work.service.driver, work.ratios
    now_count = work.before[role]
    limited = count if most is None else min(count, now_count + most)
    found = ratios.up_from(role, limited)
    if found is None or (most is not None and found > now_count + most):
        inside = ratios.down_from(role, limited, now_count + 1)
        found = found if inside is None else inside
    if found is None or found <= now_count:
        high = work.service.config.roles[role].max
        if now_count >= high:
            work.words.append(f"{high} is the most that the limits allow")
        else:
            work.words.append("the limits and the ratio allow no more")
        return
    floor = work.before
    if work.floor is not None:
        floor = {name: max(value, work.floor[name]) for name, value in floor.items()}
    counts = ratios.counts(role, found, at_least=floor)
    assert counts is not None
    if found < count:
        work.words.append(
            "the step limit allows" if limited < count else "the limits and the ratio allow"
        )
        work.words[-1] += f" {found}"
    _accept(work, counts, "out")


def _in(work: Work, ask: Ask, least: int) -> None:
    """Move down to the least count that the need, the ratio and the limits allow."""
    role, ratios = work.service.driver, work.ratios
    now_count = work.before[role]
    why_not = _why_not_lower(work, planned=False)
    if why_not:
        if work.judged.faults:
            work.driver = "data"
        work.words.append(why_not)
        return
    goal = max(ask.count, least)
    most = work.service.config.stability.max_step_in.most(now_count)
    limited = goal if most is None else max(goal, now_count - most)
    found = ratios.up_from(role, limited, now_count - 1)
    if found is None:
        found = ratios.down_from(role, limited, max(least, ask.least))
    if found is None:
        work.words.append("the ratio and the limits allow no fewer")
        return
    counts = ratios.counts(role, found, at_least=work.floor, at_most=work.before)
    assert counts is not None
    if goal > ask.count:
        work.words.append(f"at least {instances(least, role)} must run")
    elif limited > goal:
        work.words.append(f"the step limit allows {found}")
    _accept(work, counts, "in")


def _why_not_lower(work: Work, planned: bool) -> str:
    """What forbids a scale-in now; one that the clock has just asked for needs no cooldown."""
    why_not = work.why_no_scale_in()
    if why_not or planned:
        return why_not
    wait = work.wait_in()
    if wait > 0:
        return f"the cooldown of scale-ins runs for {spoken(wait)} more"
    wait = work.wait_back()
    if wait > 0:
        last = "last scale-in" if work.returns == 1 else f"last {work.returns} scale-ins"
        return f"the {last} broke an objective, so the next one waits for {spoken(wait)} more"
    return ""


def _by_clock(work: Work, fixed: tuple[Clockwork, Period] | None) -> None:
    """Counts of a periodic primary policy, which latency layers may raise."""
    role = work.service.driver
    if fixed is None:
        work.driver = "schedule"
        work.words.append("no entry of the schedule has fired yet")
        _faults_said(work)
        return
    clockwork, period = fixed
    assert period.counts is not None
    planned, now_count = period.counts[role], work.before[role]
    ask = with_layers(work, Ask(planned, "schedule", "", planned))
    if ask.driver != "schedule" and ask.count > max(planned, now_count):
        work.driver = ask.driver
        work.words.append(ask.why)
        _faults_said(work)
        wait = work.wait_out()
        if wait > 0:
            work.words.append(f"the cooldown of scale-outs runs for {spoken(wait)} more")
        else:
            _out(work, ask.count, work.service.config.stability.max_step_out.most(now_count))
        return
    _faults_said(work)
    _fixed(work, clockwork, period)


def _fixed(work: Work, clockwork: Clockwork, period: Period) -> None:
    """Take exactly the counts of a schedule's entry; lowering is as careful as ever."""
    assert period.counts is not None
    wanted, before = period.counts, work.before
    work.driver = "schedule"
    work.words.append(f"{period.words} asks for {counted(wanted)}")
    if wanted == before:
        return
    if any(wanted[role] < count for role, count in before.items()):
        # An entry that has fired since the last action is planned; a return to it later is not.
        why_not = _why_not_lower(work, planned=clockwork.timetable.since > work.last_action)
        if why_not:
            work.words.append(why_not)
            raised = {role: max(count, wanted[role]) for role, count in before.items()}
            if raised == before or not work.ratios.holds(raised):
                return
            wanted = raised
    driver = work.service.driver
    up = wanted[driver] > before[driver] or (
        wanted[driver] == before[driver] and sum(wanted.values()) > sum(before.values())
    )
    _accept(work, dict(wanted), "out" if up else "in")


def _accept(work: Work, counts: dict[str, int], action: str) -> None:
    """Take the counts, and bring back what is under observation when they grow."""
    if action == "out" and work.withdrawn:
        base = with_restored(work, work.before)
        count = len(work.withdrawn)
        what = "1 instance comes" if count == 1 else f"{count} instances come"
        work.words.append(f"{what} back from observation")
        counts = _at_least(work.ratios, work.service.driver, counts, base)
        work.restore, work.withdrawn = work.withdrawn, ()
        if any(work.driver == layer.signal.name for layer in work.service.layers):
            work.returns, work.last_return = work.returns + 1, work.now
    work.action = "out" if action == "out" else "in"
    work.counts = counts
    if len(counts) == 1:
        role, count = next(iter(counts.items()))
        work.words.append(f"{work.before[role]} {role} become {count}")
        return
    ties = work.ratios.ties
    text = (
        work.service.ratio_text
        if work.ratios is work.service.ratios
        else f"ratio {ratio_words(ties[0].target)}"
    )
    verb = (
        "gives"
        if work.ratios.counts(work.service.driver, counts[work.service.driver]) == (counts)
        else "allows"
    )
    work.words.append(f"{text} {verb} {counted(counts)}")


def _at_least(
    ratios: Ratios, role: str, counts: dict[str, int], base: dict[str, int]
) -> dict[str, int]:
    """Counts inside the band that are at least ``counts``, and at least ``base`` if possible."""
    both = {name: max(count, base[name]) for name, count in counts.items()}
    if ratios.holds(both):
        return both
    found = ratios.up_from(role, both[role])
    if found is None:
        return counts
    return ratios.counts(role, found, at_least=both) or counts


def with_restored(work: Work, counts: dict[str, int]) -> dict[str, int]:
    """Counts with what is under observation, in whole instances of the preferred shapes."""
    added = dict.fromkeys(counts, 0.0)
    for each in work.withdrawn:
        if each.role in added:
            equivalent = work.service.equivalents[each.role].get(each.shape)
            added[each.role] += 1.0 if equivalent is None else float(equivalent)
    return {role: count + -int(-added[role] // 1) for role, count in counts.items()}


def _faults_said(work: Work) -> None:
    if work.judged.faults:
        faults = list(work.judged.faults.values())
        shown = faults[:3] + ([f"{len(faults) - 3} more like these"] if len(faults) > 3 else [])
        work.words.append(joined(shown))
