"""Jobs as a storage keeps them: what of a settled job is written, and the job that comes back from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robust_eval.failure import Failure
from robust_eval.job import Job
from robust_eval.storage.durable import Outcome
from robust_eval.storage.encoding import encode_lossy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def is_cancelled(job: Job) -> bool:
    """Whether the job has only been called off: it may still be run by whoever resumes the search."""
    return job.failure is not None and job.failure.kind == "cancelled"


def outcome_of(job: Job) -> Outcome:
    """Encode how a job settled. Never raises: what has no encoding is kept as its repr."""
    extra: dict[str, Any] = {}
    if job.failure is not None:
        extra["failure"] = job.failure.to_dict()
    if job.observations is not None:
        extra["observations"] = job.observations
    if job._recorded:  # noqa: SLF001  our own; asking for `recorded` makes a list
        budgets, objectives = zip(*job.recorded, strict=True)
        extra["intermediate"] = {"budget": list(budgets), "objective": list(objectives)}
    metadata = encode_lossy(job.metadata)
    return Outcome(job.id, encode_lossy(job.objective), metadata, encode_lossy(extra) if extra else None)


def rebuilt(
    job_id: str,
    data: Mapping[str, Any],
    run_function: Callable[..., Any] | None = None,
    make: type[Job] = Job,
) -> Job:
    """Give the job that a storage describes, with its outcome where it has one.

    Args:
        job_id: its id.
        data: what `Storage.load_job` gives.
        run_function: what would run it.
        make: its class.
    """
    arguments: Any = (data["in"] or {}).get("args") or ({},)
    job = make(job_id, arguments[0], run_function)
    if data["out"] is None:
        return job
    if isinstance(data.get("failure"), dict):
        job.fail(Failure.from_dict(data["failure"]))
    job.output["objective"] = data["out"]
    job.metadata.update(data["metadata"])
    job.observations = data.get("observations")
    intermediate = data["intermediate"]
    if intermediate["budget"]:
        job.recorded.extend(zip(intermediate["budget"], intermediate["objective"], strict=False))
    return job
