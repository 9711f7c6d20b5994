"""Throughput against the length of a job: where the overhead vanishes."""

from stress.bench.functions import spin
from stress.bench.speed.measurement import Figure, Measurement
from stress.bench.speed.sessions import finish, session

LENGTHS_S = (0.0, 0.0001, 0.001, 0.01, 0.1)
_WORKERS = 2
_MOST_S = 1.0


def sample(peer: str, size: int) -> dict[str, float]:
    """Jobs that compute for so long; for each length, jobs a second."""
    figures = {}
    with session(peer, spin, [{"s": 0.0}] * 100, num_workers=_WORKERS) as opened:
        for length_s in LENGTHS_S:
            count = min(size, max(4, int(_MOST_S * _WORKERS / length_s))) if length_s else size
            figures[str(length_s)] = count / finish(opened, [{"s": length_s}] * count)
    return figures


MEASUREMENT = Measurement(
    "jobs a second against how long each computes, 2 workers",
    sample,
    {"our_pool": 20_000, "ours": 10_000, "futures": 5_000, "mp_pool": 10_000, "loky": 2_000, "ray": 2_000, "dask": 500}
    | {"deephyper": 500},
    {str(length): Figure(f"jobs of {length * 1e3:g} ms a second", "/s") for length in LENGTHS_S},
)
