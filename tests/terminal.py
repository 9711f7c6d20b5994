"""A real pseudo-terminal with a program in it: what a person at a keyboard sees and types."""

import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Self

_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\r")
_PATIENCE_S = 60.0


class Terminal:
    """Runs a command in a terminal of its own, and reads all that it writes, as a screen does.

    A program whose terminal nobody reads stands still in a write sooner or later. Its process group is killed at the
    end of the block.
    """

    def __init__(self, command: Sequence[str], cwd: Path, columns: int = 120, rows: int = 40) -> None:
        self._screen, other = pty.openpty()
        ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no thread of a test holds a lock here
        )
        os.close(other)
        self._seen = b""
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def seen(self) -> bytes:
        """Everything that was written so far."""
        return self._seen

    @property
    def text(self) -> str:
        """Everything that was written so far, without what moves the cursor and colours."""
        return _ESCAPES.sub(b"", self._seen).decode(errors="replace")

    def type(self, keys: bytes) -> None:
        r"""Press keys; ``b"\\x03"`` is Ctrl-C."""
        os.write(self._screen, keys)

    def wait_for(self, text: str) -> None:
        """Wait until the text was written; fail when it never is."""
        self._wait(lambda: text in self.text)
        assert text in self.text, self.text

    def wait(self) -> int:
        """Wait for the end, with all that was written, and give the exit code."""
        self._wait(lambda: False)
        return self.process.wait(_PATIENCE_S)

    def _wait(self, enough: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or enough(), _PATIENCE_S)

    def _read(self) -> None:
        chunk: bytes | None = None
        while chunk != b"":
            try:
                chunk = os.read(self._screen, 65536)
            except OSError:  # nobody has the other end any more
                chunk = b""
            with self._changed:
                self._seen += chunk
                self._ended = not chunk
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(_PATIENCE_S)
        os.close(self._screen)
