"""Which methods of evaluation there are; each is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from robust_eval.errors import InvalidArgument, bounded_repr

if TYPE_CHECKING:
    from collections.abc import Mapping

EVALUATORS: Final[dict[str, str]] = {
    "serial": "robust_eval.evaluators.serial:SerialEvaluator",
    "thread": "robust_eval.evaluators.thread:ThreadPoolEvaluator",
    "process": "robust_eval.evaluators.process:ProcessPoolEvaluator",
    "ray": "robust_eval.evaluators.ray:RayEvaluator",
    "mpicomm": "robust_eval.evaluators.mpicomm:MPICommEvaluator",
}


def evaluator_class(method: Any, evaluators: Mapping[str, str] = EVALUATORS) -> Any:
    """Give the class of a method.

    Args:
        method: the name of the method.
        evaluators: the known methods, each with its ``"module:class"``.

    Raises:
        InvalidArgument: there is no such method (a ``ValueError``).
    """
    if not isinstance(method, str) or method not in evaluators:
        raise InvalidArgument(
            f"There is no method {bounded_repr(method)} of evaluation. Choose one of {', '.join(evaluators)}."
        )
    module, _, name = evaluators[method].partition(":")
    return getattr(importlib.import_module(module), name)
