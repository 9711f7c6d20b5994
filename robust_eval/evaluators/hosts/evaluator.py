"""What `ray` and `mpicomm` have in common: `ProcessPoolEvaluator` with a pool on every host."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

from robust_eval.evaluators.hosts.pool import Fleet, HostsPool
from robust_eval.evaluators.process import ProcessPoolEvaluator, Workforce

if TYPE_CHECKING:
    from robust_eval.processes.parcel import Parcel
    from robust_eval.processes.pool import PoolSettings


class HostsEvaluator(ProcessPoolEvaluator):
    """Evaluates configurations in pools of supervised processes on many hosts.

    On each host the same supervisor as on one machine enforces the limits. The driver shares out the jobs, and a host
    that is lost costs those jobs alone that ran there.
    """

    def _fleet(self) -> Fleet:
        """What starts the hosts."""
        raise NotImplementedError

    def _make_pool(self, bundle: Parcel, settings: PoolSettings) -> Workforce:
        return HostsPool(bundle, settings, self._arrivals.put_many, self._settling.record, self._fleet())

    def _limit(self, name: str, value: Any) -> Any:
        """A share of the memory, or `"auto"`, is one of each host's own and is left for the host to resolve."""
        limit = super()._limit(name, value)
        return value if name == "memory_limit" and _is_relative(value) else limit


def _is_relative(limit: Any) -> bool:
    if isinstance(limit, str):
        return limit.strip().lower() == "auto"
    whole = isinstance(limit, numbers.Integral)
    return isinstance(limit, numbers.Real) and not whole and 0.0 < float(limit) <= 1.0
