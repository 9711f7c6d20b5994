"""`RobustExecutor`: the standard library's executor, over a pool that a limit really ends and nothing breaks."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import sys
import time
import weakref
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from robust_eval.calls import Budget, Calls
from robust_eval.errors import EvaluatorClosed
from robust_eval.evaluators.ledger import Retries
from robust_eval.evaluators.settings import parse_environments, parse_start_method, policy_of, refuse_windows
from robust_eval.limits import parse_count, parse_memory, parse_seconds
from robust_eval.processes.pool import PoolSettings
from robust_eval.supervision.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")
_UNCHANGED: Any = object()


class RobustExecutor(ProcessPoolExecutor):
    """A `concurrent.futures.Executor` whose calls run in supervised processes.

    Use it wherever a `ProcessPoolExecutor` is taken: it is one by name, since some libraries ask for that, and shares
    nothing else with it. A call that hangs, crashes or exhausts memory costs its own future
    alone, which then raises `JobTimeout` (a ``TimeoutError``), `JobMemoryExceeded` (a ``MemoryError``) or `JobCrashed`,
    each with a ``failure`` that says why; there is no ``BrokenProcessPool``. An exception of the function is raised
    as itself, caused by a `RemoteTraceback`. Functions may be lambdas and closures; a script needs no main guard.

    At the interpreter's exit, calls that still run are ended: wait for futures, or use ``with``. An executor that is
    dropped finishes its calls and then closes itself.

    Args:
        max_workers: how many calls run at once; by default as many as this process may use CPUs.
        job_timeout: seconds that a call may run, counted from its begin in the worker; None for no limit.
        memory_limit: what a call's process tree may take: bytes, ``"2GiB"``, a share of the machine, ``"auto"``.
        initializer: called once in each worker before its first call.
        initargs: its arguments.
        max_tasks_per_child: calls that a worker runs before it is replaced; 1 is a fresh process for each.
        grace_period: seconds between `JobStop`, raised in a call that is over its time, and the kill; 0 for none.
        max_retries: further attempts for a call that failed.
        retry_on: the failure kinds that are tried again.
        preload: modules to import once, before any worker is forked. The modules of the first function are.
        worker_env: environment variables of the workers: one mapping, or one for each worker.
        start_method: ``"fork"`` from a clean template process, or ``"spawn"``, a fresh interpreter each.
        worker_seed: seeds the generators of worker number i with ``worker_seed + i``.
        start_timeout: seconds that a worker may take to start, imports and initializer included.

    Raises:
        InvalidArgument: a value is not allowed. Also a ``ValueError``.
        RobustEvalError: on Windows.
    """

    # How long a kill waits for the stack dump; on an idle machine it takes 0.1 ms.
    _DUMP_S: ClassVar[float] = Policy().dump_s

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        job_timeout: float | None = None,
        memory_limit: float | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_tasks_per_child: int | None = None,
        grace_period: float = 0.0,
        max_retries: int = 0,
        retry_on: Iterable[str] | None = None,
        preload: Iterable[str] = (),
        worker_env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
        start_method: str = "fork",
        worker_seed: int | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        refuse_windows()
        # Named as in the standard library, where dask and others read it.
        self._max_workers = usable_cpus() if max_workers is None else parse_count("max_workers", max_workers)
        policy = policy_of(
            self._max_workers,
            Retries.parse(max_retries, retry_on),
            grace_period=grace_period,
            max_tasks_per_child=max_tasks_per_child,
            start_timeout=start_timeout,
        )
        settings = PoolSettings(
            policy={**policy, "dump_s": self._DUMP_S},
            python=sys.executable,
            start_method=parse_start_method(start_method),
            preload=tuple(preload),
            worker_env=parse_environments(worker_env),
            worker_seed=worker_seed,
        )
        self._budget = self._checked_budget(job_timeout, memory_limit)
        self._calls = Calls(settings, initializer, initargs)
        weakref.finalize(self, self._calls.retire).atexit = False  # at exit `Calls` ends itself

    def _checked_budget(self, job_timeout: Any, memory_limit: Any) -> Budget:
        timeout_s = parse_seconds("job_timeout", job_timeout)
        return Budget(timeout_s, parse_memory(memory_limit, num_workers=self._max_workers))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` called; its arguments are pickled before this returns.

        Args:
            fn: the function; also a lambda or a closure.
            *args: its positional arguments.
            **kwargs: its arguments by name.

        Returns:
            A future. It can be cancelled until its call is handed to a worker: when it begins, and where calls are
            short up to 15 ms earlier. Where the function or an argument cannot be pickled, it holds a `JobUnpicklable`.

        Raises:
            EvaluatorClosed: the executor is shut down. Also a ``RuntimeError``.
            RobustEvalError: this is a forked child of the process that made the executor.
        """
        return self._calls.submit(self._budget, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call a function for each tuple of arguments; results come in their order.

        Args:
            fn: the function.
            *iterables: its arguments, as for the built-in ``map``.
            timeout: seconds from now until the last result must be there; not the limit of one call.
            chunksize: accepted and checked, and otherwise not used: short calls travel together by themselves, and
                each keeps its own limits and its own failure.
            buffersize: the most calls submitted whose results were not yet taken; None submits all of them now.

        Returns:
            An iterator of the results. It raises what a call raised when it comes to that call, and cancels what it has
            not given when it ends early.

        Raises:
            TimeoutError: from the iterator, when ``timeout`` is over.
            InvalidArgument: ``chunksize`` or ``buffersize`` is below 1.
        """
        parse_count("chunksize", chunksize)
        if buffersize is not None:
            parse_count("buffersize", buffersize)
        ends_at = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        futures = deque(self.submit(fn, *args) for args in itertools.islice(calls, buffersize))
        if buffersize is None:
            # An iterator that held the executor would keep it open when the user drops it.
            return _results(futures, ends_at, tuple)
        return _results(futures, ends_at, lambda: [self.submit(fn, *args) for args in itertools.islice(calls, 1)])

    def with_options(self, *, job_timeout: Any = _UNCHANGED, memory_limit: Any = _UNCHANGED) -> RobustExecutor:
        """Give the same pool under other limits, as an executor of its own.

        Args:
            job_timeout: seconds, or None for no limit; as it is where left out.
            memory_limit: as for the executor.

        Returns:
            An executor. Its ``shutdown`` waits for its own calls and leaves the pool open.
        """
        timeout_s, limit = self._budget
        return _View(
            self,
            Budget(
                timeout_s if job_timeout is _UNCHANGED else parse_seconds("job_timeout", job_timeout),
                limit if memory_limit is _UNCHANGED else parse_memory(memory_limit, num_workers=self._max_workers),
            ),
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in the standard library
        """Accept no more calls; what was accepted is still done, then no process is left.

        Args:
            wait: return only then.
            cancel_futures: cancel what has not begun.
        """
        self._calls.shutdown(cancel_futures=cancel_futures)
        if wait:
            self._calls.join()

    def kill(self, future: Future[Any]) -> None:
        """End one call now: it is cancelled, or if it runs its process is killed and it raises `JobCancelled`.

        Args:
            future: of a call of this executor; one that is done stays as it is.
        """
        self._calls.kill(future)

    def kill_workers(self) -> None:
        """End everything now: calls that run raise `JobCancelled`, those that wait are cancelled. Bounded."""
        self._calls.abort()

    terminate_workers = kill_workers


class _View(RobustExecutor):
    """The pool of another executor under limits of its own."""

    def __init__(self, owner: RobustExecutor, budget: Budget) -> None:
        self._owner = owner  # kept: an executor that is dropped closes itself
        self._max_workers = owner._max_workers  # noqa: SLF001 - our own
        self._budget = budget
        self._calls = owner._calls  # noqa: SLF001 - our own
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if self._closed:
            msg = "cannot schedule new futures after shutdown: make a new view with with_options()"
            raise EvaluatorClosed(msg)
        future = super().submit(fn, *args, **kwargs)
        self._futures.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as above
        self._closed = True
        mine = list(self._futures)
        if cancel_futures:
            for future in mine:
                future.cancel()
        if wait:
            concurrent.futures.wait([future for future in mine if not future.cancelled()])


def _results(futures: deque[Future[T]], ends_at: float | None, more: Callable[[], Iterable[Future[T]]]) -> Iterator[T]:
    """The results in order. An iterator that ends early cancels what it has not given."""
    try:
        while futures:
            futures[0].exception(None if ends_at is None else ends_at - time.monotonic())
            futures.extend(more())
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
