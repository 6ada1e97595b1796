"""The outcome of a curation as a piece of a fleet file."""

from __future__ import annotations

import json
from typing import Any

from heteroplace.curate.choose import Curation
from heteroplace.policy.fleet import Fleet


def fragment(curation: Curation, fleet: Fleet) -> str:
    """Write the ratio and the policy of the curated service as TOML.

    Parameters
    ----------
    curation
        What was found.
    fleet
        The fleet that :func:`curate` returned.

    Returns
    -------
    str
        A ``[[services]]`` table with the service's name, ratios and policy: what to replace in
        the fleet file.
    """
    service = fleet.service[curation.service]
    data = service.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    lines = [f"# {line}" for line in (curation.reason, *_pressure_words(curation))]
    lines += ["[[services]]", f"name = {_value(service.name)}"]
    if "ratios" in data:
        lines.append(f"ratios = {_value(data['ratios'])}")
    lines += ["", "[services.policy]"]
    policy = data["policy"]
    primary = service.policy.primary
    # Said even where it is the default: a reader should see what drives.
    named = {name: getattr(primary, name) for name in ("kind", "signal") if hasattr(primary, name)}
    policy["primary"] = {**named, **policy["primary"]}
    lines += [f"{key} = {_value(value)}" for key, value in policy.items()]
    return "\n".join(lines) + "\n"


def _pressure_words(curation: Curation) -> list[str]:
    best = curation.pressure.best_split
    if best.ratio is None:
        return [f"{best.prefill} instances bear {best.sustained:.4g} requests/s."]
    return [
        f"Of {curation.pressure.total} instances, {best.prefill} prefill and {best.decode} decode "
        f"bear the most: {best.sustained:.4g} requests/s within the objectives."
    ]


def _value(value: Any) -> str:
    """Write a value in one line of TOML; null is left out."""
    if isinstance(value, dict):
        items = (f"{_key(key)} = {_value(each)}" for key, each in value.items() if each is not None)
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    if isinstance(value, str):
        # JSON and TOML agree on these escapes, but for the delete character.
        return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    # Six digits are more than a model knows.
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("_", "a").replace("-", "a").isalnum()
    return name if plain else _value(name)
