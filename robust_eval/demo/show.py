"""Runs the sweep and shows it on a terminal: a bar while it runs, then the outcomes by cause.

Owns what the demo prints and its exit code. It uses the evaluator as any program would, through the
public names only.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from robust_eval.demo.sweep import JOB_TIMEOUT_S, MEMORY_LIMIT, configurations, run
from robust_eval.evaluators.base import Evaluator
from robust_eval.job import Job

_EXAMPLE_ENDS: Final = 12
_LEFTOVER_PATIENCE_S: Final = 2.0
_MIB: Final = 1024 * 1024


def demo(workers: int, output: Path, console: Console) -> int:
    """Run the sweep on the process evaluator, show the outcomes and write them to `output`.

    Args:
        workers: how many configurations run at a time.
        output: the CSV file to write.
        console: where to show it.

    Returns:
        The exit code: 0 where every configuration has its outcome and no process is left, else 1.
    """
    configs = configurations()
    limits = {"job_timeout": JOB_TIMEOUT_S, "memory_limit": MEMORY_LIMIT}
    console.print(
        f"{len(configs)} configurations on {workers} workers, {JOB_TIMEOUT_S:g} s and {MEMORY_LIMIT} for each"
    )
    with Evaluator.create(run, method="process", method_kwargs={"num_workers": workers, **limits}) as evaluator:
        evaluator.submit(configs)
        jobs = _gather(evaluator, len(configs), output, console)
    console.print(_table(jobs))
    for cause, job in _examples(jobs):
        console.print(Rule(Text(f"{cause}: {_config_line(job)}"), align="left"))
        console.print(_block(job), soft_wrap=True)  # the terminal wraps: a path or a stack stays in one piece
    left = _processes_left()
    console.print(Rule(align="left"))
    console.print(f"{len(jobs)} of {len(configs)} outcomes, written to {output}; {len(left)} processes left")
    return 0 if len(jobs) == len(configs) and not left else 1


def _gather(evaluator: Evaluator, expected: int, output: Path, console: Console) -> list[Job]:
    """Gather as outcomes come, and write them as they come: what is interrupted keeps what it has."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    jobs: list[Job] = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("evaluating", total=expected)
        while len(jobs) < expected:
            jobs += evaluator.gather("BATCH", size=1)
            evaluator.dump_evals(log_dir=str(output.parent), filename=output.name)
            tally = Counter(_kind(job) for job in jobs)
            progress.update(bar, completed=len(jobs), description=", ".join(f"{n} {k}" for k, n in tally.items()))
    return jobs


def _kind(job: Job) -> str:
    return "ok" if job.failure is None else job.failure.kind


def _cause(job: Job) -> str:
    """The kind of the outcome with what distinguishes it: the signal, the exception, what acted."""
    failure = job.failure
    if failure is None:
        return "ok"
    detail = failure.acted or failure.signal or failure.exception_type
    return f"{failure.kind} ({detail})" if detail else failure.kind


def _table(jobs: Iterable[Job]) -> Table:
    by_cause: defaultdict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_cause[_cause(job)].append(job)
    table = Table("outcome", "jobs", "of", "median time", "top memory", title="Outcomes by cause")
    table.columns[0].no_wrap = True
    for cause, same in sorted(by_cause.items(), key=lambda item: (-len(item[1]), item[0])):
        simulations = Counter(job.config["simulation"] for job in same)
        table.add_row(
            Text(cause, style="green" if cause == "ok" else "red"),
            str(len(same)),
            ", ".join(simulations),
            *_figures(same),
        )
    return table


def _figures(jobs: Sequence[Job]) -> tuple[str, str]:
    durations = [value for job in jobs if (value := job.metadata.get("duration")) is not None]
    peaks = [value for job in jobs if (value := job.metadata.get("peak_memory")) is not None]
    return (
        f"{statistics.median(durations):.2f} s" if durations else "",
        f"{max(peaks) / _MIB:.0f} MiB" if peaks else "",
    )


def _examples(jobs: Iterable[Job]) -> list[tuple[str, Job]]:
    """The first job of every cause of failure, rather one whose stack could be had (a busy machine may be too slow)."""
    first: dict[str, Job] = {}
    for job in jobs:
        if job.failure is not None:
            shown = first.setdefault(_cause(job), job)
            if shown.failure is not None and shown.failure.stack is None and job.failure.stack is not None:
                first[_cause(job)] = job
    return sorted(first.items())


def _config_line(job: Job) -> str:
    return " ".join(f"{name}={value}" for name, value in job.config.items())


def _block(job: Job) -> Text:
    """The failure's own account, its middle cut where it is long: the first and the last lines tell most."""
    lines = job.failure.render().splitlines() if job.failure is not None else []
    cut = len(lines) - 2 * _EXAMPLE_ENDS
    if cut > 1:
        lines[_EXAMPLE_ENDS:-_EXAMPLE_ENDS] = [f"    ... {cut} more lines ..."]
    block = Text("\n".join(f"  {line}" for line in lines))
    block.append("\n")
    return block


def _processes_left() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    _, left = psutil.wait_procs(children, timeout=_LEFTOVER_PATIENCE_S)
    return left
