"""mpire's `WorkerPool`, a call each through `apply_async`, with its task timeout."""

from collections.abc import Callable
from typing import Any

from stress.bench.peers.contract import CallbackSession, Offers, Peer, Settings


def _make(function: Callable[[Any], Any], settings: Settings) -> CallbackSession:
    from mpire import WorkerPool

    pool = WorkerPool(n_jobs=settings.num_workers)

    def apply(argument: Any, callback: Any, error_callback: Any) -> Any:

        return pool.apply_async(
            function, (argument,), callback=callback, error_callback=error_callback, task_timeout=settings.job_timeout
        )

    return CallbackSession(apply, pool.terminate)


PEER = Peer("mpire", "mpire", Offers(job_timeout="yes"), _make, forks_user=True)
