"""What the kernel is asked for, asked for real."""

import fcntl
import os
import select
import signal
from pathlib import Path

import pytest
from children import Helper, end_of, in_child
from waiting import is_alive, nothing_left, wait_until

from robust_eval.processes import system

BYTES = 3 * 4096 + 5


def test_a_memory_file_has_its_size_for_good():
    """Nobody who holds it can make it smaller, which would be a SIGBUS for all who mapped it."""
    with nothing_left():
        fd = system.memory_file(BYTES)
        assert os.fstat(fd).st_size == BYTES
        assert not os.get_inheritable(fd)
        for size in (0, BYTES + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(fd)


@pytest.mark.parametrize("size", [0, 100, 5000, 1 << 20])
def test_words_are_counted_in_small_and_large_data(size: int):
    """Also at its ends; zeros do not end it."""
    for head, tail, count in (
        (b"", b"", 0),
        (b"__main__", b"", 1),
        (b"", b"__main__", 1),
        (b"__main__\0", b"__main__", 2),
    ):
        assert system.count_in(head + bytes(size) + tail, b"__main__") == count


def test_a_mapping_needs_no_descriptor_and_ends_with_its_last_user():
    """It is private, may be written to, and is unmapped when nothing points into it any more."""

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:robust_eval")

    fd = os.memfd_create("robust_eval")
    os.write(fd, b"content")
    before = mappings()
    with nothing_left():
        view = system.map_privately(fd, 7)
        part = view[3:]
        view[:3] = b"CON"
        assert bytes(view) == b"CONtent"
        assert os.pread(fd, 10, 0) == b"content"
        del view
        assert bytes(part) == b"tent"
        assert mappings() == before + 1
        del part
        assert mappings() == before
    os.close(fd)


def test_what_cannot_be_mapped_raises(tmp_path: Path):
    """A size that lies, a file that cannot be read, a pipe."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file, pytest.raises(ValueError, match="8 bytes were announced and the file has 7"):
        system.map_privately(file.fileno(), 8)
    with path.open("ab") as file, pytest.raises(PermissionError):
        system.map_privately(file.fileno(), 7)
    reading, writing = os.pipe()
    with pytest.raises(ValueError, match="announced"):
        system.map_privately(reading, 7)
    os.close(reading)
    os.close(writing)


def test_an_exit_wakes():
    """The descriptor is readable when the process has ended and not before, reaped or not."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    fd = system.watch_exit(pid)
    assert not select.select([fd], [], [], 0.0)[0]
    os.kill(pid, signal.SIGKILL)
    assert select.select([fd], [], [], 10.0)[0]
    assert end_of(pid) == -signal.SIGKILL
    os.close(fd)
    with pytest.raises(ProcessLookupError):
        system.watch_exit(pid)


MIDDLE = """
import os, signal, sys
from robust_eval.processes import system
reading, writing = os.pipe()
parent = os.getpid()
pid = os.fork()
if pid == 0:
    system.die_with(parent)
    if sys.argv[1] == "outlives":
        system.outlive_parent()
    os.write(writing, b"x")
    signal.pause()
os.read(reading, 1)
print(pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("then", ["dies", "outlives"])
def test_a_child_dies_with_its_parent_unless_told_otherwise(then: str):
    """SIGKILL of the parent is enough."""
    with Helper(MIDDLE, then) as helper:
        pid = int(helper.read())
        helper.pids = [pid] if then == "outlives" else []
        os.kill(helper.pid, signal.SIGKILL)
        helper.wait()
        if then == "dies":
            wait_until(lambda: not is_alive(pid))
        else:
            assert is_alive(pid)


def test_a_child_whose_parent_is_gone_already_ends():
    """The kernel's signal would never come."""
    pid = os.fork()
    if pid == 0:
        system.die_with(os.getpid())
        os._exit(9)
    assert end_of(pid) == 0


def test_orphans_are_adopted():
    """They become children of this process, not of init."""

    def adopt() -> bool:
        system.adopt_orphans()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os.write(writing, b"%d" % os.getpid())
            os._exit(0)
        assert end_of(pid) == 0
        orphan = int(os.read(reading, 20))
        return end_of(orphan) == 0

    assert in_child(adopt)


def test_ignored_and_masked_signals_are_forgotten():
    """Whatever the driver did to its signals; Python's own two stay ignored, and an interrupt is an exception."""

    def forget() -> list[object]:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        system.forget_signals()
        return [
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            *map(signal.getsignal, (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1)),
            signal.getsignal(signal.SIGPIPE),
            signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        ]

    assert in_child(forget) == [set(), *[signal.SIG_DFL] * 3, signal.SIG_IGN, True]


def test_workers_are_the_first_choice_of_the_oom_killer():
    """They ask for it themselves; more than root allows is not asked for."""

    def ask() -> int:
        system.be_first_choice_of_oom_killer()
        return int(Path("/proc/self/oom_score_adj").read_text())

    assert in_child(ask) == 800


def test_a_supervisor_goes_first_where_that_is_allowed():
    """Before its workers, by so much and not beyond what there is; where it is not allowed, all stays as it was."""

    def ask() -> list[int]:
        os.setsid()
        found = []
        for _ in range(2):
            system.go_first()
            found.append(os.getpriority(os.PRIO_PROCESS, 0))
        return found

    before = os.getpriority(os.PRIO_PROCESS, 0)
    expected = [max(-20, before - 15), max(-20, before - 30)] if may_set_priority() else [before, before]
    assert in_child(ask) == expected


def may_set_priority() -> bool:
    """Whether this process may raise a priority (CAP_SYS_NICE)."""
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> 23 & 1)


def test_kills_of_the_oom_killer_are_counted():
    """The number never falls."""
    first = system.oom_kills()
    assert 0 <= first <= system.oom_kills()


def test_polite_signals_pass_by_until_they_are_heard_again():
    """A job that asks its parent to end does not end it; what the user's modules had set comes back in the worker."""

    def test() -> list[str]:
        told: list[str] = []
        signal.signal(signal.SIGUSR1, lambda *_: told.append("the user's"))
        handlers = system.be_deaf()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTSTP, signal.SIGIO, signal.SIGRTMIN + 9):
            os.kill(os.getpid(), number)
        told.append("alive")
        system.hear_again(handlers)
        os.kill(os.getpid(), signal.SIGUSR1)
        return told

    assert in_child(test) == ["alive", "the user's"]


def test_a_child_that_is_stopped_goes_on():
    """Whoever stops it, as often as they like; its end is left for its parent to read."""

    def test() -> int:
        pid = os.fork()
        if pid == 0:
            for _ in range(20):
                os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(7)
        system.keep_going(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_child(test) == 7


def test_a_stop_is_told_and_undone():
    """The descriptor wakes, and only a child that is stopped is continued."""

    def test() -> int:
        fd = system.tell_of_children()
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(9)
        assert select.select([fd], [], [], 10.0)[0]
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        system.go_on_if_stopped(pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        system.go_on_if_stopped(pid)
        system.keep_going(pid)
        return code

    assert in_child(test) == 9
