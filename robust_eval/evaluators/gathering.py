"""From arrivals to batches: takes what is settled, records it once, and loses nothing on the way.

A gather can be left at any point (Ctrl-C, an exception from a callback): what it had taken stays here,
in the order of its stages, and the next gather goes on from there.

    arrived  taken out of the inbox, not yet turned into jobs
    settled  jobs, not yet recorded (failed ones apart where ``on_error="raise"``)
    batch    recorded, not yet returned
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from robust_eval.errors import InternalError, InvalidArgument, RobustEvalError, bounded_repr
from robust_eval.limits import parse_count

if TYPE_CHECKING:
    from robust_eval.evaluators.notify import Notifier
    from robust_eval.job import Job


class Gathering:
    """The gathering half of an evaluator.

    Args:
        notifier: calls the callbacks.
        on_error: ``"return"`` or ``"raise"``.
    """

    jobs: list[Job]

    def __init__(self, notifier: Notifier, on_error: str) -> None:
        self.jobs_done: list[Job] = []
        self.job_id_gathered: list[str] = []
        self.num_jobs_submitted = 0
        self.num_jobs_skipped = 0
        self.num_jobs_gathered = 0
        self._has_resumed = False
        self.on_error = on_error
        self._notifier = notifier
        self._gathering = threading.Lock()
        self._uncounted: dict[str, Job] = {}
        self._arrived: deque[Any] = deque()
        self._to_record: deque[Job] = deque()
        self._to_raise: deque[Job] = deque()
        self._batch: deque[Job] = deque()

    def _settled(self, item: Any) -> Job:
        raise NotImplementedError

    def _on_done(self, job: Job) -> None:
        raise NotImplementedError

    def _stop_if_broken(self) -> None:
        raise NotImplementedError

    def _refuse_second(self, mine: list[bool]) -> None:
        """Refuse a gather that did not get the lock: two would wait for each other's jobs for ever.

        The lock is taken and given back by C code within the caller's own `try`: a signal handler of the user's that
        raises between the two would leave it taken for ever, had it got into a `with` or a call in between.
        """
        if not mine:
            raise RobustEvalError("Another gather of this evaluator is waiting. Gather from one place at a time.")

    def _outstanding(self) -> int:
        return max(0, self.num_jobs_submitted - self.num_jobs_gathered)

    def _wanted(self, type: str, size: int) -> int:  # noqa: A002  DeepHyper's name
        """Give how many jobs must be settled before the gather ends."""
        if type not in ("ALL", "BATCH"):
            raise InvalidArgument(f'gather type {bounded_repr(type)} is unknown. Choose "ALL" or "BATCH".')
        outstanding = self._outstanding()
        if not (self.num_jobs_submitted or self.num_jobs_skipped or self._has_resumed or self._uncounted):
            raise InvalidArgument("No jobs pending: nothing was submitted. Call submit(configs).")
        if type == "ALL":
            return outstanding
        count = parse_count("size", size, minimum=0)
        available = outstanding + len(self._batch)
        if count > available:
            warnings.warn(
                f"gather size={count} is more than the {available} jobs submitted and not gathered; waiting for these.",
                UserWarning,
                stacklevel=3,
            )
        return max(0, min(count, available) - len(self._batch))

    def _missing(self, wanted: int) -> int:
        return wanted - len(self._to_record) - len(self._to_raise)

    def _turn_into_jobs(self) -> None:
        """Take in what has arrived."""
        while self._arrived:
            job = self._settled(self._arrived[0])
            if self._uncounted and self._uncounted.pop(job.id, None) is job:
                self.jobs.append(job)
                self.num_jobs_submitted += 1
            raises = job.failure is not None and self.on_error == "raise"
            stage = self._to_raise if raises else self._to_record
            # The same job again: an interrupt came between these two lines the last time.
            if not stage or stage[-1] is not job:
                stage.append(job)
            self._arrived.popleft()
        self._stop_if_broken()

    def _collected(self) -> list[Job]:
        """Record what is settled and give it, or raise."""
        if self._to_raise:
            self._raise_first()
        while self._to_record:
            job = self._to_record[0]
            self._on_done(job)
            if not self._batch or self._batch[-1] is not job:
                self._batch.append(job)
            self._to_record.popleft()
        self._notifier.raise_stop()
        batch = list(self._batch)
        self._batch.clear()
        return batch

    def _raise_first(self) -> NoReturn:
        job = self._to_raise[0]
        self._on_done(job)
        self._to_raise.popleft()
        if job.failure is None:
            raise InternalError(f"Job {job.id} had failed and lost its failure.")
        error = job.failure.to_exception()
        raise error from error.__cause__
