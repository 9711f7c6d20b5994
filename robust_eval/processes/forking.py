"""Forks of a process that has one thread, without the handlers that mend what other threads held.

`threading`, `logging`, `random` and `concurrent.futures` register handlers that each fork of a process runs. In a new
worker they cost 0.4 ms and copy 160 pages, and there is nothing to mend: nobody else held a lock, and the generators
get seeds of the worker's own. They are run where there are other threads, and at every fork that a job makes itself.
"""

import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_OF_THREADS: Final = frozenset({"concurrent.futures.thread", "logging", "random", "threading"})


class AtFork:
    """What these modules have registered, in the order in which they did.

    Must listen before they are imported; what was registered earlier is run at every fork.
    """

    def __init__(self) -> None:
        self._handlers: list[dict[str, Callable[[], object]]] = []
        self._alone = False
        self._register: Callable[..., None] = os.register_at_fork

    @classmethod
    def of_this_process(cls) -> "AtFork":
        """The one that listens here, or one that knows of no handler."""
        listening = getattr(os.register_at_fork, "__self__", None)
        return listening if isinstance(listening, cls) else cls()

    def listen(self) -> None:
        """Hear of what is registered from now on."""
        self._register(before=self._before, after_in_parent=self._after_in_parent, after_in_child=self._after_in_child)
        os.register_at_fork = self.register

    def register(self, **handlers: Any) -> None:
        """In the place of `os.register_at_fork`, whose arguments these are."""
        if sys._getframe(1).f_globals.get("__name__") in _OF_THREADS:  # noqa: SLF001 - the documented way to the caller
            self._handlers.append(handlers)
        else:
            self._register(**handlers)

    def fork(self) -> int:
        """`os.fork`, without these handlers where no other thread of Python's is."""
        self._alone = len(sys._current_frames()) == 1  # noqa: SLF001 - the only list with those that C code has started
        try:
            return os.fork()
        finally:
            self._alone = False

    def _before(self) -> None:
        self._run("before", self._handlers[::-1])  # the order of the standard library, which runs these backwards

    def _after_in_parent(self) -> None:
        self._run("after_in_parent", self._handlers)

    def _after_in_child(self) -> None:
        self._run("after_in_child", self._handlers)

    def _run(self, when: str, all_handlers: "list[dict[str, Callable[[], object]]]") -> None:
        if self._alone:
            return
        for handlers in all_handlers:
            if when in handlers:
                handlers[when]()
