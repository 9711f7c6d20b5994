"""Which host gets which jobs, and what becomes of them when a host is lost: the upper floor of the supervision tree.

It supervises hosts as `supervisor` supervises workers, pure as that one and told the time, but with a book of its own:
a worker runs the jobs of its inbox one by one and in their order, is killed by us, and shares our clock. A host runs as
many at once as it has slots, answers in any order, ends its jobs by itself, and nobody here can kill or reap it.

The rules that this file embodies:

1. Every submitted job settles exactly once (`_settle` and an accepted outcome are the only ways).
2. A host holds what its slots run, and if jobs are short, what they should finish within `ahead_s` beyond that. All
   else waits here, so that any host can have it. What lies behind a job that takes long is withdrawn.
3. The blame is exact. What may have begun on a host that is lost is `lost`, or retried if that was asked for; what was
   never sent whole, or was handed back, waits again and uncounted. Nothing is run twice unless a retry was asked for.
4. A host whose workers cannot start costs no job: it gets nothing more, and jobs fail only when no host is left.
5. A host id is never used again; late news of a host that is gone is dropped.
6. A host that is silent is asked, and one that does not answer is dropped. A driver that slept itself asks anew.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from robust_eval.errors import InternalError
from robust_eval.supervision.host_actions import (
    Action,
    Cancel,
    Dismiss,
    Drop,
    HostPolicy,
    Limit,
    Ping,
    Send,
    Settle,
    Told,
    Withdraw,
)
from robust_eval.supervision.host_records import LONG_S, Blow, Host

_WEIGHT = 0.2
_OVERSLEPT_S = 5.0


class Hosts:
    """Decides everything about hosts and the jobs that wait for them, and does nothing.

    The methods take in what happened; `turn` answers what to do.

    Args:
        policy: the constants.
        now: the present instant, monotonic seconds.
    """

    def __init__(self, policy: HostPolicy, now: float) -> None:
        self.policy = policy
        self.hosts: dict[int, Host] = {}
        # What settles while it waits stays in the deque and is skipped when its turn comes: `waiting` counts the rest.
        self.queue: deque[int] = deque()
        self.waiting = 0
        # Where each job is that has not settled: at a host, or nowhere yet.
        self.places: dict[int, Host | None] = {}
        # Of jobs that were begun on a host that was lost: how often, and what is known of the last time.
        self.losses: dict[int, tuple[int, object]] = {}
        self.unwanted: set[int] = set()
        self.awaiting = False
        self.expected: set[int] = set()
        self.closing = False
        self._over = False
        self._budget_at: float | None = None
        self._blow = Blow("startup", "hosts", None)
        self._hungry: dict[int, Host] = {}
        self._look_at = now + policy.ping_s
        self._actions: list[Action] = []

    def turn(self, now: float) -> list[Action]:
        """Act on the timers that have come, send what can be sent, and give all that is to be done, in its order."""
        if self._budget_at is not None and now >= self._budget_at:
            self._budget_at, self._over = None, True
        if now >= self._look_at:
            self._look(now)
        refusal = self._refusal()
        if refusal is not None:
            self._refuse(refusal)
        elif self.waiting and self._hungry:
            self._dispatch(now)
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float:
        """The instant at which `turn` must be called at the latest."""
        return self._look_at if self._budget_at is None else min(self._look_at, self._budget_at)

    # -- jobs

    def submitted(self, job_ids: Iterable[int]) -> None:
        """The user wants these jobs, in this order.

        Raises:
            InternalError: an id is still in use.
        """
        for job_id in job_ids:
            if job_id in self.places:
                msg = f"job {job_id} was submitted twice"
                raise InternalError(msg)
            self.places[job_id] = None
            self.queue.append(job_id)
            self.waiting += 1

    def cancelled(self, job_ids: Iterable[int]) -> None:
        """The user no longer wants these jobs."""
        sent: dict[int, list[int]] = {}
        for job_id in job_ids:
            if job_id not in self.places or job_id in self.unwanted:
                continue
            host = self.places[job_id]
            if host is None:
                self.waiting -= 1
                self._never_begun(job_id, _CANCELLED)
            else:
                self.unwanted.add(job_id)
                sent.setdefault(host.host_id, []).append(job_id)
        self._actions += [Cancel(host_id, ids) for host_id, ids in sent.items()]

    def budget(self, expires_at: float | None) -> None:
        """The search may run until then; None lifts the budget."""
        self._budget_at, self._over = expires_at, False
        self._actions += [Limit(host_id, expires_at) for host_id in self.hosts]

    def closed(self) -> None:
        """Everything must end."""
        self.closing = True
        for host in self.hosts.values():
            self._dismiss(host)

    # -- hosts

    def joined(self, host_id: int, slots: int, now: float) -> None:
        """A host is there and can begin jobs."""
        self.expected.discard(host_id)
        host = self.hosts[host_id] = Host(host_id, slots, now, now)
        if self._budget_at is not None or self._over:
            self._actions.append(Limit(host_id, now if self._over else self._budget_at))
        if self.closing:
            self._dismiss(host)
        else:
            self._hungry[host_id] = host

    def expects(self, host_ids: Iterable[int]) -> None:
        """These hosts are being started."""
        self.expected.update(host_ids)

    def missed(self, host_id: int, blow: object) -> None:
        """An expected host did not come; `blow` says why."""
        if host_id in self.expected:
            self.expected.discard(host_id)
            self._blow = Blow("startup", "hosts", blow)

    def awaits(self, more: bool) -> None:  # noqa: FBT001 - the fact itself
        """Whether hosts may still join that nobody has announced: jobs wait for them."""
        self.awaiting = more

    def heard(self, host_id: int, now: float) -> None:
        """The host said something."""
        host = self.hosts.get(host_id)
        if host is not None:
            host.heard_at, host.asked_at = now, None

    def told(self, host_id: int, outcomes: Iterable[Told], now: float) -> list[int]:
        """Jobs are over on a host.

        Returns:
            The ids of those that have settled so. The others belong to nobody any more, or wait for another host.
        """
        host = self.hosts.get(host_id)
        if host is None:
            return []
        accepted: list[int] = []
        back: list[int] = []
        for outcome in outcomes:
            job_id = outcome.job_id
            if self.places.get(job_id) is not host:
                continue
            del host.sent[job_id]
            if outcome.kind == "startup" and not (self.closing or self._over or job_id in self.unwanted):
                back.append(job_id)
                self._shut(host, Blow("startup", "startup", outcome.evidence))
                continue
            self._forget(job_id)
            accepted.append(job_id)
            if outcome.duration_s is not None:
                host.mean_s += _WEIGHT * (min(outcome.duration_s, LONG_S) - host.mean_s)
        self._progressed(host, now)
        self._give_back(back)
        return accepted

    def returned(self, host_id: int, job_ids: Iterable[int], now: float) -> None:
        """The host handed back jobs that it has not begun."""
        host = self.hosts.get(host_id)
        if host is not None:
            ours = [job_id for job_id in job_ids if self.places.get(job_id) is host]
            for job_id in ours:
                del host.sent[job_id]
            self._progressed(host, now)
            self._give_back(ours)

    def spent(self, host_id: int, detail: object) -> None:
        """The host can begin no more jobs; what it holds it hands back or brings to its end."""
        host = self.hosts.get(host_id)
        if host is not None:
            self._shut(host, Blow("startup", "hosts", detail))

    def left(self, host_id: int, detail: object, unsent: Collection[int] = ()) -> None:
        """The host is gone, and what runs there is no longer ours.

        Args:
            host_id: which one.
            detail: what is known of its end.
            unsent: its jobs that never went out to it whole.
        """
        host = self.hosts.pop(host_id, None)
        if host is None:
            return
        self._hungry.pop(host_id, None)
        if not host.shut:
            self._blow = Blow("startup", "hosts", detail)
        self._give_back([job_id for job_id in host.sent if job_id in unsent])
        for job_id in host.sent:
            if job_id not in unsent:
                self._lose(job_id, detail)

    # -- what follows

    def _shut(self, host: Host, blow: Blow) -> None:
        host.shut, self._blow = True, blow
        self._hungry.pop(host.host_id, None)

    def _progressed(self, host: Host, now: float) -> None:
        host.progress_at = now
        if not host.shut:
            self._hungry[host.host_id] = host
        elif not host.sent:  # what runs on a host whose other workers cannot start comes to its end
            self._dismiss(host)

    def _dismiss(self, host: Host) -> None:
        if not host.dismissed:
            host.shut = host.dismissed = True
            self._actions.append(Dismiss(host.host_id))

    def _give_back(self, job_ids: list[int]) -> None:
        """These were not begun: they wait again, before all others, unless nobody wants them."""
        for job_id in reversed(job_ids):
            if job_id in self.unwanted:
                self._never_begun(job_id, _CANCELLED)
            else:
                self.places[job_id] = None
                self.queue.appendleft(job_id)
                self.waiting += 1

    def _lose(self, job_id: int, detail: object) -> None:
        """The job had begun, or nobody can know that it had not."""
        attempts = self.losses.get(job_id, (0, None))[0] + 1
        if job_id in self.unwanted:
            self._settle(Settle(job_id, "cancelled", "cancelled", attempts))
        elif self.closing:
            self._settle(Settle(job_id, "cancelled", "closed", attempts))
        elif attempts <= self.policy.max_retries and "lost" in self.policy.retry_on and not self._over:
            self.losses[job_id] = attempts, detail
            self.places[job_id] = None
            self.queue.append(job_id)
            self.waiting += 1
        else:
            self._settle(Settle(job_id, "lost", "host", attempts, detail))

    def _refusal(self) -> Blow | None:
        """How jobs settle that wait, where none is begun any more."""
        if self.closing:
            return _CLOSED
        if self._over:
            return _OVER
        hopeless = not (self.awaiting or self.expected) and all(host.shut for host in self.hosts.values())
        return self._blow if hopeless else None

    def _refuse(self, refusal: Blow) -> None:
        queue, self.queue, self.waiting = self.queue, deque(), 0
        for job_id in queue:
            if self.places.get(job_id, self) is None:
                self._never_begun(job_id, refusal)

    def _never_begun(self, job_id: int, refusal: Blow) -> None:
        """Settle a job that waits: as lost if it was."""
        if job_id in self.losses:
            attempts, detail = self.losses[job_id]
            self._settle(Settle(job_id, "lost", "host", attempts, detail))
        else:
            self._settle(Settle(job_id, refusal.kind, refusal.cause, 0, refusal.detail))

    def _settle(self, settle: Settle) -> None:
        self._forget(settle.job_id)
        self._actions.append(settle)

    def _forget(self, job_id: int) -> None:
        del self.places[job_id]
        self.losses.pop(job_id, None)
        self.unwanted.discard(job_id)

    # -- dispatch

    def _dispatch(self, now: float) -> None:
        """Give every host what its slots can run, then what it should have ahead; scarce jobs are shared evenly."""
        sent: dict[int, list[int]] = {}
        self._fill(sent, lambda host: host.slots, now)
        self._fill(sent, self._top_up, now)
        self._actions += [Send(host_id, job_ids) for host_id, job_ids in sent.items()]
        if self.waiting:
            self._hungry.clear()  # each has all that it should; the next outcome makes it hungry again

    def _top_up(self, host: Host) -> int:
        """Its window, once half of what it had ahead is done: few large batches."""
        window = host.window(self.policy)
        return window if len(host.sent) - host.slots <= (window - host.slots) // 2 else 0

    def _fill(self, sent: dict[int, list[int]], limit: Callable[[Host], int], now: float) -> None:
        rooms = [(limit(host) - len(host.sent), host) for host in self._hungry.values()]
        rooms = sorted((room for room in rooms if room[0] > 0), key=lambda room: room[0])
        for index, (room, host) in enumerate(rooms):
            # Those with little room come first, so that what they leave goes to the others.
            share = min(room, -(-self.waiting // (len(rooms) - index)))
            if not host.sent:
                host.progress_at = now
            sent.setdefault(host.host_id, []).extend(self._next(host) for _ in range(share))
            if len(host.sent) > host.slots:
                self._look_at = min(self._look_at, now + self.policy.hold_s)

    def _next(self, host: Host) -> int:
        job_id = self.queue.popleft()
        while self.places.get(job_id, self) is not None:
            job_id = self.queue.popleft()
        self.waiting -= 1
        self.places[job_id] = host
        host.sent[job_id] = None
        return job_id

    # -- timers

    def _look(self, now: float) -> None:
        """Look at every host: held up, silent, dead?"""
        policy = self.policy
        overslept = now - self._look_at > _OVERSLEPT_S
        self._look_at = now + policy.ping_s / 4.0
        for host in self.hosts.values():
            if len(host.sent) > host.slots:
                self._look_at = now + policy.hold_s
                self._relieve(host, now)
            if overslept:
                host.heard_at, host.asked_at = now, None
            elif host.asked_at is not None:
                if now >= host.asked_at + policy.silent_s:
                    self._actions.append(Drop(host.host_id))
            elif now >= host.heard_at + policy.ping_s:
                host.asked_at = now
                self._actions.append(Ping(host.host_id))

    def _relieve(self, host: Host, now: float) -> None:
        """Ask back what lies behind jobs that take longer than was thought."""
        idle_s = now - host.progress_at
        if idle_s >= self.policy.hold_s:
            host.mean_s = max(host.mean_s, min(idle_s, LONG_S))
            host.progress_at = now
            self._actions.append(Withdraw(host.host_id, list(islice(host.sent, host.slots, None))))


_CANCELLED = Blow("cancelled", "cancelled", None)
_CLOSED = Blow("cancelled", "closed", None)
_OVER = Blow("cancelled", "search", None)
