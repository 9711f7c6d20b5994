"""The supervisor's channel to its template."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from children import in_child
from waiting import nothing_left

from robust_eval.processes import launch, link, system, wire
from robust_eval.processes.bundle import Bundle
from robust_eval.processes.layout import LEDGER_BYTES
from robust_eval.processes.link import TemplateLink
from robust_eval.processes.parcel import Memory, pack, store
from robust_eval.processes.settings import Settings

PATIENCE_S = 20.0
NICENESS = os.getpriority(os.PRIO_PROCESS, 0)
COMMAND = [sys.executable, "-S", "-c"]


def test_a_template_that_is_dead_at_once_is_no_error_of_the_supervisor(monkeypatch: pytest.MonkeyPatch):
    """Killed before it was told what to do, it is noticed by its exit like any other."""

    def until_it_is_dead(pid: int, *_: object) -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(link.resource, "prlimit", until_it_is_dead)
    bundle_fd = os.open(os.devnull, os.O_RDONLY)
    ends = [sys.executable, "-S", "-c", "raise SystemExit(5)"]
    template = TemplateLink(Settings(ends, False, {}, {}, bundle_fd, -1, [], None, None, (64, 64), NICENESS, 0))
    assert select.select([template.exit_fd], [], [], 10.0)[0]
    template.end(1.0)
    assert "exit code 5" in template.last_words()
    template.close()
    os.close(bundle_fd)


def test_a_template_has_the_priority_of_the_user():
    """Its supervisor may have raised its own since, and the run function's processes inherit the template's."""
    bundle_fd = os.open(os.devnull, os.O_RDONLY)
    waits = [sys.executable, "-S", "-c", "input()"]
    lower = NICENESS + 3
    template = TemplateLink(Settings(waits, False, {}, {}, bundle_fd, -1, [], None, None, None, lower, 0))
    try:
        assert os.getpriority(os.PRIO_PROCESS, template.pid) == lower
    finally:
        template.kill()
        template.end(PATIENCE_S)
        template.close()
        os.close(bundle_fd)


# -- a template that is a fork


def forked(test: Callable[[TemplateLink], Any], runner: Any = None) -> Any:
    """What the test gives of a template that is a fork of a child of this process."""

    def run() -> Any:
        bundle = pack(Bundle(runner))
        assert isinstance(bundle, bytes)
        memory = store([bundle], len(bundle))
        assert isinstance(memory, Memory)
        init = {
            "preload": (),
            "start_method": "fork",
            "argv": [],
            "version": sys.version_info[:2],
            "sys_argv": ["x"],
            "fresh": False,
        }
        ledger_fd = system.memory_file(LEDGER_BYTES)
        settings = Settings([], True, {}, init, memory.fd, ledger_fd, [], None, None, None, NICENESS, 0)
        template = launch._start_template(settings, {})
        assert template is not None
        answer = test(template)
        template.end(PATIENCE_S)
        template.close()
        os.close(memory.fd)
        os.close(ledger_fd)
        return answer

    with nothing_left():
        return in_child(run)


def test_the_first_template_can_be_a_fork():
    """It loads the function, says so, has its own session and ends when its channel does."""

    def test(template: TemplateLink) -> tuple[Any, ...]:
        assert select.select([template.sock], [], [], PATIENCE_S)[0]
        told, _ = wire.hear(template.sock)
        return told and told.kind, os.getsid(template.pid) == template.pid, template._process.poll()

    assert forked(test) == (wire.TEMPLATE_READY, True, None)


def test_a_fork_that_fails_to_load_says_why():
    """As a program of its own does; what it prints is kept."""

    def test(template: TemplateLink) -> str:
        assert select.select([template.exit_fd], [], [], PATIENCE_S)[0]
        told, _ = wire.hear(template.sock)
        assert told is not None
        template.detail = told.text
        return template.last_words()

    words = forked(test, LoadsBadly())
    assert "OSError: does not load" in words
    assert "printed" in words


class LoadsBadly:
    def __reduce__(self) -> tuple[Any, ...]:
        return _load_badly, ()


def _load_badly() -> None:
    os.write(1, b"printed\n")
    raise OSError("does not load")


def test_a_fork_is_ended_like_a_program():
    """Waited for within a bound, killed, and reaped once."""

    def run() -> tuple[Any, ...]:
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        process = launch.Forked(pid)
        try:
            process.wait(0.0)
        except subprocess.TimeoutExpired:
            late = True
        process.kill()
        code = process.wait(PATIENCE_S)
        process.kill()
        return late, code, process.wait(0.0), process.poll()

    assert in_child(run) == (True, -signal.SIGKILL, -signal.SIGKILL, -signal.SIGKILL)


def test_a_template_that_cannot_be_forked_is_none(monkeypatch: pytest.MonkeyPatch):
    """The core tries again."""

    def refuse() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refuse)
    with nothing_left():
        assert launch._start_template(Settings([], True, {}, {}, -1, -1, [], None, None, None, NICENESS, 0), {}) is None
