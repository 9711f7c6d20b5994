"""How all hosts are doing, put together from what each one's supervisor tells."""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

_SUMMED = ("cpu", "memory", "descriptors")


class Answers:
    """The answers of all hosts to one question. Given in the pool's thread, awaited in another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._missing: set[int] | None = None
        self._waiting = 0
        self._given: dict[int, dict[str, Any]] = {}

    def expect(self, host_ids: Iterable[int], waiting: int) -> None:
        """These hosts are asked; so many jobs wait in the driver."""
        with self._changed:
            self._missing, self._waiting, self._given = set(host_ids), waiting, {}
            self._changed.notify_all()

    def give(self, host_id: int, stats: dict[str, Any]) -> None:
        """The host has answered."""
        with self._changed:
            self._given[host_id] = stats
            self._strike(host_id)

    def give_up(self, host_id: int) -> None:
        """The host will not answer."""
        with self._changed:
            self._strike(host_id)

    def _strike(self, host_id: int) -> None:
        if self._missing is not None:
            self._missing.discard(host_id)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> dict[str, Any]:
        """What was told within the time, summed up as one pool tells it; see `processes.health`."""
        with self._changed:
            self._changed.wait_for(lambda: self._missing is not None and not self._missing, timeout_s)
            self._missing = None
            return _summed(self._given, self._waiting)


def _summed(hosts: dict[int, dict[str, Any]], waiting: int) -> dict[str, Any]:
    told = [stats for stats in hosts.values() if "queued" in stats]
    workers: Counter[str] = Counter()
    for stats in told:
        workers.update(stats["workers"])
    slots = sum(stats["slots"] for stats in told)
    supervisors = [stats["supervisor"] for stats in told]
    return {
        "queued": waiting + sum(stats["queued"] for stats in told),
        "sent": sum(stats["sent"] for stats in told),
        "workers": dict(workers),
        "workers_started": sum(stats["workers_started"] for stats in told),
        "utilisation": sum(stats["utilisation"] * stats["slots"] for stats in told) / slots if slots else 0.0,
        "supervisor": {
            "uptime": max((one["uptime"] for one in supervisors), default=0.0),
            **{name: sum(one[name] for one in supervisors) for name in _SUMMED},
        },
        "hosts": list(hosts.values()),
    }
