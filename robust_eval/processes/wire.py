"""Frames <-> bytes on the four kinds of channel.

- driver <-> supervisor, a stream: length, marshal. Both ends are ours and of one interpreter.
- supervisor -> worker, packets: one job a packet, so that the supervisor can take back exactly what was not read.
- supervisor <-> template, packets of fixed fields: the user's modules are loaded there, so no decoder with an opinion.
- worker -> supervisor, a stream: a fixed header and an opaque payload. The worker runs the user's code, so nothing of
  it is trusted: a header that is not exactly right is a `ProtocolError`, and no decoder with an opinion runs here.
"""

import array
import marshal
import os
import socket
import struct
from collections import deque
from collections.abc import Generator
from mmap import mmap
from typing import Any, NamedTuple

from robust_eval.errors import RobustEvalError
from robust_eval.processes.layout import HEARD_AT, HEARING_AT, NUMBER
from robust_eval.processes.parcel import MISSING, Memory, Parcel

MARSHAL_VERSION = 4
MOST_DESCRIPTORS = 200
_FRAME = struct.Struct("<Q")
# From 128 KiB on, malloc maps and unmaps a buffer for each read, at ten times the cost of the read.
_READ_BYTES = 1 << 16
_ANCILLARY_BYTES = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
_ONE_FD_BYTES = socket.CMSG_SPACE(4)


class ProtocolError(RobustEvalError):
    """The other end sent something that is not a valid frame."""


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def rights(fds: list[int]) -> "list[tuple[int, int, array.array[int]]]":
    """Ancillary data that hands descriptors over."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


# -- driver <-> supervisor


class Frames:
    """Splits a stream of marshalled messages. `fds` are taken in the order in which the messages name them.

    Where a process has no descriptor free the kernel drops the rest of those that come with a message; a None stands
    there until the message is done with.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self.fds: deque[int | None] = deque()

    def read(self) -> bool:
        """Receive once. False at end-of-file. BlockingIOError passes through."""
        data, ancillary, flags, _ = self._sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
        if ancillary:
            self.fds.extend(descriptors(ancillary))
        if flags & socket.MSG_CTRUNC:
            self.fds.append(None)
        self._buffer += data
        return bool(data)

    def messages(self) -> Generator[Any, None, None]:
        """The whole messages received so far."""
        buffer, position = self._buffer, 0
        try:
            while len(buffer) - position >= _FRAME.size:
                (size,) = _FRAME.unpack_from(buffer, position)
                start = position + _FRAME.size
                if len(buffer) - start < size:
                    break
                try:
                    with memoryview(buffer) as view:
                        message = marshal.loads(view[start : start + size])
                except (EOFError, TypeError, ValueError) as error:
                    msg = f"{bytes(buffer[position : position + 16])!r} stands where a message was due"
                    raise ProtocolError(msg) from error
                position = start + size
                yield message
                if self.fds and self.fds[0] is None:
                    self.fds.popleft()
        finally:
            del buffer[:position]

    def close(self) -> None:
        """Close the descriptors that belong to a message whose end never came."""
        while self.fds:
            fd = self.fds.popleft()
            if fd is not None:
                os.close(fd)


def frame(message: Any) -> bytes:
    """One message for a `Frames` at the other end."""
    body = marshal.dumps(message, MARSHAL_VERSION)
    return _FRAME.pack(len(body)) + body


def portable(parcel: Parcel, fds: list[int]) -> bytes | int:
    """A parcel as it stands in a message: its bytes, or its size while its descriptor goes to `fds`.

    Where there is none, its bytes are empty.
    """
    if isinstance(parcel, Memory):
        fds.append(parcel.fd)
        return parcel.size
    return parcel


def unportable(value: bytes | int, fds: deque[int | None]) -> Parcel:
    """The parcel that stands in a message; its descriptor is `MISSING` where the kernel dropped it."""
    if not isinstance(value, int):
        return value
    if fds[0] is None:
        return Memory(MISSING, value)
    fd = fds.popleft()
    return Memory(MISSING if fd is None else fd, value)


# -- supervisor -> worker

_PACKET = struct.Struct("<BBxxIQ")
PACKET_HEADER_BYTES = _PACKET.size
PACKET_BYTES = 1 << 17
ASSIGN, JOB, JOB_IN_MEMORY = 1, 2, 3


class Packet(NamedTuple):
    """One packet of an inbox: what it is, the attempt, the job's id, and the payload."""

    kind: int
    attempt: int
    job_id: int
    payload: Parcel


def packet_header(kind: int, attempt: int, size: int, job_id: int) -> bytes:
    """The head of a packet."""
    return _PACKET.pack(kind, min(attempt, 255), size, job_id)


def receive_packet(sock: socket.socket, flags: int = 0) -> Packet | None:
    """Receive one packet; None at end-of-file."""
    data, ancillary, _, _ = sock.recvmsg(PACKET_BYTES + PACKET_HEADER_BYTES, _ONE_FD_BYTES, flags)
    if not data:
        return None
    kind, attempt, size, job_id = _PACKET.unpack_from(data)
    if kind == JOB_IN_MEMORY:
        return Packet(JOB, attempt, job_id, Memory(descriptors(ancillary)[0], size))
    return Packet(kind, attempt, job_id, data[PACKET_HEADER_BYTES:])


# -- supervisor <-> template

_ORDER = struct.Struct("<Q")
_TOLD = struct.Struct("<BQq")
_MOST_TOLD_BYTES = 1 << 16
TEMPLATE_READY, TEMPLATE_FAILED, FORKED, UNFORKED, EXITED = 1, 2, 3, 4, 5


class Told(NamedTuple):
    """What a template says: of which worker, its process id or wait status or an errno, or why it failed itself."""

    kind: int
    worker_id: int
    number: int
    text: str


def fork_order(worker_id: int) -> bytes:
    """The order to fork a worker."""
    return _ORDER.pack(worker_id)


def receive_order(sock: socket.socket, most_fds: int) -> tuple[int | None, list[int]]:
    """The worker to fork and its descriptors; None at end-of-file."""
    data, ancillary, _, _ = sock.recvmsg(_ORDER.size, socket.CMSG_SPACE(4 * most_fds))
    return (_ORDER.unpack(data)[0] if data else None), descriptors(ancillary)


def tell(sock: socket.socket, kind: int, worker_id: int = 0, number: int = 0, *, text: str = "", fd: int = -1) -> None:
    """Say something to the supervisor, with a descriptor where there is one."""
    data = _TOLD.pack(kind, worker_id, number) + text.encode(errors="backslashreplace")
    sock.sendmsg([data[:_MOST_TOLD_BYTES]], rights([fd] if fd >= 0 else []))


def hear(sock: socket.socket) -> tuple[Told | None, list[int]]:
    """The next thing that a template said, and its descriptor; None where nothing waits or it makes no sense."""
    try:
        data, ancillary, _, _ = sock.recvmsg(_MOST_TOLD_BYTES, _ONE_FD_BYTES, socket.MSG_DONTWAIT)
    except OSError:
        return None, []
    if len(data) < _TOLD.size:
        return None, descriptors(ancillary)
    kind, worker_id, number = _TOLD.unpack_from(data)
    text = data[_TOLD.size :].decode("utf-8", "backslashreplace")
    return Told(kind, worker_id, number, text), descriptors(ancillary)


# -- worker -> supervisor

_HEADER = struct.Struct("<HBBIQddQ")
HEADER_BYTES = _HEADER.size
_MAGIC = 0x5EED
READY, START_FAILED, RESULT, RECORD = 1, 2, 3, 4
IN_MEMORY, LEFTOVERS, LEAVING, PRINTED = 1, 2, 4, 8
KINDS = (None, "exception", "memory", "invalid", "unpicklable", "timeout", "crash")
_KIND_SHIFT = 4
_MOST_BYTES = 1 << 28


class Report(NamedTuple):
    """One frame of a worker. Instants are monotonic seconds, the peak is in bytes."""

    kind: int
    flags: int
    job_id: int
    begun_at: float
    ended_at: float
    peak_bytes: int
    payload: Parcel

    @property
    def failure_kind(self) -> str | None:
        """None for a value."""
        return KINDS[self.flags >> _KIND_SHIFT]


def report_header(  # noqa: PLR0917 - once a job: names would cost more than the call
    kind: int, flags: int, failure: int, size: int, job_id: int, measures: tuple[float, float, int]
) -> bytes:
    """The head of a report; `failure` is an index into `KINDS`, `measures` are begin, end and peak."""
    return _HEADER.pack(_MAGIC, kind, flags | failure << _KIND_SHIFT, size, job_id, *measures)


class Reports:
    """Splits what a worker sends, trusting nothing.

    Args:
        sock: the stream. The worker holds it too, so that a job may make it one that blocks; nothing here waits for it.
        stamps: the page shared with the worker, which learns from it how much was read: with what still lies in the
            channel, that is how much was ever written, by whatever means.
    """

    def __init__(self, sock: socket.socket, stamps: mmap) -> None:
        self._sock = sock
        self._stamps = stamps
        self._heard_bytes = 0
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def read(self) -> bool:
        """Receive once. False at end-of-file. BlockingIOError passes through."""
        self._stamps[HEARING_AT] = 1
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES, socket.MSG_DONTWAIT)
            self._heard_bytes += len(data)
            NUMBER.pack_into(self._stamps, HEARD_AT, self._heard_bytes)
        finally:
            self._stamps[HEARING_AT] = 0
        if ancillary:
            self._fds.extend(descriptors(ancillary))
        self._buffer += data
        return bool(data)

    def reports(self) -> Generator[Report, None, None]:
        """The whole reports received so far.

        Raises:
            ProtocolError: something in between is not a report.
        """
        buffer, position = self._buffer, 0
        try:
            while len(buffer) - position >= HEADER_BYTES:
                magic, kind, flags, size, job_id, begun_at, ended_at, peak = _HEADER.unpack_from(buffer, position)
                start = position + HEADER_BYTES
                in_memory = flags & IN_MEMORY
                if magic != _MAGIC or not 1 <= kind <= RECORD or flags >> _KIND_SHIFT >= len(KINDS):
                    msg = f"the worker wrote {bytes(buffer[position : position + 16])!r} where a report was due"
                    raise ProtocolError(msg)
                if in_memory and not (kind == RESULT and self._fds):
                    msg = "the worker announced a result in shared memory and sent none"
                    raise ProtocolError(msg)
                if not in_memory and size > _MOST_BYTES:
                    msg = f"the worker announced {size} bytes; more than {_MOST_BYTES} travel in shared memory only"
                    raise ProtocolError(msg)
                if not in_memory and len(buffer) - start < size:
                    break
                payload = Memory(self._fds.popleft(), size) if in_memory else bytes(buffer[start : start + size])
                position = start if in_memory else start + size
                yield Report(kind, flags, job_id, begun_at, ended_at, peak, payload)
        finally:
            del buffer[:position]

    def close(self) -> None:
        """Close the descriptors that nobody took, and the channel."""
        while self._fds:
            os.close(self._fds.popleft())
        self._sock.close()
