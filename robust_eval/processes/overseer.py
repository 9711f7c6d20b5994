"""One supervisor process and the channel to it, as the driver has them.

A message leaves whole, whatever signals the driver gets meanwhile, and with a dead supervisor everything ends that
carries its pool's cookie. What is said is the pool's affair.
"""

import errno
import resource
import signal
import socket
import subprocess
import threading
import time
from typing import Any

from robust_eval.processes import loading, system, tree, wire
from robust_eval.processes.patience import Patience, looking_at
from robust_eval.processes.stream import BUFFER_BYTES, UnderWay, rest_of

_SWEEP_S = 2.0
_STEP_S = 0.005
_ROOM_S, _MOMENT_S = 0.05, 0.0005


class Overseer:
    """A supervisor process, started.

    Args:
        python: the interpreter that its pool runs.
        environment: of the process.
        cookie: which all processes of the pool carry in theirs.

    Attributes:
        cookie: the same.
        frames: what it says.

    Raises:
        OSError: no process or no descriptor is free for it.
    """

    def __init__(self, python: str, environment: dict[str, str], cookie: str) -> None:
        self.cookie = cookie
        sock, theirs = socket.socketpair()
        for each in (sock, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        sock.settimeout(None)  # whatever the user's default is
        command = loading.command(loading.executable(python), "launch", imports_site=loading.is_measured())
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,
                )
            except BaseException:
                sock.close()
                raise
        self._sock = sock
        self.frames = wire.Frames(sock)
        self._under_way = UnderWay(sock, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._patience = Patience(looking_at(sock))
        if system.LINUX:  # nobody else would notice: a supervisor that is stopped keeps every channel open
            args = (self._process.pid,)
            keeper = threading.Thread(target=system.keep_going, args=args, name="robust_eval keeper", daemon=True)
            try:
                keeper.start()
            except BaseException:
                self.kill()
                self.bury()
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None until it was buried."""
        return self._process.returncode

    def wait(self) -> None:
        """Wait until it says something or ends: where it did so every few moments, for a moment awake."""
        self._patience.select(None)

    @property
    def most_descriptors(self) -> int:
        """How many may go with one message."""
        return self._under_way.most

    def takes(self, waiting: int) -> bool:
        """Whether one more descriptor may go with those that wait to be sent, if need be in a moment."""
        ends_at = time.monotonic() + _ROOM_S
        while not self._under_way.has_room(waiting):
            if time.monotonic() > ends_at:
                return False
            time.sleep(_MOMENT_S)  # bounded by the line above: a supervisor reads within a moment
        return True

    def send(self, message: object, fds: list[int] | None = None) -> None:
        """Send one message, whole: half a frame, left by a Ctrl-C, would be the end of the channel.

        An interrupt is raised once the frame is out. That a supervisor is dead shows at the other end of `frames`.
        """
        pieces = wire.pieces_of(message)
        size = sum(map(len, pieces))
        sent: list[int] = []
        interrupt: BaseException | None = None
        crowded = False
        self._under_way.add(len(fds or []))
        while sum(sent) < size:
            try:
                if crowded:
                    time.sleep(_STEP_S)  # others have as many descriptors under way as the kernel allows
                self._push(pieces, wire.rights(fds or []), sent, size)
            except OSError as error:
                crowded = error.errno == errno.ETOOMANYREFS
                if not crowded:
                    return
            except BaseException as error:  # noqa: BLE001 - whatever a signal handler of the user raises
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _push(self, pieces: list[bytes], ancillary: list[Any], sent: list[int], size: int) -> None:
        """Send what is not sent. `extend` notes what went out before the interpreter looks for signals again."""
        if not sent:
            sent.extend(map(self._sock.sendmsg, (pieces,), (ancillary,), (system.NO_SIGPIPE,)))
        while (position := sum(sent)) < size:
            sent.extend(map(self._sock.sendmsg, (rest_of(pieces, position),), ((),), (system.NO_SIGPIPE,)))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def bury(self) -> None:
        """Reap it, once it is dead, and kill what it left, found by the cookie. Bounded."""
        self._process.wait()
        self._sock.close()
        self.frames.close()
        ends_at = time.monotonic() + _SWEEP_S
        while (left := tree.with_cookie(self.cookie)) and time.monotonic() < ends_at:
            tree.signal_all(left, signal.SIGKILL)
            time.sleep(_STEP_S)  # bounded by the line above: a process takes a moment to die
