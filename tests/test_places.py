"""The place of a failure: the same whenever the same fault comes again, another for another fault."""

import linecache
import traceback

import pytest

from robust_eval.failure import Failure
from robust_eval.places import Place, place_of, raise_at

SOURCE = """\
def run(x):
    first(x)
    with open(x) as file:
        second(
            x,
        )

def first(x):
    while True:
        x += 1
        third(x)

def second(x):
    return third([y for y in
                  x])

def third(x):
    if x:
        x = third(x)
    return x
"""
FILE = "/nowhere/simulation.py"


@pytest.fixture(autouse=True)
def source():
    """The source as `linecache` has it of a notebook's cells: there is no such file."""
    linecache.cache[FILE] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), FILE)
    yield
    del linecache.cache[FILE]


def dump(*frames: tuple[int, str], file: str = FILE) -> str:
    """A stack as faulthandler writes it, from frames with the innermost first."""
    lines = [f'  File "{file}", line {line} in {function}' for line, function in frames]
    return "\n".join(["Current thread 0x00007f (most recent call first):", *lines])


def killed(stack: str | None) -> Failure:
    return Failure("timeout", "too long", stack=stack)


@pytest.mark.parametrize("innermost", [[(9, "first")], [(10, "first")], [(18, "third"), (11, "first")]])
def test_a_kill_in_a_loop_has_the_place_of_the_loop(innermost):
    """Wherever in the loop, or below it, the job was when it was killed."""
    assert place_of(killed(dump(*innermost, (2, "run")))) == Place(FILE, 9, "first")


@pytest.mark.parametrize("line", [14, 15])
def test_a_comprehension_is_a_loop(line):
    """Also one inside of a statement."""
    assert place_of(killed(dump((line, "<listcomp>"), (14, "second"), (4, "run")))) == Place(FILE, 14, "second")


def test_without_a_loop_it_is_the_innermost_statement():
    """By its first line, however many it has; a recursion counts once."""
    assert place_of(killed(dump((5, "run")))) == Place(FILE, 4, "run")
    recursion = dump((18, "third"), *[(19, "third")] * 90, (3, "run"))
    assert place_of(killed(recursion)) == Place(FILE, 19, "third")


def test_faults_at_two_places_differ():
    """Two calls of one function that hang are two faults."""
    one, other = (place_of(killed(dump((19, "third"), (line, "run")))) for line in (2, 4))
    assert one == other == Place(FILE, 19, "third")
    assert place_of(killed(dump((2, "run")))) != place_of(killed(dump((4, "run"))))


def test_frames_without_a_source_are_not_trusted():
    """The place is the last one that could be read; where there is none, the function alone."""
    inner = dump((3, "compiled"), file="<frozen library>")
    outer = dump((2, "run")).splitlines()[1]
    assert place_of(killed(f"{inner}\n{outer}")) == Place(FILE, 2, "run")
    assert place_of(killed(inner)) == Place("<frozen library>", 1, "compiled")
    linecache.cache["/nowhere/broken.py"] = (1, None, ["def :\n"], "/nowhere/broken.py")
    assert place_of(killed(dump((7, "f"), file="/nowhere/broken.py"))) == Place("/nowhere/broken.py", 1, "f")
    assert place_of(killed(dump((99, "run")))) == Place(FILE, 1, "run")


def test_of_several_threads_the_current_one_counts():
    """Or the last, which is the main thread, where none is marked."""
    other = 'Thread 0x00007e (most recent call first):\n  File "/lib/threading.py", line 7 in wait'
    assert place_of(killed(f"{other}\n\n{dump((2, 'run'))}")) == Place(FILE, 2, "run")
    assert place_of(killed(f"{dump((2, 'run'))}\n\n{other}")) == Place(FILE, 2, "run")
    unmarked = dump((2, "run")).replace("Current thread", "Thread")
    assert place_of(killed(f"{other}\n\n{unmarked}")) == Place(FILE, 2, "run")


def test_a_crash_and_an_exception_are_where_they_happened():
    """By the very line; of chained exceptions the last one counts."""
    assert place_of(Failure("crash", "", stack=dump((11, "first"), (2, "run")))) == Place(FILE, 11, "first")
    text = "".join(
        f'Traceback (most recent call last):\n  File "{FILE}", line {line}, in {name}\n    x\nKeyError: 1\n\nDuring\n\n'
        for line, name in ((2, "run"), (10, "first"))
    )
    assert place_of(Failure("exception", "", traceback=text)) == Place(FILE, 10, "first")


def test_without_a_stack_there_is_no_place():
    """An exit code has none."""
    assert place_of(Failure("crash", "exit")) is None
    assert place_of(killed(None)) is None


def test_an_exception_can_be_raised_at_a_place():
    """Its traceback ends there, with the source of there; without a place it is raised as it is."""
    place = Place(FILE, 10, "first")
    with pytest.raises(KeyError) as caught:
        raise_at(KeyError("x"), place)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno, last.name, last.line) == (*place, "x += 1")
    with pytest.raises(KeyError):
        raise_at(KeyError("x"), None)
    assert str(place) == f"{FILE}:10 in first"
