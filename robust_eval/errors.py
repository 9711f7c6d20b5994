"""Every exception of the package, under one root.

Three kinds are kept apart. *You misused it*: also a ``ValueError`` or ``TypeError``, and the message names the
value, what is allowed and the next step. *The job failed*: normally a `Failure` value on the job, an exception
(`JobFailed`) only where one was asked for. *Our bug*: `InternalError`.

This module must not import anything heavy: it is loaded in every worker process.
"""

from __future__ import annotations

import reprlib
import traceback
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from types import TracebackType

_MOST_IN_GROUPS: Final = 10_000
_REPORT = "This is a bug in robust_eval: please report it with this message and the traceback."


class Described(Protocol):
    """What an exception needs to know of a `robust_eval.failure.Failure`, which knows this module."""

    @property
    def kind(self) -> str:
        """What happened, in one word."""

    @property
    def message(self) -> str:
        """What happened, in one sentence."""

    def render(self) -> str:
        """Everything that is known, as lines."""


class RobustEvalError(Exception):
    """The root of every exception that robust_eval raises."""


class InvalidArgument(RobustEvalError, ValueError):
    """An argument has a value that is not allowed."""


class InvalidArgumentType(RobustEvalError, TypeError):
    """An argument has a type that is not allowed."""


class UnsupportedLimit(RobustEvalError, ValueError):
    """A limit was asked for that this method of evaluation cannot enforce."""


class EvaluatorClosed(RobustEvalError, RuntimeError):
    """The evaluator was used after ``close()``."""


class StorageError(RobustEvalError):
    """The storage of a search could not be read or written; what had settled can still be gathered."""


class SearchStopped(RobustEvalError, RuntimeError):
    """A callback asks for the end of the search; ``gather`` raises it once its batch is recorded."""


class SearchBroken(RobustEvalError, RuntimeError):
    """So many jobs failed that the search was stopped (``max_failure_rate``, ``max_consecutive_failures``)."""


class Terminated(SystemExit):
    """SIGTERM came to the driver while `Evaluator.stop_on_sigterm` was in force."""


# What the driver's user or batch system asks for. It may come while code of the user's is called, and is not its error.
ASKED_TO_END: Final = (KeyboardInterrupt, Terminated)


class InternalError(RobustEvalError):
    """robust_eval broke one of its own promises.

    Args:
        message: what was found; the request for a report is added.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.args[0]} {_REPORT}"


class InvalidOutput(RobustEvalError, ValueError):
    """The run function returned something that is not an accepted output.

    Args:
        message: what was returned and what is accepted.
        value_repr: the bounded repr of the returned value.
    """

    def __init__(self, message: str, value_repr: str = "") -> None:
        super().__init__(message, value_repr)

    @property
    def value_repr(self) -> str:
        """The bounded repr of the returned value."""
        return str(self.args[1])

    def __str__(self) -> str:
        return str(self.args[0])


class CommandFailed(RobustEvalError, RuntimeError):
    """An executable that was a job's run function ended badly: a ``crash``, as if the worker had.

    Args:
        message: how it ended.
        signal: the name of the signal that ended it, if one did.
        exit_code: its exit code otherwise.
        output_tail: the end of what it printed.
    """

    def __init__(self, message: str, signal: str | None, exit_code: int | None, output_tail: str = "") -> None:
        super().__init__(message, signal, exit_code, output_tail)
        self.signal, self.exit_code, self.output_tail = signal, exit_code, output_tail

    def __str__(self) -> str:
        return str(self.args[0])


class JobFailed(RobustEvalError):
    """A job failed; ``failure`` says how.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """

    def __init__(self, failure: Described) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return self.failure.render()

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError and MemoryError, which subclasses mix in, reduce in ways of their own.
        return type(self), (self.failure,)


class JobTimeout(JobFailed, TimeoutError):
    """The job ran longer than it was allowed to.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobMemoryExceeded(JobFailed, MemoryError):
    """The job needed more memory than it was allowed to.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobCrashed(JobFailed):
    """The job's process ended by a signal or an exit.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobRaised(JobFailed):
    """The run function raised; chained from its exception where that could be had.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobCancelled(JobFailed):
    """The job was cancelled or never begun.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobLost(JobFailed):
    """The host, driver, supervisor or template of the job died.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobStartupFailed(JobFailed):
    """No worker could be started for the job.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobInvalid(JobFailed):
    """The run function returned something that is not accepted.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class JobUnpicklable(JobFailed):
    """The configuration or the result could not cross the process boundary.

    Args:
        failure: what happened to the job, a `robust_eval.failure.Failure`.
    """


class RemoteTraceback(RobustEvalError):
    """The cause of an exception that a call raised in its worker: shows the traceback of there.

    Args:
        failure: what happened to the call, a `robust_eval.failure.Failure`.
    """

    def __init__(self, failure: Described) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return f"in the worker process:\n\n{self.failure.render()}"


class JobStop(BaseException):
    """Raised in the run function when its time is up and it may still finish (``grace_period``).

    Not an ``Exception``, so that an ``except Exception`` in the run function does not swallow it.
    """


def bounded_repr(value: object, limit: int = 200) -> str:
    """Describe a value of the user's without trusting its size or its ``__repr__``.

    Args:
        value: anything.
        limit: the most characters returned.

    Returns:
        A repr of at most ``limit`` characters, shortened with ``...``.
    """
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = limit
    try:
        text = shortener.repr(value)
    except Exception as error:  # noqa: BLE001  the user's code runs here
        text = f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def traceback_of(error: BaseException, trace: TracebackType | None, limit: int | None = None) -> str:
    """Format an exception as Python does; where groups hold too many others, without those that it holds.

    Groups may share: fifty, of which each holds the one before twice, would be formatted as 2**50 exceptions.

    Args:
        error: the exception.
        trace: where its traceback begins.
        limit: of the frames, as for `traceback.format_exception`.

    Raises:
        BaseException: whatever the user's class raises when it is asked for its text.
    """
    if not _holds_too_many(error):
        return "".join(traceback.format_exception(type(error), error, trace, limit=limit))
    head = "Traceback (most recent call last):\n"
    frames = "".join(traceback.format_tb(trace, limit))
    what = f"(what it holds, more than {_MOST_IN_GROUPS} exceptions, is left out)"
    return f"{head}{frames}{type(error).__qualname__}: {error}\n{what}\n"


def _holds_too_many(error: BaseException) -> bool:
    """Whether the groups in an exception, its causes and its contexts hold more than will ever be shown."""
    count, todo, chained = 0, [error], set[int]()
    while todo and count <= _MOST_IN_GROUPS:
        each = todo.pop()
        before = [other for other in (each.__cause__, each.__context__) if other is not None]
        todo += [other for other in before if id(other) not in chained]
        chained.update(map(id, before))
        if isinstance(each, BaseExceptionGroup):
            held = list(islice(each.exceptions, _MOST_IN_GROUPS + 1))
            todo += held
            count += len(held)
    return count > _MOST_IN_GROUPS
