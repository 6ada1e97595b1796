"""The docs, the docstrings and the code use the same names."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import get_args

import pytest

import heteroplace
from heteroplace import check as check_function
from heteroplace.formulation.constraints import CONSTRAINTS
from heteroplace.formulation.objective import COSTS
from heteroplace.instance import Weights
from heteroplace.plan import Violation

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(heteroplace.__path__, "heteroplace.")
    if not name.endswith("__main__")
)


def constraint_names() -> set[str]:
    return set(get_args(Violation.model_fields["constraint"].annotation))


def test_every_constraint_has_one_name_everywhere():
    problem = (ROOT / "docs/problem.md").read_text(encoding="utf-8")
    formulation = (ROOT / "docs/formulation.md").read_text(encoding="utf-8")
    rules = importlib.import_module(check_function.__module__)._RULES
    names = constraint_names()
    assert names == set(re.findall(r"^- \*\*`(\w+)`\*\*", problem, re.M))
    assert names == set(re.findall(r"^\| `(\w+)` \|", formulation, re.M))
    assert names == {rule.__name__.removeprefix("_") for rule in rules}
    assert names == {unit.__name__ for unit in CONSTRAINTS}


def test_every_cost_has_one_name_everywhere():
    problem = (ROOT / "docs/problem.md").read_text(encoding="utf-8")
    named = problem.split("3. `cost`")[1].split("\n\n")[0]
    names = set(Weights.model_fields)
    assert names == {unit.__name__ for unit in COSTS}
    assert names <= set(re.findall(r"`(\w+)`", named))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:instances|solvers|models|docs|heteroplace)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__, name
    for public, value in vars(module).items():
        if public.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public}"


@pytest.mark.parametrize("name", sorted(heteroplace.__all__))
def test_the_api_documents_its_parameters(name):
    value = getattr(heteroplace, name)
    text = inspect.getdoc(value)
    assert text
    fields = getattr(value, "model_fields", None)
    wanted = fields if fields is not None else inspect.signature(value).parameters
    for parameter in wanted:
        assert re.search(rf"^(?:\w+, )*{parameter}(?:, \w+)*$", text, re.M), parameter
