"""Memory files whose pages are used again once nobody has them any more.

Most of the time that a large parcel takes goes into the pages of its file: the kernel finds and charges each when it is
written, and gives each back when the last user is gone. So a process that writes parcels keeps a few of its files and
writes the next one over what nobody can see any more.

That nobody can is what the kernel says, not what anybody has to tell. What leaves this process is a description of the
file which can only read, and a lease for writing (fcntl(2), F_SETLEASE) is given to another description of it only
where none that reads is left: in a process, a mapping, a forked child, or a message on its way. What is kept is a mere
name (open(2), O_PATH): a job that writes into every descriptor it finds spoils no result of the one before it.
"""

import contextlib
import fcntl
import os
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

from robust_eval.processes import system
from robust_eval.processes.layout import SHELF_BYTES
from robust_eval.processes.parcel import Memory, Parcel, Piece, store, write

_MOST_FILES = 8
_NAME_ONLY = getattr(os, "O_PATH", 0)
_SET_LEASE = getattr(fcntl, "F_SETLEASE", 1024)


class _Kept(NamedTuple):
    """A file: its name in this process, which file that is, and how many bytes of pages it has."""

    fd: int
    identity: tuple[int, int]
    size: int


class Shelf:
    """The memory files of one process. Thread-safe.

    Args:
        most_bytes: how much of them is kept; what is larger is written into a file of its own.
        place: moves a descriptor to where it stays.
    """

    def __init__(self, most_bytes: int = SHELF_BYTES, place: Callable[[int], int] = int) -> None:
        self._most_bytes = most_bytes if system.LINUX else 0
        self._place = place
        self._lock = threading.Lock()
        self._kept: list[_Kept] = []
        self.close = weakref.finalize(self, _close, self._kept)
        self.close.atexit = False

    def store(self, pieces: list[Piece], size: int) -> Parcel:
        """Write the pieces into a file that nobody else has; inline where no descriptor is to be had.

        Raises:
            OSError: there is no room, or a limit on the size of files.
        """
        if size > self._most_bytes or not self.close.alive:
            return store(pieces, size)
        kept, fd = self._take()
        if kept is None:
            parcel = store(pieces, size)
            return self._keep(None, parcel.fd, size) if isinstance(parcel, Memory) else parcel
        try:
            write(fd, pieces)
        except BaseException:
            os.close(fd)
            _drop(kept)
            raise
        return self._keep(kept, fd, size)

    def _take(self) -> tuple[_Kept | None, int]:
        """A kept file that nobody has, out of the others, and a descriptor to write it with.

        Two are asked about: that which was given away last, whose pages are at hand, and that which was first.
        """
        with self._lock:
            for kept in (*self._kept[-1:], *self._kept[:1]):
                fd = _open_alone(kept)
                if fd >= 0:
                    self._kept.remove(kept)
                    return kept, fd
        return None, -1

    def _keep(self, kept: _Kept | None, fd: int, size: int) -> Memory:
        """Remember the file of this descriptor, which is closed. Returns one that can only read."""
        stat = os.fstat(fd)
        try:
            name = self._place(_open(fd, _NAME_ONLY)) if kept is None else kept.fd
        except OSError:  # no descriptor is free, or there is no /proc: the file is the receiver's alone
            return Memory(fd, size)
        kept = _Kept(name, (stat.st_dev, stat.st_ino), stat.st_size)
        try:
            reading = _open(fd, os.O_RDONLY)
        except OSError:
            _drop(kept)
            return Memory(fd, size)
        os.close(fd)
        with self._lock:
            self._kept.append(kept)
            while len(self._kept) > _MOST_FILES or sum(each.size for each in self._kept) > self._most_bytes:
                _drop(self._kept.pop(0))
        return Memory(reading, size)


def _open(fd: int, flags: int) -> int:
    """Another description of an open file."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def _open_alone(kept: _Kept) -> int:
    """A descriptor that writes the file, if nothing else has it open; else -1."""
    with contextlib.suppress(OSError):
        fd = _open(kept.fd, os.O_RDWR)
        with contextlib.suppress(OSError):
            if _is_it(fd, kept):
                fcntl.fcntl(fd, _SET_LEASE, fcntl.F_WRLCK)
                fcntl.fcntl(fd, _SET_LEASE, fcntl.F_UNLCK)
                return fd
        os.close(fd)
    return -1


def _is_it(fd: int, kept: _Kept) -> bool:
    """Whether this is the kept file still: a job may have closed it, and opened one of its own."""
    stat = os.fstat(fd)
    return (stat.st_dev, stat.st_ino) == kept.identity


def _drop(kept: _Kept) -> None:
    with contextlib.suppress(OSError):
        if _is_it(kept.fd, kept):
            os.close(kept.fd)


def _close(kept: list[_Kept]) -> None:
    while kept:
        _drop(kept.pop())
