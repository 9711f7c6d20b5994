"""What runs on a node of the cluster: one actor, which is a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray

from robust_eval.evaluators.hosts import agent

if TYPE_CHECKING:
    from robust_eval.evaluators.hosts.calling import Call, Station


class Host:
    """The actor. Nothing of the user's runs in its process."""

    def serve(self, call: Call, station: Station, gpus_per_slot: float) -> None:
        """Be a host until the driver hangs up; see `agent.serve`.

        Args:
            call: how the driver is reached.
            station: what this host is to be.
            gpus_per_slot: how many of the GPUs that Ray gave to this actor each slot has.
        """
        environments = gpu_environments(ray.get_gpu_ids(), station.slots, gpus_per_slot)
        (common,) = station.environments
        slots = tuple({**common, **environment} for environment in environments or ({},))
        agent.serve(call, station._replace(environments=slots))


def gpu_environments(gpus: list[int] | list[str], slots: int, per_slot: float) -> list[dict[str, str]]:
    """The variable that shows each slot its own GPUs, whole ones or a share of one.

    Args:
        gpus: the ids that Ray assigned; each may be shared by several slots where `per_slot` is less than 1.
        slots: how many slots there are.
        per_slot: GPUs for each; 0 gives no variable at all, so that what Ray set stays.
    """
    if not per_slot or not gpus:
        return []
    if per_slot >= 1:
        count = int(per_slot)
        mine = [gpus[slot * count : (slot + 1) * count] for slot in range(slots)]
    else:
        sharing = int(1 / per_slot + 1e-9)
        mine = [gpus[slot // sharing : slot // sharing + 1] for slot in range(slots)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(map(str, each))} for each in mine]
