"""The first acts of a supervisor process: hear what it is for, start the template, and only then load itself.

The template takes its time for the user's modules; the supervisor imports what it consists of meanwhile. What is
imported here is on the way of a pool's first result, and little.
"""

import gc
import os
import resource
import socket
import sys
from typing import Any

from robust_eval.processes import system
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
    system.be_deaf()
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
    settings = Settings(**config.pop("settings"), bundle_fd=bundle_fd, ledger_fd=ledger_fd)
    template = _start_template(settings)
    from robust_eval.processes.shell import Shell

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


def _start_template(settings: Settings) -> TemplateLink | None:
    """The template, or None where it cannot be started: the core tries again, and says what it sees."""
    try:
        return TemplateLink(settings)
    except OSError:
        return None


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
