"""Drivers that a test may kill: each a process of its own that runs a script against one storage."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_HEAD = """
import json, os, signal, sys, time
sys.path[:0] = [{root!r}]
from robust_eval import Evaluator, Storage

def tell(**words):
    os.write(1, (json.dumps(words) + "\\n").encode())

"""


@contextmanager
def driver(folder: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """Start a driver in a folder; killed after the block if it is not gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HEAD.format(root=str(ROOT)) + script],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: subprocess.Popen[str]) -> Mapping[str, Any]:
    """Give the next words of a driver."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the driver ended"
    words: Mapping[str, Any] = json.loads(line)
    return words
