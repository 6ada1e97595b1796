"""The families of synthetic instances and their knobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from heteroplace.errors import InputError
from heteroplace.files import validated
from heteroplace.instance import Affinity, Cycle, Name, Noun, Objective
from heteroplace.quantity import Positive

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=10**6)]
Size = Annotated[int, Field(ge=1, le=10**5)]
AffinityKind = Literal["none", "s2", "s1", "s2+s1"]

AFFINITIES: dict[AffinityKind, Affinity] = {
    "none": Affinity(),
    "s2": Affinity(required="s2"),
    "s1": Affinity(required="s1"),
    "s2+s1": Affinity(required="s2", preferred="s1"),
}


class Family(Noun):
    """A kind of synthetic instance; every field is a knob.

    Shares are fractions from 0 to 1. Shares of services and nodes are met exactly, up to rounding.

    Parameters
    ----------
    name, description
        Name of the family; what it is for, in one sentence.
    scale
        Factor on the number of GPUs and of services; the shape of the tree shrinks with it from
        the top.
    s2, s1_per_s2, nodes_per_s1
        S2 domains, S1 domains in each of them, and nodes in each S1.
    gpus_per_node
        GPUs of a node; each S1 draws one of the values.
    gpu_types
        GPU types with their shares of the GPUs, as weights.
    hetero_s1, hetero_s2
        Shares of the S1 that hold two GPU types (tier *high*) and of the S2 that hold several
        (tiers *medium* and *high*); the first is at most the second.
    cordoned, reserved
        Shares of the nodes that are not schedulable and that hold back up to half of their GPUs.
    services
        Number of services.
    priorities
        Priority classes; services are spread evenly over them.
    affinity
        Weights of the affinities ``none``, ``s2`` and ``s1`` (required) and ``s2+s1`` (S2
        required, S1 preferred).
    cross_type
        Share of the services that prefer prefill and decode on different GPU types, wherever a
        domain of their affinity holds two.
    alternatives
        Share of the services with further shapes on other GPU types or of other sizes.
    aggregated
        Share of the services with a single role.
    ratios
        Prefill : decode ratios, drawn evenly.
    band
        Half-width of the ratio band, as a fraction of the ratio.
    sizes
        Weights of the pod sizes in GPUs.
    multi_pod
        Share of the services whose decode runs on two or three pods at once.
    moe
        Share of the services whose instances are attention and expert pods of two GPU types inside
        one S1, with prefill and decode in one S2; needs S1 of two types.
    minimum
        Share of the services with a floor of half their target.
    load
        GPUs asked for by the services that scale out, as a fraction of the free GPUs.
    running
        Fraction of the GPUs on which groups run.
    change
        Share of the services that change their target. A service that does not run always scales
        out, even beyond this share.
    scale_in
        Share of the changing services that scale in; the others scale out.
    draining
        Share of the running units that drain.
    cycle, objective
        Rules of the cycle; weights and prices.
    """

    name: Name
    description: str = ""
    scale: Annotated[float, Field(gt=0, le=1000)] = 1.0
    s2: Size = 2
    s1_per_s2: Size = 4
    nodes_per_s1: Size = 8
    gpus_per_node: Annotated[tuple[Size, ...], Field(min_length=1)] = (8,)
    gpu_types: dict[Name, Weight] = Field(default={"H800": 3, "A800": 3, "H20": 2, "L20": 2})
    hetero_s1: Share = 0.2
    hetero_s2: Share = 0.5
    cordoned: Share = 0.01
    reserved: Share = 0.03
    services: Size = 20
    priorities: Annotated[
        tuple[Annotated[int, Field(ge=-(10**6), le=10**6)], ...], Field(min_length=1)
    ] = (0, 1, 2)
    affinity: dict[AffinityKind, Weight] = Field(default={"none": 3, "s2": 3, "s1": 2, "s2+s1": 2})
    cross_type: Share = 0.4
    alternatives: Share = 0.3
    aggregated: Share = 0.1
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        Fraction(1),
        Fraction(1, 2),
        Fraction(1, 3),
        Fraction(2, 3),
        Fraction(2),
    )
    band: Share = 0.25
    sizes: dict[Size, Weight] = Field(default={1: 3, 2: 3, 4: 2, 8: 2})
    multi_pod: Share = 0.0
    moe: Share = 0.0
    minimum: Share = 0.1
    load: Annotated[float, Field(ge=0, le=100)] = 0.8
    running: Share = 0.3
    change: Share = 0.5
    scale_in: Share = 0.25
    draining: Share = 0.02
    cycle: Cycle = Cycle()
    objective: Objective = Objective()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for knob in ("gpu_types", "affinity", "sizes"):
            if not any(getattr(self, knob).values()):
                raise InputError(knob, "has no weight above 0; give at least one")
        if self.hetero_s1 > self.hetero_s2:
            raise InputError(
                "hetero_s1",
                f"{self.hetero_s1:g} is above hetero_s2 {self.hetero_s2:g}, but an S2 with such an "
                "S1 holds several types itself; raise hetero_s2",
            )
        if self.hetero_s2 and sum(1 for weight in self.gpu_types.values() if weight) < 2:
            raise InputError("gpu_types", "names one type, but hetero_s2 asks for several")
        if min(size for size, weight in self.sizes.items() if weight) > max(self.gpus_per_node):
            raise InputError("sizes", "no pod fits a node; add a size of at most gpus_per_node")
        if self.total_nodes > 10**6:
            raise InputError("scale", f"asks for {self.total_nodes} nodes, at most 1000000")
        return self

    @cached_property
    def tree(self) -> tuple[int, int, int]:
        """S2, S1 per S2 and nodes per S1 at the family's scale."""
        s1 = self.s2 * self.s1_per_s2 * self.scale
        nodes = s1 * self.nodes_per_s1
        s2 = max(min(2, self.s2), round(self.s2 * self.scale))
        s1_per_s2 = max(min(2, self.s1_per_s2), round(s1 / s2))
        return s2, s1_per_s2, max(min(2, self.nodes_per_s1), round(nodes / (s2 * s1_per_s2)))

    @property
    def total_nodes(self) -> int:
        """Number of nodes at the family's scale."""
        s2, s1_per_s2, nodes_per_s1 = self.tree
        return s2 * s1_per_s2 * nodes_per_s1

    @property
    def total_services(self) -> int:
        """Number of services at the family's scale."""
        return max(1, round(self.services * self.scale))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="small",
            description="About 500 GPUs and 20 services with a bit of everything.",
            s2=4,
            s1_per_s2=2,
            gpu_types={"H800": 3, "A800": 2, "L20": 2},
            load=0.7,
            change=0.6,
        ),
        Family(
            name="cycle",
            description="One cycle of 20,000 GPUs: 300 services run, every tenth changes.",
            s2=10,
            s1_per_s2=10,
            nodes_per_s1=25,
            services=300,
            running=0.75,
            change=0.1,
            scale_in=0.3,
            load=0.2,
        ),
        Family(
            name="replan",
            description="300 services scale out at once on 14,000 free GPUs.",
            s2=10,
            s1_per_s2=8,
            nodes_per_s1=25,
            services=300,
            running=0.1,
            change=1.0,
            scale_in=0.0,
            load=0.8,
        ),
        Family(
            name="large",
            description="1,000 services scale out at once on 70,000 free GPUs.",
            s2=20,
            s1_per_s2=16,
            nodes_per_s1=30,
            services=1000,
            running=0.07,
            change=1.0,
            scale_in=0.0,
            load=0.9,
        ),
        Family(
            name="region",
            description="A region of 100,000 GPUs in 12,500 nodes with 2,000 services.",
            s2=25,
            s1_per_s2=20,
            nodes_per_s1=25,
            services=2000,
            running=0.1,
            change=1.0,
            scale_in=0.05,
            load=0.9,
        ),
        Family(
            name="odd",
            description="Pod sizes that do not divide each other, instances of several pods.",
            s2=4,
            s1_per_s2=3,
            nodes_per_s1=12,
            gpu_types={"H800": 1, "L20": 1},
            services=24,
            sizes={1: 1, 3: 3, 5: 2, 6: 2},
            multi_pod=0.4,
            change=0.8,
            load=0.7,
        ),
        Family(
            name="moe",
            description="Attention and expert pods of two GPU types inside one S1.",
            s2=4,
            gpu_types={"H800": 1, "H20": 1},
            hetero_s1=0.5,
            hetero_s2=1.0,
            services=16,
            ratios=(Fraction(1), Fraction(1, 2), Fraction(2)),
            moe=0.6,
            change=0.8,
            load=0.6,
        ),
    )
}


def family_from(name: str, overrides: Mapping[str, object] | None = None) -> Family:
    """Return a named family with some of its knobs turned.

    Parameters
    ----------
    name
        A key of :data:`FAMILIES`.
    overrides
        New values by knob. Text is read as JSON, as ``key=value`` pairs or as a list with commas:
        ``0.5``, ``1=2,8=1`` and ``1/2,1/3`` are all understood.

    Returns
    -------
    Family
        The named one itself when nothing is overridden.

    Raises
    ------
    InputError
        If the family or a knob is not known, or a value does not fit.
    """
    if name not in FAMILIES:
        raise InputError("family", f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    base = FAMILIES[name]
    if not overrides:
        return base
    values: dict[str, object] = {knob: getattr(base, knob) for knob in Family.model_fields}
    for knob, value in overrides.items():
        if knob not in values:
            known = ", ".join(sorted(values))
            raise InputError(f"family {name}", f"unknown knob {knob!r}; known: {known}")
        values[knob] = _parsed(knob, value)
    return validated(lambda: Family.model_validate(values), f"family {name}")


def _parsed(knob: str, value: object) -> object:
    """Value of a knob given as text on a command line."""
    if not isinstance(value, str) or knob in ("name", "description"):
        return value
    text = value.strip()
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        if "=" in text:
            pairs = (part.partition("=") for part in text.split(","))
            return {key.strip(): _parsed(knob, rest) for key, _, rest in pairs}
        parsed = [part.strip() for part in text.split(",")] if "," in text else text
    listed = knob in ("gpus_per_node", "priorities", "ratios")
    return [parsed] if listed and not isinstance(parsed, list | dict) else parsed
