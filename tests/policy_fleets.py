"""A small fleet that the tests of the policies change to their needs, and one step of it."""

from fractions import Fraction

from heteroplace.policy import (
    Fleet,
    FleetState,
    Reading,
    RoleObserved,
    ServiceState,
    Snapshot,
    decide,
)

NOW = 1_760_000_000.0
SHAPE = {"name": "x4", "pods": [{"gpu_type": "H20", "gpus": 4}]}
# No damping, cooldowns or step limits: what is tested is added.
PLAIN = {
    "cooldown_out": 0,
    "cooldown_in": 0,
    "damping": 1,
    "max_step_out": {},
    "max_step_in": {},
}
THROUGHPUT = {"kind": "throughput", "signal": "decode_tps", "target": 100}


def service(name="chat", **changes):
    """A service of two roles at 1:1 (band 1/2 to 2), driven by decode throughput."""
    made = {
        "name": name,
        "roles": {
            "prefill": {"min": 1, "max": 40, "shapes": [SHAPE]},
            "decode": {"min": 1, "max": 40, "shapes": [SHAPE]},
        },
        "ratios": [{"target": 1, "min": "1/2", "max": 2}],
        "policy": {"primary": THROUGHPUT},
        "stability": PLAIN,
        "soft_scale_in": {"window": 0},
    }
    return made | changes


def fleet(*services, **changes):
    """A fleet of the given services; one plain one if none is given."""
    return Fleet.from_dict({"schema": 1, "services": list(services) or [service()], **changes})


def readings(values, at=NOW):
    """Readings by signal, all taken at one moment unless a value brings its own."""
    return {
        name: value if isinstance(value, Reading) else Reading(value, at)
        for name, value in values.items()
    }


def serving(counts, registered=None):
    """What runs when every instance is ready."""
    return {
        role: RoleObserved(
            ready=Fraction(count),
            registered=Fraction(count if registered is None else registered[role]),
        )
        for role, count in counts.items()
    }


def state_of(counts, at=NOW - 30, name="chat", **changes):
    """The state after a step that asked for these counts."""
    return FleetState(at=at, services={name: ServiceState(counts=counts, **changes)})


def step(made, counts, values, *, now=NOW, running=None, state=None, **remembered):
    """One step of a fleet of one service, and its decision."""
    name = made.services[0].name
    snapshot = Snapshot(now, {name: readings(values, now)})
    state = state_of(counts, now - 30, name, **remembered) if state is None else state
    observed = {name: serving(counts) if running is None else running}
    done = decide(made, state, snapshot, observed)
    return done.decisions[0], done.state
