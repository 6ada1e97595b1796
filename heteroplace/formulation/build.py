"""From an instance to its integer program, and between solutions and decisions."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np

from heteroplace.decision import Added, Decision
from heteroplace.footprint import Block, pod_nodes
from heteroplace.formulation.constraints import CONSTRAINTS
from heteroplace.formulation.objective import add_steps
from heteroplace.formulation.program import Ints, Program
from heteroplace.formulation.variables import Candidate, Model, Placement, Wanted, build_variables
from heteroplace.topology import TreeView


def build(tree: TreeView, deadline: float | None = None) -> Model:
    """Build the whole program of an instance.

    Parameters
    ----------
    tree
        The view of the instance.
    deadline
        ``time.monotonic()`` at which to give up; null for none.

    Returns
    -------
    Model
        With its :class:`Program` complete.

    Raises
    ------
    LateError
        If the deadline came first.
    """
    program = Program(deadline)
    program.check_time()
    model = build_variables(tree, program)
    for constraint in CONSTRAINTS:
        constraint(model)
        program.check_time()
    add_steps(model)
    _name_owners(model)
    return model


def _name_owners(model: Model) -> None:
    """Say which columns belong to one service: instances, switches of groups, counts, unmet."""
    owners, owned = model.program.owners, model.program.owned
    for service, groups in model.new_groups.items():
        owned.append((groups.placed, service))
        if groups.switches is not None:
            owned.append((groups.switches, service))
    for column, placement in model.placements.items():
        owners[column] = model.service_of(placement.candidate)
    for number, column in model.alive.items():
        owners[column] = model.service_of(number)
    for (service, _, _), column in model.counts.items():
        owners[column] = service
    for (service, _), column in model.unmet.items():
        owners[column] = service
    for leaver in model.leavers:
        owners.update(dict.fromkeys(leaver.columns, model.service_of_group(leaver.group)))


# --------------------------------------------------------------------------------------------
# From a solution to a decision: counts get names
# --------------------------------------------------------------------------------------------


class _Token:
    """One placed instance on its way to its nodes."""

    __slots__ = ("nodes", "placement")

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.nodes: dict[Block, list[int]] = defaultdict(list)


def extract(model: Model, solution: Ints) -> Decision:
    """Name groups, instances and nodes for a solution of the program.

    Parameters
    ----------
    model
        The model.
    solution
        A value of every column; must be feasible.

    Returns
    -------
    Decision
        A valid decision with the solution's objective, or better.
    """
    x: list[int] = solution.tolist()
    tokens = [
        _Token(placement)
        for placement in model.placements_at(np.flatnonzero(solution))
        for _ in range(x[placement.column])
    ]
    _route(model, x, tokens)
    return _decide(model, x, tokens)


def _route(model: Model, x: list[int], tokens: list[_Token]) -> None:
    entering: dict[tuple[int, int], deque[_Token]] = defaultdict(deque)
    spreading: dict[tuple[Wanted, int], deque[_Token]] = defaultdict(deque)
    for token in tokens:
        wanted, domain = model.print_of(token.placement), token.placement.domain
        if wanted.single:
            entering[wanted.parts[0][0], domain].append(token)
        else:
            spreading[wanted, domain].append(token)
    for (wanted, domain), queue in spreading.items():
        for place, column in model.spread[wanted, domain].items():
            for _ in range(x[column]):
                token = queue.popleft()
                for number, count in wanted.parts:
                    entering[number, place].extend([token] * count)
    arriving: dict[tuple[int, int], deque[_Token]] = defaultdict(deque)
    for number, flow in model.flows.items():
        # Parents come before their children: a domain has all it gets when its turn comes.
        for domain in sorted(flow.passed):
            queue = entering[number, flow.over[domain]]
            for _ in range(x[flow.passed[domain]]):
                entering[number, domain].append(queue.popleft())
        for cell, column in flow.cells.items():
            for _ in range(x[column]):
                token = entering[number, flow.over_cell[cell]].popleft()
                arriving[cell, model.blocks[number].gpus].append(token)
    for cell, counts in model.arriving.items():
        gpu_type = model.tree.cells[cell].gpu_type
        for size, node in _assign(model, cell, counts, x):
            token = arriving[cell, size].popleft()
            token.nodes[Block(gpu_type, size)].append(node)


def _assign(model: Model, cell: int, counts: dict[int, int], x: list[int]) -> list[tuple[int, int]]:
    if not any(x[column] for column in counts.values()):
        return []
    placed = [
        (size, node)
        for node in model.tree.cells[cell].nodes
        for size, column in model.singles.get(node, {}).items()
        for _ in range(x[column])
    ]
    pool = model.pools.get(cell)
    return placed if pool is None else placed + pool.assign(x)


def _decide(model: Model, x: list[int], tokens: list[_Token]) -> Decision:
    decision = Decision()
    placed: dict[tuple[int, str, int], deque[tuple[int, ...]]] = defaultdict(deque)
    for token in tokens:
        at = token.placement
        shape = model.shape(model.service_of(at.candidate), at.role, at.shape)
        placed[at.candidate, at.role, at.shape].append(pod_nodes(shape, token.nodes))
    for leaver in model.leavers:
        members = list(leaver.members)
        for _ in range(x[leaver.removed] if leaver.removed is not None else 0):
            decision.removed.add((leaver.group, members.pop()))
        for _ in range(x[leaver.moved] if leaver.moved is not None else 0):
            nodes = placed[model.running[leaver.group].index, leaver.role, leaver.shape].popleft()
            decision.moved[leaver.group, members.pop()] = nodes
    groups = {candidate.index: group for group, candidate in model.running.items()}
    for (candidate, role, shape_index), queue in placed.items():
        if queue and candidate not in groups:
            groups[candidate] = len(model.instance.running) + len(decision.new_groups)
            found = model.candidate(candidate)
            decision.new_groups.append((found.service, found.domain))
        for nodes in queue:
            decision.added.append(Added(groups[candidate], role, shape_index, nodes))
    return decision


# --------------------------------------------------------------------------------------------
# From a decision to a solution: a complete hint
# --------------------------------------------------------------------------------------------


def hint(model: Model, decision: Decision) -> Ints | None:
    """Turn a decision into a value of every column.

    Parameters
    ----------
    model
        The model.
    decision
        A valid decision.

    Returns
    -------
    numpy.ndarray or None
        A feasible solution with the decision's objective; null when the program cannot express it.
    """
    x = [0] * len(model.program.lower)
    arrivals: dict[int, list[int]] = defaultdict(list)
    leaver_of = {
        (leaver.group, member): leaver for leaver in model.leavers for member in leaver.members
    }
    for key in decision.removed:
        leaver = leaver_of.get(key)
        if leaver is None or leaver.removed is None:
            return None
        x[leaver.removed] += 1
    for key in decision.moved:
        leaver = leaver_of.get(key)
        if leaver is None or leaver.moved is None:
            return None
        x[leaver.moved] += 1
    for candidate, role, shape, nodes in _placed(model, decision):
        if candidate is None or not _place(model, candidate, role, shape, nodes, x, arrivals):
            return None
    _fill(model, x, arrivals)
    return np.array(x, np.int64)


def _placed(
    model: Model, decision: Decision
) -> list[tuple[Candidate | None, str, int, tuple[int, ...]]]:
    """Candidate, role, shape and nodes of every added and moved instance."""
    candidates: dict[int, Candidate | None] = {
        **model.running,
        **_match_new_groups(model, decision),
    }
    placed = [
        (candidates[added.group], added.role, added.shape, added.nodes) for added in decision.added
    ]
    for (group, number), nodes in decision.moved.items():
        running = model.instance.running[group].instances[number]
        role = model.role(model.service_of_group(group), running.role)
        placed.append((candidates[group], running.role, role.shape_index[running.shape], nodes))
    return placed


def _match_new_groups(model: Model, decision: Decision) -> dict[int, Candidate | None]:
    """Give every opened group a candidate of its own with its domain and home."""
    free: dict[tuple[int, int], list[Candidate]] = {}
    for service, domain in dict.fromkeys(decision.new_groups):
        groups = model.new_groups.get(service)
        free[service, domain] = []
        if groups is not None:
            there = np.flatnonzero(groups.domains == domain) + groups.first
            free[service, domain] = [model.candidate(number) for number in there.tolist()]
    members: dict[int, list[Added]] = defaultdict(list)
    for added in decision.added:
        members[added.group].append(added)
    matched: dict[int, Candidate | None] = {}
    for offset, (service, domain) in enumerate(decision.new_groups):
        group = offset + len(model.instance.running)
        inside: dict[tuple[int, ...], int] = defaultdict(int)
        for added in members[group]:
            for candidate in {each.homes: each for each in free[service, domain]}.values():
                home = candidate.homes[0] if candidate.homes else domain
                if all(model.tree.contains(home, node) for node in added.nodes):
                    gpus = model.shape(service, added.role, added.shape).gpus
                    inside[candidate.homes] += gpus
        choices = free[service, domain]
        if not members[group]:
            continue
        if not choices:
            matched[group] = None
            continue
        best = max(choices, key=lambda each: (inside[each.homes], -each.index))
        choices.remove(best)
        matched[group] = best
    return matched


def _place(
    model: Model,
    candidate: Candidate,
    role: str,
    shape: int,
    nodes: tuple[int, ...],
    x: list[int],
    arrivals: dict[int, list[int]],
) -> bool:
    """Count one instance in the columns it passes; whether the program has them all."""
    options = [
        placement
        for placement in model.placements_of(candidate.index, role)
        if placement.shape == shape
        and all(model.tree.contains(placement.domain, node) for node in nodes)
    ]
    if not options:
        return False
    placement = min(options, key=lambda each: each.spill)
    x[placement.column] += 1
    wanted = model.print_of(placement)
    domain = placement.domain
    if not wanted.single:
        spread = model.spread[wanted, domain]
        place = next(
            (each for each in spread if all(model.tree.contains(each, node) for node in nodes)),
            None,
        )
        if place is None:
            return False
        x[spread[place]] += 1
        domain = place
    blocks = _blocks(model, candidate.service, role, shape, nodes, wanted)
    for number, node in blocks:
        way = model.flows[number].way(domain, model.tree.node_cell[node])
        if way is None:
            return False
        for column in way:
            x[column] += 1
        arrivals[node].append(model.blocks[number].gpus)
    return True


def _blocks(
    model: Model,
    service: int,
    role: str,
    shape: int,
    nodes: tuple[int, ...],
    wanted: Wanted,
) -> list[tuple[int, int]]:
    """Number of each block of an instance and its node."""
    if wanted.single:
        return [(wanted.parts[0][0], nodes[0])]
    pods = model.shape(service, role, shape).pod_list
    return [(model.block_number(*pod), node) for pod, node in zip(pods, nodes, strict=True)]


def _fill(model: Model, x: list[int], arrivals: dict[int, list[int]]) -> None:
    """Set the columns that follow from the shared decisions."""
    for node, columns in model.singles.items():
        for size in arrivals.get(node, ()):
            x[columns[size]] += 1
    for node, column in model.switches.items():
        x[column] = int(bool(arrivals.get(node)))
    for pool in model.pools.values():
        pool.hint(arrivals, x)
    placed = np.array(x, np.int64)
    for switch in model.program.group_blocks.opened(placed).tolist():
        x[switch] = 1
    for column, total in model.summed(placed):
        x[column] = total
    for derived in model.derived:
        value = derived.constant + sum(a * x[column] for column, a in derived.terms)
        value = int(value > 0) if derived.switch else max(0, value)
        x[derived.column] = max(x[derived.column], value)
    for absent, alive, terms, constant in model.absences:
        count = constant + sum(a * x[column] for column, a in terms)
        x[absent] = int(bool(x[alive]) and count == 0)
