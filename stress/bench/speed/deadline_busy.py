"""Deadlines while a thread of the driver computes in Python."""

from typing import Any

from stress.bench.speed.deadline import busy, kills, measurement


def sample(peer: str, size: int) -> dict[str, Any]:
    """The same kills with that thread running."""
    with busy():
        return kills(peer, size)


MEASUREMENT = measurement("a job over its time, 1 worker, a thread of the driver computing in Python", sample)
