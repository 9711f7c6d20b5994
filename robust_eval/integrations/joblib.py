"""joblib: a backend for `parallel_config("robust_eval")`, and so for the `n_jobs` of scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib import register_parallel_backend
from joblib.parallel import ParallelBackendBase

from robust_eval.errors import InvalidArgument
from robust_eval.executor import RobustExecutor, usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future


class RobustBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib ships no types
    """Runs the tasks of `joblib.Parallel` in supervised processes.

    A task that fails raises out of `Parallel` as itself: `JobTimeout`, `JobMemoryExceeded`, `JobCrashed`, or the
    exception of the function. Each task has limits of its own: joblib batches none of them.

    Args:
        nesting_level: as joblib has it.
        inner_max_num_threads: the most threads that libraries in a worker use, as for joblib's own backends.
        **options: those of `RobustExecutor`, such as ``job_timeout`` and ``memory_limit``.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = options
        self._executor: RobustExecutor | None = None
        self._n_jobs = 0

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_options: Any) -> int:
        """Make the pool; it is kept for the next `Parallel` under the same configuration."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if self._executor is None or n_jobs != self._n_jobs:
            self.close()
            environment = self._prepare_worker_env(n_jobs=n_jobs)
            self._executor = RobustExecutor(n_jobs, worker_env=environment, **self._options)
            self._n_jobs = n_jobs
        self.parallel = parallel
        return n_jobs

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks run at once: negative numbers count from that of the CPUs, as everywhere in joblib."""
        if n_jobs == 0:
            raise InvalidArgument("n_jobs=0 would run nothing. Allowed are whole numbers from 1, and below 0.")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(usable_cpus() + 1 + n_jobs, 1)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Have one task run."""
        if self._executor is None:
            self.configure(self.parallel.n_jobs, self.parallel)
        future: Future[Any] = self._executor.submit(func)  # type: ignore[union-attr]
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The result of a task, called back with its future."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - joblib's signature
        """End what runs, now."""
        if self._executor is not None:
            self._executor.kill_workers()
            self._executor = None
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)

    def close(self) -> None:
        """End the processes. A backend that is dropped does so by itself."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


def register() -> None:
    """Make ``"robust_eval"`` a backend that `joblib.parallel_config` knows."""
    register_parallel_backend("robust_eval", RobustBackend)
