"""The entry of a worker that is a fresh interpreter (`start_method="spawn"`)."""

import json
import os
import sys

from robust_eval.processes import loading, system
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.channels import Channels
from robust_eval.processes.heard import Calls
from robust_eval.processes.hygiene import Builtins
from robust_eval.processes.streams import Streams
from robust_eval.processes.worker import Worker, open_ledger, run_worker


def main(argv: list[str]) -> None:
    """Run a worker. Called by the command that `loading.command` makes; the session and the parent are set already.

    Args:
        argv: the descriptor of the bundle, that of what the template was told (of which the version that made the
            bundle and the driver's `sys.argv` matter here), that of the ledger, and as JSON the worker's descriptors.
    """
    system.adopt_orphans()
    bundle_fd, init_fd, ledger_fd, fds = *map(int, argv[:3]), json.loads(argv[3])
    init = json.loads(system.content_of(init_fd))
    os.close(init_fd)
    calls = Calls().listen()
    version, sys.argv = init["version"], init["sys_argv"]

    def load() -> Bundle:
        bundle: Bundle = loading.load_bundle(bundle_fd, version)
        loading.share_main(bundle)
        loading.share_sources(bundle.sources)
        return bundle

    worker = Worker(Channels(), open_ledger(ledger_fd), Streams(), Builtins(), calls)
    os._exit(run_worker(worker, fds, load))
