"""Shared memory of our own, where the machine allows it: segments of other programs do not say whose they are."""

import ctypes
from collections.abc import Iterator

import pytest

_NEW_MOUNTS, _PRIVATE, _RECURSIVE, _LAZY = 0x20000, 1 << 18, 1 << 14, 2


@pytest.fixture(scope="session", autouse=True)
def own_shared_memory() -> Iterator[None]:
    """Mount an empty /dev/shm that only this process and its children can see; go on as it is if that is forbidden."""
    libc = ctypes.CDLL(None)
    mounted = (
        libc.unshare(_NEW_MOUNTS) == 0
        and libc.mount(None, b"/", None, _PRIVATE | _RECURSIVE, None) == 0
        and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=4g") == 0
    )
    yield
    if mounted:
        libc.umount2(b"/dev/shm", _LAZY)
