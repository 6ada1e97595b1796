"""The README shows what really happens."""

import re
from pathlib import Path

import pytest

from heteroplace.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_prints_what_the_page_says(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert len(code.strip().splitlines()) <= 25
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert f"It prints `{printed}`" in README


def test_the_demo_prints_what_the_page_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["solve", "instances/quickstart.json"]) == 0
    shown = README.split("$ make demo\n")[1].split("$ make test")[0]
    assert _untimed(capsys.readouterr().out) == _untimed(shown)


def _untimed(text: str) -> list[str]:
    """Words and numbers without what depends on the machine and on the width of seconds."""
    text = re.sub(r"seconds:.*", "", text, flags=re.S)
    text = "\n".join(line for line in text.splitlines() if not line.startswith(".venv"))
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
