"""The fleet file: the services of a cluster, their limits, ratios and policies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from heteroplace.errors import InputError
from heteroplace.files import MAX_BYTES, parse_toml, read_bytes, refuse_duplicate_keys, validated
from heteroplace.instance import (
    Affinity,
    Count,
    Cycle,
    Limits,
    Name,
    Noun,
    Objective,
    PositiveCount,
    Shape,
    Text,
)
from heteroplace.models import ServedModel, load_models
from heteroplace.policy.control import Policy
from heteroplace.policy.duration import PositiveDuration
from heteroplace.policy.fleet_faults import fleet_faults, role_shapes
from heteroplace.policy.settings import (
    Age,
    Degradation,
    Maintenance,
    Registration,
    SoftScaleIn,
    Stability,
)
from heteroplace.policy.signals import STANDARD, Signal
from heteroplace.policy.sources.config import Metrics
from heteroplace.quantity import NonNegative, Positive

if TYPE_CHECKING:
    from heteroplace.policy.compiled import CompiledService

RoleLimit = Annotated[int, Field(ge=1, le=100_000, strict=True)]


class Way(Noun):
    """One way of a served model to run an instance of a role.

    Parameters
    ----------
    gpu_type
        GPU type, by the cluster's name for it.
    gpus
        GPUs of one instance; default the size with the most capacity per GPU.
    """

    gpu_type: Name
    gpus: PositiveCount | None = None


class FleetRole(Noun):
    """A role of a service.

    Parameters
    ----------
    min, max
        Fewest and most instances.
    use
        With a served model: its ways to run an instance, in order of preference.
    shapes
        Without one: the shapes, in order of preference.
    """

    min: Count = 1
    max: RoleLimit = 1000
    use: tuple[Way, ...] = ()
    shapes: tuple[Shape, ...] = ()


class Ratio(Noun):
    """Target ratio and band of two roles' counts.

    Parameters
    ----------
    numerator, denominator
        Role names.
    target
        The ratio that the counts are set to.
    min, max
        The band; default 0.8 and 1.25 times the target.
    """

    numerator: Name = "prefill"
    denominator: Name = "decode"
    target: Positive
    min: NonNegative | None = None
    max: Positive | None = None

    @property
    def band(self) -> tuple[Any, Any]:
        """Lowest and highest ratio, defaults resolved."""
        low = self.target * 4 / 5 if self.min is None else self.min
        high = self.target * 5 / 4 if self.max is None else self.max
        return low, high


class Defaults(Noun):
    """What holds for every service that does not say otherwise, field by field.

    Parameters
    ----------
    stability, age, soft_scale_in, registration, maintenance
        As in a service.
    """

    stability: Stability = Stability()
    age: Age = Age()
    soft_scale_in: SoftScaleIn = SoftScaleIn()
    registration: Registration = Registration()
    maintenance: Maintenance = Maintenance()


class FleetService(Noun):
    """A service whose targets are kept.

    Counts are in instances of a role's preferred shape; an instance of another shape counts as its
    share of the preferred one's capacity.

    Parameters
    ----------
    name
        Unique name.
    priority
        Higher is served first.
    model
        Name of a served model that gives the roles' capacities.
    affinity, limits
        As in a placement instance.
    roles
        By name.
    ratios
        One fewer than there are roles, so that every role is tied to every other.
    policy
        How the targets follow signals and clock.
    stability, age, soft_scale_in, registration, maintenance
        How careful they are; fields left out are those of the fleet's ``defaults``.
    """

    name: Name
    priority: Annotated[int, Field(strict=True, ge=-(10**6), le=10**6)] = 0
    model: Name | None = None
    affinity: Affinity = Affinity()
    limits: Limits = Limits()
    roles: Annotated[dict[Name, FleetRole], Field(min_length=1)]
    ratios: tuple[Ratio, ...] = ()
    policy: Policy
    stability: Stability = Stability()
    age: Age = Age()
    soft_scale_in: SoftScaleIn = SoftScaleIn()
    registration: Registration = Registration()
    maintenance: Maintenance = Maintenance()


class Fleet(Noun):
    """The services of a cluster and how their targets are kept.

    Parameters
    ----------
    schema_
        Version of the format, ``schema`` in the file: 1.
    name, description
        For people.
    interval
        Time from one step to the next.
    models
        Folder of served models, relative to the fleet file.
    served
        Served models in the file itself; the folder is not read for these.
    latency_percentile
        Percentile of the latency signals, 0 to 1.
    signals
        Signals beyond the standard eight.
    metrics
        Where the readings of the signals come from (docs/metrics.md).
    defaults
        Settings of the services that do not say otherwise.
    degradation
        What happens when GPUs are short.
    objective, cycle
        Of the placement instances that are made from the targets.
    services
        The services.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: Annotated[int, Field(alias="schema", strict=True)]
    name: Text = ""
    description: Text = ""
    interval: PositiveDuration = 30.0
    models: Text | None = None
    served: tuple[ServedModel, ...] = ()
    latency_percentile: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, strict=True)] = 0.99
    signals: tuple[Signal, ...] = ()
    metrics: Metrics | None = None
    defaults: Defaults = Defaults()
    degradation: Degradation = Degradation()
    objective: Objective = Objective()
    cycle: Cycle = Cycle()
    services: Annotated[tuple[FleetService, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        """Give every service the defaults it does not override."""
        if not isinstance(data, Mapping):
            return data
        defaults = _given(data.get("defaults"))
        if not isinstance(defaults, Mapping):
            return data
        try:
            validated(lambda: Defaults.model_validate(defaults), "defaults")
        except InputError as error:
            path = error.path.replace("defaults: ", "defaults.", 1)
            raise InputError(path, error.message) from None
        services = data.get("services")
        if not isinstance(services, list | tuple):
            return data
        plain = [_given(each) for each in services]
        merged = [_merged(defaults, each) if isinstance(each, Mapping) else each for each in plain]
        return {**data, "services": merged}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for path, message in fleet_faults(self):
            raise InputError(path, message)
        return self

    @classmethod
    def from_dict(cls, data: Any, folder: str | os.PathLike[str] | None = None) -> Fleet:
        """Build a fleet from plain dicts and lists.

        Parameters
        ----------
        data
            As in the file.
        folder
            What ``models`` is relative to; default the working directory.

        Raises
        ------
        InputError
            If the data is not a valid fleet; names the first field at fault.
        """
        return validated(lambda: cls.model_validate(_with_models(data, folder)))

    @classmethod
    def from_toml(
        cls,
        text: str | bytes,
        source: str = "fleet",
        folder: str | os.PathLike[str] | None = None,
    ) -> Fleet:
        """Parse a fleet from TOML text; parameters and errors as :meth:`from_json`."""
        data = parse_toml(text, source)
        return validated(lambda: cls.model_validate(_with_models(data, folder)), source)

    @classmethod
    def from_json(
        cls,
        text: str | bytes,
        source: str = "fleet",
        folder: str | os.PathLike[str] | None = None,
    ) -> Fleet:
        """Parse a fleet from JSON text.

        Parameters
        ----------
        text
            The text.
        source
            Its name in an error.
        folder
            What ``models`` is relative to; default the working directory.

        Raises
        ------
        InputError
            If the text cannot be parsed or is not a valid fleet.
        """
        return validated(
            lambda: cls.model_validate(_with_models(_parsed(text, source), folder)), source
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Fleet:
        """Read a fleet from a file, JSON if its name ends with ``.json``, else TOML.

        Raises
        ------
        InputError
            If the file cannot be read, is too large, cannot be parsed or is not a valid fleet.
        """
        text = read_bytes(path, max_bytes)
        parse = cls.from_json if str(path).lower().endswith(".json") else cls.from_toml
        return parse(text, str(path), Path(path).parent)

    def to_json(self, indent: int | None = 1) -> str:
        """Write the fleet as JSON that :meth:`from_json` reads back to an equal fleet."""
        # A service may set what is this project's default against another default of the fleet.
        return self.model_dump_json(by_alias=True, exclude_unset=True, indent=indent)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the fleet's content, in hexadecimal."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()

    @cached_property
    def signal(self) -> dict[str, Signal]:
        """The standard signals and the fleet's own, by name."""
        return {**STANDARD, **{each.name: each for each in self.signals}}

    @cached_property
    def service(self) -> dict[str, FleetService]:
        """The services by name."""
        return {each.name: each for each in self.services}

    @cached_property
    def model(self) -> dict[str, ServedModel]:
        """The served models by name."""
        return {each.name: each for each in self.served}

    @cached_property
    def shapes(self) -> dict[str, dict[str, tuple[Shape, ...]]]:
        """Service -> role -> its shapes in order of preference, capacities resolved."""
        return {
            each.name: {name: role_shapes(self, each, name) for name in each.roles}
            for each in self.services
        }

    @cached_property
    def compiled(self) -> tuple[CompiledService, ...]:
        """What a step needs of each service, worked out once."""
        from heteroplace.policy.compiled import compile_service

        return tuple(compile_service(self, each) for each in self.services)


def _parsed(text: str | bytes, source: str) -> Any:
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(source, f"is not complete, valid JSON ({error})") from None
    refuse_duplicate_keys(text, source)
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _given(data: Any) -> Any:
    """What was given of a model, as plain data; other data as it is."""
    return data.model_dump(by_alias=True, exclude_unset=True) if isinstance(data, Noun) else data


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The service's settings over the defaults, field by field."""
    merged = dict(own)
    for name, default in defaults.items():
        mine = own.get(name, {})
        merged[name] = {**default, **mine} if isinstance(mine, Mapping) else mine
    return merged


def _with_models(data: Any, folder: str | os.PathLike[str] | None) -> Any:
    """Add the served models that the services name and the file does not hold."""
    if not isinstance(data, Mapping) or not isinstance(data.get("models"), str):
        return data
    services, served = data.get("services"), data.get("served", ())
    if not isinstance(services, list | tuple) or not isinstance(served, list | tuple):
        return data
    wanted = {
        each["model"]
        for each in services
        if isinstance(each, Mapping) and isinstance(each.get("model"), str)
    }
    wanted -= {each.get("name") for each in served if isinstance(each, Mapping)}
    if not wanted:
        return data
    path = Path(folder or ".") / data["models"]
    try:
        found = [each for each in load_models(path) if each.name in wanted]
    except (InputError, OSError, ValueError) as error:
        raise InputError("models", str(error)[:300]) from None
    return {**data, "served": [*served, *(each.model_dump(mode="json") for each in found)]}
