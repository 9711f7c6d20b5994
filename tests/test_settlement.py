"""From what a pool delivers to settled jobs: each failure in its own words, and nothing that raises."""

from collections import deque
from typing import Any

import numpy as np
import pytest
from waiting import nothing_left

from robust_eval.evaluators.arrivals import Mailbox
from robust_eval.evaluators.settlement import Settling, failure_of
from robust_eval.failure import Failure
from robust_eval.job import Job
from robust_eval.processes.parcel import MISSING, Memory, pack, pack_plain, store
from robust_eval.processes.pending import Done, Failed

GIB = 2**30
POLICY = {"max_start_failures": 3}


class Poison:
    """Does not come back."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise OSError("not here")


class NotCallable:
    """Pickles as the call of something that is not there any more."""

    def __reduce__(self) -> Any:
        return len, (5,)


@pytest.fixture
def arrivals() -> Mailbox:
    """Where what is refused arrives."""
    return Mailbox()


@pytest.fixture
def settling(arrivals: Mailbox) -> Settling:
    """With job number 1."""
    made = Settling(arrivals, POLICY)
    made.expect(1, Job("0.1", {"x": 1}, None))
    return made


def failed(kind: str, cause: str = "", blamed: dict[str, Any] | None = None, late: Any = None, **info: Any) -> Failed:
    told = {"kind": kind, "cause": cause, "attempts": 1, "memory_limit": None, "unkilled_pids": [], **info}
    return Failed(1, told, pack_plain(blamed) if blamed else b"", b"" if late is None else pack_plain(late))


def done(parcel: Any) -> Done:
    return Done(1, parcel, begun_at=10.0, ended_at=12.5, attempts=2, peak_memory=77)


# -- values


def test_a_value_comes_with_its_measures(settling: Settling):
    """Objective, metadata, how long, how often and how large."""
    job = settling.settle(done(pack_plain((1.5, {"note": "n"}, None))))
    assert (job.objective, job.failure) == (1.5, None)
    assert {"note": "n", "duration": 2.5, "peak_memory": 77, "attempts": 2}.items() <= job.metadata.items()


def test_a_large_value_is_opened_where_it_lies(settling: Settling):
    """And its descriptor closed."""
    with nothing_left():
        parcel = pack((1.5, {"array": np.arange(300_000)}, None))
        assert isinstance(parcel, Memory)
        job = settling.settle(done(parcel))
        assert job.metadata["array"].sum() == 299_999 * 150_000


def test_settling_twice_changes_nothing(settling: Settling):
    """An interrupted gather asks again, for a value and for a failure."""
    item = done(pack_plain((1.5, {}, None)))
    job = settling.settle(item)
    assert settling.settle(item) is job
    assert settling.settle(failed("crash")) is job
    assert job.failure is None


@pytest.mark.parametrize(
    ("parcel", "said"),
    [
        (pack((1.0, {"poison": Poison()}, None)), "OSError: not here"),
        (pack((1.0, {"poison": NotCallable()}, None)), "TypeError"),
        (b"Pgarbage", "the result cannot be unpickled in the driver"),
        (pack_plain("no tuple"), "ValueError"),
    ],
)
def test_a_value_that_does_not_come_back_costs_its_own_job(settling: Settling, parcel: bytes, said: str):
    """Its measures are kept."""
    job = settling.settle(done(parcel))
    assert job.failure is not None
    assert job.failure.kind == "unpicklable"
    assert said in job.failure.message
    assert (job.failure.attempts, job.failure.duration, job.failure.peak_memory) == (2, 2.5, 77)
    assert job.metadata["duration"] == 2.5


def test_a_value_whose_memory_was_lost_says_what_to_do(settling: Settling):
    """A driver without a free descriptor loses what is large, and hears why."""
    job = settling.settle(done(Memory(MISSING, 1 << 20)))
    assert job.failure is not None
    assert "ulimit -n" in job.failure.message


# -- intermediate values


def test_values_are_recorded_while_the_job_runs(settling: Settling):
    """Those of jobs that are not known and those that do not come back are dropped."""
    settling.record(1, pack_plain((1.0, 2.0)))
    settling.record(2, pack_plain((1.0, 2.0)))
    settling.record(1, b"Pgarbage")
    bundle = pack((Poison(), 1.0))
    assert isinstance(bundle, bytes)
    settling.record(1, bundle)
    job = settling.settle(done(pack_plain((1.5, {}, None))))
    assert job.recorded == [(1.0, 2.0)]


def test_a_job_that_never_reached_the_pool_settles_too(settling: Settling, arrivals: Mailbox):
    """Its failure arrives like an outcome."""
    failure = Failure("unpicklable", "the configuration is a lock", attempts=0)
    settling.refuse(2, Job("0.2", {}, None), failure)
    arrived: deque[Any] = deque()
    arrivals.take(1, 0.0, arrived)
    (item,) = arrived
    job = settling.settle(item)
    assert job.failure is failure
    assert job.objective == "F"


# -- failures


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (failed("timeout", "job_timeout", duration=1.5), "did not finish within its job_timeout (it ran 1.500 s)"),
        (failed("timeout", "job_timeout"), "the job did not finish within its job_timeout"),
        (failed("timeout", "search"), "the budget of the search (set_timeout) ran out while the job ran"),
        (failed("cancelled"), "the job was cancelled"),
        (failed("cancelled", "closed"), "the evaluator was closed before the job had finished"),
        (failed("cancelled", "search"), "ran out before the job began"),
        (failed("lost", "supervisor"), "the supervisor process died while the job ran"),
        (failed("lost", "template", detail="SIGKILL"), "had forked: SIGKILL"),
        (failed("lost", "unresponsive"), "the worker did not begin the job"),
        (failed("startup", detail="ImportError: gone"), "could be started, 3 times in a row: ImportError: gone"),
        (failed("startup"), "no worker could be started, 3 times in a row"),
        (failed("crash", signal="SIGSEGV"), "ended by SIGSEGV while the job ran"),
        (failed("crash", exit_code=3), "ended with exit code 3 while the job ran"),
        (failed("crash", channel_lost=True, exit_code=121), "so no result could be sent"),
        (failed("crash", "protocol", detail="garbage"), "not of the protocol: garbage"),
        (failed("memory", peak_memory=3 * GIB, memory_limit=2 * GIB), "took 3.00 GiB, over its memory_limit of 2.00"),
        (
            failed("memory", peak_memory=514 << 20, memory_limit=GIB // 2),
            "took 514.0 MiB, over its memory_limit of 512",
        ),
        (
            failed("memory", oom_killed=True, peak_memory=GIB),
            "the kernel's OOM killer ended the worker (peak seen: 1.0",
        ),
        (failed("memory", blamed={"message": "MemoryError: no", "acted": "MemoryError"}), "MemoryError: no"),
        (failed("exception", blamed={"message": "ValueError: bad"}), "ValueError: bad"),
        (failed("invalid", blamed={"message": "of no use", "value_repr": "nan"}), "of no use"),
        (failed("unpicklable", blamed={"message": "the result cannot be pickled"}), "the result cannot be pickled"),
    ],
)
def test_every_failure_has_its_words(settling: Settling, item: Failed, said: str):
    """One sentence for the user, and F for the search."""
    job = settling.settle(item)
    assert job.failure is not None
    assert said in job.failure.message
    assert job.failure.kind == item.info["kind"]
    assert job.objective == "F"
    assert job.metadata["attempts"] == 1


def test_what_the_worker_said_is_kept():
    """Type, traceback and the exception itself."""
    error = pack_plain(ValueError("bad"))
    told = {"message": "ValueError: bad", "exception_type": "ValueError", "traceback": "Traceback", "exception": error}
    failure = failure_of(failed("exception", blamed=told, output_tail="printed"), POLICY)
    assert (failure.exception_type, failure.traceback, failure.output_tail) == ("ValueError", "Traceback", "printed")
    assert isinstance(failure.exception, ValueError)


def test_which_of_three_acted_on_memory():
    """The limit, the kernel, or Python itself; None for every other failure."""
    acted = [
        failure_of(item, POLICY).acted
        for item in (
            failed("memory", memory_limit=GIB),
            failed("memory", oom_killed=True),
            failed("memory", blamed={"acted": "MemoryError"}),
            failed("crash"),
        )
    ]
    assert acted == ["memory_limit", "oom_killer", "MemoryError", None]


def test_a_signal_is_told_where_it_was_not_ours():
    """A timeout ends by SIGKILL of ours, a crash and the OOM killer's do not."""
    info = {"signal": "SIGKILL", "exit_code": 3}
    told = [
        (failure.signal, failure.exit_code)
        for failure in (
            failure_of(failed("crash", **info), POLICY),
            failure_of(failed("timeout", **info), POLICY),
            failure_of(failed("memory", oom_killed=True, **info), POLICY),
        )
    ]
    assert told == [("SIGKILL", 3), (None, None), ("SIGKILL", None)]


def test_a_stack_is_shown_without_our_frames():
    """Or why there is none."""
    stack = 'Thread 1:\n  File "user.py", line 3 in run\n  File "x/robust_eval/processes/worker.py", line 1 in serve'
    shown = failure_of(failed("timeout", stack=stack), POLICY)
    assert (shown.stack, shown.stack_missing) == ('Thread 1:\n  File "user.py", line 3 in run', None)
    missing = [
        failure_of(item, POLICY).stack_missing
        for item in (failed("timeout", stack_missing="masked"), failed("timeout"), failed("crash"))
    ]
    assert missing == ["masked", "the job ended by itself within its grace period", None]


def test_a_stack_does_not_show_how_an_executable_is_waited_for():
    """Of a command nothing is left, and that is said; of a function that calls one its own frames are."""
    head = "Current thread 0x1 (most recent call first):"
    waits = [
        '  File "/lib/selectors.py", line 468 in select',
        '  File "/x/robust_eval/command/process.py", line 106 in follow',
        '  File "/x/robust_eval/command/command.py", line 150 in __call__',
    ]
    user, ours = (
        '  File "user.py", line 3 in run',
        '  File "/x/robust_eval/processes/evaluation.py", line 60 in __call__',
    )
    alone = failure_of(failed("timeout", stack="\n".join([head, *waits, ours])), POLICY)
    assert (alone.stack, alone.stack_missing) == (None, "an executable was running, and only Python has such a stack")
    called = failure_of(failed("timeout", stack="\n".join([head, *waits, user, ours])), POLICY)
    assert (called.stack, called.stack_missing) == (f"{head}\n{user}", None)


@pytest.mark.parametrize(
    ("late", "kept"), [((2.5, {}, None), 2.5), ("no tuple", None), (None, None)], ids=["value", "garbage", "none"]
)
def test_a_late_value_is_kept(late: Any, kept: Any):
    """What came within the grace period, if it comes back."""
    assert failure_of(failed("timeout", "job_timeout", late=late), POLICY).late_result == kept


def test_words_that_do_not_come_back_are_left_out():
    """A worker's own account is never trusted: garbage, something else, or a memfd that is none."""
    bare = failed("exception", detail="x")
    size = 10
    lost = Memory(MISSING, size)
    for blamed in (b"Pgarbage", pack_plain(["a", "list"]), lost):
        failure = failure_of(bare._replace(blamed=blamed), POLICY)
        assert (failure.exception, failure.traceback) == (None, None)
    with nothing_left():
        words = pack_plain({"message": "said in memory"})
        assert failure_of(bare._replace(blamed=store([words], len(words))), POLICY).message == "said in memory"


def test_processes_that_did_not_die_are_named():
    """And who was lost."""
    assert failure_of(failed("timeout", unkilled_pids=[5, 6]), POLICY).unkilled_pids == (5, 6)
    assert failure_of(failed("lost", "template"), POLICY).lost == "template"
    assert failure_of(failed("crash", "template"), POLICY).lost is None


class Ending:
    """Raises what is no Exception when it comes back."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return _end, (self.kind,)


def _end(kind: type[BaseException]) -> None:
    raise kind


def test_a_value_that_exits_costs_its_own_job(settling: Settling):
    """SystemExit from a user's class does not end the driver."""
    job = settling.settle(done(pack_plain((1.0, {"extra": Ending(SystemExit)}, None))))
    assert job.failure is not None
    assert job.failure.kind == "unpicklable"
    assert "SystemExit" in job.failure.message


def test_a_ctrl_c_while_a_value_is_opened_passes_and_loses_nothing(settling: Settling):
    """The job is as it was, and is settled by the next gather."""
    item = done(pack_plain((1.0, {"extra": Ending(KeyboardInterrupt)}, None)))
    with pytest.raises(KeyboardInterrupt):
        settling.settle(item)
    late = failed("timeout", late=(Ending(KeyboardInterrupt), {}, None))
    with pytest.raises(KeyboardInterrupt):
        settling.settle(late)


def test_late_values_that_exit_are_left_out(settling: Settling):
    """The failure is what counts."""
    job = settling.settle(failed("timeout", late=(Ending(SystemExit), {}, None)))
    assert job.failure is not None
    assert job.failure.late_result is None


def test_recorded_objects_are_opened_where_the_job_is_gathered(settling: Settling):
    """The thread that receives every outcome opens plain numbers alone; the order stays, and what exits is left out."""
    settling.record(1, pack_plain((1, 0.5)))
    settling.record(1, pack_plain((2, Ending(SystemExit))))
    settling.record(1, pack_plain((3, np.float64(0.25))))
    settling.record(1, pack_plain((4, 0.125)))
    job = settling._jobs[1]
    assert job.recorded == [(1, 0.5)]
    settling.settle(done(pack_plain((1.0, {}, None))))
    assert job.recorded == [(1, 0.5), (3, 0.25), (4, 0.125)]


def test_a_ctrl_c_while_a_record_is_opened_passes(settling: Settling):
    """It is the user's."""
    settling.record(1, pack_plain((2, Ending(KeyboardInterrupt))))
    with pytest.raises(KeyboardInterrupt):
        settling.settle(done(pack_plain((1.0, {}, None))))
