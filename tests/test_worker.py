"""A worker in a forked child, driven over the channels that a supervisor has."""

import contextlib
import marshal
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from children import end_of, in_child
from waiting import is_alive, nothing_left, wait_until

from robust_eval.errors import InvalidOutput
from robust_eval.processes import system, tree, wire
from robust_eval.processes import worker as worker_module
from robust_eval.processes.begun import VARIABLE, BegunLog
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.channels import Channels, high
from robust_eval.processes.heard import Calls
from robust_eval.processes.hygiene import Builtins
from robust_eval.processes.layout import (
    CHANNEL_LOST_CODE,
    HEARING_AT,
    LEDGER_BYTES,
    LOST_AT,
    READING_AT,
    STOP_SIGNAL,
)
from robust_eval.processes.parcel import MISSING, Memory, Parcel, open_parcel, pack, store, unpack
from robust_eval.processes.port import Port
from robust_eval.processes.streams import Streams
from robust_eval.processes.wire import Report
from robust_eval.processes.worker import Worker, open_ledger, prove, run_worker

PATIENCE_S = 20.0


def keep_only(kept: set[int]) -> None:
    """Close the others: what a job does to every descriptor must not reach those of the test runner."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(entry.name))


class Supervised:
    """One worker with the port that a supervisor would have. Killed at the end of the block."""

    def __init__(self, load: Callable[[], Bundle], settings: dict[str, Any] | None) -> None:
        self.port = Port(1)
        self.ledger = system.memory_file(LEDGER_BYTES)
        self.seen: list[Report] = []
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            system.adopt_orphans()
            keep_only({0, 1, 2, *self.port.child_fds, self.ledger})
            worker = Worker(Channels(), open_ledger(self.ledger), Streams(), Builtins(), None)
            os._exit(run_worker(worker, self.port.child_fds, load))
        self.exit_fd = os.pidfd_open(self.pid)
        for fd in self.port.child_fds:
            os.close(fd)
        self.port.child_fds = []
        if settings is not None:
            plain = {"marker": self.port.marker, "env": {}, "seed": None}
            plain |= {"max_tasks_per_child": None, "shelf_bytes": 1 << 26}
            self.port.assign(marshal.dumps({**plain, **settings}))

    def send(self, arguments: Any, job_id: int = 5, attempt: int = 1) -> None:
        self.send_parcel(pack(arguments), job_id, attempt)

    def send_parcel(self, parcel: Parcel, job_id: int = 5, attempt: int = 1) -> None:
        if isinstance(parcel, bytes) and len(parcel) > wire.PACKET_BYTES:
            parcel = store([parcel], len(parcel))
        assert not self.port.send(attempt, job_id, parcel)
        assert not self.port.flush()
        if isinstance(parcel, Memory):
            os.close(parcel.fd)

    def next(self) -> Report:
        """The next report."""
        while not self.seen:
            assert select.select([self.port.outbox], [], [], PATIENCE_S)[0], "no report"
            assert self.port.reports.read(), self.output()
            self.seen += self.port.reports.reports()
        return self.seen.pop(0)

    def result(self) -> tuple[str | None, Any]:
        """Failure kind and content of the next report, which is a result."""
        report = self.next()
        assert report.kind == wire.RESULT
        return report.failure_kind, unpack(open_parcel(report.payload))

    def run(self, arguments: Any) -> tuple[str | None, Any]:
        self.send(arguments)
        return self.result()

    def output(self) -> str:
        return self.port.output.rest()

    def end(self) -> int:
        """Close the inbox and give the exit code."""
        self.port._inbox.close()
        return self.code()

    def code(self) -> int:
        assert select.select([self.exit_fd], [], [], PATIENCE_S)[0], "the worker goes on"
        self.status = end_of(self.pid)
        return self.status

    def close(self) -> None:
        if self.status is None:
            below = tree.descendants(self.pid)
            self.port._inbox.close()
            if not select.select([self.exit_fd], [], [], PATIENCE_S)[0]:
                os.kill(self.pid, signal.SIGKILL)
            end_of(self.pid)
            tree.signal_all(below, signal.SIGKILL)
        os.close(self.exit_fd)
        os.close(self.ledger)
        self.port.close()


@contextlib.contextmanager
def supervised(
    runner: Callable[[Any, Any], Any], *, ready: bool = True, initializer: Any = None, **settings: Any
) -> Iterator[Supervised]:
    """A worker that has taken its slot."""
    with nothing_left():
        made = Supervised(lambda: Bundle(runner, initializer), settings)
        try:
            if ready:
                assert made.next().kind == wire.READY
            yield made
        finally:
            made.close()


def leave(code: int) -> NoReturn:
    """As `os._exit`, which cannot be pickled while coverage is measured."""
    os._exit(code)


def call(arguments: Any, context: Any) -> Any:
    """A runner whose jobs bring their own function."""
    function, *rest = arguments
    return function(*rest)


class Unloadable:
    def __reduce__(self) -> Any:
        return _raise, ("does not come back",)


class Deadly:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def _raise(text: str) -> NoReturn:
    raise OSError(text)


def exhaust() -> NoReturn:
    raise MemoryError("enough")


# -- jobs


def test_jobs_are_run_one_after_the_other():
    """With their results, their ids, plausible instants, and a worker that ends with its inbox."""
    with supervised(lambda x, _: 2 * x) as worker:
        for number in range(5):
            worker.send(number, job_id=number)
        reports = [worker.next() for _ in range(5)]
        assert [report.job_id for report in reports] == list(range(5))
        assert [unpack(open_parcel(report.payload)) for report in reports] == [0, 2, 4, 6, 8]
        instants = [at for report in reports for at in (report.begun_at, report.ended_at)]
        assert instants == sorted(instants)
        assert all(report.peak_bytes > 1 << 20 and report.flags == 0 for report in reports)
        stamp = worker.port.stamp()
        assert stamp is not None
        assert stamp == (4, reports[-1].begun_at)
        assert worker.end() == 0


def places_of(path: str) -> list[int]:
    """The numbers of the descriptors of this process that lead to a file."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - closed before it is gone through
    return [number for number in numbers if os.path.realpath(f"/proc/self/fd/{number}") == path]


def test_the_log_of_begun_jobs_is_where_no_job_meets_it(tmp_path, monkeypatch):
    """A job that opens and closes files has the low numbers, and what is noted there would be written into its own."""
    log = BegunLog(tmp_path / "log")
    monkeypatch.setenv(VARIABLE, str(log.path))
    with supervised(call) as worker:
        failure, places = worker.run((places_of, str(log.path)))
        assert failure is None
        (place,) = places
        lowest = high(os.open(os.devnull, os.O_RDONLY))
        os.close(lowest)
        assert place >= lowest
        assert worker.end() == 0
    log.close()


def test_the_ledger_says_how_often_a_job_was_begun():
    """One byte a job, which survives every supervisor."""
    with supervised(lambda x, _: x) as worker:
        for job_id, attempt in ((7, 1), (8, 3), (9, 200)):
            worker.send(0, job_id, attempt)
            worker.next()
        assert os.pread(worker.ledger, 5, 6) == bytes([0, 1, 3, 127, 0])


def test_no_descriptor_of_a_job_leads_to_the_ledger():
    """A job that writes into every descriptor leaves the counts of others alone."""

    def sizes(_x: object, _context: object) -> list[int]:
        found = []
        for fd in range(1024):
            with contextlib.suppress(OSError):
                found.append(os.fstat(fd).st_size)
        return found

    with supervised(sizes) as worker:
        kind, found = worker.run(None)
        assert kind is None
        assert LEDGER_BYTES not in found


def test_large_payloads_go_through_memory_both_ways():
    """The array arrives, and so does what is made of it."""
    with supervised(lambda array, _: array * 2) as worker:
        kind, array = worker.run(np.arange(300_000))
        assert kind is None
        assert array[-1] == 599_998


@pytest.mark.parametrize(
    ("function", "kind", "said"),
    [
        (lambda: 1 / 0, "exception", "ZeroDivisionError: division by zero"),
        (sys.exit, "exception", "SystemExit"),
        (exhaust, "memory", "MemoryError: enough"),
        (threading.Lock, "unpicklable", "the result cannot be pickled: TypeError"),
        (Deadly, "unpicklable", "the result cannot be pickled: SystemExit"),
        (Unloadable, "unpicklable", "the result cannot be pickled: OSError: does not come back"),
    ],
)
def test_a_failure_is_told_and_the_worker_goes_on(function: Callable[[], Any], kind: str, said: str):
    """Its kind, its words, and the next job is run by the same worker."""
    with supervised(call) as worker:
        told, fields = worker.run((function,))
        assert told == kind
        assert fields["message"].startswith(said)
        assert "processes/worker.py" not in fields["traceback"] or kind == "unpicklable"
        assert worker.run((int,)) == (None, 0)


def test_a_value_that_is_not_accepted_is_invalid():
    """With its representation."""

    def refuse() -> NoReturn:
        raise InvalidOutput("of no use", "nan")

    with supervised(call) as worker:
        assert worker.run((refuse,)) == ("invalid", {"message": "of no use", "value_repr": "nan"})


@pytest.mark.parametrize("arguments", [Unloadable(), Deadly()])
def test_a_configuration_that_does_not_come_back_is_told(arguments: Any):
    """Whatever its unpickling raises."""
    with supervised(call) as worker:
        kind, fields = worker.run(arguments)
        assert kind == "unpicklable"
        assert fields["message"].startswith("the configuration cannot be unpickled")
        worker.send_parcel(b"Pgarbage")
        assert worker.result()[0] == "unpicklable"
        assert worker.run((int,)) == (None, 0)


@pytest.mark.parametrize("side", ["configuration", "result"])
def test_running_out_of_memory_while_it_travels_is_memory(side: str):
    """Not the fault of the object."""

    class Large:
        def __reduce__(self) -> Any:
            if side == "result":
                raise MemoryError
            return exhaust, ()

    with supervised((lambda *_: Large()) if side == "result" else call) as worker:
        kind, fields = worker.run(1 if side == "result" else Large())
        assert (kind, fields["acted"]) == ("memory", "MemoryError")


def test_a_proof_is_asked_of_what_may_run_code():
    """And of everything that lies in memory."""
    prove(pack([1, 2]))
    with pytest.raises(OSError, match="does not come back"):
        prove(pack(Unloadable()))
    large = pack([Unloadable(), np.zeros(300_000)])
    assert isinstance(large, Memory)
    with pytest.raises(OSError, match="does not come back"):
        prove(large)
    os.close(large.fd)


def test_a_configuration_whose_descriptor_was_lost_fails_its_job_alone():
    """No descriptor was free for it on its way; the job says so, and the next one is run."""
    with supervised(lambda x, _: x) as worker:
        assert not worker.port.send(1, 5, Memory(MISSING, 1 << 20))
        kind, fields = worker.result()
        assert kind == "unpicklable"
        assert "no descriptor was free" in fields["message"]
        assert worker.run("next") == (None, "next")


def test_what_it_takes_to_store_a_result_is_no_call_of_the_job():
    """Else all that is rarely changed would be looked at after every job with a large result."""
    calls = Calls()
    stored = Memory(-1, 1)

    def store_and_be_heard(_pieces: object, _size: int) -> Memory:
        calls.passing = True
        return stored

    for passing in (False, True):
        calls.passing = passing
        worker = SimpleNamespace(_calls=calls, _shelf=SimpleNamespace(store=store_and_be_heard))
        assert Worker._store(worker, [b"x"], 1) is stored
        assert calls.passing is passing


def test_records_arrive_while_the_job_runs():
    """In order, before its result, and with its id."""

    def record(values: list[Any], context: Any) -> None:
        for value in values:
            context.record(value)

    with supervised(record) as worker:
        worker.send([(1, 2.0), "x" * 100_000], job_id=6)
        first, second, result = (worker.next() for _ in range(3))
        assert [report.kind for report in (first, second, result)] == [wire.RECORD, wire.RECORD, wire.RESULT]
        assert [report.job_id for report in (first, second, result)] == [6, 6, 6]
        assert isinstance(first.payload, bytes)
        assert unpack(first.payload) == (1, 2.0)


class Late:
    """A cycle that ends the process when it is collected."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        os._exit(5)


@pytest.mark.parametrize("function", [lambda: Late() and None, lambda: [Late(), 1 / 0]])
def test_what_a_job_leaves_to_be_collected_is_charged_to_it(function: Callable[[], Any]):
    """A cycle that ends the process does so before the job is reported, whether it returned or raised."""
    with supervised(call) as worker:
        worker.send((function,))
        assert worker.end() == 5


def test_how_a_job_calculates_is_its_own_affair():
    """Numpy keeps that in the context, of which each job has its own."""
    with supervised(call) as worker:
        before = worker.run((np.geterr,))
        worker.run((lambda: np.seterr(all="raise") and None,))
        assert worker.run((np.geterr,)) == before


def test_a_default_of_the_users_modules_does_not_hurry_a_worker(monkeypatch):
    """A default timeout of sockets, set where the template imports, would end a worker that waits for a job."""

    class Hurried(Channels):
        def __init__(self) -> None:
            socket.setdefaulttimeout(1e-6)
            super().__init__()

    monkeypatch.setattr(sys.modules[__name__], "Channels", Hurried)
    with supervised(call) as worker:
        assert [worker.run((int,)) for _ in range(100)] == [(None, 0)] * 100


# -- output


@pytest.mark.parametrize(
    "speak",
    [
        lambda: print("spoken"),  # noqa: T201
        lambda: print("spoken", file=sys.stderr),  # noqa: T201
        lambda: os.write(1, b"spoken\n"),
        lambda: subprocess.run(["echo", "spoken"], check=True),
        lambda: sys.stdout.write("spoken\n"),
    ],
)
def test_whatever_a_job_prints_is_its_own(speak: Callable[[], Any]):
    """By print, by the system, or by a program; a job that is silent has no output."""
    with supervised(call) as worker:
        worker.send((speak,), job_id=1)
        report = worker.next()
        assert report.flags & wire.PRINTED
        assert worker.port.output.take(1) == "spoken\n"
        worker.send((int,), job_id=2)
        assert not worker.next().flags & wire.PRINTED
        worker.send((speak,), job_id=3)
        assert worker.next().flags & wire.PRINTED
        assert worker.port.output.take(3) == "spoken\n"


def close_stdout() -> None:
    sys.stdout.close()


def read_stdin() -> str:
    return sys.stdin.read()


def test_a_closed_stream_costs_no_result():
    """What cannot be flushed is not."""
    with supervised(call) as worker:
        worker.send((close_stdout,))
        report = worker.next()
        assert report.failure_kind is None
        assert report.flags & wire.LEAVING
        assert worker.code() == 0


def test_standard_input_is_empty():
    """No job waits for a user who is not there."""
    with supervised(call) as worker:
        assert worker.run((read_stdin,)) == (None, "")


# -- what a job leaves


def test_a_job_that_changed_its_worker_leaves_with_it():
    """The supervisor is told, and the worker ends by itself."""
    with supervised(call) as worker:
        worker.send((lambda: os.chdir("/usr"),))
        assert worker.next().flags & wire.LEAVING
        assert worker.code() == 0


def test_a_worker_leaves_after_its_last_job():
    """Not before."""
    with supervised(call, max_tasks_per_child=2) as worker:
        worker.send((int,))
        assert not worker.next().flags & wire.LEAVING
        worker.send((int,))
        assert worker.next().flags & wire.LEAVING
        assert worker.code() == 0


def test_a_job_that_leaves_a_process_is_told_of():
    """The worker then waits for its end, so that what was left stays below it."""

    def leave() -> int:
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        return pid

    with supervised(call) as worker:
        worker.send((leave,))
        report = worker.next()
        pid = unpack(open_parcel(report.payload))
        assert report.flags & wire.LEFTOVERS
        assert tree.children(worker.pid) == [pid]
        tree.kill_below(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.code() == -signal.SIGKILL
        wait_until(lambda: not is_alive(pid))


def test_children_that_have_ended_are_reaped():
    """A job that does not wait for its own leaves no zombie and no harm."""

    def start() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    with supervised(call) as worker:
        worker.send((start,))
        assert not worker.next().flags & wire.LEFTOVERS
        assert tree.children(worker.pid) == []


def lose_the_streams() -> None:
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


@pytest.mark.parametrize("initializer", [os.fork, lose_the_streams])
def test_an_initializer_may_do_odd_things(initializer: Callable[[], Any]):
    """A child that comes back as well is no second worker, which would take jobs; streams may be missing."""
    with supervised(call, initializer=initializer) as worker:
        assert [worker.run((int,)) for _ in range(20)] == [(None, 0)] * 20


def test_helpers_of_the_initializer_stay():
    """They belong to the worker and not to its jobs."""

    def help_out() -> None:
        if os.fork() == 0:
            while True:
                signal.pause()

    with supervised(call, initializer=help_out) as worker:
        worker.send((int,))
        assert worker.next().flags == 0
        assert len(tree.children(worker.pid)) == 1


def test_a_child_that_returns_from_the_job_reports_nothing():
    """Only the worker itself does."""

    def fork() -> bool:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return bool(pid)

    with supervised(call) as worker:
        assert worker.run((fork,)) == (None, True)
        assert worker.run((int,)) == (None, 0)


# -- the channel


def test_a_lost_channel_ends_the_worker_with_a_word():
    """A job that closes everything is found out by the page that it shares."""

    def close_all() -> None:
        os.closerange(3, 4096)

    with supervised(call) as worker:
        worker.send((close_all,))
        assert worker.code() == CHANNEL_LOST_CODE
        assert worker.port._stamps[LOST_AT] == 1


def test_a_job_that_writes_into_the_channel_ends_the_worker():
    """Before the jobs that wait behind it are run."""

    def write() -> None:
        for fd in range(3, 1024):
            with contextlib.suppress(OSError):
                os.write(fd, b"garbage")

    with supervised(call) as worker:
        worker.send((write,), job_id=1)
        worker.send((int,), job_id=2)
        assert worker.code() == CHANNEL_LOST_CODE
        assert worker.port.take_back() == [2]


def test_a_supervisor_that_is_always_reading_is_not_waited_for():
    """Whether the job wrote into the channel is then not known, and nobody is blamed."""
    with supervised(call) as worker:
        worker.port._stamps[HEARING_AT] = 1
        worker.port._stamps[READING_AT] = 1
        assert worker.run((int,)) == (None, 0)
        worker.send((print, "spoken"), job_id=4)
        assert worker.next().flags & wire.PRINTED


# -- the polite stop


def test_a_job_is_stopped_where_it_is():
    """`JobStop` is raised in it, and it is a timeout."""

    def runner(_: Any, context: Any) -> None:
        context.record("begun")
        while not context.stop_requested():
            signal.pause()

    with supervised(runner) as worker:
        worker.send(0, job_id=3)
        assert worker.next().kind == wire.RECORD
        worker.port.ask_to_stop(3)
        os.kill(worker.pid, STOP_SIGNAL)
        assert worker.result() == ("timeout", {})


def test_a_stop_for_another_job_is_ignored():
    """So is one that comes between two jobs."""

    def runner(_: Any, context: Any) -> bool:
        os.kill(os.getpid(), STOP_SIGNAL)
        return bool(context.stop_requested())

    with supervised(runner) as worker:
        worker.port.ask_to_stop(9)
        os.kill(worker.pid, STOP_SIGNAL)
        worker.send(0, job_id=3)
        assert worker.result() == (None, False)


def test_a_stop_while_a_result_is_packed_is_a_timeout():
    """And not a result that could not be pickled."""

    class Slow:
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), STOP_SIGNAL)
            return int, ()

    with supervised(lambda *_: Slow()) as worker:
        worker.port.ask_to_stop(5)
        assert worker.run(0) == ("timeout", {})


# -- the start


@pytest.mark.parametrize("where", ["load", "initializer"])
def test_a_failed_start_is_told(where: str):
    """With its traceback, and the worker ends."""

    def fail() -> NoReturn:
        raise RuntimeError("no licence")

    def load() -> Bundle:
        return fail() if where == "load" else Bundle(call, fail)

    with nothing_left():
        worker = Supervised(load, {})
        report = worker.next()
        assert report.kind == wire.START_FAILED
        assert isinstance(report.payload, bytes)
        assert report.payload.startswith(b"Traceback")
        assert report.payload.endswith(b"RuntimeError: no licence\n")
        assert worker.code() == 0
        worker.close()


def test_a_slot_brings_environment_seed_and_initializer():
    """All three are there before the first job."""

    def initialize() -> None:
        os.environ["SEEN"] = os.environ["SLOT"]

    def draw() -> float:
        return random.random()

    with supervised(call, initializer=initialize, env={"SLOT": "7"}, seed=3) as worker:
        assert worker.run((os.getenv, "SEEN")) == (None, "7")
        assert worker.run((draw,)) == (None, random.Random(3).random())


def test_a_blank_that_gets_no_slot_ends():
    """Whether its inbox ends or holds something else."""
    with nothing_left():
        worker = Supervised(lambda: Bundle(call), None)
        assert worker.end() == 0
        worker.close()
        worker = Supervised(lambda: Bundle(call), None)
        worker.send_parcel(pack(bytes(2 << 20)))
        assert worker.code() == 0
        worker.close()


def test_stacks_are_dumped_into_the_page():
    """By a crash, too: faulthandler writes where the supervisor reads."""
    with supervised(call) as worker:
        worker.send((os.abort,))
        assert worker.code() == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in worker.port.stack()


def test_descriptors_are_moved_out_of_the_way():
    """To the highest numbers that the limit allows, and closed where they were."""

    def move() -> tuple[bool, int]:
        import resource

        fd = high(os.open(os.devnull, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        return fd >= 960, high(os.open(os.devnull, os.O_RDONLY))

    assert in_child(move) == (True, 168)


def test_without_a_way_to_clear_the_peak_jobs_run_all_the_same():
    """A kernel or a container may forbid it."""

    def run() -> bool:
        worker_module.high = _fail
        return worker_module._open_clear_refs() == -1

    assert in_child(run)


def _fail(fd: int) -> int:
    os.close(fd)
    raise PermissionError


# -- what waits, and what is held


def send_together(worker: Supervised, *arguments: Any) -> None:
    """Jobs from 0 on, in one message."""
    for job_id, each in enumerate(arguments):
        worker.port.send(1, job_id, pack(each))
    assert worker.port.flush() == []


def test_results_of_short_jobs_are_found_before_they_are_sent():
    """While a longer job runs behind them, and they are not given twice."""
    with supervised(call) as worker:
        send_together(worker, (int,), (float,), (signal.pause,))
        wait_until(lambda: worker.port.stamp() is not None and worker.port.stamp()[0] == 2)
        held = worker.port.reports.held()
        assert held is not None
        assert [(report.job_id, unpack(open_parcel(report.payload))) for report in held] == [(0, 0), (1, 0.0)]
        assert worker.port.reports.held() == []
        os.kill(worker.pid, STOP_SIGNAL)
        assert worker.next().job_id == 2


def test_a_result_waits_for_no_long_job(tmp_path):
    """Of few jobs at once each is told of, and so is one that took long itself."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with supervised(call) as worker:
        send_together(worker, (int,), (gate.read_text,))
        assert worker.next().job_id == 0
        gate.write_text("go on")
        assert worker.next().job_id == 1
        send_together(worker, (time.sleep, 0.01), (gate.read_text,), (int,))
        assert worker.next().job_id == 0
        gate.write_text("go on")
        assert [worker.next().job_id for _ in range(2)] == [1, 2]


def test_what_a_dead_worker_had_finished_is_there():
    """The page outlives it: only what it had begun is lost."""
    with supervised(call) as worker:
        send_together(worker, (int,), (leave, 3), (int,))
        assert worker.code() == 3
        held = worker.port.reports.held()
        assert held is not None
        assert [report.job_id for report in held] == [0]
        assert worker.port.stamp()[0] == 1
        assert worker.port.take_back() == [2]


def test_what_was_taken_back_is_not_begun():
    """Not by the worker that has read it; what is sent later, is."""
    with supervised(call) as worker:
        send_together(worker, (signal.pause,), (leave, 4), (leave, 5))
        wait_until(lambda: worker.port.stamp() is not None)
        assert worker.port.take_back() == [1, 2]
        worker.send((int,), job_id=9)
        os.kill(worker.pid, STOP_SIGNAL)
        assert worker.next().job_id == 0
        assert worker.next().job_id == 9


def test_what_was_taken_back_twice_is_not_begun():
    """However often within one job: it still has what it read first, and must not take that for what came last."""
    with supervised(call) as worker:
        send_together(worker, (signal.pause,), (leave, 4))
        wait_until(lambda: worker.port.stamp() is not None)
        assert worker.port.take_back() == [1]
        for job_id in range(2, 6):
            worker.send((leave, 5), job_id=job_id)
            assert worker.port.take_back() == [job_id]
        worker.send((int,), job_id=9)
        os.kill(worker.pid, STOP_SIGNAL)
        assert [worker.next().job_id for _ in range(2)] == [0, 9]


def test_a_result_of_a_job_that_closed_the_channel_is_not_held():
    """The job is charged, though its result would have needed no channel; the next one is not begun."""

    def close_all() -> None:
        os.closerange(3, 4096)

    with supervised(call) as worker:
        send_together(worker, (close_all,), (int,))
        assert worker.code() == CHANNEL_LOST_CODE
        assert worker.port.reports.held() == []
        assert worker.port.take_back() == [1]


def test_rubbish_among_the_claims_ends_the_worker():
    """It cannot know any more which jobs are its own."""
    with supervised(call) as worker:
        worker.port.outbox.send(b"rubbish")
        worker.send((int,))
        assert worker.code() == CHANNEL_LOST_CODE


def test_claims_that_a_job_has_shut_end_the_worker():
    """As a closed channel does."""

    def shut() -> None:
        for fd in range(3, 1024):
            with contextlib.suppress(OSError):
                socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RD)

    with supervised(call) as worker:
        worker.send((shut,), job_id=1)
        worker.send((int,), job_id=2)
        assert worker.code() in {0, CHANNEL_LOST_CODE}


def test_many_results_do_not_wait_for_each_other():
    """Where the page is full, and where the first has waited for a moment."""
    with supervised(call) as worker:
        send_together(worker, *[(bytes, 2000)] * 30, *[(time.sleep, 0.003)] * 2, (int,))
        assert [worker.next().job_id for _ in range(33)] == list(range(33))
