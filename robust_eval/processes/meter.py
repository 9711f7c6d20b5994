"""When the memory of a worker's process tree is looked at.

Where the quick sum is over the limit the tree is stopped, so that it cannot go on filling memory, and the exact one
decides. What the two sums differ by is taken off the quick one for a while: that sum is blind to forks which write to
what they shared, so the exact one is asked again, as often as a tenth of the tree's time pays for it, or a third of it
where the machine's free memory has become less meanwhile, which costs nothing to know. A tree is looked at when it
could next have crossed its limit at the fastest rate at which pages can be filled. Close to its limit that is before it
has crossed it where the tree was seen to grow, and a little after where it was not: a look costs a tenth of a
millisecond, and a job may live close to its limit for hours.

A worker tells its peak with the result of each job that was not too short for one. Where it has no helpers that is as
good as a look, and costs none.
"""

import contextlib
from heapq import heappop, heappush
from math import frexp, ldexp
from time import monotonic

from robust_eval.processes.footprint import Count, Tree, free_bytes

_FILL_BYTES_PER_S = 6 * 2**30
_LEAST_TOLERANCE_BYTES = 64 * 2**20
_SHORTEST_S, _LONGEST_S = 0.001, 0.5
_GROWTH_BYTES = 2**20
_PACE, _PACE_IN_NEED = 10, 2
_HEADLESS_S = 0.5
_PART_S = 0.002
_GRID_BITS = 5


class _Watch:
    """One tree with a job in it."""

    __slots__ = (
        "alone", "asked_at", "cost_s", "count", "due_at", "free", "headless_since", "limit", "peak", "resident",
        "shared", "told", "tree", "used",
    )  # fmt: skip

    def __init__(self, watched: Tree) -> None:
        self.tree = watched
        self.limit: int | None = None
        self.due_at: float | None = None
        self.headless_since: float | None = None
        self.peak = 0
        self.shared = 0
        self.asked_at = self.cost_s = 0.0
        self.free = 0
        self.used = self.resident = 0
        self.count: Count | None = None
        self.alone = False
        self.told: tuple[float, int] = (0.0, 0)

    def known_until(self) -> float:
        """Until when it cannot be over its limit, by what it has told. A tree that is stopped is not put off."""
        at, used = self.told
        return _next_look(at, self.limit, used) if self.alone and self.count is None else 0.0

    def is_stale(self, now: float) -> bool:
        """Whether the exact sum should be asked again."""
        waited_s = now - self.asked_at
        if waited_s < _PACE_IN_NEED * self.cost_s:
            return False
        return waited_s >= _PACE * self.cost_s or self.free - free_bytes() > _tolerance_bytes(self.limit or 0) // 4

    def let_go(self) -> None:
        """A tree that is stopped goes on."""
        count, self.count = self.count, None
        if count is not None:
            self.asked_at = monotonic()
            self.cost_s = self.asked_at - count.begun_at
            self.free = free_bytes()
            count.let_go()


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
        watch.let_go()
        watch.limit = limit
        watch.peak = watch.shared = 0
        self._arm(worker_id, watch, _next_look(now, limit, watch.used))

    def told(self, worker_id: int, used: int, at: float) -> None:
        """The worker's own process held no more than this at that instant."""
        watch = self._watches.get(worker_id)
        if watch is not None:
            watch.told = at, used

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
            if watch is None or watch.due_at != at:
                continue
            watch.due_at = None
            until = watch.known_until()
            if until > now:
                self._arm(worker_id, watch, until)
            else:
                due.append(worker_id)
        return due

    def look(self, worker_id: int, now: float) -> tuple[int, int] | None:
        """Measure a worker that runs a job. The bytes and the limit if it is over; it is then stopped.

        A tree that has to be counted is stopped and due again at once, until all of it is counted.
        """
        watch = self._watches[worker_id]
        if watch.count is None and not self._is_suspicious(worker_id, watch, now):
            return None
        watch.count = count = watch.count or Count(watch.tree.pid)
        if not count.go_on(_PART_S):
            self._arm(worker_id, watch, now)
            return None
        used = watch.used = count.used
        watch.peak = max(watch.peak, used)
        if watch.limit is not None and used > watch.limit:
            return used, watch.limit
        watch.shared = max(0, watch.resident - used)
        watch.let_go()
        self._arm(worker_id, watch, _next_look(now, watch.limit, used))
        return None

    def _is_suspicious(self, worker_id: int, watch: _Watch, now: float) -> bool:
        """Whether the tree must be counted, by what is quickly known. Else it is due again when that can change."""
        looked_at = monotonic()
        own = watch.tree.own_bytes()
        below = watch.tree.below_bytes()
        resident = watch.resident = own + below
        watch.alone = not below
        cost_s = monotonic() - looked_at
        limit = watch.limit
        if limit is None or resident <= limit:
            watch.shared = 0
        used = max(0, resident - watch.shared)
        if limit is not None and (used > limit or (watch.shared and watch.is_stale(now))):
            return True
        grows = used - watch.used > _GROWTH_BYTES
        watch.used = used
        watch.peak = max(watch.peak, used)
        # To look at a hundred processes takes a while, in which they fill memory.
        at = _next_look(now, limit, used, grows=grows)
        self._arm(worker_id, watch, max(now + _SHORTEST_S, at - cost_s, now + cost_s))
        return False

    def let_go(self, worker_id: int) -> None:
        """A tree that is stopped goes on, since something else is asked of it now."""
        watch = self._watches.get(worker_id)
        if watch is not None:
            watch.let_go()

    def give_up(self, worker_id: int) -> None:
        """A tree that is stopped is killed as it stands."""
        watch = self._watches.get(worker_id)
        if watch is not None:
            watch.count = None

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
        watch.let_go()
        self._arm(worker_id, watch, now + _SHORTEST_S)


def _tolerance_bytes(limit: int) -> int:
    return max(limit // 10, _LEAST_TOLERANCE_BYTES)


def _next_look(now: float, limit: int | None, used: int, *, grows: bool = False) -> float:
    """When a tree of this size must be looked at, or up to a sixteenth of the time sooner: when others are due as well.

    A supervisor that is woken for each of many trees spends more on that than on the looks.
    """
    interval_s = _LONGEST_S
    if limit is not None:
        headroom = max(0 if grows else _tolerance_bytes(limit) // 2, limit - used)
        interval_s = min(_LONGEST_S, max(_SHORTEST_S, headroom / _FILL_BYTES_PER_S))
    at = now + interval_s
    return at - at % ldexp(1.0, frexp(interval_s)[1] - _GRID_BITS)
