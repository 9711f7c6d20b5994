"""A worker's channels and the page that it shares with its supervisor: made in the template, taken in the worker.

Everything here is made once, over placeholders, before any worker is forked. A new worker puts its own descriptors and
its page in their places: that costs a few system calls, where to make the objects anew would cost each new process the
pages in which they lie and those of the code that makes them.
"""

import fcntl
import mmap
import os
import resource
import socket

from robust_eval.processes import system
from robust_eval.processes.layout import READ_AT, READING_AT, STAMP_BYTES
from robust_eval.processes.outbox import Written

_HIGH_FD = 960


def high(fd: int) -> int:
    """Move a descriptor to a high number, where a job that opens and closes files does not meet it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, min(_HIGH_FD, soft - 32)))
    os.close(fd)
    return moved


def _nothing() -> int:
    return high(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))


def _unconnected(kind: socket.SocketKind) -> socket.socket:
    with socket.socket(socket.AF_UNIX, kind) as made:
        number = high(made.detach())
    sock = socket.socket(socket.AF_UNIX, kind, fileno=number)
    sock.settimeout(None)  # whatever default the user's modules have set
    return sock


class Channels:
    """What leads to the supervisor.

    Attributes:
        orders: the inbox.
        claims: the outbox, from which claims are received.
        far_end: the outbox's other end, which tells how much lies in between.
        output: the pipe for what is printed.
        stack: the shared page's descriptor, where a stack is dumped.
        stamps: that page.
        numbers: the same as numbers of 64 bits.
        instants: the same as instants.
    """

    def __init__(self) -> None:
        self.orders, self.claims = _unconnected(system.INBOX_TYPE), _unconnected(socket.SOCK_STREAM)
        self.far_end, self.output, self.stack = _nothing(), _nothing(), _nothing()
        self.stamps = mmap.mmap(-1, STAMP_BYTES)
        self.numbers = memoryview(self.stamps).cast("Q")
        self.instants = memoryview(self.stamps).cast("d")
        self._address = system.address_of(self.stamps)
        self._places = self.orders.fileno(), self.claims.fileno(), self.far_end, self.output, self.stack

    def written_output(self) -> Written:
        """How much was ever written into the output."""
        return Written(self.output, self.numbers, READ_AT // 8, READING_AT // 8)

    def take(self, fds: list[int]) -> None:
        """In the worker: let these be the five descriptors, in the order of the attributes; the given are closed.

        Raises:
            OSError: the page cannot be mapped.
        """
        for fd, place in zip(fds, self._places, strict=True):
            os.dup2(fd, place, inheritable=False)
            os.close(fd)
        system.map_over(self._address, self.stack, STAMP_BYTES)
