"""The picture of an instance and a plan as one HTML page that needs no network."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

from heteroplace.instance import Instance, Service
from heteroplace.plan import Plan
from heteroplace.show import MARKS, Picture, PlacedGroup, clean, number
from heteroplace.topology import TIERS

_TITLE = "@TITLE@"
_DATA = "@DATA@"


def page(instance: Instance, plan: Plan | None = None) -> str:
    """Draw an instance and a plan as one self-contained HTML page.

    Parameters
    ----------
    instance
        The problem.
    plan
        The decision; null draws the running state.

    Returns
    -------
    str
        The page: an icicle of the levels down to GPUs, the objective, what stays unmet and a table
        of groups. It loads nothing and sends nothing.

    Raises
    ------
    InputError
        If the plan names what the instance does not have.
    """
    head, middle, tail = template()
    title = html.escape(clean(instance.name) or "heteroplace")
    return "".join((head, title, middle, embedded(drawing(Picture(instance, plan))), tail))


def template() -> tuple[str, str, str]:
    """Read the page without a picture: what comes before the title, up to the data, and after."""
    text = resources.files("heteroplace").joinpath("page.html").read_text(encoding="utf-8")
    head, _, rest = text.partition(_TITLE)
    middle, _, tail = rest.partition(_DATA)
    return head, middle, tail


def embedded(data: Any) -> str:
    """Write JSON that is safe inside a script element, whatever the names in it."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def drawing(picture: Picture) -> dict[str, Any]:
    """Collect what the page draws; nodes and placements are rows to keep it small.

    With ``weights`` put into it, a number per service, the page takes those for the order and the
    colours of services: pages that are compared then agree.
    """
    instance = picture.instance
    types = sorted({node.gpu_type for node in instance.nodes})
    type_number = {name: index for index, name in enumerate(types)}
    view = picture.view
    return {
        "name": clean(instance.name),
        "description": clean(instance.description),
        "planned": picture.plan is not None,
        "levels": [clean(level) for level in instance.levels],
        "tiers": TIERS,
        "marks": MARKS,
        "types": [clean(name) for name in types],
        "domains": [
            [clean(domain.name), domain.rank, domain.parent, view.domain_tier(domain.index)]
            for domain in view.domains
        ],
        "nodes": [
            [
                clean(node.name),
                type_number[node.gpu_type],
                node.gpus,
                view.node_path[index][-1],
                node.reserved,
                int(node.schedulable),
                view.node_tier[index],
            ]
            for index, node in enumerate(instance.nodes)
        ],
        "services": [_service(service) for service in instance.services],
        "groups": [_group(instance, group) for group in picture.groups],
        "roles": [
            {
                "service": instance.service_index[role.service],
                "role": clean(role.role),
                "target": number(role.target),
                "delivered": number(role.delivered),
                "unmet": number(role.unmet) if role.unmet else None,
                "unmetGpus": number(role.unmet_gpus),
            }
            for role in picture.evaluation.roles
        ],
        "steps": [[step.name, number(step.value)] for step in picture.evaluation.steps],
        "costs": [[name, number(value)] for name, value in picture.evaluation.costs.items()],
        "repairs": [
            [name, number(value)] for name, value in picture.evaluation.repairs.items() if value
        ],
    }


def _service(service: Service) -> dict[str, Any]:
    return {
        "name": clean(service.name),
        "priority": service.priority,
        "level": service.affinity.required and clean(service.affinity.required),
        "roles": [clean(role) for role in service.roles],
    }


def _group(instance: Instance, group: PlacedGroup) -> dict[str, Any]:
    """Write a group; a placement is [role, shape, name, mark, [node, gpus, ...], other pods]."""
    service = instance.service_index[group.service]
    roles = {name: index for index, name in enumerate(instance.services[service].roles)}
    return {
        "name": clean(group.name),
        "service": service,
        "domain": group.domain and clean(group.domain),
        "at": group.at,
        "new": group.new,
        "placements": [
            [
                roles[each.role],
                clean(each.shape),
                each.name and clean(each.name),
                MARKS.index(each.mark),
                [value for pod in each.pods for value in pod],
                [value for pod in each.other for value in pod],
            ]
            for each in group.placements
        ],
    }
