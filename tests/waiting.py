"""Waiting for a condition, with a deadline, and looking for what is left."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PATIENCE_S = 20.0
FOREIGN_S = 5.0
_STEP_S = 0.003


def wait_until(condition: Callable[[], object], within_s: float = PATIENCE_S) -> float:
    """Return as soon as the condition holds, with how long that took; fail when it never does."""
    begun_at = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - begun_at
        assert waited_s < within_s, f"not within {within_s} s: {condition}"
        time.sleep(_STEP_S)
    return time.monotonic() - begun_at


def is_alive(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive_with(needle: str) -> list[int]:
    """Ids of the processes whose environment holds the text; this one is not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle.encode() in (entry / "environ").read_bytes() and is_alive(int(entry.name)):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def open_descriptors() -> set[tuple[str, str]]:
    """The descriptors of this process that refer to something, each with what that is."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add((entry.name, str(entry.readlink())))
        except OSError:
            continue
    return {(number, target) for number, target in found if target != "/proc/self/fd"}


def shared_segments() -> set[str]:
    """The names in /dev/shm."""
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def held_by_others(segments: set[str]) -> set[str]:
    """Those of the segments that a process maps which is neither this one nor below it."""
    me = psutil.Process()
    ours = {me.pid, *(child.pid for child in me.children(recursive=True))}
    held: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in ours:
            with suppress(OSError):
                mapped = (entry / "maps").read_text(errors="replace")
                held |= {name for name in segments if f"/dev/shm/{name}" in mapped}
    return held


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail when the block leaves a child process, a descriptor or a shared-memory segment behind."""
    me = psutil.Process()
    children = set(me.children(recursive=True))
    descriptors, segments = open_descriptors(), shared_segments()
    yield
    assert set(me.children(recursive=True)) <= children
    # A receiving thread closes its end a moment after its supervisor is gone. A leak stays.
    begun_at = time.monotonic()
    while (leaked := open_descriptors() - descriptors) and time.monotonic() - begun_at < FOREIGN_S:
        time.sleep(_STEP_S)
    assert {target for _, target in leaked} == set()
    # Segments do not say whose they are. What other programs map is theirs; what they leave they unlink soon.
    suspects = shared_segments() - segments

    def are_gone() -> bool:
        left = suspects & shared_segments()
        return not left or not left - held_by_others(left)

    wait_until(are_gone, FOREIGN_S)
