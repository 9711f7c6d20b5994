"""Jobs as the driver's end of a pool has them: what was submitted, what settled, and what a dead supervisor leaves.

Every payload is kept until its outcome is here. The ledger is one byte a job, which the workers write as they begin:
it outlives any supervisor, so that a new one gets what had not begun, and only what had begun is `lost`.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from mmap import mmap
from typing import Any, NamedTuple, TypeAlias

from robust_eval.errors import RobustEvalError
from robust_eval.processes import system
from robust_eval.processes.layout import LEDGER_BYTES, LEDGER_OVER
from robust_eval.processes.parcel import Landed, discard


class Submission(NamedTuple):
    """One job for the pool. `timeout_s` and `memory_limit` (bytes) are None for no limit, `log` is a path or None."""

    job_id: int
    parcel: Landed
    timeout_s: float | None = None
    memory_limit: int | None = None
    attempts: int = 0
    log: str | None = None


_PARCEL = Submission._fields.index("parcel")
# The same as a plain tuple: the interpreter's collector does not go through a million of those again and again.
Row: TypeAlias = tuple[int, Landed, float | None, int | None, int, str | None]


class Done(NamedTuple):
    """A job that returned. Instants are monotonic seconds of this machine, peak and limit are in bytes.

    What it printed is not kept, or a driver would hold 64 KiB for each of a million good jobs.
    """

    job_id: int
    parcel: Landed
    begun_at: float
    ended_at: float
    attempts: int
    peak_memory: int
    slot: int | None = None
    memory_limit: int | None = None


class Failed(NamedTuple):
    """A job that failed.

    `info` is as `describe` gives it, `blamed` what the worker said and `late` what it returned too late, both empty
    where there is nothing.
    """

    job_id: int
    info: dict[str, Any]
    blamed: Landed = b""
    late: Landed = b""


Settled = Done | Failed


class Pending:
    """The jobs that have not settled.

    Args:
        policy: the pool's, for what is tried again.
        deliver: called with batches of settled jobs.

    Raises:
        RobustEvalError: the ledger cannot be made.
    """

    def __init__(self, policy: Mapping[str, Any], deliver: Callable[[list[Settled]], None]) -> None:
        self._policy = policy
        self._deliver = deliver
        with contextlib.ExitStack() as made:
            try:
                self.fd = system.memory_file(LEDGER_BYTES)
                made.callback(os.close, self.fd)
                self._ledger = mmap(self.fd, LEDGER_BYTES)
            except OSError as error:
                msg = (
                    f"a file in memory of {LEDGER_BYTES >> 20} MiB, nearly all of it empty, cannot be made "
                    f"({error.strerror}): raise the limit on the size of files (ulimit -f) or on open ones (ulimit -n)"
                )
                raise RobustEvalError(msg) from error
            made.pop_all()
        self.jobs: dict[int, Row] = {}

    def add(self, submissions: Iterable[Submission]) -> list[Row]:
        """They are the pool's now."""
        rows: list[Row] = [submission[:] for submission in submissions]
        self.jobs.update({row[0]: row for row in rows})
        return rows

    def keep(self, parcels: Mapping[int, Landed]) -> None:
        """Keep the payloads of these jobs otherwise than they came."""
        self.add([Submission(*self.jobs[job_id])._replace(parcel=parcel) for job_id, parcel in parcels.items()])

    def settle(self, outcomes: list[Settled]) -> None:
        """These have settled: forget their payloads and deliver them."""
        for outcome in outcomes:
            discard(self.jobs.pop(outcome.job_id)[_PARCEL])
        if outcomes:
            self._deliver(outcomes)

    def submissions(self) -> list[Submission]:
        """All of them."""
        return [Submission(*row) for row in self.jobs.values()]

    def after_a_death(self) -> tuple[list[Submission], list[Row]]:
        """What had begun and is not tried again, and what the next supervisor gets."""
        lost, waiting = [], []
        for submission in self.submissions():
            job_id = submission.job_id
            mark = self._ledger[job_id % LEDGER_BYTES]
            attempts = mark & ~LEDGER_OVER
            begun = mark != 0 and not mark & LEDGER_OVER
            again = "lost" in self._policy["retry_on"] and attempts <= self._policy["max_retries"]
            if begun and not again:
                lost.append(submission)
            else:
                self._ledger[job_id % LEDGER_BYTES] = attempts | LEDGER_OVER if attempts else 0
                waiting.append(submission._replace(attempts=attempts))
        return lost, self.add(waiting)

    def lose(self, submissions: list[Submission], detail: str, *, closing: bool) -> None:
        """Settle jobs whose supervisor is gone: `lost`, or `cancelled` if that was wanted and they had not begun."""
        self.settle([self._lost(submission, detail, closing=closing) for submission in submissions])

    def _lost(self, submission: Submission, detail: str, *, closing: bool) -> Failed:
        mark = self._ledger[submission.job_id % LEDGER_BYTES]
        cancelled = closing and mark == 0
        info: dict[str, Any] = {
            "kind": "cancelled" if cancelled else "lost",
            "cause": "closed" if cancelled else "supervisor",
            "attempts": mark & ~LEDGER_OVER,
            "memory_limit": submission.memory_limit,
            "unkilled_pids": [],
            "detail": detail,
        }
        return Failed(submission.job_id, info)

    def close(self) -> None:
        """Forget the ledger."""
        os.close(self.fd)
        self._ledger.close()
