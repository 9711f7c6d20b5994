"""deadpool-executor's `Deadpool`, with its timeout."""

from collections.abc import Callable
from typing import Any

from stress.bench.peers.contract import FuturesSession, Offers, Peer, Settings


def _make(function: Callable[[Any], Any], settings: Settings) -> FuturesSession:
    from deadpool import Deadpool

    pool = Deadpool(
        max_workers=settings.num_workers,
        max_tasks_per_child=settings.max_tasks_per_child,
        max_worker_memory_bytes=settings.memory_limit,
        max_backlog=0,  # no bound, so that 100,000 calls can be queued as in the others
    )

    def submit(argument: Any) -> Any:
        return pool.submit(function, argument, deadpool_timeout=settings.job_timeout)

    def close() -> None:
        pool.shutdown(wait=True, cancel_futures=True)

    return FuturesSession(submit, close)


PEER = Peer("deadpool", "deadpool-executor", Offers("yes", "between jobs", "yes"), _make)
