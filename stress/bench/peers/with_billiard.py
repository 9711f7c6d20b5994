"""billiard's `Pool`, the one under Celery, with its hard timeout."""

from collections.abc import Callable
from typing import Any

from stress.bench.peers.contract import CallbackSession, Offers, Peer, Settings


def _make(function: Callable[[Any], Any], settings: Settings) -> CallbackSession:
    from billiard.pool import Pool

    pool = Pool(
        processes=settings.num_workers,
        timeout=settings.job_timeout,
        maxtasksperchild=settings.max_tasks_per_child,
        max_memory_per_child=None if settings.memory_limit is None else settings.memory_limit // 1024,
    )

    def apply(argument: Any, callback: Any, error_callback: Any) -> Any:
        return pool.apply_async(function, (argument,), callback=callback, error_callback=_unwrapped(error_callback))

    def close() -> None:
        pool.terminate()
        pool.join()

    return CallbackSession(apply, close)


def _unwrapped(error_callback: Any) -> Any:
    if error_callback is None:
        return None
    return lambda info: error_callback(getattr(info, "exception", info))


PEER = Peer("billiard", "billiard", Offers("yes", "between jobs", "yes"), _make, forks_user=True)
