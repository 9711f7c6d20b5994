"""What a notebook shows of a job and of an evaluator: small HTML without style of its own, every value escaped."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import bounded_repr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from robust_eval.failure import Failure

_MOST_FAILURES: Final = 5
_MIB: Final = 1024 * 1024
_MOST_CHARS: Final = 300


def job_html(
    job_id: str,
    status: str,
    config: Any,
    *,
    objective: Any,
    metadata: Mapping[str, Any],
    failure: Failure | None,
) -> str:
    """Show one job: its configuration, its objective, what was measured, and its failure's block."""
    rows = {
        "status": status.lower(),
        "configuration": bounded_repr(config, _MOST_CHARS),
        "objective": bounded_repr(objective, _MOST_CHARS),
        **{str(key): measured(str(key), value) for key, value in metadata.items() if is_told(key, value)},
    }
    block = "" if failure is None else f"<details open><summary>failure</summary>{_pre(failure)}</details>"
    return f"<b>Job {escape(str(job_id))}</b>{_table(rows)}{block}"


def is_told(key: object, value: object) -> bool:
    """Tell whether something of a job's metadata is for people: it is known, and none of our internal notes."""
    return value is not None and not str(key).startswith("_")


def measured(key: str, value: Any) -> str:
    """Give something of a job's metadata as text, what we measured with its unit."""
    number = isinstance(value, int | float)  # a run function may use our names for something else
    if key == "duration" and number:
        return f"{value:.3g} s"
    if key == "peak_memory" and number:
        return f"{value / _MIB:.1f} MiB"
    return bounded_repr(value)


def evaluator_html(name: str, jobs: Iterable[Any]) -> str:
    """Show an evaluator: its outcomes, and its last failures, folded.

    Args:
        name: of its class.
        jobs: all of its jobs.
    """
    jobs = list(jobs)
    counted = Counter(_outcome(job) for job in jobs)
    rows = {"jobs": str(len(jobs)), **{kind: str(number) for kind, number in counted.most_common()}}
    failed = [job for job in jobs if job.failure is not None][-_MOST_FAILURES:]
    heads = (f"<summary>job {escape(str(job.id))}: {escape(job.failure.kind)}</summary>" for job in reversed(failed))
    blocks = (
        f"<details>{head}{_pre(job.failure)}</details>" for head, job in zip(heads, reversed(failed), strict=True)
    )
    return f"<b>{escape(name)}</b>{_table(rows)}{''.join(blocks)}"


def _outcome(job: Any) -> str:
    if job.failure is not None:
        return str(job.failure.kind)
    return "open" if job.objective is None else "ok"


def _table(rows: Mapping[str, str]) -> str:
    cells = (
        f"<tr><th style='text-align:left'>{escape(key)}</th><td>{escape(text)}</td></tr>" for key, text in rows.items()
    )
    return f"<table>{''.join(cells)}</table>"


def _pre(failure: Failure) -> str:
    return f"<pre>{escape(failure.render())}</pre>"
