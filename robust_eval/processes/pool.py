"""The driver's end: starts the supervisor, hands it batches of opaque bytes and takes outcomes from it.

No deadline, no kill and no metering happens here. What this end does own is the second chance: when a supervisor dies,
it starts another and hands it what had not begun.
"""

import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from robust_eval.errors import EvaluatorClosed, RobustEvalError
from robust_eval.limits import refuse_too_many_workers
from robust_eval.logs import logger
from robust_eval.processes import begun, loading, orders, wire
from robust_eval.processes.layout import COOKIE
from robust_eval.processes.overseer import Overseer
from robust_eval.processes.ownership import refuse_forked_child
from robust_eval.processes.parcel import Memory, Parcel, discard, kept_open, landed, read_out, store
from robust_eval.processes.pending import Done, Failed, Pending, Row, Settled, Submission
from robust_eval.processes.wire import new_named

_logger = logger("pool")
_COOKIE_BYTES = 12
_BATCH_JOBS = 4096
_BATCH_BYTES = 1 << 20
_MOST_DEATHS = 3
_CLOSE_SLACK_S = 5.0
_ANSWER_S = 2.0


@dataclass(frozen=True)
class PoolSettings:
    """What a pool is made with: the fields of `supervision.policy.Policy` as a dict, and how processes start."""

    policy: dict[str, Any]
    python: str
    start_method: str = "fork"
    preload: tuple[str, ...] = ()
    worker_env: list[dict[str, str]] = field(default_factory=list)
    worker_seed: int | None = None
    begun_log: str | None = None


class Pool:
    """One supervised pool, seen from the driver. Thread-safe; refuses to be used after a fork of the driver.

    Args:
        bundle: what the workers are for, a `Bundle` in a parcel.
        settings: how.
        deliver: called with batches of settled jobs, from the pool's receiving thread.
        record: called from there with a job's id and an intermediate value, pickled.

    Raises:
        InvalidArgument: the supervisor could not open the channels of so many workers.
        RobustEvalError: no descriptor is left, or a limit on the size of files is in the way.
    """

    def __init__(
        self,
        bundle: Parcel,
        settings: PoolSettings,
        deliver: Callable[[list[Settled]], None],
        record: Callable[[int, bytes], None],
    ) -> None:
        refuse_too_many_workers(settings.policy["num_workers"])
        self._pending = Pending(settings.policy, deliver)
        if isinstance(bundle, bytes):
            bundle = store([bundle], len(bundle))
        if not isinstance(bundle, Memory):
            self._pending.close()
            raise RobustEvalError("no descriptor is left for the run function: close files, or raise ulimit -n")
        self._bundle_fd = bundle.fd
        self._settings = settings
        self._record = record
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._budget_at: float | None = None
        self._closing = False
        self._alone = False
        self._deaths = 0
        self._asking = threading.Lock()
        self._answered = threading.Event()
        self._answer: dict[str, Any] = {}
        self._receiver = threading.Thread(target=self._receive, name="robust_eval receiver", daemon=True)
        try:
            self._start()
            self._receiver.start()
        except BaseException:
            self._abandon()
            raise

    # -- orders

    def submit(self, submissions: list[Submission]) -> None:
        """Hand jobs over. Their parcels belong to the pool from here on.

        Raises:
            EvaluatorClosed: the pool is closed.
        """
        self.check_process()
        with self._lock:
            if self._closing:
                for submission in submissions:
                    discard(submission.parcel)
                msg = "the pool is closed: make a new evaluator"
                raise EvaluatorClosed(msg)
            self._send_jobs(self._pending.add(submissions))

    def cancel(self, job_ids: Iterable[int]) -> None:
        """Settle these jobs as cancelled, killing what runs."""
        self.check_process()
        with self._lock:
            self._overseer.send((orders.CANCEL, list(job_ids)))

    def withdraw(self, job_ids: Iterable[int]) -> None:
        """Settle those of these jobs that were never begun as `cancelled`, with the cause `withdrawn`."""
        self.check_process()
        with self._lock:
            self._overseer.send((orders.WITHDRAW, list(job_ids)))

    def set_budget(self, seconds: float | None) -> None:
        """From now on, all that runs may run this much longer; None lifts the budget."""
        self.check_process()
        with self._lock:
            self._budget_at = None if seconds is None else time.monotonic() + seconds
            self._overseer.send((orders.BUDGET, self._budget_at))

    def stats(self) -> dict[str, Any]:
        """What the supervisor tells of itself, as `health.Health.describe` has it; empty where it does not answer."""
        self.check_process()
        with self._asking:
            self._answered.clear()
            with self._lock:
                self._overseer.send((orders.TELL,))
            return self._answer if self._answered.wait(_ANSWER_S) else {}

    def close(self) -> None:
        """End everything. What has not settled settles as cancelled. Bounded; free to be called again.

        In a forked child of the driver it only forgets the pool, which is not the child's.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closing = not self._closing, True
            if first:
                self._overseer.send((orders.CLOSE,))
        bound_s = self._settings.policy["kill_timeout_s"] + _CLOSE_SLACK_S
        if threading.current_thread() is not self._receiver:
            self._receiver.join(bound_s)
            if self._receiver.is_alive():
                self._overseer.kill()
                self._receiver.join(_CLOSE_SLACK_S)

    @property
    def closed(self) -> bool:
        """Whether it takes no more jobs: it was closed, or its supervisors died too often."""
        return self._closing

    @property
    def supervisor_pid(self) -> int:
        """The process id of the supervisor."""
        return self._overseer.pid

    def check_process(self) -> None:
        """Refuse to be used in a forked child of the driver.

        Raises:
            RobustEvalError: this is one.
        """
        refuse_forked_child(self._pid)

    # -- the supervisor

    def _start(self) -> None:
        """Start a supervisor and hand it what it needs to start the others."""
        settings = self._settings
        cookie = os.urandom(_COOKIE_BYTES).hex()
        outer = os.environ.get(COOKIE)
        environment = {**os.environ, COOKIE: f"{outer},{cookie}" if outer else cookie}
        if settings.begun_log is not None:
            environment[begun.VARIABLE] = settings.begun_log
        site = loading.needs_site() or settings.python != sys.executable
        template = loading.command(settings.python, "template", imports_site=site)
        spawned = loading.command(settings.python, "spawned", imports_site=site)
        config = {
            "policy": settings.policy,
            "cookie": cookie,
            "settings": {
                "argv": template,
                "alike": settings.python == sys.executable and site == loading.is_measured(),
                "environment": environment,
                "init": {
                    "preload": settings.preload,
                    "start_method": settings.start_method,
                    "argv": spawned,
                    "version": sys.version_info[:2],
                    "sys_argv": loading.arguments(),
                    "fresh": settings.policy["max_tasks_per_child"] == 1,
                },
                "worker_env": settings.worker_env,
                "worker_seed": settings.worker_seed,
                "max_tasks_per_child": settings.policy["max_tasks_per_child"],
                "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE),
            },
        }
        self._overseer = Overseer(settings.python, environment, cookie)
        _logger.info("A supervisor process is started.", extra={"supervisor_pid": self._overseer.pid})
        self._overseer.send(config, [self._bundle_fd, self._pending.fd])

    def _send_jobs(self, rows: list[Row]) -> None:
        batch: list[tuple[Any, ...]] = []
        large: dict[int, Memory] = {}
        size = 0
        for row in rows:
            parcel = row[1]
            if type(parcel) is bytes:
                batch.append(row)
                size += len(parcel)
            else:
                shown = self._shown(row, len(large))
                if isinstance(shown, Memory):
                    large[row[0]] = shown
                else:
                    size += len(shown)
                batch.append((row[0], wire.portable(shown, []), *row[2:]))
            if len(batch) == _BATCH_JOBS or size > _BATCH_BYTES or len(large) >= self._overseer.most_descriptors:
                self._send_batch(batch, large)
                batch, large, size = [], {}, 0
        if batch:
            self._send_batch(batch, large)

    def _shown(self, row: Row, waiting: int) -> Parcel:
        """A large payload as it travels: in its file, unless too many descriptors are under way and it is small."""
        job_id, parcel, *_ = row
        shown = store([parcel], len(parcel)) if isinstance(parcel, memoryview) else parcel
        if isinstance(shown, Memory) and not self._overseer.takes(waiting):
            shown = read_out(shown)
            if parcel is not shown and isinstance(parcel, Memory):  # which is closed
                self._pending.keep({job_id: shown})
        return shown

    def _send_batch(self, batch: list[tuple[Any, ...]], large: dict[int, Memory]) -> None:
        """Send one message; large payloads are kept here without their descriptors.

        That is done first: a job may settle before the next line runs.
        """
        if not large:
            self._overseer.send((orders.SUBMIT, batch))
            return
        kept = {job_id: kept_open(memory) for job_id, memory in large.items()}
        self._pending.keep(kept)
        try:
            self._overseer.send((orders.SUBMIT, batch), [memory.fd for memory in large.values()])
        finally:
            for job_id, memory in large.items():
                if kept[job_id] is not memory:
                    discard(memory)

    # -- outcomes

    def _receive(self) -> None:
        """The receiving thread. Should it fail, which is a bug of ours, no job waits for ever because of it."""
        try:
            self._receive_all()
        except BaseException as error:
            self._overseer.kill()
            with self._lock:
                self._closing = True
                self._overseer.bury()
                detail = f"the driver failed to receive: {error!r}"
                try:
                    self._pending.lose(self._pending.submissions(), detail, closing=False)
                finally:
                    self._release()
            raise

    def _receive_all(self) -> None:
        """Deliver what settles; at the end of the supervisor, close or recover."""
        while True:
            if self._alone:  # where several settle at once, others have work for this core
                self._overseer.wait()
            try:
                there = self._overseer.frames.read()
            except OSError:
                there = False
            for message in self._overseer.frames.messages():
                if message[0] == orders.SETTLED:
                    self._on_settled(*message[1:])
                elif message[0] == orders.NOTICED:
                    _logger.warning("In the pool, %s: %s", message[1], message[2]["detail"], extra=message[2])
                else:
                    self._answer = message[1]
                    self._answered.set()
            if not there and not self._recover():
                return

    def _on_settled(
        self, done: list[tuple[Any, ...]], failed: list[tuple[Any, ...]], recorded: list[tuple[int, bytes]]
    ) -> None:
        for job_id, value in recorded:
            self._record(job_id, value)
        fds = self._overseer.frames.fds
        settled: list[Settled] = []
        if fds:
            settled += [Done(job_id, landed(wire.unportable(parcel, fds)), *rest) for job_id, parcel, *rest in done]
        else:  # all are inline, and there may be hundreds
            settled += [new_named(Done, fields) for fields in done]
        for job_id, info, blamed, late in failed:
            words = landed(wire.unportable(blamed, fds))
            settled.append(Failed(job_id, info, words, landed(wire.unportable(late, fds))))
        self._deaths = 0
        self._alone = len(settled) == 1
        self._pending.settle(settled)

    def _recover(self) -> bool:
        """The supervisor is gone. False when that was wanted, and all that it left has settled."""
        with self._lock:
            self._overseer.bury()
            self._deaths += 1
            wanted = self._closing
            final = wanted or self._deaths >= _MOST_DEATHS
            self._log_end(final=final)
            # Known before the first of them is told of its end: what is submitted then finds another pool.
            self._closing = final
            lost, waiting = self._pending.after_a_death()
            if final:
                lost = self._pending.submissions()
            self._pending.lose(lost, f"it ended with exit code {self._overseer.exit_code}", closing=wanted)
            if final:
                self._release()
                return False
            self._start()
            if self._budget_at is not None:
                self._overseer.send((orders.BUDGET, self._budget_at))
            self._send_jobs(waiting)
            return True

    def _log_end(self, *, final: bool) -> None:
        fields = {"supervisor_pid": self._overseer.pid, "exit_code": self._overseer.exit_code}
        if self._closing:
            _logger.info("The pool is closed.", extra=fields)
        else:
            then = f"{_MOST_DEATHS} in a row died: the pool is given up" if final else "another one is started"
            level = logging.ERROR if final else logging.WARNING
            text = "The supervisor process ended with exit code %s; %s."
            _logger.log(level, text, fields["exit_code"], then, extra=fields)

    def _abandon(self) -> None:
        """The start failed: end the supervisor if there is one."""
        if "_overseer" in vars(self):
            self._overseer.kill()
            self._overseer.bury()
        self._release()

    def _release(self) -> None:
        os.close(self._bundle_fd)
        self._pending.close()
