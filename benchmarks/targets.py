"""How long one step of the policies takes: `python benchmarks/targets.py --help`.

A fleet of services with prefill and decode roles, a throughput or utilization policy each, feedback
over every other signal, schedules and soft scale-in. Every step has new readings of every signal,
which follow a daily curve with noise; some are missing or too old, some services scale, instances
follow the targets with a delay. Measured is `heteroplace.policy.decide` alone, from a snapshot to
decisions and the next state; making the snapshot is not. The first step, which compiles the fleet,
is reported apart. With `--free 0` all GPUs are taken: services of low priority shrink for those of
high priority, and nearly all ask for more in every step.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import random
import statistics
import sys
import time
from collections import Counter
from fractions import Fraction
from typing import Any

from heteroplace.policy import (
    STANDARD,
    Fleet,
    FleetState,
    Reading,
    RoleObserved,
    Snapshot,
    decide,
)

START = 1_760_000_000.0
INTERVAL = 30.0
PER_INSTANCE = 3800.0
Services = dict[str, dict[str, RoleObserved]]


def fleet(services: int, signals: int, rng: random.Random) -> Fleet:
    """A fleet in which the policies of every service read ``signals`` signals."""
    extra = [
        {"name": f"stage-{index}", "kind": "latency", "unit": "s"}
        for index in range(signals - len(STANDARD))
    ]
    return Fleet.from_dict(
        {
            "schema": 1,
            "interval": INTERVAL,
            "signals": extra,
            "services": [service(index, extra, rng) for index in range(services)],
        }
    )


def service(index: int, extra: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
    """One service: most are driven by throughput, some by utilization."""
    shape = {"name": "x4", "pods": [{"gpu_type": rng.choice(("H20", "L20")), "gpus": 4}]}
    names = ["ttft", "tbt", *(each["name"] for each in extra)]
    primary: dict[str, Any] = {"kind": "throughput", "signal": "decode_tps", "target": PER_INSTANCE}
    if index % 5 == 4:
        primary = {"kind": "utilization", "signal": "prefill_gpu_util", "target": 0.6}
    hardware = ("prefill_gpu_util", "decode_gpu_util", "prefill_sm", "decode_sm")
    slos: dict[str, float] = dict.fromkeys(names, 1.0) | dict.fromkeys(hardware, 0.99)
    return {
        "name": f"service-{index}",
        "priority": index % 4,
        "roles": {
            "prefill": {"min": 1, "max": 200, "shapes": [shape]},
            "decode": {"min": 1, "max": 200, "shapes": [shape]},
        },
        "ratios": [{"target": rng.choice(("9/7", "1", "5/3", "1/2"))}],
        "policy": {
            "primary": primary,
            "latency": [{"signal": name, "slo": 1.0} for name in names],
            "schedules": [
                {
                    "time_zone": "Asia/Shanghai",
                    "entries": [
                        {"cron": "0 8 * * MON-FRI", "counts": {"decode": 4}},
                        {"cron": "0 22 * * *", "release": True},
                    ],
                }
            ],
        },
        "soft_scale_in": {"limits": slos},
    }


class Load:
    """What the services report, step by step."""

    def __init__(self, made: Fleet, rng: random.Random) -> None:
        self.made, self.rng = made, rng
        self.peak = {each.name: rng.uniform(2, 60) * PER_INSTANCE for each in made.services}
        self.phase = {each.name: rng.uniform(0, 1) for each in made.services}

    def snapshot(self, now: float, running: Services) -> Snapshot:
        """Readings of every signal of every service."""
        rng = self.rng
        readings = {}
        for each in self.made.services:
            name = each.name
            wave = 0.55 + 0.45 * math.sin(2 * math.pi * (now / 86400 * 24 + self.phase[name]))
            load = self.peak[name] * wave * rng.uniform(0.97, 1.03)
            serving = float(running[name]["decode"].registered)
            pressure = load / PER_INSTANCE / max(serving, 1)
            mine = {}
            for signal in self.made.signal.values():
                if signal.kind == "throughput":
                    value = load * (7 if signal.name == "prefill_tps" else 1)
                elif signal.kind == "utilization":
                    value = min(1.0, 0.6 * pressure)
                else:
                    value = 0.6 * pressure**2
                mine[signal.name] = Reading(value, now - rng.uniform(0, 20))
            chance = rng.random()
            if chance < 0.01:
                del mine["ttft"]
            elif chance < 0.02:
                mine["decode_tps"] = Reading(1.0, now - 600)
            readings[name] = mine
        return Snapshot(now, readings)


def measure(services: int, signals: int, steps: int, seed: int, free: int) -> dict[str, Any]:
    """Time many steps: wall time and processor time of the one thread that works."""
    rng = random.Random(seed)
    made = fleet(services, signals, rng)
    load = Load(made, rng)
    two = RoleObserved(ready=Fraction(2), registered=Fraction(2))
    running: Services = {each.name: {"prefill": two, "decode": two} for each in made.services}
    state, actions, walls, processor = FleetState(), Counter[str](), [], []
    first = 0.0
    for number in range(steps + 1):
        now = START + INTERVAL * number
        snapshot = load.snapshot(now, running)
        gc.collect()
        began, busy = time.perf_counter(), time.process_time()
        step = decide(made, state, snapshot, running, {"H20": free, "L20": free})
        wall, busy = time.perf_counter() - began, time.process_time() - busy
        if number == 0:
            first = wall
        else:
            walls.append(wall)
            processor.append(busy)
            actions.update(each.action for each in step.decisions)
        state = step.state
        for each in step.decisions:
            running[each.service] = {
                role: RoleObserved(ready=Fraction(count), registered=Fraction(count))
                for role, count in each.before.items()
            }
    return {
        "services": services,
        "signals": signals,
        "steps": steps,
        "seed": seed,
        "free": free,
        "first_ms": round(first * 1000, 2),
        "median_ms": round(statistics.median(walls) * 1000, 2),
        "worst_ms": round(max(walls) * 1000, 2),
        "median_cpu_ms": round(statistics.median(processor) * 1000, 2),
        "worst_cpu_ms": round(max(processor) * 1000, 2),
        "actions": dict(sorted(actions.items())),
        "python": platform.python_version(),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--services", type=int, default=1000, help="default 1000")
    parser.add_argument("--signals", type=int, default=20, help="of each service, at least 8")
    parser.add_argument("--steps", type=int, default=200, help="default 200")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--free", type=int, default=10**6, help="GPUs of each type that are free, default 1000000"
    )
    options = parser.parse_args()
    if options.services < 1 or options.signals < len(STANDARD) or options.steps < 1:
        parser.error(f"at least 1 service, {len(STANDARD)} signals and 1 step")
    found = measure(options.services, options.signals, options.steps, options.seed, options.free)
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
