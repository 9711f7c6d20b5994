"""The bounded part of the soak."""

import pytest

from stress.soak import FAULTS, Soak


@pytest.mark.ci
def test_five_thousand_jobs_of_which_some_are_guilty():
    """Nothing is misattributed, lost, run twice or left behind, and the supervisor does not grow."""
    soak = Soak(5_000, 0.05, seed=5, workers=2, start_method="fork")
    soak.run()
    assert soak.broken == []
    assert soak.verdict.kinds.total() == 5_000


def test_most_of_the_catalogue_takes_part():
    """What is left out is left out by name or because it is heavy."""
    assert len(FAULTS) > 80
