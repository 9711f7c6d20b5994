"""How a supervisor and its workers are doing, in plain values."""

import os
import resource
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from robust_eval.supervision.actions import Outcome
from robust_eval.supervision.records import WorkerRecord
from robust_eval.supervision.supervisor import Supervisor

_REMEMBERED = 2


class Health:
    """What is counted over the life of one supervisor.

    Args:
        now: the present instant.
    """

    def __init__(self, now: float) -> None:
        self._started_at = now
        self._busy_s = 0.0
        self._slots: dict[int, int] = {}
        self._holders: dict[int, deque[int]] = {}

    def assigned(self, worker_id: int, slot: int) -> None:
        """A worker got its slot. The one before it in that slot is remembered too: its last job may settle later."""
        self._slots[worker_id] = slot
        holders = self._holders.setdefault(slot, deque())
        holders.append(worker_id)
        if len(holders) > _REMEMBERED:
            del self._slots[holders.popleft()]

    def settled(self, outcome: Outcome, worker_id: int | None) -> int | None:
        """A job settled: its last attempt kept a worker busy.

        Returns:
            The slot of the worker that ran it; None where nobody did.
        """
        if outcome.begun_at is not None and outcome.ended_at is not None:
            self._busy_s += outcome.ended_at - outcome.begun_at
        return None if worker_id is None else self._slots.get(worker_id)

    def describe(
        self,
        core: Supervisor,
        now: float,
        memory_of: Callable[[int], int],
        memory_limit_of: Callable[[int], int | None],
    ) -> dict[str, Any]:
        """The state of things.

        Args:
            core: the core.
            now: the present instant.
            memory_of: gives the bytes that the tree of a worker holds now.
            memory_limit_of: gives the limit in bytes of a job, or None.

        Returns:
            `queued` and `sent` jobs, `workers` by state, `workers_started` in all, `running` (for each worker with a
            job, by slot: `slot`, `state`, `job`, `seconds` that it has run, `job_timeout`, `memory` in bytes,
            `memory_limit`), `utilisation` (the share of the
            slots' time that settled jobs took, from 0 to 1), and of the supervisor process `uptime` and `cpu`
            (seconds), `memory` (bytes, resident) and open `descriptors`.
        """
        workers: dict[str, int] = {}
        for worker in core.roster.workers.values():
            name = worker.state.name.lower()
            workers[name] = workers.get(name, 0) + 1
        uptime_s = now - self._started_at
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "queued": core.book.queued,
            "sent": sum(len(worker.inbox) for worker in core.roster.workers.values()),
            "workers": workers,
            "workers_started": core.roster.started_count,
            "running": [
                _running(worker, now, memory_of(worker.worker_id), memory_limit_of(worker.inbox[0].job_id))
                for worker in sorted(core.roster.workers.values(), key=_slot)
                if worker.inbox and worker.slot is not None
            ],
            "utilisation": min(1.0, self._busy_s / (uptime_s * core.policy.num_workers)),
            "supervisor": {
                "uptime": uptime_s,
                "cpu": time.process_time(),
                "memory": _resident_bytes(usage.ru_maxrss),
                "descriptors": len(os.listdir("/dev/fd")),
            },
        }


def _slot(worker: WorkerRecord) -> int:
    return -1 if worker.slot is None else worker.slot


def _running(worker: WorkerRecord, now: float, memory: int, memory_limit: int | None) -> dict[str, Any]:
    job = worker.inbox[0]
    return {
        "slot": worker.slot,
        "state": worker.state.name.lower(),
        "job": job.job_id,
        "seconds": max(0.0, now - worker.since),
        "job_timeout": job.timeout_s,
        "memory": memory,
        "memory_limit": memory_limit,
    }


def _resident_bytes(peak_kib: int) -> int:
    """What is resident now, or where the system does not say, the most that ever was."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_kib * 1024
