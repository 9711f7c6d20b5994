"""`multiprocessing.Pool`, a call each through `apply_async`."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from stress.bench.peers.contract import CallbackSession, Offers, Peer, Settings


def _make(function: Callable[[Any], Any], settings: Settings) -> CallbackSession:
    pool = multiprocessing.Pool(settings.num_workers, maxtasksperchild=settings.max_tasks_per_child)

    def apply(argument: Any, callback: Any, error_callback: Any) -> Any:
        return pool.apply_async(function, (argument,), callback=callback, error_callback=error_callback)

    def close() -> None:  # what leaving its `with` block does
        pool.terminate()
        pool.join()

    return CallbackSession(apply, close)


PEER = Peer("multiprocessing.Pool", None, Offers(fresh_process="yes"), _make, forks_user=True)
