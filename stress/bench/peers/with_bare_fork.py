"""A yardstick where each call has a process of its own: fork, call, answer through a pipe, exit. No guarantee."""

import os
import pickle
import selectors
from collections.abc import Callable, Sequence
from typing import Any

from stress.bench.peers.contract import ArrivalSession, Offers, Outcome, Outcomes, Peer, Settings

_READ_BYTES = 1 << 16


class _Session(ArrivalSession):
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        self._function = function
        self._at_once = settings.num_workers

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        waiting = enumerate(arguments)
        with selectors.DefaultSelector() as selector:
            for _, pair in zip(range(self._at_once), waiting, strict=False):
                self._begin(selector, *pair)
            while selector.get_map():
                for key, _ in selector.select():
                    index, pid = key.data
                    value = pickle.loads(os.read(key.fd, _READ_BYTES))
                    os.waitpid(pid, 0)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    for pair in waiting:
                        self._begin(selector, *pair)
                        break
                    yield index, Outcome(value)

    def _begin(self, selector: selectors.BaseSelector, index: int, argument: Any) -> None:
        answer, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(end, pickle.dumps(self._function(argument), 5))
            os._exit(0)
        os.close(end)
        selector.register(answer, selectors.EVENT_READ, (index, pid))

    def close(self) -> None:
        """Nothing is left: each call is waited for."""


PEER = Peer("bare fork", None, Offers(), _Session, forks_user=True)
