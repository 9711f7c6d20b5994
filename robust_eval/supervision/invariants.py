"""What holds for a supervisor between two calls of `handle`, as one callable for every kind of test.

`check` reads the whole state and changes nothing. Each function below states one family of
invariants; the string that it yields names the one that is broken.
"""

from collections.abc import Iterator

from robust_eval.errors import InternalError
from robust_eval.supervision.killing import DYING
from robust_eval.supervision.records import JobRecord, WorkerRecord
from robust_eval.supervision.roster import SERVING
from robust_eval.supervision.supervisor import Supervisor
from robust_eval.supervision.transitions import JobState, WorkerState

_W = WorkerState
_EMPTY = (_W.STARTING, _W.BLANK, _W.INITIALIZING, _W.IDLE, _W.STUBBORN)
_OCCUPIED = (_W.BUSY, _W.STOPPING)
_SLOTLESS = (_W.STARTING, _W.BLANK)
_TIMED = (_W.STARTING, _W.INITIALIZING, _W.STOPPING, _W.DUMPING, _W.KILLING, _W.LEAVING)
_DOOMED = (_W.STOPPING, _W.DUMPING)


def check(supervisor: Supervisor) -> None:
    """Return when every invariant holds.

    Args:
        supervisor: between two calls of `handle`.

    Raises:
        InternalError: one does not; the message names it.
    """
    for family in (_jobs, _places, _slots, _workers, _timers, _work, _progress):
        for broken in family(supervisor):
            raise InternalError(f"invariant broken: {broken}")


def _jobs(supervisor: Supervisor) -> Iterator[str]:
    """Counts add up and no job has more attempts than it may."""
    book = supervisor.book
    if book.submitted_count != book.settled_count + len(book.jobs):
        yield "submitted = settled + live"
    for job_id, job in book.jobs.items():
        if job.job_id != job_id or job.state is JobState.SETTLED:
            yield f"job {job_id} is live under its own id"
        if job.attempts > supervisor.policy.max_retries:
            yield f"job {job_id} has an attempt left, or it would have settled"
    if supervisor.finished and book.jobs:
        yield "finished means that no job is left"
    if supervisor.actions:
        yield "every action was handed out"


def _places(supervisor: Supervisor) -> Iterator[str]:
    """Every live job is in exactly one place, and its state names the place."""
    book = supervisor.book
    queued = [job for job in book.queue if job.state is JobState.QUEUED]
    places: list[tuple[JobRecord, JobState, int | None]] = [(job, JobState.QUEUED, None) for job in queued]
    for worker in supervisor.roster.workers.values():
        places += [(job, JobState.SENT, worker.worker_id) for job in worker.inbox]
        places += [(job, JobState.ENDING, worker.worker_id) for job, _ in worker.held]
    if sorted(job.job_id for job, _, _ in places) != sorted(book.jobs):
        yield "every live job is in exactly one of queue, inbox and held"
    for job, state, worker_id in places:
        if book.jobs.get(job.job_id) is not job:
            yield f"job {job.job_id} has one record"
        if (job.state, job.worker_id) != (state, worker_id):
            yield f"job {job.job_id} knows its place {state.name} {worker_id}"
    if book.queued != len(queued):
        yield "queued counts the jobs that wait"


def _slots(supervisor: Supervisor) -> Iterator[str]:
    """Slots are never overcommitted: each is free or has one worker that is not gone."""
    roster = supervisor.roster
    taken = [worker.slot for worker in roster.workers.values() if worker.slot is not None]
    if sorted(taken + roster.free_slots) != list(range(supervisor.policy.num_workers)):
        yield "each slot is free or taken by one worker"
    if len(roster.spares) > supervisor.policy.spares:
        yield "no more spares than asked for"
    if supervisor.book.refusing and supervisor.book.queued:
        yield "nothing waits while everything is refused"


def _workers(supervisor: Supervisor) -> Iterator[str]:
    """What a worker has fits its state, and the indices of idle and spare workers are exact."""
    roster = supervisor.roster
    for worker_id, worker in roster.workers.items():
        name = f"worker {worker_id}, {worker.state.name},"
        if worker.worker_id != worker_id or worker.state is _W.GONE:
            yield f"{name} is registered under its own id while it is not gone"
        yield from _belongings(worker, name)
    idle = {i: w for i, w in roster.workers.items() if w.state is _W.IDLE}
    spares = {i: w for i, w in roster.workers.items() if w.state in _SLOTLESS}
    if roster.idle != idle or roster.spares != spares:
        yield "idle and spares are exact"


def _belongings(worker: WorkerRecord, name: str) -> Iterator[str]:
    state, inbox = worker.state, worker.inbox
    if state in _EMPTY and (inbox or worker.held):
        yield f"{name} has no jobs"
    if state in _OCCUPIED and not inbox:
        yield f"{name} has a job"
    if worker.held and state is not _W.KILLING and state is not _W.DUMPING:
        yield f"{name} holds what is over only while it dies"
    if state in _SLOTLESS and worker.slot is not None:
        yield f"{name} has no slot"
    if (state in SERVING or state is _W.LEAVING) and (worker.slot is None or not worker.was_ready):
        yield f"{name} has a slot and was ready"
    if (state in _DOOMED and worker.doom is None) or (state not in (*_DOOMED, *DYING) and worker.doom is not None):
        yield f"{name} is doomed exactly while it must die"
    begun = worker.begun_job_id
    if begun is not None and (not inbox or inbox[0].job_id != begun or worker.unheard_since is not None):
        yield f"{name} has begun the job at its head"


def _timers(supervisor: Supervisor) -> Iterator[str]:
    """Whatever must end has a timer no later than its end, and `next_deadline` wakes for it."""
    first = supervisor.next_deadline()
    for worker in supervisor.roster.workers.values():
        name = f"worker {worker.worker_id}, {worker.state.name},"
        if worker.timer_at is not None and (first is None or first > worker.timer_at):
            yield f"{name} is woken for its timer"
        due = _due(supervisor, worker)
        if (worker.deadline is not None) != (worker.state in _TIMED):
            yield f"{name} has a deadline exactly where its state must end"
        if due is not None and (worker.timer_at is None or worker.timer_at > due):
            yield f"{name} is looked at in time"


def _due(supervisor: Supervisor, worker: WorkerRecord) -> float | None:
    """The instant by which the worker must be looked at.

    A wait that is over without the job having begun runs anew from the last look.
    """
    if worker.state is not _W.BUSY:
        return worker.deadline
    job, policy, now = worker.inbox[0], supervisor.policy, supervisor.now
    waits = []
    if worker.begun_job_id is None and worker.unheard_since is not None:
        waits.append(worker.unheard_since + policy.start_timeout_s)
    if job.timeout_s is not None:
        at = worker.since + job.timeout_s
        waits.append(at if worker.begun_job_id is not None else max(at, now + job.timeout_s))
    if len(worker.inbox) > 1:
        waits.append(max(worker.since, now) + worker.patience_s)
    return min(waits, default=None)


def _work(supervisor: Supervisor) -> Iterator[str]:
    """Nobody idles while a job waits, and no slot stays empty without a reason."""
    roster, book = supervisor.roster, supervisor.book
    if book.queued and roster.idle:
        yield "no job waits while a worker is idle"
    backing_off = roster.start_at > supervisor.now
    if not roster.sealed and not backing_off:
        if roster.free_slots or len(roster.spares) < supervisor.policy.spares:
            yield "every slot is filled and every spare is ordered"
        if not roster.template_up:
            yield "a template is up"


def _progress(supervisor: Supervisor) -> Iterator[str]:
    """While a job is live, something is bound to happen: never a hang."""
    book, roster = supervisor.book, supervisor.roster
    for worker in roster.workers.values():
        waits = (*worker.inbox, *(job for job, _ in worker.held))
        ends = worker.deadline is not None or worker.begun_job_id is not None
        if waits and not ends and worker.timer_at is None:
            yield f"the jobs of worker {worker.worker_id} are waited for with an end"
    if book.queued:
        alive = [w for w in roster.workers.values() if w.slot is not None]
        moving = any(w.state is not _W.STUBBORN for w in alive)
        if not moving and (roster.next_start_at() is None):
            yield "jobs that wait have a worker or the start of one before them"
    if supervisor.closing and not supervisor.finished and not roster.workers:
        yield "a closed pool without workers is finished"
