"""Whatever a user's exception does, plain bounded words come out."""

import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_eval.errors import InvalidOutput, JobStop
from robust_eval.processes.blame import Unpicklable, blame, rebuilt, traceback_text
from robust_eval.processes.parcel import pack_plain, unpack

BOUND = 1 << 16


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Unreducible(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class Turning(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> Any:
        return str, ("not an exception",)


class Needy(Exception):
    """Pickles, and does not come back: its constructor wants two arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


class Talkative(Exception):
    def __str__(self) -> str:
        return "\n".join(["a line of very many"] * 1_000_000)


class Quiet(Exception):
    def __repr__(self) -> str:
        return "quiet"


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """The same with a traceback."""
    error.__cause__ = cause
    try:
        raise error  # noqa: TRY301 - it is the traceback that is wanted
    except BaseException as caught:  # noqa: BLE001 - SystemExit is among them
        return caught


def fields_of(error: BaseException) -> dict[str, Any]:
    kind, fields = blame(error if error.__traceback__ else raised(error), unwind=0)
    assert kind == "exception"
    assert len(pickle.dumps(fields)) < 1 << 20
    return fields


def test_an_exception_is_told_in_full():
    """Message, type, traceback and the exception itself."""
    fields = fields_of(ValueError("bad x"))
    assert fields["message"] == "ValueError: bad x"
    assert fields["exception_type"] == "ValueError"
    assert fields["traceback"].startswith("Traceback (most recent call last):\n")
    assert fields["traceback"].endswith("ValueError: bad x\n")
    error = rebuilt(fields["exception"])
    assert type(error) is ValueError
    assert error.args == ("bad x",)


def test_groups_that_share_what_they_hold_are_not_gone_through():
    """Fifty that each hold the one before twice are 2**50 ways to one exception; what is raised itself is told."""
    error: Exception = ValueError("inmost")
    for _ in range(50):
        error = ExceptionGroup("around", [error, error])
    text = fields_of(error)["traceback"]
    assert "raise error" in text
    assert "ExceptionGroup: around (2 sub-exceptions)" in text
    assert "left out" in text
    assert "ValueError: b" in fields_of(ExceptionGroup("few", [ValueError("a"), ValueError("b")]))["traceback"]


def test_an_exception_without_a_message_is_its_name():
    """And no colon behind it."""
    assert fields_of(Quiet())["message"] == "Quiet"


@given(text=st.text(st.characters(codec=None), max_size=50))
def test_any_text_is_told(text: str):
    """Half characters and zeros included: it is bytes on the way and text again at the end."""
    fields = fields_of(ValueError(text))
    assert unpack(pack_plain(fields)) == fields


def test_an_exception_that_cannot_say_what_it_is_is_named():
    """Its `__str__` may raise anything."""
    fields = fields_of(Mute())
    assert fields["message"] == "Mute (its __str__ raised KeyboardInterrupt)"
    assert "Mute" in fields["traceback"] or "KeyboardInterrupt" in fields["traceback"]


@pytest.mark.parametrize("error", [Unreducible(), Turning(), Needy(1, 2), Talkative("x" * (1 << 18))])
def test_an_exception_that_does_not_travel_is_left_behind(error: Exception):
    """Its words go alone."""
    fields = fields_of(error)
    assert fields["exception"] is None
    assert fields["exception_type"] == type(error).__qualname__


def test_words_are_bounded():
    """A million lines keep their beginning and their end."""
    fields = fields_of(Talkative())
    for text in (fields["message"], fields["traceback"]):
        assert len(text) < BOUND + 100
        assert "characters left out" in text
    assert fields["message"].startswith("Talkative: a line")


def test_a_deep_traceback_is_bounded():
    """A recursion without end is told by its last hundred frames."""

    def endless(depth: int) -> int:
        return endless(depth + 1) + 1

    with pytest.raises(RecursionError) as caught:
        endless(0)
    kind, fields = blame(caught.value, unwind=0)
    assert kind == "exception"
    assert len(fields["traceback"]) < BOUND
    assert fields["traceback"].count("endless(depth + 1)") <= 100


def test_a_chain_is_told_with_its_cause():
    """And a chain that is a circle comes to an end."""
    cause = raised(KeyError("the cause"))
    error = raised(ValueError("the effect"), cause)
    fields = fields_of(error)
    assert "KeyError: 'the cause'" in fields["traceback"]
    assert "direct cause" in fields["traceback"]
    cause.__cause__ = error
    assert "the effect" in blame(error, unwind=0).fields["traceback"]


def test_a_long_chain_is_bounded():
    """A thousand causes are a bounded text."""
    error: BaseException = ValueError("first")
    for number in range(1000):
        error = raised(ValueError(f"number {number}"), error)
    assert len(blame(error, unwind=0).fields["traceback"]) < BOUND + 100


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_a_program_is_an_exception_of_the_job(error: BaseException):
    """The job raised it, the worker goes on."""
    fields = fields_of(error)
    assert fields["exception_type"] == type(error).__name__
    assert type(rebuilt(fields["exception"])) is type(error)


def test_frames_of_ours_are_left_out():
    """The traceback begins where the user's code does."""

    def users() -> None:
        raise ValueError

    def ours() -> None:
        users()

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ours()
    assert "in ours" not in traceback_text(caught.value, unwind=2)
    assert "in users" in traceback_text(caught.value, unwind=2)
    assert "in users" not in traceback_text(caught.value, unwind=99)


def test_a_traceback_that_cannot_be_formatted_says_so(monkeypatch: pytest.MonkeyPatch):
    """Formatting runs the user's code, too."""

    def fail(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr(traceback, "format_exception", fail)
    assert traceback_text(ValueError(), unwind=0) == "(the traceback could not be formatted: SystemExit)"


def test_each_kind_of_error_is_its_own_kind_of_failure():
    """A stop is a timeout, a lack of memory is memory, and so on."""
    assert blame(JobStop(), unwind=0) == ("timeout", {})
    kind, fields = blame(raised(MemoryError("no more")), unwind=0)
    assert (kind, fields["acted"], fields["message"]) == ("memory", "MemoryError", "MemoryError: no more")
    kind, fields = blame(InvalidOutput("of no use", "nan"), unwind=0)
    assert (kind, fields) == ("invalid", {"message": "of no use", "value_repr": "nan"})


@pytest.mark.parametrize(
    ("what", "said"),
    [("configuration", "the configuration cannot be unpickled"), ("result", "the result cannot be pickled")],
)
def test_what_cannot_travel_is_told_with_its_reason(what: str, said: str):
    """The message says what, the rest is of the error behind it."""
    reason = raised(TypeError("a lock"))
    kind, fields = blame(raised(Unpicklable(what, reason), reason), unwind=0)
    assert kind == "unpicklable"
    assert fields["message"] == f"{said}: TypeError: a lock"
    assert fields["exception_type"] == "TypeError"
    assert blame(Unpicklable(what, reason), unwind=0).fields["exception_type"] == "Unpicklable"


def test_what_does_not_come_back_is_none():
    """A report's exception is never trusted."""
    assert rebuilt(None) is None
    assert rebuilt(b"Pgarbage") is None
    assert rebuilt(pack_plain("a string")) is None
    assert rebuilt(pack_plain(Needy(1, 2))) is None
    assert isinstance(rebuilt(pack_plain(OSError(2, "gone"))), FileNotFoundError)


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(name)


class Anonymous(Exception, metaclass=Nameless):
    """Even its class raises when it is asked for its name."""


def test_a_class_that_does_not_tell_its_name_is_told_as_such():
    """The worker lives, and the job fails as an exception."""
    assert "does not tell its name" in fields_of(Anonymous())["message"]


def test_a_stop_that_nobody_asked_for_is_the_user_s_own():
    """Only a job that was stopped is over its time."""
    error = raised(JobStop())
    assert blame(error, unwind=0, stop_requested=True) == ("timeout", {})
    kind, fields = blame(error, unwind=0, stop_requested=False)
    assert (kind, fields["exception_type"]) == ("exception", "JobStop")


class Exiting(Exception):
    """Ends whoever unpickles it."""

    def __reduce__(self) -> Any:
        return _exit, ()


def _exit() -> None:
    raise SystemExit


def _interrupt() -> None:
    raise KeyboardInterrupt


class Interrupting(Exception):
    def __reduce__(self) -> Any:
        return _interrupt, ()


def test_an_exception_that_exits_on_its_way_back_is_left_out():
    """The driver goes on; a Ctrl-C in this very moment is still one."""
    assert rebuilt(pack_plain(Exiting())) is None
    with pytest.raises(KeyboardInterrupt):
        rebuilt(pack_plain(Interrupting()))


class Thorny(Exception):
    """Raises whatever it is asked, its class included."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit


def test_an_exception_that_cannot_be_looked_at_is_told_as_such():
    """Not even `isinstance` works on it."""
    error = Thorny()
    kind, fields = blame(error, unwind=0)
    assert kind == "exception"
    assert "cannot be described" in fields["message"]
