"""The decision (:class:`Plan`), its worth (:class:`Evaluation`) and its proof (:class:`Result`)."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from heteroplace.files import MAX_BYTES, read_bytes, refuse_duplicate_keys, validated
from heteroplace.instance import Count, Name, Noun
from heteroplace.quantity import format_number

Exact = Annotated[Fraction, PlainSerializer(format_number, when_used="json")]


ModelT = TypeVar("ModelT", bound=BaseModel)
_new, _set = object.__new__, object.__setattr__


def assembled(model: type[ModelT], fields: dict[str, Any], given: set[str]) -> ModelT:
    """Make a model of parts that are known to be valid.

    What ``model_construct`` does when every field is given, at a fraction of its time: a plan has
    tens of thousands of parts.

    Parameters
    ----------
    model
        The class; without private attributes and extra fields.
    fields
        Every field by name; becomes the model's own.
    given
        The names of the fields; may be shared between models.
    """
    made = _new(model)
    _set(made, "__dict__", fields)
    _set(made, "__pydantic_fields_set__", given)
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


class PlacedPod(Noun):
    """One pod on its node.

    Parameters
    ----------
    node
        Node name.
    gpus
        GPUs of the pod.
    """

    node: Name
    gpus: Count


class PlacedInstance(Noun):
    """An instance and the nodes of its pods.

    Parameters
    ----------
    name
        The running instance's name; null for an added one.
    role, shape
        By name.
    pods
        In the order of the shape's pods.
    """

    name: Name | None = None
    role: Name
    shape: Name
    pods: tuple[PlacedPod, ...]


class MovedInstance(PlacedInstance):
    """A running instance on its new nodes.

    Parameters
    ----------
    origin
        Where it ran, for people; not read by the checker.
    """

    origin: tuple[PlacedPod, ...] = ()


class PlanGroup(Noun):
    """What happens to one deployment group.

    Parameters
    ----------
    name
        The running group's name, or a new one.
    service
        Service name.
    domain
        The group's domain at the service's required affinity level; null when it has none.
    new
        Whether the plan opens the group.
    added, kept, removed, moved
        Its instances. A running instance in none of the lists is kept.
    """

    name: Name
    service: Name
    domain: Name | None = None
    new: bool = False
    added: tuple[PlacedInstance, ...] = ()
    kept: tuple[PlacedInstance, ...] = ()
    removed: tuple[PlacedInstance, ...] = ()
    moved: tuple[MovedInstance, ...] = ()


class Plan(Noun):
    """Where every instance goes.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    instance_digest
        :attr:`Instance.digest` of the instance it was made for; null when not known.
    groups
        Groups the plan names; a running group it does not name is kept as it is.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    instance_digest: str | None = None
    groups: tuple[PlanGroup, ...] = ()

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "plan") -> Plan:
        """Parse a plan from JSON text.

        Raises
        ------
        InputError
            If the text is not JSON or not a plan.
        """
        plan = validated(lambda: cls.model_validate_json(text), source)
        refuse_duplicate_keys(text, source)
        return plan

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Plan:
        """Read a plan from a JSON file of at most ``max_bytes`` bytes.

        Raises
        ------
        InputError
            If the file cannot be read, is too large, is not JSON or not a plan.
        """
        return cls.from_json(read_bytes(path, max_bytes), str(path))

    def to_json(self, indent: int | None = 1) -> str:
        """Write the plan as JSON."""
        return self.model_dump_json(by_alias=True, indent=indent)


class Violation(Noun):
    """One broken constraint.

    Parameters
    ----------
    constraint
        Its name in docs/problem.md.
    subject
        What breaks it: a group, role or node.
    message
        One sentence.
    """

    constraint: Literal[
        "capacity",
        "colocation",
        "integrity",
        "ratio",
        "target",
        "running",
        "no_reuse",
        "limits",
    ]
    subject: str
    message: str


class Step(Noun):
    """One step of the lexicographic objective.

    Parameters
    ----------
    name
        ``minimum[p]`` or ``unmet[p]`` for priority class p, ``repair``, ``cost``.
    value
        In GPUs of the preferred shapes (``minimum``, ``unmet``), GPUs (``repair``), or cost.
    """

    name: str
    value: Exact


class RoleOutcome(Noun):
    """What a role gets.

    Parameters
    ----------
    service, role
        By name.
    target, delivered, unmet
        Capacity.
    unmet_gpus
        Unmet capacity in GPUs of the preferred shape.
    """

    service: str
    role: str
    target: Exact
    delivered: Exact
    unmet: Exact
    unmet_gpus: Exact


class Evaluation(Noun):
    """The objective recomputed from a plan alone.

    Parameters
    ----------
    steps
        In the order of the objective; plans are compared by their values in turn.
    costs
        Amount of each named cost, before its weight.
    repairs
        Amount by which each constraint is still broken, in GPUs.
    roles
        What every role gets.
    """

    steps: tuple[Step, ...]
    costs: dict[str, Exact]
    repairs: dict[str, Exact]
    roles: tuple[RoleOutcome, ...]

    @property
    def values(self) -> tuple[Fraction, ...]:
        """The steps' values; a smaller tuple is a better plan."""
        return tuple(step.value for step in self.steps)


class ProvenStep(Noun):
    """A step of the objective with its proof.

    Parameters
    ----------
    name, value
        As in :class:`Step`.
    bound
        No plan that equals this one in the steps before has a smaller value; null when unknown.
    gap
        (value - bound) / bound; 0 when they are equal, null when there is no bound or it is 0.
    proven
        Whether the value is proven best, given the steps before.
    """

    name: str
    value: float
    bound: float | None = None
    gap: float | None = None
    proven: bool = False


class Unmet(Noun):
    """Capacity that a plan leaves unmet.

    Parameters
    ----------
    service, role
        By name.
    target, delivered, unmet
        Capacity.
    unmet_gpus
        In GPUs of the preferred shape.
    reason
        Why, in one sentence; null when it was not asked.
    """

    service: str
    role: str
    target: float
    delivered: float
    unmet: float
    unmet_gpus: float
    reason: str | None = None


class Seconds(Noun):
    """Wall time by phase.

    Parameters
    ----------
    read
        Reading and validating the input; null when the library was given an instance.
    build, solve, assign
        Tree view and program; greedy and engine; naming nodes, checking and evaluating.
    """

    read: float | None = None
    build: float = 0.0
    solve: float = 0.0
    assign: float = 0.0


class Size(Noun):
    """Size of the integer program; all 0 when none was built."""

    columns: int = 0
    rows: int = 0
    nonzeros: int = 0


StopReason = Literal[
    "proven",
    "heuristic",
    "time_limit",
    "not_proven",
    "engine_missing",
    "engine_failed",
]


class Result(Noun):
    """A plan and everything known about it.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    status
        ``optimal`` when every step is proven, ``feasible`` when the plan is valid, ``invalid``
        when it breaks a constraint (only ``greedy-pods`` can).
    stop_reason
        Why the solver stopped.
    plan
        The decision.
    steps
        Value, bound and gap of each step of the objective.
    costs
        Amount of each named cost before its weight.
    repairs
        Amount by which each constraint stays broken, in GPUs.
    unmet
        Roles that get less than their target.
    violations
        What the checker found.
    notes
        Anything else a person should know, one sentence each.
    seconds
        Wall time by phase.
    size
        Size of the integer program.
    solver, engine
        What solved it.
    profile
        The profile as used.
    seed
        The seed as used.
    versions
        Of the package and the engines.
    instance_digest
        :attr:`Instance.digest`.
    """

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    status: Literal["optimal", "feasible", "invalid"]
    stop_reason: StopReason
    plan: Plan
    steps: tuple[ProvenStep, ...]
    costs: dict[str, float]
    repairs: dict[str, float]
    unmet: tuple[Unmet, ...]
    violations: tuple[Violation, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Seconds
    size: Size = Size()
    solver: str
    engine: str | None = None
    profile: dict[str, str | int | float | bool | None]
    seed: int
    versions: dict[str, str]
    instance_digest: str

    model_config = ConfigDict(populate_by_name=True)

    def to_json(self, indent: int | None = 1) -> str:
        """Write the result as JSON."""
        return self.model_dump_json(by_alias=True, indent=indent)
