"""Where jobs run inside the driver's process: daemon threads, or coroutines on a loop.

Nothing here can be killed. A thread whose job was settled without it counts as busy until the run
function returns; its late result is dropped.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robust_eval.failure import Failure
from robust_eval.objective import standardize

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from robust_eval.evaluators.ledger import Ledger, Retries, Work
    from robust_eval.evaluators.loop import LoopThread
    from robust_eval.job import Job


class ThreadLane:
    """Plain functions in daemon threads, in the order of their submission.

    Args:
        threads: how many jobs run at once; each thread starts when it is first needed.
        ledger: where jobs begin and settle.
        loop: runs what a plain function returns when that is awaitable.
        retries: which failures are tried again.
    """

    def __init__(self, threads: int, ledger: Ledger, loop: LoopThread, retries: Retries) -> None:
        self._threads = threads
        self._ledger = ledger
        self._loop = loop
        self._retries = retries
        self._started = 0
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()

    def run(self, works: Iterable[Work]) -> None:
        """Queue jobs."""
        for work in works:
            self._works.put(work)
            if self._started < self._threads:
                self._started += 1
                threading.Thread(target=self._serve, name=f"robust_eval-{self._started}", daemon=True).start()

    def close(self) -> None:
        """End the threads, each when its job returns."""
        for _ in range(self._started):
            self._works.put(None)

    def _serve(self) -> None:
        while (work := self._works.get()) is not None:
            if self._ledger.begin(work):
                self._ledger.deliver(work, self._outcome(work))
            # An idle thread must not keep the last job and its result alive.
            del work

    def _outcome(self, work: Work) -> Callable[[Job], None]:
        attempts = 0
        while True:
            attempts += 1
            try:
                output = work.call()
                if inspect.isawaitable(output):
                    output = self._loop.wait_for(_guarded(output)).unwrap()
                standard = standardize(output)
            except BaseException as error:  # noqa: BLE001  the user's code runs here
                failure = Failure.from_exception(error, attempts=attempts, duration=work.duration)
            else:
                return lambda job: job.set_outcome(*standard)
            if work.settled or not self._retries.again(failure):
                return _failing(failure)


class CoroutineLane:
    """Coroutines on the loop's thread, a number of them at once, begun in the order of submission.

    Args:
        width: how many jobs run at once.
        ledger: where jobs begin and settle.
        loop: where they run.
        retries: which failures are tried again.
        attempt: runs one job once and gives what is to be written on it.
    """

    def __init__(
        self,
        width: int,
        ledger: Ledger,
        loop: LoopThread,
        retries: Retries,
        attempt: Callable[[Work], Awaitable[Callable[[Job], None]]],
    ) -> None:
        self._width = width
        self._ledger = ledger
        self._loop = loop
        self._retries = retries
        self._attempt = attempt
        self._waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
        # Tasks are kept here, since a loop holds them weakly; the count is exact, the set lags behind.
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving = 0

    def run(self, works: Iterable[Work]) -> None:
        """Queue jobs."""
        for work in works:
            self._waiting.put(work)
        self._loop.call(self._fill)

    def _fill(self) -> None:
        for _ in range(min(self._width - self._serving, self._waiting.qsize())):
            self._serving += 1
            task = asyncio.get_running_loop().create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        # One task serves one job after the other; a job that was given up is cancelled as a child task,
        # and its place counts as busy until that has ended.
        while not self._waiting.empty():
            work = self._waiting.get_nowait()
            if not self._ledger.begin(work):
                continue
            loop = asyncio.get_running_loop()
            child = loop.create_task(self._settle(work))
            work.cancel = functools.partial(_cancel_soon, loop, child)
            if work.settled:  # given up before it could be told how to end
                child.cancel()
            await asyncio.wait([child])
        self._serving -= 1

    async def _settle(self, work: Work) -> None:
        attempts = 0
        while True:
            attempts += 1
            try:
                apply = await self._attempt(work)
                break
            except asyncio.CancelledError as error:
                failure = Failure.from_exception(error, attempts=attempts, duration=work.duration)
                apply = _failing(failure)
                break
            except BaseException as error:  # noqa: BLE001  the user's code runs here
                failure = Failure.from_exception(error, attempts=attempts, duration=work.duration)
            if work.settled or not self._retries.again(failure):
                apply = _failing(failure)
                break
        self._ledger.deliver(work, apply)


async def call_async(work: Work) -> Callable[[Job], None]:
    """Run an ``async def`` run function once."""
    standard = standardize(await work.call())
    return lambda job: job.set_outcome(*standard)


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether calling this gives a coroutine: also for partials and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def _failing(failure: Failure) -> Callable[[Job], None]:
    return lambda job: job.fail(failure)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How an awaitable ended; an exit must not reach the loop, which would end with it."""

    value: Any = None
    error: BaseException | None = None

    def unwrap(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


async def _guarded(awaitable: Awaitable[Any]) -> _Ended:
    try:
        return _Ended(value=await awaitable)
    except BaseException as error:  # noqa: BLE001  the user's code runs here
        return _Ended(error=error)
