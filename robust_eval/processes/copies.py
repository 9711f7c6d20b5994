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
from collections.abc import Iterable, Iterator
from contextlib import suppress
from mmap import PAGESIZE
from typing import Final

from robust_eval.processes import system

_IO_URING_SETUP, _IO_URING_REGISTER, _REGISTER_BUFFERS = 425, 427, 0
_PARAMS_BYTES = 120
_BUFFER = struct.Struct("PN")
_MOST_PAGES = 2048  # 8 MiB, the usual RLIMIT_MEMLOCK, which all processes of a user share
_MOST_BUFFERS = 1024  # of old kernels
_MOST_LOOKED_AT_BYTES = 1 << 28
# An entry of /proc/PID/pagemap, see proc(5)
_PRESENT, _OF_A_FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
_MESSAGE_BYTES: Final = 8 * _MOST_PAGES


def _areas() -> Iterator[tuple[int, int, bool]]:
    """The private areas that this process may write to: begin, end, and whether a file lies below.

    The small ones first, and of the rest what can be looked through in a few milliseconds.
    """
    found = []
    for line in system.told("/proc/self/maps").splitlines():
        bounds, permissions, _, _, inode, *_ = line.split()
        begin, end = (int(bound, 16) for bound in bounds.split(b"-"))
        if permissions == b"rw-p":
            found.append((end - begin, begin, inode != b"0"))
    looked_at = 0
    for size, begin, of_a_file in sorted(found):
        looked_at += size
        if looked_at > _MOST_LOOKED_AT_BYTES:
            return
        yield begin, begin + size, of_a_file


def _pages(area: tuple[int, int, bool], pagemap: int, flags: int) -> list[int]:
    """The addresses of the pages of an area that are memory of this process's own and have these flags."""
    begin, end, _ = area
    entries = array.array("Q")
    entries.frombytes(os.pread(pagemap, (end - begin) // PAGESIZE * entries.itemsize, begin // PAGESIZE * 8))
    asked = flags | _OF_A_FILE
    return [begin + place * PAGESIZE for place, entry in enumerate(entries) if entry & asked == flags]


def _own_pages(flags: int) -> list[tuple[list[int], bool]]:
    """For each area: its pages with these flags, and whether a file lies below."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [(_pages(area, pagemap, flags), area[2]) for area in list(_areas())]
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
            ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self._ours, self._theirs = ours.detach(), theirs.detach()

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
            written = [page for pages, _ in _own_pages(_PRESENT | _EXCLUSIVE) for page in pages]
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
            found = _own_pages(_PRESENT)
            if not _is_let_in():
                return
            self._ring = _ring()
            both = [(self._written.intersection(pages), of_a_file) for pages, of_a_file in found]
            try:
                _register(self._ring, [page for pages, _ in both for page in pages])
            except OSError:  # kernels of old take no page with a file below
                _register(self._ring, [page for pages, of_a_file in both for page in pages if not of_a_file])


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
