"""What an evaluator promises, whatever its method: one function for each promise, and where each holds.

A promise is called with a maker of evaluators and with a directory of its own. It is also the row of a table in the
documentation, so its first line is written for readers. `mpicomm` makes its evaluators on all ranks at once: when this
module is the program, it is one rank.
"""

import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from robust_eval import Evaluator, JobStop, MemoryStorage

Make = Callable[..., Evaluator]
METHODS = ("serial", "thread", "process", "ray", "mpicomm")
KILLING = ("process", "ray", "mpicomm")
PROMISES: dict[str, tuple[Callable[[Make, Path], None], tuple[str, ...]]] = {}
CONFIGS = [{"x": x} for x in range(6)]


def holds(*methods: str) -> Callable[[Any], Any]:
    """Note a promise, and the methods that give it; the others must refuse what it needs."""

    def note(promise: Any) -> Any:
        PROMISES[promise.__name__] = promise, methods
        return promise

    return note


def double(job):
    return 2.0 * job["x"]


def faulty(job):
    if job["x"] == 3:
        msg = "three"
        raise KeyError(msg)
    return float("nan") if job["x"] == 4 else job["x"]


def sleepy(job):
    if job["x"] == 3:
        time.sleep(30)
    return job["x"]


def greedy(job):
    block = bytearray(job["x"] * 2**20)
    return len(block)


def deadly(job):
    if job["x"] == 3:
        os._exit(3)
    return job["x"]


def polite(job):
    try:
        time.sleep(30)
    except JobStop:
        return 7.0


def talking(job):
    os.write(1, b"said\n")
    return float("nan")


def recording(job):
    job.record(1, 0.5)
    return 1.0


def crossing(job):
    """Wait for the other one."""
    here, there = (Path(job["directory"]) / f"{x}" for x in (job["x"], 1 - job["x"]))
    here.touch()
    ends_at = time.monotonic() + 20.0
    while not there.exists() and time.monotonic() < ends_at:
        time.sleep(0.01)
    return float(there.exists())


def kinds_of(jobs: list[Any]) -> dict[Any, Any]:
    return {job.config["x"]: job.failure and job.failure.kind for job in jobs}


@holds(*METHODS)
def each_job_has_the_outcome_of_its_own_configuration(make: Make, directory: Path) -> None:
    """Each job settles once, with the objective of its own configuration"""
    with make(double) as evaluator:
        evaluator.submit(CONFIGS)
        jobs = evaluator.gather("ALL")
        evaluator.submit(CONFIGS)
        jobs += evaluator.gather("BATCH", 2)
        jobs += evaluator.gather("ALL")
        assert all(job.objective == 2.0 * job.config["x"] for job in jobs)
        assert Counter(job.config["x"] for job in jobs) == dict.fromkeys(range(6), 2)
        assert evaluator.stats()["jobs"]["unsettled"] == 0


@holds(*METHODS)
def an_exception_and_an_invalid_value_fail_their_jobs_alone(make: Make, directory: Path) -> None:
    """An exception or an invalid return value fails its own job alone, and says so"""
    with make(faulty) as evaluator:
        evaluator.submit(CONFIGS)
        jobs = evaluator.gather("ALL")
    assert kinds_of(jobs) == {0: None, 1: None, 2: None, 3: "exception", 4: "invalid", 5: None}
    assert next("three" in job.failure.traceback for job in jobs if job.config["x"] == 3)


@holds(*METHODS)
def failed_jobs_are_retried(make: Make, directory: Path) -> None:
    """Failed jobs are tried again (`max_retries`), and the attempts are counted"""
    with make(faulty, max_retries=1, retry_on="exception") as evaluator:
        evaluator.submit(CONFIGS)
        attempts = {job.config["x"]: job.failure.attempts for job in evaluator.gather("ALL") if job.failure}
    assert attempts == {3: 2, 4: 1}


@holds(*METHODS)
def a_budget_ends_the_search(make: Make, directory: Path) -> None:
    """The search's budget (`set_timeout`) settles everything when it is exhausted"""
    with make(polite) as evaluator:
        evaluator.set_timeout(0.5)
        evaluator.submit(CONFIGS)
        kinds = Counter(kinds_of(evaluator.gather("ALL")).values())
    assert "cancelled" in kinds
    assert kinds.keys() <= {"timeout", "cancelled"}, kinds


@holds(*METHODS)
def results_callbacks_and_storage_agree(make: Make, directory: Path) -> None:
    """CSV, callbacks and storage tell the same of every job"""

    class Count:
        def __init__(self) -> None:
            self.seen: Counter[str] = Counter()

        def on_launch(self, job: Any) -> None:
            self.seen["launch"] += 1

        def on_done(self, job: Any) -> None:
            self.seen["done"] += 1

    count, storage = Count(), MemoryStorage()
    with make(faulty, callbacks=[count], storage=storage) as evaluator:
        evaluator.submit(CONFIGS)
        jobs = evaluator.gather("ALL")
        evaluator.dump_evals(log_dir=directory)
        assert count.seen == {"launch": 6, "done": 6}
        table = pd.read_csv(directory / "results.csv")
        assert sorted(table["p:x"]) == list(range(6))
        assert Counter(table["m:failure"].dropna()) == {"exception": 1, "invalid": 1}
        for job in jobs:
            assert storage.load_job(job.id)["out"] == job.objective


@holds(*METHODS)
def closing_cancels_what_waits(make: Make, directory: Path) -> None:
    """`close()` is bounded, and cancels what has not begun"""
    with make(polite) as evaluator:
        evaluator.submit(CONFIGS)
        begun_at = time.monotonic()
        evaluator.close()
        assert time.monotonic() - begun_at < 20.0
        assert "cancelled" in kinds_of(evaluator.gather("ALL")).values()


@holds("thread", *KILLING)
def jobs_run_side_by_side(make: Make, directory: Path) -> None:
    """Several jobs run at once"""
    with make(crossing) as evaluator:
        evaluator.submit([{"x": x, "directory": str(directory)} for x in range(2)])
        assert [job.objective for job in evaluator.gather("ALL")] == [1.0, 1.0]


@holds(*KILLING)
def job_timeout_kills(make: Make, directory: Path) -> None:
    """`job_timeout`: a job that takes too long is killed"""
    with make(sleepy, job_timeout=0.5) as evaluator:
        evaluator.submit(CONFIGS)
        assert kinds_of(evaluator.gather("ALL")) == {x: "timeout" if x == 3 else None for x in range(6)}


@holds(*KILLING)
def memory_limit_kills(make: Make, directory: Path) -> None:
    """`memory_limit`: a job whose processes take too much memory is killed"""
    with make(greedy, memory_limit="300MiB") as evaluator:
        evaluator.submit([{"x": x} for x in (1, 600, 2)])
        assert kinds_of(evaluator.gather("ALL")) == {1: None, 600: "memory", 2: None}


@holds(*KILLING)
def a_stop_is_polite_first(make: Make, directory: Path) -> None:
    """`grace_period`: a job is asked to stop before it is killed, and its late result is kept"""
    with make(polite, job_timeout=0.3, grace_period=10.0) as evaluator:
        evaluator.submit([{"x": 1}])
        assert evaluator.gather("ALL")[0].failure.late_result == 7.0


@holds(*KILLING)
def a_crash_costs_its_own_job(make: Make, directory: Path) -> None:
    """A job that ends its process (a crash, `exit`, the OOM killer) costs itself alone"""
    with make(deadly) as evaluator:
        evaluator.submit(CONFIGS)
        assert kinds_of(evaluator.gather("ALL")) == {x: "crash" if x == 3 else None for x in range(6)}


@holds(*KILLING)
def output_is_kept(make: Make, directory: Path) -> None:
    """What a job prints is kept: the end of it on its failure, all of it in `log_dir`"""
    with make(talking, log_dir=directory) as evaluator:
        evaluator.submit([{"x": 1}])
        (job,) = evaluator.gather("ALL")
    assert job.failure.output_tail == "said\n"
    assert (directory / f"{job.id}.log").read_text() == "said\n"


@holds(*KILLING)
def intermediate_values_arrive(make: Make, directory: Path) -> None:
    """`job.record`: intermediate values come to the driver while the job runs"""
    with make(recording) as evaluator:
        evaluator.submit([{"x": 1}])
        assert evaluator.gather("ALL")[0].recorded == [(1, 0.5)]


NEEDS = {
    "job_timeout_kills": {"job_timeout": 1.0},
    "memory_limit_kills": {"memory_limit": "1GiB"},
    "a_stop_is_polite_first": {"grace_period": 1.0},
    "output_is_kept": {"log_dir": "."},
}


def title_of(name: str) -> str:
    """The promise in words."""
    return str(PROMISES[name][0].__doc__)


def table() -> str:
    """What holds where, in Markdown."""
    lines = ["| | " + " | ".join(f"`{method}`" for method in METHODS) + " |", "|---|" + ":-:|" * len(METHODS)]
    for name, (_, methods) in PROMISES.items():
        marks = " | ".join("yes" if method in methods else "no" for method in METHODS)
        lines.append(f"| {title_of(name)} | {marks} |")
    return "\n".join(lines)


def _rank(directory: Path) -> None:
    """Be one rank: the root keeps every promise that it can, the others join in."""
    from mpi4py import MPI

    from robust_eval import MPICommEvaluator
    from robust_eval.evaluators.mpicomm import _meet

    comm = MPI.COMM_WORLD

    def make(run: Any, **kwargs: Any) -> Evaluator:
        _meet(comm)
        comm.bcast(True)
        return MPICommEvaluator(run, **kwargs)

    if comm.Get_rank():
        while _meet(comm) and comm.bcast(None):
            with MPICommEvaluator(double):
                pass
        return
    kept: dict[str, str] = {}
    for name, (promise, methods) in PROMISES.items():
        if "mpicomm" in methods:
            (directory / name).mkdir()
            try:
                promise(make, directory / name)
                kept[name] = ""
            except Exception:  # noqa: BLE001 - told to the test
                kept[name] = traceback.format_exc()
    _meet(comm)
    comm.bcast(False)
    (directory / "kept.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    import contract  # the functions of a module travel by name

    contract._rank(Path(sys.argv[1]))
