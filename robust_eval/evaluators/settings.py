"""How the processes of a pool are made: what users write for that, checked and brought to a pool's settings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from robust_eval.errors import InvalidArgument, InvalidArgumentType, RobustEvalError, bounded_repr
from robust_eval.limits import parse_count, parse_seconds

if TYPE_CHECKING:
    from robust_eval.evaluators.ledger import Retries

START_METHODS = ("fork", "spawn")


def policy_of(
    num_workers: int,
    retries: Retries,
    *,
    grace_period: Any = 0.0,
    max_tasks_per_child: Any = None,
    max_start_failures: Any = 3,
    start_timeout: Any = 60.0,
    kill_timeout: Any = 10.0,
) -> dict[str, Any]:
    """The fields of `supervision.policy.Policy` that a user sets, checked.

    Raises:
        InvalidArgument: a value is not allowed.
        InvalidArgumentType: a value has a type that is not allowed.
    """
    return {
        "num_workers": num_workers,
        "max_retries": retries.limit,
        "retry_on": sorted(retries.kinds),
        "grace_s": parse_seconds("grace_period", grace_period, allow_zero=True) or 0.0,
        "kill_timeout_s": _bounded_seconds("kill_timeout", kill_timeout),
        "start_timeout_s": _bounded_seconds("start_timeout", start_timeout),
        "max_tasks_per_child": (
            None if max_tasks_per_child is None else parse_count("max_tasks_per_child", max_tasks_per_child)
        ),
        "max_start_failures": parse_count("max_start_failures", max_start_failures),
    }


def refuse_windows() -> None:
    """Supervised processes need the signals and the process tables of a Unix.

    Raises:
        RobustEvalError: this is Windows.
    """
    if sys.platform == "win32":
        msg = 'method="process" needs Linux or macOS: it kills process trees. On Windows use method="thread".'
        raise RobustEvalError(msg)


def _bounded_seconds(name: str, value: Any) -> float:
    """A duration that must be given: without it, one stubborn process could hold its slot for ever."""
    seconds = parse_seconds(name, value)
    if seconds is None:
        msg = f"{name}=None would wait for ever. Pass seconds, or leave it out for the default."
        raise InvalidArgument(msg)
    return seconds


def parse_start_method(name: object) -> str:
    """The start method, which must be known."""
    if name not in START_METHODS:
        msg = f"start_method={bounded_repr(name)} is unknown. Choose one of {START_METHODS}."
        raise InvalidArgument(msg)
    return str(name)


def parse_environments(worker_env: Any) -> list[dict[str, str]]:
    """One mapping for all, or one for each worker, as a list of plain dicts."""
    given = [] if worker_env is None else [worker_env] if hasattr(worker_env, "items") else list(worker_env)
    for environment in given:
        for name, value in environment.items():
            if not isinstance(name, str) or not isinstance(value, str):
                msg = f"worker_env holds {name!r}: {value!r}. Names and values are strings."
                raise InvalidArgumentType(msg)
    return [dict(environment) for environment in given]
