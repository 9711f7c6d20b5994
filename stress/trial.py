"""One fault against one pool: the guilty are reported, the innocent never notice, nothing is left.

`hold_against` is the harness of `stress/test_faults.py`, which runs the whole catalogue, and of
`tests/test_process_faults.py`, which runs the part of it that is quick.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robust_eval import Evaluator, Job, ProcessPoolEvaluator
from robust_eval.evaluators import process
from robust_eval.processes.pool import PoolSettings
from stress.fault import Fault
from stress.faults import behave, configuration
from stress.leftovers import Leftovers, marked_environment
from stress.patience import patience
from stress.sizes import MOST_GROWTH_BYTES, sizes

FIRST_JOBS, FIRST_GUILTY = 20, (3, 11)
ROUND_JOBS, ROUND_GUILTY = 8, (4,)
LAST_JOBS = 4
WORKERS = 2


class Trial:
    """One evaluator that meets one fault in several rounds, and what came of it.

    Args:
        fault: what the guilty jobs do.
        directory: an empty one, for the diary of the jobs and for the temporary files of everybody.
        method: of evaluation.
        start_method: of the workers; for `process` alone.
        rounds: how often the fault is met. Over more than one, the supervisor must not grow.
    """

    def __init__(self, fault: Fault, directory: Path, method: str, start_method: str, rounds: int) -> None:
        self._fault = fault
        self._diary = directory / "diary"
        self._rounds = rounds
        self._is_pool = method == "process"
        self._method = method
        self._kwargs: dict[str, Any] = {"num_workers": 1 if method == "serial" else WORKERS}
        if self._is_pool:
            self._kwargs |= {"start_method": start_method, **fault.pool}
        self._count = 0
        self.guilty: list[Job] = []
        self.innocent: list[Job] = []
        self.grown: dict[str, int] = {}

    def run(self) -> None:
        """All rounds, then jobs without a fault; the evaluator is closed then."""
        evaluator = Evaluator.create(behave, self._method, self._kwargs)
        with evaluator:
            self._round(evaluator, FIRST_JOBS, FIRST_GUILTY)
            before = sizes(evaluator) if self._is_pool and self._rounds > 1 else {}
            for _ in range(self._rounds - 1):
                self._round(evaluator, ROUND_JOBS, ROUND_GUILTY)
            after = sizes(evaluator) if before else {}
            self._round(evaluator, LAST_JOBS, ())
        self.grown = {name: after[name] - before[name] for name in after}

    def _round(self, evaluator: Evaluator, jobs: int, guilty: tuple[int, ...]) -> None:
        first, self._count = self._count, self._count + jobs
        wicked = {first + number for number in guilty}
        configs = [
            configuration(x, self._diary, self._fault if x in wicked else None) for x in range(first, first + jobs)
        ]
        evaluator.submit(configs, **self._limits())
        with patience(evaluator) as lost:
            settled = evaluator.gather("ALL")
        assert not lost.is_set(), "nothing settled for half a minute"
        alive = [pid for pid in self._noted() if _is_alive(pid)]
        assert not alive, f"processes of settled jobs: {alive}"
        self.guilty += [job for job in settled if job.config["x"] in wicked]
        self.innocent += [job for job in settled if job.config["x"] not in wicked]

    def _limits(self) -> dict[str, Any]:
        """Only the guilty have a limit: on a busy machine any other job may take its time."""
        if not self._is_pool:
            return {}
        return {
            name: (lambda config, value=value: value if config["fault"] else None)
            for name, value in self._fault.limits.items()
        }

    def _noted(self) -> list[int]:
        """The processes that guilty jobs have left behind."""
        notes = Path(f"{self._diary}.pids")
        return [int(line) for line in notes.read_text().split()] if notes.exists() else []

    # -- the five invariants, but for what is left

    def judge(self) -> None:
        """Fail with what does not hold."""
        assert sorted(job.config["x"] for job in self.guilty + self.innocent) == list(range(self._count))
        self._judge_innocent()
        for job in self.guilty:
            self._judge_guilty(job)
        self._judge_runs()
        assert self.grown.get("supervisor RSS", 0) <= MOST_GROWTH_BYTES, self.grown
        assert self.grown.get("supervisor descriptors", 0) <= 0, self.grown

    def _judge_innocent(self) -> None:
        """Each has its own right result and met an untouched worker."""
        wrong = {x: job for job in self.innocent if job.objective != 2.0 * (x := job.config["x"])}
        assert not wrong, {x: (job.failure and job.failure.render()) or job.objective for x, job in wrong.items()}
        met = {job.metadata["met"] for job in self.innocent} if self._is_pool else set()
        assert len(met) <= 1, "\n".join(met)

    def _judge_guilty(self, job: Job) -> None:
        """It is reported with the right kind, or delivers its value where nothing else is the matter."""
        fault = self._fault
        if fault.kinds:
            assert job.failure is not None, job.objective
            assert job.objective == ProcessPoolEvaluator.FAIL_RETURN_VALUE
            assert job.failure.kind in fault.kinds, job.failure.render()
        else:
            assert job.failure is None, job.failure.render()
            assert job.objective == 2.0 * job.config["x"]
        if fault.check is not None and self._is_pool:
            fault.check(job)

    def _judge_runs(self) -> None:
        """Every job ran once; a guilty one may have failed before it ran."""
        if self._fault.reruns:
            return
        runs = Counter(map(int, self._diary.read_text().split()))
        guilty = {job.config["x"] for job in self.guilty}
        never = guilty if runs.keys().isdisjoint(guilty) and self._fault.kinds else ()
        assert runs == {x: 1 for x in range(self._count) if x not in never}


def hold_against(
    fault: Fault, directory: Path, *, method: str = "process", start_method: str = "fork", rounds: int = 1
) -> None:
    """Run a trial and check the five invariants.

    Raises:
        AssertionError: one does not hold.
    """
    trial = Trial(fault, directory, method, start_method, rounds)
    with marked_environment(), patient_dumps(), temporary_directory() as temporary:
        leftovers = Leftovers(directory / "diary.pids")
        trial.run()
        left = [*leftovers.found(), *(f"temporary file {path.name}" for path in temporary.iterdir())]
        assert not left, left
    trial.judge()


@contextmanager
def patient_dumps() -> Iterator[None]:
    """Wait for a stack dump longer than the usual 5 ms, which it takes where all cores are busy with other things."""

    def settings(**given: Any) -> PoolSettings:
        return PoolSettings(**{**given, "policy": {**given["policy"], "dump_s": 0.5}})

    process.PoolSettings = settings  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        process.PoolSettings = PoolSettings  # type: ignore[misc]


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Within the block, this process and those it starts make their temporary files there.

    Not below the directory of the test: the sockets of `multiprocessing` want a short path.
    """
    before, path = os.environ.get("TMPDIR"), tempfile.mkdtemp()
    os.environ["TMPDIR"], tempfile.tempdir = path, None
    try:
        yield Path(path)
    finally:
        tempfile.tempdir = None
        shutil.rmtree(path, ignore_errors=True)
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _is_alive(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except OSError:
        return False
