"""What a job must not hand to the next one in the same worker, and how that is noticed (rule 13).

`Baseline` remembers the worker as it was before its first job; `changed` names the first thing that a job left
different, and the worker is then replaced. The generators of `random` and numpy are the exception: every honest draw
moves them, so a generator that moved is given a fresh seed before the next job, and no process is spent on it.
"""

import _thread
import contextlib
import ctypes
import gc
import importlib
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

# The wrappers of `signal` make enums of what these return, at ten times the cost.
getsignal: Callable[[int], Any] = importlib.import_module("_signal").getsignal
pthread_sigmask: Callable[[int, tuple[int, ...]], set[int]] = importlib.import_module("_signal").pthread_sigmask
_SIGNALS = tuple(
    int(number)
    for number in signal.valid_signals()
    if number not in {signal.SIGKILL, signal.SIGSTOP} and number < signal.SIGRTMIN
)
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_STATE_WORDS = 624
_RANDOM_INDEX_OFFSET = 16
_QUICK_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1)
_NICE_SELF = 0
_MOST_LEAKED_DESCRIPTORS = 256


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _handlers(numbers: tuple[int, ...]) -> list[Any]:
    return [getsignal(number) for number in numbers]


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "(deleted)"


def _lowest_free_descriptor() -> int:
    """Where the next file would be opened; -1 where none can be, or where standard input is closed."""
    try:
        fd = os.dup(0)
    except OSError:
        return -1
    os.close(fd)
    return fd


def _standard_files() -> list[object]:
    files: list[object] = []
    for fd in range(3):
        try:
            stat = os.fstat(fd)
        except OSError:
            files.append(None)
        else:
            files.append((stat.st_dev, stat.st_ino))
    return files


def _affinity() -> object:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


class Baseline:
    """The state of the worker before its first job."""

    def __init__(self) -> None:
        quick = tuple(int(number) for number in _QUICK_SIGNALS)
        lowest = _lowest_free_descriptor()
        # A file or two may be kept open on purpose. Hundreds are a leak, and fewer than before are somebody else's.
        descriptors = range(lowest, lowest + _MOST_LEAKED_DESCRIPTORS)
        self._quick: dict[str, Callable[[], object]] = {
            "threads": _thread._count,  # noqa: SLF001 - all threads that Python started, in 50 ns
            "descriptors": lambda: _lowest_free_descriptor() in descriptors,
            "working directory": _directory,
            "signal handlers": lambda: _handlers(quick),
            "timers": lambda: signal.getitimer(signal.ITIMER_REAL),
            "signal mask": lambda: pthread_sigmask(signal.SIG_BLOCK, ()),
            "recursion limit": sys.getrecursionlimit,
            "garbage collector": lambda: (gc.isenabled(), gc.get_threshold()),
            "umask": _umask,
            "trace function": lambda: (sys.gettrace(), sys.getprofile()),
        }
        self._thorough: dict[str, Callable[[], object]] = {
            "all signal handlers": lambda: _handlers(_SIGNALS),
            "resource limits": lambda: [resource.getrlimit(limit) for limit in _LIMITS],
            "priority": lambda: os.getpriority(os.PRIO_PROCESS, _NICE_SELF),
            "CPU affinity": _affinity,
            "standard files": _standard_files,
        }
        self._streams = (sys.stdout, sys.stderr, sys.stdin)
        self._environment = dict(os.environ._data)  # type: ignore[attr-defined] # noqa: SLF001 - the bytes themselves, no decoding
        self._was = [look() for look in self._quick.values()]
        self._was_thorough = [look() for look in self._thorough.values()]

    def changed(self) -> str | None:
        """The name of something that differs from the baseline, or None. Costs about 5 us."""
        if os.environ._data != self._environment:  # type: ignore[attr-defined] # noqa: SLF001 - as above
            return "environment"
        if (sys.stdout, sys.stderr, sys.stdin) != self._streams or sys.stdout.closed or sys.stderr.closed:
            return "standard streams"
        for (name, look), was in zip(self._quick.items(), self._was, strict=True):
            if look() != was:
                return name
        return None

    def changed_thoroughly(self) -> str | None:
        """The same for what costs more to look at."""
        for (name, look), was in zip(self._thorough.items(), self._was_thorough, strict=True):
            if look() != was:
                return name
        return None


class Randomness:
    """The global generators of `random` and numpy.

    A Mersenne twister that drew or was seeded shows it in its position, one integer, which is read where it lies in
    memory: asking for the whole state would cost 11 us a job, and a new seed 16.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._numpy: Any = None
        self._random_position = self._locate_random()
        self._numpy_position: ctypes.c_int | None = None
        self._reseed_random()
        self._find_numpy()

    @staticmethod
    def _locate_random() -> ctypes.c_int | None:
        """The position inside the C object of `random`, if this interpreter keeps it where CPython 3.11 does."""
        generator = random.Random(0)
        position = ctypes.c_int.from_address(id(generator) + _RANDOM_INDEX_OFFSET)
        seen = [position.value]
        generator.random()
        seen.append(position.value)
        state = generator.getstate()[1][-1]
        if seen == [_STATE_WORDS, state]:
            return ctypes.c_int.from_address(id(random._inst) + _RANDOM_INDEX_OFFSET)  # noqa: SLF001 - see above
        return None

    def _find_numpy(self) -> None:
        self._numpy = sys.modules.get("numpy.random")
        if self._numpy is not None:
            with contextlib.suppress(AttributeError, TypeError):
                legacy = self._numpy.mtrand._rand._bit_generator  # noqa: SLF001 - there is no public name for it
                address = legacy.ctypes.state_address
                self._numpy_position = ctypes.c_int.from_address(address + 4 * _STATE_WORDS)
            self._reseed_numpy()

    def _reseed_random(self) -> None:
        random.seed(self._seed)
        self._random_at = self._position(self._random_position)

    def _reseed_numpy(self) -> None:
        seed = None if self._seed is None else self._seed % 2**32
        with contextlib.suppress(AttributeError, TypeError):
            self._numpy.seed(seed)
        self._numpy_at = self._position(self._numpy_position)

    @staticmethod
    def _position(position: ctypes.c_int | None) -> int:
        return -1 if position is None else position.value

    def renew(self) -> None:
        """Give what moved since the last call a fresh seed; with a seed of the user's, leave it alone."""
        if self._seed is not None:
            return
        if self._random_position is None or self._random_position.value != self._random_at:
            self._reseed_random()
        if self._numpy is None:
            if "numpy.random" in sys.modules:
                self._find_numpy()
        elif self._numpy_position is None or self._numpy_position.value != self._numpy_at:
            self._reseed_numpy()
