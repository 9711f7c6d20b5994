"""A pool that is many hosts: to an evaluator it looks as the local one does, and each host runs a local one.

One thread of the driver moves batches between the sockets and the core (`supervision.hosts`), which decides. A job's
payload is kept here until its outcome is here, so that another host can have it.
"""

import contextlib
import functools
import os
import selectors
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

from robust_eval.errors import EvaluatorClosed, RobustEvalError
from robust_eval.evaluators.hosts import messages as say
from robust_eval.evaluators.hosts.calling import Call, listen
from robust_eval.evaluators.hosts.health import Answers
from robust_eval.evaluators.hosts.line import Line
from robust_eval.processes import wire
from robust_eval.processes.parcel import Landed, Memory, Parcel, discard, landed, open_parcel, pack_plain
from robust_eval.processes.pending import Done, Failed, Settled, Submission
from robust_eval.processes.pool import PoolSettings
from robust_eval.supervision import host_actions as act
from robust_eval.supervision.hosts import Hosts

_CLOSE_SLACK_S = 7.0
_ANSWER_S = 2.0
_BATCH_JOBS = 4096


class Fleet(Protocol):
    """What starts the hosts: Ray, MPI, a test."""

    def names(self) -> list[str]:
        """Under which names or addresses hosts reach this machine."""

    def start(self, call: Call, pool: "HostsPool") -> None:
        """Have hosts answer the call, now and later; tell the pool by `expects` and `host_lost`."""

    def stop(self) -> None:
        """End what was started. The hosts were sent away before; bounded."""


class HostsPool:
    """The pool of an evaluator whose workers are on many hosts. Thread-safe; refuses to be used after a fork.

    Args:
        bundle: what the workers are for, a `Bundle` in a parcel.
        settings: how; `num_workers` of the policy does not count, each host has slots of its own.
        deliver: called with batches of settled jobs, from the pool's thread.
        record: called from there with a job's id and an intermediate value, pickled.
        fleet: starts the hosts.

    Raises:
        RobustEvalError: the run function cannot be sent.
    """

    def __init__(
        self,
        bundle: Parcel,
        settings: PoolSettings,
        deliver: Callable[[list[Settled]], None],
        record: Callable[[int, bytes], None],
        fleet: Fleet,
    ) -> None:
        self._deliver, self._record = deliver, record
        self._settings = settings
        self._fleet = fleet
        self._pid = os.getpid()
        self._config = _config(bundle, settings)
        policy = act.HostPolicy(settings.policy["max_retries"], frozenset(settings.policy["retry_on"]))
        self._core = Hosts(policy, time.monotonic())
        self._jobs: dict[int, Submission] = {}
        self._lines: dict[int, Line] = {}
        self._strangers: set[Line] = set()
        self._slots: dict[int, int] = {}
        self._lock = threading.RLock()
        self._orders: deque[Callable[[], None]] = deque()
        self._when_idle: list[Callable[[], None]] = []
        self._closing = False
        self._close_by: float | None = None
        self._asking = threading.Lock()
        self._answers = Answers()
        self._selector = selectors.DefaultSelector()
        self._door, self._call = listen(fleet.names())
        self._bell, self._ring = socket.socketpair()
        for sock in (self._bell, self._ring):
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._selector.register(self._door, selectors.EVENT_READ, self._on_call)
        self._selector.register(self._bell, selectors.EVENT_READ, self._on_bell)
        os.register_at_fork(after_in_child=functools.partial(_hang_up_in_child, weakref.ref(self)))
        self._thread = threading.Thread(target=self._run, name="robust_eval hosts", daemon=True)
        self._thread.start()
        try:
            fleet.start(self._call, self)
        except BaseException:
            self.close()
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
                msg = "the pool is closed: make a new evaluator"
                raise EvaluatorClosed(msg)
            kept = [submission._replace(parcel=_kept(submission.parcel)) for submission in submissions]
            self._order(lambda: self._take(kept))

    def cancel(self, job_ids: Iterable[int]) -> None:
        """Settle these jobs as cancelled, killing what runs."""
        self.check_process()
        ids = list(job_ids)
        self._order(lambda: self._core.cancelled(ids))

    def set_budget(self, seconds: float | None) -> None:
        """From now on, all that runs may run this much longer; None lifts the budget."""
        self.check_process()
        expires_at = None if seconds is None else time.monotonic() + seconds
        self._order(lambda: self._core.budget(expires_at))

    def stats(self) -> dict[str, Any]:
        """What the supervisors of all hosts tell, summed up, with each one's own words under `hosts`."""
        self.check_process()
        with self._asking:
            self._order(self._ask)
            return self._answers.wait(_ANSWER_S)

    def expects(self, host_ids: Iterable[int]) -> None:
        """Hosts with these ids are being started: jobs wait for them."""
        ids = list(host_ids)
        self._order(lambda: self._core.expects(ids))

    def knew(self, host_id: int) -> bool:
        """Whether the host ever joined."""
        return host_id in self._slots

    def host_lost(self, host_id: int, detail: str) -> None:
        """What started the host says that it is gone, or did not come."""
        self._order(lambda: self._miss(host_id, detail))

    def awaits(self, more: bool) -> None:  # noqa: FBT001 - the fact itself
        """Whether hosts may join that were not announced: jobs wait for them, too."""
        self._order(lambda: self._core.awaits(more))

    def wait_until_idle(self) -> None:
        """Wait until everything that was submitted has settled."""
        idle = threading.Event()
        self._order(lambda: self._when_idle.append(idle.set))
        while self._thread.is_alive() and not idle.wait(_ANSWER_S):
            pass

    def close(self) -> None:
        """End everything. What has not settled settles as cancelled. Bounded; free to be called again.

        In a forked child of the driver it only forgets the pool, which is not the child's.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closing = not self._closing, True
        if first:
            self._order(self._end)
        if threading.current_thread() is not self._thread:
            self._thread.join(self._close_s() + _CLOSE_SLACK_S)

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

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        with contextlib.suppress(OSError):  # full, so that the thread will wake; or closed
            self._ring.send(b"\0")

    def _close_s(self) -> float:
        return float(self._settings.policy["kill_timeout_s"]) + _CLOSE_SLACK_S

    # -- the thread

    def _run(self) -> None:
        """Should this fail, which is a bug of ours, no job waits for ever because of it."""
        try:
            self._loop()
        except BaseException as error:
            with self._lock:
                self._closing = True
            self._give_up(f"the driver failed: {error!r}")
            raise
        finally:
            self._hang_up()
            self._fleet.stop()

    def _loop(self) -> None:
        while True:
            while self._orders:
                self._orders.popleft()()
            now = time.monotonic()
            for action in self._core.turn(now):
                self._PERFORM[type(action)](self, action)
            while self._when_idle and not self._core.places:
                self._when_idle.pop()()
            if self._close_by is not None:
                if now > self._close_by:
                    self._give_up("it did not end in time")
                if not self._lines and not self._core.places:
                    return
            wait_s = min(self._core.next_deadline(), self._close_by or float("inf")) - now
            for key, events in self._selector.select(max(0.0, wait_s)):
                key.data(key.fileobj, events)

    def _end(self) -> None:
        self._close_by = time.monotonic() + self._close_s()
        self._core.closed()

    def _give_up(self, detail: str) -> None:
        """Settle what is left without the hosts."""
        self._core.closed()
        for host_id in list(self._lines):
            self._part(host_id, detail)
        for action in self._core.turn(time.monotonic()):
            if isinstance(action, act.Settle):
                self._settle(action)

    def _hang_up(self) -> None:
        for line in (*self._lines.values(), *self._strangers):
            line.close()
        for sock in (self._door, self._bell, self._ring):
            sock.close()
        self._selector.close()

    def _on_bell(self, _sock: Any, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass

    def _take(self, submissions: list[Submission]) -> None:
        fit = []
        for submission in submissions:
            parcel = submission.parcel
            size = parcel.size if isinstance(parcel, Memory) else len(parcel)
            if isinstance(parcel, Memory) or size > say.LARGEST_BYTES:
                message = f"the configuration has {size} bytes, more than can travel to a host: pass a path"
                discard(parcel)
                info = _info("unpicklable", "", 0, None)
                self._deliver([Failed(submission.job_id, info, pack_plain({"message": message}))])
            else:
                self._jobs[submission.job_id] = submission
                fit.append(submission.job_id)
        self._core.submitted(fit)

    # -- hosts

    def _on_call(self, _sock: Any, _events: int) -> None:
        try:
            sock, _ = self._door.accept()
        except OSError:
            return
        line = Line(sock, self._call.secret, self._config)
        self._strangers.add(line)
        self._selector.register(sock, selectors.EVENT_READ, functools.partial(self._on_line, line))

    def _on_line(self, line: Line, _sock: Any, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            line.drain()
        if events & selectors.EVENT_READ:
            self._read(line)
        if line.sock.fileno() != -1:
            self._watch(line)

    def _watch(self, line: Line) -> None:
        """Be woken when the line can be written, only while something waits for that."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.blocked else 0)
        key = self._selector.get_key(line.sock)
        if key.events != events:
            self._selector.modify(line.sock, events, key.data)

    def _read(self, line: Line) -> None:
        try:
            for message in line.messages():
                if line.host_id is not None:
                    self._core.heard(line.host_id, time.monotonic())
                self._HEAR[message[0]](self, line, *message[1:])
        except (OSError, wire.ProtocolError) as error:
            ended = "the connection to it ended"
            detail = ended if isinstance(error, ConnectionError) else f"{ended}: {error}"
            if line.host_id is None:
                self._forget(line)
            else:
                self._part(line.host_id, detail)

    def _on_hello(self, line: Line, host_id: int, slots: int, about: str) -> None:
        line.host_id, line.about = host_id, about
        self._strangers.discard(line)
        self._lines[host_id] = line
        self._slots[host_id] = slots
        self._core.joined(host_id, slots, time.monotonic())

    def _on_settled(
        self,
        line: Line,
        done: list[tuple[Any, ...]],
        failed: list[tuple[Any, ...]],
        recorded: list[tuple[int, bytes]],
        returned: list[int],
    ) -> None:
        if line.host_id is None:
            return
        for job_id, value in recorded:
            if job_id in self._jobs:
                self._record(job_id, value)
        now = time.monotonic()
        outcomes: dict[int, Settled] = {row[0]: Done(*row) for row in done}
        told = [act.Told(row[0], row[3] - row[2]) for row in done]
        for row in failed:
            outcomes[row[0]] = Failed(*row)
            told.append(act.Told(row[0], row[1].get("duration"), row[1]["kind"], outcomes[row[0]]))
        if returned:
            self._core.returned(line.host_id, returned, now)
        self._hand_over([outcomes[job_id] for job_id in self._core.told(line.host_id, told, now)])

    def _on_told(self, line: Line, stats: dict[str, Any]) -> None:
        if line.host_id is not None:
            self._answers.give(line.host_id, {"about": line.about, "slots": self._slots[line.host_id], **stats})

    def _on_spent(self, line: Line, detail: str) -> None:
        if line.host_id is not None:
            self._core.spent(line.host_id, f"{line.about}: {detail}")

    def _on_end(self, line: Line, host_id: int, detail: str) -> None:
        if line.host_id is None:
            self._forget(line)
        self._miss(host_id, detail)

    def _miss(self, host_id: int, detail: str) -> None:
        self._core.missed(host_id, detail)
        self._part(host_id, detail)

    def _part(self, host_id: int, detail: str) -> None:
        """The host is gone, or given up."""
        line = self._lines.pop(host_id, None)
        if line is None:
            return
        self._core.left(host_id, f"{line.about}: {detail}", line.unsent())
        self._forget(line)
        self._answers.give_up(host_id)

    def _forget(self, line: Line) -> None:
        self._strangers.discard(line)
        self._selector.unregister(line.sock)
        line.close()

    def _ask(self) -> None:
        self._answers.expect(self._lines, self._core.waiting)
        for line in self._lines.values():
            self._say(line, (say.TELL,))

    # -- what the core orders

    def _say(self, line: Line, message: Any, job_ids: list[int] | None = None) -> None:
        line.send(message, job_ids)
        self._watch(line)

    def _send(self, action: act.Send) -> None:
        line, rows, size = self._lines[action.host_id], [], 0
        losses = self._core.losses
        for job_id in action.job_ids:
            _, parcel, timeout_s, limit, attempts, log = self._jobs[job_id]
            attempts += losses[job_id][0] if job_id in losses else 0
            rows.append((job_id, parcel, timeout_s, limit, attempts, log))
            size += len(parcel)
            if size > say.FRAME_BYTES or len(rows) == _BATCH_JOBS:
                self._say(line, (say.SUBMIT, rows), [row[0] for row in rows])
                rows, size = [], 0
        if rows:
            self._say(line, (say.SUBMIT, rows), [row[0] for row in rows])

    def _limit(self, action: act.Limit) -> None:
        """Between hosts only durations are compared."""
        at = action.expires_at
        self._say(self._lines[action.host_id], (say.BUDGET, None if at is None else max(0.0, at - time.monotonic())))

    def _settle(self, action: act.Settle) -> None:
        limit = self._jobs[action.job_id].memory_limit
        if isinstance(action.detail, Failed):  # the words of the host that could not start its workers
            info = {**action.detail.info, "attempts": 0}
            self._hand_over([Failed(action.job_id, info, action.detail.blamed)])
            return
        info = _info(action.kind, action.cause, action.attempts, limit if isinstance(limit, int) else None)
        if action.detail is not None:
            info["detail"] = str(action.detail)
        self._hand_over([Failed(action.job_id, info)])

    def _hand_over(self, outcomes: list[Settled]) -> None:
        for outcome in outcomes:
            del self._jobs[outcome.job_id]
        if outcomes:
            self._deliver(outcomes)

    _PERFORM: ClassVar[dict[type, Callable[["HostsPool", Any], None]]] = {
        act.Send: _send,
        act.Cancel: lambda self, action: self._say(self._lines[action.host_id], (say.CANCEL, action.job_ids)),
        act.Withdraw: lambda self, action: self._say(self._lines[action.host_id], (say.WITHDRAW, action.job_ids)),
        act.Limit: _limit,
        act.Ping: lambda self, action: self._say(self._lines[action.host_id], (say.PING,)),
        act.Dismiss: lambda self, action: self._say(self._lines[action.host_id], (say.CLOSE,)),
        act.Drop: lambda self, action: self._part(action.host_id, "it does not answer"),
        act.Settle: _settle,
    }
    _HEAR: ClassVar[dict[int, Callable[..., None]]] = {
        say.HELLO: _on_hello,
        say.SETTLED: _on_settled,
        say.TOLD: _on_told,
        say.PONG: lambda _self, _line: None,
        say.END: _on_end,
        say.SPENT: _on_spent,
    }


def _config(bundle: Parcel, settings: PoolSettings) -> bytes:
    """What every host is told first."""
    content = bytes(open_parcel(bundle)) if isinstance(bundle, Memory) else bundle
    if len(content) > say.LARGEST_BYTES:
        msg = f"the run function and its arguments have {len(content)} bytes, more than can travel: load them there"
        raise RobustEvalError(msg)
    given = {
        "policy": settings.policy,
        # An interpreter that was not chosen is each host's own: theirs may lie elsewhere.
        "python": None if settings.python == sys.executable else settings.python,
        "start_method": settings.start_method,
        "preload": list(settings.preload),
        "worker_env": settings.worker_env,
        "worker_seed": settings.worker_seed,
    }
    path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is the directory
    config = {"bundle": content, "settings": given, "directory": os.getcwd(), "path": path, "argv": sys.argv}  # noqa: PTH109
    return wire.frame((say.CONFIG, config))


def _info(kind: str, cause: str, attempts: int, memory_limit: int | None) -> dict[str, Any]:
    return {"kind": kind, "cause": cause, "attempts": attempts, "memory_limit": memory_limit, "unkilled_pids": []}


def _kept(parcel: Landed) -> Landed:
    """The payload without a descriptor, however many wait; as it is where it cannot be mapped."""
    return parcel if isinstance(parcel, memoryview) else landed(parcel)


def _hang_up_in_child(pool: "weakref.ref[HostsPool]") -> None:
    """A forked child of the driver must not keep connections open that end with the driver."""
    found = pool()
    if found is not None:
        for line in (*found._lines.values(), *found._strangers):  # noqa: SLF001 - our own
            line.close()
        found._door.close()  # noqa: SLF001 - our own
