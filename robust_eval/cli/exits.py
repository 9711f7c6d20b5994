"""The exit codes, and how misuse is told: in one line, without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

from robust_eval.errors import InternalError, RobustEvalError, StorageError


class Exit(IntEnum):
    """How a command ended, for scripts."""

    OK = 0
    SOME_FAILED = 1
    USAGE = 2
    BROKEN = 3
    STORAGE = 4
    INTERRUPTED = 130
    TERMINATED = 143


EPILOG: Final = (
    "Exit codes: 0 every job has a value; 1 some jobs failed; 2 wrong usage; 3 the search was stopped because too much "
    "failed; 4 the storage or the results file failed; 130 stopped by Ctrl-C; 143 stopped by SIGTERM."
)


@contextmanager
def told() -> Iterator[None]:
    """Tell an error of ours in one line and end with its exit code; a bug of ours keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(Exit.INTERRUPTED) from None
    except InternalError:
        raise
    except RobustEvalError as error:
        print(f"robust-eval: {error}", file=sys.stderr)  # noqa: T201  this is where it is told
        raise SystemExit(Exit.STORAGE if isinstance(error, StorageError) else Exit.USAGE) from error
