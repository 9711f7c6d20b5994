"""Jobs as rows, and rows in a CSV file that other tools can rely on.

Rows have DeepHyper's columns in DeepHyper's order: ``p:*``, ``objective`` or ``objective_0``.., ``job_id``,
``rank`` where there is one, then ``m:*`` beginning with the two timestamps. A failed job adds ``m:failure``
and ``m:failure_message``; a run function's own ``"F..."`` adds nothing.

The file is one that a kill at any moment leaves readable: rows are appended whole, new columns come by
writing the file anew beside it, and a torn last line is cut off before anything is appended.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from robust_eval.errors import InvalidArgumentType, bounded_repr

if TYPE_CHECKING:
    from pathlib import Path

    from robust_eval.job import Job
    from robust_eval.storage.base import Storage

Row: TypeAlias = dict[str, Any]
SavedKeys: TypeAlias = list[str] | tuple[str, ...] | Callable[[Any], Mapping[str, Any]] | None

_TIMESTAMPS: Final = ("timestamp_submit", "timestamp_gather")
_IDENTITY: Final = ("job_id", "m:timestamp_submit")


# Python writes no longer whole numbers in decimal where it is told to be strict (`sys.set_int_max_str_digits`).
_MOST_BITS: Final = 2000


def csv_value(value: Any) -> Any:
    """Bring a value to what one cell can hold: lists and arrays become the text of plain lists."""
    value = _plain(value)
    return str(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Replace numpy's values by Python's, whose text can be read back."""
    kind = type(value)
    if kind is int and value.bit_length() > _MOST_BITS:
        return hex(value)
    if kind in (int, float, str, bool, type(None)):
        return value
    if kind in (list, tuple):
        return kind(map(_plain, value))
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        return value.tolist()
    return value


def rows_of(
    jobs: Iterable[Job],
    saved_keys: SavedKeys,
    convert: Callable[[Any], Any],
    num_objective: int | None,
) -> tuple[list[Row], int | None]:
    """Give one row for each job.

    Args:
        jobs: settled jobs.
        saved_keys: the parameters to save: ``None`` for all, names, or a callable giving a dict.
        convert: applied to each parameter.
        num_objective: how many objectives there are at least; ``None`` where that is not known.

    Returns:
        The rows, and how many objectives there are by now (``None`` without any job). With several, a
        job of fewer objectives, such as a failed one, has its objective in each of the columns.
    """
    jobs = list(jobs)
    counts = [len(job.objective) for job in jobs if isinstance(job.objective, tuple | list)]
    if jobs:
        num_objective = max([num_objective or 1, *counts])
    several = num_objective if counts or (num_objective or 1) > 1 else None
    return [_row_of(job, saved_keys, convert, several) for job in jobs], num_objective


def _row_of(job: Job, saved_keys: SavedKeys, convert: Callable[[Any], Any], several: int | None) -> Row:
    row = {f"p:{key}": convert(value) for key, value in _parameters(job, saved_keys).items()}
    objective = job.objective
    if several is None:
        row["objective"] = csv_value(objective)
    else:
        each = list(objective) if isinstance(objective, tuple | list) else [objective] * several
        row.update((f"objective_{number}", csv_value(value)) for number, value in enumerate(each))
    number = str(job.id).rpartition(".")[2]
    row["job_id"] = int(number) if number.isdecimal() else job.id
    if isinstance(job.rank, int):
        row["rank"] = job.rank
    metadata = job.metadata
    row.update((f"m:{key}", metadata.get(key)) for key in _TIMESTAMPS)
    # Keys that start with "_" are DeepHyper's internal ones.
    saved = (key for key in metadata if not str(key).startswith("_") and key not in _TIMESTAMPS)
    row.update((f"m:{key}", csv_value(metadata[key])) for key in saved)
    if (dequed := getattr(job, "dequed", None)) is not None:
        row["m:dequed"] = ",".join(map(str, dequed))
    if job.failure is not None:
        row["m:failure"] = job.failure.kind
        row["m:failure_message"] = job.failure.message
    return row


def _parameters(job: Job, saved_keys: SavedKeys) -> Mapping[str, Any]:
    if saved_keys is None:
        config: Mapping[str, Any] = job.config
        return config
    if isinstance(saved_keys, list | tuple):
        return {key: job.config.get(key) for key in saved_keys}
    if callable(saved_keys):
        return saved_keys(job)
    raise InvalidArgumentType(
        f"saved_keys={bounded_repr(saved_keys)} is a {type(saved_keys).__name__}. "
        "Pass None, a list of parameter names, or a callable that gives a dict for a job."
    )


def ordered_columns(rows: Iterable[Row], known: Iterable[str] = ()) -> list[str]:
    """Give every column of some rows, those of one group together, in order of appearance.

    Args:
        rows: the rows.
        known: columns that come first within their group.
    """
    columns = dict.fromkeys(known)
    for row in rows:
        columns.update(dict.fromkeys(row))
    if "objective_0" in columns:
        columns.pop("objective", None)
    return sorted(columns, key=_group)


def _group(column: str) -> int:
    if column.startswith("p:"):
        return 0
    if column.startswith("objective"):
        return 1
    return {"job_id": 2, "rank": 3}.get(column, 5 if column.startswith("m:failure") else 4)


class ResultsFile:
    """The CSV files of one search, one for each path that it is asked to write.

    Which file is the search's own is remembered in the storage, so that a resumed search appends and
    another one moves what it finds out of its way.

    Args:
        storage: where that is remembered.
        search_id: the search.
    """

    def __init__(self, storage: Storage, search_id: str) -> None:
        self._storage = storage
        self._search_id = search_id
        # For each path: its columns, and its size when we last wrote it.
        self._known: dict[Path, tuple[list[str], int]] = {}

    def write(self, path: Path, rows: list[Row]) -> None:
        """Add rows to a file, which is made, moved out of the way or repaired as needed.

        Args:
            path: the file; its directory must exist.
            rows: what `rows_of` gave, at least one.
        """
        path = path.resolve()
        # Under the names that will be read back from the file.
        rows = [{_as_written(column).decode(): value for column, value in row.items()} for row in rows]
        is_known = path in self._known
        columns = self._columns_of(path)
        if columns is not None and not is_known:
            rows = _without_known(path, rows)
        if columns is None:
            _move_away(path)
            first = {name: _text_of_cell(rows[0][name]) for name in _IDENTITY}
            # Before the file: a kill in between leaves a name without a file, not a file that is nobody's.
            self._storage.store_search_value(self._search_id, f"csv:{path}", first)
            self._write_new(path, ordered_columns(rows), rows)
            return
        wanted = ordered_columns(rows, columns)
        if wanted != columns:
            self._write_new(path, wanted, [*_widened(_read(path), wanted), *rows])
            return
        with path.open("ab") as file:
            file.write(_encoded(wanted, rows))
        self._known[path] = (wanted, path.stat().st_size)

    def forget(self) -> None:
        """Trust no more what was written last, after a write that was interrupted: the file itself is looked at."""
        self._known.clear()

    def _columns_of(self, path: Path) -> list[str] | None:
        """Give the columns of a file of this search, repaired; ``None`` where there is none."""
        if not path.exists():
            return None
        columns, size = self._known.get(path, (None, None))
        if columns is not None and path.stat().st_size == size:
            return columns
        if not self._is_own(path):
            return None
        _cut_torn_line(path)
        with _csv_rows(path) as reader:
            return next(reader, None)

    def _is_own(self, path: Path) -> bool:
        try:
            first = self._storage.load_search_value(self._search_id, f"csv:{path}")
        except KeyError:
            return False
        rows = _read(path, limit=1)
        return bool(rows) and {name: rows[0].get(name) for name in _IDENTITY} == first

    def _write_new(self, path: Path, columns: list[str], rows: list[Row]) -> None:
        # Beside the file and then over it: a kill leaves the old one or the new one, whole.
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        header = _encoded(columns, [dict(zip(columns, columns, strict=True))])
        try:
            partial.write_bytes(header + _encoded(columns, rows))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._known[path] = (columns, path.stat().st_size)


def _without_known(path: Path, rows: list[Row]) -> list[Row]:
    """Leave out what an earlier driver of the search has written already."""
    written = {row.get("job_id") for row in _read(path)}
    return [row for row in rows if _text_of_cell(row["job_id"]) not in written]


def _text_of_cell(value: Any) -> str:
    return "" if value is None else str(value)


def _text_at_all(value: Any) -> Any:
    if isinstance(value, float):
        return value  # the csv module writes it with all its digits
    try:
        return _text_of_cell(value)
    except Exception:  # noqa: BLE001  the user's code runs here
        return bounded_repr(value)


def _as_written(text: str) -> bytes:
    """A NUL ends a cell for pandas, and what is no text must not cost the row."""
    return text.replace("\0", "\\x00").encode("utf-8", errors="backslashreplace")


def _encoded(columns: list[str], rows: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    try:
        writer.writerows(rows)
    except Exception:  # noqa: BLE001  the user's `__str__`: it must not cost the other rows, nor the other cells
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writerows({column: _text_at_all(value) for column, value in row.items()} for row in rows)
    return _as_written(text.getvalue())


def _widened(rows: list[Row], columns: list[str]) -> list[Row]:
    """Bring rows of an older header to a newer one."""
    if "objective" in columns:
        return rows
    several = [column for column in columns if column.startswith("objective_")]
    for row in rows:
        if "objective" in row:
            row.update(dict.fromkeys(several, row.pop("objective")))
    return rows


@contextlib.contextmanager
def _csv_rows(path: Path) -> Iterator[Iterator[list[str]]]:
    # The limit of 128 KiB for one cell is global to the csv module: lifted only while we read.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield csv.reader(file)
    finally:
        csv.field_size_limit(limit)


def _read(path: Path, limit: int | None = None) -> list[Row]:
    try:
        with _csv_rows(path) as reader:
            header = next(reader, [])
            numbered = zip(range(limit), reader) if limit is not None else enumerate(reader)  # noqa: B905  the limit is the point
            return [dict(zip(header, cells, strict=False)) for _, cells in numbered]
    except (csv.Error, UnicodeDecodeError):
        return []  # not a file of ours


def _cut_torn_line(path: Path) -> None:
    """Cut what a kill in the middle of an append left after the last whole row."""
    content = path.read_bytes()
    end = len(content)
    # A row ends at a line break outside of quotes: after an even number of quotation marks.
    quotes = content.count(b'"')
    while end and not (content[end - 1 : end] == b"\n" and quotes % 2 == 0):
        start = content.rfind(b"\n", 0, end - 1) + 1
        quotes -= content.count(b'"', start, end)
        end = start
    if end < len(content):
        os.truncate(path, end)


def _move_away(path: Path) -> None:
    """Keep a file that another search left, under the first free number."""
    if not path.exists() or path.stat().st_size == 0:
        return
    number = 1
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(kept)
