"""Runs the ``execute`` coroutines of subclasses that override it, on an event loop of our own.

Each job is one coroutine, at most ``num_workers`` of them at once. ``await super().execute(job)`` inside
of one hands the job to the class's own backend, and a router brings it back to its coroutine.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from robust_eval.errors import InvalidOutput, RobustEvalError, bounded_repr
from robust_eval.evaluators.lanes import CoroutineLane
from robust_eval.evaluators.ledger import Ledger, Retries, Work
from robust_eval.evaluators.loop import LoopThread
from robust_eval.job import Job
from robust_eval.objective import standardize

if TYPE_CHECKING:
    from collections.abc import Callable

    from robust_eval.evaluators.arrivals import Arrivals, Mailbox


class Executing(Protocol):
    """What is needed of the evaluator."""

    _arrivals: Arrivals

    async def execute(self, job: Job) -> Job:
        """Run one job."""

    def _settle(self, item: Any) -> Job:
        """Turn what arrived into its settled job."""


class OverriddenExecutes:
    """The coroutines of one evaluator.

    Args:
        backend: the evaluator; held weakly, so that one that is dropped can close itself.
        width: how many jobs are executed at once.
        retries: which failures are tried again, where no backend does that itself.
        finished: where jobs are put once their coroutine is done with them.
        has_backend: whether the evaluator's class has a backend of its own.
        begun: told of each job before it begins, where there is no backend.
    """

    def __init__(
        self,
        backend: Executing,
        width: int,
        retries: Retries,
        finished: Mailbox,
        *,
        has_backend: bool,
        begun: Callable[[Job], None] | None = None,
    ) -> None:
        self.finished = finished
        self._backend = weakref.ref(backend)
        self._returns: dict[str, asyncio.Future[Job]] = {}
        self._in_backend: set[str] = set()
        self._router: asyncio.Task[None] | None = None
        self._loop = LoopThread("robust_eval-execute")
        self._ledger = Ledger(
            finished.put,
            elsewhere=self._is_elsewhere if has_backend else None,
            begun=None if has_backend else begun,
        )
        retries = Retries() if has_backend else retries
        self._lane = CoroutineLane(width, self._ledger, self._loop, retries, self._attempt)

    def run(self, jobs: list[Job]) -> None:
        """Execute jobs."""
        works = [Work(job, {}) for job in jobs]
        self._ledger.admit(works)
        self._lane.run(works)

    def set_budget(self, seconds: float | None) -> None:
        """Take over the search's budget."""
        self._ledger.set_budget(seconds)

    def settle_all(self) -> None:
        """Settle what is not settled, as ``cancelled``."""
        self._ledger.close("The evaluator was closed")

    def close(self) -> None:
        """Settle what is not settled and end the loop."""
        self.settle_all()
        self._loop.close()

    def _is_elsewhere(self, job: Job) -> bool:
        return job.id in self._in_backend

    async def _attempt(self, work: Work) -> Callable[[Job], None]:
        backend = self._backend()
        if backend is None:
            raise asyncio.CancelledError("the evaluator was dropped")
        try:
            returned = await backend.execute(work.job)
        finally:
            # Until here: what came back in time counts, also when the budget runs out meanwhile.
            self._in_backend.discard(work.job.id)
        return _outcome_of(returned)

    async def through_backend(self, job: Job, begin: Callable[[Job], None]) -> Job:
        """Hand a job to the backend and wait until it is settled there.

        Args:
            job: what is to be run.
            begin: hands it over.

        Returns:
            The job, with its output or its failure.

        Raises:
            RobustEvalError: called from elsewhere than an ``execute`` that the evaluator runs.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop.loop:
            raise RobustEvalError(
                "execute() is called by the evaluator, on its own event loop. "
                "Use submit() and gather(), or await agather()."
            )
        job.failure = None
        self._in_backend.add(job.id)
        self._returns[job.id] = future = loop.create_future()
        try:
            begin(job)
            if self._router is None:
                self._router = loop.create_task(self._route())
            returned: Job = await future
        finally:
            self._returns.pop(job.id, None)
        return returned

    async def _route(self) -> None:
        try:
            while self._returns and (backend := self._backend()) is not None:
                arrived: deque[Any] = deque()
                await backend._arrivals.take_async(1, None, arrived)  # noqa: SLF001  our own
                for item in arrived:
                    job = backend._settle(item)  # noqa: SLF001  our own
                    future = self._returns.pop(job.id, None)
                    if future is not None and not future.done():
                        future.set_result(job)
        except Exception as error:
            # Nobody may wait for ever because of it.
            for future in self._returns.values():
                future.set_exception(error)
            raise
        finally:
            self._router = None


def _outcome_of(returned: Any) -> Callable[[Job], None]:
    """Check what an ``execute`` returned, and give what writes it on the job."""
    if not isinstance(returned, Job):
        shown = bounded_repr(returned)
        raise InvalidOutput(f"execute() returned {shown}. It must return the job.", shown)
    if returned.failure is None:
        _check_output(returned)

    def apply(job: Job) -> None:
        if returned is not job:
            job.output, job.failure = returned.output, returned.failure
            job.observations = returned.observations
            job.__dict__.update(returned.__dict__)

    return apply


def _check_output(job: Job) -> None:
    output = job.output
    if not isinstance(output, dict) or not {"objective", "metadata"} <= output.keys():
        shown = bounded_repr(output)
        raise InvalidOutput(
            f'execute() left {shown} as the output of the job, not a dict of "objective" and '
            f'"metadata". Call job.set_output(output).',
            shown,
        )
    output["objective"], _, _ = standardize({"objective": output["objective"]})
