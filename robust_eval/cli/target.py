"""What is run: a function by its name, or an executable."""

import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_eval.errors import InvalidArgument


def function_of(target: str) -> Callable[..., Any]:
    """Import a function as ``module:function``; the working directory comes first, as with ``python -m``.

    Raises:
        InvalidArgument: it is not there, or cannot be called.
    """
    module_name, separator, name = target.partition(":")
    if not (module_name and separator and name):
        hint = f" A file is named as a module: {target.removesuffix('.py')}:run." if target.endswith(".py") else ""
        raise InvalidArgument(f"{target!r} names no function. Write module:function.{hint}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InvalidArgument(f"There is no module {error.name!r}, neither here ({here}) nor installed.") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidArgument(f"The module {module_name!r} has no function {name!r}.")
    return found  # type: ignore[no-any-return]  # the user's


def command_of(text: str, parse: str | None, scratch: str, keep: Any) -> Callable[..., Any]:
    """Make a run function of a command line, which is split as a shell would and read by none.

    Raises:
        InvalidArgument: its quotes are not closed, or `Command` refuses it.
    """
    from robust_eval.command import Command  # noqa: PLC0415  imported only by those who need it

    try:
        args = shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"--command {text!r} cannot be split into arguments: {error}.") from error
    return Command(args, parse=parse, scratch=scratch, keep=keep)
