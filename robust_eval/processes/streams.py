"""The standard streams of a worker: nothing comes in, and what goes out reaches the supervisor's pipe.

There a mark stands behind what each job has printed, which may have come by any way: from code in C, for one.
"""

import io
import os
import sys

from robust_eval.processes.layout import NUMBER
from robust_eval.processes.outbox import Written


class Streams:
    """Text streams over descriptors 0 to 2.

    Made in the template, before the forks: what is there already, no worker pays for.
    """

    def __init__(self) -> None:
        raw = [io.FileIO(number, "w", closefd=False) for number in (1, 2)]
        self._written = [io.TextIOWrapper(io.BufferedWriter(each), "utf-8", "backslashreplace") for each in raw]
        for stream in self._written:
            stream.reconfigure(line_buffering=True)  # what was printed before a crash is worth more than speed
        self._read = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process

    def take(self, output: int) -> None:
        """Make them this process's own: reading gives nothing, writing goes to the descriptor `output`."""
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdin = self._read
        sys.stdout, sys.stderr = self._written
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]

    def flush(self) -> None:
        """Write out what Python has buffered."""
        for stream in self._written:
            try:  # once a job: `contextlib.suppress` would cost more than the flush
                stream.flush()
            except (OSError, ValueError):
                continue


class Printed:
    """What jobs print, told apart.

    Args:
        streams: of this process.
        output: the descriptor of the pipe.
        written: how much is in it.
    """

    def __init__(self, streams: Streams, output: int, written: Written) -> None:
        self._streams = streams
        self._output = output
        self._written = written
        self._marker = b""
        self._level: int | None = None

    def begin(self, marker: bytes) -> None:
        """What is there now is no job's. Marks begin with the marker, which no output has in it by chance."""
        self._marker = marker
        self._level = self._written.count()

    def mark(self, job_id: int) -> bool:
        """Flush what the job printed, and mark its end in the output if there is any. Whether there is."""
        self._streams.flush()
        before = self._level
        if before is not None and self._written.is_just(before):
            return False
        level = self._written.count()
        if level is not None and level == before:
            return False
        mark = self._marker + NUMBER.pack(job_id)
        try:
            os.write(self._output, mark)
        except OSError:
            return False
        self._level = None if level is None else level + len(mark)
        return True
