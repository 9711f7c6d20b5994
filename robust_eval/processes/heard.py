"""Which calls a worker hears of, so that what they change needs no look after jobs that made none (rule 13).

Python tells its audit hooks of some; of others a function in the place of the interpreter's own takes note. Both begin
before the user's modules are loaded, so that nobody holds the functions as they were. Code in C may call the kernel
itself, which is why `ctypes` counts as a call that lasts, and why all is looked at after a long job.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Final

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_PASSING: Final = frozenset({"fcntl.fcntl", "os.chdir", "resource.setrlimit", "resource.prlimit"})
_LASTING: Final = frozenset({"ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function"})
_VARIABLES: Final = frozenset({"os.putenv", "os.unsetenv"})
# By the module that has them. What another one of these has taken from there is replaced with them.
_NOTED: Final = {
    "_signal": ("alarm", "pthread_sigmask", "set_wakeup_fd", "setitimer", "signal"),
    "_locale": ("setlocale",),
    "posix": (
        "closerange",
        "dup2",
        "nice",
        "sched_setaffinity",
        "sched_setparam",
        "sched_setscheduler",
        "set_blocking",
        "setegid",
        "seteuid",
        "setgid",
        "setpriority",
        "setregid",
        "setresgid",
        "setresuid",
        "setreuid",
        "setuid",
        "umask",
    ),
}
_STANDARD_FILES: Final = 3
# Hooks that cannot be listed or removed, and threads that are counted only once they run.
_IRREVOCABLE: Final = (("sys", "addaudithook"), ("_thread", "start_new_thread"), ("_thread", "start_new"))
_OF_MODULES: Final = (("os", "register_at_fork"), ("posix", "register_at_fork"))  # no harm on an import
_SHARERS: Final = (*_NOTED, "locale", "os", "signal")


def _is_importing() -> bool:
    """Whether this is called by a module's code on the way of its import."""
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to the caller
    while frame.f_back is not None and frame.f_code.co_filename != _IMPORT_SYSTEM:
        frame = frame.f_back
    return frame.f_code.co_filename == _IMPORT_SYSTEM


def _noting(function: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    """A function in the place of this one, which notes each call."""

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        note()
        return function(*args, **kwargs)

    return noted


def _noting_the_first(close: Callable[[int], None], note: Callable[[], None]) -> Callable[[int], None]:
    """The same for `os.close`, which many call for other descriptors than those of the standard streams."""

    @functools.wraps(close)
    def noted(fd: int) -> None:
        close(fd)
        if fd < _STANDARD_FILES:
            note()

    return noted


class Calls:
    """What was called.

    Attributes:
        made: whether a call was made after which code in C may be called that nobody hears of.
        passing: whether a call was made of those that are heard of each time; set back by who has looked.
        set_by_imports: the environment variables that modules have set on their import.
        put: what else was put into the environment since somebody looked; `os.environ` may know nothing of it.
    """

    def __init__(self) -> None:
        self.made = False
        self.passing = False
        self.set_by_imports: dict[bytes, bytes | None] = {}
        self.put: dict[bytes, bytes | None] = {}

    def listen(self) -> "Calls":
        """Hear of every call from now on, also in the forks of this process."""
        sys.addaudithook(self._on_event)
        noting: dict[int, Callable[..., Any]] = {}
        for module, names in _NOTED.items():
            space = vars(sys.modules[module]) if module in sys.modules else {}
            noting.update((id(space[name]), _noting(space[name], self._note)) for name in names if name in space)
        noting[id(os.close)] = _noting_the_first(os.close, self._note)
        for module in _SHARERS:
            space = vars(sys.modules[module]) if module in sys.modules else {}
            space.update({name: noting[id(value)] for name, value in space.items() if id(value) in noting})
        return self

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _LASTING:
            self.made = True
        elif event in _PASSING:
            self.passing = True
        elif event in _VARIABLES:
            name, value = (*args, None)[:2]
            (self.set_by_imports if _is_importing() else self.put)[name] = value

    def _note(self) -> None:
        self.passing = True


class Tripwires:
    """Functions whose effect nothing shows afterwards; from now on each notes that it was called."""

    def __init__(self) -> None:
        self.touched = False
        for names, note in ((_IRREVOCABLE, self._note), (_OF_MODULES, self._note_unless_importing)):
            for module, name in names:
                space = vars(sys.modules[module])
                if name in space:
                    space[name] = _noting(space[name], note)

    def _note(self) -> None:
        self.touched = True

    def _note_unless_importing(self) -> None:
        self.touched = self.touched or not _is_importing()
