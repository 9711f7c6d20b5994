import subprocess
import sys
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_eval.errors import InvalidOutput
from robust_eval.objective import standardize

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = FINITE | st.integers(-(2**53), 2**53)
FAILURES = st.text(max_size=5).map("F".__add__)


@given(NUMBERS)
def test_a_number_is_a_float(value):
    """A bare finite number is the objective, as a float."""
    objective, metadata, observations = standardize(value)
    assert type(objective) is float
    assert objective == value
    assert (metadata, observations) == ({}, None)


@pytest.mark.parametrize(
    "value", [True, np.float64(1), np.float32(1), np.int8(1), np.bool_(True), Fraction(1), Decimal(1)]
)
def test_foreign_numbers_are_floats(value):
    """So is every number of another kind, bare or inside."""
    assert standardize(value)[0] == 1.0
    assert type(standardize(value)[0]) is float
    assert type(standardize({"objective": value})[0]) is float
    assert [type(each) for each in standardize((value, 2))[0]] == [float, int]


@given(FAILURES)
def test_a_failure_of_its_own_is_kept(text):
    """A string starting with F is kept as it is, also inside."""
    assert standardize(text)[0] == text
    assert standardize((1.0, text))[0] == (1.0, text)
    assert standardize({"objective": text})[0] == text
    assert type(standardize(np.str_(text))[0]) is str


@given(st.lists(NUMBERS | FAILURES, min_size=1))
def test_several_objectives_keep_their_kind(values):
    """A tuple stays a tuple, a list a list, with the same numbers."""
    assert standardize(values) == (values, {}, None)
    assert standardize(tuple(values)) == (tuple(values), {}, None)
    assert standardize({"objective": tuple(values)})[0] == tuple(values)


def test_a_named_tuple_becomes_a_tuple():
    """Subclasses do not travel."""
    assert type(standardize(namedtuple("Two", "a b")(1, 2))[0]) is tuple  # noqa: PYI024  as short as can be


@given(NUMBERS, st.dictionaries(st.text(), st.integers()))
def test_a_dict_brings_metadata(value, metadata):
    """Objective and metadata are taken, an int stays an int, the user's dict stays the user's."""
    objective, taken, _ = standardize({"objective": value, "metadata": metadata})
    assert (objective, type(objective)) == (value, type(value))
    assert taken == metadata
    assert taken is not metadata


def test_metadata_is_optional():
    """None is as good as nothing; observations are passed on."""
    assert standardize({"objective": 1, "metadata": None}) == (1, {}, None)
    assert standardize({"objective": 1, "observations": [[1], [2]]}) == (1, {}, [[1], [2]])


@pytest.mark.parametrize("rows", [[[1, 2], [3.0, 4.0]], ((1, 2), (3.0, 4.0)), np.array([[1, 2], [3.0, 4.0]])])
def test_observations_end_in_the_objective(rows):
    """The pair (budgets, objectives) of a stopper counts by its last objective."""
    assert standardize({"objective": rows}) == (4.0, {}, [[1, 2], [3.0, 4.0]])
    if not isinstance(rows, np.ndarray):
        assert standardize(rows) == (4.0, {}, [[1, 2], [3.0, 4.0]])


def test_what_the_profile_of_deephyper_returns_is_taken_apart():
    """Its dict holds the output, whatever that is, and metadata; those of the run function itself win."""
    assert standardize({"output": 1, "metadata": {"a": 1}}) == (1.0, {"a": 1}, None)
    assert standardize({"output": "F_own"}) == ("F_own", {}, None)
    inner = {"objective": (1, 2), "metadata": {"a": 2, "b": 3}}
    assert standardize({"output": inner, "metadata": {"a": 1, "c": 4}}) == ((1, 2), {"a": 2, "b": 3, "c": 4}, None)


def test_arrays_count_inside_a_dict():
    """As in DeepHyper: an array is an objective inside a dict, and none of its own."""
    assert standardize({"objective": np.array(2.0)})[0] == 2.0
    assert standardize({"objective": np.array([1.0, 2.0])})[0] == [1.0, 2.0]
    with pytest.raises(InvalidOutput, match="tolist"):
        standardize(np.array([1.0]))


class Hostile:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "output",
    [
        {"objective": 10**400},
        (10**5000, 1),
        None,
        "no failure",
        "",
        b"F",
        1j,
        np.complex128(1),
        object(),
        Hostile(),
        {},
        {"metadata": {}},
        {"output": None},
        {"output": {}},
        {"output": {"output": 1}},
        {"output": 1, "metadata": 2},
        {"objective": None},
        {"objective": 1, "metadata": [1]},
        {"objective": float("nan")},
        {"objective": np.array([np.nan])},
        (),
        [],
        (1, None),
        (1, "no"),
        (1, float("inf")),
        ((1, 2),),
        ((1, 2), (1,)),
        ((), ()),
        ((1, 2), (1, float("nan"))),
        (1, (2, 3)),
        ((1, 2), 3),
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float64("nan"),
        Decimal("nan"),
        Decimal("snan"),
        10**400,
        Fraction(10**400),
        {1.0},
        lambda: 1,
    ],
    ids=lambda output: type(output).__name__,
)
def test_everything_else_is_refused(output):
    """The message says what was returned and what is accepted, and is bounded."""
    with pytest.raises(InvalidOutput, match="Accepted are") as caught:
        standardize(output)
    assert len(caught.value.value_repr) <= 200
    assert caught.value.value_repr in str(caught.value)
    assert len(str(caught.value)) < 800


def test_numpy_is_not_imported_for_those_without():
    """A worker that never needs numpy does not pay for it, nor for pandas or psutil."""
    code = (
        "import sys; from robust_eval.objective import standardize; import robust_eval.job, robust_eval.failure\n"
        "standardize(1); standardize({'objective': [1.5]}); robust_eval.job.RunningJob().stopped()\n"
        "heavy = {'numpy', 'pandas', 'psutil', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
