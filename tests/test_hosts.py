"""Many pools behind one driver: real hosts, real supervisors and workers, on one machine."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest
from children import in_child
from hosts_here import LocalHostsEvaluator
from waiting import is_alive, nothing_left, wait_until

from robust_eval import JobStop, RobustEvalError
from robust_eval.evaluators.hosts import calling, pool
from robust_eval.processes.parcel import pack
from robust_eval.processes.pending import Failed, Submission
from robust_eval.supervision.host_actions import HostPolicy
from stress.faults import CATALOGUE, behave, configuration

FAULTS = (
    "hang_in_c_with_the_gil",
    "segfault",
    "exit_with_0",
    "result_does_not_unpickle_in_the_driver",
    "print_fifty_megabytes",
    "leave_a_daemon",
)


def double(job):
    return 2.0 * job["x"]


def diary_of(directory: Path) -> Counter[int]:
    """How often each job began."""
    diary = directory / "diary"
    return Counter(map(int, diary.read_text().split())) if diary.exists() else Counter()


def blocker(directory: Path):
    """A run function that says when it begins, and whose jobs with `waits` end when the file `go` is there."""

    def run(job):
        import os
        import time
        from pathlib import Path

        file = os.open(directory / "diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{job['x']}\n".encode())
        os.close(file)
        while job["waits"] and not Path(directory / "go").exists():
            time.sleep(0.01)
        return {"objective": 1.0, "metadata": {"host": os.environ["HOST_NUMBER"]}}

    return run


def waiting_jobs(count: int, first: int = 0) -> list[dict]:
    return [{"x": x, "waits": True} for x in range(first, first + count)]


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_through_hosts_as_on_one_machine(name: str, tmp_path: Path):
    """The guilty job alone fails, with the right kind, nothing runs twice, and nothing is left."""
    fault = CATALOGUE[name]
    guilty = (3, 8)
    with nothing_left():
        with LocalHostsEvaluator(behave) as evaluator:
            configs = [configuration(x, tmp_path / "diary", fault if x in guilty else None) for x in range(12)]
            limits = {
                name: (lambda config, value=value: value if config["fault"] else None)
                for name, value in fault.limits.items()
            }
            evaluator.submit(configs, **limits)
            jobs = evaluator.gather("ALL")
        assert sorted(job.config["x"] for job in jobs) == list(range(12))
        for job in jobs:
            if job.config["x"] in guilty and fault.kinds:
                assert job.failure.kind in fault.kinds, job.failure.render()
            else:
                assert job.objective == 2.0 * job.config["x"], job.failure.render()
    assert diary_of(tmp_path) == dict.fromkeys(range(12), 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_host_killed_in_the_middle_costs_the_jobs_that_ran_there(number: int, tmp_path: Path):
    """They are lost, nothing else is, nothing runs twice, and its workers die with it, also where it is asked to."""
    with nothing_left(), LocalHostsEvaluator(blocker(tmp_path), slots=(2, 1)) as evaluator:
        evaluator.submit(waiting_jobs(9))
        wait_until(lambda: len(diary_of(tmp_path)) == 3)
        victim = evaluator.fleet.processes[0]
        below = psutil.Process(victim.pid).children(recursive=True)
        victim.send_signal(number)
        wait_until(lambda: not any(is_alive(process.pid) for process in below))
        (tmp_path / "go").touch()
        jobs = evaluator.gather("ALL")
        lost = [job for job in jobs if job.failure is not None]
        assert [(job.failure.kind, job.failure.lost, job.failure.attempts) for job in lost] == [("lost", "host", 1)] * 2
        assert "the connection to it ended" in lost[0].failure.message
        assert {job.metadata["host"] for job in jobs if job.failure is None} == {"1"}
    assert diary_of(tmp_path) == dict.fromkeys(range(9), 1)


def test_what_was_lost_with_a_host_is_retried_on_another(tmp_path: Path):
    """With max_retries, and the attempts are counted."""
    with LocalHostsEvaluator(blocker(tmp_path), max_retries=1) as evaluator:
        evaluator.submit(waiting_jobs(4))
        wait_until(lambda: len(diary_of(tmp_path)) == 2)
        evaluator.fleet.processes[0].kill()
        (tmp_path / "go").touch()
        jobs = evaluator.gather("ALL")
        assert [job.failure for job in jobs] == [None] * 4
        assert sorted(job.metadata["attempts"] for job in jobs) == [1, 1, 1, 2]


def test_a_supervisor_killed_on_a_host_costs_what_ran_below_it(tmp_path: Path):
    """The host starts another one and goes on; the driver hears who died."""
    with LocalHostsEvaluator(blocker(tmp_path)) as evaluator:
        evaluator.submit(waiting_jobs(5))
        wait_until(lambda: len(diary_of(tmp_path)) == 2)
        evaluator.fleet.supervisor_of(0).kill()
        wait_until(lambda: len(diary_of(tmp_path)) == 3)
        (tmp_path / "go").touch()
        jobs = evaluator.gather("ALL")
        (lost,) = [job for job in jobs if job.failure is not None]
        assert (lost.failure.kind, lost.failure.lost) == ("lost", "supervisor")
        assert {job.metadata["host"] for job in jobs if job.failure is None} == {"0", "1"}


def test_a_host_whose_supervisor_dies_again_and_again_gives_itself_up(tmp_path: Path):
    """It hands back what it was sent, and the other host does the rest."""
    with LocalHostsEvaluator(blocker(tmp_path)) as evaluator:
        evaluator.submit(waiting_jobs(6))
        for died in range(3):
            wait_until(lambda died=died: len(diary_of(tmp_path)) == 2 + died)
            evaluator.fleet.supervisor_of(0).kill()
        wait_until(lambda: len(evaluator._pool._exchange.lines) == 1)
        (tmp_path / "go").touch()
        jobs = evaluator.gather("ALL")
        assert sorted(job.failure.kind for job in jobs if job.failure) == ["lost"] * 3
        assert [job.metadata["host"] for job in jobs if not job.failure] == ["1"] * 3


def test_a_host_that_joins_later_is_used(tmp_path: Path):
    """Jobs that wait go to it at once."""
    with LocalHostsEvaluator(blocker(tmp_path), slots=(1,)) as evaluator:
        evaluator.submit(waiting_jobs(3))
        wait_until(lambda: len(diary_of(tmp_path)) == 1)
        evaluator.fleet.add(2)
        wait_until(lambda: len(diary_of(tmp_path)) == 3)
        (tmp_path / "go").touch()
        assert sorted(job.metadata["host"] for job in evaluator.gather("ALL")) == ["0", "1", "1"]


def fail_on_host_0():
    if os.environ["HOST_NUMBER"] == "0":
        msg = "no data here"
        raise OSError(msg)


def fail_everywhere():
    msg = "no licence"
    raise OSError(msg)


def test_a_host_that_cannot_start_workers_costs_no_job():
    """The others run everything; the evaluator's failures are the jobs' own."""
    with LocalHostsEvaluator(double, slots=(1, 1), initializer=fail_on_host_0) as evaluator:
        evaluator.submit([{"x": x} for x in range(20)])
        assert [job.failure for job in evaluator.gather("ALL")] == [None] * 20


def test_when_no_host_can_start_workers_every_job_says_why():
    """With the traceback of the last host's start; a host that comes later can run jobs again."""
    with LocalHostsEvaluator(double, slots=(1, 1), initializer=fail_everywhere) as evaluator:
        evaluator.submit([{"x": x} for x in range(5)])
        for job in evaluator.gather("ALL"):
            assert job.failure.kind == "startup"
            assert "no licence" in job.failure.message


def test_when_all_hosts_are_gone_jobs_do_not_wait():
    """They fail and say what became of the last host."""
    with LocalHostsEvaluator(double, slots=(1,)) as evaluator:
        evaluator.submit([{"x": 1}])
        evaluator.gather("ALL")
        evaluator.fleet.processes[0].kill()
        evaluator.submit([{"x": 2}, {"x": 3}])
        for job in evaluator.gather("ALL"):
            assert job.failure.kind in {"startup", "lost"}
            assert "the connection to it ended" in job.failure.message


def test_only_what_a_host_can_soon_run_leaves_the_driver(tmp_path: Path):
    """Of thousands of jobs that block, each host has as many as slots; the rest waits in the driver."""
    with LocalHostsEvaluator(blocker(tmp_path), slots=(2, 1)) as evaluator:
        evaluator.submit(waiting_jobs(5000))
        wait_until(lambda: len(diary_of(tmp_path)) == 3)
        stats = evaluator.stats()
        assert stats["queued"] == 4997
        assert sorted((host["slots"], host["queued"], host["sent"]) for host in stats["hosts"]) == [
            (1, 0, 1),
            (2, 0, 2),
        ]
        assert stats["workers"]["busy"] == 3
        evaluator.close()
        jobs = evaluator.gather("ALL")
        assert Counter(job.failure.kind for job in jobs) == {"cancelled": 5000}
    assert len(diary_of(tmp_path)) == 3


def test_jobs_behind_a_long_one_move_to_a_host_that_is_free(tmp_path: Path):
    """Short jobs are sent ahead; when one of them takes long, those behind it are run elsewhere, once."""
    with LocalHostsEvaluator(blocker(tmp_path), slots=(1,)) as evaluator:
        evaluator.submit([{"x": x, "waits": False} for x in range(200)])
        evaluator.gather("ALL")
        evaluator.submit([*waiting_jobs(1, 200), *({"x": x, "waits": False} for x in range(201, 221))])
        wait_until(lambda: diary_of(tmp_path)[200])
        evaluator.fleet.add(1)
        jobs = evaluator.gather("BATCH", 20)
        assert {job.metadata["host"] for job in jobs} <= {"0", "1"}
        assert "1" in {job.metadata["host"] for job in jobs}
        (tmp_path / "go").touch()
        assert [job.config["x"] for job in evaluator.gather("ALL")] == [200]
    assert diary_of(tmp_path) == dict.fromkeys(range(221), 1)


def test_the_budget_ends_what_runs_and_cancels_what_waits(tmp_path: Path):
    """On every host, also one that joins while it runs; a new budget lets jobs run again."""
    with LocalHostsEvaluator(blocker(tmp_path), slots=(1, 1)) as evaluator:
        evaluator.submit(waiting_jobs(6))
        wait_until(lambda: len(diary_of(tmp_path)) == 2)
        evaluator.set_timeout(0.2)
        jobs = evaluator.gather("ALL")
        assert Counter(job.failure.kind for job in jobs) == {"timeout": 2, "cancelled": 4}
        assert all("budget" in job.failure.message for job in jobs)
        evaluator.set_timeout(None)
        (tmp_path / "go").touch()
        evaluator.submit(waiting_jobs(2, 6))
        assert [job.failure for job in evaluator.gather("ALL")] == [None, None]


def test_limits_grace_and_what_was_printed_pass_through(tmp_path: Path):
    """job_timeout with a polite stop, its late result, the output's tail, and the log on the host's own disk."""

    def run(job):
        import time

        os.write(1, b"so far\n")
        try:
            time.sleep(30)
        except JobStop:
            assert job.stopped()
            return 7.0

    with LocalHostsEvaluator(run, job_timeout=0.3, grace_period=5.0, log_dir=tmp_path / "logs") as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
    assert (job.failure.kind, job.failure.late_result, job.failure.output_tail) == ("timeout", 7.0, "so far\n")
    assert (tmp_path / "logs" / f"{job.id}.log").read_text() == "so far\n"


def test_intermediate_values_come_while_the_job_runs(tmp_path: Path):
    """job.record reaches the driver before the job ends."""
    go = tmp_path / "go"

    def run(job):
        import time

        job.record(1, 0.5)
        while not go.exists():
            time.sleep(0.01)
        return 1.0

    with LocalHostsEvaluator(run, slots=(1,)) as evaluator:
        evaluator.submit([{"x": 1}])
        wait_until(lambda: evaluator.jobs[0].recorded)
        assert evaluator.jobs[0].recorded == [(1, 0.5)]
        go.touch()
        evaluator.gather("ALL")


def test_a_share_of_the_memory_is_each_hosts_own():
    """It is resolved where the job runs, and the failure tells the bytes."""

    def run(job):
        block = bytearray(200 * 2**20)
        return float(len(block))

    with LocalHostsEvaluator(run, slots=(1,), memory_limit=0.001, job_timeout=60) as evaluator:
        evaluator.submit([{"x": 1}])
        evaluator.submit([{"x": 2}], memory_limit="auto")
        failed, good = sorted(evaluator.gather("ALL"), key=lambda job: job.config["x"])
        assert failed.failure.kind == "memory"
        assert failed.failure.memory_limit == int(psutil.virtual_memory().total * 0.001)
        assert good.failure is None
        with pytest.raises(ValueError, match="memory_limit"):
            evaluator.submit([{"x": 3}], memory_limit="much")


def test_large_configurations_and_results_travel_whole():
    """Megabytes both ways, with no descriptor kept for those that wait."""
    import numpy as np

    def run(job):
        return {"objective": float(job["a"].sum()), "metadata": {"b": job["a"] + 1}}

    with nothing_left(), LocalHostsEvaluator(run) as evaluator:
        evaluator.submit([{"a": np.full(400_000, float(n))} for n in range(8)])
        for job in evaluator.gather("ALL"):
            assert job.objective == job.config["a"].sum()
            assert np.array_equal(job.metadata["b"], job.config["a"] + 1)
            del job.metadata["b"]


def test_what_is_too_large_to_travel_fails_alone(monkeypatch: pytest.MonkeyPatch):
    """A configuration in the driver; the others pass."""
    monkeypatch.setattr(pool.say, "LARGEST_BYTES", 100_000)
    with LocalHostsEvaluator(lambda job: len(job["x"])) as evaluator:
        evaluator.submit([{"x": b"1"}, {"x": b"1" * 200_000}, {"x": b"1" * 2_000_000}])
        kinds = {len(job.config["x"]): job.failure and job.failure.kind for job in evaluator.gather("ALL")}
    assert kinds == {1: None, 200_000: "unpicklable", 2_000_000: "unpicklable"}
    with pytest.raises(RobustEvalError, match="more than can travel"):
        LocalHostsEvaluator(lambda job, data=b"1" * 200_000: len(data))


def test_a_cancelled_job_settles_and_its_worker_is_killed(tmp_path: Path):
    """Through the pool's own call: one that runs, and one that waits."""
    with LocalHostsEvaluator(blocker(tmp_path), slots=(1,)) as evaluator:
        evaluator.submit(waiting_jobs(3))
        wait_until(lambda: len(diary_of(tmp_path)) == 1)
        evaluator._pool.cancel([0, 2])
        jobs = evaluator.gather("BATCH", 2)
        (tmp_path / "go").touch()
        jobs += evaluator.gather("ALL")
        assert {job.config["x"]: job.failure and job.failure.kind for job in jobs} == {
            0: "cancelled",
            1: None,
            2: "cancelled",
        }


def test_a_silent_host_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that is frozen loses its jobs; when it wakes up, it finds the driver gone and ends all that it has."""
    policy = HostPolicy(ping_s=0.3, silent_s=1.0)
    monkeypatch.setattr(pool, "HostPolicy", lambda *_: policy)
    with LocalHostsEvaluator(blocker(tmp_path)) as evaluator:
        evaluator.submit(waiting_jobs(3))
        wait_until(lambda: len(diary_of(tmp_path)) == 2)
        frozen = evaluator.fleet.processes[0]
        frozen.send_signal(signal.SIGSTOP)
        (job,) = evaluator.gather("BATCH", 1)
        assert "does not answer" in job.failure.message
        (tmp_path / "go").touch()
        frozen.send_signal(signal.SIGCONT)
        assert [job.failure for job in evaluator.gather("ALL")] == [None, None]


def test_strangers_are_turned_away():
    """Whoever does not know the secret is told nothing, whatever it says; the search goes on."""
    with LocalHostsEvaluator(double) as evaluator:
        address = evaluator.fleet.call.addresses[0]
        with pytest.raises(OSError, match=r".*"):
            calling._connect(address, b"a guess")
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n" * 10):
            with socket.create_connection(address) as stranger:
                stranger.sendall(said)
        evaluator.submit([{"x": 1}])
        assert evaluator.gather("ALL")[0].objective == 2.0
        wait_until(lambda: not evaluator._pool._exchange.strangers)


def test_a_host_does_not_serve_a_driver_that_is_not_the_one():
    """It hangs up on one that cannot prove that it knows the secret, and says where nobody is reached."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = door.getsockname()[:2]
        code = f"""
            import socket
            from robust_eval.evaluators.hosts.calling import _connect
            _connect({address!r}, b"secret")
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        ) as host:
            line, _ = door.accept()
            with line:
                line.sendall(bytes(calling.NONCE_BYTES))
                line.recv(calling.ANSWER_BYTES, socket.MSG_WAITALL)
                line.sendall(bytes(calling.PROOF_BYTES))
                assert "is not the driver that called" in host.communicate()[1]
    with pytest.raises(calling.Unreachable, match="cannot be reached"):
        calling.answer(calling.Call([address], b"secret"), 0.0)


def test_a_forked_child_of_the_driver_has_no_pool(tmp_path: Path):
    """It is refused there, and its copies of the connections are closed."""
    with LocalHostsEvaluator(double) as evaluator:
        evaluator.submit([{"x": 1}])
        evaluator.gather("ALL")

        def use():
            evaluator._pool.close()
            lines = [line.sock.fileno() for line in evaluator._pool._exchange.lines.values()]
            try:
                evaluator.submit([{"x": 2}])
            except RobustEvalError as error:
                return lines, str(error)

        lines, said = in_child(use)
        assert lines == [-1, -1]
        assert "forked child" in said
        evaluator.submit([{"x": 2}])
        assert evaluator.gather("ALL")[0].objective == 4.0


def test_hosts_end_with_a_driver_that_is_killed(tmp_path: Path):
    """Even where a forked child of it lives on."""
    code = f"""
        import os, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from hosts_here import LocalHostsEvaluator
        evaluator = LocalHostsEvaluator(lambda job: time.sleep(60))
        evaluator.submit([{{"x": 1}}] * 2)
        while evaluator.stats()["workers"].get("busy", 0) < 2:
            time.sleep(0.01)
        child = os.fork()
        if not child:
            time.sleep(60)
        print(child, *(process.pid for process in evaluator.fleet.processes), flush=True)
        time.sleep(60)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:
        child, *hosts = map(int, driver.stdout.readline().split())
        below = [
            process for pid in hosts for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        ]
        driver.kill()
    wait_until(lambda: not any(is_alive(process.pid) for process in below))
    os.kill(child, signal.SIGKILL)


def test_a_dropped_evaluator_ends_its_hosts():
    """Without close(), as soon as nobody refers to it."""
    evaluator = LocalHostsEvaluator(double)
    processes = evaluator.fleet.processes
    evaluator.submit([{"x": 1}])
    evaluator.gather("ALL")
    del evaluator
    wait_until(lambda: all(process.poll() is not None for process in processes))


def test_a_broken_thread_leaves_no_job_waiting(monkeypatch: pytest.MonkeyPatch):
    """Should the driver's own code fail, every job settles and the evaluator can be closed."""
    unhandled = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: unhandled.append(hook.exc_value))
    evaluator = LocalHostsEvaluator(double)
    evaluator.submit([{"x": 1}])
    evaluator.gather("ALL")

    def fail(now):
        msg = "a bug"
        raise ZeroDivisionError(msg)

    core = evaluator._pool._exchange.core
    turn = core.turn
    calls = iter([fail])
    monkeypatch.setattr(core, "turn", lambda now: next(calls, turn)(now))  # noqa: PLW0108 - another one each time
    evaluator.submit([{"x": 2}])
    assert [job.failure.kind for job in evaluator.gather("ALL")] == ["cancelled"]
    evaluator._pool._thread.join()
    assert [type(error) for error in unhandled] == [ZeroDivisionError]
    with pytest.raises(RobustEvalError, match="closed"):
        evaluator._pool.submit([Submission(9, pack(1))])
    evaluator.close()


def test_what_a_host_cannot_send_fails_alone():
    """A result that is too large to travel is told as such."""
    from robust_eval.evaluators.hosts.agent import _portable
    from robust_eval.processes.parcel import MISSING, Memory
    from robust_eval.processes.pending import Done

    row = _portable(Done(1, Memory(MISSING, 10), 0.0, 1.0, 1, 0))
    assert (row[0], row[1]["kind"], row[1]["attempts"]) == (1, "unpicklable", 1)
    row = _portable(Failed(2, {"kind": "timeout", "attempts": 3}, b"", Memory(MISSING, 10)))
    assert (row[0], row[1]["attempts"]) == (2, 3)
