"""The supervisor's core: events in, actions out, and the next deadline. It is told the time.

The rules of supervision that this file embodies:

1. Every job settles exactly once (`JobBook.conclude` and `JobBook._never_begun` are the only ways).
3. A job's clock starts when its worker begins it: `WorkerRecord.since` is a lower bound, the
   worker's stamp (`JobBegun`) corrects it before a deadline is acted on.
4. The worker's finish decides: a result that ended before the worker was doomed is the job's
   outcome, however late it was read, and one that ended past the job's budget is a timeout even if
   the kill came too late. Timers are acted on only after `due_workers` named them to the shell.
5. Only the first job of an inbox can have begun; what lies behind it goes back uncounted. A job
   that had begun in a worker that was killed for another job is `lost`, not blamed.
6. A job whose worker must die settles when `WorkerExited` says that nothing of the tree is left.
7. Killing is state: each step has its own deadline in `WorkerRecord.deadline`.
8. An event about a worker that is gone is dropped.
9. Start-up failures are the roster's and never a job's.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from robust_eval.errors import InternalError
from robust_eval.supervision import events as ev
from robust_eval.supervision.actions import Action, DumpStack, Finish, KillWorker, Outcome, StopJob, TakeBack
from robust_eval.supervision.dispatch import Dispatcher
from robust_eval.supervision.jobs import JobBook, Refusal
from robust_eval.supervision.killing import DYING, Killer
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import Doom, JobRecord, Timers, WorkerRecord, earliest
from robust_eval.supervision.roster import Roster
from robust_eval.supervision.transitions import WorkerState

_BUSY = WorkerState.BUSY
_STOPPING = WorkerState.STOPPING
_STUBBORN = WorkerState.STUBBORN
_ORDERS = (TakeBack, StopJob, DumpStack, KillWorker)
_UNREADY = (WorkerState.STARTING, WorkerState.BLANK, WorkerState.INITIALIZING)


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
        self.dispatcher = Dispatcher(policy, self.actions, self.timers, self.roster, self.book)
        self.budget_at: float | None = None
        self.closing = False
        self.finished = False
        self._looked_at = now
        self._due: list[int] = []

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
        self.dispatcher.dispatch(now)
        self.roster.replenish(now)
        if self.closing and not self.finished:
            self._finish()
        actions = self.actions[:]
        self.actions.clear()
        return actions

    def due_workers(self, now: float) -> list[int]:
        """Ids of the workers whose timers have come.

        The shell reads their channels dry and their stamps before the next `handle`, which acts on
        exactly these timers, judged at this `now`; later ones wait for the next call.
        """
        self._looked_at = now
        workers = self.roster.workers
        while (at := self.dispatcher.first_timer_at()) is not None and at <= now:
            self._due.append(self.timers.pop(workers))
        due = self._due
        if self.budget_at is not None and now >= self.budget_at:
            due = due + [i for i, worker in workers.items() if worker.state is _BUSY]
        return list(dict.fromkeys(due))

    def next_deadline(self) -> float | None:
        """The instant at which `due_workers` and `handle` must be called at the latest, or None."""
        return earliest(self.dispatcher.first_timer_at(), self.budget_at, self.roster.next_start_at())

    # -- jobs

    def _on_submitted(self, event: ev.JobsSubmitted) -> None:
        self.book.submit(event.jobs)

    def _on_cancelled(self, event: ev.JobsCancelled) -> None:
        for job_id in event.job_ids:
            job = self.book.jobs.get(job_id)
            if job is None or job.cancelled:
                continue
            self.book.cancel(job)
            worker = None if job.worker_id is None else self.roster.workers.get(job.worker_id)
            if worker is None or worker.state not in (_BUSY, _STOPPING):
                continue
            if worker.inbox[0] is job:
                self._doom_for(worker, "cancelled", "cancelled", self.now)
            else:
                self.actions.append(TakeBack(worker.worker_id))

    def _on_budget(self, event: ev.BudgetSet) -> None:
        self.budget_at = event.expires_at
        self.book.allow("search")

    def _on_close(self, _event: ev.CloseRequested) -> None:
        if not self.closing:
            self.closing = self.roster.sealed = True
            self.book.refuse(Refusal("cancelled", "closed"))
            for worker in self.roster.workers.values():
                self._doom(worker, "cancelled", "closed")

    def _budget_over(self) -> None:
        self.budget_at = None
        self.book.refuse(Refusal("cancelled", "search"))
        for worker in self.roster.workers.values():
            if worker.state is _BUSY:
                self._doom(worker, "timeout", "search")

    def _finish(self) -> None:
        if all(worker.state is _STUBBORN for worker in self.roster.workers.values()):
            if self.book.jobs:
                raise InternalError(f"jobs {list(self.book.jobs)} are left when all is over")
            self.finished = True
            self.actions.append(Finish())

    # -- what workers did

    def _on_begun(self, event: ev.JobBegun) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is None or not worker.inbox or worker.inbox[0].job_id != event.job_id:
            return
        # A stamp from before `since` is that of an earlier attempt of the same job.
        if worker.begun_job_id is None and event.at >= worker.since:
            worker.begun_job_id = event.job_id
            worker.since = max(worker.since, min(event.at, self.now))
            worker.unheard_since = None
            self.roster.unserved.count = 0

    def _on_result(self, event: ev.ResultReceived) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is None:
            return
        inbox, state = worker.inbox, worker.state
        if not inbox or inbox[0].job_id != event.job_id or state is WorkerState.LEAVING:
            self._doom(worker, "crash", "protocol", _unexpected(event))
            return
        job = inbox.popleft()
        self.dispatcher.finished(event.ended_at - event.begun_at)
        worker.tasks += 1
        worker.begun_job_id = None
        worker.since = worker.unheard_since = event.ended_at
        self.roster.unserved.count = 0
        outcome = self._outcome(worker, job, event)
        if event.leftovers or (state in DYING and outcome.cause):
            job.move("held until the tree is gone")
            worker.held.append((job, outcome))
            self.killer.doom(worker, Doom("", "leftovers", self.now, None, job.job_id), self.now)
            return
        self.book.conclude(job, outcome)
        if state is _STOPPING:
            self.killer.pardon(worker)
        if state not in DYING:
            self._after_job(worker, event)

    def _outcome(self, worker: WorkerRecord, job: JobRecord, event: ev.ResultReceived) -> Outcome:
        kind, begun_at, ended_at, doom = event.kind, event.begun_at, event.ended_at, worker.doom
        if doom is not None and ended_at > doom.at and doom.strikes(job):
            kind, cause, detail = doom.kind, doom.cause, doom.detail
        elif job.timeout_s is not None and ended_at - begun_at > job.timeout_s:
            kind, cause, detail = "timeout", "job_timeout", None
        else:
            return Outcome(kind, "", event.payload, None, None, None, 0, begun_at, ended_at)
        late = event.payload if event.kind is None else None
        return Outcome(kind, cause, None, late, detail, None, 0, begun_at, ended_at)

    def _after_job(self, worker: WorkerRecord, event: ev.ResultReceived) -> None:
        limit = self.policy.max_tasks_per_child
        if event.leaving or (limit is not None and worker.tasks >= limit):
            self.killer.let_leave(worker, self.now)
        elif not worker.inbox:
            self._idle(worker)
            worker.unheard_since = None
        elif worker.inbox[0].cancelled:
            self._doom_for(worker, "cancelled", "cancelled", self.now)
        elif self.book.refusing:
            self._doom(worker, "timeout", "search")
        else:
            self.dispatcher.go_on(worker)

    def _on_returned(self, event: ev.JobsReturned) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is None or worker.state is _STUBBORN:
            return
        returned = set(event.job_ids)
        jobs = [job for job in worker.inbox if job.job_id in returned]
        if len(jobs) != len(event.job_ids):
            raise InternalError(f"worker {worker.worker_id} returned jobs {event.job_ids} that it does not hold")
        for job in jobs:
            worker.inbox.remove(job)
        self.book.give_back(jobs)
        if jobs and not worker.inbox:
            if worker.state is _STOPPING:
                self.killer.pardon(worker)
            if worker.state is _BUSY:
                self._idle(worker)

    def _idle(self, worker: WorkerRecord) -> None:
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
        if worker is not None and worker.state in _UNREADY:
            self._doom(worker, "startup", "startup", event.detail)

    def _on_memory(self, event: ev.MemoryExceeded) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None and worker.inbox and worker.inbox[0].job_id == event.job_id:
            self._doom_for(worker, "memory", "memory_limit", self.now, event.detail)

    def _on_channel_broken(self, event: ev.ChannelBroken) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is not None:
            self._doom(worker, "crash", event.cause, event.detail)

    def _on_template_exited(self, event: ev.TemplateExited) -> None:
        self.roster.template_failed(self.now)
        self._refuse_if_broken(event.detail)
        for worker in self.roster.workers.values():
            self._doom(worker, "lost", "template", event.detail)

    def _on_exited(self, event: ev.WorkerExited) -> None:
        worker = self.roster.workers.get(event.worker_id)
        if worker is None:
            return
        known_stubborn = worker.state is _STUBBORN
        self.roster.remove(worker)
        self.dispatcher.forget(worker)
        self._forget_orders(worker.worker_id)
        if known_stubborn:
            self._weigh_slots()
        else:
            self._part(worker, event.detail)

    def _forget_orders(self, worker_id: int) -> None:
        """What was read just before the exit may have led to orders that nobody can carry out."""
        self.actions[:] = [
            action for action in self.actions if not (isinstance(action, _ORDERS) and action.worker_id == worker_id)
        ]

    def _doom(self, worker: WorkerRecord, kind: str, cause: str, detail: object = None) -> None:
        """Doom the worker for a reason that is no single job's."""
        self.killer.doom(worker, Doom(kind, cause, self.now, detail), self.now)

    def _doom_for(self, worker: WorkerRecord, kind: str, cause: str, at: float, detail: object = None) -> None:
        """Doom the worker for what the job at the head of its inbox did."""
        doom = Doom(kind, cause, at, detail, worker.inbox[0].job_id)
        self.killer.doom(worker, doom, self.now)

    def _part(self, worker: WorkerRecord, exit_detail: object) -> None:
        """Take leave of a worker that is gone or will never be."""
        meant_something = self.roster.worker_failed(worker, self.now)
        self._release(worker, exit_detail)
        if meant_something:
            doom = worker.doom
            told = doom.detail if doom is not None and doom.detail is not None else exit_detail
            self._refuse_if_broken(told)
        self._weigh_slots()

    def _weigh_slots(self) -> None:
        """Nothing may wait for a slot while each is closed by a worker that cannot be killed."""
        self.book.allow("stubborn")
        if self.roster.shut:
            self.book.refuse(Refusal("startup", "stubborn"))

    def _release(self, worker: WorkerRecord, exit_detail: object) -> None:
        """Settle, retry or give back every job of the worker."""
        over, waiting = worker.held[:], list(worker.inbox)
        worker.held.clear()
        worker.inbox.clear()
        if waiting and worker.begun_job_id == waiting[0].job_id:
            job = waiting.pop(0)
            doom = worker.doom or Doom("crash", "exit", self.now)
            if not doom.strikes(job):
                doom = Doom("lost", "worker", self.now)
            ended = Outcome(doom.kind, doom.cause, None, None, doom.detail)
            ended.begun_at, ended.ended_at = worker.since, self.now
            over.append((job, ended))
        worker.begun_job_id = None
        for job, outcome in over:
            outcome.unkilled = worker.state is _STUBBORN
            outcome.exit = exit_detail
            self.book.conclude(job, outcome)
        self.book.give_back(waiting)

    def _refuse_if_broken(self, detail: object) -> None:
        if self.roster.broken and not self.roster.sealed:
            self.roster.sealed = True
            self.book.refuse(Refusal("startup", "startup", detail))

    # -- timers

    def _fire(self) -> None:
        """Act on the timers that the shell was told of."""
        if self.budget_at is not None and self._looked_at >= self.budget_at:
            self._budget_over()
        if self._due:
            due, self._due = self._due, []
            for worker_id in due:
                worker = self.roster.workers.get(worker_id)
                if worker is not None:
                    self._on_timer(worker)

    def _on_timer(self, worker: WorkerRecord) -> None:
        if worker.state is _BUSY:
            self._on_busy_timer(worker, self._looked_at)
        elif worker.deadline is None:
            return
        elif self._looked_at < worker.deadline:
            self.timers.arm(worker, worker.deadline)
        else:
            self.killer.on_deadline(worker, self.now)
            if worker.state is _STUBBORN:
                self._part(worker, None)

    def _on_busy_timer(self, worker: WorkerRecord, looked_at: float) -> None:
        """Look at the job at the head: over its budget, holding others up, not even begun?"""
        job, since, unheard_since = worker.inbox[0], worker.since, worker.unheard_since
        if unheard_since is not None:
            if looked_at >= unheard_since + self.policy.start_timeout_s:
                self._doom(worker, "lost", "unresponsive")
                return
        elif job.timeout_s is not None and looked_at >= since + job.timeout_s:
            self._doom_for(worker, "timeout", "job_timeout", since + job.timeout_s)
            return
        if len(worker.inbox) > 1 and looked_at >= since + worker.patience_s:
            self.dispatcher.held_up(worker)
            self.actions.append(TakeBack(worker.worker_id))
        self.dispatcher.watch(worker, looked_at)

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        ev.JobsSubmitted: _on_submitted,
        ev.JobsCancelled: _on_cancelled,
        ev.JobsWithdrawn: lambda self, event: self.book.withdraw(event.job_ids),
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


def _unexpected(event: ev.ResultReceived) -> str:
    return f"a result for job {event.job_id}, which it was not running"
