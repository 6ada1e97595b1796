"""The problem as a solver-neutral integer program that counts instead of naming."""

from heteroplace.formulation.build import build, extract, hint
from heteroplace.formulation.program import Program
from heteroplace.formulation.variables import Model

__all__ = ["Model", "Program", "build", "extract", "hint"]
