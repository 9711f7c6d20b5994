"""The core for hosts: by examples, and as a state machine against a simple world of hosts."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from robust_eval.errors import InternalError
from robust_eval.supervision.host_actions import (
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
from robust_eval.supervision.hosts import Hosts

POLICY = HostPolicy()
RETRYING = HostPolicy(max_retries=1, retry_on=frozenset({"lost"}))
SHORT_S = 1e-4


def core_with(*slots: int, policy: HostPolicy = POLICY) -> Hosts:
    core = Hosts(policy, 0.0)
    for host_id, count in enumerate(slots):
        core.expects([host_id])
        core.joined(host_id, count, 0.0)
    return core


def sent(core: Hosts, now: float = 0.0) -> dict[int, list[int]]:
    """What the next turn sends to each host; it must order nothing else."""
    actions = core.turn(now)
    assert all(isinstance(action, Send) for action in actions), actions
    return {action.host_id: action.job_ids for action in actions if isinstance(action, Send)}


def finish(core: Hosts, host_id: int, job_ids: list[int], now: float, duration_s: float = SHORT_S) -> None:
    assert core.told(host_id, [Told(job_id, duration_s) for job_id in job_ids], now) == job_ids


def warm(core: Hosts, host_id: int = 0, slots: int = 2) -> int:
    """Let the host finish short jobs until it is trusted with a window; gives the next free job id."""
    for job_id in range(0, 60, slots):
        core.submitted(range(job_id, job_id + slots))
        finish(core, host_id, sent(core)[host_id], 0.0)
    return 60


def test_long_jobs_are_sent_only_as_slots_are_free():
    """Of a million jobs a host gets as many as it runs, and one more for each that is over."""
    core = core_with(2, 3)
    core.submitted(range(1_000_000))
    assert sent(core) == {0: [0, 1], 1: [2, 3, 4]}
    assert sent(core) == {}
    finish(core, 1, [3], 5.0, duration_s=5.0)
    assert sent(core, 5.0) == {1: [5]}
    assert core.waiting == 1_000_000 - 6


def test_few_jobs_are_shared_evenly():
    """Four jobs on hosts of 1, 8 and 8 slots leave no host idle while another has two that it needs not have."""
    core = core_with(1, 8, 8)
    core.submitted(range(5))
    assert {host_id: len(ids) for host_id, ids in sent(core).items()} == {0: 1, 1: 2, 2: 2}


def test_short_jobs_are_sent_ahead_and_in_batches():
    """Once jobs are seen to be short a host holds some hundredths of a second of work, refilled when half is done."""
    core = core_with(2)
    first = warm(core)
    core.submitted(range(first, first + 10_000))
    batch = sent(core)[0]
    assert 100 <= len(batch) <= 2 + 2 * POLICY.most_ahead
    finish(core, 0, batch[:1], 0.0)
    assert sent(core) == {}
    finish(core, 0, batch[1 : len(batch) // 2 + 10], 0.0)
    assert len(sent(core)[0]) > len(batch) // 4


def test_what_lies_behind_a_long_job_is_withdrawn_and_given_to_others():
    """A host that finishes nothing hands back what it has not begun; another one runs it, and nobody is charged."""
    core = core_with(2)
    first = warm(core)
    core.submitted(range(first, first + 50))
    batch = sent(core)[0]
    assert len(batch) == 50
    core.joined(1, 1, 0.0)
    assert core.turn(core.next_deadline() - 0.001) == []
    (withdraw,) = core.turn(core.next_deadline())
    assert withdraw == Withdraw(0, batch[2:])
    core.returned(0, batch[2:], 0.06)
    assert sent(core, 0.06) == {1: [batch[2]]}, "in their order, and no more than it runs"
    assert core.hosts[0].window(POLICY) < 10
    core.returned(7, [1], 0.06)


def test_a_lost_host_costs_what_it_held():
    """What may have begun is lost with what is known of it; what never went out whole waits again, first in line."""
    core = core_with(3, 1)
    core.submitted(range(8))
    assert sent(core) == {1: [0], 0: [1, 2, 3]}
    core.left(0, "power", unsent={2, 3})
    core.joined(2, 9, 1.0)
    actions = core.turn(1.0)
    assert actions == [Settle(1, "lost", "host", 1, "power"), Send(2, [2, 3, 4, 5, 6, 7])]
    core.left(0, "again")
    assert core.told(0, [Told(1)], 1.0) == []
    assert core.told(1, [Told(1), Told(0)], 1.0) == [0]


def test_a_lost_job_is_retried_where_that_was_asked_for():
    """Elsewhere, once; then it is lost with its attempts."""
    core = core_with(1, policy=RETRYING)
    core.submitted([5])
    sent(core)
    core.expects([1, 2])
    core.left(0, "power")
    assert core.turn(0.0) == []
    core.joined(1, 1, 0.0)
    assert sent(core) == {1: [5]}
    assert core.losses == {5: (1, "power")}
    core.left(1, "fire")
    assert core.turn(0.0) == [Settle(5, "lost", "host", 2, "fire")]


@pytest.mark.parametrize("end", ["budget", "close", "hopeless"])
def test_a_lost_job_that_waits_for_its_retry_settles_as_lost(end: str):
    """Whatever forbids the retry, the failure of the last attempt is told."""
    core = core_with(1, policy=RETRYING)
    core.submitted([5])
    sent(core)
    core.awaits(end != "hopeless")
    core.left(0, "power")
    if end == "budget":
        core.budget(0.0)
    elif end == "close":
        core.closed()
    assert core.turn(0.0) == [Settle(5, "lost", "host", 1, "power")]


def test_a_host_that_cannot_start_workers_costs_no_job():
    """Its jobs go to others uncounted; it is dismissed once what runs there is over."""
    core = core_with(2, 1)
    core.submitted(range(4))
    assert sent(core) == {1: [0], 0: [1, 2]}
    assert core.told(0, [Told(2, kind="startup", evidence="no data")], 0.0) == []
    assert core.turn(0.0) == []
    finish(core, 0, [1], 0.0)
    assert core.turn(0.0) == [Dismiss(0)]
    core.left(0, "dismissed")
    finish(core, 1, [0], 0.0)
    assert sent(core) == {1: [2]}


def test_a_host_that_is_spent_hands_back_what_it_was_sent():
    """It gets nothing more, is dismissed when it holds nothing, and its word stands for hosts there are none of."""
    core = core_with(2)
    core.submitted(range(3))
    sent(core)
    core.spent(0, "worn out")
    core.spent(7, "nobody knows it")
    finish(core, 0, [0], 0.0)
    core.expects([1])
    assert core.turn(0.0) == []
    core.returned(0, [1], 0.0)
    assert core.turn(0.0) == [Dismiss(0)]
    core.left(0, "dismissed")
    core.missed(1, "fire")
    assert core.turn(0.0) == [Settle(job_id, "startup", "hosts", 0, "fire") for job_id in (1, 2)]


def test_nothing_is_withdrawn_from_a_host_that_makes_progress():
    """Its patience counts from the last outcome."""
    core = core_with(1)
    first = warm(core, slots=1)
    core.submitted(range(first, first + 20))
    batch = sent(core)[0]
    finish(core, 0, batch[:1], 0.03)
    assert sent(core, 0.051) == {}
    assert [type(action) for action in core.turn(0.102)] == [Withdraw]


def test_when_no_host_can_start_workers_jobs_say_why():
    """The last host's evidence is on every job, those submitted later included, until a host comes that can."""
    core = core_with(1)
    core.submitted(range(2))
    sent(core)
    assert core.told(0, [Told(0, kind="startup", evidence="no data")], 0.0) == []
    told = [Settle(job_id, "startup", "startup", 0, "no data") for job_id in (0, 1)]
    assert core.turn(0.0) == [Dismiss(0), *told]
    core.left(0, "dismissed")
    core.submitted([2])
    assert core.turn(0.0) == [Settle(2, "startup", "startup", 0, "no data")]
    core.joined(1, 1, 0.0)
    core.submitted([3])
    assert sent(core) == {1: [3]}


def test_jobs_wait_for_announced_hosts_alone():
    """While one is being started they wait; when none comes they settle with the reason."""
    core = Hosts(POLICY, 0.0)
    core.expects([0, 1])
    core.submitted([0])
    core.missed(0, "no image")
    core.missed(7, "nobody asked")
    assert core.turn(0.0) == []
    core.missed(1, "no licence")
    assert core.turn(0.0) == [Settle(0, "startup", "hosts", 0, "no licence")]


def test_cancelled_jobs_settle_once():
    """Where they wait at once, where they were sent by the host's word, or when it is lost or hands them back."""
    core = core_with(4)
    core.submitted(range(6))
    assert sent(core) == {0: [0, 1, 2, 3]}
    core.cancelled([0, 1, 2, 3, 4, 99])
    core.cancelled([0])
    assert core.turn(0.0) == [Settle(4, "cancelled", "cancelled", 0), Cancel(0, [0, 1, 2, 3])]
    assert core.told(0, [Told(0, kind="startup"), Told(1, kind="cancelled")], 0.0) == [0, 1]
    core.returned(0, [2], 0.0)
    core.joined(1, 1, 0.0)
    core.left(0, "power")
    settled = [Settle(2, "cancelled", "cancelled", 0), Settle(3, "cancelled", "cancelled", 1)]
    assert core.turn(0.0) == [*settled, Send(1, [5])]


def test_the_budget_reaches_hosts_that_come_later():
    """Every host is told when it is over; what waits then is cancelled, and a new budget lets jobs begin again."""
    core = core_with(1)
    core.submitted(range(3))
    sent(core)
    core.budget(10.0)
    core.joined(1, 1, 1.0)
    assert core.turn(1.0) == [Limit(0, 10.0), Limit(1, 10.0), Send(1, [1])]
    assert core.next_deadline() <= 10.0
    assert core.turn(10.0) == [Settle(2, "cancelled", "search", 0)]
    core.joined(2, 1, 11.0)
    core.left(0, "power")
    assert core.turn(11.0) == [Limit(2, 11.0), Settle(0, "lost", "host", 1, "power")]
    core.budget(None)
    core.submitted([3])
    assert core.turn(11.0) == [Limit(1, None), Limit(2, None), Send(2, [3])]


def test_closing_ends_everything():
    """Hosts are dismissed, those that come too late as well; what they cannot tell of is cancelled."""
    core = core_with(1)
    core.submitted(range(2))
    sent(core)
    core.closed()
    core.joined(1, 1, 0.0)
    assert core.turn(0.0) == [Dismiss(0), Dismiss(1), Settle(1, "cancelled", "closed", 0)]
    core.closed()
    core.left(0, "power")
    assert core.turn(0.0) == [Settle(0, "cancelled", "closed", 1)]
    assert not core.places


def test_a_silent_host_is_asked_and_then_dropped():
    """One that answers is left alone; a driver that slept does not blame its hosts for it."""
    core = core_with(1, 1)
    assert core.turn(20.0) == [Ping(0), Ping(1)]
    core.heard(0, 21.0)
    core.heard(9, 21.0)
    actions = [action for at in range(25, 85, 5) for action in core.turn(float(at))]
    assert actions == [Ping(0), Drop(1)]
    core.left(1, "silent")
    assert core.turn(1000.0) == []
    actions = [action for at in range(1005, 1025, 5) for action in core.turn(float(at))]
    assert actions == [Ping(0)]


def test_a_job_is_submitted_once():
    """A second time is a bug of ours."""
    core = core_with(1)
    core.submitted([1])
    with pytest.raises(InternalError, match="submitted twice"):
        core.submitted([1])


class Station:
    """A host as it is: what is on its way there, what waits and runs there, and what it has said and nobody heard."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.coming: list[int] = []
        self.inbox: list[int] = []
        self.running: list[int] = []
        self.over: list[Told] = []
        self.back: list[int] = []
        self.broken = False
        self.going = False


class Fleet(RuleBasedStateMachine):
    """Hosts that come, work, fail to work, and go."""

    @initialize(retries=st.integers(0, 2))
    def begin(self, retries: int) -> None:
        policy = HostPolicy(max_retries=retries, retry_on=frozenset({"lost"}), ahead_s=1.0, most_ahead=4)
        self.core = Hosts(policy, 0.0)
        self.core.awaits(True)
        self.now, self.next_job, self.next_host = 0.0, 0, 0
        self.stations: dict[int, Station] = {}
        self.begun: Counter[int] = Counter()
        self.settled: dict[int, str | None] = {}
        self.closed = False

    def turn(self) -> None:
        core = self.core
        for action in core.turn(self.now):
            self.perform(action)
        for host_id, host in core.hosts.items():
            held = self.stations[host_id]
            assert set(host.sent) >= {*held.coming, *held.inbox, *held.running}
            assert len(host.sent) <= host.slots * (1 + core.policy.most_ahead)
        waiting = [job_id for job_id in core.queue if core.places.get(job_id, self) is None]
        assert len(waiting) == core.waiting
        at_hosts = [job_id for host in core.hosts.values() for job_id in host.sent]
        assert sorted(waiting + at_hosts) == sorted(core.places)
        assert core.places.keys() | self.settled.keys() == set(range(self.next_job))

    def perform(self, action: object) -> None:
        if isinstance(action, Settle):
            assert action.kind != "lost" or action.attempts == self.core.policy.max_retries + 1 or self.refusing()
            self.settle(action.job_id, action.kind)
        elif isinstance(action, Send):
            self.stations[action.host_id].coming += action.job_ids
        elif isinstance(action, Withdraw):
            station = self.stations[action.host_id]
            station.back += [job_id for job_id in station.inbox if job_id in action.job_ids]
            station.inbox = [job_id for job_id in station.inbox if job_id not in action.job_ids]
        elif isinstance(action, Dismiss):
            self.stations[action.host_id].going = True
        elif isinstance(action, Drop):
            self.dies(self.stations[action.host_id], action.host_id)

    def refusing(self) -> bool:
        return self.closed or self.core._over

    def settle(self, job_id: int, kind: str | None) -> None:
        assert job_id not in self.settled
        self.settled[job_id] = kind

    def dies(self, station: Station, host_id: int) -> None:
        del self.stations[host_id]
        self.core.left(host_id, "died", set(station.coming))
        self.turn()

    def some(self, data: st.DataObject, condition) -> tuple[int, Station] | None:
        found = [item for item in self.stations.items() if condition(item[1])]
        return data.draw(st.sampled_from(found)) if found else None

    @precondition(lambda self: not self.closed)
    @rule(count=st.integers(1, 12))
    def submit(self, count: int) -> None:
        self.core.submitted(range(self.next_job, self.next_job + count))
        self.next_job += count
        self.turn()

    @rule(slots=st.integers(1, 3))
    def joins(self, slots: int) -> None:
        self.stations[self.next_host] = Station(slots)
        self.core.joined(self.next_host, slots, self.now)
        self.next_host += 1
        self.turn()

    @rule(data=st.data(), steps=st.integers(1, 8))
    def work(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            self.step(*(data.draw(st.sampled_from(list(self.stations.items()))) if self.stations else (None, None)))
        self.turn()

    def step(self, host_id: int | None, station: Station | None) -> None:
        """The next thing that happens on a host: jobs arrive, fail to begin, begin, end; what it says is heard."""
        if station is None or host_id is None:
            return
        if station.back:
            self.core.returned(host_id, station.back, self.now)
            station.back = []
        elif station.over:
            told = {told.job_id: told.kind for told in station.over}
            for job_id in self.core.told(host_id, station.over, self.now):
                self.settle(job_id, told[job_id])
            station.over = []
        elif station.coming:
            station.inbox += station.coming
            station.coming = []
        elif station.inbox and station.broken:
            station.over += [Told(job_id, kind="startup") for job_id in station.inbox]
            station.inbox = []
        elif station.inbox and len(station.running) < station.slots:
            job_id = station.inbox.pop(0)
            self.begun[job_id] += 1
            station.running.append(job_id)
        elif station.running:
            station.over.append(Told(station.running.pop(), SHORT_S))
        self.core.heard(host_id, self.now)

    @rule(data=st.data())
    def host_dies(self, data: st.DataObject) -> None:
        found = self.some(data, lambda _: True)
        if found:
            self.dies(found[1], found[0])

    @rule(data=st.data())
    def host_breaks(self, data: st.DataObject) -> None:
        found = self.some(data, lambda station: not station.running)
        if found:
            found[1].broken = True

    @rule(seconds=st.sampled_from((0.01, 0.06, 3.0, 21.0, 200.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    @precondition(lambda self: self.next_job)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.integers(0, self.next_job - 1))
        waits = self.core.places.get(job_id, self) is None
        self.core.cancelled([job_id])
        self.turn()
        assert not waits or job_id in self.settled

    @rule(seconds=st.sampled_from((None, 0.0, 5.0)))
    def budget(self, seconds: float | None) -> None:
        self.core.budget(None if seconds is None else self.now + seconds)
        self.turn()

    @rule(more=st.booleans())
    def awaits(self, more: bool) -> None:
        self.core.awaits(more)
        self.turn()

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        if self.next_job % 2:
            self.closed = True
            self.core.closed()
            self.turn()
            for host_id, station in list(self.stations.items()):
                assert station.going
                self.dies(station, host_id)
        else:
            self.core.awaits(True)
            self.joins(2)
            for _ in range(20 * self.next_job + 40):
                for host_id, station in list(self.stations.items()):
                    self.step(host_id, station)
                self.now += 0.03
                self.turn()
        assert not self.core.places
        assert self.settled.keys() == set(range(self.next_job))
        assert all(begins <= self.core.policy.max_retries + 1 for begins in self.begun.values())


def test_every_job_settles_once_whatever_hosts_do() -> None:
    """Hosts come, die, break and fall silent; no job is lost from sight, and none begins more often than was asked."""
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
