"""How much memory a worker's process tree takes, and when it must be looked at again.

The sum of resident sizes is cheap and an upper bound: memory shared by forks counts once for each. Where that sum is
over the limit the tree is stopped, so that it cannot go on filling memory, and the sum of proportional sizes plus swap
decides, without the pages of mapped files, which the kernel takes back when it needs them (`smaps_rollup`). What the
two sums differ by is taken off the cheap one for a while: that sum is blind to forks which write to what they shared,
so the exact one is asked again, as often as a tenth of the tree's time pays for it, or a third of it where the
machine's free memory has become less meanwhile, which costs nothing to know. A tree is looked at when it could next
have crossed its limit at the fastest rate at which pages can be filled.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from heapq import heappop, heappush
from time import monotonic

from robust_eval.processes import system, tree

_FILL_BYTES_PER_S = 6 * 2**30
_LEAST_TOLERANCE_BYTES = 64 * 2**20
_SHORTEST_S, _LONGEST_S = 0.001, 0.5
_PACE, _PACE_IN_NEED = 10, 2
_HEADLESS_S = 0.5
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
        return self.own_bytes() + sum(map(_resident_bytes, tree.descendants(self.pid)))

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
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                ended = file.read().rpartition(b")")[2].split()[0] == b"Z"
            return ended and len(os.listdir(f"/proc/{self.pid}/task")) > 1
        except OSError:
            return False

    def exact_bytes(self) -> int:
        """The sum of proportional sizes and swap without mapped files, with the tree stopped by the caller."""
        pids = (self.pid, *tree.descendants(self.pid))
        return sum(_exact_bytes(pid) or _of_a_thread(_exact_bytes, pid) for pid in pids)

    def close(self) -> None:
        """Close the kept file."""
        if self._statm >= 0:
            os.close(self._statm)


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
        with open(f"/proc/{task}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _resident_by_psutil(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


class _Watch:
    """One tree with a job in it."""

    __slots__ = ("asked_at", "cost_s", "due_at", "free", "headless_since", "limit", "peak", "shared", "tree", "used")

    def __init__(self, watched: Tree) -> None:
        self.tree = watched
        self.limit: int | None = None
        self.due_at: float | None = None
        self.headless_since: float | None = None
        self.peak = 0
        self.shared = 0
        self.asked_at = self.cost_s = 0.0
        self.free = 0
        self.used = 0

    def is_stale(self, now: float) -> bool:
        """Whether the exact sum should be asked again."""
        waited_s = now - self.asked_at
        if waited_s < _PACE_IN_NEED * self.cost_s:
            return False
        return waited_s >= _PACE * self.cost_s or self.free - _free_bytes() > _tolerance_bytes(self.limit or 0) // 4

    def note_exact(self, cost_s: float) -> None:
        """The exact sum was asked, which took so long; the tree goes on now."""
        self.asked_at, self.cost_s, self.free = monotonic(), cost_s, _free_bytes()


class Meter:
    """Looks at the trees of workers that run jobs, each when it could next be over its limit."""

    def __init__(self) -> None:
        self._watches: dict[int, _Watch] = {}
        self._heap: list[tuple[float, int]] = []

    def add(self, worker_id: int, pid: int) -> None:
        """A worker exists."""
        with contextlib.suppress(OSError):
            self._watches[worker_id] = _Watch(Tree(pid))

    def remove(self, worker_id: int) -> None:
        """A worker is gone."""
        watch = self._watches.pop(worker_id, None)
        if watch is not None:
            watch.tree.close()

    def begin(self, worker_id: int, limit: int | None, now: float) -> None:
        """The worker's next job has this limit in bytes, or none."""
        watch = self._watches.get(worker_id)
        if watch is None:
            return
        watch.limit = limit
        watch.peak = watch.shared = 0
        self._arm(worker_id, watch, now + _interval_s(limit, watch.used))

    def _arm(self, worker_id: int, watch: _Watch, at: float) -> None:
        """Look at this instant, or before where that was due already. The later entry of the heap is passed over."""
        if watch.due_at is None or at < watch.due_at:
            watch.due_at = at
            heappush(self._heap, (at, worker_id))

    def peak_bytes(self, worker_id: int) -> int:
        """The most that was seen of the tree since its job began."""
        watch = self._watches.get(worker_id)
        return watch.peak if watch is not None else 0

    def note(self, worker_id: int) -> None:
        """Take what the tree holds now for its peak: it may be killed next, and without a limit nobody has looked."""
        watch = self._watches.get(worker_id)
        if watch is not None:
            watch.peak = max(watch.peak, watch.tree.resident_bytes())

    def resident_bytes(self, worker_id: int) -> int:
        """What the tree holds now: the upper bound, in which shared pages count once for each process."""
        watch = self._watches.get(worker_id)
        return watch.tree.resident_bytes() if watch is not None else 0

    def next_at(self) -> float | None:
        """When to look next."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[int]:
        """The workers to look at now; each is looked at again only after `look`."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, worker_id = heappop(self._heap)
            watch = self._watches.get(worker_id)
            if watch is not None and watch.due_at == at:
                watch.due_at = None
                due.append(worker_id)
        return due

    def look(self, worker_id: int, now: float) -> tuple[int, int] | None:
        """Measure a worker that runs a job. The bytes and the limit if it is over; it is then stopped."""
        watch = self._watches[worker_id]
        looked_at = monotonic()
        resident = watch.tree.resident_bytes()
        cost_s = monotonic() - looked_at
        if watch.limit is None or resident <= watch.limit:
            watch.shared = 0
        used = max(0, resident - watch.shared)
        if watch.limit is not None and (used > watch.limit or (watch.shared and watch.is_stale(now))):
            begun_at = monotonic()
            stopped = tree.freeze(watch.tree.pid)
            used = watch.tree.exact_bytes()
            watch.peak = max(watch.peak, used)
            if used > watch.limit:
                return used, watch.limit
            watch.shared = max(0, resident - used)
            watch.note_exact(monotonic() - begun_at)
            tree.signal_all(stopped, signal.SIGCONT)
        watch.used = used
        watch.peak = max(watch.peak, used)
        # To look at a hundred processes takes a while, in which they fill memory.
        self._arm(worker_id, watch, now + max(_SHORTEST_S, _interval_s(watch.limit, used) - cost_s))
        return None

    def is_headless(self, worker_id: int, now: float) -> bool:
        """Whether the worker has been without its main thread for a while; one that exits is so for a moment."""
        watch = self._watches[worker_id]
        if watch.tree.own_bytes() or not watch.tree.is_headless():
            watch.headless_since = None
            return False
        if watch.headless_since is None:
            watch.headless_since = now
        return now - watch.headless_since >= _HEADLESS_S

    def resume(self, worker_id: int, now: float) -> None:
        """Let a tree that `look` has stopped go on."""
        watch = self._watches[worker_id]
        tree.signal_all([watch.tree.pid, *tree.descendants(watch.tree.pid)], signal.SIGCONT)
        self._arm(worker_id, watch, now + _SHORTEST_S)


def _free_bytes() -> int:
    """Memory of the machine that nobody has: sysinfo(2), in half a microsecond."""
    return os.sysconf("SC_AVPHYS_PAGES") * _PAGE_BYTES if system.LINUX else 0


def _tolerance_bytes(limit: int) -> int:
    return max(limit // 10, _LEAST_TOLERANCE_BYTES)


def _interval_s(limit: int | None, used: int) -> float:
    """How long a tree of this size may be left alone."""
    if limit is None:
        return _LONGEST_S
    headroom = max(_tolerance_bytes(limit) // 2, limit - used)
    return min(_LONGEST_S, max(_SHORTEST_S, headroom / _FILL_BYTES_PER_S))
