"""From a job's deadline to its reported failure, and to the next result on the same single worker."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stress.bench.speed.functions import hang
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import directory, session

_TIMEOUT_S = 0.2
_INNOCENT = {"stamp": ""}


@contextmanager
def busy() -> Iterator[None]:
    """Within the block a thread of this process computes in Python."""
    over = False

    def compute() -> None:
        while not over:
            pass

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        over = True
        thread.join()


def kills(peer: str, size: int) -> dict[str, Any]:
    """Milliseconds of each kill, and whether the process was gone when it was told."""
    reported, following, gone = [], [], []
    with session(peer, hang, [_INNOCENT] * 4, num_workers=1, job_timeout=_TIMEOUT_S) as opened:
        for number in range(size):
            stamp = directory() / str(number)
            for index, outcome in opened.run([{"stamp": str(stamp)}, _INNOCENT]):
                now = time.monotonic()
                begun_at, pid = stamp.read_text().split()
                late_ms = 1e3 * (now - float(begun_at) - _TIMEOUT_S)
                if index == 0:
                    assert outcome.error is not None
                    reported.append(late_ms)
                    gone.append(not Path(f"/proc/{pid}").exists())
                elif outcome.error is None:
                    following.append(late_ms)
    figures = {
        "reported": statistics.median(reported),
        "gone": sum(gone) / len(gone),
        "all_reported": reported,
    }
    return figures | ({"next": statistics.median(following)} if following else {})


def measurement(title: str, sample: Any) -> Measurement:
    """With the driver idle or busy."""
    return Measurement(
        title,
        sample,
        {"ours": 10, "our_pool": 10, "deadpool": 10, "mpire": 10, "pebble": 10, "billiard": 5},
        {
            "reported": Figure(
                "deadline to reported failure",
                "ms",
                more_is_better=False,
                targets=(Target("10 ms", bound=10.0),),
            ),
            "next": Figure(
                "deadline to the next result", "ms", more_is_better=False, targets=(Target("15 ms", bound=15.0),)
            ),
            "gone": Figure("process gone when its failure is told", "share", targets=(Target("always", bound=1.0),)),
        },
        quick=2,
        note="The job sleeps; its deadline is counted from the instant that it writes down itself.",
    )
