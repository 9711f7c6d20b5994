"""What the workers run. Small modules only, here and above: whatever is imported is part of every figure."""

import os
import time
from typing import Any


def noop(_job: Any) -> float:
    """Nothing."""
    return 0.0


def sleep(job: Any) -> float:
    """Wait for so many seconds."""
    time.sleep(job["s"])
    return 0.0


def spin(job: Any) -> float:
    """Compute for so many seconds."""
    ends_at = time.perf_counter() + job["s"]
    while time.perf_counter() < ends_at:
        pass
    return 0.0


def hold(job: Any) -> float:
    """Wait until the named pipe is opened for writing, if there is one; leave a byte in a file before."""
    if job["pipe"]:
        leave_a_byte(job["begun"])
        os.close(os.open(job["pipe"], os.O_RDONLY))
    return 0.0


def leave_a_byte(path: str) -> None:
    """Append one byte."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b".")
    os.close(fd)


def hang(job: Any) -> float:
    """Leave the instant and the process id in a file and never return; without a file, return at once."""
    if job["stamp"]:
        with open(job["stamp"], "w", encoding="ascii") as file:  # noqa: PTH123 - `pathlib` is no small module
            file.write(f"{time.monotonic()!r} {os.getpid()}")
        while True:
            time.sleep(3600.0)
    return 0.0


def touch(array: Any) -> float:
    """Read one number of each page."""
    return float(array[::512].sum())


def give_back(job: Any) -> dict[str, Any]:
    """Touch the array and return it."""
    return {"objective": touch(job["array"]), "metadata": {"array": job["array"]}}


def echo(job: Any) -> dict[str, Any]:
    """Return what came, untouched."""
    return {"objective": 0.0, "metadata": {"payload": job["payload"]}}
