"""The supervisor's end of one worker: real sockets, real pages, real processes."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Self

import pytest
from children import end_of
from waiting import nothing_left

from robust_eval.processes import system, wire
from robust_eval.processes.layout import BEGUN_AT, INSTANT, LOST_AT, NUMBER, STAMP_BYTES, STOP_AT
from robust_eval.processes.parcel import Memory, discard, open_parcel, store
from robust_eval.processes.port import ExitInfo, Port

INBOX, OUTBOX, OUTPUT, PAGE = 0, 1, 3, 4


@pytest.fixture
def port() -> Iterator[Port]:
    """One worker's port; nothing of it is left open."""
    with nothing_left():
        made = Port(7)
        yield made
        made.close()


def memory(content: bytes) -> Memory:
    parcel = store([content], len(content))
    assert isinstance(parcel, Memory)
    return parcel


def fork(port: Port) -> int:
    """A process for the port, which waits for signals."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    port.pid = pid
    port.exit_fd = system.watch_exit(pid)
    return pid


class Taker:
    """A worker's ends: it reads messages and takes claims."""

    def __init__(self, port: Port) -> None:
        self._sock = socket.socket(fileno=os.dup(port.child_fds[INBOX]))
        self._outbox = socket.socket(fileno=os.dup(port.child_fds[OUTBOX]))
        self.inbox = wire.Inbox(self._sock)

    def claim(self) -> bytes:
        try:
            return self._outbox.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        self._outbox.close()


def test_what_the_worker_has_not_begun_can_be_taken_back(port: Port):
    """Exactly that, in order, read or not: what it has the claim of is its own; later claims are of another kind."""
    parcel = memory(b"large")
    with Taker(port) as taker:
        port.assign(b"settings")
        for job_id in range(3):
            assert port.send(1, job_id, b"payload") == []
        assert port.send(2, 3, parcel) == []
        discard(parcel)
        (assigned,) = taker.inbox.read()
        assert (assigned.kind, assigned.payload) == (wire.ASSIGN, b"settings")
        packets = taker.inbox.read()
        assert [(packet.kind, packet.job_id, packet.payload) for packet in packets] == [
            (wire.JOB, job_id, b"payload") for job_id in range(3)
        ]
        assert taker.claim() == wire.CLAIMS[packets[0].turn]
        assert port.take_back() == [1, 2, 3]
        assert port.take_back() == []
        assert taker.claim() == b""
        assert port.send(1, 9, b"later") == []
        assert port._next
        assert port.flush() == []
        assert not port._next
        (large,) = taker.inbox.read()
        discard(large.payload)
        (later,) = taker.inbox.read()
        assert taker.claim() == wire.CLAIMS[later.turn] != wire.CLAIMS[large.turn]


def test_what_was_reported_is_not_taken_back(port: Port):
    """The worker had its claim, and a report of another job than the next one changes nothing."""
    with Taker(port) as taker:
        port.send(1, 1, b"payload")
        port.send(1, 2, b"payload")
        port.flush()
        taker.claim()
        port.heard(2)
        port.heard(1)
        assert port.take_back() == [2]


def test_what_was_never_sent_comes_back_too(port: Port):
    """The jobs of the next message."""
    port.send(1, 1, b"payload")
    port.flush()
    port.send(1, 2, b"payload")
    assert port.take_back() == [1, 2]
    assert port.flush() == []


def test_an_assignment_is_no_job(port: Port):
    """Taken back from a worker that never started, it is dropped."""
    port.assign(b"settings")
    assert port.take_back() == []


def test_a_large_payload_changes_hands(port: Port):
    """The worker gets a descriptor of its own."""
    parcel = memory(b"large")
    with Taker(port) as taker:
        assert port.send(2, 3, parcel) == []
        discard(parcel)
        (packet,) = taker.inbox.read()
        assert bytes(open_parcel(packet.payload)) == b"large"


def test_a_full_inbox_says_so(port: Port):
    """Nothing waits, what was accepted is all there, and what was not has no claim."""
    accepted = 0
    while not port.send(1, accepted, bytes(wire.PACKET_BYTES)):
        accepted += 1
    assert accepted > 8
    assert port.take_back() == [*range(accepted - 1), accepted]
    with Taker(port) as taker:
        assert taker.claim() == b""


def test_rubbish_among_the_claims_is_none(port: Port):
    """What a job has put there is not counted, and where it left no room the worker finds out."""
    port.send(1, 1, b"payload")
    port.flush()
    with contextlib.suppress(BlockingIOError):
        while True:
            port.outbox.send(bytes(1 << 16), socket.MSG_DONTWAIT)
    port.send(1, 2, b"payload")
    assert port.flush() == []
    with Taker(port) as taker:
        assert [packet.job_id for _ in range(2) for packet in taker.inbox.read()] == [1, 2]
        assert port.take_back() == [2]
        assert taker.claim() == b"\0"


def test_an_inbox_that_a_job_has_shut_takes_nothing(port: Port):
    """Its worker's death will tell; here it is no error, and what was sent was not begun."""
    with socket.socket(fileno=os.dup(port.child_fds[INBOX])) as inbox:
        inbox.shutdown(socket.SHUT_RDWR)
    port.send(1, 1, b"payload")
    assert port.flush() == []
    assert port.take_back() == [1]


def test_claims_of_a_channel_that_a_job_has_shut_are_gone(port: Port):
    """The worker finds none, and its death will tell."""
    with socket.socket(fileno=os.dup(port.child_fds[OUTBOX])) as outbox:
        outbox.shutdown(socket.SHUT_RDWR)
    port.send(1, 1, b"payload")
    assert port.flush() == []
    assert port.take_back() == []


def test_a_packet_that_is_too_large_is_a_bug(port: Port):
    """It raises instead of disappearing."""
    port.send(1, 1, bytes(1 << 23))
    with pytest.raises(OSError, match="too long"):
        port.flush()


def test_the_stamp_tells_what_was_begun_and_when(port: Port):
    """None before the first job; numbers from zero."""
    assert port.stamp() is None
    page = port._stamps
    INSTANT.pack_into(page, BEGUN_AT, 12.5)
    NUMBER.pack_into(page, 0, 1)
    assert port.stamp() == (0, 12.5)
    port.ask_to_stop(0)
    assert NUMBER.unpack_from(page, STOP_AT) == (1,)


def test_signals_reach_the_very_process(port: Port):
    """None before there is one, and none that is gone."""
    port.signal(signal.SIGKILL)
    pid = fork(port)
    port.signal(signal.SIGTERM)
    assert end_of(pid) == -signal.SIGTERM
    port.signal(signal.SIGKILL)


def test_without_pidfds_the_number_must_do(port: Port, monkeypatch: pytest.MonkeyPatch):
    """The way of macOS."""
    pid = fork(port)
    monkeypatch.setattr(system, "LINUX", False)
    port.signal(signal.SIGTERM)
    assert end_of(pid) == -signal.SIGTERM
    port.signal(signal.SIGTERM)


def test_an_exit_is_told_in_full(port: Port):
    """Its code, the stack in the page, what was printed, and that the channel was lost."""
    os.write(port.child_fds[OUTPUT], b"last words")
    os.pwrite(port.child_fds[PAGE], b"File x, line 1\n\xff", STAMP_BYTES)
    port._stamps[LOST_AT] = 1
    port.peak_bytes = 5
    info = port.exit_info(3 << 8, dumped=True, oom_killed=False)
    assert info == ExitInfo(
        None, 3, "File x, line 1\n\\xff", None, "last words", 5, oom_killed=False, channel_lost=True
    )


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 3, f"signal {signal.SIGRTMIN + 3}")]
)
def test_a_death_by_signal_is_told_by_name(port: Port, number: int, name: str):
    """Real-time signals have only numbers; a stack that was asked for and is not there has a reason."""
    info = port.exit_info(int(number), dumped=True, oom_killed=True)
    assert (info.signal, info.exit_code, info.stack, info.oom_killed) == (name, None, None, True)
    assert "signal is masked" in str(info.stack_missing)
    assert port.exit_info(9, dumped=False, oom_killed=False).stack_missing is None


def test_nothing_of_a_port_stays_open_whoever_has_the_other_ends():
    """Before the template got them, and after."""
    with nothing_left():
        Port(1).close()
        port = Port(2)
        fork(port)
        for fd in port.child_fds:
            os.close(fd)
        port.child_fds = []
        port.signal(signal.SIGKILL)
        assert port.pid is not None
        end_of(port.pid)
        port.close()
