"""How a worker is made to die: doom, grace, stack dump, SIGKILL, each with its own deadline (rule 7)."""

from robust_eval.supervision.actions import Action, DumpStack, KillWorker, StopJob, TakeBack
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import Doom, Timers, WorkerRecord
from robust_eval.supervision.roster import Roster
from robust_eval.supervision.transitions import WorkerState

DYING = (WorkerState.DUMPING, WorkerState.KILLING, WorkerState.STUBBORN)


class Killer:
    """Leads a doomed worker from state to state until it is gone or shown to be unkillable."""

    def __init__(self, policy: Policy, actions: list[Action], timers: Timers, roster: Roster) -> None:
        self._policy = policy
        self._actions = actions
        self._timers = timers
        self._roster = roster

    def doom(self, worker: WorkerRecord, doom: Doom, now: float) -> None:
        """Make the worker die, for the first reason that is given.

        What it has not begun is taken back at once. A further reason does not change the first one,
        but ends the patience of a grace period.
        """
        if worker.state in DYING:
            return
        if worker.state is WorkerState.STOPPING:
            self._kill(worker, "doomed", now)
            return
        worker.doom = doom
        self._roster.doomed.add(worker.worker_id)
        self._roster.withdraw(worker)
        if worker.inbox:
            self._actions.append(TakeBack(worker.worker_id))
        if doom.kind != "timeout":
            self._kill(worker, "doomed", now)
        elif self._policy.grace_s > 0.0:
            worker.move("overdue, grace")
            self._actions.append(StopJob(worker.worker_id, worker.inbox[0].job_id))
            self._limit(worker, self._policy.grace_s, now)
        else:
            self._dump(worker, "overdue", now)

    def pardon(self, worker: WorkerRecord) -> None:
        """Let the worker live on: its job stopped within the grace, or had never begun."""
        worker.doom = worker.deadline = None
        self._roster.doomed.discard(worker.worker_id)
        worker.move("stopped")

    def let_leave(self, worker: WorkerRecord, now: float) -> None:
        """Let the worker end by itself after its last job."""
        worker.move("last job")
        self._limit(worker, self._policy.leave_s, now)
        if worker.inbox:
            self._actions.append(TakeBack(worker.worker_id))

    def on_deadline(self, worker: WorkerRecord, now: float) -> None:
        """Take the next step: the state that the worker is in has lasted for too long."""
        if worker.state is WorkerState.STOPPING:
            self._dump(worker, "grace over", now)
        elif worker.state is WorkerState.DUMPING:
            self._kill(worker, "dump over", now)
        elif worker.state is WorkerState.LEAVING:
            self._kill(worker, "doomed", now)
        elif worker.state is WorkerState.KILLING:
            worker.move("kill timeout")
            worker.deadline = None
        else:
            self.doom(worker, Doom("startup", "start_timeout", now), now)

    def _dump(self, worker: WorkerRecord, cause: str, now: float) -> None:
        worker.move(cause)
        self._actions.append(DumpStack(worker.worker_id))
        self._limit(worker, self._policy.dump_s, now)

    def _kill(self, worker: WorkerRecord, cause: str, now: float) -> None:
        worker.move(cause)
        self._actions.append(KillWorker(worker.worker_id))
        self._limit(worker, self._policy.kill_timeout_s, now)

    def _limit(self, worker: WorkerRecord, duration_s: float, now: float) -> None:
        worker.deadline = now + duration_s
        self._timers.arm(worker, worker.deadline)
