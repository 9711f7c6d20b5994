"""Callbacks: told about every job as it is submitted and gathered. All of them live with failures.

They run in the thread that submits and gathers. An error in one is logged once and costs no job.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_eval.errors import InvalidArgument, RobustEvalError, SearchStopped, bounded_repr
from robust_eval.limits import parse_count
from robust_eval.results import ResultsFile, csv_value, rows_of
from robust_eval.storage.memory import MemoryStorage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import pandas as pd

    from robust_eval.job import Job


class Callback:
    """What an evaluator calls; override what is of interest."""

    def on_launch(self, job: Job) -> None:
        """Hear of a job that is being submitted.

        Args:
            job: the job; it has its id and its configuration, and no outcome yet.
        """

    def on_done(self, job: Job) -> None:
        """Hear of a job that is done, failed ones included, when it is gathered.

        Args:
            job: the job; ``job.failure`` is None for one that delivered.
        """

    def on_done_other(self, job: Job) -> None:
        """Hear of a job that another evaluator of the same search has done.

        Args:
            job: the job, as the storage has it.
        """

    def on_gather(self, job: Job) -> None:
        """Hear of a job that ``gather`` is about to return, after every ``on_done``.

        Args:
            job: the job.
        """

    def on_close(self) -> None:
        """Hear that the evaluator is closed."""


def total_objective(objective: Any) -> float | None:
    """Give the number that an objective amounts to, the sum of several; ``None`` for a failure."""
    values = objective if isinstance(objective, tuple | list) else (objective,)
    if any(isinstance(value, str) or value is None for value in values):
        return None
    return math.fsum(values)


class _Best:
    """Counts jobs and failures and keeps the best objective."""

    def __init__(self) -> None:
        self.objective: float | None = None
        self.done = 0
        self.failures = 0

    def add(self, objective: Any) -> float | None:
        """Take one more job's objective; give it as a number, ``None`` for a failure."""
        value = total_objective(objective)
        self.done += 1
        if value is None:
            self.failures += 1
        elif self.objective is None or value > self.objective:
            self.objective = value
        return value


class LoggerCallback(Callback):
    """Prints a line for each job that is done."""

    def __init__(self) -> None:
        self._best = _Best()

    def on_done_other(self, job: Job) -> None:
        """Print the line of another evaluator's job.

        Args:
            job: the job, as the storage has it.
        """
        self.on_done(job)

    def on_done(self, job: Job) -> None:
        """Print the job's objective and the best so far, or its failure.

        Args:
            job: the job that is done.
        """
        value = self._best.add(job.objective)
        head = f"[{self._best.done:05d}] --"
        if value is None:
            why = "" if job.failure is None else f" ({job.failure.kind}: {job.failure.message})"
            print(f"{head} received failure: {job.objective}{why}")  # noqa: T201  printing is its purpose
            return
        what = "sum(objective)" if isinstance(job.objective, tuple | list) else "objective"
        best = self._best.objective
        print(f"{head} best {what}: {best:.5f} -- received {what}: {value:.5f}")  # noqa: T201  printing is its purpose


class TqdmCallback(Callback):
    """Shows a progress bar (needs ``tqdm``)."""

    def __init__(self) -> None:
        self._best = _Best()
        self._max_evals: int | None = None
        self._bar: Any = None

    def set_max_evals(self, max_evals: int | None) -> None:
        """Say how many jobs there will be; begins a new bar.

        Args:
            max_evals: the number of jobs; None for a bar without an end, as it is before this was called.
        """
        self.on_close()
        self._max_evals = max_evals

    def on_done_other(self, job: Job) -> None:
        """Count another evaluator's job.

        Args:
            job: the job, as the storage has it.
        """
        self.on_done(job)

    def on_done(self, job: Job) -> None:
        """Count the job, and show the best objective and the number of failures.

        Args:
            job: the job that is done.

        Raises:
            RobustEvalError: tqdm is not installed.
        """
        if self._bar is None:
            self._bar = _new_bar(self._max_evals)
        self._best.add(job.objective)
        self._bar.update(1)
        several = isinstance(job.objective, tuple | list)
        self._bar.set_postfix(
            {
                "sum(objective)" if several else "objective": self._best.objective,
                "failures": self._best.failures,
            }
        )

    def on_close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _new_bar(total: int | None) -> Any:
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415  imported only by those who need it
    except ImportError as error:
        raise RobustEvalError("TqdmCallback needs tqdm: pip install 'robust-eval[progress]'.") from error
    return tqdm(total=total)


class ProfilingCallback(Callback):
    """Collects how many jobs ran at each time.

    A job counts from ``timestamp_start`` to ``timestamp_end`` where the run function has the decorator
    ``profile``, and from its submission to its gathering otherwise.

    Attributes:
        history: (timestamp, +1 or -1) for each begin and end.
    """

    def __init__(self) -> None:
        self.history: list[tuple[float, int]] = []

    def on_done_other(self, job: Job) -> None:
        """Collect the timestamps of another evaluator's job.

        Args:
            job: the job, as the storage has it.
        """
        self.on_done(job)

    def on_done(self, job: Job) -> None:
        """Collect the timestamps of the job.

        Args:
            job: the job that is done; one whose timestamps are not known is left out.
        """
        metadata = job.metadata
        times = [metadata.get(f"timestamp_{which}") for which in ("start", "end")]
        if None in times:
            times = [metadata.get(f"timestamp_{which}") for which in ("submit", "gather")]
        start, end = times
        if start is not None and end is not None:
            self.history += [(start, 1), (end, -1)]

    @property
    def profile(self) -> pd.DataFrame:
        """A DataFrame of ``timestamp`` and ``n_jobs_running``."""
        import pandas as pd  # noqa: PLC0415  imported only by those who need it

        running = 0
        rows = []
        for timestamp, change in sorted(self.history):
            running += change
            rows.append((timestamp, running))
        return pd.DataFrame(rows, columns=["timestamp", "n_jobs_running"])


class CSVLoggerCallback(Callback):
    """Writes a row for each job as it is gathered, into a file that a kill at any moment leaves readable.

    The columns are those of ``dump_evals``. A file that another search left under this name is kept as
    ``results.csv.1``.

    Args:
        path: the file.

    Raises:
        InvalidArgument: its directory does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] = "results.csv") -> None:
        self._path = Path(path).absolute()
        if not self._path.parent.is_dir():
            raise InvalidArgument(f"path={bounded_repr(path)} lies in no directory that exists. Make it first.")
        storage = MemoryStorage().connect()
        self._file = ResultsFile(storage, storage.create_new_search())
        self._num_objective: int | None = None

    def on_done_other(self, job: Job) -> None:
        """Write the row of another evaluator's job.

        Args:
            job: the job, as the storage has it.
        """
        self.on_done(job)

    def on_done(self, job: Job) -> None:
        """Write the job's row.

        Args:
            job: the job that is done.
        """
        rows, self._num_objective = rows_of([job], None, csv_value, self._num_objective)
        self._file.write(self._path, rows)


class SearchEarlyStopping(Callback):
    """Stops the search when it has not improved for a while: ``gather`` raises `SearchStopped`.

    A failed job is one that did not improve.

    Args:
        patience: how many jobs in a row may fail to improve.
        objective_func: gives the value of a job, larger is better; several are summed.

    Attributes:
        search_stopped: whether it has asked for the end of the search.
    """

    def __init__(self, patience: int = 10, objective_func: Callable[[Job], Any] = lambda job: job.result) -> None:
        self._patience = parse_count("patience", patience)
        self._objective_func = objective_func
        self._best: float | None = None
        self._n_lower = 0
        self.search_stopped = False

    def on_done_other(self, job: Job) -> None:
        """Take another evaluator's job into account.

        Args:
            job: the job, as the storage has it.

        Raises:
            SearchStopped: the patience is at its end.
        """
        self.on_done(job)

    def on_done(self, job: Job) -> None:
        """Take the job into account.

        Args:
            job: the job that is done.

        Raises:
            SearchStopped: the patience is at its end.
        """
        value = total_objective(self._objective_func(job))
        if value is not None and (self._best is None or value > self._best):
            if self._best is not None:
                print(f"Objective has improved from {self._best:.5f} -> {value:.5f}")  # noqa: T201  printing is its purpose
            self._best = value
            self._n_lower = 0
            return
        self._n_lower += 1
        if self._n_lower >= self._patience:
            self.search_stopped = True
            raise SearchStopped(f"The search did not improve for the last {self._patience} evaluations.")
