"""A real Ray cluster of three nodes on this machine, one for all tests of a session, and what is taken from it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from waiting import wait_until

# Nodes on 127.0.0.1 connect only so; the rest keeps Ray to this machine.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}
STORE_BYTES = 80 * 2**20
_RAY_PROCESSES = ("raylet", "gcs_server", "ray::", "default_worker.py", "dashboard", "log_monitor", "ray/_private")


@contextmanager
def cluster_of(nodes: int, **resources: Any) -> Iterator[Any]:
    """A cluster with the driver connected to it; every process of it is gone at the end."""
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
        ray.shutdown()
        cluster.shutdown()
        left = set(psutil.Process().children(recursive=True)) - before
        psutil.wait_procs(left, timeout=10)
        for process in left:
            with_suppressed(process)


def with_suppressed(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def is_ray(process: psutil.Process) -> bool:
    """Whether the process is one of Ray's own, which come and go as Ray pleases."""
    try:
        command = " ".join(process.cmdline()[:6])
    except psutil.Error:
        return False
    return any(name in command for name in _RAY_PROCESSES) and "robust_eval" not in command
