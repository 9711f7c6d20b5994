"""What a worker says to its supervisor: reports, and how much of what is in a channel is its own.

Results of short jobs are held for a moment, so that one message carries many. What is held lies in the page shared with
the supervisor, which finds it there whatever becomes of this process: see `wire.Reports`.
"""

import errno
import socket
import threading
from collections.abc import Callable
from fcntl import ioctl
from mmap import mmap
from termios import FIONREAD
from time import monotonic, sleep
from typing import NoReturn

from robust_eval.processes import wire
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
    SENT_AT,
)
from robust_eval.processes.parcel import Memory, Parcel, discard

_HOLD_S = 0.002
_CROWDED_S, _MOMENT_S = 5.0, 0.001
_MOST_LOOKS = 1000  # at an instant in which the supervisor does not just read
# Where in the page of numbers
_SENT, _HELD_FIRST, _HELD_BYTES = SENT_AT // 8, HELD_FIRST_AT // 8, HELD_BYTES_AT // 8
_CANARY = CANARY_AT // 8
(_INTACT,) = NUMBER.unpack(CANARY)


class Written:
    """How many bytes were ever written into a channel, by whatever means.

    Args:
        fd: an end of it.
        numbers: of the page shared with the supervisor, which notes there how much it has read.
        read: the place of that number.
        reading: that of another one, which is not 0 while the supervisor reads.
    """

    def __init__(self, fd: int, numbers: memoryview, read: int, reading: int) -> None:
        self._fd = fd
        self._numbers = numbers
        self._read = read
        self._reading = reading
        self._waiting = bytearray(4)
        self._waiting_bytes = memoryview(self._waiting).cast("i")

    def count(self) -> int | None:
        """None where the channel is closed, or while the supervisor reads from it."""
        numbers = self._numbers
        before: int = numbers[self._read]
        busy = numbers[self._reading]
        try:
            ioctl(self._fd, FIONREAD, self._waiting)
        except OSError:
            return None
        if busy or numbers[self._reading] or numbers[self._read] != before:
            return None
        return before + self._waiting_bytes[0]

    def is_just(self, size: int) -> bool:
        """Whether it is so many for sure. The quick look after each job: False means nothing, `count` knows more.

        In this order: what the supervisor reads after the first step makes the sum too large, and what it had read
        before is either noted or still being read.
        """
        try:
            ioctl(self._fd, FIONREAD, self._waiting)
        except OSError:
            return False
        numbers = self._numbers
        return not numbers[self._reading] and bool(numbers[self._read] + self._waiting_bytes[0] == size)

    @property
    def closed(self) -> bool:
        """Whether the descriptor is no channel any more."""
        try:
            ioctl(self._fd, FIONREAD, self._waiting)
        except OSError:
            return True
        return False


class Outbox:
    """The stream to the supervisor.

    Args:
        sock: this end.
        far_end: a descriptor of the other one, which tells how much lies in between.
        stamps: the shared page.
        give_up: called where the stream is not what it was; ends the process.
    """

    def __init__(self, sock: socket.socket, far_end: int, stamps: mmap, give_up: Callable[[], NoReturn]) -> None:
        self._sock = sock
        self._stamps = stamps
        self._numbers = memoryview(stamps).cast("Q")
        self._written = Written(far_end, self._numbers, HEARD_AT // 8, HEARING_AT // 8)
        self._give_up = give_up
        self._sending = threading.RLock()
        self._held_bytes = self._held_count = self._sent_count = 0
        self._held_since = 0.0

    def send(self, kind: int, parcel: bytes = b"", job_id: int = 0) -> None:
        """Say something that is no result."""
        header = wire.report_header(kind, 0, 0, len(parcel), job_id, (0.0, 0.0, 0))
        self._write([header, parcel], [])

    def report(
        self, status: tuple[int, int], parcel: Parcel, job_id: int, measures: tuple[float, float, int], *, held: bool
    ) -> None:
        """Say what came of a job.

        Args:
            status: flags, and the failure as an index into `wire.KINDS`.
            parcel: the payload.
            job_id: of which job.
            measures: begin and end in monotonic seconds, peak in bytes.
            held: whether it may wait for the results of the next jobs.
        """
        flags, failure = status
        if isinstance(parcel, Memory):
            flags |= wire.IN_MEMORY
            header = wire.report_header(wire.RESULT, flags, failure, parcel.size, job_id, measures)
            self._flush_with([header], [parcel.fd])
            discard(parcel)
            return
        header = wire.report_header(wire.RESULT, flags, failure, len(parcel), job_id, measures)
        begun_at, ended_at, _ = measures
        end = self._held_bytes + len(header) + len(parcel)
        if not self._held_bytes:
            self._held_since = begun_at  # not its end: that of a long job goes at once, since the next takes long, too
        if not held or end > HELD_BYTES or ended_at - self._held_since > _HOLD_S:
            self._flush_with([header, parcel], [])
            return
        self._stamps[HELD_AT + self._held_bytes : HELD_AT + end] = header + parcel
        self._held_bytes = end
        self._held_count += 1
        self._numbers[_HELD_BYTES] = end

    def flush(self) -> None:
        """Send the results that are held."""
        if self._held_bytes:
            self._flush_with([], [])

    def _flush_with(self, result: list[bytes], fds: list[int]) -> None:
        """Send the results that are held and, behind them, this one: its pieces, or none."""
        size = self._held_bytes
        self._write([self._stamps[HELD_AT : HELD_AT + size], *result] if size else result, fds)
        self._numbers[_HELD_BYTES] = 0  # before the number of the first: what is read in between is nothing
        self._sent_count += self._held_count + bool(result)
        self._held_bytes = self._held_count = 0
        self._numbers[_HELD_FIRST] = self._sent_count

    def _write(self, pieces: list[bytes], fds: list[int]) -> None:
        """Write into the stream, and note how much in the page: a forked child of the job may record values, too."""
        size = sum(map(len, pieces))
        try:
            with self._sending:
                self._numbers[_SENT] += size
                sent = self._send_first(pieces, fds)
                if sent < size:  # a signal came
                    self._sock.sendall(b"".join(pieces)[sent:])
        except OSError:
            self._give_up()

    def _send_first(self, pieces: list[bytes], fds: list[int]) -> int:
        """Send what goes at once. Where a user has too many descriptors under way, others are received in a moment."""
        ends_at = monotonic() + _CROWDED_S
        while True:
            try:
                return self._sock.sendmsg(pieces, wire.rights(fds))
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS or monotonic() > ends_at:
                    raise
                sleep(_MOMENT_S)

    def is_written_by_others(self) -> bool:
        """Whether there is more in the stream than was sent, or it is closed, or the page is not what it was.

        The job is to blame for that.

        The supervisor would find out as well, but only once further jobs of the inbox had run, whose reports it
        could no longer tell from the rubbish; and a result that is held needs no stream.
        """
        numbers = self._numbers
        if numbers[_CANARY] != _INTACT:
            return True
        sent: int = numbers[_SENT]
        if self._written.is_just(sent):
            return False
        for _ in range(_MOST_LOOKS):
            written = self._written.count()
            if written is not None:
                return bool(written != sent)
        return self._written.closed
