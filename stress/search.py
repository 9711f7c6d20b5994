"""Breadth-first search of the states that a supervisor and its world can be in.

States are compared by a canonical fingerprint: workers without their ids, jobs renamed by their
places, times relative to now and forgotten where nothing can depend on them any more. Two states
with one fingerprint have the same future, up to the names of workers and jobs.
"""

import gc
import marshal
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from robust_eval.supervision.invariants import check
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import JobRecord, WorkerRecord
from robust_eval.supervision.roster import FailureRow
from robust_eval.supervision.transitions import JobState
from stress.books import DEAD, Process
from stress.virtual import Move, World, helpful

Fingerprint = bytes
Shape = tuple[object, ...]
PATIENT = 1_000_000
_HORIZON_S = 2.0


@dataclass
class Found:
    """What a search saw. `help_leads` is the state after the helpful move of each state."""

    states: int = 0
    steps: int = 0
    complete: bool = True
    settled: set[Fingerprint] = field(default_factory=set)
    help_leads: dict[Fingerprint, Fingerprint] = field(default_factory=dict)


def explore(world: World, moves: Callable[[World], Iterator[Move]], most_states: int = 1_000_000) -> Found:
    """Visit every state that `moves` reaches from this one, or the nearest `most_states`.

    Beyond that bound only the helpful moves are followed, so that it is known of every state that
    was seen whether a well-behaved environment settles everything from there.

    Args:
        world: the first state; its books judge each step, and the invariants are checked in each
            state.
        moves: what may happen in a state.
        most_states: the bound.

    Returns:
        What was seen.
    """
    found = Found()
    world.checked = False  # here, once a state
    first = fingerprint(world)
    seen = {first}
    waiting = deque([(first, pickle.dumps(world, -1))])
    with _no_garbage():
        while waiting:
            here, state = waiting.popleft()
            found.complete = found.complete and found.states < most_states
            for there, after in _after(found, here, state, moves):
                found.steps += 1
                if there not in seen:
                    check(after.core)
                    seen.add(there)
                    after.log = []
                    waiting.append((there, pickle.dumps(after, -1)))
    return found


def _after(
    found: Found, here: Fingerprint, state: bytes, moves: Callable[[World], Iterator[Move]]
) -> Iterator[tuple[Fingerprint, World]]:
    """Every state after this one, or beyond the bound the one after the helpful move."""
    world: World = pickle.loads(state)
    if world.settled.keys() == world.specs.keys():
        found.settled.add(here)
        if not found.complete:
            return
    wanted = helpful(world)
    chosen = {wanted: None}
    if found.complete:
        found.states += 1
        chosen |= dict.fromkeys(moves(world))
    for move in chosen:
        after: World = pickle.loads(state)
        after.make(move)
        after.core.dispatcher.mean_s = world.core.dispatcher.mean_s
        there = fingerprint(after)
        if move == wanted:
            found.help_leads[here] = there
        yield there, after


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Nothing here is cyclic for long, and walking a million tuples again and again is slow."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def stuck(found: Found) -> list[Fingerprint]:
    """States from which the helpful moves never settle everything."""
    good, bad = set(found.settled), []
    for start in found.help_leads:
        path: dict[Fingerprint, None] = {}
        here = start
        while here not in good and here not in path:
            path[here] = None
            here = found.help_leads[here]
        if here in path:
            bad.append(start)
        else:
            good.update(path)
    return bad


def fingerprint(world: World) -> Fingerprint:
    """The state without what nothing can depend on."""
    core, now = world.core, world.now
    roster = core.roster
    names: dict[int, int] = {}
    queue = tuple(_job(job, names) for job in core.book.queue if job.state is JobState.QUEUED)
    order = {worker_id: place for place, worker_id in enumerate((*roster.idle, *roster.spares))}
    shapes = []
    for worker_id, worker in roster.workers.items():
        process = world.processes.get(worker_id)
        shapes.append((_shape(world, worker, process, order.get(worker_id)), worker, process))
    shapes.sort(key=lambda shape: repr(shape[0]))
    workers = tuple((shape, _jobs_of(worker, process, names)) for shape, worker, process in shapes)
    whole: Any = (
        queue,
        workers,
        len(core.book.jobs),
        len(world.specs),
        bool(world.template),
        roster.sealed,
        () if roster.sealed else _starting(world),
        tuple(refusal.cause for refusal in core.book.refusals),
        None if core.budget_at is None else _since(core.budget_at, now),
        core.closing,
        core.finished,
    )
    return marshal.dumps(whole, 2)  # no later version: they refer back to equal objects by identity


def _since(at: float | None, now: float) -> float | None:
    return None if at is None else max(at - now, -_HORIZON_S)


def _starting(world: World) -> Shape:
    """What decides when the next worker starts, and whether the pool breaks."""
    core, roster = world.core, world.core.roster
    return (
        world.template,
        roster.template_up,
        roster.template_proved,
        roster.template_at > roster.unready.last_at,
        _row(roster.unready, core.policy),
        _row(roster.unserved, core.policy),
        max(roster.start_at - world.now, 0.0),
    )


def _row(row: FailureRow, policy: Policy) -> int:
    """The failures so far, where a pool can break of them."""
    return min(row.count, policy.max_start_failures) if policy.max_start_failures < PATIENT else 0


def _job(job: JobRecord, names: dict[int, int]) -> Shape:
    name = names.setdefault(job.job_id, len(names))
    return name, job.attempts, job.timeout_s, job.cancelled, job.failed is not None


def _jobs_of(worker: WorkerRecord, process: Process | None, names: dict[int, int]) -> Shape:
    own = tuple(_job(job, names) for job in (*worker.inbox, *(job for job, _ in worker.held)))
    blamed = None if worker.doom is None else worker.doom.job_id
    # A job that is settled has no name and needs none.
    return own, None if blamed is None else names.get(blamed, -1)


def _shape(world: World, worker: WorkerRecord, process: Process | None, place: int | None) -> Shape:
    now, doom = world.now, worker.doom
    most = world.policy.max_tasks_per_child
    head = worker.inbox[0] if worker.inbox else None
    timed = head is not None and (head.timeout_s is not None or len(worker.inbox) > 1)
    return (
        int(worker.state),
        worker.slot is None,
        len(worker.inbox),
        place,
        worker.tasks if most is not None else 0,
        _could_fail(world, worker),
        worker.begun_job_id is not None,
        _since(worker.since, now) if timed else None,
        _since(worker.unheard_since, now),
        _since(worker.deadline, now),
        _since(worker.timer_at, now),
        None if doom is None else (doom.kind, doom.cause),
        tuple(outcome.kind for _, outcome in worker.held),
        () if process is None else _reality(world, worker, process),
    )


def _could_fail(world: World, worker: WorkerRecord) -> Shape:
    """What decides whether the end of this worker counts as a failure to start or to serve."""
    roster = world.core.roster
    if roster.sealed or not worker.never_served:
        return ()
    unserved = worker.started_at > roster.unserved.last_at
    if worker.was_ready:
        return (unserved,)
    return unserved, worker.started_at > roster.unready.last_at


def _reality(world: World, worker: WorkerRecord, process: Process) -> Shape:
    """What the process really is; of results in the channel, what the core can tell of them."""
    known = process.running is None or worker.begun_job_id == process.running[0]
    doom_at = worker.doom.at if worker.doom is not None else world.now
    results = []
    for event in process.channel:
        timeout_s = world.specs[event.job_id].timeout_s
        over = timeout_s is not None and event.ended_at - event.begun_at > timeout_s
        ended_at = _since(event.ended_at, world.now)
        late = event.ended_at > doom_at
        results.append((event.kind, event.leaving, event.leftovers, ended_at, over, late))
    return (
        process.stage,
        len(process.unread),
        process.read is not None,
        process.running is None,
        None if known else _since(process.begun_at, world.now),
        tuple(results),
        process.asked_back and process.stage != DEAD,
    )
