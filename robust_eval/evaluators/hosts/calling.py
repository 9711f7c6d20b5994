"""How a host and its driver find and recognise each other.

The driver listens; what starts the hosts (Ray, MPI) carries the address and a secret to them over its own channel. Each
end then proves that it knows the secret before the other reads a single frame. The secret keeps strangers and stray
connections out; it does not hide what is said, no more than Ray or MPI do.
"""

import hashlib
import hmac
import os
import socket
import time
from typing import NamedTuple

from robust_eval.errors import RobustEvalError

NONCE_BYTES = 32
PROOF_BYTES = 32
ANSWER_BYTES = PROOF_BYTES + NONCE_BYTES
_SECRET_BYTES = 32
_BACKLOG = 4096
_CONNECT_S = 5.0
_PAUSE_S = 0.2
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6))
_UNACKNOWLEDGED_MS = 60_000


class Unreachable(RobustEvalError):
    """The driver cannot be reached, or is not the one that called."""


class Call(NamedTuple):
    """Where the driver listens, and the secret."""

    addresses: list[tuple[str, int]]
    secret: bytes


class Station(NamedTuple):
    """One host as its driver wants it.

    Args:
        host_id: never used again.
        slots: jobs at once.
        first_slot: the number of its first slot among all hosts' (what `worker_seed` counts by).
        environments: variables for its slots, in turn.
    """

    host_id: int
    slots: int
    first_slot: int = 0
    environments: tuple[dict[str, str], ...] = ()


def listen(names: list[str]) -> tuple[socket.socket, Call]:
    """Listen for hosts.

    Args:
        names: under which names or addresses hosts may reach this machine. A single one is the only one listened on.

    Returns:
        The listening socket, which does not block, and what hosts must know.
    """
    try:
        sock = socket.create_server((names[0] if len(names) == 1 else "", 0), backlog=_BACKLOG)
    except OSError:  # the name is one that others know this machine by, and it does not
        sock = socket.create_server(("", 0), backlog=_BACKLOG)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    port = sock.getsockname()[1]
    return sock, Call([(name, port) for name in names], os.urandom(_SECRET_BYTES))


def prove(secret: bytes, who: bytes, nonce: bytes) -> bytes:
    """What only one who knows the secret can say to this nonce."""
    return hmac.digest(secret, who + nonce, hashlib.sha256)


def tune(sock: socket.socket) -> None:
    """No delays, and an end that a machine's silent death brings within a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE:
        if hasattr(socket, name):  # macOS has not all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def answer(call: Call, within_s: float) -> socket.socket:
    """Connect to the driver that called, as a host.

    Raises:
        Unreachable: it cannot be reached at any of its addresses, or does not know the secret.
    """
    ends_at = time.monotonic() + within_s
    while True:
        tried = []
        for address in call.addresses:
            try:
                return _connect(address, call.secret)
            except OSError as error:
                tried.append(f"{address[0]}:{address[1]} ({error})")
        if time.monotonic() > ends_at:
            msg = f"the driver cannot be reached from {socket.gethostname()}: tried {', '.join(tried)}"
            raise Unreachable(msg)
        time.sleep(_PAUSE_S)  # a network may need a moment; bounded by the lines above


def _connect(address: tuple[str, int], secret: bytes) -> socket.socket:
    sock = socket.create_connection(address, _CONNECT_S)
    try:
        tune(sock)
        nonce = os.urandom(NONCE_BYTES)
        sock.sendall(prove(secret, b"host", _exactly(sock, NONCE_BYTES)) + nonce)
        _check(_exactly(sock, PROOF_BYTES), prove(secret, b"driver", nonce), address)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _check(proof: bytes, expected: bytes, address: tuple[str, int]) -> None:
    if not hmac.compare_digest(proof, expected):
        msg = f"what listens on {address[0]}:{address[1]} is not the driver that called"
        raise Unreachable(msg)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionResetError("it hung up")
        data += more
    return data
