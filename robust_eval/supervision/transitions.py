"""The legal transitions of workers and jobs, each in one literal table.

The documentation's state diagrams are drawn from these tables, and the core changes a state nowhere else than
through `next_worker_state` and `next_job_state`: a transition that is not in the table is a bug of ours.
"""

from enum import IntEnum

from robust_eval.errors import InternalError


class WorkerState(IntEnum):
    """Where a worker is in its life."""

    STARTING = 0
    BLANK = 1
    INITIALIZING = 2
    IDLE = 3
    BUSY = 4
    STOPPING = 5
    DUMPING = 6
    KILLING = 7
    LEAVING = 8
    STUBBORN = 9
    GONE = 10


class JobState(IntEnum):
    """Where a job is on its way."""

    QUEUED = 0
    SENT = 1
    ENDING = 2
    SETTLED = 3


_W = WorkerState
_J = JobState

WORKER_TRANSITIONS: dict[tuple[WorkerState, str], WorkerState] = {
    (_W.STARTING, "forked"): _W.BLANK,
    (_W.STARTING, "assigned"): _W.INITIALIZING,
    (_W.BLANK, "assigned"): _W.INITIALIZING,
    (_W.INITIALIZING, "ready"): _W.IDLE,
    (_W.IDLE, "sent"): _W.BUSY,
    (_W.BUSY, "emptied"): _W.IDLE,
    (_W.BUSY, "overdue, grace"): _W.STOPPING,
    (_W.STOPPING, "stopped"): _W.BUSY,
    (_W.BUSY, "overdue"): _W.DUMPING,
    (_W.STOPPING, "grace over"): _W.DUMPING,
    (_W.BUSY, "last job"): _W.LEAVING,
    (_W.STARTING, "doomed"): _W.KILLING,
    (_W.BLANK, "doomed"): _W.KILLING,
    (_W.INITIALIZING, "doomed"): _W.KILLING,
    (_W.IDLE, "doomed"): _W.KILLING,
    (_W.BUSY, "doomed"): _W.KILLING,
    (_W.STOPPING, "doomed"): _W.KILLING,
    (_W.LEAVING, "doomed"): _W.KILLING,
    (_W.DUMPING, "dump over"): _W.KILLING,
    (_W.KILLING, "kill timeout"): _W.STUBBORN,
    **{
        (state, "exited"): _W.GONE
        for state in (
            _W.STARTING,
            _W.BLANK,
            _W.INITIALIZING,
            _W.IDLE,
            _W.BUSY,
            _W.STOPPING,
            _W.DUMPING,
            _W.KILLING,
            _W.LEAVING,
            _W.STUBBORN,
        )
    },
}

JOB_TRANSITIONS: dict[tuple[JobState, str], JobState] = {
    (_J.QUEUED, "sent"): _J.SENT,
    (_J.QUEUED, "never begun"): _J.SETTLED,
    (_J.SENT, "taken back"): _J.QUEUED,
    (_J.SENT, "finished"): _J.SETTLED,
    (_J.SENT, "failed, retried"): _J.QUEUED,
    (_J.SENT, "held until the tree is gone"): _J.ENDING,
    (_J.ENDING, "finished"): _J.SETTLED,
    (_J.ENDING, "failed, retried"): _J.QUEUED,
}


def next_worker_state(state: WorkerState, cause: str) -> WorkerState:
    """The state after `cause`.

    Raises:
        InternalError: the table has no such transition.
    """
    try:
        return WORKER_TRANSITIONS[state, cause]
    except KeyError:
        msg = f"a worker that is {state.name} cannot be {cause!r}"
        raise InternalError(msg) from None


def next_job_state(state: JobState, cause: str) -> JobState:
    """The state after `cause`.

    Raises:
        InternalError: the table has no such transition.
    """
    try:
        return JOB_TRANSITIONS[state, cause]
    except KeyError:
        msg = f"a job that is {state.name} cannot be {cause!r}"
        raise InternalError(msg) from None
