"""The registration gate: newly ready instances of the surplus role wait for the other role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from heteroplace.policy.compiled import CompiledService
from heteroplace.policy.observed import RoleObserved


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
