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
from importlib import import_module
from typing import Any, TypeAlias

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


_Glimpse: TypeAlias = "ctypes.Array[ctypes.c_char]"
_GLIMPSE = ctypes.c_char * 16


def _seen(state: "_Glimpse | None") -> bytes:
    return b"" if state is None else state.raw


class Randomness:
    """The global generators of `random` and numpy.

    A Mersenne twister that drew or was seeded shows it in its position and the words of state beside that, which are
    read where they lie in memory: asking for the whole state would cost 11 us a job, and a new seed 16. The position
    alone would not do: it is the same after every seeding.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._numpy: Any = None
        self._random_state = self._locate_random()
        self._numpy_state: _Glimpse | None = None
        self._reseed_random()
        if seed is not None:
            # Since version 2 numpy imports this when it is first used, which is after the seeding.
            with contextlib.suppress(ImportError):
                import_module("numpy.random")
        self._find_numpy()

    @staticmethod
    def _locate_random() -> "_Glimpse | None":
        """The position and first words in the C object of `random`, if they are where CPython 3.11 keeps them."""
        generator = random.Random(0)
        position = ctypes.c_int.from_address(id(generator) + _RANDOM_INDEX_OFFSET)
        seen = [position.value]
        generator.random()
        seen.append(position.value)
        state = generator.getstate()[1][-1]
        if seen == [_STATE_WORDS, state]:
            return _GLIMPSE.from_address(id(random._inst) + _RANDOM_INDEX_OFFSET)  # noqa: SLF001 - see above
        return None

    def _find_numpy(self) -> None:
        self._numpy = sys.modules.get("numpy.random")
        if self._numpy is not None:
            with contextlib.suppress(AttributeError, TypeError):
                legacy = self._numpy.mtrand._rand._bit_generator  # noqa: SLF001 - there is no public name for it
                address = legacy.ctypes.state_address
                # The position follows the last word of the state.
                self._numpy_state = _GLIMPSE.from_address(address + 4 * (_STATE_WORDS + 1) - ctypes.sizeof(_GLIMPSE))
            self._reseed_numpy()

    def _reseed_random(self) -> None:
        random.seed(self._seed)
        self._random_was = _seen(self._random_state)

    def _reseed_numpy(self) -> None:
        seed = None if self._seed is None else self._seed % 2**32
        with contextlib.suppress(AttributeError, TypeError):
            self._numpy.seed(seed)
        self._numpy_was = _seen(self._numpy_state)

    def renew(self) -> None:
        """Give what moved since the last call a fresh seed; with a seed of the user's, leave it alone."""
        if self._seed is not None:
            return
        if self._random_state is None or self._random_state.raw != self._random_was:
            self._reseed_random()
        if self._numpy is None:
            if "numpy.random" in sys.modules:
                self._find_numpy()
        elif self._numpy_state is None or self._numpy_state.raw != self._numpy_was:
            self._reseed_numpy()
