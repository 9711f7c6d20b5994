"""``method="thread"``: several jobs at a time, in daemon threads of the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robust_eval.evaluators.local import LocalEvaluator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from robust_eval.evaluators.base import OnError
    from robust_eval.storage.base import Storage


class ThreadPoolEvaluator(LocalEvaluator):
    """Several jobs at a time in daemon threads of the driver: for functions that wait or release the GIL.

    Exceptions of the run function, exits included, are isolated; a hang or a crash is not: for that
    there is ``method="process"``.

    Args:
        run_function: what is evaluated; called with a `robust_eval.job.RunningJob`.
        num_workers: how many jobs run at once.
        callbacks: told about each job as it is submitted and gathered.
        run_function_kwargs: keyword arguments of every call.
        storage: where the jobs are kept, a `Storage` or its URL; by default a new `MemoryStorage`.
        search_id: a search of that storage to go on with; by default a new one.
        on_error: ``"return"`` failed jobs like others, or ``"raise"`` the first one in ``gather``.
        max_retries: how often a job that failed is tried again.
        retry_on: the kinds of failure for which it is; by default all that another try may cure.
        max_failure_rate: the share of failed jobs over which the search is stopped; see `Evaluator`.
        max_consecutive_failures: how many failed jobs in a row stop it.
        max_attempts: in how many drivers that died a job may have been running; see `Evaluator`.
        **unsupported: taken only to be refused with the reason.

    Raises:
        UnsupportedLimit: a limit was asked for that only ``method="process"`` can enforce.
    """

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
        **unsupported: Any,
    ) -> None:
        super().__init__(
            run_function,
            threads=None,
            unsupported=unsupported,
            num_workers=num_workers,
            callbacks=callbacks,
            run_function_kwargs=run_function_kwargs,
            storage=storage,
            search_id=search_id,
            on_error=on_error,
            max_retries=max_retries,
            retry_on=retry_on,
            max_failure_rate=max_failure_rate,
            max_consecutive_failures=max_consecutive_failures,
            max_attempts=max_attempts,
        )
