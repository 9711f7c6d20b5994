"""The evaluator as its users see it: submit configurations, gather outcomes, dump the CSV.

Everything that runs jobs is behind `robust_eval.evaluators.backend`; nothing here costs more with every
job that was ever submitted.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeAlias

from robust_eval.callbacks import Callback
from robust_eval.errors import (
    EvaluatorClosed,
    InvalidArgument,
    InvalidArgumentType,
    bounded_repr,
)
from robust_eval.evaluators.arguments import checked_configs, connected, known_search
from robust_eval.evaluators.backend import Backend
from robust_eval.evaluators.dumping import Dumping
from robust_eval.evaluators.gathering import Gathering
from robust_eval.evaluators.lasting import Lasting
from robust_eval.evaluators.ledger import Retries
from robust_eval.evaluators.notify import Notifier, log_failure
from robust_eval.evaluators.registry import evaluator_class
from robust_eval.evaluators.tally import Tally
from robust_eval.job import Job, JobStatus
from robust_eval.limits import parse_count, parse_seconds
from robust_eval.objective import FAIL_RETURN_VALUE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from robust_eval.storage.base import Storage

OnError: TypeAlias = Literal["return", "raise"]
_ON_ERROR: Final = ("return", "raise")
_LEAST_PORTION, _PORTION = 16, 1000


def _portion(missing: int) -> int:
    """How many jobs to wait for at a time: so many are made of what arrived while others still run.

    Of the last few hundred only half, then half of the rest: when the last one arrives, little is left to be made.
    """
    return min(missing, max(_LEAST_PORTION, min(_PORTION, missing // 2)))


class Evaluator(Backend, Gathering, Lasting, Dumping):
    """Evaluates a run function over many configurations, with one outcome for each.

    Made by `create`, or subclassed with an ``async def execute(self, job)`` of one's own. A context
    manager: leaving it closes the evaluator.

    Args:
        run_function: what is evaluated; called with a `robust_eval.job.RunningJob`.
        num_workers: how many jobs run at once.
        callbacks: told about each job as it is submitted and gathered.
        run_function_kwargs: keyword arguments of every call.
        storage: where the jobs are kept, a `Storage` or a URL such as ``"sqlite:///runs.db"``; by default a new
            `MemoryStorage`.
        search_id: a search of that storage to go on with; by default a new one.
        on_error: ``"return"`` failed jobs like others, or ``"raise"`` the first one in ``gather``.
        max_retries: how often a job that failed is tried again.
        retry_on: the kinds of failure for which it is; by default all that another try may cure.
        max_failure_rate: the share of failed jobs (0 to 1, judged from 20 jobs on) over which the search is stopped:
            ``gather`` raises `SearchBroken`, and what had settled stays gatherable.
        max_consecutive_failures: how many jobs that fail in a row stop it in the same way.
        max_attempts: in how many drivers that died a job may have been running; then `resume` gives it up as
            ``lost``.

    Attributes:
        jobs: every job that was submitted.
        jobs_done: the jobs that were gathered and not yet dumped.
        job_id_gathered: the ids of all jobs that were gathered.
        num_jobs_skipped: how many configurations ``skip_done`` has left out.
        num_objective: how many objectives the CSV has; found out by itself unless set.

    Raises:
        InvalidArgument: a value is not allowed (a ``ValueError``).
        InvalidArgumentType: an argument has a type that is not allowed (a ``TypeError``).
    """

    FAIL_RETURN_VALUE: ClassVar[str] = FAIL_RETURN_VALUE
    NEST_ASYNCIO_PATCHED: ClassVar[bool] = False
    PYTHON_EXE: ClassVar[str] = (
        os.environ.get("ROBUST_EVAL_PYTHON") or os.environ.get("DEEPHYPER_PYTHON_BACKEND") or sys.executable
    )

    def __init__(  # noqa: PLR0917  DeepHyper's signature
        self,
        run_function: Callable[..., Any],
        num_workers: int = 1,
        callbacks: Iterable[Any] | None = None,
        run_function_kwargs: Mapping[str, Any] | None = None,
        storage: Storage | str | None = None,
        search_id: str | None = None,
        *,
        on_error: OnError = "return",
        max_retries: int = 0,
        retry_on: Iterable[str] | None = None,
        max_failure_rate: float | None = None,
        max_consecutive_failures: int | None = None,
        max_attempts: int = 3,
    ) -> None:
        if not callable(run_function):
            raise InvalidArgumentType(
                f"run_function={bounded_repr(run_function)} cannot be called. Pass a function of a job."
            )
        if on_error not in _ON_ERROR:
            raise InvalidArgument(f"on_error={on_error!r} is unknown. Choose one of {_ON_ERROR}.")
        tally = Tally(self._kind_of, max_failure_rate, max_consecutive_failures)
        retries = Retries.parse(max_retries, retry_on)
        self.num_workers = parse_count("num_workers", num_workers)
        kept = connected(storage)
        Lasting.__init__(self, kept, known_search(kept, search_id), max_attempts, owned=isinstance(storage, str))
        Backend.__init__(self, retries, tally, self._keeper)
        self.run_function = run_function
        self.run_function_kwargs = {} if run_function_kwargs is None else dict(run_function_kwargs)
        self.jobs: list[Job] = []
        # A run function that wants to hear of its jobs does: `Command` gives each one a directory and takes it back.
        own = [inner] if isinstance(inner := inspect.unwrap(run_function), Callback) else []
        self._callbacks = [*own, *(callbacks or ())]
        self._job_class: type[Job] = Job
        self._stopper: Any = None
        self._timeout: float | None = None
        self._deadline_at: float | None = None
        self._created_at = time.monotonic()
        self._submitting = threading.RLock()  # a callback may submit or close
        self._closed = self._stopped = False
        Dumping.__init__(self, self._storage, self._search_id)
        Gathering.__init__(self, Notifier(), on_error)

    @staticmethod
    def create(
        run_function: Callable[..., Any],
        method: str = "serial",
        method_kwargs: Mapping[str, Any] | None = None,
    ) -> Evaluator:
        """Make an evaluator by the name of its method.

        Args:
            run_function: what is evaluated.
            method: one of `robust_eval.evaluators.registry.EVALUATORS`.
            method_kwargs: arguments of that method's class.

        Returns:
            The evaluator.

        Raises:
            InvalidArgument: there is no such method (a ``ValueError``).
        """
        evaluator: Evaluator = evaluator_class(method)(run_function, **(method_kwargs or {}))
        return evaluator

    @property
    def storage(self) -> Storage:
        """Where the jobs are kept."""
        return self._storage

    @property
    def search_id(self) -> str:
        """The search of the jobs in the storage."""
        return self._search_id

    @property
    def timestamp(self) -> float:
        """The time of creation, in seconds since the epoch: what the jobs' timestamps count from."""
        return time.time() - (time.monotonic() - self._created_at)

    @timestamp.setter
    def timestamp(self, timestamp: float) -> None:
        self._created_at = time.monotonic() - (time.time() - timestamp)

    @property
    def timeout(self) -> float | None:
        """The search's budget in seconds, as it was set."""
        return self._timeout

    @property
    def time_left(self) -> float | None:
        """What is left of the search's budget, in seconds from 0."""
        if self._deadline_at is None:
            return None
        return max(0.0, self._deadline_at - time.monotonic())

    def _seconds_left(self) -> float | None:
        return self.time_left

    def set_timeout(self, timeout: float | None) -> None:
        """Give the search a budget, from now on.

        When it is exhausted, nothing more is begun (``cancelled``) and what runs is ended (``timeout``);
        all of it settles and can be gathered. Where nothing can be killed, what runs is abandoned.

        Args:
            timeout: seconds; ``None`` lifts the budget.
        """
        self._timeout = parse_seconds("timeout", timeout, allow_zero=True)
        self._deadline_at = None if self._timeout is None else time.monotonic() + self._timeout
        self._change_budget()

    def submit(self, configs: Iterable[Mapping[str, Any]], *, skip_done: bool = False, **per_job: Any) -> None:
        """Have configurations evaluated; returns without waiting for them.

        Args:
            configs: mappings of parameters, one for each job; copied.
            skip_done: leave out what has an outcome in the search or is on its way in this evaluator. Configurations
                are compared by value, cancelled jobs do not count.
            **per_job: limits of these jobs, where the method has such.

        Raises:
            InvalidArgumentType: one is no mapping; then nothing is submitted.
            InvalidArgument: one cannot be stored, where the storage is a durable one; then nothing is submitted.
            StorageError: the storage cannot keep them; then nothing is submitted.
            EvaluatorClosed: the evaluator is closed.
        """
        self._check_options(per_job)
        checked = checked_configs(configs)
        with self._submitting:
            if self._closed:
                raise EvaluatorClosed("This evaluator is closed: make a new one to submit jobs.")
            if skip_done:
                asked_for = len(checked)
                checked = self._repeats.without(checked, self.jobs)
                self.num_jobs_skipped += asked_for - len(checked)
            self._announce(self._new_jobs(checked, together=bool(per_job)), per_job)
        self._notifier.raise_stop()

    def _job_of(self, config: Mapping[str, Any]) -> Job:
        """Make a job with a copy of the configuration, which has no id yet."""
        return self._job_class("", config, self.run_function)

    def gather(self, type: str, size: int = 1) -> list[Job]:  # noqa: A002  DeepHyper's name
        """Wait for jobs and collect them, in the order in which they were done.

        Args:
            type: ``"ALL"`` waits for all jobs submitted and not gathered, ``"BATCH"`` for ``size``.
            size: with ``"BATCH"``, the fewest jobs to wait for; 0 does not wait.

        Returns:
            The jobs: at least as many as asked for, and everything else that is done.

        Raises:
            InvalidArgument: ``type`` is unknown, or nothing was ever submitted or resumed (a ``ValueError``).
            JobFailed: with ``on_error="raise"``, for the first failure; that job counts as gathered,
                the others stay for the next call.
            SearchStopped: a callback asked for it; the jobs are recorded and stay for the next call.
            SearchBroken: too many jobs failed; the evaluator is closed, the jobs stay for the next call.
            StorageError: the storage fails, told once; the jobs stay for the next call.
        """
        self._check_process()
        mine: list[bool] = []
        try:
            mine.extend(filter(None, map(self._gathering.acquire, (False,))))
            self._refuse_second(mine)
            wanted = self._wanted(type, size)
            self._inbox.take(0, 0, self._arrived)
            self._turn_into_jobs()
            while (missing := self._missing(wanted)) > 0:
                self._inbox.take(_portion(missing), None, self._arrived)
                self._turn_into_jobs()
            return self._concluded()
        finally:
            if mine:
                self._gathering.release()

    async def agather(self, type: str, size: int = 1) -> list[Job]:  # noqa: A002  DeepHyper's name
        """Do the same as `gather` without blocking the running event loop.

        Args:
            type: ``"ALL"`` or ``"BATCH"``, as for `gather`.
            size: as for `gather`.

        Returns:
            The jobs, as from `gather`.

        Raises:
            RobustEvalError: what `gather` raises, for the same causes.
        """
        self._check_process()
        mine: list[bool] = []
        try:
            mine.extend(filter(None, map(self._gathering.acquire, (False,))))
            self._refuse_second(mine)
            wanted = self._wanted(type, size)
            self._inbox.take(0, 0, self._arrived)
            self._turn_into_jobs()
            while (missing := self._missing(wanted)) > 0:
                await self._inbox.take_async(_portion(missing), None, self._arrived)
                self._turn_into_jobs()
            return self._concluded()
        finally:
            if mine:
                self._gathering.release()

    def _concluded(self) -> list[Job]:
        """End a gather: what others did is seen, and what the storage fails to keep is told."""
        self._look_for_others_if_possible()
        if self._keeper is None:
            return self._collected()
        self._keeper.check()
        try:
            return self._collected()
        finally:
            self._keeper.sync()

    async def as_completed(self) -> AsyncIterator[Job]:
        """Yield each job submitted and not gathered as it is done, until there is none left.

        Jobs that were done and not reached, because the loop over them ended early, stay for the next
        ``gather``.
        """
        while self._batch or self._outstanding():
            if not self._batch:
                self._batch.extend(await self.agather("BATCH", 1))
            yield self._batch.popleft()

    def stats(self) -> dict[str, Any]:
        """Tell how the search is doing, at once, from any thread.

        Returns:
            ``jobs`` (how many are submitted, settled, unsettled, gathered), ``outcomes`` (how many settled jobs are
            ``ok`` or failed, by kind), ``num_workers``, and what the method adds: see its class.
        """
        settled = self._tally.outcomes.total()
        jobs = {
            "submitted": self.num_jobs_submitted,
            "settled": settled,
            "unsettled": max(0, self.num_jobs_submitted - settled),
            "gathered": self.num_jobs_gathered,
        }
        outcomes = dict(self._tally.outcomes)
        return {"jobs": jobs, "outcomes": outcomes, "num_workers": self.num_workers, **self._backend_stats()}

    def _stop_if_broken(self) -> None:
        if self._tally.broken is not None:
            self.close()
            failed = self._to_raise or [job for job in self._to_record if job.failure is not None]
            self._tally.raise_broken(failed[0].failure if failed else None)

    def _on_done(self, job: Job) -> None:
        """Record a settled job, once."""
        if job.status is JobStatus.DONE:
            return
        if job.failure is not None:
            job.output["objective"] = self.FAIL_RETURN_VALUE
            log_failure(job.id, job.failure)
        metadata = job.metadata
        metadata["timestamp_gather"] = time.monotonic() - self._created_at
        self._record(job)
        self.job_id_gathered.append(job.id)
        self.jobs_done.append(job)
        self.num_jobs_gathered += 1
        job.status = JobStatus.DONE
        if self._callbacks:
            self._notifier.notify(self._callbacks, "on_done", job)
            self._notifier.notify(self._callbacks, "on_gather", job)

    def close(self) -> None:
        """End everything that runs. Bounded, and free to be called again.

        Jobs that are not finished settle as ``cancelled`` and can still be gathered. In a durable storage those that
        are not gathered stay open, for `resume`.

        Raises:
            StorageError: outcomes could not be stored; everything is closed all the same.
        """
        with self._submitting:
            self._closed = True
            if self._stopped:
                return
            self._stop()
            self._stopped = True
        self._notifier.notify(self._callbacks, "on_close")
        if self._keeper is not None:
            self._keeper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.num_workers} worker(s), {len(self.jobs)} job(s)>"

    def to_json(self) -> dict[str, Any]:
        """Describe the evaluator by what JSON can hold."""
        return {"type": type(self).__name__, "num_workers": self.num_workers}
