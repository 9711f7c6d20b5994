"""Frames <-> bytes on the four kinds of channel.

- driver <-> supervisor, a stream: length, marshal. Both ends are ours and of one interpreter.
- supervisor -> worker, messages of packets, one a job. A job may begin only with its claim, one byte of a stream beside
  the inbox: whoever takes that byte, the worker or the supervisor that wants the job back, has the job.
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
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any, NamedTuple

from robust_eval.errors import RobustEvalError
from robust_eval.processes.layout import (
    CANARY,
    CANARY_AT,
    HEARD_AT,
    HEARING_AT,
    HELD_AT,
    HELD_BYTES,
    HELD_BYTES_AT,
    HELD_FIRST_AT,
    NUMBER,
)
from robust_eval.processes.parcel import INLINE_BYTES, MISSING, Landed, Memory, Parcel
from robust_eval.processes.stream import Content, Stream, copy_of

MARSHAL_VERSION = 4
_FRAME = struct.Struct("<Q")
_ONE_FD_BYTES = socket.CMSG_SPACE(4)
_TRUNCATED = int(socket.MSG_CTRUNC)  # `&` with an enum takes longer than the read


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
        self._stream = Stream(sock)
        self.fds: deque[int | None] = deque()

    def read(self) -> bool:
        """Receive once. False at end-of-file. BlockingIOError passes through."""
        size, ancillary, flags = self._stream.receive()
        if ancillary:
            self.fds.extend(descriptors(ancillary))
        if flags & _TRUNCATED:
            self.fds.append(None)
        return size > 0

    def messages(self) -> Generator[Any, None, None]:
        """The whole messages received so far."""
        stream, position, lacking = self._stream, 0, 0
        try:
            while len(stream.content) - position >= _FRAME.size:
                (size,) = _FRAME.unpack_from(stream.content, position)
                end = position + _FRAME.size + size
                lacking = max(0, end - len(stream.content))
                if lacking:
                    break
                try:
                    with memoryview(stream.content) as view:
                        message = marshal.loads(view[position + _FRAME.size : end])
                except (EOFError, TypeError, ValueError) as error:
                    msg = f"{bytes(stream.content[position : position + 16])!r} stands where a message was due"
                    raise ProtocolError(msg) from error
                position = end
                yield message
                if self.fds and self.fds[0] is None:
                    self.fds.popleft()
        finally:
            stream.use(position, lacking)

    def close(self) -> None:
        """Close the descriptors that belong to a message whose end never came."""
        while self.fds:
            fd = self.fds.popleft()
            if fd is not None:
                os.close(fd)


def frame(message: Any) -> bytes:
    """One message for a `Frames` at the other end."""
    return b"".join(pieces_of(message))


def pieces_of(message: Any) -> list[bytes]:
    """The same in pieces: a large message need not be copied for the sake of its head."""
    body = marshal.dumps(message, MARSHAL_VERSION)
    return [_FRAME.pack(len(body)), body]


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

_PACKET = struct.Struct("<BBHIQ")
PACKET_HEADER_BYTES = _PACKET.size
PACKET_BYTES = INLINE_BYTES
MESSAGE_BYTES = 1 << 15
ASSIGN, JOB, JOB_IN_MEMORY = 1, 2, 3
CLAIMS = tuple(bytes([value]) for value in range(0xC0, 0x100))  # one for each turn, see `Port.take_back`


class Packet(NamedTuple):
    """One packet of an inbox: what it is, the attempt, the turn of its claim, the job's id, and the payload."""

    kind: int
    attempt: int
    turn: int
    job_id: int
    payload: Landed


def packet_header(kind: int, attempt: int, turn: int, size: int, job_id: int) -> bytes:
    """The head of a packet."""
    return _PACKET.pack(kind, min(attempt, 255), turn, size, job_id)


class Inbox:
    """The worker's end: splits messages into packets. A payload in shared memory has a message of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Mapped: of a buffer on the heap each new worker would pay for every page.
        self._buffer = mmap(-1, PACKET_BYTES + PACKET_HEADER_BYTES, MAP_PRIVATE | MAP_ANONYMOUS)
        self._view = memoryview(self._buffer).toreadonly()

    def read(self, flags: int = 0) -> list[Packet]:
        """Receive one message; its payloads are good until the next. Empty at end-of-file. BlockingIOError passes."""
        size, ancillary, _, _ = self._sock.recvmsg_into([self._buffer], _ONE_FD_BYTES, flags)
        packets, position = [], 0
        while position < size:
            kind, attempt, turn, length, job_id = _PACKET.unpack_from(self._buffer, position)
            position += PACKET_HEADER_BYTES
            if kind == JOB_IN_MEMORY:
                memory = Memory(next(iter(descriptors(ancillary)), MISSING), length)
                return [Packet(JOB, attempt, turn, job_id, memory)]
            payload = self._view[position : position + length]
            packets.append(new_named(Packet, (kind, attempt, turn, job_id, payload)))
            position += length
        return packets


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
new_named = tuple.__new__  # a named tuple's own takes three times as long
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

    Results of short jobs lie in the shared page until the worker sends several at once. They may be read there, at any
    time: results are counted, and what is read a second time, from the channel, is passed over.

    Args:
        sock: the stream. The worker holds it too, so that a job may make it one that blocks; nothing here waits for it.
        stamps: the page shared with the worker, which learns from it how much was read: with what still lies in the
            channel, that is how much was ever written, by whatever means.
    """

    def __init__(self, sock: socket.socket, stamps: mmap) -> None:
        self._sock = sock
        self._stream = Stream(sock)
        self._stamps = stamps
        stamps[CANARY_AT : CANARY_AT + len(CANARY)] = CANARY
        self._heard_bytes = 0
        self._fds: deque[int] = deque()
        self._sent_count = 0
        self._taken_count = 0

    def read(self) -> bool:
        """Receive once. False at end-of-file. BlockingIOError passes through."""
        stamps = self._stamps
        stamps[HEARING_AT] = 1
        try:
            size, ancillary, _ = self._stream.receive(socket.MSG_DONTWAIT)
            self._heard_bytes += size
            NUMBER.pack_into(stamps, HEARD_AT, self._heard_bytes)
        finally:
            stamps[HEARING_AT] = 0
        if ancillary:
            self._fds.extend(descriptors(ancillary))
        return size > 0

    def reports(self) -> Generator[Report, None, None]:
        """The whole reports received so far.

        Raises:
            ProtocolError: something in between is not a report.
        """
        stream, position, lacking = self._stream, 0, 0
        try:
            while len(stream.content) - position >= HEADER_BYTES:
                report, end = self._parse(stream.content, position)
                if report is None:
                    lacking = end - len(stream.content)
                    break
                position = end
                if report.kind == RESULT:
                    self._sent_count += 1
                    if self._sent_count <= self._taken_count:
                        continue
                    self._taken_count = self._sent_count
                yield report
        finally:
            stream.use(position, lacking)

    @property
    def are_overwritten(self) -> bool:
        """Whether a job wrote over the page, so that nothing in it means anything."""
        return self._stamps[CANARY_AT : CANARY_AT + len(CANARY)] != CANARY

    def held(self) -> list[Report] | None:
        """The results that the worker has written down and not sent, in so far as they are new. Read the channel first.

        Returns:
            None where the worker was just sending them: then they are in the channel. Nothing of a page that a job
            wrote over.

        Raises:
            ProtocolError: something in between is not a result.
        """
        stamps = self._stamps
        (first,) = NUMBER.unpack_from(stamps, HELD_FIRST_AT)
        (size,) = NUMBER.unpack_from(stamps, HELD_BYTES_AT)
        if not size or self.are_overwritten:
            return []
        content = stamps[HELD_AT : HELD_AT + min(size, HELD_BYTES)]
        if NUMBER.unpack_from(stamps, HELD_FIRST_AT)[0] != first or first > self._taken_count:
            return None
        reports, position = [], 0
        while position < len(content):
            report, position = self._parse(content, position)
            if report is None or report.kind != RESULT:
                msg = "what the worker wrote down to be sent is no result"
                raise ProtocolError(msg)
            reports.append(report)
        new = reports[max(0, self._taken_count - first) :]
        self._taken_count = max(self._taken_count, first + len(reports))
        return new

    def _parse(self, buffer: Content, position: int) -> tuple[Report | None, int]:
        """The report that begins here and where it ends; None where it is not whole."""
        if len(buffer) - position < HEADER_BYTES:
            return None, len(buffer)
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
        end = start if in_memory else start + size
        if len(buffer) < end:
            return None, end
        payload = Memory(self._fds.popleft(), size) if in_memory else copy_of(buffer, start, end)
        return new_named(Report, (kind, flags, job_id, begun_at, ended_at, peak, payload)), end

    def close(self) -> None:
        """Close the descriptors that nobody took, and the channel."""
        while self._fds:
            os.close(self._fds.popleft())
        self._sock.close()
