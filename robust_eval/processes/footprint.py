"""How much memory a process tree takes: the quick sum, and the exact one.

The sum of resident sizes is cheap and an upper bound: memory shared by forks counts once for each. The exact one is of
proportional sizes plus swap, without the pages of mapped files, which the kernel takes back when it needs them
(`smaps_rollup`). It costs up to some milliseconds a process.
"""

import os
import signal
from collections.abc import Callable
from time import monotonic

from robust_eval.processes import system, tree

_EXACT = (b"Pss_Anon", b"Pss_Shmem", b"SwapPss")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Tree:
    """The memory of one worker and everything below it.

    Args:
        pid: the worker.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC) if system.LINUX else -1

    def resident_bytes(self) -> int:
        """The sum of resident sizes."""
        return self.own_bytes() + self.below_bytes()

    def below_bytes(self) -> int:
        """The same without the worker itself."""
        return sum(map(_resident_bytes, tree.descendants(self.pid)))

    def own_bytes(self) -> int:
        """The resident size of the worker itself; 0 where its main thread has ended."""
        if self._statm < 0:
            return _resident_bytes(self.pid)
        try:
            return int(os.pread(self._statm, 64, 0).split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def is_headless(self) -> bool:
        """Whether the main thread has ended and others go on: such a process never exits by itself."""
        try:
            return tree.state(self.pid) == "Z" and len(os.listdir(f"/proc/{self.pid}/task")) > 1
        except OSError:
            return False

    def close(self) -> None:
        """Close the kept file."""
        if self._statm >= 0:
            os.close(self._statm)


class Count:
    """The exact size of a tree, which is stopped for it and stays so until it is let go or killed.

    Counted part by part: a hundred processes take a twentieth of a second, in which other trees fill memory and other
    jobs come to their deadlines.

    Args:
        pid: the top of the tree.
    """

    def __init__(self, pid: int) -> None:
        self.begun_at = monotonic()
        self.used = 0
        self._stopped = tree.freeze(pid)
        self._left = [pid, *tree.descendants(pid)]

    def go_on(self, seconds: float) -> bool:
        """Count for so long, and at least one process. Whether all are counted."""
        ends_at = monotonic() + seconds
        while self._left:
            pid = self._left.pop()
            self.used += _exact_bytes(pid) or _of_a_thread(_exact_bytes, pid)
            if monotonic() >= ends_at:
                break
        return not self._left

    def let_go(self) -> None:
        """Have the tree go on."""
        tree.signal_all(self._stopped, signal.SIGCONT)


def _exact_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            kib = {name: int(size.split()[0]) for name, size in (line.split(b":") for line in file.readlines()[1:])}
        return 1024 * sum(kib[name] for name in _EXACT)
    except (ProcessLookupError, FileNotFoundError):
        return 0 if system.LINUX else _exact_by_psutil(pid)
    except (OSError, KeyError):  # undumpable, or another user's, or the kernel is older than Linux 5.9
        return _exact_by_psutil(pid)


def _exact_by_psutil(pid: int) -> int:
    import psutil

    try:
        info = psutil.Process(pid).memory_full_info()
        return int(getattr(info, "pss", info.rss) + getattr(info, "swap", 0))
    except psutil.AccessDenied:  # the upper bound counts
        return _resident_bytes(pid)
    except psutil.Error:
        return 0


def _resident_bytes(pid: int) -> int:
    if not system.LINUX:
        return _resident_by_psutil(pid)
    return _told_bytes(pid) or _of_a_thread(_told_bytes, pid)


def _of_a_thread(measure: Callable[[int], int], pid: int) -> int:
    """What a process takes whose main thread has ended: the kernel shows nothing for that, and all for the others."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0
    return max((measure(int(thread)) for thread in threads if int(thread) != pid), default=0)


def _told_bytes(task: int) -> int:
    try:
        return int(system.told(f"/proc/{task}/statm").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _resident_by_psutil(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def free_bytes() -> int:
    """Memory of the machine that nobody has: sysinfo(2), in half a microsecond."""
    return os.sysconf("SC_AVPHYS_PAGES") * _PAGE_BYTES if system.LINUX else 0
