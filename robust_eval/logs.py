"""The loggers of the package: one for each area, below `robust_eval`, silent until the user asks for them.

    robust_eval.pool       processes: start and end of a pool, start-ups that failed, supervisors that died
    robust_eval.jobs       jobs that failed
    robust_eval.search     searches that were stopped because too much failed
    robust_eval.callbacks  callbacks that raised

Fields that a program may want stand on the records (`extra=`); they are listed in the documentation. Nothing is logged
of a job that succeeds.
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
