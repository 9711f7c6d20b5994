"""The interface of a storage: DeepHyper 0.5's, and batches for the hot path.

A storage knows searches by their id and jobs by ``"search.job"``. Of a job it keeps ``in`` (the
arguments), ``out`` (the objective), ``metadata``, ``intermediate`` and whatever `store_job` adds.
"""

from __future__ import annotations

import abc
import importlib
from typing import TYPE_CHECKING, Any, Final, Self

from robust_eval.errors import InvalidArgument, InvalidArgumentType, bounded_repr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STORAGES: Final[Mapping[str, str]] = {
    "memory": "robust_eval.storage.memory:MemoryStorage",
    "redis": "robust_eval.storage.redis:RedisStorage",
    "sqlite": "robust_eval.storage.sqlite:SqliteStorage",
}
_REDIS_URLS: Final = ("redis", "rediss", "unix")
_URLS: Final = "sqlite:///runs.db (relative), sqlite:////data/runs.db, redis://localhost:6379/0, memory://"


class Storage(abc.ABC):
    """Where searches and their jobs are kept.

    Attributes:
        connected: whether ``connect()`` succeeded.
    """

    def __init__(self) -> None:
        self.connected = False

    @staticmethod
    def create(method: str = "memory", method_kwargs: Mapping[str, Any] | None = None) -> Storage:
        """Create a storage by the name of its kind.

        Args:
            method: one of `STORAGES`.
            method_kwargs: arguments of that kind's class.

        Returns:
            The storage, not yet connected.

        Raises:
            InvalidArgument: there is no such kind (a ``ValueError``).
        """
        if method not in STORAGES:
            raise InvalidArgument(f"There is no storage method {method!r}. Choose one of {', '.join(STORAGES)}.")
        module, _, name = STORAGES[method].partition(":")
        storage: Storage = getattr(importlib.import_module(module), name)(**(method_kwargs or {}))
        return storage

    @staticmethod
    def from_url(url: str) -> Storage:
        """Create a storage from a URL.

        Args:
            url: ``"sqlite:///runs.db"`` (a path relative to the working directory), ``"sqlite:////data/runs.db"``,
                ``"redis://localhost:6379/0"`` (also ``rediss://`` and ``unix://``), or ``"memory://"``. The path of a
                file is taken as it stands: nothing in it is decoded.

        Returns:
            The storage, not yet connected.

        Raises:
            InvalidArgument: the URL is of another form (a ``ValueError``).
            InvalidArgumentType: it is no text (a ``TypeError``).
        """
        if not isinstance(url, str):
            raise InvalidArgumentType(f"storage={bounded_repr(url)} is no URL of a storage. Known forms: {_URLS}.")
        kind, separator, rest = url.partition("://")
        if separator and kind == "sqlite" and rest[:1] == "/" and rest[1:]:
            if "?" in rest:  # a file of that name would be made, and the options would do nothing
                raise InvalidArgument(
                    f"storage={url!r} has options behind a question mark, and SQLite's URLs have none here. Leave them "
                    "out; a file with such a name is opened by SqliteStorage(path)."
                )
            return Storage.create("sqlite", {"path": rest[1:]})
        if separator and kind in _REDIS_URLS and rest:
            return Storage.create("redis", {"url": url})
        if url == "memory://":
            return Storage.create("memory")
        raise InvalidArgument(f"storage={url!r} is no URL of a storage. Known forms: {_URLS}.")

    def connect(self) -> Self:
        """Connect to whatever holds the data.

        Returns:
            The storage itself, connected.
        """
        self._connect()
        return self

    def is_connected(self) -> bool:
        """Tell whether ``connect()`` succeeded."""
        return self.connected

    @abc.abstractmethod
    def _connect(self) -> None:
        """Connect, and set ``connected``."""

    @abc.abstractmethod
    def create_new_search(self) -> str:
        """Make a new search and give its id.

        Returns:
            The id, a text: the other methods take it as ``search_id``.
        """

    @abc.abstractmethod
    def create_new_job(self, search_id: str) -> str:
        """Make a new job in a search and give its id, ``"search.job"``.

        Args:
            search_id: as `create_new_search` gave it.

        Returns:
            The id, which the other methods take as ``job_id``.

        Raises:
            KeyError: there is no such search.
        """

    @abc.abstractmethod
    def store_search_value(self, search_id: str, key: str, value: Any) -> None:
        """Keep a value of a search under a key.

        Args:
            search_id: as `create_new_search` gave it.
            key: the name of the value.
            value: replaces the one that is there.

        Raises:
            KeyError: there is no such search.
            InvalidArgument: a durable storage has no encoding for a part of the value (a ``ValueError``).
        """

    @abc.abstractmethod
    def load_search_value(self, search_id: str, key: str) -> Any:
        """Give the value of a search under a key.

        Args:
            search_id: as `create_new_search` gave it.
            key: the name of the value.

        Returns:
            The value, as it was stored last.

        Raises:
            KeyError: there is no such search or key.
        """

    @abc.abstractmethod
    def store_job(self, job_id: str, key: str, value: Any) -> None:
        """Keep a value of a job under a key.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.
            key: ``"in"``, ``"out"``, ``"metadata"``, or a name of your own.
            value: replaces the one that is there.

        Raises:
            KeyError: there is no such job.
            InvalidArgument: a durable storage has no encoding for a part of the value (a ``ValueError``).
        """

    @abc.abstractmethod
    def store_job_metadata(self, job_id: str, key: str, value: Any) -> None:
        """Keep one entry of a job's metadata.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.
            key: the name of the entry; the others stay.
            value: the entry. A durable storage keeps the repr of what it has no encoding for.

        Raises:
            KeyError: there is no such job.
        """

    @abc.abstractmethod
    def load_all_search_ids(self) -> list[str]:
        """Give the ids of all searches, in the order of their making."""

    @abc.abstractmethod
    def load_all_job_ids(self, search_id: str) -> list[str]:
        """Give the ids of all jobs of a search, in the order of their making.

        Args:
            search_id: as `create_new_search` gave it.

        Returns:
            The ids, each ``"search.job"``.

        Raises:
            KeyError: there is no such search.
        """

    @abc.abstractmethod
    def load_search(self, search_id: str) -> dict[str, dict[str, Any]]:
        """Give everything about a search: a copy, keyed by the part of the job's id after the dot.

        Args:
            search_id: as `create_new_search` gave it.

        Returns:
            For each job what `load_job` gives.

        Raises:
            KeyError: there is no such search.
        """

    @abc.abstractmethod
    def load_job(self, job_id: str) -> dict[str, Any]:
        """Give everything about a job: a copy.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.

        Returns:
            ``in`` (a dict of ``args`` and ``kwargs``), ``out`` (the objective, None before), ``metadata``,
            ``intermediate``, and what `store_job` added.

        Raises:
            KeyError: there is no such job.
        """

    def store_job_in(
        self,
        job_id: str,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Keep the arguments of a job.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.
            args: the positional ones; None for none.
            kwargs: those by name; None for none.

        Raises:
            KeyError: there is no such job.
            InvalidArgument: a durable storage has no encoding for a part of the value (a ``ValueError``).
        """
        self.store_job(job_id, "in", {"args": args, "kwargs": kwargs})

    def store_job_out(self, job_id: str, value: Any) -> None:
        """Keep the objective of a job.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.
            value: the objective; ``"F"`` stands for a failure.

        Raises:
            KeyError: there is no such job.
            InvalidArgument: a durable storage has no encoding for a part of the value (a ``ValueError``).
        """
        self.store_job(job_id, "out", value)

    def store_job_status(self, job_id: str, job_status: int) -> None:
        """Keep the status of a job.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.
            job_status: a `robust_eval.JobStatus`, or its number.

        Raises:
            KeyError: there is no such job.
        """
        self.store_job(job_id, "status", job_status)

    def load_job_status(self, job_id: str) -> int:
        """Give the status that was stored of a job.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.

        Returns:
            A number of `robust_eval.JobStatus`.

        Raises:
            KeyError: there is no such job, or none was stored.
        """
        status: int = self.load_job(job_id)["status"]
        return status

    def create_new_jobs(self, search_id: str, configs: Sequence[Any]) -> list[str]:
        """Make one job for each configuration, kept as its only positional argument.

        Args:
            search_id: the search of the jobs.
            configs: what the jobs are about; the storage may keep the objects themselves.

        Returns:
            The ids, in the order of the configurations.

        Raises:
            KeyError: there is no such search.
            InvalidArgument: a durable storage has no encoding for a part of one (a ``ValueError``); no job is made.
        """
        job_ids = []
        for config in configs:
            job_id = self.create_new_job(search_id)
            self.store_job_in(job_id, args=(config,))
            job_ids.append(job_id)
        return job_ids

    def store_job_outcome(self, job_id: str, objective: Any, metadata: Mapping[str, Any]) -> None:
        """Keep the objective and the whole metadata of a job that is done.

        Args:
            job_id: ``"search.job"``, as `create_new_job` gave it.
            objective: the objective.
            metadata: added to what the job has; the storage may keep the dict itself.

        Raises:
            KeyError: there is no such job.
        """
        self.store_job_out(job_id, objective)
        for key, value in metadata.items():
            self.store_job_metadata(job_id, key, value)

    def load_settled_since(
        self,
        search_id: str,
        cursor: int,
        but_of: str | None = None,  # noqa: ARG002  for storages that know drivers
    ) -> tuple[int, list[str]]:
        """Give the ids of the jobs that got an outcome since the last time, in the order of their outcomes.

        Args:
            search_id: the search.
            cursor: 0 the first time, then what the last call gave.
            but_of: a driver whose jobs are left out, where the storage knows drivers.

        Returns:
            The next cursor, and the ids. A storage may give an id again.
        """
        settled = [number for number, data in self.load_search(search_id).items() if data["out"] is not None]
        return cursor, [f"{search_id}.{number}" for number in settled]

    def load_jobs(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Give everything about some jobs, keyed by their ids.

        Args:
            job_ids: any number of ids.

        Returns:
            For each id what `load_job` gives; the values may be the storage's own and must not be changed.

        Raises:
            KeyError: one of the jobs does not exist.
        """
        return {job_id: self.load_job(job_id) for job_id in job_ids}

    def load_metadata_from_all_jobs(self, search_id: str, key: str) -> list[Any]:
        """Give one entry of the metadata of all jobs of a search that have it.

        Args:
            search_id: as `create_new_search` gave it.
            key: the name of the entry.

        Returns:
            The entries that are not None, in the order of the jobs.

        Raises:
            KeyError: there is no such search.
        """
        found = (data["metadata"].get(key) for data in self.load_search(search_id).values())
        return [value for value in found if value is not None]

    def load_out_from_all_jobs(self, search_id: str) -> list[Any]:
        """Give the objectives of all jobs of a search that have one.

        Args:
            search_id: as `create_new_search` gave it.

        Returns:
            The objectives, in the order of the jobs; those of failed jobs too.

        Raises:
            KeyError: there is no such search.
        """
        found = (data["out"] for data in self.load_search(search_id).values())
        return [value for value in found if value is not None]
