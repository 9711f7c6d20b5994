"""Ray's tasks, not retried. A task over its time is cancelled by force, as its pages on `ray.cancel` say."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stress.bench.peers.contract import Offers, Outcome, Outcomes, Peer, Settings, settled

# Of workers, which counts like running: those of a new cluster, and one that takes the place of a cancelled one.
_FIRST_START_S, _START_S = 30.0, 5.0
_STORE_BYTES = 512 * 2**20


class _Session:
    def __init__(self, function: Callable[[Any], Any], settings: Settings) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        import ray

        self._ray = ray
        self._settings, self._start_s = settings, _FIRST_START_S
        ray.init(
            num_cpus=settings.num_workers,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
            _temp_dir=tempfile.mkdtemp(prefix="r"),
        )
        self._task = ray.remote(max_retries=0, max_calls=settings.max_tasks_per_child or 0)(function)

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        refs: dict[Any, int] = {}
        for index, argument in enumerate(arguments):
            try:
                refs[self._task.remote(argument)] = index
            except Exception as error:  # noqa: BLE001 - a refused call is an outcome
                yield index, Outcome.failed(error)
        waiting, limit_s = list(refs), self._settings.job_timeout
        timeout_s = None if limit_s is None else limit_s + self._start_s
        self._start_s = _START_S
        while waiting:
            # Nobody is told when a task begins. Whatever is first in line when nothing has ended for so long has hung.
            done, waiting = self._ray.wait(waiting, timeout=timeout_s)
            if not done:
                hung = waiting[: self._settings.num_workers]
                for ref in hung:
                    self._ray.cancel(ref, force=True)
                continue
            for ref in done:
                yield refs[ref], settled(lambda ref=ref: self._ray.get(ref))

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        refs = [self._task.remote(argument) for argument in arguments]
        for ref in refs:
            yield settled(lambda ref=ref: self._ray.get(ref))

    def helpers(self) -> list[int]:
        return []

    def close(self) -> None:
        self._ray.shutdown()


PEER = Peer("ray", "ray", Offers(job_timeout="by hand", fresh_process="yes"), _Session)
