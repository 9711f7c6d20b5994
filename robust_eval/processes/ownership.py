"""A pool belongs to the process that made it: a forked child of the driver has only a picture of it."""

import os

from robust_eval.errors import RobustEvalError


def refuse_forked_child(owner: int) -> None:
    """See that this is the process that made the pool.

    Args:
        owner: the process id of the driver.

    Raises:
        RobustEvalError: it is a forked child of that.
    """
    if os.getpid() != owner:
        msg = (
            f"this evaluator belongs to process {owner} and was used in its forked child {os.getpid()}: "
            "make an evaluator of its own there"
        )
        raise RobustEvalError(msg)
