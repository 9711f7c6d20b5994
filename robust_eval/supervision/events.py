"""What the core is told: facts about jobs, workers and the template, in the past tense.

The events of the hot path are slotted and not frozen, since a frozen dataclass costs four times as much to make.
Payloads and details are opaque here: the shell and the driver know what they hold.
"""

from dataclasses import dataclass
from typing import NamedTuple


class JobSpec(NamedTuple):
    """One job as the core needs it."""

    job_id: int
    timeout_s: float | None = None
    attempts: int = 0


@dataclass(slots=True)
class JobsSubmitted:
    """The driver handed over jobs, in the order in which they should begin."""

    jobs: list[JobSpec]


@dataclass(slots=True)
class JobsCancelled:
    """The driver no longer wants these jobs."""

    job_ids: list[int]


@dataclass(slots=True)
class JobsWithdrawn:
    """The driver wants these jobs back, as far as they wait: what was ever begun stays."""

    job_ids: list[int]


@dataclass(slots=True)
class BudgetSet:
    """The search may run until the instant `expires_at`; None lifts the budget."""

    expires_at: float | None


@dataclass(slots=True)
class CloseRequested:
    """Everything must end: nothing more is begun, what runs is killed."""


@dataclass(slots=True)
class TemplateExited:
    """The template is gone and with it the workers that it forked.

    What counts is whether a worker of it was ever ready; `was_ready` is for those who read along.
    """

    was_ready: bool
    detail: object = None


@dataclass(slots=True)
class WorkerForked:
    """The worker's process exists and waits for its slot."""

    worker_id: int


@dataclass(slots=True)
class WorkerReady:
    """The worker has its environment, function and initializer, and can take jobs."""

    worker_id: int


@dataclass(slots=True)
class StartFailed:
    """The worker said that it cannot start (its initializer raised, the function cannot be loaded)."""

    worker_id: int
    detail: object = None


@dataclass(slots=True)
class JobBegun:
    """The worker's stamp says that it began this job at the instant `at`."""

    worker_id: int
    job_id: int
    at: float


@dataclass(slots=True)
class ResultReceived:
    """The worker finished its first job. `kind` is None for a value and a failure kind otherwise."""

    worker_id: int
    job_id: int
    begun_at: float
    ended_at: float
    kind: str | None = None
    payload: object = None
    leftovers: bool = False
    leaving: bool = False


@dataclass(slots=True)
class JobsReturned:
    """These jobs were taken back from the worker's inbox before it read them."""

    worker_id: int
    job_ids: list[int]


@dataclass(slots=True)
class MemoryExceeded:
    """The worker's process tree went over the memory limit of the job that it runs."""

    worker_id: int
    job_id: int
    detail: object = None


@dataclass(slots=True)
class ChannelBroken:
    """Nothing that the worker sends can be relied on any more: it broke the protocol, or lost its main thread."""

    worker_id: int
    detail: object = None
    cause: str = "protocol"


@dataclass(slots=True)
class WorkerExited:
    """The worker is reaped and nothing of its process tree is left."""

    worker_id: int
    detail: object = None


Event = (
    JobsSubmitted
    | JobsCancelled
    | JobsWithdrawn
    | BudgetSet
    | CloseRequested
    | TemplateExited
    | WorkerForked
    | WorkerReady
    | StartFailed
    | JobBegun
    | ResultReceived
    | JobsReturned
    | MemoryExceeded
    | ChannelBroken
    | WorkerExited
)
