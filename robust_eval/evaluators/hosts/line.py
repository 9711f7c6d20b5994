"""The driver's end of one connection: greets, splits what comes, and never waits for a host that does not read."""

import hmac
import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

from robust_eval.evaluators.hosts import calling
from robust_eval.processes import system, wire


class Line:
    """One connection, of a stranger until its other end has proven that it knows the secret.

    Args:
        sock: just accepted.
        secret: what a host knows.
        config: what a host is told first.
    """

    def __init__(self, sock: socket.socket, secret: bytes, config: bytes) -> None:
        self.sock = sock
        self.host_id: int | None = None
        self.about = ""
        self.known = False
        self._secret = secret
        self._config = config
        self._nonce = os.urandom(calling.NONCE_BYTES)
        self._answer = b""
        self._frames = wire.Frames(sock)
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        calling.tune(sock)
        self._put(self._nonce)

    @property
    def blocked(self) -> bool:
        """Whether something waits for the other end to read."""
        return bool(self._out)

    def messages(self) -> Iterator[Any]:
        """Read once, and give the whole messages that came so far.

        Raises:
            ConnectionError: the other end hung up, or is not one of ours.
            ProtocolError: it said something that is no message.
        """
        if not self.known and not self._greet():
            return
        try:
            there = self._frames.read()
        except BlockingIOError:
            return
        yield from self._frames.messages()
        if not there:
            raise ConnectionResetError("it hung up")

    def _greet(self) -> bool:
        """Read the answer to our nonce. True once it is proven that this is a host of ours."""
        try:
            data = self.sock.recv(calling.ANSWER_BYTES - len(self._answer))
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionResetError("a stranger hung up")
        self._answer += data
        if len(self._answer) < calling.ANSWER_BYTES:
            return False
        proof, nonce = self._answer[: calling.PROOF_BYTES], self._answer[calling.PROOF_BYTES :]
        if not hmac.compare_digest(proof, calling.prove(self._secret, b"host", self._nonce)):
            raise ConnectionRefusedError("a stranger did not know the secret")
        self.known = True
        self._put(calling.prove(self._secret, b"driver", nonce))
        self._put(self._config)
        return True

    def send(self, message: Any, job_ids: list[int] | None = None) -> None:
        """Send a message, at once or when the other end reads; `job_ids` are the jobs that go with it."""
        self._put(wire.frame(message), job_ids)

    def _put(self, data: bytes, job_ids: list[int] | None = None) -> None:
        self._out.append((memoryview(data), job_ids or []))
        self.drain()

    def drain(self) -> None:
        """Write as much as the connection takes. A broken one shows when it is read."""
        while self._out:
            data, job_ids = self._out[0]
            try:
                sent = self.sock.send(data, system.NO_SIGPIPE)
            except (BlockingIOError, ConnectionError, OSError):
                return
            if sent < len(data):
                self._out[0] = (data[sent:], job_ids)
            else:
                self._out.popleft()

    def unsent(self) -> set[int]:
        """The jobs that did not go out whole, so that no host can have begun them."""
        return {job_id for _, job_ids in self._out for job_id in job_ids}

    def close(self) -> None:
        """Hang up."""
        self.sock.close()
