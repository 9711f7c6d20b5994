"""What is run: a function by its name, or an executable."""

import importlib
import inspect
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from robust_eval.errors import InvalidArgument, bounded_repr

_MOST_NAMES: Final = 12


def function_of(target: str) -> Callable[..., Any]:
    """Import a function as ``module:function``; the working directory comes first, as with ``python -m``.

    Raises:
        InvalidArgument: it is not there, or cannot be called.
    """
    module_name, separator, name = target.partition(":")
    if not (module_name and separator and name):
        hint = f" A file is named as a module: {target.removesuffix('.py')}:run." if target.endswith(".py") else ""
        raise InvalidArgument(f"{target!r} names no function. Write module:function.{hint}")
    if module_name.endswith(".py"):
        as_module = module_name.removesuffix(".py").replace("/", ".")
        raise InvalidArgument(f"{module_name!r} is a file. Name it as a module: {as_module}:{name}.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _imported(module_name, here)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidArgument(f"The module {module_name!r} has no function {name!r}.{_functions(module)}")
        found = getattr(found, part)
    if not callable(found):
        raise InvalidArgument(f"{target} is {bounded_repr(found)}, no function.{_functions(module)}")
    return found  # type: ignore[no-any-return]  # the user's


def _imported(name: str, here: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise InvalidArgument(
                f"There is no module {error.name!r}, neither here ({here}) nor installed for {sys.executable}."
            ) from error
        raise InvalidArgument(_broken(name, error)) from error
    except (Exception, SystemExit) as error:  # the user's module, which may raise anything
        raise InvalidArgument(_broken(name, error)) from error


def _broken(name: str, error: BaseException) -> str:
    """Say what an import raised, with the lines of the user's own, not of the machinery that imports."""
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list(
        [frame for frame in told.stack if frame.filename != __file__ and "importlib" not in frame.filename]
    )
    lines = "".join(told.format(chain=False)).rstrip()
    return f"The module {name!r} cannot be imported:\n{lines}\nDoes python -c 'import {name}' work here?"


def _functions(module: ModuleType) -> str:
    """Name the functions that are there, those of the module's own."""
    names = [
        name
        for name, value in vars(module).items()
        if inspect.isroutine(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    return f" It has: {', '.join(names[:_MOST_NAMES])}." if names else ""


def command_of(text: str, parse: str | None, **options: Any) -> Callable[..., Any]:
    """Make a run function of a command line, which is split as a shell would and read by none.

    Raises:
        InvalidArgument: its quotes are not closed, or `Command` refuses it.
    """
    from robust_eval.command import Command  # noqa: PLC0415  imported only by those who need it

    try:
        args = shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"--command {text!r} cannot be split into arguments: {error}.") from error
    return Command(args, parse=parse, **options)
