"""Where a job failed, as one place in the user's source that is the same whenever the same fault comes again.

An exception and a crash have an exact place: where they happened. A kill for time or memory comes at an arbitrary
moment, and the line that ran just then says little: a loop of three lines would be three faults. What is stable is
what the job could not leave: from the outermost frame inward, the first loop, or the innermost statement where there
is none. Who groups failures, or shrinks one of them, needs just that.
"""

from __future__ import annotations

import ast
import linecache
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from robust_eval.failure import Failure

_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+),? in (?P<function>.+)$', re.MULTILINE)
_LAST_TRACEBACK = "Traceback (most recent call last)"
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x.*$", re.MULTILINE)
_CURRENT = "Current thread 0x"
_LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Place(NamedTuple):
    """A line of a source file, and the function that it is of."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


def place_of(failure: Failure) -> Place | None:
    """The place of a failure; None where no stack is known."""
    frames = _frames(failure)
    if not frames:
        return None
    return _trap(frames) if failure.kind in {"timeout", "memory"} else frames[-1]


def raise_at(error: BaseException, place: Place | None) -> NoReturn:
    """Raise an exception as if from a place: its traceback ends there, and whoever shows it shows the source."""
    error.__traceback__ = None
    if place is None:
        raise error
    raising = compile("\n" * (place.line - 1) + "raise error", place.file, "exec")
    exec(raising.replace(co_name=place.function), {"error": error})  # noqa: S102 - a constant; it names a place, as template engines do
    raise error  # never reached; says so to type checkers


def _frames(failure: Failure) -> list[Place]:
    """The user's frames, the outermost first."""
    if failure.traceback is not None:
        return list(_read(failure.traceback[max(0, failure.traceback.rfind(_LAST_TRACEBACK)) :]))
    stack = failure.stack or ""
    begins = [thread.start() for thread in _THREAD.finditer(stack)] or [0]
    blocks = [stack[begin:end] for begin, end in zip(begins, [*begins[1:], len(stack)], strict=True)]
    # Where none is marked as current, the main thread is the last.
    chosen = next((block for block in blocks if block.startswith(_CURRENT)), blocks[-1])
    return list(_read(chosen))[::-1]


def _read(text: str) -> Iterator[Place]:
    for match in _FRAME.finditer(text):
        yield Place(match["file"], int(match["line"]), match["function"])


def _trap(frames: list[Place]) -> Place:
    """What the job could not leave."""
    trap = frames[0]._replace(line=1)
    seen = set()
    for frame in frames:
        found = _statement(frame)
        if found is None or (frame.file, frame.function) in seen:
            break
        seen.add((frame.file, frame.function))
        line, is_loop = found
        trap = frame._replace(line=line)
        if is_loop:
            break
    return trap


def _statement(frame: Place) -> tuple[int, bool] | None:
    """The first line of the outermost loop of the function around a line, or of the statement, and which it is."""
    tree = _parsed("".join(linecache.getlines(frame.file)))
    if tree is None:
        return None
    around = list(_around(tree, frame.line))
    scopes = [index for index, node in enumerate(around) if isinstance(node, _SCOPES)]
    inside = around[scopes[-1] + 1 :] if scopes else around
    loop = next((node for node in inside if isinstance(node, _LOOPS)), None)
    if loop is not None:
        return loop.lineno, True
    statements = [node for node in inside if isinstance(node, ast.stmt)]
    return (statements[-1].lineno, False) if statements else None


def _around(node: ast.AST, line: int) -> Iterator[ast.AST]:
    """The nodes that a line is part of, those outside first."""
    for child in ast.iter_child_nodes(node):
        if _holds(child, line):
            yield child
            yield from _around(child, line)


def _holds(node: ast.AST, line: int) -> bool:
    first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
    return first is not None and last is not None and first <= line <= last


@lru_cache(maxsize=32)
def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source) if source else None
    except (SyntaxError, ValueError):
        return None
