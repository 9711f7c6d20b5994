"""Memory limits against real hogs at full speed: caught in time, and only those who are over."""

import os
import time

import numpy as np
import pytest

from robust_eval import ProcessPoolEvaluator, RunningJob
from stress.faults import CATALOGUE

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

MIB = 2**20
LIMIT = 512 * MIB
# The others are in the full run of the catalogue, in stress/.
HOGS = ("eat_memory_with_one_array", "eat_memory_in_a_daemon", "eat_memory_in_eight_children", "eat_memory_slowly")


@pytest.mark.parametrize("name", HOGS)
def test_a_hog_is_caught_within_a_tenth_over_its_limit(name: str):
    """A job that fills 4 GiB as fast as it can, by itself or in children, is stopped at 512 MiB, 10% or 64 MiB over."""
    fault = CATALOGUE[name]
    with ProcessPoolEvaluator(fault.run, memory_limit=LIMIT) as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
    assert job.failure is not None
    assert job.failure.kind == "memory", job.failure.render()
    fault.check(job)


def share_among_four(job: RunningJob) -> int:
    """Four forks that only read what their parent holds; returns what the kernel says they take together."""
    shared = np.ones(300 * MIB, dtype=np.uint8)
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            ends_at = time.monotonic() + 1.0
            while time.monotonic() < ends_at:
                shared.sum()
            os._exit(0)
        pids.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    return sum(codes)


def test_forks_that_share_memory_are_counted_once():
    """Four forks that share 300 MiB are 300 MiB, not 1.5 GiB: a limit of 1 GiB does not strike them."""
    with ProcessPoolEvaluator(share_among_four, memory_limit="1GiB") as evaluator:
        evaluator.submit([{}])
        (job,) = evaluator.gather("ALL")
    assert job.failure is None, job.failure.render()
    assert job.objective == 0
    assert 300 * MIB <= job.metadata["peak_memory"] < 1024 * MIB


def hold(job: RunningJob) -> float:
    """Hold so much for so long."""
    hoard = np.ones(job["size"], dtype=np.uint8)
    time.sleep(job["seconds"])
    return float(hoard[-1])


def test_a_job_under_its_limit_is_left_alone():
    """A job that stays a little under its limit delivers, and its peak is told."""
    with ProcessPoolEvaluator(hold, memory_limit=LIMIT) as evaluator:
        evaluator.submit([{"size": 400 * MIB, "seconds": 0.2}])
        (job,) = evaluator.gather("ALL")
    assert job.failure is None, job.failure.render()
    assert 400 * MIB <= job.metadata["peak_memory"] < LIMIT


def test_the_peak_belongs_to_its_own_job():
    """A small job after a large one in the same worker is told with its own peak."""
    with ProcessPoolEvaluator(hold, num_workers=1) as evaluator:
        evaluator.submit([{"size": 256 * MIB, "seconds": 0.05}])
        evaluator.gather("ALL")
        evaluator.submit([{"size": MIB, "seconds": 0.05}])
        (small,) = evaluator.gather("ALL")
    assert small.metadata["peak_memory"] < 200 * MIB


def test_each_job_has_its_own_limit():
    """A limit given with the job counts for that job alone."""
    with ProcessPoolEvaluator(hold, num_workers=2) as evaluator:
        configs = [{"size": 200 * MIB, "seconds": 0.6, "limit": limit} for limit in (100 * MIB, 400 * MIB)]
        evaluator.submit(configs, memory_limit=lambda config: config["limit"])
        jobs = {job.config["limit"]: job for job in evaluator.gather("ALL")}
    assert jobs[100 * MIB].failure.kind == "memory"
    assert jobs[400 * MIB].failure is None


def hold_and_hang_or_die(job: RunningJob) -> float:
    hoard = np.ones(100 * MIB, dtype=np.uint8)
    while job["way"] == "hang":
        hoard.sum()
    os.abort()


def test_without_a_limit_a_kill_tells_the_memory_and_a_crash_tells_none():
    """What a job held at the end of its time is measured; of one that died before anybody looked nothing is said."""
    with ProcessPoolEvaluator(hold_and_hang_or_die, num_workers=2, job_timeout=1.0) as evaluator:
        evaluator.submit([{"way": "hang"}, {"way": "die"}])
        hung, dead = sorted(evaluator.gather("ALL"), key=lambda job: job.id)
    assert (hung.failure.kind, dead.failure.kind) == ("timeout", "crash")
    assert 100 * MIB < hung.metadata["peak_memory"] < 400 * MIB
    assert hung.failure.peak_memory == hung.metadata["peak_memory"]
    assert dead.metadata["peak_memory"] is None


def test_the_next_job_of_an_inbox_is_held_to_its_own_limit():
    """It is looked at from its begin on, although the job before it has no limit and was not looked at for long."""
    hogs = [9, 10]
    with ProcessPoolEvaluator(hold, num_workers=1) as evaluator:
        small = {"size": 1, "seconds": 0.03}
        evaluator.submit([small] * 4)
        evaluator.gather("ALL")
        configs = [{**small, "size": 300 * MIB if x in hogs else 1, "seconds": 0.15} for x in range(14)]
        evaluator.submit(configs, memory_limit=lambda config: 100 * MIB if config["size"] > 1 else None)
        jobs = evaluator.gather("ALL")
    kinds = {job.id: None if job.failure is None else job.failure.kind for job in jobs}
    assert [x for x in range(14) if kinds[f"0.{x + 4}"] is not None] == hogs
    assert {kinds[f"0.{x + 4}"] for x in hogs} == {"memory"}
