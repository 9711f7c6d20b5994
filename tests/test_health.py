"""The evaluator's own health: counts by kind, and a search that stops when its set-up is broken."""

import time

import pytest
from waiting import wait_until

from robust_eval import Evaluator, InvalidArgument, SearchBroken
from robust_eval.evaluators.tally import Tally
from robust_eval.processes.health import Health
from robust_eval.supervision.actions import Outcome

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

METHODS = ["serial", "thread", "process"]


def fail(job):
    raise ValueError("the data file is missing")


def fail_or_stay(job):
    if job["x"] >= 5:
        time.sleep(3600)
    raise ValueError("the data file is missing")


def fail_rarely(job):
    if job["x"] % 10 == 0:
        raise ValueError("a hard one")
    return job["x"]


@pytest.mark.parametrize("method", METHODS)
def test_failures_in_a_row_stop_the_search_and_lose_nothing(method):
    """Gather says what happened after the failures in a row; all jobs, run or not, can still be gathered."""
    with Evaluator.create(fail, method, {"num_workers": 2, "max_consecutive_failures": 5}) as evaluator:
        evaluator.submit([{"x": number} for number in range(2000)])
        with pytest.raises(SearchBroken, match=r"jobs in a row failed \(max_consecutive_failures=5\).*data file"):
            evaluator.gather("ALL")
        jobs = evaluator.gather("ALL")
    assert len(jobs) == 2000
    # Threads may have been through all of them before anybody gathered.
    assert {job.failure.kind for job in jobs} <= {"exception", "cancelled"}
    assert evaluator.stats()["outcomes"]["exception"] >= 5


def test_a_broken_search_does_not_wait_for_what_runs():
    """The jobs after the failures would run for an hour: they are killed or never begun, and told as cancelled."""
    with Evaluator.create(fail_or_stay, "process", {"num_workers": 2, "max_consecutive_failures": 5}) as evaluator:
        evaluator.submit([{"x": number} for number in range(40)])
        with pytest.raises(SearchBroken):
            evaluator.gather("ALL")
        jobs = evaluator.gather("ALL")
    kinds = {job.config["x"]: job.failure.kind for job in jobs}
    assert kinds == {number: "exception" if number < 5 else "cancelled" for number in range(40)}


@pytest.mark.parametrize("method", METHODS)
def test_a_rate_of_failures_is_judged_from_twenty_jobs_on(method):
    """A search with one failure in ten goes on under a limit of 0.2 and stops under one of 0.05."""
    with Evaluator.create(fail_rarely, method, {"max_failure_rate": 0.2}) as evaluator:
        evaluator.submit([{"x": number} for number in range(100)])
        assert len(evaluator.gather("ALL")) == 100
        assert evaluator.stats()["outcomes"] == {"ok": 90, "exception": 10}
    with Evaluator.create(fail_rarely, method, {"max_failure_rate": 0.05}) as evaluator:
        evaluator.submit([{"x": number} for number in range(100)])
        with pytest.raises(SearchBroken, match=r"max_failure_rate=0\.05"):
            evaluator.gather("ALL")
        assert len(evaluator.gather("ALL")) == 100


def test_stats_of_a_pool_tell_of_its_workers_and_its_supervisor():
    """Workers by state, how many were started, and what the supervisor itself takes."""
    with Evaluator.create(fail_rarely, "process", {"num_workers": 2}) as evaluator:
        evaluator.submit([{"x": number} for number in range(50)])
        evaluator.gather("ALL")
        stats = evaluator.stats()
    assert stats["jobs"] == {"submitted": 50, "settled": 50, "unsettled": 0, "gathered": 50}
    assert stats["workers"]["idle"] >= 1
    assert sum(stats["workers"].values()) == 3, "two slots and a spare"
    assert stats["workers_started"] >= 3
    assert 0.0 <= stats["utilisation"] <= 1.0
    assert stats["supervisor"]["memory"] > 0
    assert stats["queued"] == stats["sent"] == 0


@pytest.mark.parametrize("rate", [-0.1, 1.5, "half", True, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    """The message names the value and what is allowed."""
    with pytest.raises(InvalidArgument, match="from 0 to 1"):
        Tally(lambda item: item, max_failure_rate=rate)


def test_cancelled_jobs_break_no_search():
    """Closing a search is nobody's failure."""
    tally = Tally(lambda item: item, 0.1, 3)
    assert not tally.observe(["cancelled"] * 100)
    assert not tally.observe([None] * 100)
    assert tally.observe(["crash"] * 3)
    assert not tally.observe(["crash"])


def stay(job):
    kept = b"x" * (40 << 20)
    time.sleep(3600)
    return len(kept)


def test_each_worker_tells_what_it_runs():
    """The job's id, how long it has run against its limit, what it holds against its limit; by slot; none when idle."""
    limits = {"num_workers": 3, "job_timeout": 500.0, "memory_limit": "1GiB"}
    with Evaluator.create(stay, "process", limits) as evaluator:
        assert evaluator.stats()["running"] == []
        evaluator.submit([{}, {}])
        wait_until(lambda: [each["memory"] > 40 << 20 for each in evaluator.stats()["running"]] == [True, True])
        running = evaluator.stats()["running"]
    assert {each["job"] for each in running} == {"0.0", "0.1"}
    assert [each["slot"] for each in running] == sorted({each["slot"] for each in running})
    for each in running:
        assert each["job_timeout"] == 500.0
        assert each["memory_limit"] == 1 << 30
        assert 0.0 < each["seconds"] < 500.0
        assert each["state"] == "busy"


def test_the_slot_of_the_last_worker_is_remembered():
    """A job may settle after another worker took the slot; what is older is forgotten."""
    health = Health(0.0)
    for worker in range(4):
        health.assigned(worker, 7)
    assert [health.settled(Outcome(None), worker) for worker in (1, 2, 3, None)] == [None, 7, 7, None]
