"""Large arrays of configurations are copied once, and are nobody else's all the same."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from robust_eval import Evaluator
from robust_eval.evaluators import lending
from robust_eval.job import Job, RunningJob
from robust_eval.processes.parcel import Memory

LARGE = (1 << 20) // 8


def total(job: RunningJob) -> float:
    """Also changes what it got, which the driver must not see."""
    result = float(job.parameters["array"].sum()) + job.parameters["x"]
    job.parameters["array"][:] = -1.0
    return result


@pytest.fixture
def evaluator() -> Iterator[Any]:
    with Evaluator.create(total, method="process", method_kwargs={"num_workers": 1}) as made:
        yield made


@pytest.mark.parametrize("size", [LARGE, LARGE - 1], ids=["lent", "copied"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_configuration_is_as_it_was_when_it_was_submitted(evaluator: Any, size: int, order: Any):
    """Whatever the user then does to the array: for the job, for the driver's `job.config` and for the storage."""
    array = np.ones((1, size), order=order)
    evaluator.submit([{"x": 1.0, "array": array, "z": "last"}])
    array[:] = 7.0
    (job,) = evaluator.gather("ALL")
    assert job.objective == size + 1.0
    assert list(job.config) == ["x", "array", "z"]
    assert (job.config["array"] == 1.0).all()
    job.config["array"][0, 0] = 2.0
    assert evaluator.storage.load_job(job.id)["in"]["args"][0]["array"][0, 0] == 2.0
    assert "_lent" not in vars(job)


@pytest.mark.parametrize(
    "beside",
    [{}, {"y": [1]}, {"y": np.array([None] * LARGE)}, {"y": np.ones((2, LARGE))[:, ::2]}],
    ids=["alone", "a list", "objects", "a view with gaps"],
)
def test_arrays_are_lent_only_beside_plain_values(beside: dict[str, Any]):
    """What else there is may run code of the user's when it is unpickled, and is copied as ever."""
    assert bool(lending.lendable({"array": np.ones(LARGE), **beside})) is (not beside)
    assert lending.lendable({"x": 1}) == {}


def loan() -> tuple[Job, Any]:
    array = np.ones(LARGE)
    return lending.lend(Job("0.0", {"array": None}, None), {"array": array}), array


@pytest.mark.parametrize("parcel", [None, b"", Memory(-1, 8)], ids=["of no use", "inline", "its descriptor was lost"])
def test_where_the_parcel_cannot_be_kept_the_array_is_copied(parcel: Any):
    """As without any of this."""
    job, array = loan()
    lending.settle_loans(job, parcel)
    lending.settle_loans(job, parcel)
    assert not np.shares_memory(job.config["array"], array)
    assert (job.config["array"] == array).all()


def test_a_stopper_that_runs_code_is_not_unpickled_here(evaluator: Any):
    """The arrays are copied then; so are those of a configuration that cannot be pickled."""
    array = np.ones(LARGE)
    evaluator._stopper = lambda: None
    evaluator.submit([{"x": 0.0, "array": array}])
    evaluator._stopper = (each for each in ())
    evaluator.submit([{"x": 0.0, "array": array}])
    done = sorted(evaluator.gather("ALL"), key=lambda job: job.id)
    assert [job.failure and job.failure.kind for job in done] == [None, "unpicklable"]
    assert all((job.config["array"] == 1.0).all() for job in done)
    assert not any(np.shares_memory(job.config["array"], array) for job in done)
