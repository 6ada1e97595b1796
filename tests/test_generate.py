"""Generated instances: the same everywhere, valid, and what the knobs ask for."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import pytest

from heteroplace import InputError, Instance, Plan, check, cli, evaluate
from heteroplace.cli import main
from heteroplace.generate import FAMILIES, Family, family_from, from_inventory, generate
from heteroplace.models import ALIASES, ServedModel, load_models, models_from_csv, same_gpu
from heteroplace.topology import TreeView

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
PAGE = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")
DATA = Path(os.environ.get("HETEROPLACE_DATA", ROOT.parent / "shared" / "data"))
INVENTORY = DATA / "derived" / "nodes_alibaba2026_s0s1s2.csv"
CAPACITY = DATA / "aiconfigurator" / "capacity_by_gpu_role.csv"
SCALE = {"small": 1.0, "cycle": 0.1, "replan": 0.15, "large": 0.05, "region": 0.03}

needs_data = pytest.mark.skipif(
    not (INVENTORY.exists() and CAPACITY.exists()),
    reason="the real inventory is not here; set HETEROPLACE_DATA to the folder with it",
)


def made(name: str, seed: int = 0, **knobs: object) -> Instance:
    return generate(family_from(name, {"scale": SCALE.get(name, 1.0), **knobs}), seed)


def now(instance: Instance) -> dict[tuple[str, str], Fraction]:
    outcome = evaluate(instance, Plan()).roles
    return {(each.service, each.role): each.delivered for each in outcome}


def types_in(view: TreeView, domain: int) -> set[str]:
    return {view.cells[cell].gpu_type for cell in view.cells_below[domain]}


def asked(instance: Instance) -> Fraction:
    return sum(
        (each.unmet_gpus for each in evaluate(instance, Plan()).roles),
        Fraction(0),
    )


def directions(instance: Instance) -> Counter[str]:
    """How many services scale out, scale in or stay; the roles of each must agree."""
    count: Counter[str] = Counter()
    delivered = now(instance)
    for service in instance.services:
        change = {
            (role.target > delivered[service.name, name])
            - (role.target < delivered[service.name, name])
            for name, role in service.roles.items()
        }
        assert len(change) == 1, f"{service.name}: its roles change in different directions"
        count[{1: "out", -1: "in", 0: "stay"}[change.pop()]] += 1
    return count


def assert_sound(instance: Instance) -> None:
    assert check(instance, Plan()) == []
    repairs = evaluate(instance, Plan()).repairs
    repairs.pop("target")
    assert not any(repairs.values()), repairs
    for service in instance.services:
        for band in service.ratios:
            above = service.roles[band.numerator].target
            below = service.roles[band.denominator].target
            assert band.min * below <= above, service.name
            assert band.max is None or above <= band.max * below, service.name


# ------------------------------------------------------------------------------------ families


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_valid(name: str) -> None:
    for seed in range(3):
        instance = made(name, seed)
        assert_sound(instance)
        assert directions(instance)["out"] > 0
        assert instance.running
    assert Instance.from_json(instance.to_json()) == instance


def test_the_seed_decides() -> None:
    assert made("small", 3).digest == made("small", 3).digest
    assert made("small", 3).digest != made("small", 4).digest


@pytest.mark.parametrize("name", ["small", "moe"])
def test_same_in_another_process(name: str) -> None:
    code = (
        "from heteroplace.generate import FAMILIES, generate\n"
        f"import sys; sys.stdout.write(generate(FAMILIES[{name!r}], 5).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert digests == {generate(FAMILIES[name], 5).digest}


@pytest.mark.parametrize(
    ("name", "gpus", "services"),
    [
        ("small", 512, 20),
        ("cycle", 20_000, 300),
        ("replan", 16_000, 300),
        ("large", 76_800, 1000),
        ("region", 100_000, 2000),
    ],
)
def test_sizes_of_the_presets(name: str, gpus: int, services: int) -> None:
    family = FAMILIES[name]
    assert family.total_nodes * family.gpus_per_node[0] == gpus
    assert family.total_services == services


def test_replan_has_14000_free_gpus() -> None:
    view = TreeView(generate(FAMILIES["replan"]))
    assert sum(view.free) == pytest.approx(14_000, rel=0.02)


def test_scale_shrinks_everything() -> None:
    family = family_from("region", {"scale": 0.1})
    assert family.total_nodes == pytest.approx(1250, rel=0.1)
    assert family.total_services == 200


# --------------------------------------------------------------------------------------- knobs


@pytest.mark.parametrize(("s1", "s2"), [(0.0, 0.0), (0.0, 0.5), (0.25, 0.5), (1.0, 1.0)])
def test_shares_of_mixed_domains(s1: float, s2: float) -> None:
    instance = made("small", s2=8, s1_per_s2=4, hetero_s1=s1, hetero_s2=s2)
    view = TreeView(instance)
    for level, share in (("s1", s1), ("s2", s2)):
        domains = view.at_level(level)
        mixed = sum(1 for domain in domains if len(types_in(view, domain)) > 1)
        assert mixed / len(domains) == pytest.approx(share, abs=0.05)


def test_gpu_types_have_their_shares() -> None:
    instance = made("replan", scale=1, gpu_types={"A": 4, "B": 3, "C": 2, "D": 1})
    count: Counter[str] = Counter()
    for node in instance.nodes:
        count[node.gpu_type] += node.gpus
    for name, weight in (("A", 4), ("B", 3), ("C", 2), ("D", 1)):
        assert count[name] / count.total() == pytest.approx(weight / 10, abs=0.03)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_load_is_the_share_of_the_free_gpus(load: float) -> None:
    instance = made("replan", load=load)
    assert float(asked(instance)) / sum(TreeView(instance).free) == pytest.approx(load, rel=0.06)


def test_no_load_no_change() -> None:
    assert directions(made("small", load=0, scale_in=0))["stay"] == 20


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_running_share(share: float) -> None:
    instance = made("cycle", running=share)
    view = TreeView(instance)
    total = sum(node.gpus for node in instance.nodes)
    assert sum(view.used) / total == pytest.approx(share, abs=0.02)
    assert_sound(instance)


def test_changes_and_scale_ins() -> None:
    count = directions(made("cycle", services=400, scale=0.5, change=0.2, scale_in=0.25))
    assert count == {"in": 10, "out": 30, "stay": 160}


def test_a_scale_in_can_be_met_exactly() -> None:
    instance = made("cycle", change=0.5, scale_in=1.0)
    view = TreeView(instance)
    capacities: dict[tuple[str, str], list[Fraction]] = defaultdict(list)
    for group in instance.running:
        for each in group.instances:
            if each.state == "ready":
                capacity = view.shape_of(group, each).capacity
                capacities[group.service, each.role].append(capacity)
    for service in instance.services:
        for name, role in service.roles.items():
            sums = {Fraction(0)}
            for capacity in capacities[service.name, name]:
                sums |= {known + capacity for known in sums}
            assert role.target >= sum(capacities[service.name, name]) or role.target in sums
    assert directions(instance)["in"] == 15


def test_shares_of_nodes_and_units() -> None:
    instance = made("cycle", cordoned=0.1, reserved=0.2, draining=0.1)
    nodes = instance.nodes
    assert sum(not node.schedulable for node in nodes) == round(0.1 * len(nodes))
    assert sum(node.reserved > 0 for node in nodes) == round(0.2 * len(nodes))
    states = Counter(each.state for group in instance.running for each in group.instances)
    assert states["draining"] / states.total() == pytest.approx(0.1, abs=0.04)


def test_shares_of_services() -> None:
    instance = made(
        "replan",
        scale=1,
        services=100,
        priorities=[1, 7],
        affinity={"none": 4, "s2": 3, "s1": 2, "s2+s1": 1},
        aggregated=0.2,
        alternatives=0.5,
        cross_type=0.3,
        minimum=0.4,
    )
    services = instance.services
    assert Counter(service.priority for service in services) == {1: 50, 7: 50}
    affinities = Counter(
        (service.affinity.required, service.affinity.preferred) for service in services
    )
    assert affinities == {(None, None): 40, ("s2", None): 30, ("s1", None): 20, ("s2", "s1"): 10}
    assert sum(len(service.roles) == 1 for service in services) == 20
    several = sum(
        all(len(role.shapes) > 1 for role in service.roles.values()) for service in services
    )
    assert 45 <= several <= 50
    cross = sum(
        len({role.shapes[0].pods[0].gpu_type for role in service.roles.values()}) > 1
        for service in services
    )
    assert cross == 30
    floors = sum(any(role.min for role in service.roles.values()) for service in services)
    assert floors == 40


def test_a_pair_of_types_shares_a_domain() -> None:
    instance = made("replan", cross_type=1.0, aggregated=0.0)
    view = TreeView(instance)
    for service in instance.services:
        types = {role.shapes[0].pods[0].gpu_type for role in service.roles.values()}
        domains = view.at_level(service.affinity.required)
        assert service.affinity.required is None or any(
            types <= types_in(view, domain) for domain in domains
        )


def test_ratio_band() -> None:
    instance = made("small", ratios=["1/2"], band=0.2, aggregated=0)
    for service in instance.services:
        assert (service.ratios[0].min, service.ratios[0].max) == (Fraction(2, 5), Fraction(3, 5))


def test_odd_sizes_and_several_pods() -> None:
    instance = made("odd")
    shapes = [role.shapes[0] for service in instance.services for role in service.roles.values()]
    assert {pod.gpus for shape in shapes for pod in shape.pods} <= {1, 3, 5, 6}
    assert {shape.pods[0].count for shape in shapes} > {1}
    assert {shape.level for shape in shapes} == {None, "node"}


def test_moe_instances_need_two_types_in_one_s1() -> None:
    instance = made("moe")
    both = [
        service
        for service in instance.services
        if all(len({pod.gpu_type for pod in r.shapes[0].pods}) == 2 for r in service.roles.values())
    ]
    assert len(both) == round(0.6 * len(instance.services))
    for service in both:
        assert service.affinity.required == "s2"
        assert all(role.shapes[0].level == "s1" for role in service.roles.values())
    running = {group.service for group in instance.running}
    assert running & {service.name for service in both}


def test_cycle_and_objective_are_passed_on() -> None:
    family = family_from(
        "small", {"cycle": '{"reuse_freed": true}', "objective": {"weights": {"spill": 3}}}
    )
    instance = generate(family)
    assert instance.cycle.reuse_freed
    assert instance.objective.weights.spill == 3


def test_one_type_needs_no_mixed_domain() -> None:
    instance = made("small", gpu_types={"H800": 1}, hetero_s1=0, hetero_s2=0, alternatives=1.0)
    assert_sound(instance)
    assert {node.gpu_type for node in instance.nodes} == {"H800"}


def test_small_and_large_nodes() -> None:
    instance = made("small", gpus_per_node=[1, 4, 8], s2=6)
    assert {node.gpus for node in instance.nodes} == {1, 4, 8}
    assert_sound(instance)


def test_a_full_and_an_overloaded_fleet() -> None:
    assert_sound(made("small", running=1.0))
    assert_sound(made("small", load=5))


# ----------------------------------------------------------------------------------- overrides


def test_family_from() -> None:
    assert family_from("small") is FAMILIES["small"]
    family = family_from(
        "small",
        {"load": "0.5", "services": 7, "sizes": "1=2, 8=1", "ratios": "1/2,2", "s2": "3"},
    )
    assert isinstance(family, Family)
    assert (family.load, family.services, family.s2) == (0.5, 7, 3)
    assert family.sizes == {1: 2, 8: 1}
    assert family.ratios == (Fraction(1, 2), Fraction(2))
    assert family_from("small", {"gpus_per_node": "4", "ratios": "1/3"}).gpus_per_node == (4,)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("medium", {}, "unknown family 'medium'; known: small, cycle"),
        ("small", {"lod": 1}, "unknown knob 'lod'; known: affinity, aggregated"),
        ("small", {"load": -1}, "load"),
        ("small", {"load": "much"}, "load"),
        ("small", {"running": 1.5}, "running"),
        ("small", {"running": "NaN"}, "running"),
        ("small", {"affinity": "rack=1"}, "affinity"),
        ("small", {"sizes": "8=0"}, "no weight above 0"),
        ("small", {"sizes": "16=1"}, "no pod fits a node"),
        ("small", {"hetero_s1": 0.9}, "raise hetero_s2"),
        ("small", {"gpu_types": "H800=1"}, "names one type"),
        ("small", {"ratios": "0"}, "ratios"),
        ("region", {"scale": 900}, "at most 1000000"),
        ("small", {"cycle": "now"}, "cycle"),
    ],
)
def test_bad_knobs(name: str, knobs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match="family") as caught:
        family_from(name, knobs)
    assert message in str(caught.value)


# -------------------------------------------------------------------------------------- models


def test_the_models_of_the_project() -> None:
    models = load_models(MODELS)
    assert {"Llama-3.1-8B", "Llama-3.1-70B", "Qwen3-32B", "Qwen3-30B-A3B"} <= {
        model.name for model in models
    }
    for model in models:
        assert set(model.roles) == {"prefill", "decode"}
        assert "aiconfigurator 0.12.0" in model.source


def test_shapes_are_ordered_by_worth_and_fit_the_nodes() -> None:
    model = ServedModel.from_file(MODELS / "qwen3-32b.json")
    shapes = model.shapes("decode", {"H800": 8, "A100-SXM4-80GB": 2, "V100": 8})
    worth = [shape.capacity / shape.gpus for shape in shapes]
    assert worth == sorted(worth, reverse=True)
    assert {shape.pods[0].gpu_type for shape in shapes} == {"H800", "A100-SXM4-80GB"}
    assert all(shape.gpus <= 2 for shape in shapes if shape.pods[0].gpu_type != "H800")
    assert len(model.shapes("decode", {"H800": 8}, per_type=2)) == 2


def test_names_of_gpu_types() -> None:
    assert same_gpu("A100-SXM4-80GB", "a100_sxm")
    assert same_gpu("NVIDIA-H100-80GB-HBM3", "h100_sxm")
    assert same_gpu("MyGPU", "mygpu")
    assert not same_gpu("A100-PCIE-40GB", "a100_sxm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not complete, valid JSON"),
        ('{"name": "m", "source": ""}', "roles"),
        ('{"name": "m", "source": "", "roles": {}}', "roles"),
        (
            '{"name": "m", "source": "", "roles": {"p": [{"gpu_type": "A", "gpus": 1, '
            '"capacity": 0}]}}',
            "capacity",
        ),
        (
            '{"name": "m", "source": "", "roles": {"p": [{"gpu_type": "A", "gpus": 1, "gpus": 2, '
            '"capacity": 1}]}}',
            "'gpus' is named twice in one object; keep one of them",
        ),
    ],
)
def test_bad_models(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(text)
    with pytest.raises(InputError, match="json") as caught:
        load_models(tmp_path)
    assert message in str(caught.value)


def test_two_models_of_one_name(tmp_path: Path) -> None:
    text = (MODELS / "qwen3-32b.json").read_text()
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"b\.json: name: .* is in a\.json too; rename one"):
        load_models(tmp_path)


def test_the_best_of_several_ways_of_one_size_counts() -> None:
    ways = [("A10", 1, 5), ("a10", 1, 7), ("NVIDIA-A10", 1, 6), ("A10", 2, 8)]
    role = [{"gpu_type": name, "gpus": gpus, "capacity": worth} for name, gpus, worth in ways]
    model = ServedModel.model_validate({"name": "m", "source": "", "roles": {"decode": role}})
    shapes = model.shapes("decode", {"A10": 8})
    assert [(shape.gpus, shape.capacity) for shape in shapes] == [(1, 7), (2, 8)]


def test_no_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no served model"):
        load_models(tmp_path)


TABLE = "model,gpu,role,gpus_per_instance,isl,tokens_per_s_per_instance,source\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,gpu\n", "line 1: lacks the column 'role'"),
        (TABLE, "holds no row with isl 2048"),
        (TABLE + "m,a10,decode,1,2048,many,\n", "line 2, column tokens_per_s_per_instance"),
        (TABLE + "m,a10,decode,1.5,2048,9,\n", "line 2, column gpus_per_instance"),
        (TABLE + "m,a10,decode,1,2048,-1,\n", "must be greater than 0"),
        (TABLE + ",a10,decode,1,2048,1,\n", "column model: the cell is empty"),
        (TABLE + "x" * 300 + ",a10,decode,1,2048,1,\n", "column model: the cell has more than"),
        (TABLE + "m,a10,decode,9999999,2048,1,\n", "line 2: gpus: must be at most 1000000"),
    ],
)
def test_bad_capacity_tables(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "capacity.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        models_from_csv(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_estimates_are_flagged(tmp_path: Path) -> None:
    file = tmp_path / "capacity.csv"
    file.write_text(
        TABLE + "m,a10,decode,1,2048,400.3,SOLxl40s\nm,l40s,decode,1,2048,894.4,SILICON\n"
    )
    (model,) = models_from_csv(file)
    assert [way.estimated for way in model.roles["decode"]] == [True, False]
    assert model.roles["decode"][0].capacity == Fraction(4003, 10)


# ----------------------------------------------------------------------------------- inventory


def table(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "nodes.csv"
    file.write_text(text)
    return file


def little_inventory(tmp_path: Path, header: str = "node,gpu_model,gpus,s1,s2") -> Path:
    rows = [f"{i},{'H800' if i < 32 else 'A10'},8,p{i // 8},q{i // 32}" for i in range(64)]
    return table(tmp_path, "\n".join([header, *rows, ""]))


@pytest.mark.parametrize(
    "header",
    ["node,gpu_model,gpus,s1,s2", "name,gpu_type,gpus,s1,s2", "sn,model,gpu,s0,s2"],
)
def test_inventory_columns(tmp_path: Path, header: str) -> None:
    file = little_inventory(tmp_path, header)
    instance = from_inventory(file, models_dir=MODELS, services=8)
    assert_sound(instance)
    assert instance.levels == ("cluster", "s2", header.split(",")[3])
    assert instance.nodes[0].name == "0"
    assert len(instance.services) == 8
    again = from_inventory(file, models_dir=MODELS, services=8)
    assert again.digest == instance.digest
    assert from_inventory(file, models_dir=MODELS, services=8, seed=1).digest != instance.digest


def test_inventory_without_levels(tmp_path: Path) -> None:
    rows = "\n".join(f"n{i},H800,8" for i in range(40))
    file = table(tmp_path, f"node,gpu_type,gpus\n{rows}\n")
    instance = from_inventory(file, models_dir=MODELS, services=6)
    assert instance.levels == ("cluster",)
    assert_sound(instance)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("node,gpu_type,gpus\n", "holds no node"),
        ("node,gpus\na,8\n", "no column for the GPU type; name one gpu_type or gpu_model"),
        ("gpu_type,gpus\nH800,8\n", "no column for the node's name"),
        ("node,gpu_type\na,H800\n", "no column for the number of GPUs"),
        ("node,gpu_type,gpus\na,H800,eight\n", "line 2, column gpus: must be a whole number"),
        ("node,gpu_type,gpus\na,H800,-1\n", "line 2, column gpus"),
        ("node,gpu_type,gpus\na,H800,8.5\n", "line 2, column gpus"),
        ("node,gpu_type,gpus\na,H800,\n", "column gpus: the number of GPUs is empty"),
        ("node,gpu_type,gpus\na,H800,8\na,H800,8\n", "line 3: node 'a' is on line 2 already"),
        ("node,gpu_type,gpus\na,H800\n", "line 2: has 2 cells, the header has 3 columns"),
        ("node,gpu_type,gpus,gpus\na,H800,8,8\n", "names the column 'gpus' twice"),
        ("node,gpu_type,gpus,s1\na,H800,8,\n", "column s1: the domain is empty"),
        (
            "node,gpu_type,gpus,s1,s2\na,H800,8,x,1\nb,H800,8,x,2\n",
            "line 3, column s1: 'x' is under '2' here but under '1' on line 2",
        ),
        (f"node,gpu_type,gpus\na,{'H' * 300},8\n", "column gpu_type: the GPU type has more than"),
        ("node,gpu_type,gpus\na,Abacus,8\n", "no GPU type that can serve a model (Abacus)"),
    ],
)
def test_bad_inventories(tmp_path: Path, text: str, message: str) -> None:
    file = table(tmp_path, text)
    with pytest.raises(InputError) as caught:
        from_inventory(file, models_dir=MODELS)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_inventory_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        from_inventory(tmp_path / "none.csv", models_dir=MODELS)
    (tmp_path / "binary.csv").write_bytes(b"node,\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8"):
        from_inventory(tmp_path / "binary.csv", models_dir=MODELS)
    with pytest.raises(InputError, match="larger than the limit"):
        from_inventory(little_inventory(tmp_path), models_dir=MODELS, max_bytes=10)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"running": 1.5}, "running"),
        ({"running": 0.9, "load": 0.8}, "load"),
        ({"services": 0}, "services"),
        ({"change": -0.1}, "change"),
        ({"scale_in": 2}, "scale_in"),
        ({"draining": float("nan")}, "draining"),
        ({"isl": 0}, "isl: must be from 1"),
        ({"services": 5000}, "GPUs to run at all"),
    ],
)
def test_bad_inventory_knobs(tmp_path: Path, knobs: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_inventory(little_inventory(tmp_path), models_dir=MODELS, **knobs)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_names_stay_names_when_something_is_added(tmp_path: Path) -> None:
    gpu_type, name = "G" * 240, "m" * 240
    file = table(tmp_path, f"node,gpu_type,gpus\n{'n' * 240},{gpu_type},8\n")
    rows = "".join(f"{name},{gpu_type},{role},1,2048,9,\n" for role in ("prefill", "decode"))
    (tmp_path / "capacity.csv").write_text(TABLE + rows)
    instance = from_inventory(file, tmp_path / "capacity.csv", services=1)
    assert Instance.from_json(instance.to_json()) == instance


def test_the_prompt_length_is_the_prefill_part_of_the_ratio(tmp_path: Path) -> None:
    file = little_inventory(tmp_path)
    for isl in (1024, 4096):
        instance = from_inventory(file, models_dir=MODELS, services=8, isl=isl)
        assert_sound(instance)
        middles = {
            (band.min + band.max) / 2
            for service in instance.services
            for band in service.ratios
            if band.max is not None
        }
        assert middles <= {Fraction(isl, tokens) for tokens in (256, 512, 1024)}
        assert middles


@needs_data
@pytest.mark.parametrize("capacity", [None, CAPACITY])
def test_real_inventory(capacity: Path | None) -> None:
    instance = from_inventory(INVENTORY, capacity, models_dir=MODELS)
    assert_sound(instance)
    assert len(instance.nodes) == 4278
    assert sum(node.gpus for node in instance.nodes) == 10412
    assert instance.levels == ("cluster", "s2", "s1", "s0")
    assert len(instance.services) == 60
    assert {service.priority for service in instance.services} == {0, 1, 2}
    assert {service.affinity.required for service in instance.services} == {None, "s2", "s1"}
    count = directions(instance)
    assert count["in"] > 0
    assert count["out"] > count["in"]
    assert count["stay"] > 0
    usable = sum(node.gpus for node in instance.nodes if not node.gpu_type.startswith("GPU-series"))
    view = TreeView(instance)
    assert sum(view.used) / usable == pytest.approx(0.3, abs=0.01)
    for service in instance.services:
        for role in service.roles.values():
            worth = [shape.capacity / shape.gpus for shape in role.shapes]
            assert worth == sorted(worth, reverse=True)


@needs_data
def test_the_load_of_a_real_inventory_is_spread_over_its_types() -> None:
    """Targets are whole units on a home type, so some type serves each of them exactly."""
    instance = from_inventory(INVENTORY, models_dir=MODELS, running=0.0, load=0.8)
    usable = 0
    least: dict[str, Fraction] = defaultdict(Fraction)
    for node in instance.nodes:
        if not node.gpu_type.startswith("GPU-series"):
            usable += node.gpus
    for service in instance.services:
        for name, role in service.roles.items():
            worth = max(shape.capacity / shape.gpus for shape in role.shapes)
            least[name] += role.target / worth
    assert 0.3 * usable < sum(least.values()) <= 0.81 * usable


# ------------------------------------------------------------------------------ docs/generate.md


def rows(heading: str) -> dict[str, list[str]]:
    """Cells of the table below a heading of the page, by the name in the first cell."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `([^`]+)` \|(.*)\|$", section, re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def test_the_page_names_every_knob_and_its_default() -> None:
    knobs = rows("Knobs")
    assert list(knobs) == list(Family.model_fields)
    plain = Family(name="small")
    for knob, (default, *_) in knobs.items():
        if knob not in ("name", "description"):
            family = family_from("small", {knob: default.strip("`")})
            assert getattr(family, knob) == getattr(plain, knob), knob


def test_the_page_names_every_option_and_its_default() -> None:
    found = {
        name.split()[0]: cells[1].strip("`") for name, cells in rows("On a real inventory").items()
    }
    parameters = inspect.signature(from_inventory).parameters
    wanted = {option: parameters[name].default for option, (name, *_) in cli.INVENTORY.items()}
    assert {option: found.get(option) for option in wanted} == {
        option: "–" if default is None else str(default) for option, default in wanted.items()
    }
    assert {*parameters} - {name for name, *_ in cli.INVENTORY.values()} == {*("nodes_csv", "seed")}


def test_the_page_shows_every_family_as_generated(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, "generate.md", "exec"), {})
    shown = [" ".join([name, *cells[:5]]) for name, cells in rows("Families").items()]
    assert shown == capsys.readouterr().out.splitlines()
    assert list(rows("Families")) == list(FAMILIES)


def test_the_commands_of_the_page_print_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (nodes,) = re.findall(r"```csv\n(.*?)```", PAGE, re.S)
    table(tmp_path, nodes)
    (tmp_path / "models").symlink_to(MODELS)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^\$ heteroplace (.*)\n(.*)$", PAGE, re.M)
    assert len(commands) == PAGE.count("$ heteroplace")
    for command, output in commands:
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().err.strip() == output


def test_the_page_names_every_alias_and_shows_a_served_model() -> None:
    names = {
        name: re.findall(r"`([^`]+)`", cells[0]) for name, cells in rows("Served models").items()
    }
    assert {system: names.get(system) for system in ALIASES} == {
        system: list(aliases) for system, aliases in ALIASES.items()
    }
    (model,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    assert set(ServedModel.from_json(model).roles) == {"prefill", "decode"}
