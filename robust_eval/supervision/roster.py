"""The workers that are not gone: slots, the warm spares, start-up failures and the backoff."""

from robust_eval.supervision.actions import Action, AssignSlot, StartTemplate, StartWorker
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import Timers, WorkerRecord
from robust_eval.supervision.transitions import WorkerState

SERVING = (WorkerState.IDLE, WorkerState.BUSY, WorkerState.STOPPING)
_LONG_AGO = float("-inf")
# Dooms that were asked for say nothing about whether workers can serve.
_WANTED = ("cancelled", "closed", "search")


class FailureRow:
    """Failures in a row.

    A failure counts only where the start-up began after the last counted failure: eight workers
    that fail side by side on the same broken initializer are one failure, not eight.
    """

    __slots__ = ("count", "last_at")

    def __init__(self) -> None:
        self.count = 0
        self.last_at = _LONG_AGO

    def add(self, started_at: float, now: float) -> bool:
        """Count a failure of what started at `started_at`. False when it is one with the last."""
        if started_at <= self.last_at:
            return False
        self.last_at = now
        self.count += 1
        return True


class Roster:
    """Who is there, who is idle, and who must be started next.

    Two rows of failures end in a broken pool (rule 9): `unready`, start-ups with no worker ready in
    between, and `unserved`, ready workers that died over a job with none begun in between.
    """

    def __init__(self, policy: Policy, actions: list[Action], timers: Timers) -> None:
        self._policy = policy
        self._actions = actions
        self._timers = timers
        self._next_worker_id = 0
        self.workers: dict[int, WorkerRecord] = {}
        self.idle: dict[int, WorkerRecord] = {}
        self.spares: dict[int, WorkerRecord] = {}
        self.doomed: set[int] = set()
        self.free_slots = list(range(policy.num_workers - 1, -1, -1))
        self.template_up = False
        self.template_proved = False
        self.template_at = _LONG_AGO
        self.unready = FailureRow()
        self.unserved = FailureRow()
        self.start_at = _LONG_AGO
        self.sealed = False

    # -- starting

    @property
    def started_count(self) -> int:
        """How many workers were ever started."""
        return self._next_worker_id

    @property
    def is_starting(self) -> bool:
        """Whether a worker without a slot is being started."""
        return any(worker.state is WorkerState.STARTING for worker in self.spares.values())

    def replenish(self, now: float) -> None:
        """Fill the free slots and order what is missing, unless a backoff forbids it."""
        if self.sealed or now < self.start_at:
            return
        missing = len(self.free_slots) + self._policy.spares - len(self.spares)
        if not self.template_up:
            self.template_up, self.template_proved, self.template_at = True, False, now
            self._actions.append(StartTemplate())
        while self.free_slots and self.spares:
            self._assign(now)
        for _ in range(missing):
            self._start(now)
        while self.free_slots:
            self._assign(now)

    def _start(self, now: float) -> None:
        worker = WorkerRecord(self._next_worker_id, now)
        self._next_worker_id += 1
        self.workers[worker.worker_id] = worker
        self.spares[worker.worker_id] = worker
        self._actions.append(StartWorker(worker.worker_id))
        self._limit_start(worker, now)

    def _assign(self, now: float) -> None:
        worker_id = next(iter(self.spares))
        worker = self.spares.pop(worker_id)
        worker.slot = self.free_slots.pop()
        worker.move("assigned")
        self._actions.append(AssignSlot(worker_id, worker.slot))
        self._limit_start(worker, now)

    def _limit_start(self, worker: WorkerRecord, now: float) -> None:
        worker.started_at = now
        worker.deadline = now + self._policy.start_timeout_s
        self._timers.arm(worker, worker.deadline)

    def next_start_at(self) -> float | None:
        """When a backoff ends, while something waits for that."""
        if self.sealed or self.start_at == _LONG_AGO:
            return None
        short = len(self.spares) < self._policy.spares
        return self.start_at if not self.template_up or self.free_slots or short else None

    # -- what becomes of them

    def forked(self, worker: WorkerRecord) -> None:
        """Note that a worker without a slot exists; it may wait for its slot without end."""
        if worker.state is WorkerState.STARTING:
            worker.move("forked")
            worker.deadline = None

    def ready(self, worker: WorkerRecord) -> None:
        """Note that a worker can take jobs: the row of start-up failures ends."""
        worker.move("ready")
        worker.deadline = None
        worker.was_ready = self.template_proved = True
        self.idle[worker.worker_id] = worker
        self.unready.count = 0
        self.start_at = _LONG_AGO

    def withdraw(self, worker: WorkerRecord) -> None:
        """Give the worker no more jobs and no slot."""
        self.idle.pop(worker.worker_id, None)
        self.spares.pop(worker.worker_id, None)

    def remove(self, worker: WorkerRecord) -> None:
        """Forget a worker that is gone: its slot is free."""
        self.withdraw(worker)
        worker.move("exited")
        del self.workers[worker.worker_id]
        self.doomed.discard(worker.worker_id)
        if worker.slot is not None:
            self.free_slots.append(worker.slot)

    @property
    def shut(self) -> bool:
        """Whether every slot is closed by a worker that cannot be killed."""
        stubborn = [w for w in self.workers.values() if w.state is WorkerState.STUBBORN]
        return sum(w.slot is not None for w in stubborn) == self._policy.num_workers

    # -- failures

    def template_failed(self, now: float) -> None:
        """Count the end of a template, unless a worker of it was ready."""
        self.template_up = False
        if not self.template_proved and self.unready.add(self.template_at, now):
            self._back_off(self.unready.count, now)

    def worker_failed(self, worker: WorkerRecord, now: float) -> bool:
        """Count the end of a worker that never served. False when that means nothing."""
        cause = worker.doom.cause if worker.doom is not None else ""
        if not worker.never_served or cause in _WANTED:
            return False
        serving = worker.unheard_since is not None  # it was given a job, even if that is back
        if cause == "template" and not serving:
            return False
        if worker.was_ready and not serving:
            self._back_off(1, now)
            return False
        row = self.unserved if worker.was_ready else self.unready
        if row.add(worker.started_at, now):
            self._back_off(row.count, now)
        return True

    @property
    def broken(self) -> bool:
        """Whether too many failed in a row and no worker serves."""
        if max(self.unready.count, self.unserved.count) < self._policy.max_start_failures:
            return False
        return not any(worker.state in SERVING for worker in self.workers.values())

    def _back_off(self, failures: int, now: float) -> None:
        self.start_at = max(self.start_at, now + self._policy.backoff_s(failures))
