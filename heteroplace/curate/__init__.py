"""Curation of a service's policy (Algorithm 1 of HeteroScale): test, simulate, choose.

``pressure_test`` finds the best split and the expected metrics, ``curate`` simulates every
candidate policy with them and chooses; docs/simulate.md shows both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heteroplace.curate.choose import Candidate, Curation, curate
    from heteroplace.curate.pressure import Pressure, Split, pressure_test

_HOME = {
    **dict.fromkeys(("Candidate", "Curation", "curate"), "choose"),
    **dict.fromkeys(("Pressure", "Split", "pressure_test"), "pressure"),
}

__all__ = ["Candidate", "Curation", "Pressure", "Split", "curate", "pressure_test"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
