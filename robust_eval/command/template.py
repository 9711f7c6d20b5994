"""Text with ``{parameters}``: the arguments and input files of a command. Knows nothing of processes and files."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import InvalidArgument, bounded_repr

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMATTER: Final = string.Formatter()
_HOW: Final = "Write a parameter as {name} or {name:.3f}, and a brace that stays as {{ or }}."


class Template:
    """One text in the language of `str.format`, checked when it is made.

    Args:
        text: the text; a value that is no string stands for its ``str``.
        where: what it is, for messages: ``"args[1]"``.

    Raises:
        InvalidArgument: the text is not well formed, or has a ``{}`` without a name.
    """

    __slots__ = ("_text", "_where")

    def __init__(self, text: Any, where: str) -> None:
        self._text, self._where = str(text), where
        try:
            names = [name for _, name, _, _ in _FORMATTER.parse(self._text) if name is not None]
        except ValueError as error:
            raise InvalidArgument(f"{where}={bounded_repr(text)} is no template: {error}. {_HOW}") from error
        for name in names:
            if not name or name[0].isdigit():
                raise InvalidArgument(f"{where}={bounded_repr(text)} has a parameter without a name. {_HOW}")

    def __str__(self) -> str:
        return self._text

    @property
    def is_plain(self) -> bool:
        """Whether the text has no parameter."""
        return all(name is None for _, name, _, _ in _FORMATTER.parse(self._text))

    def fill(self, values: Mapping[str, Any]) -> str:
        """Give the text with the values in it.

        Args:
            values: at least the parameters that the text names.

        Raises:
            InvalidArgument: one of them is missing, or cannot be written as the text asks.
        """
        try:
            return _FORMATTER.vformat(self._text, (), values)
        except KeyError as error:
            known = ", ".join(map(str, values))
            raise InvalidArgument(
                f"{self._where} needs the parameter {error}, which this configuration does not have. It has: {known}."
            ) from None
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise InvalidArgument(f"{self._where}={bounded_repr(self._text)} cannot be filled in: {error}") from error
