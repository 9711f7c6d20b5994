"""A gather that a lost job would block for ever ends all the same, and says so."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from robust_eval import ProcessPoolEvaluator

PATIENCE_S = 60.0


@contextmanager
def patience(evaluator: ProcessPoolEvaluator, seconds: float = PATIENCE_S) -> Iterator[threading.Event]:
    """After so long, the evaluator is closed: what had not settled settles as `cancelled`, and the event is set."""
    lost = threading.Event()

    def end() -> None:
        lost.set()
        evaluator.close()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield lost
    finally:
        timer.cancel()
        timer.join()
