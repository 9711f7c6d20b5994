"""Memory files are used again, and never while anybody can still see what is in them."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import in_child
from waiting import wait_until

from robust_eval.processes import shelf as shelf_module
from robust_eval.processes.parcel import Memory, discard, open_parcel, pack, unpack, view
from robust_eval.processes.shelf import Shelf
from robust_eval.processes.system import LINUX

pytestmark = pytest.mark.skipif(not LINUX, reason="only Linux has memfd")

MIB = 2**20
FIRST, SECOND = b"1" * (2 * MIB), b"2" * (2 * MIB)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    """One that keeps up to 8 MiB."""
    kept = Shelf(8 * MIB)
    yield kept
    kept.close()


def put(shelf: Shelf, content: bytes) -> Memory:
    """Store this."""
    parcel = shelf.store([content[:10], memoryview(content)[10:]], len(content))
    assert isinstance(parcel, Memory)
    return parcel


def file_of(memory: Memory) -> int:
    """Which file it is."""
    return os.fstat(memory.fd).st_ino


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_that_nobody_has_is_written_again(shelf: Shelf):
    """Its content is the new one, also where that is smaller or larger."""
    parcel = put(shelf, FIRST)
    number = file_of(parcel)
    assert bytes(open_parcel(parcel)) == FIRST
    for content in (SECOND, SECOND[:MIB], FIRST + SECOND):
        parcel = put(shelf, content)
        assert file_of(parcel) == number
        assert bytes(open_parcel(parcel)) == content


def as_descriptor(memory: Memory) -> Callable[[], object]:
    return lambda: discard(memory)


def as_mapping(memory: Memory) -> Callable[[], object]:
    content = [open_parcel(memory)]
    return content.clear


def as_mapping_of_a_fork(memory: Memory) -> Callable[[], object]:
    content = open_parcel(memory)
    ends, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        os.read(ends, 1)
        os._exit(int(content[0] != FIRST[0]))
    del content
    os.close(ends)

    def end() -> None:
        os.close(told)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    return end


def as_message(memory: Memory) -> Callable[[], object]:
    here, there = socket.socketpair()
    socket.send_fds(here, [b"x"], [memory.fd])
    discard(memory)

    def end() -> None:
        here.close()
        there.close()

    return end


@pytest.mark.parametrize("hold", [as_descriptor, as_mapping, as_mapping_of_a_fork, as_message])
def test_what_anybody_has_is_left_alone(shelf: Shelf, hold: Callable[[Memory], Callable[[], object]]):
    """A descriptor, a mapping alone, one of a forked child, a message on its way: each keeps the file as it is."""
    first = put(shelf, FIRST)
    number = file_of(first)
    (kept,) = shelf._kept
    let_go = hold(first)
    second = put(shelf, SECOND)
    assert file_of(second) != number
    assert not is_free(kept)
    let_go()
    discard(second)
    wait_until(lambda: is_free(kept))  # the kernel closes what a process or a message had a moment later


def is_free(kept: shelf_module._Kept) -> bool:
    """Whether the shelf would use the file again."""
    fd = shelf_module._open_alone(kept)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def test_nothing_but_the_shelf_writes_the_file(shelf: Shelf):
    """Its receiver can only read it, and what is kept here can neither: a job may write into all it finds."""
    parcel = put(shelf, FIRST)
    number = file_of(parcel)
    for name in list(Path("/proc/self/fd").iterdir()):
        fd = int(name.name)
        try:
            same = os.fstat(fd).st_ino == number
        except OSError:
            continue
        if same:
            with pytest.raises(OSError, match=r"Bad file descriptor|Operation not permitted"):
                os.pwrite(fd, b"garbage", 0)
    assert bytes(open_parcel(parcel)) == FIRST


def test_what_is_kept_is_bounded(shelf: Shelf):
    """By its size and by number, whether anybody has the files or not; larger ones are not kept."""
    before = descriptors()
    parcels = [put(shelf, FIRST) for _ in range(20)]
    assert descriptors() - before <= 20 + 4
    assert all(bytes(open_parcel(parcel)) == FIRST for parcel in parcels)
    discard(put(shelf, bytes(9 * MIB)))
    assert descriptors() - before <= 4
    shelf.close()
    assert descriptors() == before
    discard(put(shelf, FIRST))
    assert descriptors() == before


def test_a_job_that_closed_the_descriptor_and_opened_its_own_file_keeps_it(shelf: Shelf, tmp_path: Path):
    """Whatever has the number now is neither written nor closed."""

    def test() -> tuple[bool, bytes]:
        mine = Shelf(8 * MIB)
        discard(put(mine, FIRST))
        (kept,) = mine._kept
        path = tmp_path / "mine"
        path.write_bytes(b"mine")
        fd = os.open(path, os.O_RDWR)
        os.dup2(fd, kept.fd)
        os.close(fd)
        discard(put(mine, SECOND))
        mine.close()
        return os.fstat(kept.fd).st_ino == path.stat().st_ino, path.read_bytes()

    assert in_child(test) == (True, b"mine")


def test_a_write_that_fails_leaves_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch):
    """No descriptor stays, and the error is the caller's."""
    before = descriptors()
    discard(put(shelf, FIRST))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf_module, "write", full)
    with pytest.raises(OSError, match="No space left"):
        shelf.store([SECOND], len(SECOND))
    assert descriptors() == before


@pytest.mark.parametrize("which", [os.O_RDONLY, shelf_module._NAME_ONLY])
def test_without_another_description_the_file_is_the_receivers_alone(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, which: int
):
    """Where /proc is hidden or no descriptor is free; nothing is kept then, and nothing is lost."""
    there = shelf_module._open

    def without(fd: int, flags: int) -> int:
        if flags == which:
            raise OSError(2, "No such file or directory")
        return there(fd, flags)

    monkeypatch.setattr(shelf_module, "_open", without)
    before = descriptors()
    assert bytes(open_parcel(put(shelf, FIRST))) == FIRST
    assert descriptors() == before


def test_a_pickle_goes_by_it(shelf: Shelf):
    """What is large lies in a kept file; what is small does not."""
    assert isinstance(pack([1], store_large=shelf.store), bytes)
    for value in (FIRST, SECOND):
        parcel = pack(value, store_large=shelf.store)
        assert isinstance(parcel, Memory)
        assert unpack(view(parcel)) == value
        discard(parcel)
    assert len(shelf._kept) == 1
