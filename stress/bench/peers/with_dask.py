"""dask.distributed's `LocalCluster` of processes with one thread each, and its nannies' memory limit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, Peer, Settings, settled


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        from distributed import Client, LocalCluster

        self._cluster = LocalCluster(
            n_workers=settings.num_workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=settings.memory_limit or 0,
            dashboard_address=None,
            silence_logs=50,
        )
        self._client = Client(self._cluster)
        self._function = function

    def _submit(self, argument: Any) -> Any:
        # pure=False: equal arguments are different calls.
        return self._client.submit(self._function, argument, pure=False)

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        from distributed import as_completed

        futures = {}
        for index, argument in enumerate(arguments):
            try:
                futures[self._submit(argument)] = index
            except Exception as error:  # noqa: BLE001 - a refused call is an outcome
                yield index, Outcome.failed(error)
        for future in as_completed(list(futures)):
            yield futures[future], settled(future.result)

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        futures = [self._submit(argument) for argument in arguments]
        for future in futures:
            yield settled(future.result)

    def helpers(self) -> list[int]:
        return []

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


PEER = Peer("dask.distributed", "distributed", Offers(memory_limit="yes"), _Session)
