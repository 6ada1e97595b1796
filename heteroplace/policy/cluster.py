"""The cluster file: the nodes and what runs on them now."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from heteroplace.files import MAX_BYTES, read_bytes, refuse_duplicate_keys, validated
from heteroplace.instance import (
    Name,
    Node,
    Noun,
    Occupant,
    PositiveCount,
    RdmaLevels,
    Text,
    named_by_role,
)


class ClusterInstance(Occupant):
    """An instance on the cluster.

    Parameters
    ----------
    name
        Unique within the group; default ``<role>-<number>``.
    role, shape
        By name, as in the fleet.
    nodes
        One node name per pod.
    state
        ``starting``: on its way; ``ready``: delivers; ``draining``: occupies GPUs, delivers
        nothing.
    registered
        Whether a ready instance is in service discovery.
    gpus
        GPUs of each pod, by place in ``nodes``; needed only for a service the fleet does not have.
    """

    shape: Name
    nodes: Annotated[tuple[Name, ...], Field(min_length=1)]
    state: Literal["starting", "ready", "draining"] = "ready"
    registered: bool = True
    gpus: tuple[PositiveCount, ...] | None = None


class ClusterGroup(Noun):
    """A deployment group on the cluster.

    Parameters
    ----------
    name
        Unique name.
    service
        Service name; one that the fleet does not have only occupies its GPUs.
    domain
        As in a placement instance.
    instances
        What runs.
    """

    name: Name
    service: Name
    domain: Name | None = None
    instances: Annotated[tuple[ClusterInstance, ...], Field(min_length=1)]

    @field_validator("instances")
    @classmethod
    def _named(cls, instances: tuple[ClusterInstance, ...]) -> tuple[ClusterInstance, ...]:
        return named_by_role(instances)


class Cluster(Noun):
    """The nodes of a cluster and what runs on them.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in JSON: 1.
    name, description
        For people.
    at
        When it was read, in Unix seconds; null when not known.
    reflects
        Name of the last action whose effect it shows; null when not known.
    levels, rdma, nodes
        As in a placement instance.
    running
        The deployment groups.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Text = ""
    description: Text = ""
    at: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False, strict=True)] | None = None
    reflects: Text | None = None
    levels: Annotated[tuple[Name, ...], Field(min_length=1)] = ("cluster", "s2", "s1")
    rdma: RdmaLevels | None = None
    nodes: Annotated[tuple[Node, ...], Field(min_length=1)]
    running: tuple[ClusterGroup, ...] = ()

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "cluster") -> Cluster:
        """Parse a cluster from JSON text.

        Raises
        ------
        InputError
            If the text is not JSON or not a cluster.
        """
        cluster = validated(lambda: cls.model_validate_json(text), source)
        refuse_duplicate_keys(text, source)
        return cluster

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Cluster:
        """Read a cluster from a JSON file of at most ``max_bytes`` bytes.

        Raises
        ------
        InputError
            If the file cannot be read, is too large, is not JSON or not a cluster.
        """
        return cls.from_json(read_bytes(path, max_bytes), str(path))

    def to_json(self, indent: int | None = 1) -> str:
        """Write the cluster as JSON that :meth:`from_json` reads back to an equal cluster."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True, indent=indent)
