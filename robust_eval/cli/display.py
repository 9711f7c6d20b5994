"""What a search shows: the table of its workers, lines of JSON, and the summary at its end."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from robust_eval.callbacks import Callback
from robust_eval.cli.exits import Exit
from robust_eval.errors import RobustEvalError
from robust_eval.job import Job
from robust_eval.progress import ProgressCallback

if TYPE_CHECKING:
    from robust_eval.evaluators.base import Evaluator

_MIB: Final = 1024 * 1024
_NEAR: Final = 0.8


def outcome_of(job: Job) -> dict[str, Any]:
    """Give a job as plain values for a line of JSON; what JSON does not know becomes text."""
    metadata = {key: value for key, value in job.metadata.items() if not str(key).startswith("_")}
    return {
        "job_id": job.id,
        "config": job.config,
        "objective": job.objective,
        "failure": None if job.failure is None else job.failure.to_dict(),
        "metadata": metadata,
    }


class JsonLines(Callback):
    """A line of JSON for each job, at once. Where nobody reads any more (``| head``), the search goes on without."""

    def __init__(self) -> None:
        self._read = True

    def on_done(self, job: Job) -> None:
        """Write the job's line."""
        if not self._read:
            return
        try:
            sys.stdout.write(json.dumps(outcome_of(job), default=str) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self._read = False
            # What is still in the buffer must not raise again at the interpreter's exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LiveCallback(ProgressCallback):
    """The bar, and below it what each worker does.

    Attributes:
        evaluator: whose workers they are.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console=console)
        self.evaluator: Evaluator | None = None

    def extra(self) -> list[RenderableType]:
        """The table of workers."""
        if self.evaluator is None:
            return []
        try:
            running = {each["slot"]: each for each in self.evaluator.stats().get("running", [])}
        except RobustEvalError:  # it was closed in this moment
            running = {}
        return [workers_table(running, self.evaluator.num_workers)]


def workers_table(running: dict[int, dict[str, Any]], workers: int) -> Table:
    """Draw what each worker does.

    Args:
        running: by slot, as ``stats()["running"]`` has it.
        workers: how many slots there are.
    """
    table = Table("worker", "job", "time", "memory", "state", box=None, header_style="dim")
    for slot in range(workers):
        now = running.get(slot)
        if now is None:
            table.add_row(str(slot), Text("idle", style="dim"))
            continue
        now["memory_limit"]
        table.add_row(
            str(slot),
            str(now["job"]),
            _against(now["seconds"], now["job_timeout"], "s", 1),
            _against(
                now["memory"] / _MIB, None if now["memory_limit"] is None else now["memory_limit"] / _MIB, "MiB", 0
            ),
            now["state"],
        )
    return table


def _against(value: float, limit: float | None, unit: str, digits: int) -> Text:
    if limit is None:
        return Text(f"{value:.{digits}f} {unit}")
    near = value > _NEAR * limit
    return Text(f"{value:.{digits}f} of {limit:g} {unit}", style="yellow" if near else "")


class Summary(Callback):
    """What there is to say at the end.

    Args:
        console: where it is said.
        storage: the storage's URL.
        output: the CSV file.

    Attributes:
        search_id: the search.
    """

    def __init__(self, console: Console, storage: str, output: Path) -> None:
        self._console = console
        self._storage = storage
        self._output = output
        self._outcomes: Counter[str] = Counter()
        self._example: Job | None = None
        self.search_id = ""

    def on_done(self, job: Job) -> None:
        """Count the outcome."""
        self._outcomes["ok" if job.failure is None else job.failure.kind] += 1
        if self._example is None and job.failure is not None:
            self._example = job

    def print(self, code: Exit) -> None:
        """Say what came of it, where it is, and what to do next."""
        say = self._console.print
        done = self._outcomes.total()
        failed = done - self._outcomes["ok"]
        say(f"{done} outcomes, {failed} failed, in {self._output} and in {self._storage}, search {self.search_id}")
        if self._example is not None:
            say(f"look at a failure:  robust-eval show {self._storage} {self._example.id}", soft_wrap=True)
        if code is Exit.BROKEN:
            say("stopped: too much failed", style="red")
        if code is Exit.INTERRUPTED:
            say("stopped; the same line with --resume goes on", style="yellow")
