"""One measurement: the solver under test, or a reference, on one instance."""

from __future__ import annotations

import contextlib
import gc
import importlib
import threading
import time

from heteroplace.bench.isolation import isolated
from heteroplace.bench.memory import PeakMemory
from heteroplace.bench.record import InstanceSize, ReferenceRecord, SolverRecord
from heteroplace.bench.references import run_reference
from heteroplace.bench.steps import recorded
from heteroplace.bench.suite import ReferenceName
from heteroplace.instance import Instance
from heteroplace.plan import Result
from heteroplace.profile import Profile
from heteroplace.solve import solve
from heteroplace.topology import TreeView

ENGINES = ("highspy", "ortools.sat.python.cp_model", "pulp")
LEFT_BEHIND = "heteroplace-engine"
PATIENCE = 60.0

Measured = tuple[str, InstanceSize, SolverRecord]


def measure_solver(text: str, profile: Profile, isolate: bool = False) -> Measured:
    """Read and solve an instance with the solver under test.

    Parameters
    ----------
    text
        The instance as JSON.
    profile
        How to solve it; has a time limit.
    isolate
        Whether to do so in a process of its own.

    Returns
    -------
    digest : str
        Of the instance.
    size : InstanceSize
        Of the instance.
    record : SolverRecord
        What was measured.

    Raises
    ------
    RuntimeError
        If the process of an isolated measurement fails.
    """
    if isolate:
        return isolated(_measure_solver, text, profile, True)
    return _measure_solver(text, profile, False)


def measure_reference(
    text: str, name: ReferenceName, time_limit: float, isolate: bool = False
) -> ReferenceRecord:
    """Run a reference on an instance; whatever goes wrong is in the record.

    Parameters
    ----------
    text
        The instance as JSON.
    name
        Which reference.
    time_limit
        Seconds in total.
    isolate
        Whether to run it in a process of its own.
    """
    if not isolate:
        return _measure_reference(text, name, time_limit)
    try:
        return isolated(_measure_reference, text, name, time_limit)
    except RuntimeError as error:
        return ReferenceRecord(
            name=name, outcome="failed", message=str(error), time_limit=time_limit
        )


def _measure_solver(text: str, profile: Profile, fresh: bool) -> Measured:
    settle()
    memory = PeakMemory(fresh)
    began = time.monotonic()
    instance = Instance.from_json(text)
    read = time.monotonic() - began
    result, seconds = timed_solve(instance, profile)
    peak = memory.bytes()
    limit = profile.time_limit or seconds
    record = SolverRecord(
        status=result.status,
        stop_reason=result.stop_reason,
        engine=result.engine,
        notes=result.notes,
        time_limit=limit,
        seconds=seconds,
        overrun=max(0.0, seconds - limit),
        phases=result.seconds.model_copy(update={"read": read}),
        size=result.size,
        steps=recorded(result.steps),
        peak_memory=peak,
        isolated=fresh,
    )
    return instance.digest, instance_size(instance), record


def _measure_reference(text: str, name: ReferenceName, time_limit: float) -> ReferenceRecord:
    settle()
    return run_reference(name, Instance.from_json(text), time_limit)


def timed_solve(instance: Instance, profile: Profile) -> tuple[Result, float]:
    """Solve an instance; the result and its seconds from memory to the checked plan."""
    gc.collect()
    began = time.monotonic()
    result = solve(instance, profile)
    return result, time.monotonic() - began


def settle() -> None:
    """Import the engines and let what an earlier solve left behind end: neither is measured."""
    for name in ENGINES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for thread in threading.enumerate():
        if thread.name == LEFT_BEHIND:
            thread.join(PATIENCE)


def instance_size(instance: Instance) -> InstanceSize:
    """Count what is in an instance."""
    return InstanceSize(
        nodes=len(instance.nodes),
        gpus=sum(node.gpus for node in instance.nodes),
        free_gpus=sum(TreeView(instance).free),
        services=len(instance.services),
        running_groups=len(instance.running),
        running_instances=instance.running_instances,
    )
