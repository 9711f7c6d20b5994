"""The first result of a pool that did not exist before."""

import importlib
import time

from stress.bench import peers
from stress.bench.functions import noop
from stress.bench.speed.measurement import Figure, Measurement, Target

# What a program that uses the peer has imported before it makes its pool.
MODULES = {
    "ours": "robust_eval.evaluators.base",  # which is what `from robust_eval import Evaluator` imports
    "our_pool": "robust_eval.processes.pool",
    "futures": "concurrent.futures.process",
    "mp_pool": "multiprocessing.pool",
    "pebble": "pebble",
    "deadpool": "deadpool",
    "loky": "loky",
    "mpire": "mpire",
    "joblib": "joblib",
    "billiard": "billiard.pool",
    "pynisher": "pynisher",
    "ray": "ray",
    "dask": "distributed",
    "deephyper": "deephyper.evaluator",
}


def sample(peer: str, _size: int) -> dict[str, float]:
    """From the making of the pool to the first value, imports of the package not counted."""
    adapter = peers.load(peer)
    importlib.import_module(MODULES[peer])
    begun_at = time.perf_counter()
    opened = adapter.make(noop, peers.Settings(num_workers=2))
    (outcome,) = opened.in_order([{"x": 0}])
    took_s = time.perf_counter() - begun_at
    assert outcome.error is None
    opened.close()
    return {"first": 1e3 * took_s}


MEASUREMENT = Measurement(
    "first result from a cold pool of 2 workers",
    sample,
    dict.fromkeys(MODULES, 1),
    {
        "first": Figure(
            "milliseconds",
            "ms",
            more_is_better=False,
            targets=(
                Target("ahead of those that do not fork you", against=("deadpool", "loky", "joblib", "ray", "dask")),
            ),
        )
    },
    quick=1,
    note="deadpool, loky, joblib, Ray and dask do not fork the user's process; the others do, ours does not.",
)
