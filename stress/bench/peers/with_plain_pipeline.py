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


class PlainPipeline(Pipeline):
    """A session of a pipeline in which each call and each answer is a message."""

    in_flight = IN_FLIGHT
    kind = socket.SOCK_SEQPACKET
    serve = staticmethod(_serve)

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        waiting = enumerate(arguments)
        left = len(arguments)
        with selectors.DefaultSelector() as selector:
            for _, sock in self.workers:
                selector.register(sock, selectors.EVENT_READ)
                for _, pair in zip(range(self.in_flight), waiting, strict=False):
                    sock.send(pickle.dumps(pair, 5))
            while left:
                for key, _ in selector.select():
                    for index, value in map(pickle.loads, received(key.fileobj)):
                        left -= 1
                        for pair in waiting:
                            key.fileobj.send(pickle.dumps(pair, 5))
                            break
                        yield index, Outcome(value)


def received(sock: socket.socket) -> Iterator[bytes]:
    """The messages that are there; an empty one at the end."""
    while True:
        try:
            yield sock.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return


PEER = Peer("bare pipeline, a message a call", None, Offers(), PlainPipeline, forks_user=True)
