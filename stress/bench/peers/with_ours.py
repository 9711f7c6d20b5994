"""Ours as its users have it: `ProcessPoolEvaluator`, submit and gather."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, Peer, Settings


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        from robust_eval import Evaluator

        self._evaluator = Evaluator.create(
            function,
            method="process",
            method_kwargs={
                "num_workers": settings.num_workers,
                "job_timeout": settings.job_timeout,
                "memory_limit": settings.memory_limit,
                "max_tasks_per_child": settings.max_tasks_per_child,
            },
        )

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        first = len(self._evaluator.jobs)
        self._evaluator.submit(list(arguments))
        positions = {job.id: index for index, job in enumerate(self._evaluator.jobs[first:])}
        left = len(arguments)
        while left:
            for job in self._evaluator.gather("BATCH", 1):
                left -= 1
                yield positions[job.id], _outcome(job)

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        first = len(self._evaluator.jobs)
        self._evaluator.submit(list(arguments))
        self._evaluator.gather("ALL")
        return map(_outcome, self._evaluator.jobs[first:])

    def helpers(self) -> list[int]:
        return [self._evaluator._pool.supervisor_pid]

    def close(self) -> None:
        self._evaluator.close()


def _outcome(job: Any) -> Outcome:
    failure = job.failure
    if failure is not None:
        return Outcome(error=f"{failure.kind}: {failure.message}", kind=failure.kind)
    return Outcome({"objective": job.objective, "metadata": job.metadata})


PEER = Peer("robust_eval", "robust-eval", Offers("yes", "yes", "yes"), _Session)
