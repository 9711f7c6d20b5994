"""DeepHyper: an evaluator for its current searches (`CBO` and the others) whose jobs run in supervised processes.

Everything but the call of the run function is DeepHyper's own evaluator: jobs, storage, callbacks, what its searches
read and set. This is the one method that it leaves to be written, so that a search cannot tell the difference.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from deephyper.evaluator import Evaluator, HPOJob, JobStatus
from deephyper.evaluator.storage import MemoryStorage

from robust_eval.calls import failure_in
from robust_eval.errors import InvalidArgument, InvalidArgumentType, JobCancelled, bounded_repr
from robust_eval.evaluators.notify import log_failure
from robust_eval.executor import RobustExecutor
from robust_eval.failure import Failure
from robust_eval.limits import parse_count
from robust_eval.processes.evaluation import Alone

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping
    from concurrent.futures import Future

    from deephyper.evaluator import Job
    from deephyper.evaluator.storage import Storage


class RobustEvaluator(Evaluator):  # type: ignore[misc]  # DeepHyper ships no types
    """Evaluates a run function in supervised processes, for DeepHyper's own searches.

    A job that hangs, crashes, exhausts memory or raises has the objective ``"F"``, with the cause in its metadata
    ``failure`` and ``failure_message`` (columns ``m:failure`` and ``m:failure_message`` of the results; empty where
    the job delivered) and all that is known in ``job.failure``, a `Failure`. When the search's ``timeout`` is over,
    what still runs is killed; it has the status ``CANCELLED`` and the failure ``timeout``.

    Each search closes its evaluator, and so ends every process; the next search on it starts them anew.

    Args:
        run_function: called with a `RunningJob`; an ``async def`` is run to its end.
        num_workers: how many jobs run at once.
        callbacks: of DeepHyper.
        run_function_kwargs: keyword arguments of every call.
        storage: of DeepHyper; by default its ``MemoryStorage``, which the run function cannot reach. A search with a
            ``stopper`` needs one that it can, such as ``SharedMemoryStorage()``.
        search_id: a search of that storage to go on with.
        **options: those of `RobustExecutor`, such as ``job_timeout``, ``memory_limit`` and ``max_retries``.

    Raises:
        InvalidArgument: a value is not allowed. Also a ``ValueError``.
        InvalidArgumentType: the run function cannot be called, or cannot be pickled. Also a ``TypeError``.
    """

    def __init__(  # noqa: PLR0917 - DeepHyper's signature
        self,
        run_function: Callable[..., Any],
        num_workers: int = 1,
        callbacks: Iterable[Any] | None = None,
        run_function_kwargs: Mapping[str, Any] | None = None,
        storage: Storage | None = None,
        search_id: Hashable | None = None,
        **options: Any,
    ) -> None:
        if not callable(run_function):
            raise InvalidArgumentType(
                f"run_function={bounded_repr(run_function)} cannot be called. Pass a function of a job."
            )
        kwargs = dict(run_function_kwargs or {})
        count = parse_count("num_workers", num_workers)
        # The key with which storages that are served by a manager's process let a worker in.
        key = bytes(multiprocessing.current_process().authkey)
        initargs = (run_function, kwargs, key)
        self._make_executor = partial(_executor, count, initargs, options)
        self._executor: RobustExecutor | None = self._make_executor()
        super().__init__(run_function, count, list(callbacks or ()), kwargs, storage, search_id)
        self._job_class = HPOJob

    def submit(self, args_list: list[dict[str, Any]]) -> None:
        """Have configurations evaluated; returns without waiting for them.

        Raises:
            InvalidArgument: the search has a stopper, and a storage that the stopper could not reach in a worker.
        """
        if self._stopper is not None and isinstance(self._storage, MemoryStorage):
            raise InvalidArgument(
                "a stopper compares jobs by the storage, and MemoryStorage stays in this process. "
                "Pass storage=SharedMemoryStorage()."
            )
        super().submit(args_list)

    async def execute(self, job: Job) -> Job:
        """Run one job. What becomes of it is its outcome: this raises nothing, unless it is cancelled."""
        async with self.sem:
            if self._is_over():
                return _cancelled(job, _ended(None))
            job.status = JobStatus.RUNNING
            if self._executor is None:
                self._executor = self._make_executor()
            executor = self._executor
            storage = None if isinstance(self._storage, MemoryStorage) else self._storage
            call = executor.submit(Alone.evaluate, job.args, job.id, self._stopper, storage)
            try:
                await self._settled(executor, call)
            except asyncio.CancelledError:
                executor.kill(call)
                raise
            return self._with_outcome(job, call)

    async def _settled(self, executor: RobustExecutor, call: Future[Any]) -> None:
        """Wait for a call, for no longer than the search lasts."""
        waiting = asyncio.wrap_future(call)
        done, _ = await asyncio.wait([waiting], timeout=None if self.timeout is None else self.time_left)
        if not done:
            executor.kill(call)
            await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.exception()  # asyncio wants to see it read

    def _with_outcome(self, job: Job, call: Future[Any]) -> Job:
        error = None if call.cancelled() else call.exception()
        if call.cancelled() or isinstance(error, JobCancelled):
            return _cancelled(job, _ended(None if error is None else failure_in(error)))
        if error is not None:
            return _failed(job, failure_in(error))
        objective, metadata, _ = call.result()
        if isinstance(objective, tuple | list):  # beside a failure, its searches take only floats for successes
            objective = tuple(each if isinstance(each, str) else float(each) for each in objective)
        job.set_output({"objective": objective, "metadata": {"failure": None, "failure_message": None, **metadata}})
        job.failure = None
        self._tell_history(job)
        return job

    def _tell_history(self, job: Job) -> None:
        """Correct how many objectives the search expects: of a first job that failed it concludes one."""
        history = getattr(self.search, "history", None)
        if history is not None and isinstance(job.objective, tuple) and history.num_objective in {None, 1}:
            history.set_num_objective(job)

    def _is_over(self) -> bool:
        return self.timeout is not None and self.time_left <= 0

    def close(self) -> list[Job]:
        """End every process, and what runs: such jobs are given back, with the status ``CANCELLED``.

        What a search had set (its timeout, its number of jobs) is forgotten: the next one sets its own.
        """
        try:
            jobs: list[Job] = super().close()
        finally:
            executor, self._executor = self._executor, None
            if executor is not None:
                executor.kill_workers()
        self.timeout: float | None = None
        self.maximum_num_jobs_submitted = -1
        return jobs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def _executor(num_workers: int, initargs: tuple[Any, ...], options: dict[str, Any]) -> RobustExecutor:
    return RobustExecutor(num_workers, initializer=Alone.prepare, initargs=initargs, **options)


def _failed(job: Job, failure: Failure) -> Job:
    metadata = {"failure": failure.kind, "failure_message": failure.message}
    job.set_output({"objective": Evaluator.FAIL_RETURN_VALUE, "metadata": metadata})
    job.failure = failure
    log_failure(job.id, failure)
    return job


def _ended(failure: Failure | None) -> Failure:
    """Why a job of a search that is over has no result: it ran then, or had not begun."""
    if failure is None or not failure.attempts:
        return Failure("cancelled", "the search's timeout was over before it began", attempts=0)
    return replace(failure, kind="timeout", message="the search's timeout was over while it ran")


def _cancelled(job: Job, failure: Failure) -> Job:
    job.status = JobStatus.CANCELLED
    return _failed(job, failure)
