"""What users put around their run functions and evaluators: `profile` and `queued`."""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import InvalidArgument
from robust_eval.limits import parse_count, parse_memory, parse_seconds
from robust_eval.memory_watch import MemoryWatch
from robust_eval.objective import standardize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_NO_LIMIT: Final = -1  # DeepHyper's


def profile(
    run_function: Callable[..., Any] | None = None,
    *,
    memory: bool = False,
    memory_limit: float | str | None = None,
    memory_tracing_interval: float = 0.1,
) -> Callable[..., Any]:
    """Give a run function that also reports when it began and ended, and how much memory it took.

    Used as ``@profile`` or ``@profile(memory=True)``. The output becomes a dict whose metadata has
    ``timestamp_start`` and ``timestamp_end`` (seconds since the epoch), and with ``memory`` the peak of its process
    tree in bytes, before the run function's own keys.

    Args:
        run_function: plain or ``async def``.
        memory: whether the memory is measured. ``method="process"`` does that by itself: ``m:peak_memory``.
        memory_limit: bytes, or a size such as ``"2GiB"``: over it `MemoryError` is raised in the run function, so that
            the job fails as ``memory``. Python code is interrupted by that, code in C ends first. Only the evaluator's
            ``memory_limit`` really kills. As in DeepHyper, -1 is no limit.
        memory_tracing_interval: seconds between two looks at the memory.

    Raises:
        InvalidArgument: a value is not allowed, or a limit is set for an ``async def``, which cannot be interrupted
            without the others on its loop.
    """
    limit = None if memory_limit == _NO_LIMIT else parse_memory(memory_limit, num_workers=1)
    interval_s = parse_seconds("memory_tracing_interval", memory_tracing_interval) or 0.1
    watching = memory or limit is not None

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(job: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            started = time.time()
            if not watching:
                return _profiled(function(job, *args, **kwargs), started)
            with MemoryWatch(limit, interval_s) as watch:
                output = function(job, *args, **kwargs)
            return _profiled(output, started, memory=watch.peak_bytes)

        @functools.wraps(function)
        async def async_wrapper(job: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            started = time.time()
            if not watching:
                return _profiled(await function(job, *args, **kwargs), started)
            with MemoryWatch(None, interval_s) as watch:
                output = await function(job, *args, **kwargs)
            return _profiled(output, started, memory=watch.peak_bytes)

        if not inspect.iscoroutinefunction(function):
            return wrapper
        if limit is not None:
            raise InvalidArgument(
                f"memory_limit={memory_limit!r} cannot interrupt {function.__qualname__}, an async def. "
                'Use memory_limit of Evaluator.create(..., method="process").'
            )
        return async_wrapper

    return decorate if run_function is None else decorate(run_function)


def _profiled(output: Any, started: float, **measured: Any) -> dict[str, Any]:
    ended = time.time()
    objective, metadata, observations = standardize(output)
    metadata = {"timestamp_start": started, "timestamp_end": ended, **measured, **metadata}
    result = {"objective": objective, "metadata": metadata}
    return result if observations is None else {**result, "observations": observations}


def queued(evaluator_class: type[Any]) -> type[Any]:
    """Give an evaluator class that lends each job resources from a queue.

    The run function receives them as ``dequed=[...]``, the job keeps them as ``job.dequed``, and they go
    back to the end of the queue however the job ends. A job for which there are not enough waits.

    The class takes two arguments more: ``queue``, the resources, and ``queue_pop_per_task``, how many
    each job gets (1).

    Args:
        evaluator_class: any class of evaluators.

    Returns:
        A subclass of it. Making one raises `InvalidArgument` where ``queue_pop_per_task`` is more than there are
        resources in ``queue``.
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
