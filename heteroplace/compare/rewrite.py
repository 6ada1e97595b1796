"""The same generated instance under other rules: what is drawn stays, so rows are true pairs.

A knob of a family takes part in the draws: with another affinity or band, the services, what runs
and the targets come out differently as well. These two are put in when all is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field, JsonValue

from heteroplace.errors import InputError
from heteroplace.files import validated
from heteroplace.generate.draft import band
from heteroplace.generate.family import AFFINITIES, AffinityKind, Family
from heteroplace.instance import Instance, Noun, RunningGroup, Service

HALVES = 1000


class Rewrite(Noun):
    """Rules that every service of a generated instance gets in place of its own.

    Parameters
    ----------
    every_affinity
        One of :data:`heteroplace.generate.family.AFFINITIES`; null: as drawn. A group that runs
        must lie in one domain of the level that it requires.
    every_band
        Half-width of the ratio bands as a fraction of the ratio, from the family's knob ``band``
        up to 1; null: as drawn.
    """

    every_affinity: AffinityKind | None = None
    every_band: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None

    @classmethod
    def split(cls, knobs: Mapping[str, JsonValue]) -> tuple[Rewrite, dict[str, JsonValue]]:
        """Part the rules from the knobs of the family.

        Parameters
        ----------
        knobs
            Of an experiment's entry, both kinds by name.

        Raises
        ------
        InputError
            If a rule does not fit; names it.
        """
        rules = {name: value for name, value in knobs.items() if name in cls.model_fields}
        rest = {name: value for name, value in knobs.items() if name not in rules}
        return validated(lambda: cls.model_validate(rules)), rest

    def refuse_narrower(self, family: Family) -> None:
        """Refuse a band in which what runs need not be.

        Parameters
        ----------
        family
            What the instance is drawn from.

        Raises
        ------
        InputError
            If the band is narrower than the family's.
        """
        if self.every_band is not None and self.every_band < family.band:
            raise InputError(
                "every_band",
                f"{self.every_band:g} is below the knob band {family.band:g} that the instance is "
                "drawn with; lower that knob",
            )

    def apply(self, instance: Instance) -> Instance:
        """Return the instance with these rules; itself when there is none.

        Parameters
        ----------
        instance
            As generated.

        Raises
        ------
        InputError
            If a running group lies in several domains of the affinity's level.
        """
        if self == Rewrite():
            return instance
        changes: dict[str, Any] = {"services": tuple(map(self._service, instance.services))}
        if self.every_affinity is not None:
            level = AFFINITIES[self.every_affinity].required
            domains = {node.name: node.domains for node in instance.nodes}
            changes["running"] = tuple(_bound(group, level, domains) for group in instance.running)
        parts = {name: getattr(instance, name) for name in Instance.model_fields}
        return Instance.model_validate({**parts, **changes})

    def _service(self, service: Service) -> Service:
        changes: dict[str, Any] = {}
        if self.every_affinity is not None:
            changes["affinity"] = AFFINITIES[self.every_affinity]
        if self.every_band is not None:
            half = Fraction(self.every_band).limit_denominator(HALVES)
            # A generated band lies evenly about its ratio.
            changes["ratios"] = tuple(
                band((each.min + each.max) / 2, half) if each.max is not None else each
                for each in service.ratios
            )
        return service.model_copy(update=changes)


def _bound(
    group: RunningGroup, level: str | None, domains: Mapping[str, Mapping[str, str]]
) -> RunningGroup:
    if level is None:
        return group.model_copy(update={"domain": None})
    found = {domains[node][level] for each in group.instances for node in each.nodes}
    if len(found) > 1:
        raise InputError(
            "every_affinity",
            f"the running group {group.name} lies in {len(found)} domains of {level}; draw all "
            "services with an affinity as narrow, or with running = 0",
        )
    return group.model_copy(update={"domain": found.pop()})
