"""One way in which a job can misbehave, and how an entry comes into the catalogue (`stress.faults`).

An entry is a function of the job, marked with what must be reported of it. It must not know the pool that runs it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from robust_eval import Job, RunningJob

Run: TypeAlias = Callable[[RunningJob], Any]

HANG_TIMEOUT_S = 0.4
MEMORY_LIMIT = 512 * 2**20


@dataclass(frozen=True)
class Fault:
    """One entry.

    Attributes:
        name: the function's.
        run: what the guilty job does.
        kinds: the failure kinds that may be reported; empty where the job delivers its own value all the same.
        limits: `job_timeout` and `memory_limit` that it needs.
        config: makes what its configuration carries beyond the usual.
        check: looks at the guilty job in the driver; raises AssertionError.
        heavy: takes seconds or hundreds of megabytes.
        local: does no harm to the process that it runs in, so that every method must report it alike.
        pool: arguments that the evaluator needs to keep its promises under it.
        reruns: it costs other jobs their attempts, so that these are tried again.
    """

    name: str
    run: Run
    kinds: tuple[str, ...]
    limits: Mapping[str, Any] = field(default_factory=dict)
    config: Callable[[], Mapping[str, Any]] = dict
    check: Callable[[Job], None] | None = None
    heavy: bool = False
    local: bool = False
    pool: Mapping[str, Any] = field(default_factory=dict)
    reruns: bool = False


CATALOGUE: dict[str, Fault] = {}


def fault(
    *kinds: str,
    limits: Mapping[str, Any] | None = None,
    config: Callable[[], Mapping[str, Any]] = dict,
    check: Callable[[Job], None] | None = None,
    **marks: Any,
) -> Callable[[Run], Run]:
    """Put a function into the catalogue; a `timeout` alone brings a short `job_timeout` with it.

    Args:
        *kinds: as in `Fault`, and so are the others.
        limits: beyond those that come with the kind.
        config: see there.
        check: see there.
        **marks: the other fields of `Fault`.
    """
    limited = {"job_timeout": HANG_TIMEOUT_S} if kinds == ("timeout",) else {}
    limited |= {"memory_limit": MEMORY_LIMIT} if kinds == ("memory",) else {}

    def register(run: Run) -> Run:
        name = run.__name__
        CATALOGUE[name] = Fault(name, run, kinds, limited | dict(limits or {}), config, check, **marks)
        return run

    return register


def own_value(job: RunningJob) -> float:
    """The right result of a job."""
    return 2.0 * job["x"]


def failed_with(**expected: Any) -> Callable[[Job], None]:
    """A check that the failure has these attributes; text is contained, anything else is equal."""

    def check(job: Job) -> None:
        for name, value in expected.items():
            actual = getattr(job.failure, name)
            fits = value in (actual or "") if isinstance(value, str) else actual == value
            assert fits, f"failure.{name} is {actual!r}, not {value!r}"

    return check
