"""Libraries that take an executor take ours, unchanged. Each is skipped where it is not installed."""

import asyncio
import multiprocessing
import threading
import time
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


@pytest.mark.filterwarnings("ignore:Ignoring since timer was stopped:UserWarning")  # of nevergrad's own clock
@pytest.mark.parametrize("batch_mode", [True, False])
def test_nevergrad(executor, batch_mode):
    """`minimize` finds the minimum, whether it waits for whole batches or for any result."""
    ng = pytest.importorskip("nevergrad")
    space = ng.p.Instrumentation(ng.p.Scalar())
    optimizer = ng.optimizers.OnePlusOne(parametrization=space, budget=60, num_workers=2)
    found = optimizer.minimize(loss, executor=executor, batch_mode=batch_mode)
    assert abs(found.args[0] - 1) < 0.5


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


def test_dask_by_configuration(executor):
    """The executor is the scheduler of everything below `dask.config.set`."""
    dask = pytest.importorskip("dask")
    with dask.config.set(scheduler=executor):
        assert dask.delayed(sum)([dask.delayed(loss)(n) for n in range(5)]).compute() == 15


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


def test_optuna_study_of_several_threads(executor):
    """`study.optimize` runs objectives in threads, each of which waits for a call."""
    optuna = pytest.importorskip("optuna")
    study: Any = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: Any) -> float:
        return executor.submit(loss, trial.suggest_float("x", -2, 2)).result()

    study.optimize(objective, n_trials=20, n_jobs=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 20


def test_scikit_learn_gives_the_same_scores():
    """Cross validation, a grid search and a forest, through the backend of joblib and without it."""
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    from robust_eval.integrations.joblib import register

    register()
    x, y = make_classification(200, random_state=0)

    def scores() -> tuple[Any, ...]:
        grid = GridSearchCV(RandomForestClassifier(10, random_state=0), {"max_depth": [1, 3]}, cv=3).fit(x, y)
        cross = cross_val_score(LogisticRegression(), x, y, cv=4)
        return list(cross), grid.best_params_, RandomForestClassifier(10, random_state=0).fit(x, y).score(x, y)

    alone = scores()
    with joblib.parallel_backend("robust_eval", n_jobs=2):
        assert scores() == alone


def test_joblib_generators_and_its_own_timeout():
    """Results may be taken as they come, in order or not, and joblib's own limit ends the wait."""
    joblib = pytest.importorskip("joblib")
    from robust_eval.integrations.joblib import register

    register()
    tasks = [joblib.delayed(pow)(n, 2) for n in range(6)]
    with joblib.parallel_config("robust_eval", n_jobs=2):
        assert list(joblib.Parallel(return_as="generator")(tasks)) == [n**2 for n in range(6)]
        assert sorted(joblib.Parallel(return_as="generator_unordered")(tasks)) == [n**2 for n in range(6)]
        with pytest.raises(multiprocessing.TimeoutError):  # joblib's
            joblib.Parallel(timeout=0.5)(joblib.delayed(time.sleep)(60) for _ in range(2))
        assert joblib.Parallel()(tasks) == [n**2 for n in range(6)]


def test_ten_thousand_futures_of_several_threads(executor):
    """Each has the result of its own lambda."""
    results: list[int] = []

    def submit(first: int) -> None:
        calls = [executor.submit(lambda n=n: n) for n in range(first, first + 2500)]
        results.extend(call.result() for call in calls)

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(0, 10_000, 2500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(10_000))
