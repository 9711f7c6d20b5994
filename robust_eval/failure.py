"""What is known about a job that failed: one immutable value that can be shown, pickled and stored.

The module must not import anything heavy: it is loaded in every worker process.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, get_args

from robust_eval import errors
from robust_eval.errors import bounded_repr

FailureKind = Literal[
    "timeout", "memory", "crash", "exception", "invalid", "unpicklable", "startup", "cancelled", "lost"
]
FAILURE_KINDS: Final[tuple[FailureKind, ...]] = get_args(FailureKind)

_EXCEPTIONS: Final[dict[str, type[errors.JobFailed]]] = {
    "timeout": errors.JobTimeout,
    "memory": errors.JobMemoryExceeded,
    "crash": errors.JobCrashed,
    "exception": errors.JobRaised,
    "invalid": errors.JobInvalid,
    "unpicklable": errors.JobUnpicklable,
    "startup": errors.JobStartupFailed,
    "cancelled": errors.JobCancelled,
    "lost": errors.JobLost,
}
_MIB: Final = 1024 * 1024
# Modules that call run functions: their frames say nothing to the user.
_OWN_FRAMES: Final = ("robust_eval.evaluators.", "robust_eval.processes.", "robust_eval.decorators")


@dataclass(frozen=True, slots=True, repr=False)
class Failure:
    """Why a job has no result of its own.

    Attributes:
        kind: one of `FAILURE_KINDS`.
        message: one sentence for the user.
        attempts: how often the job was begun.
        duration: how long the last attempt ran, in seconds.
        peak_memory: the most its process tree used, in bytes.
        memory_limit: what it was allowed, in bytes.
        acted: which of ``"memory_limit"``, ``"MemoryError"`` and ``"oom_killer"`` ended a ``memory`` failure.
        stack: the stacks at the moment of the kill.
        stack_missing: why there is no stack, where one was due.
        traceback: the traceback's text, where the run function raised.
        exception_type: the qualified name of what it raised.
        exception: the exception itself where it could be had.
        signal: the name of the signal that ended the process.
        exit_code: the process's exit code.
        output_tail: the end of what the job printed.
        unkilled_pids: processes of the job that did not end after SIGKILL.
        late_result: what the job returned after its time was up.
        abandoned: nothing could be killed; the job may still be running.
        lost: who died (``"host"``, ``"driver"``, ``"supervisor"``, ``"template"``).
        value_repr: the bounded repr of the value that was not accepted.
    """

    kind: FailureKind
    message: str
    attempts: int = 1
    duration: float | None = None
    peak_memory: int | None = None
    memory_limit: int | None = None
    acted: str | None = None
    stack: str | None = None
    stack_missing: str | None = None
    traceback: str | None = None
    exception_type: str | None = None
    exception: BaseException | None = field(default=None, compare=False)
    signal: str | None = None
    exit_code: int | None = None
    output_tail: str = ""
    unkilled_pids: tuple[int, ...] = ()
    late_result: Any = None
    abandoned: bool = False
    lost: str | None = None
    value_repr: str | None = None

    @classmethod
    def from_exception(cls, error: BaseException, *, attempts: int = 1, duration: float | None = None) -> Failure:
        """Describe what the run function raised.

        The tracebacks are dropped from the exception once their text is taken: they would keep every local
        variable of the run function alive for as long as the job.

        Args:
            error: what was raised; `errors.InvalidOutput` becomes ``invalid``, ``MemoryError`` ``memory``.
            attempts: how often the job was begun.
            duration: how long the last attempt ran, in seconds.

        Returns:
            The failure, which carries the exception.
        """
        try:
            return cls._describing(error, attempts, duration)
        except BaseException as second:  # noqa: BLE001 - the user's metaclass and attributes, asked for a name or text
            said = f"an exception that cannot be described: asked for its name or text it raised {type(second)}"
            return cls("exception", said, attempts=attempts, duration=duration)

    @classmethod
    def _describing(cls, error: BaseException, attempts: int, duration: float | None) -> Failure:
        name = type(error).__qualname__
        module = type(error).__module__
        common: dict[str, Any] = {"attempts": attempts, "duration": duration}
        if isinstance(error, errors.InvalidOutput):
            return cls("invalid", str(error), value_repr=error.value_repr, **common)
        if isinstance(error, errors.CommandFailed):
            how: dict[str, Any] = {"signal": error.signal, "exit_code": error.exit_code}
            return cls("crash", str(error), output_tail=error.output_tail, **how, **common)
        common |= {
            "exception_type": name if module == "builtins" else f"{module}.{name}",
            "traceback": _text_of(error),
            "exception": _without_tracebacks(error),
        }
        said = _message_of(error)
        if isinstance(error, MemoryError) and not isinstance(error, errors.JobFailed):
            return cls("memory", f"{name}: {said}" if said else name, acted="MemoryError", **common)
        return cls("exception", f"{name}: {said}" if said else name, **common)

    def render(self) -> str:
        """Give everything that is known as one readable block of lines."""
        lines = [f"{self.kind}: {self.message}"]
        facts = [f"{label} {text}" for label, text in self._facts()]
        if facts:
            lines.append(f"  {', '.join(facts)}")
        for title, block in self._blocks():
            lines.append(f"  {title}:")
            lines.extend(f"    {line}" for line in block.rstrip().splitlines())
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        known: list[tuple[str, str | None]] = [
            ("attempts", str(self.attempts) if self.attempts > 1 else None),
            ("ran", None if self.duration is None else f"{self.duration:.3f} s"),
            ("peak memory", None if self.peak_memory is None else f"{self.peak_memory / _MIB:.1f} MiB"),
            ("limit", None if self.memory_limit is None else f"{self.memory_limit / _MIB:.1f} MiB"),
            ("acted", self.acted),
            ("signal", self.signal),
            ("exit code", None if self.exit_code is None else str(self.exit_code)),
            ("lost", self.lost),
            ("still running", "yes: abandoned" if self.abandoned else None),
            ("not killed", ", ".join(map(str, self.unkilled_pids)) or None),
            ("returned too late", None if self.late_result is None else bounded_repr(self.late_result)),
        ]
        return [(label, text) for label, text in known if text is not None]

    def _blocks(self) -> list[tuple[str, str]]:
        missing = None if self.stack_missing is None else f"none: {self.stack_missing}"
        blocks = (
            ("stack at the end", self.stack or missing),
            ("traceback", self.traceback),
            ("last output", self.output_tail),
        )
        return [(title, block) for title, block in blocks if block]

    def __repr__(self) -> str:
        first = self.message.partition("\n")[0]
        return f"Failure({self.kind!r}, {bounded_repr(first)}, attempts={self.attempts})"

    def to_dict(self) -> dict[str, Any]:
        """Give what is known as a dict that JSON can hold.

        The exception is left out (its type, message and traceback stay), a ``late_result`` that JSON cannot
        hold is replaced by its repr. Fields at their default are left out.

        Returns:
            The dict, which `from_dict` reads.
        """
        data = {name: value for name, value in self._known() if name != "exception"}
        if "unkilled_pids" in data:
            data["unkilled_pids"] = list(self.unkilled_pids)
        if "late_result" in data:
            try:
                json.dumps(self.late_result, allow_nan=False)
            except (TypeError, ValueError, RecursionError):
                data["late_result"] = bounded_repr(self.late_result)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Failure:
        """Make a failure from what `to_dict` gave; keys that are not known are ignored.

        Args:
            data: such a dict; it has ``kind`` and ``message`` at least.

        Returns:
            The failure, without the exception.

        Raises:
            TypeError: ``kind`` or ``message`` is missing.
        """
        names = {each.name for each in fields(cls)}
        known = {name: value for name, value in data.items() if name in names and name != "exception"}
        if "unkilled_pids" in known:
            known["unkilled_pids"] = tuple(known["unkilled_pids"])
        return cls(**known)

    def to_exception(self) -> errors.JobFailed:
        """Make the exception of this kind of failure, chained from the run function's own where there is one."""
        error = _EXCEPTIONS[self.kind](self)
        error.__cause__ = self.exception
        return error

    def _known(self) -> list[tuple[str, Any]]:
        values = ((each, getattr(self, each.name)) for each in fields(self))
        return [(each.name, value) for each, value in values if value is not each.default]

    def __reduce__(self) -> tuple[Any, ...]:
        # The user's objects are nested as bytes of their own, so that one that does not come back costs only itself.
        state = dict(self._known())
        nested = {name: packed for name in ("exception", "late_result") if (packed := _pack(state.pop(name, None)))}
        return _restore, (state, nested)


def _restore(state: dict[str, Any], nested: dict[str, bytes]) -> Failure:
    """Build a failure from its pickled parts (named in pickles: keep the name)."""
    for name, packed in nested.items():
        try:
            state[name] = pickle.loads(packed)  # it came in the same pickle
        except Exception:  # noqa: BLE001, S112  the user's code runs here
            continue
    return Failure(**state)


def _pack(value: object) -> bytes | None:
    if value is None:
        return None
    try:
        packed = pickle.dumps(value)
        pickle.loads(packed)  # our own bytes; an exception that pickles often does not come back
    except Exception:  # noqa: BLE001  the user's code runs here
        return None
    return packed


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  the user's code runs here
        return f"<its message raised {type(broken).__name__}>"


def _text_of(error: BaseException) -> str:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith(_OWN_FRAMES):
        frames = frames.tb_next
    try:
        return errors.traceback_of(error, frames)
    except Exception as broken:  # noqa: BLE001  the user's code runs here
        return f"<the traceback could not be formatted: {type(broken).__name__}>"


def _without_tracebacks(error: BaseException) -> BaseException:
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        todo += [each.__cause__, each.__context__]
    return error
