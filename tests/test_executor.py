"""`RobustExecutor` in use: CPython's own tests of executors, rewritten where they apply, and what goes beyond them."""

import asyncio
import gc
import importlib
import math
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import in_child
from waiting import nothing_left, wait_until

from robust_eval import (
    EvaluatorClosed,
    InvalidArgument,
    InvalidArgumentType,
    JobCancelled,
    JobCrashed,
    JobLost,
    JobMemoryExceeded,
    JobRaised,
    JobStartupFailed,
    JobTimeout,
    JobUnpicklable,
    RemoteTraceback,
    RobustEvalError,
    RobustExecutor,
)
from robust_eval import calls as calls_module
from robust_eval.processes import shelf
from robust_eval.processes.pending import Done

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

PATIENCE_S = 60.0
STATE: dict[str, Any] = {}


# -- what workers run


def multiply(x: int, y: int) -> int:
    return x * y


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def remember(value: Any) -> None:
    STATE["value"] = value


def recall() -> Any:
    return STATE.get("value")


def fail_to_start() -> None:
    raise RuntimeError("the licence server is down")


def block_until(path: Path) -> str:
    while not path.exists():
        time.sleep(0.002)
    return "released"


def say_and_block(said: Path, path: Path) -> str:
    said.touch()
    return block_until(path)


def hang() -> None:
    while True:
        pass


def hoard() -> None:
    blocks = []
    while True:
        blocks.append(b"x" * 2**20)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


class Falsey(Exception):
    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


def raise_falsey() -> None:
    raise Falsey("no")


def raise_key_error() -> None:
    raise KeyError("some comment")


class Private(Exception):
    """Does not come back from pickling."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def raise_private() -> None:
    raise Private(1, 2)


class FailsToPickle:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("not me")


class FailsToUnpickle:
    def __init__(self, action: Any) -> None:
        self.action = action

    def __reduce__(self) -> Any:
        return self.action


class UnpicklesInWorkers:
    """Comes back in the process that made it, or in any child, and nowhere else."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return _only_there, (self.pid,)


def _only_there(pid: int) -> str:
    if os.getpid() != pid:
        raise ValueError("I am not at home")
    return "home"


class Event:
    """Tells when its last copy in a worker is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.home:
            self.path.touch()


@pytest.fixture
def executor() -> Iterator[RobustExecutor]:
    with RobustExecutor(2, job_timeout=PATIENCE_S) as executor:
        yield executor


# -- CPython's executor tests


def test_a_call_returns_its_value(executor):
    """A future gives what the function returned."""
    assert executor.submit(pow, 2, 8).result(PATIENCE_S) == 256


def test_keywords_of_any_name_reach_the_function(executor):
    """`self` and `fn` are as good as any other keyword."""
    assert executor.submit(multiply, 2, y=8).result(PATIENCE_S) == 16
    assert executor.submit(capture, 1, self=2, fn=3).result(PATIENCE_S) == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        executor.submit(fn=capture, arg=1)
    with pytest.raises(TypeError):
        executor.submit(arg=1)


@pytest.mark.parametrize("options", [{}, {"chunksize": 3}, {"buffersize": 1}, {"buffersize": 4}, {"buffersize": 100}])
def test_map_gives_results_in_order(executor, options):
    """Whatever the chunks or the buffer are, it is the built-in `map`, ended by the shortest iterable."""
    assert list(executor.map(pow, range(10), range(12), **options)) == list(map(pow, range(10), range(10)))
    assert list(executor.map(abs, [], **options)) == []


def test_map_raises_where_the_call_did(executor):
    """Results before the exception are given first."""
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_has_a_timeout_of_its_own(executor, tmp_path):
    """It bounds the wait for results, and ends no call."""
    results = executor.map(block_until, [tmp_path / "go", tmp_path / "go"], timeout=0.05)
    with pytest.raises(futures.TimeoutError):
        next(results)
    (tmp_path / "go").touch()


def test_map_takes_only_what_its_buffer_holds(executor):
    """With a buffer, an endless iterable is mapped a few calls ahead."""
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield len(taken)

    results = executor.map(abs, endless(), buffersize=3)
    assert len(taken) == 3
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(taken) == 8
    results.close()


@pytest.mark.parametrize("options", [{"chunksize": 0}, {"chunksize": -1}, {"buffersize": 0}, {"buffersize": -1}])
def test_map_refuses_empty_chunks(executor, options):
    """A chunk or a buffer of nothing is a ValueError."""
    with pytest.raises(ValueError, match="too small"):
        executor.map(abs, [1], **options)


@pytest.mark.parametrize("number", [0, -1])
def test_there_is_at_least_one_worker(number):
    """No executor without workers."""
    with pytest.raises(ValueError, match="max_workers"):
        RobustExecutor(number)


def test_by_default_there_are_as_many_workers_as_cpus():
    """And dask finds their number where the standard library keeps it."""
    assert RobustExecutor()._max_workers == len(os.sched_getaffinity(0))


def test_results_are_freed_with_their_futures(executor):
    """Nothing of the executor keeps a result alive."""
    for result in executor.map(FailsToUnpickle, [(set, ())] * 3):
        reference = weakref.ref(result)
        del result
        wait_until(lambda reference=reference: reference() is None)


def test_arguments_are_freed_in_workers(executor, tmp_path):
    """Nothing of a worker keeps an argument alive until the next call."""
    executor.submit(id, Event(tmp_path / "gone")).result(PATIENCE_S)
    wait_until((tmp_path / "gone").exists)


def test_a_falsey_exception_is_an_exception(executor):
    """An exception that is false in a condition is not taken for none. (`result` does, up to Python 3.12.)"""
    assert isinstance(executor.submit(raise_falsey).exception(PATIENCE_S), Falsey)


def test_an_exception_is_raised_as_itself(executor):
    """With the traceback of the worker as its cause, which leads to the failure."""
    with pytest.raises(KeyError) as caught:
        executor.submit(raise_key_error).result(PATIENCE_S)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert 'raise KeyError("some comment")' in str(cause)
    assert cause.failure.kind == "exception"


def test_an_exception_that_cannot_travel_is_described(executor):
    """Where the exception itself does not come back, a `JobRaised` has all that is known of it."""
    with pytest.raises(JobRaised) as caught:
        executor.submit(raise_private).result(PATIENCE_S)
    assert caught.value.failure.exception_type == "Private"
    assert "raise Private(1, 2)" in str(caught.value)


def test_what_cannot_be_pickled_costs_its_own_future(executor):
    """On the way there, on the way back, and at home: the executor goes on."""
    for call in (
        (id, FailsToPickle()),
        (id, FailsToUnpickle((int, ("x",)))),
        (id, FailsToUnpickle((sys.exit, (3,)))),
        (FailsToPickle,),
        (FailsToUnpickle, (int, ("x",))),
        (UnpicklesInWorkers,),
    ):
        future = executor.submit(*call)
        with pytest.raises(JobUnpicklable):
            future.result(PATIENCE_S)
    assert executor.submit(abs, -2).result(PATIENCE_S) == 2


def test_a_function_that_workers_cannot_import_costs_its_own_future(executor, tmp_path, monkeypatch):
    """Whatever its module raises there; the next function is called, and this one is tried anew."""
    (tmp_path / "of_one_process.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}:\n    raise SystemExit(3)\ndef run(): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert executor.submit(abs, -1).result(PATIENCE_S) == 1
    function = importlib.import_module("of_one_process").run
    for _ in range(2):
        with pytest.raises(JobUnpicklable, match="SystemExit"):
            executor.submit(function).result(PATIENCE_S)
    assert executor.submit(multiply, 2, 3).result(PATIENCE_S) == 6


def test_futures_are_those_of_the_standard_library(executor):
    """`wait` and `as_completed` take them together with any others."""
    own = [executor.submit(multiply, n, 2) for n in range(5)]
    assert all(isinstance(future, futures.Future) for future in own)
    with futures.ThreadPoolExecutor(1) as threads:
        other = threads.submit(multiply, 5, 2)
        results = [future.result() for future in futures.as_completed([*own, other], PATIENCE_S)]
    assert sorted(results) == [0, 2, 4, 6, 8, 10]
    done, not_done = futures.wait(own, PATIENCE_S)
    assert done == set(own)
    assert not not_done


def test_short_calls_travel_together(executor, tmp_path):
    """While every worker is busy they gather, and leave as soon as they are many: a message for each costs too much."""
    running = [executor.submit(block_until, tmp_path / "go") for _ in range(2)]
    executor._calls._window = 1000  # as after short calls
    gathering = [executor.submit(multiply, n, n) for n in range(calls_module._PORTION)]
    assert [future.running() for future in gathering] == [True] * calls_module._PORTION
    last = executor.submit(multiply, 7, 7)
    assert not last.running()
    (tmp_path / "go").touch()
    assert [future.result(PATIENCE_S) for future in (*running, last)] == ["released", "released", 49]
    assert [future.result(PATIENCE_S) for future in gathering] == [n * n for n in range(calls_module._PORTION)]


def test_calls_that_take_no_time_are_not_handed_on_without_end(executor):
    """By a clock that is coarse a call may begin and end at the same instant."""
    executor.submit(multiply, 1, 1).result(PATIENCE_S)
    executor._calls._mean_s = 0.0
    assert [executor.submit(multiply, n, n).result(PATIENCE_S) for n in range(3)] == [0, 1, 4]
    executor._calls._observe([Done(0, b"", 1.0, 1.0, 1, 0)] * 200)
    assert 2 * 2000 < executor._calls._window < 2 * 3000


def test_calls_of_a_tenth_of_a_second_have_the_next_ones_in_the_pool(executor):
    """No worker waits for the driver between two of them; longer ones stay where they can be cancelled."""
    windows = []
    for duration_s in (0.1, 1.0):
        executor._calls._mean_s = math.inf
        executor._calls._observe([Done(0, b"", 1.0, 1.0 + duration_s, 1, 0)])
        windows.append(executor._calls._window)
    assert windows == [2 * 4, 2]


def test_a_call_that_has_not_begun_can_be_cancelled(executor, tmp_path):
    """One that runs cannot; the state of each future says which it is."""
    running = [executor.submit(block_until, tmp_path / "go") for _ in range(2)]
    waiting = [executor.submit(multiply, n, n) for n in range(3)]
    wait_until(lambda: all(future.running() for future in running))
    assert not any(future.running() for future in waiting)
    assert waiting[0].cancel()
    assert not running[0].cancel()
    (tmp_path / "go").touch()
    assert [future.result(PATIENCE_S) for future in (*running, *waiting[1:])] == ["released", "released", 1, 4]
    with pytest.raises(futures.CancelledError):
        waiting[0].result()


def test_callbacks_are_called_whatever_they_do(executor):
    """A callback that raises, or even exits, is told of and costs nothing else; one may submit."""
    called: list[Any] = []

    def leave(_future: Any) -> None:
        called.append("leave")
        raise SystemExit

    executor.submit(abs, -1).add_done_callback(leave)
    executor.submit(abs, -1).add_done_callback(lambda _: called.append(executor.submit(abs, -3)))
    wait_until(lambda: len(called) == 2)
    assert next(each for each in called if each != "leave").result(PATIENCE_S) == 3


def test_many_calls_from_many_threads(executor):
    """Every call is answered, with its own result."""
    answers: dict[int, list[int]] = {}

    def use(number: int) -> None:
        answers[number] = list(executor.map(multiply, range(200), [number] * 200))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == {number: [n * number for n in range(200)] for number in range(4)}


def test_a_callback_may_wait_for_another_call(executor):
    """Whatever thread the result came through: other results are received meanwhile."""
    seen: list[int] = []

    def wait_for_another(_: object) -> None:
        seen.append(executor.submit(abs, -2).result(PATIENCE_S))

    first = executor.submit(time.sleep, 0.1)
    first.add_done_callback(wait_for_another)
    first.result(PATIENCE_S)
    wait_until(lambda: seen)
    assert seen == [2]


def test_callbacks_never_run_where_results_are_received(executor):
    """Each runs in the thread of the calls, be its result one of many, plain, or one that may run code."""
    threads: list[str] = []
    release = [executor.submit(time.sleep, 0.1) for _ in range(3)]
    release += [executor.submit(complex, 1, 2), executor.submit(partial, abs)]
    for future in release:
        future.add_done_callback(lambda _: threads.append(threading.current_thread().name))
    wait_until(lambda: len(threads) == len(release))
    assert set(threads) <= {"robust_eval calls", "MainThread"}


def test_callbacks_of_the_last_call_run_before_the_executor_is_shut_down():
    """Also one that exits, which costs nobody anything."""
    seen: list[str] = []

    def leave(_: object) -> None:
        seen.append("left")
        raise SystemExit

    with nothing_left():
        executor = RobustExecutor(1)
        future = executor.submit(time.sleep, 0.1)
        future.add_done_callback(lambda _: seen.append("told"))
        future.add_done_callback(leave)
        executor.shutdown()
        assert future.result() is None
        assert seen == ["told", "left"]


def test_large_arguments_wait_without_descriptors(executor, tmp_path):
    """However many large calls wait, this process can go on opening files; a share of those it may open it keeps."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 0 < executor._calls._most_open <= soft // 4
    executor._calls._most_open = 10
    blocker = [executor.submit(block_until, tmp_path / "go") for _ in range(2)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    array = np.arange(2**18)
    sums = [executor.submit(np.sum, array) for _ in range(40)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 10 + 4 + shelf._MOST_FILES
    (tmp_path / "go").touch()
    assert {int(each.result(PATIENCE_S)) for each in sums} == {int(array.sum())}
    futures.wait(blocker, PATIENCE_S)


def test_the_number_of_calls_of_a_process_can_be_bounded():
    """With one call a child, each has a process of its own."""
    with nothing_left(), RobustExecutor(1, max_tasks_per_child=1) as executor:
        assert len({executor.submit(os.getpid).result(PATIENCE_S) for _ in range(3)}) == 3


def test_the_initializer_runs_in_every_worker():
    """Before the first call, also in a worker that replaces another."""
    with nothing_left(), RobustExecutor(1, initializer=remember, initargs=("ready",)) as executor:
        assert executor.submit(recall).result(PATIENCE_S) == "ready"
        with pytest.raises(JobCrashed):
            executor.submit(segfault).result(PATIENCE_S)
        assert executor.submit(recall).result(PATIENCE_S) == "ready"


def test_a_failing_initializer_fails_the_calls_that_wait(monkeypatch):
    """All of them, with its traceback; the next call tries again and finds out for itself."""
    monkeypatch.setattr(calls_module, "_JOIN_S", PATIENCE_S)
    with nothing_left(), RobustExecutor(1, initializer=fail_to_start) as executor:
        waiting = [executor.submit(abs, -1) for _ in range(20)]
        for future in waiting:
            with pytest.raises(JobStartupFailed, match="licence server"):
                future.result(PATIENCE_S)
        with pytest.raises(JobStartupFailed, match="licence server"):
            executor.submit(abs, -1).result(PATIENCE_S)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_proxies_of_a_manager_reach_the_workers(start_method):
    """Its queues and locks are what calls and initializers share, also those made after the pool."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()
        with RobustExecutor(1, initializer=queue.put, initargs=("ready",), start_method=start_method) as executor:
            executor.submit(queue.put, "called").result(PATIENCE_S)
            later = manager.Queue()
            executor.submit(later.put, "later").result(PATIENCE_S)
        assert [queue.get(), queue.get(), later.get()] == ["ready", "called", "later"]


def test_a_call_that_found_no_thread_free_leaves_the_executor_usable(monkeypatch):
    """It raises; the next one is answered, and the executor closes as ever."""
    start = threading.Thread.start
    refusals = iter(["can't start new thread"])

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name == "robust_eval calls" and (refusal := next(refusals, None)):
            raise RuntimeError(refusal)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    with nothing_left(), RobustExecutor(1) as executor:
        with pytest.raises(RuntimeError, match="new thread"):
            executor.submit(abs, -1)
        assert executor.submit(abs, -2).result(PATIENCE_S) == 2


def test_an_initializer_that_cannot_travel_is_refused():
    """At once, where it was written."""
    with pytest.raises(InvalidArgumentType, match="initializer"):
        RobustExecutor(1, initializer=remember, initargs=(threading.Lock(),))


# -- shutdown


def test_nothing_is_accepted_after_shutdown():
    """A RuntimeError, as in the standard library, whether anything was ever called or not."""
    executor = RobustExecutor(1)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 5)


def test_shutdown_waits_for_what_was_accepted():
    """Also for what had not begun; then no process is left."""
    with nothing_left():
        executor = RobustExecutor(1)
        accepted = [executor.submit(abs, -n) for n in range(50)]
        executor.shutdown()
        assert [future.result(0) for future in accepted] == list(range(50))


def test_shutdown_without_waiting_still_finishes(tmp_path):
    """The calls are done and the processes end, without anybody who waits."""
    with nothing_left():
        executor = RobustExecutor(1)
        waiting = [executor.submit(block_until, tmp_path / "go"), executor.submit(abs, -1)]
        executor.shutdown(wait=False)
        assert not waiting[1].done()
        (tmp_path / "go").touch()
        assert [future.result(PATIENCE_S) for future in waiting] == ["released", 1]
        executor.shutdown()


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown_can_cancel_what_has_not_begun(tmp_path, wait):
    """What runs is finished."""
    with nothing_left():
        executor = RobustExecutor(1)
        running = executor.submit(block_until, tmp_path / "go")
        waiting = [executor.submit(abs, -n) for n in range(5)]
        wait_until(running.running)

        def release() -> None:
            wait_until(lambda: all(future.cancelled() for future in waiting))
            (tmp_path / "go").touch()

        releasing = threading.Thread(target=release)
        releasing.start()
        executor.shutdown(wait=wait, cancel_futures=True)
        releasing.join()
        assert all(future.cancelled() for future in waiting)
        assert running.result(PATIENCE_S) == "released"
        executor.shutdown()


def test_a_dropped_executor_finishes_and_ends():
    """Results asked for are given, then nothing is left: no shutdown is needed for that."""
    with nothing_left():
        executor = RobustExecutor(2)
        results = executor.map(abs, range(-5, 5))
        thread = executor._calls._thread
        del executor
        gc.collect()
        assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
        assert thread is not None
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_kill_workers_ends_what_runs(tmp_path):
    """At once; what ran says that it was cancelled."""
    with nothing_left():
        executor = RobustExecutor(1)
        running = executor.submit(say_and_block, tmp_path / "said", tmp_path / "never")
        waiting = executor.submit(abs, -1)
        wait_until((tmp_path / "said").exists)
        executor.kill_workers()
        with pytest.raises(JobCancelled, match="the executor closed"):
            running.result(0)
        assert waiting.cancelled()


def _script(body: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(body))
    root = Path(calls_module.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_an_interpreter_that_exits_waits_for_no_call(tmp_path):
    """Without a shutdown and with a call that never ends it exits, and (the fixture) leaves no process."""
    done = _script(
        """
        import time
        from robust_eval import RobustExecutor

        executor = RobustExecutor(2)
        print(executor.submit(abs, -1).result())
        hanging = [executor.submit(time.sleep, 3600) for _ in range(5)]
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_script_keeps_the_state_of_its_functions(tmp_path):
    """Functions of `__main__` share what the initializer set, keep what they set, and see a global that was rebound."""
    done = _script(
        """
        from robust_eval import RobustExecutor

        SCALE, MODEL, COUNT = 2, None, 0

        def load(value):
            global MODEL
            MODEL = value

        def run(x):
            global COUNT
            COUNT += 1
            return MODEL, COUNT, x * SCALE

        with RobustExecutor(1, initializer=load, initargs=("loaded",)) as executor:
            print(executor.submit(run, 1).result(), executor.submit(run, 2).result())
            SCALE = 10
            print(executor.submit(run, 3).result()[2], executor.submit(lambda: SCALE + 1).result())
            print([executor.submit(lambda: n).result() for n in range(3)])
        """,
        tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["('loaded', 1, 2) ('loaded', 2, 4)", "30 11", "[0, 1, 2]"]


# -- beyond the standard library


@pytest.mark.parametrize(
    ("call", "kind", "standard"),
    [
        (hang, JobTimeout, TimeoutError),
        (hoard, JobMemoryExceeded, MemoryError),
        (segfault, JobCrashed, RobustEvalError),
    ],
)
def test_a_fault_costs_its_own_future(call, kind, standard):
    """It raises what says so, with the failure; a call beside it and calls after it are untouched."""
    with nothing_left(), RobustExecutor(2, job_timeout=2, memory_limit="200MiB") as executor:
        faulty = executor.submit(call)
        others = [executor.submit(multiply, n, n) for n in range(20)]
        with pytest.raises(kind) as caught:
            faulty.result(PATIENCE_S)
        assert isinstance(caught.value, standard)
        assert caught.value.failure.render() in str(caught.value)
        assert [future.result(PATIENCE_S) for future in others] == [n * n for n in range(20)]
        assert executor.submit(abs, -1).result(PATIENCE_S) == 1


def test_a_view_has_limits_of_its_own(tmp_path):
    """On the same pool; its shutdown waits for its own calls, and leaves the pool to others."""
    with nothing_left(), RobustExecutor(1, job_timeout=PATIENCE_S) as executor:
        other = executor.with_options(memory_limit="1GiB")
        assert other._budget.timeout_s == PATIENCE_S
        blocker = executor.submit(block_until, tmp_path / "go")
        waiting = [other.submit(abs, -1), executor.submit(os.getpid)]
        other.shutdown(cancel_futures=True)
        assert waiting[0].cancelled()
        (tmp_path / "go").touch()
        assert blocker.result(PATIENCE_S) == "released"
        with executor.with_options(job_timeout=0.3) as view:
            good = view.submit(os.getpid)
            late = view.submit(hang)
        assert good.result(0) == waiting[1].result(PATIENCE_S)
        with pytest.raises(JobTimeout):
            late.result(0)
        with pytest.raises(EvaluatorClosed):
            view.submit(abs, -1)


def test_a_view_keeps_its_executor():
    """An executor whose views are in use is not dropped."""
    with nothing_left():
        view = RobustExecutor(1).with_options(job_timeout=PATIENCE_S)
        gc.collect()
        assert view.submit(abs, -1).result(PATIENCE_S) == 1
        thread = view._calls._thread
        del view
        gc.collect()
        assert thread is not None
        thread.join(PATIENCE_S)


def test_a_retry_is_not_seen(tmp_path):
    """A call that crashed once and was tried again has one result."""
    with nothing_left(), RobustExecutor(1, max_retries=1) as executor:
        assert executor.submit(partial(_crash_once, tmp_path / "crashed")).result(PATIENCE_S) == "survived"


def _crash_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        os.abort()
    return "survived"


def test_a_supervisor_that_dies_costs_only_what_ran(tmp_path):
    """Futures fail as lost, and the executor goes on, however often that happens."""
    with nothing_left(), RobustExecutor(1) as executor:
        for number in range(4):
            running = executor.submit(say_and_block, tmp_path / f"said{number}", tmp_path / "never")
            wait_until((tmp_path / f"said{number}").exists)
            pool = executor._calls._pool
            assert pool is not None
            os.kill(pool.supervisor_pid, signal.SIGKILL)
            with pytest.raises(JobLost):
                running.result(PATIENCE_S)
        assert executor.submit(abs, -1).result(PATIENCE_S) == 1


def test_a_pool_that_is_gone_is_replaced():
    """By the next call."""
    with nothing_left(), RobustExecutor(1) as executor:
        assert executor.submit(abs, -1).result(PATIENCE_S) == 1
        pool = executor._calls._pool
        assert pool is not None
        pool.close()
        assert executor.submit(abs, -3).result(PATIENCE_S) == 3


def test_a_forked_child_is_refused():
    """It must make an executor of its own; nothing that it does harms this one."""

    def use() -> tuple[str, int]:
        with pytest.raises(RobustEvalError) as caught:
            executor.submit(abs, -1)
        executor.shutdown()
        executor.kill_workers()
        with RobustExecutor(1) as own:
            return str(caught.value), own.submit(abs, -1).result(PATIENCE_S)

    with nothing_left(), RobustExecutor(1) as executor:
        assert executor.submit(abs, -1).result(PATIENCE_S) == 1
        message, result = in_child(use)
        assert "make an executor of its own there" in message
        assert result == 1
        assert executor.submit(abs, -2).result(PATIENCE_S) == 2


@pytest.mark.parametrize(
    "options", [{"job_timeout": 0}, {"memory_limit": 512}, {"start_method": "thread"}, {"retry_on": "rain"}]
)
def test_values_that_mean_nothing_are_refused(options):
    """As by the evaluators, when the executor is made."""
    with pytest.raises(InvalidArgument):
        RobustExecutor(1, **options)


def test_asyncio_takes_it(executor):
    """`run_in_executor` awaits calls, and a limit is a TimeoutError there."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(executor, multiply, n, 2) for n in range(5))))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]


def test_scipy_takes_its_map():
    """As the workers of `differential_evolution`."""
    optimize = pytest.importorskip("scipy.optimize")
    with nothing_left(), RobustExecutor(2) as executor:
        found = optimize.differential_evolution(
            _sphere, [(-1, 1)] * 2, workers=executor.map, updating="deferred", maxiter=3, popsize=4, rng=1
        )
    assert found.nfev > 8
    assert found.fun < 0.1


def _sphere(x: Any) -> float:
    return float(np.sum(np.square(x)))
