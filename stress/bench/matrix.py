"""The catalogue of faults on ours and on every peer: `python -m stress.bench.matrix [--peers a,b] [--faults x,y]`.

Each cell is a process of its own with a hard limit (`stress.bench.fault_cell`), judged by the same rules for everyone
(`stress.bench.verdict`). What is known already is not run again unless `--again` is given, so an interrupted run goes
on where it stopped. Writes `results/matrix.json`, the table of the docs and the block of the README.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stress.bench import cell, matrix_table, peers, verdict
from stress.bench.cell import Limits
from stress.bench.kept import Results
from stress.faults import CATALOGUE, Fault

# Those that a pool is most likely to meet; each fails some peer in another way.
GROUPS = {
    "hangs": (
        "hang_in_python",
        "hang_in_c_with_the_gil",
        "hang_deaf_to_polite_signals",
        "hang_with_all_signals_masked",
        "stop_itself",
        "leave_a_daemon_and_hang",
    ),
    "deaths": (
        "exit_with_1",
        "exit_with_0",
        "segfault",
        "abort",
        "kill_itself",
        "overflow_the_c_stack",
        "sys_exit",
        "keyboard_interrupt",
    ),
    "memory": ("eat_memory_with_bytes", "eat_memory_in_a_child"),
    "pickles": (
        "configuration_does_not_pickle",
        "configuration_does_not_unpickle",
        "result_does_not_pickle",
        "result_does_not_unpickle_in_the_driver",
        "exception_does_not_pickle",
        "exception_does_not_unpickle",
    ),
    "traces": (
        "close_all_descriptors",
        "print_fifty_megabytes",
        "leave_a_child",
        "leave_a_child_in_its_session",
        "leave_a_daemon",
    ),
}
REPRESENTATIVE = tuple(name for names in GROUPS.values() for name in names)
_CEILING_BYTES = 3 * 2**30
_RUN_S = 26.0
_AT_ONCE = 2


def run_cell(peer: str, fault: Fault) -> dict[str, Any]:
    """Run one cell and judge it."""
    # To look at the memory of all processes again and again costs a core that the cell needs.
    limits = Limits(run_s=_RUN_S, ceiling_bytes=_CEILING_BYTES if fault.heavy else None)
    ended = cell.run("stress.bench.fault_cell", [peer, fault.name], limits)
    told = ended.told()
    return {
        "letters": verdict.judge(peer, fault, ended),
        "how": ended.how,
        "left": len(ended.left),
        "guilty": [told.get("first", {}).get(str(x)) for x in verdict.GUILTY],
        "innocent_right": verdict.innocent_right(told.get("first", {})),
        "peak_mib": ended.peak_bytes >> 20,
    }


def cells(peer_names: list[str], faults: list[str]) -> Iterator[tuple[str, str]]:
    """Fault by fault, so that a run that is stopped early has whole rows."""
    for fault in faults:
        for peer in peer_names:
            yield peer, fault


def run_all(results: Results, wanted: list[tuple[str, str]], out: Any) -> None:
    """Run cells, two at once, keeping each as it ends. Those that eat memory run one at a time."""
    writing, eating = threading.Lock(), threading.Lock()

    def one(peer: str, name: str) -> None:
        fault = CATALOGUE[name]
        if fault.heavy:
            with eating:
                found = run_cell(peer, fault)
        else:
            found = run_cell(peer, fault)
        with writing:
            results.keep(peer, name, found)
            out.write(f"{peer:>10}  {name:<40} {found['letters'] or 'passed'}\n")
            out.flush()

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        futures = [threads.submit(one, *pair) for pair in wanted]
        try:
            for future in futures:
                future.result()
        finally:  # on an interrupt those that run are waited for: they leave nothing behind
            threads.shutdown(wait=False, cancel_futures=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m stress.bench.matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="adapters, separated by commas")
    parser.add_argument("--faults", default=",".join(REPRESENTATIVE), help="entries of the catalogue")
    parser.add_argument("--all", action="store_true", help="the whole catalogue")
    parser.add_argument("--again", action="store_true", help="run what is known already, too")
    parser.add_argument("--write-only", action="store_true", help="run nothing, write the tables from what is known")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Run what is wanted and write the tables."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = parse(arguments)
    names = options.peers.split(",")
    faults = list(CATALOGUE) if options.all else options.faults.split(",")
    results = Results.load()
    if not options.write_only:
        results.describe_machine({name: peers.version(peers.load(name)) for name in names})
        wanted = [
            pair
            for pair in cells([name for name in names if peers.version(peers.load(name))], faults)
            if options.again or not results.knows(*pair)
        ]
        run_all(results, wanted, sys.stdout)
    sys.stdout.write(matrix_table.full(results, faults if options.all else list(REPRESENTATIVE)) + "\n")
    matrix_table.write(results, GROUPS)


if __name__ == "__main__":
    main(sys.argv[1:])
