"""What the core remembers of each job and worker, and the heap of their timers."""

from collections import deque
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING, NamedTuple

from robust_eval.supervision.transitions import JOB_TRANSITIONS, WORKER_TRANSITIONS, JobState, WorkerState

if TYPE_CHECKING:
    from robust_eval.supervision.actions import Outcome, SettleJob


_NEVER = float("inf")


def earliest(*instants: float | None) -> float | None:
    """The first of those that are known; None where none is. A loop, since this is asked in every turn."""
    first = None
    for at in instants:
        if at is not None and (first is None or at < first):
            first = at
    return first


class Doom(NamedTuple):
    """Why a worker must die.

    `at` is the instant from which on a result comes too late. `job_id` names the job that is to
    blame; None stands for whichever job the worker has begun.
    """

    kind: str
    cause: str
    at: float
    detail: object = None
    job_id: int | None = None

    def strikes(self, job: "JobRecord") -> bool:
        """Whether this job is to blame, and not another one that ran in the same worker."""
        return self.job_id is None or self.job_id == job.job_id


class JobRecord:
    """One job that has not settled. `failed` is how its last attempt would have settled it."""

    __slots__ = ("attempts", "cancelled", "failed", "job_id", "state", "timeout_s", "worker_id")

    def __init__(self, job_id: int, timeout_s: float | None, attempts: int) -> None:
        self.job_id = job_id
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.state = JobState.QUEUED
        self.cancelled = False
        self.failed: SettleJob | None = None
        self.worker_id: int | None = None

    def move(self, cause: str) -> None:
        """Change the state along the table."""
        self.state = JOB_TRANSITIONS[self.state, cause]


class WorkerRecord:
    """One worker that is not gone.

    `since` is the earliest instant at which its first job can have begun, or that begin itself once
    its stamp has shown it (`begun_job_id`); `unheard_since` the instant since which it has a job to
    begin and gave no sign of life, None where it has none. `deadline` is the end of the state that
    it is in, where that state has one. `patience_s` is how long its first job may hold up those behind
    it. `held` are jobs that are over and settle when it is gone.
    """

    __slots__ = (
        "begun_job_id",
        "deadline",
        "doom",
        "held",
        "inbox",
        "patience_s",
        "since",
        "slot",
        "started_at",
        "state",
        "tasks",
        "timer_at",
        "unheard_since",
        "was_ready",
        "worker_id",
    )

    def __init__(self, worker_id: int, now: float) -> None:
        self.worker_id = worker_id
        self.state = WorkerState.STARTING
        self.slot: int | None = None
        self.inbox: deque[JobRecord] = deque()
        self.begun_job_id: int | None = None
        self.since = now
        self.started_at = now
        self.deadline: float | None = None
        self.patience_s = 0.0
        self.tasks = 0
        self.doom: Doom | None = None
        self.held: list[tuple[JobRecord, Outcome]] = []
        self.timer_at: float | None = None
        self.unheard_since: float | None = None
        self.was_ready = False

    @property
    def never_served(self) -> bool:
        """Whether it began no job at all."""
        return not self.tasks and self.begun_job_id is None

    def move(self, cause: str) -> None:
        """Change the state along the table."""
        self.state = WORKER_TRANSITIONS[self.state, cause]


class Timers:
    """One pending timer a worker, kept in a heap; a timer that comes too early is simply set again.

    The job's own deadline moves with every job, so the heap holds the earliest instant at which a
    worker may need attention and not each deadline: a worker that finishes jobs faster than their
    budget touches the heap once a budget, not once a job.
    """

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []

    def arm(self, worker: WorkerRecord, at: float) -> None:
        """See that the worker is looked at no later than `at`."""
        if worker.timer_at is None or at < worker.timer_at:
            worker.timer_at = at
            heappush(self._heap, (at, worker.worker_id))

    def first(self, workers: dict[int, WorkerRecord]) -> float | None:
        """The instant of the earliest timer; what no longer counts is dropped on the way."""
        heap = self._heap
        while heap:
            at, worker_id = heap[0]
            worker = workers.get(worker_id)
            if worker is not None and worker.timer_at == at:
                return at
            heappop(heap)
        return None

    @property
    def first_id(self) -> int:
        """The worker whose timer is the earliest. Call only right after `first`, which has found one."""
        return self._heap[0][1]

    def postpone(self, worker: WorkerRecord, at: float) -> None:
        """Set the earliest timer, which is this worker's, to a later instant; infinity for never."""
        if at == _NEVER:
            heappop(self._heap)
            worker.timer_at = None
        else:
            heapreplace(self._heap, (at, worker.worker_id))
            worker.timer_at = at

    def pop(self, workers: dict[int, WorkerRecord]) -> int:
        """Disarm the earliest timer, which `first` has found, and return the id of its worker."""
        _, worker_id = heappop(self._heap)
        workers[worker_id].timer_at = None
        return worker_id
