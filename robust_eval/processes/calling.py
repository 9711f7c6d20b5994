"""A function call as it travels: the driver takes snapshots of functions, workers keep what they unpickled.

A function of a script or a notebook goes by value, which costs 100 us to pickle, and each copy that is unpickled has
globals of its own, so that what it keeps there (a model loaded once, a cache) would be gone at the next call. Hence a
plain function is pickled once, and each worker unpickles it once. It is pickled anew as soon as a global that it uses
was rebound, so that a notebook sees what it would see without all this.
"""

import itertools
import types
from collections.abc import Callable
from typing import Any

from robust_eval.errors import JobStop
from robust_eval.processes.blame import Unpicklable
from robust_eval.processes.parcel import Parcel, mentions_of, pack, unpack

_MOST_KEPT = 256
_MISSING = object()
_KNOWN: dict[int, Callable[..., Any]] = {}  # of this worker; the driver leaves it empty


class Calling:
    """The runner of a pool of calls.

    Args:
        snapshot: of the function that the template loads, modules and all; None for none.
    """

    def __init__(self, snapshot: "Snapshot | None" = None) -> None:
        self._snapshot = snapshot

    def __call__(self, arguments: tuple[int | None, Any, tuple[Any, ...], dict[str, Any]], _context: object) -> Any:
        """Call what the job names: the snapshot of this key, which comes with it, or a function without a key."""
        key, function, args, kwargs = arguments
        if key is not None:
            function = _KNOWN[key] if key in _KNOWN else _recall(key, function)
        return function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # The function itself, not its bytes: in one pickle with the initializer it shares the globals of that.
        known = () if self._snapshot is None else (self._snapshot.key, self._snapshot.function)
        return _with_known, known


def _with_known(key: int | None = None, function: Callable[..., Any] | None = None) -> Calling:
    if key is not None and function is not None:
        _KNOWN[key] = function
    return Calling()


class Snapshot:
    """A function as it was when it was first called: `data` is its pickle."""

    def __init__(self, key: int, function: types.FunctionType) -> None:
        self.key = key
        self.function = function
        self.data: Parcel = pack(function)
        self.mentions = mentions_of(self.data)
        by_value = isinstance(self.data, bytes) and b"cloudpickle" in self.data
        self._globals = _referenced(function) if by_value else {}

    @property
    def small(self) -> bool:
        """Whether it lies inline."""
        return isinstance(self.data, bytes)

    @property
    def current(self) -> bool:
        """Whether every global that the function uses is what it was."""
        if not self._globals:
            return True
        space = self.function.__globals__
        return all(space.get(name, _MISSING) is value for name, value in self._globals.items())


def _recall(key: int, data: bytes) -> Callable[..., Any]:
    try:
        function: Callable[..., Any] = unpack(data)
    except (JobStop, MemoryError):
        raise
    except BaseException as error:  # the modules that it needs may do anything on their import
        raise Unpicklable("configuration", error) from error
    _KNOWN[key] = function
    if len(_KNOWN) > _MOST_KEPT:
        _, oldest = itertools.islice(_KNOWN, 2)  # the first is the one that came with the initializer
        del _KNOWN[oldest]
    return function


def _referenced(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function uses, by itself or through functions beside it."""
    found: dict[str, Any] = {}
    space = function.__globals__
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for name in code.co_names:
            if name in space and name not in found:
                value = found[name] = space[name]
                if isinstance(value, types.FunctionType) and value.__globals__ is space:
                    todo.append(value.__code__)
    return found


class Snapshots:
    """The snapshots that a driver took. Thread-safe: at worst one is taken twice."""

    def __init__(self) -> None:
        self._keys = itertools.count(1)
        self._taken: dict[types.FunctionType, Snapshot] = {}

    def of(self, function: Callable[..., Any]) -> "Snapshot | Callable[..., Any]":
        """What to pickle for a function.

        Closures, partials, methods and other objects have state that may change between two calls: they go as they
        are, each time.

        Raises:
            Exception: whatever pickling raises.
        """
        if type(function) is not types.FunctionType or function.__closure__:
            return function
        snapshot = self._taken.get(function)
        if snapshot is None or not snapshot.current:
            snapshot = Snapshot(next(self._keys), function)
            if not snapshot.small:
                return function
            if len(self._taken) >= _MOST_KEPT:
                self._taken.clear()
            self._taken[function] = snapshot
        return snapshot
