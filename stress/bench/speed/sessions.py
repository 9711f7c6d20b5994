"""What every measurement does: a session that is warm when it is given, and closed at the end."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from stress.bench import peers

BUDGETS = {"job_timeout": 600.0, "memory_limit": 4 * 2**30}
_CLOSE_S = 10


@contextmanager
def session(
    name: str, function: Callable[[Any], Any], warm_up: list[Any] | None = None, **settings: Any
) -> Iterator[peers.Session]:
    """A session of a peer. Ours has its budgets on, which no peer is asked for unless it is given here.

    One that does not close in time is left to the end of this process, which kills its cell.
    """
    limits = BUDGETS if name in peers.OURS else {}
    opened = peers.load(name).make(function, peers.Settings(**{**limits, **settings}))
    for outcome in opened.in_order(warm_up or []):
        assert outcome.error is None, outcome.error
    yield opened
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.alarm(_CLOSE_S)
    opened.close()
    signal.alarm(0)


def finish(opened: peers.Session, arguments: list[Any]) -> float:
    """Seconds until every call has its outcome; each must be a value."""
    begun_at = time.perf_counter()
    outcomes = list(opened.in_order(arguments))
    took_s = time.perf_counter() - begun_at
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert not failed, failed[0]
    assert len(outcomes) == len(arguments)
    return took_s


def cpu_s(opened: peers.Session) -> float:
    """CPU seconds so far of this process and of what helps it, workers not counted."""
    total = time.process_time()
    for pid in opened.helpers():
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total


def tree_cpu_s() -> float:
    """CPU seconds so far of this process and all living ones below it: what a call costs on a machine that is full."""
    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def throughput(name: str, function: Callable[[Any], Any], size: int) -> dict[str, float]:
    """Calls a second and CPU microseconds a call, all at once, after a hundred to warm up."""
    arguments = [{"x": x} for x in range(size)]
    with session(name, function, arguments[:100]) as opened:
        before_s = tree_cpu_s()
        took_s = finish(opened, arguments)
        return {"rate": size / took_s, "cpu": 1e6 * (tree_cpu_s() - before_s) / size}


def directory() -> Path:
    """A new one; the cell's end removes it with all others."""
    return Path(tempfile.mkdtemp(prefix="speed"))
