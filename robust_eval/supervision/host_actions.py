"""What the core for hosts is made with, is told, and answers."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """The constants. Durations in seconds.

    Args:
        max_retries: further attempts for a job that failed with a kind in `retry_on`.
        retry_on: failure kinds that are retried; here only `lost` counts.
        ahead_s: how much work a host should hold beyond what runs: enough to be busy until the driver's answer comes.
        most_ahead: most jobs for each slot beyond the one that runs.
        hold_s: what a host holds beyond its slots is withdrawn when it finished nothing for so long.
        ping_s: a host that said nothing for so long is asked.
        silent_s: a host that does not answer within this time is dropped.
    """

    max_retries: int = 0
    retry_on: frozenset[str] = frozenset()
    ahead_s: float = 0.01
    most_ahead: int = 128
    hold_s: float = 0.05
    ping_s: float = 20.0
    silent_s: float = 60.0


class Send(NamedTuple):
    """Send these jobs to the host, to be begun."""

    host_id: int
    job_ids: list[int]


class Cancel(NamedTuple):
    """Tell the host that these jobs are no longer wanted."""

    host_id: int
    job_ids: list[int]


class Withdraw(NamedTuple):
    """Ask the host for those of these jobs that it has not begun."""

    host_id: int
    job_ids: list[int]


class Limit(NamedTuple):
    """Tell the host until when the search may run; None for no budget."""

    host_id: int
    expires_at: float | None


class Ping(NamedTuple):
    """Ask the host for a sign of life."""

    host_id: int


class Dismiss(NamedTuple):
    """Have the host end everything, say so and go."""

    host_id: int


class Drop(NamedTuple):
    """Break the connection: the host is given up."""

    host_id: int


class Settle(NamedTuple):
    """Tell how a job ended that no host can tell of. `detail` is opaque."""

    job_id: int
    kind: str
    cause: str
    attempts: int
    detail: object = None


Action = Send | Cancel | Withdraw | Limit | Ping | Dismiss | Drop | Settle


class Told(NamedTuple):
    """What a host tells of one job: how long it ran, where it did, and its failure kind; `evidence` is opaque."""

    job_id: int
    duration_s: float | None = None
    kind: str | None = None
    evidence: object = None
