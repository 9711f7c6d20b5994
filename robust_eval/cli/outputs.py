"""The files that commands write, looked at before anything runs: hours of work must not end in a missing directory."""

import tempfile
from pathlib import Path

from robust_eval.errors import InvalidArgument


def check_writable(option: str, path: Path) -> None:
    """See that a file can be made in its directory.

    Args:
        option: what names the file, for the message.
        path: the file.

    Raises:
        InvalidArgument: there is no such directory, or nothing can be written there.
    """
    directory = path.parent
    if not directory.is_dir():
        raise InvalidArgument(f"{option} {path}: there is no directory {str(directory)!r}. Make it first.")
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InvalidArgument(
            f"{option} {path}: {str(directory)!r} cannot be written ({error.strerror}). Name another directory."
        ) from error
