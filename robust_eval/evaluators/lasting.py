"""The half of an evaluator that outlives its driver: resume, what was done before, what others do, SIGTERM."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from robust_eval.errors import ASKED_TO_END, EvaluatorClosed, InvalidArgument, StorageError
from robust_eval.evaluators.arrivals import Mailbox
from robust_eval.evaluators.keeper import Keeper, KeptMailbox
from robust_eval.evaluators.outcomes import rebuilt
from robust_eval.evaluators.repeats import Repeats
from robust_eval.evaluators.sigterm import exit_on_sigterm
from robust_eval.failure import Failure
from robust_eval.job import Job, JobStatus
from robust_eval.limits import parse_count
from robust_eval.storage.memory import MemoryStorage

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from robust_eval.evaluators.arrivals import Arrivals
    from robust_eval.evaluators.notify import Notifier
    from robust_eval.storage.base import Storage
    from robust_eval.storage.durable import Kept

_TIMESTAMP = "timestamp"
_Item = TypeVar("_Item")
_FIRST_PORTION, _PORTION = 64, 512  # jobs; to pickle so many takes some milliseconds at most


class Resumed(NamedTuple):
    """What `Evaluator.resume` found.

    Attributes:
        again: jobs that had not settled and are run again.
        lost: jobs that were running in ``max_attempts`` drivers that died; they settled as ``lost``.
        settled: jobs that had settled and were not gathered; ``gather`` gives them.
        gathered: jobs that were gathered; ``dump_evals`` writes those that the CSV file lacks.
    """

    again: int = 0
    lost: int = 0
    settled: int = 0
    gathered: int = 0


class Lasting:
    """What an evaluator does with the memory of its storage.

    Args:
        storage: where the jobs are kept.
        search_id: the search.
        max_attempts: in how many drivers that die a job may run.
        owned: whether the storage is closed with the evaluator.
    """

    jobs: list[Job]
    _uncounted: dict[str, Job]
    jobs_done: list[Job]
    job_id_gathered: list[str]
    num_jobs_submitted: int
    num_jobs_gathered: int
    _has_resumed: bool
    timestamp: float
    run_function: Any
    _notifier: Notifier
    _callbacks: list[Any]
    _job_class: type[Job]
    _created_at: float
    _submitting: threading.RLock
    _closed: bool

    def __init__(self, storage: Storage, search_id: str, max_attempts: int, *, owned: bool) -> None:
        self._max_attempts = parse_count("max_attempts", max_attempts)
        self._storage = storage
        self._search_id = search_id
        self._keeper = Keeper.of(storage, search_id, owned=owned)
        self._repeats = Repeats(storage, search_id)
        self._others: list[Job] = []
        self._others_seen: set[str] = set()
        self._others_cursor = self._looked_at = 0

    @property
    def _inbox(self) -> Arrivals:
        raise NotImplementedError

    def _job_of(self, config: Mapping[str, Any]) -> Job:
        raise NotImplementedError

    def _dispatch(self, jobs: list[Job], options: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _check_options(self, options: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End everything."""
        raise NotImplementedError

    # -- jobs on their way into the storage

    def _new_jobs(self, configs: Sequence[Mapping[str, Any]], *, together: bool) -> Iterable[list[Job]]:
        """Make jobs of configurations, in portions: the first ones run while others are made.

        Before any of them is on its way they are all made where the storage may refuse one, or a mapping of the user's
        fail to be copied.

        Args:
            configs: the configurations.
            together: whether they go on their way as one portion.
        """
        if type(self._storage) is MemoryStorage and set(map(type, configs)) == {dict}:
            return map(self._made, _portions(configs, together=together))
        return _portions(self._made(configs), together=together)

    def _made(self, configs: Sequence[Mapping[str, Any]]) -> list[Job]:
        jobs = [self._job_of(config) for config in configs]
        for job, job_id in zip(jobs, self._ids_of(jobs), strict=True):
            job.id = job_id
        return jobs

    def _ids_of(self, jobs: list[Job]) -> list[str]:
        """Keep the configurations of new jobs, before they can run."""
        configs = [job.config for job in jobs]
        if self._keeper is None:
            return self._storage.create_new_jobs(self._search_id, configs)
        if not self.jobs:
            self._keep_clock()
        return self._keeper.submit(configs)

    def _record(self, job: Job) -> None:
        """Keep that a job was gathered, and its outcome where it is not kept yet."""
        if self._keeper is not None:
            self._keeper.gathered(job)
            return
        if job.failure is not None:
            self._storage.store_job(job.id, "failure", job.failure.to_dict())
        self._storage.store_job_outcome(job.id, job.objective, job.metadata)

    # -- resume

    def resume(self, **per_job: Any) -> Resumed:
        """Go on with what the drivers of this search that ended or died have left.

        Jobs that had not settled run again under their ids. Jobs that had settled are not run again: ``gather`` gives
        those that were never gathered, and the others are in ``jobs`` and in the next `dump_evals`, which adds what
        its file lacks. A job that was running when its driver died, ``max_attempts`` times, has failed as ``lost``.

        What a driver that lives is working on stays with it. A driver on another machine counts as dead when it has
        given no sign of life for 15 seconds, which this call waits for; one on this machine is known at once.

        Args:
            **per_job: limits of the jobs that run again, as of `submit`.

        Returns:
            How many jobs there were of each kind.

        Raises:
            InvalidArgument: the storage does not outlive its driver (a ``ValueError``).
            EvaluatorClosed: this evaluator is closed.
            StorageError: it cannot be read.
        """
        self._check_options(per_job)
        if self._keeper is None:
            raise InvalidArgument(
                f"storage={type(self._storage).__name__} ends with this program, so nothing can be resumed. "
                'Pass storage="sqlite:///runs.db" to the evaluator, and its search_id to go on with a search.'
            )
        with self._submitting:
            if self._closed:
                raise EvaluatorClosed("This evaluator is closed: make a new one to resume.")
            left = list(self._keeper.take_over())
            self._restore_clock()
            self._has_resumed = True  # there may be nothing left: a gather of nothing is no mistake then
            return self._adopt(left, per_job)

    def _restore_clock(self) -> None:
        """Count timestamps from when the search began, in all of its drivers."""
        self._keep_clock()
        if not self.jobs:
            self.timestamp = float(self._storage.load_search_value(self._search_id, _TIMESTAMP))

    def _keep_clock(self) -> None:
        try:
            self._storage.load_search_value(self._search_id, _TIMESTAMP)
        except KeyError:
            self._storage.store_search_value(self._search_id, _TIMESTAMP, self.timestamp)

    def _adopt(self, left: Iterable[Kept], per_job: Mapping[str, Any]) -> Resumed:
        known = {job.id for job in self.jobs}.union(self.job_id_gathered)
        kinds: dict[str, list[Job]] = {name: [] for name in Resumed._fields}
        for kept in left:
            if kept.job_id not in known:
                # What a job that has not settled stored as its objective itself is none.
                data = kept.data if kept.settled else {**kept.data, "out": None}
                job = rebuilt(kept.job_id, data, self.run_function, self._job_class)
                kinds[self._kind_of_kept(kept)].append(job)
                job.status = JobStatus.DONE if kept.gathered is not None else JobStatus.RUNNING
        self._announce(_portions(kinds["again"], together=bool(per_job)), per_job)
        for job in kinds["lost"]:
            job.fail(_lost(self._max_attempts))
        self._inbox.put_many(kinds["lost"])
        self._deliver(kinds["settled"])
        self.job_id_gathered += [job.id for job in kinds["gathered"]]
        self.jobs_done += kinds["gathered"]
        self.num_jobs_gathered += len(kinds["gathered"])
        rest = [job for name in ("gathered", "settled", "lost") for job in kinds[name]]
        self.jobs += rest
        self.num_jobs_submitted += len(rest)
        return Resumed(**{name: len(jobs) for name, jobs in kinds.items()})

    def _kind_of_kept(self, kept: Kept) -> str:
        if kept.gathered is not None:
            return "gathered"
        if kept.settled:
            return "settled"
        return "lost" if kept.attempts >= self._max_attempts else "again"

    def _announce(self, portions: Iterable[list[Job]], per_job: Mapping[str, Any]) -> None:
        """Send jobs, which have their ids, on their way.

        Limits that are given for these jobs are looked at before any of a portion is sent: such jobs are one portion.
        """
        now = time.monotonic() - self._created_at
        for portion in portions:
            for job in portion:
                job.status, job.submitted_at = JobStatus.RUNNING, now
                if self._callbacks:
                    self._notifier.notify(self._callbacks, "on_launch", job)
            # Counted once they are on their way: nobody waits for jobs that a backend did not take. After an interrupt
            # in between nobody knows, and each is counted as it arrives.
            try:
                self._dispatch(portion, per_job)
            except ASKED_TO_END:
                self._uncounted.update((job.id, job) for job in portion)
                raise
            self.jobs += portion
            self.num_jobs_submitted += len(portion)

    def _deliver(self, jobs: list[Job]) -> None:
        """Have gather find jobs whose outcomes the storage has."""
        inbox = self._inbox
        if isinstance(inbox, KeptMailbox):
            inbox.deliver(jobs)
        elif isinstance(inbox, Mailbox):  # pragma: no cover - a durable storage comes with a KeptMailbox
            inbox.put_many(jobs)

    # -- others

    def gather_other_jobs_done(self) -> list[Job]:
        """Give what other evaluators of this search have done, each job once; does not wait.

        They are in ``jobs_done`` too, and so in the CSV. Callbacks hear of each by ``on_done_other``, in this call or
        in the ``gather`` that saw it first.

        Returns:
            The jobs, settled, in the order of their outcomes.

        Raises:
            StorageError: the storage cannot be read.
        """
        self._look_for_others()
        others, self._others = self._others, []
        return others

    def _look_for_others_if_possible(self) -> None:
        # What gather is for must not wait for a storage that fails; the keeper tells of that.
        if self._keeper is None or not self._keeper.fails:
            with contextlib.suppress(StorageError):
                self._look_for_others()

    def _look_for_others(self) -> None:
        driver = None if self._keeper is None else self._keeper.driver
        cursor, job_ids = self._storage.load_settled_since(self._search_id, self._others_cursor, driver)
        if job_ids:
            own = set(self.job_id_gathered[self._looked_at :]) | self._others_seen
            job_ids = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in own]
            data = self._storage.load_jobs(job_ids)
            for job_id in job_ids:
                self._meet(rebuilt(job_id, data[job_id], None, self._job_class))
        self._others_cursor, self._looked_at = cursor, len(self.job_id_gathered)

    def _meet(self, job: Job) -> None:
        job.status = JobStatus.DONE
        self._others_seen.add(job.id)
        self._others.append(job)
        self.job_id_gathered.append(job.id)
        self.jobs_done.append(job)
        self._notifier.notify(self._callbacks, "on_done_other", job)

    # -- the end

    @contextlib.contextmanager
    def stop_on_sigterm(self) -> Iterator[None]:
        """End in good order on SIGTERM, which Slurm and others send some time before they kill.

        Inside of the block SIGTERM raises ``SystemExit(143)`` in the main thread. On the way out of the block the
        evaluator is closed: workers are killed, everything that settled is in the storage, and what had not settled
        is left for `resume`, without an attempt being counted. The handler that was there before is put back.

        Raises:
            InvalidArgument: this is not the main thread, where Python handles signals.
        """
        with exit_on_sigterm():
            try:
                yield
            except SystemExit:
                self.close()
                raise


def _portions(items: Sequence[_Item], *, together: bool) -> Iterator[list[_Item]]:
    """All of these in portions that grow, or in one; none is empty."""
    sent, size = 0, len(items) if together else _FIRST_PORTION
    while portion := list(items[sent : sent + size]):
        yield portion
        sent, size = sent + size, min(2 * size, _PORTION)


def _lost(attempts: int) -> Failure:
    message = f"the driver died while the job ran, {attempts} time(s) (max_attempts={attempts})"
    return Failure("lost", message, attempts=attempts, lost="driver")
