"""The jobs that have not settled: the queue, what may still begin, retries, and where they settle."""

from collections import deque
from typing import NamedTuple

from robust_eval.errors import InternalError
from robust_eval.supervision.actions import Action, Outcome, SettleJob
from robust_eval.supervision.events import JobSpec
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import JobRecord
from robust_eval.supervision.transitions import JobState


class Refusal(NamedTuple):
    """Why nothing more is begun: the failure of every job that still waits."""

    kind: str
    cause: str
    detail: object = None


_CANCELLED = Refusal("cancelled", "cancelled")
_WITHDRAWN = Refusal("cancelled", "withdrawn")


class JobBook:
    """Every job that was submitted and has not settled.

    A job that settles while it waits stays in the queue's deque and is skipped when its turn comes,
    so that cancelling one of a million costs no search; `queued` counts those that really wait.
    """

    def __init__(self, policy: Policy, actions: list[Action]) -> None:
        self._policy = policy
        self._actions = actions
        self.refusals: list[Refusal] = []
        self.queue: deque[JobRecord] = deque()
        self.queued = 0
        self.jobs: dict[int, JobRecord] = {}
        self.submitted_count = 0
        self.settled_count = 0

    @property
    def refusing(self) -> bool:
        """Whether nothing more is begun."""
        return bool(self.refusals)

    def submit(self, specs: list[JobSpec]) -> None:
        """Take the jobs in.

        Raises:
            InternalError: an id is still in use; nothing of the batch is taken in.
        """
        job_ids = {spec.job_id for spec in specs}
        if len(job_ids) != len(specs) or not self.jobs.keys().isdisjoint(job_ids):
            twice = [spec.job_id for spec in specs if spec.job_id in self.jobs] or "within one batch"
            raise InternalError(f"jobs were submitted twice: {twice}")
        self.submitted_count += len(specs)
        for job_id, timeout_s, attempts in specs:
            job = JobRecord(job_id, timeout_s, attempts)
            self.jobs[job_id] = job
            if self.refusals:
                self._never_begun(job)
            else:
                self._wait(job)

    def next(self) -> JobRecord:
        """The job whose turn it is. Call only while `queued` is positive."""
        job = self.queue.popleft()
        while job.state is not JobState.QUEUED:
            job = self.queue.popleft()
        self.queued -= 1
        return job

    def cancel(self, job: JobRecord) -> None:
        """Mark the job as unwanted; one that waits settles now."""
        job.cancelled = True
        if job.state is JobState.QUEUED:
            self.queued -= 1
            self._never_begun(job)

    def withdraw(self, job_ids: list[int]) -> None:
        """Settle those of these jobs that wait and were never begun as `withdrawn`: the driver has others for them."""
        for job_id in job_ids:
            job = self.jobs.get(job_id)
            if job is not None and job.state is JobState.QUEUED and job.failed is None:
                self.queued -= 1
                self._never_begun(job, _WITHDRAWN)

    def refuse(self, refusal: Refusal) -> None:
        """From now on nothing is begun; all that waits settles with the refusal."""
        self.refusals.append(refusal)
        queue, self.queue = self.queue, deque()
        self.queued = 0
        for job in queue:
            if job.state is JobState.QUEUED:
                self._never_begun(job)

    def allow(self, cause: str) -> None:
        """Lift the refusal of this cause."""
        self.refusals = [refusal for refusal in self.refusals if refusal.cause != cause]

    def give_back(self, jobs: list[JobRecord]) -> None:
        """Put jobs that were sent and had not begun back to the front, in their order and uncounted."""
        for job in reversed(jobs):
            job.worker_id = None
            job.move("taken back")
            if job.cancelled or self.refusals:
                self._never_begun(job)
            else:
                self.queued += 1
                self.queue.appendleft(job)

    def conclude(self, job: JobRecord, outcome: Outcome) -> None:
        """The attempt is over: settle the job, or let it wait for the next attempt."""
        job.attempts += 1
        outcome.attempts = job.attempts
        wanted = not (job.cancelled or self.refusals or outcome.unkilled)
        if outcome.kind is not None and wanted and self._policy.retries(outcome.kind, job.attempts):
            job.failed = SettleJob(job.job_id, outcome, job.worker_id)
            job.worker_id = None
            job.move("failed, retried")
            self._wait(job)
            return
        job.move("finished")
        self._settle(SettleJob(job.job_id, outcome, job.worker_id))

    def _wait(self, job: JobRecord) -> None:
        self.queued += 1
        self.queue.append(job)

    def _never_begun(self, job: JobRecord, unasked: Refusal = _CANCELLED) -> None:
        """Settle a job that waits: with the failure of its last attempt, if it had one."""
        job.move("never begun")
        settle = job.failed
        if settle is None:
            kind, cause, detail = self.refusals[0] if self.refusals else unasked
            outcome = Outcome(kind, cause, detail=detail, attempts=job.attempts)
            settle = SettleJob(job.job_id, outcome, None)
        self._settle(settle)

    def _settle(self, settle: SettleJob) -> None:
        del self.jobs[settle.job_id]
        self.settled_count += 1
        self._actions.append(settle)
