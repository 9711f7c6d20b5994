"""What the jobs of one worker print, cut into jobs.

The worker's stdout and stderr are one pipe. A worker whose job printed anything writes a marker behind it, so that
the next job's output is not taken for it; of each job the last 64 KiB are kept, and all of it goes into the job's log
where one was asked for.
"""

import contextlib
import os
from mmap import mmap

from robust_eval.processes.layout import NUMBER, READ_AT, READING_AT

TAIL_BYTES = 1 << 16
_READ_BYTES = 1 << 16
_MOST_READS = 64
# Without waiting: a job may have put a named pipe there, which nobody reads.
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Output:
    """The reading end of a worker's output.

    Args:
        fd: the pipe, not blocking.
        marker: the bytes that the worker writes behind a job's output, before the job's number.
        stamps: the page shared with the worker, which learns from it how much was read: with what still lies in the
            pipe, that is how much was ever written, by whatever means.
    """

    def __init__(self, fd: int, marker: bytes, stamps: mmap) -> None:
        self.fd = fd
        self._stamps = stamps
        self._read_bytes = 0
        self._marker = marker
        self._mark_bytes = len(marker) + NUMBER.size
        self._buffer = bytearray()
        self._logged = 0
        self._log_fd = -1
        self.ended = False

    def log_to(self, path: str) -> None:
        """From here on, the output goes into this file as well, which is made now.

        A log that cannot be written, on a full disk for one, is given up: it costs no job.
        """
        self._end_log()
        self._logged = 0
        with contextlib.suppress(OSError):
            self._log_fd = os.open(path, _LOG_FLAGS, 0o666)

    def read(self) -> bool:
        """Read once. False when there is nothing to read."""
        self._stamps[READING_AT] = 1
        try:
            data = os.read(self.fd, _READ_BYTES)
            self._read_bytes += len(data)
            NUMBER.pack_into(self._stamps, READ_AT, self._read_bytes)
        except BlockingIOError:
            return False
        finally:
            self._stamps[READING_AT] = 0
        self.ended = not data
        self._buffer += data
        if self._marker not in self._buffer:
            self._log(len(self._buffer) - self._mark_bytes)
            if (extra := len(self._buffer) - 2 * TAIL_BYTES) > 0:
                del self._buffer[:extra]
                self._logged = max(0, self._logged - extra)
        return bool(data)

    def forget(self) -> None:
        """Drop what the worker printed while it started."""
        while self.read():
            self._buffer.clear()
        self._buffer.clear()
        self._logged = 0

    def take(self, job_id: int) -> str:
        """The output of a job whose worker has said that it marked its end."""
        mark = self._marker + NUMBER.pack(job_id)
        for _ in range(_MOST_READS):
            end = self._buffer.find(mark)
            if end >= 0:
                self._log(end)
                tail = bytes(self._buffer[max(0, end - TAIL_BYTES) : end])
                del self._buffer[: end + len(mark)]
                self._logged = 0
                return _text(tail)
            if not self.read():
                break
        return ""

    def rest(self) -> str:
        """All that is left: the output of the job that runs, or ran when the worker died."""
        for _ in range(_MOST_READS):
            if not self.read():
                break
        self._log(len(self._buffer))
        return _text(bytes(self._buffer[-TAIL_BYTES:]))

    def _log(self, end: int) -> None:
        """Write what lies before `end` and is not written yet."""
        if self._log_fd < 0:
            self._logged = max(self._logged, end)
            return
        with memoryview(self._buffer) as view:
            while self._logged < end and self._log_fd >= 0:
                try:
                    self._logged += os.write(self._log_fd, view[self._logged : end])
                except OSError:
                    self._end_log()

    def _end_log(self) -> None:
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    def close(self) -> None:
        """Close the pipe and the log."""
        self._end_log()
        os.close(self.fd)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
