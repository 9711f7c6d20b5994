"""The supervisor's core: events in, actions out, and the next deadline. It is told the time.

The rules of supervision that this file embodies:

1. Every job settles exactly once (`JobBook.conclude` and `JobBook._never_begun` are the only ways).
3. A job's clock starts when its worker begins it: `WorkerRecord.since` is a lower bound, the worker's stamp
   (`JobBegun`) corrects it before a deadline is acted on.
4. The worker's finish decides: a result that ended before the worker was doomed is the job's outcome, however late
   it was read, and one that ended past the job's budget is a timeout even if the kill came too late.
5. Only the first job of an inbox can have begun; what lies behind it goes back uncounted.
6. A job whose worker must die settles when `WorkerExited` says that nothing of the tree is left.
7. Killing is state: each step has its own deadline in `WorkerRecord.deadline`.
8. An event about a worker that is gone is dropped.
9. Start-up failures are the roster's and never a job's.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from robust_eval.errors import InternalError
from robust_eval.supervision import events as ev
from robust_eval.supervision.actions import Action, Finish, Outcome, SendJob, TakeBack
from robust_eval.supervision.jobs import JobBook, Refusal
from robust_eval.supervision.killing import DYING, Killer
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import Doom, JobRecord, Timers, WorkerRecord
from robust_eval.supervision.roster import UNREADY, Roster
from robust_eval.supervision.transitions import WorkerState

_BUSY, _STOPPING, _STUBBORN = WorkerState.BUSY, WorkerState.STOPPING, WorkerState.STUBBORN
_START_CAUSES = ("startup", "start_timeout", "unresponsive")
_EWMA = 0.1


class Supervisor:
    """Decides everything about jobs and workers, and does nothing.

    Args:
        policy: the constants.
        now: the present instant, monotonic seconds.
    """

    def __init__(self, policy: Policy, now: float) -> None:
        self.policy = policy
        self.now = now
        self.actions: list[Action] = []
        self.timers = Timers()
        self.book = JobBook(policy, self.actions)
        self.roster = Roster(policy, self.actions, self.timers)
        self.killer = Killer(policy, self.actions, self.timers, self.roster)
        self.budget_at: float | None = None
        self.closing = False
        self.finished = False
        self._mean_s = policy.depth_target_s
        self._refill: dict[int, WorkerRecord] = {}
        self._due: list[tuple[float, int]] = []

    def handle(self, events: Iterable[ev.Event], now: float) -> list[Action]:
        """Take in what happened and answer what to do.

        Args:
            events: in the order in which they happened.
            now: the present instant; it never runs backwards.

        Returns:
            The actions, to be performed in their order.

        Raises:
            InternalError: an event contradicts what the core knows.
        """
        self.now = now
        for event in events:
            self._HANDLERS[type(event)](self, event)
        self._fire()
        if self.book.queued:
            self._dispatch()
        self._refill.clear()
        self.roster.replenish(now)
        if self.closing and not self.finished:
            self._finish()
        actions = self.actions[:]
        self.actions.clear()
        return actions

    def due_workers(self, now: float) -> list[int]:
        """Ids of the workers whose timers have come.

        The shell reads their channels dry and their stamps before the next `handle`, which acts on the timers.
        """
        self._due.extend(self.timers.pop_due(now))
        return [worker_id for _, worker_id in self._due]

    def next_deadline(self) -> float | None:
        """The instant at which `handle` must be called at the latest, or None."""
        instants = (self.timers.first(), self.budget_at, self.roster.next_start_at())
        return min((at for at in instants if at is not None), default=None)

    # -- jobs

    def _on_submitted(self, event: ev.JobsSubmitted) -> None:
        self.book.submit(event.jobs)

    def _on_cancelled(self, event: ev.JobsCancelled) -> None:
        for job_id in event.job_ids:
            job = self.book.jobs.get(job_id)
            if job is None or job.cancelled:
                continue
            self.book.cancel(job)
            worker = self.roster.workers.get(-1 if job.worker_id is None else job.worker_id)
            if worker is None or not worker.inbox:
                continue
            if worker.inbox[0] is job:
                self.killer.doom(worker, Doom("cancelled", "cancelled", self.now), self.now)
            else:
                self.actions.append(TakeBack(worker.worker_id))

    def _on_budget(self, event: ev.BudgetSet) -> None:
        self.budget_at = event.expires_at
        self.book.allow("search")

    def _on_close(self, _event: ev.CloseRequested) -> None:
        if not self.closing:
            self.closing = self.roster.sealed = True
            self.book.refuse(Refusal("cancelled", "closed"))
            for worker in list(self.roster.workers.values()):
                self.killer.doom(worker, Doom("cancelled", "closed", self.now), self.now)

    def _budget_over(self) -> None:
        self.budget_at = None
        self.book.refuse(Refusal("cancelled", "search"))
        for worker in list(self.roster.workers.values()):
            if worker.state is _BUSY:
                self.killer.doom(worker, Doom("timeout", "search", self.now), self.now)

    def _finish(self) -> None:
        if all(worker.state is _STUBBORN for worker in self.roster.workers.values()):
            self.finished = True
            self.actions.append(Finish())

    # -- the hot path

    def _dispatch(self) -> None:
        """Give every idle worker a job, then fill the inboxes of those that finished short jobs."""
        book, idle = self.book, self.roster.idle
        while book.queued and idle:
            worker = idle.popitem()[1]
            worker.move("sent")
            worker.since = self.now
            self._send(worker, book.next())
            self._refill.setdefault(worker.worker_id, worker)
        depth = self.policy.depth(self._mean_s)
        if depth == 1:
            return
        for worker in self._refill.values():
            if worker.state is not _BUSY or len(worker.inbox) > depth // 2:
                continue
            room = depth - len(worker.inbox)
            if self.policy.max_tasks_per_child is not None:
                room = min(room, self.policy.max_tasks_per_child - worker.tasks - len(worker.inbox))
            for _ in range(min(room, book.queued)):
                self._send(worker, book.next())
            self._arm_busy(worker)

    def _send(self, worker: WorkerRecord, job: JobRecord) -> None:
        job.move("sent")
        job.worker_id = worker.worker_id
        worker.inbox.append(job)
        self.actions.append(SendJob(worker.worker_id, job.job_id, job.attempts + 1))
        if len(worker.inbox) == 1:
            self._arm_busy(worker)

    def _on_result(self, event: ev.ResultReceived) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is None:
            return
        if not worker.inbox or worker.inbox[0].job_id != event.job_id or worker.state is WorkerState.LEAVING:
            self._broken(worker, f"a result for job {event.job_id}, which it was not running")
            return
        job = worker.inbox.popleft()
        duration_s = event.ended_at - event.begun_at
        self._mean_s += _EWMA * (duration_s - self._mean_s)
        worker.tasks += 1
        worker.since = event.ended_at
        outcome = self._outcome(worker, job, event)
        if worker.state in DYING or event.leftovers:
            job.move("held until the tree is gone")
            worker.held = (job, outcome)
            if worker.state not in DYING:
                worker.doom = None
                self.killer.doom(worker, Doom("", "leftovers", self.now), self.now)
            return
        if worker.state is _STOPPING:
            self.killer.pardon(worker)
        self.book.conclude(job, outcome)
        self._after_job(worker, leaving=event.leaving)

    def _outcome(self, worker: WorkerRecord, job: JobRecord, event: ev.ResultReceived) -> Outcome:
        kind, cause, detail, late = event.kind, "", None, None
        doom = worker.doom
        if doom is not None and event.ended_at > doom.at:
            kind, cause, detail = doom.kind, doom.cause, doom.detail
            late = event.payload if event.kind is None else None
        elif job.timeout_s is not None and event.ended_at - event.begun_at > job.timeout_s:
            kind, cause = "timeout", "job_timeout"
            late = event.payload if event.kind is None else None
        payload = event.payload if kind == event.kind else None
        return Outcome(kind, cause, payload, late, detail, None, 0, event.begun_at, event.ended_at)

    def _after_job(self, worker: WorkerRecord, *, leaving: bool) -> None:
        limit = self.policy.max_tasks_per_child
        if leaving or (limit is not None and worker.tasks >= limit):
            self.killer.let_leave(worker, self.now)
        elif worker.inbox:
            if worker.inbox[0].cancelled:
                self.killer.doom(worker, Doom("cancelled", "cancelled", self.now), self.now)
            else:
                self._refill[worker.worker_id] = worker
                self._arm_busy(worker)
        else:
            worker.move("emptied")
            self.roster.idle[worker.worker_id] = worker

    def _on_begun(self, event: ev.JobBegun) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None and worker.inbox and worker.inbox[0].job_id == event.job_id:
            if worker.begun_job_id != event.job_id:
                worker.begun_job_id = event.job_id
                worker.since = max(worker.since, min(event.at, self.now))

    def _on_returned(self, event: ev.JobsReturned) -> None:
        worker = self.roster.workers.get(event.worker_id)
        returned = set(event.job_ids)
        if worker is None or not returned:
            return
        jobs = [job for job in worker.inbox if job.job_id in returned]
        if len(jobs) != len(returned):
            msg = f"worker {worker.worker_id} returned jobs {event.job_ids} that it does not hold"
            raise InternalError(msg)
        for job in jobs:
            worker.inbox.remove(job)
        self.book.give_back(jobs)
        if worker.state is _BUSY and not worker.inbox:
            worker.move("emptied")
            self.roster.idle[worker.worker_id] = worker

    # -- workers

    def _on_forked(self, event: ev.WorkerForked) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None:
            self.roster.forked(worker)

    def _on_ready(self, event: ev.WorkerReady) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None and worker.state is WorkerState.INITIALIZING:
            self.roster.ready(worker)

    def _on_start_failed(self, event: ev.StartFailed) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None and worker.state in UNREADY:
            self.killer.doom(worker, Doom("startup", "startup", self.now, event.detail), self.now)

    def _on_memory(self, event: ev.MemoryExceeded) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None and worker.inbox and worker.inbox[0].job_id == event.job_id:
            self.killer.doom(worker, Doom("memory", "memory_limit", self.now, event.detail), self.now)

    def _on_channel_broken(self, event: ev.ChannelBroken) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None:
            self._broken(worker, event.detail)

    def _broken(self, worker: WorkerRecord, detail: object) -> None:
        self.killer.doom(worker, Doom("crash", "protocol", self.now, detail), self.now)

    def _on_template_exited(self, event: ev.TemplateExited) -> None:
        self.roster.template_up = False
        if not event.was_ready:
            self._start_failed(self.now, event.detail)
        for worker in list(self.roster.workers.values()):
            self.killer.doom(worker, Doom("lost", "template", self.now, event.detail), self.now)

    def _on_exited(self, event: ev.WorkerExited) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is None:
            return
        state, doom = worker.state, worker.doom
        self.roster.remove(worker)
        self._release(worker, event.detail)
        if state in UNREADY or (doom is not None and doom.cause in _START_CAUSES):
            detail = doom.detail if doom is not None and doom.detail is not None else event.detail
            self._start_failed(worker.started_at, detail)

    def _release(self, worker: WorkerRecord, detail: object) -> None:
        """Settle, retry or give back every job of a worker that is gone or will never be."""
        waiting = list(worker.inbox)
        worker.inbox.clear()
        if worker.held is not None:
            job, outcome = worker.held
            worker.held = None
            outcome.unkilled = worker.state is _STUBBORN
            outcome.exit = detail
            self.book.conclude(job, outcome)
        elif waiting and worker.begun_job_id == waiting[0].job_id:
            job = waiting.pop(0)
            doom = worker.doom or Doom("crash", "exit", self.now)
            outcome = Outcome(doom.kind, doom.cause, None, None, doom.detail, detail, 0, worker.since, self.now)
            outcome.unkilled = worker.state is _STUBBORN
            self.book.conclude(job, outcome)
        self.book.give_back(waiting)

    def _start_failed(self, started_at: float, detail: object) -> None:
        if self.roster.start_failed(started_at, self.now, detail) and not self.roster.sealed:
            self.roster.sealed = True
            self.book.refuse(Refusal("startup", "startup", detail))

    # -- timers

    def _fire(self) -> None:
        """Act on every timer that has come."""
        if self.budget_at is not None and self.now >= self.budget_at:
            self._budget_over()
        self._due.extend(self.timers.pop_due(self.now))
        if self._due:
            due, self._due = self._due, []
            for at, worker_id in due:
                worker = self.roster.workers.get(worker_id)
                if worker is not None and worker.timer_at == at:
                    worker.timer_at = None
                    self._on_timer(worker)

    def _on_timer(self, worker: WorkerRecord) -> None:
        if worker.state is _BUSY:
            self._on_busy_timer(worker)
        elif worker.deadline is None:
            return
        elif self.now < worker.deadline:
            self.timers.arm(worker, worker.deadline)
        else:
            self.killer.on_deadline(worker, self.now)
            if worker.state is _STUBBORN:
                self._release(worker, None)

    def _on_busy_timer(self, worker: WorkerRecord) -> None:
        """Look at a worker that runs a job: is the job over its budget, does it hold others up, has it begun?"""
        job = worker.inbox[0]
        ran_s = self.now - worker.since
        if worker.begun_job_id == job.job_id:
            if job.timeout_s is not None and self.now >= worker.since + job.timeout_s:
                self.killer.doom(worker, Doom("timeout", "job_timeout", worker.since + job.timeout_s), self.now)
                return
        elif ran_s >= self.policy.start_timeout_s:
            self.killer.doom(worker, Doom("lost", "unresponsive", self.now), self.now)
            return
        if len(worker.inbox) > 1 and ran_s >= self.policy.hold_up_s:
            self.actions.append(TakeBack(worker.worker_id))
        self._arm_busy(worker)

    def _arm_busy(self, worker: WorkerRecord) -> None:
        """Arm the timer for the first thing that can go wrong with the running job."""
        job, since, now = worker.inbox[0], worker.since, self.now
        due = []
        if worker.begun_job_id != job.job_id:
            due.append(since + self.policy.start_timeout_s)
        if job.timeout_s is not None:
            at = since + job.timeout_s
            due.append(at if at > now else now + job.timeout_s)
        if len(worker.inbox) > 1:
            at = since + self.policy.hold_up_s
            due.append(at if at > now else now + self.policy.hold_up_s)
        if due:
            self.timers.arm(worker, min(due))

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        ev.JobsSubmitted: _on_submitted,
        ev.JobsCancelled: _on_cancelled,
        ev.BudgetSet: _on_budget,
        ev.CloseRequested: _on_close,
        ev.TemplateExited: _on_template_exited,
        ev.WorkerForked: _on_forked,
        ev.WorkerReady: _on_ready,
        ev.StartFailed: _on_start_failed,
        ev.JobBegun: _on_begun,
        ev.ResultReceived: _on_result,
        ev.JobsReturned: _on_returned,
        ev.MemoryExceeded: _on_memory,
        ev.ChannelBroken: _on_channel_broken,
        ev.WorkerExited: _on_exited,
    }
