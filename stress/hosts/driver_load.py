"""What the driver does per job and per host: its real code against hosts that answer at once and run nothing.

    python -m stress.hosts.driver_load --jobs 1000000 --hosts 100

- bytes per queued job: jobs that are submitted to a driver without hosts
- jobs per second through the pure core alone, with so many simulated hosts of 16 slots
"""

import argparse
import os
import time

import psutil

from robust_eval import Evaluator
from robust_eval.evaluators.hosts.evaluator import HostsEvaluator
from robust_eval.evaluators.hosts.pool import HostsPool
from robust_eval.supervision.host_actions import HostPolicy, Send, Told
from robust_eval.supervision.hosts import Hosts

SLOTS = 16


class Nobody:
    """A fleet whose hosts never come."""

    waits = False

    def names(self) -> list[str]:
        return ["127.0.0.1"]

    def start(self, call: object, pool: HostsPool) -> None:
        pool.awaits(True)

    def stop(self) -> None:
        """Nothing was started."""


class WaitingEvaluator(HostsEvaluator):
    def _fleet(self) -> Nobody:
        return Nobody()


def queued(jobs: int) -> None:
    """Submit jobs that nobody takes, and say what they cost."""
    me = psutil.Process(os.getpid())
    with WaitingEvaluator(lambda job: 1.0) as evaluator:
        assert isinstance(evaluator, Evaluator)
        before, begun_at = me.memory_info().rss, time.monotonic()
        for first in range(0, jobs, 10_000):
            evaluator.submit([{"x": x, "rate": 0.1, "kind": "a"} for x in range(first, min(jobs, first + 10_000))])
        submitted_s = time.monotonic() - begun_at
        while evaluator.stats()["queued"] < jobs:
            time.sleep(0.05)
        used = me.memory_info().rss - before
        pool_bytes = sum(len(submission.parcel) for submission in evaluator._pool._exchange.jobs.values()) / jobs
        print(f"{jobs} queued: {used / jobs:.0f} bytes each (payload {pool_bytes:.0f}), ", end="")  # noqa: T201
        print(f"{jobs / submitted_s:.0f} submitted a second", flush=True)  # noqa: T201
        begun_at = time.monotonic()
    print(f"close: {time.monotonic() - begun_at:.1f} s", flush=True)  # noqa: T201


def shared(jobs: int, hosts: int, duration_s: float, batch: int) -> None:
    """Share jobs out among simulated hosts that finish them in batches."""
    core = Hosts(HostPolicy(), 0.0)
    for host_id in range(hosts):
        core.joined(host_id, SLOTS, 0.0)
    begun_at = time.monotonic()
    core.submitted(range(jobs))
    done = turns = 0
    held: dict[int, list[int]] = {host_id: [] for host_id in range(hosts)}
    while done < jobs:
        for action in core.turn(0.0):
            if isinstance(action, Send):
                held[action.host_id] += action.job_ids
        for host_id, job_ids in held.items():
            over, held[host_id] = job_ids[:batch], job_ids[batch:]
            if over:
                done += len(core.told(host_id, [Told(job_id, duration_s) for job_id in over], 0.0))
                turns += 1
    took_s = time.monotonic() - begun_at
    print(f"{hosts} hosts, jobs of {duration_s:g} s: {jobs / took_s:.0f} jobs/s, {1e6 * took_s / turns:.0f} us/batch")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 10, 100])
    given = parser.parse_args()
    for hosts in given.hosts:
        shared(given.jobs // 5, hosts, 1e-4, 64)
        shared(given.jobs // 5, hosts, 1.0, SLOTS)
    queued(given.jobs)


if __name__ == "__main__":
    main()
