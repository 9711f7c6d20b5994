"""Many workers that sleep: how near the pool comes to the ideal, and what its management costs."""

from stress.bench.functions import sleep
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import cpu_s, finish, session

_WORKERS = 64
_SECONDS = 0.05


def sample(peer: str, size: int) -> dict[str, float]:
    """All at once, after ten a worker to warm up."""
    job = {"s": _SECONDS}
    with session(peer, sleep, [job] * (10 * _WORKERS), num_workers=_WORKERS) as opened:
        before_s = cpu_s(opened)
        took_s = finish(opened, [job] * size)
        used_s = cpu_s(opened) - before_s
    return {"share": 100 * size / took_s / (_WORKERS / _SECONDS), "cpu": 1e6 * used_s / size}


_SIZES = {"our_pool": 2000, "ours": 2000} | dict.fromkeys(
    ("futures", "mp_pool", "pebble", "deadpool", "loky", "mpire", "billiard"), 2000
)
MEASUREMENT = Measurement(
    "64 workers, each job sleeps 50 ms, 2,000 jobs",
    sample,
    _SIZES,
    {
        "share": Figure("of the ideal 1,280 jobs a second", "%", targets=(Target("95%", bound=95.0),)),
        "cpu": Figure(
            "CPU of driver and supervisor a job",
            "us",
            more_is_better=False,
            targets=(Target("less than every peer", against=tuple(_SIZES)[2:]),),
        ),
    },
    quick=2,
)
