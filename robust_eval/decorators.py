"""What users put around their run functions and evaluators: `profile` and `queued`."""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
import time
from typing import TYPE_CHECKING, Any

from robust_eval.errors import InvalidArgument
from robust_eval.limits import parse_count
from robust_eval.objective import standardize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def profile(run_function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a run function that also reports when it began and ended.

    The output becomes a dict whose metadata has ``timestamp_start`` and ``timestamp_end`` (seconds since
    the epoch) before the run function's own keys.

    Args:
        run_function: plain or ``async def``.
    """

    def profiled(output: Any, started: float) -> dict[str, Any]:
        ended = time.time()
        objective, metadata, observations = standardize(output)
        metadata = {"timestamp_start": started, "timestamp_end": ended, **metadata}
        result = {"objective": objective, "metadata": metadata}
        return result if observations is None else {**result, "observations": observations}

    @functools.wraps(run_function)
    def wrapper(job: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        started = time.time()
        return profiled(run_function(job, *args, **kwargs), started)

    @functools.wraps(run_function)
    async def async_wrapper(job: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        started = time.time()
        return profiled(await run_function(job, *args, **kwargs), started)

    return async_wrapper if inspect.iscoroutinefunction(run_function) else wrapper


def queued(evaluator_class: type[Any]) -> type[Any]:
    """Give an evaluator class that lends each job resources from a queue.

    The run function receives them as ``dequed=[...]``, the job keeps them as ``job.dequed``, and they go
    back to the end of the queue however the job ends. A job for which there are not enough waits.

    The class takes two arguments more: ``queue``, the resources, and ``queue_pop_per_task``, how many
    each job gets (1).

    Args:
        evaluator_class: any class of evaluators.
    """

    def __init__(  # noqa: N807  becomes a method
        self: Any,
        *args: Any,
        queue: Iterable[Any],
        queue_pop_per_task: int = 1,
        **kwargs: Any,
    ) -> None:
        resources = collections.deque(queue)
        each = parse_count("queue_pop_per_task", queue_pop_per_task, minimum=0)
        if each > len(resources):
            raise InvalidArgument(
                f"queue_pop_per_task={each} is more than the {len(resources)} resources in the queue: "
                "every job would wait for ever. Add resources or take fewer."
            )
        self.queue, self.queue_pop_per_task = resources, each
        self._returned = asyncio.Event()
        evaluator_class.__init__(self, *args, **kwargs)

    async def execute(self: Any, job: Any) -> Any:
        # Runs on the evaluator's own loop, one step at a time: the queue needs no lock.
        while len(self.queue) < self.queue_pop_per_task:
            self._returned.clear()
            await self._returned.wait()
        dequed = [self.queue.popleft() for _ in range(self.queue_pop_per_task)]
        job.dequed = dequed
        job.run_kwargs = {**(job.run_kwargs or {}), "dequed": dequed}
        try:
            return await evaluator_class.execute(self, job)
        finally:
            self.queue.extend(dequed)
            self._returned.set()

    body = {
        "__init__": __init__,
        "execute": execute,
        "__doc__": f"{evaluator_class.__name__} whose jobs borrow resources from a queue.",
        "__module__": evaluator_class.__module__,
    }
    return type(f"Queued{evaluator_class.__name__}", (evaluator_class,), body)
