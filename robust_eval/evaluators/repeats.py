"""Which configurations of a search are done or on their way, by value: what ``skip_done`` skips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from robust_eval.evaluators.outcomes import is_cancelled
from robust_eval.storage.encoding import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from robust_eval.job import Job
    from robust_eval.storage.base import Storage

_PAGE: Final = 1000


class Repeats:
    """The configurations of a search, each as a digest of its value. Costs nothing until it is first asked.

    Args:
        storage: where the search is.
        search_id: the search.
    """

    def __init__(self, storage: Storage, search_id: str) -> None:
        self._storage = storage
        self._search_id = search_id
        self._cursor = 0
        self._done: set[bytes] = set()
        self._looked_at = 0
        self._own: dict[bytes, Job] = {}

    def without(self, configs: Iterable[Any], jobs: list[Job]) -> list[Any]:
        """Give the configurations that have no outcome in the search and are not on their way here.

        A job that was only cancelled has no outcome, so its configuration is given.

        Args:
            configs: what is asked for; of equal ones the first is given.
            jobs: the jobs of this evaluator, which only ever grow in number.

        Raises:
            InvalidArgument: the value of one cannot be compared.
            StorageError: the storage cannot be read.
        """
        for job in jobs[self._looked_at :]:
            self._own[digest(job.config)] = job
        self._looked_at = len(jobs)
        self._done.update(self._settled())
        new: dict[bytes, Any] = {}
        for config in configs:
            key = digest(config)
            own = self._own.get(key)
            if key not in self._done and (own is None or is_cancelled(own)):
                new.setdefault(key, config)
        return list(new.values())

    def _settled(self) -> Iterator[bytes]:
        self._cursor, job_ids = self._storage.load_settled_since(self._search_id, self._cursor)
        for start in range(0, len(job_ids), _PAGE):
            for data in self._storage.load_jobs(job_ids[start : start + _PAGE]).values():
                failure = data.get("failure")
                cancelled = isinstance(failure, dict) and failure.get("kind") == "cancelled"
                if data["in"] and data["in"]["args"] and not cancelled:
                    yield digest(data["in"]["args"][0])
