"""What every test keeps: when it ends, no process that it started is left."""

import compileall
import signal
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from hypothesis import settings

SESSION_MARK = "ROBUST_EVAL_TEST_SESSION"
PATIENCE_S = 20.0  # an actor of Ray takes a while to die on a busy machine
_OF_RAY = ("/ray/core/src/", "/ray/_private/", "/ray/autoscaler/", "/ray/dashboard/")

# What runs here is the same on every run; the random is in stress/.
settings.register_profile("deterministic", derandomize=True, database=None)
settings.load_profile("deterministic")

# A shell has it ignored in what it runs in the background, and the scripts that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Thousands of interpreters start below a run of all tests: none of them should have to compile what it imports.

    It would, where the machine asks Python to write no bytecode (PYTHONDONTWRITEBYTECODE, as container images do).
    """
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        for directory in ("robust_eval", "tests", "stress"):
            compileall.compile_dir(config.rootpath / directory, quiet=2)


def _carries_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(SESSION_MARK) == mark
    except psutil.Error:
        return False


def _is_python_helper(process: psutil.Process) -> bool:
    """Trackers of multiprocessing itself live as long as the program that used them, by design."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "multiprocessing.resource_tracker" in command or "multiprocessing.forkserver" in command


def _is_ray(process: psutil.Process) -> bool:
    """What a cluster of the session consists of comes and goes as Ray pleases; our actors bear a name of their own."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    title = command[0] if command else ""
    if title.startswith("ray::"):
        return not title.startswith("ray::Host")
    return any(part in argument for argument in command[:3] for part in _OF_RAY)


def _ours(mark: str) -> set[psutil.Process]:
    """Every process below this one, and every orphan that inherited the session's mark."""
    me = psutil.Process()
    found = set(me.children(recursive=True))
    found |= {process for process in psutil.process_iter() if _carries_mark(process, mark)}
    found.discard(me)
    return {process for process in found if not (_is_python_helper(process) or _is_ray(process))}


@pytest.fixture(scope="session")
def session_mark() -> Iterator[str]:
    """A value in the environment that every process started by a test inherits."""
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SESSION_MARK, mark)
        yield mark


@pytest.fixture(scope="session")
def cluster(session_mark: str) -> Iterator[Any]:
    """A Ray cluster of three nodes; a test that kills one adds another. Its tests are marked `ray`."""
    from ray_cluster import CPUS, GPUS, cluster_of

    with cluster_of(3, num_cpus=CPUS, num_gpus=GPUS) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def unmeasured_children(request: pytest.FixtureRequest) -> Iterator[None]:
    """The processes of a test that is marked so are not measured for coverage, which costs half of their time.

    The mark `no_cover` of pytest-cov is not for many tests: after each, all later forks begin one measurement more.
    """
    with pytest.MonkeyPatch.context() as patch:  # a test's own is undone before processes are counted
        if request.node.get_closest_marker("unmeasured"):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(autouse=True)
def no_process_left(session_mark: str) -> Iterator[None]:
    """Fail the test that leaves a process behind, by name, and end that process."""
    before = _ours(session_mark)
    yield
    left = _ours(session_mark) - before
    if not left:
        return
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    alive = list(_ours(session_mark) - before) if alive else alive
    described = []
    for process in alive:
        try:
            described.append(f"{process.pid} {process.status()} {process.cmdline()}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=PATIENCE_S)
    if described:
        pytest.fail("processes left behind:\n" + "\n".join(described))
