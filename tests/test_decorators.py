import asyncio
import pickle
import threading

import pytest

from robust_eval.decorators import profile, queued
from robust_eval.errors import InvalidArgument, InvalidOutput
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.serial import SerialEvaluator
from robust_eval.evaluators.thread import ThreadPoolEvaluator


@profile
def plain(job, y=0):
    return job["x"] + y


@profile
async def waiting(job):
    await asyncio.sleep(0)
    return job["x"]


def borrow(job, dequed):
    return job["x"] + dequed[0]


def test_profile_reports_begin_and_end():
    """The timestamps come before the run function's own metadata, and before what it says of them."""
    output = plain({"x": 1}, y=2)
    assert output["objective"] == 3.0
    assert list(output["metadata"]) == ["timestamp_start", "timestamp_end"]
    assert output["metadata"]["timestamp_start"] <= output["metadata"]["timestamp_end"]
    output = profile(lambda job: {"objective": [[1], [2]], "metadata": {"a": 1}})({})
    assert list(output["metadata"]) == ["timestamp_start", "timestamp_end", "a"]
    assert (output["objective"], output["observations"]) == (2, [[1], [2]])


def test_profile_keeps_the_function():
    """Its name, its pickling, and whether it is async."""
    assert plain.__name__ == "plain"
    assert pickle.loads(pickle.dumps(plain)) is plain
    assert asyncio.run(waiting({"x": 1}))["objective"] == 1.0


def test_profile_refuses_what_the_evaluator_would():
    """An output that is not accepted raises."""
    with pytest.raises(InvalidOutput):
        profile(lambda job: None)({})


@pytest.mark.parametrize("evaluator_class", [SerialEvaluator, ThreadPoolEvaluator])
def test_resources_go_round(evaluator_class):
    """Each job borrows from the front, the resource returns to the end, the job remembers it."""
    with queued(evaluator_class)(borrow, num_workers=1, queue=[1, 2, 3]) as evaluator:
        assert type(evaluator).__name__ == f"Queued{evaluator_class.__name__}"
        assert list(evaluator.queue) == [1, 2, 3]
        evaluator.submit([{"x": 10}] * 5)
        jobs = evaluator.gather("ALL")
        assert [job.objective for job in jobs] == [11, 12, 13, 11, 12]
        assert [job.dequed for job in jobs] == [[1], [2], [3], [1], [2]]
        assert list(evaluator.queue) == [3, 1, 2]
        assert evaluator.run_function_kwargs == {}


def test_no_resource_is_lent_twice():
    """Jobs wait for a resource: never more of them run than there are resources."""
    used, lock, overlaps = set(), threading.Lock(), []

    def run(job, dequed):
        with lock:
            overlaps.extend(used & set(dequed))
            used.update(dequed)
        with lock:
            used.difference_update(dequed)
        return len(dequed)

    with queued(ThreadPoolEvaluator)(run, num_workers=8, queue=range(4), queue_pop_per_task=2) as evaluator:
        evaluator.submit([{}] * 50)
        assert {job.objective for job in evaluator.gather("ALL")} == {2.0}
        assert sorted(evaluator.queue) == [0, 1, 2, 3]
    assert overlaps == []


def test_a_failed_job_returns_its_resources():
    """However the job ended."""

    def run(job, dequed):
        raise SystemExit

    with queued(SerialEvaluator)(run, queue=["gpu"]) as evaluator:
        evaluator.submit([{}] * 3)
        jobs = evaluator.gather("ALL")
        assert [job.failure.kind for job in jobs] == ["exception"] * 3
        assert [job.dequed for job in jobs] == [["gpu"]] * 3
        assert list(evaluator.queue) == ["gpu"]


def test_the_csv_shows_the_resources(tmp_path):
    """In the column m:dequed, as in DeepHyper, numbers too."""
    with queued(SerialEvaluator)(lambda job, dequed: 1, queue=[1, 2], queue_pop_per_task=2) as evaluator:
        evaluator.submit([{}])
        evaluator.gather("ALL")
        assert evaluator.to_frame()["m:dequed"].tolist() == ["1,2"]


def test_a_queue_that_can_never_suffice_is_refused():
    """Instead of waiting for ever."""
    with pytest.raises(InvalidArgument, match="queue_pop_per_task=3"):
        queued(SerialEvaluator)(borrow, queue=[1, 2], queue_pop_per_task=3)


def test_a_custom_class_can_be_queued():
    """One with only an execute of its own receives the resources on the job."""

    class Custom(Evaluator):
        async def execute(self, job):
            job.set_output(self.run_function(job.config, **job.run_kwargs))
            return job

    with queued(Custom)(borrow, queue=[5]) as evaluator:
        evaluator.submit([{"x": 1}])
        assert evaluator.gather("ALL")[0].objective == 6.0


def test_jobs_without_resources_are_cancelled_with_the_budget():
    """A job that still waits for a resource was never begun."""
    release = threading.Event()

    def run(job, dequed):
        release.wait(30)
        return 1

    with queued(ThreadPoolEvaluator)(run, num_workers=2, queue=[1]) as evaluator:
        evaluator.submit([{}] * 3)
        evaluator.set_timeout(0.2)
        kinds = sorted(job.failure.kind for job in evaluator.gather("ALL"))
        release.set()
    assert kinds == ["cancelled", "cancelled", "timeout"]
