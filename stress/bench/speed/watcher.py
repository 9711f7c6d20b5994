"""Seen from outside: when did each process end? `python watcher.py DIRECTORY COUNT`, run by `deadline.py`.

Waits for the stamps 0, 1, ... in the directory, each of which names a process, and prints the instant of its end. A
process of its own, so that whatever keeps the driver busy does not keep this clock waiting.
"""

import os
import select
import sys
import time
from pathlib import Path

_STEP_S = 0.002


def main(directory: str, count: str) -> None:
    """Print one monotonic instant a line."""
    for number in range(int(count)):
        stamp = Path(directory) / str(number)
        while not (stamp.exists() and len(words := stamp.read_text().split()) > 1):
            time.sleep(_STEP_S)
        try:
            fd = os.pidfd_open(int(words[1]))
        except ProcessLookupError:
            ended_at = time.monotonic()
        else:
            select.select([fd], [], [])
            ended_at = time.monotonic()
            os.close(fd)
        sys.stdout.write(f"{ended_at!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
