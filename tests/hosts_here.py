"""Hosts on this machine that nothing but a command starts: the real agents of Ray and MPI, without either."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from robust_eval.evaluators.hosts.calling import Call
from robust_eval.evaluators.hosts.evaluator import HostsEvaluator
from robust_eval.evaluators.hosts.pool import HostsPool

_RUN = "import sys; from robust_eval.evaluators.hosts.agent import main; main(sys.argv[1:])"
_ROOT = str(Path(__file__).resolve().parent.parent)


class LocalFleet:
    """Starts a process for each host; its workers find the host's number in HOST_NUMBER."""

    waits = True

    def __init__(self, slots: tuple[int, ...]) -> None:
        self._slots = slots
        self.processes: list[subprocess.Popen[str]] = []

    def names(self) -> list[str]:
        return ["127.0.0.1"]

    def start(self, call: Call, pool: HostsPool) -> None:
        self.call, self._pool = call, pool
        for slots in self._slots:
            self.add(slots)

    def add(self, slots: int) -> subprocess.Popen[str]:
        """Start one more host."""
        number = len(self.processes)
        self._pool.expects([number])
        name, port = self.call.addresses[0]
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(number), str(slots), name, str(port)],
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _ROOT, "HOST_NUMBER": str(number)},
        )
        assert process.stdin is not None
        process.stdin.write(self.call.secret.hex() + "\n")
        process.stdin.close()
        self.processes.append(process)
        return process

    def supervisor_of(self, number: int) -> psutil.Process:
        """The supervisor process of a host."""
        children = psutil.Process(self.processes[number].pid).children()
        return next(child for child in children if "processes.launch" in " ".join(child.cmdline()))

    def stop(self) -> None:
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class LocalHostsEvaluator(HostsEvaluator):
    """An evaluator over such hosts; its arguments are those of `ProcessPoolEvaluator`, and the slots of each host."""

    def __init__(self, run_function: Any, slots: tuple[int, ...] = (1, 1), **kwargs: Any) -> None:
        self.fleet = LocalFleet(slots)
        super().__init__(run_function, sum(slots), **kwargs)

    def _fleet(self) -> LocalFleet:
        return self.fleet
