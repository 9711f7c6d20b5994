"""The worker's loop: read a job, call the user's function, write what came of it.

It owns one process in a session of its own and knows nothing of limits: deadlines, memory and kills are the
supervisor's. What it must do is be honest about where it is: it stamps each job's begin into a page that it shares
with the supervisor, drops the job's objects before it reports, and reports what the job left behind.
"""

import faulthandler
import marshal
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress  # by name: a job may put something else in its module
from contextvars import copy_context
from time import monotonic, thread_time
from typing import Any, NoReturn

from robust_eval.errors import JobStop
from robust_eval.plain import is_plain
from robust_eval.processes import system, tree, wire
from robust_eval.processes.begun import note_begun, open_begun, take_path
from robust_eval.processes.blame import Unpicklable, blame, traceback_text
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.channels import Channels, high
from robust_eval.processes.heard import Calls
from robust_eval.processes.hygiene import LONG_S, Baseline, Builtins
from robust_eval.processes.layout import (
    BEGUN_AT,
    CHANNEL_LOST_CODE,
    DUMP_SIGNAL,
    LEDGER_BYTES,
    LEDGER_OVER,
    LOST_AT,
    MEASURED_S,
    STOP_AT,
    STOP_SIGNAL,
)
from robust_eval.processes.outbox import Outbox
from robust_eval.processes.parcel import (
    Memory,
    Parcel,
    Piece,
    discard,
    needs_proof,
    open_parcel,
    pack,
    pack_plain,
    unpack,
    view,
)
from robust_eval.processes.patience import Patience, looking_at
from robust_eval.processes.randomness import Randomness
from robust_eval.processes.residue import Garbage, remove_temporary_directory, temporary_directory
from robust_eval.processes.shelf import Shelf
from robust_eval.processes.streams import Printed, Streams

_FORK_S = 0.00003  # no interpreter makes a process in less; any other is found with the last job of a message
# Where in the page of numbers and instants
_BEGUN, _STOP = BEGUN_AT // 8, STOP_AT // 8
_FEW = 2  # jobs, of a millisecond or more each: nobody waits for the result of one until the next is over
_LONG_MESSAGE = 64  # jobs; what is done is told halfway, so that the next ones are there before the last is over
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_KINDS = {kind: index for index, kind in enumerate(wire.KINDS)}


class Worker:
    """One worker process. Also the context that the runner gets: `record` and `stop_requested`.

    Made before its process is forked, where there is a template: what is there already costs no worker a page.

    Args:
        channels: the way to the supervisor.
        ledger: of the attempts that began, shared by all workers.
        streams: become the standard streams.
        builtins: as they are before the first job.
        calls: as they were heard of since before the user's modules were loaded.
    """

    def __init__(
        self,
        channels: Channels,
        ledger: memoryview,
        streams: Streams,
        builtins: Builtins,
        calls: Calls | None,
    ) -> None:
        self._channels = channels
        self._claims = channels.claims
        self._inbox = wire.Inbox(channels.orders)
        self._patience = Patience(looking_at(channels.orders))
        self._claim = b""
        self._numbers, self._instants = channels.numbers, channels.instants
        self._outbox = Outbox(channels.claims, channels.far_end, channels.stamps, self._give_up)
        self._printed = Printed(streams, channels.output, channels.written_output())
        self._peak_bytes = 0
        self._ledger = ledger
        self._calls = calls
        self._birthmark = system.Birthmark()
        self._job_id = 0
        self._in_user_code = False
        self._clear_refs = -1
        self._begun_path, self._begun_log = take_path(), -1
        self._builtins = builtins
        self._baseline: Baseline | None = None
        self._garbage = Garbage()
        self._kept_directory: str | None = None
        self._streams = streams

    def take(self, fds: list[int]) -> None:
        """Be the worker of this process.

        Args:
            fds: inbox, outbox, the outbox's other end, output and stamps, in this order; moved to high numbers.
        """
        self._channels.take(fds)
        self._birthmark.renew()
        self._streams.take(self._channels.output)
        self._clear_refs = _open_clear_refs()  # before the initializer, which may become another user
        begun = open_begun(self._begun_path)
        self._begun_log = high(begun) if begun >= 0 else -1

    def serve(self, load: Callable[[], Bundle]) -> None:
        """Take the slot, then run jobs until the inbox ends or the worker must not begin another one.

        Args:
            load: makes the bundle; called when the worker takes its slot.
        """
        assigned = self._inbox.read()
        if not assigned or isinstance(assigned[0].payload, Memory):
            return
        settings = marshal.loads(assigned[0].payload)
        bundle = self._start(settings, load)
        if bundle is None:
            return
        tasks_left = settings["max_tasks_per_child"]
        self._shelf = Shelf(settings["shelf_bytes"] if tasks_left != 1 else 0, high)
        if tasks_left != 1:  # else there is no next job that could meet anything
            self._baseline = Baseline(self._builtins, self._calls)
            self._garbage.settle()
        self._helpers = tree.living_children()
        self._kept_directory = temporary_directory()
        self._reset_peak()
        self._peak_bytes = _peak_bytes()  # of the jobs that are too short to be measured
        self._printed.begin(settings["marker"])
        self._outbox.send(wire.READY)
        packets: list[wire.Packet] = []
        while packets := self._next_packets(len(packets)):
            half = len(packets) // 2 if len(packets) >= _LONG_MESSAGE else 0
            told = {half, len(packets)} if len(packets) > _FEW else range(1, len(packets) + 1)
            for index, packet in enumerate(packets, 1):
                if not self._may_begin(packet):
                    discard(packet.payload)
                    continue
                tasks_left = None if tasks_left is None else tasks_left - 1
                if not self._work(packet, bundle.runner, more=index not in told, last=tasks_left == 0):
                    return
            self._outbox.flush()

    def _next_packets(self, last: int) -> list[wire.Packet]:
        """What is sent next; empty at the end of the inbox.

        Args:
            last: how many jobs came at once. Where several do, others have work for this core.
        """
        try:
            return self._inbox.read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            if last == 1:
                self._patience.select(None)
            return self._inbox.read()

    def _may_begin(self, packet: wire.Packet) -> bool:
        """Take the claim of a job. False where the supervisor was first: another worker has the job.

        A claim of the other turn is that of a job which was sent later; it is kept for that.
        """
        claim = self._claim
        if not claim:
            try:
                claim = self._claims.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                self._give_up()
        if claim == wire.CLAIMS[packet.turn]:
            self._claim = b""
            return True
        if claim not in wire.CLAIMS:
            self._give_up()
        self._claim = claim
        return False

    def _start(self, settings: dict[str, Any], load: Callable[[], Bundle]) -> Bundle | None:
        """Environment, signals, seeds, function, initializer. None after a failure, which is reported."""
        if settings["env"]:  # what is not called costs a new process no page
            os.environ.update(settings["env"])
        stack = self._channels.stack
        faulthandler.enable(stack, all_threads=True)
        faulthandler.register(DUMP_SIGNAL, stack, all_threads=True, chain=True)
        system.set_handler(STOP_SIGNAL, self._on_stop)
        try:
            bundle = load()
            self._randomness = Randomness(settings["seed"])
            if bundle.initializer is not None:
                bundle.initializer(*bundle.initargs)
            self._end_in_a_child()
        except BaseException as error:  # noqa: BLE001 - the user's initializer and imports raise anything
            self._end_in_a_child()
            text = traceback_text(error, unwind=1)
            self.flush()
            self._outbox.send(wire.START_FAILED, text.encode(errors="backslashreplace"))
            return None
        self.flush()
        return bundle

    # -- one job

    def _work(self, packet: wire.Packet, runner: Callable[..., Any], *, more: bool, last: bool) -> bool:
        """Run one job and report it. False when the worker must not begin another one.

        Args:
            packet: the job.
            runner: runs it.
            more: whether others wait in this process, so that a small result may be held for a moment.
            last: whether the worker is replaced after this one.
        """
        job_id = self._job_id = packet.job_id
        begun_at = monotonic()
        self._instants[_BEGUN] = begun_at
        self._numbers[0] = job_id + 1
        attempt = packet.attempt
        self._ledger[job_id % LEDGER_BYTES] = attempt if attempt < LEDGER_OVER else LEDGER_OVER - 1
        if self._begun_log >= 0:
            note_begun(self._begun_log, job_id)
        self._garbage.begin()
        # In a context of its own: `decimal` and numpy keep there how they calculate.
        failure, parcel = copy_context().run(self._call, packet, runner)
        self._end_in_a_child()
        spent_s = monotonic() - begun_at
        if self._baseline is not None:
            self._garbage.collect(spent_s, thread_time)
        if self._outbox.is_written_by_others():
            self._give_up()
        flags = wire.PRINTED if self._printed.mark(job_id) else 0
        left = (not more or self._may_have_forked(spent_s)) and self._left_something()
        ended_at = monotonic()
        if ended_at - begun_at > MEASURED_S:
            self._peak_bytes = _peak_bytes()
        was_long = ended_at - begun_at > LONG_S
        # Orphans that this process no longer adopts are with the template, which ends them when this worker dies.
        left = left or (was_long and not system.adopts_orphans())
        leaving = last or (self._baseline is not None and self._baseline.is_changed(ended_at - begun_at))
        flags |= (wire.LEFTOVERS if left else 0) | (wire.LEAVING if leaving else 0)
        held = more and not (left or leaving)
        measures = begun_at, ended_at, self._peak_bytes
        self._outbox.report((flags, failure), parcel, job_id, measures, held=held)
        if left:
            _wait_for_the_end()
        if leaving:
            return False
        self._randomness.renew()
        if was_long:
            self._reset_peak()
        return True

    def _may_have_forked(self, spent_s: float) -> bool:
        """Whether a job that took so long can have made a process."""
        return spent_s > _FORK_S or self._calls is None or self._calls.made

    def _left_something(self) -> bool:
        """Whether a process of the job lives; a directory of its own is removed."""
        remove_temporary_directory(self._kept_directory)
        living = tree.living_children()
        return bool(living) and bool(living - self._helpers)

    def _end_in_a_child(self) -> None:
        """The user's code forked, and the child came back as well: there is one worker."""
        if not self._birthmark.is_here:
            os._exit(0)

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
            parcel = pack(result, store_large=self._store)
            proven = not needs_proof(parcel) or is_plain(result)
            del result
            if not proven:
                prove(parcel)
        except (JobStop, MemoryError):
            raise
        except BaseException as error:  # the user's __reduce__
            raise Unpicklable("result", error) from error
        return parcel

    def _store(self, pieces: list[Piece], size: int) -> Parcel:
        """Write a large result. The calls that it takes are none of the job's."""
        calls = self._calls
        if calls is None:
            return self._shelf.store(pieces, size)
        passing = calls.passing
        try:
            return self._shelf.store(pieces, size)
        finally:
            calls.passing = passing

    # -- the runner's context

    def record(self, value: Any) -> None:
        """Send an intermediate value to the driver now; it is kept even if the job is then killed."""
        self._outbox.send(wire.RECORD, pack_plain(value), self._job_id)

    def stop_requested(self) -> bool:
        """Whether the supervisor has asked this job to stop."""
        return bool(self._numbers[_STOP] == self._job_id + 1)

    def _on_stop(self, _number: int, _frame: object) -> None:
        if self._in_user_code and self.stop_requested():
            self._in_user_code = False
            raise JobStop

    # -- what goes out

    def _give_up(self) -> NoReturn:
        """End: the channel is not the worker's own any more."""
        self._channels.stamps[LOST_AT] = 1
        os._exit(CHANNEL_LOST_CODE)

    def flush(self) -> None:
        """Write out what Python has buffered of the job's output."""
        self._streams.flush()

    def _reset_peak(self) -> None:
        """Let the kernel begin a new peak of the resident size (proc(5), clear_refs)."""
        with suppress(OSError):
            os.write(self._clear_refs, b"5")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def _open_clear_refs() -> int:
    try:
        return high(os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        return -1


def prove(parcel: Parcel) -> None:
    """Unpickle a parcel once, so that a poisonous result fails here."""
    unpack(view(parcel))


def _wait_for_the_end() -> None:
    """Stay, so that what the job left behind stays below this process, until the supervisor kills both."""
    while True:
        signal.pause()


def open_ledger(fd: int) -> memoryview:
    """The ledger that lies in a memory file, whose descriptor is closed: no job finds a way to it."""
    ledger = system.map_for_good(fd, LEDGER_BYTES)
    os.close(fd)
    return ledger


def run_worker(worker: Worker, fds: list[int], load: Callable[[], Bundle]) -> int:
    """Be a worker until its inbox ends. Returns the exit code."""
    worker.take(fds)
    worker.serve(load)
    worker.flush()
    remove_temporary_directory(None)
    return 0
