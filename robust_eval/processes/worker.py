"""The worker's loop: read a job, call the user's function, write what came of it.

It owns one process in a session of its own and knows nothing of limits: deadlines, memory and kills are the
supervisor's. What it must do is be honest about where it is: it stamps each job's begin into a page that it shares
with the supervisor, drops the job's objects before it reports, and reports what the job left behind.
"""

import contextlib
import faulthandler
import fcntl
import marshal
import mmap
import os
import resource
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple, NoReturn

from robust_eval.errors import JobStop
from robust_eval.processes import system, tree, wire
from robust_eval.processes.begun import note_begun, open_begun
from robust_eval.processes.blame import Unpicklable, blame, traceback_text
from robust_eval.processes.hygiene import Baseline, Builtins, Randomness
from robust_eval.processes.layout import (
    BEGUN_AT,
    CHANNEL_LOST_CODE,
    DUMP_SIGNAL,
    HEARD_AT,
    HEARING_AT,
    INSTANT,
    LEDGER_BYTES,
    LEDGER_OVER,
    LOST_AT,
    NUMBER,
    READ_AT,
    READING_AT,
    SENT_AT,
    STAMP_BYTES,
    STOP_AT,
    STOP_SIGNAL,
)
from robust_eval.processes.parcel import (
    Memory,
    Parcel,
    discard,
    needs_proof,
    open_parcel,
    pack,
    pack_plain,
    unpack,
    view,
)
from robust_eval.processes.streams import Streams

_LONG_JOB_S = 0.001
_HIGH_FD = 960
_MOST_LOOKS = 1000  # at an instant in which the supervisor does not just read
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_WALL = 0x40000000 if sys.platform == "linux" else 0  # also children made by clone() without SIGCHLD
_ANY_CHILD = os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL
_KINDS = {kind: index for index, kind in enumerate(wire.KINDS)}


class Bundle(NamedTuple):
    """What a worker is for: `runner(arguments, context)` is called for each job, the initializer once."""

    runner: Callable[[Any, "Worker"], Any]
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()


def high(fd: int) -> int:
    """Move a descriptor to a high number, where a job that opens and closes files does not meet it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, min(_HIGH_FD, soft - 32)))
    os.close(fd)
    return moved


class Worker:
    """One worker process. Also the context that the runner gets: `record` and `stop_requested`.

    Args:
        fds: inbox, outbox, the outbox's other end, output, stamps and ledger, in this order; they are moved to high
            numbers.
        load: makes the bundle; called when the worker takes its slot.
        streams: become the standard streams.
    """

    def __init__(self, fds: list[int], load: Callable[[], Bundle], streams: Streams) -> None:
        inbox, outbox, self._far_end, output, stamps, ledger = (high(fd) for fd in fds)
        self._inbox = socket.socket(fileno=inbox)
        self._outbox = socket.socket(fileno=outbox)
        self._stack_fd = stamps
        self._stamps = mmap.mmap(stamps, STAMP_BYTES)
        self._ledger = mmap.mmap(ledger, LEDGER_BYTES)
        os.close(ledger)
        self._load = load
        self._pid = os.getpid()
        self._job_id = 0
        self._in_user_code = False
        self._sending = threading.RLock()
        self._marker = b""
        self._clear_refs = _open_clear_refs()
        self._begun_log = high(begun) if (begun := open_begun()) >= 0 else -1
        self._output = output
        self._output_level: int | None = None
        self._builtins = Builtins()
        self._baseline: Baseline | None = None
        self._streams = streams
        streams.take(output)

    def serve(self) -> None:
        """Take the slot, then run jobs until the inbox ends or the worker must not begin another one."""
        packet = wire.receive_packet(self._inbox)
        if packet is None or not isinstance(packet.payload, bytes):
            return
        settings = marshal.loads(packet.payload)
        self._marker = settings["marker"]
        bundle = self._start(settings)
        if bundle is None:
            return
        tasks_left = settings["max_tasks_per_child"]
        if tasks_left != 1:  # else there is no next job that could meet anything
            self._baseline = Baseline(self._builtins)
        self._helpers = children()
        self._reset_peak()
        self._output_level = self._measure_output()
        self._send(wire.READY)
        goes_on = True
        while goes_on and (packet := wire.receive_packet(self._inbox)) is not None:
            tasks_left = None if tasks_left is None else tasks_left - 1
            goes_on = self._work(packet, bundle.runner, last=tasks_left == 0)

    def _start(self, settings: dict[str, Any]) -> Bundle | None:
        """Environment, signals, seeds, function, initializer. None after a failure, which is reported."""
        os.environ.update(settings["env"])
        faulthandler.enable(self._stack_fd, all_threads=True)
        faulthandler.register(DUMP_SIGNAL, self._stack_fd, all_threads=True, chain=True)
        signal.signal(STOP_SIGNAL, self._on_stop)
        try:
            bundle = self._load()
            self._randomness = Randomness(settings["seed"])
            if bundle.initializer is not None:
                bundle.initializer(*bundle.initargs)
        except BaseException as error:  # noqa: BLE001 - the user's initializer and imports raise anything
            text = traceback_text(error, unwind=1)
            self.flush()
            self._send(wire.START_FAILED, parcel=text.encode(errors="backslashreplace"))
            return None
        self.flush()
        return bundle

    # -- one job

    def _work(self, packet: wire.Packet, runner: Callable[..., Any], *, last: bool) -> bool:
        """Run one job and report it. False when the worker must not begin another one."""
        job_id = self._job_id = packet.job_id
        begun_at = monotonic()
        INSTANT.pack_into(self._stamps, BEGUN_AT, begun_at)
        NUMBER.pack_into(self._stamps, 0, job_id + 1)
        self._ledger[job_id % LEDGER_BYTES] = min(packet.attempt, LEDGER_OVER - 1)
        if self._begun_log >= 0:
            note_begun(self._begun_log, job_id)
        failure, parcel = self._call(packet, runner)
        if os.getpid() != self._pid:
            os._exit(0)
        if self._is_written_by_others():
            self._give_up()
        flags = wire.PRINTED if self._printed(job_id) else 0
        left = bool(children() - self._helpers)
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
        ended_at = monotonic()
        was_long = ended_at - begun_at > _LONG_JOB_S
        # Orphans that this process no longer adopts are with the template, which ends them when this worker dies.
        left = left or (was_long and not system.adopts_orphans())
        leaving = last or (self._baseline is not None and self._baseline.is_changed(thoroughly=was_long))
        flags |= (wire.LEFTOVERS if left else 0) | (wire.LEAVING if leaving else 0)
        self._send(wire.RESULT, (flags, failure), parcel, job_id, (begun_at, ended_at, peak_bytes))
        if left:
            _wait_for_the_end()
        if leaving:
            return False
        self._randomness.renew()
        if was_long:
            self._reset_peak()
        return True

    def _call(self, packet: wire.Packet, runner: Callable[..., Any]) -> tuple[int, Parcel]:
        """Everything of the job that runs the user's code, its objects' last breaths included."""
        try:
            try:
                self._in_user_code = True
                parcel = self._run(packet, runner)
            finally:
                self._in_user_code = False
        except BaseException as error:  # noqa: BLE001 - around the user's function
            blamed = blame(error, unwind=3, stop_requested=self.stop_requested())
            return _KINDS[blamed.kind], pack_plain(blamed.fields)
        return 0, parcel

    def _run(self, packet: wire.Packet, runner: Callable[..., Any]) -> Parcel:
        try:
            arguments = unpack(open_parcel(packet.payload))
        except (JobStop, MemoryError):
            raise
        except BaseException as error:  # the user's __setstate__, which may raise SystemExit
            raise Unpicklable("configuration", error) from error
        try:
            result = runner(arguments, self)
        finally:
            self._builtins.restore()
        del arguments
        try:
            parcel = pack(result)
            del result
            prove(parcel)
        except (JobStop, MemoryError):
            raise
        except BaseException as error:  # the user's __reduce__
            raise Unpicklable("result", error) from error
        return parcel

    # -- the runner's context

    def record(self, value: Any) -> None:
        """Send an intermediate value to the driver now; it is kept even if the job is then killed."""
        self._send(wire.RECORD, parcel=pack_plain(value), job_id=self._job_id)

    def stop_requested(self) -> bool:
        """Whether the supervisor has asked this job to stop."""
        return bool(NUMBER.unpack_from(self._stamps, STOP_AT)[0] == self._job_id + 1)

    def _on_stop(self, _number: int, _frame: object) -> None:
        if self._in_user_code and self.stop_requested():
            self._in_user_code = False
            raise JobStop

    # -- what goes out

    def _send(
        self,
        kind: int,
        status: tuple[int, int] = (0, 0),
        parcel: Parcel = b"",
        job_id: int = 0,
        measures: tuple[float, float, int] = (0.0, 0.0, 0),
    ) -> None:
        """Report to the supervisor. A worker whose channel the job closed says so in its stamps and ends.

        Args:
            kind: of the report.
            status: its flags, and the failure as an index into `wire.KINDS`.
            parcel: its payload.
            job_id: the job that it is about.
            measures: begin and end in monotonic seconds, peak in bytes.
        """
        flags, failure = status
        try:
            with self._sending:
                if isinstance(parcel, Memory):
                    header = wire.report_header(kind, flags | wire.IN_MEMORY, failure, parcel.size, job_id, measures)
                    self._count(len(header))
                    self._outbox.sendmsg([header], wire.rights([parcel.fd]))
                    discard(parcel)
                else:
                    header = wire.report_header(kind, flags, failure, len(parcel), job_id, measures)
                    self._count(len(header) + len(parcel))
                    self._outbox.sendall(header + parcel)
        except OSError:
            self._give_up()

    def _count(self, size: int) -> None:
        """Note how much was sent, in the shared page: a forked child of the job may record values, too."""
        (sent,) = NUMBER.unpack_from(self._stamps, SENT_AT)
        NUMBER.pack_into(self._stamps, SENT_AT, sent + size)

    def _is_written_by_others(self) -> bool:
        """Whether there is more in the channel than was sent: the job wrote into it, and is to blame for that.

        The supervisor would find out as well, but only once further jobs of the inbox had run, whose reports it
        could no longer tell from the rubbish.
        """
        (sent,) = NUMBER.unpack_from(self._stamps, SENT_AT)
        for _ in range(_MOST_LOOKS):
            written = _ever_written(self._far_end, self._stamps, HEARD_AT, HEARING_AT)
            if written is not None:
                return bool(written != sent)
        return False

    def _give_up(self) -> NoReturn:
        """End: the channel is not the worker's own any more."""
        self._stamps[LOST_AT] = 1
        os._exit(CHANNEL_LOST_CODE)

    def flush(self) -> None:
        """Write out what Python has buffered of the job's output."""
        self._streams.flush()

    def _printed(self, job_id: int) -> bool:
        """Flush what the job printed, and mark its end in the output if there is any."""
        self.flush()
        level = self._measure_output()
        if level is not None and level == self._output_level:
            return False
        mark = self._marker + NUMBER.pack(job_id)
        try:
            os.write(self._output, mark)
        except OSError:
            return False
        self._output_level = None if level is None else level + len(mark)
        return True

    def _measure_output(self) -> int | None:
        """How many bytes were ever written into the output, by whatever means; None while it is being read."""
        return _ever_written(self._output, self._stamps, READ_AT, READING_AT)

    def _reset_peak(self) -> None:
        """Let the kernel begin a new peak of the resident size (proc(5), clear_refs)."""
        with contextlib.suppress(OSError):
            os.write(self._clear_refs, b"5")


def _ever_written(fd: int, stamps: mmap.mmap, read_at: int, reading_at: int) -> int | None:
    """How many bytes went into a channel; None where it is closed, or while the supervisor reads from it."""
    waiting = bytearray(4)
    before: int = NUMBER.unpack_from(stamps, read_at)[0]
    busy = stamps[reading_at]
    try:
        fcntl.ioctl(fd, termios.FIONREAD, waiting)
    except OSError:
        return None
    if busy or stamps[reading_at] or NUMBER.unpack_from(stamps, read_at)[0] != before:
        return None
    return before + int.from_bytes(waiting, sys.byteorder)


def _open_clear_refs() -> int:
    try:
        return high(os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        return -1


def prove(parcel: Parcel) -> None:
    """Unpickle a parcel once if that may run code, so that a poisonous result fails here."""
    if isinstance(parcel, Memory):
        unpack(view(parcel))
    elif needs_proof(parcel):
        unpack(parcel)


def children() -> frozenset[int]:
    """The living children of this process; the dead ones are reaped. Costs 2 us where there are none."""
    try:
        os.waitid(os.P_ALL, 0, _ANY_CHILD)
        while os.waitpid(-1, os.WNOHANG | _WALL)[0]:
            pass
    except ChildProcessError:
        return frozenset()
    return frozenset(tree.children(os.getpid()))


def _wait_for_the_end() -> None:
    """Stay, so that what the job left behind stays below this process, until the supervisor kills both."""
    while True:
        signal.pause()


def run_worker(fds: list[int], load: Callable[[], Bundle], streams: Streams) -> int:
    """Be a worker until its inbox ends. Returns the exit code."""
    worker = Worker(fds, load, streams)
    worker.serve()
    worker.flush()
    return 0
