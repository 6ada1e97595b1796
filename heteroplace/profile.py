"""How to solve: the solver profile."""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from heteroplace.errors import InputError
from heteroplace.files import parse_toml, read_bytes, validated
from heteroplace.instance import Name, Noun

SolverName = Literal["auto", "greedy", "greedy-pods", "cpsat", "milp", "highs"]


TimeLimit = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None


def _unlimited(value: object) -> object:
    """TOML has no null: ``inf`` is no limit."""
    return None if value == math.inf else value


class Profile(Noun):
    """How to solve; loads from TOML.

    Parameters
    ----------
    solver
        ``auto``, ``greedy``, ``greedy-pods``, ``cpsat`` (OR-tools), ``milp`` (PuLP), ``highs``.
    engine
        Engine of ``milp`` by PuLP's name, as in ``HiGHS`` (the default) or ``GUROBI``; ``CBC`` is
        short for ``COIN_CMD``, with the CBC that PuLP ships where there is no other.
    time_limit
        Seconds for the whole solve, model building included; null or ``inf`` for none.
    threads
        Threads of the engine; null for the solver's own choice.
    seed
        Seed of the engine.
    deterministic
        Same seed and profile give the same plan, as long as the time limit does not cut in.
    """

    solver: SolverName = "auto"
    engine: Name | None = None
    time_limit: Annotated[TimeLimit, BeforeValidator(_unlimited)] = 30.0
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    deterministic: bool = False

    @model_validator(mode="after")
    def _engine_of_milp(self) -> Self:
        if self.engine is not None and self.solver != "milp":
            raise InputError("engine", f"is for solver milp, not {self.solver}; drop one of them")
        return self

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile from a TOML file.

        Raises
        ------
        InputError
            If the file cannot be read, is not TOML or not a profile.
        """
        data = parse_toml(read_bytes(path, 2**20), str(path))
        return validated(lambda: cls.model_validate(data), str(path))
