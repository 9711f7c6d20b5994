"""The default storage: the memory of the driver.

It must cost next to nothing, so what is known of jobs lies in columns and not in an object a job: the collector of the
interpreter would go through a million of those again and again. The dicts of DeepHyper's form are made when somebody
loads them, and copies are made when reading, never when writing.
"""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any, Final

from robust_eval.storage.base import Storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_UNSET: Final = object()


class _Search:
    """One search: its jobs, whose numbers follow each other, and its values.

    A configuration alone stands for the dict of arguments: a million dicts are felt.

    Args:
        first: the number of its first job.
    """

    __slots__ = ("arguments", "configs", "extra", "first", "metadata", "outs", "settled", "values")

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.configs: list[Any] = []
        self.outs: list[Any] = []
        self.metadata: list[dict[str, Any] | None] = []
        # By place, for the few that have such.
        self.arguments: dict[int, Any] = {}
        self.extra: dict[int, dict[str, Any]] = {}
        self.settled: list[str] = []  # ids, as their outcomes came
        self.values: dict[str, Any] = {}

    def add(self, configs: Sequence[Any]) -> range:
        """Take jobs in and give their numbers."""
        first, count = self.first + len(self.configs), len(configs)
        self.outs += [None] * count
        self.metadata += [None] * count
        self.configs += configs  # last: by these others know how many there are
        return range(first, first + count)

    def numbers(self) -> range:
        """The numbers of its jobs."""
        return range(self.first, self.first + len(self.configs))

    def view(self, place: int) -> dict[str, Any]:
        """A job in DeepHyper's form."""
        config, metadata = self.configs[place], self.metadata[place]
        data: dict[str, Any] = {
            "in": self.arguments.get(place) if config is _UNSET else {"args": (config,), "kwargs": None},
            "out": self.outs[place],
            "metadata": {} if metadata is None else metadata,
            "intermediate": {"budget": [], "objective": []},
        }
        return data | self.extra.get(place, {})


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
        storage._searches[search_id] = search = _Search(int(number))  # noqa: SLF001  our own
        search.add([_UNSET])
        return storage

    def __reduce__(self) -> tuple[Any, ...]:
        return _connected, (type(self),)

    def _connect(self) -> None:
        self.connected = True

    def _find(self, job_id: str) -> tuple[_Search, int]:
        """The search of a job and its place there."""
        search_id, _, number = job_id.rpartition(".")
        search = self._searches[search_id]
        place = int(number) - search.first
        if not 0 <= place < len(search.configs):
            raise KeyError(job_id)
        return search, place

    def create_new_search(self) -> str:
        """Make a new search and give its id: ``"0"``, ``"1"`` and so on."""
        with self._lock:
            number = len(self._searches)
            while str(number) in self._searches:  # only beside `holding`
                number += 1
            self._searches[str(number)] = _Search()
        return str(number)

    def create_new_job(self, search_id: str) -> str:
        return self._add(search_id, [_UNSET])[0]

    def create_new_jobs(self, search_id: str, configs: Sequence[Any]) -> list[str]:
        return self._add(search_id, configs)

    def _add(self, search_id: str, configs: Sequence[Any]) -> list[str]:
        search = self._searches[search_id]
        with self._lock:
            numbers = search.add(configs)
        return [f"{search_id}.{number}" for number in numbers]

    def store_job(self, job_id: str, key: str, value: Any) -> None:
        search, place = self._find(job_id)
        if key == "out":
            search.settled.append(job_id)
            search.outs[place] = value
        elif key == "in":
            search.arguments[place] = value
            search.configs[place] = _UNSET
        elif key == "metadata":
            search.metadata[place] = value
        else:
            with self._lock:
                search.extra[place] = {**search.extra.get(place, {}), key: value}

    def store_job_metadata(self, job_id: str, key: str, value: Any) -> None:
        search, place = self._find(job_id)
        with self._lock:
            # A new dict: `store_job_outcome` keeps the job's own.
            search.metadata[place] = {**(search.metadata[place] or {}), key: value}

    def store_job_outcome(self, job_id: str, objective: Any, metadata: Mapping[str, Any]) -> None:
        search, place = self._find(job_id)
        search.settled.append(job_id)
        search.outs[place] = objective
        if search.metadata[place] is None and isinstance(metadata, dict):
            search.metadata[place] = metadata
        else:
            with self._lock:
                search.metadata[place] = {**(search.metadata[place] or {}), **metadata}

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
        return [f"{search_id}.{number}" for number in self._searches[search_id].numbers()]

    def load_search(self, search_id: str) -> dict[str, dict[str, Any]]:
        search = self._searches[search_id]
        return copy.deepcopy({str(number): search.view(place) for place, number in enumerate(search.numbers())})

    def load_job(self, job_id: str) -> dict[str, Any]:
        search, place = self._find(job_id)
        return copy.deepcopy(search.view(place))

    def load_jobs(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        found = {job_id: self._find(job_id) for job_id in job_ids}
        return {job_id: search.view(place) for job_id, (search, place) in found.items()}

    def load_metadata_from_all_jobs(self, search_id: str, key: str) -> list[Any]:
        found = ((metadata or {}).get(key) for metadata in self._searches[search_id].metadata)
        return [value for value in found if value is not None]

    def load_out_from_all_jobs(self, search_id: str) -> list[Any]:
        return [out for out in self._searches[search_id].outs if out is not None]


def _connected(kind: type[MemoryStorage]) -> MemoryStorage:
    """Build what a pickled storage comes back as (named in pickles: keep the name)."""
    return kind().connect()
