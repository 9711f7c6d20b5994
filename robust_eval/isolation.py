"""One call in one supervised process: `call`, and `@isolated` for a function that is always called so.

It owns the pools that such calls share: one for each module whose functions are called, since its template has that
module loaded, closed when others are needed more, and at exit.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
from collections import OrderedDict
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, overload

from robust_eval.calls import failure_in
from robust_eval.errors import EvaluatorClosed, InvalidArgumentType, bounded_repr
from robust_eval.executor import RobustExecutor
from robust_eval.places import place_of, raise_at

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")
_MOST_POOLS = 8
_MARK = "__robust_eval_isolated__"


class PatientExecutor(RobustExecutor):
    """An executor whose failures are compared by their stacks, so that even a busy machine must deliver these."""

    _DUMP_S = 2.0


class _Options(NamedTuple):
    job_timeout: float | None
    memory_limit: float | str | None
    num_workers: int
    max_tasks_per_child: int | None


def call(
    fn: Callable[..., T],
    /,
    *args: Any,
    job_timeout: float | None = None,
    memory_limit: float | str | None = None,
    num_workers: int = 1,
    max_tasks_per_child: int | None = None,
    **kwargs: Any,
) -> T:
    """Call a function in a supervised process, and wait for it.

    The first call of a module's functions starts a process that imports the module; further ones take less than a
    millisecond more than the function does. Thread-safe; in a forked child it starts processes of its own.

    Args:
        fn: the function. What it prints is shown only in its failure.
        *args: its arguments.
        job_timeout: seconds that it may run; None for no limit.
        memory_limit: what its process tree may take: bytes, ``"2GiB"``, a share of the machine, ``"auto"``.
        num_workers: how many calls of several threads run at once.
        max_tasks_per_child: calls that a process does before it is replaced; 1 is a fresh process for each.
        **kwargs: its keyword arguments.

    Returns:
        What the function returned.

    Raises:
        JobTimeout: it ran longer than it may. Like all of these it has a ``failure``, and its traceback ends at the
            place in the source that the call could not leave.
        JobMemoryExceeded: it took more memory than it may.
        JobCrashed: its process ended.
        Exception: whatever the function raised, caused by a `RemoteTraceback`.
    """
    options = _Options(job_timeout, memory_limit, num_workers, max_tasks_per_child)
    return _call(fn, getattr(fn, "__module__", None), options, args, kwargs)  # type: ignore[no-any-return]


@overload
def isolated(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def isolated(
    *,
    job_timeout: float | None = None,
    memory_limit: float | str | None = None,
    num_workers: int = 1,
    max_tasks_per_child: int | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def isolated(
    function: Callable[P, T] | None = None,
    /,
    *,
    job_timeout: float | None = None,
    memory_limit: float | str | None = None,
    num_workers: int = 1,
    max_tasks_per_child: int | None = None,
) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function that runs in a supervised process whenever it is called; see `call`.

    Below ``@given`` it lets Hypothesis find and shrink arguments that hang, crash or exhaust memory, which would
    otherwise end the run.

    Args:
        function: the function, where the decorator is used without arguments.
        job_timeout: as for `call`.
        memory_limit: as for `call`.
        num_workers: as for `call`.
        max_tasks_per_child: as for `call`.

    Returns:
        The function that runs in a process; without ``function``, the decorator that makes it.

    Raises:
        InvalidArgumentType: what is decorated is not a function.
    """
    options = _Options(job_timeout, memory_limit, num_workers, max_tasks_per_child)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if not hasattr(function, "__qualname__"):  # a staticmethod has one too, and can be called
            msg = f"@isolated stands over {bounded_repr(function)}. Put it over a function: @isolated(job_timeout=5)."
            raise InvalidArgumentType(msg)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            __tracebackhide__ = True  # pytest's: the frames that matter are the caller's and the function's
            return _call(_portable(function), function.__module__, options, args, kwargs)  # type: ignore[no-any-return]

        setattr(wrapper, _MARK, function)
        return wrapper

    return decorate if function is None else decorate(function)


def _call(fn: Any, module: str | None, options: _Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    __tracebackhide__ = True
    while True:
        executor = _SHELF.take(module, options).with_options(
            job_timeout=options.job_timeout, memory_limit=options.memory_limit
        )
        try:
            future = executor.submit(fn, *args, **kwargs)
        except EvaluatorClosed:  # another thread needed its place
            continue
        break
    try:
        error = future.exception()
    except BaseException:  # Ctrl-C, or a time limit of the caller's own
        executor.kill(future)
        raise
    if error is None:
        return future.result()
    return raise_at(error, place_of(failure_in(error)))


class _Shelf:
    """The pools of this process, the least recently used first."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._executors: OrderedDict[tuple[Any, ...], RobustExecutor] = OrderedDict()

    def take(self, module: str | None, options: _Options) -> RobustExecutor:
        """The pool for functions of a module, made where there is none."""
        if self._pid != os.getpid():  # a forked child, which may not use its parent's
            self.__init__()  # type: ignore[misc]
        key = (module, options.num_workers, options.max_tasks_per_child)
        with self._lock:
            executor = self._executors.get(key)
            if executor is None:
                # Imported by the template: it is not on the clock of the first call, nor of the first after a kill.
                preload = (module,) if module is not None and _can_be_imported(module) else ()
                executor = PatientExecutor(
                    options.num_workers, max_tasks_per_child=options.max_tasks_per_child, preload=preload
                )
                self._executors[key] = executor
            self._executors.move_to_end(key)
            surplus = self._executors.popitem(last=False)[1] if len(self._executors) > _MOST_POOLS else None
        if surplus is not None:
            surplus.shutdown(wait=False)  # once its calls are done
        return executor

    def close(self) -> None:
        """Close every pool; the next call makes a new one."""
        with self._lock:
            executors = list(self._executors.values())
            self._executors.clear()
        for executor in executors:
            executor.shutdown()


# The one thing here that changes: calls from anywhere in the program share processes, which is what makes them cheap.
_SHELF = _Shelf()


# -- decorated functions, which their own names no longer lead to


class _Original:
    """Unpickles into the function below its decorators."""

    def __init__(self, module: str, qualname: str) -> None:
        self._where = module, qualname

    def __call__(self) -> None:
        """Executors take what can be called; this is never called here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _original, self._where


def _original(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    while found is not None:
        if _MARK in getattr(found, "__dict__", {}):
            return getattr(found, _MARK)
        # Hypothesis hides the test below @given here.
        given = getattr(getattr(found, "hypothesis", None), "inner_test", None)
        found = given or getattr(found, "__wrapped__", None)
    raise AttributeError(f"{module}.{qualname} is not below @isolated")


def _portable(function: Any) -> Any:
    """What to pickle for a decorated function: its name where workers can import that, else itself, by value."""
    module, qualname = function.__module__, function.__qualname__
    if "<locals>" in qualname or not _can_be_imported(module):
        return function
    try:
        named = _original(module, qualname) is function
    except (AttributeError, ImportError):
        named = False
    return _Original(module, qualname) if named else function


@functools.cache
def _can_be_imported(module: str) -> bool:
    """Whether a new interpreter with this path would find the module, and not just this one that has it."""
    found = sys.modules.get(module)
    spec = PathFinder.find_spec(module.partition(".")[0]) if module != "__main__" else None
    if found is None or spec is None:
        return False
    return "." in module or spec.origin == getattr(found, "__file__", None)
