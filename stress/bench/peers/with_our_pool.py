"""Ours without jobs, storage and CSV: the bare pool under the evaluator."""

import queue
import sys
from collections.abc import Callable, Sequence
from typing import Any

from stress.bench.peers.contract import ArrivalSession, Offers, Outcome, Outcomes, Peer, Settings

_PORTION = 512  # as the evaluator does it: the first calls run while others are pickled


class Runner:
    """What a worker of the bare pool does with an argument."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, argument: Any, _context: object) -> Any:
        return self._function(argument)


class _Session(ArrivalSession):
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        from robust_eval.evaluators.ledger import Retries
        from robust_eval.evaluators.settings import policy_of
        from robust_eval.processes.bundle import Bundle
        from robust_eval.processes.parcel import open_parcel, pack, unpack
        from robust_eval.processes.pending import Done, Submission
        from robust_eval.processes.pool import Pool, PoolSettings
        from robust_eval.processes.shelf import Shelf

        policy = policy_of(settings.num_workers, Retries(), max_tasks_per_child=settings.max_tasks_per_child)
        self._pack, self._submission_of, self._done = pack, Submission, Done
        self._open: Callable[[Any], Any] = lambda parcel: unpack(open_parcel(parcel))
        self._settings = settings
        self._shelf = Shelf()
        self._next = 0
        self._settled: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._pool = Pool(
            pack(Bundle(Runner(function))), PoolSettings(policy, sys.executable), self._settled.put, lambda *_: None
        )

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        pack, submission_of, store = self._pack, self._submission_of, self._shelf.store
        first, submissions, left = self._next, [], len(arguments)
        self._next += left
        limits = self._settings.job_timeout, self._settings.memory_limit
        for index, argument in enumerate(arguments):
            try:
                submissions.append(submission_of(first + index, pack(argument, 0, store), *limits))
            except Exception as error:  # noqa: BLE001 - the user's reductions raise anything
                left -= 1
                yield index, Outcome.failed(error, "unpicklable")
            if len(submissions) == _PORTION:
                self._pool.submit(submissions)
                submissions = []
        self._pool.submit(submissions)
        while left:
            for settled in self._settled.get():
                left -= 1
                yield settled.job_id - first, self._outcome(settled)

    def _outcome(self, settled: Any) -> Outcome:
        if not isinstance(settled, self._done):
            return Outcome(error=repr(settled.info)[:200], kind=settled.info["kind"])
        try:
            return Outcome(self._open(settled.parcel))
        except Exception as error:  # noqa: BLE001 - the user's unpickling raises anything
            return Outcome.failed(error, "unpicklable")

    def helpers(self) -> list[int]:
        return [self._pool.supervisor_pid]

    def close(self) -> None:
        self._pool.close()
        self._shelf.close()


PEER = Peer("its bare pool", "robust-eval", Offers("yes", "yes", "yes"), _Session)
