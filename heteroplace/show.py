"""Pictures of an instance and a plan for the terminal.

Nothing here prints: every function returns something that rich can render. Marks are characters
first and colours second, so that a picture reads the same without colour.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from heteroplace.check import evaluate
from heteroplace.instance import Instance, RunningGroup, RunningInstance, Service
from heteroplace.plan import Evaluation, PlacedInstance, Plan, PlanGroup, RoleOutcome
from heteroplace.topology import ROOT, TreeView

Mark = Literal["kept", "draining", "moved", "added", "removed", "left"]

MARKS: tuple[Mark, ...] = ("kept", "draining", "moved", "added", "removed", "left")
OCCUPIES: frozenset[Mark] = frozenset(("kept", "draining", "moved", "added"))
DELIVERS: frozenset[Mark] = frozenset(("kept", "moved", "added"))
FEW_NODES = 64

_ROWS: tuple[Mark, ...] = ("added", "moved", "left", "removed", "draining", "kept")
_SIGN = {"kept": "", "draining": "~", "moved": "→", "added": "+", "removed": "-", "left": "←"}
_WORDS = {
    "kept": "kept",
    "draining": "draining",
    "moved": "moved here",
    "added": "added",
    "removed": "removed",
    "left": "moved away",
}
_STYLE = {
    "kept": "",
    "draining": "yellow",
    "moved": "cyan",
    "added": "green",
    "removed": "red",
    "left": "cyan",
}
_TIER_STYLE = {"low": "green", "medium": "yellow", "high": "magenta"}
_LEGEND = (
    '×n and "after" count what is there after the plan.  + added  - removed  '
    "→ moved here  ← moved away  ~ draining"
)


@dataclass(frozen=True, slots=True)
class Placement:
    """One instance at one place; a moved instance has two, ``left`` and ``moved``.

    Parameters
    ----------
    group, service, role, shape
        By name.
    name
        The instance's name; null for an added one.
    mark
        What the plan does with it here.
    pods
        Node number and GPUs of every pod.
    other
        For ``moved`` the pods it leaves, for ``left`` the pods it goes to.
    """

    group: str
    service: str
    role: str
    shape: str
    name: str | None
    mark: Mark
    pods: tuple[tuple[int, int], ...]
    other: tuple[tuple[int, int], ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs of all pods."""
        return sum(gpus for _, gpus in self.pods)


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """A deployment group with all its placements, before and after.

    Parameters
    ----------
    name, service
        By name.
    domain
        Name of its domain at the service's required level; null for the whole fleet.
    at
        Number of that domain; null when there is none of that name.
    new
        Whether the plan opens it.
    placements
        Its instances in the order of :data:`MARKS`.
    """

    name: str
    service: str
    domain: str | None
    at: int | None
    new: bool
    placements: tuple[Placement, ...]

    @property
    def changed(self) -> bool:
        """Whether the plan changes anything in it."""
        return any(each.mark not in ("kept", "draining") for each in self.placements)


class Picture:
    """What the terminal and the page draw, worked out once.

    Parameters
    ----------
    instance
        The problem.
    plan
        The decision; null for the running state.

    Attributes
    ----------
    view
        Tree view of the instance.
    groups
        Running groups, then new ones.
    pods
        Per node, the placements on it with their GPUs there.
    after
        Per node, GPUs in use after the plan, draining included.
    free_after
        Per node, GPUs free after the plan; 0 on cordoned nodes.
    evaluation
        Worth of the plan, or of doing nothing.
    role_order
        Place of every (service, role) in the instance.

    Raises
    ------
    InputError
        If the plan names what the instance does not have.
    """

    def __init__(self, instance: Instance, plan: Plan | None = None) -> None:
        self.instance = instance
        self.plan = plan
        self.evaluation: Evaluation = evaluate(instance, plan or Plan())
        self.view = TreeView(instance)
        self.role_order = {
            (role.service, role.role): place for place, role in enumerate(self.evaluation.roles)
        }
        self._numbers: dict[tuple[str | None, str | None], int] = {
            (instance.levels[domain.rank], domain.name): domain.index
            for domain in self.view.domains[1:]
        }
        self.groups = self._groups()
        self.pods: list[list[tuple[Placement, int]]] = [[] for _ in instance.nodes]
        for placement in self.placements():
            for node, gpus in placement.pods:
                self.pods[node].append((placement, gpus))
        self.after = [sum(gpus for each, gpus in on if each.mark in OCCUPIES) for on in self.pods]
        self.free_after = [
            max(0, node.gpus - node.reserved - used) if node.schedulable else 0
            for node, used in zip(instance.nodes, self.after, strict=True)
        ]

    def placements(self) -> Iterator[Placement]:
        """Every placement of every group."""
        for group in self.groups:
            yield from group.placements

    def common_domain(self, placement: Placement) -> int:
        """Find the finest domain that holds all pods of a placement."""
        paths = [self.view.node_path[node] for node, _ in placement.pods]
        found = ROOT
        for level in zip(*paths, strict=True):
            if len(set(level)) > 1:
                break
            found = level[0]
        return found

    def _groups(self) -> list[PlacedGroup]:
        given = {group.name: group for group in self.plan.groups} if self.plan else {}
        running_names = {group.name for group in self.instance.running}
        groups = []
        for running in self.instance.running:
            bound = self.view.group_domain(running)
            entry = given.get(running.name)
            found = list(self._running(running.service, running.name, running.instances, entry))
            if entry is not None:
                found.extend(self._added(entry))
            domain = None if bound == ROOT else self.view.domains[bound].name
            groups.append(self._group(running, domain, False, found))
        for entry in given.values():
            if entry.name not in running_names:
                groups.append(self._group(entry, entry.domain, True, self._added(entry)))
        return groups

    def _group(
        self,
        given: RunningGroup | PlanGroup,
        domain: str | None,
        new: bool,
        placements: Iterable[Placement],
    ) -> PlacedGroup:
        service = self.instance.services[self.instance.service_index[given.service]]
        at = self._numbers.get((service.affinity.required, domain))
        ordered = tuple(sorted(placements, key=lambda each: MARKS.index(each.mark)))
        return PlacedGroup(given.name, given.service, domain, at, new, ordered)

    def _running(
        self,
        service: str,
        group: str,
        instances: Iterable[RunningInstance],
        entry: PlanGroup | None,
    ) -> Iterator[Placement]:
        removed = {each.name for each in entry.removed} if entry else set()
        moved = {each.name: each for each in entry.moved} if entry else {}
        roles = self.instance.services[self.instance.service_index[service]].roles
        for each in instances:
            role = roles[each.role]
            shape = role.shapes[role.shape_index[each.shape]]
            here = tuple(
                (self.instance.node_index[node], gpus)
                for node, (_, gpus) in zip(each.nodes, shape.pod_list, strict=True)
            )
            head = (group, service, each.role, each.shape, each.name)
            if each.name in removed:
                yield Placement(*head, "removed", here)
            elif each.name in moved:
                there = self._pods(moved[each.name])
                yield Placement(*head, "left", here, there)
                yield Placement(*head, "moved", there, here)
            else:
                yield Placement(*head, "draining" if each.state == "draining" else "kept", here)

    def _added(self, entry: PlanGroup) -> Iterator[Placement]:
        for each in entry.added:
            yield Placement(
                entry.name,
                entry.service,
                each.role,
                each.shape,
                each.name,
                "added",
                self._pods(each),
            )

    def _pods(self, placed: PlacedInstance) -> tuple[tuple[int, int], ...]:
        return tuple((self.instance.node_index[pod.node], pod.gpus) for pod in placed.pods)


def render(
    instance: Instance, plan: Plan | None = None, *, nodes: bool | None = None
) -> RenderableType:
    """Draw the topology tree with what runs on it and what a plan changes.

    Parameters
    ----------
    instance
        The problem.
    plan
        The decision; null draws the running state.
    nodes
        Whether nodes are listed one by one or as one row per GPU type; default one by one up to
        64 nodes.

    Returns
    -------
    rich.console.RenderableType
        Readable from 80 columns on, with and without colour.

    Raises
    ------
    InputError
        If the plan names what the instance does not have.
    """
    picture = Picture(instance, plan)
    one_by_one = len(instance.nodes) <= FEW_NODES if nodes is None else nodes
    parts: list[RenderableType] = []
    if instance.description:
        parts.append(Text(clean(instance.description)))
    parts.append(_tree(picture, one_by_one))
    if plan is not None:
        parts.append(Text(_LEGEND, style="dim"))
    parts.append(_worth(picture))
    return Group(*parts)


def plan_tables(instance: Instance, plan: Plan) -> RenderableType:
    """Write a plan for people: per service and deployment group, what happens and where.

    Parameters
    ----------
    instance
        The problem.
    plan
        The decision.

    Returns
    -------
    rich.console.RenderableType
        One block per service, the highest priority first; groups that stay as they are share one
        line.

    Raises
    ------
    InputError
        If the plan names what the instance does not have.
    """
    picture = Picture(instance, plan)
    groups: dict[str, list[PlacedGroup]] = defaultdict(list)
    for group in picture.groups:
        groups[group.service].append(group)
    outcomes: dict[str, list[RoleOutcome]] = defaultdict(list)
    for outcome in picture.evaluation.roles:
        outcomes[outcome.service].append(outcome)
    parts: list[RenderableType] = []
    for service in sorted(instance.services, key=lambda each: -each.priority):
        parts.append(_service_heading(service, outcomes[service.name]))
        parts.extend(_service_groups(picture, service, groups[service.name]))
    return Group(*parts)


# --------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Escape everything a terminal could take for a command: control and format characters."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def number(value: Fraction) -> str:
    """Write a number for people, with at most two decimals unless it is very small."""
    if value == int(value):
        return f"{int(value):,}"
    if -1 < value < 1:
        return f"{float(value):.3g}"
    return f"{float(value):,.2f}".rstrip("0").rstrip(".")


def _count(amount: int, word: str) -> str:
    return f"{amount:,} {word}" if amount == 1 else f"{amount:,} {word}s"


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``n2`` before ``n10``."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(0, int(part), "") if at % 2 else (1, 0, part) for at, part in enumerate(parts)]


def _names(names: Iterable[str], most: int = 4) -> str:
    """Up to ``most`` names, or the first two and how many more."""
    ordered = sorted(set(names), key=_natural)
    if len(ordered) <= most:
        return ", ".join(clean(name) for name in ordered)
    return f"{clean(ordered[0])}, {clean(ordered[1])} … (+{len(ordered) - 2})"


# --------------------------------------------------------------------------------------------
# The tree
# --------------------------------------------------------------------------------------------


def _tree(picture: Picture, one_by_one: bool) -> Tree:
    graph = picture.view.graph()
    placed: dict[int, list[Placement]] = defaultdict(list)
    for placement in picture.placements():
        placed[picture.common_domain(placement)].append(placement)
    finest: dict[int, list[int]] = defaultdict(list)
    after = [0] * len(picture.view.domains)
    for index, path in enumerate(picture.view.node_path):
        finest[path[-1]].append(index)
        for place in (ROOT, *path):
            after[place] += picture.free_after[index]
    trees: dict[int, Tree] = {}
    for domain in picture.view.domains:
        label = _domain_label(picture, graph.nodes[domain.index], after[domain.index])
        above = trees.get(domain.parent)
        tree = Tree(label, guide_style="dim") if above is None else above.add(label)
        trees[domain.index] = tree
        for line in _role_lines(picture, placed[domain.index]):
            tree.add(line)
        members = finest[domain.index]
        if one_by_one:
            for node in members:
                tree.add(_node_label(picture, node))
        else:
            for line in _condensed(picture, members):
                tree.add(line)
    return trees[ROOT]


def _domain_label(picture: Picture, data: dict[str, object], after: int) -> Text:
    text = Text()
    if data["level"] is None:
        text.append(clean(picture.instance.name) or "fleet", style="bold")
        text.append(f" · {_count(len(picture.instance.nodes), 'node')}")
    else:
        text.append(f"{clean(str(data['level']))} ")
        text.append(clean(str(data["name"])), style="bold")
        text.append(" · RDMA ")
        text.append(str(data["tier"]), style=_TIER_STYLE[str(data["tier"])])
        types = data["gpu_types"]
        if isinstance(types, list) and types:
            text.append(" · " + ", ".join(clean(each) for each in types))
    text.append(f" · {data['gpus']:,} GPUs, {data['free']:,} free")
    if picture.plan is not None:
        text.append(f", {after:,} after")
    if data["level"] is None:
        text.append(_held_back(picture))
    return text


def _held_back(picture: Picture) -> str:
    reserved = sum(node.reserved for node in picture.instance.nodes)
    cordoned = sum(not node.schedulable for node in picture.instance.nodes)
    text = f", {reserved:,} reserved" if reserved else ""
    return text + (f", {_count(cordoned, 'cordoned node')}" if cordoned else "")


def _role_lines(picture: Picture, placements: list[Placement]) -> Iterator[Text]:
    """One line per service and role: what delivers after the plan, then the changes."""
    found: dict[tuple[str, str], Counter[Mark]] = defaultdict(Counter)
    gpus: Counter[tuple[str, str]] = Counter()
    for each in placements:
        key = each.service, each.role
        found[key][each.mark] += 1
        gpus[key] += each.gpus if each.mark in DELIVERS else 0
    for service, role in sorted(found, key=lambda key: picture.role_order[key]):
        marks = found[service, role]
        amount = sum(marks[mark] for mark in DELIVERS)
        text = Text(f"{clean(service)} {clean(role)} ×{amount:,}", style="bold")
        if amount:
            text.append(f" ({gpus[service, role]:,} GPUs)", style="not bold")
        for mark in ("added", "removed", "moved", "left", "draining"):
            if marks[mark]:
                text.append("  ")
                words = f"{_SIGN[mark]}{marks[mark]:,} {_WORDS[mark]}"
                text.append(words, style=f"not bold {_STYLE[mark]}")
        yield text


def _node_label(picture: Picture, index: int) -> Text:
    node = picture.instance.nodes[index]
    text = Text(f"{clean(node.name)} · {clean(node.gpu_type)} · {node.gpus:,} GPUs")
    text.append(f", {picture.view.free[index]:,} free")
    if picture.plan is not None and picture.free_after[index] != picture.view.free[index]:
        text.append(f", {picture.free_after[index]:,} after")
    if node.reserved:
        text.append(f", {node.reserved:,} reserved", style="blue")
    if not node.schedulable:
        text.append(", cordoned", style="red")
    amounts: Counter[tuple[str, str, Mark]] = Counter()
    for placement, gpus in picture.pods[index]:
        amounts[placement.service, placement.role, placement.mark] += gpus
    for place, ((service, role, mark), gpus) in enumerate(amounts.items()):
        text.append(": " if place == 0 else ", ")
        words = f"{_SIGN[mark]}{clean(service)} {clean(role)} {gpus:,}"
        text.append(words, style=_STYLE[mark])
    return text


def _condensed(picture: Picture, members: list[int]) -> Iterator[Text]:
    """One row per GPU type and size, with how many nodes are free, in use or held back."""
    free = picture.view.free if picture.plan is None else picture.free_after
    rows: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    order: dict[str, tuple[int, int]] = {}
    for index in members:
        node = picture.instance.nodes[index]
        if not node.schedulable:
            use, rank = "cordoned", (2, 0)
        elif node.gpus and free[index] == node.gpus:
            use, rank = "free whole", (0, 0)
        elif node.gpus and free[index] == 0:
            use, rank = "full", (1, node.gpus)
        elif node.gpus:
            use, rank = f"with {free[index]:,} free", (1, -free[index])
        else:
            use, rank = "without GPUs", (3, 0)
        if node.reserved:
            use, rank = f"{use} ({node.reserved:,} reserved)", (rank[0], rank[1] + 1)
        order.setdefault(use, rank)
        rows[node.gpu_type, node.gpus][use] += 1
    when = "" if picture.plan is None else "after: "
    for (gpu_type, gpus), uses in rows.items():
        row = Text(f"{sum(uses.values()):,} × {clean(gpu_type)} {gpus:,} GPUs, {when}")
        row.append(
            ", ".join(f"{uses[use]:,} {use}" for use in sorted(uses, key=lambda use: order[use]))
        )
        yield row


def _worth(picture: Picture) -> RenderableType:
    """List the objective's steps and the roles that fall short of their targets."""
    evaluation = picture.evaluation
    steps = ", ".join(f"{clean(step.name)} {number(step.value)}" for step in evaluation.steps)
    short = [role for role in evaluation.roles if role.unmet]
    when = "now" if picture.plan is None else "after the plan"
    lines = [Text(f"Objective {when}: {steps}")]
    if not short:
        lines.append(Text(f"Every target is met {when}."))
    else:
        lines.append(Text(f"{_count(len(short), 'role')} below target {when}:"))
        lines.extend(Text(f"  {clean(role.service)} {_outcome(role)}") for role in short)
    return Group(*lines)


def _outcome(role: RoleOutcome) -> str:
    text = f"{clean(role.role)} {number(role.delivered)} of {number(role.target)}"
    if role.unmet:
        text += f", unmet {number(role.unmet)} ({number(role.unmet_gpus)} GPUs)"
    return text


# --------------------------------------------------------------------------------------------
# The plan, group by group
# --------------------------------------------------------------------------------------------


def _service_heading(service: Service, outcomes: list[RoleOutcome]) -> Text:
    text = Text(clean(service.name), style="bold")
    text.append(f" · priority {service.priority}", style="not bold")
    for outcome in outcomes:
        style = "not bold red" if outcome.unmet else "not bold"
        text.append(" · ", style="not bold")
        text.append(_outcome(outcome), style=style)
    return text


def _service_groups(
    picture: Picture, service: Service, groups: list[PlacedGroup]
) -> Iterator[RenderableType]:
    changed = [group for group in groups if group.changed]
    same = [group.name for group in groups if not group.changed]
    what = Counter(
        _what(each) for group in changed for each in group.placements if each.mark != "left"
    )
    width = min(36, max((len(text) for text in what), default=0) + 4)
    level = service.affinity.required
    for group in changed:
        where = (
            "the whole fleet" if level is None else f"{clean(level)} {clean(group.domain or '?')}"
        )
        state = "new" if group.new else "running"
        heading = Text("  group ").append(clean(group.name), style="bold")
        yield heading.append(f" in {where}, {state}", style="not bold")
        yield Padding(_group_rows(picture, group, width), (0, 0, 0, 4))
    if same:
        unchanged = f"  {_count(len(same), 'group')} unchanged: {_names(same)}"
        yield Text(unchanged, style="dim")
    if not groups:
        yield Text("  no group", style="dim")
    yield Text()


def _group_rows(picture: Picture, group: PlacedGroup, width: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=10, no_wrap=True)
    table.add_column(min_width=width, overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    rows: dict[tuple[Mark, str], list[Placement]] = defaultdict(list)
    for placement in sorted(group.placements, key=lambda each: _ROWS.index(each.mark)):
        if placement.mark != "left":
            rows[placement.mark, _what(placement)].append(placement)
    for (mark, what), found in rows.items():
        place = _where(picture, (pod for each in found for pod in each.pods))
        if mark == "moved":
            origin = _where(picture, (pod for each in found for pod in each.other))
            place = f"{origin} → {place}"
        table.add_row(
            Text(f"{_SIGN[mark] or ' '} {'moved' if mark == 'moved' else _WORDS[mark]}"),
            Text(f"{len(found):,} × {what}"),
            Text(f"{sum(each.gpus for each in found):,} GPUs"),
            Text(place),
            style=_STYLE[mark],
        )
    return table


def _what(placement: Placement) -> str:
    return f"{clean(placement.role)} {clean(placement.shape)}"


def _where(picture: Picture, pods: Iterable[tuple[int, int]], most: int = 6) -> str:
    """Domains of the finest level with the names of their nodes."""
    nodes: dict[str, set[str]] = defaultdict(set)
    for index, _ in pods:
        node = picture.instance.nodes[index]
        nodes[node.domains[picture.instance.levels[-1]]].add(node.name)
    domains = sorted(nodes, key=_natural)
    shown = domains if len(domains) <= most else domains[: most - 1]
    text = "; ".join(f"{clean(domain)}: {_names(nodes[domain])}" for domain in shown)
    if len(domains) > len(shown):
        rest = {name for domain in domains[len(shown) :] for name in nodes[domain]}
        level = clean(picture.instance.levels[-1])
        text += f"; … (+{len(domains) - len(shown)} {level}, {_count(len(rest), 'node')})"
    return text or "nowhere"
