"""`robust-eval show`: a search as a table, or one job with everything that is known of it."""

import json as json_lines
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robust_eval.cli import values
from robust_eval.cli.display import outcome_of
from robust_eval.cli.exits import told
from robust_eval.cli.searching import DEFAULT_STORAGE
from robust_eval.cli.stored import job_of, jobs_of, open_storage, search_of
from robust_eval.errors import InvalidArgument
from robust_eval.failure import FAILURE_KINDS
from robust_eval.html_view import is_told, measured
from robust_eval.job import Job, JobStatus

_MIB: Final = 1024 * 1024


def show(
    storage: Annotated[str, typer.Argument(help="A file (runs.db) or a storage's URL.")] = DEFAULT_STORAGE,
    job: Annotated[
        str | None, typer.Argument(help="A job, to see all that is known of it: 0.12, or 12 of the last search.")
    ] = None,
    search_id: Annotated[str | None, typer.Option(help="The search; by default the last one.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only jobs that failed.")] = False,
    kind: Annotated[str | None, typer.Option(help=f"Only failures of one kind: {', '.join(FAILURE_KINDS)}.")] = None,
    limit: Annotated[
        int, typer.Option(parser=values.count_or_none, metavar="N", help="The most rows; 0 for all.")
    ] = 50,
    json: Annotated[bool, typer.Option("--json", help="Lines of JSON, as into a pipe.")] = False,
) -> None:
    """Show a search, or one job with its failure.

    Into a file or a pipe go lines of JSON, all of them.
    """
    console = Console()
    with told():
        if kind is not None and kind not in FAILURE_KINDS:
            raise InvalidArgument(f"--kind {kind!r} is no kind of failure. Choose one of {', '.join(FAILURE_KINDS)}.")
        opened = open_storage(storage)
        if job is not None:
            jobs = [job_of(opened, job, search_id)]
        else:
            search = search_of(opened, search_id)
            jobs = [each for each in jobs_of(opened, search) if _wanted(each, failed=failed, kind=kind)]
    if json or not console.is_terminal:
        for each in jobs:
            typer.echo(json_lines.dumps(outcome_of(each), default=str))
    elif job is not None:
        _show_job(console, jobs[0])
    else:
        _show_search(console, search, jobs, limit)


def _wanted(job: Job, *, failed: bool, kind: str | None) -> bool:
    if kind is not None:
        return job.failure is not None and job.failure.kind == kind
    return not failed or job.failure is not None


def _show_search(console: Console, search: str, jobs: list[Job], limit: int) -> None:
    counted = Counter(_outcome(job) for job in jobs)
    said = ", ".join(f"{number} {kind}" for kind, number in counted.most_common())
    table = Table("job", "outcome", "objective", "time", "memory", "configuration", title=f"search {search}: {said}")
    shown = jobs[:limit] if limit else jobs
    for job in shown:
        table.add_row(*_row(job))
    console.print(table)
    if len(shown) < len(jobs):
        console.print(f"{len(jobs) - len(shown)} more: --limit 0 shows all", style="dim")


def _row(job: Job) -> Iterable[str | Text]:
    outcome = _outcome(job)
    metadata = job.metadata
    yield job.id
    yield Text(outcome, style={"ok": "green", "open": "dim"}.get(outcome, "red"))
    yield (
        f"{job.objective:.7g}"
        if isinstance(job.objective, float)
        else ""
        if job.objective is None
        else str(job.objective)
    )
    yield _with_unit(metadata.get("duration"), 1, "s", 2)
    yield _with_unit(metadata.get("peak_memory"), _MIB, "MiB", 0)
    yield Text(_config_line(job), overflow="ellipsis", no_wrap=True)


def _with_unit(value: Any, unit: float, name: str, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f} {name}"


def _outcome(job: Job) -> str:
    if job.status is not JobStatus.DONE:
        return "open"
    return "ok" if job.failure is None else job.failure.kind


def _config_line(job: Job) -> str:
    return " ".join(f"{name}={value}" for name, value in job.config.items())


def _show_job(console: Console, job: Job) -> None:
    console.print(Text(f"job {job.id}: {_config_line(job)}", style="bold"), soft_wrap=True)
    console.print(Text(f"outcome {_outcome(job)}, objective {job.objective}"), soft_wrap=True)
    for key, value in job.metadata.items():
        if is_told(key, value):
            console.print(Text(f"  {key} = {measured(str(key), value)}"), soft_wrap=True)
    if job.failure is not None:
        console.print(Text(job.failure.render()), soft_wrap=True)
