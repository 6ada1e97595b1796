"""docs/simulate.md says what the simulator and curation do: its examples, options and series."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from heteroplace.cli import main
from heteroplace.curate import command as curate_command
from heteroplace.simulate import POLICIES, UNITS
from heteroplace.simulate import command as simulate_command

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/simulate.md").read_text(encoding="utf-8")
EXAMPLES = {
    command.split()[1]: (command.replace("\\\n", " "), output)
    for command, output in re.findall(
        r"```console\n\$ (heteroplace(?:[^\n]*\\\n)*[^\n]*)\n([^`]+?)```", PAGE, re.S
    )
}


def printed(command, tmp_path, monkeypatch, capsys, *more):
    """Lines that an example prints, run where only the project's files are."""
    for folder in ("fleets", "models"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command)[1:], *more]) == 0
    return lines(capsys.readouterr().out)


def lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def rows(text):
    """Cells of the rows of the tables, by the first one."""
    cells = (line.strip("│").split("│") for line in lines(text) if line.startswith("│"))
    return {first.strip(): [each.strip() for each in rest] for first, *rest in cells}


def test_the_simulation_prints_what_the_page_shows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    command, output = EXAMPLES["simulate"]
    # The pictures take longer than the rest and print nothing.
    found = printed(command, tmp_path, monkeypatch, capsys, "--plots", "none")
    assert found == lines(output)


def test_the_curation_prints_what_the_page_shows(tmp_path, monkeypatch, capsys):
    """The whole pressure test, and two candidates of the eight: each is simulated by itself."""
    command, output = EXAMPLES["curate"]
    some = ("--policies", "ttft,prefill_sm")
    found = printed(command, tmp_path, monkeypatch, capsys, *some)
    tables = [at for at, line in enumerate(found) if line.startswith("└")]
    assert found[: tables[0] + 2] == lines(output)[: tables[0] + 2]
    shown, given = rows("\n".join(found)), rows(output)
    assert set(POLICIES) <= given.keys()
    for name in ("ttft", "prefill_sm"):
        assert shown[name] == given[name], name


def test_the_library_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, "docs/simulate.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 2


@pytest.mark.parametrize("command", [simulate_command, curate_command])
def test_every_option_is_on_the_page(command):
    parser = argparse.ArgumentParser(add_help=False)
    command.add_options(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    assert options <= set(re.findall(r"--[a-z-]+", PAGE))


def test_every_series_is_in_the_table_with_its_unit():
    table = PAGE.split("### Time series")[1].split("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M)) == UNITS
