"""The workers and their template as the supervisor process handles them.

What the core orders is done here, and what happens to processes and channels becomes events here: `events` is where
they gather until the loop feeds them to the core. A worker that exits is first read dry (rule 4), then what it had not
read is taken back (rule 5), then its stamp says what it had begun.
"""

import marshal
import os
import selectors
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

from robust_eval.processes import system, tree, wire
from robust_eval.processes.burial import Undertaker
from robust_eval.processes.hearing import Hearing
from robust_eval.processes.layout import DUMP_SIGNAL, STOP_SIGNAL
from robust_eval.processes.link import Log, TemplateLink
from robust_eval.processes.meter import Meter
from robust_eval.processes.nursery import Nursery
from robust_eval.processes.output import Output
from robust_eval.processes.parcel import Parcel
from robust_eval.processes.port import Port
from robust_eval.processes.settings import Settings
from robust_eval.supervision import events as ev

_CLOSE_S = 1.0


class Crew:
    """All processes below one supervisor.

    Args:
        nursery: where workers come from.
        settings: how they are started.
        selector: where their descriptors are registered, each with the callable to call.
        memory_limit_of: the limit in bytes of a job, or None.
        record: called with a job's id and an intermediate value, opaque bytes.
    """

    def __init__(
        self,
        nursery: Nursery,
        settings: Settings,
        selector: selectors.BaseSelector,
        memory_limit_of: Callable[[int], int | None],
        record: Callable[[int, bytes], None],
    ) -> None:
        self.events: list[ev.Event] = []
        self.notices: list[tuple[str, dict[str, Any]]] = []
        self._settings = settings
        self._selector = selector
        self._memory_limit_of = memory_limit_of
        self._nursery = nursery
        self._ports: dict[int, Port] = {}
        self._unflushed: dict[int, Port] = {}
        self._dumped: set[int] = set()
        self._gone: list[Callable[[], None]] = []
        self.meter = Meter()
        self._hearing = Hearing(
            self.events,
            self.notices,
            self.meter,
            record=record,
            forget=self._selector_forget,
            watch_memory=self.watch_memory,
        )
        self._undertaker = Undertaker(self._watch, self._unwatch)
        self._oom_kills = system.oom_kills()

    # -- what the core orders

    def start_template(self) -> None:
        """Start a template process."""
        try:
            link = self._nursery.open()
        except OSError as error:  # no process or no descriptor is free, which may pass
            self.events.append(ev.TemplateExited(was_ready=False, detail=f"no template can be started: {error}"))
            return
        self._undertaker.spare([link.pid])
        self._register(link.sock.fileno(), self._on_template)
        self._register(link.log.fd, lambda: self._read(link.log))
        self._register(link.exit_fd, self._on_template_exit)

    def start_worker(self, worker_id: int) -> None:
        """Have a blank worker forked."""
        try:
            port = Port(worker_id)
        except OSError as error:
            self._unstarted(worker_id, f"no worker can be started: {error}")
            return
        self._ports[worker_id] = port
        self._register(port.outbox.fileno(), lambda: self._hearing.listen(port))
        self._register(port.output.fd, lambda: self._read(port.output))
        self._nursery.order(port)

    def _unstarted(self, worker_id: int, detail: str) -> None:
        self.events += [ev.StartFailed(worker_id, detail), ev.WorkerExited(worker_id)]

    def assign(self, worker_id: int, slot: int) -> None:
        """Give a worker its slot."""
        port, settings = self._ports[worker_id], self._settings
        seed = settings.worker_seed
        port.assign(
            marshal.dumps(
                {
                    "marker": port.marker,
                    "env": settings.worker_env[slot % len(settings.worker_env)] if settings.worker_env else {},
                    "seed": None if seed is None else seed + slot,
                    "max_tasks_per_child": settings.max_tasks_per_child,
                    "shelf_bytes": settings.shelf_bytes,
                },
                wire.MARSHAL_VERSION,
            )
        )

    def send(self, worker_id: int, job_id: int, attempt: int, parcel: Parcel) -> None:
        """Put a job into a worker's inbox, with the others of this turn; a full inbox returns it."""
        port = self._ports[worker_id]
        refused = port.send(attempt, job_id, parcel)
        self._unflushed[worker_id] = port
        if refused:
            self.events.append(ev.JobsReturned(worker_id, refused))

    def flush(self) -> None:
        """Send what is in the inboxes' next messages."""
        for worker_id, port in self._unflushed.items():
            refused = port.flush()
            if refused:
                self.events.append(ev.JobsReturned(worker_id, refused))
        self._unflushed.clear()

    def log_to(self, worker_id: int, path: str) -> None:
        """The output of the worker's next job goes into this file; inboxes hold one job then."""
        self._ports[worker_id].output.log_to(path)

    def watch_memory(self, worker_id: int, job_id: int, now: float) -> None:
        """The worker's first job is this one now."""
        self.meter.begin(worker_id, self._memory_limit_of(job_id), now)

    def take_back(self, worker_id: int) -> None:
        """Take back what the worker has not begun."""
        port = self._ports.get(worker_id)
        if port is not None:
            self.events.append(ev.JobsReturned(worker_id, port.take_back()))

    def stop(self, worker_id: int, job_id: int) -> None:
        """Ask the job politely."""
        self.meter.let_go(worker_id)
        self._ports[worker_id].ask_to_stop(job_id)
        self._ports[worker_id].signal(STOP_SIGNAL)

    def dump(self, worker_id: int) -> None:
        """Make the worker dump its stacks and die of it."""
        self.meter.let_go(worker_id)
        self._dumped.add(worker_id)
        self._ports[worker_id].signal(DUMP_SIGNAL)

    def kill(self, worker_id: int) -> None:
        """Kill the worker with everything below it."""
        port = self._ports.get(worker_id)
        if port is None:
            return
        port.doomed = True
        if port.pid is None:
            if self._nursery.template is None or port.child_fds:
                self._never_forked(port)
            return
        self.meter.give_up(worker_id)
        tree.kill_below(port.pid)
        port.signal(signal.SIGKILL)

    def _never_forked(self, port: Port) -> None:
        self._forget(port)
        self.events.append(ev.WorkerExited(port.worker_id))
        if self._nursery.template is not None and not self._nursery.template.ready:
            self._nursery.template.kill()

    def alive(self, worker_id: int) -> list[int]:
        """The processes of a worker's tree that are still there."""
        port = self._ports.get(worker_id)
        if port is None or port.pid is None:
            return []
        orphans = tree.children(self._nursery.template.pid) if self._nursery.template is not None else []
        workers = {other.pid for other in self._ports.values()}
        pids = [port.pid, *tree.descendants(port.pid), *(pid for pid in orphans if pid not in workers)]
        return [pid for pid in pids if tree.is_there(pid)]

    # -- what happens

    def _read(self, printed: Output | Log) -> None:
        """Read what is printed. A pipe whose other ends were all closed would wake this process for ever."""
        printed.read()
        if printed.ended:
            self._selector_forget(printed.fd)

    def look_before(self, worker_ids: list[int]) -> None:
        """Before a deadline is acted on: the worker's finish decides, and its stamp says what it began and when."""
        for worker_id in worker_ids:
            port = self._ports.get(worker_id)
            if port is not None:
                self._hearing.drain(port)
                self._read_stamp(port)
                self.meter.note(worker_id)

    def _read_stamp(self, port: Port) -> None:
        stamp = port.stamp()
        if port.reports.are_overwritten:
            self._hearing.miss(port)
        elif stamp is not None:
            job_id, at = stamp
            now = monotonic()
            self.events.append(ev.JobBegun(port.worker_id, job_id, at if 0.0 < at <= now else now))

    def measure(self, running: Callable[[int], int | None], now: float) -> None:
        """Look at the memory of the trees that are due, where a job runs.

        A job that has finished is let go whatever its size: its result is looked for before the tree is measured,
        and again once it is stopped.
        """
        for worker_id in self.meter.due(now):
            port, job_id = self._ports.get(worker_id), running(worker_id)
            if port is None or job_id is None:
                self.meter.let_go(worker_id)
                continue
            if self._has_finished(port):
                self.watch_memory(worker_id, job_id, now)
                continue
            if self.meter.is_headless(worker_id, now):
                self.events.append(ev.ChannelBroken(worker_id, cause="headless"))
                continue
            over = self.meter.look(worker_id, now)
            if over is not None and self._has_finished(port):
                self.meter.resume(worker_id, now)
            elif over is not None:
                self.events.append(ev.MemoryExceeded(worker_id, job_id, over))

    def _has_finished(self, port: Port) -> bool:
        before = len(self.events)
        self._hearing.drain(port)
        return len(self.events) > before

    def _on_template(self) -> None:
        for told, fds in self._nursery.hear():
            if told.kind == wire.EXITED:
                self._on_exit(told.worker_id, told.number)
            elif told.kind == wire.UNFORKED:
                self._forget(self._ports[told.worker_id])
                self._unstarted(told.worker_id, f"no worker can be forked: {os.strerror(told.number)}")
            else:
                self._on_forked(self._ports[told.worker_id], told.number, *fds)
        self._nursery.order()

    def _on_forked(self, port: Port, pid: int, exit_fd: int | None = None) -> None:
        port.pid, port.exit_fd = pid, exit_fd
        self.meter.add(port.worker_id, pid)
        self.events.append(ev.WorkerForked(port.worker_id))
        if port.doomed:
            port.signal(signal.SIGKILL)

    def _on_exit(self, worker_id: int, status: int) -> None:
        """A worker is reaped and its tree is gone."""
        port = self._ports.get(worker_id)
        if port is None:
            return
        self._hearing.drain(port)
        self.take_back(worker_id)
        self._read_stamp(port)
        port.peak_bytes = self.meter.peak_bytes(worker_id)
        dumped = worker_id in self._dumped
        self._dumped.discard(worker_id)
        info = port.exit_info(status, dumped=dumped, oom_killed=self._was_oom_killed(port, status))
        stamp = port.stamp()
        self._forget(port)
        if info.oom_killed and stamp is not None:
            self.events.append(ev.MemoryExceeded(worker_id, stamp[0]))
        self.events.append(ev.WorkerExited(worker_id, info))

    def _was_oom_killed(self, port: Port, status: int) -> bool:
        """Whether the kernel's OOM killer took this worker: a SIGKILL that is not ours, and its counter moved."""
        if port.doomed or not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return False
        before, self._oom_kills = self._oom_kills, system.oom_kills()
        return self._oom_kills > before

    def _forget(self, port: Port) -> None:
        self._unflushed.pop(port.worker_id, None)
        self._selector_forget(port.outbox.fileno())
        self._selector_forget(port.output.fd)
        self.meter.remove(port.worker_id)
        del self._ports[port.worker_id]
        self._gone.append(port.close)

    # -- a template that is gone

    def _on_template_exit(self) -> None:
        """The workers of a dead template come to this process, which buries them itself."""
        template = self._nursery.template
        if template is None:
            return
        self._on_template()
        words, what = template.last_words(), "died" if template.ready else "did not start"
        self.notices.append((f"the template {what}", {"template_pid": template.pid, "detail": words}))
        self.events.append(ev.TemplateExited(template.ready, words))
        self._drop_template(template)
        for port in list(self._ports.values()):
            if port.pid is None:
                self._forget(port)
                self.events.append(ev.WorkerExited(port.worker_id))
            else:
                self._undertaker.add(port.pid, port.worker_id)
        self.bury()

    def _drop_template(self, template: TemplateLink) -> None:
        for fd in (template.sock.fileno(), template.log.fd, template.exit_fd):
            self._selector_forget(fd)
        self._nursery.close()
        self._undertaker.spare([])
        template.end(_CLOSE_S)
        self._gone.append(template.close)

    def go_on(self) -> None:
        """Continue a template that a job has stopped: nobody else could fork or reap."""
        if self._nursery.template is not None:
            system.go_on_if_stopped(self._nursery.template.pid)

    def bury(self) -> None:
        """Reap what came to this process."""
        for worker_id, status in self._undertaker.bury(monotonic()):
            self._on_exit(worker_id, status)

    def close_gone(self) -> None:
        """Close what belonged to the dead. Not before the end of a turn: others may be about to look at it."""
        while self._gone:
            self._gone.pop()()

    def wait_s(self) -> float | None:
        """How long this process may sleep before an orphan must be looked at."""
        return self._undertaker.wait_s(monotonic())

    def close(self) -> None:
        """End the template and whatever is left below this process."""
        self._nursery.discard_first()
        if self._nursery.template is not None:
            self._drop_template(self._nursery.template)
        self._undertaker.kill_all()
        for port in list(self._ports.values()):
            self._forget(port)
        self.close_gone()

    def _watch(self, pid: int) -> int:
        fd = system.watch_exit(pid)
        self._register(fd, self.bury)
        return fd

    def _unwatch(self, fd: int) -> None:
        self._selector_forget(fd)
        os.close(fd)

    def _register(self, fd: int, callback: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _selector_forget(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
