"""joblib's `Parallel` over its default backend, results as they come. One failure ends the whole call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, OutOfPatience, Peer, Settings

# Of the workers, which counts against the timeout of the first calls.
_FIRST_START_S, _START_S = 30.0, 3.0


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        self._function, self._settings, self._start_s = function, settings, _FIRST_START_S

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        from joblib import Parallel, delayed

        settings, index = self._settings, 0
        timeout_s = None if settings.job_timeout is None else settings.job_timeout + self._start_s
        self._start_s = _START_S
        parallel = Parallel(settings.num_workers, timeout=timeout_s, return_as="generator", batch_size=1)
        try:
            for value in parallel(delayed(self._function)(argument) for argument in arguments):
                yield index, Outcome(value)
                index += 1
        except BaseException as error:  # whatever the job raised, SystemExit too
            if isinstance(error, OutOfPatience | GeneratorExit):
                raise
            yield from ((later, Outcome.failed(error)) for later in range(index, len(arguments)))

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        return (outcome for _, outcome in self.run(arguments))

    def helpers(self) -> list[int]:
        return []

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


PEER = Peer("joblib", "joblib", Offers(job_timeout="for the whole call"), _Session)
