"""The placement instance: what there is, what runs on it and what is wanted.

The terms are the ones of docs/problem.md. Everything here is immutable; a solver never changes
its input.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from heteroplace.errors import InputError
from heteroplace.faults import faults
from heteroplace.files import MAX_BYTES, read_bytes, refuse_duplicate_keys, validated
from heteroplace.garbage import uncollected
from heteroplace.quantity import NonNegative, Positive

Name = Annotated[str, Field(min_length=1, max_length=256, strict=True)]
Text = Annotated[str, Field(max_length=10**5, strict=True)]
Count = Annotated[int, Field(ge=0, le=10**6, strict=True)]
PositiveCount = Annotated[int, Field(ge=1, le=10**6, strict=True)]


class Noun(BaseModel):
    """Base of everything that is read from a file: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Node(Noun):
    """A machine with GPUs of one type.

    Parameters
    ----------
    name
        Unique name.
    gpu_type
        The type of every GPU in it.
    gpus
        GPUs in the machine.
    domains
        The switch domain the node belongs to at each level, by level name.
    schedulable
        False for a cordoned node: what runs there stays, nothing new arrives.
    reserved
        GPUs held back for others.
    """

    name: Name
    gpu_type: Name
    gpus: Count
    domains: dict[Name, Name]
    schedulable: bool = True
    reserved: Count = 0


class Pod(Noun):
    """One or more equal pods of a shape; a pod runs on one node.

    Parameters
    ----------
    gpu_type
        GPU type the pod needs.
    gpus
        GPUs of one pod.
    count
        How many equal pods.
    """

    gpu_type: Name
    gpus: PositiveCount
    count: PositiveCount = 1


class Shape(Noun):
    """One way to run an instance of a role.

    Parameters
    ----------
    name
        Unique within the role; default ``shape0``, ``shape1``, ...
    pods
        The pods of one instance; several for multi-node tensor parallelism and MoE replicas.
    level
        The level within one domain of which all pods must lie; default the finest level for
        several pods. ``"node"``: all on one node.
    capacity
        What one instance delivers, in the unit of the role's target.
    cost
        Cost of one instance; default its place in the order of preference (0, 1, ...).
    """

    name: Name | None = None
    pods: Annotated[tuple[Pod, ...], Field(min_length=1)]
    level: Name | None = None
    capacity: Positive = Fraction(1)
    cost: NonNegative | None = None

    @cached_property
    def gpus(self) -> int:
        """GPUs of one instance."""
        return sum(pod.gpus * pod.count for pod in self.pods)

    @cached_property
    def pod_list(self) -> tuple[tuple[str, int], ...]:
        """(gpu_type, gpus) of every pod of one instance, in the order a plan lists them."""
        return tuple((pod.gpu_type, pod.gpus) for pod in self.pods for _ in range(pod.count))


class Role(Noun):
    """What a role should deliver and how its instances can be run.

    Parameters
    ----------
    target
        Capacity to deliver.
    min
        Capacity that is served before anything above it; at most the target.
    shapes
        In order of preference.
    """

    target: NonNegative
    min: NonNegative = Fraction(0)
    shapes: Annotated[tuple[Shape, ...], Field(min_length=1)]

    @field_validator("shapes")
    @classmethod
    def _named(cls, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        return tuple(
            shape if shape.name is not None else shape.model_copy(update={"name": f"shape{index}"})
            for index, shape in enumerate(shapes)
        )

    @cached_property
    def gpus_per_capacity(self) -> Fraction:
        """GPUs of the preferred shape per unit of capacity: the weight of unmet capacity."""
        preferred = self.shapes[0]
        return preferred.gpus / preferred.capacity

    @cached_property
    def shape_index(self) -> dict[str, int]:
        """Place of each shape by name."""
        return {str(shape.name): index for index, shape in enumerate(self.shapes)}

    def shape_cost(self, index: int) -> Fraction:
        """Cost of one instance of the shape at ``index``."""
        cost = self.shapes[index].cost
        return Fraction(index) if cost is None else cost


class RatioBand(Noun):
    """Lowest and highest allowed ratio of two roles' delivered capacity in every group.

    Parameters
    ----------
    numerator, denominator
        Role names, as in prefill : decode.
    min, max
        The band; ``max`` null is no upper end.
    """

    numerator: Name
    denominator: Name
    min: NonNegative = Fraction(0)
    max: Positive | None = None


class Affinity(Noun):
    """The level within one domain of which a deployment group lies.

    Parameters
    ----------
    required
        Level of the group's domain; null for the whole fleet.
    preferred
        A finer level; instances outside the group's home domain at it pay ``spill``.
    """

    required: Name | None = None
    preferred: Name | None = None


class Limits(Noun):
    """Limits on a service's deployment groups.

    Parameters
    ----------
    max_groups
        Most groups of the service.
    max_instances_per_group
        Most delivering instances, all roles together, in one group.
    """

    max_groups: PositiveCount | None = None
    max_instances_per_group: PositiveCount | None = None


class Service(Noun):
    """A served model.

    Parameters
    ----------
    name
        Unique name.
    priority
        Higher is served first.
    affinity
        Where a deployment group may lie.
    roles
        By name; one role for an aggregated service.
    ratios
        Ratio bands between roles.
    limits
        Limits on the groups.
    """

    name: Name
    priority: Annotated[int, Field(strict=True, ge=-(10**6), le=10**6)] = 0
    affinity: Affinity = Affinity()
    roles: Annotated[dict[Name, Role], Field(min_length=1)]
    ratios: tuple[RatioBand, ...] = ()
    limits: Limits = Limits()


class Occupant(Noun):
    """What every instance of a group has.

    Parameters
    ----------
    name
        Unique within the group; default ``<role>-<number>``.
    role
        By name.
    """

    name: Name | None = None
    role: Name


class RunningInstance(Occupant):
    """An instance that runs now.

    Parameters
    ----------
    name
        Unique within the group; default ``<role>-<number>``.
    role, shape
        By name.
    nodes
        One node name per pod, in the order of :attr:`Shape.pod_list`.
    state
        ``draining`` occupies its GPUs, delivers nothing and stays untouched.
    """

    shape: Name
    nodes: Annotated[tuple[Name, ...], Field(min_length=1)]
    state: Literal["ready", "draining"] = "ready"


InstanceT = TypeVar("InstanceT", bound=Occupant)


def named_by_role(instances: tuple[InstanceT, ...]) -> tuple[InstanceT, ...]:
    """Name the instances of a group that have no name: ``<role>-<number>``."""
    seen: Counter[str] = Counter()
    named = []
    for each in instances:
        if each.name is None:
            each = each.model_copy(update={"name": f"{each.role}-{seen[each.role]}"})
        seen[each.role] += 1
        named.append(each)
    return tuple(named)


class RunningGroup(Noun):
    """A deployment group that runs now.

    Parameters
    ----------
    name
        Unique name.
    service
        Service name.
    domain
        The group's domain at the service's required level; default the one with most of its GPUs.
        Null when the service has no required level.
    instances
        What runs.
    """

    name: Name
    service: Name
    domain: Name | None = None
    instances: Annotated[tuple[RunningInstance, ...], Field(min_length=1)]

    @field_validator("instances")
    @classmethod
    def _named(cls, instances: tuple[RunningInstance, ...]) -> tuple[RunningInstance, ...]:
        return named_by_role(instances)


class TierPrices(Noun):
    """Price of one GPU on an RDMA subgroup of each tier."""

    low: NonNegative = Fraction(0)
    medium: NonNegative = Fraction(1)
    high: NonNegative = Fraction(4)


class Weights(Noun):
    """Weights of the named costs in the last step of the objective."""

    rdma: NonNegative = Fraction(1)
    shape: NonNegative = Fraction(1)
    spill: NonNegative = Fraction(1)
    new_group: NonNegative = Fraction(1)
    fragmentation: NonNegative = Fraction(1)
    migration: NonNegative = Fraction(10)


class Objective(Noun):
    """What a plan costs beyond unmet capacity.

    Parameters
    ----------
    weights
        Weight of each named cost.
    tier_prices
        Price of a GPU by RDMA tier.
    """

    weights: Weights = Weights()
    tier_prices: TierPrices = TierPrices()


class Cycle(Noun):
    """Rules of one scheduling cycle.

    Parameters
    ----------
    reuse_freed
        Whether GPUs freed in the cycle may be used in it.
    max_migrations
        Most running instances that may be moved.
    """

    reuse_freed: bool = False
    max_migrations: Count = 0


class RdmaLevels(Noun):
    """The two levels that define the tiers of RDMA subgroups.

    Parameters
    ----------
    lower
        A domain of this level with several GPU types is *high* (the paper's S1).
    upper
        A domain of this level with several GPU types makes its other parts *medium* (S2); null if
        there is no such level.
    """

    lower: Name
    upper: Name | None = None


class Instance(Noun):
    """One placement problem.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    name, description
        For people.
    levels
        Ranks of the network tree, coarse to fine.
    rdma
        The levels of the tiers; default ``s1`` and ``s2`` where both are declared, ``s2`` the
        coarser one, else the finest level and the one above it.
    nodes, services, running, objective, cycle
        The problem (docs/problem.md).
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[int, Field(alias="schema", strict=True)]
    name: Text = ""
    description: Text = ""
    levels: Annotated[tuple[Name, ...], Field(min_length=1)] = ("cluster", "s2", "s1")
    rdma: RdmaLevels | None = None
    nodes: Annotated[tuple[Node, ...], Field(min_length=1)]
    services: Annotated[tuple[Service, ...], Field(min_length=1)]
    running: tuple[RunningGroup, ...] = ()
    objective: Objective = Objective()
    cycle: Cycle = Cycle()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for path, message in faults(self):
            raise InputError(path, message)
        return self

    @classmethod
    def from_dict(cls, data: Any) -> Instance:
        """Build an instance from plain dicts and lists.

        Raises
        ------
        InputError
            If the data is not a valid instance; names the first field at fault.
        """
        return validated(lambda: cls.model_validate(data))

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "instance") -> Instance:
        """Parse an instance from JSON text.

        Raises
        ------
        InputError
            If the text is not JSON or not a valid instance.
        """
        with uncollected():
            instance = validated(lambda: cls.model_validate_json(text), source)
            refuse_duplicate_keys(text, source)
        return instance

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Instance:
        """Read an instance from a JSON file of at most ``max_bytes`` bytes.

        Raises
        ------
        InputError
            If the file cannot be read, is too large, is not JSON or not a valid instance.
        """
        return cls.from_json(read_bytes(path, max_bytes), str(path))

    def to_json(self, indent: int | None = 1) -> str:
        """Write the instance as JSON that :meth:`from_json` reads back to an equal instance."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True, indent=indent)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the instance's content, in hexadecimal."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()

    @cached_property
    def node_index(self) -> dict[str, int]:
        """Place of each node by name."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def service_index(self) -> dict[str, int]:
        """Place of each service by name."""
        return {service.name: index for index, service in enumerate(self.services)}

    @property
    def running_instances(self) -> int:
        """Number of running instances."""
        return sum(len(group.instances) for group in self.running)

    @cached_property
    def priorities(self) -> tuple[int, ...]:
        """The priority classes, highest first."""
        return tuple(sorted({service.priority for service in self.services}, reverse=True))

    @cached_property
    def rdma_levels(self) -> RdmaLevels:
        """The levels that define the tiers, defaults resolved."""
        if self.rdma is not None:
            return self.rdma
        levels = self.levels
        if {"s1", "s2"} <= set(levels) and levels.index("s2") < levels.index("s1"):
            return RdmaLevels(lower="s1", upper="s2")
        return RdmaLevels(lower=levels[-1], upper=levels[-2] if len(levels) > 1 else None)
