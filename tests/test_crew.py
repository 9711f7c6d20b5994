"""Template and workers as the supervisor handles them. Each test is a supervisor of its own, in a forked child."""

import contextlib
import errno
import os
import resource
import selectors
import signal
import sys
from collections.abc import Callable
from math import nan
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest
from children import in_child
from waiting import is_alive, wait_until

from robust_eval.processes import crew as crew_module
from robust_eval.processes import loading, system, tree, wire
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.crew import Crew
from robust_eval.processes.layout import LEDGER_BYTES, NUMBER, STOP_SIGNAL
from robust_eval.processes.nursery import Nursery
from robust_eval.processes.parcel import Memory, open_parcel, pack, store, unpack
from robust_eval.processes.port import ExitInfo, Finished
from robust_eval.processes.settings import Settings
from robust_eval.supervision import events as ev

PATIENCE_S = 60.0
FULL = 1 << 17


def call(function: Callable[[], Any], _: Any) -> Any:
    return function()


class Floor:
    """A crew with a selector, without a core."""

    def __init__(self, *, runner: Any = call, preload: tuple[str, ...] = (), limit: int | None = None) -> None:
        system.adopt_orphans()
        self.selector = selectors.DefaultSelector()
        self.records: list[tuple[int, bytes]] = []
        bundle = pack(Bundle(runner))
        assert isinstance(bundle, bytes)
        memory = store([bundle], len(bundle))
        assert isinstance(memory, Memory)
        init = {
            "preload": preload,
            "start_method": "fork",
            "argv": [],
            "version": sys.version_info[:2],
            "sys_argv": sys.argv,
            "fresh": False,
        }
        argv = loading.command(sys.executable, "template", imports_site=loading.needs_site())
        self.ledger = system.memory_file(LEDGER_BYTES)
        user_s = (os.getpriority(os.PRIO_PROCESS, 0), 0)
        settings = Settings(argv, False, dict(os.environ), init, memory.fd, self.ledger, [], None, None, None, *user_s)
        self.crew = Crew(
            Nursery(settings), settings, self.selector, lambda _: limit, lambda *told: self.records.append(told)
        )

    def turn(self, wait_s: float) -> None:
        for key, _ in self.selector.select(wait_s):
            key.data()
        self.crew.close_gone()

    def until(self, kind: type[Any]) -> Any:
        """The next event of this kind; those before it are dropped."""
        ends_at = monotonic() + PATIENCE_S
        while True:
            while self.crew.events:
                event = self.crew.events.pop(0)
                if isinstance(event, kind):
                    return event
            assert monotonic() < ends_at, kind
            self.turn(0.5)

    def worker(self, worker_id: int = 1) -> int:
        """A worker that is ready; its process id."""
        if self.crew._nursery.template is None:
            self.crew.start_template()
        self.crew.start_worker(worker_id)
        self.until(ev.WorkerForked)
        self.crew.assign(worker_id, 0)
        self.until(ev.WorkerReady)
        pid = self.crew._ports[worker_id].pid
        assert pid is not None
        return pid

    def send(self, function: Callable[[], Any], worker_id: int = 1, job_id: int = 3) -> None:
        parcel = pack(function)
        self.crew.send(worker_id, job_id, 1, parcel)
        self.crew.flush()

    def end(self) -> bool:
        """Close; whether nothing is left below this process."""
        self.crew.close()
        return not tree.children(os.getpid())


def stay() -> None:
    signal.pause()


def on_a_floor(test: Callable[[Floor], Any], **options: Any) -> Any:
    """What the test gives in a child, where everything must be gone at its end."""

    def run() -> Any:
        floor = Floor(**options)
        answer = test(floor)
        assert floor.end()
        assert not floor.selector.get_map()
        return answer

    return in_child(run)


def test_a_worker_s_life():
    """Forked, ready, a job, killed: each step is an event, and the exit says how."""

    def test(floor: Floor) -> tuple[Any, ...]:
        pid = floor.worker()
        floor.send(lambda: 42)
        result = floor.until(ev.ResultReceived)
        assert isinstance(result.payload, Finished)
        value = unpack(open_parcel(result.payload.parcel))
        floor.crew.kill(1)
        exited = floor.until(ev.WorkerExited)
        return value, result.job_id, exited.detail.signal, is_alive(pid)

    assert on_a_floor(test) == (42, 3, "SIGKILL", False)


def test_what_is_not_known_any_more_is_passed_over():
    """Orders may cross with an exit."""

    def test(floor: Floor) -> list[Any]:
        crew = floor.crew
        crew.kill(9)
        crew.take_back(9)
        crew.look_before([9])
        crew.start_worker(1)
        crew.meter.begin(1, None, 0.0)
        return [crew.alive(9), crew.alive(1), list(crew.events)]

    assert on_a_floor(test) == [[], [], []]


def test_a_full_inbox_returns_the_job():
    """At once, and it can be sent again."""

    def test(floor: Floor) -> int:
        pid = floor.worker()
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)  # else it may yet read the first job
        for job_id in range(1000):
            floor.crew.send(1, job_id, 1, bytes(FULL))
            floor.crew.flush()
            if floor.crew.events:
                break
        (returned,) = floor.crew.events
        assert returned.job_ids == [job_id]
        floor.crew.events.clear()
        floor.crew.take_back(1)
        (back,) = floor.crew.events
        floor.crew.kill(1)
        return back.job_ids == list(range(job_id))

    assert on_a_floor(test)


def test_processes_that_are_still_there_are_named():
    """The worker, what is below it and what is already an orphan; not other workers."""

    def test(floor: Floor) -> tuple[bool, bool]:
        first, second = floor.worker(1), floor.worker(2)

        def leave() -> int:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            return pid

        floor.send(leave)
        child = unpack(open_parcel(floor.until(ev.ResultReceived).payload.parcel))
        alive = set(floor.crew.alive(1))
        template = floor.crew._nursery.template
        floor.crew._nursery.template = None
        without = set(floor.crew.alive(1))
        floor.crew._nursery.template = template
        assert second not in alive
        return alive == {first, child}, without == alive

    assert on_a_floor(test) == (True, True)


def test_a_worker_is_killed_before_it_was_forked():
    """There was none: it counts as gone, and a template that is not ready is ended, since it may hang."""

    def test(floor: Floor) -> tuple[int, bool]:
        floor.crew.start_template()
        floor.crew.start_worker(1)
        floor.crew.kill(1)
        exited = floor.until(ev.WorkerExited)
        gone = floor.until(ev.TemplateExited)
        floor.crew.start_worker(2)
        floor.crew.kill(2)
        assert floor.until(ev.WorkerExited).worker_id == 2
        return exited.worker_id, gone.was_ready

    assert on_a_floor(test) == (1, False)


def test_a_worker_is_killed_while_it_is_being_forked():
    """It is found when the template says that it is there."""

    def test(floor: Floor) -> tuple[Any, ...]:
        floor.worker(1)
        floor.crew.start_worker(2)
        floor.crew.kill(2)
        forked = floor.until(ev.WorkerForked)
        exited = floor.until(ev.WorkerExited)
        return forked.worker_id, exited.worker_id, exited.detail.signal

    assert on_a_floor(test) == (2, 2, "SIGKILL")


def test_a_dead_template_takes_its_workers_along():
    """They come to this process, which buries them; those not yet forked are gone as well."""

    def test(floor: Floor) -> tuple[Any, ...]:
        pid = floor.worker(1)
        template = floor.crew._nursery.template
        assert template is not None
        os.kill(template.pid, signal.SIGSTOP)
        floor.crew.start_worker(2)
        os.kill(template.pid, signal.SIGKILL)
        gone = floor.until(ev.TemplateExited)
        exited = {floor.until(ev.WorkerExited).worker_id for _ in range(2)}
        floor.crew._on_template()
        floor.crew._on_template_exit()
        return gone.was_ready, "SIGKILL" in gone.detail, exited, is_alive(pid)

    assert on_a_floor(test) == (True, True, {1, 2}, False)


def test_a_template_that_fails_says_why():
    """The traceback of the import, and what it printed."""

    def test(floor: Floor) -> str:
        floor.crew.start_template()
        floor.crew.start_worker(1)
        detail: str = floor.until(ev.TemplateExited).detail
        assert floor.until(ev.WorkerExited).worker_id == 1
        return detail

    assert "ModuleNotFoundError: No module named 'no_such_module'" in on_a_floor(test, preload=("no_such_module",))


def test_a_failed_start_of_a_worker_says_why():
    """With what it printed."""

    class Spiteful:
        def __call__(self, arguments: Any, context: Any) -> None:
            pass

        def __reduce__(self) -> Any:
            return exec, ("print('printed', flush=True); raise RuntimeError('spite')",)

    def test(floor: Floor) -> str:
        floor.crew.start_template()
        detail: str = floor.until(ev.TemplateExited).detail
        return detail

    said = on_a_floor(test, runner=Spiteful())
    assert "RuntimeError: spite" in said
    assert "printed" in said


def test_closed_pipes_do_not_keep_the_supervisor_awake():
    """Whatever a job closes, nothing is readable for ever."""

    def close_all() -> None:
        os.closerange(0, 2048)
        signal.pause()

    def test(floor: Floor) -> bool:
        floor.worker()
        floor.send(close_all)
        port = floor.crew._ports[1]
        ends_at = monotonic() + PATIENCE_S
        while not port.output.ended:
            assert monotonic() < ends_at
            floor.turn(0.1)
        floor.turn(0.0)
        template = floor.crew._nursery.template
        assert template is not None
        quiet = not floor.selector.select(0.0)
        floor.crew.kill(1)
        return quiet

    assert on_a_floor(test)


def test_a_closed_log_does_not_keep_the_supervisor_awake():
    """A module that is preloaded may close the standard streams, as daemons do."""

    def test(floor: Floor) -> bool:
        floor.worker()
        template = floor.crew._nursery.template
        assert template is not None
        assert template.log.fd in floor.selector.get_map()
        reading, writing = os.pipe2(os.O_NONBLOCK)
        os.dup2(reading, template.log.fd)
        os.close(reading)
        os.close(writing)
        floor.crew._read(template.log)
        return template.log.fd not in floor.selector.get_map()

    assert on_a_floor(test)


@pytest.mark.parametrize("measures", [(nan, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, 1e300)])
def test_instants_that_cannot_be_are_garbage(measures: tuple[float, float]):
    """A report from the future, or from before its begin, is none."""

    def test(floor: Floor) -> str:
        floor.crew.start_worker(1)
        port = floor.crew._ports[1]
        header = wire.report_header(wire.RESULT, 0, 0, 0, 7, (*measures, 0))
        os.write(port.child_fds[1], header)
        broken: str = floor.until(ev.ChannelBroken).detail
        return broken

    assert on_a_floor(test).startswith("the worker reported a job from")


def test_a_channel_that_fails_is_broken():
    """A reset is an event and not the end of the supervisor."""

    def test(floor: Floor) -> bool:
        floor.crew.start_worker(1)
        port = floor.crew._ports[1]

        def fail() -> bool:
            raise ConnectionResetError

        port.reports.read = fail
        floor.crew._hearing.drain(port)
        return isinstance(floor.crew.events[-1], ev.ChannelBroken)

    assert on_a_floor(test)


def test_a_stamp_tells_what_had_begun():
    """Before a deadline is acted on, and a begin in the future is now."""

    def test(floor: Floor) -> tuple[Any, ...]:
        floor.worker()
        floor.send(stay, job_id=8)
        port = floor.crew._ports[1]
        wait_until(port.stamp)
        floor.crew.look_before([1])
        begun = floor.crew.events.pop()
        plausible = 0 < begun.at <= monotonic()
        NUMBER.pack_into(port._stamps, 8, (1 << 62) - 1)
        floor.crew.look_before([1])
        again = floor.crew.events.pop()
        return begun.job_id, plausible, 0 < again.at <= monotonic()

    assert on_a_floor(test) == (8, True, True)


def test_a_stop_and_a_dump_reach_the_job():
    """One raises in it, the other ends its worker with a stack."""

    def test(floor: Floor) -> tuple[Any, ...]:
        floor.worker(1)
        floor.worker(2)
        for worker_id in (1, 2):
            floor.send(stay, worker_id, job_id=worker_id)
            wait_until(floor.crew._ports[worker_id].stamp)
        floor.crew.stop(1, 1)
        ends_at = monotonic() + PATIENCE_S
        while not any(isinstance(event, ev.ResultReceived) for event in floor.crew.events):
            assert monotonic() < ends_at
            floor.crew._ports[1].signal(STOP_SIGNAL)  # the first one may have come before the job's first line
            floor.turn(0.05)
        result = floor.until(ev.ResultReceived)
        floor.crew.dump(2)
        exited = floor.until(ev.WorkerExited)
        assert isinstance(exited.detail, ExitInfo)
        return result.kind, exited.worker_id, "in stay" in str(exited.detail.stack)

    assert on_a_floor(test) == ("timeout", 2, True)


def test_a_kill_by_the_kernel_is_told_from_ours():
    """A SIGKILL that nobody here sent, and the kernel's counter moved."""

    def test(floor: Floor) -> tuple[Any, ...]:
        pid = floor.worker()
        floor.send(stay, job_id=4)
        wait_until(floor.crew._ports[1].stamp)
        crew_module.system.oom_kills = lambda: floor.crew._oom_kills + 1
        os.kill(pid, signal.SIGKILL)
        exceeded = floor.until(ev.MemoryExceeded)
        exited = floor.until(ev.WorkerExited)
        return exceeded.job_id, exited.detail.oom_killed

    assert on_a_floor(test) == (4, True)


def test_a_job_over_its_memory_is_told_unless_it_has_finished():
    """A result that is there counts, also one that comes while the tree is stopped."""

    def test(floor: Floor) -> list[Any]:
        crew = floor.crew
        floor.worker()
        floor.send(stay, job_id=4)
        crew.watch_memory(1, 4, 0.0)
        crew.measure(lambda _: None, 1.0)
        crew.watch_memory(1, 4, 0.0)
        crew.measure(lambda _: 4, 1.0)
        exceeded = crew.events.pop()
        finished = iter([True, False, True])
        crew._has_finished = lambda _: next(finished)
        crew.meter.resume(1, 0.0)
        crew.measure(lambda _: 4, 1.0)
        crew.measure(lambda _: 4, 2.0)
        crew.kill(1)
        return [type(exceeded).__name__, exceeded.job_id, exceeded.detail[1], crew.events]

    assert on_a_floor(test, limit=1 << 20) == ["MemoryExceeded", 4, 1 << 20, []]


def test_records_reach_the_driver():
    """As the bytes that the worker sent."""

    def record(value: Any, context: Any) -> None:
        context.record(value())

    def test(floor: Floor) -> list[Any]:
        floor.worker()
        floor.send(lambda: (1, 2), job_id=5)
        floor.until(ev.ResultReceived)
        return [(job_id, unpack(value)) for job_id, value in floor.records]

    assert on_a_floor(test, runner=record) == [(5, (1, 2))]


def test_closing_ends_what_is_there():
    """Workers with a job, the template, and ports that were never forked."""

    def test(floor: Floor) -> None:
        floor.worker()
        floor.send(stay)
        floor.crew.start_worker(2)

    assert on_a_floor(test) is None


def test_more_workers_than_a_channel_holds_orders():
    """Neither end waits for the other with a full channel."""
    count = 320

    def test(floor: Floor) -> int:
        floor.crew.start_template()
        for worker_id in range(count):
            floor.crew.start_worker(worker_id)
        return len({floor.until(ev.WorkerForked).worker_id for _ in range(count)})

    assert on_a_floor(test) == count


def test_a_fork_that_fails_costs_no_template():
    """The worker is told to be gone, with the reason, and the next one is forked."""

    def test(floor: Floor) -> list[str]:
        floor.crew.start_template()
        reasons = []
        for worker_id in (1, 2):
            floor.crew.start_worker(worker_id)
            reasons.append(floor.until(ev.StartFailed).detail)
            assert floor.until(ev.WorkerExited).worker_id == worker_id
        assert floor.worker(3)
        return reasons

    first, second = on_a_floor(test, preload=("unforkable",))
    assert first == f"no worker can be forked: {os.strerror(errno.EAGAIN)}"
    assert second == f"no worker can be forked: {os.strerror(errno.ENOMEM)}"


def test_without_descriptors_nothing_can_be_started_and_that_is_said():
    """Neither a worker nor a template; the supervisor goes on."""

    def test(floor: Floor) -> tuple[str, str]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + 2, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        floor.crew.start_template()
        template = floor.crew.events.pop()
        floor.crew.start_worker(5)
        started, exited = floor.crew.events
        floor.crew.events.clear()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)
        assert isinstance(template, ev.TemplateExited)
        assert isinstance(exited, ev.WorkerExited)
        assert floor.worker()
        return template.detail, started.detail

    template, worker = on_a_floor(test)
    assert template.startswith("no template can be started: ")
    assert worker.startswith("no worker can be started: ")
