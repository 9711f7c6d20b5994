"""Optuna: an objective whose trials run in supervised processes, for `study.optimize` as it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from robust_eval.calls import failure_in
from robust_eval.errors import InvalidArgumentType, JobCancelled, bounded_repr
from robust_eval.executor import RobustExecutor
from robust_eval.processes.evaluation import Alone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class IsolatedObjective:
    """An objective that calls a run function in a supervised process.

    A trial whose run hangs, crashes, exhausts memory or raises gets the state ``FAIL``, with the cause in its user
    attributes ``failure_kind``, ``failure_message`` and ``failure`` (all that is known), and the study goes on:
    no ``catch=`` is needed. `optuna.TrialPruned` out of the run function prunes the trial.

    A context manager: leaving it ends the processes.

    Args:
        run: the run function, called with a `RunningJob` that holds the trial's parameters; it gives one number, or
            several. It has no trial: that lives in this process.
        space: Optuna's distribution of each parameter.
        num_workers: how many trials run at once; give ``study.optimize`` the same ``n_jobs``.
        **options: those of `RobustExecutor`, such as ``job_timeout`` and ``memory_limit``.

    Raises:
        InvalidArgumentType: the space holds something else than distributions, or ``run`` cannot be called.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        space: Mapping[str, BaseDistribution],
        *,
        num_workers: int = 1,
        **options: Any,
    ) -> None:
        if not callable(run):
            raise InvalidArgumentType(f"run={bounded_repr(run)} cannot be called. Pass a function of a job.")
        for name, distribution in space.items():
            if not isinstance(distribution, BaseDistribution):
                raise InvalidArgumentType(
                    f"space[{name!r}]={bounded_repr(distribution)} is a {type(distribution).__name__}. "
                    "Pass a distribution, such as optuna.distributions.FloatDistribution(0, 1)."
                )
        self._space = dict(space)
        self._executor = RobustExecutor(num_workers, initializer=Alone.prepare, initargs=(run,), **options)

    def __call__(self, trial: optuna.Trial) -> Any:
        """Run one trial, and wait for it.

        Returns:
            The objective, or NaN, from which Optuna makes a failed trial.

        Raises:
            TrialPruned: the run function did.
            JobCancelled: the objective was closed while the trial ran.
        """
        config = {name: _suggest(trial, name, distribution) for name, distribution in self._space.items()}
        future = self._executor.submit(Alone.evaluate, config)
        try:
            error = future.exception()
        except BaseException:  # Ctrl-C
            self._executor.kill(future)
            raise
        if error is None:
            objective, metadata, _ = future.result()
            for name, value in metadata.items():
                trial.set_user_attr(name, value)
            return objective if not isinstance(objective, str) else _fail(trial, "reported", objective, None)
        if isinstance(error, optuna.TrialPruned | JobCancelled):
            raise error
        failure = failure_in(error)
        return _fail(trial, failure.kind, failure.message, failure.to_dict())

    def close(self) -> None:
        """End every process, and what runs."""
        self._executor.kill_workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def _fail(trial: optuna.Trial, kind: str, message: str, failure: dict[str, Any] | None) -> float:
    trial.set_user_attr("failure_kind", kind)
    trial.set_user_attr("failure_message", message)
    trial.set_user_attr("failure", failure)
    return math.nan


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    raise InvalidArgumentType(
        f"the distribution of {name!r}, {bounded_repr(distribution)}, is not known to this version."
    )
