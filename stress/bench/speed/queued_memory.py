"""Memory of the driver while many jobs wait."""

import os
import threading
import time

import psutil

from stress.bench.functions import hold
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import directory, session

SIZES = {
    "ours": 100_000,
    "our_pool": 100_000,
    "futures": 100_000,
    "mp_pool": 100_000,
    "pebble": 20_000,
    "deadpool": 20_000,
    "loky": 20_000,
    "mpire": 100_000,
    "billiard": 100_000,
    "ray": 10_000,
    "dask": 4_000,
}
_STEP_S = 0.1
_RESTED_STEPS = 15


def sample(peer: str, size: int) -> dict[str, float]:
    """Two jobs hold both workers while the others are queued; what the driver has grown by when it comes to rest."""
    place = directory()
    pipe = str(place / "pipe")
    os.mkfifo(pipe)
    begun = str(place / "begun")
    holding = [{"pipe": pipe, "begun": begun}] * 2
    arguments = [*holding, *({"pipe": "", "begun": x} for x in range(size))]
    with session(peer, hold, [{"pipe": "", "begun": 0}] * 4) as opened:
        me = psutil.Process()
        before = me.memory_info().rss
        thread = threading.Thread(target=lambda: list(opened.in_order(arguments)), daemon=True)
        thread.start()
        grown = _at_rest(me) - before
        release(pipe, thread)
    return {"memory": grown / size * 100_000 / 2**20}


def _at_rest(process: psutil.Process) -> int:
    """The resident size when neither it nor the CPU time has moved for a while."""
    largest = rested = 0
    cpu_s = 0.0
    while rested < _RESTED_STEPS:
        time.sleep(_STEP_S)
        size, times = process.memory_info().rss, process.cpu_times()
        is_still = size <= largest and times.user + times.system - cpu_s < _STEP_S / 4
        rested = rested + 1 if is_still else 0
        largest, cpu_s = max(size, largest), times.user + times.system
    return largest


def release(pipe: str, thread: threading.Thread) -> None:
    """Open the pipe for those who wait at it, as often as it takes."""
    while thread.is_alive():
        fd = os.open(pipe, os.O_RDWR)
        thread.join(_STEP_S)
        os.close(fd)


MEASUREMENT = Measurement(
    "memory of the driver per 100,000 queued jobs",
    sample,
    SIZES,
    {
        "memory": Figure(
            "MiB per 100,000 jobs",
            "MiB",
            more_is_better=False,
            targets=(Target("less than every peer", against=tuple(SIZES)[2:]),),
        )
    },
    limit_s=240.0,
    note="The driver's resident size, arguments not counted; the slower queue fewer and are scaled.",
)
