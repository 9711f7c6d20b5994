"""Ours as the standard library's users have it: `RobustExecutor`, submit and result."""

from collections.abc import Callable
from functools import partial
from typing import Any

from stress.bench.peers.contract import FuturesSession, Offers, Peer, Settings


def _make(function: Callable[[Any], Any], settings: Settings) -> FuturesSession:
    from robust_eval import RobustExecutor

    pool = RobustExecutor(
        settings.num_workers,
        job_timeout=settings.job_timeout,
        memory_limit=settings.memory_limit,
        max_tasks_per_child=settings.max_tasks_per_child,
    )
    return FuturesSession(partial(pool.submit, function), partial(pool.shutdown, cancel_futures=True))


PEER = Peer("RobustExecutor", "robust-eval", Offers("yes", "yes", "yes"), _make)
