"""What a fork copies at once. Each test is in a child of its own, which is the template."""

import array
import ctypes
import errno
import mmap
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import in_child

from robust_eval import RobustExecutor
from robust_eval.processes import copies, system
from robust_eval.processes.copies import Copies

PAGES = 64
pytestmark = pytest.mark.skipif(not copies._is_let_in(), reason="this machine has no io_uring")


class Memory:
    """Pages of this process's own, as those on its heap are."""

    def __init__(self, size: int = PAGES * mmap.PAGESIZE) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.begin = system.address_of(self.map)

    def write(self, *pages: int) -> None:
        for page in pages:
            self.map[page * mmap.PAGESIZE] = 1

    def own(self) -> list[int]:
        """Which of the pages are this process's alone."""
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        area = self.begin, self.begin + len(self.map), False
        pages = copies._pages(area, pagemap, copies._PRESENT | copies._EXCLUSIVE)
        os.close(pagemap)
        return [(page - self.begin) // mmap.PAGESIZE for page in pages]


def work(template: Copies, memory: Memory, *pages: int) -> None:
    """A worker that writes these pages, and the template that hears of it."""

    def do() -> None:
        memory.write(*pages)
        template.leave()
        template.tell()

    in_child(do)
    template.hear()


def in_template(test: Callable[[Copies, Memory], Any], lists: int = 1) -> Any:
    """What the test gives of a template that has memory."""

    def run() -> Any:
        memory = Memory()
        memory.write(*range(PAGES))
        return test(Copies(lists), memory)

    return in_child(run)


def test_what_workers_have_written_the_next_ones_have_at_once():
    """What one of them wrote alone, the next ones still share."""

    def test(template: Copies, memory: Memory) -> list[list[int]]:
        work(template, memory, 1, 2, 3, 9)
        before = in_child(memory.own)
        work(template, memory, 2, 3, 9, 20)
        return [before, in_child(memory.own)]

    assert in_template(test, lists=2) == [[], [2, 3, 9]]


def test_what_is_copied_is_a_worker_s_own():
    """Neither the template nor the next worker sees what one writes there."""

    def test(template: Copies, memory: Memory) -> list[Any]:
        work(template, memory, 5)

        def write() -> int:
            memory.map[5 * mmap.PAGESIZE] = 7
            return memory.map[5 * mmap.PAGESIZE]

        return [in_child(write), memory.map[5 * mmap.PAGESIZE], in_child(lambda: memory.map[5 * mmap.PAGESIZE])]

    assert in_template(test) == [7, 1, 1]


def test_where_workers_live_long_nothing_is_learned():
    """Nor said: there is no channel for it."""

    def test(template: Copies, memory: Memory) -> list[Any]:
        work(template, memory, 5)
        return [in_child(memory.own), template._ours, template._theirs, template._ring]

    assert in_template(test, lists=0) == [[], -1, -1, -1]


def test_rubbish_of_a_job_pins_nothing():
    """What is no page of the template's is left out, and half a number is none."""

    def test(template: Copies, memory: Memory) -> list[int]:
        os.write(template._theirs, array.array("Q", [3, memory.begin + 1, 1 << 63]).tobytes() + b"rub")
        template.hear()
        return in_child(memory.own)

    assert in_template(test) == []


def test_a_job_may_have_a_file_in_the_place_of_the_channel(tmp_path):
    """Who closes all descriptors and opens a file finds in it what it wrote; who only closes them tells nothing."""

    def test(template: Copies, memory: Memory) -> list[Any]:
        def take_it() -> None:
            os.dup2(os.open(tmp_path / "mine", os.O_CREAT | os.O_WRONLY), template._theirs)
            template.tell()

        def close_it() -> None:
            os.close(template._theirs)
            template.tell()

        in_child(take_it)
        in_child(close_it)
        template.hear()
        return [template._lists_due, (tmp_path / "mine").read_bytes()]

    assert in_template(test) == [1, b""]


def _killed(*_: Any) -> int:
    os.kill(os.getpid(), signal.SIGSYS)
    return 0


def _refused(*_: Any) -> int:
    raise PermissionError(errno.EPERM, "no io_uring in this sandbox")


@pytest.mark.parametrize("kernel", [_killed, _refused])
def test_a_sandbox_without_io_uring_changes_nothing(kernel, monkeypatch):
    """Whether it refuses or kills."""
    monkeypatch.setattr(system, "call_kernel", kernel)

    def test(template: Copies, memory: Memory) -> list[Any]:
        work(template, memory, 5)
        template.leave()
        return [template._ring, in_child(memory.own)]

    assert in_template(test) == [-1, []]


def test_pages_of_files_are_left_out_where_the_kernel_takes_none(monkeypatch):
    """Kernels of old refuse them all for one of those."""
    registered: list[list[int]] = []

    def refuse_the_first(_: int, pages: list[int]) -> None:
        registered.append(pages)
        if len(registered) == 1:
            raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(copies, "_register", refuse_the_first)

    def test(template: Copies, memory: Memory) -> list[Any]:
        with Path("/proc/self/exe").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 4 * mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        mapped[0] = 1
        address = system.address_of(mapped)

        def do() -> None:
            mapped[0] = 2
            memory.write(5)
            template.tell()

        in_child(do)
        template.hear()
        mine = memory.begin + 5 * mmap.PAGESIZE
        return [[page in pages for page in (address, mine)] for pages in registered]

    assert in_template(test) == [[True, True], [False, True]]


def test_huge_pages_are_left_alone():
    """A fork would copy the whole of each, for a page of it."""

    def test() -> list[int]:
        size = 1 << 21
        memory = Memory(2 * size)
        memory.map.madvise(mmap.MADV_HUGEPAGE)
        memory.write(*range(len(memory.map) // mmap.PAGESIZE))
        inside = range(memory.begin, memory.begin + len(memory.map))
        return [
            sum(page in inside for pages, _ in copies._own_pages(path, copies._PRESENT) for page in pages)
            for path in ("/proc/self/maps", "/proc/self/smaps")
        ]

    known, left = in_child(test)
    there = "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert known == (1 << 22) // mmap.PAGESIZE
    assert left == (0 if there else known)


def test_a_look_is_bounded():
    """The largest areas are not looked through."""

    def test() -> list[bool]:
        memory = Memory(copies._MOST_LOOKED_AT_BYTES)
        memory.write(0)
        begins = [begin for begin, _, _ in copies._areas("/proc/self/maps")]
        return [memory.begin in begins, bool(begins)]

    assert in_child(test) == [False, True]


def test_side_by_side_is_one():
    """The kernel takes so many buffers and no more."""
    size = mmap.PAGESIZE
    assert copies._runs([5 * size, size, 2 * size]) == [(size, 2 * size), (5 * size, size)]
    assert ctypes.sizeof(ctypes.c_void_p) == copies._BUFFER.size // 2


@pytest.mark.unmeasured
def test_fresh_processes_copy_few_pages_one_by_one():
    """Once two of them have told which they write."""

    def faults(_: int) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    with RobustExecutor(1, max_tasks_per_child=1) as executor:
        counts = list(executor.map(faults, range(12)))
    assert counts[-1] < counts[0] / 2, counts
