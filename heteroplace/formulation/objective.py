"""The steps of the objective and the named costs of docs/problem.md, one unit per cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from heteroplace.formulation.constraints import alive_column
from heteroplace.formulation.program import Share
from heteroplace.formulation.variables import Leaver, Model
from heteroplace.instance import Role, Shape
from heteroplace.topology import TIERS

ZERO = Fraction(0)


class Amount:
    """A linear expression with rational coefficients, each with the columns that share it."""

    def __init__(self) -> None:
        self.shares: list[Share] = []
        self.constant = ZERO

    def add(self, columns: Sequence[int], value: Fraction | int) -> None:
        """Give each of some columns a value."""
        if columns:
            self.shares.append((value, columns))

    def include(self, other: Amount, weight: Fraction) -> None:
        """Add another expression, weighted."""
        if weight:
            self.shares.extend((weight * value, columns) for value, columns in other.shares)
            self.constant += weight * other.constant


def _shape(model: Model, leaver: Leaver) -> Shape:
    return model.shape(model.service_of_group(leaver.group), leaver.role, leaver.shape)


def rdma(model: Model) -> Amount:
    """GPUs on medium and high RDMA subgroups, at the price of their tier."""
    tree, amount = model.tree, Amount()
    prices = model.instance.objective.tier_prices
    price: list[Fraction] = [getattr(prices, tier) for tier in TIERS]
    arriving: dict[tuple[int, int], list[int]] = defaultdict(list)
    for cell, counts in model.arriving.items():
        for gpus, column in counts.items():
            arriving[tree.cells[cell].tier, gpus].append(column)
    for (tier, gpus), columns in arriving.items():
        amount.add(columns, gpus * price[tier])
    amount.constant = _paid(model.state.tier_gpus, price)
    leaving: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for leaver in model.leavers:
        tier_gpus = [0] * len(TIERS)
        for node, (_, gpus) in zip(leaver.nodes, _shape(model, leaver).pod_list, strict=True):
            tier_gpus[tree.node_tier[node]] += gpus
        leaving[tuple(tier_gpus)].extend(leaver.columns)
    for left, columns in leaving.items():
        amount.add(columns, -_paid(left, price))
    return amount


def _paid(tier_gpus: Iterable[int], price: list[Fraction]) -> Fraction:
    return sum((gpus * each for gpus, each in zip(tier_gpus, price, strict=True)), ZERO)


def shape(model: Model) -> Amount:
    """Cost of the shapes, their rank by default."""
    amount = Amount()
    for (service, name), placed in model.placed.items():
        role = model.role(service, name)
        for place, columns in placed.items():
            amount.add(columns, _shape_cost(role, place))
    for (service, name), ready in model.state.served.items():
        role = model.role(service, name)
        for place, count in ready.items():
            cost = _shape_cost(role, place)
            if cost:
                amount.constant += count * cost
    for leaver in model.leavers:
        role = model.role(model.service_of_group(leaver.group), leaver.role)
        amount.add(leaver.columns, -_shape_cost(role, leaver.shape))
    return amount


def _shape_cost(role: Role, place: int) -> Fraction | int:
    """As :meth:`Role.shape_cost`; a rank stays an integer, which adds up faster."""
    return place if role.shapes[place].cost is None else role.shape_cost(place)


def spill(model: Model) -> Amount:
    """GPUs of instances outside the home domain at the preferred level."""
    amount = Amount()
    for (service, role, place), columns in model.spilling.items():
        amount.add(columns, model.shape(service, role, place).gpus)
    amount.constant += model.state.away_gpus
    for leaver in model.leavers:
        if leaver.away:
            amount.add(leaver.columns, -_shape(model, leaver).gpus)
    return amount


def new_group(model: Model) -> Amount:
    """Groups opened."""
    amount = Amount()
    if model.instance.objective.weights.new_group:
        for groups in model.new_groups.values():
            columns: Sequence[int] | None = groups.switches
            if columns is None:
                columns = [alive_column(model, groups.candidate(each)) for each in groups.numbers]
            amount.add(columns, 1)
    return amount


def fragmentation(model: Model) -> Amount:
    """Wholly free nodes that get a pod smaller than themselves."""
    amount = Amount()
    amount.add([column for pool in model.pools.values() for column in pool.broken.values()], 1)
    return amount


def migration(model: Model) -> Amount:
    """Instances moved."""
    amount = Amount()
    amount.add([leaver.moved for leaver in model.leavers if leaver.moved is not None], 1)
    return amount


COSTS: tuple[Callable[[Model], Amount], ...] = (
    rdma,
    shape,
    spill,
    new_group,
    fragmentation,
    migration,
)


def add_steps(model: Model) -> None:
    """Add the lexicographic steps to the program."""
    instance = model.instance
    lacking: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for service, name in model.unmet:
        lacking[model.service(service).priority].append((service, name))
    for priority in instance.priorities:
        unmet: dict[int, Fraction] = {}
        short: dict[int, Fraction] = {}
        for service, name in lacking[priority]:
            demand, column = model.demands[service, name], model.unmet[service, name]
            weight = model.role(service, name).gpus_per_capacity * demand.grain
            unmet[column] = weight
            if demand.now < demand.minimum:
                short[_shortfall(model, column, demand.target - demand.minimum)] = weight
        if short:
            _step(model, f"minimum[{priority}]", short, ZERO)
        _step(model, f"unmet[{priority}]", unmet, ZERO)
    # Leaver columns that no constraint reads twice keep their own repair weights.
    for leaver in model.leavers:
        gpus = Fraction(_shape(model, leaver).gpus)
        for broken in (leaver.outside, leaver.split):
            if broken:
                for column in leaver.columns:
                    model.repair(column, -gpus)
    _step(model, "repair", model.repair_terms, model.repair_constant + model.state.misplaced_gpus)
    total = Amount()
    for cost in COSTS:
        total.include(cost(model), getattr(instance.objective.weights, cost.__name__))
    _step(model, "cost", total.shares, total.constant)


def _step(
    model: Model,
    name: str,
    terms: Mapping[int, Fraction | int] | Iterable[Share],
    constant: Fraction,
) -> None:
    # Every step is a sum of amounts of which none is negative: docs/problem.md.
    model.program.step(name, terms, constant, nonnegative=True)


def _shortfall(model: Model, unmet: int, slack: int) -> int:
    """Column of max(0, unmet - slack): what a role lacks to its minimum."""
    column = model.program.column(max(0, model.program.upper[unmet] - slack))
    model.program.row("limits", [(column, 1), (unmet, -1)], lower=-slack)
    model.derive(column, [(unmet, 1)], -slack)
    return column
