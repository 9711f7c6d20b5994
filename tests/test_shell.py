"""The supervisor process and a driver that behaves badly, at the raw end of its channel."""

import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from children import end_of
from waiting import nothing_left

from robust_eval.processes import launch, loading, orders, system, wire
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.layout import COOKIE, LEDGER_BYTES
from robust_eval.processes.parcel import Memory, pack, pack_plain, store, unpack

PATIENCE_S = 60.0
POLICY: dict[str, Any] = {"num_workers": 1, "retry_on": [], "max_tasks_per_child": None, "grace_s": 0.0}


class Raw:
    """A supervisor in a forked child, with the bare stream to it."""

    def __init__(self, prepare: Callable[[], None] = lambda: None) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(PATIENCE_S)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self.sock.close()
                os.setsid()
                prepare()
                launch.main([str(theirs.detach())])
                code = 0
            except SystemExit as error:
                code = int(error.code or 0)
            finally:
                os._exit(code)
        theirs.close()
        self.exit_fd = system.watch_exit(self.pid)
        self.frames = wire.Frames(self.sock)

    def start(self, runner: Callable[[Any, Any], Any], cookie: str, *, cut: int = 0) -> None:
        """Say the first message, in two pieces where it is cut."""
        bundle = pack(Bundle(runner))
        assert isinstance(bundle, bytes)
        memory = store([bundle], len(bundle))
        assert isinstance(memory, Memory)
        ledger = system.memory_file(LEDGER_BYTES)
        environment = {**os.environ, COOKIE: cookie}
        init = {
            "preload": (),
            "start_method": "fork",
            "argv": [],
            "version": sys.version_info[:2],
            "sys_argv": sys.argv,
            "fresh": False,
        }
        settings = {
            "argv": loading.command(sys.executable, "template", imports_site=loading.needs_site()),
            "alike": False,  # a fork of the test runner would not do
            "environment": environment,
            "init": init,
            "worker_env": [],
            "worker_seed": None,
            "max_tasks_per_child": None,
            "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        data = wire.frame({"policy": POLICY, "cookie": cookie, "settings": settings})
        self.sock.sendmsg([data[: cut or len(data)]], wire.rights([memory.fd, ledger]))
        if cut:
            self.sock.sendall(data[cut:])
        os.close(memory.fd)
        os.close(ledger)

    def submit(self, *payloads: bytes) -> None:
        jobs = [(job_id, payload, None, None, 0, None) for job_id, payload in enumerate(payloads)]
        self.sock.sendall(wire.frame((orders.SUBMIT, jobs)))

    def outcomes(self, count: int) -> dict[int, Any]:
        """The values of so many jobs that are done, passing over the answer to a question."""
        found: dict[int, Any] = {}
        while len(found) < count:
            assert self.frames.read()
            for kind, *said in self.frames.messages():
                if kind != orders.SETTLED:
                    continue
                done, failed, _ = said
                assert not failed
                found.update((job_id, wire.unportable(parcel, self.frames.fds)) for job_id, parcel, *_ in done)
        return found

    def code(self) -> int:
        assert select.select([self.exit_fd], [], [], PATIENCE_S)[0], "the supervisor goes on"
        code = end_of(self.pid)
        self.pid = 0
        return code

    def close(self) -> None:
        self.sock.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            end_of(self.pid)
        os.close(self.exit_fd)


@pytest.fixture
def raw() -> Iterator[Raw]:
    """A supervisor that waits for its first message."""
    with nothing_left():
        made = Raw()
        yield made
        made.close()


def inline(obj: object) -> bytes:
    """A parcel of bytes, however large: as from a process that has no descriptor free for a file in memory."""
    return pack_plain(obj)


@pytest.mark.parametrize("said", [b"", b"half a fr"])
def test_a_driver_that_says_nothing_is_not_waited_for(raw: Raw, said: bytes):
    """Its end of the channel closes, and the supervisor ends."""
    raw.sock.sendall(said)
    raw.sock.shutdown(socket.SHUT_WR)
    assert raw.code() == 0


def test_a_driver_that_is_gone_before_it_can_be_watched_is_nobody_s():
    """The supervisor ends at once."""

    def gone() -> None:
        def raise_it(_: int) -> int:
            raise ProcessLookupError

        launch.system.watch_exit = raise_it

    with nothing_left():
        raw = Raw(gone)
        assert raw.code() == 0
        raw.close()


def test_the_first_message_may_come_in_pieces(raw: Raw):
    """And a payload that fits into no packet goes through memory."""
    raw.start(lambda x, _: len(x), "pieces", cut=100)
    payload = inline(bytes(wire.PACKET_BYTES + 10))
    raw.submit(payload, inline(b"small"))
    values = raw.outcomes(2)
    assert [unpack(values[job_id]) for job_id in range(2)] == [wire.PACKET_BYTES + 10, 5]
    raw.sock.sendall(wire.frame((orders.CLOSE,)))
    assert raw.code() == 0


def test_a_driver_that_reads_slowly_gets_everything(raw: Raw):
    """Also what was not read when the supervisor was told to end."""
    raw.start(lambda x, _: bytes(x), "slow")
    raw.submit(*[inline(100_000)] * 30)
    assert select.select([raw.sock], [], [], PATIENCE_S)[0]
    first = raw.outcomes(1)
    raw.sock.sendall(wire.frame((orders.TELL,)))
    first.update(raw.outcomes(30 - len(first)))
    raw.submit(*[inline(120_000)] * 12)
    more = raw.outcomes(2)
    raw.sock.sendall(wire.frame((orders.CLOSE,)))
    assert len(first) == 30
    assert more
    while raw.frames.read():
        list(raw.frames.messages())
    assert raw.code() == 0


def test_a_driver_that_vanishes_with_outcomes_unread_ends_the_supervisor(raw: Raw):
    """The channel is reset then; what still settles is dropped, and its memory with it."""
    raw.start(lambda x, _: bytes(x), "vanishes")
    raw.submit(*[inline(2 << 20)] * 20)
    assert select.select([raw.sock], [], [], PATIENCE_S)[0]
    raw.sock.close()
    assert raw.code() == 0


def test_a_driver_that_vanishes_in_the_middle_of_a_job_ends_it(raw: Raw):
    """Everything is gone within a bound."""

    def stay(_: Any, context: Any) -> None:
        context.record("begun")
        signal.pause()

    raw.start(stay, "middle")
    raw.submit(inline(1))
    assert raw.frames.read()
    raw.sock.close()
    assert raw.code() == 0


def test_a_template_that_was_started_ahead_and_never_wanted_ends(raw: Raw):
    """The driver is gone before the first job: the supervisor leaves nothing behind."""
    with nothing_left():
        raw.start(lambda x, _: x, "unwanted")
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.code() == 0
