"""From a job's deadline to its reported failure, and to the next result on the same single worker."""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stress.bench.functions import hang
from stress.bench.speed.measurement import Figure, Measurement, Target
from stress.bench.speed.sessions import directory, session

_TIMEOUT_S = 0.2
_LIMITS = {"job_timeout": _TIMEOUT_S}
_INNOCENT = {"stamp": ""}
_PATIENCE_S = 30.0


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
    """Milliseconds from each deadline to what followed, and whether the process was gone when its failure was told."""
    reported, following, gone, deadlines = [], [], [], []
    place = directory()
    with watched(place, size) as ends, session(peer, hang, [_INNOCENT] * 4, num_workers=1, **_LIMITS) as opened:
        for number in range(size):
            stamp = place / str(number)
            for index, outcome in opened.run([{"stamp": str(stamp)}, _INNOCENT]):
                now = time.monotonic()
                begun_at, pid = stamp.read_text().split()
                deadline = float(begun_at) + _TIMEOUT_S
                if index == 0:
                    assert outcome.error is not None
                    deadlines.append(deadline)
                    reported.append(1e3 * (now - deadline))
                    gone.append(not Path(f"/proc/{pid}").exists())
                elif outcome.error is None:
                    following.append(1e3 * (now - deadline))
    ended = [1e3 * (end - deadline) for end, deadline in zip(ends, deadlines, strict=True)]
    figures = {
        "ended": statistics.median(ended),
        "reported": statistics.median(reported),
        "gone": sum(gone) / len(gone),
        "all_reported": reported,
    }
    return figures | ({"next": statistics.median(following)} if following else {})


@contextmanager
def watched(place: Path, count: int) -> Iterator[list[float]]:
    """After the block, the instants at which the processes named in the stamps ended."""
    ends: list[float] = []
    command = [sys.executable, "-S", str(Path(__file__).with_name("watcher.py")), str(place), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        yield ends
        ends.extend(map(float, watcher.communicate(timeout=_PATIENCE_S)[0].split()))


def measurement(title: str, sample: Any) -> Measurement:
    """With the driver idle or busy."""
    return Measurement(
        title,
        sample,
        {"ours": 10, "our_pool": 10, "deadpool": 10, "mpire": 10, "pebble": 10, "billiard": 5},
        {
            "ended": Figure(
                "deadline to the end of the process, seen from a third process", "ms", more_is_better=False
            ),
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
