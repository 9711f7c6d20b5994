"""Run functions for searches of DeepHyper: in a module without it, which a worker would otherwise import."""

import os
import signal
import time
from typing import Any


def run(job: Any) -> Any:
    """One behaviour for each choice."""
    match job["how"]:
        case "hang":
            while True:
                pass
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(0)
        case "hog":
            hoard = []
            while True:
                hoard.append(bytearray(4 * 10**7))
        case "raise":
            raise ValueError("diverged")
        case "nothing":
            return None
    return {"objective": -((job["x"] - 2) ** 2), "metadata": {"pid": os.getpid()}}


def double(job: Any) -> Any:
    return 2 * job["x"]


def hang_later(job: Any) -> Any:
    while job["job_id"]:
        time.sleep(60)
    return job["x"]


def fail_first(job: Any) -> Any:
    if job["job_id"] < 2:
        os._exit(1)
    return job["job_id"], -job["job_id"]


def climb(job: Any) -> Any:
    for budget in range(1, 10):
        job.record(budget, job["x"] * budget)
        if job["job_id"] == 2:
            os._exit(1)
        if job.stopped():
            break
    return {"objective": job.objective, "metadata": {"budget": budget}}
