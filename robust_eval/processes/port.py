"""The supervisor's end of one worker: its channels, its shared page, its stack dump, its output."""

import contextlib
import errno
import mmap
import os
import signal
import socket
from collections import deque
from typing import NamedTuple

from robust_eval.processes import system, wire
from robust_eval.processes.layout import (
    BEGUN_AT,
    INSTANT,
    LOST_AT,
    NUMBER,
    STACK_BYTES,
    STAMP_BYTES,
    STOP_AT,
)
from robust_eval.processes.output import Output
from robust_eval.processes.parcel import MISSING, Memory, Parcel
from robust_eval.processes.stream import BUFFER_BYTES

_MARKER_BYTES = 16
_STACK_PIECE_BYTES = 1 << 13
_FEW_PIECES = 8  # more take longer than to join them, and a message has no room for a thousand
_DONT_WAIT = socket.MSG_DONTWAIT
_MOST_CLAIMS = 1 << 12
_ENDED = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class Finished(NamedTuple):
    """The payload of a result in the core: opaque to it."""

    parcel: Parcel
    output_tail: str
    peak_bytes: int


class ExitInfo(NamedTuple):
    """What the end of a worker showed. `peak_bytes` is the most that was seen of its tree."""

    signal: str | None = None
    exit_code: int | None = None
    stack: str | None = None
    stack_missing: str | None = None
    output_tail: str = ""
    peak_bytes: int = 0
    oom_killed: bool = False
    channel_lost: bool = False


class Port:
    """One worker as the supervisor sees it. `child_fds` go to the template and are closed here then."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.pid: int | None = None
        self.exit_fd: int | None = None
        self.doomed = False
        self.peak_bytes = 0
        self.marker = os.urandom(_MARKER_BYTES)
        self._inbox, inbox = socket.socketpair(socket.AF_UNIX, system.INBOX_TYPE)
        self._inbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.outbox, outbox = socket.socketpair()
        outbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._claims = outbox.dup()
        self._turn = 0
        self._sent: deque[int] = deque()
        self._next: list[bytes] = []
        self._next_ids: list[int] = []
        self._next_bytes = 0
        self.outbox.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._page_fd = system.memory_file(STAMP_BYTES + STACK_BYTES)
        os.lseek(self._page_fd, STAMP_BYTES, os.SEEK_SET)
        self._stamps = mmap.mmap(self._page_fd, STAMP_BYTES)
        self.reports = wire.Reports(self.outbox, self._stamps)
        output, output_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(output_end, True)
        self.output = Output(output, self.marker, self._stamps)
        heard, page = os.dup(self.outbox.fileno()), os.dup(self._page_fd)
        self.child_fds = [inbox.detach(), outbox.detach(), heard, output_end, page]

    # -- the inbox

    def assign(self, settings: bytes) -> None:
        """Give the worker its slot."""
        self._push([wire.packet_header(wire.ASSIGN, 0, 0, len(settings), 0), settings], [])

    def send(self, attempt: int, job_id: int, parcel: Parcel) -> list[int]:
        """Give the worker a job with the next message, see `flush`; one in shared memory goes at once.

        Returns:
            The jobs that found no room.
        """
        if isinstance(parcel, Memory):
            refused = self.flush()
            header = wire.packet_header(wire.JOB_IN_MEMORY, attempt, self._turn, parcel.size, job_id)
            return refused + self._offer([header], [job_id], [] if parcel.fd == MISSING else [parcel.fd])
        refused = self.flush() if self._next_bytes + len(parcel) > wire.MESSAGE_BYTES else []
        self._next += (wire.packet_header(wire.JOB, attempt, self._turn, len(parcel), job_id), parcel)
        self._next_ids.append(job_id)
        self._next_bytes += len(parcel) + wire.PACKET_HEADER_BYTES
        return refused

    def flush(self) -> list[int]:
        """Send the jobs that have gathered. Returns those that found no room."""
        if not self._next:
            return []
        packets, job_ids = self._next, self._next_ids
        self._next, self._next_ids, self._next_bytes = [], [], 0
        return self._offer(packets, job_ids, [])

    def _offer(self, packets: list[bytes], job_ids: list[int], fds: list[int]) -> list[int]:
        """Send a message, and before it the claims of its jobs: a worker that has read it looks for them at once."""
        with contextlib.suppress(OSError):  # a job filled or shut the stream: the worker finds no claim, and ends
            self.outbox.send(wire.CLAIMS[self._turn] * len(job_ids), _DONT_WAIT)
        if self._push(packets, fds):
            self._sent.extend(job_ids)
            return []
        self._unclaim(len(job_ids))
        return job_ids

    def _push(self, packets: list[bytes], fds: list[int]) -> bool:
        """Send one message. False when the inbox is full; that its end is closed, the death of the worker will tell."""
        try:
            pieces = packets if len(packets) <= _FEW_PIECES else [b"".join(packets)]
            self._inbox.sendmsg(pieces, wire.rights(fds), _DONT_WAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # the worker finds none, and says so
                return self._push(packets, [])
            if error.errno not in _ENDED:
                raise
        return True

    def _unclaim(self, count: int) -> int:
        """Take so many claims back, or all that are left. The kernel sees to it that nobody else has the same."""
        try:
            return self._claims.recv(count, _DONT_WAIT).count(wire.CLAIMS[self._turn])
        except OSError:
            return 0

    def heard(self, job_id: int) -> int | None:
        """The worker has reported this job. Returns the one that lies behind it."""
        sent = self._sent
        if sent and sent[0] == job_id:
            sent.popleft()
        return sent[0] if sent else None

    def claimed(self) -> list[int]:
        """The jobs that the worker has claimed and not reported: it runs the last of them."""
        try:
            claims = self._claims.recv(_MOST_CLAIMS, _DONT_WAIT | socket.MSG_PEEK)
        except OSError:
            claims = b""
        return list(self._sent)[: len(self._sent) - claims.count(wire.CLAIMS[self._turn])]

    def take_back(self) -> list[int]:
        """The jobs that the worker has not begun, which it now cannot begin any more.

        It may have read them, and does not forget them before its job ends: what it gets from now on has claims of
        another turn, so that it takes none of these for those. A worker may be taken back from more than once in a job.
        """
        unsent, self._next, self._next_ids, self._next_bytes = self._next_ids, [], [], 0
        count = min(self._unclaim(_MOST_CLAIMS), len(self._sent))
        if not count:
            return unsent
        self._turn = (self._turn + 1) % len(wire.CLAIMS)
        return [self._sent.pop() for _ in range(count)][::-1] + unsent

    # -- the shared page

    def stamp(self) -> tuple[int, float] | None:
        """The job that the worker began last, and when."""
        (number,) = NUMBER.unpack_from(self._stamps)
        (begun_at,) = INSTANT.unpack_from(self._stamps, BEGUN_AT)
        return (number - 1, begun_at) if number else None

    def ask_to_stop(self, job_id: int) -> None:
        """Let the worker's handler know which job is to stop."""
        NUMBER.pack_into(self._stamps, STOP_AT, job_id + 1)

    def stack(self) -> str:
        """What faulthandler wrote: from the beginning, without zeros."""
        data = b""
        while len(data) < STACK_BYTES:
            piece = os.pread(self._page_fd, _STACK_PIECE_BYTES, STAMP_BYTES + len(data))
            data += piece
            if not piece or not piece[-1]:  # most workers wrote none, and the page is large
                break
        return data.rstrip(b"\0").decode("utf-8", "backslashreplace")

    # -- the process

    def signal(self, number: int) -> None:
        """Send a signal to this very process, never to one that got its number since."""
        with contextlib.suppress(ProcessLookupError):
            if self.exit_fd is not None and system.LINUX:
                signal.pidfd_send_signal(self.exit_fd, number)
            elif self.pid is not None:
                os.kill(self.pid, number)

    def exit_info(self, status: int, *, dumped: bool, oom_killed: bool) -> ExitInfo:
        """What the dead worker left to be read."""
        stack = self.stack() or None
        missing = "the process wrote none within 5 ms: its signal is masked, or it is stopped" if dumped else None
        return ExitInfo(
            signal=_signal_name(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None,
            exit_code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            stack=stack,
            stack_missing=None if stack else missing,
            output_tail=self.output.rest(),
            peak_bytes=self.peak_bytes,
            oom_killed=oom_killed,
            channel_lost=bool(self._stamps[LOST_AT]),
        )

    def hand_over(self) -> None:
        """The worker has its descriptors, which are of no use here."""
        for fd in self.child_fds:
            os.close(fd)
        self.child_fds = []

    def close(self) -> None:
        """Close everything, once."""
        self.hand_over()
        self._inbox.close()
        self._claims.close()
        self.reports.close()
        self.output.close()
        self._stamps.close()
        os.close(self._page_fd)
        if self.exit_fd is not None:
            os.close(self.exit_fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
