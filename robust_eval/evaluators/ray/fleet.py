"""Hosts on a Ray cluster: an actor pinned to each node that has room, for as long as the evaluator lives.

Ray places the actors, accounts for the CPUs and GPUs of their slots, and starts none where it has no room. The jobs and
outcomes go over the sockets of `hosts`, not through Ray.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from robust_eval.evaluators.hosts.calling import Call, Station
from robust_eval.evaluators.hosts.sharing import divided
from robust_eval.evaluators.ray.host import Host
from robust_eval.evaluators.ray.visit import session, starting_nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from robust_eval.evaluators.hosts.pool import HostsPool
    from robust_eval.evaluators.ray.share import Share

_SURVEY_S = 1.0
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0)
_STOP_S = 10.0


def rooms(share: Share) -> dict[str, int]:
    """How many slots have room now on each living node."""
    free = state.available_resources_per_node()
    return {node["NodeID"]: share.slots(free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]}


class _Node:
    """A node that has, had or will have a host of ours."""

    def __init__(self) -> None:
        self.host_id: int | None = None
        self.slots = 0
        self.actor: Any = None
        self.failures = 0
        self.again_at: float | None = 0.0  # None: its host ended by itself, because it can do nothing


class RayFleet:
    """The actors of one evaluator.

    Args:
        share: what one slot takes.
        wanted: how many slots; None fills the cluster, nodes that join later included.
        max_start_failures: starts of an actor that may fail in a row before a node is given up.
        changed: called with the number of slots when it changes, from a thread of the fleet.
        at_the_end: called when all is over.
    """

    waits = False

    def __init__(
        self,
        share: Share,
        wanted: int | None,
        max_start_failures: int,
        changed: Callable[[int], None],
        at_the_end: Callable[[], None],
    ) -> None:
        self._share = share
        self._wanted = wanted
        self._max_failures = max_start_failures
        self._changed = changed
        self._at_the_end = at_the_end
        self._nodes: dict[str, _Node] = {}
        self._serving: dict[Any, str] = {}
        self._next_id = 0
        self._first_slot = 0
        self._session = session()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="robust_eval Ray nodes", daemon=True)
        self._guarding = threading.Thread(target=self._guard, name="robust_eval Ray guard", daemon=True)

    def names(self) -> list[str]:
        """The address under which Ray knows this node."""
        return [str(ray.util.get_node_ip_address())]

    def start(self, call: Call, pool: HostsPool) -> None:
        """Start a host on every node that has room, and watch over nodes and hosts from now on."""
        self._call, self._pool = call, pool
        pool.awaits(True)  # noqa: FBT003 - the fact itself
        self._survey()
        self._thread.start()
        self._guarding.start()

    def stop(self) -> None:
        """End the actors; their pools were ended before."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        with starting_nothing():
            for node in self._nodes.values():
                if node.actor is not None and self._is_connected():
                    _kill(node.actor)
        self._at_the_end()

    def _is_connected(self) -> bool:
        """Whether Ray was not shut down since. It must not be asked for anything else then: it would start anew."""
        return session() == self._session

    def _watch(self) -> None:
        """Until the end, or that of Ray. Whatever ends this, no job waits for hosts that cannot come any more."""
        with starting_nothing():
            try:
                self._watch_on()
            finally:
                if not self._stopped.is_set():
                    self._give_up()

    def _watch_on(self) -> None:
        while not self._stopped.is_set() and self._is_connected():
            try:
                self._part_with_the_dead()
                self._survey()
            except ray.exceptions.RaySystemError:  # the cluster does not answer: it may again
                self._stopped.wait(_SURVEY_S)

    def _guard(self) -> None:
        """Notice the end of Ray where the other thread cannot.

        A call of Ray's that is under way while the user shuts Ray down may never return (`ray.wait` of 2.60, in one of
        ten shutdowns).
        """
        with starting_nothing():
            while not self._stopped.wait(_SURVEY_S):
                if not self._is_connected():
                    self._give_up()
                    return

    def _give_up(self) -> None:
        """Nothing is started any more; without Ray, the hosts are gone as well. Done twice, it is as done once."""
        if not self._is_connected():
            for node in list(self._nodes.values()):
                if node.host_id is not None:
                    self._pool.host_lost(node.host_id, "Ray was shut down")
                    node.host_id = node.actor = None
        self._pool.awaits(False)  # noqa: FBT003 - the fact itself

    def _part_with_the_dead(self) -> None:
        """Wait a moment for hosts that end, and note how."""
        if not self._serving:
            self._stopped.wait(_SURVEY_S)
            return
        ended, _ = ray.wait(list(self._serving), timeout=_SURVEY_S)
        for ref in ended:
            node = self._nodes[self._serving.pop(ref)]
            host_id, node.host_id, node.actor = node.host_id, None, None
            if host_id is None or self._stopped.is_set():
                continue
            try:
                ray.get(ref)
            except Exception as error:  # noqa: BLE001 - whatever ended it, in Ray's words
                node.failures = 0 if self._pool.knew(host_id) else node.failures + 1
                later = node.failures < self._max_failures
                node.again_at = time.monotonic() + _backoff(node.failures) if later else None
                self._pool.host_lost(host_id, _first_line(error))
            else:
                node.again_at = None
                self._pool.host_lost(host_id, "it was dismissed, or gave itself up")

    def _survey(self) -> None:
        """Start hosts on nodes that have room for one and have none."""
        if self._stopped.is_set():
            return
        found = rooms(self._share)
        for gone in self._nodes.keys() - found.keys():
            if self._nodes[gone].host_id is None:
                del self._nodes[gone]
        now = time.monotonic()
        planned = sum(node.slots for node in self._nodes.values() if node.host_id is not None)
        capacities = {node_id: room for node_id, room in found.items() if room and self._may_start(node_id, now)}
        left = None if self._wanted is None else max(0, self._wanted - planned)
        for node_id, slots in divided(left, capacities).items():
            self._start(node_id, slots)
            planned += slots
        given_up = [node.again_at is None and node.host_id is None for node in self._nodes.values()]
        self._pool.awaits(not given_up or not all(given_up))
        self._changed(planned)

    def _may_start(self, node_id: str, now: float) -> bool:
        node = self._nodes.get(node_id)
        return node is None or (node.host_id is None and node.again_at is not None and node.again_at <= now)

    def _start(self, node_id: str, slots: int) -> None:
        node = self._nodes.setdefault(node_id, _Node())
        node.host_id, node.slots = self._next_id, slots
        common = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, int(self._share.cpus))))}
        station = Station(node.host_id, slots, self._first_slot, (common,))
        self._next_id += 1
        self._first_slot += slots
        self._pool.expects([node.host_id])
        pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor = ray.remote(Host).options(scheduling_strategy=pinned, max_restarts=0, **self._share.options(slots))
        node.actor = actor.remote()
        self._serving[node.actor.serve.remote(self._call, station, self._share.gpus)] = node_id


def _backoff(failures: int) -> float:
    return _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]


def _kill(actor: Any) -> None:
    with contextlib.suppress(Exception):  # it is gone, or the cluster is
        ray.kill(actor)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"
