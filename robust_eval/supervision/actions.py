"""What the core answers: orders to the shell, in the imperative."""

from dataclasses import dataclass


@dataclass(slots=True)
class StartTemplate:
    """Start a template process; the workers asked for wait until it is ready."""


@dataclass(slots=True)
class StartWorker:
    """Fork a blank worker under this id, which was never used before."""

    worker_id: int


@dataclass(slots=True)
class AssignSlot:
    """Give the worker its slot: it loads environment, function and initializer now."""

    worker_id: int
    slot: int


@dataclass(slots=True)
class SendJob:
    """Put the job into the worker's inbox. `attempt` counts from 1."""

    worker_id: int
    job_id: int
    attempt: int


@dataclass(slots=True)
class TakeBack:
    """Take back what the worker has not read and report it with `JobsReturned`."""

    worker_id: int


@dataclass(slots=True)
class StopJob:
    """Ask the job politely to stop: raise `JobStop` in the run function."""

    worker_id: int
    job_id: int


@dataclass(slots=True)
class DumpStack:
    """Make the worker dump the stacks of its threads and die of it."""

    worker_id: int


@dataclass(slots=True)
class KillWorker:
    """Send SIGKILL to the worker and to everything of its process tree."""

    worker_id: int


@dataclass(slots=True)
class Outcome:
    """How a job ended.

    `kind` is None for a value, else the failure kind; `cause` says what acted where it was not the
    job itself: for `timeout` `"job_timeout"` or `"search"`; for `memory` `"memory_limit"`; for
    `crash` `"exit"` or `"protocol"`; for `lost` `"template"`, `"unresponsive"`, or `"worker"` where
    its worker was killed for another job; for `startup` `"startup"`, or `"stubborn"` where every
    slot is closed by a worker that cannot be killed; for `cancelled` `"cancelled"`, `"withdrawn"`,
    `"closed"` or `"search"`. `payload` is the opaque result of the worker, `late_payload` one that came too late,
    `detail` what was known when the worker was doomed and `exit` what its end showed.
    Instants are monotonic; `attempts` includes this one where it had begun. A job that waits for a
    retry when nothing more is begun settles with the outcome of its last attempt.
    """

    kind: str | None
    cause: str = ""
    payload: object = None
    late_payload: object = None
    detail: object = None
    exit: object = None
    attempts: int = 0
    begun_at: float | None = None
    ended_at: float | None = None
    unkilled: bool = False


@dataclass(slots=True)
class SettleJob:
    """Tell the driver how the job ended, once. `worker_id` is the last one that began it, or None."""

    job_id: int
    outcome: Outcome
    worker_id: int | None


@dataclass(slots=True)
class Finish:
    """Everything is settled and every worker is gone: the supervisor may end."""


Action = (
    StartTemplate
    | StartWorker
    | AssignSlot
    | SendJob
    | TakeBack
    | StopJob
    | DumpStack
    | KillWorker
    | SettleJob
    | Finish
)
