"""The runner of an evaluator: what a worker does with one configuration."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol

from robust_eval.job import RunningJob
from robust_eval.objective import Standard, standardize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from robust_eval.storage.base import Storage

    Arguments = tuple[str, dict[str, Any], Mapping[str, Any] | None, Any]


class Context(Protocol):
    """What a worker offers to the job that it runs."""

    def record(self, value: Any) -> None:
        """Send an intermediate value to the driver now."""

    def stop_requested(self) -> bool:
        """Whether the job was asked to stop."""


class Evaluation:
    """Calls the run function with a `RunningJob` and brings what it returns to the standard form.

    Args:
        run_function: the user's; an `async def` is run to its end on a loop of its own.
        kwargs: keyword arguments of every call.
        storage: what the run function finds as `job.storage`; by default one of its own, in memory.
    """

    def __init__(
        self, run_function: Callable[..., Any], kwargs: Mapping[str, Any], storage: Storage | None = None
    ) -> None:
        self.storage = storage
        self.run_function = run_function
        self.kwargs = dict(kwargs)

    def __call__(self, arguments: Arguments, context: Context) -> Standard:
        """Evaluate one configuration.

        Args:
            arguments: the job's id, its configuration, its own keyword arguments or None, its stopper or None.
            context: the worker.

        Returns:
            Objective, metadata, observations.
        """
        job_id, config, own_kwargs, stopper = arguments

        def record(budget: float, objective: Any) -> None:
            context.record((budget, objective))

        running = RunningJob(job_id, config, self.storage, stopper, record, context.stop_requested)
        if stopper is not None and hasattr(stopper, "job"):
            stopper.job = running
        kwargs = self.kwargs if own_kwargs is None else {**self.kwargs, **own_kwargs}
        output = self.run_function(running, **kwargs)
        if isinstance(output, CoroutineType):
            import asyncio  # 30 ms, which only those who need it wait for

            output = asyncio.run(output)
        return standardize(output)


class NoContext:
    """For an evaluation outside of any search: what is recorded is dropped."""

    def record(self, value: Any) -> None:
        """Drop it."""

    def stop_requested(self) -> bool:
        """Never."""
        return False


class Alone:
    """Evaluates configurations outside of any search, with the run function that the worker was started with."""

    evaluation: Evaluation

    @classmethod
    def prepare(
        cls, run_function: Callable[..., Any], kwargs: Mapping[str, Any] | None = None, authkey: bytes | None = None
    ) -> None:
        """Be given the run function and keyword arguments of every call, once in each worker.

        Args:
            run_function: the user's.
            kwargs: of every call.
            authkey: of the driver, for proxies of `multiprocessing` among the arguments.
        """
        cls.evaluation = Evaluation(run_function, kwargs or {})
        if authkey is not None:
            import multiprocessing

            multiprocessing.current_process().authkey = authkey

    @classmethod
    def evaluate(
        cls, config: dict[str, Any], job_id: str = "0.0", stopper: Any = None, storage: Any = None
    ) -> Standard:
        """Evaluate one configuration."""
        cls.evaluation.storage = storage
        return cls.evaluation((job_id, config, None, stopper), NoContext())
