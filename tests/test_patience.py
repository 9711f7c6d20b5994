"""How a supervisor and a worker wait."""

import os
import selectors
import threading
from collections.abc import Iterator
from time import monotonic

import pytest

from robust_eval.processes import patience
from robust_eval.processes.patience import Patience


class Counting(selectors.DefaultSelector):
    """Notes how long it was asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.waits.append(timeout)
        return super().select(timeout)


@pytest.fixture
def selector() -> Iterator[Counting]:
    with Counting() as made:
        yield made


@pytest.fixture
def pipe(selector: Counting) -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    selector.register(reading, selectors.EVENT_READ)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def stays_awake_after(waits: int, waiting: Patience, selector: Counting, pipe: tuple[int, int]) -> bool:
    """Whether, after so many waits in which something was there at once, the next one looks without sleep."""
    reading, writing = pipe
    for _ in range(waits):
        os.write(writing, b"x")
        assert waiting.select(None)
        os.read(reading, 1)
    selector.waits.clear()
    os.write(writing, b"x")
    assert waiting.select(None)
    return selector.waits == [0]


def test_who_waits_long_sleeps(selector: Counting, pipe: tuple[int, int]):
    """One wait, as long as was asked for."""
    assert Patience(selector.select).select(0.01) == []
    assert selector.waits == [pytest.approx(0.01, abs=0.005)]


def test_where_things_happen_every_moment_it_stays_awake(selector: Counting, pipe: tuple[int, int]):
    """What comes within a moment is found without sleep."""
    assert stays_awake_after(20, Patience(selector.select), selector, pipe)


def test_a_moment_in_vain_is_followed_by_sleep(selector: Counting, pipe: tuple[int, int]):
    """And the next wait begins with it; the whole is as long as was asked for."""
    reading, writing = pipe
    waiting = Patience(selector.select)
    waiting._gap_s = 0.0
    begun_at = monotonic()
    assert waiting.select(0.02) == []
    assert monotonic() - begun_at >= 0.019
    assert selector.waits[0] == 0
    assert 0.0 < selector.waits[-1] < 0.02
    selector.waits.clear()
    waker = threading.Timer(0.01, os.write, (writing, b"x"))
    waker.start()
    assert waiting.select(None)
    waker.join()
    os.read(reading, 1)
    assert selector.waits == [None]


def test_a_moment_in_vain_is_soon_made_up_for(selector: Counting, pipe: tuple[int, int]):
    """Else one wait that took long has all sleep for a dozen round trips, which are long because they sleep."""
    waiting = Patience(selector.select)
    waiting._gap_s = 0.0
    assert waiting.select(0.0004) == []
    assert stays_awake_after(4, waiting, selector, pipe)


def test_a_moment_is_never_longer_than_the_wait(selector: Counting, pipe: tuple[int, int], monkeypatch):
    """A deadline that is due is not overslept, and not overwatched."""
    monkeypatch.setattr(patience, "_MOMENT_S", 60.0)
    waiting = Patience(selector.select)
    waiting._gap_s = 0.0
    begun_at = monotonic()
    assert waiting.select(0.005) == []
    assert monotonic() - begun_at < 30.0
    waiting._gap_s = 0.0
    assert waiting.select(0.0) == []


def test_things_gather_for_a_moment(selector: Counting, pipe: tuple[int, int], monkeypatch):
    """What happens meanwhile is seen after it, and no deadline is overslept."""
    monkeypatch.setattr(patience, "_NAP_S", 0.01)
    waiting = Patience(selector.select)
    os.write(pipe[1], b"x")
    begun_at = monotonic()
    waiting.let_gather(60.0, None)
    assert monotonic() - begun_at >= 0.009
    assert waiting.select(None)
    monkeypatch.setattr(patience, "_NAP_S", 60.0)
    begun_at = monotonic()
    waiting.let_gather(60.0, 0.001)
    waiting.let_gather(60.0, 0.0)
    waiting.let_gather(0.001, None)
    assert monotonic() - begun_at < 30.0
