"""loky's reusable executor, asked for again before each round: that is how it comes back after a death."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from stress.bench.peers.contract import FuturesSession, Offers, Outcome, Outcomes, Peer, Settings


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        from loky import get_reusable_executor

        self._get = partial(get_reusable_executor, max_workers=settings.num_workers)
        self._function = function

    def _session(self) -> FuturesSession:
        return FuturesSession(partial(self._get().submit, self._function), self.close)

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        return self._session().run(arguments)

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        return self._session().in_order(arguments)

    def helpers(self) -> list[int]:
        return []

    def close(self) -> None:
        self._get().shutdown(wait=True)


PEER = Peer("loky", "loky", Offers(), _Session)
