"""The entry of a worker that is a fresh interpreter (`start_method="spawn"`)."""

import json
import os
import sys

from robust_eval.processes import loading, system
from robust_eval.processes.streams import Streams
from robust_eval.processes.worker import Bundle, run_worker


def main(argv: list[str]) -> None:
    """Run a worker. Called by the command that `loading.command` makes; the session and the parent are set already.

    Args:
        argv: the descriptor of the bundle, then as JSON the version that made it with the
            driver's `sys.argv`, and the worker's descriptors.
    """
    system.adopt_orphans()
    bundle_fd, (version, sys.argv), fds = int(argv[0]), json.loads(argv[1]), json.loads(argv[2])

    def load() -> Bundle:
        bundle: Bundle = loading.load_bundle(bundle_fd, version)
        loading.share_main(bundle)
        return bundle

    os._exit(run_worker(fds, load, Streams()))
