"""A session: one cluster over many scheduling cycles.

What is known of an instance is kept between cycles, and only what a cycle changes is read again.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from heteroplace.check import Checker
from heteroplace.decision import Added, Decision, Naming
from heteroplace.errors import InputError
from heteroplace.faults import instance_faults, service_faults
from heteroplace.files import validated
from heteroplace.instance import (
    Count,
    Instance,
    Name,
    Node,
    Noun,
    Role,
    RunningGroup,
    RunningInstance,
    Service,
)
from heteroplace.plan import PlacedInstance, Plan, PlanGroup, Result, assembled
from heteroplace.profile import Profile
from heteroplace.quantity import NonNegative
from heteroplace.solve import Prepared, solve_prepared
from heteroplace.solve.greedy import greedy
from heteroplace.topology import ROOT, TreeView

Number = int | float | str | Fraction | Decimal

_INSTANCE = set(Instance.model_fields)
_GROUP = set(RunningGroup.model_fields)
_RUNNING = set(RunningInstance.model_fields)


class Delta(Noun):
    """What changed since the last look; the parameters are those of :meth:`Session.update`.

    Parameters
    ----------
    targets, minimums
        New target and ``min`` by service and role.
    add_nodes, remove_nodes
        Nodes in, and names of nodes out.
    cordon, uncordon
        Names of nodes.
    reserved
        GPUs held back, by node name.
    add_services, remove_services
        Services in, and names of services out.
    finished, draining, ready
        Names of instances, by name of their group.
    """

    targets: dict[Name, dict[Name, NonNegative]] = Field(default_factory=dict)
    minimums: dict[Name, dict[Name, NonNegative]] = Field(default_factory=dict)
    add_nodes: tuple[Node, ...] = ()
    remove_nodes: tuple[Name, ...] = ()
    cordon: tuple[Name, ...] = ()
    uncordon: tuple[Name, ...] = ()
    reserved: dict[Name, Count] = Field(default_factory=dict)
    add_services: tuple[Service, ...] = ()
    remove_services: tuple[Name, ...] = ()
    finished: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    draining: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    ready: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)


class Session:
    """One cluster over many scheduling cycles.

    A session holds the instance and what a solve needs to know of it: the tree view, what names
    and what checks plans, and the last plan. Nodes come and go, targets move, instances end and
    plans are carried out; each of these costs what it changes.

    Parameters
    ----------
    instance
        The problem at the start; not changed.
    profile
        How to solve unless a solve says otherwise; default :class:`Profile`.

    Notes
    -----
    A session is for one thread at a time: guard it with a lock where several share it. Different
    sessions share nothing that changes.
    """

    def __init__(self, instance: Instance, profile: Profile | None = None) -> None:
        self.profile = profile or Profile()
        self._state = _State.of(instance)
        self._naming: Naming | None = None
        self._checker: Checker | None = None
        self._digest = _Digest()
        self._solved: tuple[Instance, Profile, Result] | None = None
        self._pending: Plan | None = None

    @property
    def instance(self) -> Instance:
        """The problem as it is now; later changes make a new one."""
        return self._state.instance

    def update(
        self,
        *,
        targets: Mapping[str, Mapping[str, Number]] | None = None,
        minimums: Mapping[str, Mapping[str, Number]] | None = None,
        add_nodes: Iterable[Node | Mapping[str, Any]] = (),
        remove_nodes: Iterable[str] = (),
        cordon: Iterable[str] = (),
        uncordon: Iterable[str] = (),
        reserved: Mapping[str, int] | None = None,
        add_services: Iterable[Service | Mapping[str, Any]] = (),
        remove_services: Iterable[str] = (),
        finished: Mapping[str, Iterable[str]] | None = None,
        draining: Mapping[str, Iterable[str]] | None = None,
        ready: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """Take in what changed, all of it or nothing.

        The changes are made in this order, whatever the order of the arguments: ``finished``,
        ``draining``, ``ready``, services out and in, nodes out and in, ``cordon``, ``uncordon``,
        ``reserved``, ``targets``, ``minimums``. So a node or service that is named both in
        ``remove_*`` and ``add_*`` is replaced, and what comes in can be set at once.

        Parameters
        ----------
        targets, minimums
            New target and ``min`` of roles: service name to role name to capacity.
        add_nodes
            Nodes in, as :class:`~heteroplace.instance.Node` or dicts; they come last.
        remove_nodes
            Names of nodes out; nothing may run there any more.
        cordon, uncordon
            Names of nodes on which nothing new may arrive, and may again.
        reserved
            GPUs held back, by node name.
        add_services
            Services in, as :class:`~heteroplace.instance.Service` or dicts; they come last.
        remove_services
            Names of services out; no group of theirs may run any more.
        finished
            Instances that have ended: group name to instance names. A group without instances
            is gone.
        draining, ready
            Instances that now drain, or are ready again: group name to instance names.

        Raises
        ------
        InputError
            If the change is not one, or what it leads to is not a valid instance; names the
            parameter at fault. The session is then what it was.
        """
        given = {
            "targets": targets or {},
            "minimums": minimums or {},
            "add_nodes": add_nodes,
            "remove_nodes": remove_nodes,
            "cordon": cordon,
            "uncordon": uncordon,
            "reserved": reserved or {},
            "add_services": add_services,
            "remove_services": remove_services,
            "finished": finished or {},
            "draining": draining or {},
            "ready": ready or {},
        }
        delta = validated(lambda: Delta.model_validate(given))
        draft = _Draft(self._state)
        draft.change(delta)
        self._state = draft.state()

    def apply(self, plan: Plan) -> None:
        """Take in that a plan was carried out, or a part of one.

        Added instances are ready where the plan puts them, removed ones are gone, moved ones run
        on their new nodes; groups that the plan opens run, groups without instances are gone. An
        added instance without a name is called ``<role>-<number>``: the first number from the
        count of the role's instances in the group on that is free there. What the plan lists as
        kept is not looked at. Whether the plan keeps the constraints is not judged, see
        :func:`heteroplace.check`; what runs then must be possible, however.

        Parameters
        ----------
        plan
            The plan of the last solve or any other; its ``instance_digest`` is not compared, since
            targets may have moved while it was carried out.

        Raises
        ------
        InputError
            If the plan names something that is not there, or a pod does not fit its node; names
            the field of the plan. The session is then what it was.
        """
        draft = _Draft(self._state)
        draft.carry_out(plan)
        self._state = draft.state()
        self._pending = None

    def solve(self, profile: Profile | None = None) -> Result:
        """Decide where every instance goes, as :func:`heteroplace.solve` on :attr:`instance`.

        The last plan, as far as it has not been carried out and still makes sense, is where exact
        solvers start. When nothing has changed since a solve with the same profile that proved
        its plan optimal, its result is returned again.

        Parameters
        ----------
        profile
            How to solve; default the session's.

        Returns
        -------
        Result
            As of :func:`heteroplace.solve`; bringing the session up to date counts as ``build``.
        """
        began = time.monotonic()
        profile = profile or self.profile
        instance = self.instance
        if self._solved is not None:
            known, with_profile, result = self._solved
            if known is instance and with_profile == profile and result.status == "optimal":
                return result
        prepared = self._prepared(began, profile)
        spent = time.monotonic() - began
        rest = profile
        if profile.time_limit is not None:
            # Not below a millisecond: a solver without time still gives a plan.
            left = max(0.001, profile.time_limit - spent)
            rest = profile.model_copy(update={"time_limit": left})
        result = solve_prepared(instance, rest, prepared)
        seconds = result.seconds
        seconds = seconds.model_copy(update={"build": seconds.build + spent})
        result = result.model_copy(update={"seconds": seconds, "profile": profile.model_dump()})
        self._solved = (instance, profile, result)
        self._pending = result.plan
        return result

    def _prepared(self, began: float, profile: Profile) -> Prepared:
        state = self._state
        instance, tree = state.instance, state.tree
        if "digest" not in instance.__dict__:
            instance.__dict__["digest"] = self._digest.of(instance)
        naming, checker = self._naming, self._checker
        if naming is None or checker is None:
            naming, checker = Naming(tree), Checker(instance)
        elif naming.tree is not tree:
            naming, checker = naming.updated(tree), checker.updated(instance)
        self._naming, self._checker = naming, checker
        prepared = Prepared(tree, naming, checker)
        if self._pending is None or profile.solver in ("greedy", "greedy-pods"):
            return prepared
        deadline = None if profile.time_limit is None else began + profile.time_limit / 4
        return Prepared(tree, naming, checker, _start(self._pending, prepared, deadline))


# --------------------------------------------------------------------------------------------
# The state and its changes
# --------------------------------------------------------------------------------------------


Domains = dict[tuple[str, str], tuple[str, int]]


@dataclass(frozen=True)
class _State:
    """An instance and the indexes that its changes are checked with.

    Parameters
    ----------
    instance, tree
        The problem and its view.
    nodes, services, running
        By name, in the order of the instance.
    domains
        Name of the domain above and number of nodes, by level and name.
    gpu_types
        Number of nodes of each GPU type.
    """

    instance: Instance
    tree: TreeView
    nodes: dict[str, Node]
    services: dict[str, Service]
    running: dict[str, RunningGroup]
    domains: Domains
    gpu_types: Counter[str]

    @classmethod
    def of(cls, instance: Instance) -> _State:
        domains: Domains = {}
        for node in instance.nodes:
            _count_domains(domains, instance.levels, node, 1)
        return cls(
            instance,
            TreeView(instance),
            {node.name: node for node in instance.nodes},
            {service.name: service for service in instance.services},
            {group.name: group for group in instance.running},
            domains,
            Counter(node.gpu_type for node in instance.nodes),
        )


def _count_domains(domains: Domains, levels: tuple[str, ...], node: Node, by: int) -> None:
    parent = ""
    for level in levels:
        name = node.domains[level]
        count = domains.get((level, name), ("", 0))[1] + by
        if count:
            domains[level, name] = (parent, count)
        else:
            del domains[level, name]
        parent = name


class _Draft:
    """The next state in the making; the present one is not touched."""

    def __init__(self, state: _State) -> None:
        self.before = state
        self.levels = state.instance.levels
        self.nodes = dict(state.nodes)
        self.services = dict(state.services)
        self.running = dict(state.running)
        self.domains = state.domains
        self.gpu_types = state.gpu_types
        self.freed: Counter[str] = Counter()
        """GPUs of what has left, by node name."""

    def state(self) -> _State:
        """The next state; shares with the present one what is the same."""
        old = self.before.instance
        nodes = _same_or(old.nodes, tuple(self.nodes.values()))
        services = _same_or(old.services, tuple(self.services.values()))
        running = _same_or(old.running, tuple(self.running.values()))
        if nodes is old.nodes and services is old.services and running is old.running:
            return self.before
        instance = assembled(
            Instance,
            {
                **{name: getattr(old, name) for name in Instance.model_fields},
                "nodes": nodes,
                "services": services,
                "running": running,
            },
            _INSTANCE,
        )
        known = instance.__dict__
        known["rdma_levels"] = old.rdma_levels
        if nodes is old.nodes or list(self.nodes) == list(self.before.nodes):
            known["node_index"] = old.node_index
        if services is old.services or list(self.services) == list(self.before.services):
            known["service_index"] = old.service_index
        return _State(
            instance,
            self.before.tree.updated(instance),
            self.nodes,
            self.services,
            self.running,
            self.domains,
            self.gpu_types,
        )

    # ----------------------------------------------------------------------------------------
    # Deltas
    # ----------------------------------------------------------------------------------------

    def change(self, delta: Delta) -> None:
        """Make the changes of a delta."""
        for group, names in delta.finished.items():
            self._finish(group, names)
        self._set_state("draining", delta.draining, "draining")
        self._set_state("ready", delta.ready, "ready")
        self._change_services(delta)
        self._change_fleet(delta)
        self._set_nodes(delta)
        self._set_targets(delta)

    def _group(self, path: str, name: str) -> RunningGroup:
        group = self.running.get(name)
        if group is None:
            raise InputError(path, f"no group {name!r} runs; drop it or correct its name")
        return group

    def _numbers(self, path: str, group: RunningGroup, names: Iterable[str]) -> list[int]:
        """Places of instances in their group."""
        known = {str(each.name): number for number, each in enumerate(group.instances)}
        found = []
        for place, name in enumerate(names):
            number = known.pop(name, None)
            if number is None:
                twice = any(each.name == name for each in group.instances)
                message = "is named twice" if twice else f"no such instance in {group.name!r}"
                raise InputError(f"{path}[{place}]", f"{name!r}: {message}; drop it")
            found.append(number)
        return found

    def _finish(self, name: str, names: tuple[str, ...]) -> None:
        path = _at("finished", name)
        group = self._group(path, name)
        gone = set(self._numbers(path, group, names))
        left = []
        for number, each in enumerate(group.instances):
            if number in gone:
                self._leave(group, each)
            else:
                left.append(each)
        self._put(group, left)

    def _leave(self, group: RunningGroup, each: RunningInstance) -> None:
        shape = self.before.tree.shape_of(group, each)
        for name, (_, gpus) in zip(each.nodes, shape.pod_list, strict=True):
            self.freed[name] += gpus

    def _put(self, group: RunningGroup, instances: list[RunningInstance]) -> None:
        """Give a running group other instances; it stays bound to the domain it has now."""
        if not instances:
            del self.running[group.name]
            return
        if len(instances) == len(group.instances) and all(
            new is old for new, old in zip(instances, group.instances, strict=True)
        ):
            return
        domain = group.domain
        if domain is None:
            domain = _bound(self.before.tree, self.before.running[group.name])
        self.running[group.name] = assembled(
            RunningGroup,
            {
                "name": group.name,
                "service": group.service,
                "domain": domain,
                "instances": tuple(instances),
            },
            _GROUP,
        )

    def _set_state(
        self,
        parameter: str,
        given: Mapping[str, tuple[str, ...]],
        state: Literal["ready", "draining"],
    ) -> None:
        for name, names in given.items():
            path = _at(parameter, name)
            group = self._group(path, name)
            instances = list(group.instances)
            for number in self._numbers(path, group, names):
                each = instances[number]
                if each.state != state:
                    instances[number] = each.model_copy(update={"state": state})
            self._put(group, instances)

    def _change_services(self, delta: Delta) -> None:
        for place, name in enumerate(delta.remove_services):
            path = f"remove_services[{place}]"
            if self.services.pop(name, None) is None:
                raise InputError(path, f"unknown service {name!r}; drop it or correct its name")
            for group in self.running.values():
                if group.service == name:
                    raise InputError(
                        path, f"group {group.name!r} of {name!r} still runs; finish it first"
                    )
        for place, service in enumerate(delta.add_services):
            if service.name in self.services:
                raise InputError(
                    f"add_services[{place}].name",
                    f"{service.name!r} is already the name of a service; remove that or rename",
                )
            self.services[service.name] = service
        if not self.services:
            raise InputError("remove_services", "no service would be left; keep one")

    def _change_fleet(self, delta: Delta) -> None:
        if delta.add_nodes or delta.remove_nodes:
            self.domains, self.gpu_types = dict(self.domains), Counter(self.gpu_types)
            for place, name in enumerate(delta.remove_nodes):
                self._remove_node(f"remove_nodes[{place}]", name)
            for place, node in enumerate(delta.add_nodes):
                self._add_node(f"add_nodes[{place}]", node)
            if not self.nodes:
                raise InputError("remove_nodes", "no node would be left; keep one")
            self._refuse_losses()
        types = set(self.gpu_types)
        for place, service in enumerate(delta.add_services):
            for where, message in service_faults(
                f"add_services[{place}]", service, self.levels, types
            ):
                raise InputError(where, message)

    def _remove_node(self, path: str, name: str) -> None:
        node = self.nodes.pop(name, None)
        if node is None:
            raise InputError(path, f"unknown node {name!r}; drop it or correct its name")
        number = self.before.instance.node_index[name]
        if self.before.tree.used[number] > self.freed[name]:
            group = next(
                group.name
                for group in self.running.values()
                if any(name in each.nodes for each in group.instances)
            )
            raise InputError(
                path,
                f"group {group!r} still runs on {name!r}; finish or move what runs there first",
            )
        _count_domains(self.domains, self.levels, node, -1)
        self.gpu_types[node.gpu_type] -= 1
        if not self.gpu_types[node.gpu_type]:
            del self.gpu_types[node.gpu_type]

    def _add_node(self, path: str, node: Node) -> None:
        if node.name in self.nodes:
            raise InputError(
                f"{path}.name",
                f"{node.name!r} is already the name of a node; remove that or rename",
            )
        if node.reserved > node.gpus:
            raise InputError(f"{path}.reserved", _too_much_reserved(node.reserved, node))
        for level in node.domains:
            if level not in self.levels:
                raise InputError(
                    f"{path}.domains", f"unknown level {level!r}; known: {', '.join(self.levels)}"
                )
        parent = ""
        for level in self.levels:
            domain = node.domains.get(level)
            if domain is None:
                raise InputError(f"{path}.domains", f"lacks the level {level!r}; name its domain")
            above = self.domains.get((level, domain), (parent, 0))[0]
            if above != parent:
                raise InputError(
                    f"{path}.domains.{level}",
                    f"{domain!r} is under {parent!r} here but under {above!r} for the nodes that "
                    "are there; a domain has one parent, rename one of them",
                )
            parent = domain
        self.nodes[node.name] = node
        _count_domains(self.domains, self.levels, node, 1)
        self.gpu_types[node.gpu_type] += 1

    def _refuse_losses(self) -> None:
        """Refuse to lose GPU types and domains that services and groups are bound to."""
        types = self.before.gpu_types.keys() - self.gpu_types.keys()
        if types:
            for service in self.services.values():
                for name, role in service.roles.items():
                    for shape in role.shapes:
                        for gpu_type, _ in shape.pod_list:
                            if gpu_type in types:
                                raise InputError(
                                    "remove_nodes",
                                    f"no {gpu_type} node would be left, but {name} of "
                                    f"{service.name!r} has a shape on it; keep one, cordoned, or "
                                    "remove the service",
                                )
        if self.before.domains.keys() - self.domains.keys():
            for group in self.running.values():
                level = self.services[group.service].affinity.required
                if (
                    group.domain is not None
                    and level is not None
                    and (level, group.domain) not in self.domains
                ):
                    raise InputError(
                        "remove_nodes",
                        f"no node would be left in the {level} {group.domain!r} that group "
                        f"{group.name!r} is bound to; keep one or finish the group first",
                    )

    def _node(self, path: str, name: str) -> Node:
        node = self.nodes.get(name)
        if node is None:
            raise InputError(path, f"unknown node {name!r}; drop it or correct its name")
        return node

    def _set_nodes(self, delta: Delta) -> None:
        for parameter, names in (("cordon", delta.cordon), ("uncordon", delta.uncordon)):
            schedulable = parameter == "uncordon"
            for place, name in enumerate(names):
                path = f"{parameter}[{place}]"
                node = self._node(path, name)
                if schedulable and name in delta.cordon:
                    raise InputError(path, f"{name!r} is in cordon as well; drop one of them")
                if node.schedulable != schedulable:
                    self.nodes[name] = node.model_copy(update={"schedulable": schedulable})
        for name, reserved in delta.reserved.items():
            path = _at("reserved", name)
            node = self._node(path, name)
            if reserved > node.gpus:
                raise InputError(path, _too_much_reserved(reserved, node))
            if node.reserved != reserved:
                self.nodes[name] = node.model_copy(update={"reserved": reserved})

    def _set_targets(self, delta: Delta) -> None:
        changed: dict[tuple[str, str], Role] = {}
        for parameter, field_name in (("targets", "target"), ("minimums", "min")):
            given: dict[str, dict[str, Fraction]] = getattr(delta, parameter)
            for name, roles in given.items():
                service = self.services.get(name)
                if service is None:
                    raise InputError(
                        _at(parameter, name),
                        f"unknown service {name!r}; drop it or correct its name",
                    )
                for role_name, number in roles.items():
                    role = changed.get((name, role_name)) or service.roles.get(role_name)
                    if role is None:
                        raise InputError(
                            _at(_at(parameter, name), role_name),
                            f"unknown role {role_name!r}; known: {', '.join(service.roles)}",
                        )
                    if getattr(role, field_name) != number:
                        changed[name, role_name] = role.model_copy(update={field_name: number})
        for (name, role_name), role in changed.items():
            if role.min > role.target:
                raised = role_name in delta.minimums.get(name, {})
                parameter = "minimums" if raised else "targets"
                raise InputError(
                    _at(_at(parameter, name), role_name),
                    f"min {float(role.min):g} is above the target {float(role.target):g}; "
                    "lower min or raise target",
                )
            service = self.services[name]
            self.services[name] = service.model_copy(
                update={"roles": {**service.roles, role_name: role}}
            )

    # ----------------------------------------------------------------------------------------
    # Plans
    # ----------------------------------------------------------------------------------------

    def carry_out(self, plan: Plan) -> None:
        """Make the changes of a plan."""
        changes: list[_Change] = []
        seen: set[str] = set()
        for place, given in enumerate(plan.groups):
            if given.added or given.removed or given.moved:
                change = self._read_change(f"groups[{place}]", given)
                if given.name in seen:
                    raise InputError(
                        f"{change.path}.name", f"{given.name!r} is named twice; merge the entries"
                    )
                seen.add(given.name)
                changes.append(change)
        arriving = {
            pod.node
            for change in changes
            for entry in (*change.given.added, *change.given.moved)
            for pod in entry.pods
        }
        tree, number = self.before.tree, self.before.instance.node_index
        used = Counter(
            {
                name: tree.used[number[name]] - self.freed[name]
                for name in arriving
                if name in number
            }
        )
        for change in changes:
            self._settle(change, used)

    def _read_change(self, path: str, given: PlanGroup) -> _Change:
        """What a plan does to a group; what it takes away leaves its nodes."""
        group = self.running.get(given.name)
        if given.new and group is not None:
            raise InputError(
                f"{path}.name", f"{given.name!r} runs already; a new group needs a new name"
            )
        if not given.new and group is None:
            raise InputError(
                f"{path}.name", f"no group {given.name!r} runs; set new to true to open it"
            )
        service = self.services.get(given.service)
        if service is None:
            raise InputError(f"{path}.service", f"unknown service {given.service!r}")
        change = _Change(path, given, service, group)
        if group is None:
            if given.removed or given.moved:
                raise InputError(path, "a new group has only added instances")
            self._check_domain(f"{path}.domain", service, given.domain)
            return change
        if group.service != given.service:
            raise InputError(f"{path}.service", f"{given.name!r} belongs to {group.service!r}")
        for kind in ("removed", "moved"):
            entries: tuple[PlacedInstance, ...] = getattr(given, kind)
            where = f"{path}.{kind}"
            numbers = self._numbers(where, group, [str(entry.name) for entry in entries])
            for place, (number, entry) in enumerate(zip(numbers, entries, strict=True)):
                each = group.instances[number]
                if (entry.role, entry.shape) != (each.role, each.shape):
                    raise InputError(
                        f"{where}[{place}]", f"{entry.name!r} runs as {each.role}/{each.shape}"
                    )
                if number in change.leaving:
                    raise InputError(
                        f"{where}[{place}].name", f"{entry.name!r} is removed as well; drop one"
                    )
                change.leaving[number] = (f"{where}[{place}]", entry if kind == "moved" else None)
                self._leave(group, each)
        return change

    def _check_domain(self, path: str, service: Service, domain: str | None) -> None:
        level = service.affinity.required
        if level is None and domain is not None:
            raise InputError(path, f"{service.name!r} has no required affinity; use null")
        if level is not None and (level, str(domain)) not in self.domains:
            raise InputError(path, f"{domain!r} is no domain of the required level {level!r}")

    def _settle(self, change: _Change, used: Counter[str]) -> None:
        """Let what a plan adds and moves run."""
        group, given = change.group, change.given
        instances: list[RunningInstance] = []
        if group is not None:
            for number, each in enumerate(group.instances):
                path, entry = change.leaving.get(number, ("", None))
                if entry is not None:
                    each = self._arrived(path, entry, str(each.name), each.state, change, used)
                if entry is not None or not path:
                    instances.append(each)
        taken = {each.name for each in instances}
        count = Counter(each.role for each in instances)
        for place, entry in enumerate(given.added):
            path = f"{change.path}.added[{place}]"
            if entry.name is None:
                number = count[entry.role]
                # The role's part is cut so that the name keeps to the length of a name.
                while (name := f"{entry.role[:240]}-{number}") in taken:
                    number += 1
            elif (name := entry.name) in taken:
                raise InputError(
                    f"{path}.name", f"{name!r} is already the name of an instance of {given.name!r}"
                )
            taken.add(name)
            count[entry.role] += 1
            instances.append(self._arrived(path, entry, name, "ready", change, used))
        if group is not None:
            self._put(group, instances)
            return
        self.running[given.name] = assembled(
            RunningGroup,
            {
                "name": given.name,
                "service": given.service,
                "domain": given.domain,
                "instances": tuple(instances),
            },
            _GROUP,
        )

    def _arrived(
        self,
        path: str,
        entry: PlacedInstance,
        name: str,
        state: str,
        change: _Change,
        used: Counter[str],
    ) -> RunningInstance:
        each = _running(entry, name, state)
        for where, message in instance_faults(path, each, change.service, self.nodes, used):
            # A plan has the node of each pod where a running instance has its nodes.
            raise InputError(re.sub(r"\.nodes(\[\d+\])?$", _pod_field, where), message)
        role = change.service.roles[each.role]
        shape = role.shapes[role.shape_index[each.shape]]
        for place, (pod, (_, gpus)) in enumerate(zip(entry.pods, shape.pod_list, strict=True)):
            if pod.gpus != gpus:
                raise InputError(
                    f"{path}.pods[{place}].gpus",
                    f"is {pod.gpus}, a pod of shape {each.shape!r} takes {gpus}",
                )
        return each


@dataclass
class _Change:
    """What a plan does to a group.

    Parameters
    ----------
    path, given
        The plan's entry.
    service, group
        The group's service, and the group if it runs.
    leaving
        By number of an instance that leaves its nodes: the plan's entry, and where it moves to.
    """

    path: str
    given: PlanGroup
    service: Service
    group: RunningGroup | None
    leaving: dict[int, tuple[str, PlacedInstance | None]] = field(default_factory=dict)


def _running(entry: PlacedInstance, name: str, state: str) -> RunningInstance:
    return assembled(
        RunningInstance,
        {
            "name": name,
            "role": entry.role,
            "shape": entry.shape,
            "nodes": tuple([pod.node for pod in entry.pods]),
            "state": state,
        },
        _RUNNING,
    )


def _same_or(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    """The old tuple, if the new one has the same objects."""
    if len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True)):
        return old
    return new


def _too_much_reserved(reserved: int, node: Node) -> str:
    return f"is {reserved}, more than the {node.gpus} GPUs of {node.name!r}; reserve fewer"


def _pod_field(match: re.Match[str]) -> str:
    return f".pods{match[1]}.node" if match[1] else ".pods"


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if name.isidentifier() else f"{path}[{name!r}]"


# --------------------------------------------------------------------------------------------
# Where the next solve starts
# --------------------------------------------------------------------------------------------


def _start(plan: Plan, prepared: Prepared, deadline: float | None) -> Decision | None:
    """What a plan adds where that still makes sense, and the greedy's answer for the rest.

    Parameters
    ----------
    plan
        The last plan; made for an earlier state.
    prepared
        What is known of the state now.
    deadline
        Monotonic time at which the greedy stops.

    Returns
    -------
    Decision or None
        None when nothing of the plan is left.
    """
    tree, instance = prepared.tree, prepared.tree.instance
    kept = _Kept(tree)
    for given in plan.groups:
        if given.added:
            kept.take(given)
    decision = kept.decision(set())
    if not decision.added:
        return None
    named, refused = _judged(decision, prepared)
    if refused:
        # Without all of a service's additions the others are as valid as before.
        decision = kept.decision(refused)
        if not decision.added:
            return None
    # What the plan overshoots by looks like a surplus to the greedy.
    more = {group.service for group in named.groups if group.added} - refused
    rest = greedy(tree.updated(_grown(tree, decision)), deadline)
    removed = {
        (group, number)
        for group, number in rest.removed
        if group < len(instance.running)
        and instance.running[group].service not in more
        and number < len(instance.running[group].instances)
    }
    whole = _joined(decision, rest, removed, len(instance.running), lambda group: True)
    # A large instance on top may make a small one of the plan superfluous.
    _, refused = _judged(whole, prepared)
    if refused:
        names = [service.name for service in instance.services]
        services = [instance.service_index[group.service] for group in instance.running]
        services += [service for service, _ in (*decision.new_groups, *rest.new_groups)]
        whole = _joined(
            decision,
            rest,
            removed,
            len(instance.running),
            lambda group: names[services[group]] not in refused,
        )
    return whole


def _judged(decision: Decision, prepared: Prepared) -> tuple[Plan, set[str]]:
    """A decision as a plan, and the services of which additions break a constraint."""
    named = prepared.naming.plan(decision)
    subjects = {each.subject for each in prepared.checker.check(named)}
    if not subjects:
        return named, set()
    return named, {
        group.service
        for group in named.groups
        if group.added
        and not subjects.isdisjoint(
            {group.name, group.service}
            | {f"{group.service}/{each.role}" for each in group.added}
            | {pod.node for each in group.added for pod in each.pods}
        )
    }


def _joined(
    first: Decision,
    rest: Decision,
    removed: set[tuple[int, int]],
    running: int,
    wanted: Callable[[int], bool],
) -> Decision:
    """Two decisions, the second made where the first one's additions run.

    Parameters
    ----------
    first, rest
        The groups that ``rest`` opens count on from those of ``first``.
    removed
        What is removed.
    running
        Number of groups that run now.
    wanted
        Whether what ``rest`` adds to a group is taken.
    """
    added = [each for each in rest.added if wanted(each.group)]
    joined = Decision(list(first.new_groups), list(first.added), removed)
    number: dict[int, int] = {}
    opened = running + len(first.new_groups)
    for each in added:
        group = each.group
        if group >= opened:
            if group not in number:
                number[group] = running + len(joined.new_groups)
                joined.new_groups.append(rest.new_groups[group - opened])
            group = number[group]
        joined.added.append(replace(each, group=group))
    return joined


class _Kept:
    """What a plan adds, in the numbers of another state."""

    def __init__(self, tree: TreeView) -> None:
        self.tree = tree
        self.number = {group.name: place for place, group in enumerate(tree.instance.running)}
        self.groups: list[tuple[str, int | tuple[int, int], list[tuple[str, int, tuple[int, ...]]]]]
        self.groups = []

    def take(self, given: PlanGroup) -> None:
        """Read a group of the plan, unless its service or its domain is gone."""
        tree, instance = self.tree, self.tree.instance
        place = instance.service_index.get(given.service)
        if place is None:
            return
        service = instance.services[place]
        target: int | tuple[int, int]
        known = self.number.get(given.name)
        if known is not None:
            if instance.running[known].service != given.service:
                return
            target = known
        else:
            level = service.affinity.required
            domain = ROOT if level is None else tree.find_domain(level, given.domain)
            if not given.new or domain is None:
                return
            target = (place, domain)
        added = []
        for entry in given.added:
            role = service.roles.get(entry.role)
            index = None if role is None else role.shape_index.get(entry.shape)
            nodes = [instance.node_index.get(pod.node) for pod in entry.pods]
            numbers = tuple([node for node in nodes if node is not None])
            if index is not None and len(numbers) == len(nodes):
                added.append((entry.role, index, numbers))
        if added:
            self.groups.append((given.service, target, added))

    def decision(self, without: set[str]) -> Decision:
        """The additions of all services but some."""
        decision = Decision()
        for service, target, added in self.groups:
            if service in without:
                continue
            if isinstance(target, tuple):
                number = len(self.number) + len(decision.new_groups)
                decision.new_groups.append(target)
            else:
                number = target
            decision.added += [Added(number, *each) for each in added]
        return decision


def _grown(tree: TreeView, decision: Decision) -> Instance:
    """The instance in which what a decision adds runs; only for solvers, it is not checked."""
    instance = tree.instance
    more: dict[int, list[RunningInstance]] = {}
    services = [instance.service_index[group.service] for group in instance.running]
    services += [service for service, _ in decision.new_groups]
    for place, each in enumerate(decision.added):
        shape = instance.services[services[each.group]].roles[each.role].shapes[each.shape]
        more.setdefault(each.group, []).append(
            assembled(
                RunningInstance,
                {
                    "name": f"+{place}",
                    "role": each.role,
                    "shape": shape.name,
                    "nodes": tuple([instance.nodes[node].name for node in each.nodes]),
                    "state": "ready",
                },
                _RUNNING,
            )
        )
    running = list(instance.running)
    for place, added in more.items():
        if place < len(instance.running):
            group = running[place]
            fields = {
                "name": group.name,
                "service": group.service,
                "domain": _bound(tree, group),
                "instances": (*group.instances, *added),
            }
            running[place] = assembled(RunningGroup, fields, _GROUP)
    for place, (service, number) in enumerate(decision.new_groups, len(instance.running)):
        fields = {
            "name": f"+{place}",
            "service": instance.services[service].name,
            "domain": None if number == ROOT else tree.domains[number].name,
            "instances": tuple(more[place]),
        }
        running.append(assembled(RunningGroup, fields, _GROUP))
    fields = {name: getattr(instance, name) for name in Instance.model_fields}
    grown = assembled(Instance, {**fields, "running": tuple(running)}, _INSTANCE)
    grown.__dict__["node_index"] = instance.node_index
    grown.__dict__["service_index"] = instance.service_index
    return grown


def _bound(tree: TreeView, group: RunningGroup) -> str | None:
    """Name of the domain that a group is bound to."""
    number = tree.group_domain(group)
    return None if number == ROOT else tree.domains[number].name


class _Digest:
    """:attr:`Instance.digest`, written anew only where the instance is another object."""

    def __init__(self) -> None:
        self._lists: dict[str, tuple[tuple[Noun, ...], list[bytes], bytes]] = {}

    def of(self, instance: Instance) -> str:
        """SHA-256 of the same text that the instance's own digest is of."""
        found = hashlib.sha256()
        before = b"{"
        for name in Instance.model_fields:
            found.update(before)
            if name in ("nodes", "services", "running"):
                found.update(b'"%s":[' % name.encode())
                found.update(self._list(name, getattr(instance, name)))
                found.update(b"]")
            else:
                text = instance.model_dump_json(by_alias=True, include={name})
                found.update(text[1:-1].encode())
            before = b","
        found.update(b"}")
        return found.hexdigest()

    def _list(self, name: str, items: tuple[Noun, ...]) -> bytes:
        last, parts, text = self._lists.get(name, ((), [], b""))
        if items is not last:
            # The last items live as long as this holds them, so no other object has their ids.
            known = dict(zip(map(id, last), parts, strict=True))
            parts = [known.get(id(item)) or _written(item) for item in items]
            text = b",".join(parts)
            self._lists[name] = (items, parts, text)
        return text


def _written(item: Noun) -> bytes:
    return item.model_dump_json(by_alias=True).encode()


__all__ = ["Delta", "Session"]
