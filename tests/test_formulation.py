"""The integer program says what the evaluator says, and its parts are exact."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import chain, pairwise, product
from math import gcd
from typing import Any

import numpy as np
import pytest
from ortools.sat.python import cp_model
from strategies import random_instance

from heteroplace import Instance, Plan, Profile, check, evaluate, solve
from heteroplace.decision import Decision
from heteroplace.formulation import Model, build, extract, hint
from heteroplace.formulation.constraints import _bands, _distinct, _most_added
from heteroplace.formulation.hull import Change, Hull, reachable
from heteroplace.formulation.packing import Pool, is_chain
from heteroplace.formulation.program import INFINITE, BlockList, LateError, Program
from heteroplace.formulation.state import RunningState
from heteroplace.formulation.variables import Candidate, _copies
from heteroplace.solve.cpsat import CpSatEngine
from heteroplace.solve.engine import UnsuitedError, walk_steps
from heteroplace.solve.greedy import greedy
from heteroplace.solve.highs import HighsEngine
from heteroplace.topology import TreeView

Values = tuple[Fraction, ...]

BLOCKS = 12
PER_BLOCK = 20


@cache
def case(seed: int) -> tuple[Instance, TreeView, Model]:
    instance = random_instance(random.Random(seed), "small" if seed % 2 else "tiny")
    tree = TreeView(instance)
    return instance, tree, build(tree)


def seeds(block: int) -> range:
    return range(5000 + PER_BLOCK * block, 5000 + PER_BLOCK * (block + 1))


def program_values(model: Model, x: Any) -> Values:
    return tuple(step.unit * step.value(x) for step in model.program.steps)


def judged(instance: Instance, tree: TreeView, decision: Decision) -> tuple[Plan, Values]:
    plan = decision.plan(tree)
    assert check(instance, plan) == []
    return plan, evaluate(instance, plan).values


def expressed(seed: int, decision: Decision) -> Any:
    """The hint of a decision, which must be feasible and worth what the plan is worth."""
    instance, tree, model = case(seed)
    _, worth = judged(instance, tree, decision)
    x = hint(model, decision)
    assert x is not None, seed
    arrays = model.program.arrays()
    broken = [(model.program.units[row], row) for row in arrays.broken_rows(x)]
    assert broken == [], seed
    assert arrays.feasible(x), seed
    assert all(step.quantum == 1 for step in model.program.steps), seed
    assert program_values(model, x) == worth, seed
    return x


# --------------------------------------------------------------------------------------------
# New groups, which are arrays, are what going through all of them gives
# --------------------------------------------------------------------------------------------


def openings(model: Model, number: int) -> list[tuple[int, tuple[int, ...], int]]:
    """Domain, homes and copy of the groups that a service may open."""
    service = model.service(number)
    if not all(model.demands[number, name].missing for name in service.roles):
        return []
    fits = [
        [model.fits(model.wanted(number, name, shape)) for shape in range(len(role.shapes))]
        for name, role in service.roles.items()
    ]
    found = []
    for domain in model.at_level(service.affinity.required):
        if not all(any(fit[domain] for fit in shapes) for shapes in fits):
            continue
        homes: list[tuple[int, ...]] = [()]
        if service.affinity.preferred is not None:
            homes = [
                (home,)
                for home in model.at_level(service.affinity.preferred, domain)
                if any(fit[home] for shapes in fits for fit in shapes)
            ] or [(domain,)]
        copies = _copies(model, number, domain)
        found += [(domain, home, copy) for home in homes for copy in range(copies)]
    return found


def enterable(model: Model, candidate: Candidate, role: str) -> list[tuple[int, int, bool]]:
    """Shape, place and spill of what a new group may get of a role."""
    preferred = model.service(candidate.service).affinity.preferred is not None
    places = [(home, False) for home in candidate.homes if home != candidate.domain]
    places.append((candidate.domain, preferred))
    return [
        (shape, place, spill)
        for shape in range(len(model.role(candidate.service, role).shapes))
        for place, spill in places
        if model.fits(model.wanted(candidate.service, role, shape))[place]
    ]


def hull_of_new(model: Model, candidate: Candidate) -> Hull:
    """The hull of a new group, from the room of its domain in Python's integers."""
    service = model.service(candidate.service)
    changes, weights, prints = [], [], []
    for role in service.roles:
        demand = model.demands[candidate.service, role]
        shapes = {each.shape for each in model.placements_of(candidate.index, role)}
        capacities = [demand.shapes[shape] for shape in sorted(shapes)]
        unit = gcd(*capacities)
        most = _most_added(demand.missing, set(capacities))
        wanted = [model.wanted(candidate.service, role, shape) for shape in sorted(shapes)]
        room = sum(
            model.room(each, candidate.domain) * capacity
            for each, capacity in zip(wanted, capacities, strict=True)
        )
        changes.append(Change([], 0, min(room, most) // unit, unit, 0))
        weights.append([capacity // unit for capacity in capacities])
        prints.append(wanted)
    shared = None
    if len(changes) == 2 and weights == [[1], [1]]:
        limit = service.limits.max_instances_per_group
        (left,), (right,) = prints
        if limit is not None:
            shared = (1, 1, limit)
        elif left.single and right.single:
            (one, _), (other, _) = left.blocks[0], right.blocks[0]
            if one.gpu_type == other.gpu_type:
                size = gcd(one.gpus, other.gpus)
                room = model.units(one.gpu_type, size, candidate.domain)
                shared = (one.gpus // size, other.gpus // size, room)
    bands = _bands(model, candidate.service)
    second = changes[1] if len(changes) > 1 else None
    return Hull.of(reachable(changes[0], second, bands, shared) - {(0, 0)})


def test_new_groups_are_what_going_through_them_gives() -> None:
    seen: Counter[str] = Counter()
    for seed in chain(*map(seeds, range(BLOCKS))):
        _, _, model = case(seed)
        arrays = model.program.arrays()
        blocks = arrays.blocks
        assert blocks is not None
        corners = {
            switch: blocks.hulls[hull].corners
            for switch, hull in zip(blocks.switch.tolist(), blocks.hull.tolist(), strict=True)
        }
        columns = dict(model.placements.items())
        for number, service in enumerate(model.services):
            wanted = openings(model, number)
            groups = model.new_groups.get(number)
            assert (groups is None) == (not wanted), seed
            if groups is None:
                continue
            found = [model.candidate(groups.first + at) for at in range(len(groups))]
            assert [(each.domain, each.homes, each.copy) for each in found] == wanted, seed
            for candidate in found:
                assert candidate.running is None
                assert model.service_of(candidate.index) == candidate.service == number
                for role in service.roles:
                    placed = model.placements_of(candidate.index, role)
                    assert [(each.shape, each.domain, each.spill) for each in placed] == enterable(
                        model, candidate, role
                    ), seed
                    columns.update((each.column, each) for each in placed)
                switch = model.switch(candidate.index)
                if switch in corners:
                    assert corners[switch] == hull_of_new(model, candidate).corners, seed
                    seen["hull"] += 1
                seen["copy"] += candidate.copy > 0
            seen["one role"] += len(service.roles) == 1
            seen["no hull"] += groups.switches is None
        every = model.placements_at(np.arange(len(arrays.upper)))
        assert [each.column for each in every] == sorted(columns), seed
        for each in every:
            known = columns[each.column]
            assert (each.candidate, each.role, each.shape) == (
                known.candidate,
                known.role,
                known.shape,
            )
            assert arrays.owner[each.column] == model.service_of(each.candidate)
    assert min(seen[key] for key in ("hull", "copy", "one role", "no hull")) > 5, seen


# --------------------------------------------------------------------------------------------
# The program and the evaluator
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(BLOCKS))
def test_hints_are_exact(block: int) -> None:
    for seed in seeds(block):
        instance, tree, model = case(seed)
        assert [step.name for step in model.program.steps] == [
            step.name for step in evaluate(instance, Plan()).steps
        ]
        nothing = program_values(model, expressed(seed, Decision()))
        decision = greedy(tree)
        x = expressed(seed, decision)
        assert program_values(model, x) <= nothing, seed
        before = x.copy()
        _, worth = judged(instance, tree, extract(model, x))
        assert worth <= program_values(model, x), seed
        assert np.array_equal(x, before)


@pytest.mark.parametrize("kind", [HighsEngine, CpSatEngine])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_solutions_are_plans_of_that_worth(block: int, kind: Any) -> None:
    for seed in seeds(block):
        instance, tree, model = case(seed)
        engine, arrays = kind(), model.program.arrays()
        try:
            engine.load(arrays, Profile(threads=1))
        except UnsuitedError:
            continue
        walk = walk_steps(engine, arrays, model.program.steps, None, time.monotonic() + 20)
        if walk.solution is None:
            assert kind is HighsEngine, seed  # only CP-SAT needs no start
            continue
        decision = extract(model, walk.solution)
        _, worth = judged(instance, tree, decision)
        found = program_values(model, walk.solution)
        assert worth <= found, seed
        if all(step.proven for step in walk.steps):
            # What is proven best cannot be beaten by its own plan.
            assert worth == found, seed
        # And back: the plan, now with names, is a solution again.
        expressed(seed, decision)


def test_without_a_start_engines_find_one() -> None:
    found = Counter[str]()
    for seed in seeds(0):
        _, _, model = case(seed)
        arrays = model.program.arrays()
        for kind in (HighsEngine, CpSatEngine):
            engine = kind()
            engine.load(arrays, Profile(threads=1))
            walk = walk_steps(engine, arrays, model.program.steps, None, time.monotonic() + 20)
            found[engine.name] += walk.solution is not None
    assert min(found.values()) >= PER_BLOCK - 2


@pytest.mark.parametrize("block", range(0, BLOCKS, 3))
def test_a_larger_program_of_the_same_instance_is_the_same(block: int) -> None:
    """Building depends on nothing but the instance."""
    for seed in seeds(block):
        instance, _, model = case(seed)
        again = build(TreeView(Instance.from_json(instance.to_json()))).program
        assert again.shape == model.program.shape
        one, other = again.arrays(), model.program.arrays()
        for name in ("row_lower", "row_upper", "starts", "columns", "coefficients"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_what_runs_is_counted_as_it_is() -> None:
    """Every sum over running instances, taken one by one."""
    met = Counter[str]()
    for seed in chain.from_iterable(map(seeds, range(0, BLOCKS, 3))):
        instance, tree, model = case(seed)
        found = RunningState()
        for group, running in enumerate(instance.running):
            service = instance.service_index[running.service]
            domain, homes = tree.group_domain(running), tree.homes(running)
            assert model.state.services[group] == service
            assert model.state.domains[group] == domain
            assert model.state.homes[group] == homes
            preferred = instance.services[service].affinity.preferred
            for each in running.instances:
                if each.state != "ready":
                    met["draining"] += 1
                    continue
                shape = tree.shape_of(running, each)
                role = instance.services[service].roles[each.role]
                number = role.shape_index[each.shape]
                served = found.served.setdefault((service, each.role), {})
                served[number] = served.get(number, 0) + 1
                nodes = [instance.node_index[name] for name in each.nodes]
                for node, (_, gpus) in zip(nodes, shape.pod_list, strict=True):
                    found.tier_gpus[tree.node_tier[node]] += gpus
                outside = not all(tree.contains(domain, node) for node in nodes)
                split = not tree.in_one_domain(nodes, tree.shape_rank(shape))
                away = preferred is not None and not any(
                    all(tree.contains(home, node) for node in nodes) for home in homes
                )
                found.misplaced_gpus += shape.gpus * (outside + split)
                found.away_gpus += shape.gpus * away
                met.update(outside=outside, split=split, away=away)
        state = model.state
        assert (state.served, state.tier_gpus) == (found.served, found.tier_gpus), seed
        assert state.misplaced_gpus == found.misplaced_gpus, seed
        assert state.away_gpus == found.away_gpus, seed
    assert min(met[kind] for kind in ("draining", "outside", "split", "away")) > 0


# --------------------------------------------------------------------------------------------
# Packing
# --------------------------------------------------------------------------------------------

# Sizes, free GPUs of nodes that are no longer whole, GPUs of whole nodes.
POOLS: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    ((1, 2, 4), (7, 3, 4), ()),
    ((1, 2, 4, 8), (5,), (8, 8)),
    ((8,), (8, 8), ()),
    ((2, 8), (), (8, 8)),
    ((4,), (5,), (8, 8)),
    ((2, 6), (7,), (6, 8)),
    ((3, 6), (6, 5), (8, 6)),
    ((3, 5, 6), (8, 8), ()),
    ((3, 5, 6), (11,), ()),
    ((3, 5, 6), (7,), (8, 8)),
    ((2, 3), (7, 5), ()),
    ((2, 3), (4,), (6, 6)),
    ((2, 3, 8), (5,), (8, 8)),
    ((3, 4), (8,), (4, 8)),
    ((5, 7), (), (7, 12)),
    ((1, 3, 4), (6,), (8,)),
]


def drawn(seed: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    rng = random.Random(seed)
    sizes = tuple(sorted(rng.sample(range(1, 9), rng.randint(1, 3))))
    nodes = [rng.randint(sizes[0], 10) for _ in range(rng.randint(1, 4))]
    whole = [rng.random() < 0.5 and gpus > sizes[0] for gpus in nodes]
    return (
        sizes,
        tuple(gpus for gpus, is_whole in zip(nodes, whole, strict=True) if not is_whole),
        tuple(gpus for gpus, is_whole in zip(nodes, whole, strict=True) if is_whole),
    )


def pool_of(
    sizes: tuple[int, ...], free: tuple[int, ...], whole: tuple[int, ...]
) -> tuple[Pool, Program]:
    program = Program()
    counts = {size: program.column(sum(gpus // size for gpus in free + whole)) for size in sizes}
    by_gpus: dict[int, list[int]] = {}
    for number, gpus in enumerate(whole, len(free)):
        by_gpus.setdefault(gpus, []).append(number)
    pool = Pool(dict(enumerate(free)), by_gpus, counts)
    pool.add(program)
    return pool, program


def packings(
    sizes: tuple[int, ...], free: tuple[int, ...], whole: tuple[int, ...]
) -> dict[tuple[int, ...], int]:
    """Every vector of counts that fits, with the fewest whole nodes broken for it."""
    best = {(0,) * len(sizes): 0}
    for number, gpus in enumerate(free + whole):
        inside = {
            counts: int(
                number >= len(free)
                and any(counts)
                and not (sum(counts) == 1 and sizes[counts.index(1)] == gpus)
            )
            for counts in product(*(range(gpus // size + 1) for size in sizes))
            if sum(count * size for count, size in zip(counts, sizes, strict=True)) <= gpus
        }
        following: dict[tuple[int, ...], int] = {}
        for (known, cost), (more, extra) in product(best.items(), inside.items()):
            total = tuple(map(sum, zip(known, more, strict=True)))
            following[total] = min(following.get(total, 10**6), cost + extra)
        best = following
    return best


def solved(program: Program, fixed: dict[int, int], minimised: list[int]) -> list[int] | None:
    """A solution with some columns fixed and the sum of others least; null when there is none."""
    model = cp_model.CpModel()
    columns = [
        model.new_int_var(*((fixed[index],) * 2 if index in fixed else (low, high)), "")
        for index, (low, high) in enumerate(zip(program.lower, program.upper, strict=True))
    ]
    arrays = program.arrays()
    for row, (low, high) in enumerate(zip(arrays.row_lower, arrays.row_upper, strict=True)):
        part = slice(arrays.starts[row], arrays.starts[row + 1])
        terms = [columns[column] for column in arrays.columns[part]]
        expression = cp_model.LinearExpr.weighted_sum(terms, arrays.coefficients[part].tolist())
        model.add_linear_constraint(expression, int(low), int(high))
    model.minimize(sum(columns[column] for column in minimised))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    if solver.solve(model) != cp_model.OPTIMAL:
        return None
    return [int(solver.value(column)) for column in columns]


@pytest.mark.parametrize(
    "given", [*POOLS, *(drawn(seed) for seed in range(24))], ids=lambda each: f"{each}"
)
def test_packing_is_exact(given: Any) -> None:
    sizes, free, whole = given
    fits = packings(*given)
    pool, program = pool_of(*given)
    everything = list(product(*(range(program.upper[pool.counts[size]] + 1) for size in sizes)))
    rng = random.Random(0)
    for counts in rng.sample(everything, min(60, len(everything))):
        fixed = {pool.counts[size]: count for size, count in zip(sizes, counts, strict=True)}
        x = solved(program, fixed, list(pool.broken.values()))
        assert (x is not None) == (counts in fits), counts
        if x is None:
            continue
        broken = sum(x[column] for column in pool.broken.values())
        assert broken == fits[counts], counts
        placed = pool.assign(x)
        assert Counter(size for size, _ in placed) == Counter(dict(zip(sizes, counts, strict=True)))
        arrivals: dict[int, list[int]] = {}
        for size, node in placed:
            arrivals.setdefault(node, []).append(size)
        gpus = dict(enumerate(free + whole))
        assert all(sum(found) <= gpus[node] for node, found in arrivals.items()), counts
        split = sum(node >= len(free) and found != [gpus[node]] for node, found in arrivals.items())
        assert split <= broken, counts
        # And back: the named blocks are a solution no worse.
        again = [0] * len(program.lower)
        for size, _ in placed:
            again[pool.counts[size]] += 1
        pool.hint(arrivals, again)
        assert program.arrays().feasible(np.array(again, np.int64)), counts
        assert sum(again[column] for column in pool.broken.values()) == split


def test_chains() -> None:
    assert is_chain(dict.fromkeys((1, 2, 4, 8), 0))
    assert is_chain(dict.fromkeys((3, 6), 0))
    assert is_chain({5: 0})
    assert not is_chain(dict.fromkeys((2, 3), 0))
    assert not is_chain(dict.fromkeys((1, 4, 6), 0))


# --------------------------------------------------------------------------------------------
# The program
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_row_keeps_its_integer_points(seed: int) -> None:
    rng = random.Random(seed)
    factor = rng.choice((1, 2, 3, 6, 10))
    terms = [(rng.randrange(3), factor * rng.randint(-4, 4)) for _ in range(rng.randint(0, 5))]
    lower = rng.choice((-INFINITE, rng.randint(-30, 5)))
    upper = rng.choice((INFINITE, max(lower, -20) + rng.randint(0, 25)))
    program = Program()
    for _ in range(3):
        program.column(6)
    program.row("x", terms, lower, upper)
    arrays = program.arrays()
    for point in product(range(7), repeat=3):
        value = sum(coefficient * point[column] for column, coefficient in terms)
        assert arrays.feasible(np.array(point, np.int64)) == (lower <= value <= upper)


def test_a_row_takes_a_mapping_and_merges_columns() -> None:
    program = Program()
    program.column(9)
    program.column(9)
    program.row("x", {0: 4, 1: 6}, upper=9)
    program.row("x", [(0, 1), (1, 2), (0, -1)], lower=3)
    program.row("x", [], upper=-1)
    assert (program.columns, program.coefficients) == ([0, 1, 1], [2, 3, 1])
    assert (program.row_lower, program.row_upper) == ([-INFINITE, 2, -INFINITE], [4, INFINITE, -1])
    assert list(program.arrays().broken_rows(np.array([0, 2]))) == [0, 2]


@pytest.mark.parametrize("seed", range(40))
def test_rows_of_blocks_are_the_sides_of_their_hulls(seed: int) -> None:
    rng = random.Random(seed)
    blocks, wanted, column = BlockList(), [], 0
    for service in range(rng.randint(0, 3)):
        roles, groups = rng.randint(1, 2), rng.randint(1, 4)
        hulls = [
            Hull.of(
                (rng.randint(0, 3), rng.randint(0, 3) * (roles - 1))
                for _ in range(rng.randint(1, 5))
            )
            for _ in range(2)
        ]
        hull = np.array([rng.randrange(2) for _ in range(groups)])
        switches = np.arange(column, column + groups)
        column += groups
        members: list[list[list[tuple[int, int]]]] = []
        for _ in range(roles):
            members.append([])
            for _ in range(groups):
                number = rng.randint(0, 3)
                members[-1].append([(column + each, rng.randint(1, 5)) for each in range(number)])
                column += number
        sides = [
            (
                np.array([len(each) for each in role], np.int64),
                np.array([name for each in role for name, _ in each], np.int64),
                np.array([weight for each in role for _, weight in each], np.int64),
            )
            for role in members
        ]
        blocks.add(service, switches, sides, hulls, hull)
        for group in range(groups):
            for a, b, c, equal in hulls[hull[group]].sides:
                row = {int(switches[group]): -c}
                for factor, role in zip((a, b), members, strict=False):
                    row.update((name, factor * weight) for name, weight in role[group])
                wanted.append(({name: value for name, value in row.items() if value}, equal))
    made, rows = blocks.rows(7)
    assert len(made) == len(blocks)
    assert made.rows[0] == 7
    assert made.rows[-1] == 7 + len(wanted)
    starts = [0, *rows.stops.tolist()]
    found = [
        dict(zip(rows.columns[a:b].tolist(), rows.coefficients[a:b].tolist(), strict=True))
        for a, b in pairwise(starts)
    ]
    assert found == [row for row, _ in wanted]
    assert (rows.lower == 0).tolist() == [equal for _, equal in wanted]
    assert not rows.upper.any()


def test_rows_of_counts_are_told_apart_exactly() -> None:
    large = 2**61
    columns = [
        np.array([0, 1, 2, 1, 0]),
        np.array([5, 5, 5, 5, 5]),
        np.array([large, large + 1, large, large + 1, 3]),
        np.array([large - 1, 0, large - 1, 0, large - 1]),
    ]
    rows, which = _distinct(columns, 5)
    assert [rows[each] for each in which.tolist()] == np.stack(columns, axis=1).tolist()
    assert len(rows) == 4
    assert _distinct([], 3)[0] == [[]]
    assert _distinct([np.array([4, 4])], 2)[1].tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_a_row_of_distinct_columns_is_the_same_row(seed: int) -> None:
    rng = random.Random(seed)
    factor = rng.choice((1, 2, 6))
    columns = rng.sample(range(6), rng.randint(0, 6))
    coefficients = [factor * rng.choice((-3, -1, 1, 2)) for _ in columns]
    lower = rng.choice((-INFINITE, rng.randint(-30, 5)))
    upper = rng.choice((INFINITE, rng.randint(5, 30)))
    one, other = Program(), Program()
    assert one.add_columns([6] * 6) == range(6)
    for number in range(6):
        assert other.column(6) == number
    one.distinct_row("x", columns, coefficients, lower, upper)
    other.row("x", list(zip(columns, coefficients, strict=True)), lower, upper)
    assert one == other


@pytest.mark.parametrize("seed", range(40))
def test_a_step_is_what_adding_up_gives(seed: int) -> None:
    rng = random.Random(seed)
    program = Program()
    program.add_columns([rng.randint(0, 9) for _ in range(12)])
    shares: list[tuple[Fraction | int, Any]] = []
    for _ in range(rng.randint(0, 8)):
        value = Fraction(rng.randint(-3, 3), rng.randint(1, 4))
        first = rng.randint(0, 12)
        columns = rng.choices(range(12), k=rng.randint(0, 9))
        shares.append((value, range(first, rng.randint(first, 12)) if seed % 3 else columns))
    constant = Fraction(rng.randint(-5, 5), rng.randint(1, 3))
    program.step("sum", shares, constant)
    sums: dict[int, Fraction] = {}
    for each, columns in shares:
        for column in columns:
            sums[column] = sums.get(column, Fraction(0)) + each
    step = program.steps[0]
    found = {
        column: step.unit * value
        for column, value in zip(step.columns.tolist(), step.exact, strict=True)
    }
    assert found == {column: value for column, value in sums.items() if value}
    assert step.unit * step.constant == constant
    assert step.quantum == 1


def test_a_step_adds_up_what_columns_share() -> None:
    one, other = Program(), Program()
    for program in (one, other):
        assert program.add_columns([5, 5, 5]) == range(3)
    shares = [(Fraction(1, 2), [0, 1]), (Fraction(1, 3), (1,)), (Fraction(-1, 2), [0]), (2, [2])]
    one.step("cost", shares, Fraction(1, 4))
    other.step("cost", {1: Fraction(5, 6), 2: 2}, Fraction(1, 4))
    (step,), (same,) = one.steps, other.steps
    assert (step.columns.tolist(), step.exact) == ([1, 2], (10, 24))
    assert (step.unit, step.constant) == (same.unit, same.constant) == (Fraction(1, 12), 3)
    assert (same.columns.tolist(), same.exact) == ([1, 2], (10, 24))


@pytest.mark.parametrize("seed", range(20))
def test_a_step_is_exact(seed: int) -> None:
    rng = random.Random(seed)
    values = {column: Fraction(rng.randint(-20, 20), rng.randint(1, 12)) for column in range(4)}
    constant = Fraction(rng.randint(-9, 9), rng.randint(1, 9))
    program = Program()
    for _ in range(4):
        program.column(5)
    program.step("cost", values, constant)
    (step,) = program.steps
    assert step.quantum == 1
    for _ in range(5):
        x = [rng.randint(0, 5) for _ in range(4)]
        exact = constant + sum(values[column] * x[column] for column in range(4))
        assert step.unit * step.value(np.array(x)) == exact


PRIMES = (10**9 + 7, 10**9 + 9, 998244353, 754974721, 167772161)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_too_fine_for_63_bits_is_exact_all_the_same(seed: int) -> None:
    rng = random.Random(seed)
    values = {n: Fraction(rng.choice((-1, 1, 3)), prime) for n, prime in enumerate(PRIMES)}
    constant = Fraction(rng.randint(0, 3), 3)
    program = Program()
    for _ in PRIMES:
        program.column(5)
    program.step("cost", values, constant)
    (step,) = program.steps
    assert step.quantum > 1
    assert np.abs(step.coefficients).astype(object).sum() * 5 < 2**61
    for _ in range(20):
        x = np.array([rng.randint(0, 5) for _ in PRIMES])
        value = constant + sum(values[column] * int(x[column]) for column in values)
        assert step.unit * step.value(x) == value
        # What engines see is never above it, and less than a hundred quanta below.
        seen = int(step.coefficients @ x)
        assert step.lower(seen) <= step.value(x) < step.lower(seen) + 100 * step.quantum
        assert seen <= step.top(step.value(x))


def test_numbers_beyond_63_bits_are_refused() -> None:
    for upper, coefficient in ((1, 2**63), (2**31, 2**32)):
        program = Program()
        program.column(upper)
        program.row("x", [(program.column(upper), coefficient), (0, 1)], upper=5)
        with pytest.raises(OverflowError):
            program.arrays()


@pytest.mark.parametrize(
    "add",
    [
        lambda program: program.column(1),
        lambda program: program.add_columns([1, 1, 1]),
        lambda program: program.row("x", [], upper=1),
        lambda program: program.distinct_row("x", [], [], upper=1),
    ],
)
def test_a_deadline_in_the_past(add: Callable[[Program], object]) -> None:
    program = Program(time.monotonic() - 1)

    def many() -> None:
        for _ in range(10**4):
            add(program)

    with pytest.raises(LateError):
        many()


def test_building_late() -> None:
    tree = TreeView(random_instance(random.Random(0), "large"))
    with pytest.raises(LateError):
        build(tree, time.monotonic() - 1)
    assert build(tree, time.monotonic() + 1000).program.shape == build(tree).program.shape


def test_solving_late_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> None:
        raise LateError

    monkeypatch.setitem(solve.__globals__, "build", late)
    instance = random_instance(random.Random(5), "small")
    result = solve(instance)
    assert (result.status, result.stop_reason) == ("feasible", "time_limit")
    assert "time limit" in result.notes[0]
    assert result.plan == solve(instance, Profile(solver="greedy")).plan
