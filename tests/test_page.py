"""A job that writes over the page which its worker shares with the supervisor."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from robust_eval import Evaluator, Job, RunningJob

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

WORKERS = 2


def fill(byte: int) -> None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, *_ = line.split()
        first, last = (int(address, 16) for address in where.split("-"))
        if "memfd:robust_eval" in line and rights == "rw-s" and last - first < 2**20:
            ctypes.memset(first, byte, last - first)
            return
    raise AssertionError("no page is shared")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


def go_on() -> None:
    """Return, as if nothing were."""


def run(job: RunningJob) -> int:
    if job["ending"] is not None:
        fill(job["byte"])
        job["ending"]()
    return int(job["x"])


@pytest.mark.parametrize("byte", [0, 0x55, 0xFF])
@pytest.mark.parametrize(("ending", "kinds"), [(die, {"crash"}), (go_on, {"crash"}), (hang, {"crash", "timeout"})])
def test_the_job_that_did_it_is_charged(byte: int, ending: Callable[[], None], kinds: set[str]):
    """It is not tried again; of the others some may have lost what they returned, and are told so."""

    def config(x: int, *, guilty: bool = False) -> dict[str, object]:
        return {"x": x, "byte": byte, "ending": ending if guilty else None}

    limits = {"num_workers": WORKERS, "job_timeout": 0.5}
    with Evaluator.create(run, method="process", method_kwargs=limits) as evaluator:
        evaluator.submit([config(-1, guilty=True)])
        (alone,) = evaluator.gather("ALL")
        evaluator.submit([config(x, guilty=x == 40) for x in range(80)])
        jobs = {job.config["x"]: job for job in evaluator.gather("ALL")}
        evaluator.submit([config(x) for x in range(80)])
        after = evaluator.gather("ALL")
    assert {kind_of(alone), kind_of(jobs.pop(40))} <= kinds
    assert {kind_of(job) for job in jobs.values()} <= {None, "lost"}
    for x, job in jobs.items():
        assert job.objective == x or "wrote over its result" in job.failure.message
    assert [job.objective for job in sorted(after, key=lambda job: job.config["x"])] == list(range(80))


def kind_of(job: Job) -> str | None:
    return None if job.failure is None else job.failure.kind
