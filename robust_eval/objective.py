"""What a run function may return, brought to one form: objective, metadata, observations.

Accepted is what DeepHyper 0.5 accepts, minus what cannot be a result: not-a-number and infinity, and
a string that does not start with ``"F"``. This runs in the worker after every job, so the plain
number comes first, and numpy is never imported for somebody who does not use it.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeAlias

from robust_eval.errors import InvalidOutput, bounded_repr

FAIL_RETURN_VALUE: Final = "F"

Standard: TypeAlias = tuple[Any, dict[str, Any], list[Any] | None]

_ACCEPTED: Final = (
    "Accepted are a finite number, a tuple or list of numbers (several objectives), a string that "
    'starts with "F" (a failure of its own), or a dict with one of these as "objective" and an '
    'optional dict "metadata".'
)
_PAIR: Final = 2


def standardize(output: Any) -> Standard:
    """Bring what a run function returned to its standard form.

    Args:
        output: a number (any ``numbers.Real``, numpy's scalars and ``Decimal`` included), a tuple or
            list of numbers and ``"F..."`` strings, an ``"F..."`` string, or a dict with ``objective``
            and optionally ``metadata`` and ``observations``; or one of these as the ``output`` of a dict, which
            is what the ``profile`` of current DeepHyper returns. A two-dimensional objective is the
            pair (budgets, objectives) that a stopper observed: its last objective counts.

    Returns:
        The objective (a bare number as ``float``; numbers inside a tuple, list or dict keep their
        type unless they are numpy's), the metadata as a new dict, and the observations or ``None``.

    Raises:
        InvalidOutput: the output is of another kind; the message says what it was.
    """
    kind = type(output)
    if kind is float or kind is int:
        try:
            value = float(output)
        except OverflowError:
            _refuse(output, "is too large for a float")
        if value - value == 0.0:  # false for nan and both infinities, and faster than a call
            return value, {}, None
        _refuse(output, "is not finite")
    if isinstance(output, dict):
        return _from_dict(output) if "objective" in output else _from_profile(output)
    if isinstance(output, tuple | list):
        objective, observations = _from_sequence(output, output)
        return objective, {}, observations
    objective = _from_scalar(output, output)
    return (objective if isinstance(objective, str) else float(objective)), {}, None


def _from_profile(output: dict[Any, Any]) -> Standard:
    """Take apart what the `profile` of current DeepHyper makes: ``output``, as it was, and ``metadata``."""
    if "output" not in output or (isinstance(output["output"], dict) and "objective" not in output["output"]):
        _refuse(output, 'is a dict without "objective"')
    objective, metadata, observations = standardize(output["output"])
    return objective, {**_metadata(output), **metadata}, observations


def _metadata(output: dict[Any, Any]) -> dict[Any, Any]:
    metadata = output.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        _refuse(output, f'has a {type(metadata).__name__} as "metadata", which must be a dict')
    return {} if metadata is None else dict(metadata)


def _from_dict(output: dict[Any, Any]) -> Standard:
    metadata = _metadata(output)
    observations = output.get("observations")
    objective = output["objective"]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(objective, numpy.ndarray):
        # DeepHyper takes arrays here, although not as a bare output.
        objective = objective.tolist()
    if isinstance(objective, tuple | list):
        objective, observed = _from_sequence(objective, output)
        observations = observations if observed is None else observed
    else:
        objective = _from_scalar(objective, output)
    return objective, metadata, observations


def _from_sequence(values: tuple[Any, ...] | list[Any], output: Any) -> tuple[Any, list[list[Any]] | None]:
    if not values:
        _refuse(output, "holds no objective")
    if isinstance(values[0], tuple | list) and all(isinstance(row, tuple | list) for row in values):
        rows = [[_from_scalar(value, output) for value in row] for row in values]
        if len(rows) < _PAIR or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
            _refuse(output, "is no pair of equally many budgets and objectives")
        return rows[1][-1], rows
    return _sequence_type(values)(_from_scalar(value, output) for value in values), None


def _sequence_type(values: tuple[Any, ...] | list[Any]) -> type[tuple[Any, ...] | list[Any]]:
    """Give ``tuple`` or ``list``, also for subclasses such as named tuples."""
    return list if isinstance(values, list) else tuple


def _from_scalar(value: Any, output: Any) -> Any:
    """Check one number or ``"F..."`` string; only numpy's and foreign numbers change type."""
    if isinstance(value, str):
        if not value.startswith(FAIL_RETURN_VALUE):
            _refuse(output, 'is a string that does not start with "F"')
        return str(value)
    kind = type(value)
    if kind is int:
        _to_float(value, output)  # else nobody could compare it with others, or print it
        return value
    if kind is not float:
        value = _to_float(value, output)
    if not math.isfinite(value):
        _refuse(output, "is not finite")
    return value


def _to_float(value: Any, output: Any) -> float:
    numpy = sys.modules.get("numpy")
    is_numpy_bool = numpy is not None and isinstance(value, numpy.bool_)
    if not (isinstance(value, numbers.Real) or _is_decimal(value)) and not is_numpy_bool:
        what = "" if value is output else f" holding a {type(value).__name__}"
        hint = " (float(x) or x.tolist() makes it one of these)" if hasattr(value, "tolist") else ""
        _refuse(output, f"is a {type(output).__name__}{what}{hint}")
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError) as error:
        _refuse(output, f"cannot be a float ({error})")


def _is_decimal(value: object) -> bool:
    """Where nobody has imported `decimal` there is none, and each start of a worker is spared 3 ms."""
    decimal = sys.modules.get("decimal")
    return decimal is not None and isinstance(value, decimal.Decimal)


def _refuse(output: Any, problem: str) -> NoReturn:
    shown = bounded_repr(output)
    raise InvalidOutput(f"The run function returned {shown}, which {problem}. {_ACCEPTED}", shown)
