"""Jobs whose configuration, result, exception or output is a problem, and jobs that eat memory."""

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from robust_eval import Job, RunningJob
from stress.fault import failed_with, fault, own_value
from stress.faults_ending import hang

_FLOOD = b"x" * 79 + b"\n"
_FLOOD_BYTES = 50_000_000
_TAIL_BYTES = 1 << 16


class Poison:
    """An object whose unpickling does something, in every process but the one named."""

    def __init__(self, deed: str, spared_pid: int | None = None) -> None:
        self.state = (deed, os.getpid() if spared_pid is None else spared_pid)

    def __getstate__(self) -> tuple[str, int]:
        return self.state

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.state = state
        deed, spared_pid = state
        if os.getpid() == spared_pid:
            return
        if deed == "raise":
            raise ValueError(deed)
        if deed == "exit":
            os._exit(1)
        hang()


def _poisoned(deed: str) -> Mapping[str, Any]:
    return {"poison": Poison(deed)}


@fault("unpicklable", config=lambda: {"lock": threading.Lock()}, check=failed_with(attempts=0, message="configuration"))
def configuration_does_not_pickle(job: RunningJob) -> float:
    return own_value(job)


@fault("unpicklable", config=lambda: _poisoned("raise"), check=failed_with(message="configuration"))
def configuration_does_not_unpickle(job: RunningJob) -> float:
    return own_value(job)


@fault("crash", config=lambda: _poisoned("exit"), check=failed_with(exit_code=1))
def configuration_exits(job: RunningJob) -> float:
    return own_value(job)


@fault("timeout", config=lambda: _poisoned("hang"))
def configuration_hangs(job: RunningJob) -> float:
    return own_value(job)


def _with_metadata(job: RunningJob, value: object) -> dict[str, Any]:
    return {"objective": own_value(job), "metadata": {"extra": value}}


@fault("unpicklable", check=failed_with(message="result"))
def result_does_not_pickle(job: RunningJob) -> Any:
    return _with_metadata(job, threading.Lock())


@fault("unpicklable", check=failed_with(message="result"))
def result_does_not_unpickle_anywhere(job: RunningJob) -> Any:
    return _with_metadata(job, Poison("raise", spared_pid=0))


@fault("unpicklable", check=failed_with(message="in the driver"))
def result_does_not_unpickle_in_the_driver(job: RunningJob) -> Any:
    return _with_metadata(job, Poison("raise"))


@fault("crash")
def result_exits(job: RunningJob) -> Any:
    return _with_metadata(job, Poison("exit", spared_pid=0))


@fault("timeout")
def result_hangs(job: RunningJob) -> Any:
    return _with_metadata(job, Poison("hang", spared_pid=0))


@fault("invalid", check=failed_with(value_repr="nan"), local=True)
def result_is_nan(job: RunningJob) -> float:
    return float("nan")


@fault("invalid", check=failed_with(value_repr="object at"), local=True)
def result_is_no_result(job: RunningJob) -> object:
    return object()


@fault("invalid", local=True)
def objective_is_a_number_too_large(job: RunningJob) -> Any:
    """In a dict numbers keep their type, and this one could neither be compared nor printed."""
    return {"objective": 10**10_000}


class _HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class _NeedsTwo(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class _HasNoText(Exception):
    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


class _RaisesSystemExit:
    def __reduce__(self) -> Any:
        raise SystemExit


@fault("unpicklable", check=failed_with(message="result"))
def result_raises_system_exit(job: RunningJob) -> Any:
    return _with_metadata(job, _RaisesSystemExit())


class _NeedsMemory:
    def __reduce__(self) -> Any:
        raise MemoryError


@fault("memory", check=failed_with(acted="MemoryError"))
def result_needs_too_much_memory(job: RunningJob) -> Any:
    return _with_metadata(job, _NeedsMemory())


class _CannotBeReduced(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit


class _ExitsInReduce(Exception):
    def __reduce__(self) -> Any:
        os._exit(7)


@fault("exception", check=failed_with(exception_type="_HoldsALock", message="holds a lock", exception=None), local=True)
def exception_does_not_pickle(job: RunningJob) -> None:
    raise _HoldsALock


@fault("exception", check=failed_with(exception_type="_NeedsTwo", message="one and two", exception=None), local=True)
def exception_does_not_unpickle(job: RunningJob) -> None:
    first = "one"
    raise _NeedsTwo(first, "two")


@fault("exception", check=failed_with(exception_type="_HasNoText", message="__str__"), local=True)
def exception_has_no_text(job: RunningJob) -> None:
    raise _HasNoText


@fault("exception", check=failed_with(exception_type="_CannotBeReduced", message="here"), local=True)
def exception_raises_in_reduce(job: RunningJob) -> None:
    message = "here"
    raise _CannotBeReduced(message)


@fault("crash", check=failed_with(exit_code=7))
def exception_exits_in_reduce(job: RunningJob) -> None:
    raise _ExitsInReduce


@fault("exception", check=failed_with(exception_type="KeyError"), local=True)
def exception_with_a_thousand_causes(job: RunningJob) -> None:
    error: Exception = ValueError()
    for _ in range(1000):
        following = KeyError("again")
        following.__cause__ = error
        error = following
    raise error


@fault("exception", check=failed_with(exception_type="KeyError"), local=True)
def exception_that_is_its_own_cause(job: RunningJob) -> None:
    first, second = KeyError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


@fault("exception", check=failed_with(exception_type="ExceptionGroup"), local=True)
def exception_group(job: RunningJob) -> None:
    message = "several"
    raise ExceptionGroup(message, [ValueError(number) for number in range(100)])


@fault("exception", check=failed_with(exception_type="ExceptionGroup", traceback="left out"), local=True)
def exception_groups_that_share(job: RunningJob) -> None:
    """As many ways lead to the inmost as there are in a tree of fifty levels."""
    error: Exception = ValueError("inmost")
    for _ in range(50):
        error = ExceptionGroup("around", [error, error])
    raise error


@fault("exception", check=failed_with(exception_type="ValueError"), local=True)
def exception_of_a_million_lines(job: RunningJob) -> None:
    raise ValueError("line\n" * 1_000_000)


@fault("exception", check=failed_with(exception_type="ValueError"))
def exception_of_a_hundred_megabytes(job: RunningJob) -> None:
    raise ValueError("x" * 100_000_000)


def _array_came_whole(job: Job) -> None:
    extra = job.metadata["extra"]
    assert extra.nbytes == 100_000_000
    assert extra[-1] == 7


@fault(check=_array_came_whole)
def result_of_a_hundred_megabytes(job: RunningJob) -> Any:
    return _with_metadata(job, np.full(100_000_000, 7, dtype=np.uint8))


@fault(config=lambda: {"array": np.ones(10_000_000, dtype=np.uint8)})
def configuration_of_ten_megabytes(job: RunningJob) -> float:
    return own_value(job) + float(job["array"].sum()) - 10_000_000.0


def _gibibyte_came_whole(job: Job) -> None:
    extra = job.metadata.pop("extra")
    assert extra.nbytes == 2**30
    assert extra[-1] == 7


@fault(check=_gibibyte_came_whole, heavy=True)
def result_of_a_gibibyte(job: RunningJob) -> Any:
    return _with_metadata(job, np.full(2**30, 7, dtype=np.uint8))


# -- output


@fault()
def print_fifty_megabytes(job: RunningJob) -> float:
    for _ in range(_FLOOD_BYTES // len(_FLOOD) // 1000):
        os.write(1, _FLOOD * 1000)
    return own_value(job)


def _tail_is_kept(job: Job) -> None:
    assert job.failure is not None
    assert 0 < len(job.failure.output_tail) <= _TAIL_BYTES
    assert job.failure.output_tail.rstrip().endswith("the end")


@fault("exception", check=_tail_is_kept)
def print_fifty_megabytes_and_raise(job: RunningJob) -> None:
    for _ in range(_FLOOD_BYTES // len(_FLOOD)):
        sys.stdout.write("x" * 79 + "\n")
    print("the end")  # noqa: T201 - that is the fault
    raise ValueError


@fault("timeout")
def print_without_end(job: RunningJob) -> None:
    while True:
        os.write(2, _FLOOD * 1000)


@fault("exception", check=failed_with(output_tail="\\xff\\xfe"))
def print_what_is_not_text(job: RunningJob) -> None:
    os.write(1, b"\xff\xfe\0")
    raise ValueError
