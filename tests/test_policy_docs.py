"""docs/policies.md says what the policies do."""

import re
from pathlib import Path

import pytest

from heteroplace.instance import Noun
from heteroplace.policy import Cluster, Fleet, control, fleet, settings
from heteroplace.policy.cluster import ClusterInstance

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
NOUNS = [
    Fleet,
    Cluster,
    ClusterInstance,
    fleet.FleetService,
    fleet.FleetRole,
    fleet.Way,
    fleet.Ratio,
    control.Policy,
    control.Throughput,
    control.Utilization,
    control.Feedback,
    control.Tier,
    control.Periodic,
    control.Schedule,
    control.Entry,
    settings.Stability,
    settings.StepLimit,
    settings.Age,
    settings.SoftScaleIn,
    settings.Registration,
    settings.Maintenance,
    settings.Degradation,
]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.__name__)
def test_every_field_is_on_the_page(noun):
    assert issubclass(noun, Noun)
    for name, field in noun.model_fields.items():
        assert re.search(rf"`[^`\n]*\b{field.alias or name}\b[^`\n]*`", PAGE), name


def test_the_worked_example_prints_what_the_page_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    exec(compile(code, "docs/policies.md", "exec"), {})
    assert capsys.readouterr().out.split() == shown.split()


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("stability.cooldown_out", settings.Stability().cooldown_out),
        ("stability.cooldown_in", settings.Stability().cooldown_in),
        ("stability.damping", settings.Stability().damping),
        ("age.max_age", settings.Age().max_age),
        ("age.max_ahead", settings.Age().max_ahead),
        ("soft_scale_in.window", settings.SoftScaleIn().window),
        ("registration.tolerance", settings.Registration().tolerance),
        ("maintenance.drift", settings.Maintenance().drift),
        ("interval", Fleet.model_fields["interval"].default),
        ("latency_percentile", Fleet.model_fields["latency_percentile"].default),
    ],
)
def test_defaults_are_the_ones_of_the_code(row, value):
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{row}` |")]
    assert line.rstrip(" |").split("| ")[-1].split()[0] == f"{value:g}"
