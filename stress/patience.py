"""A gather that a lost job would block for ever ends all the same, and says so."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from robust_eval import Evaluator

PATIENCE_S = 30.0


@contextmanager
def patience(evaluator: Evaluator) -> Iterator[threading.Event]:
    """When nothing has settled for so long, close the evaluator: what is left settles as `cancelled`.

    Yields:
        What is set then.
    """
    lost, over = threading.Event(), threading.Event()

    def watch() -> None:
        settled = -1
        while not over.wait(PATIENCE_S):
            before, settled = settled, evaluator.stats()["jobs"]["settled"]
            if settled == before:
                lost.set()
                evaluator.close()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lost
    finally:
        over.set()
        watcher.join()
