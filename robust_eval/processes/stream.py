"""What has come of a stream and was not used yet; and what is left to be sent.

Short messages come many at a time and are read where they were received. The rest of a long one is received in large
pieces into room that stays: a process that is woken for each 64 KiB spends more on that than on the bytes, and malloc
maps and unmaps every buffer of 128 KiB and more that is cut to the size of what came.
"""

import socket
from collections.abc import Sequence
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TypeAlias

MOST_DESCRIPTORS = 64  # of one message
BUFFER_BYTES = 1 << 22  # what may lie in a channel; the kernel gives less where net.core.wmem_max is lower
_READ_BYTES = 1 << 16
_LARGE_READ_BYTES = 1 << 20
_SHARE = 8
_ANCILLARY_BYTES = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)

Content: TypeAlias = bytes | bytearray | memoryview


class Stream:
    """The receiving end of a stream.

    Args:
        sock: it.

    Attributes:
        content: what came, and was not said to be used. It changes with the next `receive`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.content: Content = b""
        self._sock = sock
        self._expected = 0
        self._room: memoryview | None = None

    def receive(self, flags: int = 0) -> tuple[int, list[tuple[int, int, bytes]], int]:
        """Receive once. BlockingIOError passes through.

        Returns:
            How many bytes came, 0 at end-of-file; the ancillary data; and the kernel's flags.
        """
        if isinstance(self.content, memoryview):  # of the room, which is used again
            self.content = bytearray(self.content)
        data: bytes | memoryview
        if self._expected < _READ_BYTES:
            data, ancillary, said, _ = self._sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES, flags)
            size = len(data)
        else:
            if self._room is None:
                self._room = memoryview(bytearray(_LARGE_READ_BYTES))
            size, ancillary, said, _ = self._sock.recvmsg_into([self._room], _ANCILLARY_BYTES, flags)
            data = self._room[:size]
        if self.content:
            self.content += data
        else:
            self.content = data
        self._expected = size  # as much as the last time
        return size, ancillary, said

    def use(self, position: int, lacking: int = 0) -> None:
        """Forget what lies before a position.

        Args:
            position: in the content.
            lacking: how many bytes are still to come of the message that lies there.
        """
        self._expected = max(self._expected, lacking)
        content = self.content
        if position == len(content):
            self.content = b""
        elif isinstance(content, bytearray):
            del content[:position]
        else:
            self.content = bytearray(memoryview(content)[position:])


def copy_of(content: Content, start: int, end: int) -> bytes:
    """A piece of it, copied once."""
    return content[start:end] if isinstance(content, bytes) else bytes(memoryview(content)[start:end])


def rest_of(pieces: Sequence[bytes | memoryview], sent: int) -> list[memoryview]:
    """What is left of a message to be sent, of which so many bytes are."""
    return [memoryview(b"".join(pieces))[sent:]]


class UnderWay:
    """The descriptors that went into a channel and may not have been received yet.

    The kernel lets the processes of a user have only so many on their way, in all their channels, as the sender may
    open files (unix(7), ETOOMANYREFS), and a receiver that has too few free loses some. So few are at once.

    Args:
        sock: the channel.
        limit: how many files the poorer of the two may open.

    Attributes:
        most: how many may be under way.
    """

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self.most = max(2, min(MOST_DESCRIPTORS, limit // _SHARE))
        self._sock = sock
        self._count = 0
        self._unread = bytearray(4)

    def has_room(self, waiting: int) -> bool:
        """Whether one more may go with those that wait to be sent."""
        if self._count + waiting >= self.most and self._all_is_read():
            self._count = 0
        return self._count + waiting < self.most

    def add(self, count: int) -> None:
        """So many go now."""
        self._count += count

    def _all_is_read(self) -> bool:
        try:
            ioctl(self._sock, TIOCOUTQ, self._unread)
        except (OSError, ValueError):  # it is closed
            return False
        return not any(self._unread)
