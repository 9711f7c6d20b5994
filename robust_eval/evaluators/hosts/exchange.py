"""The driver's one thread for all hosts: moves batches between the sockets and the core, which decides.

A job's payload is kept here until its outcome is here, so that another host can have it.
"""

import contextlib
import functools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from robust_eval.evaluators.hosts import messages as say
from robust_eval.evaluators.hosts.calling import listen
from robust_eval.evaluators.hosts.health import Answers
from robust_eval.evaluators.hosts.line import Line
from robust_eval.processes import system, wire
from robust_eval.processes.parcel import Memory, discard, pack_plain
from robust_eval.processes.pending import Done, Failed, Settled, Submission
from robust_eval.supervision import host_actions as act
from robust_eval.supervision.hosts import Hosts

_BATCH_JOBS = 4096


class Exchange:
    """Sockets, core and jobs of one pool. Everything but `order` and `knew` is for its own thread.

    Args:
        policy: the core's.
        names: under which names hosts reach this machine.
        config: what every host is told first.
        deliver: called with batches of settled jobs.
        record: called with a job's id and an intermediate value, pickled.
    """

    def __init__(
        self,
        policy: act.HostPolicy,
        names: list[str],
        config: bytes,
        deliver: Callable[[list[Settled]], None],
        record: Callable[[int, bytes], None],
    ) -> None:
        self._deliver, self._record, self._config = deliver, record, config
        self.core = Hosts(policy, time.monotonic())
        self.jobs: dict[int, Submission] = {}
        self.lines: dict[int, Line] = {}
        self.strangers: set[Line] = set()
        self.answers = Answers()
        self._slots: dict[int, int] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._when_idle: list[threading.Event] = []
        self._close_by: float | None = None
        self._waits = False
        self._selector = selectors.DefaultSelector()
        self.door, self.call = listen(names)
        self._bell, self._ring = socket.socketpair()
        for sock in (self._bell, self._ring):
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._selector.register(self.door, selectors.EVENT_READ, self._on_call)
        self._selector.register(self._bell, selectors.EVENT_READ, self._on_bell)

    def order(self, order: Callable[[], None]) -> None:
        """Have something done by the thread. From any thread."""
        self._orders.append(order)
        with contextlib.suppress(OSError):  # full, so that the thread will wake; or closed
            self._ring.send(b"\0", system.NO_SIGPIPE)

    def knew(self, host_id: int) -> bool:
        """Whether the host ever joined. From any thread."""
        return host_id in self._slots

    def run(self) -> None:
        """Serve until the end. Should this fail, which is a bug of ours, no job waits for ever because of it."""
        try:
            self._loop()
        except BaseException as error:
            self._give_up(f"the driver failed: {error!r}")
            raise
        finally:
            self._hang_up()

    def _loop(self) -> None:
        while True:
            while self._orders:
                self._orders.popleft()()
            now = time.monotonic()
            self._perform(self.core.turn(now))
            while self._when_idle and not self.core.places:
                self._when_idle.pop().set()
            if self._close_by is not None:
                if now > self._close_by:
                    self._give_up("it did not end in time")
                    return
                if not (self.lines or self.core.places or self._is_owed()):
                    return
            wait_s = min(self.core.next_deadline(), self._close_by or float("inf")) - now
            for key, events in self._selector.select(max(0.0, wait_s)):
                key.data(key.fileobj, events)

    def _is_owed(self) -> bool:
        """Whether hosts are still to come that must be told to go."""
        return self._waits and bool(self.core.expected)

    def end(self, within_s: float, *, waits: bool) -> None:
        """Begin to end everything, and give up what has not ended in time; see `Fleet.waits`."""
        self._close_by, self._waits = time.monotonic() + within_s, waits
        self.core.closed()

    def tell_when_idle(self, idle: threading.Event) -> None:
        """Set the event once nothing is unsettled."""
        self._when_idle.append(idle)

    def _give_up(self, detail: str) -> None:
        """Settle what is left without the hosts."""
        self.core.closed()
        for host_id in list(self.lines):
            self._part(host_id, detail)
        self._settle_all([action for action in self.core.turn(time.monotonic()) if isinstance(action, act.Settle)])

    def _hang_up(self) -> None:
        for line in (*self.lines.values(), *self.strangers):
            line.close()
        for sock in (self.door, self._bell, self._ring):
            sock.close()
        self._selector.close()

    def _on_bell(self, _sock: Any, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass

    def take(self, submissions: list[Submission]) -> None:
        """Take jobs in; what is too large to travel fails at once."""
        fit = []
        for submission in submissions:
            parcel = submission.parcel
            size = parcel.size if isinstance(parcel, Memory) else len(parcel)
            if isinstance(parcel, Memory) or size > say.LARGEST_BYTES:
                message = f"the configuration has {size} bytes, more than can travel to a host: pass a path"
                discard(parcel)
                info = info_of("unpicklable", "", 0, None)
                self._deliver([Failed(submission.job_id, info, pack_plain({"message": message}))])
            else:
                self.jobs[submission.job_id] = submission
                fit.append(submission.job_id)
        self.core.submitted(fit)

    # -- hosts

    def _on_call(self, _sock: Any, _events: int) -> None:
        try:
            sock, _ = self.door.accept()
        except OSError:
            return
        line = Line(sock, self.call.secret, self._config)
        self.strangers.add(line)
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
                    self.core.heard(line.host_id, time.monotonic())
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
        self.strangers.discard(line)
        self.lines[host_id] = line
        self._slots[host_id] = slots
        self.core.joined(host_id, slots, time.monotonic())

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
            if job_id in self.jobs:
                self._record(job_id, value)
        now = time.monotonic()
        outcomes: dict[int, Settled] = {row[0]: Done(*row) for row in done}
        told = [act.Told(row[0], row[3] - row[2]) for row in done]
        for row in failed:
            outcomes[row[0]] = Failed(*row)
            told.append(act.Told(row[0], row[1].get("duration"), row[1]["kind"], outcomes[row[0]]))
        if returned:
            self.core.returned(line.host_id, returned, now)
        self._hand_over([outcomes[job_id] for job_id in self.core.told(line.host_id, told, now)])

    def _on_told(self, line: Line, stats: dict[str, Any]) -> None:
        if line.host_id is not None:
            self.answers.give(line.host_id, {"about": line.about, "slots": self._slots[line.host_id], **stats})

    def _on_spent(self, line: Line, detail: str) -> None:
        if line.host_id is not None:
            self.core.spent(line.host_id, f"{line.about}: {detail}")

    def _on_end(self, line: Line, host_id: int, detail: str) -> None:
        if line.host_id is None:
            self._forget(line)
        self.miss(host_id, detail)

    def miss(self, host_id: int, detail: str) -> None:
        """The host is gone, or did not come."""
        self.core.missed(host_id, detail)
        self._part(host_id, detail)

    def _part(self, host_id: int, detail: str) -> None:
        """The host is gone, or given up."""
        line = self.lines.pop(host_id, None)
        if line is None:
            return
        self.core.left(host_id, f"{line.about}: {detail}", line.unsent())
        self._forget(line)
        self.answers.give_up(host_id)

    def _forget(self, line: Line) -> None:
        self.strangers.discard(line)
        self._selector.unregister(line.sock)
        line.close()

    def ask(self) -> None:
        """Ask every host how it is doing, for `answers`."""
        self.answers.expect(self.lines, self.core.waiting)
        for line in self.lines.values():
            self._say(line, (say.TELL,))

    # -- what the core orders

    def _perform(self, actions: list[act.Action]) -> None:
        settles: list[act.Settle] = []
        for action in actions:
            if isinstance(action, act.Settle):
                settles.append(action)
            else:
                self._PERFORM[type(action)](self, action)
        self._settle_all(settles)

    def _say(self, line: Line, message: Any, job_ids: list[int] | None = None) -> None:
        line.send(message, job_ids)
        self._watch(line)

    def _send(self, action: act.Send) -> None:
        line, rows, size = self.lines[action.host_id], [], 0
        losses = self.core.losses
        for job_id in action.job_ids:
            _, parcel, timeout_s, limit, attempts, log = self.jobs[job_id]
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
        self._say(self.lines[action.host_id], (say.BUDGET, None if at is None else max(0.0, at - time.monotonic())))

    def _settle_all(self, settles: list[act.Settle]) -> None:
        """Jobs end that no host can tell of. A million may do so at once."""
        infos: dict[Any, dict[str, Any]] = {}
        outcomes: list[Settled] = []
        for job_id, kind, cause, attempts, detail in settles:
            if isinstance(detail, Failed):  # the words of the host that could not start its workers
                outcomes.append(Failed(job_id, {**detail.info, "attempts": 0}, detail.blamed))
                continue
            limit = self.jobs[job_id].memory_limit
            key = (kind, cause, attempts, detail, limit)
            if key not in infos:
                infos[key] = info_of(kind, cause, attempts, limit if isinstance(limit, int) else None)
                infos[key] |= {} if detail is None else {"detail": str(detail)}
            outcomes.append(Failed(job_id, infos[key]))
        self._hand_over(outcomes)

    def _hand_over(self, outcomes: list[Settled]) -> None:
        for outcome in outcomes:
            del self.jobs[outcome.job_id]
        if outcomes:
            self._deliver(outcomes)

    _PERFORM: ClassVar[dict[type, Callable[["Exchange", Any], None]]] = {
        act.Send: _send,
        act.Cancel: lambda self, action: self._say(self.lines[action.host_id], (say.CANCEL, action.job_ids)),
        act.Withdraw: lambda self, action: self._say(self.lines[action.host_id], (say.WITHDRAW, action.job_ids)),
        act.Limit: _limit,
        act.Ping: lambda self, action: self._say(self.lines[action.host_id], (say.PING,)),
        act.Dismiss: lambda self, action: self._say(self.lines[action.host_id], (say.CLOSE,)),
        act.Drop: lambda self, action: self._part(action.host_id, "it does not answer"),
    }
    _HEAR: ClassVar[dict[int, Callable[..., None]]] = {
        say.HELLO: _on_hello,
        say.SETTLED: _on_settled,
        say.TOLD: _on_told,
        say.PONG: lambda _self, _line: None,
        say.END: _on_end,
        say.SPENT: _on_spent,
    }


def info_of(kind: str, cause: str, attempts: int, memory_limit: int | None) -> dict[str, Any]:
    """The description of a failure that no host can describe, as `describe` has it."""
    return {"kind": kind, "cause": cause, "attempts": attempts, "memory_limit": memory_limit, "unkilled_pids": []}
