"""Commit, machine and versions of a run."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from heteroplace.bench.record import Environment
from heteroplace.cores import usable_cores
from heteroplace.solve import versions

ALSO = ("numpy", "pydantic")


def environment() -> Environment:
    """Describe the commit, the machine and the versions at hand."""
    found = versions()
    for name in ALSO:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return Environment(
        commit=_commit(),
        cores=usable_cores(),
        cpu=_line("/proc/cpuinfo", "model name") or platform.processor() or None,
        memory=_memory(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=found,
    )


def load_average() -> float | None:
    """Load average of the last minute; null when the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    # The commit of the project, not of whatever repository it happens to be installed in.
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _memory() -> int | None:
    found = _line("/proc/meminfo", "MemTotal")
    return int(found.split()[0]) * 1024 if found else None


def _line(path: str, field: str) -> str | None:
    """Value of the first ``field : value`` line of a file of the system."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip() or None
    return None
