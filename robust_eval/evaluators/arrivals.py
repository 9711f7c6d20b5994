"""Where finished jobs wait to be gathered: any thread puts, one consumer takes.

The consumer is either a thread (``take``) or a coroutine (``take_async``), one at a time. It is woken
once, when as many are there as it waits for, so that gathering a thousand jobs costs one switch.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Protocol

from robust_eval.processes.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_HASTE_S: Final = 0.0005
_GLANCE_S: Final = 0.5


class Arrivals(Protocol):
    """What an evaluator needs of the place where its backend delivers."""

    def put(self, item: Any) -> None:
        """Deliver one finished job."""

    def put_many(self, items: Iterable[Any]) -> None:
        """Deliver several."""

    def take(self, minimum: int, timeout: float | None, into: deque[Any]) -> None:
        """Wait until ``minimum`` items are there or ``timeout`` seconds are over; put all there are into ``into``.

        It can be interrupted by Ctrl-C at any point; each item is here or there then.
        """

    async def take_async(
        self,
        minimum: int,
        timeout: float | None,  # noqa: ASYNC109  the counterpart of take
        into: deque[Any],
    ) -> None:
        """Do the same in a coroutine, whatever its loop."""


@contextmanager
def _threads_in_haste() -> Iterator[None]:
    """Within the block, a thread that computes gives way to one that waits for its turn after 0.5 ms instead of 5.

    An outcome passes two threads on its way to whoever gathers, and each would wait those 5 ms for its turn. Of several
    blocks at once the first one puts the interval back; where somebody else changes it meanwhile, it stays so.
    """
    before = sys.getswitchinterval()
    if before <= _HASTE_S:
        yield
        return
    sys.setswitchinterval(_HASTE_S)
    ours = sys.getswitchinterval()  # which is rounded
    try:
        yield
    finally:
        if sys.getswitchinterval() == ours:
            sys.setswitchinterval(before)


def _nothing_to_say(_items: Iterable[Any]) -> bool:
    return False


class Mailbox:
    """`Arrivals` in the memory of this process.

    Args:
        observe: sees what arrives; where it answers True, whoever waits gets what there is at once.
    """

    def __init__(self, observe: Callable[[Iterable[Any]], bool] = _nothing_to_say) -> None:
        self._observe = observe
        # Of C code all the way: an interrupt within `Condition.__exit__` would leave it locked.
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._items: deque[Any] = deque()
        self._wanted: float = math.inf
        # Not itself: what is here goes with its evaluator, and not with a collection.
        self._patience: Patience[bool] = Patience(partial(Mailbox._look, weakref.proxy(self)))
        self._wake: Callable[[], None] | None = None

    def put(self, item: Any) -> None:
        """Deliver one item."""
        with self._lock:
            self._items.append(item)
            if self._observe((item,)) or len(self._items) >= self._wanted:
                self._notify()

    def put_many(self, items: Iterable[Any]) -> None:
        """Deliver several items at once."""
        delivered = list(items)
        with self._lock:
            self._items.extend(delivered)
            if self._observe(delivered) or len(self._items) >= self._wanted:
                self._notify()

    def _notify(self) -> None:
        self._wanted = math.inf
        if self._wake is None:
            self._arrived.notify_all()
        else:
            self._wake()

    def take(self, minimum: int, timeout: float | None, into: deque[Any]) -> None:
        """Wait until ``minimum`` items are there or ``timeout`` seconds are over; put all there are into ``into``."""
        if len(self._items) < minimum:
            with _threads_in_haste():
                self._await(minimum, timeout)
        with self._lock:
            # One step of C code: a signal handler of the user may raise before or after, and no item gets lost.
            into.extend(map(deque.popleft, repeat(self._items, len(self._items))))

    def _await(self, minimum: int, timeout: float | None) -> None:
        """Wait; for a single item that came within a moment each time, awake: to be woken takes another 40 us."""
        try:
            with self._lock:
                self._wanted = minimum if len(self._items) < minimum else math.inf
            awake = minimum == 1 and timeout != 0
            (self._patience.select if awake else self._look)(timeout)
        finally:
            self._wanted = math.inf

    def _look(self, wait_s: float | None) -> list[bool]:
        """Whether whoever waits is to go on, after at most so many seconds; empty where not.

        Python handles a signal between two steps of its own. One that comes after the last step before the wait, or to
        another thread, ends no wait: whoever pressed Ctrl-C then would wait for the jobs, if the wait had no end.
        """
        if wait_s != 0:
            ends_at = math.inf if wait_s is None else time.monotonic() + wait_s
            with self._lock:
                while self._wanted != math.inf and (left_s := ends_at - time.monotonic()) > 0:
                    self._arrived.wait(min(left_s, _GLANCE_S))
        return [True] if self._wanted == math.inf else []

    async def take_async(
        self,
        minimum: int,
        timeout: float | None,  # noqa: ASYNC109  the counterpart of take
        into: deque[Any],
    ) -> None:
        """Do the same in a coroutine, whatever its loop."""
        loop = asyncio.get_running_loop()
        enough = asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(enough.set)

        with self._lock:
            if len(self._items) >= minimum:
                enough.set()
            else:
                self._wanted, self._wake = minimum, wake
        try:
            await asyncio.wait_for(enough.wait(), timeout)
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._wanted, self._wake = math.inf, None
        self.take(0, 0, into)
