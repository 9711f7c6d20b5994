import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from children import in_child
from waiting import nothing_left, wait_until

from robust_eval.decorators import profile, queued
from robust_eval.errors import InvalidArgument, InvalidOutput
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.process import ProcessPoolEvaluator
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


@profile(memory=True)
def hungry(job):
    kept = b"x" * (job["mib"] << 20)
    return len(kept)


@profile(memory_limit="700MiB", memory_tracing_interval=0.005)
def limited(job):
    kept = []
    while len(kept) < job["mib"]:
        kept.append(bytearray(b"x" * (1 << 20)))
    return len(kept)


def test_profile_measures_memory():
    """The peak of the process, in bytes, however short it was."""
    output = in_child(lambda: hungry({"mib": 700}))
    assert output["metadata"]["memory"] > 700 << 20
    assert list(output["metadata"]) == ["timestamp_start", "timestamp_end", "memory"]
    assert profile(memory=True)(waiting) is not waiting
    assert asyncio.run(profile(memory=True)(waiting)({"x": 1}))["metadata"]["memory"] > 0


def test_profile_reports_the_memory_of_children():
    """A solver that the run function started counts."""

    def run(job):
        subprocess.run([sys.executable, "-S", "-c", "x = b'x' * (300 << 20); import time; time.sleep(0.5)"], check=True)
        return 1

    before = psutil.Process().memory_info().rss
    assert profile(memory=True, memory_tracing_interval=0.02)(run)({})["metadata"]["memory"] > before + (250 << 20)


def test_profile_fails_a_job_over_its_memory():
    """As `memory`, in the middle of Python code; the worker goes on, and its next job is not touched."""
    kwargs = {"num_workers": 1}
    with Evaluator.create(limited, method="process", method_kwargs=kwargs) as evaluator:
        evaluator.submit([{"mib": 100_000}, {"mib": 1}])
        first, second = evaluator.gather("ALL")
    assert (first.failure.kind, first.failure.acted) == ("memory", "MemoryError")
    assert first.failure.peak_memory < 2 << 30
    assert second.objective == 1.0


def test_profile_notices_what_code_in_c_took():
    """It could not interrupt it, but what was over the limit is no result."""

    def run(job):
        return float(sum(memoryview(bytes(1 << 20))))

    with pytest.raises(MemoryError, match="over the memory_limit of 1 MiB"):
        profile(run, memory_limit="1MiB", memory_tracing_interval=100)({})
    assert profile(run, memory_limit=-1)({})["objective"] == 0.0


def test_an_exception_over_the_limit_stays_the_users():
    """What the run function raised by itself is told."""

    def run(job):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        profile(run, memory_limit="1MiB", memory_tracing_interval=100)({})


def test_profile_refuses_a_limit_that_it_could_not_keep():
    """For coroutines; and values that are no limits."""
    with pytest.raises(InvalidArgument, match="async def"):
        profile(memory_limit="1GiB")(waiting)
    with pytest.raises(InvalidArgument, match="memory_tracing_interval"):
        profile(memory=True, memory_tracing_interval=0)


def end(job, dequed):
    """Ends in the way that it is told, and complains when its resource is in use."""
    lock = Path(job["place"]) / dequed[0]
    try:
        lock.touch(exist_ok=job["again"])
    except FileExistsError:
        return "F_lent_twice"
    how = job["how"]
    if how == "hang":
        while True:
            time.sleep(1)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "leave":
        subprocess.Popen(["sleep", "600"])
    if how == "raise":
        raise ValueError(how)
    lock.unlink()
    return 1


def test_resources_come_back_however_a_job_ends(tmp_path):
    """Killed over its time, crashed, raised, leaving processes: with real processes, every resource is back."""
    hows = ["hang", "crash", "raise", "leave", "ok"] * 3
    kwargs = {"num_workers": 4, "job_timeout": 0.7, "queue": ["gpu0", "gpu1"], "max_retries": 1, "retry_on": "crash"}
    with nothing_left(), queued(ProcessPoolEvaluator)(end, **kwargs) as evaluator:
        evaluator.submit([{"how": how, "place": str(tmp_path), "again": True} for how in hows])
        jobs = evaluator.gather("ALL")
        assert sorted(evaluator.queue) == ["gpu0", "gpu1"]
    kinds = Counter(job.failure.kind if job.failure else "ok" for job in jobs)
    assert kinds == {"timeout": 3, "crash": 3, "exception": 3, "ok": 6}
    assert all(len(job.dequed) == 1 for job in jobs)


def test_resources_are_never_lent_twice_by_processes(tmp_path):
    """A resource is with one job at a time, over many jobs on more workers than resources."""
    kwargs = {"num_workers": 4, "queue": ["gpu0", "gpu1"]}
    with queued(ProcessPoolEvaluator)(end, **kwargs) as evaluator:
        evaluator.submit([{"how": "ok", "place": str(tmp_path), "again": False} for _ in range(60)])
        assert {job.objective for job in evaluator.gather("ALL")} == {1.0}


def test_resources_come_back_when_the_evaluator_is_closed(tmp_path):
    """Jobs that run then are ended, and what they had is back."""
    with nothing_left(), queued(ProcessPoolEvaluator)(end, num_workers=2, queue=["gpu0", "gpu1"]) as evaluator:
        evaluator.submit([{"how": "hang", "place": str(tmp_path), "again": True}] * 3)
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        evaluator.close()
        assert {job.failure.kind for job in evaluator.gather("ALL")} == {"cancelled"}
        wait_until(lambda: sorted(evaluator.queue) == ["gpu0", "gpu1"])
