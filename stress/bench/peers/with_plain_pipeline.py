"""The other yardstick: the bare pipeline with a message for each call, 64 of them in flight on each worker."""

import pickle
import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, Peer
from stress.bench.peers.with_pipeline import IN_FLIGHT, Pipeline

_MESSAGE_BYTES = 1 << 16


def _serve(sock: socket.socket, function: Callable[[Any], Any]) -> None:
    while message := sock.recv(_MESSAGE_BYTES):
        index, argument = pickle.loads(message)
        sock.send(pickle.dumps((index, function(argument)), 5))


class _Session(Pipeline):
    kind = socket.SOCK_SEQPACKET
    serve = staticmethod(_serve)

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        waiting = enumerate(arguments)
        left = len(arguments)
        with selectors.DefaultSelector() as selector:
            for _, sock in self._workers:
                selector.register(sock, selectors.EVENT_READ)
                for _, pair in zip(range(IN_FLIGHT), waiting, strict=False):
                    sock.send(pickle.dumps(pair, 5))
            while left:
                for key, _ in selector.select():
                    for index, value in _received(key.fileobj):
                        left -= 1
                        for pair in waiting:
                            key.fileobj.send(pickle.dumps(pair, 5))
                            break
                        yield index, Outcome(value)


def _received(sock: socket.socket) -> Iterator[tuple[int, Any]]:
    while True:
        try:
            message = sock.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        yield pickle.loads(message)


PEER = Peer("bare pipeline, a message a call", None, Offers(), _Session, forks_user=True)
