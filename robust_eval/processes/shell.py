"""The supervisor process: one selector, one timer; it feeds the core and performs its actions.

It owns every clock, channel and kill of one pool. It is single-threaded, imports no user code and unpickles nothing
of the user's. The driver's orders and what happens to the crew become events for the core; what the core answers is
done in `_perform`, and a turn ends with one batch of outcomes for the driver.
"""

import contextlib
import os
import resource
import select
import selectors
import signal
from collections.abc import Callable
from mmap import mmap
from time import monotonic
from typing import Any, ClassVar, NamedTuple

from robust_eval.processes import orders, system, tree, wire
from robust_eval.processes.crew import Crew
from robust_eval.processes.describe import describe
from robust_eval.processes.health import Health
from robust_eval.processes.layout import LEDGER_BYTES, LEDGER_OVER
from robust_eval.processes.link import DriverLink, TemplateLink
from robust_eval.processes.nursery import Nursery
from robust_eval.processes.parcel import MISSING, Memory, Parcel, discard, read_out, store
from robust_eval.processes.patience import Patience
from robust_eval.processes.port import Finished
from robust_eval.processes.settings import Settings
from robust_eval.processes.wire import new_named
from robust_eval.supervision import actions as act
from robust_eval.supervision import events as ev
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import earliest
from robust_eval.supervision.supervisor import Supervisor

_ORPHANED_S = 1.5
_LAST_WORDS_S = 5.0
_HOLD_S = 0.005
_FILES_SHARE = 4
_READ_OUT_BYTES = 1 << 26  # more would keep everything else waiting for long


class _Entry(NamedTuple):
    """A job that has not settled: its payload, its memory limit in bytes, the path of its log."""

    parcel: Parcel
    memory_limit: int | None
    log: str | None


class Shell:
    """One supervisor process.

    Args:
        driver: the link to the driver.
        config: its first message.
        settings: how templates and workers are started.
        template: the first of them, if it could be started already.
        driver_exit_fd: becomes readable when the driver's process ends.
    """

    def __init__(
        self,
        driver: DriverLink,
        config: dict[str, Any],
        settings: Settings,
        template: TemplateLink | None,
        driver_exit_fd: int,
    ) -> None:
        self._driver = driver
        self._selector = selectors.DefaultSelector()
        self._patience = Patience(self._selector.select)
        self._ledger = mmap(settings.ledger_fd, LEDGER_BYTES)
        self._cookie = config["cookie"]
        self._jobs: dict[int, _Entry] = {}
        self._in_files: set[int] = set()
        self._most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _FILES_SHARE
        self._crew = Crew(Nursery(settings, template), settings, self._selector, self._memory_limit_of, self._on_record)
        retry_on = frozenset(config["policy"].pop("retry_on"))
        self._core = Supervisor(Policy(**config["policy"], retry_on=retry_on), monotonic())
        self._events = self._crew.events
        self._health = Health(monotonic())
        self._finished = False
        self._gone_by: float | None = None
        self._report_at: float | None = None
        self._reported_at = monotonic()
        self._awaited = selectors.EVENT_READ
        self._selector.register(driver.sock, self._awaited, self._on_driver)
        self._selector.register(driver_exit_fd, selectors.EVENT_READ, self._on_driver_gone)
        self._driver_exit_fd: int | None = driver_exit_fd
        self._children_fd = system.tell_of_children()
        self._selector.register(self._children_fd, selectors.EVENT_READ, self._on_children)

    def run(self) -> None:
        """Supervise until everything is settled and gone, or until the driver is."""
        self._obey()  # what came in one read with the first message makes nothing readable again
        while True:
            self._turn()
            if self._finished or (self._gone_by is not None and monotonic() > self._gone_by):
                break
            due_at = earliest(self._core.next_deadline(), self._crew.meter.next_at(), self._gone_by)
            leisure_s = self._core.dispatcher.leisure_s
            if leisure_s:
                self._patience.let_gather(leisure_s, self._wait_s(due_at))
            wait = self._selector.select if self._core.roster.is_starting else self._patience.select
            for key, _ in wait(self._wait_s(earliest(due_at, self._report_at))):
                key.data()
            if self._driver.blocked:
                self._driver.drain()
            self._await_reader()
        self._crew.close()
        tree.signal_all(tree.with_cookie(self._cookie), signal.SIGKILL)
        self._say_the_last()

    def _await_reader(self) -> None:
        """Be woken when the driver has read, where something waits for that."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._driver.blocked else 0)
        if wanted != self._awaited and self._gone_by is None:
            self._selector.modify(self._driver.sock, wanted, self._on_driver)
            self._awaited = wanted

    def _say_the_last(self) -> None:
        """Give a driver that reads slowly the time to read the last outcomes, within a bound."""
        ends_at = monotonic() + _LAST_WORDS_S
        self._driver.flush()
        writable = select.poll()  # select() knows no descriptor from 1024 on
        writable.register(self._driver.sock, select.POLLOUT)
        while self._driver.blocked and self._gone_by is None and (left_s := ends_at - monotonic()) > 0.0:
            writable.poll(1000.0 * left_s)
            self._driver.drain()

    def _turn(self) -> None:
        """Feed the core until it has nothing more to say, then send the driver its batch."""
        while True:
            now = monotonic()
            at = self._core.next_deadline()
            if at is not None and at <= now:
                self._crew.look_before(self._core.due_workers(now))
            events = self._events[:]
            self._events.clear()
            for action in self._core.handle(events, now):
                self._PERFORM[type(action)](self, action)
            self._crew.flush()
            if not self._events:
                self._crew.measure(self._running, now)
            if not self._events:
                break
        self._crew.close_gone()
        while self._crew.notices:
            self._driver.notice(*self._crew.notices.pop(0))
        self._report()

    def _report(self) -> None:
        """Send the driver what has gathered: at once, unless it can wait for more of it to come.

        That is where workers have their next jobs already, and nothing failed: nobody waits for the driver's answer.
        """
        now = monotonic()
        if self._core.book.queued and not self._driver.failed and now < self._reported_at + _HOLD_S:
            self._report_at = self._reported_at + _HOLD_S if self._driver.done else None
            self._driver.drain()
            return
        self._report_at, self._reported_at = None, now
        self._driver.flush()

    def _wait_s(self, due_at: float | None) -> float | None:
        """How long until this instant, if it is one, and until what asks to be looked at again."""
        due_s = None if due_at is None else max(0.0, due_at - monotonic())
        return earliest(due_s, self._crew.wait_s())

    def _running(self, worker_id: int) -> int | None:
        worker = self._core.roster.workers.get(worker_id)
        if worker is None or not worker.inbox or worker.doom is not None:
            return None
        return worker.inbox[0].job_id

    def _memory_limit_of(self, job_id: int) -> int | None:
        entry = self._jobs.get(job_id)
        return entry.memory_limit if entry is not None else None

    # -- the driver

    def _on_driver(self) -> None:
        try:
            there = self._driver.frames.read()
        except BlockingIOError:
            return
        except OSError:
            there = False
        self._obey()
        if not there:
            self._on_driver_gone()

    def _obey(self) -> None:
        for message in self._driver.frames.messages():
            self._ORDERS[message[0]](self, message)

    def _on_driver_gone(self) -> None:
        """The driver is dead, or has dropped its end: nobody wants the outcomes."""
        if self._gone_by is None:
            self._gone_by = monotonic() + _ORPHANED_S
            self._selector.unregister(self._driver.sock)
            if self._driver_exit_fd is not None:
                self._selector.unregister(self._driver_exit_fd)
            self._events.append(ev.CloseRequested())

    def _on_children(self) -> None:
        """Something happened to a child; of ends the selector knows better, so that stops are what is looked for."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._children_fd, 1 << 16)
        self._crew.go_on()

    def _on_submit(self, message: tuple[Any, ...]) -> None:
        fds = self._driver.frames.fds
        specs = []
        for job_id, payload, timeout_s, memory_limit, attempts, log in message[1]:
            parcel = payload if type(payload) is bytes else self._kept(job_id, wire.unportable(payload, fds))
            self._jobs[job_id] = new_named(_Entry, (parcel, memory_limit, log))
            specs.append(new_named(ev.JobSpec, (job_id, timeout_s, attempts)))
        self._events.append(ev.JobsSubmitted(specs))

    def _kept(self, job_id: int, parcel: Parcel) -> Parcel:
        """A payload that came in memory: it stays in its file while there are descriptors enough for all else."""
        if not isinstance(parcel, Memory):
            return parcel
        if len(self._in_files) >= self._most_files:
            return read_out(parcel, _READ_OUT_BYTES)
        self._in_files.add(job_id)
        return parcel

    def _on_cancel(self, message: tuple[Any, ...]) -> None:
        self._events.append(ev.JobsCancelled(message[1]))

    def _on_withdraw(self, message: tuple[Any, ...]) -> None:
        self._events.append(ev.JobsWithdrawn(message[1]))

    def _on_budget(self, message: tuple[Any, ...]) -> None:
        self._events.append(ev.BudgetSet(message[1]))

    def _on_close(self, _message: tuple[Any, ...]) -> None:
        self._events.append(ev.CloseRequested())

    def _on_tell(self, _message: tuple[Any, ...]) -> None:
        memory_of = self._crew.meter.resident_bytes
        self._driver.tell(self._health.describe(self._core, monotonic(), memory_of, self._memory_limit_of))

    def _on_record(self, job_id: int, value: bytes) -> None:
        self._driver.recorded.append((job_id, value))

    # -- what the core orders

    def _assign(self, action: act.AssignSlot) -> None:
        self._health.assigned(action.worker_id, action.slot)
        self._crew.assign(action.worker_id, action.slot)

    def _send_job(self, action: act.SendJob) -> None:
        entry = self._jobs[action.job_id]
        parcel = entry.parcel
        if isinstance(parcel, bytes) and len(parcel) > wire.PACKET_BYTES:
            stored = store([parcel], len(parcel))
            parcel = stored if isinstance(stored, Memory) else Memory(MISSING, len(parcel))
            self._jobs[action.job_id] = entry._replace(parcel=parcel)
        if entry.log is not None:
            self._crew.log_to(action.worker_id, entry.log)
        if action.attempt > 1:
            self._ledger[action.job_id % LEDGER_BYTES] |= LEDGER_OVER
        self._crew.send(action.worker_id, action.job_id, action.attempt, parcel)
        worker = self._core.roster.workers.get(action.worker_id)
        if worker is not None and worker.inbox and worker.inbox[0].job_id == action.job_id:
            self._crew.watch_memory(action.worker_id, action.job_id, self._core.now)

    def _settle(self, action: act.SettleJob) -> None:
        outcome = action.outcome
        slot = self._health.settled(outcome, action.worker_id)
        entry = self._jobs.pop(action.job_id)
        if type(entry.parcel) is not bytes:
            self._in_files.discard(action.job_id)
            discard(entry.parcel)
        if self._gone_by is not None:
            _discard_all(outcome)
            return
        payload, driver = outcome.payload, self._driver
        if driver.fds and driver.full:
            driver.flush()
        if outcome.kind is None and isinstance(payload, Finished):
            shown = driver.portable(payload.parcel)
            run = (outcome.begun_at, outcome.ended_at, outcome.attempts, payload.peak_bytes)
            driver.done.append((action.job_id, shown, *run, slot, entry.memory_limit))
            return
        unkilled = self._crew.alive(action.worker_id) if outcome.unkilled and action.worker_id is not None else []
        info, blamed, late = describe(outcome, entry.memory_limit, unkilled)
        info["slot"] = slot
        driver.failed.append((action.job_id, info, driver.portable(blamed), driver.portable(late)))

    def _finish(self, _action: act.Finish) -> None:
        self._finished = True

    _PERFORM: ClassVar[dict[type, Callable[["Shell", Any], None]]] = {
        act.StartTemplate: lambda self, _: self._crew.start_template(),
        act.StartWorker: lambda self, action: self._crew.start_worker(action.worker_id),
        act.AssignSlot: _assign,
        act.SendJob: _send_job,
        act.TakeBack: lambda self, action: self._crew.take_back(action.worker_id),
        act.StopJob: lambda self, action: self._crew.stop(action.worker_id, action.job_id),
        act.DumpStack: lambda self, action: self._crew.dump(action.worker_id),
        act.KillWorker: lambda self, action: self._crew.kill(action.worker_id),
        act.SettleJob: _settle,
        act.Finish: _finish,
    }
    _ORDERS: ClassVar[dict[int, Callable[["Shell", tuple[Any, ...]], None]]] = {
        orders.SUBMIT: _on_submit,
        orders.CANCEL: _on_cancel,
        orders.WITHDRAW: _on_withdraw,
        orders.BUDGET: _on_budget,
        orders.CLOSE: _on_close,
        orders.TELL: _on_tell,
    }


def _discard_all(outcome: act.Outcome) -> None:
    for payload in (outcome.payload, outcome.late_payload):
        if isinstance(payload, Finished):
            discard(payload.parcel)
