"""The bounded part of the random walks."""

import pytest

from stress.walk import walk


@pytest.mark.ci
@pytest.mark.parametrize("seed", range(4))
def test_random_walks_keep_every_promise(seed: int) -> None:
    """Ten thousand seeded random moves under changing policies break nothing."""
    assert walk(10_000, seed) == 10_000
