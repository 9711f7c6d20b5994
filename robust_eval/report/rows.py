"""Jobs as the plain records that figures and tables are made of."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from robust_eval.job import JobStatus
from robust_eval.places import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from robust_eval.failure import Failure
    from robust_eval.job import Job

_MOST_FRAMES: Final = 3
_MOST_CHARS: Final = 120
_FRAME: Final = re.compile(r'^ *File "(.+)", line (\d+),? in (.+)$', re.MULTILINE)
_NUMBER: Final = re.compile(r"\d[\d.]*")


class Row(NamedTuple):
    """A job. Instants are seconds since the search began, sizes bytes; None is not known.

    Attributes:
        job_id: its id.
        outcome: ``"ok"``, ``"open"``, or the kind of its failure.
        worker: the slot that ran it.
        begin: when it began.
        end: when it ended.
        duration: how long its last attempt ran.
        peak_memory: the most that it took.
        memory_limit: what it was allowed.
        objectives: the numbers of its objective, empty for a failure.
        config: the configuration.
        failure: why it failed.
    """

    job_id: str
    outcome: str
    worker: int | None
    begin: float | None
    end: float | None
    duration: float | None
    peak_memory: int | None
    memory_limit: int | None
    objectives: tuple[float, ...]
    config: dict[str, Any]
    failure: Failure | None


class Group(NamedTuple):
    """Failures that are alike: the kind, what they share, the ids of the jobs, and one of the failures."""

    kind: str
    shared: str
    job_ids: list[str]
    example: Failure


def rows_of(jobs: Iterable[Job]) -> list[Row]:
    """Give a row for each job, in the order of their begins."""
    rows = [_row(job) for job in jobs]
    return sorted(rows, key=lambda row: (row.begin is None, row.begin or 0.0))


def _row(job: Job) -> Row:
    metadata = job.metadata
    failure = job.failure
    duration = metadata.get("duration")
    begin = metadata.get("_begun")
    end = begin + duration if begin is not None and duration is not None else metadata.get("timestamp_gather")
    limit = metadata.get("_memory_limit")
    return Row(
        str(job.id),
        outcome_of(job),
        metadata.get("_worker"),
        begin,
        end,
        duration,
        metadata.get("peak_memory") or None,
        failure.memory_limit if failure is not None and failure.memory_limit else limit,
        _numbers(job.objective),
        dict(job.config),
        failure,
    )


def outcome_of(job: Job) -> str:
    """Give how the job ended, in one word."""
    if job.failure is not None:
        return job.failure.kind
    return "ok" if job.status is JobStatus.DONE or job.objective is not None else "open"


def _numbers(objective: Any) -> tuple[float, ...]:
    values = objective if isinstance(objective, tuple | list) else (objective,)
    if any(isinstance(value, str | bool) or not isinstance(value, int | float) for value in values):
        return ()
    return tuple(float(value) for value in values if math.isfinite(value))


def groups_of(rows: Iterable[Row]) -> list[Group]:
    """Give the failures by kind, cause and place, the most frequent first."""
    groups: dict[tuple[str, str, str], Group] = {}
    places: dict[tuple[str | None, str | None], str] = {}
    for row in rows:
        if row.failure is not None:
            kind, said = row.failure.kind, (row.failure.stack, row.failure.traceback)
            if said not in places:  # of thousands of failures most say the same
                places[said] = str(place_of(row.failure) or "")
            detail = _detail(row.failure)
            shared = ", ".join(part for part in (detail, _path(row.failure)) if part)
            group = groups.setdefault((kind, detail, places[said]), Group(kind, shared, [], row.failure))
            group.job_ids.append(row.job_id)
    return sorted(groups.values(), key=lambda group: (-len(group.job_ids), group.kind, group.shared))


def _detail(failure: Failure) -> str:
    """What failures of one cause have in common, without the numbers that differ from job to job."""
    if detail := failure.signal or failure.exception_type or failure.acted:
        return detail
    if failure.exit_code is not None:
        return f"exit code {failure.exit_code}"
    if _path(failure):
        return ""
    sentence = failure.message.partition("\n")[0].partition(". ")[0]
    return _NUMBER.sub("#", sentence)[:_MOST_CHARS]


def _path(failure: Failure) -> str:
    """The innermost frames; what a kill has torn is left out."""
    frames = _FRAME.findall(failure.stack or "")
    if not frames:
        frames = _FRAME.findall(failure.traceback or "")[::-1]
    return " < ".join(f"{file.rpartition('/')[2]}:{line} in {name}" for file, line, name in frames[:_MOST_FRAMES])


def outcomes_of(rows: Iterable[Row]) -> dict[str, int]:
    """Count the outcomes: values first, then failures, the most frequent first."""
    counted = Counter(row.outcome for row in rows)
    return dict(sorted(counted.items(), key=lambda item: (item[0] != "ok", item[0] == "open", -item[1], item[0])))
