"""The steps of the objective and the named costs of docs/problem.md, one unit per cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

from heteroplace.formulation.constraints import alive_column
from heteroplace.formulation.variables import Leaver, Model
from heteroplace.instance import Shape
from heteroplace.topology import TIERS

ZERO = Fraction(0)


class Amount:
    """A linear expression with rational coefficients."""

    def __init__(self) -> None:
        self.terms: dict[int, Fraction | int] = {}
        self.constant = ZERO

    def add(self, column: int, value: Fraction | int) -> None:
        """Add a term."""
        terms = self.terms
        terms[column] = terms[column] + value if column in terms else value

    def include(self, other: Amount, weight: Fraction) -> None:
        """Add another expression, weighted."""
        if not weight:
            return
        # Few values occur, in many columns; exact products are slow to take one by one.
        product = {value: weight * value for value in set(other.terms.values())}
        terms = self.terms
        for column, value in other.terms.items():
            terms[column] = terms[column] + product[value] if column in terms else product[value]
        self.constant += weight * other.constant


def _ready(model: Model) -> Iterator[tuple[int, Shape, str, tuple[int, ...]]]:
    """Group, shape, role and nodes of every ready instance."""
    index_of = model.instance.node_index
    for group, running in enumerate(model.instance.running):
        for each in running.instances:
            if each.state == "ready":
                shape = model.tree.shape_of(running, each)
                yield group, shape, each.role, tuple(index_of[name] for name in each.nodes)


def _shape(model: Model, leaver: Leaver) -> Shape:
    return model.shape(model.service_of_group(leaver.group), leaver.role, leaver.shape)


def _leave(amount: Amount, leaver: Leaver, value: Fraction) -> None:
    for column in leaver.columns:
        amount.add(column, -value)


def rdma(model: Model) -> Amount:
    """GPUs on medium and high RDMA subgroups, at the price of their tier."""
    prices = model.instance.objective.tier_prices
    price = [getattr(prices, tier) for tier in TIERS]
    amount = Amount()
    for cell, counts in model.arriving.items():
        for gpus, column in counts.items():
            amount.add(column, gpus * price[model.tree.cells[cell].tier])

    def paid(shape: Shape, nodes: tuple[int, ...]) -> Fraction:
        pods = zip(nodes, shape.pod_list, strict=True)
        return sum((gpus * price[model.tree.node_tier[node]] for node, (_, gpus) in pods), ZERO)

    for _, shape, _, nodes in _ready(model):
        amount.constant += paid(shape, nodes)
    for leaver in model.leavers:
        _leave(amount, leaver, paid(_shape(model, leaver), leaver.nodes))
    return amount


def shape(model: Model) -> Amount:
    """Cost of the shapes, their rank by default."""
    amount = Amount()
    cost = {
        (index, name, place): role.shape_cost(place)
        for index, service in enumerate(model.instance.services)
        for name, role in service.roles.items()
        for place in range(len(role.shapes))
    }
    for placement in model.placements:
        service = model.candidates[placement.candidate].service
        amount.add(placement.column, cost[service, placement.role, placement.shape])
    for (group, role), members in model.ready_of.items():
        served = model.role(model.service_of_group(group), role)
        amount.constant += sum((served.shape_cost(place) for _, place in members), ZERO)
    for leaver in model.leavers:
        served = model.role(model.service_of_group(leaver.group), leaver.role)
        _leave(amount, leaver, served.shape_cost(leaver.shape))
    return amount


def spill(model: Model) -> Amount:
    """GPUs of instances outside the home domain at the preferred level."""
    amount = Amount()
    for placement in model.placements:
        if placement.spill:
            service = model.candidates[placement.candidate].service
            gpus = model.shape(service, placement.role, placement.shape).gpus
            amount.add(placement.column, gpus)
    tree = model.tree
    for group, placed, _, nodes in _ready(model):
        running = model.instance.running[group]
        served = model.service(model.service_of_group(group))
        if served.affinity.preferred is not None and not any(
            all(tree.contains(home, node) for node in nodes) for home in tree.homes(running)
        ):
            amount.constant += placed.gpus
    for leaver in model.leavers:
        if leaver.away:
            _leave(amount, leaver, Fraction(_shape(model, leaver).gpus))
    return amount


def new_group(model: Model) -> Amount:
    """Groups opened."""
    amount = Amount()
    if model.instance.objective.weights.new_group:
        for candidate in model.candidates:
            if candidate.running is None:
                amount.add(alive_column(model, candidate), 1)
    return amount


def fragmentation(model: Model) -> Amount:
    """Wholly free nodes that get a pod smaller than themselves."""
    amount = Amount()
    for pool in model.pools.values():
        for column in pool.broken.values():
            amount.add(column, 1)
    return amount


def migration(model: Model) -> Amount:
    """Instances moved."""
    amount = Amount()
    for leaver in model.leavers:
        if leaver.moved is not None:
            amount.add(leaver.moved, 1)
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
    for priority in instance.priorities:
        unmet, short = Amount(), Amount()
        below = False
        for index, service in enumerate(instance.services):
            if service.priority != priority:
                continue
            for name, role in service.roles.items():
                demand = model.demands[index, name]
                weight = role.gpus_per_capacity * demand.grain
                column = model.unmet.get((index, name))
                if column is None:
                    continue
                unmet.add(column, weight)
                if demand.now < demand.minimum:
                    below = True
                    short.add(_shortfall(model, column, demand.target - demand.minimum), weight)
        if below:
            _step(model, f"minimum[{priority}]", short.terms, short.constant)
        _step(model, f"unmet[{priority}]", unmet.terms, unmet.constant)
    # Leaver columns that no constraint reads twice keep their own repair weights.
    for leaver in model.leavers:
        gpus = Fraction(_shape(model, leaver).gpus)
        for broken in (leaver.outside, leaver.split):
            if broken:
                for column in leaver.columns:
                    model.repair(column, -gpus)
    _step(model, "repair", model.repair_terms, model.repair_constant + _misplaced(model))
    total = Amount()
    for cost in COSTS:
        total.include(cost(model), getattr(instance.objective.weights, cost.__name__))
    _step(model, "cost", total.terms, total.constant)


def _step(model: Model, name: str, terms: Mapping[int, Fraction | int], constant: Fraction) -> None:
    # Every step is a sum of amounts of which none is negative: docs/problem.md.
    model.program.step(name, terms, constant, nonnegative=True)


def _shortfall(model: Model, unmet: int, slack: int) -> int:
    """Column of max(0, unmet - slack): what a role lacks to its minimum."""
    column = model.program.column(max(0, model.program.upper[unmet] - slack))
    model.program.row("limits", [(column, 1), (unmet, -1)], lower=-slack)
    model.derive(column, [(unmet, 1)], -slack)
    return column


def _misplaced(model: Model) -> Fraction:
    """GPUs of ready instances outside their group's domain, and of split ones."""
    tree, total = model.tree, 0
    for group, placed, _, nodes in _ready(model):
        domain = tree.group_domain(model.instance.running[group])
        if not all(tree.contains(domain, node) for node in nodes):
            total += placed.gpus
        if not tree.in_one_domain(nodes, tree.shape_rank(placed)):
            total += placed.gpus
    return Fraction(total)
