"""A real pool with a tiny runner, from the driver's end, and what becomes of jobs when its other end dies."""

import contextlib
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from children import in_child
from waiting import is_alive, nothing_left, wait_until

from robust_eval.errors import EvaluatorClosed, InvalidArgument, RobustEvalError
from robust_eval.processes import orders
from robust_eval.processes import pool as pool_module
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.parcel import Memory, open_parcel, pack, unpack
from robust_eval.processes.pending import Done, Failed, Settled, Submission
from robust_eval.processes.pool import Pool, PoolSettings
from robust_eval.processes.stream import MOST_DESCRIPTORS

PATIENCE_S = 60.0
POLICY: dict[str, Any] = {
    "num_workers": 1,
    "max_retries": 0,
    "retry_on": [],
    "grace_s": 0.0,
    "kill_timeout_s": 10.0,
    "start_timeout_s": 60.0,
    "max_tasks_per_child": None,
    "max_start_failures": 3,
}
fails_in_its_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def nobody_keeps_it_going(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that is stopped stands for one that hangs; in earnest it would be continued."""
    monkeypatch.setattr("robust_eval.processes.system.keep_going", lambda _pid: None)


class Driver:
    """What is above a pool: it keeps what is delivered and recorded."""

    def __init__(self, runner: Callable[[Any, Any], Any], **policy: Any) -> None:
        self.outcomes: dict[int, Settled] = {}
        self.records: list[Any] = []
        self._arrived = threading.Condition()
        self.pool = Pool(
            pack(Bundle(runner)), PoolSettings({**POLICY, **policy}, sys.executable), self.deliver, self.record
        )

    def deliver(self, settled: list[Settled]) -> None:
        with self._arrived:
            for outcome in settled:
                assert outcome.job_id not in self.outcomes, "settled twice"
                self.outcomes[outcome.job_id] = outcome
            self._arrived.notify_all()

    def record(self, job_id: int, value: bytes) -> None:
        with self._arrived:
            self.records.append((job_id, unpack(value)))
            self._arrived.notify_all()

    def submit(self, *arguments: Any, first: int = 0, timeout_s: float | None = None) -> None:
        self.pool.submit([Submission(first + index, pack(each), timeout_s) for index, each in enumerate(arguments)])

    def wait(self, count: int) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.outcomes) >= count, PATIENCE_S), self.outcomes

    def wait_for_record(self, record: Any) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: record in self.records, PATIENCE_S), self.records

    def value(self, job_id: int) -> Any:
        outcome = self.outcomes[job_id]
        assert isinstance(outcome, Done), outcome
        return unpack(open_parcel(outcome.parcel))

    def causes(self, job_ids: Iterable[int]) -> set[tuple[str, str, int]]:
        """Kind, cause and attempts of these, which all failed."""
        found = set()
        for job_id in job_ids:
            outcome = self.outcomes[job_id]
            assert isinstance(outcome, Failed), outcome
            found.add((outcome.info["kind"], outcome.info["cause"], outcome.info["attempts"]))
        return found

    def kill_supervisor(self) -> None:
        """And wait until it is reaped, or another is there."""
        pid = self.pool.supervisor_pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.pool.supervisor_pid != pid or not self.pool._receiver.is_alive())


@contextlib.contextmanager
def driven(runner: Callable[[Any, Any], Any], **policy: Any) -> Iterator[Driver]:
    """A driver with its pool, which is closed and leaves nothing."""
    with nothing_left():
        driver = Driver(runner, **policy)
        try:
            yield driver
        finally:
            driver.pool.close()


def double(x: Any, _: Any) -> Any:
    return 2 * x


def begin(x: Any, context: Any) -> Any:
    """Say that the job has begun; stay, if that is what is asked."""
    context.record("begun")
    while x == "stay":
        signal.pause()
    return x


# -- orders


def test_jobs_settle_with_their_values_and_measures():
    """Each once, small and large."""
    with driven(double, num_workers=2) as driver:
        driver.submit(*range(20))
        driver.submit(np.ones(300_000), first=20)
        driver.wait(21)
        assert [driver.value(number) for number in range(20)] == [2 * number for number in range(20)]
        assert driver.value(20).sum() == 600_000
        outcome = driver.outcomes[3]
        assert isinstance(outcome, Done)
        assert outcome.attempts == 1
        assert 0 < outcome.begun_at <= outcome.ended_at <= time.monotonic()
        assert outcome.peak_memory > 1 << 20


def test_many_large_payloads_go_in_several_messages():
    """No message can carry more than so many descriptors, and none stays open here."""
    with driven(lambda x, _: len(x), num_workers=2) as driver:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for first in range(0, 220, 20):
            driver.submit(*[bytes(1 << 20)] * 20, first=first)
        many = [Submission(1000 + number, pack(bytes(1 << 20))) for number in range(MOST_DESCRIPTORS + 5)]
        driver.pool.submit(many)
        driver.wait(220 + len(many))
        assert {driver.value(job_id) for job_id in driver.outcomes} == {1 << 20}
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208


def test_cancelled_jobs_settle_as_such():
    """What runs is killed, what waits never begins, and the others are untouched."""
    with driven(begin) as driver:
        driver.submit("stay", 1, 2)
        driver.wait_for_record((0, "begun"))
        driver.pool.cancel([0, 1, 99])
        driver.wait(3)
        assert driver.causes([0]) == {("cancelled", "cancelled", 1)}
        assert driver.causes([1]) == {("cancelled", "cancelled", 0)}
        assert driver.value(2) == 2


def test_a_budget_ends_what_runs_and_can_be_lifted():
    """A job over it is a timeout, one that waits is cancelled; without one, jobs run again."""
    with driven(begin) as driver:
        driver.submit("stay", "stay")
        driver.wait_for_record((0, "begun"))
        driver.pool.set_budget(0.01)
        driver.wait(2)
        assert driver.causes([0]) == {("timeout", "search", 1)}
        assert driver.causes([1]) == {("cancelled", "search", 0)}
        driver.pool.set_budget(None)
        driver.submit(7, first=2)
        driver.wait(3)
        assert driver.value(2) == 7


def test_closing_settles_everything_once():
    """As cancelled; then there is no pool any more, and closing again is free."""
    with driven(begin) as driver:
        driver.submit("stay", 1)
        driver.wait_for_record((0, "begun"))
        driver.pool.close()
        assert {kind for kind, *_ in driver.causes([0, 1])} == {"cancelled"}
        driver.pool.close()
        parcel = pack(bytes(2 << 20))
        assert isinstance(parcel, Memory)
        with pytest.raises(EvaluatorClosed, match="make a new evaluator"):
            driver.pool.submit([Submission(5, parcel)])
        driver.pool.cancel([1])
        driver.pool.set_budget(1.0)


def test_a_pool_may_be_closed_from_where_it_delivers():
    """By a callback of its receiving thread, which cannot wait for itself."""
    with nothing_left():
        driver = Driver(double)
        deliver = driver.pool._pending._deliver

        def close_then(settled: list[Settled]) -> None:
            driver.pool.close()
            deliver(settled)

        driver.pool._pending._deliver = close_then
        driver.submit(1)
        driver.wait(1)
        driver.pool.close()
        assert driver.value(0) == 2


def test_a_forked_child_is_refused():
    """The pool is not its own; closing it there does nothing here."""
    with driven(double) as driver:

        def use() -> list[str]:
            driver.pool.close()
            said = []
            for order in (lambda: driver.pool.cancel([]), lambda: driver.submit(1), driver.pool.stats):
                try:
                    order()
                except RobustEvalError as error:
                    said.append(str(error))
            return said

        said = in_child(use)
        assert len(said) == 3
        assert all("was used in its forked child" in text for text in said)
        driver.submit(1)
        driver.wait(1)
        assert driver.value(0) == 2


def test_a_supervisor_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    """Its statistics are empty then, and full when it goes on."""
    with driven(double) as driver:
        driver.submit(1)
        driver.wait(1)
        assert driver.pool.stats()["queued"] == 0
        os.kill(driver.pool.supervisor_pid, signal.SIGSTOP)
        monkeypatch.setattr(pool_module, "_ANSWER_S", 0.01)
        assert driver.pool.stats() == {}
        os.kill(driver.pool.supervisor_pid, signal.SIGCONT)
        monkeypatch.undo()
        assert driver.pool.stats()["queued"] == 0


def test_closing_is_bounded_when_the_supervisor_hangs(monkeypatch: pytest.MonkeyPatch):
    """It is killed with all that is below it, and what had not settled settles."""
    monkeypatch.setattr(pool_module, "_CLOSE_SLACK_S", 0.05)
    with driven(begin, kill_timeout_s=0.05, num_workers=2) as driver:
        driver.submit("stay", "stay", 3)
        driver.wait_for_record((0, "begun"))
        driver.wait_for_record((1, "begun"))
        os.kill(driver.pool.supervisor_pid, signal.SIGSTOP)
        driver.pool.close()
        monkeypatch.undo()
        driver.wait(3)
        assert driver.causes([0, 1]) == {("lost", "supervisor", 1)}
        assert driver.causes([2]) == {("cancelled", "closed", 0)}
        driver.pool._receiver.join(PATIENCE_S)


# -- the death of the supervisor


def test_of_a_dead_supervisor_only_what_had_begun_is_lost():
    """The others run once, under the next one, and its workers are gone."""
    with driven(begin) as driver:
        driver.submit("stay", *range(1, 6))
        driver.submit(bytes(2 << 20), first=6)
        driver.wait_for_record((0, "begun"))
        driver.kill_supervisor()
        driver.wait(7)
        assert driver.causes([0]) == {("lost", "supervisor", 1)}
        assert [driver.value(number) for number in range(1, 6)] == list(range(1, 6))
        assert driver.value(6) == bytes(2 << 20)
        assert sorted(driver.records) == [(number, "begun") for number in range(7)]
        outcome = driver.outcomes[6]
        assert isinstance(outcome, Done)
        assert outcome.attempts == 1


def test_a_lost_job_is_tried_again_where_that_was_asked_for(tmp_path: Path):
    """As often as that, deaths of supervisors included."""

    def once(path: str, context: Any) -> str:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)  # noqa: PTH102
            begin("stay", context)
        return "second"

    with driven(once, max_retries=1, retry_on=["lost"]) as driver:
        driver.submit(str(tmp_path / "begun"))
        driver.wait_for_record((0, "begun"))
        driver.kill_supervisor()
        driver.wait(1)
        assert driver.value(0) == "second"
        outcome = driver.outcomes[0]
        assert isinstance(outcome, Done)
        assert outcome.attempts == 2


def test_retries_that_are_used_up_are_used_up(tmp_path: Path):
    """The second death loses the job for good."""

    def twice(path: str, context: Any) -> None:
        number = len(os.listdir(path))  # noqa: PTH208
        os.mkdir(f"{path}/{number}")  # noqa: PTH102
        context.record(number)
        begin("stay", context)

    with driven(twice, max_retries=1, retry_on=["lost"]) as driver:
        driver.submit(str(tmp_path))
        for number in range(2):
            driver.wait_for_record((0, number))
            driver.kill_supervisor()
        driver.wait(1)
        assert driver.causes([0]) == {("lost", "supervisor", 2)}


def test_after_three_deaths_in_a_row_everything_is_lost(tmp_path: Path):
    """No endless respawn: nothing waits, the pool is closed."""
    diary = tmp_path / "diary"
    diary.touch()

    def stay(line: bytes, _: Any) -> None:
        with diary.open("ab") as file:
            file.write(line)
        signal.pause()

    with driven(stay, max_retries=10, retry_on=["lost"]) as driver:
        driver.submit(b"1", b"2", b"3")
        for death in range(1, 4):
            wait_until(lambda death=death: diary.read_bytes() == b"1" * death)
            driver.kill_supervisor()
        driver.wait(3)
        assert driver.causes([0]) == {("lost", "supervisor", 3)}
        assert driver.causes([1, 2]) == {("lost", "supervisor", 0)}
        with pytest.raises(EvaluatorClosed):
            driver.submit(1, first=9)


def test_a_budget_outlives_its_supervisor():
    """The next one keeps it."""
    with driven(begin) as driver:
        driver.submit("stay", "stay")
        driver.wait_for_record((0, "begun"))
        driver.pool.set_budget(1.0)
        driver.kill_supervisor()
        driver.wait(2)
        assert driver.causes([0]) == {("lost", "supervisor", 1)}
        assert driver.causes([1]) <= {("timeout", "search", 1), ("cancelled", "search", 0)}


def test_a_driver_that_dies_of_sigpipe_outlives_its_supervisor():
    """Programs of the command line often give that signal back to the kernel; they submit into a dead channel, too."""

    def drive() -> str:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        with driven(double) as driver:
            pid = driver.pool.supervisor_pid
            with driver.pool._lock:  # nobody learns of the end meanwhile
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not is_alive(pid))
                driver.submit(3)
            driver.wait(1)
            return str(driver.value(0))

    assert in_child(drive) == "6"


def test_what_a_good_job_printed_is_not_kept():
    """Only of a failed one is the end of it of use: a driver with a million jobs would hold it all."""

    def shout(x: Any, _: Any) -> Any:
        os.write(1, b"x" * 70_000)
        return 1 / x

    with driven(shout) as driver:
        driver.submit(1, 0)
        driver.wait(2)
        assert len(pickle.dumps(driver.outcomes[0])) < 1000
        failed = driver.outcomes[1]
        assert isinstance(failed, Failed)
        assert failed.info["output_tail"] == "x" * (1 << 16)


@fails_in_its_thread
def test_when_no_supervisor_can_be_started_again_nothing_waits(monkeypatch: pytest.MonkeyPatch):
    """What is pending is lost, with the reason."""
    with driven(begin) as driver:
        driver.submit("stay", 1)
        driver.wait_for_record((0, "begun"))
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        driver.kill_supervisor()
        driver.wait(2)
        assert {kind for kind, *_ in driver.causes([0, 1])} == {"lost"}
        outcome = driver.outcomes[1]
        assert isinstance(outcome, Failed)
        assert "FileNotFoundError" in outcome.info["detail"]
        with pytest.raises(EvaluatorClosed):
            driver.submit(1, first=9)


@fails_in_its_thread
def test_a_receiver_that_fails_leaves_no_job_waiting():
    """A bug of ours costs the jobs and not the user's patience; no process is left."""
    with driven(begin) as driver:

        def fail(job_id: int, value: bytes) -> None:
            raise ZeroDivisionError

        driver.pool._record = fail
        driver.submit("stay", 1)
        driver.wait(2)
        assert {kind for kind, *_ in driver.causes([0, 1])} == {"lost"}
        outcome = driver.outcomes[0]
        assert isinstance(outcome, Failed)
        assert "ZeroDivisionError" in outcome.info["detail"]
        wait_until(lambda: not is_alive(driver.pool.supervisor_pid))


@fails_in_its_thread
def test_garbage_from_a_supervisor_is_a_failure_of_ours():
    """It is no end of the driver's patience, either."""
    with driven(begin) as driver:
        driver.submit("stay")
        driver.wait_for_record((0, "begun"))
        message = (orders.SETTLED, "no list", [], [])
        driver.pool._on_settled, handle = lambda *_: handle(*message[1:]), driver.pool._on_settled
        driver.submit(1, first=1)
        driver.pool.cancel([0])
        driver.wait(2)
        assert driver.causes([1]) <= {("lost", "supervisor", 0), ("lost", "supervisor", 1)}


# -- the start


def test_a_pool_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    """The error is the system's own."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with nothing_left(), pytest.raises(FileNotFoundError):
        Driver(double)


@pytest.mark.parametrize("name", ["keeper", "receiver"])
def test_a_pool_whose_thread_cannot_start_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    """Neither its supervisor nor another thread: a limit on threads shows there first."""
    start, before = threading.Thread.start, set(threading.enumerate())

    def start_unless(thread: threading.Thread) -> None:
        if thread.name == f"robust_eval {name}":
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless)
    with nothing_left(), pytest.raises(RuntimeError, match="new thread"):
        Driver(double)
    wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize("free", range(3))
def test_without_descriptors_there_is_no_pool(free: int):
    """The message says what to do, and what was made for the pool is closed again."""

    def start() -> tuple[str, bool]:
        bundle = pack(Bundle(double))
        lowest = os.dup(0)
        os.close(lowest)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, most))
        said = ""
        try:
            Pool(bundle, PoolSettings(POLICY, sys.executable), print, print)
        except RobustEvalError as error:
            said = str(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        again = os.dup(0)
        return said, again == lowest

    said, closed = in_child(start)
    assert "ulimit -n" in said
    assert closed


def test_where_no_file_may_be_so_large_there_is_no_pool():
    """Of the memory that the driver shares with its workers nearly nothing is filled; the limit counts all of it."""

    def start() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            Pool(pack(Bundle(double)), PoolSettings(POLICY, sys.executable), print, print)
        except RobustEvalError as error:
            return str(error)
        return ""

    assert "ulimit -f" in in_child(start)


def test_a_large_function_is_handed_over_as_it_is():
    """What it refers to may be larger than any message."""
    array = np.ones(300_000)
    with driven(lambda x, _: x + array.sum()) as driver:
        driver.submit(1)
        driver.wait(1)
        assert driver.value(0) == 300_001


# -- interrupts


class Interrupt(BaseException):
    """What a signal handler of the user raises."""


def test_an_interrupted_order_is_sent_whole():
    """However often the sending is interrupted: the interrupt comes out, and every job settles."""
    with driven(lambda x, _: len(x)) as driver:
        driver.submit(b"warm", first=1000)
        driver.wait(1)
        supervisor = driver.pool.supervisor_pid
        alarms = 0

        def interrupt(_number: int, frame: FrameType | None) -> None:
            nonlocal alarms
            alarms += 1
            if alarms == 20:
                os.kill(supervisor, signal.SIGCONT)
            if frame is not None and frame.f_code.co_name == "_push":  # not in this test's own lines
                raise Interrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        os.kill(supervisor, signal.SIGSTOP)
        message = (orders.SUBMIT, [(number, pack(bytes(60_000)), None, None, 0, None) for number in range(400)])
        driver.pool._pending.add(Submission(number, b"") for number in range(400))
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.005)
        try:
            with pytest.raises(Interrupt):
                driver.pool._overseer.send(message)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
            os.kill(supervisor, signal.SIGCONT)
        assert alarms > 1
        driver.wait(401)
        assert {driver.value(number) for number in range(400)} == {60_000}
        assert driver.pool.supervisor_pid == supervisor


def test_more_workers_than_open_files_allow_are_refused():
    """Before anything is started, with the number that would do."""

    def made() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        bundle = pack(Bundle(lambda x, _: x))
        refused = r"num_workers=14 .* may have 200: use at most 13"
        with nothing_left(), pytest.raises(InvalidArgument, match=refused) as error:
            Pool(bundle, PoolSettings({**POLICY, "num_workers": 14}, sys.executable), print, print)
        return str(error.value)

    assert "ulimit -Hn" in in_child(made)
