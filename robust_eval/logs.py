"""The loggers of the package: one for each area, below `robust_eval`, silent until the user asks for them.

    robust_eval.pool       processes: start and end of a pool, start-ups that failed, supervisors that died
    robust_eval.jobs       jobs that failed
    robust_eval.search     searches that were stopped because too much failed
    robust_eval.callbacks  callbacks that raised

Fields that a program may want stand on the records (`extra=`); they are listed in the documentation. Nothing is logged
of a job that succeeds. What a callback raised goes to stderr where nobody listens: it is a bug in the user's own code,
and it would be found by nobody.
"""

import logging


def logger(area: str) -> logging.Logger:
    """The logger of an area. Without a handler of the user's it says nothing, not even of errors.

    Args:
        area: its name below `robust_eval`.
    """
    root = logging.getLogger("robust_eval")
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    return root.getChild(area)


def log_users_error(log: logging.Logger, error: Exception, message: str, *args: object, extra: dict[str, str]) -> None:
    """Log what the user's own code raised, with its traceback.

    Without a handler of the user's it goes to stderr, as `logging` itself does with what nobody handles; a level or
    `logging.disable` silences it as ever.
    """
    if not log.isEnabledFor(logging.ERROR):
        return
    info = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, message, args, info, extra=extra)
    if _is_heard(log) or logging.lastResort is None:
        log.handle(record)
    else:
        logging.lastResort.handle(record)


def _is_heard(log: logging.Logger) -> bool:
    at: logging.Logger | None = log
    while at is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in at.handlers):
            return True
        at = at.parent if at.propagate else None
    return False
