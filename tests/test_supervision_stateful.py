"""The core as a Hypothesis state machine: rules are what users, workers and the clock can do.

The invariants are checked after each step by the simulated world, which also judges every outcome
by what really happened. The model here is another, simpler one: how each job must end where that
is certain, and how often it must have been tried.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from robust_eval.supervision.events import JobSpec
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.transitions import JobState
from stress.books import SERVING
from stress.virtual import RESULTS, World, calm, end, end_among_the_unkillable, helpful

KINDS = ("exception", "timeout", "crash", "lost", "memory")
policies = st.builds(
    Policy,
    num_workers=st.integers(1, 3),
    spares=st.integers(0, 2),
    max_retries=st.integers(0, 2),
    retry_on=st.frozensets(st.sampled_from(KINDS)),
    grace_s=st.sampled_from((0.0, 1.0)),
    dump_s=st.just(0.5),
    kill_timeout_s=st.just(3.0),
    start_timeout_s=st.just(5.0),
    max_tasks_per_child=st.sampled_from((None, 1, 2)),
    max_start_failures=st.integers(2, 4),
    hold_up_s=st.sampled_from((0.5, 1.0)),
    max_depth=st.sampled_from((1, 4)),
    depth_target_s=st.sampled_from((0.5, 5.0)),
)


class Supervision(RuleBasedStateMachine):
    """One supervisor, its world, and what its jobs must come to."""

    world: World

    @initialize(policy=policies)
    def begin(self, policy: Policy) -> None:
        self.world = World(policy)
        self.submitted = 0

    @rule(count=st.integers(1, 4), timeout_s=st.sampled_from((None, 1.0, 2.0)))
    def submit(self, count: int, timeout_s: float | None) -> None:
        ids = range(self.submitted, self.submitted + count)
        self.submitted += count
        refusing = self.world.core.book.refusing
        self.world.submit(*[JobSpec(job_id, timeout_s) for job_id in ids])
        if refusing:
            assert self.world.settled.keys() >= set(ids)

    @rule(data=st.data(), steps=st.integers(1, 5))
    def move(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            moves = list(self.world.moves())
            if moves:
                self.world.make(data.draw(st.sampled_from(moves)))

    @rule(steps=st.integers(1, 12))
    def go_well(self, steps: int) -> None:
        """Let what is asked for be done, so that the faults meet a pool that works."""
        for _ in range(steps):
            self.world.make(helpful(self.world))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), how=st.sampled_from((*RESULTS, "memory", "dies", "reaped", "stays")))
    def end_a_job(self, data: st.DataObject, how: str) -> None:
        worker_id = data.draw(st.sampled_from(self.running()))
        if how == "stays":  # until its limit, its grace, its dump and its kill have passed
            for _ in range(4):
                self.world.tick()
            return
        self.world.make(("dies" if how == "reaped" else how, worker_id))
        if how == "reaped":
            self.world.exits(worker_id)

    def running(self) -> list[int]:
        processes = self.world.processes.items()
        return [i for i, p in processes if p.running is not None and p.stage == SERVING]

    @rule(late_s=st.sampled_from((0.0, 0.3, 2.0)))
    def tick(self, late_s: float) -> None:
        self.world.tick(late_s)

    @rule(seconds=st.sampled_from((0.1, 0.4, 1.1)))
    def wait(self, seconds: float) -> None:
        self.world.waits(seconds)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.integers(0, self.submitted - 1))
        begun = self.world.begins[job_id]
        settled = job_id in self.world.settled
        self.world.cancel(job_id)
        waiting = job_id in self.world.core.book.jobs
        if not settled and not waiting and not begun:
            assert self.world.settled[job_id].outcome.kind == "cancelled"

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        job_id = data.draw(st.integers(0, self.submitted - 1))
        waiting = {job.job_id for job in self.world.core.book.queue if job.state is JobState.QUEUED and not job.failed}
        self.world.withdraw(job_id)
        if job_id in waiting:
            assert self.world.settled[job_id].outcome.cause == "withdrawn"

    @rule(seconds=st.sampled_from((None, 0.0, 1.0)))
    def budget(self, seconds: float | None) -> None:
        self.world.budget(seconds)

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data())
    def late_event(self, data: st.DataObject) -> None:
        gone = [i for i in range(max(self.world.processes)) if i not in self.world.processes]
        if gone:
            self.world.late(data.draw(st.sampled_from(gone)), 0)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if self.submitted % 3:
            calm(self.world)
            self._as_the_model_says()
        (end if self.submitted % 2 else end_among_the_unkillable)(self.world)

    def _as_the_model_says(self) -> None:
        """Every job once, and each retry that was asked for was made unless something forbade it."""
        world = self.world
        outcomes = {job_id: settle.outcome for job_id, settle in world.settled.items()}
        assert outcomes.keys() == set(range(self.submitted))
        unkilled = any(outcome.unkilled for outcome in outcomes.values())
        excused = unkilled or world.core.roster.sealed or ("search",) in world.facts
        for job_id, outcome in outcomes.items():
            assert outcome.attempts <= world.policy.max_retries + 1
            if outcome.kind in world.policy.retry_on and not excused:
                tried = outcome.attempts == world.policy.max_retries + 1
                assert tried or ("cancelled", job_id) in world.facts


def test_the_core_under_every_row_of_events() -> None:
    """Whatever happens in whatever order, each job settles once, truly, and the pool can close."""
    run_state_machine_as_test(
        Supervision,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
