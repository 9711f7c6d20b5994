"""Searches for the smallest configurations that make a run function fail.

Hypothesis makes the configurations and shrinks them. It does so one after the other and in this process; what it does
not know is that a whole round of its configurations ran in parallel before: their outcomes are looked up. One seed
gives one sequence, so that the shrinking of each failure finds its beginning again without a single run.
"""

from __future__ import annotations

import ast
import contextlib
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final

from robust_eval.calls import failure_in
from robust_eval.errors import InvalidArgument, InvalidArgumentType, RobustEvalError, bounded_repr
from robust_eval.executor import usable_cpus
from robust_eval.isolation import PatientExecutor
from robust_eval.limits import parse_count, parse_seconds
from robust_eval.places import Place, place_of
from robust_eval.processes.evaluation import Alone

try:
    from hypothesis import Phase, find, settings
    from hypothesis.database import ExampleDatabase
    from hypothesis.errors import Flaky, NoSuchExample

    from robust_eval.spaces import as_strategy
except ModuleNotFoundError as error:
    raise RobustEvalError(f"falsify needs Hypothesis: pip install 'robust-eval[falsify]' ({error}).") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from robust_eval.failure import Failure

_BATCH: Final = 4  # configurations for each worker between two looks at the clock
_NOT_OF_THE_CONFIGURATION: Final = ("cancelled", "lost")
_DEFAULT: Any = object()


@dataclass(frozen=True, slots=True)
class Finding:
    """One way to fail.

    Attributes:
        config: the smallest configuration that was found to fail so.
        failure: what it does.
        place: where; None where no stack is known.
        shrunk: whether the search for a smaller one came to its end.
        reproduce: a line of Python that does it again, in a supervised process.
    """

    config: dict[str, Any]
    failure: Failure
    place: Place | None
    shrunk: bool
    reproduce: str

    def render(self) -> str:
        """Give all of it as one readable block of lines."""
        size = "smallest" if self.shrunk else "not shrunk to the end"
        where = "" if self.place is None else f" at {self.place}"
        head = f"{self.failure.kind}{where}\n  configuration ({size}): {self.config!r}\n  again: {self.reproduce}"
        return head + "".join(f"\n  {line}" for line in self.failure.render().splitlines())


@dataclass(frozen=True, slots=True)
class Falsification:
    """What a search found.

    Attributes:
        findings: one for each kind and place of failure.
        runs: how often the run function was called.
    """

    findings: list[Finding]
    runs: int

    def __bool__(self) -> bool:
        return bool(self.findings)

    def render(self) -> str:
        """Give all findings as text."""
        if not self.findings:
            return f"No failing configuration found in {self.runs} runs."
        count = len(self.findings)
        head = f"{count} way{'s' if count > 1 else ''} to fail found in {self.runs} runs."
        return "\n\n".join([head, *(finding.render() for finding in self.findings)])


def falsify(
    run: Callable[..., Any],
    space: Any,
    *,
    max_examples: int = 200,
    num_workers: int | None = None,
    job_timeout: float | None = 10.0,
    memory_limit: float | str | None = None,
    timeout: float | None = None,
    seed: int = 0,
    database: ExampleDatabase | None = _DEFAULT,
) -> Falsification:
    """Search for the smallest configuration that fails, for each way to fail.

    Args:
        run: the run function, called with a `RunningJob` in a supervised process.
        space: what configurations are like: see `as_strategy`.
        max_examples: how many configurations are tried before what failed is shrunk.
        num_workers: how many of these run at once; by default as many as this process may use CPUs. Shrinking runs
            them one at a time.
        job_timeout: seconds that a run may take; what takes longer failed. None for no limit.
        memory_limit: what the process tree of a run may take.
        timeout: seconds for all of it; what failed until then is reported, shrunk or not.
        seed: another one tries other configurations.
        database: where failures are kept, so that the next search begins with them: by default that of Hypothesis,
            a directory ``.hypothesis`` here. None for none.

    Returns:
        What was found. A run function that returns ``"F..."`` did not fail: it said what it had to say.

    Raises:
        InvalidArgument: a value is not allowed.
        InvalidArgumentType: ``run`` cannot be called, or the space gives what is no dict.
        JobStartupFailed: no worker could be started.
    """
    if not callable(run):
        raise InvalidArgumentType(f"run={bounded_repr(run)} cannot be called. Pass a function of a job.")
    if database is _DEFAULT:
        database = settings.default.database if settings.default is not None else None
    if database is not None and not isinstance(database, ExampleDatabase):
        raise InvalidArgument(f"database={bounded_repr(database)} is no ExampleDatabase of Hypothesis, nor None.")
    workers = usable_cpus() if num_workers is None else parse_count("num_workers", num_workers)
    budget_s = parse_seconds("timeout", timeout)
    limits = {"job_timeout": job_timeout, "memory_limit": memory_limit}
    executor = PatientExecutor(workers, initializer=Alone.prepare, initargs=(run,), **limits)  # type: ignore[arg-type]
    with executor:
        try:
            search = _Search(executor, run, as_strategy(space), max_examples, seed, database)
            search.ends_at = None if budget_s is None else time.monotonic() + budget_s
            return search.result(limits)
        except BaseException:
            executor.kill_workers()
            raise


Signature = tuple[str, str | None, Place | None]
_Known = tuple[dict[str, Any], bool]


def _signature(failure: Failure) -> Signature:
    return failure.kind, failure.exception_type, place_of(failure)


@dataclass
class _Search:
    """One search: every configuration is run once, and its outcome kept under its repr."""

    executor: PatientExecutor
    run: Callable[..., Any]
    strategy: Any
    max_examples: int
    seed: int
    database: ExampleDatabase | None
    ends_at: float | None = None
    outcomes: dict[str, Failure | None] = field(default_factory=dict)
    first: dict[Signature, dict[str, Any]] = field(default_factory=dict)

    def result(self, limits: dict[str, Any]) -> Falsification:
        """Search, shrink, and keep what was found."""
        known = self._known()
        self._run_all([*(config for config, _ in known), *self._generated()])
        findings = []
        done: set[Signature] = set()
        while waiting := [signature for signature in self.first if signature not in done]:
            signature = waiting[0]  # shrinking one may come upon another
            done.add(signature)
            config, shrunk = self._shrunk(signature, known)
            failure = self.outcomes[repr(config)]
            if failure is not None:
                line = _line(self.run, config, limits)
                findings.append(Finding(config, failure, signature[2], shrunk, line))
        self._keep(known, findings)
        return Falsification(findings, len(self.outcomes))

    # -- configurations

    def _generated(self) -> list[dict[str, Any]]:
        """The configurations that Hypothesis would try."""
        configs: list[dict[str, Any]] = []

        def collect(config: Any) -> bool:
            configs.append(_checked(config))
            return False

        with contextlib.suppress(NoSuchExample):
            self._find(collect, Phase.generate)
        return configs

    def _find(self, condition: Callable[[Any], bool], *phases: Phase) -> Any:
        of = settings(max_examples=self.max_examples, database=None, deadline=None, phases=phases)
        return find(self.strategy, condition, settings=of, random=Random(self.seed))

    def _shrunk(self, signature: Signature, known: list[_Known]) -> tuple[dict[str, Any], bool]:
        """The smallest configuration that fails so, and whether the search for it came to its end."""
        try:
            config = self._find(
                lambda config: self._fails_so(_checked(config), signature), Phase.generate, Phase.shrink
            )
        except (NoSuchExample, Flaky):  # it came from the database, or up while another one was shrunk
            first = self.first[signature]
            return first, (first, True) in known
        return config, not self._is_over()

    # -- the database: configurations as they are written, so that reading them runs nobody's code

    def _key(self) -> bytes:
        name = f"{getattr(self.run, '__module__', '')}:{getattr(self.run, '__qualname__', type(self.run).__qualname__)}"
        return f"robust_eval.falsify {name}".encode()

    def _known(self) -> list[_Known]:
        """What failed in earlier searches, and whether it is the smallest."""
        entries = [] if self.database is None else sorted(self.database.fetch(self._key()))
        known = []
        for entry in entries:
            with contextlib.suppress(ValueError, SyntaxError, TypeError):
                config, shrunk = ast.literal_eval(entry.decode())
                known.append((_checked(config), bool(shrunk)))
        return known

    def _keep(self, known: list[_Known], findings: list[Finding]) -> None:
        """Keep what was found in the place of what was known and was tried again."""
        if self.database is None:
            return
        found = [(finding.config, finding.shrunk) for finding in findings]
        for each in known:
            if each not in found and repr(each[0]) in self.outcomes:
                self.database.delete(self._key(), repr(each).encode())
        for each in found:
            with contextlib.suppress(ValueError, SyntaxError):
                if ast.literal_eval(repr(each)) == each:
                    self.database.save(self._key(), repr(each).encode())

    # -- runs

    def _is_over(self) -> bool:
        return self.ends_at is not None and time.monotonic() >= self.ends_at

    def _run_all(self, configs: list[dict[str, Any]]) -> None:
        """Run what was not run yet, in parallel."""
        new = list({repr(config): config for config in configs}.values())
        size = _BATCH * self.executor._max_workers  # noqa: SLF001 - our own
        for begin in range(0, len(new), size):
            if self._is_over():
                return
            batch = new[begin : begin + size]
            futures = [self.executor.submit(Alone.evaluate, config) for config in batch]
            self._note(zip(batch, futures, strict=True))

    def _note(self, ran: Iterable[tuple[dict[str, Any], Future[Any]]]) -> None:
        for config, future in ran:
            failure = _failure_of(future)
            if failure is not None and failure.kind == "timeout" and place_of(failure) is None:
                # A machine so busy that it wrote no stack: once more, so that this is not another way to fail.
                failure = _failure_of(self.executor.submit(Alone.evaluate, config))
            if failure is not None and failure.kind == "startup":
                raise failure.to_exception()
            if failure is not None and failure.kind in _NOT_OF_THE_CONFIGURATION:
                failure = None
            self.outcomes[repr(config)] = failure
            if failure is not None:
                self.first.setdefault(_signature(failure), config)

    def _fails_so(self, config: dict[str, Any], signature: Signature) -> bool:
        if repr(config) not in self.outcomes:
            if self._is_over():
                return False
            self._note([(config, self.executor.submit(Alone.evaluate, config))])
        failure = self.outcomes[repr(config)]
        return failure is not None and _signature(failure) == signature


def _failure_of(future: Future[Any]) -> Failure | None:
    error = future.exception()
    return None if error is None else failure_in(error)


def _checked(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise InvalidArgumentType(
            f"space gives {bounded_repr(config)}, a {type(config).__name__}. A configuration is a dict of parameters."
        )
    return config


def _line(run: Callable[..., Any], config: dict[str, Any], limits: dict[str, Any]) -> str:
    module, name = getattr(run, "__module__", "__main__"), getattr(run, "__qualname__", type(run).__qualname__)
    options = "".join(f", {limit}={value!r}" for limit, value in limits.items() if value is not None)
    return (
        f"import robust_eval as r; from {module} import {name}; "
        f'r.call({name}, r.RunningJob("0.0", {config!r}){options})'
    )
