"""Watches the memory of this process from a thread of it: what the decorator `profile` reports.

It can tell, and interrupt Python code by an exception; it cannot kill. That is what supervised processes are for.
"""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
from typing import TYPE_CHECKING, Final, Self

import psutil

if TYPE_CHECKING:
    from types import TracebackType

_MIB: Final = 1024 * 1024
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


class MemoryWatch:
    """Measures the peak of this process's tree while the block runs.

    Args:
        limit_bytes: over it `MemoryError` is raised in the thread of the block; ``None`` for no limit.
        interval_s: seconds between two looks.

    Attributes:
        peak_bytes: the most that was seen.
    """

    def __init__(self, limit_bytes: int | None, interval_s: float) -> None:
        self.peak_bytes = 0
        self._limit_bytes = limit_bytes
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._block = threading.get_ident()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_again, name="robust_eval-memory", daemon=True)
        self._interrupted = False

    def __enter__(self) -> Self:
        self._look()
        self._record_bytes = _record_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over.set()
            if self._interrupted and not isinstance(error, MemoryError):
                _set_exception(self._block, None)  # it was on its way
        self._thread.join()
        self._look()
        # Exact, where the block set a new record: a peak between two looks counts too.
        if (record := _record_bytes()) > self._record_bytes:
            self.peak_bytes = max(self.peak_bytes, record)
        if self._is_exceeded() and kind is None:
            raise MemoryError(self._message())

    def _look_again(self) -> None:
        while not self._over.wait(self._interval_s):
            self._look()
            if not self._is_exceeded():
                continue
            with self._lock:
                if not self._over.is_set():
                    self._interrupted = True
                    _set_exception(self._block, MemoryError)
            return

    def _look(self) -> None:
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, total)

    def _is_exceeded(self) -> bool:
        return self._limit_bytes is not None and self.peak_bytes > self._limit_bytes

    def _message(self) -> str:
        limit_bytes = self._limit_bytes or 0
        return f"it took {self.peak_bytes / _MIB:.0f} MiB, over the memory_limit of {limit_bytes / _MIB:.0f} MiB"


def _record_bytes() -> int:
    """The most that this process itself ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def _set_exception(thread: int, kind: type[BaseException] | None) -> None:
    """Have an exception raised in a thread at its next step in Python, or take it back."""
    pointer = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), pointer)
