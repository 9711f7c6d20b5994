"""The book of a backend that cannot kill: every job that it took is settled exactly once.

A job is waiting, then running, then settled. Whoever settles first wins: the thread that ran it, the
search's budget, or ``close()``. What nobody can stop runs on, but its job is settled without it
(``abandoned``) and what it still reports is ignored.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import InvalidArgument, bounded_repr
from robust_eval.failure import FAILURE_KINDS, Failure, FailureKind
from robust_eval.limits import parse_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from robust_eval.job import Job

RETRIED_BY_DEFAULT: Final[tuple[FailureKind, ...]] = (
    "timeout",
    "memory",
    "crash",
    "exception",
    "lost",
)


@dataclass(frozen=True, slots=True)
class Retries:
    """Which failures are tried again, and how often.

    Attributes:
        limit: how often one job is tried again.
        kinds: the kinds of failure that are.
    """

    limit: int = 0
    kinds: frozenset[str] = frozenset(RETRIED_BY_DEFAULT)

    @classmethod
    def parse(cls, max_retries: Any, retry_on: Any) -> Retries:
        """Check the arguments ``max_retries`` and ``retry_on`` (``None``, a kind, or several)."""
        kinds = RETRIED_BY_DEFAULT if retry_on is None else retry_on
        kinds = frozenset((kinds,) if isinstance(kinds, str) else kinds)
        if unknown := kinds - frozenset(FAILURE_KINDS):
            raise InvalidArgument(
                f"retry_on={bounded_repr(retry_on)} names {sorted(map(str, unknown))}. "
                f"Allowed are kinds of failure: {', '.join(FAILURE_KINDS)}."
            )
        return cls(parse_count("max_retries", max_retries, minimum=0), kinds)

    def again(self, failure: Failure) -> bool:
        """Tell whether a job with this failure is tried once more."""
        return failure.attempts <= self.limit and failure.kind in self.kinds


class Work:
    """One job in the book, and what its next attempt needs."""

    __slots__ = ("began_at", "cancel", "job", "kwargs", "settled", "stopper", "storage")

    def __init__(self, job: Job, kwargs: Mapping[str, Any], storage: Any = None, stopper: Any = None) -> None:
        self.job = job
        self.kwargs = kwargs
        self.storage = storage
        self.stopper = stopper
        self.began_at: float | None = None
        self.settled = False
        self.cancel: Callable[[], object] | None = None

    def call(self) -> Any:
        """Call the run function, once."""
        running = self.job.create_running_job(
            self.storage, self.stopper, recorder=self._record, stop_requested=self._is_settled
        )
        return self.job.run_function(running, **self.kwargs)  # type: ignore[misc]  # None only in foreign jobs

    def _record(self, budget: float, objective: Any) -> None:
        if not self.settled:
            self.job.recorded.append((budget, objective))

    def _is_settled(self) -> bool:
        return self.settled

    @property
    def duration(self) -> float | None:
        """Seconds since the job began, ``None`` before."""
        return None if self.began_at is None else time.monotonic() - self.began_at


class Ledger:
    """All jobs that a backend has taken and not settled.

    Args:
        deliver: called with each job as it settles, from any thread.
        elsewhere: for jobs that run in a backend which can end them: says of a job that it does so
            now, and that the backend will settle it when the budget runs out. ``None`` for jobs that
            run here and can only be abandoned.
        begun: told of each job before it begins.
    """

    def __init__(
        self,
        deliver: Callable[[Job], None],
        *,
        elsewhere: Callable[[Job], bool] | None = None,
        begun: Callable[[Job], None] | None = None,
    ) -> None:
        self._deliver = deliver
        self._begun = begun
        self._elsewhere = elsewhere
        self._lock = threading.Lock()
        self._open: dict[int, Work] = {}
        self._deadline_at: float | None = None
        self._alarm: threading.Timer | None = None

    def admit(self, works: Iterable[Work]) -> None:
        """Take jobs; each will be settled once from now on."""
        with self._lock:
            self._open.update((id(work), work) for work in works)
        self._spend()

    def begin(self, work: Work) -> bool:
        """Say that a job begins now; false when it must not, because it is settled already."""
        self._spend()
        with self._lock:
            if not work.settled:
                work.began_at = time.monotonic()
            begins = not work.settled
        if begins and self._begun is not None:
            self._begun(work.job)
        return begins

    def deliver(self, work: Work, apply: Callable[[Job], None]) -> None:
        """Settle a job, unless somebody else has: ``apply`` writes the outcome on it."""
        if self._claim(work):
            try:
                apply(work.job)
            finally:
                # Whatever happens here, a job that was claimed arrives.
                self._deliver(work.job)

    def _claim(self, work: Work) -> bool:
        with self._lock:
            if work.settled:
                return False
            work.settled = True
            del self._open[id(work)]
            return True

    def set_budget(self, seconds: float | None) -> None:
        """Settle everything once this much time is over; ``None`` for no such time."""
        with self._lock:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            self._deadline_at = None if seconds is None else time.monotonic() + seconds
            if seconds is not None:
                self._alarm = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._spend)
                self._alarm.name, self._alarm.daemon = "robust_eval-budget", True
                self._alarm.start()

    def close(self, message: str) -> None:
        """Settle everything now, as ``cancelled``; the message is completed by when it hit the job."""
        self.set_budget(None)
        for work in self._works():
            self._give_up(work, "cancelled", message)

    def _works(self) -> list[Work]:
        with self._lock:
            return list(self._open.values())

    def _is_spent(self) -> bool:
        deadline_at = self._deadline_at
        return deadline_at is not None and time.monotonic() >= deadline_at

    def _spend(self) -> None:
        """Give up what is open, if the budget is spent."""
        with self._lock:
            # In one step: a budget that was changed a moment ago has an alarm of its own, and jobs of its own.
            spent = list(self._open.values()) if self._is_spent() else ()
        for work in spent:
            if work.began_at is not None and self._elsewhere is not None and self._elsewhere(work.job):
                continue
            kind: FailureKind = "timeout" if self._elsewhere is None else "cancelled"
            self._give_up(work, kind, "The search's budget ran out")

    def _give_up(self, work: Work, kind: FailureKind, message: str) -> None:
        if not self._claim(work):
            return
        began = work.began_at is not None  # final now: a job that is settled cannot begin
        failure = Failure(
            kind if began else "cancelled",
            f"{message} {'while the job ran' if began else 'before the job began'}.",
            attempts=int(began),
            duration=work.duration,
            abandoned=began and self._elsewhere is None,
        )
        work.job.fail(failure)
        self._deliver(work.job)
        if work.cancel is not None:
            work.cancel()
