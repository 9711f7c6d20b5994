"""pebble's `ProcessPool.schedule`, with its timeout."""

from collections.abc import Callable
from typing import Any

from stress.bench.peers.contract import FuturesSession, Offers, Peer, Settings


def _make(function: Callable[[Any], Any], settings: Settings) -> FuturesSession:
    from pebble import ProcessPool

    pool = ProcessPool(max_workers=settings.num_workers, max_tasks=settings.max_tasks_per_child or 0)

    def submit(argument: Any) -> Any:
        return pool.schedule(function, args=[argument], timeout=settings.job_timeout)

    def close() -> None:
        pool.close()
        pool.join()

    return FuturesSession(submit, close)


PEER = Peer("pebble", "pebble", Offers(job_timeout="yes", fresh_process="yes"), _make, forks_user=True)
