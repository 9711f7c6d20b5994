"""Find and signal the processes below a worker.

Linux lists the children of each thread in `/proc` (10 us, against milliseconds for a scan of every process); psutil
is the way where the kernel was built without that list, and on macOS. psutil is imported only when it is needed: the
template pays for every import with the start of the first worker.
"""

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress

from robust_eval.processes import system

# Of `multiprocessing`, and of joblib (scikit-learn's `n_jobs`), whose loky has one of its own. Other commands of users
# may speak of them, too.
_TRACKERS = (
    b"from multiprocessing.resource_tracker import main",
    b"from joblib.externals.loky.backend.resource_tracker import main",
    b"from loky.backend.resource_tracker import main",
)
_LINKS_OF_ONE_THREAD = 3  # a directory's own two, and one for each directory in it
_WALL = 0x40000000 if sys.platform == "linux" else 0  # also children made by clone() without SIGCHLD
_waitpid = os.waitpid  # a job may put something else in its place
_KERNEL_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def children(pid: int) -> list[int]:
    """Ids of the direct children of a process, unreaped ones included; empty when it is gone."""
    if not _KERNEL_LISTS_CHILDREN:
        return _scan(pid)
    found: list[int] = []
    tasks = f"/proc/{pid}/task"
    try:
        alone = os.stat(tasks).st_nlink == _LINKS_OF_ONE_THREAD
        threads = [str(pid)] if alone else os.listdir(tasks)
    except OSError:
        return found
    for thread in threads:
        try:
            found.extend(map(int, system.told(f"{tasks}/{thread}/children").split()))
        except OSError:  # this thread ended; the others' children still count
            continue
    return found


def living_children() -> frozenset[int]:
    """The living children of this process; the dead ones are reaped. Costs 2 us where there are none."""
    try:
        while _waitpid(-1, os.WNOHANG | _WALL)[0]:
            pass
    except ChildProcessError:
        return frozenset()
    return frozenset(children(os.getpid()))


def _scan(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def descendants(pid: int) -> list[int]:
    """Ids of everything below a process, nearest first."""
    found = children(pid)
    for child in found:
        found.extend(children(child))
    return found


def is_tracker(pid: int) -> bool:
    """Whether this is, or may become, a helper that unlinks shared memory at the end.

    A process in the middle of an exec has no command line; its parent is told of the exec before that is there.
    """
    command = _command(pid)
    return any(tracker in command for tracker in _TRACKERS) if command else is_there(pid)


def _command(pid: int) -> bytes:
    """The command line; empty where there is none, or no such process."""
    if not system.LINUX:  # pragma: no cover - macOS
        return _command_by_psutil(pid)
    with suppress(OSError):
        return system.told(f"/proc/{pid}/cmdline")
    return b""


def _command_by_psutil(pid: int) -> bytes:  # pragma: no cover - macOS
    import psutil

    try:
        return "\0".join(psutil.Process(pid).cmdline()).encode()
    except psutil.Error:
        return b""


def wants_to_run(pid: int) -> bool:
    """Whether the process has something to do and waits for a core or a disk."""
    return state(pid) in {"R", "D"}


def is_there(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    return state(pid) not in {"", "Z", "X"}


def state(pid: int) -> str:
    """The kernel's letter for what a process does; empty where there is no such process.

    It is asked for in the middle of a kill, where the import of psutil would keep all others waiting for 30 ms.
    """
    if not system.LINUX:  # pragma: no cover - macOS
        return _state_by_psutil(pid)
    with suppress(OSError):
        return system.told(f"/proc/{pid}/stat").rpartition(b") ")[2][:1].decode()
    return ""


def _state_by_psutil(pid: int) -> str:  # pragma: no cover - macOS
    import psutil

    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return ""
    letters = {psutil.STATUS_RUNNING: "R", psutil.STATUS_DISK_SLEEP: "D", psutil.STATUS_ZOMBIE: "Z"}
    return letters.get(status, "S")


def tracer_of(pid: int) -> int:
    """Id of the process that traces this one, which may be a zombie; 0 where there is none."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"TracerPid:"))
    except (OSError, StopIteration):
        return 0


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def freeze(pid: int) -> list[int]:
    """Stop a process and everything below it, until nothing new appears. Returns all of them, the top first.

    Each is stopped as it is found: to look through a hundred takes milliseconds, in which they could fill memory. The
    kernel lets a fork that has begun come to its end: its child may appear later, and runs.
    """
    stopped, count = [pid], 0
    known = {pid}
    signal_all(stopped, signal.SIGSTOP)
    while len(stopped) > count:
        count = len(stopped)
        for each in stopped:  # which grows meanwhile
            fresh = [child for child in children(each) if child not in known]
            signal_all(fresh, signal.SIGSTOP)
            known.update(fresh)
            stopped.extend(fresh)
    return stopped


def kill_below(pid: int) -> bool:
    """Kill everything below a process, but not the trackers of its shared memory. Whether there was anything.

    A tracker that was stopped with the tree goes on: it has to unlink what the dead have left.
    """
    below = descendants(pid)
    for child in below:
        signal_all([child], signal.SIGCONT if is_tracker(child) else signal.SIGKILL)
    return bool(below)


def with_cookie(cookie: str) -> list[int]:
    """Ids of all other processes whose environment holds the cookie: the second net."""
    needle = cookie.encode()
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if needle in file.read():
                        found.append(int(name))
            except OSError:
                continue
    return found
