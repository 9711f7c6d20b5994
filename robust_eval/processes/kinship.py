"""What `multiprocessing` hands to the processes that it starts, for those that are started here.

Whoever uses a `multiprocessing.Manager`'s queues, locks or lists must know the key of its family of processes. A
worker that does not is turned away by the manager, and what holds such a proxy cannot even be unpickled.
"""

import sys


class Kinship:
    """Makes the process that unpickles it one of the family of the process that pickled it."""

    def __reduce__(self) -> tuple[object, ...]:
        # Who has not loaded `multiprocessing` has no manager, and its workers need not load it either.
        process = sys.modules.get("multiprocessing.process")
        return _join, (None if process is None else bytes(process.current_process().authkey),)


def _join(key: bytes | None) -> None:
    if key is not None:
        from multiprocessing.process import current_process  # 1.5 ms, for those who need it

        current_process().authkey = key
