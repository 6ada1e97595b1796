"""How long a simulation takes: `python benchmarks/simulate.py --help`.

Copies of the chat service of fleets/demo.toml share a cluster of as many copies of the nodes of
fleets/demo-cluster.json. Each follows the paper's daily curve at a peak of its own, driven by its
prefill throughput, and is placed by the greedy solver. Measured is `heteroplace.simulate.simulate`
alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from heteroplace import InputError
from heteroplace.policy import Cluster, Fleet
from heteroplace.simulate import paper_day, simulate

FLEETS = Path(__file__).parents[1] / "fleets"


def fleet_of(services: int) -> Fleet:
    """The chat service so many times."""
    data = Fleet.from_file(FLEETS / "demo.toml").model_dump(by_alias=True)
    chat = next(each for each in data["services"] if each["name"] == "chat")
    data["services"] = [{**chat, "name": f"chat-{index}"} for index in range(services)]
    return Fleet.from_dict(data)


def cluster_of(copies: int) -> Cluster:
    """The nodes of the demo's cluster so many times, each copy with domains of its own."""
    data = Cluster.from_file(FLEETS / "demo-cluster.json").model_dump(by_alias=True)
    top = data["levels"][0]
    data["running"] = ()
    data["nodes"] = [
        {
            **node,
            "name": f"{node['name']}-{copy}",
            "domains": {
                level: name if level == top else f"{name}-{copy}"
                for level, name in node["domains"].items()
            },
        }
        for copy in range(copies)
        for node in data["nodes"]
    ]
    return Cluster.model_validate(data)


def measure(services: int, hours: float, interval: float, tick: float) -> dict[str, Any]:
    """Time one simulation; seconds of the one thread that works."""
    fleet, cluster = fleet_of(services), cluster_of(services)
    demand = {
        each.name: paper_day(10 + 10 * index / services)
        for index, each in enumerate(fleet.services)
    }
    began, busy = time.perf_counter(), time.process_time()
    outcome = simulate(
        fleet, cluster, demand, hours=hours, policy="prefill_tps", interval=interval, tick=tick
    )
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    return {
        "services": services,
        "nodes": len(cluster.nodes),
        "hours": hours,
        "interval_s": interval,
        "tick_s": tick,
        "ticks": outcome.ticks,
        "scale_actions": sum(each.scale_out + each.scale_in for each in outcome.summaries),
        "seconds": round(wall, 1),
        "cpu_seconds": round(busy, 1),
        "python": platform.python_version(),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--services", type=int, default=1, help="default 1")
    parser.add_argument("--hours", type=float, default=24.0, help="default 24")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds, default 60")
    parser.add_argument("--tick", type=float, default=15.0, help="seconds, default 15")
    options = parser.parse_args()
    if options.services < 1 or not 0 < options.hours <= 24:
        parser.error("at least 1 service, and at most 24 hours")
    try:
        found = measure(options.services, options.hours, options.interval, options.tick)
    except InputError as error:
        parser.error(str(error))
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
