"""What a storage that outlives its driver offers beyond DeepHyper's interface: batches, drivers, and take-overs.

A job belongs to the driver that submitted it. Of a driver that died, another one takes all jobs over in one step, so
that of several that try only one gets them. A job settles once: what a driver still reports of a job that is not its
own any more, or that has settled, changes nothing.

Values are kept as text (`robust_eval.storage.encoding`).
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from robust_eval.storage.base import Storage
from robust_eval.storage.encoding import decode, encode, encode_lossy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

CONFIG_ALONE: Final = '{"args":{"$tuple":[%s]},"kwargs":null}'


class Outcome(NamedTuple):
    """How a job settled, encoded. ``extra`` are further values of the job by their keys, or ``None`` for none."""

    job_id: str
    out: str
    metadata: str
    extra: str | None = None


class Driver(NamedTuple):
    """A driver of a search.

    Attributes:
        id: as the storage gave it.
        identity: what it said of itself.
        beat: how often it has said that it lives.
        gone: whether it has said that it ends.
    """

    id: str
    identity: dict[str, Any]
    beat: int
    gone: bool


class Kept(NamedTuple):
    """A job as the storage has it.

    Attributes:
        job_id: its id.
        config: the configuration.
        attempts: how many drivers died while it ran.
        settled: whether it has an outcome.
        gathered: the ``timestamp_gather`` of a job that was gathered, else ``None``.
        data: what `Storage.load_job` gives.
    """

    job_id: str
    config: Any
    attempts: int
    settled: bool
    gathered: float | None
    data: dict[str, Any]


class DurableStorage(Storage):
    """A storage that several drivers share and that outlives them."""

    @abc.abstractmethod
    def join(self, search_id: str, identity: Mapping[str, Any]) -> str:
        """Make a new driver of a search and give its id.

        Args:
            search_id: as `create_new_search` gave it.
            identity: what the driver says of itself, for others to judge whether it lives; values that can be encoded.

        Returns:
            The id, which the methods here take as ``driver``.

        Raises:
            KeyError: there is no such search.
        """

    @abc.abstractmethod
    def beat(self, driver: str) -> None:
        """Note that the driver lives.

        Args:
            driver: as `join` gave it.
        """

    @abc.abstractmethod
    def leave(self, driver: str) -> None:
        """Note that the driver ends: what it has not settled may be taken over, and did not run.

        Args:
            driver: as `join` gave it.
        """

    @abc.abstractmethod
    def load_drivers(self, search_id: str) -> list[Driver]:
        """Give the drivers of a search whose jobs nobody has taken over.

        Args:
            search_id: as `create_new_search` gave it.

        Returns:
            The drivers, in the order in which they joined.
        """

    @abc.abstractmethod
    def create_driver_jobs(self, search_id: str, driver: str, configs: Sequence[str]) -> list[str]:
        """Make one job of this driver for each encoded configuration, all or none, and give their ids.

        Args:
            search_id: as `create_new_search` gave it.
            driver: as `join` gave it.
            configs: each the text that `robust_eval.storage.encoding.encode` gives.

        Returns:
            The ids, in the order of the configurations.

        Raises:
            KeyError: there is no such search.
            StorageError: the storage has lost the search.
        """

    @abc.abstractmethod
    def write(self, driver: str, outcomes: Sequence[Outcome], gathered: Sequence[tuple[str, float]]) -> None:
        """Keep what happened since the last time, in one step.

        Args:
            driver: only its own jobs change.
            outcomes: of jobs that settled.
            gathered: ids of jobs that were gathered, each with its ``timestamp_gather``.

        Raises:
            StorageError: the storage cannot be written, or has lost the search.
        """

    @abc.abstractmethod
    def take_over(self, search_id: str, dead: str, driver: str, begun: Iterable[str]) -> bool:
        """Give all jobs of a dead driver to another one.

        Args:
            search_id: the search of both.
            dead: the driver that died, which is forgotten.
            driver: who gets its jobs.
            begun: the ids of the jobs that had begun there; one more attempt is counted for those not settled.

        Returns:
            Whether there was something to take: false where somebody else was faster.
        """

    @abc.abstractmethod
    def load_driver_jobs(self, search_id: str, driver: str) -> Iterator[Kept]:
        """Give all jobs of a driver, in the order of their making.

        Args:
            search_id: as `create_new_search` gave it.
            driver: as `join` gave it.

        Yields:
            The jobs, read from the storage a page at a time.
        """

    @abc.abstractmethod
    def begun_log(self, driver: str) -> Path:
        """Give the path of the file in which the workers of a driver note what they begin.

        Args:
            driver: as `join` gave it.

        Returns:
            The path; the file need not exist.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the connection; the next use makes a new one."""

    def create_new_jobs(self, search_id: str, configs: Sequence[Any]) -> list[str]:
        return self._create_jobs(search_id, [CONFIG_ALONE % text for text in encoded_configs(configs)], None)

    def create_new_job(self, search_id: str) -> str:
        return self._create_jobs(search_id, [None], None)[0]

    @abc.abstractmethod
    def _create_jobs(self, search_id: str, arguments: Sequence[str | None], driver: str | None) -> list[str]:
        """Make jobs with these encoded arguments."""

    def load_job(self, job_id: str) -> dict[str, Any]:
        return self.load_jobs([job_id])[job_id]


def encoded_configs(configs: Iterable[Any]) -> list[str]:
    """Encode configurations.

    Raises:
        InvalidArgument: a part of one has no encoding: a ``ValueError`` that says which.
    """
    return [encode(config, f"configs[{number}]") for number, config in enumerate(configs)]


def job_data(
    arguments: str | None, out: str | None, metadata: str | None, extra: str | None, gathered: float | str | None
) -> dict[str, Any]:
    """Give a job in DeepHyper's form from its texts, and when it was gathered, if it was."""
    data: dict[str, Any] = {
        "in": None if arguments is None else decode(arguments),
        "out": None if out is None else decode(out),
        "metadata": {} if metadata is None else decode(metadata),
        "intermediate": {"budget": [], "objective": []},
    }
    if gathered is not None:
        data["metadata"]["timestamp_gather"] = float(gathered)
    return data if extra is None else data | decode(extra)


def with_entry(metadata: str | None, key: str, value: Any) -> str:
    """Give encoded metadata with one entry more, or another one."""
    return encode_lossy({**({} if metadata is None else decode(metadata)), key: value})


def split_id(job_id: object) -> tuple[int, int]:
    """Give the numbers of the search and of the job.

    Raises:
        KeyError: this is no id of a job.
    """
    search, _, number = str(job_id).rpartition(".")
    if not (search.isdecimal() and number.isdecimal()):
        raise KeyError(job_id)
    return int(search), int(number)
