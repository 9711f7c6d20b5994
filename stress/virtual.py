"""The world around the pure core, simulated: a shell, a template, workers and a virtual clock.

`World` performs the core's actions on simulated processes, offers every legal move of the
environment (`moves`), makes one (`make`), and judges every action by its books of what really
happened. Examples, exhaustive search, Hypothesis and the random walks all drive this one world.

The shell's side of the contract, which `World` keeps: timers are acted on only after
`due_workers`; before a `WorkerExited` come the results in the channel, the jobs that were not
read, and the begin of the job that was running.
"""

from collections.abc import Iterator

from robust_eval.supervision import actions as do
from robust_eval.supervision import events as ev
from robust_eval.supervision.invariants import check
from robust_eval.supervision.policy import Policy
from robust_eval.supervision.supervisor import Supervisor
from robust_eval.supervision.transitions import WorkerState
from stress.books import ASKED, BLANK, DEAD, DONE, LOADING, SERVING, Books, Process

Move = tuple[str, *tuple[object, ...]]
RESULTS = ("value", "exception", "leaving", "leftovers", "mess")


class World(Books):
    """A core and everything around it.

    Args:
        policy: of the core.
        now: the first instant.
    """

    def __init__(self, policy: Policy, now: float = 0.0) -> None:
        super().__init__(policy, now)
        self.core = Supervisor(policy, now)
        self.log: list[do.Action] = []
        self.checked = True
        self.forks_at_once = False
        self.expires_at: float | None = None
        self.feed()

    # -- the shell

    def feed(self, *events: ev.Event) -> list[do.Action]:
        """Tell the core what happened, perform what it answers and check its invariants."""
        if self.expires_at is not None and self.now >= self.expires_at:
            self.facts.add(("search",))
        actions = self.core.handle(events, self.now)
        self.log = actions
        for action in actions:
            self.perform(action)
        if self.checked:
            check(self.core)
        if self.forks_at_once:
            self._fork_all()
        return actions

    def _fork_all(self) -> None:
        for worker_id, process in list(self.processes.items()):
            if process.stage == ASKED and process.slot is not None and self.template:
                self.forks(worker_id)

    def tick(self, late_s: float = 0.0) -> list[do.Action]:
        """Let the time pass to the next deadline, and `late_s` more, and act on what is due."""
        deadline = self.core.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
        self.now += late_s
        events: list[ev.Event] = []
        for worker_id in self.core.due_workers(self.now):
            events += self._drain(self.processes[worker_id])
            events += self._stamp(self.processes[worker_id])
        return self.feed(*events)

    def _drain(self, process: Process) -> list[ev.Event]:
        events: list[ev.Event] = list(process.channel)
        process.channel.clear()
        return events

    def _stamp(self, process: Process) -> list[ev.Event]:
        if process.running is None:
            return []
        return [ev.JobBegun(process.worker_id, process.running[0], process.begun_at)]

    # -- what the environment can do

    def moves(self) -> Iterator[Move]:
        """Every legal move of template and workers, of the shell's reading, and of the clock."""
        for worker_id, process in self.processes.items():
            for name in self._moves_of(process):
                yield name, worker_id
        if self.template:
            yield ("template_exits",)
        if self.core.next_deadline() is not None:
            yield ("tick",)

    def _moves_of(self, process: Process) -> Iterator[str]:
        if process.asked_back:
            yield "returns"
        if process.channel:
            yield "results"
        if process.stage == DEAD:
            yield "exits"
            return
        yield "dies"
        if process.stage == ASKED and self.template:
            yield "forks"
        elif process.stage == LOADING:
            yield from ("ready", "fails", "broken")
        elif process.stage == SERVING:
            yield "broken"
            yield from self._serving_moves(process)

    def _serving_moves(self, process: Process) -> Iterator[str]:
        if process.running is not None:
            yield from (*RESULTS, "memory")
        elif process.read is not None:
            yield "begins_job"
        elif process.unread:
            yield from ("begins_job", "reads")

    def make(self, move: Move) -> None:
        """Make one move, or one of the user's: submit, cancel, budget, close."""
        name, *args = move
        if name in RESULTS:
            name, args = "ends", [*args, name]
        getattr(self, str(name))(*args)

    def template_exits(self) -> None:
        was_ready, self.template = self.template == "ready", ""
        self.facts.add(("template",))
        self.feed(ev.TemplateExited(was_ready, "template gone"))

    def forks(self, worker_id: int) -> None:
        process = self.processes[worker_id]
        self.template = "ready"
        process.stage = BLANK if process.slot is None else LOADING
        self.feed(ev.WorkerForked(worker_id))

    def ready(self, worker_id: int) -> None:
        self.processes[worker_id].stage = SERVING
        self.feed(ev.WorkerReady(worker_id))

    def fails(self, worker_id: int) -> None:
        self.facts.add(("startup",))
        self.processes[worker_id].stage = DONE
        self.feed(ev.StartFailed(worker_id, "initializer raised"))

    def broken(self, worker_id: int) -> None:
        self.facts.add(("protocol", worker_id))
        self.feed(ev.ChannelBroken(worker_id, "garbage"))

    def dies(self, worker_id: int) -> None:
        process = self.processes[worker_id]
        process.alone = not process.dumping
        process.stage = DEAD

    def exits(self, worker_id: int) -> None:
        process = self.processes.pop(worker_id)
        events = self._drain(process)
        if process.unread:
            events.append(ev.JobsReturned(worker_id, [job_id for job_id, _ in process.unread]))
        events += self._stamp(process)
        if process.alone:
            self.facts.add(("exit", worker_id))
        self.feed(*events, ev.WorkerExited(worker_id, "exited"))

    def reads(self, worker_id: int) -> None:
        process = self.processes[worker_id]
        process.read = process.unread.popleft()

    def begins_job(self, worker_id: int) -> None:
        process = self.processes[worker_id]
        process.running = process.read or process.unread.popleft()
        process.read = None
        process.begun_at = self.now
        self.begins[process.running[0]] += 1

    def ends(self, worker_id: int, how: str = "value", payload: object = None) -> None:
        """Let the running job end; its result lies in the channel until the shell reads it."""
        process = self.processes[worker_id]
        attempt, process.running = process.running, None
        assert attempt is not None
        event = ev.ResultReceived(
            worker_id,
            attempt[0],
            process.begun_at,
            self.now,
            "exception" if how in ("exception", "mess") else None,
            payload or attempt,
            leftovers=how in ("leftovers", "mess"),
            leaving=how == "leaving",
        )
        process.channel.append(event)
        process.tasks += 1
        self.last_end[attempt[0]] = event
        timeout_s = self.specs[attempt[0]].timeout_s
        in_time = timeout_s is None or event.ended_at - event.begun_at <= timeout_s
        if in_time and not process.condemned:
            self.honest[attempt[0]] = event
        stopped_id, stopped_at = process.stopped or (None, 0.0)
        if stopped_id == attempt[0] and event.ended_at > stopped_at:
            self.late_ends.append(event)
        if event.leaving or event.leftovers or process.tasks == self.policy.max_tasks_per_child:
            process.stage = DONE

    def results(self, worker_id: int) -> None:
        self.feed(*self._drain(self.processes[worker_id]))

    def returns(self, worker_id: int) -> None:
        process = self.processes[worker_id]
        process.asked_back = False
        job_ids = [job_id for job_id, _ in process.unread]
        process.unread.clear()
        self.feed(ev.JobsReturned(worker_id, job_ids))

    def memory(self, worker_id: int) -> None:
        running = self.processes[worker_id].running
        assert running is not None
        self.facts.add(("memory_limit", running[0]))
        self.feed(ev.MemoryExceeded(worker_id, running[0], "rss"))

    def late(self, worker_id: int, job_id: int) -> None:
        """Tell the core what a worker that is gone did: nothing may come of it."""
        assert worker_id not in self.processes
        self.feed()
        gone: list[ev.Event] = [
            ev.WorkerForked(worker_id),
            ev.WorkerReady(worker_id),
            ev.StartFailed(worker_id),
            ev.JobBegun(worker_id, job_id, self.now),
            ev.ResultReceived(worker_id, job_id, self.now, self.now),
            ev.JobsReturned(worker_id, [job_id]),
            ev.MemoryExceeded(worker_id, job_id),
            ev.ChannelBroken(worker_id),
            ev.WorkerExited(worker_id),
        ]
        assert self.feed(*gone) == [], "a late event had an effect"

    # -- what the user can do

    def submit(self, *specs: ev.JobSpec) -> None:
        for spec in specs:
            self.specs[spec.job_id] = spec
            self.begins[spec.job_id] = spec.attempts
        self.feed(ev.JobsSubmitted(list(specs)))

    def cancel(self, job_id: int) -> None:
        self.facts.add(("cancelled", job_id))
        self.feed(ev.JobsCancelled([job_id]))

    def withdraw(self, job_id: int) -> None:
        self.facts.add(("withdrawn", job_id))
        self.feed(ev.JobsWithdrawn([job_id]))

    def budget(self, seconds: float | None) -> None:
        self.expires_at = None if seconds is None else self.now + seconds
        self.feed(ev.BudgetSet(self.expires_at))

    def waits(self, seconds: float) -> None:
        """Let time pass without a turn of the shell, as when it is not scheduled."""
        self.now += seconds

    def close(self) -> None:
        self.facts.add(("closed",))
        self.feed(ev.CloseRequested())


def calm(world: World, steps: int = 400) -> None:
    """Let the environment behave until every job is settled, and say so when it never is.

    What is asked for is done: kills work, workers start, read, run and answer.
    """
    for _ in range(steps):
        if world.settled.keys() == world.specs.keys():
            return
        world.make(helpful(world))
    unsettled = world.specs.keys() - world.settled.keys()
    raise AssertionError(f"jobs {unsettled} never settle")


_ORDER = ("exits", "results", "returns", "forks", "ready", "begins_job", "value")


def helpful(world: World) -> Move:
    """The move that a well-behaved environment makes next; the clock moves when nothing else can."""
    moves: dict[str, Move] = {}
    for move in world.moves():
        process = world.processes.get(move[1]) if len(move) > 1 else None  # type: ignore[call-overload]
        if move[0] != "dies":
            moves.setdefault(str(move[0]), move)
        elif process is not None and (process.stage == DONE or process.dumping):
            moves.setdefault("dies", move)
    return next((moves[name] for name in ("dies", *_ORDER) if name in moves), ("tick",))


def end(world: World) -> None:
    """Close the pool while kills work: it finishes, with nothing left."""
    world.close()
    for _ in range(200):
        if world.finished:
            break
        world.make(helpful(world))
    assert world.finished, "close() does not end"
    left = world.core.roster.workers.values()
    assert all(w.state is WorkerState.STUBBORN for w in left), "workers outlive the pool"


def end_among_the_unkillable(world: World) -> None:
    """Close the pool while no kill works: it finishes all the same, in bounded time."""
    policy, started_at = world.policy, world.now
    world.close()
    while not world.finished:
        assert world.core.next_deadline() is not None, "close() waits for nothing"
        world.tick()
        assert world.now - started_at <= policy.dump_s + policy.kill_timeout_s + 1e-9
