"""The host's end: just another driver of the local pool, whose jobs come over a socket and whose outcomes go back.

It runs where Ray or MPI put it, in a process that nothing of the user's enters. Every hang, crash, limit and tree is
the business of the pool below, as on one machine. When the driver hangs up or dies, all of it ends.
"""

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from robust_eval.errors import EvaluatorClosed, RobustEvalError
from robust_eval.evaluators.hosts import messages as say
from robust_eval.evaluators.hosts.calling import Call, Station, answer
from robust_eval.limits import parse_memory
from robust_eval.processes import wire
from robust_eval.processes.parcel import Landed, open_parcel, pack_plain
from robust_eval.processes.pending import Done, Failed, Settled, Submission
from robust_eval.processes.pool import Pool, PoolSettings

_REACH_S = 60.0


def serve(call: Call, station: Station) -> None:
    """Be a host until the driver hangs up. Returns only after every process of it is gone.

    Raises:
        Unreachable: the driver cannot be reached.
        RobustEvalError: the pool cannot be started here; the driver was told.
    """
    with answer(call, _REACH_S) as sock:
        Agent(sock, station).run()


class Agent:
    """One host.

    Args:
        sock: the connection to the driver.
        station: what it is to be.
    """

    def __init__(self, sock: socket.socket, station: Station) -> None:
        self._sock = sock
        self._station = station
        self._frames = wire.Frames(sock)
        self._saying = threading.Lock()
        self._limits: dict[object, int | None] = {}
        self._directories: set[Path] = set()

    def run(self) -> None:
        """Start the pool, obey until the driver hangs up or sends us away, and end the pool."""
        config = self._first_order()
        if config is None:
            return
        try:
            pool = self._pool_of(config)
        except Exception as error:
            self._say((say.END, self._station.host_id, f"the pool cannot be started: {error!r}"))
            raise
        dismissed = False
        try:
            self._say((say.HELLO, self._station.host_id, self._station.slots, _about()))
            dismissed = self._obey(pool)
        finally:
            if not dismissed:  # somebody ends this process: what ran is lost with the host, and nobody cancelled it
                self._hang_up()
            pool.close()
        self._say((say.END, self._station.host_id, "it was dismissed"))

    def _first_order(self) -> dict[str, Any] | None:
        while self._frames.read():
            orders = self._frames.messages()
            first = next(orders, None)
            orders.close()
            if first is not None:
                config: dict[str, Any] = first[1]
                return config
        return None

    def _pool_of(self, config: dict[str, Any]) -> Pool:
        _stand_in(config["directory"], config["path"], config["argv"])
        given = config["settings"]
        seed = given["worker_seed"]
        ours = list(self._station.environments) or [{}]
        theirs: list[dict[str, str]] = given["worker_env"] or [{}]
        number = max(len(ours), len(theirs))
        settings = PoolSettings(
            policy={**given["policy"], "num_workers": self._station.slots},
            python=given["python"] or sys.executable,
            start_method=given["start_method"],
            preload=tuple(given["preload"]),
            worker_env=[{**ours[slot % len(ours)], **theirs[slot % len(theirs)]} for slot in range(number)],
            worker_seed=None if seed is None else seed + self._station.first_slot,
        )
        return Pool(config["bundle"], settings, self._deliver, self._record)

    # -- orders

    def _obey(self, pool: Pool) -> bool:
        """Obey as long as the driver is there. Whether it sent us away."""
        there = self._take_orders(pool)
        with contextlib.suppress(OSError):
            while there and self._frames.read():
                there = self._take_orders(pool)
        return not there

    def _take_orders(self, pool: Pool) -> bool:
        """Obey what has come. False when that was to go."""
        for kind, *rest in self._frames.messages():
            if kind == say.SUBMIT:
                self._submit(pool, rest[0])
            elif kind == say.CANCEL:
                pool.cancel(rest[0])
            elif kind == say.WITHDRAW:
                pool.withdraw(rest[0])
            elif kind == say.BUDGET:
                pool.set_budget(rest[0])
            elif kind == say.TELL:
                self._say((say.TOLD, pool.stats()))
            elif kind == say.PING:
                self._say((say.PONG,))
            else:
                return False
        return True

    def _submit(self, pool: Pool, rows: list[tuple[Any, ...]]) -> None:
        """Hand jobs to the pool, or back when it has given itself up: its supervisor died again and again.

        The driver is told that first, so that it does not send them again, and what is on its way is handed back too.
        """
        submissions = [
            Submission(job_id, parcel, timeout_s, self._bytes_of(limit), attempts, self._log(log))
            for job_id, parcel, timeout_s, limit, attempts, log in rows
        ]
        try:
            pool.submit(submissions)
        except EvaluatorClosed:
            self._say((say.SPENT, "its supervisor died again and again"))
            self._say((say.SETTLED, [], [], [], [submission.job_id for submission in submissions]))

    def _bytes_of(self, limit: Any) -> int | None:
        """A memory limit in bytes: a share is one of this machine's memory."""
        if limit not in self._limits:
            self._limits[limit] = parse_memory(limit, num_workers=self._station.slots)
        return self._limits[limit]

    def _log(self, path: str | None) -> str | None:
        if path is not None and (directory := Path(path).parent) not in self._directories:
            self._directories.add(directory)
            with contextlib.suppress(OSError):  # the job's log is missing then, and its output tail is not
                directory.mkdir(parents=True, exist_ok=True)
        return path

    # -- outcomes, in the pool's thread

    def _deliver(self, settled: list[Settled]) -> None:
        done: list[tuple[Any, ...]] = []
        failed: list[tuple[Any, ...]] = []
        returned: list[int] = []
        size = 0
        for outcome in settled:
            if isinstance(outcome, Failed) and outcome.info["cause"] == "withdrawn":
                returned.append(outcome.job_id)
                continue
            row = _portable(outcome)
            (done if len(row) == len(Done._fields) else failed).append(row)
            size += len(row[1]) if isinstance(row[1], bytes | memoryview) else len(row[3])
            if size > say.FRAME_BYTES:
                self._say((say.SETTLED, done, failed, [], []))
                done, failed, size = [], [], 0
        self._say((say.SETTLED, done, failed, [], returned))

    def _record(self, job_id: int, value: bytes) -> None:
        self._say((say.SETTLED, [], [], [(job_id, value)], []))

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _say(self, message: Any) -> None:
        """Say something, whole. A driver that hung up is noticed by whoever listens to it."""
        data = wire.frame(message)
        with self._saying, contextlib.suppress(OSError):
            self._sock.sendall(data)


def _portable(outcome: Settled) -> tuple[Any, ...]:
    """The outcome with its payloads as bytes."""
    try:
        if isinstance(outcome, Done):
            return (outcome.job_id, _flat(outcome.parcel), *outcome[2:])
        return (outcome.job_id, outcome.info, _flat(outcome.blamed), _flat(outcome.late))
    except (OSError, ValueError) as error:
        message = f"the result cannot travel to the driver: {error}"
    attempts = outcome.attempts if isinstance(outcome, Done) else outcome.info["attempts"]
    info: dict[str, Any] = {
        "kind": "unpicklable",
        "cause": "",
        "attempts": attempts,
        "memory_limit": None,
        "unkilled_pids": [],
    }
    return (outcome.job_id, info, pack_plain({"message": message}), b"")


def _flat(parcel: Landed) -> bytes | memoryview:
    content = parcel if isinstance(parcel, bytes) else open_parcel(parcel)
    if len(content) > say.LARGEST_BYTES:
        msg = f"it has {len(content)} bytes, and {say.LARGEST_BYTES} is the most between hosts: write it to a file"
        raise ValueError(msg)
    return content


def _about() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def _stand_in(directory: str, path: list[str], argv: list[str]) -> None:
    """Stand where the driver stands, as far as that is to be had here: its directory, its imports, its arguments.

    This process is ours alone, or an MPI rank that was started in the same place.
    """
    with contextlib.suppress(OSError):
        os.chdir(directory)
    sys.path += [entry for entry in path if entry not in sys.path and Path(entry).exists()]
    sys.argv[:] = argv


def main(argv: list[str]) -> None:
    """Be a host that a command started.

    Args:
        argv: the host's id, its slots, then the driver's address and port; the secret comes over stdin, in hex.

    Raises:
        RobustEvalError: as `serve`.
    """
    host_id, slots, name, port = argv
    secret = bytes.fromhex(sys.stdin.readline().strip())
    if not secret:
        msg = "no secret came over stdin"
        raise RobustEvalError(msg)
    serve(Call([(name, int(port))], secret), Station(int(host_id), int(slots)))
