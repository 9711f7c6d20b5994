"""What one slot takes of a node."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What one slot takes of a node.

    Args:
        cpus: above 0; a fraction, or a whole number.
        gpus: from 0; the same.
    """

    cpus: float
    gpus: float

    def slots(self, resources: Mapping[str, float]) -> int:
        """How many slots have room in these resources of a node."""
        most = _times(resources.get("CPU", 0.0), self.cpus)
        gpus = resources.get("GPU", 0.0)
        if not self.gpus:
            return most
        if self.gpus >= 1.0:
            return min(most, _times(gpus, self.gpus))
        return min(most, int(gpus) * _times(1.0, self.gpus) + _times(gpus % 1.0, self.gpus))

    def options(self, slots: int) -> dict[str, float]:
        """What an actor of so many slots asks for. Ray has no fractions beyond 1."""
        return {"num_cpus": _whole(slots * self.cpus), "num_gpus": _whole(self._gpus(slots))}

    def _gpus(self, slots: int) -> float:
        """Slots that share GPUs cannot be spread over parts of several."""
        if not 0.0 < self.gpus < 1.0:
            return slots * self.gpus
        sharing = _times(1.0, self.gpus)
        return slots * self.gpus if slots <= sharing else math.ceil(slots / sharing)


def _times(room: float, need: float) -> int:
    return int(room / need + 1e-9)


def _whole(amount: float) -> float:
    return amount if amount <= 1.0 else math.ceil(amount - 1e-9)
