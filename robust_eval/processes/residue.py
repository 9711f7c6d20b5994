"""What a job leaves that no function of the interpreter tells of: patched modules, garbage, calls that nobody can undo.

`hygiene.Baseline` asks; nothing here knows jobs or channels.
"""

import _thread
import ctypes
import gc
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress  # by name: a job may put something else in its module
from types import ModuleType
from typing import Any, cast

# What nearly every function uses. What a library adds to them later is no harm, so that only what was there counts.
_CORE = (
    "_thread",
    "contextlib",
    "copy",
    "fcntl",
    "functools",
    "gc",
    "inspect",
    "io",
    "itertools",
    "json",
    "marshal",
    "math",
    "os",
    "pickle",
    "posixpath",
    "random",
    "resource",
    "select",
    "signal",
    "socket",
    "struct",
    "subprocess",
    "threading",
    "time",
    "traceback",
)
# Their methods. Classes written in C cannot be changed.
_CLASSES = (
    ("json.decoder", "JSONDecoder"),
    ("json.encoder", "JSONEncoder"),
    ("logging", "Logger"),
    ("os", "_Environ"),
    ("pathlib", "Path"),
    ("random", "Random"),
    ("robust_eval.job", "RunningJob"),
    ("socket", "socket"),
    ("subprocess", "Popen"),
    ("threading", "Condition"),
    ("threading", "Event"),
    ("threading", "Thread"),
)
_VERSION_OFFSET = 24
_COLLECTION_SHARE = 4
_ONE, _LITTLE = 1.0, 2.0**-60
_TEMPORARY_DIRECTORIES = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108 - nothing is made there
# What a job finds that is the first to import `decimal`, which is no change.
_DEFAULT_CONTEXT = (
    "Context(prec=28, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999, capitals=1, clamp=0, flags=[], "
    "traps=[InvalidOperation, DivisionByZero, Overflow])"
)
_NAMESPACES = ("/proc/self/ns/mnt", "/proc/self/ns/net")


class CoreModules:
    """The functions and classes of the modules that everybody uses, ours included, and which modules are loaded."""

    def __init__(self) -> None:
        # A user's module may have the name of one of these, or None may stand there, so that nobody imports it.
        loaded = [module for module in map(sys.modules.get, _CORE) if type(module) is ModuleType]
        spaces: list[dict[str, Any]] = [*map(vars, loaded), sys.modules]
        named = [getattr(sys.modules.get(module), name, None) for module, name in _CLASSES]
        classes = [_space_of(class_) for class_ in named if isinstance(class_, type)]
        self._spaces = [(space, dict(space)) for space in spaces]
        self._classes = [(space, dict(space)) for space in classes]
        versions = [version_of(space) for space in (*spaces, *classes)]
        self._versions = [version for version in versions if version is not None]
        self._seen = self._now()

    def _now(self) -> bytes:
        return b"".join(self._versions)  # in one call, at half the cost of asking each for its value

    def are_changed(self) -> bool:
        """Whether any of them is another one. Costs 1 us where the interpreter counts the changes of a dict."""
        now = self._now()
        if now == self._seen:
            return False
        self._seen = now
        return self._differ()

    def differ_unnoticed(self) -> bool:
        """The same where it does not count them, which costs 20 us."""
        return not self._versions and self._differ()

    def _differ(self) -> bool:
        """What was added to a module is no harm; to a class, it stands before what that inherits."""
        spaces = any(space != was and not was.items() <= space.items() for space, was in self._spaces)
        return spaces or any(space != was for space, was in self._classes)


def _space_of(class_: type) -> dict[str, Any]:
    """The dictionary behind what a class shows of it: that is all that the view refers to."""
    (space,) = gc.get_referents(vars(class_))
    return cast("dict[str, Any]", space)


def version_of(space: dict[str, Any]) -> "ctypes.c_uint64 | None":
    """Where CPython 3.11 keeps the version of a dictionary, which changes with every change of it; None elsewhere.

    Comparing all builtins would cost 1.5 us a job, and a look at this one number 0.05.
    """
    if sys.version_info >= (3, 12):
        return None
    probe = {"a": 1}
    version = ctypes.c_uint64.from_address(id(probe) + _VERSION_OFFSET)
    seen = [version.value, version.value]
    probe["a"] = 2
    seen.append(version.value)
    probe["b"] = 3
    seen.append(version.value)
    known = seen[0] == seen[1] < seen[2] < seen[3]
    return ctypes.c_uint64.from_address(id(space) + _VERSION_OFFSET) if known else None


class Garbage:
    """Cycles that nobody has collected yet. Collected in another job's time, what they do then is charged to that."""

    def __init__(self) -> None:
        self._cost_s = 0.0
        self._counts = (0, 0, 0)
        self._full_collections = 0
        self._modules = 0

    def settle(self) -> None:
        """What is there now is the worker's own and stays: no later collection has to look through it."""
        gc.collect()
        self._freeze()
        self._full_collections = _full_collections()
        self._leave_none_young()

    def _freeze(self) -> None:
        gc.freeze()
        self._modules = len(sys.modules)
        self._cost_s = 0.0

    @staticmethod
    def _leave_none_young() -> None:
        gc.collect(0)  # the second count is positive now: that of a job which collects everything is not

    def begin(self) -> None:
        """A job begins. What comes and goes between jobs is none of theirs."""
        self._counts = gc.get_count()

    def collect(self, spent_s: float, clock: Callable[[], float]) -> None:
        """Run what a job left to be run.

        A job after which as many objects are there as before it left none. Else what is new is in the youngest
        generation where no collection ran meanwhile, in the next where only that was collected, and where both were,
        in the oldest. That is gone through if the job itself has had it gone through, or took long enough for that.

        Args:
            spent_s: how long the job took.
            clock: says how much processor time was spent, in seconds: others may have the core meanwhile.
        """
        counts = gc.get_count()
        if counts == self._counts or not gc.isenabled():
            return
        with suppress(BaseException):  # an interrupt that the job asked for and did not wait for
            if counts[1:] != self._counts[1:]:
                had_all = _full_collections() != self._full_collections
                if counts[2] == self._counts[2] and not had_all:
                    gc.collect(1)
                elif had_all or spent_s >= _COLLECTION_SHARE * self._cost_s:
                    self._collect_all(clock)
            self._leave_none_young()

    def _collect_all(self, clock: Callable[[], float]) -> None:
        begun_at = clock()
        gc.collect()
        self._cost_s = clock() - begun_at
        if len(sys.modules) > self._modules:  # most of what there is was made by an import, and stays as well
            self._freeze()
        self._full_collections = _full_collections()


def _full_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def temporary_directory() -> str | None:
    """The directory that `multiprocessing` made for the sockets of this process, which it would remove at an exit."""
    process = sys.modules.get("multiprocessing.process")
    config: dict[str, Any] = {} if process is None else process.current_process()._config  # noqa: SLF001 - no public name
    return config.get("tempdir")


def remove_temporary_directory(kept: str | None) -> None:
    """Remove it, unless it is this one."""
    directory = temporary_directory()
    if directory is None or directory == kept:
        return
    del sys.modules["multiprocessing.process"].current_process()._config["tempdir"]  # noqa: SLF001 - as above
    with suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


# -- what a process goes by


def settings() -> object:
    """What threads, sockets and conversions go by."""
    digits = sys.get_int_max_str_digits()
    return sys.getswitchinterval(), digits, _thread.stack_size(), socket.getdefaulttimeout()


def arithmetic() -> object:
    """Whether a little more or less than one is still rounded to the nearest, and how `decimal` calculates.

    Each job has a context of its own, but a decimal context that was there before the first is shared by all.
    """
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return _ONE + _LITTLE, _ONE - _LITTLE, None
    decimal.getcontext().clear_flags()  # that a result was rounded once is no change
    context = str(decimal.getcontext())
    return _ONE + _LITTLE, _ONE - _LITTLE, None if context == _DEFAULT_CONTEXT else context


def usual_temporary_directories() -> frozenset[str | None]:
    """Where `tempfile` looks; and None, which it goes by before it has looked."""
    named = filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    with suppress(OSError):
        return frozenset((None, *map(os.path.abspath, named), *_TEMPORARY_DIRECTORIES, os.getcwd()))
    return frozenset((None, *_TEMPORARY_DIRECTORIES))


def tempdir(usual: frozenset[str | None]) -> str | None:
    """Where a job had `tempfile` put all files from then on; to have asked for the usual place is no change."""
    tempfile = sys.modules.get("tempfile")
    chosen: str | None = None if tempfile is None else tempfile.tempdir
    return None if chosen in usual else chosen


def timers() -> object:
    """The timers of timer_create(2), which only the kernel lists."""
    try:
        with open("/proc/self/timers", "rb") as file:
            return file.read()
    except OSError:
        return None


def surroundings() -> object:
    """Which root directory, mounts and network there are."""
    root = os.stat("/")
    return root.st_dev, root.st_ino, *map(_namespace, _NAMESPACES)


def ignored_signals() -> bytes | None:
    """What the kernel says is ignored. Code in C can have it so, and Python's own table shows nothing then."""
    try:
        with open("/proc/self/status", "rb") as file:
            return next((line for line in file if line.startswith(b"SigIgn:")), None)
    except OSError:
        return None


def _namespace(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
