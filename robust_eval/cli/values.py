"""What stands behind an option, checked as it is read: a refusal names it, and what is allowed."""

from typing import Any

import typer

from robust_eval.errors import RobustEvalError
from robust_eval.limits import parse_memory, parse_seconds

_NO_LIMIT = "none"


def count(text: Any) -> int:
    """Read a whole number from 1."""
    return _whole(text, 1)


def count_or_none(text: Any) -> int:
    """Read a whole number from 0."""
    return _whole(text, 0)


def seconds(text: Any) -> float | None:
    """Read a duration above 0; ``none`` for no limit."""
    return _seconds(text, allow_zero=False)


def seconds_from_zero(text: Any) -> float | None:
    """Read a duration that may be 0; ``none`` for no limit."""
    return _seconds(text, allow_zero=True)


def share(text: Any) -> float:
    """Read a number from 0 to 1."""
    value = _number(text)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise typer.BadParameter(f"{text!r} is no share. Allowed is a number from 0 to 1: 0.5 is one half.")
    return float(value)


def memory(text: Any) -> float | str | None:
    """Read a size; ``none`` for no limit."""
    value = _number(text)
    if value == _NO_LIMIT:
        return None
    try:
        parse_memory(value, num_workers=1)
    except RobustEvalError as error:
        raise typer.BadParameter(str(error).removeprefix("memory_limit=")) from error
    return value  # type: ignore[no-any-return]  # parsed, and so a size


def _whole(text: Any, minimum: int) -> int:
    value = _number(text)
    if not isinstance(value, int) or value < minimum:
        raise typer.BadParameter(f"{text!r} is not allowed here. Write a whole number from {minimum}.")
    return value


def _seconds(text: Any, *, allow_zero: bool) -> float | None:
    value = _number(text)
    if value == _NO_LIMIT:
        return None
    try:
        return parse_seconds("", value, allow_zero=allow_zero)
    except RobustEvalError:
        allowed = f"a number of seconds {'from' if allow_zero else 'above'} 0, such as 60 or 0.5, or {_NO_LIMIT}"
        raise typer.BadParameter(f"{text!r} is no duration. Allowed is {allowed}.") from None


def _number(text: Any) -> Any:
    """Give a number where it is one, else the text in small letters; a default is a number already."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return str(text).strip().lower()
