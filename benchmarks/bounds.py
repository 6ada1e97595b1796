"""What the relaxation of the last step misses: `python benchmarks/bounds.py --help`.

Every seed is solved for a while; with the steps before at the values reached, the last step is then
relaxed: wholly, with the counts of the services whole, and with the shared columns (flows of blocks
and packing of cells) whole. What the relaxation has below the value is what a proof must close.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from heteroplace import Profile, solve
from heteroplace.formulation import build
from heteroplace.formulation.program import Arrays, Flags, ProgramStep
from heteroplace.generate import FAMILIES, family_from, generate
from heteroplace.quantity import parse_number
from heteroplace.solve.highs import make_model
from heteroplace.topology import TreeView


def bound(
    arrays: Arrays,
    caps: list[tuple[ProgramStep, int]],
    step: ProgramStep,
    whole: Flags,
    limit: float,
) -> float:
    """Bound of a step where some columns are whole, without its constant, in its units."""
    import highspy

    solver, scale = make_model(arrays, caps, step, Profile(), limit)
    kinds = highspy.HighsVarType
    number = len(whole)
    solver.changeColsIntegrality(
        number,
        np.arange(number, dtype=np.int32),
        [kinds.kInteger if each else kinds.kContinuous for each in whole.tolist()],
    )
    solver.run()
    info = solver.getInfo()
    found = info.mip_dual_bound if whole.any() else info.objective_function_value
    return float(found) / scale


def main() -> None:
    """Print a table in Markdown, a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="?", default="cycle", choices=sorted(FAMILIES))
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--seeds", type=int, default=5, help="seeds from 0 on, default 5")
    parser.add_argument("--time-limit", type=float, default=30.0, help="for each, default 30")
    arguments = parser.parse_args()
    turned = [pair.partition("=") for pair in arguments.set]
    family = family_from(arguments.family, {name: value for name, _, value in turned})
    lines = [
        "| seed | what is fixed | relaxation | services whole | shared whole | value | proven |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for seed in range(arguments.seeds):
        instance = generate(family, seed)
        result = solve(instance, Profile(time_limit=arguments.time_limit))
        program = build(TreeView(instance), None).program
        arrays, steps = program.arrays(), program.steps
        values = [
            round(parse_number(step.value) / each.unit)
            for step, each in zip(result.steps, steps, strict=True)
        ]
        caps = [
            (step, value)
            for step, value in zip(steps[:-1], values, strict=False)
            if len(step.columns)
        ]
        last = steps[-1]
        owned = arrays.owner >= 0
        found = [
            bound(arrays, caps, last, whole, arguments.time_limit) * float(last.unit)
            for whole in (np.zeros(len(owned), bool), owned, ~owned)
        ]
        constant = float(last.constant * last.unit)
        cells = [
            f"{each:.1f}" for each in (constant, *found, float(values[-1] * last.unit) - constant)
        ]
        proven = "yes" if result.status == "optimal" else f"bound {result.steps[-1].bound}"
        lines.append(f"| {seed} | {' | '.join(cells)} | {proven} |")
        sys.stderr.write(lines[-1] + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
