"""DeepHyper's own process evaluator; where memory is limited, with its `profile` decorator."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, OutOfPatience, Peer, Settings

_MOST_IN_VAIN = 200


class Limited:
    """The function under DeepHyper's `profile`, made anew in each worker: the decorated one does not pickle."""

    def __init__(self, function: Callable[[Any], Any], memory_limit: int) -> None:
        self._function, self._memory_limit = function, memory_limit
        self.__name__ = function.__name__

    def __call__(self, job: Any) -> Any:
        from deephyper.evaluator import profile

        limits = {"memory_limit": self._memory_limit, "memory_tracing_interval": 0.01}
        return profile(memory=True, **limits)(partial(_bare, self._function))(job)


def _bare(function: Callable[[Any], Any], job: Any) -> Any:
    return function(job)


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        from deephyper.evaluator import Evaluator, HPOJob

        if settings.memory_limit is not None:
            function = Limited(function, settings.memory_limit)
        self._evaluator = Evaluator.create(
            function, method="process", method_kwargs={"num_workers": settings.num_workers}
        )
        self._evaluator._job_class = HPOJob  # as DeepHyper's own searches do, for objective and metadata
        self._submitted = 0

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        """An exception that `gather` raises names no job, and the next `gather` may raise it again.

        At the end each is held for one of the jobs that have no outcome, in the order of submission.
        """
        first, told, raised, in_vain = self._submitted, set(), {}, 0
        for argument in arguments:
            self._submitted += 1
            self._evaluator.submit([argument])
        while len(told) < len(arguments) and in_vain < _MOST_IN_VAIN:
            try:
                jobs = self._evaluator.gather("BATCH", 1)
            except BaseException as error:  # whatever the job raised, SystemExit too
                if isinstance(error, OutOfPatience):
                    raise
                raised[id(error)] = error
                in_vain += 1
                continue
            in_vain = 0
            for job in jobs:
                index = int(job.id.split(".")[-1]) - first
                told.add(index)
                yield index, _outcome(job)
        untold = [index for index in range(len(arguments)) if index not in told]
        for index, error in zip(untold, raised.values(), strict=False):
            yield index, Outcome.failed(error)

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        self._submitted += len(arguments)
        self._evaluator.submit(list(arguments))
        return map(_outcome, self._evaluator.gather("ALL"))

    def helpers(self) -> list[int]:
        return []

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed already
            self._evaluator.close()


def _outcome(job: Any) -> Outcome:
    objective = job.objective
    if isinstance(objective, str) and objective.startswith("F"):
        return Outcome(error=objective)
    return Outcome({"objective": objective, "metadata": job.metadata})


PEER = Peer("DeepHyper", "deephyper", Offers(memory_limit="a decorator"), _Session, forks_user=True)
