"""What an import costs."""

import subprocess
import sys
import time

from stress.bench.speed.cold_start import MODULES
from stress.bench.speed.measurement import Figure, Measurement, Target


def _seconds(code: str) -> float:
    begun_at = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - begun_at


def sample(peer: str, size: int) -> dict[str, float]:
    """The quickest of several interpreters that import it, less the quickest that imports nothing."""
    module = {"asyncio": "asyncio", "ours": "robust_eval"}.get(peer) or MODULES[peer]
    bare = min(_seconds("pass") for _ in range(size))
    return {"import": 1e3 * (min(_seconds(f"import {module}") for _ in range(size)) - bare)}


MEASUREMENT = Measurement(
    "import of the package",
    sample,
    {"ours": 7, "asyncio": 7}
    | dict.fromkeys(("pebble", "deadpool", "loky", "mpire", "joblib", "billiard", "ray", "dask", "deephyper"), 3),
    {
        "import": Figure(
            "milliseconds",
            "ms",
            more_is_better=False,
            targets=(Target("3x import asyncio", against=("asyncio",), factor=3.0),),
        )
    },
    quick=3,
    titles={"asyncio": "asyncio"},
)
