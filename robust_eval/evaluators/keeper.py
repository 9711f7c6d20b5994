"""The driver's end of a durable storage: one thread that writes what arrives before anybody can gather it.

    arrives -> settled -> written, many at once -> in the mailbox, where gather finds it

An outcome is written when it arrives, in groups: while one group is being written the next one gathers. A job that was
only called off (``cancelled``) is written when it is gathered, not before: whoever resumes the search runs it.

A storage that fails costs no outcome: what could not be written goes on to its mailbox, is kept, and is tried again
every second. The error is told by the next ``submit`` and ``gather``, and by ``close`` if something is left unwritten.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import StorageError
from robust_eval.evaluators.arrivals import Mailbox
from robust_eval.evaluators.outcomes import is_cancelled, outcome_of
from robust_eval.evaluators.presence import BEAT_S, dead_among, identity
from robust_eval.processes.begun import BegunLog, read_begun
from robust_eval.storage.durable import DurableStorage, encoded_configs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from weakref import WeakMethod

    from robust_eval.job import Job
    from robust_eval.storage.base import Storage
    from robust_eval.storage.durable import Kept, Outcome

_MOST_WAITING: Final = 20_000
_LINGER_S: Final = 0.05
_RETRY_S: Final = 1.0
_CLOSE_S: Final = 90.0


class KeptMailbox(Mailbox):
    """A mailbox whose items are written before they are delivered.

    Args:
        keeper: writes them.
        settle: turns an item into its job.
        observe: as of `Mailbox`.
    """

    def __init__(
        self,
        keeper: Keeper,
        settle: WeakMethod[Callable[[Any], Job]],
        observe: Callable[[Iterable[Any]], bool],
    ) -> None:
        super().__init__(observe)
        self._keeper = keeper
        self._settle = settle

    def put(self, item: Any) -> None:
        """Deliver one item, once it is written."""
        self._keeper.take(self, (item,))

    def put_many(self, items: Iterable[Any]) -> None:
        """Deliver several items, once they are written."""
        self._keeper.take(self, items)

    def deliver(self, items: Iterable[Any]) -> None:
        """Deliver items that are written."""
        super().put_many(items)

    def job_of(self, item: Any) -> Job | None:
        """Give the settled job; ``None`` where its evaluator is gone."""
        settle = self._settle()
        return None if settle is None else settle(item)


class Keeper:
    """One driver of a search in a durable storage.

    Args:
        storage: connected.
        search_id: the search.
        owned: whether the storage is this driver's alone, and closed with it.

    Attributes:
        driver: this driver's id in the storage.
        begun_log: the file in which workers note what they begin.
    """

    def __init__(self, storage: DurableStorage, search_id: str, *, owned: bool) -> None:
        self._owned = owned
        self._storage = storage
        self._search_id = search_id
        self._pid = os.getpid()
        self.driver = storage.join(search_id, identity())
        self.begun_log = storage.begun_log(self.driver)
        self._begun = BegunLog(self.begun_log)
        self._changed = threading.Condition()
        self._arrived: deque[tuple[KeptMailbox, Any]] = deque()
        self._outcomes: list[Outcome] = []
        self._gathered: list[tuple[str, float]] = []
        self._error: StorageError | None = None
        self._is_told = False
        self._beat_at = time.monotonic() + BEAT_S
        self._closing = self._has_left = False
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, storage: Storage, search_id: str, *, owned: bool) -> Keeper | None:
        """Give a keeper where the storage is durable."""
        return cls(storage, search_id, owned=owned) if isinstance(storage, DurableStorage) else None

    # -- from the thread that submits and gathers

    def submit(self, configs: list[Any]) -> list[str]:
        """Keep configurations before they can run, and give the ids of their jobs.

        Raises:
            InvalidArgument: one of them cannot be stored; then none is.
            StorageError: the storage fails, or failed before and has not recovered.
        """
        texts = encoded_configs(configs)
        self._start()
        return self._storage.create_driver_jobs(self._search_id, self.driver, texts)

    def gathered(self, job: Job) -> None:
        """Keep that a job was gathered, soon; and its outcome, where that waited for it."""
        outcome = outcome_of(job) if is_cancelled(job) else None
        with self._changed:
            if outcome is not None:
                self._outcomes.append(outcome)
            self._gathered.append((job.id, job.metadata["timestamp_gather"]))
            if len(self._gathered) == 1:
                self._changed.notify_all()

    @property
    def fails(self) -> bool:
        """Whether the last attempt to write has failed."""
        return self._error is not None

    def check(self) -> None:
        """Tell once that the storage fails.

        Raises:
            StorageError: it does; told before it is asked again.
        """
        error = self._error
        if error is not None and not self._is_told:
            self._is_told = True
            raise StorageError(f"{error} Outcomes can be gathered all the same, but do not outlive this program yet.")

    def sync(self) -> None:
        """Write what is left where no thread does it any more: after the close. An error is told by `check`."""
        if self._closing and self._pid == os.getpid() and (self._outcomes or self._gathered):
            self._write([])
            self._let_go()

    def expect(self, numbers: Mapping[int, str]) -> None:
        """Say which job each number of a pool is, before the pool gets it; its workers note what they begin."""
        self._begun.expect((number, _number_of(job_id)) for number, job_id in numbers.items())

    def note_begin(self, job: Job) -> None:
        """Say that a job begins here, before it does."""
        self._begun.note(_number_of(job.id))

    # -- taking over

    def take_over(self) -> Iterable[Kept]:
        """Take the jobs of all drivers that ended or died, and give all jobs of this driver."""
        self._start()
        for dead in dead_among(lambda: self._storage.load_drivers(self._search_id), self.driver):
            log = self._storage.begun_log(dead.id)
            begun = set() if dead.gone else read_begun(log)
            job_ids = [f"{self._search_id}.{number}" for number in begun]
            if self._storage.take_over(self._search_id, dead.id, self.driver, job_ids):
                log.unlink(missing_ok=True)
        return self._storage.load_driver_jobs(self._search_id, self.driver)

    # -- from the threads that deliver

    def take(self, mailbox: KeptMailbox, items: Iterable[Any]) -> None:
        """Have items written and then delivered. Waits while too many wait already."""
        with self._changed:
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                self._changed.wait_for(
                    lambda: len(self._arrived) < _MOST_WAITING or self._error is not None or not thread.is_alive()
                )
            self._arrived.extend((mailbox, item) for item in items)
            if thread is not None and thread.is_alive():
                self._changed.notify_all()
                return
        self._write(self._taken())

    def _taken(self) -> list[tuple[KeptMailbox, Any]]:
        with self._changed:
            taken, self._arrived = list(self._arrived), deque()
            self._changed.notify_all()
        return taken

    # -- the thread

    def _start(self) -> None:
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name="robust_eval-storage", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not (self._closing and not self._arrived):
            with self._changed:
                self._changed.wait_for(self._is_due, max(0.0, self._beat_at - time.monotonic()))
                if not self._arrived and not self._closing:
                    # Marks of gathering wait a little for the next outcomes, and do without them then.
                    self._changed.wait_for(lambda: self._arrived or self._closing, _LINGER_S)
            self._write(self._taken())

    def _is_due(self) -> bool:
        return bool(self._arrived or self._closing or (self._gathered and self._error is None))

    def _write(self, taken: list[tuple[KeptMailbox, Any]]) -> None:
        """Write what there is, then deliver, whatever became of the writing."""
        try:
            self._encode(taken)
            self._store()
            self._error, self._is_told = None, False
        except StorageError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - a storage of the user's raises anything; nothing may be lost by it
            self._error = StorageError(f"The storage failed: {type(error).__qualname__}: {error}.")
            self._error.__cause__ = error
        finally:
            for mailbox in {id(mailbox): mailbox for mailbox, _ in taken}.values():
                mailbox.deliver([item for owner, item in taken if owner is mailbox])
            if self._error is not None:
                self._beat_at = time.monotonic() + _RETRY_S

    def _encode(self, taken: list[tuple[KeptMailbox, Any]]) -> None:
        jobs = (mailbox.job_of(item) for mailbox, item in taken)
        outcomes = [outcome_of(job) for job in jobs if job is not None and not is_cancelled(job)]
        with self._changed:
            self._outcomes += outcomes

    def _store(self) -> None:
        with self._changed:
            outcomes, gathered = self._outcomes[:], self._gathered[:]
        if outcomes or gathered:
            self._storage.write(self.driver, outcomes, gathered)
        with self._changed:
            del self._outcomes[: len(outcomes)], self._gathered[: len(gathered)]
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + BEAT_S
            self._storage.beat(self.driver)

    # -- the end

    def close(self) -> None:
        """Write all that is left and leave the search. Bounded, and free to be called again.

        Raises:
            StorageError: something could not be written.
        """
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_S)
        if self._has_left:
            return
        self._write(self._taken())
        try:
            self._storage.leave(self.driver)
        except StorageError as error:
            self._error = self._error or error
        self._begun.close()
        self._has_left = True
        self._let_go()
        self._raise_unwritten()

    def _let_go(self) -> None:
        if self._owned:
            self._storage.close()

    def close_quietly(self) -> None:
        """Do the same where nobody hears of an error: when the evaluator is dropped."""
        try:
            self.close()
        except StorageError:
            return

    def _raise_unwritten(self) -> None:
        if self._error is not None:
            left = len(self._outcomes)
            self._is_told = True
            unwritten = (
                f"{left} outcome(s) could not be stored: gather and dump them now; a resumed search would run their "
                "jobs again."
            )
            raise StorageError(f"{self._error} {unwritten}" if left else str(self._error))


def _number_of(job_id: str) -> int:
    return int(job_id.rpartition(".")[2])
