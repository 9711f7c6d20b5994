"""`method="process"`: jobs run in supervised processes that a limit really kills."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from robust_eval.errors import ASKED_TO_END, InvalidArgument, InvalidArgumentType, bounded_repr
from robust_eval.evaluators.backend import Backend
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.ledger import Retries
from robust_eval.evaluators.lending import lend, lendable, settle_loans
from robust_eval.evaluators.settings import parse_environments, parse_start_method, policy_of, refuse_windows
from robust_eval.evaluators.settlement import Settling
from robust_eval.failure import Failure
from robust_eval.limits import parse_count, parse_memory, parse_seconds
from robust_eval.processes.blame import describe_error
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.evaluation import Evaluation
from robust_eval.processes.loading import sources
from robust_eval.processes.parcel import Memory, Parcel, pack
from robust_eval.processes.pending import Done, Failed, Submission
from robust_eval.processes.pool import Pool, PoolSettings
from robust_eval.processes.stream import MOST_DESCRIPTORS
from robust_eval.processes.wire import new_named

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from robust_eval.evaluators.base import OnError
    from robust_eval.job import Job
    from robust_eval.storage.base import Storage

_PER_JOB = ("job_timeout", "memory_limit")


class Workforce(Protocol):
    """What this evaluator needs of that which runs its jobs: one `Pool`, or many on other hosts."""

    def submit(self, submissions: list[Submission]) -> None:
        """Take jobs."""

    def set_budget(self, seconds: float | None) -> None:
        """Limit what runs and what waits."""

    def stats(self) -> dict[str, Any]:
        """Tell how it is doing."""

    def check_process(self) -> None:
        """Refuse to be used in a forked child of the driver."""

    def close(self) -> None:
        """End everything; bounded."""


class ProcessPoolEvaluator(Evaluator):
    """Evaluates configurations in a pool of supervised worker processes.

    Whatever the run function does - hang, also in C; crash; exhaust memory; leave processes behind - costs its own job
    alone: the job gets `FAIL_RETURN_VALUE` and a `failure` that says why, its worker is replaced, and nothing of its
    process tree is left when it settles.

    Args:
        run_function: called with a `RunningJob`; a function, lambda, partial, bound method or `async def`.
        num_workers: how many jobs run at once.
        callbacks: objects with any of the methods of `Callback`.
        run_function_kwargs: keyword arguments of every call.
        storage: where jobs are kept, a `Storage` or its URL; a `MemoryStorage` by default.
        search_id: an existing search of the storage, or None for a new one.
        job_timeout: seconds that a job may run, counted from its begin in the worker; None for no limit.
        memory_limit: what a job's process tree may take: bytes, `"2GiB"`, a share of this machine's (or container's)
            memory such as `0.5`, `"auto"` for that memory shared by the workers, or None for no limit.
        grace_period: seconds between the polite stop of a job that is over its time (`JobStop` is raised in the run
            function) and the kill; 0 for none.
        max_retries: further attempts for a job that failed.
        retry_on: the failure kinds that are tried again; those that may pass by themselves by default.
        max_failure_rate: the share of failed jobs over which the search is stopped; see `Evaluator`.
        max_consecutive_failures: how many failed jobs in a row stop it.
        max_attempts: in how many drivers that died a job may have been running; see `Evaluator`.
        on_error: `"return"` failed jobs like others, or `"raise"` the first failure in `gather`.
        initializer: called once in each worker before its first job.
        initargs: its arguments.
        max_tasks_per_child: jobs that a worker runs before it is replaced; 1 is a fresh process for each job.
        max_start_failures: start-ups that may fail in a row before all waiting jobs fail as `startup`.
        preload: modules to import once, before any worker is forked.
        worker_env: environment variables of the workers: one mapping, or one for each worker.
        start_method: `"fork"` from a clean template process (default), or `"spawn"`, a fresh interpreter each.
        worker_seed: seeds `random` and numpy in worker number i with `worker_seed + i`; by default each worker is
            seeded from the system.
        start_timeout: seconds that a worker may take to start, imports and initializer included.
        log_dir: a directory, made where it is missing, for one complete log of what each job printed, named
            `<job id>.log`; attempts of one job append to it.
        kill_timeout: seconds after SIGKILL until a process is given up and its job settles with `unkilled_pids`.

    Raises:
        InvalidArgument: a value is not allowed. Also a `ValueError`.
        RobustEvalError: on Windows, or where the run function cannot be pickled.
    """

    def __init__(  # noqa: PLR0917 - DeepHyper's signature
        self,
        run_function: Callable[..., Any],
        num_workers: int = 1,
        callbacks: Iterable[Any] | None = None,
        run_function_kwargs: Mapping[str, Any] | None = None,
        storage: Storage | str | None = None,
        search_id: str | None = None,
        *,
        job_timeout: float | None = None,
        memory_limit: float | str | None = None,
        grace_period: float = 0.0,
        max_retries: int = 0,
        retry_on: Iterable[str] | None = None,
        max_failure_rate: float | None = None,
        max_consecutive_failures: int | None = None,
        max_attempts: int = 3,
        on_error: OnError = "return",
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_tasks_per_child: int | None = None,
        max_start_failures: int = 3,
        preload: Iterable[str] = (),
        worker_env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
        start_method: str = "fork",
        worker_seed: int | None = None,
        start_timeout: float = 60.0,
        kill_timeout: float = 10.0,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        refuse_windows()
        # First of all: a search whose evaluator is refused is not made.
        workers = parse_count("num_workers", num_workers)
        policy = policy_of(
            workers,
            Retries.parse(max_retries, retry_on),
            grace_period=grace_period,
            max_tasks_per_child=max_tasks_per_child,
            max_start_failures=max_start_failures,
            start_timeout=start_timeout,
            kill_timeout=kill_timeout,
        )
        self._job_timeout = parse_seconds("job_timeout", job_timeout)
        self._memory_limit = parse_memory(memory_limit, num_workers=workers)
        self._log_dir = _directory(log_dir)
        super().__init__(
            run_function,
            num_workers,
            callbacks,
            run_function_kwargs,
            storage,
            search_id,
            on_error=on_error,
            max_retries=max_retries,
            retry_on=retry_on,
            max_failure_rate=max_failure_rate,
            max_consecutive_failures=max_consecutive_failures,
            max_attempts=max_attempts,
        )
        settings = PoolSettings(
            policy=policy if self._log_dir is None else {**policy, "max_depth": 1},
            python=self.PYTHON_EXE,
            start_method=parse_start_method(start_method),
            preload=tuple(preload),
            worker_env=parse_environments(worker_env),
            worker_seed=worker_seed,
            begun_log=None if self._keeper is None else str(self._keeper.begun_log),
        )
        self._engage(Bundle(self._runner(), initializer, tuple(initargs), sources()), settings)

    def _runner(self) -> Evaluation:
        # A storage that lasts is there for the jobs, too; that of memory is the driver's alone.
        shared = None if self._keeper is None else self._storage
        return Evaluation(self.run_function, self.run_function_kwargs, shared)

    def _engage(self, bundle: Bundle, settings: PoolSettings) -> None:
        self._settling = Settling(self._arrivals, settings.policy)
        self._next_number = 0
        self._pool = self._make_pool(_packed(bundle), settings)
        self._on_drop(self._pool.close)

    def _make_pool(self, bundle: Parcel, settings: PoolSettings) -> Workforce:
        """Start what runs the jobs."""
        return Pool(bundle, settings, self._arrivals.put_many, self._settling.record)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        super()._check_options({name: value for name, value in options.items() if name not in _PER_JOB})
        for name, value in options.items():
            if not callable(value):
                self._limit(name, value)

    def _limit(self, name: str, value: Any) -> Any:
        if name == "job_timeout":
            return parse_seconds("job_timeout", value)
        return parse_memory(value, num_workers=self.num_workers)

    def _limits_of(self, job: Job, options: Mapping[str, Any]) -> tuple[float | None, int | None]:
        limits: dict[str, Any] = {"job_timeout": self._job_timeout, "memory_limit": self._memory_limit}
        for name, value in options.items():
            limits[name] = self._limit(name, value(job.config) if callable(value) else value)
        return limits["job_timeout"], limits["memory_limit"]

    def _job_of(self, config: Mapping[str, Any]) -> Job:
        arrays = {} if self._is_overridden() else lendable(config)
        if arrays:
            without = {name: None if name in arrays else value for name, value in config.items()}
            return lend(super()._job_of(without), arrays)
        return super()._job_of(config)

    def _begin(self, jobs: list[Job], **options: Any) -> None:
        limits = [self._limits_of(job, options) for job in jobs] if options else None
        default = (self._job_timeout, self._memory_limit)
        submissions: list[Submission] = []
        files = 0
        for index, job in enumerate(jobs):
            number, self._next_number = self._next_number, self._next_number + 1
            timeout_s, memory_limit = default if limits is None else limits[index]
            try:
                parcel = pack((job.id, job.config, job.run_kwargs, self._stopper))
                settle_loans(job, parcel if job.run_kwargs is None and self._stopper is None else None)
            except ASKED_TO_END:
                raise
            except BaseException as error:  # noqa: BLE001 - the user's reductions raise anything
                message = f"the configuration of job {job.id} cannot be pickled: {describe_error(error)}"
                failure = Failure("unpicklable", message, attempts=0, exception_type=type(error).__qualname__)
                settle_loans(job, None)
                self._settling.refuse(number, job, failure)
            else:
                self._settling.expect(number, job)
                log = None if self._log_dir is None else str(self._log_dir / f"{job.id}.log")
                submissions.append(new_named(Submission, (number, parcel, timeout_s, memory_limit, 0, log)))
                files += isinstance(parcel, Memory)
                if files == MOST_DESCRIPTORS:  # else a thousand large jobs would take every descriptor there is
                    self._hand_over(submissions)
                    submissions, files = [], 0
        self._hand_over(submissions)

    def _hand_over(self, submissions: list[Submission]) -> None:
        if self._keeper is not None:
            self._keeper.expect(self._settling.ids(submission.job_id for submission in submissions))
        if submissions:
            self._pool.submit(submissions)

    def _settle(self, item: Any) -> Job:
        self._settling.created_at = self._created_at  # a resumed search counts from its own begin
        return self._settling.settle(item)

    @staticmethod
    def _kind_of(item: Any) -> str | None:
        if isinstance(item, Done):
            return None
        if isinstance(item, Failed):
            return str(item.info["kind"])
        return str(item[1].kind) if isinstance(item, tuple) else Backend._kind_of(item)  # noqa: SLF001 - our own

    def _backend_stats(self) -> dict[str, Any]:
        stats = self._pool.stats()
        for each in stats.get("running", ()):
            each["job"] = self._settling.job_id(each["job"])
        return stats

    def _check_process(self) -> None:
        self._pool.check_process()

    def _budget_changed(self) -> None:
        self._pool.set_budget(self._seconds_left())

    def _shutdown(self) -> None:
        self._pool.close()


def _packed(bundle: Bundle) -> Parcel:
    try:
        return pack(bundle)
    except Exception as error:
        function = bounded_repr(bundle.runner.run_function) if isinstance(bundle.runner, Evaluation) else "it"
        msg = (
            f"run_function={function} (or run_function_kwargs, initializer, initargs) cannot be pickled: {error}. "
            "Make what it refers to inside of it, or in the initializer."
        )
        raise InvalidArgumentType(msg) from error


def _directory(path: str | os.PathLike[str] | None) -> Path | None:
    """The directory as an absolute path, made where it is missing."""
    if path is None:
        return None
    try:
        directory = Path(path).resolve()
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError) as error:
        shown = bounded_repr(str(path) if isinstance(path, Path) else path)
        msg = f"log_dir={shown} cannot be made: {error}. Pass a directory that can be written."
        raise InvalidArgument(msg) from error
    return directory
