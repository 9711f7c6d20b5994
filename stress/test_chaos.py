"""Whole runs, generated: whatever is done to a pool, each job ends once and rightly.

`CHAOS_EXAMPLES=500 pytest stress/test_chaos.py` plays that many random runs instead of the few seeded ones of CI.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stress.chaos import Move, play
from stress.chaos_model import DEEDS, MOST_KILLS, MOST_SUPERVISORS, Setting

EXAMPLES = int(os.environ.get("CHAOS_EXAMPLES", "0"))
RETRIED = ("timeout", "memory", "crash", "exception", "lost")

SETTINGS = st.builds(
    Setting,
    num_workers=st.integers(1, 4),
    max_retries=st.integers(0, 2),
    retry_on=st.lists(st.sampled_from(RETRIED), unique=True).map(tuple),
    grace_period=st.sampled_from([0.0, 0.0, 0.05]),
    max_tasks_per_child=st.sampled_from([None, None, 1, 3]),
    start_method=st.sampled_from([*["fork"] * 7, "spawn"]),
)
INNOCENT = st.sampled_from([name for name, deed in DEEDS.items() if deed.kind is None])
BATCHES = st.lists(INNOCENT | st.sampled_from(sorted(DEEDS)), min_size=1, max_size=25)
MOVES = st.one_of(
    st.tuples(st.just("submit"), BATCHES),
    st.tuples(st.just("gather"), st.integers(1, 20)),
    st.tuples(st.just("begun"), st.integers(1, 40)),
    st.tuples(st.just("kill"), st.just("worker"), st.integers(0, 7)),
    st.tuples(st.just("kill"), st.sampled_from(["worker", "template", "supervisor"]), st.integers(0, 7)),
    st.tuples(st.just("cancel"), st.integers(0, 40)),
    st.tuples(st.just("budget"), st.sampled_from([0.0, 0.05, 0.3, None])),
    st.tuples(st.just("close")),
)


def bounded(moves: list[Move]) -> list[Move]:
    """No more kills than the limits of the pool allow for, and little after the end."""
    kept: list[Move] = []
    for move in moves:
        kills = [other for other in kept if other[0] == "kill"]
        supervisors = [other for other in kills if other[1] == "supervisor"]
        if move[0] == "kill" and len(kills) == MOST_KILLS:
            continue
        if move[:2] == ("kill", "supervisor") and len(supervisors) == MOST_SUPERVISORS:
            continue
        kept.append(move)
    return kept


RUNS = st.tuples(BATCHES, st.lists(MOVES, max_size=8)).map(lambda run: bounded([("submit", run[0]), *run[1]]))
COMMON = settings(deadline=None, suppress_health_check=list(HealthCheck))
SEEDED = settings(COMMON, max_examples=25, derandomize=True, database=None)
RANDOM = settings(COMMON, max_examples=EXAMPLES or 1)


@pytest.mark.ci
@SEEDED
@given(setting=SETTINGS, moves=RUNS)
def test_every_run_ends_as_the_model_allows(setting: Setting, moves: list[Move]):
    """Kills, cancels, budgets, closes and faults: each job settles once, with an outcome that they explain."""
    assert play(setting, moves) == []


@pytest.mark.skipif(not EXAMPLES, reason="set CHAOS_EXAMPLES to the number of runs")
@pytest.mark.timeout(0)
@RANDOM
@given(setting=SETTINGS, moves=RUNS)
def test_many_runs_end_as_the_model_allows(setting: Setting, moves: list[Move]):
    """The same, with other runs each time."""
    assert play(setting, moves) == []
