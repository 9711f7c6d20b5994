"""What evaluators share that run jobs inside the driver's own process.

They isolate exceptions and nothing else: a limit that would need a kill is refused when it is asked
for, never accepted in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import UnsupportedLimit, bounded_repr
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.lanes import CoroutineLane, ThreadLane, call_async, is_async
from robust_eval.evaluators.ledger import Ledger, Work
from robust_eval.evaluators.loop import LoopThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from robust_eval.job import Job

# The arguments of the process evaluator, which need processes of its own.
NEEDS_PROCESSES: Final = frozenset(
    {
        "grace_period",
        "initargs",
        "initializer",
        "job_timeout",
        "kill_timeout",
        "log_dir",
        "max_start_failures",
        "max_tasks_per_child",
        "memory_limit",
        "preload",
        "start_method",
        "start_timeout",
        "warm_spare",
        "worker_env",
        "worker_seed",
    }
)


class LocalEvaluator(Evaluator):
    """An evaluator whose jobs run in threads or on a loop of this process.

    Args:
        run_function: what is evaluated; ``async def`` functions run concurrently on one loop.
        threads: how many plain functions run at once.
        unsupported: arguments that the method's class does not name; each is refused.
        **common: the arguments of `Evaluator`.

    Raises:
        UnsupportedLimit: a limit was asked for that only ``method="process"`` can enforce.
        TypeError: an argument is not known at all.
    """

    def __init__(
        self,
        run_function: Callable[..., Any],
        *,
        threads: int | None,
        unsupported: Mapping[str, Any],
        **common: Any,
    ) -> None:
        self._check_options(unsupported)
        super().__init__(run_function, **common)
        self._ledger = Ledger(self._arrivals.put, begun=None if self._keeper is None else self._keeper.note_begin)
        self._loop = LoopThread("robust_eval-async")
        lane = (self.num_workers if threads is None else threads, self._ledger, self._loop)
        self._threads = ThreadLane(*lane, self._retries)
        self._coroutines = CoroutineLane(self.num_workers, self._ledger, self._loop, self._retries, call_async)
        self._on_drop(_close, self._ledger, self._threads, self._loop)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        known = {name: options[name] for name in options if name in NEEDS_PROCESSES}
        super()._check_options({name: options[name] for name in options if name not in known})
        for name, value in known.items():
            if value is not None:
                raise UnsupportedLimit(
                    f"{type(self).__name__} cannot honour {name}={bounded_repr(value)}: it runs jobs "
                    f'inside your own process, where nothing can be killed. Use method="process".'
                )

    def _begin(self, jobs: list[Job], **_options: Any) -> None:
        shared = self.run_function_kwargs
        works = [
            Work(
                job,
                shared if job.run_kwargs is None else {**shared, **job.run_kwargs},
                self._storage,
                self._stopper,
            )
            for job in jobs
        ]
        self._ledger.admit(works)
        lane = self._coroutines if is_async(self.run_function) else self._threads
        lane.run(works)

    def _budget_changed(self) -> None:
        self._ledger.set_budget(self.time_left)

    def _shutdown(self) -> None:
        _close(self._ledger, self._threads, self._loop)


def _close(ledger: Ledger, threads: ThreadLane, loop: LoopThread) -> None:
    ledger.close("The evaluator was closed")
    threads.close()
    loop.close()
