"""What every adapter offers: make a session of a function, run arguments through it, close it.

`run` gives outcomes as they come, `in_order` in the order of the arguments, which costs the peers least; both submit
each argument as a call of its own, unchunked. A call that fails has an outcome like any other, as far as the peer
tells of it: what it never tells of is never given, and whoever asks must have patience of his own.
"""

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from typing import Any, Protocol

_LONGEST_TEXT = 200


class OutOfPatience(BaseException):
    """Raised from outside in whoever waits for an outcome that does not come."""


@dataclass(frozen=True)
class Settings:
    """What a session is asked for. An adapter whose peer cannot do it ignores it, and its `offers` says so."""

    num_workers: int = 2
    job_timeout: float | None = None
    memory_limit: int | None = None
    max_tasks_per_child: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value of a call, or what was told of its failure; `kind` is ours alone."""

    value: Any = None
    error: str | None = None
    kind: str | None = None

    @classmethod
    def failed(cls, error: BaseException, kind: str | None = None) -> "Outcome":
        """The outcome of a call that raised."""
        try:
            text = f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - an exception of the catalogue has no text
            text = type(error).__name__
        return cls(error=text[:_LONGEST_TEXT], kind=kind)


Outcomes = Iterator[tuple[int, Outcome]]


class Session(Protocol):
    """A pool at work."""

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        """Call the function once with each argument; give position and outcome as they come."""

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        """The same, in the order of the arguments."""

    def helpers(self) -> list[int]:
        """The ids of processes beside the driver that work for the pool and run no job."""

    def close(self) -> None:
        """End it as the peer's documentation recommends."""


@dataclass(frozen=True)
class Offers:
    """Which limits a peer has: "yes", "no", or what it has in their place."""

    job_timeout: str = "no"
    memory_limit: str = "no"
    fresh_process: str = "no"


@dataclass(frozen=True)
class Peer:
    """One adapter.

    Attributes:
        title: as it stands in tables.
        distribution: its name on PyPI; None for the standard library.
        offers: which limits it has.
        make: starts a session.
        forks_user: its workers are forks of the user's process.
    """

    title: str
    distribution: str | None
    offers: Offers
    make: Callable[[Callable[[Any], Any], Settings], Session]
    forks_user: bool = False


class FuturesSession:
    """A session over `submit` of something that returns futures of the standard library.

    Args:
        submit: takes one argument.
        close: ends the pool.
    """

    def __init__(self, submit: Callable[[Any], Future[Any]], close: Callable[[], None]) -> None:
        self._submit = submit
        self.close = close

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        futures: dict[Future[Any], int] = {}
        for index, argument in enumerate(arguments):
            try:
                futures[self._submit(argument)] = index
            except Exception as error:  # noqa: BLE001 - a refused call is an outcome
                yield index, Outcome.failed(error)
        for future in as_completed(futures):
            yield futures[future], settled(future.result)

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        futures = [self._submit(argument) for argument in arguments]
        for future in futures:
            yield settled(future.result)

    def helpers(self) -> list[int]:
        return []


class ArrivalSession:
    """A session that gives outcomes as they come: their order is made here. There are no helpers unless it says so."""

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        raise NotImplementedError

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        outcomes = dict(self.run(arguments))
        return (outcomes[index] for index in range(len(arguments)))

    def helpers(self) -> list[int]:
        return []


class CallbackSession:
    """A session over an `apply_async` that takes two callbacks and returns something with `get`.

    Args:
        apply: takes an argument, a callback and an error callback.
        close: ends the pool.
    """

    def __init__(self, apply: Callable[[Any, Any, Any], Any], close: Callable[[], None]) -> None:
        self._apply = apply
        self.close = close

    def run(self, arguments: Sequence[Any]) -> Outcomes:
        told: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        for index, argument in enumerate(arguments):
            try:
                self._apply(
                    argument,
                    lambda value, index=index: told.put((index, Outcome(value))),
                    lambda error, index=index: told.put((index, Outcome.failed(error))),
                )
            except Exception as error:  # noqa: BLE001 - a refused call is an outcome
                told.put((index, Outcome.failed(error)))
        for _ in arguments:
            yield told.get()

    def in_order(self, arguments: Sequence[Any]) -> Iterator[Outcome]:
        results = [self._apply(argument, None, None) for argument in arguments]
        for result in results:
            yield settled(result.get)

    def helpers(self) -> list[int]:
        return []


def settled(result: Callable[[], Any]) -> Outcome:
    """What a call that waits for a value gives, as an outcome."""
    try:
        return Outcome(result())
    except BaseException as error:
        if isinstance(error, OutOfPatience):
            raise
        return Outcome.failed(error)  # peers hand on whatever the job raised, SystemExit too
