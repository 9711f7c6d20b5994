"""Packages that a command needs and that may not be installed: told in one line, not in a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from robust_eval.cli.exits import Exit


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import inside: where a package is missing, end the program and name the extra that brings it.

    Args:
        extra: the extra of `robust-eval` that installs what is imported inside.

    Raises:
        SystemExit: with the line to show, where a package outside `robust_eval` is missing.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] == "robust_eval":
            raise
        hint = f"robust-eval needs the package {missing.name!r} for this: pip install 'robust-eval[{extra}]'"
        print(hint, file=sys.stderr)  # noqa: T201  this is where it is told
        raise SystemExit(Exit.USAGE) from missing
