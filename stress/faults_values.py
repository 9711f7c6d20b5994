"""Jobs that return or raise what nobody expects. None of it harms a process, so every method must report it alike."""

import asyncio
import collections
import contextlib
import decimal
import fractions
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from robust_eval import JobStop, RunningJob
from stress.fault import failed_with, fault, own_value
from stress.faults_ending import hang


def _with_metadata(job: RunningJob, value: object) -> dict[str, Any]:
    return {"objective": own_value(job), "metadata": {"extra": value}}


# -- what is a number, in disguise


@fault(local=True)
def result_is_a_numpy_scalar(job: RunningJob) -> Any:
    return np.float64(own_value(job))


@fault(local=True)
def result_is_a_decimal(job: RunningJob) -> Any:
    return decimal.Decimal(int(own_value(job)))


@fault(local=True)
def result_is_a_fraction(job: RunningJob) -> Any:
    return fractions.Fraction(int(own_value(job)), 1)


@fault(local=True)
def result_is_a_coroutine(job: RunningJob) -> Any:
    async def later() -> float:
        await asyncio.sleep(0.0)
        return own_value(job)

    return later()


# -- what is none


@fault("invalid", local=True)
def result_is_none(job: RunningJob) -> None:
    return None


@fault("invalid", local=True)
def result_is_a_complex_number(job: RunningJob) -> Any:
    return complex(own_value(job), 1.0)


@fault("invalid", local=True)
def result_is_an_array(job: RunningJob) -> Any:
    return np.full((1000, 1000), own_value(job))


@fault("invalid", local=True)
def result_is_a_generator(job: RunningJob) -> Iterator[float]:
    yield own_value(job)


@fault("invalid", local=True)
def result_is_an_infinite_generator(job: RunningJob) -> Any:
    return (own_value(job) for _ in iter(int, 1))


@fault("invalid", local=True)
def result_is_a_lock(job: RunningJob) -> Any:
    return threading.Lock()


@fault("invalid", local=True)
def result_is_a_thread(job: RunningJob) -> Any:
    return threading.Thread(target=hang)


@fault("invalid", local=True)
def result_is_a_socket(job: RunningJob) -> Any:
    with socket.socket() as closed:
        return closed


@fault("invalid", local=True)
def result_is_a_module(job: RunningJob) -> Any:
    return sys


@fault("invalid", local=True)
def result_is_a_weak_reference(job: RunningJob) -> Any:
    return weakref.ref(hang)


@fault("invalid", local=True)
def result_is_a_class(job: RunningJob) -> Any:
    return float


@fault("invalid", local=True)
def result_is_a_number_too_large(job: RunningJob) -> Any:
    return 10**10_000


@fault("invalid", local=True)
def result_is_empty(job: RunningJob) -> Any:
    return ()


class _Endless(collections.UserString):
    def __repr__(self) -> str:
        return "x" * 100_000_000


@fault("invalid", local=True)
def result_has_a_huge_text(job: RunningJob) -> Any:
    return _Endless("x")


class _Thorny:
    """Whatever is asked of it raises."""

    def _raise(self, *_: object) -> NoReturn:
        raise ValueError("thorn")

    __eq__ = __lt__ = __bool__ = __float__ = __len__ = __iter__ = __repr__ = __str__ = _raise  # type: ignore[assignment]
    __index__ = __contains__ = __getitem__ = __format__ = __int__ = __complex__ = __hash__ = _raise  # type: ignore[assignment]


@fault("invalid", "exception", local=True)
def result_raises_whatever_is_asked(job: RunningJob) -> Any:
    return _Thorny()


@fault("invalid", "exception", local=True)
def objective_raises_whatever_is_asked(job: RunningJob) -> Any:
    return {"objective": _Thorny()}


class _ThornyFloat(float):
    def _raise(self, *_: object) -> NoReturn:
        raise ValueError("thorn")

    __float__ = __eq__ = __sub__ = __repr__ = __bool__ = __reduce__ = __reduce_ex__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


@fault("invalid", "exception", "unpicklable", local=True)
def result_is_a_float_that_raises(job: RunningJob) -> Any:
    return _ThornyFloat(own_value(job))


class _HangingFloat(float):
    def __float__(self) -> float:
        hang()

    __eq__ = __sub__ = __repr__ = __bool__ = __float__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


@fault("timeout")
def result_is_a_float_that_hangs(job: RunningJob) -> Any:
    return _HangingFloat(own_value(job))


class _LiesAboutItsClass:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise ValueError("no class")


@fault("invalid", "exception", local=True)
def result_lies_about_its_class(job: RunningJob) -> Any:
    return _LiesAboutItsClass()


class _ThornyDict(dict[str, Any]):
    def _raise(self, *_: object) -> NoReturn:
        raise ValueError("thorn")

    __iter__ = keys = items = values = __contains__ = get = __getitem__ = _raise  # type: ignore[assignment]


@fault("invalid", "exception", local=True)
def result_is_a_dict_that_raises(job: RunningJob) -> Any:
    return _ThornyDict(objective=own_value(job))


class _ThornyMapping(collections.UserDict[str, Any]):
    def __iter__(self) -> Iterator[str]:
        raise ValueError("thorn")


@fault("invalid", "exception", local=True)
def metadata_raises_when_read(job: RunningJob) -> Any:
    return {"objective": own_value(job), "metadata": _ThornyMapping(a=1)}


# -- what does not travel


@fault("unpicklable", check=failed_with(message="result"))
def metadata_is_a_generator(job: RunningJob) -> Any:
    return _with_metadata(job, (number for number in range(3)))


@fault("unpicklable", check=failed_with(message="result"))
def metadata_is_a_socket(job: RunningJob) -> Any:
    with socket.socket() as kept:
        return _with_metadata(job, kept)


@fault("unpicklable", check=failed_with(message="result"))
def metadata_is_a_frame(job: RunningJob) -> Any:
    return _with_metadata(job, sys._getframe())


@fault("unpicklable", check=failed_with(message="result"))
def metadata_is_too_deep(job: RunningJob) -> Any:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return _with_metadata(job, nested)


# -- what is raised


@fault("exception", local=True, check=failed_with(exception_type="StopIteration"))
def raise_stop_iteration(job: RunningJob) -> None:
    raise StopIteration


@fault("exception", local=True, check=failed_with(exception_type="CancelledError"))
def raise_cancelled_error(job: RunningJob) -> None:
    raise asyncio.CancelledError


@fault("exception", local=True, check=failed_with(exception_type="SystemExit"))
def exit_with_an_odd_code(job: RunningJob) -> None:
    raise SystemExit([object(), 10**400])


@fault("exception", check=failed_with(exception_type="JobStop"))
def stop_unasked(job: RunningJob) -> None:
    raise JobStop


class _Unnamed(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(name)


class _HasNoName(Exception, metaclass=_Unnamed):
    pass


@fault("exception", local=True)
def exception_has_no_name(job: RunningJob) -> None:
    raise _HasNoName


class _Thorn(Exception):
    """Its attributes raise, too."""

    def _raise(self, *_: object) -> NoReturn:
        raise SystemExit

    __str__ = __repr__ = __reduce__ = __reduce_ex__ = __getattribute__ = __eq__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


@fault("exception", local=True)
def exception_raises_whatever_is_asked(job: RunningJob) -> None:
    raise _Thorn


class _HangsInText(Exception):
    def __str__(self) -> str:  # noqa: PLE0307 - it does not return at all
        hang()


@fault("timeout", check=failed_with(stack="__str__"))
def exception_hangs_in_its_text(job: RunningJob) -> None:
    raise _HangsInText


class _HasOddNotes(Exception):
    __notes__ = (n for n in "not a list")  # type: ignore[assignment]


@fault("exception", local=True)
def exception_has_odd_notes(job: RunningJob) -> None:
    raise _HasOddNotes


@fault("exception", local=True, check=failed_with(exception_type="ExceptionGroup"))
def exception_group_of_a_thousand_levels(job: RunningJob) -> None:
    error: Exception = ValueError("inmost")
    for _ in range(1000):
        error = ExceptionGroup("around", [error])
    raise error


@fault("exception", local=True)
def exception_with_args_that_raise(job: RunningJob) -> None:
    raise ValueError(_Thorny(), _Thorny())


@fault("exception", check=failed_with(exception_type="RecursionError"), heavy=True)
def traceback_of_a_million_frames(job: RunningJob) -> None:
    sys.setrecursionlimit(1_000_000)

    def deeper(left: int) -> None:
        deeper(left - 1)

    deeper(0)


@fault("exception", local=True, check=failed_with(exception_type="UnicodeEncodeError"))
def exception_with_lone_surrogates(job: RunningJob) -> None:
    "\udc80 \ud800".encode()


@fault(check=None)
def record_what_does_not_travel(job: RunningJob) -> float:
    with contextlib.suppress(Exception):
        job.record(1, threading.Lock())
    return own_value(job)


class _ExitsInTheDriver:
    """Unpickles in the process that made it, and nowhere else."""

    def __init__(self) -> None:
        import os

        self.home = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        import os

        if os.getpid() != state["home"]:
            raise SystemExit


@fault("unpicklable", check=failed_with(message="in the driver"))
def result_exits_in_the_driver(job: RunningJob) -> Any:
    return _with_metadata(job, _ExitsInTheDriver())


class _ExceptionExitsInTheDriver(Exception):
    def __reduce__(self) -> Any:
        return _revived, (_ExitsInTheDriver(),)


def _revived(_: object) -> Exception:
    return _ExceptionExitsInTheDriver()


@fault("exception", check=failed_with(exception_type="_ExceptionExitsInTheDriver"))
def exception_exits_in_the_driver(job: RunningJob) -> None:
    raise _ExceptionExitsInTheDriver


@fault()
def record_what_exits_in_the_driver(job: RunningJob) -> float:
    with contextlib.suppress(ValueError, TypeError):
        job.record(1, _ExitsInTheDriver())
    return own_value(job)


@fault("timeout")
def record_without_end(job: RunningJob) -> None:
    for number in iter(int, 1):
        job.record(number, 1.0)
