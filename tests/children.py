"""Real processes for tests: helpers that are asked line by line, and calls made in a forked child."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, Self


class Helper:
    """A Python process that runs the code and is asked over its standard streams. Killed at the end of the block."""

    def __init__(self, code: str, *arguments: str, pass_fds: tuple[int, ...] = (), **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env={**os.environ, **environment},
        )
        self.pids: list[int] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, line: str) -> str:
        """Say one line, and give the one that comes back."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> str:
        """One line of its output, without the newline; empty at the end."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def wait(self) -> int:
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (*self.pids, self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def in_child(function: Callable[[], Any]) -> Any:
    """What the function gives in a forked child, where it may change whatever a process has.

    An exception there fails the test here, with its traceback.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # A coverage measurement begins anew in each fork, at the cost of all modules that are loaded, and in a fork of
        # this child twice. That much is enough.
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
        try:
            answer = (True, function())
        except BaseException:  # noqa: BLE001 - told to the parent
            answer = (False, traceback.format_exc())
        with os.fdopen(writing, "wb") as file:
            pickle.dump(answer, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    assert said, f"the child ended with status {status} and said nothing"
    good, value = pickle.loads(said)
    assert good, value
    return value


def end_of(pid: int) -> int:
    """The exit code of a forked child, once it has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
