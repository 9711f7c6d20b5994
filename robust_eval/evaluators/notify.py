"""Calls the user's callbacks, so that an error in one costs no job."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import SearchStopped
from robust_eval.logs import log_users_error, logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from robust_eval.failure import Failure

_NOT_ITS_FAULT: Final = ("startup", "lost")
_logger = logger("callbacks")
_jobs_logger = logger("jobs")


def log_failure(job_id: str, failure: Failure) -> None:
    """Log a job that failed as it is gathered: a WARNING where the job is not to blame, else INFO."""
    level = logging.WARNING if failure.kind in _NOT_ITS_FAULT else logging.INFO
    if not _jobs_logger.isEnabledFor(level):
        return
    fields = {
        "job_id": job_id,
        "kind": failure.kind,
        "attempts": failure.attempts,
        "duration": failure.duration,
        "peak_memory": failure.peak_memory,
    }
    _jobs_logger.log(level, "Job %s failed: %s", job_id, failure.message, extra=fields)


class Notifier:
    """Calls callbacks; an error is reported once for each callback and hook, then ignored.

    What is no ``Exception`` (Ctrl-C) passes at once. `SearchStopped` is kept until `raise_stop`.
    """

    def __init__(self) -> None:
        self._reported: set[tuple[str, str]] = set()
        self._stop: SearchStopped | None = None

    def notify(self, callbacks: Iterable[Any], hook: str, *args: Any) -> None:
        """Call one hook of every callback that has it."""
        for callback in callbacks:
            function = getattr(callback, hook, None)
            if function is None:
                continue
            try:
                function(*args)
            except SearchStopped as stop:
                self._stop = self._stop or stop
            except Exception as error:  # noqa: BLE001  the user's code runs here
                self._report(callback, hook, error)

    def _report(self, callback: Any, hook: str, error: Exception) -> None:
        what = (type(callback).__qualname__, hook)
        if what not in self._reported:
            self._reported.add(what)
            message = "Callback %s.%s raised; no job is lost by it, further errors of it are not shown."
            log_users_error(_logger, error, message, *what, extra={"callback": what[0], "hook": hook})

    def raise_stop(self) -> None:
        """Raise the `SearchStopped` that a callback asked for, if any, once."""
        stop, self._stop = self._stop, None
        if stop is not None:
            raise stop
