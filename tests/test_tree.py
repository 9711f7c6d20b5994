"""Finding and signalling real processes below others."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator

import psutil
import pytest
from children import Helper, end_of, in_child
from waiting import is_alive, wait_until

from robust_eval.processes import tree
from robust_eval.processes.layout import COOKIE

# A process with a child and a grandchild, which all wait to be killed.
THREE = """
import os, signal
reading, writing = os.pipe()
if os.fork() == 0:
    pid = os.fork()
    if pid:
        os.write(writing, b"%d %d" % (os.getpid(), pid))
    signal.pause()
print(os.read(reading, 100).decode(), flush=True)
signal.pause()
"""
# A process with a child and the resource tracker of a package.
WITH_TRACKER = """
import importlib, os, signal, sys
tracker = importlib.import_module(sys.argv[1] + ".resource_tracker")._resource_tracker
tracker.ensure_running()
pid = os.fork()
if pid == 0:
    signal.pause()
print(pid, tracker._pid, flush=True)
signal.pause()
"""
# A chain of forks, each of which ends when the next one has.
CHAIN = """
import os, select
print("on", flush=True)
while not select.select([0], [], [], 0)[0]:  # it ends with the test, whatever becomes of that
    if os.fork():
        os.wait()
        os._exit(0)
"""
# A process that leaves another in a session of its own when it is told to end.
LEAVER = """
import os, signal
os.setsid()
pid = os.fork()
if pid == 0:
    os.setsid()
    signal.pause()
print(pid, flush=True)
input()
print("ends", flush=True)
"""
NOBODY = 2**22 + 1


@pytest.fixture
def three() -> Iterator[Helper]:
    """A process, its child and its grandchild; `pids` holds the two."""
    with Helper(THREE) as helper:
        helper.pids = [int(word) for word in helper.read().split()]
        yield helper


def status_of(pid: int) -> str:
    return psutil.Process(pid).status()


def test_children_and_descendants(three: Helper):
    """Direct children, and all below, nearest first; those of a process that is gone are none."""
    child, grandchild = three.pids
    assert tree.children(three.pid) == [child]
    assert tree.descendants(three.pid) == [child, grandchild]
    assert tree.children(grandchild) == []
    assert tree.children(NOBODY) == []
    assert tree.descendants(NOBODY) == []


def test_children_of_every_thread_are_found(three: Helper):
    """The kernel lists a child under the thread that forked it."""
    found = threading.Event()
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        found.set()
        ended.wait()

    ended = threading.Event()
    thread = threading.Thread(target=start)
    thread.start()
    found.wait()
    try:
        assert {three.pid, started[0].pid} <= set(tree.children(os.getpid()))
    finally:
        ended.set()
        thread.join()
        started[0].communicate()


def test_a_thread_that_ends_meanwhile_hides_no_children(three: Helper, monkeypatch: pytest.MonkeyPatch):
    """The children of the other threads are still found."""
    there = os.listdir  # a thread of a number that is gone stands for one that ended after it was listed
    monkeypatch.setattr(tree.os, "listdir", lambda path: [str(NOBODY), *there(path)])
    assert tree.children(three.pid) == three.pids[:1]


def test_psutil_finds_the_same(three: Helper, monkeypatch: pytest.MonkeyPatch):
    """Where the kernel keeps no list of children, or on macOS."""
    monkeypatch.setattr(tree, "_KERNEL_LISTS_CHILDREN", False)
    assert tree.descendants(three.pid) == three.pids
    assert tree.children(NOBODY) == []


@pytest.mark.parametrize("package", ["multiprocessing", "joblib.externals.loky.backend", "loky.backend"])
def test_a_tracker_is_known_by_its_command(package: str):
    """And nothing else is taken for one, least of all what is gone."""
    pytest.importorskip(package)
    with Helper(WITH_TRACKER, package) as helper:
        child, tracker = helper.pids = [int(word) for word in helper.read().split()]
        assert tree.is_tracker(tracker)
        assert not tree.is_tracker(child)
        assert not tree.is_tracker(NOBODY)


def test_what_is_below_is_killed_but_for_the_tracker():
    """It has to unlink the shared memory first, and ends by itself once its users are gone."""
    with Helper(WITH_TRACKER, "multiprocessing") as helper:
        child, tracker = helper.pids = [int(word) for word in helper.read().split()]
        assert tree.kill_below(helper.pid)
        wait_until(lambda: status_of(child) == psutil.STATUS_ZOMBIE)
        assert tree.is_there(tracker)
        assert not tree.wants_to_run(NOBODY)
        assert not tree.is_there(child)
        os.kill(helper.pid, signal.SIGKILL)
        helper.wait()
        wait_until(lambda: not is_alive(tracker))


def test_a_tracker_that_was_stopped_with_its_tree_goes_on():
    """A tree over its memory limit is stopped and then killed; what it shared is unlinked all the same."""
    with Helper(WITH_TRACKER, "multiprocessing") as helper:
        _, tracker = helper.pids = [int(word) for word in helper.read().split()]
        tree.freeze(helper.pid)
        wait_until(lambda: status_of(tracker) == psutil.STATUS_STOPPED)
        assert tree.kill_below(helper.pid)
        os.kill(helper.pid, signal.SIGKILL)
        helper.wait()
        wait_until(lambda: not is_alive(tracker))


def test_a_process_without_any_below_has_nothing_to_kill():
    """The answer says so."""
    with Helper("input()") as helper:
        assert not tree.kill_below(helper.pid)
        assert tree.is_there(helper.pid)
    assert not tree.is_there(helper.pid)


def test_a_tree_is_frozen_whole(three: Helper):
    """The top first; each can be resumed."""
    stopped = tree.freeze(three.pid)
    assert stopped == [three.pid, *three.pids]
    wait_until(lambda: all(status_of(pid) == psutil.STATUS_STOPPED for pid in stopped))
    tree.signal_all(stopped, signal.SIGCONT)
    wait_until(lambda: all(status_of(pid) == psutil.STATUS_SLEEPING for pid in stopped))


def test_a_tree_that_goes_on_forking_is_frozen():
    """Forks that appear between two looks are found by the next one, and the last of them by freezing again."""
    with Helper(CHAIN) as helper:
        helper.read()
        try:
            wait_until(lambda: set(tree.freeze(helper.pid)[1:]) == set(tree.descendants(helper.pid)))
            below = tree.descendants(helper.pid)
            wait_until(lambda: all(status_of(pid) == psutil.STATUS_STOPPED for pid in below))
        finally:
            helper.pids = tree.freeze(helper.pid)


def test_signals_pass_over_what_is_gone_or_not_ours():
    """Each of the others gets its own."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    tree.signal_all([NOBODY, pid], signal.SIGKILL)
    assert end_of(pid) == -signal.SIGKILL

    def as_nobody() -> bool:
        os.setuid(65534)
        tree.signal_all([1], 0)
        return True

    assert os.getuid() != 0 or in_child(as_nobody)


def test_the_cookie_finds_processes_wherever_they_are():
    """In a session of their own and without a parent as well; this process is never among them."""
    cookie = uuid.uuid4().hex
    assert tree.with_cookie(cookie) == []
    with Helper(LEAVER, **{COOKIE: cookie}) as helper:
        helper.pids = [int(helper.read())]
        assert set(tree.with_cookie(cookie)) == {helper.pid, *helper.pids}
        assert helper.ask("") == "ends"
        helper.wait()
        assert tree.with_cookie(cookie) == helper.pids
        tree.signal_all(tree.with_cookie(cookie), signal.SIGKILL)
        wait_until(lambda: not is_alive(helper.pids[0]))


def test_the_cookie_passes_over_processes_of_others():
    """What this user may not look at is none of ours."""

    def as_nobody() -> list[int]:
        os.setuid(65534)
        return tree.with_cookie(uuid.uuid4().hex)

    assert os.getuid() != 0 or in_child(as_nobody) == []
