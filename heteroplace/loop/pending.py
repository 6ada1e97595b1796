"""What was asked for and does not show yet, laid over what the cluster says of itself.

Between an action's handover and the moment the cluster shows its effect, a snapshot tells an old
story. A cycle on such a snapshot would ask for the same thing again. So the effects that are still
missing are put in: instances that were asked for are on their way and hold their GPUs, those that
were ended still hold theirs but deliver nothing, those that moved are where they are going.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from heteroplace.loop.action import Action
from heteroplace.plan import MovedInstance, PlacedInstance, PlanGroup
from heteroplace.policy.cluster import Cluster, ClusterGroup, ClusterInstance
from heteroplace.policy.state import Withdrawn


@dataclass(frozen=True)
class Overlaid:
    """A snapshot with what it does not show yet.

    Parameters
    ----------
    cluster
        The snapshot, completed.
    settled
        Id of each action that needs no more attention -> ``shown``, ``reflected`` or ``expired``.
    missing
        Id of each other action -> number of its effects that the snapshot does not show.
    """

    cluster: Cluster
    settled: Mapping[str, str]
    missing: Mapping[str, int]


def overlay(cluster: Cluster, pending: Sequence[tuple[Action, float]], patience: float) -> Overlaid:
    """Complete a snapshot with the actions it does not show yet.

    Parameters
    ----------
    cluster
        The snapshot.
    pending
        Actions that were handed over, in order, and the seconds each has waited since.
    patience
        Seconds after which the snapshot is believed against the action.
    """
    settled: dict[str, str] = {}
    missing: dict[str, int] = {}
    reflected = _reflected(cluster, [action for action, _ in pending])
    open_actions = []
    for action, waited in pending:
        if action.sequence <= reflected:
            settled[action.id] = "reflected"
        elif waited > patience:
            settled[action.id] = "expired"
        else:
            open_actions.append(action)
    view = _View(cluster)
    ended = [{(each.group, each.name) for each in action.terminate} for action in open_actions]
    for place, action in enumerate(open_actions):
        lacking = view.complete(action, set().union(*ended[place + 1 :]))
        # In order: what a later action ended must not be missed when only that one is settled.
        if lacking or missing:
            missing[action.id] = lacking
        else:
            settled[action.id] = "shown"
    return Overlaid(view.cluster(), settled, missing)


def _reflected(cluster: Cluster, pending: Iterable[Action]) -> int:
    """Number of the last action that the snapshot says it reflects; 0 for none of this state."""
    name = cluster.reflects
    for action in pending:
        store, _, _ = action.id.rpartition("-")
        if name is not None and name.startswith(f"{store}-"):
            number = name.removeprefix(f"{store}-")
            return int(number) if number.isascii() and number.isdigit() else 0
    return 0


@dataclass
class _Group:
    """A group of the view: its instances by name, in order."""

    given: ClusterGroup
    instances: dict[str, ClusterInstance]
    claimed: set[str] = field(default_factory=set)
    changed: bool = False


class _View:
    """A cluster that is being completed."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes = {node.name for node in cluster.nodes}
        self._groups = {
            group.name: _Group(group, {str(each.name): each for each in group.instances})
            for group in cluster.running
        }

    def cluster(self) -> Cluster:
        """The cluster as it is now completed."""
        if not any(group.changed for group in self._groups.values()):
            return self._cluster
        running = tuple(
            group.given.model_copy(update={"instances": tuple(group.instances.values())})
            if group.changed
            else group.given
            for group in self._groups.values()
        )
        return self._cluster.model_copy(update={"running": running})

    def complete(self, action: Action, ended: set[tuple[str, str]]) -> int:
        """Put in what is missing of an action; returns how many of its effects that are.

        Parameters
        ----------
        action
            What was asked for.
        ended
            (Group, instance) that a later action ends: if they do not show, they are gone.
        """
        lacking = 0
        for group in action.plan.groups:
            lacking += self._added(group, ended) + self._moved(group)
        lacking += sum(self._ended(each) for each in action.terminate)
        lacking += sum(self._restored(each) for each in action.restore)
        return lacking

    def _added(self, plan: PlanGroup, ended: set[tuple[str, str]]) -> int:
        known = {str(each.name) for each in (*plan.kept, *plan.removed, *plan.moved)}
        group = self._groups.get(plan.name)
        lacking = []
        for each in plan.added:
            shown = None if group is None else _found(group, each, known)
            if group is not None and shown is not None:
                group.claimed.add(shown)
            elif (plan.name, str(each.name)) not in ended and self._has_nodes(each):
                lacking.append(each)
        if lacking:
            started = {str(each.name): _starting(each) for each in lacking}
            if group is None:
                given = ClusterGroup(
                    name=plan.name,
                    service=plan.service,
                    domain=plan.domain,
                    instances=tuple(started.values()),
                )
                group = self._groups[plan.name] = _Group(given, {})
            group.instances.update(started)
            group.claimed.update(started)
            group.changed = True
        return len(lacking)

    def _moved(self, plan: PlanGroup) -> int:
        lacking = 0
        for each in plan.moved:
            nodes = tuple(pod.node for pod in each.pods)
            group, running = self._running(plan.name, str(each.name))
            if (
                group is not None
                and running is not None
                and running.nodes != nodes
                and self._has_nodes(each)
            ):
                self._put(group, running, nodes=nodes)
                lacking += 1
        return lacking

    def _has_nodes(self, each: PlacedInstance | MovedInstance) -> bool:
        """Whether an instance can still come: its nodes are there."""
        return all(pod.node in self._nodes for pod in each.pods)

    def _ended(self, each: Withdrawn) -> int:
        group, running = self._running(each.group, each.name)
        if group is None or running is None:
            return 0
        self._put(group, running, state="draining", registered=False)
        return 1

    def _restored(self, each: Withdrawn) -> int:
        group, running = self._running(each.group, each.name)
        if group is None or running is None or running.registered:
            return 0
        self._put(group, running, registered=True)
        return 1

    def _running(self, group: str, name: str) -> tuple[_Group | None, ClusterInstance | None]:
        found = self._groups.get(group)
        return found, None if found is None else found.instances.get(name)

    @staticmethod
    def _put(group: _Group, running: ClusterInstance, **changes: object) -> None:
        group.instances[str(running.name)] = running.model_copy(update=changes)
        group.changed = True


def _found(group: _Group, each: PlacedInstance, known: set[str]) -> str | None:
    """Name under which a group shows an added instance.

    The name it was given, else, where whoever starts it names it, one that is new in the group
    and of the same role and shape on the same nodes.
    """
    name = str(each.name)
    if name in group.instances:
        return name
    nodes = sorted(pod.node for pod in each.pods)
    for other, running in group.instances.items():
        if (
            other not in known
            and other not in group.claimed
            and (running.role, running.shape) == (each.role, each.shape)
            and sorted(running.nodes) == nodes
        ):
            return other
    return None


def _starting(each: PlacedInstance) -> ClusterInstance:
    return ClusterInstance(
        name=each.name,
        role=each.role,
        shape=each.shape,
        nodes=tuple(pod.node for pod in each.pods),
        state="starting",
        registered=False,
        gpus=tuple(pod.gpus for pod in each.pods),
    )
