"""The template: loads the user's modules and function once, then only forks workers and buries them.

It owns the parenthood of every worker: it alone can reap them, and what a dead worker leaves behind becomes its child,
since it is a subreaper. It reports a worker's exit once nothing of the worker's tree is left. It must not know jobs,
limits or time, apart from the half second that a resource tracker gets.
"""

import gc
import json
import os
import selectors
import socket
import sys
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any

from robust_eval.processes import loading, system, tree, wire
from robust_eval.processes.blame import traceback_text
from robust_eval.processes.burial import Undertaker
from robust_eval.processes.channels import Channels, high
from robust_eval.processes.copies import Copies
from robust_eval.processes.forking import AtFork
from robust_eval.processes.heard import Calls
from robust_eval.processes.hygiene import Builtins
from robust_eval.processes.randomness import random_state
from robust_eval.processes.streams import Streams
from robust_eval.processes.worker import Worker, open_ledger, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from robust_eval.processes.bundle import Bundle

_MESSAGE_BYTES = 1 << 16
_MOST_FDS = 8
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * _MOST_FDS)
_LAST_WORDS_CHARS = 1 << 14
_LEARNED_FROM = 2  # workers: a page that both have written is hardly the matter of a single job


class Template:
    """One template process.

    Args:
        control: the packet socket to the supervisor.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._at_fork = AtFork.of_this_process()
        self._selector = selectors.DefaultSelector()
        self._supervisor = os.getppid()
        self._undertaker = Undertaker(self._watch, self._unwatch)
        self._load: Callable[[], Bundle]
        self._worker: Worker
        self._argv: list[str] = []
        self._streams = Streams()  # before the user's modules are loaded, which may close the standard ones
        self._calls = Calls()
        self._copies = Copies(0)
        self._handlers: dict[int, Any] = {}

    def run(self) -> None:
        """Load, then serve the supervisor until it is gone."""
        system.die_with(self._supervisor)
        system.adopt_orphans()
        _, ancillary, _, _ = self._control.recvmsg(_MESSAGE_BYTES, _ANCILLARY_BYTES)
        try:
            self._prepare(*wire.descriptors(ancillary))
        except BaseException as error:  # noqa: BLE001 - the user's imports raise anything
            text = traceback_text(error, unwind=0)
            self._say(wire.TEMPLATE_FAILED, text=text[-_LAST_WORDS_CHARS:])
            return
        system.outlive_parent()
        self._selector.register(self._control, selectors.EVENT_READ)
        supervisor_fd = system.watch_exit(self._supervisor)
        self._selector.register(supervisor_fd, selectors.EVENT_READ)
        self._undertaker.spare(tree.children(os.getpid()))
        gc.collect()
        gc.freeze()
        self._handlers = system.be_deaf()
        self._say(wire.TEMPLATE_READY)
        while os.getppid() == self._supervisor:
            ready = {key.fd for key, _ in self._selector.select(self._undertaker.wait_s(monotonic()))}
            if supervisor_fd in ready:
                break
            self._bury()
            if self._control.fileno() in ready and not self._obey():
                break
        self._undertaker.kill_all()

    def _prepare(self, bundle_fd: int, init_fd: int, ledger_fd: int) -> None:
        """Import and load what the workers need before the first of them is forked."""
        message = json.loads(system.content_of(init_fd))
        sys.argv = message["sys_argv"]
        self._calls.listen()  # not before: what was called for our own sake changes nothing
        for name in message["preload"]:
            import_module(name)
        if message["start_method"] == "spawn":
            for fd in (bundle_fd, init_fd, ledger_fd):
                os.set_inheritable(fd, True)  # noqa: FBT003 - the standard library's signature
            self._argv = [*message["argv"], *map(str, (bundle_fd, init_fd, ledger_fd))]
            return
        os.close(init_fd)
        self._copies = Copies(_LEARNED_FROM if message["fresh"] else 0)
        bundle = loading.load_bundle(bundle_fd, message["version"])
        loading.refuse_cuda()
        loading.share_main(bundle)
        loading.share_sources(bundle.sources)
        self._load = lambda: bundle
        random_state()
        self._worker = Worker(Channels(), open_ledger(ledger_fd), self._streams, Builtins(), self._calls)

    def _obey(self) -> bool:
        """Perform one order. False at end-of-file."""
        worker_id, fds = wire.receive_order(self._control, _MOST_FDS)
        if worker_id is None:
            return False
        try:
            pid = self._at_fork.fork()
        except OSError as error:  # no process is free: an evil that passes, and no reason to take the workers along
            self._say(wire.UNFORKED, worker_id, error.errno or 0)
        else:
            if pid == 0:
                self._become_worker(fds)
            self._undertaker.add(pid, worker_id)
            exit_fd = system.watch_exit(pid)
            self._say(wire.FORKED, worker_id, pid, fd=exit_fd)
            os.close(exit_fd)
        for fd in fds:
            os.close(fd)
        return True

    def _become_worker(self, fds: list[int]) -> None:
        """In the forked child: run the worker and never return."""
        code = 1
        try:
            system.hear_again(self._handlers)
            template = os.getppid()
            os.setsid()
            system.die_with(template)
            system.adopt_orphans()
            system.be_first_choice_of_oom_killer()
            if self._argv:
                for fd in fds:
                    os.set_inheritable(fd, True)  # noqa: FBT003 - as above
                os.execv(self._argv[0], [*self._argv, json.dumps(fds)])
            self._selector.close()
            self._undertaker.forget()
            self._control.close()
            self._copies.leave()
            code = run_worker(self._worker, fds, self._load)
            self._copies.tell()
        except BaseException:  # noqa: BLE001 - a forked child must not return into the template
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def _bury(self) -> None:
        for worker_id, status in self._undertaker.bury(monotonic()):
            self._say(wire.EXITED, worker_id, status)
            self._copies.hear()

    def _watch(self, pid: int) -> int:
        fd = system.watch_exit(pid)
        self._selector.register(fd, selectors.EVENT_READ)
        return fd

    def _unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)
        os.close(fd)

    def _say(self, kind: int, worker_id: int = 0, number: int = 0, *, text: str = "", fd: int = -1) -> None:
        try:
            wire.tell(self._control, kind, worker_id, number, text=text, fd=fd)
        except OSError:
            self._undertaker.kill_all()
            os._exit(1)


def main(argv: list[str]) -> None:
    """Run a template. Called by the command that `loading.command` makes.

    Args:
        argv: the descriptor of the control socket.
    """
    Template(socket.socket(fileno=high(int(argv[0])))).run()
    os._exit(0)
