"""`invariants.check` sees each kind of damage: what it guards is broken by hand, one at a time."""

from collections.abc import Callable

import pytest

from robust_eval.errors import InternalError
from robust_eval.supervision.actions import Finish, Outcome
from robust_eval.supervision.events import JobSpec
from robust_eval.supervision.invariants import check
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import Doom, JobRecord, WorkerRecord
from robust_eval.supervision.supervisor import Supervisor
from robust_eval.supervision.transitions import JobState, WorkerState
from stress.virtual import World


def a_core() -> Supervisor:
    """Worker 0 is idle, worker 1 runs job 0 with job 1 behind, worker 2 loads, worker 3 is blank."""
    world = World(Policy(num_workers=3, spares=1, max_depth=2, start_timeout_s=9.0))
    for worker_id in range(4):
        world.forks(worker_id)
    world.ready(1)
    world.core.dispatcher.mean_s = 0.0
    world.submit(JobSpec(0, 5.0), JobSpec(1, 5.0))
    world.begins_job(1)
    world.ready(0)
    return world.core


def workers(core: Supervisor) -> dict[int, WorkerRecord]:
    return core.roster.workers


def unsettle(core: Supervisor) -> None:
    core.book.jobs[0].state = JobState.SETTLED


def finish_early(core: Supervisor) -> None:
    core.finished = True


def exhaust(core: Supervisor) -> None:
    core.book.jobs[0].attempts = 1


def lose(core: Supervisor) -> None:
    workers(core)[1].inbox.pop()


def duplicate(core: Supervisor) -> None:
    workers(core)[1].inbox[0] = JobRecord(0, 5.0, 0)


def misplace(core: Supervisor) -> None:
    core.book.jobs[0].worker_id = 2


def miscount_queue(core: Supervisor) -> None:
    core.book.queued = 1


def miscount(core: Supervisor) -> None:
    core.book.settled_count += 1


def leak_slot(core: Supervisor) -> None:
    workers(core)[0].slot = None


def one_spare_more(core: Supervisor) -> None:
    core.roster.spares[9] = WorkerRecord(9, 0.0)


def misname(core: Supervisor) -> None:
    workers(core)[0].state = WorkerState.GONE


def doom_nobody(core: Supervisor) -> None:
    core.roster.doomed.add(99)


def forget_idle(core: Supervisor) -> None:
    core.roster.idle.clear()


def idle_with_a_job(core: Supervisor) -> None:
    workers(core)[1].state = WorkerState.IDLE


def busy_without(core: Supervisor) -> None:
    workers(core)[0].state = WorkerState.BUSY


def hold_alive(core: Supervisor) -> None:
    job = workers(core)[1].inbox.pop()
    job.state = JobState.ENDING
    workers(core)[1].held.append((job, Outcome(None)))


def slot_of_a_spare(core: Supervisor) -> None:
    core.roster.free_slots.append(2)
    workers(core)[3].slot, workers(core)[2].slot = 2, None
    core.roster.free_slots.remove(2)


def never_ready(core: Supervisor) -> None:
    workers(core)[0].was_ready = False


def doomed_alive(core: Supervisor) -> None:
    workers(core)[0].doom = Doom("lost", "template", 0.0)


def begun_elsewhere(core: Supervisor) -> None:
    workers(core)[1].begun_job_id = 1


def sleep_late(core: Supervisor) -> None:
    core.timers.__init__()  # type: ignore[misc]


def disarm(core: Supervisor) -> None:
    workers(core)[2].timer_at = None


def no_limit(core: Supervisor) -> None:
    workers(core)[2].deadline = None


def leave_waiting(core: Supervisor) -> None:
    job = workers(core)[1].inbox.pop()
    job.state, job.worker_id = JobState.QUEUED, None
    core.book.queue.append(job)
    core.book.queued = 1


def refuse_and_wait(core: Supervisor) -> None:
    leave_waiting(core)
    core.book.refusals.append(("cancelled", "search"))  # type: ignore[arg-type]


def empty_slot(core: Supervisor) -> None:
    slot = workers(core).pop(2).slot
    assert slot is not None
    core.roster.free_slots.append(slot)


def no_template(core: Supervisor) -> None:
    core.roster.template_up = False


def keep_an_action(core: Supervisor) -> None:
    core.actions.append(Finish())


DAMAGE: list[tuple[Callable[[Supervisor], None], str]] = [
    (miscount, "submitted = settled"),
    (unsettle, "live under its own id"),
    (exhaust, "attempt left"),
    (finish_early, "finished means"),
    (keep_an_action, "every action was handed out"),
    (lose, "exactly one of queue"),
    (duplicate, "one record"),
    (misplace, "knows its place"),
    (miscount_queue, "queued counts"),
    (leak_slot, "each slot is free"),
    (one_spare_more, "no more spares"),
    (refuse_and_wait, "nothing waits while"),
    (misname, "registered under its own id"),
    (forget_idle, "idle and spares are exact"),
    (doom_nobody, "the doomed are exact"),
    (idle_with_a_job, "has no jobs"),
    (busy_without, "has a job"),
    (hold_alive, "only while it dies"),
    (slot_of_a_spare, "has no slot"),
    (never_ready, "has a slot and was ready"),
    (doomed_alive, "doomed exactly"),
    (begun_elsewhere, "has begun the job at its head"),
    (sleep_late, "woken for its timer"),
    (no_limit, "has a deadline exactly"),
    (disarm, "looked at in time"),
    (leave_waiting, "while a worker is idle"),
    (empty_slot, "every slot is filled"),
    (no_template, "a template is up"),
]


def test_an_undamaged_core_passes() -> None:
    """The core that the others damage is sound."""
    check(a_core())


@pytest.mark.parametrize(("damage", "names"), DAMAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_named(damage: Callable[[Supervisor], None], names: str) -> None:
    """Each invariant that is broken is an `InternalError` that names it."""
    core = a_core()
    damage(core)
    with pytest.raises(InternalError, match=names):
        check(core)


def test_a_job_without_an_end_in_sight_is_named() -> None:
    """A job in a worker that nobody looks at again would wait for ever."""
    core = a_core()
    worker = workers(core)[1]
    worker.inbox.pop().state = JobState.SETTLED
    del core.book.jobs[1]
    core.book.settled_count += 1
    worker.inbox[0].timeout_s = worker.unheard_since = worker.timer_at = None
    with pytest.raises(InternalError, match="with an end"):
        check(core)


def test_a_queue_without_a_worker_before_it_is_named() -> None:
    """Sealed, no worker, and a job that waits: a hang."""
    core = Supervisor(Policy(), 0.0)
    core.handle([], 0.0)
    core.roster.workers.clear()
    core.roster.spares.clear()
    core.roster.free_slots = [0]
    core.roster.sealed = True
    core.book.submit([JobSpec(0)])
    with pytest.raises(InternalError, match="the start of one before them"):
        check(core)


def test_a_closed_pool_that_does_not_finish_is_named() -> None:
    """Nobody is left to wait for."""
    core = Supervisor(Policy(), 0.0)
    core.closing = core.roster.sealed = True
    with pytest.raises(InternalError, match="is finished"):
        check(core)
