"""No-op jobs through `ray` and `mpicomm` beside DeepHyper's evaluators of the same names, in one run on one machine.

    python -m stress.hosts.bench --jobs 4000 --deephyper /path/to/venv/bin/python

Each library runs in an interpreter of its own (DeepHyper's packages may differ), one after the other, in turns, so that
what else the machine does meets both. Prints jobs per second of each turn, and the ratio of the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
PROGRAM = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
library, method, jobs, slots, answer = sys.argv[1:]
jobs, slots = int(jobs), int(slots)

def run(job):
    return 1.0

def measure(evaluator):
    evaluator.submit([{"x": 1}] * (4 * slots))
    evaluator.gather("ALL")
    begun_at = time.monotonic()
    evaluator.submit([{"x": x} for x in range(jobs)])
    done = evaluator.gather("ALL")
    done = done[0] if isinstance(done, tuple) else done
    assert len(done) == jobs
    with open(answer, "w") as file:
        json.dump(jobs / (time.monotonic() - begun_at), file)

if library == "deephyper":
    from deephyper.evaluator import RayEvaluator, MPICommEvaluator
else:
    from robust_eval import RayEvaluator, MPICommEvaluator
if method == "ray":
    quiet = {"object_store_memory": 80 * 2**20, "log_to_driver": False}
    evaluator = RayEvaluator(run, address="local", num_cpus=slots, ray_kwargs=quiet)
    measure(evaluator)
    evaluator.close()
else:
    from mpi4py import MPI
    options = {}
    if library == "deephyper":  # its default storage, a window of MPI, fails an assertion of MPICH 5
        from deephyper.evaluator.storage import MemoryStorage
        options["storage"] = MemoryStorage()
    with MPICommEvaluator(run, **options) as evaluator:
        if evaluator is not None and MPI.COMM_WORLD.Get_rank() == 0:
            measure(evaluator)
"""


def measured(python: str, library: str, method: str, jobs: int, slots: int) -> float:
    """Jobs per second of one turn."""
    with tempfile.TemporaryDirectory() as directory:
        program, answer = Path(directory) / "program.py", Path(directory) / "answer.json"
        program.write_text(PROGRAM)
        launcher = [str(Path(python).with_name("mpiexec")), "-n", str(slots + 1)] if method == "mpicomm" else []
        command = [*launcher, python, str(program), library, method, str(jobs), str(slots), str(answer)]
        environment = {**os.environ, **RAY, "PYTHONPATH": str(ROOT) if library == "robust_eval" else ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        if not answer.exists():
            raise RuntimeError(done.stdout + done.stderr)
        return float(json.loads(answer.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["ray", "mpicomm"])
    parser.add_argument("--deephyper", required=True, help="the interpreter that has DeepHyper, Ray and mpi4py")
    given = parser.parse_args()
    pythons = {"robust_eval": sys.executable, "deephyper": given.deephyper}
    for method in given.methods:
        rates: dict[str, list[float]] = {library: [] for library in pythons}
        for _ in range(given.turns):
            for library, python in pythons.items():
                rates[library].append(measured(python, library, method, given.jobs, given.slots))
        for library, each in rates.items():
            print(f"{method:8} {library:12}", *(f"{rate:8.0f}" for rate in each), "jobs/s")  # noqa: T201
        ours, theirs = (statistics.median(rates[library]) for library in ("robust_eval", "deephyper"))
        print(f"{method:8} ratio of the medians {ours / theirs:.1f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
