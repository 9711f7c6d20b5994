"""What the core for hosts remembers of each."""

from dataclasses import dataclass, field
from typing import NamedTuple

from robust_eval.supervision.host_actions import HostPolicy

LONG_S = 1.0
_LEAST_S = 1e-6


@dataclass(slots=True)
class Host:
    """One host that is there. `sent` are its jobs, the longest-sent first.

    `shut` says that it gets no more, `dismissed` that it was told to go.
    """

    host_id: int
    slots: int
    heard_at: float
    progress_at: float
    sent: dict[int, None] = field(default_factory=dict)
    mean_s: float = LONG_S
    asked_at: float | None = None
    shut: bool = False
    dismissed: bool = False

    def window(self, policy: HostPolicy) -> int:
        """How many jobs it should hold: none ahead where they take so long that the way to the driver is nothing."""
        if self.mean_s >= policy.hold_s:
            return self.slots
        ahead = self.slots * min(policy.most_ahead, policy.ahead_s / max(self.mean_s, _LEAST_S))
        return self.slots + int(ahead)


class Blow(NamedTuple):
    """Why a host gets nothing more: how jobs fail should it have been the last one."""

    kind: str
    cause: str
    detail: object
