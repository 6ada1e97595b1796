"""What is wrong with an instance that no single field can tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heteroplace.instance import (
        Instance,
        Node,
        RunningInstance,
        Service,
        Shape,
    )

SCHEMA = 1
NODE_LEVEL = "node"
MAX_PODS = 4096

Fault = tuple[str, str]


def faults(instance: Instance) -> Iterator[Fault]:
    """Yield (path, message) for everything that no single field can tell."""
    if instance.schema_ != SCHEMA:
        yield "schema", f"version {instance.schema_} is not known; this release reads {SCHEMA}"
    yield from _level_faults(instance)
    yield from _node_faults(instance)
    gpu_types = {node.gpu_type for node in instance.nodes}
    yield from _duplicates("services", [service.name for service in instance.services])
    for index, service in enumerate(instance.services):
        yield from service_faults(f"services[{index}]", service, instance.levels, gpu_types)
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
            yield (
                "rdma.upper",
                f"must be coarser than lower ({instance.rdma.lower!r}); swap the two or name "
                "another level",
            )


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


def service_faults(
    path: str, service: Service, levels: tuple[str, ...], gpu_types: set[str]
) -> Iterator[Fault]:
    """Every fault of one service, as (path, message)."""
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
            yield from instance_faults(f"{path}.instances[{number}]", running, service, nodes, used)


def instance_faults(
    path: str,
    running: RunningInstance,
    service: Service,
    nodes: dict[str, Node],
    used: Counter[str],
) -> Iterator[Fault]:
    """Every fault of one running instance, as (path, message); counts its GPUs as used."""
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
