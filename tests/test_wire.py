"""Frames, reports and packets on real sockets, however the stream is cut and whatever it carries."""

import marshal
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import nothing_left

from robust_eval.processes import wire
from robust_eval.processes.layout import STAMP_BYTES
from robust_eval.processes.parcel import Memory, discard, open_parcel, store
from robust_eval.processes.stream import rest_of
from robust_eval.processes.wire import Frames, Packet, ProtocolError, Reports

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CUTS = st.lists(st.integers(1, 60), min_size=1, max_size=8)
HEADERS = st.builds(
    lambda kind, flags, failure, job_id, measures, payload: (
        wire.report_header(kind, flags, failure, len(payload), job_id, measures) + payload,
        (kind, flags | failure << 4, job_id, *measures, payload),
    ),
    st.integers(1, 4),
    st.sampled_from([0, wire.LEFTOVERS, wire.LEAVING | wire.PRINTED]),
    st.integers(0, 5),
    st.integers(0, 2**64 - 1),
    st.tuples(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(0, 2**60)),
    st.binary(max_size=100),
)


@contextmanager
def pair(kind: int = socket.SOCK_STREAM) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


def stamps() -> mmap.mmap:
    """The page that a worker would share."""
    return mmap.mmap(-1, STAMP_BYTES)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The data in pieces whose sizes are the cuts, again and again."""
    position = index = 0
    while position < len(data):
        size = cuts[index % len(cuts)]
        yield data[position : position + size]
        position, index = position + size, index + 1


def memory(content: bytes) -> Memory:
    parcel = store([content], len(content))
    assert isinstance(parcel, Memory)
    return parcel


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# -- driver <-> supervisor


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(PLAIN, max_size=5), cuts=CUTS)
def test_messages_arrive_whole_however_the_stream_is_cut(messages: list[Any], cuts: list[int]):
    """In order, each once, none before its last byte; then the end."""
    with pair() as (ours, theirs):
        frames, seen = Frames(theirs), []
        for piece in pieces(b"".join(map(wire.frame, messages)), cuts):
            ours.sendall(piece)
            assert frames.read()
            seen += frames.messages()
        assert seen == messages
        with pytest.raises(BlockingIOError):
            frames.read()
        ours.close()
        assert not frames.read()
        assert list(frames.messages()) == []


LARGE = [10, 70_000, 300_000, 5, 3_000_000, 65_536 - 16, 1]


@pytest.mark.parametrize("cut", [50_000, 65_536, 150_000])
def test_large_messages_arrive_whole(cut: int):
    """Among small ones, and whatever of them comes at once."""
    messages = [bytes([size % 251]) * size for size in LARGE]
    with pair() as (ours, theirs):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        frames, seen = Frames(theirs), []
        for piece in pieces(b"".join(map(wire.frame, messages)), [cut]):
            ours.sendall(piece)
            with suppress(BlockingIOError):
                while frames.read():
                    seen += frames.messages()
        assert seen == messages


def test_what_comes_while_a_message_is_looked_at_stays():
    """A reader may receive more before it takes the next message, also twice, and much of it."""
    with pair() as (ours, theirs):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        frames, seen = Frames(theirs), []
        sent = [b"first", b"x" * 70_000, b"y" * 70_000, b"last"]
        ours.sendall(b"".join(map(wire.frame, sent[:2])))
        assert frames.read()
        for message in frames.messages():
            seen.append(message)
            for another in sent[2:] if len(seen) == 1 else ():
                ours.sendall(wire.frame(another))
                assert frames.read()
        while len(seen) < len(sent):
            assert frames.read()
            seen += frames.messages()
        assert seen == sent


def test_what_is_left_of_a_message_begins_where_the_kernel_stopped():
    """Wherever that is among its pieces."""
    content = wire.pieces_of("a message")
    whole = b"".join(content)
    for sent in range(len(whole)):
        (rest,) = rest_of(content, sent)
        assert whole[:sent] + rest == whole


def test_what_was_not_taken_of_the_messages_stays():
    """A reader may stop after one message and go on later."""
    with pair() as (ours, theirs):
        frames = Frames(theirs)
        ours.sendall(wire.frame("first") + wire.frame("second") + wire.frame("third"))
        assert frames.read()
        messages = frames.messages()
        assert next(messages) == "first"
        messages.close()
        assert list(frames.messages()) == ["second", "third"]


def test_descriptors_arrive_in_the_order_of_their_messages():
    """Each parcel in memory meets its own descriptor, and those inline none."""
    with nothing_left(), pair() as (ours, theirs):
        frames, sent = Frames(theirs), [memory(b"a"), b"inline", memory(b"bc"), memory(b"def")]
        for parcels in (sent[:3], sent[3:]):
            fds: list[int] = []
            body = wire.frame([wire.portable(parcel, fds) for parcel in parcels])
            ours.sendmsg([body], wire.rights(fds))
        while len(frames.fds) < 3:
            assert frames.read()
        seen = [wire.unportable(value, frames.fds) for message in frames.messages() for value in message]
        assert [bytes(open_parcel(parcel)) for parcel in seen] == [b"a", b"inline", b"bc", b"def"]
        assert not frames.fds
        for parcel in sent:
            discard(parcel)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=40).map(lambda body: bytes(each for each in body if each & 0x7F not in b"([")))
def test_a_message_that_is_garbage_is_a_protocol_error(body: bytes):
    """Whatever stands in a frame is a value or a `ProtocolError`.

    Without the codes of tuples and lists: marshal makes room for as many items as they announce, up to 16 GiB.
    """
    with pair() as (ours, theirs):
        frames = Frames(theirs)
        ours.sendall(struct.pack("<Q", len(body)) + body)
        assert frames.read()
        try:
            (message,) = frames.messages()
        except ProtocolError:
            return
        assert marshal.dumps(message)


def test_a_frame_may_be_larger_than_four_gigabytes():
    """The length of a batch of large configurations has room in its header."""
    with pair() as (ours, theirs):
        frames = Frames(theirs)
        ours.sendall(struct.pack("<Q", 1 << 33) + b"x")
        assert frames.read()
        assert list(frames.messages()) == []


def test_no_descriptors_need_no_ancillary_data():
    """Other ancillary data and half descriptors are passed over."""
    assert wire.rights([]) == []
    number = struct.pack("i", 7)
    assert wire.descriptors([(socket.SOL_SOCKET, socket.SCM_RIGHTS, number + b"xx"), (0, 0, number)]) == [7]


# -- supervisor -> worker


def test_packets_arrive_in_messages():
    """Several inline, or one in memory; the end is empty, and an attempt beyond 255 is 255."""
    with nothing_left(), pair(socket.SOCK_SEQPACKET) as (ours, theirs):
        inbox = wire.Inbox(theirs)
        first, second = (wire.packet_header(wire.JOB, 3, 1, 5, job_id) + b"inner" for job_id in (77, 78))
        ours.send(first + second)
        parcel = memory(b"outer")
        header = wire.packet_header(wire.JOB_IN_MEMORY, 1000, 0, 5, 79)
        ours.sendmsg([header], wire.rights([parcel.fd]))
        assert inbox.read() == [Packet(wire.JOB, 3, 1, 77, b"inner"), Packet(wire.JOB, 3, 1, 78, b"inner")]
        (packet,) = inbox.read()
        assert packet[:4] == (wire.JOB, 255, 0, 79)
        assert bytes(open_parcel(packet.payload)) == b"outer"
        with pytest.raises(BlockingIOError):
            inbox.read()
        ours.close()
        assert inbox.read() == []
        discard(parcel)


# -- worker -> supervisor


@settings(max_examples=60, deadline=None)
@given(reports=st.lists(HEADERS, max_size=5), cuts=CUTS)
def test_reports_arrive_whole_however_the_stream_is_cut(reports: list[Any], cuts: list[int]):
    """In order and each once, with all that their headers say."""
    with pair() as (ours, theirs):
        reader, seen = Reports(theirs, stamps()), []
        for piece in pieces(b"".join(data for data, _ in reports), cuts):
            ours.sendall(piece)
            assert reader.read()
            seen += reader.reports()
        assert [tuple(report) for report in seen] == [said for _, said in reports]
        assert all(report.failure_kind == wire.KINDS[report.flags >> 4] for report in seen)
        ours.close()
        assert not reader.read()


@settings(max_examples=200, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=300), cuts=CUTS, good=st.booleans())
def test_garbage_is_a_protocol_error_and_nothing_else(garbage: bytes, cuts: list[int], good: bool):
    """It is noticed with the first header that is wrong, and what came before it is delivered."""
    with pair() as (ours, theirs):
        reader, seen = Reports(theirs, stamps()), 0
        data = wire.report_header(wire.READY, 0, 0, 0, 0, (0.0, 0.0, 0)) * good + garbage
        try:
            for piece in pieces(data, cuts):
                ours.sendall(piece)
                reader.read()
                for _ in reader.reports():
                    seen += 1
        except ProtocolError:
            pass
        else:
            assert len(garbage) < wire.HEADER_BYTES or garbage.startswith(b"\xed\x5e")
        assert seen >= good


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (wire.report_header(0, 0, 0, 0, 0, (0.0, 0.0, 0)), "where a report was due"),
        (wire.report_header(9, 0, 0, 0, 0, (0.0, 0.0, 0)), "where a report was due"),
        (wire.report_header(wire.RESULT, 0, len(wire.KINDS), 0, 0, (0.0, 0.0, 0)), "where a report was due"),
        (wire.report_header(wire.RESULT, wire.IN_MEMORY, 0, 9, 0, (0.0, 0.0, 0)), "sent none"),
        (wire.report_header(wire.RESULT, 0, 0, 2**32 - 1, 0, (0.0, 0.0, 0)), "announced 4294967295 bytes"),
        (wire.report_header(wire.RESULT, 0, 0, 2**28 + 1, 0, (0.0, 0.0, 0)), "announced 268435457 bytes"),
    ],
)
def test_a_header_that_lies_is_refused_at_once(header: bytes, said: str):
    """No size is waited for that no worker of ours announces, so nothing gathers without bound."""
    with pair() as (ours, theirs):
        reader = Reports(theirs, stamps())
        ours.sendall(header)
        reader.read()
        with pytest.raises(ProtocolError, match=said):
            list(reader.reports())


def test_only_a_result_may_lie_in_memory():
    """A descriptor that comes with anything else is refused, and closed with the channel."""
    with nothing_left(), pair() as (ours, theirs):
        reader, parcel = Reports(theirs, stamps()), memory(b"record")
        header = wire.report_header(wire.RECORD, wire.IN_MEMORY, 0, 6, 0, (0.0, 0.0, 0))
        ours.sendmsg([header], wire.rights([parcel.fd]))
        discard(parcel)
        assert reader.read()
        with pytest.raises(ProtocolError, match="sent none"):
            list(reader.reports())
        (taken,) = reader._fds
        reader.close()
        assert not is_open(taken)


def test_a_result_in_memory_carries_its_descriptor():
    """Between two reports inline, each has its own payload."""
    with nothing_left(), pair() as (ours, theirs):
        reader, parcel = Reports(theirs, stamps()), memory(b"large")
        measures = (1.0, 2.0, 3)
        inline = wire.report_header(wire.RESULT, 0, 0, 5, 1, measures) + b"small"
        ours.sendall(inline)
        ours.sendmsg([wire.report_header(wire.RESULT, wire.IN_MEMORY, 0, 5, 2, measures)], wire.rights([parcel.fd]))
        ours.sendall(inline)
        ours.close()
        seen = []
        while reader.read():
            seen += reader.reports()
        assert [bytes(open_parcel(report.payload)) for report in seen] == [b"small", b"large", b"small"]
        assert [report.job_id for report in seen] == [1, 2, 1]
        assert seen[1].failure_kind is None
        discard(parcel)
        reader.close()


@pytest.mark.parametrize("cut", [50_000, 65_536, 150_000])
def test_large_reports_arrive_whole(cut: int):
    """As messages do."""
    payloads = [bytes([size % 251]) * size for size in LARGE]
    measures = (1.0, 2.0, 3)
    data = [wire.report_header(wire.RESULT, 0, 0, len(each), 1, measures) + each for each in payloads]
    with pair() as (ours, theirs):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        reader, seen = Reports(theirs, stamps()), []
        for piece in pieces(b"".join(data), [cut]):
            ours.sendall(piece)
            with suppress(BlockingIOError):
                while reader.read():
                    seen += [report.payload for report in reader.reports()]
        assert seen == payloads


def test_half_a_report_at_the_end_is_no_report():
    """A worker that dies while it writes has not reported."""
    with pair() as (ours, theirs):
        reader = Reports(theirs, stamps())
        ours.sendall((wire.report_header(wire.RESULT, 0, 0, 100, 1, (1.0, 2.0, 3)) + bytes(100))[:-1])
        ours.close()
        assert reader.read()
        assert list(reader.reports()) == []
        assert not reader.read()
        assert list(reader.reports()) == []
