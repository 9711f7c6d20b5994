import asyncio
import functools
import sys
import threading
import time

import numpy as np
import pytest

from robust_eval.errors import UnsupportedLimit
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.lanes import is_async
from robust_eval.evaluators.local import NEEDS_PROCESSES
from robust_eval.evaluators.serial import SerialEvaluator
from robust_eval.evaluators.thread import ThreadPoolEvaluator
from robust_eval.storage import MemoryStorage

BOTH = pytest.mark.parametrize("method", ["serial", "thread"])
PATIENCE_S = 30


def evaluate(method, function, configs, **kwargs):
    """Gather every job, in the order of submission."""
    with Evaluator.create(function, method, kwargs) as evaluator:
        evaluator.submit(configs)
        return sorted(evaluator.gather("ALL"), key=lambda job: int(job.id.split(".")[1]))


def exit_with_3(job):
    sys.exit(3)


def interrupt(job):
    raise KeyboardInterrupt


def overflow(job):
    return overflow(job)


def run_out(job):
    raise MemoryError


def overflow_awaited(job):
    async def leave():
        raise SystemExit(2)

    return leave()


@BOTH
@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (lambda job: 1 / 0, "exception", "ZeroDivisionError: division by zero"),
        (exit_with_3, "exception", "SystemExit: 3"),
        (interrupt, "exception", "KeyboardInterrupt"),
        (overflow, "exception", "RecursionError"),
        (overflow_awaited, "exception", "SystemExit: 2"),
        (run_out, "memory", "MemoryError"),
        (lambda job: None, "invalid", "returned None"),
        (lambda job: float("nan"), "invalid", "nan"),
        (lambda: 1, "exception", "TypeError"),
    ],
)
def test_whatever_is_raised_fails_its_job_alone(method, function, kind, message):
    """Exits and interrupts included; the innocent job beside it delivers."""

    def run(job):
        return job["x"] or function(*[job] * function.__code__.co_argcount, *[1] * (kind == "TypeError"))

    if message == "TypeError":
        jobs = evaluate(method, function, [{"x": 0}])
    else:
        jobs = evaluate(method, run, [{"x": 0}, {"x": 1}, {"x": 0}])
        assert jobs[1].objective == 1.0
    assert jobs[0].objective == "F"
    assert jobs[0].failure.kind == kind
    assert message in jobs[0].failure.message
    assert jobs[0].failure.attempts == 1
    assert jobs[0].failure.duration >= 0


@BOTH
def test_tracebacks_begin_in_the_run_function(method):
    """Our own frames say nothing to the user."""
    (job,) = evaluate(method, lambda job: 1 / 0, [{}])
    assert "robust_eval/evaluators" not in job.failure.traceback
    assert "<lambda>" in job.failure.traceback


@BOTH
def test_the_run_function_receives_everything(method):
    """Its parameters, its keyword arguments, the very storage of the evaluator, its job."""
    storage = MemoryStorage()

    def run(job, y, z=0):
        job["x"] = 100
        return {"objective": y + z, "metadata": {"same": id(job.storage) == id(storage), "n": job["job_id"]}}

    with Evaluator.create(run, method, {"storage": storage, "run_function_kwargs": {"y": 1, "z": 2}}) as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
    assert (job.objective, job.metadata["same"], job.metadata["n"]) == (3, True, 0)
    assert job.config == {"x": 1}


@BOTH
def test_records_arrive_while_the_job_runs(method):
    """And stay on the job when its budget runs out."""
    recorded, release = threading.Event(), threading.Event()

    def run(job):
        job.record(1, 0.5)
        recorded.set()
        release.wait(PATIENCE_S)
        job.record(2, 0.7)
        return 1

    with Evaluator.create(run, method) as evaluator:
        evaluator.submit([{}])
        assert recorded.wait(PATIENCE_S)
        assert evaluator.jobs[0].recorded == [(1, 0.5)]
        evaluator.set_timeout(0.01)
        (job,) = evaluator.gather("ALL")
        release.set()
    assert (job.failure.kind, job.failure.abandoned) == ("timeout", True)
    assert job.recorded == [(1, 0.5)]


@BOTH
def test_an_abandoned_job_keeps_its_thread_and_its_outcome(method):
    """Its late result changes nothing, what it asks is answered, and its thread takes nothing before."""
    release, asked, began = threading.Event(), [], []

    def run(job):
        began.append(job["x"])
        if job["x"] == 0:
            release.wait(PATIENCE_S)
            asked.append(job.stopped())
            job.record(1, 1)
        return job["x"]

    with Evaluator.create(run, method) as evaluator:
        evaluator.submit([{"x": 0}, {"x": 1}])
        evaluator.set_timeout(0.05)
        jobs = sorted(evaluator.gather("ALL"), key=lambda job: job.id)
        assert [job.failure.kind for job in jobs] == ["timeout", "cancelled"]
        assert [job.failure.attempts for job in jobs] == [1, 0]
        evaluator.set_timeout(None)
        evaluator.submit([{"x": 2}])
        assert began == [0]
        release.set()
        assert [job.objective for job in evaluator.gather("ALL")] == [2]
    assert asked == [True]
    assert began == [0, 2]
    assert (jobs[0].objective, jobs[0].recorded) == ("F", [])


@BOTH
def test_a_spent_budget_begins_nothing(method):
    """Until it is lifted."""
    with Evaluator.create(lambda job: 1, method) as evaluator:
        evaluator.set_timeout(0)
        evaluator.submit([{}] * 3)
        assert [job.failure.kind for job in evaluator.gather("ALL")] == ["cancelled"] * 3
        evaluator.set_timeout(1000)
        evaluator.submit([{}])
        assert evaluator.gather("ALL")[0].objective == 1


@BOTH
def test_closing_is_bounded(method):
    """A job that runs is given up, those that wait are cancelled, all can be gathered."""
    began, release = threading.Event(), threading.Event()

    def run(job):
        began.set()
        release.wait(PATIENCE_S)
        return 1

    with Evaluator.create(run, method) as evaluator:
        evaluator.submit([{}] * 3)
        assert began.wait(PATIENCE_S)
    jobs = evaluator.gather("ALL")
    release.set()
    assert [job.failure.kind for job in jobs] == ["cancelled"] * 3
    assert sorted(job.failure.abandoned for job in jobs) == [False, False, True]


@BOTH
@pytest.mark.parametrize("name", sorted(NEEDS_PROCESSES))
def test_limits_that_cannot_be_kept_are_refused(method, name):
    """When the evaluator is made and when jobs are submitted; None asks for nothing."""
    with pytest.raises(UnsupportedLimit, match=rf'{name}=7.*method="process"'):
        Evaluator.create(len, method, {name: 7})
    evaluator = Evaluator.create(len, method, {name: None})
    with pytest.raises(UnsupportedLimit, match=name):
        evaluator.submit([{}], **{name: 7})
    assert evaluator.jobs == []


@BOTH
def test_failures_are_retried(method):
    """As often as allowed, of the kinds asked for; attempts are counted, in the CSV nowhere."""
    calls = []

    def run(job):
        calls.append(job["x"])
        if calls.count(job["x"]) <= job["x"]:
            raise OSError
        return 1

    jobs = evaluate(method, run, [{"x": x} for x in range(4)], max_retries=2)
    assert [job.objective for job in jobs] == [1, 1, 1, "F"]
    assert jobs[3].failure.attempts == 3
    assert "attempts" not in jobs[3].metadata
    calls.clear()
    assert evaluate(method, run, [{"x": 1}], max_retries=2, retry_on="memory")[0].failure.attempts == 1


@BOTH
@pytest.mark.parametrize("output", ["F_own", None])
def test_a_returned_failure_is_not_retried(method, output):
    """Nor is an invalid one: the same would come back."""
    calls = []
    evaluate(method, lambda job: calls.append(1) or output, [{}], max_retries=3)
    assert len(calls) == 1


def test_serial_is_serial():
    """One at a time and in order, whatever num_workers is."""
    running, order = [], []

    def run(job):
        running.append(1)
        order.append(job["x"])
        assert len(running) == 1
        time.sleep(0)
        running.pop()
        return 1

    jobs = evaluate("serial", run, [{"x": x} for x in range(50)], num_workers=4)
    assert [job.objective for job in jobs] == [1] * 50
    assert order == list(range(50))


def test_threads_work_together():
    """As many jobs at once as there are workers: each waits for all the others."""
    barrier = threading.Barrier(4)
    jobs = evaluate("thread", lambda job: barrier.wait(PATIENCE_S), [{}] * 4, num_workers=4)
    assert sorted(job.objective for job in jobs) == [0, 1, 2, 3]


@BOTH
def test_async_functions_run_together(method):
    """Up to num_workers of them; more would never meet."""
    waiting = []

    async def run(job):
        waiting.append(1)
        while len(waiting) < 4:  # noqa: ASYNC110  an event would need the loop, which is the evaluator's
            await asyncio.sleep(0)
        return job["x"]

    jobs = evaluate(method, run, [{"x": x} for x in range(4)], num_workers=4)
    assert [job.objective for job in jobs] == [0, 1, 2, 3]


@BOTH
def test_async_functions_are_isolated(method):
    """Exceptions, exits and cancellations fail one job; the loop goes on."""

    async def run(job):
        await asyncio.sleep(0)
        if job["x"] == 1:
            raise SystemExit
        if job["x"] == 2:
            raise asyncio.CancelledError
        return job["x"] or None

    jobs = evaluate(method, run, [{"x": x} for x in range(4)], num_workers=2)
    assert [job.failure and job.failure.kind for job in jobs] == ["invalid", "exception", "exception", None]
    assert jobs[3].objective == 3.0


@BOTH
def test_async_functions_end_with_the_budget(method):
    """They are cancelled, and those that wait never begin."""
    cancelled = threading.Event()

    async def run(job):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with Evaluator.create(run, method) as evaluator:
        evaluator.submit([{}] * 2)
        evaluator.set_timeout(0.05)
        assert [job.failure.kind for job in evaluator.gather("ALL")] == ["timeout", "cancelled"]
        assert cancelled.wait(PATIENCE_S)


@BOTH
def test_async_functions_are_retried(method):
    """Like others."""
    calls = []

    async def run(job):
        calls.append(1)
        if len(calls) < 3:
            raise OSError
        return 1

    assert evaluate(method, run, [{}], max_retries=2)[0].objective == 1


@BOTH
def test_an_awaitable_result_is_awaited(method):
    """A plain function may return a coroutine."""

    async def later(job):
        return job["x"]

    assert evaluate(method, lambda job: later({**job}), [{"x": 3}])[0].objective == 3.0


def test_async_functions_are_recognised():
    """Also in partials and as callable objects."""

    async def run(job):
        return 1

    class Callable:
        async def __call__(self, job):
            return 1

    assert is_async(run)
    assert is_async(functools.partial(functools.partial(run, 1)))
    assert is_async(Callable())
    assert is_async(functools.partial(Callable()))
    assert not is_async(len)
    assert not is_async(Callable)


@BOTH
def test_a_stopper_of_the_evaluator_reaches_the_job(method):
    """Each job gets a copy of it."""

    class Stopper:
        job = None

        def __init__(self):
            self.seen = 0

        def observe(self, budget, objective):
            self.seen += 1

        def stop(self):
            return self.seen >= 3

    def run(job):
        steps = 0
        while not job.stopped():
            job.record(steps, steps)
            steps += 1
        return steps

    with Evaluator.create(run, method) as evaluator:
        evaluator._stopper = Stopper()
        evaluator.submit([{}, {}])
        assert [job.objective for job in evaluator.gather("ALL")] == [3, 3]
        assert evaluator._stopper.seen == 0


@BOTH
def test_configurations_may_hold_anything(method):
    """Nothing crosses a process boundary here: locks and lambdas arrive as they are."""
    lock = threading.Lock()
    configs = [{"x": lock, "f": lambda: 2, "a": np.ones(3)}]
    (job,) = evaluate(method, lambda job: (job["x"] is lock) + job["f"]() + job["a"].sum(), configs)
    assert job.objective == 6.0


def test_threads_start_when_they_are_needed():
    """An evaluator that was only made costs no thread."""
    before = threading.active_count()
    with ThreadPoolEvaluator(len, num_workers=50), SerialEvaluator(len):
        assert threading.active_count() == before
