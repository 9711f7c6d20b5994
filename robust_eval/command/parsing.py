"""From what a command printed to what a run function returns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from robust_eval.errors import InvalidArgument, InvalidArgumentType, InvalidOutput, bounded_repr

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command that ended well left.

    Attributes:
        output: what it wrote to stdout; of more than 1 MiB, the last.
        exit_code: one of ``ok_exit_codes``.
        job_dir: its scratch directory, with the files that it wrote.
        duration: how long it ran, in seconds.
    """

    output: str
    exit_code: int
    job_dir: Path
    duration: float


Parse: TypeAlias = Callable[[CommandResult], Any]


def parser_of(parse: Any) -> Parse:
    """Give the function that reads an objective out of a result.

    Args:
        parse: ``None`` for JSON on the last line; a regular expression, text or compiled; or the function itself.

    Raises:
        InvalidArgument: the expression is none, or has no group.
        InvalidArgumentType: it is none of these.
    """
    if parse is None:
        return json_on_the_last_line
    if isinstance(parse, str | re.Pattern):
        return _Expression(parse)
    if callable(parse):
        return parse  # type: ignore[no-any-return]  # the user's
    raise InvalidArgumentType(
        f"parse={bounded_repr(parse)} is a {type(parse).__name__}. Pass None for JSON on the last line of the output, "
        "a regular expression whose group is the objective, or a function of the CommandResult."
    )


def json_on_the_last_line(result: CommandResult) -> Any:
    """Give the JSON value on the last line of the output that is not empty."""
    last = result.output.rstrip().rpartition("\n")[2]
    try:
        return json.loads(last)
    except ValueError as error:
        shown = bounded_repr(last, _SHOWN)
        what = f"is {shown}, not JSON ({error})" if last else "is missing: it printed nothing"
        raise InvalidOutput(
            f"The last line of the command's output {what}. Have it print its objective there, or pass parse=.", shown
        ) from error


class _Expression:
    """Reads the last match of a regular expression; a class, because it travels to the workers."""

    def __init__(self, pattern: str | re.Pattern[str]) -> None:
        try:
            self._pattern = re.compile(pattern, re.MULTILINE) if isinstance(pattern, str) else pattern
        except re.error as error:
            raise InvalidArgument(f"parse={bounded_repr(pattern)} is no regular expression: {error}.") from error
        if not self._pattern.groups:
            raise InvalidArgument(
                f"parse={bounded_repr(pattern)} has no group. Put what is the objective into parentheses: r'loss=(.+)'."
            )

    def __call__(self, result: CommandResult) -> Any:
        match = None
        for match in self._pattern.finditer(result.output):  # noqa: B007  the last one counts
            pass
        if match is None:
            shown = bounded_repr(result.output[-_SHOWN:], _SHOWN)
            raise InvalidOutput(
                f"Nothing in the command's output matches {self._pattern.pattern!r}. It ends with {shown}.", shown
            )
        named = match.groupdict()
        text = named.pop("objective", None) or match[1]
        metadata = {name: _value(value) for name, value in named.items() if value is not None}
        return {"objective": _value(text), "metadata": metadata}


def _value(text: str | None) -> Any:
    """The number in a text, else the text."""
    stripped = (text or "").strip()
    for kind in (int, float):
        try:
            return kind(stripped)
        except ValueError:
            continue
    return stripped
