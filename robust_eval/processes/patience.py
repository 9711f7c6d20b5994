"""How a supervisor waits: asleep, or for a moment awake.

A process that sleeps takes 50 us to be woken, on a virtual machine at least, and a job on a pool with nothing else to
do passes the supervisor twice. So where things have been happening every few moments, it looks again and again for a
moment before it goes to sleep, and gives way to whoever else wants the core. Where workers have their next jobs and
nobody waits for it, it lets things gather for a moment: to be woken for each of them costs more than to do them.
"""

import os
import selectors
from time import monotonic, sleep

_NAP_S = 0.001
_MOMENT_S = 0.0003
_SHARE = 0.2
_MOST_GAP_S = 0.001


class Patience:
    """Waits on a selector.

    Args:
        selector: on what.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._gap_s = _MOST_GAP_S

    def select(self, wait_s: float | None, *, at_ease: bool) -> "list[tuple[selectors.SelectorKey, int]]":
        """What is ready, after at most so many seconds; None for no bound.

        Args:
            wait_s: as above.
            at_ease: whether nobody waits for this process.
        """
        begun_at = monotonic()
        if at_ease:
            sleep(_NAP_S if wait_s is None else min(_NAP_S, wait_s))
        ready = self._watch(begun_at, wait_s) if self._gap_s < _MOMENT_S else []
        if not ready:
            left_s = None if wait_s is None else max(0.0, wait_s - (monotonic() - begun_at))
            ready = self._selector.select(left_s)
        self._gap_s += _SHARE * (min(monotonic() - begun_at, _MOST_GAP_S) - self._gap_s)
        return ready

    def _watch(self, begun_at: float, wait_s: float | None) -> "list[tuple[selectors.SelectorKey, int]]":
        """Look for a moment; empty where nothing happened. A moment in vain is not soon repeated."""
        ends_at = begun_at + (_MOMENT_S if wait_s is None else min(_MOMENT_S, wait_s))
        while monotonic() < ends_at:
            ready = self._selector.select(0)
            if ready:
                return ready
            os.sched_yield()
        self._gap_s = _MOST_GAP_S
        return []
