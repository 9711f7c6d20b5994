"""Reaping workers and everything that they left behind (rule 6), from the template, which is the parent of both.

A worker counts as gone when it is reaped and every orphan that came to the template with its death is gone too.
Orphans are killed as they appear; the resource tracker of `multiprocessing` gets half a second to unlink its segments,
and on a machine so busy that it has not come to that, as long as it runs, up to five.
Orphans that do not die belong to the worker whose death brought them, and delay no other worker.

A process that traces a worker is told of its end before its parent is, which cannot reap it until the tracer has or is
gone (ptrace(2)). A tracer that a job has started is killed then; one of the user's, a debugger, is waited for.
"""

import os
import select
import signal
from collections.abc import Callable, Iterable
from time import monotonic, sleep

from robust_eval.processes import tree

_TRACKER_S, _STARVED_TRACKER_S = 0.5, 5.0
_LAST_RITES_S = 1.0
_LAST_RITES_STEP_S = 0.002
_HELD_STEP_S = 0.01
_KILLED = float("-inf")


class _Death:
    """A reaped worker and the orphans that it left. A dataclass would cost each template 10 ms of imports."""

    __slots__ = ("orphans", "patient_until", "status", "worker_id")

    def __init__(self, worker_id: int, status: int) -> None:
        self.worker_id = worker_id
        self.status = status
        self.orphans: dict[int, float] = {}
        self.patient_until = 0.0


class Undertaker:
    """Knows the workers by process id and says when they are gone.

    Args:
        watch: makes the template wake up at a process's exit; returns a descriptor.
        unwatch: takes that back.
    """

    def __init__(self, watch: Callable[[int], int], unwatch: Callable[[int], None]) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._workers: dict[int, int] = {}
        self._watched: dict[int, int] = {}
        self._deaths: list[_Death] = []
        self._held: set[int] = set()
        self._spared: frozenset[int] = frozenset()

    def spare(self, pids: Iterable[int]) -> None:
        """These children are the template's own (a helper that an imported module started)."""
        self._spared = frozenset(pids)

    def add(self, pid: int, worker_id: int) -> None:
        """A worker was forked."""
        self._workers[pid] = worker_id
        self._watched[pid] = self._watch(pid)

    def forget(self) -> None:
        """In a forked child: close the template's descriptors."""
        for fd in self._watched.values():
            os.close(fd)

    def wait_s(self, now: float) -> float | None:
        """How long the template may sleep before it must look again: not at all where the instant has just gone by."""
        if not self._deaths and not self._held:
            return None
        instants = [at for death in self._deaths for at in death.orphans.values() if at > _KILLED]
        if self._held:
            instants.append(now + _HELD_STEP_S)
        return max(0.001, min(instants) - now) if instants else None

    def bury(self, now: float) -> list[tuple[int, int]]:
        """Reap what is dead and kill what is orphaned.

        Returns:
            For each worker that is gone with its whole tree: its id and its wait status.
        """
        if not self._reap():
            self._free_the_held()  # an end that cannot be reaped wakes this process again, and then it is alone
            if not self._deaths:
                return []
        while self._deaths and self._adopt(now):
            self._reap()
        gone = [death for death in self._deaths if not death.orphans]
        self._deaths = [death for death in self._deaths if death.orphans]
        return [(death.worker_id, death.status) for death in gone]

    def _reap(self) -> bool:
        """Reap everything that is dead. Whether there was anything."""
        reaped = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if os.WIFSTOPPED(status):  # a child that made this process its tracer; it is as alive as before
                continue
            reaped = True
            if pid in self._watched:
                self._unwatch(self._watched.pop(pid))
            self._held.discard(pid)
            if pid in self._workers:
                self._deaths.append(_Death(self._workers.pop(pid), status))
        return reaped

    def _free_the_held(self) -> None:
        """End the tracers below this process that keep dead workers from being reaped."""
        numbers = {fd: pid for pid, fd in self._watched.items() if pid in self._workers}
        ended = select.poll()
        for fd in numbers:
            ended.register(fd, select.POLLIN)
        for fd, _ in ended.poll(0):
            if tree.tracer_of(numbers[fd]):
                self._held.add(numbers[fd])
                self._unwatch(self._watched.pop(numbers[fd]))  # it would wake this process again at once
        if self._held:
            below = set(tree.descendants(os.getpid())) - self._spared
            tree.signal_all(below.intersection(map(tree.tracer_of, self._held)), signal.SIGKILL)

    def _adopt(self, now: float) -> bool:
        """Kill the orphans; attribute new ones to the latest death. Whether to look again at once."""
        present = set(tree.children(os.getpid())) - self._workers.keys() - self._spared
        known: set[int] = set()
        for death in self._deaths:
            death.orphans = {pid: at for pid, at in death.orphans.items() if pid in present}
            known.update(death.orphans)
        fresh = present - known
        for pid in fresh:
            death = self._deaths[-1]
            death.orphans[pid] = now
            if tree.is_tracker(pid):
                death.orphans[pid], death.patient_until = now + _TRACKER_S, now + _STARVED_TRACKER_S
            self._watched.setdefault(pid, self._watch(pid))
        for death in self._deaths:
            for pid, at in death.orphans.items():
                if 0.0 < at <= now < death.patient_until and tree.is_tracker(pid) and tree.wants_to_run(pid):
                    death.orphans[pid] = now + _TRACKER_S
                elif at <= now:
                    tree.kill_below(pid)
                    tree.signal_all([pid], signal.SIGKILL)
                    death.orphans[pid] = _KILLED
        return bool(fresh)

    def kill_all(self) -> None:
        """The supervisor is gone: kill every worker with its tree, and wait for that, within a bound."""
        ends_at = monotonic() + _LAST_RITES_S
        for pid in self._workers:
            tree.kill_below(pid)
        tree.signal_all(self._workers, signal.SIGKILL)
        while monotonic() < ends_at:
            self._reap()
            left = tree.children(os.getpid())
            if not left:
                return
            for pid in left:
                tree.kill_below(pid)
            tree.signal_all(left, signal.SIGKILL)
            sleep(_LAST_RITES_STEP_S)  # bounded by the line above; there is no loop left that could wake us
