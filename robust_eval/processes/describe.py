"""A failed outcome in plain values, for the driver to put into words."""

from typing import Any

from robust_eval.processes.parcel import Parcel
from robust_eval.processes.port import ExitInfo, Finished
from robust_eval.supervision.actions import Outcome


def describe(outcome: Outcome, memory_limit: int | None, unkilled: list[int]) -> tuple[dict[str, Any], Parcel, Parcel]:
    """A failed outcome as values that marshal, with what the worker said of the failure and what it returned late.

    Returns:
        The description, the worker's own fields, the late result; the latter two empty where there are none.
    """
    info: dict[str, Any] = {
        "kind": outcome.kind,
        "cause": outcome.cause,
        "attempts": outcome.attempts,
        "memory_limit": memory_limit,
        "unkilled_pids": unkilled,
    }
    if outcome.begun_at is not None and outcome.ended_at is not None:
        info["duration"] = outcome.ended_at - outcome.begun_at
        info["begun_at"] = outcome.begun_at
    peak_bytes = 0
    if isinstance(outcome.exit, ExitInfo):
        peak_bytes = outcome.exit.peak_bytes
        info.update(outcome.exit._asdict())
    if outcome.cause == "memory_limit" and isinstance(outcome.detail, tuple):
        peak_bytes = outcome.detail[0]
    elif outcome.detail is not None:
        info["detail"] = str(outcome.detail)
    blamed: Parcel = b""
    late: Parcel = b""
    if isinstance(outcome.payload, Finished):
        blamed = outcome.payload.parcel
        info["output_tail"] = outcome.payload.output_tail
        peak_bytes = max(peak_bytes, outcome.payload.peak_bytes)
    if isinstance(outcome.late_payload, Finished):
        late = outcome.late_payload.parcel
        info.setdefault("output_tail", outcome.late_payload.output_tail)
        peak_bytes = max(peak_bytes, outcome.late_payload.peak_bytes)
    info["peak_memory"] = peak_bytes or None  # a job that crashed before anybody looked was not measured
    return info, blamed, late
