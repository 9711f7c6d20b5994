"""An exception of the user's code as the plain fields of a failure.

The exception is the user's object: its `__str__` and `__reduce__` may raise or say a million lines. Whatever it does
happens in the worker, under the job's own clock, and what leaves the worker is bounded text.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from robust_eval.errors import ASKED_TO_END, CommandFailed, InvalidOutput, JobStop, traceback_of
from robust_eval.processes.parcel import open_parcel, pack, unpack

if TYPE_CHECKING:
    from types import TracebackType

_MOST_FRAMES = 100
_MOST_CHARS = 1 << 16
_MOST_EXCEPTION_BYTES = 1 << 18


class Unpicklable(Exception):
    """The job's configuration or result cannot cross the process boundary."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(
            f"the {what} cannot be {'un' if what == 'configuration' else ''}pickled: {describe_error(error)}"
        )


class Blame(NamedTuple):
    """A failure kind and the fields that go with it."""

    kind: str
    fields: dict[str, Any]


def blame(error: BaseException, *, unwind: int, stop_requested: bool = True) -> Blame:
    """What to report for an exception.

    Args:
        error: the exception.
        unwind: how many frames of ours at the top of its traceback are left out.
        stop_requested: whether the job was asked to stop; a `JobStop` is the user's own where it was not.
    """
    try:
        return _blame(error, unwind, stop_requested=stop_requested)
    except BaseException as second:  # noqa: BLE001 - the user's class, asked for its name or for anything else
        message = f"an exception that cannot be described: asked for what it is, it raised {describe_error(second)}"
        return Blame("exception", {"message": message})


def _blame(error: BaseException, unwind: int, *, stop_requested: bool) -> Blame:
    origin = error.__cause__ if isinstance(error, Unpicklable) and error.__cause__ is not None else error
    fields: dict[str, Any] = {
        "message": _bounded(str(error) if isinstance(error, Unpicklable) else describe_error(error)),
        "exception_type": _name(origin),
        "traceback": traceback_text(origin, unwind=unwind),
        "exception": _proven(origin),
    }
    if isinstance(error, JobStop) and stop_requested:
        return Blame("timeout", {})
    if isinstance(error, Unpicklable):
        return Blame("unpicklable", fields)
    if isinstance(error, InvalidOutput):
        return Blame("invalid", {"message": str(error), "value_repr": error.value_repr})
    if isinstance(error, CommandFailed):
        return Blame("crash", {"message": str(error), "signal": error.signal, "exit_code": error.exit_code})
    if isinstance(error, MemoryError):
        return Blame("memory", {**fields, "acted": "MemoryError"})
    return Blame("exception", fields)


def _name(error: BaseException) -> str:
    try:
        return str(type(error).__qualname__)
    except BaseException:  # noqa: BLE001 - the user's metaclass
        return "(an exception whose class does not tell its name)"


def describe_error(error: BaseException) -> str:
    """Type and message of an exception in one text, whatever its `__str__` does."""
    name = _name(error)
    try:
        text = str(error)
    except BaseException as second:  # noqa: BLE001 - the user's __str__
        return f"{name} (its __str__ raised {type(second).__qualname__})"
    return f"{name}: {text}" if text else name


def traceback_text(error: BaseException, *, unwind: int) -> str:
    """The traceback of an exception as bounded text, without its `unwind` topmost frames."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and unwind > 0:
        trace = trace.tb_next
        unwind -= 1
    try:
        return _bounded(traceback_of(error, trace, -_MOST_FRAMES))
    except BaseException as second:  # noqa: BLE001 - formatting runs the user's __str__ and __repr__
        return f"(the traceback could not be formatted: {type(second).__qualname__})"


def _bounded(text: str) -> str:
    if len(text) <= _MOST_CHARS:
        return text
    half = _MOST_CHARS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def _proven(error: BaseException) -> bytes | None:
    """The pickled exception if it is small and comes back from pickling; it never carries its traceback."""
    try:
        parcel = pack(error)
        if not isinstance(parcel, bytes) or len(parcel) > _MOST_EXCEPTION_BYTES:
            return None
        if not isinstance(unpack(open_parcel(parcel)), BaseException):
            return None
    except BaseException:  # noqa: BLE001 - the user's __reduce__ and __setstate__, which may raise SystemExit
        return None
    return parcel


def rebuilt(parcel: bytes | None) -> BaseException | None:
    """The exception in a report, or None where it does not unpickle here."""
    if parcel is None:
        return None
    try:
        error = unpack(parcel)
    except ASKED_TO_END:  # a Ctrl-C of the driver's user
        raise
    except BaseException:  # noqa: BLE001 - the user's constructor, which may raise SystemExit
        return None
    return error if isinstance(error, BaseException) else None
