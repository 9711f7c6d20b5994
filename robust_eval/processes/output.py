"""What the jobs of one worker print, cut into jobs.

The worker's stdout and stderr are one pipe. A worker whose job printed anything writes a marker behind it, so that
the next job's output is not taken for it; of each job the last 64 KiB are kept.
"""

import os

from robust_eval.processes.layout import NUMBER

TAIL_BYTES = 1 << 16
_READ_BYTES = 1 << 16
_MOST_READS = 64


class Output:
    """The reading end of a worker's output.

    Args:
        fd: the pipe, not blocking.
        marker: the bytes that the worker writes behind a job's output, before the job's number.
    """

    def __init__(self, fd: int, marker: bytes) -> None:
        self.fd = fd
        self._marker = marker
        self._buffer = bytearray()

    def read(self) -> bool:
        """Read once. False when there is nothing to read."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        self._buffer += data
        if len(self._buffer) > 2 * TAIL_BYTES and self._marker not in self._buffer:
            del self._buffer[:-TAIL_BYTES]
        return bool(data)

    def take(self, job_id: int) -> str:
        """The output of a job whose worker has said that it marked its end."""
        mark = self._marker + NUMBER.pack(job_id)
        for _ in range(_MOST_READS):
            end = self._buffer.find(mark)
            if end >= 0:
                tail = bytes(self._buffer[:end])
                del self._buffer[: end + len(mark)]
                return _text(tail)
            if not self.read():
                break
        return ""

    def rest(self) -> str:
        """All that is left: the output of the job that runs, or ran when the worker died."""
        for _ in range(_MOST_READS):
            if not self.read():
                break
        return _text(bytes(self._buffer))

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.fd)


def _text(data: bytes) -> str:
    return data[-TAIL_BYTES:].decode("utf-8", "backslashreplace")
