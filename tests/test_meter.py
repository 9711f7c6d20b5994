"""Memory of real process trees. Every process here waits for a line before it takes more."""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import psutil
import pytest
from children import Helper, in_child
from waiting import wait_until

from robust_eval.processes import footprint
from robust_eval.processes import meter as meter_module
from robust_eval.processes.footprint import Count, Tree
from robust_eval.processes.meter import Meter
from robust_eval.processes.system import LINUX

MIB = 2**20
TAKE = """
import os, sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(os.urandom(1024) * (int(line) * 1024)))
    print("done", flush=True)
"""
# Forks that each have a pipe of their own, so that none takes another's order; "w" has each touch all that it shares.
FORKS = """
import os, sys, signal
shared = bytearray(os.urandom(1024) * (100 * 1024))
told = os.pipe()
def serve(orders):
    for byte in iter(lambda: os.read(orders, 1), b""):
        if byte == b"q":
            os._exit(0)
        shared[::4096] = b"x" * len(shared[::4096])
        os.write(told[1], b"d")
pids, orders = [], []
for _ in range(3):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        serve(reading)
    pids.append(pid)
    orders.append(writing)
print(*pids, flush=True)
for line in sys.stdin:
    for order in orders:
        os.write(order, line[:1].encode())
        if line[0] == "w":
            os.read(told[0], 1)
    if line[0] == "q":
        for pid in pids:
            os.waitpid(pid, 0)
        pids.clear()
        orders.clear()
    print("done", flush=True)
"""


@pytest.fixture
def eater() -> Iterator[Helper]:
    """A process that takes as many MiB as each line says."""
    with Helper(TAKE) as helper:
        yield helper


@pytest.fixture
def forks() -> Iterator[Helper]:
    """A process with 100 MiB and three forks that share it."""
    with Helper(FORKS) as helper:
        helper.pids = [int(word) for word in helper.read().split()]
        yield helper


@pytest.fixture
def watched(eater: Helper) -> Iterator[Meter]:
    """A meter that knows the eater as worker 1."""
    meter = Meter()
    meter.add(1, eater.pid)
    yield meter
    meter.remove(1)


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def exact_bytes(pid: int) -> int:
    """What a tree takes by the exact sum."""
    count = Count(pid)
    while not count.go_on(1.0):
        pass
    count.let_go()
    return count.used


def look(meter: Meter, now: float) -> tuple[int, int] | None:
    """Look at worker 1 until it is known whether it is over its limit."""
    over = meter.look(1, now)
    while over is None and meter._watches[1].count is not None:
        assert meter.due(now) == [1]
        over = meter.look(1, now)
    return over


def test_a_tree_is_measured_with_everything_below_it(forks: Helper):
    """Resident sizes count what forks share once for each, proportional sizes once."""
    tree = Tree(forks.pid)
    try:
        assert tree.resident_bytes() > 4 * 100 * MIB
        assert 100 * MIB < exact_bytes(tree.pid) < 250 * MIB
    finally:
        tree.close()


def test_mapped_files_are_not_counted_in_the_end(tmp_path: Path):
    """Their pages are resident, and the kernel takes them back when it needs them."""
    path = tmp_path / "data"
    path.write_bytes(bytes(100 * MIB))
    code = (
        "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]); "
    )
    with Helper(code + "print('done', flush=True); input()", str(path)) as helper:
        helper.read()
        tree = Tree(helper.pid)
        assert tree.resident_bytes() > 100 * MIB
        assert 0 < exact_bytes(tree.pid) < 50 * MIB
        tree.close()


def test_a_dead_tree_takes_nothing():
    """Gone processes count as zero and raise nothing."""
    with Helper("input()") as helper:
        tree = Tree(helper.pid)
    try:
        assert tree.resident_bytes() == 0
        assert exact_bytes(tree.pid) == 0
        assert footprint._resident_bytes(helper.pid) == 0
    finally:
        tree.close()


def test_a_worker_that_is_gone_already_is_not_watched():
    """Adding it does nothing, and neither does anything said of it afterwards."""
    with Helper("input()") as helper:
        pass
    meter = Meter()
    meter.add(1, helper.pid)
    meter.begin(1, MIB, 0.0)
    meter.remove(1)
    meter.note(1)
    assert (meter.next_at(), meter.due(1e9), meter.peak_bytes(1)) == (None, [], 0)


def test_a_tree_over_its_limit_is_stopped_and_can_go_on(eater: Helper, watched: Meter):
    """The answer holds the bytes and the limit; the tree takes no more until it is resumed."""
    limit = 200 * MIB
    watched.begin(1, limit, 0.0)
    assert look(watched, 0.0) is None
    eater.ask("400")
    assert watched.due(0.1) == [1]
    over = look(watched, 0.1)
    assert over is not None
    used, said = over
    assert said == limit
    assert 400 * MIB < used < 500 * MIB
    assert watched.peak_bytes(1) == used
    wait_until(lambda: is_stopped(eater.pid))
    watched.resume(1, 0.1)
    assert eater.ask("1") == "done"
    assert watched.next_at() == pytest.approx(0.1, abs=0.01)


def test_a_large_tree_is_counted_part_by_part(forks: Helper, monkeypatch: pytest.MonkeyPatch):
    """It stands still meanwhile, and others are looked at in between."""
    monkeypatch.setattr(meter_module, "_PART_S", 0.0)
    meter = Meter()
    meter.add(1, forks.pid)
    try:
        meter.begin(1, 250 * MIB, 0.0)
        for _ in range(3):
            assert meter.due(0.5) == [1]
            assert meter.look(1, 0.5) is None
            assert meter.next_at() == 0.5
            wait_until(lambda: all(map(is_stopped, (forks.pid, *forks.pids))))
        assert meter.due(0.5) == [1]
        assert meter.look(1, 0.5) is None
        wait_until(lambda: not any(map(is_stopped, (forks.pid, *forks.pids))))
        at = meter.next_at()
        assert at is not None
        assert at > 0.5
    finally:
        meter.remove(1)


@pytest.mark.parametrize(
    ("interrupt", "goes_on"),
    [
        (lambda meter: meter.let_go(1), True),
        (lambda meter: meter.begin(1, None, 0.1), True),
        (lambda meter: meter.give_up(1), False),
    ],
)
def test_a_count_that_is_broken_off_leaves_no_tree_standing(
    interrupt: Callable[[Meter], None], goes_on: bool, forks: Helper, monkeypatch: pytest.MonkeyPatch
):
    """Where its job has ended, or another is begun; what is killed is killed as it stands."""
    monkeypatch.setattr(meter_module, "_PART_S", 0.0)
    meter = Meter()
    meter.add(1, forks.pid)
    try:
        meter.begin(1, 250 * MIB, 0.0)
        assert meter.look(1, 0.1) is None
        wait_until(lambda: all(map(is_stopped, (forks.pid, *forks.pids))))
        interrupt(meter)
        wait_until(lambda: any(map(is_stopped, (forks.pid, *forks.pids))) != goes_on)
        assert meter._watches[1].count is None
    finally:
        meter.remove(1)
    meter.let_go(1)
    meter.give_up(1)


def test_the_peak_belongs_to_one_job(eater: Helper, watched: Meter):
    """The next job begins with none."""
    watched.begin(1, None, 0.0)
    eater.ask("100")
    assert look(watched, 0.5) is None
    assert watched.peak_bytes(1) > 100 * MIB
    watched.begin(1, None, 1.0)
    assert watched.peak_bytes(1) == 0


def test_what_is_held_before_a_kill_counts_for_the_peak(eater: Helper, watched: Meter):
    """It is noted without a look being due."""
    watched.begin(1, None, 0.0)
    eater.ask("100")
    watched.note(1)
    assert watched.peak_bytes(1) > 100 * MIB


def test_it_is_looked_at_when_it_could_next_be_over(eater: Helper, watched: Meter):
    """The less headroom, the sooner; without a limit, now and then for the peak alone."""
    watched.begin(1, None, 0.0)
    assert watched.due(0.4) == []
    assert watched.due(0.5) == [1]
    assert watched.next_at() is None
    watched.begin(1, 3 * 2**30, 1.0)
    assert watched.next_at() == pytest.approx(1.5)
    assert watched.due(1.5) == [1]
    look(watched, 1.5)
    at = watched.next_at()
    assert at is not None
    assert 1.9 < at <= 2.0


def test_trees_are_looked_at_together(eater: Helper):
    """Whose jobs began within a few moments: the supervisor is woken once for them, and for none too late."""
    meter = Meter()
    begins = [10.0 + 0.0001 * worker_id for worker_id in range(40)]
    try:
        for worker_id, begun_at in enumerate(begins):
            meter.add(worker_id, eater.pid)
            meter.begin(worker_id, 2**30, begun_at)
        woken_at = []
        while (at := meter.next_at()) is not None:
            woken_at.append(at)
            for worker_id in meter.due(at):
                assert 0.9 * 2**30 / (6 * 2**30) < at - begins[worker_id] <= 2**30 / (6 * 2**30)
        assert len(woken_at) <= 2
    finally:
        for worker_id in range(40):
            meter.remove(worker_id)


def test_a_smaller_limit_is_looked_at_sooner(watched: Meter):
    """A job with a limit behind one without does not wait for the look that was due for the other."""
    watched.begin(1, None, 0.0)
    watched.begin(1, 100 * MIB, 0.1)
    at = watched.next_at()
    assert at is not None
    assert at < 0.2
    assert watched.due(at) == [1]
    look(watched, at)
    again = watched.next_at()
    assert again is not None
    assert watched.due(again) == [1]
    assert watched.due(10.0) == []


def test_what_grows_close_to_its_limit_is_looked_at_sooner(eater: Helper, watched: Meter):
    """One that stays where it is may have crossed its limit by half of the tolerance when it is looked at again."""
    assert eater.ask("0") == "done"  # it has started, and grows no more by itself
    used = watched.resident_bytes(1)
    watched.begin(1, used + 22 * MIB, 0.0)
    look(watched, 0.0)
    waits = []
    for more in (0, 8, 0):
        if more:
            assert eater.ask(str(more)) == "done"
        assert watched.due(1000.0 + len(waits)) == [1]
        look(watched, 1000.0 + len(waits))
        at = watched.next_at()
        assert at is not None
        waits.append(at - 1000.0 - len(waits))
    assert waits[1] < waits[0] / 2
    assert waits[2] == pytest.approx(waits[0], rel=0.5)


def test_a_peak_that_was_told_is_as_good_as_a_look(eater: Helper, watched: Meter):
    """The worker tells it behind its jobs; what is due before it could be over its limit since then is put off."""
    watched.told(1, 10 * MIB, 5.0)
    watched.begin(1, 2**30, 0.0)
    assert watched.due(1.0) == [1]  # nobody knows yet whether it has helpers
    look(watched, 1.0)
    watched.told(1, 10 * MIB, 5.0)
    assert watched.due(5.01) == []
    at = watched.next_at()
    assert at is not None
    assert 5.1 < at < 5.2
    assert watched.due(at) == [1]
    watched.told(7, 10 * MIB, 5.0)  # nobody's


def test_a_tree_that_is_stopped_is_not_put_off(eater: Helper, watched: Meter, monkeypatch: pytest.MonkeyPatch):
    """Its result came while it was being counted: it is seen to at once, and goes on."""
    monkeypatch.setattr(Count, "go_on", lambda *_: False)
    watched.begin(1, 1, 0.0)
    assert watched.due(1.0) == [1]
    assert watched.look(1, 1.0) is None
    wait_until(lambda: is_stopped(eater.pid))
    watched.told(1, 0, 1.0)
    assert watched.due(1.0) == [1]
    watched.let_go(1)


def test_what_a_worker_with_helpers_tells_is_not_all(forks: Helper):
    """Their memory is not in its peak."""
    meter = Meter()
    meter.add(1, forks.pid)
    try:
        meter.begin(1, 2**30, 0.0)
        assert meter.due(1.0) == [1]
        look(meter, 1.0)
        meter.told(1, 10 * MIB, 5.0)
        assert meter.due(5.01) == [1]
    finally:
        meter.remove(1)


def test_a_look_that_is_due_for_the_dead_is_dropped(watched: Meter):
    """A worker may go while it waits to be looked at."""
    watched.begin(1, None, 0.0)
    watched.remove(1)
    assert watched.due(1.0) == []


def test_forks_that_share_are_under_the_limit(forks: Helper):
    """Four times 100 MiB that are the same 100 MiB pass a limit of 250, and all go on."""
    meter = Meter()
    meter.add(1, forks.pid)
    try:
        meter.begin(1, 250 * MIB, 0.0)
        assert look(meter, 0.0) is None
        assert meter.peak_bytes(1) < 250 * MIB
        assert not any(map(is_stopped, (forks.pid, *forks.pids)))
    finally:
        meter.remove(1)


def test_forks_that_write_to_what_they_shared_are_found(forks: Helper):
    """Resident sizes do not move when pages stop being shared; the exact sum is asked again after a while."""
    meter = Meter()
    meter.add(1, forks.pid)
    try:
        meter.begin(1, 250 * MIB, 0.0)
        now = monotonic()
        assert look(meter, now) is None
        forks.ask("w")
        over = look(meter, now + 1000.0)
        assert over is not None
        assert over[0] > 380 * MIB
        meter.resume(1, now + 1000.0)
    finally:
        meter.remove(1)


def test_what_was_shared_once_is_not_taken_off_for_ever(forks: Helper):
    """When the forks are gone, the tree is measured as it is; a new job starts from nothing."""
    meter = Meter()
    meter.add(1, forks.pid)
    try:
        meter.begin(1, 250 * MIB, 0.0)
        assert look(meter, 0.0) is None
        forks.ask("q")
        assert look(meter, 0.1) is None
        meter.begin(1, 50 * MIB, 0.2)
        over = look(meter, 0.2)
        assert over is not None
        assert over[0] > 100 * MIB
        meter.resume(1, 0.2)
    finally:
        meter.remove(1)


def test_sizes_come_from_psutil_where_the_kernel_keeps_no_statm(eater: Helper, monkeypatch: pytest.MonkeyPatch):
    """The way of macOS gives the same answer, and zero for what is gone."""
    monkeypatch.setattr(footprint.system, "LINUX", False)
    tree = Tree(eater.pid)
    eater.ask("50")
    assert tree.resident_bytes() > 50 * MIB
    tree.close()
    assert footprint._resident_by_psutil(eater.pid) > 50 * MIB
    os.kill(eater.pid, signal.SIGKILL)
    eater.wait()
    assert footprint._resident_bytes(eater.pid) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start as root and go on as somebody else")
def test_a_tree_that_hides_its_memory_is_taken_at_its_upper_bound():
    """A process that made itself undumpable does not show its proportional size to others than root."""

    def test() -> bool:
        os.setresuid(65534, 65534, 65534)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            undumpable = 4, 0
            ctypes.CDLL(None).prctl(*undumpable, 0, 0, 0)
            os.write(writing, b".")
            signal.pause()
        os.read(reading, 1)
        tree = Tree(pid)
        taken = exact_bytes(tree.pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return taken > MIB

    assert in_child(test)


@pytest.mark.skipif(not LINUX, reason="macOS shows no threads of others")
def test_a_process_without_its_main_thread_is_told_from_one_that_exits():
    """The kernel shows both as zombies. Only the one that other threads keep is it for longer than a moment."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        threading.Thread(target=os.read, args=(reading, 1), daemon=True).start()
        ctypes.CDLL(None).pthread_exit(None)
    meter = Meter()
    meter.add(1, pid)
    meter.add(2, os.getpid())
    wait_until(lambda: meter.is_headless(1, 0.0) or meter.is_headless(1, 1.0))
    assert not meter.is_headless(2, 9.0)
    assert footprint._resident_bytes(pid) > MIB  # below a job, where it is nobody's worker, it is measured
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    assert not meter.is_headless(1, 9.0)
    os.waitpid(pid, 0)
    assert not meter.is_headless(1, 9.0)
    for worker_id in (1, 2):
        meter.remove(worker_id)
    os.close(reading)
    os.close(writing)
