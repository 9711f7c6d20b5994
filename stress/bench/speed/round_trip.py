"""The round trip of one call on a warm pool."""

import statistics
import time

from stress.bench.functions import noop
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.pool_throughput import PEERS
from stress.bench.speed.sessions import session


def sample(peer: str, size: int) -> dict[str, float]:
    """One call after the other; the median of all."""
    trips = []
    with session(peer, noop, [{"x": 0}] * 50) as opened:
        for x in range(size):
            begun_at = time.perf_counter()
            (outcome,) = opened.in_order([{"x": x}])
            trips.append(time.perf_counter() - begun_at)
            assert outcome.error is None
    return {"trip": 1e6 * statistics.median(trips)}


MEASUREMENT = Measurement(
    "round trip of one no-op call on a warm pool of 2 workers",
    sample,
    {"our_pool": 1000, "our_executor": 1000, "ours": 1000, "pipeline": 1000}
    | {name: 50 if name in {"pynisher", "deephyper"} else 300 for name in PEERS},
    {
        "trip": Figure(
            "microseconds",
            "us",
            more_is_better=False,
            targets=(Target("half of concurrent.futures", against=("futures",), factor=0.5),),
        )
    },
)
