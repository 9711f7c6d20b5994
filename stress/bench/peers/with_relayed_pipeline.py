"""A third yardstick: two socket pairs in a row, as ours has them; the process in between only passes messages on."""

import itertools
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any

from stress.bench.peers.contract import Offers, Peer, Settings
from stress.bench.peers.with_pipeline import IN_FLIGHT
from stress.bench.peers.with_plain_pipeline import PlainPipeline, received


class _Session(PlainPipeline):
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        self.in_flight = IN_FLIGHT * settings.num_workers
        ours, theirs = socket.socketpair(socket.AF_UNIX, self.kind)
        pid = os.fork()
        if pid == 0:
            ours.close()
            behind = PlainPipeline(function, settings)
            _pass_on(theirs, [sock for _, sock in behind.workers])
            behind.close()
            os._exit(0)
        theirs.close()
        self.workers = [(pid, ours)]


def _pass_on(driver: socket.socket, workers: list[socket.socket]) -> None:
    """Give calls to the workers in turn, and answers to the driver, unread, until that has gone."""
    in_turn = itertools.cycle(workers)
    with selectors.DefaultSelector() as selector:
        for sock in (driver, *workers):
            selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                for message in received(key.fileobj):
                    if not message:
                        return
                    (next(in_turn) if key.fileobj is driver else driver).send(message)


PEER = Peer("bare pipeline, through a third process", None, Offers(), _Session, forks_user=True)
