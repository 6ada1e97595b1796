"""docs/run.md says what the loop does: its examples, options, fields and metrics."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from heteroplace.cli import main
from heteroplace.loop.action import Action, Outlook
from heteroplace.loop.exporter import PHASES, Metrics
from heteroplace.loop.options import add_run_options, add_targets_options
from heteroplace.policy.decision import Decision
from heteroplace.policy.state import Withdrawn

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/run.md").read_text(encoding="utf-8")
EXAMPLES = [
    (command.replace("\\\n", " "), output)
    for command, output in re.findall(
        r"```console\n\$ ((?:[^\n]*\\\n)*[^\n]*)\n([^`]+?)```", PAGE, re.S
    )
]
CSV = re.search(r"```csv\n(.*?)```", PAGE, re.S)


def tidy(text: str) -> list[str]:
    """Lines without what differs from run to run."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", "TIME", text)
    text = re.sub(r" \d\d s │", " AGE │", text)
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize(("command", "output"), EXAMPLES, ids=["targets", "run"])
def test_the_examples_print_what_the_page_shows(command, output, tmp_path, monkeypatch, capsys):
    assert CSV is not None
    for folder in ("fleets", "models"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "metrics.csv").write_text(CSV[1])
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command)
    assert program == "heteroplace"
    assert main(arguments) == 0
    assert tidy(capsys.readouterr().out) == tidy(output)


def test_there_are_examples():
    assert [command.split()[1] for command, _ in EXAMPLES] == ["targets", "run"]


def test_every_option_is_in_the_table():
    parser = argparse.ArgumentParser(add_help=False)
    add_run_options(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    table = PAGE.split("## Options")[1].split("## One cycle")[0]
    assert options <= set(re.findall(r"--[a-z-]+", table))
    parser = argparse.ArgumentParser(add_help=False)
    add_targets_options(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    assert options <= set(re.findall(r"--[a-z-]+", table))


def test_every_field_of_an_action_is_in_the_table():
    table = PAGE.split("## The action")[1].split("## Handing over")[0]
    words = set(re.findall(r"`(\w+)`", table))
    for noun in (Action, Outlook, Decision, Withdrawn):
        names = {field.alias or name for name, field in noun.model_fields.items()}
        assert names <= words, noun


def test_every_metric_and_phase_is_in_the_table():
    pytest.importorskip("prometheus_client", reason="needs heteroplace[policy]")
    table = PAGE.split("## Metrics of its own")[1].split("## Logs")[0]
    listed = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(\w+)` \| ([^|]*)\|", table, re.M)
    }
    served = {}
    for family in Metrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        served[name] = set()
    assert set(served) == set(listed)
    assert set(PHASES) <= set(re.findall(r"`(\w+)`", table))
    for collector in Metrics().registry._collector_to_names:
        name = collector._name + ("_total" if collector._type == "counter" else "")
        assert set(collector._labelnames) == listed[name], name
