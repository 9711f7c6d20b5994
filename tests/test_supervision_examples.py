"""The rules of supervision by example: a virtual clock, scripted workers, no process anywhere."""

from typing import Any

import pytest

from robust_eval.errors import InternalError
from robust_eval.supervision import actions as do
from robust_eval.supervision import events as ev
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import JobRecord
from robust_eval.supervision.supervisor import Supervisor
from robust_eval.supervision.transitions import JOB_TRANSITIONS, WORKER_TRANSITIONS, JobState, WorkerState
from stress.books import DEAD
from stress.virtual import World, calm


def a_world(**policy: Any) -> World:
    """One worker, no spare, limits in round seconds, unless asked otherwise."""
    constants = {"num_workers": 1, "spares": 0, "max_depth": 1, "dump_s": 1.0, "kill_timeout_s": 4.0, "leave_s": 1.0}
    return World(Policy(**{**constants, **policy}))


def serving(**policy: Any) -> World:
    """A world whose workers are all ready."""
    world = a_world(**policy)
    for worker_id in list(world.processes):
        world.forks(worker_id)
        if world.processes[worker_id].slot is not None:
            world.ready(worker_id)
    return world


def jobs(count: int, timeout_s: float | None = None) -> list[ev.JobSpec]:
    return [ev.JobSpec(job_id, timeout_s) for job_id in range(count)]


def running(count: int = 1, timeout_s: float | None = None, **policy: Any) -> World:
    """A world in which worker 0 has begun job 0 of `count`."""
    world = serving(**policy)
    world.submit(*jobs(count, timeout_s))
    world.begins_job(0)
    return world


def deep(count: int = 4, **policy: Any) -> World:
    """A world whose short jobs lie four deep in an inbox; job 0 is begun."""
    world = serving(max_depth=4, hold_up_s=0.5, **policy)
    world.core.dispatcher.mean_s = 0.0
    world.submit(*jobs(count))
    world.begins_job(0)
    return world


def ahead(count: int, **policy: Any) -> World:
    """A world whose jobs are known to take a tenth of a second; job 0 is begun."""
    world = serving(**{"hold_up_s": 0.005, "depth_target_s": 0.002, "max_depth": 9, **policy})
    world.core.dispatcher.mean_s = 0.1
    world.submit(*jobs(count))
    world.begins_job(0)
    return world


def works_until_idle(world: World, worker_id: int) -> None:
    """The worker, which has begun a job, ends it and all others that it gets."""
    while worker_id not in world.core.roster.idle:
        world.ends(worker_id)
        if world.processes[worker_id].holds():
            world.begins_job(worker_id)
        world.results(worker_id)
        if world.processes[worker_id].running is None and world.processes[worker_id].holds():
            world.begins_job(worker_id)


def told(world: World, job_id: int = 0) -> tuple[str | None, str]:
    outcome = world.settled[job_id].outcome
    return outcome.kind, outcome.cause


def last(world: World, *kinds: type) -> list[Any]:
    """The actions of these kinds that the last event brought."""
    return [action for action in world.log if isinstance(action, kinds)]


def die(world: World, worker_id: int = 0) -> None:
    """Let the process end and the shell see it."""
    world.dies(worker_id)
    world.exits(worker_id)


def passes(world: World, seconds: float) -> None:
    """Let the time pass, with a look at every deadline on the way."""
    until = world.now + seconds
    while (at := world.core.next_deadline()) is not None and at <= until:
        world.tick()
    world.now = until


class TestOutcomes:
    def test_a_value_settles_its_job_with_everything_that_is_known(self):
        """A job that returns settles once, with payload, attempts and both instants."""
        world = running()
        world.now = 2.0
        world.ends(0, payload="42")
        world.results(0)
        settled = world.settled[0]
        assert settled.worker_id == 0
        assert settled.outcome == do.Outcome(None, payload="42", attempts=1, begun_at=0.0, ended_at=2.0)

    def test_a_crash_charges_the_job_that_had_begun_and_no_other(self):
        """The running job is a crash; those behind it in the inbox go back uncounted."""
        world = deep()
        die(world)
        assert told(world) == ("crash", "exit")
        assert world.settled.keys() == {0}
        assert {job.attempts for job in world.core.book.jobs.values()} == {0}

    def test_a_job_that_was_read_and_not_begun_goes_back_uncounted(self):
        """Neither returned nor begun when its worker dies: the job runs elsewhere, first attempt."""
        world = serving()
        world.submit(*jobs(1))
        world.reads(0)
        die(world)
        calm(world)
        assert world.settled[0].outcome.attempts == 1
        assert told(world) == (None, "")

    def test_what_ended_before_the_exit_is_told_as_it_ended(self):
        """A result in the channel of a dead worker is the job's outcome."""
        world = running()
        world.ends(0)
        die(world)
        assert told(world) == (None, "")

    def test_too_much_memory_kills_and_charges_the_job_that_runs(self):
        """Memory is the job's failure, with the detail, once the tree is gone."""
        world = running()
        world.memory(0)
        assert last(world, do.KillWorker)
        assert not world.settled
        die(world)
        assert told(world) == ("memory", "memory_limit")
        assert world.settled[0].outcome.detail == "rss"

    def test_memory_of_a_job_that_is_over_is_not_the_next_ones_fault(self):
        """A measurement that names another job than the one at the head is dropped."""
        world = deep()
        world.ends(0)
        world.results(0)
        world.feed(ev.MemoryExceeded(0, 0))
        assert not last(world, do.KillWorker)

    def test_a_neighbour_of_the_guilty_is_lost_and_not_blamed(self):
        """Job 1 had begun in the worker that was killed for job 0: lost, and retried if asked."""
        world = deep(max_retries=1, retry_on=frozenset(["lost"]))
        world.ends(0)
        world.begins_job(0)
        world.cancel(0)
        die(world)
        assert told(world, 0) == (None, "")
        assert world.core.book.jobs[1].attempts == 1
        calm(world)
        assert world.settled[1].outcome.attempts == 2

    def test_every_result_of_a_dying_worker_is_told(self):
        """Two jobs end in time in a worker that is being killed: both are told."""
        world = deep()
        world.ends(0)
        world.begins_job(0)
        world.ends(0)
        world.broken(0)
        die(world)
        assert told(world, 0) == told(world, 1) == (None, "")

    def test_late_ends_of_several_jobs_all_settle_with_the_worker(self):
        """Two jobs of a doomed worker end before the kill reaches it: both wait for its end."""
        world = deep(2)
        world.budget(0.0)
        world.waits(0.5)
        world.ends(0)
        world.begins_job(0)
        world.ends(0)
        world.results(0)
        assert not world.settled
        die(world)
        assert told(world, 0) == told(world, 1) == ("timeout", "search")

    def test_leftovers_hold_the_outcome_until_the_tree_is_gone(self):
        """A job that left processes settles, with its value, only after they are killed."""
        world = running()
        world.ends(0, "leftovers")
        world.results(0)
        assert last(world, do.KillWorker)
        assert not world.settled
        die(world)
        assert told(world) == (None, "")
        assert world.settled[0].outcome.exit == "exited"

    @pytest.mark.parametrize("job_id", [5, 1])
    def test_a_result_of_a_job_that_does_not_run_is_a_crash_that_names_the_protocol(self, job_id):
        """Blame lies with what runs; the foreign result is not believed."""
        world = running()
        world.facts.add(("protocol", 0))
        world.feed(ev.ResultReceived(0, job_id, 0.0, 0.0))
        die(world)
        assert told(world) == ("crash", "protocol")

    def test_a_result_from_a_worker_that_leaves_is_a_protocol_error(self):
        """After its last job a worker tells nothing more."""
        world = deep()
        world.ends(0, "leaving")
        world.results(0)
        world.feed(ev.ResultReceived(0, 1, 0.0, 0.0))
        assert last(world, do.KillWorker)
        world.processes[0].stage = DEAD
        world.exits(0)
        calm(world)


class TestTimeout:
    def test_the_clock_starts_when_the_job_begins(self):
        """Waiting in the inbox does not count."""
        world = serving()
        world.submit(*jobs(1, 2.0))
        passes(world, 10.0)
        world.begins_job(0)
        passes(world, 1.9)
        assert not world.processes[0].dumping
        passes(world, 0.2)
        assert world.processes[0].dumping

    def test_dump_then_kill_then_reaped(self):
        """Each step has its own deadline, and the job settles when the worker is gone."""
        world = running(1, 2.0)
        world.tick()
        assert last(world, do.DumpStack)
        assert world.now == 2.0
        world.tick()
        assert last(world, do.KillWorker)
        assert world.now == 3.0
        assert not world.settled
        die(world)
        assert told(world) == ("timeout", "job_timeout")
        assert world.settled[0].outcome.exit == "exited"

    def test_a_death_during_the_dump_is_still_a_timeout(self):
        """The dump may end the worker."""
        world = running(1, 2.0)
        world.tick()
        die(world)
        assert told(world) == ("timeout", "job_timeout")

    def test_ended_in_time_and_read_late_is_no_timeout(self):
        """The worker's finish decides: the channel is read dry before the deadline is acted on."""
        world = running(1, 2.0)
        world.now = 1.9
        world.ends(0)
        world.tick(late_s=5.0)
        assert told(world) == (None, "")
        assert not last(world, do.DumpStack)

    def test_ended_past_its_time_is_a_timeout_even_without_a_kill(self):
        """A result after the deadline, read before anyone acted, is a timeout with a late payload."""
        world = running(1, 2.0)
        world.now = 2.1
        world.ends(0, payload="late")
        world.results(0)
        assert told(world) == ("timeout", "job_timeout")
        assert world.settled[0].outcome.late_payload == "late"
        assert world.settled[0].outcome.payload is None

    def test_a_failure_past_the_time_has_no_late_payload(self):
        """Only a value is worth keeping."""
        world = running(1, 2.0)
        world.now = 2.1
        world.ends(0, "exception")
        world.results(0)
        assert told(world) == ("timeout", "job_timeout")
        assert world.settled[0].outcome.late_payload is None

    def test_a_job_without_a_limit_runs_as_long_as_it_likes(self):
        """Once it is seen to have begun, no timer is left."""
        world = running()
        world.tick()
        assert world.core.next_deadline() is None

    def test_a_timer_of_a_worker_that_exits_in_the_same_turn_is_void(self):
        """Its exit is handled first."""
        world = running(1, 2.0)
        world.now = 2.5
        assert world.core.due_workers(2.5) == [0]
        die(world)
        assert told(world) == ("crash", "exit")

    def test_timers_wait_until_the_shell_was_told_to_read(self):
        """`handle` acts on no timer that `due_workers` has not named."""
        world = running(1, 2.0)
        world.now = 3.0
        assert world.feed() == []
        assert world.core.due_workers(3.0) == [0]

    def test_a_late_look_at_a_slow_beginner_is_exact(self):
        """The result before was read late: the next job's deadline follows its own stamp."""
        world = serving(max_depth=4)
        world.core.dispatcher.mean_s = 0.0
        world.submit(*jobs(2, 2.0))
        world.begins_job(0)
        world.ends(0)
        world.now = 1.0
        world.begins_job(0)
        world.now = 2.5
        world.results(0)
        world.tick()
        assert not world.processes[0].dumping
        world.tick()
        assert world.now == 3.0
        assert world.processes[0].dumping

    def test_a_stamp_of_an_earlier_attempt_begins_nothing(self):
        """The same job in the same worker again: the old stamp is older than the sending."""
        world = running(1, max_retries=1, retry_on=frozenset(["exception"]))
        world.ends(0, "exception")
        world.now = 1.0
        world.results(0)
        world.feed(ev.JobBegun(0, 0, 0.0))
        assert world.core.roster.workers[0].begun_job_id is None
        die(world)
        calm(world)
        assert world.settled[0].outcome.attempts == 2

    def test_a_job_that_stops_within_its_grace_keeps_its_worker(self):
        """Polite stop: timeout with the late value, and the worker runs the next job."""
        world = running(2, 2.0, grace_s=3.0)
        world.tick()
        assert last(world, do.StopJob) == [do.StopJob(0, 0)]
        world.now = 4.0
        world.ends(0, payload="late")
        world.results(0)
        assert told(world) == ("timeout", "job_timeout")
        assert world.settled[0].outcome.late_payload == "late"
        assert last(world, do.SendJob) == [do.SendJob(0, 1, 1)]

    def test_grace_over_dump_kill(self):
        """Who does not stop is dumped and killed."""
        world = running(1, 2.0, grace_s=3.0)
        passes(world, 5.0)
        assert world.processes[0].dumping
        passes(world, 1.0)
        assert world.processes[0].killed

    def test_a_tree_that_cannot_be_killed_settles_its_job_and_closes_its_slot(self):
        """Unkilled after the kill timeout: told, not retried, and the slot stays closed until exit."""
        world = running(1, 2.0, max_retries=3, retry_on=frozenset(["timeout"]))
        passes(world, 8.0)
        outcome = world.settled[0].outcome
        assert (outcome.kind, outcome.unkilled) == ("timeout", True)
        assert not last(world, do.StartWorker)
        world.processes[0].stage = DEAD
        world.exits(0)
        assert last(world, do.StartWorker)

    def test_what_cannot_be_killed_is_not_run_beside_itself(self):
        """A retry that was asked for needs the first attempt to be over."""
        world = serving(num_workers=2, max_retries=3, retry_on=frozenset(["timeout"]))
        world.submit(*jobs(1, 2.0))
        (worker,) = [i for i, process in world.processes.items() if process.unread]
        world.begins_job(worker)
        passes(world, 8.0)
        assert told(world) == ("timeout", "job_timeout")
        assert world.settled[0].outcome.attempts == 1

    def test_no_job_waits_for_slots_that_are_all_closed(self):
        """With every worker unkillable, jobs fail as startup; after an exit the pool goes on."""
        world = running(2, 2.0)
        passes(world, 8.0)
        assert told(world, 1) == ("startup", "stubborn")
        world.submit(ev.JobSpec(7))
        assert told(world, 7) == ("startup", "stubborn")
        die(world)
        world.submit(ev.JobSpec(8))
        calm(world)
        assert told(world, 8) == (None, "")

    def test_what_a_stubborn_worker_tells_later_is_dropped(self):
        """Its jobs are settled or elsewhere: results, returns and stamps change nothing."""
        world = deep(num_workers=2)
        world.broken(0)
        passes(world, 5.0)
        late = [ev.ResultReceived(0, 0, 0.0, 0.0), ev.JobBegun(0, 0, 0.0), ev.JobsReturned(0, [3])]
        assert world.feed(*late) == []


class TestRetries:
    def test_what_failed_with_an_asked_kind_runs_again_at_the_back(self):
        """Retries wait behind the others and are counted."""
        world = running(2, max_retries=1, retry_on=frozenset(["exception"]))
        world.ends(0, "exception")
        world.results(0)
        assert last(world, do.SendJob) == [do.SendJob(0, 1, 1)]
        calm(world)
        assert world.settled[0].outcome.attempts == 2

    def test_no_more_than_max_retries(self):
        """The last failure settles with all attempts."""
        world = running(1, max_retries=2, retry_on=frozenset(["crash"]))
        for worker_id in range(3):
            if worker_id:
                world.forks(worker_id)
                world.ready(worker_id)
                world.begins_job(worker_id)
            die(world, worker_id)
        assert told(world) == ("crash", "exit")
        assert world.settled[0].outcome.attempts == 3

    def test_other_kinds_are_not_retried(self):
        """Only what was asked for runs twice."""
        world = running(1, max_retries=2, retry_on=frozenset(["crash"]))
        world.ends(0, "exception")
        world.results(0)
        assert told(world) == ("exception", "")

    def test_attempts_of_an_earlier_life_count(self):
        """A job that was handed over again after its supervisor died brings its attempts."""
        world = serving(max_retries=1, retry_on=frozenset(["crash"]))
        world.submit(ev.JobSpec(0, None, attempts=1))
        world.begins_job(0)
        die(world)
        assert world.settled[0].outcome.attempts == 2

    def test_a_retry_that_never_comes_tells_the_failure_it_would_have_mended(self):
        """Refused while it waits for its retry, a job settles as its last attempt ended."""
        world = running(2, max_retries=1, retry_on=frozenset(["exception"]))
        world.ends(0, "exception")
        world.results(0)
        world.close()
        assert told(world) == ("exception", "")
        assert world.settled[0].worker_id == 0

    def test_a_cancelled_job_is_not_retried(self):
        """Its running attempt is killed and that is its end."""
        world = running(1, max_retries=1, retry_on=frozenset(["cancelled"]))
        world.cancel(0)
        die(world)
        assert told(world) == ("cancelled", "cancelled")


class TestStartUp:
    def test_a_slow_start_has_a_limit_of_its_own(self):
        """A worker that is not ready in time is killed, and the jobs go on waiting."""
        world = a_world(start_timeout_s=3.0)
        world.submit(*jobs(1, 1.0))
        world.forks(0)
        passes(world, 2.9)
        assert not world.processes[0].killed
        passes(world, 0.2)
        assert world.processes[0].killed
        calm(world)
        assert told(world) == (None, "")

    @pytest.mark.parametrize("how", ["fails", "dies", "broken"])
    def test_no_endless_respawn(self, how):
        """Start-ups that raise, exit or send garbage break the pool, and it tells how."""
        world = a_world(max_start_failures=3)
        world.submit(*jobs(2))
        for worker_id in range(3):
            assert not world.settled
            world.forks(worker_id)
            world.make((how, worker_id))
            if how != "dies":
                world.dies(worker_id)
            world.exits(worker_id)
            world.tick()
        assert told(world, 0) == told(world, 1) == ("startup", "startup")
        detail = {"fails": "initializer raised", "dies": "exited", "broken": "garbage"}[how]
        assert world.settled[0].outcome.detail == detail
        world.submit(ev.JobSpec(5))
        assert told(world, 5) == ("startup", "startup")
        assert not world.processes

    def test_an_initializer_that_exits_once_and_then_works(self):
        """One failure costs a backoff of 10 ms and nothing else."""
        world = a_world()
        world.submit(*jobs(1))
        world.forks(0)
        die(world)
        assert not last(world, do.StartWorker)
        world.tick()
        assert world.now == pytest.approx(0.01)
        calm(world)
        assert told(world) == (None, "")
        assert world.core.roster.unready.count == 0

    def test_the_backoff_doubles_from_10_ms_to_5_s(self):
        """Rule 9's numbers."""
        policy = Policy()
        assert [policy.backoff_s(row) for row in (1, 2, 3)] == [0.01, 0.02, 0.04]
        assert policy.backoff_s(10) == policy.backoff_s(1_000) == 5.0

    def test_failures_side_by_side_are_one(self):
        """Eight workers on one broken initializer fail once."""
        world = a_world(num_workers=8, max_start_failures=2)
        world.submit(*jobs(1))
        for worker_id in range(8):
            world.forks(worker_id)
        for worker_id in range(8):
            world.waits(0.001)
            world.fails(worker_id)
            die(world, worker_id)
        assert not world.settled
        assert world.core.roster.unready.count == 1

    def test_never_broken_while_a_worker_serves(self):
        """Failures beside a serving worker only slow the others down; when it goes, they count."""
        world = a_world(num_workers=2, max_start_failures=1)
        for worker_id in (0, 1):
            world.forks(worker_id)
        world.ready(0)
        world.submit(*jobs(2))
        world.begins_job(0)
        die(world, 1)
        assert not world.core.roster.sealed
        world.tick()
        die(world, 0)
        die(world, 2)
        assert told(world, 0) == ("crash", "exit")
        assert told(world, 1) == ("startup", "startup")

    def test_workers_that_are_ready_and_die_over_every_job_break_the_pool(self):
        """Ready in between, but no job ever begun: nothing would ever settle."""
        world = a_world(max_start_failures=3)
        world.submit(*jobs(1))
        for worker_id in range(3):
            world.forks(worker_id)
            world.ready(worker_id)
            die(world, worker_id)
            world.tick()
        assert told(world) == ("startup", "startup")

    def test_an_idle_worker_killed_from_outside_costs_nothing(self):
        """However often: the pool is not broken by it, only paced."""
        world = a_world(max_start_failures=2)
        for worker_id in range(5):
            world.forks(worker_id)
            world.ready(worker_id)
            die(world, worker_id)
            assert world.core.next_deadline() == pytest.approx(world.now + 0.01)
            world.tick()
        assert world.core.roster.started_count == 6
        world.submit(*jobs(1))
        calm(world)
        assert told(world) == (None, "")

    def test_an_unresponsive_worker_is_replaced(self):
        """It has a job and never begins it: killed after the start-up limit, the job uncounted."""
        world = serving(start_timeout_s=3.0)
        world.submit(*jobs(1))
        passes(world, 3.0)
        assert world.processes[0].killed
        calm(world)
        assert world.settled[0].outcome.attempts == 1

    def test_a_worker_that_never_reads_does_not_play_ball_for_ever(self):
        """What is taken back comes to it again, but the time it was not heard of adds up."""
        world = serving(start_timeout_s=3.0, max_depth=4, hold_up_s=0.5)
        world.core.dispatcher.mean_s = 0.0
        world.submit(*jobs(3))
        while not world.processes[0].killed:
            world.tick()
            if world.processes[0].asked_back:
                world.returns(0)
            assert world.now <= 3.0

    def test_a_spare_takes_the_slot_at_once(self):
        """A warm spare stands ready; taking its slot is one order, and another spare is started."""
        world = serving(spares=1)
        world.submit(*jobs(2))
        world.begins_job(0)
        die(world)
        assert last(world, do.AssignSlot) == [do.AssignSlot(1, 0)]
        assert last(world, do.StartWorker) == [do.StartWorker(2)]

    def test_a_spare_is_starting_until_it_is_forked(self):
        """So long its start wants a core, and nobody should wait awake on that."""
        world = serving(spares=1)
        assert not world.core.roster.is_starting
        world.submit(*jobs(2))
        world.begins_job(0)
        die(world)
        seen = [world.core.roster.is_starting]
        world.feed(ev.WorkerForked(2))
        assert [*seen, world.core.roster.is_starting] == [True, False]

    def test_a_blank_spare_may_wait_without_end(self):
        """Only those that should be getting ready have a limit."""
        world = serving(spares=1)
        passes(world, 1000.0)
        assert not last(world, do.KillWorker)
        assert not world.processes[1].killed

    def test_ready_or_failed_out_of_turn_is_dropped(self):
        """A worker that is ready twice, or fails once it is, changes nothing."""
        world = serving()
        assert world.feed(ev.WorkerReady(0), ev.StartFailed(0), ev.WorkerForked(0)) == []

    def test_an_unkillable_start_is_counted_when_it_is_given_up(self):
        """A start-up that hangs beyond SIGKILL closes its slot and fails what waits."""
        world = a_world(start_timeout_s=3.0, max_start_failures=1)
        world.submit(*jobs(1))
        passes(world, 8.0)
        assert told(world) == ("startup", "startup")


class TestTemplate:
    def test_its_death_costs_the_jobs_that_run(self):
        """They are lost; what had not begun runs with the next template."""
        world = running(2)
        world.template_exits()
        assert last(world, do.StartTemplate)
        die(world)
        assert told(world) == ("lost", "template")
        calm(world)
        assert told(world, 1) == (None, "")

    @pytest.mark.parametrize("forks", [False, True])
    def test_a_template_that_never_leads_to_a_worker_breaks_the_pool(self, forks):
        """Dead before or after it is ready: it is not restarted without end."""
        world = a_world(max_start_failures=3)
        world.submit(*jobs(1))
        for worker_id in range(3):
            if forks:
                world.forks(worker_id)
            world.template_exits()
            die(world, worker_id)
            world.tick()
        assert told(world) == ("startup", "startup")
        assert world.settled[0].outcome.detail == "template gone"

    def test_killed_from_outside_it_is_started_at_once(self):
        """After a worker of it was ready, its death is an accident and waits for no backoff."""
        world = serving()
        world.template_exits()
        assert last(world, do.StartTemplate)


class TestInbox:
    def test_short_jobs_wait_in_the_inbox(self):
        """Once jobs are known to be short, the inbox is filled up to its depth."""
        world = deep(9)
        assert len(world.processes[0].holds()) == 4
        for _ in range(2):
            world.ends(0)
            world.begins_job(0)
        world.results(0)
        assert [action.job_id for action in last(world, do.SendJob)] == [4, 5]

    def test_long_jobs_are_sent_one_by_one(self):
        """By default nobody waits behind a job of unknown length."""
        world = running(3, max_depth=9)
        assert len(world.processes[0].holds()) == 1
        assert Policy(depth_target_s=0.002).depth(0.0001, 9) == 20
        assert Policy(depth_target_s=0.002).depth(1.0, 9) == 1
        assert Policy(max_depth=8).depth(0.0, 9) == Policy(max_depth=8).depth(-1.0, 9) == 8
        assert Policy(max_depth=8).depth(5e-324, 9) == 8

    def test_the_next_job_lies_behind_one_of_known_length(self):
        """While many wait: a worker need not wait for the supervisor between two jobs of a tenth of a second."""
        world = ahead(4)
        assert [job_id for job_id, _ in world.processes[0].holds()] == [0, 1]
        for sent in ([do.SendJob(0, 2, 1)], []):  # the last one is better not bound to this worker
            world.ends(0)
            world.begins_job(0)
            world.results(0)
            assert last(world, do.SendJob) == sent

    def test_the_next_job_lies_behind_one_that_was_submitted_before_it(self):
        """Workers that got their jobs when no other one waited are caught up with, save where one takes long."""
        world = serving(hold_up_s=0.005, max_depth=9, num_workers=3)
        world.core.dispatcher.mean_s = 0.1
        world.submit(ev.JobSpec(0, None))
        world.now = 0.25
        world.submit(ev.JobSpec(1, None))
        world.submit(*(ev.JobSpec(job_id, None) for job_id in range(2, 11)))
        held = sorted([job_id for job_id, _ in process.holds()] for process in world.processes.values())
        assert [len(each) for each in held] == [1, 2, 2]
        assert held[:2] == [[0], [1, held[1][1]]]

    @pytest.mark.parametrize("policy", [{"ahead_s": 0.05}, {"max_depth": 1}, {"max_tasks_per_child": 1}])
    def test_nothing_lies_behind_a_job_where_it_must_not(self, policy: dict[str, Any]):
        """Jobs that take long, and policies that want one at a time; their results are waited for."""
        world = ahead(9, **policy)
        assert len(world.processes[0].holds()) == 1
        assert world.core.dispatcher.leisure_s == 0.0

    def test_what_lies_ahead_waits_as_long_as_jobs_take(self):
        """A job may take twice the mean before what lies behind it is taken back; it then counts as a long one."""
        world = ahead(4)
        assert world.core.next_deadline() == pytest.approx(0.2)
        world.tick()
        assert last(world, do.TakeBack) == [do.TakeBack(0)]
        assert world.core.dispatcher.mean_s > 0.1

    def test_a_job_that_came_back_already_is_not_asked_for_again(self):
        """What lay behind the other job was cancelled, and an idle worker has nothing to take over."""
        world = ahead(6, num_workers=2)
        world.begins_job(1)
        behind = [job.job_id for job in world.core.roster.workers[0].inbox][1]
        world.cancel(behind)
        world.returns(0)
        for job_id in [job.job_id for job in world.core.book.queue]:
            world.cancel(job_id)
        works_until_idle(world, 1)
        assert last(world, do.TakeBack) == []

    def test_results_may_wait_while_workers_have_their_next_jobs(self):
        """A sixth of a job's time, but not once little is left, nor while a worker is about to die."""
        world = ahead(9, num_workers=2)
        assert world.core.dispatcher.leisure_s == pytest.approx(0.016)
        world.cancel(0)
        assert world.core.dispatcher.leisure_s == 0.0
        die(world)
        assert ahead(3, num_workers=2).core.dispatcher.leisure_s == 0.0

    def test_a_timer_whose_job_is_over_wakes_nobody(self):
        """It is set for the job that runs now, or goes where that needs none."""
        world = serving()
        world.submit(ev.JobSpec(0, 1.0), ev.JobSpec(1, 1.0), ev.JobSpec(2, None))
        for finished_at in (0.8, 1.6):
            world.begins_job(0)
            world.now = finished_at
            world.ends(0)
            world.results(0)
            world.feed()
        world.begins_job(0)
        world.feed(ev.JobBegun(0, 2, world.now))
        assert world.core.next_deadline() is None

    def test_an_idle_worker_gets_what_lies_behind_another_job(self):
        """At the end of a search nobody is idle beside a job that waits; what was begun meanwhile stays where it is."""
        world = ahead(6, num_workers=2)
        world.begins_job(1)
        works_until_idle(world, 1)
        assert last(world, do.TakeBack) == [do.TakeBack(0)]
        world.returns(0)
        assert [action.worker_id for action in last(world, do.SendJob)] == [1]

    def test_no_more_jobs_than_a_worker_may_run(self):
        """`max_tasks_per_child` bounds what is sent; then the worker leaves and is replaced."""
        world = deep(4, max_tasks_per_child=3)
        assert len(world.processes[0].holds()) == 3
        for _ in range(2):
            world.ends(0)
            world.begins_job(0)
        world.ends(0)
        world.results(0)
        assert world.core.roster.workers[0].state.name == "LEAVING"
        die(world)
        assert last(world, do.StartWorker)
        calm(world)

    def test_what_a_longer_job_holds_up_is_taken_back(self):
        """After the hold-up the jobs behind go to whoever is idle, uncounted."""
        world = deep(3, num_workers=2)
        short, long = sorted((0, 1), key=lambda i: len(world.processes[i].holds()))
        for worker_id in {short, long} - {0}:
            world.begins_job(worker_id)
        world.ends(short)
        world.results(short)
        world.tick()
        assert last(world, do.TakeBack) == [do.TakeBack(long)]
        world.returns(long)
        assert [action.worker_id for action in last(world, do.SendJob)] == [short]

    def test_what_comes_back_keeps_its_turn(self):
        """Taken back in their order, in front of those that came later."""
        world = deep(6)
        world.returns(0)
        assert [job.job_id for job in world.core.book.queue] == [1, 2, 3, 4, 5]

    def test_an_empty_answer_is_no_matter(self):
        """Everything was read before it could be taken back."""
        world = deep(1)
        assert world.feed(ev.JobsReturned(0, [])) == []

    def test_a_worker_that_read_nothing_is_idle_again(self):
        """Everything came back, so it can be given something else."""
        world = serving(max_depth=4, hold_up_s=0.5)
        world.core.dispatcher.mean_s = 0.0
        world.submit(*jobs(2))
        world.cancel(1)
        world.returns(0)
        assert last(world, do.SendJob) == [do.SendJob(0, 0, 1)]

    def test_a_worker_that_leaves_gives_back_what_it_has_not_begun(self):
        """And it is killed if it does not end by itself."""
        world = deep(2)
        world.ends(0, "leaving")
        world.results(0)
        world.returns(0)
        passes(world, 1.0)
        assert world.processes[0].killed
        calm(world)

    def test_jobs_that_a_worker_does_not_hold_cannot_come_back(self):
        """A contradiction is our bug and says so."""
        world = running()
        with pytest.raises(InternalError, match="does not hold"):
            world.core.handle([ev.JobsReturned(0, [77])], 0.0)


class TestUser:
    def test_a_submission_does_not_look_through_the_jobs_that_wait(self):
        """A million of them are submitted in two thousand parts."""

        class Unending(dict[int, JobRecord]):
            def __iter__(self) -> Any:
                pytest.fail("all jobs are looked through")

        core = Supervisor(Policy(), 0.0)
        core.book.jobs = Unending()
        for batch in ([ev.JobSpec(0)], [ev.JobSpec(1), ev.JobSpec(2)]):
            core.handle([ev.JobsSubmitted(batch)], 0.0)
        assert len(core.book.jobs) == 3

    def test_one_id_one_job(self):
        """An id in use, or twice in a batch, is refused and nothing of the batch is taken in."""
        core = Supervisor(Policy(), 0.0)
        core.handle([ev.JobsSubmitted(jobs(1))], 0.0)
        for batch in ([ev.JobSpec(1), ev.JobSpec(0)], [ev.JobSpec(1), ev.JobSpec(1)]):
            with pytest.raises(InternalError, match="twice"):
                core.handle([ev.JobsSubmitted(batch)], 0.0)
        assert core.book.submitted_count == len(core.book.jobs) == 1

    def test_a_waiting_job_is_cancelled_at_once(self):
        """It never begins, and cancelling it again or once it is over changes nothing."""
        world = a_world()
        world.submit(*jobs(3))
        world.cancel(1)
        assert told(world, 1) == ("cancelled", "cancelled")
        world.cancel(1)
        calm(world)
        assert world.begins[1] == 0

    def test_a_running_job_is_killed(self):
        """Cancelled when its tree is gone; asked twice, killed once."""
        world = running()
        world.cancel(0)
        assert last(world, do.KillWorker)
        world.cancel(0)
        assert not last(world, do.KillWorker)
        die(world)
        assert told(world) == ("cancelled", "cancelled")

    def test_a_job_in_an_inbox_is_taken_back(self):
        """Its worker lives on; if it began in between, it is killed then."""
        world = deep(3)
        world.cancel(1)
        assert last(world, do.TakeBack)
        world.returns(0)
        assert told(world, 1) == ("cancelled", "cancelled")
        world = deep(3)
        world.cancel(1)
        world.ends(0)
        world.begins_job(0)
        world.results(0)
        assert last(world, do.KillWorker)
        die(world)
        assert told(world, 1) == ("cancelled", "cancelled")

    def test_cancelled_in_a_worker_that_dies_anyway_needs_no_order(self):
        """The job settles with its worker's end."""
        world = deep(3)
        world.broken(0)
        world.cancel(1)
        assert world.log == []
        die(world)
        assert told(world, 1) == ("cancelled", "cancelled")

    def test_the_budget_ends_what_runs_and_what_waits(self):
        """What runs is a timeout of the search; what waits is cancelled, and so is what comes."""
        world = deep(5)
        world.budget(3.0)
        while not world.processes[0].dumping:
            world.tick()
        assert world.now == 3.0
        assert told(world, 4) == ("cancelled", "search")
        die(world)
        assert told(world, 0) == ("timeout", "search")
        assert told(world, 1) == ("cancelled", "search")
        world.submit(ev.JobSpec(9))
        assert told(world, 9) == ("cancelled", "search")

    def test_a_new_budget_lets_the_search_go_on(self):
        """`set_timeout` again: what is submitted then runs."""
        world = serving()
        world.budget(0.0)
        world.tick()
        world.budget(None)
        world.submit(*jobs(1))
        calm(world)
        assert told(world) == (None, "")

    def test_ended_within_the_budget_and_read_late_is_no_timeout(self):
        """The shell is told to read every busy worker before the budget is acted on."""
        world = running()
        world.budget(2.0)
        world.ends(0)
        world.tick(1.0)
        assert told(world) == (None, "")
        assert not world.processes[0].condemned

    def test_who_stops_within_the_grace_of_the_budget_runs_nothing_more(self):
        """The job behind had begun: it is stopped in its turn, and the worker survives."""
        world = deep(2, grace_s=5.0)
        world.budget(1.0)
        world.ends(0)
        world.begins_job(0)
        world.waits(1.5)
        world.feed()
        world.core.due_workers(world.now)
        world.facts.add(("search",))
        world.feed()
        assert last(world, do.StopJob) == [do.StopJob(0, 0)]
        world.results(0)
        assert last(world, do.StopJob) == [do.StopJob(0, 1)]
        world.waits(0.5)
        world.ends(0)
        world.results(0)
        assert told(world, 0) == (None, "")
        assert told(world, 1) == ("timeout", "search")
        assert world.core.roster.idle

    def test_a_worker_that_was_stopped_before_it_began_is_spared(self):
        """Everything came back unread: nothing is wrong with it."""
        world = serving(grace_s=5.0)
        world.submit(*jobs(1))
        world.budget(0.0)
        world.returns(0)
        assert told(world) == ("cancelled", "search")
        assert world.core.roster.idle

    def test_what_is_urgent_ends_a_grace(self):
        """Memory or a cancel kill at once and the first reason stands; the search's end waits."""
        world = running(1, 2.0, grace_s=100.0)
        world.tick()
        world.budget(1.0)
        world.tick()
        assert not world.processes[0].killed
        world.memory(0)
        assert last(world, do.KillWorker)
        die(world)
        assert told(world) == ("timeout", "job_timeout")

    def test_close_kills_and_finishes(self):
        """Idle, busy, blank: all are killed; it finishes once, when the last is gone."""
        world = running(3, num_workers=2, spares=1)
        world.close()
        assert len(last(world, do.KillWorker)) == 3
        assert told(world, 2) == ("cancelled", "closed")
        world.close()
        assert world.log == []
        for worker_id in (0, 1, 2):
            assert not world.finished
            die(world, worker_id)
        assert world.finished
        assert told(world) == ("cancelled", "closed")
        world.submit(ev.JobSpec(9))
        assert told(world, 9) == ("cancelled", "closed")

    def test_close_ends_a_grace(self):
        """A polite stop does not outlive the pool, nor does a worker that stops in time."""
        world = running(1, 2.0, grace_s=100.0)
        world.tick()
        world.close()
        assert last(world, do.KillWorker)
        die(world)
        assert world.finished

    def test_close_is_bounded_among_the_unkillable(self):
        """After the kill timeout all is told and the pool is finished."""
        world = running(2, num_workers=2)
        world.close()
        world.tick()
        assert world.now == 4.0
        assert world.finished
        assert [s.outcome.unkilled for s in world.settled.values() if s.outcome.attempts] == [True]

    def test_a_late_event_about_a_worker_that_is_gone_is_dropped(self):
        """Ids are never used again, so there is no doubt about whom it means."""
        world = running()
        die(world)
        world.late(0, 0)

    def test_no_order_is_given_to_a_worker_whose_exit_was_seen(self):
        """What was read in the same turn would have led to one."""
        world = deep(3)
        world.cancel(1)
        world.ends(0)
        world.begins_job(0)
        die(world)
        assert not last(world, do.KillWorker, do.TakeBack)


class TestContradictions:
    def test_the_tables_are_the_law(self):
        """A transition that is not in a table is our bug."""
        with pytest.raises(InternalError, match="a worker that is GONE cannot be 'sent'"):
            WORKER_TRANSITIONS[WorkerState.GONE, "sent"]
        with pytest.raises(InternalError, match="a job that is SETTLED cannot be 'sent'"):
            JOB_TRANSITIONS[JobState.SETTLED, "sent"]

    def test_finishing_with_a_job_left_is_our_bug(self):
        """It is said, and never waited for."""
        world = serving()
        world.core.book.jobs[7] = JobRecord(7, None, 0)
        with pytest.raises(InternalError, match="left when all is over"):
            world.core.handle([ev.CloseRequested(), ev.WorkerExited(0)], 0.0)
