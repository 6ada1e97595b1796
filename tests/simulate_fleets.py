"""A small fleet, a cluster and demands for the tests of the simulator and of curation."""

import numpy as np

from heteroplace.policy import Cluster, Fleet
from heteroplace.simulate import Demand

PROMPT, OUTPUT = 1000.0, 140.0


def service(name="chat", **changes):
    return {
        "name": name,
        "affinity": {"required": "s2"},
        "roles": {
            "prefill": {
                "max": 30,
                "shapes": [{"name": "p", "pods": [{"gpu_type": "A", "gpus": 2}], "capacity": 8000}],
            },
            "decode": {
                "max": 30,
                "shapes": [{"name": "d", "pods": [{"gpu_type": "B", "gpus": 1}], "capacity": 1000}],
            },
        },
        "ratios": [{"target": "1/1", "min": "1/2", "max": 2}],
        "policy": {"primary": {"kind": "throughput", "signal": "decode_tps"}},
        "stability": {"cooldown_out": 60, "cooldown_in": 120},
        "soft_scale_in": {"window": 60},
    } | changes


def fleet(*services, **changes):
    return Fleet.from_dict(
        {
            "schema": 1,
            "interval": 30,
            "latency_percentile": 0.9,
            "services": [*(services or (service(),))],
        }
        | changes
    )


def cluster(pods=2, nodes=6, running=()):
    """Per big pod: one mini pod of nodes with GPUs of type A, one with GPUs of type B."""
    return Cluster.from_json(
        Cluster(
            schema_=1,
            nodes=tuple(
                {
                    "name": f"{pod}-{kind}-{number}",
                    "gpu_type": kind,
                    "gpus": 8,
                    "domains": {"cluster": "c", "s2": f"pod-{pod}", "s1": f"mini-{pod}-{kind}"},
                }
                for pod in range(pods)
                for kind in "AB"
                for number in range(nodes)
            ),
            running=running,
        ).to_json()
    )


def flat(requests, seconds, output=OUTPUT):
    return steps([requests], seconds, output)


def steps(requests, seconds, output=OUTPUT):
    """Equal steps of requests per second over so many seconds."""
    rates = np.array(requests, dtype=float)
    return Demand(
        "steps",
        np.arange(len(rates)) * seconds / len(rates),
        rates,
        rates * PROMPT,
        rates * 0,
        rates * output,
        end=seconds,
    )
