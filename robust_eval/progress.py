"""`ProgressCallback`: how a search goes, live on a terminal: a bar with rate, ETA and failures by kind."""

from __future__ import annotations

import atexit
from collections import Counter
from typing import TYPE_CHECKING, Any

from robust_eval.callbacks import Callback, total_objective
from robust_eval.errors import RobustEvalError
from robust_eval.limits import parse_count

try:
    from rich.console import Console, Group
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text
except ImportError as error:
    raise RobustEvalError("ProgressCallback needs rich: pip install 'robust-eval[progress]'.") from error

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.progress import Task

    from robust_eval.job import Job


class ProgressCallback(Callback):
    """Shows a bar with the number of jobs, their rate, the time that is left, the best objective and the failures.

    It draws on a terminal or in a notebook; where the output is a file it writes one line at the end.

    Args:
        total: how many jobs there will be; by default all that were submitted so far.
        console: where to draw; standard error by default.
    """

    def __init__(self, total: int | None = None, console: Console | None = None) -> None:
        self._total = None if total is None else parse_count("total", total)
        self._console = Console(stderr=True) if console is None else console
        self._progress = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            _Time(),
            console=self._console,
            auto_refresh=False,
        )
        self._bar = self._progress.add_task("evaluating", total=self._total)
        self._launched = 0
        self._outcomes: Counter[str] = Counter()
        self._best: float | None = None
        self._live: Live | None = None

    def set_max_evals(self, max_evals: int | None) -> None:
        """Say how many jobs there will be.

        Args:
            max_evals: the number of jobs; None for as many as were submitted so far.
        """
        self._total = max_evals
        self._progress.update(self._bar, total=max_evals)

    def on_launch(self, job: Job) -> None:  # noqa: ARG002  the hook's signature
        """Count the job, and begin to draw with the first one.

        Args:
            job: the job that is being submitted.
        """
        self._launched += 1
        if self._total is None:
            self._progress.update(self._bar, total=self._launched)
        self._begin()

    def on_done(self, job: Job) -> None:
        """Count the outcome.

        Args:
            job: the job that is done.
        """
        self._outcomes["ok" if job.failure is None else job.failure.kind] += 1
        value = total_objective(job.objective)
        if value is not None and (self._best is None or value > self._best):
            self._best = value
        self._progress.advance(self._bar)

    def on_done_other(self, job: Job) -> None:
        """Count another evaluator's outcome.

        Args:
            job: the job, as the storage has it.
        """
        self.on_done(job)

    def on_close(self) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            atexit.unregister(self.on_close)
            self._live.stop()
            self._live = None

    def line(self) -> Text:
        """The outcomes by kind, and the best objective."""
        parts = [
            Text(f"{count} {kind}", style="green" if kind == "ok" else "red")
            for kind, count in sorted(self._outcomes.items(), key=lambda item: (item[0] != "ok", item[0]))
        ]
        if self._best is not None:
            parts.append(Text(f"best {self._best:.6g}", style="bold"))
        return Text(", ").join(parts)

    def extra(self) -> list[RenderableType]:
        """What else is drawn below the bar; for subclasses."""
        return []

    def _begin(self) -> None:
        from rich.live import Live  # noqa: PLC0415  costs what only those pay who draw

        if self._live is None:
            # It lives on after the cell of a notebook, whose later output is none of its business.
            redirect = not self._console.is_jupyter
            self._live = Live(
                get_renderable=self._picture,
                console=self._console,
                refresh_per_second=8,
                redirect_stdout=redirect,
                redirect_stderr=redirect,
            )
            self._live.start()
            atexit.register(self.on_close)  # of an evaluator that nobody closes: the cursor is hidden until then

    def _picture(self) -> Any:
        return Group(self._progress.get_renderable(), self.line(), *self.extra())


class _Time(ProgressColumn):
    """The time that is left, in the end the time that it took."""

    def render(self, task: Task) -> Text:
        seconds = task.elapsed if task.finished else task.time_remaining
        if seconds is None:
            return Text("")
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
        return Text(f"in {text}" if task.finished else f"{text} left", style="progress.remaining")


class _Rate(ProgressColumn):
    """Jobs per second, or seconds per job."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f} jobs/s" if speed >= 1 else f"{1 / speed:.1f} s/job", style="progress.data.speed")
