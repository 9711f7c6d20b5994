"""How a supervisor, a worker and the driver's receiving thread wait: asleep, or for a moment awake.

A process that sleeps takes 50 us to be woken, on a virtual machine at least, and a job on a pool with nothing else to
do passes the supervisor twice. So where things have been happening every few moments, all of them look again and again
for a moment before they go to sleep, and give way to whoever else wants the core. Where workers have their next jobs
and nobody waits for the supervisor, it lets things gather for a moment: to be woken for each of them costs more than to
do them.
"""

import os
import select
import socket
from collections.abc import Callable
from time import monotonic, sleep
from typing import Generic, TypeVar

_NAP_S = 0.008
_MOMENT_S = 0.0003
_SHARE = 0.2
_MOST_GAP_S = 0.001
_CAN_YIELD = hasattr(os, "sched_yield")  # not on Windows, where a driver's threads wait asleep
_IN_VAIN = 1.5  # more, and a single wait that took long had all sleep for a dozen round trips, each twice as long
_Ready = TypeVar("_Ready")


def looking_at(sock: socket.socket) -> Callable[[float | None], list[tuple[int, int]]]:
    """What says whether something can be read, after at most so many seconds; None for no bound."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda wait_s: poll.poll(None if wait_s is None else 1000.0 * wait_s)


class Patience(Generic[_Ready]):
    """Waits until something is ready.

    Args:
        look: says what is, after at most so many seconds; None for no bound.
    """

    def __init__(self, look: Callable[[float | None], list[_Ready]]) -> None:
        self._look = look
        self._gap_s = _MOST_GAP_S

    @staticmethod
    def let_gather(leisure_s: float, wait_s: float | None) -> None:
        """Sleep, whatever happens: so long nobody waits for this process.

        Args:
            leisure_s: how long.
            wait_s: what `select` would be called with, which is not overslept.
        """
        nap_s = min(leisure_s, _NAP_S)
        sleep(nap_s if wait_s is None else min(nap_s, wait_s))

    def select(self, wait_s: float | None) -> list[_Ready]:
        """What is ready, after at most so many seconds; None for no bound."""
        begun_at = monotonic()
        ready = self._watch(begun_at, wait_s) if self._gap_s < _MOMENT_S and _CAN_YIELD else []
        if not ready:
            left_s = None if wait_s is None else max(0.0, wait_s - (monotonic() - begun_at))
            ready = self._look(left_s)
        self._gap_s += _SHARE * (min(monotonic() - begun_at, _MOST_GAP_S) - self._gap_s)
        return ready

    def _watch(self, begun_at: float, wait_s: float | None) -> list[_Ready]:
        """Look for a moment; empty where nothing happened. A moment in vain is not soon repeated."""
        ends_at = begun_at + (_MOMENT_S if wait_s is None else min(_MOMENT_S, wait_s))
        while monotonic() < ends_at:
            ready = self._look(0)
            if ready:
                return ready
            os.sched_yield()
        self._gap_s = _IN_VAIN * _MOMENT_S
        return []
