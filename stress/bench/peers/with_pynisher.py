"""pynisher's `limit`: one process a call, and the caller waits for it, so calls go one after the other."""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, Peer, Settings, settled


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        from pynisher import limit

        wall_time = None if settings.job_timeout is None else ceil(settings.job_timeout)
        self._limited = limit(function, wall_time=wall_time, memory=settings.memory_limit, warnings=False)

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        return enumerate(self.in_order(arguments))

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        for argument in arguments:
            yield settled(lambda argument=argument: self._limited(argument))

    def helpers(self) -> list[int]:
        return []

    def close(self) -> None:
        """There is nothing to close."""


PEER = Peer("pynisher", "pynisher", Offers("whole seconds", "address space", "yes, always"), _Session, forks_user=True)
