"""What a whole run may end in: a small model of a pool under attack.

A run is a list of moves: submit a batch, gather some, kill one of our processes, cancel, set or lift the budget, close.
The model never guesses at timing. It counts what was done to the pool and holds each outcome against what that allows:

- a job that nothing was done to ends as its deed says, after as many attempts as the retries give it;
- a killed worker costs at most one attempt of one job (`crash`), a killed template at most one of each worker's
  (`lost`), a killed supervisor those that had begun (`lost`);
- only a cancelled job, or any after a close or a budget, may end as `cancelled`; only a budget cuts off others
  (`timeout`);
- no job begins more often than it is said to have had attempts, nor than the retries allow.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robust_eval import Job

MOST_KILLS = 4
# A second death in a row is survived; at the third the driver gives up, and all that waits is lost.
MOST_SUPERVISORS = 2


@dataclass(frozen=True)
class Setting:
    """How the pool of a run is made."""

    num_workers: int
    max_retries: int
    retry_on: tuple[str, ...]
    grace_period: float
    max_tasks_per_child: int | None
    start_method: str

    def arguments(self) -> dict[str, Any]:
        """The arguments of the evaluator. More processes are killed here than a start-up may fail by itself."""
        return {**vars(self), "max_start_failures": 4 * MOST_KILLS}


@dataclass(frozen=True)
class Deed:
    """What a job does.

    Attributes:
        kind: how it ends; None for its own value.
        job_timeout: its limit in seconds, where it needs one.
        memory_limit: its limit in bytes, where it needs one.
        begins: whether the run function is reached.
    """

    kind: str | None = None
    job_timeout: float | None = None
    memory_limit: int | None = None
    begins: bool = True


DEEDS: dict[str, Deed] = {
    "deliver": Deed(),
    "linger": Deed(),
    "leave a daemon": Deed(),
    "change the worker": Deed(),
    "raise": Deed("exception"),
    "exit": Deed("crash"),
    "die with a daemon": Deed("crash"),
    "hang": Deed("timeout", job_timeout=0.1),
    "hang deaf": Deed("timeout", job_timeout=0.1),
    "raise a memory error": Deed("memory"),
    "eat memory": Deed("memory", memory_limit=256 * 2**20),
    "deliver nan": Deed("invalid"),
    "deliver a lock": Deed("unpicklable"),
    "carry a lock": Deed("unpicklable", begins=False),
    "write garbage": Deed("crash"),
    "fail at first": Deed("exception"),
}


@dataclass
class Account:
    """What was done to the pool of one run."""

    killed: Counter[str] = field(default_factory=Counter)
    cancelled: set[int] = field(default_factory=set)
    closed: bool = False
    budgeted: bool = False


class Model:
    """Judges the jobs of one run.

    Args:
        setting: of the pool.
        account: what was done to it.
        begins: how often each job's run function began.
    """

    def __init__(self, setting: Setting, account: Account, begins: Mapping[int, int]) -> None:
        self._setting = setting
        self._account = account
        self._begins = begins

    def judge(self, jobs: list[Job]) -> list[str]:
        """Everything that is wrong, in words; empty when nothing is."""
        complaints = [f"job {job.config['x']} ({job.config['deed']}): {text}" for job in jobs for text in self._of(job)]
        return complaints + self._of_all(jobs)

    def _of(self, job: Job) -> list[str]:
        """What is wrong with one job by itself."""
        x, deed = job.config["x"], DEEDS[job.config["deed"]]
        attempts = job.metadata["attempts"] if job.failure is None else job.failure.attempts
        begins = self._begins.get(x, 0)
        kind = None if job.failure is None else job.failure.kind
        wrong = []
        if kind is None and job.objective != float(x):
            wrong.append(f"delivered {job.objective!r}")
        if kind not in self._allowed(job, deed):
            wrong.append(f"ended as {job.failure or job.objective!r}, allowed was {self._allowed(job, deed)}")
        if not begins <= attempts <= self._setting.max_retries + 1:
            wrong.append(f"began {begins} times in {attempts} attempts with {self._setting.max_retries} retries")
        if kind == "lost" and attempts == 0:
            wrong.append("was lost and had never begun")
        if self._is_untouched(x) and kind == deed.kind and attempts != self._attempts(job, deed):
            wrong.append(f"had {attempts} attempts, expected were {self._attempts(job, deed)}")
        if kind is None and begins == 0:
            wrong.append("delivered and never began")
        return wrong

    def _allowed(self, job: Job, deed: Deed) -> set[str | None]:
        account = self._account
        allowed = {self._final(job, deed)}
        allowed |= {"crash"} if account.killed["worker"] else set()
        allowed |= {"lost"} if account.killed["template"] or account.killed["supervisor"] else set()
        if job.config["deed"] == "fail at first" and account.killed.total():
            allowed |= {None, deed.kind}  # a death may use up the retry, or be the failure that there is at first
        if account.closed or job.config["x"] in account.cancelled:
            allowed |= {"cancelled", deed.kind}
        if account.budgeted:
            allowed |= {"cancelled", "timeout", deed.kind}
        return allowed

    def _final(self, job: Job, deed: Deed) -> str | None:
        return None if job.config["deed"] == "fail at first" and self._attempts(job, deed) > 1 else deed.kind

    def _attempts(self, job: Job, deed: Deed) -> int:
        """The attempts of a job that nothing was done to."""
        if not deed.begins:
            return 0
        if deed.kind not in self._setting.retry_on:
            return 1
        most = self._setting.max_retries + 1
        return min(2, most) if job.config["deed"] == "fail at first" else most

    def _is_untouched(self, x: int) -> bool:
        account = self._account
        return not (account.killed or account.closed or account.budgeted or x in account.cancelled)

    def _of_all(self, jobs: list[Job]) -> list[str]:
        """What is wrong with all jobs together: more of them were hit than there were blows."""
        killed = self._account.killed
        hit = Counter(job.failure.kind for job in jobs if job.failure and DEEDS[job.config["deed"]].kind is None)
        wrong = []
        if hit["crash"] > killed["worker"]:
            wrong.append(f"{hit['crash']} innocent jobs crashed, {killed['worker']} workers were killed")
        if not killed["supervisor"] and hit["lost"] > killed["template"] * self._setting.num_workers:
            wrong.append(f"{hit['lost']} innocent jobs were lost with {killed['template']} templates")
        return wrong
