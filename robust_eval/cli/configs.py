"""Configurations from files and from the command line."""

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias

from robust_eval.errors import InvalidArgument, bounded_repr

Config: TypeAlias = dict[str, Any]

_PARAMETER: Final = "p:"
_FORMATS: Final = "a CSV file (.csv), JSON lines (.jsonl, .ndjson, or - for standard input), or a JSON list (.json)"


def configurations(path: str | None, grids: Iterable[str]) -> list[Config]:
    """Give every configuration of a file, combined with every point of the grid.

    Args:
        path: the file; ``"-"`` for JSON lines on standard input; ``None`` for a grid alone.
        grids: ``"x=1,2,3"``, one for each parameter.

    Raises:
        InvalidArgument: the file cannot be read, or is of another form; the message names the line.
    """
    axes = dict(map(_axis, grids))
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    rows = [{}] if path is None else list(_rows(path))
    return [{**row, **point} for row, point in itertools.product(rows, points)]


def value_of(text: str) -> Any:
    """Give what a text stands for: JSON where it is such (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _axis(text: str) -> tuple[str, list[Any]]:
    name, separator, values = text.partition("=")
    if not (name and separator and values):
        raise InvalidArgument(f"--grid {text} has no values. Write --grid x=1,2,3, once for each parameter.")
    try:
        listed = json.loads(f"[{values}]")
    except ValueError:
        listed = [value_of(value) for value in values.split(",")]
    return name, listed


def _rows(path: str) -> Iterator[Config]:
    if path == "-":
        yield from _json_lines(sys.stdin, "standard input")
        return
    suffix = Path(path).suffix.lower()
    readers = {".csv": _csv_rows, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_list}
    if suffix not in readers:
        raise InvalidArgument(f"CONFIGS={path!r} is of no known form. Pass {_FORMATS}.")
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            yield from readers[suffix](file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"CONFIGS={path!r} cannot be read: {error}.") from error


def _csv_rows(file: TextIO, path: str) -> Iterator[Config]:
    """Rows by their header. Of a file of results only the parameters, ``p:*``, are taken; an empty cell is none."""
    reader = csv.DictReader(file)
    names = reader.fieldnames or []
    parameters = {name: name.removeprefix(_PARAMETER) for name in names if name.startswith(_PARAMETER)}
    wanted = parameters or {name: name for name in names}
    for row in reader:
        if None in row or None in row.values():
            raise InvalidArgument(f"{path}:{reader.line_num} has not as many cells as the header, {len(names)}.")
        yield {name: value_of(row[column]) for column, name in wanted.items() if row[column] != ""}


def _json_lines(file: TextIO, path: str) -> Iterator[Config]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _checked(_json(line, f"{path}:{number}"), f"{path}:{number}")


def _json_list(file: TextIO, path: str) -> Iterator[Config]:
    rows = _json(file.read(), path)
    if not isinstance(rows, list):
        raise InvalidArgument(f"{path} holds a {type(rows).__name__}. A .json file holds a list of objects.")
    for number, row in enumerate(rows):
        yield _checked(row, f"{path}[{number}]")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{where} is no JSON: {error}.") from error


def _checked(row: Any, where: str) -> Config:
    if not isinstance(row, dict):
        raise InvalidArgument(f'{where} is {bounded_repr(row)}. A configuration is an object: {{"x": 1}}.')
    return row
