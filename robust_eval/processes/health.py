"""How a supervisor and its workers are doing, in plain values."""

import os
import resource
import time
from typing import Any

from robust_eval.supervision.actions import Outcome
from robust_eval.supervision.supervisor import Supervisor


class Health:
    """What is counted over the life of one supervisor.

    Args:
        now: the present instant.
    """

    def __init__(self, now: float) -> None:
        self._started_at = now
        self._busy_s = 0.0

    def settled(self, outcome: Outcome) -> None:
        """A job settled: its last attempt kept a worker busy."""
        if outcome.begun_at is not None and outcome.ended_at is not None:
            self._busy_s += outcome.ended_at - outcome.begun_at

    def describe(self, core: Supervisor, now: float) -> dict[str, Any]:
        """The state of things.

        Returns:
            `queued` and `sent` jobs, `workers` by state, `workers_started` in all, `utilisation` (the share of the
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
            "utilisation": min(1.0, self._busy_s / (uptime_s * core.policy.num_workers)),
            "supervisor": {
                "uptime": uptime_s,
                "cpu": time.process_time(),
                "memory": _resident_bytes(usage.ru_maxrss),
                "descriptors": len(os.listdir("/dev/fd")),
            },
        }


def _resident_bytes(peak_kib: int) -> int:
    """What is resident now, or where the system does not say, the most that ever was."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_kib * 1024
