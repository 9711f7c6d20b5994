"""The driver's end: starts the supervisor, hands it batches of opaque bytes and takes outcomes from it.

No deadline, no kill and no metering happens here. What this end does own is the second chance: it keeps every payload
until its outcome is here, so that when a supervisor dies, a new one gets what had not begun, and only what had begun
is `lost`. Which that is, the ledger says, a page that the workers write and that no death takes away.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, NamedTuple

from robust_eval.errors import EvaluatorClosed, RobustEvalError
from robust_eval.processes import loading, orders, system, tree, wire
from robust_eval.processes.layout import COOKIE, LEDGER_BYTES, LEDGER_OVER
from robust_eval.processes.parcel import Landed, Memory, Parcel, discard, landed, store

_COOKIE_BYTES = 12
_BATCH_JOBS = 4096
_MOST_DEATHS = 3
_CLOSE_SLACK_S = 5.0
_SWEEP_S = 2.0
_STEP_S = 0.005


class Submission(NamedTuple):
    """One job for the pool. `timeout_s` and `memory_limit` (bytes) are None for no limit, `log` is a path or None."""

    job_id: int
    parcel: Landed
    timeout_s: float | None = None
    memory_limit: int | None = None
    attempts: int = 0
    log: str | None = None


class Done(NamedTuple):
    """A job that returned. Instants are monotonic seconds of this machine, the peak is in bytes."""

    job_id: int
    parcel: Landed
    begun_at: float
    ended_at: float
    attempts: int
    peak_memory: int
    output_tail: str


class Failed(NamedTuple):
    """A job that failed.

    `info` is as `describe` gives it, `blamed` what the worker said and `late` what it returned too late, both empty
    where there is nothing.
    """

    job_id: int
    info: dict[str, Any]
    blamed: Landed = b""
    late: Landed = b""


Settled = Done | Failed


@dataclass(frozen=True)
class PoolSettings:
    """What a pool is made with: the fields of `supervision.policy.Policy` as a dict, and how processes start."""

    policy: dict[str, Any]
    python: str
    start_method: str = "fork"
    preload: tuple[str, ...] = ()
    worker_env: list[dict[str, str]] = field(default_factory=list)
    worker_seed: int | None = None


class Pool:
    """One supervised pool, seen from the driver. Thread-safe; refuses to be used after a fork of the driver.

    Args:
        bundle: what the workers are for, a `Bundle` in a parcel.
        settings: how.
        deliver: called with batches of settled jobs, from the pool's receiving thread.
        record: called from there with a job's id and an intermediate value, pickled.

    Raises:
        RobustEvalError: no descriptor is left for the bundle.
    """

    def __init__(
        self,
        bundle: Parcel,
        settings: PoolSettings,
        deliver: Callable[[list[Settled]], None],
        record: Callable[[int, bytes], None],
    ) -> None:
        if isinstance(bundle, bytes):
            bundle = store([bundle], len(bundle))
        if not isinstance(bundle, Memory):
            msg = "no descriptor is left for the run function: close some files, or raise the limit (ulimit -n)"
            raise RobustEvalError(msg)
        self._bundle_fd = bundle.fd
        self._settings = settings
        self._deliver = deliver
        self._record = record
        self._ledger_fd = system.memory_file(LEDGER_BYTES)
        self._ledger = mmap(self._ledger_fd, LEDGER_BYTES)
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._pending: dict[int, Submission] = {}
        self._budget_at: float | None = None
        self._closing = False
        self._deaths = 0
        self._start()
        self._receiver = threading.Thread(target=self._receive, name="robust_eval receiver", daemon=True)
        self._receiver.start()

    # -- orders

    def submit(self, submissions: list[Submission]) -> None:
        """Hand jobs over. Their parcels belong to the pool from here on.

        Raises:
            EvaluatorClosed: the pool is closed.
        """
        self.check_process()
        with self._lock:
            if self._closing:
                msg = "the pool is closed: make a new evaluator"
                raise EvaluatorClosed(msg)
            for submission in submissions:
                self._pending[submission.job_id] = submission
            self._send_jobs(submissions)

    def cancel(self, job_ids: Iterable[int]) -> None:
        """Settle these jobs as cancelled, killing what runs."""
        self.check_process()
        with self._lock:
            self._send((orders.CANCEL, list(job_ids)))

    def set_budget(self, seconds: float | None) -> None:
        """From now on, all that runs may run this much longer; None lifts the budget."""
        self.check_process()
        with self._lock:
            self._budget_at = None if seconds is None else time.monotonic() + seconds
            self._send((orders.BUDGET, self._budget_at))

    def close(self) -> None:
        """End everything. What has not settled settles as cancelled. Bounded; free to be called again.

        In a forked child of the driver it only forgets the pool, which is not the child's.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closing = not self._closing, True
            if first:
                self._send((orders.CLOSE,))
        bound_s = self._settings.policy["kill_timeout_s"] + _CLOSE_SLACK_S
        if threading.current_thread() is not self._receiver:
            self._receiver.join(bound_s)
            if self._receiver.is_alive():
                self._process.kill()
                self._receiver.join(_CLOSE_SLACK_S)

    @property
    def supervisor_pid(self) -> int:
        """The process id of the supervisor."""
        return self._process.pid

    def check_process(self) -> None:
        """Refuse to be used in a forked child of the driver.

        Raises:
            RobustEvalError: this is one.
        """
        if os.getpid() != self._pid:
            msg = (
                f"this evaluator belongs to process {self._pid} and was used in its forked child {os.getpid()}: "
                "make an evaluator of its own there"
            )
            raise RobustEvalError(msg)

    # -- the supervisor

    def _start(self) -> None:
        """Start a supervisor and hand it what it needs to start the others."""
        settings = self._settings
        self._cookie = os.urandom(_COOKIE_BYTES).hex()
        outer = os.environ.get(COOKIE)
        environment = {**os.environ, COOKIE: f"{outer},{self._cookie}" if outer else self._cookie}
        site = loading.needs_site() or settings.python != sys.executable
        template = loading.command(settings.python, "template", imports_site=site)
        spawned = loading.command(settings.python, "spawned", imports_site=site)
        config = {
            "policy": settings.policy,
            "cookie": self._cookie,
            "settings": {
                "argv": template,
                "environment": environment,
                "init": {
                    "preload": settings.preload,
                    "start_method": settings.start_method,
                    "argv": spawned,
                    "version": sys.version_info[:2],
                    "sys_argv": sys.argv,
                },
                "worker_env": settings.worker_env,
                "worker_seed": settings.worker_seed,
                "max_tasks_per_child": settings.policy["max_tasks_per_child"],
                "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE),
            },
        }
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*loading.command(sys.executable, "shell", imports_site=loading.is_measured()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        self._frames = wire.Frames(self._sock)
        self._send(config, [self._bundle_fd, self._ledger_fd])

    def _send_jobs(self, submissions: list[Submission]) -> None:
        batch: list[tuple[Any, ...]] = []
        large: dict[int, Memory] = {}
        for job_id, parcel, *rest in submissions:
            shown = store([parcel], len(parcel)) if isinstance(parcel, memoryview) else parcel
            if isinstance(shown, Memory):
                large[job_id] = shown
            batch.append((job_id, wire.portable(shown, []), *rest))
            if len(batch) == _BATCH_JOBS or len(large) == wire.MOST_DESCRIPTORS:
                self._send_batch(batch, large)
                batch, large = [], {}
        if batch:
            self._send_batch(batch, large)

    def _send_batch(self, batch: list[tuple[Any, ...]], large: dict[int, Memory]) -> None:
        """Send one message; what it says of large payloads is kept here without their descriptors."""
        self._send((orders.SUBMIT, batch), [memory.fd for memory in large.values()])
        for job_id, memory in large.items():
            self._pending[job_id] = self._pending[job_id]._replace(parcel=landed(memory))

    def _send(self, message: object, fds: list[int] | None = None) -> None:
        """Send one message, whole: half a frame, left by a Ctrl-C, would be the end of the channel.

        An interrupt is raised once the frame is out. A supervisor that is dead gets all of it again from `_recover`.
        """
        data = memoryview(wire.frame(message))
        sent: list[int] = []
        interrupt: BaseException | None = None
        while sum(sent) < len(data):
            try:
                self._push(data, wire.rights(fds or []), sent)
            except OSError:
                return
            except BaseException as error:  # noqa: BLE001 - whatever a signal handler of the user raises
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _push(self, data: memoryview, ancillary: list[Any], sent: list[int]) -> None:
        """Send what is not sent. `extend` notes what went out before the interpreter looks for signals again."""
        if not sent:
            sent.extend(map(self._sock.sendmsg, ([data],), (ancillary,)))
        while (position := sum(sent)) < len(data):
            sent.extend(map(self._sock.send, (data[position:],)))

    # -- outcomes

    def _receive(self) -> None:
        """The receiving thread. Should it fail, which is a bug of ours, no job waits for ever because of it."""
        try:
            self._receive_all()
        except BaseException as error:
            self._process.kill()
            with self._lock:
                self._closing = True
                self._lose(list(self._pending.values()), f"the driver failed to receive: {error!r}")
            raise

    def _receive_all(self) -> None:
        """Deliver what settles; at the end of the supervisor, close or recover."""
        while True:
            try:
                there = self._frames.read()
            except OSError:
                there = False
            for message in self._frames.messages():
                if message[0] == orders.SETTLED:
                    self._on_settled(*message[1:])
            if not there and not self._recover():
                return

    def _on_settled(
        self, done: list[tuple[Any, ...]], failed: list[tuple[Any, ...]], recorded: list[tuple[int, bytes]]
    ) -> None:
        for job_id, value in recorded:
            self._record(job_id, value)
        fds = self._frames.fds
        settled: list[Settled] = []
        for job_id, parcel, *rest in done:
            settled.append(Done(job_id, landed(wire.unportable(parcel, fds)), *rest))
        for job_id, info, blamed, late in failed:
            words = landed(wire.unportable(blamed, fds))
            settled.append(Failed(job_id, info, words, landed(wire.unportable(late, fds))))
        for outcome in settled:
            discard(self._pending.pop(outcome.job_id).parcel)
        self._deaths = 0
        if settled:
            self._deliver(settled)

    def _recover(self) -> bool:
        """The supervisor is gone. False when that was wanted, and all that it left has settled."""
        with self._lock:
            self._process.wait()
            self._sock.close()
            self._sweep()
            self._deaths += 1
            final = self._closing or self._deaths >= _MOST_DEATHS
            lost, waiting = self._sort_pending()
            if final:
                lost = list(self._pending.values())
            self._lose(lost, f"it ended with exit code {self._process.returncode}")
            if final:
                self._closing = True
                self._release()
                return False
            self._start()
            if self._budget_at is not None:
                self._send((orders.BUDGET, self._budget_at))
            self._send_jobs(waiting)
            return True

    def _sort_pending(self) -> tuple[list[Submission], list[Submission]]:
        """What had begun and is not tried again, and what the next supervisor gets."""
        policy = self._settings.policy
        lost, waiting = [], []
        for job_id, submission in self._pending.items():
            mark = self._ledger[job_id % LEDGER_BYTES]
            attempts = mark & ~LEDGER_OVER
            begun = mark != 0 and not mark & LEDGER_OVER
            if begun and not ("lost" in policy["retry_on"] and attempts <= policy["max_retries"]):
                lost.append(submission)
            else:
                self._ledger[job_id % LEDGER_BYTES] = attempts | LEDGER_OVER if attempts else 0
                waiting.append(submission._replace(attempts=attempts))
        self._pending.update((submission.job_id, submission) for submission in waiting)
        return lost, waiting

    def _lose(self, submissions: list[Submission], detail: str) -> None:
        """Settle jobs whose supervisor is gone."""
        failed: list[Settled] = [self._lost(submission, detail) for submission in submissions]
        for submission in submissions:
            discard(self._pending.pop(submission.job_id).parcel)
        if failed:
            self._deliver(failed)

    def _lost(self, submission: Submission, detail: str) -> Failed:
        mark = self._ledger[submission.job_id % LEDGER_BYTES]
        closed = self._closing and mark == 0
        info: dict[str, Any] = {
            "kind": "cancelled" if closed else "lost",
            "cause": "closed" if closed else "supervisor",
            "attempts": mark & ~LEDGER_OVER,
            "memory_limit": submission.memory_limit,
            "unkilled_pids": [],
            "detail": detail,
        }
        return Failed(submission.job_id, info)

    def _sweep(self) -> None:
        """Kill what a dead supervisor left, found by the cookie in its environment."""
        ends_at = time.monotonic() + _SWEEP_S
        while (left := tree.with_cookie(self._cookie)) and time.monotonic() < ends_at:
            tree.signal_all(left, signal.SIGKILL)
            time.sleep(_STEP_S)  # bounded by the line above: a process takes a moment to die

    def _release(self) -> None:
        os.close(self._bundle_fd)
        os.close(self._ledger_fd)
        self._ledger.close()
