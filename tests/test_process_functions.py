"""What a run function may be and do, and what the options of the process evaluator mean."""

import asyncio
import functools
import json
import linecache
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import is_alive, nothing_left

from robust_eval import Evaluator, JobStop, JobTimeout, ProcessPoolEvaluator, RobustEvalError, RunningJob

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

START_METHODS = ("fork", "spawn")
HUNG_S = 3600.0


def results(run: Callable[..., Any], count: int = 4, **options: Any) -> list[Any]:
    """The objectives of `count` jobs, in the order of their submission."""
    with ProcessPoolEvaluator(run, num_workers=2, **options) as evaluator:
        evaluator.submit([{"x": x} for x in range(count)])
        jobs = evaluator.gather("ALL")
    failures = [job.failure.render() for job in jobs if job.failure]
    assert not failures
    return [job.objective for job in sorted(jobs, key=lambda job: job.config["x"])]


def only(run: Callable[..., Any], config: dict[str, Any] | None = None, /, **options: Any) -> Any:
    """The settled job of a pool that has only that one."""
    with ProcessPoolEvaluator(run, **options) as evaluator:
        evaluator.submit([{} if config is None else config])
        (job,) = evaluator.gather("ALL")
    return job


# -- what may be called


class Model:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def evaluate(self, job: RunningJob) -> float:
        return self.factor * job["x"]

    __call__ = evaluate

    @classmethod
    def of_class(cls, job: RunningJob) -> float:
        return 2.0 * job["x"]

    @staticmethod
    def without_self(job: RunningJob) -> float:
        return 2.0 * job["x"]


def scale(job: RunningJob, factor: float) -> float:
    return factor * job["x"]


async def wait_a_little(job: RunningJob) -> float:
    await asyncio.sleep(0.001)
    return 2.0 * job["x"]


def closure(factor: float) -> Callable[[RunningJob], float]:
    return lambda job: factor * job["x"]


CALLABLES = {
    "lambda": lambda job: 2.0 * job["x"],
    "closure": closure(2.0),
    "bound method": Model(2.0).evaluate,
    "class method": Model.of_class,
    "static method": Model.without_self,
    "callable object": Model(2.0),
    "partial": functools.partial(scale, factor=2.0),
    "partial of a lambda": functools.partial(lambda factor, job: factor * job["x"], 2.0),
    "async function": wait_a_little,
}


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("name", CALLABLES)
def test_anything_callable_runs(name: str, start_method: str):
    """Lambdas, closures, methods, partials, objects and coroutine functions all deliver, however workers start."""
    assert results(CALLABLES[name], start_method=start_method) == [0.0, 2.0, 4.0, 6.0]


def test_keyword_arguments_reach_the_run_function():
    """run_function_kwargs go with every call."""
    assert results(scale, run_function_kwargs={"factor": 3.0}) == [0.0, 3.0, 6.0, 9.0]


SCRIPT = """
import multiprocessing, sys
from robust_eval import Evaluator

FACTOR = 2.0
print("imported")

class Point:
    def __init__(self, x):
        self.x = x

def helper(x):
    return FACTOR * x

def run(job):
    with multiprocessing.Pool(2) as pool:
        inner = pool.map(helper, [job["x"], 10])
    return {"objective": inner[0], "metadata": {"inner": inner[1], "point": Point(job["x"])}}

evaluator = Evaluator.create(run, method="process", method_kwargs={"num_workers": 2, "start_method": sys.argv[1]})
evaluator.submit([{"x": x} for x in range(3)])
jobs = evaluator.gather("ALL")
print([job.failure.render() for job in jobs if job.failure])
print(sorted(job.objective for job in jobs), {job.metadata["inner"] for job in jobs})
print(sorted(job.metadata["point"].x for job in jobs), {type(job.metadata["point"]) is Point for job in jobs})
evaluator.close()
"""


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_script_needs_no_guard(start_method: str, tmp_path: Path):
    """No `if __name__ == "__main__"`: functions, globals and classes of the script work, and it runs once only."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), start_method],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    assert done.stdout.splitlines() == ["imported", "[]", "[0.0, 2.0, 4.0] {20.0}", "[0, 1, 2] {True}"], done.stderr
    assert done.stderr == ""


NOTEBOOK = """
import asyncio, sys, types
main = sys.modules["__main__"]
CELLS = [
    "from robust_eval import Evaluator\\nFACTOR = 2.0",
    "def helper(x):\\n    return FACTOR * x",
    "def run(job):\\n    return helper(job['x'])",
    "evaluator = Evaluator.create(run, method='process', method_kwargs={'num_workers': 2})",
    "evaluator.submit([{'x': 1}, {'x': 2}])",
    "print(sorted(job.objective for job in evaluator.gather('ALL')))",
    "def helper(x):\\n    return -x",
    "evaluator.close()\\nevaluator = Evaluator.create(run, method='process')",
    "evaluator.submit([{'x': 1}])\\nprint([job.objective for job in evaluator.gather('ALL')])\\nevaluator.close()",
]

async def kernel():
    for number, cell in enumerate(CELLS):
        exec(compile(cell, f"<cell {number}>", "exec"), main.__dict__)
        await asyncio.sleep(0)

asyncio.run(kernel())
"""


def test_functions_of_a_notebook_work_under_a_running_loop(tmp_path: Path):
    """Cells executed in `__main__` while an event loop runs: defined, evaluated, redefined."""
    script = tmp_path / "kernel.py"
    script.write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    assert (done.stdout.splitlines(), done.stderr) == (["[2.0, 4.0]", "[-1.0]"], "")


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_traceback_shows_the_lines_of_a_cell(monkeypatch: pytest.MonkeyPatch, start_method: str):
    """They are in no file: the driver's `linecache` has them, where IPython puts them."""
    cell, name = "def run(job):\n    return job['x'] / 0  # of a cell\n", "/nowhere/ipykernel_7/2432782073.py"
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(linecache.cache, name, (len(cell), 0.0, cell.splitlines(keepends=True), name))
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell, name, "exec"), space)  # noqa: S102  as a kernel does
    job = only(space["run"], {"x": 1}, start_method=start_method)
    assert f"File \"{name}\", line 2, in run\n    return job['x'] / 0  # of a cell\n" in job.failure.traceback


def test_a_function_that_cannot_be_pickled_is_refused():
    """The refusal names the function and says what to do."""
    lock = multiprocessing.Lock()
    with pytest.raises((TypeError, ValueError), match="cannot be pickled"):
        ProcessPoolEvaluator(lambda job: lock.acquire())


# -- what a run function may do


def square(x: int) -> int:
    return x * x


def use_a_pool(job: RunningJob) -> int:
    with multiprocessing.Pool(2) as pool:
        return sum(pool.map(square, range(job["x"] + 1)))


def use_shared_memory(job: RunningJob) -> float:
    segment = shared_memory.SharedMemory(create=True, size=8 * 1000)
    try:
        array = np.ndarray(1000, dtype=np.float64, buffer=segment.buf)
        array[:] = job["x"]
        total = float(array.sum())
        del array
    finally:
        segment.close()
        segment.unlink()
    return total


def use_a_program(job: RunningJob) -> int:
    done = subprocess.run(["/bin/sh", "-c", f"echo {job['x']}"], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize(
    ("run", "expected"),
    [(use_a_pool, [0, 1, 5, 14]), (use_shared_memory, [0.0, 1000.0, 2000.0, 3000.0]), (use_a_program, [0, 1, 2, 3])],
    ids=["multiprocessing.Pool", "shared_memory", "subprocess"],
)
def test_a_job_may_start_processes_of_its_own(run: Callable[..., Any], expected: list[Any]):
    """Multiprocessing pools, shared memory and programs work inside a job, and leave nothing."""
    with nothing_left():
        assert results(run) == expected


def leave_shared_memory(job: RunningJob) -> float:
    shared_memory.SharedMemory(create=True, size=1 << 12).close()
    return 1.0


def test_segments_that_jobs_leave_are_unlinked():
    """The tracker of each worker lives long enough to do that, however young it is when its worker is killed."""
    with nothing_left():
        assert results(leave_shared_memory, count=40) == [1.0] * 40


def evaluate_within(job: RunningJob) -> float:
    with ProcessPoolEvaluator(functools.partial(scale, factor=2.0), num_workers=2) as inner:
        inner.submit([{"x": job["x"]}, {"x": 10.0}])
        return sum(each.objective for each in inner.gather("ALL"))


def test_an_evaluator_works_inside_a_job():
    """A job may have a pool of its own."""
    with nothing_left():
        assert results(evaluate_within, count=2) == [20.0, 22.0]


def hang_within(job: RunningJob) -> None:
    inner = ProcessPoolEvaluator(write_pid_and_hang, num_workers=2)
    inner.submit([{"path": job["path"]}])
    inner.gather("ALL")


def write_pid_and_hang(job: RunningJob) -> None:
    Path(job["path"]).write_text(str(os.getpid()))
    time.sleep(HUNG_S)


def test_a_killed_job_takes_its_own_pool_with_it(tmp_path: Path):
    """The pool inside a job that is killed is gone when the job settles."""
    path = tmp_path / "pid"
    job = only(hang_within, {"path": str(path)}, job_timeout=4.0)
    assert job.failure.kind == "timeout"
    assert not is_alive(int(path.read_text()))


def echo(job: RunningJob) -> Any:
    return {"objective": float(job["array"].sum()), "metadata": {"array": job["array"] * 2}}


def test_large_arrays_travel_both_ways():
    """40 MB in, 40 MB out, equal and writable."""
    array = np.arange(5_000_000, dtype=np.float64)
    job = only(echo, {"array": array})
    assert job.objective == array.sum()
    assert np.array_equal(job.metadata["array"], 2 * array)
    job.metadata["array"][0] = 1.0


def large(job: RunningJob) -> Any:
    return {"objective": job["x"], "metadata": {"array": np.full(2_000_000, job["x"], dtype=np.uint8)}}


FEW_DESCRIPTORS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from test_process_functions import large
from robust_eval import ProcessPoolEvaluator
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
with ProcessPoolEvaluator(large, num_workers=2) as evaluator:
    evaluator.submit([{"x": x} for x in range(200)])
    evaluator.gather("BATCH", 1)
    jobs = evaluator.jobs
    evaluator.gather("ALL")
    right = all(job.metadata["array"][-1] == job.objective for job in jobs)
    print({job.failure and job.failure.message for job in jobs}, right)
"""


def test_many_large_results_need_few_descriptors():
    """200 results of 2 MB reach a driver that may open only 64 files."""
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    assert done.stdout == "{None} True\n", done.stderr


# -- random numbers


def draw(job: RunningJob) -> Any:
    return {"objective": random.random(), "metadata": {"numpy": np.random.rand()}}  # noqa: NPY002


def seed_and_draw(job: RunningJob) -> Any:
    drawn = draw(job)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    return drawn


@pytest.mark.parametrize("run", [draw, seed_and_draw])
@pytest.mark.parametrize("max_tasks_per_child", [None, 1])
@pytest.mark.parametrize("start_method", START_METHODS)
def test_no_two_jobs_draw_the_same_numbers(run: Callable[..., Any], max_tasks_per_child: int | None, start_method: str):
    """Random and numpy.random differ between jobs, whichever worker they run in, also after a job that seeds."""
    options = {"max_tasks_per_child": max_tasks_per_child, "start_method": start_method}
    with ProcessPoolEvaluator(run, num_workers=2, preload=["numpy"], **options) as evaluator:
        evaluator.submit([{"x": x} for x in range(8)])
        jobs = evaluator.gather("ALL")
    assert len({job.objective for job in jobs}) == 8
    assert len({job.metadata["numpy"] for job in jobs}) == 8


def test_worker_seed_makes_draws_reproducible():
    """With worker_seed, one worker draws the same numbers in every search."""

    def drawn() -> list[tuple[float, float]]:
        with ProcessPoolEvaluator(draw, num_workers=1, worker_seed=7) as evaluator:
            evaluator.submit([{"x": x} for x in range(4)])
            jobs = sorted(evaluator.gather("ALL"), key=lambda job: job.config["x"])
        return [(job.objective, job.metadata["numpy"]) for job in jobs]

    first = drawn()
    assert first == drawn()
    assert len(set(first)) == 4


# -- stopping politely


def stop_politely(job: RunningJob) -> float:
    try:
        while True:
            time.sleep(0.005)
    except JobStop:
        return 42.0


def ask_whether_to_stop(job: RunningJob) -> float:
    asked = job.stopped()
    try:
        while True:
            time.sleep(0.005)
    except JobStop:
        return 43.0 if job.stopped() and not asked else 0.0


def refuse_to_stop(job: RunningJob) -> None:
    while True:
        try:
            time.sleep(HUNG_S)
        except JobStop:
            continue


def die_of_the_stop(job: RunningJob) -> None:
    time.sleep(HUNG_S)


@pytest.mark.parametrize(("run", "late"), [(stop_politely, 42.0), (ask_whether_to_stop, 43.0), (die_of_the_stop, None)])
def test_a_job_that_stops_in_its_grace_period_is_not_killed(run: Callable[..., Any], late: float | None):
    """JobStop is raised in the run function; what it then returns is kept as the late result of a timeout."""
    with ProcessPoolEvaluator(run, job_timeout=0.3, grace_period=20.0) as evaluator:
        evaluator.submit([{}])
        (job,) = evaluator.gather("ALL")
        worker = only_worker_pid(evaluator)
        evaluator.submit([{}])
        evaluator.gather("ALL")
        assert only_worker_pid(evaluator) == worker
    assert job.failure.kind == "timeout"
    assert job.failure.late_result == late
    assert job.failure.duration < 10.0


def only_worker_pid(evaluator: ProcessPoolEvaluator) -> set[int]:
    """The ids of the processes below the template, spare included."""
    import psutil

    (template,) = psutil.Process(evaluator._pool.supervisor_pid).children()
    return {child.pid for child in template.children()}


def test_a_job_that_ignores_its_grace_period_is_killed():
    """After the grace period comes SIGKILL, with the stack of where the job was."""
    job = only(refuse_to_stop, job_timeout=0.2, grace_period=0.2)
    assert job.failure.kind == "timeout"
    assert 0.4 <= job.failure.duration < 5.0
    assert job.failure.late_result is None


def record_and_hang(job: RunningJob) -> None:
    for step in range(3):
        job.record(step, 10.0 * step)
    time.sleep(HUNG_S)


def test_what_was_recorded_is_kept_when_the_job_is_killed():
    """job.record reaches the evaluator as it happens and stays on the job."""
    job = only(record_and_hang, job_timeout=0.3)
    assert job.failure.kind == "timeout"
    assert job.recorded == [(0, 0.0), (1, 10.0), (2, 20.0)]


# -- options


def pid(job: RunningJob) -> int:
    return os.getpid()


@pytest.mark.parametrize("start_method", START_METHODS)
def test_max_tasks_per_child(start_method: str):
    """A worker runs at most so many jobs; with 1, each job has a process of its own."""
    assert len(set(results(pid, count=6, max_tasks_per_child=1, start_method=start_method))) == 6
    with ProcessPoolEvaluator(pid, max_tasks_per_child=3, start_method=start_method) as evaluator:
        evaluator.submit([{"x": x} for x in range(7)])
        pids = [job.objective for job in evaluator.gather("ALL")]
    assert sorted(pids.count(each) for each in set(pids)) == [1, 3, 3]


def environment(job: RunningJob) -> Any:
    time.sleep(0.05)
    return {"objective": 0, "metadata": {"slot": os.environ.get("SLOT"), "pid": os.getpid()}}


def slots(worker_env: Any, **options: Any) -> set[tuple[str | None, int]]:
    with ProcessPoolEvaluator(environment, num_workers=2, worker_env=worker_env, **options) as evaluator:
        evaluator.submit([{"x": x} for x in range(8)])
        jobs = evaluator.gather("ALL")
    return {(job.metadata["slot"], job.metadata["pid"]) for job in jobs}


def test_worker_env_of_all_workers():
    """One mapping is what every worker has."""
    assert {slot for slot, _ in slots({"SLOT": "a"})} == {"a"}


def test_worker_env_of_each_worker():
    """With one mapping for each, two workers have two environments, and a worker keeps its own."""
    found = slots([{"SLOT": "a"}, {"SLOT": "b"}])
    assert {slot for slot, _ in found} == {"a", "b"}
    assert len(found) == 2


def modules(job: RunningJob) -> bool:
    return "colorsys" in sys.modules


def test_preload():
    """The modules named are there before the run function imports them."""
    assert results(modules) == [False] * 4
    assert results(modules, preload=["colorsys"]) == [True] * 4


def test_a_preload_that_fails_is_told():
    """The jobs fail as `startup` with the traceback of the import."""
    job = only(pid, preload=["no_such_module_anywhere"])
    assert job.failure.kind == "startup"
    assert "no_such_module_anywhere" in job.failure.message


def remember(value: str) -> None:
    os.environ["INITIALIZED"] = value


def initialized(job: RunningJob) -> float:
    assert os.environ["INITIALIZED"] == "yes"
    return 1.0


@pytest.mark.parametrize("start_method", START_METHODS)
def test_initializer(start_method: str):
    """It runs in every worker before its first job."""
    assert results(initialized, initializer=remember, initargs=("yes",), start_method=start_method) == [1.0] * 4


def sleep(job: RunningJob) -> float:
    time.sleep(job["seconds"])
    return 1.0


def test_limits_of_single_jobs():
    """A limit given to submit counts for these jobs; a callable of the configuration gives each its own."""
    with ProcessPoolEvaluator(sleep, num_workers=2, job_timeout=0.2) as evaluator:
        evaluator.submit([{"seconds": 0.5}], job_timeout=20.0)
        evaluator.submit([{"seconds": HUNG_S, "limit": 0.3}], job_timeout=lambda config: config["limit"])
        evaluator.submit([{"seconds": HUNG_S - 1}])
        jobs = {job.config["seconds"]: job for job in evaluator.gather("ALL")}
    assert jobs[0.5].objective == 1.0
    assert 0.3 <= jobs[HUNG_S].failure.duration < 5.0
    assert 0.2 <= jobs[HUNG_S - 1].failure.duration < 5.0


def test_a_limit_that_makes_no_sense_is_refused():
    """Nothing is submitted with a limit that cannot be."""
    with ProcessPoolEvaluator(sleep) as evaluator:
        with pytest.raises(ValueError, match="job_timeout"):
            evaluator.submit([{"seconds": 0}], job_timeout=-1.0)
        with pytest.raises((TypeError, ValueError)):
            evaluator.submit([{"seconds": 0}], no_such_option=1)
        assert evaluator.num_jobs_submitted == 0


def test_the_budget_of_the_search():
    """When it is out, what runs is a timeout, what waits is cancelled, all of it can be gathered."""
    with ProcessPoolEvaluator(sleep, num_workers=2) as evaluator:
        evaluator.submit([{"seconds": 0.0}])
        evaluator.gather("ALL")
        evaluator.set_timeout(0.3)
        evaluator.submit([{"seconds": HUNG_S}] * 5)
        kinds = sorted(job.failure.kind for job in evaluator.gather("ALL"))
        evaluator.set_timeout(None)
        evaluator.submit([{"seconds": 0.0}])
        (after,) = evaluator.gather("ALL")
    assert kinds == ["cancelled"] * 3 + ["timeout"] * 2
    assert after.objective == 1.0


def test_close_cancels_what_is_left():
    """close() ends jobs that run and never begins those that wait; all are `cancelled` and can be gathered."""
    evaluator = ProcessPoolEvaluator(sleep, num_workers=2)
    evaluator.submit([{"seconds": 0.0}])
    evaluator.gather("ALL")
    evaluator.submit([{"seconds": HUNG_S}] * 5)
    evaluator.close()
    jobs = evaluator.gather("ALL")
    assert [job.failure.kind for job in jobs] == ["cancelled"] * 5


def fail_until(job: RunningJob) -> float:
    with Path(job["path"]).open("a+") as file:
        file.write("x")
        file.flush()
        file.seek(0)
        tries = len(file.read())
    if tries < job["works_at"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(tries)


def test_retries(tmp_path: Path):
    """A job that fails is tried again as often as asked for, and says how often it was."""
    configs = [{"path": str(tmp_path / f"{n}"), "works_at": n} for n in (1, 2, 3, 4)]
    with ProcessPoolEvaluator(fail_until, num_workers=2, max_retries=2) as evaluator:
        evaluator.submit(configs)
        jobs = {job.config["works_at"]: job for job in evaluator.gather("ALL")}
    assert [jobs[n].objective for n in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, "F"]
    assert [jobs[n].metadata["attempts"] for n in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert jobs[4].failure.attempts == 3


def test_only_the_kinds_asked_for_are_retried(tmp_path: Path):
    """A crash is final where only timeouts are tried again."""
    job = only(fail_until, {"path": str(tmp_path / "path"), "works_at": 2}, max_retries=2, retry_on=["timeout"])
    assert (job.failure.kind, job.failure.attempts) == ("crash", 1)


def test_on_error_raise():
    """Gather raises the first failure as an exception of its kind; the others stay."""
    with ProcessPoolEvaluator(sleep, num_workers=2, job_timeout=0.2, on_error="raise") as evaluator:
        evaluator.submit([{"seconds": HUNG_S}, {"seconds": 0.0}])
        with pytest.raises(JobTimeout, match="job_timeout"):
            evaluator.gather("ALL")
        assert [job.objective for job in evaluator.gather("ALL")] == [1.0]


def count_up(job: RunningJob) -> str:
    print("job", job["x"], flush=True)  # noqa: T201 - what a job prints is what is tested
    os.write(2, f"raw {job['x']}\n".encode())
    raise ValueError(job["x"])


def test_output_belongs_to_its_own_job():
    """What a job prints, by whatever means, is in its own failure and in no other."""
    with ProcessPoolEvaluator(count_up, num_workers=2) as evaluator:
        evaluator.submit([{"x": x} for x in range(50)])
        jobs = evaluator.gather("ALL")
    for job in jobs:
        x = job.config["x"]
        assert sorted(job.failure.output_tail.splitlines()) == [f"job {x}", f"raw {x}"]


def write_raw_now_and_then(job: RunningJob) -> float:
    if job["x"] % 3 == 0:
        os.write(1, f"raw {job['x']}\n".encode())
    raise ValueError(job["x"])


def test_raw_output_belongs_to_its_own_job():
    """Bytes written past Python's streams are found too, and never given to the jobs behind."""
    with ProcessPoolEvaluator(write_raw_now_and_then, num_workers=2) as evaluator:
        evaluator.submit([{"x": x} for x in range(300)])
        jobs = evaluator.gather("ALL")
    for job in jobs:
        x = job.config["x"]
        assert job.failure.output_tail == (f"raw {x}\n" if x % 3 == 0 else "")


def test_the_registry_makes_it():
    """Evaluator.create with method="process" makes this evaluator, and it describes itself in JSON."""
    with Evaluator.create(pid, method="process", method_kwargs={"num_workers": 2}) as evaluator:
        assert isinstance(evaluator, ProcessPoolEvaluator)
        assert json.dumps(evaluator.to_json())


def test_agather_leaves_the_loop_free():
    """While agather waits, other coroutines run."""

    async def search() -> tuple[int, Any]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with ProcessPoolEvaluator(sleep) as evaluator:
            evaluator.submit([{"seconds": 0.5}])
            (job,) = await evaluator.agather("ALL")
        ticking.cancel()
        return ticks, job.objective

    ticks, objective = asyncio.run(search())
    assert objective == 1.0
    assert ticks > 5


def test_unknown_start_methods_are_refused():
    """The message names what is allowed."""
    with pytest.raises(ValueError, match="spawn"):
        ProcessPoolEvaluator(pid, start_method="forkserver")
    with pytest.raises((RobustEvalError, TypeError)):
        ProcessPoolEvaluator(pid, worker_env={"A": 1})


def test_settling_waits_until_the_tree_is_gone(tmp_path: Path):
    """When a killed job is gathered, its process is dead already."""
    path = tmp_path / "pid"
    job = only(write_pid_and_hang, {"path": str(path)}, job_timeout=0.5)
    assert job.failure.kind == "timeout"
    assert not is_alive(int(path.read_text()))
