"""One adapter a peer, all behind the contract of `stress.bench.peers.contract`.

A peer is imported by its adapter when a session is made, and never here: what is not installed is told as such.
"""

import importlib
import importlib.metadata
import platform

from stress.bench.peers.contract import Outcome, Peer, Session, Settings

__all__ = ["OURS", "PEERS", "Outcome", "Peer", "Session", "Settings", "load", "version"]

OURS = ("ours", "our_pool")
# In the order of every table.
PEERS = (
    *OURS,
    "futures",
    "mp_pool",
    "pebble",
    "deadpool",
    "loky",
    "mpire",
    "joblib",
    "billiard",
    "pynisher",
    "ray",
    "dask",
    "deephyper",
)
# What only some measurements of speed have: no peers, or ours in another dress.
BESIDE = ("pipeline", "plain_pipeline", "relayed_pipeline", "bare_fork", "our_executor")


def load(name: str) -> Peer:
    """The adapter of a peer.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in (*PEERS, *BESIDE):
        msg = f"peer {name!r} is unknown; choose from {', '.join(PEERS)}"
        raise ValueError(msg)
    return importlib.import_module(f"stress.bench.peers.with_{name}").PEER


def version(peer: Peer) -> str | None:
    """The version of what the adapter drives; None where it is not installed."""
    if peer.distribution is None:
        return platform.python_version()
    if peer.distribution == "robust-eval":  # this checkout, installed or not
        return "here"
    try:
        return importlib.metadata.version(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
