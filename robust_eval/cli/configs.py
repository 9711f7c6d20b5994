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
_OPENING: Final = ("[", "{", '"')
_FORMATS: Final = "a CSV file (.csv), JSON lines (.jsonl, .ndjson, or - for standard input), or a JSON list (.json)"


def configurations(path: str | None, grids: Iterable[str]) -> list[Config]:
    """Give every configuration of a file, combined with every point of the grid.

    Args:
        path: the file; ``"-"`` for JSON lines on standard input; ``None`` for a grid alone.
        grids: ``"x=1,2,3"``, one for each parameter.

    Raises:
        InvalidArgument: the file cannot be read, or is of another form; the message names the line.
    """
    axes = _axes(grids)
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    rows = [{}] if path is None else list(_rows(path))
    if not rows:
        raise InvalidArgument(f"{path} has no configurations. Pass a file with at least one, or --grid x=1,2,3.")
    if twice := next((name for name in axes for row in rows if name in row), None):
        raise InvalidArgument(f"--grid gives {twice!r}, which {path} has, too. Leave it out of one of them.")
    return [{**row, **point} for row, point in itertools.product(rows, points)]


def value_of(text: str) -> Any:
    """Give what a text stands for: JSON where it is such (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _axes(grids: Iterable[str]) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for text in grids:
        name, values = _axis(text)
        if name in axes:
            raise InvalidArgument(f"--grid gives {name!r} twice. Write all of its values in one: --grid {name}=1,2,3.")
        axes[name] = values
    return axes


def _axis(text: str) -> tuple[str, list[Any]]:
    name, _, values = text.partition("=")
    if not (name and values):
        missing = "name" if not name else "values"
        raise InvalidArgument(f"--grid {text} has no {missing}. Write --grid x=1,2,3, once for each parameter.")
    try:
        return name, list(json.loads(f"[{values}]"))
    except ValueError:
        return name, [_grid_value(value, text) for value in values.split(",")]


def _grid_value(value: str, text: str) -> Any:
    """One of values that are not JSON together: then none of them may be JSON that was torn at a comma, or nothing."""
    given = value_of(value)
    if not value.strip():
        raise InvalidArgument(f'--grid {text} has an empty value. Write "" for an empty text: --grid \'x="",1\'.')
    if isinstance(given, str) and value.lstrip().startswith(_OPENING):
        raise InvalidArgument(f"--grid {text}: {value!r} begins like JSON and is none. Quote it for the shell.")
    return given


def _rows(path: str) -> Iterator[Config]:
    if path == "-":
        yield from _json_lines(sys.stdin, "standard input")
        return
    suffix = Path(path).suffix.lower()
    readers = {".csv": _csv_rows, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_list}
    if suffix not in readers:
        raise InvalidArgument(f"CONFIGS={path!r} is of no known form. Pass {_FORMATS}.")
    try:
        # Excel marks its UTF-8 with a byte order mark, which is no part of the first name.
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield from readers[suffix](file, path)
    except OSError as error:
        raise InvalidArgument(f"CONFIGS={path!r} cannot be read: {error.strerror}. Pass {_FORMATS}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument(f"CONFIGS={path!r} cannot be read: {error}. Save it as text in UTF-8.") from error


def _csv_rows(file: TextIO, path: str) -> Iterator[Config]:
    """Rows by their header. Of a file of results only the parameters, ``p:*``, are taken; an empty cell is none."""
    reader = csv.reader(file)
    names = next(reader, [])
    _check_header(names, path)
    parameters = {name: name.removeprefix(_PARAMETER) for name in names if name.startswith(_PARAMETER)}
    wanted = parameters or {name: name for name in names}
    for cells in filter(None, reader):  # an empty line is no row
        if len(cells) != len(names):
            raise InvalidArgument(
                f"{path}:{reader.line_num} has {len(cells)} cells and the header {len(names)}: {', '.join(names)}. "
                'Quote a text with a comma: "a,b".'
            )
        row = dict(zip(names, cells, strict=True))
        yield {name: value_of(row[column]) for column, name in wanted.items() if row[column]}


def _check_header(names: list[str], path: str) -> None:
    """A table that is read wrongly is worse than one that is refused."""
    if len(names) == 1 and (other := next((each for each in ";\t|" if each in names[0]), None)):
        raise InvalidArgument(f"{path} has the header {names[0]!r}, separated by {other!r}. Separate cells by commas.")
    for name in names:
        if not name.strip():
            raise InvalidArgument(f"{path} has a column without a name in its header: {', '.join(map(repr, names))}.")
        if names.count(name) > 1:
            raise InvalidArgument(f"{path} has the column {name!r} twice. Give each parameter one column.")


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
