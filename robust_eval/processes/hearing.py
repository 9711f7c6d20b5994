"""What workers say, made into events for the core (rule 4: a channel can be read dry at any time).

Nothing of it is trusted: what is no report, or tells of instants that cannot be, breaks the channel.
"""

from collections.abc import Callable, Iterable
from math import isfinite
from time import monotonic
from typing import Any

from robust_eval.processes import wire
from robust_eval.processes.layout import MEASURED_S
from robust_eval.processes.meter import Meter
from robust_eval.processes.parcel import pack_plain, view
from robust_eval.processes.port import Finished, Port
from robust_eval.processes.wire import new_named
from robust_eval.supervision import events as ev

_CLOCK_SLACK_S = 0.001
_MOST_LOOKS = 1000  # at an instant in which the worker does not just send what it held


class Hearing:
    """Reads the channels of the workers.

    Args:
        events: where what is heard goes.
        notices: where goes what the driver is to log: words, and fields.
        meter: knows the peaks.
        record: called with a job's id and an intermediate value, opaque bytes.
        forget: called with a descriptor that has nothing more to say.
        watch_memory: called with a worker and the job that it has begun now, or is about to, and the instant.
    """

    def __init__(
        self,
        events: list[ev.Event],
        notices: list[tuple[str, dict[str, Any]]],
        meter: Meter,
        *,
        record: Callable[[int, bytes], None],
        forget: Callable[[int], None],
        watch_memory: Callable[[int, int, float], None],
    ) -> None:
        self._events = events
        self._notices = notices
        self._meter = meter
        self._record = record
        self._forget = forget
        self._watch_memory = watch_memory

    def drain(self, port: Port) -> None:
        """Read a worker's channel dry, and what it has finished and not sent."""
        try:
            for _ in range(_MOST_LOOKS):
                while self.listen(port):
                    pass
                held = port.reports.held()
                if held is not None:
                    self._on_reports(port, held)
                    return
            error = "the worker never stops sending what it wrote down"
        except wire.ProtocolError as broken:
            error = str(broken)
        self._events.append(ev.ChannelBroken(port.worker_id, error))

    def listen(self, port: Port) -> bool:
        """Read once, so that a worker that never stops writing delays nobody. False where nothing is left to read."""
        try:
            if port.reports.read():
                self._on_reports(port, port.reports.reports())
                return True
            self._forget(port.outbox.fileno())
        except BlockingIOError:
            pass
        except (OSError, wire.ProtocolError) as error:
            self._forget(port.outbox.fileno())
            self._events.append(ev.ChannelBroken(port.worker_id, str(error)))
        return False

    def miss(self, port: Port) -> None:
        """Charge the job that wrote over the page: it runs. The results of those before it lay there, and are gone."""
        now, claimed = monotonic(), port.claimed()
        words = pack_plain({"message": "the job after it in the same worker wrote over its result"})
        for job_id in claimed[:-1]:
            port.heard(job_id)
            missed = Finished(words, "", 0)
            self._events.append(
                ev.ResultReceived(port.worker_id, job_id, now, now, "lost", missed, leftovers=False, leaving=False)
            )
        self._events += [ev.JobBegun(port.worker_id, job_id, now) for job_id in claimed[-1:]]

    def _on_reports(self, port: Port, reports: Iterable[wire.Report]) -> None:
        """What came at once. What was seen of the tree's memory was seen while the first of these jobs ran.

        That the last has ended is when the job behind it began, which is the one to watch: the others are over.
        """
        peak_bytes, following, ended_at = self._meter.peak_bytes(port.worker_id), None, 0.0
        try:
            for report in reports:
                if report.kind == wire.RESULT:
                    self._on_result(port, report, peak_bytes)
                    peak_bytes, ended_at = 0, report.ended_at
                    following = port.heard(report.job_id)
                else:
                    self._on_report(port, report)
        finally:
            if following is not None:
                self._watch_memory(port.worker_id, following, ended_at)

    def _on_report(self, port: Port, report: wire.Report) -> None:
        if report.kind == wire.RECORD and isinstance(report.payload, bytes):
            self._record(report.job_id, report.payload)
        elif report.kind == wire.READY:
            port.output.forget()
            self._events.append(ev.WorkerReady(port.worker_id))
        else:
            text = str(view(report.payload), "utf-8", "backslashreplace")
            detail = f"{text}\n{port.output.rest()}".strip()
            self._notices.append(("a worker did not start", {"worker_pid": port.pid, "detail": detail}))
            self._events.append(ev.StartFailed(port.worker_id, detail))

    def _on_result(self, port: Port, report: wire.Report, peak_bytes: int) -> None:
        _, flags, job_id, begun_at, ended_at, told_bytes, payload = report
        if not (isfinite(begun_at) and 0.0 < begun_at <= ended_at <= monotonic() + _CLOCK_SLACK_S):
            msg = f"the worker reported a job from {begun_at} to {ended_at}"
            raise wire.ProtocolError(msg)
        if ended_at - begun_at > MEASURED_S:
            self._meter.told(port.worker_id, told_bytes, ended_at)
        tail = port.output.take(job_id) if flags & wire.PRINTED else ""
        finished = new_named(Finished, (payload, tail, max(told_bytes, peak_bytes)))
        left, leaving = bool(flags & wire.LEFTOVERS), bool(flags & wire.LEAVING)
        kind = report.failure_kind
        self._events.append(
            ev.ResultReceived(port.worker_id, job_id, begun_at, ended_at, kind, finished, left, leaving)
        )
