"""`concurrent.futures.ProcessPoolExecutor`, as its page shows it."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from stress.bench.peers.contract import FuturesSession, Offers, Peer, Settings


def _make(function: Callable[[Any], Any], settings: Settings) -> FuturesSession:
    pool = ProcessPoolExecutor(settings.num_workers, max_tasks_per_child=settings.max_tasks_per_child)
    return FuturesSession(partial(pool.submit, function), partial(pool.shutdown, cancel_futures=True))


PEER = Peer("concurrent.futures", None, Offers(fresh_process="yes, spawned"), _make, forks_user=True)
