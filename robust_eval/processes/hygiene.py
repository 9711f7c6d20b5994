"""What a job must not hand to the next one in the same worker, and how that is noticed (rule 13).

`Baseline` remembers the worker as it was before its first job; `changed` names the first thing that a job left
different, and the worker is then replaced. Random generators are the exception, see `randomness`.
"""

import _thread
import builtins
import faulthandler
import gc
import importlib
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from resource import getrlimit
from typing import Any, Final

from robust_eval.processes import residue, system
from robust_eval.processes.heard import Calls, Tripwires
from robust_eval.processes.layout import DUMP_SIGNAL, STOP_SIGNAL
from robust_eval.processes.residue import CoreModules, arithmetic, settings, tempdir, version_of

# The wrappers of `signal` make enums of what these return, at ten times the cost.
_signal: Any = importlib.import_module("_signal")
getsignal: Callable[[int], Any] = _signal.getsignal
pthread_sigmask: Callable[[int, tuple[int, ...]], set[int]] = _signal.pthread_sigmask
getitimer: Callable[[int], tuple[float, float]] = _signal.getitimer
set_wakeup_fd: Callable[[int], int] = _signal.set_wakeup_fd
# Not the one of `locale`, which takes a while to import and to say the same.
setlocale: Callable[[int], str] = importlib.import_module("_locale").setlocale
umask: Callable[[int], int] = os.umask  # as it is before anybody takes note of its calls, like those above
close: Callable[[int], None] = os.close
_ALL_CATEGORIES: int = importlib.import_module("_locale").LC_ALL
_BUILTINS = vars(builtins)
_SIGNALS = tuple(
    int(number)
    for number in signal.valid_signals()
    if number not in {signal.SIGKILL, signal.SIGSTOP}
    and (number < signal.SIGRTMIN or number in {DUMP_SIGNAL, STOP_SIGNAL})
)
_REAL, _VIRTUAL, _PROF = int(signal.ITIMER_REAL), int(signal.ITIMER_VIRTUAL), int(signal.ITIMER_PROF)
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
LONG_S = 0.001
_VERY_LONG_S = 0.1
_SELF = 0
_MOST_LEAKED_DESCRIPTORS = 256


def _umask() -> int:
    mask = umask(0)
    umask(mask)
    return mask


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "(deleted)"


def _lowest_free_descriptor() -> int:
    """Where the next file would be opened; -1 where none can be, or where standard input is closed."""
    try:
        fd = os.dup(0)
    except OSError:
        return -1
    close(fd)
    return fd


def _standard_files() -> list[object]:
    """What they are, and whether they block. A pipe that does not loses much of a long text."""
    files: list[object] = []
    for fd in range(3):
        try:
            stat = os.fstat(fd)
            files.append((stat.st_dev, stat.st_ino, os.get_blocking(fd)))
        except OSError:
            files.append(None)
    return files


def _affinity() -> object:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _scheduling() -> object:
    return os.getpriority(os.PRIO_PROCESS, _SELF), _affinity(), os.sched_getscheduler(_SELF)


def _output() -> object:
    """How the standard streams write. An initializer may have left no stream there, or a closed one."""
    out, err = sys.stdout, sys.stderr
    return None if out is None or err is None else (out.closed, err.closed, out.encoding, err.encoding, out.errors)


def _raising_warnings() -> object:
    """Modules add filters when they are imported, and may; those that make an error of a warning are another matter."""
    return [entry for entry in warnings.filters if entry[0] == "error"]


def _start_method(*, was_chosen: bool) -> str | None:
    """How `multiprocessing` starts processes, where a job has chosen: nobody can choose again in that process.

    Its default counts as chosen once it was used. That is taken back here, or the next job that chooses would find
    that it cannot.
    """
    contexts = sys.modules.get("multiprocessing.context")
    if contexts is None:
        return None
    state = vars(vars(contexts)["_default_context"])  # to ask by its public names is to choose
    if state["_actual_context"] is state["_default_context"] and not was_chosen:
        state["_actual_context"] = None
    chosen = state["_actual_context"]
    return None if chosen is None else str(vars(type(chosen))["_name"])


class Builtins:
    """`len` and its kind, without which nothing here runs."""

    def __init__(self) -> None:
        self._was = dict(_BUILTINS)
        self._version = version_of(_BUILTINS)
        self._seen = None if self._version is None else self._version.value
        self.spoiled = False

    def restore(self) -> None:
        """Undo what the job did to them; the worker is then replaced."""
        version = self._version
        if version is not None and version.value == self._seen:
            return
        if self._was != _BUILTINS:
            self.spoiled = True
            _BUILTINS.clear()
            _BUILTINS.update(self._was)
        if version is not None:
            self._seen = version.value


class Baseline:
    """The state of the worker before its first job.

    Args:
        builtins: are restored by the caller.
        calls: say when the rarely changed is looked at; by default after every job.
    """

    _NAMES: Final = (
        "threads",
        "descriptors",
        "recursion limit",
        "garbage collector",
        "trace function",
        "hooks",
        "faulthandler",
        "output",
        "warnings",
        "modules",
        "start method",
        "core modules",
        "hidden hooks or threads",
        "settings",
        "arithmetic",
        "temporary directory",
    )
    _RARE_NAMES: Final = (
        "working directory",
        "resource limits",
        "functions of core modules",
        "signal handlers",
        "timers",
        "signal mask",
        "signal descriptor",
        "umask",
        "locale",
        "user",
        "scheduling",
        "standard files",
    )
    _REMOTE_NAMES: Final = ("timers of the kernel", "surroundings", "ignored signals", "system calls")

    def __init__(self, builtins: Builtins, calls: Calls | None = None) -> None:
        made = calls is not None and calls.made  # before what is called here
        lowest = _lowest_free_descriptor()
        # A file or two may be kept open on purpose. Hundreds are a leak, and fewer than before are somebody else's.
        self._descriptors = range(lowest, lowest + _MOST_LEAKED_DESCRIPTORS)
        self._least = len(sys.modules), len(sys.path)
        self._loaded, self._finders = len(sys.modules), (len(sys.meta_path), len(sys.path_hooks))
        self._streams = (sys.stdout, sys.stderr, sys.stdin)
        self._environment: dict[bytes, bytes | None] = dict(os.environ._data)  # type: ignore[attr-defined] # noqa: SLF001 - the bytes themselves, no decoding
        self._environment_type = type(os.environ)
        self._usual = residue.usual_temporary_directories()
        self._builtins = builtins
        self._filters = list(warnings.filters)
        self._raising = _raising_warnings()
        self._start_method_was_chosen = _start_method(was_chosen=True) is not None
        self._tripwires = Tripwires()
        self._core = CoreModules()
        self._was = self._look()
        self._was_rare = self._look_at_the_rare()
        self._was_remote = _look_at_the_remote()
        self._calls = calls
        if calls is not None:
            calls.set_by_imports.clear()
            calls.put.clear()
            calls.made, calls.passing = made, False

    def _look(self) -> tuple[object, ...]:
        """In the order of the names. This is done after every job: calls stand here as they are."""
        modules, path = self._least
        return (
            _thread._count(),  # noqa: SLF001 - all threads that Python started, in 50 ns
            _lowest_free_descriptor() in self._descriptors,
            sys.getrecursionlimit(),
            (gc.isenabled(), gc.get_threshold()),
            (sys.gettrace(), sys.getprofile()),
            (sys.excepthook, sys.unraisablehook, threading.excepthook, tuple(gc.callbacks)),
            faulthandler.is_enabled(),
            _output(),
            warnings.filters == self._filters or _raising_warnings() == self._raising,
            len(sys.modules) >= modules and len(sys.path) >= path and self._are_finders_as_before(),
            _start_method(was_chosen=self._start_method_was_chosen),
            self._core.are_changed(),
            self._tripwires.touched,
            settings(),
            arithmetic(),
            tempdir(self._usual),
        )

    def _are_finders_as_before(self) -> bool:
        """What finds modules is as it was, or a module that a job has imported has added to that (`six` does)."""
        loaded, finders = len(sys.modules), (len(sys.meta_path), len(sys.path_hooks))
        if finders != self._finders:
            if loaded <= self._loaded or finders < self._finders:
                return False
            self._finders = finders
        self._loaded = loaded
        return True

    def _look_at_the_rare(self) -> tuple[object, ...]:
        """In the order of their names: what is looked at after a call that may have changed it, and after long jobs."""
        return (
            _directory(),
            list(map(getrlimit, _LIMITS)),
            self._core.differ_unnoticed(),
            tuple(map(getsignal, _SIGNALS)),
            (getitimer(_REAL), getitimer(_VIRTUAL), getitimer(_PROF)),
            pthread_sigmask(signal.SIG_BLOCK, ()),
            set_wakeup_fd(-1),
            _umask(),
            setlocale(_ALL_CATEGORIES),
            (os.geteuid(), os.getegid()),
            _scheduling(),
            _standard_files(),
        )

    def is_changed(self, spent_s: float) -> bool:
        """Whether the worker differs from the baseline. Never raises, whatever state a job has left things in.

        Args:
            spent_s: how long the job took: what costs more to look at is looked at after longer jobs.
        """
        faulthandler.cancel_dump_traceback_later()
        try:
            return bool(
                self.changed()
                or (spent_s > LONG_S and self.changed_thoroughly())
                or (spent_s > _VERY_LONG_S and self._remotely_changed())
            )
        except BaseException:  # noqa: BLE001 - a closed stream, a deleted module, an __eq__ of the user's
            return True

    def changed(self) -> str | None:
        """The name of something that differs from the baseline, or None."""
        if self._builtins.spoiled:
            return "builtins"
        if type(os.environ) is not self._environment_type or self._environment_differs():
            return "environment"
        stdout, stderr, stdin = self._streams
        if sys.stdout is not stdout or sys.stderr is not stderr or sys.stdin is not stdin:
            return "standard streams"
        return _differing(self._NAMES, self._look(), self._was) or self._changed_by_calls()

    def _changed_by_calls(self) -> str | None:
        calls = self._calls
        if calls is None or calls.made:
            return self.changed_thoroughly() or self._remotely_changed()
        if calls.passing:
            calls.passing = False
            return self.changed_thoroughly()
        return None

    def _environment_differs(self) -> bool:
        """What a module sets on its import belongs to the module: it stays, as that does (scikit-learn, for one)."""
        variables = os.environ._data  # type: ignore[attr-defined] # noqa: SLF001 - as above
        if self._calls is not None and self._calls.put:
            put, self._calls.put = self._calls.put, {}
            if any(variables.get(name) != value for name, value in put.items()):
                return True
        if variables == self._environment:
            return False
        if self._calls is not None:
            self._environment |= self._calls.set_by_imports
            self._calls.set_by_imports.clear()
            self._environment = {name: value for name, value in self._environment.items() if value is not None}
        return bool(variables != self._environment)

    def changed_thoroughly(self) -> str | None:
        """The same for what only certain calls change, and code in C unheard."""
        return _differing(self._RARE_NAMES, self._look_at_the_rare(), self._was_rare)

    def _remotely_changed(self) -> str | None:
        """What only code in C can change, and code in Python through `ctypes`, of which `Calls` tells."""
        return _differing(self._REMOTE_NAMES, _look_at_the_remote(), self._was_remote)


def _differing(names: tuple[str, ...], now: tuple[object, ...], was: tuple[object, ...]) -> str | None:
    if now == was:
        return None
    return next((name for name, is_, before in zip(names, now, was, strict=True) if is_ != before), None)


def _look_at_the_remote() -> tuple[object, ...]:
    return residue.timers(), residue.surroundings(), residue.ignored_signals(), system.filters_system_calls()
