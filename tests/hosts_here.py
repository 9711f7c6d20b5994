"""Hosts on this machine that nothing but a command starts: the real agents of Ray and MPI, without either."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from robust_eval.evaluators.hosts.calling import Call
from robust_eval.evaluators.hosts.evaluator import HostsEvaluator
from robust_eval.evaluators.hosts.pool import HostsPool

_RUN = "import sys; from robust_eval.evaluators.hosts.agent import main; main(sys.argv[1:])"
_ROOT = str(Path(__file__).resolve().parent.parent)


class LocalFleet:
    """Starts a process for each host.

    Args:
        slots: of each host.
        awaits: whether more may be started later.
    """

    def __init__(self, slots: list[int], *, awaits: bool = False) -> None:
        self._slots = slots
        self._awaits = awaits
        self.processes: list[subprocess.Popen[str]] = []

    def names(self) -> list[str]:
        return ["127.0.0.1"]

    def start(self, call: Call, pool: HostsPool) -> None:
        self._call, self._pool = call, pool
        pool.awaits(self._awaits)
        for slots in self._slots:
            self.add(slots)

    def add(self, slots: int) -> subprocess.Popen[str]:
        """Start one more host."""
        name, port = self._call.addresses[0]
        self._pool.expects([len(self.processes)])
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(len(self.processes)), str(slots), name, str(port)],
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _ROOT},
        )
        assert process.stdin is not None
        process.stdin.write(self._call.secret.hex() + "\n")
        process.stdin.close()
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class LocalHostsEvaluator(HostsEvaluator):
    """An evaluator over such hosts; its arguments are those of `ProcessPoolEvaluator` and `slots`."""

    def __init__(
        self, run_function: Any, slots: tuple[int, ...] = (1, 1), *, awaits: bool = False, **kwargs: Any
    ) -> None:
        self.fleet = LocalFleet(list(slots), awaits=awaits)
        super().__init__(run_function, sum(slots), **kwargs)

    def _fleet(self) -> LocalFleet:
        return self.fleet
