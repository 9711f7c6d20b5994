"""`SqliteStorage`: searches in one file, shared by the processes of one machine.

The file is in write-ahead mode: readers never wait, writers take turns, and a commit costs microseconds because it does
not wait for the disk. What was committed outlives the death of every process. A power failure may cost the last moments
before it, and never the file (SQLite's ``synchronous=NORMAL``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from robust_eval.errors import InvalidArgument, InvalidArgumentType, StorageError, bounded_repr
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_VERSION: Final = 1
_BUSY_S: Final = 60.0
_PAGE: Final = 1000
_SCHEMA: Final = """
CREATE TABLE searches (id INTEGER PRIMARY KEY, next_job INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0);
CREATE TABLE search_values (search INTEGER, key TEXT, value TEXT, PRIMARY KEY (search, key)) WITHOUT ROWID;
CREATE TABLE drivers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, search INTEGER, identity TEXT, beat INTEGER DEFAULT 0, gone INTEGER DEFAULT 0
);
CREATE TABLE jobs (
    search INTEGER, number INTEGER, driver INTEGER, attempts INTEGER NOT NULL DEFAULT 0,
    arguments TEXT, out TEXT, metadata TEXT, extra TEXT, settled INTEGER, gathered REAL,
    PRIMARY KEY (search, number)
) WITHOUT ROWID;
CREATE INDEX jobs_settled ON jobs (search, settled) WHERE settled IS NOT NULL;
"""
_COLUMNS: Final = {"in": "arguments", "out": "out", "metadata": "metadata"}
_DATA: Final = "arguments, out, metadata, extra, gathered"


class SqliteStorage(DurableStorage):
    """Searches in one SQLite file, which several drivers and threads of one machine may share.

    A pickled copy opens the same file. Not for network file systems while several machines write: SQLite's
    write-ahead log is for the processes of one machine.

    Args:
        path: the file, made where it is missing; its directory must exist.

    Raises:
        InvalidArgument: there is no such directory.
        InvalidArgumentType: the path names no file, such as ``":memory:"`` (a ``TypeError``).
        StorageError: from ``connect()`` on: the file cannot be opened, read or written.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if str(path) in {"", ".", ":memory:"}:
            raise InvalidArgumentType(f"path={bounded_repr(path)} is no file. Pass the path of a file, runs.db say.")
        self.path = Path(path).resolve()
        if not self.path.parent.is_dir():
            raise InvalidArgument(f"path={str(path)!r}: there is no directory {self.path.parent}. Make it first.")
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inherited: sqlite3.Connection | None = None
        self._pid = -1
        self._opened_as: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"SqliteStorage({str(self.path)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (type(self), str(self.path))

    # -- the connection

    def _connect(self) -> None:
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise StorageError(f"{self.path} is not a storage of this version of robust_eval; choose another file.")
        self.connected = True

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._pid == os.getpid():
                connection.close()

    def _open(self) -> sqlite3.Connection:
        """The connection, which a forked child must not use: it opens one of its own."""
        if self._connection is None or self._pid != os.getpid():
            connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            connection.create_function("merged", 2, _merged, deterministic=True)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            # A connection that a fork brought along is the parent's: it is kept, and never used or closed here.
            self._inherited, self._connection, self._pid = self._connection, connection, os.getpid()
            self._opened_as = self._file()
        return self._connection

    def _file(self) -> tuple[int, int] | None:
        """Which file is at the path now."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _check_in_place(self) -> None:
        """Refuse to go on in a file that nobody can find any more, which SQLite would without a word."""
        if self._file() != self._opened_as:
            raise StorageError(
                f"The storage {self.path} was deleted, moved or replaced while it was in use. Put the file back where "
                "it was, or start anew with another one."
            )

    @contextlib.contextmanager
    def _using(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """One transaction, one thread at a time; nothing stays of one that an error or an interrupt ends."""
        with self._lock:
            try:
                db = self._open()
                self._check_in_place()
                db.execute(begin)
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StorageError(f"The storage {self.path} cannot be used: {error}. {_advice(error)}") from error

    def _transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._using("BEGIN IMMEDIATE")

    def _all(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._using() as db:
            return db.execute(query, values).fetchall()

    # -- searches

    def create_new_search(self) -> str:
        """Make a new search and give its id: ``"0"``, ``"1"`` and so on."""
        with self._transaction() as db:
            number = db.execute("SELECT coalesce(max(id) + 1, 0) FROM searches").fetchone()[0]
            db.execute("INSERT INTO searches (id) VALUES (?)", (number,))
        return str(number)

    def store_search_value(self, search_id: str, key: str, value: Any) -> None:
        row = (self._search(search_id), encode(key, "key"), encode(value))
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO search_values VALUES (?, ?, ?)", row)

    def load_search_value(self, search_id: str, key: str) -> Any:
        query = "SELECT value FROM search_values WHERE search = ? AND key = ?"
        for (text,) in self._all(query, (self._search(search_id), encode(key, "key"))):
            return decode(text)
        raise KeyError(key)

    def load_all_search_ids(self) -> list[str]:
        return [str(number) for (number,) in self._all("SELECT id FROM searches ORDER BY id", ())]

    def load_all_job_ids(self, search_id: str) -> list[str]:
        rows = self._all("SELECT number FROM jobs WHERE search = ? ORDER BY number", (self._search(search_id),))
        return [f"{search_id}.{number}" for (number,) in rows]

    def load_search(self, search_id: str) -> dict[str, dict[str, Any]]:
        query = f"SELECT number, {_DATA} FROM jobs WHERE search = ? ORDER BY number"  # noqa: S608  constants
        return {str(number): job_data(*texts) for number, *texts in self._all(query, (self._search(search_id),))}

    def _search(self, search_id: str) -> int:
        """The number of a search that exists."""
        if not str(search_id).isdecimal() or not self._all("SELECT 1 FROM searches WHERE id = ?", (int(search_id),)):
            raise KeyError(search_id)
        return int(search_id)

    # -- jobs

    def _create_jobs(self, search_id: str, arguments: Sequence[str | None], driver: str | None) -> list[str]:
        if not str(search_id).isdecimal():
            raise KeyError(search_id)
        with self._transaction() as db:
            found = db.execute("SELECT next_job FROM searches WHERE id = ?", (search_id,)).fetchone()
            if found is None:
                raise KeyError(search_id)
            first = found[0]
            db.execute("UPDATE searches SET next_job = ? WHERE id = ?", (first + len(arguments), search_id))
            rows = ((int(search_id), number, driver, text) for number, text in enumerate(arguments, first))
            db.executemany("INSERT INTO jobs (search, number, driver, arguments) VALUES (?, ?, ?, ?)", rows)
        return [f"{search_id}.{number}" for number in range(first, first + len(arguments))]

    def store_job(self, job_id: str, key: str, value: Any) -> None:
        if key in _COLUMNS:
            self._change(job_id, _COLUMNS[key], lambda _old: encode(value))
        else:
            self._change(job_id, "extra", lambda old: encode({**({} if old is None else decode(old)), key: value}))

    def store_job_metadata(self, job_id: str, key: str, value: Any) -> None:
        self._change(job_id, "metadata", lambda old: with_entry(old, key, value))

    def _change(self, job_id: str, column: str, new: Any) -> None:
        place = split_id(job_id)
        with self._transaction() as db:
            query = f"SELECT {column} FROM jobs WHERE search = ? AND number = ?"  # noqa: S608  our own names
            found = db.execute(query, place).fetchone()
            if found is None:
                raise KeyError(job_id)
            db.execute(f"UPDATE jobs SET {column} = ? WHERE search = ? AND number = ?", (new(found[0]), *place))  # noqa: S608
            if column == "out":
                # A job that no driver answers for has settled once somebody stored its objective.
                self._settle(db, place)

    @staticmethod
    def _settle(db: sqlite3.Connection, place: tuple[int, int]) -> None:
        db.execute("UPDATE searches SET settled = settled + 1 WHERE id = ?", place[:1])
        db.execute(
            "UPDATE jobs SET settled = (SELECT searches.settled FROM searches WHERE searches.id = jobs.search) "
            "WHERE search = ? AND number = ? AND settled IS NULL AND driver IS NULL",
            place,
        )

    def load_jobs(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        query = f"SELECT {_DATA} FROM jobs WHERE search = ? AND number = ?"  # noqa: S608  constants
        found = {}
        with self._using() as db:
            for job_id in job_ids:
                row = db.execute(query, split_id(job_id)).fetchone()
                if row is None:
                    raise KeyError(job_id)
                found[job_id] = row
        return {job_id: job_data(*row) for job_id, row in found.items()}

    def load_settled_since(self, search_id: str, cursor: int, but_of: str | None = None) -> tuple[int, list[str]]:
        query = (
            "SELECT number, settled FROM jobs WHERE search = ? AND settled > ? "
            "AND (driver IS NULL OR driver IS NOT ?) ORDER BY settled"
        )
        with self._using() as db:
            end = db.execute("SELECT settled FROM searches WHERE id = ?", (search_id,)).fetchone()
            rows = db.execute(query, (search_id, cursor, but_of)).fetchall() if end and end[0] > cursor else []
        return (end[0] if end else cursor), [f"{search_id}.{number}" for number, _ in rows]

    # -- drivers

    def join(self, search_id: str, identity: Mapping[str, Any]) -> str:
        row = (self._search(search_id), encode(dict(identity)))
        with self._transaction() as db:
            return str(db.execute("INSERT INTO drivers (search, identity) VALUES (?, ?)", row).lastrowid)

    def beat(self, driver: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE drivers SET beat = beat + 1 WHERE id = ?", (driver,))

    def leave(self, driver: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE drivers SET gone = 1 WHERE id = ?", (driver,))

    def load_drivers(self, search_id: str) -> list[Driver]:
        rows = self._all("SELECT id, identity, beat, gone FROM drivers WHERE search = ? ORDER BY id", (search_id,))
        return [Driver(str(number), decode(identity), beat, bool(gone)) for number, identity, beat, gone in rows]

    def create_driver_jobs(self, search_id: str, driver: str, configs: Sequence[str]) -> list[str]:
        return self._create_jobs(search_id, [CONFIG_ALONE % text for text in configs], driver)

    def write(self, driver: str, outcomes: Sequence[Outcome], gathered: Sequence[tuple[str, float]]) -> None:
        with self._transaction() as db:
            if outcomes:
                search, _ = split_id(outcomes[0].job_id)
                db.execute("UPDATE searches SET settled = settled + ? WHERE id = ?", (len(outcomes), search))
                last = db.execute("SELECT settled FROM searches WHERE id = ?", (search,)).fetchone()[0]
                rows = (
                    (out, metadata, extra, settled, *split_id(job_id), driver)
                    for settled, (job_id, out, metadata, extra) in enumerate(outcomes, last - len(outcomes) + 1)
                )
                db.executemany(
                    "UPDATE jobs SET out = ?, metadata = merged(metadata, ?), extra = merged(extra, ?), settled = ? "
                    "WHERE search = ? AND number = ? AND driver = ? AND settled IS NULL",
                    rows,
                )
            marks = ((instant, *split_id(job_id), driver) for job_id, instant in gathered)
            db.executemany("UPDATE jobs SET gathered = ? WHERE search = ? AND number = ? AND driver = ?", marks)

    def take_over(self, search_id: str, dead: str, driver: str, begun: Iterable[str]) -> bool:
        with self._transaction() as db:
            if not db.execute("DELETE FROM drivers WHERE id = ? AND search = ?", (dead, search_id)).rowcount:
                return False
            db.executemany(
                "UPDATE jobs SET attempts = attempts + 1 "
                "WHERE search = ? AND number = ? AND driver = ? AND settled IS NULL",
                ((*split_id(job_id), dead) for job_id in begun),
            )
            db.execute("UPDATE jobs SET driver = ? WHERE search = ? AND driver = ?", (driver, search_id, dead))
        return True

    def load_driver_jobs(self, search_id: str, driver: str) -> Iterator[Kept]:
        query = (
            f"SELECT number, attempts, settled, {_DATA} FROM jobs "  # noqa: S608  constants
            "WHERE search = ? AND driver = ? AND number > ? ORDER BY number LIMIT ?"
        )
        last = -1
        while rows := self._all(query, (search_id, driver, last, _PAGE)):
            for number, attempts, settled, *fields in rows:
                data = job_data(*fields)
                job_id, gathered = f"{search_id}.{number}", fields[-1]
                yield Kept(job_id, data["in"]["args"][0], attempts, settled is not None, gathered, data)
            last = rows[-1][0]

    def begun_log(self, driver: str) -> Path:
        """Give the path of the file, beside the database, in which the workers of a driver note what they begin.

        Args:
            driver: as `join` gave it.

        Returns:
            The path; the file need not exist.
        """
        return self.path.with_name(f"{self.path.name}-begun-{driver}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def _merged(old: str | None, new: str | None) -> str | None:
    """What the job itself has stored stays, and its outcome is added."""
    return new if old is None else old if new is None else encode_lossy({**decode(old), **decode(new)})


def _advice(error: sqlite3.Error) -> str:
    said = str(error)
    if "full" in said:
        return "Free some space on the disk."
    if "locked" in said:
        return f"Another program has held it for {_BUSY_S:.0f} s."
    if "not a database" in said:
        return "It is not a file of SQLite: choose another path."
    return "Look at the file, its directory and their permissions."


def _opened(kind: type[SqliteStorage], path: str) -> SqliteStorage:
    """Build what a pickled storage comes back as (named in pickles: keep the name).

    It opens the file when it is first used: a process that forks must not have it open.
    """
    storage = kind(path)
    storage.connected = True
    return storage
