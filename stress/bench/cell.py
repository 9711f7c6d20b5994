"""One cell of a comparison: a module run in a process of its own, with a hard limit, and nothing of it left after.

Whatever the cell starts inherits a mark in its environment, so all of it is found, counted and killed at the end,
whoever its parent is by then. What is started without an environment is found by the note that was left of it.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

MARK = "ROBUST_EVAL_CELL"
_STEP_S = 0.05
_GOING_S = 2.0
_KILL_S = 10.0
_TAIL_BYTES = 2000
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
_WITHOUT_ENVIRONMENT = ["sleep", "3600"]  # how the catalogue starts the one program that bears no mark


@dataclass
class Ended:
    """How a cell ended.

    Attributes:
        said: the JSON objects that it wrote, in order.
        how: "ended", "limit" (killed at its hard limit) or "memory" (killed at its ceiling).
        exit_code: of the process; negative for a signal.
        left: command lines of processes that were there after it had ended by itself.
        peak_bytes: the most memory that its tree was seen with; 0 without a ceiling.
        stderr: the end of what it printed there.
    """

    said: list[dict[str, Any]] = field(default_factory=list)
    how: str = "ended"
    exit_code: int | None = None
    left: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    stderr: str = ""

    def told(self) -> dict[str, Any]:
        """All that was said, as one mapping."""
        return {name: value for said in self.said for name, value in said.items()}


@dataclass(frozen=True)
class Limits:
    """Seconds until the cell says "ready", seconds from then on, and the memory of its whole tree in bytes."""

    start_s: float = 90.0
    run_s: float = 20.0
    ceiling_bytes: int | None = None


def run(module: str, arguments: list[str], limits: Limits, python: str = sys.executable) -> Ended:
    """Run `python -m module arguments REPORT`; the module writes JSON lines to REPORT through `Report`."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="cell", ignore_cleanup_errors=True) as directory:
        report, errors = Path(directory) / "report", Path(directory) / "stderr"
        report.touch()
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [python, "-m", module, *arguments, str(report)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**_compiling(os.environ), **_ENVIRONMENT, MARK: mark, "TMPDIR": directory},
                start_new_session=True,
            )
        ended = Ended()
        try:
            ended.how = _watch(process, report, limits, ended, mark)
            if ended.how == "ended":
                ended.exit_code = process.wait()
                ended.left = _left(mark, Path(directory))
        finally:
            _kill_all(mark, process, Path(directory))
        ended.said = _read(report)
        ended.stderr = errors.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        return ended


def _compiling(environment: Mapping[str, str]) -> dict[str, str]:
    """What a package consists of is compiled when it is installed; ours is in a checkout and keeps what it compiled."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _watch(process: "subprocess.Popen[bytes]", report: Path, limits: Limits, ended: Ended, mark: str) -> str:
    ends_at = time.monotonic() + limits.start_s
    ready = False
    while process.poll() is None:
        if not ready and report.stat().st_size:
            ready, ends_at = True, time.monotonic() + limits.run_s
        if limits.ceiling_bytes is not None:
            ended.peak_bytes = max(ended.peak_bytes, _tree_bytes(mark))
            if ended.peak_bytes > limits.ceiling_bytes:
                return "memory"
        if time.monotonic() > ends_at:
            return "limit"
        time.sleep(_STEP_S)
    return "ended"


def _read(report: Path) -> list[dict[str, Any]]:
    said = []
    for line in report.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line that a kill cut off
            said.append(json.loads(line))
    return said


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that bear the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _tree_bytes(mark: str) -> int:
    total = 0
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            total += memory.rss - memory.shared
    return total


def _noted(directory: Path) -> list[psutil.Process]:
    """The living ones of those that `stress.faults_traces.note` has noted. Ids are used again: more must fit."""
    found = []
    for notes in directory.glob("*/*.pids"):
        for pid in map(int, notes.read_text().split()):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.cmdline() == _WITHOUT_ENVIRONMENT and not process.environ():
                    found.append(process)
    return found


def _left(mark: str, directory: Path) -> list[str]:
    """What is there some time after the cell's own end; whoever is on its way out is let go."""
    ends_at = time.monotonic() + _GOING_S
    while (left := marked(mark) + _noted(directory)) and time.monotonic() < ends_at:
        time.sleep(_STEP_S)
    lines = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline())[:200])
    return lines


def _kill_all(mark: str, process: "subprocess.Popen[bytes]", directory: Path) -> None:
    ends_at = time.monotonic() + _KILL_S
    while (left := marked(mark) + _noted(directory)) and time.monotonic() < ends_at:
        for other in left:
            with contextlib.suppress(psutil.Error):
                other.kill()
        process.poll()
        time.sleep(_STEP_S)
    if process.poll() is None:
        process.kill()
    process.wait()


class Report:
    """What a cell says, written at once, so that it is known even when the cell is killed.

    No descriptor stays open: a job that writes to all of those that it inherits must not write here.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def say(self, **what: Any) -> None:
        """Write one JSON object."""
        with Path(self._path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")
