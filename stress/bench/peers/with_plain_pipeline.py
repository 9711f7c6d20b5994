"""The other yardstick: the bare pipeline with a message for each call, 64 of them in flight on each worker."""

import os
import pickle
import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, Peer, Settings

_IN_FLIGHT = 64
_MESSAGE_BYTES = 1 << 16


def _serve(sock: socket.socket, function: Callable[[Any], Any]) -> None:
    while message := sock.recv(_MESSAGE_BYTES):
        index, argument = pickle.loads(message)
        sock.send(pickle.dumps((index, function(argument)), 5))


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        self._workers: list[tuple[int, socket.socket]] = []
        for _ in range(settings.num_workers):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                for _, other in self._workers:
                    other.close()
                ours.close()
                _serve(theirs, function)
                os._exit(0)
            theirs.close()
            self._workers.append((pid, ours))

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        waiting = enumerate(arguments)
        left = len(arguments)
        with selectors.DefaultSelector() as selector:
            for _, sock in self._workers:
                selector.register(sock, selectors.EVENT_READ)
                for _, pair in zip(range(_IN_FLIGHT), waiting, strict=False):
                    sock.send(pickle.dumps(pair, 5))
            while left:
                for key, _ in selector.select():
                    for index, value in _received(key.fileobj):
                        left -= 1
                        for pair in waiting:
                            key.fileobj.send(pickle.dumps(pair, 5))
                            break
                        yield index, Outcome(value)

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        outcomes = dict(self.run(arguments))
        return (outcomes[index] for index in range(len(arguments)))

    def helpers(self) -> list[int]:
        return []

    def close(self) -> None:
        for pid, sock in self._workers:
            sock.close()
            os.waitpid(pid, 0)


def _received(sock: socket.socket) -> Iterator[tuple[int, Any]]:
    while True:
        try:
            message = sock.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        yield pickle.loads(message)


PEER = Peer("bare pipeline, a message a call", None, Offers(), _Session, forks_user=True)
