"""Plays one run: makes a pool, makes the moves, and asks the model what it thinks of the outcomes."""

import math
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from robust_eval import Job, ProcessPoolEvaluator, RunningJob
from robust_eval.errors import EvaluatorClosed
from stress.chaos_model import DEEDS, Account, Model, Setting
from stress.faults_ending import hang
from stress.faults_traces import write_garbage_everywhere
from stress.leftovers import Leftovers, marked_environment
from stress.patience import PATIENCE_S, patience

Move: TypeAlias = tuple[Any, ...]
_LINGER_S = 0.03
_STEP_S = 0.002


# -- in the worker


def perform(job: RunningJob) -> Any:
    """Be the run function of every job: note the begin, then do the deed."""
    diary = os.open(job["diary"], os.O_RDWR | os.O_APPEND | os.O_CREAT)
    os.write(diary, b"%d\n" % job["x"])
    before = Path(job["diary"]).read_text().split().count(str(job["x"]))
    os.close(diary)
    return _DOING.get(job["deed"], _deliver)(job, before)


def _deliver(job: RunningJob, _begins: int) -> float:
    return float(job["x"])


def _linger(job: RunningJob, _begins: int) -> float:
    time.sleep(_LINGER_S)
    return float(job["x"])


def _leave_a_daemon(job: RunningJob, _begins: int) -> float:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            hang()
        os._exit(0)
    os.wait()
    return float(job["x"])


def _die_with_a_daemon(job: RunningJob, begins: int) -> None:
    _leave_a_daemon(job, begins)
    os._exit(1)


def _change_the_worker(job: RunningJob, _begins: int) -> float:
    os.environ["CHANGED"] = str(job["x"])
    os.chdir("/")
    return float(job["x"])


def _hang_deaf(_job: RunningJob, _begins: int) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    while True:
        try:
            hang()
        except BaseException:  # noqa: BLE001, S112 - deaf to the polite stop as well
            continue


def _raise(error: BaseException) -> None:
    raise error


def _fail_at_first(job: RunningJob, begins: int) -> float:
    if begins == 1:
        raise ValueError
    return float(job["x"])


_DOING: dict[str, Callable[[RunningJob, int], Any]] = {
    "linger": _linger,
    "leave a daemon": _leave_a_daemon,
    "change the worker": _change_the_worker,
    "raise": lambda _job, _begins: _raise(ValueError()),
    "exit": lambda _job, _begins: os._exit(1),
    "die with a daemon": _die_with_a_daemon,
    "hang": lambda _job, _begins: hang(),
    "hang deaf": _hang_deaf,
    "raise a memory error": lambda _job, _begins: _raise(MemoryError()),
    "eat memory": lambda _job, _begins: hang(b"x" * 400 * 2**20),
    "deliver nan": lambda _job, _begins: math.nan,
    "deliver a lock": lambda job, _begins: {"objective": job["x"], "metadata": {"lock": threading.Lock()}},
    "write garbage": lambda job, _begins: write_garbage_everywhere(job),
    "fail at first": _fail_at_first,
}


# -- in the driver


class Player:
    """Makes the moves of one run.

    Args:
        setting: of the pool.
        directory: for the diary.
    """

    def __init__(self, setting: Setting, directory: Path) -> None:
        self.setting = setting
        self.account = Account()
        self.jobs: list[Job] = []
        self.complaints: list[str] = []
        self._diary = directory / "diary"
        self._diary.touch()
        self._submitted = 0
        self._pool = ProcessPoolEvaluator(perform, **setting.arguments())

    def play(self, moves: Iterable[Move]) -> None:
        """Make the moves, then end the run and judge it."""
        try:
            with patience(self._pool) as lost:
                for name, *arguments in moves:
                    getattr(self, f"_{name}")(*arguments)
                self._end()
            if lost.is_set():
                self.complaints.append("jobs did not settle until the pool was closed")
        finally:
            self._pool.close()
        settled = sorted(job.config["x"] for job in self.jobs)
        if settled != list(range(self._submitted)):
            self.complaints.append(f"of {self._submitted} jobs {settled} settled")
        self.complaints += Model(self.setting, self.account, self.begins()).judge(self.jobs)

    def begins(self) -> Counter[int]:
        """How often each job began."""
        return Counter(map(int, self._diary.read_text().split()))

    def _end(self) -> None:
        """All that was submitted settles, and a pool that was not closed still works."""
        self._gather(self._submitted)
        if not self.account.closed:
            self._pool.set_timeout(None)
            self._submit(["deliver"] * 2 * self.setting.num_workers)
            self._gather(self._submitted)

    # -- moves

    def _submit(self, deeds: list[str]) -> None:
        configs = []
        for x, deed in enumerate(deeds, self._submitted):
            lock = {"lock": threading.Lock()} if deed == "carry a lock" else {}
            configs.append({"x": x, "deed": deed, "diary": str(self._diary), **lock})
        try:
            self._pool.submit(
                configs,
                job_timeout=lambda config: DEEDS[config["deed"]].job_timeout,
                memory_limit=lambda config: DEEDS[config["deed"]].memory_limit,
            )
        except EvaluatorClosed:
            if not self.account.closed:
                self.complaints.append("the pool was closed by itself, or out of patience")
        else:
            self._submitted += len(deeds)

    def _gather(self, size: int) -> None:
        size = min(size, self._submitted - len(self.jobs))
        if size:
            self.jobs += self._pool.gather("BATCH", size)

    def _begun(self, count: int) -> None:
        """Wait until so many begins are noted, or nothing is left that could begin."""
        ends_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at and not self._is_begun(count):
            time.sleep(_STEP_S)  # between two looks at a file

    def _is_begun(self, count: int) -> bool:
        return self.begins().total() >= count or self._pool._tally.outcomes.total() >= self._submitted

    def _kill(self, victim: str, index: int) -> None:
        candidates = self._candidates(victim)
        if candidates:
            try:
                candidates[index % len(candidates)].kill()
            except psutil.NoSuchProcess:
                return
            self.account.killed[victim] += 1

    def _candidates(self, victim: str) -> list[psutil.Process]:
        try:
            supervisor = psutil.Process(self._pool._pool.supervisor_pid)
            if victim == "supervisor":
                return [supervisor]
            templates = supervisor.children()
            if victim == "template":
                return templates
            return [worker for template in templates for worker in template.children()]
        except psutil.NoSuchProcess:
            return []

    def _cancel(self, x: int) -> None:
        if x < self._submitted and not self.account.closed:
            self.account.cancelled.add(x)
            self._pool._pool.cancel([x])

    def _budget(self, seconds: float | None) -> None:
        if not self.account.closed:
            self.account.budgeted = self.account.budgeted or seconds is not None
            self._pool.set_timeout(seconds)

    def _close(self) -> None:
        self.account.closed = True
        self._pool.close()


def play(setting: Setting, moves: Iterable[Move]) -> list[str]:
    """Play one run in a directory of its own.

    Returns:
        What was wrong with it, in words.
    """
    with tempfile.TemporaryDirectory() as directory, marked_environment():
        leftovers = Leftovers(Path(directory) / "notes")
        player = Player(setting, Path(directory))
        player.play(moves)
        left = leftovers.found()
    return player.complaints + [f"left behind: {thing}" for thing in left]
