import pandas as pd
import pytest

from robust_eval.decorators import profile, queued
from robust_eval.evaluators.base import Evaluator
from robust_eval.evaluators.serial import SerialEvaluator
from robust_eval.job import RunningJob
from robust_eval.storage import MemoryStorage

METHODS = pytest.mark.parametrize("method", ["serial", "thread"])
COLUMNS = ["p:x", "objective", "job_id", "m:timestamp_submit", "m:timestamp_gather"]
CONFIGS = [{"x": number} for number in range(10)]


def add(job, y=0):
    return job["x"] + y


def with_metadata(job, y=0):
    return {"objective": job["x"], "metadata": {"y": y}}


def constant(output):
    def run(job):
        return output

    return run


@METHODS
@pytest.mark.parametrize(("kwargs", "added"), [({}, 0), ({"run_function_kwargs": {"y": 1}}, 1)])
def test_every_configuration_has_its_objective(method, kwargs, added):
    """ALL gives every job with the objective of its own configuration; then a BATCH gives some."""
    with Evaluator.create(add, method=method, method_kwargs={"num_workers": 1, **kwargs}) as evaluator:
        evaluator.submit(CONFIGS)
        jobs = sorted(evaluator.gather("ALL"), key=lambda job: job.config["x"])
        assert [job.config for job in jobs] == CONFIGS
        assert [job.objective for job in jobs] == [config["x"] + added for config in CONFIGS]
        evaluator.submit(CONFIGS)
        assert 1 <= len(evaluator.gather("BATCH", size=1)) <= len(CONFIGS)


@METHODS
def test_metadata_is_kept(method):
    """A dict brings its metadata onto the job, whose output is a dict."""
    with Evaluator.create(with_metadata, method=method, method_kwargs={"num_workers": 1}) as evaluator:
        evaluator.submit(CONFIGS)
        for job in evaluator.gather("ALL"):
            assert type(job.output) is dict
            assert (job.objective, job.metadata["y"]) == (job.config["x"], 0)


@METHODS
@pytest.mark.parametrize(
    ("run", "columns"),
    [
        (constant(42.0), COLUMNS),
        (constant("F_out_of_memory"), COLUMNS),
        (constant({"objective": 42.0}), COLUMNS),
        (constant({"objective": 42.0, "metadata": {"a": 1, "b": 2}}), [*COLUMNS, "m:a", "m:b"]),
        (profile(constant(42.0)), [*COLUMNS, "m:timestamp_start", "m:timestamp_end"]),
        (
            profile(constant({"objective": 42.0, "metadata": {"a": 1}})),
            [*COLUMNS, "m:timestamp_start", "m:timestamp_end", "m:a"],
        ),
        (constant((42.0, 0.42)), ["p:x", "objective_0", "objective_1", *COLUMNS[2:]]),
    ],
)
def test_the_csv_has_exactly_the_columns_of_deephyper(method, run, columns, tmp_path):
    """In its order, with one row for each job, and an evaluator after the other in one place."""
    for _ in range(2):
        with Evaluator.create(run, method) as evaluator:
            evaluator.submit(CONFIGS)
            evaluator.gather(type="ALL")
            evaluator.dump_evals(log_dir=str(tmp_path))
        results = pd.read_csv(tmp_path / "results.csv")
        assert list(results.columns) == columns
        assert len(results) == len(CONFIGS)
        assert str(results[columns[1]][0]) in {"42.0", "F_out_of_memory"}
    assert (tmp_path / "results.csv.1").exists()


def test_failures_fill_every_objective(tmp_path):
    """With num_objective set beforehand, the failure stands in each column."""

    def run(job):
        return (42.0, 0.42) if job["x"] < 5 else "F_out_of_memory"

    with SerialEvaluator(run) as evaluator:
        evaluator.num_objective = 2
        evaluator.submit(CONFIGS)
        evaluator.gather("ALL")
        evaluator.dump_evals(log_dir=tmp_path)
    results = pd.read_csv(tmp_path / "results.csv")
    for column, value in (("objective_0", "42.0"), ("objective_1", "0.42")):
        assert results[column].tolist() == [value] * 5 + ["F_out_of_memory"] * 5


def test_saved_keys_choose_the_parameters(tmp_path):
    """A list filters, a callable replaces."""
    with SerialEvaluator(add) as evaluator:
        evaluator.submit([{"x": 1, "z": 2}])
        evaluator.gather("ALL")
        evaluator.dump_evals(saved_keys=["z"], log_dir=tmp_path, filename="some.csv")
        assert list(pd.read_csv(tmp_path / "some.csv").columns)[:2] == ["p:z", "objective"]
        evaluator.submit([{"x": 1}])
        evaluator.gather("ALL")
        evaluator.dump_evals(saved_keys=lambda job: {"sum": job.objective}, log_dir=tmp_path, filename="sum.csv")
        assert list(pd.read_csv(tmp_path / "sum.csv").columns)[:2] == ["p:sum", "objective"]


def test_queued_resources_go_round_between_submissions():
    """One job at a time: the queue is used in a circle."""
    evaluator = queued(SerialEvaluator)(
        lambda job, dequed: job["x"] + dequed[0], num_workers=1, queue=[1, 2, 3, 4], queue_pop_per_task=1
    )
    with evaluator:
        results = []
        for _ in range(8):
            evaluator.submit([{"x": 0}])
            results.append(evaluator.gather("ALL")[0].result)
        assert results == [1, 2, 3, 4, 1, 2, 3, 4]


@METHODS
def test_the_storage_is_shared_with_the_run_function(method):
    """It sees the very object, and several evaluators may use one."""
    storage = MemoryStorage()

    def run(job: RunningJob):
        return {"objective": job.parameters["x"], "metadata": {"storage_id": id(job.storage)}}

    for search_id in ("0", "1"):
        with Evaluator.create(run, method=method, method_kwargs={"storage": storage}) as evaluator:
            evaluator.submit([{"x": 0}])
            assert evaluator.gather("ALL")[0].metadata["storage_id"] == id(storage)
            assert evaluator.search_id == search_id
