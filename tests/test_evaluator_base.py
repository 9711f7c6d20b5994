import asyncio
import gc
import itertools
import signal
import sys
import threading
import time
import warnings
import weakref
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from waiting import wait_until

from robust_eval.errors import (
    EvaluatorClosed,
    InternalError,
    InvalidArgument,
    InvalidArgumentType,
    JobRaised,
    RobustEvalError,
)
from robust_eval.evaluators.arrivals import Mailbox
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.loop import LoopThread
from robust_eval.evaluators.registry import EVALUATORS, evaluator_class
from robust_eval.evaluators.serial import SerialEvaluator
from robust_eval.evaluators.thread import ThreadPoolEvaluator
from robust_eval.failure import Failure
from robust_eval.job import Job
from robust_eval.processes.patience import Patience
from robust_eval.storage import MemoryStorage


def run(job):
    return job["x"]


class Manual(Evaluator):
    """A backend that delivers when the test says so, as opaque items."""

    def _begin(self, jobs, **options):
        if any("refuse" in job.config for job in jobs):
            raise InvalidArgument("not these")
        self.begun = [*getattr(self, "begun", []), *jobs]
        self.options = options

    def _check_options(self, options):
        super()._check_options({name: value for name, value in options.items() if name != "job_timeout"})

    def _settle(self, item):
        number, output = item
        job = self.begun[number]
        if job.failure is None and job.objective is None:
            job.fail(output) if isinstance(output, Failure) else job.set_output(output)
        return job

    def _budget_changed(self):
        self.budget = self.time_left

    def _shutdown(self):
        open_jobs = (number for number, job in enumerate(self.begun) if job.objective is None)
        self._arrivals.put_many([(number, Failure("cancelled", "closed")) for number in open_jobs])


@pytest.fixture
def manual():
    evaluator = Manual(run)
    evaluator.submit([{"x": number} for number in range(4)])
    return evaluator


class Custom(Evaluator):
    """A class of a user's, with only an execute."""

    async def execute(self, job):
        job.set_output(self.run_function(job.config))
        return job


def test_methods_are_found_by_name():
    """Each is imported when asked for; an unknown one is a ValueError naming those there are."""
    assert isinstance(Evaluator.create(run), SerialEvaluator)
    assert isinstance(Evaluator.create(run, "thread", None), ThreadPoolEvaluator)
    for method in ("threadPool", None, ["serial"]):
        with pytest.raises(ValueError, match="serial, thread, process"):
            Evaluator.create(run, method)
    assert list(EVALUATORS) == ["serial", "thread", "process", "ray", "mpicomm"]
    assert evaluator_class("mine", {"mine": "robust_eval.job:Job"}) is Job


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_workers": 0}, InvalidArgument, "num_workers=0"),
        ({"num_workers": None}, InvalidArgumentType, "num_workers"),
        ({"on_error": "ignore"}, InvalidArgument, "on_error='ignore'"),
        ({"max_retries": -1}, InvalidArgument, "max_retries=-1"),
        ({"retry_on": ["sunset"]}, InvalidArgument, "sunset.*timeout"),
        ({"storage": {}}, InvalidArgumentType, "Storage.create"),
        ({"search_id": "7"}, InvalidArgument, "search_id='7'"),
        ({"run_function": 3}, InvalidArgumentType, "run_function=3"),
        ({"colour": "red"}, TypeError, "colour='red'"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, match):
    """The message names the argument, its value and what is allowed."""
    with pytest.raises(error, match=match):
        SerialEvaluator(**{"run_function": run, **arguments})


def test_attributes_of_deephyper_are_there():
    """Searches written for it find what they look for."""
    storage = MemoryStorage()
    callbacks = [object()]
    evaluator = SerialEvaluator(run, 2, callbacks, {"y": 1}, storage)
    assert storage.connected
    assert evaluator.storage is evaluator._storage is storage
    assert evaluator.search_id == evaluator._search_id == "0"
    assert evaluator._callbacks == callbacks
    assert (evaluator._stopper, evaluator.num_workers, evaluator.num_objective) == (None, 2, None)
    assert (evaluator.jobs, evaluator.jobs_done, evaluator.job_id_gathered) == ([], [], [])
    assert (evaluator.FAIL_RETURN_VALUE, evaluator.NEST_ASYNCIO_PATCHED) == ("F", False)
    assert evaluator.PYTHON_EXE
    assert evaluator.run_function is run
    assert evaluator.run_function_kwargs == {"y": 1}
    assert evaluator.to_json() == {"type": "SerialEvaluator", "num_workers": 2}
    assert "SerialEvaluator of 2 worker(s)" in repr(evaluator)
    assert SerialEvaluator(run, storage=storage, search_id="0").search_id == "0"
    assert abs(evaluator.timestamp - time.time()) < 60
    evaluator.timestamp -= 1000
    evaluator.submit([{"x": 1}])
    assert evaluator.jobs[0].metadata["timestamp_submit"] >= 1000


def test_keys_are_decoded():
    """A JSON object becomes a dict, anything else is refused."""
    evaluator = SerialEvaluator(run)
    assert evaluator.decode('{"x": 1}') == {"x": 1}
    with pytest.raises(ValueError, match="list"):
        evaluator.decode("[1]")


@pytest.mark.parametrize("configs", [{"x": 1}, "abc", 5, None, [{"x": 1}, ("x", 1)], [None]])
def test_configurations_are_mappings(configs):
    """Otherwise nothing at all is submitted."""
    evaluator = SerialEvaluator(run)
    with pytest.raises(InvalidArgumentType, match="configs"):
        evaluator.submit(configs)
    assert evaluator.jobs == []
    assert evaluator.storage.load_all_job_ids("0") == []


def test_options_that_a_method_does_not_know_are_refused(manual):
    """Others reach the backend with the jobs."""
    with pytest.raises(TypeError, match="colour='red'"):
        manual.submit([{"x": 1}], colour="red")
    manual.submit([{"x": 1}], job_timeout=3)
    assert manual.options == {"job_timeout": 3}
    assert len(manual.jobs) == 5


def test_a_submitted_job_is_recorded(manual):
    """In the storage and on the job, before it runs."""
    job = manual.jobs[2]
    assert (job.id, job.status, job.config) == ("0.2", Job.RUNNING, {"x": 2})
    assert 0 <= job.metadata["timestamp_submit"] < 60
    assert manual.storage.load_job("0.2")["in"]["args"] == ({"x": 2},)
    assert manual.num_jobs_submitted == 4


def test_jobs_that_a_backend_does_not_take_are_not_waited_for(manual):
    """Its refusal is the caller's to see, and costs no other job."""
    with pytest.raises(InvalidArgument, match="not these"):
        manual.submit([{"refuse": 1}])
    manual._arrivals.put_many([(number, number) for number in range(4)])
    assert len(manual.gather("ALL")) == 4


class Unreadable(UserDict):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")

    def keys(self):
        raise TypeError("no keys")


def test_the_first_jobs_are_on_their_way_while_others_are_made(manual, monkeypatch):
    """Of many plain configurations; where one may fail to be copied, all are made before any of them is sent."""
    made = []
    begin = manual._begin
    monkeypatch.setattr(manual, "_begin", lambda jobs: (made.append(len(manual.storage.load_search("0"))), begin(jobs)))
    many = [{"x": number} for number in range(300)]
    manual.submit(many)
    assert made == [4 + 64, 4 + 64 + 128, 4 + 300]
    with pytest.raises(TypeError, match="no keys"):
        manual.submit([*many, Unreadable(x=1)])
    assert len(manual.begun) == manual.num_jobs_submitted == len(manual.storage.load_search("0")) == 304


def test_a_gathered_job_is_recorded(manual):
    """Status, timestamps, storage and the lists of what was gathered."""
    manual._arrivals.put((1, {"objective": 5, "metadata": {"a": 1}}))
    (job,) = manual.gather("BATCH")
    assert (job.objective, job.status) == (5, Job.DONE)
    assert job.metadata["timestamp_submit"] <= job.metadata["timestamp_gather"]
    stored = manual.storage.load_job("0.1")
    assert (stored["out"], stored["metadata"]["a"]) == (5, 1)
    assert manual.jobs_done == [job]
    assert manual.job_id_gathered == ["0.1"]
    assert manual.num_jobs_gathered == 1


def test_a_batch_has_everything_that_is_done(manual):
    """At least as many as asked for, and all there are."""
    manual._arrivals.put_many([(0, 0), (1, 1), (2, 2)])
    assert len(manual.gather("BATCH", size=1)) == 3
    assert manual.gather("BATCH", size=0) == []


def test_a_gather_waits(manual):
    """Until as many have arrived as it asked for."""
    waiting = threading.Event()

    def deliver():
        waiting.wait(30)
        for number in range(4):
            manual._arrivals.put((number, number))

    thread = threading.Thread(target=deliver)
    thread.start()
    waiting.set()
    assert len(manual.gather("BATCH", size=2)) >= 2
    manual.gather("ALL")
    thread.join()
    assert manual.num_jobs_gathered == 4
    assert manual.gather("ALL") == []


def test_a_batch_larger_than_what_runs_is_clipped(manual):
    """With a warning, as in DeepHyper."""
    manual._arrivals.put_many([(number, number) for number in range(4)])
    with pytest.warns(UserWarning, match="size=9.* 4 jobs"):
        assert len(manual.gather("BATCH", size=9)) == 4


def test_wrong_gathers_are_refused(manual):
    """Unknown kinds, sizes that are none, and waiting for nothing at all."""
    with pytest.raises(ValueError, match=r"'SOME'.*ALL.*BATCH"):
        manual.gather("SOME")
    for size in (-1, 1.5):
        with pytest.raises((ValueError, TypeError), match="size"):
            manual.gather("BATCH", size=size)
    with pytest.raises(ValueError, match="No jobs pending"):
        SerialEvaluator(run).gather("ALL")


def test_one_gather_at_a_time(manual):
    """A second one would wait for the first one's jobs: it is refused instead."""
    with manual._gathering, pytest.raises(RobustEvalError, match="Another gather"):
        manual.gather("ALL")


def test_failures_are_returned_or_raised():
    """With "raise" the first failure is an exception and counts as gathered; the others stay."""
    evaluator = Manual(run, on_error="raise")
    evaluator.submit([{"x": number} for number in range(4)])
    crash, broken = Failure("crash", "SIGSEGV"), Failure.from_exception(ValueError("x"))
    evaluator._arrivals.put_many([(0, 0), (1, broken), (2, crash), (3, 3)])
    with pytest.raises(JobRaised) as caught:
        evaluator.gather("ALL")
    assert caught.value.failure is broken
    assert isinstance(caught.value.__cause__, ValueError)
    assert [job.id for job in evaluator.jobs_done] == ["0.1"]
    with pytest.raises(RobustEvalError, match="SIGSEGV"):
        evaluator.gather("ALL")
    assert [job.objective for job in evaluator.gather("ALL")] == [0, 3]
    assert len(evaluator.jobs_done) == 4
    assert evaluator.jobs[1].objective == "F"


def test_a_failure_that_vanishes_is_our_bug():
    """Nothing hangs because of it."""
    evaluator = Manual(run, on_error="raise")
    evaluator.submit([{"x": 1}])
    evaluator._arrivals.put((0, Failure("crash", "x")))
    evaluator._arrivals.take(1, 0, evaluator._arrived)
    evaluator._turn_into_jobs()
    evaluator.jobs[0].failure = None
    with pytest.raises(InternalError):
        evaluator.gather("ALL")


def test_an_interrupted_gather_loses_nothing(manual, monkeypatch):
    """Ctrl-C at any step: the next gather has every job, once."""
    manual._arrivals.put_many([(number, number) for number in range(4)])
    steps = {"_settled": manual._settled, "_on_done": manual._on_done}
    for name, step in steps.items():
        interrupted = []

        def once(argument, step=step, interrupted=interrupted):
            result = step(argument)
            if not interrupted:
                interrupted.append(1)
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(manual, name, once)
        with pytest.raises(KeyboardInterrupt):
            manual.gather("ALL")
    jobs = manual.gather("ALL")
    assert [job.objective for job in jobs] == [0, 1, 2, 3]
    assert manual.jobs_done == jobs


def test_an_interrupt_at_the_begin_of_any_call_within_a_gather_loses_nothing():
    """That is where the interpreter looks for signals: whichever call it hits, the next gather has every job, once."""

    def raise_at(countdown: Iterator[int]) -> Callable[..., None]:
        def trace(frame: FrameType, _event: str, _argument: object) -> None:
            if frame.f_code is not Manual.gather.__code__ and next(countdown) == 0:
                raise KeyboardInterrupt

        return trace

    for calls in itertools.count():
        evaluator = Manual(run)
        evaluator.submit([{"x": number} for number in range(3)])
        evaluator._arrivals.put_many([(number, number) for number in range(3)])
        before = sys.gettrace()
        sys.settrace(raise_at(itertools.count(calls, -1)))
        try:
            jobs = evaluator.gather("ALL")
        except KeyboardInterrupt:
            sys.settrace(before)
            assert evaluator.gather("ALL") == evaluator.jobs_done == evaluator.jobs, f"interrupted at call {calls}"
            evaluator.close()
        else:
            break
        finally:
            sys.settrace(before)
    assert jobs == evaluator.jobs
    assert calls > 20


def test_what_an_interrupted_submit_has_sent_is_counted_when_it_arrives(manual, monkeypatch):
    """Nobody waits for what may not be on its way, and what comes is gathered with the others."""
    submitted = manual.num_jobs_submitted

    def begin(jobs: list[Job], **_options: object) -> None:
        manual.begun += jobs
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manual, "_begin", begin)
        with pytest.raises(KeyboardInterrupt):
            manual.submit([{"x": 9}])
    assert manual.num_jobs_submitted == submitted
    manual._arrivals.put_many([(number, number) for number in range(submitted)])
    assert len(manual.gather("ALL")) == submitted
    manual._arrivals.put_many([(submitted, 9)])
    (late,) = manual.gather("BATCH", size=0)
    assert late.objective == 9
    assert manual.jobs[-1] is late
    assert manual.num_jobs_submitted == manual.num_jobs_gathered == submitted + 1


def test_async_gathers_do_the_same(manual):
    """In a running loop, without blocking it."""

    async def main():
        threading.Timer(0.01, lambda: manual._arrivals.put_many([(0, 0), (1, 1)])).start()
        first = await manual.agather("BATCH", size=2)
        seen = []
        manual._arrivals.put_many([(2, 2), (3, 3)])
        async for job in manual.as_completed():
            seen.append(job.objective)
            break
        return [job.objective for job in first], seen

    assert asyncio.run(main()) == ([0, 1], [2])
    assert [job.objective for job in manual.gather("ALL")] == [3]


def test_as_completed_ends_when_nothing_is_left():
    """Every job once."""

    async def main():
        with ThreadPoolEvaluator(run, num_workers=2) as evaluator:
            evaluator.submit([{"x": number} for number in range(20)])
            return sorted([job.objective async for job in evaluator.as_completed()])

    assert asyncio.run(main()) == list(range(20))


def test_a_budget_is_announced(manual):
    """As seconds left; None lifts it; nonsense is refused."""
    assert (manual.timeout, manual.time_left) == (None, None)
    manual.set_timeout(100)
    assert manual.timeout == 100
    assert 90 < manual.time_left <= 100
    assert 90 < manual.budget <= 100
    manual.set_timeout(0)
    assert manual.time_left == 0.0
    manual.set_timeout(None)
    assert manual.time_left is manual.budget is None
    with pytest.raises(ValueError, match="timeout=-1"):
        manual.set_timeout(-1)


def test_closing_settles_everything(manual):
    """What was not finished is cancelled and can be gathered; new jobs are refused."""
    manual._arrivals.put((0, 7))
    manual.gather("BATCH")
    with manual as entered:
        assert entered is manual
    manual.close()
    assert [job.failure.kind for job in manual.gather("ALL")] == ["cancelled"] * 3
    with pytest.raises(EvaluatorClosed):
        manual.submit([{"x": 1}])


def test_an_interrupted_close_can_be_repeated(manual, monkeypatch):
    """The second call ends what the first did not."""
    shutdown = manual._shutdown

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(manual, "_shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manual.close()
    monkeypatch.setattr(manual, "_shutdown", shutdown)
    manual.close()
    assert len(manual.gather("ALL")) == 4


def test_an_evaluator_that_is_dropped_closes_itself():
    """Its threads end although nobody called close."""
    before = set(threading.enumerate())
    evaluator = ThreadPoolEvaluator(run, num_workers=2)
    evaluator.submit([{"x": 1}, {"x": 2}])
    evaluator.gather("ALL")
    threads = set(threading.enumerate()) - before
    assert threads
    reference = weakref.ref(evaluator)
    del evaluator
    gc.collect()
    assert reference() is None
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_frames_have_every_gathered_job(manual):
    """Dumped or not, in the order of submission, with the columns of the CSV."""
    manual._arrivals.put_many([(2, 5), (0, Failure("crash", "x"))])
    manual.gather("BATCH")
    frame = manual.to_frame()
    assert frame["job_id"].tolist() == [0, 2]
    assert list(frame.columns)[:3] == ["p:x", "objective", "job_id"]
    assert frame["m:failure"].tolist()[0] == "crash"


def test_an_evaluator_without_a_way_to_run_says_so():
    """The base class alone cannot evaluate."""
    evaluator = Evaluator(run)
    with pytest.raises(NotImplementedError, match="create"):
        evaluator.submit([{"x": 1}])
    with pytest.raises(NotImplementedError, match="execute"):
        asyncio.run(evaluator.execute(Job("0.0", {}, run)))
    evaluator.close()


def test_a_class_with_only_an_execute_works():
    """And an exception out of it fails that job alone."""

    def run(config):
        return 10 / config["x"]

    with Custom(run, num_workers=2) as evaluator:
        evaluator.submit([{"x": x} for x in (1, 0, 2)])
        jobs = sorted(evaluator.gather("ALL"), key=lambda job: job.id)
        assert [job.objective for job in jobs] == [10, "F", 5]
        assert jobs[1].failure.exception_type == "ZeroDivisionError"


@pytest.mark.parametrize("broken", [None, "job", {"objective": 1}])
def test_an_execute_that_does_not_return_the_job_is_told(broken):
    """The job is invalid, and the message says what was returned."""

    class Broken(Evaluator):
        async def execute(self, job):
            return broken

    with Broken(run) as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
        assert job.failure.kind == "invalid"
        assert "must return the job" in job.failure.message


@pytest.mark.parametrize("output", [None, 5, {"objective": 1}, {"objective": float("nan"), "metadata": {}}])
def test_an_execute_must_leave_an_output(output):
    """Anything else than the standard form is invalid."""

    class Broken(Evaluator):
        async def execute(self, job):
            job.output = output
            return job

    with Broken(run) as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
        assert (job.objective, job.failure.kind) == ("F", "invalid")


def test_an_execute_may_return_another_job_object():
    """One that was sent through pickle, say: its outcome is taken over."""

    class Remote(Evaluator):
        async def execute(self, job):
            other = Job(job.id, job.config, None)
            other.set_output(4)
            other.note = "from afar"
            return other

    with Remote(run) as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
        assert job is evaluator.jobs[0]
        assert (job.objective, job.note) == (4.0, "from afar")


@pytest.mark.parametrize("base", [SerialEvaluator, ThreadPoolEvaluator])
def test_an_execute_can_use_the_class_it_extends(base):
    """Calling super().execute(job) runs the job as the class would, and may be repeated."""

    class Twice(base):
        async def execute(self, job):
            job = await super().execute(job)
            if job.failure is not None:
                job.config["x"] = 1
                job = await super().execute(job)
            job.metadata["twice"] = True
            return job

    def run(job):
        if job["x"] == 0:
            raise ValueError
        return job["x"]

    with Twice(run, num_workers=3) as evaluator:
        evaluator.submit([{"x": x} for x in range(5)])
        jobs = evaluator.gather("ALL")
        assert sorted(job.objective for job in jobs) == [1, 1, 2, 3, 4]
        assert all(job.metadata["twice"] for job in jobs)
        with pytest.raises(RobustEvalError, match="own event loop"):
            asyncio.run(base.execute(evaluator, jobs[0]))


def test_options_travel_through_an_execute():
    """Per-job options reach the backend that super().execute uses."""

    class Over(Manual):
        async def execute(self, job):
            return await super().execute(job)

    with Over(run) as evaluator:
        evaluator.submit([{"x": 1}], job_timeout=5)
        evaluator._arrivals.put((0, 9))
        assert evaluator.gather("ALL")[0].objective == 9
        assert evaluator.options == {"job_timeout": 5}


def test_a_backend_that_breaks_its_promise_hangs_nobody():
    """An error while an arrival is settled fails the jobs that wait for it."""

    class Over(Manual):
        async def execute(self, job):
            return await super().execute(job)

        def _settle(self, item):
            raise InternalError("broken")

    with Over(run) as evaluator:
        evaluator.submit([{"x": 1}])
        evaluator._arrivals.put((0, 9))
        (job,) = evaluator.gather("ALL")
        assert "broken" in job.failure.message


def test_an_execute_is_limited_by_the_workers():
    """At most num_workers of them at once, in the order of submission."""
    running, most, order = [], [], []

    class Counting(Evaluator):
        async def execute(self, job):
            order.append(job.id)
            running.append(job)
            most.append(len(running))
            await asyncio.sleep(0)
            running.remove(job)
            job.set_output(1)
            return job

    with Counting(run, num_workers=3) as evaluator:
        for _ in range(5):
            evaluator.submit([{}] * 20)
        evaluator.gather("ALL")
        assert max(most) == 3
        assert order == [f"0.{number}" for number in range(100)]


def test_an_execute_is_retried_where_nobody_else_does_it():
    """A custom class honours max_retries too."""
    calls = []

    class Flaky(Evaluator):
        async def execute(self, job):
            calls.append(job.id)
            if len(calls) < 3:
                raise OSError
            job.set_output(1)
            return job

    with Flaky(run, max_retries=5) as evaluator:
        evaluator.submit([{}])
        assert evaluator.gather("ALL")[0].objective == 1
        assert len(calls) == 3


def test_the_budget_ends_executes():
    """What runs is a timeout and is cancelled, what waits is cancelled, later ones too."""
    ended = threading.Event()

    class Endless(Evaluator):
        async def execute(self, job):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    with Endless(run) as evaluator:
        evaluator.submit([{}] * 3)
        evaluator.set_timeout(0.05)
        jobs = evaluator.gather("ALL")
        assert [job.failure.kind for job in jobs] == ["timeout", "cancelled", "cancelled"]
        assert ended.wait(10)
        evaluator.submit([{}])
        assert evaluator.gather("ALL")[0].failure.kind == "cancelled"
        evaluator.set_timeout(None)
        evaluator.submit([{}])
    assert evaluator.gather("ALL")[0].failure.kind == "cancelled"


def test_the_budget_leaves_jobs_in_the_backend_to_it():
    """What the backend still settles counts as the backend says."""

    class Over(Manual):
        async def execute(self, job):
            return await super().execute(job)

        def _budget_changed(self):
            pass

    with Over(run, num_workers=1) as evaluator:
        evaluator.set_timeout(0.05)
        evaluator.submit([{"x": 1}, {"x": 2}])
        (waiting,) = evaluator.gather("BATCH")
        assert (waiting.id, waiting.failure.kind) == ("0.1", "cancelled")
        evaluator._arrivals.put((0, 9))
        assert evaluator.gather("ALL")[0].objective == 9


def test_mailboxes_are_taken_in_time():
    """A take ends when its time is over, with what there is."""
    mailbox = Mailbox()
    taken: deque[int] = deque()
    mailbox.put(1)
    mailbox.take(2, 0.01, taken)
    assert list(taken) == [1]
    mailbox.put_many([2, 3])
    asyncio.run(mailbox.take_async(3, 0.01, taken))
    assert list(taken) == [1, 2, 3]
    asyncio.run(mailbox.take_async(0, None, taken))
    assert list(taken) == [1, 2, 3]


def test_a_mailbox_goes_with_its_last_reference():
    """And what lies in it, without a collection."""
    box = Mailbox()
    box.put("item")
    ended = weakref.finalize(box, int)
    gc.disable()
    try:
        del box
        assert not ended.alive
    finally:
        gc.enable()


@pytest.mark.parametrize("minimum", [1, 2])
def test_items_that_come_every_moment_are_waited_for_awake(minimum, monkeypatch):
    """A single one is: whoever waits for more sleeps until all are there, and so does who is not to wait."""
    box = Mailbox()
    looks: list[float | None] = []
    look = box._look

    def count(wait_s: float | None) -> list[bool]:
        looks.append(wait_s)
        return look(wait_s)

    monkeypatch.setattr(box, "_patience", Patience(count))
    monkeypatch.setattr(box, "_look", count)
    box._patience._gap_s = 0.0
    taken: deque[int] = deque()
    box.take(1, 0, taken)
    assert looks == [0]
    thread = threading.Thread(target=lambda: [wait_until(lambda: len(looks) > 1), box.put_many([1] * minimum)])
    thread.start()
    box.take(minimum, None, taken)
    thread.join()
    assert list(taken) == [1] * minimum
    assert looks[1] == (0 if minimum == 1 else None)


def test_a_loop_thread_is_bounded():
    """It starts when needed, ends with what runs on it, and refuses to start again."""
    loop = LoopThread("test")
    loop.close()
    loop = LoopThread("test")

    async def answer():
        return 42

    assert loop.wait_for(answer()) == 42

    async def suicide():
        loop.close()

    loop.wait_for(suicide())
    loop.close()
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="closed"):
        loop.wait_for(answer())


def test_callbacks_may_submit_and_close():
    """From within submit as from within gather."""

    class Busy:
        def __init__(self):
            self.more = 2

        def on_launch(self, job):
            if self.more:
                self.more -= 1
                self.evaluator.submit([{"x": 9}])

        def on_done(self, job):
            self.evaluator.close()

    busy = Busy()
    busy.evaluator = SerialEvaluator(run, callbacks=[busy])
    busy.evaluator.submit([{"x": 1}])
    assert len(busy.evaluator.gather("BATCH", size=3)) == 3


def test_threads_take_turns_more_often_only_while_somebody_gathers():
    """The interval is what it was afterwards; a smaller one, or one that was set meanwhile, is let be."""
    box = Mailbox()
    before = sys.getswitchinterval()
    seen: list[float] = []

    def put(interval: float | None) -> None:
        wait_until(lambda: box._wanted == 1)
        seen.append(sys.getswitchinterval())
        if interval is not None:
            sys.setswitchinterval(interval)
        box.put("item")

    try:
        for own, meanwhile, after in ((before, None, before), (0.0001, None, 0.0001), (before, 0.003, 0.003)):
            sys.setswitchinterval(own)
            thread = threading.Thread(target=put, args=(meanwhile,))
            thread.start()
            taken: deque[str] = deque()
            box.take(1, None, taken)
            assert list(taken) == ["item"]
            thread.join()
            assert sys.getswitchinterval() == pytest.approx(after)
    finally:
        sys.setswitchinterval(before)
    assert seen == pytest.approx([0.0005, 0.0001, 0.0005])


def test_an_interrupt_that_came_to_another_thread_ends_the_wait():
    """So does one that comes on the way into the wait: Python's handler runs where the main thread next looks."""
    box = Mailbox()

    def interrupt() -> None:
        wait_until(lambda: box._wanted == 1)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        begun_at = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            box.take(1, 60, deque())
        assert time.monotonic() - begun_at < 30
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
