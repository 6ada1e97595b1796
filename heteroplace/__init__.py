"""heteroplace: where every prefill and decode instance goes, provably as well as possible."""

from heteroplace.check import check, evaluate
from heteroplace.errors import InputError
from heteroplace.explain import Explanation, explain
from heteroplace.instance import Instance
from heteroplace.plan import Evaluation, Plan, Result, Violation
from heteroplace.profile import Profile
from heteroplace.session import Session
from heteroplace.solve import solve

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "Explanation",
    "InputError",
    "Instance",
    "Plan",
    "Profile",
    "Result",
    "Session",
    "Violation",
    "check",
    "evaluate",
    "explain",
    "solve",
]
