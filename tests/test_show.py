"""Pictures of instances and plans, in the terminal and as a page."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from heteroplace.check import evaluate
from heteroplace.errors import InputError
from heteroplace.instance import Instance
from heteroplace.page import page
from heteroplace.plan import Plan
from heteroplace.show import MARKS, Picture, clean, plan_tables, render

HOSTILE = {
    "title": "</title><script>document.documentElement.dataset.pwned = 1</script>",
    "chat": "</script><img src=x onerror=document.documentElement.dataset.pwned=1>",
    "code": "<!--<script>\u202e\x1b[31m[bold]red[/bold] 日本",
    "a1": "s1&lt;\"'`${x}@DATA@",
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def fleet() -> Instance:
    return large()


def shape(gpus: int, gpu_type: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"pods": [{"gpu_type": gpu_type, "gpus": gpus, "count": count}], **more}


def small(rename: dict[str, str] | None = None) -> Instance:
    """Two S2, four S1, two GPU types, three running groups; cordoned, reserved and draining."""
    names = rename or {}
    chat, code = names.get("chat", "chat"), names.get("code", "code")
    nodes: list[dict[str, Any]] = []
    for s2, s1, gpu_type in (
        ("pod-a", "a1", "H20"),
        ("pod-a", "a2", "H800"),
        ("pod-b", "b1", "H20"),
        ("pod-b", "b2", "H20"),
    ):
        for place in range(3):
            domains = {"cluster": "c0", "s2": s2, "s1": names.get(s1, s1)}
            nodes.append(
                {"name": f"{s1}-n{place}", "gpu_type": gpu_type, "gpus": 8, "domains": domains}
            )
    nodes[2]["reserved"] = 2
    nodes[8]["schedulable"] = False
    prefill = {"target": 4, "shapes": [shape(4, "H800", name="tp4"), shape(4, "H20", name="h20")]}
    decode = {"target": 3, "shapes": [shape(8, "H20", name="tp8")]}
    return Instance.from_dict(
        {
            "schema": 1,
            "name": names.get("title", "small fleet"),
            "description": "two pods",
            "nodes": nodes,
            "services": [
                {
                    "name": chat,
                    "priority": 2,
                    "affinity": {"required": "s2", "preferred": "s1"},
                    "roles": {"prefill": prefill, "decode": decode},
                    "ratios": [{"numerator": "prefill", "denominator": "decode", "max": 4}],
                },
                {
                    "name": code,
                    "priority": 1,
                    "roles": {
                        "serve": {
                            "target": 1,
                            "shapes": [shape(2, "H20", name="two"), shape(8, "H20", 2, name="big")],
                        }
                    },
                },
            ],
            "running": [
                {
                    "name": "chat-a",
                    "service": chat,
                    "domain": "pod-a",
                    "instances": [
                        {"role": "prefill", "shape": "tp4", "nodes": ["a2-n0"]},
                        {"role": "prefill", "shape": "tp4", "nodes": ["a2-n1"]},
                        {
                            "role": "prefill",
                            "shape": "tp4",
                            "nodes": ["a2-n2"],
                            "state": "draining",
                        },
                        {"role": "decode", "shape": "tp8", "nodes": ["a1-n0"]},
                    ],
                },
                {
                    "name": "code-0",
                    "service": code,
                    "instances": [
                        {"role": "serve", "shape": "two", "nodes": ["b1-n0"]},
                        {"role": "serve", "shape": "two", "nodes": ["b1-n0"]},
                    ],
                },
                {
                    "name": "code-1",
                    "service": code,
                    "instances": [{"role": "serve", "shape": "big", "nodes": ["b1-n1", "b2-n0"]}],
                },
            ],
            "cycle": {"max_migrations": 1},
        }
    )


def small_plan(rename: dict[str, str] | None = None) -> Plan:
    """Add to ``chat-a``, open ``chat-b``, remove one and move one of ``code-0``."""
    names = rename or {}
    chat, code = names.get("chat", "chat"), names.get("code", "code")

    def placed(role: str, of: str, *pods: tuple[str, int], **more: Any) -> dict[str, Any]:
        return {
            "role": role,
            "shape": of,
            "pods": [{"node": node, "gpus": gpus} for node, gpus in pods],
            **more,
        }

    return Plan.model_validate(
        {
            "groups": [
                {
                    "name": "chat-a",
                    "service": chat,
                    "domain": "pod-a",
                    "added": [placed("decode", "tp8", ("a1-n1", 8))],
                },
                {
                    "name": "chat-b",
                    "service": chat,
                    "domain": "pod-b",
                    "new": True,
                    "added": [
                        placed("prefill", "h20", ("b2-n1", 4)),
                        placed("decode", "tp8", ("b2-n2", 8)),
                    ],
                },
                {
                    "name": "code-0",
                    "service": code,
                    "removed": [placed("serve", "two", ("b1-n0", 2), name="serve-0")],
                    "moved": [
                        placed(
                            "serve",
                            "two",
                            ("b2-n1", 2),
                            name="serve-1",
                            origin=[{"node": "b1-n0", "gpus": 2}],
                        )
                    ],
                },
            ]
        }
    )


def large(s2: int = 38, s1: int = 4, nodes: int = 28, services: int = 30) -> Instance:
    """Build a fleet of thousands of nodes, about half of it in use."""
    types = ("H20", "H800", "A100", "L40S")
    fleet: list[dict[str, Any]] = []
    for pod in range(s2):
        for rail in range(s1):
            gpu_type = types[(pod + rail * (pod % 3 == 0)) % 4]
            for place in range(nodes):
                domains = {"cluster": f"c{pod // 20}", "s2": f"s2-{pod}", "s1": f"s1-{pod}-{rail}"}
                node: dict[str, Any] = {
                    "name": f"n{pod:02}-{rail}-{place:02}",
                    "gpu_type": gpu_type,
                    "gpus": 8,
                    "domains": domains,
                }
                if place % 13 == 7:
                    node["schedulable"] = False
                if place % 11 == 5:
                    node["reserved"] = 4
                fleet.append(node)
    wanted = [
        {
            "name": f"model-{number}",
            "affinity": {"required": "s2"},
            "roles": {
                role: {"target": 40, "shapes": [shape(gpus, each, name=each) for each in types]}
                for role, gpus in (("prefill", 4), ("decode", 8))
            },
        }
        for number in range(services)
    ]
    running: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for index, node in enumerate(fleet):
        role, often = (("decode", 1), ("prefill", 2))[index % 2]
        key = index % 7 * index // 40 % services, node["domains"]["s2"]
        if index % 3 == 0 or node.get("reserved") or node.get("schedulable") is False:
            continue
        running.setdefault(key, []).extend(
            {"role": role, "shape": node["gpu_type"], "nodes": [node["name"]]} for _ in range(often)
        )
    groups = [
        {"name": f"model-{key[0]}@{key[1]}", "service": f"model-{key[0]}", "instances": instances}
        for key, instances in running.items()
    ]
    return Instance.from_dict(
        {"schema": 1, "name": "large", "nodes": fleet, "services": wanted, "running": groups}
    )


def large_plan(instance: Instance) -> Plan:
    """Open a group per S2 on nodes that are free, remove an instance of every tenth group."""
    used = {name for group in instance.running for each in group.instances for name in each.nodes}
    groups: list[dict[str, Any]] = []
    seen: set[str] = set()
    for node in instance.nodes:
        s2 = node.domains["s2"]
        if node.name in used or node.reserved or not node.schedulable or s2 in seen:
            continue
        seen.add(s2)
        pods = [{"node": node.name, "gpus": 8}]
        added = {"role": "decode", "shape": node.gpu_type, "pods": pods}
        groups.append(
            {"name": f"new@{s2}", "service": "model-1", "domain": s2, "new": True, "added": [added]}
        )
    for group in instance.running[::10]:
        each = group.instances[0]
        pods = [{"node": each.nodes[0], "gpus": 8 if each.role == "decode" else 4}]
        removed = {"name": each.name, "role": each.role, "shape": each.shape, "pods": pods}
        groups.append({"name": group.name, "service": group.service, "removed": [removed]})
    return Plan.model_validate({"groups": groups})


def text_of(renderable: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, legacy_windows=False).print(renderable)
    return file.getvalue()


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def marks_of(data: dict[str, Any]) -> dict[str, int]:
    found = [each[3] for group in data["groups"] for each in group["placements"]]
    return {mark: found.count(index) for index, mark in enumerate(data["marks"])}


# --------------------------------------------------------------------------------------------
# What is drawn
# --------------------------------------------------------------------------------------------


def test_every_instance_is_placed_once_with_its_mark() -> None:
    picture = Picture(small(), small_plan())
    marks = [each.mark for each in picture.placements()]
    assert {mark: marks.count(mark) for mark in MARKS} == {
        "kept": 4,
        "draining": 1,
        "moved": 1,
        "added": 3,
        "removed": 1,
        "left": 1,
    }


def test_gpus_after_the_plan_are_those_of_what_stays_and_arrives() -> None:
    instance = small()
    picture = Picture(instance, small_plan())
    after = dict(zip((node.name for node in instance.nodes), picture.free_after, strict=True))
    assert after["a1-n1"] == 0
    assert after["a1-n2"] == 6
    assert after["b1-n0"] == 8
    assert after["b1-n2"] == 0, "a cordoned node has nothing free"
    assert after["b2-n1"] == 2
    assert Picture(instance).free_after == picture.view.free


def test_an_instance_over_several_domains_stands_at_the_one_that_holds_it() -> None:
    picture = Picture(small())
    wide = next(each for each in picture.placements() if each.shape == "big")
    assert picture.view.domains[picture.common_domain(wide)].name == "pod-b"


def test_a_plan_for_another_instance_is_refused() -> None:
    plan = Plan.model_validate({"groups": [{"name": "x", "service": "nobody", "new": True}]})
    for draw in (render, plan_tables, page):
        with pytest.raises(InputError, match="nobody"):
            draw(small(), plan)


# --------------------------------------------------------------------------------------------
# Terminal
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [None, True, False])
def test_the_tree_names_every_domain_with_its_numbers(nodes: bool | None) -> None:
    text = text_of(render(small(), small_plan(), nodes=nodes))
    for line in (
        "small fleet · 12 nodes · 96 GPUs, 46 free, 28 after, 2 reserved, 1 cordoned node",
        "cluster c0 · RDMA medium · H20, H800 · 96 GPUs",
        "s2 pod-a · RDMA medium · H20, H800 · 48 GPUs, 26 free, 18 after",
        "s2 pod-b · RDMA low · H20 · 48 GPUs, 20 free, 10 after",
        "s1 a1 · RDMA medium · H20 · 24 GPUs, 14 free, 6 after",
        "s1 a2 · RDMA medium · H800",
        "s1 b1 · RDMA low · H20",
        "s1 b2 · RDMA low · H20",
    ):
        assert line in text


def test_the_tree_marks_what_the_plan_changes() -> None:
    text = text_of(render(small(), small_plan()))
    assert "chat decode ×2 (16 GPUs)  +1 added" in text
    assert "code serve ×0  -1 removed  ←1 moved away" in text
    assert "code serve ×1 (2 GPUs)  →1 moved here" in text
    assert "chat prefill ×2 (8 GPUs)  ~1 draining" in text
    assert "a1-n1 · H20 · 8 GPUs, 8 free, 0 after: +chat decode 8" in text
    assert "b1-n2 · H20 · 8 GPUs, 0 free, cordoned" in text
    assert "a1-n2 · H20 · 8 GPUs, 6 free, 2 reserved" in text
    assert "chat prefill 3 of 4, unmet 1 (4 GPUs)" in text


def test_the_running_state_has_no_marks_of_a_plan() -> None:
    text = text_of(render(small()))
    assert "code serve ×2 (4 GPUs)" in text
    for word in ("added", "removed", "moved", "after"):
        assert word not in text


def test_many_nodes_are_condensed_to_rows_by_type_and_use(fleet: Instance) -> None:
    text = text_of(render(fleet))
    flat = re.sub(r"\s*\n[│ ]*", " ", text)
    assert "28 × H20 8 GPUs, 9 free whole, 3 with 4 free (4 reserved), 14 full, 2 cordoned" in flat
    assert "n00-0-00" not in text
    for domain in Picture(fleet).view.domains[1:]:
        assert f" {domain.name} · RDMA" in text
    assert "n00-0-00" in text_of(render(fleet, nodes=True))


@pytest.mark.parametrize("rename", [{}, HOSTILE, {"chat": "x" * 256, "a1": "y" * 200}])
def test_nothing_is_wider_than_80_columns_or_reaches_the_terminal(rename: dict[str, str]) -> None:
    instance, plan = small(rename), small_plan(rename)
    for renderable in (render(instance, plan), render(instance), plan_tables(instance, plan)):
        file = io.StringIO()
        console = Console(file=file, width=80, color_system=None)
        console.print(renderable)
        lines = file.getvalue().splitlines()
        assert max(cell_len(line) for line in lines) <= 80
        assert "\x1b" not in file.getvalue()
        assert "\u202e" not in file.getvalue()


def test_names_are_never_markup() -> None:
    text = text_of(render(small(HOSTILE), small_plan(HOSTILE)), width=200)
    assert "<!--<script>\\u202e\\x1b[31m[bold]red[/bold] 日本 serve" in text


def test_clean_escapes_only_what_does_not_print() -> None:
    assert clean("模型-é [x]") == "模型-é [x]"
    assert clean("a\nb\x1b\u202e") == "a\\nb\\x1b\\u202e"


def test_plan_tables_say_what_happens_and_where() -> None:
    text = re.sub(" +", " ", text_of(plan_tables(small(), small_plan())))
    assert "chat · priority 2 · prefill 3 of 4, unmet 1 (4 GPUs) · decode 3 of 3" in text
    assert "group chat-a in s2 pod-a, running" in text
    assert "group chat-b in s2 pod-b, new" in text
    assert "group code-0 in the whole fleet, running" in text
    assert "+ added 1 × decode tp8 8 GPUs a1: a1-n1" in text
    assert "- removed 1 × serve two 2 GPUs b1: b1-n0" in text
    assert "→ moved 1 × serve two 2 GPUs b1: b1-n0 → b2: b2-n1" in text
    assert "~ draining 1 × prefill tp4 4 GPUs a2: a2-n2" in text
    assert "1 group unchanged: code-1" in text
    assert text.index("chat · priority 2") < text.index("code · priority 1")


def test_plan_tables_collapse_many_node_names() -> None:
    instance = large(s2=4, s1=1, nodes=28, services=1)
    pods = [{"node": f"n00-0-{place:02}", "gpus": 8} for place in range(0, 24, 3)]
    added = [{"role": "decode", "shape": "H20", "pods": [pod]} for pod in pods]
    group = {"name": "g", "service": "model-0", "domain": "s2-0", "new": True, "added": added}
    text = re.sub(
        " +", " ", text_of(plan_tables(instance, Plan.model_validate({"groups": [group]})))
    )
    assert "+ added 8 × decode H20 64 GPUs s1-0-0: n00-0-00, n00-0-03 … (+6)" in text


# --------------------------------------------------------------------------------------------
# Page
# --------------------------------------------------------------------------------------------


def test_page_data_parses_back_to_the_right_counts() -> None:
    instance, plan = small(), small_plan()
    data = data_of(page(instance, plan))
    assert [each[0] for each in data["nodes"]] == [node.name for node in instance.nodes]
    assert len(data["domains"]) == 8
    assert data["planned"] is True
    assert marks_of(data) == {
        "kept": 4,
        "draining": 1,
        "moved": 1,
        "added": 3,
        "removed": 1,
        "left": 1,
    }
    assert [group["new"] for group in data["groups"]] == [False, False, False, True]
    evaluation = evaluate(instance, plan)
    assert [name for name, _ in data["steps"]] == [step.name for step in evaluation.steps]
    assert [role["unmet"] for role in data["roles"]] == ["1", None, None]


def test_page_of_the_running_state() -> None:
    data = data_of(page(small()))
    assert data["planned"] is False
    marks = marks_of(data)
    assert (marks["kept"], marks["draining"], sum(marks.values())) == (6, 1, 7)


def test_page_loads_nothing() -> None:
    text = page(small(), small_plan())
    assert not re.search(r"https?://|(src|href)=[\"']?//|@import|url\(|fetch\(|XMLHttp", text)
    assert "default-src 'none'" in text
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in text


def test_hostile_names_stay_data() -> None:
    instance, plan = small(HOSTILE), small_plan(HOSTILE)
    text = page(instance, plan)
    assert text.count("</script>") == page(small(), small_plan()).count("</script>")
    assert text.count("</title>") == 1
    assert "<img" not in text
    assert html.escape(HOSTILE["title"]) in text
    data = data_of(text)
    assert data["services"][0]["name"] == HOSTILE["chat"]
    assert data["services"][1]["name"] == clean(HOSTILE["code"])
    assert HOSTILE["a1"] in [each[0] for each in data["domains"]]


def test_page_of_thousands_of_nodes_is_small(fleet: Instance) -> None:
    text = page(fleet, large_plan(fleet))
    assert len(data_of(text)["nodes"]) == len(fleet.nodes) == 4256
    assert len(text) < 1_000_000


def dom_of(text: str, folder: Path) -> str:
    """Load a page in headless Chromium and return the document it became."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
    )
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_page_renders_in_a_browser(fleet: Instance, tmp_path: Path) -> None:
    (tmp_path / "hostile").mkdir()
    dom = dom_of(page(small(HOSTILE), small_plan(HOSTILE)), tmp_path / "hostile")
    assert 'data-ready="true"' in dom, "the script ran to its end"
    assert "data-pwned" not in dom
    assert dom.count("<tr>") == 1 + 1 + 1 + 3 + 1 + 4, "unmet, all roles and groups"
    assert html.escape(HOSTILE["chat"], quote=False) in dom
    (tmp_path / "large").mkdir()
    dom = dom_of(page(fleet, large_plan(fleet)), tmp_path / "large")
    drawn = re.search(r'data-drawn="(\d+)"', dom)
    assert drawn is not None
    assert 50 < int(drawn[1]) < 2000, "thousands of nodes are drawn as fewer, larger parts"
