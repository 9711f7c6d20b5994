"""Pages of a template that each of its workers writes, copied by the fork itself.

A forked process copies a page when it first writes to it, which takes 3 us each, and a worker writes to 700 of them
before its job is done: it is what a fresh process for each job costs most. A fork that copies them does it in 1 us. The
kernel does so, since version 5.10, for pages that are pinned for input and output (`copy_present_page` in its
mm/memory.c), as the buffers are that are registered with io_uring (io_uring_register(2)). So where each job gets a
process of its own a template learns from the first of them which of its pages they wrote, and registers those.

Whatever refuses this, a container's filter of system calls or RLIMIT_MEMLOCK, changes nothing but the speed.
"""

import array
import ctypes
import itertools
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from mmap import PAGESIZE
from typing import Final

from robust_eval.processes import system
from robust_eval.processes.channels import high

_IO_URING_SETUP, _IO_URING_REGISTER, _REGISTER_BUFFERS = 425, 427, 0
_PARAMS_BYTES = 120
_BUFFER = struct.Struct("PN")
_MOST_PAGES = 1024  # 4 MiB, half of the usual RLIMIT_MEMLOCK, which all processes of a user share
_MOST_BUFFERS = 1024  # of old kernels
_MOST_LOOKED_AT_BYTES = 1 << 28
# An entry of /proc/PID/pagemap, see proc(5)
_PRESENT, _OF_A_FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
_MESSAGE_BYTES: Final = 8 * _MOST_PAGES


def _areas(path: str) -> list[tuple[int, int, bool]]:
    """The private areas that this process may write to: begin, end, and whether a file lies below.

    Of large ones as many as can be looked through in a few milliseconds. Those with huge pages are left out where the
    file tells of them: a pinned one would be copied whole.

    Args:
        path: `/proc/self/maps`, or `smaps`, which takes its time.
    """
    found: list[tuple[int, int, bool]] = []
    for line in system.told(path).splitlines():
        first, *rest = line.split()
        if first == b"AnonHugePages:" and rest[0] != b"0":
            found.pop()
        elif b"-" in first:
            begin, end = (int(bound, 16) for bound in first.split(b"-"))
            found.append((begin, end if rest[0] == b"rw-p" else begin, rest[3] != b"0"))
    found.sort(key=lambda area: area[1] - area[0])
    sums = itertools.accumulate(end - begin for begin, end, _ in found)
    return [area for area, looked_at in zip(found, sums, strict=True) if looked_at <= _MOST_LOOKED_AT_BYTES]


def _pages(area: tuple[int, int, bool], pagemap: int, flags: int) -> list[int]:
    """The addresses of the pages of an area that are memory of this process's own and have these flags."""
    begin, end, _ = area
    entries = array.array("Q")
    entries.frombytes(os.pread(pagemap, (end - begin) // PAGESIZE * entries.itemsize, begin // PAGESIZE * 8))
    asked = flags | _OF_A_FILE
    return [begin + place * PAGESIZE for place, entry in enumerate(entries) if entry & asked == flags]


def _own_pages(path: str, flags: int) -> list[tuple[list[int], bool]]:
    """For each area: its pages with these flags, and whether a file lies below."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [(_pages(area, pagemap, flags), area[2]) for area in _areas(path)]
    finally:
        os.close(pagemap)


def _runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Pages that lie side by side as one: begin and size in bytes."""
    numbered = enumerate(sorted(pages))
    groups = itertools.groupby(numbered, lambda pair: pair[1] - pair[0] * PAGESIZE)
    sides = [[page for _, page in group] for _, group in groups]
    return [(side[0], len(side) * PAGESIZE) for side in sides]


class Copies:
    """What a template learns of its workers' pages, and does about it.

    Args:
        lists: from how many workers it learns; none where workers live for many jobs.
    """

    def __init__(self, lists: int) -> None:
        self._lists_due = lists
        self._written: set[int] = set()
        self._ring = self._ours = self._theirs = -1
        if lists:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._ours, self._theirs = high(ours.detach()), high(theirs.detach())
            os.set_blocking(self._ours, False)
            self._identity = _identity(self._theirs)

    # -- in a worker

    def leave(self) -> None:
        """Close what is the template's."""
        for fd in (self._ours, self._ring):
            if fd >= 0:
                os.close(fd)

    def tell(self) -> None:
        """At the end of a worker, while the template learns: say which pages this process has copied or made."""
        if self._theirs < 0:
            return
        with suppress(OSError):
            if _identity(self._theirs) != self._identity:
                return  # a job has closed it, and has a file of its own there
            written = [page for pages, _ in _own_pages("/proc/self/maps", _PRESENT | _EXCLUSIVE) for page in pages]
            os.write(self._theirs, array.array("Q", written[:_MOST_PAGES]).tobytes())

    # -- in the template

    def hear(self) -> None:
        """Hear what workers have said, and once there is enough, have these pages copied from now on."""
        while self._lists_due:
            try:
                told = os.read(self._ours, _MESSAGE_BYTES)
            except BlockingIOError:
                return
            written = set(array.array("Q", told[: len(told) // 8 * 8]))
            self._written = self._written & written if self._written else written
            self._lists_due -= 1
            if not self._lists_due:
                self._end_learning()

    def _end_learning(self) -> None:
        os.close(self._ours)
        os.close(self._theirs)
        self._ours = self._theirs = -1
        with suppress(OSError):
            if not _is_let_in():
                return
            self._ring = _ring()
            found = _own_pages("/proc/self/smaps", _PRESENT)
            both = [(self._written.intersection(pages), of_a_file) for pages, of_a_file in found]
            try:
                _register(self._ring, [page for pages, _ in both for page in pages])
            except OSError:  # kernels of old take no page with a file below
                _register(self._ring, [page for pages, of_a_file in both for page in pages if not of_a_file])


def _identity(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino


def _is_let_in() -> bool:
    """Whether this process may use io_uring. Asked in a child: a sandbox may kill who does."""
    pid = os.fork()
    if pid == 0:
        try:
            _ring()
        except BaseException:  # noqa: BLE001 - a forked child must not return into the template
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _ring() -> int:
    """A descriptor of an io_uring, closed in programs.

    Raises:
        OSError: there is none for this process.
    """
    return system.call_kernel(_IO_URING_SETUP, 1, ctypes.create_string_buffer(_PARAMS_BYTES))


def _register(ring: int, pages: list[int]) -> None:
    """Pin these pages.

    Raises:
        OSError: the kernel does not pin them.
    """
    runs = _runs(pages[:_MOST_PAGES])[:_MOST_BUFFERS]
    buffers = ctypes.create_string_buffer(b"".join(itertools.starmap(_BUFFER.pack, runs)))
    system.call_kernel(_IO_URING_REGISTER, ring, _REGISTER_BUFFERS, buffers, len(runs))
