"""Which jobs had begun when their driver died: a log that outlives it, written by the workers themselves.

A record is two numbers: that of a job in its pool, and that of the job in its search (from the driver, before the job
can run) or `BEGUN` (from the worker, when it begins). Records are appended whole, so the writers need no lock, and what
was written is there after SIGKILL. It costs a worker one `write` a job, and nobody anything where no storage outlives
the driver.
"""

import array
import contextlib
import os
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# In the environment of a pool's processes: the path of the log.
VARIABLE: Final = "ROBUST_EVAL_BEGUN"
BEGUN: Final = 2**64 - 1
_RECORD: Final = struct.Struct("=QQ")
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class BegunLog:
    """The driver's end of a log.

    Args:
        path: the file, made anew.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: "Path") -> None:
        self.path = path
        self._fd = os.open(path, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
        self._next = 0

    def expect(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Say which job of the search each number of the pool is, before the pool gets them."""
        numbers = array.array("Q", [number for pair in pairs for number in pair])
        self._append(numbers.tobytes())

    def note(self, job_number: int) -> None:
        """Say that a job begins, where no pool runs it."""
        number, self._next = self._next, self._next + 1
        self._append(_RECORD.pack(number, job_number) + _RECORD.pack(number, BEGUN))

    def _append(self, data: bytes) -> None:
        # A log that cannot be written costs the count of the attempts, and no job.
        with contextlib.suppress(OSError):
            os.write(self._fd, data)

    def close(self) -> None:
        """Close and remove the file: the driver ends in good order."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self.path.unlink(missing_ok=True)


def take_path() -> str | None:
    """Where the log is that the environment names, which jobs do not see; None where there is none."""
    return os.environ.pop(VARIABLE, None)


def open_begun(path: str | None) -> int:
    """Open the log as a worker does; -1 where there is none."""
    if path is None:
        return -1
    try:
        return os.open(path, _FLAGS)
    except OSError:
        return -1


def note_begun(fd: int, number: int) -> None:
    """Say, in a worker, that the job with this number of the pool begins."""
    with contextlib.suppress(OSError):
        os.write(fd, _RECORD.pack(number, BEGUN))


def read_begun(path: "Path") -> set[int]:
    """Give the numbers, in the search, of the jobs that had begun; empty where the log cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return set()
    records = list(_RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]))
    jobs = {number: job for number, job in records if job != BEGUN}
    return {jobs[number] for number, job in records if job == BEGUN and number in jobs}
