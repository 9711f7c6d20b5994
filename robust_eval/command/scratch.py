"""Scratch directories: one for each job, kept where the job failed, removed otherwise, also after a kill.

Who removes the directory of a worker that was killed? Three, one behind the other:

1. The worker itself, when the command ended well.
2. The driver, when the outcome is gathered: the directory's name was given to the job when it was submitted, so the
   driver knows it whatever became of the worker; and a job settles only after nothing of its process tree is left, so
   nobody writes there any more.
3. For a driver that was killed itself: the next command with the same scratch directory. A directory in use has a mark
   beside it (``.open/NAME``) that names the driver's process; where that process is gone, nobody will ever come for it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import socket
from typing import TYPE_CHECKING, Final, TypeAlias

import psutil

from robust_eval.errors import InternalError

if TYPE_CHECKING:
    from pathlib import Path

_MARKS: Final = ".open"
_MOST_TRIES: Final = 1000
Owner: TypeAlias = dict[str, object]


def this_process() -> Owner:
    """Name this process so that nobody else is ever taken for it."""
    return _described(os.getpid())


@functools.cache
def _described(pid: int) -> Owner:
    process = psutil.Process(pid)
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def _is_gone(owner: Owner) -> bool:
    if owner.get("host") != socket.gethostname():
        return False  # on a shared file system: not ours to judge
    try:
        return psutil.Process(int(str(owner["pid"]))).create_time() != owner["started"]
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, KeyError, ValueError):
        return False


class Scratch:
    """The directories of jobs below one directory.

    Args:
        root: that directory, absolute; made when the first job begins.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def name(self, job_id: str) -> str:
        """Give a name for a directory that nobody else has."""
        return f"{job_id.replace(os.sep, '_')}-{secrets.token_hex(4)}"

    def open(self, name: str, owner: Owner) -> Path:
        """Make a directory, empty, and mark it as in use by a process; what another attempt left there is removed."""
        directory = self.root / name
        self._set_mark(name, owner)
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir()
        return directory

    def _set_mark(self, name: str, owner: Owner) -> None:
        mark = self._mark(name)
        for _ in range(_MOST_TRIES):
            # Another job may remove the directories, empty, at any moment until the mark is there. `mkdir` then finds
            # that one of its parents is gone again, or that what it found there is no directory any more.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.write_text(json.dumps(owner), encoding="utf-8")
                return
        mark.parent.mkdir(parents=True, exist_ok=True)  # where something else has this name, that is told
        raise InternalError(f"{mark.parent} vanished {_MOST_TRIES} times as soon as it was made.")

    def keep(self, name: str) -> Path | None:
        """Leave a directory where it is, for people to look at. Gives it, or ``None`` where it was never made."""
        self._mark(name).unlink(missing_ok=True)
        self._drop_if_empty()
        directory = self.root / name
        return directory if directory.exists() else None

    def remove(self, name: str) -> None:
        """Remove a directory, if it is there."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        # Last: a kill in between leaves the mark, so that the rest is found.
        self._mark(name).unlink(missing_ok=True)
        self._drop_if_empty()

    def sweep(self) -> None:
        """Remove the directories whose drivers are gone."""
        with contextlib.suppress(FileNotFoundError):
            for mark in list((self.root / _MARKS).iterdir()):
                try:
                    owner = json.loads(mark.read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    continue  # being written, or just gone
                if _is_gone(owner):
                    self.remove(mark.name)

    def _mark(self, name: str) -> Path:
        return self.root / _MARKS / name

    def _drop_if_empty(self) -> None:
        with contextlib.suppress(OSError):  # somebody else has something in one of them
            (self.root / _MARKS).rmdir()
            self.root.rmdir()
