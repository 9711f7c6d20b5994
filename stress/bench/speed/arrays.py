"""50 MB of numpy into a job and out of it again. Both sides read a number of each page."""

import time
from typing import Any

from stress.bench.functions import give_back, touch
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import session

_BYTES = 50_000_000


def sample(peer: str, size: int) -> dict[str, float]:
    """One array after the other, each filled anew; megabytes both ways by the time of all."""
    import numpy as np

    small: list[Any] = [{"array": np.ones(512)}] * 4
    took_s = 0.0
    with session(peer, give_back, small) as opened:
        for x in range(size):
            array = np.full(_BYTES // 8, float(x))
            begun_at = time.perf_counter()
            (outcome,) = opened.in_order([{"array": array}])
            total = touch(outcome.value["metadata"]["array"])
            took_s += time.perf_counter() - begun_at
            assert total == touch(array)
            del outcome
    return {"rate": 2 * size * _BYTES / took_s / 1e6}


MEASUREMENT = Measurement(
    "a numpy array of 50 MB into a job and out again, one after the other; both sides touch every page",
    sample,
    {"our_pool": 10, "our_executor": 10, "ours": 10, "futures": 5, "mp_pool": 5, "loky": 5, "ray": 10},
    {
        "rate": Figure(
            "megabytes a second, both ways counted",
            "MB/s",
            targets=(
                Target("4x concurrent.futures", against=("futures",), factor=4.0),
                Target("level with Ray", against=("ray",)),
            ),
        )
    },
    quick=5,
)
