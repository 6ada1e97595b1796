"""What the simulation needs to know of each of a fleet's services, worked out once."""

from __future__ import annotations

from dataclasses import dataclass

from heteroplace.errors import InputError
from heteroplace.instance import Shape
from heteroplace.policy.control import Feedback
from heteroplace.policy.fleet import Fleet, FleetService
from heteroplace.policy.fleet_faults import service_ratios
from heteroplace.policy.ratio import Ratios
from heteroplace.simulate.model import PoolModel, PoolModels

DEFAULT_TTFT = 1.0
DEFAULT_TBT = 0.05


@dataclass(frozen=True, eq=False)
class PooledService:
    """A service and its two pools.

    Parameters
    ----------
    name
        Of the service.
    model
        Its pool model.
    prefill, decode
        The roles of each pool; the same one role when it is aggregated.
    aggregated
        Whether the same instances do both.
    ttft, tbt
        Objectives in seconds.
    percentile
        At which they are judged.
    shapes
        Role -> shapes in order of preference.
    ratios
        The counts that its bands and limits allow.
    """

    name: str
    model: PoolModel
    prefill: tuple[str, ...]
    decode: tuple[str, ...]
    aggregated: bool
    ttft: float
    tbt: float
    percentile: float
    shapes: dict[str, tuple[Shape, ...]]
    ratios: Ratios

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles of the two pools, each once."""
        return tuple(dict.fromkeys((*self.prefill, *self.decode)))

    def tokens(self, role: str, shape: str | None = None) -> tuple[float, float]:
        """Tokens per second of one instance for prefill and for decode.

        Parameters
        ----------
        role
            Name of the role.
        shape
            Name of the shape; default the preferred one.
        """
        found = self.shapes[role][0]
        if shape is not None:
            found = next(each for each in self.shapes[role] if each.name == shape)
        capacity = float(found.capacity)
        return capacity * self.model.prefill_tokens, capacity * self.model.decode_tokens


def pooled_services(
    fleet: Fleet, pools: PoolModels, asked: frozenset[str] | set[str]
) -> tuple[PooledService, ...]:
    """Work out the pools of every service of a fleet.

    Parameters
    ----------
    fleet
        The fleet.
    pools
        Their models.
    asked
        Services with a demand: their capacities must be in tokens per second.

    Raises
    ------
    InputError
        If the pools file or the demand names a service that the fleet lacks, if roles cannot be
        told to be prefill or decode, or capacities are no token rates.
    """
    for name in (*pools.services, *sorted(asked)):
        if name not in fleet.service:
            known = ", ".join(list(fleet.service)[:8])
            raise InputError(name, f"is no service of the fleet; it has {known}")
    return tuple(_pooled(fleet, each, pools.of(each.name), asked) for each in fleet.services)


def _pooled(
    fleet: Fleet, service: FleetService, model: PoolModel, asked: frozenset[str] | set[str]
) -> PooledService:
    aggregated = len(service.roles) == 1
    prefill, decode = (
        (tuple(service.roles),) * 2 if aggregated else (model.prefill_roles, model.decode_roles)
    )
    named = set(prefill) | set(decode)
    if not aggregated and (named != set(service.roles) or set(prefill) & set(decode)):
        raise InputError(
            f"services.{service.name}",
            f"has the roles {', '.join(service.roles)}; say in the pools file which of them are "
            "prefill_roles and which decode_roles",
        )
    shapes = fleet.shapes[service.name]
    unit = model.prefill_tokens == 1 and model.decode_tokens == 1
    if service.name in asked and service.model is None and unit:
        for role in named:
            if "capacity" not in shapes[role][0].model_fields_set:
                raise InputError(
                    f"services.{service.name}.roles.{role}.shapes",
                    "count instances, not tokens per second; give a capacity, or prefill_tokens "
                    "and decode_tokens in the pools file",
                )
    ttft = model.ttft_slo or _objective(service, "ttft") or DEFAULT_TTFT
    tbt = model.tbt_slo or _objective(service, "tbt") or DEFAULT_TBT
    return PooledService(
        name=service.name,
        model=model,
        prefill=prefill,
        decode=decode,
        aggregated=aggregated,
        ttft=ttft,
        tbt=tbt,
        percentile=fleet.latency_percentile,
        shapes=shapes,
        ratios=service_ratios(service),
    )


def _objective(service: FleetService, signal: str) -> float | None:
    """The tightest limit that the service's policies put on a latency."""
    policy = service.policy
    feedback = [each for each in (policy.primary, *policy.latency) if isinstance(each, Feedback)]
    limits = [each.slo for each in feedback if each.signal == signal]
    limits += [limit for name, limit in service.soft_scale_in.limits.items() if name == signal]
    return min(limits, default=None)
