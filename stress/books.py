"""The books of a simulated world: what its processes do, and whether the core's actions are right.

Whatever an outcome says must be true, what ended in time must be told as it ended, no job runs
twice unasked or beside itself, and no slot has two workers. `World` in `stress.virtual` keeps these
books up to date; the core knows nothing of them.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from robust_eval.supervision import actions as do
from robust_eval.supervision import events as ev
from robust_eval.supervision.policy import Policy

Attempt = tuple[int, int]

ASKED, BLANK, LOADING, SERVING, DONE, DEAD = "asked", "blank", "loading", "serving", "done", "dead"
# Causes that a job can only meet when it has begun.
_BEGUN_CAUSES = ("job_timeout", "memory_limit", "exit", "protocol", "template", "worker")


class Process:
    """What a worker process really is and does, unknown to the core."""

    __slots__ = (
        "alone",
        "asked_back",
        "begun_at",
        "channel",
        "condemned",
        "dumping",
        "killed",
        "read",
        "running",
        "slot",
        "stage",
        "stopped",
        "tasks",
        "unread",
        "worker_id",
    )

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.stage = ASKED
        self.slot: int | None = None
        self.unread: deque[Attempt] = deque()
        self.read: Attempt | None = None
        self.running: Attempt | None = None
        self.begun_at = 0.0
        self.channel: list[ev.ResultReceived] = []
        self.tasks = 0
        self.stopped: tuple[int, float] | None = None
        self.asked_back = self.condemned = self.dumping = self.killed = self.alone = False

    def holds(self) -> list[Attempt]:
        """Every attempt that is in this process, whether begun or not."""
        own = [attempt for attempt in (self.running, self.read) if attempt is not None]
        return own + list(self.unread)


class Books:
    """What really happened, and the judgement of every action of the core by it."""

    def __init__(self, policy: Policy, now: float) -> None:
        self.policy = policy
        self.now = now
        self.processes: dict[int, Process] = {}
        self.template = ""
        self.specs: dict[int, ev.JobSpec] = {}
        self.settled: dict[int, do.SettleJob] = {}
        self.begins: dict[int, int] = {}
        self.honest: dict[int, ev.ResultReceived] = {}
        self.last_end: dict[int, ev.ResultReceived] = {}
        self.late_ends: list[ev.ResultReceived] = []
        self.facts: set[tuple[object, ...]] = set()
        self.finished = False

    def perform(self, action: do.Action) -> None:
        """Do to the processes what the core orders.

        Raises:
            AssertionError: the order is wrong, or an outcome is not true.
        """
        self._PERFORM[type(action)](self, action)

    def _template(self, _action: do.StartTemplate) -> None:
        assert not self.template, "a second template"
        self.template = "starting"

    def _worker(self, action: do.StartWorker) -> None:
        assert self.template, "a worker without a template"
        assert ("id", action.worker_id) not in self.facts, "a worker id is never used again"
        self.facts.add(("id", action.worker_id))
        self.processes[action.worker_id] = Process(action.worker_id)

    def _slot(self, action: do.AssignSlot) -> None:
        slots = [process.slot for process in self.processes.values()]
        assert action.slot not in slots, "a slot is overcommitted"
        process = self.processes[action.worker_id]
        assert process.slot is None
        process.slot = action.slot
        if process.stage == BLANK:
            process.stage = LOADING

    def _send(self, action: do.SendJob) -> None:
        job_id = action.job_id
        assert job_id not in self.settled, "a settled job is sent"
        for other in self.processes.values():
            # What a killed worker never read stays in its inbox; what it runs may still be running.
            runs = other.running is not None and other.running[0] == job_id
            assert not runs, "a job is sent while it may still run"
            assert all(job_id != held for held, _ in other.holds()) or other.killed
        assert action.attempt == self.begins[job_id] + 1, "begun attempts are counted, others not"
        assert self.begins[job_id] <= self.policy.max_retries
        told = self.honest.pop(job_id, None)
        assert told is None or told.kind in self.policy.retry_on, "run again without being asked"
        process = self.processes[action.worker_id]
        assert not process.dumping, "a job is sent to a worker that must die"
        process.condemned, process.stopped = process.killed, None  # whoever gets a job is pardoned
        process.unread.append((job_id, action.attempt))
        sent = process.tasks + len(process.holds())
        most = self.policy.max_tasks_per_child
        assert most is None or sent <= most, "more jobs than a worker may run"

    def _take_back(self, action: do.TakeBack) -> None:
        self.processes[action.worker_id].asked_back = True

    def _stop(self, action: do.StopJob) -> None:
        process = self.processes[action.worker_id]
        process.condemned = True
        process.stopped = action.job_id, self.now

    def _dump(self, action: do.DumpStack) -> None:
        process = self.processes[action.worker_id]
        process.condemned = process.dumping = True

    def _kill(self, action: do.KillWorker) -> None:
        """Nothing of the user's runs any more; the exit is seen some time later, or never."""
        process = self.processes[action.worker_id]
        process.condemned = process.killed = True
        process.alone = process.alone or (process.stage == DEAD and not process.dumping)
        process.stage = DEAD

    def _settle(self, action: do.SettleJob) -> None:
        job_id, outcome = action.job_id, action.outcome
        assert job_id in self.specs, "an unknown job settles"
        assert job_id not in self.settled, "a job settles twice"
        self.settled[job_id] = action
        assert outcome.attempts == self.begins[job_id], "attempts are the begins"
        for process in self.processes.values():
            held = any(job_id == other for other, _ in process.holds())
            assert not held or process.killed, "a job settles while it can still run"
            if held and process.running is not None and process.running[0] == job_id:
                assert outcome.unkilled, "a job settles before its worker is gone"
        honest = self.honest.get(job_id)
        if honest is not None:
            told = (outcome.kind, outcome.cause, outcome.payload)
            assert told == (honest.kind, "", honest.payload), f"{action} hides {honest}"
        self._believe(action)

    def _believe(self, action: do.SettleJob) -> None:
        """Whatever an outcome claims must have happened."""
        job_id, worker_id, outcome = action.job_id, action.worker_id, action.outcome
        cause, begun = outcome.cause, self.begins[job_id] > self.specs[job_id].attempts
        assert begun or cause not in _BEGUN_CAUSES, f"{cause} of a job that never began"
        end = self.last_end.get(job_id)
        if cause == "":
            assert end is not None, "a result that nobody gave"
            assert (end.kind, end.payload) == (outcome.kind, outcome.payload)
            assert end not in self.late_ends, "stopped, and told as if it had ended in time"
        elif cause == "job_timeout":
            ran_s = (outcome.ended_at or 0.0) - (outcome.begun_at or 0.0)
            assert ran_s >= (self.specs[job_id].timeout_s or 0.0) - 1e-9
        elif cause in ("memory_limit", "cancelled", "withdrawn"):
            assert (cause, job_id) in self.facts
            assert not (begun and cause == "withdrawn"), "a job was withdrawn that had begun"
        elif cause in ("exit", "protocol"):
            assert (cause, worker_id) in self.facts
        elif cause in ("template", "closed", "search"):
            assert (cause,) in self.facts

    def _finish(self, _action: do.Finish) -> None:
        assert not self.finished
        assert self.settled.keys() == self.specs.keys(), "finished with jobs unsettled"
        assert all(process.killed for process in self.processes.values())
        self.finished = True

    _PERFORM: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        do.StartTemplate: _template,
        do.StartWorker: _worker,
        do.AssignSlot: _slot,
        do.SendJob: _send,
        do.TakeBack: _take_back,
        do.StopJob: _stop,
        do.DumpStack: _dump,
        do.KillWorker: _kill,
        do.SettleJob: _settle,
        do.Finish: _finish,
    }
