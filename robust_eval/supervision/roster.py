"""The workers that are not gone: slots, the warm spares, start-up failures and the backoff after them."""

from robust_eval.supervision.actions import Action, AssignSlot, StartTemplate, StartWorker
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.records import Timers, WorkerRecord
from robust_eval.supervision.transitions import WorkerState

UNREADY = (WorkerState.STARTING, WorkerState.BLANK, WorkerState.INITIALIZING)


class Roster:
    """Who is there, who is idle, and who must be started next.

    A failure counts only where the start-up began after the last counted failure: eight workers that fail side by
    side on the same broken initializer are one failure, not eight.
    """

    def __init__(self, policy: Policy, actions: list[Action], timers: Timers) -> None:
        self._policy = policy
        self._actions = actions
        self._timers = timers
        self._next_worker_id = 0
        self.workers: dict[int, WorkerRecord] = {}
        self.idle: dict[int, WorkerRecord] = {}
        self.spares: dict[int, WorkerRecord] = {}
        self.free_slots = list(range(policy.num_workers - 1, -1, -1))
        self.template_up = False
        self.start_failures = 0
        self.last_failure_at = float("-inf")
        self.last_failure: object = None
        self.start_at = float("-inf")
        self.sealed = False

    def replenish(self, now: float) -> None:
        """Fill the free slots from the spares and order what is missing, unless a backoff forbids it."""
        if self.sealed:
            return
        if not self.template_up:
            if now < self.start_at:
                return
            self.template_up = True
            self._actions.append(StartTemplate())
        while self.free_slots and self.spares and now >= self.start_at:
            self._assign(now)
        missing = len(self.free_slots) + self._policy.spares - len(self.spares)
        if missing > 0 and now >= self.start_at:
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

    def forked(self, worker: WorkerRecord) -> None:
        """A worker without a slot exists; it may wait for its slot without end."""
        if worker.state is WorkerState.STARTING:
            worker.move("forked")
            worker.deadline = None

    def ready(self, worker: WorkerRecord) -> None:
        """A worker can take jobs: the row of start-up failures ends."""
        worker.move("ready")
        worker.deadline = None
        self.idle[worker.worker_id] = worker
        self.start_failures = 0
        self.start_at = float("-inf")

    def withdraw(self, worker: WorkerRecord) -> None:
        """The worker takes no more jobs and no slot."""
        self.idle.pop(worker.worker_id, None)
        self.spares.pop(worker.worker_id, None)

    def remove(self, worker: WorkerRecord) -> None:
        """The worker is gone: its slot is free."""
        self.withdraw(worker)
        worker.move("exited")
        del self.workers[worker.worker_id]
        if worker.slot is not None:
            self.free_slots.append(worker.slot)

    def start_failed(self, started_at: float, now: float, detail: object) -> bool:
        """Count a start-up failure. True when the pool is broken: too many in a row and no worker serves."""
        self.last_failure = detail
        if started_at >= self.last_failure_at:
            self.last_failure_at = now
            self.start_failures += 1
            self.start_at = now + self._policy.backoff_s(self.start_failures)
        broken = self.start_failures >= self._policy.max_start_failures
        return broken and all(worker.state in UNREADY for worker in self.workers.values())

    def next_start_at(self) -> float | None:
        """When a backoff ends, while something waits for that."""
        if self.sealed or self.start_at == float("-inf"):
            return None
        wanted = not self.template_up or self.free_slots or len(self.spares) < self._policy.spares
        return self.start_at if wanted else None
