"""Calls a second where each has a process of its own."""

from stress.bench.functions import noop
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import finish, session

SIZES = {
    "our_pool": 400,
    "our_executor": 400,
    "futures": 40,
    "mp_pool": 400,
    "pebble": 100,
    "deadpool": 20,
    "billiard": 40,
    "pynisher": 100,
    "ray": 8,
}


def sample(peer: str, size: int) -> dict[str, float]:
    """All at once, after four to warm up."""
    arguments = [{"x": x} for x in range(size)]
    with session(peer, noop, arguments[:4], max_tasks_per_child=1) as opened:
        return {"rate": size / finish(opened, arguments)}


MEASUREMENT = Measurement(
    "no-op calls, a fresh process for each (max_tasks_per_child=1), 2 workers",
    sample,
    SIZES,
    {
        "rate": Figure(
            "calls a second",
            "/s",
            targets=(Target("3x the best peer", against=tuple(SIZES)[2:], factor=3.0),),
        )
    },
    quick=4,
)
