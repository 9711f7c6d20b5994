"""`RedisStorage`: searches on a Redis server, shared by drivers on many machines. Needs no module of Redis.

What must happen in one step is a script that the server runs. Each script may be run twice with the effect of once, so
that a command whose connection drops is simply sent again. A job is a hash; lists have the order.

    <prefix>search:S          hash: next_job           <prefix>search:S:jobs     list of numbers
    <prefix>search:S:values   hash: key -> value       <prefix>search:S:settled  list of numbers, as they settled
    <prefix>job:S.N           hash: arguments, out, metadata, extra, driver, attempts, settled, gathered;
                              metadata+ and extra+: what the outcome adds to them
    <prefix>search:S:drivers  set of ids               <prefix>driver:D          hash: identity, beat, gone
    <prefix>driver:D:jobs     list of numbers
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

try:
    import redis
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry
except ImportError:  # told when a storage is made: the name is public, and may be imported by those who do not use it
    redis = None

from robust_eval.errors import InvalidArgument, RobustEvalError, StorageError
from robust_eval.storage.durable import (
    CONFIG_ALONE,
    Driver,
    DurableStorage,
    Kept,
    Outcome,
    job_data,
    split_id,
    with_entry,
)
from robust_eval.storage.encoding import decode, encode, encode_lossy
from robust_eval.storage.redis_scripts import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_PREFIX: Final = "robust_eval:"
_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 30.0
_PAGE: Final = 500
_COLUMNS: Final = {"in": "arguments", "out": "out", "metadata": "metadata"}
_DATA: Final = ("gathered", "arguments", "out", "metadata", "metadata+", "extra", "extra+")


class RedisStorage(DurableStorage):
    """Searches on one Redis server (5 or later, no cluster), which drivers on many machines may share.

    A connection that drops is made anew, for some seconds. A pickled copy connects to the same server. How long an
    outcome lasts is the server's setting: with ``appendonly yes`` it outlives the server's end.

    Args:
        host: of the server.
        port: of the server.
        db: the number of the database on it.
        url: all of these, as ``"redis://user:password@host:6379/0"``; also ``rediss://`` and ``unix://``.

    Raises:
        RobustEvalError: redis-py is not installed.
        InvalidArgument: the URL has no such form (a ``ValueError``).
        StorageError: from ``connect()`` on: no server answers, or it refuses.
    """

    def __init__(self, host: str = "localhost", port: int = 6379, db: int = 0, *, url: str | None = None) -> None:
        super().__init__()
        if redis is None:
            raise RobustEvalError("RedisStorage needs redis-py: pip install 'robust-eval[redis]'.")
        self._url = f"redis://{host}:{port}/{db}" if url is None else url
        _check(self._url, self._shown())
        with self._told():
            self._redis: Any = redis.Redis.from_url(
                self._url,
                decode_responses=True,
                socket_connect_timeout=_CONNECT_S,
                socket_timeout=_ANSWER_S,
                retry=Retry(ExponentialBackoff(cap=_LONGEST_PAUSE_S, base=_FIRST_PAUSE_S), _TRIES),
                retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            )
        self._scripts = {name: self._redis.register_script(text) for name, text in SCRIPTS.items()}
        self._uid = ""

    def __repr__(self) -> str:
        return f"RedisStorage({self._shown()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _connected, (type(self), self._url)

    def _shown(self) -> str:
        """The URL without its password."""
        head, at, tail = self._url.rpartition("@")
        shown = f"{head.partition('://')[0]}://...@{tail}" if at else self._url
        return re.sub(r"(password=)[^&]*", r"\1...", shown)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except redis.AuthenticationError as error:  # to redis-py it is a connection's
            raise StorageError(f"The Redis server at {self._shown()} refuses: {error}. Correct the URL.") from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StorageError(
                f"No Redis server answers at {self._shown()}: {error}. Start one (redis-server), or correct the URL."
            ) from error
        except (redis.RedisError, ValueError) as error:
            raise StorageError(f"The Redis server at {self._shown()} cannot be used: {error}.") from error

    def _connect(self) -> None:
        with self._told():
            self._redis.setnx(f"{_PREFIX}uid", uuid.uuid4().hex)
            self._uid = self._redis.get(f"{_PREFIX}uid")
        self.connected = True

    def _check_data(self, search_id: object) -> None:
        """Refuse to go on with a server that has forgotten the search, where nothing would be kept."""
        with self._told():
            if self._uid and self._redis.get(f"{_PREFIX}uid") != self._uid:
                raise self._forgotten(search_id)

    def _forgotten(self, search_id: object) -> StorageError:
        return StorageError(
            f"The Redis server at {self._shown()} has lost data of search {search_id}: it was restarted without it, or "
            "emptied. Give it back its data and start it with --appendonly yes, or start a new search."
        )

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self._redis.close()

    def _script(self, name: str, *arguments: Any) -> Any:
        with self._told():
            return self._scripts[name](args=[_PREFIX, *arguments])

    # -- searches

    def create_new_search(self) -> str:
        """Make a new search and give its id: ``"0"``, ``"1"`` and so on."""
        return str(self._script("new_search"))

    def _search(self, search_id: object) -> str:
        """The key of a search that exists."""
        key = f"{_PREFIX}search:{search_id}"
        with self._told():
            if not str(search_id).isdecimal() or not self._redis.exists(key):
                raise KeyError(search_id)
        return key

    def store_search_value(self, search_id: str, key: str, value: Any) -> None:
        search, field, text = self._search(search_id), encode(key, "key"), encode(value)
        with self._told():
            self._redis.hset(f"{search}:values", field, text)

    def load_search_value(self, search_id: str, key: str) -> Any:
        search = self._search(search_id)
        with self._told():
            text = self._redis.hget(f"{search}:values", encode(key, "key"))
        if text is None:
            raise KeyError(key)
        return decode(text)

    def load_all_search_ids(self) -> list[str]:
        with self._told():
            return list(self._redis.lrange(f"{_PREFIX}searches", 0, -1))

    def load_all_job_ids(self, search_id: str) -> list[str]:
        return [f"{search_id}.{number}" for number in self._numbers(f"{self._search(search_id)}:jobs")]

    def _numbers(self, key: str, start: int = 0) -> list[int]:
        with self._told():
            return sorted(map(int, self._redis.lrange(key, start, -1)))

    def load_search(self, search_id: str) -> dict[str, dict[str, Any]]:
        jobs = self.load_jobs(self.load_all_job_ids(search_id))
        return _Jobs((job_id.rpartition(".")[2], data) for job_id, data in jobs.items())

    # -- jobs

    def _create_jobs(self, search_id: str, arguments: Sequence[str | None], driver: str | None) -> list[str]:
        first = int(self._script("reserve", search_id, len(arguments)))
        if first < 0:
            raise KeyError(search_id)
        for start in range(0, len(arguments), _PAGE):
            page = (text or "" for text in arguments[start : start + _PAGE])
            self._script("create", search_id, first + start, driver or "", *page)
        self._script("publish", search_id, first, first + len(arguments) - 1, driver or "")
        return [f"{search_id}.{number}" for number in range(first, first + len(arguments))]

    def store_job(self, job_id: str, key: str, value: Any) -> None:
        if key in _COLUMNS:
            if not self._script("put", *split_id(job_id), _COLUMNS[key], encode(value)):
                raise KeyError(job_id)
        else:
            self._change(job_id, "extra", lambda old: encode({**({} if old is None else decode(old)), key: value}))

    def store_job_metadata(self, job_id: str, key: str, value: Any) -> None:
        self._change(job_id, "metadata", lambda old: with_entry(old, key, value))

    def _change(self, job_id: str, field: str, new: Callable[[str | None], str]) -> None:
        """Replace a field by what becomes of its value, again if somebody else changes the job meanwhile."""
        key = "{}job:{}.{}".format(_PREFIX, *split_id(job_id))

        def change(pipeline: Any) -> None:
            if not pipeline.hexists(key, "listed"):
                raise KeyError(job_id)
            text = new(_merged(*pipeline.hmget(key, field, f"{field}+")))
            pipeline.multi()
            pipeline.hset(key, field, text)
            pipeline.hdel(key, f"{field}+")

        with self._told():
            self._redis.transaction(change, key)

    def load_jobs(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        ids = list(job_ids)
        rows = self._fields(ids, *_DATA, "listed")
        for job_id, row in zip(ids, rows, strict=True):
            if row[-1] is None:
                raise KeyError(job_id)
        return {job_id: _data(*row[:-1]) for job_id, row in zip(ids, rows, strict=True)}

    def _fields(self, job_ids: Sequence[str], *fields: str) -> list[list[Any]]:
        rows: list[list[Any]] = []
        for start in range(0, len(job_ids), _PAGE):
            with self._told(), self._redis.pipeline(transaction=False) as pipeline:
                for job_id in job_ids[start : start + _PAGE]:
                    pipeline.hmget(f"{_PREFIX}job:{job_id}", fields)
                rows += pipeline.execute()
        return rows

    def load_settled_since(self, search_id: str, cursor: int, but_of: str | None = None) -> tuple[int, list[str]]:
        with self._told():
            numbers = self._redis.lrange(f"{_PREFIX}search:{search_id}:settled", cursor, -1)
        job_ids = [f"{search_id}.{number}" for number in numbers]
        drivers = self._fields(job_ids, "driver") if but_of is not None else [[None]] * len(job_ids)
        found = [
            job_id for job_id, (driver,) in zip(job_ids, drivers, strict=True) if driver is None or driver != but_of
        ]
        return cursor + len(numbers), found

    # -- drivers

    def join(self, search_id: str, identity: Mapping[str, Any]) -> str:
        search, text = self._search(search_id), encode(dict(identity))
        with self._told():
            driver = str(self._redis.incr(f"{_PREFIX}next_driver"))
            with self._redis.pipeline() as pipeline:
                pipeline.hset(f"{_PREFIX}driver:{driver}", mapping={"identity": text, "beat": 0, "gone": 0})
                pipeline.sadd(f"{search}:drivers", driver)
                pipeline.execute()
        return driver

    def beat(self, driver: str) -> None:
        with self._told():
            self._redis.hincrby(f"{_PREFIX}driver:{driver}", "beat", 1)

    def leave(self, driver: str) -> None:
        with self._told():
            self._redis.hset(f"{_PREFIX}driver:{driver}", "gone", 1)

    def load_drivers(self, search_id: str) -> list[Driver]:
        with self._told():
            ids = sorted(self._redis.smembers(f"{self._search(search_id)}:drivers"), key=int)
            with self._redis.pipeline(transaction=False) as pipeline:
                for driver in ids:
                    pipeline.hmget(f"{_PREFIX}driver:{driver}", "identity", "beat", "gone")
                rows = pipeline.execute()
        return [
            Driver(driver, decode(identity), int(beat), gone == "1")
            for driver, (identity, beat, gone) in zip(ids, rows, strict=True)
            if identity is not None  # taken over between the two questions
        ]

    def create_driver_jobs(self, search_id: str, driver: str, configs: Sequence[str]) -> list[str]:
        self._check_data(search_id)
        return self._create_jobs(search_id, [CONFIG_ALONE % text for text in configs], driver)

    def write(self, driver: str, outcomes: Sequence[Outcome], gathered: Sequence[tuple[str, float]]) -> None:
        self._check_data(split_id(outcomes[0].job_id if outcomes else gathered[0][0])[0])
        for start in range(0, len(outcomes), _PAGE):
            page = outcomes[start : start + _PAGE]
            search, _ = split_id(page[0].job_id)
            values = ((split_id(each.job_id)[1], each.out, each.metadata, each.extra or "") for each in page)
            if self._script("settle", search, driver, *(value for four in values for value in four)):
                raise self._forgotten(search)
        for start in range(0, len(gathered), _PAGE):
            marks = gathered[start : start + _PAGE]
            search, _ = split_id(marks[0][0])
            pairs = ((split_id(job_id)[1], repr(instant)) for job_id, instant in marks)
            if self._script("gather", search, driver, *(value for pair in pairs for value in pair)):
                raise self._forgotten(search)

    def take_over(self, search_id: str, dead: str, driver: str, begun: Iterable[str]) -> bool:
        numbers = json.dumps([split_id(job_id)[1] for job_id in begun])
        return bool(self._script("take_over", search_id, dead, driver, numbers))

    def load_driver_jobs(self, search_id: str, driver: str) -> Iterator[Kept]:
        job_ids = [f"{search_id}.{number}" for number in self._numbers(f"{_PREFIX}driver:{driver}:jobs")]
        for start in range(0, len(job_ids), _PAGE):
            page = job_ids[start : start + _PAGE]
            rows = self._fields(page, "attempts", "settled", *_DATA)
            for job_id, (attempts, settled, gathered, *texts) in zip(page, rows, strict=True):
                data = _data(gathered, *texts)
                instant = None if gathered is None else float(gathered)
                yield Kept(job_id, data["in"]["args"][0], int(attempts), settled is not None, instant, data)

    def begun_log(self, driver: str) -> Path:
        """Give the path of the file, on the driver's machine, in which its workers note what they begin.

        Args:
            driver: as `join` gave it.

        Returns:
            The path; the file need not exist.
        """
        return Path(tempfile.gettempdir()) / f"robust_eval-begun-{self._uid}-{driver}"


def _check(url: str, shown: str) -> None:
    """Refuse what redis-py would refuse in words of its own, or leave out without a word."""
    wrong = f"storage={shown!r} is no URL of a Redis server"
    known = "Its form is redis://user:password@host:6379/0, with a number for the database."
    try:
        parts = urlsplit(url)
        port, database = parts.port, parts.path.strip("/")
    except ValueError as error:
        raise InvalidArgument(f"{wrong}: {error}. {known}") from error
    if parts.scheme != "unix" and (port == 0 or (database and not database.isdecimal())):
        raise InvalidArgument(f"{wrong}. {known}")


def _merged(old: str | None, added: str | None) -> str | None:
    """What the job itself has stored stays, and its outcome is added."""
    return added if old is None else old if added is None else encode_lossy({**decode(old), **decode(added)})


def _data(gathered: str | None, arguments: str | None, out: str | None, *texts: str | None) -> dict[str, Any]:
    metadata, more_metadata, extra, more_extra = texts
    data = job_data(arguments, out, _merged(metadata, more_metadata), _merged(extra, more_extra), gathered)
    if isinstance(data["in"], dict) and isinstance(data["in"].get("args"), tuple):
        data["in"]["args"] = _Arguments(data["in"]["args"])
    return data


class _Arguments(tuple[Any, ...]):
    """Positional arguments: a tuple, as from every storage, that is also equal to the list of DeepHyper's Redis."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, list) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__


class _Jobs(dict[str, dict[str, Any]]):
    """Jobs by their numbers as text, as from every storage, that are also found by number as in DeepHyper's Redis."""

    def __missing__(self, key: object) -> dict[str, Any]:
        if isinstance(key, int):
            return self[str(key)]
        raise KeyError(key)


def _connected(kind: type[RedisStorage], url: str) -> RedisStorage:
    """Build what a pickled storage comes back as (named in pickles: keep the name)."""
    storage = kind(url=url)
    storage.connected = True
    return storage
