"""DeepHyper's own current searches, the real ones, over supervised processes."""

import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from deephyper_runs import climb, double, fail_first, hang_later, run
from waiting import nothing_left

from robust_eval import InvalidArgument, InvalidArgumentType

pytest.importorskip("deephyper")

from deephyper.analysis.hpo import filter_failed_objectives, parameters_at_max, read_results_from_csv
from deephyper.evaluator import Evaluator, HPOJob
from deephyper.evaluator.callback import SearchEarlyStopping, TqdmCallback
from deephyper.evaluator.storage import SharedMemoryStorage
from deephyper.hpo import CBO, HpProblem, RandomSearch, RegularizedEvolution
from deephyper.stopper import SuccessiveHalvingStopper

from robust_eval.integrations.deephyper import RobustEvaluator

pytestmark = pytest.mark.unmeasured  # whole ways: their parts are measured in tests of their own

FAULTS = {
    "hang": "timeout", "segfault": "crash", "exit": "crash", "hog": "memory", "raise": "exception",
    "nothing": "invalid",
}  # fmt: skip
EXPECTED = ["job_id", "job_status", "m:timestamp_submit", "m:failure", "m:failure_message", "m:timestamp_gather"]


def problem_of(**choices: list[str]) -> HpProblem:
    problem = HpProblem()
    problem.add((0.0, 4.0), "x")
    for name, values in choices.items():
        problem.add(values, name)
    return problem


def search_for(tmp_path: Path, kind: type = RandomSearch, **options: Any) -> Any:
    if kind is CBO:
        options = {"acq_optimizer": "sampling", "n_initial_points": 4, **options}
    return kind(options.pop("problem", problem_of()), random_state=1, log_dir=str(tmp_path), **options)


@pytest.mark.parametrize("kind", [CBO, RandomSearch, RegularizedEvolution])
def test_a_search_survives_every_fault(kind, tmp_path):
    """Each fault costs its own job, an "F" that says why; the search does all its evaluations and leaves no process."""
    search = search_for(tmp_path, kind, problem=problem_of(how=[*FAULTS, "fine"]))
    with nothing_left():
        evaluator = RobustEvaluator(run, num_workers=2, job_timeout=2, memory_limit="150MiB")
        evaluator.submit([{"x": 1.0, "how": how} for how in [*FAULTS, "fine"]])
        results = search.search(evaluator, max_evals=14, max_evals_strict=True)
    assert len(results) == 14
    assert set(results.columns) == {"p:x", "p:how", "objective", "m:pid", *EXPECTED}
    assert set(results["p:how"]) >= set(FAULTS)
    for row in results.to_dict("records"):
        assert row["job_status"] == "DONE"
        if row["p:how"] == "fine":
            assert row["objective"] == pytest.approx(-((row["p:x"] - 2) ** 2))
            assert pd.isna(row["m:failure"])
        else:
            assert (row["objective"], row["m:failure"]) == ("F", FAULTS[row["p:how"]])
            assert row["m:failure_message"]


def test_deephyper_reads_the_results(tmp_path):
    """Its analysis leaves the failures out and finds the best."""
    search = search_for(tmp_path, problem=problem_of(how=["exit", "fine"]))
    search.search(RobustEvaluator(run, num_workers=2), max_evals=10)
    results = read_results_from_csv(str(tmp_path / "results.csv"))
    succeeded, failed = filter_failed_objectives(results)
    assert (set(succeeded["p:how"]), set(failed["p:how"])) == ({"fine"}, {"exit"})
    parameters, objective = parameters_at_max(results)
    assert (parameters["how"], objective) == ("fine", succeeded["objective"].max())


def test_the_timeout_of_a_search_ends_what_hangs(tmp_path):
    """Nothing outlives it: what runs is killed, what waits is never begun, and both say so."""
    evaluator = RobustEvaluator(hang_later, num_workers=2)
    with nothing_left():
        begun_at = time.monotonic()
        evaluator.submit([{"x": 1.0} for _ in range(4)])
        results = search_for(tmp_path).search(evaluator, timeout=2)
        assert time.monotonic() - begun_at < 10
    assert results["job_status"].value_counts().to_dict() == {"DONE": 1, "CANCELLED": len(results) - 1}
    assert results["m:failure"].value_counts().to_dict() == {"timeout": 2, "cancelled": len(results) - 3}
    assert (results["objective"] == "F").sum() == len(results) - 1


def test_searches_share_an_evaluator(tmp_path):
    """The next one starts the processes anew, and finds no budget of the last."""
    evaluator = RobustEvaluator(double, num_workers=2)
    with nothing_left():
        assert len(search_for(tmp_path / "1").search(evaluator, timeout=60, max_evals=4, max_evals_strict=True)) == 4
        assert evaluator.timeout is None
        assert len(search_for(tmp_path / "2").search(evaluator, max_evals=5)) >= 5


def test_a_search_goes_on_from_its_file(tmp_path):
    """The failures of the first part are among the results that the second starts with."""
    problem = problem_of(how=["exit", "fine"])
    first = search_for(tmp_path, CBO, problem=problem).search(RobustEvaluator(run, 2), max_evals=6)
    again = search_for(tmp_path, CBO, problem=problem, checkpoint_restart=True)
    results = again.search(RobustEvaluator(run, 2), max_evals=4)
    assert len(results) >= len(first) + 4
    assert results["job_id"].is_unique
    assert results["objective"].tolist()[: len(first)] == first["objective"].astype(str).tolist()


@pytest.mark.parametrize("batch", [1, 3])
def test_several_objectives_with_a_failure_first(batch, tmp_path):
    """A search that has seen only failures learns how many objectives there are from the first success."""
    search = search_for(tmp_path, CBO, moo_scalarization_strategy="Chebyshev")
    search.gather_batch_size = batch
    results = search.search(RobustEvaluator(fail_first, num_workers=batch), max_evals=8).sort_values("job_id")
    assert "objective" not in results.columns
    assert results[["objective_0", "objective_1"]].to_numpy().tolist()[:2] == [["F", "F"], ["F", "F"]]
    assert results["pareto_efficient"].tolist() == [False] * 2 + [True] * (len(results) - 2)


def test_callbacks_of_deephyper_are_called(tmp_path):
    """One that stops a search stops it, and failures disturb none."""
    callbacks = [TqdmCallback(), SearchEarlyStopping(patience=5, verbose=False)]
    evaluator = RobustEvaluator(run, 2, callbacks)
    results = search_for(tmp_path, problem=problem_of(how=["exit", "fine"])).search(evaluator, max_evals=500)
    assert callbacks[1].search_stopped
    assert len(results) < 500


def test_stoppers_need_a_storage_that_they_reach(tmp_path):
    """With one, they compare jobs across processes, also when a job dies in between; without, they are refused."""
    search = search_for(tmp_path, stopper=SuccessiveHalvingStopper(max_steps=9))
    evaluator = RobustEvaluator(climb, num_workers=2)
    with pytest.raises(InvalidArgument, match="SharedMemoryStorage"):
        search.search(evaluator, max_evals=2)
    evaluator.close()
    storage = SharedMemoryStorage()
    results = search.search(RobustEvaluator(climb, storage=storage), max_evals=12).set_index("job_id")
    storage._manager.shutdown()
    assert results["m:failure"][2] == "crash"
    assert results["m:budget"].min() < 9
    assert results["m:budget"].max() == 9


def test_close_gives_back_what_ran():
    """As DeepHyper's evaluators do: cancelled, once, and without a process left."""
    with nothing_left():
        with RobustEvaluator(hang_later, num_workers=2) as evaluator:
            assert isinstance(evaluator, Evaluator)
            evaluator.submit([{"x": 1.0} for _ in range(4)])
            (job,) = evaluator.gather("BATCH", 1)
            assert isinstance(job, HPOJob)
            assert (tuple(job), job.failure, job.status.name) == (({"x": 1.0}, 1.0), None, "DONE")
            jobs = evaluator.close()
        assert [job.status.name for job in jobs] == ["CANCELLED"] * 3
        assert {job.objective for job in jobs} == {"F_CANCELLED"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((5,), InvalidArgumentType), ((run, 0), InvalidArgument), ((threading.Lock().acquire,), InvalidArgumentType)],
)
def test_an_evaluator_refuses_what_it_cannot_use(arguments, error):
    """When it is made."""
    with pytest.raises(error):
        RobustEvaluator(*arguments)
