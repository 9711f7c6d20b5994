"""Every reachable state of two workers and three jobs, with every event, by breadth-first search.

What is bounded, honestly: durations are one or two units and the clock moves only to the next
deadline, so events fall on deadlines or between them but at no third distance; a slow start is a
fixed backoff of one unit; a worker with a slot is forked at once, except where forks are the
subject. The `WHOLE` cases are searched to their end: there is no further state. The `NEAREST` have
more moves than can be exhausted in seconds: each is searched breadth-first up to the stated number
of states, from one in which the workers are ready. From every state seen in either, a well-behaved
environment settles every job.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from robust_eval.supervision import events as ev
from robust_eval.supervision import records
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.transitions import JOB_TRANSITIONS, WORKER_TRANSITIONS, Transitions
from stress.books import DEAD
from stress.search import PATIENT, explore, stuck
from stress.virtual import Move, World

GOOD = frozenset(("results", "returns", "ready", "begins_job", "value", "tick"))
FAULTS = frozenset(("dies", "exception", "memory", "broken", "leftovers", "leaving", "reads"))
STARTS = frozenset(("forks", "fails", "dies", "template_exits"))
USER = frozenset(("cancel", "budget", "close"))
SECONDS = {
    "num_workers": 2,
    "spares": 0,
    "dump_s": 1.0,
    "kill_timeout_s": 1.0,
    "start_timeout_s": 2.0,
    "leave_s": 1.0,
    "hold_up_s": 1.0,
    "max_depth": 1,
    "max_start_failures": PATIENT,
}
POLICIES: dict[str, Policy] = {}


class Coarse(Policy):
    """A policy on the grid of whole seconds, pickled by its name."""

    __slots__ = ()

    def backoff_s(self, failures: int) -> float:
        return 1.0

    def __reduce__(self) -> tuple[Any, ...]:
        return _policy, (next(name for name, policy in POLICIES.items() if policy is self),)


def _policy(name: str) -> Policy:
    return POLICIES[name]


@dataclass(frozen=True)
class Case:
    """One search: what the policy is, what may happen, and how many states are enough."""

    name: str
    policy: dict[str, Any]
    alphabet: frozenset[str]
    states: int
    timeout_s: float | None = None
    ready: bool = True

    def world(self) -> World:
        POLICIES[self.name] = Coarse(**{**SECONDS, **self.policy})
        world = World(POLICIES[self.name])
        world.core.dispatcher.mean_s = 1e-9
        world.forks_at_once = "forks" not in self.alphabet
        world.forks(0)
        world.forks(1)
        if self.ready:
            world.ready(0)
            world.ready(1)
        world.submit(*[ev.JobSpec(job_id, self.timeout_s) for job_id in range(3)])
        return world

    def moves(self, world: World) -> Iterator[Move]:
        for move in world.moves():
            process = world.processes[move[1]] if len(move) > 1 else None
            # What a dead worker left is read when its exit is seen, in one turn.
            if (move[0] in self.alphabet and (process is None or process.stage != DEAD)) or move[0] == "exits":
                yield move
        yield from self._user_moves(world)

    def _user_moves(self, world: World) -> Iterator[Move]:
        if "cancel" in self.alphabet:
            wanted = world.core.book.jobs.values()
            yield from (("cancel", job.job_id) for job in wanted if not job.cancelled)
        if "budget" in self.alphabet and world.expires_at is None:
            yield from (("budget", 1.0), ("budget", 0.0))
        if "close" in self.alphabet and not world.core.closing:
            yield ("close",)


ONE_TRY = {"max_start_failures": 1}
WHOLE = [
    Case("plain", ONE_TRY, GOOD | {"dies"}, 8_500, ready=False),
    Case("timeouts", ONE_TRY, GOOD | {"dies"}, 4000, timeout_s=1.0),
]
NEAREST = [
    Case("grace", {"grace_s": 1.0, "max_depth": 2}, GOOD | {"memory", "dies"} | USER, 700, 1.0),
    Case("faults", {"max_depth": 3}, GOOD | FAULTS, 700),
    Case(
        "retries",
        {"max_retries": 1, "retry_on": frozenset(("exception", "crash", "lost", "timeout"))},
        GOOD | {"dies", "exception", "mess"},
        700,
        1.0,
    ),
    Case("one job each", {"max_tasks_per_child": 1, "spares": 1}, GOOD | FAULTS, 700),
    Case("depth", {"max_depth": 3, "max_tasks_per_child": 2}, GOOD | {"dies", "cancel"}, 700),
    Case("starts", {"spares": 1, "max_start_failures": 2}, GOOD | STARTS, 700, None, ready=False),
    Case("user", {"max_depth": 2}, GOOD | USER | {"dies"}, 700),
]
seen: set[tuple[object, str]] = set()


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember which entries of the tables were used."""

    class Watched(Transitions[Any]):
        def __getitem__(self, key: tuple[Any, str]) -> Any:
            seen.add((key[0].name, key[1]))
            return super().__getitem__(key)

    monkeypatch.setattr(records, "WORKER_TRANSITIONS", Watched("worker", WORKER_TRANSITIONS))
    monkeypatch.setattr(records, "JOB_TRANSITIONS", Watched("job", JOB_TRANSITIONS))


@pytest.fixture
def _untraced() -> Iterator[None]:
    """Not measured for coverage, which would take three times as long; other tests run every line of the core.

    The mark `no_cover` of pytest-cov would leave all later forks of this process with one measurement more to begin.
    """
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


@pytest.mark.usefixtures("_untraced")
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_every_state_of(case: Case) -> None:
    """All states that workers which work, hang or die can lead to; from each, everything settles."""
    found = explore(case.world(), case.moves)
    assert found.complete
    assert found.states >= case.states
    assert not stuck(found)


@pytest.mark.usefixtures("_untraced")
@pytest.mark.timeout(300)
def test_the_nearest_states() -> None:
    """No fault in any order breaks an invariant, tells an untruth or leaves a job waiting.

    And the tables hold nothing that cannot happen: these searches take every transition.
    """
    for case in NEAREST:
        found = explore(case.world(), case.moves, case.states)
        assert found.states == case.states, case.name
        assert not stuck(found), case.name
    tables = [*WORKER_TRANSITIONS, *JOB_TRANSITIONS]
    assert {(state.name, cause) for state, cause in tables} - seen == set()
