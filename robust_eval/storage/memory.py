"""The default storage: the memory of the driver.

It must cost next to nothing, so a job is one small record, the dicts of DeepHyper's form are made when
somebody loads them, and copies are made when reading, never when writing.
"""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any, Final

from robust_eval.storage.base import Storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_UNSET: Final = object()


class _Record:
    """One job. A configuration alone stands for the dict of arguments: a million dicts are felt."""

    __slots__ = ("arguments", "config", "extra", "metadata", "out")

    def __init__(self, config: Any = _UNSET) -> None:
        self.config = config
        self.arguments: Any = None
        self.out: Any = None
        self.metadata: dict[str, Any] | None = None
        self.extra: dict[str, Any] | None = None

    def view(self) -> dict[str, Any]:
        alone = self.config is not _UNSET
        data: dict[str, Any] = {
            "in": {"args": (self.config,), "kwargs": None} if alone else self.arguments,
            "out": self.out,
            "metadata": {} if self.metadata is None else self.metadata,
            "intermediate": {"budget": [], "objective": []},
        }
        return data | (self.extra or {})


class _Search:
    """One search: its jobs, by number, and its values."""

    __slots__ = ("jobs", "next_number", "settled", "values")

    def __init__(self) -> None:
        self.next_number = 0
        self.settled: list[str] = []  # ids, as their outcomes came
        self.jobs: dict[int, _Record] = {}
        self.values: dict[str, Any] = {}


class MemoryStorage(Storage):
    """Searches and jobs in the memory of this process; safe to use from several threads.

    A pickled copy is empty, as in DeepHyper: another process cannot share this one's memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._searches: dict[str, _Search] = {}

    @classmethod
    def holding(cls, job_id: str) -> MemoryStorage:
        """Give a connected storage in which this job and its search exist.

        Args:
            job_id: ``"search.job"``.

        Returns:
            A new storage with nothing else in it.
        """
        storage = cls().connect()
        search_id, _, number = job_id.rpartition(".")
        search = storage._searches.setdefault(search_id, _Search())  # noqa: SLF001  our own
        search.jobs[int(number)] = _Record()
        search.next_number = int(number) + 1
        return storage

    def __reduce__(self) -> tuple[Any, ...]:
        return _connected, (type(self),)

    def _connect(self) -> None:
        self.connected = True

    def _record(self, job_id: str) -> _Record:
        search_id, _, number = job_id.rpartition(".")
        return self._searches[search_id].jobs[int(number)]

    def _settles(self, job_id: str) -> _Record:
        search_id, _, number = job_id.rpartition(".")
        search = self._searches[search_id]
        record = search.jobs[int(number)]
        search.settled.append(job_id)
        return record

    def create_new_search(self) -> str:
        """Make a new search and give its id: ``"0"``, ``"1"`` and so on."""
        with self._lock:
            number = len(self._searches)
            while str(number) in self._searches:  # only beside `holding`
                number += 1
            self._searches[str(number)] = _Search()
        return str(number)

    def create_new_job(self, search_id: str) -> str:
        search = self._searches[search_id]
        with self._lock:
            number = search.next_number
            search.next_number += 1
            search.jobs[number] = _Record()
        return f"{search_id}.{number}"

    def create_new_jobs(self, search_id: str, configs: Sequence[Any]) -> list[str]:
        search = self._searches[search_id]
        with self._lock:
            first = search.next_number
            search.next_number += len(configs)
            for number, config in enumerate(configs, first):
                search.jobs[number] = _Record(config)
        return [f"{search_id}.{number}" for number in range(first, first + len(configs))]

    def store_job(self, job_id: str, key: str, value: Any) -> None:
        record = self._record(job_id)
        if key == "out":
            self._settles(job_id).out = value
        elif key == "in":
            record.config, record.arguments = _UNSET, value
        elif key == "metadata":
            record.metadata = value
        else:
            with self._lock:
                record.extra = {**(record.extra or {}), key: value}

    def store_job_metadata(self, job_id: str, key: str, value: Any) -> None:
        record = self._record(job_id)
        with self._lock:
            # A new dict: `store_job_outcome` keeps the job's own.
            record.metadata = {**(record.metadata or {}), key: value}

    def store_job_outcome(self, job_id: str, objective: Any, metadata: Mapping[str, Any]) -> None:
        record = self._settles(job_id)
        record.out = objective
        if record.metadata is None and isinstance(metadata, dict):
            record.metadata = metadata
        else:
            with self._lock:
                record.metadata = {**(record.metadata or {}), **metadata}

    def load_settled_since(self, search_id: str, cursor: int, but_of: str | None = None) -> tuple[int, list[str]]:  # noqa: ARG002  there are no drivers here
        new = self._searches[search_id].settled[cursor:]
        return cursor + len(new), new

    def store_search_value(self, search_id: str, key: str, value: Any) -> None:
        self._searches[search_id].values[key] = value

    def load_search_value(self, search_id: str, key: str) -> Any:
        return self._searches[search_id].values[key]

    def load_all_search_ids(self) -> list[str]:
        return list(self._searches)

    def load_all_job_ids(self, search_id: str) -> list[str]:
        return [f"{search_id}.{number}" for number in list(self._searches[search_id].jobs)]

    def load_search(self, search_id: str) -> dict[str, dict[str, Any]]:
        jobs = list(self._searches[search_id].jobs.items())
        return copy.deepcopy({str(number): record.view() for number, record in jobs})

    def load_job(self, job_id: str) -> dict[str, Any]:
        return copy.deepcopy(self._record(job_id).view())

    def load_jobs(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        return {job_id: self._record(job_id).view() for job_id in job_ids}

    def load_metadata_from_all_jobs(self, search_id: str, key: str) -> list[Any]:
        records = list(self._searches[search_id].jobs.values())
        found = ((record.metadata or {}).get(key) for record in records)
        return [value for value in found if value is not None]

    def load_out_from_all_jobs(self, search_id: str) -> list[Any]:
        records = list(self._searches[search_id].jobs.values())
        return [record.out for record in records if record.out is not None]


def _connected(kind: type[MemoryStorage]) -> MemoryStorage:
    """Build what a pickled storage comes back as (named in pickles: keep the name)."""
    return kind().connect()
