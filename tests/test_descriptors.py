"""Large payloads where few files may be open: the kernel lets few descriptors be under way then, and drops some."""

import ctypes
import errno
import os
import resource
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from children import in_child
from waiting import PATIENCE_S, nothing_left

from robust_eval import Evaluator, RobustExecutor
from robust_eval.processes import outbox as outbox_module
from robust_eval.processes import wire
from robust_eval.processes.link import DriverLink
from robust_eval.processes.outbox import Outbox
from robust_eval.processes.parcel import INLINE_BYTES, Memory, discard, store
from robust_eval.processes.stream import MOST_DESCRIPTORS, UnderWay

LARGE = INLINE_BYTES + 5000
LIMIT = 200
_CAPABILITIES_3 = 0x20080522


def with_few_descriptors() -> None:
    """This process may open few files, and has no privilege to have more on their way."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


def answer(job: Any) -> dict[str, Any]:
    return {"objective": len(job["payload"]), "metadata": {"payload": job["payload"]}}


def test_many_large_payloads_pass_where_few_files_may_be_open():
    """There and back, also while the driver computes in C and reads none: nothing is lost, and nobody is blamed."""

    def evaluate() -> object:
        with_few_descriptors()
        numbers = [(7 * number) % 1_000_003 for number in range(1_000_003)]
        kwargs = {"num_workers": 2, "job_timeout": PATIENCE_S}
        with nothing_left(), Evaluator.create(answer, "process", kwargs) as evaluator:
            evaluator.submit([{"payload": bytes(LARGE)} for _ in range(400)])
            numbers.sort()  # in one call of C code: nothing is received meanwhile
            jobs = evaluator.gather("ALL")
            return [(job.objective, job.failure) for job in jobs]

    assert in_child(evaluate) == [(LARGE, None)] * 400


def test_many_large_calls_pass_where_few_files_may_be_open():
    """The same through the executor."""

    def call() -> object:
        with_few_descriptors()
        with nothing_left(), RobustExecutor(2) as executor:
            return [len(each) for each in executor.map(bytes, [bytearray(LARGE)] * 300)]

    assert in_child(call) == [LARGE] * 300


@pytest.mark.parametrize(("limit", "most"), [(4, 2), (200, 25), (1024, MOST_DESCRIPTORS), (1 << 20, MOST_DESCRIPTORS)])
def test_what_is_under_way_is_bounded_by_what_may_be_open(limit: int, most: int):
    """An eighth of it, and no more than one message carries."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert UnderWay(ours, limit).most == most


def test_there_is_room_again_once_all_was_received():
    """However much that was; not while a byte of it lies in the channel, and not where the channel is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            under_way = UnderWay(ours, 32)
            assert under_way.has_room(3)
            assert not under_way.has_room(4)
            ours.sendall(b"four descriptors, in two pieces")
            under_way.add(4)
            assert not under_way.has_room(0)
            theirs.recv(10)
            assert not under_way.has_room(0)
            theirs.recv(100)
            assert under_way.has_room(3)
            under_way.add(4)
        assert not under_way.has_room(0)


def test_an_outcome_travels_inline_while_the_driver_reads_none():
    """Large ones go by descriptor all the same, in messages that a reader can take."""
    ours, theirs = socket.socketpair()
    with nothing_left(), ours, theirs:
        link = DriverLink(ours)
        link.under_way = UnderWay(ours, 16)  # two
        sizes = [LARGE, LARGE, LARGE, 2 << 20, 2 << 20, 2 << 20]
        for number, size in enumerate(sizes):
            parcel = store([bytes([number]) * size], size)
            assert isinstance(parcel, Memory)
            if link.full:
                link.flush()
            shown = link.portable(parcel)
            link.done.append((number, shown))
        link.flush()
        frames = wire.Frames(theirs)
        seen: list[tuple[int, int, bool]] = []
        while len(seen) < len(sizes):
            link.drain()
            assert frames.read()
            for message in frames.messages():
                assert len(frames.fds) <= 3
                for number, shown in message[1]:
                    is_file = type(shown) is int
                    seen.append((number, shown if is_file else len(shown), is_file))
                    if is_file:
                        discard(wire.unportable(shown, frames.fds))
        assert [size for _, size, _ in seen] == sizes
        assert [is_file for _, _, is_file in seen] == [True, True, False, True, True, True]
        assert not link.blocked


class Crowded:
    """A socket whose kernel refuses descriptors for a while."""

    def __init__(self, refusals: float) -> None:
        self.refusals = refusals
        self.sent: list[list[bytes]] = []

    def sendmsg(self, pieces: list[bytes], _rights: object) -> int:
        if self.refusals > 0:
            self.refusals -= 1
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        self.sent.append(pieces)
        return sum(map(len, pieces))


def test_a_worker_waits_for_room_for_its_descriptor(monkeypatch: pytest.MonkeyPatch):
    """Others are received in a moment. Where none are for long, it gives up."""
    patient = SimpleNamespace(_sock=Crowded(3))
    assert Outbox._send_first(patient, [b"abc", b"d"], []) == 4
    monkeypatch.setattr(outbox_module, "_CROWDED_S", 0.0)
    with pytest.raises(OSError, match=os.strerror(errno.ETOOMANYREFS)):
        Outbox._send_first(SimpleNamespace(_sock=Crowded(float("inf"))), [b"abc"], [])
