"""Payloads of the sizes in between: 10 KB and 100 KB of bytes, and arrays of 1 MB, many at once."""

import random
from typing import Any

from stress.bench.functions import echo
from stress.bench.speed.measurement import Figure, Measurement
from stress.bench.speed.sessions import finish, session

_MEGABYTES = 80  # of each size, one way, by a size of 100


def sample(peer: str, size: int) -> dict[str, float]:
    """All of one size at once, after twenty to warm up; megabytes both ways by the time of all."""
    import numpy as np

    source = random.Random(0)
    payloads: dict[str, tuple[Any, int]] = {
        "small": (source.randbytes(10_000), 10_000),
        "medium": (source.randbytes(100_000), 100_000),
        "array": (np.arange(125_000, dtype=float), 1_000_000),
    }
    rates: dict[str, float] = {}
    for name, (payload, payload_bytes) in payloads.items():
        job, count = {"payload": payload}, size * _MEGABYTES * 10_000 // payload_bytes
        with session(peer, echo, [job] * 20) as opened:
            rates[name] = 2 * count * payload_bytes / finish(opened, [job] * count) / 1e6
    return rates


MEASUREMENT = Measurement(
    "payloads into a job and out again, many at once, 2 workers, our budgets on",
    sample,
    {"our_pool": 100, "our_executor": 100, "ours": 100, "futures": 100, "mp_pool": 100, "loky": 50, "ray": 50},
    {
        "small": Figure("bytes, 10 KB each: megabytes a second, both ways counted", "MB/s"),
        "medium": Figure("bytes, 100 KB each: megabytes a second", "MB/s"),
        "array": Figure("numpy arrays, 1 MB each: megabytes a second", "MB/s"),
    },
    quick=20,
    note="The evaluator keeps its jobs with what went in and came out; the others keep the results.",
)
