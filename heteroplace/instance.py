"""The placement instance: what there is, what runs on it and what is wanted.

The terms are the ones of docs/problem.md. Everything here is immutable; a solver never changes
its input.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heteroplace.errors import InputError
from heteroplace.quantity import NonNegative, Positive

T = TypeVar("T")

SCHEMA = 1
NODE_LEVEL = "node"
MAX_BYTES = 128 * 2**20
MAX_PODS = 4096

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


class RunningInstance(Noun):
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

    name: Name | None = None
    role: Name
    shape: Name
    nodes: Annotated[tuple[Name, ...], Field(min_length=1)]
    state: Literal["ready", "draining"] = "ready"


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
        The levels of the tiers; default ``s1`` and ``s2`` where both are declared, else the finest
        level and the one above it.
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

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        return _with_default_names(data)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for path, message in _faults(self):
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

    @cached_property
    def priorities(self) -> tuple[int, ...]:
        """The priority classes, highest first."""
        return tuple(sorted({service.priority for service in self.services}, reverse=True))

    @cached_property
    def rdma_levels(self) -> RdmaLevels:
        """The levels that define the tiers, defaults resolved."""
        if self.rdma is not None:
            return self.rdma
        if "s1" in self.levels and "s2" in self.levels:
            return RdmaLevels(lower="s1", upper="s2")
        return RdmaLevels(
            lower=self.levels[-1], upper=self.levels[-2] if len(self.levels) > 1 else None
        )


def read_bytes(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file of at most ``max_bytes`` bytes; :class:`InputError` names what is wrong."""
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(str(path), f"cannot be read: {reason}") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    if len(data) > max_bytes:
        raise InputError(
            str(path),
            f"is larger than the limit of {max_bytes} bytes; raise it with --max-bytes",
        )
    return data


def refuse_duplicate_keys(text: str | bytes, source: str) -> None:
    """Refuse JSON in which an object names a field twice: one of the two would be lost."""

    def pairs(items: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in items}) < len(items):
            twice = next(
                key for key, count in Counter(key for key, _ in items).items() if count > 1
            )
            raise InputError(source, f"{twice!r} is named twice in one object; keep one of them")

    # Numbers are not looked at here, so that one of any length parses.
    json.loads(text, object_pairs_hook=pairs, parse_int=len)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror}") from None


def validated(build: Callable[[], T], source: str = "") -> T:
    """Run a pydantic validation; turn its errors into one :class:`InputError`."""
    try:
        return build()
    except ValidationError as error:
        raise input_error(error, source) from None
    except RecursionError:
        raise InputError(source, "is nested too deeply") from None


_PLAIN = {
    "missing": "is missing; add it",
    "extra_forbidden": "unknown field; remove it or correct its name",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_type": "must be a string",
    "string_unicode": "must be a string of valid Unicode",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt:.12g}",
    "greater_than_equal": "must be at least {ge:.12g}",
    "less_than": "must be less than {lt:.12g}",
    "less_than_equal": "must be at most {le:.12g}",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "invalid_key": "must have a string as its name",
    "json_type": "must be JSON text",
    "json_invalid": "is not complete, valid JSON ({error})",
}
_SELF_EVIDENT = {"missing", "extra_forbidden", "json_invalid", "value_error"}


def input_error(error: ValidationError, source: str = "") -> InputError:
    """Turn the first fault of a pydantic error into an :class:`InputError` with its field."""
    # A list of which every element is at fault is also reported as too short.
    found = error.errors(include_url=False)
    faults = [each for each in found if each["type"] != "too_short" or not each["input"]] or found
    first = faults[0]
    kind, context = first["type"], first.get("ctx", {})
    original = context.get("error")
    if isinstance(original, InputError):
        path, message = original.path, original.message
    else:
        path = "" if kind == "json_invalid" else _join(first["loc"])
        if kind in _PLAIN:
            message = _PLAIN[kind].format(**context)
        else:
            message = first["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
        if kind not in _SELF_EVIDENT:
            message += f"; got {_shown(first['input'])}"
    if len(faults) > 1:
        message += f" (and {len(faults) - 1} more)"
    prefix = ": ".join(part for part in (source, path) if part)
    return InputError(prefix, message)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _join(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        if part == "[key]":
            continue
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            path += f".{part}" if path else part
        else:
            path += f"[{part!r}]"
    return path


def _with_default_names(data: Any) -> Any:
    """Fill in the default names of shapes and running instances, in a copy."""
    if not isinstance(data, dict):
        return data
    data = dict(data)
    if isinstance(data.get("services"), list | tuple):
        data["services"] = [_named_shapes(service) for service in data["services"]]
    if isinstance(data.get("running"), list | tuple):
        data["running"] = [_named_instances(group) for group in data["running"]]
    return data


def _named_shapes(service: Any) -> Any:
    if not (isinstance(service, dict) and isinstance(service.get("roles"), dict)):
        return service
    roles = dict(service["roles"])
    for name, role in roles.items():
        if isinstance(role, dict) and isinstance(role.get("shapes"), list | tuple):
            shapes = [
                {**shape, "name": f"shape{index}"}
                if isinstance(shape, dict) and shape.get("name") is None
                else shape
                for index, shape in enumerate(role["shapes"])
            ]
            roles[name] = {**role, "shapes": shapes}
    return {**service, "roles": roles}


def _named_instances(group: Any) -> Any:
    if not (isinstance(group, dict) and isinstance(group.get("instances"), list | tuple)):
        return group
    seen: Counter[str] = Counter()
    instances = []
    for instance in group["instances"]:
        if isinstance(instance, dict) and isinstance(instance.get("role"), str):
            role = instance["role"]
            if instance.get("name") is None:
                instance = {**instance, "name": f"{role}-{seen[role]}"}
            seen[role] += 1
        instances.append(instance)
    return {**group, "instances": instances}


Fault = tuple[str, str]


def _faults(instance: Instance) -> Iterator[Fault]:
    """Yield (path, message) for everything that no single field can tell."""
    if instance.schema_ != SCHEMA:
        yield "schema", f"version {instance.schema_} is not known; this release reads {SCHEMA}"
    yield from _level_faults(instance)
    yield from _node_faults(instance)
    gpu_types = {node.gpu_type for node in instance.nodes}
    yield from _duplicates("services", [service.name for service in instance.services])
    for index, service in enumerate(instance.services):
        yield from _service_faults(f"services[{index}]", service, instance.levels, gpu_types)
    yield from _running_faults(instance)


def _duplicates(path: str, names: list[str]) -> Iterator[Fault]:
    if len(set(names)) == len(names):
        return
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            yield f"{path}[{index}].name", f"{name!r} is already the name of {path}[{seen[name]}]"
        seen[name] = index


def _level_faults(instance: Instance) -> Iterator[Fault]:
    levels = instance.levels
    if len(set(levels)) != len(levels):
        yield "levels", f"every level must be named once, got {list(levels)}"
    if NODE_LEVEL in levels:
        yield "levels", f"{NODE_LEVEL!r} is the level of a single machine; use another name"
    if instance.rdma is not None:
        for field in ("lower", "upper"):
            level = getattr(instance.rdma, field)
            if level is not None and level not in levels:
                yield f"rdma.{field}", _unknown("level", level, levels)
        if instance.rdma.upper is not None and levels.index(instance.rdma.upper) >= levels.index(
            instance.rdma.lower
        ):
            yield "rdma.upper", f"must be coarser than lower ({instance.rdma.lower!r})"


def _node_faults(instance: Instance) -> Iterator[Fault]:
    yield from _duplicates("nodes", [node.name for node in instance.nodes])
    levels = instance.levels
    parents: dict[tuple[str, str], tuple[str, int]] = {}
    for index, node in enumerate(instance.nodes):
        path = f"nodes[{index}]"
        if node.reserved > node.gpus:
            yield f"{path}.reserved", f"is {node.reserved}, more than the node's {node.gpus} GPUs"
        for level in node.domains:
            if level not in levels:
                yield f"{path}.domains", _unknown("level", level, levels)
        parent = ""
        for rank, level in enumerate(levels):
            domain = node.domains.get(level)
            if domain is None:
                yield f"{path}.domains", f"lacks the level {level!r}; name its domain"
                return
            if rank:
                known = parents.setdefault((level, domain), (parent, index))
                if known[0] != parent:
                    yield (
                        f"{path}.domains.{level}",
                        f"{domain!r} is under {parent!r} here but under {known[0]!r} at "
                        f"nodes[{known[1]}]; a domain has one parent, rename one of them",
                    )
            parent = domain


def _unknown(kind: str, name: str, known: Any) -> str:
    names = sorted(known)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"unknown {kind} {name!r}; known: {shown}"


def _service_faults(
    path: str, service: Service, levels: tuple[str, ...], gpu_types: set[str]
) -> Iterator[Fault]:
    required, preferred = service.affinity.required, service.affinity.preferred
    for field, level in (("required", required), ("preferred", preferred)):
        if level is not None and level not in levels:
            yield f"{path}.affinity.{field}", _unknown("level", level, levels)
    if (
        required is not None
        and preferred is not None
        and levels.index(preferred) <= levels.index(required)
    ):
        yield (
            f"{path}.affinity.preferred",
            f"{preferred!r} must be finer than the required level {required!r}; drop it or refine",
        )
    for name, role in service.roles.items():
        role_path = f"{path}.roles.{name}" if name.isidentifier() else f"{path}.roles[{name!r}]"
        if role.min > role.target:
            yield (
                f"{role_path}.min",
                f"{float(role.min):g} is above the target {float(role.target):g}; "
                "lower min or raise target",
            )
        yield from _duplicates(f"{role_path}.shapes", [str(shape.name) for shape in role.shapes])
        for index, shape in enumerate(role.shapes):
            yield from _shape_faults(f"{role_path}.shapes[{index}]", shape, levels, gpu_types)
    pairs = set()
    for index, band in enumerate(service.ratios):
        band_path = f"{path}.ratios[{index}]"
        for field in ("numerator", "denominator"):
            if getattr(band, field) not in service.roles:
                yield f"{band_path}.{field}", _unknown("role", getattr(band, field), service.roles)
        if band.numerator == band.denominator:
            yield f"{band_path}.denominator", "must be another role than the numerator"
        if band.max is not None and band.min > band.max:
            yield (
                f"{band_path}.min",
                f"{float(band.min):g} is above max {float(band.max):g}; no ratio is in the band",
            )
        pair = frozenset((band.numerator, band.denominator))
        if pair in pairs:
            yield band_path, "is a second band between the same roles; merge the two"
        pairs.add(pair)


def _shape_faults(
    path: str, shape: Shape, levels: tuple[str, ...], gpu_types: set[str]
) -> Iterator[Fault]:
    if shape.level is not None and shape.level != NODE_LEVEL and shape.level not in levels:
        yield f"{path}.level", _unknown("level", shape.level, {*levels, NODE_LEVEL})
    for index, pod in enumerate(shape.pods):
        if pod.gpu_type not in gpu_types:
            yield f"{path}.pods[{index}].gpu_type", _unknown("GPU type", pod.gpu_type, gpu_types)
    pods = sum(pod.count for pod in shape.pods)
    if pods > MAX_PODS:
        yield f"{path}.pods", f"{pods} pods in one instance, at most {MAX_PODS}"
    if shape.level == NODE_LEVEL and len({pod.gpu_type for pod in shape.pods}) > 1:
        yield f"{path}.level", "a node has one GPU type, the pods need several; use a level"


def _running_faults(instance: Instance) -> Iterator[Fault]:
    yield from _duplicates("running", [group.name for group in instance.running])
    used: Counter[str] = Counter()
    services = {service.name: service for service in instance.services}
    nodes = {node.name: node for node in instance.nodes}
    domains: dict[str, set[str]] = {level: set() for level in instance.levels}
    if instance.running:
        for node in instance.nodes:
            for rank, domain in node.domains.items():
                domains[rank].add(domain)
    for index, group in enumerate(instance.running):
        path = f"running[{index}]"
        service = services.get(group.service)
        if service is None:
            yield f"{path}.service", _unknown("service", group.service, services)
            return
        level = service.affinity.required
        if group.domain is not None:
            if level is None:
                yield f"{path}.domain", f"{group.service!r} has no required affinity; use null"
            elif group.domain not in domains[level]:
                yield f"{path}.domain", _unknown(f"{level} domain", group.domain, domains[level])
        yield from _duplicates(f"{path}.instances", [str(each.name) for each in group.instances])
        for number, running in enumerate(group.instances):
            yield from _instance_faults(
                f"{path}.instances[{number}]", running, service, nodes, used
            )


def _instance_faults(
    path: str,
    running: RunningInstance,
    service: Service,
    nodes: dict[str, Node],
    used: Counter[str],
) -> Iterator[Fault]:
    role = service.roles.get(running.role)
    if role is None:
        yield f"{path}.role", _unknown("role", running.role, service.roles)
        return
    if running.shape not in role.shape_index:
        yield f"{path}.shape", _unknown("shape", running.shape, role.shape_index)
        return
    pods = role.shapes[role.shape_index[running.shape]].pod_list
    if len(pods) != len(running.nodes):
        yield (
            f"{path}.nodes",
            f"names {len(running.nodes)} nodes, the shape has {len(pods)} pods; one node per pod",
        )
        return
    for place, (name, (gpu_type, gpus)) in enumerate(zip(running.nodes, pods, strict=True)):
        node = nodes.get(name)
        if node is None:
            yield f"{path}.nodes[{place}]", f"unknown node {name!r}; add it to nodes"
            return
        if node.gpu_type != gpu_type:
            yield (
                f"{path}.nodes[{place}]",
                f"{name!r} has {node.gpu_type} GPUs, the pod needs {gpu_type}",
            )
        used[name] += gpus
        if used[name] > node.gpus:
            yield (
                f"{path}.nodes[{place}]",
                f"{name!r} has {node.gpus} GPUs, what runs there needs {used[name]}",
            )
