"""Timers that survive a clock which is set back."""

from __future__ import annotations

from heteroplace.policy.state import FleetState, ServiceState


def rebased(state: FleetState, now: float) -> tuple[FleetState, float]:
    """Move all times of a state when the clock was set back since the last step.

    What had passed of every cooldown and window stays passed, and the rest runs on: a clock that
    is set back neither ends one early nor keeps it from ending.

    Parameters
    ----------
    state
        The state of the last step.
    now
        Time of this step, in Unix seconds.

    Returns
    -------
    tuple of FleetState and float
        The state to work with, and by how many seconds the clock went back.
    """
    if state.at is None or now >= state.at:
        return state, 0.0
    back = state.at - now
    return (
        FleetState(
            at=now,
            services={name: _moved(each, back) for name, each in state.services.items()},
        ),
        back,
    )


def _moved(service: ServiceState, back: float) -> ServiceState:
    def earlier(at: float | None) -> float | None:
        return None if at is None else at - back

    return service.model_copy(
        update={
            "last_out": earlier(service.last_out),
            "last_in": earlier(service.last_in),
            "last_good": earlier(service.last_good),
            "last_return": earlier(service.last_return),
            "held_since": earlier(service.held_since),
            "withdrawn": tuple(
                each.model_copy(update={"since": each.since - back, "until": each.until - back})
                for each in service.withdrawn
            ),
        }
    )
