"""A worker's output, cut into jobs, on a real pipe."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_eval.processes.layout import NUMBER, READ_AT, STAMP_BYTES
from robust_eval.processes.output import TAIL_BYTES, Output

MARKER = b"#marker of tests"


class Pipe:
    """An `Output` and the end that a worker would write into."""

    def __init__(self) -> None:
        fd, self.end = os.pipe2(os.O_NONBLOCK)
        self.stamps = mmap.mmap(-1, STAMP_BYTES)
        self.output = Output(fd, MARKER, self.stamps)

    def write(self, data: bytes, job_id: int | None = None) -> None:
        """Write what a job prints, reading whenever the pipe is full, and its mark."""
        left = memoryview(data + (b"" if job_id is None else MARKER + NUMBER.pack(job_id)))
        while left.nbytes:
            try:
                left = left[os.write(self.end, left[:30_000]) :]
            except BlockingIOError:
                self.output.read()

    def close(self) -> None:
        os.close(self.end)
        self.output.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """One worker's pipe."""
    made = Pipe()
    yield made
    made.close()


@settings(max_examples=50, deadline=None)
@given(printed=st.lists(st.binary(max_size=200), min_size=1, max_size=6), reads=st.integers(0, 2))
def test_each_job_has_its_own_output(printed: list[bytes], reads: int):
    """However many jobs have printed before any of it was read."""
    pipe = Pipe()
    for job_id, data in enumerate(printed):
        pipe.write(data, job_id)
        for _ in range(reads):
            pipe.output.read()
    for job_id, data in enumerate(printed):
        assert pipe.output.take(job_id) == data.decode("utf-8", "backslashreplace")
    assert pipe.output.rest() == ""
    pipe.close()


@pytest.mark.parametrize("size", [TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1, 2 * TAIL_BYTES + 7, 20 * TAIL_BYTES])
def test_of_a_flood_the_end_is_kept(pipe: Pipe, size: int):
    """The last 64 KiB, and no more than a bounded buffer on the way."""
    data = (b"0123456789" * (size // 10 + 1))[:size]
    pipe.write(data, 1)
    assert len(pipe.output._buffer) <= 4 * TAIL_BYTES
    assert pipe.output.take(1) == data[-TAIL_BYTES:].decode()
    pipe.write(b"next", 2)
    assert pipe.output.take(2) == "next"


def test_the_rest_is_what_no_mark_has_ended(pipe: Pipe):
    """A worker that died had printed this."""
    pipe.write(b"done", 1)
    pipe.write(b"dying \xff")
    assert pipe.output.take(1) == "done"
    assert pipe.output.rest() == "dying \\xff"


def test_a_mark_that_never_came_gives_nothing(pipe: Pipe):
    """A job that replaced the pipe has no output, and its successor keeps its own."""
    assert pipe.output.take(1) == ""
    pipe.write(b"second", 2)
    assert pipe.output.take(2) == "second"


def test_a_flood_without_end_is_read_in_turns(pipe: Pipe):
    """One call reads a bounded number of times, whatever is written meanwhile."""
    reads = 0

    def read() -> bool:
        nonlocal reads
        reads += 1
        os.write(pipe.end, b"x" * 1000)
        return Output.read(pipe.output)

    pipe.output.read = read
    pipe.output.rest()
    assert reads == 64
    assert pipe.output.take(1) == ""
    assert reads == 128


def test_what_was_printed_at_the_start_is_nobody_s(pipe: Pipe):
    """It is dropped before the first job."""
    pipe.write(b"banner of a library")
    pipe.output.forget()
    pipe.write(b"first", 1)
    assert pipe.output.take(1) == "first"


def test_the_worker_learns_how_much_was_read(pipe: Pipe):
    """The shared page counts every byte."""
    pipe.write(b"12345")
    pipe.output.read()
    pipe.write(b"678", 1)
    pipe.output.take(1)
    assert NUMBER.unpack_from(pipe.stamps, READ_AT) == (8 + len(MARKER) + NUMBER.size,)


def test_the_log_of_a_job_is_complete(pipe: Pipe, tmp_path: Path):
    """Every byte of it, none of its marks and none of its neighbours."""
    flood = b"".join(b"%d\n" % number for number in range(60_000))
    pipe.write(b"before", 1)
    assert pipe.output.take(1) == "before"
    pipe.output.log_to(str(tmp_path / "2"))
    pipe.write(flood, 2)
    assert pipe.output.take(2) == flood[-TAIL_BYTES:].decode()
    pipe.output.log_to(str(tmp_path / "3"))
    pipe.write(b"third")
    assert pipe.output.rest() == "third"
    assert (tmp_path / "2").read_bytes() == flood
    assert (tmp_path / "3").read_bytes() == b"third"


def test_a_log_that_is_a_named_pipe_is_not_waited_for(pipe: Pipe, tmp_path: Path):
    """A job may have put one there: without a reader it cannot be opened, with an idle one it takes what fits."""
    os.mkfifo(tmp_path / "log")
    pipe.output.log_to(str(tmp_path / "log"))
    pipe.write(b"one", 1)
    assert pipe.output.take(1) == "one"
    reading = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    pipe.output.log_to(str(tmp_path / "log"))
    pipe.write(b"two" * 100_000, 2)
    assert pipe.output.take(2) == ("two" * 100_000)[-TAIL_BYTES:]
    os.close(reading)


def test_a_log_that_cannot_be_written_costs_no_output(pipe: Pipe, tmp_path: Path):
    """Neither a missing directory nor a full disk loses what the outcome carries."""
    pipe.output.log_to(str(tmp_path / "missing" / "1"))
    pipe.write(b"one", 1)
    assert pipe.output.take(1) == "one"
    pipe.output.log_to("/dev/full")
    pipe.write(b"two", 2)
    assert pipe.output.take(2) == "two"
    pipe.write(b"three", 3)
    assert pipe.output.take(3) == "three"
