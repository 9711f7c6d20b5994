"""A real Ray cluster on this machine, gone without a trace when its block ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

# Nodes on one machine connect only so; the rest keeps Ray to this machine.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What else this machine runs must not make Ray end actors of a test.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
CPUS, GPUS = 2, 2
STORE_BYTES = 80 * 2**20
_END_S = 15.0


@contextmanager
def cluster_of(nodes: int, **resources: Any) -> Iterator[Any]:
    """A cluster with the driver connected to it.

    Raises:
        AssertionError: a process of it is left at the end.
    """
    os.environ.update(ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    before = set(psutil.Process().children(recursive=True))
    cluster = Cluster()
    try:
        for _ in range(nodes):
            cluster.add_node(object_store_memory=STORE_BYTES, include_dashboard=False, **resources)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ours = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        cluster.shutdown()
        _, left = psutil.wait_procs(ours, timeout=_END_S)
        for process in left:
            process.kill()
    assert not left, left
