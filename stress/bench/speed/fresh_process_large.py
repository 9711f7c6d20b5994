"""Calls a second where each has a process of its own, below a driver that is as large as those of users."""

from importlib import import_module

from stress.bench.speed import fresh_process
from stress.bench.speed.measurement import Figure, Measurement, Target

_LOADED = ("numpy", "pandas", "sklearn.ensemble", "dask.distributed", "ray")


def sample(peer: str, size: int) -> dict[str, float]:
    """The same, once the driver has imported what a search may need beside its evaluator."""
    for name in _LOADED:
        import_module(name)
    return fresh_process.sample(peer, size)


_PEERS = ("futures", "mp_pool", "pynisher")
MEASUREMENT = Measurement(
    "the same, where the driver has imported numpy, pandas, scikit-learn, dask and Ray",
    sample,
    {name: fresh_process.SIZES[name] for name in ("our_pool", "our_executor", "bare_fork", *_PEERS)},
    {"rate": Figure("calls a second", "/s", targets=(Target("3x the best peer", against=_PEERS, factor=3.0),))},
    quick=4,
    note="Those that fork the user's process copy its page tables for each call; ours forks what the function needs.",
)
