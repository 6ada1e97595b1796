"""What the policies remember from step to step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from heteroplace.files import refuse_duplicate_keys, validated
from heteroplace.instance import Count, Name, Noun

if TYPE_CHECKING:
    from heteroplace.plan import PlacedInstance

Moment = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False, strict=True)]


class Withdrawn(Noun):
    """An instance under observation: out of service discovery, still running.

    Parameters
    ----------
    service, group, name, role, shape, nodes
        Which instance it is; ``nodes`` as in a running instance.
    since, until
        The observation window, in Unix seconds.
    """

    service: Name
    group: Name
    name: Name
    role: Name
    shape: Name
    nodes: tuple[Name, ...] = ()
    since: Moment
    until: Moment


class ServiceState(Noun):
    """What is remembered of one service.

    Parameters
    ----------
    counts
        Role -> instances that the targets ask for.
    last_out, last_in
        Time of the last scale-out and scale-in, in Unix seconds; null when there was none.
    last_good
        When all readings that the service's policies need were last good.
    withdrawn
        Instances under observation.
    returns, last_return
        How often in a row a broken objective brought instances back, and the last such time.
    degraded
        Whether instances that a degradation took from the counts still run.
    held, held_since
        Role -> ready instances whose registration waits, and since when there are such.
    """

    counts: dict[Name, Count]
    last_out: Moment | None = None
    last_in: Moment | None = None
    last_good: Moment | None = None
    withdrawn: tuple[Withdrawn, ...] = ()
    returns: Count = 0
    last_return: Moment | None = None
    degraded: bool = False
    held: dict[Name, Count] = Field(default_factory=dict)
    held_since: Moment | None = None


class FleetState(Noun):
    """What is remembered of a fleet; plain data, to be kept before a step's decisions are acted on.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    at
        Time of the last step, in Unix seconds; null before the first.
    services
        By name.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    at: Moment | None = None
    services: dict[Name, ServiceState] = Field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "state") -> FleetState:
        """Parse a state.

        Raises
        ------
        InputError
            If the text is not JSON or not a state.
        """
        state = validated(lambda: cls.model_validate_json(text), source)
        refuse_duplicate_keys(text, source)
        return state

    def to_json(self, indent: int | None = None) -> str:
        """Write the state as JSON that :meth:`from_json` reads back to an equal state."""
        return self.model_dump_json(by_alias=True, indent=indent)


def withdraw(
    state: FleetState,
    service: str,
    instances: Iterable[tuple[str, PlacedInstance]],
    now: float,
    window: float,
) -> FleetState:
    """Put the instances that a plan removes under observation.

    They leave service discovery and keep running until ``now + window``; a later step says which
    of them end and which come back. An instance that is already under observation stays as it is.

    Parameters
    ----------
    state
        The state of the step that the plan was made for.
    service
        Service name.
    instances
        (Name of the group, instance) of each.
    now
        In Unix seconds.
    window
        Seconds.
    """
    known = state.services.get(service, ServiceState(counts={}))
    under = {(each.group, each.name) for each in known.withdrawn}
    added = tuple(
        Withdrawn(
            service=service,
            group=group,
            name=str(each.name),
            role=each.role,
            shape=each.shape,
            nodes=tuple(pod.node for pod in each.pods),
            since=now,
            until=now + window,
        )
        for group, each in instances
        if (group, each.name) not in under
    )
    if not added:
        return state
    changed = known.model_copy(update={"withdrawn": known.withdrawn + added})
    return state.model_copy(update={"services": {**state.services, service: changed}})
