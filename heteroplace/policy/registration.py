"""The registration gate: newly ready instances of the surplus role wait for the other role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from heteroplace.policy.compiled import CompiledService
from heteroplace.policy.duration import spoken
from heteroplace.policy.observed import RoleObserved
from heteroplace.policy.words import instances, joined
from heteroplace.policy.work import Work


def gate(work: Work, running: Mapping[str, RoleObserved], since: float | None) -> None:
    """Hold back what :func:`held` says, for as long as the configuration lets the gate.

    Parameters
    ----------
    work
        The service; changed in place.
    running
        What runs of each role.
    since
        When the gate began to hold instances back, in Unix seconds; null when it does not.
    """
    waiting = held(work.service, running)
    if not waiting:
        return
    work.held_since = work.now if since is None else since
    count = sum(waiting.values())
    what = joined(instances(each, role) for role, each in waiting.items())
    waited, longest = work.now - work.held_since, work.service.config.registration.max_wait
    if waited < longest:
        work.held = waiting
        verb = "waits" if count == 1 else "wait"
        work.words.append(f"{what} {verb} to register until the ratio allows it")
    else:
        work.words.append(
            f"{what} may register although the ratio does not allow it, for it has not allowed it "
            f"for {spoken(waited)}"
        )


def held(service: CompiledService, running: Mapping[str, RoleObserved]) -> dict[str, int]:
    """Role -> ready instances that must not register in service discovery yet.

    An instance that is registered stays so, and the first one of each role registers in any case
    as soon as all roles have a ready one, or the service could never start.

    Parameters
    ----------
    service
        The service.
    running
        What runs of each role.
    """
    config = service.config.registration
    if not config.gate or not service.ratios.ties:
        return {}
    waiting = {role: each for role, each in running.items() if each.registered < each.ready}
    if not waiting:
        return {}
    ready = {role: each.ready for role, each in running.items()}
    complete = all(ready.get(role, 0) >= 1 for role in service.roles)
    allowed = {role: ready.get(role, Fraction(0)) for role in service.roles}
    more = Fraction(config.tolerance).limit_denominator(10**6) + 1
    # A role held back may hold back the next one, so go round until nothing changes.
    for _ in service.roles:
        for tie in service.ratios.ties:
            upper, lower = allowed[tie.numerator], allowed[tie.denominator]
            allowed[tie.numerator] = min(upper, tie.high * more * lower)
            if tie.low:
                allowed[tie.denominator] = min(lower, upper * more / tie.low)
    found = {}
    for role, each in waiting.items():
        serve = max(allowed[role], Fraction(1 if complete else 0))
        count = min(math.ceil(each.ready - serve), math.floor(each.ready - each.registered))
        if count > 0:
            found[role] = count
    return found
