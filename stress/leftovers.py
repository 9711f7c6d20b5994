"""What a run leaves behind: processes, descriptors, shared memory.

Every process of a pool inherits the driver's environment, so a mark there finds them all, whoever their parent is by
now. What a job starts with an empty environment is found below the driver while the pool lives, and by its note after.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MARK = "ROBUST_EVAL_STRESS"
_LASTING_S = 5.0
_STEP_S = 0.02
_WITHOUT_ENVIRONMENT = ["sleep", "3600"]  # how `leave_a_program` starts the one child that does not bear the mark


class Leftovers:
    """What there is now is nobody's fault; what is there later and was not, is.

    Args:
        notes: a file with the ids of processes that jobs started.
    """

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._mark = os.environ[MARK]
        self._children = set(psutil.Process().children(recursive=True))
        self._descriptors = open_descriptors()
        self._segments = _segments()

    def found(self) -> list[str]:
        """Each thing that is left, in words."""
        below = set(psutil.Process().children(recursive=True)) - self._children
        marked = {process for process in psutil.process_iter() if self._is_marked(process)}
        processes = {process for process in below | marked | self._noted() if process.pid != os.getpid()}
        descriptors = open_descriptors() - self._descriptors
        return [
            *(f"process {_named(process)}" for process in processes),
            *(f"descriptor {number}: {target}" for number, target in descriptors),
            *(f"shared memory {name}" for name in self._lasting_segments()),
        ]

    def _lasting_segments(self) -> set[str]:
        """Segments do not say whose they are: those of other programs come and go, what is left of ours stays."""
        found = _segments() - self._segments
        ends_at = time.monotonic() + _LASTING_S
        while found and time.monotonic() < ends_at:
            time.sleep(_STEP_S)  # nobody tells of a segment's end
            found &= _segments()
        return found - _in_use()

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark
        except psutil.Error:
            return False

    def _noted(self) -> set[psutil.Process]:
        """The noted processes without an environment. Ids are used again, so a living one proves nothing by itself."""
        found = set()
        for line in self._notes.read_text().split() if self._notes.exists() else ():
            try:
                process = psutil.Process(int(line))
                if process.cmdline() == _WITHOUT_ENVIRONMENT and not process.environ():
                    found.add(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def marked_environment() -> Iterator[None]:
    """Within the block, what this process starts is found again."""
    os.environ[MARK] = uuid.uuid4().hex
    try:
        yield
    finally:
        del os.environ[MARK]


def open_descriptors() -> set[tuple[str, str]]:
    """The descriptors of this process, each with what it refers to."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add((entry.name, str(entry.readlink())))
        except OSError:  # the descriptor that this very listing needs
            continue
    return {(number, target) for number, target in found if not target.endswith("/fd")}


def _segments() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def _in_use() -> set[str]:
    """The segments that a living process maps: not ours, since none of ours is left or it is found by itself."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            maps = (process / "maps").read_text(errors="replace")
        except OSError:
            continue
        found.update(line.rpartition("/dev/shm/")[2] for line in maps.splitlines() if "/dev/shm/" in line)
    return found


def _named(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid}, gone since"
