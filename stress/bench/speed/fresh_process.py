"""Calls a second where each has a process of its own."""

from stress.bench.functions import noop
from stress.bench.peers import BESIDE
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import finish, session

SIZES = {
    "our_pool": 400,
    "our_executor": 400,
    "bare_fork": 400,
    "futures": 40,
    "mp_pool": 400,
    "pebble": 100,
    "deadpool": 20,
    "billiard": 40,
    "pynisher": 100,
    "ray": 8,
}
_PEERS = tuple(name for name in SIZES if name not in {"our_pool", *BESIDE})


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
            targets=(Target("3x the best peer", against=_PEERS, factor=3.0),),
        )
    },
    quick=4,
    note="*The bare fork* is no peer but a yardstick: fork, call, answer through a pipe, exit; two at a time.",
)
