"""The half of an evaluator that writes down what was gathered: the CSV file and the DataFrame."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_eval.errors import InvalidArgument, bounded_repr
from robust_eval.html_view import evaluator_html
from robust_eval.job import Job, JobStatus
from robust_eval.results import ResultsFile, SavedKeys, csv_value, ordered_columns, rows_of

if TYPE_CHECKING:
    import os

    import pandas as pd

    from robust_eval.storage.base import Storage


class Dumping:
    """What an evaluator does with the jobs that were gathered.

    Args:
        storage: where it is remembered which files are the search's own.
        search_id: the search.
    """

    jobs: list[Job]
    jobs_done: list[Job]
    _search_id: str

    def __init__(self, storage: Storage, search_id: str) -> None:
        self.num_objective: int | None = None
        self._results = ResultsFile(storage, search_id)

    def decode(self, key: str) -> dict[str, Any]:
        """Read a JSON object.

        Args:
            key: its text.

        Returns:
            The object.

        Raises:
            json.JSONDecodeError: the text is no JSON (a ``ValueError``).
            InvalidArgument: the JSON is something else (a ``ValueError``).
        """
        decoded = json.loads(key)
        if not isinstance(decoded, dict):
            raise InvalidArgument(f"key={bounded_repr(key)} holds a {type(decoded).__name__}; pass a JSON object.")
        return decoded

    def convert_for_csv(self, val: Any) -> Any:
        """Bring a value to what one cell of a CSV file can hold.

        Args:
            val: a value of a configuration.

        Returns:
            The text of a list, a value of numpy's as Python's; anything else as it is.
        """
        return csv_value(val)

    def dump_evals(
        self,
        saved_keys: SavedKeys = None,
        log_dir: str | os.PathLike[str] = ".",
        filename: str = "results.csv",
    ) -> None:
        """Write the jobs gathered since the last dump to a CSV file.

        The first dump of a search replaces the file, which is kept as ``results.csv.1`` where another
        search left it; later ones append, and add columns where new ones have come up.

        Args:
            saved_keys: the parameters to save: ``None`` for all, a list of names, or a callable that
                gives a dict for a job.
            log_dir: the directory of the file.
            filename: its name.

        Raises:
            FileNotFoundError: ``log_dir`` is no directory.
        """
        rows = self._rows(self.jobs_done, saved_keys)
        if rows and not Path(log_dir).is_dir():
            raise FileNotFoundError(errno.ENOENT, "dump_evals: log_dir is no directory, make it first", str(log_dir))
        try:
            if rows:
                self._results.write(Path(log_dir) / filename, rows)
            # Only now: what could not be written stays for the next dump.
            del self.jobs_done[: len(rows)]
        except BaseException:  # Ctrl-C, too: some rows may be in the file, and must not get into it twice
            self._results.forget()
            raise

    def to_frame(self) -> pd.DataFrame:
        """Give every gathered job as a row of a DataFrame, with the columns of the CSV.

        Returns:
            The DataFrame, in the order in which the jobs were gathered.
        """
        import pandas as pd  # noqa: PLC0415  imported only by those who need it

        rows = self._rows([job for job in self.jobs if job.status is JobStatus.DONE], None)
        return pd.DataFrame(rows, columns=ordered_columns(rows))

    def report(self, path: str | os.PathLike[str] = "report.html", title: str = "") -> Path:
        """Write one self-contained page about the search, which opens from disk without any network.

        It has the timeline of the workers, objectives, memory and durations, failures by their cause, and a table of
        the jobs that can be sorted and filtered.

        Args:
            path: the file; it is replaced.
            title: what stands above; by default the search's id.

        Returns:
            The file.

        Raises:
            RobustEvalError: plotly is not installed.
        """
        from robust_eval.report import write_report  # noqa: PLC0415  needs an extra

        return write_report(self.jobs, path, title or f"search {self._search_id}")

    def _repr_html_(self) -> str:
        """What a notebook shows of the evaluator: how many jobs there are by outcome, and the last failures."""
        return evaluator_html(type(self).__name__, self.jobs)

    def _rows(self, jobs: list[Job], saved_keys: SavedKeys) -> list[dict[str, Any]]:
        rows, self.num_objective = rows_of(jobs, saved_keys, self.convert_for_csv, self.num_objective)
        return rows
