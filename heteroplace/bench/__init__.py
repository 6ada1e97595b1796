"""Benchmarks: seeded families, references measured in the same run, best-known values."""

from heteroplace.bench.anytime import AnytimeReport, run_anytime
from heteroplace.bench.best import BestFile
from heteroplace.bench.record import Report
from heteroplace.bench.runner import run_suite
from heteroplace.bench.scaling import ScalingReport, run_scaling
from heteroplace.bench.suite import Suite

__all__ = [
    "AnytimeReport",
    "BestFile",
    "Report",
    "ScalingReport",
    "Suite",
    "run_anytime",
    "run_scaling",
    "run_suite",
]
