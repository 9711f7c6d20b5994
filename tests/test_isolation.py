"""`call` and `@isolated`: one call in one supervised process, alone and under Hypothesis."""

import contextlib
import ctypes
import os
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import in_child
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from waiting import nothing_left, wait_until

from robust_eval import (
    InvalidArgument,
    InvalidArgumentType,
    JobCrashed,
    JobMemoryExceeded,
    JobTimeout,
    RemoteTraceback,
    call,
    isolated,
    isolation,
)
from robust_eval.isolation import _SHELF, _Options

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

PATIENCE_S = 60.0
QUICK = settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=60,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
HERE = Path(__file__)


@pytest.fixture(autouse=True)
def pools_end(no_process_left: None) -> Iterator[None]:
    """The shared pools are closed after each test, so that it can be seen that nothing is left."""
    with nothing_left():
        yield
        _SHELF.close()


def line_of(text: str) -> int:
    """The number of the first line of this file that holds a text."""
    return next(number for number, line in enumerate(HERE.read_text().splitlines(), 1) if text in line)


def spin() -> None:
    total = 0
    while total >= 0:  # the trap
        total += 1
        total += 2


def raise_value_error(n: int) -> None:
    raise ValueError(f"not {n}")  # raised here


@isolated
def add(x: int, *, y: int = 1) -> int:
    """Adds."""
    return x + y


@isolated(job_timeout=PATIENCE_S)
def where() -> int:
    return os.getpid()


class Simulation:
    def __init__(self, scale: int) -> None:
        self.scale = scale

    @isolated
    def run(self, x: int) -> int:
        return self.scale * x


def test_a_call_returns_its_value_from_another_process():
    """The next one finds the process warm."""
    pid = call(os.getpid)
    assert pid != os.getpid()
    assert call(os.getpid, job_timeout=PATIENCE_S, memory_limit="1GiB") == pid


def test_a_decorated_function_is_called_so():
    """It keeps its name, its signature and its documentation; methods and closures work."""
    assert add(2, y=3) == 5
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert Simulation(3).run(4) == 12
    n = 5
    assert isolated(lambda: n + 1)() == 6
    assert where() != os.getpid()


def test_an_exception_is_raised_as_itself_where_it_was_raised():
    """Its traceback ends in the source of the function, and its cause is the worker's own."""
    with pytest.raises(ValueError, match="not 3") as caught:
        call(raise_value_error, 3)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno, last.name) == (__file__, line_of("# raised here"), "raise_value_error")
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_a_hang_ends_at_the_loop_that_it_could_not_leave():
    """The traceback of a `JobTimeout` leads there."""
    with pytest.raises(JobTimeout) as caught:
        call(spin, job_timeout=0.5)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.lineno, last.name) == (line_of("# the trap"), "spin")
    assert caught.value.failure.kind == "timeout"


def test_each_call_can_have_a_process_of_its_own():
    """With one call a child, nothing that a call leaves is there for the next."""
    fresh = isolated(max_tasks_per_child=1)(os.getpid)
    assert fresh() != fresh()


def test_threads_share_the_workers():
    """Calls of several threads run side by side on as many workers as were asked for."""
    pids: list[int] = []

    def use(barrier: threading.Barrier) -> None:
        barrier.wait(PATIENCE_S)
        pids.extend(call(os.getpid, num_workers=2) for _ in range(10))

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=use, args=(barrier,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(pids) == 40
    assert len(set(pids)) <= 2


def test_pools_are_bounded(monkeypatch):
    """However many modules are called, only so many have processes."""
    monkeypatch.setattr(isolation, "_MOST_POOLS", 2)
    pids = [call(os.getpid, num_workers=n + 1) for n in (0, 1, 2)]
    assert len(_SHELF._executors) == 2
    assert call(os.getpid, num_workers=1) != pids[0]


def test_a_pool_that_another_thread_closed_is_replaced(monkeypatch):
    """The call is made on another one, and nobody notices."""
    taken = []
    take = _SHELF.take

    def take_closed(*args):
        executor = take(*args)
        if not taken:
            _SHELF.close()
        taken.append(executor)
        return executor

    monkeypatch.setattr(_SHELF, "take", take_closed)
    assert call(abs, -1) == 1
    assert len(taken) == 2


def test_a_forked_child_has_pools_of_its_own():
    """It need not know that its parent has some."""
    pid = call(os.getpid)
    other = in_child(lambda: (call(os.getpid), _SHELF.close())[0])
    assert other not in {pid, os.getpid()}
    assert call(os.getpid) == pid


def test_an_interrupt_ends_the_call(tmp_path):
    """Ctrl-C, or a time limit of the test runner, leaves nothing that runs on."""

    class Interrupt(BaseException):
        pass

    def interrupt() -> None:
        wait_until((tmp_path / "said").exists)
        thread_id = ctypes.c_ulong(threading.main_thread().ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(Interrupt))
        (tmp_path / "done").touch()

    def say_and_wait(said: Path) -> None:
        said.touch()
        time.sleep(3600)

    helper = threading.Thread(target=interrupt)
    helper.start()
    executor = _SHELF.take(__name__, _Options(None, None, 1, None))
    with pytest.raises(Interrupt):
        _call_in_slices(executor, say_and_wait, tmp_path / "said")
    helper.join(PATIENCE_S)
    wait_until(lambda: not executor._calls._running)
    assert call(abs, -1) == 1


def _call_in_slices(executor, function, path):
    """What `call` does; an asynchronous exception is seen only between two waits, a signal at once."""
    future = executor.submit(function, path)
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                future.exception(0.01)
    except BaseException:
        executor.kill(future)
        raise


@pytest.mark.parametrize("options", [{"job_timeout": -1}, {"memory_limit": "much"}, {"num_workers": 0}])
def test_values_that_mean_nothing_are_refused(options):
    """By a ValueError that names them."""
    with pytest.raises(InvalidArgument, match=next(iter(options)).replace("num", "max")):
        call(abs, -1, **options)


def test_only_functions_are_isolated():
    """Anything else is refused where it is decorated."""
    with pytest.raises(InvalidArgumentType, match="stands over 5"):
        isolated(5)  # type: ignore[call-overload]


# -- under Hypothesis


@isolated(job_timeout=0.5)
def hang_from_50(n: int) -> None:
    if n >= 50:
        spin()


@isolated(job_timeout=PATIENCE_S, memory_limit="100MiB")
def crash_or_hoard(n: int) -> None:
    if n <= -30:
        ctypes.string_at(0)
    if n >= 20:
        hoard = []
        while True:
            hoard.append(b"x" * 2**20)


@pytest.mark.parametrize(
    ("function", "low", "high", "kind", "smallest"),
    [
        (hang_from_50, 40, 60, JobTimeout, 50),
        (crash_or_hoard, -100, 0, JobCrashed, -30),
        (crash_or_hoard, 0, 30, JobMemoryExceeded, 20),
    ],
)
def test_hypothesis_shrinks_what_would_have_ended_it(function, low, high, kind, smallest):
    """To the smallest argument, for a hang, a crash and memory alike."""

    def fails(n: int) -> bool:
        try:
            function(n)
        except (JobTimeout, JobCrashed, JobMemoryExceeded) as error:
            return type(error) is kind
        return False

    assert find(st.integers(low, high), fails, settings=QUICK) == smallest


@isolated(job_timeout=0.5)
def fail_in_two_ways(n: int) -> None:
    if n > 5:
        spin()
    if n < -5:
        raise_value_error(n)


def test_hypothesis_tells_faults_apart():
    """One run reports the smallest argument for each kind and place, and calls neither of them flaky."""
    test = QUICK(given(st.integers(-20, 20))(fail_in_two_ways))
    with pytest.raises(ExceptionGroup, match="2 distinct failures") as caught:
        test()
    found = {type(error): "".join(error.__notes__) for error in caught.value.exceptions}
    assert set(found) == {JobTimeout, ValueError}
    assert "n=6" in found[JobTimeout]
    assert "n=-6" in found[ValueError]


@QUICK
@given(n=st.integers())
@isolated(job_timeout=PATIENCE_S)
def test_given_over_isolated_is_an_ordinary_test(n):
    """A module's own decorated test is found by its name in the worker, where it runs without its decorators."""
    assert os.getppid() != os.getpid()
    assert isinstance(n, int)
