"""The undertaker over real forks. Each test runs in a forked child, a subreaper that has no other children."""

import ctypes
import os
import posix
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from children import in_child

from robust_eval.processes import burial, system, tree
from robust_eval.processes.burial import Undertaker

DEADLINE_S = 20.0
# `posix._exit` here: a coverage measurement saves itself in `os._exit`, which takes seconds in a fork of all tests.


class House:
    """An undertaker with the descriptors that wake it, as a template has them."""

    def __init__(self) -> None:
        system.adopt_orphans()
        self.poll = select.poll()
        self.undertaker = Undertaker(self._watch, self._unwatch)
        self.watched: set[int] = set()
        self.gone: list[tuple[int, int]] = []

    def _watch(self, pid: int) -> int:
        fd = os.pidfd_open(pid)
        self.poll.register(fd, select.POLLIN)
        self.watched.add(fd)
        return fd

    def _unwatch(self, fd: int) -> None:
        self.poll.unregister(fd)
        self.watched.remove(fd)
        os.close(fd)

    def fork(self, worker_id: int, work: Callable[[], object]) -> int:
        """A worker that does this and ends."""
        pid = os.fork()
        if pid == 0:
            os.setsid()
            work()
            posix._exit(worker_id)
        self.undertaker.add(pid, worker_id)
        return pid

    def bury_until(self, count: int) -> list[tuple[int, int]]:
        """Sleep and bury as the template does, until so many are gone."""
        ends_at = monotonic() + DEADLINE_S
        while len(self.gone) < count:
            now = monotonic()
            assert now < ends_at, self.gone
            wait_s = self.undertaker.wait_s(now)
            self.poll.poll(1000 * (ends_at - now if wait_s is None else wait_s))
            self.gone += self.undertaker.bury(monotonic())
        return self.gone

    def is_empty(self) -> bool:
        """Nothing is below, nothing is watched, nothing is waited for."""
        return not tree.children(os.getpid()) and not self.watched and self.undertaker.wait_s(monotonic()) is None


def status(code: int) -> int:
    return code << 8


def leave(*steps: Callable[[], object]) -> None:
    """Fork a process that takes the steps, which make it hard to find, and then stays."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        for step in steps:
            step()
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)


def fork_again() -> None:
    if os.fork():
        posix._exit(0)


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def with_tracker(told: int) -> None:
    """Leave a resource tracker, tell its id, and a process that keeps it alive for as long as it lives itself."""
    from multiprocessing.resource_tracker import _resource_tracker as tracker

    tracker._fd = tracker._pid = None
    tracker.ensure_running()
    os.write(told, b"%d" % tracker._pid)
    leave(os.setsid)


def test_workers_are_buried_with_their_status():
    """Exit codes and signals, each worker once, and nothing is left to watch."""

    def test() -> list[tuple[int, int]]:
        house = House()
        assert house.undertaker.bury(monotonic()) == []
        house.fork(3, lambda: None)
        house.fork(4, lambda: os.kill(os.getpid(), signal.SIGKILL))
        gone = house.bury_until(2)
        assert house.undertaker.bury(monotonic()) == []
        assert house.is_empty()
        return sorted(gone)

    assert in_child(test) == [(3, status(3)), (4, signal.SIGKILL)]


def test_orphans_go_before_their_worker_counts_as_gone():
    """Children, double forks, new sessions and whatever ignores signals."""

    def test() -> list[tuple[int, int]]:
        house = House()

        def work() -> None:
            leave()
            leave(os.setsid)
            leave(fork_again, os.setsid)
            leave(fork_again, os.setsid, fork_again, ignore_signals)

        house.fork(5, work)
        house.bury_until(1)
        assert house.is_empty()
        return house.gone

    assert in_child(test) == [(5, status(5))]


def test_a_worker_that_lives_is_not_disturbed_by_the_death_of_another():
    """What the other left is killed; the living one and its own children are left alone."""

    def test() -> list[tuple[int, int]]:
        house = House()
        reading, writing = os.pipe()

        def stay() -> None:
            leave()
            os.write(writing, b"x")
            signal.pause()

        living = house.fork(6, stay)
        os.read(reading, 1)
        house.fork(7, leave)
        assert house.bury_until(1) == [(7, status(7))]
        assert len(tree.descendants(living)) == 1
        house.undertaker.kill_all()
        assert not tree.children(os.getpid())
        return house.gone

    assert in_child(test) == [(7, status(7))]


def test_children_of_the_template_itself_are_spared():
    """A helper that an imported module started is no orphan."""

    def test() -> bool:
        house = House()
        helper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        house.undertaker.spare([helper.pid])
        house.fork(8, lambda: None)
        assert house.bury_until(1) == [(8, status(8))]
        there = tree.is_there(helper.pid)
        house.undertaker.kill_all()
        return there and not tree.children(os.getpid())

    assert in_child(test)


def test_a_tracker_gets_time_to_unlink():
    """It dies last: what keeps it alive is killed at once, and it then ends by itself and at no signal of ours."""

    def test() -> tuple[list[tuple[int, int]], bool]:
        house = House()
        killed: list[int] = []
        really = os.kill

        def note(pid: int, number: int) -> None:
            killed.append(pid)
            really(pid, number)

        tree.os.kill = note
        reading, writing = os.pipe()
        house.fork(9, lambda: with_tracker(writing))
        house.bury_until(1)
        assert house.is_empty()
        return house.gone, int(os.read(reading, 20)) in killed

    assert in_child(test) == ([(9, status(9))], False)


def test_a_tracker_that_does_not_end_is_killed():
    """Its half second over, it is an orphan like others."""

    def test() -> list[tuple[int, int]]:
        house = House()
        burial._TRACKER_S = 0.05
        named = "import signal; signal.pause()  # from multiprocessing.resource_tracker import main"

        def work() -> None:
            subprocess.Popen([sys.executable, "-S", "-c", named])

        house.fork(10, work)
        house.bury_until(1)
        assert house.is_empty()
        return house.gone

    assert in_child(test) == [(10, status(10))]


def test_a_tracker_that_had_no_core_gets_more_time():
    """On a machine so busy that it is still about to begin; but not for ever."""

    def test() -> tuple[list[tuple[int, int]], bool]:
        house = House()
        burial._TRACKER_S, burial._STARVED_TRACKER_S = 0.01, 0.5
        named = "while True: pass  # from multiprocessing.resource_tracker import main"
        begun_at = monotonic()
        house.fork(10, lambda: subprocess.Popen([sys.executable, "-S", "-c", named]))
        house.bury_until(1)
        assert house.is_empty()
        return house.gone, monotonic() - begun_at >= 0.5

    assert in_child(test) == ([(10, status(10))], True)


def test_patience_that_ends_before_the_template_sleeps_is_not_overslept():
    """A template may lose its core between burying and asking how long it may sleep."""

    def test() -> float | None:
        house = House()
        reading, writing = os.pipe()
        house.fork(10, lambda: with_tracker(writing))
        os.read(reading, 20)
        while not house.undertaker._deaths:
            house.poll.poll(1000 * DEADLINE_S)
            house.gone += house.undertaker.bury(monotonic())
        assert house.gone == []
        wait_s = house.undertaker.wait_s(monotonic() + burial._TRACKER_S)
        house.undertaker.kill_all()
        return wait_s

    assert in_child(test) == 0.001


def test_an_orphan_that_does_not_die_holds_up_its_own_worker_alone():
    """It belongs to the death that brought it; later deaths are reported meanwhile."""

    def test() -> list[tuple[int, int]]:
        house = House()
        really: Any = tree.signal_all
        tree.signal_all = lambda pids, number: None  # a process in uninterruptible sleep takes no signal
        house.fork(11, leave)
        ends_at = monotonic() + DEADLINE_S
        while not house.undertaker._deaths:
            assert monotonic() < ends_at
            house.poll.poll(1000)
            house.gone += house.undertaker.bury(monotonic())
        assert house.gone == []
        assert house.undertaker.wait_s(monotonic()) is None
        house.fork(12, lambda: None)
        assert house.bury_until(1) == [(12, status(12))]
        tree.signal_all = really
        tree.signal_all(tree.children(os.getpid()), signal.SIGKILL)
        house.bury_until(2)
        assert house.is_empty()
        return house.gone

    assert in_child(test) == [(12, status(12)), (11, status(11))]


def test_the_last_rites_are_bounded():
    """What does not die is left, after a second at most."""

    def test() -> bool:
        house = House()
        house.fork(13, signal.pause)
        really: Any = tree.signal_all
        bound_s = burial._LAST_RITES_S
        tree.signal_all = lambda pids, number: None
        burial._LAST_RITES_S = 0.02
        house.undertaker.kill_all()
        left = len(tree.children(os.getpid()))
        tree.signal_all, burial._LAST_RITES_S = really, bound_s
        house.undertaker.kill_all()
        return left == 1 and not tree.children(os.getpid())

    assert in_child(test)


def test_a_forked_worker_forgets_the_template_s_descriptors():
    """None of those that wake the template is open in it."""

    def test() -> int:
        house = House()
        reading, writing = os.pipe()
        house.fork(14, signal.pause)
        (fd,) = house.watched

        def work() -> None:
            house.undertaker.forget()
            try:
                os.fstat(fd)
            except OSError:
                os.write(writing, b"closed")

        house.fork(15, work)
        said = os.read(reading, 10)
        house.bury_until(1)
        house.undertaker.kill_all()
        return said

    assert in_child(test) == b"closed"


def trace_me_and_stop() -> None:
    ctypes.CDLL(None).ptrace(0, 0, None, None)
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_worker_that_is_traced_and_stopped_is_alive():
    """A job may make its parent its tracer, which then hears of every stop as if it were an end."""

    def test() -> list[tuple[int, int]]:
        house = House()
        traced = house.fork(1, trace_me_and_stop)
        os.waitid(os.P_PID, traced, os.WSTOPPED | os.WNOWAIT)
        house.fork(2, lambda: None)
        gone = list(house.bury_until(1))
        assert [worker_id for worker_id, *_ in gone] == [2]
        os.kill(traced, signal.SIGKILL)
        return house.bury_until(2)[1:]

    assert in_child(test) == [(1, signal.SIGKILL)]


def be_traced_by_an_orphan() -> None:
    """A daemon of this process becomes its tracer, and stays."""
    traced, libc = os.getpid(), ctypes.CDLL(None)
    seize = 0x4206
    # Each signal that reaches who is traced stops it until its tracer has seen that: so would the end of a child here.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    leave(fork_again, os.setsid, lambda: libc.ptrace(seize, traced, None, None))


def test_a_dead_worker_that_an_orphan_of_its_own_traces_is_buried():
    """Its tracer would be told of its end first, and never asks."""

    def test() -> list[tuple[int, int]]:
        house = House()
        house.fork(1, be_traced_by_an_orphan)
        house.bury_until(1)
        assert house.is_empty()
        return house.gone

    assert in_child(test) == [(1, status(1))]


def test_a_debugger_of_the_user_s_is_waited_for():
    """A worker that it traces is gone once the debugger has seen its end; the debugger is not killed, nothing spins."""

    def test() -> tuple[list[tuple[int, int]], bool, int, list[tuple[int, int]]]:
        house = House()
        reading, writing = os.pipe()
        go, held = os.pipe()

        def work() -> None:
            os.close(held)
            os.read(go, 1)

        worker = house.fork(1, work)
        debugger = os.fork()
        if debugger == 0:
            os.close(held)
            libc = ctypes.CDLL(None)
            libc.ptrace(0x4206, worker, None, None)
            os.write(writing, b"x")
            signal.pause()
        house.undertaker.spare([debugger])
        os.read(reading, 1)
        os.close(held)
        while not house.undertaker._held:
            house.poll.poll(1000)
            house.gone += house.undertaker.bury(monotonic())
        seen = list(house.gone), house.undertaker.wait_s(monotonic()) is not None, len(house.watched)
        os.kill(debugger, signal.SIGKILL)
        house.bury_until(1)
        return *seen, house.gone

    assert in_child(test) == ([], True, 0, [(1, status(1))])
