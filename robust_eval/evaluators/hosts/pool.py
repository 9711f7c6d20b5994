"""A pool that is many hosts: to an evaluator it looks as the local one does, and each host runs a local one."""

import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from robust_eval.errors import EvaluatorClosed, RobustEvalError
from robust_eval.evaluators.hosts import messages as say
from robust_eval.evaluators.hosts.calling import Call
from robust_eval.evaluators.hosts.exchange import Exchange
from robust_eval.processes import wire
from robust_eval.processes.ownership import refuse_forked_child
from robust_eval.processes.parcel import Landed, Memory, Parcel, landed, open_parcel
from robust_eval.processes.pending import Settled, Submission
from robust_eval.processes.pool import PoolSettings
from robust_eval.supervision.host_actions import HostPolicy

_CLOSE_SLACK_S = 7.0
_ANSWER_S = 2.0


class Fleet(Protocol):
    """What starts the hosts: Ray, MPI, a test.

    Attributes:
        waits: whether announced hosts come in any case, so that `close` waits for them to send them away.
    """

    waits: bool

    def names(self) -> list[str]:
        """Under which names or addresses hosts reach this machine."""

    def start(self, call: Call, pool: "HostsPool") -> None:
        """Have hosts answer the call, now and later; tell the pool by `expects` and `host_lost`."""

    def stop(self) -> None:
        """End what was started. The hosts were sent away before; bounded."""


class HostsPool:
    """The pool of an evaluator whose workers are on many hosts. Thread-safe; refuses to be used after a fork.

    Args:
        bundle: what the workers are for, a `Bundle` in a parcel.
        settings: how; `num_workers` of the policy does not count, each host has slots of its own.
        deliver: called with batches of settled jobs, from the pool's thread.
        record: called from there with a job's id and an intermediate value, pickled.
        fleet: starts the hosts.

    Raises:
        RobustEvalError: the run function cannot be sent.
    """

    def __init__(
        self,
        bundle: Parcel,
        settings: PoolSettings,
        deliver: Callable[[list[Settled]], None],
        record: Callable[[int, bytes], None],
        fleet: Fleet,
    ) -> None:
        policy = HostPolicy(settings.policy["max_retries"], frozenset(settings.policy["retry_on"]))
        self._close_s = float(settings.policy["kill_timeout_s"]) + _CLOSE_SLACK_S
        self._exchange = Exchange(policy, fleet.names(), _config(bundle, settings), deliver, record)
        self._fleet = fleet
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closing = False
        self._asking = threading.Lock()
        os.register_at_fork(after_in_child=functools.partial(_hang_up_in_child, weakref.ref(self._exchange)))
        self._thread = threading.Thread(target=self._run, name="robust_eval hosts", daemon=True)
        self._thread.start()
        try:
            fleet.start(self._exchange.call, self)
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        try:
            self._exchange.run()
        finally:
            self._closing = True
            self._fleet.stop()

    # -- for the evaluator

    def submit(self, submissions: list[Submission]) -> None:
        """Hand jobs over. Their parcels belong to the pool from here on.

        Raises:
            EvaluatorClosed: the pool is closed.
        """
        self.check_process()
        kept = [submission._replace(parcel=_kept(submission.parcel)) for submission in submissions]
        with self._lock:
            if self._closing:
                msg = "the pool is closed: make a new evaluator"
                raise EvaluatorClosed(msg)
            self._exchange.order(lambda: self._exchange.take(kept))

    def cancel(self, job_ids: Iterable[int]) -> None:
        """Settle these jobs as cancelled, killing what runs."""
        self.check_process()
        ids = list(job_ids)
        self._exchange.order(lambda: self._exchange.core.cancelled(ids))

    def set_budget(self, seconds: float | None) -> None:
        """From now on, all that runs may run this much longer; None lifts the budget."""
        self.check_process()
        expires_at = None if seconds is None else time.monotonic() + seconds
        self._exchange.order(lambda: self._exchange.core.budget(expires_at))

    def stats(self) -> dict[str, Any]:
        """What the supervisors of all hosts tell, summed up, with each one's own words under `hosts`."""
        self.check_process()
        with self._asking:
            self._exchange.order(self._exchange.ask)
            return self._exchange.answers.wait(_ANSWER_S)

    def wait_until_idle(self) -> None:
        """Wait until everything that was submitted has settled."""
        idle = threading.Event()
        self._exchange.order(lambda: self._exchange.tell_when_idle(idle))
        while self._thread.is_alive() and not idle.wait(_ANSWER_S):
            pass

    def close(self) -> None:
        """End everything. What has not settled settles as cancelled. Bounded; free to be called again.

        In a forked child of the driver it only forgets the pool, which is not the child's.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closing = not self._closing, True
        if first:
            self._exchange.order(lambda: self._exchange.end(self._close_s, waits=self._fleet.waits))
        if threading.current_thread() is not self._thread:
            self._thread.join(self._close_s + _CLOSE_SLACK_S)

    def check_process(self) -> None:
        """Refuse to be used in a forked child of the driver.

        Raises:
            RobustEvalError: this is one.
        """
        refuse_forked_child(self._pid)

    # -- for what starts the hosts

    def expects(self, host_ids: Iterable[int]) -> None:
        """Hosts with these ids are being started: jobs wait for them."""
        ids = list(host_ids)
        self._exchange.order(lambda: self._exchange.core.expects(ids))

    def awaits(self, more: bool) -> None:  # noqa: FBT001 - the fact itself
        """Whether hosts may join that were not announced: jobs wait for them, too."""
        self._exchange.order(lambda: self._exchange.core.awaits(more))

    def knew(self, host_id: int) -> bool:
        """Whether the host ever joined."""
        return self._exchange.knew(host_id)

    def host_lost(self, host_id: int, detail: str) -> None:
        """The host is gone, or did not come."""
        self._exchange.order(lambda: self._exchange.miss(host_id, detail))


def _config(bundle: Parcel, settings: PoolSettings) -> bytes:
    """What every host is told first."""
    content = bytes(open_parcel(bundle)) if isinstance(bundle, Memory) else bundle
    if len(content) > say.LARGEST_BYTES:
        msg = f"the run function and its arguments have {len(content)} bytes, more than can travel: load them there"
        raise RobustEvalError(msg)
    given = {
        "policy": settings.policy,
        # An interpreter that was not chosen is each host's own: theirs may lie elsewhere.
        "python": None if settings.python == sys.executable else settings.python,
        "start_method": settings.start_method,
        "preload": list(settings.preload),
        "worker_env": settings.worker_env,
        "worker_seed": settings.worker_seed,
    }
    path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is the directory
    config = {"bundle": content, "settings": given, "directory": os.getcwd(), "path": path, "argv": sys.argv}  # noqa: PTH109
    return wire.frame((say.CONFIG, config))


def _kept(parcel: Landed) -> Landed:
    """The payload without a descriptor, however many wait; as it is where it cannot be mapped."""
    return parcel if isinstance(parcel, memoryview) else landed(parcel)


def _hang_up_in_child(exchange: "weakref.ref[Exchange]") -> None:
    """A forked child of the driver must not keep connections open that end with the driver."""
    found = exchange()
    if found is not None:
        for line in (*found.lines.values(), *found.strangers):
            line.close()
        found.door.close()
