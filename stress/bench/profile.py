"""Where the time of a no-op call goes: `python -m stress.bench.profile [--seconds N]`.

Samples the driver, the supervisor and the workers of a busy pool with py-spy, and writes the share of each step into
docs/performance.md. A step is the innermost function of ours, or the standard library's where it waits or calls the
kernel.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from stress.bench import matrix_table
from stress.bench.__main__ import PAGE
from stress.bench.functions import noop
from stress.bench.speed.sessions import finish, session

_CALLS = 20_000
_RATE = 400
_MOST_STEPS = 10
_SPY = [str(Path(sys.executable).with_name("py-spy")), "record", "--format", "raw", "--nolineno", "--rate", str(_RATE)]


def sampled(pid: int, seconds: int) -> str:
    """The stacks of a process, folded: one line each, and how often it was seen."""
    with tempfile.NamedTemporaryFile() as file:
        command = [*_SPY, "--duration", str(seconds), "--output", file.name, "--pid", str(pid)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return Path(file.name).read_text(encoding="utf-8")


def steps(folded: str) -> Counter[str]:
    """How often each step was the innermost."""
    seen: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        name, _, place = stack.rpartition(";")[2].partition(" (")
        seen[f"{name} ({place.rpartition('/')[2].rstrip(')')})"] += int(count)
    return seen


def table(shares: dict[str, Counter[str]]) -> str:
    """One row a step, the largest of each process first."""
    lines = ["| process | step | share of its samples |", "|---|---|---|"]
    for process, seen in shares.items():
        total = seen.total()
        lines += [
            f"| {process} | `{step}` | {100 * count / total:.0f} % |" for step, count in seen.most_common(_MOST_STEPS)
        ]
    return "\n".join(lines)


def roles(pid: int) -> Iterable[tuple[str, int]]:
    """The driver, its supervisor, and one worker that works."""
    yield "driver", pid
    below = psutil.Process(pid).children(recursive=True)
    yield "supervisor", below[0].pid
    busiest = max(below[1:], key=lambda process: process.cpu_times().user)
    yield "worker", busiest.pid


def main(arguments: list[str]) -> None:
    """Sample, print, write."""
    parser = argparse.ArgumentParser(prog="python -m stress.bench.profile", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=5, help="how long each process is sampled")
    seconds = parser.parse_args(arguments).seconds
    calls = [{"x": x} for x in range(_CALLS)]
    over = threading.Event()
    with session("our_pool", noop, calls) as opened:
        driver = threading.Thread(target=lambda: [finish(opened, calls) for _ in iter(over.is_set, True)])
        driver.start()
        shares = {role: steps(sampled(pid, seconds)) for role, pid in roles(psutil.Process().pid)}
        over.set()
        driver.join()
    written = table(shares)
    sys.stdout.write(written + "\n")
    page = matrix_table.with_block(PAGE.read_text(encoding="utf-8"), written, "profile")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
