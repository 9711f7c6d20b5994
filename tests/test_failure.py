import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_eval import errors
from robust_eval.errors import InternalError, InvalidOutput, JobFailed, JobRaised, JobTimeout, bounded_repr
from robust_eval.failure import FAILURE_KINDS, Failure

TEXTS = st.none() | st.text(max_size=20)
JSON = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
FAILURES = st.builds(
    Failure,
    kind=st.sampled_from(FAILURE_KINDS),
    message=st.text(max_size=30),
    attempts=st.integers(0, 5),
    duration=st.none() | st.floats(0, 1e6),
    peak_memory=st.none() | st.integers(0, 2**40),
    memory_limit=st.none() | st.integers(0, 2**40),
    acted=TEXTS,
    stack=TEXTS,
    stack_missing=TEXTS,
    traceback=TEXTS,
    exception_type=TEXTS,
    signal=TEXTS,
    exit_code=st.none() | st.integers(-64, 255),
    output_tail=st.text(max_size=20),
    unkilled_pids=st.lists(st.integers(1, 10**6), max_size=3).map(tuple),
    late_result=JSON,
    abandoned=st.booleans(),
    lost=TEXTS,
    value_repr=TEXTS,
)


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("not me")


class PoisonedError(Exception):
    """Pickles, and does not come back."""

    def __init__(self, one, two):
        super().__init__("one argument only")


class RudeError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@given(FAILURES)
def test_a_failure_survives_json_and_pickle(failure):
    """A stored or sent failure says the same as before."""
    assert Failure.from_dict(json.loads(json.dumps(failure.to_dict()))) == failure
    assert pickle.loads(pickle.dumps(failure)) == failure
    assert copy.deepcopy(failure) == failure


@given(FAILURES)
def test_a_failure_can_always_be_shown(failure):
    """The repr is one short line, the rendering begins with the kind."""
    assert "\n" not in repr(failure)
    assert len(repr(failure)) < 300
    assert failure.render().startswith(f"{failure.kind}:")


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_every_kind_has_an_exception(kind):
    """A failure becomes an exception that carries it, reads like it and pickles."""
    failure = Failure(kind, "it did")
    error = failure.to_exception()
    assert isinstance(error, JobFailed)
    assert error.failure is failure
    assert str(error) == failure.render()
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert back.failure == failure


def test_job_exceptions_are_also_the_builtin_ones():
    """Who catches TimeoutError or MemoryError catches ours."""
    assert isinstance(Failure("timeout", "x").to_exception(), TimeoutError)
    assert isinstance(Failure("memory", "x").to_exception(), MemoryError)


def test_the_exception_of_the_run_function_is_the_cause():
    """JobRaised is chained from what was raised."""
    cause = ValueError("mine")
    error = Failure.from_exception(cause).to_exception()
    assert isinstance(error, JobRaised)
    assert error.__cause__ is cause


@pytest.mark.parametrize("error", [UnpicklableError("x"), PoisonedError(1, 2)])
def test_an_exception_that_cannot_travel_costs_only_itself(error):
    """The failure pickles without it and keeps its text."""
    failure = Failure.from_exception(error)
    assert failure.exception is error
    back = pickle.loads(pickle.dumps(failure))
    assert back.exception is None
    assert back == failure


def test_an_exception_that_can_travel_does():
    """A picklable exception and a late result arrive with the failure."""
    failure = Failure.from_exception(KeyError("k"))
    assert repr(pickle.loads(pickle.dumps(failure)).exception) == "KeyError('k')"
    assert pickle.loads(pickle.dumps(Failure("timeout", "x", late_result=(1, 2)))).late_result == (1, 2)


def test_a_class_that_is_gone_costs_only_itself(monkeypatch):
    """A failure is read back although its exception's class is not there any more."""
    packed = pickle.dumps(Failure.from_exception(RudeError()))
    monkeypatch.delattr(f"{__name__}.RudeError")
    back = pickle.loads(packed)
    assert back.exception is None
    assert back.exception_type == f"{__name__}.RudeError"


def test_a_late_result_that_json_cannot_hold_is_described():
    """to_dict gives its repr."""
    for value in (object(), float("nan"), {1, 2}):
        assert Failure("timeout", "x", late_result=value).to_dict()["late_result"] == bounded_repr(value)


def test_unknown_keys_are_ignored():
    """A failure stored by a newer version can be read."""
    assert Failure.from_dict({"kind": "crash", "message": "x", "colour": "red"}) == Failure("crash", "x")


def test_rendering_shows_what_is_known():
    """Facts and blocks appear, with units."""
    text = Failure(
        "memory",
        "over",
        attempts=2,
        duration=1.5,
        peak_memory=3 << 20,
        memory_limit=2 << 20,
        exit_code=0,
        stack_missing="too late",
        output_tail="hello\nworld\n",
        unkilled_pids=(7,),
        late_result=3,
        abandoned=True,
        lost="host",
    ).render()
    for part in ("attempts 2", "ran 1.500 s", "3.0 MiB", "2.0 MiB", "exit code 0", "none: too late", "    world", "7"):
        assert part in text


def test_what_was_raised_is_described_without_its_frames():
    """Type, message and traceback are kept as text; the frames, which hold memory, are not."""
    try:
        try:
            raise KeyError("inner")  # noqa: TRY301  two frames are wanted
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        failure = Failure.from_exception(error, attempts=3, duration=2.0)
    assert (failure.kind, failure.message) == ("exception", "ValueError: outer")
    assert failure.exception_type == "ValueError"
    assert (failure.attempts, failure.duration) == (3, 2.0)
    assert "KeyError: 'inner'" in failure.traceback
    assert failure.exception.__traceback__ is None
    assert failure.exception.__cause__.__traceback__ is None


def test_a_message_that_raises_is_survived():
    """An exception whose text cannot be had is still a failure."""
    failure = Failure.from_exception(RudeError())
    assert "RuntimeError" in failure.message
    assert failure.exception_type == f"{__name__}.RudeError"


def test_a_traceback_that_cannot_be_formatted_is_survived(monkeypatch):
    """So is one whose traceback cannot be formatted."""

    def broken(*args, **kwargs):
        raise AttributeError

    monkeypatch.setattr("traceback.format_exception", broken)
    assert "AttributeError" in Failure.from_exception(ValueError("x")).traceback


def test_memory_errors_and_invalid_outputs_have_their_own_kinds():
    """MemoryError says that it acted, an invalid output carries the value's repr."""
    failure = Failure.from_exception(MemoryError())
    assert (failure.kind, failure.acted, failure.message) == ("memory", "MemoryError", "MemoryError")
    failure = Failure.from_exception(InvalidOutput("bad", "None"))
    assert (failure.kind, failure.value_repr, failure.message) == ("invalid", "None", "bad")
    assert failure.exception is None


def test_every_exception_has_the_one_root():
    """`except RobustEvalError` catches whatever the package raises."""
    raised = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert all(issubclass(each, errors.RobustEvalError) for each in raised)
    assert not issubclass(errors.JobStop, Exception)
    assert issubclass(JobTimeout, TimeoutError)


def test_errors_pickle():
    """An internal error asks for a report, also after its journey."""
    assert "report" in str(pickle.loads(pickle.dumps(InternalError("lost one."))))
    back = pickle.loads(pickle.dumps(InvalidOutput("bad", "None")))
    assert (str(back), back.value_repr) == ("bad", "None")


def test_descriptions_are_bounded():
    """Neither size nor rudeness of a value matters."""
    assert len(bounded_repr("x" * 10**6)) <= 200
    assert len(bounded_repr(list(range(10**5)))) <= 200
    assert "RudeError" in bounded_repr(RudeError())

    class Endless:
        def __repr__(self):
            return "e" * 1000

    assert bounded_repr(Endless(), limit=50).endswith("e")
    assert len(bounded_repr([Endless()] * 5, limit=50)) == 50


class Nameless(type):
    def __getattribute__(cls, name):
        raise ValueError(name)


class Anonymous(Exception, metaclass=Nameless):
    pass


def test_an_exception_that_cannot_be_described_is_told_as_such():
    """Whatever the user's class does when it is asked for its name, the job has its failure."""
    failure = Failure.from_exception(Anonymous(), attempts=2)
    assert (failure.kind, failure.attempts) == ("exception", 2)
    assert "cannot be described" in failure.message
