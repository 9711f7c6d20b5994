"""Runs one executable to its end: passes its output on, keeps the last of it, leaves nothing of its process group."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from robust_eval.errors import JobStop
from robust_eval.processes import system

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

KEPT_BYTES: Final = 1 << 20
_CHUNK: Final = 1 << 16
_MOST_LAST_CHUNKS: Final = 64  # a pipe holds one, unless somebody made it larger


class Ended(NamedTuple):
    """How a process ended: its exit code (negative for a signal), the last of its output, seconds that it ran."""

    code: int
    output: str
    duration: float


def run(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None, stdin: str | None) -> Ended:
    """Run an executable in a process group of its own.

    What it writes to stdout is written to ours as it comes, and its stderr is ours. When the job is asked to stop
    (`JobStop`), the group gets SIGTERM and may still end well. However this function ends, what is left of the group
    is killed.

    Args:
        argv: the program and its arguments; no shell reads them.
        cwd: the directory that it starts in.
        env: its environment; ``None`` for ours.
        stdin: what it reads; ``None`` for nothing.

    Raises:
        OSError: it cannot be started.
    """
    with _input(stdin) as source:
        begun_at = time.monotonic()
        process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=source, stdout=subprocess.PIPE, bufsize=0, process_group=0
        )
    try:
        tail = _Tail(process)
        try:
            tail.follow()
        except JobStop:
            _signal_group(process, signal.SIGTERM)
            tail.follow()
    finally:
        _signal_group(process, signal.SIGKILL)  # the leader is not reaped yet: its number is nobody else's
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return Ended(process.returncode, tail.text(), time.monotonic() - begun_at)


@contextlib.contextmanager
def _input(text: str | None) -> Iterator[IO[bytes] | int]:
    """A file rather than a pipe: whoever does not read it blocks nobody."""
    if text is None:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Tail:
    """Reads a process's stdout until the process ends, not until the pipe does: a daemon may hold it open."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  it was asked for
        self._pid = process.pid
        self._fd = process.stdout.fileno()
        os.set_blocking(self._fd, False)
        self._kept = bytearray()

    def follow(self) -> None:
        """Pass on what is written, until the process has ended and everything that it wrote is read."""
        exit_fd = system.watch_exit(self._pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._fd, selectors.EVENT_READ)
                selector.register(exit_fd, selectors.EVENT_READ)
                ended = False
                while not ended:
                    ready = {key.fd for key, _ in selector.select()}
                    ended = exit_fd in ready
                    if self._fd in ready and not self._read():
                        selector.unregister(self._fd)
        finally:
            os.close(exit_fd)
        for _ in range(_MOST_LAST_CHUNKS):  # bounded: a daemon may write for ever
            if not self._read():
                break

    def _read(self) -> bool:
        """Take what is there; false where there is nothing, and at the end of the pipe."""
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        self._kept += chunk
        if len(self._kept) > 2 * KEPT_BYTES:
            del self._kept[:-KEPT_BYTES]
        _pass_on(chunk)
        return bool(chunk)

    def text(self) -> str:
        """The last that was written, at most `KEPT_BYTES`."""
        return bytes(self._kept[-KEPT_BYTES:]).decode("utf-8", errors="backslashreplace")


def _pass_on(chunk: bytes) -> None:
    view = memoryview(chunk)
    with contextlib.suppress(OSError):  # nobody listens: the command goes on
        while view:
            view = view[os.write(1, view) :]
