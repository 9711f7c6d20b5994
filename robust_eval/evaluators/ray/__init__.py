"""`method="ray"`: supervised processes on every node of a Ray cluster."""

from __future__ import annotations

import math
import numbers
import weakref
from typing import TYPE_CHECKING, Any

from robust_eval.errors import InvalidArgument, InvalidArgumentType, bounded_repr
from robust_eval.evaluators.hosts.evaluator import HostsEvaluator
from robust_eval.evaluators.ray.share import Share
from robust_eval.evaluators.ray.visit import Visit, ray_itself
from robust_eval.limits import parse_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from robust_eval.evaluators.hosts.pool import Fleet
    from robust_eval.storage.base import Storage

_FILL = -1


class RayEvaluator(HostsEvaluator):
    """Evaluates configurations on the nodes of a Ray cluster; `ProcessPoolEvaluator`'s promises hold on each.

    One actor on every node runs the same supervisor as on one machine. A node or actor that is lost costs the jobs
    alone that ran there; they fail as `lost`, or are retried elsewhere with `max_retries`. Nodes that join later are
    used. The nodes must be able to import `robust_eval` and to reach this process over TCP.

    Args:
        run_function: called with a `RunningJob`.
        callbacks: objects with any of the methods of `Callback`.
        run_function_kwargs: keyword arguments of every call.
        storage: where jobs are recorded; a `MemoryStorage` by default.
        search_id: an existing search of the storage, or None for a new one.
        address: of the cluster, for `ray.init`; by default a cluster is started on this machine. Only where Ray is not
            initialised yet, which holds for all arguments of `ray.init`; what was started here is shut down
            with the last evaluator that uses it.
        password: of the cluster.
        num_cpus: of a cluster that is started.
        num_gpus: of a cluster that is started.
        include_dashboard: of a cluster that is started.
        num_cpus_per_task: CPUs that Ray accounts for each job: a fraction, or a whole number.
        num_gpus_per_task: GPUs for each job, the same; each job sees only its own (`CUDA_VISIBLE_DEVICES`).
        ray_kwargs: further arguments of `ray.init`.
        num_workers: how many jobs run at once, spread over the nodes; None or -1 for as many as have room, on nodes
            that join later, too.
        **limits: every further argument of `ProcessPoolEvaluator`: `job_timeout`, `memory_limit`, `max_retries` ... A
            share of the memory, or `"auto"`, is one of each node's own.

    Raises:
        InvalidArgument: a value is not allowed, or no node has room for one job. Also a `ValueError`.
        RobustEvalError: Ray is not installed, or the driver is a Ray Client, which no node can reach.
    """

    def __init__(  # noqa: PLR0917 - DeepHyper's signature
        self,
        run_function: Callable[..., Any],
        callbacks: Iterable[Any] | None = None,
        run_function_kwargs: Mapping[str, Any] | None = None,
        storage: Storage | None = None,
        search_id: str | None = None,
        address: str | None = None,
        password: str | None = None,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        include_dashboard: bool | None = False,  # noqa: FBT001, FBT002 - DeepHyper's
        num_cpus_per_task: float = 1,
        num_gpus_per_task: float = 0,
        ray_kwargs: Mapping[str, Any] | None = None,
        num_workers: int | None = None,
        **limits: Any,
    ) -> None:
        share = Share(
            _amount("num_cpus_per_task", num_cpus_per_task, above_zero=True),
            _amount("num_gpus_per_task", num_gpus_per_task or 0, above_zero=False),
        )
        fills = num_workers is None or num_workers == _FILL
        wanted = None if fills else parse_count("num_workers", num_workers)
        given = {"address": address, "_redis_password": password, "num_cpus": num_cpus, "num_gpus": num_gpus}
        given = {name: value for name, value in given.items() if value is not None}
        self._visit = Visit({**(ray_kwargs or {}), **given, "include_dashboard": include_dashboard})
        try:
            room = _room(share, needed=fills)
            self._share, self._slots_wanted, self._max_start_failures = (
                share,
                wanted,
                limits.get("max_start_failures", 3),
            )
            slots = room if wanted is None else wanted
            super().__init__(run_function, slots, callbacks, run_function_kwargs, storage, search_id, **limits)
        except BaseException:
            self._visit.leave()
            raise

    def _fleet(self) -> Fleet:
        myself = weakref.ref(self)  # the fleet's thread must not keep an evaluator that was dropped

        def changed(slots: int) -> None:
            evaluator = myself()
            if evaluator is not None and evaluator._slots_wanted is None and slots:  # noqa: SLF001 - our own
                evaluator.num_workers = slots

        from robust_eval.evaluators.ray.fleet import RayFleet  # noqa: PLC0415 - it imports Ray

        return RayFleet(self._share, self._slots_wanted, self._max_start_failures, changed, self._visit.leave)


def _amount(name: str, value: Any, *, above_zero: bool) -> float:
    allowed = f"a fraction or a whole number {'above' if above_zero else 'from'} 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        msg = f"{name}={bounded_repr(value)} is a {type(value).__name__}. Allowed is {allowed}."
        raise InvalidArgumentType(msg)
    amount = float(value)
    if not math.isfinite(amount) or amount < 0 or (above_zero and amount == 0) or (amount > 1 and amount % 1):
        msg = f"{name}={value!r} cannot be had. Allowed is {allowed}."
        raise InvalidArgument(msg)
    return amount


def _room(share: Share, *, needed: bool) -> int:
    """How many slots have room now on all nodes."""
    from robust_eval.evaluators.ray.fleet import rooms  # noqa: PLC0415 - it imports Ray

    room = sum(rooms(share).values())
    if needed and not room:
        raise InvalidArgument(_no_room(share))
    return room


def _no_room(share: Share) -> str:
    nodes = [node["Resources"] for node in ray_itself().nodes() if node["Alive"]]
    most = max(({name: node.get(name, 0.0) for name in ("CPU", "GPU")} for node in nodes), key=lambda each: each["CPU"])
    return (
        f"no node of the cluster has room for num_cpus_per_task={share.cpus:g}, num_gpus_per_task={share.gpus:g}: the "
        f"largest has {most}, and others may be using it. Ask for less, or free some."
    )
