"""One module a measurement; each has a `MEASUREMENT`. In the order of the table."""

import importlib

from stress.bench.speed.measurement import Measurement

__all__ = ["NAMES", "Measurement", "load"]

NAMES = (
    "evaluator_throughput",
    "pool_throughput",
    "round_trip",
    "fresh_process",
    "fresh_process_large",
    "arrays",
    "payloads",
    "deadline_idle",
    "deadline_busy",
    "cold_start",
    "idle_memory",
    "queued_memory",
    "sleepers",
    "thousand",
    "million",
    "imports",
    "curve",
)


def load(name: str) -> Measurement:
    """A measurement by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in NAMES:
        msg = f"measurement {name!r} is unknown; choose from {', '.join(NAMES)}"
        raise ValueError(msg)
    return importlib.import_module(f"stress.bench.speed.{name}").MEASUREMENT
