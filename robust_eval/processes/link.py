"""The supervisor's two other channels: the driver, who sends jobs and gets outcomes, and the template, who forks."""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from robust_eval.processes import system, wire
from robust_eval.processes.orders import NOTICED, SETTLED, TOLD
from robust_eval.processes.parcel import Memory, Parcel, read_out
from robust_eval.processes.settings import Settings
from robust_eval.processes.stream import UnderWay, rest_of

_TAIL_BYTES = 1 << 15
_LATER = (errno.EAGAIN, errno.ETOOMANYREFS)


class DriverLink:
    """Reads orders and writes outcomes, in batches, never waiting for a driver that does not read.

    Made before this process raises its limit of open files, which until then is the driver's.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frames = wire.Frames(sock)
        self.under_way = UnderWay(sock, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.done: list[tuple[Any, ...]] = []
        self.failed: list[tuple[Any, ...]] = []
        self.recorded: list[tuple[int, bytes]] = []
        self.fds: list[int] = []
        self._out: deque[tuple[list[bytes] | list[memoryview], list[int]]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether something waits for the driver to read."""
        return bool(self._out)

    def flush(self) -> None:
        """Send what has gathered since the last flush."""
        if self.done or self.failed or self.recorded:
            message = (SETTLED, self.done, self.failed, self.recorded)
            self._out.append((wire.pieces_of(message), self.fds))
            self.under_way.add(len(self.fds))
            self.done, self.failed, self.recorded, self.fds = [], [], [], []
        self.drain()

    def tell(self, stats: dict[str, Any]) -> None:
        """Answer the driver's question."""
        self._out.append((wire.pieces_of((TOLD, stats)), []))

    def notice(self, message: str, fields: dict[str, Any]) -> None:
        """Have the driver log something that went wrong here."""
        self._out.append((wire.pieces_of((NOTICED, message, fields)), []))

    def drain(self) -> None:
        """Write as much as the channel takes."""
        while self._out:
            pieces, fds = self._out[0]
            try:
                sent = self.sock.sendmsg(pieces, wire.rights(fds), socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno not in _LATER:
                    self._out.clear()
                return
            for fd in fds:
                os.close(fd)
            if sent < sum(map(len, pieces)):
                self._out[0] = (rest_of(pieces, sent), [])
            else:
                self._out.popleft()

    @property
    def full(self) -> bool:
        """Whether the next outcome, which may have two parcels, belongs into another message."""
        return len(self.fds) + 1 >= self.under_way.most

    def portable(self, parcel: Parcel) -> bytes | int:
        """A parcel as it stands in the next message: in its file, unless the driver reads none and it is small."""
        if not isinstance(parcel, Memory):
            return parcel
        return wire.portable(parcel if self.under_way.has_room(len(self.fds)) else read_out(parcel), self.fds)


class Log:
    """The end of what a template prints.

    Args:
        fd: the pipe, not blocking.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._tail = bytearray()

    def read(self) -> None:
        """Read once."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.fd, _TAIL_BYTES)
            self.ended = not data
            self._tail += data
            del self._tail[:-_TAIL_BYTES]

    def text(self) -> str:
        """What was read."""
        return self._tail.decode("utf-8", "backslashreplace").strip()


class Process(Protocol):
    """What is needed of a template's process; `subprocess.Popen` has it."""

    pid: int

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it is there."""

    def wait(self, timeout: float) -> int:
        """The same, after at most so many seconds.

        Raises:
            subprocess.TimeoutExpired: it is still there.
        """

    def kill(self) -> None:
        """End it at once."""


Start = Callable[[Settings, int, int], Process]


def execute(settings: Settings, control: int, output: int) -> Process:
    """Start a template as a program of its own.

    Args:
        settings: how.
        control: its end of the control socket.
        output: what it prints goes there.
    """
    return subprocess.Popen(
        [*settings.argv, str(control)],
        env=settings.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[control],
        start_new_session=True,
    )


class TemplateLink:
    """One template process.

    Args:
        settings: how it is started.
        start: what starts it.

    Raises:
        OSError: no process or no descriptor is free for it.
    """

    def __init__(self, settings: Settings, start: Start = execute) -> None:
        self.ready = False
        self.detail: str | None = None
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self.sock, sock_end = socket.socketpair(socket.AF_UNIX, system.INBOX_TYPE)
            ours.callback(self.sock.close)
            theirs.callback(sock_end.close)
            log_fd, log_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            ours.callback(os.close, log_fd)
            theirs.callback(os.close, log_end)
            os.set_blocking(log_end, True)
            self.log = Log(log_fd)
            self._process = start(settings, sock_end.fileno(), log_end)
            ours.pop_all()
        if settings.descriptor_limit is not None:
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, settings.descriptor_limit)
        os.setpriority(os.PRIO_PROCESS, self._process.pid, settings.niceness)
        self.exit_fd = system.watch_exit(self._process.pid)
        init_fd = system.file_of(json.dumps(settings.init).encode())  # a command line may be longer than any message
        with contextlib.suppress(OSError):  # it is dead already, and its exit will tell
            self.sock.sendmsg([b"{}"], wire.rights([settings.bundle_fd, init_fd, settings.ledger_fd]))
        os.close(init_fd)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fork(self, worker_id: int, fds: list[int]) -> None:
        """Order a worker."""
        with contextlib.suppress(OSError):  # the template is gone, and its exit will tell
            self.sock.sendmsg([wire.fork_order(worker_id)], wire.rights(fds))

    def last_words(self) -> str:
        """Why it ended: what it said itself, else how it ended, and the end of what it printed."""
        self.log.read()
        log = self.log.text()
        code = self._process.poll()
        when = "" if self.ready else " before it was ready"
        said = self.detail or f"the template process ended with {_ending(code)}{when}"
        return f"{said}\n{log}" if log else said

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def end(self, wait_s: float) -> None:
        """Let it end by itself, then make it end."""
        self.sock.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(wait_s)

    def close(self) -> None:
        """Close what is left of it here."""
        self.sock.close()
        os.close(self.exit_fd)
        os.close(self.log.fd)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name
