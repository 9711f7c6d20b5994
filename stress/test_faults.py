"""The whole catalogue of faults, each against pools of its own.

`pytest stress/test_faults.py` runs every entry on `process` with both start methods, in several rounds over which the
supervisor must not grow, and every entry that does no harm to its own process on the other methods as well. That takes
a quarter of an hour; `-m ci` runs a seeded sample.
"""

import random
from pathlib import Path

import pytest

from stress.faults import CATALOGUE
from stress.trial import hold_against

ROUNDS = 3
SEED = 24
SAMPLE = 14
LOCAL_METHODS = ("serial", "thread")
START_METHODS = ("fork", "spawn")

LOCAL = [name for name, fault in CATALOGUE.items() if fault.local]
CASES = [(name, start_method) for name in CATALOGUE for start_method in START_METHODS]
CHEAP = [(name, start_method) for name, start_method in CASES if not CATALOGUE[name].heavy]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "start_method"), CASES)
def test_a_fault_costs_its_own_job_alone(name: str, start_method: str, tmp_path: Path):
    """Only the guilty fail, and rightly; nothing runs twice or is left; the pool goes on and does not grow."""
    hold_against(CATALOGUE[name], tmp_path, start_method=start_method, rounds=ROUNDS)


@pytest.mark.parametrize("method", LOCAL_METHODS)
@pytest.mark.parametrize("name", LOCAL)
def test_every_method_reports_alike(name: str, method: str, tmp_path: Path):
    """What a job returns or raises has the same outcome without processes of its own."""
    hold_against(CATALOGUE[name], tmp_path, method=method)


@pytest.mark.ci
@pytest.mark.parametrize(("name", "start_method"), random.Random(SEED).sample(CHEAP, SAMPLE))
def test_a_sample_of_the_catalogue(name: str, start_method: str, tmp_path: Path):
    """As above, with one round."""
    hold_against(CATALOGUE[name], tmp_path, start_method=start_method)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "method"), random.Random(SEED).sample([(n, m) for n in LOCAL for m in LOCAL_METHODS], 6)
)
def test_a_sample_of_what_every_method_reports_alike(name: str, method: str, tmp_path: Path):
    """As above."""
    hold_against(CATALOGUE[name], tmp_path, method=method)


def test_the_catalogue_is_large():
    """Entries come and are not lost by an import that went."""
    assert len(CATALOGUE) > 200
