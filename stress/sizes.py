"""How large a quiet pool is: what must not grow, however long it works and whatever it meets."""

import time
from typing import Any

from robust_eval import Evaluator
from stress.leftovers import open_descriptors
from stress.patience import PATIENCE_S

# What CPython's arenas and glibc's heap keep of their largest moment, a few times the payloads of a wave: 2 to 4 MiB
# however long a run is. The bound is twice that: over 100,000 jobs, a leak of one small object a job is over it.
MOST_GROWTH_BYTES = 8 * 2**20
_STEP_S = 0.01


def sizes(evaluator: Evaluator) -> dict[str, int]:
    """Sizes of the pool once all its workers stand ready and no other process is left of what its jobs made.

    Returns:
        Bytes and numbers of descriptors, by name.
    """
    ends_at = time.monotonic() + PATIENCE_S
    while (stats := evaluator.stats()) and not _is_quiet(evaluator, stats) and time.monotonic() < ends_at:
        time.sleep(_STEP_S)  # a worker that is still being buried is nobody's event to wait for
    return {
        "supervisor RSS": stats["supervisor"]["memory"],
        "supervisor descriptors": stats["supervisor"]["descriptors"],
        "driver descriptors": len(open_descriptors()),
    }


def _is_quiet(evaluator: Evaluator, stats: dict[str, Any]) -> bool:
    return stats["workers"] == {"idle": evaluator.num_workers, "blank": 1} and not stats["queued"]
