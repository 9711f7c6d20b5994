"""Optuna and joblib, the real ones, over supervised processes."""

import gc
import os
import time
from typing import Any

import psutil
import pytest
from waiting import nothing_left

from robust_eval import InvalidArgument, InvalidArgumentType, JobCrashed, JobTimeout

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own


def trial_run(job: Any) -> Any:
    """One behaviour for each choice."""
    match job["how"]:
        case "hang":
            while True:
                pass
        case "crash":
            os.abort()
        case "raise":
            raise ValueError("diverged")
        case "report":
            return "F_no_mesh"
        case "prune":
            import optuna

            raise optuna.TrialPruned
    return {"objective": job["x"] ** 2 + job["n"], "metadata": {"pid": os.getpid()}}


def hang_on(number: int) -> int:
    while number == 3:
        pass
    return number


def abort_on(number: int) -> int:
    if number == 3:
        os.abort()
    return number


def test_optuna_trials_fail_with_their_cause():
    """Each fault costs its own trial, which says why; the study goes on without `catch`."""
    optuna = pytest.importorskip("optuna")
    from robust_eval.integrations.optuna import IsolatedObjective

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    behaviours = ["hang", "crash", "raise", "report", "prune", "fine"]
    space = {
        "x": optuna.distributions.FloatDistribution(-1, 1),
        "n": optuna.distributions.IntDistribution(1, 3),
        "how": optuna.distributions.CategoricalDistribution(behaviours),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for how in behaviours:
        study.enqueue_trial({"how": how, "x": 0.5, "n": 2})
    with (
        nothing_left(),
        IsolatedObjective(trial_run, space, num_workers=2, job_timeout=1, preload=["optuna"]) as objective,
    ):
        study.optimize(objective, n_trials=len(behaviours), n_jobs=2)
    trials = {trial.params["how"]: trial for trial in study.trials}
    assert {how: trial.state.name for how, trial in trials.items()} == {
        **dict.fromkeys(["hang", "crash", "raise", "report"], "FAIL"), "prune": "PRUNED", "fine": "COMPLETE",
    }  # fmt: skip
    kinds = {how: trial.user_attrs.get("failure_kind") for how, trial in trials.items()}
    assert kinds == {
        "hang": "timeout", "crash": "crash", "raise": "exception", "report": "reported", "prune": None, "fine": None,
    }  # fmt: skip
    assert trials["crash"].user_attrs["failure"]["signal"] == "SIGABRT"
    assert trials["report"].user_attrs["failure_message"] == "F_no_mesh"
    assert study.best_value == 2.25
    assert trials["fine"].user_attrs["pid"] != os.getpid()


@pytest.mark.parametrize(("run", "space"), [(5, {}), (trial_run, {"x": [0, 1]})])
def test_an_objective_refuses_what_it_cannot_use(run, space):
    """When it is made."""
    pytest.importorskip("optuna")
    from robust_eval.integrations.optuna import IsolatedObjective

    with pytest.raises(InvalidArgumentType):
        IsolatedObjective(run, space)


def test_joblib_runs_its_tasks_here():
    """In order; a fault raises as itself out of `Parallel`, and the next `Parallel` works."""
    joblib = pytest.importorskip("joblib")
    from robust_eval.integrations.joblib import register

    register()
    with nothing_left():
        with joblib.parallel_config("robust_eval", n_jobs=2, job_timeout=4):
            results = joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(50))
            assert results == [n**2 for n in range(50)]
            with pytest.raises(JobTimeout):
                joblib.Parallel()(joblib.delayed(hang_on)(n) for n in range(6))
            with pytest.raises(JobCrashed):
                joblib.Parallel()(joblib.delayed(abort_on)(n) for n in range(6))
            lazily = joblib.Parallel(return_as="generator")(joblib.delayed(hang_on)(n) for n in (0, 1, 2))
            assert list(lazily) == [0, 1, 2]
            with pytest.raises(InvalidArgument):
                joblib.Parallel(n_jobs=0)(joblib.delayed(abs)(n) for n in range(3))
        del lazily
        _let_go()


def test_scikit_learn_takes_it():
    """`n_jobs` of a grid search goes through the backend."""
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    from robust_eval.integrations.joblib import register

    register()
    samples, labels = make_classification(60, random_state=0)
    with nothing_left():
        with joblib.parallel_config("robust_eval", n_jobs=2, job_timeout=60):
            search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2, n_jobs=-1).fit(samples, labels)
        assert search.best_score_ > 0.5
        _let_go()


def _let_go() -> None:
    """Joblib forgets its backend with the next configuration; the pool then ends by itself."""
    import joblib

    with joblib.parallel_config("sequential"):
        gc.collect()
    ends_at = time.monotonic() + 10
    while time.monotonic() < ends_at and any(map(_is_ours, psutil.Process().children())):
        gc.collect()


def _is_ours(child: Any) -> bool:
    """Whether this is a supervisor of the backend's pool that has not ended, which it may do meanwhile."""
    try:
        return "robust_eval" in " ".join(child.cmdline())
    except psutil.NoSuchProcess:  # or a zombie, which is one
        return False
