"""Libraries that take an executor take ours, unchanged. Each is skipped where it is not installed."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import as_completed
from typing import Any

import pytest

from robust_eval import JobTimeout, RobustExecutor


def loss(x: float, y: float = 0.0) -> float:
    return (x - 1) ** 2 + y


def hang_on_some(x: float) -> float:
    while x > 0.5:
        pass
    return x


@pytest.fixture
def executor() -> Iterator[RobustExecutor]:
    with RobustExecutor(2, job_timeout=10) as executor:
        yield executor


def test_nevergrad(executor):
    """`minimize` gives its recommendation."""
    ng = pytest.importorskip("nevergrad")
    space = ng.p.Instrumentation(ng.p.Scalar())
    optimizer = ng.optimizers.OnePlusOne(parametrization=space, budget=12, num_workers=2)
    assert optimizer.minimize(loss, executor=executor, batch_mode=False).value


def test_adaptive(executor):
    """The runner asks for the number of workers, and reaches its goal."""
    adaptive = pytest.importorskip("adaptive")
    learner = adaptive.Learner1D(loss, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=12, executor=executor, shutdown_executor=False)
    assert learner.npoints >= 12
    other = adaptive.Learner1D(loss, bounds=(-1, 1))

    async def main() -> None:
        await adaptive.AsyncRunner(other, npoints_goal=12, executor=executor, shutdown_executor=False).task

    asyncio.run(main())
    assert other.npoints >= 12


def test_dask(executor):
    """A graph is computed with the executor as its scheduler; a task that hangs raises what says so."""
    dask = pytest.importorskip("dask")
    tasks = [dask.delayed(loss)(n) for n in range(5)]
    assert dask.delayed(sum)(tasks).compute(scheduler=executor) == 15
    with pytest.raises(JobTimeout):
        dask.delayed(hang_on_some)(1).compute(scheduler=executor.with_options(job_timeout=0.5))


def test_optuna_ask_and_tell(executor):
    """A trial that hangs is told as failed; the others count."""
    optuna = pytest.importorskip("optuna")
    study: Any = optuna.create_study()
    trials = [study.ask() for _ in range(8)]
    quick = executor.with_options(job_timeout=0.5)
    calls = {quick.submit(hang_on_some, n / 7): trial for n, trial in enumerate(trials)}
    for call in as_completed(calls):
        if call.exception() is None:
            study.tell(calls[call], call.result())
        else:
            study.tell(calls[call], state=optuna.trial.TrialState.FAIL)
    assert [trial.state.name for trial in study.trials].count("FAIL") == 4
    assert study.best_value == 0
