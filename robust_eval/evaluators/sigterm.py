"""SIGTERM as an exception in the main thread, for as long as a block of the user's lasts."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Final, NoReturn

from robust_eval.errors import InvalidArgument, Terminated

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_CODE: Final = 128 + signal.SIGTERM


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Have SIGTERM raise ``SystemExit`` inside of the block; a second one ends the program at once.

    Raises:
        InvalidArgument: this is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise InvalidArgument(
            "stop_on_sigterm() was called in a thread, and Python handles signals in the main thread only. "
            "Enter it there, around the whole search."
        )
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _exit(_number: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated(EXIT_CODE)
