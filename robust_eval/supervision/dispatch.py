"""Who runs what next: a job for each idle worker, more for those that finish fast (rule 5).

Several short jobs lie in one inbox so that a worker need not wait for the supervisor between them;
how many follows from the mean duration. What is held up by a longer job is taken back, and so is
what lies behind a job while another worker has none.
"""

from robust_eval.supervision.actions import Action, SendJob, TakeBack
from robust_eval.supervision.jobs import JobBook
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import Timers, WorkerRecord
from robust_eval.supervision.roster import Roster
from robust_eval.supervision.transitions import WorkerState

_BUSY = WorkerState.BUSY
_EWMA = 0.1
_MOST_TIMES = 4.0
_SHORTEST_S = 1e-6
_LEISURE = 0.16
_AHEAD = 2  # jobs, the running one included
_NEVER = _UNKNOWN = float("inf")


class Dispatcher:
    """Fills the inboxes of workers and watches over the job at the head of each."""

    def __init__(
        self,
        policy: Policy,
        actions: list[Action],
        timers: Timers,
        roster: Roster,
        book: JobBook,
    ) -> None:
        self._policy = policy
        self._actions = actions
        self._timers = timers
        self._roster = roster
        self._book = book
        self._refill: dict[int, WorkerRecord] = {}
        self._ahead: dict[int, WorkerRecord] = {}
        self._alone: dict[int, WorkerRecord] = {}  # those for whose inbox there was no second job yet
        self.mean_s = _UNKNOWN

    @property
    def leisure_s(self) -> float:
        """How long results may lie unread: nobody waits for them where workers have their next jobs, and live."""
        if not self._book.queued or self._roster.doomed or 2 * len(self._ahead) <= self._policy.num_workers:
            return 0.0
        return _LEISURE * self.mean_s

    def finished(self, duration_s: float) -> None:
        """Remember how long a job took.

        One that stands out counts as a few others: on a busy machine a short job is put aside for milliseconds now and
        then, which says nothing about the next.
        """
        mean_s = self.mean_s
        if mean_s == _UNKNOWN:
            self.mean_s = max(duration_s, _SHORTEST_S)
            return
        self.mean_s = mean_s + _EWMA * (min(duration_s, _MOST_TIMES * mean_s) - mean_s)

    def held_up(self, worker: WorkerRecord) -> None:
        """Remember that a job is so long that others must not wait for it: this worker gets no more of them."""
        self._refill.pop(worker.worker_id, None)
        self._ahead.pop(worker.worker_id, None)
        self.mean_s += _EWMA * (self._policy.patience_s(self.mean_s) - self.mean_s)

    def go_on(self, worker: WorkerRecord) -> None:
        """Let the worker run the next job of its inbox. Its timer is set by `dispatch`, once for all that ended."""
        self._ahead.pop(worker.worker_id, None)
        self._refill[worker.worker_id] = worker

    def forget(self, worker: WorkerRecord) -> None:
        """The worker is gone."""
        self._ahead.pop(worker.worker_id, None)
        self._alone.pop(worker.worker_id, None)

    def dispatch(self, now: float) -> None:
        """Give every idle worker a job, then fill the inboxes of those that finished short jobs."""
        book, idle = self._book, self._roster.idle
        alone = self._alone
        if book.queued:
            while book.queued and idle:
                worker = idle.popitem()[1]
                worker.move("sent")
                worker.since = now
                if worker.unheard_since is None:
                    worker.unheard_since = now
                self._send(worker)
                self._refill[worker.worker_id] = worker
            depth = self._policy.depth(self.mean_s, book.queued)
            if depth > 1 and book.queued:
                self._catch_up(now)
                self._fill(depth)
                alone = {}  # whoever has a single job now may not have more
        for worker in self._refill.values():
            if worker.state is _BUSY:
                self.watch(worker)
                if len(worker.inbox) == 1:
                    alone[worker.worker_id] = worker
        if idle and self._ahead and not book.queued:
            self._share()
        self._refill.clear()

    def _catch_up(self, now: float) -> None:
        """Fill the inboxes, too, of those that got their job when no other one waited, unless it takes long."""
        patience_s = self._policy.patience_s(self.mean_s)
        for worker in self._alone.values():
            if worker.state is _BUSY and now - worker.since < patience_s:
                self._refill[worker.worker_id] = worker
        self._alone.clear()

    def _share(self) -> None:
        """Take back what lies behind a job, for the workers that have none."""
        ahead = self._ahead
        for _ in range(min(len(self._roster.idle), len(ahead))):
            worker = ahead.pop(next(iter(ahead)))
            if worker.state is _BUSY and len(worker.inbox) > 1:
                self._actions.append(TakeBack(worker.worker_id))

    def _fill(self, depth: int) -> None:
        """Top up the inboxes that are at most half full."""
        most_tasks, patience_s = self._policy.max_tasks_per_child, self._policy.patience_s(self.mean_s)
        for worker in self._refill.values():
            held = len(worker.inbox)
            if worker.state is not _BUSY or held > depth // 2:
                continue
            room = min(depth - held, self._book.queued)
            if most_tasks is not None:
                room = min(room, most_tasks - worker.tasks - held)
            for _ in range(room):
                self._send(worker)
            worker.patience_s = patience_s
            if depth == _AHEAD and len(worker.inbox) > 1:
                self._ahead[worker.worker_id] = worker

    def _send(self, worker: WorkerRecord) -> None:
        job = self._book.next()
        job.move("sent")
        job.worker_id = worker.worker_id
        worker.inbox.append(job)
        self._actions.append(SendJob(worker.worker_id, job.job_id, job.attempts + 1))

    def watch(self, worker: WorkerRecord, looked_at: float = -_NEVER) -> None:
        """Arm the timer for the first thing that can go wrong with the job at the head.

        An instant that is past asks for a look at the stamp at once, since the begin may be later
        than `since`. After that look, at `looked_at`, the same waits begin anew from there.
        """
        due = self._due_at(worker, looked_at)
        if due < _NEVER:
            self._timers.arm(worker, due)

    def first_timer_at(self) -> float | None:
        """The earliest timer of a worker. One whose job is over is set for the job that runs now, on the way."""
        timers, workers = self._timers, self._roster.workers
        while (at := timers.first(workers)) is not None:
            worker = workers[timers.first_id]
            if worker.state is not _BUSY:
                break
            due = self._due_at(worker)
            if due <= at:
                break
            timers.postpone(worker, due)
        return at

    def _due_at(self, worker: WorkerRecord, looked_at: float = -_NEVER) -> float:
        """When the worker must be looked at; infinity for never."""
        job, since = worker.inbox[0], worker.since
        due = _NEVER
        if worker.unheard_since is not None:
            due = worker.unheard_since + self._policy.start_timeout_s
        if job.timeout_s is not None:
            at = since + job.timeout_s
            due = min(due, at if at > looked_at else looked_at + job.timeout_s)
        if len(worker.inbox) > 1:
            at = since + worker.patience_s
            due = min(due, at if at > looked_at else looked_at + worker.patience_s)
        return due
