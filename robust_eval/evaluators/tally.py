"""Counts outcomes as they arrive, and says when a search fails so much that its set-up must be broken.

It stands where jobs arrive and not where they are gathered: a driver that waits for a million jobs is told of a
missing data file after twenty of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import InvalidArgument, SearchBroken, bounded_repr
from robust_eval.limits import parse_count
from robust_eval.logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from robust_eval.failure import Failure

_logger = logger("search")
OK: Final = "ok"
_NOBODYS_FAULT: Final = ("cancelled",)
_FEWEST_JOBS: Final = 20


class Tally:
    """Outcomes by kind, and the limits on how many of them may be failures.

    Args:
        kind_of: gives the failure of something that arrived: its kind, or None for a value.
        max_failure_rate: the share of failures, from 0 to 1, over which the search is broken; judged from 20 settled
            jobs on. ``None`` for no limit.
        max_consecutive_failures: how many failures in a row, in the order of arrival, break the search; ``None`` for
            no limit. Cancelled jobs count for neither.
    """

    def __init__(
        self,
        kind_of: Callable[[Any], str | None],
        max_failure_rate: float | None = None,
        max_consecutive_failures: int | None = None,
    ) -> None:
        self._kind_of = kind_of
        self._max_rate = _rate(max_failure_rate)
        self._max_row = (
            None
            if max_consecutive_failures is None
            else parse_count("max_consecutive_failures", max_consecutive_failures)
        )
        self._lock = threading.Lock()
        self._row = 0
        self._said = False
        self.outcomes: Counter[str] = Counter()
        self.broken: str | None = None

    def observe(self, items: Iterable[Any]) -> bool:
        """Count arrivals. True when they broke the search, so that whoever waits must be woken."""
        with self._lock:
            for item in items:
                kind = self._kind_of(item)
                self.outcomes[kind or OK] += 1
                if kind is None:
                    self._row = 0
                elif kind not in _NOBODYS_FAULT:
                    self._row += 1
            if self.broken is None:
                self.broken = self._judge()
                return self.broken is not None
        return False

    def _judge(self) -> str | None:
        if self._max_row is not None and self._row >= self._max_row:
            return f"{self._row} jobs in a row failed (max_consecutive_failures={self._max_row})"
        if self._max_rate is not None:
            ok = self.outcomes[OK]
            settled = self.outcomes.total() - sum(self.outcomes[kind] for kind in _NOBODYS_FAULT)
            if settled >= _FEWEST_JOBS and settled - ok > self._max_rate * settled:
                return f"{settled - ok} of {settled} jobs failed (max_failure_rate={self._max_rate:g})"
        return None

    def raise_broken(self, failure: Failure | None) -> None:
        """Raise once that the search is broken, if it is.

        Args:
            failure: one to show.
        """
        if self.broken is None or self._said:
            return
        self._said = True
        _logger.error("The search is stopped: %s.", self.broken, extra={"outcomes": dict(self.outcomes)})
        example = "" if failure is None else f" One of them: {failure!r}."
        raise SearchBroken(
            f"The search was stopped: {self.broken}.{example} "
            "Every settled job can still be gathered; the rest is cancelled."
        )


def _rate(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise InvalidArgument(
            f"max_failure_rate={bounded_repr(value)} is no share. Pass a number from 0 to 1, or None."
        )
    return float(value)
