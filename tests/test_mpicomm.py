"""`method="mpicomm"` on real ranks, started by mpiexec. That all of the contract holds is in test_methods_contract."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="the extra `mpi` is not installed")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path("/dev/shm")
MPIEXEC = Path(sys.executable).with_name("mpiexec")
BEGIN = """
import os, sys, time
from robust_eval import Evaluator, MPICommEvaluator, RobustEvalError
from mpi4py import MPI
"""


def run_ranks(code: str, ranks: int = 3, *arguments: str) -> tuple[int, str]:
    """Exit code of the MPI job, and all that its ranks printed."""
    launcher = [str(MPIEXEC), "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, "-c", BEGIN + textwrap.dedent(code), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    segments = set(SHARED.glob("mpich_shm_*"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode:  # an MPI that is ended by a kill leaves its own shared memory
        for segment in set(SHARED.glob("mpich_shm_*")) - segments:
            segment.unlink(missing_ok=True)
    return done.returncode, done.stdout + done.stderr


def test_only_the_root_gets_the_evaluator_and_idle_ranks_sleep():
    """The others get None when it is over; while they wait they use next to no processor, and each is a slot."""
    code = """
    def run(job):
        return {"objective": job["x"], "metadata": {"rank": [n for n in os.environ if n.startswith(("PMI_", "PMIX_"))]}}

    begun, used = time.monotonic(), time.process_time()
    with MPICommEvaluator(run) as evaluator:
        if evaluator is not None:
            assert evaluator.num_workers == 2 and evaluator.is_master
            evaluator.submit([{"x": x} for x in range(50)])
            jobs = evaluator.gather("ALL")
            assert sorted(job.objective for job in jobs) == list(range(50))
            assert all(job.metadata["rank"] == [] for job in jobs), "a job takes itself for a rank"
            assert [host["slots"] for host in evaluator.stats()["hosts"]] == [2]
            evaluator._pool.wait_until_idle()
            time.sleep(2.0)
    used = time.process_time() - used
    said = f"rank {MPI.COMM_WORLD.Get_rank()} {evaluator is None} {used < 0.5 * (time.monotonic() - begun)}\\n"
    os.write(1, said.encode())
    """
    status, said = run_ranks(code)
    assert status == 0, said
    assert sorted(line for line in said.splitlines() if line.startswith("rank")) == [
        "rank 0 False True",
        "rank 1 True True",
        "rank 2 True True",
    ]


def test_a_single_rank_runs_its_jobs_itself():
    """Without mpiexec, or with one rank; the limits hold as ever."""
    code = """
    with Evaluator.create(lambda job: os._exit(3) if job["x"] == 1 else 1.0, "mpicomm") as evaluator:
        evaluator.submit([{"x": x} for x in range(3)])
        print(sorted(job.failure.kind if job.failure else "ok" for job in evaluator.gather("ALL")))
    """
    status, said = run_ranks(code, 0)
    assert status == 0, said
    assert "['crash', 'ok', 'ok']" in said


def test_a_job_of_a_single_rank_is_no_rank():
    """What the launcher told the root does not reach its jobs, which may be MPI programs of their own."""
    code = """
    assert any(name.startswith("PMI") for name in os.environ)
    with MPICommEvaluator(lambda job: sum(name.startswith("PMI") for name in os.environ)) as evaluator:
        evaluator.submit([{"x": 1}])
        print("seen:", evaluator.gather("ALL")[0].objective)
    """
    status, said = run_ranks(code, 1)
    assert status == 0, said
    assert "seen: 0" in said


def test_leaving_the_block_can_wait_for_jobs_or_for_nothing():
    """cancel_jobs_on_exit=False lets all jobs finish; wait_on_exit=False goes on at once; jobs stay gatherable."""
    code = """
    def run(job):
        time.sleep(job["s"])
        return 1.0

    with MPICommEvaluator(run, cancel_jobs_on_exit=False) as first:
        if first is not None:
            first.submit([{"s": 0.2}] * 5)
    with MPICommEvaluator(run, num_workers=1, wait_on_exit=False) as second:
        if second is not None:
            second.submit([{"s": 30.0}] * 3)
    if first is not None:
        print([job.objective for job in first.gather("ALL")], {job.failure.kind for job in second.gather("ALL")})
    """
    status, said = run_ranks(code)
    assert status == 0, said
    assert "[1.0, 1.0, 1.0, 1.0, 1.0] {'cancelled'}" in said


def test_what_is_wrong_is_said_and_nobody_waits():
    """Bad arguments, and use before it is entered, are errors on the root; the other ranks go on."""
    code = """
    root = MPI.COMM_WORLD.Get_rank() == 0
    for arguments in ({"num_workers": 3}, {"job_timeout": -1}):
        try:
            with MPICommEvaluator(lambda job: 1.0, **arguments) as evaluator:
                assert evaluator is None
        except ValueError as error:
            print("said:", error, flush=True)
            assert root
    evaluator = MPICommEvaluator(lambda job: 1.0)
    if root:
        try:
            evaluator.submit([{"x": 1}])
        except RobustEvalError as error:
            print("said:", error, flush=True)
        evaluator.close()
    else:
        with evaluator as nothing:
            assert nothing is None
    """
    status, said = run_ranks(code)
    assert status == 0, said
    assert "num_workers=3 is more than the 2 ranks beside the root" in said
    assert "job_timeout=-1" in said
    assert "Enter the evaluator on every rank" in said


def test_abort_on_exit_ends_all_ranks():
    """With an exit code that says so, after the workers are gone (which the test run looks for)."""
    code = """
    with MPICommEvaluator(lambda job: 1.0, abort_on_exit=True) as evaluator:
        if evaluator is not None:
            evaluator.submit([{"x": 1}])
            assert evaluator.gather("ALL")[0].objective == 1.0
    while True:
        time.sleep(1)
    """
    status, _ = run_ranks(code)
    assert status != 0


@pytest.mark.parametrize("victim", ["rank", "root"])
def test_a_rank_that_is_killed_ends_the_job_and_leaves_nothing(victim: str):
    """Every MPI ends the whole job then; no worker of ours survives it (which the test run looks for)."""
    code = """
    def run(job):
        time.sleep(60)

    with MPICommEvaluator(run) as evaluator:
        if evaluator is not None:
            evaluator.submit([{"x": x} for x in range(2)])
            while evaluator.stats()["workers"].get("busy", 0) < 2:
                time.sleep(0.01)
            host = int(evaluator.stats()["hosts"][0]["about"].rpartition(" ")[2])
            os.kill(os.getpid() if sys.argv[1] == "root" else host, 9)
            time.sleep(60)
    """
    begun_at = time.monotonic()
    status, _ = run_ranks(code, 3, victim)
    assert status != 0
    assert time.monotonic() - begun_at < 50.0


def test_workers_run_on_all_processors_of_their_ranks():
    """Where the launcher bound the leading rank to one processor, its workers use those of the other ranks as well."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    code = """
    mine = sorted(os.sched_getaffinity(0))[MPI.COMM_WORLD.Get_rank() % 2]
    os.sched_setaffinity(0, {mine})
    with MPICommEvaluator(lambda job: len(os.sched_getaffinity(0))) as evaluator:
        if evaluator is not None:
            evaluator.submit([{"x": x} for x in range(4)])
            print({job.objective for job in evaluator.gather("ALL")})
    assert os.sched_getaffinity(0) == {mine}
    """
    status, said = run_ranks(code)
    assert status == 0, said
    assert "{2.0}" in said
