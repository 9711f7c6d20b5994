"""A hundred thousand jobs, one in ten of them guilty: `python -m stress.soak --jobs 100000 --faults 0.1`.

Jobs go in waves, a seeded mixture of innocents and of faults from the catalogue, all drawn with the same weight. A
fault is left out if it costs more than a quarter of a second or a hundred megabytes; one that hangs is killed after
0.2 s. That makes 70 ms for the average fault and well under 1 ms for an innocent job: ten thousand faults in a hundred
thousand jobs take about ten minutes on two cores, and 250 in 5,000 less than half a minute.

Each job leaves a line in a file, so that a job that ran twice is seen, and says what state it met its worker in.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robust_eval import Job, ProcessPoolEvaluator
from stress.fault import Fault
from stress.faults import CATALOGUE, behave, configuration
from stress.leftovers import Leftovers, marked_environment
from stress.patience import patience
from stress.sizes import MOST_GROWTH_BYTES, sizes

WAVE = 500
TIMEOUT_S = 0.2
WARM_UP = 0.2
TOO_COSTLY = frozenset({
    "exception_of_a_hundred_megabytes",
    "exception_of_a_million_lines",
    "leave_two_hundred_threads",
    "print_fifty_megabytes",
    "print_fifty_megabytes_and_raise",
    "result_of_a_hundred_megabytes",
    "run_out_of_cpu_time",
})  # fmt: skip
_PADDING_BYTES = 200_000
_LINE_EVERY_S = 2.0

# Its outcome depends on what else lies in its worker's inbox.
OF_ITS_NEIGHBOURS = {"forge_reports_for_others"}
# Those that need a pool made for them (one that tries again what a killed relative took along) are tried alone.
FAULTS = tuple(
    fault
    for name, fault in sorted(CATALOGUE.items())
    if not (fault.heavy or fault.pool or fault.reruns) and name not in TOO_COSTLY | OF_ITS_NEIGHBOURS
)


def mixture(jobs: int, faults: float, seed: int, diary: Path) -> Iterator[dict[str, Any]]:
    """The configurations of a soak: the same for the same seed.

    Args:
        jobs: how many.
        faults: the share of the guilty.
        seed: of every choice.
        diary: the file that every job leaves a line in.
    """
    rng = random.Random(seed)
    for x in range(jobs):
        if rng.random() < faults:
            yield configuration(x, diary, rng.choice(FAULTS))
        else:
            padding = {"padding": bytes(_PADDING_BYTES)} if rng.random() < 0.01 else {}
            yield configuration(x, diary) | padding


def timeout_of(config: dict[str, Any]) -> float | None:
    """Only what hangs has a limit: on a busy machine any other job may take its time."""
    fault = _fault_of(config)
    return TIMEOUT_S if fault is not None and "job_timeout" in fault.limits else None


def memory_limit_of(config: dict[str, Any]) -> int | None:
    """As the catalogue says."""
    fault = _fault_of(config)
    return None if fault is None else fault.limits.get("memory_limit")


def _fault_of(config: dict[str, Any]) -> Fault | None:
    return None if config["fault"] is None else CATALOGUE[config["fault"]]


class Verdict:
    """Judges each job as it is gathered, and counts."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.gathered: Counter[int] = Counter()
        self.met: Counter[str] = Counter()
        self.wrong: list[str] = []

    def hear(self, job: Job) -> None:
        """Take the outcome of one job."""
        kind = "ok" if job.failure is None else str(job.failure.kind)
        self.kinds[kind] += 1
        self.gathered[job.config["x"]] += 1
        if "met" in job.metadata:
            self.met[job.metadata["met"]] += 1
        complaint = _complaint(job, _fault_of(job.config))
        if complaint:
            self.wrong.append(f"job {job.config['x']} ({job.config['fault'] or 'innocent'}): {complaint}")

    def never_gathered(self, jobs: int) -> list[int]:
        """The jobs that have no outcome, or more than one."""
        return [x for x in range(jobs) if self.gathered[x] != 1]


def _complaint(job: Job, fault: Fault | None) -> str | None:
    """What is wrong with an outcome, if anything."""
    kinds = () if fault is None else fault.kinds
    if job.failure is None:
        if kinds:
            return f"delivered {job.objective!r} and should have failed as {kinds}"
        return None if job.objective == 2.0 * job.config["x"] else f"delivered {job.objective!r}"
    if job.failure.kind not in kinds:
        return f"was reported as {job.failure!r}, not as {kinds or 'its own value'}"
    # What a check says of a timeout hangs on a stack dump of 5 ms, which a busy machine does not always give.
    if fault is not None and fault.check is not None and job.failure.kind != "timeout":
        try:
            fault.check(job)
        except AssertionError as error:
            return str(error)
    return None


class Soak:
    """One soak.

    Args:
        jobs: how many.
        faults: the share of the guilty.
        seed: of every choice.
        workers: how many jobs run at once.
        start_method: of the pool.
    """

    def __init__(self, jobs: int, faults: float, seed: int, workers: int, start_method: str) -> None:
        self._jobs, self._faults, self._seed = jobs, faults, seed
        self._workers, self._start_method = workers, start_method
        self.verdict = Verdict()
        self.broken: list[str] = []
        self._begun_at = time.monotonic()
        self._said_at = 0.0

    def run(self) -> None:
        """Run it and print the table; `broken` says what did not hold."""
        with tempfile.TemporaryDirectory() as directory, marked_environment():
            diary = Path(directory) / "diary"
            leftovers = Leftovers(Path(f"{diary}.pids"))
            growth = self._run_jobs(diary)
            took_s = time.monotonic() - self._begun_at
            runs = Counter(map(int, diary.read_text().split()))
            self._report(took_s, runs, leftovers.found(), growth)

    def _run_jobs(self, diary: Path) -> dict[str, int]:
        evaluator = ProcessPoolEvaluator(behave, num_workers=self._workers, start_method=self._start_method)
        with evaluator:
            before: dict[str, int] | None = None
            supervisor = evaluator._pool.supervisor_pid
            wave: list[dict[str, Any]] = []
            for number, config in enumerate(mixture(self._jobs, self._faults, self._seed, diary), 1):
                wave.append(config)
                if len(wave) == WAVE or number == self._jobs:
                    evaluator.submit(wave, job_timeout=timeout_of, memory_limit=memory_limit_of)
                    wave = []
                    self._gather(evaluator, WAVE)
                if before is None and number >= WARM_UP * self._jobs:
                    self._gather(evaluator, 0)
                    before = sizes(evaluator)
            self._gather(evaluator, 0)
            after = sizes(evaluator)
            if evaluator._pool.supervisor_pid != supervisor:
                self.broken.append("the supervisor died")
        return {name: after[name] - (before or after)[name] for name in after}

    def _gather(self, evaluator: ProcessPoolEvaluator, most_left: int) -> None:
        """Gather until no more than so many are left. A job that does not settle is ended with the pool."""
        outstanding = evaluator.num_jobs_submitted - evaluator.num_jobs_gathered
        if outstanding <= most_left:
            return
        with patience(evaluator):
            for job in evaluator.gather("BATCH", outstanding - most_left):
                self.verdict.hear(job)
        evaluator.jobs.clear()  # what the driver keeps of each job for its user is not what is measured here
        evaluator.jobs_done.clear()
        self._say()

    # -- what is printed

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_at > _LINE_EVERY_S:
            self._said_at = now
            done = self.verdict.kinds.total()
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.verdict.kinds.most_common())
            rate = done / (now - self._begun_at)
            print(f"{done:>8} of {self._jobs} jobs, {rate:6.0f}/s: {kinds}", flush=True)  # noqa: T201 - the live line

    def _report(self, took_s: float, runs: Counter[int], left: list[str], growth: dict[str, int]) -> None:
        lost = self.verdict.never_gathered(self._jobs)
        twice = [x for x, count in runs.items() if count != 1]
        usual = max(self.verdict.met.values(), default=0)
        rows = {
            "misattributed": (len(self.verdict.wrong), 0),
            "lost": (len(lost), 0),
            "duplicated": (len(twice), 0),
            "met a changed worker": (self.verdict.met.total() - usual, 0),
            "orphans": (len(left), 0),
            "supervisor RSS growth": (growth["supervisor RSS"], MOST_GROWTH_BYTES),
            "supervisor descriptor growth": (growth["supervisor descriptors"], 0),
            "driver descriptor growth": (growth["driver descriptors"], 0),
        }
        details = [*self.verdict.wrong, *left, *(f"job {x} ran {runs[x]} times" for x in twice)]
        details += [f"job {x} was gathered {self.verdict.gathered[x]} times" for x in lost]
        self.broken += [f"{name}: {count}" for name, (count, most) in rows.items() if count > most]
        self.broken += details[:20]
        pool = f"seed {self._seed}, {self._workers} workers, {self._start_method}"
        lines = [f"{pool}: {self._jobs} jobs in {took_s:.0f} s"]
        lines += [f"  {kind:<30}{count:>9}" for kind, count in self.verdict.kinds.most_common()]
        for name, (count, most) in rows.items():
            bound = f" of at most {most}" if most else ""
            lines.append(f"{name:<32}{count:>9}{bound}")
        print("\n".join(lines), flush=True)  # noqa: T201 - the table


def main() -> int:
    """Soak as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--faults", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-method", choices=("fork", "spawn"), default="fork")
    given = parser.parse_args()
    soak = Soak(given.jobs, given.faults, given.seed, given.workers, given.start_method)
    soak.run()
    for line in soak.broken:
        print(line, file=sys.stderr)  # noqa: T201 - what did not hold
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
