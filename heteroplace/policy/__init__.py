"""Scaling policies: from metrics to the targets of a placement (docs/policies.md)."""

from heteroplace.policy.assemble import assemble, free_gpus, observe
from heteroplace.policy.cluster import Cluster
from heteroplace.policy.decide import decide
from heteroplace.policy.decision import Decision, Step
from heteroplace.policy.fleet import Fleet
from heteroplace.policy.observed import Observed, RoleObserved
from heteroplace.policy.readings import Problem, Reading, Snapshot, Source
from heteroplace.policy.signals import STANDARD, Signal
from heteroplace.policy.state import FleetState, ServiceState, Withdrawn, withdraw

__all__ = [
    "STANDARD",
    "Cluster",
    "Decision",
    "Fleet",
    "FleetState",
    "Observed",
    "Problem",
    "Reading",
    "RoleObserved",
    "ServiceState",
    "Signal",
    "Snapshot",
    "Source",
    "Step",
    "Withdrawn",
    "assemble",
    "decide",
    "free_gpus",
    "observe",
    "withdraw",
]
