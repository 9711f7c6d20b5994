"""What differs between the systems we run on.

Linux is the system that the rules of supervision are written for. macOS has no pidfd, no memfd, no parent-death
signal and no subreaper: exits are watched by kqueue, memory lies in unlinked files, and a descendant that left its
process group and lost its parent is found by the cookie in its environment alone. The docs state what that weakens.
"""

import contextlib
import ctypes
import mmap
import os
import select
import signal
import socket
import sys
import weakref
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

# The wrappers of `signal` make enums of numbers and handlers, which a worker's start would feel.
_signal: Any = import_module("_signal")
set_handler: Callable[[int, Any], Any] = _signal.signal
LINUX = sys.platform == "linux"
# What a process gets for its own faults, what cannot be handled, and what Python or the loop handles in its own way.
_NOT_PASSED_BY = frozenset(
    getattr(signal, name)
    for name in (
        "SIGABRT",
        "SIGBUS",
        "SIGCHLD",
        "SIGCONT",
        "SIGFPE",
        "SIGILL",
        "SIGKILL",
        "SIGPIPE",
        "SIGSEGV",
        "SIGSTOP",
        "SIGXFSZ",
    )
)
_PASSED_BY = tuple(sorted(map(int, signal.valid_signals() - _NOT_PASSED_BY)))
_CLD_STOPPED = getattr(os, "CLD_STOPPED", 5)
INBOX_TYPE = socket.SOCK_SEQPACKET if LINUX else socket.SOCK_DGRAM
# For sends: a program may have given SIGPIPE back to the kernel, and would end with whoever it writes to.
NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER, _PR_GET_SECCOMP = 1, 36, 37, 21
_MEMFD_FLAGS = getattr(os, "MFD_CLOEXEC", 0) | getattr(os, "MFD_ALLOW_SEALING", 0)
_MADV_WIPEONFORK = 18
_MAP_FIXED = 0x10  # `mmap.MAP_FIXED` from Python 3.13 on
_AHEAD = 15
_TOLD_BYTES = 1 << 16
_LARGE_BYTES = 1 << 12
_F_ADD_SEALS, _SEAL_SHRINK_GROW = 1033, 0x2 | 0x4


def memory_file(size: int) -> int:
    """A descriptor of memory without a name, of this size for good."""
    if not LINUX:  # pragma: no cover - macOS
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, size)
        return fd
    import fcntl

    fd = os.memfd_create("robust_eval", _MEMFD_FLAGS)
    try:
        os.ftruncate(fd, size)
    except OSError:  # a limit on the size of files
        os.close(fd)
        raise
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_SHRINK_GROW)
    return fd


def file_of(content: bytes) -> int:
    """A descriptor of memory that holds this."""
    fd = memory_file(len(content))
    os.pwrite(fd, content, 0)
    return fd


def content_of(fd: int) -> bytes:
    """What `file_of` put there."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def told(path: str) -> bytes:
    """What the kernel says in a small file of `/proc`: without the layers of `open`, in half the time.

    Raises:
        OSError: it says nothing, since the process is gone or another user's.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while piece := os.read(fd, _TOLD_BYTES):
            text += piece
        return text
    finally:
        os.close(fd)


def map_privately(fd: int, size: int) -> memoryview:
    """The content of a memory file, mapped copy-on-write. The mapping lives as long as anything that points into it.

    `mmap.mmap` keeps a duplicate of the descriptor open for as long (it can do without from Python 3.13 on), and a
    driver that holds a thousand large results would run out of descriptors.

    Raises:
        OSError: it cannot be mapped.
        ValueError: the file is smaller than said; touching what lies behind its end would be a SIGBUS.
    """
    if not 0 < size <= os.fstat(fd).st_size:
        msg = f"{size} bytes were announced and the file has {os.fstat(fd).st_size}"
        raise ValueError(msg)
    if sys.version_info >= (3, 13):  # pragma: no cover - the way of later interpreters
        return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, trackfd=False))
    content = _mapped(fd, size, mmap.MAP_PRIVATE)
    weakref.finalize(content, _libc().munmap, ctypes.addressof(content), size).atexit = False
    return memoryview(content).cast("B")


def map_for_good(fd: int, size: int) -> memoryview:
    """A memory file, mapped and shared for as long as this process lives, without a descriptor that leads to it.

    A job that writes into every descriptor would otherwise find that of `mmap.mmap`.

    Raises:
        OSError: it cannot be mapped.
    """
    if sys.version_info >= (3, 13):  # pragma: no cover - the way of later interpreters
        return memoryview(mmap.mmap(fd, size, trackfd=False))
    return memoryview(_mapped(fd, size, mmap.MAP_SHARED)).cast("B")


def address_of(mapping: mmap.mmap) -> int:
    """Where a mapping lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def map_over(address: int, fd: int, size: int) -> None:
    """Put a shared memory file in the place of another mapping, whose object goes on to be used.

    Raises:
        OSError: it cannot be mapped.
    """
    _map(address, fd, size, mmap.MAP_SHARED | _MAP_FIXED)


def _map(address: int | None, fd: int, size: int, how: int) -> int:
    mapped: int | None = _libc().mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, how, fd, 0)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return mapped


def _mapped(fd: int, size: int, how: int) -> "ctypes.Array[ctypes.c_ubyte]":
    return (ctypes.c_ubyte * size).from_address(_map(None, fd, size, how))


def watch_exit(pid: int) -> int:
    """A descriptor that becomes readable when the process exits.

    Raises:
        ProcessLookupError: it is gone already.
    """
    if LINUX:
        return os.pidfd_open(pid)
    return _watch_by_kqueue(pid)


def _watch_by_kqueue(pid: int) -> int:  # pragma: no cover - macOS
    queue = select.kqueue()  # type: ignore[attr-defined] # not on Linux
    event = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)  # type: ignore[attr-defined]
    queue.control([event], 0)
    fd = os.dup(queue.fileno())
    queue.close()
    return fd


@cache
def _libc() -> ctypes.CDLL:
    """The C library. Each handle makes a class of its own: a worker's start would feel it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.memmem.restype = ctypes.c_void_p
    libc.memmem.argtypes = [ctypes.c_char_p, ctypes.c_size_t] * 2
    return libc


def count_in(data: bytes, word: bytes) -> int:
    """How often a word occurs. That it does not, the C library says of large data in a quarter of the time."""
    if len(data) >= _LARGE_BYTES and not _libc().memmem(data, len(data), word, len(word)):
        return 0
    return data.count(word)


def call_kernel(number: int, *arguments: Any) -> int:
    """A system call that has no function in Python; its arguments are integers and buffers of `ctypes`.

    Raises:
        OSError: the kernel refuses.
    """
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    answer: int = _libc().syscall(ctypes.c_long(number), *given)
    if answer < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return answer


def _prctl(option: int, value: int) -> None:
    if LINUX:  # pragma: no branch - macOS
        _libc().prctl(option, value, 0, 0, 0)


def die_with(parent: int) -> None:
    """Be killed by the kernel when the parent's thread that started us ends; end now if it has ended."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def outlive_parent() -> None:
    """Take `die_with` back."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def forget_signals() -> None:
    """Undo what was inherited from a driver that ignores or masks signals.

    Where SIGCHLD is ignored the kernel reaps children itself and nobody learns how they ended; where signals are
    masked no worker can be asked to stop or to dump its stack. Below a shell that runs a program in the background
    SIGINT is ignored, and a run function that sends it to itself would get another outcome than in the foreground.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python itself ignores these two
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def be_deaf() -> dict[int, Any]:
    """Let the signals that ask a process to end, or to do something, pass by: a job may send them to its parent.

    A handler and not `SIG_IGN`, which would be inherited by programs. A handler that was not set from Python stays.

    Returns:
        What handled them before, for `hear_again`.
    """
    before: dict[int, Any] = {number: _signal.getsignal(number) for number in _PASSED_BY}
    heard = {number: handler for number, handler in before.items() if handler is not None}
    for number in heard:
        set_handler(number, _pass_by)
    return heard


def hear_again(handlers: dict[int, Any]) -> None:
    """Undo `be_deaf`."""
    for number, handler in handlers.items():
        set_handler(number, handler)


def _pass_by(_number: int, _frame: object) -> None:
    """Handle a signal by doing nothing."""


def tell_of_children() -> int:
    """A descriptor that becomes readable when a child of this process stops, ends or goes on."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, _pass_by)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def go_on_if_stopped(pid: int) -> None:
    """Continue a child that somebody has stopped."""
    with contextlib.suppress(ChildProcessError):
        if LINUX and os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None:
            os.kill(pid, signal.SIGCONT)


def keep_going(pid: int) -> None:
    """Continue a child whenever somebody stops it. Returns when it has ended, and leaves it to be reaped."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        while os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code == _CLD_STOPPED:  # type: ignore[union-attr]
            os.kill(pid, signal.SIGCONT)


class Birthmark:
    """Tells this process from its forks, however they were made, in 50 ns: the kernel clears a page of it in them."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._cleared = False
        self.renew()
        if LINUX:
            with contextlib.suppress(OSError):  # Linux before 4.14
                self._page.madvise(_MADV_WIPEONFORK)
                self._cleared = True

    def renew(self) -> None:
        """Be the mark of this process."""
        self._pid = os.getpid()
        self._page[0] = 1

    @property
    def is_here(self) -> bool:
        """Whether this is the process whose mark it is."""
        return bool(self._page[0]) if self._cleared else os.getpid() == self._pid


def adopt_orphans() -> None:
    """Become the parent of descendants whose parents die, instead of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def adopts_orphans() -> bool:
    """Whether descendants whose parents die still come to this process."""
    if not LINUX:
        return True
    adopts = ctypes.c_int(1)
    _libc().prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0)
    return bool(adopts.value)


def filters_system_calls() -> int:
    """Whether, and how, system calls of this process are filtered (seccomp)."""
    return _libc().prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) if LINUX else 0


def be_first_choice_of_oom_killer() -> None:
    """Let the kernel's OOM killer take this process before the user's others."""
    with contextlib.suppress(OSError):
        _tell("/proc/self/oom_score_adj", b"800")


def go_first() -> None:
    """Get a core before the processes that are watched, where that is allowed (CAP_SYS_NICE).

    Two jobs that fill memory on two cores keep a process of their own priority waiting for up to 25 ms, in which they
    fill 100 MiB more; with this it is 12. The kernel weighs sessions against each other first (sched_autogroup), and
    only within one its processes.
    """
    with contextlib.suppress(OSError):
        os.nice(-_AHEAD)
        _tell("/proc/self/autogroup", b"-%d" % _AHEAD)


def _tell(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def oom_kills() -> int:
    """How often the kernel's OOM killer has acted, on this machine and in this control group."""
    count = 0
    for path, key in (("/proc/vmstat", "oom_kill "), ("/sys/fs/cgroup/memory.events", "oom_kill ")):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            count += sum(int(line.split()[1]) for line in file if line.startswith(key))
    return count
