"""Whether another driver of a search still lives: exactly on this machine, by its heartbeat on any other.

A process is known by its number, the instant of its start, the machine's boot and the process namespace, so that a
number that is used again, a reboot or another container is never mistaken for it. Of another machine only durations are
compared: a driver whose heartbeat does not change for `LEASE_S`, by the clock of the one who looks, is dead.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from robust_eval.storage.durable import Driver

BEAT_S: Final = 2.0
LEASE_S: Final = 15.0
_LOOK_S: Final = 0.5
_START_FIELD: Final = 19  # of /proc/PID/stat behind the name: starttime, field 22 of proc(5)


def identity() -> dict[str, Any]:
    """Describe this process so that others can tell whether it still lives."""
    return {**_machine(), "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def lives(who: dict[str, Any]) -> bool | None:
    """Tell whether a process lives; ``None`` where that cannot be known from here."""
    here = _machine()
    if any(who.get(key) != value for key, value in here.items()):
        return None
    started = _started(int(who["pid"]))
    return started is not None and started == who["started"]


def dead_among(load: Callable[[], Iterable[Driver]], own: str, lease_s: float = LEASE_S) -> list[Driver]:
    """Give the drivers that have ended or died.

    Args:
        load: gives all drivers of the search.
        own: the driver who asks.
        lease_s: how long a driver on another machine is watched for a heartbeat; nothing waits where there is none.
    """
    drivers = [driver for driver in load() if driver.id != own]
    dead = [driver for driver in drivers if driver.gone or lives(driver.identity) is False]
    beats = {driver.id: driver.beat for driver in drivers if not driver.gone and lives(driver.identity) is None}
    ends_at = time.monotonic() + lease_s
    while beats and time.monotonic() < ends_at:
        threading.Event().wait(_LOOK_S)
        now = {driver.id: driver.beat for driver in load()}
        beats = {each: beat for each, beat in beats.items() if now.get(each) == beat}
    return dead + [driver for driver in drivers if driver.id in beats]


def _machine() -> dict[str, Any]:
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            "namespace": str(Path("/proc/self/ns/pid").readlink()),
        }
    except OSError:  # pragma: no cover - macOS
        return {"boot": f"{socket.gethostname()} {psutil.boot_time():.0f}", "namespace": ""}


def _started(pid: int) -> float | None:
    """When a process started, in a unit of the system; ``None`` where there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return _started_elsewhere(pid)
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return None if state in {b"Z", b"X"} else float(fields[_START_FIELD - 1])


def _started_elsewhere(pid: int) -> float | None:
    """The same by psutil, where there is no /proc."""
    if Path("/proc/self/stat").exists():
        return None
    try:  # pragma: no cover - macOS
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # pragma: no cover - macOS
        return None
