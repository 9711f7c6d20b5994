"""Loading the user's function in a process that is not the user's script."""

import ctypes
import gc
import json
import os
import sys
import types
from typing import Any

from robust_eval.errors import RobustEvalError
from robust_eval.processes.parcel import Memory, open_parcel, unpack

_BOOT = (
    "import sys, json, site; sys.path[{start}:] = json.loads(sys.argv[1]); site.setquit(); site.sethelper(); "
    "site.setcopyright(); {then}from robust_eval.processes.forking import AtFork; AtFork().listen(); "
    "from robust_eval.processes.{module} import main; main(sys.argv[2:])"
)
_PRETEND = "from robust_eval.processes.loading import pretend_site; pretend_site(); "
_BY_VALUE = b"cloudpickle"
_FIELDS_OF_LINES = 4  # an entry of linecache that was not read yet has one
_OWN_FINDERS = ("_frozen_importlib", "_frozen_importlib_external", "_pytest.", "six", "_distutils_hack")


class StartRefused(RobustEvalError, RuntimeError):
    """The template or a worker must not be used as it is."""


def command(python: str, module: str, *, imports_site: bool) -> list[str]:
    """The command that runs `main` of one of our modules with this process's import path.

    Args:
        python: the interpreter.
        module: a module of this package.
        imports_site: let the interpreter process `.pth` files and `sitecustomize`, which costs it 40 ms and is
            needed only where these install import hooks: the path itself is handed over. Another interpreter than
            this one always does, since it has packages of its own.
    """
    import subprocess

    path: list[object] = [*sys.path]  # where anything may stand; the import system passes over what is no text
    entries = [entry or _directory() for entry in path if isinstance(entry, str)]
    if python == sys.executable:
        # -W, -X and -O, as `multiprocessing` hands them on
        options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001
        skipped = not imports_site and "-S" not in options
        start, flags, then = ("", [*options, "-S"], _PRETEND) if skipped else ("", options, "")
    else:
        start, flags, then = "len(sys.path)", [], ""
        entries = [entry for entry in entries if not entry.startswith((sys.prefix, sys.base_prefix))]
    return [python, *flags, "-c", _BOOT.format(module=module, start=start, then=then), json.dumps(entries)]


def pretend_site() -> None:
    """Let the programs that jobs start import `site`, which this process has left out for its own sake.

    Whoever starts a Python with the options of this one, as `multiprocessing` and joblib do, asks `sys.flags` for them;
    with `-S` it would find no installed package. The flags are a tuple that Python code cannot change.
    """
    fields = type(sys.flags).__match_args__
    place = id(sys.flags) + tuple.__basicsize__ + fields.index("no_site") * ctypes.sizeof(ctypes.c_void_p)
    flag: Any = ctypes.py_object.from_address(place)
    if flag.value is sys.flags.no_site:
        flag.value = 0


def executable(other: str) -> str:
    """This interpreter, or the other where this one is embedded and does not know its name.

    Raises:
        StartRefused: no name is known.
    """
    python = sys.executable or other
    if not python:
        msg = "this interpreter does not know its own path: set Evaluator.PYTHON_EXE, or ROBUST_EVAL_PYTHON around it"
        raise StartRefused(msg)
    return python


def arguments() -> list[str]:
    """This process's `sys.argv`, which an embedded interpreter may lack and a program may have changed."""
    return [str(argument) for argument in getattr(sys, "argv", ())]


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted; nothing can be imported from there
        return ""


def needs_site() -> bool:
    """Whether this process imports through hooks that only `site` can install."""
    finders = (getattr(finder, "__module__", "") or type(finder).__module__ for finder in sys.meta_path)
    return is_measured() or any(not name.startswith(_OWN_FINDERS) for name in finders)


def is_measured() -> bool:
    """Whether a coverage measurement wants to enter this process's children, which it does through `site`."""
    return any(name.startswith("COVERAGE_PROCESS_") for name in os.environ)


def load_bundle(fd: int, version: list[int]) -> Any:
    """The bundle that lies in a memfd, which is closed.

    Args:
        fd: the memfd.
        version: major and minor version of the interpreter that made it.

    Raises:
        StartRefused: it holds code of another minor version, which this interpreter cannot run.
    """
    view = open_parcel(Memory(fd, os.fstat(fd).st_size))
    if version != list(sys.version_info[:2]) and _BY_VALUE in bytes(view):
        theirs, ours = ".".join(map(str, version)), ".".join(map(str, sys.version_info[:2]))
        msg = (
            f"the run function was pickled by value with Python {theirs} and PYTHON_EXE is Python {ours}, whose code "
            "differs: put the function into a module that both can import, or use the same minor version"
        )
        raise StartRefused(msg)
    return unpack(view)


def refuse_cuda() -> None:
    """A process that initialised CUDA cannot be forked.

    Raises:
        StartRefused: CUDA is initialised.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        msg = (
            "the module 'torch' has CUDA initialised in the template, and a CUDA context does not survive a fork: "
            "initialise it in the run function or in initializer=, or use start_method='spawn'"
        )
        raise StartRefused(msg)


def sources() -> dict[str, list[str]] | None:
    """The lines of the cells of a notebook, by the names of files that its code is said to be in."""
    linecache: Any = sys.modules.get("linecache")
    if linecache is None or "IPython" not in sys.modules:
        return None
    known = [(name, entry[2]) for name, entry in list(linecache.cache.items()) if len(entry) == _FIELDS_OF_LINES]
    return {name: lines for name, lines in known if not name.startswith("<") and not os.path.exists(name)}


def share_sources(lines: dict[str, list[str]] | None) -> None:
    """Let tracebacks of this process show lines that are in no file here."""
    if lines is None:
        return
    import linecache  # 6 ms, which other starts need not pay

    for name, each in lines.items():
        linecache.cache[name] = (sum(map(len, each)), None, each, name)  # without a time it is never looked for on disk


def share_main(bundle: object) -> None:
    """Let `__main__` of this process hold what the user's functions refer to in theirs.

    Functions of a script or a notebook come by value, with globals of their own. Whatever then looks a name up in
    `__main__`, as the pickling of `multiprocessing` does, must find the same objects.
    """
    del bundle
    main = sys.modules["__main__"].__dict__
    # Not isinstance: it asks an object for its class, and a dead weak proxy or a lazy one of the user's raises then.
    functions = [obj for obj in gc.get_objects() if type(obj) is types.FunctionType and obj.__module__ == "__main__"]
    for function in functions:
        if function.__globals__ is not main:
            shared = {name: value for name, value in function.__globals__.items() if not name.startswith("__")}
            main.update(shared)
    for function in functions:
        if function.__qualname__.isidentifier():
            main.setdefault(function.__qualname__, function)
