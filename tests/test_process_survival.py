"""A search goes on whatever dies around it, and nothing outlives its driver."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from waiting import alive_with, is_alive, nothing_left, wait_until

from robust_eval import ProcessPoolEvaluator, RobustEvalError, RunningJob

pytestmark = pytest.mark.unmeasured  # what it runs is measured by the tests of its parts

GONE_WITHIN_S = 2.0


# -- run functions


def double(job: RunningJob) -> float:
    with Path(job["diary"]).open("a") as diary:
        diary.write(f"{job['x']}\n")
    return 2.0 * job["x"]


def double_or_die(job: RunningJob) -> float:
    if job["dies"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return double(job)


def wait_for_file(job: RunningJob) -> float:
    """Begin, say so, and go on once the file `go` is there."""
    double(job)
    Path(job["begun"]).write_text(f"{os.getpid()} ")
    while not Path(job["go"]).exists():
        time.sleep(0.002)
    return 2.0 * job["x"]


def raise_at_start() -> None:
    raise LookupError("no licence")


def exit_at_start() -> None:
    print("going down", flush=True)  # noqa: T201 - what a worker prints is what is tested
    os._exit(5)


def exit_once(mark: str) -> None:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os._exit(5)


def runs(diary: Path) -> Counter[int]:
    return Counter(map(int, diary.read_text().split())) if diary.exists() else Counter()


def configs(count: int, directory: Path, first: int = 0) -> list[dict]:
    return [{"x": x, "diary": str(directory / "diary")} for x in range(first, first + count)]


# -- crashes and start-ups


def test_thirty_crashes_in_a_row(tmp_path: Path):
    """Thirty workers die one after the other: each costs its own job, and what follows runs as ever."""
    with nothing_left(), ProcessPoolEvaluator(double_or_die, num_workers=1) as evaluator:
        evaluator.submit([{**config, "dies": config["x"] < 30} for config in configs(40, tmp_path)])
        jobs = evaluator.gather("ALL")
    kinds = {job.config["x"]: job.failure and job.failure.kind for job in jobs}
    assert kinds == {x: "crash" if x < 30 else None for x in range(40)}
    assert all(job.failure.signal == "SIGKILL" for job in jobs if job.failure)
    assert runs(tmp_path / "diary") == dict.fromkeys(range(30, 40), 1)


@pytest.mark.parametrize(
    ("initializer", "told"), [(raise_at_start, "no licence"), (exit_at_start, "going down")], ids=["raises", "exits"]
)
def test_an_initializer_that_never_works_breaks_the_pool(initializer, told: str, tmp_path: Path):
    """Every job fails as `startup`, with the words of what went wrong; there is no endless respawn."""
    with nothing_left(), ProcessPoolEvaluator(double, num_workers=2, initializer=initializer) as evaluator:
        evaluator.submit(configs(8, tmp_path))
        jobs = evaluator.gather("ALL")
        evaluator.submit(configs(2, tmp_path, first=8))
        jobs += evaluator.gather("ALL")
    assert {job.failure.kind for job in jobs} == {"startup"}
    assert all(told in job.failure.message for job in jobs), jobs[0].failure.message
    assert runs(tmp_path / "diary") == {}


def test_an_initializer_that_exits_once_costs_nothing(tmp_path: Path):
    """A start-up that fails once is tried again, and no job hears of it."""
    mark = str(tmp_path / "mark")
    with ProcessPoolEvaluator(double, num_workers=2, initializer=exit_once, initargs=(mark,)) as evaluator:
        evaluator.submit(configs(8, tmp_path))
        jobs = evaluator.gather("ALL")
    assert all(job.failure is None for job in jobs)
    assert runs(tmp_path / "diary") == dict.fromkeys(range(8), 1)


# -- killed from outside


def supervisor_of(evaluator: ProcessPoolEvaluator) -> psutil.Process:
    return psutil.Process(evaluator._pool.supervisor_pid)


def template_of(evaluator: ProcessPoolEvaluator) -> psutil.Process:
    (template,) = supervisor_of(evaluator).children()
    return template


def workers_of(evaluator: ProcessPoolEvaluator) -> list[psutil.Process]:
    return template_of(evaluator).children()


VICTIMS = {"workers": workers_of, "template": lambda e: [template_of(e)], "supervisor": lambda e: [supervisor_of(e)]}


@pytest.mark.parametrize("victim", VICTIMS)
def test_whoever_is_killed_while_idle_costs_nothing(victim: str, tmp_path: Path):
    """Idle workers, the template or the supervisor are killed: the next jobs run, each once, and none is blamed."""
    with nothing_left(), ProcessPoolEvaluator(double, num_workers=2) as evaluator:
        evaluator.submit(configs(4, tmp_path))
        jobs = evaluator.gather("ALL")
        workers = workers_of(evaluator)
        for process in VICTIMS[victim](evaluator):
            process.kill()
        # They die with whoever is killed, a moment later: what they begin in between is rightly lost.
        wait_until(lambda: not any(is_alive(worker.pid) for worker in workers))
        evaluator.submit(configs(10, tmp_path, first=4))
        jobs += evaluator.gather("ALL")
    assert all(job.failure is None for job in jobs), [job.failure for job in jobs if job.failure]
    assert runs(tmp_path / "diary") == dict.fromkeys(range(14), 1)


@contextmanager
def half_way(evaluator: ProcessPoolEvaluator, directory: Path) -> Iterator[Path]:
    """Ten jobs of which the first two have begun and wait for a file."""
    go = directory / "go"
    jobs = configs(10, directory)
    for config in jobs:
        config |= {"begun": str(directory / f"begun{config['x']}"), "go": str(go)}
    evaluator.submit(jobs)
    wait_until(lambda: len(pids_of_begun(directory)) == 2)
    yield go


def pids_of_begun(directory: Path) -> list[int]:
    return [int(text) for path in directory.glob("begun*") if (text := path.read_text()).endswith(" ")]


def kill_and_go_on(evaluator: ProcessPoolEvaluator, victim: str, directory: Path, go: Path) -> None:
    """Kill, and let jobs end only when the workers that ran are dead: a finish before that would rightly count."""
    (process,) = VICTIMS[victim](evaluator)
    workers = pids_of_begun(directory)
    process.kill()
    wait_until(lambda: not any(map(is_alive, workers)))
    go.touch()


@pytest.mark.parametrize("victim", ["template", "supervisor"])
def test_only_what_had_begun_is_lost(victim: str, tmp_path: Path):
    """The template or the supervisor dies while two of ten jobs run: these two are `lost`, the others run once."""
    with nothing_left(), ProcessPoolEvaluator(wait_for_file, num_workers=2) as evaluator:
        with half_way(evaluator, tmp_path) as go:
            kill_and_go_on(evaluator, victim, tmp_path, go)
        jobs = evaluator.gather("ALL")
    lost = sorted(job.config["x"] for job in jobs if job.failure)
    assert lost == [0, 1]
    assert {(job.failure.kind, job.failure.lost) for job in jobs if job.failure} == {("lost", victim)}
    assert not any("before it was ready" in job.failure.message for job in jobs if job.failure)
    assert runs(tmp_path / "diary") == dict.fromkeys(range(10), 1)


@pytest.mark.parametrize("victim", ["template", "supervisor"])
def test_what_was_lost_is_retried_where_that_was_asked_for(victim: str, tmp_path: Path):
    """With max_retries=1 the two that ran are run again, and only they."""
    with nothing_left(), ProcessPoolEvaluator(wait_for_file, num_workers=2, max_retries=1) as evaluator:
        with half_way(evaluator, tmp_path) as go:
            kill_and_go_on(evaluator, victim, tmp_path, go)
        jobs = evaluator.gather("ALL")
    assert all(job.failure is None for job in jobs), [job.failure for job in jobs if job.failure]
    assert runs(tmp_path / "diary") == {x: 2 if x < 2 else 1 for x in range(10)}
    assert {job.metadata["attempts"] for job in jobs if job.config["x"] < 2} == {2}


def test_a_supervisor_that_is_stopped_goes_on(tmp_path: Path):
    """Whoever stops it: the driver continues it, and nothing is lost or run twice."""
    with nothing_left(), ProcessPoolEvaluator(double, num_workers=2) as evaluator:
        evaluator.submit(configs(4, tmp_path))
        jobs = evaluator.gather("ALL")
        supervisor = supervisor_of(evaluator)
        supervisor.suspend()
        evaluator.submit(configs(20, tmp_path, first=4))
        jobs += evaluator.gather("ALL")
    assert all(job.failure is None for job in jobs)
    assert runs(tmp_path / "diary") == dict.fromkeys(range(24), 1)


def test_a_supervisor_that_dies_again_and_again_is_given_up(tmp_path: Path):
    """No job waits for ever when supervisors cannot live: all that was not run settles as `lost`."""
    with nothing_left(), ProcessPoolEvaluator(wait_for_file, num_workers=2) as evaluator:
        with half_way(evaluator, tmp_path):
            for _ in range(3):
                killed = evaluator._pool.supervisor_pid
                os.kill(killed, signal.SIGKILL)
                wait_until(lambda killed=killed: evaluator._pool.supervisor_pid != killed or evaluator._pool._closing)
        jobs = evaluator.gather("ALL")
    assert {job.failure.kind for job in jobs} == {"lost"}


# -- the driver

PRELUDE = """
import os, signal, sys, time, threading, gc
from pathlib import Path
from robust_eval import Evaluator
here = Path(sys.argv[1])

def run(job):
    (here / f"begun{job['x']}").touch()
    while job["hangs"]:
        time.sleep(0.01)
    return 2.0 * job["x"]

def configs(count, hangs=False):
    return [{"x": x, "hangs": hangs} for x in range(count)]

def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.002)
"""


@contextmanager
def driver(directory: Path, body: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A script that drives a pool, and a text that is in the environment of everything that it starts."""
    script = directory / "script.py"
    script.write_text(PRELUDE + textwrap.dedent(body))
    mark = f"mark-{os.urandom(8).hex()}"
    process = subprocess.Popen(
        [sys.executable, str(script), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "DRIVER_MARK": mark},
    )
    try:
        yield process, mark
    finally:
        for pid in alive_with(mark):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def finished(process: subprocess.Popen[str]) -> str:
    """What the script printed; it ended well."""
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    return output


DEATHS = {
    "idle": "evaluator.submit(configs(4)); evaluator.gather('ALL'); (here / 'ready').touch(); time.sleep(3600)",
    "busy": "evaluator.submit(configs(4, hangs=True)); wait_for('begun1'); (here / 'ready').touch(); time.sleep(3600)",
    "starting": "evaluator.submit(configs(4)); (here / 'ready').touch(); time.sleep(3600)",
    "gathering": """
        threading.Thread(target=lambda: (wait_for('begun1'), (here / 'ready').touch())).start()
        evaluator.submit(configs(4, hangs=True)); evaluator.gather('ALL')
    """,
    "with a forked child alive": """
        evaluator.submit(configs(4)); evaluator.gather('ALL')
        if os.fork() == 0:
            os.environ.clear()
            (here / 'half').write_text(str(os.getpid()))
            (here / 'half').rename(here / 'child')  # whoever sees it can read it
            time.sleep(3600)
        wait_for('child')
        evaluator.submit(configs(4, hangs=True)); wait_for('begun1'); (here / 'ready').touch(); time.sleep(3600)
    """,
}


@pytest.mark.parametrize("state", DEATHS)
def test_nothing_outlives_a_driver_that_is_killed(state: str, tmp_path: Path):
    """The driver gets SIGKILL, whatever it was doing: 2 s later no process of the pool is left."""
    body = "evaluator = Evaluator.create(run, 'process', {'num_workers': 2})\n" + textwrap.dedent(DEATHS[state])
    with driver(tmp_path, body) as (process, mark):
        wait_until((tmp_path / "ready").exists)
        child = tmp_path / "child"
        spared = {int(child.read_text())} if child.exists() else set()
        process.kill()
        process.wait()
        wait_until(lambda: not set(alive_with(mark)) - spared, GONE_WITHIN_S)


def test_a_script_may_end_without_close(tmp_path: Path):
    """A script that just ends, with jobs running, ends at once and well and leaves nothing behind."""
    body = """
    evaluator = Evaluator.create(run, 'process', {'num_workers': 2})
    evaluator.submit(configs(4, hangs=True))
    wait_for('begun1')
    """
    with driver(tmp_path, body) as (process, mark):
        assert finished(process) == ""
        assert alive_with(mark) == []


def test_a_script_may_end_by_an_exception(tmp_path: Path):
    """The exception is what the user sees, and nothing is left behind."""
    body = """
    evaluator = Evaluator.create(run, 'process', {'num_workers': 2})
    evaluator.submit(configs(4, hangs=True))
    wait_for('begun1')
    raise SystemExit(7)
    """
    with driver(tmp_path, body) as (process, mark):
        output, _ = process.communicate(timeout=30)
        assert (output, process.returncode) == ("", 7)
        assert alive_with(mark) == []


def test_a_ctrl_c_in_gather_returns_control(tmp_path: Path):
    """SIGINT in the middle of gather raises KeyboardInterrupt within 1 s; the pool then goes on, and closes."""
    body = """
    evaluator = Evaluator.create(run, 'process', {'num_workers': 2, 'job_timeout': 3.0})
    evaluator.submit(configs(2, hangs=True))
    threading.Thread(target=lambda: (wait_for('begun1'), (here / 'ready').touch())).start()
    try:
        evaluator.gather('ALL')
    except KeyboardInterrupt:
        print('interrupted', time.monotonic(), flush=True)
    evaluator.submit(configs(3))
    print(sorted(job.objective for job in evaluator.gather('ALL') if job.failure is None))
    print([job.failure.kind for job in evaluator.jobs if job.failure])
    begun_at = time.monotonic()
    evaluator.submit(configs(2, hangs=True))
    evaluator.close()
    print('closed in time', time.monotonic() - begun_at < 5.0)
    """
    with driver(tmp_path, body) as (process, mark):
        wait_until((tmp_path / "ready").exists)
        sent_at = time.monotonic()
        process.send_signal(signal.SIGINT)
        lines = finished(process).splitlines()
        assert float(lines[0].split()[1]) - sent_at < 1.0
        assert lines[1:] == ["[0.0, 2.0, 4.0]", "['timeout', 'timeout']", "closed in time True"]
        assert alive_with(mark) == []


def test_a_ctrl_c_that_ends_the_script_leaves_nothing(tmp_path: Path):
    """An uncaught KeyboardInterrupt ends script and pool."""
    body = """
    with Evaluator.create(run, 'process', {'num_workers': 2}) as evaluator:
        evaluator.submit(configs(2, hangs=True))
        threading.Thread(target=lambda: (wait_for('begun1'), (here / 'ready').touch())).start()
        evaluator.gather('ALL')
    """
    with driver(tmp_path, body) as (process, mark):
        wait_until((tmp_path / "ready").exists)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert "KeyboardInterrupt" in output
        assert alive_with(mark) == []


BUSY = {
    "in a C call that holds the GIL": "import ctypes; ctypes.PyDLL(None).usleep(2_000_000)",
    "in Python": "end = time.monotonic() + 2.0\nwhile time.monotonic() < end: pass",
}


@pytest.mark.parametrize("how", BUSY)
def test_deadlines_hold_while_the_driver_is_busy(how: str, tmp_path: Path):
    """The driver computes for 2 s, also without releasing the GIL once: a job's deadline of 0.5 s holds."""
    body = f"""
    evaluator = Evaluator.create(run, 'process', {{'num_workers': 1, 'job_timeout': 0.5}})
    evaluator.submit(configs(1, hangs=True))
    wait_for('begun0')
    {textwrap.indent(BUSY[how], "    ").lstrip()}
    (job,) = evaluator.gather('ALL')
    print(job.failure.kind, job.failure.duration)
    evaluator.close()
    """
    with driver(tmp_path, body) as (process, _):
        kind, duration = finished(process).split()
    assert kind == "timeout"
    assert 0.5 <= float(duration) < 1.5


def test_deadlines_hold_while_the_driver_is_stopped(tmp_path: Path):
    """The driver is stopped by SIGSTOP: the worker of a job that is over its time vanishes in time."""
    body = """
    def run(job):
        (here / "worker").write_text(str(os.getpid()))
        time.sleep(3600)
    evaluator = Evaluator.create(run, 'process', {'num_workers': 1, 'job_timeout': 0.5})
    evaluator.submit(configs(1))
    (job,) = evaluator.gather('ALL')
    print(job.failure.kind, job.failure.duration)
    """
    with driver(tmp_path, body) as (process, _):
        worker = tmp_path / "worker"
        wait_until(lambda: worker.exists() and worker.read_text())
        process.send_signal(signal.SIGSTOP)
        gone_after_s = wait_until(lambda: not is_alive(int(worker.read_text())))
        process.send_signal(signal.SIGCONT)
        kind, duration = finished(process).split()
    assert gone_after_s < 1.5
    assert kind == "timeout"
    assert 0.5 <= float(duration) < 1.5


STRANGE = {
    "ignores SIGCHLD": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "ignores every signal": """
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
    """,
    "masks every signal": "signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())",
    "has no standard streams": "out = os.dup(1); os.closerange(0, 3)",
    "works in a deleted directory": (
        "gone = here / 'gone'; gone.mkdir(); os.chdir(gone); gone.rmdir(); sys.path.insert(0, '')"
    ),
    "has a tight umask": "os.umask(0o777)",
    "has impatient sockets": "import socket; socket.setdefaulttimeout(1e-4)",
    "has an odd import path and no arguments": "sys.path.insert(0, here); del sys.argv",
    "does not know its interpreter": "sys.executable = None",
    "is not the main thread": "",
}


@pytest.mark.parametrize("habit", STRANGE)
def test_what_a_driver_does_to_itself_does_not_reach_the_pool(habit: str, tmp_path: Path):
    """Whatever the driver's signals, streams and directory are: jobs deliver, hang with a stack, die, and are told."""
    body = f"""
    out = 1
    def deeds(job):
        if job["x"] == 1:
            os._exit(3)
        if job["x"] == 2:
            time.sleep(3600)
        return 2.0 * job["x"]
    def drive():
        options = {{'num_workers': 2, 'job_timeout': 0.5, 'grace_period': 0.01}}
        with Evaluator.create(deeds, 'process', options) as evaluator:
            evaluator.submit([{{"x": x}} for x in range(4)])
            jobs = sorted(evaluator.gather('ALL'), key=lambda job: job.config["x"])
        told = [job.failure.kind if job.failure else job.objective for job in jobs]
        os.write(out, repr(told + [jobs[1].failure.exit_code]).encode())
    {textwrap.indent(textwrap.dedent(STRANGE[habit]), "    ").strip()}
    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
    """
    with driver(tmp_path, body) as (process, mark):
        assert finished(process) == "[0.0, 'crash', 'timeout', 6.0, 3]"
        assert alive_with(mark) == []


def test_an_evaluator_that_is_dropped_closes_itself(tmp_path: Path):
    """Nobody closes it and nobody holds it: its processes go with it."""
    evaluator = ProcessPoolEvaluator(double, num_workers=2)
    evaluator.submit(configs(4, tmp_path))
    evaluator.gather("ALL")
    cookie, dropped = evaluator._pool._overseer.cookie, weakref.ref(evaluator)
    assert alive_with(cookie)
    del evaluator
    gc.collect()
    assert dropped() is None
    wait_until(lambda: not alive_with(cookie))


def test_a_forked_child_of_the_driver_cannot_use_the_evaluator(tmp_path: Path):
    """In a fork of the driver the handle refuses clearly; the parent's pool is unharmed, however the child ends."""
    body = """
    evaluator = Evaluator.create(run, 'process', {'num_workers': 2})
    evaluator.submit(configs(2))
    evaluator.gather('ALL')
    pid = os.fork()
    if pid == 0:
        from robust_eval import RobustEvalError
        try:
            evaluator.submit(configs(1))
        except RobustEvalError as error:
            print('forked child' in str(error), flush=True)
        try:
            evaluator.gather('ALL')
        except RobustEvalError as error:
            print('forked child' in str(error), flush=True)
        evaluator.close()
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    evaluator.submit(configs(3))
    print(sorted(job.objective for job in evaluator.gather('ALL')), flush=True)
    evaluator.close()
    """
    with driver(tmp_path, body) as (process, mark):
        assert finished(process).splitlines() == ["True", "True", "3", "[0.0, 2.0, 4.0]"]
        assert alive_with(mark) == []


def test_a_closed_evaluator_refuses(tmp_path: Path):
    """close() twice is fine; submit after it is refused."""
    evaluator = ProcessPoolEvaluator(double)
    evaluator.close()
    evaluator.close()
    with pytest.raises(RobustEvalError, match="closed"):
        evaluator.submit(configs(1, tmp_path))
