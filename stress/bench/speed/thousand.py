"""A thousand workers on one machine."""

import os
import threading
import time

import psutil

from stress.bench.functions import hold
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.queued_memory import release
from stress.bench.speed.sessions import directory, session

_IDLE_S = 5.0
_STEP_S = 0.02


def sample(peer: str, size: int) -> dict[str, float]:
    """From the making of the pool until each worker has begun a job; then the supervisor's CPU while all are idle."""
    place = directory()
    pipe, begun = place / "pipe", place / "begun"
    os.mkfifo(pipe)
    begun.touch()
    begun_at = time.perf_counter()
    with session(peer, hold, num_workers=size) as opened:
        arguments = [{"pipe": str(pipe), "begun": str(begun)}] * size
        thread = threading.Thread(target=lambda: list(opened.in_order(arguments)), daemon=True)
        thread.start()
        while begun.stat().st_size < size:
            time.sleep(_STEP_S)
        took_s = time.perf_counter() - begun_at
        release(str(pipe), thread)
        time.sleep(1.0)  # what the end of so many jobs takes is not idleness
        (pid,) = opened.helpers()
        before = psutil.Process(pid).cpu_times()
        time.sleep(_IDLE_S)
        after = psutil.Process(pid).cpu_times()
    idle = max(0.0, 100 * (after.user + after.system - before.user - before.system) / _IDLE_S)
    return {"start": took_s, "idle": idle}


MEASUREMENT = Measurement(
    "1,000 workers on one machine",
    sample,
    {"our_pool": 1000},
    {
        "start": Figure("until each has begun a job", "s", more_is_better=False, targets=(Target("10 s", bound=10.0),)),
        "idle": Figure(
            "the supervisor's CPU while all are idle",
            "% of a core",
            more_is_better=False,
            targets=(Target("2%", bound=2.0),),
        ),
    },
)
