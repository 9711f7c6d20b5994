"""The first acts of a supervisor process: hear what it is for, start the template, and only then load itself.

The template takes its time for the user's modules; the supervisor imports what it consists of meanwhile. What is
imported here is on the way of a pool's first result, and little. The first template is a fork of this process, which
has no thread and nothing of a supervisor yet: that saves the start of an interpreter, and what both need is imported
once. Later ones are programs of their own.
"""

import contextlib
import functools
import gc
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from typing import Any

from robust_eval.processes import system
from robust_eval.processes.layout import SHELF_BYTES
from robust_eval.processes.link import DriverLink, TemplateLink
from robust_eval.processes.settings import Settings


def main(argv: list[str]) -> None:
    """Be a supervisor. Called by the command that `loading.command` makes.

    Args:
        argv: the descriptor of the stream to the driver.
    """
    driver = os.getppid()
    sock = socket.socket(fileno=int(argv[0]))
    os.set_inheritable(sock.fileno(), False)  # noqa: FBT003 - the standard library's signature
    system.forget_signals()
    handlers = system.be_deaf()
    system.adopt_orphans()
    try:
        exit_fd = system.watch_exit(driver)
    except ProcessLookupError:
        sys.exit(0)
    link = DriverLink(sock)
    config = _first_message(link)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    _raise_descriptor_limit()
    bundle_fd, ledger_fd = (fd for fd in link.frames.fds if fd is not None)
    link.frames.fds.clear()
    settings = Settings(
        **config.pop("settings"),
        bundle_fd=bundle_fd,
        ledger_fd=ledger_fd,
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
        shelf_bytes=SHELF_BYTES // config["policy"]["num_workers"],
    )
    template = _start_template(settings, handlers)
    from robust_eval.processes.shell import Shell

    system.go_first()
    gc.disable()
    with sock:  # closed by us, else an interpreter that shows such things warns on the user's stderr
        Shell(link, config, settings, template, exit_fd).run()


def _first_message(link: DriverLink) -> dict[str, Any]:
    """What the driver says first; what came behind it stays for the loop."""
    while link.frames.read():
        messages = link.frames.messages()
        config: dict[str, Any] | None = next(messages, None)
        messages.close()
        if config is not None:
            return config
    sys.exit(0)


def _start_template(settings: Settings, handlers: dict[int, Any]) -> TemplateLink | None:
    """The template, or None where it cannot be started: the core tries again, and says what it sees."""
    with contextlib.suppress(OSError):
        if settings.alike:
            return TemplateLink(settings, functools.partial(_fork, handlers))
        return TemplateLink(settings)
    return None


def _fork(handlers: dict[int, Any], _settings: Settings, control: int, output: int) -> "Forked":
    """Make this process's fork a template."""
    pid = os.fork()
    if pid:
        return Forked(pid)
    try:
        system.hear_again(handlers)
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, standard in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, standard)
        for fd in map(int, os.listdir("/proc/self/fd" if system.LINUX else "/dev/fd")):
            if fd > 2 and fd != control:  # noqa: PLR2004 - the standard streams
                with contextlib.suppress(OSError):
                    os.close(fd)
        from robust_eval.processes import template  # not before: the supervisor has none of it, and others to import

        template.main([str(control)])
    except BaseException:  # noqa: BLE001 - a fork must not return into the supervisor
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


class Forked:
    """A template that is a fork of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it is there."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float) -> int:
        """The same, after at most so many seconds.

        Raises:
            subprocess.TimeoutExpired: it is still there.
        """
        if self._code is None:
            exit_fd = system.watch_exit(self.pid)
            select.select([exit_fd], [], [], timeout)
            os.close(exit_fd)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("template", timeout)
        return code

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
