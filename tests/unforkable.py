"""Preloaded into a template: its first two forks fail, as where no process is free."""

import errno
import os

_fork = os.fork
_failures = [errno.EAGAIN, errno.ENOMEM]


def _scarce_fork() -> int:
    if _failures:
        raise OSError(_failures[0], os.strerror(_failures.pop(0)))
    return _fork()


os.fork = _scarce_fork
