"""No peer but a yardstick: two forked workers on socket pairs, pickle both ways, and not one guarantee.

Many calls are in flight on each, and they travel in batches: this is about what the language can do.
"""

import os
import pickle
import selectors
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stress.bench.peers.contract import ArrivalSession, Offers, Outcome, Outcomes, Peer, Settings

IN_FLIGHT = 64
_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 18


def _frame(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _split(buffer: bytearray) -> list[bytes]:
    """Take the whole frames out of the buffer."""
    frames, position = [], 0
    while len(buffer) - position >= _LENGTH.size:
        (size,) = _LENGTH.unpack_from(buffer, position)
        start = position + _LENGTH.size
        if len(buffer) - start < size:
            break
        frames.append(bytes(buffer[start : start + size]))
        position = start + size
    del buffer[:position]
    return frames


def _serve(sock: socket.socket, function: Callable[[Any], Any]) -> None:
    buffer = bytearray()
    while data := sock.recv(_READ_BYTES):
        buffer += data
        answers = []
        for frame in _split(buffer):
            index, argument = pickle.loads(frame)
            answers.append(_frame(pickle.dumps((index, function(argument)), 5)))
        sock.sendall(b"".join(answers))


class Pipeline(ArrivalSession):
    """A session of a pipeline in which calls and answers travel in batches."""

    kind = socket.SOCK_STREAM
    serve = staticmethod(_serve)

    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        self.workers: list[tuple[int, socket.socket]] = []
        for _ in range(settings.num_workers):
            ours, theirs = socket.socketpair(socket.AF_UNIX, self.kind)
            pid = os.fork()
            if pid == 0:
                for _, other in self.workers:
                    other.close()
                ours.close()
                self.serve(theirs, function)
                os._exit(0)
            theirs.close()
            self.workers.append((pid, ours))

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        waiting = enumerate(arguments)
        buffers = {sock: bytearray() for _, sock in self.workers}
        left = len(arguments)
        with selectors.DefaultSelector() as selector:
            for sock in buffers:
                selector.register(sock, selectors.EVENT_READ)
                _send(sock, waiting, IN_FLIGHT)
            while left:
                for key, _ in selector.select():
                    buffers[key.fileobj] += key.fileobj.recv(_READ_BYTES)
                    frames = _split(buffers[key.fileobj])
                    _send(key.fileobj, waiting, len(frames))
                    left -= len(frames)
                    for frame in frames:
                        index, value = pickle.loads(frame)
                        yield index, Outcome(value)

    def close(self) -> None:
        for pid, sock in self.workers:
            sock.close()
            os.waitpid(pid, 0)


def _send(sock: socket.socket, waiting: Iterator[tuple[int, Any]], count: int) -> None:
    frames = [_frame(pickle.dumps(pair, 5)) for _, pair in zip(range(count), waiting, strict=False)]
    if frames:
        sock.sendall(b"".join(frames))


PEER = Peer("bare pipeline", None, Offers(), Pipeline, forks_user=True)
