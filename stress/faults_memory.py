"""Jobs that eat memory, in every way in which a process can get it. Each must be caught close above its limit."""

import ctypes
import gc
import mmap
import os
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np

from robust_eval import Job, RunningJob
from stress.fault import MEMORY_LIMIT, failed_with, fault, own_value
from stress.faults_ending import hang

_MIB = 2**20
_GREED_BYTES = 4 * 2**30
_TOLERANCE_BYTES = max(MEMORY_LIMIT // 10, 64 * _MIB)


def _was_caught_in_time(job: Job) -> None:
    failure = job.failure
    assert failure is not None
    assert failure.acted == "memory_limit"
    assert failure.memory_limit == MEMORY_LIMIT
    assert failure.peak_memory is not None
    over = failure.peak_memory - MEMORY_LIMIT
    assert 0 < over <= _TOLERANCE_BYTES, f"caught {over / _MIB:.0f} MiB over the limit"


def eat(size: int, flags: int = mmap.MAP_PRIVATE) -> None:
    """Touch every page of so much memory, as fast as it goes, and keep it."""
    hoard = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    page = bytes(_MIB)
    while hoard.write(page) and hoard.tell() < size:
        pass
    hang()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_bytes(job: RunningJob) -> None:
    hoard = bytearray()
    while len(hoard) < _GREED_BYTES:
        hoard += bytes(16 * _MIB)
    hang()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_numpy(job: RunningJob) -> None:
    hoard = [np.ones(4 * _MIB, dtype=np.uint8) for _ in range(_GREED_BYTES // (4 * _MIB))]
    hang()
    del hoard


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_one_array(job: RunningJob) -> None:
    hoard = np.ones(_GREED_BYTES, dtype=np.uint8)
    hang()
    del hoard


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_mmap(job: RunningJob) -> None:
    eat(_GREED_BYTES)


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_shared_with_a_child(job: RunningJob) -> None:
    os.fork()
    eat(_GREED_BYTES, mmap.MAP_SHARED)


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_a_shared_segment(job: RunningJob) -> None:
    segment = shared_memory.SharedMemory(create=True, size=_GREED_BYTES)
    for start in range(0, _GREED_BYTES, _MIB):
        segment.buf[start : start + _MIB] = bytes(_MIB)
    hang()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_malloc(job: RunningJob) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    for _ in range(_GREED_BYTES // (64 * 1024)):
        ctypes.memset(libc.malloc(64 * 1024), 1, 64 * 1024)
    hang()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_cycles(job: RunningJob) -> None:
    gc.disable()
    for _ in range(_GREED_BYTES // _MIB):
        cycle: list[Any] = [bytearray(_MIB)]
        cycle.append(cycle)
    hang()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_with_text(job: RunningJob) -> None:
    """Small objects, as a leak has them."""
    hoard = []
    while sys.getsizeof(hoard) < _GREED_BYTES:
        hoard.append(str(len(hoard)) * 20)
    hang()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_in_a_child(job: RunningJob) -> None:
    if os.fork() == 0:
        eat(_GREED_BYTES)
    os.wait()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_in_a_daemon(job: RunningJob) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            eat(_GREED_BYTES)
        os._exit(0)
    hang()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_in_eight_children(job: RunningJob) -> None:
    for _ in range(8):
        if os.fork() == 0:
            eat(_GREED_BYTES // 8)
    os.wait()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_in_a_hundred_children(job: RunningJob) -> None:
    for _ in range(100):
        if os.fork() == 0:
            eat(10 * _MIB)
    os.wait()


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_slowly(job: RunningJob) -> None:
    hoard = []
    while len(hoard) < _GREED_BYTES // (8 * _MIB):
        hoard.append(np.ones(8 * _MIB, dtype=np.uint8))
        time.sleep(0.01)


@fault("memory", check=_was_caught_in_time, heavy=True)
def eat_memory_deaf_to_signals(job: RunningJob) -> None:
    import signal

    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    eat(_GREED_BYTES)


@fault(heavy=True, limits={"memory_limit": MEMORY_LIMIT})
def map_a_large_file(job: RunningJob) -> float:
    """Its pages are resident and not the job's: the kernel takes them back when it needs them."""
    size = 3 * MEMORY_LIMIT // 2
    with Path(f"{job['diary']}.data{os.getpid()}").open("w+b") as file:
        file.writelines(bytes(_MIB) for _ in range(size // _MIB))
        file.flush()
        Path(file.name).unlink()
        mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    for _ in range(3):
        assert not any(mapped[at] for at in range(0, size, mmap.PAGESIZE))
        time.sleep(0.01)
    return own_value(job)


@fault("memory", local=True, check=failed_with(acted="MemoryError"))
def raise_memory_error(job: RunningJob) -> None:
    raise MemoryError


@fault("memory", check=failed_with(acted="MemoryError"), limits={"memory_limit": None})
def ask_for_too_much_memory(job: RunningJob) -> None:
    np.ones(2**62, dtype=np.uint8)
