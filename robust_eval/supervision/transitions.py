"""The legal transitions of workers and jobs, each in one literal table.

The documentation's state diagrams are drawn from these tables, and the core changes a state nowhere else than in the
`move` of a record, by what they say: a transition that is not in the table is a bug of ours.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import NoReturn, TypeVar

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
_State = TypeVar("_State", bound=IntEnum)


class Transitions(dict[tuple[_State, str], _State]):
    """The state after each cause, by the one before and the cause.

    Args:
        whose: "worker" or "job".
        table: what may happen.
    """

    def __init__(self, whose: str, table: Mapping[tuple[_State, str], _State]) -> None:
        super().__init__(table)
        self._whose = whose

    def __missing__(self, key: tuple[_State, str]) -> NoReturn:
        """Raise `InternalError`: that cannot be."""
        state, cause = key
        raise InternalError(f"a {self._whose} that is {state.name} cannot be {cause!r}")


WORKER_TRANSITIONS: Transitions[WorkerState] = Transitions(
    "worker",
    {
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
    },
)

JOB_TRANSITIONS: Transitions[JobState] = Transitions(
    "job",
    {
        (_J.QUEUED, "sent"): _J.SENT,
        (_J.QUEUED, "never begun"): _J.SETTLED,
        (_J.SENT, "taken back"): _J.QUEUED,
        (_J.SENT, "finished"): _J.SETTLED,
        (_J.SENT, "failed, retried"): _J.QUEUED,
        (_J.SENT, "held until the tree is gone"): _J.ENDING,
        (_J.ENDING, "finished"): _J.SETTLED,
        (_J.ENDING, "failed, retried"): _J.QUEUED,
    },
)
