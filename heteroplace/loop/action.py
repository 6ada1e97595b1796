"""The action: what one cycle asks whoever runs the cluster to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from heteroplace.files import refuse_duplicate_keys, validated
from heteroplace.instance import Count, Instance, Name, Noun
from heteroplace.plan import (
    PlacedInstance,
    Plan,
    PlanGroup,
    ProvenStep,
    Result,
    Unmet,
)
from heteroplace.policy.decision import Decision
from heteroplace.policy.state import FleetState, Withdrawn, withdraw

LONGEST_ROLE = 200


class Outlook(Noun):
    """What the plan reaches.

    Parameters
    ----------
    status, solver
        As in a result of ``heteroplace solve``.
    steps
        Value, bound and gap of each step of the objective.
    unmet
        Roles that get less than their target.
    """

    status: Literal["optimal", "feasible"]
    solver: str
    steps: tuple[ProvenStep, ...]
    unmet: tuple[Unmet, ...]


class Action(Noun):
    """What one cycle asks for; it is handed over whole, and its id never stands for anything else.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    id
        Unique over all states and runs.
    sequence
        Number within the state, from 1 on, without gaps.
    at, time
        When it was decided: unix seconds, and the same in ISO 8601.
    decisions
        Of the services the action concerns, with their reasons.
    plan
        The groups that change. ``added`` instances have the names they are to get; ``removed``
        ones are in ``withdraw`` or ``terminate`` as well, which says how they go.
    withdraw
        Take these out of service discovery and let them run.
    terminate
        End these.
    restore
        Put these back into service discovery at once.
    held
        Service -> role -> ready instances whose registration must wait. It replaces what the
        action before said; services that are not named hold none.
    outlook
        What the plan reaches.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    id: Name
    sequence: Annotated[int, Field(ge=1, strict=True)]
    at: float
    time: str
    decisions: tuple[Decision, ...]
    plan: Plan
    withdraw: tuple[Withdrawn, ...] = ()
    terminate: tuple[Withdrawn, ...] = ()
    restore: tuple[Withdrawn, ...] = ()
    held: dict[Name, dict[Name, Count]] = Field(default_factory=dict)
    outlook: Outlook

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "action") -> Action:
        """Parse an action from JSON text.

        Raises
        ------
        InputError
            If the text is not JSON or not an action.
        """
        action = validated(lambda: cls.model_validate_json(text), source)
        refuse_duplicate_keys(text, source)
        return action

    def to_json(self, indent: int | None = None) -> str:
        """Write the action as JSON; equal actions give equal text."""
        return self.model_dump_json(by_alias=True, indent=indent)


def iso(at: float, precision: str = "milliseconds") -> str:
    """Unix seconds as ISO 8601 in UTC, to the ``seconds`` or ``milliseconds``."""
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec=precision)
    except (OverflowError, ValueError, OSError):
        return f"{at:.3f}"


def named(plan: Plan, instance: Instance, sequence: int) -> Plan:
    """Keep the groups of a plan that change, and name what they add.

    A name has the action's number in it, so that it is never given twice and a cluster that shows
    it shows that action.

    Parameters
    ----------
    plan
        As solved; its added instances have no names.
    instance
        What it was solved for; gives the names that are taken.
    sequence
        Number of the action.
    """
    running = {group.name: group for group in instance.running}
    groups = []
    for group in plan.groups:
        if not (group.added or group.removed or group.moved):
            continue
        taken = (
            {str(each.name) for each in running[group.name].instances}
            if group.name in running
            else set()
        )
        groups.append(group.model_copy(update={"added": _named(group, taken, sequence)}))
    return Plan(instance_digest=plan.instance_digest, groups=tuple(groups))


def _named(group: PlanGroup, taken: set[str], sequence: int) -> tuple[PlacedInstance, ...]:
    numbers: Counter[str] = Counter()
    added = []
    for each in group.added:
        while True:
            name = f"{each.role[:LONGEST_ROLE]}-a{sequence}-{numbers[each.role]}"
            numbers[each.role] += 1
            if name not in taken:
                break
        taken.add(name)
        added.append(each.model_copy(update={"name": name}))
    return tuple(added)


def removals(
    plan: Plan, state: FleetState, windows: Mapping[str, float], now: float
) -> tuple[FleetState, tuple[Withdrawn, ...], tuple[Withdrawn, ...]]:
    """Say how what a plan removes goes.

    Parameters
    ----------
    plan
        As solved.
    state
        After the decisions the plan was made for.
    windows
        Service -> seconds of observation; 0: its instances end at once.
    now
        In unix seconds.

    Returns
    -------
    FleetState, withdrawn, ended
        The state to keep; what is observed first; what ends at once.
    """
    withdrawn: list[Withdrawn] = []
    ended: list[Withdrawn] = []
    for group in plan.groups:
        if not group.removed:
            continue
        window = windows.get(group.service, 0.0)
        before = _withdrawn(state, group.service)
        changed = withdraw(
            state, group.service, [(group.name, each) for each in group.removed], now, window
        )
        new = [each for each in _withdrawn(changed, group.service) if each not in before]
        if window > 0:
            state = changed
            withdrawn += new
        else:
            ended += new
    return state, tuple(withdrawn), tuple(ended)


def outlook(result: Result) -> Outlook:
    """Sum a checked result up."""
    status: Literal["optimal", "feasible"] = "optimal" if result.status == "optimal" else "feasible"
    return Outlook(status=status, solver=result.solver, steps=result.steps, unmet=result.unmet)


def _withdrawn(state: FleetState, service: str) -> tuple[Withdrawn, ...]:
    known = state.services.get(service)
    return () if known is None else known.withdrawn
