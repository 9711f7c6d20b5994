"""Memory that an idle worker adds, where the function has used numpy and pandas."""

import os

import psutil

from stress.bench.speed.frames import use_frames
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import session

_FEW = 2
_SECONDS = 0.3


def proportional_bytes() -> int:
    """The proportional set size of this process and all below it."""
    me = psutil.Process(os.getpid())
    return sum(process.memory_full_info().pss for process in [me, *me.children(recursive=True)])


def with_workers(peer: str, count: int) -> int:
    """The same with that many workers, each of which has run something."""
    rounds = [{"s": _SECONDS}] * (4 * count)
    with session(peer, use_frames, rounds, num_workers=count):
        return proportional_bytes()


def sample(peer: str, size: int) -> dict[str, float]:
    """The difference between a few workers and more of them, by how many these are more."""
    use_frames({"s": 0.0})
    few = with_workers(peer, _FEW)
    more = with_workers(peer, _FEW + size)
    return {"worker": (more - few) / size / 2**20}


MEASUREMENT = Measurement(
    "memory (PSS) that each further idle worker adds; parent and function use numpy and pandas",
    sample,
    {"ours": 6, "futures": 6, "mp_pool": 6, "pebble": 6, "deadpool": 6, "loky": 6},
    {
        "worker": Figure(
            "MiB a worker",
            "MiB",
            more_is_better=False,
            targets=(Target("a quarter of those that do not fork you", against=("deadpool", "loky"), factor=0.25),),
        )
    },
    quick=3,
    note="Those that fork the user's process share its memory with it.",
)
